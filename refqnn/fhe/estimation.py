"""What a circuit will cost, before any key is made.

    key sizes   exact: the compiler has fixed the dimensions of every key (refqnn.fhe.memory)
    memory      the keys as they travel, unpacked, and the bootstrap keys once more in Fourier form
    seconds     `Circuit.work` times this machine's seconds per unit of work; within 16 % in
                bench/fhe.json

The seconds per unit are measured once, on a small circuit with real keys, and kept in the user's
cache folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np

from refqnn.container import write_atomically
from refqnn.fhe.circuit import compile
from refqnn.formats import IntFormat
from refqnn.network import Network, Node
from refqnn.ops import Linear
from refqnn.ops.requantize import Requantize

__all__ = ["Estimate", "calibrate", "calibrated", "estimate"]

_RUNS = 5


@dataclass(frozen=True)
class Estimate:
    """The cost of one encrypted inference.

    Attributes:
        pbs: table lookups by width.
        complexity: operations, as the compiler's optimizer counts them.
        seconds: latency of one sample on this machine, the first one left out.
        evaluation_key_bytes: as they travel.
        memory_bytes: peak of the keys in memory.
        p_error: that one inference fails, at most.
    """

    pbs: dict[int, int]
    complexity: float
    seconds: float
    evaluation_key_bytes: int
    memory_bytes: int
    p_error: float


def estimate(network: Network, **options: Any) -> Estimate:
    """Compile without making keys, and predict.

    Args:
        options: as for `refqnn.fhe.compile`.

    The first call on a machine also calibrates it: half a minute, once.

    Raises: as `refqnn.fhe.compile`.
    """
    circuit = compile(network, **options)
    sizes = circuit.key_sizes
    return Estimate(
        pbs=circuit.pbs,
        complexity=circuit.complexity,
        seconds=circuit.work * calibrate(),
        evaluation_key_bytes=sizes.travelling,
        memory_bytes=sizes.resident,
        p_error=circuit.global_p_error,
    )


# --- speed ------------------------------------------------------------------------------------


def calibrate(*, force: bool = False) -> float:
    """Seconds per unit of work on this machine, all cores; from the cache unless `force`."""
    file, key, known = _cache_file(), _cache_key(), _cached()
    if force or key not in known:
        known[key] = _measure()
        text = json.dumps(known, indent=1).encode()

        def write(out: IO[bytes]) -> None:
            out.write(text)

        with contextlib.suppress(OSError):  # a cache that cannot be written is no error
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, write)
    return float(known[key])


def calibrated() -> float | None:
    """What `calibrate` measured here before, or None."""
    return _cached().get(_cache_key())


def _cache_key() -> str:
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} cores"
    return f"work 4, {machine}, concrete-python {version('concrete-python')}"


def _cached() -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, float] = json.loads(_cache_file().read_text())
        return known
    return {}


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "refqnn" / "fhe-speed.json"


def _measure() -> float:
    """The median of a few runs of a layer of 32 neurons: 6-bit sums, 2 bits removed."""
    rng = np.random.default_rng(0)
    codes = IntFormat(2, signed=False)
    nodes = [
        Node("fc0", Linear(rng.choice([-1, 1], size=(32, 16)))),
        Node("act0", Requantize.from_shift(2, codes)),
        Node("fc1", Linear(rng.choice([-1, 1], size=(2, 32)))),
    ]
    network = Network(nodes, input_shape=(16,), input_format=codes)
    circuit = compile(network)
    circuit.keygen()
    sample = np.ones((1, 16), dtype=np.int64)
    circuit.execute(sample)  # unpacks the keys
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        circuit.execute(sample)
        times.append(time.perf_counter() - start)
    return float(median(times) / circuit.work)
