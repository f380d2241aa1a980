"""What a deviation is, and how a node is computed with some of them in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, to_int64_if_possible
from refqnn.emulate import Accumulator
from refqnn.errors import InvalidArgument, mismatch
from refqnn.ops.base import Op

__all__ = ["STAGES", "Deviation", "Fit", "Operands", "computed", "distinct"]

Operands = tuple[IntArray, ...]

STAGES = ("operands", "node", "compute", "result", "fit")


@dataclass(frozen=True)
class Fit:
    """Constants that reproduce what is given.

    Attributes:
        functions: operands -> values, with the constants that are shown, then with others that do
            as well: the ends of what is possible.
        found: the constants in words.
        believed: are there enough wrong values for so many constants?
        single: does one constant do for all channels?
        probe: operands that tell the functions from others.
        specific: False where any values could be fitted so: it speaks against nothing else.
    """

    functions: tuple[Callable[..., IntArray], ...]
    found: str
    believed: bool = True
    single: bool = False
    probe: Operands = ()
    specific: bool = True


@dataclass(frozen=True)
class Deviation:
    """One thing that another implementation of a node does differently.

    Exactly one of the five functions is given; each returns None where it says nothing.

    Args:
        name: unique among those of a kind in a catalogue.
        sentence: what the other implementation does, after "it".
        kinds: of the nodes it applies to; empty for all.
        operands: (op, x) -> what is read in the place of the operands x, [n, *shape] each.
        node: (op, x) -> the op that is computed in the place of op.
        compute: (op, x) -> the values, computed otherwise.
        result: (op, y) -> what is written in the place of the values y.
        fit: (op, x, theirs) -> Fit, where constants that make it reproduce `theirs` exist.
        level: 0 where nothing is free; with free constants 1 or more, tried when all below fail.
        batch: does it mix samples?
        hidden: of a fit, (op) -> the ops that it may be, where what it has to reproduce is not
            given.
        machine: an accumulator that does this, where others of its width may do the same.

    Raises: InvalidArgument.

    >>> import numpy as np
    >>> from refqnn import Linear
    >>> halved = Deviation("halved", "halves every sum", frozenset({"Linear"}),
    ...                    result=lambda op, y: y // 2)
    >>> computed(Linear([[3]]), (np.array([[5]]),), [halved]).tolist()
    [[7]]
    """

    name: str
    sentence: str
    kinds: frozenset[str] = frozenset()
    operands: Callable[[Op, Operands], Operands | None] | None = None
    node: Callable[[Op, Operands], Op | None] | None = None
    compute: Callable[[Op, Operands], IntArray | None] | None = None
    result: Callable[[Op, IntArray], IntArray | None] | None = None
    fit: Callable[[Op, Operands, IntArray], Fit | None] | None = None
    level: int = 0
    batch: bool = False
    hidden: Callable[[Op], Iterable[Op]] | None = None
    machine: Accumulator | None = None

    def __post_init__(self) -> None:
        given = [stage for stage in STAGES if getattr(self, stage) is not None]
        if len(given) != 1:
            expected = f"exactly one of {', '.join(STAGES)}"
            raise InvalidArgument(mismatch(f"deviation {self.name!r}", given or "none", expected))

    @property
    def stage(self) -> str:
        """Which of the functions is given."""
        return next(stage for stage in STAGES if getattr(self, stage) is not None)

    def applies_to(self, op: Op) -> bool:
        """May a node of this kind deviate so?"""
        return not self.kinds or op.kind in self.kinds


def computed(op: Op, x: Operands, deviations: Iterable[Deviation]) -> IntArray | None:
    """The values of a node with these deviations in force, in the order of their stages.

    Returns: [n, *shape], or None where one of them says nothing.
    """
    values: IntArray | None = None
    for deviation in sorted(deviations, key=lambda d: STAGES.index(d.stage)):
        if deviation.operands is not None:
            read = deviation.operands(op, x)
            if read is None:
                return None
            x = read
        elif deviation.node is not None:
            instead = deviation.node(op, x)
            if instead is None:
                return None
            op = instead
        elif deviation.compute is not None:
            values = deviation.compute(op, x)
            if values is None:
                return None
        elif deviation.result is not None:
            values = deviation.result(op, op.forward(*x) if values is None else values)
            if values is None:
                return None
        else:
            return None  # a fit looks at what it has to reproduce
    return to_int64_if_possible(op.forward(*x) if values is None else values)


def distinct(x: Iterable[IntArray]) -> NDArray[np.int64]:
    """Which samples are no repetition of an earlier one.

    >>> distinct([np.array([[1, 2], [1, 2], [2, 1]])]).tolist()
    [0, 2]
    """
    samples = np.concatenate([v.reshape(len(v), -1) for v in x], axis=1)
    first: dict[tuple[int, ...], int] = {}
    for number, sample in enumerate(samples.tolist()):
        first.setdefault(tuple(sample), number)
    return np.array(list(first.values()), dtype=np.int64)
