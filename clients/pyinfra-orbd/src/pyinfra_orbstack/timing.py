"""Deprecated name of :mod:`pyinfra_orbd.timing`."""

from __future__ import annotations

from pyinfra_orbd.timing import configure_logging, timed, timed_operation

from ._note import note

note("pyinfra_orbstack.timing", "pyinfra_orbd.timing")

__all__ = ["configure_logging", "timed", "timed_operation"]
