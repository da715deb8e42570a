"""Configuration of ``make docs``: Sphinx builds the Markdown pages where they are, so every link works in a checkout too.

The navigation is made from the links in ``docs/README.md``: a page that is not there fails the build.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "orbd"
author = "The orbd authors"
version = release = version_of("pyinfra-orbd")

extensions = ["myst_parser", "sphinx.ext.autodoc"]

# The source folder is the root of the repository, because pages outside `docs` belong to the documentation too.
root_doc = "docs/README"
include_patterns = ["*.md", "docs/**.md", "proto/README.md", "launchd/README.md"]
exclude_patterns = ["build", "target", "**/node_modules", ".*"]

# Anchors are those of GitHub, so that one link works in both.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"

nitpicky = True
# Names of other projects, which this build cannot resolve without the network, and what autodoc cannot see.
nitpick_ignore_regex = [
    # Exists for type checkers only.
    (r"py:class", r"JobOptions"),
    (r"py:.*", r"(typing|typing_extensions|collections\.abc|os|pathlib|builtins|datetime|dataclasses|enum)\..*"),
    (
        r"py:.*",
        r"(None|str|int|float|bool|bytes|object|OSError|ConnectionError|TimeoutError|dict|list|tuple|Any|Self|.*PathLike.*)",
    ),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"orbd {version}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

# The pages whose lists of links are the navigation.
INDEXES = (root_doc, "docs/decisions/README")
SECTION = re.compile(r"^##? (?P<title>.+)\n(?P<text>(?:(?!## ).*\n)*)", re.MULTILINE)
LINK = re.compile(r"\]\((?P<page>[^)#:]+)\.md\)")


def add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    """Adds hidden tables of contents to an index: one for each section, with the pages that it links to."""
    if page not in INDEXES:
        return
    for section in SECTION.finditer(source[0]):
        pages = dict.fromkeys(link["page"] for link in LINK.finditer(section["text"]))
        if pages:
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {section['title']}\n\n" + "\n".join(pages) + "\n```\n"


def add_front_page(app: Sphinx, error: Exception | None) -> None:
    """Writes ``index.html``, which leads to the first page."""
    if error is None and app.builder.format == "html":
        target = f"{root_doc}.html"
        refresh = f'<meta http-equiv="refresh" content="0; url={target}">'
        Path(app.outdir, "index.html").write_text(f'<!doctype html><title>orbd</title>{refresh}<a href="{target}">orbd</a>\n')


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_front_page)
