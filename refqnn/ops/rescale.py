"""Rescale: from an accumulator to a wide integer, by a fixed-point multiplier for each channel.

    codes = clip(round((acc + offset) * multiplier / 2**shift) + zero_point)

What Requantize is for few codes, this is for 16 and 32 bits: computed and not listed.  Where both
can, they agree (`Requantize.from_rescale`).  Some runtimes round twice:

    p     = first_rounding((acc + offset) * multiplier / 2**first_shift)
    codes = clip(rounding(p / 2**(shift - first_shift)) + zero_point)

A shift to the left before the product is part of the multiplier, multiplier * 2**left, beside other
channels that are shifted to the right.  Products and sums are exact at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, add, multiply
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, as_integers
from refqnn.ops.base import (
    Interval,
    RowOfEach,
    integer_parameter,
    integers_of_channels,
    one_or_each,
)
from refqnn.ops.structure import Monotone
from refqnn.rounding import Rounding, round_ratio

__all__ = ["Rescale", "clip_parameter"]

MOST_SHIFT = 62
MULTIPLIERS = 2**62  # a mantissa below 2**32, shifted to the left by 30


@dataclass(frozen=True, eq=False)
class Rescale(RowOfEach):
    """Accumulators to codes of up to 32 bits.  The channel axis is the first of a sample.

    Args:
        multiplier: integers from 0 to 2**62 - 1 (for a decreasing channel, negate its weights).
        shift: integers from 0 to 62.
        format: the codes that come out.
        rounding: the mode of the (last) rounding.
        zero_point: integers, added after rounding.
        offset: integers, added to the accumulator: a bias, or an input's zero point negated.
        clip: lowest and highest code, (lo, hi) for all channels or an array [channels, 2]; the
            ends of the format by default.
        first_rounding: the mode of a first rounding, or None for a single one.
        first_shift: integers from 0 to `shift`; where the first rounding takes place.

    multiplier, shift, zero_point, offset and first_shift are one integer or one for each channel.

    Raises: InvalidType, ShapeMismatch, OutOfRange, InvalidArgument.

    >>> wide = IntFormat(16, signed=True)
    >>> Rescale([3, 5 * 2**4], [4, 0], wide).forward(np.array([[40, 40], [-40, -999]])).tolist()
    [[8, 3200], [-7, -32768]]
    >>> twice = Rescale(2**30, 33, wide, "half_away", first_rounding="half_up")
    >>> twice.forward(np.array([[3], [-3], [-5]])).ravel().tolist()  # 3 / 2 is 2, 2 / 4 is 1
    [1, 0, -1]
    """

    kind: ClassVar[str] = "Rescale"
    monotone = True

    multiplier: Any  # kept as int64 [channels or 1], as all numbers are; clip [channels or 1, 2]
    shift: Any
    format: IntFormat
    rounding: Any = Rounding.HALF_UP
    zero_point: Any = 0
    offset: Any = 0
    clip: Any = None
    first_rounding: Any = None
    first_shift: Any = 31

    def __post_init__(self) -> None:
        if not isinstance(self.format, IntFormat) or self.format.step != 1:
            raise InvalidType(mismatch("format", repr(self.format), "an IntFormat of step 1"))
        object.__setattr__(self, "clip", clip_parameter(self.clip, self.format))
        for name in ("multiplier", "shift", "zero_point", "offset", "first_shift"):
            values = integers_of_channels(getattr(self, name), name)
            object.__setattr__(self, name, values)
        for name in ("rounding", "first_rounding")[: 1 + (self.first_rounding is not None)]:
            object.__setattr__(self, name, Rounding.of(getattr(self, name)))
        one_or_each(
            multiplier=self.multiplier,
            shift=self.shift,
            zero_point=self.zero_point,
            offset=self.offset,
            clip=self.clip,
            first_shift=self.first_shift,
        )
        _check_within("multiplier", self.multiplier, MULTIPLIERS - 1)
        _check_within("shift", self.shift, MOST_SHIFT)
        if self.first_rounding is not None:
            _check_within("first_shift", self.first_shift, self.shift)

    def out_range(self, *ranges: Interval) -> Interval:
        """Monotone, so the ends map to the ends: exact."""
        (acc,) = ranges
        return Interval(*self.forward(np.stack([acc.lo, acc.hi])))

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (acc,) = x  # [n, channels, ...]

        def along(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return values.reshape(-1, *(1,) * (acc.ndim - 2))

        value = multiply(add(acc, along(self.offset)), along(self.multiplier))
        shift = self.shift
        if self.first_rounding is not None:
            value = round_ratio(value, along(1 << self.first_shift), self.first_rounding)
            shift = shift - self.first_shift
        rounded = round_ratio(value, along(1 << shift), self.rounding)
        lo, hi = (along(end) for end in self.clip.T)
        codes = np.minimum(np.maximum(add(rounded, along(self.zero_point)), lo), hi)
        return np.asarray(codes.astype(np.int64))

    def functions(self, channels: NDArray[np.int64]) -> Monotone:
        return Monotone(self._of(channels).forward)


def clip_parameter(clip: object, format: IntFormat) -> NDArray[np.int64]:
    """Lowest and highest code, [channels or 1, 2]; the ends of the format for None.

    Raises: InvalidType, ShapeMismatch, InvalidArgument unless lo <= hi inside the format.
    """
    ends = (format.q_min, format.q_max) if clip is None else clip
    rows = integer_parameter(np.atleast_2d(as_integers(ends, "clip")), "clip", ndim=2)
    if rows.shape[1] != 2:
        raise ShapeMismatch(mismatch("clip", f"shape {rows.shape}", "[channels or 1, 2]"))
    lo, hi = rows.T
    if (lo < format.q_min).any() or (lo > hi).any() or (hi > format.q_max).any():
        raise InvalidArgument(mismatch("clip", clip, f"lo <= hi inside {format}"))
    return rows


def _check_within(name: str, values: NDArray[np.int64], most: int | NDArray[np.int64]) -> None:
    if (values < 0).any() or (values > most).any():
        expected = f"integers from 0 to {most if isinstance(most, int) else most.tolist()}"
        raise OutOfRange(mismatch(name, values.tolist(), expected))
