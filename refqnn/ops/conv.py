"""Conv1d, Conv2d: cross-correlation, as every framework computes it.

    acc[n, k, i, j] = bias[k] + sum over c, u, v of
                      weight[k, c, u, v] * X[n, g * C + c, s_h * i + d_h * u, s_w * j + d_w * v]

X is x with `padding` positions of value `pad_code` around it, C = in / groups the channels of one
group, g = floor(k / (out / groups)) the group of output channel k, s the stride, d the dilation.
`pad_code` is the code of real zero: the zero point of the input, 0 for symmetric quantizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import Arithmetic, add, magnitude, matmul, multiply
from refqnn.errors import InvalidArgument, ShapeMismatch, mismatch
from refqnn.ops.base import (
    IntArray,
    Interval,
    Shape,
    SumOp,
    bias_parameter,
    code_parameter,
    integer,
    integer_parameter,
)
from refqnn.ops.windows import (
    integers_per_axis,
    n_positions,
    pad,
    padding_per_axis,
    windows,
)

__all__ = ["Conv1d", "Conv2d"]

_COLUMNS = 2**23  # entries of unfolded windows held at one time


@dataclass(frozen=True, eq=False)
class _Conv(SumOp):
    """Convolution over `axes` spatial axes; the subclasses say how many."""

    axes: ClassVar[int]

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    pad_code: int = 0

    def __post_init__(self) -> None:
        weight = integer_parameter(self.weight, "weight", ndim=2 + self.axes)
        stride = integers_per_axis(self.stride, "stride", self.axes, minimum=1)
        dilation = integers_per_axis(self.dilation, "dilation", self.axes, minimum=1)
        groups = integer(self.groups, "groups")
        if groups < 1 or weight.shape[0] % groups:
            expected = f"a positive divisor of the {weight.shape[0]} output channels"
            raise InvalidArgument(mismatch("groups", groups, expected))
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias_parameter(self.bias, weight.shape[0]))
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "padding", padding_per_axis(self.padding, self.axes))
        object.__setattr__(self, "dilation", dilation)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "pad_code", code_parameter(self.pad_code, "pad_code"))

    @property
    def kernel(self) -> Shape:
        """Size of the window along each spatial axis."""
        return self.weight.shape[2:]

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        channels = self.weight.shape[1] * self.groups
        if len(shape) != 1 + self.axes or shape[0] != channels:
            expected = f"{channels} channels and {self.axes} spatial axes"
            raise ShapeMismatch(mismatch(f"input of {self.kind}", f"shape {shape}", expected))
        positions = n_positions(shape[1:], self.kernel, self.stride, self.padding, self.dilation)
        return (self.weight.shape[0], *positions)

    def out_range(self, *ranges: Interval) -> Interval:
        """hi = w+ * X_hi + w- * X_lo + b at every position, lo mirrored; X is padded with pad_code.

        Exact over a box of inputs.
        """
        (x,) = ranges
        mass = self.prepare(x)
        ends = np.stack([x.lo, x.hi])  # [2, in, *sizes]
        positive = self._correlate(ends, np.maximum(self.weight, 0), self.pad_code, mass)
        negative = self._correlate(ends, np.minimum(self.weight, 0), self.pad_code, mass)
        lo = positive[0] + negative[1]  # [out, *positions]
        hi = positive[1] + negative[0]  # [out, *positions]
        return Interval(self._add_bias(lo), self._add_bias(hi))

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = |w| * max|X| + |b| at every position, [out, *positions]."""
        (x,) = ranges
        weight, largest_pad = magnitude(self.weight), abs(self.pad_code)
        fan_in = prod(weight.shape[1:])
        bound = fan_in * int(weight.max()) * max(x.largest, largest_pad)
        mass: IntArray = self._correlate(x.magnitude[None], weight, largest_pad, bound)[0]
        if self.bias is None:
            return mass
        return add(mass, self._per_channel(magnitude(self.bias)))

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, in, *sizes]
        mass = self._plan(plan, x)
        acc = self._correlate(codes, self.weight, self.pad_code, mass)  # [n, out, *positions]
        return self._add_bias(acc)

    def terms(self, *x: IntArray) -> IntArray:
        """Products in the order c, u, v (those with padding too), then bias[k].

        [n, out, *positions, C * prod(kernel) (+ 1)]
        """
        (codes,) = x
        out = self.weight.shape[0]
        columns = self._columns(codes, self.pad_code)  # [n, groups, K, *positions]
        columns = np.repeat(columns, out // self.groups, axis=1)  # [n, out, K, *positions]
        terms = multiply(columns, self._per_channel(self.weight.reshape(out, -1)))
        if self.bias is not None:
            bias = self._per_channel(self.bias)[:, None]  # [out, 1, 1..]
            bias = np.broadcast_to(bias, (*terms.shape[:2], 1, *terms.shape[3:]))
            terms = np.concatenate([terms, bias], axis=2)
        return np.moveaxis(terms, 2, -1)

    def _columns(self, x: IntArray, pad_code: int) -> IntArray:
        """The windows unfolded, K = C * prod(kernel) entries each: [n, groups, K, *positions]."""
        view = windows(pad(x, self.padding, pad_code), self.kernel, self.stride, self.dilation)
        positions = range(2, 2 + self.axes)
        view = np.moveaxis(view, tuple(positions), tuple(range(-self.axes, 0)))  # [n, in, *k, *p]
        return view.reshape(len(x), self.groups, -1, *view.shape[-self.axes :])

    def _correlate(self, x: IntArray, weight: IntArray, pad_code: int, mass: int) -> IntArray:
        """The sums without bias, in blocks of samples: [n, out, *positions]."""
        positions = n_positions(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation)
        matrices = weight.reshape(self.groups, weight.shape[0] // self.groups, -1)  # [g, o, K]
        block = max(1, _COLUMNS // (self.groups * matrices.shape[2] * prod(positions)))
        dtype = object if x.dtype == object else Arithmetic.for_mass(mass).dtype
        sums = []
        for start in range(0, len(x), block):
            part = x[start : start + block].astype(dtype, copy=False)
            columns = self._columns(part, pad_code)  # [n, g, K, *positions]
            columns = columns.reshape(*columns.shape[:3], -1)  # [n, g, K, P]
            acc = matmul(matrices, columns, mass)  # [n, g, o, P]
            sums.append(acc.reshape(len(part), -1, *positions))  # [n, out, *positions]
        return np.concatenate(sums)

    def _per_channel(self, values: IntArray) -> IntArray:
        """[out] or [out, K], shaped to broadcast over the positions."""
        return values.reshape(*values.shape, *(1,) * self.axes)

    def _add_bias(self, acc: IntArray) -> IntArray:
        # The mass counts |bias|: where it fits int64, so does the sum.
        return acc if self.bias is None else acc + self._per_channel(self.bias)


@dataclass(frozen=True, eq=False)
class Conv1d(_Conv):
    """Convolution of samples [in, width].

    Args:
        weight: integers [out, in / groups, kw].
        bias: integers [out], in units of the accumulator, or None.
        stride, dilation: positive integers.
        padding: an integer, or ((left, right),).
        groups: divides in and out; groups = in is a depthwise convolution.
        pad_code: the value of padded positions.

    Raises: InvalidType, InvalidArgument, ShapeMismatch, OutOfRange.

    >>> Conv1d([[[1, -1]]], padding=((1, 0),), pad_code=5).forward(np.array([[[5, 7, 6]]])).tolist()
    [[[0, -2, 1]]]
    """

    kind: ClassVar[str] = "Conv1d"
    axes: ClassVar[int] = 1


@dataclass(frozen=True, eq=False)
class Conv2d(_Conv):
    """Convolution of samples [in, height, width].

    Args:
        weight: integers [out, in / groups, kh, kw].
        bias: integers [out], in units of the accumulator, or None.
        stride, dilation: a positive integer, or (h, w).
        padding: an integer, (h, w), or ((top, bottom), (left, right)).
        groups: divides in and out; groups = in is a depthwise convolution.
        pad_code: the value of padded positions.

    Raises: InvalidType, InvalidArgument, ShapeMismatch, OutOfRange.

    >>> layer = Conv2d([[[[1, 2], [3, 4]]]], bias=[100], stride=(1, 2))
    >>> layer.forward(np.arange(8).reshape(1, 1, 2, 4)).tolist()
    [[[[134, 154]]]]
    """

    kind: ClassVar[str] = "Conv2d"
    axes: ClassVar[int] = 2
