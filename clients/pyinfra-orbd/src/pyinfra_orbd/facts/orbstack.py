"""Facts about OrbStack itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from .. import _queries
from .._control import client
from .._facts import DaemonFact

if TYPE_CHECKING:
    from .._facts import PrecomputedCommand


class OrbstackConfig(DaemonFact[dict[str, str]]):
    """
    Returns OrbStack's whole configuration, including the settings of its machines, as a dictionary of strings.

    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's

    .. code:: python

        {"cpu": "8", "memory_mib": "16384", "machine.web.username": "me", ...}
    """

    default = dict

    @override
    def command(self, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.config(client(), max_age))


class OrbstackStatus(DaemonFact[_queries.Orbstack | None]):
    """
    Returns the status of OrbStack without starting it, and its version.

    + max_age: maximum age of the answer in seconds; 0 asks OrbStack now; default: the daemon's

    .. code:: python

        {"status": "running", "running": True, "version": "2.2.3"}
    """

    @override
    def command(self, max_age: float | None = None) -> PrecomputedCommand:
        """Queries the daemon."""
        return self.precompute(lambda: _queries.orbstack(client(), max_age))
