"""Bugs of the predecessor's operations and facts, each tested with a real daemon.

Bugs in commands, files and inventories are tested in ``test_predecessor.py``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbd import Client
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.needs_daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    """A daemon with the machine ``web``."""
    with temporary_daemon() as daemon:
        daemon.create("web")
        yield daemon


def deploy(daemon: RealDaemon, folder: Path, text: str, *, inventory: str = "@local", code: int = 0) -> str:
    """Runs a deploy file and returns PyInfra's output."""
    (folder / "deploy.py").write_text(textwrap.dedent(text))
    return Target({**daemon.environment}, lambda command: "", folder).pyinfra("-v", inventory, "deploy.py", code=code)


def names(daemon: RealDaemon) -> set[str]:
    return set(daemon.sim("list", "-q").split())


def test_fault_12_name_is_the_title_of_an_operation(daemon: RealDaemon, tmp_path: Path) -> None:
    said = deploy(
        daemon,
        tmp_path,
        """
        from pyinfra_orbd.operations import vm_create, vm_delete, vm_stop
        vm_create(name="A title", machine="titled", image="ubuntu")
        vm_stop(name="Another", vm_name="titled")
        vm_delete(name="The last", machine="titled")
        """,
    )
    for title in ("A title", "Another", "The last"):
        assert f"Starting operation: {title}" in said
    assert said.count("[@local] Success") == 3
    assert "titled" not in names(daemon)


def test_fault_13_vm_create_with_present_false_deletes_the_machine(daemon: RealDaemon, tmp_path: Path) -> None:
    daemon.create("unwanted")
    text = "from pyinfra_orbd.operations import vm_create\nvm_create('unwanted', 'ubuntu', present=False)\n"
    assert "[@local] Success" in deploy(daemon, tmp_path, text)
    assert "unwanted" not in names(daemon)
    assert "noop: machine 'unwanted' does not exist" in deploy(daemon, tmp_path, text)


def test_fault_14_operations_run_no_command_in_the_machine(daemon: RealDaemon, tmp_path: Path) -> None:
    before = len(daemon.ledger())
    deploy(
        daemon,
        tmp_path,
        """
        from pyinfra_orbd.operations import orbstack_config_set, vm_clone, vm_delete
        vm_clone("web", "copy")
        orbstack_config_set("machine.copy.cpu", 2)
        vm_delete("copy")
        """,
        inventory="@orbstack/web",
    )
    spawns = RealDaemon.spawns_in(daemon.ledger()[before:])
    assert spawns["run"] == 0
    assert (spawns["clone"], spawns["delete"]) == (1, 1)


def test_fault_14_facts_and_helpers_return_data_to_the_deploy(daemon: RealDaemon, tmp_path: Path) -> None:
    said = deploy(
        daemon,
        tmp_path,
        """
        from pyinfra import host
        from pyinfra.operations import server
        from pyinfra_orbd.facts import VmInfo
        from pyinfra_orbd.helpers import vm_ip, vm_status

        server.shell(name="Use it", commands=[
            f"echo {host.get_fact(VmInfo)['domain']} {vm_status()} $(test -n '{vm_ip()}' && echo has an address)",
        ])
        """,
        inventory="@orbstack/web",
    )
    assert "Error" not in said.partition("Results:")[0]
    with Client(str(daemon.socket)) as client:
        (job, *_) = client.job_list(operation="run", machine="web").jobs[::-1]
        output = client.job_output(job.job_id).output
    assert b"".join(chunk.data for chunk in output) == b"web.orb.local running has an address\n"


def test_fault_14_arguments_are_neither_shell_nor_flags(daemon: RealDaemon, tmp_path: Path) -> None:
    (tmp_path / "a folder; touch pwned").mkdir()
    deploy(
        daemon,
        tmp_path,
        """
        from pyinfra_orbd.operations import orbstack_config_set, vm_export, vm_import
        vm_export("web", "a folder; touch pwned/an archive $(touch pwned).tar.zst")
        vm_import("a folder; touch pwned/an archive $(touch pwned).tar.zst", "quoted")
        orbstack_config_set("docker.node_name", "a; touch pwned")
        """,
    )
    assert "quoted" in names(daemon)
    assert daemon.sim("config", "get", "docker.node_name").strip() == "a; touch pwned"
    assert sorted(file.name for file in tmp_path.rglob("*pwned*")) == [
        "a folder; touch pwned",
        "an archive $(touch pwned).tar.zst",
    ]
    for name in ("--all", "-f", "web; touch pwned"):
        before = len(daemon.ledger())
        said = deploy(daemon, tmp_path, f"from pyinfra_orbd.operations import vm_stop\nvm_stop({name!r})\n", code=1)
        assert "Success" not in said.partition("Results:")[0]
        assert RealDaemon.spawns_in(daemon.ledger()[before:])["stop"] == 0


def test_create_that_never_returns_is_tried_once_and_observed_as_done(tmp_path: Path) -> None:
    """The next run finds the machine and does nothing."""
    script = tmp_path / "trouble.toml"
    script.write_text(
        '[[trouble]]\ncommand = "create"\nmachine = "slow"\nkind = "made_though_client_died"\nending = "killed"\ntimes = 1\n'
    )
    with temporary_daemon(script=script) as daemon:
        text = "from pyinfra_orbd.operations import vm_create\nvm_create(machine='slow', image='ubuntu')\n"
        first = deploy(daemon, tmp_path, text)
        assert "but machine 'slow' exists and is running" in first
        assert "already exists" not in first
        assert RealDaemon.spawns_in(daemon.ledger())["create"] == 1
        assert "noop: machine 'slow' already exists" in deploy(daemon, tmp_path, text)
        assert RealDaemon.spawns_in(daemon.ledger())["create"] == 1
