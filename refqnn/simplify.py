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
from typing import TYPE_CHECKING

import numpy as np

from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network
from refqnn.ops import KINDS
from refqnn.ops.base import Interval, Op, Shape
from refqnn.ops.structure import Classes, Mask

if TYPE_CHECKING:
    from refqnn.accumulator import Certificate

__all__ = ["simplify"]


def simplify(network: Network, certificate: Certificate, *, allow_trusted: bool = False) -> Network:
    """The network without what cannot matter on the certificate's domain.

    Args:
        network: the integer program.
        certificate: of this network; verified unless `certify` made it in this process.
        allow_trusted: as for `Certificate.verify`.

    Returns: a network with the same input and output; nodes keep their names, and those that the
        output does not depend on are gone.  Outside the domain its outputs may differ.

    Raises: CertificateError for the certificate of another network, or one that does not hold.

    >>> from refqnn import IntFormat, Linear, Node, Requantize, certify
    >>> fc1 = Node("fc1", Linear([[1, 2], [1, 2], [0, -1]]))
    >>> act1 = Node("act1", Requantize.from_shift(1, IntFormat(2, signed=False)))
    >>> fc2 = Node("fc2", Linear([[1, -3, 5]]))
    >>> net = Network([fc1, act1, fc2], input_shape=(2,), input_format=IntFormat(2, signed=False))
    >>> small = simplify(net, certify(net))  # a copy and a neuron that stays 0 go away
    >>> small["fc1"].op.weight.tolist(), small["fc2"].op.weight.tolist()
    ([[1, 2]], [[-2]])
    """
    # Here: `import refqnn` shall not wait for proofs.
    from refqnn.accumulator.arguments import the_network
    from refqnn.accumulator.certificate import check_usable

    the_network(network)
    check_usable(certificate, network, allow_trusted=allow_trusted)
    return _without_dead_channels(_folded(network, certificate))


# --- constants, duplicates, thresholds ----------------------------------------------------------


class _Values:
    """Numbers values so that equal numbers mean equal values on the whole domain."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self.constant: dict[int, int] = {}

    def of(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def of_constant(self, value: int, shape: Shape) -> int:
        """A channel of this shape with one value everywhere."""
        number = self.of(("constant", value, shape))
        self.constant[number] = value
        return number


def _folded(network: Network, certificate: Certificate) -> Network:
    values = _Values()
    ranges = certificate.ranges
    classes: dict[str, Classes] = {}
    own: list[Hashable] = [(INPUT, c) for c in range(network.input_shape[0])]
    classes[INPUT] = _numbered(values, ranges[INPUT], own)
    nodes = []
    for node in network.nodes:
        sources = inputs_of(node)
        shapes = [network.shapes[name] for name in sources]
        operands = [classes[name] for name in sources]
        tell = _telling(node.op)
        op = tell.restricted(node.op, *(ranges[name] for name in sources))
        op = tell.merged(op, *_known(operands[0], values))
        keys = tell.keys(op, operands, *shapes)
        nodes.append(Node(node.name, op, sources))
        if keys is None:
            keys = [(node.name, c) for c in range(network.shapes[node.name][0])]
        classes[node.name] = _numbered(values, ranges[node.name], keys)
    return network.with_nodes(nodes)


def _telling(op: Op) -> type[Op]:
    """Whose structure counts: that of a kind of ours, of the user's own none (its name, or what it
    inherits, may be that of another)."""
    return type(op) if type(op) in KINDS else Op


def _known(classes: Classes, values: _Values) -> tuple[list[int], dict[int, int]]:
    """For each channel the first of its class; the values of constant channels."""
    first: dict[int, int] = {}
    original = [first.setdefault(number, c) for c, number in enumerate(classes)]
    constants = {c: values.constant[n] for c, n in enumerate(classes) if n in values.constant}
    return original, constants


def _numbered(values: _Values, range_: Interval, keys: list[Hashable]) -> Classes:
    """A class per channel: the constant that its bounds prove, else its key."""
    lo, hi = (end.reshape(len(keys), -1) for end in (range_.lo, range_.hi))
    constant = lo.min(axis=1) == hi.max(axis=1)
    return [
        values.of_constant(int(lo[c, 0]), range_.shape[1:]) if constant[c] else values.of(key)
        for c, key in enumerate(keys)
    ]


# --- dead channels ------------------------------------------------------------------------------


def _without_dead_channels(network: Network) -> Network:
    live = _live_channels(network)
    nodes = [
        Node(node.name, _cut(node, live), inputs_of(node))
        for node in network.nodes
        if live[node.name].any()
    ]
    return network.with_nodes(nodes)


def _cut(node: Node, live: dict[str, Mask]) -> Op:
    out, into = live[node.name], live[inputs_of(node)[0]]
    return node.op if out.all() and into.all() else _telling(node.op).taken(node.op, out, into)


def _live_channels(network: Network) -> dict[str, Mask]:
    """The channels to keep, [channels] of each value: what the output depends on, and their kin.

    A sum keeps the rows it needs and reads the columns it needs.  Most other nodes have the
    channels of their inputs, no more and no less; that makes it a fixed point.
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
                sources = inputs_of(node)
                masks = [live[name] for name in sources]
                read = [shapes[name] for name in sources]
                live[node.name] |= _telling(node.op).kin(node.op, masks, *read)
    return live


def _keep_operands(node: Node, live: dict[str, Mask], shapes: dict[str, Shape]) -> None:
    """Mark what a live node reads."""
    sources = inputs_of(node)
    read = [shapes[name] for name in sources]
    needs = _telling(node.op).needs(node.op, live[node.name], *read)
    for name, need in zip(sources, needs):
        live[name] |= need
        if not live[name].any():
            live[name][0] = True  # an op has at least one channel to read
