"""OrbStack machines for PyInfra, through orbd.

PyInfra finds the connector under the names ``@orbstack`` and ``@orbd``. It uses the client in the package :mod:`orbd`. This
module re-exports the client's public names; importing them needs neither PyInfra nor gevent.
"""

from __future__ import annotations

from orbd import Client, OrbdError, caller_environment, errors

__all__ = ["Client", "OrbdError", "caller_environment", "errors"]
