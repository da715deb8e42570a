"""Checks that the client covers the published protocol, ``proto/openrpc.json``."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from orbd import Client, _client, _methods, errors

DOCUMENT = Path(os.environ.get("ORBD_OPENRPC") or Path(__file__).resolve().parents[3] / "proto" / "openrpc.json")

if not DOCUMENT.is_file():
    pytest.skip(f"{DOCUMENT} does not exist", allow_module_level=True)

PROTOCOL = json.loads(DOCUMENT.read_text())
METHODS: dict[str, dict[str, Any]] = {method["name"]: method for method in PROTOCOL["methods"]}

# Sent by every connection before its first call.
UNTYPED = {"daemon.hello"}

# Parameters of all jobs; methods that create jobs take them as `**job`.
OF_JOBS = {"detach", "queue_timeout_ms", "run_timeout_ms", "label"}

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
    sources = "".join(map(inspect.getsource, (_client, _methods)))
    asked = set(re.findall(rf'"((?:{namespaces})\.\w+)"', sources))
    assert asked == METHODS.keys() - UNTYPED


def test_every_error_kind_has_its_own_class() -> None:
    """Only kinds that callers need not distinguish share one."""
    kinds = set(PROTOCOL["components"]["errors"])
    assert kinds - errors._BY_KIND.keys() == set()
    assert errors._BY_KIND.keys() - kinds == set()
    shared = [cls for cls in errors._BY_KIND.values() if list(errors._BY_KIND.values()).count(cls) > 1]
    assert set(shared) == {errors.InvalidParams}
