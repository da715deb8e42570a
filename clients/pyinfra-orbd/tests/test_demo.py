"""The demo: what its three numbers say, and that it leaves nothing behind, also when it is interrupted.

Also the README's commands for the stand-in, which use the programs of the demo.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from real_daemon import binary
from test_dropin import PYTHON

pytestmark = pytest.mark.needs_daemon

ROOT = Path(__file__).resolve().parents[3]

RUN = ROOT / "demo" / "run.sh"


#: Faster than the demo. Where the initial setup matters, it is longer, so that a slow computer does not miss it.
LATENCY = "20,create=500,stop=300,setup="


def environment(folder: Path, *, predecessor: Path = PYTHON.parents[1], setup_ms: int = 500) -> dict[str, str]:
    """The environment of the demo, with the programs of this build. Everything that it writes is below ``folder``."""
    programs = {binary(variable, name).parent for variable, name in (("ORBD_BIN", "orbd"), ("ORBD_CTL_BIN", "orbd-ctl"))}
    assert len(programs) == 1, "the demo needs its programs in one folder"
    return {
        **os.environ,
        "BIN": str(programs.pop()),
        "VENV": sys.prefix,
        "VENV_PREDECESSOR": str(predecessor),
        "TMPDIR": str(folder),
        "ORBCTL": "sim",
        "ORBCTL_SIM_LATENCY": f"{LATENCY}{setup_ms}",
    }


@contextmanager
def running_demo(folder: Path, *, setup_ms: int = 500) -> Iterator[subprocess.Popen[str]]:
    """The running demo."""
    process = subprocess.Popen(
        [RUN],
        env=environment(folder, setup_ms=setup_ms),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A process group of its own, to which a test sends what a terminal sends on Ctrl-C.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)


def assert_nothing_is_left(folder: Path) -> None:
    """Checks files and, where the kernel shows their environment, processes."""
    assert list(folder.iterdir()) == []
    left = [process for process in Path("/proc").glob("[0-9]*") if str(folder) in environment_of(process)]
    assert left == [], [(process / "cmdline").read_bytes() for process in left]


def environment_of(process: Path) -> str:
    """The environment of a process as text; nothing if it has exited or belongs to another user."""
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_demo_loses_a_machine_without_orbd_and_nothing_with_it(short_folder: Path) -> None:
    with running_demo(short_folder, setup_ms=6000) as demo:
        said, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, said

    def row(label: str) -> list[str]:
        found = re.search(rf"^{label}  +(.+)$", said, re.MULTILINE)
        assert found, said
        return re.split("  +", found[1])

    assert row("machines lost when two scripts met") == ["1 of 1", "0 of 1"]
    assert row("operations lost at kill -9") == ["-", "0 of 3"]
    without, through = map(float, row(r"seconds for the deploy on \d+ machines"))
    assert without > 0
    assert through > 0
    # B says for whom it waits, and PyInfra really deployed.
    assert re.search(r"waiting for job \d+ \(create web\) of orbctl", said), said
    assert "Both left the same files in each machine." in said
    # The script that knows nothing of orbd is in orbd's list of jobs.
    assert re.search(r"^ *\d+ +ended +run +orbd-\d +orbctl ", said, re.MULTILINE), said
    assert "Left behind: nothing." in said
    assert_nothing_is_left(short_folder)


@pytest.mark.parametrize("moment", ["A $ orbctl create", "$ pyinfra @orbstack/bare", "$ kill -9"])
def test_interrupted_demo_leaves_nothing_behind(short_folder: Path, moment: str) -> None:
    with running_demo(short_folder) as demo:
        assert demo.stdout is not None
        assert any(line.startswith(moment) for line in demo.stdout)
        os.killpg(demo.pid, signal.SIGINT)
        said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said
    assert "Left behind: nothing." in said
    assert_nothing_is_left(short_folder)


def run_to_end(words: list[str | Path], env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program with both output streams as one."""
    return subprocess.run(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def test_failed_demo_shows_its_logs_and_leaves_nothing_behind(short_folder: Path, tmp_path: Path) -> None:
    """Here the first deploy fails."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("python", "exit 0"), ("pyinfra", "echo 'no such connector' >&2; exit 3")):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    failed = run_to_end([RUN], environment(short_folder, predecessor=tmp_path), tmp_path)
    assert failed.returncode == 3, failed.stdout
    assert "-- deploy-bare.log\nno such connector\n" in failed.stdout
    assert "-- log/orbd.log\n" in failed.stdout
    assert_nothing_is_left(short_folder)


def test_readme_commands_run_orbd_with_the_stand_in(short_folder: Path, tmp_path: Path) -> None:
    _, _, section = (ROOT / "README.md").read_text().partition("## Try it without OrbStack")
    block = re.search(r"^```sh\n(.+?)^```$", section, re.MULTILINE | re.DOTALL)
    removal = re.search(r"^To remove everything again: `(.+)`$", section, re.MULTILINE)
    assert block
    assert removal
    assert block[1].count("\n") == 3
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "demo").symlink_to(binary("ORBD_BIN", "orbd").parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORBD_", "ORBCTL_"))}
    env = {**kept, "TMPDIR": str(short_folder), "HOME": str(tmp_path), "ORBD_ALLOW_ROOT": "1"}
    done = run_to_end(["sh", "-e", "-c", f"{block[1]}{removal[1]}"], env, tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^created web", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ *\d+ +ended +run +web ", done.stdout, re.MULTILINE), done.stdout
    assert_nothing_is_left(short_folder)
