"""Generated models of one operator against LiteRT, in its three configurations."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert")

from tflite_build import O, T, model
from tflite_cases import CASES, OPTIONS, typed
from tflite_compare import RUNTIMES, compare
from tflite_litert import run

import refqnn.tflite
from refqnn import IntFormat
from refqnn.errors import NotCovered
from refqnn.tflite import from_tflite
from refqnn.tflite.rescaling import Target, Way, gain, requantize

RUNTIMES_OF_OURS = list(refqnn.tflite.RUNTIMES)
WAYS: list[Way] = ["double", "double_up", "single", "float32", "float64"]


def test_every_operator(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    models = [case(rng) for case in CASES.values() for _ in range(4)]
    result = compare(tmp_path, models, n=6)
    assert not result.different
    assert result.values > 500_000


REFUSED = {
    "uint8": ["TRANSPOSE_CONV"],
    "int16": ["HARD_SWISH", "RELU_N1_TO_1"],
}


@pytest.mark.parametrize("type", REFUSED)
def test_other_types(tmp_path: Path, type: str) -> None:
    rng = np.random.default_rng(3)
    kinds = [kind for kind in CASES if kind not in (*REFUSED[type], "constants")]
    models = [typed(kind, type, rng) for kind in kinds for _ in range(2)]
    result = compare(tmp_path, models, n=4)
    assert not result.different
    assert result.values > 100_000
    for kind in REFUSED[type]:
        with pytest.raises(NotCovered, match=f"{kind}, .* not covered for {type.upper()}"):
            from_tflite(typed(kind, type, rng), "tflite_optimized")


def refused_in_words() -> list[tuple[str, str, str]]:
    """(type, kind, reason) of the table in help(refqnn.tflite)."""
    found = re.findall(r"^    (INT16|UINT8) +([A-Z0-9_]+) +(.+)$", refqnn.tflite.__doc__, re.M)
    assert len(found) == 7
    return found


def test_the_table_of_refusals_is_what_is_refused() -> None:
    """Each line with its reason; what stands under a condition has a test of its own."""
    rng = np.random.default_rng(4)
    lines = [li for li in refused_in_words() if not li[2].startswith(("with ", "in the optimized"))]
    assert sorted(kind for type, kind, _ in lines if type == "INT16") == REFUSED["int16"]
    for type, kind, reason in lines:
        for runtime in RUNTIMES_OF_OURS:
            with pytest.raises(NotCovered, match=f"for {type}: {re.escape(reason)}"):
                from_tflite(typed(kind, type.lower(), rng), runtime)
    covered = {(t, kind) for t in ("uint8", "int16") for kind in CASES if kind not in REFUSED[t]}
    for type, kind in covered - {(t, "constants") for t in REFUSED}:
        from_tflite(typed(kind, type, rng), "tflite_ref")


def test_uint8_transposed_convolutions_but_for_the_optimized_kernel(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    models = [typed("TRANSPOSE_CONV", "uint8", rng) for _ in range(12)]
    assert not compare(tmp_path, models, n=4, runtimes=["tflite_ref"]).different
    taken = []
    for made in models:
        with contextlib.suppress(NotCovered):  # what XNNPACK leaves to the optimized kernel
            taken.append((made, from_tflite(made, "xnnpack"))[0])
    assert len(taken) > 5
    assert not compare(tmp_path, taken, n=4, runtimes=["xnnpack"]).different


def fully_connected_16(rng: np.random.Generator, bias: str, ties: bool) -> bytes:
    """Codes of 16 bits, with a bias of this type, and with gains of halves or of any size."""
    n, out, each = 6, 7, bool(rng.integers(2))
    s_w = np.full(out if each else 1, 0.5) / (1 + np.arange(out if each else 1))
    s_y = 1.0 if ties else float(np.float32(2.0 ** rng.uniform(-3, 3)))
    s_w = s_w if not ties else np.float32(2.0 ** -rng.integers(1, 4, s_w.shape))
    tensors = [
        T((1, n), 0.5, 0, type="int16"),
        T((out, n), s_w, 0, rng.integers(-9, 10, (out, n), dtype=np.int8)),
        T((1, out), s_y, 0, type="int16"),
    ]
    if bias:
        data = rng.integers(-99, 100, out).astype(bias)
        tensors.append(T((out,), np.float32(0.5) * np.float32(s_w), 0, data, bias))
    inputs = [0, 1, 3 if bias else -1]
    op = O("FULLY_CONNECTED", inputs, [2], "FullyConnectedOptions", {})
    return model(tensors, [op], [0], [2])


@pytest.mark.parametrize("bias", ["", "int32", "int64"])
def test_fully_connected_in_16_bits(tmp_path: Path, bias: str) -> None:
    rng = np.random.default_rng(6)
    models = [fully_connected_16(rng, bias, ties=bool(i % 2)) for i in range(8)]
    runtimes = [r for r in RUNTIMES if bias != "int32" or r != "tflite_ref"]
    assert not compare(tmp_path, models, n=30, runtimes=runtimes).different
    for runtime in RUNTIMES_OF_OURS:
        if bias == "int32" and runtime in ("tflite_ref", "cmsis_nn"):
            with pytest.raises(NotCovered, match="INT16 with a bias of INT32"):
                from_tflite(models[0], runtime)
        else:
            from_tflite(models[0], runtime)


def many(folder: Path, kind: str, seconds: float, most: int, seed: int = 0) -> tuple[int, int]:
    """How many models of a kind, and values of them, were equal in each runtime in this time."""
    rng, models, values = np.random.default_rng([seed, *kind.encode()]), 0, 0
    end = time.monotonic() + seconds
    while models < most and time.monotonic() < end:
        result = compare(folder, [CASES[kind](rng) for _ in range(50)], n=5, seed=seed + models)
        assert not result.different
        models, values = models + 50, values + result.values
    return models, values


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_of_each(tmp_path: Path, kind: str) -> None:
    """100,000 models over all kinds, or as many as an hour allows."""
    models, values = many(tmp_path, kind, 3600 / len(CASES), 100_000 // len(CASES))
    print(f"{kind}: {models:,} models, {values:,} values")
    assert models >= 400


@pytest.mark.parametrize("kind", ["SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "CUSTOM", "GATHER"])
def test_others_are_refused_by_name(kind: str) -> None:
    tensors = [T((1, 4), 0.5, 0), T((1, 4), 0.5, 0)]
    with pytest.raises(NotCovered, match=f"operator 0 \\({kind}, makes 't1'\\): "):
        from_tflite(model(tensors, [O(kind, [0], [1])], [0], [1]))


def of_biases(kind: str, scales: tuple[np.float32, ...], bias: np.ndarray, each: bool) -> bytes:
    """A sum that is its bias where the input is the zero point, 3."""
    out, (s_x, s_w, s_y) = len(bias), scales
    flat = kind == "FULLY_CONNECTED"
    weights = {"DEPTHWISE_CONV_2D": (1, 1, 1, out), "FULLY_CONNECTED": (out, 1)}
    shape = weights.get(kind, (out, 1, 1, 1))
    w = np.full(out if each else 1, s_w)
    tensors = [
        T((1, 1) if flat else (1, 1, 1, 1), s_x, 3),
        T(shape, w, 0, np.ones(shape, np.int8), axis=3 if kind[0] == "D" else 0),
        T((out,), s_x * w, 0, bias.astype(np.int32), "int32"),
        T((1, out) if flat else (1, 1, 1, out), s_y, 0),
    ]
    names = ("Padding", "StrideW", "StrideH", "DilationWFactor", "DilationHFactor")
    values = {} if flat else dict.fromkeys(names, 1)
    if kind == "DEPTHWISE_CONV_2D":
        values["DepthMultiplier"] = out
    return model(tensors, [O(kind, [0, 1, 2], [3], OPTIONS[kind], values)], [0], [3])


def where_ways_differ(rng: np.random.Generator, scales: tuple[np.float32, ...]) -> np.ndarray:
    """Accumulators that some way of rescaling takes to another code than another."""
    s_x, s_w, s_y = scales
    most = min(2**30, int(200 * s_y / (s_x * s_w)) + 5)
    target = Target(IntFormat(8, signed=True), 0, (-128, 127))
    ends = np.array([-most]), np.array([most])
    ops = [requantize(gain(way, s_x, s_w, by=s_y), target, way, ends) for way in WAYS]
    at = np.concatenate([op.thresholds[0] for op in ops])
    near = np.unique(np.concatenate([at - 1, at]).clip(-most, most))
    codes = np.stack([op.forward(near[:, None])[:, 0] for op in ops])
    return rng.permutation(near[(codes != codes[0]).any(axis=0)])[:100]


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_accumulators_that_tell_the_ways_apart(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(2)
    jobs, runtimes = [], RUNTIMES
    for i in range(6):
        s_x, s_w = (np.float32(2.0**e) for e in rng.uniform(-6, -1, 2))
        scales = (s_x, s_w, np.float32(float(s_x) * float(s_w) * 2.0 ** rng.uniform(-2, 22)))
        bias = where_ways_differ(rng, scales)
        if len(bias):
            made = of_biases(kind, scales, bias, each=bool(i % 2))
            entry = np.full((1,) if kind == "FULLY_CONNECTED" else (1, 1, 1), 3)[None]
            jobs += [(made, entry, runtime) for runtime in runtimes]
    answers = set()
    for (made, entry, runtime), theirs in zip(jobs, run(tmp_path, jobs)):
        ours = from_tflite(made, runtime).forward(entry)
        assert np.array_equal(ours.ravel(), theirs[3].ravel()), runtime
        answers.add((made, ours.tobytes()))
    assert len(jobs) > 10
    assert len(answers) > 2 * len(jobs) // 3  # they do differ
