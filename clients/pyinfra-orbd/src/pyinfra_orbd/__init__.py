"""OrbStack machines for PyInfra, through orbd.

The connector is found by PyInfra under the names ``@orbstack`` and ``@orbd``. What stands here is the client beneath it:
importing it needs neither PyInfra nor gevent.
"""

from __future__ import annotations

from . import errors
from ._client import Client
from .errors import OrbdError

__all__ = ["Client", "OrbdError", "errors"]
