"""Random small graphs of layers, poolings and movements, for comparison with a runtime."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx_random_graphs import EIGHT, RandomGraph

FUNCTIONS: dict[str, dict[str, float]] = {
    "Elu": {"alpha": 0.5}, "Erf": {}, "Exp": {}, "Gelu": {}, "HardSigmoid": {"alpha": 0.25},
    "HardSwish": {}, "LeakyRelu": {"alpha": 0.25}, "Mish": {}, "Selu": {}, "Sigmoid": {},
    "Softplus": {}, "Softsign": {}, "Tanh": {},
}  # fmt: skip
MICROSOFT = "com.microsoft"


class RandomImage(RandomGraph):
    """Samples of channels and up to two axes behind them."""

    opset = 21

    def first_shape(self) -> tuple[int, ...]:
        rank = self.rng.integers(1, 4)
        return tuple(int(self.rng.integers(1, 5)) for _ in range(rank))

    # --- small pieces ---------------------------------------------------------------------------

    def const(self, values: Any, dtype: str) -> str:
        """An initializer, or now and then a node."""
        name = super().const(values, dtype)
        if self.rng.random() < 0.1:
            value = self.initializers.pop()
            self.initializers.append(numpy_helper.from_array(np.zeros(1, np.int64), f"{name}_"))
            self.nodes.append(helper.make_node("Constant", [], [name], value=value))
        return name

    def shaped(self, op: str, inputs: list[str], shape: Any, dtype: str = "", **kw: Any) -> None:
        """An operator that gives samples of another shape."""
        self.add(op, inputs, dtype or self.dtype, **kw)
        self.shape = tuple(int(d) for d in shape)

    def axis(self) -> int:
        """Of a sample, counted from either end of the whole tensor."""
        axis, rank = int(self.rng.integers(len(self.shape))), len(self.shape) + 1
        return axis + 1 if self.rng.random() < 0.5 else axis + 1 - rank

    def integers(self, low: int, high: int) -> Any:
        """One value, or one per channel."""
        values = super().integers(low, high)
        return (
            np.reshape(values, (-1,) + (1,) * (len(self.shape) - 1)) if np.ndim(values) else values
        )

    def one_of(self, *names: str) -> None:
        getattr(self, str(self.rng.choice(names)))()

    # --- what may follow --------------------------------------------------------------------------

    def after_floats(self) -> None:
        pick = self.rng.random()
        if pick < 0.3:
            self.quantize()
        elif pick < 0.45:
            self.function()
        elif pick < 0.7:
            self.move()
        else:
            self.one_of("conv", "transposed", "pool", "reduce", "matrix", "norm", "steps")

    def after_integers(self) -> None:
        pick = self.rng.random()
        if self.dtype not in (*EIGHT, "INT16", "UINT16", "INT4", "UINT4"):
            if pick < 0.5:
                to = str(self.rng.choice(("FLOAT", "INT64", "INT32")))
                self.add("Cast", [self.last], to, to=getattr(TensorProto, to))
            else:
                self.one_of("move", "reduce", "steps", "count")
        elif pick < 0.35 or self.dtype not in EIGHT:
            self.dequantize()
        else:
            self.one_of("move", "pool", "conv", "steps", "quantized", "matrix", "reduce")

    def quantize(self) -> None:
        dtype = str(self.rng.choice((*EIGHT, *EIGHT, "INT16", "UINT16", "INT4", "UINT4")))
        kind = {"INT4": TensorProto.INT4, "UINT4": TensorProto.UINT4}.get(dtype)
        zero = int(self.rng.integers(0, 6))
        if kind is None:
            z = self.const(zero, dtype)
        else:
            z = f"c{len(self.initializers)}"
            self.initializers.append(helper.make_tensor(z, kind, [], [zero]))
        self.zero = z
        domain = MICROSOFT if self.rng.random() < 0.3 and kind is None else ""
        self.add("QuantizeLinear", [self.last, self.scale(), z], dtype, domain)
        if dtype not in EIGHT:
            self.dequantize()

    def dequantize(self) -> None:
        four = self.dtype in ("INT4", "UINT4")
        zero = self.zero if four else self.const(self.rng.integers(0, 6), self.dtype)
        domain = MICROSOFT if self.rng.random() < 0.3 and self.dtype in EIGHT else ""
        self.add("DequantizeLinear", [self.last, self.scale(), zero], "FLOAT", domain)

    def function(self) -> None:
        """One that runtimes approximate, and its codes."""
        op = str(self.rng.choice(list(FUNCTIONS)))
        if op in ("Exp", "Softplus"):
            self.add("Clip", [self.last, *(self.const(v, "FLOAT") for v in (-4, 4))], "FLOAT")
        self.add(op, [self.last], "FLOAT", **FUNCTIONS[op])
        scales, self.scales = self.scales, (0.3, 0.7)  # where an approximation makes no tie
        self.quantize()
        self.scales = scales

    def steps(self) -> None:
        """Operators on one value that only floats or only signed integers have, and choices."""
        x, dtype, pick = self.last, self.dtype, self.rng.integers(7)
        if dtype != "FLOAT":
            super().after_integers() if dtype not in EIGHT and pick else self.same()
        elif pick == 0:
            self.add("PRelu", [x, self.const(self.integers(1, 4) / 4, dtype)], dtype)
        elif pick == 1:
            self.add(
                "Sub",
                [x, self.const(self.integers(-9, 9) / 4, dtype)][
                    :: 1 if self.rng.integers(2) else -1
                ],
                dtype,
            )
        elif pick == 2:
            self.add("Div", [x, self.const(self.rng.choice((0.5, 2.0, 4.0)), dtype)], dtype)
        elif pick == 3:
            shape = self.const(self.shape, "INT64")
            value = numpy_helper.from_array(np.float32([0.75]))
            self.nodes.append(
                helper.make_node("ConstantOfShape", [shape], [f"{x}_fill"], value=value)
            )
            self.add("Add", [x, f"{x}_fill"], dtype)
        elif pick == 4:
            self.add("Dropout", [x], dtype)
        elif pick == 5:
            self.same()
        else:
            super().after_floats()

    def same(self) -> None:
        self.add("Identity", [self.last], self.dtype)

    def count(self) -> None:
        """How many thresholds of its channel a value reaches."""
        x, shape, dtype = self.last, self.shape, self.dtype
        axis = self.const([len(shape) + 1], "INT64")
        table = self.rng.integers(-40, 40, (shape[0], *(1,) * (len(shape) - 1), 3))
        self.add("Unsqueeze", [x, axis], dtype)
        self.add("GreaterOrEqual", [self.last, self.const(table, dtype)], "BOOL")
        self.add("Cast", [self.last], "INT32", to=TensorProto.INT32)
        self.add("ReduceSum", [self.last, axis], "INT32", keepdims=0)

    # --- movements --------------------------------------------------------------------------------

    def move(self) -> None:
        names = ["transpose", "reshape", "slice", "split", "gather", "concat", "tile", "expand"]
        names += ["pad"] if self.dtype in (*EIGHT, "INT32", "FLOAT") else []
        if self.dtype == "FLOAT":
            names += ["norm", *["depth_to_space", "space_to_depth"] * 3, "resize"]
        self.one_of(*names)

    def transpose(self) -> None:
        order = self.rng.permutation(len(self.shape))
        perm = [0, *(int(i) + 1 for i in order)]
        self.shaped("Transpose", [self.last], np.take(self.shape, order), perm=perm)

    def reshape(self) -> None:
        x, shape, pick = self.last, self.shape, self.rng.integers(5)
        if pick == 0:
            self.shaped("Flatten", [x], [prod(shape)], axis=1)
        elif pick == 1 and 1 in shape and len(shape) > 1:
            at = shape.index(1)
            axes = self.const([at + 1], "INT64")
            self.shaped("Squeeze", [x, axes], shape[:at] + shape[at + 1 :])
        elif pick == 2 and len(shape) < 3:
            at = int(self.rng.integers(len(shape) + 1))
            new = (*shape[:at], 1, *shape[at:])
            axes = self.const([at + 1 if self.rng.random() < 0.5 else at - len(new)], "INT64")
            self.shaped("Unsqueeze", [x, axes], new)
        elif pick == 3:
            first = self.const([0], "INT64"), self.const([1], "INT64")
            self.nodes.append(helper.make_node("Shape", [x], [f"{x}_shape"]))
            self.nodes.append(helper.make_node("Slice", [f"{x}_shape", *first], [f"{x}_batch"]))
            rest = [f"{x}_batch", self.const([-1], "INT64")]
            self.nodes.append(helper.make_node("Concat", rest, [f"{x}_to"], axis=0))
            self.shaped("Reshape", [x, f"{x}_to"], [prod(shape)])
        else:
            to = self.const([self.rng.choice((0, -1)), shape[0], prod(shape[1:])], "INT64")
            self.shaped("Reshape", [x, to], [shape[0], prod(shape[1:])])

    def slice(self) -> None:
        axis = self.axis()
        k = axis % (len(self.shape) + 1) - 1
        n, step = self.shape[k], int(self.rng.choice((1, 2, -1)))
        start, end = (n - 1, -n - 1) if step < 0 else (int(self.rng.integers(n)), n)
        size = len(range(n)[start : (None if step < 0 else end) : step])
        cut = [self.const([v], "INT64") for v in (start, end, axis, step)]
        self.shaped("Slice", [self.last, *cut], (*self.shape[:k], size, *self.shape[k + 1 :]))

    def split(self) -> None:
        axis = self.axis()
        k = axis % (len(self.shape) + 1) - 1
        if self.shape[k] < 2:
            return
        sizes = [1, self.shape[k] - 1]
        x, names = self.last, [f"{self.last}_a", f"{self.last}_b"]
        parts = self.const(sizes, "INT64")
        self.nodes.append(helper.make_node("Split", [x, parts], names, axis=axis))
        keep = int(self.rng.integers(2))
        self.shaped("Identity", [names[keep]], (*self.shape[:k], sizes[keep], *self.shape[k + 1 :]))

    def gather(self) -> None:
        axis = self.axis()
        k = axis % (len(self.shape) + 1) - 1
        index = self.rng.integers(-self.shape[k], self.shape[k], self.rng.integers(1, 4))
        shape = (*self.shape[:k], len(index), *self.shape[k + 1 :])
        self.shaped("Gather", [self.last, self.const(index, "INT64")], shape, axis=axis)

    def concat(self) -> None:
        axis = self.axis()
        k = axis % (len(self.shape) + 1) - 1
        shape = (*self.shape[:k], 2 * self.shape[k], *self.shape[k + 1 :])
        if prod(shape) < 200:
            self.shaped("Concat", [self.last, self.last], shape, axis=axis)

    def tile(self) -> None:
        repeats = self.rng.integers(1, 3, len(self.shape))
        if prod(self.shape) * prod(repeats) < 200:
            given = self.const([1, *repeats], "INT64")
            self.shaped("Tile", [self.last, given], np.multiply(self.shape, repeats))

    def expand(self) -> None:
        target = [d if d > 1 else int(self.rng.integers(1, 4)) for d in self.shape]
        given = self.const([1, *target] if self.rng.random() < 0.5 else target, "INT64")
        self.shaped("Expand", [self.last, given], target)

    def pad(self) -> None:
        pairs = self.rng.integers(0, 2, (2, len(self.shape)))
        mode = str(self.rng.choice(("constant", "constant", "edge")))
        pads = self.const([0, *pairs[0], 0, *pairs[1]], "INT64")
        value = [self.const(self.rng.integers(0, 3), self.dtype)] if mode == "constant" else []
        if prod(self.shape) < 100:
            shape = np.add(self.shape, pairs.sum(axis=0))
            self.shaped("Pad", [self.last, pads, *value], shape, mode=mode)

    def depth_to_space(self) -> None:
        if len(self.shape) == 3 and self.shape[0] == 4:
            k, h, w = self.shape
            mode = str(self.rng.choice(("DCR", "CRD")))
            shape = (k // 4, 2 * h, 2 * w)
            self.shaped("DepthToSpace", [self.last], shape, blocksize=2, mode=mode)

    def space_to_depth(self) -> None:
        if len(self.shape) == 3 and self.shape[1] % 2 == self.shape[2] % 2 == 0:
            k, h, w = self.shape
            self.shaped("SpaceToDepth", [self.last], (4 * k, h // 2, w // 2), blocksize=2)

    def resize(self) -> None:
        if len(self.shape) > 1 and prod(self.shape) < 60:
            scales = self.rng.integers(1, 3, len(self.shape) - 1)
            given = ["", "", self.const([1, 1, *scales], "FLOAT")]
            nearest = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
            self.shaped(
                "Resize", [self.last, *given[1:]], np.multiply(self.shape, [1, *scales]),
                mode="nearest", nearest_mode=str(self.rng.choice(nearest)),
                coordinate_transformation_mode=str(self.rng.choice(("asymmetric", "half_pixel"))),
            )  # fmt: skip

    # --- layers and poolings ----------------------------------------------------------------------

    def window(self, least: int = 1) -> tuple[dict[str, Any], list[int]] | None:
        """Attributes of a window over the spatial axes, and how many places it has."""
        spatial = self.shape[1:]
        if not spatial:
            return None
        kernel, strides, pads, places = [], [], [], []
        for n in spatial:
            k = int(self.rng.choice([v for v in (1, 2) if v <= n]))
            before, after = (int(self.rng.integers(0, k)) for _ in range(2))
            s = int(self.rng.integers(1, 3))
            kernel.append(k)
            strides.append(s)
            pads.append((before, after))
            places.append((before + n + after - k) // s + 1)
        told = {"kernel_shape": kernel, "strides": strides}
        ends = [list(p) for p in zip(*pads)]
        auto = self.rng.random()
        if auto < 0.2 and all(s <= k for s, k in zip(strides, kernel)):  # else it pads less than 0
            told["auto_pad"] = str(self.rng.choice(("SAME_UPPER", "SAME_LOWER")))
            places = [-(-n // s) for n, s in zip(spatial, strides)]
        elif auto < 0.3:
            told["auto_pad"] = "VALID"
            places = [(n - k) // s + 1 for n, k, s in zip(spatial, kernel, strides)]
        else:
            told["pads"] = ends[0] + ends[1]
        return told, places

    def conv(self) -> None:
        found = self.window()
        if found is None:
            return self.matrix()
        told, places = found
        group = self.width if self.rng.random() < 0.4 else 1
        out = group * int(self.rng.integers(1, 3))
        shape = (out, self.width // group, *told["kernel_shape"])
        x, dtype, w = self.last, self.dtype, self.rng.integers(-4, 5, shape)
        told["group"] = group
        if dtype == "FLOAT":
            extra = [self.const(self.rng.integers(-9, 9, out) / 2, dtype)][: self.rng.integers(2)]
            inputs = [x, self.const(w / 2, dtype), *extra]
            return self.shaped("Conv", inputs, (out, *places), **told)
        zero = self.const(self.rng.integers(0, 6), dtype)
        if self.rng.random() < 0.5:
            zeros = [zero, self.const(self.rng.integers(-2, 3), "INT8")]
            inputs = [x, self.const(w, "INT8"), *zeros]
            return self.shaped("ConvInteger", inputs, (out, *places), "INT32", **told)
        weights = [self.const(w, "INT8"), self.scale(), self.const(0, "INT8")]
        result = [self.scale(), self.const(self.rng.integers(-4, 5), dtype)]
        bias = [self.const(self.rng.integers(-90, 90, out), "INT32")][: self.rng.integers(2)]
        inputs = [x, self.scale(), zero, *weights, *result, *bias]
        return self.shaped("QLinearConv", inputs, (out, *places), **told)

    def transposed(self) -> None:
        if len(self.shape) != 3 or prod(self.shape) > 60:
            return
        k, h, w = self.shape
        out, kernel, s = int(self.rng.integers(1, 3)), (2, 1), int(self.rng.integers(1, 3))
        weight = self.const(self.rng.integers(-3, 4, (k, out, *kernel)), "FLOAT")
        shape = (out, (h - 1) * s + kernel[0] - 1, (w - 1) * s + kernel[1])
        if min(shape) > 0:
            self.shaped(
                "ConvTranspose", [self.last, weight], shape, strides=[s, s], pads=[1, 0, 0, 0]
            )

    def pool(self) -> None:
        found, x, pick = self.window(), self.last, self.rng.integers(4)
        if found is None:
            return
        (told, places), whole = found, (self.width, *(1,) * (len(self.shape) - 1))
        shape = (self.width, *places)
        if self.dtype == "FLOAT" and pick == 0 and prod(self.shape[1:]) in (1, 2, 4, 8, 16):
            self.shaped("GlobalAveragePool", [x], whole)
        elif self.dtype == "FLOAT" and pick == 1:
            self.shaped("GlobalMaxPool", [x], whole)
        elif self.dtype == "FLOAT" and pick == 2:
            included = int(self.rng.integers(2))
            self.shaped("AveragePool", [x], shape, count_include_pad=included, **told)
        elif len(self.shape) == 3 or self.dtype == "FLOAT":
            self.shaped("MaxPool", [x], shape, **told)

    def reduce(self) -> None:
        x, rank, dtype = self.last, len(self.shape) + 1, self.dtype
        if rank < 3:
            return
        kinds = ["ReduceMax"]
        kinds += ["ReduceSum"] if dtype in ("FLOAT", "INT32", "INT64") else []
        kinds += ["ReduceMean"] if dtype == "FLOAT" and prod(self.shape[1:]) in (1, 2, 4, 8) else []
        keep = int(self.rng.integers(2))
        axes = range(2, rank) if self.rng.random() < 0.5 else range(2 - rank, 0)
        shape = (self.width, *(1,) * (rank - 2)) if keep else (self.width,)
        given = self.const(list(axes), "INT64")
        self.shaped(str(self.rng.choice(kinds)), [x, given], shape, keepdims=keep)

    def norm(self) -> None:
        """Batch normalization by powers of two."""
        row = (self.width,)
        values = (self.rng.choice((0.5, 1.0, 2.0), row), self.rng.integers(-8, 8, row) / 4,
                  self.rng.integers(-8, 8, row) / 4, self.rng.choice((1.0, 4.0), row))  # fmt: skip
        given = [self.const(v, "FLOAT") for v in values]
        self.add("BatchNormalization", [self.last, *given], "FLOAT", epsilon=0.0)

    def matrix(self) -> None:
        if len(self.shape) == 3:  # not covered: a matrix product of rows of rows
            return
        x, dtype, n = self.last, self.dtype, self.shape[-1]
        out = int(self.rng.integers(1, 4))
        w, shape = self.rng.integers(-4, 5, (n, out)), (*self.shape[:-1], out)
        if dtype == "FLOAT" and len(shape) == 1 and self.rng.random() < 0.5:
            turned = int(self.rng.integers(2))
            inputs = [x, self.const(w.T if turned else w, dtype)]
            inputs += [self.const(self.rng.integers(-9, 9, out) / 2, dtype)][: self.rng.integers(2)]
            self.shaped("Gemm", inputs, shape, transB=turned, alpha=0.5)
        elif dtype == "FLOAT":
            self.shaped("MatMul", [x, self.const(w, dtype)], shape)
        else:
            zeros = [self.const(self.rng.integers(0, 6), dtype), self.const(0, "INT8")]
            weights = [self.const(w, "INT8"), self.scale(), zeros[1]]
            bias = self.const(self.rng.integers(-90, 90, out), "INT32")
            inputs = [x, self.scale(), zeros[0], *weights]
            if len(shape) == 1 and self.rng.random() < 0.5:
                y = [bias, self.scale(), self.const(self.rng.integers(0, 6), dtype)]
                self.shaped("QGemm", [*inputs, *y], shape, domain=MICROSOFT)
            else:
                self.shaped("MatMulInteger", [x, weights[0], *zeros], shape, "INT32")

    def quantized(self) -> None:
        """onnxruntime's own poolings, joins and tables."""
        dtype, shape, found = self.dtype, self.shape, self.window()

        def tensor(*name: str) -> list[str]:
            return [*name, self.scale(), self.const(self.rng.integers(0, 6), dtype)]

        x, y, pick = tensor(self.last), tensor(), self.rng.integers(4)
        if pick == 0 and len(shape) == 3 and found is not None:
            told, places = found
            self.shaped(
                "QLinearAveragePool", [*x, *y], (shape[0], *places), domain=MICROSOFT, **told
            )
        elif pick == 1 and len(shape) == 3:
            whole = (shape[0], 1, 1)
            self.shaped("QLinearGlobalAveragePool", [*x, *y], whole, domain=MICROSOFT)
        elif pick == 2:
            pair = [*y, *x, *tensor(self.last)]
            joined = (2 * shape[0], *shape[1:])
            self.shaped("QLinearConcat", pair, joined, domain=MICROSOFT, axis=1)
        elif pick == 3:
            self.add("QLinearSigmoid", [*x, self.const(2.0**-7, "FLOAT"), y[1]], dtype, MICROSOFT)
        else:
            super().quantized(self.last, dtype) if len(shape) == 1 else self.move()
