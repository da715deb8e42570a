"""OrbStack machines for PyInfra, through orbd.

The connector is found by PyInfra under the names ``@orbstack`` and ``@orbd``. The client beneath it is the package :mod:`orbd`,
whose public names can be had from here too; importing them needs neither PyInfra nor gevent.
"""

from __future__ import annotations

from orbd import Client, OrbdError, caller_environment, errors

__all__ = ["Client", "OrbdError", "caller_environment", "errors"]
