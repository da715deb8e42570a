"""Exceptions of the client.

::

    OrbdError                       an OSError
    ├── DaemonUnavailable           a ConnectionError
    │   ├── DaemonNotRunning        no daemon listens on the socket, and none could be started
    │   └── DaemonGone              the connection broke before the answer was complete
    ├── ProtocolViolation           a message of the daemon does not follow the protocol
    ├── CtlFailed                   orbd-ctl, which opens local files, could not be run or failed without a JSON error
    └── RequestFailed               the daemon answered with an error; one class for each kind
        ├── InvalidParams           invalid_params, invalid_request, parse_error
        ├── MethodNotFound          method_not_found
        ├── InternalError           internal
        ├── Refused                 refused before acceptance; a later attempt may succeed
        │   ├── QueueFull           queue_full
        │   ├── TooManyConnections  too_many_connections
        │   ├── Overloaded          overloaded
        │   └── Draining            draining
        ├── ProtocolMismatch        protocol_mismatch
        ├── ConfigInvalid           config_invalid
        ├── StoreUnavailable        store_unavailable
        ├── JournalUnavailable      journal_unavailable
        ├── MachineError
        │   ├── MachineNotFound     machine_not_found
        │   ├── MachineExists       machine_exists
        │   └── MachineWrongState   machine_wrong_state
        ├── JobError
        │   ├── JobNotFound         job_not_found
        │   ├── JobCancelled        job_cancelled
        │   ├── QueueTimeout        deadline_exceeded while queued
        │   ├── RunTimeout          deadline_exceeded while running; a TimeoutError
        │   ├── JobInterrupted      job_interrupted
        │   └── OutcomeUnknown      outcome_unknown
        └── OrbctlError
            ├── OrbctlUnavailable   orbctl_unavailable
            ├── OrbctlFailed        orbctl_failed
            ├── OrbctlKilled        orbctl_killed
            ├── OrbctlUnreadable    orbctl_output_unreadable
            └── OrbctlUnhealthy     orbctl_unhealthy

All derive from ``OSError``, because PyInfra limits an ``OSError`` to the host on which it occurred; any other exception ends the
whole deploy with a traceback. ``QueueTimeout`` is not a ``TimeoutError``: PyInfra reports every ``TimeoutError`` as "timed out
after ``_timeout``" and drops the message, which here names the job or limit that the call waited for.
"""

from __future__ import annotations

# Not imported from `typing`, which would take a third of the client's import time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ConfigInvalid",
    "CtlFailed",
    "DaemonGone",
    "DaemonNotRunning",
    "DaemonUnavailable",
    "Draining",
    "InternalError",
    "InvalidParams",
    "JobCancelled",
    "JobError",
    "JobInterrupted",
    "JobNotFound",
    "JournalUnavailable",
    "MachineError",
    "MachineExists",
    "MachineNotFound",
    "MachineWrongState",
    "MethodNotFound",
    "OrbctlError",
    "OrbctlFailed",
    "OrbctlKilled",
    "OrbctlUnhealthy",
    "OrbctlUnavailable",
    "OrbctlUnreadable",
    "OrbdError",
    "OutcomeUnknown",
    "ProtocolMismatch",
    "ProtocolViolation",
    "QueueFull",
    "TooManyConnections",
    "Overloaded",
    "QueueTimeout",
    "Refused",
    "RequestFailed",
    "RunTimeout",
    "StoreUnavailable",
    "error_from_wire",
]


class OrbdError(OSError):
    """Base class of all exceptions of this package."""

    def __init__(self, message: str) -> None:
        """Passes only ``message`` on, because ``OSError`` takes two arguments as errno and text."""
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """Returns the message."""
        return self.message


class DaemonUnavailable(OrbdError, ConnectionError):
    """The daemon cannot be reached."""


class DaemonNotRunning(DaemonUnavailable):
    """No daemon listens on the socket, and none could be started."""


class DaemonGone(DaemonUnavailable):
    """The connection broke before the answer was complete."""


class ProtocolViolation(OrbdError):
    """A message of the daemon does not follow the protocol."""


class CtlFailed(OrbdError):
    """``orbd-ctl``, which opens local files, could not be run, or failed without a JSON error."""


class RequestFailed(OrbdError):
    """The daemon answered with an error.

    ``code`` and ``kind`` are stable. ``data`` is the error object's ``data``, unchanged.
    """

    def __init__(self, message: str, *, code: int = 0, kind: str = "", data: dict[str, Any] | None = None) -> None:
        """Stores the parts of a JSON-RPC error object."""
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.data: dict[str, Any] = data or {}

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without a fix by the user."""
        return bool(self.data.get("retryable", False))

    @property
    def job_id(self) -> int | None:
        """Id of the job; None if the call failed before a job existed."""
        return self.data.get("job_id")

    @property
    def machine(self) -> str | None:
        """Name of the machine; None if the daemon does not know it."""
        return self.data.get("machine")

    @property
    def machine_state(self) -> str | None:
        """State of the machine that does not allow the operation; None for other errors."""
        return self.data.get("machine_state")

    @property
    def stderr_tail(self) -> str | None:
        """Last part of the stderr of ``orbctl``; None if ``orbctl`` did not run."""
        return self.data.get("stderr_tail")


class InvalidParams(RequestFailed):
    """A parameter is missing, unknown or out of range; ``data["field"]`` is its name."""


class MethodNotFound(RequestFailed):
    """The daemon has no such method."""


class InternalError(RequestFailed):
    """A bug in the daemon; ``data["incident"]`` identifies the line in its log."""


class Refused(RequestFailed):
    """The request was refused before acceptance; a later attempt may succeed."""


class QueueFull(Refused):
    """The queue is full; retry after ``data["retry_after_ms"]`` milliseconds."""


class TooManyConnections(Refused):
    """The limit on open connections has been reached; retry after ``data["retry_after_ms"]`` milliseconds."""


class Overloaded(Refused):
    """Requests in flight and unread answers reached their memory limit; retry after ``data["retry_after_ms"]`` milliseconds."""


class Draining(Refused):
    """The queue is draining and accepts no new work."""


class ProtocolMismatch(RequestFailed):
    """Client and daemon speak different protocols."""


class ConfigInvalid(RequestFailed):
    """The daemon's own configuration is invalid. The message names the problem and its position; nothing was changed."""


class StoreUnavailable(RequestFailed):
    """The metrics store is unavailable; everything else works."""


class JournalUnavailable(RequestFailed):
    """The journal cannot be written, so a detached change was refused. Everything else works."""


class MachineError(RequestFailed):
    """The operation is not possible on this machine."""


class MachineNotFound(MachineError):
    """OrbStack has no machine with this name or id."""


class MachineExists(MachineError):
    """A machine with this name already exists."""


class MachineWrongState(MachineError):
    """The machine's state does not allow the operation."""


class JobError(RequestFailed):
    """The job did not end regularly."""


class JobNotFound(JobError):
    """The job id is unknown, or the job has expired from the history."""


class JobCancelled(JobError):
    """The job was cancelled; ``data["phase"]`` is its phase at that time."""


class QueueTimeout(JobError):
    """The job reached its queue timeout; ``data["waiting_for"]`` is the job or limit that it waited for."""


class RunTimeout(JobError, TimeoutError):
    """The job reached its run timeout and was stopped."""


class JobInterrupted(JobError):
    """The daemon died while the job ran."""


class OutcomeUnknown(JobError):
    """A change was interrupted and may have taken effect; ``data["observed"]`` is the state that was observed afterwards."""


class OrbctlError(RequestFailed):
    """``orbctl`` could not run, or did not run correctly."""


class OrbctlUnavailable(OrbctlError):
    """``orbctl`` was not found, is not executable, or has an unsupported version."""


class OrbctlFailed(OrbctlError):
    """``orbctl`` exited with an error."""


class OrbctlKilled(OrbctlError):
    """``orbctl`` was killed by a signal."""


class OrbctlUnreadable(OrbctlError):
    """``orbctl`` succeeded, but the daemon could not parse its output."""


class OrbctlUnhealthy(OrbctlError):
    """``orbctl`` is unhealthy, so the operation was not started; retry after ``data["retry_after_ms"]``, or use force."""


_BY_KIND: dict[str, type[RequestFailed]] = {
    "invalid_params": InvalidParams,
    "invalid_request": InvalidParams,
    "parse_error": InvalidParams,
    "method_not_found": MethodNotFound,
    "internal": InternalError,
    "queue_full": QueueFull,
    "too_many_connections": TooManyConnections,
    "overloaded": Overloaded,
    "draining": Draining,
    "protocol_mismatch": ProtocolMismatch,
    "config_invalid": ConfigInvalid,
    "store_unavailable": StoreUnavailable,
    "journal_unavailable": JournalUnavailable,
    "machine_not_found": MachineNotFound,
    "machine_exists": MachineExists,
    "machine_wrong_state": MachineWrongState,
    "job_not_found": JobNotFound,
    "job_cancelled": JobCancelled,
    "deadline_exceeded": RunTimeout,
    "job_interrupted": JobInterrupted,
    "outcome_unknown": OutcomeUnknown,
    "orbctl_unavailable": OrbctlUnavailable,
    "orbctl_failed": OrbctlFailed,
    "orbctl_killed": OrbctlKilled,
    "orbctl_output_unreadable": OrbctlUnreadable,
    "orbctl_unhealthy": OrbctlUnhealthy,
}

# JSON-RPC's own errors have no kind if the daemon's framing layer answers them, before any method is known.
_KIND_BY_CODE = {
    -32700: "parse_error",
    -32600: "invalid_request",
    -32601: "method_not_found",
    -32602: "invalid_params",
    -32603: "internal",
}


def error_from_wire(error: Any) -> RequestFailed:
    """Returns the exception for a JSON-RPC error object; an unknown kind becomes a plain ``RequestFailed``."""
    if not isinstance(error, dict):
        return RequestFailed(f"the daemon answered with a malformed error: {error!r}")
    code = error.get("code", 0)
    data = error.get("data")
    if not isinstance(data, dict):
        data = {}
    kind = data.get("kind") or _KIND_BY_CODE.get(code, "")
    cls = _BY_KIND.get(kind, RequestFailed)
    if cls is RunTimeout and data.get("phase") == "queued":
        cls = QueueTimeout
    return cls(str(error.get("message", "")), code=code, kind=kind, data=data)
