"""Operators that act on each value alone, or on two at the same place."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered
from refqnn.onnx.files import type_name
from refqnn.onnx.program import Context, Handler, Program
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
    float32_of,
    fractions_of,
    one,
    power_of_two,
    uniform,
    unscaled,
)
from refqnn.ops import Add, Lookup
from refqnn.rounding import Rounding

__all__ = ["TABLE", "add_activations", "constants_of", "operand_of", "product_of"]

Array = NDArray[Any]


def _binary(step: str) -> Handler:
    """Add and Mul of activations and a constant, in either order, or of two activations."""

    def handle(r: Program, c: Context) -> Value:
        a, b = c.value(0), c.value(1)
        if isinstance(a, Constant):
            a, b = b, a
        if isinstance(a, Quantized) and isinstance(b, Constant) and step == "Add":
            n = _shift_of(a, b)
            if n is not None:
                return replace(a, zero_point=a.zero_point + n, lo=a.lo + n, hi=a.hi + n, done=None)
        a, b = (r.codes(v) if isinstance(v, Quantized) else v for v in (a, b))
        if isinstance(b, Constant):
            return _with_constant(r, c, a, b, step)
        return add_activations(r, c, a, b, +1) if step == "Add" else product_of(r, c, a, b)

    return handle


def _shift_of(q: Quantized, value: Constant) -> int | None:
    """By how much value moves the codes of a rounded, not yet quantized, input."""
    if not q.rounded or value.array.size != 1:
        return None
    number = float(value.array.reshape(-1)[0])
    return int(number) if number == np.rint(number) and abs(number) < 2**31 else None


def _rounding(mode: Rounding, step: str) -> Handler:
    """Round, Floor, Ceil: on the float input, the beginning of a quantizer written out."""

    def handle(r: Program, c: Context) -> Value:
        x = r.numbers(c)
        if isinstance(x, Scaled):
            return x.then(step)
        return unscaled(x, -(2**31) + 1, 2**31 - 1, rounding=mode, rounded=True, name=c.name)

    return handle


def operand_of(c: Context, x: Scaled | Real, value: Constant) -> Array:
    """A constant as float32, with the axes of x."""
    array = along_sample(value.array.astype(np.float32), x.shape, c.where)
    if not np.isfinite(array).all():
        raise FileFormatError(f"{c.where}: its constant operand is not finite")
    return array


def _with_constant(r: Program, c: Context, x: Value, value: Constant, step: str) -> Value:
    if step == "Div" and (value.array == 0).any():
        raise FileFormatError(f"{c.where}: division by zero")
    if isinstance(x, Real):
        operand = operand_of(c, x, value)
        return replace(x, name=str(c.proto.output[0])).then(step, operand)
    if not isinstance(x, Scaled):
        raise NotCovered(f"{c.where}: its input is not a tensor of numbers")
    if x.pad:
        raise NotCovered(f"{c.where}: its input is padded; only a convolution takes padding")
    if step == "Add":
        folded = r.with_bias(x, value, c.name, c.where)
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
    if step == "Add" and not value.array.any():
        along_sample(value.array, x.shape, c.where)
        return x
    integer = x.integer and step == "Add" and value.array.dtype.kind in "iu"
    return replace(x.then(step, operand_of(c, x, value)), integer=integer)


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


def _sub(r: Program, c: Context) -> Value:
    """a - b; a constant minus an activation is the negated activation plus the constant."""
    a, b = c.value(0), c.value(1)
    if isinstance(b, Constant):
        negative = Grid(-b.array, -b.codes, b.scale) if isinstance(b, Grid) else Constant(-b.array)
        return _with_constant(r, c, a, negative, "Add")
    if isinstance(a, Constant):
        return _with_constant(r, c, r.numbers(c, 1).then("Neg"), a, "Add")
    return add_activations(r, c, a, b, -1)


def _div(r: Program, c: Context) -> Value:
    b = c.value(1)
    if not isinstance(b, Constant):
        raise NotCovered(f"{c.where}: division by a tensor that depends on the input")
    return _with_constant(r, c, c.value(0), b, "Div")


def add_activations(
    r: Program, c: Context, a: Value, b: Value, sign: int, name: str = ""
) -> Scaled:
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
    if max(abs(m_a), abs(m_b)) > 2**31:
        raise NotCovered(
            f"{c.where}: the ratio of its scales, {float(s_a)} and {float(s_b)}, needs integers "
            "beyond 31 bits; quantize both operands to one scale"
        )
    unit = abs(s_b) / ratio.denominator
    if s_a.denominator == 1 and s_b.denominator == 1:  # the file's own integers
        m_a, m_b, unit = int(s_a), int(s_b), Fraction(1)
    multipliers = None if (m_a, m_b) == (1, 1) else (m_a, m_b)
    node = r.emit(name or c.name, Add(multipliers), (a.node, b.node))
    integer = a.integer and b.integer
    zero = m_a * a.zero + m_b * b.zero
    result = Scaled(node, a.shape, one(a.shape) * unit, zero, integer=integer)
    offset = offset_a + sign * offset_b
    if any(o != 0 for o in offset.ravel()):
        result = result.then("Add", float32_of(offset))
    return result


def product_of(r: Program, c: Context, a: Value, b: Value) -> Scaled:
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

    def handle(r: Program, c: Context) -> Value:
        x = r.numbers(c)
        return x.then(op, *constants_of(c, x, defaults))

    return handle


def constants_of(c: Context, x: Scaled | Real, defaults: dict[str, float]) -> list[Array]:
    """Attributes as float32 with the axes of x."""
    values = [np.float32(c.attributes.get(k, v)) for k, v in defaults.items()]
    return [np.full((1,) * len(x.shape), v, dtype=np.float32) for v in values]


def _gelu(r: Program, c: Context) -> Value:
    kind = {"none": "Gelu", "tanh": "GeluTanh"}.get(str(c.attributes.get("approximate", "none")))
    if kind is None:
        raise NotCovered(f"{c.where}: approximate={c.attributes['approximate']!r}")
    return r.scaled(c).then(kind)


def _relu(r: Program, c: Context) -> Value:
    x = c.value(0)
    if isinstance(x, Quantized):  # an integer Relu on codes
        return _clip_codes(x, 0, x.hi)
    return r.numbers(c).then("Relu")


def _prelu(r: Program, c: Context) -> Value:
    x = r.numbers(c)
    slope = along_sample(c.constant(1, "slope").astype(np.float32), x.shape, c.where)
    return x.then("LeakyRelu", slope)


def _clip(r: Program, c: Context) -> Value:
    """Clip, Min and Max with constants."""
    op = c.proto.op_type
    if op != "Clip" and len(c.inputs) != 2:
        raise NotCovered(f"{c.where}: {len(c.inputs)} operands, expected two")
    if op != "Clip" and isinstance(c.value(0), Constant):
        c.inputs.reverse()
    given = [c.optional_constant(i, "a limit") for i in (1, 2)]
    if op == "Min":
        given.reverse()
    limits = [c.attributes.get(k) if v is None else v for k, v in zip(("min", "max"), given)]
    x = c.value(0)
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


def _cast(r: Program, c: Context) -> Value:
    """Between floats and integers that hold the same values."""
    x = c.value(0)
    name = type_name(int(c.attributes.get("to", 1)))
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
    if not name.startswith(("INT", "UINT")) or not bits.isdigit() or not r.holds_integers(v):
        raise NotCovered(f"{c.where}: a cast to {name} of values that are not integers")
    (scale,), least = uniform(v.scale).ravel(), 0 if name[0] == "U" else -(2 ** (int(bits) - 1))
    lo, hi = (int((e - v.zero) * scale) for e in r.limits(v.node))
    if not least <= lo <= hi < least + 2 ** int(bits):
        raise NotCovered(f"{c.where}: values in [{lo}, {hi}] wrap in {name}")
    return replace(v, integer=True)


def _batch_norm(r: Program, c: Context) -> Value:
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
    return x.then("Affine", *args)


def _gather(r: Program, c: Context) -> Value:
    """A table indexed by integers: y = table[x]."""
    table, x = c.constant(0, "table"), r.scaled(c, 1)
    integral = np.isfinite(table).all() and (table == np.rint(table)).all()
    if table.ndim != 1 or not x.integer or not integral:
        raise NotCovered(f"{c.where}: it gathers from a tensor of shape {table.shape}")
    scale, offset = x.affine(c.where)
    steps = [a.reshape(-1) for a in (scale, offset) if prod(a.shape[1:]) == 1]
    lo, hi = r.limits(x.node)
    if len(steps) != 2 or hi - lo >= 2**20 or any(v.denominator != 1 for s in steps for v in s):
        raise NotCovered(f"{c.where}: its index is not an integer of a small range per channel")
    slope, start = (a.astype(np.int64)[:, None] for a in steps)
    index = slope * (np.arange(lo, hi + 1) - int(x.zero)) + start  # [channels or 1, n]
    if index.min() < 0 or index.max() >= table.size:
        raise NotCovered(f"{c.where}: its index may leave the table of {table.size} values")
    node = r.emit(c.name, Lookup(table.astype(np.int64)[index], lo), (x.node,))
    return Scaled(node, x.shape, one(x.shape), integer=table.dtype.kind in "iu")


TABLE: dict[str, Handler] = {
    "Add": _binary("Add"),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _rounding(Rounding.CEIL, "Ceil"),
    "Clip": _clip,
    "Div": _div,
    "Abs": _step("Abs"),
    "Elu": _step("Elu", alpha=1.0),
    "Erf": _step("Erf"),
    "Exp": _step("Exp"),
    "Floor": _rounding(Rounding.FLOOR, "Floor"),
    "Gather": _gather,
    "Gelu": _gelu,
    "HardSigmoid": _step("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _step("HardSwish"),
    "LeakyRelu": _step("LeakyRelu", alpha=0.01),
    "Max": _clip,
    "Min": _clip,
    "Mish": _step("Mish"),
    "Mul": _binary("Mul"),
    "Neg": _step("Neg"),
    "PRelu": _prelu,
    "Relu": _relu,
    "Round": _rounding(Rounding.HALF_EVEN, "Round"),
    "Selu": _step("Selu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Sigmoid": _step("Sigmoid"),
    "Sign": _step("Sign"),
    "Softplus": _step("Softplus"),
    "Softsign": _step("Softsign"),
    "Sub": _sub,
    "Tanh": _step("Tanh"),
}
