"""Domain: the inputs that a statement is about.

    box     every input with lo <= x <= hi, elementwise (by default the whole input format)
    rows    a finite set of inputs, listed

Points of a box are numbered in mixed radix, the last input running fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import as_integers
from refqnn.limits import at_a_time
from refqnn.network import Network
from refqnn.ops.base import Interval

__all__ = ["Domain"]


@dataclass(frozen=True, eq=False)
class Domain:
    """A box or a finite set of input codes of one network.

    Make it with `Domain.box`, `Domain.rows` or `Domain.per_feature`; `certify` also takes None (all
    codes of the input format), an `Interval` (a box) or an integer array [n, *input_shape] (rows).

    Attributes:
        hull: the least box around the domain, [*input_shape].
        listed: the rows [n, *input_shape], or None for a box.
        step: distance of neighbouring codes, 2 for bipolar inputs.
    """

    hull: Interval
    listed: NDArray[np.int64] | None = None
    step: int = 1

    @classmethod
    def box(cls, network: Network, lo: ArrayLike, hi: ArrayLike) -> Domain:
        """Every input with lo <= x <= hi; both broadcast to the input shape.

        Raises: InvalidType, ShapeMismatch, InvalidArgument (lo > hi), OutOfRange (not codes).
        """
        ends = []
        for name, value in (("lo", lo), ("hi", hi)):
            codes = network.input_format.check(as_integers(value, name), name)
            try:
                ends.append(np.broadcast_to(codes, network.input_shape).copy())
            except ValueError:
                expected = f"a shape that broadcasts to {network.input_shape}"
                raise ShapeMismatch(mismatch(name, f"shape {codes.shape}", expected)) from None
        return cls(Interval(*ends), step=network.input_format.step)

    @classmethod
    def rows(cls, network: Network, codes: ArrayLike) -> Domain:
        """The inputs listed in `codes` [n, *input_shape], n >= 1.  Raises: as Network.forward."""
        listed = network.check_codes(codes).copy()  # that may be the caller's own array
        return cls(Interval.observed(listed), listed, network.input_format.step)

    @classmethod
    def per_feature(cls, network: Network, ranges: Sequence[tuple[int, int]]) -> Domain:
        """A box from one (lo, hi) pair per input, in row-major order of the input shape."""
        pairs = as_integers(list(ranges), "ranges")
        size = prod(network.input_shape)
        if pairs.shape != (size, 2):
            raise ShapeMismatch(mismatch("ranges", f"shape {pairs.shape}", f"({size}, 2)"))
        lo, hi = pairs.T.reshape(2, *network.input_shape)
        return cls.box(network, lo, hi)

    @classmethod
    def of(cls, network: Network, domain: object = None) -> Domain:
        """What `certify` understands as a domain of this network.

        Raises: InvalidType, and as the other constructors.
        """
        if domain is None:
            fmt = network.input_format
            return cls.box(network, fmt.q_min, fmt.q_max)
        if isinstance(domain, Interval):
            return cls.box(network, domain.lo, domain.hi)
        if isinstance(domain, Domain):
            if domain.listed is not None:
                return cls.rows(network, domain.listed)
            return cls.box(network, domain.hull.lo, domain.hull.hi)
        if isinstance(domain, np.ndarray):
            return cls.rows(network, domain)
        expected = "None, a Domain, an Interval, or an integer array of rows"
        raise InvalidType(mismatch("domain", repr(domain), expected))

    @property
    def is_box(self) -> bool:
        return self.listed is None

    @property
    def size(self) -> int:
        """The number of points (rows count as often as they are listed)."""
        if self.listed is not None:
            return len(self.listed)
        return prod(int(n) for n in self._radices.flat)

    @property
    def _radices(self) -> NDArray[np.int64]:
        """Codes per input, [*input_shape]."""
        return np.asarray((self.hull.hi - self.hull.lo) // self.step + 1)

    def contains(self, codes: NDArray[Any]) -> NDArray[np.bool_]:
        """For each sample of codes [n, *input_shape]: does it lie in the domain?  [n]"""
        if self.listed is not None:
            known = {row.tobytes() for row in self.listed}
            contiguous = np.ascontiguousarray(codes, dtype=np.int64)
            return np.array([row.tobytes() in known for row in contiguous], dtype=bool)
        flat = codes.reshape(len(codes), -1)
        lo, hi = self.hull.lo.reshape(-1), self.hull.hi.reshape(-1)
        inside = (flat >= lo) & (flat <= hi) & ((flat - lo) % self.step == 0)
        return np.asarray(inside.all(axis=1))

    def same_as(self, other: Domain) -> bool:
        """Do both hold the same inputs (rows: in the same order)?"""
        hulls = zip((self.hull.lo, self.hull.hi), (other.hull.lo, other.hull.hi))
        if self.step != other.step or not all(np.array_equal(a, b) for a, b in hulls):
            return False
        if self.listed is None or other.listed is None:
            return self.listed is other.listed
        return np.array_equal(self.listed, other.listed)

    def points(self, start: int, stop: int) -> NDArray[np.int64]:
        """Points number start, ..., stop - 1, [stop - start, *input_shape]."""
        if not 0 <= start <= stop <= self.size:
            got = f"[{start}, {stop})"
            raise InvalidArgument(mismatch("points", got, f"a range inside [0, {self.size})"))
        return self.at(np.arange(start, stop, dtype=np.int64 if stop < 2**63 else object))

    def at(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """The points with these numbers, each in [0, size): [n, *input_shape]."""
        if self.listed is not None:
            return np.asarray(self.listed[numbers])
        digits = []
        for radix in self._radices.reshape(-1)[::-1].tolist():
            digits.append(numbers % radix)
            numbers = numbers // radix
        steps = np.stack(digits[::-1], axis=1).astype(np.int64)  # [n, inputs]
        return np.asarray(steps.reshape(-1, *self.hull.shape) * self.step + self.hull.lo)

    def chunks(self) -> Iterator[NDArray[np.int64]]:
        """All points, in blocks of bounded memory."""
        block = at_a_time(prod(self.hull.shape))
        for start in range(0, self.size, block):
            yield self.points(start, min(start + block, self.size))

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """n points drawn at random, [n, *input_shape]."""
        if self.listed is not None:
            return np.asarray(self.listed[rng.integers(len(self.listed), size=n)])
        steps = rng.integers(self._radices, size=(n, *self.hull.shape))
        return np.asarray(steps * self.step + self.hull.lo)

    def __str__(self) -> str:
        if self.listed is not None:
            return f"{len(self.listed)} listed inputs"
        lo, hi = self.hull.lo, self.hull.hi
        if (lo == lo.flat[0]).all() and (hi == hi.flat[0]).all():
            return f"every input in [{lo.flat[0]}, {hi.flat[0]}]^{lo.size}"
        return f"every input of a box of {lo.size} ranges"
