"""Networks and domains for the tests of accumulators, and the slow way to know their bounds."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import strategies as st

from refqnn import IntFormat, Linear, Network, Node, Requantize, exact
from refqnn.formats import BIPOLAR
from refqnn.ops import (
    Add,
    Concat,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Lookup,
    MaxPool2d,
    SumPool2d,
)


def brute_force(network, rows):
    """Least and greatest value of every node over the rows, in plain Python integers."""
    traces = exact.trace(network, np.asarray(rows).tolist())
    seen = {}
    for name, values in traces.items():
        array = np.array(values, dtype=object)
        seen[name] = array.min(axis=0), array.max(axis=0)
    return seen


def all_inputs(network):
    """Every input of a small network, [n, *input_shape]."""
    fmt = network.input_format
    codes = range(fmt.q_min, fmt.q_max + 1, fmt.step)
    rows = product(codes, repeat=int(np.prod(network.input_shape)))
    return np.array(list(rows)).reshape(-1, *network.input_shape)


def integers(draw, shape, lo, hi):
    size = int(np.prod(shape))
    values = draw(st.lists(st.integers(lo, hi), min_size=size, max_size=size))
    return np.array(values).reshape(shape)


def requantize(draw, channels):
    fmt = IntFormat(draw(st.integers(1, 2)), signed=False)
    rows = np.sort(integers(draw, (channels, fmt.levels - 1), -6, 9), axis=1)
    return Requantize(rows, fmt)


@st.composite
def chains(draw):
    """Linear, activation, Linear, activation, Linear on two to four inputs."""
    fmt = draw(
        st.sampled_from([IntFormat(1, False), IntFormat(2, False), IntFormat(2, True), BIPOLAR])
    )
    sizes = [draw(st.integers(2, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3)), 2]
    nodes = []
    for i in range(3):
        weight = integers(draw, (sizes[i + 1], sizes[i]), -3, 3)
        bias = integers(draw, (sizes[i + 1],), -4, 4) if draw(st.booleans()) else None
        nodes.append(Node(f"fc{i}", Linear(weight, bias)))
        if i < 2 and draw(st.integers(0, 3)):
            nodes.append(Node(f"act{i}", requantize(draw, sizes[i + 1])))
        elif i < 2:
            table = integers(draw, (draw(st.sampled_from([1, sizes[i + 1]])), 401), -2, 3)
            nodes.append(Node(f"act{i}", Lookup(table, lo=-200)))
    return Network(nodes, input_shape=(sizes[0],), input_format=fmt)


@st.composite
def graphs(draw):
    """A small convolutional graph with a residual Add, Concat and every kind of pooling."""
    channels = draw(st.integers(1, 2))
    weight = integers(draw, (2, channels, 2, 2), -2, 2)
    padding = draw(st.sampled_from([0, 1, ((1, 0), (0, 1))]))
    conv = Conv2d(weight, integers(draw, (2,), -2, 2), padding=padding, pad_code=draw(
        st.integers(-1, 1)
    ))  # fmt: skip
    depthwise = Conv2d(integers(draw, (2, 1, 1, 1), -2, 2), groups=2)
    nodes = [
        Node("conv", conv),
        Node("act", requantize(draw, 2)),
        Node("depthwise", depthwise),
        Node("residual", Add((1, draw(st.sampled_from([1, -2])))), ("depthwise", "act")),
        Node("act2", requantize(draw, 2)),
    ]
    size = conv.out_shape((channels, 2, 2))[1]
    if size >= 2:
        nodes.append(Node("max", MaxPool2d(2, stride=1), ("act2",)))
        nodes.append(Node("sum", SumPool2d(2, stride=1, padding=1, pad_code=1), ("act2",)))
    else:
        nodes.append(Node("max", MaxPool2d(1), ("act2",)))
        nodes.append(Node("sum", SumPool2d(1), ("act2",)))
    nodes += [
        Node("flat", Flatten(), ("max",)),
        Node("pooled", GlobalSumPool(), ("sum",)),
        Node("joined", Concat(), ("flat", "pooled")),
    ]
    before = Network(nodes, input_shape=(channels, 2, 2), input_format=IntFormat(1, False))
    columns = before.shapes["joined"][0]
    nodes.append(Node("out", Linear(integers(draw, (2, columns), -2, 2))))
    return Network(nodes, input_shape=(channels, 2, 2), input_format=IntFormat(1, False))


networks = chains() | graphs()
