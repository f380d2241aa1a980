"""Encrypted samples a second: what it brings to hold several samples in one tensor.

Each batch size has a circuit and keys of its own (`Circuit.execute(batch=)`).  Latency is that of
the whole batch, encryption and decryption included, median of three after one that unpacks the
keys; every output is compared with the network's.

    python bench/throughput.py            # 8 minutes on two idle cores
    python bench/throughput.py --quick    # iris at two sizes, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Session
from fhe_networks import trained

from refqnn import fhe

NETWORKS = ("iris target", "breast_cancer target", "iris", "digits target")
BATCHES = (1, 8, 64)
ROUNDS = 3


def measure(name: str, batch: int) -> dict[str, Any]:
    of = trained(name)
    circuit = fhe.compile(of.network)
    codes = np.resize(of.codes, (batch, *of.network.input_shape))
    expected = of.network.forward(codes)
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        outputs = circuit.execute(codes, batch=batch)
        seconds.append(time.perf_counter() - start)
        np.testing.assert_array_equal(outputs, expected)
    latency = median(seconds[1:])
    return {"batch": batch, "latency_seconds": latency, "samples_per_second": batch / latency}


def run(
    names: tuple[str, ...], batches: tuple[int, ...], say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for batch in batches:
            found.setdefault(name, []).append(measure(name, batch))
            last = found[name][-1]
            latency, rate = last["latency_seconds"], last["samples_per_second"]
            say(f"{name:22} batch {batch:3}  {latency:8.3f} s  {rate:7.2f} samples/s")
    return found


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(6.4, 4.0)
    for (name, runs), colour in zip(found.items(), COLOURS):
        rates = [run["samples_per_second"] for run in runs]
        axes.plot([run["batch"] for run in runs], rates, "o-", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.set_yscale("log")
    axes.set_xlabel("samples in one tensor")
    axes.set_ylabel("encrypted samples a second")
    axes.set_title(f"Throughput under encryption, median of {ROUNDS} runs")
    legend_below(axes)
    save_figure(fig, path)


def main() -> None:
    session = Session("throughput", __doc__, "iris at two sizes, nothing written")
    if session.quick:
        run(("iris target",), (1, 8), session.say)
        return
    found = run(NETWORKS, BATCHES, session.say)
    plot(found, session.write({"networks": found}))


if __name__ == "__main__":
    main()
