"""Fan-ins and projections for accumulators in stages, against every input."""

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refqnn import (
    Accumulator,
    Conv2d,
    IntFormat,
    Linear,
    Network,
    Node,
    Stage,
    certify,
    max_fan_in,
    omega,
    testing,
)
from refqnn.accumulator import Verdict
from refqnn.errors import InvalidArgument, OutOfRange, ShapeMismatch
from refqnn.pruning import project

FORMATS = st.sampled_from([IntFormat(b, signed=s) for b, s in ((1, False), (2, False), (2, True))])


def leaves(accumulator, products, bias):
    """Does any register leave its range for these products, summed as `refqnn.emulate` says?"""
    values = products
    for number, stage in enumerate(accumulator.stages):
        if number == len(accumulator.stages) - 1 and accumulator.bias != "outside":
            values = [bias, *values] if accumulator.bias == "first" else [*values, bias]
        size = stage.group or max(1, len(values))
        lowest = -(2 ** (stage.width - 1)) if stage.signed else 0
        made = []
        for i in range(0, len(values), size):
            group, acc = values[i : i + size], 0
            for value in [sum(group)] if stage.when == "end" else group:
                acc += value
                if not lowest <= acc < lowest + 2**stage.width:
                    return True
            made.append(acc)
        values = made
    return False


@given(
    testing.accumulators(max_bits=7),
    st.sampled_from([(-2, 1), (0, 3), (-1, 1), (-3, -1)]),
    st.sampled_from([(0, 3), (-2, 1), (0, 1)]),
    st.sampled_from([(0, 0), (-3, 2), (1, 4), (-5, -5)]),
)
def test_max_fan_in_is_the_last_that_never_overflows(accumulator, weights, inputs, biases):
    last = accumulator.stages[-1].ends
    assume(last[0] <= min(biases[0], 0) and max(biases[1], 0) <= last[1])
    fan_in = max_fan_in(weights, inputs, biases, accumulator)
    ends = [w * x for w, x in product(weights, inputs)]
    most = 130 if fan_in is None else fan_in + 1

    def overflows(k):
        """Extreme products alone decide: sums are monotone in each."""
        return any(leaves(accumulator, [p] * k, b) for p in (min(ends), max(ends)) for b in biases)

    worst = [k for k in range(1, most + 1) if overflows(k)]
    assert worst == ([] if fan_in is None else [fan_in + 1])


def test_omega_of_stages():
    tiles = Accumulator([Stage(4, False, group=4), Stage(8, False)])
    assert omega(tiles, 2, 2) == 15 // 9  # one product fits a tile of four
    wide = Accumulator([Stage(6, False, group=4), Stage(8, False)])
    assert omega(wide, 2, 2) == omega(8, 2, 2) == 28


@st.composite
def budgets(draw):
    accumulator = draw(testing.accumulators(max_bits=7))
    fmt = draw(FORMATS)
    k = draw(st.integers(1, 5))
    numbers = st.floats(-5, 5, allow_nan=False) | st.integers(-4, 4).map(float)
    weight = draw(st.lists(numbers, min_size=k, max_size=k))
    low, high = (min(abs(end), 5) for end in accumulator.stages[-1].ends)
    bias = draw(st.none() | st.integers(-low, high))
    return accumulator, fmt, [weight], None if bias is None else [bias]


@given(budgets())
def test_no_register_overflows_after_the_projection(budget):
    accumulator, fmt, weight, bias = budget
    codes = project(weight, bias, (fmt.q_min, fmt.q_max), accumulator)
    network = Network(
        [Node("fc", Linear(codes, bias))], input_shape=codes.shape[1:], input_format=fmt
    )
    reports = certify(network, accumulator=accumulator)["fc"]
    assert [report.verdict for report in reports] == [Verdict.FITS] * len(accumulator.stages)
    rounded = np.rint(weight).astype(int)
    assert (np.sign(codes) * np.sign(weight) >= 0).all()
    assert (np.abs(codes) <= np.ceil(np.abs(weight))).all()
    natural = Network(
        [Node("fc", Linear(rounded, bias))], input_shape=codes.shape[1:], input_format=fmt
    )
    verdicts = {r.verdict for r in certify(natural, accumulator=accumulator).stages}
    if verdicts == {Verdict.FITS} and fmt.q_min == 0:  # then the budgets are exact
        assert np.array_equal(codes, rounded)


@given(
    st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(4, 8),
    st.integers(-3, 3),
)
def test_one_register_is_a_width(weight, bits, bias):
    one = Accumulator([Stage(bits)], bias="first")
    biases = [bias] * len(weight)
    expected = project(weight, biases, (0, 3), bits)
    assert np.array_equal(project(weight, biases, (0, 3), one), expected)


def test_tiles_of_a_convolution_run_through_the_channels():
    """Kernel [4 channels, 1, 2]; the pairs of channels at one place share a register."""
    weight = np.full((1, 4, 1, 2), 2.0)
    pairs = [Stage(5, group=2), Stage(8)]
    fmt = IntFormat(3, signed=False)
    for order in ("forward", "channels_last"):
        accumulator = Accumulator(pairs, order)
        codes = project(weight, None, (0, 7), accumulator)
        assert np.abs(codes).sum() == 4 * 2  # 7 * 2 <= 15
        conv = Node("conv", Conv2d(codes))
        network = Network([conv], input_shape=(4, 1, 3), input_format=fmt)
        reports = certify(network, method="interval", accumulator=accumulator)["conv"]
        assert [report.verdict for report in reports] == [Verdict.FITS] * 2
    uneven = weight.copy()
    uneven[0, :, 0, 1] = 0
    assert project(uneven, None, (0, 7), Accumulator(pairs)).sum() == 8
    assert project(uneven, None, (0, 7), Accumulator(pairs, "channels_last")).sum() == 4


def test_the_sum_of_tiles_needs_its_own_bits():
    """Two tiles of six bits need seven; with six for both, the row is shrunk again."""
    weight = [[4.0, 4.0, 4.0, 4.0]]
    inner = Stage(6, group=2)
    assert project(weight, None, (0, 7), Accumulator([inner, Stage(7)])).tolist() == [[2, 2, 2, 2]]
    assert project(weight, None, (0, 7), Accumulator([inner, Stage(6)])).tolist() == [[1, 1, 1, 1]]


def test_the_bias_is_charged_where_it_enters():
    weight = [[4.0, 4.0]]

    def total(bias):
        accumulator = Accumulator([Stage(6)], bias=bias)
        return int(project(weight, [-10], (0, 7), accumulator).sum())

    assert total("first") == 5  # 35 - 10 <= 31
    assert total("last") == 4  # 35 would stand in the register before the bias comes
    assert total("outside") == 4


def test_bad_input():
    with pytest.raises(OutOfRange, match="bias"):
        project([[1.0]], [8], (0, 1), Accumulator([Stage(4)]))
    with pytest.raises(OutOfRange, match="bias"):
        project([[1.0]], [-1], (0, 1), Accumulator([Stage(4, False)]))
    with pytest.raises(ShapeMismatch, match="order"):
        project([[1.0]], None, (0, 1), Accumulator([Stage(4)], order=[1, 0]))
    with pytest.raises(InvalidArgument):
        omega(Accumulator([Stage(4)]), 0, 1)
