"""Operations on local files, such as archives, which ``orbd-ctl`` opens while it holds a lease."""

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
    """A client without a daemon, for calls that only run ``orbd-ctl``."""
    return Client(str(short_folder / "orbd.sock"))


WORDS = r"""printf '%s\n' "$@" >"${0%/*}/words"; """


def words(folder: Path) -> list[str]:
    """Returns the args of the fake ``orbd-ctl``, without the common options."""
    said = (folder / "words").read_text().splitlines()
    assert said[:3] == ["--json", "--socket", str(folder / "orbd.sock")]
    return said[3:]


def test_options_are_single_args_and_operands_follow_a_double_dash(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no value is parsed as a flag."""
    fake_ctl(short_folder, f"{WORDS}echo '{job(kind='succeeded', changed=True)}'", monkeypatch)
    anywhere.export_machine("web", Path("-x.tar"), queue_timeout_ms=5000)
    assert words(short_folder) == ["export", "--queue-timeout=5000ms", "--", "web", "-x.tar"]
    anywhere.import_machine("/a.tar", "--all")
    assert words(short_folder) == ["import", "--name=--all", "--", "/a.tar"]
    anywhere.push_files("web", ["a", Path("b")], "/srv")
    assert words(short_folder) == ["push", "--machine=web", "--", "a", "b", "/srv"]
    anywhere.pull_files("web", ["/srv/a"], Path("here"))
    assert words(short_folder) == ["pull", "--machine=web", "--", "/srv/a", "here"]


def test_create_with_user_data_passes_all_options_to_orbd_ctl(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(TypeError, match="detach cannot be used with user_data"):
        anywhere.machine_create("box", "ubuntu", user_data="x", detach=True)


def test_orbctl_failure_has_the_exit_code_and_stderr(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code comes from the daemon, stderr from the child."""
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
def test_orbd_ctl_errors_have_the_same_classes_as_the_daemons(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch, kind: str, cls: type[errors.OrbdError]
) -> None:
    said = json.dumps({"error": {"code": 0, "message": "so it is", "data": {"kind": kind}}})
    fake_ctl(short_folder, f"echo '{said}'; exit 3", monkeypatch)
    with pytest.raises(cls, match="so it is") as caught:
        anywhere.export_machine("web", "x")
    assert type(caught.value) is cls


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error: unexpected argument' >&2; exit 2", "may be older.*unexpected argument"),
        ("echo oh dear >&2; exit 101", "`orbd-ctl export` exited with 101: oh dear"),
        ("kill -9 $$", "exited with 137"),
        ("echo '{half'; exit 1", "exited with 1"),
    ],
)
def test_orbd_ctl_failure_without_json_is_ctl_failed(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    """An ``orbd-ctl`` that is too old, crashes or is killed."""
    fake_ctl(short_folder, script, monkeypatch)
    with pytest.raises(errors.CtlFailed, match=message):
        anywhere.export_machine("web", "x")


def test_missing_orbd_ctl_is_named(no_ctl: Path, anywhere: Client) -> None:
    with pytest.raises(
        errors.CtlFailed, match="cannot open the files for import: orbd-ctl not found at /nonexistent/bin/orbd-ctl"
    ):
        anywhere.import_machine("x", "web")


def test_success_without_json_returns_none(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon went away while ``orbctl`` ran."""
    fake_ctl(short_folder, "exit 0", monkeypatch)
    assert anywhere.export_machine("web", "x") is None


def test_child_has_default_signal_handlers(short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ignores SIGPIPE; ``orbctl`` must not inherit that."""
    fake_ctl(short_folder, 'kill -PIPE $$; echo "survived" >&2; exit 1', monkeypatch)
    with pytest.raises(errors.CtlFailed, match="exited with 141"):
        anywhere.export_machine("web", "x")


GREENLETS = """
    {patch}
    import gevent, gevent.subprocess
    from orbd import Client, errors
    # From here on gevent's loop reaps every child of this process.
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
def test_exit_codes_are_known_although_gevent_reaps_the_children(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, patch: str
) -> None:
    """The calls run concurrently, and other greenlets run meanwhile."""
    fake_ctl(short_folder, f"sleep 0.3; case $* in *bad*) exit 9 ;; esac; echo '{job(kind='succeeded')}'", monkeypatch)
    script = textwrap.dedent(GREENLETS).format(patch=patch, folder=short_folder)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[7, '`orbd-ctl export` exited with 9: ', 7] True\n", "")


def test_exit_code_of_a_reaped_child_is_read_from_its_file(
    short_folder: Path, anywhere: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file is empty too, a JSON answer counts as success, and no answer as failure."""
    spawn = os.posix_spawn

    def spawn_and_collect(*args: Any, **kwargs: Any) -> int:
        pid = spawn(*args, **kwargs)
        os.waitpid(pid, 0)
        return pid

    monkeypatch.setattr(os, "posix_spawn", spawn_and_collect)
    fake_ctl(short_folder, "echo who knows >&2; exit 9", monkeypatch)
    with pytest.raises(errors.CtlFailed, match="exited with 9: who knows"):
        anywhere.export_machine("web", "x")
    killed = "kill -9 $PPID; kill -9 $$"
    fake_ctl(short_folder, f"echo '{job(kind='succeeded')}'; {killed}", monkeypatch)
    assert anywhere.export_machine("web", "x") is not None
    fake_ctl(short_folder, f"echo who knows >&2; {killed}", monkeypatch)
    with pytest.raises(errors.CtlFailed, match="could not determine the exit status of `orbd-ctl export`: who knows"):
        anywhere.export_machine("web", "x")


def test_calls_do_not_make_gevent_reap_other_children(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_export_and_import_preserve_the_machines_data(real: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are recorded jobs; the files belong to the user."""
    # orbctl-sim is a child of this process here, so it needs the simulator's environment variables.
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
def test_interrupted_export_is_cancelled_in_the_queue(real: RealDaemon, tmp_path: Path) -> None:
    """By ``gevent.Timeout`` while it waits: no file is written, and no child remains."""
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
