"""Notices about waiting calls, and timeouts of waiting calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from orbd import Client, _ctl, _transport, models
from pyinfra_orbd import _client
from pyinfra_orbd._client import StalenessWarningClient
from real_daemon import RealDaemon, temporary_daemon
from target import Target

PATIENCE = 30.0
"""Seconds until a test fails because an expected event did not happen."""


@pytest.fixture
def other(real: RealDaemon) -> Iterator[Client]:
    """Another client of the daemon."""
    with Client(str(real.socket), name="deploy-b") as client:
        yield client


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> Queue[str]:
    """A queue of notices, with a short notice interval."""
    for module in (_transport, _ctl):
        monkeypatch.setattr(module, "WAIT_INTERVAL", 0.02)
    return Queue()


class Background(threading.Thread):
    """A call on another thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: Queue[object] = Queue()
        self.start()

    def run(self) -> None:
        """Makes the call."""
        try:
            self._result.put(self._call())
        except BaseException as error:
            self._result.put(error)

    def result(self) -> object:
        """Waits for the result."""
        result = self._result.get(timeout=PATIENCE)
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        (
            models.WaitingFor(kind="job", job_id=7, operation="export", machine="web", client="orbd-ctl", age_ms=6100),
            "waiting for export web (orbd-ctl, 6 s)",
        ),
        (models.WaitingFor(kind="job", job_id=7), "waiting for job 7 (another client, 0 s)"),
        (models.WaitingFor(kind="limit", limit="exec_max"), "waiting for a free slot: exec_max reached"),
        (models.WaitingFor(kind="paused"), "waiting: the queue is paused; `orbd-ctl queue resume` continues it"),
        (models.WaitingFor(kind="unhealthy", reason="it hangs"), "waiting: orbctl is unhealthy: it hangs"),
    ],
)
def test_notice_describes_each_reason_to_wait(waiting: models.WaitingFor, text: str) -> None:
    assert _client.reason(waiting) == text


def test_same_reason_is_reported_once() -> None:
    """A blocker's greater age is not a new reason; another blocker is."""
    said: list[str] = []
    notice = _client.WaitNotice(said.append)
    for job_id, age_ms in [(7, 2000), (7, 4000), (8, 100)]:
        notice.waiting(models.WaitingFor(kind="job", job_id=job_id, operation="stop", machine="web", client="x", age_ms=age_ms))
    assert said == ["waiting for stop web (x, 2 s)", "waiting for stop web (x, 0 s)"]


@pytest.fixture
def client(real: RealDaemon, notices: Queue[str]) -> Iterator[StalenessWarningClient]:
    """A client that reports what it waits for."""
    with StalenessWarningClient(str(real.socket)) as client:
        yield client.with_notices(notices.put)


@pytest.mark.needs_daemon
class TestNotices:
    """Calls that wait in a real queue."""

    def test_waiting_change_names_the_blocking_command(
        self, real: RealDaemon, other: Client, client: StalenessWarningClient, notices: Queue[str]
    ) -> None:
        real.inside("web", "sh", "-c", "rm -f ~/go")
        command = ["sh", "-c", "until [ -e go ]; do sleep 0.05; done"]
        other.call("machine.run", {"machine": "web", "command": command, "detach": True})
        restart = Background(lambda: client.machine_restart("web"))
        assert notices.get(timeout=PATIENCE).startswith("waiting for run web (deploy-b, ")
        real.inside("web", "sh", "-c", "touch ~/go")
        assert isinstance(restart.result(), models.Change)

    def test_waiting_command_reports_a_paused_queue(
        self, other: Client, client: StalenessWarningClient, notices: Queue[str]
    ) -> None:
        """Later calls on the pooled connection work as usual."""
        other.queue_pause("web")
        try:
            run = Background(lambda: client.machine_run("web", ["echo", "done"]))
            assert notices.get(timeout=PATIENCE).startswith("waiting: the queue is paused")
        finally:
            other.queue_resume("web")
        answer = run.result()
        assert isinstance(answer, models.Run)
        assert answer.exit_code == 0
        assert client.machine_run("web", ["true"]).exit_code == 0

    def test_waiting_export_reports_through_the_process_group_of_orbd_ctl(
        self,
        real: RealDaemon,
        other: Client,
        client: StalenessWarningClient,
        notices: Queue[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in real.environment.items():
            if name == "PATH" or name.startswith("ORBCTL_SIM_"):
                monkeypatch.setenv(name, value)
        other.queue_pause("db")
        try:
            export = Background(lambda: client.export_machine("db", tmp_path / "db.tar.zst"))
            assert notices.get(timeout=PATIENCE).startswith("waiting: the queue is paused")
        finally:
            other.queue_resume("db")
        assert isinstance(export.result(), models.Job)

    def test_pyinfra_prints_the_notice_with_the_hosts_name(self, real: RealDaemon, other: Client, tmp_path: Path) -> None:
        """With the default interval and verbosity."""
        target = Target({"ORBD_SOCKET": str(real.socket), "ORBD_AUTOSTART": "0"}, str, tmp_path)
        other.queue_pause("web")
        try:
            process = target.begin("@orbstack/web", "exec", "--", "echo", "hi")
            assert process.stdout is not None
            said = ""
            while "[web] waiting: the queue is paused" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
        finally:
            other.queue_resume("web")
        assert "[web] hi" in target.end(process)


@pytest.mark.needs_daemon
def test_export_timeout_is_reported_as_a_timeout(tmp_path: Path) -> None:
    """Not as a file that cannot be written; and the file does not appear."""
    (tmp_path / "deploy.py").write_text(
        "from pyinfra_orbd.operations import vm_export\n"
        'vm_export(name="Keep it", machine="web", output_path="web.tar.zst", _timeout=1)\n'
    )
    with temporary_daemon(latency="0,export=5000") as daemon:
        daemon.create("web")
        target = Target(daemon.environment, str, tmp_path)
        said = target.pyinfra("@local", "deploy.py", code=1)
    assert "timed out after 1" in said
    assert "cannot write" not in said
    assert not (tmp_path / "web.tar.zst").exists()
