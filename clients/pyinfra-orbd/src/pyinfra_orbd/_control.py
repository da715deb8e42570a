"""Shared code of operations, facts and helpers, which call the daemon from the control machine.

They run nothing inside a machine and do not depend on the connection of the current host: ``@local`` works like
``@orbstack/web``. An operation first checks the current state (:func:`is_satisfied`), and then yields a :class:`Step` for each
change. PyInfra executes the steps later, when it runs the operation.
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
from orbd._transport import socket_path

from . import _client

if TYPE_CHECKING:
    from pyinfra.api.arguments import ConnectorArguments
    from pyinfra.api.arguments_typed import PyinfraOperation
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

P = ParamSpec("P")

Commands = Generator[PyinfraCommand, None, None]
"""Return type of an operation's generator."""

ChangeResult = models.Change | models.Job | None
"""Result of a completed change; None if it succeeded but its job is unknown."""


def client() -> Client:
    """Returns the client that this process shares. It prints the current host's name in its notices about waiting calls."""
    shared = _client.client()
    if not ctx_host.isset():  # type: ignore[no-untyped-call]
        return shared
    prefix = context.host.print_prefix
    return shared.with_notices(lambda text: echo(f"{prefix}{text}", err=True))


def machine_of(host: Host) -> str | None:
    """Returns the machine behind a host, or None if the host is not an OrbStack machine."""
    name = host.data.get("vm_name")
    if name is None and host.data.get("orbstack_vm"):
        name = host.name
    return None if name is None else str(name)


def machine_argument(machine: str | None, vm_name: str | None) -> str:
    """Returns the parameter ``machine`` or its alias ``vm_name``; raises ``OperationTypeError`` if neither is given."""
    if machine is not None and vm_name is not None and machine != vm_name:
        raise OperationTypeError(f"machine={machine!r} and vm_name={vm_name!r} are aliases: pass only one of them")
    name = machine if machine is not None else vm_name
    if not name:
        raise OperationTypeError("no machine given: pass machine=")
    return name


def machine_or_own(machine: str | None, vm_name: str | None) -> str:
    """Returns the given machine, or if there is none the current host's machine."""
    if machine is None and vm_name is None:
        machine = machine_of(context.host)
        if machine is None:
            raise OperationTypeError(
                f"no machine given, and host '{context.host.name}' is not an OrbStack machine: pass machine="
            )
    return machine_argument(machine, vm_name)


def find(name: str, max_age_ms: int | None = None) -> models.Machine | None:
    """Returns the machine with this name or id, or None."""
    return _client.find_machine(client().machine_list(max_age_ms=max_age_ms).machines, name)


def is_satisfied(check: Callable[[int | None], bool]) -> bool:
    """Returns whether ``check`` reports that the target state is already met.

    The argument of ``check`` is the maximum age of the data that it may use, in milliseconds; None for the daemon's default.
    Machines also change outside the daemon, so its cache may be up to 30 s out of date. That is good enough to predict changes.
    Before an operation that is being executed does nothing, however, the check is repeated with fresh data.
    """
    return check(None) and (not context.state.is_executing or check(0))


class Step(FunctionCommand):
    """One call to the daemon that PyInfra makes when it executes an operation.

    ``description`` is the text for output and log. ``already_done`` is the exception which means that the target state is met,
    because another client made the change first.
    """

    def __init__(
        self, description: str, action: Callable[[], ChangeResult], already_done: type[OrbdError] | tuple[()] = ()
    ) -> None:
        super().__init__(action, (), {})
        self.description = description
        self._action = action
        self._already_done = already_done

    @override
    def __repr__(self) -> str:
        return f"Step({self.description})"

    @override
    def execute(self, state: State, host: Host, connector_arguments: ConnectorArguments) -> bool:
        """Calls the daemon and returns whether it succeeded. Logs an error in one line; PyInfra would print a traceback."""
        if state.print_input:
            echo(f"{host.print_prefix}>>> orbd: {self.description}", err=True)
        try:
            change = self._action()
        except self._already_done as error:
            logger.debug("%s: %s: already done by another client: %s", host.name, self.description, error)
            return True
        except OrbdError as error:
            host.log_styled(f"{self.description}: {describe_error(error)}", fg="red", log_func=logger.error)
            return False
        if change is not None:
            job_id = change.job_id
            outcome = change.outcome if isinstance(change, models.Job) else change
            if outcome is not None and outcome.warning is not None:
                host.log_styled(f"{self.description}: {outcome.warning}", fg="yellow", log_func=logger.warning)
            record_job(host, job_id)
            logger.debug("%s: %s: job %d", host.name, self.description, job_id)
        return True


def describe_error(error: OrbdError) -> str:
    """Returns the error message; for an unknown outcome also the command that shows the current state."""
    if isinstance(error, errors.OutcomeUnknown):
        return f"{error}; check the current state before you retry: `orbctl list`"
    return str(error)


def control_operation(
    *, is_idempotent: bool = True, idempotent_notice: str | None = None
) -> Callable[[Callable[P, Commands]], PyinfraOperation[P]]:
    """Creates a PyInfra operation from a generator that calls the daemon.

    PyInfra runs the generator while it prepares the deploy, and aborts the whole deploy if it raises. An error of the daemon
    should only fail the host on which it occurred, so it becomes a step that fails.
    """

    def decorate(generate: Callable[P, Commands]) -> PyinfraOperation[P]:
        @wraps(generate)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Commands:
            try:
                yield from generate(*args, **kwargs)
            except OrbdError as error:
                yield failing_step(f"{generate.__name__}", error)

        # PyInfra's documentation generator reads the signature in a way that does not follow `__wrapped__`.
        guarded.__signature__ = inspect.signature(generate)  # type: ignore[attr-defined]
        return operation(is_idempotent=is_idempotent, idempotent_notice=idempotent_notice)(guarded)

    return decorate


def failing_step(description: str, error: OrbdError) -> Step:
    """Returns a step that raises ``error``."""

    def action() -> None:
        raise error

    return Step(description, action)


def noop(reason: str) -> None:
    """Reports why the current operation has nothing to do."""
    context.host.noop(reason)


def options(**given: Any) -> dict[str, Any]:
    """Returns the arguments that are not None."""
    return {name: value for name, value in given.items() if value is not None}


# Which host each job of an operation belongs to, for the timing report. A host's commands run in its own machine, so the
# daemon's records identify the host; an operation can change any machine. The key includes the daemon's socket, because each
# daemon has its own job ids.
_host_by_job: dict[tuple[str, int], str] = {}

JOBS_MAX = 100_000
"""Maximum number of recorded jobs; the oldest are discarded."""


def record_job(host: Host, job_id: int) -> None:
    """Records that a job belongs to a host."""
    _host_by_job[socket_path(), job_id] = host.name
    if len(_host_by_job) > JOBS_MAX:
        del _host_by_job[next(iter(_host_by_job))]


def host_of(job_id: int) -> str | None:
    """Returns the name of the host that a job belongs to, or None if it was not recorded."""
    return _host_by_job.get((socket_path(), job_id))
