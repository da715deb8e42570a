"""The client that all hosts of a process share: stale data, notices about waiting calls, and one machine list for many hosts.

While ``orbctl`` is unhealthy, the daemon answers reads with the last known state, marked stale. That is good enough for an
inventory and for predicting changes, with one warning. A caller that requires fresh data (``max_age_ms=0``) gets an error
instead, because it would treat a machine as missing, or an operation as already done, based on that data.

A call that is only answered at its end has no job id until then. So a notice finds the job by its client's process and its
machine, on a separate connection, after the call has waited for some time.

PyInfra connects to all hosts concurrently, and each needs its machine. The daemon answers from its cache, but a hundred hosts
would decode a hundred lists of a hundred machines. So a request that arrives while a list is in flight waits for that list.

An answer is kept only until its waiting callers have it. A caller that needs fresh data never gets a list whose request was sent
before its own.

Optional parameters keep the protocol version, and a daemon that is older than one refuses the request. Nothing was begun then,
so the request is sent again without the parameter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from gevent.event import Event
from pyinfra import logger
from typing_extensions import override

from orbd import Client, OrbdError, errors
from orbd._gevent import hub, sleep
from orbd._transport import socket_path

if TYPE_CHECKING:
    from orbd import models
    from orbd.models import Machine

    ObservedT = TypeVar("ObservedT", bound=models.Observed)

JOB_METHODS = ("machine.", "config.", "orbstack.")
"""Namespaces of methods that create jobs, which may wait in the queue."""

ORBCTL_UNHEALTHY = 4005
"""JSON-RPC error code of ``orbctl_unhealthy``."""

OPTIONAL = ("channel",)
"""Parameters that the connector sends, but that a daemon may be too old to know."""

SILENT = ("run", "push", "pull", "export", "import")
"""Operations without a notice while they run, because a long run time is normal for them."""

Machines = dict[str, "Machine"]
"""Machines by name and by id. If a name equals another machine's id, the name wins."""


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


class StalenessWarningClient(Client):
    """Client that checks answers for stale data, and can report what its calls wait for."""

    _notify: Callable[[str], None] | None = None

    def __init__(self, path: str | None = None, *, name: str = "pyinfra") -> None:
        """Does not connect yet."""
        super().__init__(path, name=name)
        self._warned: set[str] = set()
        # Those of `OPTIONAL` that the daemon has refused.
        self._unknown: set[str] = set()

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
        try:
            return self._call_with_notices(self._notify, method, self._known(given))
        except errors.InvalidParams as error:
            if not self._is_too_old(error):
                raise
        return self._call_with_notices(self._notify, method, self._known(given))

    def _call_with_notices(self, notify: Callable[[str], None], method: str, params: Mapping[str, Any]) -> Any:
        poll = partial(WaitNotice(notify).poll, self, params.get("machine"), is_this_process)
        with self._pool.borrow() as connection:
            return connection.call(method, params, poll)

    @override
    def _follow(
        self, method: str, params: Mapping[str, Any], pieces: Iterator[bytes] | None = None
    ) -> Generator[models.JobEvent, None, models.Ended]:
        try:
            return (yield from super()._follow(method, self._known(params), pieces))
        except errors.InvalidParams as error:
            if not self._is_too_old(error):
                raise
        # No piece was sent yet.
        return (yield from super()._follow(method, self._known(params), pieces))

    def _known(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the parameters without those that the daemon does not know."""
        if self._unknown.isdisjoint(params):
            return params
        return {name: value for name, value in params.items() if name not in self._unknown}

    def _is_too_old(self, error: errors.InvalidParams) -> bool:
        """Returns whether the daemon refused a parameter that it is too old to know, and remembers that."""
        field = error.data.get("field")
        if field not in OPTIONAL:
            return False
        self._unknown.add(field)
        return True

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


class InFlightList:
    """One ``machine.list`` request in flight, and its result."""

    __slots__ = ("finished", "is_fresh", "result", "started")

    def __init__(self, *, is_fresh: bool) -> None:
        """Does not send the request."""
        self.is_fresh = is_fresh
        self.started = -1
        self.finished = Event()
        # None if the greenlet that sent the request was interrupted; the waiting ones then send their own.
        self.result: Machines | Exception | None = None

    def serves(self, asked: int, *, is_fresh: bool) -> bool:
        """Returns whether the result is recent enough for a caller that asked at the logical time ``asked``."""
        return not is_fresh or (self.is_fresh and self.started > asked)


class MachineCache:
    """The machine list of one client, with at most one request in flight per gevent hub."""

    def __init__(self, client: Client) -> None:
        """Sends no request yet."""
        self._client = client
        self._clock = count()
        # For each hub, the request that its greenlets wait for. Threads without a hub send their own.
        self._in_flight: WeakKeyDictionary[Any, InFlightList] = WeakKeyDictionary()

    def machines(self, *, is_fresh: bool = False) -> Machines:
        """Returns all machines, from the daemon's cache, or their current state if ``is_fresh``."""
        this_hub = hub()
        if this_hub is None:
            return self._fetch(is_fresh=is_fresh)
        asked = next(self._clock)
        while (request := self._in_flight.get(this_hub)) is not None:
            request.finished.wait()
            if request.serves(asked, is_fresh=is_fresh):
                if isinstance(request.result, Exception):
                    raise request.result
                if request.result is not None:
                    return request.result
        request = self._in_flight[this_hub] = InFlightList(is_fresh=is_fresh)
        try:
            # Lets other greenlets that are about to ask run first, so that they wait for this request.
            sleep(0)
            request.started = next(self._clock)
            request.result = self._fetch(is_fresh=is_fresh)
            return request.result
        except Exception as error:
            request.result = error
            raise
        finally:
            del self._in_flight[this_hub]
            request.finished.set()

    def _fetch(self, *, is_fresh: bool) -> Machines:
        machines = self._client.machine_list(max_age_ms=0 if is_fresh else None).machines
        found = {machine.id: machine for machine in machines}
        found.update((machine.name, machine) for machine in machines)
        return found


def find_machine(machines: Sequence[Machine], name: str) -> Machine | None:
    """Returns the machine with this name, or else with this id; None if there is none."""
    by_name = (machine for machine in machines if machine.name == name)
    by_id = (machine for machine in machines if machine.id == name)
    return next(by_name, None) or next(by_id, None)


_clients: dict[str, StalenessWarningClient] = {}
_machine_caches: dict[str, MachineCache] = {}


def client() -> StalenessWarningClient:
    """Returns the client that all hosts of this process share, for the socket that the environment currently names."""
    path = socket_path()
    if path not in _clients:
        _clients[path] = StalenessWarningClient(path)
        _machine_caches[path] = MachineCache(_clients[path])
    return _clients[path]


def machine_cache() -> MachineCache:
    """Returns the machine list of :func:`client`."""
    return _machine_caches[client().path]
