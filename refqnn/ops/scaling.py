"""What the thresholds of a Requantize stand for, and where float arithmetic may differ.

    code = saturate(round(y) + zero_point),    y = acc * gain + offset, held between low and high

A float32 runtime computes y with an error of at most

    e(acc) = u * ((8 + steps) * (|acc| * gain + size) + sums * gain),    u = 2**-24

8 for the scales, their product, the accumulator, the division and a bias, as in
`refqnn.brevitas.verify`; one for each further operation; `sums` for a sum of products that is made
of floats, 0 where it is exact.  Where no boundary between two codes lies within e(acc) of y, every
such runtime gives one code.  Else acc is a *tie*: runtimes may differ there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from refqnn.rounding import Rounding

__all__ = ["Scaling", "all_powers_of_two"]

Floats = NDArray[np.float64]

_U = 2.0**-24
_SLACK = 2.0**-49  # of the float64 arithmetic here
_OWN = 8
_FLOAT32_INTEGERS = 2**24
_EXPONENTS = 100  # beyond 2**100 and 2**-100, float32 may over- or underflow on the way


@dataclass(frozen=True, eq=False)
class Scaling:
    """See the module.  Arrays are float64 [channels] or [1].

    Attributes:
        gain: positive.
        offset: what is added; `size` is the sum of the magnitudes that it is made of.
        low, high: between which y is held before it is rounded.
        zero_point: added after rounding.
        codes: the lowest and highest code that come out, [channels or 1, 2].
        rounding: the mode.
        steps: float operations besides those that every quantizer has.
        dyadic: are all factors powers of two?
    """

    gain: Floats
    offset: Floats
    size: Floats
    zero_point: Floats
    codes: NDArray[np.int64]
    rounding: Rounding
    low: Floats | float = -np.inf
    high: Floats | float = np.inf
    steps: int = 0
    dyadic: bool = True

    @classmethod
    def of(
        cls,
        gain: Sequence[Fraction],
        offset: Sequence[Fraction],
        zero_point: Sequence[int],
        codes: NDArray[np.int64],
        rounding: Rounding,
    ) -> Scaling | None:
        """One multiplication, one bias; None where float64 does not hold them."""
        try:
            arrays = [np.array(v, dtype=np.float64) for v in (gain, offset, zero_point)]
        except OverflowError:
            return None
        ordinary = (np.abs(np.log2(np.maximum(arrays[0], 2.0**-1000))) < _EXPONENTS).all()
        if not ordinary:
            return None
        return cls(arrays[0], arrays[1], np.abs(arrays[1]), arrays[2], codes, rounding)

    def exact(self, mass: Floats) -> bool:
        """Does float32 hold all that a sum of this mass [channels] goes through?"""
        with np.errstate(all="ignore"):
            units = self.offset / self.gain, self.size / self.gain
        whole = all((v == np.rint(v)).all() for v in units) and all_powers_of_two(self.gain)
        return self.dyadic and whole and bool((mass + units[1] <= _FLOAT32_INTEGERS).all())

    def ties(
        self, lo: Floats, hi: Floats, sums: Floats | int, codes: NDArray[np.int64], twice: Floats
    ) -> int:
        """How many of the accumulators lo..hi [channels] are ties, over all channels.

        Args:
            sums: bound of the error of a sum in units of u, [channels] or one.
            codes: all but the lowest, [levels - 1].
            twice: two times the y at which each begins, [channels or 1, levels - 1].
        """
        parts = (self.gain, self.offset, self.size, self.low, self.high, sums, lo, hi)
        gain, offset, size, low, high, sums, lo, hi = (np.c_[np.ravel(p)] for p in parts)
        relative, boundary = (_OWN + self.steps) * _U, twice / 2
        error = (relative * size + _U * sums * gain) * (1 + _SLACK)
        error = error + _SLACK * (np.abs(boundary) + np.abs(offset))
        first = _reached(boundary - offset - error, gain, 1 + relative)
        last = _reached(boundary - offset + error, gain, 1 - relative)
        with np.errstate(invalid="ignore"):  # 0 * inf where nothing holds y
            at_low, at_high = (np.nan_to_num(relative * np.abs(v), posinf=0) for v in (low, high))
        never, always = codes > self.codes[:, 1:], codes <= self.codes[:, :1]
        first = np.where(never | (boundary > high + at_high), np.inf, np.ceil(first))
        first = np.where(always | (boundary <= low + at_low), -np.inf, first)
        end = np.where(never | (boundary >= high - at_high), np.inf, np.floor(last) + 1)
        end = np.where(always | (boundary < low - at_low), -np.inf, end)
        first, end = (np.clip(v, lo, hi + 1) for v in (first, end))
        before = np.concatenate([np.broadcast_to(lo, (len(end), 1)), end[:, :-1]], axis=1)
        return int(np.maximum(end - np.maximum(first, before), 0).sum())


def _reached(distance: Floats, gain: Floats, away: float) -> Floats:
    """The acc at which acc * gain is `distance`, where a gain grows by `away` with |acc|."""
    x = distance / gain
    return np.asarray(np.where(x >= 0, x / away, x / (2 - away)))


def all_powers_of_two(values: Floats) -> bool:
    """Are all of them 2**k for an integer k?"""
    return bool((np.frexp(values)[0] == 0.5).all())
