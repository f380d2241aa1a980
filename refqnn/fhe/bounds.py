"""Widths from proofs: what the compiler would measure on samples is set from the program.

The compiler sizes every value by running an input set.  `ProvedWidths` runs before it assigns
widths and replaces each measured range by the proved one, so no sample has a say.  Constants do
not take part in that assignment: `FittingConstants` runs after it and stores each one modulo
2**(bits + 1), the modulus of the values it meets.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from concrete.fhe.dtypes import Integer
from concrete.fhe.representation import Graph, GraphProcessor, Node, Operation

__all__ = ["FittingConstants", "ProvedWidths"]


class ProvedWidths(GraphProcessor):
    """Sets every encrypted node to [0, tops[tag]]."""

    def __init__(self, tops: dict[str, int]) -> None:
        self.tops = tops

    def apply(self, graph: Graph) -> None:
        for node in graph.query_nodes(ordered=True):
            constant = node.operation == Operation.Constant
            _set_width(graph, node, (0, 1 if constant else self.tops[node.tag]))


class FittingConstants(GraphProcessor):
    """Gives constants the width the encrypted operand asks for, and reduces them to it."""

    def apply(self, graph: Graph) -> None:
        for node in graph.query_nodes(ordered=True):
            if node.operation == Operation.Constant:
                (successor,) = graph.graph.successors(node)
                bits = successor.output.dtype.bit_width + 1
                values = node.properties["constant"]
                half = 1 << (bits - 1)
                node.properties["constant"] = np.asarray((values + half) % (2 * half) - half)
                node.output = deepcopy(node.output)
                node.output.dtype = Integer(is_signed=True, bit_width=bits)


def _set_width(graph: Graph, node: Node, bounds: tuple[int, int]) -> None:
    node.bounds = bounds
    node.output = deepcopy(node.output)
    node.output.dtype = Integer.that_can_represent(list(bounds))
    if node.operation == Operation.Input:
        node.inputs[0] = node.output
    for successor in graph.graph.successors(node):
        for edge in graph.graph.get_edge_data(node, successor).values():
            successor.inputs[edge["input_idx"]] = node.output
