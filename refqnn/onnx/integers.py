"""Operators on integer tensors, ONNX's own and onnxruntime's.

What each does to the sum it computes, in order, one float32 operation a sign:

    QLinearConv, QLinearMatMul, QGemm    acc * fl32(s_x * s_w / s_y), round, + zero, saturate
    QLinearAdd                           x * s_x + y * s_y, / s, + zero, round, saturate
    QLinearMul                           x * y * fl32(s_x * s_y / s), + zero, round, saturate
    QLinearAveragePool                   sum / n * s_x, / s, + zero, round, saturate
      of all positions, without padding  as QLinearGlobalAveragePool
    QLinearGlobalAveragePool             sum * fl32(s_x / (s * n)), round, + zero, saturate
    QLinearConcat, QLinearLeakyRelu      f(x * s_x), / s, round, + zero, saturate
    QLinearSigmoid                       f(x * s_x), / s, round, + zero, saturate
    MatMulInteger, ConvInteger           acc, which must not wrap in 32 bits
    RequantShift (of PULP's tools)       floor((acc * mul + add) / div), saturate

`x` is a code less its zero point; rounding is half to even.  QuantizeLinear adds its zero point
after rounding, QONNX's Quant before it.  How QLinearAdd and QLinearAveragePool round their floats
on the way differs from kernel to kernel: at scales that are no powers of two a code beside a tie
may differ by one.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch
from refqnn.onnx.elementwise import add_activations, constants_of, operand_of, product_of
from refqnn.onnx.program import Context, Handler, Program
from refqnn.onnx.quantization import (
    grid_of,
    integer_zero,
    limits_of,
    one_zero_point,
    plain_integers,
    scale_of,
)
from refqnn.onnx.shapes import joined
from refqnn.onnx.sums import averaged, convolution, dense, total_over_positions, window_of
from refqnn.onnx.values import (
    Constant,
    Grid,
    Quantized,
    Scaled,
    Value,
    along_channels,
    fractions_of,
    one,
    unscaled,
)

__all__ = ["TABLE"]

Array = NDArray[Any]


def _integer_operand(r: Program, c: Context, index: int, zero_index: int) -> Scaled:
    """Codes minus their zero point, scale 1."""
    x = plain_integers(r, c, index)
    return replace(x, zero=x.zero + one_zero_point(c, zero_index), base="FLOAT")


def _integer_weights(c: Context, index: int, zero_index: int, matrix: bool) -> Grid:
    """Weights minus their zero point, channels first."""
    w = c.constant(index, "weights")
    zero = integer_zero(c, zero_index, "zero point of the weights")
    if w.dtype.kind not in "iu" or (matrix and w.ndim != 2):
        raise NotCovered(f"{c.where}: weights of type {w.dtype} and shape {w.shape}")
    zero = zero.reshape((-1,) + (1,) * (w.ndim - 1))
    return grid_of(w.T if matrix else w, zero, np.ones((), dtype=np.float32))


def _matmul_integer(r: Program, c: Context) -> Value:
    x = _integer_operand(r, c, 0, 2)
    return r.within(dense(r, c, x, _integer_weights(c, 1, 3, matrix=True)), "INT32", c.where)


def _conv_integer(r: Program, c: Context) -> Value:
    x = _integer_operand(r, c, 0, 2)
    y = convolution(r, c, x, _integer_weights(c, 1, 3, matrix=False), None)
    return r.within(y, "INT32", c.where)


def _requantized_sum(r: Program, c: Context, y: Scaled, first: int) -> Quantized:
    """round(acc * fl32(s_x * s_w / s_y)) + zero_y, saturated: the tail of QLinear operators."""
    if y.steps:
        raise FileFormatError(f"{c.where}: its bias is not a tensor of integers")
    r.within(replace(y, scale=one(y.shape)), "INT32", c.where)
    s_x, s_w, s_y = (scale_of(c, i) for i in (1, 4, first))
    factor = np.asarray(s_x * s_w / s_y, dtype=np.float32)
    if factor.size not in (1, y.shape[0]):
        raise ShapeMismatch(f"{c.where}: {factor.size} scales for {y.shape[0]} channels")
    return _times(c, y, factor, first + 1)


def _times(c: Context, y: Scaled, factor: Array, index: int, zero_first: bool = False) -> Quantized:
    """round(y * factor) with the zero point at `index`, saturated."""
    scaled = y.then("Mul", along_channels(factor.reshape(-1), y.shape, c.where))
    unit = np.ones((1,) * len(y.shape), dtype=np.float32)
    zeros = along_channels(integer_zero(c, index).reshape(-1), y.shape, c.where)
    dtype = _type(c, index)
    lo, hi = limits_of(c, dtype)
    return Quantized(scaled, unit, zeros, lo, hi, zero_first=zero_first, dtype=dtype, name=c.name)


def _type(c: Context, index: int) -> str:
    """The type of the output is that of its zero point."""
    return "UINT8" if c.optional(index) is None else c.element_type(index)


def _qlinear_matmul(r: Program, c: Context) -> Value:
    x, weights = _integer_operand(r, c, 0, 2), _integer_weights(c, 3, 5, matrix=True)
    if len(x.shape) > 1 and (scale_of(c, 4).size > 1 or scale_of(c, 6).size > 1):
        raise NotCovered(f"{c.where}: one scale per column of a matrix product of rows")
    return _requantized_sum(r, c, dense(r, c, x, weights, name=f"{c.name}_acc"), 6)


def _qlinear_conv(r: Program, c: Context) -> Value:
    x, weights = _integer_operand(r, c, 0, 2), _integer_weights(c, 3, 5, matrix=False)
    y = convolution(r, c, x, weights, c.optional(8), name=f"{c.name}_acc")
    return _requantized_sum(r, c, y, 6)


# --- onnxruntime's own --------------------------------------------------------------------------


def _one_scale(c: Context, index: int) -> Array:
    scale = scale_of(c, index)
    if scale.size != 1:
        raise NotCovered(f"{c.where}: activations with one scale per channel")
    return scale


def _operand(r: Program, c: Context, index: int) -> Scaled | Grid:
    """The operands x, x_scale, x_zero_point at `index`: (x - zero) * scale."""
    if isinstance(c.value(index), Constant):
        zero = one_zero_point(c, index + 2)
        return grid_of(c.constant(index, "operand"), zero, _one_scale(c, index + 1))
    return _activation(r, c, index)


def _activation(r: Program, c: Context, index: int = 0) -> Scaled:
    x = _integer_operand(r, c, index, index + 2)
    scale = _one_scale(c, index + 1).reshape((1,) * len(x.shape))
    return replace(x, scale=fractions_of(scale))


def _requantized(c: Context, x: Scaled, index: int, zero_first: bool = False) -> Quantized:
    """Quantized by y_scale, y_zero_point at `index`."""
    axes = (1,) * len(x.shape)
    scale, zero = _one_scale(c, index), integer_zero(c, index + 1)
    dtype = _type(c, index + 1)
    lo, hi = limits_of(c, dtype)
    scale, zero = scale.reshape(axes), zero.reshape(axes)
    return Quantized(x, scale, zero, lo, hi, zero_first=zero_first, dtype=dtype, name=c.name)


def _qlinear_add(r: Program, c: Context) -> Value:
    a, b = _operands(r, c)
    if isinstance(b, Grid):
        y = a.then("Add", operand_of(c, a, b))
    else:
        y = add_activations(r, c, a, b, +1, name=f"{c.name}_acc")
    return _requantized(c, y, 6, zero_first=True)


def _operands(r: Program, c: Context) -> tuple[Scaled, Scaled | Grid]:
    """Two activations, or one and a constant."""
    a, b = _operand(r, c, 0), _operand(r, c, 3)
    if isinstance(a, Grid):
        a, b = b, a
    if isinstance(a, Grid):
        raise NotCovered(f"{c.where}: both operands are constants")
    return a, b


def _qlinear_mul(r: Program, c: Context) -> Value:
    """The product of the integers, times one float."""
    a, b = _operands(r, c)
    s_a, s_b, s_y = (_one_scale(c, i) for i in (1, 4, 6))
    a = replace(a, scale=one(a.shape))
    if isinstance(b, Grid):
        y = a.then("Mul", operand_of(c, a, Constant(b.codes)))
    else:
        y = product_of(r, c, a, replace(b, scale=one(b.shape)))
    return _times(c, y, np.asarray(s_a * s_b / s_y), 7, zero_first=True)


def _qlinear_concat(r: Program, c: Context) -> Value:
    values = [_activation(r, c, i) for i in range(2, len(c.inputs), 3)]
    return _requantized(c, joined(r, c, values, name=f"{c.name}_joined"), 0)


def _global_average(r: Program, c: Context) -> Value:
    _channels_first(c)
    return _mean_of_all(r, c, _activation(r, c))


def _average_pool(r: Program, c: Context) -> Value:
    _channels_first(c)
    x, kernel = _activation(r, c), tuple(c.attribute("kernel_shape", [0]))
    if kernel == x.shape[1:] and not any(map(sum, window_of(c, x, kernel)[1])):
        return _mean_of_all(r, c, x)
    return _requantized(c, averaged(r, c, x), 3, zero_first=True)


def _mean_of_all(r: Program, c: Context, x: Scaled) -> Quantized:
    """The sum of the integers over all positions, times one float."""
    s_x, s_y = (_one_scale(c, i) for i in (1, 3))
    total = total_over_positions(r, c, replace(x, scale=one(x.shape)))
    return _times(c, total, np.asarray(s_x / (s_y * np.float32(prod(x.shape[1:])))), 4)


def _channels_first(c: Context) -> None:
    if c.attribute("channels_last", 0):
        raise NotCovered(f"{c.where}: channels in the last axis")


def _qlinear_step(step: str, **defaults: float) -> Handler:
    """Dequantize, a float function, quantize."""

    def handle(r: Program, c: Context) -> Value:
        x = _activation(r, c)
        return _requantized(c, x.then(step, *constants_of(c, x, defaults)), 3)

    return handle


def _qgemm(r: Program, c: Context) -> Value:
    """alpha * (a - z_a) (b - z_b) + C, requantized when it has a y_scale, else float."""
    if c.attribute("transA", 0) or c.attribute("alpha", 1.0) != 1.0:
        raise NotCovered(f"{c.where}: transA or alpha")
    x = _integer_operand(r, c, 0, 2)
    if c.attribute("transB", 0):
        c.inputs[3] = Constant(c.constant(3, "weights").T)
    weights = _integer_weights(c, 3, 5, matrix=True)
    y = dense(r, c, x, weights, c.optional(6), name=f"{c.name}_acc")
    if c.optional(7) is not None:
        return _requantized_sum(r, c, y, 7)
    if y.steps:
        raise FileFormatError(f"{c.where}: its bias is not a tensor of integers")
    factor = np.atleast_1d(fractions_of(scale_of(c, 1)) * fractions_of(scale_of(c, 4)))
    return replace(y, scale=along_channels(factor.reshape(-1), y.shape, c.where))


def _requant_shift(r: Program, c: Context) -> Value:
    """clip(floor((x * mul + add) / div)) of integers, as QuantLab writes it."""
    x = r.scaled(c)
    dtype = x.dtype
    if not x.integer:
        if not (x.is_plain and r.holds_integers(x)):
            raise NotCovered(f"{c.where}: its input is not a tensor of integers")
        x = replace(x, base="INT64")
    held = {k: np.ravel(v) for k, v in c.attributes.items() if not isinstance(v, (str, list))}
    told = {k: int(v[0]) for k, v in held.items() if v.size and np.isfinite(v[0])}
    levels, div = told.get("n_levels", told.get("n_levels_out", 0)), told.get("div", 0)
    mul, add = (c.constant(i, "a factor").reshape(-1, 1) for i in (1, 2))
    if levels < 1 or div < 1 or any((a != np.rint(a)).any() for a in (mul, add)):
        raise FileFormatError(f"{c.where}: its parameters are not integers, or missing")
    factor, term = mul.astype(np.int64), add.astype(np.int64)
    greatest = max(map(abs, r.reach(x, c.where))) * int(abs(mul).max()) + int(abs(add).max())
    if greatest >= 2**62:
        raise NotCovered(f"{c.where}: its products, up to {greatest}, leave 62 bits")
    lo = -(levels // 2) if told.get("signed", 0) else 0

    def codes(v: Array) -> Array:
        return np.asarray((v.astype(np.int64) * factor + term) // div)

    rows = max(factor.size, term.size)
    q = unscaled(x, lo, lo + levels - 1, function=codes, rows=rows, dtype=dtype, name=c.name)
    return r.codes(q)


TABLE: dict[str, Handler] = {
    "PACTOps.RequantShift": _requant_shift,
    "RequantShift": _requant_shift,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "com.microsoft.QGemm": _qgemm,
    "com.microsoft.QLinearAdd": _qlinear_add,
    "com.microsoft.QLinearAveragePool": _average_pool,
    "com.microsoft.QLinearConcat": _qlinear_concat,
    "com.microsoft.QLinearGlobalAveragePool": _global_average,
    "com.microsoft.QLinearLeakyRelu": _qlinear_step("LeakyRelu", alpha=0.01),
    "com.microsoft.QLinearMul": _qlinear_mul,
    "com.microsoft.QLinearSigmoid": _qlinear_step("Sigmoid"),
}
