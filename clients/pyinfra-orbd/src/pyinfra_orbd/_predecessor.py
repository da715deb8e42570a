"""Says so when ``pyinfra-orbstack`` is installed too.

Both packages register ``@orbstack``, and PyInfra silently takes whichever it finds last; both also bring a package of the name
``pyinfra_orbstack``, so that installing or removing the one overwrites or removes files of the other.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution, entry_points

from pyinfra import logger

NAME = "pyinfra-orbstack"

OURS = "pyinfra_orbd."


def is_installed() -> bool:
    """Says whether the predecessor is there."""
    try:
        distribution(NAME)
    except PackageNotFoundError:
        return False
    return True


def owner() -> str:
    """Says whose ``@orbstack`` is."""
    found = [entry.value for entry in entry_points(group="pyinfra.connectors") if entry.name == "orbstack"]
    return "pyinfra-orbd" if not found or found[-1].startswith(OURS) else NAME


def warn() -> None:
    """Warns, where there is something to warn of. Called once, when PyInfra loads the connector."""
    if is_installed():
        logger.warning(
            f"{NAME} and pyinfra-orbd are both installed, and @orbstack is {owner()}'s now (@orbd is always ours). Keep one: "
            f"`pip uninstall {NAME}`, then `pip install --force-reinstall --no-deps pyinfra-orbd`, because both have files "
            "named pyinfra_orbstack"
        )
