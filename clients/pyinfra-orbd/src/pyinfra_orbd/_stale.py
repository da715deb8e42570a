"""Facts that are out of date because ``orbctl`` cannot be asked: told once, and never passed off as fresh.

While ``orbctl`` itself is sick, the daemon answers reads with what it last saw and says so. That is good enough to make an
inventory of and to foretell changes, with a line that tells people. Whoever asks for facts of this moment gets an error instead:
on such facts a machine is taken for missing, and an operation decides to do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pyinfra import logger
from typing_extensions import override

from orbd import Client, errors

from ._waiting import WaitNotice, is_in_group, is_this_process

if TYPE_CHECKING:
    from orbd import models

    Seen = TypeVar("Seen", bound=models.Observed)

MAKES_JOBS = ("machine.", "config.", "orbstack.")
"""Namespaces whose calls may wait in the queue."""

SICK = 4005
"""Code of ``orbctl_unhealthy``."""


class TellingClient(Client):
    """A client that looks at how old its facts are, where PyInfra is the one who asks."""

    _tell: Callable[[str], None] | None = None

    def __init__(self, path: str | None = None, *, name: str = "pyinfra") -> None:
        """Has told nothing yet."""
        super().__init__(path, name=name)
        self._told: set[str] = set()

    def telling(self, tell: Callable[[str], None]) -> TellingClient:
        """Returns a client over the same connections that reports through ``tell`` what its calls wait for."""
        other = copy(self)
        vars(other)["_tell"] = tell
        return other

    @override
    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Calls a method by its name on the wire and returns the result as it came."""
        if self._tell is None or not method.startswith(MAKES_JOBS):
            return super().call(method, params)
        given = params or {}
        look = partial(WaitNotice(self._tell).look, self, given.get("machine"), is_this_process)
        with self._pool.borrow() as connection:
            return connection.call(method, given, look)

    @override
    def _ctl(self, words: Sequence[str]) -> Any:
        if self._tell is None:
            return super()._ctl(words)
        from orbd import _ctl

        notice = WaitNotice(self._tell)
        return _ctl.carry_out(self.path, words, lambda group: notice.look(self, None, is_in_group(group)))

    @override
    def machine_list(self, *, max_age_ms: int | None = None) -> models.MachineList:
        """Lists every machine."""
        return self._looked_at(super().machine_list(max_age_ms=max_age_ms), max_age_ms)

    @override
    def machine_info(self, machine: str, *, max_age_ms: int | None = None) -> models.MachineInfo:
        """Tells one machine."""
        return self._looked_at(super().machine_info(machine, max_age_ms=max_age_ms), max_age_ms)

    @override
    def machine_default(self, *, max_age_ms: int | None = None) -> models.DefaultMachine:
        """Tells the default machine."""
        return self._looked_at(super().machine_default(max_age_ms=max_age_ms), max_age_ms)

    @override
    def orbstack_status(self, *, max_age_ms: int | None = None) -> models.Status:
        """Tells whether OrbStack runs."""
        return self._looked_at(super().orbstack_status(max_age_ms=max_age_ms), max_age_ms)

    @override
    def config_show(self, *, max_age_ms: int | None = None) -> models.Config:
        """Tells OrbStack's configuration."""
        return self._looked_at(super().config_show(max_age_ms=max_age_ms), max_age_ms)

    def _looked_at(self, seen: Seen, max_age_ms: int | None) -> Seen:
        if not seen.stale:
            return seen
        reason = seen.stale_reason or "orbctl cannot be asked"
        if max_age_ms == 0:
            raise errors.OrbctlUnhealthy(f"{reason}; see `orbd-ctl doctor`", code=SICK, kind="orbctl_unhealthy")
        if reason not in self._told:
            # Many hosts ask the same, and PyInfra makes its inventory twice.
            self._told.add(reason)
            logger.warning(f"What orbd tells may be out of date, it was seen {seen.age_ms / 1000:.0f} s ago: {reason}")
        return seen
