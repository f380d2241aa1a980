"""Random networks for the encrypted tests."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from refqnn import IntFormat, Linear, Network, Node, Requantize, fhe
from refqnn.ops import Conv2d, Flatten

U1, U2, U3 = (IntFormat(bits, signed=False) for bits in (1, 2, 3))


def weights(rng: np.random.Generator, *shape: int, largest: int = 1) -> NDArray[np.int64]:
    """Integers in [-largest, largest]."""
    return rng.integers(-largest, largest + 1, shape)


def mlp(
    seed: int,
    sizes: tuple[int, ...] = (4, 16, 3),
    largest: int = 3,
    codes: IntFormat = U3,
    shift: int = 3,
    rounding: str = "half_up",
    input_format: IntFormat | None = None,
) -> Network:
    """Linear, Requantize, ..., Linear."""
    rng = np.random.default_rng(seed)
    nodes = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        bias = rng.integers(-8, 9, n_out)
        nodes.append(Node(f"fc{i}", Linear(weights(rng, n_out, n_in, largest=largest), bias)))
        if i < len(sizes) - 2:
            nodes.append(Node(f"act{i}", Requantize.from_shift(shift, codes, rounding)))
    return Network(nodes, input_shape=sizes[:1], input_format=input_format or codes)


def with_thresholds(seed: int, levels: int, low: int = -40, high: int = 60) -> Network:
    """A 4-16-3 network whose neurons have thresholds of no pattern, each its own."""
    network = mlp(seed)
    rng = np.random.default_rng(seed)
    thresholds = np.sort(rng.integers(low, high, (16, levels - 1)), axis=1)
    act = Requantize(thresholds, IntFormat((levels - 1).bit_length(), signed=False))
    fc0, _, fc1 = network.nodes
    return Network(
        [fc0, Node("act0", act), fc1], input_shape=(4,), input_format=network.input_format
    )


def cnn(seed: int, size: int = 6) -> Network:
    """Padded, strided convolution on codes of 2 bits, by default 18 neurons behind tables."""
    rng = np.random.default_rng(seed)
    neurons = 2 * (size // 2) ** 2
    nodes = [
        Node("conv", Conv2d(weights(rng, 2, 1, 3, 3), weights(rng, 2), stride=2, padding=1)),
        Node("act", Requantize.from_shift(2, U2)),
        Node("flat", Flatten()),
        Node("fc", Linear(weights(rng, 3, neurons), weights(rng, 3))),
    ]
    return Network(nodes, input_shape=(1, size, size), input_format=U2)


# For what asks whether encrypted integers are right, and nothing of security: smaller keys.
LOOSE = {"global_p_error": 2.0**-30}


@cache
def compiled_mlp() -> fhe.Circuit:
    """`mlp(0)`, which nobody makes keys for."""
    return fhe.compile(mlp(0))


@cache
def encrypted_cnn() -> fhe.Circuit:
    """A convolution of 8 neurons, with keys that are made once."""
    circuit = fhe.compile(cnn(0, size=4), **LOOSE)
    circuit.keygen()
    return circuit


def samples(network: Network, n: int, seed: int = 0) -> NDArray[np.int64]:
    """Random codes and the witnesses of the first layer: the inputs at its neurons' lo and hi."""
    fmt = network.input_format
    rng = np.random.default_rng(seed)
    level = rng.integers(0, fmt.levels, (n, *network.input_shape))
    codes = fmt.q_min + fmt.step * level
    return np.concatenate([witnesses(network), codes]) if n else witnesses(network)


def witnesses(network: Network) -> NDArray[np.int64]:
    """For a first Linear layer: the two inputs per neuron that reach lo and hi; none otherwise."""
    first = network.nodes[0].op
    lowest, highest = network.input_format.q_min, network.input_format.q_max
    if not isinstance(first, Linear):
        ends = [np.full((1, *network.input_shape), end) for end in (lowest, highest)]
        return np.concatenate(ends)
    hi = np.where(first.weight > 0, highest, lowest)  # [out, in]
    lo = np.where(first.weight > 0, lowest, highest)
    return np.concatenate([hi, lo])
