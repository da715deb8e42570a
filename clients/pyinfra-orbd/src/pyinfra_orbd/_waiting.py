"""Notices about calls without an answer yet, so that a waiting deploy shows what it waits for.

A call that is only answered at its end has no job id until then. So a notice finds the job by its client's process and its
machine, on a separate connection, after the call has waited for some time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from orbd.errors import OrbdError

if TYPE_CHECKING:
    from orbd import Client, models

SILENT = ("run", "push", "pull", "export", "import")
"""Operations without a notice while they run, because a long run time is normal for them."""


def seconds(milliseconds: int | None) -> str:
    """Returns a duration in the form of the notices."""
    return f"{(milliseconds or 0) / 1000:.0f} s"


def reason(waiting: models.WaitingFor) -> str:
    """Returns the notice that explains why a job is waiting."""
    if waiting.kind == "job":
        what = " ".join(word for word in (waiting.operation, waiting.machine) if word) or f"job {waiting.job_id}"
        return f"waiting for {what} ({waiting.client or 'another client'}, {seconds(waiting.age_ms)})"
    if waiting.kind == "limit":
        return f"waiting for a free slot: {waiting.limit or 'a limit'} reached"
    if waiting.kind == "paused":
        return "waiting: the queue is paused; `orbd-ctl queue resume` continues it"
    return f"waiting: orbctl is unhealthy: {waiting.reason or 'see `orbd-ctl doctor`'}"


class WaitNotice:
    """Reports what one call waits for, and again when that changes."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        """Reports to ``notify``."""
        self._notify = notify
        self._last: object = None

    def waiting(self, waiting: models.WaitingFor) -> None:
        """Reports what the call waits for now."""
        self._once((waiting.kind, waiting.job_id, waiting.limit, waiting.reason), reason(waiting))

    def poll(self, client: Client, machine: str | None, is_own: Callable[[int], bool]) -> None:
        """Looks up the jobs of this call and reports what they wait for, or that they still run.

        ``is_own`` decides by process id whether a client belongs to this call. ``machine``, if given, limits the search.
        """
        try:
            jobs = [
                job
                for state in ("waiting", "running")
                for job in client.job_list(state=state, machine=machine).jobs
                if job.client is not None and job.client.pid is not None and is_own(job.client.pid)
            ]
        except OrbdError:
            # The call itself reports the error.
            return
        for job in jobs:
            if job.waiting_for is not None:
                self.waiting(job.waiting_for)
                return
        for job in jobs:
            if job.operation not in SILENT:
                what = " ".join(word for word in (job.operation, job.machine) if word)
                self._once((job.job_id,), f"{what} is still running ({seconds((job.run_us or 0) // 1000)})")
                return

    def _once(self, key: object, text: str) -> None:
        if key != self._last:
            self._last = key
            self._notify(text)


def is_this_process(pid: int) -> bool:
    """Returns whether a process id is that of this process."""
    return pid == os.getpid()


def is_in_group(group: int) -> Callable[[int], bool]:
    """Returns a function that checks whether a process belongs to ``group``."""

    def is_in(pid: int) -> bool:
        try:
            return os.getpgid(pid) == group
        except OSError:
            return False

    return is_in
