"""The daemon's life under a Python client: started by whoever comes first, replaced while it serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orbd import Client, errors
from real_daemon import RealDaemon, binary, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon


def eventually(what: str, look: Callable[[], bool]) -> None:
    """Looks again and again, with a bound, for what tells nobody when it happens."""
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


@pytest.fixture
def installed() -> Iterator[RealDaemon]:
    """A daemon whose program can be replaced, with the machine ``web``."""
    with temporary_daemon(installed=True) as daemon:
        daemon.create("web")
        yield daemon


def test_a_kept_connection_outlives_an_upgrade(installed: RealDaemon) -> None:
    """A pooled connection that the old daemon accepted is answered by the new one, and its caller notices nothing."""
    with Client(str(installed.socket), name="kept") as client:
        before = client.daemon_info()
        assert before.upgrade is None
        installed.install()
        # A connection is when the daemon looks.
        with Client(str(installed.socket)) as other:
            other.daemon_info()
        eventually("another life answers", lambda: client.daemon_info().instance != before.instance)
        assert client.daemon_info().pid == before.pid
        assert [machine.name for machine in client.machine_list().machines] == ["web"]


def test_a_connection_that_did_not_outlive_the_daemon_is_not_used(installed: RealDaemon) -> None:
    """Where the daemon was restarted instead, an idle pooled connection is found closed and another one opened."""
    with Client(str(installed.socket), name="kept") as client:
        before = client.daemon_info()
        installed.stop()
        installed.process = installed.start()
        assert client.daemon_info().instance != before.instance


DEPLOY = """\
    from pyinfra.operations import server

    for number in range(12):
        server.shell(name=f"Step {number}", commands=[f"echo {number} >>/tmp/steps; sleep 0.2"])
"""


def test_a_deploy_goes_on_over_an_upgrade(installed: RealDaemon, tmp_path: Path) -> None:
    """The program is replaced while the deploy runs, and each step is made once, in order."""
    (tmp_path / "deploy.py").write_text(textwrap.dedent(DEPLOY))
    target = Target({**installed.environment}, lambda command: "", tmp_path)
    with Client(str(installed.socket)) as client:
        before = client.daemon_info()
        process = target.begin("@orbstack/web", "--data", "orbstack_user=root", "deploy.py")
        try:
            eventually("the deploy runs", lambda: installed.spawns_in(installed.ledger())["run"] > 0)
            installed.install()

            def is_noticed() -> bool:
                with Client(str(installed.socket)) as fresh:
                    info = fresh.daemon_info()
                return info.upgrade is not None or info.instance != before.instance

            eventually("the upgrade is noticed", is_noticed)
        finally:
            said = target.end(process)
        assert said.count("Success\n") == 12, said
        assert installed.inside("web", "cat", "/tmp/steps").split() == [str(number) for number in range(12)]
        eventually("the new one takes over", lambda: client.daemon_info().instance != before.instance)


def daemons(daemon: RealDaemon) -> list[int]:
    """Finds the daemons that serve, or want to serve, this socket; their helpers are not among them."""
    wanted = f"ORBD_SOCKET={daemon.socket}".encode()

    def is_one(process: Path) -> bool:
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            ours = wanted in (process / "environ").read_bytes()
        except OSError:
            return False
        return ours and os.path.basename(words[0]) == b"orbd" and b"--metrics-store" not in words

    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if is_one(process)]


@pytest.mark.skipif(sys.platform != "linux", reason="the daemons are found in /proc")
def test_ten_at_once_start_exactly_one(short_folder: Path) -> None:
    """Five command lines and five Python clients find no daemon, and all are served by the same."""
    with temporary_daemon() as daemon:
        daemon.stop()
        environment = {name: value for name, value in daemon.environment.items() if name != "ORBD_AUTOSTART"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        ask = "from orbd import Client; print(Client().daemon_info().pid)"
        calls = [[sys.executable, "-c", ask], [str(daemon.ctl), "list", "--json"]]
        begun = [
            subprocess.Popen(calls[number % 2], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for number in range(10)
        ]
        ended = [(one, *one.communicate(timeout=60)) for one in begun]
        try:
            for one, _, complaint in ended:
                assert one.returncode == 0, complaint
            eventually("those that came too late are gone", lambda: len(daemons(daemon)) == 1)
            assert {int(said) for _, said, _ in ended[::2]} == set(daemons(daemon))
            assert [json.loads(said)["machines"] for _, said, _ in ended[1::2]] == [[]] * 5
        finally:
            subprocess.run([daemon.ctl, "daemon", "stop"], env=environment, check=True, capture_output=True)


@pytest.mark.parametrize("how", ["file", "variable"])
def test_nobody_starts_it_where_that_is_turned_off(short_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """``autostart = false`` and ``ORBD_AUTOSTART=0`` hold for the command line and for Python alike."""
    ctl = binary("ORBD_CTL_BIN", "orbd-ctl")
    monkeypatch.setenv("PATH", f"{ctl.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(short_folder))
    monkeypatch.setenv("ORBD_SOCKET", str(short_folder / "orbd.sock"))
    monkeypatch.delenv("ORBD_AUTOSTART", raising=False)
    if how == "file":
        config = short_folder / "config.toml"
        config.write_text("autostart = false\n")
        monkeypatch.setenv("ORBD_CONFIG", str(config))
    else:
        monkeypatch.setenv("ORBD_AUTOSTART", "0")
    with pytest.raises(errors.DaemonNotRunning, match="autostart" if how == "file" else "ORBD_AUTOSTART forbids"):
        Client().machine_list()
    done = subprocess.run([ctl, "list"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "orbd is not running" in done.stderr
    assert not (short_folder / "orbd.sock").exists()
