"""The operations that vectors ask for: their arguments, their results, one definition each.

This table is the single source of the JSON schemas, of `vectors/OPERATIONS.md`, and of how
arguments travel between files, programs and Python functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

__all__ = [
    "ERROR_CODES",
    "MODES",
    "OPERATIONS",
    "Array",
    "Field",
    "Function",
    "Kind",
    "Operation",
    "Values",
    "functions_in",
]

Array = NDArray[Any]  # of integers, of Python integers, or of floats
Values = dict[str, Any]  # arguments or results by name: arrays, integers, texts, networks
Function = Callable[..., Any]  # an operation: arguments by name -> results by name

Kind = Literal[
    "bool",
    "choice",
    "int",
    "ints",
    "pairs",
    "int_tensor",
    "int_tensors",
    "float_tensor",
    "network",
]

ERROR_CODES: Mapping[str, str] = {
    "invalid_parameter": "an argument makes no sense by itself, whatever the others are: a width "
    "of 0, a scale of 0, a shift of 63, decreasing thresholds, padding as large as its window",
    "not_a_number": "NaN where a number is needed",
    "out_of_range": "an integer outside a range that other arguments declare: a format, a table, "
    "an accumulator",
    "shape_mismatch": "shapes that do not fit together, or numbers of channels or of levels",
}


@dataclass(frozen=True)
class Field:
    """One argument or result.

    Args:
        kind: how it is written (see vectors/README.md).
        doc: what it means, with its shape.
        optional: may be null (None).
        choices: the closed list of a "choice".
    """

    kind: Kind
    doc: str
    optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """What is asked of an implementation.

    Args:
        name: of the function, of the files, of the "operation" on the wire.
        parameters: arguments that a group of vectors shares (what one would compile in).
        inputs: arguments of the single vector.
        outputs: results that must be there and equal.
        definition: the formula.
        intermediates: results that are compared where they are given.
        traces: every further result is an int_tensor named after a node of the network.
        node: the kind of node that computes it, where there is one.
    """

    name: str
    parameters: Mapping[str, Field]
    inputs: Mapping[str, Field]
    outputs: Mapping[str, Field]
    definition: str
    intermediates: Mapping[str, Field] = field(default_factory=dict)
    traces: bool = False
    node: str = ""

    @property
    def arguments(self) -> dict[str, Field]:
        """Parameters, then inputs."""
        return {**self.parameters, **self.inputs}

    @property
    def results(self) -> dict[str, Field]:
        """Outputs, then intermediates."""
        return {**self.outputs, **self.intermediates}


# The rounding modes that the suite asks for; one more is more questions and another schema.
MODES = (
    "half_even",
    "half_up",
    "half_down",
    "half_away",
    "half_toward_zero",
    "floor",
    "ceil",
    "toward_zero",
    "away_from_zero",
)

_ROUNDING = Field("choice", "rounding mode", choices=MODES)
_FORMAT = {
    "bits": Field("int", "width of a code, 1 to 32"),
    "signed": Field("bool", "two's complement, or unsigned"),
    "narrow": Field("bool", "drop the lowest signed, or the highest unsigned, code"),
}
_PRECISION = Field("choice", "of the float arithmetic", choices=("float32", "float64"))
_SCALE = Field("float_tensor", "positive, [] or [channels]")
_AXIS = Field("int", "channel axis of a per-channel scale; may be negative", optional=True)
_CODES = {"codes": Field("int_tensor", "codes, of the shape of the input")}
_ACC = {"acc": Field("int_tensor", "accumulators [n, channels, ...]")}
_SUM = {"acc": Field("int_tensor", "exact sums")}
_THRESHOLDS = {
    "thresholds": Field(
        "int_tensor",
        "least accumulator of each code above q_min, [channels or 1, levels - 1]; the largest "
        "int64 where none reaches it, the smallest where all do",
    )
}
_EACH = "[] or [1] for all channels, or [channels]"
_ZERO_POINT = Field("int", "added after rounding")
_WEIGHT = Field("int_tensor", "[out, in]")
_BIAS = Field("int_tensor", "[out], in units of the accumulator; null: 0", optional=True)
_OPERANDS = Field("int_tensors", "one tensor per operand, [n, channels, ...]")
_RANGE = "lowest and highest value, inclusive"


def _conv(axes: str, letters: str) -> dict[str, Field]:
    return {
        "weight": Field("int_tensor", f"[out, in / groups, {axes}]"),
        "bias": _BIAS,
        "stride": Field("ints", f"one per spatial axis ({letters})"),
        "padding": Field("pairs", f"[before, after] per spatial axis ({letters})"),
        "dilation": Field("ints", f"one per spatial axis ({letters})"),
        "groups": Field("int", "divides in and out"),
        "pad_code": Field("int", "value of padded positions"),
    }


_POOL = {
    "kernel": Field("ints", "[kh, kw]"),
    "stride": Field("ints", "[h, w]"),
    "padding": Field("pairs", "[[top, bottom], [left, right]]"),
}
_BUDGET = {
    "input_range": Field("ints", "[x_lo, x_hi] of every input, inclusive"),
    "bits": Field("int", "two's complement width of the accumulator, 2 to 62"),
}
_BUDGETS = {
    "P_max": Field("int_tensor", "how large P may be [out]"),
    "N_max": Field("int_tensor", "how large N may be [out]"),
}
_IMAGES = {"x": Field("int_tensor", "[n, channels, height, width]")}
_NAMED = Field("int_tensor", "of the node that network names as its output")
_NETWORK = {
    "network": Field("network", "nodes in topological order; each an operation of this suite")
}

_ALL = [
    Operation(
        "round_ratio",
        {"denominator": Field("int", "positive"), "rounding": _ROUNDING},
        {"numerator": Field("int_tensor", "any shape")},
        {"rounded": Field("int_tensor", "of the shape of numerator")},
        "rounded = round(numerator / denominator), over the rationals",
    ),
    Operation(
        "integer_format",
        _FORMAT,
        {},
        {
            "q_min": Field("int", "lowest code"),
            "q_max": Field("int", "highest code"),
            "levels": Field("int", "how many codes there are"),
        },
        "unsigned: [0, 2^b - 1], narrow [0, 2^b - 2]; "
        "signed: [-2^(b-1), 2^(b-1) - 1], narrow [-2^(b-1) + 1, 2^(b-1) - 1]",
    ),
    Operation(
        "check_codes",
        _FORMAT,
        {"codes": Field("int_tensor", "any shape")},
        _CODES,
        "the same codes, or out_of_range; nothing is clamped or wrapped",
    ),
    Operation(
        "quantize",
        {
            "scale": _SCALE,
            "zero_point": Field("int_tensor", "[] or [channels]"),
            **_FORMAT,
            "rounding": _ROUNDING,
            "axis": _AXIS,
            "precision": _PRECISION,
            "zero_point_first": Field("bool", "add the zero point, as a float, before rounding"),
        },
        {"x": Field("float_tensor", "any shape")},
        _CODES,
        "codes = clip(round(x / scale) + zero_point, q_min, q_max); x and scale are first rounded "
        "to `precision`, the quotient (and, with zero_point_first, the sum) is rounded in it; an "
        "infinity saturates, NaN is an error",
    ),
    Operation(
        "binarize",
        {},
        {"x": Field("float_tensor", "any shape")},
        _CODES,
        "codes = +1 where x >= 0 (both zeros too), -1 elsewhere; NaN is an error",
    ),
    Operation(
        "dequantize",
        {
            "scale": _SCALE,
            "zero_point": Field("int_tensor", "[] or [channels]"),
            **_FORMAT,
            "axis": _AXIS,
            "precision": _PRECISION,
        },
        {"codes": Field("int_tensor", "any shape")},
        {"x": Field("float_tensor", "of the shape of codes")},
        "x = (codes - zero_point) * scale: the difference over the integers, then rounded to "
        "`precision`, then one product in it",
    ),
    Operation(
        "requantize_thresholds",
        {**_THRESHOLDS, **_FORMAT},
        _ACC,
        _CODES,
        "codes = q_min + #{k : acc >= thresholds[c, k]}",
        node="Requantize",
    ),
    Operation(
        "requantize_scale",
        {
            "scale_in": _SCALE,
            "scale_out": _SCALE,
            "bias": Field("float_tensor", "real bias, [] or [channels]"),
            "zero_point": _ZERO_POINT,
            **_FORMAT,
            "clip": Field("ints", "lowest and highest code let through (ReLU)", optional=True),
            "rounding": _ROUNDING,
        },
        _ACC,
        _CODES,
        "codes = clip(round((acc * scale_in + bias) / scale_out) + zero_point), over the rationals "
        "that the floats are; no float is rounded",
        _THRESHOLDS,
    ),
    Operation(
        "requantize_shift",
        {
            "shift": Field("int", "0 to 62"),
            "offset": Field("int_tensor", "[] or [channels]"),
            "zero_point": _ZERO_POINT,
            **_FORMAT,
            "rounding": _ROUNDING,
        },
        _ACC,
        _CODES,
        "codes = clip(round((acc + offset) / 2^shift) + zero_point, q_min, q_max)",
        _THRESHOLDS,
    ),
    Operation(
        "requantize_multiplier",
        {
            "mantissa": Field("int_tensor", "1 to 2^32 - 1, [] or [channels]"),
            "shift": Field("int_tensor", "0 to 62, [] or [channels]"),
            "zero_point": _ZERO_POINT,
            **_FORMAT,
            "rounding": _ROUNDING,
            "first_rounding": Field(
                "choice", "mode of a first rounding", optional=True, choices=MODES
            ),
            "first_shift": Field("int", "of the first rounding and read with it alone, 0 to shift"),
        },
        _ACC,
        _CODES,
        "codes = clip(round(acc * mantissa / 2^shift) + zero_point); with first_rounding, "
        "p = round_first(acc * mantissa / 2^first_shift), then round(p / 2^(shift - first_shift))",
        _THRESHOLDS,
    ),
    Operation(
        "rescale",
        {
            "multiplier": Field("int_tensor", f"0 to 2^62 - 1, {_EACH}"),
            "shift": Field("int_tensor", f"0 to 62, {_EACH}"),
            "zero_point": Field("int_tensor", f"added after rounding, {_EACH}"),
            "offset": Field("int_tensor", f"added to acc, {_EACH}"),
            **_FORMAT,
            "clip": Field(
                "int_tensor",
                "lowest and highest code let through, inside the format, [channels or 1, 2]; null: "
                "all of the format",
                optional=True,
            ),
            "rounding": _ROUNDING,
            "first_rounding": Field(
                "choice", "mode of a first rounding", optional=True, choices=MODES
            ),
            "first_shift": Field(
                "int_tensor", f"of the first rounding and read with it alone, 0 to shift, {_EACH}"
            ),
        },
        _ACC,
        _CODES,
        "codes = clip(round((acc + offset) * multiplier / 2^shift) + zero_point), over the "
        "integers, of any size; with first_rounding, p = round_first((acc + offset) * multiplier / "
        "2^first_shift), then round(p / 2^(shift - first_shift))",
        node="Rescale",
    ),
    Operation(
        "linear",
        {
            "weight": _WEIGHT,
            "bias": _BIAS,
            "x_zero_point": Field("int", "of the inputs"),
            "weight_zero_point": Field("int_tensor", "[] or [out]"),
        },
        {"x": Field("int_tensor", "[n, in]")},
        _SUM,
        "acc[n, k] = sum_i (weight[k, i] - weight_zero_point[k]) * (x[n, i] - x_zero_point) "
        "+ bias[k]",
        node="Linear",
    ),
    Operation(
        "accumulate",
        {
            "weight": _WEIGHT,
            "bias": _BIAS,
            "accumulator_bits": Field("int", "1 to 64"),
            "accumulator_signed": Field("bool", "two's complement, or unsigned"),
            "overflow": Field("choice", "what an overflow does", choices=("wrap", "saturate")),
            "when": Field("choice", "after every term, or once", choices=("step", "end")),
            "order": Field(
                "choice",
                "of the terms: products then bias; the reverse of that; bias then products",
                choices=("forward", "reverse", "bias_first"),
            ),
        },
        {"x": Field("int_tensor", "[n, in]")},
        _SUM,
        "acc starts at 0; acc = fit(acc + term) for each term in the order given (step), or "
        "acc = fit(sum of terms) (end); single products are exact",
    ),
    Operation(
        "accumulate_stages",
        {
            "weight": Field("int_tensor", "[out, channels, kernel]"),
            "bias": _BIAS,
            "widths": Field("ints", "bits of the register of each stage, innermost first, 1 to 64"),
            "signed": Field("ints", "1: two's complement, 0: unsigned, of each stage"),
            "groups": Field(
                "ints", "how many values make one sum, of each stage but the last, which takes all"
            ),
            "saturates": Field("ints", "1: it saturates, 0: it wraps, of each stage"),
            "at_end": Field("ints", "1: a sum is fitted once, 0: after every value, of each stage"),
            "order": Field(
                "choice",
                "of the products: channel by channel; the reverse of that; kernel position by "
                "position, all channels in it",
                choices=("forward", "reverse", "channels_last"),
            ),
            "bias_at": Field(
                "choice",
                "the first or the last value of the last stage, or added exactly behind it",
                choices=("first", "last", "outside"),
            ),
        },
        {"x": Field("int_tensor", "[n, channels, kernel], one window")},
        _SUM,
        "the values of the first stage are weight[k, c, v] * x[n, c, v] in the order given; a "
        "stage makes one value of each `groups` consecutive ones, the last of what is left: acc "
        "starts at 0, acc = fit(acc + value) for each, or acc = fit(sum of values) (at_end)",
    ),
    Operation(
        "conv1d",
        _conv("kw", "w"),
        {"x": Field("int_tensor", "[n, in, width]")},
        _SUM,
        "acc[n, k, j] = bias[k] + sum_{c, v} weight[k, c, v] * X[n, g C + c, s j + d v], "
        "X = x padded, C = in / groups, g = floor(k / (out / groups)); "
        "positions floor((P - d (kw - 1) - 1) / s) + 1",
        node="Conv1d",
    ),
    Operation(
        "conv2d",
        _conv("kh, kw", "h, w"),
        _IMAGES,
        _SUM,
        "acc[n, k, i, j] = bias[k] + sum_{c, u, v} weight[k, c, u, v] * "
        "X[n, g C + c, s_h i + d_h u, s_w j + d_w v], as conv1d",
        node="Conv2d",
    ),
    Operation(
        "conv_transpose2d",
        {
            "weight": Field("int_tensor", "[in, out / groups, kh, kw]"),
            "bias": _BIAS,
            "stride": Field("ints", "one per spatial axis (h, w)"),
            "padding": Field("pairs", "[before, after] per spatial axis (h, w), left out of acc"),
            "output_padding": Field(
                "ints", "more positions at the end, below stride or dilation (h, w)"
            ),
            "dilation": Field("ints", "one per spatial axis (h, w)"),
            "groups": Field("int", "divides in and out"),
        },
        _IMAGES,
        _SUM,
        "acc[n, k, i, j] = bias[k] + sum_{c, u, v, p, q} weight[g C + c, k - g out / groups, u, v] "
        "* x[n, g C + c, p, q] over the p, q in x with s_h p + d_h u = i + top and "
        "s_w q + d_w v = j + left, C = in / groups, g = floor(k / (out / groups)); "
        "positions s (size - 1) - before - after + d (kernel - 1) + output_padding + 1",
        node="ConvTranspose2d",
    ),
    Operation(
        "max_pool2d",
        _POOL,
        _IMAGES,
        {"y": Field("int_tensor", "[n, channels, ...]")},
        "greatest value of each window, positions as conv1d with d = 1; only what lies in x counts",
        node="MaxPool2d",
    ),
    Operation(
        "sum_pool2d",
        {**_POOL, "pad_code": Field("int", "value of padded positions")},
        _IMAGES,
        _SUM,
        "sum of each window, positions as conv1d with d = 1; outside x all is pad_code",
        node="SumPool2d",
    ),
    Operation(
        "global_sum_pool",
        {},
        {"x": Field("int_tensor", "[n, channels, ...]")},
        _SUM,
        "sum over all positions of each channel: [n, channels]",
        node="GlobalSumPool",
    ),
    Operation(
        "add",
        {"multipliers": Field("ints", "one nonzero integer per operand; null: 1", optional=True)},
        {"operands": _OPERANDS},
        _SUM,
        "acc = sum_i multipliers[i] * operands[i]",
        node="Add",
    ),
    Operation(
        "concat",
        {},
        {"operands": _OPERANDS},
        {"y": Field("int_tensor", "[n, sum of channels, ...]")},
        "the channels of all operands, one after the other",
        node="Concat",
    ),
    Operation(
        "flatten",
        {},
        {"x": Field("int_tensor", "[n, ...]")},
        {"y": Field("int_tensor", "[n, product of the rest]")},
        "row-major: the last axis runs fastest",
        node="Flatten",
    ),
    Operation(
        "reshape",
        {"shape": Field("ints", "of one sample")},
        {"x": Field("int_tensor", "[n, ...]")},
        {"y": Field("int_tensor", "[n, *shape]")},
        "row-major: the last axis runs fastest",
        node="Reshape",
    ),
    Operation(
        "gather",
        {
            "index": Field(
                "int_tensor", "of one sample of y: row-major positions in one of x, or -1"
            ),
            "in_shape": Field("ints", "of one sample of x"),
            "fill": Field("int", "where the index is -1"),
        },
        {"x": Field("int_tensor", "[n, *in_shape]")},
        {"y": Field("int_tensor", "[n, *shape of index]")},
        "y[n, i, ...] = x[n] flattened at index[i, ...], or fill where that is -1; any other index "
        "outside is out_of_range",
        node="Gather",
    ),
    Operation(
        "lookup",
        {
            "table": Field("int_tensor", "[channels or 1, entries]"),
            "lo": Field("int", "the integer of the first column"),
        },
        {"x": Field("int_tensor", "[n, channels, ...]")},
        {"y": Field("int_tensor", "of the shape of x")},
        "y = table[c, x - lo]; outside the table is out_of_range",
        node="Lookup",
    ),
    Operation(
        "bit_widths",
        {},
        {"lo": Field("int", "lowest value"), "hi": Field("int", "highest value")},
        {
            "signed_bits": Field("int", "least two's complement width"),
            "unsigned_bits": Field("int", "least unsigned width; null where lo < 0", optional=True),
            "span_bits": Field("int", "least width after a constant is added"),
        },
        "signed: max over both ends of bit_length(x) + 1 for x >= 0, bit_length(-x - 1) + 1 for "
        "x < 0; "
        "unsigned: bit_length(hi); span: bit_length(hi - lo); at least 1",
    ),
    Operation(
        "accumulator_range",
        {"weight": _WEIGHT, "bias": _BIAS},
        {
            "x_lo": Field("int_tensor", "lowest inputs [in]"),
            "x_hi": Field("int_tensor", "highest inputs [in]"),
        },
        {
            "lo": Field("int_tensor", "lowest accumulators [out]"),
            "hi": Field("int_tensor", "highest accumulators [out]"),
            "mass": Field("int_tensor", "absolute masses [out]"),
        },
        "hi = sum w+ x_hi + sum w- x_lo + bias, lo mirrored, w+ = max(w, 0), w- = min(w, 0); "
        "mass = sum |w| max(|x_lo|, |x_hi|) + |bias|",
    ),
    Operation(
        "omega",
        {},
        {
            "n_max": Field("int", "unsigned accumulator bits"),
            "n_weights": Field("int", "unsigned weight bits"),
            "n_inputs": Field("int", "unsigned input bits"),
        },
        {"fan_in": Field("int", "largest number of active inputs")},
        "floor((2^n_max - 1) / ((2^n_weights - 1) (2^n_inputs - 1))): right for unsigned weights, "
        "inputs and accumulator without bias, unsound for signed weights",
    ),
    Operation(
        "max_fan_in",
        {},
        {
            "weight_range": Field("ints", _RANGE),
            "input_range": Field("ints", _RANGE),
            "bias_range": Field("ints", _RANGE),
            "accumulator_range": Field("ints", _RANGE),
        },
        {"fan_in": Field("int", "largest fan-in; null where no fan-in overflows", optional=True)},
        "with [p_min, p_max] the range of one product and 0: the largest K with "
        "K p_max + b_hi <= a_hi and K p_min + b_lo >= a_lo",
    ),
    Operation(
        "fan_in_mask",
        {"fan_in": Field("int", "weights to keep in each row, at least 0")},
        {"weight": Field("int_tensor", "[out, ...], magnitudes below 2^31")},
        {"mask": Field("int_tensor", "1 where a weight stays, else 0; of the shape of weight")},
        "the fan_in largest |weight| of each row (all that one output sees, row-major) stay; among "
        "equal magnitudes the earlier; all stay where there are no more than fan_in",
    ),
    Operation(
        "sign_budgets",
        _BUDGET,
        {
            "P": Field("int_tensor", "sum of the positive weights of each row [out], 0 to 2^62"),
            "N": Field("int_tensor", "sum of the magnitudes of its negative ones [out], 0 to 2^62"),
            "bias": _BIAS,
        },
        _BUDGETS,
        "up = 2^(bits-1) - 1 - b, down = 2^(bits-1) + b, s = max(0, -x_lo), t = max(0, x_hi), "
        "b = bias[k] or 0; a row with t P + s N <= up and s P + t N <= down keeps P and N; another "
        "gets, with s = 0, min(P, floor(up / t)) and min(N, floor(down / t)); with t = 0, "
        "min(P, floor(down / s)) and min(N, floor(up / s)); else floor(f P) and floor(f N), "
        "f = min(1, up / (t P + s N), down / (s P + t N)); a negative up or down is out_of_range",
    ),
    Operation(
        "project",
        _BUDGET,
        {
            "weight": Field("float_tensor", "[out, ...], in integer steps, magnitudes below 2^31"),
            "bias": _BIAS,
        },
        {"codes": Field("int_tensor", "integer weights, of the shape of weight")},
        "v = weight[k] (all that one output sees, row-major), over the rationals that the floats "
        "are; codes = round(v), half_even, and P, N the sums of its positive and negated negative "
        "entries; a sign part with P <= P_max (N <= N_max) of sign_budgets stays; another becomes "
        "the integers w >= 0 with sum w = P_max (N_max) that minimise sum (w - max(v, 0))^2 "
        "(max(-v, 0)), of several the ones that are larger at the first index that differs",
        _BUDGETS,
    ),
    Operation(
        "network",
        _NETWORK,
        {"codes": Field("int_tensor", "[n, *input_shape]")},
        {"output": _NAMED},
        "the nodes in order; results named after nodes are compared too where they are given",
        traces=True,
    ),
    Operation(
        "predict",
        {
            **_NETWORK,
            "scale": Field("float_tensor", "positive, one number"),
            "zero_point": Field("int_tensor", "one code"),
            "rounding": _ROUNDING,
            "output_scale": Field("float_tensor", "[], or [channels] of the output, its axis 1"),
            "output_offset": Field("float_tensor", "[], or [channels] of the output, its axis 1"),
        },
        {"x": Field("float_tensor", "[n, *input_shape]")},
        {"y": Field("float_tensor", "output * output_scale + output_offset, each in float32")},
        "quantize (float32, input_format), network, then one float32 product and one float32 sum",
        {
            "codes": Field("int_tensor", "quantized inputs"),
            "output": _NAMED,
        },
    ),
]

OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in _ALL}


def functions_in(module: Mapping[str, Any]) -> dict[str, Function]:
    """What in a module (its `globals()`) is named like an operation, in the order of the suite."""
    return {name: module[name] for name in OPERATIONS if name in module}
