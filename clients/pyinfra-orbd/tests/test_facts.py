"""Facts and helpers: what they tell, from whom they know it, and what happens when nobody can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.exceptions import FactError
from pyinfra.api.facts import get_facts
from pyinfra.api.host import Host
from pyinfra.context import ctx_host

from orbd import Client
from play import forget_clients, heard, on, playing
from pyinfra_orbd import _told, facts, helpers
from real_daemon import RealDaemon, temporary_daemon
from target import Target


@pytest.fixture(scope="module")
def world() -> Iterator[RealDaemon]:
    """Two machines, of which one is stopped."""
    with temporary_daemon() as daemon:
        daemon.create("web", "db")
        daemon.sim("stop", "db")
        daemon.sim("config", "set", "machine.db.cpu", "3")
        with Client(str(daemon.socket)) as client:
            client.cache_invalidate()
        yield daemon


@pytest.fixture
def daemon(world: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, where the environment says that it is."""
    monkeypatch.setenv("ORBD_SOCKET", str(world.socket))
    monkeypatch.setenv("ORBD_AUTOSTART", "0")
    yield world
    forget_clients()


@pytest.fixture
def host(daemon: RealDaemon) -> Iterator[Host]:
    """A machine's host."""
    with playing("@orbstack/web") as state:
        yield next(iter(state.inventory))


@pytest.mark.needs_daemon
class TestFacts:
    """Each, of a running machine and of a stopped one."""

    def test_list(self, host: Host) -> None:
        """Every machine, with what the inventory tells of it."""
        machines = host.get_fact(facts.VmList)
        assert [machine["name"] for machine in machines] == ["web", "db"]
        web, db = machines
        assert web.keys() == _told.Machine.__annotations__.keys()
        assert (web["state"], web["distro"], web["version"], web["cpus"]) == ("running", "ubuntu", "noble", None)
        assert (db["state"], db["cpus"]) == ("stopped", 3)

    def test_info(self, host: Host) -> None:
        """Addresses while it runs; size and domain always."""
        web = host.get_fact(facts.VmInfo, machine="web")
        assert web is not None
        assert web["ip4"] is not None
        assert web["ip4"].startswith("192.168.")
        assert (web["domain"], web["state"]) == ("web.orb.local", "running")
        db = host.get_fact(facts.VmInfo, "db")
        assert db is not None
        assert (db["ip4"], db["ip6"], db["domain"]) == (None, None, "db.orb.local")

    def test_status_and_ip(self, host: Host) -> None:
        """One word each."""
        assert host.get_fact(facts.VmStatus, "db") == "stopped"
        assert host.get_fact(facts.VmStatus, machine="web", max_age=0) == "running"
        assert host.get_fact(facts.VmIp, "db") is None
        info = host.get_fact(facts.VmInfo, "web")
        assert info is not None
        assert host.get_fact(facts.VmIp, "web") == info["ip4"]

    def test_network(self, host: Host, daemon: RealDaemon) -> None:
        """Subnet and gateway are the machine's own; a stopped one is not started for them."""
        web = host.get_fact(facts.VmNetwork, "web")
        assert web is not None
        subnet, gateway = _told.route(daemon.inside("web", "cat", "/proc/net/route"))
        assert (web["subnet"], web["gateway"]) == (subnet or "192.168.138.0/23", gateway)
        assert web["domain"] == "web.orb.local"
        db = host.get_fact(facts.VmNetwork, "db")
        assert db == {
            "ip4": None,
            "ip6": None,
            "domain": "db.orb.local",
            "hostname": "db.orb.local",
            "subnet": "192.168.138.0/23",
            "gateway": None,
        }
        assert host.get_fact(facts.VmStatus, "db", max_age=0) == "stopped"

    def test_logs(self, host: Host) -> None:
        """The machine's own, and OrbStack's about it."""
        assert any("booted" in line for line in host.get_fact(facts.VmLogs, "web"))
        assert len(host.get_fact(facts.VmLogs, machine="web", all_logs=True)) >= len(host.get_fact(facts.VmLogs, "web"))

    def test_ssh(self, host: Host) -> None:
        """For programs that read the Mac's SSH configuration, and for others."""
        told = host.get_fact(facts.SshInfo, "web", user="me")
        assert told is not None
        assert (told["connect"], told["login"], told["port"]) == ("ssh me@web@orb", "me@web", 32222)
        assert (told["identity_file"] or "").endswith("/.orbstack/ssh/id_ed25519")
        assert "Port 32222" in told["text"]
        assert host.get_fact(facts.SshConnectString, "web") == "ssh web@orb"

    def test_config(self, host: Host) -> None:
        """OrbStack's, and its machines'."""
        config = host.get_fact(facts.OrbstackConfig)
        assert (config["machine.db.cpu"], config["network.subnet4"]) == ("3", "192.168.138.0/23")

    def test_orbstack(self, host: Host) -> None:
        """Whether it runs, and which it is."""
        assert host.get_fact(facts.OrbstackStatus) == {"status": "running", "running": True, "version": "2.2.3"}


@pytest.mark.needs_daemon
class TestHow:
    """Where facts are had from."""

    def test_the_machine_is_not_entered(self, daemon: RealDaemon) -> None:
        """A fact of a machine's host costs no command in it, and one look serves all hosts."""
        with Client(str(daemon.socket)) as client:
            client.cache_invalidate()
        before = len(daemon.ledger())
        with playing("@orbstack/web") as state:
            host = next(iter(state.inventory))
            for _ in range(5):
                host.get_fact(facts.VmInfo)
                host.get_fact(facts.VmList)
            get_facts(state, facts.OrbstackConfig)
        assert RealDaemon.spawns_in(daemon.ledger()[before:]) == {"list": 1, "info": 1, "config": 1}

    def test_the_own_machine(self, daemon: RealDaemon) -> None:
        """Where none is named, the machine behind the host whose fact it is: not that of the current one."""
        daemon.sim("start", "db")
        try:
            with playing("@orbstack/web", "@orbstack/db") as state:
                web, db = state.inventory
                with ctx_host.use(web):
                    names = [info and info["name"] for info in (db.get_fact(facts.VmInfo), web.get_fact(facts.VmInfo))]
                assert names == ["db", "web"]
        finally:
            daemon.sim("stop", "db")
            with Client(str(daemon.socket)) as client:
                client.cache_invalidate()

    def test_after_a_change_outside(self, daemon: RealDaemon) -> None:
        """``max_age=0`` asks OrbStack now."""
        with playing("@orbstack/web") as state:
            host = next(iter(state.inventory))
            assert host.get_fact(facts.VmStatus, "db") == "stopped"
            daemon.sim("start", "db")
            assert host.get_fact(facts.VmStatus, "db", max_age=0) == "running"
            daemon.sim("stop", "db")
            assert host.get_fact(facts.VmStatus, "db", max_age=0) == "stopped"

    def test_from_the_command_line(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """PyInfra prints every fact, and they are the same from a machine's host and from one that is no machine."""
        target = target_of(daemon, tmp_path)
        about: dict[str, list[str]] = {"VmList": [], "OrbstackConfig": [], "OrbstackStatus": []}
        words = [word for name in facts.__all__ for word in (f"pyinfra_orbd.facts.{name}", *about.get(name, ["machine=db"]))]
        told = {}
        for entry, name in (("@orbstack/web", "web"), ("@local", "@local")):
            said = target.pyinfra("--json", entry, "fact", *words)
            answers = json.JSONDecoder().raw_decode(said[said.index("\n{") + 1 :])[0]
            told[name] = {fact: answer[name] for fact, answer in answers.items()}
        assert len(told["web"]) == len(facts.__all__)
        assert told["web"] == told["@local"]

    def test_from_the_command_line_without_machine(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """A host that is no machine needs a name."""
        said = target_of(daemon, tmp_path).pyinfra("@local", "fact", "pyinfra_orbd.facts.VmIp")
        assert "which machine? host @local is none of OrbStack's" in said


def target_of(daemon: RealDaemon, cwd: Path) -> Target:
    """Makes PyInfra's command line in front of the daemon."""
    return Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", cwd)


@pytest.mark.needs_daemon
class TestCannot:
    """What goes wrong is the host's failure, with the reason."""

    def test_no_such_machine(self, daemon: RealDaemon, capfd: pytest.CaptureFixture[str]) -> None:
        """The host fails, and PyInfra says why; the other host goes on."""
        with heard() as lines, playing("@orbstack/web", "@local") as state:
            host = next(iter(state.inventory))
            assert host.get_fact(facts.VmInfo, machine="nobody's") is None
            assert [other.name for other in state.active_hosts] == ["@local"]
        said = "\n".join([*lines.lines, *capfd.readouterr()])
        assert "nobody's" in said
        assert "could not load fact: pyinfra_orbd.facts.machines.VmInfo" in said

    def test_helpers_raise(self, daemon: RealDaemon) -> None:
        """In PyInfra's own way, which ends a deploy with one line."""
        with pytest.raises(FactError, match=r"vm_info: .*nobody"):
            helpers.vm_info("nobody")
        with pytest.raises(FactError, match="vm_ip: which machine"):
            helpers.vm_ip()


@pytest.mark.needs_daemon
def test_helpers(daemon: RealDaemon) -> None:
    """They return what the facts tell, of the current host's machine or of the one that is named."""
    with playing("@orbstack/web") as state:
        host = next(iter(state.inventory))

        def called(name: str, *args: Any, **kwargs: Any) -> Any:
            return on(host, lambda: getattr(helpers, name)(*args, **kwargs))

        assert called("vm_list") == host.get_fact(facts.VmList)
        assert called("vm_info") == called("vm_status_detailed") == host.get_fact(facts.VmInfo)
        assert called("vm_status") == "running"
        assert called("vm_status", "db") == "stopped"
        assert called("vm_ip") == host.get_fact(facts.VmIp)
        assert called("vm_network_info") == called("vm_network_details") == host.get_fact(facts.VmNetwork)
        assert called("vm_logs").splitlines() == [line for line in host.get_fact(facts.VmLogs) if line]
        assert called("vm_logs", all_logs=True, machine="db")
        assert called("ssh_info") == host.get_fact(facts.SshInfo)
        assert called("ssh_connect_string", "db", "me") == "ssh me@db@orb"
        assert called("orbstack_config_show") == host.get_fact(facts.OrbstackConfig)
        assert called("orbstack_config_get", "machine.db.cpu") == "3"
        assert called("orbstack_config_get", "machine.db.nonsense") is None
        assert called("orbstack_status")["running"]


HEADER = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], (None, None)),
        (["eth0 00000000 018BA8C0 0003 0 0 0 00000000 0 0 0"], (None, "192.168.139.1")),
        (
            ["eth0 00000000 018BA8C0 0003 0 0 0 00000000 0 0 0", "eth0 008AA8C0 00000000 0001 0 0 0 00FEFFFF 0 0 0"],
            ("192.168.138.0/23", "192.168.139.1"),
        ),
        (
            [
                "docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0",
                "eth0 008AA8C0 00000000 0001 0 0 0 00FEFFFF 0 0 0",
                "eth0 00000000 018BA8C0 0003 0 0 0 00000000 0 0 0",
            ],
            ("192.168.138.0/23", "192.168.139.1"),
        ),
        (["eth0 008AA8C0 00000000 0001 0 0 0 00FEFFFF 0 0 0"], (None, None)),
        (["nonsense", "eth0 xyz", "eth0 fffffffffff 0 0 0 0 0 0"], (None, None)),
    ],
)
def test_routes(rows: list[str], expected: tuple[str | None, str | None]) -> None:
    """The kernel's table of routes; what is not a route is passed over."""
    assert _told.route("\n".join([HEADER, *rows])) == expected
