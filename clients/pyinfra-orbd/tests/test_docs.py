"""Runs every example of the documentation, in order, page by page.

Each page starts with a daemon, ``orbctl-sim`` and two running machines, ``web`` and ``db``, in an empty directory. Fenced blocks
are executed as a reader would:

- A block after ``<!-- file: NAME -->`` is saved. Other ``python`` blocks are run.
- ``sh`` is run, with ``pyinfra`` and ``orbd-ctl`` on PATH, and has to exit with 0, or with N after ``<!-- exits: N -->``.
- ``text`` after ``<!-- says -->``: each line has to match the output of the blocks before it; ``...`` matches anything.
- ``<!-- not run: WHY -->`` excludes the next block.
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
    """Yields a page's fenced blocks with the comments before them."""
    for match in FENCE.finditer(page):
        line = page.count("\n", 0, match.start("text"))
        yield Block(line, match["language"], match["note"] or "", match["text"])


class Reader:
    """Executes the blocks of one page."""

    def __init__(self, daemon: RealDaemon, folder: Path) -> None:
        self.folder = folder
        self.said = ""
        path = f"{Path(sys.executable).parent}:{daemon.environment['PATH']}"
        self.environment = {**daemon.environment, "PATH": path, "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def follow(self, block: Block, where: str) -> None:
        """Executes one block; a failure names its position."""
        try:
            self._follow(block)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None

    def _follow(self, block: Block) -> None:
        word, _, value = block.note.partition(": ")
        if word == "not run":
            assert value, "`not run` needs a reason"
        elif word == "file":
            (self.folder / value).write_text(block.text)
        elif block.language == "python":
            self.run([sys.executable, "-c", block.text])
        elif block.language == "sh":
            self.run(["sh", "-e", "-c", block.text], code=int(value) if word == "exits" else 0)
        elif word == "says":
            for line in block.text.splitlines():
                pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
                assert re.search(pattern, self.said), f"no output matches {line!r}:\n{self.said}"
            self.said = ""

    def run(self, words: list[str], code: int = 0) -> None:
        """Runs a program in the page's directory."""
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
        # Pages do not show the colours and padding of PyInfra's host names.
        self.said += re.sub(r"\] +", "] ", re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))
        assert done.returncode == code, done.stdout


# Their examples need root inside the machines.
NEED_ROOT = {"deploys", "inventory", "maintenance"}


@pytest.mark.needs_daemon
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page: Path, tmp_path: Path) -> None:
    if page.stem in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("machines are directories without root, in which these examples cannot run")
    with temporary_daemon() as daemon:
        daemon.create("web", "db")
        reader = Reader(daemon, tmp_path)
        for block in blocks(page.read_text()):
            reader.follow(block, f"{page.name}:{block.line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_fences_and_block_comments_are_valid(page: Path) -> None:
    """A misspelt fence or comment must not disable an example."""
    text = page.read_text()
    found = list(blocks(text))
    assert text.count("\n```") == 2 * len(found)
    assert text.count("<!--") == sum(bool(block.note) for block in found)
    for block in found:
        assert block.language in (*RUN, "text", "toml"), f"{page.name}:{block.line}"
        assert re.match(r"(file|not run|exits): .|says$|$", block.note), f"{page.name}:{block.line}: {block.note}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_existing_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_block_comments_belong_to_the_next_block() -> None:
    page = "a\n\n<!-- file: x.py -->\n```python\n1\n```\n\n```sh\nls\n```\n"
    assert list(blocks(page)) == [Block(4, "python", "file: x.py", "1\n"), Block(8, "sh", "", "ls\n")]
