"""Arrays and other values given to a network: codes, an error of ours, nothing else."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
from fuzzing import INTERESTING, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refqnn import IntFormat, Linear, Network, Node, PowerOfTwoQuantizer, Requantize, exact
from refqnn.errors import InvalidType, RefqnnError

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]


@functools.cache
def network() -> Network:
    fmt = IntFormat(3, signed=False)
    return Network(
        [Node("fc", Linear([[3, -2]], [1])), Node("act", Requantize.from_shift(1, fmt))],
        input_shape=(2,),
        input_quantizer=PowerOfTwoQuantizer(-1, fmt, "half_even"),
    )


class Strange:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no")


def values() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return [
        *(v for v in INTERESTING if not isinstance(v, str) or len(v) < 100),
        *(itself, Strange(), object(), range(4), b"12", bytearray(b"12"), {1, 2}, iter([1])),
        *(np.ma.masked_array([[1, 2]], [[True, False]]), np.datetime64(0, "s"), 1 + 2j),
        *(
            np.array([[1, 2]], dtype=t)
            for t in ("i1", "u8", "f2", "g", "c16", "O", "U5", "S2", "?")
        ),
        *(np.array([[2**63, 1]], np.uint64), np.zeros((0, 2), int), np.zeros((1, 0), int)),
        *(np.zeros((1, 2), [("a", int)]), np.array([(1, "x")], dtype="i4,U3"), np.array(None)),
        *(
            np.zeros((1,) * 32, int),
            np.broadcast_to(np.int64(9), (2**20, 2)),
            np.empty((0, 2), "O"),
        ),
        *([[1, 2], [3]], [[1, None]], [[1, "2"]], [[1.0, 2]], [[True, 1]], [[2**63, -1]]),
        *([[float("nan"), 1]], [[float("inf"), -1e300]], np.array([[3, 1]], ">i4")),
        *(np.asfortranarray([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])[::-1, ::-1]),
    ]


def make(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(values())
    if kind == 1:
        return [[rng.choice(INTERESTING), rng.randrange(8)] for _ in range(rng.randrange(3))]
    if kind == 2:
        return [rng.choice(values())] * rng.randrange(4)
    shape = rng.choice([(1, 2), (2, 2), (2,), (1, 2, 1), (0, 2), (3, 1), ()])
    dtype = np.dtype(
        rng.choice(["i1", "u1", "i2", "<i8", ">i8", "u8", "f2", "f4", "f8", "?", "c8"])
    )
    array = np.frombuffer(rng.randbytes(dtype.itemsize * 8), dtype)[: int(np.prod(shape))]
    array = array.reshape(shape)
    return array if kind < 5 or dtype.kind in "?c" else array.clip(0, 7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_codes(slow: bool) -> None:
    def door(value: Any) -> None:
        output = network().forward(value)
        codes = np.asarray(value).astype(object)
        assert output.tolist() == exact.forward(network(), codes.tolist()) or len(codes) > 99

    ends = fuzz("array of codes", slow, make, door)
    assert min(ends["accepted"], ends["InvalidType"], ends["OutOfRange"]) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_floats(slow: bool) -> None:
    def door(value: Any) -> None:
        codes = network().quantize_input(value)
        assert codes.dtype == np.int64
        network().check_codes(codes)

    ends = fuzz("array of floats", slow, make, door)
    assert min(ends["accepted"], ends["InvalidType"], ends["ShapeMismatch"]) > 0


@settings(max_examples=40)
@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
def test_arrays_of_any_dtype(array: np.ndarray) -> None:
    for door in (network().forward, network().quantize_input):
        try:
            door(array)
        except RefqnnError:
            continue
        assert array.dtype.kind in "iuf"


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_nested_lists(value: Any) -> None:
    for door in (network().forward, network().quantize_input):
        try:
            door(value)
        except RefqnnError:
            continue
        assert isinstance(value, list)


def test_masked_values_are_not_unmasked() -> None:
    masked = np.ma.masked_array([[1, 2]], [[True, False]])
    for door in (network().forward, network().quantize_input):
        with pytest.raises(InvalidType, match="mask"):
            door(masked)
        door(np.ma.masked_array([[1, 2]]))
