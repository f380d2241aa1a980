"""Certificate.verify: confirm every bound again, from the network alone."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import HI, LO, NO_WITNESS, LayerCertificate, Proof, Status
from refqnn.accumulator.cone import Cone
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.rungs import exhaustive_bounds, format_ranges, full_ranges, interval_status
from refqnn.accumulator.rungs import independent_ends as _independent_ends
from refqnn.accumulator.search import maximise, neuron_box
from refqnn.accumulator.solver import decide
from refqnn.errors import CertificateError, RefqnnError
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network
from refqnn.ops.base import Interval, is_sum

Certificate = Any

__all__ = ["verify"]


def verify(
    certificate: Certificate,
    network: Network,
    *,
    budget_s: float | None,
    solver: bool,
    allow_trusted: bool = False,
) -> dict[str, int]:
    """See `Certificate.verify`."""
    domain = _checked_domain(certificate, network)
    deadline = None if budget_s is None else time.monotonic() + budget_s
    confirmed: Counter[str] = Counter()
    reached = _replay(certificate, network, domain)
    _check_exhaustive(certificate, network, domain, confirmed)
    independent = _independent_ends(network, domain)
    intervals = network.ranges(domain.hull)
    _check_input(certificate, domain, confirmed)
    for node in network.nodes:
        layer = certificate[node.name]
        _check_intervals(certificate, network, node, independent, reached[node.name], confirmed)
        _check_searched(certificate, network, domain, node, deadline, solver, confirmed)
        _check_summary(certificate, network, node, layer, intervals[node.name])
    return dict(confirmed)


def _checked_domain(certificate: Certificate, network: Network) -> Domain:
    try:
        domain = Domain.of(network, certificate.domain)
    except RefqnnError as error:
        raise CertificateError(f"domain: {error}") from error
    hull, stated = domain.hull, certificate.domain.hull
    if not (np.array_equal(hull.lo, stated.lo) and np.array_equal(hull.hi, stated.hi)):
        raise CertificateError("domain: its rows and its hull do not agree")
    return domain


def _replay(
    certificate: Certificate, network: Network, domain: Domain
) -> dict[str, NDArray[np.bool_]]:
    """Run every witness.  Returns for each node which bounds are reached by one, [2, *shape]."""
    codes = certificate.witnesses
    nodes = certificate.nodes
    reached = {name: np.zeros(layer.witness.shape, dtype=bool) for name, layer in nodes.items()}
    if len(codes):
        inside = domain.contains(network.check_codes(codes))
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            raise CertificateError(f"witness {first}: lies outside the domain")
    block = network.traced_block
    for start in range(0, len(codes), block):
        trace = network.trace(codes[start : start + block])
        for name, layer in nodes.items():
            number = layer.witness - start
            here = (number >= 0) & (number < len(trace[INPUT])) & (layer.witness != NO_WITNESS)
            for end, bound in ((LO, layer.lo), (HI, layer.hi)):
                if not here[end].any():
                    continue
                index = np.nonzero(here[end])
                got = trace[name][(number[end][index], *index)]
                wrong = got != bound[index]
                if wrong.any():
                    place = [int(i[wrong][0]) for i in index]
                    values = f"gives {got[wrong][0]}, the bound is {bound[index][wrong][0]}"
                    raise CertificateError(f"{name}{place}: its witness {values}")
                reached[name][(end, *index)] = True
    for name, layer in nodes.items():
        if ((layer.witness != NO_WITNESS) & ~reached[name]).any():
            raise CertificateError(f"{name}: names a witness that does not exist")
    return reached


def _check_input(certificate: Certificate, domain: Domain, confirmed: Counter[str]) -> None:
    layer, hull = certificate[INPUT], domain.hull
    if not (np.array_equal(layer.lo, hull.lo) and np.array_equal(layer.hi, hull.hi)):
        raise CertificateError("input: its bounds are not those of the domain")
    if (layer.proof == Proof.INTERVAL).any():
        confirmed["interval"] += int((layer.proof == Proof.INTERVAL).sum())


def _check_intervals(
    certificate: Certificate,
    network: Network,
    node: Node,
    independent: set[str],
    reached: NDArray[np.bool_],
    confirmed: Counter[str],
) -> None:
    layer = certificate[node.name]
    by_interval = layer.proof == Proof.INTERVAL
    if not by_interval.any():
        return
    operands = [certificate[name] for name in inputs_of(node)]
    range_ = node.op.out_range(*(operand.range for operand in operands))
    for end, (stated, computed) in enumerate(((layer.lo, range_.lo), (layer.hi, range_.hi))):
        wrong = by_interval[end] & (stated != computed)
        if wrong.any():
            raise _not_confirmed(layer, wrong, end, computed)
    status = interval_status(network, node, operands, range_, independent)
    claimed = by_interval & (layer.status == Status.EXACT)
    if (claimed & ~reached & (status != Status.EXACT)).any():
        raise CertificateError(f"{node.name}: a bound is called exact, but nothing reaches it")
    confirmed["interval"] += int(by_interval.sum())


def _check_exhaustive(
    certificate: Certificate, network: Network, domain: Domain, confirmed: Counter[str]
) -> None:
    layers = certificate.nodes.values()
    if not any((layer.proof == Proof.EXHAUSTIVE).any() for layer in layers):
        return
    bounds, _ = exhaustive_bounds(network, domain)
    for name, layer in certificate.nodes.items():
        by_enumeration = layer.proof == Proof.EXHAUSTIVE
        computed = bounds[name]
        for end, stated in ((LO, layer.lo), (HI, layer.hi)):
            wrong = by_enumeration[end] & (stated != computed.end(end))
            if wrong.any():
                raise _not_confirmed(layer, wrong, end, computed.end(end))
        confirmed["exhaustive"] += int(by_enumeration.sum())


def _check_searched(
    certificate: Certificate,
    network: Network,
    domain: Domain,
    node: Node,
    deadline: float | None,
    solver: bool,
    confirmed: Counter[str],
) -> None:
    layer = certificate[node.name]
    searched = layer.proof >= Proof.BOX_SEARCH
    for position in map(tuple, np.argwhere(searched).tolist()):
        end, index = position[0], tuple(position[1:])
        proof = Proof(int(layer.proof[position]))
        sign, bound = (1, layer.hi) if end == HI else (-1, layer.lo)
        cone = Cone(network, certificate.ranges, node.name, index)
        lo, hi = neuron_box(cone, domain)
        goal = sign * int(bound[index])
        holds: bool | None
        if proof is Proof.SOLVER and not solver and deadline is None:
            holds = None  # a search may never end where only the solver found an answer
        elif proof is Proof.SOLVER and solver:
            beyond, _ = decide(cone, lo, hi, sign, goal + 1, step=domain.step, deadline=deadline)
            holds = None if beyond is None else not beyond
        else:
            found = maximise(cone, lo, hi, sign, step=domain.step, goal=goal, deadline=deadline)
            exceeded = found.best is not None and found.best > goal
            holds = False if exceeded else (True if found.bound <= goal else None)
        if holds is False:
            side = "hi" if end == HI else "lo"
            message = f"an input lies beyond {side} = {bound[index]}"
            raise CertificateError(f"{node.name}{list(index)}: {message}")
        confirmed[proof.label if holds else f"trusted {proof.label}"] += 1
    claimed = searched & (layer.status == Status.EXACT)
    if (claimed & (layer.witness == NO_WITNESS)).any():
        raise CertificateError(f"{node.name}: a bound is called exact, but has no witness")


def _check_summary(
    certificate: Certificate,
    network: Network,
    node: Node,
    layer: LayerCertificate,
    interval: Interval,
) -> None:
    """Kind, mass, and the ranges by formats, by weights and by intervals."""
    stated = layer.datatype, layer.by_weights, layer.by_interval
    summary = layer.kind, layer.mass is None, *stated
    if not is_sum(node.op):
        if summary != (node.op.kind, True, None, None, None):
            raise CertificateError(f"{node.name}: says of itself what the network does not")
        return
    ranges = [certificate[name].range for name in inputs_of(node)]
    if layer.mass is None or not np.array_equal(layer.mass, node.op.absolute_mass(*ranges)):
        raise CertificateError(f"{node.name}: its absolute mass is not the network's")
    formats = format_ranges(network)
    by_formats, by_weights = (
        formats[node.name],
        node.op.out_range(*full_ranges(network, node, formats)).ends,
    )
    by_interval = interval.ends
    if summary != (node.op.kind, False, by_formats, by_weights, by_interval):
        raise CertificateError(f"{node.name}: says of itself what the network does not")


def _not_confirmed(
    layer: LayerCertificate, wrong: NDArray[np.bool_], end: int, computed: NDArray[np.int64]
) -> CertificateError:
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    side, stated = ("lo", layer.lo) if end == LO else ("hi", layer.hi)
    values = f"{side} is stated as {stated[place]} and computed as {computed[place]}"
    return CertificateError(f"{layer.name}{list(place)}: {values}")
