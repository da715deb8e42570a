"""The connector against machines in which commands really run."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import pytest
from pyinfra.api import Config, Inventory, State
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import ConnectError, ConnectorDataTypeError, InventoryError
from pyinfra.api.hiddenvalue import HiddenValue
from pyinfra.api.host import Host
from pyinfra.connectors.util import CommandOutput, OutputLine

from conftest import MakeHost
from fake_daemon import Failure, FakeDaemon, Hangup, Peer, ShellMachines, machine
from orbd import Client, errors
from orbd.errors import ProtocolViolation
from pyinfra_orbd import _files, connector
from pyinfra_orbd._fleet import Fleet
from pyinfra_orbd.connector import OrbStackConnector

names_data = OrbStackConnector.make_names_data


def run(host: Host, command: Any, **arguments: Any) -> tuple[bool, CommandOutput]:
    return host.run_shell_command(command, **arguments)


def lines(output: CommandOutput) -> list[tuple[str, str]]:
    return [(line.buffer_name, line.line) for line in output]


class Said:
    """What the connector printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times: list[float] = []

    def echo(self, text: str, err: bool) -> None:
        assert err
        self.lines.append(text)
        self.times.append(time.monotonic())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """Catches what is printed."""
    said = Said()
    monkeypatch.setattr(connector, "echo", said.echo)
    return said


class TestInventory:
    """Names, data and groups."""

    def test_every_machine_from_one_list(self, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """Names are bare, data and groups are the predecessor's."""
        machines.machines[1].update(machine("db", "stopped", "debian", "amd64"))
        web, db = names_data(None)
        assert web == (
            "web",
            {
                "orbstack_vm": True,
                "orbstack_named": False,
                "vm_name": "web",
                "vm_id": "01WEB",
                "vm_status": "running",
                "vm_distro": "ubuntu",
                "vm_version": "noble",
                "vm_arch": "arm64",
                "vm_username": "mark",
            },
            ["orbstack", "orbstack_running", "orbstack_arm64", "orbstack_ubuntu"],
        )
        assert db[2] == ["orbstack", "orbstack_stopped", "orbstack_amd64", "orbstack_debian"]
        assert daemon.methods() == ["machine.list"]

    def test_one_machine_by_name_or_id(self, machines: ShellMachines) -> None:
        """An id is shown under the machine's name."""
        assert [name for name, _, _ in names_data("web")] == ["web"]
        assert [name for name, _, _ in names_data("01DB")] == ["db"]

    def test_a_name_that_does_not_exist_stays(self, make_host: MakeHost) -> None:
        """A typing mistake is a failure, not an empty inventory."""
        host = make_host("@orbstack/wbe", connect=False)
        assert host.name == "wbe"
        with pytest.raises(ConnectError, match="OrbStack has no machine 'wbe'"):
            host.connect(raise_exceptions=True)

    def test_no_daemon_is_an_inventory_error(self, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says what to do."""
        monkeypatch.setenv("ORBD_SOCKET", str(short_folder / "none"))
        monkeypatch.setenv("ORBD_AUTOSTART", "0")
        with pytest.raises(InventoryError, match="orbd-ctl daemon start"):
            list(names_data(None))
        connector._clients.clear()

    def test_a_list_that_fails_is_an_inventory_error(self, daemon: FakeDaemon) -> None:
        """With the daemon's words."""

        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("orbctl_unavailable", "orbctl was not found", 4001)

        daemon.handlers["machine.list"] = fail
        with pytest.raises(InventoryError, match="orbctl was not found"):
            list(names_data(None))

    def test_the_inventorys_own_name_wins(self, make_host: MakeHost, machines: ShellMachines) -> None:
        """A host can stand for a machine of another name."""
        host = make_host(("@orbstack/web", {"vm_name": "db"}))
        _, output = run(host, "pwd")
        assert output.stdout == str(machines.home("db"))

    def test_both_names_are_registered(self) -> None:
        """``@orbd`` is another name for it."""
        from pyinfra.api.connectors import get_execution_connectors

        found = get_execution_connectors()
        assert found["orbstack"] is found["orbd"] is OrbStackConnector

    def test_every_key_of_data_is_described(self) -> None:
        """PyInfra reads descriptions and defaults from there."""
        assert OrbStackConnector.data_cls.__annotations__.keys() == OrbStackConnector.data_meta.keys()


class TestConnect:
    """What connecting checks and starts."""

    def test_asks_the_cache_once(self, make_host: MakeHost, daemon: FakeDaemon, machines: ShellMachines) -> None:
        """No look of its own where everything is as it should be."""
        make_host()
        assert daemon.methods() == ["machine.list", "machine.list"]
        assert machines.fresh_lists == 0

    def test_starts_a_machine_that_was_named(self, make_host: MakeHost, machines: ShellMachines) -> None:
        """Who names it wants it."""
        machines.set_state("web", "stopped")
        make_host("@orbstack/web")
        assert machines.machines[0]["state"] == "running"

    def test_starts_nothing_that_was_not_named(self, make_host: MakeHost, machines: ShellMachines) -> None:
        """The bare name means what is there, and boots no fleet for one fact."""
        machines.set_state("web", "stopped")
        with pytest.raises(ConnectError, match="'web' is stopped; start it with"):
            make_host("@orbstack")
        assert machines.fresh_lists == 1
        assert machines.machines[0]["state"] == "stopped"

    @pytest.mark.parametrize(("entry", "wanted"), [("@orbstack/web", False), ("@orbstack", True)])
    def test_autostart_decides(self, make_host: MakeHost, machines: ShellMachines, entry: str, wanted: bool) -> None:
        """Either way, from wherever PyInfra takes host data."""
        machines.set_state("web", "stopped")
        host = make_host(entry, connect=False, orbstack_autostart=wanted)
        if not wanted:
            with pytest.raises(ConnectError, match="stopped"):
                host.connect(raise_exceptions=True)
        else:
            host.connect(raise_exceptions=True)
        assert machines.machines[0]["state"] == ("running" if wanted else "stopped")

    def test_all_hosts_ask_once(self, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """Fifty that connect side by side share a list; those that want it fresh share another, begun after they asked."""
        names = [f"m{number}" for number in range(50)]
        machines.machines.extend(machine(name) for name in names)
        inventory = Inventory(([f"@orbstack/{name}" for name in names] + ["@orbstack/none", "@orbstack/void"], {}))
        state = State(inventory, Config(PARALLEL=64, FAIL_PERCENT=100))
        daemon.requests.clear()
        connect_all(state)
        assert len(state.activated_hosts) == 50
        assert daemon.methods() == ["machine.list", "machine.list"]
        assert machines.fresh_lists == 1

    def test_whoever_leads_may_be_interrupted(self, client: Client, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """The others ask for themselves; only a failure is shared."""
        shared = Fleet(client)
        gevent.get_hub()
        answer = daemon.handlers["machine.list"]
        go = threading.Event()

        def slow(peer: Peer, params: dict[str, Any]) -> Any:
            go.wait(5)
            return answer(peer, params)

        daemon.handlers["machine.list"] = slow
        leader = gevent.spawn(shared.machines)
        others = [gevent.spawn(shared.machines) for _ in range(3)]
        gevent.idle()
        leader.kill()
        go.set()
        gevent.joinall(others)
        assert [sorted(other.value) for other in others] == [["01DB", "01WEB", "db", "web"]] * 3

        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("orbctl_unavailable", "no orbctl", 4001)

        daemon.handlers["machine.list"] = fail
        failed = [gevent.spawn(shared.machines) for _ in range(3)]
        gevent.joinall(failed)
        assert [type(one.exception) for one in failed] == [errors.OrbctlUnavailable] * 3

    def test_a_missing_machine_is_made(self, make_host: MakeHost, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """Of the image that the inventory names, with what else it says of it; then commands run in it."""
        wanted = {
            "orbstack_image": "debian:bookworm",
            "orbstack_arch": "amd64",
            "orbstack_default_user": "dev",
            "orbstack_cpus": 2,
            "orbstack_memory": "4G",
            "orbstack_disk": "40G",
            "orbstack_isolated": True,
        }
        host = make_host(("@orbstack/new", wanted))
        assert machines.created == [
            {
                "name": "new",
                "distro": "debian",
                "version": "bookworm",
                "arch": "amd64",
                "user": "dev",
                "cpus": 2,
                "memory": "4G",
                "disk": "40G",
                "isolated": True,
            }
        ]
        assert run(host, "echo up")[1].stdout == "up"

    def test_a_machine_that_is_there_is_left_alone(self, make_host: MakeHost, machines: ShellMachines) -> None:
        """Also one of another image, and one that somebody made a moment ago; it is started if need be."""
        make_host(("@orbstack/web", {"orbstack_image": "debian"}))
        machines.hidden = {"db"}
        machines.set_state("db", "stopped")
        make_host(("@orbstack/db", {"orbstack_image": "debian"}))
        assert [one["state"] for one in machines.machines] == ["running", "running"]
        assert machines.fresh_lists == 2

    def test_a_machine_that_cannot_be_made(self, make_host: MakeHost, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """It is a ConnectError with the daemon's words; the other hosts go on."""

        def refuse(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("invalid_params", "distro: 'Nope!' is not a name of an image", -32602, field="distro")

        daemon.handlers["machine.create"] = refuse
        with pytest.raises(ConnectError, match="machine 'new': distro: 'Nope!' is not"):
            make_host(("@orbstack/new", {"orbstack_image": "Nope!"}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [("orbstack_autostart", "yes"), ("orbstack_image", 12), ("orbstack_cpus", "two"), ("orbstack_user", ["root"])],
    )
    def test_data_of_a_wrong_type(self, make_host: MakeHost, key: str, value: Any) -> None:
        """It is told by its name before anything is asked of anybody."""
        with pytest.raises(ConnectorDataTypeError, match=f"Invalid connector data `{key}`"):
            make_host(("@orbstack/web", {key: value}))

    def test_a_start_that_fails(self, make_host: MakeHost, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """It is a ConnectError with the daemon's words; the other hosts go on."""
        machines.set_state("web", "stopped")

        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("orbctl_failed", "start 'web': no space left", 4002)

        daemon.handlers["machine.start"] = fail
        with pytest.raises(ConnectError, match="machine 'web': start 'web': no space left"):
            make_host()

    def test_no_daemon(self, make_host: MakeHost, daemon: FakeDaemon) -> None:
        """The daemon may die after the inventory was made."""
        host = make_host(connect=False)
        daemon.close()
        with pytest.raises(ConnectError, match="orbd is not running"):
            host.connect(raise_exceptions=True)

    def test_disconnect_and_one_more_command(self, host: Host, daemon: FakeDaemon) -> None:
        """PyInfra removes its askpass file after it has disconnected."""
        host.disconnect()
        assert run(host, "echo still here")[1].stdout == "still here"
        assert daemon.accepted == 2


class TestRun:
    """Commands."""

    def test_output_and_exit_code(self, host: Host, daemon: FakeDaemon) -> None:
        """One message each way."""
        ok, output = run(host, "echo out; echo err >&2; exit 3")
        assert not ok
        assert sorted(lines(output)) == [("stderr", "err"), ("stdout", "out")]
        assert daemon.methods().count("machine.run") == 1

    @pytest.mark.parametrize("print_output", [False, True])
    def test_streams_keep_their_order(self, host: Host, print_output: bool) -> None:
        """As the bytes arrived."""
        command = "for i in 1 2 3; do echo out$i; sleep 0.02; echo err$i >&2; sleep 0.02; done"
        _, output = run(host, command, print_output=print_output)
        assert output.output_lines == ["out1", "err1", "out2", "err2", "out3", "err3"]

    def test_output_is_shown_as_it_comes(self, host: Host, said: Said) -> None:
        """Not at the end."""
        begun = time.monotonic()
        ok, _ = run(host, "echo first; sleep 0.4; echo second >&2", print_output=True)
        assert ok
        assert [text.endswith(word) for text, word in zip(said.lines, ("first", "second"), strict=True)] == [True, True]
        assert said.times[0] - begun < 0.3
        assert said.times[1] - begun >= 0.4

    def test_a_failed_command_is_run_once(self, host: Host, machines: ShellMachines) -> None:
        """Whatever words it or its output contains."""
        run(host, "echo run >>tally; echo 'apt create network timeout connection' >&2; exit 1")
        assert (machines.home("web") / "tally").read_text() == "run\n"

    def test_lines_end_at_newlines_only(self, host: Host) -> None:
        """Progress bars and form feeds are no line ends; neither is an end without one."""
        _, output = run(host, r"printf 'a\rb\fc\vd\n\ne\302\205f\342\200\250g'")
        assert output.stdout_lines == ["a\rb\fc\vd", "", "e\x85f\u2028g"]

    @pytest.mark.parametrize("print_output", [False, True])
    def test_bytes_that_are_not_utf8(self, host: Host, print_output: bool) -> None:
        """They are replaced, and the command has succeeded all the same."""
        ok, output = run(host, r"printf 'caf\351 \303\251\n'", print_output=print_output)
        assert ok
        assert output.stdout == "caf\ufffd é"

    def test_a_character_cut_in_two(self, host: Host) -> None:
        """By the border of two reads."""
        _, output = run(
            host, r"printf '\342\202'; sleep 0.1; printf '\254 caf\303'; sleep 0.1; printf '\251\n'", print_output=True
        )
        assert output.stdout == "€ café"

    def test_much_output(self, host: Host, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """What does not fit into the answer is fetched after it."""
        _, output = run(host, "seq 1 400000")
        assert output.stdout_lines == [str(number) for number in range(1, 400001)]
        assert "job.output" in daemon.methods()

    def test_environment_and_folder(self, host: Host, machines: ShellMachines) -> None:
        """PyInfra's own form of them."""
        (machines.home("web") / "a b").mkdir()
        _, output = run(host, 'echo "$X $PWD"', _env={"X": "it's $HOME"}, _chdir="a b")
        assert output.stdout == f"it's $HOME {machines.home('web')}/a b"

    @pytest.mark.parametrize("shell", ["sh", "bash", None])
    def test_shell_syntax_reaches_a_shell(self, host: Host, shell: str | None) -> None:
        """Pipes, lists and substitutions, also where PyInfra adds no shell of its own."""
        _, output = run(host, "echo one two | wc -w && echo $(echo sub) '!'", _shell_executable=shell)
        assert output.stdout_lines == ["2", "sub !"]

    def test_a_command_is_never_split_again(self, host: Host) -> None:
        """Its bits may hold anything."""
        _, output = run(host, StringCommand("printf", "%s\\\\n", QuoteString("a  b'c\"d$e"), QuoteString("-n")))
        assert output.stdout_lines == ["a  b'c\"d$e", "-n"]

    @pytest.mark.parametrize("live", [False, True])
    def test_success_exit_codes(self, host: Host, live: bool) -> None:
        """Given ones replace the usual one."""
        assert run(host, "exit 2", _success_exit_codes=[0, 2], print_output=live)[0]
        assert not run(host, "exit 0", _success_exit_codes=(2,), print_output=live)[0]

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ("one", "one\n"),
            ("one\ntwo\n", "one\ntwo\n"),
            (["one", "two\n"], "one\ntwo\n"),
            (StringIO("one\ntwo"), "one\ntwo\n"),
            (("one", "é"), "one\né\n"),
            (b"by\xfftes", "by\ufffdtes\n"),
            (iter(["a", "b"]), "a\nb\n"),
            ("", ""),
            (None, ""),
        ],
    )
    def test_input(self, host: Host, given: Any, read: str) -> None:
        """As PyInfra's other connectors write it: lines, each with its end."""
        _, output = run(host, "cat", _stdin=given)
        assert output.stdout == read.removesuffix("\n")

    def test_much_input(self, host: Host) -> None:
        """More than fits into a message goes in pieces."""
        ok, output = run(host, "wc -c", _stdin="x" * (3 << 20))
        assert ok
        assert output.stdout.strip() == str((3 << 20) + 1)

    def test_output_that_is_lost(self, host: Host, daemon: FakeDaemon) -> None:
        """What is missing is told where it is missing, at the beginning, in what goes along with the answer, and afterwards."""

        def chunk(offset: int, text: str) -> dict[str, Any]:
            return {"stream": "stdout", "offset": offset, "at_us": 1, "text": text}

        def more(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
            if params["offset"] == 20:
                return {"output": [], "next_offset": 50, "gap": {"offset": 20, "next_offset": 50}, "eof": False}
            assert params["offset"] == 50
            return {"output": [chunk(50, "c\n")], "next_offset": 52, "end": True}

        daemon.handlers["machine.run"] = lambda peer, params: {
            "job_id": 1,
            "state": "ended",
            "exit_code": 0,
            "output": [chunk(5, "a\n"), chunk(18, "b\n")],
            "next_offset": 20,
            "output_bytes": 52,
        }
        daemon.handlers["job.output"] = more
        _, output = run(host, "anything")
        assert output.stdout_lines == ["a", "b", "c"]
        assert [re.sub(r"\D", "", line) for line in output.stderr_lines] == ["5", "11", "30"]

    def test_output_that_is_gone(self, host: Host, daemon: FakeDaemon) -> None:
        """An answer that brings nothing and says nothing about it is an error."""
        daemon.handlers["machine.run"] = lambda peer, params: {
            "job_id": 1,
            "state": "ended",
            "exit_code": 0,
            "output": [],
            "next_offset": 0,
            "output_bytes": 52,
        }
        daemon.handlers["job.output"] = lambda peer, params: {"output": [], "next_offset": 0, "end": True}
        with pytest.raises(ProtocolViolation, match="output ends at 0 of 52 bytes"):
            run(host, "anything")

    def test_a_timeout(self, host: Host) -> None:
        """It is PyInfra's TimeoutError, in time, and the next command works."""
        for live in (False, True):
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                run(host, "sleep 20", _timeout=0.2, print_output=live)
            assert time.monotonic() - begun < 5
        assert run(host, "echo alive")[1].stdout == "alive"

    def test_time_is_given_in_milliseconds(self, host: Host, daemon: FakeDaemon) -> None:
        """And left out where nobody set it."""
        run(host, "true", _timeout=7)
        run(host, "true", _timeout=None)
        sent = [params.get("run_timeout_ms") for method, params in daemon.requests if method == "machine.run"]
        assert sent == [7000, None]

    def test_secrets_are_masked_in_print_and_true_in_the_command(self, host: Host, said: Said) -> None:
        """Everywhere that PyInfra hides them."""
        command = StringCommand("echo", QuoteString(HiddenValue("s3cret")))
        _, output = run(host, command, print_input=True, _env={"TOKEN": HiddenValue("t0ken")})
        assert output.stdout == "s3cret"
        assert len(said.lines) == 1
        assert "s3cret" not in said.lines[0]
        assert "t0ken" not in said.lines[0]
        assert said.lines[0].count("*MASKED*") == 2

    def test_printing_changes_nothing(self, host: Host, said: Said) -> None:
        """Printed commands succeed as the others do."""
        assert run(host, "echo hi", print_output=True, print_input=True)[0]
        assert [re.sub(r"^\[web\] ", "", text) for text in said.lines] == [">>> sh -c 'echo hi'", "hi"]

    def test_a_user_of_the_inventory(self, make_host: MakeHost, daemon: FakeDaemon) -> None:
        """Host data says as whom."""
        run(make_host(("@orbstack/web", {"orbstack_user": "root"})), "true")
        assert daemon.requests[-1][1]["user"] == "root"

    def test_the_daemon_dies_meanwhile(self, host: Host, daemon: FakeDaemon) -> None:
        """It is a ConnectionError, at once, on both ways."""

        def die(peer: Peer, params: dict[str, Any]) -> None:
            raise Hangup

        daemon.handlers["machine.run"] = daemon.handlers["machine.run_follow"] = die
        for live in (False, True):
            with pytest.raises(ConnectionError):
                run(host, "true", print_output=live)

    def test_the_daemon_dies_in_the_middle_of_output(self, host: Host, daemon: FakeDaemon, said: Said) -> None:
        """What came was shown."""
        timer = threading.Timer(0.3, daemon.hang_up)
        timer.start()
        with pytest.raises(ConnectionError):
            run(host, "echo begun; sleep 20", print_output=True)
        assert [text.endswith("begun") for text in said.lines] == [True]

    @pytest.mark.parametrize("live", [False, True])
    def test_errors_of_the_job(self, host: Host, daemon: FakeDaemon, live: bool) -> None:
        """They are contained to the host: an OSError with the daemon's words."""

        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("deadline_exceeded", "waited 600 s for job 12 (create web) of orbd-ctl", 3003, phase="queued")

        daemon.handlers["machine.run"] = daemon.handlers["machine.run_follow"] = fail
        with pytest.raises(OSError, match=r"job 12 \(create web\)") as caught:
            run(host, "true", print_output=live)
        assert not isinstance(caught.value, TimeoutError)

    def test_the_machine_is_gone(self, host: Host, machines: ShellMachines) -> None:
        """Deleted by somebody since we connected."""
        machines.machines.clear()
        with pytest.raises(errors.MachineNotFound, match="machine not found: 'web'"):
            run(host, "true")


class TestLegacy:
    """Keyword arguments of ``pyinfra-orbstack``, for code of one's own that calls the connector."""

    def test_they_mean_what_they_meant(self, host: Host, machines: ShellMachines, authority: Path) -> None:
        """Each under PyInfra's name, or the daemon's; the note names what to write instead."""
        (machines.home("web") / "sub").mkdir()
        with pytest.warns(DeprecationWarning, match=r"workdir \(_chdir\), timeout \(_timeout\), user .*orbstack_user"):
            _, output = host.run_shell_command("pwd", user="someone", workdir="sub", timeout=5, max_retries=3)
        assert output.stdout.endswith("/web/sub")
        params = machines.daemon.requests[-1][1]
        assert (params["user"], params["run_timeout_ms"]) == ("someone", 5000)
        with pytest.warns(DeprecationWarning, match=r"sudo \(_sudo\), sudo_user \(_sudo_user\), mode \(files.put"):
            host.put_file(BytesIO(b"x"), "there", sudo=True, sudo_user="mark", mode="640")
        assert (machines.home("web") / "there").stat().st_mode & 0o777 == 0o640
        back = BytesIO()
        with pytest.warns(DeprecationWarning, match="sudo"):
            host.get_file("there", back, sudo=True)
        assert back.getvalue() == b"x"

    def test_pyinfras_own_win(self, host: Host, machines: ShellMachines) -> None:
        """Where both were given."""
        with pytest.warns(DeprecationWarning, match="timeout"):
            host.run_shell_command("true", timeout=5, _timeout=7)
        assert machines.daemon.requests[-1][1]["run_timeout_ms"] == 7000


class TestPty:
    """A terminal in the machine."""

    @pytest.mark.parametrize("live", [False, True])
    def test_the_command_has_a_terminal(self, host: Host, live: bool) -> None:
        """And keeps its quoting, its exit code and its line ends."""
        ok, output = run(host, """test -t 0 && test -t 1 && echo "it's a tty"; exit 3""", _get_pty=True, print_output=live)
        assert not ok
        assert output.stdout_lines == ["it's a tty"]
        assert run(host, "exit 3", _get_pty=True, _success_exit_codes=[3])[0]

    def test_input_is_not_echoed(self, host: Host) -> None:
        """The command reads it, and what it writes is all there is."""
        assert run(host, "head -n 1", _get_pty=True, _stdin="typed")[1].stdout == "typed"

    def test_a_machine_without_script(self, host: Host, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """It is told what is missing."""
        real = daemon.handlers["machine.run"]
        empty = machines.folder / "empty"
        empty.mkdir()
        for tool in ("sh", "echo"):
            (empty / tool).symlink_to(f"/bin/{tool}")
        daemon.handlers["machine.run"] = lambda peer, params: real(peer, {**params, "env": {"PATH": str(empty)}})
        ok, output = run(host, "true", _get_pty=True)
        assert not ok
        assert "needs script(1)" in output.stderr


FAKE_SUDO = r"""#!/bin/sh
# Behaves as sudo does towards PyInfra: -n fails without a password, -A asks the program.
ask=
while :; do
    case $1 in
        -A) ask=1; shift ;;
        -n) never=1; shift ;;
        -u) user=$2; shift 2 ;;
        -i) login=1; shift ;;
        -*) shift ;;
        *) break ;;
    esac
done
if [ -e "$HOME/needs-password" ]; then
    if [ -n "$never" ]; then
        echo 'sudo: a password is required' >&2
        exit 1
    fi
    [ "$("$SUDO_ASKPASS")" = "s3cret" ] || { echo 'Sorry, try again.' >&2; exit 1; }
fi
export AS=${user:-root}
if [ -n "$login" ]; then
    command=
    for word; do
        command="$command $(printf '%s' "$word" | LC_ALL=C sed -z 's/[^a-zA-Z0-9_$-]/\\&/g')"
    done
    exec sh -c "$command"
fi
exec "$@"
"""

FAKE_SU = """#!/bin/sh
user=$1
if [ -e "$HOME/needs-password" ]; then
    read -r given
    [ "$given" = "s3cret" ] || { echo 'su: Authentication failure' >&2; exit 1; }
fi
AS=$user exec sh -c "$3"
"""


@pytest.fixture
def authority(machines: ShellMachines) -> Path:
    """Gives ``web`` a sudo, a su, a doas and a setfacl that tell what they were asked."""
    folder = machines.home("web") / "bin"
    folder.mkdir()
    for name, text in {
        "sudo": FAKE_SUDO,
        "doas": FAKE_SUDO,
        "su": FAKE_SU,
        "setfacl": '#!/bin/sh\necho "$@" >>"$HOME/acl"\n',
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


class TestAuthority:
    """sudo, su, doas."""

    def test_sudo_and_doas(self, host: Host, authority: Path) -> None:
        """PyInfra's own wrapping, understood by a shell."""
        assert run(host, "echo $AS && echo two", _sudo=True)[1].stdout_lines == ["root", "two"]
        assert run(host, "echo $AS | cat", _sudo=True, _sudo_user="mark")[1].stdout == "mark"
        assert run(host, "echo $AS", _doas=True, _doas_user="mark")[1].stdout == "mark"

    def test_su_with_and_without_a_shell(self, host: Host, authority: Path) -> None:
        """Pipes and substitutions survive both quotings."""
        for shell in ("sh", None):
            _, output = run(host, "echo $AS | tr a-z A-Z && echo $(echo sub)", _su_user="mark", _shell_executable=shell)
            assert output.stdout_lines == ["MARK", "sub"]

    def test_a_sudo_password_that_is_given(self, host: Host, authority: Path, machines: ShellMachines, said: Said) -> None:
        """Through PyInfra's askpass program, and never shown."""
        (machines.home("web") / "needs-password").touch()
        ok, output = run(host, "echo $AS", _sudo=True, _sudo_password="s3cret", print_input=True)
        assert ok, output
        assert output.stdout == "root"
        assert "s3cret" not in "\n".join(said.lines)
        assert not run(host, "echo $AS", _sudo=True, _sudo_password="wrong")[0]
        host.disconnect()

    def test_a_sudo_password_that_is_asked_for(
        self, host: Host, authority: Path, machines: ShellMachines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PyInfra asks when sudo says so, and the command's input is sent again."""
        (machines.home("web") / "needs-password").touch()
        monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda prompt: "s3cret")
        ok, output = run(host, "echo $AS; cat", _sudo=True, _stdin=StringIO("input"))
        assert ok
        assert output.stdout_lines == ["root", "input"]

    def test_a_su_password(self, host: Host, authority: Path, machines: ShellMachines) -> None:
        """PyInfra pipes it."""
        (machines.home("web") / "needs-password").touch()
        assert run(host, "echo $AS", _su_user="mark", _su_password="s3cret")[1].stdout == "mark"
        assert not run(host, "echo $AS", _su_user="mark", _su_password="wrong")[0]


ALL_BYTES = bytes(range(256)) * 3


class TestFiles:
    """Uploads and downloads."""

    @pytest.mark.parametrize("size", [0, 1, 768, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_001])
    def test_bytes_are_exact(self, host: Host, machines: ShellMachines, tmp_path: Path, size: int) -> None:
        """Both ways, whatever they are and however many."""
        content = (ALL_BYTES * (size // len(ALL_BYTES) + 1))[:size]
        assert host.put_file(BytesIO(content), "there")
        assert (machines.home("web") / "there").read_bytes() == content
        back = BytesIO()
        assert host.get_file("there", back)
        assert back.getvalue() == content

    @pytest.mark.parametrize(
        "make",
        [
            lambda path: str(path),
            lambda path: path,
            lambda path: path.open("rb"),
            lambda path: path.open(encoding="utf-8"),
            lambda path: BytesIO(path.read_bytes()),
            lambda path: StringIO(path.read_bytes().decode()),
        ],
        ids=["str", "Path", "binary file", "text file", "BytesIO", "StringIO"],
    )
    def test_sources(self, host: Host, machines: ShellMachines, tmp_path: Path, make: Callable[[Path], Any]) -> None:
        """Paths and file objects, read from their start wherever they stand."""
        local = tmp_path / "local"
        local.write_text("é\r\nline\n", encoding="utf-8", newline="")
        source = make(local)
        if hasattr(source, "read"):
            source.read()
        host.put_file(source, "there")
        if isinstance(source, TextIOWrapper):
            # A text file was opened with universal newlines: what it reads is what is sent.
            assert (machines.home("web") / "there").read_bytes() == "é\nline\n".encode()
        else:
            assert (machines.home("web") / "there").read_bytes() == local.read_bytes()
        if hasattr(source, "close"):
            assert not source.closed
            source.close()

    def test_sinks(self, host: Host, machines: ShellMachines, tmp_path: Path) -> None:
        """Paths and file objects; text keeps even what is not UTF-8."""
        (machines.home("web") / "there").write_bytes(b"caf\xe9 \xc3\xa9\n")
        host.get_file("there", str(tmp_path / "path"))
        assert (tmp_path / "path").read_bytes() == b"caf\xe9 \xc3\xa9\n"
        text = StringIO()
        host.get_file("there", text)
        assert text.getvalue().encode("utf-8", "surrogateescape") == b"caf\xe9 \xc3\xa9\n"

    def test_names_are_names(self, host: Host, machines: ShellMachines) -> None:
        """Nothing in one is a shell's business."""
        name = "a b'c\"$(touch oops);*"
        host.put_file(BytesIO(b"x"), name)
        assert (machines.home("web") / name).read_bytes() == b"x"
        back = BytesIO()
        host.get_file(name, back)
        assert back.getvalue() == b"x"
        assert [path.name for path in machines.home("web").iterdir()] == [name]

    def test_a_name_that_looks_like_a_flag(self, host: Host, machines: ShellMachines) -> None:
        """It is a name."""
        host.put_file(BytesIO(b"x"), "./-rf")
        assert (machines.home("web") / "-rf").read_bytes() == b"x"

    def test_a_new_file_has_the_users_mode(self, host: Host, machines: ShellMachines) -> None:
        """Not the private one of its temporary file."""
        host.put_file(BytesIO(b"x"), "new")
        mask = os.umask(0)
        os.umask(mask)
        assert (machines.home("web") / "new").stat().st_mode & 0o777 == 0o666 & ~mask

    def test_a_file_that_is_replaced_keeps_mode_and_links(self, host: Host, machines: ShellMachines) -> None:
        """It is written to, not swapped."""
        home = machines.home("web")
        (home / "old").write_bytes(b"old and longer")
        (home / "old").chmod(0o640)
        (home / "hard").hardlink_to(home / "old")
        (home / "soft").symlink_to("old")
        host.put_file(BytesIO(b"new"), "soft")
        assert (home / "hard").read_bytes() == b"new"
        assert (home / "soft").is_symlink()
        assert (home / "old").stat().st_mode & 0o777 == 0o640

    def test_names_survive_a_login_shell_of_sudo(self, host: Host, machines: ShellMachines, authority: Path) -> None:
        """``sudo -i`` escapes its command, but not the dollar signs in it, and eats newlines."""
        name = "a $b 'c'\"é\n\\d`e`"
        host.put_file(BytesIO(ALL_BYTES), name, _sudo=True, _use_sudo_login=True)
        assert (machines.home("web") / name).read_bytes() == ALL_BYTES
        back = BytesIO()
        host.get_file(name, back, _sudo=True, _use_sudo_login=True)
        assert back.getvalue() == ALL_BYTES

    @pytest.mark.parametrize("arguments", [{}, {"_sudo": True}, {"_sudo": True, "_use_sudo_login": True}])
    def test_a_name_in_the_users_home(
        self, host: Host, machines: ShellMachines, authority: Path, arguments: dict[str, Any]
    ) -> None:
        """PyInfra's facts read a leading tilde like this; anywhere else it is a letter. A folder of that name never appears."""
        host.put_file(BytesIO(b"x"), "~/a 'b'", _chdir="/", **arguments)
        back = BytesIO()
        host.get_file("~/a 'b'", back, _chdir="/", **arguments)
        assert back.getvalue() == b"x"
        host.put_file(BytesIO(b"y"), "~", **arguments)
        assert sorted(path.name for path in machines.home("web").iterdir() if path.is_file()) == ["a 'b'", "~"]

    def test_a_large_file_says_how_far_it_is(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Every five seconds, on the level that everybody sees; here the clock is in a hurry."""
        moments = count(0, 3)
        monkeypatch.setattr("pyinfra_orbd._files.time.monotonic", lambda: float(next(moments)))
        told: list[str] = []
        progress = _files.Progress("upload of x", 4_000_000, told.append)
        assert b"".join(progress.of(iter([b"x" * 1_000_000] * 4))) == b"x" * 4_000_000
        assert told == ["upload of x: 2.0 of 4.0 MB (50 %)", "upload of x: 4.0 of 4.0 MB (100 %)"]
        caplog.set_level("INFO", "pyinfra")
        host.put_file(BytesIO(b"x" * 2_000_000), "there")
        host.get_file("there", BytesIO())
        assert re.search(r"\[web\] upload of there: \d\.\d of 2\.0 MB \(\d+ %\)", caplog.text)
        assert re.search(r"\[web\] download of there: \d\.\d MB", caplog.text)

    def test_chdir_counts(self, host: Host, machines: ShellMachines) -> None:
        """As it does for the facts that look at the same file."""
        (machines.home("web") / "sub").mkdir()
        host.put_file(BytesIO(b"x"), "there", _chdir="sub")
        assert (machines.home("web") / "sub/there").exists()

    @pytest.mark.parametrize(
        ("target", "reason"),
        [("folder", "is a directory"), ("none/there", r"none/there"), ("bin/x/y", "y")],
    )
    def test_an_upload_that_fails_says_why(self, host: Host, machines: ShellMachines, target: str, reason: str) -> None:
        """As an OSError, which PyInfra contains, and leaves nothing behind."""
        (machines.home("web") / "folder").mkdir()
        with pytest.raises(OSError, match=f"upload of {target} failed: .*{reason}"):
            host.put_file(BytesIO(b"x"), target)
        assert [path.name for path in machines.home("web").iterdir()] == ["folder"]

    def test_a_local_file_that_is_missing(self, host: Host, tmp_path: Path) -> None:
        """It fails before anything is asked of the machine."""
        with pytest.raises(FileNotFoundError):
            host.put_file(str(tmp_path / "none"), "there")

    def test_something_that_is_no_file(self, host: Host) -> None:
        """A mistake of the caller's, told as such."""
        with pytest.raises(TypeError, match="neither a file name nor a file object"):
            host.put_file(7, "there")
        with pytest.raises(TypeError, match="neither a file name nor a file object"):
            host.get_file("there", 7)

    @pytest.mark.parametrize("old", [None, b"old"])
    def test_half_an_upload_is_no_upload(
        self, host: Host, machines: ShellMachines, daemon: FakeDaemon, old: bytes | None
    ) -> None:
        """A stream that was cut short leaves the target as it was, though the script in the machine lives on."""
        home = machines.home("web")
        if old is not None:
            (home / "there").write_bytes(old)
        real = daemon.handlers["job.input"]

        def cut(peer: Peer, params: dict[str, Any]) -> Any:
            real(peer, {**params, "end": True})
            raise Hangup

        daemon.handlers["job.input"] = cut
        daemon.on_gone = lambda peer: None
        with pytest.raises(ConnectionError):
            host.put_file(BytesIO(b"x" * (2 << 20)), "there")
        deadline = time.monotonic() + 5
        while machines.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [path.read_bytes() for path in home.iterdir()] == ([] if old is None else [old])

    def test_a_local_file_that_shrinks(self, host: Host, machines: ShellMachines, tmp_path: Path) -> None:
        """What was promised did not come."""
        local = tmp_path / "log"
        local.write_bytes(b"x" * 100)

        class Shrinking(_files.Source):
            def __enter__(self) -> Any:
                super().__enter__()
                self.size += 5
                return self

        with Shrinking(str(local)) as source, pytest.raises(OSError, match="only 100 of 105 bytes came"):
            host.connector._put(source, "there", {}, {})  # type: ignore[attr-defined]
        assert list(machines.home("web").iterdir()) == []

    def test_a_download_of_nothing(self, host: Host, tmp_path: Path) -> None:
        """Nothing of the caller's is touched."""
        local = tmp_path / "local"
        local.write_bytes(b"mine")
        with pytest.raises(FileNotFoundError, match="none"):
            host.get_file("none", str(local))
        assert local.read_bytes() == b"mine"
        assert [path.name for path in tmp_path.iterdir() if path.name != "machines"] == ["local"]

    def test_a_download_of_a_folder(self, host: Host, machines: ShellMachines) -> None:
        """It cannot be."""
        (machines.home("web") / "folder").mkdir()
        with pytest.raises(OSError, match=r"download of folder failed: .*[Ii]s a directory"):
            host.get_file("folder", BytesIO())

    def test_a_download_that_is_cut_short(self, host: Host, machines: ShellMachines, daemon: FakeDaemon, tmp_path: Path) -> None:
        """The local file is as it was, with nothing beside it."""
        fifo = machines.home("web") / "fifo"
        os.mkfifo(fifo)
        target = tmp_path / "out"
        target.mkdir()
        (target / "local").write_bytes(b"mine")
        # Held open for writing, so that the machine's end waits for more.
        held = os.open(fifo, os.O_RDWR)
        os.write(held, b"part")
        threading.Timer(0.3, daemon.hang_up).start()
        with pytest.raises(ConnectionError):
            host.get_file("fifo", str(target / "local"))
        os.close(held)
        assert [(path.name, path.read_bytes()) for path in target.iterdir()] == [("local", b"mine")]

    def test_a_profile_that_talks(self, host: Host, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """What a login shell prints before us is not part of the file."""
        (machines.home("web") / "there").write_bytes(ALL_BYTES)
        real = daemon.handlers["machine.run_follow"]

        def chatty(peer: Peer, params: dict[str, Any]) -> Any:
            return real(peer, {**params, "command": ["sh", "-c", 'echo "Welcome!"; exec "$@"', "x", *params["command"]]})

        daemon.handlers["machine.run_follow"] = chatty
        back = BytesIO()
        host.get_file("there", back)
        assert back.getvalue() == ALL_BYTES

    def test_a_local_file_keeps_its_mode(self, host: Host, machines: ShellMachines, tmp_path: Path) -> None:
        """And a device is written through."""
        (machines.home("web") / "there").write_bytes(b"x")
        local = tmp_path / "local"
        local.touch(0o600)
        host.get_file("there", str(local))
        assert local.stat().st_mode & 0o777 == 0o600
        host.get_file("there", "/dev/null")
        assert Path("/dev/null").is_char_device()

    @pytest.mark.parametrize("arguments", [{"_sudo": True}, {"_doas": True}, {"_su_user": "mark"}])
    @pytest.mark.parametrize("size", [10, 2 << 20])
    def test_with_authority(
        self, host: Host, machines: ShellMachines, authority: Path, arguments: dict[str, Any], size: int, daemon: FakeDaemon
    ) -> None:
        """Who is to own the file writes it: one command, no readable copy for others in between."""
        before = len(daemon.methods())
        host.put_file(BytesIO(b"\xff" * size), "there", **arguments)
        assert (machines.home("web") / "there").read_bytes() == b"\xff" * size
        assert {"machine.run", "machine.run_follow"} & set(daemon.methods()[before:])
        back = BytesIO()
        host.get_file("there", back, **arguments)
        assert back.getvalue() == b"\xff" * size

    def test_with_a_sudo_password(
        self, host: Host, machines: ShellMachines, authority: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Asked for, the file is sent again from its start."""
        (machines.home("web") / "needs-password").touch()
        monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda prompt: "s3cret")
        host.put_file(BytesIO(ALL_BYTES), "there", _sudo=True)
        back = BytesIO()
        host.get_file("there", back, _sudo=True)
        assert back.getvalue() == ALL_BYTES

    @pytest.mark.parametrize("user", ["root", "mark"])
    def test_with_a_su_password(self, host: Host, machines: ShellMachines, authority: Path, user: str, tmp_path: Path) -> None:
        """Su reads it from stdin, so the file goes by way of a temporary one that only the user may read."""
        home = machines.home("web")
        (home / "needs-password").touch()
        folder = tmp_path / "temporary"
        folder.mkdir()
        arguments = {"_su_user": user, "_su_password": "s3cret", "_temp_dir": str(folder)}
        host.put_file(BytesIO(ALL_BYTES), "there", **arguments)
        assert (home / "there").read_bytes() == ALL_BYTES
        assert (home / "acl").exists() is (user == "mark")
        assert [path.name for path in folder.iterdir() if "askpass" not in path.name] == []
        back = BytesIO()
        host.get_file("there", back, **arguments)
        assert back.getvalue() == ALL_BYTES

    def test_rsync_is_not_there(self, host: Host) -> None:
        """PyInfra's operation turns this into its own message."""
        with pytest.raises(NotImplementedError):
            host.check_can_rsync()

    def test_it_tells_what_it_did(self, host: Host, said: Said) -> None:
        """Names only, no content."""
        host.put_file(StringIO("s3cret"), "there", print_output=True, print_input=True)
        host.get_file("there", StringIO(), print_output=True)
        assert [text.split("] ", 1)[1] for text in said.lines] == [
            ">>> upload there",
            "file uploaded: there",
            "file downloaded: there",
        ]


def test_lost_output_is_told() -> None:
    """Bytes that the daemon dropped leave a line behind."""
    from pyinfra_orbd._lines import Lines

    collected = Lines(None)
    collected.lost(5)
    assert collected.finish() == [OutputLine("stderr", "[orbd] 5 bytes of output were dropped here: the spool was full")]


class TestCallerEnvironment:
    """What a command gets from the environment of the process that runs PyInfra."""

    def test_only_what_orbctl_run_reads_is_sent(
        self, make_host: MakeHost, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ORBENV, what it lists, TERM, DISPLAY and proxies, read anew for each command."""
        given = {"ORBENV": "TOKEN:UNSET:CI/p:ORBD_JOB", "TOKEN": "s", "CI": "1", "ORBD_JOB": "x", "no_proxy": "a", "TERM": "dumb"}
        for name in list(os.environ):
            if name not in ("PATH", "HOME", "ORBD_SOCKET"):
                monkeypatch.delenv(name)
        for name, value in {**given, "SECRET": "x"}.items():
            monkeypatch.setenv(name, value)
        host = make_host("@orbstack/web")
        run(host, "true")
        sent = [params["caller_env"] for method, params in daemon.requests if method.startswith("machine.run")]
        expected = {name: value for name, value in given.items() if name != "ORBD_JOB"}
        assert sent
        assert all(variables == expected for variables in sent)
        monkeypatch.setenv("TOKEN", "t")
        run(host, "true", print_output=True)
        last = [params for method, params in daemon.requests if method.startswith("machine.run")][-1]
        assert last["caller_env"]["TOKEN"] == "t"
