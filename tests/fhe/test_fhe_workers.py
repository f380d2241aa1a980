"""Workers that die: the others do their samples, and results stay complete, in order and exact."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U2
from hypothesis import given
from hypothesis import strategies as st

from refqnn import fhe
from refqnn.errors import CircuitError
from refqnn.fhe import batch, memory

joblib = pytest.importorskip("joblib")

# --- the bookkeeping, without encryption ------------------------------------------------------


def pool(script: list[tuple[int, bool]], poison: int = -1) -> Callable[..., Iterator[batch.Answer]]:
    """A pool that follows a script: answers so many tasks, last ones first, then breaks or not."""
    steps = iter(script)

    def answers(tasks: list[tuple[Any, ...]], n_jobs: int) -> Iterator[batch.Answer]:
        done, breaks = next(steps, (len(tasks), False))
        for _, _, _, i, request in tasks[::-1][: done if breaks else None]:
            if i == poison:
                yield i, None, "ValueError: poison"
            else:
                yield i, b"answer to " + request, ""
        if breaks:
            yield -1, None, "a worker died"

    return answers


@given(
    n=st.integers(1, 12),
    script=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=8),
)
@pytest.mark.filterwarnings("ignore:some samples failed")
def test_progress_is_kept_whatever_breaks(n: int, script: list[tuple[int, bool]]) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_in_parallel", pool(script))
        requests = [str(i).encode() for i in range(n)]
        got = batch.run_all(b"", b"", requests, 2, said.append)
    assert got == [b"answer to " + request for request in requests]
    assert sorted(said) == sorted(f"sample {i}" for i in range(n))  # each once


@pytest.mark.filterwarnings("ignore:some samples failed")
def test_a_sample_that_always_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_in_parallel", pool([], poison=1))
    with pytest.raises(CircuitError, match="sample 1 failed 3 times: ValueError: poison"):
        batch.run_all(b"", b"", [b"0", b"1", b"2"], 2)


def test_an_error_of_the_caller_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> None:
        raise ZeroDivisionError(text)

    monkeypatch.setattr(batch, "_in_parallel", pool([]))
    with pytest.raises(ZeroDivisionError, match="sample 0"):
        batch.run_all(b"", b"", [b"0"], 2, broken)


def test_workers_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 5 * 10**9)
    with pytest.raises(CircuitError, match=r"3 workers of this circuit take 6\.00 GB"):
        batch.run_all(b"", b"", [b""] * 9, 3, memory_bytes=2 * 10**9)


# --- real workers, real deaths ----------------------------------------------------------------


@pytest.fixture(scope="module")
def circuit() -> fhe.Circuit:
    made = fhe.compile(nets.mlp(2, sizes=(4, 8, 3), largest=1, codes=U2, shift=1))
    made.keygen()
    return made


class Killer:
    """Ends one process by SIGKILL when the first sample is done: others are being computed."""

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self.processes = processes
        self.killed: list[int] = []

    def __call__(self, text: str) -> None:
        if not self.killed:
            self.killed = self.processes()[:1]
            os.kill(self.killed[0], signal.SIGKILL)


def loky_workers() -> list[int]:
    from joblib.externals.loky import reusable_executor

    return list(reusable_executor._executor._processes)


@pytest.mark.slow
def test_a_killed_process_costs_nothing_but_time(circuit: fhe.Circuit) -> None:
    codes = nets.samples(circuit.network, 10)[-10:]
    killer = Killer(loky_workers)
    with pytest.warns(UserWarning, match="samples failed and are run again: TerminatedWorker"):
        got = circuit.execute(codes, n_jobs=2, on_sample=killer)
    np.testing.assert_array_equal(got, circuit.network.forward(codes))
    assert killer.killed[0] not in loky_workers()


@pytest.mark.slow
def test_a_killed_dask_worker_costs_nothing_but_time(circuit: fhe.Circuit) -> None:
    distributed = pytest.importorskip("distributed")
    codes = nets.samples(circuit.network, 12)[-12:]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        killer = Killer(lambda: list(client.run(os.getpid).values()))
        got = circuit.execute(codes, n_jobs=2, on_sample=killer)
        client.wait_for_workers(2, timeout=60)
        assert killer.killed[0] not in client.run(os.getpid).values()
    np.testing.assert_array_equal(got, circuit.network.forward(codes))
