"""What Linear and the convolutions share: weights times columns of inputs, plus a bias.

    acc[n, k, *p] = bias[k] + sum over t of weight[k, t] * columns[n, g, t, *p]

K terms t for each output: the inputs of the channels of group g = floor(k / (out / groups)).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import Arithmetic, add, magnitude, matmul, multiply
from refqnn.limits import UNFOLDED_COLUMNS, at_a_time
from refqnn.ops.base import Ends, IntArray, Interval, Shape, SumOp
from refqnn.ops.structure import Classes, Mask

__all__ = ["WeightedSum"]

Self = TypeVar("Self", bound="WeightedSum")


class WeightedSum(SumOp):
    """A sum of weights times inputs; subclasses say which inputs."""

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None
    groups: int = 1
    pad_code: int = 0
    pads: ClassVar[bool] = False  # may a term be no input but a padded position?

    @property
    def by_channel(self) -> NDArray[np.int64]:
        """The weights of each output channel, [out, in / groups, prod(kernel)]."""
        return self.weight.reshape(*self.weight.shape[:2], -1)

    def with_weights(self: Self, by_channel: NDArray[Any], bias: NDArray[Any] | None) -> Self:
        """The same with other weights [out, in / groups, prod(kernel)] and another bias."""
        shape = (*by_channel.shape[:2], *self.weight.shape[2:])
        return replace(self, weight=by_channel.reshape(shape), bias=bias)  # type: ignore[type-var]

    @abstractmethod
    def columns(self, x: IntArray, pad_code: int) -> IntArray:
        """What the weights meet, [n, groups, K, *positions]."""

    # --- what it computes -------------------------------------------------------------------

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        (codes,) = x  # [n, in, *sizes]
        mass = self._plan(plan, x)
        return self._plus_bias(self._products(codes, self.by_channel, self.pad_code, mass))

    def out_range(self, *ranges: Interval) -> Interval:
        """hi = w+ * X_hi + w- * X_lo + b, lo mirrored; X is padded with pad_code.

        Exact over a box of inputs.
        """
        (x,) = ranges
        mass = self.prepare(x)
        ends = np.stack([x.lo, x.hi])  # [2, in, *sizes]
        weight = self.by_channel
        positive = self._products(ends, np.maximum(weight, 0), self.pad_code, mass)
        negative = self._products(ends, np.minimum(weight, 0), self.pad_code, mass)
        lo = positive[0] + negative[1]  # [out, *positions]
        hi = positive[1] + negative[0]  # [out, *positions]
        return Interval(self._plus_bias(lo[None])[0], self._plus_bias(hi[None])[0])

    def absolute_mass(self, *ranges: Interval) -> IntArray:
        """M = |w| * max|X| + |b|, [out, *positions]."""
        (x,) = ranges
        weight, largest_pad = magnitude(self.by_channel), abs(self.pad_code)
        bound = prod(weight.shape[1:]) * int(weight.max()) * max(x.largest, largest_pad)
        mass = self._products(x.magnitude[None], weight, largest_pad, bound)[0]
        return (
            mass if self.bias is None else add(mass, _per_channel(magnitude(self.bias), mass[None]))
        )

    def terms(self, *x: IntArray) -> IntArray:
        """Products in the order of the weights (those with padding too), then bias[k].

        [n, out, *positions, K (+ 1)]
        """
        (codes,) = x
        out = len(self.by_channel)
        columns = np.repeat(self.columns(codes, self.pad_code), out // self.groups, axis=1)
        terms = multiply(columns, _per_channel(self.by_channel.reshape(out, -1), columns[:, :, 0]))
        if self.bias is not None:
            bias = np.broadcast_to(_per_channel(self.bias, terms[:, :, 0]), terms[:, :, 0].shape)
            terms = np.concatenate([terms, bias[:, :, None]], axis=2)
        return np.moveaxis(terms, 2, -1)

    def _products(self, x: IntArray, weight: IntArray, pad_code: int, mass: int) -> IntArray:
        """The sums without bias, in blocks of samples: [n, out, *positions]."""
        (_, *positions) = self.out_shape(x.shape[1:])
        matrices = weight.reshape(self.groups, len(weight) // self.groups, -1)  # [g, o, K]
        per_sample = self.groups * matrices.shape[2] * prod(positions)
        block = at_a_time(per_sample, UNFOLDED_COLUMNS)
        dtype = object if x.dtype == object else Arithmetic.for_mass(mass).dtype
        sums = []
        for start in range(0, max(1, len(x)), block):
            part = x[start : start + block].astype(dtype, copy=False)
            columns = self.columns(part, pad_code)  # [n, g, K, *positions]
            columns = columns.reshape(*columns.shape[:3], prod(positions))
            acc = matmul(matrices, columns, mass)  # [n, g, o, P]
            sums.append(acc.reshape(len(part), len(weight), *positions))
        return np.concatenate(sums)

    def _plus_bias(self, acc: IntArray) -> IntArray:
        # The mass counts |bias|: where it fits int64, so does the sum.
        return acc if self.bias is None else acc + _per_channel(self.bias, acc)

    # --- structure --------------------------------------------------------------------------

    @property
    def term_channels(self) -> int:
        return int(self.by_channel.shape[1])

    def fan_in(self, *shapes: Shape) -> int:
        return prod(self.by_channel.shape[1:])

    def absolute(self, *, padded: bool) -> SumOp:
        return self.with_weights(magnitude(self.by_channel), None)

    def datatype(self, ends: Sequence[Ends], *shapes: Shape) -> Ends:
        """Weights count as any value of the narrowest format that stores the layer's (unsigned if
        none is negative, else two's complement), the bias as its own range."""
        ((lo, hi),) = ends
        if self.pads:
            lo, hi = min(lo, self.pad_code), max(hi, self.pad_code)
        w_lo, w_hi = _storage_range(self.weight)
        products = [w_lo * lo, w_lo * hi, w_hi * lo, w_hi * hi]
        b_lo, b_hi = (0, 0) if self.bias is None else (int(self.bias.min()), int(self.bias.max()))
        fan_in = self.fan_in(*shapes)
        return fan_in * min(products) + b_lo, fan_in * max(products) + b_hi

    def constants(self, channel: NDArray[np.int64]) -> NDArray[Any]:
        """The bias at some output channels [m], as Python integers."""
        bias = np.zeros(len(self.by_channel), dtype=object) if self.bias is None else self.bias
        return np.asarray(bias[channel].astype(object))

    def needs(self, live: Mask, *shapes: Shape) -> list[Mask]:
        if self.groups != 1:
            return super().needs(live, *shapes)
        return [self.by_channel[live].any(axis=(0, 2))]

    def kin(self, live: Sequence[Mask], *shapes: Shape) -> Mask:
        """None: each output channel can be had without the others, in one group."""
        return np.full(len(self.by_channel), self.groups != 1)

    def taken(self, out: Mask, into: Mask) -> SumOp:
        if self.groups != 1:
            return self
        bias = None if self.bias is None else self.bias[out]
        return self.with_weights(self.by_channel[out][:, into], bias)

    def keys(self, classes: Sequence[Classes], *shapes: Shape) -> list[Hashable] | None:
        if self.groups != 1:
            return None
        (of,) = classes
        rows, bias = self.by_channel, self.constants(np.arange(len(self.by_channel)))
        return [
            (self.kind, self.geometry, int(b), _weights_by_class(row, of))
            for row, b in zip(rows, bias)
        ]

    @property
    def geometry(self) -> Hashable:
        """What else, beside weights and bias, says what is computed."""
        return None

    def merged(self, first: Sequence[int], constants: Mapping[int, int]) -> SumOp:
        """Weights of copies added to the first one, constants moved into the bias."""
        if self.groups != 1:
            return self
        weight = self.by_channel.astype(object)
        bias = self.constants(np.arange(len(weight)))
        for c, original in enumerate(first):
            if c in constants and (not self.pads or constants[c] == self.pad_code):
                bias = bias + weight[:, c].sum(axis=1) * constants[c]
                weight[:, c] = 0
            elif original != c:
                weight[:, original] += weight[:, c]
                weight[:, c] = 0
        if not all(-(2**63) <= v < 2**63 for array in (weight, bias) for v in array.flat):
            return self  # the sums leave int64: keep what there is
        none = self.bias is None and not any(bias.tolist())
        return self.with_weights(weight.astype(np.int64), None if none else bias.astype(np.int64))


def _per_channel(values: IntArray, acc: IntArray) -> IntArray:
    """[out] or [out, K], shaped to broadcast over the positions of acc [n, out, *positions]."""
    return values.reshape(*values.shape, *(1,) * (acc.ndim - 2))


def _storage_range(weight: NDArray[np.int64]) -> Ends:
    lo, hi = int(weight.min()), int(weight.max())
    if lo >= 0:
        return 0, 2 ** max(1, hi.bit_length()) - 1
    bits = max(hi.bit_length(), (-lo - 1).bit_length())
    return -(2**bits), 2**bits - 1


def _weights_by_class(row: NDArray[np.int64], classes: Classes) -> Hashable:
    """(class, weights) pairs of one output channel; copies have been merged before."""
    used = np.flatnonzero(row.any(axis=1)).tolist()
    return tuple(sorted((classes[c], row[c].tobytes()) for c in used))
