"""Narrow registers for tiles, a wide one for their sum: what does each width cost in accuracy?

A last register of 16 signed bits; inner registers of 6 to 12 bits that hold tiles of 8 to 64
products, in the order of a row.  Every sum of every register is bounded while training, as
refqnn.pruning.project does it: each tile by its register, each row with its bias by the last one.

    mlp     digits, 64-64-10, 3-bit weights and codes, four seeds; beside it the same network with
            one register of so many bits, the sign-split rows of bench/accumulator_training.py
    cnn     digits, the large network of bench/digits_cnn.py, ternary weights, one seed

Accuracy is that of the integer network on held-out data.  A run counts where the certificate of its
stages proves every register (refqnn.certify with this accumulator); else it is a violation.

Results are written run by run, each with its commit; a run that is there already is not repeated.

    python bench/staged_accumulators.py            # an hour on one core
    python bench/staged_accumulators.py --quick    # one MLP of few epochs
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

import accumulator_training
import digits_cnn
import numpy as np
import torch
from common import Session, commit

import refqnn
from refqnn import Accumulator, Network, Stage, certify, datasets
from refqnn.accumulator import Verdict

OUTER = 16
INNER = (6, 8, 10, 12)
TILES = (8, 16, 32, 64)
SEEDS = {"mlp": 4, "cnn": 1}
HELD_OUT = {"mlp": 450, "cnn": 360}


Cell = tuple[str, int, "int | None", int]  # network, bits of the inner registers, tile, seed


@dataclass(frozen=True)
class Run:
    """tile None: one register of `inner` bits."""

    network: str
    inner: int
    tile: int | None
    seed: int
    accuracy: float
    proved: bool
    commit: str | None = None

    @property
    def cell(self) -> Cell:
        return self.network, self.inner, self.tile, self.seed


def tiled(inner: int, tile: int) -> Accumulator:
    return Accumulator([Stage(inner, group=tile), Stage(OUTER)], bias="first")


def mlp(bits: int | Accumulator, seed: int, epochs: int) -> tuple[Network, float]:
    return accumulator_training.trained("sign-split", bits, seed, epochs)


def cnn(bits: int | Accumulator, seed: int, epochs: int | None) -> tuple[Network, float]:
    data = datasets.load("digits", seed)
    variant = replace(digits_cnn.VARIANTS["large"], budget=bits)
    module = digits_cnn.trained(variant, seed, epochs)
    network = refqnn.from_brevitas(module, torch.zeros(2, 1, 8, 8))
    codes = network.quantize_input(digits_cnn.images(data.X_test))
    return network, float((network.forward(codes).argmax(axis=1) == data.y_test).mean())


def run(name: str, inner: int, tile: int | None, seed: int, epochs: int | None = None) -> Run:
    bits = inner if tile is None else tiled(inner, tile)
    if name == "mlp":
        network, accuracy = mlp(bits, seed, epochs or accumulator_training.EPOCHS)
    else:
        network, accuracy = cnn(bits, seed, epochs)
    one = Accumulator([Stage(inner)], bias="first")
    staged = certify(network, method="interval", accumulator=one if isinstance(bits, int) else bits)
    proved = all(report.verdict is Verdict.FITS for report in staged.stages)
    return Run(name, inner, tile, seed, accuracy, proved, commit())


def plan() -> Iterator[Cell]:
    """Every network once before any seed is changed."""
    for seed in range(max(SEEDS.values())):
        for name, seeds in SEEDS.items():
            for inner in INNER if seed < seeds else ():
                for tile in (*TILES, None):
                    yield name, inner, tile, seed


def plot(runs: list[Run], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(6.4, 3.8)
    for name, line in zip(SEEDS, ("-", "--")):
        for tile, colour in zip((*TILES, None), COLOURS):
            groups = [
                [r for r in runs if (r.network, r.inner, r.tile) == (name, n, tile)] for n in INNER
            ]
            label = f"{name}, " + ("one register" if tile is None else f"tiles of {tile}")
            values = [mean(r.accuracy for r in group) if group else np.nan for group in groups]
            axes.plot(INNER, values, line, color=colour, label=label)
            for n, group in zip(INNER, groups):  # a point for each seed
                axes.plot([n] * len(group), [r.accuracy for r in group], "o", color=colour, ms=3)
    axes.set_xticks(INNER)
    axes.set_xlabel(f"bits of the inner registers; the last one has {OUTER}")
    axes.set_ylabel("test accuracy, integer network")
    sizes = ", ".join(f"{name} {size}" for name, size in HELD_OUT.items())
    axes.set_title(f"Digits, images held out: {sizes}; accumulators in two stages")
    legend_below(axes, 2, fontsize=6)
    save_figure(fig, path)


def main() -> None:
    session = Session("staged_accumulators", __doc__, "one MLP of few epochs, nothing written")
    torch.set_num_threads(1)
    if session.quick:
        report(session, run("mlp", 8, 16, 0, epochs=3))
        return
    runs = [Run(**found) for found in session.written().get("runs", ())]
    there = {found.cell for found in runs}
    for cell in plan():
        if cell not in there:
            runs.append(run(*cell))
            report(session, runs[-1])
            plot(runs, session.write({"outer": OUTER, "runs": [asdict(r) for r in runs]}))


def report(session: Session, found: Run) -> None:
    tile = "one register " if found.tile is None else f"tiles of {found.tile:<4}"
    mark = "" if found.proved else "  violates"
    session.say(
        f"{found.network}  {found.inner:>2} bits  {tile}  seed {found.seed}  "
        f"{found.accuracy:.3f}{mark}"
    )


if __name__ == "__main__":
    main()
