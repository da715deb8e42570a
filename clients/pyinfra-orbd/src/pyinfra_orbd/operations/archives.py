"""Write machines to archives and make machines of them.

The archives are files of the control machine, so ``orbctl`` opens them as the user who deploys, in a place of the daemon's queue.
"""

from __future__ import annotations

import os
from uuid import uuid4

from orbd import errors, models

from .._control import Commands, Step, chosen, chosen_or_own, client, control_operation, find, is_so, noop


@control_operation()
def vm_export(
    machine: str | None = None, output_path: str | None = None, overwrite: bool = False, vm_name: str | None = None
) -> Commands:
    """
    Write a machine to an archive on the control machine. The machine pauses meanwhile.

    + machine: name of the machine, the current host's where absent
    + output_path: file to write, ``NAME.tar.zst`` in the current folder where absent
    + overwrite: whether to write it again where it is there
    + vm_name: the same as ``machine``

    The file appears when it is complete: an export that fails leaves nothing behind, or what was there before.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_export

        vm_export(name="Keep the database", machine="db", output_path="db.tar.zst", overwrite=True)
    """
    name = chosen_or_own(machine, vm_name)
    target = os.path.abspath(os.path.expanduser(output_path or f"{name}.tar.zst"))
    if not overwrite and os.path.exists(target):
        noop(f"{target} is there")
        return
    yield Step(f"export {name} {target}", lambda: _export(name, target))


def _export(name: str, target: str) -> models.Job | None:
    folder, base = os.path.split(target)
    partial = os.path.join(folder, f".{uuid4().hex[:8]}-{base}")
    try:
        job = client().export_machine(name, partial)
        os.replace(partial, target)
    except (errors.OrbdError, TimeoutError):
        # PyInfra's `_timeout` throws a TimeoutError, which is an OSError, into whatever is under way.
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
    Make a machine of an archive on the control machine.

    + input_path: file to read
    + machine: name of the new machine
    + vm_name: the same as ``machine``

    A machine that has the name already is taken for the archive's.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_import

        vm_import(name="Bring the database back", input_path="db.tar.zst", machine="db")
    """
    name = chosen(machine, vm_name)
    source = os.path.abspath(os.path.expanduser(input_path))
    if is_so(lambda max_age_ms: find(name, max_age_ms) is not None):
        noop(f"machine '{name}' is there")
        return
    yield Step(
        f"import {source} as {name}",
        lambda: client().import_machine(source, name),
        done_by_others=errors.MachineExists,
    )
