"""Weights quantized in blocks, float16 scales, thresholds of the last axis, choices."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorAnnotation, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_graphs import Graph
from onnx_networks import run_onnxruntime, run_qonnx

from refqnn import from_onnx
from refqnn.errors import NotCovered, ShapeMismatch


def reference(model, X):
    return ReferenceEvaluator(model).run(None, {"x": X})[0]


def four_bits(values, kind):
    """A tensor of 4-bit integers."""
    return helper.make_tensor("w", kind, values.shape, values.ravel().tolist())


def weighted(values, kind, scale, zero=None, **attributes):
    """MatMul of codes of scale 1/4 with dequantized weights [in, out]."""
    g = Graph((values.shape[0],))
    x = g.quantize(0.25)
    names = [g.const(four_bits(values, kind)), g.const(scale, scale.dtype)]
    if zero is not None:
        names.append(g.const(four_bits(zero, kind)))
    w = g.add("DequantizeLinear", "", *names, **attributes)
    if scale.dtype == np.float16:
        w = g.add("Cast", to=TensorProto.FLOAT)
    g.add("MatMul", "", x, w)
    return g.model(TensorProto.FLOAT)


LIMITS = {TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16)}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", LIMITS)
def test_blocks_of_four_bits_with_scales_of_powers_of_two(kind, axis, zeros):
    """Sums are exact in float32: floats equal onnxruntime's and the reference's."""
    rng = np.random.default_rng(axis)
    w, block = rng.integers(*LIMITS[kind], (6, 9)), 3
    shape = (2, 9) if axis == 0 else (6, 3)
    scale = np.float32(2.0) ** rng.integers(-6, 1, shape).astype(np.float32)
    zero = rng.integers(*LIMITS[kind], shape) if zeros else None
    model = weighted(w, kind, scale, zero, axis=axis, block_size=block)
    net = from_onnx(model)
    X = (rng.integers(-128, 128, (20, 6)) / 4).astype(np.float32)
    np.testing.assert_array_equal(net.predict(X), reference(model, X))
    np.testing.assert_array_equal(net.predict(X), run_onnxruntime(model, X, "ORT_DISABLE_ALL"))


def exact_outputs(net, codes):
    """Of a network whose integers float64 holds."""
    return net.forward(codes) * np.asarray(net.output_dequantizer.scale, dtype=np.float64)


def test_blocks_of_any_scales_are_exact():
    """Integers in units of the greatest common divisor of the scales that meet in one sum."""
    rng = np.random.default_rng(0)
    w = rng.integers(-8, 8, (6, 4))
    scale = rng.uniform(0.01, 0.015, (2, 4)).astype(np.float32)
    net = from_onnx(weighted(w, TensorProto.INT4, scale, axis=0, block_size=3))
    codes = rng.integers(-128, 128, (9, 6))
    full = np.repeat(scale.astype(np.float64), 3, axis=0)
    np.testing.assert_array_equal(exact_outputs(net, codes), codes @ (w * full) / 4)


def test_scales_for_each_input_channel_are_exact():
    w, scale = np.array([[3, -2], [5, 7]]), np.float32([0.5, 0.125])
    model = weighted(w, TensorProto.INT4, scale, axis=0)
    X = np.float32([[1, -2], [0.25, 30]])
    np.testing.assert_array_equal(from_onnx(model).predict(X), reference(model, X))


def test_blocks_that_do_not_fit_are_refused():
    w, scale = np.ones((6, 4), int), np.ones((3, 4), np.float32)
    with pytest.raises(ShapeMismatch, match="DequantizeLinear"):
        from_onnx(weighted(w, TensorProto.INT4, scale, axis=0, block_size=3))
    g = Graph((6,))
    ones, zeros = g.const(np.ones((1, 2))), g.const(np.zeros((1, 2)), np.int8)
    g.add("QuantizeLinear", ones, zeros, axis=1, block_size=3)
    with pytest.raises(NotCovered, match="in blocks"):
        from_onnx(g.model())


@pytest.mark.parametrize("scale", [0.25, 0.1, 3.14])
def test_float16_scales_of_weights_round_the_products_to_float16(scale):
    w = np.arange(-8, 8).reshape(8, 2)
    net = from_onnx(weighted(w, TensorProto.INT4, np.float16([scale])))
    held = (w.astype(np.float32) * np.float32(np.float16(scale))).astype(np.float16)
    codes = np.random.default_rng(0).integers(-128, 128, (20, 8))
    np.testing.assert_array_equal(exact_outputs(net, codes), codes @ held.astype(np.float64) / 4)


def annotated(g, kind):
    told = TensorAnnotation(tensor_name="x")
    told.quant_parameter_tensor_names.add(key="finn_datatype", value=kind)
    g.annotations.append(told)


@pytest.mark.parametrize("layout", ["NHWC", "NWC", ""])
def test_thresholds_of_channels_in_the_last_axis(layout):
    """Without a layout qonnx takes the last of three axes."""
    rng = np.random.default_rng(1)
    shape = (2, 4, 3) if layout == "NHWC" else (4, 3)
    g = Graph(shape, opset=13)
    annotated(g, "INT8")
    table = np.sort(rng.integers(-90, 90, (3, 7)), axis=1)
    attributes = {"data_layout": layout} if layout else {}
    g.add("MultiThreshold", g.const(table), domain="qonnx.custom_op.general", out_dtype="INT4",
          out_scale=1.0, out_bias=-4.0, **attributes)  # fmt: skip
    model = g.model(TensorProto.FLOAT)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    X = rng.integers(-128, 128, (10, *shape))
    expected = run_qonnx(model, X.astype(np.float32))
    np.testing.assert_array_equal(from_onnx(model).forward(X), expected)


def chosen(op):
    """Max or Min of a value and a multiple of it; Where by a comparison, with a constant."""
    g = Graph((3,))
    x = g.quantize(0.1, 3)
    part = g.add("Mul", g.const([0.1, -0.3, 2.0]))
    if op == "Where":
        small = g.add("Less", "", x, g.const(0.05))
        g.add("Where", "", small, part, g.const(0.7))
    elif op == "Where of both":
        large = g.add("Greater", "", x, g.const([0.05, 1.0, -2.0]))
        g.add("Where", "", large, x, part)
    else:
        g.add(op, "", part, x)
    g.codes(0.05, -2)
    return g.model()


@pytest.mark.parametrize("op", ["Max", "Min", "Where", "Where of both"])
def test_a_choice_between_functions_of_one_value(op):
    model = chosen(op)
    X = (np.arange(-140, 141, dtype=np.float32) * np.float32(0.1))[:, None].repeat(3, axis=1)
    net = from_onnx(model)
    got = net.forward(net.quantize_input(X))
    np.testing.assert_array_equal(got, run_onnxruntime(model, X, "ORT_DISABLE_ALL"))
    np.testing.assert_array_equal(got, reference(model, X))


def test_a_choice_between_different_values_is_refused():
    g = Graph((2,))
    x = g.quantize(0.25)
    y = g.add("MatMul", g.const([[1, 1], [2, 1]]))
    g.add("Max", "", x, y)
    with pytest.raises(NotCovered, match=r"Max.*the maximum of two tensors"):
        from_onnx(g.model(TensorProto.FLOAT))
