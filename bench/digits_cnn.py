"""Digits: convolutional networks with certified accumulators, one of them cheap enough to encrypt.

1,797 images of 8 x 8 pixels, a fifth held out, three seeds (split, weights, order of the batches).
Ternary weights, 2-bit hidden codes, power-of-two scales:

    large   two convolutions of 24 channels, 3-bit inputs; every accumulator of every layer, bias
            and last layer included, projected into 8 signed bits while training
    small   one convolution of 16 channels and stride 2, 5 weights a channel, 2-bit inputs: 256
            hidden values of 4 bits, which one 4-bit table each can look up
    tiny    the same with 8 channels: 128 hidden values

Of every network: accuracy of the integers on the held-out images, how many codes differ between the
Brevitas module and the integers, certified widths.  Of large and small with the first seed: whether
the circuit's simulation gives the same integers on all held-out images, and images encrypted.

The literature reports .90 in clear and random answers quantized for a network of this kind.

    python bench/digits_cnn.py            # 5 minutes on two cores
    python bench/digits_cnn.py --quick    # a few epochs of the tiny one, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import Session
from numpy.typing import NDArray

import refqnn
from refqnn import Accumulator, Network, certify, datasets
from refqnn.brevitas import verify_against
from refqnn.training import loop
from refqnn.training.modules import QuantConvNet

SEEDS = 3
ENCRYPTED = {"large": 1, "small": 2}  # images of the first seed
TARGET = 0.97
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Variant:
    """Arguments of QuantConvNet, signed bits of every accumulator (None: no budget), epochs."""

    arguments: dict[str, Any]
    budget: int | Accumulator | None
    epochs: int


_NARROW = {"strides": (2,), "fan_in": 5, "table_bits": 4}
# The settings of large were chosen on split 100, those of small and tiny before on splits 0, 1, 2.
VARIANTS = {
    "large": Variant({"channels": (24, 24), "strides": (1, 2), "n_input_bits": 3}, 8, 80),
    "small": Variant({"channels": (16,), **_NARROW}, None, 120),
    "tiny": Variant({"channels": (8,), **_NARROW}, None, 120),
}


@dataclass(frozen=True)
class Run:
    """Widths in bits, certified, per layer in order; the last layer enters no table."""

    variant: str
    seed: int
    accuracy: float
    codes: int
    codes_differ: int
    signed_bits: tuple[int, ...]
    span_bits: tuple[int, ...]
    hidden_values: int
    seconds: float


def images(X: Images) -> Images:
    return X.reshape(-1, 1, 8, 8)


def train(name: str, seed: int, epochs: int | None = None) -> QuantConvNet:
    """The trained module of a variant; equal arguments give equal weights."""
    return trained(VARIANTS[name], seed, epochs)


def trained(variant: Variant, seed: int, epochs: int | None = None) -> QuantConvNet:
    data = datasets.load("digits", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = QuantConvNet((1, 8, 8), data.n_outputs, **variant.arguments)
    if variant.budget is not None:
        module.add_accumulator_budgets(variant.budget)
    loop.fit(
        module,
        images(data.X_train),
        data.y_train,
        epochs=epochs or variant.epochs,
        lr=0.02,
        seed=seed,
    )
    module.make_pruning_permanent()
    return module


def small(seed: int = 0) -> Network:
    """The integers of the small variant; inputs are codes 0..3, [1, 8, 8]."""
    return refqnn.from_brevitas(train("small", seed), torch.zeros(2, 1, 8, 8))


def run(name: str, seed: int, epochs: int | None = None) -> tuple[Run, Network]:
    start = time.perf_counter()
    data = datasets.load("digits", seed)
    X_test = images(data.X_test)
    module = train(name, seed, epochs)
    network = refqnn.from_brevitas(module, torch.zeros(2, 1, 8, 8))
    report = verify_against(module, network, X_test)
    acc = network.forward(network.quantize_input(X_test))
    layers = list(certify(network, method="interval").layers.values())
    return (
        Run(
            variant=name,
            seed=seed,
            accuracy=float((acc.argmax(axis=1) == data.y_test).mean()),
            codes=report.codes,
            codes_differ=sum(layer.codes - layer.equal for layer in report.layers),
            signed_bits=tuple(layer.signed_bits for layer in layers),
            span_bits=tuple(layer.span_bits for layer in layers),
            hidden_values=sum(layer.range.lo.size for layer in layers[:-1]),
            seconds=round(time.perf_counter() - start, 1),
        ),
        network,
    )


def encrypt(network: Network, seed: int, samples: int) -> dict[str, Any]:
    """Simulate all held-out images, encrypt some; counts of images with any wrong integer."""
    from refqnn import fhe

    data = datasets.load("digits", seed)
    codes = network.quantize_input(images(data.X_test))
    expected = network.forward(codes)
    circuit = fhe.compile(network)
    simulated = circuit.simulate(codes)
    keygen = circuit.keygen()
    seconds: list[float] = []
    start = time.perf_counter()

    def clock(_: str) -> None:
        seconds.append(round(time.perf_counter() - start - sum(seconds), 2))

    executed = circuit.execute(codes[:samples], on_sample=clock)
    return {
        "lookups": {str(bits): n for bits, n in circuit.pbs.items()},
        "complexity": circuit.complexity,
        "simulated": len(codes),
        "simulated_differ": int((simulated != expected).any(axis=1).sum()),
        "encrypted": samples,
        "encrypted_differ": int((executed != expected[:samples]).any(axis=1).sum()),
        "keygen_seconds": round(keygen, 1),
        "seconds_each": seconds,
    }


def measure(report: Callable[[Run], None]) -> tuple[list[Run], dict[str, Any]]:
    runs: list[Run] = []
    encrypted: dict[str, Any] = {}
    for name in VARIANTS:
        for seed in range(SEEDS):
            found, network = run(name, seed)
            runs.append(found)
            report(found)
            if name in ENCRYPTED and seed == 0:
                encrypted[name] = encrypt(network, seed, ENCRYPTED[name])
                print(f"         encrypted: {encrypted[name]}", flush=True)
    return runs, encrypted


def plot(runs: list[Run], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(6.4, 3.8)
    labels = []
    for place, (name, colour) in enumerate(zip(VARIANTS, COLOURS)):
        chosen = [r for r in runs if r.variant == name]
        values = [r.accuracy for r in chosen]
        axes.plot([place] * len(values), values, "o", color=colour, alpha=0.7)
        axes.plot([place - 0.2, place + 0.2], [mean(values)] * 2, color=colour)
        axes.annotate(f"{mean(values):.3f}", (place + 0.24, mean(values)), va="center")
        hidden = max(max(r.signed_bits[:-1]) for r in chosen)
        last = max(r.signed_bits[-1] for r in chosen)
        labels.append(
            f"{name}\n{chosen[0].hidden_values} hidden values\n{hidden} bits, last layer {last}"
        )
    axes.axhline(TARGET, color="grey", linewidth=1, linestyle="--", label=f"target {TARGET}")
    legend_below(axes)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.3)
    axes.set_ylabel("test accuracy, integer network")
    seeds = len({r.seed for r in runs})
    axes.set_title(f"Digits, convolutional, 360 test digits: a marker for each of {seeds} seeds")
    save_figure(fig, path)


def main() -> None:
    session = Session("digits_cnn", __doc__, "a few epochs, nothing written")
    torch.set_num_threads(1)

    def report(r: Run) -> None:
        session.say(
            f"{r.variant:<5} seed {r.seed}  "
            f"{r.accuracy:.3f}  {r.signed_bits} bits, span {r.span_bits}  "
            f"{r.codes_differ} of {r.codes} codes differ"
        )

    if session.quick:
        report(run("tiny", 0, epochs=4)[0])
        return
    runs, encrypted = measure(report)
    content = {
        "variants": {name: asdict(variant) for name, variant in VARIANTS.items()},
        "accuracy": {n: mean(r.accuracy for r in runs if r.variant == n) for n in VARIANTS},
        "encrypted": encrypted,
        "runs": [asdict(r) for r in runs],
    }
    plot(runs, session.write(content))


if __name__ == "__main__":
    main()
