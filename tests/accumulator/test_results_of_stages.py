"""What an accumulator makes of an input, and that it can be run again whatever comes behind."""

from __future__ import annotations

import numpy as np
import pytest

from refqnn import Accumulator, IntFormat, Linear, Lookup, Network, Node, Stage, certify
from refqnn.accumulator import StageReport
from refqnn.errors import AccumulatorOverflow

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
