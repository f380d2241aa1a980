"""Scales that are round numbers, where ties are common, and channels that fill vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert")

from tflite_build import O, T, model
from tflite_compare import RUNTIMES, compare
from tflite_litert import run

from refqnn.errors import NotCovered
from refqnn.tflite import from_tflite

ROUND = (0.05, 0.1, 0.2, 0.25, 0.4, 1 / 128)
Rng = np.random.Generator


def zero(rng: Rng) -> int:
    return int(rng.integers(-128, 128))


def transpose_conv(rng: Rng) -> bytes:
    out, s_x = int(rng.choice([7, 8, 9, 16, 19])), float(rng.choice(ROUND))
    s_w = rng.choice([0.25, 0.5, 0.75], out)
    tensors = [
        T((4,), data=np.array([1, 8, 8, out], np.int32), type="int32"),
        T((out, 1, 2, 3), s_w, 0, rng.integers(-127, 128, (out, 1, 2, 3), dtype=np.int8)),
        T((1, 4, 4, 3), s_x, zero(rng)),
        T((out,), np.float32(s_x) * np.float32(s_w), 0, np.zeros(out, np.int32), "int32"),
        T((1, 8, 8, out), 32 * s_x, zero(rng)),
    ]
    values = {"Padding": 0, "StrideW": 2, "StrideH": 2}
    op = O("TRANSPOSE_CONV", [0, 1, 2, 3], [4], "TransposeConvOptions", values)
    return model(tensors, [op], [2], [4])


def mean(rng: Rng) -> bytes:
    c, s, keep = int(rng.choice([15, 16, 17, 40])), float(rng.choice(ROUND)), bool(rng.integers(2))
    tensors = [
        T((1, 4, 2, c), s, zero(rng)),
        T((2,), data=np.array([1, 2], np.int32), type="int32"),
        T((1, 1, 1, c) if keep else (1, c), float(rng.choice(ROUND)), zero(rng)),
    ]
    return model(tensors, [O("MEAN", [0, 1], [2], "ReducerOptions", {"KeepDims": keep})], [0], [2])


def one(rng: Rng, kind: str, options: str = "", **values: float) -> bytes:
    s_y, z_y = {"LOGISTIC": (2**-8, -128), "TANH": (2**-7, 0)}.get(
        kind, (float(rng.choice(ROUND)), zero(rng))
    )
    s = float(rng.choice([*ROUND, 2.0**-8, 2.0**-9]))
    if kind == "MUL":
        s, s_y = min(s, 0.1), max(float(s_y), 0.1)  # beyond 16 bits the optimized kernels wrap
    tensors = [T((1, 256), s, zero(rng)), T((1, 256), s_y, z_y)]
    entries = [0, 0] if kind == "MUL" else [0]
    return model(tensors, [O(kind, entries, [1], options, values)], [0], [1])


CASES = {
    "TRANSPOSE_CONV": transpose_conv,
    "MEAN": mean,
    "LOGISTIC": lambda rng: one(rng, "LOGISTIC"),
    "TANH": lambda rng: one(rng, "TANH"),
    "MUL": lambda rng: one(rng, "MUL", "MulOptions"),
    "LEAKY_RELU": lambda rng: one(rng, "LEAKY_RELU", "LeakyReluOptions", Alpha=-0.25),
}


@pytest.mark.parametrize("kind", CASES)
def test_ties(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    result = compare(tmp_path, [CASES[kind](rng) for _ in range(12)], n=16)
    assert not result.different


def one_value_added(type: str, shape: tuple[int, ...], first: bool) -> bytes:
    """A scalar added whose code is its zero point: (q - z) / 2, in steps where halves are ties."""
    s, few, off = np.float32(0.07736699), ((), (1,))[first], 128 * (type == "uint8")
    tensors = [
        T(shape, s, off - 128, type=type),
        T(few, 0.15187983, 41, np.full(few, 41, type), type=type),
        T(shape, 2 * s, off, type=type),
    ]
    op = O("ADD", [1, 0] if first else [0, 1], [2], "AddOptions")
    return model(tensors, [op], [0], [2])


@pytest.mark.parametrize("type", ["int8", "uint8"])
def test_vectors_of_a_tensor_and_one_value(tmp_path: Path, type: str) -> None:
    shapes = [(1, 61), (1, 3, 5, 7), (1, 7), (1, 16)]
    models = [one_value_added(type, shape, bool(i % 2)) for i, shape in enumerate(shapes)]
    assert not compare(tmp_path, models, n=16).different
    codes = np.arange(61)[None] + (0 if type == "uint8" else -128)
    ours = [from_tflite(models[0], runtime).forward(codes)[0] for runtime in RUNTIMES]
    assert (ours[0] != ours[1])[:56].any()
    assert (ours[0] == ours[1])[56:].all()
    with pytest.raises(NotCovered, match="vectors of 8 reach across a batch of 2"):
        from_tflite(one_value_added(type, (2, 7), False), "tflite_optimized")


@pytest.mark.parametrize(("scale", "zero"), [(0.029342014, 127), (0.016894985, -17)])
def test_a_sigmoid_in_float32_that_is_a_tie(tmp_path: Path, scale: float, zero: int) -> None:
    """67.499995 and 82.499997 in units of 2**-8: the kernels make ties of them, XNNPACK of one."""
    tensors = [T((1, 256), scale, zero), T((1, 256), 2.0**-8, -128)]
    made, codes = model(tensors, [O("LOGISTIC", [0], [1])], [0], [1]), np.arange(-128, 128)[None]
    ours = [from_tflite(made, runtime).forward(codes) for runtime in RUNTIMES]
    theirs = run(tmp_path, [(made, codes, runtime) for runtime in RUNTIMES])
    assert all(np.array_equal(a, b[1]) for a, b in zip(ours, theirs))
    assert (ours[0] != ours[RUNTIMES.index("xnnpack")]).sum() == 1


# --- floats to codes ----------------------------------------------------------------------------


def of_floats(shape: tuple[int, ...], scale: float, zero: int, type: str) -> bytes:
    """Floats, codes, and the same codes flat."""
    codes, flat = T(shape, scale, zero, type=type), int(np.prod(shape))
    tensors = [T(shape, type="float32"), codes, T((1, flat, 1), scale, zero, type=type)]
    ops = [
        O("QUANTIZE", [0], [1], "QuantizeOptions"),
        O("RESHAPE", [1], [2], "ReshapeOptions", {"NewShape": [1, flat, 1]}),
    ]
    return model(tensors, ops, [0], [2])


@pytest.mark.parametrize("type", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1 / 255, 3.3])
@pytest.mark.parametrize("shape", [(1, 24), (1, 13), (1, 2, 4, 3)])
def test_floats_become_codes_as_each_runtime_makes_them(
    tmp_path: Path, type: str, scale: float, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    place = {"int8": -7, "uint8": 100, "int16": 0}[type]
    made, s = of_floats(shape, scale, place, type), np.float32(scale)
    halves = rng.integers(-400, 400, (200, *shape[1:])) / 2
    x = (halves * s).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.5, x, np.nextafter(x, np.float32(0)))
    runtimes = [r for r in RUNTIMES if r == "tflite_ref" or shape[1] != 13 or type != "int16"]
    for runtime, theirs in zip(runtimes, run(tmp_path, [(made, x, r) for r in runtimes])):
        network = from_tflite(made, runtime)
        codes = network.forward(network.quantize_input(x))
        assert np.array_equal(codes.reshape(200, -1), theirs[2].reshape(200, -1)), runtime


def test_floats_that_do_not_fill_vectors() -> None:
    made = of_floats((1, 3, 3, 1), 0.1, 0, "int8")
    with pytest.raises(NotCovered, match="its 9 float inputs do not fill vectors of 8"):
        from_tflite(made, "tflite_optimized")
    from_tflite(made, "xnnpack")


# --- products beyond 16 bits ----------------------------------------------------------------------


def product(s_y: float, zero: int, kind: str = "int8") -> bytes:
    """x * x with x from 0 to 255 steps of 1."""
    lowest = {"int8": -128, "uint8": 0}[kind]
    tensors = [T((1, 32), 1.0, lowest, type=kind), T((1, 32), s_y, zero, type=kind)]
    return model(tensors, [O("MUL", [0, 0], [1], "MulOptions")], [0], [1])


@pytest.mark.parametrize(("kind", "zero"), [("int8", 100), ("uint8", 200)])
def test_products_that_the_optimized_kernels_would_wrap_are_refused(
    tmp_path: Path, kind: str, zero: int
) -> None:
    """65,025 / s_y and the zero point: inside 16 bits all agree, beyond the model is refused."""
    within = product(65_025 / (32_700 - zero), zero, kind)
    assert not compare(tmp_path, [within], n=8).different
    beyond = product(65_025 / (32_790 - zero), zero, kind)
    with pytest.raises(NotCovered, match=r"MUL, .*16 bits, beyond which the kernel wraps"):
        from_tflite(beyond, "tflite_optimized")
    highest = np.full((1, 32), {"int8": 127, "uint8": 255}[kind])
    (wrapped,) = run(tmp_path, [(beyond, highest, "tflite_optimized")])
    assert (wrapped[1] < from_tflite(beyond).forward(highest)).any()
    others = ["tflite_ref", "xnnpack"]
    assert not compare(tmp_path, [beyond], n=8, runtimes=others).different
    from_tflite(product(65_025 / 32_790, 0 if kind == "uint8" else -1, kind), "tflite_optimized")
