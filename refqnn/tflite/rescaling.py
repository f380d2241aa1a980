"""How accumulators become codes: the ways of the runtimes that `refqnn.tflite` specifies.

A gain g = s_x * s_w / s_y becomes a fixed-point multiplier, m = g * 2**(31 - e) rounded half away
with 2**30 <= m < 2**31; a gain below 2**-32 becomes 0.  Then acc * g is

    double       p / 2**max(-e, 0) rounded half away, p = acc * 2**max(e, 0) * m / 2**31 rounded
                 half up
    double_up    the same, both rounded half up
    double_down  the same, the second rounded down
    mixed        double_up for the channels that fill vectors of 8, double for the last C modulo 8
                 (a mean: of 16)
    single       acc * m / 2**(31 - e) rounded half up
    reduced      acc * m' / 2**(15 - e) rounded half up, m' = m / 2**16 rounded half up, at most
                 2**15 - 1
    float32      fl(fl(acc) * s) rounded half even, s = fl(fl(s_x * s_w) / s_y) in float32
    float64      fl(acc * g) rounded half away, in float64

The zero point is added behind the last rounding, and the clamp comes last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import frexp
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import NotCovered, mismatch
from refqnn.formats import IntFormat
from refqnn.ops import Requantize, Rescale
from refqnn.ops.base import IntArray
from refqnn.rounding import Rounding, round_float, round_fraction, round_ratio

__all__ = [
    "Target",
    "Way",
    "check_32",
    "eighth_bits",
    "fixed_point",
    "gain",
    "multiplier",
    "requantize",
    "rescaled",
]

Way = Literal[
    "double", "double_up", "double_down", "mixed", "single", "reduced", "float32", "float64"
]
Gains = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Target:
    """The codes that come out: their zero point, and the ends that an activation lets through."""

    format: IntFormat
    zero_point: int
    clip: tuple[int, int]


_WIDE = Target(IntFormat(32, signed=True), 0, (-(2**31), 2**31 - 1))


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


def fixed_point(
    gains: Gains, target: Target, way: Way = "double", *, terms: int = 1, zero: int = 0
) -> Rescale:
    """Accumulators times gains, one a channel or one for all, in one of the fixed-point ways.

    Args:
        terms: m is divided by it, floored, after as many bits were added: the divisor of a mean.
        zero: comes off the accumulator.
    """
    m, e = np.array([multiplier(g) for g in gains.tolist()]).T
    if terms > 1:
        bits = np.minimum(min(terms.bit_length() - 1, 32), 31 + e)
        m, e = (m << bits) // terms, e - bits
    if way == "reduced":
        m, e = np.minimum((m + 2**15) >> 16, 2**15 - 1), e + 16
    once = way in ("single", "reduced")
    return Rescale(
        m if once else m << np.maximum(e, 0),
        31 - e if once else 31 + np.maximum(-e, 0),
        target.format,
        {"double": Rounding.HALF_AWAY, "double_down": Rounding.FLOOR}.get(way, Rounding.HALF_UP),
        zero_point=target.zero_point,
        offset=-zero,
        clip=target.clip,
        first_rounding=None if once else Rounding.HALF_UP,
    )


def rescaled(values: IntArray, real: float, way: Way = "double") -> NDArray[np.int64]:
    """Integers [n] times a gain, in 32 bits.  Raises: NotCovered where these do not hold them.

    >>> rescaled(np.array([-4, -2, 3]), 0.25).tolist()
    [-1, -1, 1]
    """
    check_32(int(np.abs(values).max(initial=0)), real)
    op = fixed_point(np.array([real]), _WIDE, way)
    return np.asarray(op.forward(np.asarray(values)[:, None])[:, 0], dtype=np.int64)


def check_32(most: int, real: float) -> None:
    """Raises: NotCovered where the kernels' shift to the left, for gains above 1, wraps."""
    exponent = max(0, frexp(real)[1])
    if exponent and most << exponent >= 2**31:
        got = f"values up to {most} times {real:g}"
        raise NotCovered(mismatch("rescaling", got, "32 bits, beyond which the kernel wraps"))


def eighth_bits(values: IntArray, real: np.float32) -> NDArray[np.int64]:
    """Integers times a gain of 8 bits behind the point, rounded half up.

    >>> eighth_bits(np.array([-2, 1, 3]), np.float32(0.5)).tolist()
    [-1, 1, 2]
    """
    return np.asarray(round_ratio(values * int(np.rint(256 * float(real))), 256, "half_up"))


def requantize(
    gains: Gains,
    target: Target,
    way: Way,
    acc: tuple[IntArray, IntArray],
    *,
    vector: int = 8,
) -> Requantize | Rescale:
    """Accumulators to codes, one gain a channel; thresholds of codes of 8 bits.

    Args:
        acc: least and greatest accumulator of each channel.
        vector: channels that "mixed" takes at one time.

    Raises: NotCovered.
    """
    if way != "float32":
        for most, real in np.broadcast(np.maximum(-acc[0], acc[1]), gains):
            check_32(int(most), float(real))
    if way in ("float32", "float64"):
        unique, which = np.unique(gains, return_inverse=True)
        op = _floats(unique, target, int(acc[0].min()), int(acc[1].max()))
        return op if len(unique) == 1 else replace(op, thresholds=op.thresholds[which.ravel()])
    if target.format.bits > 8:
        unique = np.unique(gains)
        return fixed_point(unique if len(unique) == 1 else gains, target, way)
    full = len(gains) // vector * vector if way == "mixed" else 0
    first = _listed(gains[:full], target, "double_up")
    rest = _listed(gains[full:], target, "double" if way == "mixed" else way)
    if full == 0 and (rest == rest[0]).all():
        rest = rest[:1]
    return Requantize(np.concatenate([first, rest]), target.format)


def _listed(gains: Gains, target: Target, way: Way) -> NDArray[np.int64]:
    """The thresholds [channels, levels - 1]."""
    unique, which = np.unique(gains, return_inverse=True)
    if len(unique) == 0:
        return np.zeros((0, target.format.levels - 1), dtype=np.int64)
    listed = Requantize.from_rescale(fixed_point(unique, target, way)).thresholds
    return np.asarray(listed[which.ravel()])


def _floats(gains: Gains, target: Target, lo: int, hi: int) -> Requantize:
    """The thresholds of float32 or float64 gains, by bisection between lo and hi."""
    mode = Rounding.HALF_EVEN if gains.dtype == np.float32 else Rounding.HALF_AWAY

    def code(x: NDArray[np.int64]) -> NDArray[np.float64]:
        scaled = round_float(x.astype(gains.dtype) * gains[:, None], mode).astype(np.float64)
        codes: NDArray[np.float64] = np.clip(scaled + target.zero_point, *target.clip)
        return codes

    return Requantize.from_function(
        code, np.full(len(gains), lo), np.full(len(gains), hi), target.format
    )
