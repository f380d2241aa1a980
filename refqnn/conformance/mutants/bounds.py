"""Widths, bounds, and weights for a narrow accumulator: kernels, and what goes wrong in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from refqnn.conformance.mutants.steps import Hook, in_float, round_value, same, wrap
from refqnn.conformance.mutants.table import KERNELS, of
from refqnn.conformance.operations import Array, Values, functions_in
from refqnn.conformance.suite import Rejected

__all__: list[str] = []


def width(value: int) -> int:
    """Bits of a two's complement integer without its sign."""
    return (value if value >= 0 else ~value).bit_length()


def _products(w: Sequence[int], x: Sequence[int]) -> list[int]:
    return [a * b for a in w for b in x]


def _lesser(up: int | None, down: int | None) -> int | None:
    return min((k for k in (up, down) if k is not None), default=None)


def bit_widths(
    lo: int,
    hi: int,
    *,
    signed: Hook = lambda lo, hi: 1 + max(width(lo), width(hi)),
    unsigned: Hook = lambda lo, hi: None if lo < 0 else max(1, hi.bit_length()),
    span: Hook = lambda lo, hi: max(1, (hi - lo).bit_length()),
) -> Values:
    if lo > hi:
        raise Rejected("invalid_parameter", "lo")
    return {
        "signed_bits": signed(lo, hi),
        "unsigned_bits": unsigned(lo, hi),
        "span_bits": span(lo, hi),
    }


def accumulator_range(
    weight: Array,
    bias: Array | None,
    x_lo: Array,
    x_hi: Array,
    *,
    low: Hook = lambda w, lo, hi: w * lo if w > 0 else w * hi,
    high: Hook = lambda w, lo, hi: w * hi if w > 0 else w * lo,
    size: Hook = lambda w, lo, hi: abs(w) * max(abs(lo), abs(hi)),
    bias_: Hook = same,
    bias_size: Hook = abs,
    fit: Hook = same,
) -> Values:
    los, his = np.asarray(x_lo).tolist(), np.asarray(x_hi).tolist()
    if any(lo > hi for lo, hi in zip(los, his)) or len(los) != np.shape(weight)[1]:
        raise Rejected("invalid_parameter", "x_lo")
    results: Values = {"lo": [], "hi": [], "mass": []}
    for k, row in enumerate(np.asarray(weight).tolist()):
        b = 0 if bias is None else int(bias[k])
        columns = list(zip(row, los, his))
        results["lo"].append(fit(sum(low(*column) for column in columns) + bias_(b)))
        results["hi"].append(fit(sum(high(*column) for column in columns) + bias_(b)))
        results["mass"].append(sum(size(*column) for column in columns) + bias_size(b))
    return {name: np.array(values, dtype=object) for name, values in results.items()}


def omega(
    n_max: int,
    n_weights: int,
    n_inputs: int,
    *,
    largest: Hook = lambda n: 2**n - 1,
    value: Hook = lambda n: 2**n - 1,
    divide: Hook = lambda a, b: a // b,
) -> Values:
    if min(n_max, n_weights, n_inputs) < 1:
        raise Rejected("invalid_parameter", "bits")
    return {"fan_in": divide(largest(n_max), value(n_weights) * value(n_inputs))}


def max_fan_in(
    weight_range: Sequence[int],
    input_range: Sequence[int],
    bias_range: Sequence[int],
    accumulator_range: Sequence[int],
    *,
    products: Hook = _products,
    room_up: Hook = lambda acc, b: acc[1] - b[1],
    room_down: Hook = lambda acc, b: b[0] - acc[0],
    divide: Hook = lambda a, b: a // b,
    choose: Hook = _lesser,
) -> Values:
    if any(lo > hi for lo, hi in (weight_range, input_range, bias_range, accumulator_range)):
        raise Rejected("invalid_parameter", "range")
    if bias_range[0] < accumulator_range[0] or bias_range[1] > accumulator_range[1]:
        raise Rejected("out_of_range", "bias")
    values = products(weight_range, input_range)
    p_min, p_max = min(values), max(values)
    up = divide(room_up(accumulator_range, bias_range), p_max) if p_max > 0 else None
    down = divide(room_down(accumulator_range, bias_range), -p_min) if p_min < 0 else None
    return {"fan_in": choose(up, down)}


def fan_in_mask(
    weight: Array,
    fan_in: int,
    *,
    rows: Hook = lambda w: w.reshape(len(w), -1),
    unrows: Hook = lambda mask, shape: mask.reshape(shape),
    size: Hook = abs,
    place: Hook = lambda size, i: (-size, i),
    count: Hook = lambda k, n_rows, n: k,
    kept: Hook = lambda order, k, sizes: order[:k],
    finish: Hook = lambda mask, weight: mask,
    check: bool = True,
) -> Values:
    weight = np.asarray(weight)
    if weight.ndim < 2 or weight.size == 0:
        raise Rejected("shape_mismatch", "weight")
    if check and fan_in < 0:
        raise Rejected("invalid_parameter", "fan_in")
    table = rows(weight)
    mask = np.zeros(table.shape, dtype=object)
    for k, row in enumerate(table.tolist()):
        sizes = [size(w) for w in row]
        order = sorted(range(len(row)), key=lambda i: place(sizes[i], i))
        mask[k, kept(order, count(fan_in, len(weight), len(row)), sizes)] = 1
    return {"mask": finish(unrows(mask, weight.shape), weight)}


# --- weights for a narrow accumulator ---------------------------------------------------------


def row_budgets(
    p: int,
    n: int,
    up: int,
    down: int,
    s: int,
    t: int,
    *,
    sides: Hook = lambda p, n, s, t: (t * p + s * n, s * p + t * n),
    divide: Hook = lambda a, b: a // b,
    least: Hook = min,
    parted: bool = True,
) -> tuple[int, int]:
    """P_max and N_max of one row."""
    needs = sides(p, n, s, t)
    if needs[0] <= up and needs[1] <= down:
        return p, n
    if parted and min(s, t) == 0:
        room_p, room_n = (up, down) if s == 0 else (down, up)
        return least(p, divide(room_p, s + t)), least(n, divide(room_n, s + t))
    binding = [(room, need) for room, need in zip((up, down), needs) if need > room]
    pairs = [(divide(p * room, need), divide(n * room, need)) for room, need in binding]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def sign_budgets(
    P: Array,
    N: Array,
    bias: Array | None,
    input_range: Sequence[int],
    bits: int,
    *,
    reach: Hook = lambda lo, hi: (max(0, -lo), max(0, hi)),
    rooms: Hook = lambda half, b: (half - 1 - b, half + b),
    bias_at: Hook = lambda b, k: b[k],
    row: Hook = row_budgets,
    finish: Hook = same,
    outside: Hook | None = None,
    check: bool = True,
) -> Values:
    if check and (not 2 <= bits <= 62 or input_range[0] > input_range[1]):
        raise Rejected("invalid_parameter", "bits or input_range")
    if len(P) != len(N) or (bias is not None and len(bias) != len(P)):
        raise Rejected("shape_mismatch", "bias")
    s, t = reach(*input_range)
    pairs = []
    for k, (p, n) in enumerate(zip(np.asarray(P).tolist(), np.asarray(N).tolist())):
        up, down = rooms(2 ** (int(bits) - 1), 0 if bias is None else int(bias_at(bias, k)))
        if min(up, down) < 0:
            if outside is None:
                raise Rejected("out_of_range", "bias")
            up, down = outside(up), outside(down)
        pairs.append(row(p, n, up, down, s, t))
    P_max, N_max = zip(*finish(pairs))
    return {"P_max": np.array(P_max, dtype=object), "N_max": np.array(N_max, dtype=object)}


def simplex_level(values: Sequence[Fraction], budget: int) -> Fraction:
    """The least tau >= 0 with sum max(v - tau, 0) <= budget."""
    descending = sorted(values, reverse=True)
    partial = [sum(descending[:k]) for k in range(1, len(descending) + 1)]
    return max(Fraction(0), *(Fraction(v - budget) / k for k, v in enumerate(partial, start=1)))


def nearest_row(
    values: Sequence[Fraction],
    budget: int,
    *,
    level: Hook = simplex_level,
    shifted: Hook = lambda v, tau: max(v - tau, 0),
    total_: Hook = lambda budget, reals: budget,
    place: Hook = lambda rest, i: (-rest, i),
) -> list[int]:
    """Largest remainder on the projection to a sum of `budget`."""
    tau = level(values, budget)
    reals = [shifted(v, tau) for v in values]
    codes = [int(r // 1) for r in reals]
    missing = total_(budget, reals) - sum(codes)
    order = sorted(range(len(codes)), key=lambda i: place(reals[i] - codes[i], i))
    for i in order[: max(missing, 0)]:
        codes[i] += 1
    return codes


def project(
    weight: Array,
    bias: Array | None,
    input_range: Sequence[int],
    bits: int,
    *,
    read: Hook = lambda v: Fraction(float(v)),
    round_: Hook = lambda v: round_value(v, "half_even"),
    budgets: Hook = sign_budgets,
    within: Hook = lambda codes, reals, budget: sum(codes) <= budget,
    fit: Hook = nearest_row,
    fits: Hook = lambda codes, reals: codes,
    order: Hook = same,
    join: Hook = lambda p, n: p - n,
    nan: float | None = None,
) -> Values:
    weight = np.asarray(weight)
    if np.isnan(weight).any():
        if nan is None:
            raise Rejected("not_a_number", "weight")
        weight = np.nan_to_num(weight, nan=nan)
    table = weight.reshape(len(weight), -1)
    sides = [[[max(read(sign * v), 0) for v in row] for row in table] for sign in (1, -1)]
    rounded = [[[round_(v) for v in row] for row in side] for side in sides]
    P, N = (np.array([sum(row) for row in side], dtype=object) for side in rounded)
    limits = budgets(P, N, bias, input_range, bits)
    P_max, N_max = order((limits["P_max"], limits["N_max"]))
    positive, negative = (
        [
            fits(codes, reals) if within(codes, reals, b) else fit(reals, b)
            for codes, reals, b in zip(codes_of, reals_of, limit)
        ]
        for codes_of, reals_of, limit in zip(rounded, sides, (P_max, N_max))
    )
    codes = [[join(p, n) for p, n in zip(*pair)] for pair in zip(positive, negative)]
    return {"codes": np.array(codes, dtype=object).reshape(weight.shape), **limits}


KERNELS.update(functions_in(globals()))


# --- what goes wrong: widths and bounds -------------------------------------------------------


def _log_bits(value: int, dtype: Hook) -> int:
    return int(np.ceil(np.log2(dtype(value) + dtype(1)))) if value > 0 else 0


# fmt: off
_b = of(bit_widths)
for _dtype in (np.float32, np.float64):
    _kind = _dtype.__name__
    _b(f"signed_log2_{_kind}", "float_logarithm", f"takes ceil(log2(|x| + 1)) in {_kind}",
       signed=lambda lo, hi, d=_dtype: 1 + max(_log_bits(max(v, ~v), d) for v in (lo, hi)))
    _b(f"unsigned_log2_{_kind}", "float_logarithm", f"takes ceil(log2(x + 1)) in {_kind}",
       unsigned=lambda lo, hi, d=_dtype: None if lo < 0 else max(1, _log_bits(hi, d)))
    _b(f"span_log2_{_kind}", "float_logarithm", f"takes ceil(log2(span + 1)) in {_kind}",
       span=lambda lo, hi, d=_dtype: max(1, _log_bits(hi - lo, d)))
_b("signed_log2_no_plus_one", "float_logarithm", "takes ceil(log2(max |x|)) + 1",
   signed=lambda lo, hi: 1 + math.ceil(math.log2(max(abs(lo), abs(hi)))) if lo or hi else 1)
_b("signed_by_magnitude", "bound", "counts the bits of max |x|",
   signed=lambda lo, hi: 1 + max(abs(lo), abs(hi)).bit_length())
_b("sign_bit_forgotten", "bound", "counts no sign bit",
   signed=lambda lo, hi: max(1, width(lo), width(hi)))
_b("signed_high_only", "bound", "looks at the highest value alone",
   signed=lambda lo, hi: 1 + width(hi))
_b("signed_low_only", "bound", "looks at the lowest value alone",
   signed=lambda lo, hi: 1 + width(lo))
_b("sign_bit_when_negative", "bound", "counts a sign bit only where there are negative values",
   signed=lambda lo, hi: max(1, (lo < 0) + max(width(lo), width(hi))))
_b("unsigned_of_zero", "bound", "takes 0 bits for the range [0, 0]",
   unsigned=lambda lo, hi: None if lo < 0 else hi.bit_length())
_b("unsigned_negative", "refusal", "gives a width for negative values",
   unsigned=lambda lo, hi: max(1, hi.bit_length()))
_b("unsigned_is_span", "bound", "takes the span for the unsigned width",
   unsigned=lambda lo, hi: None if lo < 0 else max(1, (hi - lo).bit_length()))
_b("span_of_zero", "bound", "takes 0 bits for one value",
   span=lambda lo, hi: (hi - lo).bit_length())
_b("span_plus_one", "bound", "counts the values instead of the span",
   span=lambda lo, hi: (hi - lo + 1).bit_length())
_b("span_int32", "overflow_narrow", "subtracts in 32 bits",
   span=lambda lo, hi: max(1, wrap(32)(hi - lo).bit_length()))
_b("span_is_signed", "bound", "gives the signed width for the span",
   span=lambda lo, hi: 1 + max(width(lo), width(hi)))

_r = of(accumulator_range)
_r("inputs_at_high", "bound", "takes every input at its highest",
   low=lambda w, lo, hi: w * hi, high=lambda w, lo, hi: w * hi)
_r("low_inputs_zero", "bound", "takes 0 for the lowest inputs",
   low=lambda w, lo, hi: min(0, w * hi), high=lambda w, lo, hi: max(0, w * hi))
_r("signs_ignored", "bound", "takes lowest inputs for the lowest sum",
   low=lambda w, lo, hi: w * lo, high=lambda w, lo, hi: w * hi)
_r("symmetric", "bound", "takes the mass for both ends",
   low=lambda w, lo, hi: -abs(w) * max(abs(lo), abs(hi)),
   high=lambda w, lo, hi: abs(w) * max(abs(lo), abs(hi)))
_r("bias_ignored", "bias", "leaves the bias out of the range", bias_=lambda b: 0)
_r("bias_magnitude", "bias", "adds |bias| to both ends", bias_=abs)
_r("mass_without_bias", "bias", "leaves the bias out of the mass", bias_size=lambda b: 0)
_r("mass_signed_bias", "bias", "adds the bias with its sign to the mass", bias_size=same)
_r("mass_of_high", "bound", "takes |highest input| in the mass",
   size=lambda w, lo, hi: abs(w) * abs(hi))
_r("mass_signed_weights", "bound", "adds weights with their sign in the mass",
   size=lambda w, lo, hi: w * max(abs(lo), abs(hi)))
_r("ends_int32", "overflow_narrow", "sums in 32 bits", fit=wrap(32))
_r("ends_int16", "overflow_narrow", "sums in 16 bits", fit=wrap(16))
_r("ends_float32", "float_accumulator", "sums in float32", fit=in_float(np.float32))
_r("ends_float64", "float_accumulator", "sums in float64", fit=in_float(np.float64))

_o = of(omega, max_fan_in)
_o("rounded_up", "bound", "rounds up", divide=lambda a, b: -(-a // b))
_o("float32", "float_precision", "divides in float32",
   divide=lambda a, b: int(np.float32(a) / np.float32(b)))
_o("float64", "float_precision", "divides in float64", divide=lambda a, b: int(float(a) / float(b)))

_o = of(omega)
_o("accumulator_values", "bound", "uses 2^n_max", largest=lambda n: 2**n)
_o("rounded", "bound", "rounds to the nearest", divide=lambda a, b: round(Fraction(a, b)))
_o("powers", "bound", "uses 2^n for weights and inputs", value=lambda n: 2**n)
_o("signed_accumulator", "bound", "takes one bit of the accumulator for the sign",
   largest=lambda n: 2 ** (n - 1) - 1)
_o("signed_values", "bound", "uses 2^(n-1) for weights and inputs", value=lambda n: 2 ** (n - 1))

_o = of(max_fan_in)
_o("bias_ignored", "bias", "leaves the bias out",
   room_up=lambda acc, b: acc[1], room_down=lambda acc, b: -acc[0])
_o("bias_low_only", "bias", "takes the lowest bias for both ends",
   room_up=lambda acc, b: acc[1] - b[0])
_o("bias_high_only", "bias", "takes the highest bias for both ends",
   room_down=lambda acc, b: b[1] - acc[0])
_o("upper_end_only", "bound", "looks at the upper end alone", choose=lambda up, down: up)
_o("lower_end_only", "bound", "looks at the lower end alone", choose=lambda up, down: down)
_o("looser_end", "bound", "takes the looser of the two ends",
   choose=lambda up, down: max((k for k in (up, down) if k is not None), default=None))
_o("zero_for_unlimited", "bound", "gives 0 where no fan-in overflows",
   choose=lambda up, down: min((k for k in (up, down) if k is not None), default=0))
_o("high_product_only", "bound", "takes w_hi x_hi for the largest product",
   products=lambda w, x: [w[0] * x[1], w[1] * x[1]])
_o("magnitudes", "bound", "takes max |w| max |x| for both ends",
   products=lambda w, x: [s * max(map(abs, w)) * max(map(abs, x)) for s in (-1, 1)])
_o("symmetric_accumulator", "bound", "takes the upper end for the lower one",
   room_down=lambda acc, b: b[0] + acc[1])

_k = of(fan_in_mask)
_k("per_layer", "bound", "keeps the largest of the layer, fan_in a row on average",
   rows=lambda w: w.reshape(1, -1), count=lambda k, n_rows, n: k * n_rows)
_k("per_column", "axis", "keeps fan_in weights of each column",
   rows=lambda w: w.reshape(len(w), -1).T, unrows=lambda mask, shape: mask.T.reshape(shape))
_k("per_last_axis", "axis", "counts each line of a kernel apart",
   rows=lambda w: w.reshape(-1, w.shape[-1]))
_k("channels_last", "layout", "breaks ties in channels-last order",
   rows=lambda w: np.moveaxis(w, 1, -1).reshape(len(w), -1),
   unrows=lambda mask, shape: np.moveaxis(mask.reshape(shape[0], *shape[2:], shape[1]), -1, 1))
_k("ties_later", "operand", "keeps the later of equals", place=lambda size, i: (-size, -i))
_k("ties_kept", "bound", "keeps all that equal the smallest kept",
   kept=lambda order, k, sizes: [i for i in order if k and sizes[i] >= sizes[order[:k][-1]]])
_k("ties_dropped", "operand", "drops all that equal the largest dropped",
   kept=lambda order, k, sizes: [i for i in order if not order[k:] or sizes[i] > sizes[order[k]]])
_k("by_value", "signedness", "keeps the largest values, not magnitudes", size=same)
_k("smallest", "operand", "keeps the smallest", place=lambda size, i: (size, i))
_k("first_columns", "operand", "keeps the first columns", place=lambda size, i: i)
_k("one_more", "bound", "keeps one more", count=lambda k, n_rows, n: k + 1)
_k("one_less", "bound", "keeps one less", count=lambda k, n_rows, n: max(k - 1, 0))
_k("zero_for_all", "bound", "takes a fan-in of 0 for no limit", count=lambda k, n_rows, n: k or n)
_k("beyond_row_wraps", "bound", "takes fan_in modulo the row", count=lambda k, n_rows, n: k % n)
_k("zeros_dropped", "operand", "masks zeros", finish=lambda mask, w: mask * (w != 0))
_k("inverted", "operand", "gives 1 where a weight goes", finish=lambda mask, w: 1 - mask)
_k("magnitude_int8", "overflow_narrow", "takes |w| in 8 bits", size=lambda w: wrap(8)(abs(w)))
_k("squares_int32", "overflow_narrow", "compares squares in 32 bits",
   size=lambda w: wrap(32)(w * w))
_k("float32", "float_precision", "compares in float32", size=lambda w: float(np.float32(abs(w))))
_k("first_row_for_all", "channel", "gives every row the mask of the first",
   finish=lambda mask, w: np.stack([mask[0]] * len(mask)))
_k("negative_accepted", "refusal", "reads a negative fan-in as a slice", check=False)
# fmt: on


# --- what goes wrong: weights for a narrow accumulator ----------------------------------------


_row, _fit = partial(partial, row_budgets), partial(partial, nearest_row)


def _budget(name: str, flag: str, description: str, **hooks: Any) -> None:
    """What goes wrong with budgets; projections inherit it."""
    of(sign_budgets)(name, flag, description, **hooks)
    of(project)(name, flag, description, budgets=partial(sign_budgets, **hooks))


def _cut(room: int) -> int:
    return max(room, 0)


def _own_factors(p: int, n: int, up: int, down: int, s: int, t: int) -> tuple[int, int]:
    """One factor for each side, from the end that it moves most."""
    if min(s, t) == 0:
        return row_budgets(p, n, up, down, s, t)
    needs = max(t * p + s * n, 1), max(s * p + t * n, 1)
    return min(p, p * up // needs[0]), min(n, n * down // needs[1])


# fmt: off
_budget("symmetric", "bound", "takes -(2^(bits-1) - 1) for the lowest accumulator",
    rooms=lambda half, b: (half - 1 - b, half - 1 + b))
_budget("one_end", "bound", "takes the upper end's room for both sides",
    rooms=lambda half, b: (half - 1 - b,) * 2, outside=_cut)
_budget("all_bits", "bound", "takes 2^bits for 2^(bits-1)",
    rooms=lambda half, b: (2 * half - 1 - b, 2 * half + b))
_budget("bias_ignored", "bias", "leaves the bias out", rooms=lambda half, b: (half - 1, half))
_budget("bias_sign", "bias", "adds the bias to the wrong side",
    rooms=lambda half, b: (half - 1 + b, half - b), outside=_cut)
_budget("bias_magnitude", "bias", "takes |bias| from both ends",
    rooms=lambda half, b: (half - 1 - abs(b), half - abs(b)), outside=_cut)
_budget("first_bias", "channel", "gives every row the first bias", bias_at=lambda b, k: b[0])
_budget("mass", "bound", "limits P + N by one budget, as for sum |w|",
    row=_row(parted=False, sides=lambda p, n, s, t: ((p + n) * max(s, t),) * 2))
_budget("unsigned_inputs", "signedness", "takes 0 for the lowest input",
    reach=lambda lo, hi: (0, max(0, hi)))
_budget("symmetric_inputs", "bound", "takes max |x| for both ends of the inputs",
    reach=lambda lo, hi: (max(abs(lo), abs(hi)),) * 2)
_budget("ends_swapped", "operand", "exchanges the ends of the inputs",
    reach=lambda lo, hi: (max(0, hi), max(0, -lo)))
_budget("range_not_widened", "bound", "credits a range without 0 for its offset",
    reach=lambda lo, hi: (-lo, hi) if hi > 0 else (max(0, -lo), 0), row=_row(parted=False))
_budget("rounded_up", "bound", "rounds budgets up", row=_row(divide=lambda a, b: -(-a // b)))
_budget("rounded", "bound", "rounds budgets to the nearest",
    row=_row(divide=lambda a, b: round(Fraction(a, b))))
_budget("shrinks_what_fits", "bound", "raises P and N to their budgets",
    row=_row(least=lambda want, room: room))
_budget("upper_end_only", "bound", "looks at the upper end alone where both sides share it",
    row=lambda p, n, up, down, s, t: row_budgets(p, n, up, 2**80 if s and t else down, s, t))
_budget("lower_end_only", "bound", "looks at the lower end alone where both sides share it",
    row=lambda p, n, up, down, s, t: row_budgets(p, n, 2**80 if s and t else up, down, s, t))
_budget("first_row", "channel", "gives every row the budgets of the first",
    finish=lambda pairs: [pairs[0]] * len(pairs))
_budget("bias_saturates", "refusal", "cuts a bias that does not fit off", outside=_cut)

_g = of(sign_budgets)
_g("own_factors", "bound", "shrinks P for the upper and N for the lower end alone",
   row=_own_factors)
for _dtype in (np.float32, np.float64):
    _g(f"{_dtype.__name__}_quotient", "float_precision", f"divides in {_dtype.__name__}",
       row=_row(divide=lambda a, b, d=_dtype: int(np.floor(d(a) / d(b)))))
_g("products_int32", "overflow_narrow", "compares sums of 32 bits",
   row=_row(sides=lambda p, n, s, t: (wrap(32)(t * p + s * n), wrap(32)(s * p + t * n))))
_g("widths_unchecked", "refusal", "accepts any width and any order of the inputs", check=False)

_p = of(project)
for _mode in ("half_up", "half_down", "toward_zero", "ceil"):
    _p(f"rounds_{_mode}", "rounding_tie", f"rounds magnitudes {_mode}",
       round_=partial(round_value, mode=_mode))
_p("sides_swapped", "operand", "exchanges the two budgets", order=lambda limits: limits[::-1])
_p("one_side", "signedness", "projects the positive weights alone",
   order=lambda limits: (limits[0], [2**70] * len(limits[1])))
_p("signs_lost", "signedness", "returns magnitudes", join=lambda p, n: p + n)
_p("fits_by_reals", "rounding_order", "compares the sum before rounding with the budget",
   within=lambda codes, reals, budget: sum(reals) <= budget)
_p("remainders_everywhere", "rounding_order", "rounds by largest remainder where the row fits too",
   fits=lambda codes, reals: nearest_row(reals, round(sum(reals))))
_p("total_of_reals", "bound", "fills up to the rounded sum of the reals, not to the budget",
   fit=_fit(total_=lambda budget, reals: min(budget, round(sum(reals)))))
_p("remainders_dropped", "bound", "rounds the projection down and leaves budget unused",
   fit=_fit(total_=lambda budget, reals: 0))
_p("projection_rounded", "bound", "rounds each weight of the projection by itself",
   fit=lambda values, budget: [round(max(v - simplex_level(values, budget), 0)) for v in values])
_p("ties_later", "operand", "gives the later of equal remainders the unit",
   fit=_fit(place=lambda rest, i: (-rest, -i)))
_p("smallest_remainder", "operand", "gives the smallest remainder the unit",
   fit=_fit(place=lambda rest, i: (rest, i)))
_p("first_columns", "operand", "gives the first weights the units",
   fit=_fit(place=lambda rest, i: i))
_p("scaled", "operand", "scales the weights down instead of subtracting",
   fit=lambda reals, room: nearest_row([v * min(1, room / sum(reals)) for v in reals], room))
_p("mean_excess", "operand", "subtracts the mean excess of all weights once",
   fit=_fit(level=lambda values, budget: max(0, (sum(values) - budget) / len(values))))
_p("clipped_at_largest", "operand", "clips each weight at the budget",
   fit=lambda values, budget: [min(round(v), budget) for v in values])
for _dtype in (np.float64, np.float32):
    _p(f"tau_{_dtype.__name__}", "float_precision", f"subtracts tau in {_dtype.__name__}",
       fit=_fit(level=lambda values, budget, d=_dtype: d(float(simplex_level(values, budget))),
                shifted=lambda v, tau, d=_dtype: max(d(float(v)) - tau, d(0))))
_p("weights_float32", "float_precision", "reads weights in float32",
   read=lambda v: Fraction(float(np.float32(v))))
_p("per_layer", "bound", "gives every row the budgets of the first",
   order=lambda limits: [[side[0]] * len(side) for side in limits])
_p("nan_is_zero", "refusal", "takes NaN for 0", nan=0.0)
# fmt: on
