"""The operations of the suite a second time, in plain Python integers, fractions and loops.

The second route that every vector is checked by before it is written.  Nodes and doors come from
`refqnn.exact`; what that does not have (ratios, scales, multipliers, widths, bounds) is written out
here from the definitions.  Nothing that computes is shared with `refqnn.conformance.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from refqnn import exact
from refqnn.conformance.described import network_of
from refqnn.conformance.operations import OPERATIONS, Array, Function, Values, functions_in
from refqnn.conformance.reference import node_and_operands
from refqnn.conformance.specification import guarded

__all__ = ["FUNCTIONS"]

Nested = Any  # a number, or a list of Nested


def _ends(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    codes = range(-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else range(2**bits)
    codes = codes[1:] if narrow and signed else codes[:-1] if narrow else codes
    return codes[0], codes[-1]


def _by_node(operation: str, **arguments: Any) -> Values:
    """What the node of an operation computes, sample by sample."""
    op, operands = node_and_operands(operation, arguments)
    (result,) = OPERATIONS[operation].outputs
    return {result: [exact.apply(op, sample) for sample in zip(*(v.tolist() for v in operands))]}


# --- rounding, formats, doors -----------------------------------------------------------------


def round_ratio(numerator: Array, denominator: int, rounding: str) -> Values:
    def rounded(n: int, _: object) -> int:
        return exact.round(Fraction(n, denominator), rounding)

    return {"rounded": exact._map(rounded, numerator.tolist())}


def integer_format(**fmt: Any) -> Values:
    q_min, q_max = _ends(**fmt)
    return {"q_min": q_min, "q_max": q_max, "levels": len(range(q_min, q_max + 1))}


def check_codes(codes: Array, **fmt: Any) -> Values:
    q_min, q_max = _ends(**fmt)
    assert all(q_min <= v <= q_max for v in codes.ravel().tolist())
    return {"codes": codes.tolist()}


def _door(
    scale: Array,
    zero_point: Array,
    bits: int,
    signed: bool,
    narrow: bool,
    axis: int | None = None,
    precision: str = "float32",
    rounding: str = "half_even",
    zero_point_first: bool = False,
) -> Any:
    def digits(value: float, _: object) -> float:
        return float(exact.to_float(Fraction(value), precision))

    q_min, q_max = _ends(bits, signed, narrow)
    return SimpleNamespace(
        scale=exact._map(digits, scale.tolist()),
        zero_point=zero_point.tolist() if zero_point.size > 1 else zero_point.item(),
        format=SimpleNamespace(q_min=q_min, q_max=q_max, step=1),
        axis=axis,
        precision=precision,
        rounding=SimpleNamespace(value=rounding),
        zero_point_first=zero_point_first,
    )


def quantize(x: Array, **door: Any) -> Values:
    return {"codes": exact.quantize(_door(**door), x)}


def binarize(x: Array) -> Values:
    return {"codes": exact._map(lambda v, _: 1 if v >= 0 else -1, x.tolist())}


def dequantize(codes: Array, **door: Any) -> Values:
    return {"x": exact.dequantize(_door(**door), codes)}


# --- requantize -------------------------------------------------------------------------------


def _codes(
    acc: Array, code: Callable[[int, int], int], bits: int, signed: bool, narrow: bool
) -> Values:
    """Saturated codes of code(acc, channel)."""
    q_min, q_max = _ends(bits, signed, narrow)

    def saturated(value: int, index: tuple[int, ...]) -> int:
        return min(max(code(value, index[1]), q_min), q_max)

    return {"codes": exact._map(saturated, acc.tolist())}


def _channel(values: Array, channel: int) -> Any:
    entries = np.asarray(values).reshape(-1).tolist()
    return entries[channel] if len(entries) > 1 else entries[0]


def requantize_scale(
    acc: Array,
    scale_in: Array,
    scale_out: Array,
    bias: Array,
    zero_point: int,
    clip: tuple[int, int] | None,
    rounding: str,
    **fmt: Any,
) -> Values:
    lowest, highest = clip or _ends(**fmt)

    def code(value: int, channel: int) -> int:
        s_in, s_out, b = (Fraction(_channel(v, channel)) for v in (scale_in, scale_out, bias))
        rounded = exact.round((value * s_in + b) / s_out, rounding)
        return min(max(rounded + zero_point, lowest), highest)

    return _codes(acc, code, **fmt)


def requantize_shift(
    acc: Array, shift: int, offset: Array, zero_point: int, rounding: str, **fmt: Any
) -> Values:
    def code(value: int, channel: int) -> int:
        shifted = Fraction(value + _channel(offset, channel), 2**shift)
        return exact.round(shifted, rounding) + zero_point

    return _codes(acc, code, **fmt)


def requantize_multiplier(
    acc: Array,
    mantissa: Array,
    shift: Array,
    zero_point: int,
    rounding: str,
    first_rounding: str | None,
    first_shift: int,
    **fmt: Any,
) -> Values:
    def code(value: int, channel: int) -> int:
        m, s = _channel(mantissa, channel), _channel(shift, channel)
        if first_rounding is None:
            return exact.round(Fraction(value * m, 2**s), rounding) + zero_point
        p = exact.round(Fraction(value * m, 2**first_shift), first_rounding)
        return exact.round(Fraction(p, 2 ** (s - first_shift)), rounding) + zero_point

    return _codes(acc, code, **fmt)


# --- sums -------------------------------------------------------------------------------------


def linear(
    x: Array, weight: Array, bias: Array | None, x_zero_point: int, weight_zero_point: Array
) -> Values:
    def acc(sample: list[int], k: int, row: list[int]) -> int:
        z = _channel(weight_zero_point, k)
        total: int = sum((w - z) * (v - x_zero_point) for w, v in zip(row, sample))
        return total + (0 if bias is None else bias.tolist()[k])

    rows = weight.tolist()
    return {"acc": [[acc(s, k, row) for k, row in enumerate(rows)] for s in x.tolist()]}


def accumulate(
    x: Array,
    weight: Array,
    bias: Array | None,
    accumulator_bits: int,
    accumulator_signed: bool,
    **how: str,
) -> Values:
    emulated: Any = SimpleNamespace(
        width=lambda _: accumulator_bits, signed=accumulator_signed, **how
    )
    op: Any = SimpleNamespace(weight=weight, bias=bias)
    fit = exact._emulated(emulated, "linear")
    return {"acc": [exact._linear(op, fit, sample) for sample in x.tolist()]}


def accumulate_stages(
    x: Array,
    weight: Array,
    bias: Array | None,
    widths: Sequence[int],
    signed: Sequence[int],
    groups: Sequence[int],
    saturates: Sequence[int],
    at_end: Sequence[int],
    order: str,
    bias_at: str,
) -> Values:
    stages = [
        SimpleNamespace(
            width=width,
            signed=two_sided,
            group=group,
            overflow="saturate" if clips else "wrap",
            when="end" if end else "step",
        )
        for width, two_sided, group, clips, end in zip(
            widths, signed, [*groups, None], saturates, at_end
        )
    ]
    accumulator: Any = SimpleNamespace(stages=stages, order=order, bias=bias_at)
    add = exact._staged(accumulator, "sum", int(weight.shape[1]))
    rows = [[w for channel in row for w in channel] for row in weight.tolist()]

    def acc(sample: list[int], k: int) -> int:
        products = [w * v for w, v in zip(rows[k], sample)]
        return add(products, [] if bias is None else [bias.tolist()[k]])

    windows = [[v for channel in sample for v in channel] for sample in x.tolist()]
    return {"acc": [[acc(sample, k) for k in range(len(rows))] for sample in windows]}


# --- widths and bounds ------------------------------------------------------------------------


def bit_widths(lo: int, hi: int) -> Values:
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


def accumulator_range(weight: Array, bias: Array | None, x_lo: Array, x_hi: Array) -> Values:
    """By taking every input to the end that helps."""
    results: Values = {"lo": [], "hi": [], "mass": []}
    for k, row in enumerate(weight.tolist()):
        b = 0 if bias is None else bias.tolist()[k]
        ends = [(w * lo, w * hi) for w, lo, hi in zip(row, x_lo.tolist(), x_hi.tolist())]
        results["lo"].append(b + sum(min(pair) for pair in ends))
        results["hi"].append(b + sum(max(pair) for pair in ends))
        results["mass"].append(abs(b) + sum(max(map(abs, pair)) for pair in ends))
    return results


def omega(n_max: int, n_weights: int, n_inputs: int) -> Values:
    largest = Fraction(2**n_max - 1, (2**n_weights - 1) * (2**n_inputs - 1))
    return {"fan_in": math.floor(largest)}


def max_fan_in(
    weight_range: Sequence[int],
    input_range: Sequence[int],
    bias_range: Sequence[int],
    accumulator_range: Sequence[int],
) -> Values:
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


# --- weights for a narrow accumulator ---------------------------------------------------------


def fan_in_mask(weight: Array, fan_in: int) -> Values:
    """By counting, for each weight, those of its row that come before it."""
    masks: list[int] = []
    for row in weight.reshape(len(weight), -1).tolist():
        for i, w in enumerate(row):
            larger = [v for v in row if abs(v) > abs(w)]
            earlier = [v for v in row[:i] if abs(v) == abs(w)]
            masks.append(int(len(larger) + len(earlier) < fan_in))
    return {"mask": np.array(masks).reshape(weight.shape).tolist()}


def sign_budgets(
    P: Array, N: Array, bias: Array | None, input_range: tuple[int, int], bits: int
) -> Values:
    b = None if bias is None else bias.tolist()
    P_max, N_max = exact.sign_budgets(P.tolist(), N.tolist(), b, input_range, bits)
    return {"P_max": P_max, "N_max": N_max}


def project(**arguments: Any) -> Values:
    return {"codes": exact.project(**arguments)}


# --- networks ---------------------------------------------------------------------------------


def network(codes: Array, network: Mapping[str, Any]) -> Values:
    program = network_of(network)
    trace = exact.trace(program, codes.tolist())
    del trace["input"]
    return {"output": trace[program.output], **trace}


def predict(
    x: Array, network: Mapping[str, Any], output_scale: Array, output_offset: Array, **door: Any
) -> Values:
    codes = exact.quantize(_door(**network["input_format"], **door), x)
    output = exact.forward(network_of(network), codes)

    def value(acc: int, index: tuple[int, ...]) -> float:
        s, b = (Fraction(_channel(v, index[1])) for v in (output_scale, output_offset))
        scaled = exact.to_float(Fraction(exact.to_float(acc, "float32")) * s, "float32")
        return float(exact.to_float(Fraction(scaled) + b, "float32"))

    return {"y": exact._map(value, output), "codes": codes, "output": output}


_OWN = functions_in(globals())
FUNCTIONS: dict[str, Function] = {
    name: guarded(name, _OWN.get(name) or partial(_by_node, name)) for name in OPERATIONS
}
