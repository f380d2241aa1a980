"""Weights that keep an accumulator inside a width: fan-in masks, and the sign-split projection.

With inputs in [x_lo, x_hi], x_lo <= 0 <= x_hi, and the sums of one row

    P = sum of its positive weights,      N = sum of the magnitudes of its negative weights,

the accumulator reaches exactly

    hi = x_hi * P - x_lo * N + b,         lo = x_lo * P - x_hi * N + b

so the two sides have budgets of their own; with unsigned inputs (x_lo = 0) one side each.  A bound
on sum |w| (A2Q) pays for both sides at once, and a bound on the count of weights (Omega) pays for
the largest weight every time.  Budgets belong to a row, one neuron, never to a layer: a layer's
average says nothing about its fullest row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import is_integer

__all__ = ["fan_in_mask", "project", "sign_budgets"]

Range = tuple[int, int]


def fan_in_mask(weight: ArrayLike, fan_in: int) -> NDArray[np.bool_]:
    """Keep the `fan_in` largest magnitudes of each row; ties keep the earlier column.

    Args:
        weight: numbers [out, ...]; a row is all that one output sees.
        fan_in: weights to keep in each row, from `max_fan_in` (sound) or `omega` (see there), >= 0.

    Returns: booleans of the shape of weight, true where the weight stays.

    Raises: InvalidType, InvalidArgument, ShapeMismatch.

    >>> fan_in_mask([[0.1, -0.9, 0.5], [0.3, 0.2, 0.1]], 2).astype(int).tolist()
    [[0, 1, 1], [1, 1, 0]]
    """
    values = _weights(weight)
    if not is_integer(fan_in):
        raise InvalidType(mismatch("fan_in", repr(fan_in), "an integer"))
    if fan_in < 0:
        raise InvalidArgument(mismatch("fan_in", fan_in, "at least 0"))
    rows = np.abs(values.reshape(len(values), -1))
    order = np.argsort(-rows, axis=1, kind="stable")
    mask = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(mask, order[:, : int(fan_in)], True, axis=1)
    return np.asarray(mask.reshape(values.shape))


def project(
    weight: ArrayLike, bias: ArrayLike | None, input_range: Range, bits: int
) -> NDArray[np.int64]:
    """Integer weights near `weight` whose accumulators fit signed `bits` for every input.

    A row whose nearest integers fit is only rounded (half to even).  In any other row the sign
    parts that exceed their budgets are projected onto them (Euclidean projection on a simplex,
    which drops small weights first) and rounded by largest remainder, so that the sums are met in
    integers: the result is checked, not hoped for.

    Args:
        weight: numbers [out, ...] in units of the integer weights, before rounding.
        bias: integers [out] in units of the accumulator, or None.
        input_range: inclusive (lo, hi) of every input; a range without 0 counts as if it had it.
        bits: two's complement width, 2 to 62.

    Returns: int64 of the shape of weight; magnitudes are never above ceil(|weight|).

    Raises: InvalidType, InvalidArgument, ShapeMismatch; OutOfRange when a bias alone does not fit.

    >>> project([[3.0, 2.6, -3.0, 0.4]], [10], (0, 7), 6).tolist()
    [[2, 1, -3, 0]]
    >>> 7 * (2 + 1) + 10, 7 * -3 + 10  # inside [-32, 31]
    (31, -11)
    """
    values = _weights(weight)
    rows = values.reshape(len(values), -1)
    codes = np.rint(rows)
    positive, negative = np.maximum(rows, 0.0), np.maximum(-rows, 0.0)
    P = _integer_sums(np.maximum(codes, 0))
    N = _integer_sums(np.maximum(-codes, 0))
    P_max, N_max = sign_budgets(P, N, bias, input_range, bits)
    fitted = np.maximum(codes, 0), np.maximum(-codes, 0)
    parts = [
        np.where((sums <= budget)[:, None], part, _fit(real, budget))
        for sums, budget, part, real in (
            (P, P_max, fitted[0], positive),
            (N, N_max, fitted[1], negative),
        )
    ]
    result = (parts[0] - parts[1]).astype(np.int64)
    _check_sums(result, P_max, N_max)
    return np.asarray(result.reshape(values.shape))


def sign_budgets(
    P: NDArray[np.int64],
    N: NDArray[np.int64],
    bias: ArrayLike | None,
    input_range: Range,
    bits: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How large P and N of each row may be, integers [out] each.

    With up = 2**(bits-1) - 1 - b, down = 2**(bits-1) + b, s = -x_lo >= 0 and t = x_hi >= 0, the
    exact conditions are t P + s N <= up and s P + t N <= down.  For unsigned inputs (s = 0) they
    part: P <= up / t, N <= down / t.  Otherwise P and N shrink by one common factor.

    Args:
        P, N: what the rows want, integers [out].
        bias, input_range, bits: as for `project`.

    >>> P, N = np.array([30, 2]), np.array([1, 40])
    >>> [budget.tolist() for budget in sign_budgets(P, N, [3, 3], (0, 7), 8)]
    [[17, 2], [1, 18]]
    """
    s, t = _input_ends(input_range)
    if not is_integer(bits):
        raise InvalidType(mismatch("bits", repr(bits), "an integer from 2 to 62"))
    if not 2 <= bits <= 62:
        raise InvalidArgument(mismatch("bits", bits, "an integer from 2 to 62"))
    b = _bias(bias, len(P))
    up = [2 ** (int(bits) - 1) - 1 - v for v in b]
    down = [2 ** (int(bits) - 1) + v for v in b]
    if min(up) < 0 or min(down) < 0:
        worst = max(b, key=abs)
        raise OutOfRange(mismatch("bias", worst, f"a value of {bits} signed bits"))
    pairs = [_row_budgets(int(p), int(n), u, d, s, t) for p, n, u, d in zip(P, N, up, down)]
    P_max, N_max = np.array(pairs, dtype=np.int64).T
    return P_max, N_max


def _row_budgets(P: int, N: int, up: int, down: int, s: int, t: int) -> tuple[int, int]:
    """Integers (P', N') with t P' + s N' <= up and s P' + t N' <= down."""
    if t * P + s * N <= up and s * P + t * N <= down:
        return P, N
    if s == 0 or t == 0:
        # t > 0: up limits P and down limits N; s > 0: the other way round.
        return (
            (min(P, up // t), min(N, down // t)) if s == 0 else (min(P, down // s), min(N, up // s))
        )
    # The common factor is the least of up / (t P + s N) and down / (s P + t N); floor keeps both.
    limits = ((up, t * P + s * N), (down, s * P + t * N))
    candidates = [(P * limit // need, N * limit // need) for limit, need in limits if need > limit]
    return min(p for p, _ in candidates), min(n for _, n in candidates)


def _fit(part: NDArray[np.float64], budget: NDArray[np.int64]) -> NDArray[np.float64]:
    """Non-negative integers near each row of `part` with a sum of at most its budget."""
    real = _onto_simplex(part, budget)
    down = np.floor(real)
    total = np.minimum(budget, np.rint(real.sum(axis=1)))
    missing = (total - down.sum(axis=1))[:, None]
    order = np.argsort(down - real, axis=1, kind="stable")  # largest remainder first
    rank = np.argsort(order, axis=1, kind="stable")
    up = (rank < missing) & (real > down)
    result = down + up
    # Float sums may leave the floors themselves above the budget by a unit or two.
    excess = (result.sum(axis=1) - budget)[:, None]
    shrinking = np.argsort(np.where(result > 0, result, np.inf), axis=1, kind="stable")
    rank = np.argsort(shrinking, axis=1, kind="stable")
    return np.asarray(result - ((rank < excess) & (result > 0)))


def _onto_simplex(part: NDArray[np.float64], budget: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row's nearest point with non-negative entries and a sum of at most its budget.

    max(v - tau, 0) with the tau that meets the budget (Held, Wolfe and Crowder 1974), found from
    the sorted row: tau = max over k of (v_1 + ... + v_k - budget) / k.
    """
    descending = -np.sort(-part, axis=1)
    count = np.arange(1, part.shape[1] + 1)
    tau = ((np.cumsum(descending, axis=1) - budget[:, None]) / count).max(axis=1)
    return np.asarray(np.maximum(part - np.maximum(tau, 0.0)[:, None], 0.0))


def _check_sums(
    codes: NDArray[np.int64], P_max: NDArray[np.int64], N_max: NDArray[np.int64]
) -> None:
    positive = np.maximum(codes, 0).sum(axis=1)
    negative = np.maximum(-codes, 0).sum(axis=1)
    if not ((positive <= P_max) & (negative <= N_max)).all():
        raise OutOfRange(mismatch("weight", "values too large to project", "smaller magnitudes"))


def _weights(weight: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(weight)
    if values.dtype.kind not in "iuf":
        raise InvalidType(mismatch("weight", f"dtype {values.dtype}", "numbers"))
    if values.ndim < 2 or values.size == 0:
        raise ShapeMismatch(mismatch("weight", f"shape {values.shape}", "[out, ...]"))
    real = values.astype(np.float64)
    if not (np.abs(real) < 2.0**31).all():
        raise InvalidArgument("weight: got NaN or a magnitude of 2**31 or more")
    return real


def _integer_sums(codes: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(codes.astype(np.int64).sum(axis=1))


def _bias(bias: ArrayLike | None, rows: int) -> list[int]:
    if bias is None:
        return [0] * rows
    values: NDArray[Any] = np.asarray(bias)
    if values.shape != (rows,):
        raise ShapeMismatch(mismatch("bias", f"shape {values.shape}", f"({rows},)"))
    if values.dtype.kind not in "iu":
        raise InvalidType(mismatch("bias", f"dtype {values.dtype}", "integers"))
    return [int(v) for v in values.tolist()]


def _input_ends(input_range: Range) -> tuple[int, int]:
    """(s, t) = (-x_lo, x_hi) of the range widened to hold 0."""
    try:
        lo, hi = input_range
    except (TypeError, ValueError):
        raise InvalidType(mismatch("input_range", repr(input_range), "a pair (lo, hi)")) from None
    if not is_integer(lo) or not is_integer(hi):
        raise InvalidType(mismatch("input_range", repr(input_range), "a pair of integers"))
    if lo > hi:
        raise InvalidArgument(mismatch("input_range", input_range, "lo <= hi"))
    return max(0, -int(lo)), max(0, int(hi))
