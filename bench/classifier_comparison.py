"""Classifier comparison: decision regions of a float network and of ours, on five planes.

Moons, circles, a linearly separable set, the checkerboard and two spirals; 1,500 points to train
and 500 to test on each, three seeds.  `NeuralNetClassifier` with two hidden layers of 32 neurons,
3-bit weights and activations, 5-bit inputs and accumulators of at most 8 bits, beside the float
twin that `fit_benchmark` gives.  The settings are the same on all five.

The figure shows the networks of the first seed; accuracies in its titles are means over the seeds.
Classes of the PyTorch module and of the integers are compared on every point of each picture.

    python bench/classifier_comparison.py            # 3 minutes on one core
    python bench/classifier_comparison.py --quick    # moons, one seed, nothing written
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import Session
from numpy.typing import NDArray
from sklearn.datasets import make_circles, make_moons
from sklearn.model_selection import train_test_split

from refqnn import datasets
from refqnn.training import NeuralNetClassifier

SEEDS, ROWS, RESOLUTION = 3, 2000, 200
SETTINGS: dict[str, Any] = {
    "module__hidden_sizes": (32, 32),
    "module__n_input_bits": 5,
    "n_accum_bits": 8,
    "max_epochs": 15,
}
Split = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # X, X_test, y, y_test


# --- the planes ---------------------------------------------------------------------------------


def moons(seed: int) -> Split:
    return _split(*make_moons(ROWS, noise=0.2, random_state=seed), seed)


def circles(seed: int) -> Split:
    return _split(*make_circles(ROWS, noise=0.1, factor=0.5, random_state=seed), seed)


def linear(seed: int) -> Split:
    """A normal cloud cut by an oblique line, its halves moved 0.2 apart on either side."""
    normal = np.array([0.8, 0.6])
    X = np.random.default_rng(seed).normal(size=(ROWS, 2))
    side = X @ normal > 0
    return _split(X + np.where(side, 0.2, -0.2)[:, None] * normal, side.astype(int), seed)


def checkerboard(seed: int) -> Split:
    data = datasets.load("checkerboard", seed)  # its rows come shuffled
    return data.X_train[: 3 * ROWS // 4], data.X_test, data.y_train[: 3 * ROWS // 4], data.y_test


def spirals(seed: int) -> Split:
    """Two arms of one and a half turns; noise of deviation 0.3 in units where an arm is 9 long."""
    rng = np.random.default_rng(seed)
    y = np.arange(ROWS) % 2
    angle = 3 * np.pi * np.sqrt(rng.uniform(0.03, 1.0, ROWS))
    arm = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _split(arm * (1 - 2 * y[:, None]) + rng.normal(0.0, 0.3, (ROWS, 2)), y, seed)


def _split(X: NDArray[Any], y: NDArray[Any], seed: int) -> Split:
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, random_state=seed, stratify=y)
    return X, X_test, y, y_test


PLANES = {
    "moons": moons,
    "circles": circles,
    "linearly separable": linear,
    "checkerboard": checkerboard,
    "spirals": spirals,
}


# --- measurement --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """Both classifiers on one plane."""

    plane: str
    seed: int
    accuracy: float
    float_accuracy: float
    widths: tuple[int, ...]  # certified, per layer
    differ: int  # classes of the module and of the integers, on test points and picture
    X_test: NDArray[Any]
    y_test: NDArray[Any]
    axes: tuple[NDArray[Any], NDArray[Any]]
    regions: NDArray[Any]  # classes [RESOLUTION, RESOLUTION]
    float_regions: NDArray[Any]

    def to_json(self) -> dict[str, Any]:
        numbers = ("plane", "seed", "accuracy", "float_accuracy", "widths", "differ")
        return {name: getattr(self, name) for name in numbers}


def measure(plane: str, seed: int, epochs: int = SETTINGS["max_epochs"]) -> Picture:
    X, X_test, y, y_test = PLANES[plane](seed)
    settings = {**SETTINGS, "max_epochs": epochs}
    model = NeuralNetClassifier(**settings, random_state=seed, verbose=0)
    model, twin = model.fit_benchmark(X, y)
    shown = np.concatenate([X, X_test])
    margin = 0.05 * np.ptp(shown, axis=0)
    lo, hi = shown.min(axis=0) - margin, shown.max(axis=0) + margin
    across, up = (np.linspace(lo[i], hi[i], RESOLUTION) for i in range(2))
    points = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)  # [RESOLUTION**2, 2]
    everything = np.concatenate([points, X_test])
    classes = model.predict(everything)
    module_classes = model.classes_[model.infer(everything).argmax(dim=1).numpy()]
    return Picture(
        plane=plane,
        seed=seed,
        accuracy=model.score(X_test, y_test),
        float_accuracy=twin.score(X_test, y_test),
        widths=tuple(layer.signed_bits for layer in model.certificate_.layers.values()),
        differ=int((module_classes != classes).sum()),
        X_test=X_test,
        y_test=y_test,
        axes=(across, up),
        regions=classes[: len(points)].reshape(RESOLUTION, RESOLUTION),
        float_regions=twin.predict(points).reshape(RESOLUTION, RESOLUTION),
    )


def means(pictures: list[Picture], plane: str) -> tuple[float, float]:
    """(ours, float) over the seeds."""
    group = [picture for picture in pictures if picture.plane == plane]
    return mean(p.accuracy for p in group), mean(p.float_accuracy for p in group)


def table(pictures: list[Picture]) -> None:
    print(f"\n{'plane':<20} {'float':>6} {'ours':>6} {'ours-float':>11} {'bits':>5} {'differ':>7}")
    for plane in dict.fromkeys(picture.plane for picture in pictures):
        group = [picture for picture in pictures if picture.plane == plane]
        ours, twin = means(pictures, plane)
        bits = max(max(picture.widths) for picture in group)
        differ = sum(picture.differ for picture in group)
        print(f"{plane:<20} {twin:>6.3f} {ours:>6.3f} {ours - twin:>+11.3f} {bits:>5} {differ:>7}")


def plot(pictures: list[Picture], path: Path) -> None:
    """Upper row the float twins, lower row ours; the held-out points on top."""
    from refqnn.plotting import COLOURS, figure, save_figure

    first = list({picture.plane: picture for picture in reversed(pictures)}.values())[::-1]
    fig, grid = figure(2.9 * len(first), 6.4, columns=len(first), rows=2)
    grid = grid.reshape(2, len(first))
    for (above, below), picture in zip(grid.T, first):
        ours, twin = means(pictures, picture.plane)
        bits = max(picture.widths)
        rows = (
            (above, picture.float_regions, f"{picture.plane}\nfloat: {twin:.3f}"),
            (below, picture.regions, f"3-bit, accumulators ≤ {bits} bits: {ours:.3f}"),
        )
        for axes, regions, title in rows:
            axes.contourf(
                *picture.axes, regions, levels=[-0.5, 0.5, 1.5], colors=COLOURS, alpha=0.3
            )
            axes.contour(*picture.axes, regions, levels=[0.5], colors="black", linewidths=0.7)
            for label, marker in ((0, "o"), (1, "^")):
                inside = picture.X_test[picture.y_test == label]
                axes.scatter(
                    *inside.T,
                    s=12,
                    marker=marker,
                    color=COLOURS[label],
                    edgecolor="white",
                    linewidth=0.3,
                )
            axes.set_title(title, fontsize=10)
            axes.set_xticks([])
            axes.set_yticks([])
    points = len(first[0].y_test)
    seeds = len(pictures) // len(first)
    fig.suptitle(
        f"{points:,} held-out points, regions of the first seed, mean accuracy of {seeds} seeds"
    )
    save_figure(fig, path)


def main() -> None:
    session = Session("classifier_comparison", __doc__, "moons, one seed, nothing written")
    torch.set_num_threads(1)
    pictures: list[Picture] = []

    def report(picture: Picture) -> None:
        pictures.append(picture)
        session.say(
            f"{picture.plane:<20} seed {picture.seed}"
            f"  float {picture.float_accuracy:.3f}  ours {picture.accuracy:.3f}"
            f"  {picture.widths} bits, {picture.differ} differ"
        )

    if session.quick:
        report(measure("moons", 0, epochs=3))
        table(pictures)
        return
    for plane in PLANES:
        for seed in range(SEEDS):
            report(measure(plane, seed))
    table(pictures)
    content = {
        "settings": SETTINGS,
        "mean_accuracy": {
            plane: dict(zip(("ours", "float"), (round(v, 4) for v in means(pictures, plane))))
            for plane in PLANES
        },
        "runs": [picture.to_json() for picture in pictures],
    }
    plot(pictures, session.write(content))


if __name__ == "__main__":
    main()
