"""The pytest plugin: options, header, expected failures.

    pytest --pyargs refqnn.conformance --refqnn-impl=pkg.mod

Each vector is one test, `test_vector[id]`.  The file of expected failures holds one id a line and a
reason after it; `#` starts a comment.  An id that the suite does not have is an error, and so is an
expected failure that passes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["read_expected_failures"]

REFERENCE = "refqnn.conformance.reference"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("refqnn", "conformance of quantized arithmetic")
    group.addoption(
        "--refqnn-impl",
        metavar="MODULE",
        help="module whose functions are tested; `module:name` for a mapping in it",
    )
    group.addoption(
        "--refqnn-profile",
        action="append",
        metavar="PROFILE",
        help="ask only vectors whose profiles are among these; may be repeated",
    )
    group.addoption(
        "--refqnn-operation",
        action="append",
        metavar="OPERATION",
        help="ask only these operations; may be repeated",
    )
    group.addoption(
        "--refqnn-xfails",
        metavar="FILE",
        type=Path,
        help="expected failures: a vector id and a reason on each line",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    if config.getoption("refqnn_impl") is None:
        return []
    options = ("refqnn_impl", "refqnn_profile", "refqnn_operation", "refqnn_xfails")
    given = [(name, config.getoption(name)) for name in options]
    return ["refqnn: " + ", ".join(f"{n.removeprefix('refqnn_')}={v}" for n, v in given if v)]


def read_expected_failures(path: Path, known: set[str]) -> dict[str, str]:
    """Vector id -> reason.

    Raises: pytest.UsageError for a line without a reason, an unknown id, one named twice.
    """
    reasons: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        identity, _, reason = text.partition(" ")
        where = f"{path}:{number}"
        if identity not in known:
            raise pytest.UsageError(f"{where}: no vector has the id {identity!r}")
        if identity in reasons:
            raise pytest.UsageError(f"{where}: {identity} is named twice")
        if not reason.strip():
            raise pytest.UsageError(f"{where}: expected a reason after {identity}")
        reasons[identity] = reason.strip()
    return reasons
