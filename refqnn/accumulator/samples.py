"""What a network does on inputs of a domain that try to leave its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.domain import Domain
from refqnn.limits import HELD_VALUES
from refqnn.network import Network, Trace

__all__ = ["sampled"]

_FEWEST, _MOST = 32, 256  # samples of each kind
_ROUNDS = 6  # of the local search


def sampled(
    network: Network, domain: Domain, witnesses: NDArray[np.int64], seed: int
) -> Iterator[Trace]:
    """Traces of witnesses [m, *input_shape], corners, random and locally searched inputs."""
    rng = np.random.default_rng(seed)
    n = min(_MOST, max(_FEWEST, HELD_VALUES // sum(map(prod, network.shapes.values()))))
    tried = [witnesses, domain.sample(n, rng)]
    if domain.is_box:
        lo, hi = domain.hull.lo, domain.hull.hi
        extremes = np.where(rng.integers(2, size=(n, *lo.shape)) > 0, hi, lo)
        tried += [lo[None], hi[None], extremes]
    codes = np.concatenate(tried)
    block = network.traced_block
    for start in range(0, len(codes), block):
        yield network.trace(codes[start : start + block])
    if domain.is_box:
        yield from _searched(network, domain, min(n, block), rng)


def _searched(
    network: Network, domain: Domain, n: int, rng: np.random.Generator
) -> Iterator[Trace]:
    """Each of n inputs pushes one accumulator, drawn at random, up or down: a change of a few
    codes stays where it helps."""
    sums = [node.name for node in network.accumulators()]
    if not sums:
        return
    name = [sums[i] for i in rng.integers(len(sums), size=n)]
    place = [int(rng.integers(prod(network.shapes[layer]))) for layer in name]
    sign = np.where(rng.integers(2, size=n) > 0, 1, -1)
    lo, hi = domain.hull.lo, domain.hull.hi

    def pushed(trace: Trace) -> NDArray[np.int64]:
        """sign * the accumulator of each input, [n]."""
        values = (
            trace[layer].reshape(n, -1)[i, p] for i, (layer, p) in enumerate(zip(name, place))
        )
        return np.asarray(sign * np.array(list(values)))

    best = domain.sample(n, rng)
    trace = network.trace(best)
    yield trace
    reached = pushed(trace)
    for _ in range(_ROUNDS):
        moved = rng.random(best.shape) < max(0.1, 1 / prod(lo.shape))
        ends = np.where(rng.integers(2, size=best.shape) > 0, hi, lo)
        codes = np.where(moved, ends, best)
        trace = network.trace(codes)
        yield trace
        value = pushed(trace)
        better, reached = value > reached, np.maximum(value, reached)
        best = np.where(better.reshape(-1, *(1,) * lo.ndim), codes, best)
