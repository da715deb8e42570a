"""``files.rsync``: rsync's own protocol through a command in the machine."""

from __future__ import annotations

import os
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from pyinfra.api.host import Host

from conftest import MakeHost
from fake_daemon import ShellMachines
from pyinfra_orbd import _rsync
from real_daemon import RealDaemon
from target import Target, fake_ctl

needs_rsync = pytest.mark.skipif(which("rsync") is None, reason="needs `rsync` (Debian: apt-get install rsync)")


def test_it_needs_programs_on_this_side(host: Host, short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation is refused before anything runs, naming what is missing."""
    monkeypatch.setenv("PATH", str(short_folder))
    with pytest.raises(NotImplementedError, match="needs `rsync` on this computer's PATH"):
        host.check_can_rsync()
    (short_folder / "rsync").touch(0o755)
    with pytest.raises(NotImplementedError, match="needs `orbd-ctl`"):
        host.check_can_rsync()
    (short_folder / "orbd-ctl").touch(0o755)
    host.check_can_rsync()


@pytest.mark.parametrize("name", ["_su_user", "_doas", "_sudo_password"])
def test_authority_that_it_cannot_have(host: Host, name: str) -> None:
    """It is refused, where others would quietly go on as the wrong user."""
    with pytest.raises(OSError, match=f"_sudo and _sudo_user only, not {name}"):
        host.rsync("a", "b", ["-a"], **{name: "x"})


def test_the_command_line() -> None:
    """A relative source with a colon is no host, flags may hold several words, sudo is the other end's business."""
    words = _rsync.words("web", "a:b/", "/srv/x", ["-ax", "--exclude '*.o'"], {"_sudo": True, "_sudo_user": "some one"})
    assert words[:4] == ["rsync", "-ax", "--exclude", "*.o"]
    assert words[-5:] == ["--rsync-path", "sudo -H -n -u 'some one' rsync", "--", "./a:b/", "web:/srv/x"]


@needs_rsync
def test_what_it_starts(
    make_host: MakeHost, machines: ShellMachines, short_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Machine, user, limit and command reach orbd-ctl as words of their own; what it says of a failure is told."""
    fake_ctl(short_folder, f"printf '%s|' \"$@\" >{short_folder}/words; echo no such machine >&2; exit 4", monkeypatch)
    host = make_host(orbstack_user="o'brien")
    with pytest.raises(OSError, match=r"rsync ended with \d+: no such machine"):
        host.rsync(str(tmp_path), "/srv/a", ["-a"], _timeout=2.5)
    text = (short_folder / "words").read_text()
    assert text.startswith("run|-m|web|-u|o'brien|--timeout|2500ms|sh|-c|cd 2>/dev/null || cd /; rsync --server ")


@needs_rsync
@pytest.mark.needs_daemon
def test_a_folder_through_pyinfra(real: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation itself, with a stranger's bytes and names, and a second time for what changed and what went."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    content = bytes(range(256)) * 5000
    (tree / "sub/binary").write_bytes(content)
    (tree / "a 'b' $c").write_text("x")
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o750)
    environment: dict[str, Any] = {
        "PATH": f"{real.ctl.parent}:{os.environ['PATH']}",
        "ORBD_SOCKET": str(real.socket),
        "ORBD_AUTOSTART": "0",
    }
    target = Target(environment, lambda command: real.inside("web", "sh", "-c", command), tmp_path)
    target.pyinfra("-v", "@orbstack/web", "files.rsync", f"{tree}/", "rsynced")
    assert target.bytes_of("rsynced/sub/binary") == content
    assert target.holds("""test -f "rsynced/a 'b' \\$c" """)
    assert target.inside("stat -c %a rsynced/run.sh").strip() == "750"
    (tree / "sub/binary").write_bytes(b"short")
    (tree / "a 'b' $c").unlink()
    target.pyinfra("-v", "@orbstack/web", "files.rsync", f"{tree}/", "rsynced")
    assert target.bytes_of("rsynced/sub/binary") == b"short"
    assert target.inside("ls rsynced").split() == ["run.sh", "sub"]
    said = target.pyinfra("@orbstack/web", "files.rsync", f"{tree}/", "none/there/x", code=1)
    assert "rsync ended with 11: " in said
