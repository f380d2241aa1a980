"""A float model to learn from: kernel ridge regression, chosen by its leave-one-out errors.

Few lookups hold little, and fit the training rows long before they say the right thing between
them.  The teacher says it there: on rows that lie between two of the training set.

With the kernel matrix K = Q diag(v) Q^T and ridge a, the coefficients are c = (K + a)^-1 Y, and the
residual of row i when it is left out is c_i / ((K + a)^-1)_ii (Allen's PRESS), so that every choice
costs one decomposition and no further training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["Teacher", "between", "learn", "left_out"]

Floats = NDArray[np.float64]

_CHOSEN_ON, _MOST_ROWS = 1000, 4000  # rows; a decomposition takes their cube
_WIDTHS = (0.25, 0.5, 1.0, 2.0)  # of the kernel, times 1 / (features * variance)
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_SHARPNESS = (3.0, 5.0, 8.0, 12.0, 18.0)
_BLOCK = 2048  # rows predicted at once


@dataclass(frozen=True, eq=False)
class Teacher:
    """scores(x) = mean + sum_i c_i exp(-gamma |x / scale - row_i|^2).

    Attributes:
        rows: [n, features], divided by scale.
        coefficients: [n, outputs].
        sharpness: class probabilities are softmax(sharpness * scores); 1 for targets.
    """

    rows: Floats
    scale: Floats
    coefficients: Floats
    mean: Floats
    gamma: float
    sharpness: float

    def __call__(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits or targets, float32 [n, outputs], of rows of features."""
        blocks = [X[start : start + _BLOCK] for start in range(0, len(X), _BLOCK)]
        kernels = (_kernel(block / self.scale, self.rows, self.gamma) for block in blocks)
        scores = np.concatenate([kernel @ self.coefficients for kernel in kernels])
        return (self.sharpness * (scores + self.mean)).astype(np.float32)


def learn(
    X: NDArray[np.float32], Y: Floats, units: Floats, *, classify: bool, seed: int
) -> Teacher:
    """The teacher of rows X [n, features] and targets Y [n, outputs] (of classes: one-hot).

    Scale of the features, width, ridge and sharpness are those of the least leave-one-out loss:
    cross entropy, or squared error.

    Args:
        X: standardised.
        units: what features were divided by [features]; as they came is the other scale tried.
    """
    order = np.random.default_rng(seed).permutation(len(X))
    few, most = order[:_CHOSEN_ON], order[:_MOST_ROWS]
    _, scale, width, ridge, sharpness = min(
        _tried(X[few].astype(np.float64), Y[few], units, classify), key=lambda found: found[0]
    )
    rows, mean = X[most] / scale, Y[most].mean(axis=0)
    gamma = width / _spread(rows)
    kernel = _kernel(rows, rows, gamma) + ridge * np.eye(len(rows))
    coefficients = np.linalg.solve(kernel, Y[most] - mean)
    return Teacher(rows, scale, coefficients, mean, gamma, sharpness)


def between(X: NDArray[np.float32], n: int, seed: int) -> NDArray[np.float32]:
    """n rows on the lines between two rows of X each (mixup; Zhang et al. 2018)."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, len(X), (2, n))
    share = rng.random((n, 1), dtype=np.float32)
    mixed: NDArray[np.float32] = share * X[first] + (1 - share) * X[second]
    return mixed


def _tried(
    X: Floats, Y: Floats, units: Floats, classify: bool
) -> Iterator[tuple[float, Floats, float, float, float]]:
    """(loss, scale, width, ridge, sharpness) of every choice."""
    for scale, width in product((np.ones_like(units), units.max() / units), _WIDTHS):
        rows = X / scale
        kernel = _kernel(rows, rows, width / _spread(rows))
        for ridge, residuals in zip(_RIDGES, left_out(kernel, Y - Y.mean(axis=0), _RIDGES)):
            if not classify:
                yield float(np.square(residuals).mean()), scale, width, ridge, 1.0
                continue
            for sharpness in _SHARPNESS:
                loss = _cross_entropy(sharpness * (Y - residuals), Y)
                yield loss, scale, width, ridge, sharpness


def left_out(kernel: Floats, Y: Floats, ridges: Iterable[float]) -> Iterator[Floats]:
    """For each ridge what is left of Y [n, outputs] when each row is predicted from the others."""
    values, vectors = np.linalg.eigh(kernel)
    turned = vectors.T @ Y
    for ridge in ridges:
        inverse = 1.0 / (np.maximum(values, 0.0) + ridge)
        coefficients = vectors @ (inverse[:, None] * turned)
        yield coefficients / ((vectors**2) @ inverse)[:, None]


def _cross_entropy(logits: Floats, Y: Floats) -> float:
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return float((total - (Y * logits).sum(axis=1)).mean())


def _kernel(A: Floats, B: Floats, gamma: float) -> Floats:
    squares = (A**2).sum(axis=1)[:, None] + (B**2).sum(axis=1) - 2.0 * (A @ B.T)
    kernel: Floats = np.exp(-gamma * np.maximum(squares, 0.0))
    return kernel


def _spread(rows: Floats) -> float:
    return float(rows.shape[1] * rows.var()) or 1.0
