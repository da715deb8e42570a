"""``tools/generate.py``, which writes the records and methods of the client."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import generate
from fake_daemon import FakeDaemon

if not generate.DOCUMENT.is_file():
    pytest.skip(f"{generate.DOCUMENT} does not exist", allow_module_level=True)

DOCUMENT = generate.read()


def text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def test_new_method_and_event_need_no_code_of_their_own(tmp_path: Path, daemon: FakeDaemon) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["components"]["schemas"]["SongAnswer"] = {
        "description": "Answer of `machine.sing`.",
        "type": "object",
        "properties": {"title": text("Title."), "encore": text("Second song; absent if there is none.")},
        "required": ["title"],
    }
    volume = {"name": "volume", "description": "Volume.", "schema": {"type": "integer"}}
    machine = {"name": "machine", "description": "Name.", "schema": {"type": "string"}, "required": True}
    answer = {"name": "answer", "schema": {"$ref": "#/components/schemas/SongAnswer"}}
    document["methods"].append({"name": "machine.sing", "summary": "Sings.", "params": [machine, volume], "result": answer})
    variant = {"description": "A song.", "properties": {"type": {"const": "machine_sang"}, "title": text("Title.")}}
    document["components"]["schemas"]["Event"]["allOf"][1]["oneOf"].append({**variant, "required": ["type", "title"]})
    shutil.copytree(generate.PACKAGE / "src" / "orbd", tmp_path / "orbd")
    for path, source in generate.generate(document).items():
        (tmp_path / Path(path).relative_to("src")).write_text(source)
    daemon.handlers["machine.sing"] = lambda peer, params: {"title": "Daisy", "key": "C"}
    code = """
from orbd import Client, models
print(Client().machine_sing("web", volume=3))
print(models.happening_from_wire({"type": "machine_sang", "title": "B", "sequence": 1, "instance": "1", "noticed_at": ""}))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert printed.splitlines() == [
        "Song(title='Daisy', encore=None)",
        "MachineSang(sequence=1, instance='1', noticed_at='', title='B')",
    ]
    assert daemon.requests[-1] == ("machine.sing", {"machine": "web", "volume": 3})


def test_tables_of_exceptions_name_only_what_exists() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    methods = {method["name"] for method in DOCUMENT["methods"]}
    named = {*generate.CLASS_NAMES, *generate.EVENT_NAMES, *generate.READERS, *generate.OPAQUE, *generate.SIMPLE_ANSWERS}
    assert named | generate.WITH_DEFAULT.keys() <= schemas.keys()
    assert generate.BY_HAND | generate.POSITIONAL.keys() <= methods
    for name, fields in generate.WITH_DEFAULT.items():
        shape = schemas.get(f"{name}Head", schemas[name])
        assert fields <= set(shape["required"]), name
