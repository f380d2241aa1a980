"""Limits and block sizes, each told once.

A limit refuses what a small file could ask for without end; a block is how much is held at one
time; a threshold is where one way becomes faster than another.  `refqnn bench constants` measures
again what came from a measurement; the others were chosen, and say why.
"""

from __future__ import annotations

from pathlib import Path

MAX_VALUES = 2**27
"""Values in one sample of a network, input and nodes together, and of one channel of a padded or
unfolded input.  Chosen: a small file may ask for any amount of memory (1 GiB here)."""

LARGEST_STEP = 2**31 - 1
"""Strides, dilations and kernels.  Chosen: what any framework takes, and products of two fit int64.
"""

UNFOLDED_COLUMNS = 2**23
"""Entries of unfolded windows held at one time (64 MiB): larger blocks were not faster."""

MAX_LEVELS = 2**20
"""Codes of a Requantize.  Chosen: its thresholds are listed one by one (8 MiB a channel)."""

LISTED_THRESHOLDS = 2**24
"""Thresholds of all channels of a node that one formula stands for.  Chosen: 128 MiB."""

COMPARED_THRESHOLDS = 8
"""Up to so many thresholds, comparing with each is cheaper than a binary search."""

SEARCHED_TOGETHER = 100
"""Values in each of several channels up to which their thresholds are searched in one bisection."""

HELD = 2**22
"""Values held at one time: of a trace, of the terms of an emulated sum, of a domain.  Chosen: 32
MiB, so that the ten or so copies of an operation stay below a gigabyte."""


def at_a_time(per_sample: int, held: int | None = None) -> int:
    """How many samples of so many values to take at one time; `HELD` values where no other number
    is given.

    >>> at_a_time(2**20), at_a_time(2**30)
    (4, 1)
    """
    return max(1, (HELD if held is None else held) // max(1, per_sample))


def available_memory() -> int | None:
    """Bytes that a process may still take, or None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kilobytes = fields.get("MemAvailable", "").split()
    return int(kilobytes[0]) * 1024 if kilobytes else None


# --- refqnn.plan: where one way becomes faster than another ------------------------------------

BLOCK_VALUES = 1_300_000
"""Values of the largest step held at one time; a power of two is slower."""

BLAS_PRODUCT = 10**6
"""Rows * terms * columns up to which BLAS multiplies without packing."""

NARROWEST_PRODUCT = 32
"""Columns; narrower products cost more in calls than packing does."""

NUMPY_BUFFER = 256
"""Values, of numpy's buffers."""

CODE_TABLE = 2**22
"""Entries of a table of codes that is made before a forward; a larger one misses the cache more
than a search would."""

LINE_LEVELS = 2**8
"""Codes up to which a line is fitted, which compares all pairs of thresholds."""

ENUMERATED_INPUTS = 2**14
ENUMERATED_OUTPUTS = 2**17
"""Inputs and outputs of a network that becomes one table: it stays in the cache."""

ENUMERATED_WORK = 2**25
"""Values and products that such a table costs: made in a tenth of a second."""

# --- refqnn.accumulator ------------------------------------------------------------------------

EXHAUSTIVE_LIMIT = 2**20
"""Points of a domain that is enumerated: 0.2 seconds for a small network."""

EMULATED_WORK = 2**27
"""Points times products of a domain that is enumerated under an accumulator.  Chosen: some seconds,
after which bounds and questions about single sums are the better use of the time."""

HELD_VALUES = 2**23
"""Values of the traces that each kind of sample takes when a certificate is held against its
network; at least 32 samples, at most 256.  Chosen: a trace of a large network takes a second."""
