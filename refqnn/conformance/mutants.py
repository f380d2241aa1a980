"""Plausible wrong implementations, one semantic change each: what the vectors have to tell apart.

A mutant is a right kernel (`refqnn.conformance.kernels`) with one hook replaced.  Changes that no
input can reveal are kept in the list, with the argument, so that the score is honest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from refqnn.conformance.kernels import (
    KERNELS,
    channel_value,
    clamp,
    ends,
    in_float,
    nearest_row,
    round_value,
    row_budgets,
    saturate,
    sign_budgets,
    simplex_level,
    wrap,
)
from refqnn.conformance.operations import OPERATIONS
from refqnn.conformance.suite import Rejected

__all__ = ["MUTANTS", "Mutant", "mutants_of"]


@dataclass(frozen=True)
class Mutant:
    """One wrong implementation.

    Args:
        operation: what it implements.
        name: unique within the operation.
        flag: the kind of bug, a key of `NOTES`.
        description: what it does instead.
        function: called with the arguments of a vector, as any implementation.
        equivalent: why no vector can kill it; "" for those that must be killed.
    """

    operation: str
    name: str
    flag: str
    description: str
    function: Callable[..., dict[str, Any]]
    equivalent: str = ""

    @property
    def id(self) -> str:
        """operation/name."""
        return f"{self.operation}/{self.name}"


MUTANTS: list[Mutant] = []

# fmt: off  (a table: one mutant, its flag, what it does, the hook it replaces)


def _mutant(
    operation: str, name: str, flag: str, description: str, equivalent: str = "", **hooks: Any
) -> None:
    function = partial(KERNELS[operation], **hooks)
    MUTANTS.append(Mutant(operation, name, flag, description, function, equivalent))


def mutants_of(operation: str) -> Iterator[Mutant]:
    """The mutants of one operation."""
    return (mutant for mutant in MUTANTS if mutant.operation == operation)


# --- rounding ---------------------------------------------------------------------------------

_CONFUSED = (
    ("half_even", "half_up"),
    ("half_even", "half_away"),
    ("half_even", "half_toward_zero"),
    ("half_up", "half_even"),
    ("half_up", "half_away"),
    ("half_down", "half_toward_zero"),
    ("half_down", "half_even"),
    ("half_away", "half_up"),
    ("half_away", "half_even"),
    ("half_toward_zero", "half_down"),
    ("half_toward_zero", "half_even"),
    ("floor", "toward_zero"),
    ("floor", "half_up"),
    ("ceil", "half_up"),
    ("toward_zero", "floor"),
    ("toward_zero", "half_even"),
)


def _as(wrong: str, right: str) -> Callable[..., int]:
    return lambda x, mode: round_value(x, wrong if mode == right else mode)


def _as_shift(wrong: str, right: str) -> Callable[..., int]:
    return lambda a, s, mode: round_value(Fraction(a, 2**s), wrong if mode == right else mode)


for _right, _wrong in _CONFUSED:
    for _operation in ("round_ratio", "quantize", "requantize_scale", "requantize_multiplier"):
        _mutant(
            _operation,
            f"{_right}_as_{_wrong}",
            "rounding_tie",
            f"rounds {_wrong} where {_right} is asked for",
            round_=_as(_wrong, _right),
        )
    _mutant(
        "requantize_shift",
        f"{_right}_as_{_wrong}",
        "rounding_tie",
        f"rounds {_wrong} where {_right} is asked for",
        shifted=_as_shift(_wrong, _right),
    )


def _c_remainder(x: Fraction, mode: str) -> int:
    """Tie test on a truncated quotient and a remainder that keeps the sign, as in C."""
    n, d = x.numerator, x.denominator
    q = int(math.copysign(abs(n) // d, n)) if n else 0
    return q + 1 if 2 * (n - q * d) >= d else q


def _plus_half(x: Any, mode: str) -> int:
    return int(np.floor(x + type(x)(0.5))) if mode.startswith("half") else round_value(x, mode)


_mutant(
    "round_ratio",
    "float_quotient",
    "float_precision",
    "divides in float64 first",
    ratio=lambda n, d: Fraction(n / d),
)
_mutant(
    "round_ratio",
    "float32_quotient",
    "float_precision",
    "divides in float32 first",
    ratio=lambda n, d: Fraction(float(np.float32(n) / np.float32(d))),
)
_mutant(
    "round_ratio",
    "int32_numerator",
    "overflow_narrow",
    "holds the numerator in 32 bits",
    ratio=lambda n, d: Fraction(wrap(32)(n), d),
)
_mutant(
    "round_ratio",
    "double_wraps_int64",
    "overflow_narrow",
    "doubles the numerator in 64 bits to compare with a half",
    ratio=lambda n, d: Fraction(wrap(64)(2 * n), 2 * d),
)
_mutant(
    "round_ratio",
    "c_remainder",
    "rounding_tie",
    "takes half_up from a truncated quotient and a signed remainder",
    round_=lambda x, m: _c_remainder(x, m) if m == "half_up" else round_value(x, m),
)
_mutant(
    "round_ratio",
    "half_of_odd_denominator",
    "rounding_tie",
    "adds denominator // 2, rounded up, before the floor",
    round_=lambda x, m: (
        (x.numerator + (x.denominator + 1) // 2) // x.denominator
        if m == "half_up"
        else round_value(x, m)
    ),
)
_mutant(
    "round_ratio",
    "half_even_by_lower_parity",
    "rounding_tie",
    "sends half_even ties to the odd neighbour",
    round_=lambda x, m: (
        2 * int((x + Fraction(1, 2)) // 2) + 1
        if m == "half_even" and x.denominator == 2
        else round_value(x, m)
    ),
)
_mutant(
    "round_ratio",
    "sign_lost",
    "signedness",
    "rounds the magnitude and forgets the sign",
    round_=lambda x, m: abs(round_value(x, m)),
)


# --- formats ----------------------------------------------------------------------------------


def _wrong_ends(rule: str) -> Callable[[int, bool, bool], tuple[int, int]]:
    def wrong(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
        lo, hi = ends(bits, signed, narrow)
        if rule == "narrow_ignored":
            return ends(bits, signed, False)
        if rule == "narrow_drops_lowest":
            return (lo + 1, hi + 1) if narrow and not signed else (lo, hi)
        if rule == "always_symmetric":
            return (-hi, hi) if signed else (lo, hi)
        if rule == "signed_as_unsigned":
            return ends(bits, False, narrow)
        if rule == "one_code_more":
            return lo, hi + 1
        if rule == "narrow_drops_highest":
            return (lo - 1, hi - 1) if narrow and signed else (lo, hi)
        raise AssertionError(rule)

    return wrong


_RANGES = {
    "narrow_ignored": "keeps the code that narrow drops",
    "narrow_drops_lowest": "drops the lowest unsigned code instead of the highest",
    "narrow_drops_highest": "drops the highest signed code instead of the lowest",
    "always_symmetric": "drops the lowest signed code always",
    "signed_as_unsigned": "uses the unsigned range for signed codes",
    "one_code_more": "takes 2^b instead of 2^b - 1",
}
for _rule, _text in _RANGES.items():
    for _operation in (
        "integer_format",
        "check_codes",
        "quantize",
        "requantize_shift",
        "requantize_multiplier",
    ):
        _mutant(_operation, _rule, "format", _text, ends=_wrong_ends(_rule))
_mutant(
    "integer_format",
    "any_width",
    "refusal",
    "accepts 0 and 33 bits",
    ends=lambda b, s, n: (
        (-(2 ** (b - 1)) + n, 2 ** (b - 1) - 1) if s and b > 0 else (0, 2**b - 1 - n)
    ),
)
_mutant("check_codes", "clamps", "refusal", "clamps codes outside the format", outside=clamp)
_mutant(
    "check_codes",
    "wraps",
    "refusal",
    "wraps codes outside the format",
    outside=lambda q, lo, hi: (q - lo) % (hi - lo + 1) + lo,
)
_mutant(
    "check_codes",
    "passes",
    "refusal",
    "lets codes outside the format pass",
    outside=lambda q, lo, hi: q,
)


# --- quantize, binarize, dequantize -----------------------------------------------------------


def _q(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("quantize", name, flag, description, equivalent, **hooks)


def _first_entry(values: Any, index: Any, axis: Any, shape: Any) -> Any:
    return channel_value(np.asarray(values).reshape(-1)[:1], index, axis, shape)


def _last_axis(values: Any, index: Any, axis: Any, shape: Any) -> Any:
    size = np.asarray(values).size
    entry = index[-1] % size if index else 0
    return channel_value(values, (entry,), 0 if size > 1 else None, (size,))


_q(
    "reciprocal",
    "float_precision",
    "multiplies by 1 / scale",
    divide=lambda v, s, dtype: dtype(v * dtype(dtype(1) / s)),
)
_q(
    "divides_in_float64",
    "float_precision",
    "divides in float64 whatever is asked",
    convert=lambda v, dtype: np.float64(dtype(v)),
    divide=lambda v, s, dtype: np.float64(v) / np.float64(s),
)
_q(
    "divides_in_float32",
    "float_precision",
    "divides in float32 whatever is asked",
    divide=lambda v, s, dtype: np.float32(np.float32(v) / np.float32(s)),
)
_q(
    "x_in_float16",
    "float_precision",
    "takes x through float16",
    convert=lambda v, dtype: dtype(np.float16(v)),
)
_q(
    "x_not_narrowed",
    "float_precision",
    "keeps a float64 x when float32 is asked for",
    convert=lambda v, dtype: np.float64(v),
    divide=lambda v, s, dtype: dtype(v / np.float64(s)),
)
_q(
    "subnormals_flushed",
    "float_precision",
    "treats subnormal x as 0",
    convert=lambda v, dtype: dtype(0) if abs(dtype(v)) < np.finfo(dtype).tiny else dtype(v),
)
_q(
    "plus_half_in_float",
    "float_precision",
    "adds 0.5 in float and takes the floor",
    round_=_plus_half,
)
_q(
    "truncates",
    "rounding_tie",
    "casts to an integer instead of rounding",
    round_=lambda x, mode: round_value(x, "toward_zero"),
)
_q(
    "zero_point_before_rounding",
    "rounding_order",
    "adds the zero point before it rounds",
    first=lambda _: True,
)
_q("zero_point_after_rounding", "rounding_order", "ignores zero_point_first", first=lambda _: False)
_q(
    "clip_before_zero_point",
    "rounding_order",
    "clips, then adds the zero point",
    clip=lambda q, z, lo, hi: clamp(q, lo, hi) + z,
)
_q(
    "zero_point_dropped",
    "zero_point",
    "adds no zero point",
    clip=lambda q, z, lo, hi: clamp(q, lo, hi),
)
_q(
    "zero_point_subtracted",
    "zero_point",
    "subtracts the zero point",
    clip=lambda q, z, lo, hi: clamp(q - z, lo, hi),
)
_q("first_zero_point", "zero_point", "uses the first channel's zero point", zero_at=_first_entry)
_q(
    "wraps",
    "saturation",
    "keeps the low bits instead of saturating",
    clip=lambda q, z, lo, hi: (q + z - lo) % (hi - lo + 1) + lo,
)
_q("no_upper_clip", "saturation", "saturates below only", clip=lambda q, z, lo, hi: max(q + z, lo))
_q("no_lower_clip", "saturation", "saturates above only", clip=lambda q, z, lo, hi: min(q + z, hi))
_q("int32_before_clip", "saturation", "casts to 32 bits before it clips", integer=wrap(32))
_q("int16_before_clip", "saturation", "casts to 16 bits before it clips", integer=wrap(16))
_q("int8_before_clip", "saturation", "casts to 8 bits before it clips", integer=wrap(8))
_q(
    "infinity_is_zero",
    "saturation",
    "casts an infinity to 0",
    infinite=lambda v, lo, hi: clamp(0, lo, hi),
)
_q(
    "infinity_is_lowest",
    "saturation",
    "casts an infinity to the smallest integer",
    infinite=lambda v, lo, hi: lo,
)
_q("first_scale", "channel", "uses the first channel's scale", scale_at=_first_entry)
_q(
    "scale_on_last_axis",
    "axis",
    "applies per-channel scales along the last axis",
    scale_at=_last_axis,
)
_q(
    "negative_axis_as_positive",
    "axis",
    "takes |axis| for a negative axis",
    scale_at=lambda v, i, a, s: channel_value(
        v, i, a if a is None or a >= 0 else min(-a, len(s) - 1), s
    ),
)
_q("nan_is_zero", "refusal", "quantizes NaN to 0", nan=lambda lo, hi: clamp(0, lo, hi))
_q("nan_is_lowest", "refusal", "quantizes NaN to the lowest code", nan=lambda lo, hi: lo)
_q(
    "rounds_after_clip",
    "rounding_order",
    "clips the quotient, then rounds",
    "clipping to integers and rounding commute: every mode is nondecreasing and keeps integers",
    clip=lambda q, z, lo, hi: clamp(clamp(q, lo - z, hi - z) + z, lo, hi),
)


def _b(name: str, flag: str, description: str, **hooks: Any) -> None:
    _mutant("binarize", name, flag, description, **hooks)


_b("zero_is_negative", "rounding_tie", "gives -1 at zero", sign=lambda v: 1 if v > 0 else -1)
_b(
    "sign_bit",
    "signedness",
    "reads the sign bit, so -0.0 becomes -1",
    sign=lambda v: -1 if np.signbit(v) else 1,
)
_b("sign_function", "rounding_tie", "gives 0 at zero", sign=lambda v: int(np.sign(v)))
_b("zero_one", "format", "gives 0 and 1", sign=lambda v: int(v >= 0))
_b(
    "rounded_first",
    "rounding_order",
    "rounds to an integer, then takes the sign",
    sign=lambda v: (
        1 if (np.isinf(v) and v > 0) or (np.isfinite(v) and round(float(v)) >= 0) else -1
    ),
)
_b("nan_is_positive", "refusal", "gives +1 for NaN", nan=1)
_b("nan_is_negative", "refusal", "gives -1 for NaN", nan=-1)


def _d(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("dequantize", name, flag, description, equivalent, **hooks)


_d("zero_point_dropped", "zero_point", "subtracts no zero point", zero_=lambda z: 0)
_d("zero_point_added", "zero_point", "adds the zero point", zero_=lambda z: -z)
_d("first_zero_point", "zero_point", "uses the first channel's zero point", zero_at=_first_entry)
_d("first_scale", "channel", "uses the first channel's scale", scale_at=_first_entry)
_d(
    "scale_on_last_axis",
    "axis",
    "applies per-channel scales along the last axis",
    scale_at=_last_axis,
)
_d(
    "scaled_zero_point",
    "float_precision",
    "computes code * scale - zero_point * scale",
    value=lambda q, z, s, t: t(t(t(q) * t(s)) - t(t(z) * t(s))),
)
_d(
    "difference_in_float",
    "float_precision",
    "subtracts the zero point in floats",
    value=lambda q, z, s, t: t(t(t(q) - t(z)) * t(s)),
)
_d(
    "always_float64",
    "float_precision",
    "multiplies in float64 whatever is asked",
    value=lambda q, z, s, t: float(q - z) * float(s),
)
_d(
    "always_float32",
    "float_precision",
    "multiplies in float32 whatever is asked",
    value=lambda q, z, s, t: np.float32(np.float32(q - z) * np.float32(s)),
)
_d(
    "difference_in_int32",
    "overflow_narrow",
    "subtracts in 32 bits",
    value=lambda q, z, s, t: t(t(wrap(32)(q - z)) * t(s)),
)
_d(
    "difference_in_int16",
    "overflow_narrow",
    "subtracts in 16 bits",
    value=lambda q, z, s, t: t(t(wrap(16)(q - z)) * t(s)),
)
_d(
    "difference_in_int8",
    "overflow_narrow",
    "subtracts in 8 bits",
    value=lambda q, z, s, t: t(t(wrap(8)(q - z)) * t(s)),
)
_d(
    "codes_as_unsigned",
    "signedness",
    "reads signed codes as unsigned",
    code_=lambda q, bits: q % 2**bits,
)
_d("unchecked", "refusal", "accepts codes outside the format", check=False)
_d(
    "product_narrowed_last",
    "float_precision",
    "multiplies in float64, then rounds",
    "float32(code - zero_point) * float32(scale) has 48 digits at most: float64 holds it and one "
    "rounding remains; in float64 nothing changes",
    value=lambda q, z, s, t: t(float(t(q - z)) * float(t(s))),
)


# --- requantize -------------------------------------------------------------------------------


def _t(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("requantize_thresholds", name, flag, description, equivalent, **hooks)


_t("strict", "threshold", "counts acc > T", reached=lambda a, t: a > t)
_t("q_min_forgotten", "format", "starts counting at 0", start=lambda lo, hi: 0)
_t(
    "counts_from_above",
    "format",
    "counts down from q_max without turning the comparison",
    start=lambda lo, hi: hi,
    count=lambda flags: -sum(flags),
)
_t("first_row", "channel", "uses the first channel's thresholds", row_at=lambda rows, i: rows[0])
_t(
    "last_axis",
    "axis",
    "takes the channel from the last axis",
    row_at=lambda rows, i: rows[i[-1] % len(rows)],
)
_t(
    "sample_axis",
    "axis",
    "takes the channel from the sample axis",
    row_at=lambda rows, i: rows[i[0] % len(rows)],
)
_t(
    "last_threshold_dropped",
    "threshold",
    "never gives the highest code",
    count=lambda flags: sum(flags[:-1]),
)
_t(
    "first_threshold_dropped",
    "threshold",
    "skips the first threshold",
    count=lambda flags: sum(flags[1:]),
)
_t("one_step", "threshold", "stops after the first threshold", count=lambda flags: int(flags[0]))
_t(
    "duplicates_once",
    "threshold",
    "counts equal thresholds once",
    row_at=lambda rows, i: sorted(set(rows[i[1] if len(rows) > 1 else 0])),
)
_t("thresholds_int32", "overflow_narrow", "stores thresholds in 32 bits", threshold_=wrap(32))
_t("thresholds_int16", "overflow_narrow", "stores thresholds in 16 bits", threshold_=wrap(16))
_t("thresholds_int8", "overflow_narrow", "stores thresholds in 8 bits", threshold_=wrap(8))
_t("acc_int32", "overflow_narrow", "takes the accumulator in 32 bits", acc_=wrap(32))
_t("acc_int16", "overflow_narrow", "takes the accumulator in 16 bits", acc_=wrap(16))
_t(
    "compares_float32",
    "float_accumulator",
    "compares in float32",
    reached=lambda a, t: np.float32(a) >= np.float32(t),
)
_t(
    "compares_float64",
    "float_accumulator",
    "compares in float64",
    reached=lambda a, t: float(a) >= float(t),
)
_t(
    "compares_unsigned",
    "signedness",
    "compares as unsigned 64-bit integers",
    reached=lambda a, t: a % 2**64 >= t % 2**64,
)
_t("unsorted_accepted", "refusal", "accepts decreasing thresholds", check=False)
_t(
    "stops_early",
    "threshold",
    "stops at the first threshold that is not reached",
    "thresholds are nondecreasing, so none after the first unreached one is reached",
    count=lambda flags: next((i for i, f in enumerate(flags) if not f), len(flags)),
)


def _s(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("requantize_scale", name, flag, description, equivalent, **hooks)


def _float_scale(dtype: Any) -> Callable[..., Any]:
    return lambda a, s_in, s_out, b: (dtype(a) * dtype(s_in) + dtype(b)) / dtype(s_out)


_s(
    "float32_affine",
    "float_precision",
    "computes the affine map in float32",
    real=_float_scale(np.float32),
)
_s(
    "float64_affine",
    "float_precision",
    "computes the affine map in float64",
    real=_float_scale(np.float64),
)
_s(
    "float32_gain",
    "float_precision",
    "rounds scale_in / scale_out to float32",
    real=lambda a, s, t, b: a * Fraction(float(np.float32(s / t))) + Fraction(b) / Fraction(t),
)
_s(
    "float64_gain",
    "float_precision",
    "rounds scale_in / scale_out to float64",
    real=lambda a, s, t, b: a * Fraction(s / t) + Fraction(b) / Fraction(t),
)
_s(
    "gain_inverted",
    "operand",
    "multiplies by scale_out and divides by scale_in",
    real=lambda a, s, t, b: (a * Fraction(t) + Fraction(b)) / Fraction(s),
)
_s("bias_dropped", "bias", "adds no bias", real=lambda a, s, t, b: a * Fraction(s) / Fraction(t))
_s(
    "bias_in_output_units",
    "bias",
    "adds the bias without dividing it by scale_out",
    real=lambda a, s, t, b: a * Fraction(s) / Fraction(t) + Fraction(b),
)
_s(
    "bias_in_accumulator_units",
    "bias",
    "adds the bias to the accumulator",
    real=lambda a, s, t, b: (a + Fraction(b)) * Fraction(s) / Fraction(t),
)
_s(
    "bias_rounded",
    "bias",
    "rounds the bias to accumulator units first",
    real=lambda a, s, t, b: (a + round(Fraction(b) / Fraction(s))) * Fraction(s) / Fraction(t),
)
_s(
    "bias_after_rounding",
    "rounding_order",
    "rounds, then adds the rounded bias",
    real=lambda a, s, t, b: a * Fraction(s) / Fraction(t),
    finish=lambda q, z, b: q + z + round(b),
)
_s(
    "zero_point_before_rounding",
    "rounding_order",
    "adds the zero point, then rounds",
    before=lambda x, z: x + z,
    finish=lambda q, z, b: q,
)
_s("zero_point_dropped", "zero_point", "adds no zero point", finish=lambda q, z, b: q)
_s("clip_ignored", "saturation", "ignores the activation's clip", limits=lambda clip, ends, z: ends)
_s(
    "relu_at_zero",
    "zero_point",
    "clips at 0 where the clip starts at the zero point",
    limits=lambda clip, ends, z: ends if clip is None else (min(0, clip[1]), clip[1]),
)
_s(
    "clip_before_zero_point",
    "rounding_order",
    "clips before it adds the zero point",
    finish=lambda q, z, b: q,
    last=lambda q, lo, hi: clamp(q, lo, hi) + 0,
    limits=lambda clip, ends, z: tuple(v - z for v in (clip or ends)),
)
_s(
    "wraps_int8",
    "saturation",
    "keeps 8 bits before it saturates",
    finish=lambda q, z, b: wrap(8)(q + z),
)
_s(
    "wraps_int16",
    "saturation",
    "keeps 16 bits before it saturates",
    finish=lambda q, z, b: wrap(16)(q + z),
)
_s(
    "wraps_int32",
    "saturation",
    "keeps 32 bits before it saturates",
    finish=lambda q, z, b: wrap(32)(q + z),
)
_s("last_axis", "axis", "takes the channel from the last axis", channel=lambda i: i[-1] % 2)
_s("first_channel", "channel", "uses the first channel's scales", channel=lambda i: 0)


def _h(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("requantize_shift", name, flag, description, equivalent, **hooks)


def _half_then_shift(acc: int, half: int, s: int, mode: str) -> int:
    return (acc + half) >> s if mode == "half_up" else round_value(Fraction(acc, 2**s), mode)


_h(
    "bare_shift",
    "rounding_tie",
    "shifts without adding half, whatever the mode",
    shifted=lambda a, s, mode: a >> s,
)
_h(
    "c_division",
    "rounding_tie",
    "adds half, then divides as C does, toward zero",
    shifted=lambda a, s, m: (
        round_value(Fraction(a + (1 << s >> 1), 2**s), "toward_zero")
        if m == "half_up"
        else round_value(Fraction(a, 2**s), m)
    ),
)
_h(
    "half_at_shift_zero",
    "rounding_tie",
    "adds 1 where shift is 0, as 1 << (shift - 1) may",
    shifted=lambda a, s, m: _half_then_shift(a, 1 if s == 0 else 1 << (s - 1), s, m),
)
_h(
    "half_minus_one",
    "rounding_tie",
    "adds 2^(shift - 1) - 1",
    shifted=lambda a, s, m: _half_then_shift(a, max((1 << s >> 1) - 1, 0), s, m),
)
_h(
    "half_wraps_int32",
    "overflow_narrow",
    "adds half in 32 bits",
    shifted=lambda a, s, m: (
        wrap(32)(a + (1 << s >> 1)) >> s if m == "half_up" else round_value(Fraction(a, 2**s), m)
    ),
)
_h(
    "half_wraps_int16",
    "overflow_narrow",
    "adds half in 16 bits",
    shifted=lambda a, s, m: (
        wrap(16)(a + (1 << s >> 1)) >> s if m == "half_up" else round_value(Fraction(a, 2**s), m)
    ),
)
_h(
    "logical_shift",
    "signedness",
    "shifts zeros in from the left, 32 bits",
    shifted=lambda a, s, m: (
        ((a + (1 << s >> 1)) % 2**32) >> s if m == "half_up" else round_value(Fraction(a, 2**s), m)
    ),
)
_h(
    "shift_masked_31",
    "overflow_narrow",
    "shifts by shift modulo 32",
    shifted=lambda a, s, m: round_value(Fraction(a, 2 ** (s % 32)), m),
)
_h(
    "one_bit_short",
    "operand",
    "shifts one bit less",
    shifted=lambda a, s, m: round_value(Fraction(a, 2 ** max(s - 1, 0)), m),
)
_h(
    "bits_one_by_one",
    "rounding_double",
    "drops the bits one by one, rounding each time",
    shifted=lambda a, s, m: _bit_by_bit(a, s, m),
)
_h(
    "float32_shift",
    "float_precision",
    "divides in float32",
    shifted=lambda a, s, m: round_value(np.float32(a) / np.float32(2**s), m),
)
_h("offset_dropped", "bias", "adds no offset", add_offset=lambda a, b, s: a)
_h(
    "offset_after_shift",
    "bias",
    "shifts accumulator and offset apart",
    add_offset=lambda a, b, s: a,
    finish=lambda q, z, b, s: q + z + (b >> s),
)
_h(
    "offset_int16",
    "overflow_narrow",
    "adds the offset in 16 bits",
    add_offset=lambda a, b, s: wrap(16)(a + b),
)
_h(
    "offset_int32",
    "overflow_narrow",
    "adds the offset in 32 bits",
    add_offset=lambda a, b, s: wrap(32)(a + b),
)
_h("zero_point_dropped", "zero_point", "adds no zero point", finish=lambda q, z, b, s: q)
_h(
    "zero_point_before_shift",
    "rounding_order",
    "adds the zero point to the accumulator",
    add_offset=lambda a, b, s: a + b,
    finish=lambda q, z, b, s: q + (z >> s),
)
_h(
    "wraps_int8",
    "saturation",
    "keeps 8 bits before it saturates",
    finish=lambda q, z, b, s: wrap(8)(q + z),
)
_h("no_lower_clip", "saturation", "saturates above only", last=lambda q, lo, hi: min(q, hi))
_h("no_upper_clip", "saturation", "saturates below only", last=lambda q, lo, hi: max(q, lo))
_h("first_channel", "channel", "uses the first channel's offset", channel=lambda i: 0)
_h("last_axis", "axis", "takes the channel from the last axis", channel=lambda i: i[-1] % 2)


def _bit_by_bit(acc: int, shift: int, mode: str) -> int:
    for _ in range(shift):
        acc = round_value(Fraction(acc, 2), mode)
    return acc


def _m(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("requantize_multiplier", name, flag, description, equivalent, **hooks)


_m(
    "product_int32",
    "overflow_narrow",
    "multiplies in 32 bits",
    multiply=lambda a, m: wrap(32)(a * m),
)
_m(
    "product_int64",
    "overflow_narrow",
    "multiplies in 64 bits",
    multiply=lambda a, m: wrap(64)(a * m),
)
_m(
    "acc_int32",
    "overflow_narrow",
    "takes the accumulator in 32 bits",
    multiply=lambda a, m: wrap(32)(a) * m,
)
_m(
    "mantissa_int32",
    "signedness",
    "reads the mantissa as a signed 32-bit integer",
    multiply=lambda a, m: a * wrap(32)(m),
)
_m(
    "product_float64",
    "float_precision",
    "multiplies in float64",
    multiply=lambda a, m: Fraction(float(a) * float(m)),
)
_m(
    "product_float32",
    "float_precision",
    "multiplies in float32",
    multiply=lambda a, m: Fraction(float(np.float32(a) * np.float32(m))),
)
_m(
    "always_single",
    "rounding_double",
    "rounds once where double rounding is asked for",
    first=lambda mode: None,
)
_m(
    "always_double",
    "rounding_double",
    "rounds half_up at first_shift always",
    first=lambda mode: mode or "half_up",
)
_m(
    "first_truncates",
    "rounding_double",
    "truncates in the first rounding",
    round_first=lambda x, mode: round_value(x, "toward_zero"),
)
_m(
    "first_floors",
    "rounding_double",
    "takes the floor in the first rounding",
    round_first=lambda x, mode: round_value(x, "floor"),
)
_m(
    "first_half_up",
    "rounding_tie",
    "rounds half_up first whatever is asked",
    round_first=lambda x, mode: round_value(x, "half_up"),
)
_m(
    "first_half_away",
    "rounding_tie",
    "rounds half_away first whatever is asked",
    round_first=lambda x, mode: round_value(x, "half_away"),
)
_m("first_shift_31", "rounding_double", "takes 31 for first_shift", at=lambda f: 31)
_m(
    "zero_point_dropped",
    "zero_point",
    "adds no zero point",
    last=lambda q, z, lo, hi: clamp(q, lo, hi),
)
_m(
    "clip_before_zero_point",
    "rounding_order",
    "clips, then adds the zero point",
    last=lambda q, z, lo, hi: clamp(q, lo, hi) + z,
)
_m(
    "wraps_int8",
    "saturation",
    "keeps 8 bits before it saturates",
    last=lambda q, z, lo, hi: clamp(wrap(8)(q + z), lo, hi),
)
_m("no_lower_clip", "saturation", "saturates above only", last=lambda q, z, lo, hi: min(q + z, hi))
_m("no_upper_clip", "saturation", "saturates below only", last=lambda q, z, lo, hi: max(q + z, lo))
_m("first_channel", "channel", "uses the first channel's multiplier", channel=lambda i: 0)
_m("last_axis", "axis", "takes the channel from the last axis", channel=lambda i: i[-1] % 2)


# --- sums -------------------------------------------------------------------------------------

_REGISTERS = {
    "acc_int8": ("overflow_narrow", "sums in 8 bits that wrap", wrap(8)),
    "acc_int16": ("overflow_narrow", "sums in 16 bits that wrap", wrap(16)),
    "acc_int24": ("overflow_narrow", "sums in 24 bits that wrap", wrap(24)),
    "acc_int32": ("overflow_narrow", "sums in 32 bits that wrap", wrap(32)),
    "acc_uint8": ("signedness", "sums in 8 unsigned bits", wrap(8, signed=False)),
    "acc_uint32": ("signedness", "sums in 32 unsigned bits", wrap(32, signed=False)),
    "acc_saturates_8": ("overflow_narrow", "sums in 8 bits that saturate", saturate(8)),
    "acc_saturates_16": ("overflow_narrow", "sums in 16 bits that saturate", saturate(16)),
    "acc_saturates_32": ("overflow_narrow", "sums in 32 bits that saturate", saturate(32)),
    "acc_float16": ("float_accumulator", "sums in float16", None),
    "acc_float32": ("float_accumulator", "sums in float32", in_float(np.float32)),
    "acc_float64": ("float_accumulator", "sums in float64", in_float(np.float64)),
}
for _operation in ("linear", "conv1d", "conv2d", "sum_pool2d", "global_sum_pool", "add"):
    for _name, (_flag, _text, _fit) in _REGISTERS.items():
        if _fit is not None:
            _mutant(_operation, _name, _flag, _text, fit=_fit)


def _l(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("linear", name, flag, description, equivalent, **hooks)


_l("bias_dropped", "bias", "adds no bias", bias_at=lambda b, k: 0)
_l("bias_of_first", "bias", "adds the first bias everywhere", bias_at=lambda b, k: b[0])
_l("bias_int16", "bias", "stores the bias in 16 bits", bias_at=lambda b, k: wrap(16)(int(b[k])))
_l("bias_int8", "bias", "stores the bias in 8 bits", bias_at=lambda b, k: wrap(8)(int(b[k])))
_l("bias_subtracted", "bias", "subtracts the bias", bias_at=lambda b, k: -b[k])
_l(
    "weight_transposed",
    "axis",
    "reads the weight as [in, out]",
    weights=lambda w: w.T if w.shape[0] == w.shape[1] else w,
)
_l(
    "weight_reshaped",
    "layout",
    "reads the weight column by column",
    weights=lambda w: w.reshape(w.shape, order="C").ravel(order="F").reshape(w.shape),
)
_l("inputs_reversed", "operand", "runs through the weights backwards", weights=lambda w: w[:, ::-1])
_l(
    "tail_of_two",
    "operand",
    "drops the last input of an odd number",
    inputs=lambda n: range(n - n % 2 or n),
)
_l(
    "tail_of_four",
    "operand",
    "handles inputs by four and drops the rest",
    inputs=lambda n: range(n - n % 4 or n),
)
_l("last_dropped", "operand", "stops one input early", inputs=lambda n: range(max(n - 1, 1)))
_l("x_as_int8", "signedness", "reads inputs as signed 8-bit", read_x=wrap(8))
_l("x_as_uint8", "signedness", "reads inputs as unsigned 8-bit", read_x=wrap(8, signed=False))
_l("w_as_int8", "signedness", "reads weights as signed 8-bit", read_w=wrap(8))
_l("w_as_uint8", "signedness", "reads weights as unsigned 8-bit", read_w=wrap(8, signed=False))
_l(
    "product_int8",
    "overflow_narrow",
    "multiplies in 8 bits",
    product_=lambda w, v, z_w, z_x: wrap(8)((w - z_w) * (v - z_x)),
)
_l(
    "product_int16",
    "overflow_narrow",
    "multiplies in 16 bits",
    product_=lambda w, v, z_w, z_x: wrap(16)((w - z_w) * (v - z_x)),
)
_l(
    "product_int32",
    "overflow_narrow",
    "multiplies in 32 bits",
    product_=lambda w, v, z_w, z_x: wrap(32)((w - z_w) * (v - z_x)),
)
_l(
    "centred_int8",
    "overflow_narrow",
    "subtracts zero points in 8 bits",
    product_=lambda w, v, z_w, z_x: wrap(8)(w - z_w) * wrap(8)(v - z_x),
)
_l(
    "x_zero_point_dropped",
    "zero_point",
    "subtracts no input zero point",
    product_=lambda w, v, z_w, z_x: (w - z_w) * v,
)
_l(
    "x_zero_point_added",
    "zero_point",
    "adds the input zero point",
    product_=lambda w, v, z_w, z_x: (w - z_w) * (v + z_x),
)
_l(
    "w_zero_point_dropped",
    "zero_point",
    "subtracts no weight zero point",
    product_=lambda w, v, z_w, z_x: w * (v - z_x),
)
_l(
    "cross_term_dropped",
    "zero_point",
    "forgets the product of the two zero points",
    product_=lambda w, v, z_w, z_x: w * v - w * z_x - z_w * v,
)
_l(
    "first_w_zero_point",
    "zero_point",
    "uses the first channel's weight zero point",
    zero_at=lambda z, k: channel_value(z, (0,), 0, (1,)),
)
_l(
    "zero_points_swapped",
    "zero_point",
    "exchanges the two zero points",
    product_=lambda w, v, z_w, z_x: (w - z_x) * (v - z_w),
)


def _a(name: str, flag: str, description: str, equivalent: str = "", **hooks: Any) -> None:
    _mutant("accumulate", name, flag, description, equivalent, **hooks)


_a(
    "saturate_as_wrap",
    "overflow_rule",
    "wraps where saturation is asked for",
    overflow_=lambda rule: "wrap",
)
_a(
    "wrap_as_saturate",
    "overflow_rule",
    "saturates where wrapping is asked for",
    overflow_=lambda rule: "saturate",
)
_a("end_only", "overflow_rule", "fits the final sum alone", when_=lambda when, overflow: "end")
_a("every_step", "overflow_rule", "fits every partial sum", when_=lambda when, overflow: "step")
_a("bias_last", "overflow_rule", "adds the bias last always", order_=lambda order: "forward")
_a("bias_first", "overflow_rule", "adds the bias first always", order_=lambda order: "bias_first")
_a("reversed", "overflow_rule", "runs backwards always", order_=lambda order: "reverse")
_a("bias_outside", "overflow_rule", "adds the bias to the fitted sum", with_bias=lambda b: [])
_a(
    "terms_fitted",
    "overflow_rule",
    "fits every product before it is added",
    term_=lambda term, fit: fit(term),
)
_a("one_bit_more", "overflow_narrow", "takes one bit more", bits_=lambda b: b + 1)
_a("one_bit_less", "overflow_narrow", "takes one bit less", bits_=lambda b: max(b - 1, 1))
_a("always_signed", "signedness", "takes unsigned accumulators for signed", signed_=lambda s: True)
_a(
    "always_unsigned",
    "signedness",
    "takes signed accumulators for unsigned",
    signed_=lambda s: False,
)
_a(
    "symmetric",
    "overflow_rule",
    "saturates at -(2^(b-1) - 1)",
    fit_=lambda fit: lambda v: fit(v) + (fit(v) < 0 and fit(fit(v) - 1) == fit(v)),
)
_a("exact", "overflow_rule", "does not overflow at all", fit_=lambda fit: lambda v: v)
_a(
    "wraps_at_end",
    "overflow_rule",
    "wraps once at the end instead of at every step",
    "wrapping is reduction modulo 2^b, which commutes with addition",
    when_=lambda when, overflow: "end" if overflow == "wrap" else when,
)

_SWAP = {
    "strides_swapped": ("window", "exchanges the strides", {"strides": lambda s: s[::-1]}),
    "paddings_swapped": (
        "padding",
        "exchanges vertical and horizontal padding",
        {"paddings": lambda p: p[::-1]},
    ),
    "dilations_swapped": ("window", "exchanges the dilations", {"dilations": lambda d: d[::-1]}),
    "kernel_transposed": (
        "axis",
        "exchanges height and width of the kernel",
        {"weights": lambda w: w.transpose(0, 1, 3, 2)},
    ),
    "flipped_vertically": (
        "axis",
        "flips the kernel upside down",
        {"weights": lambda w: w[:, :, ::-1]},
    ),
    "image_transposed": (
        "axis",
        "exchanges height and width of x and of y",
        {"images": lambda x: x.transpose(0, 1, 3, 2)},
    ),
}
for _name, (_flag, _text, _hooks) in _SWAP.items():
    _mutant("conv2d", _name, _flag, _text, **_hooks)  # type: ignore[arg-type]

for _operation in ("conv1d", "conv2d"):
    _v = partial(_mutant, _operation)
    _v(
        "kernel_flipped",
        "axis",
        "convolves as mathematics does: flips the kernel",
        weights=lambda w: w[:, :, ::-1, ::-1],
    )
    _v("stride_ignored", "window", "moves by 1", strides=lambda s: (1,) * len(s))
    _v(
        "dilation_ignored",
        "window",
        "takes neighbouring positions",
        dilations=lambda d: (1,) * len(d),
    )
    _v("padding_ignored", "padding", "pads nothing", paddings=lambda p: ((0, 0),) * len(p))
    _v(
        "pads_reversed",
        "padding",
        "pads before instead of after and the other way round",
        paddings=lambda p: tuple(pair[::-1] for pair in p),
    )
    _v(
        "pads_alike",
        "padding",
        "pads both sides as the first",
        paddings=lambda p: tuple((a, a) for a, _ in p),
    )
    _v("pad_code_ignored", "padding", "pads with 0 instead of the zero point", pad_=lambda v: 0)
    _v(
        "positions_rounded_up",
        "window",
        "counts a last, partial window",
        positions_=lambda room, s: -(-room // s) + 1,
    )
    _v(
        "groups_interleaved",
        "channel",
        "takes every g-th input channel for a group",
        channel=lambda k, c, n, outs, groups: c * groups + k // outs,
    )
    _v(
        "outputs_interleaved",
        "channel",
        "deals output channels to groups in turn",
        channel=lambda k, c, n, outs, groups: k % groups * n + c,
    )
    _v(
        "groups_ignored",
        "channel",
        "reads the first group always",
        channel=lambda k, c, n, outs, groups: c,
    )
    _v(
        "channels_reversed",
        "channel",
        "reads input channels backwards",
        weights=lambda w: w[:, ::-1],
    )
    _v(
        "first_channel_only",
        "channel",
        "reads the first channel of a group alone",
        channels=lambda n: range(1),
    )
    _v("bias_dropped", "bias", "adds no bias", bias_at=lambda b, k: 0)
    _v("bias_of_first", "bias", "adds the first bias everywhere", bias_at=lambda b, k: b[0])
    _v("first_sample", "operand", "computes the first sample for all", sample=lambda n: 0)
    _v(
        "in_out_swapped",
        "axis",
        "reads the weight as [in, out, ...]",
        weights=lambda w: w.swapaxes(0, 1) if w.shape[0] == w.shape[1] else w,
    )
    _v(
        "channels_last",
        "layout",
        "reads x as if channels came last",
        images=lambda x: np.moveaxis(x.reshape(len(x), *x.shape[2:], x.shape[1]), -1, 1),
    )
    _v("zero_pad_then_subtract", "padding", "pads with the negated zero point", pad_=lambda v: -v)

for _operation in ("max_pool2d", "sum_pool2d"):
    _v = partial(_mutant, _operation)
    _v(
        "kernel_transposed",
        "axis",
        "exchanges height and width of the window",
        kernels=lambda k: k[::-1],
    )
    _v("strides_swapped", "window", "exchanges the strides", strides=lambda s, k: s[::-1])
    _v("stride_is_kernel", "window", "moves by the window always", strides=lambda s, k: k)
    _v("stride_ignored", "window", "moves by 1", strides=lambda s, k: (1, 1))
    _v(
        "first_stride_for_both",
        "window",
        "uses the vertical stride for both axes",
        strides=lambda s, k: (s[0], s[0]),
    )
    _v(
        "paddings_swapped",
        "padding",
        "exchanges vertical and horizontal padding",
        paddings=lambda p: p[::-1],
    )
    _v(
        "pads_reversed",
        "padding",
        "pads before instead of after",
        paddings=lambda p: tuple(pair[::-1] for pair in p),
    )
    _v("padding_ignored", "padding", "pads nothing", paddings=lambda p: ((0, 0),) * len(p))
    _v(
        "positions_rounded_up",
        "window",
        "counts a last, partial window",
        positions_=lambda room, s: -(-room // s) + 1,
    )
_mutant("max_pool2d", "pads_zero", "padding", "lets padding take part as 0", pad=0)
_mutant(
    "max_pool2d",
    "starts_at_zero",
    "signedness",
    "starts the maximum at 0",
    best=lambda v: max(0, *v),
)
_mutant(
    "max_pool2d",
    "starts_at_int8",
    "signedness",
    "starts the maximum at -128",
    best=lambda v: max(-128, *v),
)
_mutant(
    "max_pool2d",
    "starts_at_int32",
    "signedness",
    "starts the maximum at -2^31",
    best=lambda v: max(-(2**31), *v),
)
_mutant("max_pool2d", "minimum", "operand", "takes the least value", best=min)
_mutant(
    "max_pool2d",
    "largest_magnitude",
    "signedness",
    "takes the value of largest magnitude",
    best=lambda v: max(v, key=abs),
)
_mutant(
    "max_pool2d",
    "as_unsigned",
    "signedness",
    "compares as unsigned 8-bit codes",
    best=lambda v: max(v, key=lambda q: q % 256),
)
_mutant(
    "max_pool2d",
    "compares_float32",
    "float_accumulator",
    "takes the maximum in float32",
    best=lambda v: int(max(np.float32(q) for q in v)),
)
_mutant(
    "sum_pool2d", "pads_zero", "padding", "pads with 0 instead of the zero point", pad_=lambda v: 0
)
_mutant(
    "sum_pool2d",
    "average",
    "rounding_order",
    "divides by the window, rounding down",
    finish=lambda acc, n: acc // n,
)
_mutant(
    "sum_pool2d",
    "average_then_scaled",
    "rounding_order",
    "divides by the window, rounds, and multiplies again",
    finish=lambda acc, n: round_value(Fraction(acc, n), "half_even") * n,
)

_g = partial(_mutant, "global_sum_pool")
_g(
    "average",
    "rounding_order",
    "divides by the positions, rounding down",
    finish=lambda acc, v: acc // len(v),
)
_g("maximum", "operand", "takes the maximum", finish=lambda acc, v: max(v))
_g(
    "last_row_dropped",
    "operand",
    "drops the last row",
    values=lambda v: v[:-1] if len(v) > 1 else v,
)
_g("last_column_dropped", "operand", "drops the last column", values=lambda v: v[..., :-1])
_g("square_only", "axis", "takes the height for the width", values=lambda v: v[..., : v.shape[0]])

_g = partial(_mutant, "add")
_g("multipliers_ignored", "operand", "multiplies nothing", factors=lambda m: (1,) * len(m))
_g(
    "multipliers_reversed",
    "operand",
    "gives multipliers to operands in reverse",
    factors=lambda m: m[::-1],
)
_g(
    "first_multiplier_only",
    "operand",
    "uses the first multiplier for all",
    factors=lambda m: (m[0],) * len(m),
)
_g(
    "last_multiplier_only",
    "operand",
    "multiplies the last operand alone",
    factors=lambda m: (*(1,) * (len(m) - 1), m[-1]),
)
_g("sign_dropped", "signedness", "uses |multiplier|", factors=lambda m: tuple(map(abs, m)))
_g("two_only", "operand", "adds the first two operands", used=lambda pairs: pairs[:2])
_g(
    "first_twice",
    "operand",
    "adds the first operand to itself",
    used=lambda pairs: [(m, pairs[0][1]) for m, _ in pairs],
)
_g(
    "multipliers_int8",
    "overflow_narrow",
    "stores multipliers in 8 bits",
    factors=lambda m: tuple(map(wrap(8), m)),
)

_g = partial(_mutant, "concat")
_g("reversed", "operand", "joins in reverse order", order=lambda v: v[::-1])
_g("two_only", "operand", "joins the first two operands", order=lambda v: v[:2])
_g("last_axis", "axis", "joins along the last axis", join=lambda v: np.concatenate(v, axis=-1))
_g("sample_axis", "axis", "joins along the samples", join=lambda v: np.concatenate(v, axis=0))
_g(
    "channels_last",
    "layout",
    "joins as if channels came last",
    join=lambda v: np.concatenate([a.reshape(len(a), -1, a.shape[1]) for a in v], axis=-1).reshape(
        len(v[0]), -1, *v[0].shape[2:]
    ),
)
_g(
    "interleaved",
    "layout",
    "takes channels of the operands in turn",
    join=lambda v: np.concatenate(v, axis=1)[
        :, sorted(range(sum(a.shape[1] for a in v)), key=_turn([a.shape[1] for a in v]))
    ],
)
_g(
    "largest_first",
    "operand",
    "joins the operand with most channels first",
    order=lambda v: sorted(v, key=lambda a: -a.shape[1]),
)


def _turn(sizes: list[int]) -> Callable[[int], tuple[int, int]]:
    turns = [(c, operand) for operand, size in enumerate(sizes) for c in range(size)]
    return lambda i: turns[i]


_g = partial(_mutant, "flatten")
_g(
    "channels_last",
    "layout",
    "runs through the channels fastest",
    axes=lambda x: np.moveaxis(x, 1, -1),
)
_g(
    "column_major",
    "layout",
    "runs through the first axis fastest",
    axes=lambda x: x.transpose(0, *range(x.ndim - 1, 0, -1)),
)
_g("image_transposed", "axis", "exchanges height and width", axes=lambda x: x.swapaxes(-1, -2))
_g(
    "samples_mixed",
    "layout",
    "runs through the samples fastest",
    axes=lambda x: x.reshape(-1, len(x)).T,
)
_g("first_sample", "operand", "repeats the first sample", axes=lambda x: np.stack([x[0]] * len(x)))
_g = partial(_mutant, "reshape")
_g("column_major", "layout", "runs through the first axis fastest", order="F")
_g("channels_last", "layout", "reads the channels fastest", axes=lambda x: np.moveaxis(x, 1, -1))
_g("reversed", "layout", "reads backwards", axes=lambda x: x.reshape(len(x), -1)[:, ::-1])

_g = partial(_mutant, "lookup")
_g(
    "lo_ignored",
    "operand",
    "takes x itself for the column",
    column=lambda v, lo, n: v,
    outside=lambda i, n: i % n,
)
_g(
    "lo_added",
    "operand",
    "adds lo instead of subtracting it",
    column=lambda v, lo, n: v + lo,
    outside=lambda i, n: i % n,
)
_g(
    "one_off",
    "operand",
    "counts columns from 1",
    column=lambda v, lo, n: v - lo - 1,
    outside=lambda i, n: i % n,
)
_g(
    "negative_wraps",
    "signedness",
    "lets a negative index count from the end",
    column=lambda v, lo, n: (v - lo) % n if v < lo else v - lo,
)
_g("clamps", "refusal", "clamps to the table", outside=lambda i, n: clamp(i, 0, n - 1))
_g("wraps", "refusal", "wraps round the table", outside=lambda i, n: i % n)
_g(
    "index_uint8",
    "signedness",
    "computes the column in 8 unsigned bits",
    column=lambda v, lo, n: wrap(8, signed=False)(v - lo),
)
_g(
    "magnitude",
    "signedness",
    "looks up |x|",
    column=lambda v, lo, n: abs(v) - lo,
    outside=lambda i, n: clamp(i, 0, n - 1),
)
_g("first_row", "channel", "uses the first channel's table", row=lambda i: 0)
_g("last_axis", "axis", "takes the channel from the last axis", row=lambda i: i[-1] % 2)


# --- widths and bounds ------------------------------------------------------------------------


def _log_bits(dtype: Any) -> Callable[[int], int]:
    return lambda v: int(np.ceil(np.log2(dtype(v) + dtype(1)))) if v > 0 else 0


_g = partial(_mutant, "bit_widths")
for _dtype in (np.float32, np.float64):
    _bits = _log_bits(_dtype)
    _kind = np.dtype(_dtype).name
    _g(
        f"signed_log2_{_kind}",
        "float_logarithm",
        f"takes ceil(log2(|x| + 1)) in {_kind}",
        signed=lambda lo, hi, f=_bits: 1 + max(f(v if v >= 0 else ~v) for v in (lo, hi)),
    )
    _g(
        f"unsigned_log2_{_kind}",
        "float_logarithm",
        f"takes ceil(log2(x + 1)) in {_kind}",
        unsigned=lambda lo, hi, f=_bits: None if lo < 0 else max(1, f(hi)),
    )
    _g(
        f"span_log2_{_kind}",
        "float_logarithm",
        f"takes ceil(log2(span + 1)) in {_kind}",
        span=lambda lo, hi, f=_bits: max(1, f(hi - lo)),
    )
_g(
    "signed_log2_no_plus_one",
    "float_logarithm",
    "takes ceil(log2(max |x|)) + 1",
    signed=lambda lo, hi: (
        1 + math.ceil(math.log2(max(abs(lo), abs(hi)))) if (lo, hi) != (0, 0) else 1
    ),
)
_g(
    "signed_by_magnitude",
    "bound",
    "counts the bits of max |x|",
    signed=lambda lo, hi: 1 + max(abs(lo), abs(hi)).bit_length(),
)
_g(
    "sign_bit_forgotten",
    "bound",
    "counts no sign bit",
    signed=lambda lo, hi: max(1, max((v if v >= 0 else ~v).bit_length() for v in (lo, hi))),
)
_g(
    "signed_high_only",
    "bound",
    "looks at the highest value alone",
    signed=lambda lo, hi: 1 + (hi if hi >= 0 else ~hi).bit_length(),
)
_g(
    "signed_low_only",
    "bound",
    "looks at the lowest value alone",
    signed=lambda lo, hi: 1 + (lo if lo >= 0 else ~lo).bit_length(),
)
_g(
    "sign_bit_when_negative",
    "bound",
    "counts a sign bit only where there are negative values",
    signed=lambda lo, hi: max(
        1, (lo < 0) + max((v if v >= 0 else ~v).bit_length() for v in (lo, hi))
    ),
)
_g(
    "unsigned_of_zero",
    "bound",
    "takes 0 bits for the range [0, 0]",
    unsigned=lambda lo, hi: None if lo < 0 else hi.bit_length(),
)
_g(
    "unsigned_negative",
    "refusal",
    "gives a width for negative values",
    unsigned=lambda lo, hi: max(1, hi.bit_length()),
)
_g(
    "unsigned_is_span",
    "bound",
    "takes the span for the unsigned width",
    unsigned=lambda lo, hi: None if lo < 0 else max(1, (hi - lo).bit_length()),
)
_g(
    "span_of_zero",
    "bound",
    "takes 0 bits for one value",
    span=lambda lo, hi: (hi - lo).bit_length(),
)
_g(
    "span_plus_one",
    "bound",
    "counts the values instead of the span",
    span=lambda lo, hi: max(1, (hi - lo + 1).bit_length()),
)
_g(
    "span_int32",
    "overflow_narrow",
    "subtracts in 32 bits",
    span=lambda lo, hi: max(1, abs(wrap(32)(hi - lo)).bit_length()),
)
_g(
    "span_is_signed",
    "bound",
    "gives the signed width for the span",
    span=lambda lo, hi: 1 + max((v if v >= 0 else ~v).bit_length() for v in (lo, hi)),
)

_g = partial(_mutant, "accumulator_range")
_g(
    "inputs_at_high",
    "bound",
    "takes every input at its highest",
    low=lambda w, lo, hi: w * hi,
    high=lambda w, lo, hi: w * hi,
)
_g(
    "low_inputs_zero",
    "bound",
    "takes 0 for the lowest inputs",
    low=lambda w, lo, hi: min(0, w * hi),
    high=lambda w, lo, hi: max(0, w * hi),
)
_g(
    "signs_ignored",
    "bound",
    "takes lowest inputs for the lowest sum",
    low=lambda w, lo, hi: w * lo,
    high=lambda w, lo, hi: w * hi,
)
_g(
    "symmetric",
    "bound",
    "takes the mass for both ends",
    low=lambda w, lo, hi: -abs(w) * max(abs(lo), abs(hi)),
    high=lambda w, lo, hi: abs(w) * max(abs(lo), abs(hi)),
)
_g("bias_ignored", "bias", "leaves the bias out of the range", bias_=lambda b: 0)
_g("bias_magnitude", "bias", "adds |bias| to both ends", bias_=abs)
_g("mass_without_bias", "bias", "leaves the bias out of the mass", bias_size=lambda b: 0)
_g("mass_signed_bias", "bias", "adds the bias with its sign to the mass", bias_size=lambda b: b)
_g(
    "mass_of_high",
    "bound",
    "takes |highest input| in the mass",
    size=lambda w, lo, hi: abs(w) * abs(hi),
)
_g(
    "mass_signed_weights",
    "bound",
    "adds weights with their sign in the mass",
    size=lambda w, lo, hi: w * max(abs(lo), abs(hi)),
)
_g("ends_int32", "overflow_narrow", "sums in 32 bits", fit=wrap(32))
_g("ends_int16", "overflow_narrow", "sums in 16 bits", fit=wrap(16))
_g("ends_float32", "float_accumulator", "sums in float32", fit=in_float(np.float32))
_g("ends_float64", "float_accumulator", "sums in float64", fit=in_float(np.float64))

_g = partial(_mutant, "omega")
_g("accumulator_values", "bound", "uses 2^n_max", largest=lambda n: 2**n)
_g("rounded_up", "bound", "rounds up", divide=lambda a, b: -(-a // b))
_g("rounded", "bound", "rounds to the nearest", divide=lambda a, b: round(Fraction(a, b)))
_g(
    "float32",
    "float_precision",
    "divides in float32",
    divide=lambda a, b: int(np.float32(a) / np.float32(b)),
)
_g("float64", "float_precision", "divides in float64", divide=lambda a, b: int(float(a) / float(b)))
_g("powers", "bound", "uses 2^n for weights and inputs", value=lambda n: 2**n)
_g(
    "signed_accumulator",
    "bound",
    "takes one bit of the accumulator for the sign",
    largest=lambda n: 2 ** (n - 1) - 1,
)
_g("signed_values", "bound", "uses 2^(n-1) for weights and inputs", value=lambda n: 2 ** (n - 1))

_g = partial(_mutant, "max_fan_in")
_g(
    "bias_ignored",
    "bias",
    "leaves the bias out",
    room_up=lambda acc, b: acc[1],
    room_down=lambda acc, b: -acc[0],
)
_g(
    "bias_low_only",
    "bias",
    "takes the lowest bias for both ends",
    room_up=lambda acc, b: acc[1] - b[0],
)
_g(
    "bias_high_only",
    "bias",
    "takes the highest bias for both ends",
    room_down=lambda acc, b: b[1] - acc[0],
)
_g("upper_end_only", "bound", "looks at the upper end alone", choose=lambda up, down: up)
_g("lower_end_only", "bound", "looks at the lower end alone", choose=lambda up, down: down)
_g(
    "looser_end",
    "bound",
    "takes the looser of the two ends",
    choose=lambda up, down: max((k for k in (up, down) if k is not None), default=None),
)
_g(
    "zero_for_unlimited",
    "bound",
    "gives 0 where no fan-in overflows",
    choose=lambda up, down: min((k for k in (up, down) if k is not None), default=0),
)
_g(
    "high_product_only",
    "bound",
    "takes w_hi x_hi for the largest product",
    products=lambda w, x: [w[0] * x[1], w[1] * x[1]],
)
_g(
    "magnitudes",
    "bound",
    "takes max |w| max |x| for both ends",
    products=lambda w, x: [s * max(map(abs, w)) * max(map(abs, x)) for s in (-1, 1)],
)
_g(
    "symmetric_accumulator",
    "bound",
    "takes the upper end for the lower one",
    room_down=lambda acc, b: b[0] + acc[1],
)
_g("rounded_up", "bound", "rounds up", divide=lambda a, b: -(-a // b))
_g("float64", "float_precision", "divides in float64", divide=lambda a, b: int(float(a) / float(b)))
_g(
    "float32",
    "float_precision",
    "divides in float32",
    divide=lambda a, b: int(np.float32(a) / np.float32(b)),
)


_g = partial(_mutant, "fan_in_mask")
_g(
    "per_layer",
    "bound",
    "keeps the largest of the layer, fan_in a row on average",
    rows=lambda w: w.reshape(1, -1),
    count=lambda k, n_rows, n: k * n_rows,
)
_g(
    "per_column",
    "axis",
    "keeps fan_in weights of each column",
    rows=lambda w: w.reshape(len(w), -1).T,
    unrows=lambda mask, shape: mask.T.reshape(shape),
)
_g(
    "per_last_axis",
    "axis",
    "counts each line of a kernel apart",
    rows=lambda w: w.reshape(-1, w.shape[-1]),
)
_g(
    "channels_last",
    "layout",
    "breaks ties in channels-last order",
    rows=lambda w: np.moveaxis(w, 1, -1).reshape(len(w), -1),
    unrows=lambda mask, shape: np.moveaxis(mask.reshape(shape[0], *shape[2:], shape[1]), -1, 1),
)
_g("ties_later", "operand", "keeps the later of equals", place=lambda size, i: (-size, -i))
_g(
    "ties_kept",
    "bound",
    "keeps all that equal the smallest kept",
    kept=lambda order, k, sizes: [
        i for i in order if i in order[:k] or (k and sizes[i] == sizes[order[:k][-1]])
    ],
)
_g(
    "ties_dropped",
    "operand",
    "drops all that equal the largest dropped",
    kept=lambda order, k, sizes: [
        i for i in order[:k] if not order[k:] or sizes[i] > sizes[order[k]]
    ],
)
_g("by_value", "signedness", "keeps the largest values, not magnitudes", size=lambda w: w)
_g("smallest", "operand", "keeps the smallest", place=lambda size, i: (size, i))
_g("first_columns", "operand", "keeps the first columns", place=lambda size, i: i)
_g("one_more", "bound", "keeps one more", count=lambda k, n_rows, n: k + 1)
_g("one_less", "bound", "keeps one less", count=lambda k, n_rows, n: max(k - 1, 0))
_g("zero_for_all", "bound", "takes a fan-in of 0 for no limit", count=lambda k, n_rows, n: k or n)
_g("beyond_row_wraps", "bound", "takes fan_in modulo the row", count=lambda k, n_rows, n: k % n)
_g("zeros_dropped", "operand", "masks zeros", finish=lambda mask, w: mask * (w != 0))
_g("inverted", "operand", "gives 1 where a weight goes", finish=lambda mask, w: 1 - mask)
_g("magnitude_int8", "overflow_narrow", "takes |w| in 8 bits", size=lambda w: wrap(8)(abs(w)))
_g(
    "squares_int32",
    "overflow_narrow",
    "compares squares in 32 bits",
    size=lambda w: wrap(32)(w * w),
)
_g("float32", "float_precision", "compares in float32", size=lambda w: float(np.float32(abs(w))))
_g(
    "first_row_for_all",
    "channel",
    "gives every row the mask of the first",
    finish=lambda mask, w: np.stack([mask[0]] * len(mask)),
)
_g("negative_accepted", "refusal", "reads a negative fan-in as a slice", check=False)


# --- weights for a narrow accumulator ---------------------------------------------------------

# How budgets go wrong; projections inherit it.
_BUDGET_BUGS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "symmetric",
        "bound",
        "takes -(2^(bits-1) - 1) for the lowest accumulator",
        {"rooms": lambda bits, b: (2 ** (bits - 1) - 1 - b, 2 ** (bits - 1) - 1 + b)},
    ),
    (
        "one_end",
        "bound",
        "takes the upper end's room for both sides",
        {"rooms": lambda bits, b: (2 ** (bits - 1) - 1 - b,) * 2, "outside": lambda v: max(v, 0)},
    ),
    (
        "all_bits",
        "bound",
        "takes 2^bits for 2^(bits-1)",
        {"rooms": lambda bits, b: (2**bits - 1 - b, 2**bits + b)},
    ),
    (
        "bias_ignored",
        "bias",
        "leaves the bias out",
        {"rooms": lambda bits, b: (2 ** (bits - 1) - 1, 2 ** (bits - 1))},
    ),
    (
        "bias_sign",
        "bias",
        "adds the bias to the wrong side",
        {
            "rooms": lambda bits, b: (2 ** (bits - 1) - 1 + b, 2 ** (bits - 1) - b),
            "outside": lambda v: max(v, 0),
        },
    ),
    (
        "bias_magnitude",
        "bias",
        "takes |bias| from both ends",
        {
            "rooms": lambda bits, b: (2 ** (bits - 1) - 1 - abs(b), 2 ** (bits - 1) - abs(b)),
            "outside": lambda v: max(v, 0),
        },
    ),
    ("first_bias", "channel", "gives every row the first bias", {"bias_at": lambda b, k: b[0]}),
    (
        "mass",
        "bound",
        "limits P + N by one budget, as for sum |w|",
        {
            "row": partial(
                row_budgets, parted=False, sides=lambda p, n, s, t: ((p + n) * max(s, t),) * 2
            )
        },
    ),
    (
        "unsigned_inputs",
        "signedness",
        "takes 0 for the lowest input",
        {"reach": lambda lo, hi: (0, max(0, hi))},
    ),
    (
        "symmetric_inputs",
        "bound",
        "takes max |x| for both ends of the inputs",
        {"reach": lambda lo, hi: (max(abs(lo), abs(hi)),) * 2},
    ),
    (
        "ends_swapped",
        "operand",
        "exchanges the ends of the inputs",
        {"reach": lambda lo, hi: (max(0, hi), max(0, -lo))},
    ),
    (
        "range_not_widened",
        "bound",
        "credits a range without 0 for its offset",
        {
            "reach": lambda lo, hi: (-lo, hi) if hi > 0 else (max(0, -lo), max(0, hi)),
            "row": partial(row_budgets, parted=False),
        },
    ),
    (
        "rounded_up",
        "bound",
        "rounds budgets up",
        {"row": partial(row_budgets, divide=lambda a, b: -(-a // b))},
    ),
    (
        "rounded",
        "bound",
        "rounds budgets to the nearest",
        {"row": partial(row_budgets, divide=lambda a, b: round_value(Fraction(a, b), "half_even"))},
    ),
    (
        "shrinks_what_fits",
        "bound",
        "raises P and N to their budgets",
        {"row": partial(row_budgets, least=lambda want, room: room)},
    ),
    (
        "upper_end_only",
        "bound",
        "looks at the upper end alone where both sides share it",
        {
            "row": lambda p, n, up, down, s, t: row_budgets(
                p, n, up, down if min(s, t) == 0 else 2**80, s, t
            )
        },
    ),
    (
        "lower_end_only",
        "bound",
        "looks at the lower end alone where both sides share it",
        {
            "row": lambda p, n, up, down, s, t: row_budgets(
                p, n, up if min(s, t) == 0 else 2**80, down, s, t
            )
        },
    ),
    (
        "first_row",
        "channel",
        "gives every row the budgets of the first",
        {"finish": lambda pairs: [pairs[0]] * len(pairs)},
    ),
    (
        "bias_saturates",
        "refusal",
        "cuts a bias that does not fit off",
        {"outside": lambda v: max(v, 0)},
    ),
)


def _own_factors(p: int, n: int, up: int, down: int, s: int, t: int) -> tuple[int, int]:
    """One factor for each side, from the end that it moves most."""
    if min(s, t) == 0:
        return row_budgets(p, n, up, down, s, t)
    needs = max(t * p + s * n, 1), max(s * p + t * n, 1)
    return min(p, p * up // needs[0]), min(n, n * down // needs[1])


_g = partial(_mutant, "sign_budgets")
for _name, _flag, _description, _bug in _BUDGET_BUGS:
    _g(_name, _flag, _description, **_bug)
_g(
    "own_factors",
    "bound",
    "shrinks P for the upper and N for the lower end alone",
    row=_own_factors,
)
for _dtype in (np.float32, np.float64):
    _g(
        f"{np.dtype(_dtype).name}_quotient",
        "float_precision",
        f"divides in {np.dtype(_dtype).name}",
        row=partial(row_budgets, divide=lambda a, b, d=_dtype: int(np.floor(d(a) / d(b)))),
    )
_g(
    "products_int32",
    "overflow_narrow",
    "compares sums of 32 bits",
    row=partial(
        row_budgets, sides=lambda p, n, s, t: (wrap(32)(t * p + s * n), wrap(32)(s * p + t * n))
    ),
)
_g("widths_unchecked", "refusal", "accepts any width and any order of the inputs", check=False)

_g = partial(_mutant, "project")
for _name, _flag, _description, _bug in _BUDGET_BUGS:
    _g(_name, _flag, _description, budgets=partial(sign_budgets, **_bug))
for _mode in ("half_up", "half_down", "toward_zero", "ceil"):
    _g(
        f"rounds_{_mode}",
        "rounding_tie",
        f"rounds magnitudes {_mode}",
        round_=lambda v, mode=_mode: round_value(v, mode),
    )
_fit = partial(partial, nearest_row)
_g("sides_swapped", "operand", "exchanges the two budgets", order=lambda limits: limits[::-1])
_g(
    "one_side",
    "signedness",
    "projects the positive weights alone",
    order=lambda limits: (limits[0], [2**70] * len(limits[1])),
)
_g("signs_lost", "signedness", "returns magnitudes", join=lambda p, n: p + n)
_g(
    "fits_by_reals",
    "rounding_order",
    "compares the sum before rounding with the budget",
    within=lambda codes, reals, budget: sum(reals) <= budget,
)
_g(
    "remainders_everywhere",
    "rounding_order",
    "rounds by largest remainder where the row fits too",
    fits=lambda codes, reals: nearest_row(reals, round_value(sum(reals), "half_even")),
)
_g(
    "total_of_reals",
    "bound",
    "fills up to the rounded sum of the reals, not to the budget",
    fit=_fit(total_=lambda budget, reals: min(budget, round_value(sum(reals), "half_even"))),
)
_g(
    "remainders_dropped",
    "bound",
    "rounds the projection down and leaves budget unused",
    fit=_fit(total_=lambda budget, reals: 0),
)
_g(
    "projection_rounded",
    "bound",
    "rounds each weight of the projection by itself",
    fit=lambda values, budget: [
        round_value(max(v - simplex_level(values, budget), 0), "half_even") for v in values
    ],
)
_g("ties_later", "operand", "gives the later of equal remainders the unit",
   fit=_fit(place=lambda rest, i: (-rest, -i)))  # fmt: skip
_g("smallest_remainder", "operand", "gives the smallest remainder the unit",
   fit=_fit(place=lambda rest, i: (rest, i)))  # fmt: skip
_g("first_columns", "operand", "gives the first weights the units",
   fit=_fit(place=lambda rest, i: i))  # fmt: skip
_g(
    "scaled",
    "operand",
    "scales the weights down instead of subtracting",
    fit=lambda values, budget: nearest_row(
        [v * min(Fraction(1), Fraction(budget) / sum(values)) for v in values], budget
    ),
)
_g(
    "mean_excess",
    "operand",
    "subtracts the mean excess of all weights once",
    fit=_fit(level=lambda values, budget: max(0, Fraction(sum(values) - budget) / len(values))),
)
_g(
    "clipped_at_largest",
    "operand",
    "clips each weight at the budget",
    fit=lambda values, budget: [min(round_value(v, "half_even"), budget) for v in values],
)
_g(
    "tau_float64",
    "float_precision",
    "subtracts tau in float64",
    fit=_fit(
        level=lambda values, budget: float(simplex_level(values, budget)),
        shifted=lambda v, tau: max(float(v) - tau, 0.0),
    ),
)
_g(
    "tau_float32",
    "float_precision",
    "subtracts tau in float32",
    fit=_fit(
        level=lambda values, budget: np.float32(float(simplex_level(values, budget))),
        shifted=lambda v, tau: max(np.float32(float(v)) - tau, np.float32(0)),
    ),
)
_g(
    "weights_float32",
    "float_precision",
    "reads weights in float32",
    read=lambda v: Fraction(float(np.float32(v))),
)
_g(
    "per_layer",
    "bound",
    "gives every row the budgets of the first",
    order=lambda limits: tuple([side[0]] * len(side) for side in limits),
)
_g("nan_is_zero", "refusal", "takes NaN for 0", nan=0.0)


# --- refusals ---------------------------------------------------------------------------------


def _recoded(function: Callable[..., Any], code: str) -> Callable[..., Any]:
    def refusing(**arguments: Any) -> Any:
        try:
            return function(**arguments)
        except Rejected as error:
            raise Rejected(code, str(error)) from error

    return refusing


# What an implementation with one code for everything answers, per operation where that is wrong.
for _code, _operations in (
    ("invalid_parameter", ("check_codes", "quantize", "binarize", "dequantize", "linear", "conv2d",
                           "add", "concat", "reshape", "lookup", "max_fan_in", "network",
                           "requantize_thresholds", "sign_budgets", "project")),
    ("out_of_range", ("round_ratio", "integer_format", "requantize_scale", "requantize_multiplier",
                      "accumulate", "max_pool2d", "bit_widths", "omega", "fan_in_mask", "quantize",
                      "sign_budgets", "project")),
):  # fmt: skip
    MUTANTS += [
        Mutant(
            _operation,
            f"always_{_code}",
            "refusal_code",
            f"refuses everything as {_code}",
            _recoded(KERNELS[_operation], _code),
        )
        for _operation in _operations
    ]


# --- networks ---------------------------------------------------------------------------------


def _n(name: str, flag: str, description: str, **hooks: Any) -> None:
    _mutant("network", name, flag, description, **hooks)


def _clamped(bits: int) -> Callable[[Any, str], Any]:
    """Sums stored in `bits` bits between nodes."""
    fit = np.vectorize(saturate(bits), otypes=[object])
    return lambda values, operation: fit(values)


_n(
    "always_the_node_before",
    "node_order",
    "reads the node before, whatever is named",
    inputs_of=lambda node, before: [before] * len(node["inputs"]),
)
_n(
    "always_the_input",
    "node_order",
    "takes the first of two operands from the node before",
    inputs_of=lambda node, before: (
        [before, *node["inputs"][1:]] if len(node["inputs"]) > 1 else node["inputs"]
    ),
)
_n(
    "first_operand_twice",
    "node_order",
    "reads the first operand for all",
    inputs_of=lambda node, before: node["inputs"][:1] * len(node["inputs"]),
)
_n(
    "operands_reversed",
    "node_order",
    "reads operands in reverse",
    inputs_of=lambda node, before: node["inputs"][::-1],
)
_n(
    "first_sample",
    "operand",
    "computes the first sample for all",
    batch=lambda codes: np.stack([codes[0]] * len(codes)),
)
_n("samples_reversed", "operand", "returns the samples in reverse", batch=lambda codes: codes[::-1])
_n("stores_int8", "overflow_narrow", "stores every value in 8 bits", stored=_clamped(8))
_n(
    "stores_int4",
    "overflow_narrow",
    "stores codes in 4 bits",
    stored=lambda v, operation: _clamped(4)(v, "") if operation.startswith("re") else v,
)
_n(
    "relu_everywhere",
    "signedness",
    "stores sums as unsigned",
    stored=lambda v, operation: np.maximum(v, 0),
)
_n(
    "relu_on_output",
    "signedness",
    "clips sums of linear nodes at 0",
    stored=lambda v, operation: np.maximum(v, 0) if operation == "linear" else v,
)
_n("input_unchecked", "refusal", "accepts codes outside the input format", check=False)

_g = partial(_mutant, "predict")
_g(
    "float64_output",
    "float_precision",
    "dequantizes in float64",
    real=lambda acc, s, b: float(acc) * float(s) + float(b),
)
_g(
    "fused_output",
    "float_precision",
    "fuses product and sum",
    real=lambda acc, s, b: np.float32(Fraction(float(s)) * acc + Fraction(float(b))),
)
_g(
    "offset_dropped",
    "bias",
    "adds no output offset",
    real=lambda acc, s, b: np.float32(np.float32(acc) * s),
)
_g(
    "offset_first",
    "rounding_order",
    "adds the offset before it scales",
    real=lambda acc, s, b: np.float32(np.float32(np.float32(acc) + b) * s),
)
_g(
    "input_truncated",
    "rounding_tie",
    "casts inputs instead of rounding",
    door={"round_": lambda x, mode: round_value(x, "toward_zero")},
)
_g(
    "input_half_up",
    "rounding_tie",
    "rounds inputs half_up",
    door={"round_": lambda x, mode: round_value(x, "half_up")},
)
_g(
    "input_reciprocal",
    "float_precision",
    "multiplies inputs by 1 / scale",
    door={"divide": lambda v, s, dtype: dtype(v * dtype(dtype(1) / s))},
)
_g(
    "input_wraps",
    "saturation",
    "wraps inputs instead of saturating",
    door={"clip": lambda q, z, lo, hi: (q + z - lo) % (hi - lo + 1) + lo},
)
_g(
    "input_zero_point_dropped",
    "zero_point",
    "adds no input zero point",
    door={"clip": lambda q, z, lo, hi: clamp(q, lo, hi)},
)

assert {mutant.operation for mutant in MUTANTS} == set(OPERATIONS)
