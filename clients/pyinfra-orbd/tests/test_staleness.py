"""Behaviour while ``orbctl`` is unhealthy: warnings, use of the last known state, and errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyinfra.api.exceptions import ConnectError, FactError

from conftest import MakeHost
from fake_daemon import FakeDaemon, Peer, ShellMachines
from orbd import Client
from play import captured_log, forget_clients, play
from pyinfra_orbd import helpers, operations
from pyinfra_orbd.connector import OrbStackConnector
from real_daemon import RealDaemon, temporary_daemon
from target import Target

PANICS = '[[trouble]]\nkind = "panic"\n'
REASON = "orbctl is unhealthy: orbctl reported: panic: timed out waiting for services to start"


@pytest.fixture
def unhealthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """A daemon that has observed ``web`` running and ``db`` stopped before its ``orbctl`` became unhealthy."""
    script = tmp_path / "script.toml"
    script.write_text("")
    with temporary_daemon(script=script) as daemon:
        daemon.create("web", "db")
        daemon.sim("stop", "db")
        for variable, value in daemon.environment.items():
            monkeypatch.setenv(variable, value)
        with Client(str(daemon.socket), name="tests") as client:
            assert len(client.machine_list(max_age_ms=0).machines) == 2
            script.write_text(PANICS)
            assert client.machine_list(max_age_ms=0).stale
            # Otherwise the cached list would still be fresh enough.
            client.cache_invalidate()
        yield daemon
        forget_clients()


@pytest.mark.needs_daemon
class TestUnhealthy:
    """With a real daemon."""

    def test_inventory_uses_the_last_known_state_and_warns_once(self, unhealthy: RealDaemon) -> None:
        with captured_log() as lines:
            found = [[host for host, _, _ in OrbStackConnector.make_names_data(name)] for name in (None, "web", None)]
        assert [sorted(hosts) for hosts in found] == [["db", "web"], ["web"], ["db", "web"]]
        (line,) = [line for line in lines.lines if "out of date" in line]
        assert line.endswith(REASON)

    def test_each_host_fails_with_the_reason(self, unhealthy: RealDaemon, tmp_path: Path) -> None:
        """While connecting if that needs ``orbctl``, else with its first command."""
        target = Target({"ORBD_SOCKET": str(unhealthy.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
        said = target.pyinfra("@orbstack/web,@orbstack/db,@orbstack/none", "exec", "--", "echo", "hello", code=1)
        for host in ("web", "db", "none"):
            (line,) = [line for line in said.splitlines() if f"[{host}]" in line and "unhealthy" in line][:1]
            assert "timed out waiting for services" in line
        assert "OrbStack has no machine" not in said
        assert "Traceback" not in said

    def test_operation_fails_instead_of_doing_nothing_based_on_stale_data(self, unhealthy: RealDaemon) -> None:
        for operation, machine in ((operations.vm_start, "web"), (operations.vm_stop, "web"), (operations.vm_delete, "none")):
            played = play(operation, machine)
            assert played.failed
            assert "orbctl is unhealthy" in played.said

    def test_helpers_return_stale_data_unless_max_age_is_zero(self, unhealthy: RealDaemon) -> None:
        assert sorted(machine["name"] for machine in helpers.vm_list()) == ["db", "web"]
        with pytest.raises(FactError, match="orbctl is unhealthy"):
            helpers.vm_list(max_age=0)


def test_stale_answer_without_a_reason_is_reported_as_unhealthy(
    daemon: FakeDaemon, machines: ShellMachines, make_host: MakeHost
) -> None:
    """A machine missing from such a list is not reported as missing."""
    known = daemon.handlers["machine.list"]

    def stale(peer: Peer, params: dict[str, object]) -> dict[str, object]:
        return {**known(peer, params), "stale": True, "age_ms": 4000}

    daemon.handlers["machine.list"] = stale
    with captured_log() as lines:
        make_host("@orbstack/web").disconnect()
        with pytest.raises(ConnectError, match="machine 'none': orbctl is unhealthy"):
            make_host("@orbstack/none", connect=False).connect(raise_exceptions=True)
    assert [line for line in lines.lines if "4 s ago): orbctl is unhealthy" in line]
