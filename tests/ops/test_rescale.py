"""Rescale against fractions, against runtimes' own integer code told again, against Requantize."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refqnn import (
    IntFormat,
    Network,
    Node,
    Requantize,
    Rescale,
    certify,
    exact,
    load,
    mean_by_count,
    testing,
)
from refqnn.errors import (
    InvalidArgument,
    InvalidType,
    NotCovered,
    OutOfRange,
    RefqnnError,
    ShapeMismatch,
)
from refqnn.ops import Interval, Linear
from refqnn.testing import Value

INT8, INT16, INT32 = (IntFormat(bits, signed=True) for bits in (8, 16, 32))
ACC = Value("acc", Interval(np.full(3, -(2**31)), np.full(3, 2**31 - 1)))


def by_fractions(op, acc, channel):
    """The definition, word by word."""

    def at(values):
        return values.tolist()[channel if len(values) > 1 else 0]

    value = Fraction((acc + at(op.offset)) * at(op.multiplier))
    if op.first_rounding is None:
        rounded = exact.round(value / 2 ** at(op.shift), op.rounding)
    else:
        p = exact.round(value / 2 ** at(op.first_shift), op.first_rounding)
        rounded = exact.round(Fraction(p, 2 ** (at(op.shift) - at(op.first_shift))), op.rounding)
    lo, hi = at(op.clip)
    return min(max(rounded + at(op.zero_point), lo), hi)


@settings(deadline=None)
@given(st.data())
def test_it_is_its_formula_at_any_size(data):
    op = data.draw(testing.ops("Rescale", ACC, max_weight=2**40))
    size = data.draw(st.sampled_from([9, 2**31, 2**62, 2**70]))
    acc = data.draw(st.lists(st.integers(-size, size), min_size=1, max_size=9))
    got = op.forward(np.array([[a] * 3 for a in acc], dtype=object if size > 2**62 else np.int64))
    assert got.dtype == np.int64
    assert got.tolist() == [[by_fractions(op, a, c) for c in range(3)] for a in acc]


@settings(deadline=None)
@given(st.data())
def test_where_both_can_requantize_agrees(data):
    op = data.draw(testing.ops("Rescale", ACC, max_weight=99))
    narrow = data.draw(testing.formats(max_bits=8))
    op = Rescale(
        *(op.multiplier, op.shift, narrow, op.rounding, op.zero_point, op.offset),
        first_rounding=op.first_rounding,
        first_shift=op.first_shift,
    )
    listed = Requantize.from_rescale(op)
    edges = [t for t in listed.thresholds.ravel().tolist() if -(2**62) < t < 2**62]
    acc = sorted({a + d for a in [*edges, 0, -(2**40), 2**40] for d in (-1, 0, 1)})
    x = np.array([[a] * 3 for a in acc])
    assert np.array_equal(listed.forward(x), op.forward(x))


def test_channels_shape_the_output_of_images():
    op = Rescale([1, 2], 0, INT32, clip=[[-4, 4], [-99, 5]], zero_point=[0, 1])
    x = np.arange(-6, 6).reshape(1, 2, 3, 2)
    assert op.forward(x).tolist() == [[[[-4, -4], [-4, -3], [-2, -1]], [[1, 3], [5, 5], [5, 5]]]]
    with pytest.raises(ShapeMismatch, match="2 channels first"):
        op.out_shape((3, 3))


# --- runtimes, told again ---------------------------------------------------------------------


def truncated(n, d):
    """n / d as C divides."""
    return abs(n) // d * (1 if n >= 0 else -1)


def gemmlowp(x, multiplier, exponent):
    """A saturating doubling high product, then a division by a power of two, half away from 0."""
    left, right = max(exponent, 0), max(-exponent, 0)
    product = x * 2**left * multiplier
    high = truncated(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)


def tosa(x, multiplier, shift, double):
    """The specification's apply_scale_32."""
    rounding = 1 << (shift - 1)
    if double and shift > 31:
        rounding += 2**30 if x >= 0 else -(2**30)
    return (x * multiplier + rounding) >> shift


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(2**30, 2**31 - 1), st.integers(-31, 20)), min_size=2),
    st.integers(-(2**31), 2**31 - 1) | st.integers(-99, 99),
)
def test_double_rounding_with_shifts_of_either_sign_side_by_side(channels, x):
    op = Rescale(
        [m << max(e, 0) for m, e in channels],
        [31 + max(-e, 0) for _, e in channels],
        INT32,
        "half_away",
        first_rounding="half_up",
    )
    expected = [min(max(gemmlowp(x, m, e), INT32.q_min), INT32.q_max) for m, e in channels]
    assert op.forward(np.full((1, len(channels)), x)).tolist() == [expected]


@settings(deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(2, 62),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1) | st.integers(-99, 99),
    st.integers(-128, 127),
)
def test_tosa_scales_once_and_twice(multiplier, shift, double, x, zero_point):
    twice = {"first_rounding": "half_up", "first_shift": min(shift, 31)} if double else {}
    mode = "half_away" if double else "half_up"
    op = Rescale(multiplier, shift, INT16, mode, zero_point, offset=-zero_point, **twice)
    scaled = tosa(x - zero_point, multiplier, shift, double) + zero_point
    assert op.forward(np.array([[x]])).item() == min(max(scaled, -(2**15)), 2**15 - 1)


# --- as a node --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_networks_are_certified_verified_saved_and_told_again(seed, tmp_path):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-9, 10, (3, 3))
    middle = Rescale([3, 2**30, 0], [2, 31, 5], INT16, "half_even", 1, [0, 7, 2])
    if seed % 2:
        middle = Rescale(
            *(5, 3, IntFormat(20, False), "half_away"), first_rounding="half_up", first_shift=1
        )
    nodes = [Node("fc1", Linear(weight)), Node("wide", middle), Node("fc2", Linear(weight[:2]))]
    net = Network(nodes, input_shape=(3,), input_format=IntFormat(3, signed=True))
    codes = rng.integers(-4, 4, (50, 3))
    assert exact.forward(net, codes.tolist()) == net.forward(codes).tolist()
    assert net.trace(codes)["fc2"].tolist() == net.forward(codes).tolist()
    net.save(tmp_path / "net")
    assert load(tmp_path / "net").digest == net.digest
    every = np.stack(np.meshgrid(*[range(-4, 4)] * 3), axis=-1).reshape(-1, 3)
    acc = net.forward(every)
    for method in ("interval", "exhaustive", "search"):
        certificate = certify(net, method=method)
        certificate.verify(net, allow_trusted=True)
        bounds = certificate["fc2"]
        assert (bounds.lo <= acc.min(axis=0)).all()
        assert (bounds.hi >= acc.max(axis=0)).all()
        if method != "interval":
            assert bounds.lo.tolist() == acc.min(axis=0).tolist()
            assert bounds.hi.tolist() == acc.max(axis=0).tolist()


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"multiplier": -1}, OutOfRange, "multiplier"),
        ({"multiplier": 2**62}, OutOfRange, "multiplier"),
        ({"multiplier": [1, 2**63]}, OutOfRange, "multiplier"),
        ({"multiplier": 1.0}, InvalidType, "multiplier"),
        ({"multiplier": []}, InvalidType, "multiplier"),
        ({"multiplier": [[1]]}, ShapeMismatch, "multiplier"),
        ({"shift": 63}, OutOfRange, "shift"),
        ({"shift": [1, -1]}, OutOfRange, "shift"),
        ({"shift": [1, 2], "multiplier": [1, 2, 3]}, ShapeMismatch, "shift"),
        ({"rounding": "nearest"}, InvalidArgument, "rounding"),
        ({"first_rounding": "floor", "first_shift": 9}, OutOfRange, "first_shift"),
        ({"first_rounding": "floor", "first_shift": -1}, OutOfRange, "first_shift"),
        ({"first_rounding": "nearest"}, InvalidArgument, "rounding"),
        ({"zero_point": 2**63}, OutOfRange, "zero_point"),
        ({"offset": 0.5}, InvalidType, "offset"),
        ({"clip": (3, 2)}, InvalidArgument, "clip"),
        ({"clip": (-129, 2)}, InvalidArgument, "clip"),
        ({"clip": (1, 2, 3)}, ShapeMismatch, "clip"),
        ({"clip": "ab"}, InvalidType, "clip"),
        ({"clip": [[0, 1]] * 3, "shift": [1, 2]}, ShapeMismatch, "shift"),
        ({"format": 8}, InvalidType, "format"),
    ],
)
def test_what_is_refused_is_named(change, error, names):
    arguments = {"multiplier": 1, "shift": 8, "format": INT8, **change}
    with pytest.raises(error, match=names) as refused:
        Rescale(**arguments)
    assert isinstance(refused.value, RefqnnError)


def test_a_product_beyond_64_bits_is_exact():
    op = Rescale(2**62 - 1, 62, INT32, "floor", offset=-(2**62))
    x = 2**62 + 77
    assert op.forward(np.array([[x]])).item() == floor(Fraction(77 * (2**62 - 1), 2**62)) == 76


# --- averages ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_a_mean_divides_by_the_positions_inside(data):
    """Every window by itself, in fractions: thresholds, and for 16 bits a multiplier."""
    sizes = [data.draw(st.integers(1, 5)) for _ in range(2)]
    padding = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(2)]
    kernel = [
        data.draw(st.integers(max(ends) + 1, size + sum(ends)))
        for size, ends in zip(sizes, padding)
    ]
    stride = [data.draw(st.integers(1, 3)) for _ in range(2)]
    wide = data.draw(st.booleans())
    codes = INT16 if wide else data.draw(testing.formats(max_bits=8))
    fmt = codes if wide else data.draw(testing.formats(max_bits=5))
    mode = "half_away" if wide else data.draw(testing.roundings())
    gain = Fraction(1) if wide else data.draw(st.fractions(Fraction(1, 99), 9))
    zero_in, zero = data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9))
    clip = data.draw(st.none() | st.just((fmt.q_min + (fmt.bits > 1), fmt.q_max)))
    shape = (2, *sizes)
    ops = mean_by_count(
        *(shape, tuple(kernel), tuple(stride), tuple(padding)),
        **{"codes": codes, "format": fmt, "rounding": mode, "gain": gain, "clip": clip},
        **{"input_zero_point": zero_in, "zero_point": zero},
    )
    x = data.draw(testing.codes(codes, (1, *shape)))
    y = x
    for op in ops:
        y = op.forward(y)
    lo, hi = clip or (fmt.q_min, fmt.q_max)
    assert y.shape[1] == 2
    for c, i, j in np.ndindex(*y.shape[1:]):
        rows, columns = (
            range(max(0, s * p - before), min(size, s * p - before + k))
            for s, p, (before, _), size, k in zip(stride, (i, j), padding, sizes, kernel)
        )
        window = [int(x[0, c, u, v]) - zero_in for u in rows for v in columns]
        mean = exact.round(Fraction(sum(window), len(window)) * gain, mode) + zero
        assert y[0, c, i, j] == min(max(mean, lo), hi)


def test_means_of_16_bits_at_every_sum():
    """Near ties and multiples of the count, as a runtime divides: (acc +- count / 2) / count."""
    for kernel in [(1, 1), (1, 2), (2, 3), (3, 3), (7, 7), (8, 8), (10, 25)]:
        ops = mean_by_count((1, *kernel), kernel, codes=INT16, format=INT16, rounding="half_away")
        (pool, rescale), n = ops, kernel[0] * kernel[1]
        assert pool.kernel == kernel
        halves = np.arange(-(2**16), 2**16, 7)[:, None] * n // 2 + np.arange(-1, 2)
        sums = halves.ravel()
        half = np.where(sums < 0, -(n // 2), n // 2)
        expected = np.sign(sums) * (np.abs(sums + half) // n)
        got = rescale.forward(sums[:, None])[:, 0]
        assert np.array_equal(got, np.clip(expected, INT16.q_min, INT16.q_max))


def test_a_mean_that_is_not_listed_is_refused():
    many = {"codes": INT16, "format": INT16, "padding": 1}
    with pytest.raises(NotCovered, match="thresholds"):
        mean_by_count((64, 9, 9), 3, 1, rounding="half_even", **many)
    with pytest.raises(NotCovered, match="bits"):
        mean_by_count((1, 2**16, 1), (2**16, 1), rounding="half_away", codes=INT32, format=INT32)


@pytest.mark.parametrize("multiplier", [0, 1, 5])
@pytest.mark.parametrize("zero_point", range(-3, 5))
def test_listed_thresholds_of_any_multiplier_and_zero_point(multiplier, zero_point):
    """0 times anything is the zero point, which may be any code or none."""
    rescale = Rescale(multiplier, 3, IntFormat(2, False), "half_up", zero_point)
    acc = np.arange(-40, 41)[:, None]
    assert (Requantize.from_rescale(rescale).forward(acc) == rescale.forward(acc)).all()
