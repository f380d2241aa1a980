"""How many products an accumulator holds, before any weight is known.

`omega` is the formula of the literature on pruned networks under homomorphic encryption; it is
right for unsigned weights, unsigned inputs, an unsigned accumulator and no bias.  `max_fan_in` is
right for all ranges.
"""

from __future__ import annotations

from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, mismatch
from refqnn.formats import is_integer

__all__ = ["max_fan_in", "omega"]

Range = tuple[int, int]

_MOST_BITS = 2**16  # 2**bits is computed


def omega(n_max: int, n_weights: int, n_inputs: int) -> int:
    """Omega = floor((2**n_max - 1) / ((2**n_weights - 1) * (2**n_inputs - 1))), in integers.

    Args:
        n_max: bits of the accumulator.
        n_weights, n_inputs: bits of weights and inputs; all three positive.

    Returns: how many products of *unsigned* weights and *unsigned* inputs an *unsigned* accumulator
        of n_max bits is sure to hold, without a bias.

    Unsound for two's complement weights: omega(8, 2, 2) is 28, but 28 weights of -2 and inputs of
    3 give -168, which no signed 8-bit integer holds.  `max_fan_in` says 21.  For narrow or bipolar
    weights it is too strict instead.

    Raises: InvalidType, InvalidArgument, OutOfRange beyond 2**16 bits.

    >>> omega(8, 2, 2), omega(7, 2, 2)
    (28, 14)
    >>> max_fan_in((-2, 1), (0, 3), (0, 0), (-128, 127))
    21
    """
    for name, bits in (("n_max", n_max), ("n_weights", n_weights), ("n_inputs", n_inputs)):
        if not is_integer(bits):
            raise InvalidType(mismatch(name, repr(bits), "a positive integer"))
        if bits < 1:
            raise InvalidArgument(mismatch(name, bits, "a positive integer"))
        if bits > _MOST_BITS:
            raise OutOfRange(mismatch(name, bits, f"at most {_MOST_BITS} bits"))
    largest_product = (2 ** int(n_weights) - 1) * (2 ** int(n_inputs) - 1)
    return int((2 ** int(n_max) - 1) // largest_product)


def max_fan_in(
    weight_range: Range,
    input_range: Range,
    bias_range: Range,
    accumulator_range: Range,
) -> int | None:
    """The largest K such that bias + any k <= K products stay inside the accumulator.

    With products between p_min and p_max (the extreme products of the ends),

        K = min(floor((acc_hi - b_hi) / p_max)  if p_max > 0,
                floor((b_lo - acc_lo) / -p_min)  if p_min < 0)

    Signed, unsigned and narrow formats differ in their ranges alone.  With a zero point z of the
    inputs or weights, pass the range of x - z or w - z.

    Args:
        weight_range, input_range, bias_range, accumulator_range: inclusive (lo, hi) pairs.

    Returns: K, or None when every product is 0 or moves away from the ends, so that no number of
        them overflows.

    Raises: InvalidType, InvalidArgument; OutOfRange when the bias alone does not fit.

    >>> from refqnn import IntFormat
    >>> narrow = IntFormat(2, signed=True, narrow=True)
    >>> max_fan_in((narrow.q_min, narrow.q_max), (0, 3), (-5, 5), (-128, 127))
    40
    """
    w_lo, w_hi = _range(weight_range, "weight_range")
    x_lo, x_hi = _range(input_range, "input_range")
    b_lo, b_hi = _range(bias_range, "bias_range")
    acc_lo, acc_hi = _range(accumulator_range, "accumulator_range")
    if b_lo < acc_lo or b_hi > acc_hi:
        raise OutOfRange(mismatch("bias_range", bias_range, f"inside {accumulator_range}"))
    products = [w_lo * x_lo, w_lo * x_hi, w_hi * x_lo, w_hi * x_hi]
    p_min, p_max = min(products), max(products)
    limits = []
    if p_max > 0:
        limits.append((acc_hi - b_hi) // p_max)
    if p_min < 0:
        limits.append((b_lo - acc_lo) // -p_min)
    return min(limits, default=None)


def _range(pair: Range, argument: str) -> Range:
    try:
        lo, hi = pair
    except (TypeError, ValueError):
        raise InvalidType(mismatch(argument, repr(pair), "a pair (lo, hi)")) from None
    if not is_integer(lo) or not is_integer(hi):
        raise InvalidType(mismatch(argument, repr(pair), "a pair of integers"))
    if lo > hi:
        raise InvalidArgument(mismatch(argument, pair, "lo <= hi"))
    return int(lo), int(hi)
