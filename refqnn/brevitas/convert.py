"""from_brevitas: import a module, and compare the result with it before it is handed out."""

from __future__ import annotations

from numpy.typing import ArrayLike
from torch import Tensor, nn

from refqnn.brevitas.verify import compare
from refqnn.brevitas.walk import as_batch, import_module
from refqnn.errors import NotCovered
from refqnn.network import Network

__all__ = ["from_brevitas"]


def from_brevitas(module: nn.Module, example_input: ArrayLike | Tensor) -> Network:
    """The integer program of a trained Brevitas module.

    Args:
        module: any feed-forward module of Brevitas layers, in evaluation mode, on the CPU.
        example_input: float32 [n, *input_shape], n >= 1; its values only run the module once.

    Returns: a Network whose nodes bear the names of the module's layers.  The input quantizer is
        the module's first quantizer; the last layer is left as accumulators, with their scale and
        float bias in the output dequantizer.

    Raises: NotCovered naming the layer and the reason (no input quantizer, weights that are not
        quantized, learned, stochastic or delayed quantization, a float operation between integers
        that is not a function of one of them, control flow that depends on data, ...);
        InvalidArgument in training mode; InvalidType.  The network is compared with the module on
        the example: what tracing cannot see (hooks that change tensors, values overwritten in
        place) ends here too.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> module = torch.nn.Sequential(QuantIdentity(bit_width=3), QuantLinear(4, 2, bias=False))
    >>> network = from_brevitas(module.eval(), torch.zeros(1, 4))
    >>> network.nodes[0].name, network.shapes["1"], network.input_quantizer.format
    ('1', (2,), IntFormat(bits=3, signed=True, narrow=False))
    """
    imported = import_module(module, example_input)
    report = compare(module, imported.network, as_batch(example_input, "example_input"), imported)
    for layer in report.teacher_forced:
        if layer.unexplained:
            reason = "the module computes something there that its trace does not show"
            raise NotCovered(f"{layer}; {reason}")
    return imported.network
