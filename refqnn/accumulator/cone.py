"""What one neuron depends on: the part of a program behind it, as steps on short vectors.

Each step picks its own columns out of the values that it reads, so a value may have any number of
readers, each with needs of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, magnitude, matmul
from refqnn.errors import NotCovered
from refqnn.graph import INPUT, ancestors, inputs_of
from refqnn.network import Network
from refqnn.ops.base import Interval, Op, Shape, told_role
from refqnn.ops.structure import PADDING, Functions, Role, Rows

_ENTRIES = 2**26  # coefficients of all sums of a cone, zeros too; beyond, nobody looks into it

__all__ = ["Cone", "Elementwise", "Maximum", "Sum", "Take"]


# --- the steps of a cone ------------------------------------------------------------------------
#
# A step maps vectors x [n, columns] to vectors [n, m]; `bounds` maps n boxes to n boxes; `slopes`
# carries a gradient [n, m] back to the columns, as a guide for searches and never as a proof.


@dataclass(frozen=True)
class Sum:
    """out = x @ matrix.T + constant."""

    matrix: NDArray[np.int64]  # [m, columns]
    constant: IntArray  # [m]
    mass: int  # of x @ matrix.T, for every x in the domain

    def forward(self, x: IntArray) -> IntArray:
        return np.asarray(matmul(x, self.matrix.T, self.mass) + self.constant)

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        positive, negative = np.maximum(self.matrix, 0).T, np.minimum(self.matrix, 0).T
        least = matmul(lo, positive, self.mass) + matmul(hi, negative, self.mass)
        greatest = matmul(hi, positive, self.mass) + matmul(lo, negative, self.mass)
        return np.asarray(least + self.constant), np.asarray(greatest + self.constant)

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        matrix = self.matrix if signed else np.abs(self.matrix)
        return np.asarray(g @ matrix.astype(np.float64))


@dataclass(frozen=True)
class Elementwise:
    """out[i] = functions[i](x[index[i]])."""

    functions: Functions
    index: NDArray[np.int64]  # [m], columns

    def forward(self, x: IntArray) -> IntArray:
        return self.functions(x[:, self.index])

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        return self.functions.bounds(lo[:, self.index], hi[:, self.index])

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        low, high = lo[:, self.index], hi[:, self.index]
        least, greatest = self.functions.bounds(low, high)
        if signed:
            least, greatest = self.functions(low), self.functions(high)
        rise = (greatest - least) / (high - low + 1).astype(np.float64)
        return _carried_back(g * rise, self.index, lo.shape)


@dataclass(frozen=True)
class Maximum:
    """out[i] = max over t of x[windows[i, t]]."""

    windows: NDArray[np.int64]  # [m, terms]

    def forward(self, x: IntArray) -> IntArray:
        return np.asarray(x[:, self.windows].max(axis=2))

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        return self.forward(lo), self.forward(hi)

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        back = np.zeros(lo.shape)
        for column in self.windows.T:  # [m]
            back += _carried_back(g, column, lo.shape)
        return back


@dataclass(frozen=True)
class Take:
    """out[i] = x[index[i]], or the fill."""

    index: NDArray[np.int64]  # [m], columns, or `PADDING`
    fill: int = 0

    def forward(self, x: IntArray) -> IntArray:
        last = np.full((len(x), 1), self.fill, dtype=x.dtype)  # PADDING is the last
        return np.asarray(np.concatenate([x, last], axis=1)[:, self.index])

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        return self.forward(lo), self.forward(hi)

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        inside = self.index != PADDING
        return _carried_back(g[:, inside], self.index[inside], lo.shape)


def _carried_back(
    g: NDArray[Any], index: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """g [n, m] added up where it came from: [n, columns]."""
    back = np.zeros(shape)
    np.add.at(back.T, index, g.T)
    return back


Step = Sum | Elementwise | Maximum | Take


class Cone:
    """The part of a network that one neuron depends on, as steps on short vectors.

    Args:
        network: the integer program.
        ranges: proved bounds of the values before the neuron, by name; boxes are cut to them.
        name: the node of the neuron.
        index: of the neuron in a sample of the node.

    Attributes:
        inputs: flat input positions that the neuron may depend on, ascending, int64 [d].
        steps: (name, names of the operands, step) in topological order; the last is the neuron.
        entries: coefficients of all its sums together, zeros between them too.

    Raises: NotCovered for a node kind without steps, and for more than 2**26 coefficients.
    """

    def __init__(
        self,
        network: Network,
        ranges: Mapping[str, Interval],
        name: str,
        index: tuple[int, ...],
    ) -> None:
        shapes = network.shapes
        needed: dict[str, NDArray[np.int64]] = {}  # columns of each value, ascending
        needed[name] = np.array([np.ravel_multi_index(index, shapes[name])])
        nodes = ancestors(network.nodes, name)
        readings: dict[str, _Reading] = {}
        self.entries = 0
        for node in reversed(nodes):
            sources = inputs_of(node)
            own = needed.setdefault(node.name, np.zeros(0, dtype=np.int64))
            reading = _reading(node.op, [shapes[s] for s in sources], own)
            readings[node.name] = reading
            self.entries += len(own) * len(reading.columns) * (node.op.role is Role.SUM)
            if self.entries > _ENTRIES:
                raise NotCovered(f"{name}{list(index)}: more than {_ENTRIES} coefficients")
            starts = np.cumsum([0, *(prod(shapes[s]) for s in sources)])
            for source, start, stop in zip(sources, starts, starts[1:]):
                read = reading.columns[(reading.columns >= start) & (reading.columns < stop)]
                needed[source] = np.union1d(needed.get(source, read - start), read - start)
        self.inputs = needed.get(INPUT, np.zeros(0, dtype=np.int64))
        self.steps: list[tuple[str, tuple[str, ...], Step]] = []
        self._limits: dict[str, tuple[IntArray, IntArray]] = {}
        for node in nodes:
            sources = inputs_of(node)
            starts = np.cumsum([0, *(prod(shapes[s]) for s in sources)])
            layout = np.concatenate([needed[s] + start for s, start in zip(sources, starts)])
            lo = np.concatenate([ranges[s].lo.reshape(-1)[needed[s]] for s in sources])
            hi = np.concatenate([ranges[s].hi.reshape(-1)[needed[s]] for s in sources])
            largest = np.maximum(magnitude(lo), magnitude(hi)).astype(object)
            step = readings[node.name].step(layout, largest)
            self.steps.append((node.name, sources, step))
            if node.name != name and node.op.role is Role.SUM:
                proved, at = ranges[node.name], needed[node.name]
                self._limits[node.name] = proved.lo.reshape(-1)[at], proved.hi.reshape(-1)[at]

    def forward(self, x: IntArray) -> IntArray:
        """Values of the neuron for short inputs x [n, d]: [n]."""
        values = {INPUT: x}
        for name, sources, step in self.steps:
            values[name] = step.forward(_joined(values, sources))
        return np.asarray(values[self.steps[-1][0]][:, 0])

    def bounds(
        self, lo: IntArray, hi: IntArray
    ) -> tuple[IntArray, IntArray, dict[str, tuple[IntArray, IntArray]]]:
        """Interval bounds of the neuron over n boxes lo, hi [n, d].

        Returns: lo [n], hi [n], and the boxes of every value for `slopes`.
        """
        boxes = {INPUT: (lo, hi)}
        for name, sources, step in self.steps:
            least = np.concatenate([boxes[s][0] for s in sources], axis=1)
            greatest = np.concatenate([boxes[s][1] for s in sources], axis=1)
            least, greatest = step.bounds(least, greatest)
            if name in self._limits:
                least = np.maximum(least, self._limits[name][0])
                greatest = np.minimum(greatest, self._limits[name][1])
            boxes[name] = least, greatest
        least, greatest = boxes[self.steps[-1][0]]
        return least[:, 0], greatest[:, 0], boxes

    def slopes(
        self, boxes: dict[str, tuple[IntArray, IntArray]], *, signed: bool
    ) -> NDArray[np.float64]:
        """How strongly each input moves the neuron within each box, a guess: [n, d]."""
        n = len(boxes[INPUT][0])
        g = {name: np.zeros(lo.shape) for name, (lo, _) in boxes.items()}
        g[self.steps[-1][0]] = np.ones((n, 1))
        for name, sources, step in reversed(self.steps):
            lo = np.concatenate([boxes[s][0] for s in sources], axis=1)
            hi = np.concatenate([boxes[s][1] for s in sources], axis=1)
            back = step.slopes(g[name], lo, hi, signed)
            start = 0
            for source in sources:
                stop = start + boxes[source][0].shape[1]
                g[source] = g[source] + back[:, start:stop]
                start = stop
        return np.asarray(g[INPUT])


def _joined(values: Mapping[str, IntArray], sources: Sequence[str]) -> IntArray:
    if len(sources) == 1:
        return values[sources[0]]
    return np.concatenate([values[source] for source in sources], axis=1)


@dataclass(frozen=True)
class _Reading:
    """What an op reads for some of its outputs.

    Attributes:
        columns: of the operands laid end to end, ascending, [k].
        step: the op on vectors in which column i stands at place `place(columns)`; the magnitudes
            of the columns, [k], say which arithmetic is exact.
    """

    columns: NDArray[np.int64]
    step: Callable[[NDArray[np.int64], IntArray], Step]


def _reading(op: Op, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> _Reading:
    """Raises: NotCovered for a kind that does not tell its structure."""
    role = told_role(op)
    if role is Role.SUM:
        rows = op.rows(shapes, positions)
        return _Reading(_columns(rows.column[rows.coefficient != 0]), partial(_sum, rows))
    if role is Role.WINDOW:
        column = op.windows(shapes[0], positions)
        # A padded position repeats one of the window's own: the maximum stays.
        column = np.where(column == PADDING, column.max(axis=1, keepdims=True), column)
        return _Reading(_columns(column), lambda layout, _: Maximum(_places(layout, column)))
    if role is Role.ELEMENTWISE:
        functions = op.functions(positions // prod(shapes[0][1:]))
        return _Reading(
            positions, lambda layout, _: Elementwise(functions, _places(layout, positions))
        )
    if role in (Role.RELABEL, Role.JOIN):
        column = op.sources(*shapes).reshape(-1)[positions]
        fill = getattr(op, "fill", 0)
        return _Reading(_columns(column), lambda layout, _: Take(_places(layout, column), fill))
    raise NotCovered(f"{op.kind}: does not tell its structure")


def _columns(column: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(np.unique(column[column != PADDING]))


def _places(layout: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each column stands in the vector; `PADDING` stays."""
    return np.where(column == PADDING, PADDING, np.searchsorted(layout, column))


def _sum(rows: Rows, layout: NDArray[np.int64], largest: IntArray) -> Sum:
    used = rows.coefficient != 0
    short = np.where(used, _places(layout, rows.column), PADDING)
    matrix = Rows(short, rows.coefficient, rows.constant).dense(len(layout))
    mass = 0
    if matrix.size:
        weights = magnitude(matrix)
        if int(weights.max()) * int(largest.max()) * weights.shape[1] < 2**63:
            largest = largest.astype(np.int64)
        mass = int((weights.astype(largest.dtype) @ largest).max())
    constant = rows.constant
    if mass + max(map(abs, constant.tolist()), default=0) < 2**63:
        constant = constant.astype(np.int64)
    return Sum(matrix, constant, mass)
