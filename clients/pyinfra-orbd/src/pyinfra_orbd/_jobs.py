"""Which jobs of the daemon belong to which host of the deploy.

Commands of a host go to its own machine, so the daemon's records tell whose they were. What an operation changes is another
machine's matter: whoever asked for it says so here, and the timing report looks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbd._transport import socket_path

if TYPE_CHECKING:
    from pyinfra.api.host import Host

# By the daemon's socket too: another daemon counts its jobs anew.
_noted: dict[tuple[str, int], str] = {}

NOTED_MAX = 100_000
"""Jobs remembered; beyond it the oldest are forgotten."""


def note(host: Host, job_id: int) -> None:
    """Remembers that a job was done for a host."""
    _noted[socket_path(), job_id] = host.name
    if len(_noted) > NOTED_MAX:
        del _noted[next(iter(_noted))]


def host_of(job_id: int) -> str | None:
    """Returns the name of the host that a job was done for, or None where nobody said."""
    return _noted.get((socket_path(), job_id))
