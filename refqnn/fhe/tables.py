"""From a function of an accumulator to the cheapest exact table lookups.

A neuron is a table f[0], f[1], ..., f[S] over its shifted accumulator u = (acc - lo) / step, where
lo is proved.  Only its *change points* matter, the u with f[u] != f[u - 1]:

    f[u] = f[0] + sum of jump[p] over the change points p <= u

An encrypted lookup pays for the width of its argument (2.3 times per bit), far more than for
removing low bits.  Four exact ways to use fewer bits, for all neurons of a layer at once:

    drop    All change points of a neuron agree modulo 2**r: with an offset o that moves them to
            multiples of 2**r, f is a function of (u + o) >> r.  r = 0 is the full table.
    split   The change points are shared out among several `drop`s whose results are added:
            half_even over a power-of-two scale has two classes modulo 2**(r + 1), of even and of
            odd codes.
    carry   At most one change point strictly inside each block of 2**r values, upwards.  With
            u + o = 2**r * high + low, f = base[high] + jump * [low + shift[high] >= 2**r]:
            two tables of the high bits and one of r + 1 bits.  For arbitrary thresholds.
    window  All change points strictly inside one block of 2**w values: a code that saturates long
            before its accumulator does.  With u + o = 2**w * high + 2**r * mid + rest,
            f = inside[mid + 2**(w - r) * (high == block)] + outside[high]: the rest is removed as
            by `drop`, two tables take the high bits and one the w - r + 1 bits of the middle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from refqnn.fhe import prices

__all__ = [
    "MAX_BITS",
    "Carry",
    "Drop",
    "Lowering",
    "Rows",
    "Split",
    "Window",
    "alternatives",
    "grouped",
    "price_of_row",
]

MAX_BITS = 16  # widest accumulator that enters a table: the compiler's own limit

_WIDEST_CARRY = 7  # bits of the carry's table; wider ones cost more than they save
_WIDEST_WINDOW = 5  # bits of the middle
_MOST_PARTS = 4  # of a split
_MOST_CLASSES = 6  # of rows, before they are grouped

IntVector = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The tables of the neurons (or channels) of one layer.

    Args:
        values: one vector f[0..S_c] per row; S_c may differ.
        counts: how many accumulators use each row (positions of a channel).
    """

    values: list[IntVector]
    counts: list[int]

    @cached_property
    def change_points(self) -> list[IntVector]:
        """The u >= 1 with f[u] != f[u - 1], ascending, one vector per row."""
        return [np.flatnonzero(np.diff(row)) + 1 for row in self.values]

    @property
    def spans(self) -> list[int]:
        """S_c, one per row."""
        return [len(row) - 1 for row in self.values]

    @property
    def total(self) -> int:
        """How many accumulators there are."""
        return sum(self.counts)


class _Tables(ABC):
    """One exact way to compute a layer's tables."""

    @property
    @abstractmethod
    def stages(self) -> list[tuple[int, int]]:
        """(width, low bits removed before the lookup) of each table, per accumulator."""

    @property
    def price(self) -> float:
        """Per accumulator, in the optimizer's units."""
        return sum(prices.drop(*stage) for stage in self.stages)

    @property
    def lookups(self) -> dict[int, int]:
        """Lookups per accumulator by their width."""
        return prices.merged(*(prices.lookups(*stage) for stage in self.stages))

    @property
    def removed_bits(self) -> int:
        """Low bits removed per accumulator."""
        return sum(shift for _, shift in self.stages)


@dataclass(frozen=True)
class Drop(_Tables):
    """f = table[(stretch * u + offset) >> shift], one row per neuron.

    Attributes:
        bits: width of stretch * u + offset.
        shift: low bits removed.
        stretch: 1, or a power of two that brings a finer neuron to the layer's common shift.
        tables: [rows, 2**(bits - shift)].
    """

    bits: int
    shift: int
    stretch: IntVector
    offset: IntVector
    tables: NDArray[np.int64]

    @property
    def stages(self) -> list[tuple[int, int]]:
        return [(self.bits, self.shift)]


@dataclass(frozen=True)
class Split(_Tables):
    """f = sum of the parts."""

    parts: tuple[Drop, ...]

    @property
    def stages(self) -> list[tuple[int, int]]:
        return [stage for part in self.parts for stage in part.stages]


@dataclass(frozen=True)
class Carry(_Tables):
    """f = base[high] + carry[low + shift_of[high]], u + offset = 2**shift * high + low.

    Attributes:
        base, shift_of: [rows, 2**(bits - shift)].
        carry: [rows, 2**(shift + 1)].
    """

    bits: int
    shift: int
    offset: IntVector
    base: NDArray[np.int64]
    shift_of: NDArray[np.int64]
    carry: NDArray[np.int64]

    @property
    def stages(self) -> list[tuple[int, int]]:
        return [(self.bits, self.shift), (self.bits - self.shift, 0), (self.shift + 1, 0)]


@dataclass(frozen=True)
class Window(_Tables):
    """f = inside[mid + marked[high]] + outside[high], u + offset = (high, mid, rest) in bits.

    Attributes:
        bits: width of u + offset.
        shift: low bits that no change point needs, the rest.
        size: bits of mid and rest together.
        marked: [rows, 2**(bits - size)], 2**(size - shift) at the block of the change points.
        inside: [rows, 2**(size - shift + 1)], zero where the block is another.
        outside: [rows, 2**(bits - size)].
    """

    bits: int
    shift: int
    size: int
    offset: IntVector
    marked: NDArray[np.int64]
    inside: NDArray[np.int64]
    outside: NDArray[np.int64]

    @property
    def stages(self) -> list[tuple[int, int]]:
        middle = self.size - self.shift + 1
        return [(self.bits, self.size), (self.bits - self.size, 0), (middle, 0)]


Lowering = Drop | Split | Carry | Window


def alternatives(rows: Rows) -> list[Lowering]:
    """Every exact lowering of a layer that we know, cheapest first; empty when none fits MAX_BITS.

    >>> half_up = Rows([np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3])], [1])
    >>> [f.shift for f in alternatives(half_up) if isinstance(f, Drop)]
    [1, 0, 2]
    >>> two_removed = alternatives(half_up)[2]
    >>> two_removed.bits, two_removed.offset.tolist(), two_removed.tables.tolist()
    (4, [2], [[0, 1, 2, 3]])
    """
    if max(rows.spans).bit_length() > MAX_BITS:
        return []
    found: list[Lowering] = [*_drops(rows), *_splits(rows), *_carries(rows), *_windows(rows)]
    return sorted((f for f in found if f.price < float("inf")), key=lambda f: f.price)


def price_of_row(row: IntVector) -> float:
    """The price of the cheapest table of a row by itself; infinite where none fits."""
    return _price_of_row(np.asarray(row, dtype=np.int64).tobytes())


@lru_cache(maxsize=512)  # one compilation asks for the same rows several times
def _price_of_row(row: bytes) -> float:
    found = alternatives(Rows([np.frombuffer(row, dtype=np.int64)], [1]))
    return found[0].price if found else float("inf")


def grouped(rows: Rows) -> list[tuple[IntVector, Lowering]]:
    """A partition of the rows, each part with its own lowering, at the least predicted price.

    One wide neuron need not make the tables of all others wide; but each part has tensor operations
    of its own, and usually keys of its own.  Parts are runs of rows in the order of their price.

    Returns: (row indices, lowering) of each part; empty when a row fits no table.
    """
    own = [price_of_row(row) for row in rows.values]
    if float("inf") in own:
        return []
    classes = [np.flatnonzero(np.array(own) == price) for price in sorted(set(own))]
    while len(classes) > _MOST_CLASSES:  # join the smallest with its neighbour above
        i = min(range(len(classes) - 1), key=lambda i: len(classes[i]))
        classes[i : i + 2] = [np.concatenate(classes[i : i + 2])]

    best: list[tuple[float, list[tuple[IntVector, Lowering]]]] = [(0.0, [])]
    for stop in range(1, len(classes) + 1):
        options = []
        for start in range(stop):
            index = np.sort(np.concatenate(classes[start:stop]))
            part = Rows([rows.values[i] for i in index], [rows.counts[i] for i in index])
            found = alternatives(part)
            if found and best[start][0] < float("inf"):
                own_price = part.total * found[0].price + prices.part(len(found[0].lookups))
                options.append((best[start][0] + own_price, [*best[start][1], (index, found[0])]))
        best.append(min(options, key=lambda o: o[0], default=(float("inf"), [])))
    return best[-1][1]


# --- drop -------------------------------------------------------------------------------------


def _drops(rows: Rows) -> Iterator[Drop]:
    own = [_common_shift(points) for points in rows.change_points]
    several = [r for r, points in zip(own, rows.change_points) if len(points) > 1]
    coarsest = max(several) if several else max(rows.spans).bit_length() - 1
    for shift in range(max(coarsest, 0) + 1):
        found = _drop(rows.values, rows.change_points, own, shift)
        if found is not None:
            yield found


def _common_shift(points: IntVector) -> int:
    """The greatest r, at most MAX_BITS, modulo 2**r of which all points agree."""
    if len(points) < 2:
        return MAX_BITS
    gcd = int(np.gcd.reduce(np.diff(points)))
    return min((gcd & -gcd).bit_length() - 1, MAX_BITS)


def _drop(
    values: list[IntVector], points: list[IntVector], own: list[int], shift: int
) -> Drop | None:
    """All rows with `shift` low bits removed, the finer ones stretched; None beyond MAX_BITS."""
    stretch = np.array([1 << max(0, shift - r) for r in own], dtype=np.int64)
    first = np.array([p[0] if len(p) else 0 for p in points], dtype=np.int64)
    offset = -(stretch * first) % (1 << shift)
    top = [int(m) * (len(f) - 1) + int(o) for m, f, o in zip(stretch, values, offset)]
    bits = max(max(top).bit_length(), shift + 1)
    if bits > MAX_BITS:
        return None
    argument = np.arange(1 << (bits - shift), dtype=np.int64) << shift  # first of each block
    tables = np.stack(
        [
            # The last u of a block decides: change points are at the starts of blocks.
            row[np.clip((argument + (1 << shift) - 1 - o) // m, 0, len(row) - 1)]
            for row, m, o in zip(values, stretch, offset)
        ]
    )
    return Drop(bits, shift, stretch, offset, tables)


# --- split ------------------------------------------------------------------------------------


def _splits(rows: Rows) -> Iterator[Split]:
    longest = max(len(points) for points in rows.change_points)
    for shift in range(1, max(rows.spans).bit_length()):
        classes = [_by_residue(points, 1 << shift) for points in rows.change_points]
        parts = max(len(c) for c in classes)
        if 2 <= parts <= min(longest, _MOST_PARTS):
            found = [_part(rows, classes, i, shift) for i in range(parts)]
            drops = tuple(part for part in found if part is not None)
            if len(drops) == parts:
                yield Split(drops)


def _by_residue(points: IntVector, modulus: int) -> list[IntVector]:
    return [points[points % modulus == r] for r in np.unique(points % modulus)]


def _part(rows: Rows, classes: list[list[IntVector]], i: int, shift: int) -> Drop | None:
    """The drop that carries the i-th class of every row; the first also carries f[0]."""
    values, points = [], []
    for row, of_row in zip(rows.values, classes):
        mine = of_row[i] if i < len(of_row) else np.empty(0, dtype=np.int64)
        jumps = np.zeros(len(row), dtype=np.int64)
        jumps[mine] = row[mine] - row[mine - 1]
        values.append(np.cumsum(jumps) + (row[0] if i == 0 else 0))
        points.append(mine)
    return _drop(values, points, [MAX_BITS if not len(p) else shift for p in points], shift)


# --- carry ------------------------------------------------------------------------------------


def _carries(rows: Rows) -> Iterator[Carry]:
    for shift in range(1, min(max(rows.spans).bit_length(), _WIDEST_CARRY)):
        offsets = [_carry_offset(row, p, shift) for row, p in zip(rows.values, rows.change_points)]
        if any(o is None for o in offsets):
            return  # a wider block holds no fewer change points
        offset = np.array(offsets, dtype=np.int64)
        found = _carry(rows, offset, shift)
        if found is not None:
            yield found


def _carry_offset(row: IntVector, points: IntVector, shift: int) -> int | None:
    """The least offset with at most one change point inside each block, all of one jump upwards."""
    size = 1 << shift
    for offset in range(size):
        shifted = points + offset
        inside = points[shifted % size != 0]
        blocks = (inside + offset) >> shift
        jumps = row[inside] - row[inside - 1]
        jumps_agree = (jumps == jumps[:1]).all() and (jumps > 0).all()
        if jumps_agree and (np.diff(blocks) > 0).all():
            return offset
    return None


def _carry(rows: Rows, offset: IntVector, shift: int) -> Carry | None:
    size = 1 << shift
    top = [span + int(o) for span, o in zip(rows.spans, offset)]
    bits = max(max(top).bit_length(), shift + 1)
    if bits > MAX_BITS:
        return None
    n_rows, n_blocks = len(rows.values), 1 << (bits - shift)
    base = np.zeros((n_rows, n_blocks), dtype=np.int64)
    shift_of = np.zeros((n_rows, n_blocks), dtype=np.int64)
    carry = np.zeros((n_rows, 2 * size), dtype=np.int64)
    starts = np.arange(n_blocks, dtype=np.int64) << shift
    for c, (row, points, o) in enumerate(zip(rows.values, rows.change_points, offset)):
        base[c] = row[np.clip(starts - o, 0, len(row) - 1)]
        inside = points[(points + o) % size != 0]
        shift_of[c, (inside + o) >> shift] = size - (inside + o) % size
        if len(inside):
            carry[c, size:] = row[inside[0]] - row[inside[0] - 1]
    return Carry(bits, shift, offset, base, shift_of, carry)


# --- window -----------------------------------------------------------------------------------


def _windows(rows: Rows) -> Iterator[Window]:
    several = [p for p in rows.change_points if len(p) > 1]
    if not several:
        return  # one table of few bits serves a single change point
    shift = min(_common_shift(points) for points in several)
    widest = max(int(points[-1] - points[0]) for points in several)
    first = max(widest.bit_length(), shift + 1)
    for size in range(first, min(max(rows.spans).bit_length(), shift + _WIDEST_WINDOW)):
        found = _window(rows, shift, size)
        if found is not None:
            yield found


def _window(rows: Rows, shift: int, size: int) -> Window | None:
    """The least offsets that bring all change points of a row into one block, none at its start."""
    length, step = 1 << size, 1 << shift
    first = np.array([p[0] if len(p) else 0 for p in rows.change_points], dtype=np.int64)
    last = np.array([p[-1] if len(p) else 0 for p in rows.change_points], dtype=np.int64)
    latest = (length - 1 - int((last - first).max())) // step
    if latest < 1:
        return None
    starts = step * np.arange(1, latest + 1)  # where the first change point may lie in its block
    offset = ((starts - first[:, None]) % length).min(axis=1)
    block = (first + offset) >> size
    bits = max(int((np.array(rows.spans) + offset).max()).bit_length(), size + 1)
    if bits > MAX_BITS:
        return None
    n_blocks, n_middles = 1 << (bits - size), 1 << (size - shift)
    blocks = np.arange(n_blocks)
    marked = (blocks == block[:, None]) * n_middles
    inside = np.zeros((len(rows.values), 2 * n_middles), dtype=np.int64)
    outside = np.zeros((len(rows.values), n_blocks), dtype=np.int64)
    for c, (row, o, b) in enumerate(zip(rows.values, offset, block)):
        # Change points are at the starts of steps: the last u of a step decides.
        ends = (b << size) + (np.arange(n_middles) << shift) + step - 1 - o
        inside[c, n_middles:] = row[np.clip(ends, 0, len(row) - 1)]
        outside[c] = np.where(blocks < b, row[0], np.where(blocks > b, row[-1], 0))
    return Window(bits, shift, size, offset, marked, inside, outside)
