"""What happens, as the daemon tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fake_daemon import Failure, FakeDaemon, Peer, machine
from orbd import Client, errors, models

SEEN = {"instance": "fake", "noticed_at": "2026-11-20T00:00:00.000Z"}
SICK: Any = {"since": "2026-11-20T00:00:00.000Z", "reason": "orbctl hangs", "retry_after_ms": 5000}


def story(peer: Peer, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "state", "sequence": 4, **SEEN, "jobs": [], "more_jobs": False, "sick": SICK}
    yield {"type": "of_tomorrow", "sequence": 5, **SEEN}
    yield {"type": "machine_changed", "sequence": 6, **SEEN, "machine": machine("web"), "generation": 9, "renamed_from": "old"}
    job = {"job_id": 3, "operation": "start", "client": "editor", "machine": "web"}
    yield {"type": "job_ended", "sequence": 7, **SEEN, "job": job, "outcome": {"kind": "failed"}, "reason": "no room"}


def test_events_are_yielded_as_they_come(daemon: FakeDaemon, client: Client) -> None:
    """Each as its class; one that is not known yet is passed over."""
    daemon.handlers["events.subscribe"] = story
    events = client.events_subscribe()
    state = next(events)
    assert isinstance(state, models.State)
    assert (state.sequence, state.machine_list, state.orbstack) == (4, None, None)
    assert state.unhealthy == models.Outage(**SICK)
    changed = next(events)
    assert isinstance(changed, models.MachineChanged)
    assert (changed.machine.name, changed.renamed_from) == ("web", "old")
    ended = next(events)
    assert isinstance(ended, models.JobEnded)
    assert (ended.job.machine, ended.outcome.kind, ended.reason) == ("web", "failed", "no room")
    events.close()


def test_what_is_asked(daemon: FakeDaemon, client: Client) -> None:
    """The place to go on from, also the very first, and the kinds that are wanted; nothing that was not said."""
    daemon.handlers["events.subscribe"] = story
    for _ in (next(client.events_subscribe()), next(client.events_subscribe(kinds=["job_ended"], since=0, instance="fake"))):
        pass
    asked = [params for method, params in daemon.requests if method == "events.subscribe"]
    assert asked == [{}, {"kinds": ["job_ended"], "since": 0, "instance": "fake"}]


def test_leaving_ends_the_subscription(daemon: FakeDaemon, client: Client) -> None:
    """Its connection is closed; calls in between had another one."""
    daemon.handlers["events.subscribe"] = story
    daemon.handlers["machine.ssh"] = lambda peer, params: {"text": "ssh"}
    events = client.events_subscribe()
    for event in events:
        assert client.machine_ssh() == "ssh"
        if isinstance(event, models.MachineChanged):
            break
    events.close()
    assert daemon.accepted == 2
    assert len(client._pool._idle_here()) == 1


def test_a_daemon_that_goes_away(daemon: FakeDaemon, client: Client) -> None:
    """Whoever listens is told by an exception, and knows from the last event where to go on."""
    daemon.handlers["events.subscribe"] = story
    events = client.events_subscribe()
    last = [next(events) for _ in range(3)][-1]
    daemon.hang_up()
    with pytest.raises(errors.DaemonGone):
        next(events)
    assert (last.sequence, last.instance) == (7, "fake")


def test_a_refusal(daemon: FakeDaemon, client: Client) -> None:
    """It is raised at the first event, and the connection is kept."""

    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("draining", "the daemon stops", 1002)

    daemon.handlers["events.subscribe"] = refuse
    with pytest.raises(errors.Draining):
        next(client.events_subscribe())
    assert len(client._pool._idle_here()) == 1
