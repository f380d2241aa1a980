"""Codes of 16 bits, and scales beyond what the kernels' fixed point holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert")

import tflite
from tflite_build import O, T, model
from tflite_cases import OPTIONS
from tflite_compare import RUNTIMES, compare
from tflite_litert import run

from refqnn.errors import NotCovered
from refqnn.tflite import RUNTIMES as ALL
from refqnn.tflite import from_tflite

Rng = np.random.Generator
WINDOW = {"Padding": 1, "StrideW": 1, "StrideH": 1}
DILATED = {**WINDOW, "DilationWFactor": 1, "DilationHFactor": 1}


def with_bias(rng: Rng, kind: str, bias: str, declared: bool) -> bytes:
    """19 sums of two products; half the models have gains where ties are common."""
    out, s_y = 19, float(rng.choice([0.02, 0.0173]))
    flat = kind == "FULLY_CONNECTED"
    shape = (out, 2) if flat else (out, 1, 1, 2)
    around: tuple[int, ...] = (1,) if flat else (1, 1, 1)
    data = rng.integers(-3, 4, shape, dtype=np.int8)
    tensors = [
        T((*around, 2), 0.01, 0, type="int16"),
        T(shape, 0.5, 0, data),
        T((*around, out), s_y, 0, type="int16"),
        T((out,), np.float32(0.01) * np.float32(0.5), 0, rng.integers(-999, 999, out), "int64"),
        T((4,), data=np.array([1, 1, 1, out], np.int32), type="int32"),
    ]
    tensors[3].data, tensors[3].type = tensors[3].data.astype(bias), bias
    values = {} if flat else dict(DILATED if kind == "CONV_2D" else WINDOW)
    if declared:
        values["QuantizedBiasType"] = tflite.TensorType.INT32
    inputs = [4, 1, 0, 3] if kind == "TRANSPOSE_CONV" else [0, 1, 3]
    options = {**OPTIONS, "TRANSPOSE_CONV": "TransposeConvOptions"}[kind]
    return model(tensors, [O(kind, inputs, [2], options, values)], [0], [2])


@pytest.mark.parametrize("kind", ["CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"])
def test_a_bias_of_32_bits_counts_where_the_options_declare_it(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    models = [with_bias(rng, kind, "int32", True) for _ in range(6)]
    runtimes = RUNTIMES[:1] if kind == "TRANSPOSE_CONV" else RUNTIMES
    assert not compare(tmp_path, models, n=40, runtimes=runtimes).different
    for runtime in set(RUNTIMES) - set(runtimes):
        with pytest.raises(NotCovered, match="INT16 with a bias of INT32, declared"):
            from_tflite(models[0], runtime)
    undeclared = with_bias(rng, kind, "int32", False)
    with pytest.raises(NotCovered, match="INT16 with a bias of INT32"):
        from_tflite(undeclared, "tflite_ref")
    (theirs,) = run(tmp_path, [(undeclared, np.zeros((1, *_sample(kind)), int), "tflite_ref")])
    assert abs(theirs[2].astype(int)).max() > 32_766  # two of them are read as one


def _sample(kind: str) -> tuple[int, ...]:
    return (2,) if kind == "FULLY_CONNECTED" else (1, 1, 2)


def test_codes_that_change_their_type(tmp_path: Path) -> None:
    rng, models = np.random.default_rng(1), []
    for old, new in (("int16", "int8"), ("int8", "int16"), ("int8", "uint8"), ("uint8", "int8")):
        for _ in range(6):
            s = 2.0 ** rng.uniform(-9, -1)
            ratio = {"int16": 2.0**-8, "int8": 2.0**8}.get(old, 1.0) if "int16" in (old, new) else 1
            s_y = s / ratio * 2.0 ** (rng.uniform(-2, 2) if rng.random() < 0.5 else 1)
            zeros = [{"int8": -7, "uint8": 100}.get(t, 0) for t in (old, new)]
            tensors = [T((1, 70), s, zeros[0], type=old), T((1, 70), s_y, zeros[1], type=new)]
            models.append(model(tensors, [O("QUANTIZE", [0], [1], "QuantizeOptions")], [0], [1]))
    assert not compare(tmp_path, models, n=20).different


# --- sums whose scales are powers of two --------------------------------------------------------


def of_powers(kind: str, scales: tuple[float, float, float], shifting: bool = True) -> bytes:
    """x, and x transposed in another scale, added or subtracted."""
    first, second, out = (T((1, 8, 8), s, 0, type="int16") for s in scales)
    axes = T((3,), data=np.array([0, 2, 1], np.int32), type="int32")
    ops = [
        O("QUANTIZE", [0], [1], "QuantizeOptions"),
        O("TRANSPOSE", [1, 4], [2], "TransposeOptions"),
        O(kind, [0, 2], [3], f"{kind.title()}Options", {"PotScaleInt16": shifting}),
    ]
    return model([first, second, second, out, axes], ops, [0], [3])


@pytest.mark.parametrize("kind", ["ADD", "SUB"])
def test_sums_of_powers_of_two(tmp_path: Path, kind: str) -> None:
    a, b = 2.0**-9, 2.0**-11
    some = [(a, b, a), (b, a, a), (a, a, a), (b, a, a * 1.0005), (b, a, a * 1.001), (b, a, 0.9 * a)]
    models = [of_powers(kind, scales, on) for scales in some for on in (True, False)]
    assert not compare(tmp_path, models, n=20).different
    shifted, general = (from_tflite(of_powers(kind, (b, a, a), on)) for on in (True, False))
    x = np.random.default_rng(2).integers(-999, 999, (20, 8, 8))
    assert not np.array_equal(shifted.forward(x), general.forward(x))
    micro = [from_tflite(of_powers(kind, (b, a, a), on), "cmsis_nn") for on in (True, False)]
    assert micro[0].digest == micro[1].digest == general.digest
    with pytest.raises(NotCovered, match="one as its output, one not above it"):
        from_tflite(of_powers(kind, (a, a, b)))


# --- lines between sigmoids ---------------------------------------------------------------------


def curve(kind: str, scale: float) -> bytes:
    tensors = [T((1, 2**16), s, 0, type="int16") for s in (scale, 2.0**-15)]
    return model(tensors, [O(kind, [0], [1])], [0], [1])


@pytest.mark.parametrize("kind", ["LOGISTIC", "TANH"])
def test_every_code_of_a_curve(tmp_path: Path, kind: str) -> None:
    codes = np.arange(-(2**15), 2**15)[None]
    own = [2.0**-12] + [2.0**-11] * (kind == "TANH")  # of the optimized kernels
    scales = [2.0**-10, 2.0**-13, 1 / 48, 1 / 4800, 0.3, 3e-4, 1e-5, 1e-9]
    jobs = [(curve(kind, s), codes, r) for s in scales for r in RUNTIMES]
    jobs += [(curve(kind, s), codes, "tflite_ref") for s in own]
    for (made, _, runtime), theirs in zip(jobs, run(tmp_path, jobs)):
        assert np.array_equal(from_tflite(made, runtime).forward(codes), theirs[1])
    for scale in own:
        with pytest.raises(NotCovered, match="the optimized kernel, which takes the scale"):
            from_tflite(curve(kind, scale), "xnnpack")
    with pytest.raises(NotCovered, match="no multiplier of 15 bits"):
        from_tflite(curve(kind, 1e-20))


# --- softmax ------------------------------------------------------------------------------------


def shares(scale: float, beta: float, channels: int, of: str = "int16") -> bytes:
    end = (2.0**-15, 0) if of == "int16" else (2.0**-16, -(2**15))
    rows = (1, 2**16, channels) if channels == 2 else (1, channels)
    tensors = [T(rows, scale, 0, type=of), T(rows, *end, type="int16")]
    return model(tensors, [O("SOFTMAX", [0], [1], "SoftmaxOptions", {"Beta": beta})], [0], [1])


def test_every_difference_of_a_softmax(tmp_path: Path) -> None:
    x = np.stack([np.arange(-(2**15), 2**15), np.full(2**16, 2**15 - 1)], axis=-1)[None]
    made = [shares(s, beta, 2) for s, beta in ((0.000164, 0.76), (2.0**-12, 1.0), (0.0011, 0.7))]
    for one, theirs in zip(made, run(tmp_path, [(m, x, "tflite_ref") for m in made])):
        network = from_tflite(one)
        assert np.array_equal(network.forward(x), theirs[1])
        assert [from_tflite(one, r).digest == network.digest for r in RUNTIMES] == [True] * 3
    assert from_tflite(made[0], "cmsis_nn").digest != from_tflite(made[0]).digest


@pytest.mark.parametrize("of", ["int16", "int8"])
def test_softmaxes_of_many_channels(tmp_path: Path, of: str) -> None:
    rng = np.random.default_rng(3)
    wide = 0 if of == "int16" else 8
    models = [
        shares(2.0 ** (wide + rng.uniform(-16, -7)), float(rng.uniform(0.2, 3)), n, of)
        for n in (1, 3, 10, 64, 300)
    ]
    assert not compare(tmp_path, models, n=16).different


def test_a_softmax_of_another_type_is_refused() -> None:
    tensors = [T((1, 4), 0.1, 0, type="int16"), T((1, 4), 2.0**-8, -128)]
    op = O("SOFTMAX", [0], [1], "SoftmaxOptions", {"Beta": 1.0})
    with pytest.raises(NotCovered, match="SOFTMAX"):
        from_tflite(model(tensors, [op], [0], [1]))
    with pytest.raises(NotCovered, match="32 bits, beyond which the kernel wraps"):
        from_tflite(shares(8.0, 1.0, 3))


# --- 32 bits ------------------------------------------------------------


def grown(kind: str, gain: float, type: str = "int16") -> bytes:
    """One operator whose gain is above 1."""
    lowest = {"int16": 0, "int8": -128}[type]
    tensors = [T((1, 4), 1.0, lowest, type=type), T((1, 4), 1 / gain, 0, type=type)]
    options: dict[str, Any] = {"LEAKY_RELU": ("LeakyReluOptions", {"Alpha": 0.5})}
    if kind == "FULLY_CONNECTED":
        weights = T((4, 4), 1.0, 0, np.eye(4, dtype=np.int8))
        op = O(kind, [0, 2, -1], [1], "FullyConnectedOptions", {})
        return model([*tensors, weights], [op], [0], [1])
    return model(tensors, [O(kind, [0], [1], *options.get(kind, ()))], [0], [1])


@pytest.mark.parametrize("kind", ["FULLY_CONNECTED", "LEAKY_RELU", "QUANTIZE", "RELU"])
def test_gains_that_wrap_in_the_kernel_are_refused(tmp_path: Path, kind: str) -> None:
    """2**15 codes times 2**14 are inside 32 bits, times 2**17 beyond."""
    within, beyond = grown(kind, 2.0**14), grown(kind, 2.0**17)
    assert not compare(tmp_path, [within], n=20, runtimes=["tflite_ref"]).different
    for runtime in ALL:
        with pytest.raises(NotCovered, match=f"{kind}, .*32 bits, beyond which the kernel wraps"):
            from_tflite(beyond, runtime)


def test_an_activation_that_no_32_bits_hold() -> None:
    tensors = [T((1, 4), 1e-10, 0), T((1, 4), 1e-10, 0)]
    with pytest.raises(NotCovered, match=r"an end of its activation: got 6.0 over the scale 1.0"):
        from_tflite(model(tensors, [O("RELU6", [0], [1])], [0], [1]))


def of_codes(kind: str, scales: tuple[float, float], *options: Any) -> bytes:
    zero = -128 if kind == "SOFTMAX" else 0
    tensors = [T((1, 4), scales[0], 0), T((1, 4), scales[1], zero)]
    return model(tensors, [O(kind, [0], [1], *options)], [0], [1])


def of_weights(kind: str, zero: int) -> bytes:
    shape = (1, 1, 1, 2)
    weights = T(shape, 0.5, zero, np.ones(shape, np.int8), axis=3)
    tensors = [T(shape, 0.5, 0), weights, T((2,), 0.25, 0, np.zeros(2, np.int32), "int32")]
    op = O(kind, [0, 1, 2], [3], OPTIONS[kind], {**DILATED, "DepthMultiplier": 1})
    return model([*tensors, T(shape, 1.0, 0)], [op], [0], [3])


def joined() -> bytes:
    tensors = [T((1, 4), 0.5, 0), T((1, 8), 0.5, 0)]
    values = {"Axis": 1, "FusedActivationFunction": 1}
    return model(
        tensors, [O("CONCATENATION", [0, 0], [1], "ConcatenationOptions", values)], [0], [1]
    )


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (of_codes("SOFTMAX", (1e-9, 2.0**-8), "SoftmaxOptions", {"Beta": 1.0}), "above 2..-26"),
        (of_codes("HARD_SWISH", (0.1, 1e5)), "a multiplier below 2..-16"),
        (of_codes("TANH", (0.1, 1e-30)), "its output's scale: .* 32 bits suffice for"),
        (of_powers("ADD", (1.0, 1.0, 2.0**-16)), "one as its output, one not above it"),
        (of_powers("SUB", (1.0, 1.0, 2.0**-16), False), "the last of its multipliers"),
        (of_weights("DEPTHWISE_CONV_2D", 3), "its weights have zero points"),
        (joined(), "an activation is fused to it"),
    ],
)
def test_what_the_kernels_refuse_or_get_wrong(made: bytes, reason: str) -> None:
    with pytest.raises(NotCovered, match=reason):
        from_tflite(made)
