"""Networks, and wrong implementations of their nodes: mutants of the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refqnn
from refqnn import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    IntFormat,
    Linear,
    Lookup,
    MaxPool2d,
    Network,
    Node,
    Requantize,
    Reshape,
    SumPool2d,
)
from refqnn.conformance.making.networks import describe
from refqnn.conformance.mutants import Mutant, mutants_of
from refqnn.conformance.operations import OPERATIONS
from refqnn.diagnosis import Diagnosis, diagnose
from refqnn.graph import inputs_of

STORED = Path(__file__).parents[2] / "vectors" / "networks"
TRAINED = ("iris-mlp", "checkerboard-mlp", "regression-mlp", "digits-cnn")

S4, U3 = IntFormat(4, signed=True), IntFormat(3, signed=False)

# The suite's name of a mistake -> the catalogue's, where they differ.
OTHER_NAMES = {
    "image_transposed": ("reads_image_transposed", "images_exchanged"),
    "channels_last": ("reads_channels_last", "reads_channels_last_written"),
    "column_major": ("reads_column_major",),
    "x_as_int8": ("reads_int8",),
    "x_as_uint8": ("reads_uint8",),
    "tail_of_two": ("tail_of_2",),
    "tail_of_four": ("tail_of_4",),
    "average_then_scaled": ("average_then_scaled_half_even",),
    "pads_zero": ("pad_code_ignored",),
    "as_unsigned": ("as_unsigned_8",),
    "weight_transposed": ("in_out_swapped",),
    "weight_as_conv": ("weight_taken_as_iohw",),
    "reversed": ("reads_reversed", "writes_reversed"),
    "rows_exchanged": ("reads_image_transposed",),
    "backwards": ("reads_reversed",),
    "y_transposed": ("writes_image_transposed",),
    "value_int8": ("reads_int8",),
    "value_uint8": ("reads_uint8",),
    "positions_rounded_up": ("positions_rounded_up_with_zeros",),
    "outputs_reversed": ("inputs_reversed",),
    "across_samples": ("first_sample",),  # the same where positions lie inside one sample
    "magnitude": ("looks_up_magnitude",),
    "one_off": ("one_early_wraps",),
    "acc_saturates_8": ("acc_saturates_8_reverse", "acc_saturates_8_channels_last"),
    "kernel_transposed": ("weight_stored_oiwh",),
}


def trained(name: str) -> Network:
    """A trained network of the vectors."""
    return refqnn.load(STORED / f"{name}.npz")


def zoo() -> Network:
    """Every kind of node once, with weights, pads, strides and rows that no symmetry hides."""
    rng = np.random.default_rng(7)

    def weights(*shape: int) -> NDArray[np.int64]:
        return rng.integers(-7, 8, shape)

    def codes(channels: int, step: int) -> Requantize:
        first = rng.integers(-9 * step, -3 * step, channels)
        return Requantize(first[:, None] + step * np.arange(15), S4)

    bias = np.array([90, -41, 33, 7])
    nodes = [
        Node(
            "conv",
            Conv2d(weights(4, 1, 3, 2), bias, (2, 1), ((1, 0), (0, 2)), (1, 2), 2, pad_code=3),
        ),
        Node("codes", codes(4, 11)),
        Node("max", MaxPool2d((2, 3), (1, 2), ((1, 0), (0, 1))), ("codes",)),
        Node("pool", SumPool2d((2, 3), (1, 2), ((1, 0), (0, 1)), pad_code=2), ("codes",)),
        Node("pooled", codes(4, 3), ("pool",)),
        Node("add", Add((3, -2)), ("max", "pooled")),
        Node("added", codes(4, 5), ("add",)),
        Node("join", Concat(), ("added", "max", "pooled")),
        Node("up", ConvTranspose2d(weights(12, 2, 2, 3), bias, (2, 1), ((1, 0), (0, 1)), groups=2)),
        Node("upped", codes(4, 40)),
        Node("table", Lookup(rng.integers(-8, 8, (4, 16)), -8, S4), ("upped",)),
        Node("global", GlobalSumPool(), ("table",)),
        Node("moved", Gather(_index(8, 3), (4, 7, 6), fill=5), ("table",)),
        Node("reshaped", Reshape((2, 12)), ("moved",)),
        Node("conv1", Conv1d(weights(3, 2, 3), [20, -9, 4], 2, ((2, 1),), pad_code=-2)),
        Node("conv1codes", codes(3, 13)),
        Node("flat", Flatten()),
        Node("globalcodes", codes(4, 9), ("global",)),
        Node("all", Concat(), ("flat", "globalcodes")),
        Node("fc", Linear(weights(5, 25), rng.integers(-300, 300, 5)), ("all",)),
    ]
    return Network(nodes, input_shape=(2, 9, 10), input_format=S4)


def _index(rows: int, columns: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(3)
    index = rng.permutation(168)[: rows * columns].reshape(rows, columns)
    index[2, 1] = -1
    return index


def samples(network: Network, count: int, seed: int = 0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    fmt = network.input_format
    return rng.integers(fmt.q_min, fmt.q_max + 1, (count, *network.input_shape))


@dataclass(frozen=True)
class Planted:
    """A mutant in the place of a node."""

    network: Network
    node: str
    mutant: Mutant
    codes: NDArray[np.int64]
    trace: Mapping[str, NDArray[np.int64]]
    values: NDArray[np.int64]

    @property
    def names(self) -> set[str]:
        return {self.mutant.name, *OTHER_NAMES.get(self.mutant.name, ())}

    def beside(self) -> Diagnosis:
        """From a dump that holds the operands and the wrong values."""
        operands = inputs_of(self.network[self.node])
        dump = {name: self.trace[name] for name in operands} | {self.node: self.values}
        return diagnose(self.network, dump, None if "input" in operands else self.codes, budget_s=5)

    def at_the_end(self) -> Diagnosis | None:
        """From the output alone; None where the mistake does not reach it."""
        values = dict(self.trace) | {self.node: self.values}
        behind = [node.name for node in self.network.nodes].index(self.node) + 1
        try:
            for node in self.network.nodes[behind:]:
                values[node.name] = node.op.forward(*(values[name] for name in inputs_of(node)))
        except (refqnn.RefqnnError, ValueError):  # of another shape
            return None
        output = values[self.network.output]
        if np.array_equal(output, self.trace[self.network.output]):
            return None
        return diagnose(self.network, {self.network.output: output}, self.codes, budget_s=5)

    def __str__(self) -> str:
        return f"{self.node}: {self.mutant}"


def planted(network: Network, codes: NDArray[np.int64]) -> Iterator[Planted]:
    """Every mutant of the suite at every node, where it changes values and is no refusal."""
    trace = network.trace(codes)
    for node in describe(network)["nodes"]:
        operation = node["operation"]
        ((given, field),) = OPERATIONS[operation].inputs.items()
        operands = [trace[name] for name in node["inputs"]]
        data: Any = operands if field.kind == "int_tensors" else operands[0]
        for mutant in mutants_of(operation):
            if mutant.equivalent or mutant.flag.startswith("refusal"):
                continue
            try:
                (made,) = mutant.function(**{given: data}, **node["parameters"]).values()
                values = np.asarray(made).astype(np.int64)
            except (ValueError, TypeError, IndexError, refqnn.RefqnnError):
                continue  # it ends in an error of its own: nothing is dumped
            expected = trace[node["name"]]
            flat = values.size == expected.size and (values.ravel() == expected.ravel()).all()
            if len(values) == len(expected) and not flat:
                yield Planted(network, node["name"], mutant, codes, trace, values)


__all__ = ["TRAINED", "Planted", "planted", "samples", "trained", "zoo"]
