"""OrbStack itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from .. import _told
from .._asked import AskedFactBase
from .._control import client

if TYPE_CHECKING:
    from .._answered import Asked


class OrbstackConfig(AskedFactBase[dict[str, str]]):
    """
    Returns OrbStack's whole configuration, its machines' settings included, as a dictionary of texts.

    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon

    .. code:: python

        {"cpu": "8", "memory_mib": "16384", "machine.web.username": "me", ...}
    """

    default = dict

    @override
    def command(self, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.config(client(), max_age))


class OrbstackStatus(AskedFactBase[_told.Orbstack | None]):
    """
    Returns whether OrbStack runs, without waking it, and its version.

    + max_age: seconds that the answer may be old; 0 asks OrbStack now, absent leaves it to the daemon

    .. code:: python

        {"status": "running", "running": True, "version": "2.2.3"}
    """

    @override
    def command(self, max_age: float | None = None) -> Asked:
        """Asks."""
        return self.ask(lambda: _told.orbstack(client(), max_age))
