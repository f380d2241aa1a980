"""TFLite models whose bytes were changed: a network that computes, or an error of ours."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
from fuzzing import fuzz, mutated_bytes

pytest.importorskip("tflite")

from tflite_build import O, T
from tflite_build import model as written
from tflite_cases import CASES

from refqnn.errors import FileFormatError, RefqnnError
from refqnn.tflite import from_tflite


@functools.cache
def models() -> tuple[bytes, ...]:
    return tuple(case(np.random.default_rng(1)) for case in CASES.values())


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bytes(slow: bool) -> None:
    def door(data: bytes) -> None:
        network = from_tflite(data)
        network.forward(np.zeros((1, *network.input_shape), np.int64) + network.input_format.q_min)

    ends = fuzz("TFLite bytes", slow, lambda rng: mutated_bytes(rng.choice(models()), rng), door)
    assert ends["FileFormatError"]
    assert ends["accepted"]


@pytest.mark.parametrize("part", [0, 0.01, 0.1, 0.5, 0.9])
def test_truncated(part: float) -> None:
    for model in models():
        with pytest.raises(FileFormatError):
            from_tflite(model[: int(len(model) * part)])


def test_random_bytes_behind_the_identifier() -> None:
    rng = random.Random(0)
    for _ in range(200):
        with pytest.raises(RefqnnError):
            from_tflite(rng.randbytes(4) + b"TFL3" + rng.randbytes(rng.randrange(400)))


def test_a_small_file_asks_for_little_memory() -> None:
    """Shapes that the options and constants of a few bytes would make beyond their output's."""
    pads = T((2, 2), data=np.array([[0, 0], [0, 2**30]], np.int32), type="int32")
    code, many = T((1, 2), 0.5, 0), T((1, 2**20, 2), 0.5, 0)
    padded = written([code, pads, code], [O("PAD", [0, 1], [2], "PadOptions")], [0], [2])
    values = {"Axis": 1}
    join = O("CONCATENATION", [0] * 1000, [1], "ConcatenationOptions", values)
    for hostile in (padded, written([many, many], [join], [0], [1])):
        with pytest.raises(FileFormatError, match=r"does not take|do not fill"):
            from_tflite(hostile)
