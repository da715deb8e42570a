"""What can go wrong between a caller and its machines.

::

    OrbdError                       an OSError
    ├── DaemonUnavailable           a ConnectionError
    │   ├── DaemonNotRunning        nobody listens on the socket, and nobody could be started
    │   └── DaemonGone              the connection broke before the answer was complete
    ├── ProtocolViolation           the daemon said what this protocol does not know
    ├── CtlFailed                   orbd-ctl, which opens files for us, could not be run or gave no reason
    └── RequestFailed               the daemon answered with an error: one class for each kind
        ├── InvalidParams           invalid_params, invalid_request, parse_error
        ├── MethodNotFound          method_not_found
        ├── InternalError           internal
        ├── Refused                 refused before acceptance; later it may be taken
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
            └── OrbctlUnhealthy          orbctl_unhealthy

All are ``OSError`` because that is what PyInfra contains to the host it happened on; anything else ends the whole deploy with a
traceback. ``QueueTimeout`` is no ``TimeoutError``: PyInfra reports every ``TimeoutError`` as "timed out after ``_timeout``" and
drops the message, which here names what was in the way.
"""

from __future__ import annotations

# Written out rather than imported: `typing` would be a third of what importing the client costs.
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
    """Base of everything that this package raises on purpose."""

    def __init__(self, message: str) -> None:
        """Keeps ``message`` as the only argument; ``OSError`` would read two as errno and text."""
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """Returns the message."""
        return self.message


class DaemonUnavailable(OrbdError, ConnectionError):
    """The daemon cannot be talked to."""


class DaemonNotRunning(DaemonUnavailable):
    """Nobody listens on the socket, and nobody could be started."""


class DaemonGone(DaemonUnavailable):
    """The connection broke before the answer was complete."""


class ProtocolViolation(OrbdError):
    """The daemon said what this protocol does not know."""


class CtlFailed(OrbdError):
    """``orbd-ctl``, which opens files for us, could not be run, or failed without giving a reason that programs can read."""


class RequestFailed(OrbdError):
    """The daemon answered with an error.

    ``code`` and ``kind`` are stable; ``data`` is everything that the daemon told programs, as it came.
    """

    def __init__(self, message: str, *, code: int = 0, kind: str = "", data: dict[str, Any] | None = None) -> None:
        """Keeps the parts of the error object."""
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.data: dict[str, Any] = data or {}

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without anybody mending anything."""
        return bool(self.data.get("retryable", False))

    @property
    def job_id(self) -> int | None:
        """The job, where there was one."""
        return self.data.get("job_id")

    @property
    def machine(self) -> str | None:
        """The machine, where it is known."""
        return self.data.get("machine")

    @property
    def machine_state(self) -> str | None:
        """State of the machine that did not allow the call."""
        return self.data.get("machine_state")

    @property
    def stderr_tail(self) -> str | None:
        """End of what ``orbctl`` wrote to stderr."""
        return self.data.get("stderr_tail")


class InvalidParams(RequestFailed):
    """A parameter is missing, unknown or out of range; ``data["field"]`` says which."""


class MethodNotFound(RequestFailed):
    """The daemon has no such method."""


class InternalError(RequestFailed):
    """The daemon's own fault; ``data["incident"]`` finds the line in its log."""


class Refused(RequestFailed):
    """Refused before acceptance; later it may be taken."""


class QueueFull(Refused):
    """Too many jobs wait; ``data["retry_after_ms"]`` says when to come back."""


class TooManyConnections(Refused):
    """As many connections are open as may be; ``data["retry_after_ms"]`` says when to come back."""


class Overloaded(Refused):
    """Requests in flight and unread answers hold as many bytes as they may; ``data["retry_after_ms"]`` says when to come back."""


class Draining(Refused):
    """New work is refused."""


class ProtocolMismatch(RequestFailed):
    """Client and daemon speak different protocols."""


class ConfigInvalid(RequestFailed):
    """The daemon's own configuration is not valid; the message says what and where, and nothing changed."""


class StoreUnavailable(RequestFailed):
    """The store of the metrics cannot be used for now; everything else works."""


class JournalUnavailable(RequestFailed):
    """The journal cannot be written, so a detached change was refused; everything else works."""


class MachineError(RequestFailed):
    """The machine does not allow it."""


class MachineNotFound(MachineError):
    """OrbStack knows no such machine."""


class MachineExists(MachineError):
    """The name is taken."""


class MachineWrongState(MachineError):
    """The machine is in a state in which this cannot be done."""


class JobError(RequestFailed):
    """The job did not come to a regular end."""


class JobNotFound(JobError):
    """Unknown, or no longer kept."""


class JobCancelled(JobError):
    """Somebody cancelled the job; ``data["phase"]`` says where it was."""


class QueueTimeout(JobError):
    """It waited too long for its place; ``data["waiting_for"]`` says what was in the way."""


class RunTimeout(JobError, TimeoutError):
    """It ran too long and was stopped."""


class JobInterrupted(JobError):
    """The daemon that ran it died."""


class OutcomeUnknown(JobError):
    """A change was cut short and may have taken effect; ``data["observed"]`` says what was seen."""


class OrbctlError(RequestFailed):
    """``orbctl`` itself is in trouble."""


class OrbctlUnavailable(OrbctlError):
    """``orbctl`` was not found, is not executable, or is of a version that is not supported."""


class OrbctlFailed(OrbctlError):
    """``orbctl`` failed."""


class OrbctlKilled(OrbctlError):
    """A signal ended ``orbctl``."""


class OrbctlUnreadable(OrbctlError):
    """``orbctl`` succeeded but said something that the daemon does not know."""


class OrbctlUnhealthy(OrbctlError):
    """``orbctl`` itself is sick, so nothing was begun; ``data["retry_after_ms"]`` says when to come back. Force passes."""


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

# JSON-RPC's own errors carry no kind where the daemon's framing answers them, before any method is known.
_KIND_BY_CODE = {
    -32700: "parse_error",
    -32600: "invalid_request",
    -32601: "method_not_found",
    -32602: "invalid_params",
    -32603: "internal",
}


def error_from_wire(error: Any) -> RequestFailed:
    """Makes the exception for a JSON-RPC error object; a kind that is not known yet becomes a plain ``RequestFailed``."""
    if not isinstance(error, dict):
        return RequestFailed(f"the daemon answered with an error of unknown form: {error!r}")
    code = error.get("code", 0)
    data = error.get("data")
    if not isinstance(data, dict):
        data = {}
    kind = data.get("kind") or _KIND_BY_CODE.get(code, "")
    cls = _BY_KIND.get(kind, RequestFailed)
    if cls is RunTimeout and data.get("phase") == "queued":
        cls = QueueTimeout
    return cls(str(error.get("message", "")), code=code, kind=kind, data=data)
