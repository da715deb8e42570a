"""PyInfra's command line with a machine, and a fake ``orbd-ctl``."""

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
    """Makes the client use a fake ``orbd-ctl``."""
    program = folder / "orbd-ctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ORBD_CTL", str(program))
    monkeypatch.delenv("ORBD_AUTOSTART", raising=False)


class Target:
    """Runs PyInfra's command line with the machine ``web``."""

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
        """Waits until PyInfra exits, and returns its output."""
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            raise AssertionError(f"PyInfra did not exit in time: {said}") from None
        assert process.returncode == code, said
        assert "Traceback" not in said, said
        return re.sub(r"\x1b\[[0-9;]*m", "", said)

    def pyinfra(self, *words: str, code: int = 0) -> str:
        """Runs PyInfra and returns its output."""
        return self.end(self.begin(*words), code)

    def changes(self, *words: str) -> None:
        """Runs an operation and checks that it changed something."""
        said = self.pyinfra("-v", "@orbstack/web", *words)
        assert "[web] Success" in said, said

    def is_done(self, *words: str) -> None:
        """Runs an operation and checks that it changed nothing."""
        said = self.pyinfra("-v", "@orbstack/web", *words)
        assert "[web] No changes" in said, said

    def holds(self, test: str) -> bool:
        """Returns whether a shell test succeeds inside the machine."""
        return self.inside(f"{test} && echo yes || echo no").strip() == "yes"

    def bytes_of(self, path: str) -> bytes:
        """Returns the content of a file in the machine."""
        return bytes.fromhex(self.inside(f"od -An -v -tx1 {path}").replace("\n", " "))
