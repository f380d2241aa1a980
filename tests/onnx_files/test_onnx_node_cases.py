"""The integer node cases that the onnx package ships (1.22), computed by our core, exactly.

Sums go through from_onnx, with every operand but the first turned into a constant; quantizers are
asked directly.  Where the package's own reference evaluator departs from the operator's text, the
departure is pinned at the end of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx

from refqnn import AffineQuantizer, IntFormat, Network, SymmetricQuantizer
from refqnn.onnx import from_onnx
from refqnn.ops import Linear
from refqnn.requantize import Requantize

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
FLOAT_CODES = ("e4m3", "e5m2", "float4")  # codes that are floats: no integers
OPERATORS = ("quantizelinear", "matmulinteger", "convinteger", "qlinearconv", "qlinearmatmul")


def cases(*operators: str) -> list[str]:
    names = sorted(p.name for p in FOLDER.glob("test_*") if p.is_dir())
    starts = tuple(f"test_{operator}" for operator in operators)
    return [n for n in names if n.startswith(starts) and not any(f in n for f in FLOAT_CODES)]


def read(name: str) -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
    """The model, its inputs and its expected outputs; ml_dtypes integers as int8 and uint8."""
    model = onnx.load(FOLDER / name / "model.onnx")

    def arrays(kind: str, count: int) -> list[np.ndarray]:
        folder = FOLDER / name / "test_data_set_0"
        tensors = [onnx.load_tensor(folder / f"{kind}_{i}.pb") for i in range(count)]
        return [plain(onnx.numpy_helper.to_array(t)) for t in tensors]

    return model, arrays("input", len(model.graph.input)), arrays("output", len(model.graph.output))


def plain(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "fiub":
        return array
    return array.astype(np.int8 if array.dtype.name.startswith("int") else np.uint8)


def with_constants(model: Any, inputs: list[np.ndarray]) -> Network:
    """The network of a one-node model whose inputs, but for the first, are constants."""
    first, *rest = model.graph.input
    initializers = [onnx.numpy_helper.from_array(a, i.name) for i, a in zip(rest, inputs[1:])]
    graph = onnx.helper.make_graph(
        model.graph.node, "case", [first], model.graph.output, initializers
    )
    return from_onnx(onnx.helper.make_model(graph, opset_imports=model.opset_import))


def format_of(array: np.ndarray, name: str) -> IntFormat:
    bits = next((b for b in (2, 4, 16) if f"int{b}" in name), 8)
    return IntFormat(bits, signed=array.dtype.kind == "i")


def test_all_37_cases_are_covered():
    covered = [*SUMS, *HALVES, *QUANTIZERS, *DEQUANTIZERS, *DYNAMIC]
    assert sorted(covered) == cases(*OPERATORS, "dequantizelinear", "dynamicquantizelinear")
    assert len(covered) == 37


SUMS = [n for n in cases("matmulinteger", "convinteger", "qlinear") if "float16" not in n]
HALVES = [n for n in cases("qlinearmatmul") if "float16" in n]
QUANTIZERS = cases("quantizelinear")
DEQUANTIZERS = cases("dequantizelinear")
DYNAMIC = cases("dynamicquantizelinear")


@pytest.mark.parametrize("name", SUMS)
def test_sums(name):
    model, inputs, (expected,) = read(name)
    if "3D" not in name:
        network = with_constants(model, inputs)
        np.testing.assert_array_equal(network.forward(inputs[0]), expected)
        return
    for a, b, y in zip(inputs[0], inputs[3], expected):  # a matrix of weights for each sample
        del model.graph.input[0].type.tensor_type.shape.dim[0]
        operands = [a, *inputs[1:3], b, *inputs[4:]]
        np.testing.assert_array_equal(with_constants(model, operands).forward(a), y)
        model, *_ = read(name)


@pytest.mark.parametrize("name", HALVES)
def test_sums_with_float16_scales(name):
    """The scales are exact rationals: their type does not matter."""
    _, (a, s_a, z_a, b, s_b, z_b, s_y, z_y), (expected,) = read(name)
    fmt = format_of(expected, "")
    gain = exact(s_a) * exact(s_b) / exact(s_y)
    act = Requantize.from_affine(gain, 0, fmt, "half_even", zero_point=int(z_y[0]))
    for x, w, y in zip(batches(a), batches(b), batches(expected)):
        layer = Linear((w.astype(np.int64) - int(z_b[0])).T)
        acc = layer.forward(x.astype(np.int64) - int(z_a[0]))
        np.testing.assert_array_equal(act.forward(acc), y)


def exact(scale: np.ndarray) -> Fraction:
    return Fraction(float(scale.reshape(-1)[0]))


def batches(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[-2:])


def by_blocks(
    model: Any, x: np.ndarray, scale: np.ndarray, zero: np.ndarray, run: Callable[..., np.ndarray]
) -> np.ndarray:
    """run(values, scale, zero, axis) on the parts that one rule of scales describes."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    axis, block = values.get("axis", 1), values.get("block_size", 0)
    if not block:
        return run(x, scale, zero, axis if scale.size > 1 else None)
    out = np.empty(x.shape, dtype=object)
    for index in np.ndindex(scale.shape):
        start = tuple(
            slice(i * block, (i + 1) * block) if d == axis else slice(i, i + 1)
            for d, i in enumerate(index)
        )
        out[start] = run(x[start], scale[index], zero[index], None)
    return out


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers(name):
    model, (x, scale, *rest), (expected,) = read(name)
    fmt = format_of(expected, name)
    zero = rest[0] if rest else np.zeros(scale.shape, dtype=expected.dtype)

    def run(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int | None) -> np.ndarray:
        zeros = np.asarray(zero, dtype=np.int64)
        return AffineQuantizer(scale, zeros, fmt, "half_even", axis).quantize(x)

    np.testing.assert_array_equal(by_blocks(model, x, scale, zero, run), expected)


@pytest.mark.parametrize("name", DEQUANTIZERS)
def test_dequantizers(name):
    model, (x, scale, *rest), (expected,) = read(name)
    fmt = format_of(x, name)
    zero = rest[0] if rest else np.zeros(scale.shape, dtype=x.dtype)

    def run(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int | None) -> np.ndarray:
        zeros = np.asarray(zero, dtype=np.int64)
        if scale.size == 1:
            scale, zeros = np.reshape(scale, ()), np.reshape(zeros, ())
        return AffineQuantizer(scale, zeros, fmt, "half_even", axis).dequantize(x)

    result = by_blocks(model, x, scale, zero, run).astype(expected.dtype)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_quantization_is_a_quantizer_from_its_own_data(name):
    _, (x,), (codes, scale, zero) = read(name)
    quantizer = AffineQuantizer.from_data(x, 8)
    assert quantizer.scale == scale
    assert quantizer.zero_point == zero
    np.testing.assert_array_equal(quantizer.quantize(x), codes)


# --- where the reference evaluator departs ------------------------------------------------------


def reference(op: str, *inputs: np.ndarray, opset: int = 21) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    names = [f"i{k}" for k in range(len(inputs))]
    infos = [onnx.helper.make_tensor_value_info(n, 0, None) for n in names]
    output = onnx.helper.make_tensor_value_info("y", 0, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, names, ["y"])], "g", infos, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs)))[0]


def test_the_reference_of_qlinear_matmul_adds_the_zero_point_before_it_rounds():
    a, b = np.array([[1], [3], [5], [7]], np.uint8), np.array([[1]], np.uint8)
    one, zero, y_zero = np.float32([1]), np.uint8([0]), np.uint8([1])
    operands = (a, one, zero, b, one, zero, np.float32([2]), y_zero)
    assert reference("QLinearMatMul", *operands).ravel().tolist() == [2, 2, 4, 4]
    act = Requantize.from_scale(1.0, 2.0, IntFormat(8, False), "half_even", zero_point=1)
    assert act.forward(a.astype(np.int64)).ravel().tolist() == [1, 3, 3, 5]
    linear = reference("QuantizeLinear", a.astype(np.float32), np.float32(2), np.uint8(1))
    assert linear.ravel().tolist() == [1, 3, 3, 5]  # the same package's other operator is ours


def test_the_reference_of_quantize_linear_casts_before_it_saturates():
    x = np.float32([3e9, -3e9, 254.6])
    with np.errstate(invalid="ignore"):
        got = reference("QuantizeLinear", x, np.float32(1), np.uint8(0))
    assert got.tolist() == [0, 0, 255]
    ours = SymmetricQuantizer(1.0, IntFormat(8, False))
    assert ours.quantize(x).tolist() == [255, 0, 255]


def test_the_reference_of_matmul_integer_wraps_at_32_bits():
    k = 2**31 // (255 * 255) + 1
    a, b = np.full((1, k), 255, np.uint8), np.full((k, 1), 255, np.uint8)
    assert reference("MatMulInteger", a, b).item() == 255 * 255 * k - 2**32
    assert Linear(b.T.astype(np.int64)).forward(a.astype(np.int64)).item() == 255 * 255 * k
