"""What is known of machines, as functions that return it.

They take the current host's machine where none is named, and answer at once, while the deploy file is read. Inside an operation
or for another host, use :mod:`pyinfra_orbd.facts`, which know the same. Failures are ``FactError``, told in one line.

.. code:: python

    from pyinfra_orbd.helpers import vm_ip, vm_list

    database = vm_ip("db")
    running = [machine["name"] for machine in vm_list() if machine["state"] == "running"]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from pyinfra import context
from pyinfra.api.exceptions import FactError

from orbd import OrbdError

from . import _told
from ._control import client, machine_of

__all__ = [
    "orbstack_config_get",
    "orbstack_config_show",
    "orbstack_status",
    "ssh_connect_string",
    "ssh_info",
    "vm_info",
    "vm_ip",
    "vm_list",
    "vm_logs",
    "vm_network_details",
    "vm_network_info",
    "vm_status",
    "vm_status_detailed",
]

P = ParamSpec("P")
T = TypeVar("T")


def _answered(ask: Callable[P, T]) -> Callable[P, T]:
    @wraps(ask)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return ask(*args, **kwargs)
        except OrbdError as error:
            raise FactError(f"{ask.__name__}: {error}") from error

    return guarded


def _meant(machine: str | None) -> str:
    if machine is not None:
        return machine
    own = machine_of(context.host) if context.ctx_host.get() is not None else None  # type: ignore[no-untyped-call]
    if own is None:
        raise OrbdError("which machine? the current host is none of OrbStack's, so name one")
    return own


@_answered
def vm_list(*, max_age: float | None = None) -> list[_told.Machine]:
    """Returns every machine."""
    return _told.machines(client(), max_age)


@_answered
def vm_info(machine: str | None = None, *, max_age: float | None = None) -> _told.MachineInfo:
    """Returns one machine with its addresses and size."""
    return _told.machine_info(client(), _meant(machine), max_age)


@_answered
def vm_status(machine: str | None = None, *, max_age: float | None = None) -> str:
    """Returns ``running``, ``stopped``, or another word of OrbStack's."""
    return _told.machine_info(client(), _meant(machine), max_age)["state"]


@_answered
def vm_status_detailed(machine: str | None = None, *, max_age: float | None = None) -> _told.MachineInfo:
    """Returns the same as :func:`vm_info`."""
    return _told.machine_info(client(), _meant(machine), max_age)


@_answered
def vm_ip(machine: str | None = None, *, max_age: float | None = None) -> str | None:
    """Returns a machine's IPv4 address, None while it does not run."""
    return _told.machine_info(client(), _meant(machine), max_age)["ip4"]


@_answered
def vm_network_info(machine: str | None = None, *, max_age: float | None = None) -> _told.Network:
    """Returns addresses, domain, subnet and gateway."""
    return _told.network(client(), _meant(machine), max_age)


@_answered
def vm_network_details(machine: str | None = None, *, max_age: float | None = None) -> _told.Network:
    """Returns the same as :func:`vm_network_info`."""
    return _told.network(client(), _meant(machine), max_age)


@_answered
def vm_logs(all_logs: bool = False, machine: str | None = None) -> str:
    """Returns a machine's log."""
    return client().machine_logs(_meant(machine), all=all_logs)


@_answered
def ssh_info(machine: str | None = None, user: str | None = None) -> _told.Ssh:
    """Returns how to reach a machine over SSH."""
    return _told.ssh(client(), _meant(machine), user)


@_answered
def ssh_connect_string(machine: str | None = None, user: str | None = None) -> str:
    """Returns the command that opens a shell in a machine, as in ``ssh web@orb``."""
    return _told.connect_string(_meant(machine), user)


@_answered
def orbstack_config_show(*, max_age: float | None = None) -> dict[str, str]:
    """Returns OrbStack's whole configuration."""
    return _told.config(client(), max_age)


@_answered
def orbstack_config_get(key: str, *, max_age: float | None = None) -> str | None:
    """Returns one key of OrbStack's configuration, None where it is not set."""
    return _told.config(client(), max_age).get(key)


@_answered
def orbstack_status(*, max_age: float | None = None) -> _told.Orbstack:
    """Returns whether OrbStack runs, without waking it, and its version."""
    return _told.orbstack(client(), max_age)
