"""Random questions, one sampler per operation, that aim at the places where implementations part.

A question is named by its operation and a seed.  The stream of random integers is defined here, to
the bit, so that a seed means the same question in every version of Python and numpy.  Samplers are
frozen once vectors are published: a change would alter the questions of existing ids.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from refqnn.conformance.operations import MODES, Array, Values, functions_in

__all__ = ["SAMPLERS", "Stream", "sample"]

T = TypeVar("T")


class Stream:
    """splitmix64, seeded by a number and a name."""

    def __init__(self, seed: int, name: str) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % 2**64

    def integer(self, lo: int, hi: int) -> int:
        """An integer in [lo, hi]."""
        bits = 0
        for _ in range(2):
            self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
            z = self._state
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            bits = bits << 64 | (z ^ (z >> 31))
        return lo + bits % (hi - lo + 1)

    def choice(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.integer(0, len(values) - 1)]

    def chance(self, percent: int) -> bool:
        """True in so many cases of a hundred."""
        return self.integer(1, 100) <= percent

    def edge(self, bits: int) -> int:
        """An integer near plus or minus a power of two up to 2**bits, or a small one."""
        if self.chance(30):
            return self.integer(-9, 9)
        magnitude = (1 << self.integer(1, bits)) + self.integer(-2, 2)
        return magnitude if self.chance(50) else -magnitude

    def tensor(self, shape: Sequence[int], lo: int, hi: int) -> Array:
        """Integers in [lo, hi]."""
        values = [self.integer(lo, hi) for _ in range(int(np.prod(shape)))]
        dtype = np.int64 if lo >= -(2**63) and hi < 2**63 else object
        return np.array(values, dtype=dtype).reshape(shape)


def sample(operation: str, seed: int) -> Values:
    """The question of this operation and seed."""
    return SAMPLERS[operation](Stream(seed, operation))


_MODES = MODES[:8]  # frozen: a seed draws from these, whatever modes the suite has later


def _format(s: Stream, widest: int = 8) -> Values:
    bits = s.integer(2, widest)
    return {"bits": bits, "signed": s.chance(60), "narrow": s.chance(30)}


def _ends(fmt: Values) -> tuple[int, int]:
    bits, signed, narrow = fmt["bits"], fmt["signed"], fmt["narrow"]
    return (
        (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    )


def round_ratio(s: Stream) -> Values:
    d = s.choice((1, 2, 3, 4, 5, 8, 16, 2**20, 3 * 2**40, 2**61))
    ties = [d * s.integer(-6, 6) + d // 2 + s.integer(-1, 1) for _ in range(4)]
    wide = [s.edge(62), s.edge(30)]
    return {"numerator": np.array(ties + wide), "denominator": d, "rounding": s.choice(_MODES)}


def integer_format(s: Stream) -> Values:
    return _format(s, 32)


def check_codes(s: Stream) -> Values:
    fmt = _format(s)
    lo, hi = _ends(fmt)
    codes = [lo, hi, s.integer(lo, hi)] + ([s.choice((lo - 1, hi + 1))] if s.chance(50) else [])
    return {**fmt, "codes": np.array(codes)}


def _scales(s: Stream, shape: Sequence[int], dtype: DTypeLike) -> Array:
    dyadic = s.chance(50)
    count = int(np.prod(shape))
    mantissas = [1 if dyadic else s.integer(2**22, 2**24 - 1) for _ in range(count)]
    powers = [s.integer(-6, 3) - (0 if dyadic else 23) for _ in range(count)]
    if s.chance(6) and dyadic:
        powers = [-140 + s.integer(0, 4) for _ in range(count)]
    return np.ldexp(np.array(mantissas, dtype=np.float64), powers).reshape(shape).astype(dtype)


def quantize(s: Stream) -> Values:
    fmt = _format(s) if s.chance(85) else {"bits": 32, "signed": True, "narrow": False}
    lo, hi = _ends(fmt)
    precision = s.choice(("float32", "float32", "float64"))
    dtype = np.dtype(precision).type
    per_channel = s.chance(40)
    shape = (2, 2) if per_channel else (s.integer(4, 6),)
    axis = s.choice((0, 1, -1, -2)) if per_channel else None
    scale = _scales(s, (2,) if per_channel else (), dtype)
    zeros = s.tensor(scale.shape, max(lo, -20), min(hi, 20)) if s.chance(70) else None
    zero_point = np.zeros(scale.shape, dtype=np.int64) + max(lo, 0) if zeros is None else zeros
    x = np.empty(shape, dtype=np.float64)
    for index in np.ndindex(*shape):
        unit = scale.reshape(-1)[index[axis] if axis is not None else 0]
        halves = s.integer(2 * lo - 9, 2 * hi + 9) if s.chance(60) else s.integer(-9, 9)
        kind = s.integer(0, 9)
        value = np.float64(halves) / 2 * np.float64(unit)
        if kind == 0:
            value = np.float64(s.edge(40)) * np.float64(unit)
        elif kind == 1:
            value = np.float64(s.choice((np.inf, -np.inf, 3e9, -3e9)))
        elif kind in (2, 3, 4):
            value = np.float64(np.nextafter(dtype(value), dtype(s.choice((-1, 1)) * np.inf)))
        elif kind == 5:
            value = np.float64(np.nextafter(value, s.choice((-1, 1)) * np.inf))
        x[index] = value
    wide = precision == "float64" or s.chance(25)
    with np.errstate(over="ignore"):
        x = x if wide else x.astype(np.float32)
    return {
        **fmt,
        "x": x,
        "scale": scale,
        "zero_point": zero_point,
        "rounding": s.choice(_MODES),
        "axis": axis,
        "precision": precision,
        "zero_point_first": s.chance(25),
    }


def binarize(s: Stream) -> Values:
    values = [s.choice((0.0, -0.0, 0.25, -0.25, 1.5, -1.5, np.inf, -np.inf)) for _ in range(4)]
    return {"x": np.array(values, dtype=np.float32)}


def dequantize(s: Stream) -> Values:
    fmt = _format(s) if s.chance(40) else {"bits": 32, "signed": s.chance(70), "narrow": False}
    lo, hi = _ends(fmt)
    precision = s.choice(("float32", "float64"))
    per_channel = s.chance(40)
    shape = (2, 2) if per_channel else (3,)
    scale = _scales(s, (2,) if per_channel else (), np.dtype(precision).type)
    ends = [lo, hi, s.integer(lo, hi), s.integer(max(lo, -99), min(hi, 99))]
    codes = np.array([s.choice(ends) for _ in range(int(np.prod(shape)))]).reshape(shape)
    zero_point = np.array([s.choice(ends) for _ in range(scale.size)]).reshape(scale.shape)
    axis = s.choice((0, 1, -1, -2)) if per_channel else None
    return {
        **fmt,
        "codes": codes,
        "scale": scale,
        "zero_point": zero_point,
        "axis": axis,
        "precision": precision,
    }


def requantize_thresholds(s: Stream) -> Values:
    fmt = _format(s, 3)
    lo, hi = _ends(fmt)
    channels = s.choice((1, 2))
    bits = s.choice((4, 9, 17, 26, 33, 55, 62))
    rows = [sorted(s.edge(bits) for _ in range(hi - lo)) for _ in range(channels)]
    if s.chance(30):
        rows[0][-1] = 2**63 - 1
    if s.chance(30):
        rows[-1][0] = -(2**63)
    inner = [t for row in rows for t in row if abs(t) < 2**63 - 1] or [0]
    shape = (2, channels, 2) if s.chance(60) else (2, channels)
    acc = [s.choice(inner) + s.integer(-1, 1) for _ in range(int(np.prod(shape)))]
    return {**fmt, "thresholds": np.array(rows), "acc": np.array(acc).reshape(shape)}


def _acc_shape(s: Stream, channels: int) -> tuple[int, ...]:
    return (2, channels, 2) if s.chance(40) else (3, channels)


def requantize_scale(s: Stream) -> Values:
    fmt = _format(s)
    lo, hi = _ends(fmt)
    channels = s.choice((1, 2))
    shape = (channels,) if channels > 1 else ()
    dtype = s.choice((np.float32, np.float64))
    scale_in, scale_out = _scales(s, shape, dtype), _scales(s, (), dtype)
    bias = np.zeros(shape) if s.chance(30) else np.ldexp(s.tensor(shape, -99, 99).astype(float), -4)
    zero_point = s.integer(lo, hi) if s.chance(70) else 0
    clip = (zero_point, hi) if s.chance(30) and lo <= zero_point else None
    accs = []
    for _ in range(int(np.prod(_shape := _acc_shape(s, channels)))):
        halves = s.integer(2 * lo - 20, 2 * hi + 20)
        unit = float(np.ravel(scale_in)[0]) / float(scale_out)
        near = round((halves / 2 - zero_point) / unit) if unit < 2**20 else halves
        accs.append(near + s.integer(-1, 1) if s.chance(80) else s.edge(45))
    return {
        **fmt,
        "acc": np.array(accs).reshape(_shape),
        "scale_in": scale_in,
        "scale_out": scale_out,
        "bias": bias.astype(dtype),
        "zero_point": zero_point,
        "clip": clip,
        "rounding": s.choice(_MODES),
    }


def requantize_shift(s: Stream) -> Values:
    fmt = _format(s, 6)
    lo, hi = _ends(fmt)
    channels = s.choice((1, 2))
    shift = s.choice((0, 1, 2, 3, 8, 12, 24, 33, 40))
    offset = s.tensor((channels,) if channels > 1 else (), -40, 40)
    if s.chance(30):
        offset = offset * 1000
    zero_point = s.integer(lo, hi) if s.chance(60) else 0
    shape = _acc_shape(s, channels)
    accs = []
    for _ in range(int(np.prod(shape))):
        halves = s.integer(2 * (lo - zero_point) - 6, 2 * (hi - zero_point) + 6)
        tie = halves * 2**shift // 2 - int(offset.reshape(-1)[0])
        accs.append(tie + s.integer(-1, 1) if s.chance(80) else s.edge(34))
    return {
        **fmt,
        "acc": np.array(accs).reshape(shape),
        "shift": shift,
        "offset": offset,
        "zero_point": zero_point,
        "rounding": s.choice(_MODES),
    }


def requantize_multiplier(s: Stream) -> Values:
    fmt = _format(s, 8)
    lo, hi = _ends(fmt)
    channels = s.choice((1, 2))
    shape = (channels,) if channels > 1 else ()
    double = s.chance(50)
    first_shift = s.choice((31, 31, 2, 8))
    small = first_shift != 31 or s.chance(40)
    mantissa = s.tensor(shape, 1, 40) if small else s.tensor(shape, 2**30, 2**32 - 1)
    least = first_shift if double else 0
    shift = s.tensor(shape, least, least + 6) if small else s.tensor(shape, 32, 50)
    zero_point = s.integer(lo, hi) if s.chance(60) else 0
    m, r = int(mantissa.reshape(-1)[0]), int(shift.reshape(-1)[0])
    accs = []
    for _ in range(int(np.prod(_shape := _acc_shape(s, channels)))):
        halves = s.integer(2 * (lo - zero_point) - 6, 2 * (hi - zero_point) + 6)
        accs.append(halves * 2**r // (2 * m) + s.integer(-1, 1) if s.chance(80) else s.edge(40))
    return {
        **fmt,
        "acc": np.array(accs).reshape(_shape),
        "mantissa": mantissa,
        "shift": shift,
        "zero_point": zero_point,
        "rounding": s.choice(_MODES),
        "first_rounding": s.choice(_MODES) if double else None,
        "first_shift": first_shift,
    }


def rescale(s: Stream) -> Values:
    """Accumulators near ties and near the ends of wide formats; shifts both ways side by side."""
    bits = s.choice((4, 8, 13, 16, 24, 32))
    fmt = {"bits": bits, "signed": s.chance(60), "narrow": s.chance(30)}
    lo, hi = _ends(fmt)
    channels = s.choice((1, 2, 3))

    def each(lo: int, hi: int) -> Array:
        return s.tensor((channels,) if channels > 1 and s.chance(70) else (), lo, hi)

    kind = s.integer(0, 3)
    multiplier = each(*((0, 9), (1, 300), (2**30, 2**31 - 1), (2**33, 2**46))[kind])
    shift = each(*((0, 4), (2, 12), (31, 40), (31, 62))[kind])
    double = s.chance(50)
    first_shift = (
        each(0, int(shift.min())) if s.chance(60) else shift - s.integer(0, 2) * (kind > 0)
    )
    zero_point = each(-9, 9) if s.chance(60) else each(-(2**bits), 2**bits)
    offset = each(-200, 200) if s.chance(60) else np.array(0)
    ends = [sorted((s.integer(lo, hi), s.integer(lo, hi))) for _ in range(channels)]
    m = max(int(multiplier.reshape(-1)[0]), 1)
    unit, accs = int(shift.reshape(-1)[0]), []
    for _ in range(int(np.prod(shape := _acc_shape(s, channels)))):
        near = s.choice((lo, hi, 0)) - int(zero_point.reshape(-1)[0])
        halves = 2 * near + s.integer(-7, 7)
        tie = halves * 2**unit // (2 * m) - int(offset.reshape(-1)[0])
        accs.append(tie + s.integer(-1, 1) if s.chance(75) else s.edge(s.choice((8, 20, 34))))
    return {
        **fmt,
        "acc": np.array(accs).reshape(shape),
        "multiplier": multiplier,
        "shift": shift,
        "zero_point": zero_point,
        "offset": offset,
        "clip": np.array(ends) if s.chance(30) else None,
        "rounding": s.choice(MODES),
        "first_rounding": s.choice(MODES) if double else None,
        "first_shift": first_shift,
    }


_WIDTHS = ((2, 3), (4, 4), (8, 8), (9, 9), (12, 14), (16, 17), (28, 30))


def _bias(s: Stream, out: int, bits: int) -> Array | None:
    return None if s.chance(20) else np.array([s.edge(bits) for _ in range(out)])


def linear(s: Stream) -> Values:
    w_bits, x_bits = s.choice(_WIDTHS)
    out, width = s.integer(1, 3), s.integer(1, 6)
    weight = s.tensor((out, width), -(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1)
    x_lo = s.choice((0, -(2 ** (x_bits - 1))))
    per_channel = s.chance(50)
    zero = s.tensor((out,) if per_channel else (), -5, 5) if s.chance(50) else np.array(0)
    return {
        "weight": weight,
        "bias": _bias(s, out, w_bits + x_bits),
        "x": s.tensor((s.integer(1, 2), width), x_lo, x_lo + 2**x_bits - 1),
        "x_zero_point": s.integer(-5, 9) if s.chance(60) else 0,
        "weight_zero_point": zero,
    }


def accumulate(s: Stream) -> Values:
    width = s.integer(2, 5)
    bits = s.choice((3, 4, 5, 8))
    signed = s.chance(70)
    largest = 2 ** (bits - 1)
    weight = s.tensor((2, width), -1 if signed or s.chance(40) else 0, 2)
    return {
        "weight": weight,
        "bias": None if s.chance(25) else s.tensor((2,), -largest, largest),
        "x": s.tensor((2, width), 0, largest),
        "accumulator_bits": bits,
        "accumulator_signed": signed,
        "overflow": s.choice(("wrap", "saturate")),
        "when": s.choice(("step", "end")),
        "order": s.choice(("forward", "reverse", "bias_first")),
    }


def accumulate_stages(s: Stream) -> Values:
    """Registers narrow enough that a stage overflows now and then, the last ones wider."""
    channels, kernel, stages = s.integer(2, 3), s.integer(2, 4), s.integer(1, 3)
    bits = s.integer(3, 5)
    largest = 2 ** (bits - 1)

    def flags(percent: int) -> tuple[int, ...]:
        return tuple(int(s.chance(percent)) for _ in range(stages))

    return {
        "weight": s.tensor((2, channels, kernel), -2, 3),
        "bias": None if s.chance(20) else s.tensor((2,), -2 * largest, 2 * largest),
        "x": s.tensor((2, channels, kernel), 0, largest),
        "widths": tuple(bits + i + s.integer(0, 1) for i in range(stages)),
        "signed": flags(85),
        "groups": tuple(s.choice((2, 2, 3)) for _ in range(stages - 1)),
        "saturates": flags(60),
        "at_end": flags(40),
        "order": s.choice(("forward", "reverse", "channels_last")),
        "bias_at": s.choice(("first", "last", "outside")),
    }


def _conv(s: Stream, axes: int) -> Values:
    w_bits, x_bits = s.choice(_WIDTHS)
    groups = s.choice((1, 1, 2))
    per_group, outs = s.integer(1, 2), s.integer(1, 2)
    kernel = [s.integer(1, 3) for _ in range(axes)]
    dilation = tuple(s.choice((1, 1, 2)) for _ in range(axes))
    padding = tuple((s.integer(0, 2), s.integer(0, 2)) for _ in range(axes))
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    sizes = [max(e + s.integer(0, 2) - sum(p), 1) for e, p in zip(extents, padding)]
    sizes = [max(size, e - sum(p)) for size, e, p in zip(sizes, extents, padding)]
    x_lo = s.choice((0, -(2 ** (x_bits - 1))))
    shape = (groups * outs, per_group, *kernel)
    return {
        "weight": s.tensor(shape, -(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1),
        "bias": _bias(s, groups * outs, w_bits + x_bits),
        "x": s.tensor((s.integer(1, 2), groups * per_group, *sizes), x_lo, x_lo + 2**x_bits - 1),
        "stride": tuple(s.integer(1, 3) for _ in range(axes)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pad_code": s.choice((0, s.integer(1, 7))),
    }


def conv1d(s: Stream) -> Values:
    return _conv(s, 1)


def conv2d(s: Stream) -> Values:
    return _conv(s, 2)


def conv_transpose2d(s: Stream) -> Values:
    w_bits, x_bits = s.choice(_WIDTHS)
    groups = s.choice((1, 1, 2))
    of_group, outs = s.integer(1, 2), s.integer(1, 2)
    kernel = [s.integer(1, 3) for _ in range(2)]
    stride = tuple(s.integer(1, 3) for _ in range(2))
    dilation = tuple(s.choice((1, 1, 2)) for _ in range(2))
    sizes = [s.integer(1, 3) for _ in range(2)]
    x_lo = s.choice((0, -(2 ** (x_bits - 1))))
    extents = [
        t * (size - 1) + d * (k - 1) for t, size, d, k in zip(stride, sizes, dilation, kernel)
    ]
    padding = tuple((s.integer(0, min(1, e)), s.integer(0, min(1, e // 2))) for e in extents)
    shape = (groups * of_group, outs, *kernel)
    return {
        "weight": s.tensor(shape, -(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1),
        "bias": _bias(s, groups * outs, w_bits + x_bits),
        "x": s.tensor((s.integer(1, 2), groups * of_group, *sizes), x_lo, x_lo + 2**x_bits - 1),
        "stride": stride,
        "padding": padding,
        "output_padding": tuple(s.integer(0, max(t, d) - 1) for t, d in zip(stride, dilation)),
        "dilation": dilation,
        "groups": groups,
    }


def max_pool2d(s: Stream) -> Values:
    kernel = (s.integer(1, 3), s.integer(1, 3))
    padding = tuple((s.integer(0, k - 1), s.integer(0, k - 1)) for k in kernel)
    sizes = [max(k + s.integer(0, 3) - sum(p), 1) for k, p in zip(kernel, padding)]
    sizes = [max(size, k - sum(p)) for size, k, p in zip(sizes, kernel, padding)]
    bits = s.choice((3, 6, 9, 17, 25, 34, 55))
    lo = s.choice((0, -(2**bits), -(2 ** (bits + 1))))
    return {
        "x": s.tensor((s.integer(1, 2), s.integer(1, 2), *sizes), lo, lo + 2**bits),
        "kernel": kernel,
        "stride": (s.integer(1, 3), s.integer(1, 3)),
        "padding": padding,
    }


def sum_pool2d(s: Stream) -> Values:
    return {**max_pool2d(s), "pad_code": s.choice((0, s.integer(1, 5)))}


def global_sum_pool(s: Stream) -> Values:
    bits = s.choice((3, 6, 15, 23, 31, 53))
    lo = s.choice((0, -(2**bits), -(2 ** (bits - 1))))
    shape = (s.integer(1, 2), s.integer(1, 2), s.integer(1, 3), s.integer(1, 3))
    return {"x": s.tensor(shape, lo, lo + 2**bits)}


def add(s: Stream) -> Values:
    bits = s.choice((3, 6, 8, 15, 23, 24, 31, 53))
    count = s.integer(1, 3)
    shape = (s.integer(1, 2), s.integer(1, 3))
    multipliers = tuple(s.choice((-200, -3, -1, 1, 2, 5, 130)) for _ in range(count))
    return {
        "operands": [s.tensor(shape, -(2**bits), 2**bits) for _ in range(count)],
        "multipliers": None if s.chance(30) else multipliers,
    }


def concat(s: Stream) -> Values:
    rest = (2, 2) if s.chance(60) else (s.integer(1, 3),)
    n = s.integer(1, 2)
    channels = [s.integer(1, 3) for _ in range(s.integer(2, 3))]
    return {"operands": [s.tensor((n, c, *rest), -99, 99) for c in channels]}


def flatten(s: Stream) -> Values:
    shape = [s.integer(1, 3) for _ in range(s.integer(2, 4))]
    return {"x": s.tensor(shape, -99, 99)}


def reshape(s: Stream) -> Values:
    a, b, c = s.integer(1, 3), s.integer(1, 3), s.integer(1, 3)
    shape = s.choice(((a * b, c), (c, b, a), (a, b * c), (a * b * c,)))
    return {"x": s.tensor((2, a, b, c), -99, 99), "shape": shape}


def gather(s: Stream) -> Values:
    """Some values of some samples; a permutation at times, -1 at others, and once in a while
    positions outside, or another shape."""
    in_shape = tuple(s.integer(1, 4) for _ in range(s.integer(1, 3)))
    size = int(np.prod(in_shape))
    if s.chance(8):
        in_shape, size = (1, 16, 20), 320
    bits = s.choice((4, 7, 8, 15, 24, 33, 55))
    shape = tuple(s.integer(1, 3) for _ in range(s.integer(1, 3)))
    if s.chance(25):
        order = list(range(size))
        index = np.array([order.pop(s.integer(0, len(order) - 1)) for _ in range(size)])
        shape = in_shape[::-1]
    else:
        index = s.tensor((int(np.prod(shape)),), -1, size - 1)
        if s.chance(12):
            index[s.integer(0, len(index) - 1)] = s.choice((size, size + 3, -2, -size))
    turned = in_shape[::-1] if s.chance(8) else in_shape  # as many values
    return {
        "index": index.reshape(shape),
        "in_shape": in_shape,
        "fill": s.integer(-200, 200),
        "x": s.tensor((s.integer(1, 3), *turned), -(2**bits), 2**bits),
    }


def lookup(s: Stream) -> Values:
    channels, entries = s.choice((1, 2)), s.choice((3, 5, 8, 300))
    lo = s.integer(-6, 3)
    shape = (2, channels, 2) if s.chance(50) else (2, channels)
    hi = lo + entries - 1
    outside = s.chance(25)
    x = s.tensor(shape, lo - outside, hi + outside)
    return {"table": s.tensor((channels, entries), -9, 9), "lo": lo, "x": x}


def bit_widths(s: Stream) -> Values:
    a, b = s.edge(62), s.edge(62)
    a = s.choice((a, 0, abs(a)))
    b = s.choice((b, a, 0, abs(b)))
    return {"lo": min(a, b), "hi": max(a, b)}


def accumulator_range(s: Stream) -> Values:
    w_bits, x_bits = s.choice(_WIDTHS)
    out, width = s.integer(1, 2), s.integer(1, 4)
    x_lo = s.tensor((width,), -(2 ** (x_bits - 1)), 2 ** (x_bits - 1))
    return {
        "weight": s.tensor((out, width), -(2 ** (w_bits - 1)), 2 ** (w_bits - 1) - 1),
        "bias": _bias(s, out, w_bits + x_bits),
        "x_lo": x_lo,
        "x_hi": x_lo + s.tensor((width,), 0, 2**x_bits),
    }


def omega(s: Stream) -> Values:
    return {
        "n_max": s.choice((s.integer(1, 32), s.integer(33, 64))),
        "n_weights": s.integer(1, 6),
        "n_inputs": s.integer(1, 6),
    }


def _range(s: Stream, bits: int) -> tuple[int, int]:
    a, b = s.integer(-(2**bits), 2**bits), s.integer(-(2**bits), 2**bits)
    return (min(a, b), max(a, b)) if s.chance(80) else (0, abs(a))


def max_fan_in(s: Stream) -> Values:
    bits = s.choice((6, 8, 16, 32, 60))
    accumulator = s.choice(((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), (0, 2**bits - 1)))
    bias = s.choice(((0, 0), (0, 9), (-7, 12), (-20, 3)))
    unsigned = accumulator[0] == 0
    return {
        "weight_range": (0, s.integer(0, 7)) if unsigned else _range(s, 3),
        "input_range": (0, s.integer(0, 7)) if unsigned else _range(s, 3),
        "bias_range": (0, bias[1]) if unsigned else bias,
        "accumulator_range": accumulator,
    }


def fan_in_mask(s: Stream) -> Values:
    shape = s.choice(((2, 5), (3, 4), (2, 2, 3), (2, 2, 2, 2)))
    largest = s.choice((2, 3, 130, 2**17, 2**30))
    near = [0, 1, largest // 2, largest, largest - 1]
    flat = [s.choice(near) * s.choice((-1, 1)) for _ in range(int(np.prod(shape)))]
    return {"weight": np.array(flat).reshape(shape), "fan_in": s.integer(0, 6)}


def _budget(s: Stream, rows: int, widest: int) -> Values:
    bits = s.integer(2, widest)
    half = 2 ** (bits - 1)
    ranges = ((0, 1), (0, 7), (-4, 3), (-1, 1), (-3, 0), (2, 5), (-5, -2), (0, 255), (-128, 127))
    bias = s.tensor((rows,), -half, half - 1) if s.chance(50) else s.tensor((rows,), -1, 1)
    return {
        "input_range": s.choice(ranges),
        "bits": bits,
        "bias": None if s.chance(30) else bias,
    }


def sign_budgets(s: Stream) -> Values:
    rows = s.integer(1, 3)
    budget = _budget(s, rows, s.choice((6, 12, 34, 62)))
    largest = 2 ** s.integer(1, max(budget["bits"] - 2, 1)) + 1
    return {"P": s.tensor((rows,), 0, largest), "N": s.tensor((rows,), 0, largest), **budget}


def project(s: Stream) -> Values:
    shape = s.choice(((1, 4), (2, 3), (2, 5), (2, 1, 2, 2)))
    unit = s.choice((0.5, 0.5, 0.25, 0.1, 1 / 3))
    largest = s.integer(1, 9)
    weight = s.tensor(shape, -2 * largest, 2 * largest) * unit
    return {"weight": weight, **_budget(s, shape[0], s.choice((3, 5, 7)))}


SAMPLERS: dict[str, Callable[[Stream], Values]] = functions_in(globals())
