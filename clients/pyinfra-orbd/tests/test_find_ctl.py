"""``orbd-ctl`` is found where each installer puts it, and the error names the places.

Each test arranges files as an installer does, and asks a fresh Python, whose ``orbd`` is a copy in that arrangement. The real
installers are in ``wheel_tests``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import orbd

ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from orbd import _find_ctl, errors
try:
    print(_find_ctl.find_ctl())
except errors.CtlFailed as error:
    print(f"error: {error}")
"""


class Layout:
    """A home folder with nothing in it, and whatever a test installs below it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # Its scripts are an empty folder, unlike those of the environment that runs the tests, in which orbd may be installed.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "python"], check=True)
        self.scripts = home / "python/bin"

    def package(self, site: Path, *, recorded: str | None = None) -> Path:
        """Copies the package into ``site``; with the RECORD of an installer, which names ``orbd-ctl`` by that path."""
        shutil.copytree(Path(orbd.__file__).parent, site / "orbd", ignore=shutil.ignore_patterns("__pycache__"))
        if recorded is not None:
            metadata = site / "orbd-0.1.0.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: orbd\nVersion: 0.1.0\n")
            (metadata / "RECORD").write_text(f"orbd/__init__.py,,\n{recorded},,\n")
        return site

    def program(self, folder: Path) -> Path:
        """Installs a program; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "orbd-ctl"
        path.touch(0o755)
        return path

    def find(self, site: Path, **variables: str) -> str:
        """Returns what the package in ``site`` finds."""
        environment = {"HOME": str(self.home), "PATH": "/nothing", **variables}
        return subprocess.check_output([self.scripts / "python", "-c", ASK, str(site)], env=environment, text=True).strip()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty home."""
    return Layout(tmp_path)


def test_record_of_its_own_distribution_is_used(layout: Layout, tmp_path: Path) -> None:
    """``uv run --with`` and ``pipx inject``: the environment of the package is not the one of the interpreter."""
    site = layout.package(tmp_path / "a b/lib/python3/site-packages", recorded="../../../bin/orbd-ctl")
    program = layout.program(tmp_path / "a b/bin")
    assert layout.find(site) == str(program)


def test_wrong_record_of_pip_target_is_ignored(layout: Layout, tmp_path: Path) -> None:
    """``pip install --target`` moves the files after it has written RECORD."""
    site = layout.package(tmp_path / "target", recorded="../../bin/orbd-ctl")
    program = layout.program(tmp_path / "target/bin")
    assert layout.find(site) == str(program)


def test_closest_program_wins_over_those_of_other_installations(layout: Layout, tmp_path: Path) -> None:
    """A user's and one on PATH, of another version; and another distribution that is earlier on ``sys.path``."""
    site = layout.package(tmp_path / "target")
    for folder in (tmp_path / ".local/bin", tmp_path / "path"):
        layout.program(folder)
    program = layout.program(tmp_path / "target/bin")
    assert layout.find(site, PATH=str(tmp_path / "path")) == str(program)


def test_scripts_of_the_interpreter_are_searched(layout: Layout, tmp_path: Path) -> None:
    """An editable installation has no record beside the package."""
    site = layout.package(tmp_path / "source")
    program = layout.program(layout.scripts)
    assert layout.find(site) == str(program)


def test_users_scripts_are_searched_before_path(layout: Layout, tmp_path: Path) -> None:
    site = layout.package(tmp_path / "source")
    on_path = layout.program(tmp_path / "path")
    variables = {"PATH": str(on_path.parent), "PYTHONUSERBASE": str(tmp_path / "user")}
    assert layout.find(site, **variables) == str(on_path)
    program = layout.program(tmp_path / "user/bin")
    assert layout.find(site, **variables) == str(program)


def test_variable_overrides_the_search_and_must_be_right(layout: Layout, tmp_path: Path) -> None:
    site = layout.package(tmp_path / "target")
    layout.program(tmp_path / "target/bin")
    chosen = layout.program(tmp_path / "chosen")
    assert layout.find(site, ORBD_CTL=str(chosen)) == str(chosen)
    wrong = str(tmp_path / "missing")
    expected = f"error: ORBD_CTL is '{wrong}', which is not an executable file; correct it or unset it"
    assert layout.find(site, ORBD_CTL=wrong) == expected


def test_file_that_is_not_executable_is_ignored(layout: Layout, tmp_path: Path) -> None:
    site = layout.package(tmp_path / "target")
    layout.program(tmp_path / "target/bin").chmod(0o644)
    assert layout.find(site).startswith("error: orbd-ctl not found")


def test_error_names_every_place_and_how_to_install(layout: Layout, tmp_path: Path) -> None:
    site = layout.package(tmp_path / "site")
    said = layout.find(site, PYTHONUSERBASE=str(tmp_path / "user"))
    folders = ("site/bin", "python/bin", "user/bin")
    places = [tmp_path / folder / "orbd-ctl" for folder in folders]
    assert said == (
        f"error: orbd-ctl not found at {', '.join(map(str, places))}, or on PATH (/nothing); "
        "`pip install --force-reinstall --no-deps orbd` installs it, or set ORBD_CTL to its path"
    )
