"""PyInfra's API in front of one host, as a test's way to carry out one operation and hear what came of it.

No commands on ``@local`` here: gevent would collect every child of this process meanwhile, also those that others wait for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent._hub_local import get_hub_if_exists
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, add_op
from pyinfra.api.operations import run_ops
from pyinfra.context import ctx_host, ctx_state

from pyinfra_orbd import connector


class Played:
    """What came of one operation on one host."""

    def __init__(self, meta: OperationMeta, said: str, foretold: bool | None) -> None:
        self.meta = meta
        self.said = said
        self.foretold = foretold

    @property
    def changed(self) -> bool:
        """Whether it succeeded and did something."""
        return self.meta.did_change()

    @property
    def is_noop(self) -> bool:
        """Whether it succeeded and had nothing to do."""
        return self.meta.did_succeed() and not self.meta.did_change()

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.meta.did_error()


class Heard(logging.Handler):
    """Collects what PyInfra says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def heard() -> Iterator[Heard]:
    """Listens to PyInfra's logger."""
    logger = logging.getLogger("pyinfra")
    handler = Heard()
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
        # PyInfra leaves them as they are when an operation raises.
        ctx_host.reset()
        ctx_state.reset()
        if not has_hub:
            # Where a hub is, the client is gevent's, and the loop collects this process's children, whoever waits for them.
            gevent.get_hub().destroy(destroy_loop=True)


def forget_clients() -> None:
    """Closes the connector's connections, which it keeps for as long as the process lives."""
    for client in connector._clients.values():
        client.close_idle()
    connector._clients.clear()


def play(operation: Callable[..., OperationMeta], *args: Any, entry: Any = "@local", **kwargs: Any) -> Played:
    """Carries out one operation, foretold and then done as PyInfra does."""
    with heard() as lines, playing(entry) as state:
        host = next(iter(state.inventory))
        meta = add_op(state, operation, *args, **kwargs)[host]
        foretold = meta._maybe_is_change
        try:
            run_ops(state)
        except PyinfraError as error:
            if str(error) != "No hosts remaining!":
                raise
        return Played(meta, "\n".join(lines.lines), foretold)


def on(host: Host, function: Callable[[], Any]) -> Any:
    """Calls a function as a deploy file of this host would."""
    with ctx_state.use(host.state), ctx_host.use(host):
        return function()
