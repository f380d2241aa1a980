"""The steps that kernels are made of, right and wrong.

Arrays are small, so integers are Python integers in object arrays, which never overflow unless a
step makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from refqnn.conformance.operations import Array
from refqnn.conformance.suite import Rejected

__all__ = [
    "Hook",
    "Index",
    "add_and_clamp",
    "always",
    "channel_value",
    "clamp",
    "each",
    "ends",
    "entry",
    "in_float",
    "round_value",
    "same",
    "saturate",
    "total",
    "wrap",
]

Hook = Callable[..., Any]
Index = tuple[int, ...]


def same(value: Any, *_: Any) -> Any:
    """The hook that changes nothing."""
    return value


def wrap(bits: int, signed: bool = True) -> Callable[[int], int]:
    """An integer as `bits` bits keep it."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    return lambda value: (value - lowest) % 2**bits + lowest


def saturate(bits: int, signed: bool = True) -> Callable[[int], int]:
    """An integer limited to `bits` bits."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    return lambda value: clamp(value, lowest, lowest + 2**bits - 1)


def in_float(dtype: Hook) -> Callable[[int], int]:
    """An integer as a float register keeps it."""
    return lambda value: int(dtype(value))


def round_value(x: Any, mode: str) -> int:
    """Round an int, float or Fraction, finite."""
    exact = Fraction(x.item() if isinstance(x, np.generic) else x)
    lower = exact.__floor__()
    twice = 2 * (exact - lower)
    if twice == 0:
        return lower
    up = {
        "floor": False,
        "ceil": True,
        "toward_zero": lower < 0,
        "away_from_zero": lower >= 0,
        "half_even": twice > 1 or (twice == 1 and lower % 2 == 1),
        "half_up": twice >= 1,
        "half_down": twice > 1,
        "half_away": twice > 1 or (twice == 1 and lower >= 0),
        "half_toward_zero": twice > 1 or (twice == 1 and lower < 0),
    }
    return lower + up[mode]


def ends(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """q_min, q_max."""
    if not 1 <= bits <= 32 or (narrow and bits == 1):
        raise Rejected("invalid_parameter", "bits")
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def clamp(value: int, lowest: int, highest: int) -> int:
    """value, or the end it lies beyond."""
    return min(max(value, lowest), highest)


def add_and_clamp(q: int, zero_point: int, lowest: int, highest: int) -> int:
    """The last step of every quantization."""
    return clamp(q + zero_point, lowest, highest)


def channel_value(values: Array, index: Index, axis: int | None, shape: Sequence[int]) -> Any:
    """The entry of a per-channel vector, or the one value there is."""
    flat = np.asarray(values).reshape(-1)
    if flat.size == 1 or axis is None:
        return flat[0].item() if flat.dtype.kind in "iO" else flat[0]
    entry = flat[index[axis % len(shape)]]
    return entry.item() if flat.dtype.kind == "i" else entry


def entry(values: Array, channel: int) -> Any:
    """The entry of a channel as a Python number, or the one value there is."""
    value = channel_value(values, (channel,), 0, (1,))
    return value.item() if isinstance(value, np.generic) else value


def each(function: Callable[[Any, Index], object], array: Array) -> Array:
    """function(value, index) over an array."""
    array = np.asarray(array)
    result = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        value = array[index]
        result[index] = function(value.item() if array.dtype.kind == "i" else value, index)
    return result


def total(terms: Sequence[int], fit: Hook) -> int:
    """The sum in a register that `fit` describes."""
    if fit is same:
        return sum(terms)
    acc = 0
    for term in terms:
        acc = fit(acc + term)
    return acc


def always(mode: str) -> Hook:
    """Rounding by this mode whatever is asked for."""
    return lambda x, _: round_value(x, mode)
