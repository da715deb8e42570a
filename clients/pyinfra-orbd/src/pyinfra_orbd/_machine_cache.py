"""Shares one ``machine.list`` answer between hosts that request it at the same time.

PyInfra connects to all hosts concurrently, and each needs its machine. The daemon answers from its cache, but a hundred hosts
would decode a hundred lists of a hundred machines. So a request that arrives while a list is in flight waits for that list.

An answer is kept only until its waiting callers have it. A caller that needs fresh data never gets a list whose request was sent
before its own.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gevent.event import Event

from orbd._transport import hub, sleep

if TYPE_CHECKING:
    from orbd import Client
    from orbd.models import Machine

Machines = dict[str, "Machine"]
"""Machines by name and by id. If a name equals another machine's id, the name wins."""


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
