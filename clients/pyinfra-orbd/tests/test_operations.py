"""Operations through PyInfra with a real daemon and the simulator: idempotence and errors."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.exceptions import OperationValueError

from orbd import Client, errors
from play import forget_clients, play
from pyinfra_orbd import operations
from pyinfra_orbd.operations import archives, machines
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon


@pytest.fixture(scope="module")
def world() -> Iterator[RealDaemon]:
    """A daemon for machines that the tests create and delete."""
    with temporary_daemon() as daemon:
        daemon.create("base")
        yield daemon


@pytest.fixture
def daemon(world: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """The daemon, at the socket that the environment names; deletes the machines of each test afterwards."""
    # All variables, because an export runs orbctl-sim as a child of this process.
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
    """Returns the names of all machines, without the daemon."""
    return set(daemon.sim("list", "-q").split())


def state_of(daemon: RealDaemon, name: str) -> str:
    with Client(str(daemon.socket), name="tests") as client:
        return client.machine_info(name, max_age_ms=0).machine.state


def config(daemon: RealDaemon, key: str) -> str:
    return daemon.sim("config", "get", key).strip()


def check_twice(operation: Any, *args: Any, reason: str, **kwargs: Any) -> None:
    """Checks that an operation changes something, then nothing with a reason, and that PyInfra predicted both."""
    first = play(operation, *args, **kwargs)
    assert first.changed, first.said
    assert first.predicted
    second = play(operation, *args, **kwargs)
    assert second.is_noop, second.said
    assert second.predicted is False
    assert f"noop: {reason}" in second.said


class TestIdempotence:
    """Each operation changes something the first time, and nothing the second time."""

    def test_create_with_all_settings(self, daemon: RealDaemon) -> None:
        wanted: dict[str, Any] = {"user": "joe", "cpus": 2, "memory": "4G", "disk": "40G", "isolated": True}
        check_twice(operations.vm_create, "new", "debian:12", reason="machine 'new' already exists", **wanted)
        with Client(str(daemon.socket)) as client:
            machine = client.machine_info("new", max_age_ms=0).machine
        assert (machine.image.distro, machine.state, machine.config.isolated) == ("debian", "running", True)
        assert (machine.config.default_username, machine.config.cpu_limit) == ("joe", 2)
        assert (machine.config.memory_limit_mib, machine.config.disk_limit_bytes) == (4096, 40 << 30)

    def test_machine_and_vm_name_are_aliases_and_name_is_the_title(self, daemon: RealDaemon) -> None:
        assert play(operations.vm_create, machine="new", image="ubuntu", name="Create it").changed
        assert play(operations.vm_create, vm_name="new", image="ubuntu", name="Create it").is_noop

    def test_create_updates_settings_of_an_existing_machine(self, daemon: RealDaemon) -> None:
        play(operations.vm_create, "new", "ubuntu")
        check_twice(operations.vm_create, "new", "ubuntu", cpus=3, memory="2048M", reason="machine 'new' already exists")
        assert (config(daemon, "machine.new.cpu"), config(daemon, "machine.new.memory_mib")) == ("3", "2048")

    def test_create_turns_isolation_on_and_off_if_it_is_given(self, daemon: RealDaemon) -> None:
        play(operations.vm_create, "new", "ubuntu", isolated=True)
        assert play(operations.vm_create, "new", "ubuntu").is_noop
        check_twice(operations.vm_create, "new", "ubuntu", isolated=False, reason="machine 'new' already exists")
        assert config(daemon, "machine.new.isolated") == "false"

    def test_memory_below_a_mebibyte_is_refused(self, daemon: RealDaemon) -> None:
        with pytest.raises(OperationValueError, match="less than 1M"):
            play(operations.vm_create, "new", "ubuntu", memory="512K")
        with Client(str(daemon.socket)) as client:
            assert all(machine.name != "new" for machine in client.machine_list(max_age_ms=0).machines)

    def test_rename_to_the_same_name_does_nothing(self, daemon: RealDaemon) -> None:
        play(operations.vm_create, "same", "ubuntu")
        assert play(operations.vm_rename, "same", "same").is_noop

    def test_create_with_user_data(self, daemon: RealDaemon, tmp_path: Path) -> None:
        (tmp_path / "cloud.yaml").write_text("#cloud-config\n")
        check_twice(
            operations.vm_create,
            "new",
            "ubuntu",
            user_data=str(tmp_path / "cloud.yaml"),
            reason="machine 'new' already exists",
        )

    def test_machine_created_meanwhile_by_another_client_is_a_success(
        self, daemon: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also if the error comes from a local process, not from the daemon."""
        (tmp_path / "cloud.yaml").write_text("#cloud-config\n")
        with Client(str(daemon.socket)) as client:
            archive = tmp_path / "base.tar.zst"
            client.export_machine("base", archive)
            monkeypatch.setattr(machines, "is_satisfied", lambda check: False)
            monkeypatch.setattr(archives, "is_satisfied", lambda check: False)
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
        daemon.create("old")
        check_twice(operations.vm_delete, "old", reason="machine 'old' does not exist")
        assert names(daemon) == {"base"}

    def test_stop_and_start(self, daemon: RealDaemon) -> None:
        check_twice(operations.vm_stop, "base", reason="machine 'base' is already stopped")
        assert state_of(daemon, "base") == "stopped"
        check_twice(operations.vm_start, "base", reason="machine 'base' is already running")
        assert state_of(daemon, "base") == "running"

    def test_restart_acts_every_time(self, daemon: RealDaemon) -> None:
        before = len(daemon.ledger())
        for _ in range(2):
            assert play(operations.vm_restart, "base").changed
        assert RealDaemon.spawns_in(daemon.ledger()[before:])["restart"] == 2

    def test_clone_is_stopped(self, daemon: RealDaemon) -> None:
        check_twice(operations.vm_clone, "base", "copy", reason="machine 'copy' already exists")
        assert state_of(daemon, "copy") == "stopped"

    def test_rename(self, daemon: RealDaemon) -> None:
        daemon.create("old")
        check_twice(operations.vm_rename, "old", "new", reason="machine 'new' already has that name")
        assert names(daemon) == {"base", "new"}

    def test_export_and_import_preserve_data(self, daemon: RealDaemon, tmp_path: Path) -> None:
        daemon.inside("base", "sh", "-c", "echo content >~/kept")
        archive = str(tmp_path / "base.tar.zst")
        check_twice(operations.vm_export, "base", archive, reason=f"{archive} already exists")
        assert os.listdir(tmp_path) == ["base.tar.zst"]
        check_twice(operations.vm_import, archive, "again", reason="machine 'again' already exists")
        assert daemon.inside("again", "sh", "-c", "cat ~/kept") == "content\n"

    def test_export_with_overwrite_replaces_an_archive(self, daemon: RealDaemon, tmp_path: Path) -> None:
        archive = tmp_path / "base.tar.zst"
        archive.write_bytes(b"old")
        assert play(operations.vm_export, "base", str(archive), overwrite=True).changed
        assert archive.stat().st_size > 100

    def test_default_machine_is_set_and_cleared(self, daemon: RealDaemon) -> None:
        check_twice(operations.vm_default, None, reason="the default machine is already none")
        check_twice(operations.vm_default, "base", reason="the default machine is already base")
        assert daemon.sim("default").strip() == "base"

    def test_default_user_is_set(self, daemon: RealDaemon) -> None:
        daemon.create("new")
        check_twice(operations.vm_username_set, "new", "root", reason="machine.new.username is already root")
        assert config(daemon, "machine.new.username") == "root"

    def test_config_key_is_set(self, daemon: RealDaemon) -> None:
        """Numbers and booleans are converted to OrbStack's form."""
        check_twice(operations.orbstack_config_set, "memory_mib", 8192, reason="memory_mib is already 8192")
        check_twice(operations.orbstack_config_set, key="rosetta", value=False, reason="rosetta is already false")
        assert (config(daemon, "memory_mib"), config(daemon, "rosetta")) == ("8192", "false")

    def test_config_reset(self, daemon: RealDaemon) -> None:
        play(operations.orbstack_config_set, "cpu", "3")
        assert play(operations.orbstack_config_reset).changed
        assert config(daemon, "cpu") != "3"


class TestControlMachine:
    """Operations run on the control machine, whatever the current host is."""

    def test_operation_on_a_machines_host_runs_no_command_in_it(self, daemon: RealDaemon) -> None:
        before = len(daemon.ledger())
        assert play(operations.vm_create, "new", "ubuntu", entry="@orbstack/base").changed
        spawns = RealDaemon.spawns_in(daemon.ledger()[before:])
        assert spawns["create"] == 1
        assert spawns["run"] == 0

    def test_default_machine_is_that_of_the_current_host(self, daemon: RealDaemon) -> None:
        assert play(operations.vm_stop, entry="@orbstack/base").changed
        assert state_of(daemon, "base") == "stopped"

    def test_local_host_requires_a_machine(self, daemon: RealDaemon) -> None:
        """The deploy ends before any change."""
        with pytest.raises(Exception, match="no machine given, and host '@local' is not an OrbStack machine"):
            play(operations.vm_stop)

    def test_concurrent_creates_of_one_machine_create_it_once(self, daemon: RealDaemon, tmp_path: Path) -> None:
        daemon.create("one", "two")
        (tmp_path / "deploy.py").write_text(
            "from pyinfra_orbd.operations import vm_create\nvm_create(machine='shared', image='ubuntu')\n"
        )
        target = target_of(daemon, tmp_path)
        said = target.pyinfra("@orbstack", "deploy.py")
        assert "] Error" not in said
        assert "shared" in names(daemon)
        assert len(re.findall(r"\] +(?:No changes|Success)$", said, re.MULTILINE)) == 3

    def test_create_and_deploy_in_two_runs_change_nothing_when_repeated(self, daemon: RealDaemon, tmp_path: Path) -> None:
        (tmp_path / "machines.py").write_text(
            textwrap.dedent("""
                from pyinfra_orbd.operations import vm_clone, vm_create, vm_start, vm_stop

                vm_create(name="Create the golden machine", machine="golden", image="ubuntu:24.04")
                vm_stop(name="Stop the golden machine", machine="golden")
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


class TestErrors:
    """An error fails only the host, with a one-line message."""

    @pytest.mark.parametrize(
        ("operation", "args"),
        [
            (operations.vm_start, ["missing"]),
            (operations.vm_stop, ["missing"]),
            (operations.vm_restart, ["missing"]),
            (operations.vm_clone, ["missing", "copy"]),
            (operations.vm_rename, ["missing", "other"]),
            (operations.vm_export, ["missing", "/tmp/orbd-never"]),
        ],
    )
    def test_unknown_machine_fails_the_operation(self, daemon: RealDaemon, operation: Any, args: list[str]) -> None:
        played = play(operation, *args)
        assert played.failed
        assert played.predicted, "an earlier operation could still create it"
        assert "missing" in played.said
        assert "Traceback" not in played.said

    def test_rename_to_an_existing_name_fails(self, daemon: RealDaemon) -> None:
        daemon.create("one", "two")
        played = play(operations.vm_rename, "one", "two")
        assert played.failed
        assert "machine two already exists" in played.said

    def test_create_with_another_distribution_fails(self, daemon: RealDaemon) -> None:
        played = play(operations.vm_create, "base", "debian")
        assert played.failed
        assert "machine 'base' already exists, but is ubuntu, not debian" in played.said

    def test_import_of_an_invalid_archive_fails(self, daemon: RealDaemon, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("nonsense")
        played = play(operations.vm_import, str(tmp_path / "file"), "new")
        assert played.failed
        assert "new" not in names(daemon)

    def test_failed_export_keeps_the_previous_archive(self, daemon: RealDaemon, tmp_path: Path) -> None:
        (tmp_path / "kept").write_text("old")
        assert play(operations.vm_export, "missing", str(tmp_path / "kept"), overwrite=True).failed
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"kept": "old"}

    def test_export_to_a_missing_directory_fails(self, daemon: RealDaemon, tmp_path: Path) -> None:
        assert play(operations.vm_export, "base", str(tmp_path / "none" / "file")).failed

    def test_unknown_config_key_fails_and_names_the_key(self, daemon: RealDaemon) -> None:
        played = play(operations.orbstack_config_set, "nonsense", "1")
        assert played.failed
        assert "OrbStack's configuration has no key 'nonsense'" in played.said

    def test_missing_daemon_fails_the_host_without_a_traceback(self, daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ORBD_SOCKET", "/tmp/orbd-missing.sock")
        played = play(operations.vm_start, "base")
        assert played.failed
        assert "orbd-ctl daemon start" in played.said
        assert "Traceback" not in played.said

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"image": "ubuntu"}, "no machine given"),
            ({"machine": "new"}, "no image given"),
            ({"machine": "new", "image": ":24.04"}, "is not an image"),
            ({"machine": "new", "image": "ubuntu", "memory": "lots"}, "is not a size"),
            ({"machine": "new", "vm_name": "other", "image": "ubuntu"}, "are aliases"),
        ],
    )
    def test_invalid_arguments_are_rejected_before_any_change(
        self, daemon: RealDaemon, kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(Exception, match=message):
            play(operations.vm_create, **kwargs)

    def test_timeout_cancels_a_waiting_change(self, daemon: RealDaemon, tmp_path: Path) -> None:
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


def test_operation_rechecks_with_fresh_data_before_it_does_nothing(daemon: RealDaemon) -> None:
    assert play(operations.vm_start, "base").is_noop
    daemon.sim("stop", "base")
    played = play(operations.vm_start, "base")
    assert not played.is_noop
    assert state_of(daemon, "base") == "running"


def target_of(daemon: RealDaemon, cwd: Path) -> Target:
    """Returns PyInfra's command line with the daemon."""
    return Target({"ORBD_SOCKET": str(daemon.socket), "ORBD_AUTOSTART": "0"}, lambda command: "", cwd)
