"""Warns if ``pyinfra-orbstack`` is installed too.

Both distributions register ``@orbstack``, and PyInfra silently uses the one that it finds last. Both also contain a package named
``pyinfra_orbstack``, so installing or removing one overwrites or removes files of the other.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution, entry_points

from pyinfra import logger

NAME = "pyinfra-orbstack"

OURS = "pyinfra_orbd."


def is_installed() -> bool:
    """Returns whether the predecessor is installed."""
    try:
        distribution(NAME)
    except PackageNotFoundError:
        return False
    return True


def owner() -> str:
    """Returns the distribution whose connector PyInfra uses for ``@orbstack``."""
    found = [entry.value for entry in entry_points(group="pyinfra.connectors") if entry.name == "orbstack"]
    return "pyinfra-orbd" if not found or found[-1].startswith(OURS) else NAME


def warn() -> None:
    """Warns if both distributions are installed. Called once, when PyInfra loads the connector."""
    if is_installed():
        logger.warning(
            f"{NAME} and pyinfra-orbd are both installed; @orbstack currently uses {owner()} (@orbd always uses pyinfra-orbd). "
            f"Keep only one: run `pip uninstall {NAME}`, then `pip install --force-reinstall --no-deps pyinfra-orbd`, because "
            "both install the package pyinfra_orbstack"
        )
