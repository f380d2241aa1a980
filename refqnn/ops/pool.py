"""Pooling over windows of each channel.

    MaxPool2d      y[n, c, i, j] = max over u, v of  x[n, c, s_h i + u - top, s_w j + v - left]
    SumPool2d      y[n, c, i, j] = sum over u, v of  X[n, c, s_h i + u, s_w j + v]
    GlobalSumPool  y[n, c]       = sum over all positions of x[n, c, ...]

Positions outside x do not take part in a maximum; in a sum they count as `pad_code`.  An average is
a sum whose divisor is part of the scale of the `Requantize` behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from refqnn.arithmetic import sum_last_axis
from refqnn.errors import InvalidArgument, ShapeMismatch, mismatch
from refqnn.ops.base import IntArray, Interval, Op, Shape, SumOp, code_parameter
from refqnn.ops.windows import integers_per_axis, n_positions, pad, padding_per_axis, windows

__all__ = ["GlobalSumPool", "MaxPool2d", "SumPool2d"]

_DENSE = (1, 1)  # pooling windows are not dilated


@dataclass(frozen=True, eq=False)
class _Pool2d(Op):
    """Window parameters of the two windowed pools."""

    kernel: Any
    stride: Any = None
    padding: Any = 0

    def __post_init__(self) -> None:
        kernel = integers_per_axis(self.kernel, "kernel", 2, minimum=1)
        stride = kernel if self.stride is None else self.stride
        padding = padding_per_axis(self.padding, 2)
        if any(max(ends) >= k for ends, k in zip(padding, kernel)):
            expected = f"less than the kernel {kernel}, so that no window lies outside the input"
            raise InvalidArgument(mismatch("padding", padding, expected))
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", integers_per_axis(stride, "stride", 2, minimum=1))
        object.__setattr__(self, "padding", padding)

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != 3:
            expected = "[channels, height, width]"
            raise ShapeMismatch(mismatch(f"input of {self.kind}", f"shape {shape}", expected))
        positions = n_positions(shape[1:], self.kernel, self.stride, self.padding, _DENSE)
        return (shape[0], *positions)

    def _windows(self, x: IntArray, pad_code: int) -> IntArray:
        """[n, c, *positions, kh * kw]; the last axis in the order u, v."""
        view = windows(pad(x, self.padding, pad_code), self.kernel, self.stride, _DENSE)
        return view.reshape(*view.shape[:4], -1)


@dataclass(frozen=True, eq=False)
class MaxPool2d(_Pool2d):
    """The greatest value of each window of samples [channels, height, width].

    Args:
        kernel: an integer, or (kh, kw).
        stride: an integer, or (h, w); the kernel by default.
        padding: an integer, (h, w), or ((top, bottom), (left, right)); less than the kernel.

    Raises: InvalidType, InvalidArgument.

    >>> import numpy as np
    >>> pool = MaxPool2d(2, stride=1, padding=((0, 1), 0))
    >>> pool.forward(np.array([[[[-4, -3], [-6, -5]]]])).tolist()
    [[[[-3], [-5]]]]
    """

    kind: ClassVar[str] = "MaxPool2d"

    def out_range(self, *ranges: Interval) -> Interval:
        """Maxima of the ends: exact."""
        (x,) = ranges
        return Interval(self.forward(x.lo[None])[0], self.forward(x.hi[None])[0])

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, c, h, w]
        # Every window holds a value of x, and none of them is below the least of all.
        maxima: IntArray = self._windows(codes, codes.min()).max(axis=-1)
        return maxima


@dataclass(frozen=True, eq=False)
class SumPool2d(_Pool2d, SumOp):
    """The sum of each window of samples [channels, height, width].

    Args:
        kernel, stride, padding: as for `MaxPool2d`.
        pad_code: the value of padded positions.

    Raises: InvalidType, InvalidArgument.

    >>> import numpy as np
    >>> SumPool2d(2).forward(np.arange(8).reshape(1, 1, 2, 4)).tolist()
    [[[[10, 18]]]]
    """

    kind: ClassVar[str] = "SumPool2d"

    pad_code: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pad_code", code_parameter(self.pad_code, "pad_code"))

    def out_range(self, *ranges: Interval) -> Interval:
        """Sums of the ends: exact."""
        (x,) = ranges
        mass = self.prepare(x)
        return Interval(
            self.forward(x.lo[None], plan=mass)[0], self.forward(x.hi[None], plan=mass)[0]
        )

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = sum of max|X| over the window, [c, *positions]."""
        (x,) = ranges
        bound = prod(self.kernel) * max(x.largest, abs(self.pad_code))
        mass: IntArray = sum_last_axis(self._windows(x.magnitude[None], abs(self.pad_code)), bound)[
            0
        ]
        return mass

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        mass = self._plan(plan, x)
        return sum_last_axis(self.terms(*x), mass)

    def terms(self, *x: IntArray) -> IntArray:
        """The window's values in the order u, v, padding too: [n, c, *positions, kh * kw]."""
        (codes,) = x
        return self._windows(codes, self.pad_code)


@dataclass(frozen=True, eq=False)
class GlobalSumPool(SumOp):
    """The sum of each channel: samples [channels, ...] to [channels].

    >>> import numpy as np
    >>> GlobalSumPool().forward(np.arange(8).reshape(1, 2, 2, 2)).tolist()
    [[6, 22]]
    """

    kind: ClassVar[str] = "GlobalSumPool"

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) < 2:
            expected = "channels and spatial axes"
            raise ShapeMismatch(mismatch("input of GlobalSumPool", f"shape {shape}", expected))
        return shape[:1]

    def out_range(self, *ranges: Interval) -> Interval:
        """Sums of the ends: exact."""
        (x,) = ranges
        mass = self.prepare(x)
        return Interval(
            self.forward(x.lo[None], plan=mass)[0], self.forward(x.hi[None], plan=mass)[0]
        )

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = sum of max|x| over the positions, [channels]."""
        (x,) = ranges
        bound = prod(x.shape[1:]) * x.largest
        mass: IntArray = sum_last_axis(self.terms(x.magnitude[None]), bound)[0]
        return mass

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        mass = self._plan(plan, x)
        return sum_last_axis(self.terms(*x), mass)

    def terms(self, *x: IntArray) -> IntArray:
        """The values of the channel, row by row: [n, channels, positions]."""
        (codes,) = x
        return codes.reshape(*codes.shape[:2], -1)
