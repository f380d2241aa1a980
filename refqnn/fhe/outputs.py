"""Last sums shared out over more and narrower ones, and how far these follow from each other.

What sums of unknown lookups tell of their coefficients, modulo 2**64, is the span of the columns:
nothing where their rank modulo 2 is the number of sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["digits_of", "rank", "shared_out"]

IntVector = NDArray[np.int64]


def shared_out(weight: IntVector, parts: int, digits: int) -> tuple[IntVector, IntVector]:
    """(place value [digits * parts], weights [digits * parts, out, in]) of the sums.

    Inputs go, in the order of their weights, each to the part with the fewest, of those where its
    digits are no sum modulo 2 of what is there.
    """
    base, by_digit = digits_of(weight, digits)
    columns = _packed(by_digit.reshape(-1, weight.shape[1]).T % 2)
    spans: list[list[int]] = [[] for _ in range(parts)]
    taken = [0] * parts
    weights = np.zeros((digits, parts, *weight.shape), dtype=np.int64)
    for column in np.argsort(-np.abs(weight).sum(axis=0), kind="stable").tolist():
        left = [_left(span, columns[column]) for span in spans]
        part = min(range(parts), key=lambda p: (not left[p], taken[p]))
        spans[part] += [left[part]] if left[part] else []
        taken[part] += 1
        weights[:, part, :, column] = by_digit[..., column]
    place = np.repeat(base ** np.arange(digits), parts)
    return place, weights.reshape(-1, *weight.shape)


def digits_of(weight: IntVector, digits: int) -> tuple[int, IntVector]:
    """(base, digits from the lowest [digits, *weight's shape]), around zero.

    The base is the least in which the highest digit is no larger than others may be.

    >>> digits_of(np.array([7, -5]), 2)
    (4, array([[-1, -1],
           [ 2, -1]]))
    """
    largest = int(np.abs(weight).max(initial=0))
    base = max(2, int(largest ** (1 / digits)))
    while True:
        found, rest = [], weight
        for _ in range(digits - 1):
            least = (base - 1) // 2
            found.append((rest + least) % base - least)
            rest = (rest - found[-1]) // base
        if np.abs(rest).max(initial=0) <= base // 2 or digits == 1:
            return base, np.stack([*found, rest])
        base += 1


def rank(bits: IntVector) -> int:
    """Of a matrix of bits, modulo 2.

    >>> rank(np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]]))
    2
    """
    span: list[int] = []
    for row in _packed(bits):
        span += [left] if (left := _left(span, row)) else []
    return len(span)


def _packed(bits: IntVector) -> list[int]:
    rows = np.packbits(bits.astype(bool), axis=1)
    return [int.from_bytes(row.tobytes(), "big") for row in rows]


def _left(span: list[int], row: int) -> int:
    """What is left of a row without the sums of those in the span; 0 for one of these."""
    for other in span:
        row = min(row, row ^ other)
    return row
