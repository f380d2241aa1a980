"""The command line, as a user meets it: output, exit codes, files, errors in one line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refqnn import IntFormat, Linear, Network, Node, Requantize, certify, load

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner

from refqnn.accumulator import Proof, StagedCertificate
from refqnn.accumulator.staged_files import read_accumulators
from refqnn.cli import refqnn
from refqnn.commands.console import Command, NewFile
from refqnn.container import checksum


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    """fc1 lies in [-14, 21]: 6 signed bits; fc2 in [0, 9]."""
    network = Network(
        [
            Node("fc1", Linear([[3, -2]])),
            Node("act1", Requantize.from_shift(1, IntFormat(2, signed=False))),
            Node("fc2", Linear([[3]])),
        ],
        input_shape=(2,),
        input_format=IntFormat(3, signed=False),
    )
    path = tmp_path / "net.npz"
    network.save(path)
    return path


Named = tuple[tuple[str, ...], click.Command]


def two_halves() -> Network:
    """fc2 adds two codes of which one is 0, for 2**24 inputs."""
    return Network(
        [
            Node("fc1", Linear([[1] * 8, [-1] * 8], [-28, 28])),
            Node("act1", Requantize.from_shift(2, IntFormat(2, signed=False))),
            Node("fc2", Linear([[1, 1]])),
        ],
        input_shape=(8,),
        input_format=IntFormat(3, signed=False),
    )


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(refqnn, [str(a) for a in arguments], terminal_width=200)
    assert result.exit_code == code, result.output
    return result.output


def test_help_lists_every_command() -> None:
    text = run("--help")
    for command in (
        "demo",
        "inspect",
        "certify",
        "compare",
        "convert",
        "diff",
        "conform",
        "vectors",
    ):
        assert command in text
        assert "Usage" in run(command, "--help")


def test_inspect_shows_proved_ranges(network_file: Path) -> None:
    text = run("inspect", network_file)
    for expected in ("fc1", "Requantize", "[-14, 21]", "2-bit unsigned", "float32"):
        assert expected in text


def test_python_dash_m_is_the_same_program(network_file: Path) -> None:
    command = [sys.executable, "-m", "refqnn", "inspect", str(network_file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "fc1" in result.stdout


def test_a_bad_file_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"not a network")
    text = run("inspect", path, code=2)
    assert f"{path}: " in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "absent.npz"),
        ("demo", "--samples", "0"),
        ("demo", "--dataset", "nothing"),
        ("unknown",),
    ],
)
def test_bad_arguments_are_usage_errors(arguments: tuple[str, ...]) -> None:
    assert "Error" in run(*arguments, code=2)


@pytest.mark.parametrize("quick", [("--quick",), pytest.param((), marks=pytest.mark.slow)])
def test_the_demo_walks_the_whole_road(tmp_path: Path, quick: tuple[str, ...]) -> None:
    """Training, conversion, proof, simulation and real encryption on iris: no integer differs."""
    for module in ("torch", "brevitas", "concrete.fhe", "matplotlib"):
        pytest.importorskip(module)
    files = [tmp_path / name for name in ("demo.json", "demo.png", "net.npz")]
    written = ("--json", files[0], "--plot", files[1], "--save", files[2])
    text = run("demo", "--samples", 1, *quick, *written)
    assert "encrypted" in text

    result = json.loads(files[0].read_text())
    assert result["exact"]
    stages = {stage["stage"]: stage for stage in result["mismatches"]}
    assert all(stage["differing"] == 0 for stage in stages.values())
    assert stages["simulated = encrypted"]["total"] == 3
    assert stages["integer = simulated"]["total"] == 30 * 3
    assert result["accuracy"]["QAT"] == result["accuracy"]["integer"]
    assert result["accuracy"]["integer"] == result["accuracy"]["simulated"] >= 0.9
    assert all(row["observed"] <= row["certified"] for row in result["bits"])
    assert files[1].read_bytes().startswith(b"\x89PNG")
    network = load(files[2])
    assert network.input_shape == (4,)
    assert network.forward(np.zeros((1, 4), dtype=np.int64)).shape == (1, 3)


def test_certify_prints_an_input_that_overflows(network_file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "certificate.json"
    assert "[-14, 21]" in run("certify", network_file, "--json", saved)
    assert json.loads(saved.read_text())
    assert "no overflow" in run("certify", network_file, "--bits", 6)
    text = run("certify", network_file, "--bits", 5, code=1)
    codes = json.loads(text.rpartition("input codes: ")[2])
    acc = load(network_file).trace(np.array([codes]))["fc1"]
    assert not -16 <= int(acc[0, 0]) <= 15
    assert "no overflow" in run(
        "certify", network_file, "--bits", 4, "--unsigned", "--layer", "fc2"
    )


def accumulator_file(tmp_path: Path, width: int) -> Path:
    """Pairs of products in a register that saturates, then one of eight bits."""
    path = tmp_path / "accumulator.json"
    stages = [{"width": width, "group": 2, "overflow": "saturate"}, {"width": 8}]
    path.write_text(json.dumps({"stages": stages}))
    return path


def test_certify_asks_the_stages_of_an_accumulator(network_file: Path, tmp_path: Path) -> None:
    """Exit code, proof or input, and a certificate that is read and verified again."""
    narrow, saved = accumulator_file(tmp_path, 5), tmp_path / "staged.json"
    words = ("certify", network_file, "--accumulator")
    text = run(*words, narrow, "--json", saved, code=1)
    assert "harmful" in text
    network, staged = load(network_file), StagedCertificate.load(saved)
    assert [report.verdict.value for report in staged["fc1"]] == ["harmful", "fits"]
    codes = np.array([json.loads(text.rpartition("input codes: ")[2].partition("\n")[0])])
    under = network.trace(codes, accumulator=read_accumulators(narrow))
    assert (under["fc1"] != network.trace(codes)["fc1"]).any()

    assert "holds: " in run("certify", network_file, "--verify", saved, code=1)
    assert "no result changes" in run(*words, accumulator_file(tmp_path, 6), "--json", saved)
    assert "no result changes" in run("certify", network_file, "--verify", saved)
    assert "no result changes" in run(*words, "int32")
    assert "no result changes" in run(*words, "finn:width=6,simd=2", "--layer", "fc1")
    assert "harmful" in run(*words, "finn:width=5", code=1)

    content = json.loads(saved.read_text())
    content["stages"][0]["range"][0] = -9
    del content["sha256"]
    saved.write_text(json.dumps({**content, "sha256": checksum(content)}))
    assert "fc1 stage 0" in run("certify", network_file, "--verify", saved, code=1)
    saved.write_text("{}")
    assert str(saved) in run("certify", network_file, "--verify", saved, code=2)


def test_certify_exits_with_3_where_a_stage_stays_open(tmp_path: Path) -> None:
    """2**24 inputs, and no time for the proof that fc2 stays at 3."""
    two_halves().save(tmp_path / "net")
    words = ("certify", tmp_path / "net", "--accumulator", tmp_path / "three", "--layer", "fc2")
    (tmp_path / "three").write_text('{"stages": [{"width": 3, "overflow": "saturate"}]}')
    assert "--budget" in run(*words, "--budget", 0, code=3)
    assert "no result changes" in run(*words, "--budget", 60)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--accumulator", "abacus"), "x86_maddubs"),
        (("--accumulator", "finn"), "width"),
        (("--accumulator", "finn:width=six"), "PARAMETER=INTEGER"),
        (("--accumulator", "int32:width=6"), "width"),
        (("--accumulator", "int32", "--bits", "8"), "--bits"),
        (("--accumulator", "int32", "--layer", "fc9"), "expected one of ['fc1', 'fc2']"),
        (("--bits", "4", "--layer", "act1"), "expected one of ['fc1', 'fc2']"),
        (("--layer", "fc1"), "--bits"),
        (("--unsigned",), "--bits"),
        (("--accumulator", "net.npz"), "net.npz"),
    ],
)
def test_certify_refuses_before_it_proves(
    words: tuple[str, ...], told: str, network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(network_file.parent)
    monkeypatch.setattr("refqnn.accumulator.certify", None)
    assert told in run("certify", network_file, *words, code=2)


def test_compare_reports_every_quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("brevitas")
    (tmp_path / "made_for_compare.py").write_text(
        "from refqnn import datasets\n"
        "from refqnn.training import loop\n"
        "def make():\n"
        "    data = datasets.load('iris')\n"
        "    module = loop.build(loop.demo_config('iris'), data.n_features, data.n_outputs)\n"
        "    loop.fit(module, data.X_train, data.y_train, epochs=2)\n"
        "    return module, data.X_test\n"
    )
    monkeypatch.chdir(tmp_path)
    text = run("compare", "made_for_compare:make", "--save", tmp_path / "net.npz")
    assert "unexplained" in text
    assert load(tmp_path / "net.npz").input_shape == (4,)
    assert "expected PACKAGE.MODULE:FUNCTION" in run("compare", "nothing", code=2)
    assert "No module named" in run("compare", "no_such_module:make", code=2)


def test_convert_and_diff(network_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model, again, samples = (tmp_path / name for name in ("net.onnx", "again.npz", "X.npy"))
    np.save(samples, np.array([[0, 7], [7, 0], [3, 3]]))
    run("convert", network_file, model, "--flavour", "qcdq")
    run("convert", model, again)
    assert "fc1" in run("inspect", model)
    assert "no overflow" in run("certify", model, "--bits", 11)  # its input is a whole uint8
    assert "equal on 3 samples" in run("diff", network_file, model, "--inputs", samples)
    assert "equal on 3 samples" in run("diff", again, network_file, "--inputs", samples)

    other = load(network_file)
    changed = [Node("fc1", Linear([[3, -1]])), *other.nodes[1:]]
    Network(changed, input_shape=(2,), input_format=other.input_format).save(again)
    assert "fc1[0, 0]: expected -14, got -7" in run(
        "diff", network_file, again, "--inputs", samples, code=1
    )
    samples.write_bytes(b"no array")
    assert "not a .npy file" in run("diff", network_file, again, "--inputs", samples, code=2)


def test_how_an_onnx_file_is_read(network_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, samples = tmp_path / "net.onnx", tmp_path / "X.npy"
    np.save(samples, np.array([[0, 7], [7, 0], [3, 3]]))
    run("convert", network_file, model, "--flavour", "qcdq")
    proto = onnx.load(model)
    (end,) = [o.name for o in proto.graph.output]
    proto.graph.node.append(onnx.helper.make_node("Softmax", [end], ["y"], name="last"))
    proto.graph.output[0].name = "y"
    onnx.save(proto, model)

    left_out = "left out behind the output: node 'last' (Softmax)"
    assert left_out in run("inspect", model)
    assert left_out in run("convert", model, tmp_path / "again.npz")
    for command in (["inspect", model], ["convert", model, tmp_path / "strict.npz"]):
        text = run(*command, "--strict", code=2)
        assert "node 'last' (Softmax) would be left out" in text.replace("\n", " ")
    assert not (tmp_path / "strict.npz").exists()
    assert "left out" not in run("inspect", model, "--strict", "--output", end)
    assert "[-2, 3]" in run("certify", model, "--input", "UINT1", "--output", "fc1")
    assert "equal" in run("diff", model, network_file, "--output", end, "--inputs", samples)


def test_vectors_as_files(tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    assert "questions" in run("vectors", "emit", questions)
    first = json.loads(questions.read_text().splitlines()[0])
    answers.write_text(json.dumps({"id": first["id"], "outputs": {}}) + "\n")
    assert "failed" in run("vectors", "verify", answers, code=1)


def test_conform_tells_a_silent_program_from_a_wrong_one() -> None:
    text = run("conform", "--seconds", 5, "--", sys.executable, "-c", "pass", code=2)
    assert "Error" in text


def test_certify_compares_with_observed_widths(network_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    samples, plot = tmp_path / "X.npy", tmp_path / "widths.png"
    np.save(samples, np.array([[1, 1], [2, 1]]))
    text = run("certify", network_file, "--inputs", samples, "--plot", plot)
    assert "observed" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


# --- a file given twice -----------------------------------------------------------------------


def commands(group: click.Group = refqnn, path: tuple[str, ...] = ()) -> Iterator[Named]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_checks_its_files() -> None:
    assert len(list(commands())) >= 16
    assert all(isinstance(command, Command) for _, command in commands())


def pairs() -> Iterator[tuple[tuple[str, ...], click.Command, str, str]]:
    """Every two arguments of a command that name files, one of them to write; no folder is one."""
    for path, command in commands():
        files = [p for p in command.params if isinstance(p.type, click.Path) and p.type.file_okay]
        for i, a in enumerate(files):
            for b in files[:i]:
                if isinstance(a.type, NewFile) or isinstance(b.type, NewFile):
                    yield path, command, str(a.name), str(b.name)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(("path", "command", "a", "b"), list(pairs()))
def test_no_file_is_written_that_is_given_twice(
    path: tuple[str, ...], command: click.Command, a: str, b: str, link: bool, tmp_path: Path
) -> None:
    """Under one name or two: the command ends before it touches anything."""
    ending = ".png" if "plot_file" in (a, b) else ""
    twice, other = tmp_path / f"twice{ending}", tmp_path / f"other{ending}"
    twice.write_bytes(b"private keys")
    if link:
        other.symlink_to(twice)
    words: list[str] = list(path)
    for param in command.params:
        value = str(other if link and param.name == b else twice)
        if param.name not in (a, b):
            if not param.required:
                continue
            value = str(tmp_path / f"{param.name}")
            Path(value).touch()
        words += [value] if isinstance(param, click.Argument) else [param.opts[0], value]
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert "are one file" in run(*words, code=2)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_report_does_not_replace_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("pass")
    words = ("conform", "--report", program, "--", sys.executable, program)
    assert "are one file" in run(*words, code=2)
    assert program.read_text() == "pass"


def test_a_device_may_be_given_twice(network_file: Path) -> None:
    run("certify", network_file, "--json", os.devnull, "--inputs", os.devnull, code=2)
    run("certify", network_file, "--json", "/dev/null")


# --- text from files --------------------------------------------------------------------------

NAMES = [
    "[/red]",
    "[bold]x",
    ":smile:",
    "\x1b[31mred",
    "a\nError: b",
    "\u202eabc",
    "\x07",
    "\x9b2J",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are_or_escaped(name: str, tmp_path: Path) -> None:
    op = Requantize.from_shift(1, IntFormat(2, signed=False))
    nodes = [Node(name, Linear([[3, -2]])), Node("r", op), Node(name * 2, Linear([[1]]))]
    network = Network(nodes, input_shape=(2,), input_format=IntFormat(3, signed=False))
    file, other, samples = tmp_path / "net", tmp_path / "other", tmp_path / "X.npy"
    network.save(file)
    nodes[0] = Node(name, Linear([[3, -1]]))
    Network(nodes, input_shape=(2,), input_format=network.input_format).save(other)
    np.save(samples, np.array([[1, 1]]))

    shown = name.encode("unicode_escape").decode()
    for words, code in (
        (("inspect", file), 0),
        (("certify", file, "--bits", 5), 1),
        (("certify", file, "--bits", 5, "--layer", name + "?"), 2),
        (("diff", file, other, "--inputs", samples), 1),
    ):
        text = run(*words, code=code)
        assert shown in text
        assert all(character.isprintable() for character in text.replace("\n", ""))
        assert "\nError: b" not in text


def test_a_figure_shows_names_as_they_are(tmp_path: Path) -> None:
    """No mathematics of matplotlib's: a lone command of it would be an error."""
    pytest.importorskip("matplotlib")
    nodes = [Node(r"$\frac$", Linear([[3, -2]]))]
    network = Network(nodes, input_shape=(2,), input_format=IntFormat(3, signed=False))
    network.save(tmp_path / "net")
    run("certify", tmp_path / "net", "--plot", tmp_path / "widths.png")


def test_a_narrow_encoding_shows_escapes(network_file: Path, tmp_path: Path) -> None:
    network = load(network_file)
    nodes = [Node("é≤", Linear([[3, -2]]))]
    Network(nodes, input_shape=(2,), input_format=network.input_format).save(tmp_path / "net")
    command = [sys.executable, "-m", "refqnn", "inspect", str(tmp_path / "net")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert r"\xe9\u2264" in result.stdout


# --- certificates -----------------------------------------------------------------------------


def test_certify_verify_holds_a_certificate_against_its_network(
    network_file: Path, tmp_path: Path
) -> None:
    network, saved = load(network_file), tmp_path / "certificate.json"
    certify(network, method="interval").save(saved)
    text = run("certify", network_file, "--verify", saved, "--bits", 6)
    assert "holds: " in text
    assert "interval" in text.partition("holds: ")[2].partition("\n")[0]
    assert "no overflow" in text

    other = tmp_path / "other.npz"
    nodes = [Node("fc1", Linear([[3, -1]])), *network.nodes[1:]]
    Network(nodes, input_shape=(2,), input_format=network.input_format).save(other)
    text = run("certify", other, "--verify", saved, code=1)
    assert text.startswith("Error: ")
    assert text.count("\n") == 1
    assert "not a JSON file" in run("certify", network_file, "--verify", network_file, code=2)


def test_certify_verify_finds_a_forged_bound(network_file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "certificate.json"
    certify(load(network_file), method="interval").save(saved)
    content = json.loads(saved.read_text())
    del content["sha256"]
    (layer,) = (node for node in content["nodes"] if node["name"] == "fc1")
    assert layer["hi"] == {"shape": [1], "values": 21}
    layer["hi"]["values"] = 20
    text = json.dumps(content, sort_keys=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    saved.write_text(json.dumps(content))
    assert "fc1" in run("certify", network_file, "--verify", saved, code=1)


def test_certify_verify_does_not_trust_unless_told(tmp_path: Path) -> None:
    """Bounds of a search among 2**24 inputs, which no time is left to repeat."""
    network = two_halves()
    file, saved = tmp_path / "net", tmp_path / "certificate.json"
    network.save(file)
    certificate = certify(network, method="search", budget_s=20)
    assert (certificate["fc2"].proof == Proof.BOX_SEARCH).any()
    certificate.save(saved)
    words = ("certify", file, "--verify", saved, "--budget", 0)
    assert "Error: " in run(*words, code=1)
    assert "trusted" in run(*words, "--allow-trusted")
