"""The node kinds told a second time, for `recheck` alone: what each output reads, plainly.

The operands of a node are laid end to end, in row-major order, with one entry more behind them, the
code of its padding.  An output is then a sum of coefficients times entries and a bias, the greatest
of some entries, a function of one, or a softmax of some.  Of `refqnn.ops` this takes the parameters
of the nodes and nothing that computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import CertificateError, mismatch
from refqnn.formats import IntFormat
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Requantize,
    Rescale,
    Reshape,
    Softmax,
    SumPool2d,
)
from refqnn.ops.base import IntArray, Op, Shape
from refqnn.rounding import Rounding

__all__ = [
    "MONOTONE",
    "READERS",
    "SUMS",
    "Ends",
    "Reads",
    "by_formats",
    "code_outside",
    "largest",
    "range_of",
]

Positions = NDArray[np.int64]
Ends = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Reads:
    """What m outputs of a node read.

    Attributes:
        columns: entries of the operands laid end to end, int64 [m, terms].
        coefficient, bias: of a sum, int64 [m, terms] and [m]; None for what does not sum.
    """

    columns: Positions
    coefficient: Positions | None = None
    bias: Positions | None = None

    def used(self) -> list[Positions]:
        """For each output the columns that matter to it."""
        if self.coefficient is None:
            return list(self.columns)
        return [row[c != 0] for row, c in zip(self.columns, self.coefficient)]


# Arguments: op, shapes of the operands, shape of the output, flat positions of m outputs.
Reader = Callable[[Any, Sequence[Shape], Shape, Positions], Reads]


def _linear(op: Linear, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    columns = np.broadcast_to(np.arange(op.weight.shape[1]), (len(at), op.weight.shape[1]))
    return Reads(columns, op.weight[at], _bias(op, at))


def _conv(op: Any, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    k, position = np.divmod(at, prod(out[1:]))
    window = _window(op, op.dilation, shapes[0], out, position)[:, None]  # [m, 1, kernel]
    terms = op.weight.shape[1]  # channels of a group
    channel = (k // (out[0] // op.groups) * terms)[:, None, None] + np.arange(terms)[:, None]
    columns = np.where(window < 0, prod(shapes[0]), channel * prod(shapes[0][1:]) + window)
    return Reads(columns.reshape(len(at), -1), op.weight[k].reshape(len(at), -1), _bias(op, k))


def _conv_transpose(
    op: ConvTranspose2d, shapes: Sequence[Shape], out: Shape, at: Positions
) -> Reads:
    k, position = np.divmod(at, prod(out[1:]))
    of_group = op.weight.shape[0] // op.groups  # channels of the input
    group, member = np.divmod(k, op.weight.shape[1])
    by_group = op.weight.reshape(op.groups, of_group, op.weight.shape[1], -1)
    weight = by_group[group, :, member]  # [m, channels, kernel]
    window = _met(op, shapes[0], out, position)[:, None]  # [m, 1, kernel]
    channel = (group * of_group)[:, None, None] + np.arange(of_group)[:, None]
    columns = np.where(window < 0, prod(shapes[0]), channel * prod(shapes[0][1:]) + window)
    return Reads(columns.reshape(len(at), -1), weight.reshape(len(at), -1), _bias(op, k))


def _gather(op: Gather, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    columns = op.index.ravel()[at][:, None]
    return Reads(np.where(columns < 0, prod(shapes[0]), columns))


def _sum_pool(op: SumPool2d, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    columns = _pooled(op, shapes[0], out, at)
    return _ones(np.where(columns < 0, prod(shapes[0]), columns))


def _max_pool(op: MaxPool2d, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    columns = _pooled(op, shapes[0], out, at)
    # A position outside repeats one inside: the maximum stays.
    return Reads(np.where(columns < 0, columns.max(axis=1, keepdims=True), columns))


def _global_sum(op: GlobalSumPool, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    size = prod(shapes[0][1:])
    return _ones(at[:, None] * size + np.arange(size))


def _add(op: Add, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    columns = at[:, None] + prod(out) * np.arange(len(shapes))
    return Reads(columns, np.broadcast_to(op.multipliers or 1, columns.shape), np.zeros_like(at))


def _in_place(op: Op, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    return Reads(at[:, None])


def _softmax(op: Softmax, shapes: Sequence[Shape], out: Shape, at: Positions) -> Reads:
    size = prod(out[1:])
    return Reads(at[:, None] % size + size * np.arange(out[0]))


def _ones(columns: Positions) -> Reads:
    return Reads(columns, np.ones_like(columns), np.zeros(len(columns), dtype=np.int64))


def _bias(op: Any, channels: Positions) -> Positions:
    return np.zeros_like(channels) if op.bias is None else op.bias.take(channels)


def _pooled(op: Any, shape: Shape, out: Shape, at: Positions) -> Positions:
    channel, position = np.divmod(at, prod(out[1:]))
    window = _window(op, (1, 1), shape, out, position)
    return np.where(window < 0, -1, channel[:, None] * prod(shape[1:]) + window)


def _window(op: Any, dilation: Shape, shape: Shape, out: Shape, at: Positions) -> Positions:
    """The entries of one channel in each window, -1 for those outside, [m, prod(kernel)]."""
    place, inside = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=bool)
    positions = np.unravel_index(at, out[1:])
    offsets = np.unravel_index(np.arange(prod(op.kernel)), op.kernel)
    for axis, size in enumerate(shape[1:]):
        first = positions[axis] * op.stride[axis] - op.padding[axis][0]
        entry = first[:, None] + offsets[axis] * dilation[axis]
        inside = inside & (entry >= 0) & (entry < size)
        place = place * size + entry
    return np.where(inside, place, -1)


def _met(op: ConvTranspose2d, shape: Shape, out: Shape, at: Positions) -> Positions:
    """The entries of one channel that reach some outputs through each place of the kernel, -1 where
    there is none, [m, prod(kernel)]."""
    place, inside = np.zeros((1, 1), dtype=np.int64), np.ones((1, 1), dtype=bool)
    positions = np.unravel_index(at, out[1:])
    offsets = np.unravel_index(np.arange(prod(op.kernel)), op.kernel)
    for axis, size in enumerate(shape[1:]):
        last = positions[axis][:, None] + op.padding[axis][0]
        entry, between = np.divmod(last - offsets[axis] * op.dilation[axis], op.stride[axis])
        inside = inside & (between == 0) & (entry >= 0) & (entry < size)
        place = place * size + entry
    return np.where(inside, place, -1)


def code_outside(op: Op) -> int:
    """What stands behind the operands, for positions outside them."""
    return int(getattr(op, "pad_code", getattr(op, "fill", 0)))


SUMS: dict[type[Op], Reader] = {
    Linear: _linear,
    Conv1d: _conv,
    Conv2d: _conv,
    ConvTranspose2d: _conv_transpose,
    SumPool2d: _sum_pool,
    GlobalSumPool: _global_sum,
    Add: _add,
}
MONOTONE: dict[type[Op], Reader] = {  # of the one entry that each output reads
    Requantize: _in_place,
    Rescale: _in_place,
    Flatten: _in_place,
    Reshape: _in_place,
    Concat: _in_place,
    Gather: _gather,
}
READERS: dict[type[Op], Reader] = {
    **SUMS,
    **MONOTONE,
    MaxPool2d: _max_pool,
    Lookup: _in_place,
    Softmax: _softmax,
}


def range_of(
    op: Op, rows: Positions, reads: Reads, lo: IntArray, hi: IntArray
) -> tuple[IntArray, ...]:
    """Bounds of m outputs for some boxes of operands.

    Args:
        rows: the channel of each output, [m], for tables and thresholds of several rows.
        lo, hi: integers [boxes, columns], the padding's code behind them.

    Returns: lo and hi, [boxes, m]; of a sum also its absolute mass over the first box, [m].

    Raises: CertificateError where a value may leave a table.
    """
    if reads.coefficient is not None:
        return _range_of_sum(reads, lo, hi)
    lo, hi = lo[:, reads.columns].max(axis=2), hi[:, reads.columns].max(axis=2)
    if isinstance(op, Requantize):
        thresholds, first = op.thresholds.tolist(), op.format.q_min
        code = np.vectorize(lambda row, v: first + bisect_right(thresholds[row], v), [np.int64])
        return code(rows, lo), code(rows, hi)
    if isinstance(op, Rescale):
        code = np.vectorize(partial(_rescaled, op), [np.int64])
        return code(rows, lo), code(rows, hi)
    if isinstance(op, Softmax):  # every code, whatever comes in
        return np.full_like(lo, op.format.q_min), np.full_like(hi, op.format.q_max)
    if isinstance(op, Lookup):
        if lo.min() < op.lo or hi.max() >= op.lo + op.table.shape[1]:
            got = f"bounds in [{lo.min()}, {hi.max()}]"
            raise CertificateError(mismatch("input of Lookup", got, "those of its table"))

        @cache
        def entries(row: int, start: int, stop: int) -> Ends:
            part = op.table[row, start:stop]
            return int(part.min()), int(part.max())

        least, greatest = np.vectorize(entries, [np.int64] * 2)(rows, lo - op.lo, hi - op.lo + 1)
        return least, greatest
    return lo, hi


def _rescaled(op: Rescale, row: int, acc: int) -> int:
    """The code of one accumulator."""
    numbers = (op.multiplier, op.shift, op.offset, op.zero_point, op.first_shift)
    m, shift, offset, zero_point, first = (int(v[row % len(v)]) for v in numbers)
    value = (int(acc) + offset) * m
    if op.first_rounding is not None:
        value, shift = _divided(value, first, op.first_rounding), shift - first
    lo, hi = op.clip[row % len(op.clip)].tolist()
    return int(min(max(_divided(value, shift, op.rounding) + zero_point, lo), hi))


def _divided(value: int, shift: int, mode: Rounding) -> int:
    """value / 2**shift, rounded: what to add before an arithmetic shift to the right."""
    if shift == 0:
        return value
    size, half, negative = 1 << shift, 1 << (shift - 1), value < 0
    added = {
        Rounding.FLOOR: 0,
        Rounding.CEIL: size - 1,
        Rounding.TOWARD_ZERO: (size - 1) * negative,
        Rounding.AWAY_FROM_ZERO: (size - 1) * (not negative),
        Rounding.HALF_UP: half,
        Rounding.HALF_DOWN: half - 1,
        Rounding.HALF_AWAY: half - negative,
        Rounding.HALF_TOWARD_ZERO: half - (not negative),
        Rounding.HALF_EVEN: half - 1 + (value >> shift & 1),
    }
    return (value + added[mode]) >> shift


def _range_of_sum(reads: Reads, lo: IntArray, hi: IntArray) -> tuple[IntArray, ...]:
    c: IntArray = np.asarray(reads.coefficient)
    bias: IntArray = np.asarray(reads.bias)
    most = c.shape[1] * max(1, largest(c)) * max(largest(lo), largest(hi)) + largest(bias)
    dtype = object if most >= 2**63 else np.int64
    c, bias, lo, hi = (values.astype(dtype) for values in (c, bias, lo, hi))
    lo, hi, up = lo[:, reads.columns], hi[:, reads.columns], c > 0
    mass = (abs(c) * np.maximum(abs(lo[0]), abs(hi[0]))).sum(axis=1) + abs(bias)
    least = (c * np.where(up, lo, hi)).sum(axis=2) + bias
    return least, (c * np.where(up, hi, lo)).sum(axis=2) + bias, mass


def largest(values: IntArray) -> int:
    """The greatest absolute value."""
    return max(abs(int(values.min())), abs(int(values.max())))


def by_formats(op: Op, shapes: Sequence[Shape], operands: Sequence[Ends | None]) -> Ends | None:
    """The ends of a node that formats, fan-in and the storage of its weights allow.

    Args:
        operands: these ends of the operands; None where they are not known.

    Returns: None where a kind is unknown, or what stands before it.
    """
    if isinstance(fmt := getattr(op, "format", None), IntFormat):
        return fmt.q_min, fmt.q_max
    if isinstance(op, Lookup):
        return int(op.table.min()), int(op.table.max())
    known = [ends for ends in operands if ends is not None]
    if len(known) < len(operands):
        return None
    if type(op) not in READERS:  # a user's own, which is taken at its word
        return op.datatype(known, *shapes)
    if isinstance(op, Add):
        products = [
            (m * lo, m * hi) for m, (lo, hi) in zip(op.multipliers or [1] * len(known), known)
        ]
        return sum(map(min, products)), sum(map(max, products))
    codes = {end for ends in known for end in ends}
    if isinstance(op, ConvTranspose2d) or (isinstance(op, Gather) and op.index.min() < 0):
        codes.add(code_outside(op))
    if type(op) not in SUMS:
        return min(codes), max(codes)
    if np.any(getattr(op, "padding", 0)):
        codes.add(code_outside(op))
    if not isinstance(op, (Linear, Conv1d, Conv2d, ConvTranspose2d)):
        terms = prod(getattr(op, "kernel", shapes[0][1:]))
        return terms * min(codes), terms * max(codes)
    terms = prod(op.weight.shape[1:])
    if isinstance(op, ConvTranspose2d):
        terms = op.weight.shape[0] // op.groups * prod(op.kernel)
    every = [terms * w * x for w in _stored(op.weight) for x in codes]
    bias = [0] if op.bias is None else op.bias.tolist()
    return min(every) + min(bias), max(every) + max(bias)


def _stored(weight: Positions) -> Ends:
    """The ends of the narrowest format that holds the weights, unsigned if it can be."""
    lo, hi = int(weight.min()), int(weight.max())
    if lo >= 0:
        return 0, 2 ** max(1, hi.bit_length()) - 1
    size = 2 ** max(hi.bit_length(), (-lo - 1).bit_length())
    return -size, size - 1
