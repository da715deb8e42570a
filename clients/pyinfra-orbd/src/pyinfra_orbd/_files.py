"""Both ends of a file's way: scripts for the machine's end, sources and sinks for ours.

Files on the Mac are opened here and never by the daemon, which as a launchd agent may not read where the user may.
"""

from __future__ import annotations

import io
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import Self

NOT_FOUND = 44
"""Exit code of ``GET_SCRIPT`` when there is no such file."""


def with_words(script: str, *words: str) -> str:
    """Returns ``script`` with its positional parameters set.

    A word that begins with ``~/`` lies in the home of whoever runs the script, as PyInfra's facts have it.
    """
    quoted = (f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word) for word in words)
    return f"set -- {' '.join(quoted)}\n{script}"


def armoured(script: str) -> str:
    r"""Returns a script that does the same and survives ``sudo -i``.

    That one escapes its command for the login shell, but leaves ``$`` alone and makes nothing of newlines: variables would be
    expanded before they are set. So everything but plain letters becomes octal, for ``printf`` to undo.
    """
    coded = "".join(
        chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"\\0{byte:03o}"
        for byte in script.encode("utf-8", "surrogateescape")
    )
    return f"eval \"`printf %b '{coded}'`\""


PUT_SCRIPT = r"""
target=$1 size=$2 fallback=$3
if [ -d "$target" ]; then echo "$target is a directory" >&2; exit 1; fi
case $target in */*) folder=${target%/*}/ ;; *) folder=./ ;; esac
mask=$(umask)
umask 077
temporary=$(mktemp "$folder.pyinfra-orbd.XXXXXXXXXX" 2>/dev/null) ||
    temporary=$(mktemp "$fallback/pyinfra-orbd.XXXXXXXXXX") || exit
trap 'rm -f "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$temporary" || exit
came=$(($(wc -c <"$temporary")))
if [ "$came" -ne "$size" ]; then echo "only $came of $size bytes came" >&2; exit 1; fi
umask "$mask"
if [ -e "$target" ] || [ -L "$target" ] || [ "${temporary#"$folder"}" = "$temporary" ]; then
    cat "$temporary" >"$target"
else
    chmod +rw "$temporary" && mv -f "$temporary" "$target"
fi
"""
"""Puts stdin in place of a file: ``TARGET SIZE TEMPORARY_FOLDER``.

The size is how a stream that was cut short is told from one that ended: a machine's command may outlive the connection that fed
it, and would take the early end of its input for the end of the file. A file that exists is written to, which keeps its owner,
mode, hard and symbolic links; a new one is moved into place, with the mode that the user's umask gives (which is what ``chmod``
without a "who" does).
"""

GET_MARK = b"\n-- pyinfra-orbd: the file begins after this line --\n"
"""Stands before the bytes of a file: login shells and profiles may print before we do."""

GET_SCRIPT = rf"""
if ! [ -e "$1" ] && ! [ -L "$1" ]; then
    folder=$(dirname "$1")
    if ! [ -d "$folder" ] || [ -x "$folder" ]; then exit {NOT_FOUND}; fi
fi
exec 3<"$1" || exit
printf '\n{GET_MARK.decode().strip()}\n'
exec cat <&3
"""
"""Writes a file to stdout after ``GET_MARK``: ``FILE``."""


COPY_SCRIPT = 'cat "$1" >"$2"'
"""Copies what only it may write to: ``FILE TARGET``."""

PROGRESS_EVERY = 5.0
"""Seconds between two lines about a file that takes long."""


class Progress:
    """Says how far a file has come, when that takes so long that somebody might wonder."""

    def __init__(self, what: str, total: int | None, tell: Callable[[str], None]) -> None:
        """Begins; ``total`` is absent where only the other end knows it."""
        self._what = what
        self._total = total
        self._tell = tell
        self._moved = 0
        self._told = time.monotonic()

    def moved(self, count: int) -> None:
        """Takes notice of so many more bytes."""
        self._moved += count
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        self._told = now
        megabytes = f"{self._moved / 1e6:.1f}"
        if self._total:
            self._tell(f"{self._what}: {megabytes} of {self._total / 1e6:.1f} MB ({100 * self._moved // self._total} %)")
        else:
            self._tell(f"{self._what}: {megabytes} MB")

    def of(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Hands on pieces and takes notice of each when the next one is wanted."""
        for piece in pieces:
            yield piece
            self.moved(len(piece))


class Source:
    """Bytes to upload, from a path or a file object of text or bytes; can be read again from its start."""

    size: int

    def __init__(self, filename_or_io: Any) -> None:
        """Opens nothing yet."""
        self._given = filename_or_io
        self._file: Any = None
        self._is_ours = False
        self._start = 0

    def __enter__(self) -> Self:
        """Opens the file and finds its size."""
        if isinstance(self._given, (str, os.PathLike)):
            self._file = open(self._given, "rb")
            self._is_ours = True
        elif hasattr(self._given, "read"):
            self._file = self._binary(self._given)
        else:
            raise TypeError(f"neither a file name nor a file object: {self._given!r}")
        self.size = self._file.seek(0, io.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        """Closes what was opened here."""
        if self._is_ours:
            self._file.close()

    @staticmethod
    def _binary(given: Any) -> Any:
        """Returns a file of bytes that can be read twice, from the start of ``given``."""
        is_seekable = hasattr(given, "seekable") and given.seekable()
        if is_seekable:
            given.seek(0)
            if not isinstance(given, io.TextIOBase) and isinstance(given.read(0), bytes):
                return given
        content = given.read()
        return io.BytesIO(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)

    def read_all(self) -> bytes:
        """Returns all bytes."""
        return b"".join(self.pieces(self.size or 1))

    def pieces(self, length: int) -> Iterator[bytes]:
        """Yields exactly ``size`` bytes from the start, or fewer where the file shrank; the machine's end will notice."""
        self._file.seek(0)
        left = self.size
        while left > 0:
            piece: bytes = self._file.read(min(length, left))
            if not piece:
                return
            left -= len(piece)
            yield piece


class Sink:
    """Where a download goes: a path, or a file object of text or bytes.

    A path is written to only by :meth:`commit`, through a temporary file beside it; devices, pipes and links are written through.
    """

    def __init__(self, filename_or_io: Any, mark: bytes) -> None:
        """Opens nothing yet; the file begins after ``mark`` in what is written."""
        self._given = filename_or_io
        self._mark = mark
        self._head: bytearray | None = bytearray()
        self._file: Any = None
        self._temporary: str | None = None
        self._text: bytearray | None = None

    def __enter__(self) -> Self:
        """Prepares for the first byte; nothing of the caller's is touched before it comes."""
        if not isinstance(self._given, (str, os.PathLike)) and not hasattr(self._given, "write"):
            raise TypeError(f"neither a file name nor a file object: {self._given!r}")
        return self

    def __exit__(self, *_: object) -> None:
        """Removes what was not committed."""
        if self._file is not None and self._file is not self._given:
            self._file.close()
        if self._temporary is not None:
            os.unlink(self._temporary)

    def restart(self) -> None:
        """Forgets what came: the command is run again, from the start."""
        self._head = bytearray()
        if self._text is not None:
            self._text.clear()
        elif self._file is not None and self._file.seekable():
            self._file.seek(0)
            self._file.truncate()

    def write(self, data: bytes) -> None:
        """Takes bytes."""
        if self._head is not None:
            self._head += data
            before, mark, data = bytes(self._head).partition(self._mark)
            if not mark:
                # Of noise before the mark only as much is kept as could be its beginning.
                self._head = bytearray(before[-len(self._mark) :])
                return
            self._head = None
            if self._file is None and self._text is None:
                self._open()
        if self._text is not None:
            self._text += data
        else:
            self._file.write(data)

    def lost(self, count: int) -> None:
        """Refuses a download with a hole in it."""
        raise OSError(f"{count} bytes of the download were dropped: orbd's spool was full")

    def commit(self) -> None:
        """Puts what came in place."""
        if self._head is not None:
            raise OSError("the machine ended the download before the file began")
        if self._text is not None:
            # What is not UTF-8 goes through unharmed: encoding it the same way gives the same bytes.
            self._given.write(self._text.decode("utf-8", "surrogateescape"))
        elif self._temporary is not None:
            self._file.close()
            path = os.fspath(self._given)
            os.chmod(self._temporary, self._mode(path))
            os.replace(self._temporary, path)
            self._temporary = None
        else:
            self._file.flush()

    def _open(self) -> None:
        given = self._given
        if isinstance(given, (str, os.PathLike)):
            path = os.fspath(given)
            if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
                self._file = open(path, "wb")  # noqa: SIM115
                return
            folder = os.path.dirname(path) or "."
            descriptor, self._temporary = tempfile.mkstemp(prefix=".pyinfra-orbd.", dir=folder)
            self._file = os.fdopen(descriptor, "wb")
            return
        if hasattr(given, "seekable") and given.seekable():
            given.seek(0)
        if isinstance(given, io.TextIOBase):
            self._text = bytearray()
        else:
            self._file = given

    @staticmethod
    def _mode(path: str) -> int:
        try:
            return stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            mask = os.umask(0)
            os.umask(mask)
            return 0o666 & ~mask
