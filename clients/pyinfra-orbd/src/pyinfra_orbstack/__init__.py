"""The names of ``pyinfra-orbstack``, for deploys that were written for it.

This is ``pyinfra-orbd``. What a deploy imports from here works as before, and says once what to import instead.
"""

from __future__ import annotations

from importlib.metadata import version

from pyinfra_orbd.connector import OrbStackConnector

__version__ = version("pyinfra-orbd")

__all__ = ["OrbStackConnector", "__version__"]
