"""Concurrent hosts with gevent: PyInfra's command line patches the standard library, its API does not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from fake_daemon import FakeDaemon, Peer, ShellMachines

PATCHED = "from gevent import monkey; monkey.patch_all()"


def python(script: str, daemon: FakeDaemon) -> list[str]:
    """Runs a script in a separate Python with resource warnings as errors, and returns the lines of its stdout."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(script)],
        env={"ORBD_SOCKET": str(daemon.path), "ORBD_AUTOSTART": "0", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("patch", ["", PATCHED], ids=["unpatched", "patched"])
@pytest.mark.parametrize("early", ["", "client.machine_list()"], ids=["fresh", "used before the hub"])
def test_greenlets_use_separate_connections_and_the_pool_reuses_them(
    daemon: FakeDaemon, machines: ShellMachines, patch: str, early: str
) -> None:
    lock_step: list[str] = []

    def slow(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        lock_step.append(params["machine"])
        deadline = time.monotonic() + 10
        # No call is answered before all have arrived, so sequential calls would never finish.
        while len(lock_step) % 20 and time.monotonic() < deadline:
            time.sleep(0.005)
        return {"text": params["machine"]}

    daemon.handlers["machine.logs"] = slow
    script = f"""
        {patch}
        from orbd import Client
        client = Client()
        {early}
        import gevent
        from gevent.pool import Pool
        for _ in range(2):
            names = [f"m{{number}}" for number in range(20)]
            print(Pool(20).map(client.machine_logs, names) == names)
        client.close_idle()
    """
    assert python(script, daemon) == ["True", "True"]
    plain = 1 if early and not patch else 0
    assert daemon.accepted == 20 + plain


@pytest.mark.parametrize("patch", ["", PATCHED], ids=["unpatched", "patched"])
def test_interrupted_greenlet_does_not_affect_others(daemon: FakeDaemon, machines: ShellMachines, patch: str) -> None:
    script = f"""
        {patch}
        import gevent
        from orbd import Client
        client = Client()
        def hurried():
            with gevent.Timeout(0.2, False):
                client.machine_run("web", ["sleep", "30"])
            return client.machine_run("web", ["echo", "after"]).output[0].text
        def patient():
            return client.machine_run("db", ["sh", "-c", "sleep 0.5; echo patient"]).output[0].text
        both = [gevent.spawn(patient), gevent.spawn(hurried)]
        gevent.joinall(both)
        print([one.get() for one in both])
        client.close_idle()
    """
    assert python(script, daemon) == [r"['patient\n', 'after\n']"]
    assert machines.running() == 0


@pytest.mark.parametrize("patch", ["", PATCHED], ids=["unpatched", "patched"])
def test_twenty_hosts_run_concurrently_through_pyinfra(daemon: FakeDaemon, tmp_path: Path, patch: str) -> None:
    """Connect, facts, operations and files."""
    names = [f"m{number}" for number in range(20)]
    machines = ShellMachines(daemon, tmp_path / "machines", *names)
    script = f"""
        {patch}
        import io, time
        from pyinfra.api import Config, Inventory, State
        from pyinfra.api.connect import connect_all, disconnect_all
        from pyinfra.api.operation import add_op
        from pyinfra.api.operations import run_ops
        from pyinfra.operations import files, server

        inventory = Inventory((["@orbstack"], {{}}))
        state = State(inventory, Config())
        connect_all(state)
        add_op(state, server.shell, commands=["sleep 0.5; pwd >where"])
        add_op(state, files.put, src=io.StringIO("content"), dest="put")
        begun = time.monotonic()
        run_ops(state)
        took = time.monotonic() - begun
        disconnect_all(state)
        print(len(inventory), sum(state.results[host].success_ops for host in inventory), took < 8)
    """
    assert python(script, daemon) == ["20 40 True"]
    for name in names:
        assert (machines.home(name) / "where").read_text() == f"{machines.home(name)}\n"
        assert (machines.home(name) / "put").read_text() == "content"
    assert daemon.accepted <= 21


@pytest.mark.parametrize("patch", ["", PATCHED], ids=["unpatched", "patched"])
def test_no_socket_leaks_from_dropped_clients_streams_threads_or_forks(
    daemon: FakeDaemon, machines: ShellMachines, patch: str
) -> None:
    script = f"""
        {patch}
        import os, threading
        import gevent
        from orbd import Client
        client = Client()
        client.machine_list()
        gevent.get_hub()
        gevent.spawn(client.machine_list).join()
        def elsewhere():
            gevent.sleep(0)
            client.machine_list()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        Client().machine_list()
        with Client() as closed:
            closed.machine_list()
        events = client.machine_run_follow("web", ["sleep", "30"])
        next(events)
        child = os.fork()
        print(len(client.machine_list().machines), flush=True)
        if child:
            os.waitpid(child, 0)
    """
    assert python(script, daemon) == ["2", "2"]
    deadline = time.monotonic() + 5
    while daemon.peers or machines.running():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_autostart_does_not_block_the_hub_and_starts_one_daemon(short_folder: Path) -> None:
    (short_folder / "orbd-ctl").write_text(f"#!/bin/sh\necho x >>{short_folder}/calls\nsleep 0.5\nexit 1\n")
    (short_folder / "orbd-ctl").chmod(0o755)
    script = """
        import gevent
        from orbd import Client, errors
        client = Client()
        def call():
            try:
                client.machine_list()
            except errors.DaemonNotRunning:
                return 1
        ticks = []
        def tick():
            while True:
                gevent.sleep(0.02)
                ticks.append(1)
        ticker = gevent.spawn(tick)
        ten = [gevent.spawn(call) for _ in range(10)]
        gevent.joinall(ten)
        print(sum(one.get() for one in ten), len(ticks) > 10)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"ORBD_SOCKET": str(short_folder / "s"), "PATH": f"{short_folder}:/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "10 True\n", done.stderr
    assert (short_folder / "calls").read_text() == "x\n"
