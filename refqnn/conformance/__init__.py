"""Test vectors and a conformance kit: prove that an implementation computes the same integers.

    run(functions)             a Python implementation
    conform(command)           any program that speaks JSON lines
    emit(path), verify(path)   questions and answers as files
    pytest --pyargs refqnn.conformance --refqnn-impl=pkg.mod

All of them need numpy alone.  The format and the semantics are in vectors/README.md.
"""

from __future__ import annotations

from refqnn.conformance.offline import emit, verify
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS
from refqnn.conformance.program import HarnessError, conform
from refqnn.conformance.runner import Outcome, Report, run
from refqnn.conformance.suite import (
    SUITE_VERSION,
    Mismatch,
    Rejected,
    Unsupported,
    Vector,
    load_vectors,
    vectors_path,
)
from refqnn.errors import InvalidArgument, mismatch

__all__ = [
    "ERROR_CODES",
    "OPERATIONS",
    "SUITE_VERSION",
    "HarnessError",
    "Mismatch",
    "Outcome",
    "Rejected",
    "Report",
    "Unsupported",
    "Vector",
    "conform",
    "emit",
    "generate",
    "load_vectors",
    "run",
    "stale",
    "vector",
    "vectors_path",
    "verify",
]


def vector(identity: str) -> Vector:
    """The vector of this id.

    Raises: InvalidArgument.

    >>> vector("bit-widths-from-minus-96-to-30").outputs["span_bits"]
    7
    """
    for candidate in load_vectors():
        if candidate.id == identity:
            return candidate
    raise InvalidArgument(mismatch("identity", repr(identity), "the id of a vector"))


def __getattr__(name: str) -> object:
    """`generate` and `stale` are loaded on use: they bring all that makes vectors with them."""
    if name in ("generate", "stale", "writing"):
        from refqnn.conformance.making import writing

        return writing if name == "writing" else getattr(writing, name)
    raise AttributeError(f"module 'refqnn.conformance' has no attribute {name!r}")
