"""How many products an accumulator holds, before any weight is known.

`omega` is the formula of the literature on pruned networks under homomorphic encryption; it is
right for unsigned weights, unsigned inputs, an unsigned accumulator and no bias.  `max_fan_in` is
right for all ranges.

Both take an accumulator in stages too: every register has to hold what may come.  A group of n
products whose register holds any n of them is no limit; one that holds fewer is a limit for the
row, whose products might all stand in it.  The last register counts the bias where it enters.  It
says nothing about tiles to ask the last register alone, nor about the row to ask a tile.
"""

from __future__ import annotations

from collections.abc import Callable

from refqnn.emulate import Accumulator, Stage
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, mismatch
from refqnn.formats import is_integer

__all__ = ["max_fan_in", "omega"]

Range = tuple[int, int]

_MOST_BITS = 2**16  # 2**bits is computed


def omega(n_max: int | Accumulator, n_weights: int, n_inputs: int) -> int:
    """Omega = floor((2**n_max - 1) / ((2**n_weights - 1) * (2**n_inputs - 1))), in integers.

    Args:
        n_max: bits of the accumulator, or an `Accumulator`, whose stages count as unsigned.
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
    >>> omega(Accumulator([Stage(6, False, group=4), Stage(8, False)]), 2, 2)
    28
    """
    if isinstance(n_max, Accumulator):
        found = _over_stages(n_max, lambda stage: omega(stage.width, n_weights, n_inputs))
        assert found is not None
        return found
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
    accumulator_range: Range | Accumulator,
) -> int | None:
    """The largest K such that bias + any k <= K products stay inside the accumulator.

    With products between p_min and p_max (the extreme products of the ends),

        K = min(floor((acc_hi - b_hi) / p_max)  if p_max > 0,
                floor((b_lo - acc_lo) / -p_min)  if p_min < 0)

    Signed, unsigned and narrow formats differ in their ranges alone.  With a zero point z of the
    inputs or weights, pass the range of x - z or w - z.

    Args:
        weight_range, input_range, bias_range, accumulator_range: inclusive (lo, hi) pairs; for the
            last also an `Accumulator`.

    Returns: K, or None when every product is 0 or moves away from the ends, so that no number of
        them overflows.

    Raises: InvalidType, InvalidArgument; OutOfRange when the bias alone does not fit.

    >>> from refqnn import IntFormat
    >>> narrow = IntFormat(2, signed=True, narrow=True)
    >>> max_fan_in((narrow.q_min, narrow.q_max), (0, 3), (-5, 5), (-128, 127))
    40
    >>> tiles = Accumulator([Stage(8, group=16), Stage(12)])  # 16 products fit 8 bits
    >>> max_fan_in((-2, 1), (0, 3), (0, 0), tiles), 2**11 // 6
    (341, 341)
    """
    if isinstance(accumulator_range, Accumulator):
        return _staged_fan_in(weight_range, input_range, bias_range, accumulator_range)
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


def _staged_fan_in(
    weight_range: Range, input_range: Range, bias_range: Range, accumulator: Accumulator
) -> int | None:
    b_lo, b_hi = _range(bias_range, "bias_range")
    last = accumulator.stages[-1]
    if accumulator.bias == "last" and last.when == "step":  # the products stand there without it
        b_lo, b_hi = min(b_lo, 0), max(b_hi, 0)

    def most(stage: Stage) -> int | None:
        biased = stage is last and accumulator.bias != "outside"
        bias = (b_lo, b_hi) if biased else (0, 0)
        return max_fan_in(weight_range, input_range, bias, stage.ends)

    return _over_stages(accumulator, most)


def _over_stages(accumulator: Accumulator, most: Callable[[Stage], int | None]) -> int | None:
    """The least of what the stages hold, of those that a row could fill."""
    products, found = 1, []
    for stage in accumulator.stages:
        products *= stage.group or 1
        held = most(stage)
        if held is not None and (stage.group is None or held < products):
            found.append(held)
    return min(found, default=None)


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
