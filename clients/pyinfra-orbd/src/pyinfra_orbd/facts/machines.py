"""Facts about machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from .. import _queries
from .._control import client
from .._facts import DaemonFact

if TYPE_CHECKING:
    from .._facts import PrecomputedCommand


class VmList(DaemonFact[list[_queries.Machine]]):
    """
    Returns all machines, running or not, as a list of dictionaries.

    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's

    .. code:: python

        [
            {
                "id": "01HXYZ0000000000000000WEB1",
                "name": "web",
                "state": "running",
                "distro": "ubuntu",
                "version": "noble",
                "arch": "arm64",
                "username": "me",
                "isolated": False,
                "cpus": 2,
                "memory_mib": 4096,
                "disk_bytes": None,
            },
        ]

    A limit is ``None`` if it is not set, or if the installed OrbStack does not report it.
    """

    default = list

    @override
    def command(self, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.machines(client(), max_age))


class VmInfo(DaemonFact[_queries.MachineInfo | None]):
    """
    Returns one machine: the same keys as in ``VmList``, and its addresses, disk size and domain. The addresses are ``None`` if it
    is not running.

    + machine: name of the machine; default: the host's machine
    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's

    .. code:: python

        {
            "name": "web",
            "state": "running",
            "ip4": "192.168.139.2",
            "ip6": "fd07:b51a:cc66:0:a617:db5e:ab7:e9f1",
            "disk_size": 701728512,
            "domain": "web.orb.local",
            ...
        }
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.machine_info(client(), self.machine(machine), max_age))


class VmStatus(DaemonFact[str | None]):
    """
    Returns a machine's state: ``running``, ``stopped``, or OrbStack's word for a state in between.

    + machine: name of the machine; default: the host's machine
    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.machine_info(client(), self.machine(machine), max_age)["state"])


class VmIp(DaemonFact[str | None]):
    """
    Returns a machine's IPv4 address; ``None`` if it is not running.

    + machine: name of the machine; default: the host's machine
    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.machine_info(client(), self.machine(machine), max_age)["ip4"])


class VmLogs(DaemonFact[list[str]]):
    """
    Returns the lines of a machine's log: its console output as kept by OrbStack, not the logs inside the machine.

    + machine: name of the machine; default: the host's machine
    + all_logs: whether to include OrbStack's own lines about the machine
    """

    default = list

    @override
    def command(self, machine: str | None = None, all_logs: bool = False) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: client().machine_logs(self.machine(machine), all=all_logs).split("\n"))
