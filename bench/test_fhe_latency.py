"""Encrypted latency against its limit and against the peer's construction.

    pytest bench/test_fhe_latency.py --benchmark-enable --benchmark-json=bench/fhe_latency.json

Two circuits of each network run in one session: ours and the peer's (bench/fhe_peer.py), compiled
on an input set that holds the witnesses of the first layer, without which its widths are too small.
`extra_info` has lookups, complexity, key bytes, key seconds, and how many outputs were wrong.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "fhe")]
pytest.importorskip("concrete.fhe", reason="needs the fhe extra")

import fhe_networks as nets  # noqa: E402
from fhe_peer import compile_peer  # noqa: E402

from refqnn import Network, fhe  # noqa: E402

NETWORKS = {
    "4-16-3 w3a3": lambda: nets.mlp(1),
    "4-16-3 w3a3 half_even": lambda: nets.mlp(1, rounding="half_even"),
    "4-16-3 w3a3 arbitrary thresholds": lambda: nets.with_thresholds(1, 8),
    "30-30-2 w3a3": lambda: nets.mlp(1, sizes=(30, 30, 2), shift=5),
    "64-32-10 w2a2": lambda: nets.mlp(1, (64, 32, 10), largest=1, codes=nets.U2, shift=3),
}


def ours(network: Network) -> tuple[Any, Any, dict[str, Any]]:
    circuit = fhe.compile(network)
    info = {
        "lookups": sum(circuit.pbs.values()),
        "complexity": circuit.complexity,
        "p_error": circuit.p_error,
    }
    return circuit.keygen, lambda x: circuit.execute(x[None])[0], info


def peer(network: Network) -> tuple[Any, Any, dict[str, Any]]:
    circuit = compile_peer(network, nets.samples(network, 100))
    info = {
        "lookups": circuit.programmable_bootstrap_count,
        "complexity": circuit.complexity,
        "p_error": circuit.p_error,
    }
    return circuit.keygen, circuit.encrypt_run_decrypt, info


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("construction", [ours, peer], ids=["ours", "peer"])
def test_latency(benchmark: Any, name: str, construction: Any) -> None:
    benchmark.group = name
    network = NETWORKS[name]()
    keygen, run, info = construction(network)
    start = time.perf_counter()
    keygen()
    info["keygen_seconds"] = time.perf_counter() - start
    samples = nets.samples(network, 5)[-5:]
    expected = network.forward(samples)
    results = [run(samples[0])]  # unpacks the keys
    remaining = iter(range(1, 5))

    def one() -> None:
        results.append(run(samples[next(remaining)]))

    benchmark.pedantic(one, rounds=4, iterations=1)
    wrong = (np.stack(results) != expected[: len(results)]).any(axis=1)
    benchmark.extra_info.update(info, wrong_samples=int(wrong.sum()))
    if construction is ours:
        assert not wrong.any()
