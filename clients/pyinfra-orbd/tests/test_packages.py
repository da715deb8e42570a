"""The packages of the distribution: what they export and what they import."""

from __future__ import annotations

import subprocess
import sys

import orbd
import pyinfra_orbd


def test_pyinfra_orbd_re_exports_the_same_classes() -> None:
    """So ``except`` with one name catches an exception raised under the other."""
    for name in pyinfra_orbd.__all__:
        assert getattr(pyinfra_orbd, name) is getattr(orbd, name)
    assert set(pyinfra_orbd.__all__) == set(orbd.__all__)


def loaded_by(statement: str) -> set[str]:
    """Returns the modules that a fresh Python has loaded after a statement."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; {statement}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-S", "-c", code], text=True).split())


def test_importing_orbd_loads_only_its_own_modules() -> None:
    """Apart from sockets and JSON: no typing, dataclasses, PyInfra or gevent."""
    bare = loaded_by("import __future__, base64, json, select, socket, weakref")
    assert loaded_by("import orbd") - bare == {
        "orbd",
        "orbd._base_client",
        "orbd._client",
        "orbd._gevent",
        "orbd._methods",
        "orbd._transport",
        "orbd.errors",
    }


def test_importing_pyinfra_orbd_does_not_import_pyinfra() -> None:
    """PyInfra's plugin discovery imports packages that it does not use."""
    assert loaded_by("import pyinfra_orbd") - loaded_by("import orbd") == {"pyinfra_orbd"}
