"""Facts about OrbStack's machines and OrbStack itself, answered by the daemon.

They work like all PyInfra facts, on any host, and run no command in a machine, except ``VmNetwork``. If no machine is given, they
are about the host's machine.

.. code:: python

    from pyinfra import host
    from pyinfra_orbd.facts import VmInfo, VmList

    address = host.get_fact(VmInfo)["ip4"]
    stopped = [machine["name"] for machine in host.get_fact(VmList) if machine["state"] == "stopped"]
"""

from __future__ import annotations

from .machines import VmInfo, VmIp, VmList, VmLogs, VmStatus
from .network import SshConnectString, SshInfo, VmNetwork
from .orbstack import OrbstackConfig, OrbstackStatus

__all__ = [
    "OrbstackConfig",
    "OrbstackStatus",
    "SshConnectString",
    "SshInfo",
    "VmInfo",
    "VmIp",
    "VmList",
    "VmLogs",
    "VmNetwork",
    "VmStatus",
]
