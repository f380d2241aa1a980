"""Calls as the documentation of Concrete ML writes them, and skorch's parameters."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EarlyStopping
from skorch.dataset import Dataset
from torch import nn
from torch.utils.data import DataLoader

from refqnn.errors import InvalidArgument, InvalidType, NotCompiled
from refqnn.training import NeuralNetClassifier, NeuralNetRegressor, SparseQuantNeuralNetImpl

IRIS = load_iris()
QUICK = {"max_epochs": 1, "verbose": 0, "random_state": 0}

pytestmark = pytest.mark.usefixtures("short_epochs")


@pytest.fixture(scope="module")
def model() -> NeuralNetClassifier:
    small = {"module__fan_in": 1, "module__hidden_sizes": (3,)}
    return NeuralNetClassifier(**small, **QUICK).fit(IRIS.data, IRIS.target)


# --- compile, encrypt ---------------------------------------------------------------------------


def test_compile_takes_what_it_can_honour(model: NeuralNetClassifier, capsys) -> None:
    fhe = pytest.importorskip("concrete.fhe")
    configuration = fhe.Configuration(
        dump_artifacts_on_unexpected_failures=False,
        loop_parallelize=False,
        p_error=0.01,
        parameter_selection_strategy="mono",
        compress_evaluation_keys=True,
    )
    circuit = model.compile(IRIS.data, configuration)
    assert 1e-4 < circuit.p_error <= 0.01
    assert capsys.readouterr().out == ""
    circuit = model.compile(IRIS.data, configuration, p_error=1e-7)  # what is said here counts
    assert circuit.p_error <= 1e-7
    model.compile(IRIS.data, None, None, True, device="cpu")
    assert "func.func" in capsys.readouterr().out


def test_compile_names_all_that_it_cannot_honour(model: NeuralNetClassifier) -> None:
    fhe = pytest.importorskip("concrete.fhe")
    refqnn_fhe = pytest.importorskip("refqnn.fhe")
    with pytest.raises(InvalidArgument) as raised:
        model.compile(n_bits=8, device="cuda", rounding_threshold_bits=6, artifacts=3, colour="red")
    message = str(raised.value)
    assert "each accumulator loses as many low bits as change no code" in message
    for name in ("n_bits: got 8", "device: got 'cuda'", "rounding_threshold_bits: got 6"):
        assert name in message
    for name in ("artifacts: got 3", "colour: got 'red'", "n_w_bits", "p_error"):
        assert name in message
    configuration = fhe.Configuration()
    configuration.additional_pre_processors = [print]
    with pytest.raises(InvalidArgument, match="additional_pre_processors: got"):
        model.compile(configuration=configuration)
    with pytest.raises(
        InvalidArgument, match=r"p_error: got 0.*results are exact without a search"
    ):
        model.compile(p_error=0.0)
    for words in ("often", [0.5], 1j):
        with pytest.raises(InvalidArgument, match="global_p_error: got"):
            model.compile(global_p_error=words)
    for asked in ("rounding_threshold_bits", "n_bits"):  # the network alone says the same
        with pytest.raises(InvalidArgument, match=asked) as said:
            refqnn_fhe.compile(model.network_, **{asked: 6})
        assert str(said.value).partition("expected")[2] in message
    for words in ("p_error", "2\\*\\*-128", "rounding_threshold_bits"):
        assert re.search(words, NeuralNetClassifier.compile.__doc__)
    with pytest.raises(InvalidArgument, match="network: got 3"):
        model.compile(network=3)
    with pytest.raises(InvalidArgument, match="enable_unsafe_features: got True"):
        model.compile(configuration=fhe.Configuration(enable_unsafe_features=True))
    for wrong in ({"verbose": "very"}, {"show_mlir": 2}, {"trials": 1.5}, {"choose": "first"}):
        with pytest.raises((InvalidArgument, InvalidType), match=next(iter(wrong))):
            model.compile(**wrong)
    with pytest.raises(InvalidType, match="configuration: got int"):
        model.compile(IRIS.data, 3)


def test_one_row_goes_through_encrypt_as_a_table(model: NeuralNetClassifier) -> None:
    pytest.importorskip("concrete.fhe")
    circuit = model.compile(p_error=1e-5)
    row = model.quantize_input(IRIS.data[[0]])
    assert row.shape == (1, 4)
    circuit.keygen()
    acc = circuit.decrypt(circuit.run(circuit.encrypt(row)))
    assert np.array_equal(model.dequantize_output(acc), model.dequantize_output(acc[None]))
    assert np.array_equal(acc[None], model.accumulators(IRIS.data[[0]]))
    with pytest.raises(InvalidArgument, match="one sample"):
        circuit.encrypt(np.vstack([row, row]))


# --- skorch's parameters ------------------------------------------------------------------------


class Rows(DataLoader):
    """Counts how often it is made."""

    made = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        type(self).made += 1
        super().__init__(*args, **kwargs)


def test_parameters_of_skorch_pass_through() -> None:
    passed = {
        "classes": [0, 1, 2, 7],
        "device": "cpu",
        "predict_nonlinearity": "auto",
        "iterator_train": Rows,
        "iterator_train__shuffle": True,
    }
    model = NeuralNetClassifier(**passed, **QUICK)
    assert {name: model.get_params()[name] for name in passed} == passed
    assert clone(model).get_params() == model.get_params()
    assert model.get_params(deep=True, some_of_skorch=1) == model.get_params()
    model.fit(IRIS.data, IRIS.target)
    assert Rows.made == 1
    assert model.classes_.tolist() == [0, 1, 2, 7]
    assert model.predict_proba(IRIS.data).shape == (150, 4)
    for name, value in (("device", "cuda"), ("predict_nonlinearity", np.exp)):
        with pytest.raises(InvalidArgument, match=f"{name}: got"):
            NeuralNetClassifier(**{name: value}, **QUICK).fit(IRIS.data, IRIS.target)


def test_callbacks_can_be_disabled_and_the_integers_stay_exact(capsys) -> None:
    model = NeuralNetClassifier(callbacks="disable", max_epochs=2, random_state=0)
    model.fit(IRIS.data, IRIS.target)
    assert capsys.readouterr().out == ""
    assert "dur" not in model.history[-1]
    assert all(layer.signed_bits <= 8 for layer in model.certificate_.layers.values())
    outputs = model.infer(IRIS.data).numpy()
    assert np.array_equal(outputs, model.dequantize_output(model.accumulators(IRIS.data)))
    with pytest.raises(InvalidArgument, match="callbacks: got 'none'"):
        NeuralNetClassifier(callbacks="none", **QUICK).fit(IRIS.data, IRIS.target)


# --- signatures and defaults --------------------------------------------------------------------


# The API pages of Concrete ML 1.9: parameters in their order, with their defaults.
REQUIRED = inspect.Parameter.empty
MODULE = {
    **dict.fromkeys(("input_dim", "n_layers", "n_outputs"), REQUIRED),
    **{"n_hidden_neurons_multiplier": 4, "n_w_bits": 4, "n_a_bits": 4, "n_accum_bits": 32},
    **{"n_prune_neurons_percentage": 0.0, "activation_function": nn.ReLU, "quant_narrow": False},
    **{"quant_signed": True, "power_of_two_scaling": True},
}
ESTIMATOR = {
    "optimizer": torch.optim.Adam,
    **{"lr": 0.01, "max_epochs": 10, "batch_size": 128, "train_split": None, "callbacks": None},
    **{"warm_start": False, "verbose": 1, "device": "cpu", "predict_nonlinearity": "auto"},
    **{"iterator_train": DataLoader, "iterator_valid": DataLoader, "dataset": Dataset},
}
# Where ours differ.  The widths are those of its text, and of its releases until 1.2.
OURS = {
    **{"n_w_bits": 3, "n_a_bits": 3, "n_accum_bits": 8, "quant_signed": None},
    **{"lr": 0.02, "batch_size": 32},
}
CALLS = {
    "compile": "X configuration artifacts show_mlir p_error global_p_error verbose device",
    "predict": "X fhe",
    "fit": "X y",
    "fit_benchmark": "X y",
    "quantize_input": "X",
    "post_processing": "y_preds",
    "prune": "X y n_prune_neurons_percentage",
    "check_model_is_fitted": "",
    "check_model_is_compiled": "",
    "enable_pruning": "",
    "max_active_neurons": "",
    "make_pruning_permanent": "",
}


def parameters_of(function: Callable[..., object]) -> dict[str, object]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_the_module_has_the_documented_parameters() -> None:
    ours = parameters_of(SparseQuantNeuralNetImpl)
    assert list(ours)[: len(MODULE)] == list(MODULE)
    for name, theirs in MODULE.items():
        assert ours[name] == OURS.get(name, theirs), name


@pytest.mark.parametrize("estimator", [NeuralNetClassifier, NeuralNetRegressor])
def test_the_estimators_take_the_documented_parameters(estimator: type) -> None:
    loss = nn.CrossEntropyLoss if estimator is NeuralNetClassifier else nn.MSELoss
    settings = {"module__n_layers": 3, **ESTIMATOR, "criterion": loss}
    settings |= {f"module__{name}": value for name, value in list(MODULE.items())[3:]}
    settings |= {"module__n_accum_bits": 16, "verbose": 0}
    model = estimator(**settings)
    assert model.get_params().items() >= settings.items()
    model.fit(IRIS.data, IRIS.target)
    assert len(model.network_.accumulators()) == 3
    assert model.score(IRIS.data, IRIS.target) > 0.3
    ours = parameters_of(estimator)
    for name in ("optimizer", "lr", "max_epochs", "batch_size", "callbacks", "warm_start"):
        assert ours[name] == OURS.get(name, ESTIMATOR[name]), name


@pytest.mark.parametrize("estimator", [NeuralNetClassifier, NeuralNetRegressor])
def test_methods_take_the_documented_arguments_in_their_order(estimator: type) -> None:
    for name, expected in CALLS.items():
        names = [n for n in parameters_of(getattr(estimator, name)) if n != "self"]
        assert names[: len(expected.split())] == expected.split(), name


def test_classes_of_deployment_take_the_documented_calls() -> None:
    fhe = pytest.importorskip("refqnn.fhe")
    for call, expected in {
        fhe.FHEModelDev: "path_dir model",
        fhe.FHEModelDev.save: "self mode via_mlir",
        fhe.FHEModelClient: "path_dir key_dir",
        fhe.FHEModelClient.load: "self",
        fhe.FHEModelClient.generate_private_and_evaluation_keys: "self force",
        fhe.FHEModelClient.get_serialized_evaluation_keys: "self include_tfhers_key",
        fhe.FHEModelClient.quantize_encrypt_serialize: "self x",
        fhe.FHEModelClient.deserialize_decrypt: "self serialized_encrypted_quantized_result",
        fhe.FHEModelClient.deserialize_decrypt_dequantize: (
            "self serialized_encrypted_quantized_result"
        ),
        fhe.FHEModelServer: "path_dir",
        fhe.FHEModelServer.load: "self",
        fhe.FHEModelServer.run: (
            "self serialized_encrypted_quantized_data serialized_evaluation_keys"
        ),
    }.items():
        assert list(parameters_of(call)) == expected.split(), call
    with pytest.raises(InvalidArgument, match="mode: got 'training'"):
        fhe.FHEModelDev("folder").save(mode="training")
    with pytest.raises(InvalidArgument, match="via_mlir: got True"):
        fhe.FHEModelDev("folder").save(via_mlir=True)


def test_names_that_an_estimator_has_there(model: NeuralNetClassifier) -> None:
    fresh = clone(model)
    assert (fresh.is_fitted, fresh.is_compiled) == (False, False)
    assert model.is_fitted
    model.check_model_is_fitted()
    for call in (fresh.check_model_is_fitted, fresh.check_model_is_compiled):
        with pytest.raises(NotFittedError):
            call()
    copy = pickle.loads(pickle.dumps(model))
    assert not copy.is_compiled
    with pytest.raises(NotCompiled, match="call compile"):
        copy.check_model_is_compiled()
    assert model.base_module is model.base_module_to_compile is model.module_


@pytest.mark.parametrize(
    ("name", "use"),
    [
        *((name, r"save\(path\)") for name in ("dump", "dumps", "dump_dict", "load_dict")),
        ("get_sklearn_params", r"get_params\(\)"),
        ("n_classes_", r"len\(classes_\)"),
        ("target_classes_", "classes_"),
    ],
)
def test_a_name_without_a_counterpart_says_what_to_use(
    name: str, use: str, model: NeuralNetClassifier
) -> None:
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"{name}: .*{use}"):
        getattr(model, name)


def test_an_answer_is_quantized_computed_dequantized_and_processed(
    model: NeuralNetClassifier,
) -> None:
    """The four steps by hand are predict, as the pages of Concrete ML show them."""
    two = NeuralNetRegressor(**QUICK).fit(IRIS.data, IRIS.data[:, :2])
    one = NeuralNetRegressor(**QUICK).fit(IRIS.data, IRIS.data[:, 0])
    for estimator, answer in ((model, model.predict_proba), (one, one.predict), (two, two.predict)):
        codes = estimator.quantize_input(IRIS.data)
        y = estimator.dequantize_output(estimator.network_.forward(codes))
        processed = estimator.post_processing(y)
        assert np.array_equal(processed, answer(IRIS.data))
        assert processed.shape == answer(IRIS.data).shape


# --- the life of an estimator -------------------------------------------------------------------


def test_parameters_set_after_fit_count_from_the_next_fit_on() -> None:
    model = NeuralNetClassifier(**QUICK).fit(IRIS.data, IRIS.target)
    before, digest = model.predict(IRIS.data), model.network_.digest
    model.set_params(n_w_bits=2, module__n_layers=3, max_epochs=2)
    assert model.network_.digest == digest
    assert np.array_equal(model.predict(IRIS.data), before)
    model.partial_fit(IRIS.data, IRIS.target)  # the network as it is, the training as it is set
    assert (len(model.history), len(model.network_.accumulators())) == (3, 2)
    model.fit(IRIS.data, IRIS.target)
    assert (len(model.history), len(model.network_.accumulators())) == (2, 3)
    assert all(abs(layer.op.weight).max() <= 2 for layer in model.network_.accumulators())


def test_a_search_over_a_pipeline_of_skorch_and_module_parameters() -> None:
    pipeline = make_pipeline(StandardScaler(), NeuralNetClassifier(**QUICK))
    name = "neuralnetclassifier__"
    grid = {
        f"{name}module__n_layers": [1, 2],
        f"{name}optimizer__weight_decay": [0.0, 1e-3],
        f"{name}callbacks": [None, [("stop", EarlyStopping("train_loss", patience=1))]],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(IRIS.data, IRIS.target)
    assert len(search.cv_results_["params"]) == 8
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    layers = search.best_params_[f"{name}module__n_layers"]
    assert len(search.best_estimator_[-1].network_.accumulators()) == layers


def test_methods_of_the_module_take_the_documented_calls() -> None:
    torch.manual_seed(0)
    net = SparseQuantNeuralNetImpl(4, 2, 3, n_prune_neurons_percentage=0.25)
    net.calibrate(torch.randn(50, 4))
    assert net.max_active_neurons() == net.max_active_neurons(8) > 0
    net.enable_pruning()
    net.on_train_end()
    rows = net.features.fc1.weight.detach().abs().sum(dim=1)
    assert int((rows == 0).sum()) == 4  # a quarter of 16
    with pytest.raises(InvalidArgument, match="n_accum_bits"):
        SparseQuantNeuralNetImpl(4, 2, 3, n_accum_bits=None).max_active_neurons()


def test_infer_hands_its_parameters_to_the_module(model: NeuralNetClassifier) -> None:
    assert torch.equal(model.infer(IRIS.data, **{}), model.infer(IRIS.data))
    with pytest.raises(TypeError, match="mask"):
        model.infer(IRIS.data, mask=None)
