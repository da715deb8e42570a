"""What many hosts ask at the same moment, asked once.

PyInfra connects to all hosts side by side, and each wants to know its machine. The daemon answers from its cache, but a hundred
hosts would decode a hundred lists of a hundred machines. So those who ask while a list is under way wait for that one.

Keeps nothing: a list is forgotten when those who waited for it have it. Whoever wants fresh facts never gets a list that was
begun before they asked.
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
"""Machines by name and by id; names go first."""


class Flight:
    """A list under way."""

    __slots__ = ("begun", "is_fresh", "over", "result")

    def __init__(self, *, is_fresh: bool) -> None:
        """Has not begun yet."""
        self.is_fresh = is_fresh
        self.begun = -1
        self.over = Event()
        # Absent when whoever asked was interrupted: that is nobody else's failure.
        self.result: Machines | Exception | None = None

    def serves(self, asked: int, *, is_fresh: bool) -> bool:
        """Says whether what it brought is good enough for one who asked at that moment."""
        return not is_fresh or (self.is_fresh and self.begun > asked)


class Fleet:
    """Every machine, as one client sees them."""

    def __init__(self, client: Client) -> None:
        """Asks nothing yet."""
        self._client = client
        self._moments = count()
        # For each hub the list that its greenlets wait for. Threads without a hub ask for themselves.
        self._flights: WeakKeyDictionary[Any, Flight] = WeakKeyDictionary()

    def machines(self, *, is_fresh: bool = False) -> Machines:
        """Tells every machine: from the daemon's cache, or as they are now."""
        here = hub()
        if here is None:
            return self._ask(is_fresh=is_fresh)
        asked = next(self._moments)
        while (flight := self._flights.get(here)) is not None:
            flight.over.wait()
            if flight.serves(asked, is_fresh=is_fresh):
                if isinstance(flight.result, Exception):
                    raise flight.result
                if flight.result is not None:
                    return flight.result
        flight = self._flights[here] = Flight(is_fresh=is_fresh)
        try:
            # Those who are about to ask come first, so that they find this list under way.
            sleep(0)
            flight.begun = next(self._moments)
            flight.result = self._ask(is_fresh=is_fresh)
            return flight.result
        except Exception as error:
            flight.result = error
            raise
        finally:
            del self._flights[here]
            flight.over.set()

    def _ask(self, *, is_fresh: bool) -> Machines:
        machines = self._client.machine_list(max_age_ms=0 if is_fresh else None).machines
        found = {machine.id: machine for machine in machines}
        found.update((machine.name, machine) for machine in machines)
        return found
