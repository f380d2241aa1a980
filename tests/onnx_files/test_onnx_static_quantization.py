"""Float models that onnxruntime quantized, in both of its formats: files we had no hand in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto
from onnx_graphs import Graph
from onnx_networks import run_onnxruntime

from refqnn.errors import NotCovered
from refqnn.onnx import from_onnx, read_onnx, to_onnx
from refqnn.ops import Add


def float_network(skip: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    g = Graph((1, 8, 8), opset=17)
    g.add("Conv", g.const(weights(6, 1, 3, 3)), g.const(weights(6)), pads=[1] * 4)
    first = g.add("Relu")
    g.add("Conv", g.const(weights(6, 6, 3, 3)), g.const(weights(6)), pads=[1] * 4)
    if skip:
        g.add("Add", first)
    g.add("Sigmoid")
    g.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    g.add("Conv", g.const(weights(6, 1, 2, 2)), group=6)
    g.add("LeakyRelu", alpha=0.125)
    g.add("GlobalAveragePool")
    g.add("Flatten")
    g.add("Gemm", g.const(weights(5, 6)), g.const(weights(5)), transB=1)
    return g.model(TensorProto.FLOAT)


def quantized(
    folder: Path, form: str, per_channel: bool, weights: str, skip: bool = True
) -> onnx.ModelProto:
    return statically_quantized(
        folder, float_network(skip), quant_format=form, per_channel=per_channel, weight_type=weights
    )


def statically_quantized(
    folder: Path,
    model: onnx.ModelProto,
    *,
    quant_format: str = "QDQ",
    activation_type: str = "QUInt8",
    weight_type: str = "QInt8",
    **options: object,
) -> onnx.ModelProto:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            X = np.random.default_rng(1).normal(size=(30, 1, 1, 8, 8)).astype(np.float32)
            self.rows = iter(X)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row}

    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "quantized.onnx",
        Samples(),
        quant_format=QuantFormat[quant_format],
        activation_type=QuantType[activation_type],
        weight_type=QuantType[weight_type],
        **options,
    )
    return onnx.load(folder / "quantized.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_static_quantization(tmp_path, form, per_channel, weights):
    model = quantized(tmp_path, form, per_channel, weights)
    network = from_onnx(model)
    X = np.random.default_rng(2).normal(size=(200, 1, 8, 8)).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    got = network.predict(X)
    scale = float(network.output_dequantizer.scale)
    np.testing.assert_array_equal(np.rint(got / scale), np.rint(expected / scale))


def branches() -> onnx.ModelProto:
    """Two branches on scales and zero points of their own, a swish written out, a ceiling."""
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    g = Graph((1, 8, 8), opset=17)
    g.add("Conv", g.const(weights(4, 1, 3, 3)), g.const(weights(4)), pads=[1] * 4, strides=[2, 2])
    left, g.last = g.add("Tanh"), "x"
    g.add("Conv", g.const(weights(5, 1, 1, 1)), strides=[2, 2])
    g.add("Sigmoid")
    g.add("Concat", left, axis=1)
    gate = g.add("Conv", g.const(weights(6, 9, 2, 2)), g.const(weights(6)))
    g.add("Sigmoid")
    g.add("Mul", gate)
    g.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    g.add("Flatten")
    g.add("MatMul", g.const(weights(24, 5)))
    g.add("Add", g.const(weights(5)))
    return g.model(TensorProto.FLOAT)


OPTIONS: dict[str, dict[str, object]] = {
    "symmetric": {
        "activation_type": "QInt8",
        "extra_options": {"ActivationSymmetric": True},
    },
    "4-bit weights": {"weight_type": "QInt4"},
    "contributed operators": {"extra_options": {"UseQDQContribOps": True}},
    "a pair for each consumer": {"extra_options": {"DedicatedQDQPair": True}},
    "weights quantized in the file": {"extra_options": {"AddQDQPairToWeight": True}},
    "float bias": {"extra_options": {"QuantizeBias": False}},
    "unsigned weights": {"weight_type": "QUInt8", "extra_options": {"WeightSymmetric": False}},
    "operators": {"quant_format": "QOperator", "per_channel": True},
    "operators, unsigned weights": {"quant_format": "QOperator", "weight_type": "QUInt8"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OPTIONS)
def test_branches_and_options_of_static_quantization(tmp_path, case):
    model = statically_quantized(tmp_path, branches(), **OPTIONS[case])
    network = from_onnx(model)
    X = np.random.default_rng(2).normal(size=(200, 1, 8, 8)).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    got = network.predict(X)
    scale = float(network.output_dequantizer.scale)
    np.testing.assert_array_equal(np.rint(got / scale), np.rint(expected / scale))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_quantized_softmax_is_left_out(tmp_path, form):
    rng = np.random.default_rng(3)
    g = Graph((1, 8, 8), opset=17)
    g.add("Flatten")
    g.add("Gemm", g.const(rng.normal(size=(5, 64)) / 8), g.const(rng.normal(size=5)), transB=1)
    g.add("Softmax", axis=1)
    model = statically_quantized(tmp_path, g.model(TensorProto.FLOAT), quant_format=form)
    imported = read_onnx(model)
    assert "Softmax" in imported.dropped[0]
    assert len(imported.dropped) == 3 - (form == "QOperator")
    X = np.random.default_rng(2).normal(size=(200, 1, 8, 8)).astype(np.float32)
    expected = run_onnxruntime(model, X, "ORT_DISABLE_ALL")
    codes = imported.network.forward(imported.network.quantize_input(X))
    best = np.take_along_axis(expected, codes.argmax(axis=1)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(best, expected.max(axis=1))


@pytest.mark.filterwarnings("ignore")
def test_what_it_quantized_we_write_again(tmp_path):
    network = from_onnx(quantized(tmp_path, "QDQ", True, "QInt8", skip=False))
    X = np.random.default_rng(2).normal(size=(50, 1, 8, 8)).astype(np.float32)
    expected = network.forward(network.quantize_input(X))
    for flavour in ("qcdq", "integer"):
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
            y = run_onnxruntime(to_onnx(network, flavour=flavour), X, level)
            np.testing.assert_array_equal(y, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_sum_on_two_unrelated_scales_is_exact_and_too_wide_for_32_bits(tmp_path):
    """Two float32 scales have a common divisor of up to 24 bits below both: certify shows it."""
    network = from_onnx(quantized(tmp_path, "QDQ", False, "QInt8"))
    (node,) = [n for n in network.nodes if isinstance(n.op, Add)]
    assert network.ranges()[node.name].largest > 2**31
    with pytest.raises(NotCovered, match="absolute mass"):
        to_onnx(network, flavour="integer")
