"""Runs every example of the documentation, in order, page by page.

A page starts with a daemon, the stand-in and two running machines, ``web`` and ``db``, in an empty folder. Fenced blocks mean
what a reader would do with them:

- ``python`` after ``<!-- file: NAME -->`` is saved; without it, it is run.
- ``sh`` is run, with ``pyinfra`` and ``orbd-ctl`` on PATH, and has to succeed; after ``<!-- exits: N -->`` it has to exit so.
- ``text`` after ``<!-- says -->``: each of its lines stands in what the examples before it printed, ``...`` for anything.
- ``<!-- not run: WHY -->`` before a block leaves it out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from real_daemon import RealDaemon, temporary_daemon

DOCS = Path(__file__).resolve().parents[3] / "docs"

PAGES = [DOCS / "migration.md", *sorted((DOCS / "pyinfra").glob("*.md"))]

RUN = ("python", "sh")


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    note: str
    text: str


FENCE = re.compile(r"^(?:<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> Iterator[Block]:
    """Finds a page's fenced blocks with the notes before them."""
    for match in FENCE.finditer(page):
        line = page.count("\n", 0, match.start("text"))
        yield Block(line, match["language"], match["note"] or "", match["text"])


class Reader:
    """Does what the page says."""

    def __init__(self, daemon: RealDaemon, folder: Path) -> None:
        self.folder = folder
        self.said = ""
        path = f"{Path(sys.executable).parent}:{daemon.environment['PATH']}"
        self.environment = {**daemon.environment, "PATH": path, "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def follow(self, block: Block, where: str) -> None:
        """Does what one block says; a failure tells where it stands."""
        try:
            self._follow(block)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None

    def _follow(self, block: Block) -> None:
        word, _, value = block.note.partition(": ")
        if word == "not run":
            assert value, "say why it is not run"
        elif word == "file":
            (self.folder / value).write_text(block.text)
        elif block.language == "python":
            self.run([sys.executable, "-c", block.text])
        elif block.language == "sh":
            self.run(["sh", "-e", "-c", block.text], code=int(value) if word == "exits" else 0)
        elif word == "says":
            for line in block.text.splitlines():
                pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
                assert re.search(pattern, self.said), f"nothing said {line!r}:\n{self.said}"
            self.said = ""

    def run(self, words: list[str], code: int = 0) -> None:
        """Runs a program in the page's folder."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        # The colours and paddings of PyInfra's host names are nothing that a page could show.
        self.said += re.sub(r"\] +", "] ", re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))
        assert done.returncode == code, done.stdout


@pytest.mark.needs_daemon
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page: Path, tmp_path: Path) -> None:
    """Every example of the page does what the page says."""
    with temporary_daemon() as daemon:
        daemon.create("web", "db")
        reader = Reader(daemon, tmp_path)
        for block in blocks(page.read_text()):
            reader.follow(block, f"{page.name}:{block.line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_understood(page: Path) -> None:
    """No example is passed over because its fence or note is misspelt."""
    text = page.read_text()
    found = list(blocks(text))
    assert text.count("\n```") == 2 * len(found)
    assert text.count("<!--") == sum(bool(block.note) for block in found)
    for block in found:
        assert block.language in (*RUN, "text", "toml"), f"{page.name}:{block.line}"
        assert re.match(r"(file|not run|exits): .|says$|$", block.note), f"{page.name}:{block.line}: {block.note}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page: Path) -> None:
    """They lead somewhere."""
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_blocks() -> None:
    """Notes belong to the block right after them."""
    page = "a\n\n<!-- file: x.py -->\n```python\n1\n```\n\n```sh\nls\n```\n"
    assert list(blocks(page)) == [Block(4, "python", "file: x.py", "1\n"), Block(8, "sh", "", "ls\n")]
