"""Operators that act on each value alone, or on two at the same place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered
from refqnn.onnx.doors import rounding_of, signed_rounding
from refqnn.onnx.files import type_name
from refqnn.onnx.program import Context, Handler, Program
from refqnn.onnx.shapes import expanded
from refqnn.onnx.values import (
    Comparison,
    Constant,
    Grid,
    Quantized,
    Real,
    Scaled,
    Step,
    Value,
    along_channels,
    along_sample,
    dtype_of,
    float32_of,
    fractions_of,
    limits_of_type,
    one,
    power_of_two,
    uniform,
)
from refqnn.ops import Add

__all__ = ["TABLE", "add_activations", "constants_of", "operand_of", "product_of"]

Array = NDArray[Any]


def _binary(step: str) -> Handler:
    """Add and Mul of activations and a constant, in either order, or of two activations."""

    def handle(r: Program, c: Context) -> Value:
        a, b = c.value(0), c.value(1)
        if isinstance(a, Constant):
            a, b = b, a
        if isinstance(a, Quantized) and isinstance(b, Constant) and step == "Add":
            n = _shift_of(a, b, c.where)
            if n is not None:
                lo, hi = a.lo + int(n.min()), a.hi + int(n.max())
                return replace(a, zero_point=a.zero_point + n, lo=lo, hi=hi, done=None)
        a, b = (r.opened(v) for v in (a, b))
        if isinstance(b, Constant):
            return _with_constant(r, c, a, b, step)
        if step == "Add":
            return add_activations(r, c, a, b, +1)
        if isinstance(a, Real) and isinstance(b, Real):
            q = signed_rounding(a, b) or signed_rounding(b, a)
            if q is not None:
                return q
        return product_of(r, c, a, b)

    return handle


def _shift_of(q: Quantized, value: Constant, where: str) -> Array | None:
    """By how much value moves the codes of a rounded, not yet quantized, input."""
    if not q.rounded or not (q.limitless or value.array.size == 1):
        return None
    numbers = along_sample(value.array, q.source.shape, where)
    whole = (numbers == np.rint(numbers)).all() and (abs(numbers) < 2**31).all()
    return numbers.astype(np.int64) if whole else None


def _rounding(r: Program, c: Context) -> Value:
    """Round, Floor, Ceil: on the float input, the beginning of a quantizer written out."""
    x = r.numbers(c).then(c.proto.op_type)
    return x if isinstance(x, Scaled) else rounding_of(x, c.name)


def operand_of(c: Context, x: Scaled | Real, value: Constant) -> Array:
    """A constant in the arithmetic of x, with its axes."""
    dtype = dtype_of(x.dtype if isinstance(x, Scaled) else "FLOAT")
    array = along_sample(value.array.astype(dtype), x.shape, c.where)
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
    x = r.unpadded(x, c.name) if x.pad else x
    if x.integer and value.element_type != x.dtype:
        raise FileFormatError(f"{c.where}: types {x.dtype} and {value.element_type}")
    operand = operand_of(c, x, value)
    exact = _exactly(r, c, x, value, step)
    if exact is not None and (not x.integer or r.fits(exact, x.dtype)):
        return exact
    return x.then(step, operand)


def _exactly(r: Program, c: Context, x: Scaled, value: Constant, step: str) -> Scaled | None:
    """The constant in the bias, zero point or scale, where that is the same in float32."""
    if step == "Add":
        folded = r.with_bias(x, value, c.name, c.where)
        if folded is not None:
            return folded
        shift = _codes_in(x, value)
        if shift is not None:
            return replace(x, zero=x.zero - shift)
        return None if value.array.any() else x
    if step in ("Mul", "Div") and x.is_plain and value.array.size == 1:
        (factor,) = fractions_of(value.array).ravel() if np.isfinite(value.array).all() else (0,)
        if x.integer and step == "Mul" and factor:
            return replace(x, scale=x.scale * factor)
        if not x.integer and power_of_two(Fraction(factor)):
            return replace(x, scale=x.scale * factor if step == "Mul" else x.scale / factor)
    return None


def _codes_in(x: Scaled, value: Constant) -> int | None:
    """How many codes of x a scalar constant is, when adding it to them is exact."""
    if not x.is_plain or value.array.size != 1 or x.scale.size != 1:
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
        array = b.array.astype(np.int64) if b.array.dtype.kind in "iu" else b.array
        negative = Constant(-array, declared=b.element_type)
        if isinstance(b, Grid):
            negative = Grid(-b.array, -b.codes, b.scale)
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
    a, b = (r.unpadded(v, c.name) if v.pad else v for v in (a, b))
    if a.shape == b.shape and a.dtype == b.dtype and not (a.is_affine and b.is_affine):
        both = r.combined(np.add if sign > 0 else np.subtract, a, b)
        if both is not None:
            return both
    a, b = expanded(r, a, b.shape, c), expanded(r, b, a.shape, c)
    dtype = a.dtype
    (a, scale_a, offset_a), (b, scale_b, offset_b) = (r.affine(v, c.where, c.name) for v in (a, b))
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
    zero = m_a * a.zero + m_b * b.zero
    result = Scaled(node, a.shape, one(a.shape) * unit, zero)
    if dtype != "FLOAT":
        return r.typed(replace(result, base="INT64"), dtype)
    offset = offset_a + sign * offset_b
    if any(o != 0 for o in offset.ravel()):
        result = result.then("Add", float32_of(offset))
    return result


def product_of(r: Program, c: Context, a: Value, b: Value) -> Scaled:
    """The product of two activations that are functions of one integer, such as x * sigmoid(x)."""
    return _of_both(r, c, np.multiply, a, b)


def _of_both(r: Program, c: Context, function: Callable[..., Array], *values: Value) -> Scaled:
    """A function of activations that are functions of one integer."""
    scaled = [v for v in values if isinstance(v, Scaled)]
    if len(scaled) == len(values) and len({v.dtype for v in scaled[-2:]}) == 1:
        result = r.combined(function, *scaled)
        if result is not None:
            return result
    raise NotCovered(
        f"{c.where}: the {_TOLD.get(function, 'choice')} of two tensors that depend on the input "
        "in different ways"
    )


_TOLD = {np.multiply: "product", np.maximum: "maximum", np.minimum: "minimum"}


def _where(r: Program, c: Context) -> Value:
    """One of two tensors or constants, by a comparison: functions of one integer."""
    known = next((v for v in c.inputs if isinstance(v, Scaled)), None)
    if known is None:
        raise NotCovered(f"{c.where}: a choice that does not depend on quantized values")
    values = []
    for value in (c.value(i) for i in range(3)):
        if isinstance(value, Constant):
            kind = value.element_type
            array = along_sample(value.array.astype(dtype_of(kind)), known.shape, c.where)
            value = replace(known, steps=(*known.steps, Step("Fill", (array,), kind)))
        values.append(value)
    return _of_both(r, c, lambda chosen, a, b: np.where(chosen, a, b), *values)


def _step(op: str, **defaults: float) -> Handler:
    """A univariate float operator whose attributes are its constants."""

    def handle(r: Program, c: Context) -> Value:
        x = r.numbers(c)
        return x.then(op, *constants_of(c, x, defaults))

    return handle


def constants_of(c: Context, x: Scaled | Real, defaults: dict[str, float]) -> list[Array]:
    """Attributes as float32 with the axes of x."""
    values = [np.float32(c.attribute(k, v)) for k, v in defaults.items()]
    return [np.full((1,) * len(x.shape), v, dtype=np.float32) for v in values]


def _gelu(r: Program, c: Context) -> Value:
    told = c.attribute("approximate", "none")
    kind = {"none": "Gelu", "tanh": "GeluTanh"}.get(told)
    if kind is None:
        raise NotCovered(f"{c.where}: approximate={told!r}")
    return r.scaled(c).then(kind)


def _relu(r: Program, c: Context) -> Value:
    x = c.value(0)
    if isinstance(x, Quantized):  # an integer Relu on codes
        return _clip_codes(x, 0, np.inf)
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
    if op != "Clip" and not isinstance(c.value(1), Constant):
        both = (r.opened(c.value(i)) for i in (0, 1))
        return _of_both(r, c, np.maximum if op == "Max" else np.minimum, *both)
    given = [c.optional_constant(i, "a limit") for i in (1, 2)]
    if op == "Min":
        given.reverse()
    wide = (-np.inf, np.inf)
    named = (np.asarray(c.attribute(k, end)) for k, end in zip(("min", "max"), wide))
    limits = [n if g is None else g for g, n in zip(given, named)]
    x = c.value(0)
    if isinstance(x, Quantized):
        lo, hi = (v.reshape(-1)[0] for v in limits)
        if limits[0].size == limits[1].size == 1 and all(
            v in wide or v == int(v) for v in (lo, hi)
        ):
            return _clip_codes(x, lo, hi)
        c.inputs[0] = r.codes(x)
    y = r.numbers(c)
    kind = y.dtype if isinstance(y, Scaled) else "FLOAT"
    if kind != "FLOAT":
        ends = limits_of_type(kind)
        limits = [np.asarray(e) if v.dtype.kind == "f" else v for v, e in zip(limits, ends)]
    args = [along_sample(v.astype(dtype_of(kind)), y.shape, c.where) for v in limits]
    if any(np.isnan(a).any() for a in args):
        raise FileFormatError(f"{c.where}: a limit is NaN")
    return y.then("Clip", *args)


def _clip_codes(q: Quantized, lo: float, hi: float) -> Quantized:
    """A clip of codes that are not a node yet narrows them: min(max(code, lo), hi)."""
    least, greatest = (int(min(max(end, lo), hi)) for end in (q.lo, q.hi))
    return replace(q, lo=least, hi=greatest, done=None)


def _cast(r: Program, c: Context) -> Value:
    x, name = c.value(0), type_name(c.attribute("to", 1))
    lo, hi = limits_of_type(name)
    if isinstance(x, Grid):  # to FLOAT, see the reader
        return x
    if isinstance(x, Comparison):
        return replace(x, dtype=name)
    if isinstance(x, Quantized):
        if x.rounded and (name == "FLOAT" or lo <= x.lo <= x.hi <= hi):
            return replace(x, dtype=name, rounded=name == "FLOAT", done=None)
        x = r.codes(x)
    if isinstance(x, Real) and name == "FLOAT":
        return x
    if isinstance(x, Real) or (name != "FLOAT" and not 1 < hi - lo < 2**64):
        raise NotCovered(f"{c.where}: it casts the float input, or to {name}")
    c.inputs[0] = x
    v = r.scaled(c)
    plain = v.is_plain
    if name == "FLOAT":
        small = v.integer and plain and (v.is_integers or r.fits(v, "INT24"))
        return replace(v, base=name) if small or not v.integer else v.then("Cast", dtype=name)
    if plain and (v.integer or r.holds_integers(v)) and r.fits(v, name):
        return replace(v, base=name)
    if not v.integer:
        least, greatest = r.reach(v, c.where)
        if not lo <= least <= greatest <= hi:
            raise NotCovered(f"{c.where}: floats in [{least}, {greatest}] are not all in {name}")
    return v.then("Cast", dtype=name)


def _mod(r: Program, c: Context) -> Value:
    """The sign of the divisor, or of the dividend with fmod=1."""
    step = "Fmod" if c.attribute("fmod", 0) else "Mod"
    if (c.constant(1, "divisor") == 0).any():
        raise FileFormatError(f"{c.where}: division by zero")
    x = r.scaled(c)
    if step == "Mod" and not x.integer:
        raise FileFormatError(f"{c.where}: floats need fmod=1")
    return x.then(step, operand_of(c, x, Constant(c.constant(1, "divisor"))))


def _bit_shift(r: Program, c: Context) -> Value:
    x, by = r.scaled(c), c.constant(1, "shift")
    bits = limits_of_type(x.dtype)[1].bit_length()
    if not x.dtype.startswith("UINT") or by.min(initial=0) < 0 or by.max(initial=0) >= bits:
        raise NotCovered(f"{c.where}: a shift by {by.ravel()[:4].tolist()} of {x.dtype}")
    return x.then(c.attribute("direction", ""), operand_of(c, x, Constant(by)))


def _compared(r: Program, c: Context) -> Value:
    """Less, Greater, LessOrEqual than a constant: 0 or 1."""
    x = r.scaled(c)
    other = operand_of(c, x, Constant(c.constant(1, "a limit")))
    return x.then(c.proto.op_type, other, dtype="BOOL")


def _batch_norm(r: Program, c: Context) -> Value:
    """x * alpha + beta; alpha = gamma / sqrt(var + eps), beta = b - mean * alpha, in float32."""
    if c.attribute("training_mode", 0) or len([o for o in c.proto.output if o]) > 1:
        raise NotCovered(f"{c.where}: batch normalization in training mode")
    x = r.numbers(c)
    names = ("scale", "bias", "mean", "variance")
    gamma, beta, mean, var = (c.constant(i + 1, n).astype(np.float32) for i, n in enumerate(names))
    epsilon = np.float32(c.attribute("epsilon", 1e-5))
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / np.sqrt(var + epsilon)
        alpha = gamma * inverse
        offset = beta - mean * alpha
    if not (np.isfinite(alpha) & np.isfinite(offset)).all():
        raise FileFormatError(f"{c.where}: its parameters are not finite")
    args = [along_channels(a, x.shape, c.where) for a in (alpha, offset)]
    return x.then("Affine", *args)


TABLE: dict[str, Handler] = {
    "Add": _binary("Add"),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _rounding,
    "Clip": _clip,
    "Div": _div,
    "Abs": _step("Abs"),
    "Elu": _step("Elu", alpha=1.0),
    "Erf": _step("Erf"),
    "Exp": _step("Exp"),
    "Floor": _rounding,
    "Greater": _compared,
    "Less": _compared,
    "LessOrEqual": _compared,
    "Gelu": _gelu,
    "HardSigmoid": _step("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _step("HardSwish"),
    "LeakyRelu": _step("LeakyRelu", alpha=0.01),
    "BitShift": _bit_shift,
    "Max": _clip,
    "Min": _clip,
    "Mod": _mod,
    "Mish": _step("Mish"),
    "Mul": _binary("Mul"),
    "Neg": _step("Neg"),
    "PRelu": _prelu,
    "Relu": _relu,
    "Round": _rounding,
    "Selu": _step("Selu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Sigmoid": _step("Sigmoid"),
    "Sign": _step("Sign"),
    "Softplus": _step("Softplus"),
    "Softsign": _step("Softsign"),
    "Sub": _sub,
    "Tanh": _step("Tanh"),
    "Where": _where,
}
