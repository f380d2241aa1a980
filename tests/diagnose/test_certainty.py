"""A diagnosis is certain only where nothing else of the catalogue would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refqnn import IntFormat, Linear, Network, Node, Requantize, Rescale, Rounding, diagnose
from refqnn.arithmetic import IntArray
from refqnn.diagnosis import CATALOGUE, Diagnosis, Finding
from refqnn.diagnosis.catalogue import with_roundings
from refqnn.errors import InvalidType

U4 = IntFormat(4, signed=False)
FEW = [d for d in CATALOGUE if d.name.startswith(("bias", "relu", "weight_neg"))]
rng = np.random.default_rng(3)
CODES = rng.integers(0, 16, (40, 5))
LINEAR1 = Linear(rng.integers(-7, 8, (4, 5)), np.array([64, -64, 192, -128]))
FC1 = Node("fc1", LINEAR1)
ACT = Node("act", Requantize.from_shift(4, U4, "half_up"))
BIAS2 = rng.integers(1, 10, 3)
LINEAR2 = Linear(rng.integers(-7, 8, (3, 4)), BIAS2)
FC2 = Node("fc2", LINEAR2)
NETWORK = Network([FC1, ACT, FC2], input_shape=(5,), input_format=U4)


def _of_the_output(budget_s: float | None = None) -> Diagnosis:
    """No bias in one layer, subtracted in the other, the output alone given."""
    nodes = [
        Node("fc1", Linear(LINEAR1.weight)),
        ACT,
        Node("fc2", Linear(LINEAR2.weight, -BIAS2)),
    ]
    other = Network(nodes, input_shape=(5,), input_format=U4)
    dump = {"fc2": other.forward(CODES)}
    return diagnose(NETWORK, dump, CODES, catalogue=FEW, budget_s=budget_s)


def test_pairs_name_all_that_do_the_same() -> None:
    """Multiples of 64 lose as much in 2 to 6 bits as without any bias."""
    (finding,) = _of_the_output().findings
    names = {tuple(a.name for a in e) for e in finding.explanations}
    assert {(f"bias_int{n}", "bias_subtracted") for n in range(2, 7)} <= names
    assert ("bias_dropped", "bias_subtracted") in names
    assert not finding.certain
    assert finding.exhausted


def test_no_certainty_where_time_ran_out() -> None:
    (finding,) = _of_the_output(0.0).findings
    assert not finding.certain
    assert not finding.exhausted
    pair = _of_the_output().findings[0].explanations[:1]
    cut = replace(finding, explanations=pair)  # found before the time ran out
    assert not cut.certain
    assert "the time ran out" in "\n".join(cut.lines())


@pytest.mark.parametrize("times", [1, 12, 40])
def test_repeated_samples_are_no_support(times: int) -> None:
    """Whatever one sample gives, a constant for each output explains it."""
    codes = np.repeat(CODES[:1], times, axis=0)
    network = Network([FC1], input_shape=(5,), input_format=U4)
    theirs = (network.forward(codes) * 3 + 5) // 7
    (finding,) = diagnose(network, {"fc1": theirs}, codes, budget_s=1).findings
    assert not finding.certain
    assert finding.support == min(4, finding.wrong)


def test_a_pair_needs_more_support_than_one() -> None:
    """Outputs 1 and 2 are equal on these four: all moved on by one looks like 0 and 1 exchanged."""
    codes = np.array([[0, 7, 0, k] for k in (7, 6, 5, 0)])
    fc = Linear([[5, -2, 2, 6], [-4, 7, 5, 5], [4, 6, -6, 5]], [-2, 0, 7])
    network = Network([Node("fc", fc)], input_shape=(4,), input_format=U4)
    theirs = network.forward(codes)[:, [1, 0, 2]]
    few = [d for d in CATALOGUE if d.name in ("bias_late", "weight_rotated", "bias_dropped")]
    (finding,) = diagnose(network, {"fc": theirs}, codes, catalogue=few).findings
    assert [{a.name for a in e} for e in finding.explanations] == [{"bias_late", "weight_rotated"}]
    assert (finding.support, finding.certain) == (8, False)


@pytest.mark.parametrize("seed", range(20))
def test_a_scale_is_not_certain_where_other_thresholds_would_do(seed: int) -> None:
    """A device that keeps even codes alone: monotone, and no scale of anything."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (rng.integers(3, 12), 5))
    act = Node("act", Requantize.from_shift(3, IntFormat(2, signed=False), "half_up"))
    network = Network([FC1, act], input_shape=(5,), input_format=U4)
    trace = network.trace(codes)
    theirs = {"fc1": trace["fc1"], "act": trace["act"] // 2 * 2}
    for finding in diagnose(network, theirs, codes, budget_s=1).findings:
        assert not finding.certain or finding.names != {"affine_changed"}


def test_constants_behind_values_that_are_not_given() -> None:
    """Where a hidden value is always saturated, a wrong one looks like another bias behind it."""
    hidden = Node("fc1", Linear(0 * LINEAR1.weight + 1, np.array([0, 64, 99, -500])))
    network = Network([hidden, ACT, FC2], input_shape=(5,), input_format=U4)
    wrong = ACT.op.forward(hidden.op.forward(CODES))
    wrong[:, 3] = 15
    theirs = FC2.op.forward(wrong)
    fits = [d for d in CATALOGUE if d.name == "bias_changed"]
    (finding,) = diagnose(network, {"fc2": theirs}, CODES, catalogue=fits).findings
    assert finding.names == {"bias_changed"}
    assert finding.open == ("fc1",)
    assert "the dump lacks fc1" in "\n".join(finding.lines())
    assert not finding.certain


def _of(op: Any, acc: IntArray, theirs: IntArray) -> Finding:
    network = Network([Node("act", op)], input_shape=(3,), input_format=IntFormat(9, signed=True))
    return diagnose(network, {"act": theirs}, acc, catalogue=MOVING, budget_s=0).findings[0]


MOVING = [
    deviation
    for deviation in with_roundings(Rounding.HALF_UP)
    if deviation.name.startswith(("rounding", "thresh", "code_off", "scale", "affine", "strict"))
]
QUARTER = Requantize.from_shift(2, U4, "half_up")
ABOUT_A_ROUNDING: dict[str, Callable[[IntArray, int], IntArray]] = {
    "threshold_offset": lambda acc, k: QUARTER.forward(acc + k),
    "code_offset": lambda acc, k: np.clip(QUARTER.forward(acc) + k, 0, 15),
    "scale_changed": lambda acc, k: QUARTER.forward(acc * (32 + k) // 32),
}


@pytest.mark.parametrize("k", [-4, -3, -1, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", ABOUT_A_ROUNDING)
def test_what_is_done_about_a_rounding_is_among_what_fits(name: str, k: int) -> None:
    """A constant in front of it or behind it, a scale: another name alone is never certain."""
    acc = np.random.default_rng(k + 9).integers(0, 80, (24, 3))
    finding = _of(QUARTER, acc, ABOUT_A_ROUNDING[name](acc, k))
    assert finding.support is not None
    assert finding.support < 8 or name in finding.names
    assert not finding.certain or finding.names == {name}


@pytest.mark.parametrize("k", [-2, -1, 1, 2])
def test_a_code_moved_among_few(k: int) -> None:
    """Of two bits no code is inside the format before and after."""
    op = Requantize.from_shift(3, IntFormat(2, signed=False), "half_up")
    acc = np.random.default_rng(1).integers(-20, 40, (30, 3))
    assert "code_offset" in _of(op, acc, np.clip(op.forward(acc) + k, 0, 3)).names


def test_a_constant_of_each_channel_is_no_rounding() -> None:
    """What truncates looks like a bias that is smaller, unless every threshold is seen."""
    sparse = np.random.default_rng(2).integers(0, 60, (30, 3))
    floor = _of(QUARTER, sparse, np.clip(sparse >> 2, 0, 15))
    assert {"rounding_floor", "threshold_offset"} <= floor.names
    every = np.arange(-40, 80)[:, None] * np.ones(3, dtype=int)
    even = np.clip(np.rint(every / 4).astype(int), 0, 15)
    assert not {"threshold_offset", "scale_changed"} & _of(QUARTER, every, even).names


def test_thresholds_that_no_accumulator_reaches() -> None:
    """Theirs are reached all the same: they come from where nothing is, by no distance."""
    op = Requantize([[5, 10, 2**63 - 1]], IntFormat(2, signed=False))
    acc = np.arange(-20, 40)[:, None] * np.ones(3, dtype=int)
    finding = _of(op, acc, op.forward(acc) + (acc >= 20))
    assert not finding.certain
    assert "to an end, or from one" in str(finding.explanations)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("rounding_floor", {"rounding": "floor"}),
        ("threshold_offset", {"offset": [1, -2, 3]}),
        ("code_offset", {"zero_point": 5}),
        ("scale_changed", {"multiplier": 201}),
    ],
)
def test_a_rescale_is_held_against_the_same(name: str, other: dict[str, Any]) -> None:
    op = Rescale(192, 8, IntFormat(16, signed=True), "half_up", zero_point=3)
    acc = np.random.default_rng(5).integers(-250, 250, (60, 3))
    finding = _of(op, acc, replace(op, **other).forward(acc))
    assert name in finding.names
    assert not finding.certain or finding.names == {name}


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": 5},
        {"catalogue": 5},
        {"catalogue": ["relu"]},
        {"dump": {"fc2": [[1, 1], [1]]}},
        {"inputs": [[1, 1], [1]]},
    ],
)
def test_arguments_of_other_types(wrong: dict[str, Any]) -> None:
    given = {"dump": {"fc2": np.zeros((40, 3), dtype=int)}, "inputs": CODES}
    arguments: dict[str, Any] = {**given, **wrong}
    with pytest.raises(InvalidType):
        diagnose(NETWORK, **arguments)
