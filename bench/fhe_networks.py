"""The networks of the encrypted benches: trained here, the same for the same seed.

NAME            what it is
iris, digits    trained for encryption: ternary weights, hidden sums of at most 4 bits
breast_cancer, digits alone
                each neuron reads one input: no lookup at all; width and bits by cross-validation on
                the training samples
iris target, ...
                NeuralNetClassifier(target="encrypted"): lookups of 3 bits, as many as it chooses
                (digits: 64)
iris w3a3, ...  the demonstration's: 3-bit weights and codes, sparse rows
iris dense, ... the peer's default: 3-bit weights and codes, every input, hidden = 4 x inputs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import refqnn
from refqnn import Network, datasets
from refqnn.training import NeuralNetClassifier, loop

DATASETS = ("iris", "breast_cancer", "digits")


@dataclass(frozen=True, eq=False)
class Trained:
    """An integer network, its float twin, its data.

    Attributes:
        inputset: codes [n, *input_shape] of the training samples.
        codes, labels: of the test samples.
    """

    name: str
    network: Network
    float_module: torch.nn.Module
    X_test: NDArray[np.float32]
    labels: NDArray[np.int64]
    inputset: NDArray[np.int64]
    codes: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Of the integer network on the test samples."""
        return self.accuracy_of(self.network.forward(self.codes))

    def accuracy_of(self, outputs: NDArray[Any]) -> float:
        """Share of right classes; `outputs` may stop early."""
        return float((outputs.argmax(axis=1) == self.labels[: len(outputs)]).mean())


def _dense(name: str) -> loop.DemoConfig:
    features = datasets.load(name, 0).n_features
    epochs, batch = (100, 16) if name == "iris" else (30, 64)
    hidden = (4 * features,)
    return loop.DemoConfig(hidden, epochs=epochs, batch_size=batch, input_signed=name != "digits")


def digits_alone(hidden: int = 256) -> loop.DemoConfig:
    """Digits with one pixel for each hidden neuron."""
    narrow = loop.demo_config("digits", narrow=True)
    return replace(
        narrow, hidden_sizes=(hidden,), fan_in=1, table_bits=None, n_input_bits=3, n_w_bits=3
    )


CONFIGS: dict[str, Callable[[], tuple[str, loop.DemoConfig]]] = {
    **{name: lambda n=name: (n, loop.demo_config(n, narrow=True)) for name in DATASETS},
    "digits alone": lambda: ("digits", digits_alone()),
    **{f"{name} w3a3": lambda n=name: (n, loop.demo_config(n)) for name in DATASETS},
    **{f"{name} dense": lambda n=name: (n, _dense(n)) for name in DATASETS},
}


@cache
def trained(name: str, seed: int = 0) -> Trained:
    """Train a network of `CONFIGS`, or the small CNN under the name "digits CNN"."""
    torch.set_num_threads(1)
    if name == "digits CNN":
        import digits_cnn

        return _small_cnn(name, digits_cnn.small(seed), seed)
    if name.endswith(" target"):
        return _for_encryption(name, seed)
    dataset, config = CONFIGS[name]()
    data = datasets.load(dataset, seed)
    module = loop.build(config, data.n_features, data.n_outputs, seed)
    loop.fit(module, data.X_train, data.y_train, seed=seed, **config.training)
    network = refqnn.from_brevitas(module, data.X_train[:2])
    return _with_data(name, network, _float_twin(config, data, seed), data)


def _for_encryption(name: str, seed: int) -> Trained:
    """The float twin: the demonstration's."""
    dataset = name.removesuffix(" target")
    data, config = datasets.load(dataset, seed), loop.demo_config(dataset)
    sizes = {"module__hidden_sizes": (64,)} if dataset == "digits" else {}
    model = NeuralNetClassifier(
        target="encrypted", budget_s=30.0, random_state=seed, verbose=0, **sizes
    )
    model.fit(data.X_train, data.y_train)
    return _with_data(name, model.network_, _float_twin(config, data, seed), data)


def _float_twin(config: loop.DemoConfig, data: Any, seed: int) -> torch.nn.Module:
    """Nothing quantized; the same sizes and data."""
    twin = loop.build_float(config, data.n_features, data.n_outputs, seed)
    plain = replace(config, epochs=config.float_epochs)
    loop.fit(twin, data.X_train, data.y_train, seed=seed, **plain.training)
    return twin


def _small_cnn(name: str, network: Network, seed: int) -> Trained:
    """The float twin: one convolution of the same sizes, dense, with a normalization."""
    data = datasets.load("digits", seed)
    channels = network.nodes[0].op.weight.shape[0]
    torch.manual_seed(seed)
    twin = torch.nn.Sequential(
        torch.nn.Conv2d(1, channels, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(channels),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * channels, data.n_outputs),
    )
    images = data.X_train.reshape(-1, 1, 8, 8)
    loop.fit(twin, images, data.y_train, epochs=60, seed=seed)
    return _with_data(name, network, twin, data)


def _with_data(name: str, network: Network, twin: torch.nn.Module, data: Any) -> Trained:
    X_train, X_test = data.X_train, data.X_test
    if len(network.input_shape) > 1:
        X_train, X_test = (X.reshape(-1, *network.input_shape) for X in (X_train, X_test))
    return Trained(
        name,
        network,
        twin,
        X_test,
        data.y_test,
        network.quantize_input(X_train),
        network.quantize_input(X_test),
    )
