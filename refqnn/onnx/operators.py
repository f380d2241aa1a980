"""One function per ONNX operator: the values of its inputs in, the value of its output out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch
from refqnn.formats import IntFormat
from refqnn.network import INPUT
from refqnn.onnx.values import (
    Comparison,
    Constant,
    Dropped,
    Grid,
    Quantized,
    Real,
    Scaled,
    along_channels,
    along_sample,
    float32_of,
    fractions_of,
    one,
    power_of_two,
    round_away,
    uniform,
)
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.rounding import Rounding, round_float

if TYPE_CHECKING:
    from refqnn.onnx.reader import Context, Reader

__all__ = [
    "MICROSOFT",
    "ON_GRIDS",
    "QONNX",
    "QUANTIZER_DOMAINS",
    "REASONS",
    "STANDARD",
    "WANTS_CODES",
]

Array = NDArray[Any]
Handler = Callable[["Reader", "Context"], Any]

QUANTIZER_DOMAINS = frozenset(
    ("onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general", "qonnx.custom_op")
)
"""Quant, BipolarQuant, Trunc and MultiThreshold mean the same in all of them."""

ROUNDINGS: dict[str, Rounding | str] = {
    "ROUND": Rounding.HALF_EVEN,
    "HALF_EVEN": Rounding.HALF_EVEN,
    "CEIL": Rounding.CEIL,
    "FLOOR": Rounding.FLOOR,
    "UP": "away",
    "DOWN": Rounding.TOWARD_ZERO,
    "ROUND_TO_ZERO": Rounding.TOWARD_ZERO,
    "HALF_UP": Rounding.HALF_AWAY,
    "HALF_DOWN": Rounding.HALF_TOWARD_ZERO,
}
"""QONNX's names on the left; its HALF_UP and HALF_DOWN are mirrored at zero."""

REASONS: dict[str, str] = {
    "DynamicQuantizeLinear": "its scale depends on each input, so no fixed integer program exists",
    "FloatQuant": "it quantizes to floats of few bits, which are not integers",
    "If": "control flow is not covered",
    "Loop": "control flow is not covered",
    "Scan": "control flow is not covered",
    "LayerNormalization": "it divides by a norm of its input, which has no fixed integer form",
    "InstanceNormalization": "it divides by a norm of its input, which has no fixed integer form",
    "ConvTranspose": "no node here spreads values over new positions",
    "DepthToSpace": "no node here moves values between positions",
    "Resize": "no node here moves values between positions",
    "Upsample": "no node here moves values between positions",
    "Softmax": "a softmax has an integer form at the output only, where it is left out",
}

_MULTIPLIER = 2**31  # the greatest integer ratio of two scales that are added
_MAX_BITS = 32

# --- quantizers ---------------------------------------------------------------------------------


def _bit_width(c: Context, index: int) -> int:
    array = c.constant(index, "bit width")
    bits = float(array.reshape(-1)[0])
    if array.size != 1 or bits != int(bits) or not 1 <= bits <= _MAX_BITS:
        raise NotCovered(f"{c.where}: bit width {array.tolist()}, expected an integer from 1 to 32")
    return int(bits)


def _scale(c: Context, index: int, what: str = "scale") -> Array:
    scale = c.constant(index, what)
    if scale.dtype != np.float32:
        raise NotCovered(f"{c.where}: {what} of type {scale.dtype}, expected float32")
    if scale.size == 0 or not np.isfinite(scale).all() or (scale <= 0).any():
        raise NotCovered(f"{c.where}: {what} must be positive and finite")
    return scale


def _zero_point(array: Array | None, c: Context) -> Array:
    """Integer zero points."""
    if array is None:
        return np.zeros((), dtype=np.int64)
    if (
        not np.isfinite(array).all()
        or (array != np.rint(array)).any()
        or (abs(array) > 2**31).any()
    ):
        raise NotCovered(f"{c.where}: zero point {array.ravel()[:4].tolist()} is not an integer")
    return array.astype(np.int64)


def _one_zero_point(zero_point: Array, c: Context) -> int:
    values = np.unique(zero_point)
    if values.size != 1:
        raise NotCovered(f"{c.where}: activations with one zero point per channel")
    return int(values[0])


def _like(values: Array, c: Context, shape: Shape) -> Array:
    return along_sample(values, shape, c.where)


def _grid(codes: Array, zero_point: Array, scale: Array) -> Grid:
    """A quantized constant; its float32 values are fl32(codes - zero) * scale."""
    centred = codes.astype(np.int64) - zero_point
    scale = scale.reshape((1,) * (codes.ndim - scale.ndim) + scale.shape)
    values = np.asarray(centred.astype(np.float32) * scale, dtype=np.float32)
    return Grid(values, centred, fractions_of(scale))


def _quant(r: Reader, c: Context) -> Any:
    """QONNX Quant: round(clip(x / scale + zero_point)), then (code - zero_point) * scale."""
    scale, bits = _scale(c, 1), _bit_width(c, 3)
    zero_point = _zero_point(c.optional_constant(2, "zero point"), c)
    signed, narrow = bool(c.attributes.get("signed", 1)), bool(c.attributes.get("narrow", 0))
    mode = ROUNDINGS.get(str(c.attributes.get("rounding_mode", "ROUND")).upper())
    if mode is None:
        raise NotCovered(f"{c.where}: rounding mode {c.attributes['rounding_mode']!r}")
    if bits == 1 and signed:
        return _bipolar(r, c, scale)
    fmt = IntFormat(bits, signed, narrow)
    x = c.inputs[0]
    q = Quantized(
        Real((), ()), scale, zero_point, fmt.q_min, fmt.q_max, mode, zero_first=True, name=r.name(c)
    )
    if isinstance(x, Constant):
        if isinstance(x, Grid) and np.array_equal(_codes_under(x, q), x.codes):
            return x
        codes = q.codes(x.array.astype(np.float32), scale, zero_point)
        return _grid(codes, zero_point, scale)
    source = _source(c, x)
    q.source = source
    q.scale, q.zero_point = _like(scale, c, source.shape), _like(zero_point, c, source.shape)
    return _dequantized(r.codes(q), q.scale, _one_zero_point(zero_point, c))


def _codes_under(x: Grid, q: Quantized) -> Array:
    """The codes of a grid under a quantizer, or nothing comparable when the scales differ."""
    own = float32_of(np.broadcast_to(x.scale, x.codes.shape))
    if not np.array_equal(own, np.broadcast_to(q.scale, x.codes.shape)) or q.zero_point.any():
        return np.empty(0)
    return np.clip(x.codes, q.lo, q.hi)


def _source(c: Context, x: Any) -> Real | Scaled:
    if isinstance(x, (Real, Scaled)):
        return x
    raise NotCovered(f"{c.where}: its input is not a tensor of numbers")


def _dequantized(codes: Scaled, scale: Array, zero: int | Fraction) -> Scaled:
    """(codes - zero) * scale."""
    return replace(codes, scale=fractions_of(scale), zero=Fraction(zero), integer=False)


def _bipolar(r: Reader, c: Context, scale: Array) -> Any:
    """+scale where x >= 0, else -scale."""
    x = c.inputs[0]
    zero = np.zeros((), dtype=np.int64)
    if isinstance(x, Constant):
        return _grid(np.where(x.array >= 0, 1, -1), zero, scale)
    source = _source(c, x)
    along, zero = _like(scale, c, source.shape), zero.reshape((1,) * len(source.shape))
    q = Quantized(source, np.ones_like(along), zero, 0, 1, bipolar=True, name=r.name(c))
    codes = r.codes(q)
    if isinstance(source, Real):
        return _dequantized(codes, along, 0)  # the door gives -1 and +1
    # A node of codes 0 and 1 is 2 * scale * (code - 1/2).
    return replace(codes, scale=2 * fractions_of(along), zero=Fraction(1, 2), integer=False)


def _bipolar_quant(r: Reader, c: Context) -> Any:
    return _bipolar(r, c, _scale(c, 1))


def _multi_threshold(r: Reader, c: Context) -> Any:
    """out_scale * #{k : x >= T[channel, k]} + out_bias."""
    x = _source(c, c.inputs[0])
    table = np.sort(c.constant(1, "thresholds").astype(np.float32), axis=-1)
    if table.ndim != 2 or table.size == 0 or np.isnan(table).any():
        raise FileFormatError(f"{c.where}: thresholds of shape {table.shape}, expected [C or 1, n]")
    rows = table.shape[0]
    layout = str(c.attributes.get("data_layout", ""))
    if rows > 1:
        ambiguous = not layout and len(x.shape) == 2  # qonnx then takes the last axis for channels
        if layout.find("C") not in (-1, 1) or ambiguous:
            raise NotCovered(f"{c.where}: thresholds per channel with channels in the last axis")
        if rows != x.shape[0]:
            raise ShapeMismatch(f"{c.where}: {rows} rows of thresholds for shape {x.shape}")

    scale = Fraction(float(np.float32(c.attributes.get("out_scale", 1.0))))
    bias = Fraction(float(np.float32(c.attributes.get("out_bias", 0.0))))
    if scale <= 0:
        raise NotCovered(f"{c.where}: out_scale {float(scale)}, expected a positive number")
    first = bias / scale  # the code of an input below all thresholds, if it is an integer
    start = int(first) if first.denominator == 1 and abs(first) < _MULTIPLIER else 0
    q = _counting(r, c, x, table, start)
    result = replace(r.codes(q), scale=one(x.shape) * scale, integer=False)
    if start == first:
        return result
    if first.denominator == 2:
        return replace(result, zero=-first)
    offset = np.full((1,) * len(x.shape), float(bias), dtype=np.float32)
    return result.then("Add", offset)


def _counting(r: Reader, c: Context, x: Scaled | Real, table: Array, start: int) -> Quantized:
    """start + #{k : x >= table[channel, k]} for a sorted table [channels or 1, n]."""
    rows, count = table.shape

    def codes(v: Array) -> Array:
        if rows == 1:
            return np.asarray(start + np.searchsorted(table[0], v, side="right"), dtype=np.int64)
        counts = [np.searchsorted(t, values, side="right") for t, values in zip(table, v)]
        return np.asarray(start + np.stack(counts), dtype=np.int64)

    unit = np.ones((1,) * len(x.shape), dtype=np.float32)
    zero = np.zeros(unit.shape, dtype=np.int64)
    return Quantized(x, unit, zero, start, start + count, function=codes, rows=rows, name=r.name(c))


def _greater_or_equal(r: Reader, c: Context) -> Any:
    """x[..., 1] against thresholds in a last axis of their own; `_reduce_sum` counts them."""
    x = r.numbers(c)
    thresholds = c.constant(1, "thresholds").astype(np.float64)
    if isinstance(x, Real) and thresholds.size == 1 and thresholds.ndim <= len(x.shape) + 1:
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
        return Comparison(x.moved("reshape", x.shape[:-1], x.shape[:-1]), table)
    return Comparison(r.reshape(x, x.shape[:-1], f"{r.name(c)}_source"), table)


def _sign(r: Reader, c: Context, x: Real, threshold: float) -> Scaled:
    """0 or 1 for the float input: half of one more than a bipolar code."""
    if not np.isfinite(threshold):
        raise NotCovered(f"{c.where}: it compares with {threshold}")
    offset = np.full((1,) * len(x.shape), -threshold, dtype=np.float32)
    source = _then(x, "Add", offset) if threshold else x
    unit = np.ones(offset.shape, dtype=np.float32)
    zero = np.zeros(unit.shape, dtype=np.int64)
    codes = r.codes(Quantized(source, unit, zero, 0, 1, bipolar=True, name=r.name(c)))
    return replace(codes, scale=one(x.shape) / 2, zero=Fraction(-1), integer=True)


def _reduce_sum(r: Reader, c: Context) -> Any:
    """The count of reached thresholds, or the sum over the spatial axes."""
    x, axes, keep = c.inputs[0], c.integers(1, "axes"), bool(c.attributes.get("keepdims", 1))
    if isinstance(x, Comparison):
        rank = len(x.source.shape) + 2
        if axes is None or [a % rank for a in axes] != [rank - 1] or keep:
            raise NotCovered(f"{c.where}: a sum over axes {axes} of comparisons")
        count = _counting(r, c, x.source, x.thresholds.astype(np.float64), 0)
        return replace(count, rounded=isinstance(x.source, Real))
    v = r.scaled(c)
    rank = len(v.shape) + 1
    if axes is None or sorted(a % rank for a in axes) != list(range(2, rank)) or rank < 3:
        raise NotCovered(f"{c.where}: a sum over axes {axes}, expected the spatial axes")
    total = _sum_over_positions(r, c, v)
    ones = (v.shape[0], *(1,) * (len(v.shape) - 1))
    return r.reshape(total, ones, f"{r.name(c)}_shape") if keep else total


def _trunc(r: Reader, c: Context) -> Any:
    """Codes lose their lowest bits: round(code / 2**t); versions 1 and 2 of the operator."""
    x = _source(c, c.inputs[0])
    if isinstance(x, Real):
        raise NotCovered(f"{c.where}: it truncates the float input, which has no codes yet")
    second = len(c.inputs) >= 6
    scale, zero_point = (
        _scale(c, 1),
        _one_zero_point(_zero_point(c.constant(2, "zero point"), c), c),
    )
    mode = ROUNDINGS.get(str(c.attributes.get("rounding_mode", "FLOOR")).upper())
    if scale.size != 1 or zero_point != 0 or mode is None:
        raise NotCovered(
            f"{c.where}: one scale, zero point 0 and a known rounding mode are covered"
        )
    (s,) = scale.ravel()
    if second:
        out_scale = _scale(c, 4, "output scale")
        t = int(np.rint(np.log2(out_scale.ravel()[0] / s)))
        fmt = IntFormat(
            _bit_width(c, 5),
            bool(c.attributes.get("signed", 1)),
            bool(c.attributes.get("narrow", 0)),
        )
        lo, hi = fmt.q_min, fmt.q_max
    else:
        out_scale = scale
        t = _bit_width(c, 3) - _bit_width(c, 4)
        lo, hi = -(2**31), 2**31 - 1
    if not 0 <= t <= 31 or out_scale.size != 1:
        raise NotCovered(f"{c.where}: it keeps more bits than it gets")

    def codes(v: Array) -> Array:
        y = np.rint(v / s).astype(np.float64) / 2.0**t
        rounded = round_away(y) if mode == "away" else round_float(y, mode)
        return np.asarray(np.clip(rounded, lo, hi), dtype=np.int64)

    unit = np.ones((1,) * len(x.shape), dtype=np.float32)
    zero = np.zeros(unit.shape, dtype=np.int64)
    q = Quantized(x, unit, zero, lo, hi, function=codes, name=r.name(c))
    if not second:
        q.lo, q.hi = r.code_range(x, q)
    return _dequantized(r.codes(q), out_scale.reshape(unit.shape), 0)


def _quantize_linear(r: Reader, c: Context) -> Any:
    """saturate(round_half_even(x / y_scale) + y_zero_point)."""
    x, scale = c.inputs[0], _scale(c, 1, "y_scale")
    if c.attributes.get("block_size", 0):
        raise NotCovered(f"{c.where}: blocked quantization")
    zero_point = c.optional_constant(2, "y_zero_point")
    lo, hi = _declared_limits(r, c, zero_point)
    zero = _zero_point(zero_point, c)
    axis = int(c.attributes.get("axis", 1))
    if isinstance(x, Constant):
        along = [_constant_axis(a, x.array.ndim, axis) for a in (scale, zero)]
        q = Quantized(Real((), ()), scale, zero, lo, hi)
        codes = q.codes(x.array.astype(np.float32), *along)
        return Constant(codes.astype(np.int32))
    source = _source(c, x)
    along_scale, along_zero = (
        along_channels(a, source.shape, c.where, axis) for a in (scale, zero)
    )
    return Quantized(source, along_scale, along_zero, lo, hi, name=r.name(c))


def _declared_limits(r: Reader, c: Context, zero_point: Array | None) -> tuple[int, int]:
    """The codes of the output type: that of the zero point, else output_dtype, else uint8."""
    name = r.element_type(c.proto.input[2]) if zero_point is not None else ""
    if zero_point is None and c.attributes.get("output_dtype", 0):
        name = r.type_name(int(c.attributes["output_dtype"]))
    name = name or "UINT8"
    bits = name.lstrip("UINT")
    if not name.startswith(("INT", "UINT")) or not bits.isdigit():
        raise NotCovered(f"{c.where}: it quantizes to {name}, expected integers")
    fmt = IntFormat(min(int(bits), 32), signed=name.startswith("INT"))
    return fmt.q_min, fmt.q_max


def _constant_axis(values: Array, ndim: int, axis: int) -> Array:
    """A vector along one axis of a constant of `ndim` axes."""
    if values.size == 1:
        return values.reshape((1,) * ndim)
    return values.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def _dequantize_linear(r: Reader, c: Context) -> Any:
    """(x - x_zero_point) * x_scale."""
    x, scale = c.inputs[0], _scale(c, 1, "x_scale")
    if c.attributes.get("block_size", 0):
        raise NotCovered(f"{c.where}: blocked quantization")
    zero = _zero_point(c.optional_constant(2, "x_zero_point"), c)
    axis = int(c.attributes.get("axis", 1))
    if isinstance(x, Constant):
        along = [_constant_axis(a, x.array.ndim, axis) for a in (scale, zero)]
        if x.array.dtype.kind not in "iu":
            raise FileFormatError(f"{c.where}: it dequantizes floats")
        return _grid(x.array, along[1], along[0])
    if not isinstance(x, Scaled) or not x.integer:
        raise NotCovered(f"{c.where}: its input is not a tensor of integers")
    value = _as_integers(x, c)
    return _dequantized(
        value, along_channels(scale, x.shape, c.where, axis), x.zero + _one_zero_point(zero, c)
    )


def _as_integers(x: Scaled, c: Context) -> Scaled:
    """An integer tensor whose node holds its values, up to an integer zero."""
    if x.steps or any(s != 1 for s in x.scale.ravel()):
        raise NotCovered(f"{c.where}: its input is an integer function of an accumulator")
    return x


# --- elementwise --------------------------------------------------------------------------------


def _binary(step: str) -> Handler:
    """Add and Mul of activations and a constant, in either order, or of two activations."""

    def handle(r: Reader, c: Context) -> Any:
        a, b = c.inputs
        if isinstance(a, Constant):
            a, b = b, a
        if isinstance(a, Quantized) and step == "Add" and _is_shift(a, b):
            n = int(b.array.reshape(-1)[0])
            return replace(a, zero_point=a.zero_point + n, lo=a.lo + n, hi=a.hi + n, done=None)
        a, b = (r.codes(v) if isinstance(v, Quantized) else v for v in (a, b))
        if isinstance(a, Real):
            return _real_with(c, a, b, step)
        if isinstance(b, Constant):
            return _with_constant(r, c, a, b, step)
        if step == "Add":
            return _add(r, c, a, b, +1)
        return _product(r, c, a, b)

    return handle


def _is_shift(q: Quantized, value: Any) -> bool:
    """Is value an integer that moves the codes of a rounded, not yet quantized, input?"""
    if not q.rounded or not isinstance(value, Constant) or value.array.size != 1:
        return False
    number = float(value.array.reshape(-1)[0])
    return number == np.rint(number) and abs(number) < _MULTIPLIER


def _rounding(mode: Rounding, step: str) -> Handler:
    """Round, Floor, Ceil: on the float input, the beginning of a quantizer written out."""

    def handle(r: Reader, c: Context) -> Any:
        x = c.inputs[0]
        if not isinstance(x, Real):
            return _then(r.numbers(c), step)
        unit = np.ones((1,) * len(x.shape), dtype=np.float32)
        zero = np.zeros(unit.shape, dtype=np.int64)
        lo, hi = -(2**31) + 1, 2**31 - 1
        return Quantized(x, unit, zero, lo, hi, mode, rounded=True, name=r.name(c))

    return handle


def _unpadded(c: Context, x: Scaled | Real) -> None:
    if x.pad:
        raise NotCovered(f"{c.where}: its input is padded; only a convolution takes padding")


def _then(x: Scaled | Real, op: str, *args: Array) -> Scaled | Real:
    """One more float32 operator."""
    if isinstance(x, Real) and x.pad:
        raise NotCovered(f"{op} on a padded float input: quantize it first")
    y = x.then(op, *args)
    return replace(y, integer=False) if isinstance(y, Scaled) else y


def _real_with(c: Context, real: Real, b: Any, step: str) -> Scaled | Real:
    """The float input and a constant."""
    if not isinstance(b, Constant):
        raise NotCovered(f"{c.where}: the float input and another tensor that depends on it")
    operand = along_sample(b.array.astype(np.float32), real.shape, c.where)
    if not np.isfinite(operand).all() or (step == "Div" and (operand == 0).any()):
        raise FileFormatError(f"{c.where}: its constant operand is not finite, or zero")
    return _then(replace(real, name=str(c.proto.output[0])), step, operand)


def _operand(c: Context, x: Scaled, value: Constant) -> Array:
    array = along_sample(value.array.astype(np.float32), x.shape, c.where)
    if not np.isfinite(array).all():
        raise FileFormatError(f"{c.where}: its constant operand is not finite")
    return array


def _with_constant(r: Reader, c: Context, x: Any, value: Constant, step: str) -> Any:
    if not isinstance(x, Scaled):
        raise NotCovered(f"{c.where}: its input is not a tensor of numbers")
    if x.pad:
        raise NotCovered(f"{c.where}: its input is padded; only a convolution takes padding")
    if step == "Add":
        folded = r.with_bias(x, value, r.name(c), c.where)
        if folded is not None:
            return folded
        shift = _codes_in(x, value)
        if shift is not None:
            return replace(x, zero=x.zero - shift)
    if step in ("Mul", "Div") and not x.steps and value.array.size == 1:
        (factor,) = fractions_of(value.array).ravel() if np.isfinite(value.array).all() else (0,)
        whole = x.integer and step == "Mul" and value.array.dtype.kind in "iu"
        if whole or (value.array.dtype.kind == "f" and power_of_two(Fraction(factor))):
            scale = x.scale * factor if step == "Mul" else x.scale / factor
            return replace(x, scale=scale, integer=whole)
    if step == "Div" and (np.asarray(value.array) == 0).any():
        raise FileFormatError(f"{c.where}: division by zero")
    if step == "Add" and not np.asarray(value.array).any():
        along_sample(value.array, x.shape, c.where)
        return x
    integer = x.integer and step == "Add" and value.array.dtype.kind in "iu"
    return replace(x.then(step, _operand(c, x, value)), integer=integer)


def _codes_in(x: Scaled, value: Constant) -> int | None:
    """How many codes of x a scalar constant is, when adding it to them is exact."""
    if x.steps or value.array.size != 1 or x.scale.size != 1:
        return None
    (scale,) = x.scale.ravel()
    number = value.array.reshape(-1)[0]
    if not power_of_two(scale) or not np.isfinite(number):
        return None
    codes = Fraction(number.item()) / scale
    return int(codes) if codes.denominator == 1 and abs(codes) < 2**23 else None


def _sub(r: Reader, c: Context) -> Any:
    """a - b; a constant minus an activation is the negated activation plus the constant."""
    a, b = c.inputs
    if isinstance(b, Constant):
        negative = Grid(-b.array, -b.codes, b.scale) if isinstance(b, Grid) else Constant(-b.array)
        if isinstance(a, Real):
            return _real_with(c, a, negative, "Add")
        return _with_constant(r, c, a, negative, "Add")
    if isinstance(a, Constant):
        if not isinstance(b, Scaled):
            return _real_with(c, _neg_of(c, b), a, "Add")
        return _with_constant(r, c, replace(b.then("Neg"), integer=False), a, "Add")
    return _add(r, c, a, b, -1)


def _div(r: Reader, c: Context) -> Any:
    a, b = c.inputs
    if not isinstance(b, Constant):
        raise NotCovered(f"{c.where}: division by a tensor that depends on the input")
    if isinstance(a, Real):
        return _real_with(c, a, b, "Div")
    return _with_constant(r, c, a, b, "Div")


def _neg_of(c: Context, x: Any) -> Any:
    if not isinstance(x, Real):
        raise NotCovered(f"{c.where}: its input is not a tensor of numbers")
    return _then(x, "Neg")


def _neg(r: Reader, c: Context) -> Any:
    return _then(r.numbers(c), "Neg")


def _add(r: Reader, c: Context, a: Any, b: Any, sign: int, name: str = "") -> Scaled:
    """Two activations: m_a * a + m_b * b in units of the common divisor of their scales."""
    if not isinstance(a, Scaled) or not isinstance(b, Scaled):
        raise NotCovered(f"{c.where}: it adds the float input; a quantizer must come first")
    if a.shape != b.shape:
        raise NotCovered(
            f"{c.where}: it adds shapes {a.shape} and {b.shape}; broadcasting two "
            "activations is not covered"
        )
    if a.pad or b.pad:
        raise NotCovered(f"{c.where}: its input is padded; only a convolution takes padding")
    (scale_a, offset_a), (scale_b, offset_b) = a.affine(c.where), b.affine(c.where)
    flat_a, flat_b = uniform(scale_a), uniform(scale_b)
    if flat_a.size > 1 or flat_b.size > 1:
        raise NotCovered(
            f"{c.where}: it adds tensors with one scale per channel; quantize them first"
        )
    (s_a,), (s_b,) = flat_a.ravel(), flat_b.ravel()
    s_b = sign * s_b
    if s_a == 0 or s_b == 0:
        raise NotCovered(f"{c.where}: an operand has scale 0")
    ratio = s_a / abs(s_b)
    m_a = ratio.numerator
    m_b = ratio.denominator * (1 if s_b > 0 else -1)
    if max(abs(m_a), abs(m_b)) > _MULTIPLIER:
        raise NotCovered(
            f"{c.where}: the ratio of its scales, {float(s_a)} and {float(s_b)}, needs integers "
            "beyond 31 bits; quantize both operands to one scale"
        )
    unit = abs(s_b) / ratio.denominator
    if s_a.denominator == 1 and s_b.denominator == 1:  # the file's own integers
        m_a, m_b, unit = int(s_a), int(s_b), Fraction(1)
    multipliers = None if (m_a, m_b) == (1, 1) else (m_a, m_b)
    node = r.emit(name or r.name(c), Add(multipliers), (a.node, b.node))
    integer = a.integer and b.integer
    zero = m_a * a.zero + m_b * b.zero
    result = Scaled(node, a.shape, one(a.shape) * unit, zero, integer=integer)
    offset = offset_a + sign * offset_b
    if any(o != 0 for o in offset.ravel()):
        result = result.then("Add", float32_of(offset))
    return result


def _product(r: Reader, c: Context, a: Any, b: Any) -> Scaled:
    """The product of two activations that are functions of one integer, such as x * sigmoid(x)."""
    if isinstance(a, Scaled) and isinstance(b, Scaled) and a.node == b.node:
        x, y = (a, b) if len(a.steps) < len(b.steps) else (b, a)
        gate = y.steps[len(x.steps) :]
        same = all(s is t for s, t in zip(x.steps, y.steps)) and x.zero == y.zero
        if same and x.scale is y.scale and len(gate) == 1 and gate[0].op in _GATES:
            return x.then(_GATES[gate[0].op], *gate[0].args)
    if isinstance(a, Scaled) and isinstance(b, Scaled) and a.shape == b.shape:
        product = r.product(a, b)
        if product is not None:
            return product
    raise NotCovered(
        f"{c.where}: the product of two tensors that depend on the input in different ways"
    )


_GATES = {"Sigmoid": "Silu", "HardSigmoid": "HardSiluGate"}


def _step(op: str, **defaults: float) -> Handler:
    """A univariate float operator whose attributes are its constants."""

    def handle(r: Reader, c: Context) -> Any:
        x = r.numbers(c)
        constants = [np.float32(c.attributes.get(k, v)) for k, v in defaults.items()]
        args = [np.full((1,) * len(x.shape), v, dtype=np.float32) for v in constants]
        return _then(x, op, *args)

    return handle


def _gelu(r: Reader, c: Context) -> Any:
    kind = {"none": "Gelu", "tanh": "GeluTanh"}.get(str(c.attributes.get("approximate", "none")))
    if kind is None:
        raise NotCovered(f"{c.where}: approximate={c.attributes['approximate']!r}")
    return r.scaled(c).then(kind)


def _relu(r: Reader, c: Context) -> Any:
    x = c.inputs[0]
    if isinstance(x, Quantized):  # an integer Relu on codes
        return _clip_codes(x, 0, x.hi)
    return r.numbers(c).then("Relu")


def _prelu(r: Reader, c: Context) -> Any:
    x = r.numbers(c)
    slope = along_sample(c.constant(1, "slope").astype(np.float32), x.shape, c.where)
    return x.then("LeakyRelu", slope)


def _clip(r: Reader, c: Context) -> Any:
    """Clip, Min and Max with constants."""
    x, op = c.inputs[0], c.proto.op_type
    limits: list[Any] = [None, None]
    if op == "Clip":
        limits = [c.attributes.get("min"), c.attributes.get("max")]
        for i in (1, 2):
            array = c.optional_constant(i, "limit")
            if array is not None:
                limits[i - 1] = array
    else:
        if isinstance(x, Constant):
            c.inputs = [c.inputs[1], c.inputs[0]]
            x = c.inputs[0]
        limits[1 if op == "Min" else 0] = c.constant(1, "operand")
        if len(c.inputs) > 2:
            raise NotCovered(f"{c.where}: more than two operands")
    if isinstance(x, Quantized):
        ends = [None if v is None else int(np.asarray(v).reshape(-1)[0]) for v in limits]
        return _clip_codes(
            x, x.lo if ends[0] is None else ends[0], x.hi if ends[1] is None else ends[1]
        )
    v = r.numbers(c)
    infinity = (np.float32(-np.inf), np.float32(np.inf))
    args = [
        along_sample(np.asarray(f if limit is None else limit, dtype=np.float32), v.shape, c.where)
        for limit, f in zip(limits, infinity)
    ]
    if any(np.isnan(a).any() for a in args):
        raise FileFormatError(f"{c.where}: a limit is NaN")
    return v.then("Clip", *args)


def _clip_codes(q: Quantized, lo: int, hi: int) -> Quantized:
    """A clip of codes that are not a node yet narrows them."""
    low, high = min(max(q.lo, lo), hi), max(min(q.hi, hi), lo)
    return replace(q, lo=low, hi=max(low, high), done=None)


def _cast(r: Reader, c: Context) -> Any:
    """Between floats and integers that hold the same values."""
    x = c.inputs[0]
    name = r.type_name(int(c.attributes.get("to", 1)))
    if isinstance(x, Comparison):
        return x
    if isinstance(x, Real):
        if name == "FLOAT":
            return x
        raise NotCovered(
            f"{c.where}: it casts the float input to {name}; a quantizer must come first"
        )
    v = r.scaled(c)
    if name == "FLOAT":
        return replace(v, integer=False)
    bits = name.lstrip("UINT")
    if not name.startswith(("INT", "UINT")) or not bits.isdigit() or not _holds_integers(r, v):
        raise NotCovered(f"{c.where}: a cast to {name} of values that are not integers")
    fmt_lo = 0 if name[0] == "U" else -(2 ** (int(bits) - 1))
    fmt_hi = fmt_lo + 2 ** int(bits) - 1
    interval, (scale,) = r.ranges[v.node], uniform(v.scale).ravel()
    lo, hi = (int((e - v.zero) * scale) for e in (interval.lo.min(), interval.hi.max()))
    if not fmt_lo <= lo <= hi <= fmt_hi:
        raise NotCovered(f"{c.where}: values in [{lo}, {hi}] wrap in {name}")
    return replace(v, integer=True)


def _holds_integers(r: Reader, v: Scaled) -> bool:
    """Are all values of the ONNX tensor integers?"""
    if v.is_integers:
        return True
    step = r.input_format.step if v.node == INPUT and r.input_format is not None else 1
    scale = uniform(v.scale)
    if v.steps or scale.size != 1:
        return False
    (s,) = scale.ravel()
    first = int(r.ranges[v.node].lo.min())
    return bool(s > 0 and (s * step).denominator == 1 and ((first - v.zero) * s).denominator == 1)


def _batch_norm(r: Reader, c: Context) -> Any:
    """x * alpha + beta; alpha = gamma / sqrt(var + eps), beta = b - mean * alpha, in float32."""
    if c.attributes.get("training_mode", 0) or len([o for o in c.proto.output if o]) > 1:
        raise NotCovered(f"{c.where}: batch normalization in training mode")
    x = r.numbers(c)
    names = ("scale", "bias", "mean", "variance")
    gamma, beta, mean, var = (c.constant(i + 1, n).astype(np.float32) for i, n in enumerate(names))
    epsilon = np.float32(c.attributes.get("epsilon", 1e-5))
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / np.sqrt(var + epsilon)
        alpha = gamma * inverse
        offset = beta - mean * alpha
    if not (np.isfinite(alpha) & np.isfinite(offset)).all():
        raise FileFormatError(f"{c.where}: its parameters are not finite")
    args = [along_channels(a, x.shape, c.where) for a in (alpha, offset)]
    return _then(x, "Affine", *args)


def _gather(r: Reader, c: Context) -> Any:
    """A table indexed by integers: y = table[x]."""
    table, x = c.constant(0, "table"), r.scaled(c, 1)
    integral = np.isfinite(table).all() and (table == np.rint(table)).all()
    if table.ndim != 1 or not x.integer or not integral:
        raise NotCovered(f"{c.where}: it gathers from a tensor of shape {table.shape}")
    scale, offset = x.affine(c.where)
    steps = [a.reshape(-1) for a in (scale, offset) if prod(a.shape[1:]) == 1]
    interval = r.ranges[x.node]
    lo, hi = int(interval.lo.min()), int(interval.hi.max())
    if len(steps) != 2 or hi - lo >= 2**20 or any(v.denominator != 1 for s in steps for v in s):
        raise NotCovered(f"{c.where}: its index is not an integer of a small range per channel")
    slope, start = (a.astype(np.int64)[:, None] for a in steps)
    index = slope * (np.arange(lo, hi + 1) - int(x.zero)) + start  # [channels or 1, n]
    if index.min() < 0 or index.max() >= table.size:
        raise NotCovered(f"{c.where}: its index may leave the table of {table.size} values")
    node = r.emit(r.name(c), Lookup(table.astype(np.int64)[index], lo), (x.node,))
    return Scaled(node, x.shape, one(x.shape), integer=table.dtype.kind in "iu")


def _identity(r: Reader, c: Context) -> Any:
    if c.proto.op_type == "Dropout" and c.optional(2) is not None and c.constant(2, "mode").any():
        raise NotCovered(f"{c.where}: dropout in training mode")
    return [c.inputs[0]] * len(c.proto.output)


# --- sums ---------------------------------------------------------------------------------------


def _linear(weight: Array, bias: Array | None, _: int) -> Op:
    return Linear(weight, bias)


def _vector(r: Reader, c: Context, x: Scaled, features: int) -> Scaled:
    if x.shape == (features,):
        return x
    if x.shape[-1] == features and prod(x.shape) == features:
        return r.reshape(x, (features,), f"{r.name(c)}_vector")
    raise NotCovered(f"{c.where}: samples of shape {x.shape} times a matrix of {features} rows")


def _transposed(value: Any, c: Context) -> Any:
    if not isinstance(value, Constant):
        raise NotCovered(f"{c.where}: the product of two tensors that depend on the input")
    if value.array.ndim != 2:
        raise NotCovered(f"{c.where}: weights of shape {value.array.shape}, expected a matrix")
    return value.map(np.transpose) if isinstance(value, Grid) else Constant(value.array.T)


def _matmul(r: Reader, c: Context) -> Any:
    x = r.scaled(c)
    weight, scale = r.weights(_transposed(c.inputs[1], c), c.where)
    vector = _vector(r, c, x, weight.shape[1])
    y = r.sum(c, vector, weight, scale, None, _linear)
    return y if len(x.shape) == 1 else r.reshape(y, (*x.shape[:-1], *y.shape), f"{r.name(c)}_shape")


def _xnor_popcount(r: Reader, c: Context) -> Any:
    """How many of K bits agree: K - sum(w) + sum over k of (2 w - 1) x."""
    x, w = r.scaled(c), c.constant(1, "weights")
    if w.ndim != 2 or not np.isin(w, (0, 1)).all() or not _holds_integers(r, x):
        raise NotCovered(f"{c.where}: it counts bits; its operands are not all 0 or 1")
    interval, (scale,) = r.ranges[x.node], uniform(x.scale).ravel()
    ends = [(int(e) - x.zero) * scale for e in (interval.lo.min(), interval.hi.max())]
    if min(ends) < 0 or max(ends) > 1:
        raise NotCovered(f"{c.where}: it counts bits; its input reaches {float(max(ends))}")
    signs = 2 * w.astype(np.int64).T - 1
    bias = Constant(len(w) - w.astype(np.int64).sum(axis=0))
    unit = np.array([Fraction(1)], dtype=object)
    return r.sum(c, _vector(r, c, x, len(w)), signs, unit, bias, _linear)


def _gemm(r: Reader, c: Context) -> Any:
    """alpha * x @ W + beta * b."""
    if c.attributes.get("transA", 0):
        raise NotCovered(f"{c.where}: transA")
    x, w = r.scaled(c), c.inputs[1]
    alpha, beta = (np.float32(c.attributes.get(k, 1.0)) for k in ("alpha", "beta"))
    transposed = _transposed(w, c)
    weight, scale = r.weights(w if c.attributes.get("transB", 0) else transposed, c.where)
    scale = scale * Fraction(float(alpha))
    bias = c.optional(2)
    if bias is not None and beta != 1:
        bias = Constant(c.constant(2, "bias").astype(np.float32) * beta)
    return r.sum(c, _vector(r, c, x, weight.shape[1]), weight, scale, bias, _linear)


def _window(c: Context, x: Scaled, kernel: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """strides, padding, dilations of a convolution or pooling."""
    axes = len(kernel)
    strides = tuple(c.attributes.get("strides", [1] * axes))
    dilations = tuple(c.attributes.get("dilations", [1] * axes))
    pads = list(c.attributes.get("pads", [0] * (2 * axes)))
    auto = str(c.attributes.get("auto_pad", "NOTSET"))
    if (
        len(strides) != axes
        or len(dilations) != axes
        or len(pads) != 2 * axes
        or min(strides + dilations) < 1
        or min(pads) < 0
        or max(*strides, *dilations, *pads) > 2**16
    ):
        raise FileFormatError(f"{c.where}: strides, dilations or pads do not fit {axes} axes")
    sizes = x.shape[1:]
    if len(sizes) != axes:
        raise ShapeMismatch(f"{c.where}: kernel {kernel} over samples of shape {x.shape}")
    padding = tuple(zip(pads[:axes], pads[axes:]))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(sizes, strides, dilations, kernel)
        ]
        halves = [(t // 2, t - t // 2) for t in totals]
        padding = tuple(h if auto == "SAME_UPPER" else h[::-1] for h in halves)
    elif auto == "VALID":
        padding = ((0, 0),) * axes
    elif auto != "NOTSET":
        raise FileFormatError(f"{c.where}: auto_pad {auto!r}")
    if x.pad:
        padding = tuple((a + p, b + q) for (a, b), (p, q) in zip(padding, x.pad))
    return strides, padding, dilations


def _conv(r: Reader, c: Context) -> Any:
    return _convolution(r, c, r.scaled(c), c.inputs[1], c.optional(2))


def _convolution(r: Reader, c: Context, x: Scaled, w: Any, bias: Any, name: str = "") -> Scaled:
    weight, scale = r.weights(w, c.where)
    axes = weight.ndim - 2
    if axes not in (1, 2):
        raise NotCovered(f"{c.where}: a convolution over {axes} axes")
    strides, padding, dilations = _window(c, x, weight.shape[2:])
    groups = int(c.attributes.get("group", 1))
    if groups < 1 or weight.shape[0] % groups or x.shape[0] % groups:
        raise FileFormatError(f"{c.where}: group {groups} does not divide the channels")
    r.check_size([d + sum(p) for d, p in zip(x.shape, ((0, 0), *padding))], c.where)
    kind = (Conv1d, Conv2d)[axes - 1]

    def make(weight: Array, bias: Array | None, pad_code: int) -> Op:
        return kind(weight, bias, strides, padding, dilations, groups, pad_code)

    padded = any(sum(p) for p in padding)
    if x.pad_code is not None and any(c.attributes.get("pads", ())):
        raise NotCovered(f"{c.where}: padding twice, with different values")
    return r.sum(c, replace(x, pad=()), weight, scale, bias, make, groups, padded, name)


def _average_pool(r: Reader, c: Context) -> Any:
    return _averaged(r, c, r.scaled(c))


def _averaged(r: Reader, c: Context, x: Scaled) -> Scaled:
    """The sum of the window divided by its size, in float32."""
    kernel = tuple(c.attributes.get("kernel_shape", ()))
    if len(kernel) != 2 or min(kernel) < 1 or max(kernel) > 2**16:
        raise NotCovered(f"{c.where}: average pooling with kernel {kernel}, expected two sizes")
    strides, padding, dilations = _window(c, x, kernel)
    if dilations != (1, 1) or _ceil_excess(c, x, kernel, strides, padding) != (0, 0):
        raise NotCovered(f"{c.where}: average pooling with dilation or ceil_mode")
    own = any(c.attributes.get("pads", ())) or (any(map(sum, padding)) and not x.pad)
    if own and x.pad:
        raise NotCovered(f"{c.where}: padding twice")
    if any(sum(p) for p in padding) and x.zero.denominator != 1:
        x = r.centred(x, r.name(c))
    pad_code = int(x.zero) if x.pad_code is None else x.pad_code
    value = _poolable(c, replace(x, pad=(), pad_code=None))
    op = SumPool2d(kernel, strides, padding, pad_code)
    node = r.emit(r.name(c), op, (value.node,))
    total = _total(value, node, r.shapes[node], prod(kernel))
    divisor = np.full((1,) * len(total.shape), prod(kernel), dtype=np.float32)
    if own and not c.attributes.get("count_include_pad", 0):
        sizes = [
            _inside(n, out, k, stride, pads)
            for n, out, k, stride, pads in zip(
                x.shape[1:], total.shape[1:], kernel, strides, padding
            )
        ]
        divisor = np.asarray(np.multiply.outer(*sizes)[None], dtype=np.float32)
        if divisor.min() == 0:
            raise FileFormatError(f"{c.where}: a window of padding alone")
    # The division by the window is one float32 operation, as a runtime does it.
    return replace(total.then("Div", divisor), integer=False)


def _inside(n: int, positions: int, kernel: int, stride: int, pads: tuple[int, int]) -> Array:
    """How many of the kernel's places lie on one of n values, at each position."""
    first = np.arange(positions) * stride - pads[0]
    return np.asarray(np.minimum(first + kernel, n) - np.maximum(first, 0))


def _poolable(c: Context, x: Scaled) -> Scaled:
    """Sums commute with a scale and an offset, if they are the same at every position."""
    scale, offset = x.affine(c.where)
    if prod(scale.shape[1:]) != 1 or any(o != 0 for o in offset.ravel()):
        raise NotCovered(f"{c.where}: its input has a float offset; quantize it first")
    return (
        x
        if all(s.op in ("Mul", "Div", "Neg") for s in x.steps)
        else replace(x, scale=scale, steps=())
    )


def _total(x: Scaled, node: str, shape: Shape, count: int) -> Scaled:
    """The sum of `count` values, an integer node."""

    def narrow(a: Array) -> Array:
        return a.reshape(a.shape[0], *(1,) * (len(shape) - 1))

    return replace(
        x,
        node=node,
        shape=shape,
        scale=narrow(x.scale),
        zero=x.zero * count,
        steps=tuple(replace(s, args=tuple(narrow(a) for a in s.args)) for s in x.steps),
    )


def _global_average(r: Reader, c: Context) -> Any:
    x = r.scaled(c)
    return _mean_over_positions(r, c, x, keep=True)


def _reduce_mean(r: Reader, c: Context) -> Any:
    x = r.scaled(c)
    axes = c.integers(1, "axes")
    rank = len(x.shape) + 1
    wanted = set(range(2, rank))
    if axes is None or {a % rank for a in axes} != wanted:
        raise NotCovered(f"{c.where}: a mean over axes {axes}, expected the spatial axes")
    return _mean_over_positions(r, c, x, keep=bool(c.attributes.get("keepdims", 1)))


def _sum_over_positions(r: Reader, c: Context, x: Scaled) -> Scaled:
    value = _poolable(c, x)
    node = r.emit(r.name(c), GlobalSumPool(), (value.node,))
    return _total(value, node, x.shape[:1], prod(x.shape[1:]))


def _mean_over_positions(r: Reader, c: Context, x: Scaled, keep: bool) -> Scaled:
    if x.pad or len(x.shape) < 2:
        raise NotCovered(f"{c.where}: global pooling of samples of shape {x.shape}")
    total = _sum_over_positions(r, c, x)
    divisor = np.full((1,), prod(x.shape[1:]), dtype=np.float32)
    mean = replace(total.then("Div", divisor), integer=False)
    ones = (x.shape[0], *(1,) * (len(x.shape) - 1))
    return r.reshape(mean, ones, f"{r.name(c)}_shape") if keep else mean


def _ceil_excess(
    c: Context, x: Scaled, kernel: tuple[int, ...], strides: Any, padding: Any
) -> tuple[int, ...]:
    """Extra padding at the ends that ceil_mode asks for."""
    if not c.attributes.get("ceil_mode", 0):
        return (0,) * len(kernel)
    excess = []
    for n, k, s, (before, after) in zip(x.shape[1:], kernel, strides, padding):
        left = (before + n + after - k) % s
        positions = -(-(before + n + after - k) // s)
        starts_inside = positions * s < n + before
        excess.append(s - left if left and starts_inside else 0)
    return tuple(excess)


def _max_pool(r: Reader, c: Context) -> Any:
    """Maxima commute with every nondecreasing function."""
    if len([o for o in c.proto.output if o]) > 1 or c.attributes.get("storage_order", 0):
        raise NotCovered(f"{c.where}: max pooling with indices")
    x = r.scaled(c)
    kernel = tuple(c.attributes.get("kernel_shape", ()))
    if c.proto.op_type == "GlobalMaxPool":
        kernel = x.shape[1:]
    if len(kernel) not in (1, 2) or min(kernel) < 1 or max(kernel) > 2**16:
        raise NotCovered(f"{c.where}: max pooling with kernel {kernel}, expected one or two sizes")
    if x.pad:
        raise NotCovered(f"{c.where}: its input is padded with zeros")
    strides, padding, dilations = _window(c, x, kernel)
    if set(dilations) != {1}:
        raise NotCovered(f"{c.where}: max pooling with dilation")
    excess = _ceil_excess(c, x, kernel, strides, padding)
    padding = tuple((a, b + e) for (a, b), e in zip(padding, excess))
    increasing = r.increasing(x)
    parameters = (
        [increasing.scale, *(a for s in increasing.steps for a in s.args)] if increasing else []
    )
    if increasing is None or any(prod(p.shape[1:]) != 1 for p in parameters):
        raise NotCovered(
            f"{c.where}: maxima of a function that is not increasing; quantize it first"
        )
    value, name = increasing, r.name(c)
    if len(kernel) == 1:
        value = r.reshape(value, (x.shape[0], 1, x.shape[1]), f"{name}_in")
        kernel, strides, padding = (1, *kernel), (1, *strides), ((0, 0), *padding)
    node = r.emit(name, MaxPool2d(kernel, strides, padding), (value.node,))
    pooled = replace(value, node=node, shape=r.shapes[node])
    return (
        r.reshape(pooled, (pooled.shape[0], pooled.shape[2]), f"{name}_out")
        if len(x.shape) == 2
        else pooled
    )


# --- shapes -------------------------------------------------------------------------------------


def _reshaped(r: Reader, c: Context, shape: Shape) -> Any:
    x = c.inputs[0]
    if not isinstance(x, (Real, Scaled)):
        raise NotCovered(f"{c.where}: its input is not a tensor of numbers")
    if prod(shape) != prod(x.shape) or not shape or min(shape) < 1:
        raise NotCovered(f"{c.where}: shape {x.shape} to {shape} touches the batch axis")
    if isinstance(x, Real):
        _unpadded(c, x)
        return x.moved("reshape", shape, shape)
    return r.reshape(x, shape, r.name(c))


def _reshape(r: Reader, c: Context) -> Any:
    """The first axis is the batch and stays."""
    x = c.inputs[0]
    if isinstance(x, Grid):
        target = tuple(int(d) for d in c.constant(1, "shape"))
        if 0 in target:
            target = tuple(x.codes.shape[i] if d == 0 else d for i, d in enumerate(target))
        return x.map(lambda a: a.reshape(target))
    target = tuple(int(d) for d in c.constant(1, "shape").ravel())
    full = (r.batch, *x.shape)
    if not c.attributes.get("allowzero", 0):
        target = tuple(full[i] if d == 0 else d for i, d in enumerate(target))
    if target.count(-1) > 1 or not target:
        raise FileFormatError(f"{c.where}: shape {target}")
    first, rest = target[0], target[1:]
    if -1 in rest:
        known = prod(d for d in rest if d != -1)
        if first != r.batch or known < 1 or prod(x.shape) % known:
            raise NotCovered(f"{c.where}: shape {full} to {target} touches the batch axis")
        rest = tuple(prod(x.shape) // known if d == -1 else d for d in rest)
    elif first not in (-1, r.batch):
        raise NotCovered(f"{c.where}: shape {full} to {target} touches the batch axis")
    return _reshaped(r, c, rest)


def _flatten(r: Reader, c: Context) -> Any:
    x = c.inputs[0]
    axis = int(c.attributes.get("axis", 1))
    if axis % (len(x.shape) + 1) != 1:
        raise NotCovered(f"{c.where}: flattening from axis {axis}, expected 1")
    return _reshaped(r, c, (prod(x.shape),))


def _squeeze(r: Reader, c: Context) -> Any:
    x, axes = c.inputs[0], c.integers(1, "axes")
    rank = len(x.shape) + 1
    if axes is None:
        axes = [i + 1 for i, d in enumerate(x.shape) if d == 1]
    drop = {a % rank for a in axes}
    if 0 in drop or any(x.shape[a - 1] != 1 for a in drop):
        raise NotCovered(f"{c.where}: axes {axes} of {('n', *x.shape)}")
    return _reshaped(r, c, tuple(d for i, d in enumerate(x.shape) if i + 1 not in drop))


def _unsqueeze(r: Reader, c: Context) -> Any:
    x, axes = c.inputs[0], c.integers(1, "axes") or []
    rank = len(x.shape) + 1 + len(axes)
    new = sorted(a % rank for a in axes)
    if not new or new[0] == 0 or rank > 8:
        raise NotCovered(f"{c.where}: axes {axes} of {('n', *x.shape)}")
    shape = list(x.shape)
    for a in new:
        shape.insert(a - 1, 1)
    return _reshaped(r, c, tuple(shape))


def _transpose(r: Reader, c: Context) -> Any:
    x = c.inputs[0]
    if isinstance(x, Grid):
        perm = c.attributes.get("perm", list(range(x.codes.ndim))[::-1])
        return x.map(lambda a: a.transpose(perm))
    perm = list(c.attributes.get("perm", range(len(x.shape), -1, -1)))
    if sorted(perm) != list(range(len(x.shape) + 1)) or perm[0] != 0:
        raise NotCovered(
            f"{c.where}: the permutation {perm} of {('n', *x.shape)} moves the batch axis"
        )
    sample = tuple(p - 1 for p in perm[1:])
    if isinstance(x, Real):
        _unpadded(c, x)
        shape = tuple(x.shape[i] for i in sample)
        return x.moved("transpose", sample, shape)
    return r.transpose(r.scaled(c), sample, r.name(c))


def _concat(r: Reader, c: Context) -> Any:
    if not all(isinstance(v, Scaled) for v in c.inputs):
        raise NotCovered(f"{c.where}: it joins constants or the float input with activations")
    return _joined(r, c, c.inputs)


def _joined(r: Reader, c: Context, values: list[Scaled], name: str = "") -> Scaled:
    """Channels one after the other, none with a pending float operator."""
    axis = int(c.attributes["axis"])
    if axis % (len(values[0].shape) + 1) != 1:
        raise NotCovered(f"{c.where}: axis {axis}, expected the channels, 1")
    if any(v.steps or v.pad for v in values):
        raise NotCovered(f"{c.where}: it joins floats; quantize each operand first")
    if len({v.zero for v in values}) != 1:  # one integer for zero, or each its own made 0
        if any(v.integer for v in values):
            raise NotCovered(f"{c.where}: its operands are integers with different zero points")
        values = [r.centred(v, f"{r.name(c)}_{v.node}") if v.zero else v for v in values]
    node = r.emit(name or r.name(c), Concat(), tuple(v.node for v in values))
    parts = [np.broadcast_to(v.scale, (v.shape[0], *v.scale.shape[1:])) for v in values]
    if any(prod(p.shape[1:]) != 1 for p in parts):
        raise NotCovered(f"{c.where}: its operands have scales per position")
    scale, shape = uniform(np.concatenate(parts)), r.shapes[node]
    integer = all(v.integer for v in values)
    return replace(
        values[0],
        node=node,
        shape=shape,
        scale=scale.reshape((-1,) + (1,) * (len(shape) - 1)),
        integer=integer,
    )


def _pad(r: Reader, c: Context) -> Any:
    """Zeros around the spatial axes, which the convolution or average behind it takes over."""
    pads, mode = c.integers(1, "pads"), str(c.attributes.get("mode", "constant"))
    value = c.attributes.get("value", 0.0)
    if c.optional(2) is not None:
        value = c.constant(2, "value").reshape(-1)[0]
    x = c.inputs[0]
    rank = len(x.shape) + 1
    if pads is None or len(pads) != 2 * rank or c.optional(3) is not None:
        raise NotCovered(f"{c.where}: pads {pads} for {rank} axes")
    if not any(pads):
        return x
    if mode != "constant":
        raise NotCovered(f"{c.where}: padding by {mode}, expected a constant")
    pairs = list(zip(pads[:rank], pads[rank:]))
    if any(sum(p) for p in pairs[:2]) or min(pads) < 0 or max(pads) > 2**16:
        raise NotCovered(f"{c.where}: pads {pads}, expected positive ones on spatial axes")
    if isinstance(x, Real) and not x.pad:
        return replace(x, pad=tuple(pairs[2:]), pad_value=float(value))
    v = r.scaled(c)
    if v.pad:
        raise NotCovered(f"{c.where}: its input is padded already")
    if any(s.op not in ("Mul", "Div", "Neg") for s in v.steps):
        raise NotCovered(f"{c.where}: it pads a float that is not yet quantized")
    pad_code: int | None = None
    if float(value) != 0:
        scale = uniform(v.affine(c.where)[0])
        code = Fraction(float(value)) / scale.ravel()[0] + v.zero if scale.size == 1 else None
        if code is None or code.denominator != 1:
            raise NotCovered(f"{c.where}: it pads with {value}, which no code stands for")
        pad_code = int(code)
    return replace(v, pad=tuple(pairs[2:]), pad_code=pad_code)


def _dropped(r: Reader, c: Context) -> Any:
    """Left out at the output; anything but a relabelling behind it is an error."""
    x = c.inputs[0]
    if isinstance(x, Real):
        raise NotCovered(f"{c.where}: its input is float; a quantizer must come first")
    r.dropped.append(c.where)
    return [Dropped(x)] * len(c.proto.output)


def _shape(r: Reader, c: Context) -> Any:
    x = c.inputs[0]
    if isinstance(x, (Scaled, Real)):
        _unpadded(c, x)
    full = list(x.array.shape) if isinstance(x, Constant) else [r.batch, *x.shape]
    start, end = int(c.attributes.get("start", 0)), c.attributes.get("end")
    return Constant(np.array(full[start:end], dtype=np.int64))


def _constant(r: Reader, c: Context) -> Any:
    for name, value in c.attributes.items():
        if name == "value":
            return Constant(value)
        if name in ("value_float", "value_floats"):
            return Constant(np.asarray(value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return Constant(np.asarray(value, dtype=np.int64))
    raise NotCovered(f"{c.where}: a constant without a numeric value")


def _constant_of_shape(r: Reader, c: Context) -> Any:
    shape = [int(d) for d in c.constant(0, "shape").ravel()]
    r.check_size(shape, c.where)
    return Constant(
        np.full(shape, c.attributes.get("value", np.zeros(1, np.float32)).reshape(-1)[0])
    )


# --- integer operators --------------------------------------------------------------------------


def _integer_operand(r: Reader, c: Context, index: int, zero_index: int) -> Scaled:
    """Codes minus their zero point, scale 1."""
    x = r.scaled(c, index)
    if not x.integer:
        raise NotCovered(f"{c.where}: its input is not a tensor of integers")
    zero = _zero_point(c.optional_constant(zero_index, "zero point"), c)
    value = _as_integers(x, c)
    return replace(value, zero=x.zero + _one_zero_point(zero, c), integer=False)


def _integer_weights(c: Context, index: int, zero_index: int, matrix: bool) -> Grid:
    """Weights minus their zero point, channels first."""
    w = c.constant(index, "weights")
    zero = _zero_point(c.optional_constant(zero_index, "zero point of the weights"), c)
    if w.dtype.kind not in "iu" or (matrix and w.ndim != 2):
        raise NotCovered(f"{c.where}: weights of type {w.dtype} and shape {w.shape}")
    w = w.astype(np.int64).T if matrix else w.astype(np.int64)
    centred = w - zero.reshape((-1,) + (1,) * (w.ndim - 1))
    unit = np.ones((1,) * w.ndim, dtype=np.float32)
    return Grid(centred.astype(np.float32), centred, fractions_of(unit))


def _int32(r: Reader, c: Context, y: Scaled) -> Scaled:
    """An int32 result; where it could wrap, the file's own arithmetic is not a sum."""
    interval = r.ranges[y.node]
    lo, hi = int(interval.lo.min()), int(interval.hi.max())
    if lo < -(2**31) or hi >= 2**31:
        raise NotCovered(f"{c.where}: its accumulator, in [{lo}, {hi}], wraps in 32 bits")
    return replace(y, integer=True)


def _matmul_integer(r: Reader, c: Context) -> Any:
    x = _integer_operand(r, c, 0, 2)
    weight, scale = r.weights(_integer_weights(c, 1, 3, matrix=True), c.where)
    return _int32(r, c, r.sum(c, _vector(r, c, x, weight.shape[1]), weight, scale, None, _linear))


def _conv_integer(r: Reader, c: Context) -> Any:
    x = _integer_operand(r, c, 0, 2)
    return _int32(r, c, _convolution(r, c, x, _integer_weights(c, 1, 3, matrix=False), None))


def _requantized_sum(r: Reader, c: Context, y: Scaled, first: int) -> Quantized:
    """round(acc * fl32(s_x * s_w / s_y)) + zero_y, saturated: the tail of QLinear operators."""
    s_x, s_w, s_y = (_scale(c, i, "scale") for i in (1, 4, first))
    factor = np.asarray(s_x * s_w / s_y, dtype=np.float32)
    if factor.size not in (1, y.shape[0]):
        raise ShapeMismatch(f"{c.where}: {factor.size} scales for {y.shape[0]} channels")
    lo, hi = _limits_of(r, c, first + 1)
    zero = _zero_point(c.constant(first + 1, "y_zero_point"), c)
    scaled = replace(y, integer=False).then(
        "Mul", along_channels(factor.reshape(-1), y.shape, c.where)
    )
    unit = np.ones((1,) * len(y.shape), dtype=np.float32)
    zeros = along_channels(zero.reshape(-1), y.shape, c.where)
    return Quantized(scaled, unit, zeros, lo, hi, name=r.name(c))


def _limits_of(r: Reader, c: Context, index: int) -> tuple[int, int]:
    name = r.element_type(c.proto.input[index])
    if name not in ("INT8", "UINT8", "INT16", "UINT16"):
        raise NotCovered(f"{c.where}: it quantizes to {name}, expected 8 or 16-bit integers")
    fmt = IntFormat(int(name.lstrip("UINT")), signed=name[0] == "I")
    return fmt.q_min, fmt.q_max


def _qlinear_matmul(r: Reader, c: Context) -> Any:
    x = _integer_operand(r, c, 0, 2)
    grid = _integer_weights(c, 3, 5, matrix=True)
    weight, scale = r.weights(grid, c.where)
    vector = _vector(r, c, x, weight.shape[1])
    y = r.sum(c, vector, weight, scale, None, _linear, name=f"{r.name(c)}_acc")
    return _requantized_sum(r, c, y, 6)


def _qlinear_conv(r: Reader, c: Context) -> Any:
    x = _integer_operand(r, c, 0, 2)
    grid = _integer_weights(c, 3, 5, matrix=False)
    bias = c.optional(8)
    y = _convolution(r, c, x, grid, bias, name=f"{r.name(c)}_acc")
    if y.steps:
        raise FileFormatError(f"{c.where}: its bias is not a tensor of integers")
    return _requantized_sum(r, c, y, 6)


# --- onnxruntime's own integer operators --------------------------------------------------------


def _constant_operand(r: Reader, c: Context, index: int) -> Grid | None:
    """The same where x is a constant."""
    if not isinstance(c.inputs[index], Constant):
        return None
    zero = _zero_point(c.optional_constant(index + 2, "zero point"), c)
    scale = _scale(c, index + 1)
    if zero.size != 1 or scale.size != 1:
        raise NotCovered(f"{c.where}: a constant with one scale per channel")
    return _grid(c.constant(index, "operand"), zero, scale)


def _dequantized_operand(r: Reader, c: Context, index: int) -> Scaled:
    """The operands x, x_scale, x_zero_point at `index`: (x - zero) * scale."""
    x = _integer_operand(r, c, index, index + 2)
    scale = _scale(c, index + 1)
    if scale.size != 1:
        raise NotCovered(f"{c.where}: activations with one scale per channel")
    return replace(x, scale=fractions_of(scale.reshape((1,) * len(x.shape))))


def _requantized(r: Reader, c: Context, x: Scaled, index: int) -> Quantized:
    """Quantized by y_scale, y_zero_point at `index`."""
    scale = _scale(c, index, "y_scale")
    lo, hi = _limits_of(r, c, index + 1)
    zero = _zero_point(c.optional_constant(index + 1, "y_zero_point"), c)
    if scale.size != 1:
        raise NotCovered(f"{c.where}: activations with one scale per channel")
    shape = (1,) * len(x.shape)
    return Quantized(x, scale.reshape(shape), zero.reshape(shape), lo, hi, name=r.name(c))


def _qlinear_binary(step: str) -> Handler:
    def handle(r: Reader, c: Context) -> Any:
        first, second = (0, 3) if _constant_operand(r, c, 0) is None else (3, 0)
        a = _dequantized_operand(r, c, first)
        b = _constant_operand(r, c, second) or _dequantized_operand(r, c, second)
        if isinstance(b, Grid):
            y = a.then(step, _operand(c, a, Constant(b.array)))
        elif step == "Add":
            y = _add(r, c, a, b, +1, name=f"{r.name(c)}_acc")
        else:
            y = _product(r, c, a, b)
        return _requantized(r, c, y, 6)

    return handle


def _qlinear_average(r: Reader, c: Context) -> Any:
    if c.attributes.get("channels_last", 0):
        raise NotCovered(f"{c.where}: channels in the last axis")
    x = _dequantized_operand(r, c, 0)
    y = _averaged(r, c, x)
    return _requantized(r, c, y, 3)


def _qlinear_concat(r: Reader, c: Context) -> Any:
    values = [_dequantized_operand(r, c, i) for i in range(2, len(c.inputs), 3)]
    return _requantized(r, c, _joined(r, c, values, name=f"{r.name(c)}_joined"), 0)


def _qlinear_unary(step: str, **defaults: float) -> Handler:
    def handle(r: Reader, c: Context) -> Any:
        x = _dequantized_operand(r, c, 0)
        constants = [np.float32(c.attributes.get(k, v)) for k, v in defaults.items()]
        args = [np.full((1,) * len(x.shape), v, dtype=np.float32) for v in constants]
        return _requantized(r, c, x.then(step, *args), 3)

    return handle


def _qlinear_global_average(r: Reader, c: Context) -> Any:
    if c.attributes.get("channels_last", 0):
        raise NotCovered(f"{c.where}: channels in the last axis")
    x = _dequantized_operand(r, c, 0)
    return _requantized(r, c, _mean_over_positions(r, c, x, keep=True), 3)


def _qgemm(r: Reader, c: Context) -> Any:
    """alpha * (a - z_a) (b - z_b) + C, requantized when it has a y_scale, else float."""
    if c.attributes.get("transA", 0) or c.attributes.get("alpha", 1.0) != 1.0:
        raise NotCovered(f"{c.where}: transA or alpha")
    x = _integer_operand(r, c, 0, 2)
    if c.attributes.get("transB", 0):
        c.inputs[3] = Constant(c.constant(3, "weights").T)
    weight, scale = r.weights(_integer_weights(c, 3, 5, matrix=True), c.where)
    vector = _vector(r, c, x, weight.shape[1])
    y = r.sum(c, vector, weight, scale, c.optional(6), _linear, name=f"{r.name(c)}_acc")
    if y.steps:
        raise FileFormatError(f"{c.where}: its bias is not a tensor of integers")
    if c.optional(7) is not None:
        return _requantized_sum(r, c, y, 7)
    factor = fractions_of(_scale(c, 1)) * fractions_of(_scale(c, 4))
    return replace(y, scale=along_channels(factor.reshape(-1), y.shape, c.where), integer=False)


# --- the tables ---------------------------------------------------------------------------------

QONNX: dict[str, Handler] = {
    "Quant": _quant,
    "IntQuant": _quant,
    "BipolarQuant": _bipolar_quant,
    "MultiThreshold": _multi_threshold,
    "Trunc": _trunc,
    "XnorPopcountMatMul": _xnor_popcount,
}

STANDARD: dict[str, Handler] = {
    "Add": _binary("Add"),
    "ArgMax": _dropped,
    "ArgMin": _dropped,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _rounding(Rounding.CEIL, "Ceil"),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "Div": _div,
    "Dropout": _identity,
    "Abs": _step("Abs"),
    "Elu": _step("Elu", alpha=1.0),
    "Erf": _step("Erf"),
    "Exp": _step("Exp"),
    "Flatten": _flatten,
    "Floor": _rounding(Rounding.FLOOR, "Floor"),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _max_pool,
    "Hardmax": _dropped,
    "GreaterOrEqual": _greater_or_equal,
    "HardSigmoid": _step("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _step("HardSwish"),
    "Identity": _identity,
    "LeakyRelu": _step("LeakyRelu", alpha=0.01),
    "LogSoftmax": _dropped,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "Max": _clip,
    "MaxPool": _max_pool,
    "Min": _clip,
    "Mish": _step("Mish"),
    "Mul": _binary("Mul"),
    "Neg": _neg,
    "PRelu": _prelu,
    "Pad": _pad,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
    "Relu": _relu,
    "Reshape": _reshape,
    "Round": _rounding(Rounding.HALF_EVEN, "Round"),
    "Selu": _step("Selu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Shape": _shape,
    "Sigmoid": _step("Sigmoid"),
    "Sign": _step("Sign"),
    "Softmax": _dropped,
    "Softplus": _step("Softplus"),
    "Softsign": _step("Softsign"),
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Tanh": _step("Tanh"),
    "TopK": _dropped,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

MICROSOFT: dict[str, Handler] = {
    "DequantizeLinear": _dequantize_linear,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear_binary("Add"),
    "QLinearAveragePool": _qlinear_average,
    "QLinearConcat": _qlinear_concat,
    "QLinearGlobalAveragePool": _qlinear_global_average,
    "QLinearLeakyRelu": _qlinear_unary("LeakyRelu", alpha=0.01),
    "QLinearMul": _qlinear_binary("Mul"),
    "QLinearSigmoid": _qlinear_unary("Sigmoid"),
    "QLinearSoftmax": _dropped,
    "QuantizeLinear": _quantize_linear,
}
"""Domain com.microsoft, as onnxruntime's quantizer writes them."""

WANTS_CODES = frozenset(("Add", "Clip", "Relu", "Min", "Max"))
"""Operators that narrow a quantizer in front of them before it becomes a node."""

ON_GRIDS = frozenset(("Identity", "Reshape", "Transpose"))
"""Operators that keep quantized constants quantized."""
