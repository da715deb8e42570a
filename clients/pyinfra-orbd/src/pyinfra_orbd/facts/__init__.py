"""Facts about OrbStack's machines and OrbStack itself, answered by the daemon.

They are had like all of PyInfra's, of any host, and no machine is entered for them. Where no machine is named, the one behind the
host is meant.

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
