"""Flatten, Reshape: the same integers in the same (row-major) order under another shape."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import is_integer
from refqnn.ops.base import IntArray, Interval, Op, Shape

__all__ = ["Flatten", "Reshape"]


class _Relabel(Op):
    """Values stay as they are; only `out_shape` says something."""

    def out_range(self, *ranges: Interval) -> Interval:
        """The same ends, reshaped: exact."""
        (x,) = ranges
        shape = self.out_shape(x.shape)
        return Interval(x.lo.reshape(shape), x.hi.reshape(shape))

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x
        return codes.reshape(len(codes), *self.out_shape(codes.shape[1:]))


@dataclass(frozen=True, eq=False)
class Flatten(_Relabel):
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
class Reshape(_Relabel):
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
        if not isinstance(self.shape, (tuple, list)) or not all(is_integer(d) for d in self.shape):
            raise InvalidType(mismatch("shape", repr(self.shape), "a tuple of integers"))
        if not self.shape or min(self.shape) < 1:
            raise InvalidArgument(mismatch("shape", self.shape, "positive dimensions, one or more"))
        object.__setattr__(self, "shape", tuple(int(d) for d in self.shape))

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if prod(shape) != prod(self.shape):
            expected = f"{prod(self.shape)} values for {self.shape}"
            raise ShapeMismatch(mismatch("input of Reshape", f"shape {shape}", expected))
        return self.shape
