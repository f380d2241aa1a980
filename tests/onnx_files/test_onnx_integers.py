"""Integer tensors mean integers: every value as onnxruntime computes it, its optimizer off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper
from onnx_networks import run_onnxruntime
from onnx_random_graphs import DTYPES

from refqnn.errors import NotCovered
from refqnn.onnx import from_onnx

ONE, TWO = np.float32(1), np.float32(2)
SIGNS = np.int8([[1, -1], [1, -1]])
MM = ("MatMulInteger x w -> m", {"w": SIGNS})


def build(lines: list[Any], in_type: str, out_type: str, shape: tuple[int, ...]) -> Any:
    """A model of lines "[domain:]Op inputs -> output", each alone or with constants, attributes."""
    nodes, constants = [], {}
    for line in lines:
        text, values, attributes = (*((line,) if isinstance(line, str) else line), {}, {})[:3]
        left, output = text.split(" -> ")
        op, *inputs = left.split()
        constants.update(values)
        domain = "com.microsoft" if op.startswith(("QLinear", "QGemm")) else ""
        domain = "" if op in ("QLinearConv", "QLinearMatMul") else domain
        nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
    kinds = [getattr(TensorProto, t) for t in (in_type, out_type)]
    x = helper.make_tensor_value_info("x", kinds[0], ["n", *shape])
    y = helper.make_empty_tensor_value_info("y")
    y.type.tensor_type.elem_type = kinds[1]
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def check(model: Any, X: np.ndarray, floats: bool) -> None:
    network = from_onnx(model)
    acc = network.forward(X)
    ours = network.dequantize_output(acc) if floats else acc
    np.testing.assert_array_equal(ours, run_onnxruntime(model, X, "ORT_DISABLE_ALL"))


def i8(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int8) if len(values) > 1 else np.int8(values[0])


DQ = ("DequantizeLinear q s z -> y", {"s": ONE, "z": np.int8(0)})
CASES: dict[str, tuple[list[Any], str, str, int]] = {
    "relu of a sum": ([MM, "Relu m -> y"], "UINT8", "INT32", 2),
    "max of a sum": ([MM, ("Max m c -> y", {"c": np.int32(3)})], "UINT8", "INT32", 2),
    "clip of a sum": (
        [MM, ("Clip m a b -> y", {"a": np.int32(-3), "b": np.int32(5)})], "UINT8", "INT32", 2,
    ),
    "twice a sum": ([MM, ("Mul m c -> y", {"c": np.int32(2)})], "UINT8", "INT32", 2),
    "less a vector": ([MM, ("Sub m c -> y", {"c": np.int32([7, -9])})], "UINT8", "INT32", 2),
    "a constant less": ([MM, ("Sub c m -> y", {"c": np.int32(7)})], "UINT8", "INT32", 2),
    "sum of two sums": ([MM, "Relu m -> r", "Add m r -> y"], "UINT8", "INT32", 2),
    "a constant on a square of a sum": (
        [MM, "Mul m m -> q", ("Add q c -> y", {"c": np.int32([5, -7])})], "UINT8", "INT32", 2,
    ),
    "sum of products of channels": (
        [("Max x c -> t", {"c": np.uint8([7, 200])}), "Mul t t -> q", "Add q q -> y"],
        "UINT8", "UINT8", 2,
    ),
    "products of channels change places": (
        [("Max x c -> t", {"c": np.uint8([7, 200])}), "Mul t t -> q",
         ("Gather q i -> y", {"i": np.int64([1, 0])}, {"axis": 1})], "UINT8", "UINT8", 2,
    ),
    "float products of channels change places": (
        [("DequantizeLinear x s z -> f", {"s": np.float32(0.5), "z": np.uint8(9)}),
         ("Mul f k -> g", {"k": np.float32([3, -5])}), "Mul f g -> q",
         ("Gather q i -> y", {"i": np.int64([1, 0])}, {"axis": 1})], "UINT8", "FLOAT", 2,
    ),
    **{
        f"{op} than a constant, beside what it compares": (
            [MM, (f"{op} m c -> b", {"c": np.int32([5, -3])}),
             ("Cast b -> i", {}, {"to": TensorProto.INT32}), "Add i m -> y"], "UINT8", "INT32", 2,
        )
        for op in ("Less", "Greater", "LessOrEqual")
    },
    "a float less its magnitude": (
        [("DequantizeLinear x s z -> f", {"s": np.float32(0.1), "z": np.int8(9)}), "Abs f -> g",
         "Sub f g -> h", ("QuantizeLinear h t z -> y", {"t": np.float32(0.3)})], "INT8", "INT8", 2,
    ),
    "layer on a clipped sum": (
        [MM, "Relu m -> r", ("MatMul r v -> y", {"v": np.int32([[1, 2], [-1, 1]])})],
        "UINT8", "INT32", 2,
    ),
    "add wraps": ([("Add x c -> y", {"c": i8(100, -100)})], "INT8", "INT8", 2),
    "mul wraps": ([("Mul x c -> y", {"c": i8(3)})], "INT8", "INT8", 2),
    "sum of itself wraps": (["Add x x -> q", DQ], "INT8", "FLOAT", 1),
    "square wraps": (["Mul x x -> y"], "INT8", "INT8", 1),
    "negative wraps": (["Neg x -> q", DQ], "INT8", "FLOAT", 1),
    "magnitude wraps": (["Abs x -> y"], "INT8", "INT8", 1),
    "unsigned difference wraps": ([("Sub x c -> y", {"c": np.uint8(200)})], "UINT8", "UINT8", 1),
    "cast wraps": (
        [("Cast x -> w", {}, {"to": TensorProto.INT32}), ("Mul w c -> v", {"c": np.int32(77)}),
         ("Cast v -> y", {}, {"to": TensorProto.INT8})], "INT8", "INT8", 1,
    ),
    "relu of codes": (["Relu x -> y"], "INT8", "INT8", 1),
    "division truncates": ([("Div x c -> y", {"c": i8(4)})], "INT8", "INT8", 1),
    "division in wide codes": (
        [("Cast x -> w", {}, {"to": TensorProto.INT32}), ("Div w c -> v", {"c": np.int32(4)}),
         ("Cast v -> f", {}, {"to": TensorProto.FLOAT}),
         ("QuantizeLinear f s z -> q", {}), DQ], "INT8", "FLOAT", 1,
    ),
    "division by a negative": ([("Div x c -> y", {"c": i8(-3)})], "INT8", "INT8", 1),
    "mod has the sign of the divisor": ([("Mod x c -> y", {"c": i8(5, -5)})], "INT8", "INT8", 2),
    "fmod has the sign of the dividend": (
        [("Mod x c -> y", {"c": i8(5, -5)}, {"fmod": 1})], "INT8", "INT8", 2,
    ),
    "shift left wraps": (
        [("BitShift x c -> y", {"c": np.uint8(3)}, {"direction": "LEFT"})], "UINT8", "UINT8", 1,
    ),
    "shift right": (
        [("BitShift x c -> y", {"c": np.uint8([1, 3])}, {"direction": "RIGHT"})],
        "UINT8", "UINT8", 2,
    ),
    "clip with its ends exchanged": (
        ["DequantizeLinear x s z -> f", "QuantizeLinear f s z -> k",
         ("Clip k a b -> q", {"a": i8(9), "b": i8(-9)}), DQ], "INT8", "FLOAT", 1,
    ),
    "max above all codes": (
        [("Clip x a b -> k", {"a": i8(-9), "b": i8(9)}), ("Max k c -> y", {"c": i8(50)})],
        "INT8", "INT8", 1,
    ),
    "a table from its end": (
        [("Cast x -> w", {}, {"to": TensorProto.INT32}),
         ("Gather c w -> y", {"c": np.int32(range(300))}, {"axis": 0})], "INT8", "INT32", 1,
    ),
    "cast of a float truncates": (
        [("DequantizeLinear x s z -> f", {"s": np.float32(0.25), "z": np.int8(3)}),
         ("Cast f -> y", {}, {"to": TensorProto.INT32})], "INT8", "INT32", 1,
    ),
    "dequantized with a zero point": (
        [("DequantizeLinear x s z -> y", {"s": np.float32(0.1), "z": np.uint8(128)})],
        "UINT8", "FLOAT", 1,
    ),
    "relu between floats": (
        [("DequantizeLinear x s z -> f", {"s": np.float32(0.25), "z": np.uint8(9)}), "Relu f -> r",
         ("MatMul r w -> y", {"w": np.float32([[1, 2], [0, -3]])})], "UINT8", "FLOAT", 2,
    ),
    "kappa and lambda": (
        [("Cast x -> f", {}, {"to": TensorProto.FLOAT}),
         ("MatMul f w -> a", {"w": np.float32(SIGNS)}),
         ("Mul a k -> b", {"k": np.float32([3, 5])}), ("Add b l -> d", {"l": np.float32([7, -9])}),
         ("Div d c -> e", {"c": np.float32(16)}), "Floor e -> g",
         ("Clip g lo hi -> h", {"lo": np.float32(0), "hi": np.float32(15)}),
         ("MatMul h v -> y", {"v": np.float32([[1], [2]])})], "UINT8", "FLOAT", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_code_as_the_runtime_computes_it(name):
    lines, in_type, out_type, width = CASES[name]
    model = build(lines, in_type, out_type, (width,))
    limits = np.iinfo(DTYPES[in_type])
    codes = np.arange(limits.min, limits.max + 1)
    X = np.stack([np.roll(codes, 77 * i) for i in range(width)], axis=1).astype(DTYPES[in_type])
    check(model, X, out_type == "FLOAT")


Z, Y = {"z": np.uint8(3)}, {"t": TWO, "k": np.uint8(1)}  # ties at every second code, an odd zero
S = {"s": ONE, "r": np.float32(0.5)}
ORDER: dict[str, tuple[Any, tuple[int, ...]]] = {
    "QuantizeLinear": ("x t k -> y", {}, {}, (2,)),
    "QLinearConv": ("x s z w s a t k -> y", {"w": np.int8([[[[1]], [[2]]]]), "a": i8(0)}, {},
                    (2, 2, 2)),
    "QLinearMatMul": ("x s z w s a t k -> y", {"w": SIGNS, "a": i8(0)}, {}, (2,)),
    "QGemm": ("x s z w s a b t k -> y", {"w": SIGNS, "a": i8(0), "b": np.int32([1, 2])}, {}, (2,)),
    "QLinearAdd": ("x s z x t z t k -> y", {}, {}, (2,)),
    "QLinearMul": ("x s z c s z t k -> y", {"c": np.uint8(8)}, {}, (2,)),
    "QLinearAveragePool": ("x s z t k -> y", {}, {"kernel_shape": [1, 2]}, (1, 2, 2)),
    "QLinearGlobalAveragePool": ("x s z t k -> y", {}, {}, (1, 2, 2)),
    "QLinearConcat": ("t k x s z x r z -> y", {}, {"axis": 1}, (2,)),
    "QLinearLeakyRelu": ("x s z t k -> y", {}, {"alpha": 0.25}, (2,)),
    "QLinearSigmoid": ("x s z e k -> y", {"e": np.float32(2.0**-7)}, {}, (2,)),
    "MatMulInteger": ("x w z a -> y", {"w": SIGNS, "a": i8(2)}, {}, (2,)),
    "ConvInteger": ("x w z a -> y", {"w": np.int8([[[[1]], [[2]]]]), "a": i8(2)}, {}, (2, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("op", ORDER)
def test_the_order_of_rounding_and_zero_point(op):
    text, values, attributes, shape = ORDER[op]
    lines: list[Any] = [(f"{op} {text}", {**S, **Z, **Y, **values}, attributes)]
    if op == "QuantizeLinear":
        lines = [("DequantizeLinear x s z -> f", {}), (f"{op} f t k -> y", {**S, **Z, **Y})]
    model = build(lines, "UINT8", "INT32" if op.endswith("Integer") else "UINT8", shape)
    rng = np.random.default_rng(1)
    X = rng.integers(0, 256, (400, *shape)).astype(np.uint8)
    X[0], X[1] = 0, 255
    check(model, X, floats=False)


# The kernels of QLinearAdd and QLinearAveragePool round in several ways, a sigmoid is approximated.
APART = {"QLinearAdd", "QLinearAveragePool", "QLinearSigmoid", "MatMulInteger", "ConvInteger"}


@pytest.mark.parametrize("op", [op for op in ORDER if op not in APART])
def test_decimal_scales_in_the_order_of_the_runtime(op):
    """Many values lie beside a tie, on either side of it by the order of the float operations."""
    text, values, attributes, shape = ORDER[op]
    rng = np.random.default_rng(4)
    X = np.stack([np.roll(np.arange(256), 77 * i) for i in range(int(np.prod(shape)))], axis=1)
    X = X.reshape(256, *shape).astype(np.uint8)
    for _ in range(12):
        s, r, t = (rng.integers(1, 21, 3) / 10).astype(np.float32)
        scales = {"s": s, "r": r, "t": np.float32(t * (30 if op == "QLinearMul" else 1))}
        given = {**Z, **Y, **values, **scales, "k": np.uint8(rng.integers(256))}
        lines: list[Any] = [(f"{op} {text}", given, attributes)]
        if op == "QuantizeLinear":
            lines = [("DequantizeLinear x s z -> f", {}), (f"{op} f t k -> y", given)]
        check(build(lines, "UINT8", "UINT8", shape), X, floats=False)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"strides": [2, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, {"auto_pad": "VALID"},
     {"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_LOWER"}],
)  # fmt: skip
def test_an_average_of_all_positions_rounds_before_its_zero_point(attributes):
    """Without padding the runtime takes its global average; with padding it does not."""
    for t in (TWO, np.float32(0.7)) if "pads" not in attributes else (TWO,):
        values = {**S, **Z, **Y, "t": t}
        told = {"kernel_shape": [2, 3], **attributes}
        if told.get("auto_pad") == "SAME_LOWER":  # here padded: sums of powers of two alone
            values["t"] = TWO
        model = build([("QLinearAveragePool x s z t k -> y", values, told)], "UINT8", "UINT8",
                      (2, 2, 3))  # fmt: skip
        X = np.random.default_rng(3).integers(0, 256, (400, 2, 2, 3)).astype(np.uint8)
        check(model, X, floats=False)


POOLS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "average of rows": ("AveragePool", {"kernel_shape": [3]}, (2, 7)),
    "average of rows, padding counted": (
        "AveragePool", {"kernel_shape": [2], "pads": [1, 0], "count_include_pad": 1}, (2, 7)),
    "average with strides": ("AveragePool", {"kernel_shape": [2, 4], "strides": [1, 2]}, (2, 4, 6)),
    "maximum of rows": ("MaxPool", {"kernel_shape": [3], "strides": [2]}, (2, 7)),
    "greatest of all": ("ReduceMax", {"axes": [2, 3], "keepdims": 0}, (2, 3, 2)),
    "greatest of a row": ("ReduceMax", {"axes": [2]}, (3, 4)),
    "mean of all": ("ReduceMean", {"axes": [-1, -2], "keepdims": 0}, (2, 4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("name", POOLS)
def test_poolings(name, zero):
    op, attributes, shape = POOLS[name]
    values = {"s": np.float32([0.5, 2])[: shape[0]], "z": np.uint8([zero] * 2)}
    if shape[0] != 2:
        values = {"s": ONE, "z": np.uint8(zero)}
    model = build([("DequantizeLinear x s z -> f", values), (f"{op} f -> y", {}, attributes)],
                  "UINT8", "FLOAT", shape)  # fmt: skip
    X = np.random.default_rng(3).integers(0, 256, (60, *shape)).astype(np.uint8)
    network = from_onnx(model)
    ours = network.dequantize_output(network.forward(X))
    np.testing.assert_allclose(ours, run_onnxruntime(model, X, "ORT_DISABLE_ALL"), rtol=2e-7)


ROWS: dict[str, list[Any]] = {
    "MatMul": [("DequantizeLinear x s z -> f", {"s": np.float32(0.5), "z": np.uint8(3)}),
               ("MatMul f w -> y", {"w": np.float32([[1, -2, 0], [3, 1, -1]])})],
    "MatMulInteger": [("MatMulInteger x w z a -> y", {"w": SIGNS, "z": np.uint8(3), "a": i8(2)})],
    "QLinearMatMul": [("QLinearMatMul x s z w s a t k -> y",
                       {"s": ONE, "z": np.uint8(3), "w": SIGNS, "a": i8(0), "t": TWO,
                        "k": np.uint8(1)})],
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("op", ROWS)
def test_a_matrix_product_of_each_row(op, rows):
    out = {"MatMul": "FLOAT", "MatMulInteger": "INT32"}.get(op, "UINT8")
    X = np.random.default_rng(3).integers(0, 256, (60, rows, 2)).astype(np.uint8)
    check(build(ROWS[op], "UINT8", out, (rows, 2)), X, out == "FLOAT")


@pytest.mark.parametrize("domain", ["", "PACTOps"])
@pytest.mark.parametrize(("levels", "signed"), [(16, 0), (16, 1), (15, 1)])
def test_requant_shift_in_python_integers(domain, levels, signed):
    mul, add, div = [37, 5], [-900, 777], 64
    values = {"w": np.float32(SIGNS), "k": np.float32([mul]), "l": np.float32([add])}
    cast = ("Cast x -> f", {}, {"to": TensorProto.FLOAT})
    model = build([cast, ("MatMul f w -> a", values), "RequantShift a k l -> y"],
                  "UINT8", "FLOAT", (2,))  # fmt: skip
    node = model.graph.node[-1]
    node.domain = domain
    told = {"div": np.int64([div]), "n_levels": np.int64([levels]), "signed": np.int64([signed])}
    for name, value in told.items():
        node.attribute.append(helper.make_attribute(name, numpy_helper.from_array(value)))
    X = np.random.default_rng(3).integers(0, 256, (400, 2)).astype(np.uint8)
    lo, hi = (-(levels // 2), (levels - 1) // 2) if signed else (0, levels - 1)
    sums = [int(a) + int(b) for a, b in X]
    expected = [
        [min(max((m * s * sign + a) // div, lo), hi) for m, a, sign in zip(mul, add, (1, -1))]
        for s in sums
    ]
    assert from_onnx(model).forward(X).tolist() == expected


def test_an_average_without_its_padding():
    values = {"s": ONE, "z": np.uint8(3), "t": np.float32(4)}
    pool = ("AveragePool f -> p", {}, {"kernel_shape": [3], "pads": [1, 1]})
    lines = [("DequantizeLinear x s z -> f", values), pool, "QuantizeLinear p t z -> y"]
    X = np.random.default_rng(3).integers(0, 256, (60, 2, 7)).astype(np.uint8)
    check(build(lines, "UINT8", "UINT8", (2, 7)), X, floats=False)


@pytest.mark.parametrize("factor", [2**20, 2**21])
def test_a_sum_of_integers_over_positions_is_exact_or_refused(factor):
    lines = [("Cast x -> w", {}, {"to": TensorProto.INT32}),
             ("Mul w c -> m", {"c": np.int32(factor)}),
             ("ReduceSum m a -> y", {"a": np.int64([2])}, {"keepdims": 0})]  # fmt: skip
    model = build(lines, "UINT8", "INT32", (2, 5))
    X = np.random.default_rng(3).integers(0, 256, (60, 2, 5)).astype(np.uint8)
    if 255 * 5 * factor < 2**31:
        check(model, X, floats=False)
        return
    with pytest.raises(NotCovered, match=r"in \[0, 2673868800\], wraps in 32 bits"):
        from_onnx(model)


def test_without_output_scale_a_gemm_of_codes_gives_floats():
    values = {"s": ONE, "z": np.uint8(3), "w": SIGNS, "a": i8(0)}
    model = build([("QGemm x s z w s a -> y", values)], "UINT8", "FLOAT", (2,))
    check(model, np.arange(256, dtype=np.uint8).reshape(-1, 2), floats=True)


def test_an_accumulator_beyond_32_bits_is_refused():
    w = np.full((2**16, 1), 127, dtype=np.int8)
    values = {**S, **Z, **Y, "w": w, "a": i8(0)}
    for op in ("QLinearMatMul x s z w s a t k -> y", "MatMulInteger x w z a -> y"):
        out = "INT32" if "Integer" in op else "UINT8"
        with pytest.raises(NotCovered, match="wraps in 32 bits"):
            from_onnx(build([(op, {**values, "w": np.tile(w, (2, 1))})], "UINT8", out, (2**17,)))


def test_integers_that_are_too_many_to_list_are_refused_with_their_range():
    wide = ("Cast x -> w", {}, {"to": TensorProto.INT64})
    lines = [wide, ("Mul w c -> m", {"c": np.int64(10**9)}), ("Mod m d -> y", {"d": np.int64(7)})]
    with pytest.raises(NotCovered, match=r"too many to list") as caught:
        from_onnx(build([*lines[:1], "Add w w -> a", *lines[1:]], "INT32", "INT64", (1,)),
                  input="INT32")  # fmt: skip
    assert "-2147483648" in str(caught.value)
