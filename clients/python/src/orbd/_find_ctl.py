"""Finds ``orbd-ctl``, for everything that runs it: starting the daemon, archives, other files of the Mac, and rsync.

The wheel of this distribution contains the program, but each installer puts it somewhere else, and no single source names all of
these places: ``sysconfig`` describes the running interpreter, not the environment that ``uv run --with`` adds; the distribution's
RECORD has a wrong path after ``pip install --target``.
"""

from __future__ import annotations

import os
import sysconfig
from importlib.metadata import distributions
from shutil import which

from . import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "orbd-ctl"

VARIABLE = "ORBD_CTL"
"""The environment variable that overrides the search with a path."""

PACKAGE = os.path.dirname(os.path.abspath(__file__))


def find_ctl() -> str:
    """Returns the absolute path of ``orbd-ctl``; raises ``CtlFailed``, which names the places, if it is in none of them."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not _is_program(chosen):
            raise errors.CtlFailed(f"{VARIABLE} is {chosen!r}, which is not an executable file; correct it or unset it")
        return os.path.abspath(chosen)
    places = list(dict.fromkeys(_places()))
    for place in places:
        if _is_program(place):
            return place
    on_path = which(PROGRAM)
    if on_path is not None:
        return os.path.abspath(on_path)
    raise errors.CtlFailed(
        f"{PROGRAM} not found at {', '.join(places)}, or on PATH ({os.environ.get('PATH', 'not set')}); "
        f"`pip install --force-reinstall --no-deps orbd` installs it, or set {VARIABLE} to its path"
    )


def _places() -> Iterator[str]:
    """Yields where an installer may have put the program, the closest to this package first."""
    site = os.path.dirname(PACKAGE)
    # Only the folder of this package: further along `sys.path` there may be another version.
    for distribution in distributions(name="orbd", path=[site]):
        for file in distribution.files or ():
            if file.name == PROGRAM:
                yield os.path.normpath(file.locate())
    # `pip install --target`
    yield os.path.join(site, "bin", PROGRAM)
    yield os.path.join(sysconfig.get_path("scripts"), PROGRAM)
    # `pip install --user`
    yield os.path.join(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")), PROGRAM)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)
