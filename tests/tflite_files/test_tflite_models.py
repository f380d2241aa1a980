"""The models that the microcontroller world measures itself by, against LiteRT: every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert")

from tflite_compare import RUNTIMES, compare

import refqnn
from refqnn.tflite import from_tflite

FOLDER = Path(__file__).parents[3] / "shared" / "tflite"
MODELS = [
    "anomaly_detection",
    "hello_world",
    "keyword_spotting",
    "micro_speech",
    "resnet_cifar10",
    "visual_wake_words",
]

if not FOLDER.is_dir():
    pytest.skip("the folder ../shared/tflite is absent", allow_module_level=True)


def content(name: str) -> bytes:
    return (FOLDER / f"{name}_int8.tflite").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_equals_the_runtimes(tmp_path: Path, name: str) -> None:
    result = compare(tmp_path, [content(name)], n=3)
    assert not result.different
    assert result.values > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_thousand_inputs(tmp_path: Path, name: str, runtime: str) -> None:
    for block in range(20):
        result = compare(tmp_path, [content(name)], n=50, runtimes=[runtime], seed=block)
        assert not result.different


def test_the_program_is_saved_certified_and_simplified(tmp_path: Path) -> None:
    network = from_tflite(content("micro_speech"))
    network.save(tmp_path / "net.npz")
    loaded = refqnn.load(tmp_path / "net.npz")
    x = np.random.default_rng(0).integers(-128, 128, (4, *network.input_shape))
    assert np.array_equal(loaded.forward(x), network.forward(x))
    certificate = refqnn.certify(network, method="interval")
    certificate.verify(network)
    assert all(row.signed_bits <= 32 for row in certificate.table())
    simpler = refqnn.simplify(network, certificate)
    assert np.array_equal(simpler.forward(x), network.forward(x))
