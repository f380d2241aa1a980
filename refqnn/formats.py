"""Integer formats: which codes a tensor may hold.

    unsigned         [0, 2**b - 1]            narrow: [0, 2**b - 2]
    signed           [-2**(b-1), 2**(b-1) - 1]   narrow: [-2**(b-1) + 1, 2**(b-1) - 1]
    bipolar          {-1, +1}                 one bit
    ternary          {-1, 0, +1}              signed, narrow, two bits

Narrow drops the lowest signed code, or the highest unsigned one, as Brevitas does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import to_int64_if_possible
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, RefqnnError, mismatch

__all__ = [
    "BIPOLAR",
    "TERNARY",
    "IntFormat",
    "as_array",
    "as_integers",
    "as_truth",
    "is_integer",
    "plain",
    "signed_bits",
    "span_bits",
    "unsigned_bits",
]

MAX_BITS = 32


def is_integer(value: object) -> TypeGuard[int]:
    """An int or a numpy integer; True and False are neither.

    >>> is_integer(3), is_integer(np.int8(3)), is_integer(3.0), is_integer(True)
    (True, True, False, False)
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def as_truth(value: object, argument: str) -> bool:
    """Raises: InvalidType for anything but True and False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidType(mismatch(argument, repr(value), "True or False"))
    return bool(value)


@dataclass(frozen=True)
class IntFormat:
    """A contiguous range of integer codes.

    Args:
        bits: storage width, 1 to 32.
        signed: two's complement if true.
        narrow: leave one extreme code out (see the module's table).

    Raises: InvalidType, InvalidArgument.

    >>> IntFormat(3, signed=True, narrow=True)
    IntFormat(bits=3, signed=True, narrow=True)
    >>> IntFormat(3, signed=True).q_min, IntFormat(3, signed=False).q_max
    (-4, 7)
    """

    bits: int
    signed: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        if not is_integer(self.bits):
            raise InvalidType(mismatch("bits", repr(self.bits), "an integer from 1 to 32"))
        for name in ("signed", "narrow"):
            object.__setattr__(self, name, as_truth(getattr(self, name), name))
        object.__setattr__(self, "bits", int(self.bits))
        if not 1 <= self.bits <= MAX_BITS:
            raise InvalidArgument(mismatch("bits", self.bits, "an integer from 1 to 32"))
        if self.narrow and self.bits == 1:
            raise InvalidArgument(
                "bits: got 1 with narrow=True, which leaves the code 0 alone; use BIPOLAR"
            )

    @property
    def q_min(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def q_max(self) -> int:
        """The highest code."""
        if self.signed:
            return int(2 ** (self.bits - 1) - 1)
        return int(2**self.bits - 1 - self.narrow)

    @property
    def step(self) -> int:
        """The distance between neighbouring codes: 1, or 2 for `BIPOLAR`."""
        return 1

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return (self.q_max - self.q_min) // self.step + 1

    def contains(self, codes: NDArray[Any]) -> NDArray[np.bool_]:
        """Elementwise: is it a code of this format?"""
        inside: NDArray[np.bool_] = np.asarray((codes >= self.q_min) & (codes <= self.q_max))
        return inside if self.step == 1 else inside & ((codes - self.q_min) % self.step == 0)

    def check(self, codes: object, argument: str = "codes") -> NDArray[np.int64]:
        """The codes as int64, or an error that shows the first one outside the format.

        Raises: InvalidType for non-integers, OutOfRange.
        """
        array = as_integers(codes, argument)
        inside = self.contains(array)
        if not inside.all():
            index = tuple(int(i) for i in np.argwhere(~inside)[0])
            raise OutOfRange(mismatch(f"{argument}{list(index)}", array[index], f"{self}"))
        return array.astype(np.int64, copy=False)

    def __str__(self) -> str:
        kind = ("narrow " if self.narrow else "") + ("signed" if self.signed else "unsigned")
        return f"{self.bits}-bit {kind} codes [{self.q_min}, {self.q_max}]"


class _Bipolar(IntFormat):
    """The two codes -1 and +1."""

    @property
    def q_min(self) -> int:
        return -1

    @property
    def q_max(self) -> int:
        return 1

    @property
    def step(self) -> int:
        return 2

    def __repr__(self) -> str:
        return "BIPOLAR"

    def __str__(self) -> str:
        return "bipolar codes {-1, +1}"


BIPOLAR: IntFormat = _Bipolar(1, True)
TERNARY: IntFormat = IntFormat(2, True, narrow=True)


def as_array(values: object, argument: str, expected: str) -> NDArray[Any]:
    """numpy.asarray, or InvalidType; for masked values too, which it would unmask."""
    try:
        array = np.asarray(plain(values, argument))
    except (MemoryError, RefqnnError):
        raise
    except Exception as error:  # an object's own __array__ may raise anything
        raise InvalidType(mismatch(argument, type(values).__name__, expected)) from error
    if np.ma.is_masked(values):  # type: ignore[no-untyped-call]
        raise InvalidType(mismatch(argument, "masked values", expected))
    return array


def plain(values: object, argument: str) -> object:
    """A data frame or column of nullable types as a numpy array; anything else as it is.

    Truth values in them count as 0 and 1.  Raises: InvalidType that names a missing value.
    """
    types = getattr(values, "dtypes", getattr(values, "dtype", None))
    listed = list(types) if isinstance(types, Iterable) else [types]
    kinds: list[Any] = [getattr(kind, "numpy_dtype", kind) for kind in listed]
    nullable: Any = values
    if all(a is b for a, b in zip(kinds, listed)) or any(kind.kind not in "biuf" for kind in kinds):
        return values
    missing = np.argwhere(np.asarray(nullable.isna()))
    if len(missing):
        row, *column = missing[0].tolist()
        of = [repr(nullable.columns[i]) for i in column]
        raise InvalidType(mismatch(f"{argument}[{', '.join([*of, str(row)])}]", "NA", "a number"))
    numbers = [np.dtype(np.uint8) if kind.kind == "b" else kind for kind in kinds]
    array: NDArray[Any] = nullable.to_numpy(dtype=np.result_type(*numbers))
    return array


def as_integers(values: object, argument: str) -> NDArray[Any]:
    """int64, or Python integers in an object array where int64 does not hold them all.

    Raises: InvalidType when the values are not integers (bool, float, string, None, ...).

    >>> as_integers([1, 2], "codes").dtype, as_integers([2**63, -1], "codes").dtype
    (dtype('int64'), dtype('O'))
    """
    array = as_array(values, argument, "an integer array")
    if array.dtype.kind == "f" and array.size and isinstance(values, (list, tuple)):
        array = np.asarray(values, dtype=object)  # numpy makes floats of large integers
    if array.dtype == object:
        for value in array.flat:
            if not is_integer(value):
                raise InvalidType(mismatch(argument, repr(value), "integers"))
    elif array.dtype.kind not in "iu":
        raise InvalidType(mismatch(argument, f"dtype {array.dtype}", "integers"))
    return to_int64_if_possible(array)


def _bounds(lo: int, hi: int) -> tuple[int, int]:
    for name, value in (("lo", lo), ("hi", hi)):
        if not is_integer(value):
            raise InvalidType(mismatch(name, repr(value), "an integer"))
    if lo > hi:
        raise InvalidArgument(mismatch("lo", lo, f"at most hi = {hi}"))
    return int(lo), int(hi)


def signed_bits(lo: int, hi: int) -> int:
    """The least width of a two's complement integer that holds all of [lo, hi].

    A value x >= 0 needs bit_length(x) + 1 bits and x < 0 needs bit_length(-x - 1) + 1.

    >>> signed_bits(-128, 127), signed_bits(-129, 0), signed_bits(0, 0)
    (8, 9, 1)
    """
    lo, hi = _bounds(lo, hi)
    return max((x if x >= 0 else -x - 1).bit_length() + 1 for x in (lo, hi))


def unsigned_bits(lo: int, hi: int) -> int:
    """The least width of an unsigned integer that holds all of [lo, hi]; at least 1.

    Raises: OutOfRange if lo < 0.

    >>> unsigned_bits(0, 255), unsigned_bits(0, 256), unsigned_bits(0, 0)
    (8, 9, 1)
    """
    lo, hi = _bounds(lo, hi)
    if lo < 0:
        raise OutOfRange(mismatch("lo", lo, "at least 0 for an unsigned width"))
    return max(1, hi.bit_length())


def span_bits(lo: int, hi: int) -> int:
    """The least width that holds [lo, hi] after a constant is added; at least 1.

    >>> span_bits(-96, 30), span_bits(5, 5)
    (7, 1)
    """
    lo, hi = _bounds(lo, hi)
    return max(1, (hi - lo).bit_length())
