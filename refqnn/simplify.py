"""simplify: a smaller network with the same outputs on every input of a certified domain.

    constant      a channel whose bounds meet is a number: it moves into the biases behind it
    duplicate     channels that compute the same value count once; weights of later copies add up
    thresholds    that no accumulator reaches become NEVER, those that all pass become ALWAYS
    dead          channels that nothing reads any more are removed, and what only they read

Fewer neurons, fewer table lookups.  The input and the output keep their shapes; inputs that cannot
matter keep their place, with weights of 0.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.certificate import Certificate, check_same_network
from refqnn.network import INPUT, Network, Node, inputs_of
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    SumPool2d,
)
from refqnn.ops.base import Interval, Op
from refqnn.requantize import ALWAYS, NEVER, Requantize

__all__ = ["simplify"]

Classes = list[int]  # one number per channel; equal numbers stand for equal values
Live = NDArray[np.bool_]

_CHANNELWISE = (Requantize, Lookup, MaxPool2d, SumPool2d, GlobalSumPool, Add)


def simplify(network: Network, certificate: Certificate) -> Network:
    """The network without what cannot matter on the certificate's domain.

    Args:
        network: the integer program.
        certificate: of this network; it is taken at its word (see `Certificate.verify`).

    Returns: a network with the same input and output; nodes keep their names, and those that the
        output does not depend on are gone.  Outside the domain its outputs may differ.

    Raises: CertificateError for the certificate of another network.

    >>> from refqnn import IntFormat, Linear, Node, Requantize, certify
    >>> fc1 = Node("fc1", Linear([[1, 2], [1, 2], [0, -1]]))
    >>> act1 = Node("act1", Requantize.from_shift(1, IntFormat(2, signed=False)))
    >>> fc2 = Node("fc2", Linear([[1, -3, 5]]))
    >>> net = Network([fc1, act1, fc2], input_shape=(2,), input_format=IntFormat(2, signed=False))
    >>> small = simplify(net, certify(net))  # a copy and a neuron that stays 0 go away
    >>> small["fc1"].op.weight.tolist(), small["fc2"].op.weight.tolist()
    ([[1, 2]], [[-2]])
    """
    check_same_network(certificate, network)
    return _without_dead_channels(_folded(network, certificate))


# --- constants, duplicates, thresholds ----------------------------------------------------------


class _Values:
    """Numbers values so that equal numbers mean equal values on the whole domain."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self.constant: dict[int, int] = {}

    def of(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def of_constant(self, value: int, shape: tuple[int, ...]) -> int:
        """A channel of this shape with one value everywhere."""
        number = self.of(("constant", value, shape))
        self.constant[number] = value
        return number


def _folded(network: Network, certificate: Certificate) -> Network:
    values = _Values()
    ranges = certificate.ranges
    classes: dict[str, Classes] = {}
    keys: list[Hashable] = [(INPUT, i) for i in range(network.input_shape[0])]
    classes[INPUT] = _numbered(values, ranges[INPUT], keys)
    nodes = []
    for node in network.nodes:
        sources = inputs_of(node)
        operands = [classes[name] for name in sources]
        op = _rewritten(node.op, operands, [ranges[name] for name in sources], values)
        nodes.append(Node(node.name, op, sources))
        shape = network.shapes[sources[0]]
        keys = _keys(op, operands, shape, network.shapes[node.name], node.name)
        classes[node.name] = _numbered(values, ranges[node.name], keys)
    return _rebuilt(network, nodes)


def _numbered(values: _Values, range_: Interval, keys: list[Hashable]) -> Classes:
    """A class per channel: the constant that its bounds prove, else its key."""
    lo, hi = (end.reshape(len(keys), -1) for end in (range_.lo, range_.hi))
    constant = lo.min(axis=1) == hi.max(axis=1)
    return [
        values.of_constant(int(lo[c, 0]), range_.shape[1:]) if constant[c] else values.of(key)
        for c, key in enumerate(keys)
    ]


def _keys(
    op: Op, operands: list[Classes], shape: tuple[int, ...], out: tuple[int, ...], name: str
) -> list[Hashable]:
    """For each output channel, what it computes from which values."""
    channels = range(out[0])
    if isinstance(op, (Linear, Conv1d, Conv2d)):
        if isinstance(op, (Conv1d, Conv2d)) and op.groups != 1:
            return [(name, c) for c in channels]
        geometry = _geometry(op)
        read = op.weight.reshape(*op.weight.shape[:2], -1)
        bias = np.zeros(len(read), dtype=np.int64) if op.bias is None else op.bias
        return [
            (op.kind, geometry, int(bias[c]), _weights_by_class(read[c], operands[0]))
            for c in channels
        ]
    if isinstance(op, Requantize):
        rows = [op.thresholds[c if op.channels > 1 else 0].tobytes() for c in channels]
        return [(op.kind, operands[0][c], rows[c], op.format) for c in channels]
    if isinstance(op, Lookup):
        rows = [op.table[c if op.channels > 1 else 0].tobytes() for c in channels]
        return [(op.kind, operands[0][c], rows[c], op.lo) for c in channels]
    if isinstance(op, (MaxPool2d, SumPool2d)):
        geometry = op.kernel, op.stride, op.padding, getattr(op, "pad_code", None)
        return [(op.kind, geometry, operands[0][c]) for c in channels]
    if isinstance(op, GlobalSumPool):
        return [(op.kind, operands[0][c]) for c in channels]
    if isinstance(op, Add):
        return [(op.kind, op.multipliers, tuple(o[c] for o in operands)) for c in channels]
    if isinstance(op, Concat):
        return [("same", number) for operand in operands for number in operand]
    if isinstance(op, Flatten):
        size = prod(shape[1:])
        return [("position", operands[0][c // size], c % size) for c in channels]
    return [(name, c) for c in channels]


def _geometry(op: Linear | Conv1d | Conv2d) -> Hashable:
    if isinstance(op, Linear):
        return None
    return op.kernel, op.stride, op.padding, op.dilation, op.pad_code


def _weights_by_class(row: NDArray[np.int64], classes: Classes) -> Hashable:
    """(class, weights) pairs of one output channel; copies have been merged before."""
    used = np.flatnonzero(row.any(axis=1)).tolist()
    return tuple(sorted((classes[c], row[c].tobytes()) for c in used))


def _rewritten(op: Op, operands: list[Classes], ranges: list[Interval], values: _Values) -> Op:
    if isinstance(op, Requantize):
        return _with_reachable_thresholds(op, ranges[0])
    if isinstance(op, (Linear, Conv1d, Conv2d)) and _has_free_rows(op):
        return _with_distinct_inputs(op, operands[0], values)
    return op


def _with_reachable_thresholds(op: Requantize, acc: Interval) -> Requantize:
    channels = len(acc.lo) if acc.lo.ndim else 1
    if op.channels == 1:
        channels = 1
    lo = acc.lo.reshape(channels, -1).min(axis=1)[:, None]
    hi = acc.hi.reshape(channels, -1).max(axis=1)[:, None]
    thresholds = np.where(op.thresholds <= lo, ALWAYS, op.thresholds)
    thresholds = np.where(op.thresholds > hi, NEVER, thresholds)
    return Requantize(thresholds, op.format)


def _with_distinct_inputs(
    op: Linear | Conv1d | Conv2d, classes: Classes, values: _Values
) -> Linear | Conv1d | Conv2d:
    """Weights of copies added to the first one, constants moved into the bias."""
    weight = op.weight.astype(object)
    bias = np.zeros(len(weight), dtype=object) if op.bias is None else op.bias.astype(object)
    pads = not isinstance(op, Linear) and any(end for pair in op.padding for end in pair)
    first: dict[int, int] = {}
    for c, number in enumerate(classes):
        value = values.constant.get(number)
        if value is not None and (not pads or value == getattr(op, "pad_code", None)):
            bias = bias + weight[:, c].reshape(len(weight), -1).sum(axis=1) * value
            weight[:, c] = 0
        elif number in first:
            weight[:, first[number]] += weight[:, c]
            weight[:, c] = 0
        else:
            first[number] = c
    if not all(-(2**63) <= v < 2**63 for array in (weight, bias) for v in array.flat):
        return op  # the sums leave int64: keep what there is
    keep_none = op.bias is None and not any(bias.tolist())
    new_bias = None if keep_none else bias.astype(np.int64)
    return replace(op, weight=weight.astype(np.int64), bias=new_bias)


# --- dead channels ------------------------------------------------------------------------------


def _without_dead_channels(network: Network) -> Network:
    live = _live_channels(network)
    nodes = [
        Node(
            node.name,
            _sliced(node.op, live[node.name], live[inputs_of(node)[0]]),
            inputs_of(node),
        )
        for node in network.nodes
        if live[node.name].any()
    ]
    return _rebuilt(network, nodes)


def _live_channels(network: Network) -> dict[str, Live]:
    """The channels to keep, [channels] of each value: what the output depends on, and their kin.

    A sum keeps the rows it needs and reads the columns it needs.  Elementwise nodes and poolings
    have the channels of their inputs, no more and no less; that makes it a fixed point.
    """
    shapes = network.shapes
    live = {name: np.zeros(shape[0], dtype=bool) for name, shape in shapes.items()}
    live[network.output][:] = True
    live[INPUT][:] = True
    before = -1
    while before != (now := sum(int(v.sum()) for v in live.values())):
        before = now
        for node in reversed(network.nodes):
            if live[node.name].any():
                _keep_operands(node, live, shapes)
        for node in network.nodes:
            if live[node.name].any():
                _keep_kin(node, live, shapes)
    return live


def _keep_operands(node: Node, live: dict[str, Live], shapes: dict[str, tuple[int, ...]]) -> None:
    """Mark what a live node reads."""
    op, here, sources = node.op, live[node.name], inputs_of(node)
    if _has_free_rows(op):
        read = op.weight[here].any(axis=0)  # type: ignore[attr-defined]  # [in, *kernel]
        needs = [read.reshape(len(read), -1).any(axis=1)]
    elif isinstance(op, _CHANNELWISE):
        needs = [here for _ in sources]
    elif isinstance(op, Flatten):
        needs = [here.reshape(shapes[sources[0]][0], -1).any(axis=1)]
    elif isinstance(op, Concat):
        needs = np.split(here, np.cumsum([shapes[name][0] for name in sources])[:-1])
    else:
        needs = [np.ones(shapes[name][0], dtype=bool) for name in sources]
    for name, need in zip(sources, needs):
        live[name] |= need
        if not live[name].any():
            live[name][0] = True  # an op has at least one channel to read


def _keep_kin(node: Node, live: dict[str, Live], shapes: dict[str, tuple[int, ...]]) -> None:
    """Mark the channels that a node has because its inputs have them."""
    op, sources = node.op, inputs_of(node)
    if _has_free_rows(op):
        return
    if isinstance(op, _CHANNELWISE):
        for name in sources:
            live[node.name] |= live[name]
    elif isinstance(op, Flatten):
        shape = shapes[sources[0]]
        live[node.name] |= np.repeat(live[sources[0]], prod(shape[1:]))
    elif isinstance(op, Concat):
        live[node.name] |= np.concatenate([live[name] for name in sources])
    else:
        live[node.name][:] = True


def _has_free_rows(op: Op) -> bool:
    """A sum whose output channels can be chosen one by one."""
    return isinstance(op, Linear) or (isinstance(op, (Conv1d, Conv2d)) and op.groups == 1)


def _sliced(op: Op, live: Live, source: Live) -> Op:
    """The op on the live channels of its (first) operand."""
    if isinstance(op, (Linear, Conv1d, Conv2d)) and _has_free_rows(op):
        weight = op.weight[live][:, source]
        return replace(op, weight=weight, bias=None if op.bias is None else op.bias[live])
    if isinstance(op, Requantize) and op.channels > 1:
        return replace(op, thresholds=op.thresholds[live])
    if isinstance(op, Lookup) and op.channels > 1:
        return replace(op, table=op.table[live])
    return op


def _rebuilt(network: Network, nodes: list[Node]) -> Network:
    arguments: dict[str, Any] = {
        "input_shape": network.input_shape,
        "input_format": network.input_format,
        "input_quantizer": network.input_quantizer,
        "output_dequantizer": network.output_dequantizer,
        "output": network.output,
    }
    return Network(nodes, **arguments)
