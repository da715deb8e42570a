"""Waiting, with or without gevent.

If a gevent hub runs, with or without monkey patching, a waiting greenlet must not block the others. So this module selects
gevent's sockets, sleep and poll instead of the standard library's.
"""

from __future__ import annotations

import select
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WAIT_INTERVAL = 2.0
"""Interval in seconds at which a call without an answer yet invokes its ``on_wait`` callback."""


def hub() -> Any:
    """Returns this thread's gevent hub, or None if it has none."""
    # Not imported: if the process has not loaded gevent, no other greenlet can be waiting.
    local = sys.modules.get("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()


def socket_module() -> Any:
    """Returns the module whose sockets to use."""
    if hub() is None:
        return socket
    import gevent.socket

    return gevent.socket


def select_module() -> Any:
    """Returns the module whose ``poll`` to use."""
    if hub() is None:
        return select
    import gevent.select

    return gevent.select


def sleep(seconds: float) -> None:
    """Sleeps; with a gevent hub, other greenlets run meanwhile."""
    if hub() is None:
        time.sleep(seconds)
        return
    import gevent

    gevent.sleep(seconds)
