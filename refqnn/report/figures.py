"""What the page shows as bars: ranges of accumulators, and samples against thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator import Certificate
from refqnn.accumulator.bounds import HI, LO, LayerCertificate, Status
from refqnn.graph import Node, inputs_of
from refqnn.network import Network
from refqnn.ops import Interval
from refqnn.ops.base import IntArray, told_role
from refqnn.ops.requantize import ALWAYS, NEVER
from refqnn.ops.structure import Role, Thresholds

__all__ = ["Histogram", "Ranges", "Sampled", "ranges_of", "sampled"]

_BINS = 48
_NEAREST = 8  # distances from a threshold that have a bar of their own
_LINES = 160  # thresholds that are drawn


@dataclass(frozen=True)
class Bar:
    """A stretch of an axis, in percent of its length."""

    label: str
    lo: int
    hi: int
    left: float
    width: float
    count: int = 0


@dataclass(frozen=True)
class Ranges:
    """The ranges of one layer on one axis.

    Attributes:
        bars: widest first.
        ticks: (value, percent) at 0 and at the ends of the two's complement width.
    """

    layer: str
    bits: int
    neurons: int
    bars: list[Bar]
    ticks: list[Bar]


def ranges_of(certificate: Certificate, seen: dict[str, Interval] | None) -> list[Ranges]:
    """Of each accumulating layer: by the weights alone, proved, known to be reached, observed."""
    return [
        _ranges(name, layer, None if seen is None else seen[name])
        for name, layer in certificate.layers.items()
    ]


def _ranges(name: str, layer: LayerCertificate, seen: Interval | None) -> Ranges:
    proved = layer.range.ends
    spans = {"by weights alone": layer.by_weights, "proved": proved, "reached": _reached(layer)}
    if seen is not None:
        spans["observed"] = seen.ends
    bits = layer.signed_bits
    ends = [end for span in spans.values() if span is not None for end in span]
    lo, hi = min(-(2 ** (bits - 1)), *ends), max(2 ** (bits - 1) - 1, *ends)
    bars = [_bar(label, *span, lo, hi) for label, span in spans.items() if span is not None]
    marks = (-(2 ** (bits - 1)), 0, 2 ** (bits - 1) - 1)
    return Ranges(name, bits, layer.lo.size, bars, [_bar("", at, at, lo, hi) for at in marks])


def _reached(layer: LayerCertificate) -> tuple[int, int] | None:
    """From the least bound to the greatest one that an input is known to reach."""
    reached = layer.status == Status.EXACT
    if not (reached[LO].any() and reached[HI].any()):
        return None
    return int(layer.lo[reached[LO]].min()), int(layer.hi[reached[HI]].max())


def _bar(label: str, lo: int, hi: int, first: int, last: int, count: int = 0) -> Bar:
    length = last - first + 1
    left, width = 100 * (lo - first) / length, 100 * (hi - lo + 1) / length
    return Bar(label, lo, hi, round(left, 3), round(width, 3), count)


# --- samples ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Histogram:
    """The accumulators of one layer on samples, and how far from a threshold they lie.

    Attributes:
        node, accumulator: the layer of thresholds, and the value it reads.
        bars: counts of accumulators, on one axis with `lines`, the thresholds.
        distances: counts by accumulator minus nearest threshold, the ends open.
        ties: accumulators that just reach a threshold; `missed`: that lack one of it.
    """

    node: str
    accumulator: str
    total: int
    bars: list[Bar]
    lines: list[Bar]
    ends: tuple[int, int]
    distances: list[Bar]
    ties: int
    missed: int

    @property
    def highest(self) -> int:
        """The count of the highest bar."""
        return max(bar.count for bar in self.bars)

    @property
    def nearest(self) -> int:
        """The count of the most frequent distance."""
        return max([1, *(bar.count for bar in self.distances)])


@dataclass
class Sampled:
    """What samples showed, by name."""

    samples: int = 0
    seen: dict[str, Interval] = field(default_factory=dict)
    histograms: list[Histogram] = field(default_factory=list)


@dataclass
class _Counts:
    values: Counter[int] = field(default_factory=Counter)
    distances: Counter[int] = field(default_factory=Counter)


def sampled(network: Network, codes: NDArray[np.int64]) -> Sampled:
    """The network on codes [n, *input_shape]: ranges of its sums, histograms at its thresholds."""
    closing = {node.name: rows for node, rows in _thresholds(network)}
    counts = {name: _Counts() for name in closing}
    result = Sampled(len(codes))
    for start in range(0, len(codes), network.traced_block):
        trace = network.trace(codes[start : start + network.traced_block])
        for node in network.accumulators():
            here = Interval.observed(trace[node.name])
            known = result.seen.get(node.name, here)
            both = np.minimum(known.lo, here.lo), np.maximum(known.hi, here.hi)
            result.seen[node.name] = Interval(*both)
        for name, rows in closing.items():
            _count(counts[name], trace[inputs_of(network[name])[0]], rows)
    result.histograms = [
        _histogram(name, inputs_of(network[name])[0], counts[name], rows)
        for name, rows in closing.items()
    ]
    return result


def _thresholds(network: Network) -> Iterator[tuple[Node, NDArray[np.int64]]]:
    """The nodes that compare with thresholds, and those that something may reach, [channels, k]."""
    for node in network:
        if told_role(node.op) is not Role.ELEMENTWISE:
            continue
        channels = network.shapes[node.name][0]
        functions = node.op.functions(np.arange(channels))
        if isinstance(functions, Thresholds):
            yield node, functions.values


def _count(counts: _Counts, acc: IntArray, rows: NDArray[np.int64]) -> None:
    values, times = np.unique(acc, return_counts=True)
    counts.values.update(dict(zip(values.tolist(), times.tolist())))
    for channel, row in zip(np.moveaxis(acc, 1, 0), rows):
        values, times = np.unique(channel, return_counts=True)
        for distance, count in zip(_distances(values, row), times.tolist()):
            counts.distances[distance] += count


def _distances(values: IntArray, row: NDArray[np.int64]) -> list[int]:
    """Of each value to the nearest of the thresholds, the one above it where two are as near."""
    thresholds = [int(t) for t in row[_finite(row)]]
    if not thresholds:
        return []
    after = np.searchsorted(thresholds, values, side="right").tolist()
    return [
        min((v - t for t in thresholds[max(i - 1, 0) : i + 1]), key=lambda d: (abs(d), d))
        for v, i in zip(values.tolist(), after)
    ]


def _finite(thresholds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Those that an accumulator may lie on either side of."""
    return np.asarray((thresholds > ALWAYS) & (thresholds < NEVER))


def _histogram(name: str, accumulator: str, counts: _Counts, rows: NDArray[np.int64]) -> Histogram:
    lo, hi = min(counts.values), max(counts.values)
    step = -(-(hi - lo + 1) // _BINS)
    binned: Counter[int] = Counter()
    for value, count in counts.values.items():
        binned[(value - lo) // step] += count
    last = lo + step * (max(binned) + 1) - 1
    bars = [
        _bar("", lo + step * i, lo + step * (i + 1) - 1, lo, last, count)
        for i, count in sorted(binned.items())
    ]
    inside = np.unique(rows[_finite(rows) & (rows >= lo) & (rows <= last)]).tolist()
    drawn = inside[:: -(-len(inside) // _LINES) or 1]
    lines = [_bar("", t, t, lo, last) for t in drawn]
    return Histogram(
        node=name,
        accumulator=accumulator,
        total=sum(counts.values.values()),
        bars=bars,
        lines=lines,
        ends=(lo, last),
        distances=list(_near(counts.distances)),
        ties=counts.distances[0],
        missed=counts.distances[-1],
    )


def _near(distances: Counter[int]) -> Iterable[Bar]:
    """A bar for each distance from -8 to 8; the first and the last take all beyond."""
    clipped: Counter[int] = Counter()
    for distance, count in distances.items():
        clipped[max(-_NEAREST, min(_NEAREST, distance))] += count
    for at in range(-_NEAREST, _NEAREST + 1) if distances else ():
        beyond = {-_NEAREST: f"≤ {at}", _NEAREST: f"≥ {at}"}
        label = beyond.get(at, str(at))
        yield _bar(label, at, at, -_NEAREST, _NEAREST, clipped[at])
