"""Layers and poolings: sums of products, means, maxima."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch
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
    SumPool2d,
)
from refqnn.ops.base import Shape

__all__ = ["TABLE", "averaged", "convolution", "dense", "mean_over_positions"]

Array = NDArray[Any]
Pads = tuple[tuple[int, int], ...]


def dense(
    r: Program,
    c: Context,
    x: Scaled,
    weights: Value,
    bias: Value | None = None,
    name: str = "",
    alpha: Fraction = Fraction(1),
) -> Scaled:
    """alpha * x @ W.T + bias for weights W [out, in]."""
    w, scale = r.weights(weights, c.where)
    features = w.shape[1]
    if x.shape != (features,):
        if x.shape[-1] != features or prod(x.shape) != features:
            raise NotCovered(
                f"{c.where}: samples of shape {x.shape} times a matrix of {features} rows"
            )
        x = r.reshape(x, (features,), f"{c.name}_vector")
    return r.sum(c, x, w, scale * alpha, bias, lambda w, b, _: Linear(w, b), name=name)


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
    x = r.scaled(c)
    y = dense(r, c, x, _matrix(c, True))
    return y if len(x.shape) == 1 else r.reshape(y, (*x.shape[:-1], *y.shape), f"{c.name}_shape")


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
    if c.attributes.get("transA", 0):
        raise NotCovered(f"{c.where}: transA")
    alpha, beta = (np.float32(c.attributes.get(k, 1.0)) for k in ("alpha", "beta"))
    bias = c.optional(2)
    if bias is not None and beta != 1:
        bias = Constant(c.constant(2, "bias").astype(np.float32) * beta)
    weights = _matrix(c, not c.attributes.get("transB", 0))
    return dense(r, c, r.scaled(c), weights, bias, alpha=Fraction(float(alpha)))


def _window(
    c: Context, x: Scaled, kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], Pads, tuple[int, ...]]:
    """strides, padding, dilations of a convolution or pooling."""
    axes = len(kernel)
    strides = tuple(c.attributes.get("strides", [1] * axes))
    dilations = tuple(c.attributes.get("dilations", [1] * axes))
    pads = list(c.attributes.get("pads", [0] * (2 * axes)))
    auto = str(c.attributes.get("auto_pad", "NOTSET"))
    if (
        len(strides) != axes
        or len(dilations) != axes
        or len(pads) != 2 * axes
        or min(strides + dilations) < 1
        or min(pads) < 0
        or max(*strides, *dilations, *pads) > 2**16
    ):
        raise FileFormatError(f"{c.where}: strides, dilations or pads do not fit {axes} axes")
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


def _conv(r: Program, c: Context) -> Value:
    return convolution(r, c, r.scaled(c), c.value(1), c.optional(2))


def convolution(
    r: Program, c: Context, x: Scaled, w: Value, bias: Value | None, name: str = ""
) -> Scaled:
    weight, scale = r.weights(w, c.where)
    axes = weight.ndim - 2
    if axes not in (1, 2):
        raise NotCovered(f"{c.where}: a convolution over {axes} axes")
    strides, padding, dilations = _window(c, x, weight.shape[2:])
    groups = int(c.attributes.get("group", 1))
    if groups < 1 or weight.shape[0] % groups or x.shape[0] % groups:
        raise FileFormatError(f"{c.where}: group {groups} does not divide the channels")
    r.check_size([d + sum(p) for d, p in zip(x.shape, ((0, 0), *padding))], c.where)
    kind = (Conv1d, Conv2d)[axes - 1]

    def make(weight: Array, bias: Array | None, pad_code: int) -> Op:
        return kind(weight, bias, strides, padding, dilations, groups, pad_code)

    padded = any(sum(p) for p in padding)
    if x.pad_code is not None and any(c.attributes.get("pads", ())):
        raise NotCovered(f"{c.where}: padding twice, with different values")
    return r.sum(c, replace(x, pad=()), weight, scale, bias, make, groups, padded, name)


def _conv_transpose(r: Program, c: Context) -> Value:
    """Zeros between the inputs: their code of zero in a node of its own where that is not 0."""
    x, value = r.scaled(c), c.value(1)
    groups = int(c.attributes.get("group", 1))
    if not isinstance(value, Constant) or value.array.ndim != 4 or x.pad:
        raise NotCovered(f"{c.where}: weights that depend on the input, or are not over two axes")
    if "output_shape" in c.attributes or c.attributes.get("auto_pad", "NOTSET") != "NOTSET":
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
    strides, padding, dilations = _window(c, x, weight.shape[2:])
    extra = tuple(c.attributes.get("output_padding", (0, 0)))
    if x.zero:
        x = r.centred(x, c.name)

    def make(weight: Array, bias: Array | None, pad_code: int) -> Op:
        stored = np.zeros((x.shape[0], len(weight) // groups, *weight.shape[2:]), dtype=np.int64)
        op = ConvTranspose2d(stored, None, strides, padding, extra, dilations, groups)
        return op.with_weights(weight.reshape(*weight.shape[:2], -1), bias)

    return r.sum(c, x, weight, scale, c.optional(2), make, groups)


def _average_pool(r: Program, c: Context) -> Value:
    return averaged(r, c, r.scaled(c))


def averaged(r: Program, c: Context, x: Scaled) -> Scaled:
    """The sum of the window divided by its size, in float32."""
    kernel = tuple(c.attributes.get("kernel_shape", ()))
    if len(kernel) != 2 or min(kernel) < 1 or max(kernel) > 2**16:
        raise NotCovered(f"{c.where}: average pooling with kernel {kernel}, expected two sizes")
    strides, padding, dilations = _window(c, x, kernel)
    if dilations != (1, 1) or _ceil_excess(c, x, kernel, strides, padding) != (0, 0):
        raise NotCovered(f"{c.where}: average pooling with dilation or ceil_mode")
    own = any(c.attributes.get("pads", ())) or (any(map(sum, padding)) and not x.pad)
    if own and x.pad:
        raise NotCovered(f"{c.where}: padding twice")
    if any(sum(p) for p in padding) and x.zero.denominator != 1:
        x = r.centred(x, c.name)
    pad_code = int(x.zero) if x.pad_code is None else x.pad_code
    value = _poolable(r, c, replace(x, pad=(), pad_code=None))
    op = SumPool2d(kernel, strides, padding, pad_code)
    node = r.emit(c.name, op, (value.node,))
    total = _total(value, node, r.shapes[node], prod(kernel))
    divisor = np.full((1,) * len(total.shape), prod(kernel), dtype=np.float32)
    if own and not c.attributes.get("count_include_pad", 0):
        axes = zip(x.shape[1:], total.shape[1:], kernel, strides, padding)
        sizes = [_inside(*axis) for axis in axes]
        divisor = np.asarray(np.multiply.outer(*sizes)[None], dtype=np.float32)
        if divisor.min() == 0:
            raise FileFormatError(f"{c.where}: a window of padding alone")
    # The division by the window is one float32 operation, as a runtime does it.
    return replace(total, base="FLOAT").then("Div", divisor)


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


def _total(x: Scaled, node: str, shape: Shape, count: int) -> Scaled:
    """The sum of `count` values, an integer node."""

    def narrow(a: Array) -> Array:
        return a.reshape(a.shape[0], *(1,) * (len(shape) - 1))

    steps = tuple(replace(s, args=tuple(narrow(a) for a in s.args)) for s in x.steps)
    scale, zero = narrow(x.scale), x.zero * count
    return replace(x, node=node, shape=shape, scale=scale, zero=zero, steps=steps)


def _global_average(r: Program, c: Context) -> Value:
    return mean_over_positions(r, c, r.scaled(c))


def _reduce_mean(r: Program, c: Context) -> Value:
    x = r.scaled(c)
    axes = c.integers(1, "axes")
    rank = len(x.shape) + 1
    if axes is None or {a % rank for a in axes} != set(range(2, rank)):
        raise NotCovered(f"{c.where}: a mean over axes {axes}, expected the spatial axes")
    return mean_over_positions(r, c, x, bool(c.attributes.get("keepdims", 1)))


def _reduce_sum(r: Program, c: Context) -> Value:
    """The count of reached thresholds, or the sum over the spatial axes."""
    x, axes, keep = c.value(0), c.integers(1, "axes"), bool(c.attributes.get("keepdims", 1))
    if isinstance(x, Comparison):
        rank = len(x.source.shape) + 2
        if axes is None or [a % rank for a in axes] != [rank - 1] or keep:
            raise NotCovered(f"{c.where}: a sum over axes {axes} of comparisons")
        count = counting(c, x.source, x.thresholds.astype(np.float64), 0)
        return replace(count, rounded=True, dtype=x.dtype)
    v = r.scaled(c)
    rank = len(v.shape) + 1
    if axes and not keep and all(a % rank and v.shape[a % rank - 1] == 1 for a in axes):
        kept = (d for i, d in enumerate(v.shape, 1) if i not in {a % rank for a in axes})
        return r.reshape(v, tuple(kept), c.name)
    if axes is None or sorted(a % rank for a in axes) != list(range(2, rank)) or rank < 3:
        raise NotCovered(f"{c.where}: a sum over axes {axes}, expected the spatial axes")
    total = sum_over_positions(r, c, v)
    return _kept(r, c, total, v) if keep else total


def sum_over_positions(r: Program, c: Context, x: Scaled) -> Scaled:
    value = _poolable(r, c, x)
    node = r.emit(c.name, GlobalSumPool(), (value.node,))
    return _total(value, node, x.shape[:1], prod(x.shape[1:]))


def mean_over_positions(r: Program, c: Context, x: Scaled, keep: bool = True) -> Scaled:
    if x.pad or len(x.shape) < 2:
        raise NotCovered(f"{c.where}: global pooling of samples of shape {x.shape}")
    total = sum_over_positions(r, c, x)
    divisor = np.full((1,), prod(x.shape[1:]), dtype=np.float32)
    mean = total.then("Div", divisor)
    return _kept(r, c, mean, x) if keep else mean


def _kept(r: Program, c: Context, y: Scaled, x: Scaled) -> Scaled:
    """y [channels] with the axes of x, each of size 1."""
    return r.reshape(y, (x.shape[0], *(1,) * (len(x.shape) - 1)), f"{c.name}_shape")


def _ceil_excess(
    c: Context, x: Scaled, kernel: tuple[int, ...], strides: tuple[int, ...], padding: Pads
) -> tuple[int, ...]:
    """Extra padding at the ends that ceil_mode asks for."""
    if not c.attributes.get("ceil_mode", 0):
        return (0,) * len(kernel)
    excess = []
    for n, k, s, (before, after) in zip(x.shape[1:], kernel, strides, padding):
        left = (before + n + after - k) % s
        positions = -(-(before + n + after - k) // s)
        starts_inside = positions * s < n + before
        excess.append(s - left if left and starts_inside else 0)
    return tuple(excess)


def _max_pool(r: Program, c: Context) -> Value:
    """Maxima commute with every nondecreasing function."""
    if len([o for o in c.proto.output if o]) > 1 or c.attributes.get("storage_order", 0):
        raise NotCovered(f"{c.where}: max pooling with indices")
    x = r.scaled(c)
    kernel = tuple(c.attributes.get("kernel_shape", ()))
    if c.proto.op_type == "GlobalMaxPool":
        kernel = x.shape[1:]
    if len(kernel) not in (1, 2) or min(kernel) < 1 or max(kernel) > 2**16:
        raise NotCovered(f"{c.where}: max pooling with kernel {kernel}, expected one or two sizes")
    if x.pad:
        raise NotCovered(f"{c.where}: its input is padded with zeros")
    strides, padding, dilations = _window(c, x, kernel)
    if set(dilations) != {1}:
        raise NotCovered(f"{c.where}: max pooling with dilation")
    excess = _ceil_excess(c, x, kernel, strides, padding)
    padding = tuple((a, b + e) for (a, b), e in zip(padding, excess))
    increasing = r.increasing(x)
    if increasing is None or any(prod(p.shape[1:]) != 1 for p in increasing.parameters):
        raise NotCovered(
            f"{c.where}: maxima of a function that is not increasing; quantize it first"
        )
    value, name = increasing, c.name
    if len(kernel) == 1:
        value = r.reshape(value, (x.shape[0], 1, x.shape[1]), f"{name}_in")
        kernel, strides, padding = (1, *kernel), (1, *strides), ((0, 0), *padding)
    node = r.emit(name, MaxPool2d(kernel, strides, padding), (value.node,))
    pooled = replace(value, node=node, shape=r.shapes[node])
    if len(x.shape) != 2:
        return pooled
    return r.reshape(pooled, (pooled.shape[0], pooled.shape[2]), f"{name}_out")


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
    "ReduceMean": _reduce_mean,
    "ReduceSum": _reduce_sum,
}
