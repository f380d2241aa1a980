"""Sliding windows over the spatial axes of a batch: what convolution and pooling share.

padded size    P = before + size + after
window extent  E = dilation * (kernel - 1) + 1
positions        = floor((P - E) / stride) + 1
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import is_integer
from refqnn.ops.base import IntArray, Shape

__all__ = ["Padding", "integers_per_axis", "n_positions", "pad", "padding_per_axis", "windows"]

Padding = tuple[tuple[int, int], ...]

MAX_VALUES = 2**27  # as in refqnn.network


def integers_per_axis(value: object, argument: str, axes: int, *, minimum: int) -> Shape:
    """One integer per spatial axis, from one integer for all or from one for each.

    Raises: InvalidType, InvalidArgument.

    >>> integers_per_axis(2, "stride", 2, minimum=1)
    (2, 2)
    """
    values: Any = value if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes or not all(is_integer(v) for v in values):
        raise InvalidType(mismatch(argument, repr(value), f"an integer, or {axes} in a tuple"))
    if min(values) < minimum:
        raise InvalidArgument(mismatch(argument, repr(value), f"integers of at least {minimum}"))
    return tuple(int(v) for v in values)


def padding_per_axis(value: object, axes: int) -> Padding:
    """(before, after) per spatial axis, from one integer, or one integer or pair for each axis.

    Raises: InvalidType, InvalidArgument.

    >>> padding_per_axis(1, 2), padding_per_axis(((0, 1), 2), 2)
    (((1, 1), (1, 1)), ((0, 1), (2, 2)))
    """
    values = value if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        expected = f"an integer, or {axes} integers or (before, after) pairs in a tuple"
        raise InvalidType(mismatch("padding", repr(value), expected))
    pairs = (integers_per_axis(v, "padding", 2, minimum=0) for v in values)
    return tuple((before, after) for before, after in pairs)


def n_positions(
    sizes: Shape, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape
) -> Shape:
    """How many windows fit along each spatial axis.

    Raises: ShapeMismatch if none does, or if the padded axes or the unfolded windows of one channel
        would hold more than 2**27 values.
    """
    positions = []
    for size, k, s, (before, after), d in zip(sizes, kernel, stride, padding, dilation):
        extent = d * (k - 1) + 1
        if before + size + after < extent:
            got = f"size {size} padded to {before + size + after}"
            raise ShapeMismatch(mismatch("spatial axis", got, f"at least the window's {extent}"))
        positions.append((before + size + after - extent) // s + 1)
    padded = prod(before + size + after for size, (before, after) in zip(sizes, padding))
    largest = max(padded, prod(positions) * prod(kernel))
    if largest > MAX_VALUES:
        got = f"{largest} values a channel, padded or unfolded"
        raise ShapeMismatch(mismatch("spatial axes", got, f"at most {MAX_VALUES}"))
    return tuple(positions)


def pad(x: IntArray, padding: Padding, value: int) -> IntArray:
    """x [..., *sizes] with `value` around its last axes: [..., *padded sizes]."""
    if not any(before or after for before, after in padding):
        return x
    lead, sizes = x.shape[: -len(padding)], x.shape[-len(padding) :]
    larger = tuple(before + size + after for size, (before, after) in zip(sizes, padding))
    inside: Any = tuple(slice(before, before + size) for size, (before, _) in zip(sizes, padding))
    # Not np.pad: in an object array it would leave int64 scalars, which wrap.
    padded = np.full((*lead, *larger), value, dtype=x.dtype)
    padded[(..., *inside)] = x
    return padded


def windows(x: IntArray, kernel: Shape, stride: Shape, dilation: Shape) -> IntArray:
    """A view of padded x [n, channels, *sizes]: [n, channels, *positions, *kernel]."""
    spatial: Any = tuple(range(2, 2 + len(kernel)))
    extents = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
    view = sliding_window_view(x, extents, axis=spatial)
    steps: Any = tuple(slice(None, None, step) for step in (*stride, *dilation))
    strided: IntArray = view[(slice(None), slice(None), *steps)]
    return strided
