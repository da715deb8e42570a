"""The published protocol, ``proto/openrpc.json``, against what the client offers: nothing of it is missing here."""

from __future__ import annotations

import inspect
import json
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbd import Client, errors, models

DOCUMENT = Path(os.environ.get("ORBD_OPENRPC") or Path(__file__).resolve().parents[3] / "proto" / "openrpc.json")

if not DOCUMENT.is_file():
    pytest.skip(f"{DOCUMENT} is not there", allow_module_level=True)

PROTOCOL = json.loads(DOCUMENT.read_text())
METHODS: dict[str, dict[str, Any]] = {method["name"]: method for method in PROTOCOL["methods"]}

# Said by every connection before its first call.
UNTYPED = {"daemon.hello"}

# What a job may be given on top of its own parameters; methods that make jobs take them as `**job`.
OF_JOBS = {"detach", "queue_timeout_ms", "run_timeout_ms"}

# What is said in Python in another way: bytes as what they are, a stream by giving an iterator.
SAID_AS = {
    "stdin_text": "stdin",
    "stdin_base64": "stdin",
    "stdin_stream": "stdin",
    "text": "data",
    "base64": "data",
}


def method_of(name: str) -> Any:
    return getattr(Client, name.replace(".", "_"), None)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - UNTYPED))
def test_every_method_is_typed(name: str) -> None:
    """It is there under its own name and takes every parameter of the protocol's by its name."""
    method = method_of(name)
    assert method is not None, f"Client has no {name.replace('.', '_')}"
    assert method.__doc__
    parameters = inspect.signature(method).parameters
    takes_job = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    wanted = {SAID_AS.get(param["name"], param["name"]) for param in METHODS[name]["params"]}
    missing = wanted - parameters.keys() - (OF_JOBS if takes_job else set())
    # A command always streams or waits here: whoever wants it detached asks by name.
    assert not missing
    required = {param["name"] for param in METHODS[name]["params"] if param.get("required")}
    for one in required:
        assert parameters[SAID_AS.get(one, one)].default is inspect.Parameter.empty, f"{one} must be given"


def test_no_method_is_of_yesterday() -> None:
    """What the client asks for by a name of the protocol's is in it."""
    namespaces = "|".join({name.split(".")[0] for name in METHODS})
    asked = set(re.findall(rf'"((?:{namespaces})\.\w+)"', inspect.getsource(Client)))
    assert asked == METHODS.keys() - UNTYPED


def schema(reference: dict[str, Any]) -> dict[str, Any]:
    """Follows references."""
    while "$ref" in reference:
        found: dict[str, Any] = PROTOCOL["components"]["schemas"][reference["$ref"].rsplit("/", 1)[1]]
        reference = found
    return reference


def properties(shape: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Returns an object's fields and which of them must be there."""
    fields, required = dict(shape.get("properties", {})), set(shape.get("required", ()))
    for part in shape.get("allOf", ()):
        more, needed = properties(schema(part))
        fields.update(more)
        required |= needed
    return fields, required


def answers() -> list[tuple[str, type[models.Model], dict[str, Any]]]:
    """Finds the record that each method reads its answer with."""
    found = []
    for name, method in METHODS.items():
        if name in UNTYPED or "x-notification" in method:
            continue
        record = re.search(r"models\.(\w+)\.from_wire", inspect.getsource(method_of(name)))
        if record is None:
            # Every change answers alike.
            record = re.search(r"(?<=-> models\.)(\w+)", inspect.getsource(method_of(name)))
        if record is not None:
            found.append((name, getattr(models, record[1]), method["result"]["schema"]))
    return found


@pytest.mark.parametrize(("name", "record", "wire"), answers(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_answer_is_read_whole(name: str, record: type[models.Model], wire: dict[str, Any]) -> None:
    """The record has a field for each of the answer's, and demands none that the protocol does not promise."""
    compare(record, schema(wire), name, set())


def compare(record: type[models.Model], wire: dict[str, Any], path: str, seen: set[str]) -> None:
    if record.__name__ in seen:
        return
    fields, required = properties(wire)
    named = dict(fields)
    shape = models._shape(record)
    assert shape.converters.keys() == named.keys(), f"{path}: {record.__name__}"
    promised = set(required)
    assert shape.required <= promised, f"{path}: {record.__name__}"
    for name, hint in typing.get_type_hints(record).items():
        for inner in models_in(hint):
            compare(inner, object_in(named[name]), f"{path}.{name}", seen | {record.__name__})


def models_in(hint: Any) -> Iterator[type[models.Model]]:
    """Finds records in a type, also those in a tuple or beside None."""
    if isinstance(hint, type) and issubclass(hint, models.Model):
        yield hint
    for argument in typing.get_args(hint):
        yield from models_in(argument)


def object_in(reference: dict[str, Any]) -> dict[str, Any]:
    """Finds the object's schema, also where it may be null or is one of a list."""
    for one in reference.get("anyOf", ()):
        if one.get("type") != "null":
            return object_in(one)
    wire = schema(reference)
    return object_in(wire["items"]) if "items" in wire else wire


EVENTS: dict[str, Any] = {"JobEvent": models._EVENTS, "Event": models._HAPPENINGS}


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_is_read(name: str) -> None:
    """Each type of event has a record with the fields that the protocol promises for it."""
    wire = PROTOCOL["components"]["schemas"][name]
    told = {event["properties"]["type"]["const"]: event for event in wire["oneOf"]}
    assert EVENTS[name].keys() == told.keys()
    common, needed = properties({key: value for key, value in wire.items() if key != "oneOf"})
    for word, record in EVENTS[name].items():
        fields, required = properties(told[word])
        del fields["type"]
        compare(record, {"properties": {**common, **fields}, "required": required | needed}, word, set())


def test_every_kind_of_error_has_its_class() -> None:
    """And no two kinds that callers tell apart share one."""
    kinds = set(PROTOCOL["components"]["errors"])
    assert kinds - errors._BY_KIND.keys() == set()
    assert errors._BY_KIND.keys() - kinds == set()
    shared = [cls for cls in errors._BY_KIND.values() if list(errors._BY_KIND.values()).count(cls) > 1]
    assert set(shared) == {errors.InvalidParams}
