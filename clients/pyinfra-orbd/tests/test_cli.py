"""PyInfra's own command line, as a user calls it.

First the six cases that PyInfra tries on its local connector, in our words: what an operation does, and that it does nothing
the second time. Each runs against the daemon of our own making and against a real one; what happened is looked at inside the
machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_daemon import FakeDaemon, ShellMachines, machine
from real_daemon import RealDaemon


class Target:
    """The machine ``web``, and PyInfra in front of it."""

    def __init__(self, environment: dict[str, str], inside: Callable[[str], str], cwd: Path) -> None:
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8", **environment}
        self.inside = inside
        self.cwd = cwd

    def pyinfra(self, *words: str, code: int = 0) -> str:
        """Calls PyInfra and returns everything that it said."""
        done = subprocess.run(
            [sys.executable, "-m", "pyinfra", "-y", *words],
            env=self.environment,
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)

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


@pytest.fixture
def fake_target(daemon: FakeDaemon, machines: ShellMachines, tmp_path: Path) -> Target:
    """The daemon of our own making."""

    def inside(command: str) -> str:
        return subprocess.check_output(["sh", "-c", command], cwd=machines.home("web"), text=True)

    return Target({"ORBD_SOCKET": str(daemon.path), "ORBD_AUTOSTART": "0"}, inside, tmp_path)


@pytest.fixture
def real_target(real: RealDaemon, tmp_path: Path) -> Target:
    """The real daemon, with an empty home in its machine."""
    real.inside("web", "sh", "-c", "cd && rm -rf _test* put got")
    return Target(
        {"ORBD_SOCKET": str(real.socket), "ORBD_AUTOSTART": "0"},
        lambda command: real.inside("web", "sh", "-c", f"cd; {command}"),
        tmp_path,
    )


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.needs_daemon)])
def target(request: pytest.FixtureRequest) -> Target:
    """Both, one after the other."""
    target: Target = request.getfixturevalue(f"{request.param}_target")
    return target


class TestLocalCases:
    """The six."""

    def test_file(self, target: Target) -> None:
        """A file is made once."""
        target.changes("files.file", "_testfile")
        assert target.holds("test -f _testfile")
        target.is_done("files.file", "_testfile")

    def test_directory(self, target: Target) -> None:
        """A folder is made once and removed once."""
        target.changes("files.directory", "_testdir")
        assert target.holds("test -d _testdir")
        target.is_done("files.directory", "_testdir")
        target.changes("files.directory", "_testdir", "present=False")
        assert target.holds("! test -e _testdir")
        target.is_done("files.directory", "_testdir", "present=False")

    def test_link(self, target: Target) -> None:
        """A link is made once."""
        target.changes("files.link", "_testlink", "target=_testfile")
        assert target.inside("readlink _testlink").strip() == "_testfile"
        target.is_done("files.link", "_testlink", "target=_testfile")

    def test_line(self, target: Target) -> None:
        """A line is added once and replaced once."""
        target.changes("files.line", "_testfile", "someline")
        target.is_done("files.line", "_testfile", "someline")
        target.changes("files.line", "_testfile", "someline", "replace=anotherline")
        assert target.bytes_of("_testfile") == b"anotherline\n"
        target.is_done("files.line", "_testfile", "someline", "replace=anotherline")

    @pytest.mark.parametrize(
        ("before", "ensure", "after"),
        [
            ("hello world", "true", b"hello world\nsomeline\n"),
            (r"hello world\n", "true", b"hello world\nsomeline\n"),
        ],
    )
    def test_line_with_a_newline(self, target: Target, before: str, ensure: str, after: bytes) -> None:
        """A last line without an end gets one first."""
        target.inside(f"printf '{before}' >_testfile")
        target.changes("files.line", "_testfile", "someline", f"ensure_newline={ensure}")
        assert target.bytes_of("_testfile") == after

    @pytest.mark.parametrize(
        ("before", "after"),
        [("hello world", b"hello worldsomeline\n"), (r"hello world\n", b"hello world\nsomeline\n")],
    )
    def test_line_without_a_newline(self, target: Target, before: str, after: bytes) -> None:
        """Or not, where nobody wants it."""
        target.inside(f"printf '{before}' >_testfile")
        target.changes("files.line", "_testfile", "someline", "ensure_newline=false")
        assert target.bytes_of("_testfile") == after


class TestCommandLine:
    """What the predecessor got wrong."""

    def test_exec_succeeds_and_prints(self, target: Target) -> None:
        """Printed output is no reason to fail."""
        said = target.pyinfra("@orbstack/web", "exec", "--", "echo", "hi")
        assert "[web] hi" in said

    @pytest.mark.parametrize("flags", ["-v", "-vv", "-vvv"])
    def test_every_verbosity(self, target: Target, flags: str) -> None:
        """Nor is any of these."""
        said = target.pyinfra(flags, "@orbstack/web", "server.shell", "echo hi; echo err >&2")
        assert "Success" in said

    def test_a_failing_command(self, target: Target) -> None:
        """It fails the host once, with its output."""
        said = target.pyinfra("@orbstack/web", "server.shell", "echo tally >>_testtally; echo why network >&2; exit 3", code=1)
        assert "why network" in said
        assert target.bytes_of("_testtally") == b"tally\n"

    def test_a_template_and_secrets(self, target: Target) -> None:
        """File objects are uploaded, secrets are not shown."""
        (target.cwd / "hello.j2").write_text("Hello {{ who }}!\n")
        (target.cwd / "deploy.py").write_text(
            textwrap.dedent("""
                from pyinfra.api import HiddenValue
                from pyinfra.operations import files, server

                files.template("hello.j2", "_testhello", who="é")
                server.shell(commands=['printf %s "$TOKEN" >_testtoken'], _env={"TOKEN": HiddenValue("s3cret")})
                server.shell(commands=["cat >_teststdin"], _stdin=["a", "b"])
            """)
        )
        said = target.pyinfra("-vvv", "@orbstack/web", "deploy.py")
        assert target.bytes_of("_testhello") == "Hello é!\n".encode()
        assert target.bytes_of("_teststdin") == b"a\nb\n"
        assert target.bytes_of("_testtoken") == b"s3cret"
        assert "s3cret" not in said

    def test_a_timeout(self, target: Target) -> None:
        """It is told as one."""
        said = target.pyinfra("@orbstack/web", "server.shell", "sleep 20", "_timeout=1", code=1)
        assert "timed out after 1s" in said

    def test_put_and_get(self, target: Target) -> None:
        """Files of some size, both ways."""
        content = os.urandom(3_000_000)
        (target.cwd / "big").write_bytes(content)
        target.changes("files.put", "big", "_testbig")
        target.is_done("files.put", "big", "_testbig")
        target.changes("files.get", "_testbig", "back")
        assert (target.cwd / "back").read_bytes() == content

    def test_a_mistyped_machine_fails(self, target: Target) -> None:
        """It does not vanish from the inventory."""
        said = target.pyinfra("@orbstack/wbe", "server.shell", "uname", code=1)
        assert "OrbStack has no machine 'wbe'" in said

    def test_the_other_name(self, target: Target) -> None:
        """``@orbd`` is the same connector."""
        assert "[web] hi" in target.pyinfra("@orbd/web", "exec", "--", "echo", "hi")


def test_no_daemon_is_told_without_a_traceback(tmp_path: Path, short_folder: Path) -> None:
    """With what to do."""
    target = Target({"ORBD_SOCKET": str(short_folder / "none"), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
    said = target.pyinfra("@orbstack", "server.shell", "uname", code=1)
    assert "orbd-ctl daemon start" in said


def test_stopped_machines_of_a_bare_name_fail_alone(fake_target: Target, machines: ShellMachines) -> None:
    """The others go on, and nothing was started for a fact."""
    machines.set_state("db", "stopped")
    said = fake_target.pyinfra("@orbstack", "server.shell", "uname", code=1)
    assert "machine 'db' is stopped" in said
    assert "[web] Connected" in said
    assert machines.machines[1]["state"] == "stopped"


def test_inventory_file(fake_target: Target, machines: ShellMachines) -> None:
    """Groups, host data and limits of an inventory file work on connector hosts."""
    (fake_target.cwd / "inventory.py").write_text('hosts = [("@orbstack/web", {"orbstack_user": "someone"}), "@orbstack/db"]\n')
    fake_target.pyinfra("inventory.py", "--limit", "orbstack_running", "server.shell", "uname")
    users = [params.get("user") for method, params in machines.daemon.requests if method == "machine.run"]
    assert sorted(str(user) for user in users) == ["None", "someone"]


def test_one_list_for_all_and_one_run_for_each_command(fake_target: Target, daemon: FakeDaemon, machines: ShellMachines) -> None:
    """That is what a deploy may cost; lists are answered from the daemon's cache."""
    for number in range(8):
        name = f"m{number}"
        machines.machines.append(machine(name))
        machines.home(name).mkdir()
    (fake_target.cwd / "deploy.py").write_text(
        "from pyinfra.operations import server\nfor n in range(5):\n    server.shell(commands=[f'echo {n}'])\n"
    )
    fake_target.pyinfra("@orbstack", "deploy.py")
    called: dict[str, Any] = {}
    for method in daemon.methods():
        called[method] = called.get(method, 0) + 1
    assert called == {"machine.list": 2 + 10, "machine.run": 50}
    assert machines.fresh_lists == 0


@pytest.mark.needs_daemon
def test_spawns_of_a_deploy(real_target: Target, real: RealDaemon) -> None:
    """The same, counted where it costs: no info, at most a list or two, one run per command."""
    (real_target.cwd / "deploy.py").write_text(
        "from pyinfra.operations import server\nfor n in range(5):\n    server.shell(commands=[f'echo {n}'])\n"
    )
    before = real.spawns()
    real_target.pyinfra("@orbstack", "deploy.py")
    after = real.spawns()
    after.subtract(before)
    spent = +after
    assert spent["run"] == 10
    assert spent["list"] <= 2
    assert set(spent) <= {"run", "list"}
