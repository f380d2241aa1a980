"""Many encrypted samples on many workers, through joblib.

The parent encrypts and decrypts; workers hold the circuit and the evaluation keys.  Both travel as
byte arrays, which joblib shares between processes of one machine by memory mapping, and which its
Dask backend sends to each worker once.  A worker keeps the loaded pair for its next samples.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import CircuitError, MissingExtra
from refqnn.fhe import files
from refqnn.fhe.interrupts import held_back
from refqnn.fhe.memory import require_memory
from refqnn.fhe.parties import KEYS, OnSample, Server, answer_header, as_teller

__all__ = ["answer_on_workers", "run_all"]

_ATTEMPTS = 3

_loaded: dict[str, Server] = {}  # of this worker process, by token; one at a time

Answer = tuple[int, "bytes | None", str]  # sample, answer, error


def run_all(
    server_file: bytes,
    evaluation_keys: bytes,
    requests: list[bytes],
    n_jobs: int,
    on_sample: OnSample | None = None,
    memory_bytes: int = 0,
) -> list[bytes]:
    """The answers to all requests, in their order.

    A worker that dies takes the samples it was computing with it: they are run again on the others.

    Args:
        n_jobs: as joblib's; the backend is joblib's current one (`joblib.parallel_config`).
        memory_bytes: what the keys take in each worker; checked where workers share this machine.

    Raises: CircuitError when nothing new is answered three times in succession, or for workers that
        memory does not hold; MissingExtra without joblib.
    """
    try:
        from joblib import effective_n_jobs, parallel
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("fhe", "joblib") from error

    backend, _ = parallel.get_active_backend()
    if isinstance(backend, parallel.LokyBackend):
        workers = min(effective_n_jobs(n_jobs), len(requests))
        require_memory(workers * memory_bytes, f"the keys in {workers} workers")
    tell = as_teller(on_sample)
    token = hashlib.sha256(server_file + evaluation_keys).hexdigest()
    circuit, keys = (np.frombuffer(b, dtype=np.uint8) for b in (server_file, evaluation_keys))
    answers: list[bytes | None] = [None] * len(requests)
    failures: list[str] = []
    while len(failures) < _ATTEMPTS and None in answers:
        missing = [i for i, answer in enumerate(answers) if answer is None]
        tasks = [(circuit, keys, token, i, requests[i]) for i in missing]
        problem = ""
        for i, answer, error_text in _in_parallel(tasks, n_jobs):
            if answer is None:
                problem = error_text
                continue
            answers[i] = answer
            failures.clear()
            tell(f"sample {i}")
        if problem:
            failures.append(problem)
            warnings.warn(f"some samples failed and are run again: {problem}", stacklevel=2)
    if None in answers:
        first = answers.index(None)
        raise CircuitError(f"sample {first} failed {_ATTEMPTS} times: {failures[-1]}")
    return [answer for answer in answers if answer is not None]


def answer_on_workers(
    server_file: str | Path,
    evaluation_keys: str | Path,
    requests: str | Path,
    answers: str | Path,
    n_jobs: int,
    on_sample: OnSample | None = None,
) -> None:
    """As `Server.answer`, with the requests shared out over workers as in `run_all`.

    Raises: as these two.
    """
    server = Server.load(server_file)
    with files.reading(evaluation_keys, "evaluation keys") as file:
        file.require(circuit=server.circuit)
        name, keys = file.field("keys", str), file[KEYS]
    with files.reading(requests, "requests") as file:
        file.require(circuit=server.circuit, keys=name)
        header = answer_header(file)
        asked = [file[str(i)] for i in range(header["samples"])]
    content = Path(server_file).read_bytes()
    got = run_all(content, keys, asked, n_jobs, on_sample, server.memory_bytes)
    members = ((str(i), answer) for i, answer in enumerate(got))
    files.write(answers, "answers", header, members)


def _in_parallel(tasks: list[tuple[Any, ...]], n_jobs: int) -> Iterator[Answer]:
    """Answers as they come, until all are there or the pool breaks; the reason comes last."""
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    try:
        with held_back():  # the threads of the pool, too, leave Control-C to this one
            answers = parallel(delayed(_run_one)(*task) for task in tasks)
        yield from answers
    except Exception as error:  # each backend has its own for a worker that died
        yield -1, None, f"{type(error).__name__}: {error}"


def _run_one(
    circuit: NDArray[np.uint8], keys: NDArray[np.uint8], token: str, i: int, request: bytes
) -> Answer:
    """One sample in a worker."""
    try:
        return i, _server(circuit, keys, token).run(request), ""
    except (RuntimeError, ValueError, OSError) as error:
        return i, None, f"{type(error).__name__}: {error}"


def _server(circuit: NDArray[np.uint8], keys: NDArray[np.uint8], token: str) -> Server:
    if token not in _loaded:
        _loaded.clear()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "server")
            file.write_bytes(circuit.tobytes())
            server = Server.load(file)
        server.load_keys(keys.tobytes())
        _loaded[token] = server
    return _loaded[token]
