"""Dumps of a runtime use the names of a file's tensors, which are not those of our nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refqnn import (
    Conv2d,
    Flatten,
    IntFormat,
    Linear,
    MaxPool2d,
    Network,
    Node,
    Requantize,
    diagnose,
    from_onnx,
    to_onnx,
)
from refqnn.dumps import arranged
from refqnn.errors import InvalidArgument

pytest.importorskip("onnx")

FLAVOURS = ("qonnx", "qcdq", "integer")


def network(signed: bool = False) -> Network:
    rng = np.random.default_rng(5)
    nodes = [
        Node("conv", Conv2d(rng.integers(-3, 4, (2, 1, 2, 2)), rng.integers(-9, 10, 2))),
        Node("act", Requantize.from_shift(2, IntFormat(4, signed=signed))),
        Node("pool", MaxPool2d(2)),
        Node("flat", Flatten()),
        Node("fc", Linear(rng.integers(-3, 4, (3, 8)))),
    ]
    return Network(nodes, input_shape=(1, 5, 5), input_format=IntFormat(3, signed=False))


def codes() -> Any:
    return np.random.default_rng(6).integers(0, 8, (4, 1, 5, 5))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_tensor_that_is_mapped_holds_the_integers_of_its_node(
    flavour: Any, signed: bool, tmp_path: Path
) -> None:
    """onnxruntime says what each tensor of the file holds."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    to_onnx(network(signed), tmp_path / "net.onnx", flavour=flavour)
    model = onnx.load(tmp_path / "net.onnx")
    read = from_onnx(model)
    assert set(read.tensors.values()) >= {node.name for node in read} - {"flat"}
    given = codes()[:1]
    trace = read.trace(given)
    if flavour == "qonnx":
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes

        model = ModelWrapper(model).transform(InferShapes())
        start = {model.graph.input[0].name: given.astype(np.float32)}
        values = execute_onnx(model, start, return_full_exec_context=True)
    else:
        names = [name for name in read.tensors if name != model.graph.input[0].name]
        kept = {o.name for o in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in kept)
        session = runtime.InferenceSession(model.SerializeToString())
        (entry,) = session.get_inputs()
        kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
        found = session.run(names, {entry.name: given.astype(kinds[entry.type])})
        values = dict(zip(names, found))
    for name, value in read.tensors.items():
        if name in values:
            np.testing.assert_array_equal(np.asarray(values[name]), trace[value])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_dumps_by_the_names_of_tensors(flavour: Any, tmp_path: Path) -> None:
    to_onnx(network(), tmp_path / "net.onnx", flavour=flavour)
    read = from_onnx(tmp_path / "net.onnx")
    trace = network().trace(codes())
    dump = {name: trace[name] for name in ("input", "conv", "act", "fc")}
    assert read.diff(dump) is None
    assert diagnose(read, dump).ok
    assert diagnose(read, {"device": trace["act"]}, codes(), names={"device": "act"}).ok
    wrong = {**dump, "act": trace["act"] ^ 1}
    difference = read.diff(wrong)
    assert difference is not None
    assert difference.node == read.tensors["act"]
    assert diagnose(read, wrong, budget_s=0).findings[0].node == read.tensors["act"]
    both = {**dump, read.tensors["act"]: trace["act"]}
    assert set(arranged(read, both, 4)) == {read.value_of(name) for name in dump}
    with pytest.raises(InvalidArgument, match="values of 'act': got others than"):
        diagnose(read, {read.tensors["act"]: trace["act"], "act": wrong["act"]}, codes())
    with pytest.raises(InvalidArgument, match="'act'"):
        diagnose(read, {"nothing": trace["act"]}, codes())


def test_floats_in_units_of_a_scale_are_not_the_integers_of_a_node() -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    scale, weight = np.float32(0.25), np.array([[1, -2], [3, 4]], np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", "s", "z"], ["x_floats"]),
        helper.make_node("MatMul", ["x_floats", "w"], ["y"]),
    ]
    constants = {"s": scale, "z": np.uint8(3), "w": weight}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", kind.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    read = from_onnx(model)
    assert read.tensors == {"x_codes": "input"}
