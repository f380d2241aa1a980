"""The properties bite: plausible wrong computations of a width, each rejected by a property.

`check` states what a width computation must do; the right one passes on every case, and each wrong
one fails on at least one.  The cases are a fixed list of corners and drawn networks of one layer.
"""

import math

import numpy as np
import pytest
from accumulator_networks import brute_force

from refqnn import IntFormat, Linear, Network, Node, certify, omega, span_bits
from refqnn.formats import signed_bits


class Case:
    """One neuron: integer weights, a bias, and a box of inputs."""

    def __init__(self, weight, bias, lo, hi):
        self.weight = [int(w) for w in weight]
        self.bias, self.lo, self.hi = int(bias), int(lo), int(hi)

    @property
    def corners(self):
        """The exact ends, by choosing the better end of each input, one after another."""
        least = greatest = self.bias
        for w in self.weight:
            least += min(w * self.lo, w * self.hi)
            greatest += max(w * self.lo, w * self.hi)
        return least, greatest

    def __repr__(self):
        return f"Case({self.weight}, {self.bias}, {self.lo}, {self.hi})"


def cases():
    rng = np.random.default_rng(11)
    fixed = [
        Case([1], 0, 0, 127),  # the largest value of a width
        Case([1], 0, 0, 128),  # one more
        Case([-1], 0, 0, 128),  # the least value of a width
        Case([-1], 0, 0, 129),  # one less
        Case([-2] * 28, 0, 0, 3),  # omega(8, 2, 2) weights at the two's complement end
        Case([2**30], 0, 0, 2**21 - 1),  # beyond float32
        Case([2**30, 1], 0, 0, 2**21),  # beyond int32
        Case([2**31], 2**31 - 1, 0, 2**31 - 1),  # a float64 rounds it to 2**62
        Case([1], 2**53, 0, 1),  # the last integers of float64
        Case([1], 0, 0, 0),
        Case([0, 0], 0, 0, 7),
        Case([0, 0], -9, 0, 7),
        Case([3, -3], 4, 5, 7),  # inputs with a zero point: 0 is no input
        Case([3, -3], 0, -4, 3),
        Case([2, 2], 0, -8, 7),
    ]
    for _ in range(60):
        n = int(rng.integers(1, 24))
        lo = int(rng.choice([0, -4, -3, 2]))
        hi = lo + int(rng.choice([1, 3, 7]))
        fixed.append(Case(rng.integers(-4, 4, n), rng.integers(-40, 40), lo, hi))
    return fixed


CASES = cases()


def least_width(lo, hi):
    """By trying one width after another."""
    bits = 1
    while not (-(2 ** (bits - 1)) <= lo and hi <= 2 ** (bits - 1) - 1):
        bits += 1
    return bits


def check(width):
    """The property: for every case, the least two's complement width that holds every input."""
    for case in CASES:
        bits = width(case)
        assert bits == least_width(*case.corners), case


def certified(case):
    # Inputs outside a format's codes are moved by a zero point z: x = code + z.
    span = case.hi - case.lo
    zero = case.lo
    bias = case.bias + zero * sum(case.weight)
    fmt = IntFormat(max(1, span.bit_length()), signed=False)
    node = Node("fc", Linear([case.weight], [bias]))
    network = Network([node], input_shape=(len(case.weight),), input_format=fmt)
    from refqnn.ops.base import Interval

    shape = (len(case.weight),)
    box = Interval(np.zeros(shape, dtype=int), np.full(shape, span))
    return certify(network, box, method="interval")["fc"].signed_bits


def test_the_certificate_has_the_property():
    check(certified)


def ends(case, *, bias=True, lo=None):
    """hi = sum w+ x_hi + sum w- x_lo + b, lo mirrored; with what the wrong ones leave out."""
    x_lo = case.lo if lo is None else lo
    b = case.bias if bias else 0
    positive = sum(w for w in case.weight if w > 0)
    negative = sum(w for w in case.weight if w < 0)
    least = positive * x_lo + negative * case.hi + b
    greatest = positive * case.hi + negative * x_lo + b
    return min(least, greatest), max(least, greatest)


def largest(case):
    return max(abs(v) for v in ends(case))


def float_log2(case):
    """ceil(log2(x + 1)) + 1 in float32."""
    return int(np.ceil(np.log2(np.float32(largest(case)) + np.float32(1)))) + 1


def float64_log2(case):
    lo, hi = ends(case)
    need = [math.log2(hi + 1) if hi >= 0 else 0, math.log2(-lo) if lo < 0 else 0]
    return max(1, math.ceil(max(need)) + 1)


def floor_log2(case):
    return math.floor(math.log2(max(1, largest(case)))) + 1


def bias_forgotten(case):
    return signed_bits(*ends(case, bias=False))


def sign_bit_forgotten(case):
    return max(1, signed_bits(*ends(case)) - 1)


def sampled(case):
    rng = np.random.default_rng(0)
    X = rng.integers(case.lo, case.hi + 1, size=(50, len(case.weight))).astype(object)
    acc = X @ np.array(case.weight, dtype=object) + case.bias
    return signed_bits(int(acc.min()), int(acc.max()))


def magnitude_only(case):
    """Symmetric: forgets that two's complement has one more negative value."""
    return signed_bits(-largest(case), largest(case))


def l1_norm(case):
    """sum |w| max|x| + |b|: sound, never narrow."""
    mass = sum(abs(w) for w in case.weight) * max(abs(case.lo), abs(case.hi)) + abs(case.bias)
    return signed_bits(-mass, mass)


def upper_end_only(case):
    return signed_bits(0, max(ends(case)[1], 0))


def unsigned_inputs_assumed(case):
    return signed_bits(*ends(case, lo=0))


def all_inputs_at_one_end(case):
    values = [x * sum(case.weight) + case.bias for x in (case.lo, case.hi)]
    return signed_bits(min(values), max(values))


def wrapped_to_int32(case):
    wrap = [(v + 2**31) % 2**32 - 2**31 for v in ends(case)]
    return signed_bits(min(wrap), max(wrap))


def float32_sums(case):
    lo, hi = (int(np.float32(v)) for v in ends(case))
    return signed_bits(lo, hi)


def datatype_bound(case):
    """Widths of the operands and of the fan-in added up."""
    weight = signed_bits(min(case.weight), max(case.weight))
    inputs = signed_bits(case.lo, case.hi)
    return weight + inputs + max(1, len(case.weight)).bit_length()


def omega_rule(case):
    """The least n for which omega allows this fan-in."""
    bits = 1
    n_weights = signed_bits(min(case.weight), max(case.weight))
    n_inputs = max(1, max(abs(case.lo), abs(case.hi)).bit_length())
    while omega(bits, n_weights, n_inputs) < sum(w != 0 for w in case.weight):
        bits += 1
    return bits


def average_weight(case):
    """A layer's budget, as if every row had its share."""
    mean = sum(abs(w) for w in case.weight) // len(case.weight)
    mass = mean * len(case.weight) * max(abs(case.lo), abs(case.hi)) + abs(case.bias)
    return signed_bits(-mass, mass)


def one_input_missing(case):
    rest = Case(case.weight[:-1], case.bias, case.lo, case.hi)
    return signed_bits(*ends(rest))


def span_instead_of_range(case):
    return span_bits(*ends(case))


def off_by_one_at_the_power(case):
    lo, hi = ends(case)
    return max(1, max(abs(lo), abs(hi)).bit_length() + (1 if hi > 0 else 0))


def bit_length_of_hi_minus_one(case):
    lo, hi = ends(case)
    return max(1, max(max(0, hi - 1).bit_length(), max(0, -lo - 1).bit_length()) + 1)


WRONG = [
    float_log2, float64_log2, floor_log2, bias_forgotten, sign_bit_forgotten, sampled,
    magnitude_only, l1_norm, upper_end_only, unsigned_inputs_assumed, all_inputs_at_one_end,
    wrapped_to_int32, float32_sums, datatype_bound, omega_rule, average_weight, one_input_missing,
    span_instead_of_range, off_by_one_at_the_power, bit_length_of_hi_minus_one,
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_wrong_bounds_are_rejected(wrong):
    with pytest.raises(AssertionError):
        check(wrong)


def test_there_are_enough_of_them():
    assert len(WRONG) >= 14
    assert len({f.__name__ for f in WRONG}) == len(WRONG)


def test_the_corners_are_those_of_brute_force():
    """The oracle of this file against the plain Python network on every input."""
    from itertools import product

    for case in CASES:
        if len(case.weight) > 4 or case.hi - case.lo > 7 or case.lo < -4 or case.hi > 7:
            continue
        network = Network(
            [Node("fc", Linear([case.weight], [case.bias]))],
            input_shape=(len(case.weight),),
            input_format=IntFormat(4, signed=True),
        )
        rows = list(product(range(case.lo, case.hi + 1), repeat=len(case.weight)))
        lo, hi = brute_force(network, rows)["fc"]
        assert (lo[0], hi[0]) == case.corners
