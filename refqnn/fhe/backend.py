"""Concrete as a backend of refqnn.fhe.program, with widths from proofs.

The compiler sizes every value by running an input set.  `ProvedWidths` runs before it assigns
widths and replaces each measured range by the proved one, so no sample has a say.  Constants do
not take part in that assignment: `FittingConstants` runs after it and stores each one modulo
2**(bits + 1), the modulus of the values it meets.

**Assumptions on Concrete 2.11** (tests/fhe/test_fhe_assumptions.py has one test for each).  It is
not maintained any more, and wrong results are reported for it (zama-ai/concrete): 1293, 1296 and
1304 on constants, 1303 on widths, 1306 and 1309 on an input that is added at the end, 1307 on
values that are returned, 1305 on GPUs, 1316 on strategies.  tests/fhe/test_fhe_reports.py runs each
encrypted, in the form that a network of ours can have; the last two are refused (7).

    1  widths set by a processor are those that are used; what an input set shows is not
    2  sums are exact modulo 2**(bits + 1), whatever leaves the range in between
    3  constants are reduced to the modulus by us, negative ones too
    4  truncate_bit_pattern and bits are exact on the whole proved range; rounding is not used
    5  a univariate table is right at both ends of the range, for tensors with tables of their own
    6  indices, strided slices, reshape, concatenation and encrypted zeros move the right values
    7  no GPU, single precision, other strategy or approximation: options that could are refused
    8  its messages have one form for given parameters (refqnn.fhe.messages)
    9  p_error below 2**-128 is taken and honoured by the optimizer; 132 bits cost more than 128
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import numpy as np
from concrete import fhe
from concrete.fhe.compilation.configuration import SecurityLevel
from concrete.fhe.dtypes import Integer
from concrete.fhe.representation import Graph, GraphProcessor, Node, Operation

from refqnn.fhe.interrupts import held_back
from refqnn.fhe.program import Conv, IntVector, Program, Value
from refqnn.ops.base import Shape

__all__ = ["NEEDLESS", "OPTIONS", "Tracing", "compiled"]

# Fields of Concrete's Configuration that change no integer.
OPTIONS = (
    *("verbose", "show_graph", "show_assigned_graph", "show_mlir", "show_optimizer"),
    *("show_bit_width_constraints", "show_bit_width_assignments", "show_statistics"),
    *("show_progress", "progress_title", "progress_tag"),
    *("loop_parallelize", "dataflow_parallelize", "auto_parallelize"),
)

# What Concrete ML is asked for and what has no meaning here: what there is instead.
NEEDLESS = {
    "artifacts": "None: the circuit's explain() tells what was compiled",
    "device": "'cpu'",
    "n_bits": "none: bits are those of training, n_w_bits and n_a_bits",
    "rounding_threshold_bits": "none: each accumulator loses as many low bits as change no code",
}


class Tracing:
    """Steps on the compiler's tracers."""

    def tagged(self, name: str) -> AbstractContextManager[Any]:
        return fhe.tag(name)

    def conv(self, x: Value, step: Conv) -> Value:
        geometry = {"strides": step.stride, "dilations": step.dilation, "group": step.groups}
        return fhe.conv(x, step.weight, **geometry)

    def zeros(self, shape: Shape) -> Value:
        return fhe.zeros(shape)  # without noise

    def truncate(self, x: Value, shift: int) -> Value:
        return fhe.truncate_bit_pattern(x, shift)

    def bits(self, x: Value, start: int, stop: int) -> Value:
        return fhe.bits(x)[start:stop]

    def lookup(self, function: Callable[[IntVector], IntVector], x: Value) -> Value:
        return fhe.univariate(lambda probed: function(np.asarray(probed)))(x)


def compiled(program: Program, *, security_level: int = 128, **options: Any) -> fhe.Circuit:
    """The circuit of a program.  Raises: RuntimeError where no parameters serve it.

    Args:
        security_level: bits, 128 or 132.
        options: further fields of Concrete's Configuration.
    """
    configuration = fhe.Configuration(
        additional_pre_processors=[ProvedWidths(program.tops)],
        additional_post_processors=[FittingConstants()],
        security_level=SecurityLevel(security_level),
        dump_artifacts_on_unexpected_failures=False,
        **options,
    )
    ends = [np.full(program.input_shape, end, dtype=np.int64) for end in (0, program.input_top)]

    def circuit(x: Value) -> Value:
        return program(x, Tracing())

    with held_back():
        return fhe.Compiler(circuit, {"x": "encrypted"}).compile(ends, configuration)


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
