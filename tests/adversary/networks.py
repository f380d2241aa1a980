"""Networks that look for trouble, and their inputs.

A network grows node by node: a maker is drawn from the tables below, looks at the values there are
and adds nodes that read some of them.  A new node kind is one more entry of `MAKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np

from refqnn import BIPOLAR, TERNARY, IntFormat, Network, Node, Requantize, Rounding
from refqnn.errors import RefqnnError
from refqnn.network import INPUT
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Rescale,
    Reshape,
    Softmax,
    SumOp,
    SumPool2d,
)
from refqnn.ops.base import Interval

ALWAYS, NEVER = -(2**63), 2**63 - 1
MOST_VALUES = 72  # of one node
EDGES = (2**24, 2**25, 2**31, 2**53, 2**62, 2**63 - 1)

FORMATS = [
    IntFormat(1, False),
    IntFormat(2, False),
    IntFormat(2, True),
    IntFormat(3, False),
    IntFormat(3, True, narrow=True),
    BIPOLAR,
    TERNARY,
]
WIDE_FORMATS = [
    IntFormat(8, False),
    IntFormat(8, True),
    IntFormat(16, True),
    IntFormat(25, True),
    IntFormat(32, False),
    IntFormat(32, True),
]


@dataclass
class Graph:
    """A network that grows.

    Attributes:
        tame: no large numbers.
        values: shape and range of every value by name, over the whole input format.
    """

    rng: np.random.Generator
    input_format: IntFormat
    input_shape: tuple[int, ...]
    tame: bool = False
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values[INPUT] = Interval.of_format(self.input_format, self.input_shape)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choice(self, items: Sequence[Any]) -> Any:
        return items[self.rng.integers(len(items))]

    def source(self, dimensions: int | None = None) -> str | None:
        """The last value mostly, any of them sometimes; with so many axes."""
        names = [
            name
            for name, value in self.values.items()
            if dimensions is None or len(value.shape) == dimensions
        ]
        if not names:
            return None
        return names[-1] if self.chance(0.65) else self.choice(names)

    def add(self, op: Op, sources: tuple[str, ...]) -> str:
        """Raises: RefqnnError where the op does not take these values."""
        op.out_shape(*(self.values[name].shape for name in sources))
        range_ = op.out_range(*(self.values[name] for name in sources))
        if range_.lo.size > MOST_VALUES:
            raise TooLarge(op.kind)
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, op, sources))
        self.values[name] = range_
        return name


class TooLarge(RefqnnError):
    """More values than wanted."""


# --- numbers ------------------------------------------------------------------------------------


def weights(g: Graph, shape: tuple[int, ...]) -> np.ndarray:
    """Sparse or dense, small mostly, large sometimes."""
    largest = 1 if g.chance(0.4) else int(g.rng.integers(1, 5))
    if not g.tame and g.chance(0.15):
        largest = 2 ** int(g.choice([8, 12, 20, 23, 31, 45, 52, 61, 62]))
    weight = g.rng.integers(-largest, largest + 1, shape)
    density = g.choice([1.0, 0.6, 0.25])
    return np.where(g.rng.random(shape) < density, weight, 0)


def bias(g: Graph, channels: int) -> np.ndarray | None:
    """None, small numbers, or numbers near the ends of a float or an integer type."""
    if g.chance(0.3):
        return None
    small = g.rng.integers(-6, 7, channels)
    if g.tame or g.chance(0.7):
        return small
    edges = g.choice(EDGES) * g.rng.choice([-1, 0, 1], channels).astype(object)
    return np.clip(edges + small.astype(object), -(2**63), 2**63 - 1).astype(np.int64)


def thresholds(g: Graph, acc: Interval, levels: int) -> np.ndarray:
    """Inside and around what can be reached: ties, never, always, next to the ends."""
    rows = 1 if g.chance(0.5) else acc.shape[0]
    lo = acc.lo.reshape(rows, -1).min(axis=1).astype(object)
    hi = acc.hi.reshape(rows, -1).max(axis=1).astype(object)
    table = []
    for low, high in zip(lo.tolist(), hi.tolist()):
        middle = low + (high - low) // 2
        step = max(1, (high - low) // (levels + 1))
        special = [low, low + 1, high, high + 1, middle, middle, middle + 1, NEVER, ALWAYS]
        special += [] if g.tame else [ALWAYS + 1, NEVER - 1, *EDGES]
        row = [low + step * k + int(g.rng.integers(0, 2)) for k in range(1, levels)]
        if g.chance(0.7):
            for k in range(levels - 1):
                if g.chance(0.3):
                    row[k] = g.choice(special)
        if g.chance(0.2):
            row = [g.choice(row)] * (levels - 1)
        table.append(sorted(min(max(t, ALWAYS), NEVER) for t in row))
    return np.array(table, dtype=np.int64)


def code_format(g: Graph) -> IntFormat:
    plain = [fmt for fmt in FORMATS if fmt.step == 1]
    return IntFormat(8, g.chance(0.5)) if g.chance(0.08) else g.choice(plain)


def pad_code(g: Graph) -> int:
    return int(g.rng.integers(-2, 4)) if g.chance(0.6) else 0


# --- makers of one node -------------------------------------------------------------------------

Made = tuple[Op, tuple[str, ...]] | None  # None: there is no value to read
Maker = Callable[[Graph], Made]


def linear(g: Graph) -> Made:
    if (name := g.source(1)) is None:
        return None
    out = int(g.rng.integers(1, 6))
    return Linear(weights(g, (out, g.values[name].shape[0])), bias(g, out)), (name,)


def conv(g: Graph, kind: type[Conv1d] | type[Conv2d]) -> Made:
    if (name := g.source(1 + kind.axes)) is None:
        return None
    channels, *sizes = g.values[name].shape
    groups = g.choice([n for n in range(1, channels + 1) if channels % n == 0])
    out = groups * int(g.rng.integers(1, 3))
    kernel = [int(g.rng.integers(1, 4)) for _ in sizes]
    pads = tuple((int(g.rng.integers(0, 3)), int(g.rng.integers(0, 3))) for _ in sizes)
    op = kind(
        weights(g, (out, channels // groups, *kernel)),
        bias(g, out),
        stride=tuple(int(g.rng.integers(1, 3)) for _ in sizes),
        padding=pads if g.chance(0.5) else 0,
        dilation=tuple(int(g.choice([1, 1, 2])) for _ in sizes),
        groups=groups,
        pad_code=pad_code(g),
    )
    return op, (name,)


def conv_transpose(g: Graph) -> Made:
    if (name := g.source(3)) is None:
        return None
    channels = g.values[name].shape[0]
    groups = g.choice([n for n in range(1, channels + 1) if channels % n == 0])
    kernel = [int(g.rng.integers(1, 4)) for _ in range(2)]
    stride = tuple(int(g.rng.integers(1, 4)) for _ in range(2))
    out = groups * int(g.rng.integers(1, 3))
    op = ConvTranspose2d(
        weights(g, (channels, out // groups, *kernel)),
        bias(g, out),
        stride=stride,
        padding=tuple((int(g.rng.integers(0, 3)), int(g.rng.integers(0, 3))) for _ in range(2)),
        output_padding=tuple(int(g.rng.integers(0, s)) for s in stride),
        dilation=tuple(int(g.choice([1, 1, 2])) for _ in range(2)),
        groups=groups,
    )
    return op, (name,)


def gather(g: Graph) -> Made:
    """Any movement, repeated and dropped values among them; or one of those that have a name."""
    name = g.source()
    shape = g.values[name].shape
    if len(shape) == 3 and g.chance(0.4):
        pads = tuple((int(g.rng.integers(0, 2)), int(g.rng.integers(0, 3))) for _ in range(2))
        made = [
            Gather.nearest(shape, (2, int(g.rng.integers(1, 3)))),
            Gather.pad(shape, pads, pad_code(g)),
            Gather.of(shape, lambda x: x[::-1].transpose(0, 2, 1)),
            Gather.of(shape, lambda x: x[:, ::2, 1:] if shape[2] > 1 else x[:, ::2]),
        ]
        return g.choice(made), (name,)
    if g.chance(0.5):
        out = g.choice([(n,) for n in range(1, 9)] + [(2, 3), (2, 2, 2), (1, 2, 3)])
        index = g.rng.integers(-1 if g.chance(0.4) else 0, prod(shape), out)
    else:
        index = g.rng.permutation(prod(shape)).reshape(shape)
    return Gather(index, shape, pad_code(g)), (name,)


def pool(g: Graph, kind: type[MaxPool2d] | type[SumPool2d]) -> Made:
    """Often one that enlarges the map."""
    if (name := g.source(3)) is None:
        return None
    kernel = tuple(int(g.rng.integers(1, 4)) for _ in range(2))
    stride = 1 if g.chance(0.5) else tuple(int(g.rng.integers(1, 4)) for _ in range(2))
    padding = tuple(tuple(int(g.rng.integers(0, k)) for _ in range(2)) for k in kernel)
    arguments = {"pad_code": pad_code(g)} if kind is SumPool2d else {}
    return kind(kernel, stride, padding, **arguments), (name,)


def global_sum(g: Graph) -> Made:
    name = g.source(g.choice([2, 3]))
    return None if name is None else (GlobalSumPool(), (name,))


def add(g: Graph) -> Made:
    first = g.source()
    same = [name for name, v in g.values.items() if v.shape == g.values[first].shape]
    names = [first, *(g.choice(same) for _ in range(int(g.rng.integers(0, 3))))]
    g.rng.shuffle(names)
    choices = [1, -1, 2, -3] if g.tame or g.chance(0.8) else [1, -(2**31), 2**40, 2**62]
    multipliers = None if g.chance(0.4) else tuple(int(g.choice(choices)) for _ in names)
    return Add(multipliers), tuple(names)


def concat(g: Graph) -> Made:
    first = g.source()
    rest = g.values[first].shape[1:]
    fitting = [name for name, v in g.values.items() if v.shape[1:] == rest]
    names = [first, *(g.choice(fitting) for _ in range(int(g.rng.integers(1, 3))))]
    g.rng.shuffle(names)
    return Concat(), tuple(names)


def requantize(g: Graph) -> Made:
    name = g.source()
    acc, fmt = g.values[name], code_format(g)
    if int(acc.lo.min()) <= ALWAYS or int(acc.hi.max()) >= NEVER:
        return None
    if g.chance(0.3):
        shift = max(0, int((acc.hi - acc.lo).max()).bit_length() - fmt.bits) + int(
            g.rng.integers(-1, 2)
        )
        mode = g.choice(["half_up", "half_even", "floor", "half_away", "ceil"])
        return Requantize.from_shift(min(max(shift, 0), 62), fmt, mode), (name,)
    return Requantize(thresholds(g, acc, fmt.levels), fmt), (name,)


def rescale(g: Graph) -> Made:
    """Shifts near what brings the accumulators into the format, to the left in some channels."""
    name = g.source()
    channels = g.values[name].shape[0]
    fmt = code_format(g) if g.tame or g.chance(0.5) else g.choice(WIDE_FORMATS)

    def each(lo: int, hi: int) -> np.ndarray:
        return g.rng.integers(lo, hi, channels if g.chance(0.5) else 1)

    shift = each(0, g.choice([1, 4, 63]))
    largest = g.choice([2, 9, 2**16] if g.tame else [9, 2**31, 2**62])
    clip = np.sort(g.rng.integers(fmt.q_min, fmt.q_max + 1, (channels, 2)), axis=1)
    op = Rescale(
        *(each(0, largest), shift, fmt, g.choice(list(Rounding))),
        zero_point=each(-3, 4),
        offset=each(-9, 10),
        clip=clip if g.chance(0.3) else None,
        first_rounding=g.choice(list(Rounding)) if g.chance(0.4) else None,
        first_shift=each(0, int(shift.min()) + 1),
    )
    return op, (name,)


def softmax(g: Graph) -> Made:
    """In integers or float32: tables that fall as exponentials do, or as they like."""
    fmt = code_format(g) if g.tame or g.chance(0.7) else IntFormat(16, g.chance(0.5))
    e = np.exp(-np.arange(int(g.rng.integers(1, 12))) * g.choice([0.1, 0.7, 4.0, 30.0]))
    if g.chance(0.3):
        e = g.rng.random(len(e))
    if g.chance(0.5):
        e[0] = g.choice([e[0], 2.0**-15])
        return Softmax(np.rint(e * (2**31 - 1)).astype(np.int64), fmt), (g.source(),)
    return Softmax((e * g.choice([1.0, 1.0, 2.0**-30, 2.0**99])).astype(np.float32), fmt), (
        g.source(),
    )


def lookup(g: Graph) -> Made:
    name = g.source()
    value = g.values[name]
    lo, hi = int(value.lo.min()), int(value.hi.max())
    if hi - lo > 400:
        return None
    lo, hi = lo - int(g.rng.integers(0, 3)), hi + int(g.rng.integers(0, 3))
    fmt = None if g.chance(0.5) else code_format(g)
    ends = (-4, 5) if fmt is None else (fmt.q_min, fmt.q_max + 1)
    table = g.rng.integers(*ends, (1 if g.chance(0.5) else value.shape[0], hi - lo + 1))
    if fmt is None and not g.tame and g.chance(0.1):
        table = table * g.choice([2**22, 2**30, 2**51])
    return Lookup(table, lo, fmt), (name,)


def flatten(g: Graph) -> Made:
    return Flatten(), (g.source(),)


def reshape(g: Graph) -> Made:
    name = g.source()
    size = prod(g.values[name].shape)
    a = g.choice([n for n in range(1, size + 1) if size % n == 0])
    b = g.choice([n for n in range(1, size // a + 1) if (size // a) % n == 0])
    return Reshape(g.choice([(size,), (a, size // a), (a, b, size // a // b)])), (name,)


# name of the kind: (how often, maker)
MAKERS: dict[str, tuple[int, Maker]] = {
    "Linear": (8, linear),
    "Conv1d": (8, lambda g: conv(g, Conv1d)),
    "Conv2d": (6, lambda g: conv(g, Conv2d)),
    "ConvTranspose2d": (3, conv_transpose),
    "Gather": (4, gather),
    "MaxPool2d": (3, lambda g: pool(g, MaxPool2d)),
    "SumPool2d": (2, lambda g: pool(g, SumPool2d)),
    "GlobalSumPool": (3, global_sum),
    "Add": (4, add),
    "Concat": (4, concat),
    "Requantize": (10, requantize),
    "Lookup": (3, lookup),
    "Rescale": (4, rescale),
    "Softmax": (3, softmax),
    "Flatten": (2, flatten),
    "Reshape": (2, reshape),
}


# --- patterns of several nodes ------------------------------------------------------------------


def residual(g: Graph) -> None:
    """fc1(act(fc0)) + fc0: a residual around an activation, sparse or dense."""
    if (name := g.source(1)) is None:
        return
    size = int(g.rng.integers(1, 5))
    before = g.add(Linear(weights(g, (size, g.values[name].shape[0])), bias(g, size)), (name,))
    act = activation(g, before)
    after = g.add(Linear(weights(g, (size, size)), bias(g, size)), (act,))
    g.add(Add(None if g.chance(0.5) else (1, -2)), (after, g.choice([before, before, act])))


def joined_branches(g: Graph) -> None:
    """Some function of a value beside the value itself, and a sparse sum of both."""
    name = g.source(1) or g.add(Flatten(), (g.source(),))
    branch = activation(g, name)
    names = [branch, name]
    g.rng.shuffle(names)
    joined = g.add(Concat(), tuple(names))
    size, columns = int(g.rng.integers(1, 4)), g.values[joined].shape[0]
    weight = g.rng.integers(-1, 2, (size, columns)) * (g.rng.random((size, columns)) < 0.4)
    g.add(Linear(weight, bias(g, size)), (joined,))


def cancelling(g: Graph) -> None:
    """Copies of a neuron that are subtracted again, behind activations."""
    if (name := g.source(1)) is None:
        return
    row = weights(g, (1, g.values[name].shape[0]))
    act = activation(g, g.add(Linear(np.repeat(row, 2, axis=0)), (name,)))
    g.add(Linear([[1, -1], [1, 1]], bias(g, 2)), (act,))


def image_residual(g: Graph) -> None:
    """A convolution that keeps its map, added to it, before or behind an activation."""
    if (name := g.source(3)) is None:
        return
    channels = g.values[name].shape[0]
    conv = Conv2d(weights(g, (channels, channels, 3, 3)), bias(g, channels), padding=1)
    after = g.add(conv, (name,))
    after = activation(g, after) if g.chance(0.5) else after
    g.add(Add(), (after, name))


def enlarged(g: Graph) -> None:
    """Convolution, codes, and a pool that makes the map larger than the convolution's."""
    if (name := g.source(3)) is None:
        return
    channels = g.values[name].shape[0]
    acc = g.add(Conv2d(weights(g, (2, channels, 1, 1)), bias(g, 2)), (name,))
    g.add(MaxPool2d(2, 1, 1), (activation(g, acc),))


def activation(g: Graph, name: str) -> str:
    """Codes of a value, or the value where it leaves 64 bits."""
    acc, fmt = g.values[name], code_format(g)
    if int(acc.lo.min()) <= ALWAYS or int(acc.hi.max()) >= NEVER:
        return name
    return g.add(Requantize(thresholds(g, acc, fmt.levels), fmt), (name,))


PATTERNS = [residual, joined_branches, cancelling, image_residual, enlarged]


@dataclass(frozen=True, eq=False)
class Twice(SumOp):
    """A node kind of a user's own: it says what it computes, and no more."""

    kind: ClassVar[str] = "Twice"

    def out_shape(self, *shapes: Any) -> Any:
        return shapes[0]

    def out_range(self, *ranges: Interval) -> Interval:
        return Interval(ranges[0].lo.astype(object) * 2, ranges[0].hi.astype(object) * 2)

    def absolute_mass(self, *ranges: Interval) -> Any:
        return ranges[0].magnitude.astype(object) * 2

    def forward(self, *x: Any, plan: Any = None) -> Any:
        doubled = x[0].astype(object) * 2
        return doubled if np.max(np.abs(doubled), initial=0) >= 2**63 else doubled.astype(np.int64)

    def terms(self, *x: Any) -> Any:
        return np.stack([x[0], x[0]], axis=-1)


# --- whole networks -----------------------------------------------------------------------------


def network_of(
    rng: np.random.Generator, *, points: int | None = 2**11, tame: bool = False, own: bool = False
) -> Network:
    """A network of two to nine nodes.

    Args:
        points: at most so many inputs; None: as many as there are.
        tame: no large numbers.
        own: some nodes are of a kind of a user's own.
    """
    wide = points is None and not tame and rng.random() < 0.3
    fmt = (WIDE_FORMATS if wide else FORMATS)[rng.integers(len(WIDE_FORMATS if wide else FORMATS))]
    most = 12 if points is None else int(np.log(points) / np.log(fmt.levels) + 1e-9)
    shapes = [(n,) for n in range(1, 13)]
    shapes += [(a, b) for a in range(1, 4) for b in range(2, 7)] * 2
    shapes += [(a, b, c) for a in range(1, 4) for b in range(1, 5) for c in range(1, 5)] * 2
    fitting = [shape for shape in shapes if prod(shape) <= most]
    g = Graph(rng, fmt, fitting[rng.integers(len(fitting))], tame)
    kinds = [kind for kind, (often, _) in MAKERS.items() for _ in range(often)]
    target = int(rng.integers(2, 10))
    for _ in range(40):
        if len(g.nodes) >= target:
            break
        kept = len(g.nodes)
        try:
            if g.chance(0.25):
                g.choice(PATTERNS)(g)
            elif own and g.chance(0.2):
                g.add(Twice(), (g.source(),))
            elif (made := MAKERS[g.choice(kinds)][1](g)) is not None:
                g.add(*made)
        except RefqnnError:
            del g.nodes[kept:]
            g.values = dict([*g.values.items()][: kept + 1])
    if not g.nodes:
        g.add(Flatten(), (INPUT,))
    output = g.choice(g.nodes).name if g.chance(0.2) else None
    return Network(g.nodes, input_shape=g.input_shape, input_format=fmt, output=output)


def rebuilt(network: Network, **changes: Any) -> Network:
    """The same network without anything that it has prepared."""
    arguments = {
        "nodes": network.nodes,
        "input_shape": network.input_shape,
        "input_format": network.input_format,
        "output": network.output,
    }
    return Network(**{**arguments, **changes})


def codes_of(network: Network, rng: np.random.Generator, n: int) -> np.ndarray:
    """n inputs: random codes, random ends, and the lowest and highest of all."""
    fmt = network.input_format
    shape = (n, *network.input_shape)
    steps = rng.integers(0, fmt.levels, shape)
    ends = rng.integers(0, 2, shape) * (fmt.levels - 1)
    steps = np.where(rng.random(shape[:1] + (1,) * (len(shape) - 1)) < 0.5, steps, ends)
    codes = fmt.q_min + fmt.step * steps
    codes[0], codes[-1] = fmt.q_min, fmt.q_max
    return codes


def every_input(network: Network) -> np.ndarray:
    """All inputs, [n, *input_shape]."""
    fmt, size = network.input_format, prod(network.input_shape)
    digits = np.arange(fmt.levels**size)[:, None] // fmt.levels ** np.arange(size) % fmt.levels
    return (fmt.q_min + fmt.step * digits).reshape(-1, *network.input_shape)
