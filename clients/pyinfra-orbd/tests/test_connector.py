"""Tests of the connector with fake machines that run commands in a real shell."""

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
from pyinfra_orbd import _client, _files, connector
from pyinfra_orbd._client import MachineCache
from pyinfra_orbd.connector import OrbStackConnector

names_data = OrbStackConnector.make_names_data


def run(host: Host, command: Any, **arguments: Any) -> tuple[bool, CommandOutput]:
    return host.run_shell_command(command, **arguments)


def use_all(host: Host) -> None:
    """Runs a command without and with live output, and transfers files in every way."""
    run(host, "echo run >>tally")
    run(host, "echo run >>tally", print_output=True)
    host.put_file(BytesIO(b"small"), "small")
    host.put_file(BytesIO(b"x" * (2 << 20)), "large")
    host.get_file("small", BytesIO())


def lines(output: CommandOutput) -> list[tuple[str, str]]:
    return [(line.buffer_name, line.line) for line in output]


class CapturedOutput:
    """Captures the connector's output."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.times: list[float] = []

    def echo(self, text: str, err: bool) -> None:
        assert err
        self.lines.append(text)
        self.times.append(time.monotonic())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> CapturedOutput:
    """Captures the output of the connector."""
    said = CapturedOutput()
    monkeypatch.setattr(connector, "echo", said.echo)
    return said


class TestInventory:
    """Names, data and groups of hosts."""

    def test_inventory_of_all_machines_takes_one_list_call(self, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """The format of names, data and groups is that of the predecessor."""
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

    def test_inventory_finds_a_machine_by_name_or_id(self, machines: ShellMachines) -> None:
        """If an id is given, the host still has the machine's name."""
        assert [name for name, _, _ in names_data("web")] == ["web"]
        assert [name for name, _, _ in names_data("01DB")] == ["db"]

    def test_unknown_machine_stays_in_the_inventory_and_fails_to_connect(self, make_host: MakeHost) -> None:
        """A mistyped name must not produce an empty inventory."""
        host = make_host("@orbstack/wbe", connect=False)
        assert host.name == "wbe"
        with pytest.raises(ConnectError, match="OrbStack has no machine 'wbe'"):
            host.connect(raise_exceptions=True)

    def test_missing_daemon_is_an_inventory_error_with_the_start_command(
        self, short_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ORBD_SOCKET", str(short_folder / "none"))
        monkeypatch.setenv("ORBD_AUTOSTART", "0")
        with pytest.raises(InventoryError, match="orbd-ctl daemon start"):
            list(names_data(None))
        _client._clients.clear()

    def test_failed_list_is_an_inventory_error_with_the_daemons_message(self, daemon: FakeDaemon) -> None:
        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("orbctl_unavailable", "orbctl was not found", 4001)

        daemon.handlers["machine.list"] = fail
        with pytest.raises(InventoryError, match="orbctl was not found"):
            list(names_data(None))

    def test_vm_name_overrides_the_host_name(self, make_host: MakeHost, machines: ShellMachines) -> None:
        """A host can stand for a machine with another name."""
        host = make_host(("@orbstack/web", {"vm_name": "db"}))
        _, output = run(host, "pwd")
        assert output.stdout == str(machines.home("db"))

    def test_orbstack_and_orbd_are_both_registered(self) -> None:
        """``@orbd`` is an alias."""
        from pyinfra.api.connectors import get_execution_connectors

        found = get_execution_connectors()
        assert found["orbstack"] is found["orbd"] is OrbStackConnector

    def test_every_host_data_key_has_metadata(self) -> None:
        """PyInfra reads descriptions and defaults from there."""
        assert OrbStackConnector.data_cls.__annotations__.keys() == OrbStackConnector.data_meta.keys()


class TestConnect:
    """Checks and changes while connecting."""

    def test_connect_uses_the_daemons_cache(self, make_host: MakeHost, daemon: FakeDaemon, machines: ShellMachines) -> None:
        """If the machine runs, no fresh list is needed."""
        make_host()
        assert daemon.methods() == ["machine.list", "machine.list"]
        assert machines.fresh_lists == 0

    def test_connect_starts_a_stopped_machine_that_the_inventory_names(
        self, make_host: MakeHost, machines: ShellMachines
    ) -> None:
        machines.set_state("web", "stopped")
        make_host("@orbstack/web")
        assert machines.machines[0]["state"] == "running"

    def test_connect_does_not_start_stopped_machines_of_a_bare_inventory(
        self, make_host: MakeHost, machines: ShellMachines
    ) -> None:
        """A fact about all machines must not boot them."""
        machines.set_state("web", "stopped")
        with pytest.raises(ConnectError, match="'web' is stopped; start it with"):
            make_host("@orbstack")
        assert machines.fresh_lists == 1
        assert machines.machines[0]["state"] == "stopped"

    @pytest.mark.parametrize(("entry", "wanted"), [("@orbstack/web", False), ("@orbstack", True)])
    def test_orbstack_autostart_overrides_the_default(
        self, make_host: MakeHost, machines: ShellMachines, entry: str, wanted: bool
    ) -> None:
        machines.set_state("web", "stopped")
        host = make_host(entry, connect=False, orbstack_autostart=wanted)
        if not wanted:
            with pytest.raises(ConnectError, match="stopped"):
                host.connect(raise_exceptions=True)
        else:
            host.connect(raise_exceptions=True)
        assert machines.machines[0]["state"] == ("running" if wanted else "stopped")

    def test_concurrent_hosts_share_one_list_call(self, machines: ShellMachines, daemon: FakeDaemon) -> None:
        """Fifty hosts share one list. Hosts that need fresh data share another one, requested after they asked."""
        names = [f"m{number}" for number in range(50)]
        machines.machines.extend(machine(name) for name in names)
        inventory = Inventory(([f"@orbstack/{name}" for name in names] + ["@orbstack/none", "@orbstack/void"], {}))
        state = State(inventory, Config(PARALLEL=64, FAIL_PERCENT=100))
        daemon.requests.clear()
        connect_all(state)
        assert len(state.activated_hosts) == 50
        assert daemon.methods() == ["machine.list", "machine.list"]
        assert machines.fresh_lists == 1

    def test_waiting_hosts_retry_if_the_shared_list_call_is_interrupted(
        self, client: Client, machines: ShellMachines, daemon: FakeDaemon
    ) -> None:
        """An interruption of the requesting greenlet affects only itself; an error of the daemon is shared."""
        shared = MachineCache(client)
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

    def test_connect_creates_a_missing_machine_from_the_host_data(
        self, make_host: MakeHost, machines: ShellMachines, daemon: FakeDaemon
    ) -> None:
        """Afterwards commands run in it."""
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

    def test_connect_uses_an_existing_machine_whatever_its_image(self, make_host: MakeHost, machines: ShellMachines) -> None:
        """Also a machine that another client created a moment ago; a stopped one is started."""
        make_host(("@orbstack/web", {"orbstack_image": "debian"}))
        machines.hidden = {"db"}
        machines.set_state("db", "stopped")
        make_host(("@orbstack/db", {"orbstack_image": "debian"}))
        assert [one["state"] for one in machines.machines] == ["running", "running"]
        assert machines.fresh_lists == 2

    def test_failed_create_is_a_connect_error_with_the_daemons_message(
        self, make_host: MakeHost, machines: ShellMachines, daemon: FakeDaemon
    ) -> None:
        def refuse(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("invalid_params", "distro: 'Nope!' is not a name of an image", -32602, field="distro")

        daemon.handlers["machine.create"] = refuse
        with pytest.raises(ConnectError, match="machine 'new': distro: 'Nope!' is not"):
            make_host(("@orbstack/new", {"orbstack_image": "Nope!"}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("orbstack_autostart", "yes"),
            ("orbstack_channel", "off"),
            ("orbstack_image", 12),
            ("orbstack_cpus", "two"),
            ("orbstack_user", ["root"]),
        ],
    )
    def test_host_data_of_a_wrong_type_is_rejected_by_name(self, make_host: MakeHost, key: str, value: Any) -> None:
        """Before any call to the daemon."""
        with pytest.raises(ConnectorDataTypeError, match=f"Invalid connector data `{key}`"):
            make_host(("@orbstack/web", {key: value}))

    def test_failed_start_is_a_connect_error_with_the_daemons_message(
        self, make_host: MakeHost, machines: ShellMachines, daemon: FakeDaemon
    ) -> None:
        machines.set_state("web", "stopped")

        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("orbctl_failed", "start 'web': no space left", 4002)

        daemon.handlers["machine.start"] = fail
        with pytest.raises(ConnectError, match="machine 'web': start 'web': no space left"):
            make_host()

    def test_daemon_that_died_after_the_inventory_is_a_connect_error(self, make_host: MakeHost, daemon: FakeDaemon) -> None:
        host = make_host(connect=False)
        daemon.close()
        with pytest.raises(ConnectError, match="orbd is not running"):
            host.connect(raise_exceptions=True)

    def test_command_after_disconnect_opens_a_new_connection(self, host: Host, daemon: FakeDaemon) -> None:
        """PyInfra removes its askpass file after it has disconnected."""
        host.disconnect()
        assert run(host, "echo still here")[1].stdout == "still here"
        assert daemon.accepted == 2


class TestRun:
    """Commands."""

    def test_output_and_exit_code_need_one_call(self, host: Host, daemon: FakeDaemon) -> None:
        ok, output = run(host, "echo out; echo err >&2; exit 3")
        assert not ok
        assert sorted(lines(output)) == [("stderr", "err"), ("stdout", "out")]
        assert daemon.methods().count("machine.run") == 1

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({}, "echo $0"),
            ({"_chdir": "/"}, "cd / && echo $0"),
            ({"_shell_executable": "bash"}, "bash -c 'echo $0'"),
            ({"_shell_executable": None}, "echo $0"),
            ({"_sudo": True}, "sudo -H -n sh -c 'echo $0'"),
        ],
    )
    def test_shell_that_would_only_start_another_is_left_out(
        self, host: Host, daemon: FakeDaemon, authority: Path, arguments: dict[str, Any], expected: str
    ) -> None:
        _, output = run(host, "echo $0", **arguments)
        assert output.stdout in ("sh", "bash")
        assert daemon.requests[-1][1]["command"] == ["sh", "-c", expected]

    @pytest.mark.parametrize("print_output", [False, True])
    def test_stdout_and_stderr_keep_their_order(self, host: Host, print_output: bool) -> None:
        command = "for i in 1 2 3; do echo out$i; sleep 0.02; echo err$i >&2; sleep 0.02; done"
        _, output = run(host, command, print_output=print_output)
        assert output.output_lines == ["out1", "err1", "out2", "err2", "out3", "err3"]

    def test_output_is_printed_as_it_arrives(self, host: Host, said: CapturedOutput) -> None:
        begun = time.monotonic()
        ok, _ = run(host, "echo first; sleep 0.4; echo second >&2", print_output=True)
        assert ok
        assert [text.endswith(word) for text, word in zip(said.lines, ("first", "second"), strict=True)] == [True, True]
        assert said.times[0] - begun < 0.3
        assert said.times[1] - begun >= 0.4

    def test_failed_command_is_not_retried(self, host: Host, machines: ShellMachines) -> None:
        """Whatever text it or its output contains."""
        run(host, "echo run >>tally; echo 'apt create network timeout connection' >&2; exit 1")
        assert (machines.home("web") / "tally").read_text() == "run\n"

    def test_only_newlines_end_a_line(self, host: Host) -> None:
        """Carriage returns and form feeds do not; a last line without a newline is complete."""
        _, output = run(host, r"printf 'a\rb\fc\vd\n\ne\302\205f\342\200\250g'")
        assert output.stdout_lines == ["a\rb\fc\vd", "", "e\x85f\u2028g"]

    @pytest.mark.parametrize("print_output", [False, True])
    def test_invalid_utf8_is_replaced_and_does_not_fail_the_command(self, host: Host, print_output: bool) -> None:
        ok, output = run(host, r"printf 'caf\351 \303\251\n'", print_output=print_output)
        assert ok
        assert output.stdout == "caf\ufffd é"

    def test_character_split_between_two_chunks_is_decoded(self, host: Host) -> None:
        _, output = run(
            host, r"printf '\342\202'; sleep 0.1; printf '\254 caf\303'; sleep 0.1; printf '\251\n'", print_output=True
        )
        assert output.stdout == "€ café"

    def test_output_beyond_the_inline_limit_is_fetched(self, host: Host, machines: ShellMachines, daemon: FakeDaemon) -> None:
        _, output = run(host, "seq 1 400000")
        assert output.stdout_lines == [str(number) for number in range(1, 400001)]
        assert "job.output" in daemon.methods()

    def test_env_and_chdir_reach_the_command(self, host: Host, machines: ShellMachines) -> None:
        (machines.home("web") / "a b").mkdir()
        _, output = run(host, 'echo "$X $PWD"', _env={"X": "it's $HOME"}, _chdir="a b")
        assert output.stdout == f"it's $HOME {machines.home('web')}/a b"

    @pytest.mark.parametrize("shell", ["sh", "bash", None])
    def test_shell_syntax_works_with_and_without_an_outer_shell(self, host: Host, shell: str | None) -> None:
        """Pipes, lists and substitutions."""
        _, output = run(host, "echo one two | wc -w && echo $(echo sub) '!'", _shell_executable=shell)
        assert output.stdout_lines == ["2", "sub !"]

    def test_quoted_arguments_are_not_split(self, host: Host) -> None:
        _, output = run(host, StringCommand("printf", "%s\\\\n", QuoteString("a  b'c\"d$e"), QuoteString("-n")))
        assert output.stdout_lines == ["a  b'c\"d$e", "-n"]

    @pytest.mark.parametrize("live", [False, True])
    def test_success_exit_codes_replace_the_default(self, host: Host, live: bool) -> None:
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
    def test_stdin_is_lines_with_newlines(self, host: Host, given: Any, read: str) -> None:
        """In the same form as in PyInfra's other connectors."""
        _, output = run(host, "cat", _stdin=given)
        assert output.stdout == read.removesuffix("\n")

    def test_large_stdin_is_sent_in_pieces(self, host: Host) -> None:
        ok, output = run(host, "wc -c", _stdin="x" * (3 << 20))
        assert ok
        assert output.stdout.strip() == str((3 << 20) + 1)

    def test_dropped_output_is_reported_at_its_position(self, host: Host, daemon: FakeDaemon) -> None:
        """At the start, within the answer's output, and in output that is fetched afterwards."""

        def chunk(offset: int, text: str) -> dict[str, Any]:
            return {"stream": "stdout", "offset": offset, "at_us": 1, "text": text}

        def more(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
            if params["offset"] == 20:
                return {"output": [], "next_offset": 50, "gap": {"offset": 20, "next_offset": 50}, "eof": False}
            assert params["offset"] == 50
            return {"output": [chunk(50, "c\n")], "next_offset": 52, "eof": True}

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

    def test_missing_output_without_a_gap_is_a_protocol_violation(self, host: Host, daemon: FakeDaemon) -> None:
        daemon.handlers["machine.run"] = lambda peer, params: {
            "job_id": 1,
            "state": "ended",
            "exit_code": 0,
            "output": [],
            "next_offset": 0,
            "output_bytes": 52,
        }
        daemon.handlers["job.output"] = lambda peer, params: {"output": [], "next_offset": 0, "eof": True}
        with pytest.raises(ProtocolViolation, match="output ends at 0 of 52 bytes"):
            run(host, "anything")

    def test_timeout_raises_timeout_error_and_the_next_command_works(self, host: Host) -> None:
        for live in (False, True):
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                run(host, "sleep 20", _timeout=0.2, print_output=live)
            assert time.monotonic() - begun < 5
        assert run(host, "echo alive")[1].stdout == "alive"

    def test_timeout_is_sent_in_milliseconds_if_set(self, host: Host, daemon: FakeDaemon) -> None:
        run(host, "true", _timeout=7)
        run(host, "true", _timeout=None)
        sent = [params.get("run_timeout_ms") for method, params in daemon.requests if method == "machine.run"]
        assert sent == [7000, None]

    def test_secrets_are_masked_in_output_but_not_in_the_command(self, host: Host, said: CapturedOutput) -> None:
        command = StringCommand("echo", QuoteString(HiddenValue("s3cret")))
        _, output = run(host, command, print_input=True, _env={"TOKEN": HiddenValue("t0ken")})
        assert output.stdout == "s3cret"
        assert len(said.lines) == 1
        assert "s3cret" not in said.lines[0]
        assert "t0ken" not in said.lines[0]
        assert said.lines[0].count("*MASKED*") == 2

    def test_print_flags_do_not_change_the_result(self, host: Host, said: CapturedOutput) -> None:
        assert run(host, "echo hi", print_output=True, print_input=True)[0]
        assert [re.sub(r"^\[web\] ", "", text) for text in said.lines] == [">>> sh -c 'echo hi'", "hi"]

    def test_orbstack_user_is_the_user_of_commands(self, make_host: MakeHost, daemon: FakeDaemon) -> None:
        run(make_host(("@orbstack/web", {"orbstack_user": "root"})), "true")
        assert daemon.requests[-1][1]["user"] == "root"

    @pytest.mark.parametrize(
        ("data", "expected"), [({}, "open"), ({"orbstack_channel": True}, "open"), ({"orbstack_channel": False}, "off")]
    )
    def test_every_command_and_transfer_says_whether_a_channel_may_open(
        self, make_host: MakeHost, daemon: FakeDaemon, data: dict[str, bool], expected: str
    ) -> None:
        use_all(make_host(("@orbstack/web", data)))
        sent = [params["channel"] for method, params in daemon.requests if method.startswith("machine.run")]
        assert sent == [expected] * 5

    def test_daemon_that_knows_no_channels_runs_each_command_once(
        self, host: Host, daemon: FakeDaemon, machines: ShellMachines
    ) -> None:
        """It refuses the parameter, and gets no other request with it."""
        refused: list[str] = []

        def older(method: str) -> Any:
            real = daemon.handlers[method]

            def handle(peer: Peer, params: dict[str, Any]) -> Any:
                if "channel" in params:
                    refused.append(method)
                    raise Failure("invalid_params", "unknown parameter 'channel'", -32602, field="channel")
                return real(peer, params)

            return handle

        for method in ("machine.run", "machine.run_follow"):
            daemon.handlers[method] = older(method)
        use_all(host)
        assert (machines.home("web") / "tally").read_text() == "run\n" * 2
        assert refused == ["machine.run"]
        _client.client()._unknown.clear()
        host.put_file(BytesIO(b"x" * (2 << 20)), "large")
        assert (machines.home("web") / "large").stat().st_size == 2 << 20
        assert refused == ["machine.run", "machine.run_follow"]

    @pytest.mark.parametrize("live", [False, True])
    def test_refusal_of_another_parameter_is_an_error(self, host: Host, daemon: FakeDaemon, live: bool) -> None:
        def refuse(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("invalid_params", "user: not a name", -32602, field="user")

        daemon.handlers["machine.run"] = daemon.handlers["machine.run_follow"] = refuse
        with pytest.raises(errors.InvalidParams, match="user: not a name"):
            run(host, "true", print_output=live)
        assert sum(method.startswith("machine.run") for method in daemon.methods()) == 1

    def test_daemon_that_dies_during_a_command_is_a_connection_error(self, host: Host, daemon: FakeDaemon) -> None:
        """With and without live output."""

        def die(peer: Peer, params: dict[str, Any]) -> None:
            raise Hangup

        daemon.handlers["machine.run"] = daemon.handlers["machine.run_follow"] = die
        for live in (False, True):
            with pytest.raises(ConnectionError):
                run(host, "true", print_output=live)

    def test_output_before_the_daemon_died_is_printed(self, host: Host, daemon: FakeDaemon, said: CapturedOutput) -> None:
        timer = threading.Timer(0.3, daemon.hang_up)
        timer.start()
        with pytest.raises(ConnectionError):
            run(host, "echo begun; sleep 20", print_output=True)
        assert [text.endswith("begun") for text in said.lines] == [True]

    @pytest.mark.parametrize("live", [False, True])
    def test_job_error_is_an_os_error_with_the_daemons_message(self, host: Host, daemon: FakeDaemon, live: bool) -> None:
        """PyInfra limits an ``OSError`` to the host."""

        def fail(peer: Peer, params: dict[str, Any]) -> None:
            raise Failure("deadline_exceeded", "waited 600 s for job 12 (create web) of orbd-ctl", 3003, phase="queued")

        daemon.handlers["machine.run"] = daemon.handlers["machine.run_follow"] = fail
        with pytest.raises(OSError, match=r"job 12 \(create web\)") as caught:
            run(host, "true", print_output=live)
        assert not isinstance(caught.value, TimeoutError)

    def test_machine_deleted_after_connect_is_machine_not_found(self, host: Host, machines: ShellMachines) -> None:
        machines.machines.clear()
        with pytest.raises(errors.MachineNotFound, match="machine not found: 'web'"):
            run(host, "true")


class TestLegacy:
    """Keyword arguments of ``pyinfra-orbstack``, for code that calls the connector directly."""

    def test_legacy_arguments_work_and_the_warning_names_their_replacement(
        self, host: Host, machines: ShellMachines, authority: Path
    ) -> None:
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

    def test_pyinfra_arguments_override_legacy_arguments(self, host: Host, machines: ShellMachines) -> None:
        with pytest.warns(DeprecationWarning, match="timeout"):
            host.run_shell_command("true", timeout=5, _timeout=7)
        assert machines.daemon.requests[-1][1]["run_timeout_ms"] == 7000


class TestPty:
    """A terminal in the machine."""

    @pytest.mark.parametrize("live", [False, True])
    def test_get_pty_gives_the_command_a_terminal(self, host: Host, live: bool) -> None:
        """Quoting, exit code and line ends are preserved."""
        ok, output = run(host, """test -t 0 && test -t 1 && echo "it's a tty"; exit 3""", _get_pty=True, print_output=live)
        assert not ok
        assert output.stdout_lines == ["it's a tty"]
        assert run(host, "exit 3", _get_pty=True, _success_exit_codes=[3])[0]

    def test_get_pty_does_not_echo_stdin(self, host: Host) -> None:
        assert run(host, "head -n 1", _get_pty=True, _stdin="typed")[1].stdout == "typed"

    def test_get_pty_without_script_names_the_missing_package(
        self, host: Host, machines: ShellMachines, daemon: FakeDaemon
    ) -> None:
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
# Behaves like sudo: -n fails if a password is required, -A runs the askpass program.
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
    """Gives ``web`` fake ``sudo``, ``su``, ``doas`` and ``setfacl`` programs that report their arguments."""
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
    """Commands with sudo, su and doas."""

    def test_sudo_and_doas_wrap_a_shell_command(self, host: Host, authority: Path) -> None:
        assert run(host, "echo $AS && echo two", _sudo=True)[1].stdout_lines == ["root", "two"]
        assert run(host, "echo $AS | cat", _sudo=True, _sudo_user="mark")[1].stdout == "mark"
        assert run(host, "echo $AS", _doas=True, _doas_user="mark")[1].stdout == "mark"

    def test_su_preserves_shell_syntax_with_and_without_a_shell(self, host: Host, authority: Path) -> None:
        for shell in ("sh", None):
            _, output = run(host, "echo $AS | tr a-z A-Z && echo $(echo sub)", _su_user="mark", _shell_executable=shell)
            assert output.stdout_lines == ["MARK", "sub"]

    def test_given_sudo_password_is_used_and_not_printed(
        self, host: Host, authority: Path, machines: ShellMachines, said: CapturedOutput
    ) -> None:
        """PyInfra passes it through its askpass program."""
        (machines.home("web") / "needs-password").touch()
        ok, output = run(host, "echo $AS", _sudo=True, _sudo_password="s3cret", print_input=True)
        assert ok, output
        assert output.stdout == "root"
        assert "s3cret" not in "\n".join(said.lines)
        assert not run(host, "echo $AS", _sudo=True, _sudo_password="wrong")[0]
        host.disconnect()

    def test_prompted_sudo_password_reruns_the_command_with_its_stdin(
        self, host: Host, authority: Path, machines: ShellMachines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PyInfra prompts if sudo requires a password."""
        (machines.home("web") / "needs-password").touch()
        monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda prompt: "s3cret")
        ok, output = run(host, "echo $AS; cat", _sudo=True, _stdin=StringIO("input"))
        assert ok
        assert output.stdout_lines == ["root", "input"]

    def test_su_password_is_used(self, host: Host, authority: Path, machines: ShellMachines) -> None:
        (machines.home("web") / "needs-password").touch()
        assert run(host, "echo $AS", _su_user="mark", _su_password="s3cret")[1].stdout == "mark"
        assert not run(host, "echo $AS", _su_user="mark", _su_password="wrong")[0]


ALL_BYTES = bytes(range(256)) * 3


class TestFiles:
    """Uploads and downloads."""

    @pytest.mark.parametrize("size", [0, 1, 768, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_001])
    def test_upload_and_download_preserve_all_bytes(self, host: Host, machines: ShellMachines, tmp_path: Path, size: int) -> None:
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
    def test_upload_accepts_paths_and_file_objects(
        self, host: Host, machines: ShellMachines, tmp_path: Path, make: Callable[[Path], Any]
    ) -> None:
        """A file object is read from its start, whatever its position."""
        local = tmp_path / "local"
        local.write_text("é\r\nline\n", encoding="utf-8", newline="")
        source = make(local)
        if hasattr(source, "read"):
            source.read()
        host.put_file(source, "there")
        if isinstance(source, TextIOWrapper):
            # The text file was opened with universal newlines, so its content is sent with converted newlines.
            assert (machines.home("web") / "there").read_bytes() == "é\nline\n".encode()
        else:
            assert (machines.home("web") / "there").read_bytes() == local.read_bytes()
        if hasattr(source, "close"):
            assert not source.closed
            source.close()

    def test_download_accepts_paths_and_text_files(self, host: Host, machines: ShellMachines, tmp_path: Path) -> None:
        """A text file keeps bytes that are not UTF-8 as surrogates."""
        (machines.home("web") / "there").write_bytes(b"caf\xe9 \xc3\xa9\n")
        host.get_file("there", str(tmp_path / "path"))
        assert (tmp_path / "path").read_bytes() == b"caf\xe9 \xc3\xa9\n"
        text = StringIO()
        host.get_file("there", text)
        assert text.getvalue().encode("utf-8", "surrogateescape") == b"caf\xe9 \xc3\xa9\n"

    def test_remote_names_are_not_interpreted_by_a_shell(self, host: Host, machines: ShellMachines) -> None:
        name = "a b'c\"$(touch oops);*"
        host.put_file(BytesIO(b"x"), name)
        assert (machines.home("web") / name).read_bytes() == b"x"
        back = BytesIO()
        host.get_file(name, back)
        assert back.getvalue() == b"x"
        assert [path.name for path in machines.home("web").iterdir()] == [name]

    def test_remote_name_that_starts_with_a_dash_is_a_name(self, host: Host, machines: ShellMachines) -> None:
        host.put_file(BytesIO(b"x"), "./-rf")
        assert (machines.home("web") / "-rf").read_bytes() == b"x"

    def test_new_file_gets_the_mode_of_the_umask(self, host: Host, machines: ShellMachines) -> None:
        """Not the private mode of its temporary file."""
        host.put_file(BytesIO(b"x"), "new")
        mask = os.umask(0)
        os.umask(mask)
        assert (machines.home("web") / "new").stat().st_mode & 0o777 == 0o666 & ~mask

    def test_replaced_file_keeps_mode_and_links(self, host: Host, machines: ShellMachines) -> None:
        home = machines.home("web")
        (home / "old").write_bytes(b"old and longer")
        (home / "old").chmod(0o640)
        (home / "hard").hardlink_to(home / "old")
        (home / "soft").symlink_to("old")
        host.put_file(BytesIO(b"new"), "soft")
        assert (home / "hard").read_bytes() == b"new"
        assert (home / "soft").is_symlink()
        assert (home / "old").stat().st_mode & 0o777 == 0o640

    def test_names_survive_sudo_login_shell(self, host: Host, machines: ShellMachines, authority: Path) -> None:
        """``sudo -i`` escapes its command except dollar signs, and removes newlines."""
        name = "a $b 'c'\"é\n\\d`e`"
        host.put_file(BytesIO(ALL_BYTES), name, _sudo=True, _use_sudo_login=True)
        assert (machines.home("web") / name).read_bytes() == ALL_BYTES
        back = BytesIO()
        host.get_file(name, back, _sudo=True, _use_sudo_login=True)
        assert back.getvalue() == ALL_BYTES

    @pytest.mark.parametrize("arguments", [{}, {"_sudo": True}, {"_sudo": True, "_use_sudo_login": True}])
    def test_leading_tilde_is_the_users_home(
        self, host: Host, machines: ShellMachines, authority: Path, arguments: dict[str, Any]
    ) -> None:
        """As in PyInfra's facts. Elsewhere a tilde is an ordinary character."""
        host.put_file(BytesIO(b"x"), "~/a 'b'", _chdir="/", **arguments)
        back = BytesIO()
        host.get_file("~/a 'b'", back, _chdir="/", **arguments)
        assert back.getvalue() == b"x"
        host.put_file(BytesIO(b"y"), "~", **arguments)
        assert sorted(path.name for path in machines.home("web").iterdir() if path.is_file()) == ["a 'b'", "~"]

    def test_long_transfer_reports_its_progress(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Every five seconds, at every verbosity; the test speeds the clock up."""
        moments = count(0, 3)
        monkeypatch.setattr("pyinfra_orbd._files.time.monotonic", lambda: float(next(moments)))
        notices: list[str] = []
        progress = _files.Progress("upload of x", 4_000_000, notices.append)
        assert b"".join(progress.track(iter([b"x" * 1_000_000] * 4))) == b"x" * 4_000_000
        assert notices == ["upload of x: 2.0 of 4.0 MB (50 %)", "upload of x: 4.0 of 4.0 MB (100 %)"]
        caplog.set_level("INFO", "pyinfra")
        host.put_file(BytesIO(b"x" * 2_000_000), "there")
        host.get_file("there", BytesIO())
        assert re.search(r"\[web\] upload of there: \d\.\d of 2\.0 MB \(\d+ %\)", caplog.text)
        assert re.search(r"\[web\] download of there: \d\.\d MB", caplog.text)

    def test_upload_is_relative_to_chdir(self, host: Host, machines: ShellMachines) -> None:
        """As in the facts about the same file."""
        (machines.home("web") / "sub").mkdir()
        host.put_file(BytesIO(b"x"), "there", _chdir="sub")
        assert (machines.home("web") / "sub/there").exists()

    @pytest.mark.parametrize("shell", ["sh", "bash", "/bin/sh", None])
    def test_transfer_works_in_any_shell_and_only_in_its_folder(
        self, host: Host, machines: ShellMachines, authority: Path, shell: str | None
    ) -> None:
        """If the folder is missing, no part of the script runs elsewhere."""
        home = machines.home("web")
        (home / "sub").mkdir()
        variants: list[dict[str, Any]] = [
            {},
            {"_env": {"A": "it's\nb"}},
            {"_sudo": True},
            {"_sudo": True, "_use_sudo_login": True},
        ]
        # Without a shell, PyInfra would let sudo execute `cd`.
        for arguments in variants if shell else variants[:2]:
            host.put_file(BytesIO(ALL_BYTES), "there", _chdir="sub", _shell_executable=shell, **arguments)
            back = BytesIO()
            host.get_file("there", back, _chdir="sub", _shell_executable=shell, **arguments)
            assert back.getvalue() == ALL_BYTES
            assert [path.name for path in (home / "sub").iterdir()] == ["there"]
            (home / "sub" / "there").unlink()
            with pytest.raises(OSError, match=r"upload of there failed: .*none"):
                host.put_file(BytesIO(b"x"), "there", _chdir="none", _shell_executable=shell, **arguments)
            with pytest.raises(OSError, match=r"download of there failed: .*none"):
                host.get_file("there", BytesIO(), _chdir="none", _shell_executable=shell, **arguments)
            assert sorted(path.name for path in home.iterdir()) == ["bin", "sub"]

    @pytest.mark.parametrize(
        ("target", "reason"),
        [("folder", "is a directory"), ("none/there", r"none/there"), ("bin/x/y", "y")],
    )
    def test_failed_upload_is_an_os_error_and_leaves_no_file(
        self, host: Host, machines: ShellMachines, target: str, reason: str
    ) -> None:
        (machines.home("web") / "folder").mkdir()
        with pytest.raises(OSError, match=f"upload of {target} failed: .*{reason}"):
            host.put_file(BytesIO(b"x"), target)
        assert [path.name for path in machines.home("web").iterdir()] == ["folder"]

    def test_upload_of_a_missing_local_file_fails(self, host: Host, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            host.put_file(str(tmp_path / "none"), "there")

    def test_upload_of_neither_path_nor_file_object_is_a_type_error(self, host: Host) -> None:
        with pytest.raises(TypeError, match="expected a path or a file object"):
            host.put_file(7, "there")
        with pytest.raises(TypeError, match="expected a path or a file object"):
            host.get_file("there", 7)

    @pytest.mark.parametrize("old", [None, b"old"])
    def test_truncated_upload_leaves_the_target_unchanged(
        self, host: Host, machines: ShellMachines, daemon: FakeDaemon, old: bytes | None
    ) -> None:
        """Although the script in the machine survives the connection."""
        home = machines.home("web")
        if old is not None:
            (home / "there").write_bytes(old)
        real = daemon.handlers["job.input"]

        def cut(peer: Peer, params: dict[str, Any]) -> Any:
            real(peer, {**params, "eof": True})
            raise Hangup

        daemon.handlers["job.input"] = cut
        daemon.on_gone = lambda peer: None
        with pytest.raises(ConnectionError):
            host.put_file(BytesIO(b"x" * (2 << 20)), "there")
        deadline = time.monotonic() + 5
        while machines.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [path.read_bytes() for path in home.iterdir()] == ([] if old is None else [old])

    def test_upload_of_a_shrinking_file_fails(self, host: Host, machines: ShellMachines, tmp_path: Path) -> None:
        local = tmp_path / "log"
        local.write_bytes(b"x" * 100)

        class Shrinking(_files.Source):
            def __enter__(self) -> Any:
                super().__enter__()
                self.size += 5
                return self

        with Shrinking(str(local)) as source, pytest.raises(OSError, match="received only 100 of 105 bytes"):
            host.connector._put(source, "there", {}, {})  # type: ignore[attr-defined]
        assert list(machines.home("web").iterdir()) == []

    def test_download_of_a_missing_file_leaves_the_local_file_unchanged(self, host: Host, tmp_path: Path) -> None:
        local = tmp_path / "local"
        local.write_bytes(b"mine")
        with pytest.raises(FileNotFoundError, match="none"):
            host.get_file("none", str(local))
        assert local.read_bytes() == b"mine"
        assert [path.name for path in tmp_path.iterdir() if path.name != "machines"] == ["local"]

    def test_download_of_a_directory_fails(self, host: Host, machines: ShellMachines) -> None:
        (machines.home("web") / "folder").mkdir()
        with pytest.raises(OSError, match=r"download of folder failed: .*[Ii]s a directory"):
            host.get_file("folder", BytesIO())

    def test_truncated_download_leaves_the_local_file_unchanged(
        self, host: Host, machines: ShellMachines, daemon: FakeDaemon, tmp_path: Path
    ) -> None:
        """And leaves no temporary file."""
        fifo = machines.home("web") / "fifo"
        os.mkfifo(fifo)
        target = tmp_path / "out"
        target.mkdir()
        (target / "local").write_bytes(b"mine")
        # Kept open for writing, so that the script in the machine waits for more data.
        held = os.open(fifo, os.O_RDWR)
        os.write(held, b"part")
        threading.Timer(0.3, daemon.hang_up).start()
        with pytest.raises(ConnectionError):
            host.get_file("fifo", str(target / "local"))
        os.close(held)
        assert [(path.name, path.read_bytes()) for path in target.iterdir()] == [("local", b"mine")]

    def test_output_of_a_login_profile_is_not_part_of_a_download(
        self, host: Host, machines: ShellMachines, daemon: FakeDaemon
    ) -> None:
        (machines.home("web") / "there").write_bytes(ALL_BYTES)
        real = daemon.handlers["machine.run_follow"]

        def chatty(peer: Peer, params: dict[str, Any]) -> Any:
            return real(peer, {**params, "command": ["sh", "-c", 'echo "Welcome!"; exec "$@"', "x", *params["command"]]})

        daemon.handlers["machine.run_follow"] = chatty
        back = BytesIO()
        host.get_file("there", back)
        assert back.getvalue() == ALL_BYTES

    def test_download_keeps_the_local_mode_and_writes_to_devices(
        self, host: Host, machines: ShellMachines, tmp_path: Path
    ) -> None:
        (machines.home("web") / "there").write_bytes(b"x")
        local = tmp_path / "local"
        local.touch(0o600)
        host.get_file("there", str(local))
        assert local.stat().st_mode & 0o777 == 0o600
        host.get_file("there", "/dev/null")
        assert Path("/dev/null").is_char_device()

    @pytest.mark.parametrize("arguments", [{"_sudo": True}, {"_doas": True}, {"_su_user": "mark"}])
    @pytest.mark.parametrize("size", [10, 2 << 20])
    def test_transfer_with_sudo_doas_or_su_needs_no_readable_copy(
        self, host: Host, machines: ShellMachines, authority: Path, arguments: dict[str, Any], size: int, daemon: FakeDaemon
    ) -> None:
        """The target user reads and writes the file itself, with one command."""
        before = len(daemon.methods())
        host.put_file(BytesIO(b"\xff" * size), "there", **arguments)
        assert (machines.home("web") / "there").read_bytes() == b"\xff" * size
        assert {"machine.run", "machine.run_follow"} & set(daemon.methods()[before:])
        back = BytesIO()
        host.get_file("there", back, **arguments)
        assert back.getvalue() == b"\xff" * size

    def test_upload_is_repeated_after_a_sudo_password_prompt(
        self, host: Host, machines: ShellMachines, authority: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (machines.home("web") / "needs-password").touch()
        monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda prompt: "s3cret")
        host.put_file(BytesIO(ALL_BYTES), "there", _sudo=True)
        back = BytesIO()
        host.get_file("there", back, _sudo=True)
        assert back.getvalue() == ALL_BYTES

    @pytest.mark.parametrize("user", ["root", "mark"])
    def test_upload_with_a_su_password_uses_a_private_temporary_file(
        self, host: Host, machines: ShellMachines, authority: Path, user: str, tmp_path: Path
    ) -> None:
        """``su`` reads the password from stdin, so stdin cannot carry the file."""
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

    def test_missing_rsync_raises_not_implemented_error(self, host: Host) -> None:
        """PyInfra's operation converts it into its own message."""
        with pytest.raises(NotImplementedError):
            host.check_can_rsync()

    def test_transfer_prints_names_but_no_content(self, host: Host, said: CapturedOutput) -> None:
        host.put_file(StringIO("s3cret"), "there", print_output=True, print_input=True)
        host.get_file("there", StringIO(), print_output=True)
        assert [text.split("] ", 1)[1] for text in said.lines] == [
            ">>> upload there",
            "file uploaded: there",
            "file downloaded: there",
        ]


def test_dropped_bytes_add_a_line() -> None:
    from pyinfra_orbd._lines import Lines

    collected = Lines(None)
    collected.lost(5)
    assert collected.finish() == [OutputLine("stderr", "[orbd] 5 bytes of output were dropped here: the spool was full")]


class TestCallerEnvironment:
    """Environment variables that a command gets from the PyInfra process."""

    def test_only_variables_that_orbctl_run_passes_are_sent(
        self, make_host: MakeHost, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``ORBENV``, the variables that it lists, ``TERM``, ``DISPLAY`` and proxies, read again for each command."""
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
