"""The command of a fact that was answered before PyInfra could run it."""

from __future__ import annotations

import shlex

from pyinfra.api.command import StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

ANSWERED = "orbd"


class Asked(StringCommand):
    """A command that was carried out already: the daemon was asked. ``error`` is what it said where it could not answer."""

    def __init__(self, error: str | None) -> None:
        self.error = error
        said = f"echo {ANSWERED}" if error is None else f"echo {shlex.quote(error)} >&2; exit 1"
        super().__init__(said)

    def outcome(self) -> tuple[bool, CommandOutput]:
        """Returns what running it would give."""
        line = OutputLine("stdout", ANSWERED) if self.error is None else OutputLine("stderr", self.error)
        return self.error is None, CommandOutput([line])
