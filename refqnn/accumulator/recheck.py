"""Certificate.verify: every claim of a certificate derived again, by other code.

Nothing here is shared with what makes certificates:

    interval      the node's readings (`readings`) on the certified bounds of its operands
    exhaustive    every point of the domain through `Network.trace`, up to 2**20 of them
    search,       where the inputs that a neuron depends on have at most 2**20 points, these;
    solver        where the caller asks for it, a constraint solver on a model made of the readings
    exact         a witness, a corner made of the signs of a row, or any other input that reaches it

Beside that, the bounds of every node must hold for all these inputs and for thousands of others,
some of them pushed outward by a local search.  What cannot be derived again is *trusted*.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from math import inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import HI, LO, NO_WITNESS, LayerCertificate, Proof, Status
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.readings import (
    MONOTONE,
    READERS,
    Ends,
    Reads,
    by_formats,
    code_outside,
    largest,
    range_of,
)
from refqnn.errors import CertificateError, InvalidArgument, MissingExtra, mismatch
from refqnn.formats import is_integer
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network
from refqnn.ops import Lookup, Requantize, Rescale, Softmax
from refqnn.ops.base import IntArray, Interval, Shape, is_sum

if TYPE_CHECKING:
    from refqnn.accumulator.certificate import Certificate

__all__ = ["verify"]

_MOST_POINTS = 2**20  # of an enumeration; a certificate that claims a larger one is false
_VALUES = 2**22  # readings, or values of a trace, held at one time
_TARGETS = 32  # bounds that the local search pushes against
_TRIES = 8  # changes of the best input for each, at one time
_MOST_IN_SOLVER = 2**52  # beyond, the solver's own sums may leave 64 bits
_LARGEST_MODEL = 2**20  # readings and thresholds; a larger one takes longer to tell than to trust

_SIDES = "lo", "hi"

Bits = NDArray[np.bool_]
Codes = NDArray[np.int64]
Index = tuple[int, ...]
Inputs = frozenset[int]  # flat positions in a sample of the input


def verify(
    certificate: Certificate,
    network: Network,
    *,
    budget_s: float | None = None,
    allow_trusted: bool = False,
    solver: bool = False,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, int]:
    """See `Certificate.verify`."""
    if not is_integer(samples) or samples < 0:
        raise InvalidArgument(mismatch("samples", repr(samples), "an integer of at least 0"))
    late = inf if budget_s is None else time.monotonic() + budget_s
    _check_fields(certificate, network)
    check = _Check(certificate, network, late, np.random.default_rng(seed))
    with suppress(_Late):
        check.intervals()
    with suppress(_Late):
        check.witnesses(certificate.witnesses)
    with suppress(_Late):
        check.samples(samples)
    with suppress(_Late):
        check.enumerations()
    if solver:
        check.questions()
    return check.summary(allow_trusted)


class _Late(Exception):
    """The budget has ended: what was not derived by then stays so."""


# --- the fields of a certificate, one by one ----------------------------------------------------


def _lie(where: str, got: object, expected: object) -> CertificateError:
    return CertificateError(mismatch(where, got, str(expected)))


def _place(name: str, end: int, index: Sequence[int]) -> str:
    return f"{name}.{_SIDES[end]}{[int(i) for i in index]}"


def _require(where: str, got: object, expected: object) -> None:
    if type(got) is not type(expected) or got != expected:
        raise _lie(where, got, expected)


def _check_fields(certificate: Certificate, network: Network) -> None:
    """What is said in each field, but for the bounds, how they are proved, and the summaries."""
    if certificate.digest != network.digest:
        got = f"a certificate of network {str(certificate.digest)[:12]}..."
        raise _lie("network", got, f"one of {network.digest[:12]}...")
    _check_domain(certificate.domain, network)
    witnesses = _integers("witnesses", certificate.witnesses, None, np.int64)
    _require("witnesses: shape", witnesses.shape[1:], network.input_shape)
    outside = ~_inside(certificate.domain, witnesses)
    if outside.any():
        raise _lie(f"witness {outside.argmax()}", "an input outside the domain", "one in it")
    kinds = {INPUT: INPUT, **{node.name: node.op.kind for node in network.nodes}}
    _require("nodes", list(certificate.nodes), list(kinds))
    for name, layer in certificate.nodes.items():
        if not isinstance(layer, LayerCertificate):
            raise _lie(name, type(layer).__name__, "a LayerCertificate")
        _require(f"{name}.name", layer.name, name)
        _require(f"{name}.kind", layer.kind, kinds[name])
        _check_layer(layer, network.shapes[name], len(witnesses))
    entry, hull = certificate[INPUT], certificate.domain.hull
    if (entry.lo != hull.lo).any() or (entry.hi != hull.hi).any():
        raise _lie(f"{INPUT}.lo, {INPUT}.hi", "bounds", "those of the domain")
    if (entry.proof > Proof.EXHAUSTIVE).any():
        raise _lie(f"{INPUT}.proof", "a search", "interval or exhaustive")
    if (entry.status != Status.EXACT).any():
        raise _lie(f"{INPUT}.status", "a bound that is not exact", "exact")
    _check_no_sum(entry)


def _check_layer(layer: LayerCertificate, shape: Shape, witnesses: int) -> None:
    name = layer.name
    lo = _integers(f"{name}.lo", layer.lo, shape, np.int64, object)
    hi = _integers(f"{name}.hi", layer.hi, shape, np.int64, object)
    if (lo > hi).any():
        raise _lie(f"{name}.lo", "a value above hi", "lo <= hi")
    both = (2, *shape)
    _check_within(f"{name}.proof", _integers(f"{name}.proof", layer.proof, both, np.int8), 0, 3)
    _check_within(f"{name}.status", _integers(f"{name}.status", layer.status, both, np.int8), 0, 2)
    numbers = _integers(f"{name}.witness", layer.witness, both, np.int64)
    _check_within(f"{name}.witness", numbers, NO_WITNESS, witnesses - 1)


def _check_within(where: str, values: IntArray, least: int, most: int) -> None:
    if values.min() < least or values.max() > most:
        raise _lie(where, f"values in [{values.min()}, {values.max()}]", f"[{least}, {most}]")


def _check_no_sum(layer: LayerCertificate) -> None:
    for field in ("mass", "datatype", "by_weights", "by_interval"):
        _require(f"{layer.name}.{field}", getattr(layer, field), None)


def _integers(where: str, values: object, shape: Shape | None, *dtypes: type) -> IntArray:
    if not isinstance(values, np.ndarray) or values.dtype not in dtypes:
        expected = f"an array of {' or '.join(dtype.__name__ for dtype in dtypes)}"
        raise _lie(where, getattr(values, "dtype", type(values).__name__), expected)
    if values.dtype == object and not all(type(value) is int for value in values.flat):
        raise _lie(where, "objects", "Python integers")
    if shape is not None:
        _require(f"{where}: shape", values.shape, shape)
    return values


def _check_domain(domain: Domain, network: Network) -> None:
    fmt, shape = network.input_format, network.input_shape
    if not isinstance(domain, Domain) or not isinstance(domain.hull, Interval):
        raise _lie("domain", type(domain).__name__, "a Domain")
    _require("domain.step", domain.step, fmt.step)
    stated = [_integers("domain.hull", end, shape, np.int64) for end in _ends(domain.hull)]
    if domain.listed is not None:
        listed = _integers("domain.listed", domain.listed, None, np.int64)
        _require("domain.listed: shape", (listed.shape[1:], len(listed) > 0), (shape, True))
        for end, of in zip(stated, (np.min, np.max)):
            _require("domain.hull", end.tolist(), of(listed, axis=0).tolist())
        stated = [listed]
    for codes in stated:
        off = (codes < fmt.q_min) | (codes > fmt.q_max) | ((codes - fmt.q_min) % fmt.step != 0)
        if off.any():
            raise _lie("domain", codes[off][0], str(fmt))


def _ends(interval: Interval | LayerCertificate) -> tuple[IntArray, IntArray]:
    return interval.lo, interval.hi


def _inside(domain: Domain, codes: Codes) -> Bits:
    """For each of codes [n, *shape]: is it a point of the domain?  [n]"""
    if domain.listed is not None:
        known = {tuple(row.ravel().tolist()) for row in domain.listed}
        return np.array([tuple(row.ravel().tolist()) in known for row in codes], dtype=bool)
    lo, hi = _ends(domain.hull)
    inside = (lo <= codes) & (codes <= hi) & ((codes - lo) % domain.step == 0)
    return np.asarray(inside.all(axis=tuple(range(1, codes.ndim))))


# --- the check ----------------------------------------------------------------------------------


class _Check:
    """One certificate under examination.

    Attributes:
        proved: by node, which bounds have been derived again, [2, *shape].
        derived: nodes whose interval, mass and summaries have been.
        reached: by node, which bounds some input was seen to reach, [2, *shape].
        whole: every point of the domain has been seen.
        tried: how many inputs have been.
        missing: witnesses and samples that the budget did not suffice for, at least.
        late: when the budget ends, a `time.monotonic` value.
        lo, hi: the ends of the domain, [inputs].
        block: inputs traced at one time.
    """

    def __init__(
        self, certificate: Certificate, network: Network, late: float, rng: np.random.Generator
    ) -> None:
        self.network, self.domain, self.late, self.rng = network, certificate.domain, late, rng
        self.layers = certificate.nodes
        shapes = {name: layer.proof.shape for name, layer in self.layers.items()}
        self.proved = {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()}
        self.proved[INPUT] |= self.layers[INPUT].proof == Proof.INTERVAL
        self.reached = {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()}
        self.derived = {INPUT}
        self.whole, self.tried = False, 0
        self.missing: Counter[str] = Counter()
        self.lo, self.hi = (end.reshape(-1) for end in _ends(self.domain.hull))
        self.block = max(1, 4 * _VALUES // sum(map(prod, shapes.values())))  # proofs count twice

    def _in_time(self) -> None:
        """Raises: _Late.  Asked before anything that takes longer with the network."""
        if time.monotonic() > self.late:
            raise _Late

    @property
    def size(self) -> int:
        """The points of the domain."""
        listed = self.domain.listed
        return self._points(range(len(self.lo))) if listed is None else len(listed)

    def _points(self, inputs: Sequence[int] | Inputs) -> int:
        """How many combinations these inputs have."""
        return prod(self._levels(i) for i in inputs)

    def _levels(self, i: int) -> int:
        return (int(self.hi[i]) - int(self.lo[i])) // self.domain.step + 1

    def _bound(self, name: str, end: int) -> IntArray:
        return _ends(self.layers[name])[end]

    # --- intervals ----------------------------------------------------------------------------

    def intervals(self) -> None:
        """Interval claims, masses, and the three summaries of every sum.

        Each node is computed on three boxes: the certified bounds of its operands, what intervals
        alone say of them, and their formats.
        """
        fmt = self.network.input_format
        alone = {INPUT: self.domain.hull}
        formats: dict[str, Ends | None] = {INPUT: (fmt.q_min, fmt.q_max)}
        for node in self.network.nodes:
            layer, sources = self.layers[node.name], inputs_of(node)
            shapes = [self.network.shapes[source] for source in sources]
            ends = [formats[source] for source in sources]
            boxes = [[self.layers[source].range for source in sources]]
            boxes.append([alone[source] for source in sources])
            if is_sum(node.op) and None not in ends:
                boxes.append([_full(*pair) for pair in zip(shapes, ends)])
            lo, hi, *mass = self._ranges(node, boxes)
            alone[node.name] = Interval(lo[1], hi[1])
            formats[node.name] = by_formats(node.op, shapes, ends)
            self._check_interval(layer, (lo[0], hi[0]))
            self.proved[node.name] |= (layer.proof == Proof.INTERVAL) & (type(node.op) in READERS)
            self.derived.add(node.name)
            if not is_sum(node.op):
                _check_no_sum(layer)
                continue
            mass = mass or [node.op.absolute_mass(*boxes[0])]  # of a user's own kind
            widths = [(int(a.min()), int(b.max())) for a, b in zip(lo[1:], hi[1:])]
            _check_sum(layer, mass[0], [formats[node.name], *widths])

    def _ranges(self, node: Node, boxes: list[list[Interval]]) -> list[IntArray]:
        """lo, hi of a node over each box of its operands, [boxes, *shape]; of sums also the mass
        over the first."""
        op, shape = node.op, self.network.shapes[node.name]
        if type(op) not in READERS:  # a user's own
            ranges = [op.out_range(*box) for box in boxes]
            return [np.stack([r.lo for r in ranges]), np.stack([r.hi for r in ranges])]
        outside = [code_outside(op)]
        lo, hi = (
            np.stack(
                [np.concatenate([*(_ends(x)[end].ravel() for x in box), outside]) for box in boxes]
            )
            for end in (LO, HI)
        )
        several = getattr(op, "channels", 1) > 1
        found, start = [], 0
        for reads in self._reads(node, 3 * len(boxes)):
            at = np.arange(start, start + len(reads.columns))
            found.append(range_of(op, at // prod(shape[1:]) * several, reads, lo, hi))
            start += len(at)
        joined = [np.concatenate(parts, axis=-1) for parts in zip(*found)]
        return [values.reshape(*values.shape[:-1], *shape) for values in joined]

    def _reads(self, node: Node, copies: int = 1) -> Iterator[Reads]:
        """What the outputs of a node read, in blocks."""
        size = prod(self.network.shapes[node.name])
        block = max(1, _VALUES // (self._terms(node) * copies))
        for start in range(0, size, block):
            self._in_time()
            yield self._some_reads(node, np.arange(start, min(start + block, size)))

    def _terms(self, node: Node) -> int:
        """How many entries each output of a node reads."""
        return self._some_reads(node, np.zeros(1, dtype=np.int64)).columns.size

    def _some_reads(self, node: Node, positions: Codes) -> Reads:
        shapes = [self.network.shapes[name] for name in inputs_of(node)]
        return READERS[type(node.op)](node.op, shapes, self.network.shapes[node.name], positions)

    def _check_interval(self, layer: LayerCertificate, computed: tuple[IntArray, IntArray]) -> None:
        claimed = layer.proof == Proof.INTERVAL
        for end, (stated, ours) in enumerate(zip(_ends(layer), computed)):
            wrong = np.argwhere(claimed[end] & (stated != ours))
            if len(wrong):
                place = tuple(wrong[0])
                where = _place(layer.name, end, place)
                raise _lie(where, stated[place], f"{ours[place]} by intervals")

    # --- inputs that are tried ----------------------------------------------------------------

    def _hold(self, codes: Codes, network: Network | None = None) -> dict[str, IntArray]:
        """The trace of a block of inputs, all of whose values must lie inside the bounds."""
        self._in_time()
        self.tried += len(codes)
        trace = (network or self.network).trace(codes.reshape(-1, *self.network.input_shape))
        for name, values in trace.items():
            for end, seen in ((LO, values.min(axis=0)), (HI, values.max(axis=0))):
                bound = self._bound(name, end)
                beyond = np.argwhere(seen < bound if end == LO else seen > bound)
                if len(beyond):
                    place = tuple(beyond[0])
                    got = f"{seen[place]} for an input, beyond {_SIDES[end]} = {bound[place]}"
                    raise _lie(_place(name, end, place), got, "a bound that holds")
                self.reached[name][end] |= seen == bound
        return trace

    def _blocks(self, codes: Codes) -> Iterator[Codes]:
        for start in range(0, len(codes), self.block):
            yield codes[start : start + self.block]

    def witnesses(self, witnesses: Codes) -> None:
        """Every witness reaches what it is named for."""
        start, self.missing["witnesses"] = 0, len(witnesses)
        for codes in self._blocks(witnesses):
            trace = self._hold(codes)
            for name, layer in self.layers.items():
                number = layer.witness - start
                for end, *index in np.argwhere((number >= 0) & (number < len(codes))).tolist():
                    got = int(trace[name][(number[(end, *index)], *index)])
                    bound = int(self._bound(name, end)[tuple(index)])
                    _require(f"{_place(name, end, index)}: value of its witness", got, bound)
            start += len(codes)
            self.missing["witnesses"] -= len(codes)

    def samples(self, n: int) -> None:
        """Corners of the domain, random inputs, and such as a local search pushes outward."""
        try:
            self._try(n)
        except _Late:
            self.missing["samples"] = max(1, min(n, self.size) - self.tried)
            raise

    def _try(self, n: int) -> None:
        if self.size <= n:
            self._walk_through()
            return
        for codes in self._corners():
            self._hold(codes)
        if self.domain.listed is not None:
            inputs = self.domain.listed[np.sort(self.rng.choice(self.size, n, replace=False))]
        else:
            self._push(max(n - self.tried, n // 2) * 3 // 4)
            inputs = self._random(max(n - self.tried, n // 8))
        for codes in self._blocks(inputs):
            self._hold(codes)

    def _random(self, n: int, extreme: bool = False) -> Codes:
        """Inputs of a box, [n, inputs]; extreme: each at one of its ends."""
        if extreme:
            return np.where(self.rng.random((n, len(self.lo))) < 0.5, self.lo, self.hi)
        step = self.domain.step
        levels = self.rng.integers((self.hi - self.lo) // step + 1, size=(n, len(self.lo)))
        return np.asarray(self.lo + step * levels)

    def _push(self, n: int) -> None:
        """A greedy search outward from some bounds, first those that nothing has confirmed.

        Which way each input moves a value is read off random corners of the box; then a few inputs
        at a time are changed, and what goes further is kept.
        """
        targets = self._targets()
        corners = self._random(min(max(n // 3, 1), self.block), extreme=True)
        values = self._outward(corners, targets)  # [targets, corners]
        middle = np.sort(values, axis=1)[:, [values.shape[1] // 2]]
        slopes = np.where(values >= middle, 1.0, -1.0) @ np.where(corners > self.lo, 1.0, -1.0)
        best = np.where(slopes > 0, self.hi, self.lo)  # [targets, inputs]
        which = np.arange(len(targets))
        reach = self._outward(best, targets)[which, which]
        for _ in range((n - len(corners)) // (_TRIES * len(targets))):
            moved = np.repeat(best, _TRIES, axis=0)
            changed = self.rng.random(moved.shape) < self.rng.choice([1, 3]) / moved.shape[1]
            moved[changed] = self._random(len(moved), self.rng.random() < 0.7)[changed]
            found = self._outward(moved, targets).reshape(len(targets), len(targets), _TRIES)
            winner = found[which, which].argmax(axis=1)
            gained = found[which, which, winner] > reach
            best[gained] = moved[which * _TRIES + winner][gained]
            reach = np.where(gained, found[which, which, winner], reach)

    def _targets(self) -> list[tuple[str, int, Index]]:
        """(node, end, index) of some bounds."""
        names = [node.name for node in self.network.nodes]
        unproved = [(name, n) for name in names for n in np.flatnonzero(~self.proved[name])]
        order = self.rng.permutation(len(unproved))
        places = [unproved[order[k % len(order)]] for k in range(_TARGETS)] if unproved else []
        while len(places) < _TARGETS:
            name = names[self.rng.integers(len(names))]
            places.append((name, self.rng.integers(self.proved[name].size)))
        targets = []
        for name, number in places:
            end, *index = np.unravel_index(number, self.proved[name].shape)
            targets.append((name, int(end), tuple(map(int, index))))
        return targets

    def _outward(self, inputs: Codes, targets: list[tuple[str, int, Index]]) -> IntArray:
        """How far outward these inputs take the targets, [targets, n]."""
        found = []
        for codes in self._blocks(inputs):
            trace = self._hold(codes)
            rows = [trace[name].T[index[::-1]] for name, _, index in targets]
            found.append([row if end == HI else -row for row, (_, end, _) in zip(rows, targets)])
        return np.concatenate(found, axis=1)

    # --- corners ------------------------------------------------------------------------------

    def _corners(self) -> Iterator[Codes]:
        """Inputs that reach what is called exact where the signs of a row say which they are."""
        if self.domain.listed is not None:
            rows = self.domain.listed.reshape(self.size, -1)
            yield from self._blocks(rows[np.unique([rows.argmin(axis=0), rows.argmax(axis=0)])])
            return
        yield np.stack([self.lo, self.hi])
        # Of each value the one input that it rises with, or -1.
        origins = {INPUT: np.arange(len(self.lo))}
        for node in self.network.nodes:
            sources = np.concatenate([*(origins[name] for name in inputs_of(node)), [-1]])
            origins[node.name] = np.full(prod(self.network.shapes[node.name]), -1)
            known = type(node.op) in READERS and not isinstance(node.op, (Lookup, Softmax))
            if sources.max() < 0 or not known:
                continue
            if type(node.op) in MONOTONE:
                columns = [reads.columns[:, 0] for reads in self._reads(node)]
                origins[node.name] = sources[np.concatenate(columns)]
            held: list[Codes] = []
            for ways in self._ways(node, sources):
                held += [np.where(ways > 0, self.hi, self.lo), np.where(ways < 0, self.hi, self.lo)]
                if len(held) >= self.block:
                    yield np.stack(held)
                    held = []
            if held:
                yield np.stack(held)

    def _ways(self, node: Node, sources: Codes) -> Iterator[NDArray[np.int8]]:
        """Which way the inputs go for a neuron's upper end: 1, -1, or 0 for those free, [inputs].

        Neurons of one channel that share no input share a corner.
        """
        exact = self.layers[node.name].status == Status.EXACT
        wanted = (exact & ~self.reached[node.name]).any(axis=0).reshape(-1)
        position, in_channel = 0, prod(exact.shape[2:])
        corners: list[NDArray[np.int8]] = []
        for reads in self._reads(node):
            for row, columns in enumerate(reads.columns):
                if position % in_channel == 0:
                    yield from corners
                    corners = []
                if wanted[position]:
                    up = 1 if reads.coefficient is None else np.sign(reads.coefficient[row])
                    ways = np.where(sources[columns] < 0, 0, up)
                    _place_corner(
                        corners, sources[columns][ways != 0], ways[ways != 0], len(self.lo)
                    )
                position += 1
        yield from corners

    # --- enumeration --------------------------------------------------------------------------

    def _walk(self, free: Sequence[int]) -> Iterator[Codes]:
        """Every combination of these inputs, the others at their lower ends; or all rows."""
        if self.domain.listed is not None:
            yield from self._blocks(self.domain.listed)
            return
        total = self._points(free)
        for start in range(0, total, self.block):
            numbers = np.arange(start, min(start + self.block, total))
            codes = np.repeat(self.lo[None], len(numbers), axis=0)
            for i in free:
                codes[:, i] += numbers % self._levels(i) * self.domain.step
                numbers = numbers // self._levels(i)
            yield codes

    def _walk_through(self) -> None:
        """Every point of the domain: what they reach is known then, and what they do not."""
        for codes in self._walk(range(len(self.lo))):
            self._hold(codes)
        self.whole = True
        for name, layer in self.layers.items():
            # `_hold` has seen that no value lies beyond a bound.
            wrong = np.argwhere((layer.proof == Proof.EXHAUSTIVE) & ~self.reached[name])
            if len(wrong):
                end, *index = wrong[0].tolist()
                bound = self._bound(name, end)[tuple(index)]
                raise _lie(_place(name, end, index), bound, "what an enumeration reaches")
            self.proved[name] |= layer.proof != Proof.INTERVAL

    def enumerations(self) -> None:
        """Exhaustive claims, and of a search or a solver those with few enough points."""
        many = self.domain.listed is None and self.size > _MOST_POINTS
        for name, layer in self.layers.items():
            if many and (layer.proof == Proof.EXHAUSTIVE).any():
                got = f"exhaustive over {self.size} points"
                raise _lie(f"{name}.proof", got, f"at most {_MOST_POINTS}")
        claimed = {name: self._open(name) for name in self.layers}
        claimed = {name: bounds for name, bounds in claimed.items() if bounds.any()}
        if claimed and many:
            self._walk_through_parts(claimed)
        elif claimed:
            self._walk_through()

    def _open(self, name: str) -> Bits:
        """Which bounds claim more than intervals and have not been derived again, [2, *shape]."""
        return np.asarray((self.layers[name].proof != Proof.INTERVAL) & ~self.proved[name])

    def _walk_through_parts(self, claimed: dict[str, Bits]) -> None:
        """Of each neuron all points of the inputs that it depends on, where they are few."""
        part = self._up_to(max(i for i, n in enumerate(self.network.nodes) if n.name in claimed))
        inputs = self._dependencies(part)
        groups: dict[Inputs, list[tuple[str, Index]]] = {}
        for name, bounds in claimed.items():
            for place in map(tuple, np.argwhere(bounds).tolist()):
                free = inputs[name][int(np.ravel_multi_index(place[1:], bounds.shape[1:]))]
                if free is not None and self._points(free) <= _MOST_POINTS:
                    groups.setdefault(free, []).append((name, place))
        for free, places in groups.items():
            for codes in self._walk(sorted(free)):
                self._hold(codes, part)
            for name, place in places:
                self.proved[name][place] = True

    def _up_to(self, last: int) -> Network:
        """The network cut off behind a node."""
        shape, fmt = self.network.input_shape, self.network.input_format
        return Network(self.network.nodes[: last + 1], input_shape=shape, input_format=fmt)

    def _dependencies(self, network: Network) -> dict[str, list[Inputs | None]]:
        """For each value the inputs that it may depend on; None where these are too many to walk
        through, or where a user's own kind stands before it."""
        none = Inputs()
        inputs: dict[str, list[Inputs | None]] = {
            INPUT: [Inputs([i]) if self._levels(i) > 1 else none for i in range(len(self.lo))]
        }
        for node in network.nodes:
            if type(node.op) in READERS:
                before = [free for name in inputs_of(node) for free in inputs[name]] + [none]
                many = np.array([free is None for free in before])
                rows = (columns for reads in self._reads(node) for columns in reads.used())
                inputs[node.name] = [self._union(before, many, columns) for columns in rows]
            else:
                inputs[node.name] = [None] * prod(network.shapes[node.name])
        return inputs

    def _union(self, before: Sequence[Inputs | None], many: Bits, columns: Codes) -> Inputs | None:
        self._in_time()
        if many[columns].any():
            return None
        union: set[int] = set()
        for column in columns.tolist():
            union |= before[column] or Inputs()
            if len(union) >= _MOST_POINTS.bit_length():  # of two points or more each
                return None
        return Inputs(union)

    # --- a solver -----------------------------------------------------------------------------

    def questions(self) -> None:
        """Of claims that no enumeration settled: does an input lie beyond the bound?

        Raises: MissingExtra; CertificateError with what the solver finds.
        """
        if find_spec("ortools") is None:
            raise MissingExtra("verify", "ortools")
        for last, node in enumerate(self.network.nodes):
            places = np.argwhere(self._open(node.name)).tolist()
            if places and time.monotonic() < self.late:
                model, values = self._modelled(self._up_to(last))
                for end, *index in places if values else ():
                    variable = values[
                        int(np.ravel_multi_index(index, self.network.shapes[node.name]))
                    ]
                    if self._refuted(model, variable, node.name, end, index):
                        self.proved[node.name][(end, *index)] = True

    def _refuted(self, model: Any, variable: Any, name: str, end: int, index: list[int]) -> bool:
        from ortools.sat.python import cp_model

        bound = int(self._bound(name, end)[tuple(index)])
        question, solver = model.clone(), cp_model.CpSolver()
        question.add(variable > bound if end == HI else variable < bound)
        solver.parameters.num_workers = 1
        solver.parameters.max_time_in_seconds = max(0.0, min(1e9, self.late - time.monotonic()))
        answer = solver.solve(question)
        if answer in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            got = f"{solver.value(variable)} of the solver, beyond {_SIDES[end]} = {bound}"
            raise _lie(_place(name, end, index), got, "a bound that holds")
        return bool(answer == cp_model.INFEASIBLE)

    def _modelled(self, network: Network) -> tuple[Any, list[Any]]:
        """A model of all values within their bounds, those of the last node alone without; these.

        No variables where a kind is unknown, or numbers or the whole of it are too large.
        """
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        codes = zip(self.lo.tolist(), self.hi.tolist())
        steps = [model.new_int_var(0, (hi - lo) // self.domain.step, "") for lo, hi in codes]
        values = {INPUT: [lo + self.domain.step * k for lo, k in zip(self.lo.tolist(), steps)]}
        told = 0
        for node in network.nodes:
            layer, last = self.layers[node.name], node is network.nodes[-1]
            most = max(
                0 if layer.mass is None else largest(layer.mass), *map(largest, _ends(layer))
            )
            untold = type(node.op) not in READERS or isinstance(node.op, (Rescale, Softmax))
            if untold or most > _MOST_IN_SOLVER:
                return model, []
            levels = node.op.format.levels if isinstance(node.op, Requantize) else 0
            told += (self._terms(node) + levels) * layer.lo.size
            if told > _LARGEST_MODEL:
                return model, []
            x = [v for name in inputs_of(node) for v in values[name]]
            x.append(code_outside(node.op))
            lo, hi = (end.ravel().tolist() for end in _ends(layer))
            rows = (row for reads in self._reads(node) for row in _rows(reads))
            out = []
            for position, (columns, terms, bias) in enumerate(rows):
                ends = (-(2**53), 2**53) if last else (lo[position], hi[position])
                out.append(model.new_int_var(*ends, ""))
                channel = position // prod(layer.lo.shape[1:])
                _tie(model, node.op, channel, [x[c] for c in columns], terms, bias, out[-1])
            values[node.name] = out
        return model, values[network.output]

    # --- the end ------------------------------------------------------------------------------

    def summary(self, allow_trusted: bool) -> dict[str, int]:
        """How many bounds were confirmed, by proof, and how many are trusted; of samples, where the
        time cut them short, how many were tried and how many were not.

        Raises: CertificateError for what is trusted, unless that is allowed.
        """
        counts: Counter[str] = Counter()
        first = None
        for name, layer in self.layers.items():
            proved = self.proved[name] & (name in self.derived)
            unreached = (layer.status == Status.EXACT) & ~self.reached[name]
            if self.whole and unreached.any():
                end, *index = np.argwhere(unreached)[0].tolist()
                raise _lie(f"{_place(name, end, index)}: status", "exact", "no input reaches it")
            for proof in Proof:
                claimed = layer.proof == proof
                counts[proof.label] += int((claimed & proved & ~unreached).sum())
                counts[f"trusted {proof.label}"] += int((claimed & ~proved).sum())
            counts["trusted exact"] += int((proved & unreached).sum())
            trusted = np.argwhere(unreached | ~proved)
            if len(trusted) and first is None:
                first = _place(name, int(trusted[0][0]), trusted[0][1:].tolist())
        for what, missing in self.missing.items():
            counts[f"trusted {what}"] = missing
            first = first or (what if missing else None)
        if self.missing["samples"]:
            counts["samples"] = self.tried
        found = {label: count for label, count in sorted(counts.items()) if count}
        if first is not None and not allow_trusted:
            what = ", ".join(
                f"{n} {label}"
                for label, n in found.items()
                if "trusted" in label or "samples" in label
            )
            expected = "claims that can be derived again, or allow_trusted=True"
            raise _lie(first, f"one that cannot ({what} in all)", expected)
        return found


def _full(shape: Shape, ends: Ends | None) -> Interval:
    lo, hi = ends or (0, 0)
    return Interval(np.full(shape, lo, dtype=object), np.full(shape, hi, dtype=object))


def _check_sum(layer: LayerCertificate, mass: IntArray, summary: list[Ends | None]) -> None:
    """summary: by formats, by intervals alone, by weights; behind a user's own kind the first is
    None, and the last is not there."""
    stated = _integers(f"{layer.name}.mass", layer.mass, mass.shape, np.int64, object)
    wrong = np.argwhere(stated != mass)
    if len(wrong):
        place = tuple(wrong[0])
        raise _lie(f"{layer.name}.mass{wrong[0].tolist()}", stated[place], mass[place])
    for field, expected in zip(("datatype", "by_interval", "by_weights"), [*summary, None]):
        pair = getattr(layer, field)
        if not (isinstance(pair, tuple) and [type(end) for end in pair] == [int, int]):
            raise _lie(f"{layer.name}.{field}", pair, "two integers")
        _require(f"{layer.name}.{field}", pair, expected or pair)


def _place_corner(
    corners: list[NDArray[np.int8]], inputs: Codes, ways: NDArray[np.int8], size: int
) -> None:
    for corner in corners:
        if not corner[inputs].any():
            corner[inputs] = ways
            return
    corners.append(np.zeros(size, dtype=np.int8))
    corners[-1][inputs] = ways


def _rows(reads: Reads) -> Iterator[tuple[list[int], list[int], int]]:
    """Columns, coefficients and bias of one output after another; no coefficients without sums."""
    for i, columns in enumerate(reads.columns.tolist()):
        if reads.coefficient is None or reads.bias is None:
            yield columns, [], 0
        else:
            yield columns, reads.coefficient[i].tolist(), int(reads.bias[i])


def _tie(
    model: Any, op: Any, channel: int, x: list[Any], terms: list[int], bias: int, y: Any
) -> None:
    """y is what the op makes of x."""
    row = channel if getattr(op, "channels", 1) > 1 else 0
    if terms:
        model.add(y == sum(c * v for c, v in zip(terms, x) if c) + bias)
    elif isinstance(op, Requantize):
        flags = [model.new_bool_var("") for _ in range(op.thresholds.shape[1])]
        for flag, threshold in zip(flags, op.thresholds[row].tolist()):
            limit = min(max(threshold, -(2**53)), 2**53)
            model.add(x[0] >= limit).only_enforce_if(flag)
            model.add(x[0] < limit).only_enforce_if(~flag)
        model.add(y == op.format.q_min + sum(flags))
    elif isinstance(op, Lookup):
        model.add_element(x[0] - op.lo, op.table[row].tolist(), y)
    else:
        model.add_max_equality(y, x)
