"""From a Network to the steps of a circuit.

Every value v of the network is carried as an encrypted t with known zero and gain,

    v = zero + gain * t,        zero [*shape], gain [channels or 1]

An affine node A with linear part L needs L alone in the circuit: A(v) = L(gain * t) + A(zero).
The constants meet the sum only where it enters a table or leaves the circuit; there the proved
range [lo, hi] of v makes t + (zero - lo) / gain the narrowest unsigned integer there is.

A neuron that depends on one input alone is a sum of that input's levels (refqnn.fhe.levels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.arguments import the_network
from refqnn.accumulator.certificate import Certificate, check_usable
from refqnn.errors import (
    CertificateError,
    CircuitError,
    InvalidArgument,
    InvalidType,
    NotCovered,
    mismatch,
)
from refqnn.fhe import prices, program, tables
from refqnn.fhe.doors import Encoding
from refqnn.fhe.levels import sums_of_levels
from refqnn.fhe.outputs import shared_out
from refqnn.fhe.program import INPUT, Program, Step
from refqnn.formats import as_truth, is_integer
from refqnn.graph import INPUT as NETWORK_INPUT
from refqnn.graph import Node, ancestors, consumers, inputs_of
from refqnn.network import Network
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
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import Requantize
from refqnn.ops.structure import PADDING, Role

__all__ = ["Layer", "Lowered", "lower", "lowerings", "proved_ranges"]

IntVector = NDArray[np.int64]
Padding = tuple[tuple[int, int], ...]
Choose = Callable[[str, list[tables.Lowering]], tables.Lowering]

_ONE = np.array([1])


@dataclass(frozen=True)
class Layer:
    """What one layer of lookups costs.

    Attributes:
        name: the node whose values are looked up.
        neurons: how many values enter the tables.
        span_bits: width of the proved range of the values.
        bits, shift: width that enters the circuit's lookups, low bits removed before the table.
        method: "drop", "split", "carry", "window" or "max".
        lookups: number of lookups by width.
        removed_bits: low bits removed, over all values.
        price: predicted cost in the units of refqnn.fhe.prices.
    """

    name: str
    neurons: int
    span_bits: int
    bits: int
    shift: int
    method: str
    lookups: dict[int, int]
    removed_bits: int
    price: float


@dataclass(frozen=True, eq=False)
class Lowered(Encoding):
    """A program and how its integers stand for the network's.

    Attributes:
        layers: what each layer of lookups costs.
        without_lookup: by node, how many values are sums of levels.
        output_parts: how many of its integers add up to one output.
    """

    program: Program
    layers: list[Layer]
    without_lookup: dict[str, int]
    output_parts: int

    @property
    def output_bits(self) -> int:
        """Width of the circuit's result."""
        return max(1, int(self.output_top.max()).bit_length())

    @property
    def events(self) -> int:
        """Lookups and decrypted integers: each can fail, nothing else can.

        And one more, for the rounding of answers (refqnn.fhe.messages).
        """
        lookups = sum(sum(layer.lookups.values()) for layer in self.layers)
        return lookups + self.output_parts * self.output_low.size + 1


@dataclass(frozen=True, eq=False)
class _Value:
    """v = zero + gain * t, t the result of `step`.  `top`: t in [0, top], when that is proved.

    `of_levels`: t is the input's levels times this, when it is.
    """

    step: str
    zero: IntVector  # [*shape]
    gain: IntVector  # [channels or 1, 1, ...]
    top: int | None = None
    of_levels: IntVector | None = None  # [levels sent, size]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some channels behind their tables: codes = low + t, t the result of `step`, in [0, top]."""

    index: IntVector
    step: str
    top: int
    low: IntVector


def proved_ranges(network: Network, certificate: Certificate | None = None) -> dict[str, Interval]:
    """Intervals of every value, from the nodes' own rules and the tighter ones of a certificate.

    Raises: as refqnn.accumulator.certificate.check_usable; CertificateError for a certificate of a
        part of the inputs.
    """
    box = Interval.of_format(the_network(network).input_format, network.input_shape)
    tighter: Mapping[str, Interval] = {}
    if certificate is not None:
        tighter = check_usable(certificate, network).ranges
        domain = certificate.domain
        whole = (domain.hull.lo == box.lo).all() and (domain.hull.hi == box.hi).all()
        if domain.listed is not None or not whole:
            expected = "the whole input format, since an encrypted input cannot be checked"
            got = "one of a part of the inputs"
            raise CertificateError(mismatch("certificate", got, expected))
    ranges = {NETWORK_INPUT: box}
    for node in network.nodes:
        interval = node.op.out_range(*(ranges[name] for name in inputs_of(node)))
        if node.name in tighter:
            proved = tighter[node.name]
            lo, hi = np.maximum(interval.lo, proved.lo), np.minimum(interval.hi, proved.hi)
            interval = Interval(lo, hi)
        ranges[node.name] = interval
    return ranges


def lower(
    network: Network,
    ranges: dict[str, Interval],
    choose: Choose | None = None,
    output_parts: int = 1,
    input_levels: bool = True,
    output_digits: int = 1,
) -> Lowered:
    """The program of a network.

    Args:
        ranges: proved intervals of every value, as `proved_ranges` gives them.
        output_parts: over how many sums the inputs of a last Linear node are shared out; the client
            adds what it decrypts.  A wide output asks the tables before it for less noise, and a
            part of it is narrower.  Other last nodes have one part.
        output_digits: over how many more sums the digits of each weight are.
        input_levels: neurons that depend on one input are sums of its levels, not lookups, unless
            more than 4096 levels would have to be sent.
        choose: picks one of a layer's alternatives (cheapest first) for all its neurons.  By
            default neurons are grouped, each group with the cheapest of its own.

    Raises: NotCovered, CircuitError for a range that no table can hold; InvalidType,
        InvalidArgument.
    """
    for name, sums in (("output_parts", output_parts), ("output_digits", output_digits)):
        if not is_integer(sums) or sums < 1:
            raise InvalidArgument(mismatch(name, repr(sums), "an integer >= 1"))
    return lowerings(network, ranges, choose, input_levels)(output_parts, output_digits)


def lowerings(
    network: Network,
    ranges: dict[str, Interval],
    choose: Choose | None = None,
    input_levels: bool = True,
) -> Callable[[int, int], Lowered]:
    """As `lower`, a function of `output_parts` and `output_digits`; lookups are lowered once."""
    values = {NETWORK_INPUT, *the_network(network).shapes}
    if not isinstance(ranges, Mapping) or {*ranges} != values:
        raise InvalidType(mismatch("ranges", type(ranges).__name__, "what proved_ranges gives"))
    if not (choose is None or callable(choose)):
        raise InvalidType(mismatch("choose", repr(choose), "a function, or None"))
    lowering = _Lowering(network, ranges, choose, as_truth(input_levels, "input_levels"))
    lowering.begin()
    return lowering.end


@dataclass(eq=False)
class _Lowering:
    network: Network
    ranges: dict[str, Interval]
    choose: Choose | None
    input_levels: bool
    steps: list[Step] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    values: dict[str, _Value] = field(default_factory=dict)

    def begin(self) -> None:
        """All but a last Linear node."""
        network = self.network
        self.nodes = ancestors(network.nodes, network.output)
        for node in self.nodes:
            if type(node.op) not in _FORMS:
                raise NotCovered(f"node {node.name!r}: {node.op.kind} has no encrypted form here")
        self.users = consumers(self.nodes)
        lookups = (node.name for node in self.nodes if self._needs_table(node))
        self.alone = sums_of_levels(network, lookups if self.input_levels else ())
        self.argument = self._input()
        for node in self.nodes:
            if not (self._fused_into_next(node) or _inputs_of_linear(node, network.output)):
                self.values[node.name] = self._node(node)

    def end(self, output_parts: int = 1, output_digits: int = 1) -> Lowered:
        network, begun = self.network, len(self.steps)
        input_low, input_step, input_top, argument_shape = self.argument
        last = network[network.output]
        inputs = _inputs_of_linear(last, last.name)
        parts, digits = (min(output_parts, inputs), output_digits) if inputs > 1 else (1, 1)
        whole = parts * digits == 1
        if inputs and whole:
            self.values[last.name] = self._node(last)
        low, step, top = self._output() if whole else self._output_in_parts(last, parts, digits)
        steps, self.steps = self.steps, self.steps[:begun]
        return Lowered(
            *(network.input_format, input_low, input_step, self.alone.inputs, low, step, top),
            program=Program(_live(steps), argument_shape, input_top),
            layers=self.layers,
            without_lookup=self.alone.sizes,
            output_parts=parts * digits,
        )

    # --- doors ------------------------------------------------------------------------------

    def _input(self) -> tuple[int, int, int, Shape]:
        """(low, step, top, shape) of the circuit's argument."""
        fmt, shape = self.network.input_format, self.network.input_shape
        absorbed = all(_FORMS[type(user.op)] in _ABSORB for user in self.users[NETWORK_INPUT])
        step = fmt.step if absorbed else 1
        top = (fmt.q_max - fmt.q_min) // step
        codes, argument_shape = INPUT, shape
        if len(self.alone.inputs):
            size = prod(shape)
            argument_shape = (size + len(self.alone.inputs) * (fmt.levels - 1),)
            flat = self._emit(program.Select, "codes", INPUT, top, index=(slice(0, size),))
            codes = self._emit(program.Relabel, "input", flat, top, shape=shape)
            bits = (slice(size, None),)
            self.levels = self._emit(program.Select, "levels", INPUT, 1, index=bits)
        zero = np.full(shape, fmt.q_min, dtype=np.int64)
        self.values[NETWORK_INPUT] = _Value(codes, zero, np.array([step]), top)
        return fmt.q_min, step, top, argument_shape

    def _output(self) -> tuple[IntVector, IntVector, IntVector]:
        """Bring the output to [0, top]; returns (low, step, top)."""
        name = self.network.output
        value, interval = self.values[name], self.ranges[name]
        gain = np.broadcast_to(_channelwise(value.gain, interval.shape), interval.shape)
        lo = _first_multiple(interval.lo, value.zero, gain)  # [*shape]
        top = np.maximum((interval.hi - lo) // gain, 0)  # [*shape]
        offset = (value.zero - lo) // gain
        if value.top is None or value.step == INPUT or offset.any():
            self._emit(program.Offset, f"{name} out", value.step, int(top.max()), constant=offset)
        return lo, gain, top

    def _output_in_parts(
        self, node: Node, parts: int, digits: int
    ) -> tuple[IntVector, IntVector, IntVector]:
        """Each sums one digit of the weights of some inputs; (low, step, top)."""
        op: Any = node.op
        (source,) = inputs_of(node)
        x, interval = self.values[source], self.ranges[source]
        place, weights = shared_out(op.weight, parts, digits)
        stacked = weights.reshape(-1, op.weight.shape[1])  # [digits * parts * out, in]
        sums = Linear(stacked).out_range(interval)
        offset = stacked @ x.zero - sums.lo
        top = sums.hi - sums.lo  # [digits * parts * out]
        weight = (stacked * x.gain.item()).T
        step = self._emit(program.MatMul, node.name, x.step, 1, weight=weight)
        self._emit(program.Offset, f"{node.name} out", step, int(top.max()), constant=offset)
        place = place[:, None]
        low = (place * sums.lo.reshape(digits * parts, -1)).sum(axis=0)
        if op.bias is not None:
            low = low + op.bias
        return low, place if digits > 1 else _ONE, top

    # --- nodes ------------------------------------------------------------------------------

    def _needs_table(self, node: Node) -> bool:
        return _is_elementwise(node) and not self._fused_into_next(node)

    def _fused_into_next(self, node: Node) -> bool:
        """Is this lookup read by one other lookup alone?  Then one table computes both."""
        users = self.users[node.name]
        return (
            _is_elementwise(node)
            and node.name != self.network.output
            and len(users) == 1
            and _is_elementwise(users[0])
        )

    def _node(self, node: Node) -> _Value:
        return _FORMS[type(node.op)](self, node, node.op)

    def _inputs(self, node: Node) -> list[_Value]:
        return [self.values[name] for name in inputs_of(node)]

    def _zero(self, node: Node) -> IntVector:
        """What the node makes of its inputs' zeros."""
        zero = np.asarray(node.op.forward(*(x.zero[None] for x in self._inputs(node)))[0])
        if zero.dtype == object:
            raise CircuitError(f"node {node.name!r}: its sums leave 64 bits; no circuit holds them")
        return zero

    def _linear(self, node: Node, op: Linear) -> _Value:
        (x,), (weight, zero, gain) = self._inputs(node), self._weighted(node, op)
        source, matrix = x.step, weight.T
        if x.of_levels is not None:
            source, matrix = self.levels, x.of_levels @ weight.T
        step = self._emit(program.MatMul, node.name, source, 1, weight=matrix)
        return _Value(step, zero, gain)

    def _conv2d(self, node: Node, op: Conv2d) -> _Value:
        (x,), (weight, zero, gain) = self._inputs(node), self._weighted(node, op)
        geometry = {"stride": op.stride, "dilation": op.dilation, "groups": op.groups}
        step = self._conv(node.name, x.step, weight, op.padding, **geometry)
        return _Value(step, zero, gain)

    def _conv1d(self, node: Node, op: Conv1d) -> _Value:
        """A convolution of height 1."""
        (x,), (weight, zero, gain) = self._inputs(node), self._weighted(node, op)
        high = (x.zero.shape[0], 1, x.zero.shape[1])
        source = self._emit(program.Relabel, f"{node.name} in", x.step, x.top or 1, shape=high)
        sums = self._conv(
            f"{node.name} 2d",
            source,
            weight[:, :, None, :],
            ((0, 0), op.padding[0]),
            stride=(1, *op.stride),
            dilation=(1, *op.dilation),
            groups=op.groups,
        )
        step = self._emit(program.Relabel, node.name, sums, 1, shape=zero.shape)
        return _Value(step, zero, gain)

    def _sum_pool(self, node: Node, op: SumPool2d) -> _Value:
        (x,), zero = self._inputs(node), self._zero(node)
        ones = np.ones((zero.shape[0], 1, *op.kernel), dtype=np.int64)
        geometry = {"stride": op.stride, "dilation": (1, 1), "groups": zero.shape[0]}
        step = self._conv(node.name, x.step, ones, op.padding, **geometry)
        return _Value(step, zero, _ONE)

    def _global_sum(self, node: Node, op: GlobalSumPool) -> _Value:
        (x,), zero = self._inputs(node), self._zero(node)
        flat_shape = (x.zero.shape[0], prod(x.zero.shape[1:]))
        name, top = node.name, x.top or 1
        flat = self._emit(program.Relabel, f"{name} in", x.step, top, shape=flat_shape)
        ones = np.ones((flat_shape[1], 1), dtype=np.int64)
        sums = self._emit(program.MatMul, f"{name} sum", flat, 1, weight=ones)
        step = self._emit(program.Relabel, name, sums, 1, shape=zero.shape)
        return _Value(step, zero, _ONE)

    def _add(self, node: Node, op: Add) -> _Value:
        inputs = self._inputs(node)
        multipliers = (1,) * len(inputs) if op.multipliers is None else op.multipliers
        sources = tuple(x.step for x in inputs)
        step = self._emit(program.Sum, node.name, sources, 1, multipliers=multipliers)
        return _Value(step, self._zero(node), _ONE)

    def _concat(self, node: Node, op: Concat) -> _Value:
        sources = tuple(x.step for x in self._inputs(node))
        step = self._emit(program.Join, node.name, sources, 1)
        return _Value(step, self._zero(node), _ONE)

    def _relabel(self, node: Node, op: Flatten | Reshape) -> _Value:
        (x,), zero = self._inputs(node), self._zero(node)
        step = self._emit(program.Relabel, node.name, x.step, x.top or 1, shape=zero.shape)
        return _Value(step, zero, _ONE, x.top, x.of_levels)

    def _gather(self, node: Node, op: Gather) -> _Value:
        """Positions outside take nothing: what stands there is the zero alone."""
        (x,), zero, name = self._inputs(node), self._zero(node), node.name
        index, top = op.index.reshape(-1), x.top or 1
        flat = self._emit(program.Relabel, f"{name} in", x.step, top, shape=(x.zero.size,))
        if (index == PADDING).any():
            taken = self._emit(program.MatMul, f"{name} flat", flat, top, weight=_places(x, index))
        else:
            taken = self._emit(program.Gather, f"{name} flat", flat, top, index=index)
        step = self._emit(program.Relabel, name, taken, top, shape=zero.shape)
        levels = None
        if x.of_levels is not None:
            levels = np.where(index == PADDING, 0, x.of_levels[..., index])
        return _Value(step, zero, _ONE, x.top, levels)

    def _conv_transpose(self, node: Node, op: ConvTranspose2d) -> _Value:
        """The product with the matrix of its rows."""
        (x,), zero, name = self._inputs(node), self._zero(node), node.name
        matrix = op.rows([x.zero.shape], np.arange(zero.size)).dense(x.zero.size)
        flat = self._emit(program.Relabel, f"{name} in", x.step, x.top or 1, shape=(x.zero.size,))
        sums = self._emit(program.MatMul, f"{name} flat", flat, 1, weight=matrix.T)
        return _Value(self._emit(program.Relabel, name, sums, 1, shape=zero.shape), zero, _ONE)

    def _weighted(
        self, node: Node, op: Linear | Conv1d | Conv2d
    ) -> tuple[IntVector, IntVector, IntVector]:
        """(weight, zero, gain): weights absorb the input's gain and give up a common divisor."""
        (x,), zero = self._inputs(node), self._zero(node)
        weight = op.weight * int(x.gain.item())  # only the network's input carries a gain here
        gain = self._row_gain(node, weight, zero)
        return weight // gain.reshape(-1, *(1,) * (weight.ndim - 1)), zero, gain

    def _conv(
        self, name: str, source: str, weight: IntVector, padding: Padding, **geometry: Any
    ) -> str:
        if any(before or after for before, after in padding):
            source = self._emit(program.Pad, f"{name} pad", source, 1, padding=padding)
        return self._emit(program.Conv, name, source, 1, weight=weight, **geometry)

    def _row_gain(self, node: Node, weight: IntVector, zero: IntVector) -> IntVector:
        """A common divisor of each weight row where every reader can take a gain, else 1.

        The zeros of a channel must agree modulo its gain (they do without padding codes).  The
        greatest divisor makes the narrowest accumulator; its power-of-two part keeps thresholds on
        a power-of-two grid.  The cheaper table decides.
        """
        readers_can = all(_is_elementwise(user) for user in self.users[node.name])
        if not readers_can:
            return _ONE
        gcd = np.gcd.reduce(weight.reshape(len(weight), -1), axis=1)
        gcd = np.maximum(gcd, 1)
        by_channel = zero.reshape(len(zero), -1)
        agree = ((by_channel - by_channel[:, :1]) % gcd[:, None] == 0).all(axis=1)
        greatest = np.where(agree, gcd, 1)
        binary = greatest & -greatest
        users = self.users[node.name]
        if len(users) != 1 or (greatest == binary).all():
            return greatest
        prices = [
            self._row_prices(users[0], _Value("", zero, gain), self.ranges[node.name])
            for gain in (greatest, binary)
        ]
        return np.where(prices[0] <= prices[1], greatest, binary)

    def _row_prices(self, reader: Node, x: _Value, interval: Interval) -> NDArray[np.float64]:
        """The price of the cheapest table of each row by itself, [channels]."""
        try:
            _, _, rows = _rows(reader.name, [reader], x, interval)
        except CircuitError:  # too wide
            return np.full(len(x.zero), np.inf)
        return np.array([tables.price_of_row(row) for row in rows.values])

    # --- lookups ----------------------------------------------------------------------------

    def _lookup(self, node: Node, op: Op) -> _Value:
        """A table of this node and of the lookups fused into it."""
        chain = [node]
        while True:
            (source,) = inputs_of(chain[0])
            if source == NETWORK_INPUT or not self._fused_into_next(self.network[source]):
                break
            chain.insert(0, self.network[source])
        x, interval = self.values[source], self.ranges[source]
        by_levels = self.alone.channels.get(node.name, np.zeros(len(x.zero), dtype=bool))
        if by_levels.all():
            return self._value_of_levels(node.name)
        # What is a sum of levels has no span here, however wide it is.
        hi = np.where(_channelwise(by_levels, interval.shape), interval.lo, interval.hi)
        lo, gain, rows = _rows(node.name, chain, x, Interval(interval.lo, hi))
        constant = len(rows.values[0]) > 0 and all(len(p) == 0 for p in rows.change_points)
        if constant and not by_levels.any():
            return self._constant(node, x, rows)
        offset = (x.zero - _channelwise(lo, x.zero.shape)) // _channelwise(gain, x.zero.shape)
        pieces = [
            self._piece(node.name, x.step, offset, index, chosen)
            for index, chosen in self._partition(node.name, rows, np.flatnonzero(~by_levels))
        ]
        if by_levels.any():
            pieces.append(self._piece_of_levels(node.name))
        step, top, low = self._joined(node.name, pieces)
        zero = np.broadcast_to(_channelwise(low, x.zero.shape), x.zero.shape).copy()
        return _Value(step, zero, _ONE, top)

    def _partition(
        self, name: str, rows: tables.Rows, looked_up: IntVector
    ) -> list[tuple[IntVector, tables.Lowering]]:
        """(channels, lowering) of each part of a layer; one part where a choice was given."""
        rows = _part_of(rows, looked_up)
        if self.choose is None:
            parts = tables.grouped(rows)
        else:
            found = tables.alternatives(rows)
            everything = np.arange(len(rows.values))
            parts = [(everything, self.choose(name, found))] if found else []
            if not all(isinstance(chosen, tables.Lowering) for _, chosen in parts):
                raise InvalidType(mismatch("choose", "something else", "one of what it was given"))
        if not parts:
            raise _too_wide(name, max(rows.spans))
        for index, chosen in parts:
            self._record(name, _part_of(rows, index), chosen)
        return [(looked_up[index], chosen) for index, chosen in parts]

    def _piece(
        self, name: str, source: str, offset: IntVector, index: IntVector, chosen: tables.Lowering
    ) -> _Piece:
        """The lookups of some channels."""
        if len(index) < len(offset):
            name = f"{name} from {index[0]}"
            source = self._emit(program.Gather, f"{name} in", source, 1, index=index)
        return _Piece(index, *self._looked_up(name, source, offset[index], chosen))

    def _value_of_levels(self, name: str) -> _Value:
        """A layer that depends on one input in every channel."""
        values, weight = self.alone(name)
        flat = self._emit(program.MatMul, f"{name} levels", self.levels, 1, weight=weight)
        step = self._emit(program.Relabel, name, flat, 1, shape=values.shape[1:])
        return _Value(step, values[0], _ONE, None, weight)

    def _piece_of_levels(self, name: str) -> _Piece:
        """The channels that depend on one input each, beside others that are looked up."""
        values, weight = self.alone(name)
        shape = values.shape[1:]
        low = values.reshape(*values.shape[:2], -1).min(axis=(0, 2))  # [channels]
        top = int((values - _channelwise(low, shape)).max())
        flat = self._emit(program.MatMul, f"{name} levels", self.levels, top, weight=weight)
        step = self._emit(program.Relabel, f"{name} alone", flat, top, shape=shape)
        least = values[0] - _channelwise(low, shape)
        if least.any():
            step = self._emit(program.Offset, f"{name} least", step, top, constant=least)
        return _Piece(np.flatnonzero(self.alone.channels[name]), step, top, low)

    def _joined(self, name: str, pieces: list[_Piece]) -> tuple[str, int, IntVector]:
        """Pieces side by side, their channels in order."""
        if len(pieces) == 1:
            return pieces[0].step, pieces[0].top, pieces[0].low
        top = max(piece.top for piece in pieces)
        order = np.argsort(np.concatenate([piece.index for piece in pieces]))
        steps = tuple(piece.step for piece in pieces)
        joined = self._emit(program.Join, f"{name} joined", steps, top)
        step = self._emit(program.Gather, name, joined, top, index=order)
        return step, top, np.concatenate([piece.low for piece in pieces])[order]

    def _constant(self, node: Node, x: _Value, rows: tables.Rows) -> _Value:
        """A layer whose codes never change: zero times its input."""
        first = np.array([row[0] for row in rows.values])
        zero = np.broadcast_to(_channelwise(first, x.zero.shape), x.zero.shape).copy()
        none = np.zeros(x.zero.shape, dtype=np.int64)
        step = self._emit(program.Scale, node.name, x.step, 1, constant=none)
        return _Value(step, zero, _ONE, 1)

    # Each of these: steps from u = t + offset to f[u] - low; returns (step, top, low).

    def _looked_up(
        self, name: str, source: str, offset: IntVector, chosen: tables.Lowering
    ) -> tuple[str, int, IntVector]:
        if isinstance(chosen, tables.Drop):
            return self._drop(name, source, offset, chosen)
        if isinstance(chosen, tables.Split):
            return self._split(name, source, offset, chosen)
        if isinstance(chosen, tables.Window):
            return self._window(name, source, offset, chosen)
        return self._carry(name, source, offset, chosen)

    def _drop(
        self, name: str, source: str, offset: IntVector, drop: tables.Drop
    ) -> tuple[str, int, IntVector]:
        stretch = _channelwise(drop.stretch, offset.shape)
        if (drop.stretch != 1).any():
            factor = np.broadcast_to(stretch, offset.shape).copy()
            source = self._emit(program.Scale, f"{name} stretch", source, 1, constant=factor)
        constant = offset * stretch + _channelwise(drop.offset, offset.shape)
        whole = self._shifted(name, source, constant, drop.bits)
        high = self._truncated(name, whole, drop.bits, drop.shift)
        low = drop.tables.min(axis=1)
        step, top = self._table(name, high, drop.tables - low[:, None], drop.shift)
        return step, top, low

    def _split(
        self, name: str, source: str, offset: IntVector, split: tables.Split
    ) -> tuple[str, int, IntVector]:
        parts = [
            self._drop(f"{name} part {i}", source, offset, part)
            for i, part in enumerate(split.parts)
        ]
        steps, tops, lows = zip(*parts)
        step = self._emit(program.Sum, name, steps, sum(tops), multipliers=(1,) * len(steps))
        return step, sum(tops), np.sum(lows, axis=0)

    def _carry(
        self, name: str, source: str, offset: IntVector, carry: tables.Carry
    ) -> tuple[str, int, IntVector]:
        shift, size = carry.shift, 1 << carry.shift
        constant = offset + _channelwise(carry.offset, offset.shape)
        whole = self._shifted(name, source, constant, carry.bits)
        high = self._truncated(name, whole, carry.bits, shift)
        low = self._emit(program.Sum, f"{name} low", (whole, high), size - 1, multipliers=(1, -1))
        moved, _ = self._table(f"{name} shift", high, carry.shift_of, shift)
        total = self._emit(
            program.Sum, f"{name} low + shift", (low, moved), 2 * size - 1, multipliers=(1, 1)
        )
        carried, carry_top = self._table(f"{name} carry", total, carry.carry, 0)
        least = carry.base.min(axis=1)
        based, base_top = self._table(f"{name} base", high, carry.base - least[:, None], shift)
        top = base_top + carry_top
        step = self._emit(program.Sum, name, (based, carried), top, multipliers=(1, 1))
        return step, top, least

    def _window(
        self, name: str, source: str, offset: IntVector, window: tables.Window
    ) -> tuple[str, int, IntVector]:
        middle = 1 << (window.size - window.shift)
        constant = offset + _channelwise(window.offset, offset.shape)
        whole = self._shifted(name, source, constant, window.bits)
        high = self._truncated(name, whole, window.bits, window.size)
        mid = self._emit(
            program.Bits, f"{name} mid", (whole,), middle - 1, start=window.shift, stop=window.size
        )
        mark, _ = self._table(f"{name} mark", high, window.marked, window.size)
        total = self._emit(
            program.Sum, f"{name} mid + mark", (mid, mark), 2 * middle - 1, multipliers=(1, 1)
        )
        # Codes of either sign: each table is raised by its own least value.
        least_in, least_out = window.inside.min(axis=1), window.outside.min(axis=1)
        inner, inner_top = self._table(
            f"{name} inside", total, window.inside - least_in[:, None], 0
        )
        outer, outer_top = self._table(
            f"{name} outside", high, window.outside - least_out[:, None], window.size
        )
        top = inner_top + outer_top
        step = self._emit(program.Sum, name, (inner, outer), top, multipliers=(1, 1))
        return step, top, least_in + least_out

    def _table(self, name: str, source: str, rows: IntVector, shift: int) -> tuple[str, int]:
        top = max(1, int(rows.max()))
        merged = rows[:1] if (rows == rows[0]).all() else rows
        return self._emit(program.Table, name, source, top, tables=merged, shift=shift), top

    def _shifted(self, name: str, source: str, constant: IntVector, bits: int) -> str:
        top = (1 << bits) - 1
        return self._emit(program.Offset, f"{name} acc", source, top, constant=constant)

    def _truncated(self, name: str, source: str, bits: int, shift: int) -> str:
        if not shift:
            return source
        top = (1 << bits) - 1
        return self._emit(program.Truncate, f"{name} high", source, top, shift=shift)

    # --- maxima -----------------------------------------------------------------------------

    def _max_pool(self, node: Node, op: MaxPool2d) -> _Value:
        """max(a, b) = a + relu(b - a), pairwise; one-bit values by one table of their sum."""
        name = node.name
        (source,) = inputs_of(node)
        x, interval = self.values[source], self.ranges[source]
        lo = interval.lo.reshape(len(interval.lo), -1).min(axis=1)  # [channels]
        hi = interval.hi.reshape(len(interval.hi), -1).max(axis=1)
        top = int((hi - lo).max())
        offset = x.zero - _channelwise(lo, x.zero.shape)
        start = x.step
        if offset.any():
            start = self._emit(program.Offset, f"{name} in", start, top, constant=offset)
        if any(before or after for before, after in op.padding):
            # Zero is the least t there is: it wins no maximum.
            start = self._emit(program.Pad, f"{name} pad", start, top, padding=op.padding)
        out_shape = op.out_shape(x.zero.shape)
        parts = [
            self._emit(program.Select, f"{name} {u},{v}", start, top, index=index)
            for u, v, index in _windows(op, out_shape)
        ]
        zero = np.broadcast_to(_channelwise(lo, out_shape), out_shape).copy()
        if len(parts) == 1:
            return _Value(parts[0], zero, _ONE, top)
        count = prod(out_shape)
        width = len(parts).bit_length() if top <= 1 else (2 * top).bit_length()
        if width > tables.MAX_BITS:
            raise _too_wide(name, 2 * top)
        found = {width: count if top <= 1 else count * (len(parts) - 1)}
        step = self._any(name, parts) if top <= 1 else self._greatest(name, parts, top)
        price = sum(prices.drop(b, 0) * n for b, n in found.items())
        self.layers.append(Layer(name, count, top.bit_length(), width, 0, "max", found, 0, price))
        return _Value(step, zero, _ONE, top)

    def _any(self, name: str, parts: list[str]) -> str:
        """1 where any of the parts is 1."""
        n = len(parts)
        ones = (1,) * n
        total = self._emit(program.Sum, f"{name} sum", tuple(parts), n, multipliers=ones)
        table = (np.arange(1 << n.bit_length()) > 0).astype(np.int64)
        return self._emit(program.Table, name, total, 1, tables=table[None], shift=0)

    def _greatest(self, name: str, parts: list[str], top: int) -> str:
        relu = np.maximum(np.arange(1 << (2 * top).bit_length()) - top, 0)
        relu = np.minimum(relu, top)
        level = 0
        while len(parts) > 1:
            paired = []
            for i in range(0, len(parts) - 1, 2):
                tag = f"{name} max {level},{i}"
                a, b = parts[i], parts[i + 1]
                difference = self._emit(
                    program.Sum, f"{tag} difference", (b, a), 1, multipliers=(1, -1)
                )
                moved = self._emit(
                    program.Offset, f"{tag} acc", difference, 2 * top, constant=np.array([top])
                )
                more = self._emit(
                    program.Table, f"{tag} relu", moved, top, tables=relu[None], shift=0
                )
                paired.append(self._emit(program.Sum, tag, (a, more), top, multipliers=(1, 1)))
            if len(parts) % 2:
                paired.append(parts[-1])
            parts, level = paired, level + 1
        return parts[0]

    # --- book-keeping -----------------------------------------------------------------------

    def _emit(
        self,
        kind: Callable[..., Step],
        name: str,
        source: str | tuple[str, ...],
        top: int,
        **more: Any,
    ) -> str:
        tag = f"{len(self.steps)} {name}"
        sources = source if isinstance(source, tuple) else (source,)
        self.steps.append(kind(name=tag, sources=sources, top=top, **more))
        return tag

    def _record(self, name: str, rows: tables.Rows, chosen: tables.Lowering) -> None:
        neurons = rows.total
        first = chosen.parts[0] if isinstance(chosen, tables.Split) else chosen
        found = {bits: n * neurons for bits, n in chosen.lookups.items()}
        self.layers.append(
            Layer(
                name=name,
                neurons=neurons,
                span_bits=max(1, max(rows.spans).bit_length()),
                bits=first.bits,
                shift=first.shift,
                method=type(chosen).__name__.lower(),
                lookups=found,
                removed_bits=chosen.removed_bits * neurons,
                price=chosen.price * neurons,
            )
        )


# --- small pieces -------------------------------------------------------------------------------


def _live(steps: list[Step]) -> tuple[Step, ...]:
    """The steps that the last one depends on."""
    needed = {steps[-1].name}
    for step in reversed(steps):
        if step.name in needed:
            needed.update(step.sources)
    return tuple(step for step in steps if step.name in needed)


def _inputs_of_linear(node: Node, last: str) -> int:
    """How many inputs the last node sums if it is Linear; 0 for any other node."""
    op: Any = node.op
    is_linear = node.name == last and _FORMS[type(op)] == _Lowering._linear
    return int(op.weight.shape[1]) if is_linear else 0


def _places(x: _Value, index: IntVector) -> IntVector:
    """A matrix [size of x, m] that takes these positions out of x, flat; none for `PADDING`."""
    matrix = np.zeros((x.zero.size, len(index)), dtype=np.int64)
    inside = np.flatnonzero(index != PADDING)
    matrix[index[inside], inside] = 1
    return matrix


def _is_elementwise(node: Node) -> bool:
    return node.op.role is Role.ELEMENTWISE


def _channelwise(values: IntVector, shape: Any) -> IntVector:
    """[channels or 1] shaped to broadcast against a sample of this shape."""
    return np.asarray(values).reshape(-1, *(1,) * (len(shape) - 1))


def _first_multiple(lo: Any, zero: IntVector, gain: Any) -> IntVector:
    """The least value >= lo that is zero modulo gain."""
    return np.asarray(lo + (zero - lo) % gain, dtype=np.int64)


def _rows(
    name: str, chain: list[Node], x: _Value, interval: Interval
) -> tuple[IntVector, IntVector, tables.Rows]:
    """(lo [channels], gain [channels], the table of every channel) over the proved range."""
    channels = x.zero.shape[0]
    gain = np.broadcast_to(x.gain.ravel(), (channels,))
    zero = x.zero.reshape(channels, -1)[:, 0]
    lo = interval.lo.reshape(channels, -1).min(axis=1)
    hi = interval.hi.reshape(channels, -1).max(axis=1)
    lo = _first_multiple(lo, zero, gain)
    spans = np.maximum((hi - lo) // gain, 0)
    widest = int(spans.max())
    if widest.bit_length() > tables.MAX_BITS:
        raise _too_wide(name, widest)
    u = np.minimum(np.arange(widest + 1)[:, None], spans[None, :])
    values = lo + gain * u  # [n, channels]
    for node in chain:
        values = node.op.forward(values)
    values = values.astype(np.int64)
    positions = prod(x.zero.shape[1:])
    rows = [values[: span + 1, c] for c, span in enumerate(spans.tolist())]
    return lo, gain, tables.Rows(rows, [positions] * channels)


def _part_of(rows: tables.Rows, index: IntVector) -> tables.Rows:
    return tables.Rows([rows.values[i] for i in index], [rows.counts[i] for i in index])


def _windows(op: MaxPool2d, out_shape: Any) -> list[tuple[int, int, tuple[slice, ...]]]:
    """(u, v, slices of the elements at place (u, v) of every window)."""
    (kh, kw), (sh, sw), (_, oh, ow) = op.kernel, op.stride, out_shape
    return [
        (
            u,
            v,
            (
                slice(None),
                slice(u, u + sh * (oh - 1) + 1, sh),
                slice(v, v + sw * (ow - 1) + 1, sw),
            ),
        )
        for u in range(kh)
        for v in range(kw)
    ]


def _too_wide(name: str, span: int) -> CircuitError:
    return CircuitError(
        f"node {name!r}: its accumulators span {span.bit_length()} bits, and a table takes at most "
        f"{tables.MAX_BITS}; train with narrower weights or codes, or fewer inputs per neuron"
    )


# How each node kind is lowered: the one place that names them.
_FORMS: dict[type[Op], Callable[[_Lowering, Node, Any], _Value]] = {
    Requantize: _Lowering._lookup,
    Rescale: _Lowering._lookup,
    Lookup: _Lowering._lookup,
    Linear: _Lowering._linear,
    Conv1d: _Lowering._conv1d,
    Conv2d: _Lowering._conv2d,
    ConvTranspose2d: _Lowering._conv_transpose,
    SumPool2d: _Lowering._sum_pool,
    GlobalSumPool: _Lowering._global_sum,
    Add: _Lowering._add,
    Concat: _Lowering._concat,
    Flatten: _Lowering._relabel,
    Reshape: _Lowering._relabel,
    Gather: _Lowering._gather,
    MaxPool2d: _Lowering._max_pool,
}
_ABSORB = (_Lowering._linear, _Lowering._conv1d, _Lowering._conv2d)  # a gain, into weights
