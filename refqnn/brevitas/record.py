"""One forward pass of the real module, with the results of its quantizers kept.

Scales, weights and biases are read out of what the module itself computed, never recomputed.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any

import torch
from brevitas.core.function_wrapper import LearnedRoundSte, StochasticRoundSte
from brevitas.core.quant.delay import _DelayQuant
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from refqnn.brevitas.inputs import split
from refqnn.brevitas.values import refuse
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, mismatch
from refqnn.formats import MAX_BITS
from refqnn.ops.base import Shape

__all__ = ["Recording", "check_module", "check_widths", "record"]


class Recording:
    """Inputs and outputs of every quantizer, call by call."""

    def __init__(self) -> None:
        self.calls: dict[int, list[tuple[Any, Any]]] = defaultdict(list)
        self.output: Any = None

    def output_of(self, proxy: nn.Module, call: int) -> Any:
        """What the quantizer returned at its call-th call."""
        return self.calls[id(proxy)][call][1]

    def input_of(self, proxy: nn.Module, call: int) -> Any:
        """What the quantizer received at its call-th call."""
        return self.calls[id(proxy)][call][0]


def record(module: nn.Module, x: Tensor, inputs: tuple[Shape, ...] = ()) -> Recording:
    """Run the unmodified module on x [n, *input_shape] and keep what its quantizers compute.

    `inputs` are the shapes of several inputs that stand side by side in x.
    """
    recording = Recording()

    def keep(proxy: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        recording.calls[id(proxy)].append((_copy(inputs[0]), _copy(output)))

    quantizers = [m for m in module.modules() if isinstance(m, QuantProxyFromInjector)]
    hooks = [quantizer.register_forward_hook(keep) for quantizer in quantizers]
    try:
        with torch.no_grad():
            recording.output = module(*split(x, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return recording


def _copy(tensor: Any) -> Any:
    """A copy of a tensor, plain or quantized: the module may go on in place."""
    if isinstance(tensor, IntQuantTensor):
        return tensor.set(value=tensor.value.clone())
    return tensor.clone() if isinstance(tensor, Tensor) else tensor


def check_widths(module: nn.Module, recording: Recording) -> None:
    """Raises: NotCovered naming the first layer with weights that no format holds.

    Such a layer makes infinities of its gradients, and in training of everything before it.
    """
    for name, part in module.named_modules():
        for _, weight in recording.calls[id(getattr(part, "weight_quant", None))]:
            bits = float(getattr(weight, "bit_width", torch.ones(())).max())
            if bits > MAX_BITS:
                reason = f"{bits:g}-bit weights; expected at most {MAX_BITS} bits: "
                raise refuse(name, part, f"{reason}set weight_bit_width, to 8 for example")


def _shared(part: nn.Module) -> bool:
    """Brevitas gives one part without a state to all modules: its mode is that of any of them."""
    without = next(chain(part.parameters(), part.buffers()), None) is None
    return without and type(part).__module__.startswith("brevitas.core.")


def check_module(module: object) -> None:
    """Raises: InvalidType, InvalidArgument for training mode, NotCovered naming the layer."""
    if not isinstance(module, nn.Module):
        raise InvalidType(mismatch("module", type(module).__name__, "a torch.nn.Module"))
    if isinstance(module, torch.jit.ScriptModule):
        raise refuse("", module, "is compiled by TorchScript; pass the module that it was made of")
    for name, part in module.named_modules():
        if part.training and not isinstance(part, torch.jit.ScriptModule) and not _shared(part):
            got = f"{name or 'the module'} ({type(part).__name__}) in training mode"
            raise InvalidArgument(mismatch("module", got, "evaluation mode; call module.eval()"))
        if isinstance(part, LearnedRoundSte):
            raise refuse(name, part, "learned rounding has no fixed rounding mode")
        if isinstance(part, StochasticRoundSte):
            raise refuse(name, part, "stochastic rounding is not a function")
        if isinstance(part, _DelayQuant):
            raise refuse(name, part, "delayed quantization (quant_delay_steps) changes over time")
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise NotCovered(f"{name}: got dtype {parameter.dtype}, expected torch.float32")
