"""Requantize: from an accumulator to a code, as exact integer thresholds.

    code[c] = q_min + #{k : acc[c] >= T[c, k]},      T[c, 0] <= T[c, 1] <= ... (levels - 1 of them)

Every nondecreasing function from integers to codes has exactly one such T, so scales, biases, batch
norm, ReLU, clipping and saturating activations all fold into it without losing one integer.
`NEVER` (the largest int64) stands for a code that is not reached, `ALWAYS` (the smallest) for one
that is always passed; accumulators lie strictly between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.arithmetic import add, magnitude, to_int64_if_possible
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import IntFormat
from refqnn.limits import CODE_TABLE, COMPARED_THRESHOLDS, MAX_LEVELS, SEARCHED_TOGETHER
from refqnn.ops.base import (
    IntArray,
    Interval,
    RowOfEach,
    channel_index,
    integer,
    integer_parameter,
    integers_of_channels,
    one_or_each,
    rows_of,
)
from refqnn.ops.rescale import Rescale, clip_parameter
from refqnn.ops.scaling import Scaling
from refqnn.ops.structure import Thresholds
from refqnn.rounding import Rounding

__all__ = ["ALWAYS", "NEVER", "Requantize", "reaches"]

ALWAYS = -(2**63)
NEVER = 2**63 - 1

CodeFunction = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Requantize(RowOfEach):
    """Accumulators to codes by counting thresholds.  The channel axis is the first of a sample.

    Args:
        thresholds: integers [channels or 1, levels - 1], nondecreasing along the second axis.
        format: the codes that come out; levels - 1 = q_max - q_min.

    Attributes:
        scaling: the scale that made the thresholds, where it is known; not stored in files.

    Raises: InvalidType, ShapeMismatch, InvalidArgument; where it is used, OutOfRange for an
        accumulator that may reach a sentinel.

    >>> relu = Requantize.from_shift(2, IntFormat(2, signed=False))
    >>> relu.thresholds.tolist()
    [[2, 6, 10]]
    >>> relu.forward(np.array([[-9], [1], [2], [99]])).ravel().tolist()
    [0, 0, 1, 3]
    >>> relu.shift
    2
    """

    kind: ClassVar[str] = "Requantize"
    monotone = True

    thresholds: NDArray[np.int64]
    format: IntFormat
    scaling: Scaling | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_format(self.format)
        thresholds = integer_parameter(self.thresholds, "thresholds", ndim=2)
        if thresholds.shape[1] != self.format.levels - 1:
            expected = f"[channels or 1, {self.format.levels - 1}] for {self.format}"
            raise ShapeMismatch(mismatch("thresholds", f"shape {thresholds.shape}", expected))
        if (thresholds[:, 1:] < thresholds[:, :-1]).any():
            raise InvalidArgument("thresholds: got a decreasing row, expected nondecreasing rows")
        object.__setattr__(self, "thresholds", thresholds)

    # --- what it computes -------------------------------------------------------------------

    def out_range(self, *ranges: Interval) -> Interval:
        """Monotone, so the ends map to the ends: exact."""
        (acc,) = ranges
        lo, hi = self.forward(np.stack([acc.lo, acc.hi]))
        return Interval(lo, hi)

    def prepare(self, *ranges: Interval) -> tuple[IntArray, IntArray] | None:
        """The codes of every accumulator in range, one channel after another, where they are few.

        Returns: (table, origin [channels]) with code = table[acc + origin[c]], or None.
        """
        (acc,) = ranges
        lo = acc.lo.reshape(self.channels, -1).min(axis=1)[:, None]  # [channels, 1]
        hi = acc.hi.reshape(self.channels, -1).max(axis=1)[:, None]
        spans = (hi.astype(object) - lo + 1)[:, 0]
        if spans.sum() > CODE_TABLE:
            return None
        _check_between_sentinels(acc)
        end = hi + 1
        # Code q_min + k holds from threshold k - 1 up to threshold k, within [lo, end).
        bounds = np.concatenate([lo, np.clip(self.thresholds, lo, end), end], axis=1)
        narrow = np.int16 if self.format.bits < 16 else np.int32  # small tables stay in the cache
        codes = np.arange(self.format.q_min, self.format.q_max + 1, dtype=narrow)
        table = np.repeat(np.tile(codes, self.channels), np.diff(bounds, axis=1).ravel())
        start = (np.cumsum(spans) - spans).astype(np.int64)
        return table, start - lo[:, 0]  # may wrap at the ends of int64, and back in acc + origin

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (acc,) = x  # [n, channels, ...]
        channel = channel_index(self.channels, acc.ndim - 1)
        if plan is None:
            _check_between_sentinels(Interval.observed(acc))
        acc = acc.astype(np.int64, copy=False)
        if plan is not None:
            table, origin = plan
            return np.asarray(table.take(acc + origin[channel]), dtype=np.int64)
        if self.thresholds.shape[1] <= COMPARED_THRESHOLDS:
            codes = np.full(acc.shape, self.format.q_min, dtype=np.int64)
            for threshold in self.thresholds.T:  # [channels]
                codes += acc >= threshold[channel]
            return codes
        by_channel = acc.swapaxes(0, 1).reshape(self.channels, -1)
        counts = _counts(self.thresholds, by_channel)
        codes = counts.reshape(acc.swapaxes(0, 1).shape).swapaxes(0, 1)
        return np.asarray(codes + self.format.q_min)

    @property
    def shift(self) -> int | None:
        """r when every channel's reachable thresholds lie 2**r apart, else None.

        Then code = q_min + clip((acc + offset[c]) >> r), which hardware and encryption compute
        without a table of full width.  None also where no channel has two reachable thresholds.
        """
        inner = (self.thresholds[:, 1:] != NEVER) & (self.thresholds[:, :-1] != ALWAYS)
        steps = self.thresholds[:, 1:][inner].astype(object)
        steps = steps - self.thresholds[:, :-1][inner].astype(object)
        distinct = {int(step) for step in steps}
        if len(distinct) != 1:
            return None
        (step,) = distinct
        return step.bit_length() - 1 if step > 0 and step & (step - 1) == 0 else None

    def functions(self, channels: NDArray[np.int64]) -> Thresholds:
        return Thresholds(rows_of(self.thresholds, channels), self.format.q_min)

    def restricted(self, *ranges: Interval) -> Requantize:
        """Thresholds that no accumulator reaches become NEVER, those that all pass ALWAYS."""
        (acc,) = ranges
        lo = acc.lo.reshape(self.channels, -1).min(axis=1)[:, None]
        hi = acc.hi.reshape(self.channels, -1).max(axis=1)[:, None]
        thresholds = np.where(self.thresholds <= lo, ALWAYS, self.thresholds)
        return Requantize(np.where(thresholds > hi, NEVER, thresholds), self.format)

    # --- where it comes from ----------------------------------------------------------------

    @classmethod
    def from_affine(
        cls,
        gain: object,
        offset: object,
        format: IntFormat,
        rounding: Rounding | str,
        *,
        zero_point: int = 0,
        clip: ArrayLike | None = None,
    ) -> Requantize:
        """code = saturate(round(acc * gain + offset) + zero_point), over the rationals.

        Args:
            gain, offset: one number or one per channel; int, float (taken as the dyadic rational
                it is) or Fraction.  gain > 0: negate the weight row for a decreasing channel.
            zero_point: added after rounding.
            clip: lowest and highest code that an activation lets through, e.g. (zero_point, q_max)
                for a ReLU on a signed format, or an array [channels, 2]; the format's own ends by
                default.

        A code q is reached when round(v) >= q - zero_point.  That is v >= beta or v > beta with
        beta an integer or half-integer that the mode defines, hence
        T = ceil((beta - offset) / gain) or floor((beta - offset) / gain) + 1.

        >>> third = Requantize.from_affine(Fraction(1, 3), 0, IntFormat(2, False), "floor")
        >>> third.thresholds.tolist()
        [[3, 6, 9]]
        """
        mode = Rounding.of(rounding)
        _check_format(format)
        gains, offsets = _per_channel(
            gain=_rationals(gain, "gain"), offset=_rationals(offset, "offset")
        )
        if min(gains) <= 0:
            expected = "positive numbers (negate the weights of a decreasing channel)"
            raise InvalidArgument(mismatch("gain", float(min(gains)), expected))
        zero_point = integer(zero_point, "zero_point")
        ends = clip_parameter(clip, format)

        codes = _codes_above_the_first(format)
        values = _minus(codes, zero_point)
        rows = [_between_sentinels(_least(a, b, values, mode)) for a, b in zip(gains, offsets)]
        one_or_each(gain=rows, clip=ends)
        made = Scaling.of(gains, offsets, [zero_point], ends, mode)
        return cls(_clipped(np.stack(rows), codes, ends), format).made_by(made)

    def made_by(self, scaling: Scaling | None) -> Requantize:
        """The same, which knows what its thresholds stand for."""
        object.__setattr__(self, "scaling", scaling)
        return self

    def ties(self, acc: Interval, mass: IntArray, sums: IntArray) -> tuple[int, int] | None:
        """Accumulators in range at which float32 runtimes may give other codes than this.

        Args:
            acc: the proved range [channels, ...].
            mass: the absolute mass of the sum that is requantized, of the same shape.
            sums: what a float32 sum may be off, in units of 2**-24.

        Returns: (of a runtime that sums exactly, of one that sums in float32), over all channels;
            None where no scale is known.
        """
        if self.scaling is None:
            return None
        made, codes = self.scaling, _codes_above_the_first(self.format)
        value = codes - np.c_[made.zero_point].astype(np.int64)
        twice = reaches(value, made.rounding)[0].astype(np.float64)
        lo, hi, greatest, mass, sums = (
            each.reshape(len(each), -1).astype(np.float64)
            for each in (acc.lo, acc.hi, acc.magnitude, mass, sums)
        )
        lo = lo.min(axis=1)
        greatest, hi, mass, sums = (v.max(axis=1) for v in (greatest, hi, mass, sums))
        inexact = ((greatest, np.zeros_like(sums)), (mass, sums))
        exact, floats = (
            0 if made.exact(held) else made.ties(lo, hi, error, codes, twice)
            for held, error in inexact
        )
        return exact, floats

    @classmethod
    def from_scale(
        cls,
        scale_in: object,
        scale_out: object,
        format: IntFormat,
        rounding: Rounding | str,
        *,
        bias: object = 0.0,
        zero_point: int = 0,
        clip: ArrayLike | None = None,
    ) -> Requantize:
        """code = saturate(round((acc * scale_in + bias) / scale_out) + zero_point), exactly.

        Scales and bias are float32 or float64 numbers, one or one per channel, taken as the dyadic
        rationals they are; no float is ever rounded here.

        >>> Requantize.from_scale(0.5, 2.0, IntFormat(2, False), "half_even").thresholds.tolist()
        [[3, 6, 11]]
        """
        scales_in, scales_out, biases = _per_channel(
            scale_in=_rationals(scale_in, "scale_in"),
            scale_out=_rationals(scale_out, "scale_out"),
            bias=_rationals(bias, "bias"),
        )
        for name, scales in (("scale_in", scales_in), ("scale_out", scales_out)):
            if min(scales) <= 0:
                raise InvalidArgument(mismatch(name, float(min(scales)), "positive numbers"))
        gains = [s_in / s_out for s_in, s_out in zip(scales_in, scales_out)]
        offsets = [b / s_out for b, s_out in zip(biases, scales_out)]
        return cls.from_affine(gains, offsets, format, rounding, zero_point=zero_point, clip=clip)

    @classmethod
    def from_shift(
        cls,
        shift: int,
        format: IntFormat,
        rounding: Rounding | str = Rounding.HALF_UP,
        *,
        offset: object = 0,
        zero_point: int = 0,
        clip: ArrayLike | None = None,
    ) -> Requantize:
        """code = saturate(round((acc + offset[c]) / 2**shift) + zero_point); clip as in
        `from_affine`.

        `half_up` is what adding 2**(shift - 1) and shifting right computes, `floor` the bare shift.
        """
        if not 0 <= integer(shift, "shift") <= 62:
            raise InvalidArgument(mismatch("shift", shift, "an integer from 0 to 62"))
        gain = Fraction(1, 2 ** int(shift))
        offsets = [value * gain for value in _rationals(offset, "offset")]
        return cls.from_affine(gain, offsets, format, rounding, zero_point=zero_point, clip=clip)

    @classmethod
    def from_multiplier(
        cls,
        mantissa: ArrayLike,
        shift: ArrayLike,
        format: IntFormat,
        rounding: Rounding | str = Rounding.HALF_UP,
        *,
        zero_point: int = 0,
        clip: ArrayLike | None = None,
        first_rounding: Rounding | str | None = None,
        first_shift: ArrayLike = 31,
    ) -> Requantize:
        """code = saturate(round(acc * mantissa / 2**shift) + zero_point): fixed-point multiplier.

        Args:
            mantissa: positive integers below 2**32, one or one per channel.
            shift: integers from 0 to 62, one or one per channel.
            rounding: the mode of the (last) rounding.
            clip: as in `from_affine`.
            first_rounding: names the *double rounding* of some integer runtimes: the product is
                first rounded to p = round(acc * mantissa / 2**first_shift) with this mode, then
                p / 2**(shift - first_shift) with `rounding`.  None: single rounding.
            first_shift: integers from 0 to `shift`, one or one per channel.

        >>> once = Requantize.from_multiplier(3, 4, IntFormat(2, False))
        >>> once.thresholds.tolist()
        [[3, 8, 14]]
        >>> twice = Requantize.from_multiplier(3, 4, IntFormat(2, False), first_rounding="half_up",
        ...                                    first_shift=2)
        >>> twice.thresholds.tolist()
        [[2, 8, 13]]
        """
        mantissas = integers_of_channels(mantissa, "mantissa")
        if mantissas.min() <= 0 or mantissas.max() >= 2**32:
            got = mantissas.tolist()
            raise OutOfRange(mismatch("mantissa", got, "integers in [1, 2**32)"))
        rescale = Rescale(
            mantissas,
            shift,
            format,
            rounding,
            zero_point=integer(zero_point, "zero_point"),
            clip=clip,
            first_rounding=first_rounding,
            first_shift=first_shift,
        )
        return cls.from_rescale(rescale)

    @classmethod
    def from_rescale(cls, rescale: Rescale) -> Requantize:
        """The codes of a `Rescale`, their thresholds listed.

        Raises: InvalidArgument for a format of more than 2**20 codes.

        >>> wide = Rescale([3, 0], 4, IntFormat(2, False), zero_point=[0, 2])
        >>> Requantize.from_rescale(wide).thresholds[0].tolist()
        [3, 8, 14]
        """
        _check_format(rescale.format)
        codes, twice = _codes_above_the_first(rescale.format), rescale.first_rounding is not None
        mode = rescale.rounding if rescale.first_rounding is None else rescale.first_rounding
        numbers = ("multiplier", "shift", "offset", "zero_point", "first_shift")
        each = (np.broadcast_to(getattr(rescale, n), rescale.channels).tolist() for n in numbers)
        rows = []
        for m, shift, offset, zero_point, first_shift in zip(*each):
            values = _minus(codes, zero_point)
            if twice:  # invert the last rounding, then the first
                last = Fraction(1, 2 ** (shift - first_shift))
                values, shift = _least(last, Fraction(0), values, rescale.rounding), first_shift
            gain = Fraction(m, 2**shift)
            if m == 0:
                rows.append(np.where(values > 0, NEVER, ALWAYS))
            else:
                rows.append(_between_sentinels(_least(gain, offset * gain, values, mode)))
        return cls(_clipped(np.stack(rows), codes, rescale.clip), rescale.format)

    @classmethod
    def from_function(
        cls,
        function: CodeFunction,
        lo: ArrayLike,
        hi: ArrayLike,
        format: IntFormat,
    ) -> Requantize:
        """Thresholds of a nondecreasing function on [lo, hi], by bisection on the function itself.

        This is how agreement with a trainer's own float32 function is had: the function is called,
        never modelled.

        Args:
            function: maps accumulators int64 [channels, n] to codes [channels, n].
            lo, hi: proved accumulator range, integers [channels].
            format: the codes; every value of the function must be one.

        Returns: thresholds in (lo, hi], `ALWAYS` for codes reached at lo, `NEVER` for codes not
            reached at hi.

        Raises: InvalidArgument when the function is seen to decrease (a decreasing channel is
            turned round by negating its weights), OutOfRange for a code outside the format.

        >>> f = lambda acc: np.clip(np.floor(np.tanh(acc / 4) * 4), 0, 3)
        >>> Requantize.from_function(f, [-20], [20], IntFormat(2, False)).thresholds.tolist()
        [[2, 3, 4]]
        """
        _check_format(format)
        los, his = _range_ends(lo, hi)
        codes_at = _checked(function, format)
        levels = format.levels
        target = np.arange(format.q_min + 1, format.q_max + 1)[None, :]  # [1, levels - 1]
        # Invariant: f(below) < target (or below = lo - 1) and f(reached) >= target (or hi + 1).
        below = np.repeat((los - 1)[:, None], levels - 1, axis=1)  # [channels, levels - 1]
        reached = np.repeat((his + 1)[:, None], levels - 1, axis=1)
        while True:
            open_ = reached > below + 1
            if not open_.any():
                break
            middle = below // 2 + reached // 2 + (below & reached & 1)  # their sum may not fit
            middle = np.clip(middle, los[:, None], his[:, None])
            enough = codes_at(middle) >= target
            reached = np.where(open_ & enough, middle, reached)
            below = np.where(open_ & ~enough, middle, below)
        thresholds = np.where(reached > his[:, None], NEVER, reached)
        thresholds = np.where(reached <= los[:, None], ALWAYS, thresholds)
        if (thresholds[:, 1:] < thresholds[:, :-1]).any():
            raise InvalidArgument("function: got one that decreases, expected nondecreasing")
        result = cls(thresholds, format)
        result._check_against(codes_at, los, his)
        return result

    @classmethod
    def from_table(cls, table: object, lo: int, format: IntFormat) -> Requantize:
        """Thresholds of a nondecreasing table of codes [channels or 1, n] for acc = lo, lo + 1, ...

        >>> Requantize.from_table([[0, 0, 1, 3]], -1, IntFormat(2, False)).thresholds.tolist()
        [[1, 2, 2]]
        """
        lo = integer(lo, "lo")
        codes = format.check(integer_parameter(table, "table", ndim=2), "table")
        if (codes[:, 1:] < codes[:, :-1]).any():
            raise InvalidArgument(
                "table: got a decreasing row, expected nondecreasing (or a Lookup)"
            )
        hi = lo + codes.shape[1] - 1
        rows = np.arange(codes.shape[0])[:, None]
        ends = np.full(codes.shape[0], lo), np.full(codes.shape[0], hi)
        return cls.from_function(lambda acc: codes[rows, acc - lo], *ends, format)

    def _check_against(
        self, codes_at: CodeFunction, los: NDArray[np.int64], his: NDArray[np.int64]
    ) -> None:
        """Compare with the function at every accumulator, or at 4,096 spread over a wide range."""
        steps = min(int(np.max(his - los)), 4095)
        fraction = np.arange(steps + 1)[None, :]
        span = (his - los)[:, None].astype(object)
        acc = (los[:, None].astype(object) + span * fraction // max(steps, 1)).astype(np.int64)
        expected = np.asarray(codes_at(acc))
        if not np.array_equal(self.forward(acc.T).T, expected):
            raise InvalidArgument("function: got one that is not monotone, expected nondecreasing")


def _codes_above_the_first(format: IntFormat) -> NDArray[np.int64]:
    return np.arange(format.q_min + 1, format.q_max + 1)


def _clipped(
    rows: NDArray[np.int64], codes: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Thresholds of `codes` that let the codes of `ends` [channels or 1, 2] alone through."""
    lo, hi = ends[:, :1], ends[:, 1:]
    return np.where(codes > hi, NEVER, np.where(codes <= lo, ALWAYS, rows))


def _minus(codes: NDArray[np.int64], zero_point: int) -> IntArray:
    return add(codes, to_int64_if_possible(np.array([-zero_point], dtype=object)))


def _between_sentinels(acc: IntArray) -> NDArray[np.int64]:
    return np.asarray(np.minimum(np.maximum(acc, ALWAYS), NEVER).astype(np.int64))


def _least(gain: Fraction, offset: Fraction, values: IntArray, mode: Rounding) -> IntArray:
    """For each value [m] the least integer acc with round(acc * gain + offset) >= value.

    With gain = g / h and offset = b / d, acc * gain + offset >= t / 2 is acc >= n / m where

        n = (t * d - 2 * b) * h,    m = 2 * d * g
    """
    d, b = offset.denominator, offset.numerator
    m = 2 * d * gain.numerator
    t_most = 2 * int(magnitude(values).max(initial=0)) + 2
    if (t_most * d + 2 * abs(b)) * gain.denominator + m >= 2**63:
        values = values.astype(object)
    t, included = reaches(values, mode)
    n = (t * d - 2 * b) * gain.denominator
    return np.where(included, -(-n // m), n // m + 1)


def reaches(value: IntArray, mode: Rounding) -> tuple[IntArray, IntArray]:
    """(t, included): round(v) >= value exactly when v >= t / 2 (included), or v > t / 2 (not).

    >>> three = np.array([3])
    >>> reaches(three, Rounding.HALF_UP), reaches(three, Rounding.HALF_EVEN)
    ((array([5]), array([ True])), (array([5]), array([False])))
    """
    positive = value > 0
    from_value = {  # reached from `value` on, not from just above `value` - 1
        Rounding.FLOOR: np.ones_like(positive),
        Rounding.CEIL: np.zeros_like(positive),
        Rounding.TOWARD_ZERO: positive,
        Rounding.AWAY_FROM_ZERO: ~positive,
    }
    if mode in from_value:
        included = from_value[mode]
        return np.where(included, 2 * value, 2 * value - 2), included
    tie_goes_up = {
        Rounding.HALF_EVEN: value % 2 == 0,
        Rounding.HALF_UP: np.ones_like(positive),
        Rounding.HALF_DOWN: np.zeros_like(positive),
        Rounding.HALF_AWAY: positive,
        Rounding.HALF_TOWARD_ZERO: ~positive,
    }
    return 2 * value - 1, tie_goes_up[mode]


def _check_format(format: object) -> None:
    if not isinstance(format, IntFormat) or format.step != 1:
        raise InvalidType(mismatch("format", repr(format), "an IntFormat of step 1"))
    if format.levels > MAX_LEVELS:
        expected = f"at most {MAX_LEVELS} codes, since every threshold is listed"
        raise InvalidArgument(mismatch("format", format, expected))


def _check_between_sentinels(acc: Interval) -> None:
    lo, hi = int(acc.lo.min()), int(acc.hi.max())
    if lo <= ALWAYS or hi >= NEVER:
        got = f"accumulators in [{lo}, {hi}]"
        raise OutOfRange(
            mismatch("input of Requantize", got, "more than -2**63, less than 2**63 - 1")
        )


def _rationals(values: object, argument: str) -> list[Fraction]:
    """One Fraction per channel, exactly: floats are dyadic rationals."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        raise ShapeMismatch(mismatch(argument, f"shape {values.shape}", "one or one per channel"))
    items = list(values) if isinstance(values, (list, tuple)) else np.asarray(values).tolist()
    items = items if isinstance(items, list) else [items]
    try:
        if not items or any(isinstance(v, (str, bool)) for v in items):
            raise TypeError
        return [Fraction(v.item() if isinstance(v, np.generic) else v) for v in items]
    except (TypeError, ValueError, OverflowError):  # NaN is a ValueError, infinity an OverflowError
        expected = "finite numbers, one or one per channel"
        raise InvalidType(mismatch(argument, repr(values), expected)) from None


def _per_channel(**lists: list[Any]) -> list[list[Any]]:
    """The lists repeated to one common length.  Raises: ShapeMismatch unless each has 1 or n."""
    channels = one_or_each(**lists)
    return [values * (channels // len(values)) for values in lists.values()]


def _range_ends(lo: ArrayLike, hi: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    los = integers_of_channels(lo, "lo")
    his = integers_of_channels(hi, "hi")
    if los.shape != his.shape:
        raise ShapeMismatch(mismatch("hi", f"shape {his.shape}", f"shape {los.shape}"))
    if (los > his).any():
        raise InvalidArgument("lo: got a value above hi, expected lo <= hi everywhere")
    if int(np.min(los)) <= -(2**62) or int(np.max(his)) >= 2**62:
        raise OutOfRange(mismatch("lo, hi", "a range beyond 2**62", "a narrower one"))
    return los, his


def _checked(function: CodeFunction, format: IntFormat) -> CodeFunction:
    """The function, with its values verified to be codes of the format."""

    def codes_at(acc: NDArray[np.int64]) -> NDArray[np.int64]:
        values = np.asarray(function(acc))
        if values.shape != acc.shape:
            expected = f"shape {acc.shape} as its argument"
            raise ShapeMismatch(mismatch("value of function", f"shape {values.shape}", expected))
        codes = values.astype(np.int64)
        if not (codes == values).all():
            raise InvalidType("value of function: got non-integers, expected codes")
        return format.check(codes, "value of function")

    return codes_at


def _counts(thresholds: IntArray, acc: IntArray) -> IntArray:
    """How many thresholds of its channel each acc reaches.

    Args:
        thresholds: [channels, levels - 1], each row nondecreasing.
        acc: [channels, n].

    Few values in each of many channels are searched together, step by step of the bisection.
    """
    channels, room = thresholds.shape
    if channels == 1 or acc.shape[1] >= SEARCHED_TOGETHER:
        rows = zip(thresholds, acc)
        return np.stack([np.searchsorted(t, a, side="right") for t, a in rows])
    first = np.repeat(np.arange(0, channels * room, room)[:, None], acc.shape[1], axis=1)
    found, flat = first.copy(), thresholds.ravel()  # found - first of them are reached
    while room > 1:
        half = room // 2
        found += half * (flat.take(found + (half - 1)) <= acc)
        room -= half
    return found + (flat.take(found) <= acc) - first
