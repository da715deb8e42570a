"""How machines are reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from .. import _told
from .._asked import AskedFactBase
from .._control import client

if TYPE_CHECKING:
    from .._answered import Asked


class VmNetwork(AskedFactBase[_told.Network | None]):
    """
    Returns a machine's addresses and names, its network and its gateway.

    + machine: name of the machine, the host's where absent
    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon

    .. code:: python

        {
            "ip4": "192.168.139.2",
            "ip6": "fd07:b51a:cc66:0:a617:db5e:ab7:e9f1",
            "domain": "web.orb.local",
            "hostname": "web.orb.local",
            "subnet": "192.168.138.0/23",
            "gateway": "192.168.139.1",
        }

    Subnet and gateway are read from the routes of a running machine. A machine that does not run is not started for them: its
    subnet is then the one that OrbStack is configured to use, and it has neither addresses nor gateway.
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.network(client(), self.machine(machine), max_age))


class SshInfo(AskedFactBase[_told.Ssh | None]):
    """
    Returns how to reach a machine over SSH.

    + machine: name of the machine, the host's where absent
    + user: user in the machine, its default user where absent

    .. code:: python

        {
            "machine": "web",
            "user": None,
            "connect": "ssh web@orb",
            "host": "localhost",
            "port": 32222,
            "login": "web",
            "identity_file": "/Users/me/.orbstack/ssh/id_ed25519",
            "text": "...",
        }

    ``connect`` is for programs that read the Mac's SSH configuration; ``host``, ``port``, ``login`` and ``identity_file`` are for
    others, and ``text`` is all that ``orbctl ssh`` says.
    """

    @override
    def command(self, machine: str | None = None, user: str | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.ssh(client(), self.machine(machine), user))


class SshConnectString(AskedFactBase[str | None]):
    """
    Returns the command that opens a shell in a machine from the control machine, as in ``ssh web@orb``.

    + machine: name of the machine, the host's where absent
    + user: user in the machine, its default user where absent
    """

    @override
    def command(self, machine: str | None = None, user: str | None = None) -> Asked:
        """Asks nobody: it follows from the names."""
        return self.ask(lambda: _told.connect_string(self.machine(machine), user))
