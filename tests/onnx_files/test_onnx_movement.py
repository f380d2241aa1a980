"""Operators that move values or repeat them, against onnxruntime, with random parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto
from onnx_graphs import Graph
from onnx_networks import run_onnxruntime

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch
from refqnn.onnx import from_onnx

SHAPE = (4, 4, 6)
Rng = np.random.Generator
Movement = Callable[[Graph, Rng], None]


def integers(g: Graph, values: object) -> str:
    return g.const(np.asarray(values), np.int64)


def slices(g: Graph, rng: Rng) -> None:
    axes = rng.permutation([1, 2, -1])[: rng.integers(1, 4)]
    starts, ends, steps = [], [], []
    for _ in axes:
        forward = bool(rng.integers(2))
        first, last = sorted(rng.choice(4, 2, replace=False).tolist())
        starts.append(first if forward else int(rng.choice([last, -1, 2**40])))
        ends.append(int(rng.choice([last, 2**62, -1])) if forward else -(2**62))
        steps.append(int(rng.integers(1, 3)) * (1 if forward else -1))
        if forward and ends[-1] == -1:
            starts[-1] = 0
    g.add("Slice", *(integers(g, v) for v in (starts, ends, axes, steps)))


def split(g: Graph, rng: Rng) -> None:
    axis, first = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    size = SHAPE[axis - 1]
    g.add("Split", integers(g, [first, size - first]), outputs=2, axis=axis)
    a = g.last
    g.add("Concat", "", f"{a}_1", a, f"{a}_1", axis=axis)


def split_evenly(g: Graph, rng: Rng) -> None:
    a = g.add("Split", outputs=3, axis=-1, num_outputs=3)
    g.add("Concat", "", f"{a}_2", a, f"{a}_1", axis=int(rng.integers(1, 4)))


def split_unevenly(g: Graph, rng: Rng) -> None:
    g.add("Slice", *(integers(g, [v]) for v in (1, 9, 3)))
    a = g.add("Split", outputs=3, axis=3, num_outputs=3)
    g.add("Concat", "", a, f"{a}_2", f"{a}_1", axis=3)
    del rng


def resize(g: Graph, rng: Rng) -> None:
    where = str(rng.choice(["asymmetric", "half_pixel", "pytorch_half_pixel"]))
    nearest = rng.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
    factors = rng.integers(1, 4, 3)
    words = {"coordinate_transformation_mode": where, "nearest_mode": str(nearest)}
    if rng.integers(2):
        g.add("Resize", "", g.last, "", g.const([1, *factors]), mode="nearest", **words)
    else:
        sizes = integers(g, [9, *(factors * SHAPE)])
        g.add("Resize", "", g.last, "", "", sizes, mode="nearest", **words)


def blocks(op: str, **attributes: object) -> Movement:
    return lambda g, rng: g.add(op, blocksize=2, **attributes)


def tile(g: Graph, rng: Rng) -> None:
    g.add("Tile", integers(g, [1, *rng.integers(1, 4, 3)]))


def expand(g: Graph, rng: Rng) -> None:
    axis = int(rng.integers(1, 4))
    g.add("Slice", *(integers(g, [v]) for v in (1, 2, axis)))
    shape = list(SHAPE)
    shape[axis - 1] = int(rng.integers(2, 5))
    g.add("Expand", integers(g, shape if rng.integers(2) else [1, *shape]))


def concat(g: Graph, rng: Rng) -> None:
    g.add("Concat", "", g.last, g.last, axis=int(rng.choice([2, 3, -1])))


def pads(rng: Rng, channels: bool = False) -> list[int]:
    p = rng.integers(0, 3, 8)
    p[[0, 4]] = 0
    p[[1, 5]] *= channels
    p[3] += 1
    return p.tolist()


def pad(g: Graph, rng: Rng, value: float = 0.0, channels: bool = False, **words: str) -> None:
    g.add("Pad", integers(g, pads(rng, channels)), *([] if words else [g.const(value)]), **words)


def pool(g: Graph, rng: Rng) -> None:
    g.add("MaxPool", kernel_shape=[2, 3], pads=[1, 0, 0, 1], strides=rng.integers(1, 3, 2).tolist())


def convolve(g: Graph, rng: Rng, **attributes: object) -> None:
    g.add("Conv", g.const(rng.integers(-3, 4, (2, 4, 2, 2)) / 4), **attributes)


def average(g: Graph, rng: Rng, **attributes: object) -> None:
    g.add("AveragePool", kernel_shape=[2, 2], strides=[1, 2], **attributes)


def broadcast(g: Graph, rng: Rng) -> None:
    """A sum of which each operand may have axes of size 1."""
    x = g.last
    axes = rng.permutation([1, 2, 3])
    first = g.add("Slice", *(integers(g, [v]) for v in (1, 2, axes[0])))
    g.last = x
    if rng.integers(2):
        g.add("Slice", *(integers(g, v) for v in ([0, 1], [1, 2], axes[1:])))
    g.add(str(rng.choice(["Add", "Sub"])), first)


def after(*parts: Movement) -> Movement:
    def add(g: Graph, rng: Rng) -> None:
        for part in parts:
            part(g, rng)

    return add


def one(value: float) -> Movement:
    return lambda g, rng: pad(g, rng, value)


def op(name: str) -> Movement:
    return lambda g, rng: g.add(name)


def halves(g: Graph, rng: Rng) -> None:
    """A pending product per channel."""
    g.add("Mul", g.const(2.0 ** rng.integers(-1, 2, (4, 1, 1))))


MOVEMENTS: dict[str, Movement] = {
    "slice": slices,
    "slice_of_scaled": after(halves, slices),
    "split": split,
    "split_evenly": split_evenly,
    "split_unevenly": split_unevenly,
    "resize": resize,
    "resize_of_scaled": after(halves, resize, pool),
    "depth_to_space": blocks("DepthToSpace"),
    "depth_to_space_crd": blocks("DepthToSpace", mode="CRD"),
    "space_to_depth": blocks("SpaceToDepth"),
    "tile": tile,
    "expand": expand,
    "concat": concat,
    "pad": pad,
    "pad_channels": lambda g, rng: pad(g, rng, -0.75, channels=True),
    "pad_edge": lambda g, rng: pad(g, rng, mode="edge", channels=True),
    "pad_reflect": lambda g, rng: pad(g, rng, mode="reflect"),
    "pad_of_scaled": after(halves, pad, slices),
    "pad_before_pool": after(one(1.5), pool),
    "pad_of_scaled_before_pool": after(halves, pad, pool),
    "pad_of_relu": after(op("Relu"), one(0.5), pool),
    "relu_of_pad": after(one(1.5), op("Relu"), convolve),
    "neg_of_pad": after(one(-1.0), op("Neg"), convolve),
    "pad_twice": after(one(0.0), one(1.5), convolve),
    "pad_before_same": after(
        pad, lambda g, rng: convolve(g, rng, auto_pad="SAME_UPPER", strides=[2, 2])
    ),
    "pads_of_two_values": after(one(1.25), lambda g, rng: convolve(g, rng, pads=[1, 0, 1, 2])),
    "pad_before_padded_average": after(
        one(1.25), lambda g, rng: average(g, rng, pads=[1, 0, 0, 1], count_include_pad=1)
    ),
    "pad_before_ceil_average": after(one(0.0), op("Identity"), average),
    "pad_before_global": after(one(2.0), op("GlobalMaxPool")),
    "broadcast": broadcast,
    "padded_sum": after(one(0.5), lambda g, rng: g.add("Add", g.last)),
    "pad_before_product": after(one(0.5), halves, pool),
    "pad_before_shape": after(pad, op("Flatten")),
}


def agree(g: Graph, rng: Rng) -> None:
    g.codes(0.125, 3)
    model = g.model()
    network = from_onnx(model)
    X = (rng.integers(-40, 40, (9, *SHAPE)) / 8).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


@pytest.mark.parametrize("zero", [0, 5])
@pytest.mark.parametrize("name", MOVEMENTS)
def test_movements(name, zero):
    for seed in range(6):
        rng = np.random.default_rng([seed, zero, len(name)])
        g = Graph(SHAPE)
        g.input.type.tensor_type.shape.dim[0].dim_value = 9
        g.quantize(0.25, zero, np.int8)
        MOVEMENTS[name](g, rng)
        agree(g, rng)


def transpose(g: Graph, rng: Rng) -> None:
    g.add("Transpose", perm=[0, *rng.permutation([1, 2, 3]).tolist()])


OF_FLOATS: dict[str, Movement] = {
    **{k: MOVEMENTS[k] for k in ("slice", "slice_of_scaled", "resize", "depth_to_space", "tile")},
    **{k: MOVEMENTS[k] for k in ("space_to_depth", "expand", "pad_edge", "pad_reflect")},
    "transpose": transpose,
    "transpose_of_slice": after(slices, transpose),
    "slice_of_transpose": after(transpose, slices),
    "one_part": lambda g, rng: g.add("Split", integers(g, [1, 3]), outputs=2, axis=1),
}


@pytest.mark.parametrize("name", OF_FLOATS)
def test_movements_of_the_float_input(name):
    """In front of the first quantizer, and of a scale for each channel or one that differs."""
    for seed in range(6):
        rng = np.random.default_rng([seed, len(name)])
        g = Graph(SHAPE)
        g.input.type.tensor_type.shape.dim[0].dim_value = 9
        OF_FLOATS[name](g, rng)
        if seed % 2:
            g.add("Mul", g.const(0.75))
        g.quantize(0.25, 3, np.int8)
        agree(g, rng)


def test_copies_of_one_float_that_are_treated_differently_are_refused():
    g = Graph((1, 2))
    g.add("Tile", integers(g, [1, 2, 1]))
    g.add("Mul", g.const([[1.0], [3.0]]))
    g.codes(0.25)
    with pytest.raises(NotCovered, match="copies of one value of the float input"):
        from_onnx(g.model())


def test_upsample_of_old_files():
    for opset, op_type in ((9, "Upsample"), (10, "Resize")):
        g = Graph((2, 3, 4), TensorProto.INT8, opset=opset)
        g.add("Cast", to=TensorProto.FLOAT)
        g.add(op_type, g.const([1.0, 1.0, 2.0, 3.0]), mode="nearest")
        model = g.model(TensorProto.FLOAT)
        X = np.random.default_rng(0).integers(-128, 128, (5, 2, 3, 4)).astype(np.int8)
        got = from_onnx(model).forward(X)
        np.testing.assert_array_equal(got, run_onnxruntime(model, X, "ORT_DISABLE_ALL"))


def test_pad_of_integers_is_the_integer_itself():
    g = Graph((2, 3), TensorProto.INT8)
    g.add("Pad", integers(g, [0, 0, 1, 0, 0, 1]), g.const(-7, np.int8))
    g.add("DequantizeLinear", g.const(0.5), g.const(5, np.int8))
    g.add("Conv", g.const([[[1.0, -2], [0.5, 3]]]), pads=[1, 1])
    model = g.model(TensorProto.FLOAT)
    X = np.random.default_rng(0).integers(-128, 128, (5, 2, 3)).astype(np.int8)
    network = from_onnx(model)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.dequantize_output(network.forward(X)), expected)


def test_operands_of_different_ranks_are_refused():
    g = Graph((2, 2))
    x = g.quantize(0.25, 0, np.int8)
    g.add("Slice", *(integers(g, [v]) for v in (1, 2, 1)))
    g.add("Squeeze", integers(g, [1]))
    g.add("Add", x)
    g.codes(0.25)
    with pytest.raises(NotCovered, match="different ranks"):
        from_onnx(g.model())


@pytest.mark.parametrize(
    ("add", "error"),
    [
        (lambda g: g.add("Slice", *(integers(g, [v]) for v in (0, 1, 0))), NotCovered),
        (lambda g: g.add("Slice", *(integers(g, [v]) for v in (2, 2, 1))), ShapeMismatch),
        (lambda g: g.add("Split", integers(g, [3, 2]), outputs=2, axis=1), FileFormatError),
        (lambda g: g.add("Tile", integers(g, [2, 1, 1, 1])), NotCovered),
        (lambda g: g.add("DepthToSpace", blocksize=3), FileFormatError),
        (lambda g: g.add("Concat", "", g.last, g.last, axis=4), FileFormatError),
        (lambda g: pad(g, np.random.default_rng(0), 0.3), NotCovered),
        (lambda g: g.add("Tile", integers(g, [1, 2**20, 2**20, 2**20])), NotCovered),
    ],
)
def test_refusals(add, error):
    g = Graph(SHAPE)
    g.quantize(0.25, 0, np.int8)
    add(g)
    g.codes(0.25)
    with pytest.raises(error, match="node"):
        from_onnx(g.model())
