"""Reads, fills, plays and compares the examples in ``proto/examples``, as described in ``proto/README.md``."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_daemon import RealDaemon

FOLDER = Path(os.environ.get("ORBD_EXAMPLES") or Path(__file__).resolve().parents[3] / "proto" / "examples")

PATIENCE = 20.0
"""Seconds until a test fails because an answer is missing."""

PARTS = {"about", "config", "trouble", "setup", "request", "request_text", "meanwhile", "response", "notifications", "until"}

# For each placeholder, the pattern that it matches inside a longer text, and the value that a fake daemon returns for it.
PLACEHOLDERS: dict[str, tuple[str, Any]] = {
    "<any>": (r"[\s\S]*", None),
    "<int>": (r"[0-9]+", 1),
    "<id>": (r"[0-9]+", 1),
    "<time>": (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "2026-01-02T03:04:05.678Z"),
    "<ulid>": (r"[0-9A-Za-z]{26}", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    "<string>": (r"[\s\S]*", "text"),
}
_ANY_PLACEHOLDER = re.compile("|".join(PLACEHOLDERS))


@dataclass
class Case:
    """One example file."""

    path: Path
    parts: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Case:
        """Reads a file and rejects unknown parts."""
        parts = json.loads(path.read_text())
        assert parts.keys() <= PARTS, f"{path}: unknown parts {sorted(parts.keys() - PARTS)}"
        return cls(path, parts)

    @property
    def method(self) -> str:
        """The method of the example."""
        return self.path.parent.name

    @property
    def name(self) -> str:
        """Method and case."""
        return f"{self.method}/{self.path.stem}"


def cases() -> list[Case]:
    """Returns all examples, in order."""
    return [Case.read(path) for path in sorted(FOLDER.glob("*/*.json"))]


def differences(expected: Any, actual: Any, path: str = "") -> list[str]:
    """Returns the differences: values other than placeholders must be equal, and additional fields are not allowed."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        found = [f"{path}/{key} is missing" for key in expected.keys() - actual.keys()]
        found += [f"{path}/{key} is not in the example: {actual[key]!r}" for key in actual.keys() - expected.keys()]
        for key in expected.keys() & actual.keys():
            found += differences(expected[key], actual[key], f"{path}/{key}")
        return sorted(found)
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{path}/{index}")]
    if isinstance(expected, str) and stands_for(expected, actual):
        return []
    # Also compares types, because in Python True == 1.
    return [] if type(expected) is type(actual) and expected == actual else [f"{path} is {actual!r}, not {expected!r}"]


def stands_for(pattern: str, value: Any) -> bool:
    """Returns whether a string of an example, which may contain placeholders, matches a value."""
    if pattern == "<any>":
        return True
    if pattern in ("<int>", "<id>"):
        return type(value) is int and value >= 0
    if not isinstance(value, str):
        return False
    texts = _ANY_PLACEHOLDER.split(pattern)
    kinds = [PLACEHOLDERS[name][0] for name in _ANY_PLACEHOLDER.findall(pattern)]
    expression = re.escape(texts[0]) + "".join(kind + re.escape(text) for kind, text in zip(kinds, texts[1:], strict=True))
    return re.fullmatch(expression, value) is not None


def filled(value: Any) -> Any:
    """Replaces placeholders with values, for the answer of a fake daemon."""
    if isinstance(value, dict):
        return {key: filled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one) for one in value]
    if isinstance(value, str):
        if value in PLACEHOLDERS:
            return PLACEHOLDERS[value][1]
        return _ANY_PLACEHOLDER.sub(lambda found: str(PLACEHOLDERS[found[0]][1]), value)
    return value


def substituted(value: Any, saved: Callable[[str], Any]) -> Any:
    """Replaces ``$name`` with saved values."""
    if isinstance(value, dict):
        return {key: substituted(one, saved) for key, one in value.items()}
    if isinstance(value, list):
        return [substituted(one, saved) for one in value]
    if isinstance(value, str) and value.startswith("$"):
        return saved(value[1:])
    return value


class JsonLinesConnection:
    """One connection that sends JSON lines, without ``daemon.hello``."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._reader = self._socket.makefile("rb")
        self._heard: deque[Any] = deque()

    def close(self) -> None:
        """Closes the connection."""
        self._reader.close()
        self._socket.close()

    def send(self, line: str) -> None:
        """Sends a line."""
        self._socket.sendall(line.encode() + b"\n")

    def _message(self) -> Any:
        line = self._reader.readline()
        assert line, "the daemon closed the connection"
        return json.loads(line)

    def answer(self, is_it: Callable[[Any], bool]) -> Any:
        """Reads until the answer for which ``is_it`` returns true; keeps notifications."""
        while True:
            message = self._message()
            if isinstance(message, dict) and "method" in message:
                self._heard.append(message)
            elif is_it(message):
                return message

    def notification(self) -> Any:
        """Returns the next notification."""
        return self._heard.popleft() if self._heard else self._message()


@dataclass
class Player:
    """Plays one case with its own daemon."""

    case: Case
    saved: dict[str, Any] = field(default_factory=dict)
    child: subprocess.Popen[bytes] | None = None

    def play(self) -> list[str]:
        """Returns the differences between the daemon's answer and the example."""
        folder = Path(tempfile.mkdtemp(prefix="orbd-", dir="/tmp"))
        daemon = None
        try:
            daemon = RealDaemon(folder, isolation="dir", config=self.case.parts.get("config"), script=self._script(folder))
            return self._converse(daemon)
        finally:
            if self.child is not None:
                self._end_child()
            if daemon is not None:
                daemon.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _script(self, folder: Path) -> Path | None:
        if "trouble" not in self.case.parts:
            return None
        path = folder / "trouble.toml"
        # The values in these tables have the same form in JSON and TOML.
        tables = ("\n".join(f"{key} = {json.dumps(value)}" for key, value in one.items()) for one in self.case.parts["trouble"])
        path.write_text("".join(f"[[trouble]]\n{table}\n" for table in tables))
        return path

    def _converse(self, daemon: RealDaemon) -> list[str]:
        parts = self.case.parts
        connection, side_connection = JsonLinesConnection(daemon.socket), JsonLinesConnection(daemon.socket)
        try:
            for step in parts.get("setup", ()):
                self._step(connection, step)
            request = substituted(parts.get("request"), self._value)
            connection.send(parts["request_text"] if "request_text" in parts else json.dumps(request))
            for step in parts.get("meanwhile", ()):
                self._step(side_connection, step)
            request_id = request.get("id") if isinstance(request, dict) else None
            response = connection.answer(
                lambda message: isinstance(message, list) if isinstance(request, list) else message["id"] == request_id
            )
            found = differences(parts["response"], response, "response")
            if "notifications" in parts:
                heard: list[Any] = []
                while not heard or heard[-1]["params"]["result"]["type"] != parts.get("until", "ended"):
                    heard.append(connection.notification())
                found += differences(parts["notifications"], heard, "notifications")
            return found
        finally:
            connection.close()
            side_connection.close()

    def _step(self, connection: JsonLinesConnection, step: dict[str, Any]) -> None:
        if step.get("end_child"):
            self._end_child()
            return
        if "hear" in step:
            while connection.notification()["params"]["result"]["type"] != step["hear"]:
                pass
            return
        deadline = time.monotonic() + PATIENCE
        while True:
            request = {"jsonrpc": "2.0", "id": "step", "method": step["method"]}
            if "params" in step:
                request["params"] = substituted(step["params"], self._value)
            connection.send(json.dumps(request))
            answer = connection.answer(lambda message: message["id"] == "step")
            assert "error" not in answer, f"{step} was answered {answer}"
            found = {name: _at(answer, pointer) for name, pointer in step.get("save", {}).items()}
            if None not in found.values():
                self.saved.update(found)
                return
            assert time.monotonic() < deadline, f"{step} never returned the value to save: {answer}"
            time.sleep(0.005)

    def _value(self, name: str) -> Any:
        if name == "child" and name not in self.saved:
            self.child = subprocess.Popen(["sleep", "600"])
            self.saved["child"] = self.child.pid
        return self.saved[name]

    def _end_child(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait()
        self.child = None


def _at(value: Any, pointer: str) -> Any:
    """Resolves a JSON pointer; returns None if there is no such value."""
    try:
        for word in pointer.split("/")[1:]:
            value = value[int(word) if isinstance(value, list) else word]
    except (LookupError, ValueError):
        return None
    return value
