"""ConvTranspose2d: the transpose of a convolution, as torch and ONNX compute it.

    acc[n, k, i, j] = bias[k] + sum over c, u, v of
                      weight[g * C + c, k - g * out / groups, u, v] * x[n, g * C + c, p, q]

over all c, u, v, and the p, q inside x with

    s_h p = i + top - d_h u   and   s_w q = j + left - d_w v

C = in / groups the channels of one group, g = floor(k / (out / groups)) the group of output channel
k, s the stride, d the dilation.  Outputs that a kernel meets between or beyond inputs get nothing
from there, as if a code of 0 stood there.

size = s * (in_size - 1) - before - after + d * (kernel - 1) + output_padding + 1
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, ShapeMismatch, mismatch
from refqnn.ops.base import IntArray, Shape, bias_parameter, integer_parameter
from refqnn.ops.conv import Conv2d, Convolution
from refqnn.ops.gather import Gather
from refqnn.ops.structure import PADDING
from refqnn.ops.windows import check_size, flat_positions, integers_per_axis, windows

__all__ = ["ConvTranspose2d"]


@dataclass(frozen=True, eq=False)
class ConvTranspose2d(Convolution):
    """Transposed convolution of samples [in, height, width].

    Args:
        weight: integers [in, out / groups, kh, kw].
        bias: integers [out], in units of the accumulator, or None.
        stride, dilation: a positive integer, or (h, w).
        padding: an integer, (h, w), or ((top, bottom), (left, right)): rows and columns of the
            result that are left out.
        output_padding: an integer, or (h, w): rows at the bottom and columns at the right in
            addition; below the stride or the dilation.
        groups: divides in and out.

    Raises: InvalidType, InvalidArgument, ShapeMismatch, OutOfRange.

    >>> layer = ConvTranspose2d([[[[1, 2], [3, 4]]]], bias=[100], stride=2)
    >>> layer.forward(np.array([[[[1, 10]]]])).tolist()
    [[[[101, 102, 110, 120], [103, 104, 130, 140]]]]
    """

    kind: ClassVar[str] = "ConvTranspose2d"
    axes: ClassVar[int] = 2
    pads: ClassVar[bool] = True  # a window may reach beyond the input, where 0 stands

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None = None
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    def __post_init__(self) -> None:
        weight = integer_parameter(self.weight, "weight", ndim=4)
        object.__setattr__(self, "weight", weight)
        self._check_window(weight.shape[0])
        extra = integers_per_axis(self.output_padding, "output_padding", 2, minimum=0)
        if any(e >= max(s, d) for e, s, d in zip(extra, self.stride, self.dilation)):
            expected = f"less than the stride {self.stride} or the dilation {self.dilation}"
            raise InvalidArgument(mismatch("output_padding", extra, expected))
        object.__setattr__(self, "output_padding", extra)
        out = weight.shape[1] * self.groups
        object.__setattr__(self, "bias", bias_parameter(self.bias, out))

    @property
    def by_channel(self) -> NDArray[np.int64]:
        of_group, out = self.weight.shape[0] // self.groups, self.weight.shape[1] * self.groups
        grouped = self.weight.reshape(self.groups, of_group, self.weight.shape[1], -1)
        return grouped.swapaxes(1, 2).reshape(out, of_group, -1)

    def with_weights(self, by_channel: NDArray[Any], bias: NDArray[Any] | None) -> ConvTranspose2d:
        out, of_group, _ = by_channel.shape
        grouped = by_channel.reshape(self.groups, out // self.groups, of_group, *self.kernel)
        weight = grouped.swapaxes(1, 2).reshape(-1, out // self.groups, *self.kernel)
        return replace(self, weight=weight, bias=bias)

    @property
    def geometry(self) -> Hashable:
        return self.kernel, self.stride, self.padding, self.output_padding, self.dilation

    def positions(self, sizes: Shape) -> Shape:
        spread = [s * (size - 1) + 1 for size, s in zip(sizes, self.stride)]
        shape = tuple(
            size - before - after + d * (k - 1) + extra
            for size, (before, after), d, k, extra in zip(
                spread, self.padding, self.dilation, self.kernel, self.output_padding
            )
        )
        if min(shape) < 1:
            got = f"sizes {sizes} to {shape}"
            raise ShapeMismatch(mismatch("spatial axes", got, "at least one value along each"))
        check_size(prod(shape) * prod(self.kernel))
        check_size(prod(p + d * (k - 1) for p, d, k in zip(shape, self.dilation, self.kernel)))
        return shape

    def columns(self, x: IntArray, pad_code: int) -> IntArray:
        """What each weight meets, in the order c, u, v: [n, groups, K, *positions].

        The kernel, turned round, correlates with x spread out by the stride, zeros between.
        """
        view = windows(self._spread(x), self.kernel, (1, 1), self.dilation)
        return self.by_group(view[..., ::-1, ::-1])

    def as_convolution(self, shape: Shape) -> tuple[Gather, Conv2d]:
        """The same in two steps: inputs of this shape spread out, zeros between, and a Conv2d."""
        numbers = np.arange(1, prod(shape) + 1).reshape(1, *shape)
        spread = Gather(self._spread(numbers)[0] - 1, shape)
        turned = self.by_channel.reshape(*self.by_channel.shape[:2], *self.kernel)[..., ::-1, ::-1]
        conv = Conv2d(turned, self.bias, dilation=self.dilation, groups=self.groups)
        return spread, conv

    def _spread(self, x: IntArray) -> IntArray:
        """x as far apart as the stride says, zeros between and around: [n, in, *larger sizes]."""
        sizes = x.shape[2:]
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel)]
        larger = [p + r for p, r in zip(self.positions(sizes), reach)]
        spread = np.zeros((*x.shape[:2], *larger), dtype=x.dtype)
        inner: list[Any] = [...]
        outer: list[Any] = [...]
        for size, s, r, (before, _), length in zip(sizes, self.stride, reach, self.padding, larger):
            first = max(0, -(-(before - r) // s))  # the first input that is not left out
            last = min(size - 1, (length - 1 + before - r) // s)
            inner.append(slice(first, max(first, last + 1)))
            outer.append(slice(r - before + first * s, r - before + last * s + 1, s))
        if all(part.start < part.stop for part in inner[1:]):
            spread[tuple(outer)] = x[tuple(inner)]
        return spread

    def window(self, where: Sequence[NDArray[np.int64]], sizes: Shape) -> NDArray[np.int64]:
        places = []
        for p, size, k, s, (before, _), d in zip(
            where, sizes, self.kernel, self.stride, self.padding, self.dilation
        ):
            spread = p[:, None] + before - d * np.arange(k)  # [m, k]
            place, rest = np.divmod(spread, s)
            places.append(np.where((rest == 0) & (place >= 0) & (place < size), place, PADDING))
        return flat_positions(places, sizes)
