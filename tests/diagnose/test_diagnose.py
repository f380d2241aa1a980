"""diagnose: what it walks, what it takes for a dump, what it says and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import samples, trained, zoo

from refqnn import Add, IntFormat, Linear, Network, Node, Requantize, diagnose
from refqnn.diagnosis import CATALOGUE, Deviation
from refqnn.errors import FileFormatError, InvalidArgument, InvalidType, ShapeMismatch

Dump = dict[str, np.ndarray[Any, Any]]


def mlp() -> Network:
    rng = np.random.default_rng(5)
    nodes = [
        Node("fc1", Linear(rng.integers(-9, 10, (12, 6)), rng.integers(-60, 60, 12))),
        Node("act1", Requantize.from_shift(4, IntFormat(4, signed=True))),
        Node("fc2", Linear(rng.integers(-9, 10, (10, 12)), rng.integers(-60, 60, 10))),
        Node("act2", Requantize.from_shift(4, IntFormat(4, signed=True))),
        Node("fc3", Linear(rng.integers(-9, 10, (4, 10)), rng.integers(-60, 60, 4))),
    ]
    return Network(nodes, input_shape=(6,), input_format=IntFormat(4, signed=True))


def weights(network: Network, name: str) -> tuple[np.ndarray, np.ndarray]:
    op = network[name].op
    assert isinstance(op, Linear)
    assert op.bias is not None
    return op.weight, op.bias


def shifted(acc: np.ndarray, half: int) -> np.ndarray:
    return np.clip((acc + half) >> 4, -8, 7)


def test_nothing_parts() -> None:
    network = mlp()
    found = diagnose(network, network.trace(samples(network, 20)))
    assert found.ok
    assert found.equal == ("fc1", "act1", "fc2", "act2", "fc3")
    assert found.to_dict()["findings"] == []


def test_one_cause_in_every_layer() -> None:
    """A device that truncates shifts: each layer is held against the device's own values."""
    network, x = mlp(), samples(mlp(), 60)
    dump, values = {"input": x}, x
    for i in (1, 2, 3):
        weight, bias = weights(network, f"fc{i}")
        dump[f"fc{i}"] = values @ weight.T + bias
        if i < 3:
            values = dump[f"act{i}"] = shifted(dump[f"fc{i}"], 0)
    assert "rounding_floor" in diagnose(network, dump).common  # thresholds alone leave more open
    found = diagnose(network, dump, rounding="half_up")
    assert [finding.node for finding in found.findings] == ["act1", "act2"]
    assert found.equal == ("fc1", "fc2", "fc3")
    assert found.common == {"rounding_floor"}
    assert "one cause would do for all: rounding_floor" in str(found)


@pytest.mark.parametrize("given", [["fc3"], ["act2"], ["act1", "fc3"], ["fc2"]])
def test_hidden_layers(given: list[str]) -> None:
    """The bias of the first layer is forgotten; only later values are dumped."""
    network, x = mlp(), samples(mlp(), 60)
    weight, _ = weights(network, "fc1")
    values = {"fc1": x @ weight.T}
    for node in network.nodes[1:]:
        values[node.name] = node.op.forward(values[(node.inputs or ())[0]])
    found = diagnose(network, {name: values[name] for name in given}, x)
    first = found.findings[0]
    assert ("fc1", "bias_dropped") in {(e[0].node, e[0].name) for e in first.explanations}
    assert len(found.findings) == 1


def test_a_pair_where_no_single_one_will_do() -> None:
    network, x = mlp(), samples(mlp(), 60)
    weight, _ = weights(network, "fc1")
    values = x @ np.maximum(weight, -8).clip(max=7).T  # no bias, weights of four bits
    few = [d for d in CATALOGUE if d.name.startswith(("bias_", "reads_", "w_"))]
    report = diagnose(network, {"fc1": values}, x, catalogue=few, budget_s=60)
    (found,) = report.findings
    assert {a.name for a in found.explanations[0]} == {"bias_dropped", "w_saturates_4"}
    assert found.exhausted
    assert "[bias_dropped]; and fc1" in str(report) or "[w_saturates_4]; and fc1" in str(report)


def test_two_mistakes_in_two_hidden_layers() -> None:
    network, x = mlp(), samples(mlp(), 60)
    (w1, _), (w2, b2) = weights(network, "fc1"), weights(network, "fc2")
    act = shifted(x @ w1.T, 8)
    few = [d for d in CATALOGUE if d.name.startswith(("bias_", "reads_", "w_as_int"))]
    dump = {"fc2": act @ w2.T - b2}
    (found,) = diagnose(network, dump, x, catalogue=few, budget_s=120).findings
    sets = [{(a.node, a.name) for a in e} for e in found.explanations]
    assert {("fc1", "bias_dropped"), ("fc2", "bias_subtracted")} in sets


def test_without_the_input() -> None:
    """What can be computed from given values is checked, the rest is named."""
    network, x = mlp(), samples(mlp(), 30)
    trace = network.trace(x)
    found = diagnose(network, {name: trace[name] for name in ("act1", "fc2", "fc3")})
    assert found.unchecked == ("act1",)
    assert found.equal == ("fc2", "fc3")
    assert "act1: not checked" in str(found)


@pytest.mark.parametrize("names", [["fc1"], ["act2"], ["input"]])
def test_what_cannot_be_checked_at_all_is_not_ok(names: list[str]) -> None:
    network, x = mlp(), samples(mlp(), 30)
    trace = network.trace(x)
    with pytest.raises(InvalidArgument, match=r"expected a value beside what it is computed from"):
        diagnose(network, {name: trace[name] for name in names})


def test_few_values_are_never_certain() -> None:
    network = mlp()
    x = samples(network, 1)
    trace = network.trace(x)
    wrong = trace["fc3"].copy()
    wrong[0, 1] += 1
    found = diagnose(network, {"fc3": wrong}, x, budget_s=1)
    assert not any(finding.certain for finding in found.findings)


def test_branches_read_what_is_in_force() -> None:
    nodes = [
        Node("a", Linear([[3, 1], [-2, 5]], [100, -50])),
        Node("b", Linear([[1, 2], [2, -1]]), ("input",)),
        Node("sum", Add((1, -1)), ("a", "b")),
        Node("out", Linear([[1, 1]]), ("sum",)),
    ]
    network = Network(nodes, input_shape=(2,), input_format=IntFormat(4, signed=True))
    x = samples(network, 40)
    a, b = x @ np.array([[3, 1], [-2, 5]]).T, x @ np.array([[1, 2], [2, -1]]).T
    found = diagnose(network, {"sum": a - b, "out": (a - b).sum(1, keepdims=True)}, x)
    (finding,) = found.findings
    assert ("a", "bias_dropped") in {(e[0].node, e[0].name) for e in finding.explanations}
    assert found.equal == ("out",)


# --- dumps ------------------------------------------------------------------------------------


@pytest.fixture
def dumped() -> tuple[Network, Dump]:
    network = zoo()
    return network, network.trace(samples(network, 5))


def test_files_and_folders(dumped: tuple[Network, Dump], tmp_path: Path) -> None:
    network, trace = dumped
    np.savez(tmp_path / "dump.npz", **trace)
    folder = tmp_path / "layers"
    folder.mkdir()
    for name, values in trace.items():
        np.save(folder / f"{name}.npy", values.astype(np.int32))
    for dump in (tmp_path / "dump.npz", str(folder), {k: v.tolist() for k, v in trace.items()}):
        found = diagnose(network, dump)
        assert found.ok
        assert len(found.equal) == len(network.nodes)


def test_layouts(dumped: tuple[Network, Dump]) -> None:
    network, trace = dumped
    last = {
        name: np.moveaxis(v, 1, -1) if v.ndim > 2 else v.astype(np.float32)
        for name, v in trace.items()
    }
    found = diagnose(network, last)
    assert found.ok
    assert found.notes["conv"] == "read with the channels last, as its shape says"
    flat = {name: v.reshape(len(v), -1) for name, v in last.items()}
    flat["flat"] = flat[network["flat"].inputs[0]]  # it flattens what it has, in its order
    assert diagnose(network, flat, layout="nhwc").ok
    whole = {name: v.astype(np.int64) for name, v in flat.items()}
    assert network.diff(whole, layout="nhwc") is None
    turned = {"input": trace["input"], "conv": trace["conv"].transpose(3, 2, 1, 0)}
    assert diagnose(network, turned, layout="WHCN").ok
    few = {name: flat[name] for name in ("conv", "codes")}
    assert not diagnose(network, few, trace["input"], catalogue=CATALOGUE[:9], budget_s=0).ok
    assert diagnose(network, {name: v.reshape(5, -1) for name, v in trace.items()}).ok
    one = {name: v[0].ravel() for name, v in trace.items()}
    assert diagnose(network, one).ok


def test_a_layout_counts_where_shapes_tell_nothing() -> None:
    """As many channels as rows and columns: one way for `diff` and for `diagnose`."""
    nodes = [Node("double", Add((2,)), ("input",))]
    network = Network(nodes, input_shape=(2, 2, 2), input_format=IntFormat(4, signed=True))
    trace = network.trace(samples(network, 6))
    last = {name: np.moveaxis(v, 1, -1) for name, v in trace.items()}
    dump = {"input": trace["input"].transpose(0, 2, 3, 1), "double": trace["double"]}
    assert diagnose(network, last, layout="NHWC").ok
    assert network.diff(last, layout="NHWC") is None
    assert not diagnose(network, dump, layout="NHWC", budget_s=0).ok
    assert network.diff(dump, layout="NHWC") is not None


def test_names_of_theirs(dumped: tuple[Network, Dump]) -> None:
    network, trace = dumped
    theirs = {"serving_default_x:0": trace["input"], "Conv2D;0": trace["conv"]}
    names = {"serving_default_x:0": "input", "Conv2D;0": "conv"}
    assert diagnose(network, theirs, names=names).equal == ("conv",)


def test_refusals(tmp_path: Path) -> None:
    network = mlp()
    x = samples(network, 4)
    fc1 = network.trace(x)["fc1"]
    for dump, error, text in (
        ({"nope": fc1}, InvalidArgument, "name in dump: got 'nope', expected one of"),
        ({}, InvalidArgument, "no arrays"),
        ({"fc1": fc1 + 0.5}, InvalidType, "fc1"),
        ({"fc1": fc1[:3]}, ShapeMismatch, "samples"),
        ({"fc1": fc1[:0]}, ShapeMismatch, "samples"),
        (7, InvalidType, "dump: got int"),
    ):
        with pytest.raises(error, match=text):
            diagnose(network, dump, x)  # type: ignore[arg-type]
    assert diagnose(network, {"input": x, "fc1": fc1}, x).equal
    other = np.where(x == x.max(), x - 1, x)
    with pytest.raises(InvalidArgument, match="inputs: got other codes"):
        diagnose(network, {"input": x, "fc1": fc1}, other)
    with pytest.raises(InvalidArgument, match="layout"):
        diagnose(network, {"fc1": fc1}, x, layout="channels_last")
    with pytest.raises(InvalidArgument, match="names"):
        diagnose(network, {"fc1": fc1}, x, names={"other": "fc1"})
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(FileFormatError):
        diagnose(network, bad, x)
    np.save(tmp_path / "one.npy", fc1)
    with pytest.raises(FileFormatError, match="one array"):
        diagnose(network, tmp_path / "one.npy", x)


def test_another_shape_is_a_finding() -> None:
    network = zoo()
    x = samples(network, 6)
    trace = network.trace(x)
    found = diagnose(network, {"conv": trace["conv"][:, :, :, ::2]}, x, budget_s=0)
    assert "shape [6, 4, 4, 10] expected, got [6, 4, 4, 5]" in str(found)


# --- the catalogue ----------------------------------------------------------------------------


def test_names_are_unique_among_what_applies_to_a_node() -> None:
    for node in zoo().nodes:
        names = [d.name for d in CATALOGUE if d.applies_to(node.op)]
        assert sorted(set(names)) == sorted(names)


def test_sentences_and_a_catalogue_of_ones_own() -> None:
    assert all(d.sentence and not d.sentence.endswith(".") for d in CATALOGUE)
    network, x = mlp(), samples(mlp(), 20)
    doubled = Deviation("odd", "adds 1 to odd sums", result=lambda op, y: y + y % 2)
    acc = network.trace(x)["fc1"]
    (found,) = diagnose(network, {"fc1": acc + acc % 2}, x, catalogue=[doubled]).findings
    assert found.names == {"odd"}
    assert found.certain
    with pytest.raises(InvalidArgument, match="exactly one of operands, node"):
        Deviation("none", "does nothing")


# --- the command ------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from click.testing import CliRunner

    from refqnn.cli import refqnn

    def run(*arguments: object, code: int) -> str:
        result = CliRunner().invoke(refqnn, ["diagnose", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    network = trained("iris-mlp")
    x = samples(network, 40)
    trace = network.trace(x)
    net, inputs, dump = tmp_path / "net.npz", tmp_path / "x.npy", tmp_path / "dump.npz"
    network.save(net)
    np.save(inputs, x)
    names = [node.name for node in network.nodes]
    np.savez(dump, **{"first": trace[names[0]], names[1]: trace[names[1]]})
    rename = f"first={names[0]}"
    assert "equal: " in run(net, dump, "--inputs", inputs, "--name", rename, code=0)
    assert "equal: " in run(
        *(net, dump, "--inputs", inputs, "--name", rename, "--layout", "nhwc"), code=0
    )
    np.savez(dump, **{names[1]: network[names[1]].op.forward(trace[names[0]] - 1)})
    out = tmp_path / "found.json"
    text = run(net, dump, "--inputs", inputs, "--json", out, code=1)
    assert "[strict]" in text
    (finding,) = json.loads(out.read_text())["findings"]
    assert finding["node"] == names[1]
    assert "strict" in {a["name"] for e in finding["explanations"] for a in e}
    assert "expected THEIRS=OURS" in run(net, dump, "--name", "fc1", code=2)
