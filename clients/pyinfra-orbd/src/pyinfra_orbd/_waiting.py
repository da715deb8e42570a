"""Notices about calls that have no answer yet, so that a deploy never stands still in silence.

A call that is answered once, at its end, has no job id until then. So a notice looks the job up by its client's process and its
machine, on a connection of its own, and only after the call has waited for a while.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from orbd.errors import OrbdError

if TYPE_CHECKING:
    from orbd import Client, models

SILENT = ("run", "push", "pull", "export", "import")
"""Operations that may run for as long as they like without a notice: what they do is what the deploy is about."""


def seconds(milliseconds: int | None) -> str:
    """Returns a duration as notices show it."""
    return f"{(milliseconds or 0) / 1000:.0f} s"


def reason(waiting: models.WaitingFor) -> str:
    """Returns what a job waits for, with how long that has been there."""
    if waiting.kind == "job":
        what = " ".join(word for word in (waiting.operation, waiting.machine) if word) or f"job {waiting.job_id}"
        return f"waiting for {what} ({waiting.client or 'another client'}, {seconds(waiting.age_ms)})"
    if waiting.kind == "limit":
        return f"waiting: {waiting.limit or 'a limit'} is reached"
    if waiting.kind == "paused":
        return "waiting: the queue is paused; `orbd-ctl queue resume` continues it"
    return f"waiting: orbctl is unhealthy: {waiting.reason or 'see `orbd-ctl doctor`'}"


class WaitNotice:
    """Prints what one call waits for, and again when it waits for something else."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Prints through ``tell``."""
        self._tell = tell
        self._last: object = None

    def waiting(self, waiting: models.WaitingFor) -> None:
        """Takes what the call waits for now."""
        self._once((waiting.kind, waiting.job_id, waiting.limit, waiting.reason), reason(waiting))

    def look(self, client: Client, machine: str | None, is_own: Callable[[int], bool]) -> None:
        """Looks for the call's job among those of ``machine`` whose client is a process that ``is_own`` accepts."""
        try:
            jobs = [
                job
                for state in ("waiting", "running")
                for job in client.job_list(state=state, machine=machine).jobs
                if job.client is not None and job.client.pid is not None and is_own(job.client.pid)
            ]
        except OrbdError:
            # The call itself reports what is wrong.
            return
        for job in jobs:
            if job.waiting_for is not None:
                self.waiting(job.waiting_for)
                return
        for job in jobs:
            if job.operation not in SILENT:
                what = " ".join(word for word in (job.operation, job.machine) if word)
                self._once((job.job_id,), f"{what} is not done yet ({seconds((job.run_us or 0) // 1000)})")
                return

    def _once(self, key: object, text: str) -> None:
        if key != self._last:
            self._last = key
            self._tell(text)


def is_this_process(pid: int) -> bool:
    """Whether a job's client is this process."""
    return pid == os.getpid()


def is_in_group(group: int) -> Callable[[int], bool]:
    """Returns whether a job's client belongs to a process group."""

    def is_in(pid: int) -> bool:
        try:
            return os.getpgid(pid) == group
        except OSError:
            return False

    return is_in
