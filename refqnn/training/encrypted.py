"""What the estimators do for ``target="encrypted"``: as few narrow lookups as the data need.

1. A teacher is learned from the training rows (refqnn.training.teacher).
2. Unless the number of lookups is given, students of 4, 8, 16, ... lookups are trained on a part of
   the rows, with a teacher of that part, and scored on the rest: the smallest is taken whose score
   is within one standard error of the best (Breiman et al. 1984).
3. One student, or the best of a few, is trained on everything.

The time budget is turned into training steps by a fixed price of a step, so that equal arguments
give equal networks on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

from refqnn.training.lookups import LookupNet, Settings, distill, grid
from refqnn.training.teacher import Teacher, between, learn

__all__ = ["Trained", "search"]

_WIDTHS = (4, 8, 16, 32, 64, 128)
_STEP_SECONDS = 2e-3  # nominal, of one core
_COMPARISONS = 256  # about as many are offered, over all features
_HELD_OUT = 0.2
_MOST_ROWS = 24_000  # that a student sees, most of them between two rows
_LONGEST, _SHORTEST = 24_000, 300  # steps of one training
_RESTARTS, _STEPS_PER_LOOKUP = 4, 200  # few lookups end up where they began; the best of some

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """One student: what it was trained on, and its score on rows held out (the last: on all)."""

    lookups: int
    steps: int
    held_out: int
    score: float


def search(
    rows: Rows,
    targets: NDArray[np.int64] | Rows,
    units: Floats,
    *,
    n_outputs: int,
    lookups: int | None,
    table_bits: int,
    budget_s: float,
    seed: int,
    report: Callable[[Trained], None],
) -> LookupNet:
    """The network for these training rows; nothing else is looked at.

    Args:
        rows: standardised features [n, features].
        targets: class indices [n], or standardised targets [n, outputs].
        units: what the features were divided by [features].
        lookups: hidden neurons; None: chosen on rows held out.
        report: called after each training.
    """
    classify = targets.ndim == 1
    Y = np.eye(n_outputs)[targets] if classify else targets.astype(np.float64)
    levels = int(np.clip(_COMPARISONS // rows.shape[1], 1, 16))
    task = _Task(units, classify, Settings(1, table_bits=table_bits, levels=levels), seed)
    steps = max(1, round(budget_s / _STEP_SECONDS))
    if lookups is None:
        lookups = _chosen(task, rows, Y, steps // 2, report)
        steps -= steps // 2
    restarts = int(np.clip(steps // (_STEPS_PER_LOOKUP * lookups), 1, _RESTARTS))
    each = int(np.clip(steps // restarts, _SHORTEST, _LONGEST))
    teacher = task.teacher(rows, Y)
    found = [task.student(teacher, rows, lookups, each, seed + i) for i in range(restarts)]
    best = max(found, key=lambda net: task.closeness(net, teacher, rows))
    report(Trained(lookups, each, 0, task.score(best, rows, Y)))
    return best


@dataclass(frozen=True)
class _Task:
    units: Floats
    classify: bool
    settings: Settings
    seed: int

    def teacher(self, rows: Rows, Y: Floats) -> Teacher:
        return learn(rows, Y, self.units, classify=self.classify, seed=self.seed)

    def student(
        self, teacher: Teacher, rows: Rows, lookups: int, steps: int, seed: int
    ) -> LookupNet:
        copies = max(1, _MOST_ROWS // 3 // len(rows))
        mixed = between(rows, _MOST_ROWS, seed)
        X = np.concatenate([np.tile(rows, (copies, 1)), mixed])
        settings = Settings(**{**asdict(self.settings), "hidden": lookups, "steps": steps})
        edges = grid(rows, settings.levels)
        with torch.random.fork_rng(devices=[]):
            return distill(
                X,
                teacher(X),
                settings,
                edges=edges,
                classify=self.classify,
                seed=seed,
            )

    def outputs(self, net: LookupNet, rows: Rows) -> Rows:
        with torch.no_grad():
            found: Rows = net(torch.from_numpy(rows)).numpy()
        return found

    def score(self, net: LookupNet, rows: Rows, Y: Floats) -> float:
        """Share of right classes, or 1 - squared error / variance."""
        outputs = self.outputs(net, rows)
        if self.classify:
            return float((outputs.argmax(axis=1) == Y.argmax(axis=1)).mean())
        return 1.0 - float(np.square(outputs - Y).mean() / max(Y.var(), 1e-12))

    def closeness(self, net: LookupNet, teacher: Teacher, rows: Rows) -> float:
        """Agreement with the teacher on rows of its own."""
        X = np.concatenate([rows, between(rows, 2 * len(rows), self.seed + 1000)])
        said = teacher(X).astype(np.float64)
        if self.classify:
            said = np.eye(said.shape[1])[said.argmax(axis=1)]
        return self.score(net, X, said)


def _chosen(
    task: _Task, rows: Rows, Y: Floats, steps: int, report: Callable[[Trained], None]
) -> int:
    """The smallest number of lookups within one standard error of the best, on held-out rows."""
    folds = int(np.clip(3000 // len(rows), 1, 5))
    labels = Y.argmax(axis=1) if task.classify else None
    enough = labels is not None and np.unique(labels, return_counts=True)[1].min() > 4
    splitter = StratifiedShuffleSplit if enough else ShuffleSplit
    splits = list(splitter(folds, test_size=_HELD_OUT, random_state=task.seed).split(rows, labels))
    teachers = [task.teacher(rows[train], Y[train]) for train, _ in splits]
    each = int(np.clip(steps // (folds * len(_WIDTHS)), _SHORTEST, _LONGEST))
    found: dict[int, tuple[float, float]] = {}
    for width in _WIDTHS:
        scores = []
        for teacher, (train, held_out) in zip(teachers, splits):
            net = task.student(teacher, rows[train], width, each, task.seed)
            scores.append(task.score(net, rows[held_out], Y[held_out]))
        found[width] = (mean(scores), _error(scores, len(splits[0][1])))
        report(Trained(width, each, len(splits[0][1]), found[width][0]))
        best, error = max(found.values())
        if width >= 4 * min(w for w, (score, _) in found.items() if score >= best - error):
            break  # two doublings have not helped
    return min(width for width, (score, _) in found.items() if score >= best - error)


def _error(scores: list[float], held_out: int) -> float:
    """Standard error of the mean score; of one split, of the share itself."""
    if len(scores) > 1:
        return stdev(scores) / len(scores) ** 0.5
    share = float(np.clip(scores[0], 0.0, 1.0))
    return (share * (1.0 - share) / held_out) ** 0.5
