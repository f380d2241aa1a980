"""One test per vector; without --refqnn-impl the reference itself is tested."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest

from refqnn.conformance.operations import Function
from refqnn.conformance.plugin import REFERENCE, read_expected_failures
from refqnn.conformance.runner import ask, functions_of
from refqnn.conformance.suite import Vector, load_vectors, select
from refqnn.errors import RefqnnError


def _implementation(name: str, folder: str) -> Any:
    """The module, or the mapping in it; modules of the folder where pytest was started count."""
    module, _, attribute = name.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = import_module(module)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--refqnn-impl: cannot load {name!r}: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    folder = str(metafunc.config.invocation_params.dir)
    _implementation(option("refqnn_impl", None) or REFERENCE, folder)  # a wrong name ends it here
    vectors = load_vectors()
    xfails = option("refqnn_xfails", None)
    known = {v.id for v in vectors}
    reasons = read_expected_failures(xfails, known) if xfails is not None else {}
    try:
        chosen = select(vectors, option("refqnn_operation", None), option("refqnn_profile", None))
    except RefqnnError as error:
        raise pytest.UsageError(str(error)) from error
    parameters = [
        pytest.param(
            vector,
            id=vector.id,
            marks=[pytest.mark.xfail(reason=reasons[vector.id], strict=True)]
            if vector.id in reasons
            else [],
        )
        for vector in chosen
    ]
    metafunc.parametrize("vector", parameters)


@pytest.fixture(scope="module")
def implementation(request: pytest.FixtureRequest) -> tuple[str, dict[str, Function]]:
    """The name and the functions of what is tested."""
    name = request.config.getoption("refqnn_impl", None) or REFERENCE
    folder = str(request.config.invocation_params.dir)
    return name, functions_of(_implementation(name, folder))


def test_vector(vector: Vector, implementation: tuple[str, dict[str, Function]]) -> None:
    name, functions = implementation
    outcome = ask(functions, vector, name)
    if outcome.status == "unsupported":
        pytest.skip(outcome.message or "unsupported")
    if outcome.status != "passed":
        pytest.fail(str(outcome), pytrace=False)
