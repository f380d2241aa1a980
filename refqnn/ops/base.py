"""What every node kind is: shapes, an exact range rule, and a function on integer arrays.

Values travel as arrays [n, *shape], n samples first; `shape` never includes n.  Values are int64,
or Python integers in object arrays where a sum may leave int64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, magnitude, to_int64_if_possible
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, as_integers, is_integer

__all__ = [
    "IntArray",
    "Interval",
    "Op",
    "Shape",
    "SumOp",
    "bias_parameter",
    "channel_index",
    "code_parameter",
    "integer",
    "integer_parameter",
]

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Interval:
    """Inclusive integer bounds of one sample, elementwise.

    Args:
        lo, hi: integer arrays of the same shape, lo <= hi.

    >>> Interval.of_format(IntFormat(3, signed=False), (2,)).hi.tolist()
    [7, 7]
    """

    lo: IntArray
    hi: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "lo", as_integers(self.lo, "lo"))
        object.__setattr__(self, "hi", as_integers(self.hi, "hi"))
        if self.lo.shape != self.hi.shape:
            raise ShapeMismatch(mismatch("hi", f"shape {self.hi.shape}", f"shape {self.lo.shape}"))
        if not (self.lo <= self.hi).all():
            raise InvalidArgument("lo: got a value above hi, expected lo <= hi everywhere")

    @classmethod
    def of_format(cls, fmt: IntFormat, shape: Shape) -> Interval:
        """Every code of a format, at every position."""
        return cls(np.full(shape, fmt.q_min), np.full(shape, fmt.q_max))

    @classmethod
    def observed(cls, values: IntArray) -> Interval:
        """The least interval that holds the samples `values` [n, *shape], n >= 1."""
        return cls(values.min(axis=0), values.max(axis=0))

    @property
    def shape(self) -> Shape:
        return self.lo.shape

    @property
    def magnitude(self) -> IntArray:
        """max |x| elementwise, [*shape]."""
        return to_int64_if_possible(np.maximum(magnitude(self.lo), magnitude(self.hi)))

    @property
    def largest(self) -> int:
        """max |x| over all positions; 0 when there are none."""
        return int(self.magnitude.max()) if self.lo.size else 0

    def contains(self, values: IntArray) -> bool:
        """Do all samples [n, *shape] lie inside?"""
        return bool(((values >= self.lo) & (values <= self.hi)).all())


class Op(ABC):
    """One node kind.  Subclasses are frozen dataclasses whose fields are their parameters."""

    kind: ClassVar[str]
    arity: ClassVar[int | None] = 1  # None: any number of inputs, at least one

    @abstractmethod
    def out_shape(self, *shapes: Shape) -> Shape:
        """Shape of one output sample.  Raises: ShapeMismatch."""

    @abstractmethod
    def out_range(self, *ranges: Interval) -> Interval:
        """The least box that contains the output for every input in the box `ranges`."""

    def prepare(self, *ranges: Interval) -> Any:
        """What `forward` may know beforehand from proved input ranges (tables, arithmetic)."""
        return None

    @abstractmethod
    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        """The outputs [n, *out_shape] of samples [n, *shape].

        `plan` is what `prepare` returned for ranges that contain x; without it, the ranges of x
        itself are used.
        """

    def _plan(self, plan: Any, x: tuple[IntArray, ...]) -> Any:
        return self.prepare(*(Interval.observed(v) for v in x)) if plan is None else plan


class SumOp(Op):
    """A node whose outputs are sums of integer terms: an accumulator."""

    def prepare(self, *ranges: Interval) -> int:
        """The largest absolute mass of any output."""
        mass = self.absolute_mass(*ranges)
        return int(mass.max()) if mass.size else 0

    @abstractmethod
    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = sum of max|term| + |bias| for each output, [*out_shape] (see refqnn.arithmetic)."""

    @abstractmethod
    def terms(self, *x: IntArray) -> IntArray:
        """The summands in their order of summation, the bias last: [n, *out_shape, n_terms]."""


def integer_parameter(values: object, argument: str, *, ndim: int) -> NDArray[np.int64]:
    """A parameter array as read-only int64.

    Raises: InvalidType for floats, OutOfRange beyond int64, ShapeMismatch, InvalidArgument when it
        has no values.
    """
    array = as_integers(values, argument)
    if array.ndim != ndim:
        raise ShapeMismatch(mismatch(argument, f"shape {array.shape}", f"{ndim} dimensions"))
    if array.size == 0:
        raise InvalidArgument(mismatch(argument, f"shape {array.shape}", "at least one value"))
    if array.dtype == object:
        raise OutOfRange(mismatch(argument, "a value beyond 64 bits", "int64 values"))
    frozen = array.astype(np.int64)
    frozen.flags.writeable = False
    return frozen


def bias_parameter(values: object, channels: int) -> NDArray[np.int64] | None:
    """A bias [channels] as read-only int64, or None.  Raises: as `integer_parameter`."""
    if values is None:
        return None
    bias = integer_parameter(values, "bias", ndim=1)
    if bias.shape != (channels,):
        raise ShapeMismatch(mismatch("bias", f"shape {bias.shape}", f"({channels},)"))
    return bias


def integer(value: Any, argument: str) -> int:
    """One integer that int64 holds, as a Python int.  Raises: InvalidType, OutOfRange."""
    if not is_integer(value):
        raise InvalidType(mismatch(argument, repr(value), "an integer"))
    if not -(2**63) <= value < 2**63:
        raise OutOfRange(mismatch(argument, value, "an int64 value"))
    return int(value)


def code_parameter(value: Any, argument: str) -> int:
    """One code of some format of at most 32 bits.  Raises: InvalidType, OutOfRange."""
    if not is_integer(value):
        raise InvalidType(mismatch(argument, repr(value), "an integer"))
    if not -(2**31) <= value < 2**32:
        raise OutOfRange(mismatch(argument, value, "a code of at most 32 bits"))
    return int(value)


def channel_index(channels: int, ndim: int) -> NDArray[np.int64]:
    """0, 1, ..., channels - 1 along the first axis of a sample of `ndim` dimensions."""
    return np.arange(channels).reshape(-1, *(1,) * max(0, ndim - 1))
