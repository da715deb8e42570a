"""Turns the bytes of two streams into lines."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from pyinfra.connectors.util import OutputLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from orbd.models import Chunk


class Stream:
    """One stream, with the decoded parts of its last line, which is not complete yet."""

    __slots__ = ("begun_at", "decode", "name", "partial")

    def __init__(self, name: str) -> None:
        """Starts with an empty line."""
        self.name = name
        # Incremental, because a character can be split between two chunks.
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.partial: list[str] = []
        self.begun_at = 0


class Lines:
    r"""Collects lines in the order of their completion.

    Only ``\\n`` ends a line: carriage returns and form feeds stay in it. Bytes that are not UTF-8 become U+FFFD, so that output
    never fails a command that succeeded.
    """

    def __init__(self, on_line: Callable[[OutputLine], None] | None) -> None:
        """Calls ``on_line`` with each line when it is complete."""
        self._on_line = on_line
        self._streams: dict[str, Stream] = {}
        self._lines: list[OutputLine] = []

    def feed(self, chunk: Chunk) -> None:
        """Adds the bytes of a chunk."""
        name = "stderr" if chunk.stream == "stderr" else "stdout"
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(name)
        self._take(stream, stream.decode(chunk.data), chunk.offset)

    def lost(self, count: int) -> None:
        """Adds a line which says that ``count`` bytes are missing at this position."""
        self._add(OutputLine("stderr", f"[orbd] {count} bytes of output were dropped here: the spool was full"))

    def finish(self) -> list[OutputLine]:
        r"""Ends lines without a final ``\\n``, in the order in which they began, and returns all lines."""
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
