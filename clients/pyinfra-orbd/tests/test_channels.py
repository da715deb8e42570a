"""Commands, uploads and downloads through a resident channel, compared with an ``orbctl run`` of their own.

Each case runs on two hosts of the same machine: one with channels, one without. The ledger of the stand-in shows that one
``orbctl run`` served all commands of the first.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from shutil import which
from typing import Any

import pytest
from pyinfra.api import Config, HiddenValue, Inventory, QuoteString, State, StringCommand
from pyinfra.api.host import Host
from pyinfra.facts.files import Directory, File, FindInFile, Sha1File
from pyinfra.facts.server import Home, Hostname, LinuxDistribution, Users

from play import at_its_socket
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon

needs_sudo = pytest.mark.skipif(
    os.geteuid() != 0 or which("sudo") is None, reason="needs root and `sudo` (Debian: apt-get install sudo)"
)

DOAS = """#!/bin/sh
user=root
while :; do
    case $1 in
        -n) shift ;;
        -u) user=$2; shift 2 ;;
        *) break ;;
    esac
done
exec sudo -n -u "$user" "$@"
"""


@pytest.fixture(scope="module")
def own_daemon() -> Iterator[RealDaemon]:
    """A daemon with channels; each ``orbctl`` takes long enough for one to be worth it."""
    with temporary_daemon(latency="60,create=0,start=0", config={"exec_channel": "auto"}) as daemon:
        daemon.create("web")
        yield daemon


@pytest.fixture
def daemon(own_daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, at the socket that the environment names."""
    with at_its_socket(own_daemon, monkeypatch) as daemon:
        yield daemon


MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(daemon: RealDaemon) -> MakeHost:
    """Returns a function that creates a connected host of ``web``."""

    def make(**data: Any) -> Host:
        inventory = Inventory(([("@orbstack/web", data)], {}))
        State(inventory, Config())
        host = next(iter(inventory))
        host.connect(raise_exceptions=True)
        return host

    return make


@pytest.fixture
def hosts(make_host: MakeHost) -> tuple[Host, Host]:
    """The same machine with and without channels."""
    return make_host(), make_host(orbstack_channel=False)


def runs(daemon: RealDaemon) -> int:
    """Returns the number of ``orbctl run`` so far."""
    return RealDaemon.spawns_in(daemon.ledger())["run"]


@pytest.fixture(scope="module")
def programs(own_daemon: RealDaemon) -> None:
    """Gives the machine a ``doas``, and root a password."""
    script = "cat >/usr/local/bin/doas && chmod 755 /usr/local/bin/doas && echo root:s3cret | chpasswd"
    words = [str(own_daemon.orbctl), "run", "-m", "web", "-u", "root", "sh", "-c", script]
    subprocess.run(words, env=own_daemon.environment, input=DOAS, text=True, check=True, capture_output=True)


def outcome(host: Host, command: Any, **arguments: Any) -> Any:
    """Runs a command and returns all that PyInfra sees of it, or its exception."""
    try:
        ok, output = host.run_shell_command(command, **arguments)
    except OSError as error:
        return type(error), str(error)
    return ok, output.stdout_lines, output.stderr_lines


def test_commands_of_a_host_share_one_orbctl_run(daemon: RealDaemon, make_host: MakeHost) -> None:
    """From the first one, and after a disconnect."""
    host = make_host()
    before = runs(daemon)
    for number in range(5):
        assert host.run_shell_command(f"echo {number}")[1].stdout == str(number)
        assert host.run_shell_command(f"echo {number} >&2", print_output=True)[1].stderr == str(number)
    host.disconnect()
    assert host.run_shell_command("echo again")[1].stdout == "again"
    assert runs(daemon) - before <= 1


def test_host_without_channels_runs_each_command_by_itself(daemon: RealDaemon, make_host: MakeHost) -> None:
    """Transfers too."""
    host = make_host(orbstack_channel=False)
    before = runs(daemon)
    for _ in range(3):
        host.run_shell_command("true")
    host.put_file(BytesIO(b"x"), "single")
    host.get_file("single", BytesIO())
    assert runs(daemon) - before == 5


PLAIN: dict[str, tuple[Any, dict[str, Any]]] = {
    "streams": ("echo out; echo err >&2; exit 3", {}),
    "success codes": ("exit 3", {"_success_exit_codes": [0, 3]}),
    "killed by a signal": ("kill -9 $$", {}),
    "not found": ("no-such-command", {}),
    "not valid UTF-8": (r"printf 'caf\351\303\251\r\n\fx\n\n'", {}),
    "syntax error": ("if then", {}),
    "quotes": ("""echo 'a "b"'" c 'd'" \\$HOME $((1 + 2)) `echo e` a\\\\b !x; printf '%s' "no end" """, {}),
    "two lines": ("echo one\necho two", {}),
    "not ASCII": ("echo 'é ü 漢'", {}),
    "environment": ('echo "$A|$B"', {"_env": {"A": "it's", "B": "two words\nand $lines"}}),
    "secret": (StringCommand("echo", QuoteString(HiddenValue("s3cret"))), {"_env": {"T": HiddenValue("t")}}),
    "folder": ("pwd; cd ..; pwd", {"_chdir": "/tmp"}),
    "folder that is missing": ("pwd", {"_chdir": "/no/such/folder"}),
    "other shell": ("echo ${BASH_VERSION:+bash} $0", {"_shell_executable": "bash"}),
    "no shell": ("echo plain", {"_shell_executable": None}),
    "stdin": ("cat; echo end", {"_stdin": "a\nb"}),
    "lines of stdin": ("wc -l", {"_stdin": ["one", "two", "three"]}),
    "stdin that is not read": ("true", {"_stdin": "x" * 200_000}),
    "large stdin": ("cksum", {"_stdin": "x" * 300_000}),
    "no stdin": ("cat; echo $?", {}),
    "large output": ("seq 1 200000", {}),
    "output as it arrives": ("echo a; sleep 0.1; echo b", {"print_output": True}),
    "long command": (f"echo {'x' * 50_000} | cksum", {}),
    "command beyond the limit of a channel": (f": {'x' * 100_000}; echo done", {}),
    "terminal": ("test -t 0 && echo yes; exit 4", {"_get_pty": True}),
    "timeout": ("sleep 20", {"_timeout": 1}),
    "after a timeout": ("echo alive", {}),
    "background process": ("sleep 0.2 & echo $?", {}),
    "variables": ("env | cut -d= -f1 | sort | tr '\\n' ' '", {}),
    "home and name": ('echo "$HOME $USER $LOGNAME $SHELL $(id -un) $PWD"; umask', {}),
}

AUTHORITY: dict[str, tuple[Any, dict[str, Any]]] = {
    "sudo": ("id -un; echo $HOME; echo $?", {"_sudo": True}),
    "sudo to a user": ("id -un", {"_sudo": True, "_sudo_user": "nobody"}),
    "sudo with a login shell": ("id -un; pwd; echo \"$A 'x'\"", {"_sudo": True, "_use_sudo_login": True, "_env": {"A": "b c"}}),
    "sudo that keeps the environment": ("echo $A", {"_sudo": True, "_preserve_sudo_env": True, "_env": {"A": "1"}}),
    "sudo with input": ("cat; id -un", {"_sudo": True, "_stdin": "given"}),
    "sudo with a folder": ("pwd", {"_sudo": True, "_chdir": "/usr"}),
    "sudo that fails": ("exit 9", {"_sudo": True, "_success_exit_codes": [9]}),
    "sudo to a user that is missing": ("true", {"_sudo": True, "_sudo_user": "no-such-user"}),
    "sudo, then su": ("id -un", {"_sudo": True, "_su_user": "nobody", "_su_shell": "sh"}),
    "sudo, then su with a login shell": ("id -un", {"_sudo": True, "_su_user": "dev", "_use_su_login": True}),
    "su with a password": ("id -un; cat", {"_su_user": "root", "_su_password": "s3cret"}),
    "doas": ("id -un", {"_doas": True}),
    "doas to a user": ("id -un", {"_doas": True, "_doas_user": "nobody"}),
}


UNFIT = ("large stdin", "command beyond the limit of a channel")
"""Cases that do not fit into a channel."""


@pytest.mark.parametrize("case", PLAIN)
def test_command_is_the_same_with_and_without_a_channel(daemon: RealDaemon, hosts: tuple[Host, Host], case: str) -> None:
    command, arguments = PLAIN[case]
    hosts[0].run_shell_command("true")
    before = runs(daemon)
    through = outcome(hosts[0], command, **arguments)
    assert runs(daemon) - before == (case in UNFIT)
    alone = outcome(hosts[1], command, **arguments)
    if case == "timeout":
        # The text has the id of the job.
        through, alone = through[0], alone[0]
    assert through == alone


@needs_sudo
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("case", AUTHORITY)
def test_command_of_another_user_is_the_same_with_and_without_a_channel(
    daemon: RealDaemon, hosts: tuple[Host, Host], case: str
) -> None:
    command, arguments = AUTHORITY[case]
    # The new password made an open channel stale, which may take a command to notice.
    for _ in range(2):
        hosts[0].run_shell_command("true")
    before = runs(daemon)
    through = outcome(hosts[0], command, **arguments)
    assert runs(daemon) == before
    alone = outcome(hosts[1], command, **arguments)
    assert through == alone


FACTS: list[tuple[Any, dict[str, Any]]] = [
    (File, {"path": "/etc/passwd"}),
    (File, {"path": "/no/such/file"}),
    (Directory, {"path": "/etc"}),
    (Sha1File, {"path": "/etc/passwd"}),
    (FindInFile, {"path": "/etc/passwd", "pattern": "^root"}),
    (Home, {}),
    (Hostname, {}),
    (LinuxDistribution, {}),
    (Users, {}),
]


def test_facts_are_the_same_with_and_without_a_channel(daemon: RealDaemon, hosts: tuple[Host, Host]) -> None:
    def facts(host: Host) -> list[Any]:
        found = [host.get_fact(fact, **arguments) for fact, arguments in FACTS]
        # Reading a file changes its time of access.
        return [{**fact, "atime": None} if isinstance(fact, dict) and "atime" in fact else fact for fact in found]

    alone = facts(hosts[1])
    before = runs(daemon)
    assert facts(hosts[0]) == alone
    assert runs(daemon) - before <= 1


def test_retries_run_the_command_again(hosts: tuple[Host, Host], daemon: RealDaemon) -> None:
    """PyInfra repeats a command, the connector does not; a channel serves every attempt."""
    before = runs(daemon)
    for host in hosts:
        script = 'echo x >>tally; test "$(wc -l <tally)" -ge 3'
        for attempt in range(3):
            ok, _ = host.run_shell_command(script)
            assert ok is (attempt == 2)
        host.run_shell_command("rm tally")
    assert runs(daemon) - before <= 1 + 4


def as_file(host: Host, path: str) -> Any:
    """Returns mode, owner, size and checksum of a file."""
    return host.run_shell_command(f"stat -c '%a %U %G %h %F' {path}; cksum <{path}")[1].stdout_lines


@pytest.mark.parametrize("size", [0, 1, 1000, 256 << 10, (256 << 10) + 1, (1 << 20) + 1])
def test_transfer_is_the_same_with_and_without_a_channel(hosts: tuple[Host, Host], daemon: RealDaemon, size: int) -> None:
    """A small upload is one command without an ``orbctl`` of its own. So is a download of any size."""
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    hosts[0].run_shell_command("true")
    before = runs(daemon)
    hosts[0].put_file(BytesIO(content), "through")
    assert runs(daemon) - before == (size > 256 << 10)
    back = BytesIO()
    hosts[0].get_file("through", back)
    assert runs(daemon) - before <= (size > 256 << 10)
    assert back.getvalue() == content
    hosts[1].put_file(BytesIO(content), "alone")
    assert as_file(hosts[1], "through") == as_file(hosts[1], "alone")
    hosts[1].run_shell_command("rm through alone")


REPLACED = """
cd; rm -rf "$1"; mkdir "$1" && cd "$1"
echo old >plain; chmod 640 plain; ln plain hard; ln -s plain soft; ln -s nowhere dangling; mkdir folder
"""

TARGETS = ("new", "plain", "soft", "dangling", "folder", "none/there", "plain/x", "a 'b' $c", "../out-{}", "~/out-{}")


@pytest.mark.parametrize("target", TARGETS)
def test_upload_to_any_target_is_the_same_with_and_without_a_channel(hosts: tuple[Host, Host], target: str) -> None:
    """Error texts too; no temporary file is left."""
    seen = []
    for host, name in zip(hosts, ("through", "alone"), strict=True):
        host.run_shell_command(f"set -- {name}; {REPLACED}")
        try:
            host.put_file(StringIO("content\n"), target.format(name), _chdir=name)
        except OSError as error:
            result = str(error)
        else:
            result = ""
        listing = "find . -printf '%P %M %u %n %l %s\\n' | sort; cat plain; ls -A .. | grep -c pyinfra-orbd; cat ../out-* | cksum"
        after = host.run_shell_command(listing, _chdir=name)[1].stdout_lines
        host.run_shell_command(f"rm -rf {name} out-{name}")
        seen.append((result, after))
    assert seen[0] == seen[1]


@needs_sudo
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    "arguments",
    [
        {"_sudo": True},
        {"_sudo": True, "_sudo_user": "nobody"},
        {"_sudo": True, "_use_sudo_login": True},
        {"_sudo": True, "_su_user": "nobody", "_su_shell": "sh"},
        {"_su_user": "root", "_su_password": "s3cret"},
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["/tmp/authority", "/etc/authority", "/etc/passwd", "/etc/no/such"])
def test_transfer_of_another_user_is_the_same_with_and_without_a_channel(
    hosts: tuple[Host, Host], arguments: dict[str, Any], target: str
) -> None:
    seen = []
    for host in hosts:
        back = BytesIO()
        try:
            host.get_file(target, back, **arguments)
        except OSError as error:
            before = str(error)
        else:
            before = ""
        try:
            host.put_file(BytesIO(back.getvalue() or b"new\xff"), target, **arguments)
        except OSError as error:
            after = re.sub(r"pyinfra-orbd\.\w+", "TEMPORARY", str(error))
        else:
            after = ""
        listing = (
            f"stat -c '%a %U %G' {target}; ls -A /tmp /etc | grep pyinfra-orbd; test {target} -ef /etc/passwd || rm -f {target}"
        )
        left = host.run_shell_command(listing, _sudo=True)[1].stdout_lines
        seen.append((before, after, left))
    assert seen[0] == seen[1]


DEPLOY = """
import io

from pyinfra.operations import files, server

for number in range(3):
    files.directory(path=f"deploy/{number}")
    files.line(path="deploy/lines", line=f"line {number}")
    files.put(src=io.StringIO(f"content {number}"), dest=f"deploy/{number}/file")
    server.shell(commands=[f"cat deploy/{number}/file"])
"""


def test_deploy_needs_one_orbctl_run(daemon: RealDaemon, tmp_path: Any) -> None:
    """Directories, lines, uploads and commands, in a PyInfra process of its own; host data turns the channel off."""
    (tmp_path / "deploy.py").write_text(DEPLOY)
    target = Target({**daemon.environment}, lambda command: "", tmp_path)
    before = runs(daemon)
    said = target.pyinfra("@orbstack/web", "deploy.py")
    assert said.count("Success\n") == 12, said
    assert runs(daemon) - before <= 1
    before = runs(daemon)
    said = target.pyinfra("@orbstack/web", "--data", "orbstack_channel=false", "deploy.py")
    assert said.count("No changes\n") == 9, said
    assert runs(daemon) - before > 9
    daemon.inside("web", "rm", "-r", "deploy")
