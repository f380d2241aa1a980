"""Whatever is brought to a door of an estimator, pipeline or client: an answer, or our error."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from refqnn import storage
from refqnn.errors import InvalidArgument, InvalidType, RefqnnError, ShapeMismatch
from refqnn.training import NeuralNetClassifier, NeuralNetRegressor, deploy, folded, progress
from refqnn.training.estimators import FloatNeuralNetClassifier

IRIS = load_iris()
X, Y = IRIS.data, IRIS.target
QUICK = {"max_epochs": 1, "verbose": 0, "random_state": 0}
SMALL = {"module__fan_in": 1, "module__hidden_sizes": (3,), **QUICK}

BAD_ROWS: dict[str, Any] = {
    "too few columns": X[:, :3],
    "too many columns": np.hstack([X, X]),
    "no columns": X[:, :0],
    "no rows": X[:0],
    "one dimension": X[:, 0],
    "three dimensions": X[None],
    "a number": 3.0,
    "nothing": None,
    "a word": "abcd",
    "words": [["a", "b", "c", "d"]] * 150,
    "objects": np.full((150, 4), object()),
    "ragged": [[1.0, 2.0], [3.0]],
    "NaN": np.where(X > 5, np.nan, X),
    "complex": X + 1j,
    "sparse": csr_matrix(X),
    "sparse tensor": torch.from_numpy(X).to_sparse(),
    "missing": pd.DataFrame(X).astype("Float64").mask(X > 5),
    "times": np.full((150, 4), "2020-01-01", dtype="M8[D]"),
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STEPS_PER_EPOCH", 2)


@pytest.fixture(scope="module")
def model() -> NeuralNetClassifier:
    return NeuralNetClassifier(**SMALL).fit(X, Y)


@pytest.fixture(scope="module")
def doors(model: NeuralNetClassifier) -> dict[str, Callable[[Any], object]]:
    """Everything that takes raw rows, by name."""
    twin = FloatNeuralNetClassifier(**QUICK).fit(X, Y)
    regressor = NeuralNetRegressor(**QUICK).fit(X, X[:, 0])
    network = folded(make_pipeline(StandardScaler(), model).fit(X, Y))
    names = ("predict", "predict_proba", "accumulators", "infer", "quantize_input", "compile")
    return {
        **{name: getattr(model, name) for name in names},
        "predict of the twin": twin.predict,
        "predict of the regressor": regressor.predict,
        "partial_fit": lambda rows: model.partial_fit(rows, Y),
        "prune": lambda rows: model.prune(rows, Y, 0.2),
        "score": lambda rows: model.score(rows, Y),
        "score of the twin": lambda rows: twin.score(rows, Y),
        "score of the regressor": lambda rows: regressor.score(rows, X[:, 0]),
        "quantize_input of a pipeline's network": network.quantize_input,
        "predict of a pipeline's network": network.predict,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_rows_that_make_no_sense(kind: str, doors: dict[str, Callable[[Any], object]]) -> None:
    for name, door in doors.items():
        if name == "compile" and kind == "nothing":  # compile() needs no rows
            continue
        with pytest.raises(RefqnnError) as raised:
            door(BAD_ROWS[kind])
        assert str(raised.value).lower().startswith("x"), (name, raised.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(BAD_ROWS.keys() - {"too few columns", "too many columns"}))
def test_rows_that_nothing_can_be_learned_from(kind: str) -> None:
    for estimator in (NeuralNetClassifier(**QUICK), NeuralNetRegressor(**QUICK)):
        with pytest.raises((InvalidArgument, InvalidType), match=r"^X"):
            estimator.fit(BAD_ROWS[kind], Y)
        with pytest.raises((InvalidArgument, InvalidType), match=r"^X"):
            estimator.fit_benchmark(BAD_ROWS[kind], Y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(BAD_ROWS.keys() - {"nothing"}))
def test_rows_that_a_client_cannot_encrypt(kind: str, model: NeuralNetClassifier) -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    client = fhe.FHEModelClient.__new__(fhe.FHEModelClient)
    client.client = SimpleNamespace(quantize=model.network_.quantize_input)  # as Client.quantize
    with pytest.raises(RefqnnError, match=r"^x"):
        client.quantize_encrypt_serialize(BAD_ROWS[kind])


def test_columns_in_another_order() -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = NeuralNetClassifier(**SMALL).fit(frame, Y)
    pipeline = make_pipeline(StandardScaler(), NeuralNetClassifier(**SMALL)).fit(frame, Y)
    network = folded(pipeline)
    for wrong in (frame[list("abdc")], frame.rename(columns={"a": "x"}), frame[list("abc")]):
        for door in (model.predict, model.infer, model.network_.predict, network.predict):
            with pytest.raises(RefqnnError):
                door(wrong)
    assert np.array_equal(model.predict(frame.astype(object)), model.predict(frame))


BAD_LABELS: dict[str, Any] = {
    "one class": np.zeros(150),
    "labels of mixed types": np.array(["a", 1, "b"] * 50, dtype=object),
    "a missing label": np.array(["a", None, "b"] * 50, dtype=object),
    "NaN": np.where(Y == 0, np.nan, Y),
    "too few": Y[:-1],
    "none": Y[:0],
    "targets": np.linspace(0, 1, 150),
    "a table": np.stack([Y, Y], axis=1),
    "a number": 3,
    "nothing": None,
    "sparse": csr_matrix(Y),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_make_no_sense(kind: str, model: NeuralNetClassifier) -> None:
    for fit in (NeuralNetClassifier(**QUICK).fit, NeuralNetClassifier(**QUICK).fit_benchmark):
        with pytest.raises((InvalidArgument, InvalidType), match=r"^y"):
            fit(X, BAD_LABELS[kind])
    if kind != "one class":  # of those that are known
        with pytest.raises((InvalidArgument, InvalidType), match=r"^y"):
            model.partial_fit(X, BAD_LABELS[kind])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(BAD_LABELS.keys() - {"one class"}))
def test_labels_that_nothing_can_be_scored_against(kind: str, model: NeuralNetClassifier) -> None:
    with pytest.raises((InvalidArgument, InvalidType), match=r"^y"):
        model.score(X, BAD_LABELS[kind])


def test_labels_of_another_type_than_before(model: NeuralNetClassifier) -> None:
    with pytest.raises((InvalidArgument, InvalidType), match=r"^y.*(label|type)"):
        model.partial_fit(X, IRIS.target_names[Y])
    with pytest.raises((InvalidArgument, InvalidType), match=r"^y"):
        NeuralNetClassifier(**QUICK).partial_fit(X, Y, classes=["a", 1])


BAD_TARGETS: dict[str, Any] = {
    "words": IRIS.target_names[Y],
    "NaN": np.where(Y == 0, np.nan, Y),
    "infinity": np.where(Y == 0, np.inf, Y),
    "too few": X[:-1, 0],
    "three dimensions": X[:, :, None],
    "complex": X[:, 0] + 1j,
    "sparse": csr_matrix(X),
    "nothing": None,
}


@pytest.mark.parametrize("kind", BAD_TARGETS)
def test_targets_that_make_no_sense(kind: str) -> None:
    with pytest.raises((InvalidArgument, InvalidType), match=r"^y"):
        NeuralNetRegressor(**QUICK).fit(X, BAD_TARGETS[kind])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BAD_TARGETS)
def test_targets_that_nothing_can_be_scored_against(kind: str) -> None:
    regressor = NeuralNetRegressor(**QUICK).fit(X, X[:, 0])
    with pytest.raises((InvalidArgument, InvalidType), match=r"^y"):
        regressor.score(X, BAD_TARGETS[kind])


@pytest.mark.parametrize(
    "weight", [X, np.full(150, -1.0), np.full(150, np.nan), ["a"] * 150, Y[:9]]
)
def test_weights_that_make_no_sense(weight: Any, model: NeuralNetClassifier) -> None:
    with pytest.raises((InvalidArgument, InvalidType), match=r"^sample_weight"):
        NeuralNetClassifier(**QUICK).fit(X, Y, sample_weight=weight)
    if np.size(weight) != 150 or weight[0] != -1.0:  # scores may subtract
        with pytest.raises((InvalidArgument, InvalidType), match=r"^sample_weight"):
            model.score(X, Y, sample_weight=weight)


def test_scores_are_those_of_scikit_learn(model: NeuralNetClassifier) -> None:
    weight, both = np.arange(150), X[:, :2]
    assert model.score(X, Y, weight) == accuracy_score(Y, model.predict(X), sample_weight=weight)
    assert model.score(torch.from_numpy(X), pd.Series(Y, dtype="Int64")) == model.score(X, Y)
    regressor = NeuralNetRegressor(**QUICK).fit(X, both)
    assert regressor.score(X, both, weight) == r2_score(
        both, regressor.predict(X), sample_weight=weight
    )


SETTINGS = {
    "numbers": ("lr", "batch_size", "max_epochs", "module__n_layers", "module__output_std"),
    "bits": ("module__n_w_bits", "module__n_a_bits", "module__n_accum_bits", "module__table_bits"),
    "sizes": ("module__hidden_sizes", "module__fan_in", "module__n_hidden_neurons_multiplier"),
    "objects": (
        "criterion",
        "optimizer",
        "callbacks",
        "train_split",
        "module__activation_function",
    ),
    "others": ("random_state", "module__n_prune_neurons_percentage", "optimizer__unknown"),
}


@pytest.mark.parametrize("names", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("value", ["words", -2, 1.5j, float("nan"), {}, object(), np.zeros(3)])
def test_settings_that_make_no_sense_are_refused_before_training(
    names: tuple[str, ...], value: Any
) -> None:
    for name, kind in product(names, (NeuralNetClassifier, NeuralNetRegressor)):
        estimator = kind(**{**QUICK, name: value})
        said = name.split("__")[-1].replace("fan_in", "budgets|max_nonzeros")
        with pytest.raises(RefqnnError, match=said):
            estimator.fit(X, Y)


def test_settings_may_be_numbers_of_numpy() -> None:
    settings = {"max_epochs": 1, "batch_size": 8, "module__n_layers": 3, "n_accum_bits": 9}
    of_numpy = {name: np.int64(value) for name, value in settings.items()}
    rest = {"lr": np.float32(0.5), "random_state": np.int64(3), "verbose": 0}
    models = [NeuralNetRegressor(**given, **rest).fit(X, X[:, 0]) for given in (settings, of_numpy)]
    assert len({storage.to_bytes(model.network_) for model in models}) == 1


def test_a_pipeline_of_steps_that_do_not_fit_together(tmp_path) -> None:
    scalers = StandardScaler().fit(X), MinMaxScaler().fit(X)
    last = NeuralNetClassifier(**SMALL).fit(X[:, :3], Y)
    pipeline = Pipeline([("a", scalers[0]), ("b", scalers[1]), ("c", last)])
    with pytest.raises(ShapeMismatch, match=r"steps of \[4, 4, 3\] features"):
        folded(pipeline)
    pytest.importorskip("concrete.fhe")
    with pytest.raises(ShapeMismatch, match=r"steps of \[4, 4, 3\] features"):
        deploy(pipeline, tmp_path / "c", tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "criterion",
    [
        {"criterion__weight": [1.0, 2.0]},
        {"criterion__weight": "balanced"},
        {"criterion__reduction": "none"},
        {"criterion": torch.nn.BCEWithLogitsLoss},
    ],
)
def test_a_criterion_that_does_not_fit_the_classes_is_named(criterion: dict[str, Any]) -> None:
    with pytest.raises((InvalidArgument, InvalidType), match="criterion"):
        NeuralNetClassifier(**QUICK, **criterion).fit(X, Y)


@pytest.mark.parametrize(
    "outputs", ["a", None, [1, 2, 3], [["a", "b", "c"]], np.zeros((2, 2, 2)), np.zeros((2, 5))]
)
def test_outputs_that_make_no_sense(outputs: Any, model: NeuralNetClassifier) -> None:
    for estimator in (model, NeuralNetRegressor(**QUICK).fit(X, X[:, 0])):
        with pytest.raises((InvalidArgument, InvalidType), match=r"^y_preds"):
            estimator.post_processing(outputs)


@pytest.mark.parametrize("accumulators", ["a", None, 0.5, [[1, 2], [3]], [[1.5, 2.0, 3.0]]])
def test_accumulators_that_make_no_sense(accumulators: Any, model: NeuralNetClassifier) -> None:
    with pytest.raises(InvalidType, match=r"^acc"):
        model.dequantize_output(accumulators)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", True),
        ("max_epochs", True),
        ("callbacks", [1]),
        ("callbacks", [("mine", int)]),
        ("callbacks__schedule", 0.5),
        ("dataset", "x"),
        ("iterator_train", 3),
    ],
)
def test_what_skorch_cannot_use_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{name}.*: got"):
        NeuralNetClassifier(**{**QUICK, name: value}).fit(X, Y)


@pytest.mark.parametrize("how", ["", "clear", 1, [], np.zeros((2, 4)), np.array(["disable"])])
def test_a_way_to_run_that_there_is_none_of(how: Any, model: NeuralNetClassifier) -> None:
    with pytest.raises(InvalidArgument, match=r"^fhe: got"):
        model.predict(X, fhe=how)
    with pytest.raises(InvalidArgument, match=r"^execute_in_fhe: got"):
        model.predict(X, execute_in_fhe=how)


@pytest.mark.parametrize("unit", [2.0**-1010, 2.0**-500, 2.0**500, 2.0**1020])
def test_the_unit_of_a_target_changes_no_integer(unit: float) -> None:
    plain, other = (NeuralNetRegressor(**QUICK).fit(X, X[:, 0] * u) for u in (1.0, unit))
    assert np.array_equal(plain.accumulators(X), other.accumulators(X))
    assert np.array_equal(plain.predict(X) * unit, other.predict(X))


def test_labels_are_kept_with_their_type_or_refused() -> None:
    truths = pd.Series(Y > 0, dtype="boolean")
    model = NeuralNetClassifier(**QUICK).fit(X, truths)
    assert model.predict(X).dtype == bool
    assert model.score(X, truths) == model.score(X, Y > 0)
    with pytest.raises(InvalidArgument, match=r"^y.*dtype datetime64"):
        NeuralNetClassifier(**QUICK).fit(X, np.array(["2024", "2025", "2026"], dtype="M8[D]")[Y])
