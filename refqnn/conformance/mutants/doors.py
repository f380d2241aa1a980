"""Quantizers and requantization: kernels, and what goes wrong in them.

`fmt` is the three parameters of a format: bits, signed, narrow.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from refqnn.conformance.mutants.steps import (
    Hook,
    Index,
    add_and_clamp,
    always,
    channel_value,
    clamp,
    each,
    ends,
    entry,
    round_value,
    same,
    wrap,
)
from refqnn.conformance.mutants.table import KERNELS, of
from refqnn.conformance.operations import Array, Values, functions_in
from refqnn.conformance.suite import Rejected

__all__ = ["quantize"]


def round_ratio(
    numerator: Array,
    denominator: int,
    rounding: str,
    *,
    ratio: Hook = Fraction,
    round_: Hook = round_value,
) -> Values:
    if denominator <= 0:
        raise Rejected("invalid_parameter", "denominator")
    return {"rounded": each(lambda n, _: round_(ratio(n, denominator), rounding), numerator)}


def integer_format(bits: int, signed: bool, narrow: bool, *, ends: Hook = ends) -> Values:
    q_min, q_max = ends(bits, signed, narrow)
    return {"q_min": q_min, "q_max": q_max, "levels": q_max - q_min + 1}


def check_codes(
    codes: Array, *, ends: Hook = ends, outside: Hook | None = None, **fmt: Any
) -> Values:
    q_min, q_max = ends(**fmt)

    def check(code: int, _: Index) -> int:
        if q_min <= code <= q_max:
            return code
        if outside is None:
            raise Rejected("out_of_range", "code")
        return int(outside(code, q_min, q_max))

    return {"codes": each(check, codes)}


def quantize(
    x: Array,
    scale: Array,
    zero_point: Array,
    rounding: str,
    axis: int | None,
    precision: str,
    zero_point_first: bool,
    *,
    ends: Hook = ends,
    convert: Hook = lambda v, dtype: dtype(v),
    divide: Hook = lambda v, s, dtype: dtype(v / s),
    scale_at: Hook = channel_value,
    zero_at: Hook = channel_value,
    round_: Hook = round_value,
    first: Hook = same,
    infinite: Hook = lambda v, lowest, highest: highest if v > 0 else lowest,
    integer: Hook = same,
    last: Hook = add_and_clamp,
    nan: Hook | None = None,
    **fmt: Any,
) -> Values:
    q_min, q_max = ends(**fmt)
    dtype = np.dtype(precision).type
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        scales = np.asarray(scale).astype(precision)
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise Rejected("invalid_parameter", "scale")
    if scales.ndim and scales.size > 1 and (axis is None or x.shape[axis] != scales.size):
        raise Rejected("shape_mismatch", "axis")
    zeros = np.asarray(zero_point)
    if zeros.min() < q_min or zeros.max() > q_max:
        raise Rejected("out_of_range", "zero_point")

    def code(value: Any, index: Index) -> int:
        if np.isnan(value):
            if nan is None:
                raise Rejected("not_a_number", "NaN")
            return int(nan(q_min, q_max))
        s = dtype(scale_at(scale, index, axis, x.shape))
        z = zero_at(zero_point, index, axis, x.shape)
        scaled = divide(convert(value, dtype), s, dtype)
        if np.isinf(scaled):
            return int(infinite(scaled, q_min, q_max))
        if first(zero_point_first):
            scaled, z = type(scaled)(scaled + type(scaled)(z)), 0
        return int(last(integer(round_(scaled, rounding)), z, q_min, q_max))

    with np.errstate(all="ignore"):
        return {"codes": each(code, x)}


def binarize(
    x: Array, *, sign: Hook = lambda v: 1 if v >= 0 else -1, nan: int | None = None
) -> Values:
    def code(value: Any, _: Index) -> int:
        if np.isnan(value):
            if nan is None:
                raise Rejected("not_a_number", "NaN")
            return nan
        return int(sign(value))

    return {"codes": each(code, x)}


def dequantize(
    codes: Array,
    scale: Array,
    zero_point: Array,
    axis: int | None,
    precision: str,
    *,
    check: bool = True,
    code_: Hook = same,
    zero_: Hook = same,
    scale_at: Hook = channel_value,
    zero_at: Hook = channel_value,
    value: Hook = lambda q, z, s, dtype: dtype(dtype(q - z) * dtype(s)),
    **fmt: Any,
) -> Values:
    q_min, q_max = ends(**fmt)
    dtype = np.dtype(precision).type
    codes = np.asarray(codes)
    if check and (codes.min() < q_min or codes.max() > q_max):
        raise Rejected("out_of_range", "codes")

    def real(code: int, index: Index) -> float:
        s = scale_at(scale, index, axis, codes.shape)
        z = zero_at(zero_point, index, axis, codes.shape)
        return float(value(code_(code, fmt["bits"]), zero_(z), s, dtype))

    with np.errstate(all="ignore"):
        return {"x": each(real, codes).astype(np.float64)}


def requantize_thresholds(
    acc: Array,
    thresholds: Array,
    *,
    row_at: Hook = lambda rows, index: rows[index[1] if len(rows) > 1 else 0],
    acc_: Hook = same,
    threshold_: Hook = same,
    reached: Hook = lambda a, t: a >= t,
    count: Hook = lambda flags: sum(flags),
    start: Hook = lambda q_min, q_max: q_min,
    check: bool = True,
    **fmt: Any,
) -> Values:
    q_min, q_max = ends(**fmt)
    rows = np.asarray(thresholds).tolist()
    if len(rows[0]) != q_max - q_min and check:
        raise Rejected("shape_mismatch", "thresholds")
    if check and any(a > b for row in rows for a, b in pairwise(row)):
        raise Rejected("invalid_parameter", "thresholds")
    if len(rows) > 1 and np.shape(acc)[1] != len(rows):
        raise Rejected("shape_mismatch", "channels")

    def code(value: int, index: Index) -> int:
        row = row_at(rows, index)
        summed = acc_(value)
        passed = [reached(summed, threshold_(t)) for t in row]
        return int(start(q_min, q_max) + count(passed))

    return {"codes": each(code, acc)}


def requantize_scale(
    acc: Array,
    scale_in: Array,
    scale_out: Array,
    bias: Array,
    zero_point: int,
    clip: tuple[int, int] | None,
    rounding: str,
    *,
    channel: Hook = lambda index: index[1],
    real: Hook = lambda a, s, t, b: (a * s + b) / t,
    before: Hook = same,
    round_: Hook = round_value,
    finish: Hook = same,
    limits: Hook = lambda clip, ends: clip or ends,
    last: Hook = add_and_clamp,
    **fmt: Any,
) -> Values:
    ends_ = ends(**fmt)
    if any((np.asarray(s) <= 0).any() for s in (scale_in, scale_out)):
        raise Rejected("invalid_parameter", "scale")

    def code(value: int, index: Index) -> int:
        s, t, b = (Fraction(entry(v, channel(index))) for v in (scale_in, scale_out, bias))
        rounded = round_(before(real(value, s, t, b), zero_point), rounding)
        return int(last(finish(rounded, b / t), zero_point, *limits(clip, ends_)))

    return {"codes": each(code, acc)}


def requantize_shift(
    acc: Array,
    shift: int,
    offset: Array,
    zero_point: int,
    rounding: str,
    *,
    ends: Hook = ends,
    channel: Hook = lambda index: index[1],
    add_offset: Hook = lambda a, b: a + b,
    ratio: Hook = lambda a, s: Fraction(a, 2**s),
    round_: Hook = round_value,
    half_up: Hook | None = None,
    finish: Hook = lambda q, b, s: q,
    zero_: Hook = same,
    last: Hook = add_and_clamp,
    **fmt: Any,
) -> Values:
    q_min, q_max = ends(**fmt)
    if not 0 <= shift <= 62:
        raise Rejected("invalid_parameter", "shift")

    def code(value: int, index: Index) -> int:
        b = entry(offset, channel(index))
        a = add_offset(value, b)
        if rounding == "half_up" and half_up is not None:
            rounded = half_up(a, shift)
        else:
            rounded = round_(ratio(a, shift), rounding)
        return int(last(finish(rounded, b, shift), zero_(zero_point, shift), q_min, q_max))

    return {"codes": each(code, acc)}


def requantize_multiplier(
    acc: Array,
    mantissa: Array,
    shift: Array,
    zero_point: int,
    rounding: str,
    first_rounding: str | None,
    first_shift: int,
    *,
    ends: Hook = ends,
    channel: Hook = lambda index: index[1],
    multiply: Hook = lambda a, m: a * m,
    round_first: Hook = round_value,
    round_: Hook = round_value,
    first: Hook = same,
    at: Hook = same,
    last: Hook = add_and_clamp,
    **fmt: Any,
) -> Values:
    q_min, q_max = ends(**fmt)
    mantissas, shifts = np.asarray(mantissa).reshape(-1), np.asarray(shift).reshape(-1)
    if mantissas.min() <= 0 or mantissas.max() >= 2**32 or shifts.min() < 0 or shifts.max() > 62:
        raise Rejected("invalid_parameter", "multiplier")

    def code(value: int, index: Index) -> int:
        m, s = (entry(v, channel(index)) for v in (mantissa, shift))
        p, done, mode = multiply(value, m), 0, first(first_rounding)
        if mode is not None:
            done = at(first_shift)
            p = round_first(Fraction(p, 2**done), mode)
        q = round_(Fraction(p) / Fraction(2) ** (s - done), rounding)
        return int(last(q, zero_point, q_min, q_max))

    return {"codes": each(code, acc)}


KERNELS.update(functions_in(globals()))


# --- rounding modes ---------------------------------------------------------------------------

_CONFUSED = {
    "half_even": ("half_up", "half_away", "half_toward_zero"),
    "half_up": ("half_even", "half_away"),
    "half_down": ("half_toward_zero", "half_even"),
    "half_away": ("half_up", "half_even"),
    "half_toward_zero": ("half_down", "half_even"),
    "floor": ("toward_zero", "half_up"),
    "ceil": ("half_up",),
    "toward_zero": ("floor", "half_even"),
    "away_from_zero": ("toward_zero", "ceil", "floor", "half_away"),
}


def _as(wrong: str, right: str) -> Hook:
    return lambda x, mode: round_value(x, wrong if mode == right else mode)


def _instead(right: str, wrong: Hook) -> Hook:
    """A wrong rounding for one mode alone."""
    return lambda x, mode: wrong(x) if mode == right else round_value(x, mode)


for _right, _others in _CONFUSED.items():
    for _wrong in _others:
        of(round_ratio, quantize, requantize_scale, requantize_shift, requantize_multiplier)(
            f"{_right}_as_{_wrong}",
            "rounding_tie",
            f"rounds {_wrong} where {_right} is asked for",
            round_=_as(_wrong, _right),
        )


def _c_remainder(x: Fraction) -> int:
    """Half up by a truncated quotient and a remainder that keeps the sign, as in C."""
    n, d = x.numerator, x.denominator
    q = int(math.copysign(abs(n) // d, n)) if n else 0
    return q + 1 if 2 * (n - q * d) >= d else q


def _plus_half(x: Any, mode: str) -> int:
    return int(np.floor(x + type(x)(0.5))) if mode.startswith("half") else round_value(x, mode)


def _to_odd(x: Fraction) -> int:
    """Half even with ties sent to the odd neighbour."""
    tie = x.denominator == 2
    return 2 * int((x + Fraction(1, 2)) // 2) + 1 if tie else round_value(x, "half_even")


# fmt: off
_r = of(round_ratio)
_r("float_quotient", "float_precision", "divides in float64 first",
   ratio=lambda n, d: Fraction(n / d))
_r("float32_quotient", "float_precision", "divides in float32 first",
   ratio=lambda n, d: Fraction(float(np.float32(n) / np.float32(d))))
_r("int32_numerator", "overflow_narrow", "holds the numerator in 32 bits",
   ratio=lambda n, d: Fraction(wrap(32)(n), d))
_r("double_wraps_int64", "overflow_narrow",
   "doubles the numerator in 64 bits to compare with a half",
   ratio=lambda n, d: Fraction(wrap(64)(2 * n), 2 * d))
_r("c_remainder", "rounding_tie", "takes half_up from a truncated quotient and a signed remainder",
   round_=_instead("half_up", _c_remainder))
_r("half_of_odd_denominator", "rounding_tie", "adds denominator // 2, rounded up, before the floor",
   round_=_instead("half_up", lambda x: (x.numerator + (x.denominator + 1) // 2) // x.denominator))
_r("half_even_by_lower_parity", "rounding_tie", "sends half_even ties to the odd neighbour",
   round_=_instead("half_even", _to_odd))
_r("sign_lost", "signedness", "rounds the magnitude and forgets the sign",
   round_=lambda x, mode: abs(round_value(x, mode)))
# fmt: on


# --- formats ----------------------------------------------------------------------------------


def _wrong_ends(rule: Hook) -> Hook:
    def wrong(bits: int, signed: bool, narrow: bool) -> Any:
        return rule(*ends(bits, signed, narrow), (bits, signed, narrow))

    return wrong


def _unchecked_ends(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    codes = 2 ** max(bits, 0)
    return (narrow - codes // 2, codes // 2 - 1) if signed and bits else (0, codes - 1 - narrow)


# fmt: off
# An f is a format: bits, signed, narrow.
_f = of(integer_format, check_codes, quantize, requantize_shift, requantize_multiplier)
_f("narrow_ignored", "format", "keeps the code that narrow drops",
   ends=_wrong_ends(lambda lo, hi, f: ends(f[0], f[1], False)))
_f("narrow_drops_lowest", "format", "drops the lowest unsigned code instead of the highest",
   ends=_wrong_ends(lambda lo, hi, f: (lo + 1, hi + 1) if f[1:] == (False, True) else (lo, hi)))
_f("narrow_drops_highest", "format", "drops the highest signed code instead of the lowest",
   ends=_wrong_ends(lambda lo, hi, f: (lo - 1, hi - 1) if f[1:] == (True, True) else (lo, hi)))
_f("always_symmetric", "format", "drops the lowest signed code always",
   ends=_wrong_ends(lambda lo, hi, f: (-hi if f[1] else lo, hi)))
_f("signed_as_unsigned", "format", "uses the unsigned range for signed codes",
   ends=_wrong_ends(lambda lo, hi, f: ends(f[0], False, f[2])))
_f("one_code_more", "format", "takes 2^b instead of 2^b - 1",
   ends=_wrong_ends(lambda lo, hi, f: (lo, hi + 1)))
of(integer_format)("any_width", "refusal", "accepts 0 and 33 bits", ends=_unchecked_ends)
_c = of(check_codes)
_c("clamps", "refusal", "clamps codes outside the format", outside=clamp)
_c("wraps", "refusal", "wraps codes outside the format",
   outside=lambda q, lo, hi: (q - lo) % (hi - lo + 1) + lo)
_c("passes", "refusal", "lets codes outside the format pass", outside=lambda q, lo, hi: q)
# fmt: on


# --- quantize, binarize, dequantize -----------------------------------------------------------


def _first_entry(values: Array, index: Index, axis: int | None, shape: Any) -> Any:
    return channel_value(np.asarray(values).reshape(-1)[:1], index, axis, shape)


def _last_axis(values: Array, index: Index, axis: int | None, shape: Any) -> Any:
    size = np.asarray(values).size
    place = index[-1] % size if index else 0
    return channel_value(values, (place,), 0 if size > 1 else None, (size,))


# fmt: off
_q = of(quantize)
_q("reciprocal", "float_precision", "multiplies by 1 / scale",
   divide=lambda v, s, dtype: dtype(v * dtype(dtype(1) / s)))
_q("divides_in_float64", "float_precision", "divides in float64 whatever is asked",
   convert=lambda v, dtype: np.float64(dtype(v)),
   divide=lambda v, s, dtype: np.float64(v) / np.float64(s))
_q("divides_in_float32", "float_precision", "divides in float32 whatever is asked",
   divide=lambda v, s, dtype: np.float32(np.float32(v) / np.float32(s)))
_q("x_in_float16", "float_precision", "takes x through float16",
   convert=lambda v, dtype: dtype(np.float16(v)))
_q("x_not_narrowed", "float_precision", "keeps a float64 x when float32 is asked for",
   convert=lambda v, dtype: np.float64(v), divide=lambda v, s, dtype: dtype(v / np.float64(s)))
_q("subnormals_flushed", "float_precision", "treats subnormal x as 0",
   convert=lambda v, dtype: dtype(0) if abs(dtype(v)) < np.finfo(dtype).tiny else dtype(v))
_q("plus_half_in_float", "float_precision", "adds 0.5 in float and takes the floor",
   round_=_plus_half)
_q("truncates", "rounding_tie", "casts to an integer instead of rounding",
   round_=always("toward_zero"))
_q("zero_point_before_rounding", "rounding_order", "adds the zero point before it rounds",
   first=lambda _: True)
_q("zero_point_after_rounding", "rounding_order", "ignores zero_point_first", first=lambda _: False)
_q("zero_point_subtracted", "zero_point", "subtracts the zero point",
   last=lambda q, z, lo, hi: clamp(q - z, lo, hi))
_q("wraps", "saturation", "keeps the low bits instead of saturating",
   last=lambda q, z, lo, hi: (q + z - lo) % (hi - lo + 1) + lo)
_q("first_zero_point", "zero_point", "uses the first channel's zero point", zero_at=_first_entry)
for _bits in (32, 16, 8):
    _q(f"int{_bits}_before_clip", "saturation", f"casts to {_bits} bits before it clips",
       integer=wrap(_bits))
_q("infinity_is_zero", "saturation", "casts an infinity to 0",
   infinite=lambda v, lo, hi: clamp(0, lo, hi))
_q("infinity_is_lowest", "saturation", "casts an infinity to the smallest integer",
   infinite=lambda v, lo, hi: lo)
_q("first_scale", "channel", "uses the first channel's scale", scale_at=_first_entry)
_q("scale_on_last_axis", "axis", "applies per-channel scales along the last axis",
   scale_at=_last_axis)
_q("negative_axis_as_positive", "axis", "takes |axis| for a negative axis",
   scale_at=lambda v, i, a, s: channel_value(v, i, a if not a or a > 0 else min(-a, len(s) - 1), s))
_q("nan_is_zero", "refusal", "quantizes NaN to 0", nan=lambda lo, hi: clamp(0, lo, hi))
_q("nan_is_lowest", "refusal", "quantizes NaN to the lowest code", nan=lambda lo, hi: lo)
_q("rounds_after_clip", "rounding_order", "clips the quotient, then rounds",
   "clipping to integers and rounding commute: every mode is nondecreasing and keeps integers",
   last=lambda q, z, lo, hi: clamp(clamp(q, lo - z, hi - z) + z, lo, hi))

_b = of(binarize)
_b("zero_is_negative", "rounding_tie", "gives -1 at zero", sign=lambda v: 1 if v > 0 else -1)
_b("sign_bit", "signedness", "reads the sign bit, so -0.0 becomes -1",
   sign=lambda v: -1 if np.signbit(v) else 1)
_b("sign_function", "rounding_tie", "gives 0 at zero", sign=lambda v: int(np.sign(v)))
_b("zero_one", "format", "gives 0 and 1", sign=lambda v: int(v >= 0))
_b("rounded_first", "rounding_order", "rounds to an integer, then takes the sign",
   sign=lambda v: 1 if np.rint(v) >= 0 else -1)
_b("nan_is_positive", "refusal", "gives +1 for NaN", nan=1)
_b("nan_is_negative", "refusal", "gives -1 for NaN", nan=-1)

_d = of(dequantize)
_d("zero_point_dropped", "zero_point", "subtracts no zero point", zero_=lambda z: 0)
_d("zero_point_added", "zero_point", "adds the zero point", zero_=lambda z: -z)
_d("first_zero_point", "zero_point", "uses the first channel's zero point", zero_at=_first_entry)
_d("first_scale", "channel", "uses the first channel's scale", scale_at=_first_entry)
_d("scale_on_last_axis", "axis", "applies per-channel scales along the last axis",
   scale_at=_last_axis)
_d("scaled_zero_point", "float_precision", "computes code * scale - zero_point * scale",
   value=lambda q, z, s, t: t(t(t(q) * t(s)) - t(t(z) * t(s))))
_d("difference_in_float", "float_precision", "subtracts the zero point in floats",
   value=lambda q, z, s, t: t(t(t(q) - t(z)) * t(s)))
_d("always_float64", "float_precision", "multiplies in float64 whatever is asked",
   value=lambda q, z, s, t: float(q - z) * float(s))
_d("always_float32", "float_precision", "multiplies in float32 whatever is asked",
   value=lambda q, z, s, t: np.float32(np.float32(q - z) * np.float32(s)))
for _bits in (32, 16, 8):
    _d(f"difference_in_int{_bits}", "overflow_narrow", f"subtracts in {_bits} bits",
       value=lambda q, z, s, t, n=_bits: t(t(wrap(n)(q - z)) * t(s)))
_d("codes_as_unsigned", "signedness", "reads signed codes as unsigned",
   code_=lambda q, bits: q % 2**bits)
_d("unchecked", "refusal", "accepts codes outside the format", check=False)
_d("product_narrowed_last", "float_precision", "multiplies in float64, then rounds",
   "float32(code - zero_point) * float32(scale) has 48 digits at most: float64 holds it and one "
   "rounding remains; in float64 nothing changes",
   value=lambda q, z, s, t: t(float(t(q - z)) * float(t(s))))
# fmt: on


# --- requantize -------------------------------------------------------------------------------


def _in(dtype: Hook) -> Hook:
    return lambda a, s, t, b: (dtype(a) * dtype(s) + dtype(b)) / dtype(t)


def _bit_by_bit(x: Fraction, mode: str) -> int:
    """Halves, rounded after each."""
    value = x.numerator
    for _ in range(x.denominator.bit_length() - 1):
        value = round_value(Fraction(value, 2), mode)
    return value


# fmt: off
_t = of(requantize_thresholds)
_t("strict", "threshold", "counts acc > T", reached=lambda a, t: a > t)
_t("q_min_forgotten", "format", "starts counting at 0", start=lambda lo, hi: 0)
_t("counts_from_above", "format", "counts down from q_max without turning the comparison",
   start=lambda lo, hi: hi, count=lambda flags: -sum(flags))
_t("first_row", "channel", "uses the first channel's thresholds", row_at=lambda rows, i: rows[0])
_t("last_axis", "axis", "takes the channel from the last axis",
   row_at=lambda rows, i: rows[i[-1] % len(rows)])
_t("sample_axis", "axis", "takes the channel from the sample axis",
   row_at=lambda rows, i: rows[i[0] % len(rows)])
_t("last_threshold_dropped", "threshold", "never gives the highest code",
   count=lambda flags: sum(flags[:-1]))
_t("first_threshold_dropped", "threshold", "skips the first threshold",
   count=lambda flags: sum(flags[1:]))
_t("one_step", "threshold", "stops after the first threshold", count=lambda flags: int(flags[0]))
_t("duplicates_once", "threshold", "counts equal thresholds once",
   row_at=lambda rows, i: sorted(set(rows[i[1] if len(rows) > 1 else 0])))
for _bits in (32, 16, 8):
    _t(f"thresholds_int{_bits}", "overflow_narrow", f"stores thresholds in {_bits} bits",
       threshold_=wrap(_bits))
for _bits in (32, 16):
    _t(f"acc_int{_bits}", "overflow_narrow", f"takes the accumulator in {_bits} bits",
       acc_=wrap(_bits))
_t("compares_float32", "float_accumulator", "compares in float32",
   reached=lambda a, t: np.float32(a) >= np.float32(t))
_t("compares_float64", "float_accumulator", "compares in float64",
   reached=lambda a, t: float(a) >= float(t))
_t("compares_unsigned", "signedness", "compares as unsigned 64-bit integers",
   reached=lambda a, t: a % 2**64 >= t % 2**64)
_t("unsorted_accepted", "refusal", "accepts decreasing thresholds", check=False)
_t("stops_early", "threshold", "stops at the first threshold that is not reached",
   "thresholds are nondecreasing, so none after the first unreached one is reached",
   count=lambda flags: next((i for i, f in enumerate(flags) if not f), len(flags)))

_s = of(requantize_scale)
_s("float32_affine", "float_precision", "computes the affine map in float32", real=_in(np.float32))
_s("float64_affine", "float_precision", "computes the affine map in float64", real=_in(np.float64))
_s("float32_gain", "float_precision", "rounds scale_in / scale_out to float32",
   real=lambda a, s, t, b: a * Fraction(float(np.float32(s / t))) + b / t)
_s("float64_gain", "float_precision", "rounds scale_in / scale_out to float64",
   real=lambda a, s, t, b: a * Fraction(float(s / t)) + b / t)
_s("gain_inverted", "operand", "multiplies by scale_out and divides by scale_in",
   real=lambda a, s, t, b: (a * t + b) / s)
_s("bias_dropped", "bias", "adds no bias", real=lambda a, s, t, b: a * s / t)
_s("bias_in_output_units", "bias", "adds the bias without dividing it by scale_out",
   real=lambda a, s, t, b: a * s / t + b)
_s("bias_in_accumulator_units", "bias", "adds the bias to the accumulator",
   real=lambda a, s, t, b: (a + b) * s / t)
_s("bias_rounded", "bias", "rounds the bias to accumulator units first",
   real=lambda a, s, t, b: (a + round(b / s)) * s / t)
_s("bias_after_rounding", "rounding_order", "rounds, then adds the rounded bias",
   real=lambda a, s, t, b: a * s / t, finish=lambda q, b: q + round(b))
_s("zero_point_before_rounding", "rounding_order", "adds the zero point, then rounds",
   before=lambda x, z: x + z, last=lambda q, z, lo, hi: clamp(q, lo, hi))
_s("clip_ignored", "saturation", "ignores the activation's clip", limits=lambda clip, ends: ends)
_s("relu_at_zero", "zero_point", "clips at 0 where the clip starts at the zero point",
   limits=lambda clip, ends: ends if clip is None else (min(0, clip[1]), clip[1]))
_s("clip_before_zero_point", "rounding_order", "clips before it adds the zero point",
   last=lambda q, z, lo, hi: clamp(q, lo - z, hi - z))

_h = of(requantize_shift)
_h("bare_shift", "rounding_tie", "shifts without adding half, whatever the mode",
   round_=always("floor"))
_h("c_division", "rounding_tie", "adds half, then divides as C does, toward zero",
   half_up=lambda a, s: round_value(Fraction(a + (1 << s >> 1), 2**s), "toward_zero"))
_h("half_at_shift_zero", "rounding_tie", "adds 1 where shift is 0, as 1 << (shift - 1) may",
   half_up=lambda a, s: (a + (1 << max(s - 1, 0))) >> s)
_h("half_minus_one", "rounding_tie", "adds 2^(shift - 1) - 1",
   half_up=lambda a, s: (a + max((1 << s >> 1) - 1, 0)) >> s)
for _bits in (32, 16):
    _h(f"half_wraps_int{_bits}", "overflow_narrow", f"adds half in {_bits} bits",
       half_up=lambda a, s, n=_bits: wrap(n)(a + (1 << s >> 1)) >> s)
_h("logical_shift", "signedness", "shifts zeros in from the left, 32 bits",
   half_up=lambda a, s: (a + (1 << s >> 1)) % 2**32 >> s)
_h("shift_masked_31", "overflow_narrow", "shifts by shift modulo 32",
   ratio=lambda a, s: Fraction(a, 2 ** (s % 32)))
_h("one_bit_short", "operand", "shifts one bit less",
   ratio=lambda a, s: Fraction(a, 2 ** max(s - 1, 0)))
_h("bits_one_by_one", "rounding_double", "drops the bits one by one, rounding each time",
   round_=_bit_by_bit)
_h("float32_shift", "float_precision", "divides in float32",
   ratio=lambda a, s: np.float32(a) / np.float32(2**s))
_h("offset_dropped", "bias", "adds no offset", add_offset=lambda a, b: a)
_h("offset_after_shift", "bias", "shifts accumulator and offset apart",
   add_offset=lambda a, b: a, finish=lambda q, b, s: q + (b >> s))
for _bits in (16, 32):
    _h(f"offset_int{_bits}", "overflow_narrow", f"adds the offset in {_bits} bits",
       add_offset=lambda a, b, n=_bits: wrap(n)(a + b))
_h("zero_point_before_shift", "rounding_order", "adds the zero point to the accumulator",
   zero_=lambda z, s: z >> s)

_m = of(requantize_multiplier)
for _bits in (32, 64):
    _m(f"product_int{_bits}", "overflow_narrow", f"multiplies in {_bits} bits",
       multiply=lambda a, m, n=_bits: wrap(n)(a * m))
_m("acc_int32", "overflow_narrow", "takes the accumulator in 32 bits",
   multiply=lambda a, m: wrap(32)(a) * m)
_m("mantissa_int32", "signedness", "reads the mantissa as a signed 32-bit integer",
   multiply=lambda a, m: a * wrap(32)(m))
_m("product_float64", "float_precision", "multiplies in float64",
   multiply=lambda a, m: Fraction(float(a) * float(m)))
_m("product_float32", "float_precision", "multiplies in float32",
   multiply=lambda a, m: Fraction(float(np.float32(a) * np.float32(m))))
_m("always_single", "rounding_double", "rounds once where double rounding is asked for",
   first=lambda mode: None)
_m("always_double", "rounding_double", "rounds half_up at first_shift always",
   first=lambda mode: mode or "half_up")
_m("first_truncates", "rounding_double", "truncates in the first rounding",
   round_first=always("toward_zero"))
_m("first_floors", "rounding_double", "takes the floor in the first rounding",
   round_first=always("floor"))
_m("first_half_up", "rounding_tie", "rounds half_up first whatever is asked",
   round_first=always("half_up"))
_m("first_half_away", "rounding_tie", "rounds half_away first whatever is asked",
   round_first=always("half_away"))
_m("first_shift_31", "rounding_double", "takes 31 for first_shift", at=lambda f: 31)

# The last steps, which several share.
of(quantize, requantize_multiplier)(
    "clip_before_zero_point", "rounding_order", "clips, then adds the zero point",
    last=lambda q, z, lo, hi: clamp(q, lo, hi) + z)
of(quantize, requantize_scale, requantize_shift, requantize_multiplier)(
    "zero_point_dropped", "zero_point", "adds no zero point",
    last=lambda q, z, lo, hi: clamp(q, lo, hi))
of(quantize, requantize_shift, requantize_multiplier)(
    "no_upper_clip", "saturation", "saturates below only", last=lambda q, z, lo, hi: max(q + z, lo))
of(quantize, requantize_shift, requantize_multiplier)(
    "no_lower_clip", "saturation", "saturates above only", last=lambda q, z, lo, hi: min(q + z, hi))
for _bits, _kernels in (
    (8, (requantize_scale, requantize_shift, requantize_multiplier)),
    (16, (requantize_scale,)),
    (32, (requantize_scale,)),
):
    of(*_kernels)(
        f"wraps_int{_bits}", "saturation", f"keeps {_bits} bits before it saturates",
        last=lambda q, z, lo, hi, n=_bits: clamp(wrap(n)(q + z), lo, hi))
for _kernel, _what in (
    (requantize_scale, "scales"),
    (requantize_shift, "offset"),
    (requantize_multiplier, "multiplier"),
):
    of(_kernel)("first_channel", "channel", f"uses the first channel's {_what}",
                channel=lambda i: 0)
of(requantize_scale, requantize_shift, requantize_multiplier)(
    "last_axis", "axis", "takes the channel from the last axis", channel=lambda i: i[-1] % 2)
# fmt: on
