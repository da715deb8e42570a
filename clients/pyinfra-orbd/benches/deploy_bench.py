"""Times a deploy through ``@orbstack`` against the same deploy through ``@nothing``.

What counts is the whole process, as a user waits for it. Both are run in turn, in one go, so that whatever else the computer does
falls on both; medians are compared. How many ``orbctl`` were spawned and how they overlapped is read from the stand-in's ledger.

    python benches/deploy_bench.py                      ten machines, twenty commands, an orbctl that takes no time
    python benches/deploy_bench.py --latency 150        each orbctl takes 150 ms
    python benches/deploy_bench.py --orbctl PATH        an orbctl of your own, with machines of its own
    python benches/deploy_bench.py --deploy files       directories, lines, uploads and commands instead of commands alone
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
from pathlib import Path
from typing import Any

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


def main() -> None:
    """Runs the comparison and prints it."""
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="orbd-bench-", dir="/tmp"))
    if options.orbctl:
        os.environ["ORBCTL_SIM_BIN"] = options.orbctl
    daemon = RealDaemon(folder, latency=f"{options.latency},create=0,start=0", isolation=options.isolation)
    try:
        if not options.orbctl:
            daemon.create(*(f"m{number}" for number in range(options.hosts)))
        deploy = folder / "deploy.py"
        deploy.write_text(DEPLOYS[options.deploy].format(operations=options.operations))
        ours: list[float] = []
        theirs: list[float] = []
        deployed(f"@nothing/{options.hosts}", deploy, daemon)
        deployed("@orbstack", deploy, daemon)
        begun = len(daemon.ledger()) if daemon.ledger_file.exists() else 0
        for run in range(options.runs):
            theirs.append(deployed(f"@nothing/{options.hosts}", deploy, daemon))
            ours.append(deployed("@orbstack", deploy, daemon))
            print(f"run {run + 1}: nothing {theirs[-1]:.3f} s, orbstack {ours[-1]:.3f} s, ratio {ours[-1] / theirs[-1]:.3f}")
        nothing, orbstack = statistics.median(theirs), statistics.median(ours)
        paired = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        print(f"median: nothing {nothing:.3f} s, orbstack {orbstack:.3f} s; median of the paired ratios {paired:.3f}")
        if daemon.ledger_file.exists():
            tell(daemon.ledger()[begun:], options.runs, orbstack)
    finally:
        daemon.close()
        shutil.rmtree(folder, ignore_errors=True)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--operations", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--latency", default="0", help="ORBCTL_SIM_LATENCY, as in 150 or run=150,list=20")
    parser.add_argument("--isolation", default="dir", help="ORBCTL_SIM_ISOLATION; commands of this deploy are harmless")
    parser.add_argument("--deploy", choices=DEPLOYS, default="shell")
    parser.add_argument("--orbctl", help="another orbctl than orbctl-sim, with machines of its own")
    return parser.parse_args()


def deployed(target: str, deploy: Path, daemon: RealDaemon) -> float:
    """Runs one deploy and returns its seconds."""
    environment = {**os.environ, "ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", target, str(deploy)],
        env=environment,
        cwd=deploy.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - begun
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return took


def tell(events: list[dict[str, Any]], runs: int, seconds: float) -> None:
    """Prints spawns, overlaps and the time in which any orbctl ran."""
    spawns = Counter(event["command"] for event in events if event["event"] == "start")
    print(f"spawns per deploy: {sum(spawns.values()) / runs:g} ({dict(spawns)} in {runs})")
    machines = {event["id"]: event.get("machine") for event in events if event["event"] == "start"}
    running: set[str] = set()
    most = 0
    most_per_machine = 0
    busy = 0
    since = 0
    for event in events:
        if event["event"] == "start":
            if not running:
                since = event["monotonic_ns"]
            running.add(event["id"])
            most = max(most, len(running))
            most_per_machine = max(most_per_machine, *Counter(machines[one] for one in running).values())
        elif event["event"] == "end" and event["id"] in running:
            running.remove(event["id"])
            if not running:
                busy += event["monotonic_ns"] - since
    print(f"at once: {most} in all, {most_per_machine} on one machine")
    print(f"some orbctl ran for {busy / runs / 1e9:.3f} s of {seconds:.3f} s")


if __name__ == "__main__":
    main()
