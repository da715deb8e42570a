"""Placeholder command of a fact that the daemon has already answered."""

from __future__ import annotations

import shlex

from pyinfra.api.command import StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

PLACEHOLDER = "orbd"


class PrecomputedCommand(StringCommand):
    """Command that only reports whether the daemon answered; ``error`` is its error message, or None if it did."""

    def __init__(self, error: str | None) -> None:
        self.error = error
        command = f"echo {PLACEHOLDER}" if error is None else f"echo {shlex.quote(error)} >&2; exit 1"
        super().__init__(command)

    def outcome(self) -> tuple[bool, CommandOutput]:
        """Returns the result that the command would have, without running it."""
        line = OutputLine("stdout", PLACEHOLDER) if self.error is None else OutputLine("stderr", self.error)
        return self.error is None, CommandOutput([line])
