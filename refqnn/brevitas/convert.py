"""from_brevitas: import a module, and compare the result with it before it is handed out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from refqnn.brevitas.inputs import Example, joined
from refqnn.brevitas.verify import compare
from refqnn.brevitas.walk import import_module
from refqnn.errors import NotCovered
from refqnn.network import Network
from refqnn.quantizers import ThresholdQuantizer

__all__ = ["Imported", "from_brevitas", "read_brevitas"]

_SAMPLES = 256  # that a network is compared on before it is handed out


@dataclass(frozen=True)
class Imported:
    """What `read_brevitas` returns.

    Attributes:
        network: the integer program.
        dropped: what the module does behind the network's output, left out (softmax, argmax, a
            last sigmoid, the one output of a sample without its axis), in the module's words.
    """

    network: Network
    dropped: tuple[str, ...] = ()


def from_brevitas(module: nn.Module, example_input: Example) -> Network:
    """The integer program of a trained Brevitas module.

    Args:
        module: any feed-forward module of Brevitas layers, in evaluation mode, on the CPU.
        example_input: float32 [n, *input_shape], n >= 1; its values only run the module once.
            A tuple of them for a module of several inputs: the network's one input is then
            [n, all their values], in the order of forward, each flattened.

    Returns: a Network whose nodes bear the names of the module's layers.  The input quantizer is
        the module's first quantizer with the float arithmetic before it; the last layer is left as
        accumulators, with their scale and float bias in the output dequantizer, and products, sums
        and batch normalization behind them too.  What only reads off the result is left out:
        `read_brevitas` names it.

    Raises: NotCovered naming the layer and the reason (no input quantizer, weights that are not
        quantized, learned, stochastic or delayed quantization, a float operation between integers
        that is not a function of one of them, control flow that depends on data, ...);
        InvalidArgument in training mode; InvalidType.  The network is compared with the module on
        the example and on random samples, together at least 256: what tracing cannot see (hooks
        that change tensors) ends here too, with the name of the layer that parts.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> module = torch.nn.Sequential(QuantIdentity(bit_width=3), QuantLinear(4, 2, bias=False))
    >>> network = from_brevitas(module.eval(), torch.zeros(1, 4))
    >>> network.nodes[0].name, network.shapes["1"], network.input_quantizer.format
    ('1', (2,), IntFormat(bits=3, signed=True, narrow=False))
    """
    return read_brevitas(module, example_input).network


def read_brevitas(module: nn.Module, example_input: Example) -> Imported:
    """As `from_brevitas`, with the names of what is left out behind the network's output.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> layers = QuantIdentity(bit_width=3), QuantLinear(4, 2, bias=False), torch.nn.Softmax(1)
    >>> read_brevitas(torch.nn.Sequential(*layers).eval(), torch.zeros(1, 4)).dropped
    ('2',)
    """
    imported = import_module(module, example_input)
    samples = _varied(joined(example_input, "example_input")[0], imported.network)
    for layer in compare(module, imported.network, samples, imported).teacher_forced:
        if layer.unexplained:
            reason = "the module computes something there that its trace does not show"
            raise NotCovered(f"{layer}; {reason}")
    return Imported(imported.network, imported.dropped)


def _varied(example: Tensor, network: Network) -> Tensor:
    """The example, and as many samples as `_SAMPLES` lack: over all of the input's range."""
    door = network.input_quantizer
    assert door is not None
    if isinstance(door, ThresholdQuantizer):
        ends = door.thresholds[np.isfinite(door.thresholds)]
    else:
        ends = door.dequantize([[door.format.q_min], [door.format.q_max]])
    low, high = (float(end) for end in (ends.min(), ends.max()))
    margin = (high - low) / 8  # beyond it: saturation
    generator = torch.Generator().manual_seed(0)
    missing = max(_SAMPLES - len(example), 1)
    noise = torch.rand((missing, *example.shape[1:]), generator=generator)
    width = torch.rand((missing, *(1,) * (example.ndim - 1)), generator=generator)
    full = (low - margin) + noise * (high - low + 2 * margin)
    return torch.cat([example, full * width])  # some reach far, some stay near 0
