"""Deprecated name of :mod:`pyinfra_orbd.connector`."""

from __future__ import annotations

from pyinfra_orbd.connector import OrbStackConnector

from ._note import note

note("pyinfra_orbstack.connector", "pyinfra_orbd.connector")

__all__ = ["OrbStackConnector"]
