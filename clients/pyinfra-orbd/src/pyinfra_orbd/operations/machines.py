"""Create, start, stop, clone, rename and delete machines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import path

from pyinfra import context, logger
from pyinfra.api.exceptions import OperationTypeError, OperationValueError

from orbd import errors, models

from .._control import (
    Commands,
    Step,
    client,
    control_operation,
    find,
    is_satisfied,
    machine_argument,
    machine_or_own,
    noop,
    options,
)

MIB = 1 << 20

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

# Names that `orbctl create` accepts, and the different names that the machine list then reports.
_DISTROS = {"void": "voidlinux", "nix": "nixos"}
_ARCHES = {"aarch64": "arm64", "x86_64": "amd64"}


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
    isolated: bool | None = None,
    isolate_network: bool = False,
    mounts: Sequence[str] = (),
    forward_ssh_agent: bool = False,
    user_data: str | None = None,
    vm_name: str | None = None,
) -> Commands:
    """
    Create a machine and boot it, or update the settings of an existing one.

    + machine: name of the machine
    + image: distribution, or distribution and version, such as ``ubuntu:24.04``
    + arch: ``arm64`` or ``amd64``; default: the Mac's
    + user: default user of the machine; default: the Mac user's name
    + present: whether the machine should exist; ``False`` deletes it with all its data
    + cpus: processor limit (OrbStack 2.2 or later)
    + memory: memory limit, such as ``4G`` (OrbStack 2.2 or later)
    + disk: disk limit, such as ``40G`` (OrbStack 2.2 or later)
    + isolated: whether the machine has no access to the Mac's files and commands (OrbStack 2.1 or later); default: as it is
    + isolate_network: whether it has no access to the Mac's network either (OrbStack 2.1 or later)
    + mounts: directories of the Mac to mount in an isolated machine, such as ``/Users/me/src:/src`` (OrbStack 2.1 or later)
    + forward_ssh_agent: whether an isolated machine may use the Mac's SSH agent (OrbStack 2.1 or later)
    + user_data: cloud-init file on the control machine, read by ``orbctl`` itself
    + vm_name: alias of ``machine``

    If the machine exists with another distribution or architecture, the operation fails. It sets ``user``, ``cpus``, ``memory``,
    ``disk`` and ``isolated`` if they differ and the installed OrbStack supports them; a running machine applies them at its next
    start. The other arguments only apply to a new machine.

    **Examples:**

    .. code:: python

        from pyinfra_orbd.operations import vm_create

        vm_create(
            name="Create the web machine",
            machine="web",
            image="ubuntu:24.04",
            cpus=2,
            memory="4G",
        )

        vm_create("web", present=False)
    """
    name = machine_argument(machine, vm_name)
    if not present:
        yield from vm_delete._inner(name)  # noqa: SLF001 - PyInfra's way to call one from another
        return
    if not image:
        raise OperationTypeError("vm_create: no image given: pass image=, such as ubuntu:24.04")
    try:
        distro, version = split_image(image)
        wanted = desired_settings(user=user, cpus=cpus, memory=memory, disk=disk, isolated=isolated)
    except InvalidSetting as error:
        raise OperationValueError(f"vm_create: {error}") from error

    def exists(max_age_ms: int | None) -> bool:
        return find(name, max_age_ms) is not None

    if not is_satisfied(exists):
        # A relative path stays as given: PyInfra changes the working directory to the deploy's.
        file = None if user_data is None else path.expanduser(user_data)
        given = options(version=version, arch=arch, user=user, cpus=cpus, memory=memory, disk=disk, user_data=file)

        yield Step(
            f"create {image} {name}",
            lambda: client().machine_create(
                name,
                distro,
                isolated=bool(isolated),
                isolate_network=isolate_network,
                mounts=mounts,
                forward_ssh_agent=forward_ssh_agent,
                **given,
            ),
            already_done=errors.MachineExists,
        )
        return

    found = find(name)
    other = None if found is None else image_mismatch(found, distro, arch)
    if other is not None:

        def refuse() -> None:
            raise errors.MachineExists(f"machine '{name}' already exists, but {other}; delete it first, or use another name")

        yield Step(f"create {image} {name}", refuse)
        return

    def is_set(max_age_ms: int | None) -> bool:
        return not differences(name, wanted, client().config_show(max_age_ms=max_age_ms).values)

    if not wanted or is_satisfied(is_set):
        noop(f"machine '{name}' already exists")
        return
    for key, value in differences(name, wanted, client().config_show().values).items():
        yield _setting(key, value)
    if context.state.is_executing and found is not None and found.state != "stopped":
        logger.warning(f"{context.host.print_prefix}machine '{name}' is running: it applies the new settings at its next start")


def _setting(key: str, value: str) -> Step:
    return Step(f"config set {key}", lambda: client().config_set(key, value))


@control_operation()
def vm_delete(
    machine: str | None = None,
    force: bool = False,  # noqa: ARG001  # accepted for compatibility
    vm_name: str | None = None,
) -> Commands:
    """
    Delete a machine with all its data.

    + machine: name of the machine
    + force: accepted for compatibility, without effect, because orbd never asks for confirmation
    + vm_name: alias of ``machine``

    The operation waits for the jobs that run on the machine. To end them first, stop the machine with ``force``.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_delete

        vm_delete(name="Delete the old web machine", machine="old-web")
    """
    name = machine_argument(machine, vm_name)
    if is_satisfied(lambda max_age_ms: find(name, max_age_ms) is None):
        noop(f"machine '{name}' does not exist")
        return
    yield Step(f"delete {name}", lambda: client().machine_delete(name), already_done=errors.MachineNotFound)


@control_operation()
def vm_start(machine: str | None = None, vm_name: str | None = None) -> Commands:
    """
    Start a machine.

    + machine: name of the machine; default: the current host's machine
    + vm_name: alias of ``machine``

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_start

        vm_start(name="Start the database", machine="db")
    """
    name = machine_or_own(machine, vm_name)
    if is_satisfied(lambda max_age_ms: _is(name, "running", max_age_ms)):
        noop(f"machine '{name}' is already running")
        return
    yield Step(f"start {name}", lambda: client().machine_start(name))


@control_operation()
def vm_stop(machine: str | None = None, force: bool = False, vm_name: str | None = None) -> Commands:
    """
    Stop a machine.

    + machine: name of the machine; default: the current host's machine
    + force: whether to stop running jobs and cancel waiting jobs of the machine, instead of waiting for them
    + vm_name: alias of ``machine``

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_stop

        vm_stop(name="Stop the database", machine="db")
    """
    name = machine_or_own(machine, vm_name)
    if is_satisfied(lambda max_age_ms: _is(name, "stopped", max_age_ms)):
        noop(f"machine '{name}' is already stopped")
        return
    yield Step(f"stop {name}", lambda: client().machine_stop(name, force=force))


@control_operation(is_idempotent=False)
def vm_restart(machine: str | None = None, vm_name: str | None = None) -> Commands:
    """
    Stop a machine and start it again.

    + machine: name of the machine; default: the current host's machine
    + vm_name: alias of ``machine``

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_create, vm_restart

        settings = vm_create("web", "ubuntu:24.04", memory="8G")
        vm_restart(name="Apply the new settings", machine="web", _if=settings.did_change)
    """
    name = machine_or_own(machine, vm_name)
    yield Step(f"restart {name}", lambda: client().machine_restart(name))


@control_operation()
def vm_clone(source_name: str, new_name: str) -> Commands:
    """
    Clone a machine with its settings and data. The clone is stopped.

    + source_name: machine to clone
    + new_name: name of the clone

    If a machine with the new name exists, the operation does nothing.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_clone, vm_start

        vm_clone(name="Clone the golden machine", source_name="golden", new_name="web")
        vm_start("web")
    """
    if is_satisfied(lambda max_age_ms: find(new_name, max_age_ms) is not None):
        noop(f"machine '{new_name}' already exists")
        return
    yield Step(
        f"clone {source_name} {new_name}",
        lambda: client().machine_clone(source_name, new_name),
        already_done=errors.MachineExists,
    )


@control_operation()
def vm_rename(old_name: str, new_name: str) -> Commands:
    """
    Rename a machine.

    + old_name: current name
    + new_name: new name

    If no machine has the old name and one has the new name, or if both names are the same, the operation does nothing.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_rename

        vm_rename(name="Rename the old machine", old_name="web", new_name="web-2024")
    """

    def has_the_name(max_age_ms: int | None) -> bool:
        is_gone = old_name == new_name or find(old_name, max_age_ms) is None
        return is_gone and find(new_name, max_age_ms) is not None

    if is_satisfied(has_the_name):
        noop(f"machine '{new_name}' already has that name")
        return
    yield Step(f"rename {old_name} {new_name}", lambda: client().machine_rename(old_name, new_name))


def _is(name: str, state: str, max_age_ms: int | None) -> bool:
    found = find(name, max_age_ms)
    return found is not None and found.state == state


# Compares the desired state of a machine with its actual state, in OrbStack's notation of images, sizes and settings.


class InvalidSetting(ValueError):
    """The value of a parameter is invalid."""


def split_image(image: str) -> tuple[str, str | None]:
    """Splits ``ubuntu:24.04`` into distribution and version."""
    distro, separator, version = image.partition(":")
    if not distro or (separator and not version):
        raise InvalidSetting(f"{image!r} is not an image: use a form such as ubuntu or ubuntu:24.04")
    return distro, version or None


def size_bytes(size: str) -> int:
    """Parses ``4G``, ``2048M`` or a number of bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise InvalidSetting(f"{size!r} is not a size: use a form such as 4G or 2048M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def image_mismatch(machine: models.Machine, distro: str, arch: str | None) -> str | None:
    """Describes how a machine's distribution or architecture differs from the desired one; None if they match.

    Neither can be changed later. Versions are not compared: OrbStack accepts numbers and reports code names.
    """
    if machine.image.distro != _DISTROS.get(distro, distro):
        return f"is {machine.image.distro}, not {distro}"
    if arch is not None and machine.image.arch != _ARCHES.get(arch, arch):
        return f"is {machine.image.arch}, not {arch}"
    return None


def desired_settings(
    *,
    user: str | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    disk: str | None = None,
    isolated: bool | None = None,
) -> dict[str, str]:
    """Returns the given parameters as keys and values of a machine's settings."""
    wanted: dict[str, str] = {}
    if user is not None:
        wanted["username"] = user
    if cpus is not None:
        wanted["cpu"] = str(cpus)
    if memory is not None:
        mebibytes = size_bytes(memory) // MIB
        if mebibytes == 0 and size_bytes(memory) > 0:
            raise InvalidSetting(f"memory {memory!r} is less than 1M, and OrbStack takes 0 for no limit")
        wanted["memory_mib"] = str(mebibytes)
    if disk is not None:
        wanted["disk_bytes"] = str(size_bytes(disk))
    if isolated is not None:
        wanted["isolated"] = "true" if isolated else "false"
    return wanted


def differences(name: str, wanted: Mapping[str, str], config: Mapping[str, str]) -> dict[str, str]:
    """Returns the keys whose desired value differs from ``config``, without keys that the installed OrbStack lacks."""
    keys = {f"machine.{name}.{setting}": value for setting, value in wanted.items()}
    return {key: value for key, value in keys.items() if key in config and config[key] != value}
