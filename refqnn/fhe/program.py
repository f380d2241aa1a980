"""The steps of an encrypted circuit, as data: what runs on numpy arrays also builds a circuit.

Every encrypted value t is a nonnegative integer of `bits` bits.  The arithmetic between two tables
is modular, so only a value that enters a table, or leaves the circuit, has to fit its width; the
others are declared with one bit and take the width of the values they are summed into.

A backend computes the steps.  `InClear` does on numpy arrays, by definition; refqnn.fhe.backend
builds circuits of Concrete.  One for another library offers

    values     +, - and * between them and with int64 arrays, @ with a matrix on either side,
               reshape, indexing by slices and by arrays, np.concatenate, np.transpose; exact modulo
               2**(bits + 1)
    functions  those of `Backend`; `truncate`, `bits` and `lookup` are exact for t in [0, top]

and takes the width of each value from `Program.tops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refqnn.fhe.outputs import rank
from refqnn.ops import Conv2d
from refqnn.ops.base import Shape

__all__ = [
    "INPUT",
    "Backend",
    "Bits",
    "Conv",
    "Gather",
    "InClear",
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
Value = Any  # an array of one sample, or what stands for it in a backend


class Backend(Protocol):
    """What the operators of values do not say."""

    def tagged(self, name: str) -> AbstractContextManager[Any]:
        """Inside, values are made by the step of this name."""

    def conv(self, x: Value, step: Conv) -> Value:
        """Correlation of x [1, in, h, w] without padding."""

    def zeros(self, shape: Shape) -> Value:
        """Encrypted zeros."""

    def truncate(self, x: Value, shift: int) -> Value:
        """x with its `shift` low bits set to zero."""

    def bits(self, x: Value, start: int, stop: int) -> Value:
        """Bits `start` to `stop` - 1 of x."""

    def lookup(self, function: Callable[[IntVector], IntVector], x: Value) -> Value:
        """An elementwise function of integers."""


class InClear:
    """Steps on numpy arrays of int64."""

    def tagged(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def conv(self, x: Value, step: Conv) -> Value:
        op = Conv2d(step.weight, None, step.stride, 0, step.dilation, step.groups)
        return op.forward(x)

    def zeros(self, shape: Shape) -> Value:
        return np.zeros(shape, dtype=np.int64)

    def truncate(self, x: Value, shift: int) -> Value:
        return x >> shift << shift

    def bits(self, x: Value, start: int, stop: int) -> Value:
        return (x >> start) & ((1 << (stop - start)) - 1)

    def lookup(self, function: Callable[[IntVector], IntVector], x: Value) -> Value:
        return function(x)


IN_CLEAR = InClear()


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

    @property
    def linear(self) -> bool:
        """Is the result a sum of the sources' ciphertexts (and perhaps of others)?"""
        return True

    @abstractmethod
    def apply(self, backend: Backend, *t: Value) -> Value:
        """The result of the sources' values."""

    def batched(self, n: int) -> Step:
        """The step for n samples, which lie along one more axis, the last."""
        return self


@dataclass(frozen=True, eq=False)
class MatMul(Step):
    """t @ weight, [in] to [out]; on the left of a batch, [in, n] to [out, n]."""

    weight: IntVector  # [in, out]
    of_batch: bool = False

    def apply(self, backend: Backend, *t: Value) -> Value:
        return self.weight.T @ t[0] if self.of_batch else t[0] @ self.weight

    def batched(self, n: int) -> Step:
        return replace(self, of_batch=True)


@dataclass(frozen=True, eq=False)
class Conv(Step):
    """Correlation of [in, h, w], or of a batch, with weight [out, in / groups, kh, kw]."""

    weight: IntVector
    stride: Shape
    dilation: Shape
    groups: int
    of_batch: bool = False

    def apply(self, backend: Backend, *t: Value) -> Value:
        if self.of_batch:
            return np.transpose(backend.conv(np.transpose(t[0], (3, 0, 1, 2)), self), (1, 2, 3, 0))
        sums = backend.conv(t[0].reshape((1, *t[0].shape)), self)
        return sums.reshape(sums.shape[1:])

    def batched(self, n: int) -> Step:
        return replace(self, of_batch=True)


@dataclass(frozen=True, eq=False)
class Pad(Step):
    """Zeros around [channels, h, w]: (before, after) for h and w.  The compiler pads nothing."""

    padding: tuple[tuple[int, int], ...]

    def apply(self, backend: Backend, *t: Value) -> Value:
        x = t[0]
        for axis, (before, after) in enumerate(self.padding, start=1):
            around, rest = x.shape[:axis], x.shape[axis + 1 :]
            ends = [backend.zeros((*around, n, *rest)) if n else None for n in (before, after)]
            parts = tuple(part for part in (ends[0], x, ends[1]) if part is not None)
            x = np.concatenate(parts, axis=axis) if len(parts) > 1 else x
        return x


@dataclass(frozen=True, eq=False)
class Sum(Step):
    """sum_i multipliers[i] * t_i."""

    multipliers: tuple[int, ...]

    def apply(self, backend: Backend, *t: Value) -> Value:
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

    def apply(self, backend: Backend, *t: Value) -> Value:
        return np.concatenate(t, axis=0)


@dataclass(frozen=True, eq=False)
class Relabel(Step):
    """Another shape for the same values."""

    shape: Shape

    def apply(self, backend: Backend, *t: Value) -> Value:
        return t[0].reshape(self.shape)

    def batched(self, n: int) -> Step:
        return replace(self, shape=(*self.shape, n))


@dataclass(frozen=True, eq=False)
class Select(Step):
    """A strided part: one slice per axis."""

    index: tuple[slice, ...]

    def apply(self, backend: Backend, *t: Value) -> Value:
        return t[0][self.index]


@dataclass(frozen=True, eq=False)
class Gather(Step):
    """t[index] along the first axis."""

    index: IntVector

    def apply(self, backend: Backend, *t: Value) -> Value:
        return t[0][self.index]


@dataclass(frozen=True, eq=False)
class Offset(Step):
    """t + constant, elementwise."""

    constant: IntVector

    def apply(self, backend: Backend, *t: Value) -> Value:
        return t[0] + self.constant

    def batched(self, n: int) -> Step:
        return replace(self, constant=self.constant[..., None])


@dataclass(frozen=True, eq=False)
class Scale(Step):
    """t * constant, elementwise."""

    constant: IntVector

    @property
    def linear(self) -> bool:
        return bool(self.constant.any())

    def apply(self, backend: Backend, *t: Value) -> Value:
        return t[0] * self.constant

    def batched(self, n: int) -> Step:
        return replace(self, constant=self.constant[..., None])


@dataclass(frozen=True, eq=False)
class Truncate(Step):
    """t with its `shift` low bits set to zero."""

    shift: int

    def apply(self, backend: Backend, *t: Value) -> Value:
        return backend.truncate(t[0], self.shift)


@dataclass(frozen=True, eq=False)
class Bits(Step):
    """Bits `start` to `stop` - 1 of t, as an integer of stop - start bits."""

    start: int
    stop: int

    def apply(self, backend: Backend, *t: Value) -> Value:
        return backend.bits(t[0], self.start, self.stop)


@dataclass(frozen=True, eq=False)
class Table(Step):
    """tables[row, t >> shift], one row per position of the first axis, or one for all."""

    tables: IntVector  # [rows, 2**kept]
    shift: int

    @property
    def linear(self) -> bool:
        return False  # the one step that makes a ciphertext anew

    def apply(self, backend: Backend, *t: Value) -> Value:
        tables, shift = self.tables, self.shift

        def lookup(x: IntVector) -> IntVector:
            # A compiler may also probe with arguments outside the proved range.
            column = np.clip(np.asarray(x) >> shift, 0, tables.shape[1] - 1)
            if len(tables) == 1:
                return tables[0][column]
            row = np.arange(len(tables)).reshape(-1, *(1,) * (column.ndim - 1))
            return tables[row, column]

        return backend.lookup(lookup, t[0])


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in topological order; the last one is the result.

    Attributes:
        input_shape, input_top: the argument lies in [0, input_top].
    """

    steps: tuple[Step, ...]
    input_shape: Shape
    input_top: int

    def __call__(self, x: Value, backend: Backend = IN_CLEAR) -> Value:
        """The result for one sample."""
        return self._values(x, backend)[self.steps[-1].name]

    def _values(self, x: Value, backend: Backend = IN_CLEAR) -> dict[str, Value]:
        values = {INPUT: x}
        for step in self.steps:
            with backend.tagged(step.name):
                values[step.name] = step.apply(backend, *(values[name] for name in step.sources))
        return values

    def batched(self, n: int) -> Program:
        """The program of n samples [*input_shape, n] in one tensor."""
        steps = tuple(step.batched(n) for step in self.steps)
        return Program(steps, (*self.input_shape, n), self.input_top)

    @property
    def tops(self) -> dict[str, int]:
        """Proved upper ends by step name."""
        return {INPUT: self.input_top, **{step.name: step.top for step in self.steps}}

    @property
    def linear_in_input(self) -> bool:
        """Is the result a sum of the argument's ciphertexts, or of these and others?

        A value's low bits are removed by taking away others: `Truncate` and `Bits` are linear.
        """
        reached = {INPUT}
        for step in self.steps:
            if step.linear and reached.intersection(step.sources):
                reached.add(step.name)
        return self.steps[-1].name in reached

    def dependent(self) -> int:
        """How many of the result's integers are sums of others modulo 2, as far as lookups go; a
        lower bound where they outnumber these.

        None: their coefficients have an odd minor.  Then lookups uniform modulo any power of two
        make results that are uniform, whatever the coefficients.  The rank is that of sums of
        random bits: too low with a probability of 2**-64.
        """
        last = self.steps[-1].name
        clear = self._values(np.zeros(self.input_shape, dtype=np.int64))
        summed = {last}
        for step in reversed(self.steps):
            if step.name in summed and not isinstance(step, Table):
                summed.update(step.sources)
        tables = [step for step in self.steps if step.name in summed and isinstance(step, Table)]
        beyond = clear[last].size - sum(clear[step.name].size for step in tables)
        if beyond > 0:
            return int(beyond)
        n, rng = clear[last].size + 64, np.random.default_rng(0)
        drawn = {INPUT: np.zeros((*self.input_shape, n), dtype=np.int64)}
        for step in self.batched(n).steps:
            if step.name in summed:
                if isinstance(step, Table):
                    drawn[step.name] = rng.integers(0, 2, (*clear[step.name].shape, n))
                else:
                    sources = (drawn[name] for name in step.sources)
                    drawn[step.name] = step.apply(IN_CLEAR, *sources) & 1
        sums = drawn[last].reshape(-1, n)
        return len(sums) - rank(sums ^ sums[:, :1])
