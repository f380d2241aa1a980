"""The operations a third time, as an implementer would write them, with a hook at every step.

Without hooks each kernel is right; a mutant replaces one hook (see `mutants`).  Arrays are small,
so integers are Python integers in object arrays, which never overflow unless a hook makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np

from refqnn.conformance.suite import Rejected

__all__ = ["KERNELS", "saturate", "wrap"]

Hook = Callable[..., Any]
Results = dict[str, Any]


# --- steps ------------------------------------------------------------------------------------


def same(value: Any, *_: Any) -> Any:
    """The hook that changes nothing."""
    return value


def wrap(bits: int, signed: bool = True) -> Hook:
    """An integer as `bits` bits keep it."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    return lambda value: (value - lowest) % 2**bits + lowest


def saturate(bits: int, signed: bool = True) -> Hook:
    """An integer limited to `bits` bits."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    return lambda value: min(max(value, lowest), lowest + 2**bits - 1)


def in_float(dtype: Any) -> Hook:
    """An integer as a float register keeps it."""
    return lambda value: int(dtype(value))


def round_value(x: Any, mode: str) -> int:
    """Round an int, float or Fraction, finite."""
    exact = Fraction(x.item() if isinstance(x, np.generic) else x)
    lower = exact.__floor__()
    twice = 2 * (exact - lower)
    if twice == 0:
        return lower
    up = {
        "floor": False,
        "ceil": True,
        "toward_zero": lower < 0,
        "half_even": twice > 1 or (twice == 1 and lower % 2 == 1),
        "half_up": twice >= 1,
        "half_down": twice > 1,
        "half_away": twice > 1 or (twice == 1 and lower >= 0),
        "half_toward_zero": twice > 1 or (twice == 1 and lower < 0),
    }
    return lower + up[mode]


def ends(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """q_min, q_max."""
    if not 1 <= bits <= 32 or (narrow and bits == 1):
        raise Rejected("invalid_parameter", "bits")
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def clamp(value: Any, lowest: int, highest: int) -> Any:
    """value, or the end it lies beyond."""
    return min(max(value, lowest), highest)


def channel_value(values: Any, index: tuple[int, ...], axis: int | None, shape: Any) -> Any:
    """The entry of a per-channel vector, or the one value there is."""
    flat = np.asarray(values).reshape(-1)
    if flat.size == 1 or axis is None:
        return flat[0].item() if flat.dtype.kind in "iO" else flat[0]
    entry = flat[index[axis % len(shape)]]
    return entry.item() if flat.dtype.kind == "i" else entry


def each(function: Callable[[Any, tuple[int, ...]], Any], array: Any) -> Any:
    """function(value, index) over an array."""
    array = np.asarray(array)
    result = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        value = array[index]
        result[index] = function(value.item() if array.dtype.kind == "i" else value, index)
    return result


# --- rounding, formats, doors -----------------------------------------------------------------


def round_ratio(
    numerator: Any,
    denominator: int,
    rounding: str,
    *,
    ratio: Hook = Fraction,
    round_: Hook = round_value,
) -> Results:
    if denominator <= 0:
        raise Rejected("invalid_parameter", "denominator")
    return {"rounded": each(lambda n, _: round_(ratio(n, denominator), rounding), numerator)}


def integer_format(bits: int, signed: bool, narrow: bool, *, ends: Hook = ends) -> Results:
    q_min, q_max = ends(bits, signed, narrow)
    return {"q_min": q_min, "q_max": q_max, "levels": q_max - q_min + 1}


def check_codes(
    codes: Any,
    bits: int,
    signed: bool,
    narrow: bool,
    *,
    ends: Hook = ends,
    outside: Hook | None = None,
) -> Results:
    q_min, q_max = ends(bits, signed, narrow)

    def check(code: int, _: Any) -> int:
        if q_min <= code <= q_max:
            return code
        if outside is None:
            raise Rejected("out_of_range", "code")
        return int(outside(code, q_min, q_max))

    return {"codes": each(check, codes)}


def quantize(
    x: Any,
    scale: Any,
    zero_point: Any,
    bits: int,
    signed: bool,
    narrow: bool,
    rounding: str,
    axis: int | None,
    precision: str,
    zero_point_first: bool,
    *,
    ends: Hook = ends,
    convert: Hook = lambda v, dtype: dtype(v),
    convert_scale: Hook = lambda v, dtype: dtype(v),
    divide: Hook = lambda v, s, dtype: dtype(v / s),
    scale_at: Hook = channel_value,
    zero_at: Hook = channel_value,
    round_: Hook = round_value,
    first: Hook = same,
    infinite: Hook = lambda v, lowest, highest: highest if v > 0 else lowest,
    integer: Hook = same,
    clip: Hook = lambda q, z, lowest, highest: clamp(q + z, lowest, highest),
    nan: Hook | None = None,
) -> Results:
    q_min, q_max = ends(bits, signed, narrow)
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

    def code(value: Any, index: tuple[int, ...]) -> int:
        if np.isnan(value):
            if nan is None:
                raise Rejected("not_a_number", "NaN")
            return int(nan(q_min, q_max))
        s = convert_scale(scale_at(scale, index, axis, x.shape), dtype)
        z = zero_at(zero_point, index, axis, x.shape)
        scaled = divide(convert(value, dtype), s, dtype)
        if np.isinf(scaled):
            return int(infinite(scaled, q_min, q_max))
        if first(zero_point_first):
            with_zero = type(scaled)(scaled + type(scaled)(z))
            return int(clip(integer(round_(with_zero, rounding)), 0, q_min, q_max))
        return int(clip(integer(round_(scaled, rounding)), z, q_min, q_max))

    with np.errstate(all="ignore"):
        return {"codes": each(code, x)}


def binarize(
    x: Any, *, sign: Hook = lambda v: 1 if v >= 0 else -1, nan: int | None = None
) -> Results:
    def code(value: Any, _: Any) -> int:
        if np.isnan(value):
            if nan is None:
                raise Rejected("not_a_number", "NaN")
            return nan
        return int(sign(value))

    return {"codes": each(code, x)}


def dequantize(
    codes: Any,
    scale: Any,
    zero_point: Any,
    bits: int,
    signed: bool,
    narrow: bool,
    axis: int | None,
    precision: str,
    *,
    check: bool = True,
    code_: Hook = same,
    zero_: Hook = same,
    scale_at: Hook = channel_value,
    zero_at: Hook = channel_value,
    value: Hook = lambda q, z, s, dtype: dtype(dtype(q - z) * dtype(s)),
) -> Results:
    q_min, q_max = ends(bits, signed, narrow)
    dtype = np.dtype(precision).type
    codes = np.asarray(codes)
    if check and (codes.min() < q_min or codes.max() > q_max):
        raise Rejected("out_of_range", "codes")

    def real(code: int, index: tuple[int, ...]) -> float:
        s = scale_at(scale, index, axis, codes.shape)
        z = zero_at(zero_point, index, axis, codes.shape)
        return float(value(code_(code, bits), zero_(z), s, dtype))

    with np.errstate(all="ignore"):
        return {"x": each(real, codes).astype(np.float64)}


# --- requantize -------------------------------------------------------------------------------


def requantize_thresholds(
    acc: Any,
    thresholds: Any,
    bits: int,
    signed: bool,
    narrow: bool,
    *,
    ends: Hook = ends,
    row_at: Hook = lambda rows, index: rows[index[1] if len(rows) > 1 else 0],
    acc_: Hook = same,
    threshold_: Hook = same,
    reached: Hook = lambda a, t: a >= t,
    count: Hook = lambda flags: sum(flags),
    start: Hook = lambda q_min, q_max: q_min,
    check: bool = True,
) -> Results:
    q_min, q_max = ends(bits, signed, narrow)
    rows = np.asarray(thresholds).tolist()
    if len(rows[0]) != q_max - q_min and check:
        raise Rejected("shape_mismatch", "thresholds")
    if check and any(a > b for row in rows for a, b in pairwise(row)):
        raise Rejected("invalid_parameter", "thresholds")
    if len(rows) > 1 and np.shape(acc)[1] != len(rows):
        raise Rejected("shape_mismatch", "channels")

    def code(value: int, index: tuple[int, ...]) -> int:
        row = row_at(rows, index)
        passed = [reached(acc_(value), threshold_(t)) for t in row]
        return int(start(q_min, q_max) + count(passed))

    return {"codes": each(code, acc)}


def requantize_scale(
    acc: Any,
    scale_in: Any,
    scale_out: Any,
    bias: Any,
    zero_point: int,
    bits: int,
    signed: bool,
    narrow: bool,
    clip: tuple[int, int] | None,
    rounding: str,
    *,
    channel: Hook = lambda index: index[1],
    real: Hook = lambda a, s_in, s_out, b: (a * Fraction(s_in) + Fraction(b)) / Fraction(s_out),
    before: Hook = same,
    round_: Hook = round_value,
    finish: Hook = lambda q, z, b: q + z,
    limits: Hook = lambda clip, ends, z: ends if clip is None else clip,
    last: Hook = lambda q, lowest, highest: clamp(q, lowest, highest),
) -> Results:
    ends_ = ends(bits, signed, narrow)
    if any((np.asarray(s) <= 0).any() for s in (scale_in, scale_out)):
        raise Rejected("invalid_parameter", "scale")

    def code(value: int, index: tuple[int, ...]) -> int:
        c = channel(index)
        s_in, s_out, b = (
            channel_value(v, (c,), 0, (1,)).item() for v in (scale_in, scale_out, bias)
        )
        rounded = round_(before(real(value, s_in, s_out, b), zero_point), rounding)
        return int(last(finish(rounded, zero_point, b / s_out), *limits(clip, ends_, zero_point)))

    return {"codes": each(code, acc)}


def requantize_shift(
    acc: Any,
    shift: int,
    offset: Any,
    zero_point: int,
    bits: int,
    signed: bool,
    narrow: bool,
    rounding: str,
    *,
    ends: Hook = ends,
    channel: Hook = lambda index: index[1],
    add_offset: Hook = lambda a, b, s: a + b,
    shifted: Hook = lambda a, s, mode: round_value(Fraction(a, 2**s), mode),
    finish: Hook = lambda q, z, b, s: q + z,
    last: Hook = lambda q, lowest, highest: clamp(q, lowest, highest),
) -> Results:
    q_min, q_max = ends(bits, signed, narrow)
    if not 0 <= shift <= 62:
        raise Rejected("invalid_parameter", "shift")

    def code(value: int, index: tuple[int, ...]) -> int:
        b = channel_value(offset, (channel(index),), 0, (1,))
        rounded = shifted(add_offset(value, b, shift), shift, rounding)
        return int(last(finish(rounded, zero_point, b, shift), q_min, q_max))

    return {"codes": each(code, acc)}


def requantize_multiplier(
    acc: Any,
    mantissa: Any,
    shift: Any,
    zero_point: int,
    bits: int,
    signed: bool,
    narrow: bool,
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
    last: Hook = lambda q, z, lowest, highest: clamp(q + z, lowest, highest),
) -> Results:
    q_min, q_max = ends(bits, signed, narrow)
    mantissas, shifts = np.asarray(mantissa).reshape(-1), np.asarray(shift).reshape(-1)
    if mantissas.min() <= 0 or mantissas.max() >= 2**32 or shifts.min() < 0 or shifts.max() > 62:
        raise Rejected("invalid_parameter", "multiplier")

    def code(value: int, index: tuple[int, ...]) -> int:
        m, s = (channel_value(v, (channel(index),), 0, (1,)) for v in (mantissa, shift))
        mode = first(first_rounding)
        if mode is None:
            q = round_(Fraction(multiply(value, m), 2**s), rounding)
        else:
            f = at(first_shift)
            p = round_first(Fraction(multiply(value, m), 2**f), mode)
            q = round_(Fraction(p) / Fraction(2) ** (s - f), rounding)
        return int(last(q, zero_point, q_min, q_max))

    return {"codes": each(code, acc)}


# --- sums -------------------------------------------------------------------------------------


def total(terms: Sequence[int], fit: Hook) -> int:
    """The sum in a register that `fit` describes."""
    acc = 0
    for term in terms:
        acc = fit(acc + term)
    return acc


def linear(
    x: Any,
    weight: Any,
    bias: Any,
    x_zero_point: int,
    weight_zero_point: Any,
    *,
    fit: Hook = same,
    read_x: Hook = same,
    read_w: Hook = same,
    product_: Hook = lambda w, v, z_w, z_x: (w - z_w) * (v - z_x),
    zero_at: Hook = lambda z, k: channel_value(z, (k,), 0, (1,)),
    bias_at: Hook = lambda b, k: b[k],
    inputs: Hook = range,
    weights: Hook = same,
) -> Results:
    weight, x = weights(np.asarray(weight)), np.asarray(x)
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise Rejected("shape_mismatch", "shape")
    acc = np.empty((len(x), len(weight)), dtype=object)
    for n, k in np.ndindex(acc.shape):
        z_w = zero_at(weight_zero_point, k)
        terms = [
            product_(read_w(int(weight[k, i])), read_x(int(x[n, i])), z_w, x_zero_point)
            for i in inputs(x.shape[1])
        ]
        terms += [] if bias is None else [int(bias_at(bias, k))]
        acc[n, k] = total(terms, fit)
    return {"acc": acc}


def accumulate(
    x: Any,
    weight: Any,
    bias: Any,
    accumulator_bits: int,
    accumulator_signed: bool,
    overflow: str,
    when: str,
    order: str,
    *,
    bits_: Hook = same,
    signed_: Hook = same,
    overflow_: Hook = same,
    when_: Hook = same,
    order_: Hook = same,
    term_: Hook = same,
    fit_: Hook = same,
    with_bias: Hook = same,
) -> Results:
    if not 1 <= accumulator_bits <= 64:
        raise Rejected("invalid_parameter", "bits")
    weight, x = np.asarray(weight), np.asarray(x)
    make = {"wrap": wrap, "saturate": saturate}[overflow_(overflow)]
    fit = fit_(make(bits_(accumulator_bits), signed_(accumulator_signed)))
    acc = np.empty((len(x), len(weight)), dtype=object)
    for n, k in np.ndindex(acc.shape):
        products = [term_(int(w) * int(v), fit) for w, v in zip(weight[k], x[n])]
        last = [] if bias is None else with_bias([int(bias[k])])
        after = 0 if bias is None or last else int(bias[k])
        how = order_(order)
        terms = last + products if how == "bias_first" else products + last
        terms = terms[::-1] if how == "reverse" else terms
        at_end = when_(when, overflow) == "end"
        acc[n, k] = (fit(sum(terms)) if at_end else total(terms, fit)) + after
    return {"acc": acc}


def conv2d(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
    groups: int,
    pad_code: int,
    *,
    weights: Hook = same,
    images: Hook = same,
    strides: Hook = same,
    paddings: Hook = same,
    dilations: Hook = same,
    pad_: Hook = same,
    fit: Hook = same,
    positions_: Hook = lambda room, s: room // s + 1,
    channel: Hook = lambda k, c, per_group, outs_per_group, groups: (
        k // outs_per_group * per_group + c
    ),
    channels: Hook = range,
    bias_at: Hook = lambda b, k: b[k],
    sample: Hook = same,
) -> Results:
    weight, x = weights(np.asarray(weight)), images(np.asarray(x))
    stride, padding, dilation = strides(stride), paddings(padding), dilations(dilation)
    out, per_group, *kernel = weight.shape
    if groups < 1 or out % groups or x.ndim != 4 or x.shape[1] != per_group * groups:
        raise Rejected("shape_mismatch", "shape")
    pads = ((0, 0), (0, 0), *padding)
    padded = np.pad(x.astype(object), pads, constant_values=pad_(pad_code))
    rooms = [p - d * (k - 1) - 1 for p, d, k in zip(padded.shape[2:], dilation, kernel)]
    if min(rooms) < 0:
        raise Rejected("shape_mismatch", "window")
    positions = [positions_(room, s) for room, s in zip(rooms, stride)]
    acc = np.empty((len(x), out, *positions), dtype=object)
    for n, k, i, j in np.ndindex(acc.shape):
        terms = []
        for c, u, v in product(channels(per_group), range(kernel[0]), range(kernel[1])):
            h = i * stride[0] + u * dilation[0]
            w = j * stride[1] + v * dilation[1]
            source = channel(k, c, per_group, out // groups, groups)
            inside = h < padded.shape[2] and w < padded.shape[3]
            value = padded[sample(n), source, h, w] if inside else 0
            terms.append(int(weight[k, c, u, v]) * int(value))
        terms += [] if bias is None else [int(bias_at(bias, k))]
        acc[n, k, i, j] = total(terms, fit)
    return {"acc": acc}


def conv1d(
    x: Any,
    weight: Any,
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
    **rest: Any,
) -> Results:
    """conv2d of height 1."""
    results = conv2d(
        np.asarray(x)[:, :, None, :],
        np.asarray(weight)[:, :, None, :],
        stride=(1, *stride),
        padding=((0, 0), *padding),
        dilation=(1, *dilation),
        **rest,
    )
    return {"acc": results["acc"][:, :, 0, :]}


def _windows(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Any,
    pad: Any,
    function: Hook,
    *,
    kernels: Hook = same,
    strides: Hook = same,
    paddings: Hook = same,
    positions_: Hook = lambda room, s: room // s + 1,
) -> Any:
    x = np.asarray(x)
    if any(max(pair) >= k for pair, k in zip(padding, kernel)):
        raise Rejected("invalid_parameter", "padding")
    kernel, padding = kernels(kernel), paddings(padding)
    stride = strides(stride, kernel)
    padded = np.pad(x.astype(object), ((0, 0), (0, 0), *padding), constant_values=pad)
    rooms = [p - k for p, k in zip(padded.shape[2:], kernel)]
    if min(rooms) < 0:
        raise Rejected("shape_mismatch", "window")
    positions = [positions_(room, s) for room, s in zip(rooms, stride)]
    y = np.empty((*x.shape[:2], *positions), dtype=object)
    for n, c, i, j in np.ndindex(y.shape):
        h, w = i * stride[0], j * stride[1]
        y[n, c, i, j] = function(list(padded[n, c, h : h + kernel[0], w : w + kernel[1]].flat))
    return y


def max_pool2d(
    x: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    *,
    pad: Any = None,
    best: Hook = max,
    **hooks: Hook,
) -> Results:
    def greatest(values: list[Any]) -> int:
        return int(best([v for v in values if v is not None]))

    return {"y": _windows(x, kernel, stride, padding, pad, greatest, **hooks)}


def sum_pool2d(
    x: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    pad_code: int,
    *,
    pad_: Hook = same,
    fit: Hook = same,
    finish: Hook = same,
    **hooks: Hook,
) -> Results:
    def summed(values: list[int]) -> int:
        return int(finish(total(values, fit), len(values)))

    return {"acc": _windows(x, kernel, stride, padding, pad_(pad_code), summed, **hooks)}


def global_sum_pool(
    x: Any, *, fit: Hook = same, values: Hook = lambda v: v.reshape(-1), finish: Hook = same
) -> Results:
    x = np.asarray(x).astype(object)
    if x.ndim < 3:
        raise Rejected("shape_mismatch", "shape")
    acc = np.empty(x.shape[:2], dtype=object)
    for n, c in np.ndindex(acc.shape):
        flat = values(x[n, c]).reshape(-1)
        acc[n, c] = int(finish(total(flat.tolist(), fit), flat))
    return {"acc": acc}


# --- joining and moving -----------------------------------------------------------------------


def add(
    operands: Sequence[Any],
    multipliers: Sequence[int] | None,
    *,
    factors: Hook = same,
    used: Hook = same,
    fit: Hook = same,
) -> Results:
    if len({np.shape(v) for v in operands}) != 1:
        raise Rejected("shape_mismatch", "shapes")
    given = (1,) * len(operands) if multipliers is None else tuple(multipliers)
    if len(given) != len(operands):
        raise Rejected("shape_mismatch", "multipliers")
    pairs = used(list(zip(factors(given), operands)))

    def acc(_: Any, index: tuple[int, ...]) -> int:
        return total([m * int(x[index]) for m, x in pairs], fit)

    return {"acc": each(acc, operands[0])}


def concat(
    operands: Sequence[Any],
    *,
    order: Hook = same,
    join: Hook = lambda arrays: np.concatenate(arrays, axis=1),
) -> Results:
    if len({(len(v), np.shape(v)[2:]) for v in operands}) != 1:
        raise Rejected("shape_mismatch", "shapes")
    return {"y": join(order([np.asarray(v) for v in operands]))}


def flatten(x: Any, *, axes: Hook = same) -> Results:
    x = axes(np.asarray(x))
    return {"y": x.reshape(len(x), -1)}


def reshape(x: Any, shape: Sequence[int], *, order: Any = "C", axes: Hook = same) -> Results:
    x = axes(np.asarray(x))
    if x.size != len(x) * prod(shape):
        raise Rejected("shape_mismatch", "shape")
    return {"y": x.reshape((len(x), *shape), order=order)}


def lookup(
    x: Any,
    table: Any,
    lo: int,
    *,
    column: Hook = lambda v, lo, entries: v - lo,
    row: Hook = lambda index: index[1],
    outside: Hook | None = None,
) -> Results:
    table = np.asarray(table)
    entries = table.shape[1]
    if len(table) > 1 and np.shape(x)[1] != len(table):
        raise Rejected("shape_mismatch", "channels")

    def value(v: int, index: tuple[int, ...]) -> int:
        i = column(v, lo, entries)
        if not 0 <= i < entries:
            if outside is None:
                raise Rejected("out_of_range", "table")
            i = outside(i, entries)
        return int(table[row(index) if len(table) > 1 else 0, i])

    return {"y": each(value, x)}


# --- widths and bounds ------------------------------------------------------------------------


def _signed_bits(lo: int, hi: int) -> int:
    return 1 + max((v if v >= 0 else ~v).bit_length() for v in (lo, hi))


def _corners(w: Sequence[int], x: Sequence[int]) -> list[int]:
    return [a * b for a in w for b in x]


def _lesser(up: int | None, down: int | None) -> int | None:
    return min((k for k in (up, down) if k is not None), default=None)


def bit_widths(
    lo: int,
    hi: int,
    *,
    signed: Hook = _signed_bits,
    unsigned: Hook = lambda lo, hi: None if lo < 0 else max(1, hi.bit_length()),
    span: Hook = lambda lo, hi: max(1, (hi - lo).bit_length()),
) -> Results:
    if lo > hi:
        raise Rejected("invalid_parameter", "lo")
    return {
        "signed_bits": signed(lo, hi),
        "unsigned_bits": unsigned(lo, hi),
        "span_bits": span(lo, hi),
    }


def accumulator_range(
    weight: Any,
    bias: Any,
    x_lo: Any,
    x_hi: Any,
    *,
    low: Hook = lambda w, lo, hi: w * lo if w > 0 else w * hi,
    high: Hook = lambda w, lo, hi: w * hi if w > 0 else w * lo,
    size: Hook = lambda w, lo, hi: abs(w) * max(abs(lo), abs(hi)),
    bias_: Hook = same,
    bias_size: Hook = abs,
    fit: Hook = same,
) -> Results:
    los, his = np.asarray(x_lo).tolist(), np.asarray(x_hi).tolist()
    if any(lo > hi for lo, hi in zip(los, his)) or len(los) != np.shape(weight)[1]:
        raise Rejected("invalid_parameter", "x_lo")
    results: Results = {"lo": [], "hi": [], "mass": []}
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
) -> Results:
    if min(n_max, n_weights, n_inputs) < 1:
        raise Rejected("invalid_parameter", "bits")
    return {"fan_in": divide(largest(n_max), value(n_weights) * value(n_inputs))}


def max_fan_in(
    weight_range: Sequence[int],
    input_range: Sequence[int],
    bias_range: Sequence[int],
    accumulator_range: Sequence[int],
    *,
    products: Hook = _corners,
    room_up: Hook = lambda acc, b: acc[1] - b[1],
    room_down: Hook = lambda acc, b: b[0] - acc[0],
    divide: Hook = lambda a, b: a // b,
    choose: Hook = _lesser,
) -> Results:
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
    weight: Any,
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
) -> Results:
    weight = np.asarray(weight)
    if weight.ndim < 2 or weight.size == 0 or (check and fan_in < 0):
        raise Rejected("invalid_parameter", "weight or fan_in")
    table = rows(weight)
    mask = np.zeros(table.shape, dtype=object)
    for k, row in enumerate(table.tolist()):
        sizes = [size(w) for w in row]
        order = sorted(range(len(row)), key=lambda i: place(sizes[i], i))
        mask[k, kept(order, count(fan_in, len(weight), len(row)), sizes)] = 1
    return {"mask": finish(unrows(mask, weight.shape), weight)}


# --- weights for a narrow accumulator ---------------------------------------------------------


def _reach(lo: int, hi: int) -> tuple[int, int]:
    return max(0, -lo), max(0, hi)


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
    P: Any,
    N: Any,
    bias: Any,
    input_range: Sequence[int],
    bits: int,
    *,
    reach: Hook = _reach,
    rooms: Hook = lambda bits, b: (2 ** (bits - 1) - 1 - b, 2 ** (bits - 1) + b),
    bias_at: Hook = lambda b, k: b[k],
    row: Hook = row_budgets,
    finish: Hook = same,
    outside: Hook | None = None,
    check: bool = True,
) -> Results:
    if check and (not 2 <= bits <= 62 or input_range[0] > input_range[1]):
        raise Rejected("invalid_parameter", "bits or input_range")
    if len(P) != len(N) or (bias is not None and len(bias) != len(P)):
        raise Rejected("shape_mismatch", "bias")
    s, t = reach(*input_range)
    pairs = []
    for k, (p, n) in enumerate(zip(np.asarray(P).tolist(), np.asarray(N).tolist())):
        up, down = rooms(int(bits), 0 if bias is None else int(bias_at(bias, k)))
        if min(up, down) < 0:
            if outside is None:
                raise Rejected("out_of_range", "bias")
            up, down = outside(up), outside(down)
        pairs.append(row(p, n, up, down, s, t))
    P_max, N_max = zip(*finish(pairs))
    return {"P_max": np.array(P_max, dtype=object), "N_max": np.array(N_max, dtype=object)}


def simplex_level(values: Sequence[Any], budget: int) -> Any:
    """The least tau >= 0 with sum max(v - tau, 0) <= budget."""
    descending = sorted(values, reverse=True)
    partial = [sum(descending[:k]) for k in range(1, len(descending) + 1)]
    return max(0, *(Fraction(v - budget) / k for k, v in enumerate(partial, start=1)))


def nearest_row(
    values: Sequence[Any],
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
    weight: Any,
    bias: Any,
    input_range: Sequence[int],
    bits: int,
    *,
    rows: Hook = same,
    read: Hook = lambda v: Fraction(float(v)),
    round_: Hook = lambda v: round_value(v, "half_even"),
    budgets: Hook = sign_budgets,
    within: Hook = lambda codes, reals, budget: sum(codes) <= budget,
    fit: Hook = nearest_row,
    fits: Hook = lambda codes, reals: codes,
    order: Hook = same,
    join: Hook = lambda p, n: p - n,
    nan: float | None = None,
) -> Results:
    weight = np.asarray(weight)
    if np.isnan(weight).any():
        if nan is None:
            raise Rejected("not_a_number", "weight")
        weight = np.nan_to_num(weight, nan=nan)
    table = rows(weight.reshape(len(weight), -1))
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


# --- networks ---------------------------------------------------------------------------------


def network(
    codes: Any,
    network: Mapping[str, Any],
    *,
    inputs_of: Hook = lambda node, before: node["inputs"],
    stored: Hook = lambda values, operation: values,
    batch: Hook = same,
    check: bool = True,
) -> Results:
    fmt = network["input_format"]
    if check:
        check_codes(codes, fmt["bits"], fmt["signed"], fmt["narrow"])
    if np.shape(codes)[1:] != tuple(network["input_shape"]):
        raise Rejected("shape_mismatch", "shape")
    values: Results = {"input": batch(np.asarray(codes))}
    before = "input"
    for node in network["nodes"]:
        operation = node["operation"]
        operands = [values[name] for name in inputs_of(node, before)]
        several = operation in ("add", "concat")
        given = "acc" if operation.startswith("requantize") else "x"
        data = {"operands": operands} if several else {given: operands[0]}
        (result,) = KERNELS[operation](**data, **node["parameters"]).values()
        values[node["name"]] = stored(result, operation)
        before = node["name"]
    del values["input"]
    return {"output": values[network["output"]], **values}


def predict(
    x: Any,
    network: Mapping[str, Any],
    scale: Any,
    zero_point: Any,
    rounding: str,
    output_scale: Any,
    output_offset: Any,
    *,
    door: Mapping[str, Any] | None = None,
    real: Hook = lambda acc, s, b: np.float32(np.float32(np.float32(acc) * s) + b),
) -> Results:
    codes = quantize(
        x,
        scale,
        zero_point,
        **network["input_format"],
        rounding=rounding,
        axis=None,
        precision="float32",
        zero_point_first=False,
        **(door or {}),
    )["codes"]
    output = KERNELS["network"](codes, network)["output"]

    def value(acc: int, index: tuple[int, ...]) -> float:
        s, b = (channel_value(v, (index[1],), 0, (1,)) for v in (output_scale, output_offset))
        return float(real(acc, s, b))

    return {"y": each(value, output).astype(np.float64), "codes": codes, "output": output}


KERNELS: dict[str, Hook] = {
    kernel.__name__: kernel
    for kernel in (
        round_ratio,
        integer_format,
        check_codes,
        quantize,
        binarize,
        dequantize,
        requantize_thresholds,
        requantize_scale,
        requantize_shift,
        requantize_multiplier,
        linear,
        accumulate,
        conv1d,
        conv2d,
        max_pool2d,
        sum_pool2d,
        global_sum_pool,
        add,
        concat,
        flatten,
        reshape,
        lookup,
        bit_widths,
        accumulator_range,
        omega,
        max_fan_in,
        fan_in_mask,
        sign_budgets,
        project,
        network,
        predict,
    )
}
