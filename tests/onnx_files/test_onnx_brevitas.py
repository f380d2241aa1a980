"""Brevitas modules by two roads: from_brevitas, and Brevitas's own export read by from_onnx."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("onnxoptimizer")
pytest.importorskip("onnxruntime")

import torch
from brevitas_zoo import NOT_QCDQ, QUANTIZED_BIAS, ZOO, module, plain
from onnx_networks import run_onnxruntime, run_qonnx

from refqnn import Network
from refqnn.brevitas import from_brevitas
from refqnn.errors import NotCovered
from refqnn.onnx import compare, from_onnx, read_onnx, to_onnx

pytestmark = pytest.mark.filterwarnings("ignore")
FORMATS = ["qonnx", "qcdq"]


@cache
def calibrated(name: str) -> tuple[Any, Any]:
    return module(name)


@cache
def ours(name: str) -> Network:
    model, X = calibrated(name)
    return from_brevitas(model, X[:1])


def export(name: str, form: str, path: Path, dynamo: bool = False) -> Path:
    from brevitas.export import export_onnx_qcdq, export_qonnx

    model, X = calibrated(name)
    writer = {"qonnx": export_qonnx, "qcdq": export_onnx_qcdq}[form]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer(model, args=X[:1], export_path=str(path), dynamo=dynamo)
    return path


def agree(name: str, form: str, folder: Path, dynamo: bool) -> None:
    model, X = calibrated(name)
    network = from_onnx(export(name, form, folder / "model.onnx", dynamo))
    assert compare(ours(name), network, X.numpy()) is None
    with torch.no_grad():
        y = plain(model(X)).numpy()
    np.testing.assert_allclose(network.predict(X.numpy()), y, rtol=1e-5, atol=1e-5)


CASES = [(n, f) for n in ZOO for f in FORMATS if not (f == "qcdq" and n in NOT_QCDQ)]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_brevitas_export_read_by_us_is_from_brevitas(name, form, tmp_path):
    agree(name, form, tmp_path, dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"), [c for c in CASES if not (c[1] == "qcdq" and c[0] in QUANTIZED_BIAS)]
)
def test_the_dynamo_export_is_the_same_network(name, form, tmp_path):
    agree(name, form, tmp_path, dynamo=True)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_from_brevitas_written_by_us_runs_elsewhere(name, flavour):
    _, X = calibrated(name)
    network = ours(name)
    samples = X[: 10 if flavour == "qonnx" else 200].numpy()
    expected = network.forward(network.quantize_input(samples))
    model = to_onnx(network, flavour=flavour)
    if flavour == "qonnx":
        np.testing.assert_array_equal(run_qonnx(model, samples), expected)
        return
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        np.testing.assert_array_equal(run_onnxruntime(model, samples, level), expected)


def accumulators(network: Network, y: np.ndarray) -> np.ndarray:
    """The integers behind dequantized outputs; a kernel may start its sum from the float bias."""
    door = network.output_dequantizer
    return np.rint((y.astype(np.float64) - door.offset) / door.scale).astype(np.int64)


def run_rows(path: Path, rows: np.ndarray, **options: Any) -> np.ndarray:
    """Brevitas writes the batch of its example: one row at a time."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), settings, providers=["CPUExecutionProvider"], **options
    )
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[None]})[0] for x in rows])


AS_WRITTEN = {"disabled_optimizers": ["WeightBiasQuantization"]}


@pytest.mark.parametrize("name", ["power_of_two", "residual"])
def test_power_of_two_networks_are_the_same_integers_everywhere(name, tmp_path):
    """The file in onnxruntime, the module in torch, and our integers."""
    model, X = calibrated(name)
    path = export(name, "qcdq", tmp_path / "q.onnx")
    network = from_onnx(path)
    rows = X[:200].numpy()
    mine = network.forward(network.quantize_input(rows))
    with torch.no_grad():
        theirs = plain(model(X[:200])).numpy()
    np.testing.assert_array_equal(mine, accumulators(network, theirs))
    np.testing.assert_array_equal(mine, accumulators(network, run_rows(path, rows, **AS_WRITTEN)))


def test_the_default_optimizer_of_onnxruntime_rounds_float_biases(tmp_path):
    """A divergence of onnxruntime, recorded: WeightBiasQuantization rounds the bias of a Conv."""
    path = export("residual", "qcdq", tmp_path / "q.onnx")
    network = from_onnx(path)
    rows = calibrated("residual")[1][:100].numpy()
    mine = network.forward(network.quantize_input(rows))
    assert (accumulators(network, run_rows(path, rows)) != mine).any()


PUBLISHED = ["tfc_1w2a", "tfc_2w2a", "cnv_1w1a", "cnv_2w2a"]


@pytest.mark.parametrize(
    "name", [*PUBLISHED[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED[2:])]
)
def test_published_architectures_of_the_finn_examples(name, tmp_path):
    """TFC and CNV as brevitas_examples has them: 2x - 1 in front of the first quantizer."""
    import configparser

    examples = pytest.importorskip("brevitas_examples.bnn_pynq")
    from brevitas.export import export_qonnx
    from brevitas_examples.bnn_pynq.models.CNV import cnv
    from brevitas_examples.bnn_pynq.models.FC import fc

    config = configparser.ConfigParser()
    config.read(Path(examples.__file__).parent / "cfg" / f"{name}.ini")
    torch.manual_seed(1)
    make, shape = (fc, (1, 28, 28)) if name.startswith("tfc") else (cnv, (3, 32, 32))
    model = make(config).train()
    model(torch.rand(16, *shape))
    model.eval()
    X = torch.rand(6, *shape)
    path = str(tmp_path / "model.onnx")
    export_qonnx(model, args=X[:1], export_path=path, dynamo=False)
    if name.startswith("cnv"):
        with pytest.raises(NotCovered, match="input='/Sub_output_0'"):
            from_onnx(path)
        imported, X_in = read_onnx(path, input="/Sub_output_0"), 2 * X - 1
    else:
        imported, X_in = read_onnx(path), X
    with torch.no_grad():
        y = plain(model(X)).numpy()
    np.testing.assert_allclose(imported.network.predict(X_in.numpy()), y, rtol=1e-5, atol=1e-5)
