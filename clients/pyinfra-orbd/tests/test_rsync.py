"""``files.rsync``: rsync's protocol through a command in the machine."""

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


def test_missing_local_program_is_named(host: Host, no_ctl: Path) -> None:
    with pytest.raises(NotImplementedError, match="needs `rsync`, which is not on PATH"):
        host.check_can_rsync()
    (no_ctl / "rsync").touch(0o755)
    with pytest.raises(NotImplementedError, match="cannot run: orbd-ctl not found"):
        host.check_can_rsync()
    (no_ctl / "orbd-ctl").touch(0o755)
    host.check_can_rsync()


@pytest.mark.parametrize("name", ["_su_user", "_doas", "_sudo_password"])
def test_unsupported_ways_to_change_the_user_are_refused(host: Host, name: str) -> None:
    """Instead of running as the wrong user."""
    with pytest.raises(OSError, match=f"only _sudo and _sudo_user, not {name}"):
        host.rsync("a", "b", ["-a"], **{name: "x"})


def test_command_line_quotes_sources_flags_and_sudo() -> None:
    """A relative source with a colon must not be parsed as a host."""
    words = _rsync.command_line("web", "a:b/", "/srv/x", ["-ax", "--exclude '*.o'"], {"_sudo": True, "_sudo_user": "some one"})
    assert words[:4] == ["rsync", "-ax", "--exclude", "*.o"]
    assert words[-5:] == ["--rsync-path", "sudo -H -n -u 'some one' rsync", "--", "./a:b/", "web:/srv/x"]


@needs_rsync
def test_rsync_passes_machine_user_timeout_and_command_to_orbd_ctl(
    make_host: MakeHost, machines: ShellMachines, short_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the error has the stderr of ``orbd-ctl``."""
    fake_ctl(short_folder, f"printf '%s|' \"$@\" >{short_folder}/words; echo no such machine >&2; exit 4", monkeypatch)
    host = make_host(orbstack_user="o'brien")
    with pytest.raises(OSError, match=r"rsync exited with \d+: no such machine"):
        host.rsync(str(tmp_path), "/srv/a", ["-a"], _timeout=2.5)
    text = (short_folder / "words").read_text()
    assert text.startswith("run|-m|web|-u|o'brien|--timeout|2500ms|sh|-c|cd 2>/dev/null || cd /; rsync --server ")


@needs_rsync
@pytest.mark.needs_daemon
def test_rsync_copies_a_directory_and_updates_it(real: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With unusual names and bytes."""
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
    assert "rsync exited with 11: " in said
