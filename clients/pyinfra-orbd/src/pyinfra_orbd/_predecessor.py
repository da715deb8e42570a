"""What users of ``pyinfra-orbstack`` need: its arguments, and a warning if it is installed too.

Both distributions register ``@orbstack``, and PyInfra silently uses the one that it finds last. Both also contain a package named
``pyinfra_orbstack``, so installing or removing one overwrites or removes files of the other.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from pyinfra import logger

if TYPE_CHECKING:
    from pyinfra.api.arguments import ConnectorArguments

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


class Legacy(NamedTuple):
    """Keyword arguments of ``pyinfra-orbstack`` that have no equivalent argument in PyInfra."""

    user: str | None
    mode: str | None


# PyInfra's names of the other keyword arguments of `pyinfra-orbstack`.
_LEGACY_NAMES = {"workdir": "_chdir", "timeout": "_timeout", "sudo": "_sudo", "sudo_user": "_sudo_user"}


def without_legacy(arguments: ConnectorArguments) -> tuple[ConnectorArguments, Legacy]:
    """Translates keyword arguments of ``pyinfra-orbstack`` into PyInfra's; ignores ``max_retries``, as no command runs twice."""
    given: dict[str, Any] = dict(arguments)
    old = [name for name in (*_LEGACY_NAMES, "user", "mode", "max_retries") if name in given]
    if not old:
        return arguments, Legacy(None, None)
    new = {"user": "the host data orbstack_user", "mode": "files.put(mode=)", "max_retries": "nothing", **_LEGACY_NAMES}
    replacements = ", ".join(f"{name} ({new[name]})" for name in old)
    warnings.warn(f"deprecated arguments of pyinfra-orbstack (use instead): {replacements}", DeprecationWarning, stacklevel=3)
    values = {name: given.pop(name) for name in old}
    for name, ours in _LEGACY_NAMES.items():
        if values.get(name) is not None:
            given.setdefault(ours, values[name])
    return given, Legacy(values.get("user"), values.get("mode"))  # type: ignore[return-value]
