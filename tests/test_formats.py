import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refqnn import BIPOLAR, TERNARY, IntFormat, signed_bits, span_bits, unsigned_bits
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange
from refqnn.formats import as_integers


@pytest.mark.parametrize("bits", range(1, 33))
def test_ranges_of_every_width(bits):
    full = IntFormat(bits, signed=True)
    assert (full.q_min, full.q_max, full.levels) == (
        -(2 ** (bits - 1)),
        2 ** (bits - 1) - 1,
        2**bits,
    )
    unsigned = IntFormat(bits, signed=False)
    assert (unsigned.q_min, unsigned.q_max, unsigned.levels) == (0, 2**bits - 1, 2**bits)
    if bits > 1:
        narrow = IntFormat(bits, signed=True, narrow=True)
        assert (narrow.q_min, narrow.q_max) == (full.q_min + 1, full.q_max)
        narrow = IntFormat(bits, signed=False, narrow=True)
        assert (narrow.q_min, narrow.q_max) == (0, unsigned.q_max - 1)


def test_bipolar_and_ternary():
    assert BIPOLAR.check([-1, 1]).tolist() == [-1, 1]
    assert BIPOLAR.levels == 2
    assert IntFormat(1, True) != BIPOLAR
    with pytest.raises(OutOfRange, match="bipolar"):
        BIPOLAR.check([0])
    assert TERNARY.check(np.array([-1, 0, 1], dtype=np.int8)).tolist() == [-1, 0, 1]
    assert (TERNARY.bits, TERNARY.levels) == (2, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_bipolar_check_of_unsigned_arrays(dtype):
    assert BIPOLAR.check(np.array([1], dtype=dtype)).tolist() == [1]
    with pytest.raises(OutOfRange):
        BIPOLAR.check(np.array([1, 255], dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0, True), InvalidArgument),
        ((33, True), InvalidArgument),
        ((True, True), InvalidType),
        ((3.0, True), InvalidType),
        (("3", True), InvalidType),
        ((3, 1), InvalidType),
        ((3, True, None), InvalidType),
        ((1, True, True), InvalidArgument),
    ],
)
def test_bad_formats(arguments, error):
    with pytest.raises(error):
        IntFormat(*arguments)


@pytest.mark.parametrize(
    "codes", [[0.0], [True], ["1"], [None], None, [[1], [2, 3]], [1j], [object()], [], {1: 2}]
)
def test_codes_must_be_integers(codes):
    with pytest.raises(InvalidType, match="codes"):
        IntFormat(4, True).check(codes)


def test_message_names_the_first_bad_code():
    with pytest.raises(OutOfRange, match=r"codes\[1, 0\]: got 8, expected 4-bit signed"):
        IntFormat(4, True).check([[7, 7], [8, 9]])


def test_as_integers_never_wraps():
    assert as_integers(np.array([2**64 - 1], dtype=np.uint64), "x").tolist() == [2**64 - 1]
    assert as_integers(np.array([2**63 - 1], dtype=np.uint64), "x").dtype == np.int64
    assert as_integers(np.array([5, 2**80], dtype=object), "x").dtype == object
    assert as_integers(np.array([5, -6], dtype=object), "x").dtype == np.int64
    assert as_integers([-1, 2**63], "x").tolist() == [-1, 2**63]


integers = st.integers(-(2**70), 2**70) | st.integers(-300, 300)


@given(integers, integers)
def test_widths_are_the_least_that_hold_the_range(a, b):
    lo, hi = min(a, b), max(a, b)

    def signed_holds(n):
        return -(2 ** (n - 1)) <= lo and hi <= 2 ** (n - 1) - 1

    n = signed_bits(lo, hi)
    assert signed_holds(n)
    assert n == 1 or not signed_holds(n - 1)
    n = span_bits(lo, hi)
    assert hi - lo < 2**n
    assert n == 1 or hi - lo >= 2 ** (n - 1)
    if lo >= 0:
        n = unsigned_bits(lo, hi)
        assert hi < 2**n
        assert n == 1 or hi >= 2 ** (n - 1)
    else:
        with pytest.raises(OutOfRange):
            unsigned_bits(lo, hi)


@pytest.mark.parametrize("width", [signed_bits, unsigned_bits, span_bits])
def test_width_errors(width):
    with pytest.raises(InvalidArgument):
        width(1, 0)
    with pytest.raises(InvalidType):
        width(0, 1.5)
