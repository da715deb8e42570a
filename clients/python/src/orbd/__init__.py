"""The client of orbd, which queues, caches and records every ``orbctl`` of a user.

Importing it loads only a few modules of the standard library. It needs neither PyInfra nor gevent, and works with both.
:class:`Client` has one method for each method of the daemon. Return types are in :mod:`orbd.models`, exceptions in
:mod:`orbd.errors`.
"""

from __future__ import annotations

from . import errors
from ._client import Client, caller_environment
from .errors import OrbdError

__all__ = ["Client", "OrbdError", "caller_environment", "errors"]
