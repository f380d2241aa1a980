"""What the importer knows about a tensor of the module: an integer node and a float32 function.

    x[n, c, ...] = steps(fl32(fl32(sign[c] * integer[n, c, ...] - zero_point) * scale[c]) / divisor)

Codes have no steps.  An accumulator collects them (bias, normalization, activation) until a
quantizer closes it.  Where its channels have functions of their own and a movement mixes them, the
movement waits until the quantizer has made codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from brevitas.quant_tensor import IntQuantTensor
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.errors import NotCovered
from refqnn.formats import IntFormat
from refqnn.ops.base import Shape

__all__ = ["Function", "Step", "Value", "along_channels", "codes_of", "integers_of", "refuse"]

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One float32 function, elementwise and the same for every sample.

    Attributes:
        name: where it stands in the module.
        function: float32 [n, *shape] to the same.
        per_channel: whether channels differ.
        rounds: whether evaluating it twice may round differently (vectorized and scalar kernels).
        bias: [channels or 1] when the function is `x + bias`, else None.
        shaped: whether it needs samples of its own shape: of the float input, it moves values or
            (then per_channel) differs between positions.
        kind: of the module or function.
        affine: (factor, summand), [channels or 1] each, when the function is x * factor + summand.
    """

    name: str
    function: Function
    per_channel: bool
    rounds: bool
    bias: Tensor | None = None
    shaped: bool = False
    kind: str = ""
    affine: tuple[Tensor, Tensor] | None = None


class Storage:
    """What one tensor of the module and its views share.

    Attributes:
        writers: names of the operations that have changed it in place, in order.
    """

    def __init__(self) -> None:
        self.writers: list[str] = []


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the module: the integers of a network node, and how they become floats.

    Attributes:
        node: name of the network node; None for the float input of the module.
        shape: of one sample.
        scale: float32, of shape () or [channels].
        zero_point, divisor, sign, steps: see the module's formula; divisor is of shape () or
            [channels], sign is None where all are +1.
        format: of codes; None for accumulators.
        exclusive: nothing else reads the node, so its rows may be negated in place.
        pending: flat positions [*shape] in the node (or the float input) that the values stand at;
            None where they are those of the node.  The formula's channels are the node's.
        storage, writes: where the module keeps it, and how often that had been changed by then.
        dtype: of the module's tensor, as torch.bool for comparisons.
    """

    node: str | None
    shape: Shape
    scale: Tensor
    zero_point: int = 0
    divisor: Tensor = field(default_factory=lambda: torch.ones(()))
    sign: Tensor | None = None
    steps: tuple[Step, ...] = ()
    format: IntFormat | None = None
    exclusive: bool = False
    pending: NDArray[np.int64] | None = None
    storage: Storage = field(default_factory=Storage)
    writes: int = 0
    dtype: torch.dtype = torch.float32

    def within(self, other: Value | None) -> Value:
        """The value, in the memory of another one or (None) in memory of its own."""
        storage = Storage() if other is None else other.storage
        return replace(self, storage=storage, writes=len(storage.writers))

    def first(self, integers: Tensor) -> Tensor:
        """The float32 value before the steps, of integers [n, *shape]."""
        if self.sign is not None:
            integers = integers * along_channels(self.sign, integers.ndim)
        centred = (integers - self.zero_point).to(torch.float32)
        value = centred * along_channels(self.scale, integers.ndim)
        return value / along_channels(self.divisor, integers.ndim)

    def decode(self, integers: Tensor) -> Tensor:
        """The float32 value of integers [n, *shape]."""
        return self.behind(self.first(integers))

    def behind(self, x: Tensor) -> Tensor:
        """What the steps make of float32 [n, *shape]."""
        for step in self.steps:
            x = step.function(x)
        return x

    def then(self, step: Step, dtype: torch.dtype = torch.float32) -> Value:
        """The value behind one more function."""
        return replace(self, steps=(*self.steps, step), format=None, dtype=dtype)

    def zeros(self, samples: int) -> Tensor:
        """What the module's tensor could be, [samples, *shape]."""
        return torch.zeros(samples, *self.shape, dtype=self.dtype)

    @property
    def per_channel(self) -> bool:
        """Whether channels have different functions."""
        return (
            self.scale.ndim > 0
            or self.divisor.ndim > 0
            or self.sign is not None
            or any(step.per_channel for step in self.steps)
        )

    @property
    def step_scale(self) -> Tensor:
        """float32 distance between neighbouring values: scale / divisor."""
        return self.scale / self.divisor


def along_channels(values: Tensor, ndim: int) -> Tensor:
    """[channels] shaped to broadcast against [n, channels, ...]; a scalar as it is."""
    return values if values.ndim == 0 else values.reshape(1, -1, *(1,) * (ndim - 2))


def integers_of(tensor: IntQuantTensor) -> Tensor:
    """value / scale as int64: the codes minus the zero point."""
    return torch.round(tensor.value.double() / tensor.scale.double()).to(torch.int64)


def codes_of(tensor: IntQuantTensor) -> Tensor:
    """The integer codes, int64."""
    zero_point = torch.round(tensor.zero_point.double()).to(torch.int64)
    return integers_of(tensor) + zero_point


def refuse(name: str, module: nn.Module, reason: str) -> NotCovered:
    """The error for a layer that has no exact integer form here."""
    kind = module if isinstance(module, str) else type(module).__name__
    return NotCovered(f"{name or 'the module'} ({kind}): {reason}")
