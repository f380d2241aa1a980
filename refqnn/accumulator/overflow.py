"""find_overflow: an input that overflows an accumulator, or a proof that none does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.arguments import generator_seed, index_of, seconds, summing, the_network
from refqnn.accumulator.bounds import HI, LO, Progress, Proof, Status
from refqnn.accumulator.certificate import Certificate, about_one_sum, certify, check_usable
from refqnn.accumulator.deciding import decided
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.samples import sampled
from refqnn.accumulator.staged import StageReport, stage_reports
from refqnn.display import Shown
from refqnn.emulate import Accumulators, Stage, check_width
from refqnn.errors import CertificateError, InvalidArgument, mismatch
from refqnn.network import Network

__all__ = [
    "NoOverflow",
    "Overflow",
    "StageOverflow",
    "Unknown",
    "find_overflow",
]


@dataclass(frozen=True, eq=False)
class Overflow(Shown):
    """An input whose accumulator leaves the range, replayed through `Network.trace`.

    Attributes:
        layer, neuron: where.
        witness: input codes [*input_shape].
        value: the accumulator for this input.
        limits: (lo, hi) of the width asked for; value lies outside.
    """

    layer: str
    neuron: tuple[int, ...]
    witness: NDArray[np.int64]
    value: int
    limits: tuple[int, int]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    def __hash__(self) -> int:
        return hash((self.layer, self.neuron, self.value, self.limits))

    def __str__(self) -> str:
        lo, hi = self.limits
        return f"{self.layer}{list(self.neuron)}: reaches {self.value}, outside [{lo}, {hi}]"


@dataclass(frozen=True, eq=False)
class StageOverflow(Overflow):
    """An input that makes a stage of an accumulator overflow, and the result of the neuron wrong.

    Attributes:
        layer, neuron, witness, value, limits: as for `Overflow`, of the sum in the stage.
        stage, group: which stage (0 is the innermost), and which of its sums.
        exact: what the neuron should be.
        result: what the accumulator makes of it; None for an error.
    """

    stage: int
    group: int
    exact: int
    result: int | None

    @classmethod
    def of(cls, report: StageReport) -> StageOverflow | None:
        """What a report found, if it is harmful."""
        found = report.found
        if found is None or not found.harmful:
            return None
        return cls(
            *(report.layer, found.neuron, found.witness, found.value, report.stage.ends),
            *(report.number, found.group, found.exact, found.result),
        )

    def __str__(self) -> str:
        got = "an error" if self.result is None else self.result
        return f"{super().__str__()} in stage {self.stage}: {got} instead of {self.exact}"


@dataclass(frozen=True)
class NoOverflow(Shown):
    """No input of the domain overflows; under an accumulator, none changes a result.

    Attributes:
        range: proved (least lower bound, greatest upper bound) of the neurons asked about.
        limits: (lo, hi) of the width asked for.
        proofs: what it took.
        stages: under an accumulator, what is known of each stage; range and limits are then those
            of the stage that comes nearest to its limits.
    """

    range: tuple[int, int]
    limits: tuple[int, int]
    proofs: tuple[Proof, ...]
    stages: tuple[StageReport, ...] = ()

    def __str__(self) -> str:
        lo, hi = self.limits
        how = ", ".join(proof.label for proof in self.proofs)
        return f"no overflow: proved inside [{lo}, {hi}] ({how})"


@dataclass(frozen=True)
class Unknown(Shown):
    """The time ran out: no input found that overflows, and no proof.

    Attributes:
        neurons: (layer, neuron) pairs that are open.
        range: proved (lo, hi) over these neurons, which leaves the limits.
        limits: (lo, hi) of the width asked for.
        stages: under an accumulator, what is known of each stage; range and limits are then those
            of the first that is open, and its widest neuron stands for all.
    """

    neurons: tuple[tuple[str, tuple[int, ...]], ...]
    range: tuple[int, int]
    limits: tuple[int, int]
    stages: tuple[StageReport, ...] = ()

    def __str__(self) -> str:
        (layer, neuron), others = self.neurons[0], len(self.neurons) - 1
        more = f" and {others} more" if others else ""
        return f"unknown: {layer}{list(neuron)}{more}, proved range {list(self.range)}"


def find_overflow(
    network: Network,
    layer: str | None = None,
    neuron: int | tuple[int, ...] | None = None,
    bits: int = 8,
    signed: bool = True,
    *,
    domain: object = None,
    budget_s: float | None = 60.0,
    certificate: Certificate | None = None,
    allow_trusted: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    accumulator: Accumulators | None = None,
) -> Overflow | NoOverflow | Unknown:
    """Can an accumulator leave the integers of a width, or a stage of it change a result?

    Args:
        network: the integer program.
        layer: name of an accumulating node; None for all.
        neuron: index in a sample of that node; None for all of them.
        bits: width of the accumulator, 1 to 64.
        signed: two's complement, or unsigned.
        domain: as for `certify`.
        budget_s: seconds for the searches; None for no limit.
        certificate: bounds of the same network and domain to start from; verified unless `certify`
            made it in this process.
        allow_trusted: as for `Certificate.verify`.
        seed: of the random starting points.
        progress: called with (what, done, total).
        accumulator: what the sums go through, as for `Network.trace`; bits and signed are not
            looked at then.

    Returns: `Overflow` with an input that was replayed; `NoOverflow`, a proof for every input of
        the domain; or `Unknown` when the time ran out.  With an accumulator, `StageOverflow` for a
        result that is wrong; sums that wrap and change none are in `NoOverflow.stages`.

    Raises: InvalidArgument, InvalidType; CertificateError for a certificate of something else.

    >>> from refqnn import IntFormat, Linear, Node
    >>> fc1 = Node("fc1", Linear([[1, -2]], [3]))
    >>> net = Network([fc1], input_shape=(2,), input_format=IntFormat(3, signed=False))
    >>> print(find_overflow(net, "fc1", 0, bits=4))
    fc1[0]: reaches -11, outside [-8, 7]
    >>> print(find_overflow(net, "fc1", 0, bits=5))
    no overflow: proved inside [-16, 15] (exhaustive)
    """
    the_network(network)
    limits, budget, seed = _limits(bits, signed), seconds(budget_s), generator_seed(seed)
    where = Domain.of(network, domain)
    names = summing(network, layer)
    if neuron is not None and layer is None:
        raise InvalidArgument(mismatch("neuron", neuron, "None where layer is None"))
    only = None if neuron is None else index_of(neuron, network.shapes[names[0]], "neuron")
    if certificate is None:
        certificate = certify(network, where, progress=progress)
    else:
        check_usable(certificate, network, where, allow_trusted=allow_trusted)
    if accumulator is not None:
        return _staged(network, certificate, accumulator, layer, only, budget, seed)
    deadline = time.monotonic() + (inf if budget is None else budget)
    suspects = _suspects(certificate, names, only, limits)
    proofs = _proofs_of_the_rest(certificate, names, only)
    rng = np.random.default_rng(seed)
    unknown: list[tuple[str, tuple[int, ...], int]] = []
    for done, (name, index, end) in enumerate(suspects):
        if progress is not None:
            progress(f"searching {name}", done, len(suspects))
        left = max(1, min(len(suspects) - done, 16))
        now = time.monotonic()
        if done and now >= deadline:  # known witnesses came first
            unknown += suspects[done:]
            break
        until = now + (deadline - now) / left
        answer = decided(network, certificate, where, name, index, end, limits[end], until, rng)
        if isinstance(answer, np.ndarray):
            return _replayed(network, name, index, answer, limits)
        if answer is None:
            unknown.append((name, index, end))
        else:
            proofs.add(answer)
    ranges = [certificate[n].range for n in names]
    if unknown:
        ends = [(certificate[n].lo[i], certificate[n].hi[i]) for n, i, _ in unknown]
        span = int(min(lo for lo, _ in ends)), int(max(hi for _, hi in ends))
        pairs = tuple(dict.fromkeys((n, i) for n, i, _ in unknown))
        return Unknown(pairs, span, limits)
    if only is not None:
        lo, hi = int(ranges[0].lo[only]), int(ranges[0].hi[only])
    else:
        lo, hi = min(int(r.lo.min()) for r in ranges), max(int(r.hi.max()) for r in ranges)
    _hold_against(network, where, names, only, limits, seed)
    proved = max(lo, limits[LO]), min(hi, limits[HI])
    return NoOverflow(proved, limits, tuple(sorted(proofs)))


def _staged(
    network: Network,
    certificate: Certificate,
    accumulators: Accumulators,
    layer: str | None,
    neuron: tuple[int, ...] | None,
    budget: float | None,
    seed: int,
) -> StageOverflow | NoOverflow | Unknown:
    reports = tuple(
        stage_reports(
            network,
            certificate,
            accumulators,
            layer=layer,
            neuron=neuron,
            budget_s=inf if budget is None else budget,
            seed=seed,
            ask=about_one_sum,
        )
    )
    if not reports:
        raise InvalidArgument(mismatch("accumulator", "none for these nodes", "one or more"))
    for report in reports:
        if (overflow := StageOverflow.of(report)) is not None:
            return overflow
    for report in reports:
        if not report.verdict.proved:
            place = report.widest or ()
            return Unknown(((report.layer, place),), report.range, report.stage.ends, reports)
    nearest = min(reports, key=_slack)
    proofs = {report.proof for report in reports}
    return NoOverflow(nearest.range, nearest.stage.ends, tuple(sorted(proofs)), reports)


def _slack(report: StageReport) -> int:
    (lo, hi), (q_min, q_max) = report.range, report.stage.ends
    return min(lo - q_min, q_max - hi)


def _hold_against(
    network: Network,
    domain: Domain,
    names: list[str],
    only: tuple[int, ...] | None,
    limits: tuple[int, int],
    seed: int,
) -> None:
    """Raises: CertificateError, an internal error, where the network contradicts a proof."""
    none = np.zeros((0, *network.input_shape), dtype=np.int64)
    for trace in sampled(network, domain, none, seed):
        for name in names:
            values = trace[name].reshape(len(trace[name]), -1)
            if only is not None:
                values = values[:, np.ravel_multi_index(only, network.shapes[name])]
            if not limits[LO] <= values.min() <= values.max() <= limits[HI]:
                raise CertificateError(
                    f"internal error: {name!r} leaves proved limits for an input of network "
                    f"{network.digest}; please report it"
                )


def _limits(bits: int, signed: bool) -> tuple[int, int]:
    check_width("bits", bits)
    return Stage(bits, bool(signed)).ends


def _suspects(
    certificate: Certificate,
    names: list[str],
    only: tuple[int, ...] | None,
    limits: tuple[int, int],
) -> list[tuple[str, tuple[int, ...], int]]:
    """The bounds beyond the limits: those known to be reached first, then the widest."""
    found = []
    for name in names:
        layer = certificate[name]
        lo, hi = layer.lo.astype(object), layer.hi.astype(object)
        for end, excess in ((LO, limits[LO] - lo), (HI, hi - limits[HI])):
            for index in map(tuple, np.argwhere(excess > 0).tolist()):
                if only is None or index == only:
                    reached = layer.status[(end, *index)] == Status.EXACT
                    found.append((not reached, -int(excess[index]), name, index, end))
    found.sort()
    return [(name, index, end) for _, _, name, index, end in found]


def _proofs_of_the_rest(
    certificate: Certificate, names: list[str], only: tuple[int, ...] | None
) -> set[Proof]:
    used: set[Proof] = set()
    for name in names:
        proof = certificate[name].proof
        chosen = proof.reshape(2, -1)
        if only is not None:
            position = np.ravel_multi_index(only, proof.shape[1:])
            chosen = chosen[:, position]
        used |= {Proof(p) for p in np.unique(chosen).tolist()}
    return used


def _replayed(
    network: Network,
    name: str,
    index: tuple[int, ...],
    witness: NDArray[np.int64],
    limits: tuple[int, int],
) -> Overflow:
    value = int(network.trace(witness[None])[name][(0, *index)])
    if limits[LO] <= value <= limits[HI]:
        raise CertificateError(
            f"{name}{list(index)}: the witness gives {value}, which does not overflow"
        )
    return Overflow(name, index, witness, value, limits)
