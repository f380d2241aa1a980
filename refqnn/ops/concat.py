"""Concat: the channels of all operands, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refqnn.errors import ShapeMismatch, mismatch
from refqnn.ops.base import IntArray, Interval, Op, Shape

__all__ = ["Concat"]


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Operands [c_i, ...] on one common scale, joined along the channel axis: [sum c_i, ...].

    >>> Concat().forward(np.array([[1, 2]]), np.array([[3]])).tolist()
    [[1, 2, 3]]
    """

    kind: ClassVar[str] = "Concat"
    arity: ClassVar[int | None] = None

    def out_shape(self, *shapes: Shape) -> Shape:
        if len({shape[1:] for shape in shapes}) != 1 or not all(shapes):
            expected = "shapes that differ in the channels alone"
            raise ShapeMismatch(mismatch("inputs of Concat", f"shapes {shapes}", expected))
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def out_range(self, *ranges: Interval) -> Interval:
        """The operands' ranges side by side: exact."""
        return Interval(
            np.concatenate([x.lo for x in ranges]), np.concatenate([x.hi for x in ranges])
        )

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        return np.concatenate(x, axis=1)
