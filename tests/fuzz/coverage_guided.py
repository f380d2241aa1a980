"""The doors under Atheris, which keeps inputs that reach new code (pip install atheris).

    python tests/fuzz/coverage_guided.py DOOR [-runs=100000] [libFuzzer options]

Not collected by pytest and not a dependency: the seeded mutators of fuzzing.py are what CI runs.
DOOR is one of the names below.  Bytes that the fuzzer makes reach what lies behind the checksums:
`network` and `certificate` mend them first.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["refqnn"]):
    from refqnn import storage
    from refqnn.accumulator.certificate import Certificate
    from refqnn.conformance.program import read_answer
    from refqnn.conformance.suite import load_vectors
    from refqnn.container import array_to_npy, checksum, npy_to_array

from fuzzing import mended
from test_fuzz_conformance import right_answer
from test_fuzz_files import certificates, saved, use

from refqnn.errors import RefqnnError

VECTORS = load_vectors()


def network(data: bytes) -> None:
    """The bytes choose how the file is changed."""
    file = saved()[len(data) % 2]
    use(storage.from_bytes(mended(file, "network", "arrays", random.Random(data))))


def certificate(data: bytes) -> None:
    if (content := parsed(data)) is not None:
        content["sha256"] = checksum({k: v for k, v in content.items() if k != "sha256"})
        Certificate.from_json(content)


def answer(data: bytes) -> None:
    if (content := parsed(data[1:])) is not None:
        read_answer(VECTORS[data[0] % len(VECTORS)], content)


def array(data: bytes) -> None:
    npy_to_array(data)


def parsed(data: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


DOORS: dict[Callable[[bytes], None], list[bytes]] = {  # and what to begin with
    network: [b"0"],
    certificate: [json.dumps(content).encode() for content in certificates()],
    answer: [
        bytes([i]) + json.dumps(right_answer(vector)).encode()
        for i, vector in enumerate(VECTORS[:256])
    ],
    array: [array_to_npy(np.arange(6).reshape(2, 3)), array_to_npy(np.array(["a", "bc"]))],
}


def main() -> None:
    doors = {door.__name__: door for door in DOORS}
    if len(sys.argv) < 2 or sys.argv[1] not in doors:
        sys.exit(f"{__doc__}\nDOOR: {', '.join(doors)}")
    door = doors[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        with contextlib.suppress(RefqnnError):
            door(data)

    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(DOORS[door]):
            Path(folder, str(i)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
