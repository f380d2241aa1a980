"""What an accumulator makes of an input, and that it can be run again whatever comes behind."""

from __future__ import annotations

import numpy as np
import pytest

from refqnn import Accumulator, Emulated, IntFormat, Linear, Lookup, Network, Node, Stage, certify
from refqnn.accumulator import StageReport
from refqnn.errors import AccumulatorOverflow, InvalidArgument

FORMAT = IntFormat(2, signed=True)


def _network(weight: list[list[int]], *behind: Node) -> Network:
    nodes = [Node("fc", Linear(np.array(weight))), *behind]
    return Network(nodes, input_shape=(len(weight[0]),), input_format=FORMAT)


def _found(report: StageReport, network: Network, accumulator: Accumulator) -> None:
    """The result is what the trace gives, None where that is an error."""
    found = report.found
    assert found is not None
    try:
        trace = network.trace(found.witness[None], accumulator=accumulator)
    except AccumulatorOverflow:
        assert found.result is None
        assert found.harmful
    else:
        assert found.result == trace["fc"][(0, *found.neuron)]


@pytest.mark.parametrize(
    ("weight", "inner", "last"),
    [
        ([[5, 1, 5, -7, 4, -3]], Stage(4, group=7), Stage(2, overflow="error")),
        ([[-4, -3, -3], [-5, -2, -7]], Stage(5, group=3), Stage(7, False, overflow="error")),
        ([[3, 3, 4]], Stage(4, group=2, overflow="saturate"), Stage(4, overflow="error")),
    ],
)
def test_an_error_behind_another_stage(weight: list[list[int]], inner: Stage, last: Stage) -> None:
    network = _network(weight)
    accumulator = Accumulator([inner, last])
    certificate = certify(network, accumulator=accumulator)
    assert not certificate.safe
    for report in certificate.stages:
        if report.found is not None:
            _found(report, network, accumulator)
    certificate.verify(network)


def test_an_error_of_another_neuron() -> None:
    network = _network([[3, -3, 1], [7, 7, 7]])
    accumulator = Accumulator([Stage(3, group=1), Stage(5, overflow="error")])
    certificate = certify(network, accumulator=accumulator)
    certificate.verify(network)


def test_a_result_that_the_next_node_does_not_take() -> None:
    table = Lookup(np.arange(10)[None] % 2, -6, FORMAT)  # of -6 to 3
    network = _network([[3]], Node("table", table))
    certificate = certify(network, accumulator={"fc": Accumulator([Stage(3, signed=False)])})
    (report,) = certificate["fc"]
    assert report.found is not None
    assert report.found.result == report.found.value + 8  # 5 or 2
    assert report.found.result == 5
    certificate.verify(network)


@pytest.mark.parametrize("name", ["other", "table"])
def test_an_accumulator_of_no_node_that_sums(name: str) -> None:
    """A name that is mistyped is no proof that all is safe."""
    table = Lookup(np.arange(10)[None] % 2, -6, FORMAT)
    network = _network([[3]], Node("table", table))
    with pytest.raises(InvalidArgument, match=name):
        certify(network, accumulator={name: Accumulator([Stage(3)])})
    with pytest.raises(InvalidArgument, match=name):
        network.trace(
            [[1]], accumulator={"fc": Accumulator([Stage(8)]), name: Accumulator([Stage(3)])}
        )
    with pytest.raises(InvalidArgument, match=name):
        network.trace([[1]], accumulator=Emulated({name: 3}))


def test_a_preset_by_something_else_than_a_name() -> None:
    with pytest.raises(InvalidArgument, match="int32"):
        Accumulator.preset(["int32"])  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
def test_a_witness_is_as_small_as_single_codes_can_make_it(seed: int) -> None:
    """One register, so what is wrong is harmful: no code of it can move a step towards 0."""
    rng = np.random.default_rng(seed)
    n, bits = int(rng.integers(1, 6)), int(rng.integers(2, 5))
    network = Network(
        [Node("fc", Linear(rng.integers(-7, 8, (2, n)), rng.integers(-6, 7, 2)))],
        input_shape=(n,),
        input_format=IntFormat(bits, signed=bool(seed % 2)),
    )
    for overflow in ("wrap", "saturate"):
        accumulator = Accumulator([Stage(5, overflow=overflow)], bias="first")
        (report,) = certify(network, accumulator=accumulator).stages
        if report.found is None:
            continue
        codes = report.found.witness
        nearer = codes - np.diag(np.sign(codes))[codes != 0]
        if report.found.harmful and len(nearer):
            right = network.trace(nearer)["fc"]
            assert (network.trace(nearer, accumulator=accumulator)["fc"] == right).all()
