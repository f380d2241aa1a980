"""Random integer networks, and the two runtimes that execute what we write."""

from __future__ import annotations

from typing import Any

import numpy as np

from refqnn import BIPOLAR, IntFormat, Network, Node, Requantize, Rounding, SymmetricQuantizer
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Rescale,
    Reshape,
    SumPool2d,
)
from refqnn.quantizers import (
    AffineQuantizer,
    Dequantizer,
    PowerOfTwoQuantizer,
    ThresholdQuantizer,
)

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


def run_onnxruntime(
    model: Any, X: np.ndarray, level: str = "ORT_ENABLE_ALL", disabled: tuple[str, ...] = ()
) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(disabled) or None,
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


# --- networks of every node kind and every door -------------------------------------------------


def random_door(rng: np.random.Generator, channels: int) -> dict[str, Any]:
    """Codes of a format, or a quantizer of any kind and rounding."""
    fmt = IntFormat(int(rng.integers(1, 9)), bool(rng.integers(2)))
    mode = str(rng.choice([m.value for m in Rounding]))
    pick, axis = rng.integers(6), (1 if rng.random() < 0.3 else None)
    scale = rng.choice((0.25, 0.3, 0.07, 1.0), channels if axis else None)
    if pick == 0:
        return {"input_format": fmt}
    if pick == 1:
        return {"input_quantizer": SymmetricQuantizer(0.5, BIPOLAR)}
    if pick == 2 and fmt.bits > 1:
        zero = int(rng.integers(fmt.q_min, fmt.q_max + 1))
        first = bool(rng.integers(2))
        return {"input_quantizer": AffineQuantizer(scale, zero, fmt, mode, axis, "float32", first)}
    if pick == 3:
        return {"input_quantizer": PowerOfTwoQuantizer(int(rng.integers(-3, 3)), fmt, mode)}
    if pick == 4:
        table = np.sort(rng.normal(size=(channels if axis else 1, fmt.levels - 1)) * 4, axis=1)
        return {"input_quantizer": ThresholdQuantizer(table, fmt, axis)}
    return {"input_quantizer": SymmetricQuantizer(scale, fmt, mode, axis)}


class RandomNetwork:
    """Nodes one after the other, a second branch now and then; accumulators stay small."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        channels = int(rng.integers(1, 4))
        spatial = tuple(int(d) for d in rng.integers(3, 6, rng.integers(3)))
        self.nodes: list[Node] = []
        self.shape: tuple[int, ...] = (channels, *spatial)
        self.start = {"input_shape": self.shape, **random_door(rng, channels)}
        self.last = "input"
        while len(self.nodes) < size:
            self.step()

    def add(self, op: Any, *inputs: str) -> None:
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs or (self.last,)))
        self.last = name
        self.network = Network(self.nodes, **self.start)
        self.shape = self.network.shapes[name]

    def reach(self) -> tuple[int, int]:
        network = Network(self.nodes or [Node("same", Add())], **self.start)
        interval = network.ranges()[self.last]
        return int(interval.lo.min()), int(interval.hi.max())

    def step(self) -> None:
        rng, rank, channels = self.rng, len(self.shape), self.shape[0]
        lo, hi = self.reach()
        if hi - lo > 4000 or rng.random() < 0.25:
            self.requantize(lo, hi)
            return
        pick = rng.integers(12)
        if pick < 3 and rank == 1:
            bias = rng.integers(-9, 10, 3) if rng.random() < 0.5 else None
            self.add(Linear(rng.integers(-3, 4, (3, channels)), bias))
        elif pick < 3 and rank > 1 and min(self.shape[1:]) > 1:
            kind, k = (None, Conv1d, Conv2d)[rank - 1], (2,) * (rank - 1)
            pads, code = int(rng.integers(2)), int(rng.integers(min(lo, 0), max(hi, 0) + 1))
            weight = rng.integers(-2, 3, (2 * channels, 1, *k))
            bias = rng.integers(-9, 10, 2 * channels) if rng.random() < 0.5 else None
            self.add(kind(weight, bias, padding=pads, groups=channels, pad_code=code))
        elif pick == 3 and hi - lo < 300:
            rows = channels if rng.random() < 0.5 else 1
            self.add(Lookup(rng.integers(-20, 20, (rows, hi - lo + 1)), lo))
        elif pick == 4 and rank == 3 and min(self.shape[1:]) > 1:
            self.add(MaxPool2d(2, stride=1))
        elif pick == 5 and rank == 3 and min(self.shape[1:]) > 1:
            self.add(SumPool2d(2, stride=1, padding=1, pad_code=min(max(lo, 1), hi)))
        elif pick == 6 and rank > 1:
            self.add(GlobalSumPool() if rng.random() < 0.5 else Flatten())
        elif pick == 7:
            self.add(Reshape((channels, int(np.prod(self.shape[1:])))))
        elif pick == 8:
            self.add(Add((int(rng.integers(-3, 4)) or 1, 1)), self.last, self.last)
        elif pick == 9 and channels < 6:
            self.add(Concat(), self.last, self.last)
        elif pick == 10:
            shape = rng.integers(1, 5, rng.integers(1, 4))
            index = rng.integers(-1, np.prod(self.shape), shape)
            self.add(Gather(index, self.shape, int(rng.integers(-3, 4))))
        elif pick == 11 and rank == 3 and np.prod(self.shape) < 200:
            self.transposed(channels)

    def transposed(self, channels: int) -> None:
        rng = self.rng
        groups = channels if rng.random() < 0.5 else 1
        of_group = int(rng.integers(1, 3))
        bias = rng.integers(-9, 10, groups * of_group) if rng.random() < 0.5 else None
        stride, dilation = (tuple(int(v) for v in rng.integers(1, 3, 2)) for _ in range(2))
        pads, extra = (((0, 1), (1, 0))[i] for i in rng.integers(0, 2, 2))
        weight = rng.integers(-2, 3, (channels, of_group, 2, 2))
        extra = tuple(min(e, max(ends) - 1) for e, ends in zip(extra, zip(stride, dilation)))
        self.add(ConvTranspose2d(weight, bias, stride, (pads, (0, 0)), extra, dilation, groups))

    def rescale(self) -> None:
        """To the left and to the right, one rounding or two; now and then to more than 8 bits."""
        rng = self.rng
        fmt = IntFormat(
            int(rng.integers(2, 17 if rng.random() < 0.3 else 9)), bool(rng.integers(2))
        )
        modes = rng.choice([m.value for m in Rounding], 2)

        def each(lo: int, hi: int) -> Any:
            return rng.integers(lo, hi, self.shape[0] if rng.random() < 0.5 else None)

        shift = each(1, 8)
        twice = {"first_rounding": modes[1], "first_shift": int(np.min(shift)) // 2}
        self.add(
            Rescale(each(0, 90), shift, fmt, modes[0], each(-3, 4), each(-9, 9),
                    **(twice if rng.random() < 0.3 else {}))
        )  # fmt: skip

    def requantize(self, lo: int, hi: int) -> None:
        rng = self.rng
        if rng.random() < 0.25:
            self.rescale()
            return
        fmt = IntFormat(int(rng.integers(1, 5)), bool(rng.integers(2)), narrow=False)
        rows = self.shape[0] if rng.random() < 0.5 else 1
        if rng.random() < 0.5:
            offset = rng.integers(-9, 9, rows) if rows > 1 else 0
            self.add(Requantize.from_shift(int(rng.integers(0, 5)), fmt, offset=offset))
        else:
            table = np.sort(rng.integers(lo - 1, hi + 2, (rows, fmt.levels - 1)), axis=1)
            self.add(Requantize(table, fmt))


def random_codes(network: Network, rng: np.random.Generator, n: int) -> np.ndarray:
    fmt = network.input_format
    codes = rng.integers(fmt.q_min, fmt.q_max + 1, (n, *network.input_shape))
    codes[0], codes[1] = fmt.q_min, fmt.q_max
    return codes | 1 if fmt == BIPOLAR else codes
