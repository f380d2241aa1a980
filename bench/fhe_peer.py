"""The peer's published default construction, built from the same Network.

What Concrete ML does with a power-of-two network, in our words: accumulators as they come, rounded
by `round_bit_pattern` where the thresholds are a power-of-two grid (half up), otherwise looked up
whole; codes as signed integers; widths measured on an input set; one error probability per lookup.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from concrete import fhe
from numpy.typing import NDArray

from refqnn import Linear, Network, Requantize
from refqnn.ops import Conv2d, Flatten

P_ERROR = 2.0**-40


def compile_peer(network: Network, inputset: NDArray[np.int64]) -> fhe.Circuit:
    """Compile a chain of Linear, Conv2d, Requantize and Flatten nodes the peer's way."""

    def circuit(x: Any) -> Any:
        t = x
        for node in network.nodes:
            t = _applied(node.op, t)
        return t

    configuration = fhe.Configuration(
        p_error=P_ERROR,
        compress_evaluation_keys=True,
        compress_input_ciphertexts=True,
        dump_artifacts_on_unexpected_failures=False,
    )
    return fhe.Compiler(circuit, {"x": "encrypted"}).compile(list(inputset), configuration)


def _applied(op: Any, t: Any) -> Any:
    if isinstance(op, Linear):
        acc = t @ op.weight.T
        return acc if op.bias is None else acc + op.bias
    if isinstance(op, Conv2d):
        acc = fhe.conv(
            t.reshape((1, *t.shape)),
            op.weight,
            op.bias if op.bias is not None else np.zeros(len(op.weight), dtype=np.int64),
            strides=op.stride,
            dilations=op.dilation,
            group=op.groups,
        )
        return acc.reshape(acc.shape[1:])
    if isinstance(op, Flatten):
        return t.reshape((int(np.prod(t.shape)),))
    assert isinstance(op, Requantize)
    shift = op.shift or 0
    rounded = fhe.round_bit_pattern(t, shift) if shift else t

    def code(acc: Any) -> Any:
        values: Any = np.asarray(acc)
        return op.forward(values.reshape(1, *values.shape))[0]

    return fhe.univariate(code)(rounded)
