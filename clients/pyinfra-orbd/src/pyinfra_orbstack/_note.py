"""Deprecation warning for an old module name, once for each module, visible to users of PyInfra's command line."""

from __future__ import annotations

import warnings

from pyinfra import logger


def note(old: str, new: str) -> None:
    """Warns, and also logs the warning, because PyInfra's command line hides Python warnings."""
    text = f"{old} is deprecated: import {new} instead; see the migration guide of pyinfra-orbd"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    logger.warning(text)
