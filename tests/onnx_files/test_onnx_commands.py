"""inspect, certify, diff and convert on a model of two inputs, two outputs and a last Softmax."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from onnx_graphs import Graph

from refqnn import load
from refqnn.cli import refqnn

COMMANDS = ("inspect", "certify", "convert", "diff")


def model():
    """x and side are joined, quantized and multiplied; one output is a Softmax, one the sums."""
    g = Graph((2,))
    own = g.quantize(0.25)
    g.last = "side"
    g.add("Add", "", own, g.quantize(0.25))
    g.add("QuantizeLinear", g.const(0.5), g.const(0, np.int8))
    codes = g.last
    g.add("DequantizeLinear", g.const(0.5), g.const(0, np.int8))
    sums = g.add("MatMul", g.const([[1, -2], [3, 1]]))
    soft = g.add("Softmax")
    ends = [helper.make_tensor_value_info(t, TensorProto.FLOAT, ["n", 2]) for t in ("side", sums)]
    proto = g.model(TensorProto.FLOAT)
    proto.graph.input.append(ends[0])
    proto.graph.output.append(ends[1])
    proto.graph.output.append(
        helper.make_tensor_value_info(g.add("Relu", "", sums), TensorProto.FLOAT, ["n", 2])
    )
    proto.graph.node.append(g.nodes[-1])
    return proto, codes, sums, soft


@pytest.fixture
def run(tmp_path):
    """A command on the model; returns its status and what it says, in one line."""
    proto, *names = model()
    path, codes = tmp_path / "two.onnx", tmp_path / "X.npy"
    path.write_bytes(proto.SerializeToString())
    np.save(codes, np.array([[3, -4], [127, -128]]))
    arguments = {
        "inspect": ["inspect", path],
        "certify": ["certify", path],
        "convert": ["convert", path, tmp_path / "net.npz"],
        "diff": ["diff", path, path, "--inputs", codes],
    }

    def invoke(command, *options):
        line = [str(a) for a in (*arguments[command], *options)]
        result = CliRunner().invoke(refqnn, line, terminal_width=250)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, " ".join(result.output.split())

    return invoke, *names


@pytest.mark.parametrize("command", COMMANDS)
def test_several_inputs_and_outputs_are_refused_in_a_sentence_that_says_what_to_do(command, run):
    invoke, codes, sums, soft = run
    status, told = invoke(command)
    assert status == 2
    assert "its inputs are ['x', 'side']; networks of one input are covered" in told
    assert "--input" in told
    status, told = invoke(command, "--input", codes)
    assert status == 2
    assert f"its outputs are ['{soft}', '{sums}'" in told
    assert "--output" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_is_cut_where_input_and_output_say(command, run, tmp_path):
    invoke, codes, sums, _ = run
    status, told = invoke(command, "--input", codes, "--output", sums, "--strict")
    assert status == 0, told
    if command == "convert":
        assert load(tmp_path / "net.npz").forward([[3, -4]]).tolist() == [[-9, -10]]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_left_out_is_named_and_refused_where_strict(command, run):
    invoke, codes, _, soft = run
    status, told = invoke(command, "--input", codes, "--output", soft)
    assert status == 0
    assert "left out behind the output: node 'Softmax" in told
    status, told = invoke(command, "--input", codes, "--output", soft, "--strict")
    assert status == 2
    assert "would be left out of the network" in told
