"""Change the configuration of OrbStack and of its machines."""

from __future__ import annotations

from .._control import Commands, Step, client, control_operation, is_satisfied, noop


@control_operation()
def orbstack_config_set(key: str, value: str | int | bool) -> Commands:
    """
    Set one key of OrbStack's configuration.

    + key: name of the key, such as ``memory_mib`` or ``machine.web.cpu``
    + value: new value; ``True`` and ``False`` become OrbStack's ``true`` and ``false``

    OrbStack applies its own settings when it restarts, and a machine's settings when that machine restarts.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import orbstack_config_set

        orbstack_config_set(name="Give OrbStack 8 GB", key="memory_mib", value=8192)
    """
    yield from _set(key, config_text(value))


def _set(key: str, value: str) -> Commands:
    # Reads the whole configuration, not only this key, because the daemon then answers further operations from its cache.
    if is_satisfied(lambda max_age_ms: client().config_show(max_age_ms=max_age_ms).values.get(key) == value):
        noop(f"{key} is already {value}")
        return
    yield Step(f"config set {key} {value}", lambda: client().config_set(key, value))


@control_operation(
    is_idempotent=False,
    idempotent_notice="OrbStack does not report its defaults, so this operation resets the configuration every time.",
)
def orbstack_config_reset() -> Commands:
    """
    Reset OrbStack's whole configuration to its defaults.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import orbstack_config_reset

        orbstack_config_reset(name="Reset OrbStack's configuration")
    """
    yield Step("config reset", lambda: client().config_reset())


@control_operation()
def vm_username_set(vm_name: str, username: str) -> Commands:
    """
    Set a machine's default user, which commands and SSH use if no user is given.

    + vm_name: name of the machine
    + username: user in the machine

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_username_set

        vm_username_set(name="Use the user deploy by default", vm_name="web", username="deploy")
    """
    yield from _set(f"machine.{vm_name}.username", username)


@control_operation()
def vm_default(machine: str | None) -> Commands:
    """
    Set the machine that ``orbctl`` uses if none is named.

    + machine: name of the machine; ``None`` clears the default

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_default

        vm_default(name="Make web the default machine", machine="web")
    """
    wanted = None if machine == "none" else machine
    if is_satisfied(lambda max_age_ms: client().machine_default(max_age_ms=max_age_ms).machine == wanted):
        noop(f"the default machine is already {wanted or 'none'}")
        return
    yield Step(f"default {wanted or 'none'}", lambda: client().machine_set_default(wanted))


def config_text(value: object) -> str:
    """Returns a value as text in the form of OrbStack's configuration."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
