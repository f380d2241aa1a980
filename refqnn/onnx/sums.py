"""Layers and poolings: sums of products, means, maxima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch, mismatch
from refqnn.onnx.program import Context, Handler, Program
from refqnn.onnx.quantization import counting
from refqnn.onnx.values import (
    Comparison,
    Constant,
    Grid,
    Scaled,
    Value,
    uniform,
)
from refqnn.ops import (
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    GlobalSumPool,
    Linear,
    MaxPool2d,
    Op,
    Reshape,
    SumPool2d,
)

__all__ = [
    "TABLE",
    "averaged",
    "convolution",
    "dense",
    "total_over_positions",
    "window_of",
]

Array = NDArray[Any]
Pads = tuple[tuple[int, int], ...]
Window = tuple[tuple[int, ...], tuple[int, ...], Pads]  # kernel, strides, padding


def dense(
    r: Program,
    c: Context,
    x: Scaled,
    weights: Value,
    bias: Value | None = None,
    name: str = "",
    alpha: Fraction = Fraction(1),
) -> Scaled:
    """alpha * x @ W.T + bias for weights W [out, in], of a vector or of each row of x."""
    w, scale = r.weights(weights, c.where)
    features, rows = w.shape[1], x.shape[:-1]
    if x.shape[-1] != features or (prod(rows) > 1 and len(rows) > 1):
        raise NotCovered(f"{c.where}: samples of shape {x.shape} times a matrix of {features} rows")
    if prod(rows) > 1:
        columns = r.transpose(x, (1, 0), f"{c.name}_columns")
        y = r.sum(c, columns, w[:, :, None], scale * alpha, bias, lambda w, b, _: Conv1d(w, b),
                  name=name)  # fmt: skip
        return r.transpose(y, (1, 0), f"{c.name}_rows")
    vector = r.reshape(x, (features,), f"{c.name}_vector") if rows else x
    y = r.sum(c, vector, w, scale * alpha, bias, lambda w, b, _: Linear(w, b), name=name)
    return r.reshape(y, (*rows, *y.shape), f"{c.name}_shape") if rows else y


def _matrix(c: Context, transpose: bool) -> Constant:
    """The weights of a product, [out, in]."""
    value = c.value(1)
    if not isinstance(value, Constant):
        raise NotCovered(f"{c.where}: the product of two tensors that depend on the input")
    if value.array.ndim != 2:
        raise NotCovered(f"{c.where}: weights of shape {value.array.shape}, expected a matrix")
    if not transpose:
        return value
    return value.map(np.transpose) if isinstance(value, Grid) else Constant(value.array.T)


def _matmul(r: Program, c: Context) -> Value:
    return dense(r, c, r.scaled(c), _matrix(c, True))


def _xnor_popcount(r: Program, c: Context) -> Value:
    """How many of K bits agree: K - sum(w) + sum over k of (2 w - 1) x."""
    x, w = r.scaled(c), c.constant(1, "weights")
    if w.ndim != 2 or not np.isin(w, (0, 1)).all() or not r.holds_integers(x):
        raise NotCovered(f"{c.where}: it counts bits; its operands are not all 0 or 1")
    (scale,) = uniform(x.scale).ravel()
    ends = [(e - x.zero) * scale for e in r.ranges[x.node].ends]
    if min(ends) < 0 or max(ends) > 1:
        raise NotCovered(f"{c.where}: it counts bits; its input reaches {float(max(ends))}")
    bits = w.astype(np.int64)
    return dense(r, c, x, Constant(2 * bits.T - 1), Constant(len(w) - bits.sum(axis=0)))


def _gemm(r: Program, c: Context) -> Value:
    """alpha * x @ W + beta * b."""
    if c.attribute("transA", 0):
        raise NotCovered(f"{c.where}: transA")
    alpha, beta = (np.float32(c.attribute(k, 1.0)) for k in ("alpha", "beta"))
    bias = c.optional(2)
    if bias is not None and beta != 1:
        bias = Constant(c.constant(2, "bias").astype(np.float32) * beta)
    weights = _matrix(c, not c.attribute("transB", 0))
    return dense(r, c, r.scaled(c), weights, bias, alpha=Fraction(float(alpha)))


def window_of(
    c: Context, x: Scaled, kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], Pads, tuple[int, ...]]:
    """strides, padding, dilations of a convolution or pooling."""
    axes = len(kernel)
    strides = tuple(c.attribute("strides", [1] * axes))
    dilations = tuple(c.attribute("dilations", [1] * axes))
    pads = c.attribute("pads", [0] * (2 * axes))
    auto = c.attribute("auto_pad", "NOTSET")
    if (
        len(strides) != axes
        or len(dilations) != axes
        or len(pads) != 2 * axes
        or min(strides + dilations) < 1
        or min(pads) < 0
        or max(*strides, *dilations, *pads) > 2**16
    ):
        raise FileFormatError(f"{c.where}: strides, dilations or pads do not fit {axes} axes")
    declared = c.attribute("kernel_shape", list(kernel))
    if declared != list(kernel):
        raise FileFormatError(mismatch(f"{c.where}: kernel_shape", declared, f"{list(kernel)}"))
    sizes = x.shape[1:]
    if len(sizes) != axes:
        raise ShapeMismatch(f"{c.where}: kernel {kernel} over samples of shape {x.shape}")
    padding = tuple(zip(pads[:axes], pads[axes:]))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(sizes, strides, dilations, kernel)
        ]
        halves = [(t // 2, t - t // 2) for t in totals]
        padding = tuple(h if auto == "SAME_UPPER" else h[::-1] for h in halves)
    elif auto == "VALID":
        padding = ((0, 0),) * axes
    elif auto != "NOTSET":
        raise FileFormatError(f"{c.where}: auto_pad {auto!r}")
    if x.pad:
        padding = tuple((a + p, b + q) for (a, b), (p, q) in zip(padding, x.pad))
    return strides, padding, dilations


def _pads_itself(c: Context, zeros: bool = False) -> bool:
    """Has it padding of its own, which does not just add to that of a Pad (of zeros)?"""
    auto = c.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return auto or (not zeros and any(c.attribute("pads", [0])))


def _conv(r: Program, c: Context) -> Value:
    return convolution(r, c, r.scaled(c), c.value(1), c.optional(2))


def convolution(
    r: Program, c: Context, x: Scaled, w: Value, bias: Value | None, name: str = ""
) -> Scaled:
    weight, scale = r.weights(w, c.where)
    axes = weight.ndim - 2
    if axes not in (1, 2):
        raise NotCovered(f"{c.where}: a convolution over {axes} axes")
    if x.pad and _pads_itself(c, zeros=x.pad_code is None):
        x = r.unpadded(x, c.name)
    strides, padding, dilations = window_of(c, x, weight.shape[2:])
    groups = c.attribute("group", 1)
    if groups < 1 or weight.shape[0] % groups or x.shape[0] % groups:
        raise FileFormatError(f"{c.where}: group {groups} does not divide the channels")
    r.check_size([d + sum(p) for d, p in zip(x.shape, ((0, 0), *padding))], c.where)
    kind = (Conv1d, Conv2d)[axes - 1]

    def make(weight: Array, bias: Array | None, pad_code: int) -> Op:
        return kind(weight, bias, strides, padding, dilations, groups, pad_code)

    padded = any(sum(p) for p in padding)
    return r.sum(c, replace(x, pad=()), weight, scale, bias, make, groups, padded, name)


def _conv_transpose(r: Program, c: Context) -> Value:
    """Zeros between the inputs: their code of zero in a node of its own where that is not 0."""
    x, value = r.scaled(c), c.value(1)
    groups = c.attribute("group", 1)
    if not isinstance(value, Constant) or value.array.ndim != 4:
        raise NotCovered(f"{c.where}: weights that depend on the input, or are not over two axes")
    if "output_shape" in c.attributes or c.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise NotCovered(f"{c.where}: output_shape or auto_pad, expected pads")
    if groups < 1 or len(value.array) % groups or len(value.array) != x.shape[0]:
        raise FileFormatError(f"{c.where}: group {groups} does not divide the channels")

    def by_output(a: Array) -> Array:
        """[in, out / groups, ...] to [out, in / groups, ...]"""
        grouped = a.reshape(groups, -1, *a.shape[1:]).swapaxes(1, 2)
        return grouped.reshape(-1, *grouped.shape[2:])

    w: Constant = replace(value, array=by_output(value.array))
    if isinstance(value, Grid):
        w = value.map(by_output)
    weight, scale = r.weights(w, c.where)
    strides, padding, dilations = window_of(c, x, weight.shape[2:])
    extra = tuple(c.attribute("output_padding", [0, 0]))
    if x.zero:
        x = r.centred(x, c.name)

    def make(weight: Array, bias: Array | None, pad_code: int) -> Op:
        stored = np.zeros((x.shape[0], len(weight) // groups, *weight.shape[2:]), dtype=np.int64)
        op = ConvTranspose2d(stored, None, strides, padding, extra, dilations, groups)
        return op.with_weights(weight.reshape(*weight.shape[:2], -1), bias)

    return r.sum(c, x, weight, scale, c.optional(2), make, groups)


# --- poolings -----------------------------------------------------------------------------------


def _pooling(c: Context, x: Scaled, kernel: tuple[int, ...]) -> Window:
    """(kernel, strides, padding), with the padding at the ends that ceil_mode asks for."""
    if len(kernel) not in (1, 2) or min(kernel) < 1 or max(kernel) > 2**16:
        raise NotCovered(f"{c.where}: pooling with kernel {kernel}, expected one or two sizes")
    strides, padding, dilations = window_of(c, x, kernel)
    if set(dilations) != {1}:
        raise NotCovered(f"{c.where}: pooling with dilation")
    if c.attribute("ceil_mode", 0):
        axes = zip(x.shape[1:], kernel, strides, padding)
        padding = tuple((p[0], p[1] + _ceil_excess(n, k, s, p)) for n, k, s, p in axes)
    return kernel, strides, padding


def _ceil_excess(n: int, k: int, s: int, pads: tuple[int, int]) -> int:
    before, after = pads
    left = (before + n + after - k) % s
    positions = -(-(before + n + after - k) // s)
    return s - left if left and positions * s < n + before else 0


def _pooled(r: Program, c: Context, v: Scaled, window: Window, make: Callable[..., Op]) -> Scaled:
    """A pooling of images on v; a sample [channels, length] is an image of one row."""
    kernel, strides, padding = window
    flat = len(kernel) == 1
    if flat:
        node = r.emit(f"{c.name}_in", Reshape((v.shape[0], 1, v.shape[1])), (v.node,))
        v = v.mapped(node, r.shapes[node], lambda a: a.reshape(-1, 1, 1))
        kernel, strides, padding = (1, *kernel), (1, *strides), ((0, 0), *padding)
    node = r.emit(c.name, make(kernel, strides, padding), (v.node,))
    if flat:
        channels, _, length = r.shapes[node]
        node = r.emit(f"{c.name}_out", Reshape((channels, length)), (node,))
    axes = (1,) * (len(r.shapes[node]) - 1)
    return v.mapped(node, r.shapes[node], lambda a: a.reshape(-1, *axes))


def _average_pool(r: Program, c: Context) -> Value:
    return averaged(r, c, r.scaled(c))


def averaged(r: Program, c: Context, x: Scaled) -> Scaled:
    """The sum of the window divided by its size, in float32."""
    kernel = tuple(c.attribute("kernel_shape", [0]))
    wide = any(max(p) >= k for p, k in zip(x.pad, kernel))
    if wide or (x.pad and (_pads_itself(c) or c.attribute("ceil_mode", 0))):
        x = r.unpadded(x, c.name)
    kernel, strides, padding = window = _pooling(c, x, kernel)
    if c.attribute("ceil_mode", 0) and window != _pooling(_floored(c), x, kernel):
        raise NotCovered(f"{c.where}: average pooling with ceil_mode")
    own = any(c.attribute("pads", [0])) or (any(map(sum, padding)) and not x.pad)
    value = _poolable(r, c, replace(x, pad=(), pad_code=None))
    if any(sum(p) for p in padding) and value.zero.denominator != 1:
        value = r.centred(value, c.name)
    pad_code = int(value.zero) if x.pad_code is None else x.pad_code
    total = _pooled(r, c, value, window, lambda k, s, p: SumPool2d(k, s, p, pad_code))
    total = replace(total, zero=value.zero * prod(kernel), base="FLOAT")
    divisor = np.full((1,) * len(total.shape), prod(kernel), dtype=np.float32)
    if own and not c.attribute("count_include_pad", 0):
        axes = zip(x.shape[1:], total.shape[1:], kernel, strides, padding)
        sizes = [_inside(*axis) for axis in axes]
        inside = sizes[0] if len(sizes) == 1 else np.multiply.outer(*sizes)
        divisor = np.asarray(inside[None], dtype=np.float32)
        if divisor.min() == 0:
            raise FileFormatError(f"{c.where}: a window of padding alone")
    # The division by the window is one float32 operation, as a runtime does it.
    return total.then("Div", divisor)


def _floored(c: Context) -> Context:
    return replace(c, attributes={**c.attributes, "ceil_mode": 0})


def _inside(n: int, positions: int, kernel: int, stride: int, pads: tuple[int, int]) -> Array:
    """How many of the kernel's places lie on one of n values, at each position."""
    first = np.arange(positions) * stride - pads[0]
    return np.asarray(np.minimum(first + kernel, n) - np.maximum(first, 0))


def _poolable(r: Program, c: Context, x: Scaled) -> Scaled:
    """Sums commute with a scale and an offset, if they are the same at every position."""
    x, scale = r.multiple(x, c)
    if prod(scale.shape[1:]) != 1:
        raise NotCovered(f"{c.where}: its input has scales per position; quantize it first")
    if all(s.op in ("Mul", "Div", "Neg") for s in x.steps):
        return x
    return replace(x, scale=scale, steps=())


def _max_pool(r: Program, c: Context) -> Value:
    """Maxima commute with every nondecreasing function."""
    if len([o for o in c.proto.output if o]) > 1 or c.attribute("storage_order", 0):
        raise NotCovered(f"{c.where}: max pooling with indices")
    x = r.scaled(c)
    whole = c.proto.op_type != "MaxPool"
    window = _pooling(c, x, x.shape[1:] if whole else tuple(c.attribute("kernel_shape", [0])))
    increasing = r.increasing(x)
    if increasing is None or any(prod(p.shape[1:]) != 1 for p in increasing.parameters):
        raise NotCovered(
            f"{c.where}: maxima of a function that is not increasing; quantize it first"
        )
    return _pooled(r, c, increasing, window, MaxPool2d)


def _over_positions(reduced: Callable[[Program, Context], Value]) -> Handler:
    """A reduction over the spatial axes, which leaves axes of size 1."""

    def handle(r: Program, c: Context) -> Value:
        x, axes, keep = c.value(0), c.integers(1, "axes"), bool(c.attribute("keepdims", 1))
        if isinstance(x, Comparison):
            return _count(c, x, axes, keep)
        v = r.scaled(c)
        rank = len(v.shape) + 1
        over = {a % rank for a in axes or ()}
        left = tuple(d for i, d in enumerate(v.shape, 1) if i not in over)
        if over and 0 not in over and prod(left) == prod(v.shape):  # of one value each
            return v if keep else r.reshape(v, left, c.name)
        if over != set(range(2, rank)) or rank < 3:
            raise NotCovered(f"{c.where}: over axes {axes}, expected the spatial axes")
        y = reduced(r, c)
        return y if keep or not isinstance(y, Scaled) else r.reshape(y, left, f"{c.name}_shape")

    return handle


def _count(c: Context, x: Comparison, axes: list[int] | None, keep: bool) -> Value:
    """How many thresholds are reached."""
    rank = len(x.source.shape) + 2
    if axes is None or [a % rank for a in axes] != [rank - 1] or keep:
        raise NotCovered(f"{c.where}: a sum over axes {axes} of comparisons")
    count = counting(c, x.source, x.thresholds.astype(np.float64), 0)
    return replace(count, rounded=True, dtype=x.dtype)


def _sum_over_positions(r: Program, c: Context) -> Scaled:
    x = r.scaled(c)
    total = total_over_positions(r, c, x)
    return r.within(total, x.dtype, c.where) if x.integer else total


def total_over_positions(r: Program, c: Context, x: Scaled) -> Scaled:
    """The sum over all positions, [channels, 1, ...]."""
    if len(x.shape) < 2:
        raise NotCovered(f"{c.where}: global pooling of samples of shape {x.shape}")
    value = _poolable(r, c, x)
    node = r.emit(c.name, GlobalSumPool(), (value.node,))
    shape = (x.shape[0], *(1,) * (len(x.shape) - 1))
    narrow = value.mapped(node, x.shape[:1], lambda a: a.reshape(-1))
    total = replace(narrow, zero=value.zero * prod(x.shape[1:]))
    return r.reshape(total, shape, f"{c.name}_shape")


def _global_average(r: Program, c: Context) -> Value:
    x = r.scaled(c)
    if x.integer:
        raise NotCovered(f"{c.where}: a mean of integers")
    divisor = np.full((1,) * len(x.shape), prod(x.shape[1:]), dtype=np.float32)
    return replace(total_over_positions(r, c, x), base="FLOAT").then("Div", divisor)


TABLE: dict[str, Handler] = {
    "qonnx.XnorPopcountMatMul": _xnor_popcount,
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _max_pool,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "ReduceMax": _over_positions(_max_pool),
    "ReduceMean": _over_positions(_global_average),
    "ReduceSum": _over_positions(_sum_over_positions),
}
