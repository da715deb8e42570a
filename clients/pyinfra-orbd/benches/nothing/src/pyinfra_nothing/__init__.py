"""A connector that does nothing, to measure the cost of PyInfra itself.

``@nothing/10`` is ten hosts. Every command and every transfer succeeds immediately, without output or data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.util import CommandOutput
from typing_extensions import override


class NothingConnector(BaseConnector):
    """The ``@nothing`` connector."""

    handles_execution = True

    @override
    @staticmethod
    def make_names_data(name: str | None = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Yields the number of hosts in ``name``."""
        for number in range(int(name or 1)):
            yield f"nothing-{number}", {}, []

    @override
    def run_shell_command(
        self, command: Any, print_output: bool = False, print_input: bool = False, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        """Succeeds."""
        return True, CommandOutput([])

    @override
    def put_file(self, filename_or_io: Any, remote_filename: str, *rest: Any, **arguments: Any) -> bool:
        """Succeeds."""
        return True

    @override
    def get_file(self, remote_filename: str, filename_or_io: Any, *rest: Any, **arguments: Any) -> bool:
        """Succeeds."""
        return True
