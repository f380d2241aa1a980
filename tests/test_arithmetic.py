"""The four arithmetics are exact up to their limit; one above it the next narrower one is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refqnn import Interval, Linear
from refqnn.arithmetic import Arithmetic, add, magnitude, matmul, multiply, to_int64_if_possible
from refqnn.ops import Add, Conv2d, GlobalSumPool, SumPool2d


@pytest.mark.parametrize(
    ("mass", "expected"),
    [
        (0, "FLOAT32"),
        (2**24, "FLOAT32"),
        (2**24 + 1, "FLOAT64"),
        (2**53, "FLOAT64"),
        (2**53 + 1, "INT64"),
        (2**63 - 1, "INT64"),
        (2**63, "PYTHON"),
        (2**200, "PYTHON"),
    ],
)
def test_narrowest_arithmetic(mass, expected):
    assert Arithmetic.for_mass(mass).name == expected


@pytest.mark.parametrize("limit", [2**24, 2**53, 2**63 - 1])
def test_the_next_narrower_arithmetic_is_wrong_one_above_its_limit(limit):
    # 1 * limit + 1 * 1 has the mass limit + 1, which the narrower type does not hold.
    x, w = np.array([[limit, 1]]), np.array([[1], [1]])
    narrower = Arithmetic.for_mass(limit)
    with np.errstate(over="ignore"):
        wrong = int((x.astype(narrower.dtype) @ w.astype(narrower.dtype))[0, 0])
    assert wrong != limit + 1
    assert matmul(x, w, limit + 1).tolist() == [[limit + 1]]


@pytest.mark.parametrize("limit", [2**24, 2**53, 2**63])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_small_results_of_large_partial_sums(limit, excess):
    """Terms +-half cancel: the result is small, the mass is limit + excess."""
    half = limit // 2
    weight = np.array([[half, half - 1 + excess, 1 - half - 1, -half + 7, 1]], dtype=object)
    layer = Linear(weight)
    x = np.ones((3, 5), dtype=np.int64)
    mass = layer.prepare(Interval.observed(x))
    assert mass == sum(abs(int(w)) for w in weight[0])
    assert layer.forward(x).tolist() == [[sum(int(w) for w in weight[0])]] * 3


def nearly(limit):
    return st.integers(limit - 2, limit + 2)


@given(
    st.sampled_from([2**24, 2**53, 2**63]).flatmap(nearly),
    st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    st.lists(st.integers(0, 1), min_size=6, max_size=6),
)
def test_linear_on_both_sides_of_every_limit(mass, small, x):
    """One weight is chosen so that the absolute mass is exactly `mass`."""
    big = min(mass - sum(map(abs, small)), 2**63 - 1)
    rest = mass - sum(map(abs, small)) - big
    weights, bias = [big, *small], rest
    codes = [x[0], *(1 for _ in small)]
    box = Interval(np.zeros(len(weights), int), np.ones(len(weights), int))
    layer = Linear([weights], [bias])
    assert layer.prepare(box) == mass
    expected = sum(w * v for w, v in zip(weights, codes)) + bias
    assert layer.forward(np.array([codes]), plan=mass).tolist() == [[expected]]
    positive = sum(w for w in weights if w > 0) + bias
    negative = sum(w for w in weights if w < 0) + bias
    ends = layer.out_range(box)
    assert (ends.lo.tolist(), ends.hi.tolist()) == ([negative], [positive])


@pytest.mark.parametrize("power", [24, 53, 63])
def test_every_sum_leaves_its_type_in_time(power):
    x = np.full((1, 1, 2, 2), 2 ** (power - 2), dtype=np.int64)
    total = 4 * 2 ** (power - 2)
    assert SumPool2d(2).forward(x).tolist() == [[[[total]]]]
    assert GlobalSumPool().forward(x).tolist() == [[total]]
    assert Conv2d(np.ones((1, 1, 2, 2), int)).forward(x).tolist() == [[[[total]]]]
    assert Add().forward(x, x, x, x)[0, 0, 0, 0] == total
    assert Add((-4,)).forward(x)[0, 0, 0, 0] == -total
    assert SumPool2d(2).out_range(Interval.observed(x)).hi.tolist() == [[[total]]]


def test_object_operands_stay_python_integers():
    x = np.array([[2**80, 1]], dtype=object)
    assert matmul(x, np.array([[0], [1]]), 1).tolist() == [[1]]
    assert Linear([[0, 1], [1, 0]]).forward(x).tolist() == [[1, 2**80]]
    padded = Conv2d([[[[2**62, 1]]]], padding=((0, 0), (1, 0)), pad_code=2)
    assert padded.forward(np.array([[[[5]]]])).tolist() == [[[[2**63 + 5]]]]


def test_elementwise_helpers():
    a = np.array([2**62, -(2**63)])
    assert add(a, a).tolist() == [2**63, -(2**64)]
    assert add(a[:1], a[:1]).tolist() == [2**63]
    assert add(a[:1], a[:1] - 1).dtype == np.int64
    assert multiply(a, np.array([2, -1])).tolist() == [2**63, 2**63]
    assert magnitude(a).tolist() == [2**62, 2**63]
    assert to_int64_if_possible(np.array([2**64 - 1], dtype=np.uint64)).tolist() == [2**64 - 1]
