"""One bound beyond a limit: is it ever reached?  Known witnesses, enumeration, search, solver."""

from __future__ import annotations

import time
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import HI, Proof
from refqnn.accumulator.cone import Cone
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.rungs import exhaustive_bounds
from refqnn.accumulator.search import climb, maximise, neuron_box
from refqnn.accumulator.solver import decide, solver_installed
from refqnn.errors import NotCovered
from refqnn.network import Network

if TYPE_CHECKING:
    from refqnn.accumulator.certificate import Certificate

__all__ = ["decided"]


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
    """An input beyond the limit, the proof that there is none, or None where the time is over.

    Whoever asks runs the input.

    Args:
        certificate: bounds of the network's values over the domain.
        end: which bound of the neuron lies beyond the limit, LO or HI.
        deadline: of `time.monotonic`.
    """
    known = certificate.candidate(network, name, index, end)
    if known is not None:
        return known
    if not domain.is_box:
        return _among_rows(network, domain, name, index, end, limit)
    try:
        cone = Cone(network, certificate.ranges, name, index)
    except NotCovered:  # a kind of the user's own that nobody can look into, or too large
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
