"""Old place of :mod:`pyinfra_orbd.operations` and :mod:`pyinfra_orbd.helpers`.

Operations have the arguments that they had, in their order. What used to be called an operation and only told something returns
it now, and ignores the arguments that PyInfra takes for operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from pyinfra_orbd import helpers
from pyinfra_orbd import operations as new
from pyinfra_orbd.operations import (
    orbstack_config_set,
    vm_clone,
    vm_create,
    vm_delete,
    vm_dns_lookup,
    vm_import,
    vm_rename,
    vm_restart,
    vm_start,
    vm_stop,
    vm_test_connectivity,
    vm_username_set,
)

from .._note import note

note("pyinfra_orbstack.operations", "pyinfra_orbd.operations (what tells something: pyinfra_orbd.helpers and .facts)")

__all__ = [
    "orbstack_config_get",
    "orbstack_config_set",
    "orbstack_config_show",
    "ssh_connect_string",
    "ssh_info",
    "vm_clone",
    "vm_create",
    "vm_delete",
    "vm_dns_lookup",
    "vm_export",
    "vm_import",
    "vm_info",
    "vm_ip",
    "vm_list",
    "vm_logs",
    "vm_network_details",
    "vm_network_info",
    "vm_rename",
    "vm_restart",
    "vm_start",
    "vm_status",
    "vm_status_detailed",
    "vm_stop",
    "vm_test_connectivity",
    "vm_username_set",
]

T = TypeVar("T")


def _telling(helper: Callable[..., T]) -> Callable[..., T]:
    @wraps(helper)
    def told(*args: Any, **kwargs: Any) -> T:
        return helper(*args, **{key: value for key, value in kwargs.items() if key != "name" and not key.startswith("_")})

    return told


def vm_export(machine: str, /, output_path: str, **arguments: Any) -> Any:
    """Writes a machine to an archive, over what is there, as it always did here; the new one leaves an archive alone."""
    return new.vm_export(machine=machine, output_path=output_path, overwrite=True, **arguments)


orbstack_config_get = _telling(helpers.orbstack_config_get)
orbstack_config_show = _telling(helpers.orbstack_config_show)
ssh_connect_string = _telling(helpers.ssh_connect_string)
ssh_info = _telling(helpers.ssh_info)
vm_info = _telling(helpers.vm_info)
vm_ip = _telling(helpers.vm_ip)
vm_list = _telling(helpers.vm_list)
vm_logs = _telling(helpers.vm_logs)
vm_network_details = _telling(helpers.vm_network_details)
vm_network_info = _telling(helpers.vm_network_info)
vm_status = _telling(helpers.vm_status)
vm_status_detailed = _telling(helpers.vm_status_detailed)
