"""Quantizers: the only places where floats become codes, or codes floats.

    scaled   = x / scale
    rounded  = round(scaled)               a named mode, always
    shifted  = rounded + zero_point        over the integers
    code     = clip(shifted, q_min, q_max)

    x'       = (code - zero_point) * scale

The precision of the division is part of the semantics: float32, as trainers compute it, or float64.
x is converted to it first.  NaN is an error; an infinity saturates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import frexp
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.errors import (
    InvalidArgument,
    InvalidType,
    NotCovered,
    OutOfRange,
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import IntFormat, as_array, as_integers, is_integer
from refqnn.rounding import Rounding, round_float

__all__ = [
    "AffineQuantizer",
    "Dequantizer",
    "PowerOfTwoQuantizer",
    "Quantizer",
    "SymmetricQuantizer",
    "ThresholdQuantizer",
    "float_thresholds",
    "power_of_two_exponent",
    "same_quantizer",
]

Precision = Literal["float32", "float64"]
Method = Literal["max_abs", "percentile"]
FloatArray = NDArray[np.floating[Any]]


def as_floats(x: ArrayLike, argument: str, precision: Precision) -> FloatArray:
    """Real numbers in the given precision.

    Raises: InvalidType for strings, objects, booleans and complex; InvalidArgument for NaN or when
        there is no value at all.
    """
    array = as_array(x, argument, "an array of real numbers")
    if array.dtype.kind not in "fiu":
        raise InvalidType(mismatch(argument, f"dtype {array.dtype}", "real numbers"))
    if array.size == 0:
        raise InvalidArgument(mismatch(argument, f"shape {array.shape}", "at least one value"))
    if np.isnan(array).any():
        where = [int(i) for i in np.argwhere(np.isnan(array))[0]]
        raise InvalidArgument(mismatch(f"{argument}{where}", "NaN", "a number"))
    with np.errstate(over="ignore"):  # beyond float32 is an infinity, and an infinity saturates
        return array.astype(precision)


class Quantizer:
    """What the quantizers share.  Not for direct use."""

    kind: ClassVar[str]

    scale: Any  # in `precision`, of shape () or [channels]
    format: IntFormat
    rounding: Any
    axis: int | None
    precision: Precision

    def _zero_point_like(self, ndim: int) -> Any:
        """The zero point, shaped to broadcast against an array of `ndim` dimensions."""
        return 0

    def quantize(self, x: ArrayLike) -> NDArray[np.int64]:
        """Codes, int64, of the shape of x.

        Args:
            x: real numbers of any shape; converted to `precision` first.

        Raises: InvalidType for non-numbers, InvalidArgument for NaN or no values, ShapeMismatch
            when the channel axis does not fit.
        """
        values = as_floats(x, "x", self.precision)
        scale = self._along_axis(self.scale, values)
        with np.errstate(over="ignore"):
            scaled = values / scale
        if self.format.step == 2:  # bipolar: the sign, and +1 at zero
            return np.where(scaled >= 0, np.int64(1), np.int64(-1))
        return self._round_and_saturate(scaled)

    def _round_and_saturate(self, scaled: FloatArray) -> NDArray[np.int64]:
        zero_point = self._zero_point_like(scaled.ndim)
        rounded = round_float(scaled, self.rounding)
        # Saturation before the integer addition is the same as after it, and keeps infinities out
        # of the cast; float64 holds every bound exactly.
        lowest = np.asarray(self.format.q_min - zero_point, dtype=np.float64)
        highest = np.asarray(self.format.q_max - zero_point, dtype=np.float64)
        bounded = np.clip(rounded.astype(np.float64), lowest, highest)
        return np.asarray(bounded.astype(np.int64) + zero_point, dtype=np.int64)

    def dequantize(self, codes: ArrayLike) -> FloatArray:
        """(code - zero_point) * scale in `precision`, of the shape of codes.

        Raises: InvalidType for non-integers, OutOfRange for codes outside the format,
            ShapeMismatch.
        """
        checked = self.format.check(codes)
        scale = self._along_axis(self.scale, checked)
        centred = (checked - self._zero_point_like(checked.ndim)).astype(self.precision)
        with np.errstate(over="ignore"):
            result: FloatArray = centred * scale
        return result

    def _along_axis(self, per_channel: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        """A per-channel vector reshaped so that it broadcasts along `axis` of x."""
        if per_channel.ndim == 0 or self.axis is None:
            return per_channel
        return _reshape_channels(per_channel, x, self.axis)

    def _validate(self) -> None:
        if not isinstance(self.format, IntFormat):
            raise InvalidType(mismatch("format", repr(self.format), "an IntFormat"))
        object.__setattr__(self, "rounding", Rounding.of(self.rounding))
        if self.precision not in ("float32", "float64"):
            raise InvalidArgument(mismatch("precision", repr(self.precision), "float32 or float64"))
        if self.axis is not None and not is_integer(self.axis):
            raise InvalidType(mismatch("axis", repr(self.axis), "an integer or None"))


def _reshape_channels(per_channel: NDArray[Any], x: NDArray[Any], axis: int) -> NDArray[Any]:
    if not -x.ndim <= axis < x.ndim or x.shape[axis] != per_channel.size:
        expected = f"{per_channel.size} channels along axis {axis}"
        raise ShapeMismatch(mismatch("x", f"shape {x.shape}", expected))
    shape = [1] * x.ndim
    shape[axis] = per_channel.size
    return per_channel.reshape(shape)


def _scale_array(scale: ArrayLike, axis: int | None, precision: Precision) -> FloatArray:
    values = as_floats(scale, "scale", "float64")
    if values.ndim > 1 or (values.ndim == 1 and axis is None and values.size > 1):
        expected = "one number, or one per channel together with axis"
        raise ShapeMismatch(mismatch("scale", f"shape {values.shape}, axis {axis}", expected))
    with np.errstate(over="ignore"):
        narrowed = values.astype(precision)
    if not (np.isfinite(narrowed) & (narrowed > 0)).all():
        raise InvalidArgument(mismatch("scale", scale, f"positive finite {precision} numbers"))
    if values.size == 1 and axis is None:
        narrowed = narrowed.reshape(())
    narrowed.flags.writeable = False
    return narrowed


@dataclass(frozen=True, eq=False)
class SymmetricQuantizer(Quantizer):
    """code = clip(round(x / scale)).

    Args:
        scale: positive finite number, or one per channel together with `axis`.
        format: the codes.
        rounding: named mode.
        axis: the channel axis of x when scale is per channel.
        precision: of the division; scale is rounded to it once, here.

    >>> q = SymmetricQuantizer(0.5, IntFormat(3, signed=True))
    >>> q.quantize([-9.0, -0.25, 0.25, 0.75]).tolist()
    [-4, 0, 0, 2]
    >>> q.dequantize([2]).tolist()
    [1.0]
    """

    kind: ClassVar[str] = "SymmetricQuantizer"

    scale: Any
    format: IntFormat
    rounding: Rounding | str = Rounding.HALF_EVEN
    axis: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        self._validate()
        object.__setattr__(self, "scale", _scale_array(self.scale, self.axis, self.precision))

    @classmethod
    def from_data(
        cls,
        x: ArrayLike,
        bits: int,
        *,
        signed: bool = True,
        narrow: bool = False,
        method: Method = "max_abs",
        percentile: float = 99.9,
        rounding: Rounding | str = Rounding.HALF_EVEN,
        axis: int | None = None,
        precision: Precision = "float32",
    ) -> SymmetricQuantizer:
        """scale = threshold / int_threshold, the convention of Brevitas.

        threshold is max|x| or a percentile of |x|; int_threshold is 2**(b-1) - 1 (signed narrow),
        2**(b-1) (signed), 2**b - 1 (unsigned) or 2**b - 2 (unsigned narrow).
        """
        fmt = IntFormat(bits, signed, narrow)
        threshold = _threshold(x, method, percentile, axis, precision)
        divisor = 2 ** (bits - 1) if signed and not narrow else fmt.q_max
        return cls(threshold / np.float64(divisor), fmt, rounding, axis, precision)


@dataclass(frozen=True, eq=False)
class PowerOfTwoQuantizer(Quantizer):
    """code = clip(round(x / 2**exponent)); the division is exact but for underflow.

    Args:
        exponent: integer from -126 to 127, or one per channel together with `axis`.
        format, rounding, axis, precision: as for `SymmetricQuantizer`.

    >>> q = PowerOfTwoQuantizer(-1, IntFormat(2, signed=False), "half_up")
    >>> q.quantize([0.25, 0.74]).tolist()
    [1, 1]
    """

    kind: ClassVar[str] = "PowerOfTwoQuantizer"

    exponent: Any
    format: IntFormat
    rounding: Rounding | str = Rounding.HALF_EVEN
    axis: int | None = None
    precision: Precision = "float32"
    scale: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._validate()
        exponent = as_integers(self.exponent, "exponent")
        if exponent.size == 0 or not ((exponent >= -126) & (exponent <= 127)).all():
            expected = "integers from -126 to 127"
            raise OutOfRange(mismatch("exponent", exponent.tolist(), expected))
        scale = _scale_array(np.ldexp(1.0, exponent), self.axis, self.precision)
        object.__setattr__(self, "exponent", exponent.reshape(scale.shape))
        object.__setattr__(self, "scale", scale)

    @classmethod
    def from_data(
        cls,
        x: ArrayLike,
        bits: int,
        *,
        signed: bool = True,
        narrow: bool = False,
        method: Method = "max_abs",
        percentile: float = 99.9,
        exponent_rounding: Literal["ceil", "round"] = "ceil",
        rounding: Rounding | str = Rounding.HALF_EVEN,
        axis: int | None = None,
        precision: Precision = "float32",
    ) -> PowerOfTwoQuantizer:
        """exponent = ceil or round of log2(threshold), minus b - 1 (signed) or b (unsigned).

        The convention of Brevitas: int_threshold is 2**(b-1) or 2**b whatever `narrow` is.  The
        logarithm is taken on the exact binary value, never through a float log2.
        """
        fmt = IntFormat(bits, signed, narrow)
        threshold = _threshold(x, method, percentile, axis, precision)
        exponents = [power_of_two_exponent(float(t), exponent_rounding) for t in threshold.ravel()]
        log2_int_threshold = bits - 1 if signed else bits
        exponent = np.array(exponents).reshape(threshold.shape) - log2_int_threshold
        return cls(exponent, fmt, rounding, axis, precision)


@dataclass(frozen=True, eq=False)
class AffineQuantizer(Quantizer):
    """code = clip(round(x / scale) + zero_point), as ONNX QuantizeLinear.

    Args:
        scale: as for `SymmetricQuantizer`.
        zero_point: a code of the format, or one per channel.
        zero_point_first: Brevitas adds the zero point (as a float) before it rounds; under
            `half_even` an odd zero point then turns ties round.  False: round, then add.

    >>> AffineQuantizer(1.0, 1, IntFormat(3, signed=False)).quantize([0.5, 1.5]).tolist()
    [1, 3]
    >>> AffineQuantizer(1.0, 1, IntFormat(3, signed=False), zero_point_first=True).quantize(
    ...     [0.5, 1.5]).tolist()
    [2, 2]
    """

    kind: ClassVar[str] = "AffineQuantizer"

    scale: Any
    zero_point: Any
    format: IntFormat
    rounding: Rounding | str = Rounding.HALF_EVEN
    axis: int | None = None
    precision: Precision = "float32"
    zero_point_first: bool = False

    def __post_init__(self) -> None:
        self._validate()
        scale = _scale_array(self.scale, self.axis, self.precision)
        zero_point = self.format.check(self.zero_point, "zero_point")
        if self.format.step != 1:
            raise InvalidArgument(mismatch("format", self.format, "a contiguous format"))
        if zero_point.ndim > 1 or (zero_point.size != 1 and zero_point.shape != scale.shape):
            expected = f"one, or shape {scale.shape} as scale"
            raise ShapeMismatch(mismatch("zero_point", f"shape {zero_point.shape}", expected))
        if zero_point.size == 1:
            zero_point = zero_point.reshape(())
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    def _zero_point_like(self, ndim: int) -> Any:
        if self.zero_point.ndim == 0:
            return int(self.zero_point)
        assert self.axis is not None
        shape = [1] * ndim
        shape[self.axis] = self.zero_point.size
        return self.zero_point.reshape(shape)

    def _round_and_saturate(self, scaled: FloatArray) -> NDArray[np.int64]:
        if not self.zero_point_first:
            return super()._round_and_saturate(scaled)
        shifted = scaled + np.asarray(self._zero_point_like(scaled.ndim)).astype(self.precision)
        rounded = round_float(shifted, self.rounding).astype(np.float64)
        return np.clip(rounded, self.format.q_min, self.format.q_max).astype(np.int64)

    @classmethod
    def from_data(
        cls,
        x: ArrayLike,
        bits: int,
        *,
        signed: bool = False,
        narrow: bool = False,
        method: Method = "max_abs",
        percentile: float = 99.9,
        rounding: Rounding | str = Rounding.HALF_EVEN,
        axis: int | None = None,
        precision: Precision = "float32",
    ) -> AffineQuantizer:
        """The range [min(x, 0), max(x, 0)], or its percentiles, spread over all codes.

        scale = (x_max - x_min) / (q_max - q_min); zero_point = clip(q_min - round(x_min / scale)).
        0.0 has a code of its own.
        """
        fmt = IntFormat(bits, signed, narrow)
        values = as_floats(x, "x", precision).astype(np.float64)
        tail = 0.0 if method == "max_abs" else 100.0 - _percentile(percentile)
        if method not in ("max_abs", "percentile"):
            raise InvalidArgument(mismatch("method", repr(method), "max_abs or percentile"))
        over = _other_axes(values, axis)
        x_min = np.minimum(np.percentile(values, tail, axis=over), 0.0)
        x_max = np.maximum(np.percentile(values, 100.0 - tail, axis=over), 0.0)
        scale = ((x_max - x_min) / (fmt.q_max - fmt.q_min)).astype(precision)
        scale = np.where(scale > 0, scale, np.asarray(1, dtype=precision))
        first_code = round_float(x_min / scale.astype(np.float64), rounding)
        zero_point = np.clip(fmt.q_min - first_code, fmt.q_min, fmt.q_max).astype(np.int64)
        return cls(scale, zero_point, fmt, rounding, axis, precision)


def _percentile(percentile: float) -> float:
    if not 50.0 < percentile <= 100.0:
        raise InvalidArgument(mismatch("percentile", percentile, "a number in (50, 100]"))
    return float(percentile)


def _other_axes(values: NDArray[Any], axis: int | None) -> tuple[int, ...]:
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise InvalidArgument(mismatch("axis", axis, f"an axis of shape {values.shape}"))
    return tuple(i for i in range(values.ndim) if axis is None or i != axis % values.ndim)


def _threshold(
    x: ArrayLike, method: Method, percentile: float, axis: int | None, precision: Precision
) -> NDArray[np.float64]:
    """max|x| or a percentile of |x|, of shape () or [channels]; 1.0 where all x are zero."""
    values = np.abs(as_floats(x, "x", precision).astype(np.float64))
    over = _other_axes(values, axis)
    if method == "max_abs":
        threshold = values.max(axis=over)
    elif method == "percentile":
        threshold = np.percentile(values, _percentile(percentile), axis=over)
    else:
        raise InvalidArgument(mismatch("method", repr(method), "max_abs or percentile"))
    if not np.isfinite(threshold).all():
        raise InvalidArgument(mismatch("x", "an infinity", "finite data to choose a scale from"))
    return np.asarray(np.where(threshold > 0, threshold, 1.0))


def power_of_two_exponent(value: float, rounding: Literal["ceil", "round"]) -> int:
    """log2(value), rounded up or to the nearest integer, from the binary digits of value.

    With value = m * 2**e and 1/2 <= m < 1: the ceiling is e - 1 when m = 1/2, else e; the nearest
    is e - 1 when m < sqrt(1/2), else e (m is rational, so there is no tie).

    >>> power_of_two_exponent(2.0, "ceil"), power_of_two_exponent(2.0000001, "ceil")
    (1, 2)
    >>> power_of_two_exponent(1.4, "round"), power_of_two_exponent(1.5, "round")
    (0, 1)
    """
    if not (np.isfinite(value) and value > 0):
        raise InvalidArgument(mismatch("value", value, "a positive finite number"))
    m, e = frexp(value)
    if rounding == "ceil":
        return e - 1 if m == 0.5 else e
    if rounding == "round":
        return e - 1 if 2 * Fraction(m) ** 2 < 1 else e
    raise InvalidArgument(mismatch("rounding", repr(rounding), "ceil or round"))


def float_thresholds(
    function: Callable[[NDArray[np.float32]], NDArray[Any]], codes: NDArray[Any]
) -> NDArray[np.float32]:
    """The least finite float32 x with function(x) >= code, for a nondecreasing function.

    Args:
        function: of float32 [rows, n]; integers of the same shape.
        codes: [rows, n].

    Returns: float32 [rows, n]; -inf where every finite x reaches the code, +inf where none does.
    """
    greatest = int(np.float32(np.finfo(np.float32).max).view(np.int32))

    def float_at(
        key: NDArray[Any],
    ) -> NDArray[np.float32]:  # keys order the floats: ..., -1e-45, 0, 1e-45, ...
        magnitude: NDArray[np.float32] = np.abs(key).astype(np.int32).view(np.float32)
        return np.where(key < 0, -magnitude, magnitude)

    below, reached = np.full(codes.shape, -greatest - 1), np.full(codes.shape, greatest + 1)
    while (reached - below > 1).any():
        middle = (below + reached) // 2
        inside = np.clip(middle, -greatest, greatest)
        hit = (function(float_at(inside)) >= codes) & (middle == inside)
        below, reached = np.where(hit, below, middle), np.where(hit, middle, reached)
    values = float_at(np.clip(reached, -greatest, greatest))
    values[reached > greatest] = np.inf
    values[reached == -greatest] = -np.inf
    return values


@dataclass(frozen=True, eq=False)
class ThresholdQuantizer(Quantizer):
    """code = q_min + step * #{k : x >= thresholds[channel, k]}: any nondecreasing function of x.

    What a model computes on its input before it quantizes it (x / 255, a mean and a deviation per
    channel, a rounding of its own) lies in the thresholds, exactly: no float arithmetic is left.

    Args:
        thresholds: [1 or channels, levels - 1], converted to float32, nondecreasing along a row;
            -inf is always reached, +inf never.
        format: the codes; step is 2 for `BIPOLAR`, else 1.
        axis: the channel axis of x; None for one row.

    Infinite x count as the greatest and the least finite float32.

    >>> q = ThresholdQuantizer([[0.1, 0.2, 0.7]], IntFormat(2, signed=False))
    >>> q.quantize([-5.0, 0.1, 0.5, 2.0]).tolist()
    [0, 1, 2, 3]
    """

    kind: ClassVar[str] = "ThresholdQuantizer"
    precision: ClassVar[Precision] = "float32"  # type: ignore[misc]

    thresholds: Any
    format: IntFormat
    axis: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.format, IntFormat):
            raise InvalidType(mismatch("format", repr(self.format), "an IntFormat"))
        if self.axis is not None and not is_integer(self.axis):
            raise InvalidType(mismatch("axis", repr(self.axis), "an integer or None"))
        table = np.atleast_2d(as_floats(self.thresholds, "thresholds", "float32"))
        rows, columns = (1 if self.axis is None else table.shape[0]), self.format.levels - 1
        if table.shape != (rows, columns):
            expected = f"[{'1' if self.axis is None else 'channels'}, {columns}]"
            raise ShapeMismatch(mismatch("thresholds", f"shape {table.shape}", expected))
        if (table[:, 1:] < table[:, :-1]).any():
            raise InvalidArgument(mismatch("thresholds", "a row that falls", "nondecreasing rows"))
        table.flags.writeable = False
        object.__setattr__(self, "thresholds", table)

    def quantize(self, x: ArrayLike) -> NDArray[np.int64]:
        """Codes, int64, of the shape of x.  Raises: as `Quantizer.quantize`."""
        values = as_floats(x, "x", "float32")
        greatest = np.finfo(np.float32).max
        finite = np.clip(values, -greatest, greatest)
        if self.axis is None:
            counts = np.searchsorted(self.thresholds[0], finite, side="right")
        else:
            _reshape_channels(self.thresholds[:, 0], values, self.axis)  # does the axis fit?
            rows = zip(self.thresholds, np.moveaxis(finite, self.axis, 0))
            by_channel = [np.searchsorted(row, v, side="right") for row, v in rows]
            counts = np.moveaxis(np.stack(by_channel), 0, self.axis)
        return np.asarray(self.format.q_min + self.format.step * counts, dtype=np.int64)

    def dequantize(self, codes: ArrayLike) -> FloatArray:
        """Raises: NotCovered: a code stands for an interval of x, not for one number."""
        raise NotCovered("dequantize: thresholds say where codes begin, not what they stand for")


def same_quantizer(a: Quantizer, b: Quantizer) -> bool:
    """Are they of one kind, with the same parameters?"""
    mine, theirs = vars(a), vars(b)
    return type(a) is type(b) and all(np.array_equal(mine[k], theirs[k]) for k in mine)


@dataclass(frozen=True, eq=False)
class Dequantizer:
    """The output door: y[n, c, ...] = acc[n, c, ...] * scale[c] + offset[c], in `precision`.

    Args:
        scale: finite nonzero numbers, one or one per channel (axis 1 of a batch).
        offset: finite numbers, one or one per channel; a float bias that no table follows.

    >>> Dequantizer(0.5, [0.0, 1.0]).dequantize([[3, 3]]).tolist()
    [[1.5, 2.5]]
    """

    scale: Any
    offset: Any = 0.0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("scale", "offset"):
            values = as_floats(getattr(self, name), name, self.precision)
            if values.ndim > 1:
                expected = "one number, or one per channel"
                raise ShapeMismatch(mismatch(name, f"shape {values.shape}", expected))
            if not np.isfinite(values).all():
                raise InvalidArgument(mismatch(name, getattr(self, name), "finite numbers"))
            values = values.reshape(()) if values.size == 1 else values
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if (self.scale == 0).any():
            raise InvalidArgument(mismatch("scale", "0", "nonzero numbers"))

    def dequantize(self, acc: ArrayLike) -> FloatArray:
        """Floats of the shape of acc [n, channels, ...].

        Raises: InvalidType, ShapeMismatch, OutOfRange beyond int64.
        """
        integers = as_integers(acc, "acc")
        if integers.dtype == object:
            raise OutOfRange(mismatch("acc", "a value beyond 64 bits", "int64 values"))
        scale, offset = (
            v if v.ndim == 0 else _reshape_channels(v, integers, 1)
            for v in (self.scale, self.offset)
        )
        with np.errstate(over="ignore"):
            scaled = integers.astype(self.precision) * scale
            result: FloatArray = scaled + offset
        return result
