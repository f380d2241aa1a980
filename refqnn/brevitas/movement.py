"""Functions of torch that only move values: which position of its arguments each result takes.

A known function runs once on tensors of numbers, each of which says where it stands, and once on
random numbers in their places: what it returns says what it moves, or that it computes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.ops.base import Shape
from refqnn.ops.structure import PADDING

__all__ = [
    "FUNCTIONS",
    "JOINS",
    "METHODS",
    "MODULES",
    "SAMPLES",
    "Movement",
    "Moving",
    "movements",
]

SAMPLES = 3
"""Of the batch that is moved, and of the example that is run: functions may read its size."""

_NAMES = (
    *("flatten", "reshape", "unflatten", "squeeze", "unsqueeze", "ravel"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "roll"),
    *("chunk", "split", "tensor_split", "unbind", "narrow", "select", "index_select"),
    *("repeat_interleave", "tile", "broadcast_to"),
)
METHODS = {*_NAMES, "view", "expand", "repeat"}
FUNCTIONS: set[Any] = {
    *(getattr(torch, name) for name in _NAMES),
    *(operator.getitem, torch.pixel_shuffle, torch.pixel_unshuffle, torch.channel_shuffle),
    *(F.pad, F.unfold, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.interpolate),
}
JOINS: set[Any] = {torch.cat, torch.concat, torch.concatenate, torch.stack}
MODULES = (
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unfold),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ZeroPad2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.Upsample, nn.UpsamplingNearest2d),
)


class Moving(nn.Module):
    """A module whose forward is made of these functions: the walk reads it, whatever it moves."""


@dataclass(frozen=True, eq=False)
class Movement:
    """One result of a function that only moves values.

    Attributes:
        index: [*shape]: flat positions in samples of the operands, one operand after the other;
            `PADDING` where `constant` stands.
        constant: a number that comes from no operand.
    """

    index: NDArray[np.int64]
    constant: float = 0.0

    def of(self, x: Tensor) -> Tensor:
        """The function, of a tensor [n, *its one operand's shape]."""
        column = torch.full((len(x), 1), self.constant)  # PADDING is the last
        return torch.cat([x.reshape(len(x), -1), column], dim=1)[:, torch.from_numpy(self.index)]

    def after(self, earlier: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions where the operand is itself one of these positions."""
        return np.append(earlier, PADDING)[self.index]


def movements(
    function: Callable[[list[Tensor]], Any], shapes: Sequence[Shape]
) -> list[Movement] | str:
    """What a function does to tensors [SAMPLES, *shape], a movement for each result.

    Returns: why it is not a movement, where it is none.
    """
    sizes = [prod(shape) for shape in shapes]
    total = sum(sizes)
    numbers = torch.arange(1, SAMPLES * total + 1, dtype=torch.float64).reshape(SAMPLES, total)
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(SAMPLES * total + 1, generator=generator, dtype=torch.float64)
    results = []
    for values in (numbers, others[1:].reshape(SAMPLES, total)):
        parts = torch.split(values, sizes, dim=1)
        operands = [p.reshape(SAMPLES, *s).clone() for p, s in zip(parts, shapes)]
        try:
            result = function(operands)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            return f"fails on samples of shape {', '.join(map(str, shapes))}: {error}"
        results.append([result] if isinstance(result, Tensor) else list(result))
    found = []
    for first, second in zip(*results):
        if first.ndim == 0 or len(first) != SAMPLES:
            return f"makes shape {tuple(first.shape)} of a batch of {SAMPLES}"
        taken = np.where(first == second, 0.0, first.numpy())  # 0: from no operand
        places = taken.astype(np.int64)
        moved = (places == taken).all() and places.min() >= 0 and places.max() < len(others)
        if not moved or not (others.numpy()[places] == second.numpy())[places > 0].all():
            return "computes with the values that it moves"
        index = np.where(places[0] > 0, places[0] - 1, PADDING)
        own = index + total * np.arange(SAMPLES).reshape(-1, *(1,) * index.ndim)
        if not np.array_equal(np.where(index == PADDING, 0, own + 1), places):
            return "mixes samples"
        constants = np.unique(first.numpy()[places == 0])
        if len(constants) > 1:
            return "fills with several constants"
        found.append(Movement(index, float(constants[0]) if len(constants) else 0.0))
    return found
