"""Tensors of a device: which runtime's arithmetic do they follow, layer by layer?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("click")

from click.testing import CliRunner
from tflite_build import O, T, model

import refqnn
from refqnn.commands.cli import refqnn as main
from refqnn.errors import InvalidArgument, InvalidType
from refqnn.tflite import RUNTIMES, diagnose_dump, file_order, read_tflite

SHAPES = {"t0": (4, 3, 2), "t3": (4, 3, 8), "t6": (4, 3, 8), "t7": (96,), "t9": (5,), "t10": (5,)}
Dump = dict[str, np.ndarray[Any, Any]]


def chain() -> bytes:
    """Convolution t3, depthwise t6, the same flat t7, fully connected t9, softmax t10; gains of a
    half and a quarter, where roundings differ.
    """
    rng = np.random.default_rng(0)
    window = dict.fromkeys(("StrideW", "StrideH", "DilationWFactor", "DilationHFactor"), 1)
    tensors = [
        T((1, *SHAPES["t0"]), 0.5, 3),
        T((8, 1, 1, 2), 0.25, 0, rng.integers(-9, 10, (8, 1, 1, 2), dtype=np.int8)),
        T((8,), 0.125, 0, rng.integers(-9, 10, 8, dtype=np.int32), "int32"),
        T((1, *SHAPES["t3"]), 0.5, -5),
        T((1, 3, 3, 8), 0.5, 0, rng.integers(-9, 10, (1, 3, 3, 8), dtype=np.int8), axis=3),
        T((8,), 0.25, 0, rng.integers(-9, 10, 8, dtype=np.int32), "int32"),
        T((1, *SHAPES["t6"]), 1.0, 7),
        T((1, 96), 1.0, 7),
        T((5, 96), 2.0**-6, 0, rng.integers(-1, 2, (5, 96), dtype=np.int8)),
        T((1, 5), 2.0**-4, 0),
        T((1, 5), 2.0**-8, -128),
    ]
    ops = [
        O("CONV_2D", [0, 1, 2], [3], "Conv2DOptions", {"Padding": 1, **window}),
        O(
            "DEPTHWISE_CONV_2D",
            [3, 4, 5],
            [6],
            "DepthwiseConv2DOptions",
            {**window, "DepthMultiplier": 1},
        ),
        O("RESHAPE", [6], [7], "ReshapeOptions", {"NewShape": [1, 96]}),
        O("FULLY_CONNECTED", [7, 8, -1], [9], "FullyConnectedOptions", {}),
        O("SOFTMAX", [9], [10], "SoftmaxOptions", {"Beta": 1.0}),
    ]
    return model(tensors, ops, [0], [10])


def device(runtimes: dict[str, str], n: int = 60) -> Dump:
    """Every tensor, each made by a runtime of its own out of those before it."""
    networks = {runtime: read_tflite(chain(), runtime) for runtime in RUNTIMES}
    codes = np.random.default_rng(1).integers(-128, 128, (n, *SHAPES["t0"]))
    dump, known = {"t0": codes}, {}
    for index, runtime in ((3, "t3"), (6, "t6"), (7, "t7"), (9, "t9"), (10, "t10")):
        imported = networks[runtimes.get(runtime, "tflite_ref")]  # type: ignore[index]
        nodes = imported.network.nodes
        values = {"input": codes, **known}
        for node in nodes:
            if node.name not in known:
                values[node.name] = node.op.forward(*(values[i] for i in node.inputs or ()))
        known[imported.nodes[index]] = values[imported.nodes[index]]
        dump[f"t{index}"] = file_order(values[imported.nodes[index]])
    return dump


MIXED = {"t3": "xnnpack", "t6": "tflite_ref", "t9": "tflite_optimized", "t10": "tflite_ref"}


def test_each_layer_follows_a_runtime_of_its_own() -> None:
    found = diagnose_dump(chain(), device(MIXED), catalogue=())
    assert found.profiles["t3"] == ("xnnpack",)
    assert found.profiles["t6"] == ("tflite_ref", "cmsis_nn")  # they are one there
    assert "xnnpack" in found.profiles["t7"]  # a movement: all are one
    assert found.profiles["t9"] == ("tflite_optimized",)
    assert {"tflite_ref", "cmsis_nn"} <= {*found.profiles["t10"]}
    assert found.followed == ()
    assert [finding.node for finding in found.findings] == ["t3", "t9"]
    assert [f.explanations[0][0].name for f in found.findings] == ["xnnpack", "tflite_optimized"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_runtime_throughout(runtime: str) -> None:
    found = diagnose_dump(chain(), device(dict.fromkeys(MIXED, runtime)), catalogue=())
    assert found.followed == (runtime,)


def test_where_none_fits() -> None:
    dump = device({})
    dump["t6"] = np.maximum(dump["t6"], 0)
    found = diagnose_dump(chain(), dump, catalogue=())
    assert found.profiles["t6"] == ()
    assert found.followed == ()
    assert "t6: none of the profiles alone" in found.profile_lines()
    (finding,) = (f for f in found.findings if f.node == "t6")
    assert finding.explanations == ()
    with_catalogue = diagnose_dump(chain(), dump, budget_s=0)
    (finding,) = (f for f in with_catalogue.findings if f.node == "t6")
    assert "relu" in finding.names  # the catalogue does


def test_some_layers_only_and_the_output_alone() -> None:
    dump = device(dict.fromkeys(MIXED, "xnnpack"))
    for kept in (["t9"], ["t10"], ["t3", "t10"], ["t6"]):
        found = diagnose_dump(
            chain(), {"t0": dump["t0"], **{k: dump[k] for k in kept}}, catalogue=()
        )
        assert list(found.profiles) == kept
        assert all("xnnpack" in names for names in found.profiles.values())
        assert "tflite_ref" not in found.followed


def test_numbers_flat_values_and_channels_first() -> None:
    dump = device(MIXED)
    expected = diagnose_dump(chain(), dump, catalogue=()).profiles
    numbered = {name[1:]: values for name, values in dump.items()}
    flat = {name: values.reshape(len(values), -1) for name, values in dump.items()}
    floats = {name: values.astype(np.float32) for name, values in dump.items()}
    first = {n: np.moveaxis(v, -1, 1) if v.ndim > 2 else v for n, v in dump.items() if n != "t7"}
    for other in (numbered, flat, floats):
        assert diagnose_dump(chain(), other, catalogue=()).profiles == expected
    found = diagnose_dump(chain(), first, catalogue=(), layout="NCHW")
    assert found.profiles == {k: v for k, v in expected.items() if k != "t7"}


def test_what_is_passed_over_and_refused() -> None:
    dump = device({})
    again = diagnose_dump(chain(), dump, dump["t0"], catalogue=())
    assert again.equal == diagnose_dump(chain(), dump, catalogue=()).equal
    weights = {"t1": np.zeros((8, 1, 1, 2), int)}
    found = diagnose_dump(chain(), {**dump, **weights}, catalogue=())
    assert found.notes["t1"] == "not compared: a constant"
    with pytest.raises(InvalidArgument, match="name in dump: got 'fc', which 0 tensors are called"):
        diagnose_dump(chain(), {**dump, "fc": dump["t9"]})
    assert diagnose_dump(
        chain(), {"t0": dump["t0"], "fc": dump["t9"]}, names={"fc": "t9"}, catalogue=()
    ).profiles.keys() == {"t9"}
    with pytest.raises(InvalidType):
        diagnose_dump(chain(), {**dump, "t9": dump["t9"] + 0.5})
    network = read_tflite(chain()).network
    with pytest.raises(InvalidType, match="profiles"):
        refqnn.diagnose(network, {"t9": dump["t9"]}, profiles=[network])  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "m.tflite").write_bytes(chain())
    np.savez(tmp_path / "dump.npz", **device(MIXED))
    return str(tmp_path / "m.tflite"), str(tmp_path / "dump.npz")


def test_diff_against_names_the_runtimes(files: tuple[str, str], tmp_path: Path) -> None:
    file, dump = files
    runner = CliRunner()
    said = runner.invoke(
        main, ["diff", file, "--against", dump, "--json", str(tmp_path / "o.json")]
    )
    assert said.exit_code == 1
    assert "t3: xnnpack\nt6: tflite_ref, cmsis_nn\n" in said.output
    assert "all 5 values: none of the profiles alone" in said.output
    assert "t3[0, " in said.output
    told = json.loads((tmp_path / "o.json").read_text())
    assert told["profiles"]["t9"] == ["tflite_optimized"]
    assert told["equal"] is False
    np.savez(dump, **device(dict.fromkeys(MIXED, "xnnpack")))
    same = runner.invoke(main, ["diff", file, "--against", dump, "--runtime", "xnnpack"])
    assert same.exit_code == 0
    assert "all 5 values: xnnpack\nequal on the values of the dump" in same.output
    twice = ["--runtime", "xnnpack", "--runtime", "tflite_ref"]
    assert runner.invoke(main, ["diagnose", file, dump, *twice]).exit_code == 2


def test_diagnose_names_the_runtimes(files: tuple[str, str]) -> None:
    file, dump = files
    said = CliRunner().invoke(main, ["diagnose", file, dump, "--budget", "0"])
    assert said.exit_code == 1
    assert "t3: it computes as xnnpack [xnnpack]" in said.output
    assert "follows t9: tflite_optimized" in said.output


def test_a_trace_of_the_same_file_is_a_dump() -> None:
    """Values by our names, in our order: the sums and the input are no tensors' names."""
    network = read_tflite(chain()).network
    codes = np.random.default_rng(1).integers(-128, 128, (2, *SHAPES["t0"]))
    trace = network.trace(codes)
    assert {"input", "t3: sum"} <= set(trace)
    assert diagnose_dump(chain(), trace, catalogue=()).ok
    wrong = {"input": codes, "t3: sum": trace["t3: sum"] + 1}
    assert diagnose_dump(chain(), wrong, catalogue=()).findings[0].node == "t3: sum"
    with pytest.raises(InvalidArgument, match="'nothing', which 0 tensors are called"):
        diagnose_dump(chain(), {**trace, "nothing": codes})
