"""A real ``orbd`` with ``orbctl-sim``, isolated from the user's files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orbd import Client

TARGET = Path(__file__).resolve().parents[3] / "target" / "debug"


def binary(variable: str, name: str) -> Path:
    """Returns the path of a program: from the environment variable, else from the debug build."""
    path = Path(os.environ.get(variable) or TARGET / name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `cargo build --bins` at the project's root, or set {variable}")
    return path


class RealDaemon:
    """Runs the daemon in ``folder``; does not use any of the user's own files."""

    def __init__(
        self,
        folder: Path,
        *,
        latency: str = "0",
        isolation: str = "auto",
        config: Mapping[str, str] | None = None,
        script: Path | None = None,
        installed: bool = False,
    ) -> None:
        """Starts the daemon and waits until it answers.

        ``script`` is a script of failures for the simulator. ``installed`` runs a copy of the program, for :meth:`install`.
        """
        self.folder = folder
        self.program = binary("ORBD_BIN", "orbd")
        if installed:
            self.program = folder / "bin" / "orbd"
            self.program.parent.mkdir()
            self.install()
        self._words = [word for key, value in (config or {}).items() for word in ("--set", f"{key}={value}")]
        self.socket = folder / "orbd.sock"
        self.ledger_file = folder / "ledger.jsonl"
        self.orbctl = binary("ORBCTL_SIM_BIN", "orbctl-sim")
        self.ctl = binary("ORBD_CTL_BIN", "orbd-ctl")
        home = folder / "home"
        home.mkdir()
        self.environment = {
            "HOME": str(home),
            "USER": "dev",
            "PATH": f"{self.ctl.parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "ORBD_SOCKET": str(self.socket),
            "ORBD_ORBCTL": str(self.orbctl),
            "ORBD_CTL": str(self.ctl),
            "ORBD_STATE_DIR": str(folder / "state"),
            "ORBD_ALLOW_ROOT": "1",
            "ORBD_AUTOSTART": "0",
            "ORBCTL_SIM_HOME": str(folder / "sim"),
            "ORBCTL_SIM_LEDGER": str(self.ledger_file),
            "ORBCTL_SIM_LATENCY": latency,
            "ORBCTL_SIM_ISOLATION": isolation,
        }
        if script is not None:
            self.environment["ORBCTL_SIM_SCRIPT"] = str(script)
        if answers := os.environ.get("ORBCTL_SIM_ANSWERS"):
            # `make test-answers` runs the tests on a simulator that answers open questions in another way.
            self.environment["ORBCTL_SIM_ANSWERS"] = answers
        self.log = folder / "orbd.log"
        self.process = self.start()

    def install(self) -> None:
        """Replaces the running program's file with another one, as a package manager does."""
        replacement = self.program.with_name("orbd.new")
        # With a shell: a child forked by this process could inherit the file open for writing. The bytes at the end, which
        # nothing reads, make it another program.
        copy = 'cp "$1" "$2" && printf %s "$3" >>"$2"'
        program = binary("ORBD_BIN", "orbd")
        subprocess.run(["sh", "-c", copy, "sh", program, replacement, str(time.monotonic_ns())], check=True)
        replacement.replace(self.program)

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the daemon and waits until it answers."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [self.program, *self._words], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 15
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(self.socket)) != 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"orbd did not start: {self.log.read_text()}")
                time.sleep(0.005)
        return process

    def sim(self, *words: str) -> str:
        """Calls the simulator directly, like the OrbStack app or a bare ``orbctl``."""
        done = subprocess.run([self.orbctl, *words], env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(self, *names: str) -> None:
        """Creates machines, outside the daemon."""
        for name in names:
            self.sim("create", "ubuntu:24.04", name)
        with Client(str(self.socket), name="tests") as client:
            client.cache_invalidate()

    def inside(self, machine: str, *words: str) -> str:
        """Runs a command in a machine, outside the daemon."""
        return self.sim("run", "-m", machine, *words)

    def ledger(self) -> list[dict[str, Any]]:
        """Returns all events of all simulator invocations so far, in order."""
        if not self.ledger_file.exists():
            return []
        return [json.loads(line) for line in self.ledger_file.read_text().splitlines()]

    @staticmethod
    def spawns_in(events: list[dict[str, Any]]) -> Counter[str]:
        """Returns the number of invocations by command."""
        return Counter(event["command"] for event in events if event["event"] == "start")

    def kill(self) -> None:
        """Kills the daemon with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Shuts the daemon down gracefully."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def close(self) -> None:
        """Stops the daemon and removes the machines."""
        self.stop()
        subprocess.run([self.orbctl, "sim-cleanup"], env=self.environment, capture_output=True, timeout=60, check=False)


@contextmanager
def temporary_daemon(**options: Any) -> Iterator[RealDaemon]:
    """Starts a daemon in a directory whose path is short enough for a socket, and removes everything afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="orbd-", dir="/tmp"))
    daemon = None
    try:
        daemon = RealDaemon(folder, **options)
        yield daemon
    finally:
        if daemon is not None:
            daemon.close()
        shutil.rmtree(folder, ignore_errors=True)
