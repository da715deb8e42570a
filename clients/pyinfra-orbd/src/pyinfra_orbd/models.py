"""What the daemon answers, as frozen dataclasses.

Only what goes over the wire stands here, under the names that it has there. Fields that a later daemon adds are ignored; a field
that is missing although the protocol promises it is a :class:`~pyinfra_orbd.errors.ProtocolViolation`.
"""

from __future__ import annotations

import types
import typing
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import ProtocolViolation

if TYPE_CHECKING:
    from typing_extensions import Self

_decoders: dict[type[Any], Callable[[Any], Any]] = {}


class Model:
    """Base of everything that is read from the wire."""

    __slots__ = ()

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        """Reads a decoded JSON object."""
        decode = _decoders.get(cls)
        if decode is None:
            decode = _decoders[cls] = _compile(cls)
        model: Self = decode(wire)
        return model


def _compile(cls: type[Any]) -> Callable[[Any], Any]:
    # Done at the first use of each class, so that importing this module stays cheap.
    hints = typing.get_type_hints(cls)
    plain: list[str] = []
    converted: list[tuple[str, Callable[[Any], Any]]] = []
    required: list[str] = []
    for item in fields(typing.cast("Any", cls)):
        converter = _converter(hints[item.name])
        if converter is None:
            plain.append(item.name)
        else:
            converted.append((item.name, converter))
        if item.default is MISSING and item.default_factory is MISSING:
            required.append(item.name)

    def decode(wire: Any) -> Any:
        if not isinstance(wire, dict):
            raise ProtocolViolation(f"{cls.__name__}: expected an object, got {type(wire).__name__}")
        values = {name: wire[name] for name in plain if name in wire}
        for name, convert in converted:
            if name in wire and wire[name] is not None:
                values[name] = convert(wire[name])
        try:
            return cls(**values)
        except TypeError as error:
            missing = ", ".join(name for name in required if name not in values)
            raise ProtocolViolation(f"{cls.__name__}: {missing} is missing") from error

    return decode


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """Returns what turns decoded JSON into ``hint``, or None where it already is."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _converter(inner)
    if origin is tuple:
        convert = _converter(arguments[0])
        return tuple if convert is None else lambda wire: tuple(map(convert, wire))
    if isinstance(hint, type) and issubclass(hint, Model):
        return hint.from_wire
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Done(Model):
    """Nothing to say beyond success."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello(Model):
    """Answer of ``daemon.hello``."""

    protocol: int
    version: str
    instance: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonInfo(Model):
    """Answer of ``daemon.info``."""

    version: str
    protocol: int
    instance: str
    pid: int
    started_at: str
    uptime_ms: int
    socket: str
    orbctl: str | None = None
    config_file: str | None = None
    state_dir: str
    limits: Mapping[str, int] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed(Model):
    """When and how a fact was seen; part of every answer that tells facts."""

    generation: int
    observed_at: str
    source: str
    stale: bool
    stale_reason: str | None = None
    age_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Image(Model):
    """Image that a machine was made from."""

    distro: str
    version: str
    arch: str
    variant: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig(Model):
    """A machine's settings; each is absent where the installed OrbStack does not report it."""

    default_username: str | None = None
    isolated: bool | None = None
    isolate_network: bool | None = None
    forward_ssh_agent: bool | None = None
    http_port: int | None = None
    https_port: int | None = None
    cpu_limit: int | None = None
    memory_limit_mib: int | None = None
    disk_limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine(Model):
    """One machine. ``state`` is ``running``, ``stopped``, or another word of OrbStack's: busy."""

    id: str
    name: str
    state: str
    image: Image
    config: MachineConfig
    builtin: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineList(Observed):
    """Answer of ``machine.list``."""

    machines: tuple[Machine, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineInfo(Observed):
    """Answer of ``machine.info``."""

    machine: Machine
    disk_size: int | None = None
    ip4: str | None = None
    ip6: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change(Model):
    """Answer of every change; ``changed`` is absent until the job ended."""

    job_id: int
    state: str
    changed: bool | None = None
    wait_us: int | None = None
    run_us: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk(Model):
    """Bytes that a command wrote, at ``offset`` of both streams in order of arrival."""

    stream: str
    offset: int
    at_us: int = 0
    text: str | None = None
    base64: str | None = None

    @property
    def data(self) -> bytes:
        """The bytes."""
        if self.text is not None:
            return self.text.encode()
        return b64decode(self.base64 or "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap(Model):
    """Output that is no longer kept: from the first byte missing to the first there again."""

    # `from` is a word of Python's, so both ends get their own names here and `from_wire` is written by hand.
    start: int
    end: int

    @classmethod
    def from_wire(cls, wire: Any) -> Gap:
        """Reads a decoded JSON object."""
        try:
            return cls(start=wire["from"], end=wire["to"])
        except (KeyError, TypeError) as error:
            raise ProtocolViolation("Gap: from or to is missing") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Model):
    """Answer of ``machine.run``; there is more from ``job.output`` when ``next_offset`` is below ``output_bytes``."""

    job_id: int
    state: str
    exit_code: int | None = None
    output: tuple[Chunk, ...]
    next_offset: int
    output_bytes: int
    wait_us: int | None = None
    run_us: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Text(Model):
    """Answer of reads that give text."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DefaultMachine(Observed):
    """Answer of ``machine.default``."""

    machine: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Status(Observed):
    """Answer of ``orbstack.status``."""

    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Version(Observed):
    """Answer of ``orbstack.version``."""

    version: str
    build: int | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Observed):
    """Answer of ``config.show``."""

    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigValue(Observed):
    """Answer of ``config.get``; no value where the key is not set."""

    value: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller(Model):
    """Who asked for a job."""

    name: str
    pid: int | None = None
    uid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingFor(Model):
    """Why a job waits: for a ``job``, a ``limit``, or because it is ``paused``."""

    kind: str
    job_id: int | None = None
    operation: str | None = None
    machine: str | None = None
    client: str | None = None
    age_ms: int | None = None
    limit: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(Model):
    """How a job ended: ``succeeded``, ``failed``, ``cancelled``, ``expired``, ``interrupted`` or ``unknown``."""

    kind: str
    exit_code: int | None = None
    changed: bool | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Model):
    """One job."""

    id: int
    operation: str
    machine: str | None = None
    job_class: str = ""
    client: Caller | None = None
    detached: bool = False
    priority: str = "normal"
    state: str
    accepted_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None
    wait_us: int = 0
    run_us: int | None = None
    waiting_for: WaitingFor | None = None
    outcome: Outcome | None = None
    output_bytes: int = 0
    joined: int = 0

    @classmethod
    def from_wire(cls, wire: Any) -> Job:
        """Reads a decoded JSON object; ``class`` is a word of Python's and becomes ``job_class``."""
        if isinstance(wire, dict) and "class" in wire:
            wire = {**wire, "job_class": wire["class"]}
        # Named, not `super()`: making a dataclass with slots replaces the class that a bare `super()` would look for.
        return super(Job, cls).from_wire(wire)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobAnswer(Model):
    """Answer of ``job.get`` and ``job.wait``."""

    job: Job


@dataclass(frozen=True, kw_only=True, slots=True)
class JobList(Model):
    """Answer of ``job.list``, oldest first."""

    jobs: tuple[Job, ...]
    more: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCancel(Model):
    """Answer of ``job.cancel``: ``never_started``, ``stopping`` or ``already_ended``."""

    result: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutput(Model):
    """Answer of ``job.output``."""

    output: tuple[Chunk, ...]
    next_offset: int
    gap: Gap | None = None
    end: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInput(Model):
    """Answer of ``job.input``: whether the command still reads."""

    open: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted(Model):
    """The job exists."""

    job_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting(Model):
    """The job has waited for a second or longer, or waits for something else than before."""

    waiting_for: WaitingFor


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Model):
    """The job runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended(Model):
    """The job is over; nothing follows."""

    job: Job


JobEvent = Accepted | Waiting | Started | Chunk | Gap | Ended
"""What a follower of a job is told: ``Accepted``, any ``Waiting``, ``Started``, any ``Chunk`` and ``Gap``, ``Ended``."""

_EVENTS: dict[str, type[Accepted | Waiting | Started | Chunk | Gap | Ended]] = {
    "accepted": Accepted,
    "waiting": Waiting,
    "started": Started,
    "output": Chunk,
    "gap": Gap,
    "ended": Ended,
}


def event_from_wire(wire: Any) -> JobEvent | None:
    """Reads one notification's ``result``; None for a type that a later daemon added."""
    if not isinstance(wire, dict):
        raise ProtocolViolation(f"event: expected an object, got {type(wire).__name__}")
    cls = _EVENTS.get(wire.get("type", ""))
    return None if cls is None else cls.from_wire(wire)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueStatus(Model):
    """Answer of ``queue.status``, ``queue.pause``, ``queue.resume`` and ``queue.drain``."""

    waiting: int
    running: int
    queue_max: int
    paused: bool
    paused_machines: tuple[str, ...] = ()
    draining: bool = False
    draining_machines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEntry(Model):
    """One kept observation."""

    topic: str
    machine: str | None = None
    generation: int
    age_ms: int
    valid: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStatus(Model):
    """Answer of ``cache.status``."""

    generation: int
    entries: tuple[CacheEntry, ...]
    hits: int
    misses: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInvalidate(Model):
    """Answer of ``cache.invalidate``."""

    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution(Model):
    """A distribution of durations in microseconds."""

    min_us: int
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsRow(Model):
    """One row of a summary."""

    operation: str | None = None
    machine: str | None = None
    count: int
    errors: int
    error_rate: float
    wait: Distribution
    run: Distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSummary(Model):
    """Answer of ``metrics.summary``, sorted by operation and machine."""

    rows: tuple[MetricsRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsRecord(Model):
    """One recorded operation."""

    job_id: int
    operation: str
    machine: str | None = None
    client: Caller | None = None
    accepted_at: str = ""
    started_at: str | None = None
    ended_at: str = ""
    wait_us: int
    run_us: int
    outcome: str
    exit_code: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    joined: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsHistory(Model):
    """Answer of ``metrics.history``, newest first."""

    records: tuple[MetricsRecord, ...]
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters(Model):
    """Answer of ``metrics.counters``."""

    counters: Mapping[str, int]
    store: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease(Model):
    """Answer of ``session.lease``: the place is the caller's until the named process is gone."""

    job_id: int
    orbctl: str
