"""Add: y[n, ...] = sum_i multipliers[i] * x_i[n, ...]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import multiply, sum_last_axis
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.ops.base import Channelwise, Ends, IntArray, Interval, Shape, SumOp, integer
from refqnn.ops.structure import Role, Rows

__all__ = ["Add"]


@dataclass(frozen=True, eq=False)
class Add(Channelwise, SumOp):
    """Elementwise sum of one or more operands of one shape.

    Args:
        multipliers: one nonzero integer per operand, for operands whose scales differ by integers
            (negative: subtract); None for 1 each.

    Raises: InvalidType, InvalidArgument.

    >>> Add((1, -4)).forward(np.array([[10, 20]]), np.array([[1, 2]])).tolist()
    [[6, 12]]
    """

    kind: ClassVar[str] = "Add"
    role = Role.SUM
    arity: ClassVar[int | None] = None

    multipliers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.multipliers is None:
            return
        if not isinstance(self.multipliers, (Sequence, np.ndarray)) or not len(self.multipliers):
            expected = "one integer per operand, or None"
            raise InvalidType(mismatch("multipliers", repr(self.multipliers), expected))
        multipliers = tuple(integer(m, "multipliers") for m in self.multipliers)
        if 0 in multipliers:
            raise InvalidArgument(mismatch("multipliers", multipliers, "nonzero integers"))
        object.__setattr__(self, "multipliers", multipliers)

    def out_shape(self, *shapes: Shape) -> Shape:
        if self.multipliers is not None and len(shapes) != len(self.multipliers):
            expected = f"{len(self.multipliers)}, as there are multipliers"
            raise ShapeMismatch(mismatch("inputs of Add", len(shapes), expected))
        if len(set(shapes)) != 1:
            raise ShapeMismatch(mismatch("inputs of Add", f"shapes {shapes}", "one common shape"))
        return shapes[0]

    def out_range(self, *ranges: Interval) -> Interval:
        """lo = sum of m_i * (lo_i where m_i > 0, hi_i where m_i < 0), hi mirrored.

        Exact over a box of operands (operands taken as independent).
        """
        positive = [m > 0 for m in self._multipliers(len(ranges))]
        lows = [x.lo if up else x.hi for x, up in zip(ranges, positive)]
        highs = [x.hi if up else x.lo for x, up in zip(ranges, positive)]
        mass = self.prepare(*ranges)
        return Interval(self._sum(lows, mass), self._sum(highs, mass))

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = sum_i |m_i| * max|x_i|, [*shape]."""
        weights = [abs(m) for m in self._multipliers(len(ranges))]
        bound = sum(w * x.largest for w, x in zip(weights, ranges))
        terms = [multiply(x.magnitude, np.asarray(w)) for x, w in zip(ranges, weights)]
        return sum_last_axis(np.stack(terms, axis=-1), bound)

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        mass = self._plan(plan, x)
        return self._sum(x, mass)

    def terms(self, *x: IntArray) -> IntArray:
        """multipliers[i] * x_i in the order of the operands: [n, *shape, n_operands]."""
        scaled = [multiply(v, np.asarray(m)) for v, m in zip(x, self._multipliers(len(x)))]
        return np.stack(scaled, axis=-1)

    def fan_in(self, *shapes: Shape) -> int:
        return len(shapes)

    def absolute(self, *, padded: bool) -> SumOp:
        if self.multipliers is None:
            return self
        return Add(tuple(abs(m) for m in self.multipliers))

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        scaled = [
            sorted((m * lo, m * hi)) for m, (lo, hi) in zip(self._multipliers(len(ends)), ends)
        ]
        return sum(lo for lo, _ in scaled), sum(hi for _, hi in scaled)

    def rows(self, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
        column = positions[:, None] + np.arange(len(shapes)) * prod(shapes[0])
        multipliers = np.array(self._multipliers(len(shapes)), dtype=np.int64)
        coefficient = np.broadcast_to(multipliers, column.shape)
        return Rows(column, coefficient, np.zeros(len(positions), dtype=object))

    def _multipliers(self, operands: int) -> tuple[int, ...]:
        return (1,) * operands if self.multipliers is None else self.multipliers

    def _sum(self, operands: Sequence[IntArray], mass: int) -> IntArray:
        return sum_last_axis(self.terms(*operands), mass)
