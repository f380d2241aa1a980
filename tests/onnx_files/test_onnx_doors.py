"""What a model does to its input before it quantizes it becomes the network's input door."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto
from onnx_graphs import Graph
from onnx_networks import run_onnxruntime, run_qonnx

from refqnn import BIPOLAR, AffineQuantizer, IntFormat, Network, Node, SymmetricQuantizer
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch
from refqnn.network import load
from refqnn.onnx import from_onnx, to_onnx
from refqnn.ops import Conv2d, Linear
from refqnn.quantizers import ThresholdQuantizer

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _the_same_data_in_any_order() -> None:
    """A runtime that sums floats may fall on the other side of a near tie."""
    RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FLAVOURS = ("qonnx", "qcdq", "integer")


def neighbours(network: Network, n: int) -> np.ndarray:
    """Samples on the thresholds of the door, one float below, and anywhere."""
    table = network.input_quantizer.thresholds
    finite = table[np.isfinite(table)]
    candidates = finite if finite.size else np.zeros(1)
    picked = RNG.choice(candidates, (n, *network.input_shape)).astype(np.float32)
    below = np.nextafter(picked, np.float32(-np.inf))
    anywhere = RNG.normal(size=picked.shape).astype(np.float32) * 3
    return np.concatenate([picked, below, anywhere])


def image_graph(*steps: tuple[str, object], opset: int = 21) -> Graph:
    g = Graph((3, 4, 5), opset=opset)
    for op, value in steps:
        g.add(op, *(() if value is None else (g.const(value),)))
    return g


NORMALIZATIONS = {
    "minus one to one": (("Mul", 2.0), ("Sub", 1.0)),
    "bytes": (("Div", 255.0), ("Sub", 0.5)),
    "mean and deviation": (("Sub", MEAN[:, None, None]), ("Div", STD[:, None, None])),
    "clipped": (("Relu", None), ("Mul", 0.3), ("Add", 0.1)),
    "bent": (("Add", 0.1), ("Sigmoid", None)),
}


@pytest.mark.parametrize("zero", [0, 7])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_float_arithmetic_in_front_of_the_quantizer_is_exact(name, zero):
    g = image_graph(*NORMALIZATIONS[name])
    g.quantize(0.0117, zero)
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    g.codes(0.37)
    model = g.model()
    network = from_onnx(model)
    assert isinstance(network.input_quantizer, ThresholdQuantizer)
    X = neighbours(network, 30)
    if name == "bent":  # transcendental functions differ in their last bit: not on the thresholds
        X = X[60:]
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ops=st.lists(st.sampled_from(["Mul", "Div", "Add", "Sub", "Clip", "Relu"]), max_size=4),
    bits=st.integers(2, 8),
)
def test_the_door_has_the_codes_of_the_float_function_for_every_float(seed, ops, bits):
    """Any float32, the thresholds' neighbours among them, through numpy's own float32."""
    rng = np.random.default_rng(seed)
    g, v = Graph((6,)), np.float32
    steps = []
    for op in ops:
        a = v(rng.uniform(0.01, 3)) if op in ("Mul", "Div") else v(rng.normal())
        steps.append((op, a))
        if op == "Clip":
            g.add("Clip", g.const(a - 2), g.const(a))
        else:
            g.add(op, *([] if op == "Relu" else [g.const(a)]))
    scale = v(rng.uniform(0.01, 0.5))
    quant = [g.const(c) for c in (scale, 0.0, float(bits))]
    g.add("Quant", *quant, domain="qonnx.custom_op.general", signed=1, narrow=0)
    g.add("MatMul", g.const(np.eye(6)))
    network = from_onnx(g.model(TensorProto.FLOAT))
    X = rng.normal(size=(50, 6)).astype(v) * v(3)
    if isinstance(network.input_quantizer, ThresholdQuantizer):
        X = np.concatenate([X, neighbours(network, 50)])
    y = X
    functions = {
        "Mul": np.multiply, "Div": np.divide, "Add": np.add, "Sub": np.subtract,
        "Relu": lambda y, _: np.maximum(y, v(0)), "Clip": lambda y, a: np.clip(y, a - 2, a),
    }  # fmt: skip
    for op, a in steps:
        y = functions[op](y, a)
    half = 2 ** (bits - 1)
    expected = np.clip(np.rint(y / scale), -half, half - 1)
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


def test_channels_last_images_are_normalized_and_transposed():
    g = Graph((4, 5, 3))
    g.add("Sub", g.const(MEAN))
    g.add("Transpose", perm=[0, 3, 1, 2])
    g.add("Div", g.const(STD[:, None, None]))
    g.quantize(0.02)
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    g.codes(0.37)
    model = g.model()
    network = from_onnx(model)
    assert network.input_quantizer.axis == 3
    X = neighbours(network, 20)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


@pytest.mark.parametrize("value", [0.0, 0.53])
def test_a_padded_input(value):
    g = Graph((3, 4, 5))
    g.add("Pad", g.const([0, 0, 1, 2, 0, 0, 0, 1], np.int64), g.const(value))
    g.quantize(0.02, 5)
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    g.codes(0.37)
    model = g.model()
    network = from_onnx(model)
    X = RNG.normal(size=(20, 3, 4, 5)).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_thresholds_on_the_float_input(rows):
    table = np.sort(RNG.normal(size=(rows, 7)), axis=1).astype(np.float32)
    g = image_graph(("Mul", 0.7))
    g.add("MultiThreshold", g.const(table), domain="qonnx.custom_op.general", data_layout="NCHW",
          out_bias=-4.0, out_dtype="INT3")  # fmt: skip
    g.add("Flatten")
    network = from_onnx(g.model(TensorProto.FLOAT))
    X = neighbours(network, 20)
    y = (X * np.float32(0.7))[..., None] >= np.broadcast_to(table[:, None, None], (3, 1, 1, 7))
    expected = (y.sum(axis=-1) - 4).reshape(len(X), -1)
    np.testing.assert_array_equal(network.predict(X), expected)


def test_what_no_door_can_say_is_refused_with_the_next_step():
    for op, reason in (("Neg", "Neg.*increasing"), ("Abs", "Abs.*increasing.*input='UINT8'")):
        g = image_graph((op, None))
        g.quantize(0.02)
        with pytest.raises(NotCovered, match=reason):
            from_onnx(g.model(TensorProto.FLOAT))
    g = image_graph(("Sub", RNG.normal(size=(4, 5))))
    g.quantize(0.02)
    with pytest.raises(NotCovered, match="several axes"):
        from_onnx(g.model(TensorProto.FLOAT))


# --- doors that the caller declares -----------------------------------------------------------


@pytest.mark.parametrize("door", ["UINT8", "uint8", IntFormat(8, signed=False)])
def test_an_input_of_declared_codes(door):
    g = image_graph(("Sub", 127.5), ("Abs", None), ("Mul", 0.03))
    g.quantize(0.0117)
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    g.codes(0.37)
    model = g.model()
    network = from_onnx(model, input=door)
    assert network.input_format == IntFormat(8, signed=False)
    codes = RNG.integers(0, 256, (40, 3, 4, 5))
    expected = run_onnxruntime(model, codes.astype(np.float32), "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(codes), expected)


@pytest.mark.parametrize(
    "door",
    [
        SymmetricQuantizer(0.25, IntFormat(4, signed=True)),
        SymmetricQuantizer([0.25, 0.5, 1.0], IntFormat(4, signed=True), axis=1),
        AffineQuantizer(0.125, 3, IntFormat(5, signed=False)),
    ],
)
def test_an_input_quantizer_of_the_callers_own(door):
    """A first layer of float inputs has no integer form until somebody says what comes in."""
    g = image_graph()
    weight = RNG.integers(-7, 8, (3, 1, 2, 2))
    g.add("Conv", g.const(weight), group=3)
    g.add("Relu")
    g.codes(0.125)
    model = g.model()
    with pytest.raises(NotCovered, match=r"Conv_0.*input='UINT8'"):
        from_onnx(model)
    network = from_onnx(model, input=door)
    X = RNG.normal(size=(40, 3, 4, 5)).astype(np.float32) * 4
    seen = door.dequantize(door.quantize(X))  # what the file would be given
    expected = run_onnxruntime(model, seen, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(X)), expected)


def test_any_tensor_may_be_the_start():
    g = image_graph()
    g.add("Conv", g.const(RNG.normal(size=(4, 3, 2, 2))))  # float weights
    start = g.add("Relu")
    g.quantize(0.0625, 3)
    g.add("Flatten")
    g.add("MatMul", g.const(RNG.integers(-7, 8, (48, 2))))
    g.codes(0.5)
    model = g.model()
    network = from_onnx(model, input=start)
    assert network.input_shape == (4, 3, 4)
    X = RNG.normal(size=(30, 3, 4, 5)).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    model.graph.output[0].name = start
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    hidden = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(network.quantize_input(hidden)), expected)


def test_declared_doors_are_checked():
    g = image_graph()
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    model = g.model()
    for door, message in (
        ("UINT99", r"input.*UINT99"),
        (SymmetricQuantizer(0.5, IntFormat(4, True), precision="float64"), r"input.*float32"),
        (ThresholdQuantizer([[0.0]], IntFormat(1, False)), r"input.*scale"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            from_onnx(model, input=door)
    with pytest.raises(InvalidType, match="input"):
        from_onnx(model, input=8)
    with pytest.raises(ShapeMismatch, match="axis"):
        from_onnx(model, input=SymmetricQuantizer([0.5, 1.0], IntFormat(4, True), axis=1))
    g = Graph((4,), TensorProto.UINT8)
    g.add("MatMulInteger", g.const(RNG.integers(-9, 9, (4, 2)), np.int8))
    integers = g.model(TensorProto.INT32)
    assert from_onnx(integers, input="UINT3").input_format == IntFormat(3, signed=False)
    with pytest.raises(InvalidArgument, match="UINT8"):
        from_onnx(integers, input="INT4")


def test_the_command_line_takes_datatypes_and_shows_what_was_left_out(tmp_path):
    from click.testing import CliRunner

    from refqnn.cli import refqnn

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(refqnn, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    g = image_graph()
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    g.add("Flatten")
    g.add("Softmax", axis=1)
    model = g.model(TensorProto.FLOAT)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    run("convert", tmp_path / "m.onnx", tmp_path / "m.npz", "--input", "UINT4")
    assert load(tmp_path / "m.npz").input_format == IntFormat(4, signed=False)
    run("convert", tmp_path / "m.npz", tmp_path / "again.onnx", "--flavour", "integer")
    np.save(tmp_path / "X.npy", RNG.integers(0, 16, (5, 3, 4, 5)))
    equal = run("diff", tmp_path / "again.onnx", tmp_path / "m.npz", "--inputs", tmp_path / "X.npy")
    assert "equal on 5" in equal
    assert "accumulators" in run("certify", tmp_path / "again.onnx", "--bits", "16")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    g.input.type.tensor_type.elem_type = TensorProto.UINT8
    g.nodes.insert(0, g.nodes[0].__class__(op_type="Cast", input=["x"], output=["f"], name="cast"))
    g.nodes[0].attribute.add(name="to", i=TensorProto.FLOAT, type=2)
    g.nodes[1].input[0] = "f"
    (tmp_path / "m.onnx").write_bytes(g.model(TensorProto.FLOAT).SerializeToString())
    assert "left out behind the output: node 'Softmax_2'" in run("inspect", tmp_path / "m.onnx")


# --- and back ---------------------------------------------------------------------------------


def test_a_threshold_quantizer_checks_what_it_gets():
    fmt = IntFormat(2, signed=True)
    rows = ThresholdQuantizer([[0.0, 1.0, 1.0], [-1.0, 0.5, np.inf]], fmt, axis=-1)
    assert rows.quantize([[1.0, 1.0], [-np.inf, np.inf]]).tolist() == [[1, 0], [-2, 0]]
    for thresholds, axis, error, message in (
        ([[1.0, 0.0, 2.0]], None, InvalidArgument, "nondecreasing"),
        ([[0.0, 1.0]], None, ShapeMismatch, r"\[1, 3\]"),
        ([[0.0] * 3] * 2, None, ShapeMismatch, r"\[1, 3\]"),
        ([[0.0, np.nan, 1.0]], None, InvalidArgument, "NaN"),
        ([[0.0] * 3], "channels", InvalidType, "axis"),
    ):
        with pytest.raises(error, match=message):
            ThresholdQuantizer(thresholds, fmt, axis)
    with pytest.raises(InvalidType, match="format"):
        ThresholdQuantizer([[0.0]], 1)
    with pytest.raises(ShapeMismatch, match="2 channels"):
        rows.quantize(np.zeros((4, 3)))
    with pytest.raises(InvalidArgument, match="NaN"):
        rows.quantize([[np.nan, 0.0]])
    with pytest.raises(NotCovered, match="thresholds"):
        rows.dequantize([[1, 1]])


def door_of(kind: str) -> ThresholdQuantizer:
    if kind == "bipolar":
        return ThresholdQuantizer([[0.3], [-1e-40], [7.5]], BIPOLAR, axis=1)
    rows = {"one row": 1, "channels": 3, "unreached": 3}[kind]
    table = np.sort(RNG.normal(size=(rows, 14)), axis=1).astype(np.float32)
    if kind == "unreached":
        table[0, -3:], table[1, :2] = np.inf, -np.inf
    fmt = IntFormat(4, signed=True, narrow=True)
    return ThresholdQuantizer(table, fmt, None if rows == 1 else 1)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("kind", ["one row", "channels", "unreached", "bipolar"])
def test_doors_of_thresholds_are_written_and_read_again(kind, flavour, tmp_path):
    node = Node("conv", Conv2d(RNG.integers(-3, 4, (4, 3, 2, 2))))
    network = Network([node], input_shape=(3, 3, 3), input_quantizer=door_of(kind))
    network.save(tmp_path / "net.npz")
    assert load(tmp_path / "net.npz").digest == network.digest
    X = neighbours(network, 5)
    X[0, 0, 0] = [np.inf, -np.inf, 0.0]
    codes = network.quantize_input(X)
    model = to_onnx(network, flavour=flavour)
    run = run_qonnx if flavour == "qonnx" else run_onnxruntime
    np.testing.assert_array_equal(run(model, X), network.forward(codes))
    again = from_onnx(model)
    np.testing.assert_array_equal(again.quantize_input(X), codes)
    np.testing.assert_array_equal(again.forward(codes), network.forward(codes))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_bipolar_input_is_read_again(flavour):
    network = Network(
        [Node("fc", Linear(RNG.integers(-3, 4, (4, 5))))],
        input_shape=(5,),
        input_quantizer=SymmetricQuantizer(0.5, BIPOLAR),
    )
    again = from_onnx(to_onnx(network, flavour=flavour))
    assert again.input_format == BIPOLAR
    X = RNG.choice(np.float32([-1.5, -1e-30, -0.0, 0.0, 0.25]), (8, 5))
    codes = network.quantize_input(X)
    np.testing.assert_array_equal(again.quantize_input(X), codes)
    np.testing.assert_array_equal(again.forward(codes), network.forward(codes))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("fmt", [BIPOLAR, IntFormat(3, False), IntFormat(12, True)])
def test_codes_that_come_in_keep_their_format(flavour, fmt):
    node = Node("fc", Linear([[1, 2]]))
    network = Network([node], input_shape=(2,), input_format=fmt)
    assert from_onnx(to_onnx(network, flavour=flavour)).input_format == fmt


@pytest.mark.parametrize("value", [0.25, -0.5, 0.0, 1.5])
def test_what_a_function_is_padded_with_need_not_be_one_of_its_values(value):
    """Multiples of 3/4, and a border of others of 1/4."""
    g = image_graph()
    g.add("Mul", g.const(0.37))
    g.add("Floor")
    g.add("Mul", g.const(0.75))
    g.add("Pad", g.const([0, 0, 1, 2, 0, 0, 0, 1], np.int64), g.const(value))
    g.add("Conv", g.const(RNG.integers(-7, 8, (2, 3, 2, 2))))
    g.codes(4.0)
    model = g.model()
    network = from_onnx(model, input="UINT4")
    codes = RNG.integers(0, 16, (20, 3, 4, 5))
    expected = run_onnxruntime(model, codes.astype(np.float32), "ORT_DISABLE_ALL")
    np.testing.assert_array_equal(network.forward(codes), expected)
