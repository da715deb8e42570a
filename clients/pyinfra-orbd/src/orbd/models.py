"""What the daemon answers, as frozen records.

Only what goes over the wire stands here, under the names that it has there. Fields that a later daemon adds are ignored; a field
that is missing although the protocol promises it is a :class:`~orbd.errors.ProtocolViolation`.
"""

from __future__ import annotations

import types
import typing
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .errors import ProtocolViolation

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """Says nothing: what it tells is for type checkers."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Model:
    """Base of everything that is read from the wire.

    Its classes are written and behave like frozen dataclasses, and a type checker takes them for such. The decorator itself would
    generate and compile code for each of them at every import, which takes PyInfra longer than a hundred commands.
    """

    def __init__(self, **values: Any) -> None:
        shape = _shape(type(self))
        wrong = (values.keys() - shape.converters.keys()) | (shape.required - values.keys())
        if wrong:
            raise TypeError(f"{type(self).__name__}: missing or unknown: {', '.join(sorted(wrong))}")
        self.__dict__.update(values)

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        """Reads a decoded JSON object."""
        shape = _shape(cls)
        if not isinstance(wire, dict):
            raise ProtocolViolation(f"{cls.__name__}: expected an object, got {type(wire).__name__}")
        model = cls.__new__(cls)
        values = model.__dict__
        for name, convert in shape.converters.items():
            if name in wire:
                value = wire[name]
                if convert is None:
                    values[name] = value
                elif value is not None:
                    values[name] = convert(value)
        if not shape.required <= values.keys():
            raise ProtocolViolation(f"{cls.__name__}: {', '.join(sorted(shape.required - values.keys()))} is missing")
        return model

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _shape(type(self)).converters}


class Shape:
    """A class's fields, found at its first use."""

    __slots__ = ("converters", "required")

    def __init__(self, cls: type[Model]) -> None:
        # What turns decoded JSON into each field, or None where it already is.
        self.converters = {name: _converter(hint) for name, hint in typing.get_type_hints(cls).items()}
        # A default is an attribute of the class, where an instance without a value of its own finds it.
        self.required = frozenset(name for name in self.converters if not hasattr(cls, name))


_shapes: dict[type[Model], Shape] = {}


def _shape(cls: type[Model]) -> Shape:
    shape = _shapes.get(cls)
    if shape is None:
        shape = _shapes[cls] = Shape(cls)
    return shape


def _converter(hint: Any) -> Callable[[Any], Any] | None:
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


def _bytes(text: str | None, base64: str | None) -> bytes:
    """Bytes go over the wire as text where they are that, else as base64."""
    return b64decode(base64 or "") if text is None else text.encode()


class Done(Model):
    """Nothing to say beyond success."""


class Hello(Model):
    """Answer of ``daemon.hello``."""

    protocol: int
    version: str
    instance: str


class Outage(Model):
    """What ails ``orbctl``: reads are told as last known, and nothing is begun that is not forced."""

    since: str
    reason: str
    retry_after_ms: int


class Upgrade(Model):
    """A program of the daemon's that lies on disk and is not the one that runs; ``state`` is ``pending`` or ``refused``."""

    state: str
    noticed_at: str
    version: str | None = None
    waits_for: str | None = None
    reason: str | None = None


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
    limits: Mapping[str, int] = types.MappingProxyType({})
    strict: bool = False
    unhealthy: Outage | None = None
    upgrade: Upgrade | None = None


class AppliedKey(Model):
    """A key of the daemon's own configuration that has a new value; None where nothing is set."""

    key: str
    old_value: str | None = None
    new_value: str | None = None


class RestartRequiredKey(Model):
    """A key of the daemon's own configuration whose new value needs a restart; None where nothing is set."""

    key: str
    running: str | None = None
    configured: str | None = None


class Reload(Model):
    """Answer of ``daemon.reload``."""

    config_file: str | None = None
    applied: tuple[AppliedKey, ...]
    needs_restart: tuple[RestartRequiredKey, ...]


class Observed(Model):
    """When and how a fact was seen; part of every answer that tells facts."""

    generation: int
    observed_at: str
    source: str
    stale: bool
    stale_reason: str | None = None
    age_ms: int


class Image(Model):
    """Image that a machine was made from."""

    distro: str
    version: str
    arch: str
    variant: str | None = None


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


class Machine(Model):
    """One machine. ``state`` is ``running``, ``stopped``, or another word of OrbStack's: busy."""

    id: str
    name: str
    state: str
    image: Image
    config: MachineConfig
    builtin: bool = False


class MachineList(Observed):
    """Answer of ``machine.list``."""

    machines: tuple[Machine, ...]


class MachineInfo(Observed):
    """Answer of ``machine.info``."""

    machine: Machine
    disk_size: int | None = None
    ip4: str | None = None
    ip6: str | None = None


class Change(Model):
    """Answer of every change.

    ``changed`` is absent until the job ended. ``warning`` says that the change was cut short and was then observed to be done;
    then ``changed`` is absent, too, where nobody had looked before.
    """

    job_id: int
    state: str
    changed: bool | None = None
    warning: str | None = None
    wait_us: int | None = None
    run_us: int | None = None


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
        return _bytes(self.text, self.base64)


class Gap(Model):
    """Output that is no longer kept: from the first byte missing to the first there again."""

    offset: int
    next_offset: int


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


class Text(Model):
    """Answer of reads that give text."""

    text: str


class DefaultMachine(Observed):
    """Answer of ``machine.default``."""

    machine: str | None = None


class Status(Observed):
    """Answer of ``orbstack.status``."""

    status: str


class Version(Observed):
    """Answer of ``orbstack.version``."""

    version: str
    build: int | None = None
    commit: str | None = None


class Config(Observed):
    """Answer of ``config.show``."""

    values: Mapping[str, str]


class ConfigValue(Observed):
    """Answer of ``config.get``; no value where the key is not set."""

    value: str | None = None


class Caller(Model):
    """Who asked for a job."""

    name: str
    pid: int | None = None
    uid: int


class WaitingFor(Model):
    """Why a job waits: for a ``job``, a ``limit``, because it is ``paused``, or because ``orbctl`` is ``unhealthy``."""

    kind: str
    description: str = ""
    job_id: int | None = None
    operation: str | None = None
    machine: str | None = None
    client: str | None = None
    age_ms: int | None = None
    limit: str | None = None
    reason: str | None = None


class Outcome(Model):
    """How a job ended: ``succeeded``, ``failed``, ``cancelled``, ``expired``, ``interrupted`` or ``unknown``."""

    kind: str
    exit_code: int | None = None
    changed: bool | None = None
    warning: str | None = None
    error: Mapping[str, Any] | None = None


class JobLane(Model):
    """A lane that a job holds or waits for: ``kind`` is ``machine``, ``configuration`` or ``fleet``."""

    kind: str
    machine: str | None = None
    exclusive: bool = False


class Job(Model):
    """One job."""

    job_id: int
    operation: str
    machine: str | None = None
    job_class: str = ""
    client: Caller | None = None
    lanes: tuple[JobLane, ...] = ()
    detached: bool = False
    state: str
    accepted_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None
    wait_us: int = 0
    run_us: int | None = None
    waiting_for: WaitingFor | None = None
    outcome: Outcome | None = None
    output_bytes: int = 0
    joined_callers: int = 0
    not_durable: bool = False


class JobAnswer(Model):
    """Answer of ``job.get`` and ``job.wait``."""

    job: Job


class JobList(Model):
    """Answer of ``job.list``, oldest first."""

    jobs: tuple[Job, ...]
    more: bool = False


class JobCancel(Model):
    """Answer of ``job.cancel``: ``never_started``, ``stopping`` or ``already_ended``."""

    result: str


class JobOutput(Model):
    """Answer of ``job.output``."""

    output: tuple[Chunk, ...]
    next_offset: int
    gap: Gap | None = None
    eof: bool


class JobInput(Model):
    """Answer of ``job.input``: whether the command still reads."""

    open: bool


class Accepted(Model):
    """The job exists."""

    job_id: int


class Waiting(Model):
    """The job has waited for a second or longer, or waits for something else than before."""

    waiting_for: WaitingFor


class Started(Model):
    """The job runs."""


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


class EventJob(Model):
    """A job, as far as events tell of it."""

    job_id: int
    operation: str
    client: str
    machine: str | None = None


class Event(Model):
    """Something that happened; its class says what. ``sequence`` and ``instance`` are what one goes on from after a break."""

    sequence: int
    instance: str
    noticed_at: str


class Missed(Event):
    """Events were missed, ``not_kept`` or told by ``other_instance``; the state follows."""

    reason: str


class State(Event):
    """Everything as it was when the event ``sequence`` was the last; what nobody has looked at yet is absent."""

    jobs: tuple[Job, ...]
    more_jobs: bool
    machine_list: MachineList | None = None
    orbstack: str | None = None
    unhealthy: Outage | None = None


class MachinesKnown(Event):
    """The list of machines was seen for the first time since the daemon started."""

    machines: tuple[Machine, ...]
    generation: int


class MachineAppeared(Event):
    """There is a machine that was not there before."""

    machine: Machine
    generation: int


class MachineChanged(Event):
    """A machine is not as it was, by its id; with its old name where it has another now."""

    machine: Machine
    generation: int
    renamed_from: str | None = None


class MachineGone(Event):
    """A machine is not there any more; as it was last seen."""

    machine: Machine
    generation: int


class OrbstackChanged(Event):
    """OrbStack itself is not as it was, or was seen for the first time."""

    status: str
    generation: int


class JobQueued(Event):
    """A job was accepted; reads are not told."""

    job: EventJob


class JobStarted(Event):
    """A job runs."""

    job: EventJob


class JobEnded(Event):
    """A job is over, and why it failed; ``job.get`` tells more."""

    job: EventJob
    outcome: Outcome
    reason: str | None = None


class CacheInvalidated(Event):
    """What was known became stale: of ``machines``, of the ``configuration``, or ``everything``."""

    scope: str
    generation: int
    machines: tuple[str, ...] = ()


class OrbctlUnhealthy(Event):
    """``orbctl`` itself does not work."""

    reason: str


class OrbctlRecovered(Event):
    """``orbctl`` works again."""


_HAPPENINGS: dict[str, type[Event]] = {
    "gap": Missed,
    "state": State,
    "machines_known": MachinesKnown,
    "machine_appeared": MachineAppeared,
    "machine_changed": MachineChanged,
    "machine_gone": MachineGone,
    "orbstack_changed": OrbstackChanged,
    "job_queued": JobQueued,
    "job_started": JobStarted,
    "job_ended": JobEnded,
    "cache_invalidated": CacheInvalidated,
    "orbctl_unhealthy": OrbctlUnhealthy,
    "orbctl_recovered": OrbctlRecovered,
}


def happening_from_wire(wire: Any) -> Event | None:
    """Reads one event of ``events.subscribe``; None for a type that a later daemon added."""
    if not isinstance(wire, dict):
        raise ProtocolViolation(f"event: expected an object, got {type(wire).__name__}")
    cls = _HAPPENINGS.get(wire.get("type", ""))
    return None if cls is None else cls.from_wire(wire)


class QueueStatus(Model):
    """Answer of ``queue.status``, ``queue.pause``, ``queue.resume`` and ``queue.drain``."""

    waiting: int
    running: int
    queue_max: int
    paused: bool
    paused_machines: tuple[str, ...] = ()
    draining: bool = False
    draining_machines: tuple[str, ...] = ()
    unhealthy: Outage | None = None


class CacheEntry(Model):
    """One kept observation."""

    key: str
    machine: str | None = None
    generation: int
    age_ms: int
    valid: bool


class CacheStatus(Model):
    """Answer of ``cache.status``."""

    generation: int
    entries: tuple[CacheEntry, ...]
    hits: int
    misses: int


class CacheInvalidate(Model):
    """Answer of ``cache.invalidate``."""

    generation: int


class Distribution(Model):
    """A distribution of durations in microseconds."""

    min_us: int
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int


class MetricsRow(Model):
    """One row of a summary."""

    operation: str | None = None
    machine: str | None = None
    other_machines: bool = False
    count: int
    errors: int
    error_rate: float
    wait: Distribution
    run: Distribution


class MetricsSummary(Model):
    """Answer of ``metrics.summary``, rows with the most operations first.

    ``since`` and ``until`` are the window that the rows cover. It begins earlier than was asked for, at a whole hour or day,
    where ``resolution`` is ``hour`` or ``day``; ``since`` is ``None`` when everything kept is covered.
    """

    since: str | None = None
    until: str
    resolution: str
    rows: tuple[MetricsRow, ...]


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
    job_class: str = ""


class MetricsHistory(Model):
    """Answer of ``metrics.history``, newest first."""

    records: tuple[MetricsRecord, ...]
    cursor: str | None = None


class Counters(Model):
    """Answer of ``metrics.counters``."""

    counters: Mapping[str, int]
    store: str


class Lease(Model):
    """Answer of ``lease.acquire``: the place is the caller's until the named process is gone."""

    job_id: int
    orbctl: str
    marker: str
    machine_names: tuple[str, ...] = ()


class Release(Model):
    """Answer of ``lease.release``.

    The job still runs where a change was cut short: orbd looks what came of it, and ``job.wait`` tells. ``signalled`` is the
    error that says why orbd signalled the process, where it did.
    """

    job: Job
    signalled: Mapping[str, Any] | None = None


class RawStream(Model):
    """What was printed to one stream."""

    text: str | None = None
    base64: str | None = None

    @property
    def data(self) -> bytes:
        """The bytes."""
        return _bytes(self.text, self.base64)


class RawOutput(Observed):
    """Answer of ``lease.read``: what ``orbctl`` printed, and its exit code or the signal that ended it."""

    stdout: RawStream
    stderr: RawStream
    exit_code: int | None = None
    signal: int | None = None
