"""Flatten, Reshape: the same integers in the same (row-major) order under another shape."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import is_integer
from refqnn.ops.base import IntArray, Op, Shape
from refqnn.ops.movement import Movement
from refqnn.ops.structure import Mask

__all__ = ["Flatten", "Reshape", "shape_parameter"]


class _SameOrder(Movement):
    """Values stay as they are; only `out_shape` says something."""

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x
        return codes.reshape(len(codes), *self.out_shape(codes.shape[1:]))

    def sources(self, *shapes: Shape) -> NDArray[np.int64]:
        return np.arange(prod(shapes[0])).reshape(self.out_shape(*shapes))


@dataclass(frozen=True, eq=False)
class Flatten(_SameOrder):
    """Samples of any shape to vectors.

    >>> import numpy as np
    >>> Flatten().forward(np.arange(4).reshape(1, 2, 2)).tolist()
    [[0, 1, 2, 3]]
    """

    kind: ClassVar[str] = "Flatten"

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (prod(shape),)


@dataclass(frozen=True, eq=False)
class Reshape(_SameOrder):
    """Samples to another shape of as many values.

    Args:
        shape: of one sample, positive integers.

    Raises: InvalidType, InvalidArgument.

    >>> import numpy as np
    >>> Reshape((2, 2)).forward(np.arange(4).reshape(1, 4)).tolist()
    [[[0, 1], [2, 3]]]
    """

    kind: ClassVar[str] = "Reshape"

    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", shape_parameter(self.shape, "shape"))

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if prod(shape) != prod(self.shape):
            expected = f"{prod(self.shape)} values for {self.shape}"
            raise ShapeMismatch(mismatch("input of Reshape", f"shape {shape}", expected))
        return self.shape

    def taken(self, out: Mask, into: Mask) -> Op:
        return Reshape((int(out.sum()), *self.shape[1:]))


def shape_parameter(shape: object, argument: str) -> Shape:
    """Positive dimensions, one or more.  Raises: InvalidType, InvalidArgument."""
    if not isinstance(shape, (tuple, list)) or not all(is_integer(d) for d in shape):
        raise InvalidType(mismatch(argument, repr(shape), "a tuple of integers"))
    if not shape or min(shape) < 1:
        raise InvalidArgument(mismatch(argument, shape, "positive dimensions, one or more"))
    return tuple(int(d) for d in shape)
