"""The daemon's lifecycle with a Python client: start on demand, restart and upgrade."""

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


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Polls a condition, with a time limit."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


@pytest.fixture
def installed() -> Iterator[RealDaemon]:
    """A daemon whose binary can be replaced, with the machine ``web``."""
    with temporary_daemon(installed=True) as daemon:
        daemon.create("web")
        yield daemon


def test_pooled_connection_survives_an_upgrade(installed: RealDaemon) -> None:
    with Client(str(installed.socket), name="kept") as client:
        before = client.daemon_info()
        assert before.upgrade is None
        installed.install()
        # The daemon checks its binary when a client connects.
        with Client(str(installed.socket)) as other:
            other.daemon_info()
        wait_until("another instance answers", lambda: client.daemon_info().instance != before.instance)
        assert client.daemon_info().pid == before.pid
        assert [machine.name for machine in client.machine_list().machines] == ["web"]


def test_pooled_connection_to_a_restarted_daemon_is_replaced(installed: RealDaemon) -> None:
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


def test_deploy_continues_across_an_upgrade(installed: RealDaemon, tmp_path: Path) -> None:
    """Each step runs once, in order."""
    (tmp_path / "deploy.py").write_text(textwrap.dedent(DEPLOY))
    target = Target({**installed.environment}, lambda command: "", tmp_path)
    with Client(str(installed.socket)) as client:
        before = client.daemon_info()
        process = target.begin("@orbstack/web", "deploy.py")
        try:
            wait_until("the deploy runs", lambda: installed.spawns_in(installed.ledger())["run"] > 0)
            installed.install()

            def is_noticed() -> bool:
                with Client(str(installed.socket)) as fresh:
                    info = fresh.daemon_info()
                return info.upgrade is not None or info.instance != before.instance

            wait_until("the upgrade is noticed", is_noticed)
        finally:
            said = target.end(process)
        assert said.count("Success\n") == 12, said
        assert installed.inside("web", "cat", "/tmp/steps").split() == [str(number) for number in range(12)]
        wait_until("the new instance takes over", lambda: client.daemon_info().instance != before.instance)


def daemons(daemon: RealDaemon) -> list[int]:
    """Returns the process ids of all daemons for this socket, without their helpers."""
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
def test_ten_concurrent_clients_start_one_daemon(short_folder: Path) -> None:
    """Five command lines and five Python clients."""
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
            for one, _, stderr in ended:
                assert one.returncode == 0, stderr
            wait_until("the other daemons have exited", lambda: len(daemons(daemon)) == 1)
            assert {int(said) for _, said, _ in ended[::2]} == set(daemons(daemon))
            assert [json.loads(said)["machines"] for _, said, _ in ended[1::2]] == [[]] * 5
        finally:
            subprocess.run([daemon.ctl, "daemon", "stop"], env=environment, check=True, capture_output=True)


@pytest.mark.parametrize("how", ["file", "variable"])
def test_autostart_setting_prevents_the_start(short_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """For the command line and for Python."""
    ctl = binary("ORBD_CTL_BIN", "orbd-ctl")
    monkeypatch.setenv("ORBD_CTL", str(ctl))
    monkeypatch.setenv("HOME", str(short_folder))
    monkeypatch.setenv("ORBD_SOCKET", str(short_folder / "orbd.sock"))
    monkeypatch.delenv("ORBD_AUTOSTART", raising=False)
    if how == "file":
        config = short_folder / "config.toml"
        config.write_text("autostart = false\n")
        monkeypatch.setenv("ORBD_CONFIG", str(config))
    else:
        monkeypatch.setenv("ORBD_AUTOSTART", "0")
    with pytest.raises(
        errors.DaemonNotRunning, match="autostart" if how == "file" else "ORBD_AUTOSTART turns starting on demand off"
    ):
        Client().machine_list()
    done = subprocess.run([ctl, "list"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "orbd is not running" in done.stderr
    assert not (short_folder / "orbd.sock").exists()
