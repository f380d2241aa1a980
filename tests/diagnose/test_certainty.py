"""A diagnosis is certain only where nothing else of the catalogue would do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refqnn import IntFormat, Linear, Network, Node, Requantize, diagnose
from refqnn.diagnosis import CATALOGUE, Diagnosis

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


def _of_the_output(budget_s: float = 60.0) -> Diagnosis:
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
    assert finding.open == ("fc1", "act")
    assert "fc1, act" in "\n".join(finding.lines())
    assert not finding.certain
