"""The input quantizer: which of our quantizers is the module's own, proved on the float32 line.

Both are nondecreasing functions of one float32 number, so they are equal everywhere when each of
their codes begins at the same float.  The first float of every code is found by bisection over the
ordered floats, on the module's function and on ours.  Float arithmetic before the quantizer is part
of the function; several quantizers of one input become one whose codes tell theirs apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from refqnn.brevitas.values import Function, refuse
from refqnn.formats import IntFormat
from refqnn.ops.base import Shape
from refqnn.ops.structure import PADDING
from refqnn.quantizers import (
    AffineQuantizer,
    PowerOfTwoQuantizer,
    Quantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
    float_thresholds,
)
from refqnn.rounding import Rounding

__all__ = ["AnotherDoor", "common_quantizer", "input_quantizer", "threshold_quantizer"]

_BY_NAME = {
    "ROUND": Rounding.HALF_EVEN,
    "FLOOR": Rounding.FLOOR,
    "CEIL": Rounding.CEIL,
    "ROUND_TO_ZERO": Rounding.TOWARD_ZERO,
}
_GREATEST = np.finfo(np.float32).max
_VALUES = 2**22  # floats that a module's function is given at a time
MAX_INPUT_BITS = 16

CodesOf = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def input_quantizer(
    function: Function,
    scale: float,
    zero_point: int,
    fmt: IntFormat,
    *,
    named: str | None,
    layer: str,
    proxy: nn.Module,
) -> Quantizer:
    """The quantizer of ours that gives the codes of `function` on every float32 number.

    Args:
        function: the module's own, float32 to codes int64.
        scale, zero_point, fmt: read out of the module.
        named: the rounding mode that the module claims; tried first.
        layer, proxy: for the message.

    Raises: NotCovered when no rounding mode reproduces the module.
    """

    def theirs(x: NDArray[np.float32]) -> NDArray[np.int64]:
        with torch.no_grad():
            return function(torch.from_numpy(x)).numpy()

    modes = list(Rounding)
    if named in _BY_NAME:
        modes.sort(key=lambda mode: mode is not _BY_NAME[named])
    expected = _first_floats(theirs, fmt)
    for mode in modes:
        candidate = _quantizer(scale, zero_point, fmt, mode)
        if np.array_equal(_first_floats(candidate.quantize, fmt), expected):
            return candidate
    raise refuse(layer, proxy, "no rounding mode reproduces the function of the input quantizer")


def _quantizer(scale: float, zero_point: int, fmt: IntFormat, mode: Rounding) -> Quantizer:
    if zero_point != 0:
        return AffineQuantizer(scale, zero_point, fmt, mode, zero_point_first=True)
    m, e = math.frexp(scale)
    if m == 0.5 and -125 <= e <= 128 and fmt.step == 1:
        return PowerOfTwoQuantizer(e - 1, fmt, mode)
    return SymmetricQuantizer(scale, fmt, mode)


def _first_floats(codes: CodesOf, fmt: IntFormat) -> NDArray[np.float32]:
    """The first float32 that reaches each code above q_min."""
    return float_thresholds(codes, np.arange(fmt.q_min + fmt.step, fmt.q_max + 1, fmt.step))


def threshold_quantizer(
    function: Function,
    shape: Shape,
    index: NDArray[np.int64],
    fmt: IntFormat,
    *,
    layer: str,
    proxy: nn.Module,
) -> tuple[ThresholdQuantizer, NDArray[np.bool_]]:
    """The first float of each code, of float arithmetic that a quantizer closes.

    Args:
        function: the module's own, float32 [n, *shape] to codes.
        index: which position of a sample each of its codes depends on; `PADDING` for none.

    Returns: the quantizer, and which of its rows fall: there it gives q_min + q_max - code.

    Raises: NotCovered when codes rise and fall, or differ along several axes.
    """
    places = index.ravel()
    read = np.flatnonzero(places != PADDING)
    coordinates = np.unravel_index(places[read], shape)

    def codes(x: NDArray[np.float32]) -> NDArray[np.int64]:
        """[n, *shape] to [n, codes that are read], some samples at a time."""
        block = max(1, _VALUES // math.prod(shape))
        with torch.no_grad():
            parts = [function(part) for part in torch.from_numpy(x).split(block)]
        return torch.cat(parts).reshape(len(x), -1).numpy()[:, read]

    def along(v: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
        """[rows, n] to samples [n, *shape], a row for each place on the axis."""
        if axis is None:
            return np.broadcast_to(v.T.reshape(-1, *(1,) * len(shape)), (v.shape[1], *shape)).copy()
        rows = np.moveaxis(v.T.reshape(-1, *(1,) * (len(shape) - 1), len(v)), -1, axis + 1)
        return np.broadcast_to(rows, (v.shape[1], *shape)).copy()

    wanted = np.arange(fmt.q_min + fmt.step, fmt.q_max + 1, fmt.step)
    ends = codes(along(np.array([[-_GREATEST, _GREATEST]], np.float32), None))
    falls = ends[0] > ends[1]  # [codes that are read]

    def rising(x: NDArray[np.float32]) -> NDArray[np.int64]:
        found = codes(x)
        return np.where(falls, fmt.q_min + fmt.q_max - found, found)

    def by_axis(axis: int | None) -> tuple[ThresholdQuantizer, NDArray[np.bool_]] | None:
        """One row of thresholds for each place on the axis; None where that is not enough."""
        row = np.zeros(len(read), np.int64) if axis is None else coordinates[axis]
        known, first = np.unique(row, return_index=True)
        every = np.arange(1 if axis is None else shape[axis])  # like its neighbour, if not read
        like = np.searchsorted(known, every).clip(max=len(known) - 1)
        table = float_thresholds(
            lambda v: rising(along(v[like], axis))[:, first].T, np.tile(wanted, (len(known), 1))
        )
        table = np.maximum.accumulate(table, axis=1)[like]
        quantizer = ThresholdQuantizer(table, fmt, None if axis is None else axis + 1)
        x = along(_tried(table), axis)
        ours = quantizer.quantize(x).reshape(len(x), -1)[:, places[read]]
        known_falls = falls[first]
        same = np.array_equal(falls, known_falls[np.searchsorted(known, row)])
        return (quantizer, known_falls[like]) if same and np.array_equal(rising(x), ours) else None

    for axis in (None, *range(len(shape))):
        if (found := by_axis(axis)) is not None:
            return found
    reason = "what stands before it neither rises nor falls, or differs along several axes"
    raise refuse(layer, proxy, f"{reason} of the input")


def _tried(thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Floats at which two quantizers are compared: both sides of each threshold, and all sizes."""
    finite = np.clip(thresholds, -_GREATEST, _GREATEST)
    below = np.nextafter(finite, np.float32(-np.inf)).clip(-_GREATEST)
    sizes = np.ldexp(np.float32(1.375), np.arange(-126, 127, 2)).astype(np.float32)
    every = np.tile(np.concatenate([sizes, -sizes]), (len(finite), 1))
    return np.concatenate([finite, below, every], axis=1)


class AnotherDoor(Exception):
    """The float input has one more quantizer than was known.

    Attributes:
        doors: all that are known now.
    """

    def __init__(self, doors: list[Quantizer]) -> None:
        super().__init__(f"{len(doors)} quantizers")
        self.doors = doors


def common_quantizer(
    quantizers: Sequence[Quantizer], layer: str, proxy: nn.Module
) -> ThresholdQuantizer:
    """The coarsest quantizer whose codes tell those of all the quantizers apart.

    Raises: NotCovered where that takes more than 16 bits, or rows along a later axis.
    """
    tables = []
    for q in quantizers:
        if isinstance(q, ThresholdQuantizer):
            tables.append(q.thresholds)
        else:
            tables.append(_first_floats(q.quantize, q.format)[None])
    rows = max(map(len, tables))
    every = np.concatenate([np.broadcast_to(t, (rows, t.shape[1])) for t in tables], axis=1)
    distinct = [np.unique(row[np.isfinite(row)]) for row in every]
    bits = max(1, max(map(len, distinct)).bit_length())
    axes = {q.axis for q in quantizers} - {None}
    if bits > MAX_INPUT_BITS or axes - {1}:
        reason = f"several quantizers of the float input, {bits} bits together, axes {axes}"
        raise refuse(layer, proxy, reason)
    table = np.full((rows, 2**bits - 1), np.inf, dtype=np.float32)
    for thresholds, found in zip(table, distinct):
        thresholds[: len(found)] = found
    return ThresholdQuantizer(table, IntFormat(bits, signed=False), 1 if axes else None)
