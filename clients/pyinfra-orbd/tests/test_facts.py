"""Facts and helpers: their data, the calls that they make, and their errors."""

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
from play import at_its_socket, captured_log, on, playing
from pyinfra_orbd import _queries, facts, helpers
from real_daemon import RealDaemon, temporary_daemon
from target import Target


@pytest.fixture(scope="module")
def world() -> Iterator[RealDaemon]:
    """A daemon with a running and a stopped machine."""
    with temporary_daemon() as daemon:
        daemon.create("web", "db")
        daemon.sim("stop", "db")
        daemon.sim("config", "set", "machine.db.cpu", "3")
        with Client(str(daemon.socket)) as client:
            client.cache_invalidate()
        yield daemon


@pytest.fixture
def daemon(world: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, at the socket that the environment names."""
    with at_its_socket(world, monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def host(daemon: RealDaemon) -> Iterator[Host]:
    """The host of the machine ``web``."""
    with playing("@orbstack/web") as state:
        yield next(iter(state.inventory))


@pytest.mark.needs_daemon
class TestFacts:
    """Each fact, for a running and a stopped machine."""

    def test_vm_list_has_all_machines_with_their_settings(self, host: Host) -> None:
        machines = host.get_fact(facts.VmList)
        assert [machine["name"] for machine in machines] == ["web", "db"]
        web, db = machines
        assert web.keys() == _queries.Machine.__annotations__.keys()
        assert (web["state"], web["distro"], web["version"], web["cpus"]) == ("running", "ubuntu", "noble", None)
        assert (db["state"], db["cpus"]) == ("stopped", 3)

    def test_vm_info_has_addresses_only_while_the_machine_runs(self, host: Host) -> None:
        web = host.get_fact(facts.VmInfo, machine="web")
        assert web is not None
        assert web["ip4"] is not None
        assert web["ip4"].startswith("192.168.")
        assert (web["domain"], web["state"]) == ("web.orb.local", "running")
        db = host.get_fact(facts.VmInfo, "db")
        assert db is not None
        assert (db["ip4"], db["ip6"], db["domain"]) == (None, None, "db.orb.local")

    def test_vm_status_and_vm_ip_are_single_values(self, host: Host) -> None:
        assert host.get_fact(facts.VmStatus, "db") == "stopped"
        assert host.get_fact(facts.VmStatus, machine="web", max_age=0) == "running"
        assert host.get_fact(facts.VmIp, "db") is None
        info = host.get_fact(facts.VmInfo, "web")
        assert info is not None
        assert host.get_fact(facts.VmIp, "web") == info["ip4"]

    def test_vm_network_has_the_machines_routes_and_starts_nothing(self, host: Host, daemon: RealDaemon) -> None:
        web = host.get_fact(facts.VmNetwork, "web")
        assert web is not None
        seen = daemon.inside("web", "sh", "-c", _queries.INSPECT_NETWORK)
        subnet, gateway = _queries.route(seen)
        assert (web["subnet"], web["gateway"]) == (subnet or "192.168.138.0/23", gateway)
        assert web["mac"] == _queries.mac_address(seen)
        assert web["domain"] == "web.orb.local"
        db = host.get_fact(facts.VmNetwork, "db")
        assert db == {
            "ip4": None,
            "ip6": None,
            "mac": None,
            "domain": "db.orb.local",
            "hostname": "db.orb.local",
            "subnet": "192.168.138.0/23",
            "gateway": None,
        }
        assert host.get_fact(facts.VmStatus, "db", max_age=0) == "stopped"

    def test_vm_logs_has_the_console_and_optionally_orbstacks_lines(self, host: Host) -> None:
        assert any("booted" in line for line in host.get_fact(facts.VmLogs, "web"))
        assert len(host.get_fact(facts.VmLogs, machine="web", all_logs=True)) >= len(host.get_fact(facts.VmLogs, "web"))

    def test_ssh_info_has_command_host_port_and_key(self, host: Host) -> None:
        info = host.get_fact(facts.SshInfo, "web", user="me")
        assert info is not None
        assert (info["connect"], info["login"], info["port"]) == ("ssh me@web@orb", "me@web", 32222)
        assert (info["identity_file"] or "").endswith("/.orbstack/ssh/id_ed25519")
        assert "Port 32222" in info["text"]
        assert host.get_fact(facts.SshConnectString, "web") == "ssh web@orb"

    def test_orbstack_config_includes_settings_of_machines(self, host: Host) -> None:
        config = host.get_fact(facts.OrbstackConfig)
        assert (config["machine.db.cpu"], config["network.subnet4"]) == ("3", "192.168.138.0/23")

    def test_orbstack_status_has_status_and_version(self, host: Host) -> None:
        assert host.get_fact(facts.OrbstackStatus) == {"status": "running", "running": True, "version": "2.2.3"}


@pytest.mark.needs_daemon
class TestQueries:
    """Calls that facts make."""

    def test_facts_run_no_command_in_a_machine_and_share_the_cache(self, daemon: RealDaemon) -> None:
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

    def test_default_machine_is_that_of_the_facts_host(self, daemon: RealDaemon) -> None:
        """Not that of the current host."""
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

    def test_max_age_zero_sees_changes_made_outside_the_daemon(self, daemon: RealDaemon) -> None:
        with playing("@orbstack/web") as state:
            host = next(iter(state.inventory))
            assert host.get_fact(facts.VmStatus, "db") == "stopped"
            daemon.sim("start", "db")
            assert host.get_fact(facts.VmStatus, "db", max_age=0) == "running"
            daemon.sim("stop", "db")
            assert host.get_fact(facts.VmStatus, "db", max_age=0) == "stopped"

    def test_facts_are_the_same_on_orbstack_and_local_hosts(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """PyInfra's command line can print every fact."""
        target = target_of(daemon, tmp_path)
        parameters: dict[str, list[str]] = {"VmList": [], "OrbstackConfig": [], "OrbstackStatus": []}
        words = [word for name in facts.__all__ for word in (f"pyinfra_orbd.facts.{name}", *parameters.get(name, ["machine=db"]))]
        answers_by_host = {}
        for entry, name in (("@orbstack/web", "web"), ("@local", "@local")):
            said = target.pyinfra("--json", entry, "fact", *words)
            answers = json.JSONDecoder().raw_decode(said[said.index("\n{") + 1 :])[0]
            answers_by_host[name] = {fact: answer[name] for fact, answer in answers.items()}
        assert len(answers_by_host["web"]) == len(facts.__all__)
        assert answers_by_host["web"] == answers_by_host["@local"]

    def test_fact_on_a_local_host_requires_a_machine(self, daemon: RealDaemon, tmp_path: Path) -> None:
        said = target_of(daemon, tmp_path).pyinfra("@local", "fact", "pyinfra_orbd.facts.VmIp")
        assert "no machine given, and host '@local' is not an OrbStack machine" in said


def target_of(daemon: RealDaemon, cwd: Path) -> Target:
    """Returns PyInfra's command line with the daemon."""
    return Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", cwd)


@pytest.mark.needs_daemon
class TestErrors:
    """An error fails only the host, with the reason."""

    def test_unknown_machine_fails_only_its_host(self, daemon: RealDaemon, capfd: pytest.CaptureFixture[str]) -> None:
        with captured_log() as lines, playing("@orbstack/web", "@local") as state:
            host = next(iter(state.inventory))
            assert host.get_fact(facts.VmInfo, machine="missing's") is None
            assert [other.name for other in state.active_hosts] == ["@local"]
        said = "\n".join([*lines.lines, *capfd.readouterr()])
        assert "missing's" in said
        assert "could not load fact: pyinfra_orbd.facts.machines.VmInfo" in said

    def test_helper_error_is_a_fact_error(self, daemon: RealDaemon) -> None:
        with pytest.raises(FactError, match=r"vm_info: .*missing"):
            helpers.vm_info("missing")
        with pytest.raises(FactError, match=r"ssh_info: .*missing"):
            helpers.ssh_info("missing")
        with pytest.raises(FactError, match="vm_ip: no machine given"):
            helpers.vm_ip()


@pytest.mark.needs_daemon
def test_helpers_return_the_same_data_as_facts(daemon: RealDaemon) -> None:
    """For the current host's machine and for a named one."""
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
def test_route_parses_the_kernels_routing_table(rows: list[str], expected: tuple[str | None, str | None]) -> None:
    """Lines in another format are skipped."""
    assert _queries.route("\n".join([HEADER, *rows])) == expected


DEFAULT_BY_ETH0 = "eth0 00000000 018BA8C0 0003 0 0 0 00000000 0 0 0"
ADDRESSES = (
    "/sys/class/net/docker0/address:02:42:ac:11:00:01",
    "/sys/class/net/eth0/address:a6:17:db:b7:e9:f1",
    "/sys/class/net/lo/address:00:00:00:00:00:00",
)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([DEFAULT_BY_ETH0, *ADDRESSES], "a6:17:db:b7:e9:f1"),
        ([DEFAULT_BY_ETH0, *ADDRESSES[:1]], None),
        ([*ADDRESSES], None),
        ([*ADDRESSES[1:]], "a6:17:db:b7:e9:f1"),
        ([DEFAULT_BY_ETH0], None),
        ([], None),
    ],
)
def test_mac_address_is_that_of_the_default_routes_interface(lines: list[str], expected: str | None) -> None:
    assert _queries.mac_address("\n".join([HEADER, *lines])) == expected
