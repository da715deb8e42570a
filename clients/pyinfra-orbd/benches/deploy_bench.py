"""Compares the duration of a deploy through ``@orbstack`` with the same deploy through ``@nothing``.

It measures the whole process. Both deploys run alternately, so that other load affects both, and the result is the median of the
ratios of the pairs. The CPU time of PyInfra's process is reported too, because it hardly depends on other load. The number of
spawned ``orbctl`` processes and their overlap come from the ledger of ``orbctl-sim``, and so does the critical path: the longest
chain of invocations that had to run one after another, which is that of one host.

    python benches/deploy_bench.py --instant            ten machines, twenty commands, a small compiled orbctl that does nothing
    python benches/deploy_bench.py                      orbctl-sim, which starts a real shell for each command
    python benches/deploy_bench.py --latency 150        each orbctl takes 150 ms
    python benches/deploy_bench.py --orbctl PATH        another orbctl, with its own machines
    python benches/deploy_bench.py --deploy files       directories, lines, uploads and commands instead of only commands
    python benches/deploy_bench.py --predecessor PYTHON also runs the deploy with pyinfra-orbstack, installed in that Python
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from real_daemon import RealDaemon

DEPLOYS = {
    "shell": """
from pyinfra.operations import server
for number in range({operations}):
    server.shell(name=f"shell {{number}}", commands=["true"])
""",
    "files": """
import io
from pyinfra.operations import files, server
for number in range({operations} // 4):
    files.directory(name=f"directory {{number}}", path=f"bench/directory-{{number}}")
    files.line(name=f"line {{number}}", path="bench/file", line=f"line {{number}}")
    files.put(name=f"put {{number}}", src=io.StringIO("content"), dest=f"bench/put-{{number}}")
    server.shell(name=f"shell {{number}}", commands=["true"])
""",
}


class Cost(NamedTuple):
    """Wall-clock and CPU seconds of one deploy."""

    seconds: float
    cpu: float


def main() -> None:
    """Runs the comparison and prints the result."""
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="orbd-bench-", dir="/tmp"))
    if options.orbctl:
        os.environ["ORBCTL_SIM_BIN"] = options.orbctl
    daemon = RealDaemon(folder, latency=f"{options.latency},create=0,start=0", isolation=options.isolation)
    try:
        if not options.orbctl:
            daemon.create(*(f"m{number}" for number in range(options.hosts)))
        if options.instant:
            make_instant(daemon)
        deploy = folder / "deploy.py"
        deploy.write_text(DEPLOYS[options.deploy].format(operations=options.operations))
        ours: list[Cost] = []
        theirs: list[Cost] = []
        before: list[Cost] = []
        spawned: Counter[str] = Counter()
        # Warm-up: compiles Python's bytecode caches and fills the daemon's cache.
        deployed(f"@nothing/{options.hosts}", deploy, daemon)
        deployed("@orbstack", deploy, daemon)
        if options.predecessor:
            make_path(daemon)
            deployed("@orbstack", deploy, daemon, options.predecessor)
        ledgers: list[list[dict[str, Any]]] = []
        for run in range(options.runs):
            theirs.append(deployed(f"@nothing/{options.hosts}", deploy, daemon))
            begun = len(daemon.ledger())
            ours.append(deployed("@orbstack", deploy, daemon))
            ledgers.append(daemon.ledger()[begun:])
            if options.predecessor:
                begun = len(daemon.ledger())
                before.append(deployed("@orbstack", deploy, daemon, options.predecessor))
                spawned += RealDaemon.spawns_in(daemon.ledger()[begun:])
            print(
                f"run {run + 1}: nothing {theirs[-1].seconds:.3f} s (cpu {theirs[-1].cpu:.3f}), "
                f"orbstack {ours[-1].seconds:.3f} s (cpu {ours[-1].cpu:.3f}), ratio {ours[-1].seconds / theirs[-1].seconds:.3f}"
            )
        for what, get in (("seconds", attrgetter("seconds")), ("cpu of pyinfra", attrgetter("cpu"))):
            ratios = sorted(get(one) / get(other) for one, other in zip(ours, theirs, strict=True))
            print(
                f"{what}: nothing {statistics.median(map(get, theirs)):.3f}, orbstack {statistics.median(map(get, ours)):.3f}; "
                f"paired ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), "
                f"best of each {min(map(get, ours)) / min(map(get, theirs)):.3f}"
            )
        if options.predecessor:
            ratios = sorted(one.seconds / other.seconds for one, other in zip(before, ours, strict=True))
            print(
                f"predecessor: {statistics.median(one.seconds for one in before):.3f} s, "
                f"{statistics.median(ratios):.2f} times ours ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
                f"spawns in {len(before)} deploys: {dict(spawned)}"
            )
        if not options.instant:
            print_invocations(ledgers, ours, theirs)
    finally:
        daemon.close()
        shutil.rmtree(folder, ignore_errors=True)


def make_instant(daemon: RealDaemon) -> None:
    """Replaces ``orbctl-sim`` with a compiled ``orbctl`` that returns the same answers without doing anything."""
    folder = daemon.folder / "instant"
    folder.mkdir()
    for command in (["list", "-f", "json"], ["status"], ["version"]):
        (folder / command[0]).write_text(daemon.sim(*command))
    compiled = folder / "orbctl"
    subprocess.run(["cc", "-O2", "-o", compiled, Path(__file__).with_name("instant_orbctl.c")], check=True)
    daemon.stop()
    daemon.environment.update(ORBD_ORBCTL=str(compiled), INSTANT_ORBCTL=str(folder))
    daemon.process = daemon.start()


def make_path(daemon: RealDaemon) -> None:
    """Creates a directory for PATH with the daemon's ``orbctl``."""
    folder = daemon.folder / "path"
    folder.mkdir()
    (folder / "orbctl").symlink_to(daemon.environment["ORBD_ORBCTL"])


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--operations", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--latency", default="0", help="ORBCTL_SIM_LATENCY, such as 150 or run=150,list=20")
    parser.add_argument("--isolation", default="dir", help="ORBCTL_SIM_ISOLATION; commands of this deploy are harmless")
    parser.add_argument("--deploy", choices=DEPLOYS, default="shell")
    parser.add_argument("--instant", action="store_true", help="a small compiled orbctl; needs cc")
    parser.add_argument(
        "--predecessor", help="a Python with pyinfra-orbstack; not with --instant, which does not support its calls"
    )
    parser.add_argument("--orbctl", help="an orbctl other than orbctl-sim, with its own machines")
    options = parser.parse_args()
    if options.predecessor and options.instant:
        parser.error("--predecessor needs orbctl-sim")
    return options


def deployed(target: str, deploy: Path, daemon: RealDaemon, python: str = sys.executable) -> Cost:
    """Runs one deploy and returns its cost."""
    environment = {**os.environ, "ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}
    # Otherwise Python would compile the editable package in each run, but not the installed ones.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if python != sys.executable:
        # The predecessor calls the `orbctl` on PATH.
        environment.update(daemon.environment, PATH=f"{daemon.folder / 'path'}:{os.environ['PATH']}")
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [python, "-m", "pyinfra", "-y", target, str(deploy)],
            env=environment,
            cwd=deploy.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise SystemExit(said.read().decode())
    return Cost(took, usage.ru_utime + usage.ru_stime)


def print_invocations(ledgers: list[list[dict[str, Any]]], ours: list[Cost], theirs: list[Cost]) -> None:
    """Prints spawns, overlaps, and the ratio of the total time to the critical path of the invocations."""
    spawns = Counter(event["command"] for events in ledgers for event in events if event["event"] == "start")
    print(f"spawns in {len(ledgers)} deploys: {dict(spawns)}")
    at_once = [most_at_once(events) for events in ledgers]
    print(f"at once: {max(most for most, _ in at_once)} in all, {max(most for _, most in at_once)} on one machine")
    paths, spans = zip(*map(critical_path, ledgers), strict=True)
    print(f"critical path of the invocations: {statistics.median(paths):.3f} s")
    without = [one.seconds - other.seconds for one, other in zip(ours, theirs, strict=True)]
    for what, times in (
        ("from the first invocation to the last one's end", spans),
        ("the whole process without PyInfra's own work", without),
        ("the whole process", [one.seconds for one in ours]),
    ):
        ratios = sorted(one / path for one, path in zip(times, paths, strict=True))
        print(f"    {what}: {statistics.median(ratios):.3f} times that ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def most_at_once(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Returns the maximum number of concurrent invocations, in total and on one machine."""
    machines = {event["id"]: event.get("machine") for event in events if event["event"] == "start"}
    running: set[str] = set()
    most = on_one = 0
    for event in events:
        if event["event"] == "start":
            running.add(event["id"])
            most = max(most, len(running))
            on_one = max(on_one, *Counter(machines[one] for one in running).values())
        elif event["event"] == "end":
            running.discard(event["id"])
    return most, on_one


def critical_path(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Returns the seconds of the longest chain of sequential invocations, and those from the first start to the last end."""
    begun = {event["id"]: event for event in events if event["event"] == "start"}
    spent: Counter[str | None] = Counter()
    for event in events:
        if event["event"] == "end" and event["id"] in begun:
            start = begun[event["id"]]
            spent[start.get("machine")] += event["monotonic_ns"] - start["monotonic_ns"]
    # Invocations without a machine, such as list, precede all others.
    path = spent.pop(None, 0) + max(spent.values())
    return path / 1e9, (events[-1]["monotonic_ns"] - events[0]["monotonic_ns"]) / 1e9


if __name__ == "__main__":
    main()
