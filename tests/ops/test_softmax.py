"""Softmax against Fractions, and what its structure promises."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest

import refqnn
from refqnn import IntFormat, Network, Node, Requantize, Softmax, certify
from refqnn.errors import CertificateError, InvalidArgument, InvalidType, ShapeMismatch
from refqnn.ops.softmax import exp_of_negative

CODES = IntFormat(8, signed=True)


def fixed(scale: float) -> Softmax:
    """As TFLite makes it, of a scale that is a power of two."""
    return Softmax(exp_of_negative((-np.arange(256) * scale * 2**26).astype(np.int64), 5), CODES)


def floating(scale: float) -> Softmax:
    return Softmax(np.exp(-np.arange(256) * scale).astype(np.float32), CODES)


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


@pytest.mark.parametrize("make", [fixed, floating])
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
    "table", [[], [0, 1], [2**31], [-1], np.float32([np.nan]), np.float32([[1.0]]), [[1]]]
)
def test_tables_that_are_none(table):
    with pytest.raises((InvalidArgument, InvalidType)):
        Softmax(table, CODES)


def test_shapes_and_formats():
    with pytest.raises(ShapeMismatch):
        fixed(1.0).out_shape((4096,))
    with pytest.raises(InvalidType):
        Softmax([1], IntFormat(17, signed=True))


@pytest.mark.parametrize("op", [fixed(0.05), floating(0.05)])
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
