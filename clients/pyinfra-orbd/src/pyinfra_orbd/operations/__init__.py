"""Operations on OrbStack's machines and on OrbStack itself.

They run on the control machine, through the daemon, with the same effect on any host. Each first checks the current state, and
does nothing if the target state is already met; ``-v`` shows why. ``name=`` is PyInfra's title of an operation; the machine is
the first positional argument, ``machine=`` or ``vm_name=``.

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
