"""Exact integer matrix products at the speed of the narrowest arithmetic proved wide enough.

For acc = x @ w.T + b, the *absolute mass* of an output neuron k is

    M[k] = sum_i |w[k, i]| * max|x[i]| + |b[k]|

Every partial sum, in every order, with or without fused multiply-add, is an integer of magnitude at
most M.  A binary float of p bits holds all integers up to 2**p, so

    M <= 2**24      float32 BLAS is exact
    M <= 2**53      float64 BLAS is exact
    M <  2**63      int64 does not wrap
    otherwise       Python integers (object arrays)

The final width of the accumulator proves nothing here: a small result may have large partial sums.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arithmetic",
    "add",
    "magnitude",
    "matmul",
    "multiply",
    "sum_last_axis",
    "to_int64_if_possible",
]

IntArray = NDArray[Any]  # int64, or Python integers in an object array


class Arithmetic(Enum):
    """The four arithmetics, narrowest first; the value is (numpy dtype, largest exact mass)."""

    FLOAT32 = (np.float32, 2**24)
    FLOAT64 = (np.float64, 2**53)
    INT64 = (np.int64, 2**63 - 1)
    PYTHON = (object, None)

    @property
    def dtype(self) -> Any:
        """The numpy dtype that carries the values."""
        return self.value[0]

    @classmethod
    def for_mass(cls, mass: int) -> Arithmetic:
        """The narrowest arithmetic that is exact for an absolute mass of `mass`.

        >>> Arithmetic.for_mass(2**24), Arithmetic.for_mass(2**24 + 1)
        (<Arithmetic.FLOAT32: ...>, <Arithmetic.FLOAT64: ...>)
        """
        for arithmetic in cls:
            limit = arithmetic.value[1]
            if limit is None or mass <= limit:
                return arithmetic
        raise AssertionError("unreachable")


def matmul(x: IntArray, w: IntArray, mass: int) -> IntArray:
    """x @ w over the integers, exact for any absolute mass at most `mass`.

    Args:
        x: integers [..., n, k].
        w: integers [..., k, m].
        mass: an upper bound of M, see the module.

    Returns: int64 [..., n, m], or object (Python ints) when int64 may not hold the sums or the
        operands.

    >>> x, w = np.array([[3, -2]]), np.array([[5], [7]])
    >>> matmul(x, w, mass=29).tolist(), matmul(x, w, mass=2**63).dtype
    ([[1]], dtype('O'))
    """
    if object in (x.dtype, w.dtype):
        return np.asarray(x.astype(object) @ w.astype(object), dtype=object)
    arithmetic = Arithmetic.for_mass(mass)
    product = x.astype(arithmetic.dtype, copy=False) @ w.astype(arithmetic.dtype, copy=False)
    if arithmetic is Arithmetic.PYTHON:
        return np.asarray(product, dtype=object)
    return np.asarray(product).astype(np.int64, copy=False)


def multiply(a: IntArray, b: IntArray) -> IntArray:
    """a * b elementwise with broadcasting; object where int64 may not hold a product.

    >>> multiply(np.array([2**40]), np.array([2**40])).tolist() == [2**80]
    True
    """
    if _largest(a) * _largest(b) < 2**63:
        return np.asarray(a * b)
    return np.asarray(a.astype(object) * b.astype(object))


def add(a: IntArray, b: IntArray) -> IntArray:
    """a + b elementwise with broadcasting; object where int64 may not hold a sum.

    >>> add(np.array([2**62]), np.array([2**62])).tolist() == [2**63]
    True
    """
    if _largest(a) + _largest(b) < 2**63:
        return np.asarray(a + b)
    return np.asarray(a.astype(object) + b.astype(object))


def sum_last_axis(terms: IntArray, mass: int) -> IntArray:
    """Sums over the last axis, exact for any absolute mass at most `mass`.

    >>> sum_last_axis(np.array([[1, -2, 4]]), mass=7).tolist()
    [3]
    """
    wide = terms if mass < 2**63 else terms.astype(object)
    return np.asarray(wide.sum(axis=-1))


def magnitude(values: IntArray) -> IntArray:
    """|values|, which for -2**63 only a Python integer holds.

    >>> magnitude(np.array([-2**63, 5])).tolist()
    [9223372036854775808, 5]
    """
    if values.dtype != object and values.size and int(values.min()) == -(2**63):
        values = values.astype(object)
    return np.asarray(np.abs(values))


def _largest(values: IntArray) -> int:
    """max |x|; 0 when there are none."""
    return max(abs(int(values.min())), abs(int(values.max()))) if values.size else 0


def to_int64_if_possible(values: IntArray) -> IntArray:
    """int64 when it holds every value, Python integers in an object array otherwise."""
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 2**63:
        return values.astype(object)
    if values.dtype != object:
        return values.astype(np.int64, copy=False)
    if all(-(2**63) <= v < 2**63 for v in values.flat):
        return values.astype(np.int64)
    return values
