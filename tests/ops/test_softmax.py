"""Softmax against Fractions, and what its structure promises."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refqnn
from refqnn import (
    BIPOLAR,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    Softmax,
    certify,
    exact,
    testing,
)
from refqnn.accumulator import Certificate, Proof
from refqnn.errors import CertificateError, InvalidArgument, InvalidType, NotCovered, ShapeMismatch
from refqnn.ops.softmax import along_lines, curve, exp_of_negative

CODES = IntFormat(8, signed=True)


def fixed(scale: float) -> Softmax:
    """As TFLite makes it, of a scale that is a power of two."""
    return Softmax(exp_of_negative((-np.arange(256) * scale * 2**26).astype(np.int64), 5), CODES)


def floating(scale: float) -> Softmax:
    return Softmax(np.exp(-np.arange(256) * scale).astype(np.float32), CODES)


def lines(scale: float) -> Softmax:
    at = np.maximum(2**16 - 1 - np.arange(256) * scale * 6553.6, 0).astype(np.int64)
    table = along_lines(curve(lambda v: np.exp(10 * (v - 1))), at)
    return Softmax(table, IntFormat(15, signed=False))


@pytest.mark.parametrize("make", [fixed, floating])
@pytest.mark.parametrize("channels", [1, 2, 10, 300])
def test_within_one_code_of_the_real_numbers(make, channels):
    x = np.random.default_rng(channels).integers(-128, 128, (50, channels, 2))
    e = np.exp((x - x.max(axis=1, keepdims=True)) / 16)
    exact = 256 * e / e.sum(axis=1, keepdims=True) - 128
    codes = make(1 / 16).forward(x)
    assert np.abs(codes - np.minimum(exact, 127)).max() <= 1


def test_exponentials_are_those_of_real_numbers():
    a = -np.random.default_rng(0).integers(0, 31 * 2**26, 2000)
    exact = np.array([math.exp(v / 2**26) * 2**31 for v in a.tolist()])
    assert np.abs(exp_of_negative(a, 5) - exact).max() < 2**10
    for bits in range(1, 5):
        exact = np.array([math.exp(v / 2 ** (31 - bits)) * 2**31 for v in a.tolist()])
        assert np.abs(exp_of_negative(a, bits) - exact).max() < 2**10


@pytest.mark.parametrize("make", [fixed, floating, lines])
def test_saved_and_loaded_and_bounded(make, tmp_path):
    net = Network([Node("soft", make(1 / 8))], input_shape=(5,), input_format=CODES)
    net.save(tmp_path / "net.npz")
    loaded = refqnn.load(tmp_path / "net.npz")
    x = np.random.default_rng(1).integers(-128, 128, (40, 5))
    assert loaded.digest == net.digest
    assert np.array_equal(loaded.forward(x), net.forward(x))
    assert np.array_equal(net.trace(x)["soft"], net.forward(x))
    assert net.ranges()["soft"].contains(net.forward(x))
    assert refqnn.certify(net)


@pytest.mark.parametrize(
    "table",
    [
        [],
        [0, 2**31 - 1],
        [2**14 - 1, 2**13],
        [2**15 - 1, 2**15],
        [2**16 - 1],  # its shares would be shifted to the left
        [2**31],
        [2**16, -1],
        [[2**16]],
        np.float32([]),
        np.float32([[1.0]]),
        np.float32([np.nan]),
        np.float32([1.0, np.inf]),
        np.float32([1.0, -1.0]),
        np.float32([2.0**-101]),  # the inverse of its sum may not be a float
        np.float32([2.0**101]),
    ],
)
def test_tables_that_are_none(table):
    with pytest.raises((InvalidArgument, InvalidType)):
        Softmax(table, CODES)


def test_shapes_and_formats():
    with pytest.raises(ShapeMismatch):
        fixed(1.0).out_shape((4096,))
    for fmt in (IntFormat(17, signed=True), BIPOLAR, None):
        with pytest.raises(InvalidType):
            Softmax([2**16], fmt)
    with pytest.raises(InvalidArgument, match="15 bits"):
        Softmax([2**15 - 1], IntFormat(16, signed=True))


@given(st.data(), st.sampled_from([3, 9, 2**40, 2**63, 2**70]))
def test_every_table_on_every_integer_is_what_plain_python_says(data, largest):
    """The tables that are accepted have an answer for all integers, whatever array holds them."""
    box = refqnn.Interval.of_format(IntFormat(3, True), (data.draw(st.integers(1, 5)), 2))
    op = data.draw(testing.ops("Softmax", testing.Value("x", box)))
    number = st.integers(-largest, largest - 1)
    x = [[[data.draw(number) for _ in range(2)] for _ in range(box.shape[0])]]
    with np.errstate(all="raise", under="ignore"):
        codes = op.forward(refqnn.formats.as_integers(x, "x"))
    assert codes.tolist() == [exact.apply(op, [x[0]])]
    assert codes.tolist() == op.forward(np.array(x, dtype=object)).tolist()
    assert op.out_range(box).contains(codes)


@pytest.mark.parametrize(
    ("table", "x"),
    [
        ([2**31 - 1, 1503258956], [[1, 1, 0]]),  # a reciprocal one unit off would show
        ([2**31 - 1, 2**30], [[1] * 7, [0] * 7]),
    ],
)
def test_shares_of_sixteen_bits(table, x):
    codes = IntFormat(16, signed=True)
    op = Softmax(table, codes)
    got = op.forward(np.array(x)[:, :, None])
    assert got[:, :, 0].tolist() == [
        [value for (value,) in exact.apply(op, [[[v] for v in row]])] for row in x
    ]


def behind(net_inputs=30):
    """A sum that reads a Softmax, of more inputs than can be enumerated."""
    nodes = [Node("soft", fixed(1 / 8)), Node("fc", Linear(np.eye(net_inputs, dtype=int)))]
    return Network(nodes, input_shape=(net_inputs,), input_format=CODES)


def test_a_certificate_is_derived_again():
    certificate = certify(behind(), method="interval")
    certificate.verify(behind())
    layer = certificate["soft"]
    assert (layer.lo == -128).all()
    assert (layer.hi == 127).all()
    assert (layer.proof == Proof.INTERVAL).all()
    forged = replace(layer, hi=layer.hi - 1)
    nodes = {**certificate.nodes, "soft": forged}
    told = certificate.digest, certificate.domain, certificate.witnesses
    with pytest.raises(CertificateError, match="127 by intervals"):
        Certificate(nodes, *told).verify(behind(), allow_trusted=True)


def test_a_part_of_the_inputs_is_enumerated():
    """What a neuron behind a Softmax depends on: all channels of its position, no other one."""
    nodes = [Node("soft", fixed(1 / 2)), Node("gather", refqnn.Gather([0], (2, 12)))]
    net = Network(nodes, input_shape=(2, 12), input_format=IntFormat(2, signed=True))
    assert certify(net, method="search", budget_s=5).verify(net)


def test_what_has_no_form_for_it_says_so():
    net = behind(3)
    pytest.importorskip("onnx")
    with pytest.raises(NotCovered, match="soft"):
        refqnn.to_onnx(net)
    pytest.importorskip("concrete.fhe")
    with pytest.raises(NotCovered, match="soft"):
        refqnn.fhe.compile(net)


@pytest.mark.parametrize("op", [fixed(0.05), floating(0.05), lines(0.05)])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_a_certificate_behind_it_is_verified_without_trust(op, shape):
    nodes = [Node("soft", op), Node("half", Requantize.from_shift(1, CODES))]
    network = Network(nodes, input_shape=shape, input_format=IntFormat(3, signed=True))
    for method in ("interval", "search"):
        certificate = certify(network, method=method)
        assert "trusted" not in " ".join(certificate.verify(network))
    soft = certificate["soft"]
    forged = copy.copy(certificate)
    forged.nodes = {**certificate.nodes, "soft": replace(soft, hi=soft.hi - 1)}
    with pytest.raises(CertificateError):
        forged.verify(network)
