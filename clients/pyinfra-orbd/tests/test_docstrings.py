"""Docstrings match the code and the format of PyInfra's documentation generator."""

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
    """Returns a function's parameters as the generator reads them, without following wrappers."""
    specification = inspect.getfullargspec(function)
    assert specification.varargs is None
    assert specification.varkw is None
    return [name for name in specification.args if name != "self"]


def documented(docstring: str | None) -> list[str]:
    """Returns the parameters that a docstring documents, in its order."""
    return re.findall(r"^    \+ (\w+): \S", docstring or "", re.MULTILINE)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_operation_docstrings_have_all_parameters_and_an_example(operation: Any) -> None:
    inner = operation._inner
    assert documented(inner.__doc__) == arguments(inner)
    _, _, example = inner.__doc__.partition(".. code:: python")
    code = inspect.cleandoc(example)
    compile(code, operation.__name__, "exec")
    assert f"{operation.__name__}(" in code
    if not inner.is_idempotent:
        assert "always" in (inner.idempotent_notice or "always") or "every time" in inner.idempotent_notice


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_fact_docstrings_have_all_parameters_and_the_result(fact: type[FactBase[Any]]) -> None:
    assert documented(fact.__doc__) == arguments(fact.command)
    assert "Returns" in (fact.__doc__ or "")


@pytest.mark.parametrize("name", helpers.__all__)
def test_helper_docstrings_have_the_result(name: str) -> None:
    assert getattr(helpers, name).__doc__.startswith("Returns")


def test_guide_documents_every_operation_fact_and_helper() -> None:
    from test_docs import ROOT

    guide = (ROOT / "docs/pyinfra/operations.md").read_text() + (ROOT / "docs/pyinfra/facts.md").read_text()
    for name in (*operations.__all__, *facts.__all__, *helpers.__all__):
        assert re.search(rf"`{name}\b|## .*\b{name}\b", guide), name
    for operation in OPERATIONS:
        for argument in arguments(operation._inner):
            assert re.search(rf"\b{argument}\b", guide), f"{operation.__name__}: {argument}"
