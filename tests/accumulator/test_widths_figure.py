"""The figure of widths shows the numbers of the certificates."""

import numpy as np
import pytest
from accumulator_networks import all_inputs

from refqnn import IntFormat, Linear, Network, Node, Requantize, certify, observed

pytest.importorskip("matplotlib")

from refqnn.plotting import certificate_figure, certificate_widths, figure


def test_bars_are_the_widths(tmp_path):
    rng = np.random.default_rng(3)
    nodes = [
        Node("fc1", Linear(rng.integers(-4, 4, (5, 3)))),
        Node("act1", Requantize.from_shift(2, IntFormat(2, False))),
        Node("fc2", Linear(rng.integers(-4, 4, (2, 5)), [9, -9])),
    ]
    network = Network(nodes, input_shape=(3,), input_format=IntFormat(2, False))
    interval, exact = certify(network, method="interval"), certify(network)
    seen = observed(network, all_inputs(network)[::7])
    _, axes = figure()
    certificate_widths(axes, exact, seen)
    heights = [[int(bar.get_height()) for bar in group] for group in axes.containers]
    rows = interval.table()
    assert heights[0] == [row.datatype_bits for row in rows]
    assert heights[1] == [row.weight_bits for row in rows]
    assert heights[2] == [row.signed_bits for row in rows]
    assert heights[3] == [row.signed_bits for row in exact.table()]
    for bits in zip(*heights):
        assert list(bits) == sorted(bits, reverse=True)
    labels = [text.get_text() for text in axes.texts[6:8]]
    assert labels == [str(row.signed_bits) for row in exact.table()]
    _, axes = figure()
    certificate_widths(axes, interval)
    assert len(axes.containers) == 4
    assert axes.texts[7].get_text().startswith("≤")
    certificate_figure(exact, tmp_path / "widths.png", seen)
    assert (tmp_path / "widths.png").stat().st_size > 0
