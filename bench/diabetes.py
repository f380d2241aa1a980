"""Diabetes: does the quantized regressor explain as much as its float twin?

442 patients, 10 features; a fifth is held out, three seeds choose which and start the training.
Both networks have 10-20-1 neurons and the same training; R2 on the held-out patients.

Of every quantized network: the certified widths, whether `fhe="simulate"` predicts exactly what
`fhe="disable"` does on every held-out patient, and for the first seed one patient really encrypted.

    python bench/diabetes.py            # about half a minute
    python bench/diabetes.py --quick    # one seed, nothing encrypted, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import Session
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from refqnn.training import NeuralNetRegressor

SEEDS = 3
# The same for every seed; chosen on splits with seeds from 100 on, which are not used here.
SETTINGS: dict[str, Any] = {
    "n_w_bits": 3,
    "n_a_bits": 3,
    "n_accum_bits": 8,
    "module__n_hidden_neurons_multiplier": 2,
    "max_epochs": 20,
    "lr": 0.01,
    "optimizer__weight_decay": 1e-1,
}


@dataclass(frozen=True)
class Run:
    """One split.  R2 on its held-out rows; widths in bits, certified, per layer."""

    seed: int
    r2: float
    r2_float: float
    widths: tuple[int, ...]
    rows: int
    simulated_differ: int
    executed: int
    executed_differ: int
    seconds: float


def run(seed: int, executed: int, settings: dict[str, Any] = SETTINGS) -> Run:
    start = time.perf_counter()
    X, y = load_diabetes(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=seed)
    model = NeuralNetRegressor(**settings, random_state=seed, verbose=0)
    model, twin = model.fit_benchmark(X_train, y_train)
    clear = model.predict(X_test)
    model.compile()
    simulated = model.predict(X_test, fhe="simulate")
    encrypted = model.predict(X_test[:executed], fhe="execute") if executed else clear[:0]
    layers = model.certificate_.layers.values()
    return Run(
        seed=seed,
        r2=float(model.score(X_test, y_test)),
        r2_float=float(twin.score(X_test, y_test)),
        widths=tuple(layer.signed_bits for layer in layers),
        rows=len(X_test),
        simulated_differ=int((simulated != clear).sum()),
        executed=executed,
        executed_differ=int((encrypted != clear[:executed]).sum()),
        seconds=round(time.perf_counter() - start, 1),
    )


def measure(seeds: int, executed: int, report: Callable[[Run], None]) -> list[Run]:
    runs = []
    for seed in range(seeds):
        runs.append(run(seed, executed if seed == 0 else 0))
        report(runs[-1])
    return runs


def plot(runs: list[Run], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(5.6, 3.6)
    for r in runs:
        axes.plot([r.seed, r.seed], [r.r2_float, r.r2], color="lightgrey", zorder=1)
    seeds = [r.seed for r in runs]
    series = (
        ("float twin", "s", [r.r2_float for r in runs]),
        ("quantized", "o", [r.r2 for r in runs]),
    )
    for (label, marker, values), colour in zip(series, COLOURS):
        name = f"{label}, mean {mean(values):.3f}"
        axes.plot(seeds, values, marker, color=colour, label=name)
    axes.set_xticks(seeds)
    axes.set_xlabel("seed")
    axes.set_ylabel("R2 (share of variance explained)")
    widest = max(max(r.widths) for r in runs)
    title = f"Diabetes 10-20-1, {runs[0].rows} held-out patients"
    axes.set_title(f"{title},\nsums of at most {widest} bits: a marker for each seed")
    legend_below(axes)
    save_figure(fig, path)


def main() -> None:
    session = Session("diabetes", __doc__, "one seed, nothing written")
    torch.set_num_threads(1)

    def report(r: Run) -> None:
        session.say(
            f"seed {r.seed}  R2 {r.r2:.3f}  "
            f"float {r.r2_float:.3f}  {r.widths} bits  {r.simulated_differ} of {r.rows} differ "
            f"in simulation, {r.executed_differ} of {r.executed} encrypted"
        )

    if session.quick:
        measure(1, 0, report)
        return
    runs = measure(SEEDS, 1, report)
    content = {
        "settings": SETTINGS,
        "r2": mean(r.r2 for r in runs),
        "r2_float": mean(r.r2_float for r in runs),
        "runs": [asdict(r) for r in runs],
    }
    plot(runs, session.write(content))


if __name__ == "__main__":
    main()
