"""The built distributions: their contents, and their use in a separate virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest

from fake_daemon import FakeDaemon, ShellMachines

PROJECT = Path(__file__).resolve().parents[1]
CLIENT = PROJECT.parent / "python"

if not CLIENT.is_dir():
    pytest.skip("not within the project", allow_module_level=True)
pytest.importorskip("hatchling", reason="building needs hatchling, which requirements-dev.txt names")


def call(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program that must succeed, and returns its stdout."""
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Built(NamedTuple):
    """A distribution: its sources, its source distribution, and the wheel that was built from that."""

    source: Path
    sdist: Path
    wheel: Path


def build(source: Path, folder: Path) -> Built:
    """Builds a distribution's source distribution, and its wheel from that."""
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder / "sdist", cwd=source)
    (sdist,) = (folder / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheel", cwd=unpacked)
    (wheel,) = (folder / "wheel").iterdir()
    return Built(source, sdist, wheel)


@pytest.fixture(scope="module")
def client_built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The distribution ``orbd``."""
    return build(CLIENT, tmp_path_factory.mktemp("orbd"))


@pytest.fixture(scope="module")
def connector_built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The distribution ``pyinfra-orbd``."""
    return build(PROJECT, tmp_path_factory.mktemp("pyinfra-orbd"))


@pytest.fixture(params=["orbd", "pyinfra-orbd"])
def built(request: pytest.FixtureRequest) -> Built:
    """Each of the two."""
    fixture = "client_built" if request.param == "orbd" else "connector_built"
    found: Built = request.getfixturevalue(fixture)
    return found


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def metadata(built: Built) -> Message:
    """Returns the wheel's metadata."""
    return message_from_string(read(built.wheel, "METADATA"))


def test_wheel_contains_exactly_the_source_files(built: Built) -> None:
    """Including the ``py.typed`` markers."""
    expected = {
        str(path.relative_to(built.source / "src"))
        for path in (built.source / "src").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert any(name.endswith("py.typed") for name in names)


def test_sdist_contains_licences_and_no_files_of_development_tools(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
        assert all(member.isfile() for member in archive.getmembers())
    assert {"LICENSE-MIT", "LICENSE-APACHE", "README.md", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith("benches") or "__pycache__" in name]


def test_metadata_is_complete(built: Built) -> None:
    said = metadata(built)
    assert said["License-Expression"] == "MIT OR Apache-2.0"
    assert said.get_all("License-File") == ["LICENSE-APACHE", "LICENSE-MIT"]
    assert said["Description-Content-Type"] == "text/markdown"
    # The project has no public address yet.
    assert said.get_all("Project-URL") is None


def test_connector_requires_the_client_of_its_own_version(client_built: Built, connector_built: Built) -> None:
    client, connector = metadata(client_built), metadata(connector_built)
    assert (client["Name"], connector["Name"]) == ("orbd", "pyinfra-orbd")
    assert client.get_all("Requires-Dist") is None
    needs = connector.get_all("Requires-Dist", [])
    assert f"orbd=={client['Version']}" in needs
    assert client["Version"] == connector["Version"]
    assert sorted(one.split("<")[0].split(">")[0].split("=")[0] for one in needs) == ["orbd", "pyinfra", "typing-extensions"]
    oldest = next(line for line in (PROJECT / "requirements-oldest.txt").read_text().splitlines() if line.startswith("pyinfra=="))
    assert any(one.endswith(f">={oldest.split('==')[1].removesuffix('.0')}") for one in needs), (
        "the oldest PyInfra is the one tested"
    )


def test_licence_files_equal_those_of_the_project() -> None:
    """They are copies, because a source distribution contains only the package's directory."""
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        for folder in (PROJECT, CLIENT):
            assert (folder / name).read_bytes() == (PROJECT.parents[1] / name).read_bytes()


def test_pyinfra_runs_a_command_with_the_installed_wheels(
    client_built: Built, connector_built: Built, tmp_path: Path, daemon: FakeDaemon, machines: ShellMachines
) -> None:
    """In an environment with only the wheels installed; with both connector names."""
    entries = ConfigParser()
    entries.read_string(read(connector_built.wheel, "entry_points.txt"))
    assert set(entries["pyinfra.connectors"]) == {"orbstack", "orbd"}
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    wheels = (client_built.wheel, connector_built.wheel)
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", *wheels)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Dependencies come from this environment, after the wheels' own packages on the path. The editable installs of the packages
    # in this environment are not found, because each is a .pth file, which Python does not read in a directory added like this.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ORBD_SOCKET": str(daemon.path), "ORBD_AUTOSTART": "0"}
    where = call(
        python, "-c", "import orbd, pyinfra_orbd.connector as c; print(orbd.__file__, c.__file__)", env=env, cwd=tmp_path
    )
    assert all(path.startswith(str(site)) for path in where.split())
    for name in ("orbstack", "orbd"):
        done = subprocess.run(
            [python, "-m", "pyinfra", "-y", f"@{name}/web", "exec", "--", "echo hello from there"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "hello from there" in done.stdout + done.stderr
