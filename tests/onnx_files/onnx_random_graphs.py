"""Random small graphs of integer and quantized operators, for comparison with a runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

DTYPES = {
    "INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16, "UINT16": np.uint16,
    "INT32": np.int32, "UINT32": np.uint32, "INT64": np.int64, "FLOAT": np.float32,
}  # fmt: skip
EIGHT = ("INT8", "UINT8")
SCALES = (0.25, 0.5, 1.0, 2.0)


class RandomGraph:
    """One tensor after the other, each an operator on the last (or on it and an earlier one)."""

    opset = 19

    def __init__(self, rng: np.random.Generator, size: int, scales: tuple[float, ...] = SCALES):
        self.rng, self.scales = rng, scales
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.shape = self.given = self.first_shape()
        self.input_type = str(rng.choice(EIGHT))
        self.last, self.dtype = "x", self.input_type
        while len(self.nodes) < size or self.last == "x":
            getattr(self, "after_" + ("floats" if self.dtype == "FLOAT" else "integers"))()

    def first_shape(self) -> tuple[int, ...]:
        return (int(self.rng.integers(1, 4)),)

    @property
    def width(self) -> int:
        """The channels."""
        return self.shape[0]

    def const(self, values: Any, dtype: str) -> str:
        array = np.asarray(values)
        if dtype != "FLOAT":
            limits = np.iinfo(DTYPES[dtype])
            array = np.clip(array, limits.min, limits.max)
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array.astype(DTYPES[dtype]), name))
        return name

    def add(self, op: str, inputs: list[str], dtype: str, domain: str = "", **kw: Any) -> None:
        self.last, self.dtype = f"t{len(self.nodes)}", dtype
        self.nodes.append(helper.make_node(op, inputs, [self.last], domain=domain, **kw))

    def integers(self, low: int, high: int) -> Any:
        """One value, or one per channel."""
        size = None if self.rng.random() < 0.6 else self.width
        return self.rng.integers(low, high, size)

    def scale(self) -> str:
        return self.const(self.rng.choice(self.scales), "FLOAT")

    def quantize(self) -> None:
        dtype = str(self.rng.choice(EIGHT))
        zero = self.const(self.rng.integers(-5, 6), dtype)
        self.add("QuantizeLinear", [self.last, self.scale(), zero], dtype)

    def after_floats(self) -> None:
        x, pick = self.last, self.rng.integers(8)
        if pick == 0 and self.rng.random() < 0.3:
            self.choice(x, "FLOAT", self.const(self.rng.integers(-12, 13) / 4, "FLOAT"))
        elif pick == 0:
            self.add(str(self.rng.choice(("Relu", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign"))),
                     [x], "FLOAT")  # fmt: skip
        elif pick == 1:
            value = self.rng.integers(-12, 13) / 4
            self.add(str(self.rng.choice(("Add", "Mul"))), [x, self.const(value, "FLOAT")], "FLOAT")
        elif pick == 2:
            ends = [self.const(v / 2, "FLOAT") for v in self.rng.integers(-40, 60, 2)]
            self.add("Clip", [x, *ends], "FLOAT")
        elif pick == 3:
            w = self.rng.integers(-3, 4, (self.width, self.width))
            self.add("MatMul", [x, self.const(w, "FLOAT")], "FLOAT")
        elif pick == 4:
            dtype = str(self.rng.choice(("INT32", "INT64")))
            self.add("Cast", [x], dtype, to=getattr(TensorProto, dtype))
        else:
            self.quantize()

    def after_integers(self) -> None:
        x, dtype, pick = self.last, self.dtype, self.rng.integers(14)
        if pick < 3:
            op = str(self.rng.choice(("Add", "Sub", "Mul", "Max", "Min")))
            pair = [x, self.const(self.integers(-130, 130), dtype)]
            self.add(op, pair if self.rng.random() < 0.7 else pair[::-1], dtype)
        elif pick == 3:
            divisor = self.const(self.rng.choice((1, 2, 3, 4, 7)), dtype)
            self.add("Div", [x, divisor], dtype)
        elif pick == 4:
            divisor = self.rng.choice((3, 4, 7, -5) if dtype.startswith("INT") else (3, 4, 7))
            self.add("Mod", [x, self.const(divisor, dtype)], dtype, fmod=int(self.rng.integers(2)))
        elif pick == 5 and dtype.startswith("UINT"):
            amount = self.const(self.rng.integers(0, 5), dtype)
            direction = str(self.rng.choice(("LEFT", "RIGHT")))
            self.add("BitShift", [x, amount], dtype, direction=direction)
        elif pick == 5:
            self.add(str(self.rng.choice(("Neg", "Abs", "Sign", "Relu"))), [x], dtype)
        elif pick == 6:
            ends = [self.const(v, dtype) for v in self.rng.integers(-60, 90, 2)]
            self.add("Clip", [x, *ends], dtype)
        elif pick == 7:
            to = str(self.rng.choice([d for d in DTYPES if d != dtype]))
            self.add("Cast", [x], to, to=getattr(TensorProto, to))
        elif pick == 8 and self.rng.random() < 0.5 and dtype in ("INT32", "INT64", "UINT8"):
            self.choice(x, dtype, self.const(self.integers(-60, 90), dtype))
        elif pick == 8:
            self.add(str(self.rng.choice(("Add", "Mul", "Sub"))), [x, x], dtype)
        elif pick in (9, 10) and dtype in EIGHT:
            zero = self.const(self.rng.integers(-5, 6), dtype)
            self.add("DequantizeLinear", [x, self.scale(), zero], "FLOAT")
        elif pick == 11 and dtype in EIGHT:
            w = self.const(self.rng.integers(-4, 5, (self.width, self.width)), "INT8")
            zeros = [self.const(3, dtype), self.const(self.rng.integers(-2, 3), "INT8")]
            self.add("MatMulInteger", [x, w, *zeros], "INT32")
        elif pick == 12 and dtype in EIGHT:
            self.quantized(x, dtype)
        elif pick == 13:
            w = self.rng.integers(-3, 4, (self.width, self.width))
            if dtype in ("INT32", "INT64", "UINT32"):
                self.add("MatMul", [x, self.const(w, dtype)], dtype)

    def choice(self, x: str, dtype: str, limit: str) -> None:
        """One of x, its square and a constant, by its size or by a comparison."""
        self.add("Mul", [x, x], dtype)
        square, pick = self.last, self.rng.integers(3)
        if pick == 0 and dtype != "UINT8":
            self.add(str(self.rng.choice(("Max", "Min"))), [square, x], dtype)
            return
        self.add(str(self.rng.choice(("Less", "Greater", "LessOrEqual"))), [x, limit], "BOOL")
        if pick == 1:
            self.add("Cast", [self.last], dtype, to=getattr(TensorProto, dtype))
        else:
            pair = [x, str(self.rng.choice((square, limit)))]
            self.add("Where", [self.last, *pair], dtype)

    def quantized(self, x: str, dtype: str) -> None:
        """One of the operators that hold their own scales and zero points."""

        def tensor(name: str) -> list[str]:
            return [name, self.scale(), self.const(self.rng.integers(-4, 5), dtype)]

        pick, out = self.rng.integers(4), tensor("")[1:]
        if pick == 0:
            self.add("QLinearAdd", [*tensor(x), *tensor(x), *out], dtype, "com.microsoft")
        elif pick == 1:
            value = self.const(self.integers(-9, 10), dtype)
            op = str(self.rng.choice(("QLinearAdd", "QLinearMul")))
            self.add(op, [*tensor(x), *tensor(value), *out], dtype, "com.microsoft")
        elif pick == 2:
            self.add("QLinearLeakyRelu", [*tensor(x), *out], dtype, "com.microsoft", alpha=0.25)
        else:
            w = self.const(self.rng.integers(-4, 5, (self.width, self.width)), "INT8")
            weights = [w, self.scale(), self.const(0, "INT8")]
            self.add("QLinearMatMul", [*tensor(x), *weights, *out], dtype)

    def model(self) -> Any:
        kinds = [getattr(TensorProto, d) for d in (self.input_type, self.dtype)]
        doors = [
            helper.make_tensor_value_info(name, kind, ["n", *shape])
            for name, kind, shape in zip(("x", self.last), kinds, (self.given, self.shape))
        ]
        graph = helper.make_graph(self.nodes, "g", [doors[0]], [doors[1]], self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def samples(self, n: int) -> np.ndarray:
        limits = np.iinfo(DTYPES[self.input_type])
        X = self.rng.integers(limits.min, limits.max + 1, (n, *self.given))
        X[0], X[1] = limits.min, limits.max
        return X.astype(DTYPES[self.input_type])
