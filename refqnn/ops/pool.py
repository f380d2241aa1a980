"""Pooling over windows of each channel.

    MaxPool2d      y[n, c, i, j] = max over u, v of  x[n, c, s_h i + u - top, s_w j + v - left]
    SumPool2d      y[n, c, i, j] = sum over u, v of  X[n, c, s_h i + u, s_w j + v]
    GlobalSumPool  y[n, c]       = sum over all positions of x[n, c, ...]

Positions outside x do not take part in a maximum; in a sum they count as `pad_code`.  An average is
a sum whose divisor is part of the scale of the `Requantize` behind it; where it is the number of
positions inside x, `mean_by_count` makes the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import sum_last_axis
from refqnn.errors import InvalidArgument, NotCovered, ShapeMismatch, mismatch
from refqnn.formats import IntFormat
from refqnn.limits import LISTED_THRESHOLDS
from refqnn.ops.base import (
    Channelwise,
    Ends,
    IntArray,
    Interval,
    Op,
    Shape,
    SumOp,
    code_parameter,
)
from refqnn.ops.requantize import Requantize
from refqnn.ops.rescale import MOST_SHIFT, Rescale
from refqnn.ops.reshape import Reshape
from refqnn.ops.structure import PADDING, Role, Rows
from refqnn.ops.windows import (
    integers_per_axis,
    n_positions,
    pad,
    padding_per_axis,
    window_positions,
    windows,
)
from refqnn.rounding import Rounding

__all__ = ["GlobalSumPool", "MaxPool2d", "SumPool2d", "mean_by_count"]

_DENSE = (1, 1)  # pooling windows are not dilated


@dataclass(frozen=True, eq=False)
class _Pool2d(Channelwise):
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

    def windows(self, shape: Shape, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        channel, *where = np.unravel_index(positions, self.out_shape(shape))
        flat = window_positions(where, shape[1:], self.kernel, self.stride, self.padding, _DENSE)
        return np.where(flat == PADDING, PADDING, channel[:, None] * prod(shape[1:]) + flat)

    def _windows(self, x: IntArray, pad_code: int) -> IntArray:
        """[n, c, *positions, kh * kw]; the last axis in the order u, v."""
        view = windows(pad(x, self.padding, pad_code), self.kernel, self.stride, _DENSE)
        return view.reshape(*view.shape[:4], prod(self.kernel))


@dataclass(frozen=True, eq=False)
class MaxPool2d(_Pool2d):
    """The greatest value of each window of samples [channels, height, width].

    Args:
        kernel: an integer, or (kh, kw).
        stride: an integer, or (h, w); the kernel by default.
        padding: an integer, (h, w), or ((top, bottom), (left, right)); less than the kernel.

    Raises: InvalidType, InvalidArgument, OutOfRange.

    >>> import numpy as np
    >>> pool = MaxPool2d(2, stride=1, padding=((0, 1), 0))
    >>> pool.forward(np.array([[[[-4, -3], [-6, -5]]]])).tolist()
    [[[[-3], [-5]]]]
    """

    kind: ClassVar[str] = "MaxPool2d"
    role = Role.WINDOW
    windows = _Pool2d.windows

    def out_range(self, *ranges: Interval) -> Interval:
        """Maxima of the ends: exact."""
        (x,) = ranges
        return Interval(self.forward(x.lo[None])[0], self.forward(x.hi[None])[0])

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, c, h, w]
        # Every window holds a value of x, and none of them is below the least of all.
        maxima: IntArray = self._windows(codes, codes.min(initial=0)).max(axis=-1)
        return maxima


class _PlainSum(Channelwise, SumOp):
    """A sum of input values as they are: all coefficients are 1."""

    pad_code: int = 0

    def out_range(self, *ranges: Interval) -> Interval:
        """Sums of the ends: exact."""
        (x,) = ranges
        lo, hi = self.forward(np.stack([x.lo, x.hi]), plan=self.prepare(x))
        return Interval(lo, hi)

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        return sum_last_axis(self.terms(*x), self._plan(plan, x))

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        ((lo, hi),) = ends
        fan_in = self.fan_in(*shapes)
        return fan_in * lo, fan_in * hi

    def absolute(self, *, padded: bool) -> SumOp:
        return self


@dataclass(frozen=True, eq=False)
class SumPool2d(_Pool2d, _PlainSum):
    """The sum of each window of samples [channels, height, width].

    Args:
        kernel, stride, padding: as for `MaxPool2d`.
        pad_code: the value of padded positions.

    Raises: InvalidType, InvalidArgument, OutOfRange.

    >>> import numpy as np
    >>> SumPool2d(2).forward(np.arange(8).reshape(1, 1, 2, 4)).tolist()
    [[[[10, 18]]]]
    """

    kind: ClassVar[str] = "SumPool2d"
    role = Role.SUM

    pad_code: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pad_code", code_parameter(self.pad_code, "pad_code"))

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = sum of max|X| over the window, [c, *positions]."""
        (x,) = ranges
        bound = prod(self.kernel) * max(x.largest, abs(self.pad_code))
        windows = self._windows(x.magnitude[None], abs(self.pad_code))
        return np.asarray(sum_last_axis(windows, bound)[0])

    def terms(self, *x: IntArray) -> IntArray:
        """The window's values in the order u, v, padding too: [n, c, *positions, kh * kw]."""
        (codes,) = x
        return self._windows(codes, self.pad_code)

    def fan_in(self, *shapes: Shape) -> int:
        return prod(self.kernel)

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        ((lo, hi),) = ends
        if any(end for pair in self.padding for end in pair):
            lo, hi = min(lo, self.pad_code), max(hi, self.pad_code)
        return super().datatype([(lo, hi)], *shapes)

    def absolute(self, *, padded: bool) -> SumOp:
        return replace(self, pad_code=abs(self.pad_code) if padded else 0)

    def rows(self, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
        column = self.windows(shapes[0], positions)
        outside = (column == PADDING).astype(object).sum(axis=1)
        return Rows(column, (column != PADDING).astype(np.int64), outside * self.pad_code)


@dataclass(frozen=True, eq=False)
class GlobalSumPool(_PlainSum):
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

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = sum of max|x| over the positions, [channels]."""
        (x,) = ranges
        bound = prod(x.shape[1:]) * x.largest
        return np.asarray(sum_last_axis(self.terms(x.magnitude[None]), bound)[0])

    def terms(self, *x: IntArray) -> IntArray:
        """The values of the channel, row by row: [n, channels, positions]."""
        (codes,) = x
        return codes.reshape(*codes.shape[:2], prod(codes.shape[2:]))

    def fan_in(self, *shapes: Shape) -> int:
        return prod(shapes[0][1:])

    def rows(self, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
        size = prod(shapes[0][1:])
        column = positions[:, None] * size + np.arange(size)
        return Rows(column, np.ones_like(column), np.zeros(len(positions), dtype=object))


def mean_by_count(
    shape: Shape,
    kernel: object,
    stride: object = None,
    padding: object = 0,
    *,
    codes: IntFormat,
    format: IntFormat,
    rounding: Rounding | str,
    gain: Fraction | float = 1,
    input_zero_point: int = 0,
    zero_point: int = 0,
    clip: tuple[int, int] | None = None,
) -> list[Op]:
    """The ops, one behind the other, of an average over the positions of each window inside x.

        code = clip(round(sum of (x - input_zero_point) / count * gain) + zero_point)

    Args:
        shape: of a sample, [channels, height, width].
        kernel, stride, padding: as for `MaxPool2d`; what is padded neither adds nor counts.
        codes: the values of x.
        format, rounding, zero_point, clip: as for `Requantize.from_affine`.
        gain: positive, the scale of x by that of the result.

    Returns: a `SumPool2d` and what divides its sums.  Where windows reach beyond x every position
        is a channel of its own then: a `Reshape` to [channels * positions] before, one back after.

    Raises: as `SumPool2d` and `Requantize.from_affine`; NotCovered for more thresholds than are
        listed (16-bit codes are divided without, where they are rounded half_away by gain 1).

    >>> x = np.array([[[[1, 2], [3, 5]]]])
    >>> parts = mean_by_count((1, 2, 2), 2, 1, 1, codes=IntFormat(3, False),
    ...                       format=IntFormat(3, False), rounding="half_away")
    >>> for op in parts:
    ...     x = op.forward(x)
    >>> x.tolist()
    [[[[1, 2, 2], [2, 3, 4], [3, 4, 5]]]]
    """
    pool = SumPool2d(kernel, stride, padding)
    channels, *positions = pool.out_shape(shape)
    counts = pool.forward(np.ones((1, 1, *shape[1:]), dtype=np.int64)).ravel()
    distinct, place = np.unique(counts, return_inverse=True)
    of_value = (
        np.tile(place.ravel(), channels) if len(distinct) > 1 else np.zeros(1, dtype=np.int64)
    )
    exact = Fraction(gain)  # what a float is, a dyadic rational
    if format.bits > 8 and exact == 1 and Rounding.of(rounding) is Rounding.HALF_AWAY:
        parameters = (codes, format, input_zero_point, zero_point, clip)
        divided: Op = _divided_by(distinct[of_value], *parameters)
    else:
        if len(of_value) * format.levels > LISTED_THRESHOLDS:
            got = f"{len(of_value)} rows of {format.levels - 1} thresholds"
            raise NotCovered(mismatch("format", got, f"at most {LISTED_THRESHOLDS} in all"))
        gains = [exact / int(n) for n in distinct]
        few = Requantize.from_affine(
            gains, -input_zero_point * exact, format, rounding, zero_point=zero_point, clip=clip
        )
        divided = Requantize(few.thresholds[of_value], format)
    if len(distinct) == 1:
        return [pool, divided]
    apart = Reshape((channels * prod(positions),))
    return [pool, apart, divided, Reshape((channels, *positions))]


def _divided_by(
    counts: NDArray[np.int64],
    codes: IntFormat,
    format: IntFormat,
    input_zero_point: int,
    zero_point: int,
    clip: tuple[int, int] | None,
) -> Rescale:
    """Sums divided by these counts, rounded half_away: by a multiplier and one shift, exactly.

    With m = ceil(2**s / n) the product acc * m / 2**s lies beyond acc / n, away from zero, by less
    than |acc| / 2**s.  A tie then goes away from zero, and what is none has 1 / (2 n) to the next:
    2**s >= 2 n |acc| is enough.
    """
    largest = max(abs(end - input_zero_point) for end in (codes.q_min, codes.q_max))
    shift = (2 * int(counts.max()) ** 2 * largest).bit_length()
    if shift > MOST_SHIFT:
        raise NotCovered(mismatch("kernel", f"means of {shift} bits", f"at most {MOST_SHIFT}"))
    return Rescale(
        -(-(1 << shift) // counts),
        shift,
        format,
        Rounding.HALF_AWAY,
        zero_point,
        -input_zero_point * counts,
        clip,
    )
