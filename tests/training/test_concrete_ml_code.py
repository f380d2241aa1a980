"""Calls as the documentation of Concrete ML writes them, and skorch's parameters."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from torch.utils.data import DataLoader

from refqnn.errors import InvalidArgument, InvalidType
from refqnn.training import NeuralNetClassifier, NeuralNetRegressor, SparseQuantNeuralNetImpl

IRIS = load_iris()
QUICK = {"max_epochs": 1, "verbose": 0, "random_state": 0}


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
    with pytest.raises(InvalidArgument) as raised:
        model.compile(n_bits=8, device="cuda", rounding_threshold_bits=6, artifacts=3, colour="red")
    message = str(raised.value)
    for name in ("n_bits: got 8", "device: got 'cuda'", "rounding_threshold_bits: got 6"):
        assert name in message
    for name in ("artifacts: got 3", "colour: got 'red'", "n_w_bits", "p_error"):
        assert name in message
    configuration = fhe.Configuration()
    configuration.additional_pre_processors = [print]
    with pytest.raises(InvalidArgument, match="additional_pre_processors: got"):
        model.compile(configuration=configuration)
    with pytest.raises(InvalidArgument, match="p_error: got 0"):
        model.compile(p_error=0.0)
    with pytest.raises(InvalidArgument, match="network: got 3"):
        model.compile(network=3)
    with pytest.raises(InvalidArgument, match="enable_unsafe_features: got True"):
        model.compile(configuration=fhe.Configuration(enable_unsafe_features=True))
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


def test_documented_defaults() -> None:
    for function, expected in (
        (SparseQuantNeuralNetImpl, {"n_w_bits": 3, "n_a_bits": 3, "n_accum_bits": 8}),
        (NeuralNetClassifier, {"module__n_w_bits": 3, "module__n_accum_bits": 8}),
        (NeuralNetRegressor, {"module__n_a_bits": 3, "module__n_accum_bits": 8}),
    ):
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in expected} == expected


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
