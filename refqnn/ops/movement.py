"""Structure of the kinds that only move values: Flatten, Reshape, Concat, Gather."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.ops.base import Interval, Op, Shape
from refqnn.ops.structure import PADDING, Classes, Mask, Role

__all__ = ["Movement"]


class Movement(Op):
    """Each output is an input value or the constant `fill`, as `sources` says."""

    role = Role.RELABEL
    fill: int = 0

    def out_range(self, *ranges: Interval) -> Interval:
        """The ends, moved: exact."""
        lo = self.forward(*(x.lo[None] for x in ranges))
        hi = self.forward(*(x.hi[None] for x in ranges))
        return Interval(lo[0], hi[0])

    def moved(self, *x: NDArray[Any], fill: int) -> NDArray[Any]:
        """Values [n, *shape] of any dtype where the outputs take them, [n, *out_shape]."""
        n = len(x[0])
        padding = np.full((n, 1), fill)  # PADDING is the last
        flat = np.concatenate([*(v.reshape(n, prod(v.shape[1:])) for v in x), padding], axis=1)
        return np.asarray(flat[:, self.sources(*(v.shape[1:] for v in x))])

    def needs(self, live: Mask, *shapes: Shape) -> list[Mask]:
        sizes = [prod(shape) for shape in shapes]
        read = np.zeros(sum(sizes) + 1, dtype=bool)  # PADDING is the last
        read[self.sources(*shapes)[live]] = True
        parts = np.split(read[:-1], np.cumsum(sizes)[:-1])
        return [part.reshape(shape[0], -1).any(axis=1) for part, shape in zip(parts, shapes)]

    def kin(self, live: Sequence[Mask], *shapes: Shape) -> Mask:
        each = [np.repeat(mask, prod(shape[1:])) for mask, shape in zip(live, shapes)]
        exists = np.concatenate([*each, [False]])[self.sources(*shapes)]
        return np.asarray(exists.reshape(len(exists), -1).any(axis=1))

    def keys(self, classes: Sequence[Classes], *shapes: Shape) -> list[Hashable] | None:
        sources = self.sources(*shapes)
        of = _by_position([np.repeat(c, prod(s[1:])) for c, s in zip(classes, shapes)])
        place = _by_position([np.tile(np.arange(prod(s[1:])), s[0]) for s in shapes])
        shape, rows = sources.shape[1:], sources.reshape(len(sources), -1)
        return [("moved", self.fill, shape, of[r].tobytes(), place[r].tobytes()) for r in rows]


def _by_position(operands: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Numbers for every position of the operands, and `PADDING` for the one outside."""
    return np.concatenate([*operands, [PADDING]]).astype(np.int64)
