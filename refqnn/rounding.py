"""Named rounding modes, for ratios of integers, for fractions and for floats.

Every mode is one rule on sign and magnitude.  Write |x| = m + f with an integer m and 0 <= f < 1.
The result is sign(x) * m, or sign(x) * (m + 1) when the mode rounds *away* from zero here:

    floor             f > 0 and x < 0
    ceil              f > 0 and x > 0
    toward_zero       never
    away_from_zero    f > 0
    half_*            f > 1/2, or f = 1/2 and:
      half_even         m is odd
      half_up           x > 0               (ties toward +infinity: add a half, then shift)
      half_down         x < 0               (ties toward -infinity)
      half_away         always
      half_toward_zero  never

Magnitudes are used, not `x - floor(x)`, because |x| - m is exact in floating point and the other
is not: x = -(1/2 - 2**-25) in float32 would look like a tie.

Other tools use HALF_UP for what is called `half_away` here (qonnx, Python's decimal).
"""

from __future__ import annotations

from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.arithmetic import to_int64_if_possible
from refqnn.errors import InvalidArgument, InvalidType, mismatch
from refqnn.formats import as_integers, is_integer

__all__ = ["Rounding", "round_float", "round_fraction", "round_ratio"]


class Rounding(str, Enum):
    """How a number between two integers becomes one of them.

    >>> Rounding("half_even") is Rounding.HALF_EVEN
    True
    """

    HALF_EVEN = "half_even"
    HALF_UP = "half_up"
    HALF_DOWN = "half_down"
    HALF_AWAY = "half_away"
    HALF_TOWARD_ZERO = "half_toward_zero"
    FLOOR = "floor"
    CEIL = "ceil"
    TOWARD_ZERO = "toward_zero"
    AWAY_FROM_ZERO = "away_from_zero"

    @classmethod
    def of(cls, mode: Rounding | str) -> Rounding:
        """The mode, from itself or from its name.

        Raises: InvalidArgument for any other value.
        """
        try:
            return cls(mode)
        except ValueError:
            names = ", ".join(m.value for m in cls)
            raise InvalidArgument(mismatch("rounding", repr(mode), f"one of {names}")) from None


def _away(mode: Rounding, negative: Any, odd: Any, exact: Any, below_half: Any, tie: Any) -> Any:
    """Whether the magnitude grows by one.  Arguments are booleans or boolean arrays."""
    if mode is Rounding.FLOOR:
        return ~exact & negative
    if mode is Rounding.CEIL:
        return ~exact & ~negative
    if mode is Rounding.TOWARD_ZERO:
        return exact & ~exact
    if mode is Rounding.AWAY_FROM_ZERO:
        return ~exact
    tie_goes_away = {
        Rounding.HALF_EVEN: odd,
        Rounding.HALF_UP: ~negative,
        Rounding.HALF_DOWN: negative,
        Rounding.HALF_AWAY: tie,
        Rounding.HALF_TOWARD_ZERO: ~tie,
    }[mode]
    return (tie & tie_goes_away) | (~tie & ~below_half)


def round_ratio(numerator: ArrayLike, denominator: ArrayLike, mode: Rounding | str) -> Any:
    """Round numerator / denominator, both integers.

    Args:
        numerator: integers of any shape, as int, or as an integer or object (Python int) array.
        denominator: one positive integer, or an array of them that broadcasts to `numerator`.
        mode: rounding mode or its name.

    Returns: int64 of the same shape (Python integers where int64 does not hold them); a Python int
        for a Python int.

    Raises: InvalidType for non-integers, InvalidArgument for denominator <= 0.

    >>> [round_ratio(n, 2, "half_even") for n in (-3, -1, 1, 3)]
    [-2, 0, 0, 2]
    >>> [round_ratio(n, 2, "half_up") for n in (-3, -1, 1, 3)]
    [-1, 0, 1, 2]
    """
    mode = Rounding.of(mode)
    if not is_integer(denominator) and not isinstance(denominator, np.ndarray):
        raise InvalidType(mismatch("denominator", repr(denominator), "an integer"))
    d = as_integers(denominator, "denominator")
    if d.min() <= 0:
        raise InvalidArgument(mismatch("denominator", d.min(), "a positive integer"))
    if is_integer(numerator) and d.ndim == 0:
        return _round_ratio_int(int(numerator), int(d), mode)
    n = as_integers(numerator, "numerator")
    # f is compared with 1/2 as 2 r with d, and |n| is taken: both must fit int64.
    if n.dtype == object or d.max() > 2**62 or (n.size and int(n.min()) == -(2**63)):
        pairs = zip(n.flat, np.broadcast_to(d, n.shape).flat)
        rounded = np.empty(n.shape, dtype=object)
        rounded.ravel()[:] = [_round_ratio_int(int(v), int(w), mode) for v, w in pairs]
        return to_int64_if_possible(rounded)
    negative = n < 0
    m, r = np.divmod(np.abs(n), d)
    magnitude = m + _away(mode, negative, m % 2 == 1, r == 0, 2 * r < d, 2 * r == d)
    return np.where(negative, -magnitude, magnitude)


def _round_ratio_int(n: int, d: int, mode: Rounding) -> int:
    m, r = divmod(abs(n), d)
    flags = (n < 0, m % 2 == 1, r == 0, 2 * r < d, 2 * r == d)
    away = bool(_away(mode, *(np.bool_(flag) for flag in flags)))
    magnitude = m + away
    return -magnitude if n < 0 else magnitude


def round_fraction(x: Fraction | int, mode: Rounding | str) -> int:
    """Round a rational number to an integer, exactly.

    >>> x = Fraction(-5, 2)
    >>> round_fraction(x, "half_toward_zero"), round_fraction(x, "floor")
    (-2, -3)
    """
    mode = Rounding.of(mode)
    if not isinstance(x, Fraction) and not is_integer(x):
        raise InvalidType(mismatch("x", repr(x), "an int or a Fraction"))
    x = Fraction(x)
    return _round_ratio_int(x.numerator, x.denominator, mode)


# IEEE 754 has these four modes, and so has numpy.
_NATIVE: dict[Rounding, np.ufunc] = {
    Rounding.HALF_EVEN: np.rint,
    Rounding.FLOOR: np.floor,
    Rounding.CEIL: np.ceil,
    Rounding.TOWARD_ZERO: np.trunc,
}


def round_float(x: ArrayLike, mode: Rounding | str) -> NDArray[np.floating[Any]]:
    """Round floats to integral floats of the same dtype, exactly.

    Args:
        x: float16, float32 or float64, any shape.  Infinities stay; NaN is an error.

    Raises: InvalidType for other dtypes, InvalidArgument for NaN.

    >>> round_float(np.array([-2.5, -0.5, 0.5, 2.5]), "half_even").tolist()
    [-2.0, -0.0, 0.0, 2.0]
    """
    mode = Rounding.of(mode)
    array = np.asarray(x)
    if array.dtype.kind != "f":
        raise InvalidType(mismatch("x", f"dtype {array.dtype}", "floats"))
    if np.isnan(array).any():
        raise InvalidArgument(mismatch("x", "NaN", "numbers"))
    if mode in _NATIVE:
        native: NDArray[np.floating[Any]] = _NATIVE[mode](array)
        return native
    negative = np.signbit(array)
    magnitude = np.abs(array)
    m = np.floor(magnitude)
    with np.errstate(invalid="ignore"):
        f = np.where(np.isinf(magnitude), 0, magnitude - m)
        odd = np.where(np.isinf(magnitude), 0, np.mod(m, 2)) == 1
    away = _away(mode, negative, odd, f == 0, f < 0.5, f == 0.5)
    rounded: NDArray[np.floating[Any]] = np.copysign(m + away, array)
    return rounded.astype(array.dtype, copy=False)
