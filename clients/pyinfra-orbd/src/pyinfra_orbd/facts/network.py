"""Facts about the network of machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from .. import _queries
from .._control import client
from .._facts import DaemonFact

if TYPE_CHECKING:
    from .._facts import PrecomputedCommand


class VmNetwork(DaemonFact[_queries.Network | None]):
    """
    Returns a machine's addresses and names, its network and its gateway.

    + machine: name of the machine; default: the host's machine
    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's

    .. code:: python

        {
            "ip4": "192.168.139.2",
            "ip6": "fd07:b51a:cc66:0:a617:db5e:ab7:e9f1",
            "mac": "a6:17:db:b7:e9:f1",
            "domain": "web.orb.local",
            "hostname": "web.orb.local",
            "subnet": "192.168.138.0/23",
            "gateway": "192.168.139.1",
        }

    MAC address, subnet and gateway are read in a running machine. The fact never starts a machine: for a machine that is not
    running, the subnet is OrbStack's setting ``network.subnet4``, and addresses and gateway are ``None``.
    """

    @override
    def command(self, machine: str | None = None, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.network(client(), self.machine(machine), max_age))


class SshInfo(DaemonFact[_queries.Ssh | None]):
    """
    Returns how to reach a machine over SSH.

    + machine: name of the machine; default: the host's machine
    + user: user in the machine; default: the machine's default user

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
    other programs. ``text`` is the output of ``orbctl ssh``.
    """

    @override
    def command(self, machine: str | None = None, user: str | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.ssh(client(), self.machine(machine), user))


class SshConnectString(DaemonFact[str | None]):
    """
    Returns the command that opens a shell in a machine from the control machine, such as ``ssh web@orb``.

    + machine: name of the machine; default: the host's machine
    + user: user in the machine; default: the machine's default user
    """

    @override
    def command(self, machine: str | None = None, user: str | None = None) -> PrecomputedCommand:
        """Derives the command from the names, without a query."""
        return self.precompute(lambda: _queries.connect_string(self.machine(machine), user))
