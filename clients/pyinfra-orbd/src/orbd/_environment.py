"""What this process's environment gives a command in a machine, as if ``orbctl run`` had been started from here."""

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
"""Variables that ``orbctl run`` reads, or passes without being asked to. Others are refused unless ``ORBENV`` lists them."""


def caller_environment() -> dict[str, str]:
    """Returns ``ORBENV``, the variables that it lists, ``TERM``, ``DISPLAY`` and proxy variables, as far as they are set.

    For ``caller_env`` of :meth:`~orbd.Client.machine_run`: the daemon gives them to this one ``orbctl`` and to no other.
    """
    entries = os.environ.get(ORBENV, "").split(":")
    # What follows a slash is a flag of the entry.
    listed = [name for name in (entry.partition("/")[0] for entry in entries) if _is_name(name)]
    return {name: os.environ[name] for name in (*READ_BY_ORBCTL, *listed) if name in os.environ}


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not text.startswith("ORBD_")
