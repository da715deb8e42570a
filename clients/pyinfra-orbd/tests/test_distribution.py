"""The built distributions: their contents, and their use in a separate virtual environment."""

from __future__ import annotations

import os
import struct
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

import hatch_build
import pytest
from hatch_build import PROGRAMS

from fake_daemon import FakeDaemon, ShellMachines

PROJECT = Path(__file__).resolve().parents[1]
CLIENT = PROJECT.parent / "python"


def call(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a program that must succeed, and returns its stdout."""
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def elf(machine: str, glibc: str = "17") -> bytes:
    """Returns the start of a Linux program, and the name of a version that it needs."""
    number = {"x86_64": 62, "aarch64": 183, "riscv64": 243}[machine]
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, number) + f"GLIBC_2.5\0GLIBC_2.{glibc}".encode()


def mach_o(machine: str, version: tuple[int, int] = (11, 0), *, old: bool = False) -> bytes:
    """Returns the start of a Mac's program, with its deployment target in the ``old`` or the new load command."""
    number = {"x86_64": 0x0100_0007, "arm64": 0x0100_000C}[machine]
    minimum = version[0] << 16 | version[1] << 8
    uuid = struct.pack("<2I", 0x1B, 24) + bytes(16)
    target = struct.pack("<4I", 0x24, 16, minimum, 0) if old else struct.pack("<6I", 0x32, 24, 1, minimum, 0, 0)
    return struct.pack("<8I", 0xFEED_FACF, number, 0, 2, 2, len(uuid + target), 0, 0) + uuid + target


def make_fakes(folder: Path, content: bytes) -> None:
    """Writes files that look like the two programs."""
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)


class Built(NamedTuple):
    """A distribution: its sources, its source distribution, and the wheel that was built from that."""

    source: Path
    sdist: Path
    wheel: Path


def hatch(source: Path, kind: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Builds a distribution, with nothing on PATH."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    environment = {"HOME": str(folder), "PATH": "/nothing", **variables}
    return subprocess.run(words, cwd=source, env=environment, capture_output=True, text=True, timeout=120)


def build(source: Path, folder: Path) -> Built:
    """Builds a distribution's source distribution, and its wheel from that, with programs that only look like some."""
    fakes = folder / "fakes"
    make_fakes(fakes, mach_o("arm64") if sys.platform == "darwin" else elf(os.uname().machine))
    hatch(source, "sdist", folder / "sdist").check_returncode()
    (sdist,) = (folder / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    hatch(unpacked, "wheel", folder / "wheel", ORBD_PROGRAMS=str(fakes)).check_returncode()
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
    if built.source == CLIENT:
        expected |= {f"orbd-{metadata(built)['Version']}.data/scripts/{name}" for name in PROGRAMS}
    assert names == expected
    assert any(name.endswith("py.typed") for name in names)


def test_sdist_contains_licences_and_no_files_of_development_tools(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
        # The licences of the crates are links to those of the project.
        assert all(member.isfile() or member.name.endswith(("-MIT", "-APACHE")) for member in archive.getmembers())
    assert {"LICENSE-MIT", "LICENSE-APACHE", "README.md", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith(("benches", "tests", "tools")) or "__pycache__" in name]


@pytest.mark.parametrize(
    ("programs", "tag"),
    [
        ((mach_o("arm64"), mach_o("arm64")), "macosx_11_0_arm64"),
        ((mach_o("arm64", (11, 0)), mach_o("arm64", (12, 3))), "macosx_12_0_arm64"),
        ((mach_o("x86_64", (10, 12), old=True), mach_o("x86_64", (10, 12))), "macosx_10_12_x86_64"),
        ((elf("x86_64"), elf("x86_64", "34")), "manylinux_2_34_x86_64"),
        ((elf("aarch64"), elf("aarch64")), "manylinux_2_17_aarch64"),
    ],
)
def test_tag_is_read_from_the_programs(tmp_path: Path, programs: tuple[bytes, bytes], tag: str) -> None:
    """Not from this system, because a Mac builds for both architectures."""
    paths = [tmp_path / name for name in PROGRAMS]
    for path, content in zip(paths, programs, strict=True):
        path.write_bytes(content)
    assert hatch_build.platform_tag(*paths) == tag


@pytest.mark.parametrize("programs", [(elf("x86_64"), mach_o("x86_64")), (elf("riscv64"),) * 2, (b"#!/bin/sh\n",) * 2])
def test_other_files_are_not_packed(tmp_path: Path, programs: tuple[bytes, bytes]) -> None:
    paths = [tmp_path / name for name in PROGRAMS]
    for path, content in zip(paths, programs, strict=True):
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"is not a program for macOS|not for one system"):
        hatch_build.platform_tag(*paths)


def test_wheel_installs_both_programs_for_one_system(client_built: Built) -> None:
    version = metadata(client_built)["Version"]
    with zipfile.ZipFile(client_built.wheel) as archive:
        modes = {name: archive.getinfo(f"orbd-{version}.data/scripts/{name}").external_attr >> 16 & 0o777 for name in PROGRAMS}
    assert modes == dict.fromkeys(PROGRAMS, 0o755)
    assert "Root-Is-Purelib: false" in read(client_built.wheel, "WHEEL")
    assert client_built.wheel.name.startswith(f"orbd-{version}-py3-none-m")


def test_release_archive_is_packed_with_its_licences_and_sbom(client_built: Built, tmp_path: Path) -> None:
    root = tmp_path / "orbd-0.1.0-system"
    root.mkdir()
    make_fakes(root / "bin", elf("x86_64"))
    (root / "THIRD-PARTY.txt").write_text("MIT License\n")
    (root / "orbd.cdx.json").write_text("{}\n")
    with tarfile.open(tmp_path / "orbd.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)
    hatch(CLIENT, "wheel", tmp_path / "dist", ORBD_PROGRAMS=str(tmp_path / "orbd.tar.gz")).check_returncode()
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl")
    assert read(wheel, "licenses/THIRD-PARTY.txt") == "MIT License\n"
    assert read(wheel, "sboms/orbd.cdx.json") == "{}\n"


def test_missing_programs_and_cargo_are_reported_plainly(client_built: Built, tmp_path: Path) -> None:
    with tarfile.open(client_built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    done = hatch(source, "wheel", tmp_path / "dist")
    assert (done.returncode, done.stderr) == (1, f"{hatch_build.NOTHING_TO_PACK}\n")


def test_wrong_folder_of_programs_is_reported_plainly(tmp_path: Path) -> None:
    done = hatch(CLIENT, "wheel", tmp_path / "dist", ORBD_PROGRAMS=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"orbd: ORBD_PROGRAMS is {str(tmp_path)!r}, which does not contain orbd and orbd-ctl; "
        "set it to a release archive or to a folder with both programs\n"
    )


def test_editable_installation_needs_neither_programs_nor_cargo(tmp_path: Path) -> None:
    hatch(CLIENT, "wheel:editable", tmp_path).check_returncode()
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


def test_sdist_contains_every_package_of_the_workspace(client_built: Built) -> None:
    """Cargo reads the manifests of all of them, and the files that they name."""
    with tarfile.open(client_built.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    root = PROJECT.parents[1]
    manifests = [path for path in root.rglob("Cargo.toml") if "target" not in path.relative_to(root).parts]
    assert {f"rust/{path.relative_to(root)}" for path in manifests} <= names
    assert {"rust/Cargo.lock", "rust/src/main.rs", "rust/clients/orbd-ctl/src/main.rs"} <= names


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
