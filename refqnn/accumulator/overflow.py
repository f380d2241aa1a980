"""find_overflow: an input that overflows an accumulator, or a proof that none does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.arguments import generator_seed, index_of, seconds, the_network
from refqnn.accumulator.bounds import HI, LO, Progress, Proof, Status
from refqnn.accumulator.certificate import Certificate, certify, check_usable
from refqnn.accumulator.cone import Cone
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.rungs import exhaustive_bounds
from refqnn.accumulator.samples import sampled
from refqnn.accumulator.search import climb, maximise, neuron_box
from refqnn.accumulator.solver import decide, solver_installed
from refqnn.display import Shown
from refqnn.errors import CertificateError, InvalidArgument, InvalidType, NotCovered, mismatch
from refqnn.formats import is_integer
from refqnn.graph import INPUT
from refqnn.network import Network
from refqnn.ops.base import is_sum

__all__ = ["NoOverflow", "Overflow", "Unknown", "decided", "find_overflow"]


@dataclass(frozen=True)
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

    def __str__(self) -> str:
        lo, hi = self.limits
        return f"{self.layer}{list(self.neuron)}: reaches {self.value}, outside [{lo}, {hi}]"


@dataclass(frozen=True)
class NoOverflow(Shown):
    """No input of the domain overflows.

    Attributes:
        range: proved (least lower bound, greatest upper bound) of the neurons asked about.
        limits: (lo, hi) of the width asked for.
        proofs: what it took.
    """

    range: tuple[int, int]
    limits: tuple[int, int]
    proofs: tuple[Proof, ...]

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
    """

    neurons: tuple[tuple[str, tuple[int, ...]], ...]
    range: tuple[int, int]
    limits: tuple[int, int]

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
) -> Overflow | NoOverflow | Unknown:
    """Can an accumulator leave the integers of a width?

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

    Returns: `Overflow` with an input that was replayed; `NoOverflow`, a proof for every input of
        the domain; or `Unknown` when the time ran out.

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
    names = [node.name for node in network.accumulators()]
    if not names:
        raise InvalidArgument(mismatch("network", "no node that sums", "at least one"))
    if layer is not None:
        if not isinstance(layer, str) or layer not in network.shapes or layer == INPUT:
            raise InvalidArgument(mismatch("layer", repr(layer), f"one of {names}"))
        if not is_sum(network[layer].op):
            raise InvalidArgument(mismatch("layer", repr(layer), f"one of {names}"))
        names = [layer]
    if neuron is not None and layer is None:
        raise InvalidArgument(mismatch("neuron", neuron, "None where layer is None"))
    only = None if neuron is None else index_of(neuron, network.shapes[names[0]], "neuron")
    if certificate is None:
        certificate = certify(network, where, progress=progress)
    else:
        check_usable(certificate, network, where, allow_trusted=allow_trusted)
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
    if not is_integer(bits):
        raise InvalidType(mismatch("bits", repr(bits), "an integer from 1 to 64"))
    if not 1 <= bits <= 64:
        raise InvalidArgument(mismatch("bits", bits, "an integer from 1 to 64"))
    if signed:
        return -(2 ** (int(bits) - 1)), int(2 ** (int(bits) - 1)) - 1
    return 0, int(2 ** int(bits)) - 1


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


def decided(
    network: Network,
    certificate: Certificate,
    domain: Domain,
    name: str,
    index: tuple[int, ...],
    end: int,
    limit: int,
    deadline: float,
    rng: np.random.Generator,
) -> NDArray[np.int64] | Proof | None:
    """An input beyond the limit, the proof that there is none, or None."""
    known = certificate.witness(network, name, index, end)
    if known is not None:
        return known
    if not domain.is_box:
        return _among_rows(network, domain, name, index, end, limit)
    try:
        cone = Cone(network, certificate.ranges, name, index)
    except NotCovered:  # a kind of the user's own that nobody can look into
        return None
    lo, hi = neuron_box(cone, domain)
    sign = 1 if end == HI else -1
    goal = sign * limit
    points = domain.sample(4, rng).reshape(4, prod(network.input_shape))[:, cone.inputs]
    now = time.monotonic()
    starts = climb(
        cone, lo, hi, sign, points, step=domain.step, deadline=now + (deadline - now) / 4
    )
    with_solver = solver_installed()
    now = time.monotonic()
    until = now + (deadline - now) / (2 if with_solver else 1)
    found = maximise(cone, lo, hi, sign, step=domain.step, starts=starts, goal=goal, deadline=until)
    short = found.x if found.best is not None and found.best > goal else None
    if short is None and found.bound <= goal:
        return found.proof
    if short is None and with_solver:
        answer, short = decide(cone, lo, hi, sign, goal + 1, step=domain.step, deadline=deadline)
        if answer is False:
            return Proof.SOLVER
    if short is None:
        return None
    codes = domain.hull.lo.copy()
    codes.reshape(-1)[cone.inputs] = short
    return codes


def _among_rows(
    network: Network, domain: Domain, name: str, index: tuple[int, ...], end: int, limit: int
) -> NDArray[np.int64] | Proof:
    bounds, where = exhaustive_bounds(network, domain)
    value = int(bounds[name].end(end)[index])
    if value > limit if end == HI else value < limit:
        return np.asarray(domain.at(where[name][(end, *index)][None])[0])
    return Proof.EXHAUSTIVE


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
