"""Records which host of the deploy each job of an operation belongs to.

A host's commands run in its own machine, so the daemon's records identify the host. An operation can change any machine, so it
records its jobs here, and the timing report reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbd._transport import socket_path

if TYPE_CHECKING:
    from pyinfra.api.host import Host

# The key includes the daemon's socket, because each daemon has its own job ids.
_host_by_job: dict[tuple[str, int], str] = {}

JOBS_MAX = 100_000
"""Maximum number of recorded jobs; the oldest are discarded."""


def record_job(host: Host, job_id: int) -> None:
    """Records that a job belongs to a host."""
    _host_by_job[socket_path(), job_id] = host.name
    if len(_host_by_job) > JOBS_MAX:
        del _host_by_job[next(iter(_host_by_job))]


def host_of(job_id: int) -> str | None:
    """Returns the name of the host that a job belongs to, or None if it was not recorded."""
    return _host_by_job.get((socket_path(), job_id))
