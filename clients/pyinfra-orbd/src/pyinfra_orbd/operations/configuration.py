"""OrbStack's configuration: its own, and its machines'."""

from __future__ import annotations

from .. import _wanted
from .._control import Commands, Step, client, control_operation, is_so, noop


@control_operation()
def orbstack_config_set(key: str, value: str | int | bool) -> Commands:
    """
    Set one key of OrbStack's configuration.

    + key: the key, as in ``memory_mib`` or ``machine.web.cpu``
    + value: its value; ``True`` and ``False`` are OrbStack's ``true`` and ``false``

    Settings of OrbStack itself take effect when it is restarted, those of a machine when that is.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import orbstack_config_set

        orbstack_config_set(name="Give OrbStack 8 GB", key="memory_mib", value=8192)
    """
    yield from _set(key, _wanted.config_text(value))


def _set(key: str, value: str) -> Commands:
    # The whole configuration, not the one key: it is in the daemon's memory after the first of many such operations.
    if is_so(lambda max_age_ms: client().config_show(max_age_ms=max_age_ms).values.get(key) == value):
        noop(f"{key} is {value}")
        return
    yield Step(f"config set {key} {value}", lambda: client().config_set(key, value))


@control_operation(
    is_idempotent=False,
    idempotent_notice="OrbStack does not tell what its defaults are, so this operation always resets.",
)
def orbstack_config_reset() -> Commands:
    """
    Put OrbStack's whole configuration back to its defaults.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import orbstack_config_reset

        orbstack_config_reset(name="Start over")
    """
    yield Step("config reset", lambda: client().config_reset())


@control_operation()
def vm_username_set(vm_name: str, username: str) -> Commands:
    """
    Set a machine's default user: the one that commands and SSH run as where none is named.

    + vm_name: name of the machine
    + username: user in the machine

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_username_set

        vm_username_set(name="Work as deploy", vm_name="web", username="deploy")
    """
    yield from _set(f"machine.{vm_name}.username", username)


@control_operation()
def vm_default(machine: str | None) -> Commands:
    """
    Set the machine that ``orbctl`` means where none is named.

    + machine: name of the machine; ``None`` for none

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_default

        vm_default(name="Mean web", machine="web")
    """
    wanted = None if machine == "none" else machine
    if is_so(lambda max_age_ms: client().machine_default(max_age_ms=max_age_ms).machine == wanted):
        noop(f"the default machine is {wanted or 'none'}")
        return
    yield Step(f"default {wanted or 'none'}", lambda: client().machine_set_default(wanted))
