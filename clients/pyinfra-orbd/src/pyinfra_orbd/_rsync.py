"""Runs rsync between this computer and a machine, through the daemon instead of ssh.

rsync starts a "remote shell" with a host and a command, and speaks its protocol over that child's stdin and stdout. Here the
remote shell is ``orbd-ctl run``, so the remote command is an ordinary job: queued, recorded, and possible on isolated machines.

::

    PyInfra ──posix_spawn── rsync ──remote shell── orbd-ctl run ── orbd ── orbctl run ── rsync --server
"""

from __future__ import annotations

import os
import shlex
from shutil import which
from typing import TYPE_CHECKING, Any

from orbd import errors
from orbd._ctl import EXIT_UNKNOWN, ChildProcess
from orbd._find_ctl import VARIABLE, find_ctl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The host is the first arg after the script, so its `$0`. The remaining args are joined and passed to a shell in the machine, as
# ssh does; rsync quotes them for that. `orbd-ctl run` starts in the directory that corresponds to the local one, but rsync
# expects the home. The program's path, user and timeout are passed in the environment, which needs no quoting.
REMOTE_SHELL = (
    "sh -c '"
    f'exec "${VARIABLE}" run -m "$0" ${{ORBD_RSYNC_USER:+-u "$ORBD_RSYNC_USER"}} '
    '${ORBD_RSYNC_TIMEOUT:+--timeout "$ORBD_RSYNC_TIMEOUT"} sh -c "cd 2>/dev/null || cd /; $*"'
    "'"
)

UNSUPPORTED = ("_su_user", "_doas", "_dzdo", "_sudo_password", "_use_sudo_password")
"""Arguments that change the user but need their own input, or that ``--rsync-path`` cannot express."""

DRAIN_TIMEOUT = 2.0
"""Seconds to wait for the error output of the remote end after rsync has failed."""


def check() -> None:
    """Raises ``NotImplementedError``, as PyInfra expects, if a required program is missing."""
    if which("rsync") is None:
        raise NotImplementedError("files.rsync needs `rsync`, which is not on PATH")
    try:
        find_ctl()
    except errors.CtlFailed as error:
        raise NotImplementedError(f"files.rsync cannot run: {error}") from None


def command_line(machine: str, src: str, dest: str, flags: Iterable[str], arguments: Mapping[str, Any]) -> list[str]:
    """Returns the command line of rsync; raises ``OSError`` for unsupported arguments."""
    refused = [name for name in UNSUPPORTED if arguments.get(name)]
    if refused:
        raise OSError(f"files.rsync supports only _sudo and _sudo_user, not {', '.join(refused)}")
    remote_rsync = "rsync"
    if arguments.get("_sudo"):
        user = arguments.get("_sudo_user")
        remote_rsync = f"sudo -H -n -u {shlex.quote(user)} rsync" if user else "sudo -H -n rsync"
    source = os.path.expanduser(src)
    if not os.path.isabs(source):
        # rsync takes the part of a relative name before a colon for a host.
        source = os.path.join(".", source)
    given = [word for flag in flags for word in shlex.split(flag)]
    return ["rsync", *given, "--rsh", REMOTE_SHELL, "--rsync-path", remote_rsync, "--", source, f"{machine}:{dest}"]


def run(command: list[str], *, socket: str, user: str | None, timeout: float | None) -> str:
    """Runs rsync and returns its output; raises ``OSError`` with its stderr if it fails."""
    environment = {"ORBD_SOCKET": socket, VARIABLE: find_ctl(), "ORBD_RSYNC_USER": user or ""}
    environment["ORBD_RSYNC_TIMEOUT"] = f"{max(1, int(timeout * 1000))}ms" if timeout else ""
    child = ChildProcess(command, **environment)
    try:
        code = child.wait_or_interrupt()
        if code != 0:
            # rsync exits as soon as it has failed, but the reason comes from the machine, through a child that it does not wait
            # for.
            child.wait_for_group(DRAIN_TIMEOUT)
            ending = "ended with unknown exit status" if code == EXIT_UNKNOWN else f"exited with {code}"
            # rsync also closes the connection to the remote end, so the reason may never arrive.
            raise OSError(f"rsync {ending}: {child.stderr() or 'no error output; rsync(1) lists the exit codes'}")
        return child.stdout()
    finally:
        child.close()
