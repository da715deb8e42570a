"""PyInfra's own command line, as a user calls it.

First the six cases that PyInfra's own end-to-end tests try on its local connector (``test_e2e_local.py``), with the same calls:
an operation does what it says, and nothing the second time. They run in a machine with a root file system of its own (where the
stand-in can make one: as root), and what happened is looked at inside the machine.
"""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fake_daemon import FakeDaemon, ShellMachines, machine
from real_daemon import RealDaemon
from target import Target


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
    if os.geteuid() == 0:
        # A machine of its own, whose files are not ours.
        assert real.inside("web", "uname", "-n").strip() == "web"
        assert real.inside("web", "sh", "-c", f"test -e {real.folder} || echo hidden").strip() == "hidden"
    return Target(
        {"ORBD_SOCKET": str(real.socket), "ORBD_AUTOSTART": "0"},
        lambda command: real.inside("web", "sh", "-c", f"cd; {command}"),
        tmp_path,
    )


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.needs_daemon)])
def both(request: pytest.FixtureRequest) -> Target:
    """Both, one after the other: for the tests that a daemon of our own making serves when there is no other."""
    target: Target = request.getfixturevalue(f"{request.param}_target")
    return target


@pytest.mark.needs_daemon
class TestLocalCases:
    """The six."""

    def test_file(self, real_target: Target) -> None:
        """A file is made once."""
        real_target.changes("files.file", "_testfile")
        assert real_target.holds("test -f _testfile")
        real_target.is_done("files.file", "_testfile")

    def test_directory(self, real_target: Target) -> None:
        """A folder is made once and removed once."""
        real_target.changes("files.directory", "_testdir")
        assert real_target.holds("test -d _testdir")
        real_target.is_done("files.directory", "_testdir")
        real_target.changes("files.directory", "_testdir", "present=False")
        assert real_target.holds("! test -e _testdir")
        real_target.is_done("files.directory", "_testdir", "present=False")

    def test_link(self, real_target: Target) -> None:
        """A link is made once, whether there is anything behind it or not."""
        real_target.changes("files.link", "_testlink", "target=_testfile")
        assert real_target.inside("readlink _testlink").strip() == "_testfile"
        real_target.is_done("files.link", "_testlink", "target=_testfile")

    def test_line(self, real_target: Target) -> None:
        """A line is added once and replaced once."""
        real_target.changes("files.line", "_testfile", "someline")
        real_target.is_done("files.line", "_testfile", "someline")
        real_target.changes("files.line", "_testfile", "someline", "replace=anotherline")
        assert real_target.bytes_of("_testfile") == b"anotherline\n"
        real_target.is_done("files.line", "_testfile", "someline", "replace=anotherline")

    def test_line_with_a_newline(self, real_target: Target) -> None:
        """A last line without an end gets one first."""
        for before in (r"hello world", r"hello world\n"):
            real_target.inside(f"printf '{before}' >_testfile")
            real_target.changes("files.line", "_testfile", "someline", "ensure_newline=true")
            assert real_target.bytes_of("_testfile") == b"hello world\nsomeline\n"

    def test_line_without_a_newline(self, real_target: Target) -> None:
        """Or not, where nobody wants it."""
        for before, after in (
            (r"hello world", b"hello worldsomeline\n"),
            (r"hello world\n", b"hello world\nsomeline\n"),
        ):
            real_target.inside(f"printf '{before}' >_testfile")
            real_target.changes("files.line", "_testfile", "someline", "ensure_newline=false")
            assert real_target.bytes_of("_testfile") == after


@pytest.mark.needs_daemon
class TestCommandLine:
    """What the predecessor got wrong."""

    def test_exec_succeeds_and_prints(self, real_target: Target) -> None:
        """Printed output is no reason to fail."""
        said = real_target.pyinfra("@orbstack/web", "exec", "--", "echo", "hi")
        assert "[web] hi" in said

    @pytest.mark.parametrize("flags", ["-v", "-vvv"])
    def test_every_verbosity(self, real_target: Target, flags: str) -> None:
        """Nor is any of these."""
        said = real_target.pyinfra(flags, "@orbstack/web", "server.shell", "echo hi; echo err >&2")
        assert "Success" in said

    def test_a_failing_command(self, real_target: Target) -> None:
        """It fails the host once, with its output."""
        said = real_target.pyinfra(
            "@orbstack/web", "server.shell", "echo tally >>_testtally; echo why network >&2; exit 3", code=1
        )
        assert "why network" in said
        assert real_target.bytes_of("_testtally") == b"tally\n"

    def test_a_timeout(self, real_target: Target) -> None:
        """It is told as one."""
        said = real_target.pyinfra("@orbstack/web", "server.shell", "sleep 20", "_timeout=1", code=1)
        assert "timed out after 1s" in said

    def test_put_and_get(self, real_target: Target) -> None:
        """Files of some size, both ways."""
        content = os.urandom(3_000_000)
        (real_target.cwd / "big").write_bytes(content)
        real_target.changes("files.put", "big", "_testbig")
        real_target.is_done("files.put", "big", "_testbig")
        real_target.changes("files.get", "_testbig", "back")
        assert (real_target.cwd / "back").read_bytes() == content

    def test_a_mistyped_machine_fails(self, real_target: Target) -> None:
        """It does not vanish from the inventory."""
        said = real_target.pyinfra("@orbstack/wbe", "server.shell", "uname", code=1)
        assert "OrbStack has no machine 'wbe'" in said

    def test_the_other_name(self, real_target: Target) -> None:
        """``@orbd`` is the same connector."""
        assert "[web] hi" in real_target.pyinfra("@orbd/web", "exec", "--", "echo", "hi")


def test_a_template_and_secrets(both: Target) -> None:
    """File objects are uploaded, secrets are not shown."""
    (both.cwd / "hello.j2").write_text("Hello {{ who }}!\n")
    (both.cwd / "deploy.py").write_text(
        textwrap.dedent("""
            from pyinfra.api import HiddenValue, QuoteString, StringCommand
            from pyinfra.operations import files, server

            files.template("hello.j2", "_testhello", who="é")
            server.shell(commands=[StringCommand("printf %s", QuoteString(HiddenValue("s3cret")), ">_testtoken")])
            server.shell(commands=["cat >_teststdin"], _stdin=["a", "b"])
        """)
    )
    said = both.pyinfra("-vvv", "@orbstack/web", "deploy.py")
    assert both.bytes_of("_testhello") == "Hello é!\n".encode()
    assert both.bytes_of("_teststdin") == b"a\nb\n"
    assert both.bytes_of("_testtoken") == b"s3cret"
    assert "s3cret" not in said


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
    """That is what a deploy may cost: two lists for the inventory, which PyInfra makes twice, and one for all that connect."""
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
    assert called == {"machine.list": 2 + 1, "machine.run": 50}
    assert machines.fresh_lists == 0
