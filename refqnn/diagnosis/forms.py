"""A `Requantize` holds thresholds: which scales, offsets and roundings have these, and others?

With step s (one code in units of the accumulator) and offset o, a rounding rule says from which
point on each code q is reached:

    acc >= p (included)     p < T <= p + 1 where T is an integer:    T - 1 < p <= T
    acc >  p (excluded)                                              T - 1 <= p < T

    p = t * s / D + o,      t and D from the rule and q - zero_point

So a node's thresholds, and codes seen at known accumulators, are linear constraints on (s, o): a
rule explains codes when one pair satisfies those of the node under its own rounding and those of
the codes under the rule.  Everything is rational; no float decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray
from refqnn.ops.requantize import ALWAYS, NEVER, Requantize, reaches
from refqnn.rounding import Rounding, round_ratio

__all__ = ["RULES", "Rule", "families", "fitted", "free", "offset", "other", "unbounded"]

Points = tuple[IntArray, int, NDArray[np.bool_]]  # t, D, included
Affine = tuple[Fraction, Fraction]  # step, offset


@dataclass(frozen=True)
class Rule:
    """From which point on each value is reached.

    Attributes:
        points: values [m] -> (t [m], D, included [m]).
    """

    name: str
    sentence: str
    points: Callable[[IntArray], Points]


def _single(mode: Rounding, moved: int = 0) -> Callable[[IntArray], Points]:
    """One rounding, of numbers that are `moved` integers further up while they are rounded."""

    def points(values: IntArray) -> Points:
        t, included = reaches(values + moved, mode)
        return t - 2 * moved, 2, included

    return points


def _double(first: Rounding, bits: int, last: Rounding) -> Callable[[IntArray], Points]:
    """Rounded to `bits` binary digits after the point, then to an integer."""

    def points(values: IntArray) -> Points:
        t, included = reaches(values, last)  # of halves
        scaled = t * 2**bits
        least = np.where(included, -(-scaled // 2), scaled // 2 + 1)
        t, included = reaches(least, first)
        return t, 2 ** (bits + 1), included

    return points


BASES = {
    "nearest": [m for m in Rounding if m.value.startswith("half")],
    "directed": [m for m in Rounding if not m.value.startswith("half")],
}
_DIGITS = range(1, 17)
_PAIRS = [(a, b) for a in ("half_up", "half_away", "half_even") for b in ("half_up", "half_away")]

RULES = [
    *(Rule(f"rounding_{m.value}", f"rounds {m.value}", _single(m)) for m in Rounding),
    Rule(
        "zero_point_first",
        "adds an odd zero point before it rounds half_even, which turns the parity round",
        _single(Rounding.HALF_EVEN, 1),
    ),
    *(
        Rule(
            f"double_rounding_{a}_{b}_{bits}",
            f"rounds twice: {a} to {bits} binary digits, then {b}",
            _double(Rounding(a), bits, Rounding(b)),
        )
        for a, b in [*_PAIRS, ("floor", "half_up"), ("half_even", "half_even")]
        for bits in _DIGITS
    ),
]


# --- linear constraints ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limits:
    """l < t * s / D + o <= u where included, l <= ... < u where not; [m] each."""

    t: IntArray
    denominator: int
    lower: IntArray
    upper: IntArray
    included: NDArray[np.bool_]

    @classmethod
    def of(cls, points: Points, lower: IntArray, upper: IntArray) -> _Limits:
        t, denominator, included = points
        return cls(t, denominator, lower, upper, included)

    def scaled(self, denominator: int) -> IntArray:
        return self.t * (denominator // self.denominator)


def _solved(parts: Sequence[_Limits]) -> Affine | None:
    """A step and an offset that satisfy all limits, or None where none was found."""
    denominator = max(part.denominator for part in parts)  # powers of two
    t = np.concatenate([part.scaled(denominator) for part in parts])
    lower = np.concatenate([part.lower for part in parts])
    upper = np.concatenate([part.upper for part in parts])
    included = np.concatenate([part.included for part in parts])
    below, above = lower > ALWAYS, upper < NEVER
    if not below.any() or not above.any():
        return None
    # l_i - t_i x < u_j - t_j x for all i, j bounds x = s / D from both sides.
    rise = t[above][None, :] - t[below][:, None]
    room = upper[above][None, :] - lower[below][:, None]
    if (room[rise == 0] < 0).any():
        return None
    least, most = Fraction(0), None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = room / rise.astype(np.float64)
    if (rise > 0).any():
        i, j = np.unravel_index(np.where(rise > 0, ratio, np.inf).argmin(), ratio.shape)
        most = Fraction(int(room[i, j]), int(rise[i, j]))
    if (rise < 0).any():
        i, j = np.unravel_index(np.where(rise < 0, ratio, -np.inf).argmax(), ratio.shape)
        least = max(least, Fraction(int(room[i, j]), int(rise[i, j])))
    if most is None:
        most = 2 * least + 1
    if least > most:
        return None
    for x in dict.fromkeys((simplest(least, most), (least + most) / 2)):
        if x > 0 and (o := _offset(x, t, lower, upper, included)) is not None:
            return x * denominator, o
    return None


def _offset(
    x: Fraction, t: IntArray, lower: IntArray, upper: IntArray, included: NDArray[np.bool_]
) -> Fraction | None:
    """An offset for this step, in exact integers: all limits times the denominator of x."""
    n, d = x.numerator, x.denominator
    moved = t.astype(object) * n
    lows = [
        (v * d - m, not inc) for v, m, inc in zip(lower.tolist(), moved, included) if v > ALWAYS
    ]
    highs = [(v * d - m, inc) for v, m, inc in zip(upper.tolist(), moved, included) if v < NEVER]
    low, high = max(v for v, _ in lows), min(v for v, _ in highs)
    low_in = all(reached for v, reached in lows if v == low)
    high_in = all(reached for v, reached in highs if v == high)
    if low > high or (low == high and not (low_in and high_in)):
        return None
    least, most = Fraction(low, d), Fraction(high, d)
    inner = simplest(least, most)
    at_an_end = (inner == least and not low_in) or (inner == most and not high_in)
    return (least + most) / 2 if at_an_end else inner


def simplest(lo: Fraction, hi: Fraction) -> Fraction:
    """The fraction of least denominator in [lo, hi].

    >>> print(simplest(Fraction(33, 100), Fraction(36, 100)))
    1/3
    """
    if lo <= 0 <= hi:
        return Fraction(0)
    if hi < 0:
        return -simplest(-hi, -lo)
    whole = ceil(lo)
    if whole <= hi:
        return Fraction(whole)
    whole = floor(lo)
    return whole + 1 / simplest(1 / (hi - whole), 1 / (lo - whole))


# --- thresholds and codes ----------------------------------------------------------------------


def _rows(op: Requantize, acc: IntArray, codes: IntArray) -> list[tuple[IntArray, IntArray]]:
    """For each row of thresholds the accumulators and codes that met it, flat."""
    if op.channels == 1:
        return [(acc.reshape(-1), codes.reshape(-1))]
    by_channel = (v.swapaxes(0, 1).reshape(op.channels, -1) for v in (acc, codes))
    return list(zip(*by_channel))


def _seen(op: Requantize, acc: IntArray, codes: IntArray) -> tuple[IntArray, IntArray] | None:
    """For each threshold the greatest accumulator below it and the least that reached it.

    None where the codes are no nondecreasing function of the accumulator.
    """
    targets = np.arange(op.format.q_min + 1, op.format.q_max + 1)
    order = np.lexsort((codes, acc))
    acc, codes = acc[order], codes[order]
    if (np.diff(codes) < 0).any() or ((np.diff(acc) == 0) & (np.diff(codes) != 0)).any():
        return None
    first = np.searchsorted(codes, targets)  # the first sample that reached each code
    padded = np.concatenate([[ALWAYS], acc, [NEVER]])
    return padded[first], padded[first + 1]


def zero_points(op: Requantize) -> list[int]:
    """Codes that may stand for zero: 0, and where a ReLU cuts off."""
    cut = int((op.thresholds == ALWAYS).all(axis=0).sum())
    return list(dict.fromkeys((0, op.format.q_min + cut)))


def families(op: Requantize) -> list[str]:
    """Does the node round to nearest, or in one direction?  The likelier first.

    Thresholds at whole multiples of a power of two are those of a bare shift.
    """
    finite = op.thresholds[(op.thresholds != ALWAYS) & (op.thresholds != NEVER)]
    whole = op.shift is not None and not (finite % 2**op.shift).any()
    return ["directed", "nearest"] if whole else ["nearest", "directed"]


def _own_limits(op: Requantize, row: IntArray, mode: Rounding, zero_point: int) -> _Limits | None:
    finite = (row != ALWAYS) & (row != NEVER)
    if finite.sum() < 2:
        return None
    values = np.arange(op.format.q_min + 1, op.format.q_max + 1)[finite] - zero_point
    return _Limits.of(_single(mode)(values), row[finite] - 1, row[finite])


def _by_rule(
    op: Requantize, row: IntArray, rule: Rule, affine: Affine, zero_point: int
) -> IntArray:
    """The thresholds of a row under another rule."""
    step, o = affine
    values = np.arange(op.format.q_min + 1, op.format.q_max + 1) - zero_point
    t, denominator, included = rule.points(values)
    made = [
        kept if kept in (ALWAYS, NEVER) else ceil(p) if inc else floor(p) + 1
        for kept, inc, p in (
            (int(k), i, step * int(n) / denominator + o) for k, i, n in zip(row, included, t)
        )
    ]
    return np.maximum.accumulate(np.array(made, dtype=np.int64))


def fitted(
    op: Requantize, acc: IntArray, codes: IntArray, rule: Rule, family: str
) -> Requantize | None:
    """The node with this rule, where one scale and offset give its thresholds and these codes."""
    rows = _rows(op, acc, codes)
    seen = [_seen(op, *row) for row in rows]
    if any(s is None for s in seen):
        return None
    targets = np.arange(op.format.q_min + 1, op.format.q_max + 1)
    for zero_point in zero_points(op):
        for base in BASES[family]:
            made = []
            for row, ends in zip(op.thresholds, seen):
                own = _own_limits(op, row, base, zero_point)
                if own is None or ends is None:
                    made.append(row)
                    continue
                finite = (row != ALWAYS) & (row != NEVER)
                points = rule.points(targets[finite] - zero_point)
                theirs = _Limits.of(points, ends[0][finite], ends[1][finite])
                affine = _solved([own, theirs])
                if affine is None:
                    break
                made.append(_by_rule(op, row, rule, affine, zero_point))
            if len(made) == len(rows):
                return Requantize(np.stack(made), op.format)
    return None


def offset(op: Requantize, acc: IntArray, codes: IntArray) -> Requantize | None:
    """The node with a constant added to each row of thresholds, as another bias does it."""
    made = []
    for row, ends in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        finite = (row != ALWAYS) & (row != NEVER)
        if ends is None or not finite.any():
            return None
        lower, upper = ends[0][finite], ends[1][finite]
        low = [a + 1 - t for a, t in zip(lower.tolist(), row[finite].tolist()) if a > ALWAYS]
        high = [b - t for b, t in zip(upper.tolist(), row[finite].tolist()) if b < NEVER]
        least, most = max(low, default=min(0, *high, 0)), min(high, default=max(0, *low, 0))
        if least > most:
            return None
        made.append(np.where(finite, row + min(max(0, least), most), row))
    return Requantize(np.stack(made), op.format)


def other(op: Requantize, acc: IntArray, codes: IntArray) -> Requantize | None:
    """The node with another scale and offset for each row, as other statistics give them."""
    rule, made = RULES[0], []
    targets = np.arange(op.format.q_min + 1, op.format.q_max + 1)
    for row, ends in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        if ends is None:
            return None
        affine = _solved([_Limits.of(rule.points(targets), *ends)])
        if affine is None:
            known = (ends[0] > ALWAYS) | (ends[1] < NEVER)
            made.append(np.where(known, np.where(ends[1] < NEVER, ends[1], NEVER), row))
        else:
            made.append(_by_rule(op, np.zeros_like(row), rule, affine, 0))
    return Requantize(np.maximum.accumulate(np.stack(made), axis=1), op.format)


def free(op: Requantize, acc: IntArray, codes: IntArray) -> Requantize | None:
    """The node with whatever thresholds the codes show."""
    made = []
    for row, ends in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        if ends is None:
            return None
        made.append(np.clip(row, np.maximum(ends[0], ALWAYS + 1) + 1, ends[1]))
    return Requantize(np.maximum.accumulate(np.stack(made), axis=1), op.format)


def unbounded(op: Requantize, acc: IntArray) -> IntArray | None:
    """The codes before saturation, where all rows have a scale and an offset.

    The simplest pair is taken; far outside the thresholds another one may say otherwise.
    """
    rows = _rows(op, acc, acc)
    for mode in (mode for family in families(op) for mode in BASES[family]):
        made = []
        for row, (values, _) in zip(op.thresholds, rows):
            limits = _own_limits(op, row, mode, 0)
            affine = None if limits is None else _solved([limits])
            if affine is None:
                break
            (step, o), values = affine, values.astype(object)
            n = (values * o.denominator - o.numerator) * step.denominator
            made.append(round_ratio(n, o.denominator * step.numerator, mode))
        if len(made) == len(rows):
            shape = acc.shape if op.channels == 1 else acc.swapaxes(0, 1).shape
            codes = np.stack(made).reshape(shape)
            return codes if op.channels == 1 else np.asarray(codes.swapaxes(0, 1))
    return None
