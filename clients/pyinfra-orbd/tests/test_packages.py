"""The two packages of the distribution: what each offers and what neither may bring along."""

from __future__ import annotations

import subprocess
import sys

import orbd
import pyinfra_orbd


def test_the_client_can_be_had_beside_the_connector() -> None:
    """The same classes, so that an ``except`` with one name catches what was raised under the other."""
    for name in pyinfra_orbd.__all__:
        assert getattr(pyinfra_orbd, name) is getattr(orbd, name)
    assert set(pyinfra_orbd.__all__) == set(orbd.__all__)


def loaded_by(statement: str) -> set[str]:
    """Returns what a fresh Python without site packages has loaded after it."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; {statement}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-S", "-c", code], text=True).split())


def test_importing_the_client_is_light() -> None:
    """What it costs above sockets and JSON is its own three files: no typing, no dataclasses, no PyInfra, no gevent."""
    bare = loaded_by("import __future__, base64, json, select, socket, weakref")
    assert loaded_by("import orbd") - bare == {"orbd", "orbd._client", "orbd._environment", "orbd._transport", "orbd.errors"}


def test_importing_the_connectors_package_is_light() -> None:
    """PyInfra's plugin machinery looks at packages that it does not use; only the connector's module brings PyInfra."""
    assert loaded_by("import pyinfra_orbd") - loaded_by("import orbd") == {"pyinfra_orbd"}
