"""Compares the duration of a deploy through ``@orbstack`` with the same deploy through ``@nothing``, and over SSH.

It measures the whole process. The deploys of all connectors alternate, so that other load affects each, and the result is the
median of the ratios of the rounds. The CPU time of PyInfra's process is reported too, because it hardly depends on other load.
The number of ``orbctl`` processes and their overlap come from the ledger of ``orbctl-sim``, and so does the critical path:
the longest chain of invocations that had to run one after another, which is that of one host.

    python benches/deploy_bench.py --instant            ten machines, twenty commands, a small compiled orbctl that does nothing
    python benches/deploy_bench.py                      orbctl-sim, which starts a real shell for each command
    python benches/deploy_bench.py --latency 150        each orbctl takes 150 ms
    python benches/deploy_bench.py --channels           also with orbd's resident channels
    python benches/deploy_bench.py --ssh                also PyInfra over a local OpenSSH server, which needs `sshd`
    python benches/deploy_bench.py --orbctl PATH        another orbctl, with its own machines
    python benches/deploy_bench.py --deploy files       directories, lines, uploads and commands instead of only commands
    python benches/deploy_bench.py --predecessor PYTHON also runs the deploy with pyinfra-orbstack, installed in that Python
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import socket
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

from orbd import Client
from real_daemon import RealDaemon

HERE = Path(__file__).resolve().parent

# Every run of a deploy has its own files, so that each run changes as much as the first one. The hosts of the SSH server share
# one home.
DEPLOYS = {
    "shell": """
from pyinfra.operations import server
for number in range({operations}):
    server.shell(name=f"shell {{number}}", commands=["true"])
""",
    "files": """
import io
from pyinfra import host
from pyinfra.operations import files, server
folder = f"{{host.data.get('bench_folder', 'bench')}}/{{host.data.bench_run}}"
for number in range({operations} // 4):
    files.directory(name=f"directory {{number}}", path=f"{{folder}}/directory-{{number}}")
    files.line(name=f"line {{number}}", path=f"{{folder}}/file", line=f"line {{number}}")
    files.put(name=f"put {{number}}", src=io.StringIO("content"), dest=f"{{folder}}/put-{{number}}")
    server.shell(name=f"shell {{number}}", commands=["true"])
""",
}


class Cost(NamedTuple):
    """Wall-clock and CPU seconds of one deploy."""

    seconds: float
    cpu: float


class Arm:
    """One way to run the deploy, and what it cost."""

    def __init__(self, name: str, *words: str, uses_orbctl: bool = True, python: str = sys.executable) -> None:
        """``words`` are PyInfra's arguments before the deploy."""
        self.name = name
        self.words = words
        self.uses_orbctl = uses_orbctl
        self.python = python
        self.costs: list[Cost] = []
        self.ledgers: list[list[dict[str, Any]]] = []


def main() -> None:
    """Runs the comparison and prints the result."""
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="orbd-bench-", dir="/tmp"))
    if options.orbctl:
        os.environ["ORBCTL_SIM_BIN"] = options.orbctl
    config = {"exec_channel": "auto"} if options.channels else {}
    daemon = RealDaemon(folder, latency=f"{options.latency},create=0,start=0", isolation=options.isolation, config=config)
    ssh = None
    try:
        if not options.orbctl:
            daemon.create(*(f"m{number}" for number in range(options.hosts)))
        if options.instant:
            make_instant(daemon)
        subprocess.run([*PIP_INSTALL, "--target", folder / "nothing", HERE / "nothing"], check=True)
        nothing = Arm("nothing", f"@nothing/{options.hosts}", uses_orbctl=False)
        orbd = Arm("one-shot" if options.channels else "orbstack", "@orbstack")
        arms = [nothing, orbd]
        if options.channels:
            orbd.words = ("@orbstack", "--data", "orbstack_channel=false")
            arms.append(Arm("channel", "@orbstack"))
        if options.ssh:
            ssh = SshServer.start(folder, options.hosts)
            if ssh is None:
                print("no arm for PyInfra over SSH: `sshd` is missing (Debian: apt-get install openssh-server)")
            else:
                arms.append(Arm("ssh", str(ssh.inventory), uses_orbctl=False))
        if options.predecessor:
            make_path(daemon)
            arms.append(Arm("predecessor", "@orbstack", python=options.predecessor))
        deploy = folder / "deploy.py"
        deploy.write_text(DEPLOYS[options.deploy].format(operations=options.operations))
        compare(arms, deploy, daemon, options.runs)
        print_costs(arms)
        for arm in arms:
            if arm.uses_orbctl and not options.instant:
                print_invocations(arm, nothing)
    finally:
        if ssh is not None:
            ssh.stop()
        daemon.close()
        shutil.rmtree(folder, ignore_errors=True)


PIP_INSTALL = [
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-deps",
    "--no-build-isolation",
    "--disable-pip-version-check",
]


def compare(arms: list[Arm], deploy: Path, daemon: RealDaemon, runs: int) -> None:
    """Runs the deploy once for each arm as a warm-up, which compiles Python's bytecode caches, and then in alternation."""
    with Client(str(daemon.socket), name="bench") as client:
        for run in range(runs + 1):
            for arm in arms:
                # Each deploy opens its own channels, and has the machine list from the daemon's cache.
                client.cache_invalidate()
                client.machine_list()
                begun = len(daemon.ledger())
                cost = deployed(arm, deploy, daemon, run)
                if run > 0:
                    arm.costs.append(cost)
                    arm.ledgers.append(daemon.ledger()[begun:])
            if run > 0:
                print(f"run {run}:", ", ".join(f"{arm.name} {arm.costs[-1].seconds:.3f} s" for arm in arms), flush=True)


def print_costs(arms: list[Arm]) -> None:
    """Prints medians, what each arm adds to the first one, and the median of the ratios of the runs."""
    for what, get in (("seconds", attrgetter("seconds")), ("cpu of pyinfra", attrgetter("cpu"))):
        print(f"{what}:")
        for arm in arms:
            costs = [get(cost) for cost in arm.costs]
            added = statistics.median(cost - get(other) for cost, other in zip(costs, arms[0].costs, strict=True))
            text = f"    {arm.name:12} {statistics.median(costs):.3f} ({min(costs):.3f} to {max(costs):.3f}), {added:+.3f}"
            for other in (arms[0], *(other for other in arms if other.name == "ssh")):
                if other is not arm:
                    ratios = sorted(cost / get(base) for cost, base in zip(costs, other.costs, strict=True))
                    text += f", {statistics.median(ratios):.3f} x {other.name} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            print(text)


class SshServer:
    """An OpenSSH server on 127.0.0.1 with its own keys, and an inventory of hosts that are all this computer."""

    def __init__(self, process: subprocess.Popen[bytes], inventory: Path) -> None:
        """Use :meth:`start`."""
        self.process = process
        self.inventory = inventory

    @classmethod
    def start(cls, parent: Path, hosts: int) -> SshServer | None:
        """Starts a server, as the user that runs this; returns None if ``sshd`` is missing."""
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if program is None:
            return None
        folder = parent / "ssh"
        folder.mkdir()
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host_key",
            "AuthorizedKeysFile": folder / "user_key.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "MaxStartups": 1000,
            # An empty home, so that no profile of the user slows the commands down, as in a new machine.
            "SetEnv": f"HOME={folder}",
            "Subsystem": "sftp internal-sftp",
        }
        (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
        data = {
            "ssh_hostname": "127.0.0.1",
            "ssh_port": port,
            "ssh_user": pwd.getpwuid(os.getuid()).pw_name,
            "ssh_key": str(folder / "user_key"),
            "ssh_known_hosts_file": str(folder / "known_hosts"),
            "ssh_allow_agent": False,
            "ssh_look_for_keys": False,
        }
        names = [f"s{number}" for number in range(hosts)]
        inventory = folder / "inventory.py"
        inventory.write_text(f"hosts = {[(name, {**data, 'bench_folder': str(folder / name)}) for name in names]!r}\n")
        if os.geteuid() == 0:
            # As root, sshd needs this folder, which a service manager creates otherwise.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log)
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            if process.poll() is not None:
                raise SystemExit(f"sshd did not start: {(folder / 'log').read_text()}")
            time.sleep(0.01)
        return cls(process, inventory)

    def stop(self) -> None:
        """Stops the server."""
        self.process.terminate()
        self.process.wait()


def make_instant(daemon: RealDaemon) -> None:
    """Replaces ``orbctl-sim`` with a compiled ``orbctl`` that returns the same answers without doing anything."""
    folder = daemon.folder / "instant"
    folder.mkdir()
    for command in (["list", "-f", "json"], ["status"], ["version"]):
        (folder / command[0]).write_text(daemon.sim(*command))
    compiled = folder / "orbctl"
    subprocess.run(["cc", "-O2", "-o", compiled, Path(__file__).with_name("instant_orbctl.c")], check=True)
    daemon.stop()
    daemon.environment["ORBD_ORBCTL"] = str(compiled)
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
    parser.add_argument("--channels", action="store_true", help="also with the daemon's resident channels")
    parser.add_argument("--ssh", action="store_true", help="also PyInfra over a local OpenSSH server; needs sshd")
    parser.add_argument("--instant", action="store_true", help="a small compiled orbctl; needs cc")
    parser.add_argument(
        "--predecessor", help="a Python with pyinfra-orbstack; not with --instant, which does not support its calls"
    )
    parser.add_argument("--orbctl", help="an orbctl other than orbctl-sim, with its own machines")
    options = parser.parse_args()
    if options.predecessor and options.instant:
        parser.error("--predecessor needs orbctl-sim")
    return options


def deployed(arm: Arm, deploy: Path, daemon: RealDaemon, run: int) -> Cost:
    """Runs one deploy and returns its cost."""
    environment = {**os.environ, "ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}
    # Otherwise Python would compile the editable package in each run, but not the installed ones.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if arm.python == sys.executable:
        environment["PYTHONPATH"] = str(daemon.folder / "nothing")
    else:
        # The predecessor calls the `orbctl` on PATH.
        environment.update(daemon.environment, PATH=f"{daemon.folder / 'path'}:{os.environ['PATH']}")
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [arm.python, "-m", "pyinfra", "-y", *arm.words, "--data", f"bench_run={arm.name}-{run}", str(deploy)],
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


def print_invocations(arm: Arm, nothing: Arm) -> None:
    """Prints spawns, overlaps, and the ratio of the total time to the critical path of the invocations."""
    spawns = Counter(event["command"] for events in arm.ledgers for event in events if event["event"] == "start")
    print(f"{arm.name}: spawns in {len(arm.ledgers)} deploys: {dict(spawns)}")
    if arm.name == "channel":
        # An invocation that serves many commands ends some time after the deploy.
        return
    at_once = [most_at_once(events) for events in arm.ledgers]
    print(f"    at once: {max(most for most, _ in at_once)} in all, {max(most for _, most in at_once)} on one machine")
    paths, spans = zip(*map(critical_path, arm.ledgers), strict=True)
    print(f"    critical path of the invocations: {statistics.median(paths):.3f} s")
    without = [one.seconds - other.seconds for one, other in zip(arm.costs, nothing.costs, strict=True)]
    for what, times in (
        ("from the first invocation to the last one's end", spans),
        ("the whole process without PyInfra's own work", without),
        ("the whole process", [one.seconds for one in arm.costs]),
    ):
        ratios = sorted(one / path for one, path in zip(times, paths, strict=True))
        print(f"        {what}: {statistics.median(ratios):.3f} times that ({ratios[0]:.3f} to {ratios[-1]:.3f})")


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
