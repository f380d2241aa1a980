"""The facts by which analyses read a node without knowing its kind.

Positions of a value are numbered in row-major order; the operands of a node with several inputs
stand one behind the other, as `Concat` would put them.

    Role          what an output is made of
    Rows          sums: constant + sum of coefficient * input
    Thresholds    monotone functions of one value, as steps
    Monotone      monotone functions of one value, computed
    Table         functions of one value, entry by entry
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray

__all__ = [
    "PADDING",
    "Classes",
    "Functions",
    "Mask",
    "Monotone",
    "Role",
    "Rows",
    "Table",
    "Thresholds",
    "extremes",
]

PADDING = -1  # the number of a position that lies outside every operand

Mask = NDArray[np.bool_]  # one entry per channel
Classes = Sequence[int]  # one number per channel; equal numbers stand for equal values


class Role(Enum):
    """What each output value of a node is."""

    ELEMENTWISE = "a function of the input at the same place, one function per channel"
    RELABEL = "one input value, or a constant"
    JOIN = "one value of one of several inputs, or a constant"
    WINDOW = "the greatest of some input values"
    SUM = "a constant plus a sum of coefficients times input values"


@dataclass(frozen=True, eq=False)
class Rows:
    """m sums: out[i] = constant[i] + sum_t coefficient[i, t] * x[column[i, t]].

    Attributes:
        column: positions of the operands, int64 [m, terms]; `PADDING` terms have coefficient 0.
        coefficient: int64 [m, terms].
        constant: bias and padding, integers [m].
    """

    column: NDArray[np.int64]
    coefficient: NDArray[np.int64]
    constant: IntArray

    def dense(self, columns: int) -> NDArray[np.int64]:
        """The coefficients as a matrix [m, columns]."""
        matrix = np.zeros((len(self.column), columns), dtype=np.int64)
        row = np.broadcast_to(np.arange(len(self.column))[:, None], self.column.shape)
        inside = self.column != PADDING
        np.add.at(matrix, (row[inside], self.column[inside]), self.coefficient[inside])
        return matrix


@dataclass(frozen=True, eq=False)
class Thresholds:
    """m functions out[i] = q_min + #{k : x[i] >= values[i, k]}.

    Attributes:
        values: int64 [m, levels - 1], nondecreasing rows.
    """

    values: NDArray[np.int64]
    q_min: int

    def __call__(self, x: IntArray) -> NDArray[np.int64]:
        """Values [n, m] of x [n, m]."""
        codes = np.full(x.shape, self.q_min, dtype=np.int64)
        for threshold in self.values.T:  # [m]
            codes += x >= threshold
        return codes

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        """Least and greatest value between lo and hi [n, m]: the ends, for it is monotone."""
        return self(lo), self(hi)


@dataclass(frozen=True, eq=False)
class Monotone:
    """m functions that no larger input makes smaller.

    Attributes:
        function: values [n, m] of x [n, m].
    """

    function: Callable[[IntArray], NDArray[np.int64]]

    def __call__(self, x: IntArray) -> NDArray[np.int64]:
        """Values [n, m] of x [n, m]."""
        return self.function(x)

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        """Least and greatest value between lo and hi [n, m]: the ends."""
        return self(lo), self(hi)


@dataclass(frozen=True, eq=False)
class Table:
    """m functions out[i] = values[i, x[i] - lo].

    Attributes:
        values: int64 [m, entries].
    """

    values: NDArray[np.int64]
    lo: int

    def __call__(self, x: IntArray) -> NDArray[np.int64]:
        """Values [n, m] of x [n, m], every x inside the table."""
        column = (x - self.lo).astype(np.int64, copy=False)
        return np.asarray(self.values[np.arange(x.shape[1]), column])

    def bounds(self, lo: IntArray, hi: IntArray) -> tuple[IntArray, IntArray]:
        """Least and greatest entry between lo and hi, each [n, m]: exact."""
        return extremes(self.values, np.arange(len(self.values)), lo - self.lo, hi - self.lo)


Functions = Thresholds | Monotone | Table


def extremes(
    rows: NDArray[np.int64], row: NDArray[np.int64], first: IntArray, last: IntArray
) -> tuple[IntArray, IntArray]:
    """Least and greatest of rows[row, first], ..., rows[row, last], elementwise.

    Args:
        rows: [m, entries].
        row: broadcasts to the shape of first and last.

    A range [i, j] is covered by two blocks of 2**e columns, 2**e <= j - i + 1 < 2**(e + 1), one at
    each end; the minima of all blocks of 2**(e + 1) columns come from those of 2**e.
    """
    first = first.astype(np.int64)
    length = last.astype(np.int64) - first + 1
    row = np.broadcast_to(row, first.shape)
    low, high = np.empty_like(first), np.empty_like(first)
    least = greatest = rows  # over blocks of `size` columns, [m, entries - size + 1]
    size = 1
    while size <= length.max(initial=0):
        here = (size <= length) & (length < 2 * size)
        r, i = row[here], first[here]
        j = i + length[here] - size
        low[here] = np.minimum(least[r, i], least[r, j])
        high[here] = np.maximum(greatest[r, i], greatest[r, j])
        least = np.minimum(least[:, :-size], least[:, size:])
        greatest = np.maximum(greatest[:, :-size], greatest[:, size:])
        size *= 2
    return low, high
