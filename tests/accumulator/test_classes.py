"""certify_class against enumeration: every input of the ball, through exact.py."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refqnn.exact as exact
from refqnn import (
    BIPOLAR,
    Add,
    Conv2d,
    Flatten,
    IntFormat,
    Linear,
    Lookup,
    Network,
    Node,
    Requantize,
    certify_class,
)
from refqnn.accumulator import Proof
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch

U3 = IntFormat(3, signed=False)


def network_of(seed: int, *, residual: bool, codes: bool) -> Network:
    """Three inputs, five hidden neurons, three classes; the output sums or codes."""
    rng = np.random.default_rng(seed)
    nodes = [
        Node("fc1", Linear(rng.integers(-3, 4, (5, 3)), rng.integers(-4, 5, 5))),
        Node("act", Requantize.from_shift(1, IntFormat(2, signed=False))),
        Node("fc2", Linear(rng.integers(-2, 3, (3, 5)))),
    ]
    if residual:
        nodes.append(Node("sum", Add((1, -2)), ("fc2", "input")))
    if codes:
        nodes.append(Node("out", Requantize.from_shift(1, IntFormat(2, signed=True))))
    return Network(nodes, input_shape=(3,), input_format=U3)


def class_of(network: Network, codes: tuple[int, ...]) -> int:
    """The first index of the greatest output, by the plain Python route."""
    (out,) = exact.forward(network, [list(codes)])
    return max(range(len(out)), key=lambda j: (out[j], -j))


@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(0, 2), st.data())
def test_equals_enumeration(
    seed: int, residual: bool, codes: bool, radius: int, data: st.DataObject
) -> None:
    network = network_of(seed, residual=residual, codes=codes)
    x = tuple(data.draw(st.integers(0, 7)) for _ in range(3))
    around = product(*(range(max(v - radius, 0), min(v + radius, 7) + 1) for v in x))
    classes = {class_of(network, point) for point in around}
    verdict = certify_class(network, list(x), radius)
    assert verdict.winner == class_of(network, x)
    assert verdict.proved == (classes == {verdict.winner})
    if not verdict.proved:
        assert verdict.witness is not None
        assert abs(verdict.witness - np.array(x)).max() <= radius
        assert class_of(network, tuple(verdict.witness.tolist())) == verdict.other
        assert verdict.other in classes - {verdict.winner}


@pytest.mark.parametrize("seed", range(12))
def test_search_says_what_enumeration_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The searching rungs, where nothing may be enumerated."""
    network = network_of(seed, residual=bool(seed % 2), codes=bool(seed % 3))
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 8, (4, 3))
    expected = [certify_class(network, x, 2).proved for x in samples]
    monkeypatch.setattr("refqnn.accumulator.classes._ENUMERATED", 0)
    verdicts = [certify_class(network, x, 2) for x in samples]
    assert [v.proved for v in verdicts] == expected
    assert all(v.proved or v.witness is not None for v in verdicts)
    assert Proof.EXHAUSTIVE not in {proof for v in verdicts for proof in v.proofs}


@pytest.mark.parametrize(("x", "radius", "proved"), [((4, 2), 1, True), ((2, 4), 1, False)])
def test_a_tie_goes_to_the_first_class(x: tuple[int, int], radius: int, proved: bool) -> None:
    network = Network([Node("fc", Linear(np.eye(2, dtype=int)))], input_shape=(2,), input_format=U3)
    verdict = certify_class(network, x, radius)
    assert verdict.proved is proved
    if not proved:
        assert verdict.witness is not None
        assert verdict.witness.tolist() == [3, 3]


def test_a_difference_of_sums_is_tighter_than_two_sums() -> None:
    """Both outputs move by 700, their difference never."""
    rows = np.full((2, 200), 7)
    network = Network([Node("fc", Linear(rows, [1, 0]))], input_shape=(200,), input_format=U3)
    verdict = certify_class(network, np.full(200, 3), 3)
    assert verdict.proofs == (Proof.INTERVAL,)
    assert verdict.proved


def test_codes_stay_inside_the_format() -> None:
    network = Network(
        [Node("fc", Linear([[1, 0], [0, 1]], [1, 0]))], input_shape=(2,), input_format=U3
    )
    assert certify_class(network, [7, 7], 100).witness is not None
    bipolar = Network(
        [Node("fc", Linear([[2, 0], [0, 1]]))], input_shape=(2,), input_format=BIPOLAR
    )
    assert certify_class(bipolar, [1, -1], 1).proved  # the next code is 2 away
    verdict = certify_class(bipolar, [1, -1], 2)
    assert verdict.witness is not None
    assert set(verdict.witness.tolist()) <= {-1, 1}


def test_images_and_a_map_of_one_position() -> None:
    rng = np.random.default_rng(3)
    network = Network(
        [
            Node("conv", Conv2d(rng.integers(-3, 4, (4, 1, 3, 3)))),
            Node("act", Requantize.from_shift(3, IntFormat(2, signed=False))),
            Node("out", Conv2d(rng.integers(-3, 4, (3, 4, 2, 2)))),
        ],
        input_shape=(1, 4, 4),
        input_format=U3,
    )
    verdict = certify_class(network, rng.integers(0, 8, (1, 4, 4)), 1, budget_s=5)
    assert verdict.proved or verdict.witness is not None


def test_no_time_is_unknown_with_a_reason() -> None:
    rng = np.random.default_rng(0)
    network = Network(
        [
            Node("fc1", Linear(rng.integers(-3, 4, (30, 30)))),
            Node("act", Lookup([rng.integers(0, 4, 1300).tolist()], lo=-650)),
            Node("fc2", Linear(rng.integers(-3, 4, (4, 30)))),
        ],
        input_shape=(30,),
        input_format=U3,
    )
    x = rng.integers(0, 8, 30)
    verdict = certify_class(network, x, 3, budget_s=0)
    assert not verdict.proved
    assert verdict.witness is not None or "time ran out for classes" in str(verdict)


def test_refusals() -> None:
    one = Network([Node("fc", Linear([[1, 2]]))], input_shape=(2,), input_format=U3)
    with pytest.raises(InvalidArgument, match=r"outputs of shape \[1\].*two outputs or more"):
        certify_class(one, [1, 2])
    maps = Network(
        [Node("c", Conv2d(np.ones((2, 1, 1, 1), int)))], input_shape=(1, 2, 2), input_format=U3
    )
    with pytest.raises(InvalidArgument, match="a vector"):
        certify_class(maps, np.zeros((1, 2, 2), int))
    two = Network([Node("f", Flatten())], input_shape=(2,), input_format=U3)
    with pytest.raises(InvalidType, match="radius"):
        certify_class(two, [1, 2], 0.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="radius"):
        certify_class(two, [1, 2], -1)
    with pytest.raises(OutOfRange):
        certify_class(two, [1, 9])
    with pytest.raises(ShapeMismatch):
        certify_class(two, [[1, 2]])
