"""Queries of the daemon that return plain values, shared by facts and helpers.

All results are dictionaries, lists, strings and numbers, so that a deploy can use them directly and PyInfra can print them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from os import path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from orbd import Client, models

DOMAIN = "orb.local"
"""Domain of the machines' names: ``NAME.orb.local``."""

SSH_HOST = "orb"
"""Host of OrbStack's SSH server in the user's SSH configuration."""

SSH_PORT_ELSEWHERE = 32222
"""Default port of OrbStack's SSH server on localhost, if ``orbctl ssh`` does not print one."""


class Machine(TypedDict):
    """A machine as in the machine list."""

    id: str
    name: str
    state: str
    distro: str
    version: str
    arch: str
    username: str | None
    isolated: bool
    cpus: int | None
    memory_mib: int | None
    disk_bytes: int | None


class MachineInfo(Machine):
    """A machine with details that the machine list lacks; the addresses are None if it is not running."""

    ip4: str | None
    ip6: str | None
    disk_size: int | None
    domain: str


class Network(TypedDict):
    """A machine's addresses, names, subnet and gateway; ``mac`` and ``gateway`` are None if the machine is not running."""

    ip4: str | None
    ip6: str | None
    mac: str | None
    domain: str
    hostname: str
    subnet: str | None
    gateway: str | None


class Ssh(TypedDict):
    """How to reach a machine over SSH: with the command ``connect`` on this computer, or with host, port, login and key."""

    machine: str
    user: str | None
    connect: str
    host: str
    port: int
    login: str
    identity_file: str | None
    text: str


class Orbstack(TypedDict):
    """Status and version of OrbStack."""

    status: str
    running: bool
    version: str


def _machine(machine: models.Machine) -> Machine:
    config = machine.config
    return {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state,
        "distro": machine.image.distro,
        "version": machine.image.version,
        "arch": machine.image.arch,
        "username": config.default_username,
        "isolated": bool(config.isolated),
        "cpus": config.cpu_limit,
        "memory_mib": config.memory_limit_mib,
        "disk_bytes": config.disk_limit_bytes,
    }


def _milliseconds(max_age: float | None) -> int | None:
    return None if max_age is None else max(0, int(max_age * 1000))


def machines(client: Client, max_age: float | None = None) -> list[Machine]:
    """Returns all machines."""
    return [_machine(machine) for machine in client.machine_list(max_age_ms=_milliseconds(max_age)).machines]


def machine_info(client: Client, machine: str, max_age: float | None = None) -> MachineInfo:
    """Returns one machine."""
    info = client.machine_info(machine, max_age_ms=_milliseconds(max_age))
    return {
        **_machine(info.machine),
        "ip4": info.ip4,
        "ip6": info.ip6,
        "disk_size": info.disk_size,
        "domain": f"{info.machine.name}.{DOMAIN}",
    }


INSPECT_NETWORK = "cat /proc/net/route; grep -H . /sys/class/net/*/address"
"""Command in a machine that prints the kernel's routing table, and the hardware address of each interface after its path."""


def network(client: Client, machine: str, max_age: float | None = None) -> Network:
    """Returns a machine's addresses and names. Reads MAC address, subnet and gateway inside a running machine.

    For a machine that is not running, the subnet is OrbStack's setting ``network.subnet4``. The query never starts a machine.
    """
    info = machine_info(client, machine, max_age)
    mac = subnet = gateway = None
    if info["state"] == "running":
        run = client.machine_run(info["name"], ["sh", "-c", INSPECT_NETWORK])
        seen = b"".join(chunk.data for chunk in run.output if chunk.stream == "stdout").decode("ascii", "replace")
        mac = mac_address(seen)
        subnet, gateway = route(seen)
    if subnet is None:
        subnet = client.config_show(max_age_ms=_milliseconds(max_age)).values.get("network.subnet4")
    return {
        "ip4": info["ip4"],
        "ip6": info["ip6"],
        "mac": mac,
        "domain": info["domain"],
        "hostname": info["domain"],
        "subnet": subnet,
        "gateway": gateway,
    }


class Route(NamedTuple):
    """One row of the kernel's routing table."""

    interface: str
    target: IPv4Address
    gateway: IPv4Address
    mask: IPv4Address


def route(table: str) -> tuple[str | None, str | None]:
    """Parses the output of ``INSPECT_NETWORK``; returns the subnet of the default route's interface, and the gateway."""
    routes = list(_routes(table))
    default = _default(routes)
    if default is None:
        return None, None
    unspecified = IPv4Address(0)
    on_link = (found for found in routes if found.interface == default.interface and found.gateway == unspecified != found.mask)
    subnet = next((str(IPv4Network((int(found.target), str(found.mask)))) for found in on_link), None)
    return subnet, str(default.gateway)


def mac_address(seen: str) -> str | None:
    """Parses the output of ``INSPECT_NETWORK``; returns the MAC address of the default route's interface.

    Without a default route, it is that of the only interface that has one.
    """
    found = re.findall(r"^/sys/class/net/([^/]+)/address:([0-9a-f:]{17})$", seen, re.MULTILINE)
    addresses = {interface: address for interface, address in found if address.strip("0:")}
    default = _default(_routes(seen))
    if default is not None:
        return addresses.get(default.interface)
    return next(iter(addresses.values())) if len(addresses) == 1 else None


def _default(routes: Iterable[Route]) -> Route | None:
    unspecified = IPv4Address(0)
    return next((found for found in routes if found.target == found.mask == unspecified), None)


def _routes(table: str) -> Iterator[Route]:
    for line in table.splitlines():
        row = line.split()
        try:
            yield Route(row[0], _address(row[1]), _address(row[2]), _address(row[7]))
        except (IndexError, ValueError, OverflowError):
            # Skip lines that are not in the kernel's format.
            continue


def _address(text: str) -> IPv4Address:
    # The kernel prints addresses as integers in host byte order, which is little-endian on all of OrbStack's architectures.
    return IPv4Address(int.from_bytes(int(text, 16).to_bytes(4, "little"), "big"))


def ssh(client: Client, machine: str, user: str | None = None) -> Ssh:
    """Returns how to reach a machine over SSH, whether or not it is running."""
    # The answer does not depend on the machine, but one that does not exist cannot be reached.
    machine = client.machine_info(machine).machine.name
    text = client.machine_ssh()
    port = re.search(r"^\s*Port\s+(\d+)\s*$", text, re.MULTILINE)
    key = re.search(r"^\s*IdentityFile\s+(.+?)\s*$", text, re.MULTILINE)
    login = machine if user is None else f"{user}@{machine}"
    return {
        "machine": machine,
        "user": user,
        "connect": connect_string(machine, user),
        "host": "localhost",
        "port": int(port[1]) if port else SSH_PORT_ELSEWHERE,
        "login": login,
        "identity_file": path.expanduser(key[1].strip("'\"")) if key else None,
        "text": text,
    }


def connect_string(machine: str, user: str | None = None) -> str:
    """Returns the command that opens a shell in a machine from this computer."""
    return f"ssh {machine if user is None else f'{user}@{machine}'}@{SSH_HOST}"


def orbstack(client: Client, max_age: float | None = None) -> Orbstack:
    """Returns the status of OrbStack without starting it, and its version."""
    status = client.orbstack_status(max_age_ms=_milliseconds(max_age)).status
    return {
        "status": status,
        "running": status == "running",
        "version": client.orbstack_version(max_age_ms=_milliseconds(max_age)).version,
    }


def config(client: Client, max_age: float | None = None) -> dict[str, str]:
    """Returns OrbStack's whole configuration."""
    return dict(client.config_show(max_age_ms=_milliseconds(max_age)).values)
