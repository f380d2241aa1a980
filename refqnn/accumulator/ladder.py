"""certify: climb from intervals to exact bounds as far as asked.

    interval      each node's exact rule, in topological order
    exhaustive    every input of a domain of at most 2**20 points, or of listed rows
    search        witnesses from data and local search, then branch and bound over input boxes
    solver        the same, then a constraint solver asked whether anything lies beyond a bound

A bound that one rung tightens is what the nodes behind it start from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator.certificate import (
    HI,
    LO,
    NO_WITNESS,
    Certificate,
    LayerCertificate,
    Proof,
    Status,
)
from refqnn.accumulator.cone import sum_rows
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.solver import require_solver, solver_installed
from refqnn.errors import InvalidArgument, mismatch
from refqnn.formats import IntFormat
from refqnn.network import INPUT, Network, Node, inputs_of
from refqnn.ops import Add, Concat, Flatten, Lookup, MaxPool2d, Reshape
from refqnn.ops.base import IntArray, Interval, Op, SumOp
from refqnn.requantize import Requantize

__all__ = ["EXHAUSTIVE_LIMIT", "Method", "Progress", "certify", "observed"]

Method = Literal["auto", "interval", "exhaustive", "search", "solver"]
Progress = Callable[[str, int, int], None]  # what, done, total

EXHAUSTIVE_LIMIT = 2**20

# Elementwise and monotone: the ends of each input are the ends of each output.
_ELEMENTWISE = (Requantize, Flatten, Reshape)


def certify(
    network: Network,
    domain: object = None,
    method: Method = "auto",
    *,
    budget_s: float | None = None,
    X: ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Certificate:
    """Bounds of every value of a network, for every input of a domain.

    Args:
        network: the integer program.
        domain: None for every code of the input format; a `Domain`; an `Interval` (a box); an
            integer array [n, *input_shape] (those rows and no others).
        method: how far to climb, see the module.  `auto` is interval bounds, and exhaustive ones
            where the domain has at most 2**20 points; with a budget also search, then the solver if
            it is installed.
        budget_s: seconds for the searching rungs, over all neurons; None: 60 for `search` and
            `solver`.  The deterministic rungs do not count.
        X: codes [n, *input_shape] inside the domain to take witnesses from.
        seed: of the random starting points of the search.
        progress: called with (what, done, total).

    Returns: a certificate whose bounds are all sound; see `Certificate` for what else it says.

    Raises: InvalidArgument, InvalidType, ShapeMismatch, OutOfRange; MissingExtra for `solver`
        without ortools.

    >>> from refqnn import IntFormat, Linear, Requantize
    >>> fc1 = Node("fc1", Linear([[1, 1], [-1, -1]]))
    >>> act1 = Node("act1", Requantize.from_shift(0, IntFormat(3, signed=False), offset=3))
    >>> fc2 = Node("fc2", Linear([[1, 1]]))
    >>> net = Network([fc1, act1, fc2], input_shape=(2,), input_format=IntFormat(1, signed=False))
    >>> certify(net, method="interval")["fc2"].range  # as if x and -x were independent
    Interval(lo=array([4]), hi=array([8]))
    >>> certify(net)["fc2"].range
    Interval(lo=array([6]), hi=array([6]))
    """
    if method not in get_args(Method):
        raise InvalidArgument(mismatch("method", repr(method), f"one of {get_args(Method)}"))
    if budget_s is not None and not budget_s >= 0:
        raise InvalidArgument(mismatch("budget_s", budget_s, "None, or seconds >= 0"))
    where = Domain.of(network, domain)
    data = None if X is None else _data(network, where, X)
    small = not where.is_box or where.size <= EXHAUSTIVE_LIMIT
    if method == "exhaustive" and not small:
        expected = f"at most {EXHAUSTIVE_LIMIT} for method='exhaustive'"
        raise InvalidArgument(mismatch("domain", f"{where.size} points", expected))
    if method == "solver":
        require_solver()
    if method != "interval" and small:
        return exhaustive_certificate(network, where, progress)
    searching = method in ("search", "solver") or (method == "auto" and budget_s is not None)
    refine = None
    if searching:
        from refqnn.accumulator.search import Search

        refine = Search(
            network,
            where,
            deadline=time.monotonic() + (60.0 if budget_s is None else budget_s),
            solver=method == "solver" or (method == "auto" and solver_installed()),
            data=data,
            seed=seed,
            progress=progress,
        )
    bounds = interval_bounds(network, where, None if refine is None else refine.refine)
    pool = Witnesses(network)
    if data is not None:
        witnesses_from_data(network, bounds, data, pool)
    if refine is not None:
        refine.store_witnesses(bounds, pool)
    return _certificate(network, where, bounds, pool.array)


def observed(network: Network, X: ArrayLike) -> dict[str, Interval]:
    """The least intervals that hold every value met on samples: never a certificate.

    Args:
        network: the integer program.
        X: codes [n, *input_shape], or floats when the network has an input quantizer.

    Returns: an `Interval` for "input" and every node.
    """
    samples = np.asarray(X)
    codes = network.quantize_input(samples) if samples.dtype.kind == "f" else samples
    codes = network.check_codes(codes)
    seen: dict[str, Interval] = {}
    block = _block(network)
    for start in range(0, len(codes), block):
        for name, values in network.trace(codes[start : start + block]).items():
            here = Interval.observed(values)
            if name in seen:
                lo = np.minimum(seen[name].lo, here.lo)
                here = Interval(lo, np.maximum(seen[name].hi, here.hi))
            seen[name] = here
    return seen


# --- one node's bounds while they are made ------------------------------------------------------


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


Refine = Callable[[Node, "dict[str, Bounds]"], None]


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
    independent = _independent_ends(network, domain)
    for node in network.nodes:
        operands = [bounds[name] for name in inputs_of(node)]
        range_ = node.op.out_range(*(b.range for b in operands))
        status = interval_status(node, operands, range_, independent)
        bounds[node.name] = Bounds.proved(range_, Proof.INTERVAL, status)
        if refine is not None and isinstance(node.op, SumOp):
            refine(node, bounds)
    return bounds


def _independent_ends(network: Network, domain: Domain) -> set[str]:
    """The values whose every combination of lower and upper ends is reached.

    The input of a box is one; elementwise monotone nodes behind it keep the property.
    """
    names = {INPUT} if domain.is_box else set()
    for node in network.nodes:
        if isinstance(node.op, _ELEMENTWISE) and inputs_of(node)[0] in names:
            names.add(node.name)
    return names


def interval_status(
    node: Node,
    operands: list[Bounds] | list[LayerCertificate],
    range_: Interval,
    independent: set[str],
) -> NDArray[np.int8]:
    """Which ends of an interval are known to be reached, [2, *shape].

    Over independent ends, every sum and every maximum reaches its ends, one neuron at a time: each
    input position stands once in it.  Elementwise monotone nodes and Concat pass on what their
    inputs reach.  A bound with lo = hi is reached by anything.
    """
    constant = np.stack([range_.lo == range_.hi] * 2)
    known = np.zeros((2, *range_.shape), dtype=bool)
    if isinstance(node.op, _ELEMENTWISE):
        known = (operands[0].status == Status.EXACT).reshape(known.shape)
    elif isinstance(node.op, Concat):
        known = np.concatenate([b.status == Status.EXACT for b in operands], axis=1)
    elif isinstance(node.op, (SumOp, MaxPool2d)) and len(operands) == 1:
        known |= inputs_of(node)[0] in independent
    return np.where(constant | known, Status.EXACT, Status.UPPER).astype(np.int8)


def corner(
    network: Network, domain: Domain, name: str, index: tuple[int, ...], end: int
) -> NDArray[np.int64] | None:
    """The input that reaches an end of a neuron whose inputs have independent ends, or None.

    hi takes x_hi where the weight is positive and x_lo elsewhere; lo is mirrored.
    """
    hull = domain.hull
    if not domain.is_box:
        return None
    position = int(np.ravel_multi_index(index, (network.shapes[name])))
    independent = _independent_ends(network, domain)
    while name not in independent:
        node = network[name]
        source = inputs_of(node)[0]
        if isinstance(node.op, SumOp) and source in independent and len(inputs_of(node)) == 1:
            rows = sum_rows(node.op, [network.shapes[source]], np.array([position]))
            weight = rows.dense(prod(network.input_shape))[0].reshape(network.input_shape)
            upward = weight > 0 if end == HI else weight < 0
            return np.asarray(np.where(upward, hull.hi, hull.lo))
        if isinstance(node.op, MaxPool2d) and source in independent:
            break
        if not isinstance(node.op, _ELEMENTWISE):
            return None
        name = source
    return hull.hi if end == HI else hull.lo


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
    done, block = 0, _block(network)
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


def exhaustive_certificate(
    network: Network, domain: Domain, progress: Progress | None = None
) -> Certificate:
    """The certificate of an enumeration, with a witness for each bound of an accumulator."""
    bounds, where = exhaustive_bounds(network, domain, progress)
    needed = [numbers.reshape(-1) for numbers in where.values()]
    unique = np.unique(np.concatenate(needed)) if needed else np.zeros(0, dtype=np.int64)
    for name, numbers in where.items():
        bounds[name].witness = np.searchsorted(unique, numbers).astype(np.int64)
    witnesses = domain.at(unique).astype(np.int64)
    return _certificate(network, domain, bounds, witnesses)


# --- witnesses from data ------------------------------------------------------------------------


def witnesses_from_data(
    network: Network, bounds: dict[str, Bounds], data: NDArray[np.int64], pool: Witnesses
) -> None:
    """Mark the bounds of accumulators that a sample reaches."""
    block = _block(network)
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


def _data(network: Network, domain: Domain, X: ArrayLike) -> NDArray[np.int64]:
    codes = network.check_codes(X)
    outside = ~domain.contains(codes)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise InvalidArgument(mismatch("X", f"row {first} outside the domain", f"{domain}"))
    return codes


def _block(network: Network) -> int:
    """How many samples to trace at one time: about 2**22 values."""
    per_sample = sum(prod(shape) for shape in network.shapes.values())
    return max(1, 2**22 // per_sample)


# --- what only formats and weights say ----------------------------------------------------------


def format_ranges(network: Network) -> dict[str, tuple[int, int]]:
    """(lo, hi) of each value from formats, fan-in and the storage width of the weights alone.

    Weights count as any value of the narrowest format (unsigned if none is negative, else two's
    complement) that stores the layer's; the bias, when there is one, as its own range.
    """
    ranges = {INPUT: (network.input_format.q_min, network.input_format.q_max)}
    for node in network.nodes:
        operands = [ranges[name] for name in inputs_of(node)]
        ranges[node.name] = _format_range(network, node, operands)
    return ranges


def widths_before_proof(
    network: Network, node: Node, formats: dict[str, tuple[int, int]] | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(lo, hi) of an accumulating layer by formats alone, and with its weights known."""
    known = format_ranges(network) if formats is None else formats
    full = [_full(known[name], network.shapes[name]) for name in inputs_of(node)]
    range_ = node.op.out_range(*full)
    return known[node.name], ends_of_layer(range_)


def ends_of_layer(range_: Interval) -> tuple[int, int]:
    """The least lo and the greatest hi of all neurons."""
    return int(range_.lo.min()), int(range_.hi.max())


def _format_range(network: Network, node: Node, operands: list[tuple[int, int]]) -> tuple[int, int]:
    op: Op = node.op
    format_ = getattr(op, "format", None)
    if isinstance(format_, IntFormat):
        return format_.q_min, format_.q_max
    if isinstance(op, Lookup):
        return int(op.table.min()), int(op.table.max())
    if isinstance(op, Add):
        multipliers = (1,) * len(operands) if op.multipliers is None else op.multipliers
        ends = [sorted((m * lo, m * hi)) for m, (lo, hi) in zip(multipliers, operands)]
        return sum(lo for lo, _ in ends), sum(hi for _, hi in ends)
    lo, hi = min(lo for lo, _ in operands), max(hi for _, hi in operands)
    if not isinstance(op, SumOp):
        return lo, hi
    pad_code = getattr(op, "pad_code", None)
    if pad_code is not None and any(end for pair in op.padding for end in pair):  # type: ignore[attr-defined]
        lo, hi = min(lo, pad_code), max(hi, pad_code)
    weight = getattr(op, "weight", None)
    if weight is None:
        kernel = getattr(op, "kernel", None)
        shape = network.shapes[inputs_of(node)[0]]
        terms = prod(shape[1:]) if kernel is None else prod(kernel)
        return terms * lo, terms * hi
    w_lo, w_hi = _storage_range(weight)
    products = [w_lo * lo, w_lo * hi, w_hi * lo, w_hi * hi]
    fan_in = prod(weight.shape[1:])
    bias = getattr(op, "bias", None)
    b_lo, b_hi = (0, 0) if bias is None else (int(bias.min()), int(bias.max()))
    return fan_in * min(products) + b_lo, fan_in * max(products) + b_hi


def _storage_range(weight: NDArray[np.int64]) -> tuple[int, int]:
    lo, hi = int(weight.min()), int(weight.max())
    if lo >= 0:
        return 0, 2 ** max(1, hi.bit_length()) - 1
    bits = max(hi.bit_length(), (-lo - 1).bit_length())
    return -(2**bits), 2**bits - 1


def _certificate(
    network: Network, domain: Domain, bounds: dict[str, Bounds], witnesses: NDArray[np.int64]
) -> Certificate:
    formats = format_ranges(network)
    refined = any((b.proof != Proof.INTERVAL).any() for b in bounds.values())
    intervals = (
        network.ranges(domain.hull) if refined else {name: b.range for name, b in bounds.items()}
    )
    layers = {INPUT: _layer(INPUT, INPUT, bounds[INPUT])}
    for node in network.nodes:
        layer = _layer(node.name, node.op.kind, bounds[node.name])
        if isinstance(node.op, SumOp):
            names = inputs_of(node)
            by_formats, by_weights = widths_before_proof(network, node, formats)
            layer = replace(
                layer,
                mass=node.op.absolute_mass(*(bounds[name].range for name in names)),
                datatype=by_formats,
                by_weights=by_weights,
                by_interval=ends_of_layer(intervals[node.name]),
            )
        layers[node.name] = layer
    return Certificate(layers, network.digest, domain, witnesses)


def _layer(name: str, kind: str, b: Bounds) -> LayerCertificate:
    return LayerCertificate(name, kind, b.lo, b.hi, b.proof, b.status, b.witness)


def _full(ends: tuple[int, int], shape: tuple[int, ...]) -> Interval:
    lo, hi = (np.full(shape, end, dtype=object) for end in ends)
    return Interval(lo, hi)
