"""The peer's published default construction, built from the same Network.

What Concrete ML does with a power-of-two network, in our words: the bias of every neuron is added
to its accumulator, so that code 0 is what rounds to 0; accumulators as they come are rounded by
`round_bit_pattern` (half up) where thresholds are a power-of-two grid, otherwise looked up whole;
codes and accumulators are signed; widths are measured on an input set; every lookup may fail with
probability 2**-40, or, where that is asked, a whole inference with a probability that is given.

    code = table(round_bit_pattern(x @ W + bias, shift))
"""

from __future__ import annotations

from typing import Any

import numpy as np
from concrete import fhe
from numpy.typing import NDArray

from refqnn import Linear, Lookup, Network, Requantize
from refqnn.ops import Conv2d, Flatten

P_ERROR = 2.0**-40

IntVector = NDArray[np.int64]


def compile_peer(
    network: Network, inputset: NDArray[np.int64], global_p_error: float | None = None
) -> fhe.Circuit:
    """Compile a chain of Linear, Conv2d, Requantize, Lookup and Flatten nodes the peer's way.

    global_p_error: of a whole inference, instead of `P_ERROR` for each lookup.
    """

    def circuit(x: Any) -> Any:
        t = x
        for node in network.nodes:
            t = _applied(node.op, t)
        return t

    configuration = fhe.Configuration(
        **({"p_error": P_ERROR} if global_p_error is None else {"global_p_error": global_p_error}),
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
        return _convolved(op, t)
    if isinstance(op, Flatten):
        return t.reshape((int(np.prod(t.shape)),))
    if isinstance(op, Lookup):
        return fhe.univariate(lambda value: op.forward(np.asarray(value)[None])[0])(t)
    assert isinstance(op, Requantize)
    shift = op.shift or 0
    bias = _bias(op, shift)
    bias = bias.reshape(-1, *(1,) * (len(t.shape) - 1))
    biased = t + bias
    rounded = fhe.round_bit_pattern(biased, shift) if shift else biased

    def code(value: Any) -> Any:
        acc = np.asarray(value) - bias
        return op.forward(acc.reshape(1, *acc.shape))[0]

    return fhe.univariate(code)(rounded)


def _convolved(op: Conv2d, t: Any) -> Any:
    for axis, (before, after) in enumerate(op.padding, start=1):
        parts = [t]
        if before:
            parts.insert(0, fhe.zeros((*t.shape[:axis], before, *t.shape[axis + 1 :])))
        if after:
            parts.append(fhe.zeros((*t.shape[:axis], after, *t.shape[axis + 1 :])))
        t = np.concatenate(tuple(parts), axis=axis) if len(parts) > 1 else t
    acc = fhe.conv(
        t.reshape((1, *t.shape)),
        op.weight,
        op.bias if op.bias is not None else np.zeros(len(op.weight), dtype=np.int64),
        strides=op.stride,
        dilations=op.dilation,
        group=op.groups,
    )
    return acc.reshape(acc.shape[1:])


def _bias(op: Requantize, shift: int) -> IntVector:
    """What moves the first threshold of a channel to half a rounding unit; to 1 without one."""
    first = op.thresholds[:, 0]
    reached = np.abs(first) < 1 << 62  # a threshold that no accumulator reaches needs no bias
    return np.where(reached, ((1 << shift) + 1) // 2 - first, 0)
