"""Lookup: y[n, c, ...] = table[c, x[n, c, ...] - lo]: any function on a range of integers.

For activations that are not monotone; a monotone one is a `Requantize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidType, OutOfRange, mismatch
from refqnn.formats import IntFormat
from refqnn.ops.base import (
    Ends,
    IntArray,
    Interval,
    RowOfEach,
    Shape,
    channel_index,
    integer,
    integer_parameter,
    rows_of,
)
from refqnn.ops.structure import Table, extremes

__all__ = ["Lookup"]


@dataclass(frozen=True, eq=False)
class Lookup(RowOfEach):
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

    def out_range(self, *ranges: Interval) -> Interval:
        """Least and greatest entry between the ends, at every position: exact.

        Raises: OutOfRange where the input may leave the table.
        """
        (x,) = ranges
        self._check(x)
        row = channel_index(self.channels, x.lo.ndim)
        return Interval(*extremes(self.table, row, x.lo - self.lo, x.hi - self.lo))

    def prepare(self, *ranges: Interval) -> bool:
        """Checks that the table holds the whole range.  Raises: OutOfRange."""
        self._check(*ranges)
        return True

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, channels, ...]
        if len(codes):
            self._plan(plan, x)
        column = (codes - self.lo).astype(np.int64, copy=False)
        values: IntArray = self.table[channel_index(self.channels, codes.ndim - 1), column]
        return values

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        if self.format is not None:
            return super().datatype(ends, *shapes)
        return int(self.table.min()), int(self.table.max())

    def functions(self, channels: NDArray[np.int64]) -> Table:
        return Table(rows_of(self.table, channels), self.lo)

    def _check(self, x: Interval) -> None:
        lo, hi = int(x.lo.min()), int(x.hi.max())
        if lo < self.lo or hi > self.hi:
            got = f"values in [{lo}, {hi}]"
            raise OutOfRange(mismatch("input of Lookup", got, f"[{self.lo}, {self.hi}]"))
