"""Calls of ``orbd-ctl``, for what only a process of the user's may do: start the daemon, and open files of the Mac.

The daemon opens no file of the user's: as a launchd agent it may not read where the user may. So archives and the like are read
and written by the real ``orbctl``, which ``orbd-ctl`` runs itself while it holds a place in the queue.

Never forks in Python, which is broken under gevent on macOS: ``posix_spawn`` alone makes the child. The child is in a process
group of its own, so that what a terminal sends to ours does not reach it half-way.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from json import JSONDecoder
from shutil import which
from tempfile import TemporaryFile

from . import errors
from ._transport import WAIT_INTERVAL, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PROGRAM = "orbd-ctl"

PAUSE_MAX = 0.05
"""Seconds between two looks at a child that takes long."""

INTERRUPT_GRACE = 10.0
"""Seconds that a child has to withdraw after its caller was interrupted; then it is left to itself."""

LOST = 1 << 16
"""Stands for an exit code where the child was killed with its shell and collected by somebody else: nobody knows how it ended."""

EXISTS = 2002
"""Code of ``machine_exists``."""

USAGE = 2
"""Exit code for a command line that is wrong."""

TAKEN = re.compile(r"machine already exists: '([^']*)'$")
"""How ``orbctl`` says that a name is taken (2.2.3): the daemon reads it by itself, but what our own call says comes to us."""

_decode = JSONDecoder().decode


# Once anybody in the process has used gevent's `subprocess` (PyInfra does for `@local`), gevent's loop collects every child as it
# ends, and how that was is lost. Watching for it would make gevent do so in programs that did not ask for it, and take the
# children of others away from them. So a shell around the program writes it down.
WRAPPER = '"$@" 3>&-; code=$?; echo $code >&3; exit $code'


class Spawned:
    """A program under way that is given nothing to read, and what it writes."""

    def __init__(self, words: Sequence[str], **environment: str) -> None:
        """Starts it, with more in its environment than there is in ours; raises ``OSError`` as it comes where it cannot."""
        program = which(words[0])
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), words[0])
        self._code = TemporaryFile()  # noqa: SIM115
        self._out = TemporaryFile()  # noqa: SIM115
        self._err = TemporaryFile()  # noqa: SIM115
        if self._code.fileno() == 3:
            # Not every system keeps a descriptor that is duplicated onto itself open.
            os.set_inheritable(3, True)
        # Python's own dispositions are not the child's: one that ignores SIGPIPE never notices that its reader is gone.
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]
        try:
            self.pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", WRAPPER, "sh", program, *words[1:]],
                {**os.environ, **environment},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._out.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, self._err.fileno(), 2),
                    (os.POSIX_SPAWN_DUP2, self._code.fileno(), 3),
                ],
                setpgroup=0,
                setsigdef=defaults,
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Forgets what it said."""
        self._code.close()
        self._out.close()
        self._err.close()

    def wait_or_interrupt(self, on_wait: Callable[[], None] | None = None) -> int:
        """Waits for its end; a caller that is interrupted while it waits (``gevent.Timeout``, Ctrl-C) interrupts it too.

        Until the end, calls ``on_wait`` every :data:`~orbd._transport.WAIT_INTERVAL` seconds.
        """
        try:
            while (code := self.wait(WAIT_INTERVAL)) is None:
                if on_wait is not None:
                    on_wait()
        except BaseException:
            self.interrupt()
            raise
        return code

    def wait(self, seconds: float | None) -> int | None:
        """Returns its exit code, as a shell says it, or ``LOST``; None where it has not ended after so long."""
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = 0.002
        while deadline is None or time.monotonic() < deadline:
            try:
                # Never a blocking wait: gevent's own is not cooperative for children that it did not make.
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except OSError as error:
                if error.errno == errno.ECHILD:
                    written = self._said(self._code).strip()
                    return int(written) if written.isdigit() else LOST
                raise
            if ended:
                return os.waitstatus_to_exitcode(status)
            sleep(pause)
            pause = min(pause * 1.5, PAUSE_MAX)
        return None

    def settle(self, seconds: float) -> None:
        """Waits so long for the children that it left behind, which may still be saying what went wrong."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            sleep(0.01)

    def interrupt(self) -> None:
        """Does what Ctrl-C does in a terminal: what waits is withdrawn, ``orbctl`` is told."""
        try:
            os.killpg(self.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError):
            # It is gone; macOS says it the second way of a group that only waits to be collected.
            return
        self.wait(INTERRUPT_GRACE)

    def answer(self) -> Any:
        """Returns the object that ``--json`` wrote last, after whatever ``orbctl`` said there; None where there is none."""
        for line in reversed(self.output().splitlines()):
            if line.startswith("{"):
                try:
                    return _decode(line)
                except ValueError:
                    return None
        return None

    def output(self) -> str:
        """Returns what it said on stdout."""
        return self._said(self._out)

    def complaint(self) -> str:
        """Returns what it said on stderr."""
        return self._said(self._err).strip()

    @staticmethod
    def _said(file: Any) -> str:
        file.seek(0)
        return str(file.read().decode("utf-8", "replace"))


def call(socket: str, words: Sequence[str]) -> Spawned:
    """Starts ``orbd-ctl``."""
    return Spawned([PROGRAM, "--json", "--socket", socket, *words])


def start_daemon(socket: str, seconds: float) -> str | None:
    """Starts the daemon and waits until it answers; returns what went wrong, or None."""
    try:
        # It reads the configuration, which may say that nobody is to start it on demand.
        spawned = call(socket, ["daemon", "start", "--on-demand"])
    except OSError as error:
        return f"{PROGRAM}: {error.strerror}"
    try:
        code = spawned.wait(seconds)
        if code in (0, LOST):
            # Whether it worked shows at the next attempt to connect.
            return None
        ending = "did not end in time" if code is None else f"ended with {code}"
        return f"`{PROGRAM} daemon start` {ending}: {spawned.complaint()}"
    finally:
        spawned.close()


def carry_out(socket: str, words: Sequence[str], on_wait: Callable[[int], None] | None = None) -> Any:
    """Has ``words`` carried out and returns the answer as the wire has it; None where it was done and nobody could say more.

    A caller that is interrupted while it waits (``gevent.Timeout``, Ctrl-C) interrupts the call too. Meanwhile ``on_wait`` is
    called with the process group of ``orbd-ctl``, as :meth:`Spawned.wait_or_interrupt` says.
    """
    verb = f"`{PROGRAM} {words[0]}`"
    try:
        spawned = call(socket, words)
    except OSError as error:
        raise errors.CtlFailed(f"{PROGRAM}, which opens files for {words[0]}, cannot be run: {error.strerror}") from error
    try:
        code = spawned.wait_or_interrupt(None if on_wait is None else lambda: on_wait(spawned.pid))
        answer = spawned.answer()
        failure = _failure(answer)
        if failure is not None:
            raise _exception(failure, spawned.complaint())
        if code == USAGE and answer is None:
            raise errors.CtlFailed(f"{PROGRAM} does not know what is asked of it; is it older? {spawned.complaint()}")
        if code == LOST and answer is None:
            raise errors.CtlFailed(f"{verb} ended, and nobody can say how: {spawned.complaint()}")
        if code not in (0, LOST):
            raise errors.CtlFailed(f"{verb} ended with {code}: {spawned.complaint()}")
        return answer
    finally:
        spawned.close()


def _failure(answer: Any) -> dict[str, Any] | None:
    """Returns the error object in an answer: the call's own, or that of the job that it tells the end of."""
    if not isinstance(answer, dict):
        return None
    if "error" in answer:
        return answer["error"]  # type: ignore[no-any-return]
    job = answer.get("job")
    outcome = job.get("outcome") if isinstance(job, dict) else None
    return outcome.get("error") if isinstance(outcome, dict) else None


def _exception(error: dict[str, Any], complaint: str) -> errors.OrbdError:
    data = error.get("data")
    kind = data.get("kind") if isinstance(data, dict) else None
    message = str(error.get("message", ""))
    if kind in ("daemon_unreachable", "daemon_not_started"):
        return errors.DaemonNotRunning(message)
    if kind == "connection_lost":
        return errors.DaemonGone(message)
    if kind == "orbctl_failed" and isinstance(data, dict) and not data.get("stderr_tail") and complaint:
        # The daemon was told how `orbctl` ended; what it said came to us.
        code = data.get("exit_code")
        said = complaint.splitlines()[-1]
        taken = TAKEN.search(said)
        if taken is not None:
            # So that callers are told the same as by calls in which no file of theirs is read.
            told = {**data, "kind": "machine_exists", "machine": taken[1], "stderr_tail": complaint}
            return errors.MachineExists(f"machine {taken[1]} already exists", code=EXISTS, kind="machine_exists", data=told)
        error = {**error, "message": f"orbctl failed with exit code {code}: {said}", "data": {**data, "stderr_tail": complaint}}
    return errors.error_from_wire(error)
