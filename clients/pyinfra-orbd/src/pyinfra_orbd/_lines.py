"""Turns the bytes of two streams into lines."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from pyinfra.connectors.util import OutputLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from orbd.models import Chunk


class Stream:
    """One stream: what was decoded of its last line, which has not ended yet."""

    __slots__ = ("begun_at", "decode", "name", "partial")

    def __init__(self, name: str) -> None:
        """Starts empty."""
        self.name = name
        # Incremental: a character may be cut in two by the border of two chunks.
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.partial: list[str] = []
        self.begun_at = 0


class Lines:
    r"""Collects lines in the order in which they were completed.

    A line ends at ``\\n`` and nowhere else: progress bars and form feeds stay inside it. Bytes that are not UTF-8 become
    U+FFFD, so that no output can fail a command that succeeded.
    """

    def __init__(self, on_line: Callable[[OutputLine], None] | None) -> None:
        """Calls ``on_line`` with each line as it is completed."""
        self._on_line = on_line
        self._streams: dict[str, Stream] = {}
        self._lines: list[OutputLine] = []

    def feed(self, chunk: Chunk) -> None:
        """Takes bytes."""
        name = "stderr" if chunk.stream == "stderr" else "stdout"
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(name)
        self._take(stream, stream.decode(chunk.data), chunk.offset)

    def lost(self, count: int) -> None:
        """Says among the lines that bytes are missing here."""
        self._add(OutputLine("stderr", f"[orbd] {count} bytes of output were dropped here: the spool was full"))

    def finish(self) -> list[OutputLine]:
        r"""Ends the lines that no ``\\n`` ended, the one begun first first, and returns all."""
        for stream in sorted(self._streams.values(), key=lambda stream: stream.begun_at):
            self._take(stream, stream.decode(b"", True), stream.begun_at)
            if stream.partial:
                self._end_line(stream)
        return self._lines

    def _take(self, stream: Stream, text: str, offset: int) -> None:
        if not text:
            return
        *ended, rest = text.split("\n")
        for part in ended:
            stream.partial.append(part)
            self._end_line(stream)
        if rest:
            if not stream.partial:
                stream.begun_at = offset
            stream.partial.append(rest)

    def _end_line(self, stream: Stream) -> None:
        line = "".join(stream.partial)
        stream.partial.clear()
        self._add(OutputLine(stream.name, line))

    def _add(self, line: OutputLine) -> None:
        self._lines.append(line)
        if self._on_line is not None:
            self._on_line(line)
