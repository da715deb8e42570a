"""Checks that the client covers the published protocol, ``proto/openrpc.json``."""

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

from orbd import Client, _model, errors, models

DOCUMENT = Path(os.environ.get("ORBD_OPENRPC") or Path(__file__).resolve().parents[3] / "proto" / "openrpc.json")

if not DOCUMENT.is_file():
    pytest.skip(f"{DOCUMENT} does not exist", allow_module_level=True)

PROTOCOL = json.loads(DOCUMENT.read_text())
METHODS: dict[str, dict[str, Any]] = {method["name"]: method for method in PROTOCOL["methods"]}

# Sent by every connection before its first call.
UNTYPED = {"daemon.hello"}

# Parameters of all jobs; methods that create jobs take them as `**job`.
OF_JOBS = {"detach", "queue_timeout_ms", "run_timeout_ms"}

# Parameters that have another form in Python: bytes, and an iterator for a stream.
PYTHON_NAMES = {
    "stdin_text": "stdin",
    "stdin_base64": "stdin",
    "stdin_stream": "stdin",
    "text": "data",
    "base64": "data",
}


def method_of(name: str) -> Any:
    return getattr(Client, name.replace(".", "_"), None)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - UNTYPED))
def test_client_has_every_method_with_every_parameter(name: str) -> None:
    method = method_of(name)
    assert method is not None, f"Client has no {name.replace('.', '_')}"
    assert method.__doc__
    parameters = inspect.signature(method).parameters
    takes_job = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    wanted = {PYTHON_NAMES.get(param["name"], param["name"]) for param in METHODS[name]["params"]}
    missing = wanted - parameters.keys() - (OF_JOBS if takes_job else set())
    # `machine.run` has no `detach` parameter in Python; use `call` for that.
    assert not missing
    required = {param["name"] for param in METHODS[name]["params"] if param.get("required")}
    for one in required:
        assert parameters[PYTHON_NAMES.get(one, one)].default is inspect.Parameter.empty, f"{one} must be given"


def test_client_calls_no_method_that_the_protocol_lacks() -> None:
    namespaces = "|".join({name.split(".")[0] for name in METHODS})
    asked = set(re.findall(rf'"((?:{namespaces})\.\w+)"', inspect.getsource(Client)))
    assert asked == METHODS.keys() - UNTYPED


def schema(reference: dict[str, Any]) -> dict[str, Any]:
    """Resolves references."""
    while "$ref" in reference:
        found: dict[str, Any] = PROTOCOL["components"]["schemas"][reference["$ref"].rsplit("/", 1)[1]]
        reference = found
    return reference


def properties(shape: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Returns an object's fields, and the names of the required ones."""
    fields, required = dict(shape.get("properties", {})), set(shape.get("required", ()))
    for part in shape.get("allOf", ()):
        more, needed = properties(schema(part))
        fields.update(more)
        required |= needed
    variants = [properties(schema(part)) for part in shape.get("oneOf", ())]
    if variants:
        for more, _ in variants:
            fields.update(more)
        # A field is only guaranteed if every variant requires it.
        required |= set.intersection(*(needed for _, needed in variants))
    return fields, required


def answers() -> list[tuple[str, type[models.Model], dict[str, Any]]]:
    """Returns the record class of each method's answer, with the answer's schema."""
    found = []
    for name, method in METHODS.items():
        if name in UNTYPED or "x-notification" in method:
            continue
        record = re.search(r"models\.(\w+)\.from_wire", inspect.getsource(method_of(name)))
        if record is None:
            # All changes have the same answer.
            record = re.search(r"(?<=-> models\.)(\w+)", inspect.getsource(method_of(name)))
        if record is not None:
            found.append((name, getattr(models, record[1]), method["result"]["schema"]))
    return found


@pytest.mark.parametrize(("name", "record", "wire"), answers(), ids=lambda value: value if isinstance(value, str) else "")
def test_records_have_exactly_the_fields_of_the_answers(name: str, record: type[models.Model], wire: dict[str, Any]) -> None:
    """A record requires no field that the protocol does not guarantee."""
    compare(record, schema(wire), name, set())


def compare(record: type[models.Model], wire: dict[str, Any], path: str, seen: set[str]) -> None:
    if record.__name__ in seen:
        return
    fields, required = properties(wire)
    named = dict(fields)
    shape = _model._shape(record)
    assert shape.converters.keys() == named.keys(), f"{path}: {record.__name__}"
    promised = set(required)
    assert shape.required <= promised, f"{path}: {record.__name__}"
    for name, hint in typing.get_type_hints(record).items():
        for inner in models_in(hint):
            compare(inner, object_in(named[name]), f"{path}.{name}", seen | {record.__name__})


def models_in(hint: Any) -> Iterator[type[models.Model]]:
    """Yields the record classes in a type hint, also those in a tuple or union."""
    if isinstance(hint, type) and issubclass(hint, models.Model):
        yield hint
    for argument in typing.get_args(hint):
        yield from models_in(argument)


def object_in(reference: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of an object that may be nullable or the item of a list."""
    for one in reference.get("anyOf", ()):
        if one.get("type") != "null":
            return object_in(one)
    wire = schema(reference)
    return object_in(wire["items"]) if "items" in wire else wire


EVENTS: dict[str, Any] = {"JobEvent": models._JOB_EVENT_TYPES, "Event": models._EVENT_TYPES}


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_type_has_a_record_with_its_fields(name: str) -> None:
    wire = PROTOCOL["components"]["schemas"][name]
    # The event types are a `oneOf`, either of the schema itself or of a part of it.
    parts = [wire, *(schema(part) for part in wire.get("allOf", ()))]
    (types,) = [part["oneOf"] for part in parts if "oneOf" in part]
    documented = {event["properties"]["type"]["const"]: event for event in types}
    assert EVENTS[name].keys() == documented.keys()
    common, needed = properties({"allOf": [{**part, "oneOf": (), "allOf": ()} for part in parts]})
    for word, record in EVENTS[name].items():
        fields, required = properties(documented[word])
        del fields["type"]
        compare(record, {"properties": {**common, **fields}, "required": required | needed}, word, set())


def test_every_error_kind_has_its_own_class() -> None:
    """Only kinds that callers need not distinguish share one."""
    kinds = set(PROTOCOL["components"]["errors"])
    assert kinds - errors._BY_KIND.keys() == set()
    assert errors._BY_KIND.keys() - kinds == set()
    shared = [cls for cls in errors._BY_KIND.values() if list(errors._BY_KIND.values()).count(cls) > 1]
    assert set(shared) == {errors.InvalidParams}
