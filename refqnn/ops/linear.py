"""Linear: acc[n, k] = sum_i weight[k, i] * x[n, i] + bias[k]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import matmul
from refqnn.errors import ShapeMismatch, mismatch
from refqnn.ops.base import IntArray, Shape, bias_parameter, integer_parameter
from refqnn.ops.structure import Rows
from refqnn.ops.weighted import WeightedSum

__all__ = ["Linear"]


@dataclass(frozen=True, eq=False)
class Linear(WeightedSum):
    """A dense layer of integer weights.

    Args:
        weight: integers [out, in].
        bias: integers [out], in units of the accumulator, or None.

    Raises: InvalidType, ShapeMismatch, OutOfRange.

    >>> layer = Linear(np.array([[1, -2], [3, 0]]), np.array([5, 0]))
    >>> layer.forward(np.array([[4, 1]])).tolist()
    [[7, 12]]
    """

    kind: ClassVar[str] = "Linear"

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        weight = integer_parameter(self.weight, "weight", ndim=2)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias_parameter(self.bias, weight.shape[0]))

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        n_out, n_in = self.weight.shape
        if shape != (n_in,):
            raise ShapeMismatch(mismatch("input of Linear", f"shape {shape}", f"({n_in},)"))
        return (n_out,)

    def columns(self, x: IntArray, pad_code: int) -> IntArray:
        """The inputs x[n, 0], x[n, 1], ...: [n, 1, in]."""
        return x[:, None, :]

    def rows(self, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
        shape = (len(positions), self.weight.shape[1])
        column = np.broadcast_to(np.arange(shape[1]), shape)
        return Rows(column, self.weight[positions], self.constants(positions))

    def _products(self, x: IntArray, weight: IntArray, pad_code: int, mass: int) -> IntArray:
        """One matrix product for all samples."""
        return matmul(x, weight[:, :, 0].T, mass)
