"""File transfer: scripts that run in the machine, and sources and sinks for local files.

This process opens the files on the Mac, not the daemon: a launchd agent may lack access that the user has.
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
"""Exit code of ``GET_SCRIPT`` if the file does not exist."""


def with_args(script: str, *args: str) -> str:
    """Returns ``script`` with its positional parameters set.

    An arg that starts with ``~/`` is in the home of the user that runs the script, as in PyInfra's facts.
    """
    quoted = (f"~/{shlex.quote(arg[2:])}" if arg.startswith("~/") else shlex.quote(arg) for arg in args)
    return f"set -- {' '.join(quoted)}\n{script}"


def escape_for_sudo_login(script: str) -> str:
    r"""Returns a script with the same effect that survives the escaping of ``sudo -i``.

    ``sudo -i`` escapes the command for the login shell, but not ``$``, and it removes newlines. Variables would be expanded
    before they are set. So all bytes except ASCII letters and digits are written in octal, which ``printf`` decodes.
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
temporary=$(umask 077; mktemp "$folder.pyinfra-orbd.XXXXXXXXXX" 2>/dev/null) ||
    temporary=$(umask 077; mktemp "$fallback/pyinfra-orbd.XXXXXXXXXX") || exit
trap 'rm -f "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$temporary" || exit
received=$(($(wc -c <"$temporary")))
if [ "$received" -ne "$size" ]; then echo "received only $received of $size bytes" >&2; exit 1; fi
if [ -e "$target" ] || [ -L "$target" ] || [ "${temporary#"$folder"}" = "$temporary" ]; then
    cat "$temporary" >"$target"
else
    chmod +rw "$temporary" && mv -f "$temporary" "$target" && trap - EXIT
fi
"""
"""Replaces a file with stdin. Args: ``TARGET SIZE TEMPORARY_FOLDER``.

The size distinguishes a complete upload from a truncated one: the command may outlive the connection that sends its input, and
would take the early end of its input for the end of the file. An existing file is overwritten in place, which keeps its owner,
mode and links. A new file is moved into place and gets the mode of the user's umask, which ``chmod`` without a "who" applies.
"""

GET_MARK = b"\n-- pyinfra-orbd: the file begins after this line --\n"
"""Printed before the bytes of a file, because login shells and profiles may print something first."""

GET_SCRIPT = rf"""
if ! [ -e "$1" ] && ! [ -L "$1" ]; then
    folder=$(dirname "$1")
    if ! [ -d "$folder" ] || [ -x "$folder" ]; then exit {NOT_FOUND}; fi
fi
exec 3<"$1" || exit
printf '\n{GET_MARK.decode().strip()}\n'
exec cat <&3
"""
"""Writes a file to stdout after ``GET_MARK``. Arg: ``FILE``."""


COPY_SCRIPT = 'cat "$1" >"$2"'
"""Copies a file as the user that may write the target. Args: ``FILE TARGET``."""

PROGRESS_EVERY = 5.0
"""Seconds between two progress lines of a long transfer."""


class Progress:
    """Reports the progress of a long transfer."""

    def __init__(self, label: str, total: int | None, notify: Callable[[str], None]) -> None:
        """Starts the timer; ``total`` is the size in bytes, None if only the machine knows it."""
        self._label = label
        self._total = total
        self._notify = notify
        self._moved = 0
        self._notified_at = time.monotonic()

    def add(self, count: int) -> None:
        """Counts ``count`` more bytes, and reports if the interval has passed."""
        self._moved += count
        now = time.monotonic()
        if now - self._notified_at < PROGRESS_EVERY:
            return
        self._notified_at = now
        megabytes = f"{self._moved / 1e6:.1f}"
        if self._total:
            self._notify(f"{self._label}: {megabytes} of {self._total / 1e6:.1f} MB ({100 * self._moved // self._total} %)")
        else:
            self._notify(f"{self._label}: {megabytes} MB")

    def track(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yields the pieces, and counts each when the next one is requested."""
        for piece in pieces:
            yield piece
            self.add(len(piece))


class Source:
    """Bytes to upload, from a path or a file object of text or bytes. They can be read more than once."""

    size: int

    def __init__(self, filename_or_io: Any) -> None:
        """Does not open the file yet."""
        self._given = filename_or_io
        self._file: Any = None
        self._is_ours = False
        self._start = 0

    def __enter__(self) -> Self:
        """Opens the file and determines its size."""
        if isinstance(self._given, (str, os.PathLike)):
            self._file = open(self._given, "rb")
            self._is_ours = True
        elif hasattr(self._given, "read"):
            self._file = self._binary(self._given)
        else:
            raise TypeError(f"expected a path or a file object, got {self._given!r}")
        self.size = self._file.seek(0, io.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file if it was opened here."""
        if self._is_ours:
            self._file.close()

    @staticmethod
    def _binary(given: Any) -> Any:
        """Returns a seekable binary file with the content of ``given``."""
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
        """Yields ``size`` bytes from the start; fewer if the file shrank, which the script in the machine detects."""
        self._file.seek(0)
        left = self.size
        while left > 0:
            piece: bytes = self._file.read(min(length, left))
            if not piece:
                return
            left -= len(piece)
            yield piece


class Sink:
    """Target of a download: a path, or a file object of text or bytes.

    A regular file is downloaded to a temporary file in the same directory, which :meth:`commit` moves into place. Devices, pipes
    and links are written directly.
    """

    def __init__(self, filename_or_io: Any, mark: bytes) -> None:
        """Does not open the file yet; its content starts after ``mark`` in the received bytes."""
        self._given = filename_or_io
        self._mark = mark
        self._head: bytearray | None = bytearray()
        self._file: Any = None
        self._temporary: str | None = None
        self._text: bytearray | None = None

    def __enter__(self) -> Self:
        """Checks the target's type; the target is opened when the first byte of the file arrives."""
        if not isinstance(self._given, (str, os.PathLike)) and not hasattr(self._given, "write"):
            raise TypeError(f"expected a path or a file object, got {self._given!r}")
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file and removes a temporary file that was not committed."""
        if self._file is not None and self._file is not self._given:
            self._file.close()
        if self._temporary is not None:
            os.unlink(self._temporary)

    def restart(self) -> None:
        """Discards the received bytes, because the command runs again."""
        self._head = bytearray()
        if self._text is not None:
            self._text.clear()
        elif self._file is not None and self._file.seekable():
            self._file.seek(0)
            self._file.truncate()

    def write(self, data: bytes) -> None:
        """Adds received bytes."""
        if self._head is not None:
            self._head += data
            before, mark, data = bytes(self._head).partition(self._mark)
            if not mark:
                # Keep only the end of other output, which may contain the first part of the mark.
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
        """Fails the download, because ``count`` bytes are missing."""
        raise OSError(f"{count} bytes of the download were dropped: orbd's spool was full")

    def commit(self) -> None:
        """Completes the download: moves the file into place, or passes the content to the file object."""
        if self._head is not None:
            raise OSError("the download ended before the start of the file")
        if self._text is not None:
            # `surrogateescape` preserves bytes that are not UTF-8: encoding the text the same way restores them.
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
