"""``pip install`` brings everything: each installer, an upgrade under load, several versions side by side.

Every test uses a home of its own, in which nothing is installed, and an environment without PATH. So no test finds cargo, or an
``orbd-ctl`` of this machine. The programs are those of the debug build, which CI has built already.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import hatch_build
import pytest

from installed import BASE_PYTHON, WHEELHOUSE, Home, Word, build_wheels, call, script, take_programs, temporary_home


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    return build_wheels(folder, take_programs(folder / "programs"))


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two wheels of the next version, whose programs differ in their last byte."""
    folder = tmp_path_factory.mktemp("newer")
    return build_wheels(folder, take_programs(folder / "programs", extra=b"\n"), "999.0.0")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of ``orbd``."""
    folder = tmp_path_factory.mktemp("sdist")
    source = Path(hatch_build.__file__).parent
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=source, env=dict(os.environ))
    (built,) = folder.iterdir()
    return built


@pytest.fixture
def home() -> Iterator[Home]:
    """A home in which nothing is installed."""
    with temporary_home() as home:
        yield home


def test_virtual_environment_needs_no_path_and_no_cargo(home: Home, wheels: Path) -> None:
    """Commands, rsync and archives; in a folder whose name has a space."""
    programs = home.venv("a venv")
    home.pip(programs / "python", wheels, "pyinfra-orbd")
    home.answers(programs / "pyinfra")
    assert home.program() == programs / "orbd"
    (home.folder / "tree").mkdir()
    (home.folder / "tree/file").write_text("content\n")
    said = call(programs / "pyinfra", "-y", "@orbstack/web", "files.rsync", "tree/", "copy", env=home.env, cwd=home.folder)
    assert "Success" in said
    assert call(home.orbctl, "run", "-m", "web", "sh", "-c", "cd && cat copy/file", env=home.env, cwd=Path("/")) == "content\n"
    export = "from orbd import Client; Client().export_machine('web', 'web.tar')"
    call(programs / "python", "-c", export, env=home.env, cwd=home.folder)
    assert (home.folder / "web.tar").stat().st_size > 0


def test_pip_target_is_found(home: Home, wheels: Path) -> None:
    python = home.venv("empty") / "python"
    target = home.folder / "target"
    home.pip(python, wheels, "--target", target, "pyinfra-orbd")
    home.answers(python, "-m", "pyinfra", PYTHONPATH=str(target))
    assert home.program() == target / "bin/orbd"


def test_pip_user_is_found(home: Home, wheels: Path) -> None:
    home.pip(BASE_PYTHON, wheels, "--user", "--ignore-installed", "--break-system-packages", "pyinfra-orbd")
    user = Path(call(BASE_PYTHON, "-c", "import site; print(site.getuserbase())", env=home.env).strip())
    assert user.is_relative_to(home.folder)
    home.answers(user / "bin/pyinfra")
    assert home.program() == user / "bin/orbd"


def test_uv_run_with_is_found(home: Home, wheels: Path) -> None:
    """The program is in an environment of uv's cache, not in that of the interpreter."""
    uv: list[Word] = [script("uv"), "run", "--no-project", "--no-index", "--find-links", WHEELHOUSE, "--find-links", wheels]
    home.answers(*uv, "--python", BASE_PYTHON, "--with", "pyinfra-orbd", "pyinfra")
    assert home.program().is_relative_to(home.folder / ".cache/uv")


def test_uv_tool_installs_the_command_line_without_pyinfra(home: Home, wheels: Path) -> None:
    uv: list[Word] = [script("uv"), "tool", "install", "--no-index", "--find-links", wheels, "--python", BASE_PYTHON]
    call(*uv, "orbd", env=home.env)
    said = call(home.folder / ".local/bin/orbd-ctl", "run", "-m", "web", "uname", "-s", env=home.env)
    assert said == f"{os.uname().sysname}\n"
    assert home.program().is_relative_to(home.folder / ".local/share/uv/tools/orbd")


def test_pipx_inject_is_found(home: Home, wheels: Path) -> None:
    env = {**home.env, "PIPX_DEFAULT_PYTHON": str(BASE_PYTHON)}
    offline = f"--pip-args=--no-index --find-links {WHEELHOUSE} --find-links {wheels}"
    call(script("pipx"), "install", offline, "pyinfra", env=env)
    call(script("pipx"), "inject", offline, "pyinfra", "pyinfra-orbd", env=env)
    home.answers(home.folder / ".local/bin/pyinfra")
    assert home.program() == home.folder / ".local/share/pipx/venvs/pyinfra/bin/orbd"


def test_upgrade_during_a_command_lets_it_finish(home: Home, wheels: Path, newer: Path) -> None:
    """``pip install -U`` replaces the program; the daemon follows once the command has ended, in the same process."""
    programs = home.install("venv", wheels)
    home.answers(programs / "pyinfra")
    words: list[Word] = [programs / "orbd-ctl", "run", "-m", "web", "sh", "-c", 'echo begun; read word; echo "got $word"']
    with subprocess.Popen(words, env=home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stdout.readline() == "begun\n"
        with home.client() as client:
            before = client.daemon_info()
        home.pip(programs / "python", newer, "--upgrade", "pyinfra-orbd")
        home.answers(programs / "pyinfra")
        with home.client() as client:
            assert client.daemon_info().instance == before.instance
        with home.connect() as connection:
            said, _ = command.communicate("it\n", timeout=60)
            assert (said, command.returncode) == ("got it\n", 0)
            while connection.recv(4096):
                pass
    with home.client() as client:
        after = client.daemon_info()
    assert after.instance != before.instance
    assert after.pid == before.pid
    assert home.program() == programs / "orbd"
    home.answers(programs / "pyinfra")


@pytest.mark.parametrize("first", ["older", "newer"])
def test_two_versions_side_by_side_work_in_any_order(home: Home, wheels: Path, newer: Path, first: str) -> None:
    """Neither replaces the daemon that the other has started."""
    both = {"older": home.install("older", wheels), "newer": home.install("newer", newer)}
    second = "newer" if first == "older" else "older"
    for name in (first, second, first, second):
        home.answers(both[name] / "pyinfra")
        assert home.program() == both[first] / "orbd"


def test_client_of_the_next_protocol_works_while_there_is_a_common_one(home: Home, wheels: Path) -> None:
    """A later version of the client, made by editing the installed one, beside a daemon of this version."""
    home.answers(home.install("older", wheels) / "pyinfra")
    later = home.install("later", wheels)
    (transport,) = (later.parent / "lib").glob("python*/site-packages/orbd/_transport.py")

    def step(name: str) -> None:
        source = transport.read_text()
        assert f"{name} = 1\n" in source
        transport.write_text(source.replace(f"{name} = 1\n", f"{name} = 2\n"))

    step("PROTOCOL_VERSION")
    home.answers(later / "pyinfra")
    step("PROTOCOL_MIN")
    said = call(later / "pyinfra", "-y", "@orbstack/web", "exec", "--", "true", env=home.env, cwd=home.folder, code=1)
    assert re.search(r"orbd \S+ speaks protocol 1\b", said), said
    assert re.search(r"speaks protocol 2\b", said), said
    assert "orbd is older: upgrade it" in said, said


def test_reinstalling_the_same_programs_restarts_nothing(home: Home, wheels: Path) -> None:
    """The file at the daemon's path is another one with the same contents."""
    programs = home.install("venv", wheels)
    home.answers(programs / "pyinfra")
    with home.client() as client:
        before = client.daemon_info().instance
    home.pip(programs / "python", wheels, "--force-reinstall", "--no-deps", "orbd")
    for _ in range(2):
        home.answers(programs / "pyinfra")
    with home.client() as client:
        assert client.daemon_info().instance == before


def test_environment_can_be_recreated_under_its_daemon(home: Home, wheels: Path, newer: Path) -> None:
    programs = home.install("venv", wheels)
    home.answers(programs / "pyinfra")
    shutil.rmtree(programs.parent)
    assert home.install("venv", newer) == programs
    home.answers(programs / "pyinfra")
    home.stop()
    home.answers(programs / "pyinfra")
    assert home.program() == programs / "orbd"


@pytest.mark.skipif(sys.platform != "linux", reason="plays the part of systemd's user manager")
def test_service_whose_program_is_gone_does_not_prevent_the_start(home: Home, wheels: Path) -> None:
    programs = home.install("venv", wheels)
    unit = home.folder / ".config/systemd/user/orbd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nExecStart={home.folder}/gone/orbd\n")
    manager = home.folder / "fake/systemctl"
    manager.parent.mkdir()
    manager.write_text("#!/bin/sh\necho 'Unable to locate executable: No such file or directory' >&2\nexit 1\n")
    manager.chmod(0o755)
    home.answers(programs / "pyinfra", PATH=f"{manager.parent}:/usr/bin:/bin")
    assert home.program() == programs / "orbd"


def test_source_distribution_without_cargo_says_what_to_do(home: Home, sdist: Path) -> None:
    python = home.venv("venv") / "python"
    pip: list[Word] = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--find-links", WHEELHOUSE]
    said = call(*pip, sdist, env=home.env, code=1)
    for line in hatch_build.NOTHING_TO_PACK.splitlines():
        assert line in said


def test_source_distribution_is_built_by_cargo(home: Home, sdist: Path, tmp_path: Path) -> None:
    """A cargo that only checks the workspace and its lock file, because a build takes minutes, and names the debug build."""
    programs = take_programs(tmp_path / "programs")
    cargo = shutil.which("cargo")
    assert cargo is not None
    fake = tmp_path / "bin/cargo"
    fake.parent.mkdir()
    metadata = f'"{cargo}" metadata --locked --offline --no-deps --format-version 1 >&2'
    artifact = f'{{"reason":"compiler-artifact","executable":"{programs}/orbd"}}'
    fake.write_text(f"#!/bin/sh\nset -e\necho \"$@\" >{tmp_path}/words\n{metadata}\necho '{artifact}'\n")
    fake.chmod(0o755)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    env = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", cwd=source, env=env)
    assert (tmp_path / "words").read_text() == (
        "build --release --locked --message-format json-render-diagnostics --bin orbd --bin orbd-ctl\n"
    )
    python = home.venv("venv") / "python"
    (wheel,) = (tmp_path / "dist").iterdir()
    home.pip(python, tmp_path / "dist", wheel)
    call(python.parent / "orbd-ctl", "list", env=home.env)
    assert home.program() == python.parent / "orbd"
