"""Run the vectors against an implementation, and say what is wrong with it."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from refqnn.conformance.encoding import encode_fields
from refqnn.conformance.notes import NOTES
from refqnn.conformance.operations import OPERATIONS, Function, Values, functions_in
from refqnn.conformance.specification import first_broken
from refqnn.conformance.suite import (
    SEMANTICS_VERSION,
    SUITE_VERSION,
    Answer,
    Mismatch,
    Vector,
    as_result,
    call,
    compare,
    load_vectors,
    select,
)
from refqnn.container import write_atomically
from refqnn.display import Shown, safe, shortened
from refqnn.errors import InvalidType, mismatch

if TYPE_CHECKING:
    from refqnn.conformance.mutants import Mutant

__all__ = ["Outcome", "Report", "functions_of", "judge", "passes", "report_on", "run"]

Implementation = Mapping[str, Function] | ModuleType
Status = Literal["passed", "failed", "unsupported", "fault"]


@dataclass(frozen=True)
class Outcome:
    """The verdict on one vector.

    Attributes:
        status: "passed"; "failed" (a wrong result, a valid vector refused, an invalid one
            accepted or refused under a wrong code); "unsupported"; "fault" (crash, time limit,
            garbage).
        mismatch: the first differing value, where there is one.
        message: what the implementation said.
        resembles: mutants that give this very answer, and in a report all answers of the operation.
        reproduction: how to see it again.
        others: in a report, how many mutants more give this answer, but not all the others.
    """

    vector: Vector
    status: Status
    mismatch: Mismatch | None = None
    message: str = ""
    resembles: tuple[str, ...] = ()
    reproduction: str = ""
    others: int = 0

    def to_json(self) -> Values:
        """One line of the report."""
        v = self.vector
        line: Values = {"id": v.id, "operation": v.operation, "status": self.status}
        if self.status in ("passed", "unsupported"):
            return line | ({"message": self.message} if self.message else {})
        found = None
        if self.mismatch is not None:
            found = {
                "output": self.mismatch.output,
                "index": None if self.mismatch.index is None else list(self.mismatch.index),
                "expected": self.mismatch.expected,
                "got": self.mismatch.got,
                "differing": self.mismatch.differing,
                "total": self.mismatch.total,
            }
        return line | {
            "file": v.file,
            "comment": v.comment,
            "mismatch": found,
            "message": self.message,
            "flags": {name: NOTES[name].effect for name in v.flags},
            "resembles": list(self.resembles),
            "others": self.others,
            "reproduction": self.reproduction,
        }

    def __str__(self) -> str:
        what = str(self.mismatch) if self.mismatch is not None else safe(self.message)
        lines = [f"{self.vector.id}: {self.status}: {what}", f"  {self.vector.comment}"]
        if len(self.resembles) == 1:
            lines.append(f"  gives the answer of: {self.resembles[0]}")
        elif self.resembles:
            lines.append(
                f"  gives the answer of {len(self.resembles)} mutants: not told apart here"
            )
        if self.others:
            more = f"{self.others} {'more' if self.resembles else 'mutants'}"
            lines.append(f"  {more} would give it, but not all answers of {self.vector.operation}")
        is_value = self.mismatch is not None and self.mismatch.is_value
        if is_value and not self.resembles and self.vector.flags:
            lines.append(f"  may be: {', '.join(NOTES[f].bug_type for f in self.vector.flags[:4])}")
        return "\n".join([*lines, f"  reproduce: {self.reproduction}"])


@dataclass(frozen=True)
class Report(Shown):
    """All verdicts of a run.

    Attributes:
        implementation: its name.
        outcomes: in the order of the suite.
    """

    implementation: str
    outcomes: tuple[Outcome, ...]

    @property
    def counts(self) -> dict[Status, int]:
        """How many vectors passed, failed, were unsupported, or ended in a fault."""
        count = Counter(outcome.status for outcome in self.outcomes)
        statuses: tuple[Status, ...] = ("passed", "failed", "unsupported", "fault")
        return {status: count[status] for status in statuses}

    @property
    def conforms(self) -> bool:
        """Some result was right, nothing failed, no fault.  Unsupported operations are not held
        against an implementation; they are never counted as passed either, and who only refuses
        what is invalid has shown nothing."""
        return bool(self._computed) and not self.failures

    @property
    def _computed(self) -> set[str]:
        """The operations of which a result was judged."""
        valid = [o for o in self.outcomes if o.vector.error is None]
        return {o.vector.operation for o in valid if o.status != "unsupported"}

    @property
    def failures(self) -> list[Outcome]:
        """The outcomes that failed or ended in a fault."""
        return [o for o in self.outcomes if o.status in ("failed", "fault")]

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        return f"<Report on {safe(self.implementation)}: {counts}>"

    def summary(self) -> str:
        """A table by operation, then one by flag for what failed, then the first failures.

        Operations without a single verdict share one line.
        """
        head = f"{'':24}{'passed':>8}{'failed':>8}{'fault':>8}{'unsupported':>13}"
        lines = [f"{safe(self.implementation)}, vectors {SUITE_VERSION}", head]
        rows = [
            (name, [o for o in self.outcomes if o.vector.operation == name]) for name in OPERATIONS
        ]
        silent = [n for n, o in rows if o and all(x.status == "unsupported" for x in o)]
        rows = [(n, o) for n, o in rows if o and n not in silent]
        for name, outcomes in [*rows, ("total", list(self.outcomes))]:
            count = Counter(outcome.status for outcome in outcomes)
            lines.append(
                f"{name:24}{count['passed']:>8}{count['failed']:>8}{count['fault']:>8}"
                f"{count['unsupported']:>13}"
            )
        computed = self._computed
        unseen = [name for name, _ in rows if name not in computed]
        if unseen:
            told = f"no result was checked of {', '.join(unseen)}: every valid question was skipped"
            lines += ["", *textwrap.wrap(told, 88)]
        if silent:
            lines += ["", *textwrap.wrap(f"unsupported: {', '.join(silent)}", 88)]
        failed = Counter(flag for o in self.failures for flag in o.vector.flags)
        asked = Counter(
            flag for o in self.outcomes if o.status != "unsupported" for flag in o.vector.flags
        )
        if failed:
            lines += ["", f"{'flag':24}{'failed':>8}{'asked':>8}"]
            lines += [f"{f:24}{n:>8}{asked[f]:>8}" for f, n in sorted(failed.items())]
        lines += ["", *(str(outcome) for outcome in self.failures[:10])] if self.failures else []
        if len(self.failures) > 10:
            lines.append(f"... and {len(self.failures) - 10} more")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """JSON lines: a header, then one line per vector."""
        header: Values = {
            "implementation": self.implementation,
            "suite_version": SUITE_VERSION,
            "semantics_version": SEMANTICS_VERSION,
            **{str(status): count for status, count in self.counts.items()},
        }
        lines = [header, *(outcome.to_json() for outcome in self.outcomes)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(path, lambda file: file.write(text.encode()))


def judge(vector: Vector, answer: Answer, reproduction: str = "") -> Outcome:
    """The verdict on one answer.

    An invalid vector must be refused.  A code that is given must be the vector's; none need be
    given, and messages are not compared.
    """
    if answer.kind == "skipped":
        return Outcome(vector, "unsupported", message=answer.message)
    if answer.kind == "fault":
        return Outcome(vector, "fault", message=answer.message, reproduction=reproduction)
    found, text = _fault_of(vector, answer)
    if found is None and not text:
        return Outcome(vector, "passed", message=answer.message)
    causes = tuple(map(str, _same_answer(vector, answer)))
    return Outcome(vector, "failed", found, text, causes, reproduction)


def _fault_of(vector: Vector, answer: Answer) -> tuple[Mismatch | None, str]:
    """Where a result is wrong, or what else is; (None, "") for a right answer."""
    if vector.error is None:
        if answer.kind == "error":
            return None, f"refused, expected a result: {answer.message}"
        return compare(vector, answer.results), ""
    if answer.kind == "result":
        return None, f"accepted, expected to be refused: {vector.error}"
    right = answer.refuses_as(vector.error)
    return None, "" if right else f"refused as {answer.code}, expected {vector.error}"


def _mutants_of(operation: str) -> list[Mutant]:
    """Loaded on use: they take a while, and nobody asks for them before something fails."""
    from refqnn.conformance.mutants import mutants_of

    return list(mutants_of(operation))


def _same_answer(vector: Vector, answer: Answer) -> list[Mutant]:
    """The mutants whose answer is this."""
    return [m for m in _mutants_of(vector.operation) if _says(m, vector, answer)]


@cache
def is_judged(vector: Vector) -> bool:
    """Do the mutants speak of it?  Not of bad data for which their kernel has no check."""
    from refqnn.conformance.mutants import KERNELS

    with np.errstate(all="ignore"):
        return vector.error in (None, call(KERNELS[vector.operation], vector).code)


def _says(mutant: Mutant, vector: Vector, answer: Answer) -> bool:
    with np.errstate(all="ignore"):
        theirs = call(mutant.function, vector)
    if "error" in (theirs.kind, answer.kind):
        return theirs.kind == answer.kind and theirs.code == answer.code
    if theirs.kind != "result":
        return False
    outputs = {n: as_result(theirs.results[n]) for n in OPERATIONS[vector.operation].outputs}
    return compare(replace(vector, outputs=outputs, intermediates={}), answer.results) is None


def report_on(name: str, outcomes: Sequence[Outcome]) -> Report:
    """The verdicts together: as a cause, a mutant stays that explains all of an operation.

    One wrong answer is often that of several mutants, and another wrong answer of the same
    implementation that of others: what is wrong must give every answer, the right ones too.  Where
    none does, bad data that is accepted counts as another mistake, and every valid answer is asked;
    where all of these are right, each kind of bad data by itself.
    """
    explained: dict[str, set[str]] = {}
    for operation in {o.vector.operation for o in outcomes if o.status == "failed"}:
        mine = [o for o in outcomes if o.vector.operation == operation and is_judged(o.vector)]
        valid = [o for o in mine if o.vector.error is None]
        causes = _causes(operation, mine) or _causes(operation, valid)
        explained |= dict.fromkeys((o.vector.id for o in valid), causes)
        for kind in _kinds(o for o in mine if o.vector.error is not None):
            found = causes or _causes(operation, [*kind, *valid])
            explained |= dict.fromkeys((o.vector.id for o in kind), found)
    return Report(name, tuple(_with_causes(o, explained) for o in outcomes))


def _kinds(outcomes: Iterable[Outcome]) -> Collection[list[Outcome]]:
    """Those of bad data by the sentence of the specification that it breaks."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        broken = first_broken(outcome.vector.operation, outcome.vector.arguments)
        kinds.setdefault(broken[1].name if broken else "", []).append(outcome)
    return kinds.values()


def _causes(operation: str, outcomes: Sequence[Outcome]) -> set[str]:
    """The mutants that give every one of these answers."""
    failed = [set(o.resembles) for o in outcomes if o.status == "failed"]
    passed = [o.vector for o in outcomes if o.status == "passed"]
    fits = set.intersection(*failed) if failed else set()
    return {
        str(mutant)
        for mutant in _mutants_of(operation)
        if str(mutant) in fits and all(passes(mutant.function, vector) for vector in passed)
    }


def _with_causes(outcome: Outcome, explained: Mapping[str, set[str]]) -> Outcome:
    known = explained.get(outcome.vector.id, set())
    kept = tuple(c for c in outcome.resembles if c in known)
    return replace(outcome, resembles=kept, others=len(outcome.resembles) - len(kept))


def passes(function: Function, vector: Vector) -> bool:
    """Does it answer this vector rightly?"""
    with np.errstate(all="ignore"):
        answer = call(function, vector)
    return answer.kind in ("result", "error") and _fault_of(vector, answer) == (None, "")


def functions_of(implementation: Implementation) -> dict[str, Function]:
    """Operation name -> function, from a mapping, or from a module (its `FUNCTIONS`, or its
    functions of those names).

    Raises: InvalidType when there is none.
    """
    if isinstance(implementation, Mapping):
        found = functions_in(implementation)
    elif hasattr(implementation, "FUNCTIONS"):
        return functions_of(implementation.FUNCTIONS)
    else:
        found = {n: getattr(implementation, n) for n in OPERATIONS if hasattr(implementation, n)}
    if not found or not all(callable(f) for f in found.values()):
        got = getattr(implementation, "__name__", type(implementation).__name__)
        if isinstance(implementation, Mapping):
            got = f"names [{shortened(', '.join(map(str, implementation)))}]"
        like = ", ".join(list(OPERATIONS)[:3])
        expected = f"a mapping or module with functions named like {like}"
        if strange := [name for name, f in found.items() if not callable(f)]:
            got, expected = f"{strange[0]} = {shortened(repr(found[strange[0]]))}", "a function"
        raise InvalidType(mismatch("implementation", got, expected))
    return found


def run(
    implementation: Implementation,
    *,
    operations: Iterable[str] | None = None,
    profiles: Iterable[str] | None = None,
    name: str | None = None,
    folder: Path | None = None,
) -> Report:
    """Ask every vector of a Python implementation.

    Args:
        implementation: operation name -> function, or a module of such functions.  A function gets
            the arguments by name and returns a mapping of results, or its only output.  Missing
            operations are unsupported, never passed.
        operations: names to ask; None: all.
        profiles: choices that the implementation shares, see vectors/README.md; None: all.
        name: for the report.
        folder: of vectors, as `refqnn vectors from` writes them; None: the suite.

    Raises: InvalidType, InvalidArgument.

    >>> def flatten(x):
    ...     return x.reshape(len(x), -1)
    >>> run({"flatten": flatten}, operations=["flatten"]).conforms
    True
    """
    functions = functions_of(implementation)
    name = name or str(getattr(implementation, "__name__", "implementation"))
    outcomes = [
        ask(functions, vector, name)
        for vector in select(load_vectors(folder), operations, profiles)
    ]
    return report_on(name, outcomes)


def ask(functions: Mapping[str, Function], vector: Vector, name: str) -> Outcome:
    """The verdict on one vector of a Python implementation."""
    if vector.operation not in functions:
        return Outcome(vector, "unsupported", message="no such function")
    function = functions[vector.operation]
    return judge(vector, call(function, vector), _reproduction(function, vector, name))


def _reproduction(function: Function, vector: Vector, name: str) -> str:
    """A line of Python that asks again; a function that cannot be imported is left to fill in."""
    module, attribute = getattr(function, "__module__", ""), getattr(function, "__name__", "")
    is_importable = module != "__main__" and (
        getattr(sys.modules.get(module), attribute, None) is function
    )
    load = f"from {module} import {attribute} as f; " if is_importable else ""
    note = "" if is_importable else f"  # f: {vector.operation} of {name}"
    return (
        f"{load}from refqnn.conformance import vector; v = vector({vector.id!r}); "
        f"print(f(**v.arguments), v.outputs, v.error){note}"
    )


def encoded_arguments(vector: Vector) -> Values:
    """The arguments as JSON data, for a program or a file of questions."""
    return encode_fields(vector.arguments, OPERATIONS[vector.operation].arguments)
