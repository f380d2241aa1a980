"""The memory of keys, asked for before it is taken: a process that the system ends says nothing.

And it is kept between runs.  Every run brings the bootstrap keys to Fourier form in new memory,
50 MB for the smallest circuits.  The C library maps such a block and unmaps it again, and the
system clears it page by page: a quarter of the latency of ten lookups.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from refqnn.errors import CircuitError
from refqnn.limits import available_memory

__all__ = [
    "KeySizes",
    "available_memory",
    "ciphertext_bytes",
    "kept_between_runs",
    "key_sizes",
    "require_memory",
]

_WORD = 8  # bytes of a torus element
_LARGEST_MASK = 2**11  # words, where there is no lookup

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST = 2**31 - 1  # value of either
_USUAL = 32 * 2**20  # the mmap threshold that glibc arrives at by itself
_SPARE = 64 * 2**20


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


def require_memory(needed: int, what: str) -> None:
    """Raises: CircuitError when fewer bytes than `needed` are available; it says how many."""
    available = available_memory()
    if available is not None and needed > available:
        raise CircuitError(
            f"{what} of this circuit take {needed / 1e9:.2f} GB of memory and "
            f"{available / 1e9:.2f} GB are available; narrower tables have smaller keys "
            "(see Circuit.explain)"
        )


def key_sizes(parameters: bytes) -> KeySizes:
    """Sizes of the evaluation keys, exactly, from a circuit's serialized encryption parameters.

    A bootstrap key holds n * l ciphertext rows of (k + 1) polynomials, times (k + 1); a keyswitch
    key in * l ciphertexts of out + 1 words.  Compressed, only the body of each ciphertext travels,
    the rest comes from a seed.
    """
    keyset = json.loads(parameters)["keyset"]
    compressed = any(key.get("compression") == "seed" for key in keyset["lweBootstrapKeys"])
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


def ciphertext_bytes(parameters: bytes) -> int:
    """Of the largest ciphertext of one integer, from a circuit's encryption parameters."""
    keys = [key["params"] for key in json.loads(parameters)["keyset"]["lweBootstrapKeys"]]
    words = max((p["glweDimension"] * p["polynomialSize"] for p in keys), default=_LARGEST_MASK)
    return int(_WORD * (words + 1))


@contextmanager
def kept_between_runs(size: int) -> Iterator[None]:
    """Inside, large blocks come from the heap, which keeps up to `size` freed bytes afterwards.

    Nothing happens without glibc.  Threads other than the main one have heaps of their own, too
    small for such blocks.
    """
    if _mallopt is not None:
        _mallopt(_TRIM_THRESHOLD, min(size + _SPARE, _LARGEST))
        _mallopt(_MMAP_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        if _mallopt is not None:
            _mallopt(_MMAP_THRESHOLD, _USUAL)


def _find_mallopt() -> Callable[[int, int], int] | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (others have a mallopt that does nothing)
        found: Callable[[int, int], int] = library.mallopt
    except (OSError, TypeError, AttributeError):
        return None
    return found


_mallopt = _find_mallopt()
