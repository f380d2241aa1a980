"""Docstrings of public names, promise by promise: each sentence beside the smallest check of it.

Written from the words alone, in plain Python integers and fractions where something is computed.
The examples in docstrings run as doctests.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quoting import ROOT, Document

import refqnn
from refqnn import (
    BIPOLAR,
    TERNARY,
    Accumulator,
    Add,
    AffineQuantizer,
    Certificate,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Dequantizer,
    Domain,
    Emulated,
    Flatten,
    Gather,
    GlobalSumPool,
    Interval,
    IntFormat,
    Linear,
    Lookup,
    MaxPool2d,
    Network,
    Node,
    PowerOfTwoQuantizer,
    Requantize,
    Rescale,
    Reshape,
    Rounding,
    Softmax,
    Stage,
    SumPool2d,
    SymmetricQuantizer,
    ThresholdQuantizer,
    certify,
    certify_class,
    exact,
    find_overflow,
    limits,
    load,
    max_fan_in,
    mean_by_count,
    observed,
    omega,
    signed_bits,
    simplify,
    span_bits,
    unsigned_bits,
)
from refqnn.accumulator import NoOverflow, Overflow, Unknown
from refqnn.errors import (
    AccumulatorOverflow,
    CertificateError,
    FileFormatError,
    InvalidArgument,
    InvalidType,
    NotCovered,
    OutOfRange,
    RefqnnError,
    ShapeMismatch,
)
from refqnn.ops.requantize import ALWAYS, NEVER

U2, U3, S3, S8 = (IntFormat(b, signed=s) for b, s in ((2, False), (3, False), (3, True), (8, True)))
RNG = np.random.default_rng(16)


def mlp(seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    fc1, fc2 = rng.integers(-3, 4, (4, 3)), rng.integers(-3, 4, (2, 4))
    act1 = Requantize.from_shift(1, U2, "half_even")
    nodes = [Node("fc1", Linear(fc1, [1, 0, -2, 3])), Node("act1", act1), Node("fc2", Linear(fc2))]
    return Network(
        nodes,
        input_shape=(3,),
        input_format=U2,
        input_quantizer=SymmetricQuantizer(0.5, U2),
        output_dequantizer=Dequantizer(0.25),
    )


def every(network: Network) -> np.ndarray[Any, np.dtype[np.int64]]:
    fmt = network.input_format
    codes = range(fmt.q_min, fmt.q_max + 1, fmt.step)
    points = list(itertools.product(codes, repeat=math.prod(network.input_shape)))
    return np.array(points).reshape(-1, *network.input_shape)


def says(name: str, *sentences: str) -> None:
    for sentence in sentences:
        Document.of(name).says(sentence)


# --- numbers ------------------------------------------------------------------------------------


def test_formats() -> None:
    says("IntFormat", "bits: storage width, 1 to 32.", "Raises: InvalidType, InvalidArgument.")
    says("IntFormat.check", "The codes as int64, or an error that shows the first one outside")
    says("IntFormat.step", "The distance between neighbouring codes: 1, or 2 for `BIPOLAR`.")
    for bits in (1, 2, 5, 31, 32):
        for signed, narrow in itertools.product((False, True), repeat=2):
            if narrow and bits == 1:
                continue
            fmt = IntFormat(bits, signed, narrow)
            lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            expected = (lo + 1, hi) if narrow and signed else (lo, hi - 1) if narrow else (lo, hi)
            assert (fmt.q_min, fmt.q_max, fmt.step) == (*expected, 1)
            assert fmt.levels == fmt.q_max - fmt.q_min + 1
    assert (BIPOLAR.q_min, BIPOLAR.q_max, BIPOLAR.step, BIPOLAR.levels) == (-1, 1, 2, 2)
    assert [v for v in range(-3, 4) if TERNARY.contains(np.array(v))] == [-1, 0, 1]
    assert [v for v in range(-3, 4) if BIPOLAR.contains(np.array(v))] == [-1, 1]
    for wrong, error in ((0, InvalidArgument), (33, InvalidArgument), (2.0, InvalidType)):
        with pytest.raises(error):
            IntFormat(wrong, signed=True)  # type: ignore[arg-type]
    with pytest.raises(OutOfRange, match=r"\[1, 0\].*9"):
        U3.check(np.array([[0, 7], [9, -1]]), "codes")


def test_roundings() -> None:
    says("Rounding", "How a number between two integers becomes one of them.")
    says("Rounding.of", "The mode, from itself or from its name.", "InvalidArgument for any other")
    halves = {
        "half_even": lambda x, floor: floor + floor % 2,
        "half_up": lambda x, floor: floor + 1,
        "half_down": lambda x, floor: floor,
        "half_away": lambda x, floor: floor + (x > 0),
        "half_toward_zero": lambda x, floor: floor + (x < 0),
    }
    directed = {
        "floor": math.floor,
        "ceil": math.ceil,
        "toward_zero": math.trunc,
        "away_from_zero": lambda x: math.ceil(x) if x > 0 else math.floor(x),
    }
    assert {*halves, *directed} == {mode.value for mode in Rounding}
    for n in range(-24, 25):
        x = Fraction(n, 8)
        floor, part = math.floor(x), x - math.floor(x)
        for mode in Rounding:
            assert Rounding.of(mode.value) is Rounding.of(mode) is mode
            if mode.value in directed:
                right = directed[mode.value](x)
            elif part == Fraction(1, 2):
                right = halves[mode.value](x, floor)
            else:
                right = floor + (part > Fraction(1, 2))
            assert exact.round(x, mode.value) == right
            levels = Requantize.from_affine(Fraction(1, 8), 0, IntFormat(4, True), mode)
            assert levels.forward(np.array([[n]])).item() == right
    for wrong in ("round", None, 3):
        with pytest.raises(InvalidArgument):
            Rounding.of(wrong)  # type: ignore[arg-type]


def test_widths() -> None:
    says("signed_bits", "The least width of a two's complement integer that holds all of [lo, hi].")
    says("unsigned_bits", "The least width of an unsigned integer that holds all of [lo, hi]")
    says("span_bits", "The least width that holds [lo, hi] after a constant is added; at least 1.")
    ends = [0, 1, 2, 3, 7, 8, 127, 128, 2**53, 2**63 - 1, 2**63, 2**100 - 1, 2**100]
    for hi, lo in itertools.product(ends, [-v for v in ends] + [1]):
        if lo > hi:
            continue
        bits = signed_bits(lo, hi)
        assert -(2 ** (bits - 1)) <= lo <= hi <= 2 ** (bits - 1) - 1
        assert bits == 1 or not -(2 ** (bits - 2)) <= lo <= hi <= 2 ** (bits - 2) - 1
        assert span_bits(lo, hi) == max(1, next(b for b in range(103) if hi - lo < 2**b))
        if lo >= 0:
            assert unsigned_bits(lo, hi) == max(1, next(b for b in range(103) if hi < 2**b))
        else:
            with pytest.raises(OutOfRange):
                unsigned_bits(lo, hi)


def test_fan_in() -> None:
    says("omega", "Omega = floor((2**n_max - 1) / ((2**n_weights - 1) * (2**n_inputs - 1)))")
    says("max_fan_in", "The largest K such that bias + any k <= K products stay inside")
    says("max_fan_in", "Returns: K, or None when every product is 0 or moves away from the ends")
    for n_max, weights, inputs in itertools.product((1, 4, 9, 70), (1, 3), (1, 2)):
        right = (2**n_max - 1) // ((2**weights - 1) * (2**inputs - 1))
        assert omega(n_max, weights, inputs) == right
    for w, x, b in itertools.product(
        [(-2, 1), (0, 3), (1, 2)], [(0, 3), (-2, 1)], [(0, 0), (-3, 5)]
    ):
        products = [i * j for i in w for j in x]
        most = max_fan_in(w, x, b, (-32, 31))

        def fits(k: int, p: list[int] = products, b: tuple[int, int] = b) -> bool:
            return b[0] + k * min(0, *p) >= -32 and b[1] + k * max(0, *p) <= 31

        assert most is not None
        assert fits(most)
        assert not fits(most + 1)
    assert max_fan_in((0, 0), (0, 3), (0, 0), (-1, 0)) is None
    with pytest.raises(OutOfRange):
        max_fan_in((0, 1), (0, 1), (0, 99), (-32, 31))


# --- doors --------------------------------------------------------------------------------------


def test_quantizers() -> None:
    says("SymmetricQuantizer", "code = clip(round(x / scale)).")
    says("AffineQuantizer", "code = clip(round(x / scale) + zero_point), as ONNX QuantizeLinear.")
    says("PowerOfTwoQuantizer", "code = clip(round(x / 2**exponent)); the division is exact")
    says("ThresholdQuantizer", "code = q_min + step * #{k : x >= thresholds[channel, k]}")
    says("ThresholdQuantizer", "Infinite x count as the greatest and the least finite float32.")
    says("ThresholdQuantizer.dequantize", "Raises: NotCovered")
    says("Network.quantize_input", "Raises: NotCovered without an input quantizer, ShapeMismatch, ")
    x = np.concatenate([RNG.normal(size=200) * 3, np.arange(-20, 21) / 4]).astype(np.float32)
    for mode in Rounding:
        affine = AffineQuantizer(0.25, 3, U3, mode)
        power = PowerOfTwoQuantizer(-2, S3, mode)
        symmetric = SymmetricQuantizer(0.25, S3, mode)
        for value, *codes in zip(x.tolist(), *(q.quantize(x).tolist() for q in (affine, power))):
            nearest = exact.round(Fraction(value) * 4, mode.value)
            assert codes == [min(max(nearest + 3, 0), 7), min(max(nearest, -4), 3)]
        assert (symmetric.quantize(x) == power.quantize(x)).all()
        assert symmetric.quantize([np.inf, -np.inf]).tolist() == [3, -4]
        with pytest.raises(InvalidArgument):
            symmetric.quantize([np.nan])
    rows = np.array([[-np.inf, 0.5, np.inf], [-1, 2.0**127, 2.0**127]], dtype=np.float32)
    door = ThresholdQuantizer(rows, U2, axis=1)
    assert door.quantize(
        [[0.0, 0.0], [0.5, -1.5], [np.inf, np.inf], [-np.inf, -np.inf]]
    ).tolist() == [
        [1, 1],
        [2, 0],
        [2, 3],
        [1, 0],
    ]
    with pytest.raises(NotCovered):
        door.dequantize([[1, 1]])
    bare = Network([Node("fc", Linear([[1]]))], input_shape=(1,), input_format=U2)
    with pytest.raises(NotCovered):
        bare.quantize_input([[0.5]])
    with pytest.raises(ShapeMismatch):
        mlp().quantize_input([[0.5]])


def test_scales_from_data() -> None:
    says("SymmetricQuantizer.from_data", "scale = threshold / int_threshold", "2**b - 1 (unsigned)")
    says("AffineQuantizer.from_data", "0.0 has a code of its own.")
    says("PowerOfTwoQuantizer.from_data", "int_threshold is 2**(b-1) or 2**b whatever `narrow` is.")
    x = RNG.normal(size=500).astype(np.float32) + np.float32(0.3)
    largest = np.abs(x).max()
    for signed, narrow in itertools.product((False, True), repeat=2):
        top = {(1, 1): 7, (1, 0): 8, (0, 0): 15, (0, 1): 14}[signed, narrow]
        scale = SymmetricQuantizer.from_data(x, 4, signed=signed, narrow=narrow).scale
        assert np.float32(scale) == np.float32(largest) / np.float32(top)
        exponent = PowerOfTwoQuantizer.from_data(x, 4, signed=signed, narrow=narrow).exponent
        log = math.log2(largest)
        assert int(exponent) in {f(log) - (3 if signed else 4) for f in (math.ceil, round)}
    for shift in (-2, 0.1, 3):
        door = AffineQuantizer.from_data(x + np.float32(shift), 4, signed=False)
        assert door.dequantize(door.quantize([0.0])).tolist() == [0.0]


def test_dequantizer() -> None:
    says("Dequantizer", "y[n, c, ...] = acc[n, c, ...] * scale[c] + offset[c], in `precision`.")
    acc = RNG.integers(-(2**20), 2**20, (5, 2, 3))
    scale, offset = np.float32([0.1, -0.7]), np.float32([0.3, 0])
    got = Dequantizer(scale, offset).dequantize(acc)
    right = acc.astype(np.float32) * scale[:, None] + offset[:, None]
    assert got.tobytes() == right.tobytes()
    with pytest.raises(OutOfRange):
        Dequantizer(0.5).dequantize(np.array([[2**63]], dtype=object))


# --- nodes --------------------------------------------------------------------------------------


def test_sums() -> None:
    says("Linear", "A dense layer of integer weights.", "weight: integers [out, in].")
    says(
        "Conv1d", "Convolution of samples [in, width].", "pad_code: the value of padded positions."
    )
    says("Conv2d", "groups: divides in and out; groups = in is a depthwise convolution.")
    says("Add", "multipliers: one nonzero integer per operand", "(negative: subtract)")
    says("SumPool2d", "The sum of each window of samples [channels, height, width].")
    says("GlobalSumPool", "The sum of each channel: samples [channels, ...] to [channels].")
    x = RNG.integers(-4, 4, (3, 4))
    weight = RNG.integers(-9, 9, (2, 4))
    right = [[sum(a * b for a, b in zip(v, w)) + 5 for w in weight.tolist()] for v in x.tolist()]
    assert Linear(weight, [5, 5]).forward(x).tolist() == right
    image = RNG.integers(-4, 4, (2, 4, 3, 5))
    for groups, stride, pad, code in itertools.product((1, 2, 4), (1, 2), (0, 1), (0, -3)):
        kernel = RNG.integers(-3, 4, (4, 4 // groups, 2, 3))
        op = Conv2d(kernel, None, stride, pad, groups=groups, pad_code=code)
        wide = np.pad(image, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=code)
        got, per = op.forward(image), 4 // groups
        for place in np.ndindex(got.shape):
            n, c, i, j = place
            start = c // per * per  # as many channels out as in
            window = wide[n, start : start + per, i * stride :, j * stride :][:, :2, :3]
            assert got[place] == (window * kernel[c]).sum()
        if pad == 0:
            row = Conv1d(kernel[:, :, 0], None, stride, groups=groups)
            flat = Conv2d(kernel[:, :, :1], None, (1, stride), groups=groups)
            assert (row.forward(image[:, :, 0]) == flat.forward(image[:, :, :1])[:, :, 0]).all()
    assert (Add((2, -3)).forward(image, image[::-1]) == 2 * image - 3 * image[::-1]).all()
    assert (GlobalSumPool().forward(image) == image.sum(axis=(2, 3))).all()
    assert (SumPool2d((3, 5)).forward(image)[..., 0, 0] == image.sum(axis=(2, 3))).all()
    with pytest.raises(InvalidArgument):
        Add((1, 0))


def test_transposed_convolutions_are_the_gradient_of_convolutions() -> None:
    says("ConvTranspose2d", "Transposed convolution of samples [in, height, width].")
    kernel, stride = RNG.integers(-3, 4, (2, 3, 2, 3)), 2
    image = RNG.integers(-4, 4, (1, 2, 3, 2))
    got = ConvTranspose2d(kernel, None, stride).forward(image)
    right = np.zeros((1, 3, 2 * 2 + 2, 2 * 1 + 3), dtype=int)
    for c, i, j in np.ndindex(image.shape[1:]):
        right[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 3] += image[0, c, i, j] * kernel[c]
    assert got.tolist() == right.tolist()


def test_what_moves() -> None:
    says("Gather", "-1 stands for `fill`.", "OutOfRange for a position outside")
    says("Gather.of", "The movement that a function of an array performs on a sample.")
    says(
        "Gather.channel_shuffle", "Channel g * C + c moves to c * groups + g, C = channels / groups"
    )
    says("Gather.pixel_shuffle", "y[c, h r + a, w r + b] = x[c r r + a r + b, h, w].")
    says("Gather.nearest", "repeated factors[i] times along spatial axis i.")
    says("Concat", "joined along the channel axis: [sum c_i, ...].")
    says("Flatten", "Samples of any shape to vectors.")
    says("Reshape", "Samples to another shape of as many values.")
    says("MaxPool2d", "The greatest value of each window", "less than the kernel.")
    x = RNG.integers(-50, 50, (2, 12, 2, 3))
    shuffled = Gather.channel_shuffle((12, 2, 3), 3).forward(x)
    for g, c in np.ndindex(3, 4):
        assert (shuffled[:, c * 3 + g] == x[:, g * 4 + c]).all()
    pixels = Gather.pixel_shuffle((12, 2, 3), 2).forward(x)
    for c, h, w, a, b in np.ndindex(3, 2, 3, 2, 2):
        assert (pixels[:, c, h * 2 + a, w * 2 + b] == x[:, c * 4 + a * 2 + b, h, w]).all()
    near = Gather.nearest((12, 2, 3), (3, 2)).forward(x)
    assert (near == x.repeat(3, axis=2).repeat(2, axis=3)).all()
    turned = Gather.of((12, 2, 3), lambda v: v.T[::-1])
    assert (turned.forward(x) == np.stack([v.T[::-1] for v in x])).all()
    assert Gather([0, -1, 1], (2,), 7).forward([[5, 6]] * np.ones((1, 1), int)).tolist() == [
        [5, 7, 6]
    ]
    for wrong in (2, -2):
        with pytest.raises(OutOfRange):
            Gather([wrong], (2,))
    assert (Concat().forward(x, x[:, :1]) == np.concatenate([x, x[:, :1]], axis=1)).all()
    assert (Flatten().forward(x) == x.reshape(2, -1)).all()
    assert (Reshape((4, 18)).forward(x) == x.reshape(2, 4, 18)).all()
    peaks = MaxPool2d(2, 1, 1).forward(x)  # what is padded is never the greatest
    for n, c, i, j in np.ndindex(peaks.shape):
        window = x[n, c, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1]
        assert peaks[n, c, i, j] == window.max()
    with pytest.raises(InvalidArgument):
        MaxPool2d(2, padding=2)


def test_tables_and_thresholds() -> None:
    says("Lookup", "column i is the value at lo + i.")
    says("Lookup.out_range", "Least and greatest entry between the ends, at every position: exact.")
    says(
        "Requantize", "Accumulators to codes by counting thresholds.", "levels - 1 = q_max - q_min."
    )
    says("Requantize", "where it is used, OutOfRange for an accumulator that may reach a sentinel.")
    says("Requantize.shift", "Then code = q_min + clip((acc + offset[c]) >> r)")
    table = RNG.integers(-9, 9, (2, 7))
    for lo, hi in itertools.combinations_with_replacement(range(-3, 4), 2):
        box = Interval(np.full((2,), lo), np.full((2,), hi))
        got = Lookup(table, -3).out_range(box)
        part = table[:, lo + 3 : hi + 4]
        assert (got.lo == part.min(axis=1)).all()
        assert (got.hi == part.max(axis=1)).all()
    with pytest.raises(OutOfRange):
        Lookup(table, -3).forward(np.array([[4, 0]]))
    rows = np.sort(RNG.integers(-20, 20, (2, 7)), axis=1)
    acc = RNG.integers(-30, 30, (50, 2))
    counted = [[-4 + sum(t <= v for t in row) for v, row in zip(pair, rows)] for pair in acc]
    assert Requantize(rows, S3).forward(acc).tolist() == counted
    assert Requantize([[ALWAYS, 5, NEVER]], U2).forward(np.array([[4], [5]])).tolist() == [[1], [2]]
    for sentinel in (ALWAYS, NEVER):
        with pytest.raises(OutOfRange):
            Requantize([[0, 1, 2]], U2).forward(np.array([[sentinel]]))
    for mode, add in (("half_up", 4), ("floor", 0)):
        shifted = Requantize.from_shift(3, U3, mode, offset=1)
        assert shifted.shift == 3
        values = [min(max((v + 1 + add) >> 3, 0), 7) for v in range(-40, 80)]
        assert shifted.forward(np.arange(-40, 80)[:, None]).ravel().tolist() == values


def test_constructors_of_thresholds() -> None:
    says("Requantize.from_affine", "code = saturate(round(acc * gain + offset) + zero_point)")
    says("Requantize.from_scale", "exactly.", "taken as the dyadic rationals they are")
    says(
        "Requantize.from_multiplier",
        "code = saturate(round(acc * mantissa / 2**shift) + zero_point)",
    )
    says("Requantize.from_multiplier", "the product is first rounded to p")
    says("Requantize.from_function", "Thresholds of a nondecreasing function on [lo, hi]")
    says(
        "Requantize.from_function", "Raises: InvalidArgument when the function is seen to decrease"
    )
    says("Requantize.from_table", "of codes [channels or 1, n] for acc = lo, lo + 1, ...")
    acc = np.arange(-60, 61)
    for mode in Rounding:

        def rounded(value: Fraction, zero: int, mode: Rounding = mode) -> int:
            return min(max(exact.round(value, mode.value) + zero, -4), 3)

        gain, offset = Fraction(3, 16), Fraction(5, 32)
        affine = Requantize.from_affine(gain, offset, S3, mode, zero_point=1)
        right = [rounded(v * gain + offset, 1) for v in acc.tolist()]
        assert affine.forward(acc[:, None]).ravel().tolist() == right
        one, two, bias = 0.1, np.float32(0.7), 0.3
        scaled = Requantize.from_scale(one, two, S3, mode, bias=bias)
        exactly = [
            (v * Fraction(one) + Fraction(bias)) / Fraction(float(two)) for v in acc.tolist()
        ]
        assert scaled.forward(acc[:, None]).ravel().tolist() == [rounded(v, 0) for v in exactly]
        double = Requantize.from_multiplier(
            11, 7, S3, mode, zero_point=-1, first_rounding="half_up", first_shift=3
        )
        first = [exact.round(Fraction(v * 11, 8), "half_up") for v in acc.tolist()]
        right = [rounded(Fraction(p, 16), -1) for p in first]
        assert double.forward(acc[:, None]).ravel().tolist() == right
    stairs = np.sort(RNG.integers(-4, 4, (2, 121)), axis=1)
    for made in (
        Requantize.from_table(stairs, -60, S3),
        Requantize.from_function(
            lambda a: np.take_along_axis(stairs, a + 60, axis=1), [-60, -60], [60, 60], S3
        ),
    ):
        assert (made.forward(np.stack([acc, acc], axis=1)) == stairs.T).all()
    with pytest.raises(InvalidArgument):
        Requantize.from_function(lambda a: -np.sign(a), [-9], [9], S3)
    with pytest.raises(OutOfRange):
        Requantize.from_function(lambda a: a, [-9], [9], S3)


def test_wide_codes_and_fractions() -> None:
    says("Rescale", "Accumulators to codes of up to 32 bits.")
    says(
        "Softmax",
        "Softmax over the first axis of a sample, as codes of an unsigned fraction in [0, 1).",
    )
    says(
        "mean_by_count",
        "code = clip(round(sum of (x - input_zero_point) / count * gain) + zero_point)",
    )
    says("mean_by_count", "what is padded neither adds nor counts.")
    wide = IntFormat(32, signed=True)
    acc = [-(2**40), -77, -1, 0, 3, 10**9, 2**50]
    op = Rescale(12345, 9, wide, "half_even", zero_point=7, offset=-5)
    right = [exact.round(Fraction((v - 5) * 12345, 512), "half_even") + 7 for v in acc]
    right = [min(max(v, -(2**31)), 2**31 - 1) for v in right]
    assert op.forward(np.array(acc)[:, None]).ravel().tolist() == right
    soft = Softmax([2**31 - 1, 2**29, 2**27], IntFormat(8, signed=False))
    codes = soft.forward(RNG.integers(-3, 4, (50, 5)))
    assert (codes >= 0).all()
    assert (codes.sum(axis=1) <= 256 + 5).all()
    image = RNG.integers(0, 8, (1, 2, 3, 3))
    got: Any = image
    for part in mean_by_count(
        (2, 3, 3),
        2,
        1,
        1,
        codes=U3,
        format=U3,
        rounding="half_up",
        input_zero_point=2,
        zero_point=2,
    ):
        got = part.forward(got)
    for _, c, i, j in np.ndindex(got.shape):
        window = image[0, c, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1].ravel().tolist()
        mean = Fraction(sum(window) - 2 * len(window), len(window))
        assert got[0, c, i, j] == min(max(exact.round(mean, "half_up") + 2, 0), 7)


# --- networks -----------------------------------------------------------------------------------


def test_intervals() -> None:
    says("Interval.observed", "The least interval that holds the samples", "zeros for n = 0.")
    says("Interval.contains", "Do all samples [n, *shape] lie inside?")
    says(
        "observed", "The least intervals that hold every value met on samples: never a certificate."
    )
    values = RNG.integers(-9, 9, (6, 2, 3))
    box = Interval.observed(values)
    assert (box.lo == values.min(axis=0)).all()
    assert (box.hi == values.max(axis=0)).all()
    assert box.contains(values)
    for k, end in enumerate((box.lo - 1, box.hi + 1)):
        outside = values.copy()
        outside[k, 1, 2] = end[1, 2]
        assert not box.contains(outside)
    assert Interval.observed(values[:0]).ends == (0, 0)
    network = mlp()
    codes = every(network)[::7]
    for name, seen in observed(network, codes).items():
        here = network.trace(codes)[name]
        assert seen.lo.tolist() == here.min(axis=0).tolist()
        assert seen.hi.tolist() == here.max(axis=0).tolist()


def test_forward_and_trace() -> None:
    says("Network.forward", "The integers of the output node in `trace`, faster")
    says("Network.forward", "Returns: int64, or Python integers in an object array where int64")
    says("Network.trace", 'Every value by name: "input", then the nodes in their order')
    says("Network.predict", "quantize_input, forward, dequantize_output.")
    says("Network.ranges", "Sound, and exact node by node")
    says("Node", 'name: unique, not empty, not "input".', "None means the node before it.")
    network = mlp()
    codes = every(network)
    trace = network.trace(codes)
    assert list(trace) == ["input", "fc1", "act1", "fc2"]
    assert (trace["input"] == codes).all()
    assert network.forward(codes).dtype == np.int64
    assert (network.forward(codes) == trace["fc2"]).all()
    huge = Linear([[2**62, 2**62]], [2**62])
    net = Network([Node("fc", huge)], input_shape=(2,), input_format=U3)
    assert net.forward([[7, 7]]).tolist() == [[15 * 2**62]]
    assert net.forward([[7, 7]]).dtype == object
    X = RNG.normal(size=(9, 3)).astype(np.float32)
    floats = network.dequantize_output(network.forward(network.quantize_input(X)))
    assert network.predict(X).tobytes() == floats.tobytes()
    for name, box in network.ranges().items():
        assert box.contains(trace[name])
    first = network.ranges()["fc1"]  # one node behind the input: exact
    assert (first.lo == trace["fc1"].min(axis=0)).all()
    assert (first.hi == trace["fc1"].max(axis=0)).all()
    for wrong, error in (
        ([[0.5, 0, 0]], InvalidType),
        ([[4, 0, 0]], OutOfRange),
        ([[0, 0]], ShapeMismatch),
        (np.zeros((0, 3), dtype=int), ShapeMismatch),
    ):
        for run in (network.forward, network.trace):
            with pytest.raises(error):
                run(wrong)
    for names in (("", "b"), ("input", "b"), ("a", "a")):
        with pytest.raises(RefqnnError):
            Network(
                [Node(name, Linear([[1]])) for name in names], input_shape=(1,), input_format=U2
            )


def test_differences() -> None:
    says("diff", "Nodes that `got` does not have are passed over.")
    says("Difference", "margin: for a Requantize node, accumulator minus its nearest threshold")
    says(
        "Network.diff", "Raises: InvalidArgument for unknown names or without input; ShapeMismatch"
    )
    network = mlp()
    codes = every(network)[:8]
    right = network.trace(codes)
    wrong = {"fc2": right["fc2"] + 1, "act1": right["act1"].copy()}
    wrong["act1"][5, 2] ^= 1
    found = refqnn.diff(right, wrong, network)
    assert found is not None
    assert (found.node, found.index, found.count, found.total) == ("act1", (5, 2), 1, 32)
    assert (found.expected, found.got) == (right["act1"][5, 2], wrong["act1"][5, 2])
    acc = int(right["fc1"][5, 2])
    thresholds = network["act1"].op.thresholds[0].tolist()
    assert abs(found.margin) == min(abs(acc - t) for t in thresholds)
    assert network.diff(wrong, codes).node == "act1"
    assert network.diff({"fc2": right["fc2"]}, codes) is None
    with pytest.raises(InvalidArgument):
        network.diff({"fc9": right["fc2"]}, codes)
    with pytest.raises(InvalidArgument):
        network.diff({"fc2": right["fc2"]})
    with pytest.raises(ShapeMismatch):
        network.diff({"fc2": right["fc2"][:3]}, codes)


def test_files(tmp_path: Path) -> None:
    says("load", "Raises: FileFormatError for a truncated, altered, foreign or newer file")
    says("Network.save", "Write one file: no pickle, versioned, checksummed")
    says("Certificate.save", "Write it as one JSON file, atomically.")
    network, path = mlp(), tmp_path / "net"
    network.save(path)
    whole = path.read_bytes()
    assert load(path).digest == network.digest
    assert (load(path).forward(every(network)) == network.forward(every(network))).all()
    for content in (whole[:-1], whole.replace(b"fc1", b"fc9", 1), b"", b"PK", pickle.dumps(1)):
        path.write_bytes(content)
        with pytest.raises(FileFormatError):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    certificate = certify(network)
    certificate.save(tmp_path / "certificate")
    assert Certificate.load(tmp_path / "certificate") == certificate
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["certificate", "net"]


# --- proofs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "interval", "exhaustive", "search"])
def test_certificates(method: Any) -> None:
    says("certify", "Bounds of every value of a network, for every input of a domain.")
    says("certify", "Returns: a certificate whose bounds are all sound")
    says("Certificate.witness", "What is returned was replayed through the network.")
    says("Certificate.verify", "must have the digest of the certificate.")
    says("Certificate.__reduce__", "what a pickle holds is not proved in this process.")
    for seed in range(5):
        network = mlp(seed)
        truth = network.trace(every(network))
        certificate = certify(network, method=method, budget_s=5.0)
        for name, layer in certificate.nodes.items():
            least, greatest = truth[name].min(axis=0), truth[name].max(axis=0)
            assert (layer.lo <= least).all()
            assert (layer.hi >= greatest).all()
            for place in np.ndindex(layer.lo.shape):
                for end, value in enumerate((least[place], greatest[place])):
                    found = certificate.witness(network, name, place, end)
                    bound = (layer.lo, layer.hi)[end][place]
                    assert found is None or network.trace(found[None])[name][(0, *place)] == bound
                    if layer.status[(end, *place)] == 0:
                        assert bound == value
        assert sum(certificate.verify(network).values()) == sum(
            layer.proof.size for layer in certificate.nodes.values()
        )
        with pytest.raises(CertificateError):
            certificate.verify(mlp(seed + 1))
        for other in (pickle.loads(pickle.dumps(certificate)), copy.deepcopy(certificate)):
            assert other == certificate
            assert other._proved_of is None


def test_domains() -> None:
    says("Domain", "A box or a finite set of input codes of one network.")
    says("Domain.size", "The number of points (rows count as often as they are listed).")
    says("Domain.box", "InvalidArgument (lo > hi), OutOfRange (not codes).")
    network = mlp()
    box = Domain.box(network, [0, 1, 2], 2)
    points = {(a, b, 2) for a in range(3) for b in (1, 2)}
    assert {tuple(p) for p in box.points(0, box.size).tolist()} == points
    assert box.size == len(points) == 6
    inside = box.contains(every(network))
    assert {tuple(p) for p in every(network)[inside].tolist()} == points
    assert (box.sample(100, np.random.default_rng(0))[:, 2] == 2).all()
    rows = Domain.rows(network, [[1, 2, 3], [1, 2, 3]])
    assert rows.size == 2
    assert Domain.per_feature(network, [(0, 2), (1, 2), (2, 2)]).same_as(box)
    truth = network.trace(every(network)[inside])
    for name, layer in certify(network, box).nodes.items():
        assert (layer.lo == truth[name].min(axis=0)).all()
        assert (layer.hi == truth[name].max(axis=0)).all()
    with pytest.raises(InvalidArgument):
        Domain.box(network, 2, 1)
    with pytest.raises(OutOfRange):
        Domain.box(network, 0, 4)
    with pytest.raises(InvalidType):
        certify(network, "all")


def test_overflows() -> None:
    says(
        "find_overflow",
        "Returns: `Overflow` with an input that was replayed; `NoOverflow`, a proof",
    )
    says("find_overflow", "bits: width of the accumulator, 1 to 64.")
    network = mlp(2)
    truth = network.trace(every(network))
    for bits, signed in itertools.product(range(1, 8), (True, False)):
        lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        for name in ("fc1", "fc2"):
            for neuron in range(network.shapes[name][0]):
                values = truth[name][:, neuron]
                answer = find_overflow(network, name, neuron, bits, signed)
                leaves = bool((values < lo).any() or (values > hi).any())
                assert isinstance(answer, Overflow if leaves else NoOverflow)
                if isinstance(answer, Overflow):
                    assert network.trace(answer.witness[None])[name][0, neuron] == answer.value
                    assert not lo <= answer.value <= hi
    assert not isinstance(find_overflow(network, bits=64), Unknown)
    for wrong in (0, 65):
        with pytest.raises(InvalidArgument):
            find_overflow(network, bits=wrong)


def test_classes() -> None:
    says("certify_class", "Does any input with every code within `radius` of the given one have")
    says("certify_class", "the class the first index of the greatest.")
    for seed in range(6):
        network = mlp(seed)
        outputs = network.forward(every(network))
        classes = outputs.argmax(axis=1)  # the first of the greatest
        for code, radius in itertools.product(([0, 0, 0], [1, 2, 3]), (0, 1, 3)):
            near = (np.abs(every(network) - code) <= radius).all(axis=1)
            here = classes[(every(network) == code).all(axis=1)][0]
            verdict = certify_class(network, code, radius)
            assert verdict.proved == bool((classes[near] == here).all())
            if not verdict.proved:
                other = network.forward(verdict.witness[None])[0].argmax()
                assert other != here


def test_simplified() -> None:
    says("simplify", "The network without what cannot matter on the certificate's domain.")
    says(
        "simplify", "nodes keep their names, and those that the output does not depend on are gone."
    )
    for seed in range(8):
        network = mlp(seed)
        unused = Node("unused", Linear([[1, 1, 1]]), ("input",))
        more = Network(
            [unused, *network.nodes],
            input_shape=(3,),
            input_format=U2,
            output="fc2",
        )
        small = simplify(more, certify(more))
        assert (small.forward(every(more)) == network.forward(every(more))).all()
        assert {node.name for node in small.nodes} <= {"fc1", "act1", "fc2"}
        other = certify(mlp(seed + 1))
        with pytest.raises(CertificateError):
            simplify(more, other)


# --- registers ----------------------------------------------------------------------------------


def test_registers() -> None:
    says("Stage", "width: bits, 1 to 64.", 'when: at every "step" of the sum, or once at the "end"')
    says("Accumulator", 'bias: the "first" or the "last" value of the last stage, or "outside"')
    says("Emulated", "One register of finite width")
    says("Network.trace", "AccumulatorOverflow where an accumulator is asked to")
    weight, codes = [3, -2, 3, 3], [3, 3, 1, 2]
    network = Network([Node("fc", Linear([weight], [-4]))], input_shape=(4,), input_format=U2)
    right = sum(w * x for w, x in zip(weight, codes)) - 4

    def register(values: list[int], overflow: str, when: str) -> int:
        acc = 0
        for value in [sum(values)] if when == "end" else values:
            acc += value
            acc = (acc + 8) % 16 - 8 if overflow == "wrap" else min(max(acc, -8), 7)
        return acc

    products = [w * x for w, x in zip(weight, codes)]
    for overflow, when, place in itertools.product(
        ("wrap", "saturate"), ("step", "end"), ("first", "last", "outside")
    ):
        stage = Stage(4, overflow=overflow, when=when)  # type: ignore[arg-type]
        values = {"first": [-4, *products], "last": [*products, -4], "outside": products}[place]
        expected = register(values, overflow, when) - 4 * (place == "outside")
        accumulator = Accumulator([stage], bias=place)  # type: ignore[arg-type]
        assert network.trace([codes], accumulator=accumulator)["fc"].item() == expected
        if place == "last":
            emulated = Emulated(4, overflow=overflow, when=when)  # type: ignore[arg-type]
            assert network.trace([codes], accumulator=emulated)["fc"].item() == expected
    with pytest.raises(AccumulatorOverflow):
        network.trace([codes], accumulator=Emulated(4, overflow="error"))
    assert network.trace([codes], accumulator=Emulated(16, overflow="error"))["fc"].item() == right
    for wrong in (0, 65):
        with pytest.raises(InvalidArgument):
            Stage(wrong)


# --- all of them --------------------------------------------------------------------------------


def test_numbers_in_docstrings_are_those_of_the_code() -> None:
    says("certify", "exhaustive ones where the domain has at most 2**20 points")
    says("Certificate.verify", "(a claim of more than 2**20 points is false)")
    says("Requantize.from_rescale", "InvalidArgument for a format of more than 2**20 codes.")
    assert limits.EXHAUSTIVE_LIMIT == limits.MAX_LEVELS == 2**20


def test_every_public_name_is_quoted() -> None:
    """What the extras bring, and what only names something, stand in the other documents."""
    text = Path(__file__).read_text(encoding="utf-8")
    quoted = {name.split(".")[0] for name in re.findall(r'\bsays\(\s*"([\w.]+)"', text)}
    elsewhere = {"BIPOLAR", "TERNARY", "RefqnnError", "from_brevitas", "to_brevitas", "from_onnx"}
    elsewhere |= {"to_onnx", "from_tflite", "diagnose"}
    assert {*refqnn.__all__, *refqnn._HOME} - quoted == elsewhere
    assert (ROOT / "tests" / "documents" / "test_readme_words.py").exists()
