"""Connections: framing, the pool, what happens when either side goes away."""

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
from orbd import Client, _client, _transport, errors, models
from orbd.errors import error_from_wire
from target import fake_ctl


def echo(peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
    return {"text": str(params)}


def test_says_hello_once_per_connection(daemon: FakeDaemon, client: Client) -> None:
    """The daemon learns name and protocol before anything else, and only once."""
    daemon.handlers["machine.ssh"] = echo
    client.machine_ssh()
    client.machine_ssh()
    assert [method for method, _ in daemon.requests] == ["daemon.hello", "machine.ssh", "machine.ssh"]
    assert daemon.requests[0][1] == {"client": "test", "protocol": 1}


@pytest.mark.parametrize(("protocol", "mend"), [(2, "pip install --upgrade pyinfra-orbd"), (0, "orbd-ctl daemon restart")])
def test_refuses_another_protocol(daemon: FakeDaemon, client: Client, protocol: int, mend: str) -> None:
    """A daemon of another protocol is named with both versions and the command that mends it, and the connection is closed."""
    daemon.handlers["daemon.hello"] = lambda peer, params: {**HELLO, "protocol": protocol}
    expected = rf"orbd 0.0.0-fake speaks protocol {protocol}, this pyinfra-orbd \S+ speaks protocol 1; .*{mend}"
    with pytest.raises(errors.ProtocolMismatch, match=expected):
        client.machine_ssh()


def test_is_refused_for_its_protocol(daemon: FakeDaemon, client: Client) -> None:
    """A daemon that refuses ours is asked who it is, so that the message names both versions all the same."""

    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("protocol_mismatch", "no", 1003)

    daemon.handlers["daemon.hello"] = refuse
    daemon.handlers["daemon.info"] = lambda peer, params: {"version": "9.9", "protocol": 2}
    with pytest.raises(errors.ProtocolMismatch, match=r"orbd 9.9 speaks protocol 2, .* speaks protocol 1; .*pip install"):
        client.machine_ssh()


def test_a_daemon_of_another_age(daemon: FakeDaemon, client: Client) -> None:
    """One that does not know our hello is told as what it is, and not by the first thing that it stumbles on."""

    def refuse(peer: Peer, params: dict[str, Any]) -> None:
        raise Failure("method_not_found", "no method daemon.hello", -32601)

    daemon.handlers["daemon.hello"] = refuse
    with pytest.raises(
        errors.ProtocolMismatch, match=r"protocol 1 \(no method daemon.hello\): upgrade the older.*daemon restart"
    ):
        client.machine_ssh()


def test_something_that_is_not_orbd(short_folder: Path) -> None:
    """Whoever else listens there is not taken for a daemon that is ill."""
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


def test_an_error_is_an_exception_of_its_kind(daemon: FakeDaemon, client: Client) -> None:
    """The exception carries what the daemon told, and the connection is used again."""

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
        ("a_kind_of_tomorrow", None, errors.RequestFailed),
    ],
)
def test_kinds_become_classes(kind: str, phase: str | None, cls: type[errors.RequestFailed]) -> None:
    """Each kind has its class; one that is not known yet has the common one."""
    error = error_from_wire({"code": 1, "message": "m", "data": {"kind": kind, "phase": phase}})
    assert type(error) is cls
    assert isinstance(error, OSError)
    assert isinstance(error, TimeoutError) is (cls is errors.RunTimeout)


def test_every_class_of_the_tree_is_drawn() -> None:
    """The picture at the top of the module shows all classes and no others."""
    assert errors.__doc__ is not None
    drawn = {word for word in errors.__doc__.replace("─", " ").split() if word in vars(errors)}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, OSError)}
    assert classes == drawn
    assert classes == set(errors.__all__) - {"error_from_wire"}


def test_the_connection_used_last_is_used_next(daemon: FakeDaemon, client: Client) -> None:
    """The pool is a stack, so that a burst does not keep all its connections warm."""
    first, second = client._pool.take(), client._pool.take()
    client._pool.give(first)
    client._pool.give(second)
    assert client._pool.take() is second
    assert client._pool.take() is first
    first.close()
    second.close()


def test_a_connection_closed_by_the_daemon_is_not_used(daemon: FakeDaemon, client: Client) -> None:
    """A restart of the daemon between two calls is not the second call's trouble."""
    daemon.handlers["machine.ssh"] = echo
    client.machine_ssh()
    daemon.hang_up()
    wait_until(lambda: not daemon.peers)
    client.machine_ssh()
    assert daemon.accepted == 2


def test_a_daemon_that_dies_during_a_call(daemon: FakeDaemon, client: Client) -> None:
    """It is a ConnectionError, raised at once; the call is not made a second time."""

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


def test_a_request_that_an_upgraded_daemon_did_not_read_is_sent_again(daemon: FakeDaemon, client: Client) -> None:
    """The old daemon read the hello alone, so the next instance gets the request, after a hello of its own."""

    def close_once(peer: Peer, params: dict[str, Any]) -> Any:
        if daemon.methods() == ["machine.ssh"]:
            peer.send(closing(1))
            raise Hangup
        return echo(peer, params)

    daemon.handlers["machine.ssh"] = close_once
    client.machine_ssh()
    assert daemon.methods() == ["machine.ssh", "machine.ssh"]
    assert daemon.accepted == 2


def test_a_request_that_an_upgraded_daemon_read_is_not_sent_again(daemon: FakeDaemon, client: Client) -> None:
    """It may have been carried out."""

    def close(peer: Peer, params: dict[str, Any]) -> Any:
        peer.send(closing(2))
        raise Hangup

    daemon.handlers["machine.start"] = close
    with pytest.raises(errors.DaemonGone):
        client.machine_start("web")
    assert daemon.methods() == ["machine.start"]


def test_a_request_is_not_sent_again_for_ever(daemon: FakeDaemon, client: Client) -> None:
    """A daemon that closes every connection is given up."""

    def close(peer: Peer, params: dict[str, Any]) -> Any:
        peer.send(closing(1))
        raise Hangup

    daemon.handlers["machine.ssh"] = close
    with pytest.raises(errors.DaemonGone):
        client.machine_ssh()
    assert daemon.methods() == ["machine.ssh"] * 4


def test_half_a_line_is_no_answer(daemon: FakeDaemon, client: Client) -> None:
    """A daemon that dies while it writes has not answered."""

    def half(peer: Peer, params: dict[str, Any]) -> None:
        peer.send_raw(b'{"jsonrpc":"2.0","id":2,"resu')
        raise Hangup

    daemon.handlers["machine.ssh"] = half
    with pytest.raises(errors.DaemonGone):
        client.machine_ssh()


def test_a_line_that_is_not_json(daemon: FakeDaemon, client: Client) -> None:
    """Nonsense is told as such, and its connection is not used again."""
    daemon.handlers["machine.ssh"] = lambda peer, params: peer.send_raw(b"what?\n")
    with pytest.raises(errors.ProtocolViolation, match="not JSON"):
        client.machine_ssh()
    assert client._pool._idle_here() == []


def test_an_error_without_an_id_answers_the_only_request(daemon: FakeDaemon, client: Client) -> None:
    """A request that the daemon could not read is answered without its id."""

    def unreadable(peer: Peer, params: dict[str, Any]) -> None:
        peer.send({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "too long"}})
        raise Hangup

    daemon.handlers["machine.ssh"] = unreadable
    with pytest.raises(errors.InvalidParams, match="too long"):
        client.machine_ssh()


def test_what_is_not_unicode_cannot_be_said(daemon: FakeDaemon, client: Client) -> None:
    """JSON has no lone surrogates; the connection stays good."""
    daemon.handlers["machine.ssh"] = echo
    with pytest.raises(errors.InvalidParams, match="not valid Unicode"):
        client.machine_run("web", ["ls", "caf\udce9"])
    client.machine_ssh()
    assert daemon.accepted == 1


def test_an_interrupted_call_throws_its_connection_away(daemon: FakeDaemon, client: Client) -> None:
    """The late answer of an interrupted call must never become the answer of the next."""
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
    # The daemon sees the hang-up while it still works on the answer, and can stop it.
    wait_until(lambda: not daemon.peers)
    released.set()
    assert client.machine_ssh() == "mine"
    assert daemon.accepted == 2


@pytest.mark.parametrize("when", ["call", "hello"])
@pytest.mark.parametrize("thrown", [TimeoutError, TimeoutError("mine")], ids=["bare", "with words"])
def test_a_limit_of_the_callers_own(when: str, thrown: Any, daemon: FakeDaemon, client: Client) -> None:
    """``gevent.Timeout`` that throws a ``TimeoutError``, as PyInfra's does, is not taken for a daemon that is silent."""
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
def test_a_daemon_that_says_nothing(is_cooperative: bool, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the connection but never answers the hello is told as such."""
    released = threading.Event()
    daemon.handlers["daemon.hello"] = lambda peer, params: {} if released.wait(10) else None
    monkeypatch.setattr(_transport, "CONNECT_TIMEOUT", 0.05)
    monkeypatch.setattr(_transport, "hub", _transport.hub if is_cooperative else lambda: None)
    if is_cooperative:
        import gevent

        gevent.get_hub()
    with pytest.raises(errors.DaemonGone, match="did not answer within"):
        Client(str(daemon.path)).daemon_info()
    released.set()


def test_leaving_a_subscription_early_closes_its_connection(daemon: FakeDaemon, machines: ShellMachines, client: Client) -> None:
    """That is how a command is stopped."""
    events = client.machine_run_follow("web", ["sh", "-c", "echo on; exec sleep 30"])
    for event in events:
        if type(event).__name__ == "Chunk":
            break
    events.close()
    wait_until(lambda: machines.running() == 0)
    assert client._pool._idle_here() == []


def test_a_finished_subscription_gives_its_connection_back(machines: ShellMachines, daemon: FakeDaemon, client: Client) -> None:
    """Whether the command read its input to the end or not."""
    for command in ("cat >/dev/null", "exec <&-; true", "head -c 10"):
        events = list(client.machine_run_follow("web", ["sh", "-c", command], stdin=b"x" * (3 << 20)))
        assert type(events[-1]).__name__ == "Ended"
    # The second one carried the input.
    assert daemon.accepted == 2
    assert len(client._pool._idle_here()) == 2
    client.machine_list()


def test_leaving_in_the_middle_of_the_input_closes_both_connections(
    daemon: FakeDaemon, machines: ShellMachines, client: Client
) -> None:
    """A piece that nobody reads is under way."""
    events = client.machine_run_follow("web", ["sh", "-c", "sleep 0.2; echo on; exec sleep 30"], stdin=b"x" * (3 << 20))
    for event in events:
        if type(event).__name__ == "Chunk":
            break
    events.close()
    wait_until(lambda: machines.running() == 0)
    assert client._pool._idle_here() == []
    wait_until(lambda: daemon.peers == [])


def test_input_that_is_refused_is_an_error(daemon: FakeDaemon, machines: ShellMachines, client: Client) -> None:
    """And the command, which would have read half of it, is stopped."""

    def refuse(peer: Peer, params: dict[str, Any]) -> Any:
        raise Failure("internal", "no memory", -32603)

    daemon.handlers["job.input"] = refuse
    with pytest.raises(errors.InternalError, match="no memory"):
        list(client.machine_run_follow("web", ["sh", "-c", "cat; sleep 30"], stdin=b"x" * (3 << 20)))
    wait_until(lambda: machines.running() == 0)
    assert client._pool._idle_here() == []


def test_output_without_end_does_not_keep_input_waiting(machines: ShellMachines, client: Client) -> None:
    """There is always an event to read, and the input gets through all the same."""
    script = "yes >&2 & count=$(wc -c); kill $!; echo $count"
    out = b""
    for event in client.machine_run_follow("web", ["sh", "-c", script], stdin=b"x" * (3 << 20), run_timeout_ms=30_000):
        if isinstance(event, models.Chunk) and event.stream == "stdout":
            out += event.data
    assert out == b"%d\n" % (3 << 20)


def test_an_answer_to_input_that_never_comes(
    daemon: FakeDaemon, machines: ShellMachines, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has ended, so nobody waits for long; the connection is not used again."""
    monkeypatch.setattr(_client, "FEED_GRACE", 0.1)
    real = daemon.handlers["job.input"]

    def silent(peer: Peer, params: dict[str, Any]) -> Any:
        answer = real(peer, params)
        if params.get("end"):
            time.sleep(2)
        return answer

    daemon.handlers["job.input"] = silent
    begun = time.monotonic()
    events = list(client.machine_run_follow("web", ["sh", "-c", "cat >/dev/null"], stdin=b"x" * (2 << 20)))
    assert time.monotonic() - begun < 1.5
    assert isinstance(events[-1], models.Ended)
    assert len(client._pool._idle_here()) == 1


def test_a_failing_source_stops_the_command(machines: ShellMachines, client: Client) -> None:
    """What reads our input must not take its early end for its end."""

    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        list(client.machine_run_follow("web", ["sh", "-c", "cat; sleep 30"], stdin=pieces()))
    wait_until(lambda: machines.running() == 0)


def test_a_child_does_not_speak_on_its_parents_connection(daemon: FakeDaemon, client: Client) -> None:
    """After a fork the child opens its own."""
    daemon.handlers["machine.ssh"] = echo
    client.machine_ssh()
    inherited = client._pool._idle_here()
    client._pool._pid = -1
    assert client._pool._idle_here() == []
    client.machine_ssh()
    assert daemon.accepted == 2
    inherited.pop().close()


def test_a_child_of_a_fork_has_a_fresh_pool(daemon: FakeDaemon, machines: ShellMachines) -> None:
    """Also one that was made in the middle of a call: what it was given back is closed, not kept, and its parent goes on."""
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
    # List, events, the child's own.
    assert daemon.accepted == 3


def test_the_end_of_the_interpreter_is_quiet(daemon: FakeDaemon, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that outlives gevent's own modules says nothing; any other time a failure to close is told."""
    connection = client._pool.take()
    real = connection._socket

    class TakenApart:
        def close(self) -> None:
            raise TypeError("'NoneType' object is not callable")

    connection._socket = TakenApart()
    with pytest.raises(TypeError):
        connection.__del__()
    monkeypatch.setattr(_transport.Connection, "_is_finalizing", lambda self: True)
    connection.__del__()
    connection._socket = real
    connection.close()


def test_threads_do_not_share_a_call(daemon: FakeDaemon, client: Client) -> None:
    """Each thread gets its own answers."""
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
def test_no_daemon(short_folder: Path, monkeypatch: pytest.MonkeyPatch, no: str) -> None:
    """The message says what to do."""
    monkeypatch.setenv("ORBD_AUTOSTART", no)
    with pytest.raises(errors.DaemonNotRunning, match=r"start it with `orbd-ctl daemon start`.*ORBD_AUTOSTART forbids"):
        Client(str(short_folder / "none")).machine_list()


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    """The system's limit is told with the path."""
    with pytest.raises(errors.DaemonUnavailable, match=r"cannot connect to orbd on .*too long"):
        Client(str(tmp_path / ("x" * 200))).machine_list()


def test_the_daemon_is_started_on_demand(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing socket starts the daemon once, and the call is made."""
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


def test_a_start_that_fails_says_why(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``orbd-ctl`` printed is part of the message."""
    fake_ctl(short_folder, "echo 'no room on disk' >&2; exit 3", monkeypatch)
    with pytest.raises(errors.DaemonNotRunning, match="ended with 3: no room on disk"):
        Client(str(short_folder / "orbd.sock")).machine_list()


def test_orbd_ctl_is_missing(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is that it is not installed."""
    monkeypatch.setenv("PATH", str(short_folder))
    monkeypatch.delenv("ORBD_AUTOSTART", raising=False)
    with pytest.raises(errors.DaemonNotRunning, match="orbd-ctl: No such file"):
        Client(str(short_folder / "orbd.sock")).machine_list()


def test_the_socket_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same literal path on every platform."""
    monkeypatch.setenv("ORBD_SOCKET", "/x/y")
    assert _transport.socket_path() == "/x/y"
    monkeypatch.delenv("ORBD_SOCKET")
    monkeypatch.setenv("HOME", "/home/someone")
    assert _transport.socket_path() == "/home/someone/.orbd/orbd.sock"


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    """Waits for what other threads do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
