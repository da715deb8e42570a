"""Client of the connector: warns about stale data, rejects it if fresh data is required, and reports waiting calls.

While ``orbctl`` is unhealthy, the daemon answers reads with the last known state, marked stale. That is good enough for an
inventory and for predicting changes, with one warning. A caller that requires fresh data (``max_age_ms=0``) gets an error
instead, because it would treat a machine as missing, or an operation as already done, based on that data.
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

    ObservedT = TypeVar("ObservedT", bound=models.Observed)

JOB_METHODS = ("machine.", "config.", "orbstack.")
"""Namespaces of methods that create jobs, which may wait in the queue."""

ORBCTL_UNHEALTHY = 4005
"""JSON-RPC error code of ``orbctl_unhealthy``."""


class StalenessWarningClient(Client):
    """Client that checks answers for stale data, and can report what its calls wait for."""

    _notify: Callable[[str], None] | None = None

    def __init__(self, path: str | None = None, *, name: str = "pyinfra") -> None:
        """Does not connect yet."""
        super().__init__(path, name=name)
        self._warned: set[str] = set()

    def with_notices(self, notify: Callable[[str], None]) -> StalenessWarningClient:
        """Returns a client with the same connections that reports to ``notify`` what its calls wait for."""
        other = copy(self)
        vars(other)["_notify"] = notify
        return other

    @override
    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Calls a method by its name on the wire and returns the decoded result."""
        if self._notify is None or not method.startswith(JOB_METHODS):
            return super().call(method, params)
        given = params or {}
        poll = partial(WaitNotice(self._notify).poll, self, given.get("machine"), is_this_process)
        with self._pool.borrow() as connection:
            return connection.call(method, given, poll)

    @override
    def _ctl(self, args: Sequence[str]) -> Any:
        if self._notify is None:
            return super()._ctl(args)
        from orbd import _ctl

        notice = WaitNotice(self._notify)
        return _ctl.run(self.path, args, lambda group: notice.poll(self, None, is_in_group(group)))

    @override
    def machine_list(self, *, max_age_ms: int | None = None) -> models.MachineList:
        """Returns all machines."""
        return self._warn_if_stale(super().machine_list(max_age_ms=max_age_ms), max_age_ms)

    @override
    def machine_info(self, machine: str, *, max_age_ms: int | None = None) -> models.MachineInfo:
        """Returns one machine."""
        return self._warn_if_stale(super().machine_info(machine, max_age_ms=max_age_ms), max_age_ms)

    @override
    def machine_default(self, *, max_age_ms: int | None = None) -> models.DefaultMachine:
        """Returns the default machine."""
        return self._warn_if_stale(super().machine_default(max_age_ms=max_age_ms), max_age_ms)

    @override
    def orbstack_status(self, *, max_age_ms: int | None = None) -> models.Status:
        """Returns the status of OrbStack."""
        return self._warn_if_stale(super().orbstack_status(max_age_ms=max_age_ms), max_age_ms)

    @override
    def config_show(self, *, max_age_ms: int | None = None) -> models.Config:
        """Returns OrbStack's configuration."""
        return self._warn_if_stale(super().config_show(max_age_ms=max_age_ms), max_age_ms)

    def _warn_if_stale(self, observed: ObservedT, max_age_ms: int | None) -> ObservedT:
        if not observed.stale:
            return observed
        reason = observed.stale_reason or "orbctl is unhealthy"
        if max_age_ms == 0:
            raise errors.OrbctlUnhealthy(f"{reason}; see `orbd-ctl doctor`", code=ORBCTL_UNHEALTHY, kind="orbctl_unhealthy")
        if reason not in self._warned:
            # Warn once: many hosts make the same call, and PyInfra builds its inventory twice.
            self._warned.add(reason)
            logger.warning(f"orbd's data may be out of date (last updated {observed.age_ms / 1000:.0f} s ago): {reason}")
        return observed
