"""Operations on OrbStack's machines and on OrbStack itself.

They are carried out on the control machine, through the daemon: from ``@local``, from a machine's host or from any other they do
the same. Each looks first and does nothing, saying why, where things are as asked. ``name=`` is PyInfra's own argument, the title
of an operation; the machine is the first positional argument, ``machine=`` or ``vm_name=``.

.. code:: shell

    pyinfra @local pyinfra_orbd.operations.vm_create web ubuntu:24.04
"""

from __future__ import annotations

from .archives import vm_export, vm_import
from .checks import vm_dns_lookup, vm_test_connectivity
from .configuration import orbstack_config_reset, orbstack_config_set, vm_default, vm_username_set
from .machines import vm_clone, vm_create, vm_delete, vm_rename, vm_restart, vm_start, vm_stop

__all__ = [
    "orbstack_config_reset",
    "orbstack_config_set",
    "vm_clone",
    "vm_create",
    "vm_default",
    "vm_delete",
    "vm_dns_lookup",
    "vm_export",
    "vm_import",
    "vm_rename",
    "vm_restart",
    "vm_start",
    "vm_stop",
    "vm_test_connectivity",
    "vm_username_set",
]
