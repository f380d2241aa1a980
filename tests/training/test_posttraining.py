"""Post-training quantization: near the float module, inside its budget, or refused by name."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from refqnn import certify, datasets, exact
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch
from refqnn.training import FloatMLP, loop, quantize_module


def trained(seed: int, activation: type[nn.Module] = nn.ReLU) -> tuple[nn.Module, np.ndarray]:
    """A network with batch norms of both signs, and rows."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), activation(), nn.Dropout(0.2)]
    layers += [nn.Linear(12, 8), activation(), nn.Linear(8, 3)]
    module = nn.Sequential(*layers)
    X = np.random.default_rng(seed).normal(size=(400, 6)).astype(np.float32)
    with torch.no_grad():
        module[1].weight.uniform_(-2, 2)
        for _ in range(30):
            module(torch.from_numpy(X))  # running statistics
    return module.eval(), X


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Hardtanh])
def test_eight_bits_follow_the_module(activation: type[nn.Module]) -> None:
    module, X = trained(1, activation)
    before = copy.deepcopy(module.state_dict())
    network = quantize_module(module, X, n_bits=8)
    with torch.no_grad():
        wanted = module(torch.from_numpy(X)).numpy()
    left = np.square(network.predict(X) - wanted).mean(axis=0) / wanted.var(axis=0)
    assert (left < 5e-3).all()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("bits", [5, 6, 7, 9, 12])
def test_no_accumulator_exceeds_its_budget_for_any_input(bits: int) -> None:
    module, X = trained(2)
    network = quantize_module(module, X, n_bits=4, n_accum_bits=bits, n_input_bits=2)
    layers = certify(network, method="interval").layers
    assert max(layer.signed_bits for layer in layers.values()) <= bits
    # And by Python's own integers, in a corner of every neuron of the first layer.
    weight, fmt = network.nodes[0].op.weight, network.input_format
    corners = np.where(weight > 0, fmt.q_max, fmt.q_min).tolist()
    for row in itertools.chain(corners, np.where(weight < 0, fmt.q_max, fmt.q_min).tolist()):
        (first,) = exact.trace(network, [row])["fc1"]
        assert all(-(2 ** (bits - 1)) <= value < 2 ** (bits - 1) for value in first)


def test_three_bits_of_a_trained_network_are_worth_something() -> None:
    data = datasets.load("digits")
    torch.manual_seed(0)
    module = FloatMLP(data.n_features, (64,), data.n_outputs)
    loop.fit(module, data.X_train, data.y_train, epochs=20)
    network = quantize_module(module.eval(), data.X_train, n_bits=3, n_accum_bits=8)
    right = network.predict(data.X_test).argmax(axis=1) == data.y_test
    assert right.mean() > 0.95  # 8-bit accumulators; plain rounding needs 11 and gives less


def test_dead_neurons_and_constant_features() -> None:
    module, X = trained(3)
    X[:, 2] = 0.0
    with torch.no_grad():
        module[0].weight[4] = 0.0
        module[4].bias[1] = -1e6
    network = quantize_module(module, X, n_accum_bits=7)
    assert np.isfinite(network.predict(X)).all()


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.GELU(), "GELU"), (nn.Softmax(1), "Softmax"), (nn.Conv1d(1, 1, 1), "Conv1d")],
)
def test_what_is_not_covered_is_named(layer: nn.Module, name: str) -> None:
    with pytest.raises(NotCovered, match=f"layer 1: got {name}"):
        quantize_module(nn.Sequential(nn.Linear(2, 2), layer), np.zeros((4, 2)))


def test_bad_arguments() -> None:
    module, X = trained(4)
    with pytest.raises(NotCovered, match="Sequential"):
        quantize_module(nn.LSTM(2, 2), X)
    with pytest.raises(NotCovered, match="layer 0"):
        quantize_module(nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), X)
    with pytest.raises(InvalidArgument, match="n_bits: got 1"):
        quantize_module(module, X, n_bits=1)
    with pytest.raises(ShapeMismatch, match=r"\(400, 5\)"):
        quantize_module(module, X[:, :5])
    X[3, 1] = np.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        quantize_module(module, X)


def _follows(module: nn.Module, X: np.ndarray) -> bool:
    """8-bit codes follow the module's outputs."""
    with torch.no_grad():
        y = module.eval()(torch.from_numpy(X)).numpy()
    p = quantize_module(module, X, 8).predict(X)
    assert p.shape == y.shape
    return bool(np.square(p - y).sum() < 0.05 * np.square(y - y.mean(axis=0)).sum())


def test_every_layer_counts_whatever_stands_between() -> None:
    """Layers without an activation between them, and one activation that is used twice."""
    torch.manual_seed(0)
    X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    relu, square = nn.ReLU(), nn.Linear(4, 4)
    assert _follows(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), X)
    assert _follows(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5), relu, nn.Linear(5, 2)), X)
    assert _follows(nn.Sequential(nn.Linear(4, 8), relu, nn.Linear(8, 5), relu), X)
    assert _follows(nn.Sequential(square, relu, square, relu, nn.Linear(4, 2)), X)


def test_modules_as_people_write_them() -> None:
    """Functions beside layers, a forward in another order than __init__, blocks of one's own."""

    class Block(nn.Module):
        def __init__(self, width: int, out: int) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(out), nn.Linear(width, out)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.relu(self.norm(self.fc(x)))

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.relu = nn.Linear(5, 2), nn.ReLU()
            self.blocks, self.last = nn.Sequential(Block(4, 8), Block(8, 6)), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.dropout(self.blocks(x), 0.5, training=self.training)
            return self.out(self.relu(torch.tanh(self.last(x))))

    class Images(nn.Module):
        def __init__(self, flat: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.fc, self.conv = nn.Linear(12, 2), nn.Conv2d(1, 3, 3, padding=1)
            self.flat = flat

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.flat(functional.max_pool2d(self.conv(x).relu(), 2)))

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    assert _follows(Dense(), rng.normal(size=(300, 4)).astype(np.float32))
    images = rng.normal(size=(300, 1, 4, 4)).astype(np.float32)
    assert _follows(Images(lambda x: x.view(x.size(0), -1)), images)
    assert _follows(Images(lambda x: torch.flatten(x, 1)), images)
    assert _follows(Images(lambda x: x.reshape(x.shape[0], -1)), images)
    pooled = [nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Tanh()]
    assert _follows(nn.Sequential(*pooled, nn.Linear(3, 2)), images)
    pooled[1] = nn.AvgPool2d(2)  # the mean of what an activation leaves is another
    with pytest.raises(NotCovered, match="layer 2: got ReLU"):
        quantize_module(nn.Sequential(*pooled, nn.Linear(3, 2)), images)
    with pytest.raises(NotCovered, match="its forward: got a call of transpose"):
        quantize_module(Images(lambda x: x.transpose(1, 2).flip(1)), images)
    with pytest.raises(NotCovered, match="its forward: got a call of add"):
        quantize_module(_Residual(), images[:, 0, 0])


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(functional.relu(self.fc(x)) + x)


def test_a_module_that_is_more_than_its_layers_is_refused() -> None:
    class Squared(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) ** 2

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(10 * x)

    X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for module in (Squared(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Scaled()):
        module.train()
        with pytest.raises(NotCovered, match="its forward"):
            quantize_module(module, X)
        assert all(part.training for part in module.modules())


def test_user_errors_are_errors_of_ours() -> None:
    X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    good = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for name, value in (("n_input_bits", 0), ("n_accum_bits", 1), ("n_accum_bits", "8")):
        with pytest.raises(InvalidArgument, match=name):
            quantize_module(good, X, 3, **{name: value})  # type: ignore[arg-type]
    unreal = ("x", [["a"] * 4] * 3, [[1], [1, 2]], X.astype(complex), None)
    for rows in (*unreal, torch.from_numpy(X).to_sparse()):
        with pytest.raises(InvalidType, match="X"):
            quantize_module(good, rows)  # type: ignore[arg-type]
    for module in (None, nn.Linear, "x"):
        with pytest.raises(InvalidType, match="float_module"):
            quantize_module(module, X)  # type: ignore[arg-type]
    with pytest.raises(NotCovered, match="float64"):
        quantize_module(copy.deepcopy(good).double(), X)
    with pytest.raises(InvalidArgument, match="fails on X"):
        quantize_module(nn.Sequential(nn.Linear(4, 8), nn.Linear(7, 2)), X)
    with pytest.raises(NotCovered, match="LeakyReLU behind layer 1"):
        quantize_module(nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(-0.5), nn.Linear(8, 2)), X)
    broken = copy.deepcopy(good)
    torch.nn.init.constant_(broken[0].weight, float("nan"))
    with pytest.raises(InvalidArgument, match="NaN"):
        quantize_module(broken, X)


# --- convolutions -------------------------------------------------------------------------------


def images(seed: int = 0, n: int = 200) -> np.ndarray:
    """Smooth images [n, 2, 9, 8] of both signs."""
    rough = np.random.default_rng(seed).normal(size=(n, 2, 11, 10))
    moved = [rough[:, :, i : i + 9, j : j + 8] for i in range(3) for j in range(3)]
    return np.mean(moved, axis=0).astype(np.float32)


class Net(nn.Module):
    """As users write them: two parts, called in order."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 6, (3, 2), padding=(1, 0), bias=False),
            *(nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2, (2, 1), 1), nn.Dropout2d(0.1)),
            *(nn.Conv2d(6, 8, 3, stride=(1, 2), dilation=(1, 2)), nn.Tanh(), nn.MaxPool2d((2, 1))),
            *(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.Hardtanh(), nn.AdaptiveAvgPool2d(1)),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.ELU(), nn.Linear(7, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def convolutional(X: np.ndarray) -> Net:
    torch.manual_seed(5)
    net = Net()
    with torch.no_grad():
        net.features[1].weight.uniform_(-2, 2)
        for _ in range(30):
            net(torch.from_numpy(X))
    return net.eval()


@pytest.mark.parametrize("bits", [6, 8])
def test_a_convolutional_network_is_followed(bits: int) -> None:
    X = images()
    net = convolutional(X)
    with torch.no_grad():
        wanted = net(torch.from_numpy(X)).numpy()
    network = quantize_module(net, X, n_bits=bits)
    left = np.square(network.predict(X) - wanted).mean(axis=0) / wanted.var(axis=0)
    assert (left < {6: 0.05, 8: 0.005}[bits]).all()
    kinds = [node.op.kind for node in network.nodes]
    assert (kinds.count("Conv2d"), kinds.count("SumPool2d"), kinds.count("MaxPool2d")) == (3, 2, 1)


def test_the_budget_counts_the_sums_of_pools() -> None:
    """A pool of 2 x 2 codes of 3 bits reaches 28, and the next layer reads that."""
    X = images()
    network = quantize_module(convolutional(X), X, n_bits=3, n_accum_bits=9)
    layers = certify(network, method="interval").layers
    weighted = [node.name for node in network.nodes if node.op.kind in ("Conv2d", "Linear")]
    assert len(weighted) == 5
    assert all(layers[name].signed_bits <= 9 for name in weighted)
    codes = network.quantize_input(X[:2])
    traced = exact.trace(network, codes.tolist())  # the integers are those of Python
    assert np.array_equal(network.forward(codes), traced[network.output])


def test_a_pool_of_means_is_the_mean() -> None:
    """What follows reads sums; the float layer reads means: no scale may be lost between."""
    X = np.abs(images())
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(24, 2))
    )
    assert _follows(net, X)
    assert _follows(nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 2)), X)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.Conv2d(2, 4, 3, groups=2), r"layer 0 \(Conv2d\), groups: got 2"),
        (nn.Conv2d(2, 4, 3, padding_mode="circular"), "padding_mode: got circular"),
        (nn.Conv2d(2, 4, 3, padding="same"), "padding: got same"),
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode: got True"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override: got 3"),
        (nn.AvgPool2d(2, 2, 1, count_include_pad=False), "count_include_pad: got False"),
        (nn.MaxPool2d(2, dilation=2), "dilation: got 2"),
        (nn.AdaptiveAvgPool2d(2), "output_size: got 2"),
        (nn.AdaptiveMaxPool2d(1), "AdaptiveMaxPool2d"),
        (nn.ConvTranspose2d(4, 4, 3), "ConvTranspose2d"),
        (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats: got False"),
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.Flatten(2), "start_dim: got 2"),
        (nn.Upsample(scale_factor=2), "Upsample"),
    ],
)
def test_layers_and_settings_that_are_not_covered_are_named(part: nn.Module, name: str) -> None:
    before = [] if isinstance(part, nn.Conv2d) else [nn.Conv2d(2, 4, 3), nn.ReLU()]
    net = nn.Sequential(*before, part, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(NotCovered, match=name):
        quantize_module(net.eval(), images())


def test_images_where_they_cannot_be_are_refused() -> None:
    X = images(n=20)
    with pytest.raises(NotCovered, match=r"nn\.Linear at the end"):
        quantize_module(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), X)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(NotCovered, match="AvgPool2d of its sums"):
        quantize_module(net, X)
    for rows in (X[0], X[:, :1], X[:1], X.reshape(20, -1)):
        with pytest.raises(ShapeMismatch, match="X"):
            quantize_module(convolutional(images()), rows)
    tables = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(NotCovered, match=r"nn\.Flatten"):
        quantize_module(tables, X)
