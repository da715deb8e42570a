"""The client of orbd, which queues, caches and records every ``orbctl`` of a user.

Importing it loads a few modules of the standard library and nothing else; it needs neither PyInfra nor gevent, and is at home
under both. :class:`Client` has a method for each of the daemon's; what it returns stands in :mod:`orbd.models`, what it raises in
:mod:`orbd.errors`.
"""

from __future__ import annotations

from . import errors
from ._client import Client
from ._environment import caller_environment
from .errors import OrbdError

__all__ = ["Client", "OrbdError", "caller_environment", "errors"]
