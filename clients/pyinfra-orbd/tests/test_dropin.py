"""``pyinfra-orbstack`` 0.11.0 through the drop-in, as an example of a program that does not know orbd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from real_daemon import RealDaemon, temporary_daemon

pytestmark = pytest.mark.needs_daemon

# A separate environment, because both packages register `@orbstack`.
PYTHON = Path(os.environ.get("ORBD_PREDECESSOR_PYTHON") or Path(__file__).resolve().parents[3] / ".venv-predecessor/bin/python")

DEPLOY = """
from pyinfra.operations import files, server

server.shell(commands=["echo one", "echo two >>$HOME/ran"])
files.put(src="content", dest="put")
files.line(path="lines", line="added", present=True)
server.shell(commands=["cat put"])
"""


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """A daemon with a limit of one command per machine, and commands that take some time."""
    options = {"latency": "0,run=15,push=15,restart=30", "isolation": "dir", "config": {"exec_per_machine": "1"}}
    with temporary_daemon(**options) as daemon:
        daemon.create("web", "db")
        yield daemon


@pytest.fixture
def through(daemon: RealDaemon) -> dict[str, str]:
    """An environment in which ``orbctl`` is the drop-in."""
    folder = daemon.folder / "bin"
    words: list[str | Path] = [daemon.ctl, "dropin", "install", "--dir", folder]
    subprocess.run(words, env=daemon.environment, check=True, capture_output=True, timeout=60)
    assert (folder / "orbctl").is_symlink()
    return {**daemon.environment, "PATH": f"{folder}:{PYTHON.parent}:{os.environ['PATH']}"}


class Deploy:
    """A running deploy of the predecessor, in its own directory."""

    def __init__(self, folder: Path, environment: dict[str, str], *hosts: str) -> None:
        folder.mkdir()
        (folder / "deploy.py").write_text(DEPLOY)
        (folder / "content").write_text("content\n")
        self.process = subprocess.Popen(
            [PYTHON, "-m", "pyinfra", "-y", ",".join(f"@orbstack/{host}" for host in hosts), "deploy.py"],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> str:
        """Waits until the deploy ends, and returns its output."""
        said, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        return re.sub(r"\x1b\[[0-9;]*m", "", said)


def metrics(daemon: RealDaemon) -> dict[str, Any]:
    """Returns the rows of ``orbd-ctl metrics`` by operation."""
    words: list[str | Path] = [daemon.ctl, "metrics", "--json"]
    output = subprocess.run(words, env=daemon.environment, check=True, capture_output=True, timeout=60).stdout
    return {row["operation"]: row for row in json.loads(output)["rows"]}


def overlaps(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns the pairs of commands that overlapped on a machine; the ledger is in order of time."""
    there: dict[str, dict[str, str]] = {}
    found = []
    for event in events:
        machine = event.get("machine")
        if not machine or event["command"] in ("info", "list"):
            continue
        inside = there.setdefault(machine, {})
        if event["event"] == "start":
            found += [(other, event["command"]) for other in inside.values()]
            inside[event["id"]] = event["command"]
        elif event["event"] == "end":
            inside.pop(event["id"], None)
    return found


def ends_have_machines(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the command and machine of each start event to its end event."""
    starts = {event["id"]: event for event in events if event["event"] == "start"}
    known = ("command", "machine")
    return [{**{key: starts[event["id"]].get(key) for key in known}, **event} for event in events if event["id"] in starts]


def test_predecessor_deploys_through_the_drop_in_and_calls_are_recorded(
    daemon: RealDaemon, through: dict[str, str], tmp_path: Path
) -> None:
    before = len(daemon.ledger())
    said = Deploy(tmp_path / "deploy", through, "web").end()
    assert "[web] Connected" in said
    assert daemon.inside("web", "cat", "put", "lines", "ran").split() == ["content", "added", "two"]
    # The check above ran one command outside the deploy.
    calls = RealDaemon.spawns_in(daemon.ledger()[before:]) - Counter(run=1)
    assert calls["run"] > 5
    assert calls["list"] >= 1
    recorded = metrics(daemon)
    for command in ("run", "push", "list", "info"):
        assert recorded.get(command, {"count": 0})["count"] == calls[command], command


def test_concurrent_deploys_never_overlap_on_a_machine(daemon: RealDaemon, through: dict[str, str], tmp_path: Path) -> None:
    """Nor does a concurrent restart of a machine."""
    before = len(daemon.ledger())
    deploys = [Deploy(tmp_path / name, through, "web", "db") for name in ("one", "two")]
    is_over = threading.Event()
    restarts: list[int] = []

    def restart() -> None:
        while not is_over.is_set():
            words = ["orbctl", "restart", "db"]
            restarts.append(subprocess.run(words, env=through, capture_output=True, timeout=60, check=False).returncode)

    bystander = threading.Thread(target=restart)
    bystander.start()
    try:
        for deploy in deploys:
            deploy.end()
    finally:
        is_over.set()
        bystander.join()
    assert set(restarts) == {0}
    events = ends_have_machines(daemon.ledger()[before:])
    assert overlaps(events) == []
    runs = [event for event in events if event["event"] == "start" and event["command"] == "run"]
    assert {event["machine"] for event in runs} == {"web", "db"}
    # Both deploys ran completely.
    assert daemon.inside("web", "cat", "ran").split() == ["two", "two"]
    assert metrics(daemon)["restart"]["count"] == len(restarts)
