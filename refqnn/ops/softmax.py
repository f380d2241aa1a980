"""Softmax: codes of exp(x_c) / sum of exp(x_k) over the channels, as integer runtimes compute them.

What a code becomes depends on d = max over k of x[n, k, ...] - x[n, c, ...] alone, through a table
of exponentials e[d] = exp(-d * scale).  Three arithmetics are known, told apart by the table: by
its dtype, and by e[0], which stands for 1.

**int64: fixed point**, as gemmlowp defines it.  e is in units of 2**-31.  With srdhm(a, b) the
product a * b / 2**31 rounded half up:

    S      sum over k of e[d_k] / 2**12, each rounded half away: units of 2**-19
    h      S * 2**z / 2, where z brings S to [2**31, 2**32): half of 1 <= S < 2
    r      1 / h by three Newton steps from 48/17 - 32/17 h, all in units of 2**-29
    code   q_min + srdhm(2 r, e[d]) / 2**(43 - bits - z), rounded half away, saturated

**int64, lines**, as TFLite's 16-bit kernel has it; e in units of 2**-15, e[0] from 2**14 on, and
codes of 15 bits:

    S      sum over k of e[d_k]
    h      S * 2**z / 2**15, rounded half up, where z brings S to [2**31, 2**32): units of 2**-16
           and 1 <= h < 2
    r      1 / h on the line between two of `curve`'s 513 inverses, in units of 2**-15
    code   q_min + e[d] * r / 2**(31 - z), rounded half up, saturated

**float32**: S is the sum in the order of the channels, v = 1 / (S * 2**-bits), and
code = q_min + floor(e[d] * v + 1/2), saturated; every step is one operation in float32, but for the
addition of 1/2, which is exact here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import add, multiply
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import IntFormat
from refqnn.ops.base import IntArray, Interval, Op, Shape, integer_parameter
from refqnn.rounding import round_ratio

__all__ = ["Softmax", "along_lines", "curve", "exp_of_negative"]

_ONE = 2**31 - 1  # 1 - 2**-31 stands for 1
_MAX_CHANNELS = 2**12 - 1  # S stays below 2**31
_LEAST = 2**16  # of e[0]: S is at least 2**4, and the last shift one to the right
_SHORT = 2**14, 2**15 - 1  # e[0] of tables in units of 2**-15, and the most of any
_ENDS = 2.0**-100, 2.0**100  # of floats: sums and their inverses are normal numbers


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax over the first axis of a sample, as codes of an unsigned fraction in [0, 1).

    Args:
        exponentials: e[0], e[1], ...: integers [n] in units of 2**-31, from 0 to 2**31 - 1, the
            first at least 2**16; integers in units of 2**-15, from 0 to 2**15 - 1, the first at
            least 2**14; or float32 [n] from 0 to 2**100, the first at least 2**-100.  A d beyond
            the table has e = 0.
        format: of the codes, of scale 2**-bits and zero point q_min; of step 1, 16 bits at most,
            15 where e is in units of 2**-15.

    Raises: InvalidType, InvalidArgument, OutOfRange, ShapeMismatch.

    >>> half = Softmax([2**31 - 1, 2**30], IntFormat(8, True))  # each unit down halves
    >>> half.forward(np.array([[5, 4], [7, 7]])).tolist()
    [[43, -43], [0, 0]]
    """

    kind: ClassVar[str] = "Softmax"

    exponentials: Any
    format: IntFormat

    def __post_init__(self) -> None:
        fmt = self.format
        if not isinstance(fmt, IntFormat) or fmt.bits > 16 or fmt.step != 1:
            expected = "an IntFormat of step 1, 16 bits at most"
            raise InvalidType(mismatch("format", repr(fmt), expected))
        table = np.asarray(self.exponentials)
        if table.dtype == np.float32:
            table = table.copy()
            table.flags.writeable = False
            least, most = _ENDS
        else:
            table = integer_parameter(self.exponentials, "exponentials", ndim=1)
            least, most = _SHORT if _short(table) else (_LEAST, _ONE)
        if table.ndim != 1 or table.size == 0:
            raise InvalidArgument(mismatch("exponentials", f"shape {table.shape}", "[n], n > 0"))
        if not ((table >= 0) & (table <= most)).all() or table[0] < least:
            expected = (
                "integers from 0 to 2**31 - 1, the first at least 2**16; "
                "from 0 to 2**15 - 1, the first at least 2**14; "
                "or float32 from 0 to 2**100, the first at least 2**-100"
            )
            raise InvalidArgument(mismatch("exponentials", "others", expected))
        if _short(table) and fmt.bits != 15:
            raise InvalidArgument(mismatch("format", repr(fmt), "15 bits, as exponentials"))
        object.__setattr__(self, "exponentials", table)

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if not shape or shape[0] > _MAX_CHANNELS:
            expected = f"at most {_MAX_CHANNELS} channels"
            raise ShapeMismatch(mismatch("input of Softmax", f"shape {shape}", expected))
        return shape

    def out_range(self, *ranges: Interval) -> Interval:
        """Every code: sound, not exact."""
        (x,) = ranges
        return Interval.of_format(self.format, x.shape)

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, channels, ...]
        d = add(codes.max(axis=1, keepdims=True), multiply(codes, np.array(-1)))
        table = np.append(self.exponentials, self.exponentials.dtype.type(0))
        e = table[np.minimum(d, len(table) - 1).astype(np.int64)]
        if _short(self.exponentials):
            share = _short_shares(e)
        else:
            shares = _shares if e.dtype == np.int64 else _float_shares
            share = shares(e, self.format.bits)
        return np.asarray(np.clip(share + self.format.q_min, self.format.q_min, self.format.q_max))


def _short(table: NDArray[Any]) -> bool:
    """Are the entries in units of 2**-15?"""
    return table.dtype == np.int64 and table.size > 0 and table[0] < 2**15


def _shares(e: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Exponentials [n, channels, ...] over their sum, in units of 2**-bits."""
    total = round_ratio(e, 2**12, "half_away").sum(axis=1, keepdims=True)  # units of 2**-19
    z = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)  # leading zeros
    half = total << (z - 1)
    r = 1515870810 + _high(half, -1010580540)
    for _ in range(3):
        r = r + np.clip(4 * _high(r, 2**29 - _high(half, r)), -(2**31), _ONE)
    product = _high(np.clip(2 * r, -(2**31), _ONE), e)
    share, shift = np.empty_like(product), np.broadcast_to(43 - bits - z, product.shape)
    for s in np.unique(shift):  # a few at most
        share[shift == s] = round_ratio(product[shift == s], 2 ** int(s), "half_away")
    return share


def _short_shares(e: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exponentials in units of 2**-15 over their sum, in the same units."""
    total = e.sum(axis=1, keepdims=True)
    z = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)  # leading zeros
    h = ((total << z - 1) + 2**13) >> 14
    inverse = along_lines(_inverses(), np.minimum(h - 2**16, 2**16 - 1))
    return np.asarray((e * inverse + (1 << 30 - z)) >> 31 - z)


@cache
def _inverses() -> NDArray[np.int64]:
    return curve(lambda x: 1 / (1 + x))


def _high(a: NDArray[np.int64] | int, b: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """a * b / 2**31, rounded half up: both below 2**31 in magnitude."""
    return np.asarray(round_ratio(np.asarray(a) * b, 2**31, "half_up"))


def _float_shares(e: NDArray[np.float32], bits: int) -> NDArray[np.int64]:
    total = np.add.accumulate(e, axis=1, dtype=np.float32)[:, -1:]
    inverse = np.float32(1) / (total * np.float32(2.0**-bits))
    return np.asarray(np.floor((e * inverse).astype(np.float64) + 0.5).astype(np.int64))


def curve(function: Callable[[Any], Any]) -> NDArray[np.int64]:
    """A positive function at 0, 1/512, ..., 1, in units of 2**-15: integers [513].

    Each but the last is lowered by half of what the line from it to the next lies above the
    function at its middle; all roundings are half away.

    >>> curve(lambda x: 1 / (1 + x))[[0, 1, 256, 512]].tolist()
    [32767, 32704, 21845, 16384]
    """
    x = np.arange(513) / 512
    at, middle = function(x) * 2**15, function(x + 1 / 1024) * 2**15
    codes = np.floor(at + 0.5)
    above = np.floor((np.append(at[1:], 0) + codes) / 2 + 0.5) - np.floor(middle + 0.5)
    above[-1] = 0
    lowered = codes - np.copysign(np.floor(np.abs(above) / 2 + 0.5), above)
    return np.asarray(np.minimum(lowered, 2**15 - 1), dtype=np.int64)


def along_lines(table: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Between the entries [513] of a table, 128 units apart, at x from 0 to 2**16 - 1.

    >>> along_lines(np.arange(513) * 256, np.array([0, 1, 129])).tolist()
    [0, 2, 258]
    """
    at, rest = x >> 7, x & 127
    return np.asarray(table[at] + ((table[at + 1] - table[at]) * rest + 64 >> 7))


def exp_of_negative(a: Sequence[int] | NDArray[np.int64], integer_bits: int) -> NDArray[np.int64]:
    """exp(a) in units of 2**-31, of a <= 0 in units of 2**(integer_bits - 31), as gemmlowp has it.

    A polynomial of degree 4 about -1/8 gives the exponential of a modulo 1/4, less 1/4; for each
    bit of what remains it is multiplied by exp of that bit.

    >>> exp_of_negative([0, -(2**26)], 5).tolist()
    [2147483647, 790015308]
    """
    a = np.asarray(a, dtype=np.int64)
    unit = 31 - integer_bits  # a = 1 is 2**unit
    part = (a & (2 ** (unit - 2) - 1)) - 2 ** (unit - 2)  # in [-1/4, 0)
    x = (part << integer_bits) + 2**28
    x2 = _high(x, x)
    x3, x4 = _high(x2, x), _high(x2, x2)
    tail = round_ratio(_high(round_ratio(x4, 4, "half_away") + x3, 715827883) + x2, 2, "half_away")
    value = 1895147668 + _high(1895147668, x + tail)  # exp(-1/8) * (1 + x + ...)
    remainder = part - a
    for power in range(-2, integer_bits):
        factor = int(np.rint(np.exp(-(2.0**power)) * 2**31))
        value = np.where(remainder & 2 ** (unit + power), _high(value, factor), value)
    return np.where(a == 0, _ONE, value)
