"""Thresholds against brute force: the defining formula at every accumulator, over the rationals."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refqnn import Interval, IntFormat, Linear, Requantize, Rounding, exact, testing
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch
from refqnn.ops.requantize import _least
from refqnn.requantize import ALWAYS, NEVER

MODES = list(Rounding)
ACC = np.arange(-150, 151)

rationals = st.fractions(-3, 3, max_denominator=64) | st.floats(-3, 3, width=32).map(Fraction)
gains = st.fractions(Fraction(1, 200), 3, max_denominator=200) | st.sampled_from(
    [Fraction(1, 2**k) for k in range(8)]
)


def saturate(code, fmt):
    return min(max(code, fmt.q_min), fmt.q_max)


def apply(op, acc=ACC):
    """Codes for every accumulator and channel, by every road there is: [channels][acc]."""
    x = np.repeat(np.asarray(acc)[:, None], op.channels, axis=1)
    direct = op.forward(x)
    plan = op.prepare(Interval.observed(x))
    assert plan is not None
    assert np.array_equal(op.forward(x, plan=plan), direct)
    return direct.T.tolist()


@given(st.data())
def test_from_affine_is_its_formula(data):
    fmt, mode = data.draw(testing.formats(max_bits=6)), data.draw(testing.roundings())
    a = data.draw(st.lists(gains, min_size=1, max_size=2))
    b = data.draw(st.lists(rationals, min_size=len(a), max_size=len(a)))
    zero_point = data.draw(st.integers(fmt.q_min, fmt.q_max))
    ends = sorted(data.draw(st.tuples(*[st.integers(fmt.q_min, fmt.q_max)] * 2)))
    clip = data.draw(st.none() | st.just(tuple(ends)))
    lowest, highest = clip or (fmt.q_min, fmt.q_max)
    op = Requantize.from_affine(a, b, fmt, mode, zero_point=zero_point, clip=clip)
    expected = [
        [
            min(max(exact.round(n * g + o, mode.value) + zero_point, lowest), highest)
            for n in ACC.tolist()
        ]
        for g, o in zip(a, b)
    ]
    assert apply(op) == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shift", [0, 1, 2, 5])
def test_from_shift_is_its_formula(mode, shift):
    fmt = IntFormat(4, signed=True)
    op = Requantize.from_shift(shift, fmt, mode, offset=[0, 3, -7], zero_point=1)
    for row, offset in zip(apply(op), (0, 3, -7)):
        ratios = [Fraction(n + offset, 2**shift) for n in ACC.tolist()]
        assert row == [saturate(exact.round(v, mode.value) + 1, fmt) for v in ratios]
    if mode.value in ("floor", "ceil", "half_up", "half_down"):  # translation invariant
        assert op.shift == shift


def test_half_up_and_floor_are_machine_shifts():
    fmt = IntFormat(8, signed=True)
    for r in range(1, 6):
        half_up, floor = (Requantize.from_shift(r, fmt, mode) for mode in ("half_up", "floor"))
        assert apply(half_up) == [np.clip((ACC + 2 ** (r - 1)) >> r, -128, 127).tolist()]
        assert apply(floor) == [np.clip(ACC >> r, -128, 127).tolist()]
        assert half_up.shift == floor.shift == r
        assert Requantize.from_shift(r, fmt, "half_even").shift is None


@given(st.data())
def test_from_scale_uses_float_scales_exactly(data):
    fmt, mode = data.draw(testing.formats(max_bits=6)), data.draw(testing.roundings())
    scale = st.floats(2.0**-10, 2.0**4, width=32)
    s_in = data.draw(st.lists(scale, min_size=2, max_size=2))
    s_out, bias = data.draw(scale), data.draw(st.floats(-10, 10, width=32))
    op = Requantize.from_scale(
        np.float32(s_in), np.float32(s_out), fmt, mode, bias=np.float32(bias)
    )
    for row, s in zip(apply(op), s_in):
        real = [(n * Fraction(s) + Fraction(bias)) / Fraction(s_out) for n in ACC.tolist()]
        assert row == [saturate(exact.round(v, mode.value), fmt) for v in real]


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_bias_and_relu_fold_without_losing_an_integer(mode):
    """y = relu(gamma * (acc * s + b - mean) / sqrt(var) + beta), quantized: one threshold row."""
    fmt, s, s_out = IntFormat(4, signed=False), Fraction(1, 8), Fraction(1, 4)
    b, mean, root, gamma, beta = (Fraction(v) for v in (0.375, -1.25, 1.5, 0.75, 0.0625))
    gain = gamma * s / root / s_out
    offset = (gamma * (b - mean) / root + beta) / s_out
    op = Requantize.from_affine(gain, offset, fmt, mode)
    for n, code in zip(ACC.tolist(), apply(op)[0]):
        y = max(gamma * (n * s + b - mean) / root + beta, Fraction(0))
        assert code == saturate(exact.round(y / s_out, mode.value), fmt)


# --- fixed-point multipliers ------------------------------------------------------------------


@given(st.data())
def test_from_multiplier_single_rounding(data):
    fmt, mode = data.draw(testing.formats(max_bits=6)), data.draw(testing.roundings())
    mantissa, shift = data.draw(st.integers(1, 2**10)), data.draw(st.integers(0, 12))
    zero_point = data.draw(st.integers(-4, 4))
    op = Requantize.from_multiplier(mantissa, shift, fmt, mode, zero_point=zero_point)
    expected = [
        saturate(exact.round(Fraction(n * mantissa, 2**shift), mode.value) + zero_point, fmt)
        for n in ACC.tolist()
    ]
    assert apply(op) == [expected]


def saturating_rounding_doubling_high_mul(a, b):
    """The 32-bit primitive of integer runtimes: (2 a b + nudge) / 2**32, C division."""
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    total = product + nudge
    return abs(total) // 2**31 * (1 if total >= 0 else -1)


def rounding_divide_by_pot(x, exponent):
    """Mask, remainder, threshold: halves away from zero."""
    mask = (1 << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


@pytest.mark.parametrize("mantissa", [2**30, 2**31 - 1, 1518500250, 1073741825, 1610612736])
@pytest.mark.parametrize("right_shift", [0, 1, 3, 7])
def test_double_rounding_is_that_of_integer_runtimes(mantissa, right_shift):
    fmt = IntFormat(8, signed=True)
    acc = np.concatenate([np.arange(-3000, 3000), np.arange(-(2**20), 2**20, 997)])
    op = Requantize.from_multiplier(
        mantissa, 31 + right_shift, fmt, "half_away", zero_point=-5, first_rounding="half_up"
    )
    expected = []
    for n in acc.tolist():
        p = saturating_rounding_doubling_high_mul(n, mantissa)
        expected.append(saturate(rounding_divide_by_pot(p, right_shift) - 5, fmt))
    assert op.forward(acc[:, None])[:, 0].tolist() == expected


def test_double_rounding_differs_from_single():
    fmt = IntFormat(8, signed=True)
    once = Requantize.from_multiplier(3 * 2**29, 33, fmt, "half_up")
    twice = Requantize.from_multiplier(3 * 2**29, 33, fmt, "half_up", first_rounding="half_up")
    assert apply(once) != apply(twice)


@given(st.data())
def test_every_pair_of_roundings(data):
    first, last = data.draw(testing.roundings()), data.draw(testing.roundings())
    mantissa, r, extra = data.draw(
        st.tuples(st.integers(1, 99), st.integers(0, 6), st.integers(0, 6))
    )
    fmt = IntFormat(5, signed=True)
    op = Requantize.from_multiplier(
        mantissa, r + extra, fmt, last, first_rounding=first, first_shift=r
    )
    expected = []
    for n in ACC.tolist():
        p = exact.round(Fraction(n * mantissa, 2**r), first.value)
        expected.append(saturate(exact.round(Fraction(p, 2**extra), last.value), fmt))
    assert apply(op) == [expected]


# --- functions and tables ---------------------------------------------------------------------

FLOAT32_FUNCTIONS = {
    "sigmoid": lambda v: np.float32(1) / (np.float32(1) + np.exp(-v)),
    "tanh": lambda v: np.tanh(v) * np.float32(0.5) + np.float32(0.5),
    "relu": lambda v: np.maximum(v, np.float32(0)) * np.float32(0.125),
    "step": lambda v: (v > 0).astype(np.float32),
    "constant": lambda v: np.zeros_like(v) + np.float32(0.4),
}


@pytest.mark.parametrize("name", FLOAT32_FUNCTIONS)
@pytest.mark.parametrize("bits", [1, 3, 6])
def test_from_function_equals_the_function_everywhere(name, bits):
    fmt = IntFormat(bits, signed=False)
    s = np.array([[0.05], [0.31]], dtype=np.float32)  # [channels, 1]

    def code(acc):
        v = FLOAT32_FUNCTIONS[name](acc.astype(np.float32) * s)
        return np.clip(np.rint(v * np.float32(fmt.q_max)), 0, fmt.q_max).astype(np.int64)

    lo, hi = [-150, -77], [150, 10]
    op = Requantize.from_function(code, lo, hi, fmt)
    both = np.stack([ACC, ACC])
    expected, got = code(both), op.forward(both.T).T
    for c in range(2):
        inside = (lo[c] <= ACC) & (hi[c] >= ACC)
        assert got[c][inside].tolist() == expected[c][inside].tolist()


def test_a_decreasing_function_is_a_negated_weight_row():
    fmt = IntFormat(3, signed=False)
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-3, 4, (2, 6)), np.array([5, -2])
    x = rng.integers(0, 8, (200, 6))

    def decreasing(acc):  # gamma < 0 in a batch norm
        return np.clip(np.rint(np.float32(-0.3) * acc.astype(np.float32) + 3), 0, 7).astype(
            np.int64
        )

    expected = decreasing(Linear(weight, bias).forward(x))
    bound = [200, 200]
    op = Requantize.from_function(lambda acc: decreasing(-acc), [-200, -200], bound, fmt)
    assert np.array_equal(op.forward(Linear(-weight, -bias).forward(x)), expected)
    with pytest.raises(InvalidArgument, match="expected nondecreasing"):
        Requantize.from_function(decreasing, [-200, -200], bound, fmt)


def test_functions_that_are_not_monotone_are_refused():
    fmt = IntFormat(3, signed=False)
    with pytest.raises(InvalidArgument, match="expected nondecreasing"):
        Requantize.from_function(lambda acc: np.abs(acc) % 8, [-20], [20], fmt)
    with pytest.raises(OutOfRange, match="value of function"):
        Requantize.from_function(lambda acc: acc, [-20], [20], fmt)
    with pytest.raises(InvalidType, match="non-integers"):
        Requantize.from_function(lambda acc: acc / 40 + 1, [-20], [20], fmt)
    with pytest.raises(ShapeMismatch, match="value of function"):
        Requantize.from_function(lambda acc: np.array([1]), [-20], [20], fmt)
    with pytest.raises(InvalidArgument, match="lo"):
        Requantize.from_function(lambda acc: acc, [20], [-20], fmt)
    with pytest.raises(OutOfRange):
        Requantize.from_function(lambda acc: acc, [-(2**62)], [0], fmt)


@pytest.mark.parametrize("mode", Rounding, ids=str)
@pytest.mark.parametrize("low", [1, 2**40 + 1])
@pytest.mark.parametrize("gain", [Fraction(1, 2**20), Fraction(3, 2**24), Fraction(7)])
def test_thresholds_of_numbers_beyond_int64_are_exact(mode, low, gain):
    codes, offset = np.arange(-3, 4) * 2**8, Fraction(5, low)
    for code, least in zip(codes.tolist(), _least(gain, offset, codes, mode).tolist()):
        assert exact.round(least * gain + offset, mode) >= code
        assert exact.round((least - 1) * gain + offset, mode) < code


@pytest.mark.parametrize("n", range(3, 9))
def test_a_fall_is_refused_wherever_it_is(n):
    for place in range(2, n):
        table = np.arange(n)
        table[place] = table[place - 1] - 1
        with pytest.raises(InvalidArgument, match="expected nondecreasing"):
            Requantize.from_function(lambda acc, t=table: t[acc], [0], [n - 1], IntFormat(3, False))


@given(st.data())
def test_from_table_is_the_table(data):
    fmt = data.draw(testing.formats(max_bits=4))
    table = np.sort(data.draw(testing.codes(fmt, (2, 9))), axis=1)
    lo = data.draw(st.integers(-20, 20))
    op = Requantize.from_table(table, lo, fmt)
    assert apply(op, np.arange(lo, lo + 9)) == table.tolist()
    outside = op.forward(np.array([[lo - 5] * 2, [lo + 20] * 2]))  # [2, channels]
    assert outside.T.tolist() == [[row[0], row[-1]] for row in table.tolist()]


def test_from_table_errors():
    fmt = IntFormat(2, signed=False)
    with pytest.raises(InvalidArgument, match="decreasing"):
        Requantize.from_table([[1, 0]], 0, fmt)
    with pytest.raises(OutOfRange, match="table"):
        Requantize.from_table([[0, 4]], 0, fmt)
    with pytest.raises(InvalidType, match="lo"):
        Requantize.from_table([[0, 1]], 0.0, fmt)


# --- the node ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels_bits", [1, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_road_gives_the_definition(levels_bits, channels):
    """Comparisons, binary search and table, on images, against the counting formula."""
    rng = np.random.default_rng(levels_bits)
    fmt = IntFormat(levels_bits, signed=True)
    thresholds = np.sort(rng.integers(-40, 40, (channels, fmt.levels - 1)), axis=1)
    thresholds[0, :1], thresholds[-1, -1:] = ALWAYS, NEVER
    op = Requantize(thresholds, fmt)
    acc = rng.integers(-60, 60, (5, 3, 4, 2))
    expected = np.array([exact.apply(op, [sample]) for sample in acc.tolist()])
    assert np.array_equal(op.forward(acc), expected)
    assert np.array_equal(op.forward(acc, plan=op.prepare(Interval.observed(acc))), expected)
    python_integers = acc.astype(object)  # small values out of a sum that could have been large
    plan = op.prepare(Interval.observed(acc))
    assert np.array_equal(op.forward(python_integers), expected)
    assert np.array_equal(op.forward(python_integers, plan=plan), expected)


def test_tables_at_the_ends_of_int64():
    lowest, highest = ALWAYS + 1, NEVER - 1
    op = Requantize([[lowest + 2], [highest - 2]], IntFormat(1, signed=False))
    acc = np.array([[lowest + k, highest - 4 + k] for k in range(5)])
    plan = op.prepare(Interval.observed(acc))
    assert op.forward(acc, plan=plan).T.tolist() == [[0, 0, 1, 1, 1]] * 2
    swapped = Requantize(op.thresholds[::-1], op.format)
    plan = swapped.prepare(Interval.observed(acc[:, ::-1]))
    assert swapped.forward(acc[:, ::-1], plan=plan).T.tolist() == [[0, 0, 1, 1, 1]] * 2


def test_wide_ranges_have_no_table():
    op = Requantize.from_shift(20, IntFormat(8, signed=True))
    wide = Interval(np.array([-(2**40)]), np.array([2**40]))
    assert op.prepare(wide) is None
    assert op.out_range(wide).hi.tolist() == [127]


def test_shift_recognition():
    fmt = IntFormat(2, signed=False)
    assert Requantize([[3, 7, 11]], fmt).shift == 2
    assert Requantize([[3, 7, 11], [0, 4, 8]], fmt).shift == 2
    assert Requantize([[3, 7, 11], [0, 2, 4]], fmt).shift is None
    assert Requantize([[3, 6, 9]], fmt).shift is None
    assert Requantize([[3, 3, 3]], fmt).shift is None
    assert Requantize([[ALWAYS, 7, 11]], fmt).shift == 2
    assert Requantize([[ALWAYS, 7, NEVER]], fmt).shift is None
    assert Requantize([[ALWAYS, 7, NEVER], [1, 9, 17]], fmt).shift == 3


@given(st.data())
def test_a_shift_computes_the_codes(data):
    """Where `shift` is r: code = first + clip((acc - first threshold) >> r) + 1 per channel."""
    fmt = IntFormat(data.draw(st.integers(2, 4)), signed=True)
    r = data.draw(st.integers(0, 4))
    start = data.draw(st.integers(-30, 30))
    op = Requantize([[start + (k << r) for k in range(fmt.levels - 1)]], fmt)
    assert op.shift == r
    shifted = np.clip(((ACC - start) >> r) + 1 + fmt.q_min, fmt.q_min, fmt.q_max)
    assert apply(op) == [shifted.tolist()]


def test_accumulators_at_the_sentinels_are_refused():
    op = Requantize([[0]], IntFormat(1, signed=False))
    for value in (2**63 - 1, -(2**63), 2**70):
        with pytest.raises(OutOfRange, match="input of Requantize"):
            op.forward(np.array([[value]], dtype=object))
        end = np.array([value], dtype=object)
        with pytest.raises(OutOfRange):
            op.out_range(Interval(end, end))
    assert op.forward(np.array([[2**63 - 2], [-(2**63) + 1]])).tolist() == [[1], [0]]


def test_thresholds_beyond_int64_become_sentinels():
    fmt = IntFormat(1, signed=False)
    tiny = Requantize.from_affine(Fraction(1, 2**80), 0, fmt, "floor")
    assert tiny.thresholds.tolist() == [[NEVER]]
    assert Requantize.from_affine(Fraction(1, 2**80), 5, fmt, "floor").thresholds.tolist() == [
        [ALWAYS]
    ]


@pytest.mark.parametrize(
    ("thresholds", "error"),
    [
        ([[0, 1]], ShapeMismatch),
        ([0, 1, 2], ShapeMismatch),
        ([[2, 1, 3]], InvalidArgument),
        ([[0.0, 1.0, 2.0]], InvalidType),
        ([[0, 1, 2**63]], OutOfRange),
        ([["0", "1", "2"]], InvalidType),
        (None, InvalidType),
    ],
)
def test_bad_thresholds(thresholds, error):
    with pytest.raises(error, match="thresholds"):
        Requantize(thresholds, IntFormat(2, signed=False))
    with pytest.raises(ShapeMismatch, match=r"shape \(1, 4\), expected \[channels or 1, 3\] for"):
        Requantize([[0, 1, 2, 3]], IntFormat(2, signed=False))


def test_bad_arguments():
    fmt = IntFormat(2, signed=False)
    for gain in (0, -1.0, [1.0, -1.0]):
        with pytest.raises(InvalidArgument, match="gain"):
            Requantize.from_affine(gain, 0, fmt, "floor")
    for gain in (np.nan, np.inf, "1", ["1/2"], None, [], [[1.0]], True):
        with pytest.raises(InvalidType, match="gain"):
            Requantize.from_affine(gain, 0, fmt, "floor")
    with pytest.raises(ShapeMismatch, match="offset"):
        Requantize.from_affine([1, 2, 3], [0, 1], fmt, "floor")
    with pytest.raises(InvalidArgument, match="clip"):
        Requantize.from_affine(1, 0, fmt, "floor", clip=(0, 4))
    with pytest.raises(InvalidType, match="zero_point"):
        Requantize.from_affine(1, 0, fmt, "floor", zero_point=0.5)
    with pytest.raises(InvalidArgument, match="scale_out"):
        Requantize.from_scale(1.0, 0.0, fmt, "floor")
    with pytest.raises(InvalidType, match="format"):
        Requantize.from_scale(1.0, 1.0, 8, "floor")
    with pytest.raises(InvalidArgument, match="listed"):
        Requantize.from_scale(1.0, 1.0, IntFormat(32, signed=True), "floor")
    with pytest.raises(InvalidArgument, match="shift"):
        Requantize.from_shift(63, fmt)
    with pytest.raises(InvalidType, match="shift"):
        Requantize.from_shift(1.0, fmt)
    with pytest.raises(OutOfRange, match="mantissa"):
        Requantize.from_multiplier(0, 1, fmt)
    with pytest.raises(OutOfRange, match="shift"):
        Requantize.from_multiplier(1, 30, fmt, first_rounding="half_up")
    with pytest.raises(ShapeMismatch, match="3 channels first"):
        Requantize([[0, 1, 2]] * 3, fmt).out_shape((2,))


@settings(max_examples=30)
@given(st.data())
def test_out_range_is_exact(data):
    x = testing.Value("x", Interval(np.array([-9, -2]), np.array([4, 9])))
    op = data.draw(testing.ops("Requantize", x))
    values = np.array(np.meshgrid(range(-9, 5), range(-2, 10))).reshape(2, -1).T
    codes = op.forward(values)
    expected = Interval.observed(codes)
    got = op.out_range(x.range)
    assert (got.lo.tolist(), got.hi.tolist()) == (expected.lo.tolist(), expected.hi.tolist())


# --- every constructor, around each threshold, in fractions -------------------------------------

FAR = [0, 1, -3, 2**31, 2**61, 2**62 - 1, -(2**62), 2**63 - 1, -(2**63)]


def made(rng: random.Random, fmt: IntFormat, zero_point: int):
    """A Requantize, and what it computes before zero point and saturation, as a function of acc."""
    mode, kind = rng.choice(MODES).value, rng.choice(["shift", "affine", "multiplier", "double"])
    if kind == "shift":
        shift, offset = rng.choice([0, 1, 5, 62]), rng.choice([0, 3, -7, 2**40])
        op = Requantize.from_shift(shift, fmt, mode, offset=offset, zero_point=zero_point)
        return op, lambda acc: exact.round(Fraction(acc + offset, 2**shift), mode)
    if kind == "affine":
        gain = Fraction(rng.randint(1, 10**6), rng.randint(1, 10**6))
        offset = Fraction(rng.randint(-(10**9), 10**9), rng.randint(1, 1000))
        op = Requantize.from_affine(gain, offset, fmt, mode, zero_point=zero_point)
        return op, lambda acc: exact.round(acc * gain + offset, mode)
    m = rng.randint(1, 2**32 - 1)
    first_shift = rng.choice([0, 1, 31])
    shift = rng.randint(first_shift, 62)
    if kind == "multiplier":
        op = Requantize.from_multiplier(m, shift, fmt, mode, zero_point=zero_point)
        return op, lambda acc: exact.round(Fraction(acc * m, 2**shift), mode)
    first = rng.choice(MODES).value
    op = Requantize.from_multiplier(
        m, shift, fmt, mode, zero_point=zero_point, first_rounding=first, first_shift=first_shift
    )

    def twice(acc: int) -> int:
        p = exact.round(Fraction(acc * m, 2**first_shift), first)
        return exact.round(Fraction(p, 2 ** (shift - first_shift)), mode)

    return op, twice


@pytest.mark.parametrize("seed", range(40))
def test_every_constructor_around_each_of_its_thresholds(seed):
    rng = random.Random(seed)
    for _ in range(12):
        fmt = IntFormat(rng.choice([1, 2, 3]), signed=rng.random() < 0.5)
        zero_point = rng.choice(FAR)
        op, value = made(rng, fmt, zero_point)
        near = {t + d for t in op.thresholds.ravel().tolist() for d in (-1, 0, 1)}
        for acc in near | {0, rng.randint(-(2**62), 2**62)}:
            if ALWAYS < acc < NEVER:
                code = min(max(value(acc) + zero_point, fmt.q_min), fmt.q_max)
                assert op.forward(np.array([[acc]])).tolist() == [[code]]


@pytest.mark.parametrize("first_shift", [[0, 2], 1])
def test_clips_and_first_shifts_of_each_channel(first_shift):
    fmt, clip = IntFormat(4, signed=True), np.array([[-8, 3], [-2, 5]])
    acc = np.arange(-99, 100)
    op = Requantize.from_multiplier(
        *([3, 9], [2, 4], fmt, "half_even"),
        clip=clip,
        first_rounding="floor",
        first_shift=first_shift,
    )
    shifted = Requantize.from_shift(2, fmt, "floor", offset=[0, 7], clip=clip)
    affine = Requantize.from_affine(1, 0, fmt, "floor", clip=clip)
    for c, (m, s, first) in enumerate(zip([3, 9], [2, 4], np.broadcast_to(first_shift, 2))):
        lo, hi = clip[c].tolist()
        for a in acc.tolist():
            p = a * m // 2 ** int(first)
            expected = exact.round(Fraction(p, 2 ** (s - int(first))), "half_even")
            x = np.array([[a, a]])
            assert op.forward(x)[0, c] == min(max(expected, lo), hi)
            assert shifted.forward(x)[0, c] == min(max((a + 7 * c) // 4, lo), hi)
            assert affine.forward(x)[0, c] == min(max(a, lo), hi)
    with pytest.raises(ShapeMismatch, match="clip"):
        Requantize.from_affine([1, 2, 3], 0, fmt, "floor", clip=clip)


@pytest.mark.parametrize("bits", [4, 13, 54, 62])
def test_a_function_is_asked_inside_its_range_alone(bits):
    """from_function: the code of every accumulator in [lo, hi]; elsewhere it may mean nothing."""
    lo, hi = -(2**bits) + 1, 2**bits - 1

    def step(acc):
        assert lo <= acc.min() <= acc.max() <= hi
        return (acc >= 3).astype(np.int64)

    made = Requantize.from_function(step, lo, hi, IntFormat(1, signed=False))
    assert made.thresholds.tolist() == [[3]]
