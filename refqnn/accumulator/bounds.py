"""Bounds of values: how they were proved, what is known of their tightness, who reaches them.

The first axis of length 2 of `proof`, `status` and `witness` is (lo, hi).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from refqnn.formats import signed_bits, span_bits
from refqnn.network import Network
from refqnn.ops.base import Ends, IntArray, Interval

__all__ = [
    "HI",
    "LO",
    "NO_WITNESS",
    "Bounds",
    "LayerCertificate",
    "Progress",
    "Proof",
    "Status",
    "Witnesses",
]

LO, HI = 0, 1  # index of the first axis of proof, status and witness
NO_WITNESS = -1

Progress = Callable[[str, int, int], None]  # what, done, total


class Proof(IntEnum):
    """How a bound was proved."""

    INTERVAL = 0  # the node's exact rule, applied to the bounds of its inputs
    EXHAUSTIVE = 1  # every input of the domain was computed
    BOX_SEARCH = 2  # the domain was split into boxes whose intervals were enough
    SOLVER = 3  # a constraint solver refuted a tighter bound

    @property
    def label(self) -> str:
        """The name in files and tables: interval, exhaustive, box-search, solver."""
        return self.name.lower().replace("_", "-")


class Status(IntEnum):
    """What is known of a bound's tightness; see the module."""

    EXACT = 0
    UPPER = 1
    UNKNOWN = 2

    @property
    def label(self) -> str:
        """The name in files and tables: exact, upper, unknown."""
        return self.name.lower()


@dataclass(frozen=True, eq=False)
class LayerCertificate:
    """The bounds of one node.

    Attributes:
        name, kind: of the node; "input" for the network's input.
        lo, hi: proved bounds, integers [*shape].
        proof, status: `Proof` and `Status` of each bound, int8 [2, *shape], (lo, hi) first.
        witness: for each bound a row of `Certificate.witnesses` that reaches it, or -1,
            int64 [2, *shape].
        mass: M = sum |w| max|x| + |b|, integers [*shape]; None for nodes that do not sum.
        datatype: (lo, hi) that follows from the formats of weights and inputs and the fan-in alone;
            None for nodes that do not sum.
        by_weights: (lo, hi) over the layer for the known weights and any code of the input formats;
            None for nodes that do not sum.
        by_interval: (lo, hi) over the layer by interval rules alone, from the domain on; None for
            nodes that do not sum.
    """

    name: str
    kind: str
    lo: IntArray
    hi: IntArray
    proof: NDArray[np.int8]
    status: NDArray[np.int8]
    witness: NDArray[np.int64]
    mass: IntArray | None = None
    datatype: Ends | None = None
    by_weights: Ends | None = None
    by_interval: Ends | None = None

    @property
    def range(self) -> Interval:
        """lo and hi together."""
        return Interval(self.lo, self.hi)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Are both bounds reached?  [*shape]"""
        return np.asarray((self.status == Status.EXACT).all(axis=0))

    @property
    def signed_bits(self) -> int:
        """Two's complement width that holds every neuron."""
        return signed_bits(int(self.lo.min()), int(self.hi.max()))

    @property
    def span_bits(self) -> int:
        """Width that holds every neuron after a constant of its own is added to it."""
        spans = self.hi.astype(object) - self.lo.astype(object)
        return span_bits(0, int(spans.max()))

    @property
    def datatype_bits(self) -> int | None:
        """Two's complement width that the formats and the fan-in ask for."""
        return None if self.datatype is None else signed_bits(*self.datatype)

    @property
    def weight_bits(self) -> int | None:
        """Two's complement width for the known weights and any code of the input formats."""
        return None if self.by_weights is None else signed_bits(*self.by_weights)

    @property
    def interval_bits(self) -> int | None:
        """Two's complement width by interval rules alone."""
        return None if self.by_interval is None else signed_bits(*self.by_interval)

    @property
    def reached_bits(self) -> int | None:
        """Two's complement width that bounds known to be reached ask for, None if there is none.

        Where it equals `signed_bits`, the width of the layer is exact.
        """
        reached = self.status == Status.EXACT
        values = [*self.lo[reached[LO]].tolist(), *self.hi[reached[HI]].tolist()]
        return signed_bits(min(values), max(values)) if values else None

    @property
    def channels(self) -> Interval:
        """Bounds of each channel over all its positions, [channels]."""
        channels = self.lo.shape[0]
        lo = self.lo.reshape(channels, -1).min(axis=1)
        return Interval(lo, self.hi.reshape(channels, -1).max(axis=1))


@dataclass
class Bounds:
    """What a `LayerCertificate` says of one node, still open to change."""

    lo: IntArray
    hi: IntArray
    proof: NDArray[np.int8]
    status: NDArray[np.int8]
    witness: NDArray[np.int64]

    @classmethod
    def proved(cls, range_: Interval, proof: Proof, status: NDArray[np.int8]) -> Bounds:
        shape = (2, *range_.shape)
        return cls(
            range_.lo,
            range_.hi,
            np.full(shape, proof, dtype=np.int8),
            status,
            np.full(shape, NO_WITNESS, dtype=np.int64),
        )

    @property
    def range(self) -> Interval:
        return Interval(self.lo, self.hi)

    def end(self, end: int) -> IntArray:
        return self.lo if end == LO else self.hi

    def set_end(self, end: int, index: tuple[int, ...], value: int) -> None:
        """A tighter bound, which int64 may not hold where it held the looser one."""
        array = self.end(end)
        if not -(2**63) <= value < 2**63:
            array = array.astype(object)
        array[index] = value
        self.lo, self.hi = (array, self.hi) if end == LO else (self.lo, array)


class Witnesses:
    """A pool of inputs without repetition."""

    def __init__(self, network: Network) -> None:
        self._shape = network.input_shape
        self._rows: list[NDArray[np.int64]] = []
        self._numbers: dict[bytes, int] = {}

    def add(self, codes: NDArray[np.int64]) -> int:
        """The number of the input codes [*input_shape]."""
        row = np.ascontiguousarray(codes, dtype=np.int64)
        key = row.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._rows)
            self._rows.append(row)
        return self._numbers[key]

    @property
    def array(self) -> NDArray[np.int64]:
        """[m, *input_shape]"""
        if not self._rows:
            return np.zeros((0, *self._shape), dtype=np.int64)
        return np.stack(self._rows)
