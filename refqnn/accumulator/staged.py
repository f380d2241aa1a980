"""Accumulators in stages: which registers hold all their sums, and whether any result changes.

A stage of a node is judged for operands that are exact: the first node whose result is wrong has
such operands, so a network computes what it should for every input if and only if no node changes a
result.  For every stage, one of

    fits        no sum of it leaves its register, for any input
    harmless    sums may leave it, and no result of the node changes, for any input
    harmful     an input whose sum leaves it and whose result is wrong, replayed
    overflows   an input whose sum leaves it and whose result is right; others were not found
    open        neither a proof nor such an input

Bounds come from the intervals of the products (exact where the operands are a box: every product
stands once in a row), carried through the registers, and from enumerations of small domains.  What
they leave open is asked of `find_overflow` about the one sum in question.

A register that wraps at w bits makes something congruent modulo 2**w.  Where all that overflow
wrap, and none of them is narrower than a register behind them that holds every exact sum, what
leaves that register is exact again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import Proof
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.samples import sampled
from refqnn.accumulator.staged_files import decode, encode
from refqnn.accumulator.staged_report import StageReport, StageSum, Verdict
from refqnn.container import read_json, write_json
from refqnn.display import Shown
from refqnn.emulate import Accumulator, Accumulators, Stage, Sums, accumulator_of, check_names
from refqnn.errors import CertificateError, InvalidArgument, NotCovered, mismatch
from refqnn.graph import INPUT, Node, ancestors, inputs_of
from refqnn.limits import EMULATED_WORK, EXHAUSTIVE_LIMIT, at_a_time
from refqnn.network import Network, Trace
from refqnn.ops.base import Ends, IntArray, is_sum, told_role
from refqnn.ops.concat import Concat
from refqnn.ops.linear import Linear
from refqnn.ops.reshape import Flatten
from refqnn.ops.structure import PADDING, Role

if TYPE_CHECKING:
    from refqnn.accumulator.certificate import Certificate

__all__ = ["StageReport", "StageSum", "StagedCertificate", "Verdict", "stage_reports"]

_EXACT = 2**16  # "congruent modulo 2**_EXACT": equal
_ASKED = 8  # sums of one stage that are asked about one by one where no time is left
_TRIES = 1000  # runs that make a witness smaller

Ask = Callable[[Network, Stage, Domain, float], "NDArray[np.int64] | Proof | None"]


@dataclass(frozen=True, eq=False, repr=False)
class StagedCertificate(Shown):
    """What `certify` says of a network under an accumulator.

    Attributes:
        certificate: bounds of the exact values.
        accumulators: as they were given.
        stages: a report for every stage of every node that has an accumulator, innermost first.

    >>> from refqnn import Accumulator, IntFormat, Linear, certify
    >>> net = Network([Node("fc", Linear([[7, 7, -7, -7]]))], input_shape=(4,),
    ...               input_format=IntFormat(2, signed=False))
    >>> pairs = Stage(6, group=2, overflow="saturate")
    >>> print(certify(net, accumulator=Accumulator([pairs, Stage(8)])))
    fc stage 0 (2 -> int6, saturate at every step): harmful, [-42, 42] (exhaustive)
    fc stage 1 (all -> int8, wrap at every step): fits, [-32, 31] (exhaustive)
    >>> certify(net, accumulator=Accumulator([pairs, Stage(8)]))["fc"][0].found.witness
    array([0, 0, 2, 3])
    >>> certify(net, accumulator=Accumulator([Stage(6, group=2), Stage(6)]))["fc"][0].verdict
    <Verdict.HARMFUL: 'harmful'>
    >>> certify(net, accumulator=Accumulator([Stage(6, group=2), Stage(7)])).safe
    False
    >>> certify(net, accumulator=Accumulator([Stage(7, group=2), Stage(7)])).safe
    True
    """

    certificate: Certificate
    accumulators: Accumulators
    stages: tuple[StageReport, ...]

    @property
    def safe(self) -> bool:
        """Is it proved that no node changes a result, for any input of the domain?"""
        return all(report.verdict.proved for report in self.stages)

    def __getitem__(self, layer: str) -> tuple[StageReport, ...]:
        """The reports of one node, innermost stage first.  Raises: InvalidArgument."""
        found = tuple(report for report in self.stages if report.layer == layer)
        if not found:
            names = list(dict.fromkeys(report.layer for report in self.stages))
            raise InvalidArgument(mismatch("layer", repr(layer), f"one of {names}"))
        return found

    def __str__(self) -> str:
        return "\n".join(map(str, self.stages))

    def __repr__(self) -> str:
        counts = Counter(report.verdict.value for report in self.stages)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return f"<StagedCertificate of {self.certificate.digest[:12]}, stages: {told or 'none'}>"

    def __eq__(self, other: object) -> bool:
        """The same claims, about the same network."""
        if not isinstance(other, StagedCertificate):
            return NotImplemented
        return self is other or self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.certificate)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dump."""
        return encode(self.certificate, self.accumulators, self.stages)

    @classmethod
    def from_json(cls, content: object) -> StagedCertificate:
        """The certificate in `to_json` data.  Raises: FileFormatError."""
        return cls(*decode(content))

    def save(self, path: str | Path) -> None:
        """Write it as one JSON file, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> StagedCertificate:
        """Read what `save` wrote.  Raises: FileFormatError; OSError as open does."""
        return read_json(path, cls.from_json)

    def verify(
        self, network: Network, *, budget_s: float | None = None, allow_trusted: bool = False
    ) -> dict[str, int]:
        """Derive the reports again, by code that shares nothing with what made them.

        The certificate of the exact values is verified as it is; bounds and verdicts that rest on
        intervals are computed again in Python integers, inputs that overflow are run again.  What
        enumerations and searches of stages have shown is *trusted*, and so are `open` and
        `overflows`, which claim nothing.

        Args:
            network: must have the digest of the certificate.
            budget_s, allow_trusted: as for `Certificate.verify`.

        Returns: how many claims were confirmed, by what, and how many are trusted.

        Raises: CertificateError for what does not hold, and for trusted claims unless they are
        allowed.
        """
        from refqnn.accumulator.recheck_staged import verify

        return verify(self, network, budget_s=budget_s, allow_trusted=allow_trusted)


def stage_reports(
    network: Network,
    certificate: Certificate,
    accumulators: Accumulators,
    *,
    layer: str | None = None,
    neuron: tuple[int, ...] | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    ask: Ask,
) -> list[StageReport]:
    """A report for every stage of every node that has an accumulator (or of one `layer`).

    Args:
        certificate: of the exact values, over the domain that is meant.
        neuron: the one place of `layer` to look at; None for all.
        budget_s: seconds for searches; None: what needs no search.
        ask: an input beyond a register, a proof, or None, about a network of one sum.

    Raises: NotCovered for a node that does not tell its rows; InvalidArgument for an accumulator of
    no node that sums.
    """
    check_names(accumulators, [node.name for node in network.accumulators()])
    layers, domain = [], certificate.domain
    for node in network.accumulators():
        accumulator = accumulator_of(accumulators, node.name)
        if accumulator is not None and layer in (None, node.name):
            layers.append(_Layer(network, domain, node, accumulator, neuron, certificate))
    deadline = time.monotonic() + (0.0 if budget_s is None else budget_s)
    size = sum(each.terms for each in layers)
    small = not domain.is_box or domain.size <= EXHAUSTIVE_LIMIT
    if small and domain.size * size <= EMULATED_WORK:
        for codes in domain.chunks():
            for start in range(0, len(codes), at_a_time(size)):
                trace = network.trace(codes[start : start + at_a_time(size)])
                for each in layers:
                    each.see(trace)
        return [report for each in layers for report in each.enumerated()]
    none = np.zeros((0, *network.input_shape), dtype=np.int64)
    late = inf if budget_s is None else deadline
    for trace in sampled(network, domain, none, seed):
        for each in layers:
            each.see(trace, late)
        if time.monotonic() >= late:
            break
    reports = []
    for i, each in enumerate(layers):
        now = time.monotonic()
        reports += each.proved(ask, now + max(0.0, deadline - now) / (len(layers) - i))
    return reports


class _Layer:
    """One node under its accumulator.

    Attributes:
        terms: products of all its neurons in one sample.
        seen: of each stage (least, greatest) of what went into its registers.
        found: of each stage an input that overflows, a harmful one where there is one.
    """

    def __init__(
        self,
        network: Network,
        domain: Domain,
        node: Node,
        accumulator: Accumulator,
        neuron: tuple[int, ...] | None,
        certificate: Certificate,
    ) -> None:
        assert is_sum(node.op)
        if told_role(node.op) is not Role.SUM:
            raise NotCovered(f"node {node.name!r}: {node.op.kind} does not tell its rows")
        self.network, self.domain, self.node, self.op = network, domain, node, node.op
        self.accumulator, self.exact = accumulator, certificate[node.name]
        self.operands = [certificate.range(name) for name in inputs_of(node)]
        self.shape = network.shapes[node.name]
        self.places = np.arange(prod(self.shape))  # of the neurons that are asked about
        if neuron is not None:
            self.places = np.array([np.ravel_multi_index(neuron, self.shape)])
        self.products, self.bias = self._products()
        self.terms = self.products[0].size
        self.seen: list[Ends | None] = [None] * len(accumulator.stages)
        self.found: list[StageSum | None] = [None] * len(accumulator.stages)

    def _products(self) -> tuple[list[IntArray], IntArray | None]:
        """Of the lower and upper ends of the operands the products in their order, [neurons, K];
        and the bias [neurons]."""
        sides = [
            self.accumulator.ordered(self.op, tuple(side))
            for side in zip(*((r.lo[None], r.hi[None]) for r in self.operands))
        ]
        products = [p.reshape(-1, p.shape[-1])[self.places] for p, _ in sides]
        bias = sides[0][1]
        added = None if bias is None else bias.reshape(-1)[self.places].astype(object)
        mass = max(np.abs(p.astype(np.float64)).sum(axis=1).max() for p in products)
        if mass + (0 if added is None else np.abs(added).max()) < 2**62:
            products = [p.astype(np.int64) for p in products]
        else:
            products = [p.astype(object) for p in products]
        return products, added

    # --- what inputs show -------------------------------------------------------------------

    def see(self, trace: Trace, late: float = inf) -> None:
        """Remember what the stages do on these inputs, as far as the time reaches."""
        sources = tuple(trace[name] for name in inputs_of(self.node))
        block = at_a_time(self.terms)
        for start in range(0, len(trace[INPUT]), block):
            if time.monotonic() >= late:
                return
            part = slice(start, start + block)
            result, history = self._run(tuple(v[part] for v in sources))
            exact = trace[self.node.name][part].reshape(len(result), -1)[:, self.places]
            error = np.zeros(result.shape, dtype=bool)  # in whichever stage
            for stage, sums in zip(self.accumulator.stages, history):
                if stage.overflow == "error":
                    error |= ~stage.holds(sums.least, sums.greatest).all(axis=-1)
            for number, sums in enumerate(history):
                self._see(number, sums, exact, result, error, trace[INPUT][part])

    def _see(
        self,
        number: int,
        sums: Sums,
        exact: IntArray,
        result: IntArray,
        error: NDArray[np.bool_],
        codes: NDArray[np.int64],
    ) -> None:
        least, greatest = int(sums.least.min()), int(sums.greatest.max())
        before, known = self.seen[number] or (least, greatest), self.found[number]
        self.seen[number] = min(before[0], least), max(before[1], greatest)
        stage = self.accumulator.stages[number]
        outside = ~stage.holds(sums.least, sums.greatest)  # [n, neurons, groups]
        if not outside.any() or (known is not None and known.harmful):
            return
        harmful = outside & (error | (result != exact))[..., None]
        if known is not None and not harmful.any():
            return
        at = tuple(int(i) for i in np.argwhere(harmful if harmful.any() else outside)[0])
        low, sample, neuron = int(sums.least[at]), at[0], at[:2]
        self.found[number] = StageSum(
            neuron=self._neuron(at[1]),
            group=at[2],
            witness=codes[sample],
            value=low if low < stage.ends[0] else int(sums.greatest[at]),
            exact=int(exact[neuron]),
            result=None if error[neuron] else int(result[neuron]),
        )

    def _run(self, x: tuple[IntArray, ...]) -> tuple[IntArray, list[Sums]]:
        """The accumulator without errors: results [n, neurons], sums [n, neurons, groups]."""
        stages = [
            replace(s, overflow="saturate") if s.overflow == "error" else s
            for s in self.accumulator.stages
        ]
        result, history = replace(self.accumulator, stages=stages).run(self.op, x)
        n = len(result)

        def picked(values: IntArray) -> IntArray:
            return values.reshape(n, -1, values.shape[-1])[:, self.places]

        sums = [Sums(*map(picked, (s.acc, s.least, s.greatest))) for s in history]
        return result.reshape(n, -1)[:, self.places], sums

    def enumerated(self) -> Iterator[StageReport]:
        """The truth, after all inputs were seen."""
        for number, (found, seen) in enumerate(zip(self.found, self.seen)):
            assert seen is not None
            verdict = Verdict.FITS if found is None else Verdict.HARMLESS
            if found is not None and found.harmful:
                verdict = Verdict.HARMFUL
            yield self._reported(number, seen, verdict, Proof.EXHAUSTIVE)

    # --- what is proved ---------------------------------------------------------------------

    def proved(self, ask: Ask, deadline: float) -> list[StageReport]:
        """Stage after stage: intervals, then a question for each sum that they leave open."""
        state = _State.of_products(*self.products)
        rows: list[tuple[Ends, Proof | None, int]] = []
        for number, stage in enumerate(self.accumulator.stages):
            if number == len(self.accumulator.stages) - 1 and self.bias is not None:
                state = state.with_bias(self.bias, self.accumulator.bias)
            low, high = state.hull(stage)
            proof = None if (~stage.holds(low, high)).any() else Proof.INTERVAL
            if proof is None and state.linear and self.found[number] is None:
                proof = self._asked(number, low, high, ask, deadline)
            if proof is None:
                low, high = state.hull(stage, held=True)
            elif proof is not Proof.INTERVAL:
                low, high = (np.clip(v, *stage.ends) for v in (low, high))
            excess = np.maximum(stage.ends[0] - low, high - stage.ends[1]).max(axis=(1, 2))
            rows.append(((int(low.min()), int(high.max())), proof, int(excess.argmax())))
            state = state.after(stage, proof is not None)
        never = self._never_changes(state)
        return [self._report(i, *row, never) for i, row in enumerate(rows)]

    def _never_changes(self, state: _State) -> bool:
        """Is every result the exact sum?

        The proved range of the node may say more than the intervals of its products.
        """
        if (state.modulus == _EXACT).all():
            return True
        last = self.accumulator.stages[-1]
        low, high = (v.reshape(-1)[self.places] for v in (self.exact.lo, self.exact.hi))
        if self.bias is not None and self.accumulator.bias == "outside":
            low, high = low.astype(object) - self.bias, high.astype(object) - self.bias
        return bool((state.modulus >= last.width).all() and last.holds(low, high).all())

    def _report(
        self, number: int, range_: Ends, proof: Proof | None, widest: int, never: bool
    ) -> StageReport:
        found = self.found[number]
        verdict = Verdict.OPEN if found is None else Verdict.OVERFLOWS
        if proof is not None:
            verdict = Verdict.FITS
        elif never:
            verdict = Verdict.HARMLESS
        elif found is not None and found.harmful:
            verdict = Verdict.HARMFUL
        least, greatest = self.seen[number] or range_
        contradicted = not range_[0] <= least <= greatest <= range_[1]
        if contradicted or (found is not None and found.harmful and never):
            raise CertificateError(
                f"internal error: {self.node.name!r} contradicts a proof of its stage {number}, "
                f"network {self.network.digest}; please report it"
            )
        report = self._reported(number, range_, verdict, proof or Proof.INTERVAL)
        return report if verdict.proved else replace(report, widest=self._neuron(widest))

    def _neuron(self, place: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(self.places[place], self.shape))

    def _reported(self, number: int, range_: Ends, verdict: Verdict, proof: Proof) -> StageReport:
        stage, smallest = self.accumulator.stages[number], self._smallest(number)
        return StageReport(self.node.name, number, stage, range_, verdict, proof, smallest)

    def _asked(
        self, number: int, low: IntArray, high: IntArray, ask: Ask, deadline: float
    ) -> Proof | None:
        """A proof that no sum leaves the stage, or None; an input that does is remembered.

        Args:
            low, high: of the exact sums, [neurons, groups, steps].
        """
        stage, best = self.accumulator.stages[number], Proof.INTERVAL
        excess = np.maximum(stage.ends[0] - low, high - stage.ends[1])
        suspects = np.argwhere(excess > 0)
        widest_first = np.argsort(-excess[tuple(suspects.T)].astype(float), kind="stable")
        for i, suspect in enumerate(suspects[widest_first].tolist()):
            now = time.monotonic()
            if i >= _ASKED and now >= deadline:
                return None
            part = self._partial(number, *suspect)
            share = max(0.0, deadline - now) / min(len(suspects) - i, 16)
            answer = None if part is None else ask(part, stage, self.domain, share)
            if answer is None:
                return None
            if not isinstance(answer, Proof):
                self.see(self.network.trace(answer[None]))
                return None
            best = max(best, answer)
        return best

    def _partial(self, number: int, place: int, group: int, step: int) -> Network | None:
        """A network whose one output is the exact sum of a group up to a step."""
        shapes = [range_.shape for range_ in self.operands]
        rows = self.op.rows(shapes, self.places[[place]])
        order = self.accumulator.places(rows.column.shape[1], self.op.term_channels)
        chosen, with_bias = self._span(number, group, step, len(order))
        column, coefficient = (v[0, order[chosen]] for v in (rows.column, rows.coefficient))
        low = np.concatenate([range_.lo.reshape(-1) for range_ in self.operands])
        row = np.zeros(len(low), dtype=object)
        np.add.at(row, column[column != PADDING], coefficient[column != PADDING].astype(object))
        # What is left of the products at the lower ends are those with padding.
        products = self.products[0][place, chosen].astype(object).sum()
        bias = self.bias[place] if with_bias and self.bias is not None else 0
        constant = int(products - (row * low).sum() + bias)
        if not all(-(2**63) <= v < 2**63 for v in [constant, *row]):
            return None
        return _sum_of(self.network, self.node, row[None].astype(np.int64), constant)

    def _span(self, number: int, group: int, step: int, products: int) -> tuple[slice, bool]:
        """Which products stand in a group up to a step, and whether the bias does."""
        stage, last = self.accumulator.stages[number], len(self.accumulator.stages) - 1
        unit = prod(s.group or 1 for s in self.accumulator.stages[:number])  # products of a value
        values = -(-products // unit) if stage.group is None else int(stage.group)
        biased = number == last and self.bias is not None and self.accumulator.bias != "outside"
        if stage.when == "end":
            step = values if biased else values - 1
        first = group * values * unit
        if biased and self.accumulator.bias == "first":
            return slice(0, step * unit), True
        return slice(first, first + (step + 1) * unit), biased and step == values

    def _smallest(self, number: int) -> StageSum | None:
        """The input made smaller while it still does what it did, code by code towards 0."""
        found = self.found[number]
        if found is None or not self.domain.is_box:
            return found
        hull, step = self.domain.hull, self.domain.step
        zero = np.clip(0, hull.lo, hull.hi)
        zero = (zero + (zero - hull.lo) % step).reshape(-1)
        codes, size = found.witness.reshape(-1), found.witness.size
        tries = min(_TRIES, 2**26 // self.terms)
        while size:
            before = codes
            for start in range(0, len(codes), size):
                part, failed = slice(start, start + size), None
                target = zero[part]
                while tries > 0 and (codes[part] != target).any():
                    smaller, tries = codes.copy(), tries - 1
                    smaller[part] = target
                    better = self._again(number, smaller, found)
                    if better is not None:
                        codes, found = smaller, better
                    else:
                        failed = target
                    if failed is None or size > 1 or abs(codes[start] - failed[0]) <= step:
                        break
                    target = failed + (codes[part] - failed) // (2 * step) * step
            if size > 1 or codes is before:  # one that grew smaller may let another one
                size //= 2
        return found

    def _again(self, number: int, codes: NDArray[np.int64], found: StageSum) -> StageSum | None:
        """What these codes do at this stage, where it is no less than what was found."""
        other = _Layer.__new__(_Layer)
        other.__dict__ = {**self.__dict__, "seen": [None] * len(self.seen)}
        other.found = [None] * len(self.found)
        other.see(self.network.trace(codes.reshape(1, *self.network.input_shape)))
        now = other.found[number]
        return now if now is not None and now.harmful >= found.harmful else None


@dataclass(frozen=True, eq=False)
class _State:
    """What is known of the values between two stages, [neurons, values] each.

    Attributes:
        low, high: of the values.
        modulus: they are congruent to the exact sums modulo 2**modulus.
        linear: are they the exact sums, for every input?
        exact_low, exact_high: of the exact sums.
    """

    low: IntArray
    high: IntArray
    modulus: NDArray[np.int64]
    linear: bool
    exact_low: IntArray
    exact_high: IntArray

    @classmethod
    def of_products(cls, at_low: IntArray, at_high: IntArray) -> _State:
        low, high = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
        return cls(low, high, np.full(low.shape, _EXACT), True, low, high)

    def with_bias(self, bias: IntArray, where: str) -> _State:
        """The bias as a value more, the first or the last."""
        if where == "outside":
            return self

        def joined(values: IntArray, more: IntArray) -> IntArray:
            both = [values, more[:, None].astype(values.dtype)]
            return np.concatenate(both[::-1] if where == "first" else both, axis=1)

        sums = (self.low, self.high, self.exact_low, self.exact_high)
        low, high, exact_low, exact_high = (joined(v, bias) for v in sums)
        modulus = joined(self.modulus, np.full(len(bias), _EXACT))
        return _State(low, high, modulus, self.linear, exact_low, exact_high)

    def hull(self, stage: Stage, *, held: bool = False) -> tuple[IntArray, IntArray]:
        """What goes into the registers, [neurons, groups, steps] (one step for an end).

        Args:
            held: where a sum may leave its register, go on from what that holds; without it, from
                the sum: right up to the first that leaves.
        """
        low, high = _grouped(stage, self.low), _grouped(stage, self.high)
        if stage.when == "end":
            return low.sum(axis=-1, keepdims=True), high.sum(axis=-1, keepdims=True)
        if not held and self.linear:
            return low.cumsum(axis=-1), high.cumsum(axis=-1)
        lows, highs = [low[..., 0]], [high[..., 0]]
        for k in range(1, low.shape[-1]):
            least, greatest = _held(stage, lows[-1], highs[-1])
            lows.append(least + low[..., k])
            highs.append(greatest + high[..., k])
        return np.stack(lows, axis=-1), np.stack(highs, axis=-1)

    def after(self, stage: Stage, fits: bool) -> _State:
        """The values behind a stage; `fits` where no sum leaves it."""
        least, greatest = (
            _grouped(stage, v).sum(axis=-1) for v in (self.exact_low, self.exact_high)
        )
        modulus = (_grouped(stage, self.modulus - _EXACT) + _EXACT).min(axis=-1)  # zeros are exact
        if not fits and stage.overflow == "wrap":
            whole = stage.holds(least, greatest) & (modulus >= stage.width)
            modulus = np.where(whole, _EXACT, np.minimum(modulus, stage.width))
        elif not fits:
            modulus = np.zeros_like(modulus)
        if (modulus == _EXACT).all():
            return _State(least, greatest, modulus, True, least, greatest)
        low, high = self.hull(stage, held=True)
        low, high = _held(stage, low[..., -1], high[..., -1])
        return _State(low, high, modulus, False, least, greatest)


def _grouped(stage: Stage, values: IntArray) -> IntArray:
    """[neurons, m] as [neurons, groups, group], the last group filled with zeros."""
    m = values.shape[-1]
    size = m if stage.group is None else int(stage.group)
    return np.pad(values, ((0, 0), (0, -m % size))).reshape(len(values), -1, size)


def _held(stage: Stage, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
    """Bounds of what a register holds of sums between low and high."""
    q_min, q_max = stage.ends
    if stage.overflow != "wrap":
        return np.clip(low, q_min, q_max), np.clip(high, q_min, q_max)
    inside = stage.holds(low, high)
    return np.where(inside, low, q_min), np.where(inside, high, q_max)


def _sum_of(network: Network, node: Node, row: NDArray[np.int64], constant: int) -> Network:
    """The program before a node, and behind it one sum over the node's operands."""
    used = {other.name for other in network.nodes} | {INPUT}

    def name(wish: str) -> str:
        while wish in used:
            wish += "_"
        used.add(wish)
        return wish

    nodes = ancestors(network.nodes, node.name)[:-1]
    flat = [Node(name(f"{source} flat"), Flatten(), (source,)) for source in inputs_of(node)]
    nodes += flat
    if len(flat) > 1:
        nodes.append(Node(name("operands"), Concat(), tuple(each.name for each in flat)))
    nodes.append(Node(name("sum"), Linear(row, np.array([constant]))))
    return Network(nodes, input_shape=network.input_shape, input_format=network.input_format)
