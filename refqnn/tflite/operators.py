"""The operators that are read, one function each."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import NotCovered
from refqnn.ops import (
    Add,
    Conv2d,
    Flatten,
    Linear,
    Lookup,
    MaxPool2d,
    Requantize,
    Softmax,
    SumPool2d,
)
from refqnn.ops.softmax import exp_of_negative
from refqnn.ops.windows import Padding
from refqnn.rounding import round_ratio
from refqnn.tflite.files import Operator, Tensor
from refqnn.tflite.reader import Reader
from refqnn.tflite.rescaling import (
    Gains,
    Target,
    clipped,
    gain,
    multiplier,
    requantize,
    rescaled,
)

__all__ = ["TABLE"]


def _operand(op: Operator, i: int) -> Tensor:
    tensor = op.inputs[i] if i < len(op.inputs) else None
    if tensor is None:
        raise NotCovered(f"its operand {i} is left out")
    return tensor


# --- sums of products -------------------------------------------------------------------------


def _weights(op: Operator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Integer weights less their zero points, the output channels first, and the bias."""
    w = _operand(op, 1)
    axis = w.axis if w.scale.size > 1 else 0
    zero = w.zero_point.reshape(-1, *(1,) * (len(w.shape) - 1 - axis))
    weights = w.constant.astype(np.int64) - zero
    channels = w.shape[-1] if op.kind == "DEPTHWISE_CONV_2D" else w.shape[0]
    has_bias = len(op.inputs) > 2 and op.inputs[2] is not None
    bias = _operand(op, 2).constant if has_bias else np.zeros(channels)
    return weights, bias.astype(np.int64)


def _gains(r: Reader, op: Operator) -> Gains:
    """s_x * s_w / s_y, one for each output channel."""
    x, w, y = _operand(op, 0), _operand(op, 1), op.outputs[0]
    (s_x, _), (s_y, _) = x.quantizer, y.quantizer
    way = r.profile.way(op.kind)
    if op.kind == "FULLY_CONNECTED" and w.scale.size == 1 and way == "double_up":
        gains = gain(way, s_x * w.scale, by=s_y)  # the product in float32
    else:
        gains = gain(way, s_x, w.scale, by=s_y)
    return np.broadcast_to(gains, y.shape[-1:])


def _sum(r: Reader, op: Operator, layer: Linear | Conv2d, source: str) -> None:
    """The sum, rescaled to codes."""
    (y,) = op.outputs
    acc = r.step(layer, [source], y, "sum")
    target = r.target(op, op.options.FusedActivationFunction())
    r.add(requantize(_gains(r, op), target, r.profile.way(op.kind), r.ends(acc)), [acc], y)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) so that ceil(size / stride) windows fit; the odd one goes after."""
    reach = dilation * (kernel - 1) + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return total // 2, total - total // 2


def _window(
    op: Operator, kernel: tuple[int, ...], sizes: tuple[int, ...], dilated: bool = True
) -> dict[str, Any]:
    """Stride, padding and dilation from the options."""
    o = op.options
    stride = (o.StrideH(), o.StrideW())
    dilation = (o.DilationHFactor(), o.DilationWFactor()) if dilated else (1, 1)
    if min(*stride, *dilation) < 1:
        raise NotCovered(f"stride {stride}, dilation {dilation}")
    padding: Padding = ((0, 0), (0, 0))
    if o.Padding() == 0:
        padding = tuple(_same(*each) for each in zip(sizes, kernel, stride, dilation))
    return {"stride": stride, "padding": padding, **({"dilation": dilation} if dilated else {})}


def convolution(r: Reader, op: Operator) -> None:
    x = _operand(op, 0)
    weight, bias = _weights(op)  # [out, kh, kw, in], or [1, kh, kw, out] where depthwise
    weight = np.moveaxis(weight, -1, 0 if op.kind == "DEPTHWISE_CONV_2D" else 1)
    if op.kind == "DEPTHWISE_CONV_2D":
        weight = weight.reshape(len(weight), 1, *weight.shape[2:])
    channels, *sizes = r.shape(x)
    _, zero = x.quantizer
    layer = Conv2d(
        weight,
        bias - zero * weight.sum(axis=(1, 2, 3)),
        groups=channels // weight.shape[1],
        pad_code=zero,
        **_window(op, weight.shape[2:], tuple(sizes)),
    )
    _sum(r, op, layer, r.value(x))


def fully_connected(r: Reader, op: Operator) -> None:
    x = _operand(op, 0)
    weight, bias = _weights(op)
    _, zero = x.quantizer
    source = r.value(x)
    if len(r.shape(x)) > 1:
        flat = r.move(source, r.shape(x), lambda v: v.reshape(1, -1)) or Flatten()
        source = r.step(flat, [source], op.outputs[0], "flat")
    _sum(r, op, Linear(weight, bias - zero * weight.sum(axis=1)), source)


# --- windows ----------------------------------------------------------------------------------


def pool(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    kernel = (op.options.FilterHeight(), op.options.FilterWidth())
    window = _window(op, kernel, r.shape(x)[1:], dilated=False)
    target = r.target(op, op.options.FusedActivationFunction())
    if x.quantizer != y.quantizer:
        raise NotCovered("its input and output have different scales")
    if op.kind == "MAX_POOL_2D":
        return _clip(r, op, MaxPool2d(kernel, **window), [r.value(x)], target)
    if any(end for pair in window["padding"] for end in pair):
        raise NotCovered("windows beyond the edge, of fewer values than others")
    acc = r.step(SumPool2d(kernel, **window), [r.value(x)], y, "sum")
    count = prod(kernel)
    lo, hi = (np.array([e]) for e in (count * x.format.q_min, count * x.format.q_max))
    mean = Requantize.from_function(lambda a: round_ratio(a, count, "half_away"), lo, hi, y.format)
    r.add(clipped(mean, target.clip), [acc], y)


def _clip(r: Reader, op: Operator, node: Any, sources: list[str], target: Target) -> None:
    """A node that makes codes, clipped where an activation is fused to it."""
    (y,) = op.outputs
    fmt = target.format
    if target.clip == (fmt.q_min, fmt.q_max):
        return r.add(node, sources, y)
    codes = np.clip(np.arange(fmt.q_min, fmt.q_max + 1), *target.clip)[None]
    return r.table(op, r.step(node, sources, y, "unclipped"), codes)


# --- sums of two ------------------------------------------------------------------------------


def add(r: Reader, op: Operator) -> None:
    a, b, (y,) = _operand(op, 0), _operand(op, 1), op.outputs
    twice = 2 * max(float(t.quantizer[0]) for t in (a, b))
    sign = -1 if op.kind == "SUB" else 1
    shift = 15 if y.type == "INT16" else 20
    terms = [
        r.step(_scaled(t, twice, shift), [r.value(t)], y, f"term {i}") for i, t in enumerate((a, b))
    ]
    acc = r.step(Add((1, sign)), terms, y, "sum")
    real = twice / (2**shift * float(y.quantizer[0]))
    target = r.target(op, op.options.FusedActivationFunction())
    r.add(requantize(np.array([real]), target, "double", r.ends(acc)), [acc], y)


def _scaled(t: Tensor, twice: float, shift: int) -> Lookup:
    scale, zero = t.quantizer
    codes = np.arange(t.format.q_min, t.format.q_max + 1)
    table = rescaled((codes - zero) << shift, float(scale) / twice)
    return Lookup(table[None], t.format.q_min)


# --- functions --------------------------------------------------------------------------------


def softmax(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    scale, _ = x.quantizer
    if r.profile.float_softmax:
        step = -scale * np.float32(op.options.Beta())
        powers = step * np.arange(x.format.levels, dtype=np.float32)
        exponentials = np.exp(powers.astype(np.float64)).astype(np.float32)
        return r.add(Softmax(exponentials, y.format), [r.value(x)], y)
    real = min(float(op.options.Beta()) * float(scale) * 2**26, 2.0**31 - 1)
    m, e = multiplier(real)
    radius = (31 << 26) >> e
    d = np.arange(min(radius, x.format.q_max - x.format.q_min) + 1)
    table = exp_of_negative(round_ratio((-d << e) * m, 2**31, "half_up"), 5)
    r.add(Softmax(table, y.format), [r.value(x)], y)


def reshape(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    _moved(r, op, r.value(x), lambda v: v.reshape(1, *y.shape[1:]))


def _moved(r: Reader, op: Operator, source: str, movement: Any) -> None:
    (y,) = op.outputs
    node = r.move(source, r.ranges[source].shape, movement)
    if node is None:
        r.values[y.index] = source
    else:
        r.add(node, [source], y)


Handler = Callable[[Reader, Operator], None]

TABLE: dict[str, Handler] = {
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": convolution,
    "FULLY_CONNECTED": fully_connected,
    "AVERAGE_POOL_2D": pool,
    "MAX_POOL_2D": pool,
    "ADD": add,
    "SUB": add,
    "SOFTMAX": softmax,
    "RESHAPE": reshape,
}
