"""Commands for boards and machines: run, trace, dumps, JSON, doctor, files of other kinds."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from refqnn import (
    Conv2d,
    Flatten,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    certify,
    dumps,
    load,
)
from refqnn.accumulator import Certificate
from refqnn.errors import (
    FileFormatError,
    InvalidArgument,
    MissingExtra,
    OutOfRange,
    ShapeMismatch,
)
from refqnn.extras import EXTRAS, PURPOSES, here, require

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from refqnn.cli import refqnn

UINT3 = IntFormat(3, signed=False)


def image_network() -> Network:
    """A convolution that no flip or transposition leaves alone, then a layer behind a Flatten."""
    rng = np.random.default_rng(0)
    return Network(
        [
            Node("conv/1", Conv2d(rng.integers(-3, 4, (3, 2, 2, 2)), stride=(1, 2))),
            Node("act", Requantize.from_shift(2, UINT3)),
            Node("flat", Flatten()),
            Node("fc", Linear(rng.integers(-3, 4, (2, 18)))),
        ],
        input_shape=(2, 4, 5),
        input_format=UINT3,
    )


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """net, X.npy and the working directory."""
    network = image_network()
    network.save(tmp_path / "net")
    np.save(tmp_path / "X.npy", np.random.default_rng(1).integers(0, 8, (4, 2, 4, 5)))
    monkeypatch.chdir(tmp_path)
    return network


def invoke(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(refqnn, [str(a) for a in arguments], terminal_width=200)
    assert result.exit_code == code, result.output
    return result


def told(*arguments: object, code: int = 0) -> dict:
    """The JSON on standard output, and nothing else there."""
    value = json.loads(invoke(*arguments, "--json", "-", code=code).stdout)
    assert not Path("-").exists()
    return value


# --- run and trace ----------------------------------------------------------------------------


def test_run_prints_a_line_a_sample(net: Network) -> None:
    expected = net.forward(np.load("X.npy"))
    lines = invoke("run", "net", "X.npy").stdout.splitlines()
    assert [[int(v) for v in line.split()] for line in lines] == expected.tolist()
    assert told("run", "net", "X.npy")["outputs"] == expected.tolist()
    assert invoke("run", "net", "X.npy", "--output", "Y.npy").stdout == ""
    assert (np.load("Y.npy") == expected).all()
    classes = invoke("run", "net", "X.npy", "--as", "classes").stdout.split()
    assert [int(c) for c in classes] == expected.argmax(axis=1).tolist()
    assert "no output dequantizer" in invoke("run", "net", "X.npy", "--as", "floats", code=2).output


def test_every_command_that_opens_a_network_is_told_how() -> None:
    opens = ("inspect", "certify", "convert", "diff", "diagnose", "run", "trace", "report")
    commands = [refqnn.commands[name] for name in opens]
    for command in (*commands, refqnn.commands["fhe"].commands["compile"]):
        flags = {flag for param in command.params for flag in param.opts}
        assert flags >= {"--input", "--stop", "--strict", "--runtime"}, command.name


@pytest.mark.parametrize("form", ["npz", "npy", "txt"])
def test_a_trace_is_read_back_whole(net: Network, form: str) -> None:
    target = "trace.npz" if form == "npz" else "trace"
    invoke("trace", "net", "X.npy", "--output", target, "--format", form)
    expected = net.trace(np.load("X.npy"))
    dump = dumps.read_dump(target)
    assert set(dump) == set(expected)  # conv/1 among them
    for name, values in expected.items():
        assert (dump[name].reshape(values.shape) == values).all()
    assert "equal" in invoke("diff", "net", "--against", target).output


def test_wide_integers_are_written_as_text_alone(tmp_path: Path) -> None:
    wide = {"sum": np.array([[2**70]], dtype=object)}
    dumps.write_trace(wide, tmp_path / "text", "txt")
    assert dumps.read_dump(tmp_path / "text")["sum"].tolist() == [[2**70]]
    for form in ("npz", "npy", "c-header"):
        with pytest.raises(OutOfRange, match=r"64|int64"):
            dumps.write_trace(wide, tmp_path / form, form)
    with pytest.raises(InvalidArgument, match="form"):
        dumps.write_trace(wide, tmp_path / "x", "bin")


C_PROGRAM = r"""
#include <stdio.h>
#include "trace/conv%2F1.h"
#include "trace/fc.h"
int main(void) {
    long long sum = 0;
    for (int i = 0; i < TRACE_CONV_1_SAMPLES; i++)
        for (int j = 0; j < TRACE_CONV_1_SIZE; j++)
            sum = (sum * 31 + trace_conv_1[i][j]) % 1000003;
    printf("%lld %d %d\n", sum, TRACE_FC_SAMPLES, (int)trace_fc[3][1]);
}
"""


def test_ten_lines_of_c_read_the_headers(net: Network) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) on PATH")
    invoke("trace", "net", "X.npy", "--output", "trace", "--format", "c-header")
    Path("read.c").write_text(C_PROGRAM)
    strict = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
    subprocess.run([compiler, *strict, "read.c", "-o", "read"], check=True)
    output = subprocess.run(["./read"], capture_output=True, text=True, check=True).stdout
    trace = net.trace(np.load("X.npy"))
    expected = 0
    for value in trace["conv/1"].ravel().tolist():
        expected = int(np.fmod(expected * 31 + value, 1000003))  # of the sign of C's %
    assert output.split() == [str(expected), "4", str(trace["fc"][3, 1])]


PYTHON_PROGRAM = """
import sys
import numpy as np
trace = np.load("trace.npz")
w = np.load("fc.npy")
mine = {"fc": (trace["flat"] @ w.T).astype(np.int32)}
np.savez("mine.npz", **mine)
for line in open("trace/fc.txt"):
    print(*[int(v) for v in line.split()])
"""


def test_ten_lines_of_python_read_and_answer(net: Network) -> None:
    invoke("trace", "net", "X.npy", "--output", "trace.npz")
    invoke("trace", "net", "X.npy", "--output", "trace", "--format", "txt")
    np.save("fc.npy", net["fc"].op.weight)
    result = subprocess.run(
        [sys.executable, "-c", PYTHON_PROGRAM], capture_output=True, text=True, check=True
    )
    expected = net.forward(np.load("X.npy"))
    assert [[int(v) for v in line.split()] for line in result.stdout.splitlines()] == (
        expected.tolist()
    )
    out = invoke("diff", "net", "--against", "mine.npz", "--inputs", "X.npy").output
    assert "equal on 4 samples" in out


def test_names_in_c_stay_apart_and_say_nothing_else(tmp_path: Path) -> None:
    names = ["a.b", "a_b", "A_B", "1", "*/ evil /*", "é"]
    trace = {name: np.array([[i]]) for i, name in enumerate(names)}
    dumps.write_trace(trace, tmp_path / "t", "c-header")
    files = sorted((tmp_path / "t").iterdir())
    text = [file.read_text() for file in files]
    assert len({line for t in text for line in t.splitlines() if "trace_" in line}) == len(names)
    assert all("evil /*" not in t for t in text)
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) on PATH")
    program = "".join(f'#include "{file}"\n' for file in files) + "int main(void) { return 0; }"
    (tmp_path / "all.c").write_text(program)
    subprocess.run([compiler, "-fsyntax-only", tmp_path / "all.c"], check=True)


# --- diff against a dump ----------------------------------------------------------------------


def board(net: Network, layout: str = "NHWC") -> dict[str, np.ndarray]:
    """What a program with channels last leaves: each value in its own order, made by hand."""
    trace = net.trace(np.load("X.npy"))
    order = ["NCHW".index(letter) for letter in layout]
    dump = {name: trace[name].transpose(order) for name in ("input", "conv/1", "act")}
    dump["flat"] = dump["act"].reshape(4, -1)
    return {**dump, "fc": trace["fc"]}


def test_a_board_with_channels_last(net: Network) -> None:
    for flat in (False, True):
        dump = board(net)
        np.savez("dump.npz", **{k: v.ravel() if flat else v for k, v in dump.items()})
        words = ("diff", "net", "--against", "dump.npz")
        assert "equal" in invoke(*words, "--layout", "NHWC").output
        assert "part" not in invoke(*words, "--layout", "nhwc").output
        assert told(*words, "--layout", "NHWC") == {"equal": True, "difference": None}
        wrong = invoke(*words, code=1 if flat else 2).output
        assert "expected" in wrong
    dump["act"][2, 1, 0, 2] += 1  # the board's order: sample, row, column, channel
    np.savez("dump.npz", **dump)
    answer = told(*words, "--layout", "NHWC", code=1)
    assert answer["difference"]["node"] == "act"
    assert answer["difference"]["index"] == [2, 2, 1, 0]
    assert answer["difference"]["count"] == 1


def test_a_dump_holds_what_it_holds(net: Network) -> None:
    trace = net.trace(np.load("X.npy"))
    np.savez("dump.npz", act=trace["act"].astype(np.uint8))
    assert "names ['act']" in invoke("diff", "net", "--against", "dump.npz", code=2).output
    words = ("diff", "net", "--against", "dump.npz", "--inputs", "X.npy")
    assert "equal on 4 samples" in invoke(*words).output
    for values, text in (
        ({"nowhere": trace["act"]}, "nowhere"),
        ({"act": trace["act"][:3]}, "dump['act']"),
        ({"act": trace["act"].transpose(0, 2, 3, 1)}, "dump['act']"),
        ({"act": trace["act"] + 0.5}, "float64"),
    ):
        np.savez("dump.npz", **values)
        assert text in invoke(*words, code=2).output
    np.savez("dump.npz", act=trace["act"])
    assert "layout" in invoke(*words, "--layout", "NHCC", code=2).output
    assert "Error" in invoke("diff", "net", code=2).output
    assert "Error" in invoke("diff", "net", "net", code=2).output
    assert "Error" in invoke("diff", "net", "net", "--against", "dump.npz", code=2).output


def test_one_sample_without_its_axis(net: Network) -> None:
    codes = np.load("X.npy")[:1]
    trace = net.trace(codes)
    alone = {name: values[0] for name, values in trace.items()}
    assert net.diff(alone) is None
    alone["fc"] = alone["fc"] + 1
    found = net.diff(alone, codes)
    assert found is not None
    assert (found.node, found.count) == ("fc", 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fc.txt", b"1 2\n3\n", "different lengths"),
        ("fc.txt", b"1 x\n", "not integers"),
        ("fc.npy", b"nothing", "not arrays of numbers"),
        ("readme.md", b"", "no file that ends in"),
    ],
)
def test_a_bad_folder(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        dumps.read_dump(tmp_path)


def test_bad_dumps(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", [1])
    np.savez(tmp_path / "objects.npz", a=np.array([None]))
    (tmp_path / "text.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("one.npy", "text.npz"):
        with pytest.raises(FileFormatError, match=name):
            dumps.read_dump(tmp_path / name)
    with pytest.raises(FileFormatError, match="objects"):
        dumps.read_dump(tmp_path / "objects.npz")
    np.savez(tmp_path / "empty.npz", fc=np.zeros((0, 2), int))
    with pytest.raises(ShapeMismatch, match="fc"):
        image_network().diff(dumps.read_dump(tmp_path / "empty.npz"), np.zeros((1, 2, 4, 5), int))


# --- JSON -------------------------------------------------------------------------------------


def test_json_goes_to_standard_output_and_the_rest_beside_it(net: Network) -> None:
    rows = told("inspect", "net")
    assert [row["node"] for row in rows["nodes"]] == ["input", *(node.name for node in net)]
    assert rows["network"] == net.digest
    Path("certificate.json").write_text(invoke("certify", "net", "--json", "-").stdout)
    assert Certificate.load("certificate.json").verify(net)
    invoke("certify", "net", "--json", "file.json")
    assert Path("file.json").read_text() == Path("certificate.json").read_text()
    assert "conv/1" in invoke("certify", "net", "--json", "-").stderr
    assert told("diff", "net", "net", "--inputs", "X.npy") == {"equal": True, "difference": None}
    assert {row["name"] for row in told("doctor")["extras"]} == set(EXTRAS)
    for words in (("convert", "net", "-"), ("certify", "net", "--plot", "-")):
        assert "'-'" in invoke(*words, code=2).output
    assert not Path("-").exists()


@pytest.mark.parametrize("words", [["inspect", "net"], ["run", "net", "X.npy"]])
def test_a_reader_that_has_gone_is_no_difference(words: list[str], net: Network) -> None:
    """`refqnn ... | head -1` ends as a signal would end it; 1 says that something differs."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "refqnn", *words]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_an_error_is_json_too(net: Network) -> None:
    """Of a program that cannot be talked to, a broken file, a certificate that does not hold."""
    silent = ("conform", "--json", "-", "--", sys.executable, "-c", "pass")
    error = json.loads(invoke(*silent, code=2).stdout)["error"]
    assert error in invoke("conform", "--", sys.executable, "-c", "pass", code=2).stderr
    Path("broken").write_bytes(b"PK\x03\x04")
    for words in (("inspect", "broken"), ("certify", "net", "--bits", 4, "--layer", "act")):
        answer = told(*words, code=2)
        assert list(answer) == ["error"]
        assert "broken" in answer["error"] or "layer" in answer["error"]
    for words in (("inspect", "missing"), ("certify", "net", "--bits", "x"), ("diff", "net", "x")):
        assert "nvalid value for" in told(*words, code=2)["error"]  # refused before any work
    kept = Path("net").read_bytes()
    invoke("certify", "net", "--bits", "x", "--json", "net", code=2)  # not yet held against FILE
    assert Path("net").read_bytes() == kept
    certify(net, method="interval").save("certificate.json")
    other = Network(net.nodes[:2], input_shape=net.input_shape, input_format=net.input_format)
    other.save("other")
    assert "network" in told("certify", "other", "--verify", "certificate.json", code=1)["error"]
    invoke("inspect", "broken", "--json", "told.json", code=2)
    assert "broken" in json.loads(Path("told.json").read_text())["error"]


def test_every_command_with_a_result_has_json() -> None:
    for name in ("demo", "inspect", "certify", "compare", "diff", "conform", "run", "doctor"):
        assert any("--json" in p.opts for p in refqnn.commands[name].params), name


# --- no terminal ------------------------------------------------------------------------------


def test_progress_is_plain_where_there_is_no_terminal(net: Network) -> None:
    words = [
        sys.executable,
        "-m",
        "refqnn",
        "certify",
        "net",
        "--method",
        "search",
        "--budget",
        "1",
    ]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stderr.isascii(), result.stderr
    assert result.stderr.strip() == ""


def test_the_doctor_does_not_pass_on_what_packages_warn_of() -> None:
    words = [sys.executable, "-m", "refqnn", "doctor"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_stage_is_told_once() -> None:
    program = (
        "from refqnn.commands.console import Bars\n"
        "with Bars() as bars, bars.stage('compile', 2) as advance:\n"
        "    advance('one'); advance('two')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stderr.count("compile") == 1
    assert result.stderr.isascii()


# --- what is not a network --------------------------------------------------------------------


def test_a_file_of_another_kind_is_named(net: Network, tmp_path: Path) -> None:
    certify(net).save("certificate.json")
    np.savez("arrays.npz", a=[1])
    Path("model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    Path("model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    files = {
        "certificate.json": "certify NETWORK --verify",
        "arrays.npz": "--against",
        "X.npy": "X.npy",
        "model.h5": "Keras",
    }
    for file, road in files.items():
        text = invoke("inspect", file, code=2).output
        assert file in text
        assert "not a network file of ours, but" in text
        assert road in text
        with pytest.raises(FileFormatError, match="not a network file of ours"):
            load(file)
    with pytest.raises(FileFormatError, match="TFLite"):
        load("model.tflite")


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


WRONG = {  # what is in a file, and the word that names it
    "weights.pt": (zipped(**{"archive/data.pkl": ""}), "PyTorch"),
    "old.pt": (b"\x80\x02" + bytes(9), "PyTorch"),
    "model.keras": (zipped(**{"model.weights.h5": ""}), "Keras"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "Keras"),
    "server.fhe": (zipped(**{"refqnn.json": '{"format": "refqnn server"}'}), "server"),
    "keys.fhe": (zipped(**{"refqnn.json": '{"format": "refqnn private keys"}'}), "private keys"),
    "image.png": (b"\x89PNG\r\n\x1a\n", "an image"),
    "image.jpg": (b"\xff\xd8\xff\xe0", "an image"),
    "empty": (b"", "an empty file"),
    "arrays.npz": (zipped(**{"a.npy": ""}), ".npz"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(64), ".tflite"),
    "estimator": (zipped(**{"estimator.json": "{}"}), "estimator"),
    "cut": (b"PK\x03\x04 and no more", "cut"),
    "text.txt": (b"hello", "text.txt"),
}
OPENS = {
    **{name: (name, "FILE") for name in ("inspect", "certify")},
    "convert": ("convert", "FILE", "new.npz"),
    "diff": ("diff", "net", "FILE", "--inputs", "X.npy"),
    "diff --inputs": ("diff", "net", "net", "--inputs", "FILE"),
    "diff --against": ("diff", "net", "--inputs", "X.npy", "--against", "FILE"),
    "diagnose": ("diagnose", "FILE", "dump.npz"),
    "diagnose DUMP": ("diagnose", "net", "FILE"),
    "run": ("run", "FILE", "X.npy"),
    "run X": ("run", "net", "FILE"),
    "trace": ("trace", "FILE", "X.npy", "--output", "new.npz"),
    "report": ("report", "FILE", "--output", "new.html"),
    "certify --inputs": ("certify", "net", "--inputs", "FILE"),
    "certify --verify": ("certify", "net", "--verify", "FILE"),
    "certify --accumulator": ("certify", "net", "--accumulator", "FILE"),
    "fhe compile": ("fhe", "compile", "FILE", "--client", "c.fhe", "--server", "s.fhe"),
    "fhe client": ("fhe", "client", "keygen", "FILE", "--keys", "k", "--evaluation-keys", "e"),
}


@pytest.mark.parametrize("command", OPENS)
def test_a_wrong_file_is_an_error_of_ours(command: str, net: Network) -> None:
    """Of each kind, at each place: one line that names the file and what it is, exit code 2."""
    if not all(map(here, ("onnx", "tflite", "report", "fhe"))):
        pytest.skip("without an extra, that is named first")
    Path("folder").mkdir()
    np.savez("dump.npz", fc=[[1, 2]])
    right = {"arrays.npz"} if command in ("diff --against", "diagnose DUMP") else set()
    for name, (content, word) in WRONG.items():
        if name in right:
            continue
        Path(name).write_bytes(content)
        text = invoke(*(name if w == "FILE" else w for w in OPENS[command]), code=2).stderr
        assert text.startswith(f"Error: {name}"), text
        assert text.count("\n") == 1, text
        assert word in text, text
    text = invoke(*("folder" if w == "FILE" else w for w in OPENS[command]), code=2).stderr
    assert "folder" in text.splitlines()[-1]
    assert not list(Path().glob("new.*"))


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("onnx", ("inspect", "net.onnx")),
        ("tflite", ("inspect", "model.tflite")),
        ("matplotlib", ("certify", "net", "--plot", "x.png")),
        ("jinja2", ("report", "net", "-o", "x.html")),
        ("ortools", ("certify", "net", "--method", "solver")),
        ("brevitas", ("compare", "module:function")),
        ("torch", ("demo",)),
    ],
)
def test_a_missing_extra_is_an_error_of_ours(
    absent: str, words: tuple[str, ...], net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("net.onnx").write_bytes(b"\x08\x07")
    Path("model.tflite").write_bytes(WRONG["model.tflite"][0])
    for module in [m for m in sys.modules if m.split(".")[0] == absent]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, absent, None)
    text = invoke(*words, code=2).stderr
    assert "python -m pip install 'refqnn[" in text, text
    assert text.count("\n") == 1, text


def test_pytorch_files_are_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name, new in (("new.pt", True), ("old.pt", False)):
        torch.save({"w": torch.zeros(2)}, tmp_path / name, _use_new_zipfile_serialization=new)
        with pytest.raises(FileFormatError, match=r"PyTorch; .*from_brevitas"):
            load(tmp_path / name)


def test_files_of_a_circuit_are_named(net: Network, tmp_path: Path) -> None:
    pytest.importorskip("concrete.fhe")
    from refqnn import fhe

    nodes = [Node("fc", Linear([[1, 2]])), Node("r", Requantize.from_shift(1, UINT3))]
    small = Network(nodes, input_shape=(2,), input_format=IntFormat(1, signed=False))
    small.save("small")
    words = ("fhe", "compile", "small", "--client", "client.fhe", "--server", "server.fhe")
    answer = told(*words)
    assert {row["layer"] for row in answer["layers"]} >= {"output"}
    assert set(answer["reveals"]) == set(fhe.compile(small).reveals())
    for side in ("client", "server"):
        with pytest.raises(FileFormatError, match=f"{side}'s file of a circuit"):
            load(f"{side}.fhe")


def test_compare_names_what_is_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("brevitas")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_for_compare.py").write_text(
        "def fails():\n    return 1 / 0\ndef pair():\n    return 1, 2\n"
    )
    assert "TypeError" in invoke("compare", "numpy:zeros", code=2).output
    text = invoke("compare", "broken_for_compare:fails", code=2).output
    assert "ZeroDivisionError" in text
    assert "line 2" in text
    assert "expected (module, X)" in invoke("compare", "broken_for_compare:pair", code=2).output


# --- the machine ------------------------------------------------------------------------------


def test_missing_extras_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "concrete", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as raised:
        require("train", "fhe", "plot", "cli")
    text = str(raised.value)
    assert "torch, concrete-python, matplotlib are not installed; they come with" in text
    assert "'refqnn[train,fhe,plot]'" in text
    assert text in invoke("demo", "--plot", "x.png", code=2).output


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = Path(__file__).parent.parent / "pyproject.toml"
    stated = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(PURPOSES) == set(stated) - {"all", "dev", "bench", "docs"}
    for extra, packages in EXTRAS.items():
        for package in packages:
            assert any(package in line for line in stated[extra]), package


def test_doctor_tells_what_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    rows = {row["name"]: row for row in told("doctor")["extras"]}
    assert "onnx" in rows["onnx"]["works"]
    assert rows["cli"]["works"] == "yes"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes(shell: str) -> None:
    assert f"_REFQNN_COMPLETE={shell}_source" in invoke("--help").output
    environment = {**os.environ, "_REFQNN_COMPLETE": f"{shell}_source"}
    program = "import sys; sys.argv[0] = 'refqnn'; from refqnn.cli import refqnn; refqnn()"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if "Bash" in result.stderr:
        pytest.skip("no bash that click can complete for")
    assert "_REFQNN_COMPLETE" in result.stdout


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    result = CliRunner().invoke(refqnn, ["inspect", str(path)])
    assert result.exit_code == 2
    assert "empty.onnx" in result.output
