"""Packs the programs ``orbd`` and ``orbd-ctl`` into the wheel, as scripts.

Where they come from:

1. ``ORBD_PROGRAMS``: a release archive that ``make dist`` has built, or a folder that contains the programs.
2. Otherwise cargo builds them, from the sources in the source distribution or in the project around this folder.

An editable installation gets no programs: it is for work on the project, where cargo builds them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = ("orbd", "orbd-ctl")

VARIABLE = "ORBD_PROGRAMS"

THIRD_PARTY = "THIRD-PARTY.txt"
"""Licences of the crates in the programs."""

SBOM = "orbd.cdx.json"
"""The crates in the programs, as CycloneDX."""

SOURCES = (
    "Cargo.lock",
    "Cargo.toml",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "clients/orbd-client",
    "clients/orbd-ctl",
    "clients/orbd-host",
    "proto",
    "src",
    "tests",
)
"""What cargo needs of the project. It reads the manifests of all packages of the workspace, also of those that are not built."""

DEPLOYMENT_TARGETS = {"arm64": "11.0", "x86_64": "10.12"}
"""The oldest macOS for which cargo builds, by architecture."""

NOTHING_TO_PACK = f"""\
orbd: there is nothing to put into the wheel. The programs orbd and orbd-ctl are written in Rust, and cargo is not on PATH.
Do one of these:
- install a wheel instead, on a Mac: pip install --only-binary orbd orbd
- install Rust (Debian: apt-get install cargo, Homebrew: brew install rust, or rustup), then repeat the installation
- set {VARIABLE} to a release archive of orbd or to a folder that contains both programs"""


class ProgramsHook(BuildHookInterface[Any]):
    """Adds programs to a wheel, and their sources to a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Is called by hatchling before it builds; ``version`` is the kind of wheel."""
        project = Path(self.root, "..", "..").resolve()
        if self.target_name == "sdist":
            if not (Path(self.root) / "rust").is_dir():
                build_data["force_include"].update({str(project / name): f"rust/{name}" for name in SOURCES})
            return
        if version == "editable":
            return
        # Deleted when this object is.
        self._unpacked = TemporaryDirectory(prefix="orbd-programs-")
        chosen = os.environ.get(VARIABLE)
        folder = _find_programs(Path(chosen), Path(self._unpacked.name)) if chosen else self._build(project)
        programs = [folder / name for name in PROGRAMS]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(*programs)}"
        build_data["shared_scripts"].update({str(path): path.name for path in programs})
        for parent in (folder, folder.parent):
            if (parent / THIRD_PARTY).is_file():
                metadata = f"{self.metadata.name.replace('-', '_')}-{self.metadata.version}.dist-info"
                build_data["force_include"][str(parent / THIRD_PARTY)] = f"{metadata}/licenses/{THIRD_PARTY}"
            if (parent / SBOM).is_file():
                build_data["sbom_files"].append(str(parent / SBOM))

    def _build(self, project: Path) -> Path:
        """Builds the programs with cargo; returns their folder."""
        sources = [folder for folder in (Path(self.root) / "rust", project) if (folder / "Cargo.lock").is_file()]
        cargo = shutil.which("cargo")
        if cargo is None or not sources:
            raise SystemExit(NOTHING_TO_PACK)
        environment = dict(os.environ)
        machine = os.uname().machine
        if machine in DEPLOYMENT_TARGETS:
            environment.setdefault("MACOSX_DEPLOYMENT_TARGET", DEPLOYMENT_TARGETS[machine])
        words = [cargo, "build", "--release", "--locked", "--message-format", "json-render-diagnostics"]
        for name in PROGRAMS:
            words += ["--bin", name]
        self.app.display_info("Building orbd and orbd-ctl with cargo; this takes some minutes")
        done = subprocess.run(words, cwd=sources[0], env=environment, stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise SystemExit(
                f"orbd: `{' '.join(words)}` failed in {sources[0]} with exit code {done.returncode}; its message is above. "
                "It needs Rust 1.88 or newer and a C linker"
            )
        messages = map(json.loads, done.stdout.splitlines())
        built = [Path(message["executable"]) for message in messages if message.get("executable")]
        return next(path.parent for path in built if path.name == PROGRAMS[0])


def _find_programs(chosen: Path, empty: Path) -> Path:
    """Returns the folder of the programs in a folder or archive, which is unpacked into ``empty``."""
    if chosen.is_file():
        with tarfile.open(chosen) as archive:
            # `filter` is not in the first releases of Python 3.10 and 3.11; these archives are our own.
            options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(empty, **options)
        found = [path.parent for path in empty.glob(f"*/bin/{PROGRAMS[0]}")]
    else:
        found = [folder for folder in (chosen, chosen / "bin") if (folder / PROGRAMS[0]).is_file()]
    if not found or not all((found[0] / name).is_file() for name in PROGRAMS):
        raise SystemExit(
            f"orbd: {VARIABLE} is {str(chosen)!r}, which does not contain {' and '.join(PROGRAMS)}; "
            "set it to a release archive or to a folder with both programs"
        )
    return found[0]


def platform_tag(*programs: Path) -> str:
    """Returns the tag of the oldest system on which all the programs run, from what their files say."""
    platforms = [_platform(path) for path in programs]
    if len({(system, machine) for system, _, machine in platforms}) != 1:
        raise SystemExit(f"orbd: the programs are not for one system: {platforms}")
    system, version, machine = max(platforms, key=lambda platform: platform[1])
    return f"{system}_{version[0]}_{version[1]}_{machine}"


def _platform(program: Path) -> tuple[str, tuple[int, int], str]:
    """Returns the system, its lowest version and the architecture for which a program was built."""
    data = program.read_bytes()
    if data[:4] == b"\xcf\xfa\xed\xfe":
        machines = {0x0100_0007: "x86_64", 0x0100_000C: "arm64"}
        cpu, _, _, commands = struct.unpack_from("<4I", data, 4)
        at = 32
        for _ in range(commands):
            command, size, *rest = struct.unpack_from("<4I", data, at)
            # LC_VERSION_MIN_MACOSX has the version in the third word, LC_BUILD_VERSION in the fourth, after the platform.
            if command in (0x24, 0x32) and cpu in machines:
                version = rest[0] if command == 0x24 else rest[1]
                major, minor = version >> 16, version >> 8 & 0xFF
                return "macosx", (major, minor if major < 11 else 0), machines[cpu]
            at += size
    elif data[:5] == b"\x7fELF\x02":
        machine = {62: "x86_64", 183: "aarch64"}.get(struct.unpack_from("<H", data, 18)[0])
        versions = [int(number) for number in re.findall(rb"GLIBC_2\.(\d+)", data)]
        if machine and versions:
            return "manylinux", (2, max(versions)), machine
    raise SystemExit(f"orbd: {program} is not a program for macOS or for Linux with glibc, on x86_64 or arm64")
