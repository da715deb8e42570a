"""An ``orbctl`` that is sick: who is told, what goes on with what was last known, and what fails with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyinfra.api.exceptions import ConnectError, FactError

from conftest import MakeHost
from fake_daemon import FakeDaemon, Peer, ShellMachines
from orbd import Client
from play import forget_clients, heard, play
from pyinfra_orbd import helpers, operations
from pyinfra_orbd.connector import OrbStackConnector
from real_daemon import RealDaemon, temporary_daemon
from target import Target

PANICS = '[[trouble]]\nkind = "panic"\n'
REASON = "orbctl is sick: orbctl said: panic: timed out waiting for services to start"


@pytest.fixture
def sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """A daemon that has seen ``web`` run and ``db`` stand still before its ``orbctl`` fell sick."""
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
            # What was seen a moment ago would be good enough still.
            client.cache_invalidate()
        yield daemon
        forget_clients()


@pytest.mark.needs_daemon
class TestSick:
    """With a real daemon."""

    def test_the_inventory_is_made_with_a_warning(self, sick: RealDaemon) -> None:
        """Everything that was last known is in it, and one line says so, however often it is made."""
        with heard() as lines:
            found = [[host for host, _, _ in OrbStackConnector.make_names_data(name)] for name in (None, "web", None)]
        assert [sorted(hosts) for hosts in found] == [["db", "web"], ["web"], ["db", "web"]]
        (line,) = [line for line in lines.lines if "out of date" in line]
        assert line.endswith(REASON)

    def test_who_connects_is_told_why_not(self, sick: RealDaemon, tmp_path: Path) -> None:
        """Each host fails by itself: at connecting where that needs ``orbctl``, else with its first command."""
        target = Target({"ORBD_SOCKET": str(sick.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", tmp_path)
        said = target.pyinfra("@orbstack/web,@orbstack/db,@orbstack/none", "exec", "--", "echo", "hello", code=1)
        for host in ("web", "db", "none"):
            (line,) = [line for line in said.splitlines() if f"[{host}]" in line and "sick" in line][:1]
            assert "timed out waiting for services" in line
        assert "OrbStack has no machine" not in said
        assert "Traceback" not in said

    def test_no_operation_takes_it_for_done(self, sick: RealDaemon) -> None:
        """What it was decides nothing: an operation that would do nothing fails instead, as one that would do something does."""
        for operation, machine in ((operations.vm_start, "web"), (operations.vm_stop, "web"), (operations.vm_delete, "none")):
            played = play(operation, machine)
            assert played.failed
            assert "orbctl is sick" in played.said

    def test_helpers(self, sick: RealDaemon) -> None:
        """They tell what was last known, and refuse where the facts of now are asked for."""
        assert sorted(machine["name"] for machine in helpers.vm_list()) == ["db", "web"]
        with pytest.raises(FactError, match="orbctl is sick"):
            helpers.vm_list(max_age=0)


def test_a_reason_is_told_even_where_the_daemon_gives_none(
    daemon: FakeDaemon, machines: ShellMachines, make_host: MakeHost
) -> None:
    """``stale`` alone is enough: a machine that is not on such a list is not called missing."""
    known = daemon.handlers["machine.list"]

    def stale(peer: Peer, params: dict[str, object]) -> dict[str, object]:
        return {**known(peer, params), "stale": True, "age_ms": 4000}

    daemon.handlers["machine.list"] = stale
    with heard() as lines:
        make_host("@orbstack/web").disconnect()
        with pytest.raises(ConnectError, match="machine 'none': orbctl cannot be asked"):
            make_host("@orbstack/none", connect=False).connect(raise_exceptions=True)
    assert [line for line in lines.lines if "4 s ago: orbctl cannot be asked" in line]
