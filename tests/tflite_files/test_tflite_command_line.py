"""TFLite files on the command line, and two runtimes of one model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("click")

from click.testing import CliRunner
from tflite_build import O, T, model

import refqnn
from refqnn.commands.cli import refqnn as main
from refqnn.tflite import compare_runtimes, from_tflite


def of_ties() -> bytes:
    """Four sums x that are halved: ties round away from zero, up, or to even."""
    tensors = [
        T((1, 2), 0.5, 0),
        T((4, 2), 0.5, 0, np.array([[1, 0], [0, 1], [1, 1], [1, -1]], np.int8)),
        T((1, 4), 0.5, 0),
    ]
    op = O("FULLY_CONNECTED", [0, 1, -1], [2], "FullyConnectedOptions", {})
    return model(tensors, [op], [0], [2])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "m.tflite").write_bytes(of_ties())
    np.save(tmp_path / "x.npy", np.array([[2, 4], [-1, -3], [3, 0]]))
    return str(tmp_path / "m.tflite"), str(tmp_path / "x.npy")


def test_each_runtime_rounds_in_its_way() -> None:
    halves = {"tflite_ref": [2, -2], "tflite_optimized": [2, -1], "xnnpack": [2, -2]}
    for runtime, codes in halves.items():
        network = from_tflite(of_ties(), runtime)  # type: ignore[arg-type]
        assert network.forward([[3, 0], [-3, 0]])[:, 0].tolist() == codes


def test_where_two_runtimes_part() -> None:
    found = compare_runtimes(of_ties(), "tflite_ref", "xnnpack", [[2, 4], [-1, -3], [3, 0]])
    assert found.first is not None
    assert (found.first.index, found.first.expected, found.first.got) == ((1, 0), -1, 0)
    assert (found.accumulator, found.outputs, found.values) == (-1, 1, 12)
    assert (found.classes, found.samples) == (0, 3)


def test_commands(files: tuple[str, str], tmp_path: Path) -> None:
    file, x = files
    runner = CliRunner()
    assert runner.invoke(main, ["inspect", file]).exit_code == 0
    assert runner.invoke(main, ["certify", file, "--method", "interval"]).exit_code == 0
    ours = str(tmp_path / "net.npz")
    assert runner.invoke(main, ["convert", file, ours, "--runtime", "xnnpack"]).exit_code == 0
    assert refqnn.load(ours).digest == from_tflite(Path(file).read_bytes(), "xnnpack").digest
    two = ["--runtime", "tflite_ref", "--runtime", "xnnpack"]
    parted = runner.invoke(main, ["diff", file, *two, "--inputs", x])
    assert parted.exit_code == 1
    assert "accumulator: -1\n1 of 12 outputs differ, and 0 of 3 classes" in parted.output
    told = json.loads(
        runner.invoke(main, ["diff", file, *two, "--inputs", x, "--json", "-"]).stdout
    )
    assert (told["equal"], told["outputs"], told["first"]["index"]) == (False, 1, [1, 0])
    same = runner.invoke(main, ["diff", file, *two[:2] * 2, "--inputs", x])
    assert (same.exit_code, same.output) == (0, "equal on 3 samples\n")
    for wrong in ([file], [file, *two[:2]], [file, file, *two]):
        assert runner.invoke(main, ["diff", *wrong, "--inputs", x]).exit_code == 2


def test_what_computes_says_whose_arithmetic(files: tuple[str, str], tmp_path: Path) -> None:
    file, x = files
    for runtime, half in (("tflite_ref", -2), ("tflite_optimized", -1)):
        np.save(x, np.array([[-3, 0]]))
        words = ["--as", "integers", "--runtime", runtime]
        result = CliRunner().invoke(main, ["run", file, x, *words])
        assert int(result.stdout.split()[0]) == half
        dump = str(tmp_path / f"{runtime}.npz")
        CliRunner().invoke(main, ["trace", file, x, "--output", dump, *words[2:]])
        network = from_tflite(Path(file).read_bytes(), runtime)  # type: ignore[arg-type]
        assert network.diff(dict(np.load(dump))) is None


def test_an_unknown_runtime() -> None:
    with pytest.raises(refqnn.errors.InvalidArgument, match="expected one of tflite_ref"):
        from_tflite(of_ties(), "tpu")  # type: ignore[arg-type]


def with_softmax() -> bytes:
    """A fully connected layer and a softmax behind it."""
    tensors = [
        T((1, 2), 0.5, 0),
        T((4, 2), 0.5, 0, np.array([[1, 0], [0, 1], [1, 1], [1, -1]], np.int8)),
        T((1, 4), 0.5, 0),
        T((1, 4), 2.0**-8, -128),
    ]
    ops = [
        O("FULLY_CONNECTED", [0, 1, -1], [2], "FullyConnectedOptions", {}),
        O("SOFTMAX", [2], [3], "SoftmaxOptions", {"Beta": 1.0}),
    ]
    return model(tensors, ops, [0], [3])


def test_a_model_ends_and_begins_where_it_is_told_to() -> None:
    whole, cut = from_tflite(with_softmax()), from_tflite(with_softmax(), output="t2")
    x = np.array([[2, 4], [-1, -3], [3, 0]])
    assert np.array_equal(cut.forward(x), whole.trace(x)["t2"])
    assert cut.digest == from_tflite(with_softmax(), output="2").digest
    assert cut.predict([[1.0, 2.0]]).tolist() == (cut.forward([[2, 4]]) * 0.5).tolist()
    rest = from_tflite(with_softmax(), input="t2")
    assert rest.input_shape == (4,)
    assert np.array_equal(rest.forward(cut.forward(x)), whole.forward(x))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"output": "logits"}, "output: got 'logits', which 0 tensors are called, expected the"),
        ({"input": "UINT8"}, "input: got 'UINT8'"),
        ({"input": "t3"}, "input, output: got from .'t3'. to .'t3'., expected ends that operators"),
        ({"input": "t2", "output": "t2"}, "ends that operators connect"),
        ({"output": "t0"}, "ends that operators connect"),
        ({"input": "t1"}, "ends that operators connect"),
    ],
)
def test_ends_that_the_file_lacks(ends: dict[str, str], message: str) -> None:
    with pytest.raises(refqnn.errors.InvalidArgument, match=message):
        from_tflite(with_softmax(), **ends)  # type: ignore[arg-type]


def test_a_softmax_at_the_end_is_left_out_on_the_way_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    file, onnx_file = tmp_path / "m.tflite", tmp_path / "m.onnx"
    file.write_bytes(with_softmax())
    np.save(tmp_path / "x.npy", np.array([[2, 4], [-1, -3], [3, 0]]))
    runner, x = CliRunner(), str(tmp_path / "x.npy")
    assert runner.invoke(main, ["convert", str(file), str(onnx_file)]).exit_code != 0
    done = runner.invoke(main, ["convert", str(file), str(onnx_file), "--output", "t2"])
    assert done.exit_code == 0, done.output
    back = refqnn.from_onnx(onnx_file)
    codes = np.random.default_rng(0).integers(-128, 128, (50, 2))
    assert np.array_equal(back.forward(codes), from_tflite(file, output="t2").forward(codes))
    two = ["--runtime", "tflite_ref", "--runtime", "xnnpack", "--inputs", x]
    shown = runner.invoke(main, ["diff", str(file), *two, "--output", "t2"])
    assert "1 of 12 outputs differ" in shown.output
    unknown = runner.invoke(main, ["inspect", str(file), "--output", "logits"])
    assert unknown.exit_code != 0
    assert "output: got 'logits'" in unknown.output


def test_vectors_of_a_network_of_ones_own(files: tuple[str, str], tmp_path: Path) -> None:
    """The reference answers them, in Python and as a program; no vectors are written over."""
    from refqnn.conformance import load_vectors, run
    from refqnn.conformance.reference import FUNCTIONS

    file, folder = files[0], tmp_path / "vectors"
    runner = CliRunner()
    words = ["vectors", "from", file, str(folder), "--runtime", "tflite_optimized"]
    done = runner.invoke(main, words)
    assert done.exit_code == 0, done.output
    assert run(FUNCTIONS, folder=folder).conforms
    asked = [v for v in load_vectors(folder) if v.operation == "network"]
    codes = asked[0].arguments["codes"]
    (expected,) = asked[0].outputs.values()
    assert np.array_equal(from_tflite(of_ties(), "tflite_optimized").forward(codes), expected)
    program, sent = str(tmp_path / "program.py"), tmp_path / "sent.jsonl"
    runner.invoke(main, ["vectors", "template", "--language", "python", program])
    options = ["--vectors", str(folder), "--transcript", str(sent)]
    runner.invoke(main, ["conform", *options, "--", sys.executable, program])
    assert 0 < sent.read_text().count('"cmd": "run"') < 5  # not the thousands of the suite
    again = runner.invoke(main, words)
    assert again.exit_code != 0
    assert "with vectors, expected one without" in again.output
