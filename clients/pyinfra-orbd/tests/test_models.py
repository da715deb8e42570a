"""What is read from the wire."""

from __future__ import annotations

from typing import Any

import pytest

from orbd import models
from orbd.errors import ProtocolViolation


def test_fields_of_tomorrow_are_ignored() -> None:
    """They may be added at any time, at any depth."""
    wire = {
        "id": "01W",
        "name": "web",
        "state": "running",
        "image": {"distro": "ubuntu", "version": "noble", "arch": "arm64", "colour": "green"},
        "config": {"turbo": True},
        "builtin": False,
        "mood": "fine",
    }
    machine = models.Machine.from_wire(wire)
    assert machine.image == models.Image(distro="ubuntu", version="noble", arch="arm64")
    assert machine.config == models.MachineConfig()


@pytest.mark.parametrize("wire", [{}, {"protocol": 1}, [], None, "x"])
def test_what_was_promised_must_be_there(wire: Any) -> None:
    """A field that is missing is named."""
    with pytest.raises(ProtocolViolation, match="Hello"):
        models.Hello.from_wire(wire)


def test_words_of_pythons_have_other_names() -> None:
    """``class`` and ``from`` cannot be attributes."""
    job = models.Job.from_wire({"job_id": 1, "operation": "run", "job_class": "exec", "state": "running"})
    assert job.job_class == "exec"
    gap = models.event_from_wire({"type": "gap", "offset": 3, "next_offset": 5})
    assert gap == models.Gap(offset=3, next_offset=5)


def test_a_sick_orbctl_is_told_in_the_answer_and_in_the_queue() -> None:
    """Facts that are out of date say so and why; what waits says for what."""
    seen = {"generation": 1, "observed_at": "2026-11-20T00:00:00.000Z", "source": "list", "age_ms": 90_000}
    listed = models.MachineList.from_wire({**seen, "machines": [], "stale": True, "stale_reason": "orbctl is sick: it hangs"})
    assert (listed.stale, listed.stale_reason) == (True, "orbctl is sick: it hangs")
    queue = {"waiting": 1, "running": 0, "queue_max": 8, "paused": False}
    sick: dict[str, Any] = {"since": "2026-11-20T00:00:00.000Z", "reason": "it hangs", "retry_after_ms": 1000}
    assert models.QueueStatus.from_wire(queue).unhealthy is None
    assert models.QueueStatus.from_wire({**queue, "unhealthy": sick}).unhealthy == models.Outage(**sick)
    assert models.WaitingFor.from_wire({"kind": "sick", "reason": "it hangs"}).reason == "it hangs"


def test_a_chunk_is_bytes() -> None:
    """Whichever form it came in."""
    assert models.Chunk(stream="stdout", offset=0, text="é").data == b"\xc3\xa9"
    assert models.Chunk(stream="stdout", offset=0, base64="/w==").data == b"\xff"


def test_events_of_tomorrow_are_none() -> None:
    """A follower passes over them."""
    assert models.event_from_wire({"type": "levitated"}) is None


def test_nested_lists_are_tuples() -> None:
    """Nothing that was read can be changed."""
    listed = models.JobList.from_wire(
        {"jobs": [{"job_id": 1, "operation": "run", "job_class": "exec", "state": "ended"}], "more": False}
    )
    assert isinstance(listed.jobs, tuple)
    assert listed.jobs[0].operation == "run"


def test_they_behave_like_frozen_dataclasses() -> None:
    """Made by name, compared by value, shown with all fields, never changed."""
    chunk = models.Chunk(stream="stdout", offset=3)
    assert chunk == models.Chunk(stream="stdout", offset=3, at_us=0)
    assert hash(chunk) == hash(models.Chunk(stream="stdout", offset=3))
    assert chunk != models.Gap(offset=0, next_offset=3)
    assert repr(chunk) == "Chunk(stream='stdout', offset=3, at_us=0, text=None, base64=None)"
    with pytest.raises(AttributeError):
        chunk.offset = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del chunk.offset
    with pytest.raises(TypeError, match="colour, offset"):
        models.Chunk(stream="stdout", colour="green")  # type: ignore[call-arg]
