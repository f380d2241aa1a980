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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, add
from refqnn.ops.requantize import ALWAYS, NEVER, Requantize, reaches
from refqnn.ops.rescale import MULTIPLIERS, Rescale
from refqnn.rounding import Rounding, round_ratio

__all__ = [
    "RULES",
    "Rule",
    "alone",
    "fitted",
    "free",
    "offsets",
    "other",
    "readings",
    "rescaled",
    "scales",
    "shifted",
    "unbounded",
]

Points = tuple[IntArray, int, NDArray[np.bool_]]  # t, D, included
Affine = tuple[Fraction, Fraction]  # step, offset

FAR = 2**62  # no end
_FEW = 24  # thresholds that rule out most


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

    def select(self, which: NDArray[Any]) -> _Limits:
        columns = (column[which] for column in (self.t, self.lower, self.upper, self.included))
        t, lower, upper, included = columns
        return _Limits(t, self.denominator, lower, upper, included)

    def scaled(self, denominator: int) -> IntArray:
        return self.t * (denominator // self.denominator)


def _merged(parts: Sequence[_Limits]) -> _Limits:
    """All limits in one, under their common denominator (they are powers of two)."""
    denominator = max(part.denominator for part in parts)
    columns = zip(*((p.scaled(denominator), p.lower, p.upper, p.included) for p in parts))
    t, lower, upper, included = (np.concatenate(column) for column in columns)
    return _Limits(t, denominator, lower, upper, included)


def _slopes(limits: _Limits) -> tuple[Fraction, Fraction] | None:
    """Between which x = s / D has to lie, ends included, whichever limits are strict.

    l_i - t_i x <= u_j - t_j x for all i, j bounds x from both sides.
    """
    below, above = limits.lower > ALWAYS, limits.upper < NEVER
    rise = limits.t[above][None, :] - limits.t[below][:, None]
    room = limits.upper[above][None, :] - limits.lower[below][:, None]
    if not rise.size or (room[rise == 0] < 0).any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = room / rise.astype(np.float64)

    def end(choice: np.intp) -> Fraction:
        place = np.unravel_index(choice, rise.shape)
        return Fraction(int(room[place]), int(rise[place]))

    least, most = Fraction(0), None
    if (rise < 0).any():
        least = max(least, end(np.where(rise < 0, ratio, -np.inf).argmax()))
    if (rise > 0).any():
        most = end(np.where(rise > 0, ratio, np.inf).argmin())
    most = 2 * least + 1 if most is None else most
    return (least, most) if least <= most else None


def _solved(parts: Sequence[_Limits]) -> Affine | None:
    """A step and an offset that satisfy all limits, or None where none was found."""
    limits = _merged(parts)
    ends = _slopes(limits)
    if ends is None:
        return None
    least, most = ends
    for x in dict.fromkeys((simplest(least, most), (least + most) / 2)):
        if x > 0 and (o := _offset(x, limits)) is not None:
            return x * limits.denominator, o
    return None


def _offset(x: Fraction, limits: _Limits) -> Fraction | None:
    """An offset for this step, in exact integers: all limits times the denominator of x."""
    n, d = x.numerator, x.denominator
    columns = (limits.lower, limits.upper, limits.t, limits.included)
    rows = list(zip(*(column.tolist() for column in columns)))
    lows = [(lower * d - t * n, not inc) for lower, _, t, inc in rows if lower > ALWAYS]
    highs = [(upper * d - t * n, inc) for _, upper, t, inc in rows if upper < NEVER]
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
    """Codes that may stand for zero: 0, where a ReLU cuts off, and 1 for any odd one."""
    cut = int((op.thresholds == ALWAYS).all(axis=0).sum())
    return list(dict.fromkeys((0, *([op.format.q_min + cut] if cut else []), 1)))


def readings(op: Requantize) -> list[Rounding]:
    """The roundings that the node may have been made with, the likelier first.

    Thresholds at whole multiples of a power of two are those of a bare shift.
    """
    finite = op.thresholds[(op.thresholds != ALWAYS) & (op.thresholds != NEVER)]
    whole = op.shift is not None and not (finite % 2**op.shift).any()
    return sorted(Rounding, key=lambda mode: mode.value.startswith("half") == whole)


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
    op: Requantize, acc: IntArray, codes: IntArray, rules: Sequence[Rule], bases: Sequence[Rounding]
) -> tuple[Requantize, Rule, Rounding] | None:
    """The node with the first of some rules for which one scale and offset give its own thresholds
    (by one of the roundings `bases`) and these codes; which rule and which rounding."""
    seen = [_seen(op, *row) for row in _rows(op, acc, codes)]
    ends = [pair for pair in seen if pair is not None]
    if len(ends) < len(seen):
        return None
    for rule, zero_point in product(rules, zero_points(op)):
        possible: dict[
            bytes, bool
        ] = {}  # whatever becomes of ties, which is all that bases differ in
        for base in bases:
            pairs = _limits(op, ends, rule, base, zero_point)
            points = b"".join(pair[0].t.tobytes() for pair in pairs if pair is not None)
            if points not in possible:
                possible[points] = all(_possible(*pair) for pair in pairs if pair is not None)
            affines = _affines(pairs) if possible[points] else None
            if affines is not None:
                made = [
                    row if affine is None else _by_rule(op, row, rule, affine, zero_point)
                    for row, affine in zip(op.thresholds, affines)
                ]
                return Requantize(np.stack(made), op.format), rule, base
    return None


def alone(op: Requantize, rules: Sequence[Rule], bases: Sequence[Rounding]) -> Iterator[Requantize]:
    """The node with each rule, at the simplest scale and offset that its own thresholds have by one
    of the roundings `bases`."""
    seen = set[bytes]()
    for base, zero_point in product(bases, zero_points(op)):
        limits = [_own_limits(op, row, base, zero_point) for row in op.thresholds]
        affines = [None if own is None else _solved([own]) for own in limits]
        if any(own is not None and a is None for own, a in zip(limits, affines)):
            continue
        for rule in rules:
            rows = np.stack(
                [
                    row if affine is None else _by_rule(op, row, rule, affine, zero_point)
                    for row, affine in zip(op.thresholds, affines)
                ]
            )
            if rows.tobytes() not in seen:
                seen.add(rows.tobytes())
                yield Requantize(rows, op.format)


def _limits(
    op: Requantize,
    ends: Sequence[tuple[IntArray, IntArray]],
    rule: Rule,
    base: Rounding,
    zero_point: int,
) -> list[tuple[_Limits, _Limits] | None]:
    """For each row what its own thresholds and what the codes say; None where it tells no step."""
    targets = np.arange(op.format.q_min + 1, op.format.q_max + 1) - zero_point
    own_points, their_points = _single(base)(targets), rule.points(targets)
    found: list[tuple[_Limits, _Limits] | None] = []
    for row, (lower, upper) in zip(op.thresholds, ends):
        finite = (row != ALWAYS) & (row != NEVER)
        if finite.sum() < 2:
            found.append(None)
            continue
        own = _Limits.of(own_points, row - 1, row).select(finite)
        found.append((own, _Limits.of(their_points, lower, upper).select(finite)))
    return found


def _possible(own: _Limits, theirs: _Limits) -> bool:
    """May one step do for both?  A few thresholds rule out most."""
    few = np.unique(np.linspace(0, len(own.t) - 1, _FEW).astype(np.int64))
    return _slopes(_merged([own.select(few), theirs.select(few)])) is not None


def _affines(pairs: Sequence[tuple[_Limits, _Limits] | None]) -> list[Affine | None] | None:
    """A step and an offset for each row; None for a row that tells none, None where one fails."""
    affines: list[Affine | None] = []
    for pair in pairs:
        affine = None if pair is None else _solved(pair)
        if affine is None and pair is not None:
            return None
        affines.append(affine)
    return affines


def _one_row_each(op: Requantize, acc: IntArray) -> Requantize:
    """The node with thresholds for each channel: another bias moves each by its own."""
    rows = np.broadcast_to(op.thresholds, (acc.shape[1], op.thresholds.shape[1]))
    return Requantize(rows, op.format)


def chosen(ends: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Constants in their ranges: one for all where one will do, the nearest to 0, both ends.

    >>> chosen([(1, 4), (-FAR, 2)])
    [[1, 1], [1, 0], [4, 2]]
    """
    near = [min(max(0, least), most) for least, most in ends]
    least, most = max(low for low, _ in ends), min(high for _, high in ends)
    one = [[min(max(0, least), most)] * len(ends)] if least <= most else []
    low = [a if a > -FAR else n for (a, _), n in zip(ends, near)]
    high = [b if b < FAR else n for (_, b), n in zip(ends, near)]
    return [list(k) for k in dict.fromkeys(map(tuple, [*one, near, low, high]))]


def offsets(op: Requantize, acc: IntArray, codes: IntArray) -> list[Requantize]:
    """The node with a constant added to each row of thresholds, as another bias does it."""
    op, ends = _one_row_each(op, acc), []
    finite = (op.thresholds != ALWAYS) & (op.thresholds != NEVER)
    for row, real, seen in zip(
        op.thresholds, finite, (_seen(op, *r) for r in _rows(op, acc, codes))
    ):
        if seen is None:
            return []
        lower, upper, t = (v[real].tolist() for v in (*seen, row))
        least = max((a + 1 - v for a, v in zip(lower, t) if a > ALWAYS), default=-FAR)
        most = min((b - v for b, v in zip(upper, t) if b < NEVER), default=FAR)
        if least > most:
            return []
        ends.append((least, most))
    moved = (np.array(k)[:, None] for k in chosen(ends))
    return [
        Requantize(np.where(finite, op.thresholds + k, op.thresholds), op.format) for k in moved
    ]


def scales(op: Requantize, acc: IntArray, codes: IntArray) -> list[Requantize]:
    """The node with the accumulators of each channel multiplied by a constant.

    a / u >= T where a >= u T, so lower < u T <= upper for what was seen of every threshold.
    """
    op, ends = _one_row_each(op, acc), []
    for row, seen in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        between = None if seen is None else _factors(row.tolist(), *(v.tolist() for v in seen))
        if between is None:
            return []
        ends.append(between)
    every = (max(low for low, _ in ends), min(high for _, high in ends))
    made = []
    for pairs in ([every] * len(ends) if every[0] <= every[1] else [], ends):
        for part in (Fraction(1, 2), Fraction(1, 8), Fraction(7, 8)) if pairs else ():
            factors = [
                Fraction(1) if low <= 1 <= high else low + (high - low) * part
                for low, high in pairs
            ]
            rows = [
                [v if v in (ALWAYS, NEVER) else ceil(v * u) for v in row]
                for row, u in zip(op.thresholds.tolist(), factors)
            ]
            made.append(Requantize(np.array(rows, dtype=np.int64), op.format))
    return made


def _factors(row: list[int], lower: list[int], upper: list[int]) -> Affine | None:
    """Between which u has to lie, ends included, for lower < u T <= upper at every T."""
    low, high = Fraction(0), Fraction(FAR)
    for t, a, b in zip(row, lower, upper):
        if t in (ALWAYS, NEVER) or (t == 0 and a < 0 <= b):
            continue
        if t == 0:
            return None
        pair = [Fraction(v, t) if ALWAYS < v < NEVER else None for v in (a, b)]
        below, above = pair if t > 0 else pair[::-1]
        low = low if below is None else max(low, below)
        high = high if above is None else min(high, above)
    if high == FAR:
        high = max(Fraction(1), 2 * low)
    return (low, high) if low <= high else None


def shifted(op: Requantize, acc: IntArray, codes: IntArray, k: int) -> Requantize | None:
    """The node with k added to its codes before saturation.

    Thresholds stand k codes further on; those from beyond the ends are where the codes show them,
    and a code that is never reached may be so by a clip.
    """
    made = []
    for row, seen in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        if seen is None:
            return None
        lower, upper = seen
        source = np.arange(len(row)) - k
        inside = np.clip(source, 0, len(row) - 1)
        there, real = row[inside], (row != ALWAYS) & (row != NEVER)
        known = (source == inside) & real[inside] & (real | ((lower < there) & (there <= upper)))
        free = np.where(real, np.clip(row, np.maximum(lower, ALWAYS + 1) + 1, upper), row)
        instead = np.where(known, there, free)
        if k > 0:
            made.append(np.minimum.accumulate(instead[::-1])[::-1])
        else:
            made.append(np.maximum.accumulate(instead))
    return Requantize(np.stack(made), op.format)


def rescaled(op: Rescale, acc: IntArray, codes: IntArray, field: str) -> list[Rescale]:
    """The node with another offset, or another multiplier, for each channel."""
    axes = tuple(i for i in range(acc.ndim) if i != 1)
    own = np.broadcast_to(getattr(op, field), acc.shape[1])
    least, most = (-FAR, FAR) if field == "offset" else (0, MULTIPLIERS - 1)
    size = int(max(abs(acc).max(initial=1), abs(own).max()))
    reach = 2 ** min(size.bit_length(), 61)
    rising = field == "offset" or add(acc, op.offset.reshape(-1, *(1,) * (acc.ndim - 2))) >= 0

    def moved(k: NDArray[np.int64]) -> Rescale:
        parameters: dict[str, Any] = {field: np.clip(own + k, least, most)}
        return replace(op, **parameters)

    def first(holds: Callable[[IntArray], NDArray[np.bool_]]) -> NDArray[np.int64]:
        """The least constant of each channel for which it holds, reach + 1 where for none."""
        low = np.full(acc.shape[1], -reach)
        high = np.full(acc.shape[1], reach + 1)
        while (low < high).any():
            middle = (low + high) // 2
            enough = holds(moved(middle).forward(acc))
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        return low

    lows = first(lambda y: np.where(rising, y >= codes, y <= codes).all(axis=axes))
    highs = first(lambda y: np.where(rising, y > codes, y < codes).any(axis=axes)) - 1
    if (lows > highs).any():
        return []
    ends = [
        (a if a > -reach else -FAR, b if b < reach else FAR)
        for a, b in zip(lows.tolist(), highs.tolist())
    ]
    return [moved(np.array(k)) for k in chosen(ends)]


def other(op: Requantize, acc: IntArray, codes: IntArray) -> list[Requantize]:
    """The node with another scale and offset for each row, as other statistics give them."""
    rule, made = RULES[0], []
    targets = np.arange(op.format.q_min + 1, op.format.q_max + 1)
    for row, ends in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        if ends is None:
            return []
        affine = _solved([_Limits.of(rule.points(targets), *ends)])
        if affine is None:
            known = (ends[0] > ALWAYS) | (ends[1] < NEVER)
            made.append(np.where(known, np.where(ends[1] < NEVER, ends[1], NEVER), row))
        else:
            made.append(_by_rule(op, np.zeros_like(row), rule, affine, 0))
    return [Requantize(np.maximum.accumulate(np.stack(made), axis=1), op.format)]


def free(op: Requantize, acc: IntArray, codes: IntArray) -> list[Requantize]:
    """The node with whatever thresholds the codes show."""
    made = []
    for row, ends in zip(op.thresholds, (_seen(op, *r) for r in _rows(op, acc, codes))):
        if ends is None:
            return []
        made.append(np.clip(row, np.maximum(ends[0], ALWAYS + 1) + 1, ends[1]))
    return [Requantize(np.maximum.accumulate(np.stack(made), axis=1), op.format)]


def unbounded(op: Requantize, acc: IntArray) -> IntArray | None:
    """The codes before saturation, where all rows have a scale and an offset.

    The simplest pair is taken; far outside the thresholds another one may say otherwise.
    """
    rows = _rows(op, acc, acc)
    for mode in readings(op):
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
