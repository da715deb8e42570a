"""Functions that return data about machines and OrbStack immediately, while PyInfra reads the deploy file.

If no machine is given, they use the current host's machine. Inside an operation, or for another host, use
:mod:`pyinfra_orbd.facts`, which return the same data. An error of the daemon raises ``FactError`` with a one-line message.

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

from . import _queries
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


def _raises_fact_error(query: Callable[P, T]) -> Callable[P, T]:
    @wraps(query)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return query(*args, **kwargs)
        except OrbdError as error:
            raise FactError(f"{query.__name__}: {error}") from error

    return guarded


def _machine_or_own(machine: str | None) -> str:
    if machine is not None:
        return machine
    own = machine_of(context.host) if context.ctx_host.get() is not None else None  # type: ignore[no-untyped-call]
    if own is None:
        raise OrbdError("no machine given, and the current host is not an OrbStack machine: pass machine=")
    return own


@_raises_fact_error
def vm_list(*, max_age: float | None = None) -> list[_queries.Machine]:
    """Returns all machines."""
    return _queries.machines(client(), max_age)


@_raises_fact_error
def vm_info(machine: str | None = None, *, max_age: float | None = None) -> _queries.MachineInfo:
    """Returns one machine with its addresses and disk size."""
    return _queries.machine_info(client(), _machine_or_own(machine), max_age)


@_raises_fact_error
def vm_status(machine: str | None = None, *, max_age: float | None = None) -> str:
    """Returns ``running``, ``stopped``, or OrbStack's word for a state in between."""
    return _queries.machine_info(client(), _machine_or_own(machine), max_age)["state"]


@_raises_fact_error
def vm_status_detailed(machine: str | None = None, *, max_age: float | None = None) -> _queries.MachineInfo:
    """Returns the same as :func:`vm_info`."""
    return _queries.machine_info(client(), _machine_or_own(machine), max_age)


@_raises_fact_error
def vm_ip(machine: str | None = None, *, max_age: float | None = None) -> str | None:
    """Returns a machine's IPv4 address; None if it is not running."""
    return _queries.machine_info(client(), _machine_or_own(machine), max_age)["ip4"]


@_raises_fact_error
def vm_network_info(machine: str | None = None, *, max_age: float | None = None) -> _queries.Network:
    """Returns a machine's addresses, MAC address, domain, subnet and gateway."""
    return _queries.network(client(), _machine_or_own(machine), max_age)


@_raises_fact_error
def vm_network_details(machine: str | None = None, *, max_age: float | None = None) -> _queries.Network:
    """Returns the same as :func:`vm_network_info`."""
    return _queries.network(client(), _machine_or_own(machine), max_age)


@_raises_fact_error
def vm_logs(all_logs: bool = False, machine: str | None = None) -> str:
    """Returns a machine's log."""
    return client().machine_logs(_machine_or_own(machine), all=all_logs)


@_raises_fact_error
def ssh_info(machine: str | None = None, user: str | None = None) -> _queries.Ssh:
    """Returns how to reach a machine over SSH."""
    return _queries.ssh(client(), _machine_or_own(machine), user)


@_raises_fact_error
def ssh_connect_string(machine: str | None = None, user: str | None = None) -> str:
    """Returns the command that opens a shell in a machine, such as ``ssh web@orb``."""
    return _queries.connect_string(_machine_or_own(machine), user)


@_raises_fact_error
def orbstack_config_show(*, max_age: float | None = None) -> dict[str, str]:
    """Returns OrbStack's whole configuration."""
    return _queries.config(client(), max_age)


@_raises_fact_error
def orbstack_config_get(key: str, *, max_age: float | None = None) -> str | None:
    """Returns the value of one key of OrbStack's configuration; None if it is not set."""
    return _queries.config(client(), max_age).get(key)


@_raises_fact_error
def orbstack_status(*, max_age: float | None = None) -> _queries.Orbstack:
    """Returns the status of OrbStack without starting it, and its version."""
    return _queries.orbstack(client(), max_age)
