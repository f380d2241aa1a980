"""Concat: the channels of all operands, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import ShapeMismatch, mismatch
from refqnn.ops.base import IntArray, Shape
from refqnn.ops.movement import Movement
from refqnn.ops.structure import Role

__all__ = ["Concat"]


@dataclass(frozen=True, eq=False)
class Concat(Movement):
    """Operands [c_i, ...] on one common scale, joined along the channel axis: [sum c_i, ...].

    >>> Concat().forward(np.array([[1, 2]]), np.array([[3]])).tolist()
    [[1, 2, 3]]
    """

    kind: ClassVar[str] = "Concat"
    arity: ClassVar[int | None] = None
    role = Role.JOIN

    def out_shape(self, *shapes: Shape) -> Shape:
        if len({shape[1:] for shape in shapes}) != 1 or not all(shapes):
            expected = "shapes that differ in the channels alone"
            raise ShapeMismatch(mismatch("inputs of Concat", f"shapes {shapes}", expected))
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        return np.concatenate(x, axis=1)

    def sources(self, *shapes: Shape) -> NDArray[np.int64]:
        return np.arange(sum(map(prod, shapes))).reshape(self.out_shape(*shapes))
