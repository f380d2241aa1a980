"""The specification of refusals: every sentence is asked, and everybody refuses under its code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refqnn import exact
from refqnn.conformance import Rejected, load_vectors, vector, vectors_path
from refqnn.conformance.described import network_of
from refqnn.conformance.making.oracle import FUNCTIONS as ORACLE
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS
from refqnn.conformance.reference import FUNCTIONS as REFERENCE
from refqnn.conformance.reference import UNGUARDED
from refqnn.conformance.specification import coded, first_broken, guarded, preconditions

REFUSALS = [v for v in load_vectors() if v.error is not None]
ON_THE_WAY = {"network-refuses-on-the-way-1"}


def code_of(function: Any, **arguments: Any) -> str:
    """The code of a refusal."""
    with pytest.raises(Rejected) as refusal:
        function(**arguments)
    return refusal.value.code


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_sentence_is_broken_by_a_vector_and_none_before(operation: str) -> None:
    asked = [v for v in REFUSALS if v.operation == operation]
    found = [first_broken(operation, v.arguments) for v in asked]
    names = {rule.name for _, rule in filter(None, found)}
    names |= {"on-the-way"} if any(v.id in ON_THE_WAY for v in asked) else set()
    # No operands, and no sizes of an input, cannot be written: the schemas ask for some.
    assert {r.name for r in preconditions(operation)} - names <= {"operands", "input-shape"}
    for v, broken in zip(asked, found):
        assert (broken is None) == (v.id in ON_THE_WAY)
        assert broken is None or broken[0] == v.error, v.id
    assert len({r.name for r in preconditions(operation)}) == len(preconditions(operation))


def test_what_no_vector_can_hold_is_refused_too() -> None:
    network = vector("network-residual-skip").arguments
    for shape in ([], [0], [2, -1]):
        arguments = {**network, "network": {**network["network"], "input_shape": shape}}
        assert code_of(REFERENCE["network"], **arguments) == "invalid_parameter"
        assert code_of(UNGUARDED["network"], **arguments) == "invalid_parameter"
    for functions in (REFERENCE, UNGUARDED):
        assert code_of(functions["concat"], operands=[]) == "shape_mismatch"


def test_right_questions_break_no_sentence() -> None:
    for v in load_vectors():
        assert v.error is not None or first_broken(v.operation, v.arguments) is None, v.id


@pytest.mark.parametrize("name", ["reference", "refqnn", "oracle"])
def test_everybody_refuses_under_the_same_code(name: str) -> None:
    """refqnn by itself too: its checks know nothing of the sentences."""
    functions = {"reference": REFERENCE, "refqnn": UNGUARDED, "oracle": ORACLE}[name]
    for v in REFUSALS:
        assert code_of(functions[v.operation], **v.arguments) == v.error, v.id


def test_the_exact_route_refuses_codes_of_networks_under_the_same_code() -> None:
    def traced(codes: Any, network: Any) -> Any:
        return exact.trace(network_of(network), codes.tolist())

    asked = [v for v in REFUSALS if v.operation == "network"]
    assert len(asked) > 15
    for v in asked:
        assert code_of(coded(traced), **v.arguments) == v.error, v.id
    network = vector("network-residual-skip").arguments["network"]
    empty = np.zeros((0, 2), dtype=int)
    assert code_of(coded(traced), codes=empty, network=network) == "shape_mismatch"
    assert code_of(UNGUARDED["network"], codes=empty, network=network) == "shape_mismatch"


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ("network-refuses-output-2", "invalid_parameter"),
        ("network-refuses-zero-points-1", "out_of_range"),
        ("network-refuses-on-the-way-1", "out_of_range"),
        ("requantize-shift-refuses-acc-1", "out_of_range"),
        ("linear-refuses-bias-count-1", "shape_mismatch"),
        ("quantize-refuses-scale-channels-1", "shape_mismatch"),
        ("requantize-scale-refuses-clip-1", "invalid_parameter"),
        ("rescale-refuses-clip-2", "invalid_parameter"),
        ("conv2d-refuses-groups-2", "invalid_parameter"),
        ("sum-pool2d-refuses-padding-below-kernel-1", "invalid_parameter"),
        ("max-pool2d-refuses-padding-below-kernel-2", "invalid_parameter"),
        ("conv1d-refuses-window-1", "shape_mismatch"),
        ("global-sum-pool-refuses-x-axes-1", "shape_mismatch"),
        ("predict-refuses-x-nan-1", "not_a_number"),
        ("flatten-refuses-samples-1", "shape_mismatch"),
        ("accumulator-range-refuses-x-lo-1", "invalid_parameter"),
    ],
)
def test_what_no_vector_asked_before(identity: str, code: str) -> None:
    assert vector(identity).error == code


@pytest.mark.parametrize("operation", ["requantize_multiplier", "rescale"])
def test_a_first_shift_without_first_rounding_is_not_read(operation: str) -> None:
    usual = vector(f"{operation.replace('_', '-')}-ties-half-up").arguments
    far = np.array(99) if operation == "rescale" else 99
    answers = [REFERENCE[operation](**{**usual, "first_shift": s})["codes"] for s in (far, -far)]
    asked = [v for v in load_vectors() if v.operation == operation and v.error is None]
    unread = [v for v in asked if v.arguments["first_rounding"] is None]
    assert any(np.any(v.arguments["first_shift"] > v.arguments["shift"]) for v in unread)
    for codes in answers:
        assert np.array_equal(codes, REFERENCE[operation](**usual)["codes"])


def test_the_axes_of_a_first_shift_count_without_first_rounding() -> None:
    usual = vector("rescale-ties-half-up").arguments
    assert usual["first_rounding"] is None
    usual = {**usual, "acc": np.zeros((1, 2), int), "multiplier": np.array([1, 2])}
    for wrong, code in (
        (np.array([1, 2, 3]), "shape_mismatch"),
        (np.zeros((1, 2), int), "shape_mismatch"),
        (np.array([], int), "invalid_parameter"),
    ):
        assert code_of(REFERENCE["rescale"], **{**usual, "first_shift": wrong}) == code


def test_the_first_sentence_decides() -> None:
    usual = vector("quantize-ties-half-even").arguments
    nothing = {**usual, "bits": 33, "scale": np.float32(0), "x": np.array([np.nan])}
    assert code_of(REFERENCE["quantize"], **nothing) == "invalid_parameter"
    nothing["bits"] = 4
    assert code_of(REFERENCE["quantize"], **nothing) == "invalid_parameter"
    nothing["scale"] = np.float32(1)
    assert code_of(REFERENCE["quantize"], **nothing) == "not_a_number"


def test_the_text_says_each_sentence_with_its_code() -> None:
    text = (vectors_path() / "SPECIFICATION.md").read_text()
    for operation in OPERATIONS:
        _, _, part = text.partition(f"\n## {operation}\n\n")
        lines = part.partition("\n\n## ")[0].strip().splitlines()
        assert len(lines) == len(preconditions(operation)) > 0
        for number, (line, rule) in enumerate(zip(lines, preconditions(operation)), start=1):
            assert line.startswith(f"{number}. {rule.sentence}: ")
            assert not rule.code or line.endswith(f"`{rule.code}`")
            assert not rule.code or rule.code in ERROR_CODES


def test_a_function_behind_the_sentences() -> None:
    def omega(n_max: int, n_weights: int, n_inputs: int) -> int:
        return (2**n_max - 1) // ((2**n_weights - 1) * (2**n_inputs - 1))

    behind = guarded("omega", omega)
    assert behind(n_max=8, n_weights=2, n_inputs=2) == 28
    assert code_of(behind, n_max=8, n_weights=2, n_inputs=0) == "invalid_parameter"
    with pytest.raises(TypeError):
        behind(n_max=8)
