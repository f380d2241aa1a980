"""Choose questions by search against the mutants: `python -m refqnn.conformance.making.search`.

For each operation, questions of rising seed are asked of every mutant that the vectors so far do
not kill `TWICE`; a greedy cover takes the question that kills most of them for the least size.
What is chosen is printed, to be frozen in `chosen.py`; seeds that are there stay there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from refqnn.conformance.encoding import encode_fields
from refqnn.conformance.making.cases import Case, asked, hand_made
from refqnn.conformance.making.chosen import CHOSEN
from refqnn.conformance.making.samplers import SAMPLERS
from refqnn.conformance.making.writing import kills, solved
from refqnn.conformance.mutants import mutants_of
from refqnn.conformance.operations import OPERATIONS
from refqnn.conformance.suite import Vector
from refqnn.errors import RefqnnError

__all__ = ["choose", "main"]

TWICE = 2


def choose(operation: str, seeds: Iterable[int]) -> list[int]:
    """Seeds to add for this operation, in the order in which they help."""
    wanted = {m.id for m in mutants_of(operation) if not m.equivalent}
    killed: Counter[str] = Counter()
    for case in (c for c in hand_made() if c.operation == operation):
        killed.update(kills(solved(case)))
    for seed in CHOSEN.get(operation, ()):
        killed.update(kills(solved(asked(operation, seed))))
    candidates: dict[int, tuple[set[str], float]] = {}
    for seed in seeds:
        vector = _try(asked(operation, seed))
        if vector is not None:
            candidates[seed] = (set(kills(vector)), _size(vector))
    added: list[int] = []
    while True:
        missing = {m for m in wanted if killed[m] < TWICE}
        best = max(
            candidates,
            key=lambda s: len(candidates[s][0] & missing) / candidates[s][1],
            default=None,
        )
        if best is None or not candidates[best][0] & missing:
            return added
        killed.update(candidates.pop(best)[0])
        added.append(best)


def _try(case: Case) -> Vector | None:
    """The vector of a random question; None where its parameters make no sense."""
    try:
        return solved(case)
    except RefqnnError:
        return None


def _size(vector: Vector) -> float:
    """What a question costs a reader: one for itself and something for each number."""
    fields = OPERATIONS[vector.operation].arguments
    text = str(encode_fields(vector.arguments, fields))
    return 1 + len(text) / 200


def main(seeds: int = 400) -> None:
    """Print the rows of chosen.py, each with what was found at its end."""
    for operation in SAMPLERS:
        added = choose(operation, range(1, seeds + 1))
        row = [*CHOSEN.get(operation, ()), *added]
        print(f'    "{operation}": {tuple(row)},', flush=True)


if __name__ == "__main__":
    main()
