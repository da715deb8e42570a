"""PyInfra's own command line, as a user calls it.

The first six cases are those of PyInfra's end-to-end tests of its local connector (``test_e2e_local.py``), with the same calls:
an operation changes something the first time, and nothing the second time. Results are checked inside the machine, which has its
own root file system if the tests run as root.
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
    """PyInfra with the fake daemon."""

    def inside(command: str) -> str:
        return subprocess.check_output(["sh", "-c", command], cwd=machines.home("web"), text=True)

    return Target({"ORBD_SOCKET": str(daemon.path), "ORBD_AUTOSTART": "0"}, inside, tmp_path)


@pytest.fixture
def real_target(real: RealDaemon, tmp_path: Path) -> Target:
    """PyInfra with the real daemon, and an empty home in the machine."""
    real.inside("web", "sh", "-c", "cd && rm -rf _test* put got")
    if os.geteuid() == 0:
        # The machine has its own root file system.
        assert real.inside("web", "uname", "-n").strip() == "web"
        assert real.inside("web", "sh", "-c", f"test -e {real.folder} || echo hidden").strip() == "hidden"
    return Target(
        {"ORBD_SOCKET": str(real.socket), "ORBD_AUTOSTART": "0"},
        lambda command: real.inside("web", "sh", "-c", f"cd; {command}"),
        tmp_path,
    )


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.needs_daemon)])
def both(request: pytest.FixtureRequest) -> Target:
    """Runs a test with the fake daemon, and with the real one."""
    target: Target = request.getfixturevalue(f"{request.param}_target")
    return target


@pytest.mark.needs_daemon
class TestLocalCases:
    """The six cases of PyInfra's end-to-end tests."""

    def test_file_is_created_once(self, real_target: Target) -> None:
        real_target.changes("files.file", "_testfile")
        assert real_target.holds("test -f _testfile")
        real_target.is_done("files.file", "_testfile")

    def test_directory_is_created_once_and_removed_once(self, real_target: Target) -> None:
        real_target.changes("files.directory", "_testdir")
        assert real_target.holds("test -d _testdir")
        real_target.is_done("files.directory", "_testdir")
        real_target.changes("files.directory", "_testdir", "present=False")
        assert real_target.holds("! test -e _testdir")
        real_target.is_done("files.directory", "_testdir", "present=False")

    def test_link_is_created_once(self, real_target: Target) -> None:
        """Its target does not have to exist."""
        real_target.changes("files.link", "_testlink", "target=_testfile")
        assert real_target.inside("readlink _testlink").strip() == "_testfile"
        real_target.is_done("files.link", "_testlink", "target=_testfile")

    def test_line_is_added_once_and_replaced_once(self, real_target: Target) -> None:
        real_target.changes("files.line", "_testfile", "someline")
        real_target.is_done("files.line", "_testfile", "someline")
        real_target.changes("files.line", "_testfile", "someline", "replace=anotherline")
        assert real_target.bytes_of("_testfile") == b"anotherline\n"
        real_target.is_done("files.line", "_testfile", "someline", "replace=anotherline")

    def test_line_with_ensure_newline_ends_the_last_line_first(self, real_target: Target) -> None:
        for before in (r"hello world", r"hello world\n"):
            real_target.inside(f"printf '{before}' >_testfile")
            real_target.changes("files.line", "_testfile", "someline", "ensure_newline=true")
            assert real_target.bytes_of("_testfile") == b"hello world\nsomeline\n"

    def test_line_without_ensure_newline_appends_to_the_last_line(self, real_target: Target) -> None:
        for before, after in (
            (r"hello world", b"hello worldsomeline\n"),
            (r"hello world\n", b"hello world\nsomeline\n"),
        ):
            real_target.inside(f"printf '{before}' >_testfile")
            real_target.changes("files.line", "_testfile", "someline", "ensure_newline=false")
            assert real_target.bytes_of("_testfile") == after


@pytest.mark.needs_daemon
class TestCommandLine:
    """Bugs of the predecessor on the command line."""

    def test_exec_prints_output_and_succeeds(self, real_target: Target) -> None:
        said = real_target.pyinfra("@orbstack/web", "exec", "--", "echo", "hi")
        assert "[web] hi" in said

    @pytest.mark.parametrize("flags", ["-v", "-vvv"])
    def test_operation_succeeds_at_every_verbosity(self, real_target: Target, flags: str) -> None:
        said = real_target.pyinfra(flags, "@orbstack/web", "server.shell", "echo hi; echo err >&2")
        assert "Success" in said

    def test_failed_command_runs_once_and_its_output_is_printed(self, real_target: Target) -> None:
        said = real_target.pyinfra(
            "@orbstack/web", "server.shell", "echo tally >>_testtally; echo why network >&2; exit 3", code=1
        )
        assert "why network" in said
        assert real_target.bytes_of("_testtally") == b"tally\n"

    def test_timeout_is_reported_as_a_timeout(self, real_target: Target) -> None:
        said = real_target.pyinfra("@orbstack/web", "server.shell", "sleep 20", "_timeout=1", code=1)
        assert "timed out after 1s" in said

    def test_put_and_get_transfer_large_files(self, real_target: Target) -> None:
        content = os.urandom(3_000_000)
        (real_target.cwd / "big").write_bytes(content)
        real_target.changes("files.put", "big", "_testbig")
        real_target.is_done("files.put", "big", "_testbig")
        real_target.changes("files.get", "_testbig", "back")
        assert (real_target.cwd / "back").read_bytes() == content

    def test_unknown_machine_fails_the_run(self, real_target: Target) -> None:
        """It does not disappear from the inventory."""
        said = real_target.pyinfra("@orbstack/wbe", "server.shell", "uname", code=1)
        assert "OrbStack has no machine 'wbe'" in said

    def test_orbd_alias_works(self, real_target: Target) -> None:
        assert "[web] hi" in real_target.pyinfra("@orbd/web", "exec", "--", "echo", "hi")


def test_template_is_uploaded_and_secrets_are_not_printed(both: Target) -> None:
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


def test_missing_daemon_is_reported_without_a_traceback(tmp_path: Path, short_folder: Path) -> None:
    """The message has the command that starts it."""
    target = Target({"ORBD_SOCKET": str(short_folder / "none"), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
    said = target.pyinfra("@orbstack", "server.shell", "uname", code=1)
    assert "orbd-ctl daemon start" in said


def test_stopped_machine_of_a_bare_inventory_fails_alone(fake_target: Target, machines: ShellMachines) -> None:
    """The other hosts continue, and the machine is not started."""
    machines.set_state("db", "stopped")
    said = fake_target.pyinfra("@orbstack", "server.shell", "uname", code=1)
    assert "machine 'db' is stopped" in said
    assert "[web] Connected" in said
    assert machines.machines[1]["state"] == "stopped"


def test_inventory_file_with_groups_host_data_and_limit(fake_target: Target, machines: ShellMachines) -> None:
    (fake_target.cwd / "inventory.py").write_text('hosts = [("@orbstack/web", {"orbstack_user": "someone"}), "@orbstack/db"]\n')
    fake_target.pyinfra("inventory.py", "--limit", "orbstack_running", "server.shell", "uname")
    users = [params.get("user") for method, params in machines.daemon.requests if method == "machine.run"]
    assert sorted(str(user) for user in users) == ["None", "someone"]


def test_deploy_needs_three_list_calls_and_one_run_per_command(
    fake_target: Target, daemon: FakeDaemon, machines: ShellMachines
) -> None:
    """Two lists for the inventory, which PyInfra builds twice, and one for all hosts that connect."""
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
