"""Deploys written for ``pyinfra-orbstack``, and both packages installed."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orbd import Client
from pyinfra_orbd import _predecessor
from real_daemon import RealDaemon, temporary_daemon
from target import Target

pytestmark = pytest.mark.filterwarnings("ignore:pyinfra_orbstack.* is deprecated:DeprecationWarning")

PUBLIC = {
    "pyinfra_orbstack": ["OrbStackConnector", "__version__"],
    "pyinfra_orbstack.connector": ["OrbStackConnector"],
    "pyinfra_orbstack.timing": ["configure_logging", "timed", "timed_operation"],
    "pyinfra_orbstack.operations": [
        *("ssh_connect_string", "ssh_info", "vm_clone", "vm_create", "vm_delete", "vm_export", "vm_import", "vm_info", "vm_ip"),
        *("vm_list", "vm_network_info", "vm_rename", "vm_restart", "vm_start", "vm_status", "vm_stop"),
    ],
    "pyinfra_orbstack.operations.vm": [
        *("orbstack_config_get", "orbstack_config_set", "orbstack_config_show", "vm_dns_lookup", "vm_logs"),
        *("vm_network_details", "vm_status_detailed", "vm_test_connectivity", "vm_username_set"),
    ],
}
"""Public names of the predecessor's version 0.11.0, by module."""


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_public_names_of_the_predecessor_can_be_imported(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name)


def imported(module: str) -> subprocess.CompletedProcess[str]:
    """Imports a module twice, in a process that prints deprecation warnings."""
    return subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", f"import {module}, {module}"],
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pyinfra_orbstack.connector", "pyinfra_orbd.connector"),
        ("pyinfra_orbstack.operations", "pyinfra_orbd.operations"),
        ("pyinfra_orbstack.timing", "pyinfra_orbd.timing"),
    ],
)
def test_deprecated_module_warns_once_with_the_new_name(old: str, new: str) -> None:
    said = imported(old).stderr
    assert said.count(f"{old} is deprecated: import {new}") >= 1
    assert said.count("is deprecated: import") <= 2


OLD_DEPLOY = """
    from pyinfra import host, logger
    from pyinfra_orbstack.operations.vm import (
        orbstack_config_get, orbstack_config_set, orbstack_config_show, ssh_connect_string, ssh_info, vm_clone, vm_create,
        vm_delete, vm_export, vm_import, vm_info, vm_ip, vm_list, vm_logs, vm_network_details, vm_network_info, vm_rename,
        vm_restart, vm_start, vm_status, vm_status_detailed, vm_stop, vm_username_set,
    )
    from pyinfra_orbstack.timing import timed_operation

    vm_create("old", "ubuntu:24.04", None, "joe", True)
    vm_stop("old", True)
    vm_start("old")
    vm_clone("old", "copy")
    vm_rename("copy", "other")
    vm_export("old", "{folder}/old.tar.zst")
    vm_import("{folder}/old.tar.zst", "again")
    vm_restart("again")
    vm_username_set("again", "root")
    orbstack_config_set("memory_mib", "8192")
    vm_delete("other", True)
    vm_create("missing", "ubuntu", present=False)
    with timed_operation("asking"):
        assert vm_info()["name"] == "web" == vm_status_detailed()["name"]
        assert vm_status(name="Get the state", _sudo=True) == "running"
        assert vm_ip() == vm_network_info()["ip4"] == vm_network_details()["ip4"]
        assert "web" in [machine["name"] for machine in vm_list()]
        assert ssh_connect_string("web") == "ssh web@orb" == ssh_info("web")["connect"]
        assert orbstack_config_get("rosetta") == "true" == orbstack_config_show()["rosetta"]
        assert vm_logs(True)
"""


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    """A daemon with the machine ``web``."""
    with temporary_daemon() as daemon:
        daemon.create("web")
        yield daemon


@pytest.mark.needs_daemon
def test_deploy_of_the_predecessor_runs_unchanged_and_warns(daemon: RealDaemon, tmp_path: Path) -> None:
    """With positional arguments."""
    (tmp_path / "deploy.py").write_text(textwrap.dedent(OLD_DEPLOY).replace("{folder}", str(tmp_path)))
    target = Target({**daemon.environment}, lambda command: "", tmp_path)
    said = target.pyinfra("@orbstack/web", "deploy.py")
    assert said.count("] Success") + said.count("] No changes") == 12, said
    assert "is deprecated: import pyinfra_orbd.operations" in said
    with Client(str(daemon.socket)) as client:
        machines = {machine.name: machine for machine in client.machine_list(max_age_ms=0).machines}
    assert machines.keys() == {"web", "old", "again"}
    assert machines["old"].config.default_username == "joe"


def install_predecessor(folder: Path) -> dict[str, str]:
    """Installs fake metadata of the predecessor, and returns the environment in which Python finds it."""
    package = folder / "older"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "connector.py").write_text("from pyinfra_orbd.connector import OrbStackConnector\n")
    info = folder / "pyinfra_orbstack-0.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyinfra-orbstack\nVersion: 0.11.0\n")
    (info / "entry_points.txt").write_text("[pyinfra.connectors]\norbstack = older.connector:OrbStackConnector\n")
    return {"PYTHONPATH": str(folder)}


class TestBothInstalled:
    """Two packages that register ``@orbstack``."""

    def test_warns_with_the_fix_if_both_packages_are_installed(self, tmp_path: Path, short_folder: Path) -> None:
        environment = {**install_predecessor(tmp_path / "site"), "ORBD_SOCKET": str(short_folder / "none"), "ORBD_AUTOSTART": "0"}
        said = Target(environment, lambda command: "", tmp_path).pyinfra("@local", "server.shell", "uname")
        assert said.count("pyinfra-orbstack and pyinfra-orbd are both installed") == 1
        assert "pip uninstall pyinfra-orbstack" in said

    def test_does_not_warn_if_only_one_package_is_installed(self, tmp_path: Path) -> None:
        said = Target({}, lambda command: "", tmp_path).pyinfra("@local", "server.shell", "uname")
        assert "both installed" not in said

    @pytest.mark.parametrize(
        ("values", "owner"),
        [
            (["pyinfra_orbd.connector:OrbStackConnector"], "pyinfra-orbd"),
            (["pyinfra_orbd.connector:X", "pyinfra_orbstack.connector:X"], "pyinfra-orbstack"),
            (["pyinfra_orbstack.connector:X", "pyinfra_orbd.connector:X"], "pyinfra-orbd"),
            ([], "pyinfra-orbd"),
        ],
    )
    def test_owner_is_the_last_registered_package(self, monkeypatch: pytest.MonkeyPatch, values: list[str], owner: str) -> None:
        class Entry:
            name = "orbstack"

            def __init__(self, value: str) -> None:
                self.value = value

        def entries(**_: Any) -> list[Entry]:
            return [Entry(value) for value in values]

        monkeypatch.setattr(_predecessor, "entry_points", entries)
        assert _predecessor.owner() == owner
