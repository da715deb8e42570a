"""A fact whose answer comes from the daemon, in PyInfra's form for facts whose answer comes from the host.

PyInfra 3 knows one kind of fact: a command that is run on the host, and a function that reads what it printed. These facts ask
the daemon while PyInfra asks them for their command, keep the answer, and hand it out when PyInfra brings the output. What is
left to run is an ``echo``, which our connector leaves out; any other, such as ``@local``'s, runs it, so that the same fact
works there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from pyinfra import context
from pyinfra.api import FactBase
from typing_extensions import override

from orbd import OrbdError

from ._answered import Asked
from ._control import machine_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra.api.host import Host
    from pyinfra.api.state import State

T = TypeVar("T")


class AskedFactBase(FactBase[T], Generic[T]):
    """Base of facts that the daemon answers. PyInfra makes an instance for each time that a fact is wanted."""

    abstract = True

    _host: Host | None = None
    _answer: T

    @override
    def check_preconditions(self, state: State, host: Host) -> str | None:
        """Learns whose fact it is: facts may be wanted of a host while another is the current one."""
        self._host = host
        return None

    @override
    def process(self, output: list[str]) -> T:
        """Returns the answer."""
        return self._answer

    def ask(self, question: Callable[[], T]) -> Asked:
        """Asks, and returns the command that PyInfra is given."""
        try:
            self._answer = question()
        except OrbdError as error:
            return Asked(f"{self.name}: {error}")
        return Asked(None)

    def machine(self, machine: str | None) -> str:
        """Returns the machine that is meant: the one behind the host where none is named."""
        host = self._host or context.host
        name = machine or machine_of(host)
        if name is None:
            raise OrbdError(f"which machine? host {host.name} is none of OrbStack's, so give machine=")
        return name
