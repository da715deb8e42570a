"""Adapts answers of the daemon to PyInfra's facts.

A PyInfra 3 fact is a command that runs on the host, and a function that parses its output. These facts query the daemon when
PyInfra requests the command, keep the answer, and return it when PyInfra passes them the output. The command itself is only an
``echo``. The ``@orbstack`` connector skips it; other connectors, such as ``@local``, run it, so the facts work on any host.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Generic, TypeVar

from pyinfra import context
from pyinfra.api import FactBase
from pyinfra.api.command import StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine
from typing_extensions import override

from orbd import OrbdError

from ._control import machine_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra.api.host import Host
    from pyinfra.api.state import State

T = TypeVar("T")

PLACEHOLDER = "orbd"


class PrecomputedCommand(StringCommand):
    """Command that only reports whether the daemon answered; ``error`` is its error message, or None if it did."""

    def __init__(self, error: str | None) -> None:
        self.error = error
        command = f"echo {PLACEHOLDER}" if error is None else f"echo {shlex.quote(error)} >&2; exit 1"
        super().__init__(command)

    def outcome(self) -> tuple[bool, CommandOutput]:
        """Returns the result that the command would have, without running it."""
        line = OutputLine("stdout", PLACEHOLDER) if self.error is None else OutputLine("stderr", self.error)
        return self.error is None, CommandOutput([line])


class DaemonFact(FactBase[T], Generic[T]):
    """Base class of facts that the daemon answers. PyInfra creates an instance for each query of a fact."""

    abstract = True

    _host: Host | None = None
    _answer: T

    @override
    def check_preconditions(self, state: State, host: Host) -> str | None:
        """Stores the fact's host, which may differ from the current host."""
        self._host = host
        return None

    @override
    def process(self, output: list[str]) -> T:
        """Returns the daemon's answer."""
        return self._answer

    def precompute(self, query: Callable[[], T]) -> PrecomputedCommand:
        """Runs ``query`` against the daemon, stores its result, and returns the command for PyInfra."""
        try:
            self._answer = query()
        except OrbdError as error:
            return PrecomputedCommand(f"{self.name}: {error}")
        return PrecomputedCommand(None)

    def machine(self, machine: str | None) -> str:
        """Returns ``machine``, or if it is None the fact's host's machine."""
        host = self._host or context.host
        name = machine or machine_of(host)
        if name is None:
            raise OrbdError(f"no machine given, and host '{host.name}' is not an OrbStack machine: pass machine=")
        return name
