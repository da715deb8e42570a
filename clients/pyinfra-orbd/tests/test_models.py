"""Records from the wire."""

from __future__ import annotations

from typing import Any

import pytest

from orbd import models
from orbd.errors import ProtocolViolation


def test_unknown_fields_are_ignored_at_any_depth() -> None:
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
def test_missing_mandatory_field_is_a_protocol_violation(wire: Any) -> None:
    with pytest.raises(ProtocolViolation, match="Hello"):
        models.Hello.from_wire(wire)


def test_job_class_and_gap_fields_are_read() -> None:
    job = models.Job.from_wire({"job_id": 1, "operation": "run", "job_class": "exec", "state": "running"})
    assert job.job_class == "exec"
    gap = models.event_from_wire({"type": "gap", "offset": 3, "next_offset": 5})
    assert gap == models.Gap(offset=3, next_offset=5)


def test_unhealthy_orbctl_is_visible_in_answers_and_queue_status() -> None:
    seen = {"generation": 1, "observed_at": "2026-11-20T00:00:00.000Z", "source": "list", "age_ms": 90_000}
    listed = models.MachineList.from_wire(
        {**seen, "machines": [], "stale": True, "stale_reason": "orbctl is unhealthy: it hangs"}
    )
    assert (listed.stale, listed.stale_reason) == (True, "orbctl is unhealthy: it hangs")
    queue = {"waiting": 1, "running": 0, "queue_max": 8, "paused": False}
    outage: dict[str, Any] = {"since": "2026-11-20T00:00:00.000Z", "reason": "it hangs", "retry_after_ms": 1000}
    assert models.QueueStatus.from_wire(queue).unhealthy is None
    assert models.QueueStatus.from_wire({**queue, "unhealthy": outage}).unhealthy == models.Outage(**outage)
    assert models.WaitingFor.from_wire({"kind": "unhealthy", "reason": "it hangs"}).reason == "it hangs"


def test_chunk_data_is_decoded_from_text_or_base64() -> None:
    assert models.Chunk(stream="stdout", offset=0, text="é").data == b"\xc3\xa9"
    assert models.Chunk(stream="stdout", offset=0, base64="/w==").data == b"\xff"


def test_unknown_event_type_is_none() -> None:
    assert models.event_from_wire({"type": "levitated"}) is None


def test_lists_are_read_as_tuples() -> None:
    listed = models.JobList.from_wire(
        {"jobs": [{"job_id": 1, "operation": "run", "job_class": "exec", "state": "ended"}], "more": False}
    )
    assert isinstance(listed.jobs, tuple)
    assert listed.jobs[0].operation == "run"


def test_records_behave_like_frozen_dataclasses() -> None:
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
