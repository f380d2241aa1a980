"""The pruned network of the literature, 2-100-100-2 at 3 bits, as its own Brevitas module.

The literature's module gives its last layer as many weight bits as it has hidden neurons, 100: no
integer format holds them, and `from_brevitas` says which width to set.  With 8 bits there, or 3 as
everywhere, and all else as published, the module is trained on our board, 9,500 points to train and
500 to test.  As published are: constant scales; weights, inputs and activations of 3 bits, narrow,
on [-1, 1]; float biases; 30 weights a neuron on average, the least of the initial ones cut before
the training.  Its integers are held against it on all points: classes, and every code of every
quantizer, as it is and under exact accumulation.

The board is stretched so that the edges of its cells fall on 1/2, where 3-bit codes on [-1, 1] have
a decision point.  The literature counts the bits of accumulators that it observed; ours are given
both ways, observed on all points and certified for every input.

    python bench/literature.py            # 4 minutes on one core
    python bench/literature.py --quick    # one seed, one epoch, nothing written
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from statistics import mean
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from common import Session
from torch import Tensor, nn
from torch.nn.utils import prune

from refqnn import certify, datasets, from_brevitas, observed, signed_bits
from refqnn.brevitas import exact_accumulators, verify_against
from refqnn.errors import NotCovered
from refqnn.training import loop

HIDDEN, ACTIVE, BITS, LAST = 100, 30, 3, (8, 3)
SEEDS, EPOCHS, BATCH, RATE = 3, 15, 128, 0.01
STRETCH = 0.5 / 0.375  # from the board's edges to a decision point of the input's codes
# What the literature reports for 30 of 100 neurons: its module, what it converts to, bits.
LITERATURE = {"module": 0.944, "converted": 0.918, "bits": 7}


class Weight(Int8WeightPerTensorFloat):
    scaling_impl_type = "const"
    scaling_const = 1.0


class Activation(Int8ActPerTensorFloat):
    bit_width = BITS
    scaling_impl_type = "const"
    min_val, max_val = -1.0, 1.0
    narrow_range = True


class Net(nn.Module):
    """2-h-h-2 with relu; `last` is the weight width of the last layer."""

    def __init__(self, last: int) -> None:
        super().__init__()
        sizes = (2, HIDDEN, HIDDEN, 2)
        widths = (BITS, BITS, last)
        self.quantizers = nn.ModuleList(
            qnn.QuantIdentity(Activation, return_quant_tensor=True) for _ in widths
        )
        self.linears = nn.ModuleList(
            qnn.QuantLinear(a, b, True, weight_quant=Weight, weight_bit_width=w, bias_quant=None)
            for a, b, w in zip(sizes, sizes[1:], widths)
        )
        for linear in self.linears:
            nn.init.uniform_(linear.weight, -1, 1)
            spare = linear.weight.shape[1] - ACTIVE
            if spare > 0:
                prune.l1_unstructured(linear, "weight", amount=spare * linear.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        for quantizer, linear in zip(self.quantizers, self.linears):
            x = linear(quantizer(x))
            if linear is not self.linears[-1]:
                x = torch.relu(x)
        return x


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        last: bits of the last layer's weights.
        module, integers: accuracy on the test points, of the module in PyTorch and of its integers.
        classes_differ, near_ties, unexplained: between the two, on all points.
        exact_differ: codes that differ under exact accumulation.
        codes: how many were compared.
        observed_bits, certified_bits: of the accumulators of each layer.
    """

    seed: int
    last: int
    module: float
    integers: float
    classes_differ: int
    codes: int
    near_ties: int
    unexplained: int
    exact_differ: int
    observed_bits: tuple[int, ...]
    certified_bits: tuple[int, ...]


def measure(seed: int, last: int, epochs: int) -> Run:
    torch.manual_seed(seed)
    data = datasets.load("checkerboard", seed)
    X, X_test = (np.float32(STRETCH) * part for part in (data.X_train, data.X_test))
    module = Net(last)
    loop.fit(module, X, data.y_train, epochs=epochs, batch_size=BATCH, lr=RATE, seed=seed)
    module.eval()
    network = from_brevitas(module, X[:1])
    every = np.concatenate([X, X_test])
    floats = loop.predict(module, every).argmax(axis=1)
    integers = network.predict(every).argmax(axis=1)
    report = verify_against(module, network, every)
    with exact_accumulators():
        exact = verify_against(module, network, every)
    layers = certify(network).layers
    seen = observed(network, every)
    test = slice(len(X), None)
    return Run(
        seed,
        last,
        module=float((floats[test] == data.y_test).mean()),
        integers=float((integers[test] == data.y_test).mean()),
        classes_differ=int((floats != integers).sum()),
        codes=report.codes,
        near_ties=sum(layer.near_tie for layer in report.teacher_forced),
        unexplained=sum(layer.unexplained for layer in report.teacher_forced),
        exact_differ=sum(layer.codes - layer.equal for layer in exact.teacher_forced),
        observed_bits=tuple(signed_bits(*seen[name].ends) for name in layers),
        certified_bits=tuple(layer.signed_bits for layer in layers.values()),
    )


def as_published() -> str:
    """What from_brevitas says of a last layer of 100 bits."""
    try:
        from_brevitas(Net(last=HIDDEN).eval(), np.zeros((1, 2)))
    except NotCovered as error:
        return str(error)
    raise AssertionError("100-bit weights were taken")


def summary(runs: list[Run]) -> dict[str, Any]:
    """Means, and the widest accumulators: those that a quantizer closes, and the last ones."""
    return {
        "module": round(mean(run.module for run in runs), 4),
        "integers": round(mean(run.integers for run in runs), 4),
        "observed_bits": max(max(run.observed_bits[:-1]) for run in runs),
        "certified_bits": max(max(run.certified_bits[:-1]) for run in runs),
        "last_certified_bits": max(run.certified_bits[-1] for run in runs),
    }


def main() -> None:
    session = Session("literature", __doc__ or "", "one seed, one epoch, nothing written")
    torch.set_num_threads(1)
    refused = as_published()
    session.say(f"as published: {refused}")
    runs: list[Run] = []
    for seed, last in product(range(1 if session.quick else SEEDS), LAST):
        runs.append(run := measure(seed, last, 1 if session.quick else EPOCHS))
        session.say(
            f"seed {seed}, last layer {last} bits: module {run.module:.3f}, "
            f"integers {run.integers:.3f}, {run.classes_differ} classes differ, {run.near_ties} "
            f"near ties, {run.unexplained} unexplained of {run.codes:,}, {run.exact_differ} exact; "
            f"bits observed {run.observed_bits}, certified {run.certified_bits}"
        )
    if session.quick:
        return
    content: dict[str, Any] = {
        "literature": LITERATURE,
        "as_published": refused,
        "mean": {str(last): summary([run for run in runs if run.last == last]) for last in LAST},
        "runs": [asdict(run) for run in runs],
    }
    session.write(content)


if __name__ == "__main__":
    main()
