"""Make, start, stop, copy, rename and delete machines."""

from __future__ import annotations

from collections.abc import Sequence
from os import path

from pyinfra import context, logger
from pyinfra.api.exceptions import OperationTypeError, OperationValueError

from orbd import errors

from .. import _wanted
from .._control import Commands, Step, chosen, chosen_or_own, client, control_operation, find, is_so, noop, options


@control_operation()
def vm_create(
    machine: str | None = None,
    image: str | None = None,
    arch: str | None = None,
    user: str | None = None,
    present: bool = True,
    cpus: int | None = None,
    memory: str | None = None,
    disk: str | None = None,
    isolated: bool = False,
    isolate_network: bool = False,
    mounts: Sequence[str] = (),
    forward_ssh_agent: bool = False,
    user_data: str | None = None,
    vm_name: str | None = None,
) -> Commands:
    """
    Make a machine and boot it, or bring the settings of one that is there in line.

    + machine: name of the machine
    + image: distribution, or distribution and version, as in ``ubuntu:24.04``
    + arch: ``arm64`` or ``amd64``, the Mac's where absent
    + user: the machine's default user, the Mac user's name where absent
    + present: whether the machine should be there; ``False`` deletes it with everything on it
    + cpus: processor limit (OrbStack 2.2 or later)
    + memory: memory limit, as in ``4G`` (OrbStack 2.2 or later)
    + disk: disk limit, as in ``40G`` (OrbStack 2.2 or later)
    + isolated: whether it is kept from the Mac's files and commands (OrbStack 2.1 or later)
    + isolate_network: whether it is kept from the Mac's network too (OrbStack 2.1 or later)
    + mounts: folders of the Mac that an isolated machine shares, as in ``/Users/me/src:/src`` (OrbStack 2.1 or later)
    + forward_ssh_agent: whether an isolated machine may use the Mac's SSH agent (OrbStack 2.1 or later)
    + user_data: cloud-init file on the control machine, read by ``orbctl`` itself
    + vm_name: the same as ``machine``

    A machine that is there keeps what it was made from: if that is another distribution or architecture than asked for, the
    operation fails. ``user``, ``cpus``, ``memory``, ``disk`` and ``isolated`` are set where they differ and the installed
    OrbStack has them; a running machine takes them up at its next start. The other arguments matter for a new machine only.

    **Examples:**

    .. code:: python

        from pyinfra_orbd.operations import vm_create

        vm_create(
            name="Make the web machine",
            machine="web",
            image="ubuntu:24.04",
            cpus=2,
            memory="4G",
        )

        vm_create("web", present=False)
    """
    name = chosen(machine, vm_name)
    if not present:
        yield from vm_delete._inner(name)  # noqa: SLF001 - PyInfra's way to call one from another
        return
    if not image:
        raise OperationTypeError("vm_create: which image? give image=, as in ubuntu:24.04")
    try:
        distro, version = _wanted.image_words(image)
        wanted = _wanted.settings(user=user, cpus=cpus, memory=memory, disk=disk, isolated=isolated)
    except _wanted.Unreadable as error:
        raise OperationValueError(f"vm_create: {error}") from error

    def is_there(max_age_ms: int | None) -> bool:
        return find(name, max_age_ms) is not None

    if not is_so(is_there):
        # Read as it was given: PyInfra's own working directory is the deploy's.
        file = None if user_data is None else path.expanduser(user_data)
        given = options(version=version, arch=arch, user=user, cpus=cpus, memory=memory, disk=disk, user_data=file)

        yield Step(
            f"create {image} {name}",
            lambda: client().machine_create(
                name,
                distro,
                isolated=isolated,
                isolate_network=isolate_network,
                mounts=mounts,
                forward_ssh_agent=forward_ssh_agent,
                **given,
            ),
            done_by_others=errors.MachineExists,
        )
        return

    found = find(name)
    other = None if found is None else _wanted.other_image(found, distro, arch)
    if other is not None:

        def refuse() -> None:
            raise errors.MachineExists(f"machine '{name}' is there, but {other}; delete it first, or name another")

        yield Step(f"create {image} {name}", refuse)
        return

    def is_set(max_age_ms: int | None) -> bool:
        return not _wanted.differing(name, wanted, client().config_show(max_age_ms=max_age_ms).values)

    if not wanted or is_so(is_set):
        noop(f"machine '{name}' is there")
        return
    for key, value in _wanted.differing(name, wanted, client().config_show().values).items():
        yield _setting(key, value)
    if context.state.is_executing and found is not None and found.state != "stopped":
        logger.warning(f"{context.host.print_prefix}machine '{name}' takes up its new settings at its next start")


def _setting(key: str, value: str) -> Step:
    return Step(f"config set {key}", lambda: client().config_set(key, value))


@control_operation()
def vm_delete(
    machine: str | None = None,
    force: bool = False,  # noqa: ARG001  # older deploys give it
    vm_name: str | None = None,
) -> Commands:
    """
    Delete a machine with everything on it.

    + machine: name of the machine
    + force: accepted for older deploys; orbd never asks for confirmation, so it changes nothing
    + vm_name: the same as ``machine``

    The machine is deleted when everything that runs on it has ended. To end that first, stop the machine with ``force``.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_delete

        vm_delete(name="Delete the old web machine", machine="old-web")
    """
    name = chosen(machine, vm_name)
    if is_so(lambda max_age_ms: find(name, max_age_ms) is None):
        noop(f"there is no machine '{name}'")
        return
    yield Step(f"delete {name}", lambda: client().machine_delete(name), done_by_others=errors.MachineNotFound)


@control_operation()
def vm_start(machine: str | None = None, vm_name: str | None = None) -> Commands:
    """
    Start a machine.

    + machine: name of the machine, the current host's where absent
    + vm_name: the same as ``machine``

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_start

        vm_start(name="Start the database", machine="db")
    """
    name = chosen_or_own(machine, vm_name)
    if is_so(lambda max_age_ms: _is(name, "running", max_age_ms)):
        noop(f"machine '{name}' runs")
        return
    yield Step(f"start {name}", lambda: client().machine_start(name))


@control_operation()
def vm_stop(machine: str | None = None, force: bool = False, vm_name: str | None = None) -> Commands:
    """
    Stop a machine.

    + machine: name of the machine, the current host's where absent
    + force: whether to end what runs on it and cancel what waits for it, instead of waiting
    + vm_name: the same as ``machine``

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_stop

        vm_stop(name="Stop the database", machine="db")
    """
    name = chosen_or_own(machine, vm_name)
    if is_so(lambda max_age_ms: _is(name, "stopped", max_age_ms)):
        noop(f"machine '{name}' is stopped")
        return
    yield Step(f"stop {name}", lambda: client().machine_stop(name, force=force))


@control_operation(is_idempotent=False)
def vm_restart(machine: str | None = None, vm_name: str | None = None) -> Commands:
    """
    Stop a machine and start it again.

    + machine: name of the machine, the current host's where absent
    + vm_name: the same as ``machine``

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_create, vm_restart

        settings = vm_create("web", "ubuntu:24.04", memory="8G")
        vm_restart(name="Take up the new settings", machine="web", _if=settings.did_change)
    """
    name = chosen_or_own(machine, vm_name)
    yield Step(f"restart {name}", lambda: client().machine_restart(name))


@control_operation()
def vm_clone(source_name: str, new_name: str) -> Commands:
    """
    Copy a machine with its settings and everything on it. The copy is stopped.

    + source_name: machine to copy
    + new_name: name of the copy

    A machine that has the new name already is taken for the copy.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_clone, vm_start

        vm_clone(name="Copy the golden machine", source_name="golden", new_name="web")
        vm_start("web")
    """
    if is_so(lambda max_age_ms: find(new_name, max_age_ms) is not None):
        noop(f"machine '{new_name}' is there")
        return
    yield Step(
        f"clone {source_name} {new_name}",
        lambda: client().machine_clone(source_name, new_name),
        done_by_others=errors.MachineExists,
    )


@control_operation()
def vm_rename(old_name: str, new_name: str) -> Commands:
    """
    Give a machine another name.

    + old_name: its name
    + new_name: the name that it is to have

    Where no machine has the old name and one has the new name, there is nothing to do.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_rename

        vm_rename(name="The old machine makes way", old_name="web", new_name="web-2024")
    """
    if is_so(lambda max_age_ms: find(old_name, max_age_ms) is None and find(new_name, max_age_ms) is not None):
        noop(f"machine '{new_name}' has that name")
        return
    yield Step(f"rename {old_name} {new_name}", lambda: client().machine_rename(old_name, new_name))


def _is(name: str, state: str, max_age_ms: int | None) -> bool:
    found = find(name, max_age_ms)
    return found is not None and found.state == state
