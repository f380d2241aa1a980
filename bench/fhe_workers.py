"""Encrypted samples on worker processes: the speed-up, and what it costs to send the keys.

One network, 4-16-3 with 4-bit sums.  The same samples

    one after the other in one process, on all cores and on a single one
    on two workers of one thread each, by loky (processes of this machine)
    the same by Dask: two worker processes that are reached over a socket

Before each measurement all workers hold the keys; how long that takes is measured by itself: the
time until each worker has run its first sample, less the time of a later one.  Each call of
`execute` sends keys and circuit once to each worker, the second call here too; what a worker has
loaded already it does not load again.

    python bench/fhe_workers.py            # 1 minute on two idle cores
    python bench/fhe_workers.py --quick    # few samples, nothing written
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from common import FOLDER, write_results
from numpy.typing import NDArray

from refqnn import IntFormat, Linear, Network, Node, Requantize, fhe

CODES = IntFormat(2, signed=False)
WORKERS = 2


def network() -> Network:
    rng = np.random.default_rng(1)
    nodes = [
        Node("fc0", Linear(rng.integers(-1, 2, (16, 4)))),
        Node("act0", Requantize.from_shift(0, IntFormat(3, signed=False))),
        Node("fc1", Linear(rng.integers(-3, 4, (3, 16)))),
    ]
    return Network(nodes, input_shape=(4,), input_format=CODES)


@dataclass(frozen=True)
class Measured:
    """Attributes:
    first_seconds: until as many samples as workers were done, keys and circuit sent before them.
    seconds_per_sample: of the following samples, from the first request to the last answer.
    exact: every decrypted integer is the network's.
    """

    backend: str
    workers: int
    samples: int
    first_seconds: float
    seconds_per_sample: float
    exact: bool


@contextmanager
def pool(backend: str, workers: int) -> Iterator[None]:
    """New worker processes that hold nothing yet."""
    import joblib

    if backend == "loky":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(max_workers=workers).shutdown(wait=True)
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            yield
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


def measured(
    circuit: fhe.Circuit, codes: NDArray[np.int64], backend: str, workers: int
) -> Measured:
    expected = circuit.network.forward(codes)
    with pool(backend, workers):
        start = time.perf_counter()
        first = circuit.execute(codes[:workers], n_jobs=workers)
        first_seconds = time.perf_counter() - start
        start = time.perf_counter()
        rest = circuit.execute(codes[workers:], n_jobs=workers)
        seconds = time.perf_counter() - start
    exact = bool((np.concatenate([first, rest]) == expected).all())
    n = len(codes) - workers
    return Measured(backend, workers, n, first_seconds, seconds / n, exact)


def in_process(backend: str, codes: NDArray[np.int64]) -> Measured:
    """Samples one after the other; the circuit and its keys are made here."""
    circuit = fhe.compile(network())
    circuit.keygen()
    start = time.perf_counter()
    first = circuit.execute(codes[:1])
    first_seconds = time.perf_counter() - start
    start = time.perf_counter()
    rest = circuit.execute(codes[1:])
    seconds = time.perf_counter() - start
    exact = bool((np.concatenate([first, rest]) == circuit.network.forward(codes)).all())
    return Measured(backend, 1, len(codes) - 1, first_seconds, seconds / (len(codes) - 1), exact)


def on_one_core(codes: NDArray[np.int64]) -> Measured:
    """`in_process` in a process whose parallel regions have one thread."""
    with (
        patch.dict(os.environ, OMP_NUM_THREADS="1"),  # inherited; this process has read its own
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor,
    ):
        return executor.submit(in_process, "one core", codes).result()


def travelling_bytes(circuit: fhe.Circuit) -> int:
    """What each worker receives once: the evaluation keys and the circuit."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "server")
        circuit.save_server(file)
        return circuit.evaluation_key_bytes + file.stat().st_size


def plot(rows: list[Measured], path: Path) -> None:
    from refqnn.plotting import COLOURS, figure, save_figure

    fig, (left, right) = figure(9.0, 3.6, columns=2)
    names = [r.backend if r.workers == 1 else f"{r.backend}, {r.workers} workers" for r in rows]
    left.bar(names, [1 / r.seconds_per_sample for r in rows], color=COLOURS[0])
    left.set_ylabel("throughput (samples/s)")
    left.set_title(f"Keys in place, {rows[0].samples} samples")
    right.bar(names, [r.first_seconds - r.seconds_per_sample for r in rows], color=COLOURS[1])
    right.set_ylabel("before the first results (s)")
    right.set_title("Start: processes, circuit and keys")
    for axes in (left, right):
        axes.tick_params(axis="x", labelrotation=30)
    save_figure(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples, nothing written")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the results")
    arguments = parser.parse_args()
    n = 8 if arguments.quick else 60
    start = time.perf_counter()
    circuit = fhe.compile(network())
    circuit.keygen()
    codes = np.random.default_rng(2).integers(0, CODES.q_max + 1, (n, 4))
    rows: list[Measured] = []

    def add(row: Measured) -> None:
        rows.append(row)
        print(
            f"{time.perf_counter() - start:6.0f} s  {row.backend:<9} {row.workers} workers"
            f"  first {row.first_seconds:.2f} s, then {row.seconds_per_sample:.3f} s/sample"
            f"{'' if row.exact else '  WRONG'}",
            flush=True,
        )

    add(in_process("all cores", codes))
    add(on_one_core(codes))
    for backend in ("loky", "dask"):
        add(measured(circuit, codes, backend, WORKERS))
    per_sample = {r.backend: r.seconds_per_sample for r in rows}
    speed_up = {
        f"{backend} over {alone}": round(per_sample[alone] / per_sample[backend], 2)
        for backend in ("loky", "dask")
        for alone in ("one core", "all cores")
    }
    megabytes = travelling_bytes(circuit) / 1e6
    print(f"speed-up of two workers: {speed_up}; {megabytes:.1f} MB to each worker, once")
    if arguments.quick:
        return
    content: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "seconds": round(time.perf_counter() - start),
        "lookups": circuit.pbs,
        "megabytes_to_each_worker": megabytes,
        "memory_of_each_worker_megabytes": circuit.key_sizes.resident / 1e6,
        "speed_up_of_two_workers": speed_up,
        "rows": [asdict(row) for row in rows],
    }
    path = write_results("fhe_workers", content, arguments.output)
    plot(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
