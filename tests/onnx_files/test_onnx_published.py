"""Networks that others trained and published, against the tools they published them for.

The qonnx package carries one family: super-resolution networks (ESPCN, trained on BSDS300) of 4 and
8-bit weights and 4 and 8-bit activations.  More can be put into a folder that the environment
variable REFQNN_ONNX_MODELS names; tests of what is not there are skipped.  `pip download --no-deps
finn-plus-tests==1.6.0`, unpacked there, holds a 1-bit MNIST network with its inputs and answers,
and a 2-bit network for network intrusion (UNSW-NB15) as parameters for Brevitas.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")

import onnx
import qonnx
from onnx import numpy_helper

from refqnn import AffineQuantizer, IntFormat, Network, Requantize, SymmetricQuantizer
from refqnn.errors import NotCovered
from refqnn.network import INPUT, inputs_of
from refqnn.onnx import from_onnx, read_onnx
from refqnn.onnx.reader import InputDoor
from refqnn.ops import Gather

SIZE = 16
ESPCN = Path(qonnx.__file__).parent / "data" / "onnx" / "bsd300x3-espcn"
FOLDER = os.environ.get("REFQNN_ONNX_MODELS", "")

if not ESPCN.exists():
    pytest.skip("this qonnx carries no models", allow_module_level=True)


def photographs(n: int) -> np.ndarray:
    """Patches of a photograph, in [0, 1]."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = datasets.load_sample_image("china.jpg").transpose(2, 0, 1) / 255
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [image.shape[1] - SIZE, image.shape[2] - SIZE], (n, 2))
    return np.array([image[:, i : i + SIZE, j : j + SIZE] for i, j in corners], dtype=np.float32)


def resized(path: Path) -> Any:
    """The model on smaller images: its convolutions do not care."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    model = onnx.load(path)
    for info in (*model.graph.input, *model.graph.output):
        for d in info.type.tensor_type.shape.dim:
            d.dim_value = d.dim_value * SIZE // 128 if d.dim_value >= 128 else d.dim_value
    del model.graph.value_info[:]
    return ModelWrapper(model).transform(InferShapes())


def constants(model: Any) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def codes_of(wrapper: Any, node: str, values: dict[str, np.ndarray]) -> np.ndarray:
    """The codes that a Quant node of the file gave."""
    (quant,) = [n for n in wrapper.graph.node if n.name == node]
    scale = constants(wrapper.model)[quant.input[1]]
    return np.rint(values[quant.output[0]] / scale).astype(np.int64)


def compare_layers(network: Network, theirs: dict[str, np.ndarray]) -> tuple[int, int, int]:
    """(differing, near ties, compared): every quantizer fed with the file's own codes.

    A near tie: float32 sums of K products, of mass M, err by at most (K + 4) * M * 2**-24.
    """
    differing = near = compared = 0
    for node in network.nodes:
        if not isinstance(node.op, Requantize):
            continue
        (layer,) = inputs_of(node)
        (source,) = inputs_of(network[layer])
        op: Any = network[layer].op
        acc = op.forward(theirs[source])
        wrong = node.op.forward(acc) != theirs[node.name]
        rows = np.abs(op.weight).reshape(len(op.weight), -1).sum(axis=1)
        mass = int(rows.max() * np.abs(theirs[source]).max())
        allowed = 1 + (op.weight[0].size + 4) * mass * 2.0**-24
        for index in np.argwhere(wrong):
            row = node.op.thresholds[index[1] if node.op.channels > 1 else 0]
            near += int(np.abs(row - acc[tuple(index)]).min() <= allowed)
        differing += int(wrong.sum())
        compared += wrong.size
    return differing, near, compared


UPSAMPLED = SymmetricQuantizer(np.float32(0.006042002700269222), IntFormat(8, signed=False))
PIXELS = SymmetricQuantizer(1 / 256, IntFormat(8, signed=False))

PARTS: dict[str, tuple[str, InputDoor | None, str | None]] = {
    "subpixel": ("subpixel", PIXELS, "onnx::DepthToSpace_73"),
    "nn_resize, before it resizes": ("nn_resize", None, "onnx::Resize_80"),
    "nn_resize, behind": ("nn_resize", {"x.23": UPSAMPLED}, None),
    "nn_resize, whole": ("nn_resize", None, None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", PARTS)
def test_super_resolution_networks(part):
    from qonnx.core.onnx_exec import execute_onnx

    folder, door, output = PARTS[part]
    wrapper = resized(ESPCN / folder / "quant_model.onnx")
    network = from_onnx(wrapper.model, input=door, output=output)
    total = np.zeros(3, dtype=np.int64)
    for x in photographs(4)[:, None]:
        floats = PIXELS.dequantize(PIXELS.quantize(x)) if door is PIXELS else x
        (name,) = [i.name for i in wrapper.graph.input]
        values = execute_onnx(wrapper, {name: floats}, return_full_exec_context=True)
        start = values["x.23"] if isinstance(door, dict) else floats
        theirs = {INPUT: network.quantize_input(start)}
        for node in network.nodes:
            if isinstance(node.op, Requantize):
                theirs[node.name] = codes_of(wrapper, node.name, values)
            elif isinstance(node.op, Gather) and (source := inputs_of(node)[0]) in theirs:
                theirs[node.name] = node.op.forward(theirs[source])
        total += compare_layers(network, theirs)
    differing, near, compared = total
    assert compared > 10_000
    assert differing == near  # the file's arithmetic is float32
    assert differing <= compared // 10_000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("into", ["qcdq", "affine"])
def test_what_other_tools_make_of_them_is_the_same_program(into):
    """qonnx's own rewriting: Quant to QCDQ; biases and batch normalizations to Add and Mul."""
    from qonnx.transformation.batchnorm_to_affine import BatchNormToAffine
    from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ

    steps = {"qcdq": [QuantToQCDQ()], "affine": [ExtractBiasFromConv(), BatchNormToAffine()]}[into]
    wrapper = resized(ESPCN / "nn_resize" / "quant_model.onnx")
    before = from_onnx(wrapper.model, output="onnx::Resize_80")
    for step in steps:
        wrapper = wrapper.transform(step)
    after = from_onnx(wrapper.model, output="onnx::Resize_80")
    codes = before.quantize_input(photographs(2))
    np.testing.assert_array_equal(after.quantize_input(photographs(2)), codes)
    np.testing.assert_array_equal(after.forward(codes), before.forward(codes))


@pytest.mark.filterwarnings("ignore")
def test_what_stands_in_the_way_is_named():
    with pytest.raises(NotCovered, match=r"Conv_5.*input is float.*input='UINT8'"):
        from_onnx(resized(ESPCN / "subpixel" / "quant_model.onnx").model)
    for name in ("floatquant_exec/qonnx_act_weight_fp8.onnx", "mnist-conv/model.onnx"):
        with pytest.raises(NotCovered, match=r"^node '"):
            from_onnx(ESPCN.parent / name)


# --- not in any package that we install -------------------------------------------------------


def published(pattern: str) -> Path:
    found = sorted(Path(FOLDER).rglob(pattern)) if FOLDER else []
    if not found:
        pytest.skip(f"no {pattern} in the folder that REFQNN_ONNX_MODELS names")
    return found[0]


def counting_bits(path: str) -> Any:
    """The same network with products of signs turned into counts of equal bits."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.bipolar_to_xnor import ConvertBipolarMatMulToXnorPopcount
    from qonnx.transformation.infer_datatypes import InferDataTypes

    wrapper = ModelWrapper(path).transform(InferDataTypes())
    return wrapper.transform(ConvertBipolarMatMulToXnorPopcount())


@pytest.mark.filterwarnings("ignore")
def test_a_one_bit_network_for_digits():
    """Pixels are annotated as UINT8; the file divides, shifts and takes signs."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    path = published("build_dataflow/model.onnx")
    imported = read_onnx(path)
    network, wrapper = imported.network, ModelWrapper(str(path))
    assert network.input_format == IntFormat(8, signed=False)
    assert "TopK" in imported.dropped[0]
    X = np.load(path.with_name("input.npy"))
    noise = np.random.default_rng(0).integers(-90, 90, (40, *X.shape[1:]))
    X = np.concatenate([X, np.clip(np.repeat(X, 10, axis=0) + noise, 0, 255)]).astype(np.float32)
    trace = network.trace(X.astype(np.int64))
    classes = network.dequantize_output(trace[network.output]).argmax(axis=1)
    np.testing.assert_array_equal(classes[:4], np.load(path.with_name("expected_output.npy")))
    counted = counting_bits(str(path))
    assert {n.op_type for n in counted.graph.node} >= {"XnorPopcountMatMul"}
    again = from_onnx(counted.model)  # counts: half of the sums of signs
    np.testing.assert_array_equal(2 * again.forward(X.astype(np.int64)), trace[network.output])
    for i, x in enumerate(X):
        values = execute_onnx(wrapper, {"global_in": x[None]}, return_full_exec_context=True)
        for k, name in enumerate(n.name for n in network.accumulators()):
            signs = -1 if name.endswith("negated") else 1
            theirs = np.abs(values[f"MatMul_{k}_out0"][0])
            np.testing.assert_array_equal(np.abs(signs * trace[name][i]), theirs)
        assert classes[i] == values["global_out"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["qonnx", "qcdq"])
def test_a_two_bit_network_for_intrusions(form, tmp_path):
    """Its first layer takes the features themselves: bits, which the caller declares."""
    parameters = published("cybsec-mlp/state_dict.pth")
    torch = pytest.importorskip("torch")
    qnn, export = pytest.importorskip("brevitas.nn"), pytest.importorskip("brevitas.export")
    state = torch.load(parameters, "cpu", weights_only=False)
    state = state["models_state_dict"][0] if "models_state_dict" in state else state
    layers = []
    for width in (593, 64, 64):
        layers += [
            qnn.QuantLinear(width, 64, bias=True, weight_bit_width=2),
            torch.nn.BatchNorm1d(64),
            torch.nn.Dropout(0.5),
            qnn.QuantReLU(bit_width=2),
        ]
    last = qnn.QuantLinear(64, 1, bias=True, weight_bit_width=2)
    module = torch.nn.Sequential(*layers, last)
    module.load_state_dict(state)
    module.eval()
    bits = np.random.default_rng(0).integers(0, 2, (500, 593))
    X = torch.tensor(bits, dtype=torch.float32)
    path = str(tmp_path / "model.onnx")
    write = {"qonnx": export.export_qonnx, "qcdq": export.export_onnx_qcdq}[form]
    write(module, args=X[:1], export_path=path, dynamo=False)
    with pytest.raises(NotCovered, match=r"Gemm.*input='UINT8'"):
        from_onnx(path)
    network = from_onnx(path, input="BINARY")
    trace = network.trace(bits)
    quantizers = [n.name for n in network.nodes if isinstance(n.op, Requantize)]
    y = X
    with torch.no_grad():
        for layer in module:
            y = layer(y)
            if isinstance(layer, qnn.QuantReLU):
                scale = float(layer.act_quant.scale())
                np.testing.assert_array_equal(trace[quantizers.pop(0)], np.rint(y.numpy() / scale))
    np.testing.assert_allclose(network.dequantize_output(trace[network.output]), y, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_both_kinds_of_doors_say_the_same():
    """A declared quantizer of scale 1 and declared codes are one and the same program."""
    model = resized(ESPCN / "nn_resize" / "quant_model.onnx").model
    door = AffineQuantizer(1.0, 3, IntFormat(8, signed=False))
    codes = from_onnx(model, input="UINT8", output="onnx::Resize_80")
    floats = from_onnx(model, input=door, output="onnx::Resize_80")
    assert codes.input_quantizer is None
    assert floats.input_quantizer is door
    assert [n.name for n in codes.nodes] == [n.name for n in floats.nodes]
