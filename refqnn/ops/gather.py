"""Gather: any movement of values: y[n, i, j, ...] = x[n].flat[index[i, j, ...]], or `fill`.

Slices, permutations of channels and axes, shuffles, nearest upsampling, padding with a code: each
is one array of positions in a sample of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import as_integers
from refqnn.limits import MAX_VALUES
from refqnn.ops.base import IntArray, Op, Shape, code_parameter, integer
from refqnn.ops.movement import Movement
from refqnn.ops.reshape import shape_parameter
from refqnn.ops.structure import PADDING, Mask
from refqnn.ops.windows import integers_per_axis, padding_per_axis

__all__ = ["Gather"]


@dataclass(frozen=True, eq=False)
class Gather(Movement):
    """Values taken from positions of the input.

    Args:
        index: integers [*out_shape]: flat positions (row-major) in a sample of the input; -1 stands
            for `fill`.
        in_shape: of an input sample.
        fill: the code where nothing is taken.

    Raises: InvalidType, InvalidArgument, OutOfRange for a position outside, ShapeMismatch.

    >>> swap = Gather([[1, 0, -1]], in_shape=(2,), fill=7)
    >>> swap.forward(np.array([[5, 6]])).tolist()
    [[[6, 5, 7]]]
    """

    kind: ClassVar[str] = "Gather"

    index: NDArray[np.int64]
    in_shape: Shape
    fill: int = 0

    def __post_init__(self) -> None:
        shape = shape_parameter(self.in_shape, "in_shape")
        index = as_integers(self.index, "index")
        if index.ndim == 0 or index.size == 0:
            raise ShapeMismatch(mismatch("index", f"shape {index.shape}", "at least one value"))
        _check_values(max(prod(shape), index.size))
        if index.min() < PADDING or index.max() >= prod(shape):
            got = f"positions in [{index.min()}, {index.max()}]"
            raise OutOfRange(mismatch("index", got, f"-1, or positions in [0, {prod(shape)})"))
        frozen = index.astype(np.int64)
        frozen.flags.writeable = False
        object.__setattr__(self, "index", frozen)
        object.__setattr__(self, "in_shape", shape)
        object.__setattr__(self, "fill", code_parameter(self.fill, "fill"))

    # --- where it comes from ----------------------------------------------------------------

    @classmethod
    def of(
        cls, in_shape: Sequence[int], movement: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> Gather:
        """The movement that a function of an array performs on a sample.

        Args:
            movement: indexing, transposition, reshaping, repetition: whatever moves the entries of
                an array [*in_shape] and computes nothing with them.

        >>> halves = Gather.of((4,), lambda x: x.reshape(2, 2).T)
        >>> halves.forward(np.array([[1, 2, 3, 4]])).tolist()
        [[[1, 3], [2, 4]]]
        """
        shape = shape_parameter(tuple(in_shape), "in_shape")
        return cls(movement(np.arange(prod(shape)).reshape(shape)), shape)

    @classmethod
    def channel_shuffle(cls, in_shape: Sequence[int], groups: int) -> Gather:
        """Channel g * C + c moves to c * groups + g, C = channels / groups: ShuffleNet's shuffle.

        >>> Gather.channel_shuffle((4,), 2).index.tolist()
        [0, 2, 1, 3]
        """
        channels, *rest = shape_parameter(tuple(in_shape), "in_shape")
        if integer(groups, "groups") < 1 or channels % groups:
            raise InvalidArgument(mismatch("groups", groups, f"a divisor of {channels} channels"))
        return cls.of(
            in_shape,
            lambda x: x.reshape(groups, -1, *rest).swapaxes(0, 1).reshape(channels, *rest),
        )

    @classmethod
    def pixel_shuffle(cls, in_shape: Sequence[int], factor: int) -> Gather:
        """[C r r, h, w] to [C, h r, w r]: y[c, h r + a, w r + b] = x[c r r + a r + b, h, w].

        What torch calls PixelShuffle and ONNX DepthToSpace in mode CRD.

        >>> Gather.pixel_shuffle((4, 1, 1), 2).index.tolist()
        [[[0, 1], [2, 3]]]
        """
        shape = shape_parameter(tuple(in_shape), "in_shape")
        if len(shape) != 3 or integer(factor, "factor") < 1 or shape[0] % factor**2:
            expected = f"[channels, height, width], a multiple of {factor}**2 channels"
            raise ShapeMismatch(mismatch("in_shape", shape, expected))
        channels, height, width = shape
        r = factor
        return cls.of(
            shape,
            lambda x: (
                x.reshape(-1, r, r, height, width)
                .transpose(0, 3, 1, 4, 2)
                .reshape(channels // r**2, height * r, width * r)
            ),
        )

    @classmethod
    def nearest(cls, in_shape: Sequence[int], factors: Sequence[int]) -> Gather:
        """Each value of [channels, *sizes] repeated factors[i] times along spatial axis i.

        >>> Gather.nearest((1, 2), (2,)).index.tolist()
        [[0, 0, 1, 1]]
        """
        shape = shape_parameter(tuple(in_shape), "in_shape")
        times = integers_per_axis(tuple(factors), "factors", len(shape) - 1, minimum=1)
        _check_values(prod(shape) * prod(times))
        index = np.arange(prod(shape)).reshape(shape)
        for axis, factor in enumerate(times, start=1):
            index = np.repeat(index, factor, axis=axis)
        return cls(index, shape)

    @classmethod
    def pad(cls, in_shape: Sequence[int], padding: object, fill: int = 0) -> Gather:
        """[channels, *sizes] with the code `fill` around the spatial axes.

        Args:
            padding: an integer, or one integer or (before, after) pair for each axis.

        >>> Gather.pad((1, 2), ((1, 2),), fill=9).forward(np.array([[[4, 5]]])).tolist()
        [[[9, 4, 5, 9, 9]]]
        """
        pairs = padding_per_axis(padding, len(in_shape) - 1)
        return cls.padded(in_shape, ((0, 0), *pairs), fill)

    @classmethod
    def padded(cls, in_shape: Sequence[int], padding: object, fill: int = 0) -> Gather:
        """The same with padding for every axis, the channels too.

        >>> Gather.padded((2,), ((0, 1),), fill=9).forward(np.array([[4, 5]])).tolist()
        [[4, 5, 9]]
        """
        shape = shape_parameter(tuple(in_shape), "in_shape")
        pairs = padding_per_axis(padding, len(shape))
        _check_values(prod(before + size + after for size, (before, after) in zip(shape, pairs)))
        index = np.arange(prod(shape)).reshape(shape)
        return cls(np.pad(index, pairs, constant_values=PADDING), shape, fill)

    # --- what it computes -------------------------------------------------------------------

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if shape != self.in_shape:
            raise ShapeMismatch(mismatch("input of Gather", f"shape {shape}", f"{self.in_shape}"))
        return self.index.shape

    def forward(self, *x: IntArray, plan: Any = None) -> IntArray:
        return self.moved(*x, fill=self.fill)

    def datatype(self, ends: Sequence[tuple[int, int]], *shapes: Shape) -> tuple[int, int]:
        lo, hi = super().datatype(ends, *shapes)
        fills = (self.index == PADDING).any()
        return (min(lo, self.fill), max(hi, self.fill)) if fills else (lo, hi)

    # --- structure --------------------------------------------------------------------------

    def sources(self, *shapes: Shape) -> NDArray[np.int64]:
        return self.index

    def kin(self, live: Sequence[Mask], *shapes: Shape) -> Mask:
        """None: each output channel can be had without the others."""
        return np.zeros(len(self.index), dtype=bool)

    def taken(self, out: Mask, into: Mask) -> Op:
        size = prod(self.in_shape[1:])
        kept = np.repeat(into, size)
        number = np.append(np.where(kept, np.cumsum(kept) - 1, PADDING), PADDING)
        return Gather(number[self.index[out]], (int(into.sum()), *self.in_shape[1:]), self.fill)


def _check_values(values: int) -> None:
    """Raises: ShapeMismatch for more values in a sample than any network may have."""
    if values > MAX_VALUES:
        raise ShapeMismatch(mismatch("shape", f"{values} values", f"at most {MAX_VALUES}"))
