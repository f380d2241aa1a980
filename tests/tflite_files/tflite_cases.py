"""Random models of one operator: geometry, scales, zero points, activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tflite_build import O, T
from tflite_build import model as written

Rng = np.random.Generator

OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
}


_TYPE = ["int8"]


def typed(kind: str, type: str, rng: Rng) -> bytes:
    """A case whose tensors hold uint8, or int16 with weights of int8, instead of int8."""
    _TYPE[0] = type
    try:
        return CASES[kind](rng)
    finally:
        _TYPE[0] = "int8"


def model(tensors: list[T], *rest: Any) -> bytes:
    """The file, in the type that was asked for."""
    change = {"int8": lambda t: t, "uint8": _uint8, "int16": _int16}[_TYPE[0]]
    return written([change(t) for t in tensors], *rest)


def _uint8(t: T) -> T:
    """Codes 128 higher, one scale, weights with a zero point."""
    one = None if t.scale is None else np.atleast_1d(t.scale)[:1]
    if t.type != "int8":
        return T(t.shape, one, t.zero, t.data, t.type)
    if t.data is None:
        return T(t.shape, one, t.zero + 128, None, "uint8")
    return T(t.shape, one, 100, (t.data.astype(int) + 128).astype(np.uint8), "uint8")


def _int16(t: T) -> T:
    """Activations of 16 bits and no zero point, biases of 64."""
    if t.scale is not None and t.type == "int32":
        return T(t.shape, np.asarray(t.scale) / 256, 0, t.data.astype(np.int64), "int64")
    if t.data is None:
        return T(t.shape, np.asarray(t.scale) / 256, 0, None, "int16")
    return t


def scale(rng: Rng, low: float = -6, high: float = -1) -> float:
    return float(np.float32(2.0 ** rng.uniform(low, high)))


def zero(rng: Rng) -> int:
    return int(rng.choice([-128, 127, 0, *rng.integers(-128, 128, 3)]))


def activation(rng: Rng) -> int:
    return int(rng.choice([0, 0, 1, 2, 3]))


def _same_shape(size: int, kernel: int, stride: int, dilation: int, same: bool) -> int:
    return -(-size // stride) if same else -(-(size - dilation * (kernel - 1)) // stride)


def _output_scale(rng: Rng, spread: float) -> float:
    """One that a sum of this standard deviation fills, or overflows, or hardly uses."""
    return float(np.float32(spread / 2.0 ** rng.uniform(2, 8)))


def conv(rng: Rng, kind: str = "CONV_2D") -> bytes:
    depthwise = kind == "DEPTHWISE_CONV_2D"
    h, w, c = (int(v) for v in rng.integers(4, 10, 3))
    kh, kw = (int(v) for v in rng.integers(1, 4, 2))
    sh, sw = (int(v) for v in rng.integers(1, 4, 2))
    dh, dw = (int(v) for v in rng.integers(1, 3, 2)) if rng.random() < 0.3 else (1, 1)
    if depthwise:
        sw = sh  # the optimized kernels ask for it
    same = bool(rng.integers(2))
    if not same:
        dh = min(dh, (h - 1) // max(kh - 1, 1))
        dw = min(dw, (w - 1) // max(kw - 1, 1))
    if depthwise:
        multiple = int(rng.integers(1, 3))
        out, weights = c * multiple, (1, kh, kw, c * multiple)
    else:
        out = int(rng.integers(1, 9))
        weights = (out, kh, kw, c)
    s_x = scale(rng)
    per_channel = rng.random() < 0.7
    s_w = np.float32(2.0 ** rng.uniform(-9, -3, out if per_channel else 1))
    s_b = np.float32(s_x) * s_w
    terms = kh * kw * (1 if depthwise else c)
    s_y = _output_scale(rng, 64 * 64 * np.sqrt(terms) * float(s_b.max()))
    bias = rng.integers(-9999, 9999, out, dtype=np.int32) * (rng.random() < 0.8)
    axis = 3 if depthwise else 0
    data = rng.integers(-127, 128, weights, dtype=np.int8)
    tensors = [
        T((1, h, w, c), s_x, zero(rng)),
        T(weights, s_w, 0, data, axis=axis),
        T((out,), s_b, 0, bias.astype(np.int32), "int32"),
        T(
            (1, _same_shape(h, kh, sh, dh, same), _same_shape(w, kw, sw, dw, same), out),
            s_y,
            zero(rng),
        ),
    ]
    values = {"Padding": 0 if same else 1, "StrideW": sw, "StrideH": sh}
    values |= {"FusedActivationFunction": activation(rng)}
    values |= {"DilationWFactor": dw, "DilationHFactor": dh}
    if depthwise:
        values["DepthMultiplier"] = multiple
    return model(tensors, [O(kind, [0, 1, 2], [3], OPTIONS[kind], values)], [0], [3])


def depthwise(rng: Rng) -> bytes:
    return conv(rng, "DEPTHWISE_CONV_2D")


def fully_connected(rng: Rng) -> bytes:
    n, out = int(rng.integers(1, 80)), int(rng.integers(1, 20))
    s_x = scale(rng)
    per_channel = rng.random() < 0.3
    s_w = np.float32(2.0 ** rng.uniform(-9, -3, out if per_channel else 1))
    s_b = np.float32(s_x) * s_w
    s_y = _output_scale(rng, 64 * 64 * np.sqrt(n) * float(s_b.max()))
    tensors = [
        T((1, n), s_x, zero(rng)),
        T((out, n), s_w, 0, rng.integers(-127, 128, (out, n), dtype=np.int8)),
        T((out,), s_b, 0, rng.integers(-9999, 9999, out, dtype=np.int32), "int32"),
        T((1, out), s_y, zero(rng)),
    ]
    values = {"FusedActivationFunction": activation(rng)}
    op = O("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions", values)
    return model(tensors, [op], [0], [3])


def softmax(rng: Rng) -> bytes:
    n = int(rng.choice([1, 2, 10, 12, 100, 400]))
    shape = (1, n) if rng.random() < 0.7 else (1, 2, 3, n)
    s_y = 2.0 ** (-7 if _TYPE[0] == "int16" else -8)
    tensors = [T(shape, scale(rng, -7, 1), zero(rng)), T(shape, s_y, -128)]
    values = {"Beta": float(rng.choice([1.0, 0.5, 2.0, 0.3]))}
    return model(tensors, [O("SOFTMAX", [0], [1], "SoftmaxOptions", values)], [0], [1])


def shape4(rng: Rng) -> tuple[int, ...]:
    return (1, *(int(v) for v in rng.integers(2, 9, 3)))


def two(rng: Rng, kind: str, options: str) -> bytes:
    """x and a part of x: one input, two operands of other scales."""
    shape, scales = shape4(rng), (scale(rng), scale(rng))
    a, b = [(0, 1), (1, 0), (0, 0), (1, 1)][int(rng.integers(4))]
    s_y = (
        scales[a] * scales[b] * 2.0 ** rng.uniform(3, 9)
        if kind == "MUL"
        else scales[0] * 2.0 ** rng.uniform(-2, 2)
    )
    tensors = [T(shape, float(np.float32(s)), zero(rng)) for s in (*scales, s_y)]
    values = {"FusedActivationFunction": activation(rng)}
    ops = [
        O("QUANTIZE", [0], [1], "QuantizeOptions"),
        O(kind, [a, b], [2], options, values),
    ]
    return model(tensors, ops, [0], [2])


def with_constant(rng: Rng) -> bytes:
    """A sum, a product and a difference with a constant: one number, or one a channel."""
    shape = shape4(rng)
    c = shape[3]
    s, s_b = scale(rng), scale(rng)
    few = [(c,), (1, 1, 1, c), (1,), ()][int(rng.integers(4))]
    tensors = [
        T(shape, s, zero(rng)),
        T(few, s_b, zero(rng), rng.integers(-128, 128, few, dtype=np.int8)),
        T(shape, s * 2, zero(rng)),
        T(shape, float(np.float32(s * s_b * 400)), zero(rng)),
        T(shape, s * 3, zero(rng)),
    ]
    ops = [
        O("ADD", [0, 1], [2], "AddOptions", {"FusedActivationFunction": activation(rng)}),
        O("MUL", [1, 2], [3], "MulOptions"),
        O("SUB", [1, 3], [4], "SubOptions"),
    ]
    return model(tensors, ops, [0], [4])


def one(rng: Rng, kind: str, options: str = "", values: Any = None, same: bool = False) -> bytes:
    shape = shape4(rng)
    s, z = scale(rng), zero(rng)
    s_y, z_y = (s, z) if same else (float(np.float32(s * 2.0 ** rng.uniform(-2, 2))), zero(rng))
    if kind in ("LOGISTIC", "TANH"):
        whole = 2.0**-8 if kind == "LOGISTIC" and _TYPE[0] != "int16" else 2.0**-7
        s_y, z_y = whole, -128 if kind == "LOGISTIC" else 0
    tensors = [T(shape, s, z), T(shape, s_y, z_y)]
    return model(tensors, [O(kind, [0], [1], options, values or {})], [0], [1])


def pool(rng: Rng, kind: str) -> bytes:
    h, w, c = (int(v) for v in rng.integers(3, 10, 3))
    kh, kw, sh, sw = (int(v) for v in rng.integers(1, 4, 4))
    same = bool(rng.integers(2))
    s, z = scale(rng), zero(rng)
    out = (1, _same_shape(h, kh, sh, 1, same), _same_shape(w, kw, sw, 1, same), c)
    values = {"Padding": 0 if same else 1, "StrideW": sw, "StrideH": sh}
    values |= {"FilterWidth": kw, "FilterHeight": kh, "FusedActivationFunction": activation(rng)}
    tensors = [T((1, h, w, c), s, z), T(out, s, z)]
    return model(tensors, [O(kind, [0], [1], "Pool2DOptions", values)], [0], [1])


def mean(rng: Rng) -> bytes:
    shape, keep = shape4(rng), bool(rng.integers(2))
    s, z = scale(rng), zero(rng)
    same = rng.random() < 0.3
    s_y, z_y = (s, z) if same else (float(np.float32(s * 2.0 ** rng.uniform(-3, 1))), zero(rng))
    tensors = [
        T(shape, s, z),
        T((2,), data=np.array([1, 2], np.int32), type="int32"),
        T((1, 1, 1, shape[3]) if keep else (1, shape[3]), s_y, z_y),
    ]
    op = O("MEAN", [0, 1], [2], "ReducerOptions", {"KeepDims": keep})
    return model(tensors, [op], [0], [2])


def transpose_conv(rng: Rng) -> bytes:
    h, w, c, out = (int(v) for v in rng.integers(2, 7, 4))
    kh, kw = (int(v) for v in rng.integers(1, 5, 2))
    sh, sw = (int(v) for v in rng.integers(1, 4, 2))
    same = bool(rng.integers(2))
    size = (h * sh, w * sw) if same else ((h - 1) * sh + max(kh, sh), (w - 1) * sw + max(kw, sw))
    s_x, s_w = scale(rng), np.float32(2.0 ** rng.uniform(-9, -3, out))
    s_y = _output_scale(rng, 64 * 64 * np.sqrt(c * 2) * s_x * float(s_w.max()))
    data = rng.integers(-127, 128, (out, kh, kw, c), dtype=np.int8)
    bias = rng.integers(-9999, 9999, out, dtype=np.int32)
    tensors = [
        T((4,), data=np.array([1, *size, out], np.int32), type="int32"),
        T((out, kh, kw, c), s_w, 0, data),
        T((1, h, w, c), s_x, zero(rng)),
        T((out,), np.float32(s_x) * s_w, 0, bias, "int32"),
        T((1, *size, out), s_y, zero(rng)),
    ]
    values = {"Padding": 0 if same else 1, "StrideW": sw, "StrideH": sh}
    op = O("TRANSPOSE_CONV", [0, 1, 2, 3], [4], "TransposeConvOptions", values)
    return model(tensors, [op], [2], [4])


def ints(values: Any) -> T:
    data = np.array(values, np.int32)
    return T(data.shape, data=data, type="int32")


def moving(rng: Rng) -> bytes:
    """Every operator that only moves codes, one behind the other."""
    shape = shape4(rng)
    h, w, c = shape[1:]
    s, z = scale(rng), zero(rng)
    tensors: list[T] = [T(shape, s, z)]
    ops: list[O] = []

    def apply(
        kind: str,
        out: tuple[int, ...],
        options: str = "",
        values: Any = None,
        before: Any = (),
        after: Any = (),
    ) -> None:
        source = ops[-1].outputs[0] if ops else 0
        first = len(tensors)
        tensors.extend([*map(ints, before), *map(ints, after)])
        numbers = list(range(first, len(tensors)))
        operands = [*numbers[: len(before)], source, *numbers[len(before) :]]
        tensors.append(T(out, s, z))
        ops.append(O(kind, operands, [len(tensors) - 1], options, values or {}))

    pads = [[0, 0], [1, 2], [0, 3], [2, 0]]
    apply("PAD", (1, h + 3, w + 3, c + 2), "PadOptions", after=[pads])
    apply("TRANSPOSE", (1, w + 3, c + 2, h + 3), "TransposeOptions", after=[[0, 2, 3, 1]])
    apply(
        "RESHAPE",
        (1, w + 3, (c + 2) * (h + 3)),
        "ReshapeOptions",
        {"NewShape": [1, w + 3, (c + 2) * (h + 3)]},
    )
    apply(
        "RESHAPE",
        (1, w + 3, c + 2, h + 3),
        "ReshapeOptions",
        {"NewShape": [1, w + 3, c + 2, h + 3]},
    )
    corner = int(rng.integers(3))
    flags = {"AlignCorners": corner == 1, "HalfPixelCenters": corner == 2}
    new = [int(v) for v in rng.integers(1, 12, 2)]
    apply(
        "RESIZE_NEAREST_NEIGHBOR",
        (1, *new, h + 3),
        "ResizeNearestNeighborOptions",
        flags,
        after=[new],
    )
    sliced = (1, new[0], new[1], (h + 3 - 1 + 1) // 2)
    apply(
        "STRIDED_SLICE",
        sliced,
        "StridedSliceOptions",
        {"EndMask": 7},
        after=[[0, 0, 0, 1], [1, 0, 0, h + 3], [1, 1, 1, 2]],
    )
    return model(tensors, ops, [0], [ops[-1].outputs[0]])


def joining(rng: Rng) -> bytes:
    """A tensor split along an axis and joined along another."""
    shape = [int(v) for v in rng.integers(1, 6, 3)]
    axis, other = (int(v) for v in rng.integers(0, 3, 2))
    parts = int(rng.integers(2, 4))
    whole = [v * parts if i == axis else v for i, v in enumerate(shape)]
    joined = [v * parts if i == other else v for i, v in enumerate(shape)]
    s, z = scale(rng), zero(rng)
    tensors = [T((1, *whole), s, z), ints([axis + 1]), T((1, *joined), s, z)]
    tensors += [T((1, *shape), s, z) for _ in range(parts)]
    numbers = list(range(3, 3 + parts))
    ops = [
        O("SPLIT", [1, 0], numbers, "SplitOptions", {"NumSplits": parts}),
        O("CONCATENATION", numbers[::-1], [2], "ConcatenationOptions", {"Axis": other - 3}),
    ]
    return model(tensors, ops, [0], [2])


CASES: dict[str, Callable[[Rng], bytes]] = {
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "FULLY_CONNECTED": fully_connected,
    "TRANSPOSE_CONV": transpose_conv,
    "ADD": lambda rng: two(rng, "ADD", "AddOptions"),
    "SUB": lambda rng: two(rng, "SUB", "SubOptions"),
    "MUL": lambda rng: two(rng, "MUL", "MulOptions"),
    "constants": with_constant,
    "AVERAGE_POOL_2D": lambda rng: pool(rng, "AVERAGE_POOL_2D"),
    "MAX_POOL_2D": lambda rng: pool(rng, "MAX_POOL_2D"),
    "MEAN": mean,
    "RELU": lambda rng: one(rng, "RELU"),
    "RELU6": lambda rng: one(rng, "RELU6"),
    "RELU_N1_TO_1": lambda rng: one(rng, "RELU_N1_TO_1"),
    "LEAKY_RELU": lambda rng: one(
        rng, "LEAKY_RELU", "LeakyReluOptions", {"Alpha": float(np.float32(rng.uniform(0, 1)))}
    ),
    "HARD_SWISH": lambda rng: one(rng, "HARD_SWISH", "HardSwishOptions"),
    "LOGISTIC": lambda rng: one(rng, "LOGISTIC"),
    "TANH": lambda rng: one(rng, "TANH"),
    "QUANTIZE": lambda rng: one(rng, "QUANTIZE", "QuantizeOptions"),
    "SOFTMAX": softmax,
    "movement": moving,
    "SPLIT, CONCATENATION": joining,
}
