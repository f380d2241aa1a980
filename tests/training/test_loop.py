"""The training loop: deterministic, strict about its inputs, good enough by default."""

# ruff: noqa: E402 - the extra may be absent

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("sklearn")

from refqnn import certify, datasets, from_brevitas
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch
from refqnn.training import loop, modules


def run(seed: int, epochs: int = 4, twin: bool = False) -> tuple[torch.nn.Module, list[loop.Epoch]]:
    data = datasets.load("iris")
    config = loop.demo_config("iris")
    make = loop.build_float if twin else loop.build
    net = make(config, data.n_features, data.n_outputs, seed)
    return net, loop.fit(net, data.X_train, data.y_train, epochs=epochs, batch_size=16, seed=seed)


@pytest.mark.parametrize("twin", [False, True])
def test_equal_seeds_give_equal_bits(twin: bool) -> None:
    first, history = run(3, twin=twin)
    torch.rand(7)  # the global random state must not matter
    second, again = run(3, twin=twin)
    assert history == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other, _ = run(4, twin=twin)
    assert any(not torch.equal(v, other.state_dict()[n]) for n, v in first.state_dict().items())


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(0, epochs=2)
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_reported_each_epoch() -> None:
    seen: list[tuple[int, float, float]] = []
    data = datasets.load("iris")
    net = loop.build(loop.demo_config("iris"), 4, 3)
    history = loop.fit(
        net, data.X_train, data.y_train, epochs=3, on_epoch=lambda *args: seen.append(args)
    )
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3]
    assert [(e.epoch, e.loss, e.accuracy) for e in history] == seen
    assert all(math.isfinite(loss) and 0.0 <= score <= 1.0 for _, loss, score in seen)


def test_fit_ends_in_evaluation_mode_with_its_norms_frozen() -> None:
    net, _ = run(0)
    assert not net.training
    norms = [part for part in net.modules() if isinstance(part, modules.PowerOfTwoNorm)]
    assert norms
    assert all(norm.frozen for norm in norms)


def test_a_last_batch_of_one_row_is_left_out() -> None:
    data = datasets.load("iris")
    net = loop.build(loop.demo_config("iris"), 4, 3)
    loop.fit(net, data.X_train[:33], data.y_train[:33], epochs=2, batch_size=16)


def test_targets_train_a_regressor() -> None:
    data = datasets.load("diabetes")
    torch.manual_seed(0)
    net = modules.SparseQuantNeuralNetImpl(10, 2, 1, hidden_sizes=(8,), output_std=1.0)
    history = loop.fit(net, data.X_train, data.y_train, epochs=15, lr=0.01)
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > 0.3


X = np.zeros((8, 4), dtype=np.float32)
Y = np.arange(8) % 3


@pytest.mark.parametrize(
    ("x", "y", "options", "error"),
    [
        (X, Y[:7], {}, ShapeMismatch),
        (X[:1], Y[:1], {}, ShapeMismatch),
        (X[0], Y, {}, ShapeMismatch),
        (np.full_like(X, np.nan), Y, {}, InvalidArgument),
        (X.astype(str), Y, {}, InvalidType),
        (X, Y.astype(str), {}, InvalidType),
        (X, Y - 1, {}, InvalidArgument),
        (X, np.full(8, np.inf), {}, InvalidArgument),
        (X, Y, {"epochs": 0}, InvalidArgument),
        (X, Y, {"batch_size": 0}, InvalidArgument),
        (X, Y, {"lr": 0.0}, InvalidArgument),
        (X, Y, {"sparsify": (0.5, 0.1)}, InvalidArgument),
        (X, Y, {"freeze": 1.5}, InvalidArgument),
    ],
)
def test_bad_inputs_are_refused(x: Any, y: Any, options: dict[str, Any], error: type) -> None:
    net = modules.FloatMLP(4, (4,), 3)
    with pytest.raises(error):
        loop.fit(net, x, y, **options)


def test_unknown_configuration_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="name"):
        loop.demo_config("mnist")


def test_every_classification_set_has_a_configuration_that_fits_it() -> None:
    for name in datasets.NAMES:
        if name in ("diabetes", "mnist5k"):
            continue
        data = datasets.load(name)
        config = loop.demo_config(name)
        assert config.input_signed == bool((data.X_train < 0).any())
        net = loop.build(config, data.n_features, data.n_outputs)
        assert loop.predict(_calibrated(net, data.X_train), data.X_test).shape == (
            len(data.X_test),
            data.n_outputs,
        )


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_narrow_settings_need_one_4_bit_table(name: str) -> None:
    data = datasets.load(name)
    config = loop.demo_config(name, narrow=True)
    net = loop.build(config, data.n_features, data.n_outputs)
    loop.fit(net, data.X_train, data.y_train, epochs=4, batch_size=64)
    hidden = net.accumulator_ranges()[0]
    assert hidden.span_bits <= 4


def test_narrow_settings_of_breast_cancer_read_one_input_a_neuron() -> None:
    data = datasets.load("breast_cancer")
    config = loop.demo_config("breast_cancer", narrow=True)
    net = loop.build(config, data.n_features, data.n_outputs)
    loop.fit(net, data.X_train, data.y_train, epochs=4, batch_size=64)
    weight = from_brevitas(net, data.X_train[:2]).nodes[0].op.weight
    assert (weight != 0).sum(axis=1).max() == 1


def _calibrated(net: torch.nn.Module, x: np.ndarray) -> torch.nn.Module:
    net.calibrate(torch.tensor(x))
    return net


def test_iris_is_learned_in_seconds() -> None:
    data = datasets.load("iris")
    config = loop.demo_config("iris")
    net = loop.build(config, 4, 3, seed=0)
    loop.fit(net, data.X_train, data.y_train, seed=0, **config.training)
    assert loop.accuracy(net, data.X_test, data.y_test) >= 0.93
    found = net.accumulator_ranges()[0]
    assert found.span_bits <= 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("iris", 0.95),
        ("breast_cancer", 0.95),
        ("digits", 0.96),
        ("moons", 0.95),
        ("checkerboard", 0.93),
        ("wine", 0.95),
        ("iris narrow", 0.95),
        ("breast_cancer narrow", 0.94),
        ("digits narrow", 0.955),
    ],
)
def test_demo_settings_reach_their_targets(name: str, target: float) -> None:
    name, *variant = name.split()
    scores = []
    for seed in range(3):
        data = datasets.load(name, seed)
        config = loop.demo_config(name, narrow=bool(variant))
        net = loop.build(config, data.n_features, data.n_outputs, seed)
        loop.fit(net, data.X_train, data.y_train, seed=seed, **config.training)
        scores.append(loop.accuracy(net, data.X_test, data.y_test))
    assert sum(scores) / len(scores) >= target, scores


@pytest.mark.parametrize("epochs", [1, 3, 7])
def test_few_epochs_meet_the_fan_in(epochs: int) -> None:
    data = datasets.load("wine")
    net = modules.SparseQuantNeuralNetImpl(13, 2, 3, hidden_sizes=(16,), fan_in=2)
    loop.fit(net, data.X_train, data.y_train, epochs=epochs)
    hidden, _ = net.blocks()
    assert ((hidden.linear.weight != 0).sum(dim=1) <= 2).all()


def test_budgets_are_kept_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.load("wine")
    net = modules.SparseQuantNeuralNetImpl(13, 2, 3, hidden_sizes=(16,))
    net.add_accumulator_budgets(6)
    calls = []
    shrink = net.shrink_to_budgets
    monkeypatch.setattr(net, "shrink_to_budgets", lambda: calls.append(shrink()))
    loop.fit(net, data.X_train, data.y_train, epochs=3)
    assert len(calls) == 3 * math.ceil(len(data.X_train) / 64)
    certificate = certify(from_brevitas(net.plain_copy(), data.X_train[:1]))
    assert all(layer.signed_bits <= 6 for layer in certificate.layers.values())
