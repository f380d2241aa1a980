"""Which mutants do the vectors let live, which of those does some question tell from the right
answer, and which few questions would tell them all?

    python bench/vector_search.py             # 20 minutes: prints seeds for making/chosen.py
    python bench/vector_search.py linear add  # of these operations
"""

from __future__ import annotations

import argparse
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from itertools import islice
from typing import Any, Protocol

import alike
import foreign
import mechanical

from refqnn.conformance import load_vectors
from refqnn.conformance.encoding import encode_fields
from refqnn.conformance.making.case import Case
from refqnn.conformance.making.cases import asked
from refqnn.conformance.making.samplers import SAMPLERS
from refqnn.conformance.making.writing import _answered
from refqnn.conformance.mutants import KERNELS
from refqnn.conformance.operations import OPERATIONS, Function
from refqnn.conformance.runner import passes
from refqnn.conformance.suite import Vector
from refqnn.errors import RefqnnError

NETWORKS = ("network", "predict")
SECONDS = 0.3  # of the processor, for one question of one mutant
MEMORY = 4 * 2**30
QUESTIONS = {"r": 40, "x": 30, "w": 100}  # of each sampler, asked where the vectors tell nothing
LARGEST = 4_000  # characters of a question
ENOUGH = 6  # questions that tell a mutant, to choose from
WRONG = (RefqnnError, ValueError, TypeError, ArithmeticError, LookupError,
         AttributeError, MemoryError)  # fmt: skip


class Mutant(Protocol):
    """What is asked: `id` names it, it is a function while `running` lasts."""

    @property
    def id(self) -> str: ...

    def running(self) -> AbstractContextManager[Function]: ...


@dataclass
class Found:
    """What the vectors of one operation make of its mutants.

    Args:
        killed: how many the vectors tell from the right answer.
        told: of the others, the questions that tell it, by mutant.
        alike: of the others, those that no question tells.
    """

    killed: int = 0
    told: dict[str, list[Vector]] = field(default_factory=dict)
    alike: list[str] = field(default_factory=list)


@cache
def vectors(operation: str) -> tuple[Vector, ...]:
    """The vectors that the right kernel passes: it does not refuse all that it should."""
    kernel = KERNELS[operation]
    return tuple(v for v in load_vectors() if v.operation == operation and passes(kernel, v))


@cache
def questions(operation: str) -> tuple[Vector, ...]:
    """Random questions with the answers of two routes that agree."""
    seeds = (f"{k}{i:04d}" for k, n in QUESTIONS.items() for i in range(1, n + 1))
    found = (_sensible(operation, seed) for seed in seeds if operation in SAMPLERS)
    return tuple(v for v in found if v is not None)


def _sensible(operation: str, seed: str) -> Vector | None:
    """The vector of a question; None where it is large, or its parameters make no sense."""
    try:
        with mechanical.in_time(SECONDS):
            case = asked(operation, seed)
            vector = _answered(case) if _size(case) <= LARGEST else None
            return vector if vector and passes(KERNELS[operation], vector) else None
    except (*WRONG, mechanical.Slow):
        return None


def _size(question: Case | Vector) -> int:
    """Characters of its arguments in a file."""
    fields = OPERATIONS[question.operation].arguments
    return len(str(encode_fields(question.arguments, fields)))


def tells(vector: Vector, mutant: Mutant) -> bool:
    """Does the mutant answer this vector otherwise, or too late?"""
    try:
        with mutant.running() as wrong, mechanical.in_time(SECONDS):
            return not passes(wrong, vector)
    except mechanical.Slow:
        return True


def examined(mutants: Sequence[Mutant], operation: str) -> Found:
    """Ask all mutants of one operation."""
    found = Found()
    order = list(vectors(operation))
    for mutant in mutants:
        killer = next((v for v in order if tells(v, mutant)), None)
        if killer is not None:
            found.killed += 1
            order.remove(killer)
            order.insert(0, killer)  # neighbours often die of the same
            continue
        telling = list(islice((v for v in questions(operation) if tells(v, mutant)), ENOUGH))
        if telling:
            found.told[mutant.id] = telling
        else:
            found.alike.append(mutant.id)
    return found


def cover(told: dict[str, list[Vector]]) -> list[Vector]:
    """Few and small questions that tell every mutant of `told`."""
    sizes: dict[str, float] = {}
    open_, chosen = dict(told), []
    while open_:
        tells_of: dict[str, list[str]] = {}
        by_id = {v.id: v for vectors in open_.values() for v in vectors}
        for mutant, vectors in open_.items():
            for v in vectors:
                tells_of.setdefault(v.id, []).append(mutant)
        for v in by_id.values():
            sizes.setdefault(v.id, 1 + _size(v) / 200)
        best = max(tells_of, key=lambda i: len(tells_of[i]) / sizes[i])
        chosen.append(by_id[best])
        open_ = {m: v for m, v in open_.items() if m not in set(tells_of[best])}
    return chosen


# --- mechanical mutants of the kernels ------------------------------------------------------------


MODULES = tuple(
    f"refqnn.conformance.mutants.{name}"
    for name in ("bounds", "doors", "nodes", "rescale", "spread", "stages", "steps")
)


@dataclass(frozen=True)
class Mechanical:
    """A change of the source, as a mutant of one operation."""

    change: mechanical.Change
    function: Function

    @property
    def id(self) -> str:
        return self.change.id

    @contextmanager
    def running(self) -> Iterator[Function]:
        with mechanical.changed(self.change):
            yield self.function


@cache
def _units() -> list[mechanical.Unit]:
    return mechanical.units(MODULES)


@cache
def _changes(index: int) -> list[mechanical.Change]:
    return list(mechanical.changes(_units()[index]))


@cache
def _lines(operation: str) -> mechanical.Lines:
    """What the vectors and questions of an operation run of its kernel."""
    files = [str(import_module(m).__file__) for m in MODULES]
    some = [*vectors(operation), *questions(operation)[::4]]
    kernel = KERNELS[operation]
    return mechanical.lines_of([partial(passes, kernel, v) for v in some], files)


def mechanical_mutants(operation: str) -> tuple[list[Mechanical], int]:
    """The changes of statements that the operation runs, and how many others its functions have.

    What whole networks run counts with them only where no single operation runs it.
    """
    lines = _lines(operation)
    if operation in NETWORKS:
        lines = lines.difference(*(_lines(o) for o in OPERATIONS if o not in NETWORKS))
    inside, outside = [], 0
    for index, unit in enumerate(_units()):
        file, start = unit.function.__code__.co_filename, unit.tree.lineno
        end = unit.tree.end_lineno or start
        if any((file, line) in lines for line in range(start, end + 1)):
            changes = _changes(index)
            reached = [c for c in changes if c.reached_by(lines)]
            inside += [Mechanical(c, KERNELS[operation]) for c in reached]
            outside += len(changes) - len(reached)
    return inside, outside


KINDS = ("mechanical", "foreign")


def surveyed(kind: str, operation: str) -> dict[str, Any]:
    """One operation's mutants of one kind, counted.

    mutants; outside: changes of statements that nothing asked runs; killed by the vectors; told by
    random questions alone; alike: told by nothing; argued: those of them with an argument.
    """
    mutants, outside = mechanical_mutants(operation) if kind == "mechanical" else (
        list(foreign.mutants(operation)), 0)  # fmt: skip
    found = examined(mutants, operation)
    reasons = Counter(alike.argument(name, operation) for name in found.alike)
    unargued = reasons.pop("", 0) if kind == "mechanical" else 0
    return {
        "mutants": len(mutants),
        "outside": outside,
        "killed": found.killed,
        "told": sorted(found.told),
        "alike": len(found.alike),
        "unargued": unargued,
        "arguments": dict(sorted(reasons.items())) if kind == "mechanical" else {},
        "cover": [v.id for v in cover(found.told)],
        "open": [
            n for n in found.alike if kind == "mechanical" and not alike.argument(n, operation)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operations", nargs="*", default=list(OPERATIONS))
    arguments = parser.parse_args()
    limit_memory()
    for operation in arguments.operations:
        for kind in KINDS:
            found = surveyed(kind, operation)
            print(operation, kind, *(f"{k} {v}" for k, v in found.items()), sep="\n  ", flush=True)


def limit_memory() -> None:
    """A mutant that wants all of it gets a MemoryError."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
