"""Roundings found in thresholds: every mode against every other, by Fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

import refqnn.exact as exact
from refqnn import IntFormat, Network, Node, Requantize, Rounding
from refqnn.diagnosis import Finding, diagnose

MODES = [mode.value for mode in Rounding]
S4 = IntFormat(4, signed=True)


def codes_of(acc: np.ndarray, gain: Fraction, offset: Fraction, mode: str) -> np.ndarray:
    """Divide, round, saturate: without thresholds."""
    codes = [exact.round(a * gain + offset, mode) for a in acc.ravel().tolist()]
    return np.clip(np.array(codes).reshape(acc.shape), S4.q_min, S4.q_max)


def finding(op: Requantize, acc: np.ndarray, codes: np.ndarray) -> Finding | None:
    network = Network([Node("q", op)], input_shape=(1,), input_format=IntFormat(10, signed=True))
    found = diagnose(network, {"q": codes}, acc, budget_s=0)
    return found.findings[0] if found.findings else None


@pytest.mark.parametrize(
    ("gain", "offset"),
    [(Fraction(1, 8), Fraction(5, 8)), (Fraction(1, 7), 0), (Fraction(100003, 2**20), 1)],
)
@pytest.mark.parametrize("own", ["half_even", "floor"])
def test_a_mode_is_named_whatever_the_node_does(own: str, gain: Fraction, offset: Fraction) -> None:
    acc = np.arange(-120, 121)[:, None]
    node = Requantize.from_affine(gain, offset, S4, own)
    for theirs in ("half_even", "half_up", "floor", "ceil", "toward_zero"):
        found = finding(node, acc, codes_of(acc, gain, Fraction(offset), theirs))
        if found is not None:  # without ties all of one kind are the same
            assert f"rounding_{theirs}" in found.names


@pytest.mark.parametrize(("own", "theirs"), [*product(["half_even", "half_up"], MODES[::2])])
def test_a_shift_tells_its_modes_apart(own: str, theirs: str) -> None:
    """On a grid of eights, with all accumulators, what stays together is what is equal there."""
    acc, gain = np.arange(-100, 101)[:, None], Fraction(1, 8)
    codes = {mode: codes_of(acc, gain, Fraction(0), mode) for mode in MODES}
    found = finding(Requantize.from_affine(gain, 0, S4, own), acc, codes[theirs])
    equal = {f"rounding_{m}" for m in MODES if np.array_equal(codes[m], codes[theirs])}
    if own == theirs:
        assert found is None
        return
    assert found is not None
    assert equal <= found.names


def test_rows_have_scales_of_their_own() -> None:
    """One scale for each channel: all of them have to agree on the mode."""
    gains = [Fraction(1, 8), Fraction(3, 64), Fraction(17, 128)]
    acc = np.stack([np.arange(-150, 150)] * 3, axis=1)
    node = Requantize.from_affine(gains, 0, S4, "half_even")
    network = Network([Node("q", node)], input_shape=(3,), input_format=IntFormat(10, signed=True))
    theirs = np.stack(
        [codes_of(acc[:, c], g, Fraction(0), "toward_zero") for c, g in enumerate(gains)], axis=1
    )
    (found,) = diagnose(network, {"q": theirs}, acc).findings
    assert found.names == {"rounding_toward_zero"}
    theirs[:, 1] = codes_of(acc[:, 1], gains[1], Fraction(0), "floor")  # one channel differs
    (found,) = diagnose(network, {"q": theirs}, acc, budget_s=0).findings
    assert not found.names & {"rounding_toward_zero", "rounding_floor"}


@pytest.mark.parametrize("zero_point", [-3, 1, 5])
def test_an_odd_zero_point_added_before_rounding(zero_point: int) -> None:
    """round_half_even(v + z) is not round_half_even(v) + z where z is odd."""
    acc = np.arange(-200, 200)[:, None]
    node = Requantize.from_affine(Fraction(1, 8), 0, S4, "half_even", zero_point=zero_point)
    first = codes_of(acc, Fraction(1, 8), Fraction(zero_point), "half_even")
    found = finding(node, acc, first)
    assert found is not None
    assert found.names & {"zero_point_first", "rounding_half_even"}


@pytest.mark.parametrize("moved", [-2, 1, 3])
def test_another_zero_point(moved: int) -> None:
    acc = np.arange(-90, 90)[:, None]
    node = Requantize.from_affine(Fraction(1, 8), 0, S4, "half_up")
    theirs = np.clip(
        np.array([[(a + 4 >> 3) + moved] for a in acc[:, 0].tolist()]), S4.q_min, S4.q_max
    )
    found = finding(node, acc, theirs)
    assert found is not None
    assert "code_offset" in found.names
