"""The input quantizer: which of our quantizers is the module's own, proved on the float32 line.

Both are nondecreasing functions of one float32 number, so they are equal everywhere when each of
their codes begins at the same float.  The first float of every code is found by bisection over the
ordered bit patterns of float32, on the module's function and on ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.brevitas.values import refuse
from refqnn.formats import IntFormat
from refqnn.quantizers import (
    AffineQuantizer,
    PowerOfTwoQuantizer,
    Quantizer,
    SymmetricQuantizer,
)
from refqnn.rounding import Rounding

__all__ = ["input_quantizer"]

_BY_NAME = {
    "ROUND": Rounding.HALF_EVEN,
    "FLOOR": Rounding.FLOOR,
    "CEIL": Rounding.CEIL,
    "ROUND_TO_ZERO": Rounding.TOWARD_ZERO,
}
_LARGEST = 0x7F7FFFFF  # bit pattern of the largest finite float32

CodesOf = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def input_quantizer(
    function: Callable[[Tensor], Tensor],
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


def _first_floats(codes: CodesOf, fmt: IntFormat) -> NDArray[np.int64]:
    """Order number of the first float32 that reaches each code above q_min."""
    target = np.arange(fmt.q_min + fmt.step, fmt.q_max + 1, fmt.step)
    below = np.full(target.shape, -_LARGEST - 2, dtype=np.int64)
    reached = np.full(target.shape, _LARGEST + 1, dtype=np.int64)
    while (reached - below > 1).any():
        middle = np.clip((below + reached) // 2, -_LARGEST - 1, _LARGEST)
        enough = codes(_float_at(middle)) >= target
        open_ = reached - below > 1
        reached = np.where(open_ & enough, middle, reached)
        below = np.where(open_ & ~enough, middle, below)
    return reached


def _float_at(order: NDArray[np.int64]) -> NDArray[np.float32]:
    """The finite float32 of an order number: 0 is +0.0, -1 is -0.0, and so on to both sides."""
    negative = order < 0
    bits = np.where(negative, -order - 1, order).astype(np.uint32)
    return (bits | np.where(negative, np.uint32(0x80000000), np.uint32(0))).view(np.float32)
