"""What the samples do not tell from a wrong weight, a stuck output or another machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from refqnn import Conv2d, IntFormat, Linear, Network, Node, Requantize, diagnose
from refqnn.diagnosis import CATALOGUE, Finding
from refqnn.diagnosis.deviation import computed

Ints = NDArray[np.int64]
U4, U2 = IntFormat(4, signed=False), IntFormat(2, signed=False)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


W, B = rng().integers(-7, 8, (3, 5)), rng().integers(-20, 21, 3)
FC = Node("fc", Linear(W, B))
NET = Network([FC, Node("q", Requantize.from_shift(3, U4))], input_shape=(5,), input_format=U4)
X = rng().integers(0, 16, (40, 5))


def the_finding(network: Network, name: str, values: Ints, codes: Ints) -> Finding:
    (found,) = diagnose(network, {name: values}, codes, budget_s=0).findings
    return found


@pytest.mark.parametrize("hidden", [False, True])
def test_a_weight_on_a_constant_input_is_like_a_bias(hidden: bool) -> None:
    codes, weight = X.copy(), W.copy()
    codes[:, 2], weight[1, 2] = 9, W[1, 2] + 4
    values = codes @ weight.T + B
    name = "q" if hidden else "fc"
    found = the_finding(NET, name, NET["q"].op.forward(values) if hidden else values, codes)
    assert not found.certain
    assert "inputs 2 are constant in these samples" in "\n".join(found.lines())
    assert the_finding(NET, "fc", X @ W.T, X).certain  # where all vary, no bias is no bias


def test_inputs_that_follow_from_others() -> None:
    """The third is the sum of the first two: other weights of them do what its own do."""
    codes = X % 8
    codes[:, 2] = codes[:, 0] + codes[:, 1]
    values = codes @ np.where(np.arange(5) == 0, 0, W).T + B
    assert not the_finding(NET, "fc", values, codes).certain
    wraps = (codes @ W.T + B + 32) % 64 - 32  # no weights wrap
    assert the_finding(NET, "fc", wraps, codes).certain


@pytest.mark.parametrize("dropped", [2, 3])
def test_how_many_inputs_are_dropped_behind_a_zero(dropped: int) -> None:
    codes, weight = rng().integers(0, 16, (60, 9)), rng().integers(-9, 10, (3, 9))
    codes[:, -dropped:-1] = 0
    network = Network([Node("fc", Linear(weight))], input_shape=(9,), input_format=U4)
    found = the_finding(network, "fc", codes[:, :-dropped] @ weight[:, :-dropped].T, codes)
    assert "last_dropped" in found.names
    assert not found.certain


def test_an_input_that_is_never_there_is_no_bias() -> None:
    codes = X.copy()
    codes[:, 3] = 0
    assert the_finding(NET, "fc", codes @ W.T, codes).certain


def test_a_kernel_flipped_for_one_channel_of_which_the_other_is_constant() -> None:
    weight = rng().integers(-7, 8, (3, 2, 3, 3))
    other = weight.copy()
    other[:, 0] = weight[:, 0, ::-1, ::-1]
    codes = rng().integers(0, 16, (6, 2, 5, 4))
    codes[:, 1] = 7
    network = Network([Node("c", Conv2d(weight))], input_shape=(2, 5, 4), input_format=U4)
    assert not the_finding(network, "c", Conv2d(other).forward(codes), codes).certain


@pytest.mark.parametrize("stuck", [0, 15])
@pytest.mark.parametrize("name", ["fc", "q"])
@pytest.mark.parametrize("channels", [slice(None), slice(1, 2)])
def test_a_stuck_output_supports_no_constant(stuck: int, name: str, channels: slice) -> None:
    trace = NET.trace(X)
    values = trace[name].copy()
    values[:, channels] = stuck
    dump = {"fc": trace["fc"], name: values}
    for found in diagnose(NET, dump, X, budget_s=0).findings:
        assert not found.certain


def saturated(v: int) -> int:
    return min(max(v, -128), 127)


def in_order(terms: list[int]) -> int:
    total = 0
    for term in terms:
        total = saturated(total + term)
    return total


def tree(terms: list[int]) -> int:
    while len(terms) > 1:
        terms = [saturated(sum(terms[i : i + 2])) for i in range(0, len(terms), 2)]
    return terms[0]


def grouped(terms: list[int]) -> int:
    return in_order([in_order(terms[i : i + 3]) for i in range(0, len(terms), 3)])


MACHINES: dict[str, Callable[[list[int]], int]] = {
    "tree": tree,
    "permuted": lambda t: in_order([t[1], t[3], t[0], t[2], *t[4:]]),
    "lanes": lambda t: saturated(in_order(t[::2]) + in_order(t[1::2])),
    "groups in a narrow register": grouped,
    "symmetric": lambda t: max(-127, min(127, sum(t))),
}


def run(kind: str, weight: Ints, codes: Ints) -> Ints:
    return np.array([[MACHINES[kind]((row * w).tolist()) for w in weight] for row in codes])


@pytest.mark.parametrize("kind", MACHINES)
def test_a_machine_is_certain_only_where_it_does_the_same(kind: str) -> None:
    """Machines of no catalogue: what is certain of them computes what they do on fresh codes."""
    for seed in range(5):
        numbers = np.random.default_rng(seed)
        weight = numbers.integers(-7, 8, (2, 6))
        network = Network([Node("fc", Linear(weight))], input_shape=(6,), input_format=U4)
        codes, fresh = numbers.integers(0, 16, (20, 6)), numbers.integers(0, 16, (500, 6))
        values = run(kind, weight, codes)
        if not np.array_equal(values, network.forward(codes)):
            found = the_finding(network, "fc", values, codes)
            same = [
                np.array_equal(computed(network["fc"].op, (fresh,), [d]), run(kind, weight, fresh))
                for d in CATALOGUE
                if {d.name} == found.names and found.certain and d.applies_to(network["fc"].op)
            ]
            assert all(same)
            assert len(same) == found.certain


def test_a_rounding_at_a_node_that_is_not_given() -> None:
    numbers = np.random.default_rng(5)
    nodes = [
        Node("fc1", Linear(numbers.integers(-3, 4, (3, 2)))),
        Node("act1", Requantize.from_shift(2, U2, "half_even")),
        Node("fc2", Linear(numbers.integers(1, 4, (2, 3)))),
    ]
    network = Network(nodes, input_shape=(2,), input_format=U4)
    codes = np.array([[i, j] for i in range(16) for j in range(16)])
    trace = network.trace(codes)
    values = nodes[2].op.forward(np.clip((trace["fc1"] + 2) >> 2, 0, 3))
    found = the_finding(network, "fc2", values, codes)
    assert ("act1", "rounding_half_up") in {(e[0].node, e[0].name) for e in found.explanations}
    assert not found.certain
    nothing = the_finding(network, "fc2", values + codes[:, :1] ** 2 % 3, codes)
    assert not nothing.explanations
    assert "the dump lacks fc1, act1" in "\n".join(nothing.lines()).replace(
        "act1, fc1", "fc1, act1"
    )
