"""from_onnx against onnxruntime, operator by operator, on scales where float32 is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto
from onnx_graphs import Graph
from onnx_networks import run_onnxruntime, run_qonnx

from refqnn import IntFormat, SymmetricQuantizer
from refqnn.errors import InvalidArgument, NotCovered
from refqnn.onnx import from_onnx, read_onnx
from refqnn.ops import Add, Linear, Lookup
from refqnn.requantize import Requantize

RNG = np.random.default_rng(0)
W = RNG.integers(-7, 8, (6, 4)) / 8
K = RNG.integers(-3, 4, (4, 3, 3, 2)) / 4
GAMMA = np.array([0.5, -1.25, 2.0, 0.75, -0.5, 1.0])


def dense(g: Graph) -> None:
    """A layer of 6 outputs, weights dequantized from int8."""
    w = g.const(W * 8, np.int8)
    x = g.last
    g.last = w
    g.add("DequantizeLinear", g.const(0.125), g.const(0, np.int8))
    weights, g.last = g.last, x
    g.add("Gemm", weights, g.const(RNG.integers(-9, 9, 6) / 7), transB=1)


def conv(g: Graph, **attributes: object) -> None:
    g.add("Conv", g.const(K), g.const(np.array([0.5, -1, 0.3, 2])), **attributes)


def batch_norm(g: Graph, channels: int) -> None:
    rng = np.random.default_rng(1)
    gamma = np.resize(GAMMA, channels)
    parameters = (
        gamma,
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.uniform(0.5, 2, channels),
    )
    g.add("BatchNormalization", *(g.const(p) for p in parameters))


def unary(op: str, **attributes: object) -> Callable[[Graph], None]:
    def add(g: Graph) -> None:
        dense(g)
        g.add(op, **attributes)

    return add


def skip(g: Graph) -> None:
    start = g.last
    g.quantize(0.25)
    other = g.last
    g.last = start
    g.quantize(1.0)
    g.add("Add", other)


def subtract(g: Graph) -> None:
    start = g.last
    g.quantize(0.25)
    other = g.last
    g.last = start
    g.add("Relu")
    g.quantize(0.5, 3, np.uint8)
    g.add("Sub", other)


def silu(g: Graph) -> None:
    dense(g)
    x = g.last
    g.add("Sigmoid")
    g.add("Mul", x)


def dense_by_matmul(g: Graph) -> None:
    g.add("MatMul", g.const(W.T))
    g.add("Add", g.const(RNG.integers(-9, 9, 6) / 8))
    g.add("Mul", g.const([[1, 2, 0.5, -1, -2, 4]]))
    g.add("Sub", g.const(0.125))
    g.add("Div", g.const(3.0))


def constant_minus(g: Graph) -> None:
    dense(g)
    x = g.last
    g.last = g.const(1.5)
    g.add("Sub", x)


VECTORS: dict[str, Callable[[Graph], None]] = {
    "gemm": dense,
    "matmul_and_affine": dense_by_matmul,
    "constant_minus": constant_minus,
    "batch_norm": lambda g: (dense(g), batch_norm(g, 6)),
    "batch_norm_relu": lambda g: (dense(g), batch_norm(g, 6), g.add("Relu")),
    "relu": unary("Relu"),
    "clip": lambda g: (dense(g), g.add("Clip", g.const(-0.5), g.const(6.0))),
    "min_max": lambda g: (dense(g), g.add("Min", g.const(2.0)), g.add("Max", g.const(-1.0))),
    "leaky": unary("LeakyRelu", alpha=0.25),
    "prelu": lambda g: (dense(g), g.add("PRelu", g.const([0.5, 0.25, 2, 1, 0, 0.125]))),
    "hard_sigmoid": unary("HardSigmoid", alpha=0.25, beta=0.5),
    "neg": unary("Neg"),
    "abs": unary("Abs"),
    "sigmoid": unary("Sigmoid"),
    "tanh": unary("Tanh"),
    "softplus": unary("Softplus"),
    "elu": unary("Elu", alpha=0.5),
    "erf": unary("Erf"),
    "hard_swish": unary("HardSwish"),
    "silu": silu,
    "gelu": unary("Gelu"),
    "skip": skip,
    "subtract": subtract,
    "reshape": lambda g: (g.add("Reshape", g.const([-1, 2, 2], np.int64)), g.add("Flatten")),
    "unsqueeze": lambda g: (
        g.add("Unsqueeze", g.const([2], np.int64)),
        g.add("Squeeze", g.const([2], np.int64)),
        dense(g),
    ),
    "identity": lambda g: (g.add("Identity"), g.add("Dropout"), dense(g)),
}

IMAGES: dict[str, Callable[[Graph], None]] = {
    "conv": lambda g: conv(g, pads=[1, 0, 2, 1], strides=[1, 2]),
    "conv_same": lambda g: conv(g, auto_pad="SAME_LOWER", strides=[2, 1]),
    "conv_dilated": lambda g: conv(g, dilations=[1, 2], auto_pad="VALID"),
    "conv_batch_norm_pool": lambda g: (
        conv(g),
        batch_norm(g, 4),
        g.add("MaxPool", kernel_shape=[2, 2], strides=[1, 2], pads=[1, 0, 0, 1]),
    ),
    "pad": lambda g: (
        g.add("Pad", g.const([0, 0, 1, 0, 0, 0, 0, 2], np.int64)),
        conv(g),
    ),
    "pad_with_a_value": lambda g: (
        g.add("Pad", g.const([0, 0, 1, 0, 0, 0, 0, 2], np.int64), g.const(1.5)),
        conv(g),
    ),
    "max_pool_ceil": lambda g: g.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "average_pool": lambda g: g.add("AveragePool", kernel_shape=[2, 3], strides=[1, 2]),
    "average_pool_padded": lambda g: g.add(
        "AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1
    ),
    "average_pool_of_what_is_inside": lambda g: g.add(
        "AveragePool", kernel_shape=[3, 2], pads=[1, 1, 2, 1], strides=[2, 1]
    ),
    "global_max": lambda g: (g.add("GlobalMaxPool"), g.add("Flatten")),
    "global_average": lambda g: (g.add("GlobalAveragePool"), g.add("Flatten")),
    "reduce_mean": lambda g: g.add("ReduceMean", g.const([2, 3], np.int64), keepdims=0),
    "reduce_sum": lambda g: g.add("ReduceSum", g.const([-1, -2], np.int64)),
    "concat": lambda g: (g.add("Concat", g.last, axis=1), conv_of_concat(g)),
    "per_position_bias": lambda g: g.add("Add", g.const(np.arange(7.0) / 4)),
    "transpose": lambda g: (g.add("Transpose", perm=[0, 2, 3, 1]), g.add("Flatten")),
    "depthwise": lambda g: g.add("Conv", g.const(RNG.integers(-3, 4, (6, 1, 2, 2)) / 4), group=3),
}


def conv_of_concat(g: Graph) -> None:
    g.add("Conv", g.const(RNG.integers(-3, 4, (2, 6, 2, 2)) / 4))


def agree(g: Graph, shape: tuple[int, ...], n: int = 60, type_: int = TensorProto.INT8) -> None:
    model = g.model(type_)
    network = from_onnx(model)
    rng = np.random.default_rng(5)
    X = (rng.integers(-40, 40, (n, *shape)) / 8).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


@pytest.mark.parametrize("zero", [0, 5])
@pytest.mark.parametrize("name", VECTORS)
def test_operators_on_vectors(name, zero):
    g = Graph((4,))
    g.quantize(0.25, zero, np.int8, clip=(-8, 7) if zero == 0 else None)
    VECTORS[name](g)
    g.codes(0.0625 if name in ("sigmoid", "tanh", "erf", "hard_sigmoid") else 0.125, 3)
    agree(g, (4,), 300)


@pytest.mark.parametrize("zero", [0, 5])
@pytest.mark.parametrize("name", IMAGES)
def test_operators_on_images(name, zero):
    g = Graph((3, 6, 7))
    g.quantize(0.25, zero, np.int8)
    IMAGES[name](g)
    g.codes(0.125, -2)
    agree(g, (3, 6, 7), 12)


def test_per_channel_scales_of_weights_and_activations():
    g = Graph((3, 5, 5))
    g.quantize([0.25, 0.5, 1.0], axis=1)
    g.add("Conv", g.const(RNG.integers(-3, 4, (6, 1, 2, 2)) / 4), group=3)
    g.quantize([0.5, 0.25, 1.0, 0.5, 2.0, 0.125], axis=1)
    g.add("MaxPool", kernel_shape=[2, 2])
    g.codes(0.5)
    agree(g, (3, 5, 5), 30)


def test_one_dimensional_convolution_and_pooling():
    g = Graph((2, 9))
    g.quantize(0.25)
    g.add("Conv", g.const(RNG.integers(-3, 4, (3, 2, 3)) / 4), pads=[1, 1])
    g.add("MaxPool", kernel_shape=[2], strides=[2])
    g.add("Flatten")
    g.codes(0.5)
    agree(g, (2, 9))


def test_integer_operators():
    g = Graph((5,), TensorProto.UINT8)
    w = RNG.integers(-100, 100, (5, 3))
    g.add("MatMulInteger", g.const(w, np.int8), g.const(7, np.uint8), g.const([1, -2, 3], np.int8))
    g.add("Cast", to=TensorProto.FLOAT)
    g.add("Mul", g.const([0.5, 0.25, 0.125]))
    g.add("Relu")
    model_scale = g.codes(4.0, 9, np.uint8)
    assert model_scale
    model = g.model(TensorProto.UINT8)
    network = from_onnx(model)
    X = RNG.integers(0, 256, (200, 5)).astype(np.uint8)
    np.testing.assert_array_equal(network.forward(X), run_onnxruntime(model, X, "ORT_DISABLE_ALL"))


def test_qlinear_operators_and_their_padding():
    g = Graph((2, 5, 5), TensorProto.UINT8)
    g.add(
        "QLinearConv",
        g.const(0.5), g.const(9, np.uint8),
        g.const(RNG.integers(-9, 9, (3, 2, 3, 3)), np.int8), g.const([0.25, 0.5, 0.125]),
        g.const([0, 0, 0], np.int8), g.const(4.0), g.const(100, np.uint8),
        g.const([5, -7, 0], np.int32), pads=[1, 1, 0, 1],
    )  # fmt: skip
    g.add("Flatten")
    g.add(
        "QLinearMatMul",
        g.const(4.0), g.const(100, np.uint8),
        g.const(RNG.integers(-9, 9, (60, 4)), np.int8), g.const(0.5), g.const(0, np.int8),
        g.const(64.0), g.const(250, np.uint8),
    )  # fmt: skip
    model = g.model(TensorProto.UINT8)
    network = from_onnx(model)
    X = RNG.integers(0, 256, (50, 2, 5, 5)).astype(np.uint8)
    np.testing.assert_array_equal(network.forward(X), run_onnxruntime(model, X, "ORT_DISABLE_ALL"))


# --- QONNX ---------------------------------------------------------------------------------------

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


def quant(
    g: Graph, scale: float, bits: float, domain: str = DOMAINS[0], zero: float = 0.0, **attributes
):
    attributes = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND", **attributes}
    return g.add("Quant", g.const(scale), g.const(zero), g.const(bits), domain=domain, **attributes)


def qonnx_graph(domain: str, mode: str = "ROUND", zero: float = 0.0) -> Graph:
    g = Graph((4,))
    quant(g, 0.25, 4, domain)
    x = g.last
    g.last = g.const(W + 0.06)
    quant(g, 0.125, 4, domain, narrow=1)
    g.add("Transpose", perm=[1, 0])
    w, g.last = g.last, x
    g.add("MatMul", w)
    quant(g, 0.5, 5, domain, zero, rounding_mode=mode, signed=0)
    return g


@pytest.mark.parametrize("domain", DOMAINS)
def test_quant_means_the_same_in_every_domain_with_or_without_its_opset(domain):
    g = qonnx_graph(domain)
    model = g.model(TensorProto.FLOAT)
    expected = from_onnx(qonnx_graph(DOMAINS[0]).model(TensorProto.FLOAT))
    del model.opset_import[1:]
    network = from_onnx(model)
    assert network.digest == expected.digest


@pytest.mark.parametrize("zero", [0.0, 3.0])
@pytest.mark.parametrize("mode", ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"])
def test_rounding_modes_as_the_qonnx_executor_has_them(mode, zero):
    pytest.importorskip("qonnx")
    g = qonnx_graph(DOMAINS[0], mode, zero)
    model = g.model(TensorProto.FLOAT)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 6
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    inferred = ModelWrapper(model).transform(InferShapes()).model
    network = from_onnx(model)
    X = (RNG.integers(-20, 20, (25, 4)) / 8).astype(np.float32)
    np.testing.assert_array_equal(network.predict(X), run_qonnx(inferred, X))


@pytest.mark.parametrize("zero", [0.0, 3.0])
@pytest.mark.parametrize("mode", ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"])
def test_rounding_modes_of_the_input(mode, zero):
    quantizers = pytest.importorskip("qonnx.custom_op.general.intquant")
    g = Graph((4,))
    quant(g, 0.5, 4, zero=zero, rounding_mode=mode)
    g.add("MatMul", g.const(np.eye(4)))
    network = from_onnx(g.model(TensorProto.FLOAT))
    X = (np.arange(-120, 120).reshape(-1, 4) / 16).astype(np.float32)
    arguments = [np.float32(v) for v in (0.5, zero, 4)]
    expected = quantizers.int_quant(X, *arguments, signed=True, narrow=False, rounding_mode=mode)
    np.testing.assert_array_equal(network.predict(X), expected)


def test_bipolar_codes_and_weights():
    g = Graph((4,))
    quant(g, 0.25, 4)
    x = g.last
    g.last = g.const(W.T)
    g.add("BipolarQuant", g.const(0.5), domain=DOMAINS[0])
    w, g.last = g.last, x
    g.add("MatMul", w)
    g.add("BipolarQuant", g.const(2.0), domain=DOMAINS[0])
    g.add("MatMul", g.const(RNG.integers(-3, 4, (6, 3))))
    network = from_onnx(g.model(TensorProto.FLOAT))
    X = (RNG.integers(-20, 20, (60, 4)) / 8).astype(np.float32)
    hidden = np.where(np.clip(np.rint(X / 0.25), -8, 7) @ np.where(W.T >= 0, 1, -1) >= 0, 2.0, -2.0)
    last = np.asarray(from_initializer(g, -1))
    np.testing.assert_array_equal(network.predict(X), (hidden @ last).astype(np.float32))


def test_a_count_of_equal_bits():
    g = Graph((9,))
    g.add("MultiThreshold", g.const([[0.25]]), domain=DOMAINS[0], out_dtype="BINARY")
    bits = RNG.integers(0, 2, (9, 4))
    g.add("XnorPopcountMatMul", g.const(bits), domain=DOMAINS[0])
    network = from_onnx(g.model(TensorProto.FLOAT))
    X = RNG.normal(size=(50, 9)).astype(np.float32)
    equal = ((X >= 0.25)[:, :, None] == bits).sum(axis=1)
    np.testing.assert_array_equal(network.predict(X), equal)


def from_initializer(g: Graph, index: int) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(g.initializers[index])


@pytest.mark.parametrize("bias", [0.0, -8.0, -7.5, 0.3])
@pytest.mark.parametrize("rows", [1, 6])
def test_multi_threshold(rows, bias):
    table = np.sort(RNG.normal(size=(rows, 15)) * 4).astype(np.float32)
    g = Graph((4,))
    quant(g, 0.25, 4)
    g.add("MatMul", g.const(W.T))
    g.add("MultiThreshold", g.const(table), domain=DOMAINS[0], out_scale=1.0, out_bias=bias,
          out_dtype="INT4")  # fmt: skip
    g.add("MatMul", g.const(np.eye(6)))
    X = (RNG.integers(-20, 20, (60, 4)) / 8).astype(np.float32)
    acc = np.clip(np.rint(X / 0.25), -8, 7) * 0.25 @ W.T
    counts = (acc[:, :, None] >= np.broadcast_to(table, (6, 15))).sum(axis=2)
    expected = (counts + np.float32(bias)).astype(np.float32)
    if bias == 0.3:
        with pytest.raises(NotCovered, match=r"float offset"):
            from_onnx(g.model(TensorProto.FLOAT))
        return
    network = from_onnx(g.model(TensorProto.FLOAT))
    np.testing.assert_array_equal(network.predict(X), expected)


@pytest.mark.parametrize("second", [False, True])
def test_trunc_is_a_sum_that_loses_low_bits(second):
    g = Graph((3, 4, 4))
    quant(g, 0.5, 4, signed=0)
    g.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    g.add("Mul", g.const(4.0))
    operands = [g.const(0.5), g.const(0.0), g.const(6.0)]
    operands += [g.const(2.0), g.const(4.0)] if second else [g.const(4.0)]
    more = {"signed": 0, "narrow": 0} if second else {}
    g.add("Trunc", *operands, domain=DOMAINS[0], rounding_mode="FLOOR", **more)
    network = from_onnx(g.model(TensorProto.FLOAT))
    X = (RNG.integers(0, 40, (30, 3, 4, 4)) / 4).astype(np.float32)
    codes = np.clip(np.rint(X / 0.5), 0, 15)
    sums = codes.reshape(30, 3, 2, 2, 2, 2).sum(axis=(3, 5))
    expected = np.floor(sums / 4) * (2.0 if second else 0.5)
    np.testing.assert_array_equal(network.predict(X), expected.astype(np.float32))


def test_an_annotated_input_brings_codes():
    from onnx import TensorAnnotation

    g = Graph((4,))
    g.add("MatMul", g.const(np.arange(8).reshape(4, 2)))
    annotation = TensorAnnotation(tensor_name="x")
    entry = annotation.quant_parameter_tensor_names.add()
    entry.key, entry.value = "finn_datatype", "INT3"
    g.annotations.append(annotation)
    network = from_onnx(g.model(TensorProto.FLOAT))
    assert network.input_format == IntFormat(3, signed=True)
    assert network.forward([[1, -4, 3, 0]]).tolist() == [[4, 4]]


# --- what else a file may say --------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [False, True])
def test_constant_folded_weights_are_recognised_on_their_grid(per_row):
    roots = np.sqrt(np.arange(2, 8, dtype=np.float32))[:, None]  # on no common grid
    scale = roots if per_row else np.float32(0.1)
    codes = RNG.integers(-7, 8, (6, 4))
    codes[:, 0] = 7
    codes[0, 1] = 1
    g = Graph((4,))
    g.quantize(0.25)
    g.add("Gemm", g.const(codes.astype(np.float32) * scale), transB=1)
    network = from_onnx(g.model(TensorProto.FLOAT))
    op = network.nodes[0].op
    assert isinstance(op, Linear)
    ratio = [np.gcd.reduce(row) for row in codes] if per_row else np.gcd.reduce(codes.ravel())
    np.testing.assert_array_equal(op.weight, codes // np.reshape(ratio, (-1, 1)))


def test_a_decreasing_channel_negates_its_weights_instead_of_listing_accumulators():
    g = Graph((4,))
    g.quantize(0.25)
    dense(g)
    batch_norm(g, 6)
    g.codes(0.125)
    network = from_onnx(g.model())
    assert [n.name for n in network.nodes] == ["Gemm_3_negated", "QuantizeLinear_5"]
    assert [type(n.op) for n in network.nodes] == [Linear, Requantize]


def test_an_activation_that_is_not_monotone_becomes_a_table():
    g = Graph((4,))
    g.quantize(0.25)
    VECTORS["gelu"](g)
    g.codes(0.125)
    assert isinstance(from_onnx(g.model()).nodes[-1].op, Lookup)


@pytest.mark.parametrize("zero", [0, 200])
def test_a_swish_of_wide_accumulators_is_the_difference_of_two_counts(zero):
    """It falls and rises: 2 x 3 million accumulators need some hundred thresholds, and no table."""
    g = Graph((200,))
    g.quantize(0.125, dtype=np.uint8)
    g.add("Gemm", g.const(RNG.integers(-127, 128, (2, 200)) / 16), g.const([3.3, -2.7]), transB=1)
    g.add("Mul", g.const(2.0**-8))
    g.add("HardSwish")
    g.codes(0.0625, zero, np.uint8)
    model = g.model(TensorProto.UINT8)
    network = from_onnx(model)
    assert sum(isinstance(n.op, Add) for n in network.nodes) == 1
    X = (RNG.integers(0, 256, (4000, 200)) / 8).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    assert (expected < zero).any() or zero == 0
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


def test_softmax_argmax_and_a_last_sigmoid_are_left_out_and_named():
    for op in ("Softmax", "ArgMax", "Sigmoid", "LogSoftmax"):
        g = Graph((4,))
        g.quantize(0.25)
        dense(g)
        logits = from_onnx(g.model(TensorProto.FLOAT))
        g.add(op)
        imported = read_onnx(g.model(TensorProto.FLOAT))
        assert len(imported.dropped) == 1
        assert op in imported.dropped[0]
        assert imported.network.digest == logits.digest
    g.add("Relu")
    with pytest.raises(NotCovered, match=r"Relu.*output"):
        from_onnx(g.model(TensorProto.FLOAT))


def test_arithmetic_in_front_of_the_first_quantizer():
    def graph(*steps: tuple[str, float]) -> Graph:
        g = Graph((4,))
        for op, value in steps:
            g.add(op, g.const(value))
        g.quantize(0.25)
        g.add("MatMul", g.const(W.T))
        return g

    powers = from_onnx(graph(("Mul", 2.0), ("Div", 8.0)).model(TensorProto.FLOAT))
    assert float(powers.input_quantizer.scale) == 1.0
    model = graph(("Mul", 2.0), ("Sub", 0.3)).model(TensorProto.FLOAT)
    network = from_onnx(model, input="t1")
    X = RNG.uniform(0, 1, (20, 4)).astype(np.float32)
    outside = X * np.float32(2) - np.float32(0.3)
    y = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.predict(outside), y)
    np.testing.assert_array_equal(from_onnx(model).predict(X), y)
    with pytest.raises(NotCovered, match=r"t4.*does not tell its shape"):
        from_onnx(model, input="t4")
    with pytest.raises(InvalidArgument, match=r"input.*nowhere"):
        from_onnx(model, input="nowhere")
    with pytest.raises(InvalidArgument, match=r"input.*no parameter"):
        from_onnx(model, input="c0")


def test_several_outputs_need_a_choice():
    g = Graph((4,))
    g.quantize(0.25)
    dense(g)
    model = g.model(TensorProto.FLOAT)
    model.graph.output.append(model.graph.output[0])
    model.graph.output[1].name = "t1"
    with pytest.raises(NotCovered, match=r"output="):
        from_onnx(model)
    assert from_onnx(model, output=g.last).output == "Gemm_3"
    with pytest.raises(InvalidArgument, match=r"output"):
        from_onnx(model, output="nowhere")
    logits = g.last
    g.add("GRU", g.const(1.0), g.const(1.0))
    with pytest.raises(NotCovered, match=r"GRU"):
        from_onnx(g.model(TensorProto.FLOAT))
    assert from_onnx(g.model(TensorProto.FLOAT), output=logits).output == "Gemm_3"


REFUSED = {
    "softmax inside": (lambda g: (g.add("Softmax"), dense(g)), "Gemm.*only an output"),
    "float weights": (
        lambda g: g.add("MatMul", g.const(RNG.normal(size=(4, 3)))),
        "MatMul.*no grid",
    ),
    "no quantizer between layers": (
        lambda g: (dense(g), g.add("Relu"), g.add("MatMul", g.const(np.eye(6)))),
        "MatMul.*Relu.*quantize it first",
    ),
    "product of activations": (lambda g: (dense(g), g.add("Mul", g.last)), "Mul.*product"),
    "unknown operator": (lambda g: g.add("GRU", g.const(1.0), g.const(1.0)), "GRU"),
    "dynamic quantization": (
        lambda g: g.add("DynamicQuantizeLinear", outputs=3),
        "depends on each",
    ),
    "layer norm": (lambda g: g.add("LayerNormalization", g.const(np.ones(4))), "norm of its input"),
    "float16 scale": (
        lambda g: g.add("QuantizeLinear", g.const(0.5, np.float16), g.const(0, np.int8)),
        "float16",
    ),
    "negative scale": (
        lambda g: g.add("QuantizeLinear", g.const(-0.5), g.const(0, np.int8)),
        "positive",
    ),
    "relu at the output": (lambda g: (dense(g), g.add("Relu")), "output.*Relu"),
    "batch reshape": (lambda g: g.add("Reshape", g.const([-1, 2], np.int64)), "batch axis"),
    "flatten from the batch": (lambda g: g.add("Flatten", axis=0), "axis 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_integer_form_is_refused_by_name_and_reason(case):
    build, message = REFUSED[case]
    g = Graph((4,))
    g.quantize(0.25)
    build(g)
    with pytest.raises(NotCovered, match=message):
        from_onnx(g.model(TensorProto.FLOAT))


def test_a_float_network_is_refused():
    g = Graph((4,))
    g.add("MatMul", g.const(W.T))
    with pytest.raises(NotCovered, match=r"MatMul_0.*quantizer must come first"):
        from_onnx(g.model(TensorProto.FLOAT))


def test_the_input_quantizer_is_the_door():
    g = Graph((4,))
    g.quantize(0.3, clip=(-8, 7))
    dense(g)
    network = from_onnx(g.model(TensorProto.FLOAT))
    assert isinstance(network.input_quantizer, SymmetricQuantizer)
    assert network.input_format == IntFormat(4, signed=True)
