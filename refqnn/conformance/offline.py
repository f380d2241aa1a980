"""Questions and answers as files, for implementations that cannot be driven: emit, then verify.

Both are JSON lines.  A question is {"id", "operation", "arguments"}; an answer is {"id"} with one
of "result", "error", "skipped", as in the protocol (`refqnn.conformance.program`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from refqnn.conformance.operations import Values
from refqnn.conformance.program import read_answer
from refqnn.conformance.runner import Outcome, Report, encoded_arguments, judge, report_on
from refqnn.conformance.suite import load_vectors, select
from refqnn.container import as_path, read_file, write_atomically
from refqnn.errors import FileFormatError, mismatch

__all__ = ["emit", "verify"]


def emit(
    path: str | Path,
    *,
    operations: Iterable[str] | None = None,
    profiles: Iterable[str] | None = None,
) -> int:
    """Write the questions, one a line.

    Returns: how many.
    """
    vectors = select(load_vectors(), operations, profiles)
    lines = [
        {"id": v.id, "operation": v.operation, "arguments": encoded_arguments(v)} for v in vectors
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(path, lambda file: file.write(text.encode()))
    return len(lines)


def verify(path: str | Path, *, name: str | None = None) -> Report:
    """Judge a file of answers.  Vectors without an answer are unsupported.

    Raises: FileFormatError for a line that is not JSON, an unknown id, or one answered twice.
    """
    path = as_path(path)
    vectors = {v.id: v for v in load_vectors()}
    answers: dict[str, Values] = {}
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        where = f"{path.name}, line {number}"
        try:
            answer = json.loads(line)
            identity = answer["id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise FileFormatError(f'{where}: expected a JSON object with an "id"') from None
        if not isinstance(identity, str) or identity not in vectors:
            raise FileFormatError(mismatch(f"{where}: id", repr(identity), "an id of the suite"))
        if identity in answers:
            raise FileFormatError(f"{where}: {identity} is answered twice")
        answers[identity] = answer
    outcomes = [
        judge(vector, read_answer(vector, answers[i]), f"answer of {i} in {path.name}")
        if i in answers
        else Outcome(vector, "unsupported", message="no answer")
        for i, vector in vectors.items()
    ]
    return report_on(name or path.stem, outcomes)
