"""Runs every example of the documentation, in order, page by page.

Each page starts with a daemon, ``orbctl-sim`` and an empty directory, and with two running machines, ``web`` and ``db``, unless
``WITHOUT_MACHINES`` has it. Fenced blocks are executed as a reader would:

- A block after ``<!-- file: NAME -->`` is saved. Other ``python`` blocks are run. A type checker reads both.
- ``sh`` is run, with the programs on PATH, and has to exit with 0, or with N after ``<!-- exits: N -->``.
- ``text`` after ``<!-- says -->``: each line has to match the output of the blocks before it; ``...`` matches anything.
- ``json`` is parsed. ``toml`` is read as orbd's configuration, unless it is saved. Of ``yaml``, each ``run:`` is run.

``EXCEPTED_PAGES``, ``EXCEPTED`` and ``NOT_RUN`` say what is not run, and why. The examples of ``--help``, which are the
generated part of ``docs/cli.md``, are only parsed by ``orbd-ctl``, because they name machines, jobs and files that do not exist.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from real_daemon import RealDaemon, binary, temporary_daemon

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]

EXCEPTED_PAGES = {
    "docs/macos-checklist.md": "needs a Mac with OrbStack",
    "docs/benchmarks.md": "its commands measure for minutes",
    "CONTRIBUTING.md": "its commands build the project and run its tests",
}

EXCEPTED = {
    "python benches": "measures for minutes",
    "make": "builds the project; CI runs these targets",
    "cargo": "builds the project; CI runs it",
    "pip": "changes the Python environment; tests/test_distribution.py installs the package",
    "uv": "changes the computer",
    "apt-get": "changes the computer",
    "launchctl": "needs a Mac",
}
"""A ``sh`` block is not run if it only has commands that begin with these words."""

NOT_RUN = {"not run: tests/test_demo.py runs it": "it uses the programs that `make demo` has built"}
"""Notes of single blocks that are not run."""

UNTYPED = {"file: before.py": "the predecessor's calls, with positional arguments, which PyInfra's type hints do not allow"}

WITHOUT_MACHINES = {"README.md", "docs/getting-started.md", "docs/test-environment.md", "docs/ci.md"}

NEED_ROOT = {"ci", "commands", "cross-machine", "deploys", "inventory", "maintenance", "migration", "monitoring", "orbctl-sim"}
"""Pages whose examples need root inside the machines."""


def examples() -> Iterator[Path]:
    """Yields the pages that may have examples. Decisions have none."""
    for pattern in ("*.md", "docs/*.md", "docs/pyinfra/*.md", "clients/*/README.md", "proto/README.md", "launchd/README.md"):
        yield from sorted(ROOT.glob(pattern))


def name_of(page: Path) -> str:
    """Returns a page's path from the root of the repository."""
    return page.relative_to(ROOT).as_posix()


PAGES = [page for page in examples() if "```" in page.read_text() and name_of(page) not in EXCEPTED_PAGES]

if not PAGES:
    pytest.skip("the documentation is not part of the source distribution", allow_module_level=True)


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    note: str
    text: str


FENCE = re.compile(
    r"^(?:<!-- (?P<note>.+?) -->\n)?^```(?P<language>[\w{}-]*)(?: .*)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: str) -> Iterator[Block]:
    """Yields a page's fenced blocks with the comments before them."""
    for match in FENCE.finditer(page):
        line = page.count("\n", 0, match.start("text"))
        yield Block(line, match["language"], match["note"] or "", match["text"])


def is_excepted(script: str) -> bool:
    """Returns whether a script only has commands that are not run."""
    commands = [line for line in script.splitlines() if line.strip() and not line.startswith(("#", " "))]
    excepted = [any(re.match(rf"{word}\b", line) for word in EXCEPTED) for line in commands]
    assert all(excepted) or not any(excepted), "separate the commands that are not run"
    return all(excepted)


class Reader:
    """Executes the blocks of one page."""

    def __init__(self, daemon: RealDaemon, folder: Path) -> None:
        self.folder = folder
        self.said = ""
        path = os.pathsep.join((str(Path(sys.executable).parent), str(daemon.orbctl.parent), daemon.environment["PATH"]))
        self.environment = {
            **daemon.environment,
            "TMPDIR": str(daemon.folder),
            "PATH": path,
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        # Pages name the socket by its usual path.
        usual = Path(daemon.environment["HOME"], ".orbd")
        usual.mkdir(mode=0o700)
        (usual / "orbd.sock").symlink_to(daemon.socket)

    def follow(self, block: Block, where: str) -> None:
        """Executes one block; a failure names its position."""
        try:
            self._follow(block)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None

    def _follow(self, block: Block) -> None:
        word, _, value = block.note.partition(": ")
        if block.note in NOT_RUN:
            return
        if word == "file":
            (self.folder / value).write_text(block.text)
        elif block.language == "python":
            self.run([sys.executable, "-c", block.text])
        elif block.language == "sh" and not is_excepted(block.text):
            self.run(["sh", "-e", "-c", block.text], code=int(value) if word == "exits" else 0)
        elif block.language == "yaml":
            for command in re.findall(r"^ *(?:- )?run: (.+)$", block.text, re.MULTILINE):
                if not is_excepted(command):
                    self.run(["sh", "-e", "-c", command])
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            (self.folder / "config.toml").write_text(block.text)
            self.run(["orbd-ctl", "daemon", "config", "check", "--file", "config.toml"])
        elif word == "says":
            for line in block.text.splitlines():
                pattern = ".*".join(re.escape(part.strip()) for part in line.strip().split("..."))
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


@pytest.mark.needs_daemon
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples(page: Path, tmp_path: Path) -> None:
    if page.stem in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("machines are directories without root, in which these examples cannot run")
    with temporary_daemon() as daemon:
        if name_of(page) not in WITHOUT_MACHINES:
            daemon.create("web", "db")
        reader = Reader(daemon, tmp_path)
        for block in blocks(page.read_text()):
            reader.follow(block, f"{name_of(page)}:{block.line}")


def help_examples(page: str) -> Iterator[list[str]]:
    """Yields the arguments of each ``orbd-ctl`` in the examples of the reference."""
    _, _, reference = page.partition("## Reference")
    for block in blocks(reference):
        if re.search(r"\[OPTIONS\]|[<\[][A-Z]", block.text):
            continue  # the usage line
        for line in block.text.splitlines():
            # Two spaces begin a comment.
            lexer = shlex.shlex(line.split("  ")[0], posix=True, punctuation_chars="|&>")
            lexer.whitespace_split = True
            for _, command in groupby(lexer, lambda word: word in ("|", "&&", ">")):
                called, *args = command
                if called == "orbd-ctl":
                    yield args


ACT_WITHOUT_DAEMON = re.compile(r"(daemon (start|restart)|service|man --to|uninstall)\b")
"""Verbs that do something even if there is no daemon, so the test does not call them."""


@pytest.mark.needs_daemon
def test_examples_of_the_reference_are_valid_command_lines(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ORBD_SOCKET": str(tmp_path / "no-daemon.sock")}
    examples = list(help_examples((ROOT / "docs/cli.md").read_text()))
    assert len(examples) > 80
    for words in examples:
        if ACT_WITHOUT_DAEMON.match(" ".join(words)):
            continue
        done = subprocess.run(
            [binary("ORBD_CTL_BIN", "orbd-ctl"), "--no-autostart", *words],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        # 2 is the code of an invalid command line, and of one that asks on a terminal. Without a daemon, most others end with 3.
        asks = "no terminal to ask on" in done.stderr
        assert done.returncode != 2 or asks, f"{words}: {done.stderr}"


def test_python_examples_have_correct_types(tmp_path: Path) -> None:
    """Each example is a module of its own, whose name leads to its page and line."""
    for page in PAGES:
        for block in blocks(page.read_text()):
            if block.language == "python" and block.note not in UNTYPED:
                place = re.sub(r"\W", "_", f"{name_of(page)}_{block.line}")
                (tmp_path / f"{place}.py").write_text(block.text)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", PROJECT / "pyproject.toml", "--allow-untyped-calls", tmp_path],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences_and_block_comments_are_valid(page: Path) -> None:
    """A misspelt fence or comment must not disable an example."""
    text = page.read_text()
    found = list(blocks(text))
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), "a fence is not at the start of its line"
    for block in found:
        assert block.language in ("python", "sh", "text", "toml", "json", "yaml", "{eval-rst}"), f"line {block.line}"
        is_known = block.note in NOT_RUN or re.match(r"(file|exits): .|says$|$", block.note)
        assert is_known, f"line {block.line}: {block.note}"
    notes = re.findall(r"^<!-- (?:file|exits|says|not run).*$", text, re.MULTILINE)
    assert len(notes) == sum(bool(block.note) for block in found)


def test_no_exception_is_left_over() -> None:
    scripts = [block.text for page in PAGES for block in blocks(page.read_text()) if block.language in ("sh", "yaml")]
    for word in EXCEPTED:
        assert any(re.search(rf"^(?: *- run: )?{word}\b", script, re.MULTILINE) for script in scripts), word
    notes = {block.note for page in PAGES for block in blocks(page.read_text())}
    assert notes >= {*NOT_RUN, *UNTYPED}
    for page in (*EXCEPTED_PAGES, *WITHOUT_MACHINES):
        assert (ROOT / page).exists(), page
    assert {page.stem for page in PAGES} >= NEED_ROOT


def test_block_comments_belong_to_the_next_block() -> None:
    page = "a\n\n<!-- file: x.py -->\n```python\n1\n```\n\n```sh\nls\n```\n"
    assert list(blocks(page)) == [Block(4, "python", "file: x.py", "1\n"), Block(8, "sh", "", "ls\n")]


def test_commands_that_are_not_run_stand_alone() -> None:
    assert is_excepted("make demo  # builds\ncargo build\n")
    assert not is_excepted("orbd-ctl list\nmaker\n")
    with pytest.raises(AssertionError, match="separate"):
        is_excepted("make demo\norbd-ctl list\n")
