"""The built distribution: its contents, and its use in a separate virtual environment."""

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

import pytest

from fake_daemon import FakeDaemon, ShellMachines

PROJECT = Path(__file__).resolve().parents[1]

pytest.importorskip("hatchling", reason="building needs hatchling, which requirements-dev.txt names")


def call(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program that must succeed, and returns its stdout."""
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=PROJECT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "built", cwd=source)
    (built,) = (folder / "built").iterdir()
    return built


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


@pytest.fixture
def metadata(wheel: Path) -> Message:
    """The wheel's metadata."""
    return message_from_string(read(wheel, "METADATA"))


def test_wheel_contains_exactly_the_source_files(wheel: Path) -> None:
    """Including the ``py.typed`` markers."""
    expected = {
        str(path.relative_to(PROJECT / "src"))
        for path in (PROJECT / "src").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"orbd/py.typed", "pyinfra_orbd/py.typed"} <= names


def test_sdist_contains_tests_and_licences_but_no_benchmarks(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
        assert all(member.isfile() for member in archive.getmembers())
    assert {"tests/conftest.py", "requirements-dev.txt", "LICENSE-MIT", "LICENSE-APACHE", "README.md", "pyproject.toml"} <= set(
        names
    )
    assert not [name for name in names if name.startswith("benches") or "__pycache__" in name]


def test_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "pyinfra-orbd"
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE-APACHE", "LICENSE-MIT"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "@orbstack" in str(metadata.get_payload())
    links = {one.split(",")[0] for one in metadata.get_all("Project-URL", [])}
    assert links == {"Homepage", "Documentation", "Changelog", "Issues", "Source"}
    needs = metadata.get_all("Requires-Dist", [])
    assert sorted(one.split("<")[0].split(">")[0] for one in needs) == ["pyinfra", "typing-extensions"]
    oldest = next(line for line in (PROJECT / "requirements-oldest.txt").read_text().splitlines() if line.startswith("pyinfra=="))
    assert any(one.endswith(f">={oldest.split('==')[1].removesuffix('.0')}") for one in needs), (
        "the oldest PyInfra is the one tested"
    )


def test_licence_files_equal_those_of_the_project() -> None:
    """They are copies, because a source distribution contains only the package's directory."""
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        above = PROJECT.parents[1] / name
        if not above.is_file():
            pytest.skip("not within the project")
        assert (PROJECT / name).read_bytes() == above.read_bytes()


def test_pyinfra_runs_a_command_with_the_installed_wheel(
    wheel: Path, tmp_path: Path, daemon: FakeDaemon, machines: ShellMachines
) -> None:
    """In an environment with only the wheel installed; with both connector names."""
    entries = ConfigParser()
    entries.read_string(read(wheel, "entry_points.txt"))
    assert set(entries["pyinfra.connectors"]) == {"orbstack", "orbd"}
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Dependencies come from this environment, after the wheel's own packages on the path. The editable install of the package in
    # this environment is not found, because it is a .pth file, which Python does not read in a directory added like this.
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
