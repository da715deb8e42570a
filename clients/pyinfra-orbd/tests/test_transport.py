"""Connections: framing, the pool, and disconnects on either side."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_daemon import HELLO, Failure, FakeDaemon, Hangup, Peer, ShellMachines
from orbd import Client, _base_client, _gevent, _transport, errors, models
from orbd.errors import error_from_wire
from target import fake_ctl


def echo(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
    return {"text": str(params)}


def test_relative_socket_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would name another daemon in each folder."""
    monkeypatch.setenv("ORBD_SOCKET", "orbd.sock")
    with pytest.raises(errors.DaemonUnavailable, match=r"ORBD_SOCKET must be an absolute path, but is orbd\.sock"):
        Client()


def test_connection_sends_one_hello_first(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers["machine.ssh"] = echo
    client.machine_ssh()
    client.machine_ssh()
    assert [method for method, _ in daemon.requests] == ["daemon.hello", "machine.ssh", "machine.ssh"]
    assert daemon.requests[0][1] == {"client": "test", "protocol": 1, "protocol_min": 1}


@pytest.mark.parametrize(("protocol", "fix"), [(2, "this package is older"), (0, "orbd is older: upgrade it; `orbd-ctl doctor`")])
def test_agreed_protocol_outside_our_range_is_an_error_with_the_fix(
    daemon: FakeDaemon, client: Client, protocol: int, fix: str
) -> None:
    daemon.handlers["daemon.hello"] = lambda peer, params: {**HELLO, "protocol": protocol}
    expected = rf"orbd 0.0.0-fake speaks protocol {protocol}, Python package orbd \S+ speaks protocol 1; {fix}"
    with pytest.raises(errors.ProtocolMismatch, match=expected):
        client.machine_ssh()


@pytest.mark.parametrize(
    ("lowest", "newest", "agreed"),
    [(1, 1, 1), (1, 3, 1), (2, 3, None), (0, 0, None)],
)
def test_daemon_of_another_version_is_used_if_it_speaks_a_common_protocol(
    daemon: FakeDaemon, client: Client, lowest: int, newest: int, agreed: int | None
) -> None:
    def hello(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        common = min(newest, params["protocol"])
        if common < max(lowest, params["protocol_min"]):
            raise Failure("protocol_mismatch", "no", 1003)
        return {**HELLO, "protocol": common}

    daemon.handlers["daemon.hello"] = hello
    daemon.handlers["daemon.info"] = lambda peer, params: {"version": "9.9", "protocol": newest, "protocol_min": lowest}
    daemon.handlers["machine.ssh"] = echo
    if agreed is not None:
        assert client.machine_ssh() == "{}"
        return
    theirs = f"protocols {lowest} to {newest}" if lowest != newest else f"protocol {newest}"
    fix = "this package is older: upgrade it" if lowest > 1 else "orbd is older: upgrade it; `orbd-ctl doctor`"
    with pytest.raises(errors.ProtocolMismatch, match=rf"orbd 9\.9 speaks {theirs}, .* speaks protocol 1; {fix}"):
        client.machine_ssh()


@pytest.mark.parametrize("state", ["checking", "pending", "refused"])
def test_first_call_after_an_upgrade_waits_for_the_new_program(daemon: FakeDaemon, client: Client, state: str) -> None:
    greetings = []

    def hello(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        greetings.append(params)
        if len(greetings) < 3:
            raise Failure("protocol_mismatch", "no", 1003)
        return HELLO

    daemon.handlers["daemon.hello"] = hello
    daemon.handlers["daemon.info"] = lambda peer, params: {
        "version": "0.0.1",
        "protocol": 0,
        "protocol_min": 0,
        "upgrade": {"state": state, "noticed_at": ""},
    }
    daemon.handlers["machine.ssh"] = echo
    if state == "refused":
        with pytest.raises(errors.ProtocolMismatch, match="orbd is older"):
            client.machine_ssh()
        assert len(greetings) == 1
    else:
        assert client.machine_ssh() == "{}"
        assert len(greetings) == 3


def test_upgrade_that_does_not_happen_is_an_error_that_names_it(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("protocol_mismatch", "no", 1003)

    monkeypatch.setattr(_transport, "SWITCH_TIMEOUT", 0.0)
    daemon.handlers["daemon.hello"] = refuse
    daemon.handlers["daemon.info"] = lambda peer, params: {"version": "0.0.1", "protocol": 0, "upgrade": {"state": "pending"}}
    with pytest.raises(errors.ProtocolMismatch, match="starts when orbd is idle"):
        client.machine_ssh()


def test_daemon_without_hello_is_a_protocol_mismatch(daemon: FakeDaemon, client: Client) -> None:
    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("method_not_found", "no method daemon.hello", -32601)

    daemon.handlers["daemon.hello"] = refuse
    with pytest.raises(errors.ProtocolMismatch, match=r"protocol 1 \(no method daemon.hello\); upgrade the older"):
        client.machine_ssh()


def test_server_that_is_not_orbd_is_a_protocol_violation(short_folder: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short_folder / "s"))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1 << 16)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    with listener, pytest.raises(errors.ProtocolViolation, match=r"not JSON: b'HTTP/1\.1 400"):
        Client(str(short_folder / "s")).machine_ssh()
    thread.join()


def test_error_answer_raises_its_class_and_keeps_the_connection(daemon: FakeDaemon, client: Client) -> None:
    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("machine_not_found", "machine not found: 'x'", 2001, machine="x")

    daemon.handlers["machine.info"] = refuse
    with pytest.raises(errors.MachineNotFound):
        client.machine_info("x")
    with pytest.raises(errors.MachineNotFound, match="machine not found: 'x'") as caught:
        client.machine_info("x")
    assert caught.value.machine == "x"
    assert caught.value.code == 2001
    assert daemon.accepted == 1


@pytest.mark.parametrize(
    ("kind", "phase", "cls"),
    [
        ("deadline_exceeded", "queued", errors.QueueTimeout),
        ("deadline_exceeded", "running", errors.RunTimeout),
        ("queue_full", None, errors.QueueFull),
        ("outcome_unknown", None, errors.OutcomeUnknown),
        ("a_future_kind", None, errors.RequestFailed),
    ],
)
def test_each_error_kind_has_its_class(kind: str, phase: str | None, cls: type[errors.RequestFailed]) -> None:
    """An unknown kind becomes ``RequestFailed``."""
    error = error_from_wire({"code": 1, "message": "m", "data": {"kind": kind, "phase": phase}})
    assert type(error) is cls
    assert isinstance(error, OSError)
    assert isinstance(error, TimeoutError) is (cls is errors.RunTimeout)


def test_error_module_docstring_shows_all_classes() -> None:
    assert errors.__doc__ is not None
    drawn = {word for word in errors.__doc__.replace("─", " ").split() if word in vars(errors)}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, OSError)}
    assert classes == drawn
    assert classes == set(errors.__all__) - {"error_from_wire"}


def test_pool_reuses_the_most_recent_connection(daemon: FakeDaemon, client: Client) -> None:
    """So connections of a burst become idle and are not all kept in use."""
    first, second = client._pool.take(), client._pool.take()
    client._pool.give(first)
    client._pool.give(second)
    assert client._pool.take() is second
    assert client._pool.take() is first
    first.close()
    second.close()


def test_pool_replaces_a_connection_closed_by_the_daemon(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers["machine.ssh"] = echo
    client.machine_ssh()
    daemon.hang_up()
    wait_until(lambda: not daemon.peers)
    client.machine_ssh()
    assert daemon.accepted == 2


def test_daemon_that_dies_during_a_call_raises_and_the_call_is_not_retried(daemon: FakeDaemon, client: Client) -> None:
    def die(peer: Peer, params: dict[str, Any]) -> None:
        raise Hangup

    daemon.handlers["machine.start"] = die
    with pytest.raises(errors.DaemonGone, match="before the answer was complete") as caught:
        client.machine_start("web")
    assert isinstance(caught.value, ConnectionError)
    assert daemon.methods() == ["machine.start"]


def closing(requests_read: int) -> dict[str, Any]:
    """Returns the last message of a daemon that is being upgraded."""
    return {"jsonrpc": "2.0", "method": "daemon.closing", "params": {"requests_read": requests_read}}


def test_request_unread_by_an_upgraded_daemon_is_sent_again(daemon: FakeDaemon, client: Client) -> None:
    """After a new hello."""

    def close_once(peer: Peer, params: dict[str, Any]) -> Any:
        if daemon.methods() == ["machine.ssh"]:
            peer.send(closing(1))
            raise Hangup
        return echo(peer, params)

    daemon.handlers["machine.ssh"] = close_once
    client.machine_ssh()
    assert daemon.methods() == ["machine.ssh", "machine.ssh"]
    assert daemon.accepted == 2


def test_request_read_by_an_upgraded_daemon_is_not_sent_again(daemon: FakeDaemon, client: Client) -> None:
    """It may have taken effect."""

    def close(peer: Peer, params: dict[str, Any]) -> Any:
        peer.send(closing(2))
        raise Hangup

    daemon.handlers["machine.start"] = close
    with pytest.raises(errors.DaemonGone):
        client.machine_start("web")
    assert daemon.methods() == ["machine.start"]


def test_request_is_sent_again_at_most_three_times(daemon: FakeDaemon, client: Client) -> None:
    def close(peer: Peer, params: dict[str, Any]) -> Any:
        peer.send(closing(1))
        raise Hangup

    daemon.handlers["machine.ssh"] = close
    with pytest.raises(errors.DaemonGone):
        client.machine_ssh()
    assert daemon.methods() == ["machine.ssh"] * 4


def test_incomplete_line_is_daemon_gone(daemon: FakeDaemon, client: Client) -> None:
    def half(peer: Peer, params: dict[str, Any]) -> None:
        peer.send_raw(b'{"jsonrpc":"2.0","id":2,"resu')
        raise Hangup

    daemon.handlers["machine.ssh"] = half
    with pytest.raises(errors.DaemonGone):
        client.machine_ssh()


def test_invalid_json_is_a_protocol_violation_and_closes_the_connection(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers["machine.ssh"] = lambda peer, params: peer.send_raw(b"what?\n")
    with pytest.raises(errors.ProtocolViolation, match="not JSON"):
        client.machine_ssh()
    assert client._pool._idle_here() == []


def test_error_without_an_id_answers_the_current_request(daemon: FakeDaemon, client: Client) -> None:
    """The daemon could not parse the request."""

    def unreadable(peer: Peer, params: dict[str, Any]) -> None:
        peer.send({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "too long"}})
        raise Hangup

    daemon.handlers["machine.ssh"] = unreadable
    with pytest.raises(errors.InvalidParams, match="too long"):
        client.machine_ssh()


def test_invalid_unicode_is_rejected_and_keeps_the_connection(daemon: FakeDaemon, client: Client) -> None:
    """JSON has no lone surrogates."""
    daemon.handlers["machine.ssh"] = echo
    with pytest.raises(errors.InvalidParams, match="not valid Unicode"):
        client.machine_run("web", ["ls", "caf\udce9"])
    client.machine_ssh()
    assert daemon.accepted == 1


def test_interrupted_call_closes_its_connection(daemon: FakeDaemon, client: Client) -> None:
    """Its late answer must not become the answer of the next call."""
    import gevent

    released = threading.Event()

    def slow(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        released.wait(10)
        return {"text": "late"}

    daemon.handlers["machine.logs"] = slow
    daemon.handlers["machine.ssh"] = lambda peer, params: {"text": "mine"}
    gevent.get_hub()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        client.machine_logs("web")
    # The daemon sees the disconnect while it still works on the answer, and can stop.
    wait_until(lambda: not daemon.peers)
    released.set()
    assert client.machine_ssh() == "mine"
    assert daemon.accepted == 2


@pytest.mark.parametrize("when", ["call", "hello"])
@pytest.mark.parametrize("thrown", [TimeoutError, TimeoutError("mine")], ids=["bare", "with message"])
def test_timeout_error_of_the_callers_own_limit_is_not_converted(
    when: str, thrown: Any, daemon: FakeDaemon, client: Client
) -> None:
    """PyInfra throws a ``TimeoutError`` with ``gevent.Timeout``."""
    import gevent

    released = threading.Event()

    def slow(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        released.wait(10)
        return {"text": "late", "protocol": 1, "version": "0", "instance": "fake"}

    daemon.handlers["machine.logs" if when == "call" else "daemon.hello"] = slow
    gevent.get_hub()
    with pytest.raises(TimeoutError) as caught, gevent.Timeout(0.05, thrown):
        client.machine_logs("web")
    assert not isinstance(caught.value, errors.OrbdError)
    assert client._pool._idle_here() == []
    released.set()


@pytest.mark.parametrize("is_cooperative", [False, True], ids=["plain", "hub"])
def test_daemon_that_does_not_answer_hello_is_daemon_gone(
    is_cooperative: bool, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    daemon.handlers["daemon.hello"] = lambda peer, params: {} if released.wait(10) else None
    monkeypatch.setattr(_transport, "CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr(_gevent, "hub", _gevent.hub if is_cooperative else lambda: None)
    if is_cooperative:
        import gevent

        gevent.get_hub()
    with pytest.raises(errors.DaemonGone, match="did not answer within"):
        Client(str(daemon.path)).daemon_info()
    released.set()


def test_closing_a_subscription_early_closes_its_connection(daemon: FakeDaemon, machines: ShellMachines, client: Client) -> None:
    """Clients stop a command like this."""
    events = client.machine_run_follow("web", ["sh", "-c", "echo on; exec sleep 30"])
    for event in events:
        if type(event).__name__ == "Chunk":
            break
    events.close()
    wait_until(lambda: machines.running() == 0)
    assert client._pool._idle_here() == []


def test_finished_subscription_returns_its_connections_to_the_pool(
    machines: ShellMachines, daemon: FakeDaemon, client: Client
) -> None:
    """Whether the command read all of its input or not."""
    for command in ("cat >/dev/null", "exec <&-; true", "head -c 10"):
        events = list(client.machine_run_follow("web", ["sh", "-c", command], stdin=b"x" * (3 << 20)))
        assert type(events[-1]).__name__ == "Ended"
    # The second connection carried the input.
    assert daemon.accepted == 2
    assert len(client._pool._idle_here()) == 2
    client.machine_list()


def test_closing_a_subscription_during_input_closes_both_connections(
    daemon: FakeDaemon, machines: ShellMachines, client: Client
) -> None:
    events = client.machine_run_follow("web", ["sh", "-c", "sleep 0.2; echo on; exec sleep 30"], stdin=b"x" * (3 << 20))
    for event in events:
        if type(event).__name__ == "Chunk":
            break
    events.close()
    wait_until(lambda: machines.running() == 0)
    assert client._pool._idle_here() == []
    wait_until(lambda: daemon.peers == [])


def test_refused_input_raises_and_stops_the_command(daemon: FakeDaemon, machines: ShellMachines, client: Client) -> None:
    def refuse(peer: Peer, params: dict[str, Any]) -> Any:
        raise Failure("internal", "no memory", -32603)

    daemon.handlers["job.input"] = refuse
    with pytest.raises(errors.InternalError, match="no memory"):
        list(client.machine_run_follow("web", ["sh", "-c", "cat; sleep 30"], stdin=b"x" * (3 << 20)))
    wait_until(lambda: machines.running() == 0)
    assert client._pool._idle_here() == []


def test_continuous_output_does_not_block_input(machines: ShellMachines, client: Client) -> None:
    script = "yes >&2 & count=$(wc -c); kill $!; echo $count"
    out = b""
    for event in client.machine_run_follow("web", ["sh", "-c", script], stdin=b"x" * (3 << 20), run_timeout_ms=30_000):
        if isinstance(event, models.Chunk) and event.stream == "stdout":
            out += event.data
    assert out == b"%d\n" % (3 << 20)


def test_missing_answer_to_input_does_not_delay_the_end(
    daemon: FakeDaemon, machines: ShellMachines, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed."""
    monkeypatch.setattr(_base_client, "FEED_GRACE", 0.1)
    real = daemon.handlers["job.input"]

    def silent(peer: Peer, params: dict[str, Any]) -> Any:
        answer = real(peer, params)
        if params.get("eof"):
            time.sleep(2)
        return answer

    daemon.handlers["job.input"] = silent
    begun = time.monotonic()
    events = list(client.machine_run_follow("web", ["sh", "-c", "cat >/dev/null"], stdin=b"x" * (2 << 20)))
    assert time.monotonic() - begun < 1.5
    assert isinstance(events[-1], models.Ended)
    assert len(client._pool._idle_here()) == 1


def test_failing_input_source_stops_the_command(machines: ShellMachines, client: Client) -> None:
    """The command must not take the truncated input for all of it."""

    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        list(client.machine_run_follow("web", ["sh", "-c", "cat; sleep 30"], stdin=pieces()))
    wait_until(lambda: machines.running() == 0)


def test_forked_child_does_not_use_inherited_connections(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers["machine.ssh"] = echo
    client.machine_ssh()
    inherited = client._pool._idle_here()
    client._pool._pid = -1
    assert client._pool._idle_here() == []
    client.machine_ssh()
    assert daemon.accepted == 2
    inherited.pop().close()


def test_forked_child_has_a_new_pool_and_the_parent_keeps_its_own(daemon: FakeDaemon, machines: ShellMachines) -> None:
    """Also if the fork happens during a call."""
    script = """
        import os, sys
        from orbd import Client
        client = Client(sys.argv[1])
        client.machine_list()
        events = client.machine_run_follow("web", ["sh", "-c", "echo a; sleep 0.2; echo b"])
        borrowed = client._pool.take()
        next(events)
        child = os.fork()
        client._pool.give(borrowed)
        who = "parent" if child else "child"
        os.write(1, f"{who} {len(client._pool._idle_here())} {len(client.machine_list().machines)}\\n".encode())
        if child == 0:
            events.close()
            client.close()
            os._exit(0)
        os.waitpid(child, 0)
        os.write(1, b"".join(getattr(event, "data", b"") for event in events))
        client.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(daemon.path)],
        env={**os.environ, "ORBD_AUTOSTART": "0"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == ["a", "b", "child 0 2", "parent 1 2"]
    # One for the list, one for the events, one of the child.
    assert daemon.accepted == 3


def test_close_errors_are_ignored_only_at_interpreter_shutdown(
    daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = client._pool.take()
    real = connection._socket

    class BrokenSocket:
        def close(self) -> None:
            raise TypeError("'NoneType' object is not callable")

    connection._socket = BrokenSocket()
    with pytest.raises(TypeError):
        connection.__del__()
    monkeypatch.setattr(_transport.Connection, "_is_finalizing", lambda self: True)
    connection.__del__()
    connection._socket = real
    connection.close()


def test_threads_get_their_own_answers(daemon: FakeDaemon, client: Client) -> None:
    daemon.handlers["machine.logs"] = lambda peer, params: {"text": params["machine"]}
    wrong: list[str] = []

    def call(name: str) -> None:
        wrong.extend(got for got in (client.machine_logs(name) for _ in range(50)) if got != name)

    threads = [threading.Thread(target=call, args=(f"m{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert daemon.accepted <= 8


@pytest.mark.parametrize("no", ["0", "off", "False"])
def test_missing_daemon_error_has_the_start_command(short_folder: Path, monkeypatch: pytest.MonkeyPatch, no: str) -> None:
    monkeypatch.setenv("ORBD_AUTOSTART", no)
    with pytest.raises(
        errors.DaemonNotRunning, match=r"start it with `orbd-ctl daemon start`.*ORBD_AUTOSTART turns starting on demand off"
    ):
        Client(str(short_folder / "none")).machine_list()


def test_socket_path_that_is_too_long_is_reported(tmp_path: Path) -> None:
    with pytest.raises(errors.DaemonUnavailable, match=r"cannot connect to orbd on .*too long"):
        Client(str(tmp_path / ("x" * 200))).machine_list()


def test_missing_daemon_is_started_once_on_demand(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = short_folder / "orbd.sock"
    fake_ctl(short_folder, f'echo "$@" >>{short_folder}/calls; while ! [ -S {path} ]; do sleep 0.01; done', monkeypatch)
    started: list[FakeDaemon] = []
    timer = threading.Timer(0.1, lambda: started.append(FakeDaemon(path)))
    timer.start()
    client = Client(str(path))
    client.call("daemon.hello", {"client": "x", "protocol": 1})
    assert (short_folder / "calls").read_text() == f"--json --socket {path} daemon start --on-demand\n"
    client.close_idle()
    started[0].close()


def test_failed_start_reports_the_output_of_orbd_ctl(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ctl(short_folder, "echo 'no room on disk' >&2; exit 3", monkeypatch)
    with pytest.raises(errors.DaemonNotRunning, match="exited with 3: no room on disk"):
        Client(str(short_folder / "orbd.sock")).machine_list()


def test_missing_orbd_ctl_is_reported(no_ctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORBD_AUTOSTART", raising=False)
    with pytest.raises(errors.DaemonNotRunning, match=f"orbd-ctl not found at /nonexistent/bin/orbd-ctl, or on PATH .{no_ctl}"):
        Client(str(no_ctl / "orbd.sock")).machine_list()


def test_socket_path_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORBD_SOCKET", "/x/y")
    assert _transport.socket_path() == "/x/y"
    monkeypatch.delenv("ORBD_SOCKET")
    monkeypatch.setenv("HOME", "/home/someone")
    assert _transport.socket_path() == "/home/someone/.orbd/orbd.sock"


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    """Polls a condition that other threads change."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.005)
