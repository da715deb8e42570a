"""Runs ``orbd-ctl`` for what the daemon cannot do: start itself, and open files on the Mac.

The daemon opens no file of the user, because a launchd agent may lack access that the user has. Instead ``orbd-ctl`` acquires a
lease, and runs the real ``orbctl`` as the user while it holds it. That ``orbctl`` reads and writes archives and other files.

Children are created with ``posix_spawn`` only, because forking in Python is broken under gevent on macOS. A child has its own
process group, so a signal from the terminal does not reach it directly.
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
from ._find_ctl import PROGRAM, find_ctl
from ._gevent import WAIT_INTERVAL, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PAUSE_MAX = 0.05
"""Longest pause between two checks whether a child has exited, in seconds."""

INTERRUPT_GRACE = 10.0
"""Seconds that an interrupted child gets to cancel its work and exit; after that the caller stops waiting for it."""

EXIT_UNKNOWN = 1 << 16
"""Returned instead of an exit code that is unknown: the child and its shell were killed, and gevent reaped them."""

MACHINE_EXISTS = 2002
"""JSON-RPC error code of ``machine_exists``."""

USAGE_ERROR = 2
"""Exit code of ``orbd-ctl`` for an invalid command line."""

NAME_TAKEN = re.compile(r"machine already exists: '([^']*)'$")
"""Message of ``orbctl`` 2.2.3 for a name that is in use. Only the client sees the stderr of an ``orbctl`` that it runs."""

_decode = JSONDecoder().decode


# Once the process has used gevent's `subprocess` (PyInfra does for `@local`), gevent's loop reaps every child, and its exit
# status is lost. A gevent child watcher would reap children in every program that uses this client, including children of other
# code. So a shell runs the program and writes its exit code to file descriptor 3.
WRAPPER = '"$@" 3>&-; code=$?; echo $code >&3; exit $code'


class ChildProcess:
    """A running program with empty stdin, whose stdout and stderr go to temporary files."""

    def __init__(self, args: Sequence[str], **environment: str) -> None:
        """Starts the program with additional ``environment`` variables; raises ``OSError`` if that fails."""
        program = which(args[0])
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), args[0])
        self._code = TemporaryFile()  # noqa: SIM115
        self._out = TemporaryFile()  # noqa: SIM115
        self._err = TemporaryFile()  # noqa: SIM115
        if self._code.fileno() == 3:
            # Duplicating a descriptor onto itself does not clear close-on-exec on every system.
            os.set_inheritable(3, True)
        # Python ignores these signals. A child that inherits that does not notice when the reader of its output has gone.
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]
        try:
            self.pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", WRAPPER, "sh", program, *args[1:]],
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
        """Deletes the captured output."""
        self._code.close()
        self._out.close()
        self._err.close()

    def wait_or_interrupt(self, on_wait: Callable[[], None] | None = None) -> int:
        """Waits for the program to exit; an exception in the caller (``gevent.Timeout``, Ctrl-C) interrupts the program too.

        Meanwhile calls ``on_wait`` every :data:`~orbd._gevent.WAIT_INTERVAL` seconds.
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
        """Returns the exit code in the shell's form, or ``EXIT_UNKNOWN``; None if the program still runs after ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = 0.002
        while deadline is None or time.monotonic() < deadline:
            try:
                # Never a blocking wait: gevent's `waitpid` is not cooperative for children that gevent did not start.
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except OSError as error:
                if error.errno == errno.ECHILD:
                    written = self._read(self._code).strip()
                    return int(written) if written.isdigit() else EXIT_UNKNOWN
                raise
            if ended:
                return os.waitstatus_to_exitcode(status)
            sleep(pause)
            pause = min(pause * 1.5, PAUSE_MAX)
        return None

    def wait_for_group(self, seconds: float) -> None:
        """Waits up to ``seconds`` for the rest of the process group, whose stderr may still explain a failure."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            sleep(0.01)

    def interrupt(self) -> None:
        """Sends SIGINT to the process group, like Ctrl-C: ``orbd-ctl`` then cancels a waiting job or interrupts ``orbctl``."""
        try:
            os.killpg(self.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError):
            # The group has exited. macOS reports EPERM for a group of zombies.
            return
        self.wait(INTERRUPT_GRACE)

    def json_answer(self) -> Any:
        """Returns the last JSON object on stdout, which ``--json`` prints after any output of ``orbctl``; None without one."""
        for line in reversed(self.stdout().splitlines()):
            if line.startswith("{"):
                try:
                    return _decode(line)
                except ValueError:
                    return None
        return None

    def stdout(self) -> str:
        """Returns the captured stdout."""
        return self._read(self._out)

    def stderr(self) -> str:
        """Returns the captured stderr without surrounding whitespace."""
        return self._read(self._err).strip()

    @staticmethod
    def _read(file: Any) -> str:
        file.seek(0)
        return str(file.read().decode("utf-8", "replace"))


def spawn_ctl(socket: str, args: Sequence[str]) -> ChildProcess:
    """Starts ``orbd-ctl --json`` for the daemon at ``socket``; raises ``CtlFailed`` if it is not found."""
    return ChildProcess([find_ctl(), "--json", "--socket", socket, *args])


def start_daemon(socket: str, seconds: float) -> str | None:
    """Starts the daemon and waits until it answers; returns an error message, or None if it worked."""
    try:
        # `--on-demand` makes orbd-ctl respect a configuration that turns starting on demand off.
        child = spawn_ctl(socket, ["daemon", "start", "--on-demand"])
    except errors.CtlFailed as error:
        return str(error)
    except OSError as error:
        return f"cannot run {PROGRAM}: {error.strerror}"
    try:
        code = child.wait(seconds)
        if code in (0, EXIT_UNKNOWN):
            # With EXIT_UNKNOWN, the next attempt to connect shows whether it worked.
            return None
        ending = f"did not finish within {seconds:.0f} s" if code is None else f"exited with {code}"
        return f"`{PROGRAM} daemon start` {ending}: {child.stderr()}"
    finally:
        child.close()


def run(socket: str, args: Sequence[str], on_wait: Callable[[int], None] | None = None) -> Any:
    """Runs ``orbd-ctl`` with ``args`` and returns its JSON answer; None if it succeeded without one.

    An exception in the caller (``gevent.Timeout``, Ctrl-C) interrupts ``orbd-ctl`` too. Until it exits, ``on_wait`` is called
    with its process group, as in :meth:`ChildProcess.wait_or_interrupt`.
    """
    verb = f"`{PROGRAM} {args[0]}`"
    try:
        child = spawn_ctl(socket, args)
    except errors.CtlFailed as error:
        raise errors.CtlFailed(f"cannot open the files for {args[0]}: {error}") from None
    except OSError as error:
        raise errors.CtlFailed(f"cannot run {PROGRAM}, which opens the files for {args[0]}: {error.strerror}") from error
    try:
        code = child.wait_or_interrupt(None if on_wait is None else lambda: on_wait(child.pid))
        answer = child.json_answer()
        failure = _failure(answer)
        if failure is not None:
            raise _exception(failure, child.stderr())
        if code == USAGE_ERROR and answer is None:
            raise errors.CtlFailed(f"{PROGRAM} rejected its arguments; it may be older than this package: {child.stderr()}")
        if code == EXIT_UNKNOWN and answer is None:
            raise errors.CtlFailed(f"could not determine the exit status of {verb}: {child.stderr()}")
        if code not in (0, EXIT_UNKNOWN):
            raise errors.CtlFailed(f"{verb} exited with {code}: {child.stderr()}")
        return answer
    finally:
        child.close()


def _failure(answer: Any) -> dict[str, Any] | None:
    """Returns the error object of an answer, or of the outcome of the job in it; None if there is none."""
    if not isinstance(answer, dict):
        return None
    if "error" in answer:
        return answer["error"]  # type: ignore[no-any-return]
    job = answer.get("job")
    outcome = job.get("outcome") if isinstance(job, dict) else None
    return outcome.get("error") if isinstance(outcome, dict) else None


def _exception(error: dict[str, Any], stderr: str) -> errors.OrbdError:
    data = error.get("data")
    kind = data.get("kind") if isinstance(data, dict) else None
    message = str(error.get("message", ""))
    if kind in ("daemon_unreachable", "daemon_not_started"):
        return errors.DaemonNotRunning(message)
    if kind == "connection_lost":
        return errors.DaemonGone(message)
    if kind == "orbctl_failed" and isinstance(data, dict) and not data.get("stderr_tail") and stderr:
        # The daemon knows the exit code of `orbctl`, but its stderr came to this process.
        code = data.get("exit_code")
        last_line = stderr.splitlines()[-1]
        taken = NAME_TAKEN.search(last_line)
        if taken is not None:
            # The same error as from calls in which the daemon runs `orbctl`.
            data = {**data, "kind": "machine_exists", "machine": taken[1], "stderr_tail": stderr}
            message = f"machine {taken[1]} already exists"
            return errors.MachineExists(message, code=MACHINE_EXISTS, kind="machine_exists", data=data)
        message = f"orbctl failed with exit code {code}: {last_line}"
        error = {**error, "message": message, "data": {**data, "stderr_tail": stderr}}
    return errors.error_from_wire(error)
