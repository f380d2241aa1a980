"""The operations of the suite by way of numpy: refqnn itself as an implementation under test.

One function per operation, called with the arguments of a vector by name.  Operations that a node
computes have no function of their own: one table says which node their parameters make.  In front
stand the sentences of the specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from refqnn.accumulator import max_fan_in as _max_fan_in
from refqnn.accumulator import omega as _omega
from refqnn.arithmetic import to_int64_if_possible
from refqnn.conformance.described import limited, network_of, node_of, zero_points
from refqnn.conformance.operations import OPERATIONS, Array, Function, Values, functions_in
from refqnn.conformance.specification import coded, guarded
from refqnn.emulate import Accumulator, Emulated, Stage
from refqnn.errors import (
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import (
    BIPOLAR,
    IntFormat,
    as_integers,
    signed_bits,
    span_bits,
    unsigned_bits,
)
from refqnn.ops import (
    Conv1d,
    Interval,
    Linear,
    Op,
    Requantize,
)
from refqnn.pruning import fan_in_mask as _fan_in_mask
from refqnn.pruning import project as _project
from refqnn.pruning import sign_budgets as _sign_budgets
from refqnn.quantizers import AffineQuantizer, Dequantizer, SymmetricQuantizer
from refqnn.rounding import round_ratio as _round_ratio

__all__ = ["FUNCTIONS", "UNGUARDED", "node_and_operands"]


# --- nodes ------------------------------------------------------------------------------------


def _read(op: Op, *x: object) -> list[Array]:
    """Integers [n, channels, ...], their shapes checked, as a Network does.

    Raises: InvalidType, ShapeMismatch.
    """
    operands = [as_integers(v, "x") for v in x]
    for v in operands:
        if v.ndim < 2 or not v.size:
            expected = "samples, then channels, at least one of each"
            raise ShapeMismatch(mismatch("x", f"shape {v.shape}", expected))
        if len(v) != len(operands[0]):
            expected = f"{len(operands[0])}, as in the first operand"
            raise ShapeMismatch(mismatch("operands", f"{len(v)} samples", expected))
    op.out_shape(*(v.shape[1:] for v in operands))
    return operands


def _apply(op: Op, *x: object) -> Array:
    return op.forward(*_read(op, *x))


def node_and_operands(operation: str, arguments: Values) -> tuple[Op, Sequence[Array]]:
    """The arguments of an operation as its node and what goes into it.  Raises: as `node_of`."""
    (given,) = OPERATIONS[operation].inputs
    parameters = {name: value for name, value in arguments.items() if name != given}
    data = arguments[given]
    return node_of(operation, parameters), data if isinstance(data, (list, tuple)) else [data]


def _by_node(operation: str, **arguments: Any) -> Values:
    """What the node of an operation computes."""
    op, operands = node_and_operands(operation, arguments)
    (result,) = OPERATIONS[operation].outputs
    return {result: _apply(op, *operands)}


# --- rounding, formats, doors -----------------------------------------------------------------


def round_ratio(numerator: Array, denominator: int, rounding: str) -> Values:
    return {"rounded": _round_ratio(numerator, denominator, rounding)}


def integer_format(**parameters: Any) -> Values:
    fmt = IntFormat(**parameters)
    return {"q_min": fmt.q_min, "q_max": fmt.q_max, "levels": fmt.levels}


def check_codes(codes: Array, **fmt: Any) -> Values:
    return {"codes": IntFormat(**fmt).check(codes)}


def _door(bits: int, signed: bool, narrow: bool, **parameters: Any) -> AffineQuantizer:
    return AffineQuantizer(format=IntFormat(bits, signed, narrow), **parameters)


def quantize(x: Array, **door: Any) -> Values:
    return {"codes": _door(**door).quantize(x)}


def binarize(x: Array) -> Values:
    return {"codes": SymmetricQuantizer(1.0, BIPOLAR, precision="float64").quantize(x)}


def dequantize(codes: Array, **door: Any) -> Values:
    return {"x": _door(**door).dequantize(codes)}


# --- requantize -------------------------------------------------------------------------------


def _requantized(
    make: Callable[..., Requantize],
    acc: Array,
    bits: int,
    signed: bool,
    narrow: bool,
    **parameters: Any,
) -> Values:
    op = make(format=IntFormat(bits, signed, narrow), **parameters)
    return {"codes": _apply(op, acc), "thresholds": op.thresholds}


def requantize_scale(**arguments: Any) -> Values:
    return _requantized(limited(Requantize.from_scale), **arguments)


def requantize_shift(**arguments: Any) -> Values:
    return _requantized(limited(Requantize.from_shift), **arguments)


def requantize_multiplier(**arguments: Any) -> Values:
    return _requantized(limited(Requantize.from_multiplier), **arguments)


# --- sums -------------------------------------------------------------------------------------


def linear(
    x: Array, weight: Array, bias: Array | None, x_zero_point: int, weight_zero_point: Array
) -> Values:
    """sum (w - z_w)(x - z_x) + b = sum w (x - z_x) + b - z_w sum(x - z_x).

    In Python integers where zero points are, which may be of any size.
    """
    op = Linear(weight, bias)
    zeros = zero_points(weight_zero_point, op)
    centred = as_integers(x, "x").astype(object) - x_zero_point
    acc = _apply(op, centred).astype(object)
    acc -= centred.sum(axis=1, keepdims=True) * zeros.astype(object)
    return {"acc": to_int64_if_possible(acc)}


def accumulate(
    x: Array,
    weight: Array,
    bias: Array | None,
    accumulator_bits: int,
    accumulator_signed: bool,
    **how: Any,
) -> Values:
    emulated = Emulated(accumulator_bits, accumulator_signed, **how)
    op, accumulator = Linear(weight, bias), emulated.of("linear")
    assert accumulator is not None
    return {"acc": accumulator.accumulate(op, tuple(_read(op, x)))}


def accumulate_stages(
    x: Array,
    weight: Array,
    bias: Array | None,
    widths: Sequence[int],
    signed: Sequence[int],
    groups: Sequence[int],
    saturates: Sequence[int],
    at_end: Sequence[int],
    order: Literal["forward", "reverse", "channels_last"],
    bias_at: Literal["first", "last", "outside"],
) -> Values:
    if {len(signed), len(saturates), len(at_end), len(groups) + 1} != {len(widths)}:
        raise ShapeMismatch(mismatch("stages", "lists of other lengths", f"{len(widths)}"))
    stages = [
        Stage(w, bool(s), group, "saturate" if clips else "wrap", "end" if end else "step")
        for w, s, group, clips, end in zip(widths, signed, (*groups, None), saturates, at_end)
    ]
    op = Conv1d(weight, bias)
    if np.shape(x)[1:] != op.weight.shape[1:]:
        got, expected = f"shape {np.shape(x)}", f"windows {op.weight.shape[1:]}"
        raise ShapeMismatch(mismatch("x", got, expected))
    acc = Accumulator(stages, order, bias_at).accumulate(op, tuple(_read(op, x)))
    return {"acc": acc.reshape(acc.shape[:2])}


# --- widths and bounds ------------------------------------------------------------------------


def bit_widths(lo: int, hi: int) -> Values:
    return {
        "signed_bits": signed_bits(lo, hi),
        "unsigned_bits": None if lo < 0 else unsigned_bits(lo, hi),
        "span_bits": span_bits(lo, hi),
    }


def accumulator_range(weight: Array, bias: Array | None, x_lo: Array, x_hi: Array) -> Values:
    op, box = Linear(weight, bias), Interval(x_lo, x_hi)
    op.out_shape(box.shape)
    acc = op.out_range(box)
    return {"lo": acc.lo, "hi": acc.hi, "mass": op.absolute_mass(box)}


def omega(**bits: int) -> Values:
    return {"fan_in": _omega(**bits)}


def max_fan_in(**ranges: tuple[int, int]) -> Values:
    return {"fan_in": _max_fan_in(**ranges)}


# --- weights for a narrow accumulator ---------------------------------------------------------


def fan_in_mask(weight: Array, fan_in: int) -> Values:
    return {"mask": _fan_in_mask(weight, fan_in).astype(np.int64)}


def sign_budgets(**arguments: Any) -> Values:
    P_max, N_max = _sign_budgets(**arguments)
    return {"P_max": P_max, "N_max": N_max}


def project(weight: Array, **budget: Any) -> Values:
    codes = _project(weight, **budget)
    rounded = np.rint(weight).astype(np.int64).reshape(len(weight), -1)
    P, N = (np.maximum(sign * rounded, 0).sum(axis=1) for sign in (1, -1))
    return {"codes": codes, **sign_budgets(P=P, N=N, **budget)}


# --- networks ---------------------------------------------------------------------------------


def network(codes: Array, network: Mapping[str, Any]) -> Values:
    program = network_of(network)
    trace = program.trace(codes)
    del trace["input"]
    return {"output": trace[program.output], **trace}


def predict(
    x: Array, network: Mapping[str, Any], output_scale: Array, output_offset: Array, **door: Any
) -> Values:
    program = network_of(network)
    codes = _door(**network["input_format"], **door).quantize(x)
    output = program.forward(codes)
    y = Dequantizer(output_scale, output_offset).dequantize(output)
    return {"y": y, "codes": codes, "output": output}


_OWN = functions_in(globals())
UNGUARDED: dict[str, Function] = {
    name: coded(_OWN.get(name) or partial(_by_node, name)) for name in OPERATIONS
}
"""With no other checks than those of refqnn itself."""
FUNCTIONS: dict[str, Function] = {name: guarded(name, f) for name, f in UNGUARDED.items()}
