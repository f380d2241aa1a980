"""Arguments that certify, verify and find_overflow share, checked in one place."""

from __future__ import annotations

from math import isnan

import numpy as np

from refqnn.errors import InvalidArgument, InvalidType, mismatch
from refqnn.formats import is_integer
from refqnn.network import Network
from refqnn.ops.base import Shape

__all__ = ["generator_seed", "index_of", "seconds", "summing", "the_network"]


def the_network(network: object) -> Network:
    """Raises: InvalidType."""
    if not isinstance(network, Network):
        raise InvalidType(mismatch("network", repr(network), "a Network"))
    return network


def summing(network: Network, layer: object) -> list[str]:
    """The names of all nodes that sum, or of this one.

    Raises: InvalidArgument for another name, and where no node sums.
    """
    names = [node.name for node in network.accumulators()]
    if not names:
        raise InvalidArgument(mismatch("network", "no node that sums", "at least one"))
    if layer is None:
        return names
    if not isinstance(layer, str) or layer not in names:
        raise InvalidArgument(mismatch("layer", repr(layer), f"one of {names}"))
    return [layer]


def seconds(budget_s: object) -> float | None:
    """None, or seconds >= 0.  Raises: InvalidType, InvalidArgument."""
    if budget_s is None:
        return None
    if not isinstance(budget_s, (int, float, np.number)) or isinstance(budget_s, bool):
        raise InvalidType(mismatch("budget_s", repr(budget_s), "None, or a number of seconds"))
    given = float(budget_s)
    if isnan(given) or given < 0:
        raise InvalidArgument(mismatch("budget_s", budget_s, "None, or seconds >= 0"))
    return given


def generator_seed(seed: object) -> int:
    """A seed of random numbers.  Raises: InvalidType, InvalidArgument."""
    if not is_integer(seed):
        raise InvalidType(mismatch("seed", repr(seed), "an integer >= 0"))
    if seed < 0:
        raise InvalidArgument(mismatch("seed", seed, "an integer >= 0"))
    return int(seed)


def index_of(index: object, shape: Shape, argument: str = "index") -> tuple[int, ...]:
    """The place of one value in a sample, from an integer or one for each axis.

    Raises: InvalidType, InvalidArgument.
    """
    places = index if isinstance(index, (tuple, list)) else (index,)
    if not all(is_integer(i) for i in places):
        raise InvalidType(mismatch(argument, repr(index), f"integers, an index of shape {shape}"))
    if len(places) != len(shape) or not all(0 <= i < n for i, n in zip(places, shape)):
        raise InvalidArgument(mismatch(argument, index, f"an index of shape {shape}"))
    return tuple(int(i) for i in places)
