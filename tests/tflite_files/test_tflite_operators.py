"""Generated models of one operator against LiteRT, in its three configurations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert")

from tflite_build import O, T, model
from tflite_cases import CASES, OPTIONS, typed
from tflite_compare import RUNTIMES, compare
from tflite_litert import run

from refqnn import IntFormat
from refqnn.errors import NotCovered
from refqnn.tflite import from_tflite
from refqnn.tflite.rescaling import Target, Way, gain, requantize

WAYS: list[Way] = ["double", "double_up", "single", "float32", "float64"]


def test_every_operator(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    models = [case(rng) for case in CASES.values() for _ in range(4)]
    result = compare(tmp_path, models, n=6)
    assert not result.different
    assert result.values > 500_000


REFUSED = {
    "uint8": ["SOFTMAX", "TRANSPOSE_CONV"],
    "int16": ["FULLY_CONNECTED", "HARD_SWISH", "LOGISTIC", "RELU_N1_TO_1", "SOFTMAX", "TANH"],
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
            from_tflite(typed(kind, type, rng))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_many_of_each(tmp_path: Path, kind: str) -> None:
    for block in range(20):
        rng = np.random.default_rng(block + 1)
        result = compare(tmp_path, [CASES[kind](rng) for _ in range(20)], n=20, seed=block)
        assert not result.different


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
