"""What operations, facts and helpers have in common: they ask the daemon, from the control machine.

Nothing of theirs runs inside a machine, and nothing depends on how the current host is connected: from ``@local`` they do what
they do from ``@orbstack/web``. Deciding is apart from doing: an operation looks (:func:`is_so`), and yields a :class:`Step` for
each thing that is to change, which PyInfra carries out when its turn comes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from pyinfra import context, logger
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import OperationTypeError
from pyinfra.api.output import echo
from pyinfra.context import ctx_host
from typing_extensions import override

from orbd import Client, OrbdError, errors, models

from . import connector
from ._jobs import note

if TYPE_CHECKING:
    from pyinfra.api.arguments import ConnectorArguments
    from pyinfra.api.arguments_typed import PyinfraOperation
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

P = ParamSpec("P")

Commands = Generator[PyinfraCommand, None, None]
"""What an operation yields."""

Done = models.Change | models.Job | None
"""What the daemon tells of a change that is done; None where nobody could tell more."""


def client() -> Client:
    """Returns the client that everything of this process shares; what it waits for is reported under the current host's name."""
    shared = connector.client()
    if not ctx_host.isset():  # type: ignore[no-untyped-call]
        return shared
    prefix = context.host.print_prefix
    return shared.telling(lambda text: echo(f"{prefix}{text}", err=True))


def machine_of(host: Host) -> str | None:
    """Returns the machine behind a host, or None where the host is something else."""
    name = host.data.get("vm_name")
    if name is None and host.data.get("orbstack_vm"):
        name = host.name
    return None if name is None else str(name)


def chosen(machine: str | None, vm_name: str | None) -> str:
    """Returns the machine that an operation's caller means; both words mean the same, and one of them is needed."""
    if machine is not None and vm_name is not None and machine != vm_name:
        raise OperationTypeError(f"machine={machine!r} and vm_name={vm_name!r} are the same argument: give one of them")
    name = machine if machine is not None else vm_name
    if not name:
        raise OperationTypeError("which machine? give machine=")
    return name


def chosen_or_own(machine: str | None, vm_name: str | None) -> str:
    """Returns the machine that is meant: the one behind the current host where none is named."""
    if machine is None and vm_name is None:
        machine = machine_of(context.host)
        if machine is None:
            raise OperationTypeError(f"which machine? host {context.host.name} is none of OrbStack's, so give machine=")
    return chosen(machine, vm_name)


def find(name: str, max_age_ms: int | None = None) -> models.Machine | None:
    """Looks for a machine by name or id."""
    machines = client().machine_list(max_age_ms=max_age_ms).machines
    by_name = (machine for machine in machines if machine.name == name)
    by_id = (machine for machine in machines if machine.id == name)
    return next(by_name, None) or next(by_id, None)


def is_so(look: Callable[[int | None], bool]) -> bool:
    """Says whether things are as they should be, by a look that is told how old its facts may be.

    Machines also change outside the daemon, and its memory of them may be half a minute old. That is good enough to foretell
    changes. Where it would let an operation do nothing, though, the look is repeated on fresh facts.
    """
    return look(None) and (not context.state.is_executing or look(0))


class Step(FunctionCommand):
    """One thing that the daemon is asked for when PyInfra carries an operation out.

    ``said`` tells people what. ``done_by_others`` is the error that means that somebody was faster: what is wanted holds.
    """

    def __init__(self, said: str, act: Callable[[], Done], done_by_others: type[OrbdError] | tuple[()] = ()) -> None:
        super().__init__(act, (), {})
        self.said = said
        self._act = act
        self._done_by_others = done_by_others

    @override
    def __repr__(self) -> str:
        return f"Step({self.said})"

    @override
    def execute(self, state: State, host: Host, connector_arguments: ConnectorArguments) -> bool:
        """Asks, and says whether it was done. A failure is the host's, told in one line, where PyInfra would show a traceback."""
        if state.print_input:
            echo(f"{host.print_prefix}>>> orbd: {self.said}", err=True)
        try:
            change = self._act()
        except self._done_by_others as error:
            logger.debug("%s: %s: done by somebody else: %s", host.name, self.said, error)
            return True
        except OrbdError as error:
            host.log_styled(f"{self.said}: {told(error)}", fg="red", log_func=logger.error)
            return False
        if change is not None:
            job_id = change.job_id
            outcome = change.outcome if isinstance(change, models.Job) else change
            if outcome is not None and outcome.warning is not None:
                host.log_styled(f"{self.said}: {outcome.warning}", fg="yellow", log_func=logger.warning)
            note(host, job_id)
            logger.debug("%s: %s: job %d", host.name, self.said, job_id)
        return True


def told(error: OrbdError) -> str:
    """Says what went wrong, and what to look at where the daemon could not know how it ended."""
    if isinstance(error, errors.OutcomeUnknown):
        return f"{error}; look before you repeat it (`orbctl list`)"
    return str(error)


def control_operation(
    *, is_idempotent: bool = True, idempotent_notice: str | None = None
) -> Callable[[Callable[P, Commands]], PyinfraOperation[P]]:
    """Makes an operation of a generator that asks the daemon.

    PyInfra expects operations to look at the host while it lists what is to be done, and ends the whole deploy when one raises.
    A daemon that cannot be asked is one host's trouble, so it becomes a step of that host, which fails.
    """

    def decorate(generate: Callable[P, Commands]) -> PyinfraOperation[P]:
        @wraps(generate)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Commands:
            try:
                yield from generate(*args, **kwargs)
            except OrbdError as error:
                yield failure(f"{generate.__name__}", error)

        # PyInfra's documentation generator asks for the arguments in a way that does not look through wrappers.
        guarded.__signature__ = inspect.signature(generate)  # type: ignore[attr-defined]
        return operation(is_idempotent=is_idempotent, idempotent_notice=idempotent_notice)(guarded)

    return decorate


def failure(said: str, error: OrbdError) -> Step:
    """Makes a step that fails."""

    def act() -> None:
        raise error

    return Step(said, act)


def noop(reason: str) -> None:
    """Says why nothing is to be done."""
    context.host.noop(reason)


def options(**given: Any) -> dict[str, Any]:
    """Keeps the arguments that the caller gave."""
    return {name: value for name, value in given.items() if value is not None}
