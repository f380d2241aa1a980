"""The reference on questions that no vector asks: it refuses with a code, or it is right.

Valid questions are changed one argument at a time.  Whatever the reference answers then, the second
route answers too; a crash of the second route is a question that makes no sense and was accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refqnn import Network, Node
from refqnn.conformance import Rejected, load_vectors, vector
from refqnn.conformance.described import network_of, node_of
from refqnn.conformance.encoding import encode, encode_fields
from refqnn.conformance.making.networks import describe
from refqnn.conformance.making.oracle import FUNCTIONS as ORACLE
from refqnn.conformance.making.writing import _nested
from refqnn.conformance.operations import OPERATIONS
from refqnn.conformance.reference import FUNCTIONS as REFERENCE
from refqnn.conformance.reference import UNGUARDED
from refqnn.errors import InvalidArgument, NotCovered
from refqnn.formats import IntFormat
from refqnn.ops import Op

WIDE = 2**62


def reshaped(x: Any) -> Iterator[Any]:
    """x in other shapes: no samples, one value, an axis shorter, longer, gone, or more."""
    yield x[:0] if x.ndim else np.zeros(0, x.dtype)
    yield np.zeros((0,) * max(x.ndim, 1), x.dtype)
    yield x.reshape(-1)[:1]
    yield x.reshape(-1)[:1].reshape(())
    for axis in range(x.ndim):
        yield np.take(x, range(x.shape[axis] - 1), axis=axis)
        yield np.concatenate([x, x], axis=axis)
        yield np.take(x, 0, axis=axis)
        yield np.expand_dims(x, axis)


def widened(x: Any) -> Iterator[Any]:
    """Integers near the ends of int64 and beyond."""
    if x.dtype.kind in "iO":
        for step in (WIDE, -WIDE, 2 * WIDE - 1, 2**70):
            yield np.array([int(v) + step for v in x.flat], dtype=object).reshape(x.shape)
            yield np.array([int(v) * step for v in x.flat], dtype=object).reshape(x.shape)


def in_int64(x: Any) -> Any:
    """As numpy would hold it."""
    fits = x.dtype == object and all(-(2**63) <= v < 2**63 for v in x.flat)
    return x.astype(np.int64) if fits else x


def changed_values(value: Any) -> Iterator[Any]:
    if isinstance(value, np.ndarray):
        yield from (in_int64(np.asarray(v)) for v in (*reshaped(value), *widened(value)))
    elif isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        yield from ([], value[:1], value * 2)
        for i, operand in enumerate(value):
            yield from ([*value[:i], v, *value[i + 1 :]] for v in changed_values(operand))
    elif type(value) is int:
        yield from (0, -1, value + 1, value - 1, 2**31, WIDE, -WIDE, 2**63, 2**70)
    elif isinstance(value, tuple):
        yield from ((), value[:1], value * 2, (0,) * len(value), (-1,) * len(value))
    elif isinstance(value, dict) and "nodes" in value:
        yield from changed_networks(value)


def changed_networks(network: Any) -> Iterator[Any]:
    for i, node in enumerate(network["nodes"]):
        for parameters in changed(node["parameters"]):
            nodes = [*network["nodes"]]
            nodes[i] = {**node, "parameters": parameters}
            yield {**network, "nodes": nodes}
        for operation in ("add", "round_ratio", "fly"):
            nodes = [*network["nodes"]]
            nodes[i] = {**node, "operation": operation}
            yield {**network, "nodes": nodes}
    for shape in ([], [0], [1], [*network["input_shape"], 1]):
        yield {**network, "input_shape": shape}


def changed(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in arguments.items():
        yield from ({**arguments, name: v} for v in changed_values(value))


def questions(operation: str) -> Iterator[dict[str, Any]]:
    valid = [v for v in load_vectors() if v.operation == operation and v.error is None]
    for v in valid[:: max(1, len(valid) // 4)][: 2 if operation in ("network", "predict") else 6]:
        yield from changed(v.arguments)


def can_be_written(operation: str, arguments: dict[str, Any]) -> bool:
    """Python takes one number for a pair of them; no vector has that."""
    try:
        encode_fields(arguments, OPERATIONS[operation].arguments)
    except (TypeError, KeyError):
        return False
    return True


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_refuses_with_a_code_or_is_right(operation: str) -> None:
    answered = refused = 0
    for arguments in questions(operation):
        try:
            results = REFERENCE[operation](**arguments)
        except (Rejected, NotCovered):
            refused += 1
            if can_be_written(operation, arguments):
                with pytest.raises((Rejected, NotCovered)):  # by itself too
                    UNGUARDED[operation](**arguments)
            continue
        answered += 1
        if all(np.size(r) for r in results.values()):  # lists of lists know no shape of nothing
            expected = ORACLE[operation](**arguments)
            for name in OPERATIONS[operation].outputs:
                same = np.asarray(results[name]) == np.asarray(_nested(expected[name]))
                assert np.shape(results[name]) == np.shape(_nested(expected[name]))
                assert np.all(same), (name, arguments)
    assert answered > 0
    assert refused > 0 or operation in ("binarize",)


# --- what was once wrong ----------------------------------------------------------------------


def linear(x: Any, weight: Any, bias: Any = None, x_zero_point: int = 0, zeros: Any = 0) -> Any:
    parameters = {"bias": bias, "x_zero_point": x_zero_point, "weight_zero_point": np.array(zeros)}
    return REFERENCE["linear"](x=np.array(x), weight=np.array(weight), **parameters)["acc"]


@pytest.mark.parametrize("zero_point", [2**62, -(2**62), 2**63 - 1, 2**64])
def test_zero_points_do_not_wrap(zero_point: int) -> None:
    acc = linear([[1, 2]], [[8, 8], [8, 8]], x_zero_point=zero_point)
    assert acc.tolist() == [[8 * (3 - 2 * zero_point)] * 2]
    acc = linear([[1, 2]], [[8, 8], [8, 7]], x_zero_point=5, zeros=[zero_point, 3])
    assert acc.tolist() == [[-(8 - zero_point) * 7, -5 * 4 - 4 * 3]]


def test_one_zero_point_far_away_is_exact() -> None:
    acc = linear([[1, 2]], [[8, 8], [8, 8]], x_zero_point=2**62)
    assert acc.tolist() == [[-73786976294838206440] * 2]


@pytest.mark.parametrize("zero_point", [-WIDE, 2 - WIDE, WIDE + 1])
def test_far_zero_points_of_thresholds(zero_point: int) -> None:
    question = vector("requantize-shift-ties-half-up").arguments
    near = np.array([[-zero_point - 1], [-zero_point], [-zero_point + 1]])
    question = {**question, "shift": 0, "zero_point": zero_point, "acc": near}
    codes = REFERENCE["requantize_shift"](**question)["codes"]
    assert codes.tolist() == ORACLE["requantize_shift"](**question)["codes"] == [[-1], [0], [1]]


ONE_ROW = {"thresholds": np.array([[1, 2, 3]]), "bits": 2, "signed": False, "narrow": False}


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("linear", {"bias": np.array([5])}),
        ("linear", {"weight_zero_point": np.array([1, 2, 3])}),
        ("linear", {"x": np.zeros((0, 2), dtype=int)}),
        ("add", {"operands": [np.ones((1, 2), int), np.ones((3, 2), int)], "multipliers": None}),
        ("concat", {"operands": [np.ones((1, 2), int), np.ones((3, 2), int)]}),
        ("requantize_thresholds", {**ONE_ROW, "acc": np.array([4, 5])}),
        ("requantize_thresholds", {**ONE_ROW, "acc": np.array(4)}),
        ("flatten", {"x": np.array(4)}),
        ("global_sum_pool", {"x": np.zeros((0, 1, 2), dtype=int)}),
    ],
)
def test_shapes_that_do_not_fit_have_their_code(operation: str, arguments: Any) -> None:
    usual = {
        "x": np.array([[1, 2]]),
        "weight": np.array([[1, 2], [3, 4]]),
        "bias": None,
        "x_zero_point": 0,
        "weight_zero_point": np.array(0),
    }
    with pytest.raises(Rejected) as refusal:
        REFERENCE[operation](**(usual if operation == "linear" else {}) | arguments)
    assert refusal.value.code == "shape_mismatch"


# --- kinds of nodes ---------------------------------------------------------------------------


class Doubled(Op):
    kind = "Doubled"

    def out_shape(self, *shapes: Any) -> Any:
        return shapes[0]

    def out_range(self, *ranges: Any) -> Any:
        return ranges[0]

    def forward(self, *x: Any, plan: Any = None) -> Any:
        return 2 * x[0]


def test_a_kind_that_is_no_operation_is_not_covered() -> None:
    network = Network(
        [Node("twice", Doubled())], input_shape=(2,), input_format=IntFormat(3, signed=False)
    )
    with pytest.raises(NotCovered, match="Doubled"):
        describe(network)
    with pytest.raises(NotCovered, match="round_ratio"):
        node_of("round_ratio", {})
    with pytest.raises(NotCovered, match="fly"):
        node_of("fly", {})
    with pytest.raises(InvalidArgument, match="parameters of flatten"):
        node_of("flatten", {"weight": np.array([[1]])})


def test_a_network_comes_back_from_its_description() -> None:
    field = OPERATIONS["network"].parameters["network"]
    for v in load_vectors():
        if v.operation == "network" and v.error is None:
            again = describe(network_of(v.arguments["network"]))
            assert encode(again, field) == encode(v.arguments["network"], field)


def test_every_node_of_the_suite_has_a_kind_that_makes_it() -> None:
    nodes = {name for name, operation in OPERATIONS.items() if operation.node}
    valid = (v for v in load_vectors() if v.error is None)
    asked = {v.operation: v.arguments for v in valid if v.operation in nodes}
    assert set(asked) == nodes
    for name, arguments in asked.items():
        parameters = {n: arguments[n] for n in OPERATIONS[name].parameters}
        if name == "linear":
            parameters |= {"x_zero_point": 0, "weight_zero_point": np.array(0)}
        assert node_of(name, parameters).kind == OPERATIONS[name].node
