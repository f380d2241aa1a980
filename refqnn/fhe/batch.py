"""Many encrypted samples on many workers, through joblib.

The parent encrypts and decrypts; workers hold the circuit and the evaluation keys.  Both travel as
byte arrays, which joblib shares between processes of one machine by memory mapping, and which its
Dask backend sends to each worker once.  A worker keeps the loaded pair for its next samples.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import CircuitError, MissingExtra
from refqnn.fhe.parties import Server

__all__ = ["run_all"]

_ATTEMPTS = 3

_loaded: dict[str, Server] = {}  # of this worker process, by token; one at a time

Answer = tuple[int, "bytes | None", str]  # sample, answer, error


def run_all(
    server_file: bytes,
    evaluation_keys: bytes,
    token: str,
    requests: list[bytes],
    n_jobs: int,
    on_sample: Callable[[str], None] | None = None,
) -> list[bytes]:
    """The answers to all requests, in their order.

    Args:
        token: names this pair of circuit and keys; workers load it once.
        n_jobs: as joblib's; the backend is joblib's current one (`joblib.parallel_config`).

    Raises: CircuitError when a sample fails three times, MissingExtra without joblib.
    """
    try:
        from joblib import Parallel, delayed
    except ImportError as error:  # pragma: no cover
        raise MissingExtra("fhe", "joblib") from error

    circuit, keys = (np.frombuffer(b, dtype=np.uint8) for b in (server_file, evaluation_keys))
    answers: list[bytes | None] = [None] * len(requests)
    failure = ""
    for _ in range(_ATTEMPTS):
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if not missing:
            break
        tasks = [delayed(_run_one)(circuit, keys, token, i, requests[i]) for i in missing]
        try:
            for i, answer, problem in Parallel(n_jobs=n_jobs, return_as="generator")(tasks):
                answers[i], failure = answer, problem or failure
                if answer is not None and on_sample is not None:
                    on_sample(f"sample {i}")
        except (OSError, RuntimeError) as error:  # a worker died: the others' answers are kept
            failure = f"{type(error).__name__}: {error}"
            warnings.warn(f"a worker failed, its samples are run again: {failure}", stacklevel=2)
    if any(answer is None for answer in answers):
        first = answers.index(None)
        raise CircuitError(f"sample {first} failed {_ATTEMPTS} times: {failure}")
    return [answer for answer in answers if answer is not None]


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
