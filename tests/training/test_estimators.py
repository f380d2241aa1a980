"""The estimators: scikit-learn's rules, one function in every form, the accumulator guarantee."""

import io
import pickle
import re
import warnings
import zipfile
from contextlib import redirect_stdout
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from refqnn import datasets
from refqnn.errors import (
    CircuitError,
    FileFormatError,
    InvalidArgument,
    NotCompiled,
    NotCovered,
)
from refqnn.training import NeuralNetClassifier, NeuralNetRegressor, progress, quantizers
from refqnn.training.estimators import FloatNeuralNetClassifier, FloatNeuralNetRegressor
from refqnn.training.estimators import load as load_estimator

IRIS = load_iris()
QUICK = {"max_epochs": 2, "verbose": 0, "random_state": 0}

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a weight of 2 is not the row twice: the batches of stochastic gradients differ"
    ),
    "check_do_not_raise_errors_in_init_or_set_params": (
        "it passes the name of **parameters as a parameter, and unknown names are an error"
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def iris_model():
    return NeuralNetClassifier(verbose=0, random_state=0, max_epochs=5).fit(
        IRIS.data, IRIS.target_names[IRIS.target]
    )


class Recorder(Callback):
    """Keeps the losses that a user's callback sees."""

    def __init__(self, losses):
        self.losses = losses

    def on_epoch_end(self, net, **kwargs):
        self.losses.append(net.history[-1, "train_loss"])


def plain_parameters(model):
    return {name: v for name, v in model.get_params().items() if name != "train_split"}


def random_rows(n, features, seed=0):
    """Rows whose codes cover the whole input format, saturation included."""
    return np.random.default_rng(seed).normal(scale=2.0, size=(n, features))


# --- scikit-learn -------------------------------------------------------------------------------


ACCURATE = {"check_classifiers_train", "check_regressors_train"}  # ask for a score


def run_sklearn_checks(estimator, monkeypatch):
    failed = []
    steps = progress.STEPS_PER_EPOCH
    for instance, check in estimator_checks_generator(estimator, mark=None):
        name = check.func.__name__
        if name in EXPECTED_FAILURES:
            continue
        monkeypatch.setattr(progress, "STEPS_PER_EPOCH", steps if name in ACCURATE else 4)
        try:
            check(instance)
        except pytest.skip.Exception:
            continue
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                failed.append((name, repr(error)[:300]))
    assert failed == []


@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks_of_the_classifier(monkeypatch):
    run_sklearn_checks(NeuralNetClassifier(max_epochs=1, verbose=0), monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks_of_the_regressor(monkeypatch):
    run_sklearn_checks(NeuralNetRegressor(max_epochs=3, verbose=0), monkeypatch)


def test_pipeline_grid_search_and_cross_validation(short_epochs):
    quick = {**QUICK, "max_epochs": 6}
    pipeline = make_pipeline(StandardScaler(), NeuralNetClassifier(**quick))
    grid = {"neuralnetclassifier__n_w_bits": [2, 3]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(IRIS.data, IRIS.target)
    best = search.best_estimator_[-1]
    bits = search.best_params_["neuralnetclassifier__n_w_bits"]
    assert best.module_.n_w_bits == bits
    weights = best.network_.accumulators()[0].op.weight
    assert weights.min() >= -(2 ** (bits - 1))
    assert weights.max() <= 2 ** (bits - 1) - 1
    scores = cross_val_score(NeuralNetClassifier(**quick), IRIS.data, IRIS.target, cv=2)
    assert scores.min() > 0.6


def test_clone_and_repr_keep_parameters():
    model = NeuralNetClassifier(
        n_accum_bits=7, criterion__weight=[1.0, 2.0], module__hidden_sizes=(5,), lr=0.5
    )
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.get_params()["module__n_accum_bits"] == 7
    assert "module__hidden_sizes=(5,)" in repr(copy)
    copy.set_params(power_of_two_scaling=False, n_a_bits=2)
    assert copy.module__power_of_two_scaling is False
    assert copy.module__n_a_bits == 2


def test_class_weight_names_what_works():
    with pytest.raises(InvalidArgument, match=r"criterion__weight.*classes_.*sample_weight"):
        NeuralNetClassifier(class_weight="balanced")
    with pytest.raises(InvalidArgument, match="sample_weight"):
        NeuralNetRegressor().set_params(class_weight={0: 1.0})


@pytest.mark.parametrize("name", ["module", "n_bits", "module__input_dim", "module__n_outputs"])
def test_parameters_that_come_from_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: got"):
        NeuralNetClassifier(**{name: 3})
    with pytest.raises(ValueError, match=f"{name}: got"):
        NeuralNetRegressor().set_params(**{name: 3})


def test_unknown_parameters_are_refused():
    with pytest.raises(InvalidArgument, match="n_wbits"):
        NeuralNetClassifier(n_wbits=3)
    with pytest.raises(InvalidArgument, match="module__n_wbits"):
        NeuralNetClassifier(module__n_wbits=3)


def test_every_kind_of_table_gives_the_same_network(short_epochs):
    X, y = IRIS.data, IRIS.target
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(4)])
    inputs = {
        "numpy": (X, y),
        "pandas": (frame, pd.Series(y)),
        "torch": (torch.from_numpy(X), torch.from_numpy(y)),
        "lists": (X.tolist(), y.tolist()),
    }
    digests = {
        name: NeuralNetClassifier(**{**QUICK, "max_epochs": 1}).fit(*data).network_.digest
        for name, data in inputs.items()
    }
    assert len(set(digests.values())) == 1
    model = NeuralNetClassifier(**QUICK).fit(frame, y)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    assert model.predict(frame[:5].astype(np.float32)).shape == (5,)


def test_names_can_be_asked_for_before_there_is_a_circuit(iris_model):
    fresh = NeuralNetClassifier()
    for model in (clone(iris_model), pickle.loads(pickle.dumps(iris_model)), fresh):
        assert not hasattr(model, "fhe_circuit")
        assert getattr(model, "fhe_circuit", None) is None
        assert {"fit", "predict", "compile"} <= set(dir(model))
    with pytest.raises(NotCompiled, match="call compile first") as raised:
        iris_model.fhe_circuit  # noqa: B018
    assert isinstance(raised.value, CircuitError)
    assert isinstance(raised.value, AttributeError)


def test_nothing_works_before_fit():
    model = NeuralNetClassifier()
    for call in (model.predict, model.predict_proba, model.quantize_input, model.infer):
        with pytest.raises(NotFittedError):
            call(IRIS.data)
    for name in ("history", "fhe_circuit", "input_quantizers", "onnx_model", "n_bits_quant"):
        with pytest.raises(NotFittedError):
            getattr(model, name)


# --- training -----------------------------------------------------------------------------------


def test_seeds_decide_everything(short_epochs):
    def digest(**parameters):
        model = NeuralNetClassifier(**{**QUICK, "max_epochs": 1, **parameters})
        return model.fit(IRIS.data, IRIS.target).network_.digest

    assert digest(random_state=3) == digest(random_state=3) != digest(random_state=4)
    torch.manual_seed(5)
    first = digest(random_state=None)
    assert digest(random_state=None) != first
    torch.manual_seed(5)
    assert digest(random_state=None) == first


def test_training_leaves_the_random_state_of_torch_alone(short_epochs):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    NeuralNetClassifier(**{**QUICK, "max_epochs": 1}).fit(IRIS.data, IRIS.target)
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_a_table_and_silence_is_silence(short_epochs):
    def printed(verbose):
        out = io.StringIO()
        with redirect_stdout(out):
            NeuralNetClassifier(max_epochs=2, verbose=verbose, random_state=0).fit(
                IRIS.data, IRIS.target
            )
        return out.getvalue()

    assert printed(0) == ""
    lines = printed(1).splitlines()
    assert "train_loss" in lines[0]
    assert "train_acc" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["1", "2"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table_has_colours_in_a_terminal_only(short_epochs):
    def printed(out, **options):
        with redirect_stdout(out):
            NeuralNetClassifier(**{**QUICK, "verbose": 1}, **options).fit(IRIS.data, IRIS.target)
        return out.getvalue()

    lines = []
    piped, shown = printed(io.StringIO()), printed(Terminal())
    assert printed(Terminal(), callbacks__print_log__sink=lines.append) == ""
    assert "\x1b[" in shown
    assert "\x1b[" not in piped + "".join(lines)
    without_colours = re.sub(r"\x1b\[\d+m", "", shown)
    for text in (without_colours, "\n".join(lines)):  # the last column is a time
        rows, expected = text.splitlines(), piped.splitlines()
        assert [row.split()[:-1] for row in rows] == [row.split()[:-1] for row in expected]


def test_losses_and_epochs_are_told_as_scikit_learn_tells_them(short_epochs):
    peer = MLPClassifier((4,), max_iter=3, warm_start=True)
    model = NeuralNetClassifier(**{**QUICK, "max_epochs": 3}, warm_start=True)
    for name in ("loss_curve_", "n_iter_"):
        assert not hasattr(model, name)
    for epochs in (3, 6):  # a warm start counts on
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer.fit(IRIS.data, IRIS.target)
        model.fit(IRIS.data, IRIS.target)
        assert len(model.loss_curve_) == len(peer.loss_curve_) == epochs
        assert model.n_iter_ == epochs
        assert {type(loss) for loss in model.loss_curve_} == {float}
    assert model.loss_curve_ == model.history[:, "train_loss"]
    model.partial_fit(IRIS.data, IRIS.target)
    peer.partial_fit(IRIS.data, IRIS.target)
    assert len(peer.loss_curve_) == 7  # one epoch each there, max_epochs here
    assert len(model.loss_curve_) == model.n_iter_ == 9
    copy = pickle.loads(pickle.dumps(model))
    assert (copy.loss_curve_, copy.n_iter_) == (model.loss_curve_, model.n_iter_)
    again = model.set_params(warm_start=False).fit(IRIS.data, IRIS.target)
    assert again.n_iter_ == 3


def test_history_validation_split_and_callbacks(short_epochs):
    losses = []
    record = Recorder(losses)
    model = NeuralNetClassifier(
        train_split=ValidSplit(5, stratified=True), callbacks=[("record", record)], **QUICK
    )
    model.fit(IRIS.data, IRIS.target)
    assert losses == model.history[:, "train_loss"]
    assert len(model.history[:, "valid_loss"]) == 2
    assert 0.0 <= model.history[-1, "valid_acc"] <= 1.0


def test_accuracy_at_few_epochs(iris_model):
    assert iris_model.score(IRIS.data, IRIS.target_names[IRIS.target]) > 0.9
    assert iris_model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    probabilities = iris_model.predict_proba(IRIS.data)
    assert np.allclose(probabilities.sum(axis=1), 1.0)
    best = iris_model.classes_[probabilities.argmax(axis=1)]
    assert (best == iris_model.predict(IRIS.data)).all()


def test_labels_come_back_as_they_were():
    X, y = load_breast_cancer(return_X_y=True)
    model = NeuralNetClassifier(**{**QUICK, "max_epochs": 1}).fit(X[:, :6], np.where(y, 9, 5))
    assert set(model.predict(X[:, :6])) == {5, 9}
    assert model.predict_proba(X[:2, :6]).shape == (2, 2)
    assert model.score(X[:, :6], np.where(y, 9, 5)) > 0.85


def test_partial_fit_continues_and_knows_the_classes():
    X, y = IRIS.data, IRIS.target
    model = NeuralNetClassifier(**QUICK)
    model.partial_fit(X[:100], y[:100], classes=[0, 1, 2])
    assert model.classes_.tolist() == [0, 1, 2]
    mean = model.input_mean_.copy()
    model.partial_fit(X, y)
    assert len(model.history) == 4
    assert (model.input_mean_ == mean).all()
    assert model.score(X, y) > 0.7
    with pytest.raises(InvalidArgument, match="label 7"):
        model.partial_fit(X, np.where(y == 2, 7, y))


def test_warm_start_goes_on(short_epochs):
    model = NeuralNetClassifier(warm_start=True, **QUICK).fit(IRIS.data, IRIS.target)
    assert len(model.fit(IRIS.data, IRIS.target).history) == 4
    model.set_params(warm_start=False)
    assert len(model.fit(IRIS.data, IRIS.target).history) == 2


def test_weights_of_samples_and_classes_move_the_boundary():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = (X[:, 0] + rng.normal(size=300) > 0).astype(int)

    def share_of_ones(sample_weight=None, **parameters):
        model = NeuralNetClassifier(**QUICK, **parameters).fit(X, y, sample_weight)
        return model.predict(X).mean()

    plain = share_of_ones()
    assert share_of_ones(sample_weight=np.where(y == 1, 10.0, 1.0)) > plain + 0.1
    assert share_of_ones(criterion__weight=[10.0, 1.0]) < plain - 0.1


def test_a_classifier_needs_two_classes():
    with pytest.raises(InvalidArgument, match="1 class"):
        NeuralNetClassifier(**QUICK).fit(IRIS.data[:50], IRIS.target[:50])


# --- the regressor ------------------------------------------------------------------------------


def test_regressor_with_one_and_several_outputs():
    X, Y = make_regression(200, 5, n_targets=2, random_state=0)
    Y = 1000.0 + 50.0 * Y
    model = NeuralNetRegressor(random_state=0, verbose=0, max_epochs=5).fit(X, Y)
    assert model.predict(X).shape == (200, 2)
    assert model.score(X, Y) > 0.7
    assert np.array_equal(
        model.predict(X),
        model.infer(X).numpy().astype(np.float64) * model.target_scale_ + model.target_mean_,
    )
    single = NeuralNetRegressor(**QUICK).fit(X, Y[:, 0])
    assert single.predict(X).shape == (200,)
    weighted = NeuralNetRegressor(**QUICK).fit(X, Y, sample_weight=np.arange(200.0))
    assert weighted.predict(X).shape == (200, 2)


@pytest.mark.parametrize("bits", [(2, 3, 8), (3, 3, 7), (3, 3, 8), (4, 3, 8), (6, 7, None)])
def test_features_of_a_regressor_are_finer_where_a_full_weight_still_fits(short_epochs, bits):
    """A code of -2**(b - 1) times a weight of -2**(w - 1) is an accumulator by itself."""
    w, a, limit = bits
    X, y = make_regression(60, 4, random_state=0)
    settings = {"n_w_bits": w, "n_a_bits": a, "n_accum_bits": limit, **QUICK, "max_epochs": 1}
    model = NeuralNetRegressor(**settings).fit(X, y)
    coarse = NeuralNetClassifier(**settings).fit(X, y > 0)
    finest = model.network_.input_format.bits
    product = 2 ** (finest - 1) * 2 ** (w - 1)
    assert limit is None or product < 2 ** (limit - 1)
    assert finest == {(2, 3, 8): 5, (3, 3, 8): 5, (6, 7, None): 8}.get(bits, finest)
    assert finest in (coarse.network_.input_format.bits + step for step in (0, 1))


def shares_explained(model, X, Y):
    """R2 of each target on held-out rows: [targets]."""
    fitted = model.fit(X[:300], Y[:300])
    predicted = fitted.predict(X[300:]).reshape(len(X) - 300, -1)
    return r2_score(Y[300:], predicted, multioutput="raw_values")


@pytest.mark.slow
def test_targets_of_any_size_are_learned_beside_one_another():
    """Each is standardised for itself: its unit, its offset and its neighbours count not."""
    X = np.random.default_rng(0).normal(size=(500, 5))
    shapes = [X[:, 0] + X[:, 1], np.abs(X[:, 2]), X[:, 3] * X[:, 4]]
    Y = np.stack([1e-9 * shapes[0], 1e6 * shapes[1] - 1e8, shapes[2], np.full(500, 7.0)], axis=1)
    model = NeuralNetRegressor(random_state=0, verbose=0)
    twin = FloatNeuralNetRegressor(random_state=0, verbose=0)
    ours, theirs = shares_explained(model, X, Y)[:3], shares_explained(twin, X, Y)[:3]
    assert (ours >= theirs - 0.1).all()
    assert (ours > 0.7).all()
    assert np.abs(model.predict(X)[:, 3] - 7.0).max() < 1.0
    units = np.array([2.0**40, 2.0**-20, 2.0**10, 1.0])  # a change of units changes no integer
    again = NeuralNetRegressor(random_state=0, verbose=0).fit(X[:300], (Y * units)[:300])
    assert np.array_equal(again.accumulators(X), model.accumulators(X))
    assert np.array_equal(again.predict(X), model.predict(X) * units)


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["lognormal", "outliers"])
def test_heavy_tails_are_learned_within_a_tenth_of_the_float_twin(tail):
    random = np.random.default_rng(0)
    X = random.normal(size=(600, 4))
    y = X[:, 0] + np.abs(X[:, 1])
    y = np.exp(1.2 * y) if tail == "lognormal" else y + 0.3 * random.standard_t(2, size=600)
    ours, theirs = (
        np.mean([shares_explained(kind(random_state=s, verbose=0), X, y) for s in range(3)])
        for kind in (NeuralNetRegressor, FloatNeuralNetRegressor)
    )
    assert ours >= theirs - 0.1


# --- one function everywhere --------------------------------------------------------------------

NETWORKS = [
    {"n_layers": 1},
    {"n_layers": 2},
    {"n_layers": 3, "activation_function": nn.Sigmoid},
    {"n_layers": 2, "activation_function": nn.Tanh, "n_a_bits": 2, "quant_narrow": True},
    {"n_layers": 2, "activation_function": nn.SiLU, "n_w_bits": 4},
    {"n_layers": 4, "activation_function": nn.LeakyReLU, "n_w_bits": 2, "n_accum_bits": 6},
]


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: "-".join(map(str, n.values())))
def test_torch_and_integers_are_one_function(short_epochs, network, power_of_two):
    parameters = {f"module__{name}": value for name, value in network.items()}
    model = NeuralNetClassifier(
        **{**QUICK, "max_epochs": 1}, power_of_two_scaling=power_of_two, **parameters
    ).fit(IRIS.data, IRIS.target)
    X = random_rows(2000, 4) * IRIS.data.std(axis=0) + IRIS.data.mean(axis=0)
    outputs = model.infer(X).numpy()
    acc = model.accumulators(X)
    assert np.array_equal(outputs, model.dequantize_output(acc))
    assert np.array_equal(model.classes_[outputs.argmax(axis=1)], model.predict(X))
    assert np.array_equal(acc, model.network_.forward(model.quantize_input(X)))
    bits = network.get("n_accum_bits", 8)
    assert all(layer.signed_bits <= bits for layer in model.certificate_.layers.values())


@pytest.mark.parametrize("power_of_two", [True, False])
def test_simulated_and_encrypted_predictions_are_those_in_clear(short_epochs, power_of_two):
    pytest.importorskip("concrete.fhe")
    X, y = IRIS.data[:, 2:], IRIS.target
    model = NeuralNetClassifier(
        n_w_bits=2,
        n_a_bits=2,
        n_accum_bits=5,
        power_of_two_scaling=power_of_two,
        module__hidden_sizes=(3,),
        **{**QUICK, "max_epochs": 1},
    ).fit(X, y)
    with pytest.raises(CircuitError, match="call compile first"):
        model.predict(X, fhe="simulate")
    circuit = model.compile(X[:3], p_error=1e-5)
    assert model.fhe_circuit is circuit
    rows = np.vstack([X[::10], random_rows(20, 2, seed=1)])
    assert np.array_equal(model.accumulators(rows, "simulate"), model.accumulators(rows))
    for copy in (pickle.loads(pickle.dumps(model)), deepcopy(model)):
        with pytest.raises(CircuitError, match="copies leave it behind; call compile again"):
            copy.predict(rows, fhe="simulate")
    assert np.array_equal(model.predict(rows, fhe="simulate"), model.predict(rows))
    few = rows[:1]
    assert np.array_equal(model.accumulators(few, "execute"), model.accumulators(few))
    if power_of_two:
        assert np.array_equal(model.predict(few, execute_in_fhe=True), model.predict(few))
    with pytest.raises(InvalidArgument, match="execute_in_fhe"):
        model.predict(few, fhe="simulate", execute_in_fhe=True)
    with pytest.raises(InvalidArgument, match="fhe"):
        model.predict(few, fhe="encrypted")
    model.partial_fit(X, y)
    with pytest.raises(CircuitError, match="call compile again"):
        model.predict(few, fhe="simulate")
    for copy in (pickle.loads(pickle.dumps(model)), deepcopy(model)):
        assert np.array_equal(copy.predict(rows), model.predict(rows))


# --- the accumulator guarantee ------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 5, 7, 10])
@pytest.mark.parametrize("estimator", [NeuralNetClassifier, NeuralNetRegressor])
def test_no_accumulator_exceeds_its_bits(short_epochs, estimator, bits):
    X, y = load_breast_cancer(return_X_y=True)
    model = estimator(n_accum_bits=bits, **{**QUICK, "max_epochs": 1}, lr=0.1)
    model.fit(X[:, :8], y.astype(float) if estimator is NeuralNetRegressor else y)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for layer in model.certificate_.layers.values():
        assert low <= int(layer.lo.min())
        assert int(layer.hi.max()) <= high
    # By hand, from the weights, for the first layer: both ends of every input.
    first = model.network_.accumulators()[0].op
    x_lo, x_hi = model.network_.input_format.q_min, model.network_.input_format.q_max
    bias = 0 if first.bias is None else first.bias
    positive, negative = np.maximum(first.weight, 0), np.minimum(first.weight, 0)
    assert ((positive * x_hi + negative * x_lo).sum(axis=1) + bias).max() <= high
    assert ((positive * x_lo + negative * x_hi).sum(axis=1) + bias).min() >= low


def test_impossible_widths_are_an_error_before_training():
    model = NeuralNetClassifier(n_accum_bits=3, verbose=0)
    with pytest.raises(InvalidArgument, match="n_accum_bits: got 3, expected at least 4"):
        model.fit(IRIS.data, IRIS.target)
    assert not hasattr(model, "history_") or len(model.history_) == 0
    with pytest.raises(NotFittedError):
        model.predict(IRIS.data)


def test_a_budget_without_room_for_one_weight_is_said_with_the_width_that_would_do(
    short_epochs, recwarn
):
    """A weight of -32 on an input of 63 reaches -2016: 12 bits, and the bias asks for one more."""
    X, y = make_regression(60, 4, random_state=0)
    quick = {**QUICK, "max_epochs": 1}
    with pytest.warns(
        UserWarning, match="n_accum_bits: got 8, expected at least 13, None, or"
    ) as said:
        NeuralNetRegressor(n_w_bits=6, n_a_bits=6, **quick).fit(X, y)
    assert [w.filename for w in said] == [__file__]  # once, and of the caller's line
    recwarn.clear()
    for bits in (13, None):
        NeuralNetRegressor(n_w_bits=6, n_a_bits=6, n_accum_bits=bits, **quick).fit(X, y)
    NeuralNetClassifier(**quick).fit(IRIS.data, IRIS.target)
    assert [str(w.message) for w in recwarn if "n_accum_bits" in str(w.message)] == []


@pytest.mark.slow
@pytest.mark.parametrize("bits", [5, 6])
def test_the_width_that_would_do_does(bits):
    """Within .02 of no limit at all."""
    X, y = make_regression(600, 8, n_informative=6, noise=30.0, random_state=0)
    X = np.hstack([X, X[:, :2] ** 2])
    y = y + 40.0 * X[:, 8]
    wide = {"n_w_bits": bits, "n_a_bits": bits, "verbose": 0, "random_state": 0}
    free = NeuralNetRegressor(n_accum_bits=None, **wide).fit(X[:400], y[:400])
    enough = free.module_.full_weight_bits()
    held = NeuralNetRegressor(n_accum_bits=enough, **wide).fit(X[:400], y[:400])
    assert held.score(X[400:], y[400:]) >= free.score(X[400:], y[400:]) - 0.02


def test_without_a_limit_there_is_none(short_epochs):
    model = NeuralNetClassifier(n_accum_bits=None, **{**QUICK, "max_epochs": 1})
    X, y = load_breast_cancer(return_X_y=True)
    model.fit(X, y)
    assert max(layer.signed_bits for layer in model.certificate_.layers.values()) > 8
    with pytest.raises(InvalidArgument, match="n_accum_bits"):
        model.max_active_neurons()


# --- pruning ------------------------------------------------------------------------------------


def test_pruned_neurons_leave_the_network():
    model = NeuralNetClassifier(module__n_prune_neurons_percentage=0.5, **QUICK)
    model.fit(IRIS.data, IRIS.target)
    assert model.network_.accumulators()[0].op.weight.shape[0] <= 8
    assert model.score(IRIS.data, IRIS.target) > 0.7
    assert model.max_active_neurons() >= 1


def test_prune_returns_a_smaller_copy(iris_model):
    labels = IRIS.target_names[IRIS.target]
    digest = iris_model.network_.digest
    pruned = iris_model.prune(IRIS.data, labels, 0.25)
    assert iris_model.network_.digest == digest
    assert pruned.network_.accumulators()[0].op.weight.shape[0] <= 12
    assert pruned.score(IRIS.data, labels) > 0.8
    assert clone(pruned).get_params()["module__hidden_sizes"] == (12,)
    with pytest.raises(InvalidArgument, match="n_prune_neurons_percentage"):
        iris_model.prune(IRIS.data, labels, 1.0)


def test_enable_pruning_then_permanent(short_epochs):
    model = NeuralNetClassifier(**QUICK).fit(IRIS.data, IRIS.target)
    before = model.network_.accumulators()[0].op.weight.shape[0]
    model.enable_pruning(0.5)
    model.make_pruning_permanent()
    assert model.network_.accumulators()[0].op.weight.shape[0] <= before // 2
    X = random_rows(200, 4)
    assert np.array_equal(model.infer(X).numpy(), model.dequantize_output(model.accumulators(X)))


def nonzeros(model):
    """Most non-zero weights of a hidden neuron."""
    return int((model.network_.accumulators()[0].op.weight != 0).sum(axis=1).max())


def test_rows_shrink_to_their_fan_in_while_training(short_epochs, monkeypatch):
    kept = []
    update = quantizers.RowSparsity.update

    def record(self, weight, keep=0.0):
        update(self, weight, keep)
        kept.append(int(self.mask.sum(dim=1).max()))

    monkeypatch.setattr(quantizers.RowSparsity, "update", record)
    X, y = load_breast_cancer(return_X_y=True)
    cheap = {"module__fan_in": 2, "module__table_bits": 4, "module__hidden_sizes": (12,)}
    model = NeuralNetClassifier(**{**QUICK, **cheap, "max_epochs": 8}).fit(X, y)
    assert kept[1] == 30  # dense at the first epoch, whatever the weights were drawn as
    assert kept[-1] == 2
    assert kept[1:] == sorted(kept[1:], reverse=True)
    assert nonzeros(model) <= 2
    assert model.score(X, y) > 0.85


def test_the_fan_in_outlives_saving_and_further_training(short_epochs, tmp_path):
    X, y = load_breast_cancer(return_X_y=True)
    model = NeuralNetClassifier(**QUICK, module__fan_in=3).fit(X, y)
    model.partial_fit(X, y)
    assert nonzeros(model) <= 3
    model.save(tmp_path / "model")
    loaded = NeuralNetClassifier.load(tmp_path / "model").partial_fit(X, y)
    assert nonzeros(loaded) <= 3
    assert nonzeros(loaded.prune(X, y, 0.5)) <= 3


# --- the float twin -----------------------------------------------------------------------------


def test_fit_benchmark_returns_the_float_twin():
    model = NeuralNetClassifier(module__n_layers=3, optimizer__weight_decay=1e-4, **QUICK)
    same, twin = model.fit_benchmark(IRIS.data, IRIS.target)
    assert same is model
    assert isinstance(twin, FloatNeuralNetClassifier)
    assert twin.get_params()["optimizer__weight_decay"] == 1e-4
    linear = [part for part in twin.module_.modules() if isinstance(part, nn.Linear)]
    assert [layer.out_features for layer in linear] == [16, 16, 3]
    assert twin.score(IRIS.data, IRIS.target) > 0.9
    y = IRIS.data[:, 3]
    _, regressor = NeuralNetRegressor(**QUICK).fit_benchmark(IRIS.data[:, :3], y)
    assert isinstance(regressor, FloatNeuralNetRegressor)
    assert regressor.score(IRIS.data[:, :3], y) > 0.8


# --- views and files ----------------------------------------------------------------------------


def test_views(iris_model):
    (quantizer,) = iris_model.input_quantizers
    codes = iris_model.quantize_input(IRIS.data)
    assert codes.min() >= quantizer.format.q_min
    assert codes.max() <= quantizer.format.q_max
    (dequantizer,) = iris_model.output_quantizers
    acc = iris_model.accumulators(IRIS.data)
    assert np.array_equal(dequantizer.dequantize(acc), iris_model.dequantize_output(acc))
    assert iris_model.n_bits_quant == 3
    assert iris_model.base_module_to_compile is iris_model.module_
    assert iris_model.base_estimator_type.__name__ == "NeuralNetClassifier"


def test_onnx_model_is_the_network(iris_model):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        iris_model.onnx_model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (graph_input,) = session.get_inputs()
    codes = iris_model.quantize_input(IRIS.data).astype(np.int8)
    assert graph_input.type == "tensor(int8)"
    (acc,) = session.run(None, {graph_input.name: codes})
    assert np.array_equal(acc, iris_model.accumulators(IRIS.data))


@pytest.mark.parametrize("power_of_two", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_saved_estimator_is_the_same_estimator(tmp_path, power_of_two):
    labels = IRIS.target_names[IRIS.target]
    frame = pd.DataFrame(IRIS.data, columns=list("abcd"))
    model = NeuralNetClassifier(
        power_of_two_scaling=power_of_two,
        module__activation_function=nn.ELU,
        criterion__weight=np.array([1.0, 2.0, 1.0]),
        train_split=ValidSplit(4, stratified=True),
        **QUICK,
    ).fit(frame, labels)
    path = tmp_path / "model.refqnn"
    model.save(path)
    again = NeuralNetClassifier.load(path)
    assert again.network_.digest == model.network_.digest
    assert again.feature_names_in_.tolist() == list("abcd")
    assert np.array_equal(again.predict(frame), model.predict(frame))
    assert np.array_equal(again.infer(frame).numpy(), model.infer(frame).numpy())
    assert again.history[:, "train_loss"] == model.history[:, "train_loss"]
    assert repr(plain_parameters(again)) == repr(plain_parameters(model))
    assert vars(again.train_split) == vars(model.train_split)
    assert again.partial_fit(frame, labels).score(frame, labels) > 0.8
    with pytest.raises(TypeError, match="NeuralNetRegressor"):
        NeuralNetRegressor.load(path)


def test_a_damaged_file_is_refused(tmp_path, iris_model):
    path = tmp_path / "model.refqnn"
    iris_model.save(path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(FileFormatError):
            load_estimator(path)
    for at in range(0, len(data), len(data) // 40):
        altered = bytearray(data)
        altered[at] ^= 0x55
        path.write_bytes(altered)
        try:
            again = load_estimator(path)
        except FileFormatError:
            continue
        assert again.network_.digest == iris_model.network_.digest  # a byte without meaning


def test_objects_of_your_own_are_not_saved_silently(tmp_path, short_epochs):
    model = NeuralNetClassifier(callbacks=[], **{**QUICK, "max_epochs": 1})
    model.fit(IRIS.data, IRIS.target)
    model.save(tmp_path / "fine")
    model.set_params(callbacks=[("mine", EpochScoring("accuracy"))])
    with pytest.raises(NotCovered, match="callbacks"):
        model.save(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_pickle_keeps_predictions(iris_model):
    again = pickle.loads(pickle.dumps(iris_model))
    assert np.array_equal(again.predict_proba(IRIS.data), iris_model.predict_proba(IRIS.data))
    assert again.network_.digest == iris_model.network_.digest


# --- accuracy at the defaults -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_defaults_are_near_the_float_twin(name):
    scores, floats = [], []
    for seed in range(3):
        data = datasets.load(name, seed)
        model, twin = NeuralNetClassifier(verbose=0, random_state=seed).fit_benchmark(
            data.X_train, data.y_train
        )
        scores.append(model.score(data.X_test, data.y_test))
        floats.append(twin.score(data.X_test, data.y_test))
        assert max(layer.signed_bits for layer in model.certificate_.layers.values()) <= 8
    assert np.mean(scores) >= 0.95
    assert np.mean(scores) >= np.mean(floats) - 0.02


@pytest.mark.slow
def test_defaults_on_iris_by_cross_validation():
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    model = NeuralNetClassifier(verbose=0, random_state=0)
    assert cross_val_score(model, IRIS.data, IRIS.target, cv=folds).mean() >= 0.95


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="zero"):
        NeuralNetClassifier(**QUICK).fit(IRIS.data, IRIS.target, sample_weight=np.zeros(150))
