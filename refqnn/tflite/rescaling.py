"""How accumulators become codes: the ways of the runtimes that `refqnn.tflite` specifies.

A gain g = s_x * s_w / s_y becomes a fixed-point multiplier, m = g * 2**(31 - e) rounded half away
with 2**30 <= m < 2**31; a gain below 2**-32 becomes 0.  Then acc * g is

    double       p / 2**max(-e, 0) rounded half away, p = acc * 2**max(e, 0) * m / 2**31 rounded
                 half up
    double_up    the same, both rounded half up
    mixed        double_up for the channels that fill vectors of 8, double for the last C modulo 8
    single       acc * m / 2**(31 - e) rounded half up
    float32      fl(fl(acc) * s) rounded half even, s = fl(fl(s_x * s_w) / s_y) in float32
    float64      fl(acc * g) rounded half away, in float64

The zero point is added behind the last rounding, and the clamp comes last.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import frexp
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.formats import IntFormat
from refqnn.ops import Requantize
from refqnn.ops.base import IntArray
from refqnn.ops.requantize import ALWAYS, NEVER
from refqnn.rounding import Rounding, round_float, round_fraction, round_ratio

__all__ = ["Target", "Way", "clipped", "gain", "multiplier", "requantize", "rescaled"]

Way = Literal["double", "double_up", "mixed", "single", "float32", "float64"]
Gains = NDArray[np.floating[Any]]

_VECTOR = 8


@dataclass(frozen=True)
class Target:
    """The codes that come out: their zero point, and the ends that an activation lets through."""

    format: IntFormat
    zero_point: int
    clip: tuple[int, int]


def gain(way: Way, *factors: Any, by: np.float32) -> Gains:
    """The product of float32 scales divided by one, in the precision of the way: [channels].

    >>> gain("double", np.float32(0.5), np.float32([1, 3]), by=np.float32(2)).tolist()
    [0.25, 0.75]
    """
    dtype = np.float32 if way == "float32" else np.float64
    product: Gains = np.ones(1, dtype)
    for factor in factors:
        product = product * np.asarray(factor, dtype=dtype)
    quotient: Gains = product / np.asarray(by, dtype=dtype)
    return quotient


def multiplier(real: float) -> tuple[int, int]:
    """(m, e) with real = m * 2**(e - 31), m rounded half away to 31 bits; (0, 0) for tiny gains.

    >>> multiplier(0.75), multiplier(2.0**-40)
    ((1610612736, 0), (0, 0))
    """
    fraction, exponent = frexp(real)
    m = round_fraction(Fraction(fraction) * 2**31, Rounding.HALF_AWAY)
    if m == 2**31:
        m, exponent = 2**30, exponent + 1
    return (m, exponent) if exponent >= -31 else (0, 0)


def rescaled(values: IntArray, real: float) -> NDArray[np.int64]:
    """Integers times a gain, in the way "double".

    >>> rescaled(np.array([-4, -2, 3]), 0.25).tolist()
    [-1, -1, 1]
    """
    m, e = multiplier(real)
    first = round_ratio(np.asarray(values, np.int64) * 2 ** max(e, 0) * m, 2**31, Rounding.HALF_UP)
    return np.asarray(round_ratio(first, 2 ** max(-e, 0), Rounding.HALF_AWAY))


def requantize(
    gains: Gains, target: Target, way: Way, acc: tuple[IntArray, IntArray]
) -> Requantize:
    """Accumulators to codes, one gain a channel; one row of thresholds where all are equal.

    Args:
        acc: least and greatest accumulator of each channel.
    """
    fmt = target.format
    if way in ("float32", "float64"):
        unique, which = np.unique(gains, return_inverse=True)
        rows = _float_rows(unique, target, int(acc[0].min()), int(acc[1].max()))
    else:
        full = len(gains) // _VECTOR * _VECTOR if way == "mixed" else len(gains)
        up = np.arange(len(gains)) < full * (way in ("mixed", "double_up"))
        kinds, which = np.unique(np.stack([gains, up]), axis=1, return_inverse=True)
        each = [_row(g, target, way == "single", up=bool(u)) for g, u in kinds.T]
        rows = np.concatenate(each)
    thresholds = rows if len(rows) == 1 else rows[which.reshape(-1)]
    return clipped(Requantize(thresholds, fmt), target.clip)


def _float_rows(gains: Gains, target: Target, lo: int, hi: int) -> NDArray[np.int64]:
    """The thresholds of float32 or float64 gains, by bisection between lo and hi."""
    fmt, mode = target.format, Rounding.HALF_EVEN if gains.dtype == np.float32 else "half_away"

    def code(x: NDArray[np.int64]) -> NDArray[np.float64]:
        scaled = round_float(x.astype(gains.dtype) * gains[:, None], mode).astype(np.float64)
        return np.asarray(np.clip(scaled + target.zero_point, fmt.q_min, fmt.q_max))

    ends = (np.full(len(gains), end) for end in (lo, hi))
    return Requantize.from_function(code, *ends, fmt).thresholds


def _row(real: float, target: Target, single: bool, up: bool) -> NDArray[np.int64]:
    """The thresholds [1, levels - 1] of one channel."""
    m, e = multiplier(real)
    fmt, zero = target.format, target.zero_point
    if m == 0:
        return Requantize.from_table([[zero]], 0, fmt).thresholds
    last = Rounding.HALF_UP if single or up or e >= 0 else Rounding.HALF_AWAY
    first = None if single or e >= 0 else Rounding.HALF_UP
    return Requantize.from_multiplier(
        m, 31 - e, fmt, last, zero_point=zero, first_rounding=first
    ).thresholds


def clipped(op: Requantize, ends: tuple[int, int]) -> Requantize:
    """The same with codes outside the ends moved to them."""
    codes = np.arange(op.format.q_min + 1, op.format.q_max + 1)
    thresholds = np.where(codes <= ends[0], ALWAYS, op.thresholds)
    return Requantize(np.where(codes > ends[1], NEVER, thresholds), op.format)
