"""Random models of one operator: geometry, scales, zero points, activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tflite_build import O, T, model

Rng = np.random.Generator


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
    options = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    return model(tensors, [O(kind, [0, 1, 2], [3], options, values)], [0], [3])


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
    n = int(rng.choice([1, 2, 10, 12, 100, 1000]))
    shape = (1, n) if rng.random() < 0.7 else (1, 2, 3, n)
    tensors = [T(shape, scale(rng, -7, 1), zero(rng)), T(shape, 2.0**-8, -128)]
    values = {"Beta": float(rng.choice([1.0, 0.5, 2.0]))}
    return model(tensors, [O("SOFTMAX", [0], [1], "SoftmaxOptions", values)], [0], [1])


CASES: dict[str, Callable[[Rng], bytes]] = {
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "FULLY_CONNECTED": fully_connected,
    "SOFTMAX": softmax,
}
