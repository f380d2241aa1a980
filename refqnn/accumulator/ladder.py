"""The ladder behind `certify`: climb from intervals to exact bounds as far as asked.

    interval      each node's exact rule, in topological order
    exhaustive    every input of a domain of at most 2**20 points, or of listed rows
    search        witnesses from data and local search, then branch and bound over input boxes
    solver        the same, then a constraint solver asked whether anything lies beyond a bound

A bound that one rung tightens is what the nodes behind it start from.
"""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator.bounds import Bounds, Progress, Witnesses
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.rungs import exhaustive_bounds, interval_bounds, witnesses_from_data
from refqnn.accumulator.search import Search
from refqnn.accumulator.solver import require_solver, solver_installed
from refqnn.errors import InvalidArgument, mismatch
from refqnn.limits import EXHAUSTIVE_LIMIT
from refqnn.network import Network

__all__ = ["EXHAUSTIVE_LIMIT", "Method", "climbed"]

Method = Literal["auto", "interval", "exhaustive", "search", "solver"]

_SEARCHING_S = 60.0  # seconds that `search` and `solver` take where none are given


def climbed(
    network: Network,
    domain: Domain,
    method: Method,
    budget_s: float | None,
    X: ArrayLike | None,
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, Bounds], NDArray[np.int64]]:
    """The bounds of every value and the witnesses [m, *input_shape]; arguments as for `certify`,
    which has checked the seconds and the seed."""
    if method not in get_args(Method):
        raise InvalidArgument(mismatch("method", repr(method), f"one of {get_args(Method)}"))
    data = None if X is None else _data(network, domain, X)
    small = not domain.is_box or domain.size <= EXHAUSTIVE_LIMIT
    if method == "exhaustive" and not small:
        expected = f"at most {EXHAUSTIVE_LIMIT} for method='exhaustive'"
        raise InvalidArgument(mismatch("domain", f"{domain.size} points", expected))
    if method == "solver":
        require_solver()
    if method != "interval" and small:
        return _enumerated(network, domain, progress)
    search = None
    if method in ("search", "solver") or (method == "auto" and budget_s is not None):
        search = Search(
            network,
            domain,
            deadline=time.monotonic() + (_SEARCHING_S if budget_s is None else budget_s),
            solver=method == "solver" or (method == "auto" and solver_installed()),
            data=data,
            seed=seed,
            progress=progress,
        )
    bounds = interval_bounds(network, domain, None if search is None else search.refine)
    pool = Witnesses(network)
    if data is not None:
        witnesses_from_data(network, bounds, data, pool)
    if search is not None:
        search.store_witnesses(bounds, pool)
    return bounds, pool.array


def _enumerated(
    network: Network, domain: Domain, progress: Progress | None
) -> tuple[dict[str, Bounds], NDArray[np.int64]]:
    """The bounds of an enumeration, with a witness for each bound of an accumulator."""
    bounds, where = exhaustive_bounds(network, domain, progress)
    needed = [numbers.reshape(-1) for numbers in where.values()]
    unique = np.unique(np.concatenate(needed)) if needed else np.zeros(0, dtype=np.int64)
    for name, numbers in where.items():
        bounds[name].witness = np.searchsorted(unique, numbers).astype(np.int64)
    return bounds, domain.at(unique).astype(np.int64)


def _data(network: Network, domain: Domain, X: ArrayLike) -> NDArray[np.int64]:
    codes = network.check_codes(X)
    outside = ~domain.contains(codes)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise InvalidArgument(mismatch("X", f"row {first} outside the domain", f"{domain}"))
    return codes
