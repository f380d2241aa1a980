"""README.md and refqnn/docs, promise by promise: each sentence beside the smallest check of it.

Written from the words alone.  What other tests prove at length is quoted here with one real case.
Its Python blocks run in tests/test_readme.py.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from contextlib import suppress
from fractions import Fraction
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quoting import ROOT, Document

import refqnn
from refqnn import (
    Dequantizer,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    Rounding,
    SymmetricQuantizer,
    certify,
    exact,
    find_overflow,
    limits,
    load,
)
from refqnn.errors import FileFormatError, NotCovered, OutOfRange, RefqnnError
from refqnn.ops import Add, Concat

PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "refqnn" / "docs").glob("*.md"))
README = Document("README.md", *PAGES)
says = README.says
U2, U3 = IntFormat(2, signed=False), IntFormat(3, signed=False)


def mlp(seed: int = 0, sizes: tuple[int, int, int] = (3, 5, 2), largest: int = 2) -> Network:
    """Two layers between two doors."""
    rng = np.random.default_rng(seed)
    return Network(
        [
            Node("fc1", Linear(rng.integers(-largest, largest + 1, (sizes[1], sizes[0])), [1] * 5)),
            Node("act1", Requantize.from_shift(1, U2, "half_up")),
            Node("fc2", Linear(rng.integers(-largest, largest + 1, (sizes[2], sizes[1])))),
        ],
        input_shape=(sizes[0],),
        input_format=U2,
        input_quantizer=SymmetricQuantizer(0.25, U2),
        output_dequantizer=Dequantizer(0.125),
    )


def every_input(network: Network) -> np.ndarray[Any, np.dtype[np.int64]]:
    fmt, size = network.input_format, network.input_shape[0]
    return np.indices((fmt.levels,) * size).reshape(size, -1).T + fmt.q_min


def bench(name: str) -> Any:
    return json.loads((ROOT / "bench" / f"{name}.json").read_text())


def command(*words: object, code: int = 0) -> str:
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from click.testing import CliRunner

    result = CliRunner().invoke(import_module("refqnn.cli").refqnn, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result.output


# --- the three answers ------------------------------------------------------------------------


def test_all_routes_give_the_same_numbers() -> None:
    says(
        "A network becomes an *integer program* that numpy executes and anyone can read. Brevitas, "
        "the Concrete circuit, simulated and encrypted, and a second implementation in plain "
        "Python integers all give the same numbers, or refqnn says where they part and why."
    )
    network = mlp()
    codes = every_input(network)
    expected = network.forward(codes)
    assert (network.trace(codes)["fc2"] == expected).all()
    assert exact.forward(network, codes.tolist()) == expected.tolist()
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe

    assert (fhe.compile(network).simulate(codes[:40]) == expected[:40]).all()


def test_bounds_come_with_the_input_that_reaches_them() -> None:
    says("Bounds are proved, not sampled, and come with the input that reaches them.")
    network = mlp()
    values = network.trace(every_input(network))
    certificate = certify(network)
    for name, layer in certificate.layers.items():
        assert (layer.lo == values[name].min(axis=0)).all()
        assert (layer.hi == values[name].max(axis=0)).all()
        for side, bound in enumerate((layer.lo, layer.hi)):
            for neuron, row in enumerate(layer.witness[side]):
                seen = network.trace(certificate.witnesses[[row]])[name]
                assert seen[0, neuron] == bound[neuron]


def test_floats_exist_only_at_the_two_doors() -> None:
    says(
        "Floats exist only at the two doors: the input quantizer and the output dequantizer. "
        "Everything between is integers; every rounding has a name."
    )
    network = mlp()
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    trace = network.trace(network.quantize_input(X))
    assert all(values.dtype.kind == "i" for values in trace.values())
    assert network.predict(X).dtype.kind == "f"
    for maker in (Requantize.from_scale, Requantize.from_shift, Requantize.from_multiplier):
        assert "rounding" in inspect.signature(maker).parameters
    half = Fraction(5, 2)
    assert {exact.round(half, mode.value) for mode in Rounding} == {2, 3}
    with pytest.raises(RefqnnError, match="rounding"):
        Requantize.from_shift(1, U2, "about")


def test_the_demo_takes_what_the_readme_says() -> None:
    says(
        "`refqnn demo --quick` walks the same road in half a minute; `--dataset breast_cancer | "
        "digits | moons | checkerboard` takes other data; `--json` and `--plot` write the figures "
        "to files."
    )
    text = command("demo", "--help")
    for word in ("--quick", "breast_cancer|digits|moons|checkerboard", "--json", "--plot"):
        assert word in text


def test_a_file_is_versioned_checksummed_and_no_pickle(tmp_path: Path) -> None:
    says('network.save("iris.npz") # one file: versioned, checksummed, no pickle')
    mlp().save(tmp_path / "net")
    with zipfile.ZipFile(tmp_path / "net") as archive:
        content = json.loads(archive.read("network.json"))
        assert isinstance(content["version"], int)
        for name, checksum in content["arrays"].items():
            assert re.fullmatch("[0-9a-f]{64}", checksum)
            with archive.open(name) as member:
                np.lib.format.read_magic(member)
                assert not np.lib.format.read_array_header_1_0(member)[2].hasobject
    assert load(tmp_path / "net").digest == mlp().digest


def test_diff_reports_the_first_difference_and_how_near_a_threshold_was() -> None:
    says(
        "Any implementation can be compared: `network.diff(trace)` takes its intermediate values "
        "by name and reports the first node, index and pair of values that differ, and how near a "
        "threshold was."
    )
    network, codes = mlp(), np.array([[1, 2, 3], [3, 0, 1]])
    trace = {name: values.tolist() for name, values in network.trace(codes).items()}
    assert network.diff(trace) is None
    trace["fc2"][0][0] += 9
    trace["act1"][1][4] += 1
    found = network.diff(trace)
    assert found is not None
    right = int(network.trace(codes)["act1"][1, 4])
    assert (found.node, found.index, found.expected, found.got) == (
        "act1",
        (1, 4),
        right,
        right + 1,
    )
    acc = int(network.trace(codes)["fc1"][1, 4])
    near = min((acc - t for t in (1, 3, 5)), key=abs)  # half up: 2 code - 1
    assert found.margin is not None
    assert abs(found.margin) == abs(near)


def test_an_overflow_is_an_input_or_a_proof() -> None:
    for words in (
        "print(answer) # which accumulator, which value",
        "print(answer.witness) # the input codes that do it",
        "# a proof for every input",
    ):
        says(words)
    network = mlp()
    answer = find_overflow(network, bits=3)
    acc = network.trace(answer.witness[None])[answer.layer][(0, *answer.neuron)]
    assert acc == answer.value
    assert not -4 <= acc <= 3
    assert str(answer.value) in str(answer)
    assert answer.layer in str(answer)
    lo, hi = find_overflow(network, bits=16).range
    sums = network.trace(every_input(network))
    assert lo <= min(sums[n].min() for n in ("fc1", "fc2"))
    assert hi >= max(sums[n].max() for n in ("fc1", "fc2"))


def test_omega_is_there_with_the_case_where_it_is_unsound() -> None:
    says(
        "The formulas that are used before any weight is known are there too, in exact integers: "
        "`refqnn.omega` and `refqnn.max_fan_in`, with the case where the first one is unsound."
    )
    fan_in = refqnn.omega(8, 2, 2)
    assert isinstance(fan_in, int)
    assert fan_in == (2**8 - 1) // (3 * 3)
    assert fan_in * 2 * 3 > 2**7  # two's complement weights of 2 bits reach -2: not 8 signed bits
    assert "unsound" in (refqnn.omega.__doc__ or "").lower()
    room = refqnn.max_fan_in((-2, 1), (0, 3), (0, 0), (-128, 127))
    assert room * 6 <= 128 < (room + 1) * 6


# --- encryption -------------------------------------------------------------------------------


def test_no_sample_is_needed_to_compile() -> None:
    says(
        "No sample inputs are needed to compile: every width is proved, so that no input overflows "
        "silently, and codes outside the declared format are refused before they are encrypted."
    )
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe

    network = mlp(3)
    circuit = fhe.compile(network)
    codes = every_input(network)
    assert (circuit.simulate(codes) == network.forward(codes)).all()
    for wrong in (-1, 4):
        with pytest.raises(OutOfRange):
            circuit.encrypt(np.array([0, wrong, 0]))  # and not: there are no keys


def test_an_estimate_makes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    says("`refqnn.fhe.estimate` predicts seconds, key sizes and memory before any key is made.")
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe
    from refqnn.fhe import estimation

    monkeypatch.setattr(estimation, "calibrate", lambda: 1e-9)  # half a minute, once a machine
    monkeypatch.setattr(fhe.Circuit, "keygen", lambda *_: pytest.fail("made keys"))
    cost = fhe.estimate(mlp())
    assert cost.seconds > 0
    assert cost.memory_bytes >= cost.evaluation_key_bytes > 0


def test_labels_integers_and_probabilities_are_the_same_in_every_form(short_epochs: None) -> None:
    says('`predict(X, fhe="execute")` runs encrypted: the same labels, integers and probabilities.')
    for module in ("brevitas", "skorch", "concrete.fhe"):
        pytest.importorskip(module)
    from refqnn.training import NeuralNetClassifier

    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 2)).astype(np.float32)
    y = np.where(X[:, 0] > 0, "right", "left")
    model = NeuralNetClassifier(
        n_w_bits=2,
        n_a_bits=2,
        module__hidden_sizes=(4,),
        module__table_bits=4,
        max_epochs=3,
        random_state=0,
        verbose=0,
    )
    model.fit(X, y).compile(X)
    assert set(model.predict(X)) <= {"right", "left"}
    for form, rows in (("simulate", X), ("execute", X[:1])):
        assert (model.predict(rows, fhe=form) == model.predict(rows)).all()
        assert (model.predict_proba(rows, fhe=form) == model.predict_proba(rows)).all()
    codes = model.quantize_input(X[:1])
    integers = model.network_.forward(codes)
    assert (model.fhe_circuit.simulate(codes) == integers).all()
    assert (model.fhe_circuit.execute(codes) == integers).all()


def test_a_neuron_of_one_input_needs_no_lookup() -> None:
    says("**A neuron of one input needs no lookup.**")
    says("Networks of such neurons alone (`fan_in=1`) need no evaluation key")
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe

    network = mlp()
    nodes = [Node("fc1", Linear(np.diag([1, -2, 2]), [1, 4, 0])), network.nodes[1]]
    nodes.append(Node("fc2", Linear([[1, -1, 2], [0, 3, -2]])))
    alone = Network(nodes, input_shape=(3,), input_format=U2)
    circuit = fhe.compile(alone, model="public")
    assert circuit.pbs == {}
    assert circuit.evaluation_key_bytes == 0
    assert (circuit.simulate(every_input(alone)) == alone.forward(every_input(alone))).all()


def test_security_by_default_and_by_name() -> None:
    says(
        "by default a whole inference fails with probability 2^-128 at most "
        '(`security="ind-cpa-d"`): decrypted results may become known. `"ind-cpa"` (2^-64) is for '
        "results that the client alone learns"
    )
    says(
        "a network that needs none before its last layer is refused unless you say "
        '`model="public"`.'
    )
    says(
        "`circuit.reveals()` lists what client, server and a passive reader can compute; "
        "`explain()` prints it."
    )
    says("The whole threat model is in `help(refqnn.fhe)`, reports go the way of")
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe

    network = mlp()
    circuit = fhe.compile(network)
    assert 0 < circuit.global_p_error <= 2.0**-128
    assert fhe.compile(network, security="ind-cpa").global_p_error <= 2.0**-64
    told = circuit.reveals()
    assert len(told) == 3
    for lines in told.values():
        assert all(line in circuit.explain() for line in lines)
    linear = Network([Node("fc", Linear([[1, 2]]))], input_shape=(2,), input_format=U2)
    with pytest.raises(RefqnnError, match="public"):
        fhe.compile(linear)
    fhe.compile(linear, model="public")
    assert "threat" in (fhe.__doc__ or "").lower()
    assert (ROOT / ".github" / "SECURITY.md").is_file()


def test_the_halves_on_the_command_line(tmp_path: Path) -> None:
    says("`refqnn fhe compile NET --client c --server s` writes both halves.")
    says(
        "The client's file holds no weight, and private keys stay in a file that its owner alone "
        "can read and no command overwrites."
    )
    pytest.importorskip("concrete.fhe")
    rng = np.random.default_rng(5)
    weight = np.zeros((6, 16), dtype=np.int64)
    for row in weight:  # sums of 4 bits: small keys
        row[rng.permutation(16)[:5]] = rng.choice([-1, 1], 5)
    nodes = [Node("fc1", Linear(weight)), Node("act1", Requantize.from_shift(2, U2))]
    nodes.append(Node("fc2", Linear(rng.integers(-1, 2, (3, 6)))))
    net, c, s, k, e = (tmp_path / name for name in ("net", "c", "s", "k", "e"))
    x, r, a, y = (tmp_path / name for name in ("x.npy", "r", "a", "y.npy"))
    network = Network(nodes, input_shape=(16,), input_format=U2)
    network.save(net)
    command("fhe", "compile", net, "--client", c, "--server", s)
    with zipfile.ZipFile(c) as client:
        held = b"".join(client.read(name) for name in client.namelist())
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        assert weight.astype(dtype).tobytes() not in held
    assert c.stat().st_size < s.stat().st_size
    command("fhe", "client", "keygen", c, "--keys", k, "--evaluation-keys", e)
    assert stat.S_IMODE(os.stat(k).st_mode) == 0o600
    np.save(x, rng.integers(0, 4, (1, 16)))
    secret = k.read_bytes()
    command("fhe", "client", "encrypt", c, x, k, "--keys", k, code=2)
    command("fhe", "client", "keygen", c, "--keys", k, "--evaluation-keys", e, code=2)
    assert k.read_bytes() == secret
    command("fhe", "client", "encrypt", c, x, r, "--keys", k)
    command("fhe", "server", "run", s, r, a, "--evaluation-keys", e)
    command("fhe", "client", "decrypt", c, a, y, "--keys", k, "--requests", r)
    assert (np.load(y) == network.forward(np.load(x))).all()


def test_no_command_overwrites_private_keys(tmp_path: Path) -> None:
    says("private keys stay in a file that its owner alone can read and no command overwrites.")
    pytest.importorskip("concrete.fhe")
    from refqnn.fhe import files

    net, keys = tmp_path / "net", tmp_path / "keys"
    mlp().save(net)
    files.write(keys, files.PRIVATE, {}, [("keys", b"secret")], private=True)
    before = keys.read_bytes()
    for words in (
        ("fhe", "compile", net, "--client", keys, "--server", tmp_path / "s"),
        ("convert", net, keys),
        ("certify", net, "--json", keys),
        ("vectors", "emit", keys),
    ):
        command(*words, code=2)
        assert keys.read_bytes() == before, words


# --- vectors ----------------------------------------------------------------------------------


def test_the_figures_of_the_vectors() -> None:
    from refqnn.conformance import load_vectors, vectors_path

    tests, files, _, wrong, whole = README.numbers(
        r"`vectors/` holds (\d+) test vectors in (\d+) JSON files \(([\d.]+) MB\), chosen "
        r"against (\d+) wrong implementations, all of which they tell from a right one; (\d+) of "
        r"these are mistakes that only whole networks show"
    )
    assert tests == len(load_vectors())
    manifest = json.loads((vectors_path() / "MANIFEST.json").read_text())
    sizes = [(vectors_path() / name).stat().st_size for name in manifest["files"]]
    assert files == len(sizes)
    strength = bench("vector_strength")
    assert wrong == strength["total"]["killed"] == strength["total"]["mutants"]
    assert whole == strength["whole_networks"]["killed"]
    onnx = strength["onnx"]
    told = [len(onnx["vectors"]), onnx["total"]["onnx"], onnx["total"]["mutants"]]
    assert told == README.numbers(
        r"The (\d+) integer vectors of the onnx package tell (\d+) of the (\d+) that concern"
    )


def test_the_size_of_the_vectors() -> None:
    from refqnn.conformance import vectors_path

    _, megabytes = README.numbers(r"test vectors in (\d+) JSON files \(([\d.]+) MB\)")
    manifest = json.loads((vectors_path() / "MANIFEST.json").read_text())
    size = sum((vectors_path() / name).stat().st_size for name in manifest["files"])
    assert abs(megabytes - size / 1e6) < 0.1


def test_any_program_and_any_test_runner() -> None:
    says("(examples in C and JavaScript under `tests/conformance/programs`)")
    endings = {path.suffix for path in (ROOT / "tests/conformance/programs").iterdir()}
    assert {".c", ".js"} <= endings | {e.replace(".mjs", ".js") for e in endings}
    says("Under pytest, one test per vector")
    from refqnn.conformance import load_vectors

    words = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    words += ["--pyargs", "refqnn.conformance", "--refqnn-impl=refqnn.conformance.reference"]
    if not any(e.value == "refqnn.conformance.plugin" for e in entry_points(group="pytest11")):
        words[2:2] = ["-p", "refqnn.conformance.plugin"]
    listed = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    count = sum("test_vectors.py::" in line for line in listed.stdout.splitlines())
    assert count >= len(load_vectors())


# --- ONNX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_written_files_give_the_same_integers(flavour: str) -> None:
    says(
        '`refqnn.to_onnx(network, path, flavour="qonnx" | "qcdq" | "integer")` writes files that '
        "give the same integers in the qonnx executor and in onnxruntime."
    )
    pytest.importorskip("onnx")
    network = Network(mlp().nodes, input_shape=(3,), input_format=U2)
    codes = every_input(network)
    model = refqnn.to_onnx(network, flavour=flavour)
    if flavour == "qonnx":
        pytest.importorskip("qonnx")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx

        wrapped = ModelWrapper(model)
        feed, out = wrapped.graph.input[0].name, wrapped.graph.output[0].name
        rows = [execute_onnx(wrapped, {feed: row[None].astype(np.float32)})[out] for row in codes]
        got = np.concatenate(rows)
    else:
        ort = pytest.importorskip("onnxruntime")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options)
        (entry,) = session.get_inputs()
        dtype = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}.get(entry.type, np.float32)
        (got,) = session.run(None, {entry.name: codes.astype(dtype)})
    assert (got == network.forward(codes)).all()


def onnx_model(*nodes: Any, constants: dict[str, Any], shape: tuple[int, ...] = (1, 2)) -> Any:
    onnx = pytest.importorskip("onnx")
    helper, F = onnx.helper, onnx.TensorProto.FLOAT
    values = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    x = helper.make_tensor_value_info("x", F, shape)
    y = helper.make_tensor_value_info("y", F, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], values)
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def node(kind: str, *names: str, **attributes: Any) -> Any:
    """Inputs, then the output; the node is called as its output."""
    helper = pytest.importorskip("onnx").helper
    return helper.make_node(kind, list(names[:-1]), [names[-1]], names[-1], **attributes)


SCALES = {"s": np.float32(0.25), "z": np.uint8(0), "w": np.eye(2, dtype=np.float32)}


def test_what_has_no_integer_form_is_refused_with_the_node_and_the_reason() -> None:
    says("What has no exact integer form is refused with the node and the reason.")
    model = onnx_model(
        node("QuantizeLinear", "x", "s", "z", "q"),
        node("DequantizeLinear", "q", "s", "z", "d"),
        node("MatMul", "d", "w", "m"),
        node("ReduceL2", "m", "odd", axes=[1]),
        node("MatMul", "odd", "v", "y"),
        constants={**SCALES, "v": np.ones((1, 2), dtype=np.float32)},
    )
    with pytest.raises(NotCovered, match=r"odd.*\w+"):
        refqnn.from_onnx(model)


def test_float_preprocessing_is_part_of_the_door_exactly() -> None:
    says(
        "Float preprocessing in front of the first quantizer (x / 255, mean and deviation) becomes "
        "part of the input door, exactly."
    )
    ort = pytest.importorskip("onnxruntime")
    constants = {
        **SCALES,
        "byte": np.float32(255),
        "mean": np.float32(0.13),
        "dev": np.float32(0.3),
    }
    chain = (
        node("Div", "x", "byte", "a"),
        node("Sub", "a", "mean", "b"),
        node("Div", "b", "dev", "c"),
        node("QuantizeLinear", "c", "s", "z", "q"),
        node("DequantizeLinear", "q", "s", "z", "d"),
    )
    model = onnx_model(*chain, node("MatMul", "d", "w", "y"), constants=constants, shape=("n", 2))
    network = refqnn.from_onnx(model)
    peer = onnx_model(*chain[:-1], node("Identity", "q", "y"), constants=constants, shape=("n", 2))
    peer.graph.output[0].type.tensor_type.elem_type = 2  # uint8
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(peer.SerializeToString(), options)
    X = np.linspace(-300, 600, 20_000, dtype=np.float32).reshape(-1, 2)
    assert (network.quantize_input(X) == session.run(None, {"x": X})[0]).all()


@pytest.mark.parametrize("last", ["Softmax", "ArgMax", "TopK"])
def test_what_comes_behind_the_output_is_left_out_and_named(last: str, tmp_path: Path) -> None:
    says("Softmax, ArgMax and TopK behind the output are left out and named by `refqnn inspect`.")
    onnx = pytest.importorskip("onnx")
    ends = {
        "Softmax": [node("Softmax", "m", "y", axis=1)],
        "ArgMax": [node("ArgMax", "m", "y", axis=1)],
        "TopK": [onnx.helper.make_node("TopK", ["m", "k"], ["t", "y"], "y", axis=1)],
    }
    model = onnx_model(
        node("QuantizeLinear", "x", "s", "z", "q"),
        node("DequantizeLinear", "q", "s", "z", "d"),
        node("MatMul", "d", "w", "m"),
        *ends[last],
        constants={**SCALES, "k": np.array([1])},
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    text = command("inspect", tmp_path / "m.onnx")
    assert "left out" in text
    assert last in text


# --- the tables of what there is --------------------------------------------------------------


def test_every_command_of_the_table_exists(tmp_path: Path) -> None:
    says(
        "| `refqnn certify FILE [--bits N]` | proved ranges; exits with 1 and prints an input when"
    )
    section = README.text.partition("## Command line")[2].partition("## What is where")[0]
    named = re.findall(r"`refqnn (\w+)", section)
    assert len(named) >= 10
    for name in named:
        assert "Usage" in command(name, "--help")
    for group, words in (("vectors", "generate emit verify"), ("fhe", "compile client server")):
        for word in words.split():
            assert "Usage" in command(group, word, "--help")
    mlp().save(tmp_path / "net")
    text = command("certify", tmp_path / "net", "--bits", 3, code=1)
    codes = json.loads(text.rpartition("input codes: ")[2])
    trace = mlp().trace(np.array([codes]))
    assert any(abs(int(v)) > 3 for name in ("fc1", "fc2") for v in trace[name].ravel())


def test_every_module_of_the_table_holds_what_it_says() -> None:
    for words, module, names in (
        ("| `refqnn` | formats, rounding modes", "refqnn", "IntFormat Rounding Network Requantize"),
        ("| `refqnn.exact` | the same semantics", "refqnn.exact", "forward trace"),
        ("| `refqnn.testing` | hypothesis", "refqnn.testing", "networks"),
        (
            "| `refqnn.brevitas` | `from_brevitas`, `verify_against`, `exact_accumulators`; "
            "`to_brevitas`, to train further |",
            "refqnn.brevitas",
            "from_brevitas verify_against exact_accumulators to_brevitas",
        ),
        ("| `refqnn.fhe` | `compile`: simulate", "refqnn.fhe", "compile Client Server"),
        (
            "| `refqnn.onnx`, `refqnn.tflite` | `from_onnx`, `to_onnx`;",
            "refqnn.onnx",
            "from_onnx to_onnx",
        ),
        ("| `refqnn.conformance` | the vectors", "refqnn.conformance", "run load_vectors"),
    ):
        says(words)
        try:
            found = import_module(module)
        except ImportError:
            continue  # an extra is missing
        assert all(hasattr(found, name) for name in names.split())


def test_the_extras_are_those_of_the_package() -> None:
    (listed,) = re.findall(r"Extras: ([^.]*)\.", README.text)
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    names = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE)) - {"dev", "docs"}
    assert set(re.findall(r"`(\w+)`", listed)) == names
    says("Without an extra, what needs it raises one error that names the pip command.")
    code = "import sys; sys.modules['concrete'] = None; import refqnn; refqnn.fhe"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "python -m pip install 'refqnn[fhe]'" in failed.stderr.splitlines()[-1]


def test_a_budget_charges_both_signs_and_the_bias() -> None:
    says(
        "An accumulator budget costs little accuracy if it is charged exactly: both signs of every "
        "row, bias included"
    )
    from refqnn.pruning import project

    rng = np.random.default_rng(1)
    weight, bias = rng.integers(-3, 4, (40, 30)), rng.integers(-20, 21, 40)
    top = 7
    kept = project(weight, bias, (0, top), 7)
    assert (np.maximum(kept, 0).sum(axis=1) * top + bias <= 63).all()
    assert (np.minimum(kept, 0).sum(axis=1) * top + bias >= -64).all()
    assert (kept != weight).any()


# --- figures ----------------------------------------------------------------------------------


def of_three(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def test_training_into_a_width_is_what_was_measured() -> None:
    runs = bench("accumulator_training")["runs"]
    says("in brackets, how many of the four certified widths exceed the budget.")
    for bits in (7, 8, 9):
        cells = []
        for method in ("omega", "4 x omega", "a2q", "sign-split"):
            some = [r for r in runs if r["method"] == method and r["bits"] == bits]
            assert len(some) == 4
            mean = of_three(sum(r["accuracy"] for r in some) / 4)
            cells.append(f"{mean} ({sum(max(r['widths']) > bits for r in some)})")
        says(f"| {bits} bits | {' | '.join(cells[:3])} | **{cells[3]}** |")


def test_experiments_are_what_was_measured() -> None:
    says(
        "in every one the trained module, the integers and the simulated circuit agreed on each "
        "integer that was compared."
    )
    for ours, row in (
        (bench("checkerboard")["mean_accuracy"]["QAT 30 of 100"], "| `checkerboard`:"),
        (bench("iris")["accuracy"]["right"]["mean"], "| `iris`:"),
        (bench("digits_cnn")["accuracy"]["large"], "| `digits_cnn`:"),
        (bench("defaults")["summary"]["digits"]["accuracy"], "| `defaults`: digits"),
        (bench("defaults")["summary"]["breast_cancer"]["accuracy"], "| `defaults`: breast_cancer"),
        (bench("mnist")["accuracy"], "| `mnist`:"),
        (bench("diabetes")["r2"], "| `diabetes`:"),
    ):
        (line,) = [part for part in README.text.split(" | | ") if row in part] or [README.text]
        assert of_three(ours) in line.partition(row)[2][:160], row
    for name, key in (("digits_cnn", "codes_differ"), ("mnist", "codes_differ")):
        assert all(run[key] == 0 for run in bench(name)["runs"])
    assert all(not run["differ"] for run in bench("checkerboard")["runs"])
    assert all(not run["differ"] for run in bench("defaults")["runs"])
    assert all(run["simulated_differ"] == 0 for run in bench("diabetes")["runs"])
    assert bench("iris")["outputs_differ"] == 0


def test_clear_speed_is_what_was_measured() -> None:
    speed = bench("clear_speed")
    assert README.numbers(r"A batch of 10,000 adds at most (\d+) MB of memory") == [
        -(-max(added["refqnn"] for added in speed["added_mib"].values()) // 1)
    ]
    times = [r["seconds"]["refqnn"] * 1e6 for r in speed["results"] if r["batch"] == 1]
    least, most = README.numbers(r"At batch 1 a call takes ([\d.]+) to ([\d.]+) microseconds")
    assert abs(least - min(times)) < 0.1 * least
    assert abs(most - max(times)) < 0.1 * most
    says("same integers")
    assert all(share == 1 for peers in speed["agreement"].values() for share in peers.values())


def test_few_possible_inputs_are_a_single_table() -> None:
    says(
        "A network of at most 16,384 possible inputs, such as 4-16-3, is a single table of all its "
        "outputs."
    )
    assert limits.ENUMERATED_INPUTS == 16_384
    from refqnn.plan import Enumeration, enumerated, prepare

    rng = np.random.default_rng(0)
    nodes = [
        Node("fc1", Linear(rng.integers(-3, 4, (16, 4)))),
        Node("a", Requantize.from_shift(2, U3)),
    ]
    nodes.append(Node("fc2", Linear(rng.integers(-3, 4, (3, 16)))))
    plan = prepare(Network(nodes, input_shape=(4,), input_format=U3))
    assert plan is not None
    table = enumerated(plan)
    assert isinstance(table, Enumeration)
    codes = np.indices((8,) * 4).reshape(4, -1).T
    assert (table.forward(codes) == plan.forward(codes)).all()


def test_encrypted_figures_are_what_was_measured() -> None:
    says("Every encrypted sample equals the integers")
    forms = [b["extra_info"] for b in bench("fhe")["benchmarks"]]
    encrypted = [info for info in forms if "wrong" in " ".join(info)]
    assert encrypted
    assert all(not value for info in encrypted for key, value in info.items() if "wrong" in key)


# --- hard to break, limits --------------------------------------------------------------------


def test_a_broken_file_gives_one_error_of_ours(tmp_path: Path) -> None:
    says(
        "A file that is truncated, altered or hostile gives one error of ours: no pickle, no "
        "evaluation, no memory beyond what its bytes fill."
    )
    path = tmp_path / "net"
    mlp().save(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(FileFormatError):
            load(path)
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with suppress(FileFormatError):
            assert load(path).digest == mlp().digest  # a byte that means nothing
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(FileFormatError):
        load(path)


def test_the_doors_that_are_fuzzed() -> None:
    (doors,) = README.numbers(r"million mutated inputs over (\d+) doors")
    sources = [path.read_text() for path in sorted((ROOT / "tests/fuzz").glob("test_fuzz_*.py"))]
    named = {name for text in sources for name in re.findall(r'\bfuzz\(\s*"([^"]+)"', text)}
    assert len(named) == doors, sorted(named)


def test_what_the_tests_notice_of_the_core() -> None:
    says("drawn at random, the tests notice")
    pattern = (
        r"Of (\d+) small changes of the core's source, drawn at random, the tests notice (\d+)"
    )
    of, noticed = README.numbers(pattern)
    found = bench("mutation")
    sampled = [module for module in found["modules"].values() if module["run"]]
    survivors = [s for module in sampled for s in module["survivors"]]
    assert noticed == sum(module["killed"] for module in sampled)
    assert of == noticed + sum(not s["equivalent"] for s in survivors)
    for survivor in survivors:  # each with an argument, with the test written for it, or open
        assert {"change", "equivalent", "killed_by"} <= {*survivor}
        assert survivor["equivalent"] is None or len(survivor["equivalent"]) > 20


def test_formats_go_to_32() -> None:
    says("Integers up to 8-bit codes are what is tested at scale; formats go to 32.")
    for signed in (False, True):
        fmt = IntFormat(32, signed=signed)
        nodes = [Node("fc", Linear([[3, -5], [1, 1]], [7, -(2**31)])), Node("cat", Concat(), None)]
        nodes[1] = Node("cat", Concat(), ("fc", "input"))
        nodes.append(Node("sum", Add((2, -3)), ("fc", "fc")))
        network = Network(nodes, input_shape=(2,), input_format=fmt, output="cat")
        codes = np.array([[fmt.q_min, fmt.q_max], [fmt.q_max, fmt.q_min], [0, 1]])
        expected = exact.forward(network, codes.tolist())
        assert network.forward(codes).tolist() == expected
        assert network.trace(codes)["cat"].tolist() == expected
    with pytest.raises(RefqnnError):
        IntFormat(33, signed=True)


def test_an_interrupted_command_exits_with_130(tmp_path: Path) -> None:
    says("An interrupted command leaves the old file or the new one and exits with 130.")
    pytest.importorskip("click")
    code = (
        "import os, signal, refqnn.network as n\n"
        "real = n.load\n"
        "def load(path):\n    os.kill(os.getpid(), signal.SIGINT)\n    return real(path)\n"
        "import refqnn.files as c\nc.load = load\n"
        "import sys; sys.argv = ['refqnn', 'convert', 'net', 'out']\n"
        "from refqnn.__main__ import main; main()"
    )
    mlp().save(tmp_path / "net")
    (tmp_path / "out").write_bytes(b"old")
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert ended.returncode == 130
    assert sorted(os.listdir(tmp_path)) == ["net", "out"]
    assert (tmp_path / "out").read_bytes() == b"old"
