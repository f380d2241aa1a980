"""What a circuit will cost, before any key is made.

    key sizes   exact: the compiler has fixed the dimensions of every key
    memory      the keys as they travel, unpacked, and the bootstrap keys once more in Fourier form
    seconds     `work` times this machine's seconds per unit of work

Work counts what an inference does, in operations of the compiler's optimizer: its own count, plus
what it leaves out.  Concrete brings the bootstrap keys to Fourier form at every call, on one core,
inputs are encrypted and unpacked one by one, and the small lookups that remove low bits take longer
than their operations say.  The prices were fitted to idle runs of eleven networks on two cores; in
bench/fhe.json, a later run, all estimates are within 16 %.

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
from refqnn.formats import IntFormat
from refqnn.network import Network, Node
from refqnn.ops import Linear
from refqnn.ops.requantize import Requantize

__all__ = [
    "Estimate",
    "KeySizes",
    "available_memory",
    "calibrate",
    "estimate",
    "key_sizes",
    "work",
]

_WORD = 8  # bytes of a torus element
_RUNS = 5

_OPERATIONS_PER_CALL = 3.4e7
_OPERATIONS_PER_INPUT = 2.0e6  # a ciphertext made, and unpacked by the server
_OPERATIONS_PER_KEY_BYTE = 4.75  # conversion of the bootstrap keys
_OPERATIONS_PER_REMOVED_BIT = 3.7e7


@dataclass(frozen=True)
class KeySizes:
    """Bytes of the evaluation keys.

    Attributes:
        travelling: serialized, as a server receives them.
        resident: in the server's memory at its peak, while the first inference unpacks them.
        bootstrap: of the bootstrap keys, unpacked; every inference brings them to Fourier form.
    """

    travelling: int
    resident: int
    bootstrap: int


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
    from refqnn.fhe.circuit import compile

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


# --- keys -------------------------------------------------------------------------------------


def key_sizes(parameters: bytes, compressed: bool) -> KeySizes:
    """Sizes from the serialized encryption parameters of a circuit.

    A bootstrap key holds n * l ciphertext rows of (k + 1) polynomials, times (k + 1); a keyswitch
    key in * l ciphertexts of out + 1 words.  Compressed, only the body of each ciphertext travels,
    the rest comes from a seed.
    """
    keyset = json.loads(parameters)["keyset"]
    whole = bootstrap = seeded = 0
    for key in keyset["lweBootstrapKeys"]:
        p = key["params"]
        rows = p["inputLweDimension"] * p["levelCount"] * (p["glweDimension"] + 1)
        body = rows * p["polynomialSize"] * _WORD
        bootstrap += body * (p["glweDimension"] + 1)
        seeded += body
    whole += bootstrap
    for key in keyset["lweKeyswitchKeys"]:
        p = key["params"]
        body = p["inputLweDimension"] * p["levelCount"] * _WORD
        whole += body * (p["outputLweDimension"] + 1)
        seeded += body
    travelling = seeded if compressed else whole
    unpacked = whole if compressed else 0
    return KeySizes(travelling, travelling + unpacked + bootstrap, bootstrap)


def work(complexity: float, sizes: KeySizes, removed_bits: int, inputs: int) -> float:
    """Operations of one inference.

    Args:
        complexity: the optimizer's count.
        removed_bits: how many low bits are removed, over all accumulators.
        inputs: how many integers are encrypted.
    """
    keys = _OPERATIONS_PER_KEY_BYTE * sizes.bootstrap
    door = _OPERATIONS_PER_CALL + _OPERATIONS_PER_INPUT * inputs
    return door + complexity + keys + _OPERATIONS_PER_REMOVED_BIT * removed_bits


def available_memory() -> int | None:
    """Bytes that a process may still take, or None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kilobytes = fields.get("MemAvailable", "").split()
    return int(kilobytes[0]) * 1024 if kilobytes else None


# --- speed ------------------------------------------------------------------------------------


def calibrate(*, force: bool = False) -> float:
    """Seconds per unit of work on this machine, all cores; from the cache unless `force`."""
    file = _cache_file()
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} cores"
    key = f"work 4, {machine}, concrete-python {version('concrete-python')}"
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(file.read_text())
    if force or key not in known:
        known[key] = _measure()
        text = json.dumps(known, indent=1).encode()

        def write(out: IO[bytes]) -> None:
            out.write(text)

        with contextlib.suppress(OSError):  # a cache that cannot be written is no error
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, write)
    return float(known[key])


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "refqnn" / "fhe-speed.json"


def _measure() -> float:
    """The median of a few runs of a layer of 32 neurons: 6-bit sums, 2 bits removed."""
    from refqnn.fhe.circuit import compile

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
