"""Masks per row, and the projection that keeps an accumulator inside its width."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refqnn import (
    Accumulator,
    IntFormat,
    Linear,
    Network,
    Node,
    Stage,
    certify,
    exact,
    max_fan_in,
    omega,
)
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch
from refqnn.pruning import Register, fan_in_mask, project, sign_budgets


@st.composite
def problems(draw):
    """Weights, a bias that fits, an input format, a width."""
    bits = draw(st.integers(3, 12))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    seed, size = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.3, 2.0, 30.0]))
    weight = np.random.default_rng(seed).normal(0, size, (rows, columns))
    if draw(st.booleans()):
        weight = np.rint(weight * 2) / 2  # ties
    half = 2 ** (bits - 1)
    bias = draw(st.lists(st.integers(-half, half - 1), min_size=rows, max_size=rows))
    fmt = draw(
        st.sampled_from(
            [IntFormat(1, False), IntFormat(3, False), IntFormat(3, True), IntFormat(2, True, True)]
        )
    )
    return weight, bias if draw(st.booleans()) else None, fmt, bits


def corner_sums(codes, bias, lo, hi):
    """The ends of each row's accumulator, one input after another, in Python integers."""
    ends = []
    for row, b in zip(codes.tolist(), [0] * len(codes) if bias is None else bias):
        low = b + sum(min(w * lo, w * hi) for w in row)
        ends.append((low, b + sum(max(w * lo, w * hi) for w in row)))
    return ends


@given(problems())
def test_no_input_leaves_the_width(problem):
    weight, bias, fmt, bits = problem
    codes = project(weight, bias, (fmt.q_min, fmt.q_max), bits)
    for low, high in corner_sums(codes, bias, fmt.q_min, fmt.q_max):
        assert -(2 ** (bits - 1)) <= low
        assert high <= 2 ** (bits - 1) - 1
    network = Network(
        [Node("fc", Linear(codes, bias))], input_shape=(weight.shape[1],), input_format=fmt
    )
    assert certify(network, method="interval")["fc"].signed_bits <= bits


@given(problems())
def test_what_fits_is_only_rounded_and_nothing_grows(problem):
    weight, bias, fmt, bits = problem
    codes = project(weight, bias, (fmt.q_min, fmt.q_max), bits)
    rounded = np.rint(weight).astype(int)
    low_limit, high_limit = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    ends = corner_sums(rounded, bias, min(fmt.q_min, 0), max(fmt.q_max, 0))
    for i, (low, high) in enumerate(ends):
        if low_limit <= low and high <= high_limit:
            assert codes[i].tolist() == rounded[i].tolist()
    assert (codes * np.sign(weight) >= 0).all()
    assert (np.abs(codes) <= np.ceil(np.abs(weight))).all()


@given(problems())
def test_unsigned_inputs_use_the_whole_budget(problem):
    """Where a sign part had to shrink, one more unit of it would not fit."""
    weight, bias, _, bits = problem
    x_hi, half = 7, 2 ** (bits - 1)
    codes = project(weight, bias, (0, x_hi), bits)
    rounded = np.rint(weight).astype(int)
    for i, b in enumerate([0] * len(codes) if bias is None else bias):
        for sign, room in ((1, half - 1 - b), (-1, half + b)):
            used = int(np.maximum(sign * codes[i], 0).sum())
            wanted = int(np.maximum(sign * rounded[i], 0).sum())
            assert used == min(wanted, room // x_hi)


@given(problems())
def test_the_second_route_gives_the_same_integers(problem):
    weight, bias, fmt, bits = problem
    ends = (fmt.q_min, fmt.q_max)
    assert project(weight, bias, ends, bits).tolist() == exact.project(weight, bias, ends, bits)


def test_the_second_route_keeps_the_places_of_kernels():
    kernel = np.resize([2.6, -1.4, 0.7, 3.2, -2.5], (2, 2, 3, 2))
    assert project(kernel, None, (0, 1), 5).tolist() == exact.project(kernel, None, (0, 1), 5)


@given(st.lists(st.sampled_from([0.0, 0.4, 0.5, 1.0, 1.5, 2.5, 1 / 3]), min_size=1, max_size=4))
def test_the_nearest_of_all_integer_rows(row):
    """By trying every row; of the nearest the largest in lexicographic order."""
    rounded = sum(np.rint(row))
    for budget in range(8):
        every = product(*(range(4) for _ in row))
        candidates = [w for w in every if sum(w) == budget]
        if budget >= rounded:
            continue
        distance = {w: sum((Fraction(v) - u) ** 2 for u, v in zip(w, row)) for w in candidates}
        best = max(w for w in candidates if distance[w] == min(distance.values()))
        assert project([row], [7 - budget], (0, 1), 4).tolist() == [list(best)]


def test_equal_remainders_go_to_the_earlier_weight():
    # tau is 1/6: three equal remainders, which float64 tells apart.
    assert project([[0.5, 1.5, 1.5]], None, (0, 1), 3).tolist() == [[1, 1, 1]]
    assert project([[1.1, 0.1, 2.1]], [1], (0, 1), 3).tolist() == [[1, 0, 1]]
    # Sum 6.5 is within the budget of 7, the rounded sum 8 is not: the whole budget is used.
    assert project([[1.5, 1.5, 3.5]], None, (0, 1), 4).tolist() == [[2, 2, 3]]


@given(st.data())
def test_budgets_are_met_and_not_wasted(data):
    P, N = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 300))
    lo, hi = data.draw(st.sampled_from([(0, 7), (-4, 3), (-3, 0), (0, 0), (2, 5), (-1, 1)]))
    b, bits = data.draw(st.integers(-128, 127)), data.draw(st.integers(8, 12))
    (p,), (n,) = (v.tolist() for v in sign_budgets([P], [N], [b], (lo, hi), bits))
    assert ([p], [n]) == exact.sign_budgets([P], [N], [b], (lo, hi), bits)
    s, t = max(0, -lo), max(0, hi)
    up, down = 2 ** (bits - 1) - 1 - b, 2 ** (bits - 1) + b

    def fits(p, n):
        return t * p + s * n <= up and s * p + t * n <= down

    assert fits(p, n)
    assert (p, n) == (P, N) or not fits(p + 1, n + 1)
    if min(s, t) == 0:
        assert p == P or not fits(p + 1, n)
        assert n == N or not fits(p, n + 1)


def test_largest_weights_survive():
    assert project([[5.0, 1.0, 1.0, 1.0]], None, (0, 1), 3).tolist() == [[3, 0, 0, 0]]
    assert project([[2.0, 2.0, 2.0]], None, (0, 1), 3).tolist() == [[1, 1, 1]]
    assert project([[1.9, 1.4, -0.2]], None, (0, 1), 3).tolist() == [[2, 1, 0]]


def test_shapes_of_convolutions():
    weight = np.random.default_rng(0).normal(0, 3, (4, 2, 3, 3))
    codes = project(weight, None, (0, 3), 7)
    assert codes.shape == weight.shape
    assert (codes.reshape(4, -1) == project(weight.reshape(4, -1), None, (0, 3), 7)).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9), st.integers(0, 10))
def test_masks_are_per_row(seed, rows, columns, fan_in):
    weight = np.random.default_rng(seed).integers(-4, 5, (rows, columns))
    mask = fan_in_mask(weight, fan_in)
    for row, kept in zip(weight, mask):
        assert kept.sum() == min(fan_in, columns)
        order = sorted(range(columns), key=lambda i: (-abs(row[i]), i))
        assert sorted(order[: min(fan_in, columns)]) == np.flatnonzero(kept).tolist()


def test_a_mask_from_max_fan_in_is_sound_and_one_from_omega_is_not():
    weight = np.full((2, 64), -2)
    for fan_in, fits in ((max_fan_in((-2, 1), (0, 3), (0, 0), (-128, 127)), True),
                         (omega(8, 2, 2), False)):  # fmt: skip
        network = Network(
            [Node("fc", Linear(weight * fan_in_mask(weight, fan_in)))],
            input_shape=(64,),
            input_format=IntFormat(2, False),
        )
        assert (certify(network, method="interval")["fc"].signed_bits <= 8) == fits


def test_arguments():
    with pytest.raises(OutOfRange, match="bias"):
        project([[1.0]], [8], (0, 1), 4)
    with pytest.raises(InvalidArgument, match="bits"):
        project([[1.0]], None, (0, 1), 1)
    with pytest.raises(InvalidType, match="bits"):
        project([[1.0]], None, (0, 1), 8.0)
    with pytest.raises(InvalidType, match="bias"):
        project([[1.0]], [0.5], (0, 1), 8)
    with pytest.raises(ShapeMismatch, match="bias"):
        project([[1.0]], [1, 2], (0, 1), 8)
    with pytest.raises(ShapeMismatch, match="weight"):
        project([1.0], None, (0, 1), 8)
    with pytest.raises(OutOfRange, match=r"weight.*below 2\*\*31"):
        project([[2.0**31]], None, (0, 1), 8)
    with pytest.raises(OutOfRange, match="P"):
        sign_budgets([-1], [0], None, (0, 1), 8)
    with pytest.raises(ShapeMismatch, match="N"):
        sign_budgets([1, 2], [0], None, (0, 1), 8)
    with pytest.raises(InvalidType, match="P"):
        sign_budgets([1.0], [0], None, (0, 1), 8)
    with pytest.raises(InvalidArgument, match="NaN"):
        project([[np.nan]], None, (0, 1), 8)
    with pytest.raises(InvalidArgument, match="input_range"):
        project([[1.0]], None, (1, 0), 8)
    with pytest.raises(InvalidArgument, match="fan_in"):
        fan_in_mask([[1.0]], -1)
    with pytest.raises(InvalidType, match="fan_in"):
        fan_in_mask([[1.0]], 1.5)


def test_the_bias_that_does_not_fit_is_named():
    unsigned = Accumulator([Stage(6, False)])
    with pytest.raises(OutOfRange, match=r"bias: got -3, .*\[0, 63\]"):
        project([[1.0], [1.0]], [4, -3], (0, 3), unsigned)
    for bias, worst in (([-8, 8], 8), ([7, -9], -9), ([-8, 7, 9, -9], 9), ([8, -10], -10)):
        weight = np.ones((len(bias), 1))
        with pytest.raises(OutOfRange, match=f"bias: got {worst}, "):
            project(weight, bias, (0, 3), 4)
        with pytest.raises(OutOfRange, match=f"bias: got {worst}, "):
            sign_budgets([1] * len(bias), [0] * len(bias), bias, (0, 3), 4)


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15)])
def test_the_room_beside_a_bias_is_what_both_sums_fit_into(low, high):
    """Register: "any" where the products have to fit without the bias too."""
    register = Register(None, low, high, "any")
    for bias in range(low, high + 1):
        fits = [p for p in range(-40, 41) if low <= p <= high and low <= bias + p <= high]
        assert register.room(bias) == (max(fits), -min(fits))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (3,), ()])
def test_weights_without_rows_or_entries_are_refused(shape):
    with pytest.raises(ShapeMismatch, match="weight"):
        project(np.zeros(shape), None, (0, 3), 8)
