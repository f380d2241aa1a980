"""Random integer networks, and the two runtimes that execute what we write."""

from __future__ import annotations

from typing import Any

import numpy as np

from refqnn import IntFormat, Network, Node, Requantize, SymmetricQuantizer
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Reshape,
    SumPool2d,
)
from refqnn.quantizers import AffineQuantizer, Dequantizer

QUANTIZERS = [
    SymmetricQuantizer(0.25, IntFormat(4, signed=True)),
    SymmetricQuantizer(0.3, IntFormat(3, signed=False)),
    SymmetricQuantizer(0.1, IntFormat(8, signed=True, narrow=True)),
    AffineQuantizer(0.07, 100, IntFormat(8, signed=False)),
    AffineQuantizer(0.25, -3, IntFormat(5, signed=True)),
    AffineQuantizer(0.5, 3, IntFormat(4, signed=False), zero_point_first=True),
    SymmetricQuantizer(0.25, IntFormat(4, signed=True), "floor"),
]


def thresholds(rng: np.random.Generator, channels: int, fmt: IntFormat, spread: int) -> Requantize:
    table = np.sort(rng.integers(-spread, spread, (channels, fmt.levels - 1)), axis=1)
    return Requantize(table, fmt)


def random_dense(rng: np.random.Generator) -> Network:
    quantizer = QUANTIZERS[rng.integers(len(QUANTIZERS))]
    fmt = IntFormat(int(rng.integers(1, 6)), signed=False)
    shift = Requantize.from_shift(
        int(rng.integers(0, 5)), IntFormat(4, True), offset=rng.integers(-9, 9, 5)
    )
    nodes = [
        Node("fc1", Linear(rng.integers(-7, 8, (6, 4)), rng.integers(-20, 20, 6))),
        Node("act1", thresholds(rng, int(rng.choice([1, 6])), fmt, 200)),
        Node("fc2", Linear(rng.integers(-3, 4, (5, 6)))),
        Node("act2", shift),
        Node("table", Lookup(rng.integers(-4, 5, (int(rng.choice([1, 5])), 16)), -8)),
        Node("sum", Add((2, -3)), ("act2", "table")),
        Node("out", Linear(rng.integers(-3, 4, (3, 5)), rng.integers(-5, 5, 3))),
    ]
    return Network(
        nodes,
        input_shape=(4,),
        input_quantizer=quantizer,
        output_dequantizer=Dequantizer([0.5, 0.3, 0.7], [0.0, 1.0, -1.0]),
    )


def random_image(rng: np.random.Generator) -> Network:
    quantizer = QUANTIZERS[rng.integers(len(QUANTIZERS))]
    fmt = quantizer.format
    zero = int(getattr(quantizer, "zero_point", 0))
    unsigned = IntFormat(3, signed=False)
    nodes = [
        Node(
            "conv1",
            Conv2d(
                rng.integers(-4, 5, (4, 2, 3, 2)),
                rng.integers(-9, 9, 4),
                stride=(1, 2),
                padding=((1, 0), (1, 1)),
                pad_code=zero,
            ),
        ),
        Node("act1", thresholds(rng, 4, unsigned, 20 * fmt.q_max)),
        Node("depth", Conv2d(rng.integers(-2, 3, (4, 1, 2, 2)), groups=4, dilation=(2, 1))),
        Node("act2", thresholds(rng, 1, unsigned, 10)),
        Node("max", MaxPool2d(2, stride=1, padding=((0, 1), (1, 0)))),
        Node("sums", SumPool2d((2, 1), padding=((1, 0), (0, 0)), pad_code=2), ("act2",)),
        Node("act3", thresholds(rng, 1, unsigned, 14)),
        Node("both", Concat(), ("max", "max")),
        Node("global", GlobalSumPool(), ("both",)),
        Node("flat", Flatten(), ("act3",)),
        Node("act4", thresholds(rng, 8, IntFormat(2, signed=True), 30), ("global",)),
        Node("wide", Reshape((2, 4)), ("act4",)),
        Node("conv2", Conv1d(rng.integers(-3, 4, (3, 2, 2)), padding=1)),
    ]
    return Network(nodes, input_shape=(2, 6, 7), input_quantizer=quantizer)


def inputs_for(network: Network, rng: np.random.Generator, n: int) -> np.ndarray:
    """Floats that reach every code, ties and saturation included."""
    scale = float(np.asarray(network.input_quantizer.scale))
    zero = int(getattr(network.input_quantizer, "zero_point", 0))
    fmt = network.input_format
    codes = rng.integers(2 * fmt.q_min - 3, 2 * fmt.q_max + 3, (n, *network.input_shape))
    return ((codes / 2 - zero) * scale).astype(np.float32)


def run_onnxruntime(model: Any, X: np.ndarray, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: X})[0]


def run_qonnx(model: Any, X: np.ndarray) -> np.ndarray:
    """qonnx's executor takes the batch that the file declares: one sample at a time here."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    wrapper = ModelWrapper(model)
    name = model.graph.input[0].name
    rows = [next(iter(execute_onnx(wrapper, {name: x[None]}).values())) for x in X]
    return np.concatenate(rows)
