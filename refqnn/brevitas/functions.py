"""Float functions between an accumulator and a quantizer: the known kinds, a test for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from brevitas.core.function_wrapper import Identity
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.ops.base import Shape

__all__ = [
    "POSITIONS",
    "SHARED",
    "SINGLE",
    "SINGLE_FUNCTIONS",
    "adaptive_divisors",
    "adaptive_windows",
    "average_divisors",
    "is_identity",
    "is_kind",
    "not_elementwise",
]

# Functions of one float that are the same whatever the channel, ...
SHARED = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Softplus,
    nn.Softsign,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
)
# ... and those that round at most once, so that every kernel gives the same float.
SINGLE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Threshold)
SINGLE_FUNCTIONS = {F.relu, F.relu6, F.hardtanh, F.leaky_relu, torch.relu, Tensor.relu}
POSITIONS = "differs between samples or positions"
_IDENTITIES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    Identity,
)


def is_identity(module: nn.Module) -> bool:
    """Whether the module returns its input in evaluation mode."""
    return is_kind(module, *_IDENTITIES)


def is_kind(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether the module is of one of the kinds and computes what they do."""
    return any(isinstance(module, k) and type(module).forward is k.forward for k in kinds)


def not_elementwise(
    function: Callable[[Tensor], Any], shape: Shape, dtype: torch.dtype = torch.float32
) -> str | None:
    """Why a function of [n, *shape] is not one of each value alone (and its channel), or None.

    A probe: half of the values are exchanged, and the results of the other half must stay; equal
    values in one channel must have equal results.
    """
    generator = torch.Generator().manual_seed(0)
    samples = (4, *shape)

    def normal(shape: Shape) -> Tensor:
        x = torch.randn(shape, generator=generator) * 3
        return x > 0 if dtype == torch.bool else x.to(dtype)

    x, other = normal(samples), normal(samples)
    try:
        with torch.no_grad():
            y = function(x.clone())  # the function may work in place
            if not isinstance(y, Tensor) or y.shape != x.shape:
                return "changes the shape"
            for _ in range(4):
                keep = torch.rand(samples, generator=generator) < 0.5
                changed = function(torch.where(keep, x, other))
                if not torch.allclose(changed[keep], y[keep], rtol=1e-5, atol=1e-6, equal_nan=True):
                    return "is not a function of one value at a time"
            column = (1, shape[0], *(1,) * (len(shape) - 1))
            single = normal(column)
            z = function(single.expand(samples).contiguous())
            first = z[(slice(0, 1), slice(None), *(slice(0, 1),) * (len(shape) - 1))]
            if not torch.allclose(z, first.expand(samples), rtol=1e-5, atol=1e-6, equal_nan=True):
                return POSITIONS
            if not _works(function, single, first):
                return POSITIONS
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"fails on other values: {error}"
    return None


def _works(function: Callable[[Tensor], Any], x: Tensor, expected: Tensor) -> bool:
    """Whether a function takes one position of each channel: it may hold the others' number."""
    try:
        y = function(x.clone())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return y.shape == x.shape and torch.allclose(y, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def average_divisors(
    sizes: Shape,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """What an average pooling over one or two axes divides by, float32 [1, 1, *positions].

    The sums of ones and their averages tell, at the borders too.
    """
    ones, one_axis = torch.ones(1, 1, *sizes), len(sizes) == 1
    kernel, pads = kernel_size, padding
    step = kernel_size if stride in (None, (), []) else stride
    if one_axis:
        ones = ones.unsqueeze(2)
        lengths = (v[0] if isinstance(v, (tuple, list)) else v for v in (kernel, step, pads))
        kernel, step, pads = zip((1, 1, 0), lengths)
    mean = F.avg_pool2d(ones, kernel, step, pads, ceil_mode, count_include_pad, divisor_override)
    total = F.avg_pool2d(ones, kernel, step, pads, ceil_mode, divisor_override=1)
    divisors = (total / mean).round()
    return divisors.squeeze(2) if one_axis else divisors


def adaptive_windows(size: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the windows of an adaptive pooling begin and end: floor(i n / m), ceil((i + 1) n / m).

    Returns: int64 [count] each.
    """
    i = np.arange(count)
    return i * size // count, -(-(i + 1) * size // count)


def adaptive_divisors(sizes: Shape, counts: Shape) -> Tensor:
    """How many values each window of an adaptive pooling holds, float32 [1, 1, *counts]."""
    numbers = torch.ones(())
    for size, count in zip(sizes, counts):
        first, last = adaptive_windows(size, count)
        numbers = numbers[..., None] * torch.from_numpy(last - first)
    return numbers.to(torch.float32)[None, None]
