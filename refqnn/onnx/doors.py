"""The network's first door: what comes in, and the quantizer that the file writes out.

Float arithmetic in front of the first quantizer becomes part of it, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, InvalidType, NotCovered, mismatch
from refqnn.formats import BIPOLAR, TERNARY, IntFormat
from refqnn.onnx.values import (
    Quantized,
    Real,
    along_one,
    float32_of,
    fractions_of,
    limits_of_type,
    power_of_two,
    unscaled,
    varying_axis,
)
from refqnn.quantizers import (
    AffineQuantizer,
    Quantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
    float_thresholds,
    same_quantizer,
)
from refqnn.rounding import Rounding

__all__ = [
    "OF_MAGNITUDES",
    "ROUNDING_STEPS",
    "InputDoor",
    "checked_door",
    "floats_of",
    "format_of",
    "input_quantizer",
    "integer_door",
    "pad_code",
    "rounding_of",
    "same_quantizer",
    "signed_rounding",
]

Array = NDArray[Any]

MAX_BITS = 16
"""Of an activation: 65,535 thresholds per channel."""

InputDoor = str | IntFormat | Quantizer | Mapping[str, "str | IntFormat | Quantizer"]
"""What `input=` may be: a tensor's name, a datatype's name, a format, a quantizer, or
{tensor's name: one of the other three}."""


# Rounding written with operators that are exact in float32, whatever they get: a half is reached by
# doubling, floor(x + 1/2) = floor((floor(2 x) + 1) / 2), and modes that are odd act on magnitudes.
ROUNDING_STEPS: dict[Rounding, tuple[tuple[str, float | None], ...]] = {
    Rounding.HALF_EVEN: (("Round", None),),
    Rounding.FLOOR: (("Floor", None),),
    Rounding.CEIL: (("Ceil", None),),
    Rounding.HALF_UP: (
        ("Mul", 2.0), ("Floor", None), ("Add", 1.0), ("Mul", 0.5), ("Floor", None),
    ),
    Rounding.HALF_DOWN: (
        ("Mul", 2.0), ("Ceil", None), ("Add", -1.0), ("Mul", 0.5), ("Ceil", None),
    ),
}  # fmt: skip
OF_MAGNITUDES = {
    Rounding.HALF_AWAY: Rounding.HALF_UP,
    Rounding.HALF_TOWARD_ZERO: Rounding.HALF_DOWN,
    Rounding.TOWARD_ZERO: Rounding.FLOOR,
    Rounding.AWAY_FROM_ZERO: Rounding.CEIL,
}


_DIRECTED = frozenset((Rounding.FLOOR, Rounding.CEIL, Rounding.AWAY_FROM_ZERO))
_UNLIMITED = 2**31 - 1  # stands for no limit of a rounded float


def rounding_of(x: Real, name: str) -> Quantized:
    """Floats whose last step rounds, as codes of no limits yet: a clip follows, or more floats."""
    told = [(s.op, s.args[0].item() if s.args and s.args[0].size == 1 else None) for s in x.steps]
    found = [(len(w), m) for m, w in ROUNDING_STEPS.items() if tuple(told[-len(w) :]) == w]
    count, mode = max(found)
    source = replace(x, steps=x.steps[:-count])
    limits = -_UNLIMITED, _UNLIMITED
    return unscaled(source, *limits, rounding=mode, rounded=True, name=name)


def signed_rounding(sign: Real, size: Real) -> Quantized | None:
    """sign(x) * round(|x|), where that is what they are: the rounding of x that `size` mirrors."""
    shared = len(sign.steps) - 1
    last = [s.op for s in size.steps[-1:]]
    if shared < 0 or sign.steps[-1].op != "Sign" or last not in (["Floor"], ["Ceil"]):
        return None
    q, x = rounding_of(size, size.name), sign.steps[:-1]
    mirrored = [m for m, mode in OF_MAGNITUDES.items() if mode is q.rounding]
    steps = q.source.steps
    if not mirrored or steps[:-1] != x or steps[-1].op != "Abs":
        return None
    return replace(q, source=replace(sign, steps=x), rounding=mirrored[0])


def floats_of(q: Quantized) -> Real | None:
    """The floats that a rounding gives, where it has no limits yet."""
    real = q.source
    if not isinstance(real, Real) or not q.limitless or q.rounding not in ROUNDING_STEPS:
        return None
    for op, value in ROUNDING_STEPS[q.rounding]:
        real = real.then(op, *(() if value is None else (np.full(1, value, np.float32),)))
    return real.then("Add", q.zero_point.astype(np.float32)) if q.zero_point.any() else real


def input_quantizer(q: Quantized, real: Real) -> Quantizer:
    """What a quantizer behind float steps does to the float input of the network."""
    return _plain_door(q, real) or _threshold_door(q, real)


def _plain_door(q: Quantized, real: Real) -> Quantizer | None:
    """Scale and zero point, where the steps in front of the quantizer allow for them exactly.

    They do when there are none; when they are a power of two; or when they and the quantizer are
    one quantizer written out: divide by its scale, add its zero point, round.
    """
    if q.function is not None:
        return None
    factor, divisor, shift = Fraction(1), None, None
    steps = list(real.steps)
    while steps and steps[-1].op == "Relu" and q.lo == 0 and not (q.bipolar or q.zero_point.any()):
        steps.pop()  # saturation at code 0 does the same
    for step in steps:
        value = step.args[0] if step.args else np.zeros(1)
        number = Fraction(value.item()) if value.size == 1 else Fraction(0)
        first = divisor is None and shift is None
        if first and step.op in ("Mul", "Div") and power_of_two(number):
            factor = factor * number if step.op == "Mul" else factor / number
        elif first and step.op == "Div" and factor == 1 and (value > 0).all():
            divisor = value
        elif step.op == "Add" and shift is None and (value == np.rint(value)).all():
            shift = value
        else:
            return None
    scale, zero, zero_first = real.undone(q.scale), real.undone(q.zero_point), q.zero_first
    if shift is not None:
        if q.bipolar or zero.any() or (scale != 1).any():
            return None
        zero, zero_first = shift.astype(np.int64), True
    parameters = [scale, zero, np.ones(zero.shape, np.float32) if divisor is None else divisor]
    axis = varying_axis(parameters, q.name)
    scale, zero, divisor = np.broadcast_arrays(*(along_one(a, axis) for a in parameters))
    scalings = sum(s.op in ("Mul", "Div") for s in steps) + bool((scale != 1).any())
    if scalings > 1 and q.rounding in _DIRECTED:  # a product that becomes 0 has lost its sign
        return None
    if (divisor != 1).any() and not all(map(power_of_two, fractions_of(scale))):
        return None
    scale = float32_of(fractions_of(scale) / factor * fractions_of(divisor))
    fmt = BIPOLAR if q.bipolar else q.format()
    if not np.isfinite(scale).all() or (scale <= 0).any():
        return None
    door_axis = None if axis is None else axis + 1
    if q.bipolar or not zero.any():
        return SymmetricQuantizer(scale, fmt, q.rounding, door_axis)
    if not (fmt.q_min <= zero.min() and zero.max() <= fmt.q_max):
        return None
    zero = zero[0] if (zero == zero[0]).all() else zero
    return AffineQuantizer(scale, zero, fmt, q.rounding, door_axis, zero_point_first=zero_first)


def _threshold_door(q: Quantized, real: Real) -> ThresholdQuantizer:
    """The least float of each code, for any nondecreasing float32 arithmetic and quantizer."""
    for step in real.steps:
        if (step.direction <= 0).any():
            raise NotCovered(
                f"{q.name}: {step.op} in front of it is not an increasing function of the input; "
                "declare the codes of the input, e.g. input='UINT8', or start behind it with "
                f"input={real.name!r}"
            )
    fmt = BIPOLAR if q.bipolar else q.format()
    if fmt.bits > MAX_BITS:
        raise NotCovered(f"{q.name}: the input becomes {fmt}, expected at most {MAX_BITS} bits")
    parameters = [real.undone(q.scale), real.undone(q.zero_point)]
    arguments = [a for step in real.steps for a in step.args]
    axis = varying_axis([*parameters, *arguments], q.name)
    if q.rows > 1:
        if real.places is not None or axis not in (None, 0):
            raise NotCovered(f"{q.name}: thresholds per channel behind a reshaped input")
        axis = 0
    scale, zero_point = (along_one(a, axis)[:, None] for a in parameters)
    steps = [(step, [along_one(a, axis)[:, None] for a in step.args]) for step in real.steps]

    def floats(v: Array) -> Array:
        for step, args in steps:
            v = step(v, *args)
        return v

    def codes(v: Array) -> Array:
        y = floats(v)
        if np.isnan(y).any():
            raise NotCovered(f"{q.name}: float arithmetic in front of it reaches NaN")
        return np.broadcast_to(q.codes(y, scale, zero_point), v.shape)

    rows = 1 if axis is None else real.origin[axis]
    first = 0 if q.bipolar else fmt.q_min  # what q.codes gives for the lowest code
    wanted = np.broadcast_to(first + np.arange(1, fmt.levels), (rows, fmt.levels - 1))
    last = np.broadcast_to([np.finfo(np.float32).min, np.finfo(np.float32).max], (rows, 2))
    beyond = last * np.float32(np.inf)
    limits = floats(beyond)
    limits = np.where(np.isnan(limits), floats(last), limits)  # where NaN, as the last float
    if (q.codes(limits, scale, zero_point) != codes(last)).any():
        raise NotCovered(f"{q.name}: infinities have codes that no finite input reaches")
    thresholds = float_thresholds(codes, wanted)
    return ThresholdQuantizer(thresholds, fmt, None if axis is None else axis + 1)


def pad_code(q: Quantized, real: Real) -> int:
    """The code of the value that pads the input."""
    if q.scale.size > 1 or q.zero_point.size > 1 or q.rows > 1 or q.bipolar:
        raise NotCovered(f"{q.name}: its input is padded, and its parameters are per channel")
    value = np.full((1, 1), real.pad_value, dtype=np.float32)
    return int(q.codes(value, q.scale.reshape(1, 1), q.zero_point.reshape(1, 1))[0, 0])


def format_of(name: str) -> IntFormat | None:
    """The format of QONNX's name of a datatype; None for floats and names we do not know.

    >>> format_of("UINT4"), format_of("FLOAT32")
    (IntFormat(bits=4, signed=False, narrow=False), None)
    """
    text = name.upper()
    named = {"BIPOLAR": BIPOLAR, "BINARY": IntFormat(1, signed=False), "TERNARY": TERNARY}
    if text in named:
        return named[text]
    digits = text.removeprefix("U").removeprefix("INT")
    if digits == text or not text.removeprefix("U").startswith("INT") or not digits.isdigit():
        return None
    return IntFormat(int(digits), signed=text[0] == "I") if 1 <= int(digits) <= 32 else None


def checked_door(door: Any) -> IntFormat | Quantizer:
    """A door that says which number each code stands for."""
    if isinstance(door, str):
        fmt = format_of(door)
        if fmt is None:
            expected = "a tensor of the model, or a datatype such as UINT8, INT4, BIPOLAR"
            raise InvalidArgument(mismatch("input", repr(door), expected))
        return fmt
    if isinstance(door, IntFormat):
        return door
    if not isinstance(door, Quantizer):
        expected = "a tensor's name, a datatype's name, an IntFormat or a quantizer"
        raise InvalidType(mismatch("input", repr(door), expected))
    one_zero = np.ndim(getattr(door, "zero_point", 0)) == 0
    if isinstance(door, ThresholdQuantizer) or door.precision != "float32" or not one_zero:
        expected = "a quantizer of scale and one zero point, in float32"
        raise InvalidArgument(mismatch("input", repr(door), expected))
    return door


def integer_door(where: str, type_name: str, door: IntFormat | Quantizer | None) -> IntFormat:
    """The codes of an input of an integer type."""
    lo, hi = limits_of_type(type_name)
    bits = 32 if type_name == "INT64" else (hi - lo).bit_length()
    if not 1 < bits <= 32 or (bits == 32 and door is None):
        expected = "float32, or integers of a declared format such as input='UINT8'"
        raise NotCovered(mismatch(where, f"data type {type_name}", expected))
    holds = IntFormat(bits, signed=type_name[0] == "I")
    if door is None:
        return holds
    if not isinstance(door, IntFormat):
        raise InvalidArgument(mismatch("input", repr(door), f"a format: {where} takes integers"))
    if door.q_min < holds.q_min or door.q_max > holds.q_max:
        raise InvalidArgument(mismatch("input", door, f"codes inside {type_name}"))
    return door
