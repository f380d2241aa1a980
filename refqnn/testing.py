"""Hypothesis strategies for formats, quantizers, codes, nodes and whole networks.

To fuzz an implementation of one's own:

    from hypothesis import given, strategies as st
    from refqnn import testing

    @given(st.data())
    def test_mine(data):
        network = data.draw(testing.networks())
        codes = data.draw(testing.batches(network))
        assert network.diff(my_trace(network, codes)) is None

Cases are small (at most 4 channels and 6 positions an axis) and shrink to a readable minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.emulate import Accumulator, Emulated, Stage
from refqnn.errors import MissingExtra
from refqnn.formats import BIPOLAR, IntFormat
from refqnn.network import INPUT, Network, Node
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Interval,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Rescale,
    Reshape,
    Softmax,
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import ALWAYS, NEVER, Requantize
from refqnn.ops.rescale import MULTIPLIERS
from refqnn.quantizers import (
    AffineQuantizer,
    Dequantizer,
    PowerOfTwoQuantizer,
    Quantizer,
    SymmetricQuantizer,
)
from refqnn.rounding import Rounding

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise MissingExtra("test", "hypothesis") from error

__all__ = [
    "KINDS",
    "Value",
    "accumulators",
    "batches",
    "codes",
    "emulations",
    "formats",
    "networks",
    "ops",
    "quantizers",
    "reals",
    "roundings",
]

Strategy = st.SearchStrategy


def roundings() -> Strategy[Rounding]:
    """The nine rounding modes."""
    return st.sampled_from(Rounding)


@st.composite
def formats(draw: st.DrawFn, max_bits: int = 8) -> IntFormat:
    """Signed and unsigned, full and narrow formats of 1 to `max_bits` bits."""
    bits = draw(st.integers(1, max_bits))
    signed = draw(st.booleans())
    narrow = bits > 1 and draw(st.booleans())
    return IntFormat(bits, signed, narrow)


def codes(fmt: IntFormat, shape: Shape) -> Strategy[NDArray[np.int64]]:
    """Arrays of codes of a format."""
    steps = hnp.arrays(np.int64, shape, elements=st.integers(0, fmt.levels - 1))
    return steps.map(lambda k: fmt.q_min + fmt.step * k)


# --- quantizers -------------------------------------------------------------------------------


@st.composite
def quantizers(draw: st.DrawFn, channels: int | None = None, max_bits: int = 8) -> Quantizer:
    """All three kinds, per tensor; or per channel along axis 1 too when `channels` is given."""
    fmt = draw(formats(max_bits))
    rounding = draw(roundings())
    precision = draw(_precisions())
    axis = None if channels is None else draw(st.sampled_from([None, 1]))
    n = channels if channels is not None and axis is not None else 1

    def per_channel(elements: Strategy[Any]) -> Any:
        values = draw(st.lists(elements, min_size=n, max_size=n))
        return values[0] if axis is None else values

    kind = draw(st.sampled_from(["symmetric", "power of two", "affine", "affine, zero first"]))
    if kind == "power of two":
        exponent = per_channel(st.integers(-12, 12) | st.integers(-126, 127))
        return PowerOfTwoQuantizer(exponent, fmt, rounding, axis, precision)
    scale = per_channel(_scales())
    if kind == "symmetric":
        return SymmetricQuantizer(scale, fmt, rounding, axis, precision)
    zero_point = per_channel(st.integers(fmt.q_min, fmt.q_max))
    first = kind == "affine, zero first"
    return AffineQuantizer(scale, zero_point, fmt, rounding, axis, precision, first)


def _precisions() -> Strategy[Literal["float32", "float64"]]:
    return st.sampled_from(["float32", "float64"])


def _scales() -> Strategy[float]:
    """Simple ones first, then any positive float32."""
    simple = st.sampled_from([1.0, 0.5, 0.25, 0.1, 3.0])
    return simple | st.floats(2.0**-149, 2.0**127, width=32)


def reals(quantizer: Quantizer, shape: Shape) -> Strategy[NDArray[Any]]:
    """Floats for a quantizer: many on or beside a multiple of half a scale, any others, no NaN."""
    dtype = np.dtype(quantizer.precision)
    scale = dtype.type(np.ravel(quantizer.scale)[0])

    def beside(multiple: int, side: int) -> float:
        with np.errstate(over="ignore", under="ignore"):
            tie = scale * dtype.type(multiple) / dtype.type(2)
            return float(np.nextafter(tie, dtype.type(side * np.inf)) if side else tie)

    near_ties = st.builds(beside, st.integers(-600, 600), st.sampled_from([0, 1, -1]))
    any_float = st.floats(width=32 if quantizer.precision == "float32" else 64, allow_nan=False)
    return hnp.arrays(dtype, shape, elements=near_ties | any_float)


def dequantizers(channels: int) -> Strategy[Dequantizer]:
    """Scales (negative ones too) and offsets, one or one per channel."""
    number = st.floats(-1e6, 1e6, width=32)
    nonzero = number.filter(lambda v: v != 0)

    def one_or_all(elements: Strategy[float]) -> Strategy[Any]:
        return elements | st.lists(elements, min_size=channels, max_size=channels)

    return st.builds(Dequantizer, one_or_all(nonzero), one_or_all(number), _precisions())


# --- nodes ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Value:
    """What a node may be attached to: a name, and the range that the value is proved to have."""

    name: str
    range: Interval

    @property
    def shape(self) -> Shape:
        return self.range.shape


def _integers(shape: Shape, largest: int) -> Strategy[NDArray[np.int64]]:
    return hnp.arrays(np.int64, shape, elements=st.integers(-largest, largest))


def _biases(channels: int, largest: int) -> Strategy[NDArray[np.int64] | None]:
    return st.none() | _integers((channels,), largest)


@st.composite
def _linear(draw: st.DrawFn, x: Value, largest: int) -> Op:
    out = draw(st.integers(1, 4))
    weight = draw(_integers((out, x.shape[0]), largest))
    return Linear(weight, draw(_biases(out, largest)))


@st.composite
def _conv(draw: st.DrawFn, x: Value, largest: int) -> Op:
    channels, *sizes = x.shape
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    out = groups * draw(st.integers(1, 2))
    padding, dilation, kernel, stride = [], [], [], []
    for size in sizes:
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        d = draw(st.integers(1, 2))
        padding.append((before, after))
        dilation.append(d)
        kernel.append(draw(st.integers(1, min(3, (before + size + after - 1) // d + 1))))
        stride.append(draw(st.integers(1, 3)))
    return (Conv1d if len(sizes) == 1 else Conv2d)(
        draw(_integers((out, channels // groups, *kernel), largest)),
        draw(_biases(out, largest)),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        pad_code=draw(st.integers(-3, 3)),
    )


@st.composite
def _conv_transpose(draw: st.DrawFn, x: Value, largest: int) -> Op:
    channels = x.shape[0]
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    of_group = draw(st.integers(1, 2))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride, dilation, padding, extra = [], [], [], []
    for size, k in zip(x.shape[1:], kernel):
        s, d = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        before = draw(st.integers(0, min(2, s * (size - 1) + d * (k - 1))))
        stride.append(s)
        dilation.append(d)
        padding.append((before, 0))
        extra.append(draw(st.integers(0, max(s, d) - 1)))
    return ConvTranspose2d(
        draw(_integers((channels, of_group, *kernel), largest)),
        draw(_biases(groups * of_group, largest)),
        stride=tuple(stride),
        padding=tuple(padding),
        output_padding=tuple(extra),
        dilation=tuple(dilation),
        groups=groups,
    )


@st.composite
def _gather(draw: st.DrawFn, x: Value, largest: int) -> Op:
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    index = draw(hnp.arrays(np.int64, shape, elements=st.integers(-1, prod(x.shape) - 1)))
    return Gather(index, x.shape, draw(st.integers(-3, 3)))


@st.composite
def _pool(draw: st.DrawFn, x: Value, largest: int, *, average: bool) -> Op:
    kernel = tuple(draw(st.integers(1, min(3, size))) for size in x.shape[1:])
    stride = tuple(draw(st.integers(1, 3)) for _ in kernel)
    padding = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel)
    if average:
        return SumPool2d(kernel, stride, padding, draw(st.integers(-3, 3)))
    return MaxPool2d(kernel, stride, padding)


@st.composite
def _requantize(draw: st.DrawFn, x: Value, largest: int) -> Op:
    fmt = draw(formats(max_bits=4))
    rows = draw(st.sampled_from([1, x.shape[0]]))
    lo, hi = int(x.range.lo.min()), int(x.range.hi.max())
    near = st.integers(max(lo - 1, ALWAYS + 1), min(hi + 1, NEVER - 1))
    threshold = near | st.sampled_from([ALWAYS, NEVER])
    thresholds = draw(hnp.arrays(np.int64, (rows, fmt.levels - 1), elements=threshold))
    return Requantize(np.sort(thresholds, axis=1), fmt)


@st.composite
def _rescale(draw: st.DrawFn, x: Value, largest: int) -> Op:
    """Codes of 2 to 32 bits; shifts to the left and to the right side by side."""
    fmt = draw(st.builds(IntFormat, st.integers(2, 32), st.booleans(), st.booleans()))
    rows = draw(st.sampled_from([1, x.shape[0]]))

    def each(lo: int, hi: int) -> NDArray[np.int64]:
        count = draw(st.sampled_from([1, rows]))
        return draw(hnp.arrays(np.int64, (count,), elements=st.integers(lo, hi)))

    shift = each(0, draw(st.sampled_from([4, 62])))
    clip = hnp.arrays(np.int64, (rows, 2), elements=st.integers(fmt.q_min, fmt.q_max))
    return Rescale(
        each(0, draw(st.sampled_from([min(largest, MULTIPLIERS - 1), 2**31, MULTIPLIERS - 1]))),
        shift,
        fmt,
        draw(roundings()),
        zero_point=each(-largest, largest),
        offset=each(-largest, largest),
        clip=draw(st.none() | clip.map(lambda ends: np.sort(ends, axis=1))),
        first_rounding=draw(st.none() | roundings()),
        first_shift=each(0, int(shift.min())),
    )


@st.composite
def _softmax(draw: st.DrawFn, x: Value, largest: int) -> Op:
    """Tables that need not fall, in all arithmetics; codes of 1 to 16 bits."""
    fmt = draw(formats(max_bits=16))
    count = draw(st.integers(1, 6))
    if fmt.bits == 15 and draw(st.booleans()):
        short = hnp.arrays(np.int64, (count,), elements=st.integers(0, 2**15 - 1))
        return Softmax(np.maximum(draw(short), [2**14] + [0] * (count - 1)), fmt)
    if draw(st.booleans()):
        whole = hnp.arrays(np.int64, (count,), elements=st.integers(0, 2**31 - 1))
        return Softmax(np.maximum(draw(whole), [2**16] + [0] * (count - 1)), fmt)
    rest = draw(hnp.arrays(np.float32, (count - 1,), elements=st.floats(0, 1, width=32)))
    first = draw(st.sampled_from([1.0, 2.0**-100]) | st.floats(2.0**-20, 2.0**100, width=32))
    return Softmax(np.array([first, *rest], dtype=np.float32), fmt)


@st.composite
def _lookup(draw: st.DrawFn, x: Value, largest: int) -> Op:
    lo, hi = int(x.range.lo.min()), int(x.range.hi.max())
    first = lo - draw(st.integers(0, 2))
    columns = hi - first + 1 + draw(st.integers(0, 2))
    rows = draw(st.sampled_from([1, x.shape[0]]))
    fmt = draw(st.none() | formats(max_bits=4))
    table = _integers((rows, columns), largest) if fmt is None else codes(fmt, (rows, columns))
    return Lookup(draw(table), first, fmt)


@st.composite
def _reshape(draw: st.DrawFn, x: Value, largest: int) -> Op:
    n = prod(x.shape)
    first = draw(st.sampled_from([d for d in range(1, min(n, 4) + 1) if n % d == 0]))
    return Reshape((first, n // first))


@st.composite
def _add(draw: st.DrawFn, operands: int) -> Op:
    multiplier = st.integers(1, 3) | st.integers(-3, -1)
    return Add(draw(st.none() | st.tuples(*[multiplier] * operands)))


# Kinds of one input: does it take this value, and the strategy over (value, largest weight).
_UNARY: dict[str, tuple[Callable[[Value], bool], Callable[..., Strategy[Op]]]] = {
    "Linear": (lambda x: len(x.shape) == 1, _linear),
    "Requantize": (lambda x: _magnitude(x) < NEVER, _requantize),
    "Rescale": (lambda x: True, _rescale),
    "Softmax": (lambda x: True, _softmax),
    "Conv1d": (lambda x: len(x.shape) == 2 and x.shape[0] <= 4, _conv),
    "Conv2d": (lambda x: len(x.shape) == 3 and x.shape[0] <= 4, _conv),
    "ConvTranspose2d": (lambda x: len(x.shape) == 3 and x.shape[0] <= 4, _conv_transpose),
    "Gather": (lambda x: True, _gather),
    "Lookup": (lambda x: _span(x) < 64 and _magnitude(x) < 2**62, _lookup),
    "MaxPool2d": (lambda x: len(x.shape) == 3, lambda x, m: _pool(x, m, average=False)),
    "SumPool2d": (lambda x: len(x.shape) == 3, lambda x, m: _pool(x, m, average=True)),
    "GlobalSumPool": (lambda x: len(x.shape) > 1, lambda x, m: st.just(GlobalSumPool())),
    "Flatten": (lambda x: True, lambda x, m: st.just(Flatten())),
    "Reshape": (lambda x: True, _reshape),
}

KINDS = (*_UNARY, "Add", "Concat")


def _magnitude(x: Value) -> int:
    return x.range.largest


def _span(x: Value) -> int:
    return int(x.range.hi.max()) - int(x.range.lo.min())


def ops(kind: str, x: Value, *, max_weight: int = 3, operands: int = 2) -> Strategy[Op]:
    """Nodes of one kind that take the value x (Add and Concat: `operands` values of its shape).

    Weights, biases and entries of lookup tables lie in [-max_weight, max_weight].
    """
    if kind == "Add":
        return _add(operands)
    if kind == "Concat":
        return st.just(Concat())
    takes, strategy = _UNARY[kind]
    return strategy(x, max_weight) if takes(x) else st.nothing()


# --- networks ---------------------------------------------------------------------------------


@st.composite
def networks(
    draw: st.DrawFn,
    *,
    max_nodes: int = 6,
    max_weight: int = 3,
    kinds: Sequence[str] = KINDS,
    doors: bool = False,
) -> Network:
    """Graphs of one to `max_nodes` nodes: chains, residuals, branches, several consumers.

    Args:
        max_nodes: at most so many.
        max_weight: largest magnitude of weights, biases and table entries; beyond 2**31 the
            accumulators leave int64.
        kinds: node kinds to use, out of `KINDS`.
        doors: draw an input quantizer and an output dequantizer too.
    """
    shape = draw(
        st.tuples(st.integers(1, 5))
        | st.tuples(st.integers(1, 3), st.integers(1, 6))
        | st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
    )
    quantizer = draw(quantizers(shape[0], max_bits=4)) if doors else None
    fmt = draw(formats(max_bits=4) | st.just(BIPOLAR)) if quantizer is None else quantizer.format
    values = [Value(INPUT, Interval.of_format(fmt, shape))]
    nodes: list[Node] = []
    for i in range(draw(st.integers(1, max_nodes))):
        name = f"node{i}"
        op, inputs = draw(_attachments(values, kinds, max_weight))
        nodes.append(Node(name, op, tuple(x.name for x in inputs)))
        values.append(Value(name, op.out_range(*(x.range for x in inputs))))
    dequantizer = draw(dequantizers(values[-1].shape[0])) if doors else None
    return Network(
        nodes,
        input_shape=shape,
        input_format=fmt,
        input_quantizer=quantizer,
        output_dequantizer=dequantizer,
    )


@st.composite
def _attachments(
    draw: st.DrawFn, values: list[Value], kinds: Sequence[str], max_weight: int
) -> tuple[Op, list[Value]]:
    """A node and the values it takes; the newest value first, so that chains are the simplest."""
    x = draw(st.sampled_from(values[::-1]))
    usable = [kind for kind in kinds if kind not in _UNARY or _UNARY[kind][0](x)]
    kind = draw(st.sampled_from(usable or ["Flatten"]))
    inputs = [x]
    if kind in ("Add", "Concat"):
        depth = 0 if kind == "Add" else 1
        partners = [v for v in values if v.shape[depth:] == x.shape[depth:]]
        inputs += draw(st.lists(st.sampled_from(partners), min_size=1, max_size=2))
    return draw(ops(kind, x, max_weight=max_weight, operands=len(inputs))), inputs


def batches(network: Network, max_samples: int = 3) -> Strategy[NDArray[np.int64]]:
    """Batches of input codes, [n, *input_shape]."""
    return st.integers(1, max_samples).flatmap(
        lambda n: codes(network.input_format, (n, *network.input_shape))
    )


def emulations(max_bits: int = 12) -> Strategy[Emulated]:
    """Accumulators of 1 to `max_bits` bits with every way to overflow."""
    return st.builds(
        Emulated,
        st.integers(1, max_bits),
        st.booleans(),
        st.sampled_from(["wrap", "saturate"]),
        st.sampled_from(["step", "end"]),
        st.sampled_from(["forward", "reverse", "bias_first"]),
    )


@st.composite
def accumulators(draw: st.DrawFn, max_bits: int = 12) -> Accumulator:
    """Accumulators of one to three stages with every way to group, order and overflow."""
    groups = [*draw(st.lists(st.integers(1, 5), max_size=2)), None]
    stages = [
        Stage(
            draw(st.integers(1, max_bits)),
            draw(st.booleans()),
            group,
            draw(st.sampled_from(["wrap", "saturate"])),
            draw(st.sampled_from(["step", "end"])),
        )
        for group in groups
    ]
    orders: Strategy[Any] = st.sampled_from(["forward", "reverse", "channels_last"])
    return Accumulator(stages, draw(orders), draw(st.sampled_from(["first", "last", "outside"])))
