"""The operations of the suite a second time, in plain Python integers, fractions and loops.

The second route that every vector is checked by before it is written.  Nodes and doors come from
`refqnn.exact`; what that does not have (ratios, scales, multipliers, widths, bounds) is written out
here from the definitions.  Nothing that computes is shared with `refqnn.conformance.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from refqnn import exact
from refqnn.conformance.operations import Function, functions_in
from refqnn.conformance.reference import network_of

__all__ = ["FUNCTIONS"]

Results = dict[str, Any]


def _ends(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    codes = range(-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else range(2**bits)
    codes = codes[1:] if narrow and signed else codes[:-1] if narrow else codes
    return codes[0], codes[-1]


def _format(bits: int, signed: bool, narrow: bool) -> Any:
    q_min, q_max = _ends(bits, signed, narrow)
    return SimpleNamespace(q_min=q_min, q_max=q_max, step=1)


def _door(
    scale: Any,
    zero_point: Any,
    fmt: Any,
    axis: int | None,
    precision: str,
    rounding: str = "half_even",
    zero_point_first: bool = False,
) -> Any:
    def digits(value: Any) -> Any:
        return float(exact.to_float(Fraction(value), precision))

    lists = exact._map(lambda v, _: digits(v), scale.tolist())
    return SimpleNamespace(
        scale=lists,
        zero_point=zero_point.tolist(),
        format=fmt,
        axis=axis,
        precision=precision,
        rounding=SimpleNamespace(value=rounding),
        zero_point_first=zero_point_first,
    )


def round_ratio(numerator: Any, denominator: int, rounding: str) -> Results:
    def rounded(n: int, _: Any) -> int:
        return exact.round(Fraction(n, denominator), rounding)

    return {"rounded": exact._map(rounded, numerator.tolist())}


def integer_format(bits: int, signed: bool, narrow: bool) -> Results:
    q_min, q_max = _ends(bits, signed, narrow)
    return {"q_min": q_min, "q_max": q_max, "levels": len(range(q_min, q_max + 1))}


def check_codes(codes: Any, bits: int, signed: bool, narrow: bool) -> Results:
    q_min, q_max = _ends(bits, signed, narrow)
    assert all(q_min <= v <= q_max for v in codes.ravel().tolist())
    return {"codes": codes.tolist()}


def quantize(
    x: Any,
    scale: Any,
    zero_point: Any,
    bits: int,
    signed: bool,
    narrow: bool,
    axis: int | None,
    precision: str,
    **how: Any,
) -> Results:
    door = _door(scale, zero_point, _format(bits, signed, narrow), axis, precision, **how)
    return {"codes": exact.quantize(door, x)}


def binarize(x: Any) -> Results:
    return {"codes": exact._map(lambda v, _: 1 if v >= 0 else -1, x.tolist())}


def dequantize(
    codes: Any,
    scale: Any,
    zero_point: Any,
    bits: int,
    signed: bool,
    narrow: bool,
    axis: int | None,
    precision: str,
) -> Results:
    door = _door(scale, zero_point, _format(bits, signed, narrow), axis, precision)
    return {"x": exact.dequantize(door, codes)}


def _codes(acc: Any, fmt: tuple[int, bool, bool], code: Callable[[int, int], int]) -> Results:
    """Saturated codes of code(acc, channel)."""
    q_min, q_max = _ends(*fmt)

    def saturated(value: int, index: tuple[int, ...]) -> int:
        return min(max(code(value, index[1]), q_min), q_max)

    return {"codes": exact._map(saturated, acc.tolist())}


def _channel(values: Any, channel: int) -> Any:
    entries = np.asarray(values).reshape(-1).tolist()
    return entries[channel] if len(entries) > 1 else entries[0]


def requantize_thresholds(
    acc: Any, thresholds: Any, bits: int, signed: bool, narrow: bool
) -> Results:
    rows = thresholds.tolist()

    def code(value: int, channel: int) -> int:
        row = rows[channel] if len(rows) > 1 else rows[0]
        return _ends(bits, signed, narrow)[0] + len([t for t in row if t <= value])

    return _codes(acc, (bits, signed, narrow), code)


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
) -> Results:
    lowest, highest = clip or _ends(bits, signed, narrow)

    def code(value: int, channel: int) -> int:
        s_in, s_out, b = (Fraction(_channel(v, channel)) for v in (scale_in, scale_out, bias))
        rounded = exact.round((value * s_in + b) / s_out, rounding)
        return min(max(rounded + zero_point, lowest), highest)

    return _codes(acc, (bits, signed, narrow), code)


def requantize_shift(
    acc: Any,
    shift: int,
    offset: Any,
    zero_point: int,
    bits: int,
    signed: bool,
    narrow: bool,
    rounding: str,
) -> Results:
    def code(value: int, channel: int) -> int:
        shifted = Fraction(value + _channel(offset, channel), 2**shift)
        return exact.round(shifted, rounding) + zero_point

    return _codes(acc, (bits, signed, narrow), code)


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
) -> Results:
    def code(value: int, channel: int) -> int:
        m, s = _channel(mantissa, channel), _channel(shift, channel)
        if first_rounding is None:
            return exact.round(Fraction(value * m, 2**s), rounding) + zero_point
        p = exact.round(Fraction(value * m, 2**first_shift), first_rounding)
        return exact.round(Fraction(p, 2 ** (s - first_shift)), rounding) + zero_point

    return _codes(acc, (bits, signed, narrow), code)


def linear(x: Any, weight: Any, bias: Any, x_zero_point: int, weight_zero_point: Any) -> Results:
    def acc(sample: list[int], k: int, row: list[int]) -> int:
        z = _channel(weight_zero_point, k)
        total: int = sum((w - z) * (v - x_zero_point) for w, v in zip(row, sample))
        return total + (0 if bias is None else bias.tolist()[k])

    rows = weight.tolist()
    return {"acc": [[acc(s, k, row) for k, row in enumerate(rows)] for s in x.tolist()]}


def accumulate(
    x: Any,
    weight: Any,
    bias: Any,
    accumulator_bits: int,
    accumulator_signed: bool,
    overflow: str,
    when: str,
    order: str,
) -> Results:
    emulated: Any = SimpleNamespace(
        width=lambda _: accumulator_bits,
        signed=accumulator_signed,
        overflow=overflow,
        when=when,
        order=order,
    )
    op: Any = SimpleNamespace(weight=weight, bias=bias)
    fit = exact._accumulator(emulated, "linear")
    return {"acc": [exact._linear(op, fit, sample) for sample in x.tolist()]}


def _node(kind: str, **fixed: Any) -> Callable[..., Any]:
    """The node of `refqnn.exact`, on a batch; parameters are the operation's."""

    def function(x: Any, **parameters: Any) -> Any:
        op: Any = SimpleNamespace(**fixed, **parameters)
        samples = x.tolist()
        if kind in exact._SUMS:
            acc = [exact._SUMS[kind](op, exact._exact_sum, sample) for sample in samples]
            return {"acc": acc}
        return {"y": [exact._MAPS[kind](op, sample) for sample in samples]}

    return function


conv1d, conv2d = _node("Conv1d"), _node("Conv2d")
max_pool2d, sum_pool2d, global_sum_pool = map(_node, ("MaxPool2d", "SumPool2d", "GlobalSumPool"))
flatten, reshape = _node("Flatten"), _node("Reshape")


def add(operands: Sequence[Any], multipliers: tuple[int, ...] | None) -> Results:
    op: Any = SimpleNamespace(multipliers=multipliers)
    samples = zip(*(v.tolist() for v in operands))
    return {"acc": [exact._add(op, exact._exact_sum, *sample) for sample in samples]}


def concat(operands: Sequence[Any]) -> Results:
    samples = zip(*(v.tolist() for v in operands))
    return {"y": [exact._concat(None, *sample) for sample in samples]}


def lookup(x: Any, table: Any, lo: int) -> Results:
    op: Any = SimpleNamespace(table=table, lo=lo, hi=lo + table.shape[1] - 1)
    return {"y": [exact._lookup(op, sample) for sample in x.tolist()]}


def bit_widths(lo: int, hi: int) -> Results:
    """By trying widths one after another."""

    def least(fits: Callable[[int], bool]) -> int:
        bits = 1
        while not fits(bits):
            bits += 1
        return bits

    return {
        "signed_bits": least(lambda b: lo >= -(2 ** (b - 1)) and hi < 2 ** (b - 1)),
        "unsigned_bits": None if lo < 0 else least(lambda b: hi < 2**b),
        "span_bits": least(lambda b: hi - lo < 2**b),
    }


def accumulator_range(weight: Any, bias: Any, x_lo: Any, x_hi: Any) -> Results:
    """By taking every input to the end that helps."""
    results: Results = {"lo": [], "hi": [], "mass": []}
    for k, row in enumerate(weight.tolist()):
        b = 0 if bias is None else bias.tolist()[k]
        ends = [(w * lo, w * hi) for w, lo, hi in zip(row, x_lo.tolist(), x_hi.tolist())]
        results["lo"].append(b + sum(min(pair) for pair in ends))
        results["hi"].append(b + sum(max(pair) for pair in ends))
        results["mass"].append(abs(b) + sum(max(map(abs, pair)) for pair in ends))
    return results


def omega(n_max: int, n_weights: int, n_inputs: int) -> Results:
    largest = Fraction(2**n_max - 1, (2**n_weights - 1) * (2**n_inputs - 1))
    return {"fan_in": math.floor(largest)}


def max_fan_in(
    weight_range: tuple[int, int],
    input_range: tuple[int, int],
    bias_range: tuple[int, int],
    accumulator_range: tuple[int, int],
) -> Results:
    """By doubling and halving a fan-in that is tested."""
    products = [w * x for w, x in product(weight_range, input_range)]

    def fits(k: int) -> bool:
        hi = bias_range[1] + k * max(0, *products)
        lo = bias_range[0] + k * min(0, *products)
        return accumulator_range[0] <= lo and hi <= accumulator_range[1]

    if not any(products):
        return {"fan_in": None}
    above = 1
    while fits(above):
        above *= 2
    below = 0
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return {"fan_in": below}


def fan_in_mask(weight: Any, fan_in: int) -> Results:
    """By counting, for each weight, those of its row that come before it."""
    masks: list[int] = []
    for row in weight.reshape(len(weight), -1).tolist():
        for i, w in enumerate(row):
            larger = [v for v in row if abs(v) > abs(w)]
            earlier = [v for v in row[:i] if abs(v) == abs(w)]
            masks.append(int(len(larger) + len(earlier) < fan_in))
    return {"mask": np.array(masks).reshape(weight.shape).tolist()}


def sign_budgets(P: Any, N: Any, bias: Any, input_range: tuple[int, int], bits: int) -> Results:
    b = None if bias is None else bias.tolist()
    P_max, N_max = exact.sign_budgets(P.tolist(), N.tolist(), b, input_range, bits)
    return {"P_max": P_max, "N_max": N_max}


def project(weight: Any, bias: Any, input_range: tuple[int, int], bits: int) -> Results:
    return {"codes": exact.project(weight, bias, input_range, bits)}


def network(codes: Any, network: Mapping[str, Any]) -> Results:
    program = network_of(network)
    trace = exact.trace(program, codes.tolist())
    del trace["input"]
    return {"output": trace[program.output], **trace}


def predict(
    x: Any,
    network: Mapping[str, Any],
    scale: Any,
    zero_point: Any,
    rounding: str,
    output_scale: Any,
    output_offset: Any,
) -> Results:
    program = network_of(network)
    door = _door(scale, zero_point, program.input_format, None, "float32", rounding)
    codes = exact.quantize(door, x)
    output = exact.forward(program, codes)

    def value(acc: int, index: tuple[int, ...]) -> float:
        s, b = (Fraction(_channel(v, index[1])) for v in (output_scale, output_offset))
        scaled = exact.to_float(Fraction(exact.to_float(acc, "float32")) * s, "float32")
        return float(exact.to_float(Fraction(scaled) + b, "float32"))

    return {"y": exact._map(value, output), "codes": codes, "output": output}


FUNCTIONS: dict[str, Function] = functions_in(globals())
