"""Malformed, truncated, cyclic and hostile files end in our error; no other file is read."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import Graph

from refqnn.errors import FileFormatError, InvalidType, NotCovered, RefqnnError
from refqnn.onnx import from_onnx, operators

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def layer() -> onnx.ModelProto:
    g = Graph((4,))
    g.quantize(0.25)
    g.add("MatMul", g.const(WEIGHTS))
    return g.model(TensorProto.FLOAT)


def external(
    location: str, offset: int | None = None, length: int | None = None
) -> onnx.ModelProto:
    model = layer()
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return model


def written(folder: Path, model: onnx.ModelProto) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_inside_the_folder_are_read(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"....." + WEIGHTS.tobytes())
    path = written(tmp_path, external("weights.bin", 5, WEIGHTS.nbytes))
    np.testing.assert_array_equal(from_onnx(path).nodes[0].op.weight, WEIGHTS.T)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "/etc/passwd", "sub/../../secret.bin", "link.bin", "", ".", "/dev/zero"],
)
def test_external_data_outside_the_folder_are_not_read(tmp_path, location):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHTS.tobytes())
    folder = tmp_path / "model"
    path = written(folder, external(location))
    (folder / "link.bin").symlink_to(secret)
    with pytest.raises(FileFormatError, match="inside the folder"):
        from_onnx(path)


@pytest.mark.parametrize(("offset", "length"), [(-1, 48), (0, 49), (40, 48), (0, 2**62), (1, None)])
def test_external_data_must_lie_inside_their_file_and_fill_the_tensor(tmp_path, offset, length):
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(FileFormatError, match="c2"):
        from_onnx(written(tmp_path, external("weights.bin", offset, length)))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="regular file"):
        from_onnx(written(tmp_path, external("pipe")))


def test_a_model_in_memory_reads_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(WEIGHTS.tobytes())
    for source in (external("weights.bin"), external("weights.bin").SerializeToString()):
        with pytest.raises(FileFormatError, match="give a path"):
            from_onnx(source)


def test_truncated_and_altered_files():
    data = layer().SerializeToString()
    assert from_onnx(data).input_shape == (4,)
    for end in range(len(data)):
        with suppress(RefqnnError):
            from_onnx(data[:end])
    rng = random.Random(0)
    for _ in range(3000):
        altered = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            altered[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(RefqnnError):
            from_onnx(bytes(altered))


def test_other_things_than_models(tmp_path):
    for data in (b"", b"\x00" * 64, b"PK\x03\x04" + b"\x00" * 64, os.urandom(512)):
        with pytest.raises(FileFormatError):
            from_onnx(data)
    with pytest.raises(InvalidType, match="model"):
        from_onnx(17)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "absent.onnx")


def test_cycles_and_missing_tensors():
    model = layer()
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]
    with pytest.raises(FileFormatError, match="cycle"):
        from_onnx(model)
    model = layer()
    model.graph.node[-1].input[0] = "nothing"
    with pytest.raises(FileFormatError, match=r"MatMul_2.*'nothing'"):
        from_onnx(model)
    model = layer()
    model.graph.node[1].output[0] = model.graph.node[0].output[0]
    with pytest.raises(FileFormatError, match="more than one"):
        from_onnx(model)


def test_nodes_in_any_order_mean_the_same():
    model, shuffled = layer(), layer()
    nodes = list(reversed(shuffled.graph.node))
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    assert from_onnx(shuffled).digest == from_onnx(model).digest


def test_shapes_that_the_data_do_not_fill():
    for dims in ((4, 4), (2**40,), (2**31, 2**31, 2**31), (-1, 12), (0,), (2**26, 2)):
        model = layer()
        tensor = model.graph.initializer[-1]
        del tensor.dims[:]
        tensor.dims.extend(dims)
        with pytest.raises(RefqnnError):
            from_onnx(model)
        floats = helper.make_tensor("c2", TensorProto.FLOAT, [2], [1.0, 2.0])
        del floats.dims[:]
        floats.dims.extend(dims)
        model.graph.initializer[-1].CopyFrom(floats)
        with pytest.raises(RefqnnError):
            from_onnx(model)


def bomb(name: str) -> onnx.ModelProto:
    g = Graph((4,))
    if name == "input":
        g = Graph((2**20, 2**20))
        g.quantize(0.25)
    elif name == "expand":
        x, g.last = g.quantize(0.25), g.const(1.0)
        g.add("Expand", g.const([2**20, 2**20], np.int64))
        w, g.last = g.last, x
        g.add("MatMul", w)
    elif name == "concat":
        x, g.last = g.quantize(0.25), g.const(np.ones((4, 64)))
        for _ in range(60):
            g.add("Concat", g.last, axis=1)
        w, g.last = g.last, x
        g.add("MatMul", w)
    elif name == "broadcast":
        x, g.last = g.quantize(0.25), g.const(np.ones((2**17, 1)))
        g.add("Add", g.const(np.ones((1, 2**17))))
        w, g.last = g.last, x
        g.add("MatMul", w)
    elif name == "constant of shape":
        x, g.last = g.quantize(0.25), g.const([2**20, 2**20], np.int64)
        g.add("ConstantOfShape")
        w, g.last = g.last, x
        g.add("MatMul", w)
    elif name == "pads":
        g = Graph((1, 4, 4))
        g.quantize(0.25)
        g.add("Conv", g.const(np.ones((1, 1, 2, 2))), pads=[2**15] * 4)
    elif name == "kernel":
        g = Graph((1, 4, 4))
        g.quantize(0.25)
        g.add("MaxPool", kernel_shape=[2**31, 2**31])
    elif name == "bits":
        g.add("Quant", *(g.const(v) for v in (1.0, 0.0, 1e9)), domain="onnx.brevitas", signed=1)
    elif name == "thresholds":
        g.quantize(0.25)
        g.add("Quant", *(g.const(v) for v in (1.0, 0.0, 32.0)), domain="onnx.brevitas", signed=1)
    elif name == "group":
        g = Graph((4, 4, 4))
        g.quantize(0.25)
        g.add("Conv", g.const(np.ones((4, 1, 2, 2))), group=0)
    elif name == "steps":
        g.quantize(0.25)
        for _ in range(3000):
            g.add("Relu")
        g.codes(0.25)
    return g.model(TensorProto.FLOAT)


BOMBS = [
    "input", "expand", "concat", "broadcast", "constant of shape", "pads", "kernel", "bits",
    "thresholds", "group",
]  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much(name):
    with pytest.raises(RefqnnError):
        from_onnx(bomb(name))


def test_a_long_chain_is_only_long():
    assert len(from_onnx(bomb("steps")).nodes) == 1


def test_graphs_functions_and_sparse_tensors_are_refused():
    model = layer()
    node = model.graph.node.add(op_type="If", input=["c0"], output=["y"], name="If_0")
    model.graph.output[0].name = "y"
    attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    attribute.g.CopyFrom(layer().graph)
    with pytest.raises(NotCovered, match=r"If_0.*graph"):
        from_onnx(model)
    model = layer()
    model.functions.add(name="f", domain="d")
    with pytest.raises(NotCovered, match="functions"):
        from_onnx(model)
    model = layer()
    model.graph.sparse_initializer.add()
    with pytest.raises(NotCovered, match="sparse"):
        from_onnx(model)
    with pytest.raises(FileFormatError, match="no graph"):
        from_onnx(onnx.ModelProto())


def test_parameters_that_are_not_finite():
    for value in (np.nan, np.inf):
        model = layer()
        model.graph.initializer[-1].CopyFrom(
            numpy_helper.from_array(np.full((4, 3), value, np.float32), "c2")
        )
        with pytest.raises(FileFormatError, match="not finite"):
            from_onnx(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pads", 1), ("strides", [1.0, 1.0]), ("group", [1]), ("auto_pad", 3), ("dilations", "ab")],
)
def test_attributes_of_another_type_are_malformed(name, value):
    g = Graph((1, 4, 4))
    g.quantize(0.25)
    g.add("Conv", g.const(np.ones((1, 1, 2, 2))), **{name: value})
    with pytest.raises(FileFormatError, match=rf"Conv_2.*attribute {name} is"):
        from_onnx(g.model(TensorProto.FLOAT))


def test_constants_that_the_evaluator_cannot_compute_are_malformed():
    g = Graph((4,))
    x, g.last = g.quantize(0.25), g.const(np.ones((4, 3)))
    g.add("Add", g.const(np.ones((5, 5))))
    w, g.last = g.last, x
    g.add("MatMul", w)
    with pytest.raises(FileFormatError, match=r"Add_2.*onnx cannot compute it"):
        from_onnx(g.model(TensorProto.FLOAT))


def test_an_error_of_ours_is_no_malformed_file(monkeypatch):
    def broken(*args: object) -> None:
        raise KeyError("a mistake of the reader")

    monkeypatch.setitem(operators.TABLE, "MatMul", broken)
    with pytest.raises(KeyError, match="a mistake of the reader"):
        from_onnx(layer())


@pytest.mark.parametrize("opset", [-1, 0, 28, 99])
def test_versions_that_nobody_knows(tmp_path, opset):
    model = layer()
    model.opset_import[0].version = opset
    with pytest.raises(NotCovered, match=f"its opset: got {opset}, expected 1 to 27"):
        from_onnx(written(tmp_path, model))


def test_two_initializers_of_one_name(tmp_path):
    model = layer()
    model.graph.initializer.append(model.graph.initializer[-1])
    with pytest.raises(FileFormatError, match=r"initializer .*: more than one has this name"):
        from_onnx(written(tmp_path, model))


def test_a_kernel_of_another_shape_than_its_weights(tmp_path):
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], kernel_shape=[5, 3])
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, (1, 1, 5, 5))
    y = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    weights = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.int8), "w")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [weights]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    with pytest.raises(FileFormatError, match=r"kernel_shape: got \[5, 3\], expected \[3, 3\]"):
        from_onnx(written(tmp_path, model))
