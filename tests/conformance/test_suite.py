"""The vector files: up to date, well formed, explained, small, and strong."""

from __future__ import annotations

import doctest
import hashlib
import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from refqnn.conformance import (
    Rejected,
    Report,
    Unsupported,
    load_vectors,
    run,
    vector,
    vectors_path,
)
from refqnn.conformance.encoding import decode, encode
from refqnn.conformance.making import writing
from refqnn.conformance.making.cases import Case
from refqnn.conformance.making.oracle import FUNCTIONS as ORACLE
from refqnn.conformance.mutants import KERNELS, MUTANTS, mutants_of
from refqnn.conformance.notes import NOTES
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS, Field
from refqnn.conformance.reference import FUNCTIONS as REFERENCE
from refqnn.conformance.runner import judge
from refqnn.conformance.specification import guarded
from refqnn.conformance.suite import call, compare
from refqnn.datasets import load as load_data
from refqnn.errors import CertificateError, FileFormatError, InvalidArgument, InvalidType
from refqnn.network import load as load_network

FOLDER = vectors_path()
VECTOR_FILES = sorted(p for p in FOLDER.glob("*.json") if p.name != "MANIFEST.json")


# --- the files --------------------------------------------------------------------------------


def test_files_are_what_the_generator_writes() -> None:
    assert not writing.stale(), f"regenerate with: {writing.COMMAND}"


def test_generate_writes_only_what_changed(tmp_path: Path) -> None:
    changed = writing.generate(tmp_path)
    assert set(changed) == set(writing.files())
    (tmp_path / "lookup.json").write_text("edited")
    (tmp_path / "left_over.json").write_text("{}")
    assert writing.generate(tmp_path) == ["left_over.json", "lookup.json"]
    assert writing.stale(tmp_path) == []


def test_sizes() -> None:
    sizes = {p: p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()}
    assert sum(sizes.values()) < 3_000_000
    assert max(sizes.values()) < 250_000


def test_manifest_names_every_file_with_its_checksum() -> None:
    manifest = json.loads((FOLDER / "MANIFEST.json").read_text())
    assert set(manifest["files"]) == {p.name for p in VECTOR_FILES}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == entry["sha256"]
    assert manifest["number_of_tests"] == len(load_vectors())


@pytest.mark.parametrize("path", VECTOR_FILES, ids=lambda p: p.stem)
def test_file_follows_its_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(path.read_text())
    schema = json.loads((FOLDER / content["schema"]).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(content)


def test_schemas_are_closed() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads((FOLDER / "lookup.json").read_text())
    validator = jsonschema.Draft202012Validator(
        json.loads((FOLDER / content["schema"]).read_text())
    )
    content["groups"][0]["tests"][0]["acceptable"] = True
    assert not validator.is_valid(content)
    manifest = json.loads((FOLDER / "MANIFEST.json").read_text())
    schema = json.loads((FOLDER / "schema" / "manifest.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(manifest)


def _objects(schema: Any) -> Any:
    """Every schema of an object inside a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value)


@pytest.mark.parametrize("path", sorted((FOLDER / "schema").glob("*.json")), ids=lambda p: p.stem)
def test_no_object_of_a_schema_is_open(path: Path) -> None:
    """Names are listed, or (notes, files, traces) free with values that are not."""
    for schema in _objects(json.loads(path.read_text())):
        rest = schema["additionalProperties"]
        assert rest is False or ("properties" not in schema and rest), schema
        if rest is False:
            assert set(schema["required"]) <= set(schema["properties"])


@pytest.mark.parametrize(
    ("name", "data", "kinds"),
    [
        ("iris-mlp", "iris", {"Linear"}),
        ("checkerboard-mlp", "checkerboard", {"Linear"}),
        ("digits-cnn", "digits", {"Conv2d", "Linear"}),
        ("digits-int8", "digits", {"Conv2d", "MaxPool2d", "Linear"}),
    ],
)
def test_trained_networks_know_their_data(name: str, data: str, kinds: set[str]) -> None:
    pytest.importorskip("sklearn")
    network, rows = load_network(FOLDER / "networks" / f"{name}.npz"), load_data(data)
    X, y = np.concatenate([rows.X_train, rows.X_test]), np.concatenate([rows.y_train, rows.y_test])
    classes = network.predict(X.reshape(len(X), *network.input_shape)).argmax(axis=1)
    assert (classes == y).mean() > 0.95
    assert kinds <= {node.op.kind for node in network.nodes}


def test_ids_are_unique_and_flags_explained() -> None:
    vectors = load_vectors()
    assert len({v.id for v in vectors}) == len(vectors)
    for path in VECTOR_FILES:
        content = json.loads(path.read_text())
        used = {f for g in content["groups"] for t in g["tests"] for f in t["flags"]}
        assert used == set(content["notes"])
        assert content["number_of_tests"] == sum(len(g["tests"]) for g in content["groups"])


def test_comments_state_facts() -> None:
    for v in load_vectors():
        assert len(v.comment) < 120
        assert not any(word in v.comment.lower() for word in ("should", "test that", "todo"))


def test_readme_examples() -> None:
    results = doctest.testfile(str(FOLDER / "README.md"), module_relative=False)
    assert results.attempted > 8
    assert results.failed == 0


def test_every_operation_has_valid_vectors_of_every_rounding_mode() -> None:
    for name, operation in OPERATIONS.items():
        valid = [v for v in load_vectors() if v.operation == name and v.error is None]
        assert valid, name
        if "rounding" in operation.parameters and name not in ("predict",):
            modes = {v.arguments["rounding"] for v in valid}
            assert modes == set(operation.parameters["rounding"].choices), name


@pytest.mark.parametrize("power", [7, 15, 23, 31, 53])
def test_accumulators_pass_the_widths_that_matter(power: int) -> None:
    sums = [
        abs(int(value))
        for v in load_vectors()
        for value in np.ravel(v.outputs.get("acc", []))
        if v.operation in ("linear", "conv2d", "sum_pool2d", "global_sum_pool", "add")
    ]
    assert any(2**power < s < 2 ** (power + 9) for s in sums)


def test_whole_networks_carry_every_intermediate() -> None:
    names = set()
    for v in load_vectors():
        if v.operation == "network" and v.error is None:
            names.add(v.file)
            nodes = {node["name"] for node in v.arguments["network"]["nodes"]}
            assert nodes == {*v.intermediates, v.arguments["network"]["output"]}
    assert {f"network_{n}.json" for n in ("iris", "digits", "checkerboard", "regression")} <= names


def _networks() -> list[tuple[Any, Any]]:
    valid = (v for v in load_vectors() if v.operation == "network" and v.error is None)
    return [(v.arguments["network"], v.arguments["codes"]) for v in valid]


def _nodes(operation: str) -> list[Any]:
    return [n["parameters"] for net, _ in _networks() for n in net["nodes"]
            if n["operation"] == operation]  # fmt: skip


def test_networks_are_as_deployed_ones_are() -> None:
    """What the networks of the suite have, one kind of deployment after another."""
    int8 = {"bits": 8, "signed": True, "narrow": False}
    convs, rescales = _nodes("conv2d"), _nodes("rescale")
    assert any(net["input_format"] == int8 for net, _ in _networks())
    assert any(net["input_shape"][0] == 3 and len(codes) == 2 for net, codes in _networks())
    assert any(conv["pad_code"] != 0 and np.any(conv["padding"]) for conv in convs)  # a zero point
    assert any(len(c["weight"]) == c["groups"] > 1 == c["weight"].shape[1] for c in convs)
    assert any(np.all(np.ravel(r["clip"])[:1] == r["zero_point"]) for r in rescales)  # ReLU6
    assert any(r["bits"] == 16 for r in rescales)
    assert any(r["bits"] == 32 for r in rescales)
    assert any(linear["weight"].shape[1] > 64 for linear in _nodes("linear"))
    assert any(sum("input" in n["inputs"] for n in net["nodes"]) > 1 for net, _ in _networks())
    assert any(net["output"] != net["nodes"][-1]["name"] for net, _ in _networks())
    for pool in ("sum_pool2d", "global_sum_pool"):  # averages: the divisor is part of a scale
        assert any(
            _is_averaged(net, node["name"])
            for net, _ in _networks()
            for node in net["nodes"]
            if node["operation"] == pool
        )


def _is_averaged(network: Any, name: str) -> bool:
    readers = [n for n in network["nodes"] if name in n["inputs"]]
    return any(n["operation"] == "rescale" for n in readers)


# --- two rooms --------------------------------------------------------------------------------

KIT = "suite runner program plugin offline encoding operations reference schemas notes mutants"


def test_the_kit_loads_nothing_that_only_generates() -> None:
    modules = ", ".join(f"refqnn.conformance.{name}" for name in KIT.split())
    code = f"import sys, {modules}; print(*[m for m in sys.modules if '.making' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_old_paths_lead_to_the_same() -> None:
    for name in ("cases", "oracle", "writing", "onnx_wheel"):
        old = importlib.import_module(f"refqnn.conformance.{name}")
        new = importlib.import_module(f"refqnn.conformance.making.{name}")
        assert all(getattr(old, public) is getattr(new, public) for public in new.__all__)
    old = importlib.import_module("refqnn.conformance.kernels")
    assert old.KERNELS is KERNELS
    assert set(KERNELS) == set(REFERENCE) == set(ORACLE) == set(OPERATIONS)


# --- two routes -------------------------------------------------------------------------------


GUARDED = {name: guarded(name, kernel) for name, kernel in KERNELS.items()}


def test_right_implementations_conform() -> None:
    report = run(REFERENCE)
    assert report.conforms, report.summary()
    assert report.counts["passed"] == len(load_vectors())


def test_kernels_conform_behind_the_specification() -> None:
    """But for a value on the way through a network: their integers have no ends."""
    report = run(GUARDED)
    assert {o.vector.id for o in report.failures} == {"network-refuses-on-the-way-1"}
    assert report.counts["passed"] == len(load_vectors()) - 1


def test_kernels_refuse_by_themselves_what_was_written_for_their_mutants() -> None:
    failures = run(KERNELS).failures
    assert all(o.vector.file.endswith("_refuses.json") for o in failures)
    assert all(writing.kills(o.vector) == [] == list(o.vector.flags) for o in failures)


def test_the_second_route_agrees_with_the_files() -> None:
    for v in load_vectors():
        if v.error is None:
            results = {n: writing._nested(r) for n, r in ORACLE[v.operation](**v.arguments).items()}
            assert compare(v, results) is None, v.id


def test_routes_that_disagree_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("flatten-x", "flatten", {"x": np.arange(4).reshape(1, 2, 2)}, "two by two")
    assert writing.solved(case).outputs["y"].tolist() == [[0, 1, 2, 3]]
    monkeypatch.setitem(ORACLE, "flatten", lambda x: {"y": [[0, 2, 1, 3]]})
    with pytest.raises(CertificateError, match="disagree"):
        writing.solved(case)
    accepted = replace(case, error="out_of_range")
    with pytest.raises(CertificateError, match="accepted"):
        writing.solved(accepted)
    ragged = {"operands": [np.ones((1, 2)), np.ones((1, 2, 2), dtype=int)]}
    with pytest.raises(CertificateError, match="refused as"):
        writing.solved(Case("concat-x", "concat", ragged, "ragged", "not_a_number"))


# --- strength ---------------------------------------------------------------------------------


@pytest.mark.parametrize("anew", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_mutant_is_killed_and_the_equivalent_ones_are_not(anew: bool) -> None:
    """As the generator found, whose vectors are those of the files; anew: asked of the files."""
    found = map(writing.kills, load_vectors()) if anew else (m for _, m in writing._all_measured())
    killed = set().union(*found)
    assert len(MUTANTS) >= 100
    assert len({m.id for m in MUTANTS}) == len(MUTANTS)
    assert [m.id for m in MUTANTS if not m.equivalent and m.id not in killed] == []
    assert [m.id for m in MUTANTS if m.equivalent and m.id in killed] == []


def test_score_by_operation_and_flag_is_full() -> None:
    score = writing.score()
    assert set(score) == {*OPERATIONS, *(f"flag:{flag}" for flag in NOTES)}
    for key, (killed, wanted, _) in score.items():
        assert killed == wanted > 0, key


def test_mutants_answer_and_do_not_only_crash() -> None:
    """A mutant that refuses everything would be killed by any vector and say nothing."""
    valid = [v for v in load_vectors() if v.error is None]
    for mutant in MUTANTS:
        answers = (call(mutant.function, v) for v in valid if v.operation == mutant.operation)
        assert any(answer.kind == "result" for answer in answers), mutant.id


@pytest.mark.parametrize("step", [41, pytest.param(7, marks=pytest.mark.slow)])
def test_flags_are_measured(step: int) -> None:
    for v in load_vectors()[::step]:
        killed = set(writing.kills(v))
        flags = {m.flag for m in mutants_of(v.operation) if m.id in killed}
        assert flags == set(v.flags), v.id


# --- running ----------------------------------------------------------------------------------


def test_a_wrong_implementation_is_named() -> None:
    def linear(x: Any, weight: Any, bias: Any, x_zero_point: int, weight_zero_point: Any) -> Any:
        acc = (x - x_zero_point) @ (weight - weight_zero_point.reshape(-1, 1)).T
        acc = acc if bias is None else acc + bias
        return ((acc + 2**15) % 2**16) - 2**15

    report = run({"linear": linear}, operations=["linear"], name="mine")
    assert not report.conforms
    outcome = next(o for o in report.failures if o.vector.id == "linear-passes-2-15")
    assert any("acc_int16" in cause for cause in outcome.resembles)
    assert outcome.reproduction.endswith("# f: linear of mine")
    assert "overflow_narrow" in report.summary()
    assert str(outcome).startswith("linear-passes-2-15: failed: acc[0, 0]: expected 32769, got")
    for outcome in report.failures:  # counted a second time, vector by vector
        if outcome.vector.error is not None:
            continue  # bad data that is accepted is another mistake
        alone = [
            mutant
            for mutant in mutants_of("linear")
            if np.array_equal(
                call(mutant.function, outcome.vector).results.get("acc"),
                call(linear, outcome.vector).results["acc"],
            )
        ]
        assert outcome.others == len(alone) - len(outcome.resembles)
        assert (f"  {outcome.others} more would give it" in str(outcome)) == (outcome.others > 0)


def diagnosed(operation: str, function: Any) -> tuple[set[str], str]:
    """The causes that a report gives, and its text."""
    report = run({operation: function}, operations=[operation])
    causes = {cause for outcome in report.failures for cause in outcome.resembles}
    return causes, report.summary()


NAMED = [m for m in MUTANTS if not m.equivalent]


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(m, id=m.id, marks=[] if i % 81 == 0 else pytest.mark.slow)
        for i, m in enumerate(NAMED)
        if i % 27 == 0
    ],
)
def test_a_known_mistake_is_named_alone_or_not_at_all(mutant: Any) -> None:
    """Never another: what a mutant answers elsewhere counts too, right answers among it."""
    causes, text = diagnosed(mutant.operation, mutant.function)
    named = set(re.findall(r"gives the answer of: (.*)", text))
    assert str(mutant) in causes
    assert named == (causes if len(causes) == 1 else set())


@pytest.mark.slow
def test_mistakes_that_the_vectors_do_not_tell_apart_are_few() -> None:
    alone = [diagnosed(m.operation, m.function)[0] == {str(m)} for m in NAMED]
    assert sum(alone) > 0.95 * len(alone)


def test_an_unknown_mistake_is_not_named() -> None:
    """Two known ones at a time, and one that no mutant has: each vector resembles some mutant."""
    kernel = KERNELS["linear"]

    def twice(**arguments: Any) -> Any:
        wrong = {**arguments, "bias": None, "x_zero_point": 0}
        return kernel(**wrong)

    def ten_bits(**arguments: Any) -> Any:
        return {"acc": (kernel(**arguments)["acc"] + 2**9) % 2**10 - 2**9}

    for function in (twice, ten_bits):
        report = run({"linear": function}, operations=["linear"])
        assert report.failures
        assert any(judged.resembles for judged in map(alone, report.failures, [function] * 99))
        assert not any(outcome.resembles for outcome in report.failures)
        assert "gives the answer" not in report.summary()


def alone(outcome: Any, function: Any) -> Any:
    """The verdict without the others."""
    return judge(outcome.vector, call(function, outcome.vector))


def test_a_reproduction_is_python_to_paste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong_flatten.py").write_text(
        "def flatten(x):\n    return -x.reshape(len(x), -1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    report = run(importlib.import_module("wrong_flatten"), operations=["flatten"])
    outcome = report.failures[0]
    exec(outcome.reproduction, {})
    assert str(-outcome.vector.outputs["y"]) in capsys.readouterr().out
    assert f"reproduce: {outcome.reproduction}" in str(outcome)


def test_summary_names_what_is_unsupported_in_one_place() -> None:
    lines = run({"flatten": REFERENCE["flatten"]}).summary().splitlines()
    rows = [line.split()[0] for line in lines if line.split()[1:]]
    assert rows[2:4] == ["flatten", "total"]
    assert any(line.startswith("unsupported: round_ratio, ") for line in lines)


def test_missing_functions_are_unsupported_and_nothing_passed_is_no_conformance() -> None:
    report = run({"flatten": REFERENCE["flatten"]}, operations=["concat"])
    assert report.counts == {"passed": 0, "failed": 0, "unsupported": 10, "fault": 0} | {
        "unsupported": len(report.outcomes)
    }
    assert not report.conforms
    assert not Report("nothing", ()).conforms


def test_who_only_refuses_shows_nothing() -> None:
    def omega(**arguments: int) -> int:
        if min(arguments.values()) < 1:
            raise Rejected("invalid_parameter")
        raise NotImplementedError

    report = run({"omega": omega}, operations=["omega"])
    assert report.counts["passed"] > 0
    assert not report.failures
    assert not report.conforms
    assert "no result was checked of omega" in report.summary()
    both = run({"omega": omega, "flatten": REFERENCE["flatten"]}, operations=["omega", "flatten"])
    assert both.conforms
    assert "no result was checked of omega: " in both.summary()
    assert "no result was checked" not in run(REFERENCE, operations=["omega"]).summary()


@pytest.mark.parametrize("answer", [{}, None, "28", 28.0, True, [28]])
def test_what_is_no_answer_is_explained_by_no_mistake_in_computing(answer: object) -> None:
    failures = run({"omega": lambda **_: answer}, operations=["omega"]).failures
    assert failures
    assert not any("may be:" in str(failure) for failure in failures)


def test_a_wrong_value_may_be_explained() -> None:
    wrong = run({"omega": lambda **_: -5}, operations=["omega"]).failures
    wrong += run({"flatten": lambda x: x}, operations=["flatten"]).failures
    assert {f.vector.operation for f in wrong if "may be:" in str(f)} == {"omega", "flatten"}


def test_tensors_of_another_kind_are_named_once() -> None:
    floats = run({"flatten": lambda x: x.reshape(len(x), -1).astype(float)}, operations=["flatten"])
    failure = next(f for f in floats.failures if f.mismatch is not None)
    assert "y: expected a tensor of integers, got dtype float64\n" in str(failure)
    assert "may be:" not in str(failure)


def test_an_implementation_without_functions_is_told_what_it_has() -> None:
    for functions, got in (({}, r"names \[\]"), ({"omgea": abs}, r"names \[omgea\]")):
        with pytest.raises(InvalidType, match=f"implementation: got {got}, expected a mapping or"):
            run(functions)
    with pytest.raises(InvalidType, match="implementation: got omega = 3, expected a function"):
        run({"omega": 3})  # type: ignore[dict-item]


def test_how_an_implementation_may_answer() -> None:
    v = vector("flatten-image")

    def status(function: Any) -> str:
        report = run({"flatten": function}, operations=["flatten"])
        return next(o.status for o in report.outcomes if o.vector.id == v.id)

    def raising(error: Exception) -> Any:
        def function(x: Any) -> Any:
            raise error

        return function

    right = v.outputs["y"]
    assert status(lambda x: x.reshape(len(x), -1)) == "passed"
    assert status(lambda x: {"y": x.reshape(len(x), -1).astype(object)}) == "passed"
    assert status(lambda x: x.reshape(len(x), -1).astype(float)) == "failed"
    assert status(lambda x: x.reshape(-1)) == "failed"
    assert status(lambda x: {"z": right}) == "failed"
    assert status(raising(Unsupported("no"))) == "unsupported"
    assert status(raising(Rejected("out_of_range"))) == "failed"
    assert status(raising(MemoryError())) == "fault"
    with pytest.raises(InvalidArgument, match="code"):
        Rejected("unlucky")


def test_accepting_bad_data_fails() -> None:
    report = run({"check_codes": lambda codes, **_: codes}, operations=["check_codes"])
    failed = {o.vector.id for o in report.failures}
    assert failed == {v.id for v in load_vectors() if v.operation == "check_codes" and v.error}


def test_a_code_that_is_given_is_compared() -> None:
    """Refusing without a code passes; a wrong code is a failure, not a weaker kind of pass."""

    def report_of(error: Exception) -> Report:
        def concat(operands: Any) -> Any:
            raise error

        return run({"concat": concat}, operations=["concat"])

    class Coded(ValueError):
        code = "shape_mismatch"

    refused = {v.id for v in load_vectors() if v.operation == "concat" and v.error}
    for right in (ValueError("no code"), Rejected("shape_mismatch"), Coded(), TypeError("no")):
        passed = {o.vector.id for o in report_of(right).outcomes if o.status == "passed"}
        assert passed == refused
    wrong = report_of(Rejected("out_of_range"))
    assert wrong.counts["passed"] == 0
    outcome = next(o for o in wrong.failures if o.vector.id == "concat-shapes")
    assert outcome.message == "refused as out_of_range, expected shape_mismatch"


def test_every_refusal_of_the_reference_has_the_code_of_the_vector() -> None:
    for v in load_vectors():
        if v.error is not None and v.id != "network-refuses-on-the-way-1":
            kernels = GUARDED if v.file.endswith(("_refuses.json", "_more.json")) else KERNELS
            for functions in (REFERENCE, kernels):
                assert call(functions[v.operation], v).code == v.error, v.id


def test_every_code_is_asked_for() -> None:
    assert {v.error for v in load_vectors()} == {None, *ERROR_CODES}


def test_profiles_select() -> None:
    report = run(REFERENCE, operations=["requantize_shift"], profiles=["half_up"])
    assert {o.vector.arguments["rounding"] for o in report.outcomes} == {"half_up"}
    with pytest.raises(InvalidArgument, match="profiles"):
        run(REFERENCE, profiles=["half_upp"])
    with pytest.raises(InvalidArgument, match="operations"):
        run(REFERENCE, operations=["conv3d"])
    with pytest.raises(InvalidType, match="implementation"):
        run({"conv3d": len})


# --- values -----------------------------------------------------------------------------------


@given(st.integers())
def test_integers_come_back(value: int) -> None:
    text = json.dumps(encode(value, Field("int", "")))
    assert decode(json.loads(text), Field("int", "")) == value
    assert text.startswith('"') == (abs(value) > 2**53)


@given(
    numpy_strategies.arrays(
        st.sampled_from([np.float32, np.float64]),
        numpy_strategies.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3),
    )
)
def test_floats_come_back_to_the_bit(array: Any) -> None:
    field = Field("float_tensor", "")
    back = decode(json.loads(json.dumps(encode(array, field))), field)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    same = (back == array) | (np.isnan(back) & np.isnan(array))
    assert same.all()
    assert (np.signbit(back) == np.signbit(array))[~np.isnan(array)].all()


def floats(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (floats(0.0), floats(0.0), True),
        (floats(0.0), floats(-0.0), False),
        (floats(-0.0), floats(0.0), False),
        (floats(np.nan), floats(np.nan), True),
        (floats(np.nan), floats(1.0), False),
        (floats(np.inf), floats(np.inf), True),
        (floats(np.inf), floats(-np.inf), False),
        (floats(0.1), np.array([float(np.float32(0.1))]), True),
        (floats(0.1), np.array([0.1]), False),
        (floats(1.0), [1.0], True),
        (floats(1.0), [[1.0], [1.0, 2.0]], False),
        (floats(1.0), [1], False),
    ],
)
def test_floats_are_compared_to_the_bit(expected: Any, got: Any, same: bool) -> None:
    v = replace(vector("dequantize-cancels"), outputs={"x": expected}, intermediates={})
    assert (compare(v, {"x": got}) is None) == same


@given(
    numpy_strategies.arrays(np.float64, 3),
    numpy_strategies.arrays(np.float64, 3),
)
def test_floats_agree_when_their_digits_do(a: Any, b: Any) -> None:
    """The two are one where what is written in files is one."""
    v = replace(vector("dequantize-cancels"), outputs={"x": a}, intermediates={})
    field = OPERATIONS["dequantize"].outputs["x"]
    for got in (a, b):
        assert (compare(v, {"x": got}) is None) == (encode(a, field) == encode(got, field))


@pytest.mark.parametrize("got", [np.array([7, 7]), np.array(7), "7", 7.0, True, [7], None])
def test_a_number_is_compared_with_its_type(got: Any) -> None:
    v = vector("bit-widths-from-minus-96-to-30")
    assert compare(v, {**v.outputs, "span_bits": got}) is not None
    assert compare(v, {**v.outputs, "span_bits": np.int64(7)}) is None


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("int", 1.0),
        ("int", True),
        ("int", "0x10"),
        ("int", "28"),
        ("int", 2.0),
        ("int", 2**53 + 1),
        ("int", str(2**53)),
        ("int", f" {2**60}"),
        ("int", f"+{2**60}"),
        ("int", f"0{2**60}"),
        ("int", f"{2**60:_}"),
        ("ints", "12"),
        ("ints", {}),
        ("ints", [1, "2"]),
        ("int_tensor", {"dtype": "int", "shape": ["1"], "data": [1]}),
        ("int_tensor", {"dtype": "int", "shape": [1], "data": ["1"]}),
        ("int_tensor", {"dtype": "int", "shape": [1], "data": [1.0]}),
        ("int_tensor", {"dtype": "int", "shape": [0], "data": {}}),
        ("int_tensor", {"dtype": "int", "shape": [1], "data": [1], "order": "F"}),
        ("int_tensor", {"dtype": "int", "shape": [2], "data": [1]}),
        ("int_tensor", {"dtype": "int64", "shape": [1], "data": [1]}),
        ("int_tensor", [1]),
        ("float_tensor", {"dtype": "float32", "shape": [1], "data": ["0x1.0000001p0"]}),
        ("bool", 1),
        ("choice", "half_upp"),
        ("pairs", [[1, 2, 3]]),
    ],
)
def test_data_of_another_kind_is_refused(kind: Any, data: Any) -> None:
    with pytest.raises(FileFormatError, match="expected a"):
        decode(data, Field(kind, "", choices=("half_up",)))


def test_omega_is_unsound_for_signed_weights() -> None:
    """What the two bounds say of the same 8-bit accumulator, from the definitions."""
    assert vector("omega-published").outputs["fan_in"] == 28
    fan_in = vector("max-fan-in-signed-weights").outputs["fan_in"]
    assert fan_in == 21 == int(Fraction(128, 6))
