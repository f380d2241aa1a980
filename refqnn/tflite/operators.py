"""The operators that are read, one function each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, mismatch
from refqnn.formats import IntFormat
from refqnn.ops import (
    Add,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Requantize,
    Rescale,
    Reshape,
    Softmax,
    SumPool2d,
)
from refqnn.ops.softmax import along_lines, curve, exp_of_negative
from refqnn.ops.windows import Padding
from refqnn.rounding import round_float, round_ratio
from refqnn.tflite.files import Model, Operator, Tensor
from refqnn.tflite.profiles import RUNTIMES, Runtime
from refqnn.tflite.reader import Imported, Movement, Reader, our_order
from refqnn.tflite.rescaling import (
    Target,
    Way,
    check_32,
    eighth_bits,
    fixed_point,
    gain,
    multiplier,
    requantize,
    rescaled,
)

__all__ = ["TABLE", "read_model"]


def _operand(op: Operator, i: int) -> Tensor:
    tensor = op.inputs[i] if i < len(op.inputs) else None
    if tensor is None:
        raise NotCovered(f"its operand {i} is left out")
    return tensor


# --- sums of products -------------------------------------------------------------------------


def _weights(op: Operator, bias_at: int = 2) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Integer weights less their zero points, the output channels first, and the bias."""
    w = _operand(op, 1)
    axis = w.axis if w.scale.size > 1 else 0
    read = op.kind == "FULLY_CONNECTED" and w.scale.size == 1
    if w.type == "INT8" and w.zero_point.any() and not read:
        raise NotCovered("its weights have zero points, which the kernels refuse or pass over")
    zero = w.zero_point.reshape(-1, *(1,) * (len(w.shape) - 1 - axis))
    weights = w.constant.astype(np.int64) - zero
    channels = w.shape[-1] if op.kind == "DEPTHWISE_CONV_2D" else w.shape[0]
    has_bias = len(op.inputs) > bias_at and op.inputs[bias_at] is not None
    bias = _operand(op, bias_at).constant if has_bias else np.zeros(channels)
    return weights, bias.astype(np.int64)


def _sum(
    r: Reader,
    op: Operator,
    layer: Linear | Conv2d,
    source: str,
    x: Tensor,
    way: Way | None = None,
) -> None:
    """The sum, rescaled to codes: gains s_x * s_w / s_y, one for each output channel."""
    w, (y,), way = _operand(op, 1), op.outputs, way or r.way(op)
    acc = r.step(layer, [source], y, "sum")
    (s_x, _), (s_y, _) = x.quantizer, y.quantizer
    if op.kind == "FULLY_CONNECTED" and w.scale.size == 1 and way not in ("float32", "float64"):
        gains = gain(way, s_x * w.scale, by=s_y)  # the product in float32
    else:
        gains = gain(way, s_x, w.scale, by=s_y)
    gains = np.broadcast_to(gains, y.shape[-1:])
    target = r.target(op, op.options.FusedActivationFunction())
    r.add(requantize(gains, target, way, r.ends(acc)), [acc], y)


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
    _sum(r, op, layer, r.value(x), x)


def transpose_conv(r: Reader, op: Operator) -> None:
    """Inputs spread out, the zero point between, and a convolution."""
    x, (y,) = _operand(op, 2), op.outputs
    weight, bias = _weights(op, 3)  # [out, kh, kw, in]
    o, (_, zero) = op.options, x.quantizer
    padding, extra = [], []
    for size, out, k, s in zip(
        x.shape[1:3], y.shape[1:3], weight.shape[1:3], (o.StrideH(), o.StrideW())
    ):
        before = _same(out, k, s, 1)[0] if o.Padding() == 0 else 0
        rest = s * (size - 1) + k - before - out
        padding.append((before, max(rest, 0)))
        extra.append(max(-rest, 0))
    layer = ConvTranspose2d(
        weight.transpose(3, 0, 1, 2),
        bias - zero * weight.sum(axis=(1, 2, 3)),
        stride=(o.StrideH(), o.StrideW()),
        padding=tuple(padding),
        output_padding=tuple(extra),
    )
    spread, conv = layer.as_convolution(r.shape(x))
    source = r.step(replace(spread, fill=zero), [r.value(x)], y, "spread")
    way = r.way(op)
    # XNNPACK leaves to the optimized kernels what SAME would pad with less than nothing.
    covered = o.Padding() or all(k >= s for k, s in zip(weight.shape[1:3], layer.stride))
    way = way if covered or way != "float32" else "mixed"
    if way == "mixed" and y.type == "UINT8":
        raise NotCovered("it is not covered for UINT8: the optimized kernel is not told here")
    _sum(r, op, conv, source, x, way)


def fully_connected(r: Reader, op: Operator) -> None:
    x = _operand(op, 0)
    weight, bias = _weights(op)
    if prod(x.shape[1:]) != weight.shape[1]:
        raise NotCovered(f"several rows of {weight.shape[1]} inputs in one sample of {x.shape[1:]}")
    _, zero = x.quantizer
    source = r.value(x)
    if len(r.shape(x)) > 1:
        flat = r.move(source, lambda v: v.reshape(1, -1)) or Flatten()
        source = r.step(flat, [source], op.outputs[0], "flat")
    _sum(r, op, Linear(weight, bias - zero * weight.sum(axis=1)), source, x)


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
    summed = SumPool2d(kernel, **window)
    acc = r.step(summed, [r.value(x)], y, "sum")
    ones = np.ones((1, *r.shape(x)), dtype=np.int64)
    counts = summed.forward(ones)[0]  # the values of each window that lie inside
    r.select(y, counts, {c: (_mean(c, target), acc) for c in np.unique(counts).tolist()})


def _mean(count: int, target: Target) -> Requantize:
    """A sum divided by the number of its terms."""
    fmt = target.format
    lo, hi = (np.array([count * end]) for end in (fmt.q_min, fmt.q_max))
    return Requantize.from_function(
        lambda acc: np.clip(round_ratio(acc, count, "half_away"), *target.clip), lo, hi, fmt
    )


def _clip(r: Reader, op: Operator, node: Any, sources: list[str], target: Target) -> None:
    """A node that makes codes, clipped where an activation is fused to it."""
    (y,) = op.outputs
    fmt = target.format
    if target.clip == (fmt.q_min, fmt.q_max):
        return r.add(node, sources, y)
    clipped = r.function(np.clip(y.codes, *target.clip), y, y)
    r.add(clipped, [r.step(node, sources, y, "unclipped")], y)


# --- two operands -----------------------------------------------------------------------------


def _pair(r: Reader, op: Operator) -> tuple[list[Tensor], list[str]]:
    """Both operands and their values, moved to the shape of the output where they are smaller."""
    (y,) = op.outputs
    tensors, sources = [_operand(op, i) for i in (0, 1)], []
    for t, other in zip(tensors, reversed(tensors)):
        source = r.value(t) if t.data is None else _constant(r, t, other, y)
        spread = r.move(source, lambda v: np.broadcast_to(v, (1, *y.shape[1:])))
        sources.append(r.step(spread, [source], y, "spread") if spread else source)
    return tensors, sources


def _constant(r: Reader, t: Tensor, other: Tensor, y: Tensor) -> str:
    """A value of constants, one or one a channel: a table of the other operand that is constant."""
    values = t.constant.reshape(-1).astype(np.int64)
    if values.size not in (1, y.shape[-1]) or (values.size > 1 and t.shape[-1] != values.size):
        raise NotCovered(f"its constant {t.name!r} differs from place to place")
    table = np.repeat(values[:, None], other.format.levels, axis=1)
    lookup = Lookup(table, other.format.q_min, t.format)
    return r.step(lookup, [r.value(other)], y, "constant")


def add(r: Reader, op: Operator) -> None:
    (a, b), sources = _pair(r, op)
    (y,) = op.outputs
    target = r.target(op, op.options.FusedActivationFunction() if op.options else 0)
    sign = -1 if op.kind == "SUB" else 1
    (s_a, z_a), (s_b, z_b), (s_y, _) = a.quantizer, b.quantizer, y.quantizer
    ratios = np.array([s_a, s_b], np.float32) / s_y
    if r.way(op) == "float32" and 2.0**-10 <= ratios.min() <= ratios.max() < 2.0**8:
        shift = 21 - int(np.frexp(ratios.max())[1])
        m_a, m_b = (int(m) for m in np.rint(ratios.astype(np.float64) * 2.0**shift))
        acc = r.step(Add((m_a, sign * m_b)), sources, y, "sum")
        offset = -(m_a * z_a + sign * m_b * z_b)
        zero, clip = target.zero_point, target.clip
        code = Rescale(1, shift, y.format, zero_point=zero, offset=offset, clip=clip)
        return r.add(Requantize.from_rescale(code), [acc], y)

    def summed(*ways: Way) -> tuple[Requantize | Rescale, str]:
        tables, real = _terms(r, op, (a, b), ways)
        terms = [
            r.step(Lookup(table[None], t.format.q_min), [source], y, f"term {i}")
            for i, (t, table, source) in enumerate(zip((a, b), tables, sources), 1)
        ]
        acc = r.step(Add((1, sign)), terms, y, "sum")
        return requantize(np.array([real]), target, "double", r.ends(acc)), acc

    single = [prod(t.shape) == 1 < prod(y.shape) for t in (a, b)]
    if not (r.profile.optimized and op.kind == "ADD" and any(single) and y.type != "INT16"):
        node, acc = summed("double", "double")
        return r.add(node, [acc], y)
    inside: list[Way] = ["double" if one else "double_down" for one in single]
    behind: list[Way] = ["double", "double"]
    last = _behind(y, 8)
    r.select(y, last, {k: summed(*(behind if k else inside)) for k in np.unique(last).tolist()})


def _behind(y: Tensor, n: int) -> NDArray[np.bool_]:
    """Where a tensor lies behind the vectors of n values that it fills.  Raises: NotCovered."""
    if y.shape[0] > 1:
        raise NotCovered(f"its vectors of {n} reach across a batch of {y.shape[0]}")
    size = prod(y.shape)
    last = np.arange(size).reshape(y.shape) >= size // n * n
    return np.asarray(our_order(last)[0])


def _terms(
    r: Reader, op: Operator, operands: tuple[Tensor, Tensor], ways: tuple[Way, ...]
) -> tuple[list[NDArray[np.int64]], float]:
    """What each operand adds to a sum, by its code, and the gain of the sum."""
    (a, b), (y,) = operands, op.outputs
    if y.type == "INT16" and r.profile.shifted_sums and op.options and op.options.PotScaleInt16():
        shifts = _shifts(a, b, y)
        if shifts:
            return [round_ratio(t.codes, 2**s, "half_away") for t, s in zip((a, b), shifts)], 1.0
    s_a, s_b, s_y = (float(t.quantizer[0]) for t in (a, b, y))
    twice, shift = 2 * max(s_a, s_b), 15 if y.type == "INT16" else 20
    tables = [
        rescaled((t.codes - t.quantizer[1]) << shift, s / twice, way)
        for t, s, way in zip(operands, (s_a, s_b), ways)
    ]
    real = twice / (2**shift * s_y)
    if real >= 1:
        raise NotCovered(mismatch("the last of its multipliers", f"{real:g}", "less than 1"))
    return tables, real


def _shifts(a: Tensor, b: Tensor, y: Tensor) -> list[int]:
    """Bits by which the kernels shift two operands; none unless all scales are powers of two.

    Raises: NotCovered.
    """
    powers = _powers_of_two(*(t.quantizer[0] for t in (a, b, y)))
    if not powers or any(t.quantizer[1] for t in (a, b, y)):
        return []
    shifts = [powers[2] - p for p in powers[:2]]
    if min(shifts) != 0:
        got = "scales 2**{}, 2**{}, output 2**{}".format(*powers)
        raise NotCovered(mismatch("its operands", got, "one as its output, one not above it"))
    return [min(s, 31) for s in shifts]


def _powers_of_two(*scales: np.float32) -> list[int]:
    """Their logarithms, rounded; none where one, in float32, is 1/1000 off an integer."""
    logs = np.log(np.array(scales)) / np.log(np.float32(2))
    whole = np.rint(logs)
    return [] if (abs(logs - whole) >= 1e-3).any() else whole.astype(int).tolist()


def multiply(r: Reader, op: Operator) -> None:
    """a b = floor((a + b)**2 / 4) - floor((a - b)**2 / 4), exactly: a + b and a - b are both odd
    or both even.
    """
    (y,) = op.outputs
    target = r.target(op, op.options.FusedActivationFunction() if op.options else 0)
    if r.way(op) == "float32" and op.inputs[0] is op.inputs[1]:
        return _square(r, op, target)
    (a, b), sources = _pair(r, op)
    (s_a, z_a), (s_b, z_b), (s_y, _) = a.quantizer, b.quantizer, y.quantizer
    quarters = []
    for sign, what in ((1, "sum"), (-1, "difference")):
        both = r.step(Add((1, sign)), sources, y, what)
        lo, hi = r.ranges[both].ends
        table = (np.arange(lo, hi + 1) - z_a - sign * z_b) ** 2 // 4
        quarters.append(r.step(Lookup(table[None], lo), [both], y, f"square of the {what}"))
    acc = r.step(Add((1, -1)), quarters, y, "product")
    way = r.way(op)
    if r.profile.wide_product:
        real = gain("double", s_a, s_b, by=s_y)
    else:
        real = np.array([s_a * s_b / s_y])  # in float32
    gains = real if way == "float32" else real.astype(np.float64)
    if r.profile.narrow_product and y.type != "INT16":
        ends = [np.subtract(r.ranges[x].ends, z) for x, z in zip(sources, (z_a, z_b))]
        products = np.outer(*ends)
        _check_narrow(np.maximum(products, 0) if a is b else products, float(gains[0]), target)
    r.add(requantize(gains, target, way, r.ends(acc)), [acc], y)


def _check_narrow(products: NDArray[np.int64], real: float, target: Target) -> None:
    """Raises: NotCovered where a rescaled product and the zero point may leave 16 bits."""
    sums = _int16(rescaled(products.ravel(), real)) + target.zero_point
    if (sums != _int16(sums)).any():
        got = f"a rescaled product and zero point from {sums.min()} to {sums.max()}"
        raise NotCovered(mismatch("its output", got, "16 bits, beyond which the kernel wraps"))


def _square(r: Reader, op: Operator, target: Target) -> None:
    """A tensor times itself, in float32."""
    x, (y,) = _operand(op, 0), op.outputs
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    v = s_x * (x.codes - z_x).astype(np.float32)
    codes = round_float(v * v * (np.float32(1) / s_y) + np.float32(z_y), "half_even")
    r.table(op, r.value(x), np.clip(codes, *target.clip).astype(np.int64))


# --- functions of one code --------------------------------------------------------------------


def relu(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    target = r.target(op, {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}[op.kind])
    codes = z_y + rescaled(x.codes - z_x, float(s_x / s_y))
    r.table(op, r.value(x), np.clip(codes, *target.clip))


def leaky_relu(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    alpha, d = np.float32(op.options.Alpha()), x.codes - z_x
    above, below = s_x / s_y, s_x * alpha / s_y
    if r.way(op) == "float32" and _in_eighth_bits(above, abs(below)):
        positive, negative = eighth_bits(d, above), eighth_bits(d, below)
    elif alpha < 0 and y.type == "INT16":
        raise NotCovered("its slope is negative, which is not covered for INT16")
    else:
        positive = rescaled(d, float(above))
        negative = int(np.sign(below)) * rescaled(d, abs(float(below)))
    r.table(op, r.value(x), _saturated(y, z_y + np.where(d >= 0, positive, negative)))


def _in_eighth_bits(*gains: np.float32) -> bool:
    return all(2.0**-8 <= g <= 2.0**7 for g in gains)


def hard_swish(r: Reader, op: Operator) -> None:
    """In 16-bit fixed point, as the reference kernel has it."""
    x, (y,) = _operand(op, 0), op.outputs
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    fine = np.float32(1 / 128) * s_x
    (m_out, e_out), (m_relu, e_relu) = (
        (min((m + 2**15) >> 16, 2**15 - 1), e)
        for m, e in map(multiplier, (float(fine / s_y), float(fine / np.float32(3 / 32768))))
    )
    if e_out > 0:
        raise NotCovered("its output scale is below 1/128 of its input scale")
    if min(e_out, e_relu) < -15:
        raise NotCovered("a multiplier below 2**-16, which the kernel's 16 bits cannot shift")
    hires = (x.codes - z_x) * 128
    product = round_ratio(hires * m_out, 2**15, "half_up")
    gate = _int16(hires * 2 ** max(e_relu - 1, 0))
    gate = round_ratio(gate * m_relu, 2**15, "half_up")
    gate = _int16(gate * 2) if e_relu > 0 else round_ratio(gate, 2**-e_relu, "half_away")
    gate = (gate + 2**15) >> 1
    scaled = round_ratio(round_ratio(gate * product, 2**15, "toward_zero"), 2**-e_out, "half_away")
    r.table(op, r.value(x), _saturated(y, z_y + scaled))


def _int16(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(values, -(2**15), 2**15 - 1)


def _saturated(y: Tensor, values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(values, y.format.q_min, y.format.q_max)


def transcendental(r: Reader, op: Operator) -> None:
    """A table made in float32."""
    x, (y,) = _operand(op, 0), op.outputs
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    if y.type == "INT16":
        return r.table(op, r.value(x), _by_lines(r, op, x, y))
    v = (s_x * (x.codes - z_x).astype(np.float32)).astype(np.float64)
    once = r.way(op) == "float32"  # the function is rounded once
    with np.errstate(over="ignore", invalid="ignore"):  # beyond, an exponential's inverse is 0
        if op.kind == "TANH":
            value = np.tanh(v).astype(np.float32)
        elif once:
            value = (1 / (1 + np.exp(-v))).astype(np.float32)
        else:
            value = np.float32(1) / (np.float32(1) + np.exp(-v).astype(np.float32))
        scaled, zero = value * (np.float32(1) / s_y), np.float32(z_y)
        rounded = np.rint(scaled + zero) - zero if once else round_float(scaled, "half_away")
    if not (abs(rounded) < 2**31).all():
        raise NotCovered(mismatch("its output's scale", f"{s_y}", "one that 32 bits suffice for"))
    r.table(op, r.value(x), _saturated(y, z_y + rounded.astype(np.int64)))


def _by_lines(r: Reader, op: Operator, x: Tensor, y: Tensor) -> NDArray[np.int64]:
    """Sigmoids of i / 24 in units of 2**-16, and lines between; tanh(v) = 2 sigmoid(2 v) - 1.

    The table is raised by half of what the line from it to the next lacks at its middle.
    """
    tanh, (scale, zero) = op.kind == "TANH", x.quantizer
    if zero or y.quantizer != (np.float32(2.0**-15), 0):
        raise NotCovered("in 16 bits its zero points are 0, and its output's scale is 2**-15")
    powers = _powers_of_two(scale)
    left = powers[0] + 12 if powers else -1
    m, shift = 3 << max(left, 0), 0  # v in units of 1 / (24 * 512), of TANH 1 / (48 * 256)
    if left not in (0, 1)[: 1 + tanh]:
        real = 12_288 * float(scale)
        while real <= 32_767 / 2 and shift <= 30:
            real, shift = 2 * real, shift + 1
        m = int(real)
    elif r.profile.optimized:
        raise NotCovered(f"the optimized kernel, which takes the scale {scale}, is not told here")
    if not m:
        raise NotCovered(f"its input's scale, {scale}, has no multiplier of 15 bits")
    check_32(2**15, float(m))
    v = (x.codes * m + (1 << shift >> 1)) >> shift
    at, middle, after = (2**16 / (1 + np.exp(-(np.arange(256) + k) / 24)) for k in (0, 0.5, 1))
    table = np.rint(at + (middle - (at + after) / 2) / 2).astype(np.int64)
    table[-1] = 2**16 - 1
    bits = 8 if tanh else 9
    at, rest = np.minimum(abs(v) >> bits, 254), abs(v) % 2**bits
    line = (table[at] << bits) + rest * (table[at + 1] - table[at])
    if tanh:
        line = np.where(abs(v) >> bits > 254, 0xFFFF << 8, line) - 2**23
        return np.where(v >= 0, line + 2**7, 2**7 - 1 - line) >> 8
    line = np.where(abs(v) >> bits > 254, 0x7FFF << 10, line)
    return np.where(v >= 0, line + 2**9, 2**25 + 2**9 - 1 - line) >> 10


def quantize(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    d, real, source = x.codes - z_x, float(s_x) / float(s_y), r.value(x)
    if r.way(op) == "float32" and x.type == y.type and _in_eighth_bits(s_x / s_y):
        return r.table(op, source, _saturated(y, z_y + eighth_bits(d, s_x / s_y)))
    away, up = (_saturated(y, z_y + rescaled(d, real, way)) for way in ("double", "double_up"))
    if r.way(op) == "double" or np.array_equal(away, up):
        return r.table(op, source, away)
    choices = {False: (r.function(up, x, y), source), True: (r.function(away, x, y), source)}
    r.select(y, _behind(y, 16), choices)


# --- movement ---------------------------------------------------------------------------------


def _moved(r: Reader, source: str, y: Tensor, movement: Movement, fill: int = 0) -> None:
    """A tensor whose entries are those of a value, or `fill` where the movement says -1."""
    node = r.move(source, movement, fill)
    if node is None:
        r.values[y.index] = source
    else:
        r.add(node, [source], y)


def _movement(r: Reader, op: Operator, movement: Movement, fill: int = 0) -> None:
    _moved(r, r.value(_operand(op, 0)), op.outputs[0], movement, fill)


def _same_scales(op: Operator) -> None:
    """Raises: NotCovered where codes would have to be rescaled on their way."""
    tensors = [t for t in (*op.inputs, *op.outputs) if t is not None and t.scale.size]
    if len({t.quantizer for t in tensors}) > 1:
        raise NotCovered("its operands and its output have different scales or zero points")


def reshape(r: Reader, op: Operator) -> None:
    _movement(r, op, lambda v: v.reshape(1, *op.outputs[0].shape[1:]))


def transpose(r: Reader, op: Operator) -> None:
    axes = _operand(op, 1).constant.tolist()
    if axes[:1] != [0]:
        raise NotCovered(f"it moves the batch: axes {axes}")
    _movement(r, op, lambda v: v.transpose(axes))


def pad(r: Reader, op: Operator) -> None:
    pairs = _operand(op, 1).constant.tolist()
    _same_scales(op)
    zero = _operand(op, 0).quantizer[1]
    fill = int(_operand(op, 2).constant.reshape(-1)[0]) if op.kind == "PADV2" else zero
    if pairs[0] != [0, 0] or min(map(min, pairs)) < 0:
        raise NotCovered(f"padding {pairs}")
    x, (y,) = _operand(op, 0), op.outputs
    if [n + sum(pair) for n, pair in zip(x.shape, pairs)] != list(y.shape):
        raise FileFormatError(f"padding {pairs} does not take {x.shape} to {y.shape}")
    _movement(r, op, lambda v: np.pad(v, pairs, constant_values=-1), fill)


def strided_slice(r: Reader, op: Operator) -> None:
    begin, end, strides = (_operand(op, i).constant.tolist() for i in (1, 2, 3))
    o = op.options
    masks = (o.BeginMask(), o.EndMask(), o.EllipsisMask(), o.NewAxisMask(), o.ShrinkAxisMask())
    if masks[2] or masks[3] or masks[4] & 1:
        raise NotCovered("an ellipsis, a new axis, or the batch is taken")
    index: list[slice | int] = []
    for i, (first, last, step) in enumerate(zip(begin, end, strides)):
        if masks[4] >> i & 1:
            index.append(first)
            continue
        ends = [None if mask >> i & 1 else e for mask, e in zip(masks, (first, last))]
        index.append(slice(ends[0], ends[1], step))
    index[0] = slice(None)
    _movement(r, op, lambda v: v[tuple(index)])


def resize_nearest(r: Reader, op: Operator) -> None:
    o, x, (y,) = op.options, _operand(op, 0), op.outputs
    index = []
    for old, new in zip(x.shape[1:3], y.shape[1:3]):
        span = o.AlignCorners() and new > 1
        ratio = np.float32(old - span) / np.float32(new - span)
        at = (np.arange(new, dtype=np.float32) + np.float32(o.HalfPixelCenters() / 2)) * ratio
        nearest = round_float(at, "half_away") if o.AlignCorners() else np.floor(at)
        index.append(np.clip(nearest.astype(np.int64), 0, old - 1))
    _movement(r, op, lambda v: v[:, index[0]][:, :, index[1]])


def split(r: Reader, op: Operator) -> None:
    axis, x = int(_operand(op, 0).constant.reshape(-1)[0]), _operand(op, 1)
    axis += len(x.shape) * (axis < 0)
    if axis == 0:
        raise NotCovered("it splits the batch")
    source, count = r.value(x), len(op.outputs)
    for i, y in enumerate(op.outputs):
        part = functools.partial(_part, i, count, axis)
        _moved(r, source, y, part)


def _part(i: int, count: int, axis: int, v: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.split(v, count, axis)[i]


def concatenation(r: Reader, op: Operator) -> None:
    (y,) = op.outputs
    _same_scales(op)
    if op.options.FusedActivationFunction():
        raise NotCovered("an activation is fused to it, which the kernels refuse")
    axis = op.options.Axis() + len(y.shape) * (op.options.Axis() < 0)
    if axis == 0:
        raise NotCovered("it joins batches")
    if sum(prod(_operand(op, i).shape) for i in range(len(op.inputs))) != prod(y.shape):
        raise FileFormatError(f"its operands do not fill its output of shape {y.shape}")
    sources = []
    for i in range(len(op.inputs)):
        source = r.value(_operand(op, i))
        first = r.move(source, lambda v: v.swapaxes(axis, -1))
        sources.append(r.step(first, [source], y, f"part {i}") if first else source)
    if axis + 1 == len(y.shape):
        return r.add(Concat(), sources, y)
    joined = r.step(Concat(), sources, y, "joined")
    back = r.move(joined, lambda v: v.swapaxes(axis, -1)) or Reshape(r.ranges[joined].shape)
    r.add(back, [joined], y)


# --- others -----------------------------------------------------------------------------------


def softmax(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    scale, _ = x.quantizer
    bits, lowest = (15, 0) if x.type == "INT16" else (y.format.bits, y.format.q_min)
    if y.quantizer != (np.float32(2.0**-bits), lowest):
        raise NotCovered(f"its output has scale {y.quantizer[0]}, zero point {y.quantizer[1]}")
    beta = np.float32(op.options.Beta())
    if x.type == "INT16":
        if x.quantizer[1] or y.type != "INT16":
            raise NotCovered("in 16 bits its zero points are 0, and its output has 16 bits")
        return r.add(Softmax(_line_exponentials(r, x, beta), IntFormat(15, False)), [r.value(x)], y)
    if r.profile.optimized:
        powers = -scale * beta * np.arange(x.format.levels, dtype=np.float32)
        exponentials = np.exp(powers.astype(np.float64)).astype(np.float32)
        return r.add(Softmax(exponentials, y.format), [r.value(x)], y)
    real = float(beta) * float(scale) * 2**26
    if not real > 1:
        raise NotCovered(
            mismatch("beta times its input scale", f"{real / 2**26:g}", "above 2**-26")
        )
    m, e = multiplier(min(real, 2.0**31 - 1))
    d = np.arange(min((31 << 26) >> e, x.format.levels - 1) + 1)
    table = exp_of_negative(round_ratio((-d << e) * m, 2**31, "half_up"), 5)
    r.add(Softmax(table, y.format), [r.value(x)], y)


def _line_exponentials(r: Reader, x: Tensor, beta: np.float32) -> NDArray[np.int64]:
    """exp(-d * beta * s) in units of 2**-15, on lines between exponentials 10 / 512 apart."""
    scale, _ = x.quantizer
    product = float(scale) * float(beta) if r.profile.wide_product else float(scale * beta)
    at = 2**16 - 1 + rescaled(-np.arange(2**16), product / (10 / 65_535))
    return along_lines(curve(lambda v: np.exp(10 * (v - 1))), np.maximum(at, 0))


def mean(r: Reader, op: Operator) -> None:
    x, (y,) = _operand(op, 0), op.outputs
    axes = sorted(int(a) % len(x.shape) for a in _operand(op, 1).constant.reshape(-1))
    if axes != list(range(1, len(x.shape) - 1)):
        raise NotCovered(f"it averages axes {axes}; expected all between batch and channels")
    (s_x, z_x), (s_y, z_y) = x.quantizer, y.quantizer
    n, way, target = prod(x.shape[1:-1]), r.way(op), r.target(op)
    acc = r.step(GlobalSumPool(), [r.value(x)], y, "sum")
    if way == "float32":
        scale = s_x / s_y / np.float32(n)
        bias = np.float32(z_y) - np.float32(n * z_x) * scale

        def code(a: NDArray[np.int64]) -> NDArray[np.int64]:
            value = a.astype(np.float32) * scale + bias
            return np.asarray(np.clip(np.rint(value), *target.clip), dtype=np.int64)

        lo, hi = (np.array([end]) for end in r.ranges[acc].ends)
        node: Requantize | Rescale = Requantize.from_function(code, lo, hi, y.format)
    elif way == "mixed" and len(axes) == 2 and op.options.KeepDims():
        shift = int(round_float(np.asarray(np.float32(z_x) * s_x / s_y), "half_away"))
        real = np.array([float(s_x / (np.float32(n) * s_y))])
        shifted = replace(target, zero_point=z_y - shift)
        gains = np.broadcast_to(real, x.shape[-1:])
        node = requantize(gains, shifted, way, r.ends(acc), vector=16)
    else:
        real = np.array([float(s_x) / float(s_y)])
        check_32(
            max(map(abs, r.ranges[acc].ends)), float(real[0]) / 2 ** min(n.bit_length() - 1, 32)
        )
        node = Requantize.from_rescale(fixed_point(real, target, terms=n, zero=n * z_x))
    if len(y.shape) == 2:
        return r.add(node, [acc], y)
    r.add(Reshape((y.shape[-1], *y.shape[1:-1])), [r.step(node, [acc], y, "flat")], y)


Handler = Callable[[Reader, Operator], None]

TABLE: dict[str, Handler] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), convolution),
    "FULLY_CONNECTED": fully_connected,
    "TRANSPOSE_CONV": transpose_conv,
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), pool),
    **dict.fromkeys(("ADD", "SUB"), add),
    "MUL": multiply,
    **dict.fromkeys(("RELU", "RELU_N1_TO_1", "RELU6"), relu),
    "LEAKY_RELU": leaky_relu,
    "HARD_SWISH": hard_swish,
    **dict.fromkeys(("LOGISTIC", "TANH"), transcendental),
    "QUANTIZE": quantize,
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), reshape),
    "TRANSPOSE": transpose,
    **dict.fromkeys(("PAD", "PADV2"), pad),
    "STRIDED_SLICE": strided_slice,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
    "SPLIT": split,
    "CONCATENATION": concatenation,
    "SOFTMAX": softmax,
    "MEAN": mean,
}


def read_model(model: Model, runtime: Runtime) -> Imported:
    """The network of an opened model.  Raises: NotCovered, FileFormatError."""
    return Reader(model, RUNTIMES[runtime]).read(TABLE)
