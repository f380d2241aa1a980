"""StagedCertificate.verify: every report on a stage derived again, in Python integers.

Nothing here is shared with `staged` or with the registers of `refqnn.emulate`: products come from
the readings of `recheck`, registers are loops over integers.

    interval      bounds of the products carried through the registers, once more
    exhaustive    every input, where there are at most 2**18 products in all of them
    an input      its sums, its result and the exact one
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from refqnn.accumulator.bounds import Proof
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.readings import READERS, Ends, code_outside
from refqnn.emulate import Accumulator, Stage, accumulator_of
from refqnn.errors import CertificateError, mismatch
from refqnn.exact import trace
from refqnn.graph import Node, ancestors, inputs_of
from refqnn.network import Network
from refqnn.ops import Conv1d, Conv2d, ConvTranspose2d
from refqnn.ops.base import IntArray

if TYPE_CHECKING:
    from refqnn.accumulator.staged import StagedCertificate, StageReport

__all__ = ["verify"]

_MOST_PRODUCTS = 2**18  # of an enumeration
_EQUAL = 10**6  # bits modulo which a value is known, when it is known to be exact

Row = list[tuple[int, int, int]]  # of each value lo, hi, and the bits modulo which it is exact
Group = tuple[int, int]  # least and greatest that went into a register
V = TypeVar("V")


def verify(
    staged: StagedCertificate,
    network: Network,
    *,
    budget_s: float | None = None,
    allow_trusted: bool = False,
) -> dict[str, int]:
    """See `StagedCertificate.verify`."""
    certificate = staged.certificate
    exact = certificate.verify(network, budget_s=budget_s, allow_trusted=allow_trusted)
    counts = Counter(exact)
    seen: dict[str, list[StageReport]] = {}
    for report in staged.stages:
        seen.setdefault(report.layer, []).append(report)
    summing = [node.name for node in network.accumulators()]
    judged = [name for name in summing if accumulator_of(staged.accumulators, name) is not None]
    if set(judged) != set(seen):
        raise CertificateError(mismatch("stages", f"reports on {list(seen)}", f"on {judged}"))
    for layer, reports in seen.items():
        accumulator = accumulator_of(staged.accumulators, layer)
        stages = [(r.number, r.stage) for r in reports]
        if accumulator is None or stages != list(enumerate(accumulator.stages)):
            raise CertificateError(mismatch(f"{layer}: stages", stages, "those of its accumulator"))
        check = _Check(staged, network, network[layer], accumulator)
        for report in reports:
            if report.found is not None:
                check.witness(report)
                counts["stages: inputs"] += 1
        counts.update(check.claims(reports))
    trusted = sum(n for label, n in counts.items() if label.startswith("trusted stages"))
    if trusted and not allow_trusted:
        got = f"{trusted} that only what made them says"
        raise CertificateError(mismatch("reports of stages", got, "none, or allow_trusted"))
    return dict(counts)


class _Check:
    """One node under its accumulator."""

    def __init__(
        self, staged: StagedCertificate, network: Network, node: Node, accumulator: Accumulator
    ) -> None:
        self.network, self.node, self.accumulator = network, node, accumulator
        stages = [
            replace(s, overflow="saturate") if s.overflow == "error" else s
            for s in accumulator.stages
        ]
        self.silent = replace(accumulator, stages=stages)  # the error may be of another neuron
        self.before = Network(  # what comes behind need not take a wrong result
            ancestors(network.nodes, node.name),
            input_shape=network.input_shape,
            input_format=network.input_format,
        )
        self.certificate, self.domain = staged.certificate, staged.certificate.domain
        shapes, out = [network.shapes[n] for n in inputs_of(node)], network.shapes[node.name]
        self.known = type(node.op) in READERS
        if self.known:
            at = np.arange(prod(out))
            self.reads = READERS[type(node.op)](node.op, shapes, out, at)
            self.order = _order(accumulator, node, self.reads.columns.shape[1])
        self.has_bias = getattr(node.op, "bias", None) is not None

    def _operands(self, values: dict[str, IntArray]) -> list[int]:
        """Values of one sample laid end to end, the code of the padding behind them."""
        flat = [int(v) for n in inputs_of(self.node) for v in np.ravel(values[n]).tolist()]
        return [*flat, code_outside(self.node.op)]

    def _rows(self, low: list[int], high: list[int]) -> Iterator[tuple[Row, Row]]:
        """Of each neuron the products in their order and the bias, between two operands."""
        coefficients, biases = self.reads.coefficient, self.reads.bias
        assert coefficients is not None
        assert biases is not None
        rows = zip(self.reads.columns.tolist(), coefficients.tolist(), biases.tolist())
        for columns, weights, bias in rows:
            ends = [sorted((w * low[c], w * high[c])) for c, w in zip(columns, weights)]
            added = [(bias, bias, _EQUAL)] if self.has_bias else []
            yield [(ends[i][0], ends[i][1], _EQUAL) for i in self.order], added

    # --- an input that overflows ------------------------------------------------------------

    def witness(self, report: StageReport) -> None:
        found, layer = report.found, report.layer
        assert found is not None
        if not self.domain.contains(found.witness[None])[0]:
            raise _lie(report, "an input outside the domain", "one inside")
        place = int(np.ravel_multi_index(found.neuron, self.network.shapes[layer]))
        exact = trace(self.network, found.witness[None].tolist())
        value = np.ravel(exact[layer][0]).tolist()[place]
        if found.exact != value:
            raise _lie(report, f"exact = {found.exact}", value)
        if found.result is not None:
            under = trace(self.before, found.witness[None].tolist(), {layer: self.silent})
            result = np.ravel(under[layer][0]).tolist()[place]
            if found.result != result:
                raise _lie(report, f"result = {found.result}", result)
        if not self.known:
            return
        values = {name: np.array(v[0], dtype=object) for name, v in exact.items()}
        operands = self._operands(values)
        row, bias = list(self._rows(operands, operands))[place]
        groups, _ = self._sums([v for v, _, _ in row], [v for v, _, _ in bias])
        if self._fails(groups) != (found.result is None):
            raise _lie(report, f"result = {found.result}", "None for an error, and then alone")
        ends = groups[report.number]
        if not 0 <= found.group < len(ends):
            raise _lie(report, f"group {found.group}", f"one of {len(ends)}")
        if found.value not in ends[found.group]:
            raise _lie(report, f"value = {found.value}", ends[found.group])
        if _holds(report.stage, found.value, found.value):
            raise _lie(report, f"value = {found.value}", "one outside the register")

    def _sums(self, products: list[int], bias: list[int]) -> tuple[list[list[Group]], int]:
        """What goes into the registers of each stage, and the result."""
        values, history = products, []
        for number, stage in enumerate(self.accumulator.stages):
            if number == len(self.accumulator.stages) - 1:
                values = _with_bias(values, bias, self.accumulator.bias)
            made, groups = [], []
            for group in _groups(values, stage):
                acc, met = 0, []
                for value in [sum(group)] if stage.when == "end" else group:
                    met.append(acc + value)
                    acc = _fit(stage, met[-1])
                made.append(acc)
                groups.append((min(met), max(met)))
            values = made
            history.append(groups)
        return history, values[0] + sum(bias if self.accumulator.bias == "outside" else [])

    def _fails(self, history: list[list[Group]]) -> bool:
        """Does a register with errors meet what it does not hold?"""
        return any(
            stage.overflow == "error" and not all(_holds(stage, *ends) for ends in groups)
            for stage, groups in zip(self.accumulator.stages, history)
        )

    # --- claims about all inputs ------------------------------------------------------------

    def claims(self, reports: list[StageReport]) -> Counter[str]:
        """Confirmed and trusted reports of this node, counted."""
        counts: Counter[str] = Counter()
        if self.known and all(report.proof is Proof.EXHAUSTIVE for report in reports):
            if self.domain.size * self.reads.columns.size <= _MOST_PRODUCTS:
                self._enumerate(reports)
                return Counter({"stages: exhaustive": len(reports)})
            return Counter({"trusted stages": len(reports)})
        whole = self.known and self._carried(reports)
        for report in (r for r in reports if r.verdict.proved):
            sure = self.known and (
                whole if report.verdict.value == "harmless" else report.proof is Proof.INTERVAL
            )
            counts["stages: interval" if sure else "trusted stages"] += 1
        return counts

    def _enumerate(self, reports: list[StageReport]) -> None:
        for codes in _points(self.domain):
            values = {n: v[0] for n, v in self.network.trace(codes[None]).items()}
            operands = self._operands(values)
            exact = np.ravel(values[self.node.name]).tolist()
            for (row, bias), right in zip(self._rows(operands, operands), exact):
                history, result = self._sums([v for v, *_ in row], [v for v, *_ in bias])
                changed = result != right or self._fails(history)
                for report, groups in zip(reports, history):
                    ends = min(low for low, _ in groups), max(high for _, high in groups)
                    if not report.range[0] <= ends[0] <= ends[1] <= report.range[1]:
                        raise _lie(report, f"range {report.range}", f"{list(ends)} in it")
                    outside = not _holds(report.stage, *ends)
                    if (report.verdict.value == "fits" and outside) or (
                        report.verdict.value == "harmless" and outside and changed
                    ):
                        raise _lie(report, report.verdict.value, f"not so for {codes.tolist()}")

    def _carried(self, reports: list[StageReport]) -> bool:
        """Do intervals show that no result changes?  Raises where a claim of theirs is false."""
        low = self._operands({n: r.lo for n, r in self.certificate.ranges.items()})
        high = self._operands({n: r.hi for n, r in self.certificate.ranges.items()})
        whole, proved = True, self.certificate.range(self.node.name)
        ends = zip(np.ravel(proved.lo).tolist(), np.ravel(proved.hi).tolist())
        for (row, bias), (least, greatest) in zip(self._rows(low, high), ends):
            values, exact = row, [(lo, hi) for lo, hi, _ in row]
            for number, report in enumerate(reports):
                if number == len(reports) - 1:
                    values = _with_bias(values, bias, self.accumulator.bias)
                    added = [(lo, hi) for lo, hi, _ in bias]
                    exact = _with_bias(exact, added, self.accumulator.bias)
                    shift = sum(b for b, _ in added) if self.accumulator.bias == "outside" else 0
                    sure = report.stage, least - shift, greatest - shift
                trusted = report.verdict.value == "fits" and report.proof is not Proof.INTERVAL
                values, exact = self._through(report, values, exact, trusted)
            (_, _, bits) = values[0]
            whole &= bits == _EQUAL or (bits >= sure[0].width and _holds(*sure))
        return whole

    def _through(
        self, report: StageReport, values: Row, exact: list[Group], trusted: bool
    ) -> tuple[Row, list[Group]]:
        stage, made, sums = report.stage, [], []
        for group, parts in zip(_groups(values, stage), _groups(exact, stage)):
            whole = sum(lo for lo, _ in parts), sum(hi for _, hi in parts)
            bits, fits, low, high = min(m for *_, m in group), True, 0, 0
            steps = [(lo, hi) for lo, hi, _ in group]
            if stage.when == "end":
                steps = [(sum(lo for lo, _ in steps), sum(hi for _, hi in steps))]
            for lo, hi in steps:
                low, high = low + lo, high + hi
                if not trusted and not report.range[0] <= low <= high <= report.range[1]:
                    raise _lie(report, f"range {report.range}", f"[{low}, {high}] in it")
                if not _holds(stage, low, high):
                    fits = False
                    if not trusted:
                        low, high = _least_and_greatest(stage, low, high)
            if not fits and report.verdict.value == "fits" and not trusted:
                raise _lie(report, "fits", f"sums beyond {stage.ends}")
            if not fits and not trusted:
                wraps = stage.overflow == "wrap"
                recovered = wraps and bits >= stage.width and _holds(stage, *whole)
                bits = _EQUAL if recovered else min(bits, stage.width) if wraps else 0
            low, high = whole if bits == _EQUAL else (low, high)
            made.append((low, high, bits))
            sums.append(whole)
        return made, sums


def _lie(report: StageReport, got: object, expected: object) -> CertificateError:
    return CertificateError(mismatch(f"{report.layer} stage {report.number}", got, str(expected)))


def _order(accumulator: Accumulator, node: Node, products: int) -> list[int]:
    """Which product comes first, second, ..."""
    if not isinstance(accumulator.order, str):
        return list(accumulator.order)
    channels, op = 1, node.op
    if isinstance(op, (Conv1d, Conv2d)):
        channels = op.weight.shape[1]
    elif isinstance(op, ConvTranspose2d):
        channels = op.weight.shape[0] // op.groups
    kernel = products // channels
    if accumulator.order == "channels_last":
        return [c * kernel + k for k in range(kernel) for c in range(channels)]
    return list(range(products))[:: -1 if accumulator.order == "reverse" else 1]


def _with_bias(values: list[V], bias: list[V], where: str) -> list[V]:
    if where == "first":
        return bias + values
    return values + bias if where == "last" else values


def _groups(values: list[V], stage: Stage) -> list[list[V]]:
    size = len(values) if stage.group is None else int(stage.group)
    return [values[i : i + size] for i in range(0, len(values), size)]


def _holds(stage: Stage, low: int, high: int) -> bool:
    half = 1 << (int(stage.width) - 1)
    if stage.signed:
        return -half <= low and high < half
    return low >= 0 and high < 2 * half


def _fit(stage: Stage, acc: int) -> int:
    """What the register holds; an error counts as saturation."""
    whole = 1 << int(stage.width)
    least = -(whole // 2) if stage.signed else 0
    if stage.overflow != "wrap":
        return max(least, min(acc, least + whole - 1))
    return least + (acc - least) % whole


def _least_and_greatest(stage: Stage, low: int, high: int) -> Ends:
    if stage.overflow == "wrap":
        return stage.ends
    return _fit(stage, low), _fit(stage, high)


def _points(domain: Domain) -> Iterator[IntArray]:
    if domain.listed is not None:
        yield from domain.listed
        return
    low, high = domain.hull.lo, domain.hull.hi
    ends = zip(low.ravel().tolist(), high.ravel().tolist())
    levels = [range(a, b + 1, domain.step) for a, b in ends]
    for codes in product(*levels):
        yield np.array(codes, dtype=np.int64).reshape(low.shape)
