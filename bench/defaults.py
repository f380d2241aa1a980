"""The defaults: do the estimators keep up with their float twins?

`NeuralNetClassifier()` and `NeuralNetRegressor()`, constructor arguments untouched but for seed and
silence, and the float twins with the same sizes and training: 3-bit weights, 8-bit accumulators.
Five-fold cross-validation, shuffled by three seeds (and stratified by class), so that each row is
a test row once for each seed.  Scores are accuracies; of diabetes, R2.  With the first seed every
test row also runs through the compiled circuit in simulation; `differ` counts classes, or targets,
and integer outputs that are not those of the numpy network.

`wine_gaps` and `made_gaps` have a named third of the values in every third column, and a tenth of
all values missing: a Pipeline puts in medians, tells where, and makes columns of names.

The peer column is Concrete ML 1.9 at its defaults on these data, where it was measured: float twin
and quantized network (one split each).

Results are written set by set.  Seconds are those of the processor, of fitting alone; each set's
commit stands beside it.

    python bench/defaults.py            # 12 minutes on one core
    python bench/defaults.py iris wine  # these alone; the others stay as they were measured
    python bench/defaults.py --quick    # iris, two folds, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import sklearn.datasets
import torch
from common import Session, commit, published
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from refqnn.training import NeuralNetClassifier, NeuralNetRegressor

SEEDS, FOLDS = 3, 5
LIMIT = 0.01  # of the score, behind the float twin
DATA = ("iris", "wine", "breast_cancer", "digits", "diabetes", "wine_gaps", "made_gaps")
REGRESSION = ("diabetes",)
PEER = {
    name: (accuracy["float"], accuracy["quantized"])
    for name, accuracy in published("concrete_ml")["accuracy"].items()
}


@dataclass(frozen=True)
class Fold:
    """One fit: scores on the held-out rows, certified widths, seconds of training."""

    data: str
    seed: int
    fold: int
    rows: int
    accuracy: float  # or R2
    float_accuracy: float
    widths: tuple[int, ...]
    seconds: float
    float_seconds: float
    differ: int | None  # answers and outputs, disable against simulate; None: not compiled


def rows_of(name: str) -> tuple[pd.DataFrame, Any]:
    name, gaps, _ = name.partition("_gaps")
    if name == "made":
        X, y = sklearn.datasets.make_classification(
            1000, 12, n_informative=6, n_classes=3, random_state=0
        )
    else:
        X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    frame = pd.DataFrame(X).rename(columns=str)
    if gaps:
        for column in frame.columns[::3]:
            thirds = pd.qcut(frame[column], 3, labels=["low", "middle", "high"])
            frame[column] = thirds.astype(object)
        frame = frame.mask(np.random.default_rng(0).random(frame.shape) < 0.1)
    return frame, y


def preparation() -> Any:
    """Medians for missing numbers, which are told; a column for each name and for a missing one."""
    names = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="missing"),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    numbers = SimpleImputer(strategy="median", add_indicator=True)
    return make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (names, make_column_selector(dtype_exclude="number")),
    )


def fit(name: str, seed: int, fold: int, train: Any, test: Any, compiled: bool) -> Fold:
    (X_train, y_train), (X_test, y_test) = train, test
    kind = NeuralNetRegressor if name in REGRESSION else NeuralNetClassifier
    model = kind(random_state=seed, verbose=0)
    twin = kind._twin_class(**model.get_params_for_benchmark())
    fitted, durations = [], []
    for last in (model, twin):
        start = time.process_time()
        fitted.append(make_pipeline(preparation(), last).fit(X_train, y_train))
        durations.append(time.process_time() - start)
    ours, theirs = fitted
    differ = None
    if compiled:
        prepared = ours[:-1].transform(X_test)
        model.compile(prepared)
        differ = sum(
            int((answer(prepared, fhe="simulate") != answer(prepared)).sum())
            for answer in (model.predict, model.accumulators)
        )
    return Fold(
        data=name,
        seed=seed,
        fold=fold,
        rows=len(X_test),
        accuracy=ours.score(X_test, y_test),
        float_accuracy=theirs.score(X_test, y_test),
        widths=tuple(layer.signed_bits for layer in model.certificate_.layers.values()),
        seconds=durations[0],
        float_seconds=durations[1],
        differ=differ,
    )


def folds(name: str, seed: int) -> Iterator[Fold]:
    X, y = rows_of(name)
    kind = KFold if name in REGRESSION else StratifiedKFold
    for fold, (train, test) in enumerate(kind(FOLDS, shuffle=True, random_state=seed).split(X, y)):
        rows = ((X.iloc[part], y[part]) for part in (train, test))
        yield fit(name, seed, fold, *rows, compiled=seed == 0)


def accuracies(runs: list[Fold], name: str, seed: int) -> tuple[float, float]:
    """(quantized, float) over all rows of a data set, each predicted once."""
    chosen = [run for run in runs if run.data == name and run.seed == seed]
    rows = sum(run.rows for run in chosen)
    return (
        sum(run.accuracy * run.rows for run in chosen) / rows,
        sum(run.float_accuracy * run.rows for run in chosen) / rows,
    )


def summary(runs: list[Fold]) -> dict[str, dict[str, Any]]:
    result = {}
    for name in dict.fromkeys(run.data for run in runs):
        group = [run for run in runs if run.data == name]
        pairs = [accuracies(runs, name, seed) for seed in dict.fromkeys(r.seed for r in group)]
        ours, twin = mean(pair[0] for pair in pairs), mean(pair[1] for pair in pairs)
        result[name] = {
            "accuracy": round(ours, 4),
            "float_accuracy": round(twin, 4),
            "difference": round(ours - twin, 4),
            "within_limit": ours >= twin - LIMIT,
            "certified_bits": max(max(run.widths) for run in group),
            "differ": sum(run.differ or 0 for run in group),
            "rows_simulated": sum(run.rows for run in group if run.differ is not None),
            "seconds": round(mean(run.seconds for run in group), 2),
            "seconds_over_float": round(
                sum(r.seconds for r in group) / sum(r.float_seconds for r in group), 1
            ),
        }
    return result


def table(runs: list[Fold]) -> None:
    print(
        f"\n{'data':<14} {'float':>6} {'ours':>6} {'ours-float':>10} {'':>12} {'bits':>4}"
        f" {'differ':>12} {'fit, s':>7}   peer float/quantized"
    )
    for name, row in summary(runs).items():
        verdict = f"within {LIMIT}" if row["within_limit"] else f"beyond {LIMIT}"
        peer = " / ".join(f"{value:.3f}" for value in PEER[name]) if name in PEER else "-"
        differ = f"{row['differ']} of {row['rows_simulated']}"
        print(
            f"{name:<14} {row['float_accuracy']:>6.3f} {row['accuracy']:>6.3f}"
            f" {row['difference']:>+10.3f} {verdict:>12} {row['certified_bits']:>4}"
            f" {differ:>12} {row['seconds']:>7.1f}   {peer}"
        )


def plot(runs: list[Fold], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(8.0, 3.8)
    names = list(dict.fromkeys(run.data for run in runs))
    groups: list[tuple[str, str, int, Callable[[str], list[float]]]] = [
        ("float twin", "s", 1, lambda name: by_seed(name, 1)),
        ("at the defaults", "o", 0, lambda name: by_seed(name, 0)),
        ("peer: float", "D", 4, lambda name: [PEER[name][0]] if name in PEER else []),
        ("peer: quantized", "X", 5, lambda name: [PEER[name][1]] if name in PEER else []),
    ]

    def by_seed(name: str, which: int) -> list[float]:
        seeds = dict.fromkeys(run.seed for run in runs if run.data == name)
        return [accuracies(runs, name, seed)[which] for seed in seeds]

    for number, (label, marker, colour, values) in enumerate(groups):
        x, y = [], []
        for position, name in enumerate(names):
            y += values(name)
            x += [position + (number - 1.5) * 0.16] * len(values(name))
        axes.plot(x, y, marker, color=COLOURS[colour], ms=6, alpha=0.75, label=label)
    rows = {name: sum(r.rows for r in runs if (r.data, r.seed) == (name, 0)) for name in names}
    axes.set_xticks(range(len(names)), [f"{name}\n{rows[name]:,} rows" for name in names])
    axes.set_ylabel("accuracy (diabetes: R2) on held-out rows")
    seeds = len({run.seed for run in runs})
    axes.set_title(f"Default arguments, {FOLDS} folds: a marker for each of {seeds} seeds")
    axes.grid(axis="y", alpha=0.3)
    legend_below(axes)
    save_figure(fig, path)


def main() -> None:
    session = Session("defaults", __doc__, "iris, two folds, nothing written", DATA)
    torch.set_num_threads(1)
    runs: list[Fold] = []

    def report(run: Fold) -> None:
        runs.append(run)
        differ = "" if run.differ is None else f"  {run.differ} of {run.rows} differ"
        session.say(
            f"{run.data:<14} seed {run.seed} fold {run.fold}"
            f"  float {run.float_accuracy:.3f}  ours {run.accuracy:.3f}  {run.widths} bits{differ}"
        )

    if session.quick:
        quick = folds("iris", seed=0)
        for _ in range(2):
            report(next(quick))
        table(runs)
        return
    written, now = session.written(), commit()
    kept = [Fold(**run) for run in written.get("runs", ())]
    before = written.get("machine", {}).get("commit")
    commits = {run.data: before for run in kept} | written.get("commits", {})
    for name in session.parts:
        kept = [run for run in kept if run.data != name]
        runs = []
        for seed in range(SEEDS):
            for run in folds(name, seed):
                report(run)
        commits[name] = now
        kept = sorted([*kept, *runs], key=lambda run: DATA.index(run.data))
        content = {
            "folds": FOLDS,
            "limit": LIMIT,
            "peer": PEER,
            "commits": commits,
            "summary": summary(kept),
            "runs": [asdict(run) for run in kept],
        }
        plot(kept, session.write(content))
    table(kept)


if __name__ == "__main__":
    main()
