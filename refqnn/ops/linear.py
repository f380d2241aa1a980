"""Linear: acc[n, k] = sum_i weight[k, i] * x[n, i] + bias[k]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import add, magnitude, matmul, multiply
from refqnn.errors import ShapeMismatch, mismatch
from refqnn.ops.base import (
    IntArray,
    Interval,
    Shape,
    SumOp,
    bias_parameter,
    integer_parameter,
)

__all__ = ["Linear"]


@dataclass(frozen=True, eq=False)
class Linear(SumOp):
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

    def out_range(self, *ranges: Interval) -> Interval:
        """hi = sum w+ x_hi + sum w- x_lo + b, lo mirrored: exact over a box of inputs."""
        (x,) = ranges
        positive = np.maximum(self.weight, 0)  # [out, in]
        negative = np.minimum(self.weight, 0)  # [out, in]
        mass = self.prepare(x)
        ends = np.stack([x.lo, x.hi])  # [2, in]
        from_positive = matmul(ends, positive.T, mass)  # [2, out]
        from_negative = matmul(ends, negative.T, mass)  # [2, out]
        lo = from_positive[0] + from_negative[1]
        hi = from_positive[1] + from_negative[0]
        return Interval(self._add_bias(lo), self._add_bias(hi))

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M[k] = sum_i |weight[k, i]| * max|x[i]| + |bias[k]|, [out]."""
        (x,) = ranges
        weight = magnitude(self.weight)  # [out, in]
        bound = int(weight.max()) * x.largest * weight.shape[1]
        mass = matmul(x.magnitude[None], weight.T, bound)[0]  # [out]
        return mass if self.bias is None else add(mass, magnitude(self.bias))

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, in]
        mass = self._plan(plan, x)
        acc = matmul(codes, self.weight.T, mass)  # [n, out]
        return self._add_bias(acc)

    def terms(self, *x: IntArray) -> IntArray:
        """weight[k, 0] x[0], weight[k, 1] x[1], ..., bias[k]: [n, out, in (+ 1)]."""
        (codes,) = x
        products = multiply(codes[:, None, :], self.weight)  # [n, out, in]
        if self.bias is None:
            return products
        bias = np.broadcast_to(self.bias, products.shape[:2])  # [n, out]
        return np.concatenate([products, bias[:, :, None]], axis=2)

    def _add_bias(self, acc: IntArray) -> IntArray:
        # The mass counts |bias|: where it fits int64, so does the sum.
        return acc if self.bias is None else acc + self.bias
