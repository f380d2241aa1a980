"""Inputs of a domain that try to leave the bounds of a network."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.domain import Domain
from refqnn.limits import HELD_VALUES
from refqnn.network import Network

__all__ = ["samples"]

_FEWEST, _MOST = 32, 256  # samples of each kind
_ROUNDS = 8  # of the local search


def samples(
    network: Network, domain: Domain, witnesses: NDArray[np.int64], seed: int
) -> Iterator[NDArray[np.int64]]:
    """Witnesses, corners, random and locally searched inputs, in blocks [n, *input_shape]."""
    rng = np.random.default_rng(seed)
    block = network.traced_block
    for start in range(0, len(witnesses), block):
        yield witnesses[start : start + block]
    n = min(_MOST, max(_FEWEST, HELD_VALUES // sum(map(prod, network.shapes.values()))))
    tried = [domain.sample(n, rng)]
    if domain.is_box:
        lo, hi = domain.hull.lo, domain.hull.hi
        extremes = np.where(rng.integers(2, size=(n, *lo.shape)) > 0, hi, lo)
        tried += [lo[None], hi[None], extremes]
    for codes in tried:
        for start in range(0, len(codes), block):
            yield codes[start : start + block]
    if domain.is_box:
        yield from _searched(network, domain, min(n, block), rng)


def _searched(
    network: Network, domain: Domain, n: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Each of n inputs pushes one accumulator, drawn at random, up or down: a change of a few
    codes stays where it helps."""
    sums = [node.name for node in network.accumulators()]
    if not sums:
        return
    name = [sums[i] for i in rng.integers(len(sums), size=n)]
    place = [int(rng.integers(prod(network.shapes[layer]))) for layer in name]
    sign = np.where(rng.integers(2, size=n) > 0, 1, -1)
    lo, hi = domain.hull.lo, domain.hull.hi
    best, reached = domain.sample(n, rng), None
    for _ in range(_ROUNDS):
        moved = rng.random(best.shape) < max(0.1, 1 / prod(lo.shape))
        ends = np.where(rng.integers(2, size=best.shape) > 0, hi, lo)
        codes = best if reached is None else np.where(moved, ends, best)
        yield codes
        trace = network.trace(codes)
        value = sign * np.array(
            [trace[layer].reshape(n, -1)[i, p] for i, (layer, p) in enumerate(zip(name, place))]
        )
        better = np.ones(n, dtype=bool) if reached is None else value > reached
        reached = value if reached is None else np.where(better, value, reached)
        best = np.where(better.reshape(-1, *(1,) * lo.ndim), codes, best)
