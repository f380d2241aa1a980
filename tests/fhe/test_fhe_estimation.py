"""Predictions against the real thing; times are never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import fhe_networks as nets
import pytest
from fhe_networks import U2

from refqnn import fhe
from refqnn.errors import CircuitError
from refqnn.fhe import estimation, memory


@pytest.mark.parametrize("compress_keys", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_key_sizes_are_exact(compress_keys: bool) -> None:
    network = nets.mlp(0, sizes=(2, 2, 2), largest=1, codes=U2, shift=1)
    circuit = fhe.compile(network, compress_keys=compress_keys)
    circuit.keygen()
    real = len(circuit._concrete.client.evaluation_keys.serialize())
    assert circuit.evaluation_key_bytes == pytest.approx(real, rel=0.01)
    assert circuit.key_sizes.resident > real


def test_keys_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = nets.compiled_mlp()
    monkeypatch.setattr(memory, "available_memory", lambda: 10**8)
    with pytest.raises(CircuitError, match=r"0\.10 GB are available"):
        circuit.keygen()


def test_estimate_uses_the_cached_calibration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured: list[float] = []
    monkeypatch.setattr(estimation, "_measure", lambda: measured.append(2.0) or 2e-10)
    network = nets.mlp(0, sizes=(2, 2, 2), largest=1, codes=U2, shift=1)
    first, second = fhe.estimate(network), fhe.estimate(network)
    assert first == second
    assert len(measured) == 1
    circuit = fhe.compile(network)
    assert first.seconds == circuit.work * 2e-10
    assert first.pbs == circuit.pbs
    (file,) = tmp_path.rglob("*.json")
    assert list(json.loads(file.read_text()).values()) == [2e-10]
    file.write_text("{")
    assert fhe.estimate(network) == first
    assert len(measured) == 2


@pytest.mark.slow
def test_calibration_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert 1e-12 < estimation.calibrate() < 1e-7
