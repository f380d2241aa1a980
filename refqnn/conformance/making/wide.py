"""Questions on integers of 16 and 32 bits: `rescale`, and a network that adds on a wide scale."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from refqnn.conformance.making.case import (
    Case,
    ask,
    column,
    floats,
    fmt,
    ints,
    slug,
)
from refqnn.conformance.operations import MODES, Values
from refqnn.formats import IntFormat
from refqnn.network import Network, Node
from refqnn.ops import Add, Linear, Rescale

__all__ = ["left_open", "rescales", "wide_network"]


# fmt: off
def rescales() -> Iterator[Case]:
    """Written questions of `rescale`."""
    asks = partial(ask, "rescale")
    for mode in MODES:
        name = slug(mode)
        yield asks(f"ties-{name}", "every accumulator of [-14, 14], times 3/8; a first "
                   "shift that no first rounding reads", rounding=mode, first_shift=np.array(2))
        yield asks(f"double-{name}", "rounded at 3 bits, then at 2 more", rounding="half_even",
                  multiplier=np.array(5), shift=np.array(5), first_rounding=mode,
                  first_shift=np.array(3), zero_point=np.array(1))
    far, edges = 2**31 - 1, column(2**31 - 1, -(2**31), 1, -1, 0, 2**30 + 1)
    yield asks("left-and-right", "shifts to the left, to the right and none side by side; a "
               "multiplier of 0",
              multiplier=ints(5 << 11, far, 7, 0), shift=ints(0, 40, 0, 3), **fmt(32, True),
              first_rounding="half_up", rounding="half_away", first_shift=ints(0, 31, 0, 1),
              zero_point=ints(0, 3, -9, 11), offset=ints(-128, 5, 0, 100),
              acc=np.repeat(ints([[300], [-7], [2], [-1]]), 4, axis=1))
    yield asks("int32", "all of 32 bits: nothing in between holds 32 bits alone", **fmt(32, True),
              acc=edges, multiplier=np.array(far), shift=np.array(31))
    yield asks("uint32", "codes beyond the signed integers of 32 bits, and of float32",
              **fmt(32, False), acc=edges, multiplier=np.array(3), shift=np.array(1),
              zero_point=np.array(2**31 + 1))
    yield asks("products-of-93-bits", "a multiplier of 62 bits, an accumulator of 31",
              acc=edges, multiplier=np.array(2**62 - 1), shift=np.array(62), **fmt(32, True))
    yield asks("just-beside-a-tie", "products of 61 bits that a float64 makes ties of",
              acc=column(2**31 - 1, 1 - 2**31), multiplier=np.array(2**30 + 1), shift=np.array(31),
              **fmt(32, True))
    yield asks("wide-accumulator", "accumulators beyond 32 bits",
              acc=column(2**40 + 3, -(2**40) - 3, 2**33, -(2**33) + 1), shift=np.array(28))
    yield asks("between-roundings", "what the first rounding leaves needs 40 bits",
              acc=edges, multiplier=np.array(far), shift=np.array(46), first_rounding="half_away",
              first_shift=np.array(20), rounding="half_even")
    yield asks("clips", "a clip for each channel; the zero point is added before",
              acc=np.arange(-9, 9).reshape(3, 2, 3) * 30, clip=ints([[-20, 31], [5, 99]]),
              zero_point=ints(7, -3))
    yield asks("narrow", "a format without its lowest code", acc=column(-300, 300, -127, -128),
              **fmt(8, True, True), multiplier=np.array(1), shift=np.array(0))
    yield asks("image", "parameters of each channel on images", multiplier=ints(1, 9, 100),
              acc=np.arange(36).reshape(2, 3, 3, 2) * 7 % 41 - 20, shift=ints(1, 2, 6),
              offset=ints(10, -3, 0))
    refuse = partial(asks, error="invalid_parameter")
    for name, comment, change in (
        ("multiplier", "a negative multiplier", {"multiplier": np.array(-1)}),
        ("multiplier-2-62", "a multiplier of 63 bits", {"multiplier": np.array(2**62)}),
        ("shift-63", "a shift of 63", {"shift": np.array(63)}),
        ("shift-negative", "a shift of -1", {"shift": ints(-1, 2), "acc": ints([[1, 2]])}),
        ("first-shift", "a first shift beyond the shift",
         {"first_rounding": "floor", "first_shift": np.array(4)}),
        ("first-shift-negative", "a first shift of -1",
         {"first_rounding": "floor", "first_shift": np.array(-1)}),
        ("clip", "a highest code below the lowest", {"clip": ints([[3, 2]])}),
        ("clip-outside", "a clip beyond the format", {"clip": ints([[-(2**15) - 1, 0]])}),
        ("bits", "a width of 33", {"bits": 33}),
    ):
        yield refuse(f"refused-{name}", comment, **change)
    for name, comment, change in (
        ("channels", "two shifts for three channels", {"shift": ints(1, 2)}),
        ("numbers", "two shifts, three multipliers",
         {"shift": ints(1, 2), "multiplier": ints(1, 2, 3)}),
        ("clips", "two clips for three channels", {"clip": ints([[0, 1], [0, 2]])}),
    ):
        yield asks(f"refused-{name}", comment, "shape_mismatch", acc=ints([[1, 2, 3]]),
                   **change)


def left_open() -> Iterator[Case]:
    """Where one value stands beside a list, at the last shift, ties at one half, infinite codes."""
    rows = np.arange(-6, 6).reshape(2, 3, 2)
    channels: Values = {"axis": 1, "zero_point": np.array(3)}
    three = floats(0.5, 0.25, 2)
    yield ask("quantize", "one-zero-point", "a scale for each channel, one zero point for all",
              x=(rows / 2).astype(np.float32), scale=three, **channels)
    yield ask("dequantize", "one-zero-point", "a scale for each channel, one zero point for all",
              codes=rows, scale=three, **channels)
    for name, signed in (("signed", True), ("unsigned", False)):
        yield ask("quantize", f"infinite-{name}-32", "infinities are the ends of 32 bits",
                  x=floats(np.inf, -np.inf), **fmt(32, signed))
    ones = partial(ask, "requantize_multiplier")
    same: Values = {"acc": 10 * rows, **fmt(4, True)}
    yield ones("one-mantissa", "a shift for each channel, one mantissa for all",
               mantissa=np.array(3), shift=ints(3, 4, 5), **same)
    yield ones("one-shift", "a mantissa for each channel, one shift for all",
               mantissa=ints(3, 5, 9), shift=np.array(4), **same)
    yield ask("requantize_shift", "last-shift", "halves of 2^62", shift=62, **fmt(2, True),
              acc=column(2**61, 2**61 - 1, -(2**61), -(2**61) - 1, 2**62, -(2**62)))
    for mode in ("half_away", "half_toward_zero", "half_up", "half_down", "half_even"):
        yield ask("rescale", f"halves-{slug(mode)}", "one half, and its neighbours", rounding=mode,
                  acc=column(*range(-5, 6)), multiplier=np.array(1), shift=np.array(1))
    yield ask("lookup", "one-row", "one row of the table for all channels", table=ints([[4, 1, 0]]),
              x=ints([[-2, -1, 0], [0, -2, -1]]))
    yield ask("global_sum_pool", "one-axis", "one spatial axis", x=np.arange(12).reshape(2, 2, 3))
    yield ask("max_pool2d", "refused-padding-beyond", "padding beyond the kernel, of the last axis",
              "invalid_parameter", padding=((0, 0), (0, 5)))
    sums: Values = {"P": ints(2**20 + 1, 2**20), "N": ints(2**20 - 1, 3)}
    for name, ends in (("up", (0, 2**33 + 1)), ("down", (-(2**33) - 1, 0)), ("both", (-7, 2**33))):
        yield ask("sign_budgets", f"far-{name}", "inputs of more than 32 bits", bits=50, **sums,
                  input_range=ends)
    far = 2**40 + 1
    yield ask("max_fan_in", "far", "odd ends beyond 2^40", weight_range=(-1, 1),
              input_range=(0, 1), bias_range=(-far, far), accumulator_range=(1 - 5 * far, 5 * far))
    yield ask("fan_in_mask", "one-weight", "a row of one weight", weight=ints([[5]]), fan_in=1)
    plain: Values = {"bias": None, "stride": (1, 1), "padding": ((0, 0), (0, 0)),
                     "output_padding": (0, 0), "dilation": (1, 1)}
    many, turned = partial(ask, "conv_transpose2d"), np.arange(132) * 7 % 19 - 9
    for name, shape, groups in (("outputs", (1, 132, 1, 1), 1), ("groups", (132, 1, 1, 1), 132),
                                ("rows", (1, 1, 132, 1), 1)):
        yield many(f"many-{name}", f"132 {name}", weight=turned.reshape(shape), groups=groups,
                   x=turned[:groups].reshape(1, groups, 1, 1), **plain)
    yield many("far-apart", "rows 130 apart", weight=ints([[[[2], [-3]]]]), groups=1,
               x=ints([[[[5], [7]]]]), **{**plain, "dilation": (130, 1)})
# fmt: on


def wide_network() -> Network:
    """Two branches of 8-bit codes on a common scale of 32 bits, added, rescaled to 16 bits."""
    int8, int16, int32 = (IntFormat(bits, signed=True) for bits in (8, 16, 32))
    twice = partial(Rescale, rounding="half_away", first_rounding="half_up", first_shift=31)
    act1 = twice([1518500250, 1100000001], [37, 39], int8, zero_point=-5, clip=(-5, 127))
    nodes = [
        Node("fc1", Linear(ints([[70, -3, 99], [-128, 127, 5]]), ints(-900, 4000))),
        Node("act1", act1),
        Node("left", twice(1717986918 << 20, 32, int32, offset=5)),
        Node("fc2", Linear(ints([[2, 1, -1], [0, 3, -90]])), ("input",)),
        Node("right", Rescale([1 << 12, 3 << 11], 0, int32, offset=[7, -7])),
        Node("sum", Add((1, -1)), ("left", "right")),
        Node("out", twice(1073741825, [48, 44], int16, zero_point=[3, 0])),
    ]
    return Network(nodes, input_shape=(3,), input_format=int8)
