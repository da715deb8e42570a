"""Timing reports: how long each operation took on each host, and how much of that was queue time and ``orbctl`` run time.

PyInfra's callbacks give the start and end of each operation on each host. The daemon records the wait and run time of each call.
The report combines them once, at the end of the deploy, so it does not slow the deploy down.

.. code:: python

    from pyinfra_orbd import timing

    timing.report(json="timing.json", csv="timing.csv")

The rest of the time is PyInfra itself and the communication with the daemon.

:func:`timed` and :func:`timed_operation` log how long your own code takes.
"""

from __future__ import annotations

import csv as csv_format
import functools
import json as json_format
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, overload

from pyinfra import context
from pyinfra import logger as pyinfra_logger
from pyinfra.api.output import echo
from pyinfra.api.state import BaseStateCallback, State

from orbd import OrbdError, models

from ._control import client, host_of, machine_of

if TYPE_CHECKING:
    from pyinfra.api.host import Host

P = ParamSpec("P")
T = TypeVar("T")

RECORDS_PAGE = 1000
"""Number of records per request."""

RECORDS_MAX = 200_000
"""Maximum number of records read for one deploy; if there are more, the report says that the oldest are missing."""


class Step(TypedDict):
    """One operation on one host. ``wait_s`` and ``run_s`` are sums over its calls, which may overlap."""

    order: int
    operation: str
    host: str
    outcome: str
    took_s: float
    wait_s: float
    run_s: float
    calls: int


class Total(TypedDict):
    """Total of several steps; ``took_s`` is the maximum for an operation, and the sum for a host."""

    name: str
    steps: int
    took_s: float
    wait_s: float
    run_s: float
    calls: int


class Span:
    """The time during which one operation ran on one host."""

    __slots__ = ("_began", "began_ms", "ended_ms", "host", "op_hash", "records", "took_s")

    def __init__(self, host: Host, op_hash: str) -> None:
        self.host = host
        self.op_hash = op_hash
        self._began = time.monotonic()
        self.began_ms = int(time.time() * 1000)
        self.ended_ms: int | None = None
        self.took_s = 0.0
        self.records: list[models.MetricsRecord] = []

    def is_around(self, at_ms: int) -> bool:
        """Returns whether the operation was running at ``at_ms``, Unix time in milliseconds."""
        return self.began_ms <= at_ms and (self.ended_ms is None or at_ms <= self.ended_ms)

    def end(self) -> None:
        """Records the end."""
        self.took_s = time.monotonic() - self._began
        self.ended_ms = int(time.time() * 1000)


class TimingReport(BaseStateCallback):
    """Measures a deploy with PyInfra's callbacks, and writes the report when the last host disconnects."""

    def __init__(self, *, screen: bool = True, json: str | None = None, csv: str | None = None) -> None:
        """Selects the outputs: ``screen`` prints the report, ``json`` and ``csv`` are paths of files to write."""
        self.screen = screen
        self.json = json
        self.csv = csv
        self._began_ms = int(time.time() * 1000)
        self._began = time.monotonic()
        self._took_s = 0.0
        self._spans: list[Span] = []
        self._open: dict[tuple[Host, str], Span] = {}
        self._gone: set[Host] = set()
        self._rest: list[models.MetricsRecord] = []
        self._is_done = False
        self.problem: str | None = None
        """Why wait and run times are missing or incomplete; None if they are complete."""

    # PyInfra declares these methods static, but calls them on the instance.

    def operation_host_start(self, state: State, host: Host, op_hash: str) -> None:  # type: ignore[override]
        """Starts a span."""
        self._open[host, op_hash] = Span(host, op_hash)

    def operation_host_success(self, state: State, host: Host, op_hash: str, retry_count: int = 0) -> None:  # type: ignore[override]
        """Ends the span of a successful operation."""
        self._end(host, op_hash)

    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        """Ends the span of a failed operation."""
        self._end(host, op_hash)

    def host_disconnect(self, state: State, host: Host) -> None:  # type: ignore[override]
        """Writes the report when all hosts have disconnected."""
        self._gone.add(host)
        if self._gone >= state.activated_hosts:
            self.finish(state)

    def _end(self, host: Host, op_hash: str) -> None:
        span = self._open.pop((host, op_hash), None)
        if span is not None:
            span.end()
            self._spans.append(span)

    def finish(self, state: State) -> None:
        """Collects the daemon's records and writes the report. PyInfra's command line calls this through ``host_disconnect``."""
        if self._is_done or not self._spans:
            return
        self._is_done = True
        self._took_s = time.monotonic() - self._began
        try:
            self._assign(self._records())
        except OrbdError as error:
            self.problem = f"cannot read the daemon's records: {error}"
        steps = self.steps(state)
        if self.json is not None:
            self._write(self.json, lambda file: json_format.dump(self.summary(state), file, indent=2, ensure_ascii=False))
        if self.csv is not None:
            self._write(self.csv, lambda file: write_csv(steps, file))
        if self.screen:
            for line in self.lines(state):
                echo(line, err=True)

    def steps(self, state: State) -> list[Step]:
        """Returns a row for each operation on each host, in the deploy's order."""
        order = {op_hash: number for number, op_hash in enumerate(state.get_op_order(), 1)}  # type: ignore[no-untyped-call]
        rows: list[Step] = [
            {
                "order": order.get(span.op_hash, 0),
                "operation": ", ".join(sorted(state.get_op_meta(span.op_hash).names)),
                "host": span.host.name,
                "outcome": _outcome(state, span),
                "took_s": round(span.took_s, 6),
                "wait_s": _seconds(record.wait_us for record in span.records),
                "run_s": _seconds(record.run_us for record in span.records),
                "calls": len(span.records),
            }
            for span in self._spans
        ]
        return sorted(rows, key=lambda row: (row["order"], row["host"]))

    def summary(self, state: State) -> dict[str, Any]:
        """Returns the whole report in the form of the JSON file."""
        steps = self.steps(state)
        return {
            "version": 1,
            "began_at": datetime.fromtimestamp(self._began_ms / 1000, timezone.utc).isoformat(),
            "took_s": round(self._took_s, 6),
            "problem": self.problem,
            "operations": by_operation(steps),
            "hosts": by_host(steps),
            "outside": {
                "wait_s": _seconds(record.wait_us for record in self._rest),
                "run_s": _seconds(record.run_us for record in self._rest),
                "calls": len(self._rest),
            },
            "steps": steps,
        }

    def lines(self, state: State) -> Iterator[str]:
        """Yields the lines of the report as printed."""
        steps = self.steps(state)
        hosts = by_host(steps)
        yield f"--> Timing: {len(hosts)} hosts, {len(by_operation(steps))} operations, {self._took_s:.1f} s"
        for title, totals in (("Operation", by_operation(steps)), ("Host", hosts)):
            width = max(len(title), *(len(total["name"]) for total in totals))
            took = "Slowest" if title == "Operation" else "Took"
            yield f"    {title:<{width}}  {took:>8}  {'Waited':>8}  {'Ran':>8}  {'Calls':>5}"
            for total in totals:
                times = "  ".join(f"{total[key]:7.2f}s" for key in ("took_s", "wait_s", "run_s"))
                yield f"    {total['name']:<{width}}  {times}  {total['calls']:>5}"
            yield ""
        if self._rest:
            rest = self.summary(state)["outside"]
            times = f"waited {rest['wait_s']:.2f}s, ran {rest['run_s']:.2f}s"
            yield f"    Before and between operations: {rest['calls']} calls {times}"
        if self.problem is not None:
            yield f"    {self.problem}"

    def _records(self) -> Iterator[models.MetricsRecord]:
        """Yields the records of this deploy's calls, newest first."""
        began = self._began_ms
        cursor = None
        for _ in range(RECORDS_MAX // RECORDS_PAGE):
            page = client().metrics_history(limit=RECORDS_PAGE, cursor=cursor)
            for record in page.records:
                if _milliseconds(record.ended_at) < began:
                    return
                is_ours = record.client is not None and record.client.pid == os.getpid()
                if (is_ours and _milliseconds(record.accepted_at) >= began) or host_of(record.job_id) is not None:
                    yield record
            cursor = page.cursor
            if cursor is None:
                return
        self.problem = f"only the last {RECORDS_MAX} calls are counted"

    def _assign(self, records: Iterable[models.MetricsRecord]) -> None:
        """Assigns each record to the operation of its host that was running when the call was accepted; the latest if several."""
        by_host: dict[str, list[Span]] = {}
        by_machine: dict[str | None, list[Span]] = {}
        for span in self._spans:
            by_host.setdefault(span.host.name, []).append(span)
            by_machine.setdefault(machine_of(span.host), []).append(span)
        by_machine.pop(None, None)
        for record in records:
            host = host_of(record.job_id)
            spans = by_machine.get(record.machine, []) if host is None else by_host.get(host, [])
            at = _milliseconds(record.accepted_at)
            around = [span for span in spans if span.is_around(at)]
            if around:
                max(around, key=lambda span: span.began_ms).records.append(record)
            else:
                self._rest.append(record)

    def _write(self, path: str, write: Callable[[Any], None]) -> None:
        try:
            with open(path, "w", encoding="utf-8", newline="") as file:
                write(file)
        except OSError as error:
            pyinfra_logger.warning(f"cannot write the timing report to {path}: {error.strerror or error}")


def report(*, screen: bool = True, json: str | None = None, csv: str | None = None, state: State | None = None) -> TimingReport:
    """Adds a timing report to the deploy. Only the first call has an effect, because PyInfra runs the deploy file for each host.

    ``json`` and ``csv`` are paths of files to write. ``state`` is the deploy, by default the current one.
    """
    found: State = context.state if state is None else state
    for handler in found.callback_handlers:
        if isinstance(handler, TimingReport):
            return handler
    made = TimingReport(screen=screen, json=json, csv=csv)
    found.add_callback_handler(made)  # type: ignore[no-untyped-call]
    return made


def by_operation(steps: Iterable[Step]) -> list[Total]:
    """Returns the totals by operation, in the deploy's order."""
    return _totals(steps, lambda step: f"{step['order']}. {step['operation']}", max)


def by_host(steps: Iterable[Step]) -> list[Total]:
    """Returns the totals by host."""
    return sorted(_totals(steps, lambda step: step["host"], lambda one, other: one + other), key=lambda total: total["name"])


def _totals(steps: Iterable[Step], name: Callable[[Step], str], together: Callable[[float, float], float]) -> list[Total]:
    totals: dict[str, Total] = {}
    for step in steps:
        key = name(step)
        total = totals.setdefault(key, {"name": key, "steps": 0, "took_s": 0.0, "wait_s": 0.0, "run_s": 0.0, "calls": 0})
        total["steps"] += 1
        total["took_s"] = round(together(total["took_s"], step["took_s"]), 6)
        total["wait_s"] = round(total["wait_s"] + step["wait_s"], 6)
        total["run_s"] = round(total["run_s"] + step["run_s"], 6)
        total["calls"] += step["calls"]
    return list(totals.values())


def write_csv(steps: Iterable[Step], file: Any) -> None:
    """Writes steps as CSV with a header."""
    writer = csv_format.DictWriter(file, list(Step.__annotations__))
    writer.writeheader()
    writer.writerows(steps)


def _outcome(state: State, span: Span) -> str:
    data = state.ops[span.host].get(span.op_hash)
    if data is None or not data.operation_meta.is_complete():
        return "unknown"
    if data.operation_meta.did_error():
        return "failed"
    return "changed" if data.operation_meta.did_change() else "unchanged"


def _seconds(microseconds: Iterable[int | None]) -> float:
    return sum(value or 0 for value in microseconds) / 1_000_000


def _milliseconds(text: str) -> int:
    # `fromisoformat` accepts the Z only since Python 3.11.
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


_logger = logging.getLogger(__name__)


@contextmanager
def timed_operation(operation_name: str) -> Iterator[None]:
    """Logs how long a block takes, and whether it fails.

    .. code:: python

        with timed_operation("build the image"):
            build()
    """
    began = time.monotonic()
    _logger.info("Starting %s", operation_name)
    try:
        yield
    except BaseException as error:
        _logger.error("Failed %s after %.2fs: %s", operation_name, time.monotonic() - began, error)
        raise
    _logger.info("Completed %s in %.2fs", operation_name, time.monotonic() - began)


@overload
def timed(operation_name: Callable[P, T]) -> Callable[P, T]: ...
@overload
def timed(operation_name: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def timed(operation_name: Any = None) -> Any:
    """Decorator that logs how long a function takes: ``@timed``, ``@timed()`` or ``@timed("a name")``."""

    def decorate(function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with timed_operation(name or function.__name__):
                return function(*args, **kwargs)

        return wrapper

    if callable(operation_name):
        return decorate(operation_name)
    return lambda function: decorate(function, operation_name)


def configure_logging(level: int = logging.INFO) -> None:
    """Prints the log of :func:`timed` and :func:`timed_operation` to stderr; changes no other logger."""
    _logger.setLevel(level)
    if not any(isinstance(handler, logging.StreamHandler) for handler in _logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
        _logger.addHandler(handler)
