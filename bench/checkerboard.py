"""Checkerboard, 100 x 100 points: what 3 bits cost, and what training that knows of them saves.

Grid points labelled by the cell they lie in, then moved a little: 9,500 to train, 500 to test
(`refqnn.datasets`).  The noise carries about 4.4 % of the points over an edge, where no classifier
can know their label; `ceiling` is the rule that made the labels, on the same 500 test points.
Every network is 2-h-h-2 with batch normalization:

    float        trained and tested in float32
    PTQ          the same network afterwards: weights, activations and inputs of 3 bits, each scale
                 of least squared error on the training rows
    calibrated   the same network by `quantize_module`: each layer calibrated on what the
                 integers before it give, in least squares; without a budget, and (split) with
                 accumulators of 7 bits, charged sign by sign
    pruned PTQ   h = 100; from half of the training on, 10 or 30 weights for each neuron
    QAT          refqnn.training: 3 bits from the first step, and a budget of 7 bits for each
                 accumulator; dense, or with 10 or 30 weights for each neuron

The inputs of all but `float` are the same 3-bit codes, whose decision points fall on the edges of
the cells; a board whose edges lie elsewhere needs more input bits.  Accuracy is that of the integer
network; widths are certified (refqnn.certify), not observed.  The QAT module itself, in PyTorch, is
compared with the integers made from it on all 10,000 points: classes, outputs and every code.  On
500 points luck may carry a seed past its ceiling.

The literature's figures come from its own board and its own float networks, which are weaker than
ours: compare the gaps between its rows, not only the rows.

    python bench/checkerboard.py            # 10 minutes on one core
    python bench/checkerboard.py --quick    # one seed, one epoch, h = 10 and 30, nothing written
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import Session, published
from torch import nn
from torch.nn.utils import prune

from refqnn import (
    Dequantizer,
    IntFormat,
    Linear,
    Network,
    Node,
    PowerOfTwoQuantizer,
    Requantize,
    certify,
    datasets,
    from_brevitas,
)
from refqnn.brevitas import verify_against
from refqnn.pruning import fan_in_mask
from refqnn.training import FloatMLP, SparseQuantNeuralNetImpl, loop, quantize_module
from refqnn.training.quantizers import scale_from_data

SEEDS, EPOCHS, BATCH, RATE = 5, 12, 128, 0.02
NEURONS, FAN_INS, BUDGET = (10, 30, 100), (10, 30), 7
WEIGHTS = IntFormat(3, signed=True, narrow=True)
CODES = IntFormat(3, signed=False)
INPUT = PowerOfTwoQuantizer(-2, IntFormat(3, signed=True), "half_up")
# By row; the last after conversion (.944 before it).
LITERATURE: dict[str, float] = published("checkerboard")["accuracy"]


@dataclass(frozen=True)
class Run:
    row: str
    seed: int
    accuracy: float
    ceiling: float
    widths: tuple[int, ...] = ()  # certified, per layer; none for floats
    differ: int | None = None  # codes, classes and outputs of the module that the integers miss


class Board:
    """The points of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.data = datasets.load("checkerboard", seed)
        self.X, self.y = self.data.X_train, self.data.y_train

    def run(self, row: str, predict: Callable[[Any], Any], **others: Any) -> Run:
        data = self.data
        right = predict(data.X_test).argmax(axis=1) == data.y_test
        cell = np.floor((data.X_test + 1.125) / 0.75).clip(0, 2).sum(axis=1)
        ceiling = cell.astype(int) % 2 == data.y_test
        return Run(row, self.seed, float(right.mean()), float(ceiling.mean()), **others)

    def fit(self, module: nn.Module, epochs: int) -> None:
        loop.fit(module, self.X, self.y, epochs=epochs, batch_size=BATCH, lr=RATE, seed=self.seed)


# --- float, then quantized ----------------------------------------------------------------------


def float_network(board: Board, neurons: int, epochs: int) -> FloatMLP:
    torch.manual_seed(board.seed)
    module = FloatMLP(2, (neurons, neurons), 2)
    board.fit(module, epochs)
    return module


def pruned_network(board: Board, neurons: int, fan_in: int, epochs: int) -> FloatMLP:
    """Half of the training dense, half with the largest `fan_in` weights of each neuron."""
    module = float_network(board, neurons, max(1, epochs // 2))
    linears = [part for part in module.features if isinstance(part, nn.Linear)]
    for linear in linears:
        mask = fan_in_mask(linear.weight.detach().numpy(), fan_in)
        prune.custom_from_mask(linear, "weight", torch.from_numpy(mask))
    board.fit(module, max(1, epochs // 2))
    for linear in linears:
        prune.remove(linear, "weight")
    return module.eval()


def quantized(module: FloatMLP, X: Any) -> Network:
    """Post-training quantization: w, x and hidden codes to 3 bits, biases to accumulator units."""
    scale = float(INPUT.scale)
    codes = INPUT.quantize(X)
    nodes = []
    parts = list(module.features)
    for number, at in enumerate(range(0, len(parts), 3), start=1):
        weight, bias = folded(*parts[at : at + 2])
        step = scale_from_data(
            torch.from_numpy(weight), WEIGHTS.q_min, WEIGHTS.q_max, power_of_two_scale=False
        )
        w = np.rint(weight / step).clip(WEIGHTS.q_min, WEIGHTS.q_max).astype(np.int64)
        unit = step * scale
        layer = Linear(w, np.rint(bias / unit).astype(np.int64))
        nodes.append(Node(f"fc{number}", layer))
        if at + 1 == len(parts):
            break
        acc = codes @ layer.weight.T + layer.bias
        values = torch.from_numpy((acc * unit).astype(np.float32))
        scale = scale_from_data(values, CODES.q_min, CODES.q_max, power_of_two_scale=False)
        requantize = Requantize.from_scale(unit, scale, CODES, "half_even")
        nodes.append(Node(f"act{number}", requantize))
        codes = requantize.forward(acc)
    door = Dequantizer(unit)
    return Network(nodes, input_shape=(2,), input_quantizer=INPUT, output_dequantizer=door)


def calibrated(module: FloatMLP, X: Any, budget: int | None) -> Network:
    """`quantize_module` at the same bits; of the values of INPUT's codes it finds these codes."""
    return quantize_module(module, on_grid(X), WEIGHTS.bits, budget)


def on_grid(X: Any) -> Any:
    return INPUT.dequantize(INPUT.quantize(X))


def folded(linear: nn.Linear, norm: nn.Module | None = None) -> tuple[Any, Any]:
    """Weight and bias of a linear layer with the batch normalization behind it, float32."""
    weight = linear.weight.detach().numpy()
    if norm is None:
        return weight, linear.bias.detach().numpy()
    mean_, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    gain = norm.weight.detach().numpy() / np.sqrt(variance + norm.eps)
    return weight * gain[:, None], norm.bias.detach().numpy() - mean_ * gain


# --- quantized from the first step --------------------------------------------------------------


def trained_quantized(
    board: Board, neurons: int, fan_in: int | None, epochs: int
) -> tuple[SparseQuantNeuralNetImpl, Network]:
    torch.manual_seed(board.seed)
    module = SparseQuantNeuralNetImpl(
        2,
        3,
        2,
        hidden_sizes=(neurons, neurons),
        quant_narrow=True,
        fan_in=None if fan_in is None else [None, fan_in, fan_in],
    )
    module.add_accumulator_budgets(BUDGET)
    board.fit(module, epochs)
    return module, from_brevitas(module.plain_copy(), board.X[:1])


def differences(module: SparseQuantNeuralNetImpl, network: Network, X: Any) -> int:
    """Outputs, classes and codes of the module in PyTorch that are not those of the network."""
    floats, integers = loop.predict(module, X), network.predict(X)
    report = verify_against(module.plain_copy(), network, X)
    codes = sum(layer.codes - layer.equal for layer in report.free_running)
    classes = floats.argmax(axis=1) != integers.argmax(axis=1)
    return int((floats != integers).sum() + classes.sum() + codes)


def widths(network: Network) -> tuple[int, ...]:
    return tuple(layer.signed_bits for layer in certify(network).layers.values())


# --- all of it ----------------------------------------------------------------------------------


def measure(
    seed: int,
    report: Callable[[Run], None],
    neurons: tuple[int, ...] = NEURONS,
    epochs: int = EPOCHS,
) -> tuple[list[Run], Network]:
    """All rows of one seed, and the last QAT network that is dense."""
    board = Board(seed)
    runs: list[Run] = []

    def done(row: str, predict: Callable[[Any], Any], **others: Any) -> None:
        runs.append(board.run(row, predict, **others))
        report(runs[-1])

    quantized_rows, calibrated_rows = [], []
    for h in neurons:
        module = float_network(board, h, epochs)
        done(f"float h={h}", lambda X, module=module: loop.predict(module, X))
        quantized_rows.append((f"PTQ h={h}", quantized(module, board.X)))
        for row, budget in ((f"calibrated h={h}", None), (f"calibrated, split h={h}", BUDGET)):
            calibrated_rows.append((row, calibrated(module, board.X, budget)))
    largest = neurons[-1]
    for fan_in in FAN_INS:
        module = pruned_network(board, largest, fan_in, epochs)
        row = f"pruned PTQ {fan_in} of {largest}"
        quantized_rows.append((row, quantized(module, board.X)))
    for row, network in quantized_rows:
        done(row, network.predict, widths=widths(network))
    for row, network in calibrated_rows:
        codes = network.quantize_input(on_grid(board.X))
        assert (codes == INPUT.quantize(board.X)).all()  # what is compared is what follows
        done(row, lambda X, net=network: net.predict(on_grid(X)), widths=widths(network))

    everything = np.concatenate([board.X, board.data.X_test])
    kept = None
    for h, fan_in in [(largest, n) for n in FAN_INS] + [(h, None) for h in neurons]:
        trained, kept = trained_quantized(board, h, fan_in, epochs)
        row = f"QAT h={h}" if fan_in is None else f"QAT {fan_in} of {h}"
        differ = differences(trained, kept, everything)
        done(row, kept.predict, widths=widths(kept), differ=differ)
    assert kept is not None
    return runs, kept


def table(runs: list[Run]) -> None:
    print("\nrow                     literature   ours   worst seed   certified bits   differ")
    for row in dict.fromkeys(run.row for run in runs):
        group = [run for run in runs if run.row == row]
        accuracies = [run.accuracy for run in group]
        published = f"{LITERATURE[row]:.3f}" if row in LITERATURE else "-"
        bits = str(max(max(run.widths) for run in group)) if group[0].widths else "-"
        differ = "-" if group[0].differ is None else f"{sum(run.differ or 0 for run in group)}"
        print(
            f"{row:<24}{published:>10} {mean(accuracies):>6.3f} {min(accuracies):>12.3f}"
            f" {bits:>16} {differ:>8}"
        )
    ceilings = {run.seed: run.ceiling for run in runs}.values()
    print(f"{'ceiling of the noise':<24}{'-':>10} {mean(ceilings):>6.3f} {min(ceilings):>12.3f}")


def plot(runs: list[Run], network: Network, path: Path) -> None:
    """Left: every row, one marker a seed, beside the literature.  Right: one QAT network."""
    from refqnn.plotting import COLOURS, decision_regions, figure, legend_below, save_figure

    fig, (left, right) = figure(11.5, 6.0, columns=2)
    rows = list(dict.fromkeys(run.row for run in runs))[::-1]
    for position, row in enumerate(rows):
        values = [run.accuracy for run in runs if run.row == row]
        first = position == 0
        left.plot(
            values,
            [position] * len(values),
            "o",
            color=COLOURS[0],
            ms=4,
            alpha=0.5,
            label="one seed" if first else None,
        )
        left.plot(
            mean(values),
            position,
            "|",
            color=COLOURS[0],
            ms=16,
            mew=2,
            label="mean" if first else None,
        )
    published = [(LITERATURE[row], at) for at, row in enumerate(rows) if row in LITERATURE]
    left.plot(*zip(*published), "D", color=COLOURS[5], ms=6, label="literature")
    ceiling = mean({run.seed: run.ceiling for run in runs}.values())
    left.axvline(ceiling, color="grey", linewidth=1, linestyle="--", label="ceiling (noise)")
    left.set_yticks(range(len(rows)), rows)
    left.set_xlabel("accuracy (share of test points)")
    left.set_xlim(0.5, 1.0)
    legend_below(left, loc="outside lower left")  # that of the other axes lies in the middle
    bits = max(run.widths[i] for run in runs if run.differ is not None for i in range(3))
    seeds = len({run.seed for run in runs})
    fewest = min(sum(run.row == row for run in runs) for row in rows)
    shown = f"{seeds}" if fewest == seeds else f"{fewest} to {seeds}"
    left.set_title(f"{shown} seeds; QAT: accumulators certified at {bits} bits or fewer")

    data = datasets.load("checkerboard", 0)
    decision_regions(right, network, data.X_test, data.y_test)
    last = [run for run in runs if run.seed == 0][-1]
    shown = f"{last.row}, {max(widths(network))} bits, test accuracy {last.accuracy:.3f}"
    right.set_title(f"{shown}\non {len(data.y_test):,} points (seed 0)")
    right.set_aspect("equal")
    save_figure(fig, path)


def main() -> None:
    session = Session("checkerboard", __doc__, "one short seed, nothing written")
    torch.set_num_threads(1)

    def report(run: Run) -> None:
        bits = f"  {run.widths} bits" if run.widths else ""
        differ = "" if run.differ is None else f", {run.differ} differ"
        session.say(
            f"seed {run.seed}  {run.row:<22} {run.accuracy:.3f}"
            f" (ceiling {run.ceiling:.3f}){bits}{differ}"
        )

    if session.quick:
        table(measure(0, report, neurons=(10, 30), epochs=1)[0])
        return
    runs, networks = [], []
    for seed in range(SEEDS):
        some, network = measure(seed, report)
        runs += some
        networks.append(network)
    table(runs)
    content = {
        "epochs": EPOCHS,
        "literature": LITERATURE,
        "mean_accuracy": {
            row: round(mean(run.accuracy for run in runs if run.row == row), 4)
            for row in dict.fromkeys(run.row for run in runs)
        },
        "mean_ceiling": round(mean(run.ceiling for run in runs), 4),
        "runs": [asdict(run) for run in runs],
    }
    plot(runs, networks[0], session.write(content))


if __name__ == "__main__":
    main()
