"""Neurons that depend on one input: sums of its levels (refqnn.fhe.doors), no lookup."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.fhe.doors import level_codes
from refqnn.graph import INPUT, inputs_of
from refqnn.limits import UNFOLDED_COLUMNS
from refqnn.network import Network
from refqnn.ops.base import Op, Shape, is_sum, tells
from refqnn.ops.structure import PADDING, Role, Rows

__all__ = ["SumsOfLevels", "only_inputs", "sums_of_levels"]

IntVector = NDArray[np.int64]

_MOST_LEVELS = 4096  # that a client sends; each is a ciphertext of 16 kB for the server


@dataclass(frozen=True, eq=False)
class SumsOfLevels:
    """Channels that depend on one input each; made by `sums_of_levels`.

    Attributes:
        inputs: flat indices [k] of these inputs, in order.
        channels: by node, which of its channels [channels]; nodes with some.
        only: by node, the flat index of the one input of each element (see `only_inputs`).
        by_level: by node, the values of each element [levels, ...], one for each code of its input.
    """

    inputs: IntVector
    channels: dict[str, NDArray[np.bool_]]
    only: dict[str, IntVector]
    by_level: dict[str, NDArray[Any]]

    def __call__(self, name: str) -> tuple[IntVector, IntVector]:
        """Values [levels, channels, ...] of the node's channels, and what each level that is sent
        adds to each of their elements [k * (levels - 1), elements]."""
        mine = self.channels[name]
        values = self.by_level[name][:, mine].astype(np.int64)
        jumps = np.diff(values.reshape(len(values), -1), axis=0)  # [levels - 1, elements]
        place = np.searchsorted(self.inputs, self.only[name][mine].ravel())  # [elements]
        weight = np.zeros((len(self.inputs), *jumps.shape), dtype=np.int64)
        weight[place, :, np.arange(len(place))] = jumps.T
        return values, weight.reshape(-1, len(place))

    @property
    def sizes(self) -> dict[str, int]:
        """How many elements, by node."""
        return {name: self.only[name][mine].size for name, mine in self.channels.items()}


def sums_of_levels(network: Network, names: Iterable[str]) -> SumsOfLevels:
    """Which channels of these nodes depend on one input each.

    None where more than 4096 levels would have to be sent.
    """
    only = only_inputs(network)
    channels, inputs = {}, [np.empty(0, dtype=np.int64)]
    for name in names:
        mine = (only[name].reshape(len(only[name]), -1) >= 0).all(axis=1)
        if mine.any():
            channels[name] = mine
            inputs.append(only[name][mine].ravel())
    fmt, read = network.input_format, np.unique(np.concatenate(inputs))
    if not 0 < len(read) * (fmt.levels - 1) <= _MOST_LEVELS:
        return SumsOfLevels(inputs[0], {}, {}, {})
    codes = np.array([fmt.q_min, *level_codes(fmt)])
    samples = np.repeat(codes, prod(network.input_shape)).reshape(-1, *network.input_shape)
    # In sample j every input has code j: an element of one input is what j makes of it.
    return SumsOfLevels(read, channels, only, network.trace(samples))


def only_inputs(network: Network) -> dict[str, IntVector]:
    """For every element of every value the flat index of the one input it depends on, else -1."""
    shape = network.input_shape
    found = {INPUT: np.arange(prod(shape)).reshape(shape)}
    for node in network.nodes:
        sources = [found[name] for name in inputs_of(node)]
        found[node.name] = _only_input(node.op, sources, network.shapes[node.name])
    return found


def _only_input(op: Op, sources: list[IntVector], shape: Shape) -> IntVector:
    if op.role is Role.ELEMENTWISE:
        return sources[0]
    shapes = [source.shape for source in sources]
    flat = np.concatenate([source.ravel() for source in sources])
    if op.role in (Role.RELABEL, Role.JOIN):
        places = op.sources(*shapes)
        return np.where(places == PADDING, -1, flat[places])
    found = np.full(prod(shape), -1)
    if is_sum(op) and tells(op, "rows"):
        block = max(1, UNFOLDED_COLUMNS // max(1, op.fan_in(*shapes)))
        for start in range(0, len(found), block):
            positions = np.arange(start, min(start + block, len(found)))
            found[positions] = _of_one(op.rows(shapes, positions), flat)
    return found.reshape(shape)


def _of_one(rows: Rows, source: IntVector) -> IntVector:
    """The source's index where a sum has a single coefficient that is not zero."""
    counts = rows.coefficient != 0
    column = np.take_along_axis(rows.column, counts.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(counts.sum(axis=1) == 1, source[column], -1)
