"""A pipeline of scikit-learn that ends in one of our estimators, as one network of raw rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn import preprocessing
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from refqnn.doors import Features
from refqnn.errors import InvalidType, NotCovered, ShapeMismatch, mismatch
from refqnn.network import Network
from refqnn.training.base import as_kept
from refqnn.training.estimators import NeuralNetClassifier, NeuralNetRegressor

if TYPE_CHECKING:
    from refqnn.fhe import Circuit

__all__ = ["deploy", "folded"]

# Each column by itself, nondecreasing.
_SCALERS = tuple(
    getattr(preprocessing, name)
    for name in ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler")
)


def folded(pipeline: Pipeline) -> Network:
    """The network from the pipeline's raw rows to its labels or targets.

    A scaler of single columns, and the estimator's own standardisation, are a nondecreasing
    function of each feature, so the input door holds the least float32 of each of its codes, found
    with that function itself.  Equal to the pipeline on every row of float32 numbers in an array of
    float64; in one of float32, scikit-learn's scalers round otherwise, next to a threshold.

    Raises: InvalidType unless the last step is a `NeuralNetClassifier` or `NeuralNetRegressor`;
        NotCovered that names every step which mixes columns, makes new ones, or is no scaler,
        and for an estimator of another target, whose door compares;
        ShapeMismatch for steps fitted on different numbers of features; NotFittedError.

    >>> from sklearn.pipeline import make_pipeline
    >>> X = np.random.default_rng(0).normal(size=(60, 4)) * 1000
    >>> last = NeuralNetClassifier(max_epochs=3, random_state=0, verbose=0)
    >>> pipeline = make_pipeline(preprocessing.MinMaxScaler(), last).fit(X, X[:, 0] > 0)
    >>> rows = X.astype(np.float32)
    >>> bool((folded(pipeline).predict(rows).argmax(axis=1) == pipeline.predict(rows)).all())
    True
    """
    if not isinstance(pipeline, Pipeline):
        raise InvalidType(mismatch("pipeline", type(pipeline).__name__, "a Pipeline"))
    *steps, (_, last) = pipeline.steps
    if not isinstance(last, NeuralNetClassifier | NeuralNetRegressor):
        expected = "a NeuralNetClassifier or NeuralNetRegressor as its last step"
        raise InvalidType(mismatch("pipeline", type(last).__name__, expected))
    steps = [(name, step) for name, step in steps if step is not None and step != "passthrough"]
    others = [f"{name} ({type(s).__name__})" for name, s in steps if type(s) not in _SCALERS]
    if others:
        expected = ", ".join(scaler.__name__ for scaler in _SCALERS)
        raise NotCovered(
            mismatch("pipeline", ", ".join(others), f"{expected}: compute the others on the client")
        )
    fitted = [*(s for _, s in steps), last]
    for step in fitted:
        check_is_fitted(step)
    widths = [step.n_features_in_ for step in fitted]
    if len(set(widths)) > 1:
        expected = "steps that were fitted on equally many"
        raise ShapeMismatch(mismatch("pipeline", f"steps of {widths} features", expected))
    if last.target is not None:
        got = f"an estimator with target={last.target!r}"
        raise NotCovered(mismatch("pipeline", got, "one with target=None"))
    names = getattr(steps[0][1] if steps else last, "feature_names_in_", None)

    scalers = [_nameless(step) for _, step in steps]
    network, door = last.network_, last.network_.input_quantizer
    assert door is not None

    def codes(rows: NDArray[np.float32]) -> NDArray[np.int64]:
        values = rows.astype(np.float64)
        for scaler in scalers:
            values = scaler.transform(values)
        return door.quantize(as_kept(values))

    features = Features.of_function(codes, network.input_shape[0], door.format, names)
    return network.with_doors(features, network.output_dequantizer)


def _nameless(scaler: Any) -> Any:
    """A fitted scaler that takes and gives plain arrays: names say nothing to the numbers."""
    twin = type(scaler)(**scaler.get_params())
    twin.__dict__.update({k: v for k, v in vars(scaler).items() if k != "feature_names_in_"})
    return twin.set_output(transform="default")


def deploy(pipeline: Pipeline, client: str | Path, server: str | Path, **options: Any) -> Circuit:
    """Compile a fitted pipeline whole and write both halves; raw rows go in, labels come out.

    Args:
        pipeline: scalers of single columns, then an estimator of ours; see `folded`.
        client, server: files to write.
        options: of `refqnn.fhe.compile`.

    Returns: the circuit.

    Raises: as `folded` and `refqnn.fhe.compile`.
    """
    from refqnn.fhe import compile

    circuit = compile(folded(pipeline), **options)
    circuit.save_client(client)
    circuit.save_server(server)
    return circuit
