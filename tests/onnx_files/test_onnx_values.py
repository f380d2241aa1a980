"""Exact numbers, grids, files of either kind, and what happens without the onnx package."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx")

from onnx_networks import inputs_for, random_dense

import refqnn
from refqnn import IntFormat, Network, Node, Requantize
from refqnn.errors import MissingExtra, NotCovered, ShapeMismatch
from refqnn.onnx import compare, convert, from_onnx, open_network, to_onnx
from refqnn.onnx.values import float32_of, fractions_of, recover_grid
from refqnn.ops import Linear

FLOATS = st.floats(width=32, min_value=np.float32(2.0**-100), max_value=np.float32(2.0**100))


@given(FLOATS, FLOATS)
def test_a_product_of_scales_rounds_once_as_float32_multiplication_does(a, b):
    product = fractions_of(np.float32([a])) * fractions_of(np.float32([b]))
    with np.errstate(over="ignore", under="ignore"):
        assert float32_of(product)[0] == np.float32(a) * np.float32(b)


@given(st.fractions(min_value=-(10**6), max_value=10**6))
def test_rationals_round_to_the_nearest_float32(value):
    (got,) = float32_of(np.array([value], dtype=object))
    error = abs(Fraction(float(got)) - value)
    for direction in (-np.inf, np.inf):
        neighbour = np.nextafter(got, np.float32(direction))
        assert error <= abs(Fraction(float(neighbour)) - value)


@given(st.lists(st.integers(-127, 127), min_size=1, max_size=30), FLOATS)
def test_weights_on_a_grid_are_found_on_it(codes, scale):
    w = np.array(codes, dtype=np.float32) * np.float32(scale)
    found = recover_grid(w)
    assert found is not None
    q, s = found
    np.testing.assert_array_equal(q.astype(np.float32) * np.float32(float(s)), w)
    assert np.abs(q).max() <= 127


def test_weights_on_no_grid_are_not():
    assert recover_grid(np.random.default_rng(0).normal(size=50)) is None
    assert recover_grid(np.array([np.inf, 1.0])) is None
    q, s = recover_grid(np.zeros((2, 3)))
    assert q.tolist() == [[0] * 3] * 2
    assert s == 1


def test_compare_finds_the_first_node_that_differs():
    rng = np.random.default_rng(4)
    network = random_dense(rng)
    X = inputs_for(network, rng, 50)
    assert compare(network, from_onnx(to_onnx(network)), X) is None
    nodes = list(network.nodes)
    thresholds = nodes[3].op.thresholds.copy()
    thresholds[2] += 1
    nodes[3] = Node("act2", Requantize(thresholds, nodes[3].op.format), ("fc2",))
    other = Network(nodes, input_shape=(4,), input_quantizer=network.input_quantizer)
    difference = compare(network, other, X)
    assert difference.node == "act2"
    assert difference.index[1] == 2
    assert difference.expected == difference.got + 1
    assert difference.margin == 0
    assert compare(network, other, network.quantize_input(X)) == difference


def test_compare_matches_networks_without_common_names_by_their_codes():
    fmt = IntFormat(3, signed=False)

    def build(prefix: str, shift: int) -> Network:
        act = Requantize.from_shift(shift, fmt)
        nodes = [Node(f"{prefix}0", Linear([[2, 1]])), Node(f"{prefix}1", act)]
        return Network(nodes, input_shape=(2,), input_format=fmt)

    codes = np.array([[1, 2], [7, 7]])
    assert compare(build("a", 1), build("b", 1), codes) is None
    assert compare(build("a", 1), build("b", 2), codes).node == "a1"
    narrow = Network([Node("c", Linear([[1]]))], input_shape=(1,), input_format=fmt)
    with pytest.raises(ShapeMismatch, match="b"):
        compare(build("a", 1), narrow, codes)
    wide = Network([Node("d", Linear([[1, 1]] * 5))], input_shape=(2,), input_format=fmt)
    with pytest.raises(NotCovered, match="no node"):
        compare(build("a", 1), wide, codes)


def test_files_of_both_kinds_are_told_apart_and_converted(tmp_path):
    network = random_dense(np.random.default_rng(1))
    network.save(tmp_path / "a.npz")
    converted = convert(tmp_path / "a.npz", tmp_path / "b.onnx", flavour="integer")
    assert converted.digest == network.digest
    convert(tmp_path / "b.onnx", tmp_path / "c.bin")
    rng = np.random.default_rng(2)
    X = inputs_for(network, rng, 30)
    for name in ("a.npz", "b.onnx", "c.bin"):
        assert compare(network, open_network(tmp_path / name), X) is None


def test_without_onnx_the_error_names_the_command(monkeypatch):
    network = random_dense(np.random.default_rng(1))
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda: from_onnx(b""), lambda: to_onnx(network)):
        with pytest.raises(MissingExtra, match=r"pip install 'refqnn\[onnx\]'"):
            call()


def test_the_public_names():
    assert refqnn.from_onnx is from_onnx
    assert refqnn.to_onnx is to_onnx
