"""Docstrings in the form that PyInfra's documentation generator renders, complete and in step with the code."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pyinfra.api import FactBase

from pyinfra_orbd import facts, helpers, operations

OPERATIONS = [getattr(operations, name) for name in operations.__all__]

FACTS = [getattr(facts, name) for name in facts.__all__]


def arguments(function: Any) -> list[str]:
    """Returns what the generator asks for, in its way: without looking through wrappers."""
    specification = inspect.getfullargspec(function)
    assert specification.varargs is None
    assert specification.varkw is None
    return [name for name in specification.args if name != "self"]


def told(docstring: str | None) -> list[str]:
    """Returns the parameters that a docstring tells of, in its order."""
    return re.findall(r"^    \+ (\w+): \S", docstring or "", re.MULTILINE)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_operations(operation: Any) -> None:
    """Each tells all of its parameters, in order, and has an example that compiles and uses it."""
    inner = operation._inner
    assert told(inner.__doc__) == arguments(inner)
    _, _, example = inner.__doc__.partition(".. code:: python")
    code = inspect.cleandoc(example)
    compile(code, operation.__name__, "exec")
    assert f"{operation.__name__}(" in code
    if not inner.is_idempotent:
        assert "always" in (inner.idempotent_notice or "always") or "each time" in inner.idempotent_notice


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_facts(fact: type[FactBase[Any]]) -> None:
    """Each tells all of its parameters, in order, and what it returns."""
    assert told(fact.__doc__) == arguments(fact.command)
    assert "Returns" in (fact.__doc__ or "")


@pytest.mark.parametrize("name", helpers.__all__)
def test_helpers(name: str) -> None:
    """Each says what it returns."""
    assert getattr(helpers, name).__doc__.startswith("Returns")


def test_every_one_is_documented() -> None:
    """The guide has a word on each."""
    from test_docs import DOCS

    guide = (DOCS / "pyinfra/operations.md").read_text() + (DOCS / "pyinfra/facts.md").read_text()
    for name in (*operations.__all__, *facts.__all__, *helpers.__all__):
        assert re.search(rf"`{name}\b|## .*\b{name}\b", guide), name
    for operation in OPERATIONS:
        for argument in arguments(operation._inner):
            assert re.search(rf"\b{argument}\b", guide), f"{operation.__name__}: {argument}"
