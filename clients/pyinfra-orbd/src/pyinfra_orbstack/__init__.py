"""Names of ``pyinfra-orbstack``, so that its deploys run unchanged.

This package is part of ``pyinfra-orbd``. Imports from it work as before, and warn once with the name to import instead.
"""

from __future__ import annotations

from importlib.metadata import version

from pyinfra_orbd.connector import OrbStackConnector

__version__ = version("pyinfra-orbd")

__all__ = ["OrbStackConnector", "__version__"]
