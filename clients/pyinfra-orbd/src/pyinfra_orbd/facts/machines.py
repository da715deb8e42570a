"""Machines: which there are, and what is known of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from .. import _told
from .._asked import AskedFactBase
from .._control import client

if TYPE_CHECKING:
    from .._answered import Asked


class VmList(AskedFactBase[list[_told.Machine]]):
    """
    Returns every machine, running or not, as a list of dictionaries.

    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon

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

    Limits are ``None`` where there are none, or where the installed OrbStack does not tell them.
    """

    default = list

    @override
    def command(self, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.machines(client(), max_age))


class VmInfo(AskedFactBase[_told.MachineInfo | None]):
    """
    Returns one machine: what ``VmList`` tells of it, its addresses while it runs, its size and its domain.

    + machine: name of the machine, the host's where absent
    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon

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
    def command(self, machine: str | None = None, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.machine_info(client(), self.machine(machine), max_age))


class VmStatus(AskedFactBase[str | None]):
    """
    Returns a machine's state: ``running``, ``stopped``, or another word of OrbStack's while it is neither.

    + machine: name of the machine, the host's where absent
    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.machine_info(client(), self.machine(machine), max_age)["state"])


class VmIp(AskedFactBase[str | None]):
    """
    Returns a machine's IPv4 address, ``None`` while it does not run.

    + machine: name of the machine, the host's where absent
    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.machine_info(client(), self.machine(machine), max_age)["ip4"])


class VmLogs(AskedFactBase[list[str]]):
    """
    Returns the lines of a machine's log: what OrbStack kept of its console, not the logs inside it.

    + machine: name of the machine, the host's where absent
    + all_logs: whether to tell OrbStack's own lines about it too
    """

    default = list

    @override
    def command(self, machine: str | None = None, all_logs: bool = False) -> Asked:
        """Asks."""
        return self.ask(lambda: client().machine_logs(self.machine(machine), all=all_logs).split("\n"))
