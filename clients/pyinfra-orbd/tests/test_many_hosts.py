"""Deploys to many machines with a real daemon: spawned processes, concurrency, and recovery after a crash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orbd import Client
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon

Span = tuple[int, int]

CHANGES = {"create", "start", "stop", "restart", "delete", "rename", "clone"}


ALONE = {"exec_channel": "off"}
"""These tests count and wait for the ``orbctl run`` of each command."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[RealDaemon]:
    """Twenty machines that are directories; each command takes 20 ms."""
    with temporary_daemon(isolation="dir", latency="0,run=20,start=300,stop=50", config=ALONE) as daemon:
        daemon.create(*(f"m{number}" for number in range(20)))
        yield daemon


def target_of(daemon: RealDaemon, cwd: Path) -> Target:
    return Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", cwd)


def spans(events: list[dict[str, Any]], begin: str, end: str, commands: set[str]) -> dict[str, list[Span]]:
    """Returns for each machine the times during which such commands ran."""
    begun = {event["id"]: event for event in events if event["event"] == begin and event["command"] in commands}
    found = defaultdict(list)
    for event in events:
        if event["event"] == end and event["id"] in begun:
            found[begun[event["id"]]["machine"]].append((begun[event["id"]]["monotonic_ns"], event["monotonic_ns"]))
    return {machine: sorted(times) for machine, times in found.items()}


def overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_deploy_spawns_one_list_and_one_run_per_command(fleet: RealDaemon, tmp_path: Path) -> None:
    """And the hosts run concurrently."""
    (tmp_path / "deploy.py").write_text(
        "from pyinfra.operations import server\nfor n in range(20):\n    server.shell(commands=[f'echo {n}'])\n"
    )
    with Client(str(fleet.socket)) as client:
        client.cache_invalidate()
    before = len(fleet.ledger())
    target_of(fleet, tmp_path).pyinfra(",".join(f"@orbstack/m{number}" for number in range(10)), "deploy.py")
    events = fleet.ledger()[before:]
    assert RealDaemon.spawns_in(events) == {"list": 1, "run": 200}
    runs = spans(events, "start", "end", {"run"})
    assert {machine: len(times) for machine, times in runs.items()} == {f"m{number}": 20 for number in range(10)}
    # PyInfra runs one command of a host at a time, so only commands of different hosts overlap.
    assert not any(overlap(one, other) for times in runs.values() for one, other in pairwise(times))
    assert sum(overlap(one, other) for one in runs["m0"] for other in runs["m1"]) > 5


def test_concurrent_deploys_start_each_machine_in_turn(fleet: RealDaemon, tmp_path: Path) -> None:
    """Changes of one machine never overlap, changes of different machines do."""
    names = [f"m{number}" for number in range(4)]
    for name in names:
        fleet.sim("stop", name)
    with Client(str(fleet.socket)) as client:
        client.cache_invalidate()
    before = len(fleet.ledger())
    target = target_of(fleet, tmp_path)
    words = (",".join(f"@orbstack/{name}" for name in names), "server.shell", "uname")
    # Two deploys at the same time, so that each machine is started twice.
    processes = [target.begin(*words), target.begin(*words)]
    for process in processes:
        target.end(process)
    events = fleet.ledger()[before:]
    changes = spans(events, "work_start", "work_end", CHANGES)
    assert changes.keys() == set(names)
    for times in changes.values():
        assert not any(overlap(one, other) for one, other in pairwise(times))
    assert any(overlap(one, other) for one in changes["m0"] for other in changes["m1"] + changes["m2"] + changes["m3"])
    spawns = RealDaemon.spawns_in(events)
    assert spawns["run"] == 8
    # The second deploy may also request a start that is no longer needed, but there is no third one.
    assert 4 <= spawns["start"] <= 8
    assert spawns.keys() <= {"list", "start", "run"}


def test_twenty_hosts_run_concurrently_through_the_api(fleet: RealDaemon) -> None:
    """Connect, commands, files and facts, without monkey patching."""
    script = """
        import io, time
        from pyinfra.api import Config, Inventory, State
        from pyinfra.api.connect import connect_all, disconnect_all
        from pyinfra.api.facts import get_facts
        from pyinfra.api.operation import add_op
        from pyinfra.api.operations import run_ops
        from pyinfra.facts.server import Home
        from pyinfra.operations import files, server

        inventory = Inventory((["@orbstack"], {}))
        state = State(inventory, Config())
        connect_all(state)
        homes = get_facts(state, Home)
        add_op(state, server.shell, commands=["sleep 1"])
        add_op(state, files.put, src=io.StringIO("content"), dest="put")
        begun = time.monotonic()
        run_ops(state)
        took = time.monotonic() - begun
        disconnect_all(state)
        print(len(set(homes.values())), sum(state.results[host].success_ops for host in inventory), took < 10)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(script)],
        env={"ORBD_SOCKET": str(fleet.socket), "ORBD_AUTOSTART": "0", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("20 40 True\n", "")


def test_killed_daemon_fails_all_hosts_and_the_next_one_ends_the_commands(tmp_path: Path) -> None:
    """The next daemon reports their jobs as interrupted."""
    (tmp_path / "deploy.py").write_text(
        textwrap.dedent("""
            from pyinfra.operations import server
            server.shell(name="first", commands=["echo one"])
            server.shell(name="second", commands=["exec sleep 300"])
            server.shell(name="third", commands=["echo three"])
        """)
    )
    with temporary_daemon(isolation="dir", config=ALONE) as daemon:
        daemon.create("web", "db", "cache")
        target = target_of(daemon, tmp_path)
        process = target.begin("@orbstack", "deploy.py")
        wait_until(lambda: RealDaemon.spawns_in(daemon.ledger())["run"] == 6)
        daemon.kill()
        begun = time.monotonic()
        said = target.end(process, code=1, seconds=30)
        assert time.monotonic() - begun < 10
        print(said)
        for name in ("web", "db", "cache"):
            assert re.search(rf"\[{name}\] .*orbd closed the connection before the answer was complete", said)
        assert "third" not in said.partition("Starting operation: second")[2].partition("Results")[0]

        daemon.process = daemon.start()
        with Client(str(daemon.socket)) as client:
            left = client.job_list(operation="run").jobs
            assert sorted(job.machine or "" for job in left) == ["cache", "db", "web"]
            # The commands of the previous instance are ended and reported as interrupted; jobs that they blocked run.
            ended = [client.job_wait(job.job_id, timeout_ms=15_000) for job in left]
            assert [job.outcome and job.outcome.kind for job in ended] == ["interrupted"] * 3
            starts = [event for event in daemon.ledger() if event["event"] == "start"]
            pids = [event["pid"] for event in starts if "exec sleep 300" in " ".join(event["args"])]
            assert len(pids) == 3
            wait_until(lambda: not any(is_alive(pid) for pid in pids))
            assert client.machine_run("web", ["true"]).exit_code == 0
            assert client.machine_restart("web").state == "ended"
        # The hosts work again without any manual fix.
        target.pyinfra("@orbstack", "server.shell", "uname")


def test_machine_deleted_during_a_deploy_fails_only_its_host(tmp_path: Path) -> None:
    """And runs no further command."""
    (tmp_path / "deploy.py").write_text(
        textwrap.dedent("""
            import io
            from pyinfra.operations import files, server
            server.shell(name="first", commands=["echo one"])
            server.shell(name="second", commands=["while ! test -e go; do sleep 0.05; done"])
            files.put(name="third", src=io.StringIO("three"), dest="third")
        """)
    )
    with temporary_daemon(isolation="dir", config=ALONE) as daemon:
        daemon.create("web", "db", "cache")
        target = target_of(daemon, tmp_path)
        process = target.begin("@orbstack", "deploy.py")
        wait_until(lambda: RealDaemon.spawns_in(daemon.ledger())["run"] == 6)
        with Client(str(daemon.socket)) as client:
            client.machine_stop("db", force=True)
            client.machine_delete("db")
        for name in ("web", "cache"):
            daemon.inside(name, "touch", "go")
        said = target.end(process, code=1, seconds=60)
        assert re.search(r"\[db\]\s.*was cancelled while it ran: preempted by job \d+ \(stop db\)", said), said
        assert "Traceback" not in said
        assert [daemon.inside(name, "cat", "third") for name in ("web", "cache")] == ["three", "three"]
        asked = [event for event in daemon.ledger() if event["event"] == "start" and event["command"] == "run"]
        assert sum(event["machine"] == "db" for event in asked) == 2
        # The next run does not include the deleted machine.
        assert "db" not in target.pyinfra("@orbstack", "server.shell", "uname")


def test_hundred_hosts_share_one_list_call(tmp_path: Path) -> None:
    """From the command line, with a file and a command each."""
    (tmp_path / "deploy.py").write_text(
        textwrap.dedent("""
            import io
            from pyinfra import host
            from pyinfra.operations import files, server
            files.put(name="put", src=io.StringIO(host.name), dest="put")
            server.shell(name="shell", commands=["cat put >>said"])
        """)
    )
    names = [f"h{number}" for number in range(100)]
    with temporary_daemon(isolation="dir", config=ALONE) as daemon:
        daemon.create(*names)
        before = len(daemon.ledger())
        said = target_of(daemon, tmp_path).pyinfra("@orbstack", "deploy.py")
        spawns = RealDaemon.spawns_in(daemon.ledger()[before:])
        assert spawns["list"] == 1
        assert [daemon.inside(name, "cat", "said") for name in names[::9]] == names[::9]
        assert len(re.findall(r"\[h\d+\]\s+Success", said)) == 200


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)
