"""Timing reports of deploys, and timing of the user's own code."""

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

from play import at_its_socket, playing
from pyinfra_orbd import timing
from real_daemon import RealDaemon, temporary_daemon
from target import Target


@pytest.fixture(scope="module")
def world() -> Iterator[RealDaemon]:
    """Two machines; each command takes 50 ms."""
    with temporary_daemon(isolation="dir", latency="0,run=50,start=100,stop=100") as daemon:
        daemon.create("web", "db")
        yield daemon


@pytest.fixture
def daemon(world: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, at the socket that the environment names."""
    with at_its_socket(world, monkeypatch) as daemon:
        yield daemon


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
    """Reports that combine PyInfra's times with the daemon's records."""

    @pytest.fixture
    def deployed(self, daemon: RealDaemon, tmp_path: Path) -> tuple[str, dict[str, Any], list[dict[str, str]]]:
        """Output, JSON and CSV of a deploy's report."""
        (tmp_path / "deploy.py").write_text(textwrap.dedent(DEPLOY))
        target = Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
        said = target.pyinfra("@orbstack", "deploy.py")
        table = list(csv.DictReader(io.StringIO((tmp_path / "timing.csv").read_text())))
        return said, json.loads((tmp_path / "timing.json").read_text()), table

    def test_report_assigns_all_calls_to_operations_and_hosts(
        self, deployed: tuple[str, dict[str, Any], list[dict[str, str]]]
    ) -> None:
        """A call on another machine belongs to the host whose operation made it."""
        said, report, table = deployed
        assert (report["version"], report["problem"]) == (1, None)
        steps = {(step["operation"], step["host"]): step for step in report["steps"]}
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
        assert [total["name"] for total in report["operations"]] == ["1. Twice", "2. Never", "3. Restart db"]
        assert {total["name"]: total["calls"] for total in report["hosts"]} == {
            host: sum(step["calls"] for step in report["steps"] if step["host"] == host) for host in ("db", "web")
        }
        assert [{**row} for row in table] == [{key: str(value) for key, value in step.items()} for step in report["steps"]]

        assert "--> Timing: 2 hosts, 3 operations" in said
        assert said.count("--> Timing") == 1
        assert "1. Twice" in said

    def test_report_works_through_the_api(self, daemon: RealDaemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """Two hosts share a machine here."""
        with playing(("@orbstack/web", {}), ("@orbstack/db", {"vm_name": "web"})) as state:
            report = timing.report(state=state, screen=False)
            assert timing.report(state=state) is report
            add_op(state, server.shell, name="Work", commands=["true"])
            run_ops(state)
        steps = report.steps(state)
        assert [(step["host"], step["outcome"]) for step in steps] == [("db", "changed"), ("web", "changed")]
        assert sum(step["calls"] for step in steps) == 2
        assert "Timing" not in capfd.readouterr().err

    def test_report_includes_failed_operations(self, daemon: RealDaemon) -> None:
        with playing("@orbstack/web") as state:
            report = timing.report(state=state, screen=False)
            add_op(state, server.shell, name="Fail", commands=["false"], _ignore_errors=True)
            run_ops(state)
        (step,) = report.steps(state)
        assert (step["outcome"], step["calls"]) == ("failed", 1)

    def test_report_without_the_daemon_has_pyinfras_times_and_the_problem(
        self, daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with playing("@orbstack/web") as state:
            report = timing.report(state=state, screen=False)
            add_op(state, server.shell, commands=["true"])
            run_ops(state)
            monkeypatch.setenv("ORBD_SOCKET", "/tmp/orbd-missing.sock")
        assert report.problem is not None
        assert "orbd-ctl daemon start" in report.problem
        assert report.steps(state)[0]["took_s"] > 0
        assert any("cannot read the daemon's records" in line for line in report.lines(state))

    def test_unwritable_report_file_does_not_fail_the_deploy(self, daemon: RealDaemon, tmp_path: Path) -> None:
        with playing("@orbstack/web") as state:
            timing.report(state=state, screen=False, json=str(tmp_path / "none" / "file"))
            add_op(state, server.shell, commands=["true"])
            run_ops(state)

    def test_no_report_without_operations(self, daemon: RealDaemon, capfd: pytest.CaptureFixture[str]) -> None:
        with playing("@orbstack/web") as state:
            timing.report(state=state)
        assert "Timing" not in capfd.readouterr().err


def test_csv_has_a_header_without_rows() -> None:
    file = io.StringIO()
    timing.write_csv([], file)
    assert file.getvalue() == "order,operation,host,outcome,took_s,wait_s,run_s,calls\r\n"


class TestTimed:
    """Timing of the user's own code."""

    @pytest.fixture(autouse=True)
    def _log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "pyinfra_orbd.timing")

    def test_timed_operation_logs_start_and_end(self, caplog: pytest.LogCaptureFixture) -> None:
        with timing.timed_operation("work"):
            pass
        begun, completed = caplog.messages
        assert begun == "Starting work"
        assert re.fullmatch(r"Completed work in \d+\.\d\ds", completed)

    def test_timed_operation_logs_a_failure(self, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(ValueError, match="why"), timing.timed_operation("work"):
            raise ValueError("why")
        assert caplog.messages == ["Starting work", "Failed work after 0.00s: why"]

    def test_timed_works_with_and_without_a_name_and_parentheses(self, caplog: pytest.LogCaptureFixture) -> None:
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

    def test_configure_logging_adds_one_handler_to_its_own_logger(self) -> None:
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
