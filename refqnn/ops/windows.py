"""Sliding windows over the spatial axes of a batch: what convolution and pooling share.

padded size    P = before + size + after
window extent  E = dilation * (kernel - 1) + 1
positions        = floor((P - E) / stride) + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import is_integer
from refqnn.limits import LARGEST_STEP, MAX_VALUES
from refqnn.ops.base import IntArray, Shape
from refqnn.ops.structure import PADDING

__all__ = [
    "Padding",
    "flat_positions",
    "integers_per_axis",
    "n_positions",
    "pad",
    "padding_per_axis",
    "window_positions",
    "windows",
]

Padding = tuple[tuple[int, int], ...]


def integers_per_axis(value: object, argument: str, axes: int, *, minimum: int) -> Shape:
    """One integer per spatial axis, from one integer for all or from one for each.

    Raises: InvalidType, InvalidArgument, OutOfRange above 2**31 - 1.

    >>> integers_per_axis(2, "stride", 2, minimum=1)
    (2, 2)
    """
    values: Any = value if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes or not all(is_integer(v) for v in values):
        raise InvalidType(mismatch(argument, repr(value), f"an integer, or {axes} in a tuple"))
    if min(values) < minimum:
        raise InvalidArgument(mismatch(argument, repr(value), f"integers of at least {minimum}"))
    if max(values) > LARGEST_STEP:
        raise OutOfRange(mismatch(argument, "a larger one", f"integers up to {LARGEST_STEP}"))
    return tuple(int(v) for v in values)


def padding_per_axis(value: object, axes: int) -> Padding:
    """(before, after) per spatial axis, from one integer, or one integer or pair for each axis.

    Raises: InvalidType, InvalidArgument, OutOfRange.

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
    check_size(max(padded, prod(positions) * prod(kernel)))
    return tuple(positions)


def check_size(values: int) -> None:
    """Raises: ShapeMismatch for more than 2**27 values of one channel, padded or unfolded."""
    if values > MAX_VALUES:
        got = f"{values} values a channel, padded or unfolded"
        raise ShapeMismatch(mismatch("spatial axes", got, f"at most {MAX_VALUES}"))


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


def window_positions(
    where: Sequence[NDArray[np.int64]],
    sizes: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
) -> NDArray[np.int64]:
    """The input positions of some windows, flat over the spatial axes: [m, prod(kernel)].

    Args:
        where: the position of each window along each axis, [m] each.

    Returns: `PADDING` outside the input.
    """
    places = []
    for p, size, k, s, (before, _), d in zip(where, sizes, kernel, stride, padding, dilation):
        place = s * p[:, None] + d * np.arange(k) - before  # [m, k]
        places.append(np.where((place >= 0) & (place < size), place, PADDING))
    return flat_positions(places, sizes)


def flat_positions(places: Sequence[NDArray[np.int64]], sizes: Shape) -> NDArray[np.int64]:
    """All combinations of places [m, k_i] along the axes, flat: [m, prod k_i]; `PADDING` stays."""
    m = len(places[0])
    flat, inside = np.zeros((m, 1), dtype=np.int64), np.ones((m, 1), dtype=bool)
    for place, size in zip(places, sizes):
        shape = (m, flat.shape[1] * place.shape[1])
        flat = (flat[:, :, None] * size + place[:, None, :]).reshape(shape)
        inside = (inside[:, :, None] & (place != PADDING)[:, None, :]).reshape(shape)
    return np.where(inside, flat, PADDING)
