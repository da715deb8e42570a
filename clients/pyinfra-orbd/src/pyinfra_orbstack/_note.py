"""Tells what to write instead of an old name: once for each module, where PyInfra's users see it."""

from __future__ import annotations

import warnings

from pyinfra import logger


def note(old: str, new: str) -> None:
    """Says it. PyInfra's command line hides Python's own warnings, so its log has it too."""
    text = f"{old} is the old name of {new}, which pyinfra-orbd has; see its migration guide"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    logger.warning(text)
