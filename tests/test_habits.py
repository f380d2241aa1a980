"""What a Python user tries without reading: len, in, ==, copies, notebooks, dir, data frames."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import refqnn
from refqnn import (
    Accumulator,
    Add,
    AffineQuantizer,
    Dequantizer,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    Stage,
    SymmetricQuantizer,
    certify,
    extras,
    find_overflow,
    observed,
)
from refqnn.doors import Features
from refqnn.errors import InvalidType

UINT3 = IntFormat(3, signed=False)


def network(weight: int = 3, name: str = "fc1") -> Network:
    return Network(
        [
            Node(name, Linear([[weight, -2], [1, 1]])),
            Node("act1", Requantize.from_shift(1, UINT3)),
            Node("both", Add(), ("act1", "input")),
        ],
        input_shape=(2,),
        input_quantizer=SymmetricQuantizer(0.5, UINT3),
        output_dequantizer=Dequantizer(0.5),
    )


# --- a container of nodes ---------------------------------------------------------------------


def test_a_network_is_a_container_of_nodes() -> None:
    net = network()
    assert len(net) == 3
    assert [node.name for node in net] == ["fc1", "act1", "both"]
    assert "fc1" in net
    assert "input" not in net
    assert 1 not in net
    assert all(node in net for node in net)


def test_networks_are_equal_by_content(tmp_path: Path) -> None:
    net = network()
    net.save(tmp_path / "net")
    assert Network.load(tmp_path / "net") == net == network()
    assert len({net, network(), network(4)}) == 2
    for other in (
        network(4),
        network(name="fc2"),
        Network(net.nodes[:1], input_shape=(2,), input_format=UINT3),
        "net",
        None,
    ):
        assert net != other


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, through_pickle])
def test_copies_are_equal_and_as_little_writable(again) -> None:
    net = network()
    codes = np.array([[7, 0], [3, 5]])
    before = net.forward(codes)  # what was computed on the way is not copied
    made = again(net)
    assert made == net
    assert hash(made) == hash(net)
    assert (made.forward(codes) == before).all()
    assert made.predict([[1.0, 2.0]]).tolist() == net.predict([[1.0, 2.0]]).tolist()
    with pytest.raises(ValueError, match="read-only"):
        made["fc1"].op.weight[0, 0] = 9
    with pytest.raises(ValueError, match="read-only"):
        made["act1"].op.thresholds[0, 0] = 9


def test_a_copied_certificate_still_holds() -> None:
    net = network()
    assert through_pickle(certify(net)).verify(through_pickle(net))


# --- what is shown ----------------------------------------------------------------------------


def test_repr_is_short_and_str_is_the_table() -> None:
    wide = Network(
        [Node(f"layer_{i}", Linear(np.ones((64, 64), int))) for i in range(40)],
        input_shape=(64,),
        input_format=IntFormat(1, signed=False),
    )
    for net in (network(), wide):
        assert "\n" not in repr(net)
        assert len(repr(net)) < 200
    assert "fc1: Linear" in repr(network())
    assert "40 nodes" in repr(wide)
    lines = str(network()).splitlines()
    assert lines[1].split()[:4] == ["node", "kind", "inputs", "shape"]
    assert [line.split()[0] for line in lines[2:]] == ["input", "fc1", "act1", "both"]
    assert "[-14, 21]" in lines[3]


class Tags(HTMLParser):
    """The tags and the text of a page; raises where an element is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = "<script>alert(1)</script>&\x1b[31m"


def test_a_notebook_shows_tables_without_what_names_smuggle() -> None:
    net = network(name=EVIL)
    certificate = certify(net)
    overflow = find_overflow(net, bits=5, certificate=certificate)
    part = net.diff({"input": [[7, 0]], EVIL: [[0, 0]]})
    assert part is not None
    diagnosis = refqnn.diagnose(net, {"input": [[7, 0]], EVIL: [[0, 0]]}, budget_s=0)
    staged = certify(net, accumulator=Accumulator([Stage(4)]))
    for shown in (net, certificate, overflow, part, diagnosis, staged):
        page = Tags(shown._repr_html_())
        assert "script" not in page.tags
        assert "<script>alert(1)</script>&\\x1b[31m" in page.text
        assert "\x1b" not in page.text
    assert "\x1b" not in repr(net) + str(net) + str(certificate)
    assert Tags(net._repr_html_()).tags.count("tr") == 1 + 1 + len(net)
    verdict = refqnn.certify_class(net, [1, 2])
    assert Tags(verdict._repr_html_()).text == str(verdict)


def test_a_network_without_ranges_is_shown_by_its_repr() -> None:
    table = refqnn.Lookup(np.arange(8)[None], 0)
    net = Network(
        [Node("fc", Linear([[2]])), Node("table", table)], input_shape=(1,), input_format=UINT3
    )
    assert "fc: Linear" in str(net)
    assert "fc: Linear" in Tags(net._repr_html_()).text


def test_reports_of_comparisons_are_shown() -> None:
    torch = pytest.importorskip("torch")
    nn = pytest.importorskip("brevitas.nn")
    module = torch.nn.Sequential(nn.QuantIdentity(bit_width=3), nn.QuantLinear(4, 2, bias=False))
    X = torch.randn(8, 4)
    net = refqnn.from_brevitas(module.eval(), X)
    report = refqnn.brevitas.verify_against(module, net, X)
    assert Tags(report._repr_html_()).text == str(report)


def test_a_circuit_is_shown_and_refuses_to_be_pickled() -> None:
    pytest.importorskip("concrete.fhe")
    nodes = [*network().nodes[:2]]
    net = Network(nodes, input_shape=(2,), input_format=UINT3)
    circuit = refqnn.fhe.compile(net)
    page = Tags(circuit._repr_html_())
    assert page.tags.count("table") == 2
    assert "passive reader" in page.text
    for again in (pickle.dumps, copy.deepcopy):
        with pytest.raises(InvalidType, match="save_client"):
            again(circuit)


# --- the package ------------------------------------------------------------------------------


def test_dir_lists_what_users_import() -> None:
    names = dir(refqnn)
    assert {"from_onnx", "to_onnx", "load", "Network"} <= set(names)
    for name, extra in {"brevitas": "train", "fhe": "fhe", "training": "train"}.items():
        assert (name in names) == extras.here(extra)
    assert not {"plan", "arithmetic", "graph", "container", "import_module", "Any"} & set(names)
    for name in names:
        assert name in vars(refqnn) or name in {*refqnn._HOME, *refqnn._LAZY_MODULES}


def check_types(tmp_path: Path, text: str) -> str:
    pytest.importorskip("mypy")
    (tmp_path / "snippet.py").write_text(text)
    words = (
        *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"),
        *("--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"), "snippet.py"),
    )
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    return result.stdout


@pytest.mark.slow
def test_names_are_typed_and_a_wrong_flavour_is_an_error(tmp_path: Path) -> None:
    lazy = "\n".join(f"refqnn.{name}" for name in sorted(refqnn._LAZY_MODULES))
    good = f"""
import refqnn
from refqnn import Network

def road(module: object, net: Network) -> None:
    again: Network = refqnn.from_onnx("net.onnx")
    refqnn.to_onnx(again, "net.onnx", flavour="qcdq", output="floats")
    loaded: Network = Network.load("net")
{lazy}
"""
    assert "Success" in check_types(tmp_path, good)
    bad = """
import refqnn
net = refqnn.load("net")
refqnn.to_onnx(net, flavour="qdq")
refqnn.to_onnx(net, output="codes")
refqnn.from_brevitas("module", [[0.0]])
refqnn.from_brevitas(1)
refqnn.nothing_of_this_name
wrong: int = refqnn.from_onnx("net.onnx")
"""
    told = check_types(tmp_path, bad)
    assert set(re.findall(r"snippet.py:(\d+): error", told)) == set("456789"), told


# --- data frames ------------------------------------------------------------------------------

TABLE = {"a": [3, 7, 0], "b": [1.5, 0.0, 3.5], "c": [True, False, True]}


def frame(**types: str):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({name: pd.array(TABLE[name], dtype=kind) for name, kind in types.items()})


def test_nullable_columns_come_in_at_every_door() -> None:
    floats = frame(a="Int64", b="Float32", c="boolean")
    plain = np.array([[3, 1.5, 1], [7, 0, 0], [0, 3.5, 1]])
    quantizers = (
        SymmetricQuantizer(0.5, UINT3),
        AffineQuantizer(0.5, 1, UINT3),
        Features([[1.0], [1.0], [0.5]], IntFormat(1, False), axis=1, names=("a", "b", "c")),
    )
    for quantizer in quantizers:
        expected = quantizer.quantize(plain)
        assert (quantizer.quantize(floats) == expected).all()
        fc = Node("fc", Linear([[1, 2, 3]]))
        net = Network([fc], input_shape=(3,), input_quantizer=quantizer)
        assert (net.quantize_input(floats) == expected).all()
        assert (observed(net, floats)["fc"].hi == net.forward(expected).max(axis=0)).all()

    codes = frame(a="Int64", c="boolean")
    net = Network([Node("fc", Linear([[1, 2]]))], input_shape=(2,), input_format=UINT3)
    assert net.forward(codes).tolist() == [[5], [7], [2]]
    assert net.trace(codes)["input"].tolist() == [[3, 1], [7, 0], [0, 1]]
    assert net.codes_of(codes).tolist() == [[3, 1], [7, 0], [0, 1]]
    assert net.forward(frame(a="UInt8", c="Int16").to_numpy()[:1]).tolist() == [[5]]


def test_a_missing_value_is_refused_by_name() -> None:
    for types in ({"a": "Int64", "b": "Float32"}, {"b": "Float32", "a": "Int64"}):
        holed = frame(**types)
        holed.loc[1, "a"] = None
        net = Network(
            [Node("fc", Linear([[1, 2]]))],
            input_shape=(2,),
            input_quantizer=SymmetricQuantizer(0.5, UINT3),
        )
        with pytest.raises(InvalidType, match=r"X\['a', 1\]: got NA|x\['a', 1\]: got NA"):
            net.predict(holed)
        with pytest.raises(InvalidType, match=r"codes\[1\]: got NA"):
            net.forward(holed["a"])


def test_nullable_columns_train_and_predict() -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("brevitas")
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "a": pd.array(rng.integers(0, 9, 60), dtype="Int64"),
            "b": pd.array(rng.random(60), dtype="Float32"),
            "c": pd.array(rng.random(60) > 0.5, dtype="boolean"),
        }
    )
    y = pd.Series(pd.array(rng.integers(0, 2, 60), dtype="Int64"))
    model = refqnn.training.NeuralNetClassifier(max_epochs=1, verbose=0).fit(X, y)
    told = model.predict(X)
    assert told.dtype == np.int64
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert (model.predict(X.astype("float64")) == told).all()
    X.loc[3, "a"] = None
    with pytest.raises(InvalidType, match=r"X\['a', 3\]: got NA"):
        model.predict(X)
    with pytest.raises(InvalidType, match=r"y\[3\]: got NA"):
        model.fit(X.drop(columns="a"), y.where(y.index != 3))


# --- what stands behind a prompt --------------------------------------------------------------


def results() -> dict[str, object]:
    net = network()
    certificate = certify(net)
    machine = refqnn.Accumulator([refqnn.Stage(4, group=1), refqnn.Stage(5)])
    return {
        "network of a long name": network(name="n" * 5000),
        "certificate": certificate,
        "overflow": find_overflow(net, bits=2),
        "overflow of a stage": find_overflow(net, accumulator=machine),
        "no overflow": find_overflow(net, bits=20),
        "difference": net.diff({"input": [[1, 2]], "fc1": net.trace([[1, 2]])["fc1"] + 1}),
        "conformance": refqnn.conformance.run({"round_ratio": lambda **_: 0}),
    }


@pytest.mark.parametrize("name", results())
def test_results_are_short_and_equal_their_copies(name: str) -> None:
    result = results()[name]
    assert len(repr(result)) < 300
    assert "object at 0x" not in repr(result)
    for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert again == result
        assert hash(again) == hash(result)
    assert result != results()["certificate" if name != "certificate" else "overflow"]


def test_certificates_of_other_claims_differ() -> None:
    net = network()
    assert certify(net) == certify(net)
    assert certify(net) != certify(network(weight=2))
    narrower = certify(net, domain=refqnn.Domain.box(net, 0, 1))
    assert certify(net) != narrower
    assert find_overflow(net, bits=2) != find_overflow(net, bits=3)


def test_pages_and_circuits_are_short() -> None:
    pytest.importorskip("jinja2")
    assert len(repr(network().report())) < 100
    pytest.importorskip("concrete")
    assert repr(network()) in repr(refqnn.fhe.compile(network(), model="public"))
