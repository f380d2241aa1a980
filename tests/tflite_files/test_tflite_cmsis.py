"""CMSIS-NN's published loops told a second time, in Python integers, against the profile cmsis_nn.

Requantization, ADD, MUL and the pools are told as ARM-software/CMSIS-NN has them, multipliers and
the ends of activations as TFLite Micro prepares them.  No processor runs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tflite")

from tflite_build import O, T
from tflite_build import model as written
from tflite_cases import typed

from refqnn import IntFormat
from refqnn.tflite import file_order, from_tflite, read_tflite
from refqnn.tflite.files import Operator, Tensor, open_model
from refqnn.tflite.rescaling import Target, fixed_point

Ints = np.ndarray[Any, np.dtype[np.int64]]
Rescaled = tuple[int, int]  # multiplier of 31 bits, shift to the left


# --- what all kernels share ---------------------------------------------------------------------


def multiplier(real: float) -> Rescaled:
    fraction, shift = math.frexp(real)
    m = math.floor(Fraction(fraction) * 2**31 + Fraction(1, 2))
    if m == 2**31:
        m, shift = 2**30, shift + 1
    return (m, shift) if shift >= -31 else (0, 0)


def requantized(value: int, by: Rescaled) -> int:
    """The product of doubled high halves, rounded, then the division, rounded away from zero."""
    m, shift = by
    high = (value * 2 ** max(shift, 0) * m + 2**30) >> 31
    mask = 2 ** max(-shift, 0) - 1
    quotient = high >> max(-shift, 0)
    return quotient + ((high & mask) > (mask >> 1) + (quotient < 0))


def requantized_once(value: int, by: Rescaled) -> int:
    """Where the library is compiled for a single rounding."""
    m, shift = by
    return ((value * m >> (30 - shift)) + 1) >> 1


def requantized_wide(value: int, by: Rescaled) -> int:
    """A sum of 64 bits, by a multiplier of 15."""
    m, shift = by
    reduced = (m + 2**15) >> 16 if m < 0x7FFF0000 else 0x7FFF
    return ((value * reduced >> (14 - shift)) + 1) >> 1


def away(x: np.float32) -> int:
    return math.floor(abs(Fraction(float(x))) + Fraction(1, 2)) * (1 if x >= 0 else -1)


def clamped(op: Operator, value: int) -> int:
    """Behind the zero point: into the type, and between the ends of the fused activation."""
    (y,) = op.outputs
    bits = 16 if y.type == "INT16" else 8
    lo, hi = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    activation = getattr(op.options, "FusedActivationFunction", lambda: 0)()
    low, high = {0: (None, None), 1: (0, None), 2: (-1, 1), 3: (0, 6)}[activation]
    scale, zero = np.float32(y.scale[0]), int(y.zero_point[0])
    if low is not None:
        lo = max(lo, zero + away(np.float32(low) / scale))
    if high is not None:
        hi = min(hi, zero + away(np.float32(high) / scale))
    return min(max(value, lo), hi)


def scale_of(t: Tensor) -> float:
    return float(t.scale[0])


def zero_of(t: Tensor) -> int:
    return int(t.zero_point[0])


def windows(
    op: Operator, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> Iterator[tuple[int, int, list[tuple[int, int, int, int]]]]:
    """Of each output position the (y, x) that lie inside, and the (ky, kx) that meet them."""
    o, (_, height, width, _) = op.options, op.outputs[0].shape
    stride = (o.StrideH(), o.StrideW())
    before = [0, 0]
    if o.Padding() == 0:
        for axis, out in enumerate((height, width)):
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            before[axis] = max((out - 1) * stride[axis] + reach - size[axis], 0) // 2
    for oy in range(height):
        for ox in range(width):
            found = []
            for ky in range(kernel[0]):
                for kx in range(kernel[1]):
                    y = oy * stride[0] - before[0] + ky * dilation[0]
                    x = ox * stride[1] - before[1] + kx * dilation[1]
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        found.append((y, x, ky, kx))
            yield oy, ox, found


# --- operators: of one sample's operands, the output --------------------------------------------


def of_sum(op: Operator, acc: Ints, gains: list[Rescaled], wide: bool) -> Ints:
    z = zero_of(op.outputs[0])
    rescale = requantized_wide if wide else requantized
    rows = acc.reshape(-1, acc.shape[-1]).tolist()
    out = [[clamped(op, rescale(v, g) + z) for v, g in zip(row, gains)] for row in rows]
    return np.array(out).reshape(acc.shape)


def gains_of(op: Operator, channels: int) -> list[Rescaled]:
    x, w, (y,) = op.inputs[0], op.inputs[1], op.outputs
    assert x is not None
    assert w is not None
    if op.kind == "FULLY_CONNECTED" and w.scale.size == 1:
        product = float(np.float32(x.scale[0]) * np.float32(w.scale[0]))
        return [multiplier(product / scale_of(y))] * channels
    scales = [scale_of(x) * float(s) / scale_of(y) for s in w.scale]
    return [multiplier(s) for s in scales] * (channels if len(scales) == 1 else 1)


def convolution(op: Operator, x: Ints) -> Ints:
    t, w, b = op.inputs
    assert t is not None
    assert w is not None
    assert w.data is not None
    weight, d = w.data.astype(np.int64), x - zero_of(t)
    if op.kind == "FULLY_CONNECTED":
        acc = np.array([int((row * d.ravel()).sum()) for row in weight])[None]
    else:
        o = op.options
        dilation = (o.DilationHFactor(), o.DilationWFactor())
        acc = np.zeros(op.outputs[0].shape[1:], np.int64)
        multiple = acc.shape[-1] // x.shape[-1]
        for oy, ox, found in windows(op, x.shape[:2], weight.shape[1:3], dilation):
            for y, column, ky, kx in found:
                if op.kind == "DEPTHWISE_CONV_2D":
                    acc[oy, ox] += np.repeat(d[y, column], multiple) * weight[0, ky, kx]
                else:
                    acc[oy, ox] += weight[:, ky, kx] @ d[y, column]
    if b is not None:
        assert b.data is not None
        acc = acc + b.data.astype(np.int64)
    wide = b is not None and b.type == "INT64"
    return of_sum(op, acc, gains_of(op, acc.shape[-1]), wide).reshape(op.outputs[0].shape[1:])


def elementwise(op: Operator, a: Ints, b: Ints) -> Ints:
    s, t = op.inputs
    (y,) = op.outputs
    assert s is not None
    assert t is not None
    pairs = zip((a - zero_of(s)).ravel().tolist(), (b - zero_of(t)).ravel().tolist())
    s_a, s_b, s_y, z = scale_of(s), scale_of(t), scale_of(y), zero_of(y)
    if op.kind == "MUL":
        product = multiplier(s_a * s_b / s_y)
        out = [clamped(op, requantized(p * q, product) + z) for p, q in pairs]
        return np.array(out).reshape(a.shape)
    left, sign = (15 if y.type == "INT16" else 20), (-1 if op.kind == "SUB" else 1)
    twice = 2 * max(s_a, s_b)
    first, second, last = (
        multiplier(v) for v in (s_a / twice, s_b / twice, twice / (2**left * s_y))
    )
    out = []
    for p, q in pairs:
        terms = requantized(p << left, first), requantized(q << left, second)
        out.append(clamped(op, requantized(terms[0] + sign * terms[1], last) + z))
    return np.array(out).reshape(a.shape)


def pool(op: Operator, x: Ints) -> Ints:
    kernel = (op.options.FilterHeight(), op.options.FilterWidth())
    out = np.zeros(op.outputs[0].shape[1:], np.int64)
    for oy, ox, found in windows(op, x.shape[:2], kernel):
        for c in range(x.shape[-1]):
            values = [int(x[y, column, c]) for y, column, _, _ in found]
            best = max(values)
            if op.kind == "AVERAGE_POOL_2D":
                total, count = sum(values), len(values)
                size = (abs(total) + count // 2) // count
                best = size if total > 0 else -size
            out[oy, ox, c] = clamped(op, best)
    return out


def quantize(op: Operator, x: Ints) -> Ints:
    (s,), (y,) = op.inputs, op.outputs
    assert s is not None
    by = multiplier(scale_of(s) / scale_of(y))
    values = (x - zero_of(s)).ravel().tolist()
    return np.array([clamped(op, requantized(v, by) + zero_of(y)) for v in values]).reshape(x.shape)


TOLD: dict[str, Callable[..., Ints]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), convolution),
    **dict.fromkeys(("ADD", "SUB", "MUL"), elementwise),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), pool),
}


def compared(model: bytes, seed: int, n: int) -> int:
    """How many values equal the telling, of every operator; all of them, or it fails."""
    imported, count = read_tflite(model, "cmsis_nn"), 0
    fmt, shape = imported.network.input_format, imported.network.input_shape
    codes = np.random.default_rng(seed).integers(fmt.q_min, fmt.q_max + 1, (n, *shape))
    trace = imported.network.trace(codes)
    for op in open_model(model).operators:
        told = TOLD.get(op.kind, quantize)
        read = [t for t in op.inputs if t is not None and t.data is None]
        for sample in range(n):
            operands = [file_order(trace[imported.nodes[t.index]])[sample] for t in read]
            ours = file_order(trace[imported.nodes[op.outputs[0].index]])[sample]
            assert np.array_equal(ours, told(op, *operands)), op
            count += ours.size
    return count


KINDS = [(kind, type) for type in ("int8", "int16") for kind in TOLD]


@pytest.mark.parametrize(("kind", "type"), KINDS)
def test_the_profile_gives_what_the_published_loops_give(kind: str, type: str) -> None:
    rng = np.random.default_rng(5)
    assert sum(compared(typed(kind, type, rng), i, n=2) for i in range(5)) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "type"), KINDS)
def test_many_models_give_what_the_published_loops_give(kind: str, type: str) -> None:
    rng = np.random.default_rng(6)
    assert sum(compared(typed(kind, type, rng), i, n=3) for i in range(400)) > 10_000


# --- requantization alone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "told"),
    [("double", requantized), ("single", requantized_once), ("reduced", requantized_wide)],
)
def test_requantization_with_shifts_to_both_sides(
    way: Any, told: Callable[[int, Rescaled], int]
) -> None:
    """Channels beside one another whose multipliers are shifted to the left and to the right."""
    rng = np.random.default_rng(7)
    reals = [*(2.0 ** rng.uniform(-20, 6, 40)), 0.5, 1.0, 2.0, 0.75, 2.0**-7, 3.0]
    wide = Target(IntFormat(32, signed=True), 0, (-(2**31), 2**31 - 1))
    op = fixed_point(np.array(reals), wide, way)
    values = rng.integers(-(2**20), 2**20, (200, len(reals)))
    values[::2] >>= rng.integers(0, 20, values[::2].shape)
    expected = [[told(v, multiplier(r)) for v, r in zip(row, reals)] for row in values.tolist()]
    assert op.forward(values).tolist() == expected


def test_the_multiplier_of_a_product_is_made_in_float64() -> None:
    """TFLite makes it in float32, TFLite Micro does not: here the two give other codes."""
    found = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        s_a, s_y = (float(np.float32(2.0 ** rng.uniform(-6, -1))) for _ in range(2))
        tensors = [T((1, 64), s_a, -128), T((1, 64), s_a * s_a * 300 * s_y, -128)]
        made = written(tensors, [O("MUL", [0, 0], [1], "MulOptions")], [0], [1])
        compared(made, seed, n=2)
        ours, theirs = (from_tflite(made, r) for r in ("cmsis_nn", "tflite_ref"))  # type: ignore[arg-type]
        found += ours.digest != theirs.digest
        if found:
            break
    assert found
