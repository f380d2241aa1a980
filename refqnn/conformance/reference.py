"""The operations of the suite by way of numpy: refqnn itself as an implementation under test.

One function per operation, called with the arguments of a vector by name.  Refusals are `Rejected`
with the code that belongs to the kind of error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np

from refqnn.accumulator import max_fan_in as _max_fan_in
from refqnn.accumulator import omega as _omega
from refqnn.conformance.operations import Function, functions_in
from refqnn.conformance.suite import Rejected
from refqnn.emulate import Emulated
from refqnn.errors import InvalidArgument, OutOfRange, RefqnnError, ShapeMismatch
from refqnn.formats import (
    BIPOLAR,
    IntFormat,
    as_integers,
    signed_bits,
    span_bits,
    unsigned_bits,
)
from refqnn.network import Network, Node
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Interval,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Reshape,
    SumPool2d,
)
from refqnn.pruning import fan_in_mask as _fan_in_mask
from refqnn.pruning import project as _project
from refqnn.pruning import sign_budgets as _sign_budgets
from refqnn.quantizers import AffineQuantizer, Dequantizer, SymmetricQuantizer
from refqnn.requantize import Requantize
from refqnn.rounding import round_ratio as _round_ratio

__all__ = ["FUNCTIONS", "network_of"]

Results = dict[str, Any]


def round_ratio(numerator: Any, denominator: int, rounding: str) -> Results:
    return {"rounded": _round_ratio(numerator, denominator, rounding)}


def integer_format(bits: int, signed: bool, narrow: bool) -> Results:
    fmt = IntFormat(bits, signed, narrow)
    return {"q_min": fmt.q_min, "q_max": fmt.q_max, "levels": fmt.levels}


def check_codes(codes: Any, bits: int, signed: bool, narrow: bool) -> Results:
    return {"codes": IntFormat(bits, signed, narrow).check(codes)}


def _quantizer(
    scale: Any, zero_point: Any, fmt: IntFormat, axis: int | None, precision: Any, **options: Any
) -> AffineQuantizer:
    return AffineQuantizer(scale, zero_point, fmt, axis=axis, precision=precision, **options)


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
) -> Results:
    fmt = IntFormat(bits, signed, narrow)
    options = {"rounding": rounding, "zero_point_first": zero_point_first}
    return {"codes": _quantizer(scale, zero_point, fmt, axis, precision, **options).quantize(x)}


def binarize(x: Any) -> Results:
    return {"codes": SymmetricQuantizer(1.0, BIPOLAR, precision="float64").quantize(x)}


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
    fmt = IntFormat(bits, signed, narrow)
    return {"x": _quantizer(scale, zero_point, fmt, axis, precision).dequantize(codes)}


def _made(make: Callable[..., Requantize], *arguments: Any, **options: Any) -> Requantize:
    """Limits of shifts and mantissas are their own, no range that another argument declares."""
    try:
        return make(*arguments, **options)
    except OutOfRange as error:
        raise InvalidArgument(str(error)) from error


def _requantized(op: Requantize, acc: Any) -> Results:
    return {"codes": _apply(op, acc), "thresholds": op.thresholds}


def requantize_thresholds(
    acc: Any, thresholds: Any, bits: int, signed: bool, narrow: bool
) -> Results:
    op = Requantize(thresholds, IntFormat(bits, signed, narrow))
    return {"codes": _apply(op, acc)}


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
    fmt = IntFormat(bits, signed, narrow)
    options: Any = {"bias": bias, "zero_point": zero_point, "clip": clip}
    return _requantized(Requantize.from_scale(scale_in, scale_out, fmt, rounding, **options), acc)


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
    fmt = IntFormat(bits, signed, narrow)
    options = {"offset": offset, "zero_point": zero_point}
    return _requantized(_made(Requantize.from_shift, shift, fmt, rounding, **options), acc)


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
    op = _made(
        Requantize.from_multiplier,
        mantissa,
        shift,
        IntFormat(bits, signed, narrow),
        rounding,
        zero_point=zero_point,
        first_rounding=first_rounding,
        first_shift=first_shift,
    )
    return _requantized(op, acc)


def linear(x: Any, weight: Any, bias: Any, x_zero_point: int, weight_zero_point: Any) -> Results:
    """sum (w - z_w)(x - z_x) + b = sum (w - z_w) x + (b - z_x sum(w - z_w)): zero points fold."""
    centred = weight - np.asarray(weight_zero_point).reshape(-1, 1)
    folded = -x_zero_point * centred.sum(axis=1)
    return {"acc": _apply(Linear(centred, folded if bias is None else folded + bias), x)}


def accumulate(
    x: Any,
    weight: Any,
    bias: Any,
    accumulator_bits: int,
    accumulator_signed: bool,
    overflow: Any,
    when: Any,
    order: Any,
) -> Results:
    emulated = Emulated(accumulator_bits, accumulator_signed, overflow, when, order)
    op = Linear(weight, bias)
    op.out_shape(x.shape[1:])
    return {"acc": emulated.accumulate(op, (x,), accumulator_bits)}


def conv1d(x: Any, **parameters: Any) -> Results:
    return {"acc": _apply(Conv1d(**parameters), x)}


def conv2d(x: Any, **parameters: Any) -> Results:
    return {"acc": _apply(Conv2d(**parameters), x)}


def max_pool2d(x: Any, **parameters: Any) -> Results:
    return {"y": _apply(MaxPool2d(**parameters), x)}


def sum_pool2d(x: Any, **parameters: Any) -> Results:
    return {"acc": _apply(SumPool2d(**parameters), x)}


def global_sum_pool(x: Any) -> Results:
    return {"acc": _apply(GlobalSumPool(), x)}


def add(operands: Sequence[Any], multipliers: tuple[int, ...] | None) -> Results:
    return {"acc": _apply(Add(multipliers), *operands)}


def concat(operands: Sequence[Any]) -> Results:
    return {"y": _apply(Concat(), *operands)}


def flatten(x: Any) -> Results:
    return {"y": _apply(Flatten(), x)}


def reshape(x: Any, shape: tuple[int, ...]) -> Results:
    return {"y": _apply(Reshape(shape), x)}


def lookup(x: Any, table: Any, lo: int) -> Results:
    return {"y": _apply(Lookup(table, lo), x)}


def bit_widths(lo: int, hi: int) -> Results:
    return {
        "signed_bits": signed_bits(lo, hi),
        "unsigned_bits": None if lo < 0 else unsigned_bits(lo, hi),
        "span_bits": span_bits(lo, hi),
    }


def accumulator_range(weight: Any, bias: Any, x_lo: Any, x_hi: Any) -> Results:
    op, box = Linear(weight, bias), Interval(x_lo, x_hi)
    op.out_shape(box.shape)
    acc = op.out_range(box)
    return {"lo": acc.lo, "hi": acc.hi, "mass": op.absolute_mass(box)}


def omega(n_max: int, n_weights: int, n_inputs: int) -> Results:
    return {"fan_in": _omega(n_max, n_weights, n_inputs)}


def max_fan_in(
    weight_range: tuple[int, int],
    input_range: tuple[int, int],
    bias_range: tuple[int, int],
    accumulator_range: tuple[int, int],
) -> Results:
    fan_in = _max_fan_in(weight_range, input_range, bias_range, accumulator_range)
    return {"fan_in": fan_in}


def fan_in_mask(weight: Any, fan_in: int) -> Results:
    return {"mask": _fan_in_mask(weight, fan_in).astype(np.int64)}


def sign_budgets(P: Any, N: Any, bias: Any, input_range: tuple[int, int], bits: int) -> Results:
    P_max, N_max = _sign_budgets(P, N, bias, input_range, bits)
    return {"P_max": P_max, "N_max": N_max}


def project(weight: Any, bias: Any, input_range: tuple[int, int], bits: int) -> Results:
    codes = _project(weight, bias, input_range, bits)
    rounded = np.rint(weight).astype(np.int64).reshape(len(weight), -1)
    P, N = (np.maximum(sign * rounded, 0).sum(axis=1) for sign in (1, -1))
    P_max, N_max = _sign_budgets(P, N, bias, input_range, bits)
    return {"codes": codes, "P_max": P_max, "N_max": N_max}


def network(codes: Any, network: Mapping[str, Any]) -> Results:
    program = network_of(network)
    trace = program.trace(codes)
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
    door = AffineQuantizer(scale, zero_point, program.input_format, rounding)
    codes = door.quantize(x)
    output = program.forward(codes)
    y = Dequantizer(output_scale, output_offset).dequantize(output)
    return {"y": y, "codes": codes, "output": output}


def network_of(description: Mapping[str, Any]) -> Network:
    """The `Network` that a vector describes."""
    nodes = [
        Node(node["name"], _OPS[node["operation"]](**node["parameters"]), tuple(node["inputs"]))
        for node in description["nodes"]
    ]
    fmt = description["input_format"]
    return Network(
        nodes,
        input_shape=tuple(description["input_shape"]),
        input_format=IntFormat(fmt["bits"], fmt["signed"], fmt["narrow"]),
        output=description["output"],
    )


def _linear_node(weight: Any, bias: Any, x_zero_point: int, weight_zero_point: Any) -> Linear:
    if x_zero_point or np.any(weight_zero_point):
        raise OutOfRange("zero points inside a network are folded into weights and biases")
    return Linear(weight, bias)


_OPS: dict[str, Callable[..., Op]] = {
    "linear": _linear_node,
    "conv1d": Conv1d,
    "conv2d": Conv2d,
    "max_pool2d": MaxPool2d,
    "sum_pool2d": SumPool2d,
    "global_sum_pool": GlobalSumPool,
    "add": Add,
    "concat": Concat,
    "flatten": Flatten,
    "reshape": Reshape,
    "lookup": Lookup,
    "requantize_thresholds": lambda thresholds, bits, signed, narrow: Requantize(
        thresholds, IntFormat(bits, signed, narrow)
    ),
}


def _apply(op: Op, *x: Any) -> Any:
    """Shapes checked, as a Network does."""
    operands = [as_integers(v, "x") for v in x]
    op.out_shape(*(v.shape[1:] for v in operands))
    return op.forward(*operands)


def _coded(function: Callable[..., Results]) -> Callable[..., Results]:
    """The function, refusing as `Rejected`."""

    @wraps(function)
    def coded(**arguments: Any) -> Results:
        try:
            return function(**arguments)
        except RefqnnError as error:
            raise Rejected(_code(error, arguments), str(error)) from error

    return coded


def _code(error: RefqnnError, arguments: Mapping[str, Any]) -> str:
    if isinstance(error, ShapeMismatch):
        return "shape_mismatch"
    if isinstance(error, OutOfRange):
        return "out_of_range"
    floats = [
        v for v in arguments.values() if getattr(v, "dtype", None) in (np.float32, np.float64)
    ]
    return "not_a_number" if any(np.isnan(v).any() for v in floats) else "invalid_parameter"


FUNCTIONS: dict[str, Function] = {
    name: _coded(function) for name, function in functions_in(globals()).items()
}
