"""The doors of an estimator by themselves: numpy alone, from what their docstrings promise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from refqnn import IntFormat
from refqnn.doors import Features, Predictions, softmax
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch

BIT = IntFormat(1, signed=False)


class Frame:
    """What a data frame shows of itself."""

    def __init__(self, columns: list[str], rows: list[list[float]]) -> None:
        self.columns, self.rows = columns, rows

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.asarray(self.rows, dtype=dtype)


def test_each_feature_has_thresholds_of_its_own() -> None:
    door = Features([[0.5], [-1.0]], BIT, axis=1)
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert door.quantize([[0.5, -2.0], [below, -1.0]]).tolist() == [[1, 0], [0, 1]]
    # float64 first, float32 then: halfway above `below` rounds to the threshold
    assert door.quantize([[(0.5 + below) / 2 + 1e-12, 0.0]]).tolist() == [[1, 1]]


def test_columns_are_those_of_the_names_in_their_order() -> None:
    door = Features([[0.5], [-1.0]], BIT, axis=1, names=("a", "b"))
    assert door.quantize(Frame(["a", "b"], [[1.0, -3.0]])).tolist() == [[1, 0]]
    assert door.quantize([[1.0, -3.0]]).tolist() == [[1, 0]]
    for columns in (["b", "a"], ["a"], ["a", "c"]):
        with pytest.raises(InvalidArgument, match="columns"):
            door.quantize(Frame(columns, [[1.0] * len(columns)]))
    for x in ([["one", "two"]], SimpleNamespace()):
        with pytest.raises(InvalidType):
            door.quantize(x)


@pytest.mark.parametrize(("names", "error"), [((1, 2), InvalidType), (("a",), ShapeMismatch)])
def test_names_that_are_none(names: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match="names"):
        Features([[0.5], [-1.0]], BIT, axis=1, names=names)


@pytest.mark.parametrize("labels", [["no", "yes"], [5, 9], [False, True], [0.5, 2.0]])
def test_labels_are_those_of_the_largest_integer(labels: list[object]) -> None:
    door = Predictions(0.5, labels=labels)
    assert door.predict([[3, 4], [1, 1], [2**62, -5]]).tolist() == [labels[1], labels[0], labels[0]]
    with pytest.raises(ShapeMismatch, match="acc"):
        door.predict([[1, 2, 3]])
    assert not door.labels.flags.writeable


def test_labels_that_are_none() -> None:
    for labels in ([[1, 2]], [object(), object()]):
        with pytest.raises(InvalidType, match="labels"):
            Predictions(0.5, labels=labels)
    for scale in (-0.5, [0.5, 0.25]):
        with pytest.raises(InvalidArgument):
            Predictions(scale, labels=["no", "yes"])


def test_labels_want_an_integer_each() -> None:
    door = Predictions(0.5, labels=["no", "yes"])
    for acc in ([3, 4], [[3, 4, 5]], [[[3, 4]]], 3):
        with pytest.raises(ShapeMismatch, match="acc"):
            door.predict(acc)


def test_targets_are_dequantized() -> None:
    assert Predictions(0.5, 100.0, flat=True).predict([[3], [-2]]).tolist() == [101.5, 99.0]
    assert Predictions(0.5, 100.0).predict([[3], [-2]]).tolist() == [[101.5], [99.0]]
    with pytest.raises(NotCovered, match="targets"):
        Predictions(0.5).predict_proba([[3]])


def test_probabilities_are_the_softmax_of_the_outputs() -> None:
    door = Predictions(0.5, labels=["no", "yes"])
    p = door.predict_proba([[4, 0], [0, 0], [2000, -2000]])
    assert p.dtype == np.float64
    assert p[1].tolist() == [0.5, 0.5]
    assert p[2].tolist() == [1.0, 0.0]
    assert p[0, 0] == softmax(np.array([[2.0, 0.0]]))[0, 0] == 1 / (1 + np.exp(-2.0))
