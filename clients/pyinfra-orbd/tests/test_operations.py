"""Operations on machines, through real PyInfra, a real daemon and the stand-in: each twice, and what it does when it cannot."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbd import Client, errors
from play import forget_clients, play
from pyinfra_orbd import operations
from pyinfra_orbd.operations import archives, machines
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon


@pytest.fixture(scope="module")
def world() -> Iterator[RealDaemon]:
    """A daemon for machines that come and go."""
    with temporary_daemon() as daemon:
        daemon.create("base")
        yield daemon


@pytest.fixture
def daemon(world: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, where the environment says that it is; the machines that a test made are gone afterwards."""
    # All of it: who exports runs the stand-in from here, not in the daemon.
    for variable, value in world.environment.items():
        monkeypatch.setenv(variable, value)
    yield world
    forget_clients()
    with Client(str(world.socket), name="tests") as client:
        for machine in client.machine_list(max_age_ms=0).machines:
            if machine.name != "base":
                client.machine_stop(machine.name, force=True)
                client.machine_delete(machine.name)
        client.machine_start("base")


def names(daemon: RealDaemon) -> set[str]:
    """Returns the machines that there are, asked past the daemon."""
    return set(daemon.sim("list", "-q").split())


def state_of(daemon: RealDaemon, name: str) -> str:
    with Client(str(daemon.socket), name="tests") as client:
        return client.machine_info(name, max_age_ms=0).machine.state


def config(daemon: RealDaemon, key: str) -> str:
    return daemon.sim("config", "get", key).strip()


def check_twice(operation: Any, *args: Any, reason: str, **kwargs: Any) -> None:
    """It does something, and then nothing, saying why; PyInfra foretold both."""
    first = play(operation, *args, **kwargs)
    assert first.changed, first.said
    assert first.foretold
    second = play(operation, *args, **kwargs)
    assert second.is_noop, second.said
    assert second.foretold is False
    assert f"noop: {reason}" in second.said


class TestTwice:
    """Each operation does what it says, and nothing the second time."""

    def test_create(self, daemon: RealDaemon) -> None:
        """A machine is made, with everything that was asked for."""
        wanted: dict[str, Any] = {"user": "joe", "cpus": 2, "memory": "4G", "disk": "40G", "isolated": True}
        check_twice(operations.vm_create, "new", "debian:12", reason="machine 'new' is there", **wanted)
        with Client(str(daemon.socket)) as client:
            machine = client.machine_info("new", max_age_ms=0).machine
        assert (machine.image.distro, machine.state, machine.config.isolated) == ("debian", "running", True)
        assert (machine.config.default_username, machine.config.cpu_limit) == ("joe", 2)
        assert (machine.config.memory_limit_mib, machine.config.disk_limit_bytes) == (4096, 40 << 30)

    def test_create_by_keyword(self, daemon: RealDaemon) -> None:
        """``machine`` and ``vm_name`` are the machine, ``name`` is PyInfra's."""
        assert play(operations.vm_create, machine="new", image="ubuntu", name="Make it").changed
        assert play(operations.vm_create, vm_name="new", image="ubuntu", name="Make it").is_noop

    def test_create_brings_settings_in_line(self, daemon: RealDaemon) -> None:
        """What can be set later is set on a machine that is there."""
        play(operations.vm_create, "new", "ubuntu")
        check_twice(operations.vm_create, "new", "ubuntu", cpus=3, memory="2048M", reason="machine 'new' is there")
        assert (config(daemon, "machine.new.cpu"), config(daemon, "machine.new.memory_mib")) == ("3", "2048")

    def test_create_with_user_data(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """The file goes to ``orbctl`` by its name, opened by whoever deploys."""
        (tmp_path / "cloud.yaml").write_text("#cloud-config\n")
        check_twice(
            operations.vm_create,
            "new",
            "ubuntu",
            user_data=str(tmp_path / "cloud.yaml"),
            reason="machine 'new' is there",
        )

    def test_a_name_that_was_taken_meanwhile(self, daemon: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody was faster, and what is wanted is there, also where our own process is told so and not the daemon."""
        (tmp_path / "cloud.yaml").write_text("#cloud-config\n")
        with Client(str(daemon.socket)) as client:
            archive = tmp_path / "base.tar.zst"
            client.export_machine("base", archive)
            monkeypatch.setattr(machines, "is_so", lambda look: False)
            monkeypatch.setattr(archives, "is_so", lambda look: False)
            for played in (
                play(operations.vm_create, "base", "ubuntu", user_data=str(tmp_path / "cloud.yaml")),
                play(operations.vm_create, "base", "ubuntu"),
                play(operations.vm_import, str(archive), "base"),
            ):
                assert not played.failed, played.said
            with pytest.raises(errors.MachineExists, match="machine base already exists") as caught:
                client.machine_create("base", "ubuntu", user_data=tmp_path / "cloud.yaml")
        assert (caught.value.code, caught.value.kind, caught.value.machine) == (2002, "machine_exists", "base")

    def test_delete(self, daemon: RealDaemon) -> None:
        """A machine is deleted."""
        daemon.create("old")
        check_twice(operations.vm_delete, "old", reason="there is no machine 'old'")
        assert names(daemon) == {"base"}

    def test_stop_and_start(self, daemon: RealDaemon) -> None:
        """A machine is stopped and started."""
        check_twice(operations.vm_stop, "base", reason="machine 'base' is stopped")
        assert state_of(daemon, "base") == "stopped"
        check_twice(operations.vm_start, "base", reason="machine 'base' runs")
        assert state_of(daemon, "base") == "running"

    def test_restart(self, daemon: RealDaemon) -> None:
        """A machine is restarted each time: there is no state in which that would be done."""
        before = len(daemon.ledger())
        for _ in range(2):
            assert play(operations.vm_restart, "base").changed
        assert RealDaemon.spawns_in(daemon.ledger()[before:])["restart"] == 2

    def test_clone(self, daemon: RealDaemon) -> None:
        """A machine is copied."""
        check_twice(operations.vm_clone, "base", "copy", reason="machine 'copy' is there")
        assert state_of(daemon, "copy") == "stopped"

    def test_rename(self, daemon: RealDaemon) -> None:
        """A machine gets another name."""
        daemon.create("old")
        check_twice(operations.vm_rename, "old", "new", reason="machine 'new' has that name")
        assert names(daemon) == {"base", "new"}

    def test_export_and_import(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """A machine goes into a file, and another comes out of it, with what was on it."""
        daemon.inside("base", "sh", "-c", "echo content >~/kept")
        archive = str(tmp_path / "base.tar.zst")
        check_twice(operations.vm_export, "base", archive, reason=f"{archive} is there")
        assert os.listdir(tmp_path) == ["base.tar.zst"]
        check_twice(operations.vm_import, archive, "again", reason="machine 'again' is there")
        assert daemon.inside("again", "sh", "-c", "cat ~/kept") == "content\n"

    def test_export_over_what_is_there(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """An old archive is replaced on request."""
        archive = tmp_path / "base.tar.zst"
        archive.write_bytes(b"old")
        assert play(operations.vm_export, "base", str(archive), overwrite=True).changed
        assert archive.stat().st_size > 100

    def test_default(self, daemon: RealDaemon) -> None:
        """The default machine is set, and cleared."""
        check_twice(operations.vm_default, None, reason="the default machine is none")
        check_twice(operations.vm_default, "base", reason="the default machine is base")
        assert daemon.sim("default").strip() == "base"

    def test_username(self, daemon: RealDaemon) -> None:
        """A machine's default user is set."""
        daemon.create("new")
        check_twice(operations.vm_username_set, "new", "root", reason="machine.new.username is root")
        assert config(daemon, "machine.new.username") == "root"

    def test_config(self, daemon: RealDaemon) -> None:
        """A key of OrbStack's is set; numbers and truth values are said as OrbStack does."""
        check_twice(operations.orbstack_config_set, "memory_mib", 8192, reason="memory_mib is 8192")
        check_twice(operations.orbstack_config_set, key="rosetta", value=False, reason="rosetta is false")
        assert (config(daemon, "memory_mib"), config(daemon, "rosetta")) == ("8192", "false")

    def test_config_reset(self, daemon: RealDaemon) -> None:
        """Everything goes back to its defaults."""
        play(operations.orbstack_config_set, "cpu", "3")
        assert play(operations.orbstack_config_reset).changed
        assert config(daemon, "cpu") != "3"


class TestWhereFrom:
    """Operations run on the control machine, whatever the current host is."""

    def test_a_machine_changes_another(self, daemon: RealDaemon) -> None:
        """From a machine's host as from ``@local``; the machine is not entered."""
        before = len(daemon.ledger())
        assert play(operations.vm_create, "new", "ubuntu", entry="@orbstack/base").changed
        spawns = RealDaemon.spawns_in(daemon.ledger()[before:])
        assert spawns["create"] == 1
        assert spawns["run"] == 0

    def test_the_own_machine(self, daemon: RealDaemon) -> None:
        """Where no machine is named, the host's own is meant."""
        assert play(operations.vm_stop, entry="@orbstack/base").changed
        assert state_of(daemon, "base") == "stopped"

    def test_no_machine_is_meant(self, daemon: RealDaemon) -> None:
        """A host that is no machine needs a name, and the deploy ends before anything is done."""
        with pytest.raises(Exception, match="which machine\\? host @local is none of OrbStack's"):
            play(operations.vm_stop)

    def test_a_deploy_from_three_hosts_at_once(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """Hosts that ask for the same machine at the same time get it once, and none of them fails."""
        daemon.create("one", "two")
        (tmp_path / "deploy.py").write_text(
            "from pyinfra_orbd.operations import vm_create\nvm_create(machine='shared', image='ubuntu')\n"
        )
        target = target_of(daemon, tmp_path)
        said = target.pyinfra("@orbstack", "deploy.py")
        assert "] Error" not in said
        assert "shared" in names(daemon)
        assert len(re.findall(r"\] +(?:No changes|Success)$", said, re.MULTILINE)) == 3

    def test_create_then_deploy(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """One run makes machines from ``@local``, the next works in them; both change nothing the second time."""
        (tmp_path / "machines.py").write_text(
            textwrap.dedent("""
                from pyinfra_orbd.operations import vm_clone, vm_create, vm_start, vm_stop

                vm_create(name="Golden", machine="golden", image="ubuntu:24.04")
                vm_stop(name="Rest", machine="golden")
                for name in ("one", "two"):
                    vm_clone(name=f"Clone {name}", source_name="golden", new_name=name)
                    vm_start(name=f"Start {name}", machine=name)
            """)
        )
        (tmp_path / "deploy.py").write_text("from pyinfra.operations import files\nfiles.line(path='_testfile', line='hello')\n")
        target = target_of(daemon, tmp_path)
        for outcome, other in (("Success", "No changes"), ("No changes", "Success")):
            said = target.pyinfra("@local", "machines.py")
            assert said.count(f"[@local] {outcome}") == 6, said
            said = target.pyinfra("@orbstack/one,@orbstack/two", "deploy.py")
            assert said.count(f"] {outcome}") == 2, said
            assert f"] {other}" not in said


class TestCannot:
    """What goes wrong is one host's trouble, told in one line."""

    @pytest.mark.parametrize(
        ("operation", "args"),
        [
            (operations.vm_start, ["nobody"]),
            (operations.vm_stop, ["nobody"]),
            (operations.vm_restart, ["nobody"]),
            (operations.vm_clone, ["nobody", "copy"]),
            (operations.vm_rename, ["nobody", "other"]),
            (operations.vm_export, ["nobody", "/tmp/orbd-never"]),
        ],
    )
    def test_a_machine_that_is_not_there(self, daemon: RealDaemon, operation: Any, args: list[str]) -> None:
        """The operation fails, and names the machine."""
        played = play(operation, *args)
        assert played.failed
        assert played.foretold, "an earlier operation may yet make it"
        assert "nobody" in played.said
        assert "Traceback" not in played.said

    def test_a_name_that_is_taken(self, daemon: RealDaemon) -> None:
        """A machine is not renamed over another."""
        daemon.create("one", "two")
        played = play(operations.vm_rename, "one", "two")
        assert played.failed
        assert "machine two already exists" in played.said

    def test_another_distribution(self, daemon: RealDaemon) -> None:
        """A machine of another image is not taken for the one that was asked for."""
        played = play(operations.vm_create, "base", "debian")
        assert played.failed
        assert "machine 'base' is there, but is ubuntu, not debian" in played.said

    def test_an_archive_that_is_none(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """The tool's own words are told."""
        (tmp_path / "file").write_text("nonsense")
        played = play(operations.vm_import, str(tmp_path / "file"), "new")
        assert played.failed
        assert "new" not in names(daemon)

    def test_an_export_that_fails_leaves_what_was_there(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """Neither a half archive nor a lost one."""
        (tmp_path / "kept").write_text("old")
        assert play(operations.vm_export, "nobody", str(tmp_path / "kept"), overwrite=True).failed
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"kept": "old"}

    def test_an_export_into_no_folder(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """The folder is not made."""
        assert play(operations.vm_export, "base", str(tmp_path / "none" / "file")).failed

    def test_a_key_that_is_none(self, daemon: RealDaemon) -> None:
        """OrbStack's own refusal is told."""
        played = play(operations.orbstack_config_set, "nonsense", "1")
        assert played.failed
        assert "unknown config key: 'nonsense'" in played.said

    def test_no_daemon(self, daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is the host that fails, not the deploy with a traceback."""
        monkeypatch.setenv("ORBD_SOCKET", "/tmp/orbd-nobody-listens")
        played = play(operations.vm_start, "base")
        assert played.failed
        assert "orbd-ctl daemon start" in played.said
        assert "Traceback" not in played.said

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"image": "ubuntu"}, "which machine"),
            ({"machine": "new"}, "which image"),
            ({"machine": "new", "image": ":24.04"}, "is no image"),
            ({"machine": "new", "image": "ubuntu", "memory": "lots"}, "is no size"),
            ({"machine": "new", "vm_name": "other", "image": "ubuntu"}, "are the same argument"),
        ],
    )
    def test_arguments_that_make_no_sense(self, daemon: RealDaemon, kwargs: dict[str, Any], message: str) -> None:
        """They are refused before anything is done."""
        with pytest.raises(Exception, match=message):
            play(operations.vm_create, **kwargs)

    def test_a_limit(self, daemon: RealDaemon, tmp_path: Path) -> None:
        """``_timeout`` ends the waiting for a change; what the machine's lane is held by goes on."""
        with Client(str(daemon.socket)) as client:
            client.queue_pause("base")
            try:
                played = play(operations.vm_restart, "base", _timeout=1)
            finally:
                client.queue_resume("base")
            assert played.failed
            assert "timed out after 1s" in played.said
            waiting = [job for job in client.job_list(machine="base", operation="restart").jobs if job.state == "queued"]
            assert not waiting


def test_changes_outside_of_the_daemon_are_seen(daemon: RealDaemon) -> None:
    """An operation does nothing only after a fresh look: the daemon's memory may be older than what happened beside it."""
    assert play(operations.vm_start, "base").is_noop
    daemon.sim("stop", "base")
    played = play(operations.vm_start, "base")
    assert not played.is_noop
    assert state_of(daemon, "base") == "running"


def target_of(daemon: RealDaemon, cwd: Path) -> Target:
    """Makes PyInfra's command line in front of the daemon."""
    return Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", cwd)
