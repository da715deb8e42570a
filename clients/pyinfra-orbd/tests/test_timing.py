"""The deploy's timing report, and the timing of one's own code."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.operations import server

from play import forget_clients, playing
from pyinfra_orbd import timing
from real_daemon import RealDaemon, temporary_daemon
from target import Target


@pytest.fixture(scope="module")
def world() -> Iterator[RealDaemon]:
    """Two machines behind an ``orbctl`` that takes 50 ms for a command, and runs one command a machine at a time."""
    with temporary_daemon(isolation="dir", latency="0,run=50,start=100,stop=100") as daemon:
        daemon.create("web", "db")
        yield daemon


@pytest.fixture
def daemon(world: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, where the environment says that it is."""
    monkeypatch.setenv("ORBD_SOCKET", str(world.socket))
    monkeypatch.setenv("ORBD_AUTOSTART", "0")
    yield world
    forget_clients()


DEPLOY = """
    from pyinfra.operations import server
    from pyinfra_orbd import timing
    from pyinfra_orbd.operations import vm_restart

    timing.report(json="timing.json", csv="timing.csv")
    server.shell(name="Twice", commands=["echo one", "echo two"])
    server.shell(name="Never", commands=["echo three"], _if=lambda: False)
    vm_restart(name="Restart db", machine="db", _run_once=True)
"""


@pytest.mark.needs_daemon
class TestReport:
    """What PyInfra measured and what the daemon recorded, together."""

    @pytest.fixture
    def deployed(self, daemon: RealDaemon, tmp_path: Path) -> tuple[str, dict[str, Any], list[dict[str, str]]]:
        """What a deploy said on screen, as JSON and as CSV."""
        (tmp_path / "deploy.py").write_text(textwrap.dedent(DEPLOY))
        target = Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
        said = target.pyinfra("@orbstack", "deploy.py")
        table = list(csv.DictReader(io.StringIO((tmp_path / "timing.csv").read_text())))
        return said, json.loads((tmp_path / "timing.json").read_text()), table

    def test_everything(self, deployed: tuple[str, dict[str, Any], list[dict[str, str]]]) -> None:
        """Each operation on each host with its calls, those of other machines with the host that asked for them."""
        said, told, table = deployed
        assert (told["version"], told["problem"]) == (1, None)
        steps = {(step["operation"], step["host"]): step for step in told["steps"]}
        for host in ("web", "db"):
            step = steps["Twice", host]
            assert (step["outcome"], step["calls"]) == ("changed", 2)
            # Two commands of at least 50 ms each, and PyInfra's own time around them.
            assert 0.1 <= step["run_s"] <= step["took_s"]
            assert step["wait_s"] >= 0
            assert (steps["Never", host]["outcome"], steps["Never", host]["calls"]) == ("unchanged", 0)
        (restart,) = [step for (operation, _), step in steps.items() if operation == "Restart db"]
        assert (restart["outcome"], restart["calls"]) == ("changed", 1)
        assert restart["run_s"] > 0
        assert [total["name"] for total in told["operations"]] == ["1. Twice", "2. Never", "3. Restart db"]
        assert {total["name"]: total["calls"] for total in told["hosts"]} == {
            host: sum(step["calls"] for step in told["steps"] if step["host"] == host) for host in ("db", "web")
        }
        assert [{**row} for row in table] == [{key: str(value) for key, value in step.items()} for step in told["steps"]]

        assert "--> Timing: 2 hosts, 3 operations" in said
        assert said.count("--> Timing") == 1
        assert "1. Twice" in said

    def test_in_the_api(self, daemon: RealDaemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """A program adds it to its own state; hosts that wait for one machine wait in the queue, and the report says so."""
        with playing(("@orbstack/web", {}), ("@orbstack/db", {"vm_name": "web"})) as state:
            report = timing.report(state=state, screen=False)
            assert timing.report(state=state) is report
            add_op(state, server.shell, name="Work", commands=["true"])
            run_ops(state)
        steps = report.steps(state)
        assert [(step["host"], step["outcome"]) for step in steps] == [("db", "changed"), ("web", "changed")]
        assert sum(step["calls"] for step in steps) == 2
        assert "Timing" not in capfd.readouterr().err

    def test_a_failed_operation(self, daemon: RealDaemon) -> None:
        """It took time too."""
        with playing("@orbstack/web") as state:
            report = timing.report(state=state, screen=False)
            add_op(state, server.shell, name="Fail", commands=["false"], _ignore_errors=True)
            run_ops(state)
        (step,) = report.steps(state)
        assert (step["outcome"], step["calls"]) == ("failed", 1)

    def test_without_the_daemon(self, daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        """PyInfra's half is told all the same, and what is missing."""
        with playing("@orbstack/web") as state:
            report = timing.report(state=state, screen=False)
            add_op(state, server.shell, commands=["true"])
            run_ops(state)
            monkeypatch.setenv("ORBD_SOCKET", "/tmp/orbd-nobody-listens")
        assert report.problem is not None
        assert "orbd-ctl daemon start" in report.problem
        assert report.steps(state)[0]["took_s"] > 0
        assert any("cannot be had" in line for line in report.lines(state))

    def test_a_file_that_cannot_be_written(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """It does not cost the deploy its end."""
        with playing("@orbstack/web") as state:
            timing.report(state=state, screen=False, json=str(tmp_path / "none" / "file"))
            add_op(state, server.shell, commands=["true"])
            run_ops(state)

    def test_nothing_was_done(self, daemon: RealDaemon, capfd: pytest.CaptureFixture[str]) -> None:
        """Nothing is reported."""
        with playing("@orbstack/web") as state:
            timing.report(state=state)
        assert "Timing" not in capfd.readouterr().err


def test_csv_has_a_head() -> None:
    """Also without a row."""
    file = io.StringIO()
    timing.write_csv([], file)
    assert file.getvalue() == "order,operation,host,outcome,took_s,wait_s,run_s,calls\r\n"


class TestTimed:
    """The timing of one's own code."""

    @pytest.fixture(autouse=True)
    def _log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "pyinfra_orbd.timing")

    def test_a_block(self, caplog: pytest.LogCaptureFixture) -> None:
        """Its beginning and its end."""
        with timing.timed_operation("work"):
            pass
        begun, completed = caplog.messages
        assert begun == "Starting work"
        assert re.fullmatch(r"Completed work in \d+\.\d\ds", completed)

    def test_a_block_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is not told as completed."""
        with pytest.raises(ValueError, match="why"), timing.timed_operation("work"):
            raise ValueError("why")
        assert caplog.messages == ["Starting work", "Failed work after 0.00s: why"]

    def test_functions(self, caplog: pytest.LogCaptureFixture) -> None:
        """With a name of its own, without one, and without brackets."""

        @timing.timed
        def plain(value: int) -> int:
            return value

        @timing.timed()
        def called(value: int) -> int:
            return value

        @timing.timed("a name")
        def named(value: int) -> int:
            return value

        assert plain(1) + called(2) + named(value=3) == 6
        assert [message for message in caplog.messages if "Starting" in message] == [
            "Starting plain",
            "Starting called",
            "Starting a name",
        ]
        assert plain.__name__ == "plain"

    def test_logging(self) -> None:
        """One handler, on our own logger, however often it is asked for."""
        logger = logging.getLogger("pyinfra_orbd.timing")
        root = list(logging.getLogger().handlers)
        before = list(logger.handlers)
        try:
            timing.configure_logging()
            timing.configure_logging(logging.DEBUG)
            assert len(logger.handlers) == len(before) + 1
            assert logger.level == logging.DEBUG
            assert logging.getLogger().handlers == root
        finally:
            logger.handlers[:] = before
            logger.setLevel(logging.NOTSET)
