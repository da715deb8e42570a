"""Deprecated name of :mod:`pyinfra_orbd.operations` and :mod:`pyinfra_orbd.helpers`.

Operations have the same arguments as before, in the same order. Former operations that only query data are now functions that
return it, and ignore PyInfra's operation arguments.
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

note("pyinfra_orbstack.operations", "pyinfra_orbd.operations (for queries: pyinfra_orbd.helpers or pyinfra_orbd.facts)")

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


def _without_operation_arguments(helper: Callable[..., T]) -> Callable[..., T]:
    @wraps(helper)
    def wrapper(*args: Any, **kwargs: Any) -> T:
        return helper(*args, **{key: value for key, value in kwargs.items() if key != "name" and not key.startswith("_")})

    return wrapper


def vm_export(machine: str, /, output_path: str, **arguments: Any) -> Any:
    """Writes a machine to an archive and overwrites an existing one, which the new operation keeps by default."""
    return new.vm_export(machine=machine, output_path=output_path, overwrite=True, **arguments)


orbstack_config_get = _without_operation_arguments(helpers.orbstack_config_get)
orbstack_config_show = _without_operation_arguments(helpers.orbstack_config_show)
ssh_connect_string = _without_operation_arguments(helpers.ssh_connect_string)
ssh_info = _without_operation_arguments(helpers.ssh_info)
vm_info = _without_operation_arguments(helpers.vm_info)
vm_ip = _without_operation_arguments(helpers.vm_ip)
vm_list = _without_operation_arguments(helpers.vm_list)
vm_logs = _without_operation_arguments(helpers.vm_logs)
vm_network_details = _without_operation_arguments(helpers.vm_network_details)
vm_network_info = _without_operation_arguments(helpers.vm_network_info)
vm_status = _without_operation_arguments(helpers.vm_status)
vm_status_detailed = _without_operation_arguments(helpers.vm_status_detailed)
