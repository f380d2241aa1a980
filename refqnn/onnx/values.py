"""What a tensor of an ONNX graph is while the graph is read.

    Constant    an array, known now
    Grid        a constant that is codes * scale: quantized weights and biases
    Real        the float input of the network, before its quantizer
    Scaled      a function of one integer node, elementwise:

                    v0 = fl32(node - zero) * fl32(scale)      of a float tensor
                    v0 = (node - zero) * scale                of an integer tensor: an integer
                    v  = step_k(... step_1(v0))

    Quantized   a Scaled or Real behind a quantizer that is not yet an integer node: a Clip behind
                it may still narrow its codes

Every step is one operator of the file, in the file's order, in the arithmetic of its element type:
float32, or integers that wrap.  `scale` is exact: a Fraction, or one per channel; fl32 rounds it
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import erf, ldexp, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import NotCovered, ShapeMismatch
from refqnn.formats import IntFormat
from refqnn.ops.base import Shape
from refqnn.rounding import Rounding, round_float

__all__ = [
    "AFFINE",
    "Comparison",
    "Constant",
    "Dropped",
    "Grid",
    "Quantized",
    "Real",
    "Scaled",
    "Step",
    "Value",
    "along_channels",
    "along_first",
    "along_one",
    "along_sample",
    "dtype_of",
    "float32_of",
    "fractions_of",
    "limits_of_type",
    "one",
    "power_of_two",
    "recover_grid",
    "spread",
    "uniform",
    "unscaled",
    "varying_axis",
]

Array = NDArray[Any]
Float32 = NDArray[np.float32]


# --- elementwise float32 functions ------------------------------------------------------------


def _in_float64(function: Callable[[Array], Array]) -> Callable[..., Float32]:
    """A transcendental function: evaluated in float64, rounded to float32 once.

    Runtimes differ in the last bits of these; this is the value they approximate.
    """

    def rounded(v: Float32, *_: Array) -> Float32:
        with np.errstate(over="ignore"):
            return np.asarray(function(v.astype(np.float64)), dtype=np.float32)

    return rounded


_erf = np.vectorize(erf, otypes=[np.float64])

_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": lambda v, a: v + a,
    "Mul": lambda v, a: v * a,
    "Div": lambda v, a: v / a if v.dtype.kind == "f" else (v - np.fmod(v, a)) // a,
    "Mod": np.mod,  # the sign of the divisor
    "Fmod": np.fmod,  # the sign of the dividend
    "LEFT": lambda v, a: v << a,
    "RIGHT": lambda v, a: v >> a,
    "Cast": lambda v: v,
    "Fill": lambda v, a: np.broadcast_to(a, np.broadcast_shapes(v.shape, a.shape)),
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "Neg": lambda v: -v,
    "Affine": lambda v, a, b: v * a + b,  # batch normalization: two float32 operations
    "Relu": lambda v: np.maximum(v, 0),
    "Clip": lambda v, lo, hi: np.minimum(np.maximum(v, lo), hi),
    "LeakyRelu": lambda v, slope: np.where(v < 0, v * slope, v),
    "HardSigmoid": lambda v, a, b: np.clip(v * a + b, np.float32(0), np.float32(1)),
    "Sigmoid": _in_float64(lambda v: 1 / (1 + np.exp(-v))),
    "Tanh": _in_float64(np.tanh),
    "Softplus": _in_float64(lambda v: np.logaddexp(0, v)),
    "Softsign": _in_float64(lambda v: v / (1 + np.abs(v))),
    "Exp": _in_float64(np.exp),
    "Erf": _in_float64(_erf),
    "Elu": lambda v, a: np.where(v < 0, a * np.expm1(v.astype(np.float64)), v).astype(np.float32),
    "Selu": lambda v, a, g: (g * np.where(v > 0, v, a * np.expm1(v.astype(np.float64)))).astype(
        np.float32
    ),
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sign": np.sign,
    "Abs": np.abs,
    "HardSwish": lambda v: (
        v * np.clip(v * np.float32(1 / 6) + np.float32(0.5), np.float32(0), np.float32(1))
    ),
    "Gelu": _in_float64(lambda v: 0.5 * v * (1 + _erf(v / np.sqrt(2.0)))),
    "GeluTanh": _in_float64(
        lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    ),
    "Mish": _in_float64(lambda v: v * np.tanh(np.logaddexp(0, v))),
}

# fmt: off
_NOT_MONOTONE = frozenset((
    "Abs", "Fmod", "Gelu", "GeluTanh", "HardSwish", "Mish", "Mod",
))
_OF_INTEGERS = frozenset((
    "Abs", "Add", "Cast", "Clip", "Div", "Fmod", "Greater", "LEFT", "Less", "LessOrEqual", "Mod",
    "Mul", "Neg", "RIGHT", "Relu", "Sign",
))
# fmt: on
AFFINE: dict[str, Callable[..., tuple[Any, Any]]] = {  # factor and term, of exact operands
    "Add": lambda a: (1, a),
    "Affine": lambda a, b: (a, b),
    "Div": lambda a: (1 / a, 0),
    "Mul": lambda a: (a, 0),
    "Neg": lambda: (-1, 0),
}
_ROUNDED = frozenset(("Ceil", "Floor", "Round", "Sign"))
_MAY_WRAP = frozenset(("Abs", "Add", "Cast", "LEFT", "Mul", "Neg"))


def dtype_of(element_type: str) -> np.dtype[Any]:
    """How numpy holds an element type; integers of 2 and 4 bits in 8."""
    name = {"FLOAT": "float32", "BOOL": "int8"}.get(element_type, element_type.lower())
    return np.dtype(name.replace("int2", "int8").replace("int4", "int8"))


def limits_of_type(element_type: str) -> tuple[int, int]:
    """The least and the greatest integer of a type; (0, -1) for others."""
    bits = element_type.lstrip("UINT")
    if element_type == "BOOL":
        return 0, 1
    if not element_type.startswith(("INT", "UINT")) or not bits.isdigit():
        return 0, -1
    least = 0 if element_type[0] == "U" else -(2 ** (int(bits) - 1))
    return least, least + 2 ** int(bits) - 1


@dataclass(frozen=True, eq=False)
class Step:
    """One operator with constant operands.

    Args:
        op: a name of `_FUNCTIONS`.
        args: arrays with as many axes as a sample, each of size 1 or the sample's.
        dtype: the element type of the result.
    """

    op: str
    args: tuple[Array, ...] = ()
    dtype: str = "FLOAT"

    def __call__(self, v: Array, *args: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(_FUNCTIONS[self.op](v, *args)).astype(dtype_of(self.dtype))

    def wraps(self, v: Array, *args: Array) -> bool:
        """Is the result another integer than that of unbounded arithmetic?"""
        if self.dtype == "FLOAT" or self.op not in _MAY_WRAP:
            return False
        if v.dtype.kind == "f":
            lo, hi = limits_of_type(self.dtype)
            return not bool(((np.trunc(v) >= lo) & (np.trunc(v) <= hi)).all())
        wide = _FUNCTIONS[self.op](v.astype(object), *(a.astype(object) for a in args))
        return bool((wide != self(v, *args)).any())

    @property
    def direction(self) -> Array:
        """+1 nondecreasing, -1 nonincreasing, 0 neither or unknown; broadcasts to a sample."""
        if self.op in _NOT_MONOTONE:
            return np.zeros((), dtype=np.int64)
        falling = {"Mul": -1, "Div": -1, "Affine": -1, "HardSigmoid": -1, "LeakyRelu": 0, "Elu": 0}
        if self.op in falling:
            return np.where(self.args[0] < 0, falling[self.op], 1)
        return np.asarray(-1 if self.op in ("Less", "LessOrEqual", "Neg") else 1)


# --- the kinds of tensors ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Constant:
    """An array known now.

    Attributes:
        declared: the element type that the file gives it, where its dtype does not tell.
    """

    array: Array
    declared: str = field(default="", kw_only=True)

    @property
    def element_type(self) -> str:
        """FLOAT, INT8, UINT4, ..."""
        name: str = self.array.dtype.name
        return self.declared or {"float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())


@dataclass(frozen=True, eq=False)
class Grid(Constant):
    """A constant on an integer grid: real value codes * scale.

    Attributes:
        codes: int64, zero point subtracted.
        scale: Fractions that broadcast to codes, with as many axes.
    """

    codes: Array
    scale: Array

    def map(self, function: Callable[[Array], Array]) -> Grid:
        """The same function of shapes on values, codes and scale."""
        scale = function(np.broadcast_to(self.scale, self.codes.shape))
        if scale.base is not None:  # axes that were broadcast stay of size 1
            scale = scale[tuple(slice(0, 1) if s == 0 else slice(None) for s in scale.strides)]
        return Grid(function(self.array), function(self.codes), scale)


@dataclass(frozen=True, eq=False)
class Real:
    """A function of the float input of the network, elementwise and in front of a quantizer.

    Attributes:
        origin: the sample shape of the input itself.
        steps: float32 operators on it, their arguments laid out as the input is.
        places: [*shape]: where in a sample of the input each value stands; None: where it stood.
        pad, pad_value: spatial padding that a Pad node asked for, and with which value.
        name: the ONNX tensor.
    """

    origin: Shape
    steps: tuple[Step, ...] = ()
    places: NDArray[np.int64] | None = None
    pad: tuple[tuple[int, int], ...] = ()
    pad_value: float = 0.0
    name: str = ""

    @property
    def shape(self) -> Shape:
        """Of a sample."""
        return self.origin if self.places is None else self.places.shape

    def then(self, op: str, *args: Float32) -> Real:
        """One more step.  Raises: NotCovered when padded."""
        if self.pad:
            raise NotCovered(f"{op} on a padded float input: quantize it first")
        return replace(self, steps=(*self.steps, Step(op, tuple(self.undone(a) for a in args))))

    def moved(self, movement: Callable[[Array], Array]) -> Real:
        """The values where `movement` takes the entries of an array.  Raises: as `then`."""
        if self.pad:
            raise NotCovered("its input is padded; only a convolution or pooling takes padding")
        first = np.arange(prod(self.origin)).reshape(self.origin)
        places = movement(first if self.places is None else self.places)
        return replace(self, places=None if np.array_equal(places, first) else places)

    def undone(self, values: Array) -> Array:
        """An array that broadcasts to shape, laid out as the input is.

        Raises: NotCovered when one value of the input stands at places with different entries.
        """
        if values.size == 1:
            return values.reshape((1,) * len(self.origin))
        full = np.broadcast_to(values, self.shape)
        if self.places is None:
            return narrowed(full)
        result = np.full(prod(self.origin), full.flat[0], dtype=values.dtype)
        result[self.places] = full
        if (result[self.places] != full).any():
            raise NotCovered("it treats copies of one value of the float input differently")
        return narrowed(result.reshape(self.origin))


@dataclass(frozen=True, eq=False)
class Scaled:
    """A function of an integer node; see the module.

    Attributes:
        node: name of the integer node, or INPUT.
        shape: of a sample.
        scale: Fractions of as many axes as a sample, each of size 1 or the sample's.
        zero: the integer (or half-integer) that stands for real zero.
        steps: pending operators.
        base: the element type of v0.
        pad: spatial padding that a Pad node asked for, as ((before, after), ...).
        pad_code: value of the node at padded positions; None for real zero.
        function: v0 of the node's values [1, n], where it is not what stands above.
    """

    node: str
    shape: Shape
    scale: Array
    zero: Fraction = Fraction(0)
    steps: tuple[Step, ...] = ()
    base: str = "FLOAT"
    pad: tuple[tuple[int, int], ...] = ()
    pad_code: int | None = None
    function: Callable[[Array], Array] | None = None

    @property
    def dtype(self) -> str:
        """The element type of the tensor."""
        return self.steps[-1].dtype if self.steps else self.base

    @property
    def integer(self) -> bool:
        return self.dtype != "FLOAT"

    def then(self, op: str, *args: Array, dtype: str = "") -> Scaled:
        """One more operator, in the tensor's own arithmetic.  Raises: NotCovered."""
        if self.integer and op not in _OF_INTEGERS:
            raise NotCovered(f"{op} of a tensor of type {self.dtype}")
        return replace(self, steps=(*self.steps, Step(op, args, dtype or self.dtype)))

    def values(self, acc: Array) -> Array:
        """What the file's operators make of integers [channels, n] of the node."""
        y = self._start(acc)
        for step in self.steps:
            y = step(y, *(a.reshape(-1, 1) for a in step.args))
        return y

    def wraps(self, acc: Array) -> bool:
        """Does any integer wrap on the way?"""
        y = self._start(acc)
        for step in self.steps:
            args = [a.reshape(-1, 1) for a in step.args]
            if step.wraps(y, *args):
                return True
            y = step(y, *args)
        return False

    @cached_property
    def _factors(self) -> tuple[Array, Array]:
        """What (node * d - z) is multiplied with, and divided by, for a zero of z / d."""
        scale = self.scale.reshape(-1, 1) / self.zero.denominator
        if self.base == "FLOAT":
            return float32_of(scale), np.ones((), np.float32)
        parts = [[f.numerator for f in scale.ravel()], [f.denominator for f in scale.ravel()]]
        return tuple(np.array(p, dtype=np.int64).reshape(-1, 1) for p in parts)  # type: ignore

    def _start(self, acc: Array) -> Array:
        """v0."""
        if self.function is not None:
            return self.function(acc)
        factor, divisor = self._factors
        centred = acc * self.zero.denominator - self.zero.numerator
        y: Array = centred.astype(factor.dtype) * factor
        return y if self.base == "FLOAT" else (y // divisor).astype(dtype_of(self.base))

    @property
    def parameters(self) -> list[Array]:
        """The scale and the operands of the steps."""
        return [self.scale, *(a for s in self.steps for a in s.args)]

    @property
    def is_integers(self) -> bool:
        """Does the ONNX tensor hold node - zero itself?"""
        whole = self.is_plain and self.zero.denominator == 1
        return whole and all(s == 1 for s in self.scale.ravel())

    def on(self, node: str, shape: Shape, function: Callable[[Array], Array]) -> Scaled:
        """The same values in another order: `function` maps arrays of the old shape to the new."""

        def moved(a: Array) -> Array:
            if a.size == 1:
                return a.reshape((1,) * len(shape))
            return narrowed(function(np.broadcast_to(a, self.shape)))

        return self.mapped(node, shape, moved)

    def mapped(self, node: str, shape: Shape, function: Callable[[Array], Array]) -> Scaled:
        """The same on another node, whose samples have this shape; `function` of the parameters."""
        steps = tuple(replace(s, args=tuple(function(a) for a in s.args)) for s in self.steps)
        return replace(self, node=node, shape=shape, scale=function(self.scale), steps=steps)

    @property
    def rows(self) -> int:
        """The channels that its parameters tell apart."""
        return self.shape[0] if any(p.size > 1 for p in self.parameters) else 1

    @property
    def is_plain(self) -> bool:
        """Is it v0, that is (node - zero) * scale?"""
        return not self.steps and self.function is None

    @property
    def last(self) -> str:
        """The operator that made the tensor."""
        return self.steps[-1].op if self.steps else "Mul or Add (a product, a sum)"

    @property
    def is_affine(self) -> bool:
        affine = all(s.op in AFFINE and s.dtype == "FLOAT" for s in self.steps)
        return affine and self.function is None

    @property
    def integral(self) -> bool:
        """Do the operators give integers, whatever the node holds?"""
        whole = all(v.denominator == 1 for v in (self.zero, *self.scale.ravel()))
        whole = whole and self.function is None
        for step in self.steps:
            if step.op in _ROUNDED or step.dtype != "FLOAT":
                whole = True
            elif step.op not in _OF_INTEGERS | {"Affine"} or step.op == "Div":
                whole = False
            whole = whole and all((a == np.rint(a)).all() for a in step.args)
        return whole

    def affine(self) -> tuple[Array, Array]:
        """(scale, offset) in Fractions: the value is (node - zero) * scale + offset, exactly."""
        scale, offset = self.scale, one(self.shape) * 0
        for step in self.steps:
            factor, term = AFFINE[step.op](*(fractions_of(a) for a in step.args))
            scale, offset = scale * factor, offset * factor + term
        return scale, offset


@dataclass(eq=False)
class Quantized:
    """Codes on their way: quantizer(source), clipped to [lo, hi].

    Attributes:
        source: what is quantized.
        scale, zero_point: float32 and integers, one or along the sample (see `Step.args`).
        rounding: a mode.
        zero_first: add the zero point before rounding (QONNX), not after (QuantizeLinear).
        bipolar: codes 0, 1 for v < 0, v >= 0.
        function: codes of float32 values [channels, n] where no scale describes them, less
            zero_point.
        rows: channels that `function` distinguishes.
        rounded: a rounding or a count of thresholds; Add may still move the codes.
        dtype: the element type of the codes.
    """

    source: Scaled | Real
    scale: Float32
    zero_point: Array
    lo: int
    hi: int
    rounding: Rounding = Rounding.HALF_EVEN
    zero_first: bool = False
    bipolar: bool = False
    function: Callable[[Float32], Array] | None = None
    rows: int = 1
    rounded: bool = False
    dtype: str = "FLOAT"
    name: str = ""
    done: Scaled | None = field(default=None, repr=False)

    def codes(self, v: Float32, scale: Float32, zero_point: Array) -> Array:
        """The codes of float32 values; scale and zero_point broadcast to v."""
        if self.function is not None:
            return np.clip(self.function(v) + zero_point, self.lo, self.hi)
        if self.bipolar:
            return (v >= 0).astype(np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            y = v / scale
        if self.zero_first:
            y = y + zero_point.astype(np.float32)
        rounded = round_float(y, self.rounding).astype(np.float64)
        if not self.zero_first:
            rounded = rounded + zero_point
        return np.clip(rounded, self.lo, self.hi).astype(np.int64)

    @property
    def limitless(self) -> bool:
        """Has nothing clipped what a rounding gave?"""
        return self.rounded and self.hi - self.lo >= 2**32 - 2

    def format(self) -> IntFormat:
        """The narrowest format that holds [lo, hi]."""
        for bits, signed, narrow in product(range(1, 33), (False, True), (True, False)):
            if bits > 1 or not narrow:
                fmt = IntFormat(bits, signed, narrow)
                if fmt.q_min <= self.lo and self.hi <= fmt.q_max:
                    return fmt
        raise NotCovered(f"{self.name}: codes [{self.lo}, {self.hi}] need more than 32 bits")


def unscaled(source: Scaled | Real, lo: int, hi: int, **options: Any) -> Quantized:
    """A quantizer of scale 1 and zero point 0."""
    axes = (1,) * len(source.shape)
    scale, zero = np.ones(axes, np.float32), np.zeros(axes, np.int64)
    return Quantized(source, scale, zero, lo, hi, **options)


@dataclass(frozen=True, eq=False)
class Comparison:
    """source >= thresholds[channel or 0, k], for each k along a last axis of its own."""

    source: Scaled | Real
    thresholds: Array
    dtype: str = "BOOL"


@dataclass(frozen=True, eq=False)
class Dropped:
    """The result of an operator that is left out at the output door."""

    source: Value


Value = Constant | Real | Scaled | Quantized | Comparison | Dropped
"""What a tensor may be."""


# --- shapes and exact numbers -----------------------------------------------------------------


def one(shape: Shape) -> Array:
    """Fraction(1) with as many axes as a sample."""
    return np.array(Fraction(1), dtype=object).reshape((1,) * len(shape))


def along_first(values: Array, shape: Shape) -> Array:
    """[channels], or one value, with as many axes as a sample."""
    return np.asarray(values).reshape((-1,) + (1,) * (len(shape) - 1))


def uniform(values: Array) -> Array:
    """[1] where all values are equal, else the values."""
    flat: Array = values.ravel()
    return flat[:1] if all(v == flat[0] for v in flat) else values


def narrowed(values: Array) -> Array:
    """Axes along which nothing changes become of size 1."""
    for axis in range(values.ndim):
        first = values.take([0], axis=axis)
        values = first if (values == first).all() else values
    return values


def along_sample(array: Array, shape: Shape, where: str) -> Array:
    """A constant operand of a tensor [n, *shape] as an array of len(shape) axes.

    Raises: ShapeMismatch when it has a batch of its own or would enlarge the tensor.
    """
    full = len(shape) + 1
    if array.size == 1:
        return array.reshape((1,) * len(shape))
    if array.ndim > full:
        raise ShapeMismatch(f"{where}: operand of shape {array.shape} against {('n', *shape)}")
    padded: Array = array.reshape((1,) * (full - array.ndim) + array.shape)
    if padded.shape[0] != 1 or any(a not in (1, s) for a, s in zip(padded.shape[1:], shape)):
        raise ShapeMismatch(f"{where}: operand of shape {array.shape} against {('n', *shape)}")
    first: Array = padded[0]
    return first


def along_channels(array: Array, shape: Shape, where: str, axis: int = 1) -> Array:
    """One value, or one per index of `axis` of [n, *shape], as an array of len(shape) axes."""
    if array.size == 1:
        return array.reshape((1,) * len(shape))
    axis = axis + len(shape) + 1 if axis < 0 else axis
    if not 1 <= axis <= len(shape) or array.shape != (shape[axis - 1],):
        raise ShapeMismatch(
            f"{where}: parameter of shape {array.shape} along axis {axis} of {('n', *shape)}"
        )
    return array.reshape([-1 if i == axis - 1 else 1 for i in range(len(shape))])


def fractions_of(array: Array) -> Array:
    """Floats or integers as the dyadic rationals they are."""
    exact = np.empty(array.shape, dtype=object)
    exact[...] = np.array([Fraction(v) for v in array.ravel().tolist()], object).reshape(
        array.shape
    )
    return exact


def float32_of(exact: Array) -> Float32:
    """Fractions rounded once to the nearest float32, ties to even."""
    nearest = [_nearest_float32(Fraction(v)) for v in exact.ravel()]
    return np.array(nearest, dtype=np.float32).reshape(exact.shape)


def _nearest_float32(value: Fraction) -> np.float32:
    bits = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent = max(bits - 24, -149)  # of the last of 24 digits, or of a subnormal number
    if abs(value) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    with np.errstate(over="ignore"):
        return np.float32(ldexp(round(value / Fraction(2) ** exponent), exponent))


def varying_axis(arrays: list[Array], where: str) -> int | None:
    """The one axis of a sample along which the arrays vary; None when they are constant.

    Raises: NotCovered when there are several.
    """
    axes = {
        i
        for a in arrays
        for i, size in enumerate(a.shape)
        if size > 1 and not (a == a.take([0], axis=i)).all()
    }
    if len(axes) > 1:
        raise NotCovered(f"{where}: its constants vary along several axes of the input")
    return axes.pop() if axes else None


def along_one(array: Array, axis: int | None) -> Array:
    """[n] or [1]: an array that varies along no other axis than this."""
    rows: Array = array if axis is None else np.moveaxis(array, axis, 0)
    return rows.reshape(rows.shape[0], -1)[:, 0] if axis is not None else rows.reshape(-1)[:1]


def power_of_two(value: Fraction) -> bool:
    """Is it 2**k for an integer k?"""
    n, d = value.numerator, value.denominator
    return n > 0 and n & (n - 1) == 0 and d & (d - 1) == 0


def recover_grid(w: Array, *, levels: int = 255) -> tuple[Array, Fraction] | None:
    """Integers q and a float32 s with fl32(q * s) = w everywhere, for constant-folded weights.

    The greatest magnitude is tried as 1 * s, 2 * s, ..., levels * s; the coarsest grid wins.

    >>> q, s = recover_grid(np.array([1, -2, 0, 3], dtype=np.float32) * np.float32(0.3))
    >>> q.tolist(), float(s)
    ([1, -2, 0, 3], 0.30000001192092896)
    """
    values = np.unique(np.abs(np.asarray(w, dtype=np.float32)))
    largest = values[-1]
    if not np.isfinite(largest):
        return None
    if largest == 0:
        return np.zeros(w.shape, dtype=np.int64), Fraction(1)
    exact = values.astype(np.float64)
    for k in range(1, levels + 1):
        q = np.rint(exact * (k / float(largest)))
        if (np.abs(q * (float(largest) / k) - exact) > exact * 2.0**-22).any():
            continue
        guess = np.float32(float(largest) / k)
        for s in (
            guess,
            np.nextafter(guess, np.float32(0)),
            np.nextafter(guess, np.float32(np.inf)),
        ):
            if np.array_equal(q.astype(np.float32) * s, values):
                codes = np.rint(w.astype(np.float64) * (k / float(largest))).astype(np.int64)
                return codes, Fraction(float(s))
    return None


def spread(parameters: list[Array], shape: Shape) -> bool:
    """Does any parameter vary along an axis of the sample other than the first?"""
    return any(prod(p.shape[1:]) != 1 for p in parameters if p.ndim > 1) and len(shape) > 1
