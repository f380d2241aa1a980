"""describe(network): what each value of a network is, as plain data for a table.

>>> from refqnn import IntFormat, Linear, Network, Node, Requantize
>>> fc1 = Node("fc1", Linear([[1, -1]], [3]))
>>> act1 = Node("act1", Requantize.from_shift(1, IntFormat(2, signed=False)))
>>> net = Network([fc1, act1], input_shape=(2,), input_format=IntFormat(3, signed=False))
>>> for row in describe(net):
...     print(row.node, row.kind, row.shape, row.lo, row.hi, row.signed_bits, row.parameters)
input Input (2,) 0 7 4 0
fc1 Linear (1,) -4 10 5 3
act1 Requantize (1,) 0 3 3 3
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from refqnn.arithmetic import Arithmetic, add, multiply
from refqnn.formats import IntFormat, is_integer, signed_bits, span_bits
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.ops import Interval, Op, Requantize, Role
from refqnn.ops.base import IntArray, Shape, is_sum, tells

if TYPE_CHECKING:
    from refqnn.network import Network

__all__ = ["Row", "describe", "table"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value of the program.

    Attributes:
        node, kind, inputs: name, node kind ("Input" for the first row), names of the operands.
        shape: of one sample.
        format: the codes, e.g. "2-bit unsigned codes [0, 3]"; None for accumulators.
        shift: of a Requantize whose thresholds lie 2**shift apart, else None.
        lo, hi: proved interval range over all positions, for every input in the domain.
        signed_bits: width of a two's complement integer that holds [lo, hi].
        span_bits: width of the widest position after an offset of its own is added.
        arithmetic: for a sum, the arithmetic that its absolute mass allows; else None.
        parameters: how many integers the node holds.
        ties, float_ties: of a Requantize whose scale is known, at how many of the accumulators that
            its operand can hold, over all channels, float32 arithmetic may give another code: in a
            runtime that sums exactly, and in one that sums in float32 too (`refqnn.ops.scaling`).
            The scale is known of what an ONNX file or `Requantize.from_scale` made, and not stored.
    """

    node: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    format: str | None
    shift: int | None = None
    lo: int
    hi: int
    signed_bits: int
    span_bits: int
    arithmetic: str | None = None
    parameters: int = 0
    ties: int | None = None
    float_ties: int | None = None


def describe(network: Network, domain: Interval | None = None) -> list[Row]:
    """The input and every node, in the order of the program.

    Args:
        domain: a box of inputs; the whole input format by default.

    Raises: as `Network.ranges`.
    """
    ranges = network.ranges(domain)
    first = _row(INPUT, "Input", (), ranges[INPUT], network.input_format)
    sums = _Sums(network, ranges)
    return [first, *(_node_row(node, ranges, sums) for node in network.nodes)]


def table(network: Network) -> list[dict[str, object]]:
    """`describe` as rows of {column: value}, for `refqnn.display`.  Raises: as `describe`."""
    rows = describe(network)
    known = any(row.ties is not None for row in rows)
    return [
        {
            "node": row.node,
            "kind": row.kind,
            "inputs": ", ".join(row.inputs),
            "shape": "x".join(map(str, row.shape)),
            "codes": (row.format or "").partition(" codes")[0],
            "shift": row.shift,
            "range": f"[{row.lo:,}, {row.hi:,}]",
            "bits": row.signed_bits,
            "span": row.span_bits,
            "sums in": row.arithmetic,
            "parameters": row.parameters,
            **({"ties": row.ties, "float ties": row.float_ties} if known else {}),
        }
        for row in rows
    ]


class _Sums:
    """Of each value its absolute mass, and what a float32 sum may be off, in units of 2**-24.

    A sum of K terms is off by (K + 8) times its mass and by what its operands are; a zero point
    that is subtracted from an operand lies in the operand's range.
    """

    def __init__(self, network: Network, ranges: dict[str, Interval]) -> None:
        self.network, self.ranges = network, ranges
        self.known: dict[str, tuple[IntArray, IntArray] | None] = {}

    def __call__(self, name: str) -> tuple[IntArray, IntArray] | None:
        """(mass, error) of the shape of a sample; None behind kinds that do not tell."""
        if name not in self.known:
            self.known[name] = self._of(name)
        return self.known[name]

    def _of(self, name: str) -> tuple[IntArray, IntArray] | None:
        if name == INPUT or self.network[name].op.role is Role.ELEMENTWISE:
            return _wide(self.ranges[name]).hi, np.zeros(self.ranges[name].shape, dtype=np.int64)
        node = self.network[name]
        inputs, shape = inputs_of(node), self.ranges[name].shape
        told = [t for t in map(self, inputs) if t is not None]
        untold = node.op.role is None or (is_sum(node.op) and not tells(node.op, "absolute"))
        if len(told) < len(inputs) or untold:
            return None
        if not is_sum(node.op):
            mass, error = (np.full(shape, max(int(t[i].max()) for t in told)) for i in (0, 1))
            return mass, error
        mass = node.op.absolute_mass(*(_wide(self.ranges[i]) for i in inputs))
        carried = node.op.absolute(padded=False).forward(*(e[None] for _, e in told))[0]
        terms = node.op.fan_in(*(self.ranges[i].shape for i in inputs)) + 8
        return mass, add(multiply(mass, np.array(terms)), carried)


def _wide(x: Interval) -> Interval:
    """Values less any of their range."""
    most = np.maximum(x.magnitude, add(x.hi, -x.lo))
    return Interval(-most, most)


def _node_row(node: Node, ranges: dict[str, Interval], sums: _Sums) -> Row:
    op, inputs, arithmetic = node.op, inputs_of(node), None
    shift = getattr(op, "shift", None)
    if is_sum(op):
        arithmetic = Arithmetic.for_mass(op.prepare(*map(ranges.__getitem__, inputs))).name.lower()
    ties = _ties(op, inputs[0], sums) or (None, None)
    return replace(
        _row(node.name, op.kind, inputs, ranges[node.name], getattr(op, "format", None)),
        shift=shift if is_integer(shift) else None,  # a Rescale has one for each channel
        arithmetic=arithmetic,
        parameters=parameters(op),
        ties=ties[0],
        float_ties=ties[1],
    )


def _ties(op: Op, operand: str, sums: _Sums) -> tuple[int, int] | None:
    if not isinstance(op, Requantize) or op.scaling is None:
        return None
    known = sums(operand)
    return None if known is None else op.ties(sums.ranges[operand], *known)


def _row(
    node: str, kind: str, inputs: tuple[str, ...], interval: Interval, codes: IntFormat | None
) -> Row:
    lo, hi = interval.ends
    ends = zip(interval.lo.ravel().tolist(), interval.hi.ravel().tolist())
    return Row(
        node=node,
        kind=kind,
        inputs=inputs,
        shape=interval.shape,
        format=None if codes is None else str(codes),
        lo=lo,
        hi=hi,
        signed_bits=signed_bits(lo, hi),
        span_bits=max(span_bits(low, high) for low, high in ends),
    )


def parameters(op: Op) -> int:
    """Entries of the node's arrays: weights, biases, thresholds, tables."""
    return sum(v.size for v in vars(op).values() if isinstance(v, np.ndarray))
