"""Eight modes, four routes: integer ratios, fractions, floats, and the rule of exact.py."""

import decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refqnn import Rounding, exact
from refqnn.errors import InvalidArgument, InvalidType
from refqnn.rounding import round_float, round_fraction, round_ratio

MODES = list(Rounding)

# Python's decimal as a third party; it has no half_up or half_down of ours.
DECIMAL = {
    "half_even": decimal.ROUND_HALF_EVEN,
    "half_away": decimal.ROUND_HALF_UP,
    "half_toward_zero": decimal.ROUND_HALF_DOWN,
    "floor": decimal.ROUND_FLOOR,
    "ceil": decimal.ROUND_CEILING,
    "toward_zero": decimal.ROUND_DOWN,
    "away_from_zero": decimal.ROUND_UP,
}


@pytest.mark.parametrize("mode", MODES)
def test_the_table(mode):
    ties = {
        "half_even": [-2, -2, 0, 0, 2, 2],
        "half_up": [-2, -1, 0, 1, 2, 3],
        "half_down": [-3, -2, -1, 0, 1, 2],
        "half_away": [-3, -2, -1, 1, 2, 3],
        "half_toward_zero": [-2, -1, 0, 0, 1, 2],
        "floor": [-3, -2, -1, 0, 1, 2],
        "ceil": [-2, -1, 0, 1, 2, 3],
        "toward_zero": [-2, -1, 0, 0, 1, 2],
        "away_from_zero": [-3, -2, -1, 1, 2, 3],
    }
    assert round_ratio(np.array([-5, -3, -1, 1, 3, 5]), 2, mode).tolist() == ties[mode.value]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("denominator", [1, 2, 3, 4, 7, 8, 10])
def test_all_small_ratios_agree(mode, denominator):
    numerators = np.arange(-200, 201)
    got = round_ratio(numerators, denominator, mode).tolist()
    fractions = [Fraction(int(n), denominator) for n in numerators]
    assert got == [round_fraction(x, mode) for x in fractions]
    assert got == [exact.round(x, mode.value) for x in fractions]
    if mode.value in DECIMAL and denominator in (1, 2, 4, 8, 10):
        decimals = [decimal.Decimal(int(n)) / denominator for n in numerators]
        assert got == [int(d.to_integral_value(DECIMAL[mode.value])) for d in decimals]
    if denominator in (1, 2, 4, 8):
        for dtype in (np.float16, np.float32, np.float64):
            floats = (numerators / denominator).astype(dtype)
            assert round_float(floats, mode).tolist() == got


numerators = st.integers(-(2**70), 2**70) | st.integers(-(2**63), 2**63 - 1) | st.integers(-99, 99)


@given(hnp.arrays(object, 5, elements=numerators), st.integers(1, 2**65), st.sampled_from(MODES))
def test_ratios_of_any_size_agree(n, d, mode):
    expected = [exact.round(Fraction(int(v), d), mode.value) for v in n]
    assert round_ratio(n, d, mode).tolist() == expected
    assert [round_ratio(int(v), d, mode) for v in n] == expected
    assert [round_fraction(Fraction(int(v), d), mode) for v in n] == expected


@pytest.mark.parametrize("mode", MODES)
def test_ratios_at_the_ends_of_int64(mode):
    large = [-(2**63), -(2**63) + 1, -(2**62) - 5, 2**62 + 5, 2**63 - 1]
    for d in (1, 2, 3, 2**62, 2**62 + 1, 2**63 - 1):
        expected = [exact.round(Fraction(n, d), mode.value) for n in large]
        assert round_ratio(np.array(large), d, mode).tolist() == expected
        assert round_ratio(np.array(large[1:]), d, mode).tolist() == expected[1:]


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(MODES))
def test_float64_agrees_with_fractions(x, mode):
    assert int(round_float(np.float64(x), mode)) == round_fraction(Fraction(x), mode)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(MODES))
def test_float32_agrees_with_fractions(x, mode):
    rounded = round_float(np.float32(x), mode)
    assert rounded.dtype == np.float32
    assert int(rounded) == round_fraction(Fraction(x), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_next_to_ties(mode, dtype):
    ties = np.array([k + 0.5 for k in range(-9, 9)], dtype=dtype)
    values = np.concatenate(
        [ties, np.nextafter(ties, dtype(np.inf)), np.nextafter(ties, dtype(-np.inf))]
    )
    expected = [exact.round(Fraction(float(v)), mode.value) for v in values]
    assert round_float(values, mode).tolist() == expected


def test_infinities_stay_and_signs_of_zero_too():
    for mode in MODES:
        assert round_float(np.array([np.inf, -np.inf]), mode).tolist() == [np.inf, -np.inf]
        assert np.signbit(round_float(np.array([-0.0, 0.0]), mode)).tolist() == [True, False]


def test_errors():
    with pytest.raises(InvalidArgument, match="half_even, half_up"):
        round_ratio(1, 2, "nearest")
    with pytest.raises(InvalidArgument):
        Rounding.of(None)
    for denominator, error in ((0, InvalidArgument), (-1, InvalidArgument), (2.0, InvalidType)):
        with pytest.raises(error, match="denominator"):
            round_ratio(1, denominator, "floor")
    for numerator in (1.0, True, "1", [0.5]):
        with pytest.raises(InvalidType, match="numerator"):
            round_ratio(numerator, 2, "floor")
    with pytest.raises(InvalidType):
        round_fraction(0.5, "floor")
    with pytest.raises(InvalidType):
        round_float(np.array([1]), "floor")
    with pytest.raises(InvalidArgument, match="NaN"):
        round_float(np.array([np.nan]), "floor")
