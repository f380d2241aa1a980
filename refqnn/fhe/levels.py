"""What a client sends: codes, and the levels of those inputs that some neuron reads alone.

A function of one code c, of q_min, q_min + s, ..., q_max, is a sum over the levels that c reaches:

    f(c) = f(q_min) + sum_j (f(q_min + j s) - f(q_min + (j - 1) s)) * [c >= q_min + j s]

So a neuron that depends on a single input needs no lookup when the client sends the bits
[c >= q_min + j s] beside c.  It sends all of them: it has to know which inputs, and no f.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.formats import IntFormat
from refqnn.network import INPUT, Network, inputs_of
from refqnn.ops import Concat, Conv1d, Conv2d, Flatten, Linear, Lookup, Op, Reshape
from refqnn.requantize import Requantize

__all__ = ["arguments", "level_codes", "only_inputs"]

IntVector = NDArray[np.int64]


def level_codes(fmt: IntFormat) -> IntVector:
    """The codes above the lowest one, [levels - 1]."""
    return fmt.q_min + fmt.step * np.arange(1, fmt.levels)


def arguments(
    codes: IntVector, fmt: IntFormat, low: int, step: int, read_alone: IntVector
) -> IntVector:
    """The integers that a circuit takes for codes.

    Args:
        codes: [n, *input_shape], checked.
        low, step: a code c enters as (c - low) / step.
        read_alone: flat indices [k] of the inputs whose levels are sent.

    Returns: [n, *input_shape], or for k > 0 the codes and then the levels of each of these inputs:
        [n, size + k * (levels - 1)].

    >>> arguments(np.array([[2, 0]]), IntFormat(2, signed=False), 0, 1, np.array([0])).tolist()
    [[2, 0, 1, 1, 0]]
    """
    entered = (codes - low) // step
    if len(read_alone) == 0:
        return entered
    n = len(codes)
    bits = codes.reshape(n, -1)[:, read_alone, None] >= level_codes(fmt)  # [n, k, levels - 1]
    return np.concatenate([entered.reshape(n, -1), bits.reshape(n, -1)], axis=1)


def only_inputs(network: Network) -> dict[str, IntVector]:
    """For every element of every value the flat index of the one input it depends on, else -1."""
    shape = network.input_shape
    found = {INPUT: np.arange(prod(shape)).reshape(shape)}
    for node in network.nodes:
        sources = [found[name] for name in inputs_of(node)]
        found[node.name] = _only_input(node.op, sources, network.shapes[node.name])
    return found


def _only_input(op: Op, sources: list[IntVector], shape: Any) -> IntVector:
    if isinstance(op, (Requantize, Lookup)):
        return sources[0]
    if isinstance(op, (Flatten, Reshape)):
        return sources[0].reshape(shape)
    if isinstance(op, Concat):
        return np.concatenate(sources)
    if isinstance(op, (Linear, Conv1d, Conv2d)):
        return _sum_of_one(op, sources[0])
    return np.full(shape, -1)


def _sum_of_one(op: Linear | Conv1d | Conv2d, source: IntVector) -> IntVector:
    """The source's index where a sum has a single weight that is not zero."""
    more: dict[str, Any] = {} if isinstance(op, Linear) else {"pad_code": 0}
    count = replace(op, weight=(op.weight != 0).astype(np.int64), bias=None, **more)

    def summed(values: IntVector) -> IntVector:
        total: IntVector = count.forward(values[None])[0]
        return total

    terms = summed(np.ones_like(source))
    return np.where(terms == 1, summed(source), -1)
