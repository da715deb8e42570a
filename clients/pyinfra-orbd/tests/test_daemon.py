"""Tests that need a real daemon."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
import threading
import time
from io import BytesIO

import pytest
from pyinfra.api import Config, Inventory, State
from pyinfra.api.host import Host

from orbd import Client, errors
from pyinfra_orbd import _client, connector
from real_daemon import RealDaemon, temporary_daemon

pytestmark = pytest.mark.needs_daemon


@pytest.fixture
def host(real: RealDaemon) -> Host:
    """The connected host of the machine ``web``, with the real daemon."""
    inventory = Inventory((["@orbstack/web"], {}))
    State(inventory, Config())
    host = next(iter(inventory))
    host.connect(raise_exceptions=True)
    return host


def test_command_returns_exit_code_and_both_streams(host: Host) -> None:
    ok, output = host.run_shell_command(r"printf 'caf\351\n'; echo err >&2; exit 3", _success_exit_codes=[3])
    assert ok
    assert output.stdout == "caf\ufffd"
    assert output.stderr == "err"


def test_output_is_printed_while_the_command_runs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    monkeypatch.setattr(connector, "echo", lambda text, err: times.append(time.monotonic()))
    host.run_shell_command("echo a; sleep 0.5; echo b", print_output=True)
    assert times[1] - times[0] > 0.3


def test_output_beyond_the_inline_limit_is_complete(host: Host) -> None:
    _, output = host.run_shell_command("seq 1 400000")
    assert output.stdout_lines[-1] == "400000"
    assert len(output.stdout_lines) == 400000


def test_input_beyond_the_inline_limit_is_complete(host: Host) -> None:
    _, output = host.run_shell_command("wc -c", _stdin="x" * (5 << 20))
    assert output.stdout.strip() == str((5 << 20) + 1)


ECHO = """
    from pyinfra.api import Config, Inventory, State
    from pyinfra_orbd import connector

    printed = []
    connector.echo = lambda text, err: printed.append(text)
    inventory = Inventory((["@orbstack/web", "@orbstack/db"], {{}}))
    State(inventory, Config())
    given = "".join(f"{{number:063d}}\\n" for number in range(131072))
    right = []

    def run(host):
        host.connect(raise_exceptions=True)
        ok, output = host.run_shell_command("cat", _stdin=given, print_output={live})
        right.append(ok and output.stdout_lines == given.splitlines() and output.stderr == "")

    {run}
    print(right, len(printed))
    connector.client().close()
"""

WAYS = {
    "plain": ("", "[run(host) for host in inventory]"),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor",
        "with ThreadPoolExecutor(2) as pool: list(pool.map(run, inventory))",
    ),
    "patched": (
        "from gevent import monkey; monkey.patch_all(); import gevent",
        "gevent.joinall([gevent.spawn(run, h) for h in inventory])",
    ),
    "hub": ("import gevent; gevent.get_hub()", "gevent.joinall([gevent.spawn(run, host) for host in inventory])"),
}


@pytest.mark.parametrize("live", [False, True], ids=["at the end", "live"])
@pytest.mark.parametrize("way", WAYS)
def test_large_input_and_output_do_not_deadlock(real: RealDaemon, way: str, live: bool) -> None:
    """For a command that writes while it reads, in each concurrency model."""
    patch, run = WAYS[way]
    script = f"{patch}\n{textwrap.dedent(ECHO).format(live=live, run=run)}"
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script],
        env={"ORBD_SOCKET": str(real.socket), "ORBD_AUTOSTART": "0", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (f"[True, True] {262144 if live else 0}\n", "")


def test_interrupted_stream_closes_both_connections_and_ends_the_job(real: RealDaemon) -> None:
    script = """
        import gevent, itertools
        from orbd import Client
        with Client() as client:
            def echo():
                with gevent.Timeout(1, False):
                    command = ["sh", "-c", "head -c 3000000; exec sleep 300"]
                    for event in client.machine_run_follow("web", command, stdin=itertools.repeat(b"x" * 100_000)):
                        job_id = getattr(event, "job_id", None) or job_id
                print(len(client._pool._idle_here()))
                print(client.job_wait(job_id, timeout_ms=15_000).state)
            gevent.spawn(echo).get()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(script)],
        env={"ORBD_SOCKET": str(real.socket), "ORBD_AUTOSTART": "0", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("0\nended\n", "")


def test_daemon_enforces_the_timeout(host: Host) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        host.run_shell_command("sleep 30", _timeout=1)
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 9_000_000])
def test_upload_and_download_preserve_all_bytes(host: Host, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    host.put_file(BytesIO(content), "_testfile")
    back = BytesIO()
    host.get_file("_testfile", back)
    assert back.getvalue() == content


def test_download_of_a_missing_file_is_file_not_found(host: Host) -> None:
    with pytest.raises(FileNotFoundError):
        host.get_file("none", BytesIO())


def test_commands_of_two_machines_run_concurrently(real: RealDaemon) -> None:
    client = Client(str(real.socket), name="overlap")
    begun = time.monotonic()
    threads = [threading.Thread(target=client.machine_run, args=(name, ["sleep", "1"])) for name in ("web", "db")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 1.9
    client.close_idle()


def test_closing_the_event_iterator_stops_the_command(real: RealDaemon) -> None:
    client = Client(str(real.socket), name="leaver")
    events = client.machine_run_follow("web", ["sleep", "300"])
    job_id = None
    for event in events:
        job_id = getattr(event, "job_id", job_id)
        if type(event).__name__ == "Started":
            break
    events.close()
    assert job_id is not None
    assert client.job_wait(job_id, timeout_ms=15_000).state == "ended"
    client.close_idle()


def test_unknown_machine_and_unknown_parameter_raise_their_classes(real: RealDaemon) -> None:
    client = Client(str(real.socket), name="wrong")
    with pytest.raises(errors.MachineNotFound):
        client.machine_info("none")
    with pytest.raises(errors.MachineNotFound):
        client.machine_run("none", ["true"])
    with pytest.raises(errors.MachineNotFound):
        list(client.machine_run_follow("none", ["true"]))
    with pytest.raises(errors.InvalidParams) as caught:
        client.call("machine.info", {"machine": "web", "colour": "green"})
    assert caught.value.data["field"]
    client.close_idle()


def test_connect_finds_a_machine_created_outside_the_daemon(real: RealDaemon) -> None:
    """The daemon's cache does not have it yet; connecting requests a fresh list before it fails."""
    Client(str(real.socket)).machine_list()
    real.sim("create", "ubuntu:24.04", "late")
    inventory = Inventory((["@orbstack/late"], {}))
    State(inventory, Config())
    next(iter(inventory)).connect(raise_exceptions=True)
    real.sim("delete", "-f", "late")


def test_killed_daemon_fails_the_command_and_the_next_daemon_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_daemon(isolation="dir") as own:
        own.create("web")
        monkeypatch.setenv("ORBD_SOCKET", str(own.socket))
        inventory = Inventory((["@orbstack/web"], {}))
        State(inventory, Config())
        host = next(iter(inventory))
        host.connect(raise_exceptions=True)
        threading.Timer(0.5, own.kill).start()
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            host.run_shell_command("sleep 3")
        assert time.monotonic() - begun < 2
        own.process.wait()
        own.process = own.start()
        assert host.run_shell_command("echo back")[1].stdout == "back"
        _client._clients.clear()


def test_killed_daemon_leaves_the_upload_target_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next daemon accepts the upload."""
    with temporary_daemon(isolation="dir") as own:
        own.create("web")
        monkeypatch.setenv("ORBD_SOCKET", str(own.socket))
        inventory = Inventory((["@orbstack/web"], {}))
        State(inventory, Config())
        host = next(iter(inventory))
        host.connect(raise_exceptions=True)
        host.put_file(io.BytesIO(b"old"), "file")

        class Deadly(io.BytesIO):
            """Kills the daemon when the second half is read."""

            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= 4 << 20:
                    own.kill()
                return super().read(size)

        with pytest.raises(ConnectionError):
            host.put_file(Deadly(bytes(8 << 20)), "file")
        assert own.inside("web", "cat", "file") == "old"
        own.process = own.start()
        host.put_file(io.BytesIO(b"new"), "file")
        assert own.inside("web", "cat", "file") == "new"
        _client._clients.clear()
