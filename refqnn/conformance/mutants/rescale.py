"""Rescaling to wide integers: the kernel, and what goes wrong in it.

`fmt` is the three parameters of a format: bits, signed, narrow.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from refqnn.conformance.mutants.steps import (
    Hook,
    Index,
    add_and_clamp,
    always,
    clamp,
    each,
    ends,
    entry,
    round_value,
    same,
    wrap,
)
from refqnn.conformance.mutants.table import KERNELS, of
from refqnn.conformance.operations import Array, Values
from refqnn.conformance.suite import Rejected

__all__ = ["rescale"]


def _of_channel(index: Index, name: str) -> int:
    return index[1]


def rescale(
    acc: Array,
    multiplier: Array,
    shift: Array,
    zero_point: Array,
    offset: Array,
    clip: Array | None,
    rounding: str,
    first_rounding: str | None,
    first_shift: Array,
    *,
    ends: Hook = ends,
    channel: Hook = _of_channel,
    add_offset: Hook = lambda a, b: a + b,
    multiply: Hook = lambda a, m: a * m,
    shift_: Hook = same,
    first: Hook = same,
    at: Hook = same,
    round_first: Hook = round_value,
    between: Hook = same,
    round_: Hook = round_value,
    limits: Hook = lambda clip, ends: clip,
    last: Hook = add_and_clamp,
    check: bool = True,
    **fmt: Any,
) -> Values:
    q_min, q_max = ends(**fmt)
    rows = np.array([[q_min, q_max]]) if clip is None else np.asarray(clip)
    names = ("multiplier", "shift", "zero_point", "offset", "at")
    numbers = dict(zip(names, (multiplier, shift, zero_point, offset, first_shift)))
    sizes = {len(rows), *(np.size(v) for v in numbers.values())}
    if len(sizes - {1}) > 1 or (max(sizes) > 1 and np.shape(acc)[1] != max(sizes)):
        raise Rejected("shape_mismatch", "channels")
    flat = {name: np.asarray(v).reshape(-1) for name, v in numbers.items()}
    late = first_rounding is not None and (
        flat["at"].min() < 0 or (flat["at"] > flat["shift"]).any()
    )
    for wrong in (
        flat["multiplier"].min() < 0 or flat["multiplier"].max() >= 2**62,
        flat["shift"].min() < 0 or flat["shift"].max() > 62,
        rows.min() < q_min or rows.max() > q_max or (rows[:, 0] > rows[:, 1]).any(),
        late and check,
    ):
        if wrong:
            raise Rejected("invalid_parameter", "rescale")

    def code(value: int, index: Index) -> int:
        m, s, z, b, f = (entry(v, channel(index, name)) for name, v in numbers.items())
        p, done, mode = multiply(add_offset(value, b), m), 0, first(first_rounding)
        if mode is not None:
            done = at(f)
            p = between(round_first(Fraction(p) / 2**done, mode))
        q = round_(Fraction(p) / Fraction(2) ** (shift_(s) - done), rounding)
        row = rows[channel(index, "clip") if len(rows) > 1 else 0].tolist()
        return int(last(q, z, *limits(row, (q_min, q_max))))

    return {"codes": each(code, acc)}


KERNELS["rescale"] = rescale


# --- what goes wrong --------------------------------------------------------------------------


def _first_of(wrong: str) -> Hook:
    """The first channel's number of one parameter."""
    return lambda index, name: 0 if name == wrong else index[1]


def _both(dtype: Hook) -> Hook:
    return lambda a, m: Fraction(float(dtype(a) * dtype(m)))


# fmt: off
_r = of(rescale)
for _right, _wrong in (
    ("half_even", "half_up"), ("half_even", "half_away"), ("half_up", "half_even"),
    ("half_up", "half_away"), ("half_away", "half_up"), ("half_down", "half_up"),
    ("half_toward_zero", "half_down"), ("half_toward_zero", "half_even"), ("floor", "toward_zero"),
    ("ceil", "away_from_zero"), ("toward_zero", "floor"), ("away_from_zero", "ceil"),
):
    _r(f"{_right}_as_{_wrong}", "rounding_tie",
       f"rounds {_wrong} where {_right} is asked for, at the end",
       round_=lambda x, mode, right=_right, wrong=_wrong:
       round_value(x, wrong if mode == right else mode))
for _bits in (32, 64):
    _r(f"product_int{_bits}", "overflow_narrow", f"multiplies in {_bits} bits",
       multiply=lambda a, m, n=_bits: wrap(n)(a * m))
    _r(f"multiplier_int{_bits}", "signedness", f"reads the multiplier in {_bits} signed bits",
       "multipliers stay below 2^62" if _bits == 64 else "",
       multiply=lambda a, m, n=_bits: a * wrap(n)(m))
_r("multiplier_uint32", "overflow_narrow", "keeps 32 unsigned bits of the multiplier",
   multiply=lambda a, m: a * (m % 2**32))
_r("product_float32", "float_precision", "multiplies in float32", multiply=_both(np.float32))
_r("product_float64", "float_precision", "multiplies in float64", multiply=_both(np.float64))
_r("zero_multiplier_as_one", "operand", "takes a multiplier of 0 for 1",
   multiply=lambda a, m: a * (m or 1))
_r("multiplier_ignored", "operand", "multiplies by nothing", multiply=lambda a, m: a)
for _bits in (16, 32):
    _r(f"acc_int{_bits}", "overflow_narrow", f"takes the accumulator in {_bits} bits",
       add_offset=lambda a, b, n=_bits: wrap(n)(a) + b)
    _r(f"offset_int{_bits}", "overflow_narrow", f"adds the offset in {_bits} bits",
       add_offset=lambda a, b, n=_bits: wrap(n)(a + b))
_r("offset_dropped", "bias", "adds no offset", add_offset=lambda a, b: a)
_r("offset_subtracted", "zero_point", "subtracts the offset", add_offset=lambda a, b: a - b)
_r("shift_masked_31", "overflow_narrow", "shifts by shift modulo 32", shift_=lambda s: s % 32)
_r("shift_one_short", "operand", "shifts one bit less", shift_=lambda s: max(s - 1, 0))
_r("shift_at_least_one", "operand", "drops one bit where shift is 0", shift_=lambda s: max(s, 1))
_r("always_single", "rounding_double", "rounds once where two roundings are asked for",
   first=lambda mode: None)
_r("always_double", "rounding_double", "rounds half_up at first_shift always",
   first=lambda mode: mode or "half_up")
for _mode in ("floor", "toward_zero", "half_up", "half_away"):
    _r(f"first_{_mode}", "rounding_double", f"rounds {_mode} first whatever is asked",
       round_first=always(_mode))
_r("last_half_up", "rounding_double", "rounds half_up last whatever is asked",
   round_=always("half_up"))
_r("first_shift_31", "rounding_double", "takes 31 for first_shift", at=lambda f: 31)
_r("between_int32", "overflow_narrow", "keeps 32 bits between the roundings", between=wrap(32))
_r("first_saturates_int32", "saturation", "saturates to 32 bits between the roundings",
   between=lambda p: clamp(p, -(2**31), 2**31 - 1))
_r("late_first_rounding", "refusal", "accepts a first shift beyond the shift", check=False)
_r("zero_point_dropped", "zero_point", "adds no zero point",
   last=lambda q, z, lo, hi: clamp(q, lo, hi))
_r("clip_before_zero_point", "rounding_order", "clips, then adds the zero point",
   last=lambda q, z, lo, hi: clamp(q, lo, hi) + z)
_r("clip_moved", "rounding_order", "clips to ends from which it took the zero point twice",
   last=lambda q, z, lo, hi: clamp(q, lo - z, hi - z))
for _bits in (8, 16, 32):
    _r(f"wraps_int{_bits}", "saturation", f"keeps {_bits} bits before it saturates",
       last=lambda q, z, lo, hi, n=_bits: clamp(wrap(n)(q + z), lo, hi))
    _r(f"result_int{_bits}", "signedness", f"returns {_bits} signed bits",
       last=lambda q, z, lo, hi, n=_bits: wrap(n)(clamp(q + z, lo, hi)))
_r("result_float32", "float_precision", "returns codes through float32",
   last=lambda q, z, lo, hi: int(np.float32(clamp(q + z, lo, hi))))
_r("no_upper_clip", "saturation", "saturates below only", last=lambda q, z, lo, hi: max(q + z, lo))
_r("no_lower_clip", "saturation", "saturates above only", last=lambda q, z, lo, hi: min(q + z, hi))
_r("clip_ignored", "saturation", "saturates to the format alone", limits=lambda clip, ends: ends)
_r("lower_clip_ignored", "saturation", "takes the lowest code of the format for that of the clip",
   limits=lambda clip, ends: (ends[0], clip[1]))
_r("upper_clip_ignored", "saturation", "takes the highest code of the format for that of the clip",
   limits=lambda clip, ends: (clip[0], ends[1]))
_r("narrow_ignored", "format", "saturates as if the format were not narrow",
   limits=lambda clip, ends: (clip[0] - (clip[0] == ends[0] and ends[0] % 2), clip[1]))
for _name in ("multiplier", "shift", "zero_point", "offset", "clip", "at"):
    _r(f"first_{_name}", "channel",
       f"uses the first channel's {'first_shift' if _name == 'at' else _name}",
       channel=_first_of(_name))
_r("last_axis", "axis", "takes the channel from the last axis",
   channel=lambda index, name: index[-1] % 2)
_r("sample_axis", "axis", "takes the channel from the sample axis",
   channel=lambda index, name: index[0] % 2)
# fmt: on
