"""What a neuron depends on: sums as sparse rows, and the part of the program behind one neuron.

Positions of a value are numbered in row-major order; the operands of a node with several inputs
stand one behind the other, as `Concat` would put them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, magnitude, matmul
from refqnn.errors import NotCovered
from refqnn.network import INPUT, Network, inputs_of
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
    Reshape,
    SumPool2d,
)
from refqnn.ops.base import Interval, Op, Shape, SumOp
from refqnn.ops.windows import pad, windows
from refqnn.requantize import Requantize

__all__ = [
    "PADDING",
    "Codes",
    "Cone",
    "Maximum",
    "Rows",
    "Sum",
    "Table",
    "Take",
    "sum_rows",
    "window_columns",
]

PADDING = -1  # the column of a term that is no input but a padded position


@dataclass(frozen=True)
class Rows:
    """m sums: out[i] = constant[i] + sum_t coefficient[i, t] * x[column[i, t]].

    Attributes:
        column: positions of the operands, int64 [m, terms]; `PADDING` terms have coefficient 0.
        coefficient: int64 [m, terms].
        constant: bias and padding, integers [m].
    """

    column: NDArray[np.int64]
    coefficient: NDArray[np.int64]
    constant: NDArray[Any]

    def dense(self, columns: int) -> NDArray[np.int64]:
        """The coefficients as a matrix [m, columns]."""
        matrix = np.zeros((len(self.column), columns), dtype=np.int64)
        row = np.broadcast_to(np.arange(len(self.column))[:, None], self.column.shape)
        inside = self.column != PADDING
        np.add.at(matrix, (row[inside], self.column[inside]), self.coefficient[inside])
        return matrix


def sum_rows(op: Op, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
    """The sums that a `SumOp` computes at some positions of its output.

    Args:
        op: Linear, Conv1d, Conv2d, SumPool2d, GlobalSumPool or Add.
        shapes: of its inputs.
        positions: flat indices of output values, [m].

    Raises: NotCovered for another kind.
    """
    m = len(positions)
    if isinstance(op, Linear):
        column = np.broadcast_to(np.arange(op.weight.shape[1]), (m, op.weight.shape[1]))
        return Rows(column, op.weight[positions], _bias(op.bias, positions))
    if isinstance(op, (Conv1d, Conv2d)):
        column = window_columns(op, shapes[0], positions)  # [m, C * prod(kernel)]
        channel = positions // prod(op.out_shape(*shapes)[1:])
        weight = op.weight.reshape(len(op.weight), -1)[channel]  # [m, C * prod(kernel)]
        padded = np.where(column == PADDING, weight, 0).astype(object).sum(axis=1)
        constant = _bias(op.bias, channel) + padded * op.pad_code
        return Rows(column, np.where(column == PADDING, 0, weight), constant)
    if isinstance(op, SumPool2d):
        column = window_columns(op, shapes[0], positions)
        inside = (column != PADDING).astype(np.int64)
        outside = (column == PADDING).astype(object).sum(axis=1)
        return Rows(column, inside, outside * op.pad_code)
    if isinstance(op, GlobalSumPool):
        size = prod(shapes[0][1:])
        column = positions[:, None] * size + np.arange(size)
        return Rows(column, np.ones_like(column), np.zeros(m, dtype=object))
    if isinstance(op, Add):
        size = prod(shapes[0])
        column = positions[:, None] + np.arange(len(shapes)) * size
        multipliers = (1,) * len(shapes) if op.multipliers is None else op.multipliers
        coefficient = np.broadcast_to(np.array(multipliers, dtype=np.int64), column.shape)
        return Rows(column, coefficient, np.zeros(m, dtype=object))
    raise NotCovered(f"{op.kind}: its sums are not known here")


def window_columns(
    op: Conv1d | Conv2d | SumPool2d | MaxPool2d, shape: Shape, positions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The input positions in the windows of some outputs, `PADDING` outside the input: [m, terms].

    The windows are taken from an array that holds each position's own number.
    """
    numbers = np.arange(prod(shape)).reshape(1, *shape)
    axes = len(shape) - 1
    dilation = op.dilation if isinstance(op, (Conv1d, Conv2d)) else (1,) * axes
    kernel = op.kernel
    padded = pad(numbers, op.padding, PADDING)
    view = windows(padded, kernel, op.stride, dilation)[0]  # [channels, *positions, *kernel]
    where = np.unravel_index(positions, op.out_shape(shape))
    space = tuple(where[1:])
    if isinstance(op, (Conv1d, Conv2d)):
        group = where[0] // (op.weight.shape[0] // op.groups)  # [m]
        inputs = op.weight.shape[1]
        channel = group[:, None] * inputs + np.arange(inputs)  # [m, C]
        taken = view[(channel, *(s[:, None] for s in space))]  # [m, C, *kernel]
    else:
        taken = view[(where[0], *space)]  # [m, *kernel]
    return np.ascontiguousarray(taken).reshape(len(positions), prod(taken.shape[1:]))


def _bias(bias: NDArray[np.int64] | None, channel: NDArray[np.int64]) -> NDArray[Any]:
    if bias is None:
        return np.zeros(len(channel), dtype=object)
    return bias[channel].astype(object)


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
class Codes:
    """out[i] = q_min + #{k : x[i] >= thresholds[i, k]}."""

    thresholds: NDArray[np.int64]  # [m, levels - 1]
    q_min: int

    def forward(self, x: IntArray) -> IntArray:
        codes = np.full(x.shape, self.q_min, dtype=np.int64)
        for threshold in self.thresholds.T:  # [m]
            codes += x >= threshold
        return codes

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        return self.forward(lo), self.forward(hi)

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        rise = self.forward(hi) - self.forward(lo)
        return np.asarray(g * rise / (hi - lo + 1).astype(np.float64))


@dataclass(frozen=True)
class Table:
    """out[i] = table[i, x[i] - lo]."""

    table: NDArray[np.int64]  # [m, n]
    lo: int

    def forward(self, x: IntArray) -> IntArray:
        return np.asarray(self.table[np.arange(x.shape[1]), (x - self.lo).astype(np.int64)])

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        if not lo.size:
            return lo, hi
        op = Lookup(self.table, self.lo)
        range_ = op.out_range(Interval(lo.T, hi.T))  # one channel per position
        return range_.lo.T, range_.hi.T

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        if signed:
            rise = self.forward(hi) - self.forward(lo)
        else:
            least, greatest = self.bounds(lo, hi)
            rise = greatest - least
        return np.asarray(g * rise / (hi - lo + 1).astype(np.float64))


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
            np.add.at(back.T, column, g.T)
        return back


@dataclass(frozen=True)
class Take:
    """out[i] = x[index[i]]."""

    index: NDArray[np.int64]  # [m]

    def forward(self, x: IntArray) -> IntArray:
        return np.asarray(x[:, self.index])

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        return self.forward(lo), self.forward(hi)

    def slopes(self, g: NDArray[Any], lo: IntArray, hi: IntArray, signed: bool) -> NDArray[Any]:
        back = np.zeros(lo.shape)
        np.add.at(back.T, self.index, g.T)
        return back


Step = Sum | Codes | Table | Maximum | Take


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

    Raises: NotCovered for a node kind without steps.
    """

    def __init__(
        self,
        network: Network,
        ranges: Mapping[str, Interval],
        name: str,
        index: tuple[int, ...],
    ) -> None:
        shapes = network.shapes
        target = int(np.ravel_multi_index(index, shapes[name]))
        needed: dict[str, NDArray[np.int64]] = {name: np.array([target])}
        columns: dict[str, tuple[Any, NDArray[np.int64]]] = {}  # node: (its step's data, columns)
        ancestors = []
        for node in reversed(network.nodes):
            if node.name not in needed:
                continue
            ancestors.append(node)
            sources = inputs_of(node)
            data, used = _dependencies(node.op, [shapes[s] for s in sources], needed[node.name])
            columns[node.name] = data, used
            start = 0
            for source in sources:
                stop = start + prod(shapes[source])
                own = used[(used >= start) & (used < stop)] - start
                needed[source] = np.union1d(needed.get(source, own), own)
                start = stop
        self.inputs = needed.get(INPUT, np.zeros(0, dtype=np.int64))
        self.steps: list[tuple[str, tuple[str, ...], Step]] = []
        self._limits: dict[str, tuple[IntArray, IntArray]] = {}
        for node in reversed(ancestors):
            sources = inputs_of(node)
            data, _ = columns[node.name]
            numbers, start = [], 0
            for source in sources:
                numbers.append(needed[source] + start)
                start += prod(shapes[source])
            layout = np.concatenate(numbers)  # which column stands where in the short vector
            lo = np.concatenate([ranges[s].lo.reshape(-1)[needed[s]] for s in sources])
            hi = np.concatenate([ranges[s].hi.reshape(-1)[needed[s]] for s in sources])
            largest = np.maximum(magnitude(lo), magnitude(hi)).astype(object)
            step = _step(node.op, data, layout, largest)
            self.steps.append((node.name, sources, step))
            if node.name != name and isinstance(node.op, SumOp):
                proved, at = ranges[node.name], needed[node.name]
                self._limits[node.name] = proved.lo.reshape(-1)[at], proved.hi.reshape(-1)[at]

    @property
    def entries(self) -> int:
        """Coefficients of all its sums together."""
        return sum(step.matrix.size for *_, step in self.steps if isinstance(step, Sum))

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


def _dependencies(
    op: Op, shapes: Sequence[Shape], positions: NDArray[np.int64]
) -> tuple[Any, NDArray[np.int64]]:
    """What the step of an op is made of, and the operand columns that it reads."""
    if isinstance(op, SumOp):
        rows = sum_rows(op, shapes, positions)
        return rows, np.unique(rows.column[rows.coefficient != 0])
    if isinstance(op, MaxPool2d):
        column = window_columns(op, shapes[0], positions)
        # A padded position repeats one of the window's own: the maximum stays.
        column = np.where(column == PADDING, column.max(axis=1, keepdims=True), column)
        return column, np.unique(column)
    if isinstance(op, (Requantize, Lookup)):
        channel = positions // prod(shapes[0][1:]) if op.channels > 1 else np.zeros_like(positions)
        return (channel, positions), positions
    if isinstance(op, (Flatten, Reshape, Concat)):
        return positions, positions
    raise NotCovered(f"{op.kind}: has no step in a cone")


def _step(op: Op, data: Any, layout: NDArray[np.int64], largest: IntArray) -> Step:
    """The op on short vectors whose entry i is column layout[i], at most largest[i] in size."""
    if isinstance(data, Rows):
        used = data.coefficient != 0
        short = np.where(used, np.searchsorted(layout, data.column), PADDING)
        matrix = Rows(short, data.coefficient, data.constant).dense(len(layout))
        weights = magnitude(matrix).astype(object)
        mass = int(max((weights * largest).sum(axis=1), default=0)) if matrix.size else 0
        constant = data.constant
        if mass + max(map(abs, constant.tolist()), default=0) < 2**63:
            constant = constant.astype(np.int64)
        return Sum(matrix, constant, mass)
    if isinstance(op, MaxPool2d):
        return Maximum(np.searchsorted(layout, data))
    if isinstance(op, Requantize):
        return Codes(op.thresholds[data[0]], op.format.q_min)
    if isinstance(op, Lookup):
        return Table(op.table[data[0]], op.lo)
    return Take(np.searchsorted(layout, data))
