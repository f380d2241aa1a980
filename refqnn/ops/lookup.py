"""Lookup: y[n, c, ...] = table[c, x[n, c, ...] - lo]: any function on a range of integers.

For activations that are not monotone; a monotone one is a `Requantize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import IntFormat
from refqnn.ops.base import IntArray, Interval, Op, Shape, channel_index, integer, integer_parameter

__all__ = ["Lookup"]


@dataclass(frozen=True, eq=False)
class Lookup(Op):
    """A table of integers.  The channel axis is the first of a sample.

    Args:
        table: integers [channels or 1, n]; column i is the value at lo + i.
        lo: the integer of the first column.
        format: the codes that come out, or None when the values are not codes.

    Raises: InvalidType, ShapeMismatch, OutOfRange.

    >>> square = Lookup([[4, 1, 0, 1, 4]], lo=-2)
    >>> square.forward(np.array([[-2], [1]])).tolist()
    [[4], [1]]
    >>> square.out_range(Interval(np.array([-1]), np.array([2])))
    Interval(lo=array([0]), hi=array([4]))
    """

    kind: ClassVar[str] = "Lookup"

    table: NDArray[np.int64]
    lo: int
    format: IntFormat | None = None

    def __post_init__(self) -> None:
        table = integer_parameter(self.table, "table", ndim=2)
        if self.format is not None:
            if not isinstance(self.format, IntFormat):
                raise InvalidType(mismatch("format", repr(self.format), "an IntFormat or None"))
            self.format.check(table, "table")
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "lo", integer(self.lo, "lo"))

    @property
    def hi(self) -> int:
        """The integer of the last column."""
        return self.lo + int(self.table.shape[1]) - 1

    @property
    def channels(self) -> int:
        """Rows of the table; 1 means one row for every channel."""
        return int(self.table.shape[0])

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if self.channels != 1 and (not shape or shape[0] != self.channels):
            expected = f"{self.channels} channels first"
            raise ShapeMismatch(mismatch("input of Lookup", f"shape {shape}", expected))
        return shape

    def out_range(self, *ranges: Interval) -> Interval:
        """Least and greatest entry between the ends, at every position: exact.

        A range [i, j] is covered by two blocks of 2**e columns, 2**e <= j - i + 1 < 2**(e + 1), one
        at each end; the minima of all blocks of 2**(e + 1) columns come from those of 2**e.

        Raises: OutOfRange where the input may leave the table.
        """
        (x,) = ranges
        self._check(x)
        first = (x.lo - self.lo).astype(np.int64)  # [*shape], columns
        length = (x.hi - x.lo).astype(np.int64) + 1
        row = np.broadcast_to(channel_index(self.channels, first.ndim), first.shape)
        lo, hi = np.empty_like(first), np.empty_like(first)
        least = greatest = self.table  # over blocks of `size` columns, [channels, n - size + 1]
        size = 1
        while True:
            here = (size <= length) & (length < 2 * size)
            r, i = row[here], first[here]
            j = i + length[here] - size
            lo[here] = np.minimum(least[r, i], least[r, j])
            hi[here] = np.maximum(greatest[r, i], greatest[r, j])
            if 2 * size > np.max(length):
                return Interval(lo, hi)
            least = np.minimum(least[:, :-size], least[:, size:])
            greatest = np.maximum(greatest[:, :-size], greatest[:, size:])
            size *= 2

    def prepare(self, *ranges: Interval) -> bool:
        """Checks that the table holds the whole range.  Raises: OutOfRange."""
        self._check(*ranges)
        return True

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, channels, ...]
        self._plan(plan, x)
        column = (codes - self.lo).astype(np.int64, copy=False)
        values: IntArray = self.table[channel_index(self.channels, codes.ndim - 1), column]
        return values

    def _check(self, x: Interval) -> None:
        lo, hi = int(x.lo.min()), int(x.hi.max())
        if lo < self.lo or hi > self.hi:
            got = f"values in [{lo}, {hi}]"
            raise OutOfRange(mismatch("input of Lookup", got, f"[{self.lo}, {self.hi}]"))
