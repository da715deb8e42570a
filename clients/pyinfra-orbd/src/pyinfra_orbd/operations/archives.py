"""Export machines to archives, and import them.

The archives are files on the control machine. ``orbctl`` opens them as the user who runs PyInfra, while ``orbd-ctl`` holds a
lease.
"""

from __future__ import annotations

import os
from uuid import uuid4

from orbd import errors, models

from .._control import Commands, Step, client, control_operation, find, is_satisfied, machine_argument, machine_or_own, noop


@control_operation()
def vm_export(
    machine: str | None = None, output_path: str | None = None, overwrite: bool = False, vm_name: str | None = None
) -> Commands:
    """
    Write a machine to an archive on the control machine. OrbStack pauses the machine meanwhile.

    + machine: name of the machine; default: the current host's machine
    + output_path: file to write; default: ``NAME.tar.zst`` in the current directory
    + overwrite: whether to replace an existing file
    + vm_name: alias of ``machine``

    The file appears when it is complete. A failed export leaves no file, or the previous one unchanged.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_export

        vm_export(name="Back up the database", machine="db", output_path="db.tar.zst", overwrite=True)
    """
    name = machine_or_own(machine, vm_name)
    target = os.path.abspath(os.path.expanduser(output_path or f"{name}.tar.zst"))
    if not overwrite and os.path.exists(target):
        noop(f"{target} already exists")
        return
    yield Step(f"export {name} {target}", lambda: _export(name, target))


def _export(name: str, target: str) -> models.Job | None:
    folder, base = os.path.split(target)
    partial = os.path.join(folder, f".{uuid4().hex[:8]}-{base}")
    try:
        job = client().export_machine(name, partial)
        os.replace(partial, target)
    except (errors.OrbdError, TimeoutError):
        # PyInfra's `_timeout` raises a TimeoutError, which is an OSError, in the current call.
        raise
    except OSError as error:
        raise errors.OrbdError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        _remove(partial)
    return job


def _remove(file: str) -> None:
    try:
        os.unlink(file)
    except FileNotFoundError:
        pass


@control_operation()
def vm_import(input_path: str, machine: str | None = None, vm_name: str | None = None) -> Commands:
    """
    Create a machine from an archive on the control machine.

    + input_path: file to read
    + machine: name of the new machine
    + vm_name: alias of ``machine``

    If a machine with that name exists, the operation does nothing.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_import

        vm_import(name="Restore the database", input_path="db.tar.zst", machine="db")
    """
    name = machine_argument(machine, vm_name)
    source = os.path.abspath(os.path.expanduser(input_path))
    if is_satisfied(lambda max_age_ms: find(name, max_age_ms) is not None):
        noop(f"machine '{name}' already exists")
        return
    yield Step(
        f"import {source} as {name}",
        lambda: client().import_machine(source, name),
        already_done=errors.MachineExists,
    )
