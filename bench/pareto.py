"""Digits: accuracy against certified accumulator bits against measured encrypted latency.

Networks of several sizes and widths, each trained with three seeds; the first seed is encrypted.
Bits are those of the widest accumulator that is looked up, proved for every input; latency is the
median of a few encrypted samples, compared with the integers one by one.

The cross is what the peer measures of itself on these digits (two layers, 3 bits, its defaults).

    python bench/pareto.py            # 5 minutes on two idle cores
    python bench/pareto.py --quick    # one small network, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median

import digits_cnn
import numpy as np
import torch
from common import Session, published
from fhe_networks import digits_alone

import refqnn
from refqnn import Network, datasets, fhe
from refqnn.training import loop

SEEDS, SAMPLES = 3, 4
PEER: dict[str, float] = published("concrete_ml")["encrypted_digits"]

NARROW = loop.demo_config("digits", narrow=True)
SPARSE = loop.demo_config("digits")
MLPS = {
    "16 hidden, ternary": replace(NARROW, hidden_sizes=(16,)),
    "32 hidden, ternary": replace(NARROW, hidden_sizes=(32,)),
    "64 hidden, ternary": NARROW,
    "96 hidden, ternary": replace(NARROW, hidden_sizes=(96,)),
    "32 hidden, 3 bits, sparse": replace(SPARSE, hidden_sizes=(32,)),
    "64 hidden, 3 bits, sparse": SPARSE,
    "64 hidden, one pixel each": digits_alone(64),
    "256 hidden, one pixel each": digits_alone(256),
    "64 hidden, 3 bits, dense": loop.DemoConfig((64,), epochs=30, input_signed=False),
}
LABELS = {  # beside the point, where the usual place is taken
    "64 hidden, 3 bits, sparse": ((-6, -8), "right"),
    "CNN, 16 channels": ((6, -10), "left"),
    "64 hidden, one pixel each": ((6, 14), "left"),
    "32 hidden, 3 bits, sparse": ((-6, -3), "right"),
}
CNNS = {"CNN, 8 channels": "tiny", "CNN, 16 channels": "small"}


@dataclass(frozen=True)
class Point:
    """Accuracies on held-out images, one per seed; the rest is of the first seed."""

    network: str
    accuracies: list[float]
    certified_bits: int
    seconds: float
    pbs: dict[str, int]
    wrong_samples: int

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies)


def train(name: str, seed: int) -> Network:
    if name in CNNS:
        module = digits_cnn.train(CNNS[name], seed)
        return refqnn.from_brevitas(module, torch.zeros(2, 1, 8, 8))
    config, data = MLPS[name], datasets.load("digits", seed)
    module = loop.build(config, data.n_features, data.n_outputs, seed)
    loop.fit(module, data.X_train, data.y_train, seed=seed, **config.training)
    return refqnn.from_brevitas(module, data.X_train[:2])


def accuracy(network: Network, seed: int) -> float:
    data = datasets.load("digits", seed)
    X = data.X_test.reshape(-1, *network.input_shape)
    return float((network.forward(network.quantize_input(X)).argmax(axis=1) == data.y_test).mean())


def measure(name: str, seeds: int) -> Point:
    networks = [train(name, seed) for seed in range(seeds)]
    first = networks[0]
    X = datasets.load("digits", 0).X_test.reshape(-1, *first.input_shape)
    codes = first.quantize_input(X[: SAMPLES + 1])
    circuit = fhe.compile(first)
    circuit.keygen()
    seconds, wrong = [], 0
    for sample, expected in zip(codes, first.forward(codes)):
        start = time.perf_counter()
        output = circuit.execute(sample[None])[0]
        seconds.append(time.perf_counter() - start)
        wrong += int((output != expected).any())
    return Point(
        name,
        [accuracy(network, seed) for seed, network in enumerate(networks)],
        max((layer.span_bits for layer in circuit.layers), default=0),
        median(seconds[1:]),  # the first unpacks the keys
        {str(bits): n for bits, n in circuit.pbs.items()},
        wrong,
    )


def plot(points: Iterable[Point], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    points = list(points)
    fig, axes = figure(8.4, 4.6)
    widths = sorted({p.certified_bits for p in points})
    for bits, colour, marker in zip(widths, COLOURS, "os^Dv"):
        group = [p for p in points if p.certified_bits == bits]
        low, high = ([f(p.accuracies) for p in group] for f in (min, max))
        middle = np.array([p.accuracy for p in group])
        axes.errorbar(
            [p.seconds for p in group],
            middle,
            yerr=[middle - low, high - middle],
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"{bits} bits" if bits else "no lookup",
        )
    for p in points:
        offset, side = LABELS.get(p.network, ((6, 4), "left"))
        axes.annotate(
            p.network,
            (p.seconds, p.accuracy),
            offset,
            textcoords="offset points",
            ha=side,
            fontsize=7,
        )
    axes.plot(
        PEER["seconds"], PEER["accuracy"], "x", color="black", label="peer, 9 bits, published"
    )
    axes.set_xscale("log")
    axes.set_xlim(right=40)
    axes.set_xlabel("encrypted latency of one image (s)")
    axes.set_ylabel("test accuracy, encrypted = integer")
    seeds = max(len(p.accuracies) for p in points)
    axes.set_title(f"Digits, 360 test digits: mean, least and greatest of {seeds} seeds")
    legend_below(axes, title="widest accumulator (bits)")
    save_figure(fig, path)


def main() -> None:
    session = Session("pareto", __doc__, "one small network, one seed")
    torch.set_num_threads(1)
    names = ["16 hidden, ternary"] if session.quick else [*MLPS, *CNNS]
    points = []
    for name in names:
        point = measure(name, 1 if session.quick else SEEDS)
        points.append(point)
        session.say(
            f"{name:28} accuracy {point.accuracy:.3f}  {point.certified_bits:2} bits  "
            f"{point.seconds:6.2f} s  {point.pbs}  {point.wrong_samples} wrong"
        )
    if session.quick:
        return
    plot(points, session.write({"peer": PEER, "points": [asdict(p) for p in points]}))


if __name__ == "__main__":
    main()
