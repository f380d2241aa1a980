"""What a table lookup costs, in the units of the compiler's optimizer (millions of operations).

`_DROP[bits][shift]` is the cost, per accumulator of `bits` bits, of removing its `shift` low bits
and looking the rest up, as the optimizer of concrete-python 2.11 reports it for a dense ternary
layer of 16 neurons at an error probability of 2**-46 per lookup (the two widest full tables, 9 and
10 bits, and one bit are extrapolated).  It chooses between alternatives.

`work` counts what an inference does, in operations of the optimizer: its own count, plus what it
leaves out.  Concrete brings the bootstrap keys to Fourier form at every call, on one core, inputs
are encrypted and unpacked one by one, and the small lookups that remove low bits take longer than
their operations say.  `refqnn.fhe.estimate` makes seconds of it.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["drop", "lookups", "merged", "part", "work"]

_DROP: dict[int, tuple[int, ...]] = {
    1: (50,),
    2: (55, 73),
    3: (70, 84, 112),
    4: (99, 98, 117, 145),
    5: (229, 127, 132, 150, 178),
    6: (534, 237, 172, 177, 199, 231),
    7: (1763, 477, 283, 217, 230, 259, 296),
    8: (3986, 1470, 526, 343, 282, 300, 331, 372),
    9: (9000, 3176, 1521, 578, 389, 329, 346, 377, 419),
    10: (20000, 9000, 3229, 1584, 625, 437, 377, 394, 426, 468),
}
_WIDEST = max(_DROP)
_PER_BIT_BEYOND = 60  # one more removed bit above the widest measured accumulator

# Fitted to idle runs of eleven networks on two cores; bench/fhe.json is a later run.
_OPERATIONS_PER_CALL = 3.4e7
_OPERATIONS_PER_INPUT = 2.0e6  # a ciphertext made, and unpacked by the server
_OPERATIONS_PER_KEY_BYTE = 4.75  # conversion of the bootstrap keys
_OPERATIONS_PER_REMOVED_BIT = 3.7e7


def drop(bits: int, shift: int) -> float:
    """Price of one accumulator of `bits` bits with `shift` low bits removed before its table."""
    if bits <= _WIDEST:
        return float(_DROP[bits][shift])
    beyond = bits - _WIDEST
    if shift < beyond:
        return float("inf")  # a table of more than ten bits: no parameters serve it in practice
    return float(_DROP[_WIDEST][shift - beyond] + _PER_BIT_BEYOND * beyond)


def part(stages: int) -> float:
    """Price of a group of accumulators with lookups of its own: their keys and their threads."""
    return 400.0 + 100.0 * stages


def lookups(bits: int, shift: int) -> dict[int, int]:
    """Lookups by width: one for each removed bit, at the width it is removed from, and the table.

    >>> lookups(7, 3)
    {7: 1, 6: 1, 5: 1, 4: 1}
    """
    return {bits - removed: 1 for removed in range(shift + 1)}


def merged(*counts: dict[int, int]) -> dict[int, int]:
    """The sum of several counts by width."""
    total: Counter[int] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items(), reverse=True))


def work(complexity: float, bootstrap_bytes: int, removed_bits: int, inputs: int) -> float:
    """Operations of one inference.

    Args:
        complexity: the optimizer's count.
        bootstrap_bytes: of the bootstrap keys, unpacked.
        removed_bits: how many low bits are removed, over all accumulators.
        inputs: how many integers are encrypted.
    """
    keys = _OPERATIONS_PER_KEY_BYTE * bootstrap_bytes
    door = _OPERATIONS_PER_CALL + _OPERATIONS_PER_INPUT * inputs
    return door + complexity + keys + _OPERATIONS_PER_REMOVED_BIT * removed_bits
