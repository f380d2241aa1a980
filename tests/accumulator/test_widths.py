"""omega and max_fan_in against brute force over every small case."""

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refqnn import IntFormat, max_fan_in, omega, signed_bits, span_bits, unsigned_bits
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange


def largest_fan_in(weights, inputs, biases, accumulator, limit=400):
    """Add the extreme products one by one, for each of the extreme biases, until one leaves."""
    products = [w * x for w, x in product(weights, inputs)]
    lowest, highest = min(biases), max(biases)
    for k in range(limit):
        if lowest < accumulator[0] or highest > accumulator[1]:
            return k - 1
        lowest, highest = lowest + min(products), highest + max(products)
    return None


FORMATS = [
    IntFormat(bits, signed, narrow)
    for bits, signed, narrow in product((1, 2, 3), (True, False), (True, False))
    if not (narrow and bits == 1)
]


@pytest.mark.parametrize("n", [3, 4, 6, 8])
def test_max_fan_in_is_what_adding_one_by_one_finds(n):
    cases = 0
    accumulators = [IntFormat(n, True), IntFormat(n, False), IntFormat(n, True, narrow=True)]
    for w, x, acc in product(FORMATS, FORMATS, accumulators):
        for bias, zero_point in product([(0, 0), (-2, 3), (1, 1)], (0, 1)):
            ends = acc.q_min, acc.q_max
            if bias[0] < ends[0] or bias[1] > ends[1]:
                continue
            inputs = x.q_min - zero_point, x.q_max - zero_point
            weights = range(w.q_min, w.q_max + 1)
            expected = largest_fan_in(weights, range(inputs[0], inputs[1] + 1), bias, ends)
            assert max_fan_in((w.q_min, w.q_max), inputs, bias, ends) == expected
            cases += 1
    assert cases > 800


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 8))
def test_omega_is_right_for_unsigned_operands(n_max, n_weights, n_inputs):
    unsigned = [(0, 2**bits - 1) for bits in (n_weights, n_inputs, n_max)]
    assert omega(n_max, n_weights, n_inputs) == max_fan_in(
        unsigned[0], unsigned[1], (0, 0), unsigned[2]
    )


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 60))
def test_omega_in_rationals(n_max, n_weights, n_inputs):
    quotient = Fraction(2**n_max - 1, (2**n_weights - 1) * (2**n_inputs - 1))
    assert omega(n_max, n_weights, n_inputs) == quotient // 1


def test_omega_is_unsound_for_twos_complement_weights():
    fan_in = omega(8, 2, 2)
    assert fan_in == 28
    assert fan_in * -2 * 3 < -128
    sound = max_fan_in((-2, 1), (0, 3), (0, 0), (-128, 127))
    assert sound == 21
    assert sound * -2 * 3 >= -128 > (sound + 1) * -2 * 3


def test_omega_where_floats_err():
    assert omega(64, 1, 1) == 2**64 - 1
    assert omega(64, 1, 1) != int((2.0**64 - 1) / 1)


def test_no_limit_and_no_room():
    assert max_fan_in((0, 0), (0, 7), (0, 0), (-8, 7)) is None
    assert max_fan_in((1, 1), (0, 7), (-9, 9), (-9, 9)) == 0
    with pytest.raises(OutOfRange, match="bias_range"):
        max_fan_in((1, 1), (0, 7), (0, 10), (-9, 9))


@pytest.mark.parametrize("bits", [0, -1])
def test_widths_must_be_positive(bits):
    with pytest.raises(InvalidArgument, match="n_max"):
        omega(bits, 2, 2)


@pytest.mark.parametrize("value", [2.0, True, "2", None])
def test_widths_must_be_integers(value):
    with pytest.raises(InvalidType):
        omega(8, value, 2)
    with pytest.raises(InvalidType):
        max_fan_in((value, 2), (0, 1), (0, 0), (-8, 7))


def test_pairs():
    with pytest.raises(InvalidArgument, match="lo <= hi"):
        max_fan_in((2, 1), (0, 1), (0, 0), (-8, 7))
    with pytest.raises(InvalidType, match="pair"):
        max_fan_in((2, 1, 0), (0, 1), (0, 0), (-8, 7))


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**70))
def test_widths_are_minimal(lo, span):
    hi = lo + span
    bits = signed_bits(lo, hi)
    assert -(2 ** (bits - 1)) <= lo
    assert hi < 2 ** (bits - 1)
    assert bits == 1 or lo < -(2 ** (bits - 2)) or hi >= 2 ** (bits - 2)
    bits = span_bits(lo, hi)
    assert span < 2**bits
    assert bits == 1 or span >= 2 ** (bits - 1)
    if lo >= 0:
        bits = unsigned_bits(lo, hi)
        assert hi < 2**bits
        assert bits == 1 or hi >= 2 ** (bits - 1)
