"""The rungs of the ladder that need no search: intervals, corners, enumeration, formats.

interval      each node's exact rule, in topological order
exhaustive    every input of a small domain
formats       what the fan-in and the storage of the weights alone allow
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import HI, LO, NO_WITNESS, Bounds, Progress, Proof, Status, Witnesses
from refqnn.accumulator.domain import Domain
from refqnn.graph import INPUT, Node, inputs_of, propagated
from refqnn.network import Network
from refqnn.ops.base import Ends, IntArray, Interval, is_sum, told_role
from refqnn.ops.structure import PADDING, Role

__all__ = [
    "corner",
    "exhaustive_bounds",
    "format_ranges",
    "full_ranges",
    "interval_bounds",
    "witnesses_from_data",
]

Refine = Callable[[Node, "dict[str, Bounds]"], None]


# --- the interval rung --------------------------------------------------------------------------


def interval_bounds(
    network: Network, domain: Domain, refine: Refine | None = None
) -> dict[str, Bounds]:
    """The rule of each node applied to the bounds of its inputs, in topological order.

    Args:
        refine: may tighten the bounds of an accumulating node before they are used.
    """
    hull = domain.hull
    reached = np.full((2, *hull.shape), Status.EXACT, dtype=np.int8)
    bounds = {INPUT: Bounds.proved(hull, Proof.INTERVAL, reached)}
    for node in network.nodes:
        operands = [bounds[name] for name in inputs_of(node)]
        range_ = node.op.out_range(*(b.range for b in operands))
        status = interval_status(network, domain, node, operands, range_)
        bounds[node.name] = Bounds.proved(range_, Proof.INTERVAL, status)
        if refine is not None and is_sum(node.op):
            refine(node, bounds)
    return bounds


def _independent(network: Network, domain: Domain, name: str) -> bool:
    """Is every combination of lower and upper ends of a value reached?

    So it is of the input of a box; monotone elementwise nodes, and those that only move each value
    to one place, keep the property.
    """
    while name != INPUT and domain.is_box:
        op, name = network[name].op, inputs_of(network[name])[0]
        role = told_role(op)
        if role is Role.RELABEL:
            sources = op.sources(network.shapes[name])
            moved = sources[sources != PADDING]
            if len(np.unique(moved)) < moved.size:
                return False
        elif role is not Role.ELEMENTWISE or not op.monotone:
            return False
    return domain.is_box


def interval_status(
    network: Network, domain: Domain, node: Node, operands: list[Bounds], range_: Interval
) -> NDArray[np.int8]:
    """Which ends of an interval are known to be reached, [2, *shape].

    Over independent ends, every sum and every maximum reaches its ends, one neuron at a time: each
    input position stands once in it.  Monotone elementwise nodes and moved values pass on what
    their inputs reach.  A bound with lo = hi is reached by anything.
    """
    op = node.op
    known = np.stack([range_.lo == range_.hi] * 2)
    reached = [(b.status == Status.EXACT).reshape(2, -1) for b in operands]
    role = told_role(op)
    if role is Role.ELEMENTWISE and op.monotone:
        known |= reached[0].reshape(known.shape)
    elif role in (Role.RELABEL, Role.JOIN):
        always = np.ones((2, 1), dtype=bool)  # PADDING is the last
        sources = op.sources(*(network.shapes[name] for name in inputs_of(node)))
        known |= np.concatenate([*reached, always], axis=1)[:, sources]
    elif len(operands) == 1 and role in (Role.SUM, Role.WINDOW):
        known |= _independent(network, domain, inputs_of(node)[0])
    return np.where(known, Status.EXACT, Status.UPPER).astype(np.int8)


def corner(
    network: Network, domain: Domain, name: str, index: tuple[int, ...], end: int
) -> NDArray[np.int64] | None:
    """The input that reaches an end which `interval_status` calls reached, or None.

    hi takes x_hi where the weight is positive and x_lo elsewhere; lo is mirrored.
    """
    hull = domain.hull
    if not domain.is_box:
        return None
    position = int(np.ravel_multi_index(index, network.shapes[name]))
    while not _independent(network, domain, name):
        op, sources = network[name].op, inputs_of(network[name])
        shapes = [network.shapes[source] for source in sources]
        role = told_role(op)
        if role in (Role.RELABEL, Role.JOIN):
            position = int(op.sources(*shapes).flat[position])
            if position == PADDING:
                return hull.lo
            starts = np.cumsum([0, *(prod(shape) for shape in shapes)])
            operand = int(np.searchsorted(starts, position, side="right")) - 1
            name, position = sources[operand], position - int(starts[operand])
        elif role is Role.ELEMENTWISE and op.monotone:
            name = sources[0]
        elif len(sources) > 1 or not _independent(network, domain, sources[0]):
            return None
        elif role is Role.SUM:
            weight = op.rows(shapes, np.array([position])).dense(prod(shapes[0]))[0]
            return _at_ends(network, domain, sources[0], weight > 0 if end == HI else weight < 0)
        elif role is Role.WINDOW:
            name = sources[0]
        else:
            return None
    return _at_ends(network, domain, name, np.full(prod(network.shapes[name]), end == HI))


def _at_ends(
    network: Network, domain: Domain, name: str, upward: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The input that puts every position of a value of independent ends at one of its ends."""
    while name != INPUT:
        node = network[name]
        (name,) = inputs_of(node)
        if told_role(node.op) is Role.RELABEL:
            sources = node.op.sources(network.shapes[name]).ravel()
            before = np.zeros(prod(network.shapes[name]), dtype=bool)
            before[sources[sources != PADDING]] = upward[sources != PADDING]
            upward = before
    hull = domain.hull
    return np.asarray(np.where(upward.reshape(hull.shape), hull.hi, hull.lo))


# --- the exhaustive rung ------------------------------------------------------------------------


def exhaustive_bounds(
    network: Network, domain: Domain, progress: Progress | None = None
) -> tuple[dict[str, Bounds], dict[str, NDArray[np.int64]]]:
    """Least and greatest value of each node over every point of the domain, and where they are.

    Returns: the bounds, and for each accumulating node the numbers of the points that reach them,
        [2, *shape].
    """
    lo: dict[str, IntArray] = {}
    hi: dict[str, IntArray] = {}
    where: dict[str, NDArray[np.int64]] = {}
    summing = {node.name for node in network.accumulators()}
    done, block = 0, network.traced_block
    for chunk in domain.chunks():
        for start in range(0, len(chunk), block):
            for name, values in network.trace(chunk[start : start + block]).items():
                ends = values.min(axis=0), values.max(axis=0)
                first = name not in lo
                if name in summing:
                    at = np.stack([values.argmin(axis=0), values.argmax(axis=0)]) + done
                    if first:
                        where[name] = at
                    else:
                        better = np.stack([ends[0] < lo[name], ends[1] > hi[name]])
                        where[name] = np.where(better, at, where[name])
                lo[name] = ends[0] if first else np.minimum(lo[name], ends[0])
                hi[name] = ends[1] if first else np.maximum(hi[name], ends[1])
            done += len(chunk[start : start + block])
            if progress is not None:
                progress("enumerating inputs", done, domain.size)
    bounds = {}
    for name in lo:
        status = np.full((2, *lo[name].shape), Status.EXACT, dtype=np.int8)
        bounds[name] = Bounds.proved(Interval(lo[name], hi[name]), Proof.EXHAUSTIVE, status)
    return bounds, where


# --- witnesses from data ------------------------------------------------------------------------


def witnesses_from_data(
    network: Network, bounds: dict[str, Bounds], data: NDArray[np.int64], pool: Witnesses
) -> None:
    """Mark the bounds of accumulators that a sample reaches."""
    block = network.traced_block
    for start in range(0, len(data), block):
        samples = data[start : start + block]
        trace = network.trace(samples)
        for node in network.accumulators():
            b, values = bounds[node.name], trace[node.name]
            for end, best in ((LO, values.argmin(axis=0)), (HI, values.argmax(axis=0))):
                reached = np.take_along_axis(values, best[None], axis=0)[0] == b.end(end)
                for index in np.argwhere(reached & (b.witness[end] == NO_WITNESS)):
                    position = (end, *index.tolist())
                    b.witness[position] = pool.add(samples[best[position[1:]]])
                    b.status[position] = Status.EXACT


# --- what only formats and weights say ----------------------------------------------------------


def format_ranges(network: Network) -> dict[str, Ends]:
    """(lo, hi) of each value from formats, fan-in and the storage width of the weights alone."""
    fmt = network.input_format

    def rule(node: Node) -> Callable[..., Ends]:
        shapes = [network.shapes[name] for name in inputs_of(node)]
        return lambda *ends: node.op.datatype(ends, *shapes)

    return propagated(network.nodes, (fmt.q_min, fmt.q_max), rule)


def full_ranges(network: Network, node: Node, formats: dict[str, Ends]) -> list[Interval]:
    """The operands of a node, each as free as its format allows."""
    shapes, ends = network.shapes, formats
    return [Interval(*(np.full(shapes[n], e) for e in ends[n])) for n in inputs_of(node)]
