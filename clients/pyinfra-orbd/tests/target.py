"""The programs around the package: PyInfra's own command line in front of a machine, and an ``orbd-ctl`` of our making."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def fake_ctl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an ``orbd-ctl`` first on PATH."""
    program = folder / "orbd-ctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("ORBD_AUTOSTART", raising=False)


class Target:
    """The machine ``web``, and PyInfra in front of it."""

    def __init__(self, environment: dict[str, str], inside: Callable[[str], str], cwd: Path) -> None:
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8", **environment}
        self.inside = inside
        self.cwd = cwd

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Starts PyInfra."""
        return subprocess.Popen(
            [sys.executable, "-m", "pyinfra", "-y", *words],
            env=self.environment,
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def end(self, process: subprocess.Popen[str], code: int = 0, seconds: float = 120) -> str:
        """Waits for PyInfra's end and returns everything that it said."""
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            raise AssertionError(f"PyInfra hangs: {said}") from None
        assert process.returncode == code, said
        assert "Traceback" not in said, said
        return re.sub(r"\x1b\[[0-9;]*m", "", said)

    def pyinfra(self, *words: str, code: int = 0) -> str:
        """Calls PyInfra and returns everything that it said."""
        return self.end(self.begin(*words), code)

    def changes(self, *words: str) -> None:
        """Runs an operation that has something to do."""
        said = self.pyinfra("-v", "@orbstack/web", *words)
        assert "[web] Success" in said, said

    def is_done(self, *words: str) -> None:
        """Runs an operation that has nothing to do."""
        said = self.pyinfra("-v", "@orbstack/web", *words)
        assert "[web] No changes" in said, said

    def holds(self, test: str) -> bool:
        """Says whether a shell's test holds inside the machine."""
        return self.inside(f"{test} && echo yes || echo no").strip() == "yes"

    def bytes_of(self, path: str) -> bytes:
        """Returns a file of the machine's."""
        return bytes.fromhex(self.inside(f"od -An -v -tx1 {path}").replace("\n", " "))
