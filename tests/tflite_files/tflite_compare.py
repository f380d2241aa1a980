"""Every tensor of a model, as we compute it and as LiteRT does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tflite_litert import RESOLVERS, run

from refqnn import Network
from refqnn.tflite import file_order, read_tflite

RUNTIMES: list[Any] = list(RESOLVERS)


@dataclass
class Compared:
    """How many values were compared, and where the first tensors differ."""

    values: int
    different: list[str]


def inputs(network: Network, n: int, seed: int) -> np.ndarray:
    """Random codes, the extremes, a narrow range, and walks: neighbours are near, as in data."""
    fmt, shape = network.input_format, network.input_shape
    rng = np.random.default_rng(seed)
    x = rng.integers(fmt.q_min, fmt.q_max + 1, (n, *shape))
    x[1::4] = np.where(rng.random(x[1::4].shape) < 0.5, fmt.q_min, fmt.q_max)
    x[2::4] = np.clip(np.rint(rng.normal(fmt.q_min / 2, 20, x[2::4].shape)), fmt.q_min, fmt.q_max)
    steps = rng.integers(-9, 10, (len(x[3::4]), int(np.prod(shape))))
    walks = np.cumsum(steps, axis=1).reshape(x[3::4].shape) + (fmt.q_min + fmt.q_max) // 2
    x[3::4] = np.clip(walks, fmt.q_min, fmt.q_max)
    return x


def compare(
    folder: Path, models: Sequence[bytes], n: int, runtimes: Sequence[Any] = RUNTIMES, seed: int = 0
) -> Compared:
    """All tensors of all models on n inputs each."""
    jobs, ours_of = [], []
    for i, model in enumerate(models):
        for runtime in runtimes:
            ours_of.append(read_tflite(model, runtime))
            jobs.append((model, inputs(ours_of[-1].network, n, seed + i), runtime))
    values, different = 0, []
    for i, (imported, (_, x, runtime), theirs) in enumerate(zip(ours_of, jobs, run(folder, jobs))):
        trace = imported.network.trace(x)
        both = [(t, name) for t, name in imported.nodes.items() if t in theirs]
        assert both
        for tensor, name in both:
            ours = file_order(trace[name])
            values += ours.size
            wrong = int((ours != theirs[tensor].reshape(ours.shape)).sum())
            if wrong:
                where = f"model {i // len(runtimes)}, {runtime}, tensor {tensor} ({name})"
                different.append(f"{where}: {wrong} of {ours.size}")
    return Compared(values, different)
