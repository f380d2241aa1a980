"""A code is the number of thresholds reached, whichever way they are searched."""

from __future__ import annotations

import numpy as np
import pytest

from refqnn import IntFormat, Requantize
from refqnn.limits import COMPARED_THRESHOLDS, SEARCHED_TOGETHER
from refqnn.ops.requantize import ALWAYS, NEVER


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
@pytest.mark.parametrize("n", [0, 1, 3, SEARCHED_TOGETHER - 1, SEARCHED_TOGETHER + 1])
@pytest.mark.parametrize("narrow", [False, True])
def test_codes_count_thresholds(bits: int, n: int, narrow: bool) -> None:
    fmt = IntFormat(bits, signed=True, narrow=narrow)
    rng = np.random.default_rng([bits, n])
    thresholds = np.sort(rng.integers(-60, 60, (5, fmt.levels - 1)), axis=1)  # with ties
    thresholds[1, :2], thresholds[2, -3:] = ALWAYS, NEVER
    thresholds[3] = rng.choice([ALWAYS, NEVER])
    acc = rng.integers(-70, 70, (n, 5))
    expected = [
        [fmt.q_min + sum(t <= a for t in row) for row, a in zip(thresholds.tolist(), sample)]
        for sample in acc.tolist()
    ]
    codes = Requantize(thresholds, fmt).forward(acc)
    assert codes.tolist() == expected


def test_both_ways_of_searching_are_asked() -> None:
    assert 2**3 - 1 <= COMPARED_THRESHOLDS < 2**4 - 2
