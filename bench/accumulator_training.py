"""Training under an accumulator budget: which constraint costs how much accuracy?

Digits, 64-64-10, 3-bit weights and activations, n = 7, 8, 9 bits, four seeds.

    unconstrained   no budget
    omega           per layer, the omega(n, 3, 3) * out largest weights; trained dense, then pruned
    4 x omega       the same with four times as many
    a2q             sum |w| x_max <= 2**(n-1) - 1 for each row, the bias not counted
    sign-split      refqnn.pruning.project: both sides exactly, the bias included

a2q and sign-split share everything else: real weights projected onto the budget after each step,
largest-remainder rounding and a straight-through gradient in each forward pass.

Accuracy is that of the integer network on held-out data, widths are certified (refqnn.certify).
A run is a violation when a certified width exceeds n.

    python bench/accumulator_training.py            # 3 minutes on one core
    python bench/accumulator_training.py --quick    # one seed, n = 8
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from common import Session
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn import Accumulator, IntFormat, Linear, Network, Node, Requantize, certify, omega
from refqnn.pruning import registers
from refqnn.training.budget import project_ste, projected, shrink_

WEIGHTS = IntFormat(3, signed=True, narrow=True)
CODES = IntFormat(3, signed=False)
HIDDEN, EPOCHS, BATCH, RATE = 64, 40, 32, 5e-3
METHODS = ("omega", "4 x omega", "a2q", "sign-split")
WIDTHS = (7, 8, 9)


def round_ste(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class QuantLayer(nn.Module):
    """acc = codes @ weight codes + bias codes, with one learned scale for the weights."""

    def __init__(self, n_in: int, n_out: int, method: str, bits: int | Accumulator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.scale = nn.Parameter(self.weight.detach().std() * 0.7)
        self.method, self.bits = method, bits
        last = registers(bits)[-1]
        self.bias_ends = last.q_min, last.q_max
        self.register_buffer("mask", torch.ones(n_out, n_in))

    def codes(self, input_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integer-valued weights and biases, and the value of one accumulator unit."""
        scale = self.scale.abs() + 1e-6
        real = (self.weight * self.mask / scale).clamp(WEIGHTS.q_min, WEIGHTS.q_max)
        unit = scale * input_scale
        bias = round_ste(self.bias / unit.detach())
        if self.method == "sign-split":
            bias = bias + (bias.clamp(*self.bias_ends) - bias).detach()
            return project_ste(real, bias, (CODES.q_min, CODES.q_max), self.bits), bias, unit
        if self.method == "a2q":
            # The same rounding under one budget for both signs, bias not counted.
            codes = projected(real.abs(), None, (CODES.q_min, CODES.q_max), self.bits)
            return real + (real.sign() * codes - real).detach(), bias, unit
        return round_ste(real), bias, unit

    @torch.no_grad()
    def constrain(self, input_scale: Tensor) -> None:
        """After a step: the real weights back into the budget (projected gradient)."""
        scale = self.scale.abs() + 1e-6
        if self.method == "sign-split":
            bias = (self.bias / (scale * input_scale)).round().clamp(*self.bias_ends)
            shrink_(self.weight, scale, bias, (CODES.q_min, CODES.q_max), self.bits)
        elif self.method == "a2q":
            magnitude = self.weight.abs()
            shrink_(magnitude, scale, None, (CODES.q_min, CODES.q_max), self.bits)
            self.weight.copy_(self.weight.sign() * magnitude)

    @torch.no_grad()
    def prune(self, weights: int) -> None:
        """Keep the largest weights of the whole layer, as pruning libraries do."""
        magnitude = (self.weight * self.mask).abs().flatten()
        kept = magnitude.topk(min(weights, len(magnitude))).indices
        self.mask.zero_().view(-1)[kept] = 1.0


class Model(nn.Module):
    """Inputs are codes 0..7 of value code / 7."""

    def __init__(self, method: str, bits: int | Accumulator) -> None:
        super().__init__()
        self.fc1 = QuantLayer(64, HIDDEN, method, bits)
        self.fc2 = QuantLayer(HIDDEN, 10, method, bits)
        self.step = nn.Parameter(torch.tensor(0.25))  # of the hidden codes
        self.register_buffer("input_step", torch.tensor(1 / 7))

    def forward(self, codes: Tensor) -> Tensor:
        w1, b1, unit1 = self.fc1.codes(self.input_step)
        step = self.step.abs() + 1e-6
        hidden = ((codes @ w1.T + b1) * unit1 / step).clamp(CODES.q_min, CODES.q_max)
        w2, b2, unit2 = self.fc2.codes(step)
        return (round_ste(hidden) @ w2.T + b2) * unit2

    @torch.no_grad()
    def integers(self) -> Network:
        step = self.step.abs() + 1e-6
        w1, b1, unit1 = self.fc1.codes(self.input_step)
        w2, b2, _ = self.fc2.codes(step)
        requantize = Requantize.from_scale(unit1.item(), step.item(), CODES, "half_even")
        return Network(
            [
                Node("fc1", Linear(_integers(w1), _integers(b1))),
                Node("act1", requantize),
                Node("fc2", Linear(_integers(w2), _integers(b2))),
            ],
            input_shape=(64,),
            input_format=CODES,
        )


def _integers(x: Tensor) -> NDArray[np.int64]:
    codes = x.round().to(torch.int64)
    assert torch.allclose(codes.to(x.dtype), x, atol=1e-3, rtol=0)
    return codes.numpy()


@dataclass(frozen=True)
class Run:
    method: str
    bits: int
    seed: int
    accuracy: float
    widths: tuple[int, ...]  # certified, per layer

    @property
    def violates(self) -> bool:
        return self.method != "unconstrained" and max(self.widths) > self.bits


def data(seed: int) -> tuple[NDArray[np.int64], ...]:
    """Codes 0..7 of the 8 x 8 digits (pixels 0..16), split by the seed, a quarter held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    codes = np.rint(X * 7 / 16).astype(np.int64)
    return tuple(train_test_split(codes, y, test_size=0.25, random_state=seed, stratify=y))


def trained(method: str, bits: int | Accumulator, seed: int, epochs: int) -> tuple[Network, float]:
    """The integers, and their accuracy on held-out data."""
    torch.manual_seed(seed)
    X_train, X_test, y_train, y_test = data(seed)
    model = Model(method, bits)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    X, y = torch.tensor(X_train, dtype=torch.float32), torch.tensor(y_train)
    times = {"omega": 1, "4 x omega": 4}.get(method)
    for epoch in range(epochs):
        if times is not None and isinstance(bits, int) and epoch == epochs // 2:
            for layer in (model.fc1, model.fc2):
                layer.prune(times * omega(bits, WEIGHTS.bits, CODES.bits) * len(layer.weight))
        for batch in torch.randperm(len(X)).split(BATCH):
            loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.fc1.constrain(model.input_step)
            model.fc2.constrain(model.step.abs() + 1e-6)
        schedule.step()
    network = model.integers()
    return network, float((network.forward(X_test).argmax(1) == y_test).mean())


def train(method: str, bits: int, seed: int, epochs: int) -> Run:
    network, accuracy = trained(method, bits, seed, epochs)
    layers = certify(network, method="interval").layers
    return Run(method, bits, seed, accuracy, tuple(v.signed_bits for v in layers.values()))


def measure(seeds: int, widths: tuple[int, ...], report: Callable[[Run], None]) -> list[Run]:
    plan = [("unconstrained", 16)] + [(m, n) for n in widths for m in METHODS]
    runs = []
    for method, bits in plan:
        for seed in range(seeds):
            runs.append(train(method, bits, seed, EPOCHS))
            report(runs[-1])
    return runs


def plot(runs: list[Run], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(6.4, 3.8)
    widths = sorted({r.bits for r in runs if r.method != "unconstrained"})
    for method, colour in zip(METHODS, COLOURS):
        groups = [[r for r in runs if r.method == method and r.bits == n] for n in widths]
        axes.plot(widths, [mean(r.accuracy for r in g) for g in groups], color=colour, label=method)
        for n, group in zip(widths, groups):
            for fill, some in (("full", False), ("none", True)):
                chosen = [r.accuracy for r in group if r.violates is some]
                axes.plot([n] * len(chosen), chosen, "o", color=colour, fillstyle=fill, ms=4)
    free = mean(r.accuracy for r in runs if r.method == "unconstrained")
    axes.axhline(free, color="grey", linewidth=1, linestyle="--", label="unconstrained")
    axes.set_xticks(widths)
    axes.set_xlabel(
        "accumulator budget n (bits, two's complement); hollow: certified width exceeds it"
    )
    axes.set_ylabel("test accuracy, integer network")
    seeds = len({r.seed for r in runs})
    axes.set_title(f"Digits 64-64-10, w3a3, 450 test digits: a marker for each of {seeds} seeds")
    legend_below(axes, 3)
    save_figure(fig, path)


def main() -> None:
    session = Session("accumulator_training", __doc__, "one seed, n = 8, nothing written")
    torch.set_num_threads(1)

    def report(run: Run) -> None:
        mark = "  violates" if run.violates else ""
        session.say(
            f"n={run.bits:<2}  {run.method:<14} seed {run.seed}  "
            f"{run.accuracy:.3f}  {run.widths} bits{mark}"
        )

    runs = measure(1 if session.quick else 4, (8,) if session.quick else WIDTHS, report)
    if session.quick:
        return
    content = {
        "epochs": EPOCHS,
        "torch": torch.__version__,
        "runs": [asdict(run) for run in runs],
    }
    plot(runs, session.write(content))


if __name__ == "__main__":
    main()
