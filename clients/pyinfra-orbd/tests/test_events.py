"""Events of ``events.subscribe``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fake_daemon import Failure, FakeDaemon, Peer, machine
from orbd import Client, errors, models

SEEN = {"instance": "fake", "noticed_at": "2026-11-20T00:00:00.000Z"}
OUTAGE: Any = {"since": "2026-11-20T00:00:00.000Z", "reason": "orbctl hangs", "retry_after_ms": 5000}


def example_events(peer: Peer, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "state", "sequence": 4, **SEEN, "jobs": [], "more_jobs": False, "unhealthy": OUTAGE}
    yield {"type": "a_future_event", "sequence": 5, **SEEN}
    yield {"type": "machine_changed", "sequence": 6, **SEEN, "machine": machine("web"), "generation": 9, "renamed_from": "old"}
    job = {"job_id": 3, "operation": "start", "client": "editor", "machine": "web"}
    yield {"type": "job_ended", "sequence": 7, **SEEN, "job": job, "outcome": {"kind": "failed"}, "reason": "no room"}


def test_events_are_yielded_as_their_classes(daemon: FakeDaemon, client: Client) -> None:
    """Unknown types are skipped."""
    daemon.handlers["events.subscribe"] = example_events
    events = client.events_subscribe()
    state = next(events)
    assert isinstance(state, models.State)
    assert (state.sequence, state.machine_list, state.orbstack) == (4, None, None)
    assert state.unhealthy == models.Outage(**OUTAGE)
    changed = next(events)
    assert isinstance(changed, models.MachineChanged)
    assert (changed.machine.name, changed.renamed_from) == ("web", "old")
    ended = next(events)
    assert isinstance(ended, models.JobEnded)
    assert (ended.job.machine, ended.outcome.kind, ended.reason) == ("web", "failed", "no room")
    events.close()


def test_subscribe_sends_only_the_given_parameters(daemon: FakeDaemon, client: Client) -> None:
    """Also ``since=0``."""
    daemon.handlers["events.subscribe"] = example_events
    for _ in (next(client.events_subscribe()), next(client.events_subscribe(kinds=["job_ended"], since=0, instance="fake"))):
        pass
    asked = [params for method, params in daemon.requests if method == "events.subscribe"]
    assert asked == [{}, {"kinds": ["job_ended"], "since": 0, "instance": "fake"}]


def test_closing_the_iterator_closes_its_connection(daemon: FakeDaemon, client: Client) -> None:
    """Calls made meanwhile use another connection."""
    daemon.handlers["events.subscribe"] = example_events
    daemon.handlers["machine.ssh"] = lambda peer, params: {"text": "ssh"}
    events = client.events_subscribe()
    for event in events:
        assert client.machine_ssh() == "ssh"
        if isinstance(event, models.MachineChanged):
            break
    events.close()
    assert daemon.accepted == 2
    assert len(client._pool._idle_here()) == 1


def test_daemon_that_disconnects_raises_and_the_last_event_has_the_position(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers["events.subscribe"] = example_events
    events = client.events_subscribe()
    last = [next(events) for _ in range(3)][-1]
    daemon.hang_up()
    with pytest.raises(errors.DaemonGone):
        next(events)
    assert (last.sequence, last.instance) == (7, "fake")


def test_refused_subscription_raises_at_the_first_event(daemon: FakeDaemon, client: Client) -> None:
    """The connection is kept."""

    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("draining", "the daemon stops", 1002)

    daemon.handlers["events.subscribe"] = refuse
    with pytest.raises(errors.Draining):
        next(client.events_subscribe())
    assert len(client._pool._idle_here()) == 1
