"""target="encrypted": few lookups, all of 3 bits, and one function in every form."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris

import refqnn
from refqnn import exact, fhe
from refqnn.doors import Comparisons
from refqnn.errors import InvalidArgument
from refqnn.training import NeuralNetClassifier, NeuralNetRegressor
from refqnn.training.lookups import _Sparse, grid
from refqnn.training.teacher import left_out

IRIS = load_iris()
QUICK = {"target": "encrypted", "budget_s": 1.0, "random_state": 0, "verbose": 0}


@pytest.fixture(scope="module")
def iris() -> NeuralNetClassifier:
    """Four lookups, half a thousand steps."""
    return NeuralNetClassifier(**QUICK, module__hidden_sizes=(4,)).fit(IRIS.data, IRIS.target)


def by_hand(model: NeuralNetClassifier, x: np.ndarray) -> list[int]:
    """Output integers of one raw row, in Python integers, from the parameters alone."""
    door = model.network_.input_quantizer
    first, table, last = (node.op for node in model.network_.nodes)
    bits = [
        int(np.float32(x[column]) >= threshold)
        for column, threshold in zip(door.columns.tolist(), door.thresholds[:, 0])
    ]
    codes = []
    for row, bias, entries in zip(first.weight.tolist(), first.bias.tolist(), table.table.tolist()):
        codes.append(entries[bias + sum(w * b for w, b in zip(row, bits))])
    rows = zip(last.weight.tolist(), last.bias.tolist())
    return [bias + sum(w * c for w, c in zip(row, codes)) for row, bias in rows]


def test_one_function_in_every_form(iris: NeuralNetClassifier) -> None:
    acc = iris.accumulators(IRIS.data)
    assert acc.tolist() == [by_hand(iris, x) for x in IRIS.data]
    np.testing.assert_array_equal(iris.infer(IRIS.data).numpy(), iris.dequantize_output(acc))
    codes = iris.quantize_input(IRIS.data[:5])
    assert exact.forward(iris.network_, codes) == acc[:5].tolist()
    circuit = iris.compile(IRIS.data)
    np.testing.assert_array_equal(circuit.simulate(codes), acc[:5])
    labels = iris.network_.output_dequantizer.predict(acc)
    np.testing.assert_array_equal(labels, iris.predict(IRIS.data))
    assert iris.score(IRIS.data, IRIS.target) > 0.9


def test_one_lookup_of_three_bits_for_each_neuron(iris: NeuralNetClassifier) -> None:
    first = iris.network_.nodes[0].op
    weights, bias = first.weight, first.bias
    assert set(np.unique(weights)) <= {-1, 0, 1}
    lo = bias + np.minimum(weights, 0).sum(axis=1)
    hi = bias + np.maximum(weights, 0).sum(axis=1)
    assert (lo == 0).all()
    assert (hi == 7).all()
    layer = iris.certificate_.layers["fc1"]
    assert (int(layer.lo.min()), int(layer.hi.max())) == (0, 7)
    circuit = iris.compile()
    assert circuit.pbs == {3: 4}
    assert circuit.global_p_error <= 2.0**-128
    assert not circuit.lowered.program.linear_in_input


def test_the_number_of_lookups_is_chosen() -> None:
    model = NeuralNetClassifier(**{**QUICK, "budget_s": 2.0}).fit(IRIS.data, IRIS.target)
    tried = [(row["lookups"], row["held_out"]) for row in model.history_]
    assert [n for n, held_out in tried if held_out] == sorted({n for n, held_out in tried[:-1]})
    assert tried[-1] == (model.module_.arguments["hidden_sizes"][0], 0)
    assert model.network_.nodes[0].op.weight.shape[0] in (4, 8)


def test_table_bits() -> None:
    model = NeuralNetClassifier(**QUICK, module__hidden_sizes=(5,), module__table_bits=2)
    model.fit(IRIS.data, IRIS.target)
    assert model.compile().pbs == {2: 5}


def test_equal_arguments_give_equal_networks(iris: NeuralNetClassifier) -> None:
    state = torch.get_rng_state()
    again = NeuralNetClassifier(**iris.get_params()).fit(IRIS.data, IRIS.target)
    assert again.network_.digest == iris.network_.digest
    assert torch.equal(torch.get_rng_state(), state)


def test_files(iris: NeuralNetClassifier, tmp_path: Path) -> None:
    iris.save(tmp_path / "model")
    read = NeuralNetClassifier.load(tmp_path / "model")
    copies = [read, pickle.loads(pickle.dumps(iris))]
    for copy in copies:
        np.testing.assert_array_equal(copy.accumulators(IRIS.data), iris.accumulators(IRIS.data))
        np.testing.assert_array_equal(copy.infer(IRIS.data), iris.infer(IRIS.data))
        assert len(copy.history) == len(iris.history)
    network = refqnn.load(tmp_path / "model")
    assert network.digest == iris.network_.digest
    iris.compile().save_client(tmp_path / "client")
    client = fhe.Client.load(tmp_path / "client")
    np.testing.assert_array_equal(client.quantize(IRIS.data), iris.quantize_input(IRIS.data))


def test_features_by_name_of_any_size() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 3))
    X = pd.DataFrame(z * [1e9, 1e-9, 0.0] + [0.0, 0.0, 0.1], columns=["big", "small", "constant"])
    y = np.where(z[:, 0] + z[:, 1] > 0, "yes", "no")
    model = NeuralNetClassifier(**QUICK, module__hidden_sizes=(8,)).fit(X, y)
    assert model.score(X, y) > 0.85
    np.testing.assert_array_equal(model.network_.predict(X), model.infer(X))
    with pytest.raises(InvalidArgument, match="columns of x"):
        model.network_.quantize_input(X[["small", "big", "constant"]])


def test_targets() -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    y = 1e4 + 300.0 * np.abs(X[:, 0]) + 100.0 * X[:, 1]
    model = NeuralNetRegressor(**QUICK, module__hidden_sizes=(8,)).fit(X, y)
    assert model.score(X, y) > 0.8
    assert model.compile().pbs == {3: 8}
    acc = model.accumulators(X)
    np.testing.assert_array_equal(model.network_.output_dequantizer.predict(acc), model.predict(X))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"target": "fpga"}, "target"),
        ({"budget_s": 0.0}, "budget_s"),
        ({"module__n_w_bits": 4}, "module__n_w_bits"),
        ({"module__fan_in": 3}, "module__fan_in"),
        ({"module__hidden_sizes": (4, 4)}, "module__hidden_sizes"),
    ],
)
def test_settings_without_a_meaning(parameters: dict[str, object], name: str) -> None:
    model = NeuralNetClassifier(**{**QUICK, **parameters})
    with pytest.raises(InvalidArgument, match=rf"^{name}:"):
        model.fit(IRIS.data, IRIS.target)


def test_training_is_of_whole_networks(iris: NeuralNetClassifier) -> None:
    model = pickle.loads(pickle.dumps(iris))
    calls = [
        lambda: model.partial_fit(IRIS.data, IRIS.target),
        lambda: model.fit(IRIS.data, IRIS.target, sample_weight=np.ones(150)),
        lambda: model.prune(IRIS.data, IRIS.target, 0.5),
        lambda: model.enable_pruning(0.5),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="trained whole"):
            call()


# --- the parts ----------------------------------------------------------------------------------


def test_residuals_are_those_of_rows_left_out() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    kernel = np.exp(-0.3 * np.square(X[:, None] - X).sum(axis=2))
    for ridge, residuals in zip((0.1, 1.0), left_out(kernel, Y, (0.1, 1.0))):
        for i in range(12):
            others = np.delete(np.arange(12), i)
            inner = kernel[np.ix_(others, others)] + ridge * np.eye(11)
            predicted = kernel[i, others] @ np.linalg.solve(inner, Y[others])
            np.testing.assert_allclose(residuals[i], Y[i] - predicted, rtol=1e-9)


def test_rows_keep_so_many_whatever_ties_there_are() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0], [0.5, 0.0, -2.0, 0.1]])
    signs = _Sparse.apply(rows, 2)
    assert signs.abs().sum(dim=1).tolist() == [2.0, 2.0, 2.0]
    assert signs[2].tolist() == [1.0, 0.0, -1.0, 0.0]


def test_thresholds_lie_between_values_that_occur() -> None:
    X = np.array([[0, 7, 1], [1, 7, 2], [2, 7, 1]], dtype=np.float32)
    edges = grid(X, 2)
    assert edges[0].tolist() == [0.5, 1.5]
    assert edges[1].tolist() == [np.inf, np.inf]
    assert edges[2].tolist() == [1.5, np.inf]


def test_a_network_reads_comparisons(iris: NeuralNetClassifier) -> None:
    door = iris.network_.input_quantizer
    assert isinstance(door, Comparisons)
    assert door.width == 4
    assert len(door.columns) == iris.network_.input_shape[0] <= 28
