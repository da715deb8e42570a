"""Files of this computer: archives and the like, which ``orbd-ctl`` opens for us in a place of the queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from orbd import Client, errors
from real_daemon import RealDaemon
from target import fake_ctl

JOB = {"job_id": 7, "operation": "export", "machine": "web", "state": "ended", "wait_us": 3, "run_us": 5}


def job(**outcome: Any) -> str:
    return json.dumps({"job": {**JOB, "outcome": outcome}})


@pytest.fixture
def anywhere(short_folder: Path) -> Client:
    """A client without a daemon: what is asked here goes to ``orbd-ctl``."""
    return Client(str(short_folder / "orbd.sock"))


WORDS = r"""printf '%s\n' "$@" >"${0%/*}/words"; """


def words(folder: Path) -> list[str]:
    """Returns what the fake was called with, after the options that every call has."""
    said = (folder / "words").read_text().splitlines()
    assert said[:3] == ["--json", "--socket", str(folder / "orbd.sock")]
    return said[3:]


def test_every_option_is_one_word(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value can become a flag, and what is an operand stands after ``--``."""
    fake_ctl(short_folder, f"{WORDS}echo '{job(kind='succeeded', changed=True)}'", monkeypatch)
    anywhere.export_machine("web", Path("-x.tar"), queue_timeout_ms=5000)
    assert words(short_folder) == ["export", "--queue-timeout=5000ms", "--", "web", "-x.tar"]
    anywhere.import_machine("/a.tar", "--all")
    assert words(short_folder) == ["import", "--name=--all", "--", "/a.tar"]
    anywhere.push_files("web", ["a", Path("b")], "/srv")
    assert words(short_folder) == ["push", "--machine=web", "--", "a", "b", "/srv"]
    anywhere.pull_files("web", ["/srv/a"], Path("here"))
    assert words(short_folder) == ["pull", "--machine=web", "--", "/srv/a", "here"]


def test_create_with_user_data(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the method reaches ``orbd-ctl``, and the answer is that of every change."""
    fake_ctl(short_folder, f"{WORDS}echo '{job(kind='succeeded', changed=True)}'", monkeypatch)
    change = anywhere.machine_create(
        "box",
        "ubuntu",
        version="noble",
        arch="arm64",
        cpus=2,
        isolated=True,
        mounts=["/a:/b", "/c"],
        user_data=Path("init.yaml"),
        run_timeout_ms=1500,
    )
    given = words(short_folder)
    assert given[0] == "create"
    assert given[-3:] == ["--", "ubuntu:noble", "box"]
    assert set(given[1:-3]) == {
        "--arch=arm64",
        "--cpus=2",
        "--isolated",
        "--mount=/a:/b",
        "--mount=/c",
        "--user-data=init.yaml",
        "--timeout=1500ms",
    }
    assert (change.job_id, change.state, change.changed, change.run_us) == (7, "ended", True, 5)
    with pytest.raises(TypeError, match="cannot be detached"):
        anywhere.machine_create("box", "ubuntu", user_data="x", detach=True)


def test_what_orbctl_said_is_told(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon knows how it ended, we know what it said: the exception has both."""
    error = {"code": 4002, "message": "said nothing", "data": {"kind": "orbctl_failed", "exit_code": 1, "stderr_tail": ""}}
    said = job(kind="failed", error=error)
    fake_ctl(short_folder, f"echo copying; echo 'no space left' >&2; echo '{said}'; exit 1", monkeypatch)
    with pytest.raises(errors.OrbctlFailed, match="exit code 1: no space left") as caught:
        anywhere.export_machine("web", "x")
    assert caught.value.stderr_tail == "no space left"


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("daemon_unreachable", errors.DaemonNotRunning),
        ("daemon_not_started", errors.DaemonNotRunning),
        ("connection_lost", errors.DaemonGone),
        ("protocol_mismatch", errors.ProtocolMismatch),
        ("machine_not_found", errors.MachineNotFound),
        ("interrupted", errors.RequestFailed),
    ],
)
def test_its_errors_are_ours(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch, kind: str, cls: type[errors.OrbdError]
) -> None:
    """A failure has the same class whichever way the call went."""
    said = json.dumps({"error": {"code": 0, "message": "so it is", "data": {"kind": kind}}})
    fake_ctl(short_folder, f"echo '{said}'; exit 3", monkeypatch)
    with pytest.raises(cls, match="so it is") as caught:
        anywhere.export_machine("web", "x")
    assert type(caught.value) is cls


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error: unexpected argument' >&2; exit 2", "is it older.*unexpected argument"),
        ("echo oh dear >&2; exit 101", "`orbd-ctl export` ended with 101: oh dear"),
        ("kill -9 $$", "ended with 137"),
        ("echo '{half'; exit 1", "ended with 1"),
    ],
)
def test_failures_without_a_reason(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    """An orbd-ctl that is too old, crashes or is killed is told as what it is, with its own words."""
    fake_ctl(short_folder, script, monkeypatch)
    with pytest.raises(errors.CtlFailed, match=message):
        anywhere.export_machine("web", "x")


def test_orbd_ctl_is_not_there(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with what it is needed for."""
    monkeypatch.setenv("PATH", str(short_folder))
    with pytest.raises(errors.CtlFailed, match="orbd-ctl, which opens files for import, cannot be run: No such file"):
        anywhere.import_machine("x", "web")


def test_done_though_nobody_could_say_more(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that went away while orbctl worked makes no failure of what was done."""
    fake_ctl(short_folder, "exit 0", monkeypatch)
    assert anywhere.export_machine("web", "x") is None


def test_the_child_has_the_signals_of_a_fresh_process(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python ignores SIGPIPE; orbctl must not inherit that."""
    fake_ctl(short_folder, 'kill -PIPE $$; echo "survived" >&2; exit 1', monkeypatch)
    with pytest.raises(errors.CtlFailed, match="ended with 141"):
        anywhere.export_machine("web", "x")


GREENLETS = """
    {patch}
    import gevent, gevent.subprocess
    from orbd import Client, errors
    # From here on gevent's loop collects every child of this process.
    gevent.subprocess.check_output(["true"])
    client = Client("{folder}/orbd.sock")
    ticks = []
    def tick():
        while True:
            gevent.sleep(0.01)
            ticks.append(1)
    ticker = gevent.spawn(tick)
    def call(name):
        try:
            return client.export_machine(name, "x").job_id
        except errors.CtlFailed as error:
            return str(error)
    calls = [gevent.spawn(call, name) for name in ("good", "bad", "good")]
    gevent.joinall(calls)
    print([one.value for one in calls], len(ticks) > 5)
"""


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"], ids=["unpatched", "patched"])
def test_gevent_that_collects_our_children(short_folder: Path, monkeypatch: pytest.MonkeyPatch, patch: str) -> None:
    """How each ended is known all the same, they run side by side, and others run meanwhile."""
    fake_ctl(short_folder, f"sleep 0.3; case $* in *bad*) exit 9 ;; esac; echo '{job(kind='succeeded')}'", monkeypatch)
    script = textwrap.dedent(GREENLETS).format(patch=patch, folder=short_folder)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[7, '`orbd-ctl export` ended with 9: ', 7] True\n", "")


def test_a_child_that_somebody_else_collects(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code was written down; where even that is missing, what it said counts, and to have said nothing is no success."""
    spawn = os.posix_spawn

    def spawn_and_collect(*args: Any, **kwargs: Any) -> int:
        pid = spawn(*args, **kwargs)
        os.waitpid(pid, 0)
        return pid

    monkeypatch.setattr(os, "posix_spawn", spawn_and_collect)
    fake_ctl(short_folder, "echo who knows >&2; exit 9", monkeypatch)
    with pytest.raises(errors.CtlFailed, match="ended with 9: who knows"):
        anywhere.export_machine("web", "x")
    killed = "kill -9 $PPID; kill -9 $$"
    fake_ctl(short_folder, f"echo '{job(kind='succeeded')}'; {killed}", monkeypatch)
    assert anywhere.export_machine("web", "x") is not None
    fake_ctl(short_folder, f"echo who knows >&2; {killed}", monkeypatch)
    with pytest.raises(errors.CtlFailed, match="nobody can say how: who knows"):
        anywhere.export_machine("web", "x")


def test_the_children_of_others_stay_theirs(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own calls do not make gevent collect what the program around us has started without it."""
    fake_ctl(short_folder, f"echo '{job(kind='succeeded')}'", monkeypatch)
    script = f"""
        import subprocess
        import gevent
        from orbd import Client
        client = Client("{short_folder}/orbd.sock")
        gevent.spawn(client.export_machine, "web", "x").get()
        child = subprocess.Popen(["sh", "-c", "exit 7"])
        gevent.sleep(0.5)
        print(child.wait())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


@pytest.mark.needs_daemon
def test_a_machine_goes_through_an_archive(real: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in it is in its copy; both were jobs of the queue, with a record; the files are ours."""
    # The real tool is a child of ours here, so the stand-in finds its machines through our environment.
    for name, value in real.environment.items():
        monkeypatch.setenv(name, value)
    real.inside("web", "sh", "-c", "echo kept >/root/mark 2>/dev/null || echo kept >mark")
    mark = real.inside("web", "sh", "-c", "cat /root/mark 2>/dev/null || cat mark")
    monkeypatch.chdir(tmp_path)
    with Client(str(real.socket)) as client:
        exported = client.export_machine("web", "-web.tar.zst")
        assert exported is not None
        assert (exported.operation, exported.machine, exported.state) == ("export", "web", "ended")
        assert (tmp_path / "-web.tar.zst").stat().st_size > 0
        imported = client.import_machine(tmp_path / "-web.tar.zst", "web-copy")
        assert imported is not None
        assert imported.outcome is not None
        assert imported.outcome.changed
        assert "web-copy" in [machine.name for machine in client.machine_list().machines]
        assert real.inside("web-copy", "sh", "-c", "cat /root/mark 2>/dev/null || cat mark") == mark
        with pytest.raises(errors.MachineExists, match="already exists"):
            client.import_machine("-web.tar.zst", "web-copy")
        recorded = [record.operation for record in client.metrics_history(limit=50).records]
        client.machine_delete("web-copy")
    assert {"export", "import"} <= set(recorded)


@pytest.mark.needs_daemon
def test_an_interrupted_export_leaves_the_queue(real: RealDaemon, tmp_path: Path) -> None:
    """A deadline of gevent's while it waits for its place: the job is withdrawn, nothing is written, no child stays."""
    script = f"""
        import os
        import gevent
        from orbd import Client
        client = Client()
        client.queue_pause("web")
        try:
            with gevent.Timeout(1, False):
                client.export_machine("web", "{tmp_path}/x")
                print("exported")
            waiting = [job for job in client.job_list(operation="export").jobs if job.state != "ended"]
            print(waiting)
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no children")
        finally:
            client.queue_resume("web")
            client.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "ORBD_SOCKET": str(real.socket), "PATH": f"{real.ctl.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[]\nno children\n", "")
    assert not (tmp_path / "x").exists()
