"""Weights that keep an accumulator inside a width: fan-in masks, and the sign-split projection.

With inputs in [x_lo, x_hi], x_lo <= 0 <= x_hi, and the sums of one row

    P = sum of its positive weights,      N = sum of the magnitudes of its negative weights,

the accumulator reaches exactly

    hi = x_hi * P - x_lo * N + b,         lo = x_lo * P - x_hi * N + b

so the two sides have budgets of their own; with unsigned inputs (x_lo = 0) one side each.  A bound
on sum |w| (A2Q) pays for both sides at once, and a bound on the count of weights (Omega) pays for
the largest weight every time.  Budgets belong to a row, one neuron, never to a layer: a layer's
average says nothing about its fullest row.

An accumulator in stages has a budget for every group of every stage: those of the inner registers
count the products of their tile and no bias, those of the last one the whole row and the bias where
it enters.  Tiles go first; a row that is still too large is shrunk as a whole, which enlarges no
weight and so no tile.  With inner registers of p bits and n tiles, p + ceil(log2(n)) bits hold the
sum of the tiles whatever they are; a narrower last register has a budget of its own, and so has any
with a bias.  Unsound: a bound on the tiles alone where the last register is narrower than that, a
bound on the row alone, and any bound that leaves the bias out.

Everything here is defined over the rationals that the floats are, and computed so: no float is
rounded, ties go to the earlier weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.emulate import Accumulator
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import as_integers, is_integer

__all__ = ["Register", "fan_in_mask", "project", "registers", "sign_budgets"]

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
    weight: ArrayLike, bias: ArrayLike | None, input_range: Range, bits: int | Accumulator
) -> NDArray[np.int64]:
    """Integer weights near `weight` whose accumulators fit signed `bits` for every input.

    Each row is rounded (half to even), which gives P and N; `sign_budgets` says how large they may
    be.  A sign part within its budget B stays as it is rounded.  One beyond it becomes

        argmin sum_i (w_i - |v_i|)**2   over integers w_i >= 0 with sum_i w_i = B

    for its real weights v; of several, the one that is larger at the first index that differs.
    That is max(|v_i| - tau, 0), tau >= 0, with the largest remainders rounded up, the earlier first
    among equals.

    Args:
        weight: numbers [out, ...] in units of the integer weights, before rounding; magnitudes
            below 2**31.
        bias: integers [out] in units of the accumulator, or None.
        input_range: inclusive (lo, hi) of every input; a range without 0 counts as if it had it.
        bits: two's complement width, 2 to 62; or an `Accumulator`: then no sum of any stage leaves
            its register.  The weight's second axis counts as its channels.  Inner stages project
            the real weights, later ones the integers that are left.

    Returns: int64 of the shape of weight; signs are those of weight, magnitudes are never above
    ceil(|weight|).

    Raises: InvalidType, InvalidArgument, ShapeMismatch; OutOfRange for magnitudes of 2**31 or more
    and when a bias alone does not fit.

    >>> project([[3.0, 2.6, -3.0, 0.4]], [10], (0, 7), 6).tolist()
    [[2, 1, -3, 0]]
    >>> 7 * (2 + 1) + 10, 7 * -3 + 10  # inside [-32, 31]
    (31, -11)
    >>> from refqnn import Stage
    >>> tiles = Accumulator([Stage(6, group=2), Stage(7)])
    >>> project([[3.0, 2.6, 3.0, 2.6]], [10], (0, 7), tiles).tolist()  # 28 in each tile, 28 + 10
    [[2, 2, 2, 1]]
    """
    values, (s, t) = _weights(weight), _input_ends(input_range)
    rows, b = values.reshape(len(values), -1), _bias(bias, len(values))
    terms = rows.shape[1]
    order = np.arange(terms)
    if isinstance(bits, Accumulator):
        order = bits.places(terms, values.shape[1])
    codes: NDArray[Any] = rows[:, order]
    for register in registers(bits):
        size = register.products or terms
        tiles = np.pad(codes, ((0, 0), (0, -terms % size))).reshape(-1, size)
        rooms = [register.room(v) for v in (b if register.products is None else [0] * len(tiles))]
        if register.products is None:
            ends = [register.q_min, register.q_max]
            _check_room(b, rooms, f"a value of the last register, {ends}")
        codes = _projected(tiles, rooms, s, t).reshape(len(rows), -1)[:, :terms]
    codes[:, order] = codes.copy()
    return np.asarray(codes.astype(np.int64).reshape(values.shape))


def _check_room(bias: list[int], rooms: list[tuple[int, int]], expected: str) -> None:
    """Raises: OutOfRange that names the value that fits least."""
    room, worst = min((min(room), value) for value, room in zip(bias, rooms))
    if room < 0:
        raise OutOfRange(mismatch("bias", worst, expected))


def _projected(
    rows: NDArray[np.float64], rooms: list[tuple[int, int]], s: int, t: int
) -> NDArray[np.int64]:
    """Integer rows near real ones, with sums that these (up, down) hold."""
    codes = np.rint(rows).astype(np.int64)
    parts = np.maximum(codes, 0), np.maximum(-codes, 0)
    sums = zip(*(part.sum(axis=1).tolist() for part in parts))
    budgets = [_row_budgets(P, N, *room, s, t) for (P, N), room in zip(sums, rooms)]
    for part, budget, sign in zip(parts, zip(*budgets), (1, -1)):
        for k in np.flatnonzero(part.sum(axis=1) > np.array(budget)):
            part[k] = _nearest(np.maximum(sign * rows[k], 0.0).tolist(), int(budget[k]))
    return np.asarray(parts[0] - parts[1])


@dataclass(frozen=True)
class Register:
    """What one stage asks of the weights.

    Attributes:
        products: in one of its sums; None: the whole row, and the bias.
        q_min, q_max: what it holds.
        bias: "result" where only bias and products together have to fit, "any" where the products
            have to fit without the bias too, "none" where it does not enter.
    """

    products: int | None
    q_min: int
    q_max: int
    bias: str

    def room(self, bias: int) -> tuple[int, int]:
        """How far products may go up and down beside a bias; negative where that does not fit."""
        if self.bias == "none":
            bias = 0
        up, down = self.q_max - bias, bias - self.q_min
        if self.bias == "any" and up >= 0 and down >= 0:
            return min(up, self.q_max), min(down, -self.q_min)
        return up, down


def registers(bits: int | Accumulator) -> list[Register]:
    """The registers of an accumulator, innermost first; of signed `bits` in one stage, the one.

    Raises: InvalidType, InvalidArgument.

    >>> registers(8)
    [Register(products=None, q_min=-128, q_max=127, bias='result')]
    """
    if not isinstance(bits, Accumulator):
        if not is_integer(bits):
            raise InvalidType(mismatch("bits", repr(bits), "an integer from 2 to 62"))
        if not 2 <= bits <= 62:
            raise InvalidArgument(mismatch("bits", bits, "an integer from 2 to 62"))
        half = 2 ** (int(bits) - 1)
        return [Register(None, -half, half - 1, "result")]
    *inner, last = bits.stages
    found, products = [], 1
    for stage in inner:
        products *= stage.group or 1
        found.append(Register(products, *stage.ends, "none"))
    behind = bits.bias == "last" and last.when == "step"
    charged = "none" if bits.bias == "outside" else "any" if behind else "result"
    return [*found, Register(None, *last.ends, charged)]


def sign_budgets(
    P: ArrayLike,
    N: ArrayLike,
    bias: ArrayLike | None,
    input_range: Range,
    bits: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How large P and N of each row may be, integers [out] each.

    With up = 2**(bits-1) - 1 - b, down = 2**(bits-1) + b, s = max(0, -x_lo) and t = max(0, x_hi),
    the exact conditions are t P + s N <= up and s P + t N <= down.  With s = 0 or t = 0 they part,
    for unsigned inputs into P <= up / t and N <= down / t.  Otherwise P and N shrink by one common
    factor f = min(1, up / (t P + s N), down / (s P + t N)), to floor(f P) and floor(f N).

    Args:
        P, N: what the rows want, integers [out] from 0 to 2**62.
        bias, input_range, bits: as for `project`.

    Returns: P_max <= P and N_max <= N.

    Raises: InvalidType, InvalidArgument, ShapeMismatch; OutOfRange for sums out of range and when a
    bias alone does not fit.

    >>> [budget.tolist() for budget in sign_budgets([30, 2], [1, 40], [3, 3], (0, 7), 8)]
    [[17, 2], [1, 18]]
    """
    s, t = _input_ends(input_range)
    (register,) = registers(bits)
    wanted_P, wanted_N = _sums(P, "P"), _sums(N, "N")
    if len(wanted_P) != len(wanted_N):
        raise ShapeMismatch(mismatch("N", f"{len(wanted_N)} sums", f"{len(wanted_P)}, as of P"))
    b = _bias(bias, len(wanted_P))
    rooms = [register.room(v) for v in b]
    _check_room(b, rooms, f"a value of {bits} signed bits")
    pairs = [_row_budgets(p, n, *room, s, t) for p, n, room in zip(wanted_P, wanted_N, rooms)]
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


def _nearest(part: list[float], budget: int) -> list[int]:
    """The integers nearest to `part` (non-negative, with rounded sum above budget) of this sum.

    max(v - tau, 0) meets the budget for tau = max over k of (v_1 + ... + v_k - budget) / k, v in
    descending order (Held, Wolfe and Crowder 1974); tau = T / (K unit) here.
    """
    ratios = [v.as_integer_ratio() for v in part]
    unit = max(d for _, d in ratios)  # denominators of floats are powers of two
    values = [n * (unit // d) for n, d in ratios]
    T, K, excess = 0, 1, -budget * unit
    for k, v in enumerate(sorted(values, reverse=True), start=1):
        if K * v <= T:
            break  # v <= tau: this one and all smaller ones become 0
        excess += v
        if excess * K > T * k:
            T, K = excess, k
    floors, remainders = zip(*(divmod(max(K * v - T, 0), K * unit) for v in values))
    codes = list(floors)
    largest_first = sorted(range(len(codes)), key=lambda i: -remainders[i])  # stable
    for i in largest_first[: budget - sum(floors)]:
        codes[i] += 1
    return codes


def _weights(weight: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(weight)
    if values.dtype.kind not in "iuf":
        raise InvalidType(mismatch("weight", f"dtype {values.dtype}", "numbers"))
    if values.ndim < 2 or values.size == 0:
        raise ShapeMismatch(mismatch("weight", f"shape {values.shape}", "[out, ...]"))
    real = values.astype(np.float64)
    if np.isnan(real).any():
        raise InvalidArgument(mismatch("weight", "NaN", "a number"))
    if not (np.abs(real) < 2.0**31).all():
        largest = np.abs(real).max()
        raise OutOfRange(mismatch("weight", f"magnitude {largest}", "magnitudes below 2**31"))
    return real


def _sums(values: ArrayLike, name: str) -> list[int]:
    sums = as_integers(values, name)
    if sums.ndim != 1 or not len(sums):
        raise ShapeMismatch(mismatch(name, f"shape {sums.shape}", "[out]"))
    if min(sums) < 0 or max(sums) > 2**62:
        raise OutOfRange(mismatch(name, sums.tolist(), "integers from 0 to 2**62"))
    return [int(v) for v in sums.tolist()]


def _bias(bias: ArrayLike | None, rows: int) -> list[int]:
    if bias is None:
        return [0] * rows
    values = np.asarray(bias)
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
