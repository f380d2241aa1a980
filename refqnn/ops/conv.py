"""Conv1d, Conv2d: cross-correlation, as every framework computes it.

    acc[n, k, i, j] = bias[k] + sum over c, u, v of
                      weight[k, c, u, v] * X[n, g * C + c, s_h * i + d_h * u, s_w * j + d_w * v]

X is x with `padding` positions of value `pad_code` around it, C = in / groups the channels of one
group, g = floor(k / (out / groups)) the group of output channel k, s the stride, d the dilation.
`pad_code` is the code of real zero: the zero point of the input, 0 for symmetric quantizers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, ShapeMismatch, mismatch
from refqnn.ops.base import (
    IntArray,
    Shape,
    SumOp,
    bias_parameter,
    code_parameter,
    integer,
    integer_parameter,
)
from refqnn.ops.structure import PADDING, Rows
from refqnn.ops.weighted import WeightedSum
from refqnn.ops.windows import (
    integers_per_axis,
    n_positions,
    pad,
    padding_per_axis,
    window_positions,
    windows,
)

__all__ = ["Conv1d", "Conv2d", "Convolution"]


class Convolution(WeightedSum):
    """What all convolutions share: kernels that move over the `axes` spatial axes of channels."""

    axes: ClassVar[int]
    stride: Any
    padding: Any
    dilation: Any

    def _check_window(self, channels: int) -> None:
        """Stride, padding, dilation and groups in their full form; `channels` in groups."""
        stride = integers_per_axis(self.stride, "stride", self.axes, minimum=1)
        dilation = integers_per_axis(self.dilation, "dilation", self.axes, minimum=1)
        groups = integer(self.groups, "groups")
        if groups < 1 or channels % groups:
            expected = f"a positive divisor of the {channels} channels"
            raise InvalidArgument(mismatch("groups", groups, expected))
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "padding", padding_per_axis(self.padding, self.axes))
        object.__setattr__(self, "dilation", dilation)
        object.__setattr__(self, "groups", groups)

    @property
    def kernel(self) -> Shape:
        """Size of the window along each spatial axis."""
        return self.weight.shape[2:]

    def out_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        out, of_group, _ = self.by_channel.shape
        channels = of_group * self.groups
        if len(shape) != 1 + self.axes or shape[0] != channels:
            expected = f"{channels} channels and {self.axes} spatial axes"
            raise ShapeMismatch(mismatch(f"input of {self.kind}", f"shape {shape}", expected))
        return (out, *self.positions(shape[1:]))

    @abstractmethod
    def positions(self, sizes: Shape) -> Shape:
        """Sizes of the output along the spatial axes.  Raises: ShapeMismatch."""

    @abstractmethod
    def window(self, where: Sequence[NDArray[np.int64]], sizes: Shape) -> NDArray[np.int64]:
        """The input positions that the kernel meets, flat: [m, prod(kernel)], or `PADDING`.

        Args:
            where: the output position along each axis, [m] each.
        """

    def rows(self, shapes: Sequence[Shape], positions: NDArray[np.int64]) -> Rows:
        (shape,) = shapes
        channel, *where = np.unravel_index(positions, self.out_shape(shape))
        m, (out, of_group, _) = len(positions), self.by_channel.shape
        group = channel // (out // self.groups)
        first = (group[:, None] * of_group + np.arange(of_group)) * prod(shape[1:])  # [m, C]
        flat = self.window(where, shape[1:])[:, None]  # [m, 1, prod(kernel)]
        column = np.where(flat == PADDING, PADDING, first[:, :, None] + flat)
        weight, outside = self.by_channel[channel], column == PADDING  # [m, C, prod(kernel)]
        padded = np.where(outside, weight, 0).astype(object).sum(axis=(1, 2))
        constant = self.constants(channel) + padded * self.pad_code
        shape = (m, prod(weight.shape[1:]))
        return Rows(column.reshape(shape), np.where(outside, 0, weight).reshape(shape), constant)

    def by_group(self, view: IntArray) -> IntArray:
        """Windows [n, in, *positions, *kernel] as columns [n, groups, K, *positions]."""
        inner = tuple(range(2, 2 + self.axes))
        view = np.moveaxis(view, inner, tuple(range(-self.axes, 0)))  # [n, in, *kernel, *positions]
        terms = prod(self.by_channel.shape[1:])
        return view.reshape(len(view), self.groups, terms, *view.shape[-self.axes :])


@dataclass(frozen=True, eq=False)
class _Conv(Convolution):
    """Cross-correlation over `axes` spatial axes; the subclasses say how many."""

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    pad_code: int = 0

    def __post_init__(self) -> None:
        weight = integer_parameter(self.weight, "weight", ndim=2 + self.axes)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias_parameter(self.bias, weight.shape[0]))
        object.__setattr__(self, "pad_code", code_parameter(self.pad_code, "pad_code"))
        self._check_window(weight.shape[0])

    @property
    def pads(self) -> bool:  # type: ignore[override]
        """Is there any padding?"""
        return any(end for pair in self.padding for end in pair)

    @property
    def geometry(self) -> Hashable:
        return self.kernel, self.stride, self.padding, self.dilation, self.pad_code

    def absolute(self, *, padded: bool) -> SumOp:
        positive = super().absolute(padded=padded)
        return replace(positive, pad_code=abs(self.pad_code) if padded else 0)  # type: ignore[type-var]

    def positions(self, sizes: Shape) -> Shape:
        return n_positions(sizes, self.kernel, self.stride, self.padding, self.dilation)

    def columns(self, x: IntArray, pad_code: int) -> IntArray:
        """The windows, unfolded in the order c, u, v: [n, groups, K, *positions]."""
        padded = pad(x, self.padding, pad_code)
        return self.by_group(windows(padded, self.kernel, self.stride, self.dilation))

    def window(self, where: Sequence[NDArray[np.int64]], sizes: Shape) -> NDArray[np.int64]:
        return window_positions(where, sizes, self.kernel, self.stride, self.padding, self.dilation)


@dataclass(frozen=True, eq=False)
class Conv1d(_Conv):
    """Convolution of samples [in, width].

    Args:
        weight: integers [out, in / groups, kw].
        bias: integers [out], in units of the accumulator, or None.
        stride, dilation: positive integers.
        padding: an integer, or ((left, right),).
        groups: divides in and out; groups = in is a depthwise convolution.
        pad_code: the value of padded positions.

    Raises: InvalidType, InvalidArgument, ShapeMismatch, OutOfRange.

    >>> Conv1d([[[1, -1]]], padding=((1, 0),), pad_code=5).forward(np.array([[[5, 7, 6]]])).tolist()
    [[[0, -2, 1]]]
    """

    kind: ClassVar[str] = "Conv1d"
    axes: ClassVar[int] = 1


@dataclass(frozen=True, eq=False)
class Conv2d(_Conv):
    """Convolution of samples [in, height, width].

    Args:
        weight: integers [out, in / groups, kh, kw].
        bias: integers [out], in units of the accumulator, or None.
        stride, dilation: a positive integer, or (h, w).
        padding: an integer, (h, w), or ((top, bottom), (left, right)).
        groups: divides in and out; groups = in is a depthwise convolution.
        pad_code: the value of padded positions.

    Raises: InvalidType, InvalidArgument, ShapeMismatch, OutOfRange.

    >>> layer = Conv2d([[[[1, 2], [3, 4]]]], bias=[100], stride=(1, 2))
    >>> layer.forward(np.arange(8).reshape(1, 1, 2, 4)).tolist()
    [[[[134, 154]]]]
    """

    kind: ClassVar[str] = "Conv2d"
    axes: ClassVar[int] = 2
