"""Runs one operation on one host through PyInfra's API, and captures its result and log.

No commands on ``@local`` here: gevent would reap all children of this process, also those that other tests wait for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent._hub_local import get_hub_if_exists
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, add_op
from pyinfra.api.operations import run_ops
from pyinfra.context import ctx_host, ctx_state

from pyinfra_orbd import _client
from real_daemon import RealDaemon


class Played:
    """The result of one operation on one host."""

    def __init__(self, meta: OperationMeta, said: str, predicted: bool | None) -> None:
        self.meta = meta
        self.said = said
        self.predicted = predicted

    @property
    def changed(self) -> bool:
        """Whether it succeeded and changed something."""
        return self.meta.did_change()

    @property
    def is_noop(self) -> bool:
        """Whether it succeeded without a change."""
        return self.meta.did_succeed() and not self.meta.did_change()

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.meta.did_error()


class LogCapture(logging.Handler):
    """Collects the messages of PyInfra's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def captured_log() -> Iterator[LogCapture]:
    """Captures PyInfra's log."""
    logger = logging.getLogger("pyinfra")
    handler = LogCapture()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def playing(*entries: Any) -> Iterator[State]:
    """Connects to hosts, and disconnects at the end."""
    has_hub = get_hub_if_exists() is not None
    state = State(Inventory((list(entries), {})), Config())
    state.print_noop_info = True
    connect_all(state)
    try:
        yield state
    finally:
        disconnect_all(state)
        forget_clients()
        # PyInfra does not reset them if an operation raises.
        ctx_host.reset()
        ctx_state.reset()
        if not has_hub:
            # With a hub, the client uses gevent sockets, and gevent's loop reaps all children of this process.
            gevent.get_hub().destroy(destroy_loop=True)


@contextmanager
def at_its_socket(daemon: RealDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealDaemon]:
    """Lets the environment name the daemon's socket; closes the connector's connections afterwards."""
    monkeypatch.setenv("ORBD_SOCKET", str(daemon.socket))
    monkeypatch.setenv("ORBD_AUTOSTART", "0")
    yield daemon
    forget_clients()


def forget_clients() -> None:
    """Closes the connections of the connector, which otherwise live as long as the process."""
    for client in _client._clients.values():
        client.close_idle()
    _client._clients.clear()


def play(operation: Callable[..., OperationMeta], *args: Any, entry: Any = "@local", **kwargs: Any) -> Played:
    """Prepares and runs one operation, in the two phases of PyInfra."""
    with captured_log() as lines, playing(entry) as state:
        host = next(iter(state.inventory))
        meta = add_op(state, operation, *args, **kwargs)[host]
        predicted = meta._maybe_is_change
        try:
            run_ops(state)
        except PyinfraError as error:
            if str(error) != "No hosts remaining!":
                raise
        return Played(meta, "\n".join(lines.lines), predicted)


def on(host: Host, function: Callable[[], Any]) -> Any:
    """Calls a function in the context of a host's deploy file."""
    with ctx_state.use(host.state), ctx_host.use(host):
        return function()
