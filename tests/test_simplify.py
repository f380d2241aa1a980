"""simplify: fewer neurons, the same outputs on every input of the domain."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "accumulator"))

from accumulator_networks import all_inputs, networks

from refqnn import Domain, IntFormat, Linear, Network, Node, Requantize, certify
from refqnn.errors import CertificateError
from refqnn.ops import Add, Concat, Conv2d, Flatten
from refqnn.requantize import ALWAYS, NEVER
from refqnn.simplify import simplify

UNSIGNED = IntFormat(2, signed=False)


def neurons(network):
    return {name: int(np.prod(shape)) for name, shape in network.shapes.items()}


@given(networks)
def test_same_outputs_on_every_input(network):
    rows = all_inputs(network)
    for method in ("auto", "interval"):
        small = simplify(network, certify(network, method=method))
        assert (small.forward(rows) == network.forward(rows)).all()
        assert small.output == network.output
        assert sum(neurons(small).values()) <= sum(neurons(network).values())


@given(networks, st.data())
def test_same_outputs_on_a_smaller_domain(network, data):
    rows = all_inputs(network)
    a, b = (rows[data.draw(st.integers(0, len(rows) - 1))] for _ in range(2))
    domain = Domain.box(network, np.minimum(a, b), np.maximum(a, b))
    small = simplify(network, certify(network, domain))
    inside = rows[domain.contains(rows)]
    assert (small.forward(inside) == network.forward(inside)).all()


@given(st.integers(0, 2**32 - 1))
def test_everything_removable_is_removed(seed):
    """Copies, constants and unread neurons planted between real ones."""
    rng = np.random.default_rng(seed)
    real = np.array([[1, 2, 0], [0, 1, -1], [2, 0, 1]])
    weight = np.concatenate([real, real[:2], np.zeros((1, 3), dtype=int), [[1, 1, 1]]])
    order = rng.permutation(len(weight))
    out = rng.integers(1, 4, (2, len(weight)))  # positive: copies do not cancel
    out[:, 6] = 0  # the last neuron is read by nobody
    thresholds = np.array([[1, 2, 3], [0, 1, 2], [1, 4, 6]])
    rows = np.concatenate([thresholds, thresholds[:2], [[-5, -5, 9]], [[1, 2, 3]]])
    nodes = [
        Node("fc1", Linear(weight[order])),
        Node("act1", Requantize(rows[order], UNSIGNED)),
        Node("fc2", Linear(out[:, order], [1, 2])),
    ]
    network = Network(nodes, input_shape=(3,), input_format=UNSIGNED)
    small = simplify(network, certify(network))
    assert small.shapes["fc1"] == small.shapes["act1"] == (3,)
    X = all_inputs(network)
    assert (small.forward(X) == network.forward(X)).all()
    again = simplify(small, certify(small))
    assert neurons(again) == neurons(small)


def test_thresholds_out_of_reach():
    nodes = [
        Node("fc1", Linear([[1, 1], [1, -1]])),
        Node("act1", Requantize([[0, 3, 7], [-3, 1, 4]], UNSIGNED)),
        Node("fc2", Linear([[1, 1]])),
    ]
    network = Network(nodes, input_shape=(2,), input_format=UNSIGNED)
    small = simplify(network, certify(network))
    assert small["act1"].op.thresholds.tolist() == [[ALWAYS, 3, NEVER], [ALWAYS, 1, NEVER]]


@pytest.mark.parametrize("each", [-(2**62), -(2**62) - 1, 2**62 - 1, 2**62, -5])
def test_copies_are_added_up_to_the_ends_of_int64(each):
    nodes = [
        Node("fc1", Linear([[1], [1]])),
        Node("act1", Requantize.from_shift(0, UNSIGNED)),
        Node("fc2", Linear([[each, each]])),
    ]
    network = Network(nodes, input_shape=(1,), input_format=UNSIGNED)
    small = simplify(network, certify(network))
    fits = -(2**63) <= 2 * each < 2**63
    assert small.shapes["fc1"] == ((1,) if fits else (2,))
    assert small.forward([[3]]).tolist() == network.forward([[3]]).tolist() == [[6 * each]]


def test_constant_inputs_of_a_domain_move_into_the_bias():
    network = Network([Node("fc", Linear([[2, 5]], [1]))], input_shape=(2,), input_format=UNSIGNED)
    domain = Domain.per_feature(network, [(0, 3), (2, 2)])
    small = simplify(network, certify(network, domain))
    assert small["fc"].op.weight.tolist() == [[2, 0]]
    assert small["fc"].op.bias.tolist() == [11]


def test_a_constant_channel_behind_padding_stays_where_the_border_differs():
    """act1 is 2 everywhere; the padded border is 0 or 2."""
    for pad_code, channels in ((0, 1), (2, 1)):
        nodes = [
            Node("c1", Conv2d(np.zeros((1, 1, 1, 1), dtype=int), [5])),
            Node("act1", Requantize([[1, 2, 9]], UNSIGNED)),
            Node("c2", Conv2d(np.ones((1, 1, 3, 3), dtype=int), padding=1, pad_code=pad_code)),
            Node("flat", Flatten()),
            Node("fc", Linear(np.arange(9)[None])),
        ]
        network = Network(nodes, input_shape=(1, 3, 3), input_format=IntFormat(1, False))
        small = simplify(network, certify(network))
        X = all_inputs(network)
        assert (small.forward(X) == network.forward(X)).all()
        assert small.shapes["c1"][0] == channels
        c2 = small["c2"].op
        assert (c2.weight == 0).all() == (pad_code == 2)


def test_branches_share_channels():
    nodes = [
        Node("fc1", Linear([[1, 0], [0, 1], [1, 1]])),
        Node("act1", Requantize.from_shift(0, UNSIGNED)),
        Node("a", Linear([[1, 0, 0], [0, 0, 0]]), ("act1",)),
        Node("b", Linear([[0, 1, 0], [0, 0, 0]]), ("act1",)),
        Node("sum", Add(), ("a", "b")),
        Node("joined", Concat(), ("sum", "a")),
        Node("unused", Linear([[1, 1, 1]]), ("act1",)),
        Node("out", Linear([[1, 0, 3, 0]]), ("joined",)),
    ]
    network = Network(nodes, input_shape=(2,), input_format=UNSIGNED)
    small = simplify(network, certify(network))
    X = all_inputs(network)
    assert (small.forward(X) == network.forward(X)).all()
    assert small.shapes["fc1"] == (2,)
    assert "unused" not in small.shapes


def test_another_networks_certificate():
    network = Network([Node("fc", Linear([[2, 5]]))], input_shape=(2,), input_format=UNSIGNED)
    other = Network([Node("fc", Linear([[2, 4]]))], input_shape=(2,), input_format=UNSIGNED)
    with pytest.raises(CertificateError):
        simplify(network, certify(other))
