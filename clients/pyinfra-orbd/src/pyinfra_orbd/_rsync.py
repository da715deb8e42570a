"""rsync between this computer and a machine, with the daemon where rsync expects ssh.

rsync starts a "remote shell" with a host and words to run there, and speaks its protocol over that child's input and output. Here
the child is ``orbd-ctl run``, so the machine's end is a job like any other: queued, recorded, and right for isolated machines.

::

    PyInfra ──posix_spawn── rsync ──its remote shell── orbd-ctl run ── orbd ── orbctl run ── rsync --server
"""

from __future__ import annotations

import os
import shlex
from shutil import which
from typing import TYPE_CHECKING, Any

from orbd._ctl import LOST, PROGRAM, Spawned

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The host comes as the first word after the script, so as its `$0`. What follows is joined and read by a shell over there, as ssh
# does it: rsync quotes for that. `run` starts in the folder that corresponds to ours; rsync expects the home. User and time
# limit come through the environment, where nothing has to be quoted.
REMOTE_SHELL = (
    "sh -c '"
    f'exec {PROGRAM} run -m "$0" ${{ORBD_RSYNC_USER:+-u "$ORBD_RSYNC_USER"}} '
    '${ORBD_RSYNC_TIMEOUT:+--timeout "$ORBD_RSYNC_TIMEOUT"} sh -c "cd 2>/dev/null || cd /; $*"'
    "'"
)

UNSUPPORTED = ("_su_user", "_doas", "_dzdo", "_sudo_password", "_use_sudo_password")
"""Ways to another authority that want input of their own, or that rsync's one word for the other end cannot say."""

SETTLE_MAX = 2.0
"""Seconds that the machine's end has to say why it failed."""


def check() -> None:
    """Raises ``NotImplementedError`` where rsync cannot be, as PyInfra expects it."""
    for program in ("rsync", PROGRAM):
        if which(program) is None:
            raise NotImplementedError(f"files.rsync needs `{program}` on this computer's PATH")


def words(machine: str, src: str, dest: str, flags: Iterable[str], arguments: Mapping[str, Any]) -> list[str]:
    """Returns the command line; raises ``OSError`` for arguments that rsync cannot obey."""
    refused = [name for name in UNSUPPORTED if arguments.get(name)]
    if refused:
        raise OSError(f"files.rsync takes _sudo and _sudo_user only, not {', '.join(refused)}")
    other_end = "rsync"
    if arguments.get("_sudo"):
        user = arguments.get("_sudo_user")
        other_end = f"sudo -H -n -u {shlex.quote(user)} rsync" if user else "sudo -H -n rsync"
    source = os.path.expanduser(src)
    if not os.path.isabs(source):
        # A colon in a relative name would make a host of what stands before it.
        source = os.path.join(".", source)
    given = [word for flag in flags for word in shlex.split(flag)]
    return ["rsync", *given, "--rsh", REMOTE_SHELL, "--rsync-path", other_end, "--", source, f"{machine}:{dest}"]


def run(command: list[str], *, socket: str, user: str | None, timeout: float | None) -> str:
    """Runs rsync and returns what it said; raises ``OSError`` with its words when it fails."""
    environment = {"ORBD_SOCKET": socket, "ORBD_RSYNC_USER": user or ""}
    environment["ORBD_RSYNC_TIMEOUT"] = f"{max(1, int(timeout * 1000))}ms" if timeout else ""
    spawned = Spawned(command, **environment)
    try:
        code = spawned.wait_or_interrupt()
        if code != 0:
            # rsync leaves as soon as it has failed; the reason comes from the machine, through a child that it does not wait for.
            spawned.settle(SETTLE_MAX)
            ending = "ended, and nobody can say how" if code == LOST else f"ended with {code}"
            # It also hangs up on the machine's end, so that the reason may be on its way still and never arrive.
            raise OSError(f"rsync {ending}: {spawned.complaint() or 'it gave no reason; rsync(1) lists its exit codes'}")
        return spawned.output()
    finally:
        spawned.close()
