"""Quantizers, thresholds, and what undoes them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch
from refqnn.formats import IntFormat
from refqnn.onnx.files import type_name
from refqnn.onnx.program import Context, Handler, Program, common_divisor
from refqnn.onnx.values import (
    Comparison,
    Constant,
    Grid,
    Quantized,
    Real,
    Scaled,
    Value,
    along_channels,
    along_sample,
    dtype_of,
    float32_of,
    fractions_of,
    limits_of_type,
    one,
    unscaled,
)
from refqnn.rounding import Rounding, round_float

__all__ = [
    "TABLE",
    "counting",
    "grid_of",
    "integer_zero",
    "limits_of",
    "one_zero_point",
    "plain_integers",
    "scale_of",
]

Array = NDArray[Any]

# QONNX's names on the left; its HALF_UP and HALF_DOWN are mirrored at zero.
_ROUNDINGS: dict[str, Rounding] = {
    "ROUND": Rounding.HALF_EVEN,
    "HALF_EVEN": Rounding.HALF_EVEN,
    "CEIL": Rounding.CEIL,
    "FLOOR": Rounding.FLOOR,
    "UP": Rounding.AWAY_FROM_ZERO,
    "DOWN": Rounding.TOWARD_ZERO,
    "ROUND_TO_ZERO": Rounding.TOWARD_ZERO,
    "HALF_UP": Rounding.HALF_AWAY,
    "HALF_DOWN": Rounding.HALF_TOWARD_ZERO,
}

# --- parameters ---------------------------------------------------------------------------------


def _bit_width(c: Context, index: int) -> int:
    array = c.constant(index, "bit width")
    bits = float(array.reshape(-1)[0])
    if array.size != 1 or bits != int(bits) or not 1 <= bits <= 32:
        raise NotCovered(f"{c.where}: bit width {array.tolist()}, expected an integer from 1 to 32")
    return int(bits)


def _qonnx_format(c: Context, index: int) -> IntFormat:
    signed, narrow = c.attribute("signed", 1), c.attribute("narrow", 0)
    return IntFormat(_bit_width(c, index), bool(signed), bool(narrow))


def _mode(c: Context, default: str) -> Rounding:
    name = c.attribute("rounding_mode", default).upper()
    if name not in _ROUNDINGS:
        raise NotCovered(f"{c.where}: rounding mode {name!r}")
    return _ROUNDINGS[name]


def scale_of(c: Context, index: int, what: str = "scale", half: bool = False) -> Array:
    """A scale: float32 (or float16, where `half`), positive, finite."""
    scale = c.constant(index, what)
    if scale.dtype != np.float32 and not (half and scale.dtype == np.float16):
        raise NotCovered(f"{c.where}: {what} of type {scale.dtype}, expected float32")
    if scale.size == 0 or not np.isfinite(scale).all() or (scale <= 0).any():
        raise NotCovered(f"{c.where}: {what} must be positive and finite")
    return scale


def integer_zero(c: Context, index: int, what: str = "zero point") -> Array:
    """Zero points as integers; 0 where the node has none."""
    array = c.optional_constant(index, what)
    if array is None:
        return np.zeros((), dtype=np.int64)
    integral = np.isfinite(array).all() and (array == np.rint(array)).all()
    if not integral or (abs(array) > 2**31).any():
        raise NotCovered(f"{c.where}: zero point {array.ravel()[:4].tolist()} is not an integer")
    return array.astype(np.int64)


def one_zero_point(c: Context, index: int) -> int:
    """The one zero point of activations."""
    values = np.unique(integer_zero(c, index))
    if values.size != 1:
        raise NotCovered(f"{c.where}: activations with one zero point per channel")
    return int(values[0])


def limits_of(c: Context, name: str) -> tuple[int, int]:
    """The least and greatest code of an integer type."""
    lo, hi = limits_of_type(name)
    if not 2 < hi - lo < 2**32:
        raise NotCovered(f"{c.where}: it quantizes to {name}, expected integers")
    return lo, hi


def grid_of(codes: Array, zero_point: Array | int, scale: Array) -> Grid:
    """A quantized constant; its values are fl32(codes - zero) * scale, in the type of the scale."""
    centred = codes.astype(np.int64) - zero_point
    scale = scale.reshape((1,) * (codes.ndim - scale.ndim) + scale.shape)
    values = np.asarray(centred.astype(np.float32) * scale, dtype=np.float32)
    if scale.dtype == np.float16:
        rounded = values.astype(np.float16).astype(np.float32)
        unit = common_divisor(rounded)
        if (rounded != values).any() and unit:
            return Grid(
                rounded,
                np.rint(rounded / float(unit)).astype(np.int64),
                one(codes.shape[1:]) * unit,
            )
    return Grid(values, centred, fractions_of(scale))


def _source(c: Context, x: Value) -> Real | Scaled:
    if isinstance(x, (Real, Scaled)):
        integer = isinstance(x, Scaled) and x.integer
        return x.then("Cast", dtype="FLOAT") if integer and isinstance(x, Scaled) else x
    raise NotCovered(f"{c.where}: its input is not a tensor of numbers")


def _dequantized(codes: Scaled, scale: Array, zero: int | Fraction) -> Scaled:
    """(codes - zero) * scale."""
    return replace(codes, scale=fractions_of(scale), zero=Fraction(zero), base="FLOAT")


# --- QONNX --------------------------------------------------------------------------------------


def _quant(r: Program, c: Context) -> Value:
    """QONNX Quant: round(clip(x / scale + zero_point)), then (code - zero_point) * scale."""
    scale, fmt, mode = scale_of(c, 1), _qonnx_format(c, 3), _mode(c, "ROUND")
    zero_point = integer_zero(c, 2)
    if fmt.bits == 1 and fmt.signed:
        return _bipolar(r, c)
    x, lo, hi = c.value(0), fmt.q_min, fmt.q_max
    if isinstance(x, Constant):
        for array in (scale, zero_point):
            along_sample(array, x.array.shape, c.where)
        q = Quantized(Real(()), scale, zero_point, lo, hi, mode, zero_first=True)
        if isinstance(x, Grid) and np.array_equal(_codes_under(x, q), x.codes):
            return x
        return grid_of(q.codes(x.array.astype(np.float32), scale, zero_point), zero_point, scale)
    source = _source(c, x)
    along, zeros = (along_sample(a, source.shape, c.where) for a in (scale, zero_point))
    q = Quantized(source, along, zeros, lo, hi, mode, zero_first=True, name=c.name)
    return _dequantized(r.codes(q), along, one_zero_point(c, 2))


def _codes_under(x: Grid, q: Quantized) -> Array:
    """The codes of a grid under a quantizer, or nothing comparable when the scales differ."""
    own = float32_of(np.broadcast_to(x.scale, x.codes.shape))
    if not np.array_equal(own, np.broadcast_to(q.scale, x.codes.shape)) or q.zero_point.any():
        return np.empty(0)
    return np.clip(x.codes, q.lo, q.hi)


def _bipolar(r: Program, c: Context) -> Value:
    """+scale where x >= 0, else -scale."""
    x, scale = c.value(0), scale_of(c, 1)
    if isinstance(x, Constant):
        return grid_of(np.where(x.array >= 0, 1, -1), 0, scale)
    source = _source(c, x)
    along = along_sample(scale, source.shape, c.where)
    codes = r.codes(unscaled(source, 0, 1, bipolar=True, name=c.name))
    if isinstance(source, Real):
        return _dequantized(codes, along, 0)  # the door gives -1 and +1
    # A node of codes 0 and 1 is 2 * scale * (code - 1/2).
    return replace(_dequantized(codes, along, Fraction(1, 2)), scale=2 * fractions_of(along))


def _multi_threshold(r: Program, c: Context) -> Value:
    """out_scale * #{k : x >= T[channel, k]} + out_bias."""
    x = _source(c, c.value(0))
    table = np.sort(c.constant(1, "thresholds").astype(np.float32), axis=-1)
    if table.ndim != 2 or table.size == 0 or np.isnan(table).any():
        raise FileFormatError(f"{c.where}: thresholds of shape {table.shape}, expected [C or 1, n]")
    rows = table.shape[0]
    # Without a layout qonnx takes the last axis of three for the channels.
    layout = c.attribute("data_layout", "") or ("NWC" if len(x.shape) == 2 else "NC")
    axis = max(layout.find("C"), 1) - 1
    if rows > 1 and (axis >= len(x.shape) or rows != x.shape[axis]):
        got = f"{rows} rows of thresholds for shape {x.shape}, {layout}"
        raise ShapeMismatch(f"{c.where}: {got}")
    if rows > 1 and axis:
        x = r.moved(x, lambda a: a.swapaxes(0, axis), f"{c.name}_turned")
    told = np.array([c.attribute("out_scale", 1.0), c.attribute("out_bias", 0.0)], np.float32)
    if not np.isfinite(told).all():
        raise FileFormatError(f"{c.where}: out_scale or out_bias is not finite")
    scale, bias = fractions_of(told)
    if scale <= 0:
        raise NotCovered(f"{c.where}: out_scale {float(scale)}, expected a positive number")
    first = bias / scale  # the code of an input below all thresholds, if it is an integer
    start = int(first) if first.denominator == 1 and abs(first) < 2**31 else 0
    codes = r.codes(counting(c, x, table, start))
    if rows > 1 and axis:
        codes = r.moved(codes, lambda a: a.swapaxes(0, axis), f"{c.name}_back")
    result = replace(codes, scale=one(codes.shape) * scale, base="FLOAT")
    if start == first:
        return result
    if first.denominator == 2:
        return replace(result, zero=-first)
    return result.then("Add", np.full((1,) * len(codes.shape), float(bias), dtype=np.float32))


def counting(c: Context, x: Scaled | Real, table: Array, start: int) -> Quantized:
    """start + #{k : x >= table[channel, k]} for a sorted table [channels or 1, n]."""
    rows, count = table.shape

    def codes(v: Array) -> Array:
        if rows == 1:
            return np.asarray(start + np.searchsorted(table[0], v, side="right"), dtype=np.int64)
        counts = [np.searchsorted(t, values, side="right") for t, values in zip(table, v)]
        return np.asarray(start + np.stack(counts), dtype=np.int64)

    return unscaled(x, start, start + count, function=codes, rows=rows, name=c.name)


def _trunc(r: Program, c: Context) -> Value:
    """Codes lose their lowest bits: round(code / 2**t); versions 1 and 2 of the operator."""
    x = _source(c, c.value(0))
    if isinstance(x, Real):
        raise NotCovered(f"{c.where}: it truncates the float input, which has no codes yet")
    scale, mode = scale_of(c, 1), _mode(c, "FLOOR")
    if scale.size != 1 or one_zero_point(c, 2) != 0:
        raise NotCovered(f"{c.where}: one scale and zero point 0 are covered")
    (s,) = scale.ravel()
    second = len(c.inputs) >= 6
    if second:
        out_scale, fmt = scale_of(c, 4, "output scale"), _qonnx_format(c, 5)
        t = int(np.rint(np.log2(out_scale.ravel()[0] / s)))
    else:
        out_scale, fmt = scale, IntFormat(32, signed=True)
        t = _bit_width(c, 3) - _bit_width(c, 4)
    if not 0 <= t <= 31 or out_scale.size != 1:
        raise NotCovered(f"{c.where}: it keeps more bits than it gets")

    def codes(v: Array) -> Array:
        y = np.rint(v / s).astype(np.float64) / 2.0**t
        return np.asarray(np.clip(round_float(y, mode), fmt.q_min, fmt.q_max), dtype=np.int64)

    q = unscaled(x, fmt.q_min, fmt.q_max, function=codes, name=c.name)
    if not second:
        q.lo, q.hi = r.code_range(x, q)
    return _dequantized(r.codes(q), out_scale.reshape(q.scale.shape), 0)


def _greater_or_equal(r: Program, c: Context) -> Value:
    """x[..., 1] against thresholds in a last axis of their own; ReduceSum counts them."""
    x = r.numbers(c)
    thresholds = c.constant(1, "thresholds").astype(np.float64)
    alone = thresholds.ndim <= 1 or thresholds.ndim < len(x.shape) or x.shape[-1] != 1
    if isinstance(x, Real) and thresholds.size == 1 and alone:
        return _sign(r, c, x, float(thresholds.reshape(-1)[0]))
    rank = len(x.shape) + 1
    full = thresholds.reshape((1,) * (rank - thresholds.ndim) + thresholds.shape)
    if x.shape[-1] != 1 or full.ndim != rank or prod(full.shape[:-1]) != max(*full.shape[1:-1], 1):
        raise NotCovered(f"{c.where}: a comparison that is not a count of thresholds per channel")
    if (rank > 2 and full.shape[1] not in (1, x.shape[0])) or np.isnan(full).any():
        raise NotCovered(f"{c.where}: thresholds of shape {thresholds.shape} for {x.shape}")
    table = np.sort(full.reshape(-1, full.shape[-1]), axis=-1)
    if table.shape[0] > 1 and full.shape[1] == 1:
        raise NotCovered(f"{c.where}: thresholds per position")
    if isinstance(x, Real):
        return Comparison(x.moved(lambda a: a[..., 0]), table)
    return Comparison(r.reshape(x, x.shape[:-1], f"{c.name}_source"), table)


def _sign(r: Program, c: Context, x: Real, threshold: float) -> Scaled:
    """0 or 1 for the float input: half of one more than a bipolar code."""
    if not np.isfinite(threshold):
        raise NotCovered(f"{c.where}: it compares with {threshold}")
    offset = np.full((1,) * len(x.shape), -threshold, dtype=np.float32)
    source = x.then("Add", offset) if threshold else x
    codes = r.codes(unscaled(source, 0, 1, bipolar=True, name=c.name))
    return replace(codes, scale=one(x.shape) / 2, zero=Fraction(-1), base="BOOL")


# --- QuantizeLinear, DequantizeLinear -----------------------------------------------------------


def _quantize_linear(r: Program, c: Context) -> Value:
    """saturate(round_half_even(x / y_scale) + y_zero_point)."""
    x, scale, zero, axis = *_linear_operands(c, "y"), c.attribute("axis", 1)
    dtype = _declared_type(c)
    lo, hi = limits_of(c, dtype)
    if isinstance(x, Constant):
        along = _along_axis(c, x.array, axis, scale, zero)
        q = Quantized(Real(()), scale, zero, lo, hi)
        codes = q.codes(x.array.astype(np.float32), *along)
        return Constant(codes.astype(dtype_of(dtype)), declared=dtype)
    source = _source(c, x)
    scale, zero = (along_channels(a, source.shape, c.where, axis) for a in (scale, zero))
    return Quantized(source, scale, zero, lo, hi, dtype=dtype, name=c.name)


def _linear_operands(c: Context, letter: str) -> tuple[Value, Array, Array]:
    x = c.value(0)
    if c.attribute("block_size", 0) and not isinstance(x, Constant):
        raise NotCovered(f"{c.where}: activations quantized in blocks, one scale for each")
    half = letter == "x" and isinstance(x, Constant)
    scale = scale_of(c, 1, f"{letter}_scale", half)
    return x, scale, integer_zero(c, 2, f"{letter}_zero_point")


def _declared_type(c: Context) -> str:
    """The output type: that of the zero point, else output_dtype, else uint8."""
    if c.optional(2) is not None:
        return c.element_type(2)
    declared = c.attribute("output_dtype", 0)
    return type_name(declared) if declared else "UINT8"


def _along_axis(c: Context, x: Array, axis: int, *parameters: Array) -> list[Array]:
    """Parameters along one axis of a constant, or one for each block along it."""
    axis, block = axis % max(x.ndim, 1) + 1, c.attribute("block_size", 0)
    if block:
        blocks = tuple(-(-n // block) if i == axis - 1 else n for i, n in enumerate(x.shape))
        if block < 0 or any(a.shape not in (blocks, ()) for a in parameters):
            got = [a.shape for a in parameters]
            raise ShapeMismatch(f"{c.where}: parameters {got}, expected one for each of {blocks}")
        places = np.arange(x.shape[axis - 1]) // block
        return [a.take(places, axis - 1) if a.ndim else a for a in parameters]
    return [along_channels(a, x.shape, c.where, axis) for a in parameters]


def _dequantize_linear(r: Program, c: Context) -> Value:
    """(x - x_zero_point) * x_scale."""
    x, scale, zero, axis = *_linear_operands(c, "x"), c.attribute("axis", 1)
    if isinstance(x, Constant):
        along = _along_axis(c, x.array, axis, scale, zero)
        if x.array.dtype.kind not in "iu":
            raise FileFormatError(f"{c.where}: it dequantizes floats")
        return grid_of(x.array, along[1], along[0])
    codes = plain_integers(r, c)
    along_scale = along_channels(scale, codes.shape, c.where, axis)
    return _dequantized(codes, along_scale, codes.zero + one_zero_point(c, 2))


def plain_integers(r: Program, c: Context, index: int = 0) -> Scaled:
    """An integer tensor whose node holds its values, up to an integer zero."""
    x = r.scaled(c, index)
    if not x.integer:
        raise NotCovered(f"{c.where}: its input is not a tensor of integers")
    return r.plain(x, f"{c.name}_input")


TABLE: dict[str, Handler] = {
    "qonnx.Quant": _quant,
    "qonnx.IntQuant": _quant,
    "qonnx.BipolarQuant": _bipolar,
    "qonnx.MultiThreshold": _multi_threshold,
    "qonnx.Trunc": _trunc,
    "GreaterOrEqual": _greater_or_equal,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "com.microsoft.QuantizeLinear": _quantize_linear,
    "com.microsoft.DequantizeLinear": _dequantize_linear,
}
