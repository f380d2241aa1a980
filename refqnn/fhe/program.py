"""The steps of an encrypted circuit, as data: what runs on numpy arrays also traces a circuit.

Every encrypted value t is a nonnegative integer of `bits` bits.  The arithmetic between two tables
is modular, so only a value that enters a table, or leaves the circuit, has to fit its width; the
others are declared with one bit and take the width of the values they are summed into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from concrete import fhe
from numpy.typing import NDArray

from refqnn.ops.base import Shape

__all__ = [
    "INPUT",
    "Bits",
    "Conv",
    "Gather",
    "Join",
    "MatMul",
    "Offset",
    "Pad",
    "Program",
    "Relabel",
    "Scale",
    "Select",
    "Step",
    "Sum",
    "Table",
    "Truncate",
]

INPUT = ""  # the name and tag of the circuit's argument

IntVector = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """One operation.

    Attributes:
        name: unique; the tag of its graph nodes.
        sources: names of earlier steps, or INPUT.
        top: the result lies in [0, top] (proved); 1 for values inside modular sums.
    """

    name: str
    sources: tuple[str, ...]
    top: int

    @abstractmethod
    def apply(self, *t: Any) -> Any:
        """The result, from arrays of one sample or from tracers."""


@dataclass(frozen=True, eq=False)
class MatMul(Step):
    """t @ weight, [in] to [out]."""

    weight: IntVector  # [in, out]

    def apply(self, *t: Any) -> Any:
        return t[0] @ self.weight


@dataclass(frozen=True, eq=False)
class Conv(Step):
    """Correlation of [in, h, w] with weight [out, in / groups, kh, kw]."""

    weight: IntVector
    stride: Shape
    dilation: Shape
    groups: int

    def apply(self, *t: Any) -> Any:
        sums = fhe.conv(
            t[0].reshape((1, *t[0].shape)),
            self.weight,
            strides=self.stride,
            dilations=self.dilation,
            group=self.groups,
        )
        return sums.reshape(sums.shape[1:])


@dataclass(frozen=True, eq=False)
class Pad(Step):
    """Zeros around [channels, h, w]: (before, after) for h and w.  The compiler pads nothing."""

    padding: tuple[tuple[int, int], ...]

    def apply(self, *t: Any) -> Any:
        x = t[0]
        for axis, (before, after) in enumerate(self.padding, start=1):
            around, rest = x.shape[:axis], x.shape[axis + 1 :]
            parts = (*_zeros((*around, before, *rest)), x, *_zeros((*around, after, *rest)))
            x = np.concatenate(parts, axis=axis) if len(parts) > 1 else x
        return x


@dataclass(frozen=True, eq=False)
class Sum(Step):
    """sum_i multipliers[i] * t_i."""

    multipliers: tuple[int, ...]

    def apply(self, *t: Any) -> Any:
        total = None
        for x, m in zip(t, self.multipliers):
            if total is None:
                total = x if m == 1 else x * m
            elif m == -1:
                total = total - x
            else:
                total = total + (x if m == 1 else x * m)
        return total


@dataclass(frozen=True, eq=False)
class Join(Step):
    """Concatenation along the first axis."""

    def apply(self, *t: Any) -> Any:
        return np.concatenate(t, axis=0)


@dataclass(frozen=True, eq=False)
class Relabel(Step):
    """Another shape for the same values."""

    shape: Shape

    def apply(self, *t: Any) -> Any:
        return t[0].reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Select(Step):
    """A strided part: one slice per axis."""

    index: tuple[slice, ...]

    def apply(self, *t: Any) -> Any:
        return t[0][self.index]


@dataclass(frozen=True, eq=False)
class Gather(Step):
    """t[index] along the first axis."""

    index: IntVector

    def apply(self, *t: Any) -> Any:
        return t[0][self.index]


@dataclass(frozen=True, eq=False)
class Offset(Step):
    """t + constant, elementwise."""

    constant: IntVector

    def apply(self, *t: Any) -> Any:
        return t[0] + self.constant


@dataclass(frozen=True, eq=False)
class Scale(Step):
    """t * constant, elementwise."""

    constant: IntVector

    def apply(self, *t: Any) -> Any:
        return t[0] * self.constant


@dataclass(frozen=True, eq=False)
class Truncate(Step):
    """t with its `shift` low bits set to zero."""

    shift: int

    def apply(self, *t: Any) -> Any:
        return fhe.truncate_bit_pattern(t[0], self.shift)


@dataclass(frozen=True, eq=False)
class Bits(Step):
    """Bits `start` to `stop` - 1 of t, as an integer of stop - start bits."""

    start: int
    stop: int

    def apply(self, *t: Any) -> Any:
        return fhe.bits(t[0])[self.start : self.stop]


@dataclass(frozen=True, eq=False)
class Table(Step):
    """tables[row, t >> shift], one row per position of the first axis, or one for all."""

    tables: IntVector  # [rows, 2**kept]
    shift: int

    def apply(self, *t: Any) -> Any:
        tables, shift = self.tables, self.shift

        def lookup(x: Any) -> Any:
            # The compiler also probes with arguments outside the proved range.
            column = np.clip(np.asarray(x) >> shift, 0, tables.shape[1] - 1)
            if len(tables) == 1:
                return tables[0][column]
            row = np.arange(len(tables)).reshape(-1, *(1,) * (column.ndim - 1))
            return tables[row, column]

        return fhe.univariate(lookup)(t[0])


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in topological order; the last one is the result.

    Attributes:
        input_shape, input_top: the argument lies in [0, input_top].
    """

    steps: tuple[Step, ...]
    input_shape: Shape
    input_top: int

    def __call__(self, x: Any) -> Any:
        """The result for one sample, in clear or traced."""
        values = {INPUT: x}
        for step in self.steps:
            with fhe.tag(step.name):
                values[step.name] = step.apply(*(values[name] for name in step.sources))
        return values[self.steps[-1].name]

    @property
    def tops(self) -> dict[str, int]:
        """Proved upper ends by step name."""
        return {INPUT: self.input_top, **{step.name: step.top for step in self.steps}}


def _zeros(shape: Shape) -> tuple[Any, ...]:
    """Zeros of this shape, encrypted without noise while tracing; nothing when there are none."""
    return (fhe.zeros(shape),) if 0 not in shape else ()
