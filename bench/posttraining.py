"""Post-training quantization: what a trained float network is worth at 2 to 8 bits.

Digits; an MLP 64-64-10 and a small convolutional network, both with batch normalization, dropout
and ordinary float training.  `quantize_module` makes weights, activations and inputs of the same
number of bits, with the training rows and without their labels.  Accuracy is that of the integer
network on held-out rows; widths are certified.

    python bench/posttraining.py            # a minute on one core
    python bench/posttraining.py --quick    # one seed, one epoch, nothing written
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import mean

import torch
from common import Session
from torch import nn

from refqnn import certify, datasets
from refqnn.training import loop, quantize_module

SEEDS, EPOCHS = 3, 20
BITS = range(2, 9)
NETWORKS = ("MLP", "CNN")


@dataclass(frozen=True)
class Run:
    """One network of one seed; bits None: in float."""

    network: str
    seed: int
    bits: int | None
    accuracy: float
    widths: tuple[int, ...] = ()  # certified accumulators, layer by layer


def built(network: str) -> nn.Sequential:
    if network == "MLP":
        hidden = (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1))
        return nn.Sequential(*hidden, nn.Linear(64, 10))
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2))
    second = (nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))


def runs(network: str, seed: int, epochs: int) -> Iterator[Run]:
    data = datasets.load("digits", seed)
    shape = (-1, 64) if network == "MLP" else (-1, 1, 8, 8)
    X_train, X_test = (X.reshape(shape) for X in (data.X_train, data.X_test))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = built(network)
        loop.fit(module, X_train, data.y_train, epochs=epochs, lr=0.01, seed=seed)
    yield Run(network, seed, None, loop.accuracy(module, X_test, data.y_test))
    for bits in BITS:
        quantized = quantize_module(module, X_train, n_bits=bits)
        right = quantized.predict(X_test).argmax(axis=1) == data.y_test
        layers = certify(quantized, method="interval").layers.values()
        yield Run(network, seed, bits, float(right.mean()), tuple(x.signed_bits for x in layers))


def summary(done: list[Run]) -> dict[str, dict[str, float]]:
    """Mean accuracy by network and bits ("float" for none)."""
    result: dict[str, dict[str, float]] = {}
    for network, bits in dict.fromkeys((run.network, run.bits) for run in done):
        found = [run.accuracy for run in done if (run.network, run.bits) == (network, bits)]
        result.setdefault(network, {})[str(bits or "float")] = round(mean(found), 4)
    return result


def main() -> None:
    session = Session("posttraining", __doc__, "one seed, one epoch, nothing written")
    torch.set_num_threads(1)
    done: list[Run] = []
    for network in NETWORKS:
        for seed in range(1 if session.quick else SEEDS):
            for run in runs(network, seed, 1 if session.quick else EPOCHS):
                done.append(run)
                session.say(f"{network} seed {seed} {run.bits} bits: {run.accuracy:.3f}")
    for network, row in summary(done).items():
        print(network, "  ".join(f"{bits}: {value:.3f}" for bits, value in row.items()))
    if not session.quick:
        content = {"seeds": SEEDS, "mean_accuracy": summary(done)}
        session.write({**content, "runs": [asdict(run) for run in done]})


if __name__ == "__main__":
    main()
