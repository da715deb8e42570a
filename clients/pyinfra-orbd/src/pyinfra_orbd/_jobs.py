"""Which jobs of the daemon belong to which host of the deploy.

Commands of a host go to its own machine, so the daemon's records tell whose they were. What an operation changes is another
machine's matter: whoever asked for it says so here, and the timing report looks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyinfra.api.host import Host

_noted: dict[int, str] = {}

NOTED_MAX = 100_000
"""Jobs remembered; beyond it the oldest are forgotten."""


def note(host: Host, job_id: int) -> None:
    """Remembers that a job was done for a host."""
    _noted[job_id] = host.name
    if len(_noted) > NOTED_MAX:
        del _noted[next(iter(_noted))]


def host_of(job_id: int) -> str | None:
    """Returns the name of the host that a job was done for, or None where nobody said."""
    return _noted.get(job_id)
