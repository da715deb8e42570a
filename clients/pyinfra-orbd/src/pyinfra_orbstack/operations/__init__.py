"""Deprecated name of :mod:`pyinfra_orbd.operations`."""

from __future__ import annotations

from .vm import (
    ssh_connect_string,
    ssh_info,
    vm_clone,
    vm_create,
    vm_delete,
    vm_export,
    vm_import,
    vm_info,
    vm_ip,
    vm_list,
    vm_network_info,
    vm_rename,
    vm_restart,
    vm_start,
    vm_status,
    vm_stop,
)

__all__ = [
    "ssh_connect_string",
    "ssh_info",
    "vm_clone",
    "vm_create",
    "vm_delete",
    "vm_export",
    "vm_import",
    "vm_info",
    "vm_ip",
    "vm_list",
    "vm_network_info",
    "vm_rename",
    "vm_restart",
    "vm_start",
    "vm_status",
    "vm_stop",
]
