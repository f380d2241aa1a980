"""A program drawn from above: who stands in which row, in which order, and where.

Rows are the generations of the graph.  An edge that passes over a row takes a place in it; places
are ordered by the mean of their neighbours, sweep by sweep (Sugiyama, Tagawa and Toda, 1981), and
then moved below one another as far as the order allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from refqnn.display import safe
from refqnn.inspect import Row

__all__ = ["Box", "Drawing", "Edge", "drawn"]

WIDTH, HEIGHT = 236, 58  # of a box, pixels
_GAP, _LANE, _RISE = 28, 20, 34  # between boxes, beside an edge, between rows
_MARGIN = 6
_SWEEPS = 12
_LETTERS = 26  # of a name

Place = str | tuple[str, str, int]  # a node, or where an edge passes a row


@dataclass(frozen=True)
class Box:
    """A value of the program: its top left corner, and three lines of text."""

    x: float
    y: float
    row: Row
    name: str
    role: str


@dataclass(frozen=True)
class Edge:
    """From one value to a node that reads it, as the path of an SVG."""

    source: str
    target: str
    path: str


@dataclass(frozen=True)
class Drawing:
    """Boxes and edges, in pixels."""

    boxes: list[Box]
    edges: list[Edge]
    width: float
    height: float


def drawn(rows: Sequence[Row], roles: dict[str, str]) -> Drawing:
    """The drawing of a network.

    Args:
        rows: of `refqnn.inspect.describe`.
        roles: of each node, for its colour.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(row.node for row in rows)
    graph.add_edges_from((name, row.node) for row in rows for name in row.inputs)
    layers, chains = _with_lanes(graph)
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    layers = _ordered(layers, links)
    centre = _placed(layers, links)
    top = {place: _MARGIN + i * (HEIGHT + _RISE) for i, row in enumerate(layers) for place in row}
    left = min(centre[p] - _half(p) for p in centre) - _MARGIN
    boxes = [
        Box(
            x=round(centre[row.node] - left - WIDTH / 2, 1),
            y=top[row.node],
            row=row,
            name=shortened(row.node, _LETTERS),
            role=roles.get(row.node, "input"),
        )
        for row in rows
    ]
    edges = [
        Edge(source, target, _path([(centre[p] - left, top[p], isinstance(p, str)) for p in chain]))
        for (source, target), chain in chains.items()
    ]
    right = max(centre[p] + _half(p) for p in centre) - left + _MARGIN
    return Drawing(boxes, edges, round(right, 1), len(layers) * (HEIGHT + _RISE) - _RISE + 12)


def shortened(text: str, letters: int) -> str:
    """Printable, and at most so many letters.

    >>> shortened("a_very_long_name", 8)
    'a_very_…'
    """
    printable = safe(text)
    return printable if len(printable) <= letters else printable[: letters - 1] + "…"


def _with_lanes(
    graph: nx.DiGraph,
) -> tuple[list[list[Place]], dict[tuple[str, str], list[Place]]]:
    """The rows, and for each edge the places that it runs through."""
    layers: list[list[Place]] = [list(row) for row in nx.topological_generations(graph)]
    rank = {place: i for i, row in enumerate(layers) for place in row}
    chains: dict[tuple[str, str], list[Place]] = {}
    for source, target in graph.edges:
        lanes: list[Place] = [(source, target, i) for i in range(rank[source] + 1, rank[target])]
        for i, lane in enumerate(lanes, rank[source] + 1):
            layers[i].append(lane)
        chains[source, target] = [source, *lanes, target]
    return layers, chains


def _ordered(layers: list[list[Place]], links: Iterable[tuple[Place, Place]]) -> list[list[Place]]:
    """The rows in the order that crossed fewest edges."""
    links = list(links)
    best, fewest = layers, _crossings(layers, links)
    for sweep in range(_SWEEPS):
        near = _neighbours(links, down=sweep % 2 == 0)
        layers = [list(row) for row in layers]
        for i in range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers))):
            at = {place: j for row in layers for j, place in enumerate(row)}
            old = {place: j for j, place in enumerate(layers[i])}
            layers[i].sort(key=lambda p: _mean([at[q] for q in near.get(p, [])], old[p]))
        crossed = _crossings(layers, links)
        if crossed < fewest:
            best, fewest = layers, crossed
    return best


def _crossings(layers: list[list[Place]], links: list[tuple[Place, Place]]) -> int:
    at = {place: j for row in layers for j, place in enumerate(row)}
    rank = {place: i for i, row in enumerate(layers) for place in row}
    by_rank: dict[int, list[tuple[int, int]]] = {}
    for a, b in links:
        by_rank.setdefault(rank[a], []).append((at[a], at[b]))
    return sum(
        (a - c) * (b - d) < 0
        for pairs in by_rank.values()
        for i, (a, b) in enumerate(pairs)
        for c, d in pairs[:i]
    )


def _neighbours(links: Iterable[tuple[Place, Place]], *, down: bool) -> dict[Place, list[Place]]:
    """Of each place those in the row above (down), or below."""
    near: dict[Place, list[Place]] = {}
    for a, b in links:
        near.setdefault(*((b, []) if down else (a, []))).append(a if down else b)
    return near


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _half(place: Place) -> float:
    return WIDTH / 2 if isinstance(place, str) else 1.0


def _placed(layers: list[list[Place]], links: list[tuple[Place, Place]]) -> dict[Place, float]:
    """The centre of each place: below and above its neighbours, where its row has room."""
    centre = {place: 0.0 for row in layers for place in row}
    both = [_neighbours(links, down=down) for down in (True, False)]
    for sweep in range(_SWEEPS):
        near = both[sweep % 2]
        for row in layers if sweep % 2 == 0 else reversed(layers):
            wanted = [_mean([centre[q] for q in near.get(p, [])], centre[p]) for p in row]
            centre.update(zip(row, _apart(row, wanted)))
    return centre


def _apart(row: Sequence[Place], wanted: Sequence[float]) -> list[float]:
    """Centres in this order, as near as they can be to what is wanted: the first pass pushes to
    the right, the second one shares what that moved out over both sides."""
    gaps = [0.0] + [_half(a) + _half(b) + _between(a, b) for a, b in pairwise(row)]
    right: list[float] = []
    for x, gap in zip(wanted, gaps):
        right.append(max(x, right[-1] + gap) if right else x)
    left: list[float] = []
    for x, gap in zip(reversed(wanted), [0.0, *reversed(gaps[1:])]):
        left.append(min(x, left[-1] - gap) if left else x)
    return [(a + b) / 2 for a, b in zip(right, reversed(left))]


def _between(a: Place, b: Place) -> float:
    return _GAP if isinstance(a, str) and isinstance(b, str) else _LANE


def _path(points: list[tuple[float, float, bool]]) -> str:
    """Curves from below the first box through the lanes to above the last."""
    (x, y, _), *rest = points
    y += HEIGHT
    path = f"M{x:.1f} {y:.1f}"
    for x_next, y_next, is_box in rest:
        middle = (y + y_next) / 2
        path += f"C{x:.1f} {middle:.1f} {x_next:.1f} {middle:.1f} {x_next:.1f} {y_next:.1f}"
        x, y = x_next, y_next
        if not is_box:
            y += HEIGHT
            path += f"V{y:.1f}"
    return path
