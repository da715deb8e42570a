"""Environment variables that a command in a machine gets from this process, as with ``orbctl run``."""

from __future__ import annotations

import os

ORBENV = "ORBENV"
"""The variable that lists, separated by colons, the variables that ``orbctl run`` passes to the guest."""

READ_BY_ORBCTL = (
    ORBENV,
    "TERM",
    "DISPLAY",
    *(name for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (proxy, proxy.upper())),
)
"""Variables that ``orbctl run`` reads, or passes by default. The daemon rejects others unless ``ORBENV`` lists them."""


def caller_environment() -> dict[str, str]:
    """Returns those of ``ORBENV``, the variables that it lists, ``TERM``, ``DISPLAY`` and the proxy variables that are set.

    The result is for ``caller_env`` of :meth:`~orbd.Client.machine_run`. The daemon passes it only to that call's ``orbctl``.
    """
    entries = os.environ.get(ORBENV, "").split(":")
    # An entry can have flags after a slash.
    listed = [name for name in (entry.partition("/")[0] for entry in entries) if _is_name(name)]
    return {name: os.environ[name] for name in (*READ_BY_ORBCTL, *listed) if name in os.environ}


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not text.startswith("ORBD_")
