"""The normalization of the quantized networks: centre, then divide by a power of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from refqnn.errors import InvalidArgument, ShapeMismatch, mismatch
from refqnn.training.quantizers import half_up_ste

__all__ = ["NORMS", "PowerOfTwoNorm", "set_normalization_frozen"]


class PowerOfTwoNorm(nn.Module):
    """Centre each channel, then divide the layer by one power of two.

        y[c] = (x[c] + shift[c]) * 2**-exponent
        shift[c] = bias[c] * 2**exponent - mean[c],   rounded to the grid of the accumulator

    Training uses the batch mean, evaluation (and training once `frozen`) the running mean, as in
    batch normalization (Ioffe and Szegedy 2015) without the gain: the rows of the weights that
    come before have that freedom already.  The exponent is set from data by `observe` and constant
    from then on, so the function never jumps.

    ``x`` is an integer multiple of ``step``.  The shift is rounded to ``(n + offset) * step`` with
    integer n, straight-through.  With ``offset`` 1/2, whenever the quantizer that follows drops at
    least one bit, its decision points fall halfway between accumulator values: no tie exists, and
    every rounding mode that rounds to nearest gives the same codes.  All float32 arithmetic here is
    exact while ``|acc| < 2**22``.

    Args:
        channels: size of axis 1 of the input.
        momentum: weight of a new batch in the running mean.

    Shape: ``[N, channels, ...]`` to the same.
    """

    running_mean: Tensor
    gain: Tensor
    step: Tensor
    offset: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels = channels
        self.momentum = momentum
        self.observing = False
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("gain", torch.tensor(1.0))  # 2**-exponent
        self.register_buffer("step", torch.tensor(1.0))  # value of one unit of the accumulator
        self.register_buffer("offset", torch.tensor(0.0))  # in units of the accumulator
        self.register_buffer("lowest", torch.full((channels,), -math.inf))  # the same
        self.register_buffer("highest", torch.full((channels,), math.inf))
        self.frozen = False

    def extra_repr(self) -> str:
        return f"{self.channels}, gain={float(self.gain)}, step={float(self.step)}"

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set the mean, and the exponent nearest to log2 of the standard deviation, from ``x``."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.running_mean.copy_(x.mean(dim=axes))
        deviation = float(x.var(dim=axes, unbiased=False).mean().sqrt())
        exponent = round(math.log2(deviation)) if deviation > 0.0 else 0
        self.gain.fill_(math.ldexp(1.0, -exponent))

    def shift(self, mean: Tensor) -> Tensor:
        """The constant of each channel, on the grid ``(n + offset) * step``; ``[channels]``."""
        units = (self.bias / self.gain - mean) / self.step
        on_grid = half_up_ste(units - self.offset) + self.offset
        return on_grid.clamp(self.lowest, self.highest) * self.step

    @torch.no_grad()
    def limit_shift(self, lowest: Tensor, highest: Tensor) -> None:
        """Keep the constant of each channel in ``[lowest, highest]`` accumulator units.

        For accumulator budgets, which must count the constant.

        Args:
            lowest, highest: ``[channels]``, multiples of 1/2 that lie on the grid of the layer.
        """
        for name, limit in (("lowest", lowest), ("highest", highest)):
            if limit.shape != (self.channels,):
                raise ShapeMismatch(
                    mismatch(name, f"shape {tuple(limit.shape)}", f"({self.channels},)")
                )
        if bool((lowest > highest).any()):
            raise InvalidArgument(mismatch("lowest", "a value above highest", "lowest <= highest"))
        self.lowest.copy_(lowest)
        self.highest.copy_(highest)

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.ndim - 2)
        if self.observing:  # the step is not known yet
            self.observe(x)
            return (x - self.running_mean.view(shape)) * self.gain + self.bias.view(shape)
        mean = self.running_mean
        if self.training and not self.frozen:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            mean = x.mean(dim=axes)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
        return (x + self.shift(mean).view(shape)) * self.gain


def set_normalization_frozen(module: nn.Module, frozen: bool = True) -> None:
    """Let every normalization of ``module`` train on its running statistics, as in evaluation."""
    for part in module.modules():
        if isinstance(part, PowerOfTwoNorm):
            part.frozen = frozen
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.train(part.training and not frozen)


NORMS = (PowerOfTwoNorm, nn.BatchNorm1d, nn.BatchNorm2d)
