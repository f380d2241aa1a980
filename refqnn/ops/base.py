"""What every node kind is: a function on integer arrays, an exact range rule, its structure.

Values travel as arrays [n, *shape], n samples first; `shape` never includes n.  Values are int64,
or Python integers in object arrays where a sum may leave int64.

A kind tells its structure once, here and nowhere else (refqnn.ops.structure): the analyses ask for
its `role` and for the facts of that role, and name no kind.  A kind without a role is opaque: it
runs and has ranges, and whatever would have to look inside leaves it as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeGuard

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, magnitude, to_int64_if_possible
from refqnn.errors import (
    InvalidArgument,
    InvalidType,
    NotCovered,
    OutOfRange,
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import IntFormat, as_integers, is_integer
from refqnn.ops.structure import Classes, Functions, Mask, Role, Rows

__all__ = [
    "Channelwise",
    "Ends",
    "IntArray",
    "Interval",
    "Op",
    "RowOfEach",
    "Shape",
    "SumOp",
    "bias_parameter",
    "channel_index",
    "code_parameter",
    "integer",
    "integer_parameter",
    "integers_of_channels",
    "is_sum",
    "one_or_each",
    "rows_of",
    "tells",
    "told_role",
]

Shape = tuple[int, ...]
Ends = tuple[int, int]  # (lo, hi), inclusive


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
        """The least interval that holds the samples `values` [n, *shape]; zeros for n = 0."""
        if len(values) == 0:
            return cls(*(np.zeros(values.shape[1:], dtype=np.int64) for _ in range(2)))
        return cls(values.min(axis=0), values.max(axis=0))

    @property
    def shape(self) -> Shape:
        return self.lo.shape

    @property
    def magnitude(self) -> IntArray:
        """max |x| elementwise, [*shape]."""
        return to_int64_if_possible(np.maximum(magnitude(self.lo), magnitude(self.hi)))

    @property
    def ends(self) -> Ends:
        """The least lo and the greatest hi of all positions."""
        return int(self.lo.min()), int(self.hi.max())

    @property
    def largest(self) -> int:
        """max |x| over all positions; 0 when there are none."""
        return int(self.magnitude.max()) if self.lo.size else 0

    def contains(self, values: IntArray) -> bool:
        """Do all samples [n, *shape] lie inside?"""
        return bool(((values >= self.lo) & (values <= self.hi)).all())


class Op(ABC):
    """One node kind.  Subclasses are frozen dataclasses whose fields are their parameters.

    A kind of one's own needs `kind`, `out_shape`, `out_range` and `forward`.  With a `role` and the
    facts of that role, analyses see through it as they do through ours.
    """

    kind: ClassVar[str]
    arity: ClassVar[int | None] = 1  # None: any number of inputs, at least one
    role: ClassVar[Role | None] = None
    monotone: ClassVar[bool] = False  # ELEMENTWISE: does no output fall when an input rises?

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies hold arrays that nobody may write to, as what they were copied from."""
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        vars(self).update(state)

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

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        """(lo, hi) of all outputs, from the formats and the fan-in alone.

        Args:
            ends: the same of each operand.
        """
        fmt = getattr(self, "format", None)
        if isinstance(fmt, IntFormat):
            return fmt.q_min, fmt.q_max
        return min(lo for lo, _ in ends), max(hi for _, hi in ends)

    # --- structure: positions ---------------------------------------------------------------

    def rows(self, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
        """SUM: the sums at some flat output positions [m].  Raises: NotCovered."""
        raise self._untold("rows")

    def sources(self, *shapes: Shape) -> NDArray[np.int64]:
        """RELABEL, JOIN: which input position each output takes, [*out_shape].

        `PADDING` stands for the constant `fill`.  Raises: NotCovered.
        """
        raise self._untold("sources")

    def windows(self, shape: Shape, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """WINDOW: the input positions that some outputs [m] are the greatest of, [m, terms].

        `PADDING` outside the input.  Raises: NotCovered.
        """
        raise self._untold("windows")

    def functions(self, channels: NDArray[np.int64]) -> Functions:
        """ELEMENTWISE: the functions of some channels [m].  Raises: NotCovered."""
        raise self._untold("functions")

    def _untold(self, fact: str) -> NotCovered:
        return NotCovered(f"{self.kind}: does not tell its structure ({fact})")

    # --- structure: channels ----------------------------------------------------------------

    def needs(self, live: Mask, *shapes: Shape) -> list[Mask]:
        """The channels of each operand that these output channels [out] depend on."""
        return [np.ones(shape[0], dtype=bool) for shape in shapes]

    def kin(self, live: Sequence[Mask], *shapes: Shape) -> Mask:
        """The output channels that exist because these channels of the operands do."""
        return np.ones(self.out_shape(*shapes)[0], dtype=bool)

    def taken(self, out: Mask, into: Mask) -> Op:
        """The same on some output channels and some channels of the (first) operand.

        `out` holds what `kin` says of `into`, and `into` what `needs` says of `out`.
        """
        return self

    def keys(self, classes: Sequence[Classes], *shapes: Shape) -> list[Hashable] | None:
        """For each output channel what it computes from which values; None: nothing is known.

        Args:
            classes: of the channels of each operand.
        """
        return None

    def restricted(self, *ranges: Interval) -> Op:
        """The same function on these ranges, without what no input there can reach."""
        return self

    def merged(self, first: Sequence[int], constants: Mapping[int, int]) -> Op:
        """The same function where some channels of the operand are known.

        Args:
            first: for each channel the first one that holds the same values.
            constants: the value of each channel that holds one value everywhere.

        Returns: an op that reads no constant channel, and no copy of another, where it can.
        """
        return self


class Channelwise(Op):
    """Structure of the kinds whose output channel c depends on channel c of every operand."""

    def needs(self, live: Mask, *shapes: Shape) -> list[Mask]:
        return [live for _ in shapes]

    def kin(self, live: Sequence[Mask], *shapes: Shape) -> Mask:
        return np.asarray(np.logical_or.reduce(live))

    def taken(self, out: Mask, into: Mask) -> Op:
        return self._of(out)

    def _of(self, channels: NDArray[Any]) -> Op:
        """The same on these channels: a mask, or their numbers."""
        cut = {name: v[channels] for name, v in self._parameters() if _by_channel(v) and len(v) > 1}
        return replace(self, **cut) if cut else self  # type: ignore[type-var]

    def keys(self, classes: Sequence[Classes], *shapes: Shape) -> list[Hashable] | None:
        return [(self.kind, self._told_of(c), of) for c, of in enumerate(zip(*classes))]

    def _told_of(self, channel: int) -> Hashable:
        """What tells the function of one channel from another's."""
        return tuple(
            v[channel if len(v) > 1 else 0].tobytes() if _by_channel(v) else v
            for _, v in self._parameters()
        )

    def _parameters(self) -> list[tuple[str, Any]]:
        given = (f.name for f in fields(self) if f.init)  # type: ignore[arg-type]
        return [(name, getattr(self, name)) for name in given]


def _by_channel(parameter: object) -> TypeGuard[NDArray[np.int64]]:
    """Arrays of a channelwise kind are [channels or 1, ...]."""
    return isinstance(parameter, np.ndarray)


class RowOfEach(Channelwise):
    """What elementwise kinds share that hold a row of numbers for each channel, or one for all."""

    role = Role.ELEMENTWISE

    @property
    def channels(self) -> int:
        """How many rows there are; 1 means one row for every channel."""
        return max(len(v) for _, v in self._parameters() if _by_channel(v))

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if self.channels != 1 and (not shape or shape[0] != self.channels):
            expected = f"{self.channels} channels first"
            raise ShapeMismatch(mismatch(f"input of {self.kind}", f"shape {shape}", expected))
        return shape


def rows_of(listed: NDArray[np.int64], channels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of these channels [m], [m, ...], of one row for each channel or one for all."""
    return np.asarray(listed[channels if len(listed) > 1 else np.zeros_like(channels)])


class SumOp(Op):
    """A node whose outputs are sums of integer terms: an accumulator."""

    role = Role.SUM

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

    @property
    def term_channels(self) -> int:
        """Input channels of the products in `terms`, which stand one channel behind the other."""
        return 1

    def fan_in(self, *shapes: Shape) -> int:
        """Products in one output, those with padding too.  Raises: NotCovered."""
        raise self._untold("fan_in")

    def absolute(self, *, padded: bool) -> SumOp:
        """The same sum with |coefficients| and no bias; padding counts where `padded`.

        Raises: NotCovered.
        """
        raise self._untold("absolute")

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        full = (
            Interval(*(np.full(s, e, dtype=object) for e in pair)) for s, pair in zip(shapes, ends)
        )
        return self.out_range(*full).ends


def tells(op: Op, fact: str) -> bool:
    """Does the kind tell this fact of its structure?

    What a class inherits counts only where it inherits what it computes as well: a subclass with a
    `forward` of its own has to tell the facts of its own.
    """
    if getattr(type(op), fact) is getattr(Op, fact, None):
        return False
    lineage = type(op).__mro__
    place = {name: [name in vars(c) for c in lineage].index(True) for name in (fact, "forward")}
    return place[fact] <= place["forward"]


_FACTS = {
    Role.ELEMENTWISE: "functions",
    Role.RELABEL: "sources",
    Role.JOIN: "sources",
    Role.WINDOW: "windows",
    Role.SUM: "rows",
}


def told_role(op: Op) -> Role | None:
    """The role of a kind that tells the facts of its role; None for an opaque one."""
    return op.role if op.role is not None and tells(op, _FACTS[op.role]) else None


def is_sum(op: Op) -> TypeGuard[SumOp]:
    """Does the op accumulate?"""
    return isinstance(op, SumOp)


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


def integers_of_channels(values: object, argument: str) -> NDArray[np.int64]:
    """One integer, or one for each channel, as read-only int64 [channels or 1].

    Raises: as `integer_parameter`.
    """
    return integer_parameter(np.atleast_1d(as_integers(values, argument)), argument, ndim=1)


def one_or_each(**parameters: Sequence[object] | NDArray[np.int64]) -> int:
    """The number of channels.  Raises: ShapeMismatch unless each parameter has so many, or one."""
    channels = max(len(values) for values in parameters.values())
    for name, values in parameters.items():
        if len(values) not in (1, channels):
            expected = f"one, or one for each of {channels} channels"
            raise ShapeMismatch(mismatch(name, f"{len(values)} values", expected))
    return channels


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
