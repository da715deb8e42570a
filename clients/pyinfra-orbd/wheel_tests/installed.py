"""Builds the two wheels, and installs them into homes that contain nothing else."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orbd import Client
from real_daemon import binary

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("python", "pyinfra-orbd")

WHEELHOUSE = Path(os.environ.get("ORBD_WHEELHOUSE") or PROJECT.parent / ".venv" / "wheelhouse")
"""Wheels of everything that ours need, so that no test needs the network."""

BASE_PYTHON = Path(getattr(sys, "_base_executable", sys.executable))
"""The interpreter outside of this virtual environment."""

Word = str | Path


def call(*words: Word, env: dict[str, str], cwd: Path | None = None, code: int = 0) -> str:
    """Runs a program that has to exit with ``code``; returns its output."""
    done = subprocess.run(words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said, said
    return said


def script(name: str) -> Path:
    """Returns the path of a program of this environment."""
    path = Path(sysconfig.get_path("scripts"), name)
    assert path.is_file(), f"{path} is missing: run `make test-wheel`"
    return path


def take_programs(folder: Path, *, extra: bytes = b"") -> Path:
    """Copies the built programs without their symbols, which are most of a debug build; and appends bytes that nothing reads."""
    folder.mkdir()
    for variable, name in (("ORBD_BIN", "orbd"), ("ORBD_CTL_BIN", "orbd-ctl")):
        program = folder / name
        shutil.copy(binary(variable, name), program)
        # Files that a release has stripped stay as they are.
        subprocess.run(["strip", "-x" if sys.platform == "darwin" else "-s", program], check=True)
        with program.open("ab") as file:
            file.write(extra)
    return folder


def build_wheels(folder: Path, programs: Path, version: str | None = None) -> Path:
    """Builds both wheels, as ``version`` instead of their own; returns their folder."""
    environment = {**os.environ, "ORBD_PROGRAMS": str(programs)}
    for name in PACKAGES:
        source = folder / name
        shutil.copytree(PROJECT / name, source, ignore=shutil.ignore_patterns("tests", "wheel_tests", "benches", ".*_cache"))
        if version is not None:
            manifest = source / "pyproject.toml"
            text = re.sub(r'^version = ".+"$', f'version = "{version}"', manifest.read_text(), flags=re.MULTILINE)
            manifest.write_text(re.sub(r'"orbd==.+?"', f'"orbd=={version}"', text))
        call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=source, env=environment)
    return folder / "dist"


class Home:
    """A user's home with OrbStack's tool, whose place orbctl-sim takes, and the running machine ``web``. Nothing is on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"HOME": str(folder), "ORBCTL_SIM_LATENCY": "0"}
        if os.geteuid() == 0:
            self.env["ORBD_ALLOW_ROOT"] = "1"
        self.socket = folder / ".orbd" / "orbd.sock"
        self.orbctl = folder / ".orbstack" / "bin" / "orbctl"
        self.orbctl.parent.mkdir(parents=True)
        self.orbctl.symlink_to(binary("ORBCTL_SIM_BIN", "orbctl-sim"))
        call(self.orbctl, "create", "ubuntu:24.04", "web", env=self.env)

    def close(self) -> None:
        """Stops the daemon and removes the machine."""
        self.stop()
        call(self.orbctl, "sim-cleanup", env=self.env)

    def stop(self) -> None:
        """Stops the daemon."""
        call(binary("ORBD_CTL_BIN", "orbd-ctl"), "daemon", "stop", env=self.env)

    def venv(self, name: str) -> Path:
        """Creates a virtual environment; returns the folder of its programs."""
        call(sys.executable, "-m", "venv", "--without-pip", self.folder / name, env=self.env)
        return self.folder / name / "bin"

    def pip(self, python: Path, wheels: Path, *words: Word) -> str:
        """Runs ``pip install`` for ``python``, without the network and without a compiler."""
        pip: list[Word] = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-compile", "--quiet"]
        return call(*pip, "--find-links", WHEELHOUSE, "--find-links", wheels, *words, env=self.env)

    def install(self, name: str, wheels: Path) -> Path:
        """Installs the connector into a new virtual environment; returns the folder of its programs."""
        programs = self.venv(name)
        # With uv, which takes a tenth of pip's time.
        uv: list[Word] = [script("uv"), "pip", "install", "--python", programs / "python", "--no-index"]
        call(*uv, "--find-links", WHEELHOUSE, "--find-links", wheels, "pyinfra-orbd", env=self.env)
        return programs

    def answers(self, *pyinfra: Word, **variables: str) -> None:
        """Runs a command in the machine with a PyInfra, and checks its output."""
        env = {**self.env, **variables}
        said = call(*pyinfra, "-y", "@orbstack/web", "exec", "--", "uname", "-a", env=env, cwd=self.folder)
        assert f"[web] {os.uname().sysname} " in re.sub(r"\x1b\[[0-9;]*m", "", said), said

    def client(self) -> Client:
        """Returns a client of the daemon, which has to run."""
        return Client(str(self.socket), name="tests")

    def program(self) -> Path:
        """Returns the file that the running daemon executes."""
        with self.client() as client:
            pid = client.daemon_info().pid
        link = Path(f"/proc/{pid}/exe")
        if link.is_symlink():
            return link.readlink()
        return Path(subprocess.check_output(["ps", "-o", "comm=", "-p", str(pid)], text=True).strip())

    def connect(self) -> socket.socket:
        """Opens a connection, which the daemon closes when it is replaced."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(120)
        connection.connect(str(self.socket))
        return connection


@contextmanager
def temporary_home() -> Iterator[Home]:
    """Creates a home whose path is short enough for a socket, and removes it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="orbd-", dir="/tmp")).resolve()
    home = Home(folder)
    try:
        yield home
    finally:
        home.close()
        shutil.rmtree(folder)
