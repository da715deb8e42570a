"""Bugs of ``pyinfra-orbstack`` 0.11.0 in connecting, commands and files, each tested with a real daemon.

Bugs of its operations are tested in ``test_predecessor_operations.py``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from pyinfra.api import Config, HiddenValue, Inventory, QuoteString, State, StringCommand
from pyinfra.api.host import Host

from orbd import Client, errors
from play import at_its_socket
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon

#: A machine of orbctl-sim uses this computer's files, so it has ``sudo`` if this computer has it.
#: Without root, a machine is a plain directory in which ``sudo`` is refused.
needs_sudo = pytest.mark.skipif(
    os.geteuid() != 0 or which("sudo") is None, reason="needs root and `sudo` (Debian: apt-get install sudo)"
)


@pytest.fixture(scope="module")
def own_daemon() -> Iterator[RealDaemon]:
    """A daemon whose machines these tests may start and stop. The tests count the ``orbctl run`` of each command."""
    with temporary_daemon(config={"exec_channel": "off"}) as daemon:
        daemon.create("web", "db")
        yield daemon


@pytest.fixture
def daemon(own_daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, at the socket that the environment names."""
    with at_its_socket(own_daemon, monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def host(daemon: RealDaemon) -> Host:
    """The connected host of the machine ``web``."""
    inventory = Inventory((["@orbstack/web"], {}))
    State(inventory, Config())
    host = next(iter(inventory))
    host.connect(raise_exceptions=True)
    return host


@pytest.fixture
def target(daemon: RealDaemon, tmp_path: Path) -> Target:
    """PyInfra's command line with the daemon."""
    environment = {"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}
    return Target(environment, lambda command: daemon.inside("web", "sh", "-c", command), tmp_path)


def spawned(daemon: RealDaemon, before: int) -> dict[str, int]:
    return dict(RealDaemon.spawns_in(daemon.ledger()[before:]))


@pytest.mark.parametrize("verbosity", [[], ["-vvv"]])
def test_printed_output_does_not_fail_the_command(target: Target, verbosity: list[str]) -> None:
    """``exec`` prints output at every verbosity."""
    said = target.pyinfra(*verbosity, "@orbstack/web", "exec", "--", "echo", "hi")
    assert "[web] hi" in said
    assert "[web] Success" in said


def test_file_objects_can_be_uploaded_and_downloaded(host: Host, target: Target) -> None:
    """Text and bytes; so templates work."""
    assert host.put_file(StringIO("é\n"), "put")
    back = BytesIO()
    assert host.get_file("put", back)
    assert back.getvalue() == "é\n".encode()
    text = StringIO()
    assert host.get_file("put", text)
    assert text.getvalue() == "é\n"
    (target.cwd / "page.j2").write_text("{{ who }}")
    target.pyinfra("@orbstack/web", "files.template", "page.j2", "page", "who=world")
    assert host.run_shell_command("cat page")[1].stdout == "world"


@pytest.mark.parametrize("word", ["apt-get", "create", "network", "timeout", "connection refused"])
def test_failed_command_is_not_retried_because_of_its_text(host: Host, daemon: RealDaemon, word: str) -> None:
    before = len(daemon.ledger())
    ok, output = host.run_shell_command(f"echo x >>tries; : {word}; echo '{word} failed' >&2; exit 1")
    assert not ok
    assert output.stderr == f"{word} failed"
    assert spawned(daemon, before) == {"run": 1}
    assert host.run_shell_command("wc -l <tries; rm tries")[1].stdout.strip() == "1"


def test_timeout_ends_the_command_with_a_timeout_error(host: Host) -> None:
    with pytest.raises(TimeoutError) as caught:
        host.run_shell_command("sleep 60", _timeout=1)
    assert isinstance(caught.value, errors.RunTimeout)


@pytest.mark.parametrize(("given", "read"), [("a", b"a\n"), (["a", "b"], b"a\nb\n"), (StringIO("a\nb"), b"a\nb\n")])
def test_stdin_reaches_the_command(host: Host, given: Any, read: bytes) -> None:
    """In the same form as in PyInfra's other connectors."""
    _, output = host.run_shell_command("cat >stdin; wc -c <stdin", _stdin=given)
    assert output.stdout.strip() == str(len(read))
    back = BytesIO()
    host.get_file("stdin", back)
    assert back.getvalue() == read


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"_shell_executable": None},
        pytest.param({"_sudo": True}, marks=needs_sudo),
        pytest.param({"_sudo": True, "_su_user": "root"}, marks=needs_sudo),
        pytest.param({"_sudo": True, "_su_user": "root", "_use_su_login": True}, marks=needs_sudo),
        {"_shell_executable": "bash"},
    ],
    ids=lambda arguments: "+".join(arguments) or "plain",
)
def test_shell_syntax_works_with_every_user_and_shell(host: Host, arguments: dict[str, Any]) -> None:
    command = """printf '%s\\n' "b c" a | sort && echo "$(echo "it's")" """
    ok, output = host.run_shell_command(command, **arguments)
    assert ok
    assert output.stdout_lines == ["a", "b c", "it's"]


def test_command_that_looks_wrapped_keeps_env_chdir_and_secrets(host: Host) -> None:
    ok, output = host.run_shell_command("sh -c 'echo $WHERE; pwd'", _env={"WHERE": "here"}, _chdir="/usr")
    assert (ok, output.stdout_lines) == (True, ["here", "/usr"])
    secret = StringCommand("sh -c", QuoteString(StringCommand("echo", HiddenValue("s3cret"))))
    assert host.run_shell_command(secret)[1].stdout == "s3cret"


def test_secrets_are_neither_printed_nor_recorded(target: Target, daemon: RealDaemon) -> None:
    (target.cwd / "deploy.py").write_text(
        "from pyinfra.api import HiddenValue, QuoteString, StringCommand\n"
        "from pyinfra.operations import server\n"
        "server.shell(commands=[StringCommand('printf %s', QuoteString(HiddenValue('s3cret')), '| wc -c')])\n"
    )
    said = target.pyinfra("-vvv", "@orbstack/web", "deploy.py")
    assert "s3cret" not in said
    assert "[web] 6" in said
    with Client(str(daemon.socket)) as client:
        history = client.metrics_history(limit=1000)
        assert history.records
        assert history.cursor is None
        assert "s3cret" not in repr(history)
        assert "s3cret" not in repr(client.job_list(limit=100))
    assert "s3cret" not in daemon.log.read_text()


def test_failed_connect_is_reported_and_excludes_only_its_host(target: Target, daemon: RealDaemon) -> None:
    said = target.pyinfra("@orbstack/web,@orbstack/missing", "exec", "--", "echo", "hi", code=1)
    assert "[missing] OrbStack has no machine 'missing'" in said
    assert "[missing] Connected" not in said
    assert re.search(r"\[web\] +hi", said)


def test_missing_orbctl_is_a_message_without_a_traceback(tmp_path: Path) -> None:
    """``Target`` fails on any traceback."""
    with temporary_daemon(isolation="dir") as daemon:
        daemon.stop()
        daemon.environment["ORBD_ORBCTL"] = str(tmp_path / "none/orbctl")
        daemon.process = daemon.start()
        target = Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
        said = target.pyinfra("@orbstack", "exec", "--", "true", code=1)
    assert "orbctl" in said
    assert str(tmp_path / "none/orbctl") in said


def test_unknown_machine_stays_in_the_inventory_and_fails(target: Target) -> None:
    said = target.pyinfra("@orbstack/wbe", "exec", "--", "true", code=1)
    assert "OrbStack has no machine 'wbe'" in said


def test_fact_of_all_machines_does_not_start_stopped_ones(target: Target, daemon: RealDaemon) -> None:
    daemon.sim("stop", "db")
    with Client(str(daemon.socket)) as client:
        client.cache_invalidate()
    before = len(daemon.ledger())
    said = target.pyinfra("@orbstack", "fact", "server.Hostname", code=1)
    assert "machine 'db' is stopped" in said
    assert "start" not in spawned(daemon, before)
    assert '"db' not in daemon.sim("list", "-r")
    daemon.sim("start", "db")


@needs_sudo
def test_sudo_download_creates_no_copy_in_the_machine(host: Host) -> None:
    """``/tmp`` keeps its modification time."""
    host.run_shell_command("sudo -n sh -c 'umask 077; echo secret >/root/secret'")
    _, before = host.run_shell_command("stat -c %y /tmp; ls -A /tmp")
    back = BytesIO()
    assert host.get_file("/root/secret", back, _sudo=True)
    assert back.getvalue() == b"secret\n"
    assert host.run_shell_command("stat -c %y /tmp; ls -A /tmp")[1].stdout == before.stdout
    with pytest.raises(OSError, match="Permission denied"):
        host.get_file("/root/secret", BytesIO())


@needs_sudo
def test_sudo_upload_works_in_a_sticky_directory_and_sets_the_owner(host: Host) -> None:
    """The other user writes the file itself, also into ``/tmp`` and over an existing file."""
    host.run_shell_command("sudo -n useradd -m other")
    for path in ("/tmp/theirs", "/home/other/theirs"):
        for content in (b"one", b"two and more"):
            assert host.put_file(BytesIO(content), path, _sudo=True, _sudo_user="other")
            ok, output = host.run_shell_command(f"stat -c '%U %s' {path}", _sudo=True)
            assert (ok, output.stdout) == (True, f"other {len(content)}")
    assert host.run_shell_command("ls -A /tmp; rm -f /tmp/theirs", _sudo=True)[1].stdout_lines == ["theirs"]
    host.put_file(BytesIO(b"x"), "/etc/motd-of-ours", _sudo=True)
    assert host.run_shell_command("stat -c '%U %a' /etc/motd-of-ours")[1].stdout == "root 644"


def test_invalid_utf8_does_not_fail_the_command(host: Host) -> None:
    ok, output = host.run_shell_command(r"printf 'caf\351\n\377\376'")
    assert (ok, output.stdout_lines) == (True, ["caf\ufffd", "\ufffd\ufffd"])


def test_only_newlines_end_a_line(host: Host) -> None:
    """Carriage returns, form feeds and Unicode separators do not."""
    _, output = host.run_shell_command(r"printf '1%%\r2%%\n\fpage\v.\n\302\205\342\200\250end\n'")
    assert output.stdout_lines == ["1%\r2%", "\fpage\v.", "\x85\u2028end"]


def test_stdout_and_stderr_keep_their_order(host: Host) -> None:
    _, output = host.run_shell_command("for n in 1 2 3; do echo out$n; sleep 0.05; echo err$n >&2; sleep 0.05; done")
    assert [line.line for line in output] == ["out1", "err1", "out2", "err2", "out3", "err3"]


def test_upload_is_private_until_it_is_complete(host: Host) -> None:
    """Then the file gets the mode of the user's umask."""
    seen = host.run_shell_command
    host.put_file(BytesIO(b"x"), "fresh")
    assert seen("stat -c %a fresh")[1].stdout == f"{0o666 & ~int(seen('umask')[1].stdout, 8):o}"
    # Check the temporary file while the script in the machine waits for the second half.
    half = b"x" * (2 << 20)
    modes: list[str] = []

    class Slow(BytesIO):
        def read(self, length: int | None = -1, /) -> bytes:
            if length and length > 0 and self.tell() >= 1 << 20 and not modes:
                modes.extend(seen("stat -c %a .pyinfra-orbd.*")[1].stdout_lines)
            return super().read(length)

    host.put_file(Slow(half), "slow")
    assert modes == [f"{stat.S_IRUSR | stat.S_IWUSR:o}"]
    assert seen("ls -A | grep -c pyinfra-orbd")[1].stdout == "0"
