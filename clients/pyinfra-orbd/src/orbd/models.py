"""Answers and events of the daemon, as frozen records.

Classes and fields mirror the wire format and have the same names. Fields that a later daemon adds are ignored. A missing
mandatory field raises :class:`~orbd.errors.ProtocolViolation`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from ._model import Model as Model
from ._model import bytes_from_wire
from .errors import ProtocolViolation


class Done(Model):
    """Answer without content: the call succeeded."""


class Hello(Model):
    """Answer of ``daemon.hello``."""

    protocol: int
    version: str
    instance: str


class Outage(Model):
    """Why ``orbctl`` is unhealthy. Meanwhile reads return the last known state, and only forced operations start."""

    since: str
    reason: str
    retry_after_ms: int


class Upgrade(Model):
    """A daemon binary on disk that differs from the running one; ``state`` is ``pending`` or ``refused``."""

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
    """A key of the daemon's own configuration whose new value was applied; a value is None if the key is not set."""

    key: str
    old_value: str | None = None
    new_value: str | None = None


class RestartRequiredKey(Model):
    """A key of the daemon's own configuration whose new value needs a restart; a value is None if the key is not set."""

    key: str
    running: str | None = None
    configured: str | None = None


class Reload(Model):
    """Answer of ``daemon.reload``."""

    config_file: str | None = None
    applied: tuple[AppliedKey, ...]
    needs_restart: tuple[RestartRequiredKey, ...]


class Observed(Model):
    """When and how the daemon observed the state in an answer; base class of all answers with observed state."""

    generation: int
    observed_at: str
    source: str
    stale: bool
    stale_reason: str | None = None
    age_ms: int


class Image(Model):
    """Image from which a machine was created."""

    distro: str
    version: str
    arch: str
    variant: str | None = None


class MachineConfig(Model):
    """A machine's settings; each is None if the installed OrbStack does not report it."""

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
    """One machine. ``state`` is ``running``, ``stopped``, or OrbStack's word for a state in between."""

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

    ``changed`` is None until the job ends. ``warning`` is set if the change was interrupted, but then observed to be complete;
    ``changed`` is then None if the state before the change had not been observed.
    """

    job_id: int
    state: str
    changed: bool | None = None
    warning: str | None = None
    wait_us: int | None = None
    run_us: int | None = None


class Chunk(Model):
    """Bytes that a command wrote. ``offset`` counts the bytes of both streams in order of arrival."""

    stream: str
    offset: int
    at_us: int = 0
    text: str | None = None
    base64: str | None = None

    @property
    def data(self) -> bytes:
        """Decoded bytes."""
        return bytes_from_wire(self.text, self.base64)


class Gap(Model):
    """Output that the daemon no longer has: from ``offset`` up to, but not including, ``next_offset``."""

    offset: int
    next_offset: int


class Run(Model):
    """Answer of ``machine.run``. If ``next_offset`` is below ``output_bytes``, ``job.output`` returns the rest of the output."""

    job_id: int
    state: str
    exit_code: int | None = None
    output: tuple[Chunk, ...]
    next_offset: int
    output_bytes: int
    wait_us: int | None = None
    run_us: int | None = None


class Text(Model):
    """Answer of reads that return text."""

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
    """Answer of ``config.get``; ``value`` is None if the key is not set."""

    value: str | None = None


class Caller(Model):
    """The client that submitted a job."""

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
    """Answer of ``job.input``: ``open`` is whether the command still reads its stdin."""

    open: bool


class Accepted(Model):
    """The job was accepted."""

    job_id: int


class Waiting(Model):
    """The job has waited for at least a second, or now waits for something else."""

    waiting_for: WaitingFor


class Started(Model):
    """The job started."""


class Ended(Model):
    """The job ended; this is the last event."""

    job: Job


JobEvent = Accepted | Waiting | Started | Chunk | Gap | Ended
"""Events of one job, in this order: ``Accepted``, any ``Waiting``, ``Started``, any ``Chunk`` and ``Gap``, ``Ended``."""

_JOB_EVENT_TYPES: dict[str, type[Accepted | Waiting | Started | Chunk | Gap | Ended]] = {
    "accepted": Accepted,
    "waiting": Waiting,
    "started": Started,
    "output": Chunk,
    "gap": Gap,
    "ended": Ended,
}


def event_from_wire(wire: Any) -> JobEvent | None:
    """Returns the job event in a notification's ``result``; None for a type that a later daemon added."""
    if not isinstance(wire, dict):
        raise ProtocolViolation(f"event: expected an object, got {type(wire).__name__}")
    cls = _JOB_EVENT_TYPES.get(wire.get("type", ""))
    return None if cls is None else cls.from_wire(wire)


class EventJob(Model):
    """The description of a job in an event."""

    job_id: int
    operation: str
    client: str
    machine: str | None = None


class Event(Model):
    """Base class of events. ``sequence`` and ``instance`` identify the position from which a new subscription can resume."""

    sequence: int
    instance: str
    noticed_at: str


class Missed(Event):
    """Events are missing; ``reason`` is ``not_kept`` or ``other_instance``. The next event is :class:`State`."""

    reason: str


class State(Event):
    """Full state as of ``sequence``. ``machine_list`` and ``orbstack`` are None if not observed yet."""

    jobs: tuple[Job, ...]
    more_jobs: bool
    machine_list: MachineList | None = None
    orbstack: str | None = None
    unhealthy: Outage | None = None


class MachinesKnown(Event):
    """The machine list was observed for the first time since the daemon started."""

    machines: tuple[Machine, ...]
    generation: int


class MachineAppeared(Event):
    """A new machine was observed."""

    machine: Machine
    generation: int


class MachineChanged(Event):
    """A machine, identified by its id, has changed; ``renamed_from`` is its old name if it was renamed."""

    machine: Machine
    generation: int
    renamed_from: str | None = None


class MachineGone(Event):
    """A machine no longer exists; ``machine`` is its last observed state."""

    machine: Machine
    generation: int


class OrbstackChanged(Event):
    """The status of OrbStack has changed, or was observed for the first time."""

    status: str
    generation: int


class JobQueued(Event):
    """A job was accepted. There are no job events for reads."""

    job: EventJob


class JobStarted(Event):
    """A job started."""

    job: EventJob


class JobEnded(Event):
    """A job ended; ``reason`` is set if it failed. ``job.get`` returns more details."""

    job: EventJob
    outcome: Outcome
    reason: str | None = None


class CacheInvalidated(Event):
    """Cached observations became stale; ``scope`` is ``machines``, ``configuration`` or ``everything``."""

    scope: str
    generation: int
    machines: tuple[str, ...] = ()


class OrbctlUnhealthy(Event):
    """``orbctl`` became unhealthy."""

    reason: str


class OrbctlRecovered(Event):
    """``orbctl`` is healthy again."""


_EVENT_TYPES: dict[str, type[Event]] = {
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
    """Returns one event of ``events.subscribe``; None for a type that a later daemon added."""
    if not isinstance(wire, dict):
        raise ProtocolViolation(f"event: expected an object, got {type(wire).__name__}")
    cls = _EVENT_TYPES.get(wire.get("type", ""))
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
    """One cached observation."""

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
    """Minimum, percentiles and maximum of durations in microseconds."""

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

    ``since`` and ``until`` limit the window that the rows cover. If ``resolution`` is ``hour`` or ``day``, the window starts at a
    full hour or day, earlier than requested. ``since`` is ``None`` if the rows cover all records.
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
    joined: bool = False
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
    """Answer of ``lease.acquire``. The lease is valid until it is released or its process is gone."""

    job_id: int
    orbctl: str
    marker: str
    machine_names: tuple[str, ...] = ()


class Release(Model):
    """Answer of ``lease.release``.

    If a change was interrupted, the job still runs: orbd observes the result, and ``job.wait`` returns it. ``signalled`` is the
    error because of which orbd signalled the process; None if it did not.
    """

    job: Job
    signalled: Mapping[str, Any] | None = None


class RawStream(Model):
    """The unmodified bytes of one stream."""

    text: str | None = None
    base64: str | None = None

    @property
    def data(self) -> bytes:
        """Decoded bytes."""
        return bytes_from_wire(self.text, self.base64)


class RawOutput(Observed):
    """Answer of ``lease.read``: the output of ``orbctl``, and its exit code or the signal that killed it."""

    stdout: RawStream
    stderr: RawStream
    exit_code: int | None = None
    signal: int | None = None
