"""The QUANTIZE of a float input, as the runtimes compute it: `refqnn.tflite` says it in words."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import NotCovered
from refqnn.quantizers import AffineQuantizer, Quantizer, ThresholdQuantizer, float_thresholds
from refqnn.rounding import round_float
from refqnn.tflite.files import Tensor
from refqnn.tflite.rescaling import Way

__all__ = ["input_door"]

_VECTOR = 8
_WIDEST_ROWS = 2**24  # thresholds of a door that has a row for each value


def input_door(entry: Tensor, way: Way = "double") -> Quantizer:
    """From floats to the codes of a tensor.

    Args:
        way: of the QUANTIZE that makes them; "double" where the file has none.

    Raises: NotCovered.
    """
    (s, z), fmt = entry.quantizer, entry.format
    if way == "double":
        return AffineQuantizer(s, z, fmt, "half_away")
    with np.errstate(over="ignore"):
        inverse = np.float32(1) / s
    if not np.isfinite(inverse):
        raise NotCovered(f"1 / {s}, the inverse of its input's scale, is no float32")

    def product(x: NDArray[np.float32]) -> NDArray[np.float64]:
        return _codes(round_float(x * inverse, "half_even"), entry)

    def quotient(x: NDArray[np.float32]) -> NDArray[np.float64]:
        return _codes(round_float(x.astype(np.float64) / float(s), "half_away"), entry)

    row = _row(product, entry)
    size = prod(entry.shape)
    if way == "mixed" and size % _VECTOR:
        rest = _row(quotient, entry)
        if not np.array_equal(rest, row):
            if len(entry.shape) > 2 or entry.shape[0] > 1 or size * row.size > _WIDEST_ROWS:
                raise NotCovered(f"its {size} float inputs do not fill vectors of {_VECTOR}")
            filled = np.arange(size)[:, None] < size // _VECTOR * _VECTOR
            return ThresholdQuantizer(np.where(filled, row, rest), fmt, axis=1)
    even = AffineQuantizer(s, z, fmt, "half_even")
    if np.array_equal(_row(even.quantize, entry), row):
        return even
    return ThresholdQuantizer(row, fmt)


def _codes(rounded: NDArray[Any], entry: Tensor) -> NDArray[np.float64]:
    zero, fmt = entry.quantizer[1], entry.format
    return np.clip(rounded.astype(np.float64) + zero, fmt.q_min, fmt.q_max)


def _row(
    function: Callable[[NDArray[np.float32]], NDArray[Any]], entry: Tensor
) -> NDArray[np.float32]:
    """The least float of each code but the first, [1, levels - 1]."""
    with np.errstate(over="ignore"):
        return float_thresholds(function, entry.codes[None, 1:])
