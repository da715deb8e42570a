"""What is read from the wire."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pyinfra_orbd import models
from pyinfra_orbd.errors import ProtocolViolation


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
    job = models.Job.from_wire({"id": 1, "operation": "run", "class": "exec", "state": "running"})
    assert job.job_class == "exec"
    gap = models.event_from_wire({"type": "gap", "from": 3, "to": 5})
    assert gap == models.Gap(start=3, end=5)


def test_a_chunk_is_bytes() -> None:
    """Whichever form it came in."""
    assert models.Chunk(stream="stdout", offset=0, text="é").data == b"\xc3\xa9"
    assert models.Chunk(stream="stdout", offset=0, base64="/w==").data == b"\xff"


def test_events_of_tomorrow_are_none() -> None:
    """A follower passes over them."""
    assert models.event_from_wire({"type": "levitated"}) is None


def test_nested_lists_are_tuples() -> None:
    """Nothing that was read can be changed."""
    listed = models.JobList.from_wire({"jobs": [{"id": 1, "operation": "run", "class": "exec", "state": "ended"}], "more": False})
    assert isinstance(listed.jobs, tuple)
    assert listed.jobs[0].operation == "run"


def test_they_behave_like_frozen_dataclasses() -> None:
    """Made by name, compared by value, shown with all fields, never changed."""
    chunk = models.Chunk(stream="stdout", offset=3)
    assert chunk == models.Chunk(stream="stdout", offset=3, at_us=0)
    assert hash(chunk) == hash(models.Chunk(stream="stdout", offset=3))
    assert chunk != models.Gap(start=0, end=3)
    assert repr(chunk) == "Chunk(stream='stdout', offset=3, at_us=0, text=None, base64=None)"
    with pytest.raises(AttributeError):
        chunk.offset = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del chunk.offset
    with pytest.raises(TypeError, match="colour, offset"):
        models.Chunk(stream="stdout", colour="green")  # type: ignore[call-arg]


def test_importing_the_client_is_light() -> None:
    """It loads neither PyInfra nor gevent, and none of what makes an import slow in the standard library."""
    heavy = "{'pyinfra', 'gevent', 'dataclasses', 'typing', 'asyncio', 'ssl', 'http', 'logging', 'subprocess', 'tempfile'}"
    code = f"import sys, pyinfra_orbd; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]) == b"[]\n"
