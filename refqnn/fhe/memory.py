"""Memory is asked for before it is taken: a process that the system ends says nothing.

And it is kept between runs.  Every run brings the bootstrap keys to Fourier form in new memory,
50 MB for the smallest circuits.  The C library maps such a block and unmaps it again, and the
system clears it page by page: a quarter of the latency of ten lookups.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from refqnn.errors import CircuitError
from refqnn.fhe import estimation

__all__ = ["kept_between_runs", "key_sizes", "require_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST = 2**31 - 1  # value of either
_USUAL = 32 * 2**20  # the mmap threshold that glibc arrives at by itself
_SPARE = 64 * 2**20


def require_memory(needed: int, what: str) -> None:
    """Raises: CircuitError when fewer bytes than `needed` are available; it says how many."""
    available = estimation.available_memory()
    if available is not None and needed > available:
        raise CircuitError(
            f"{what} of this circuit take {needed / 1e9:.2f} GB of memory and "
            f"{available / 1e9:.2f} GB are available; narrower tables have smaller keys "
            "(see Circuit.explain)"
        )


def key_sizes(parameters: bytes) -> estimation.KeySizes:
    """Sizes of the evaluation keys; the encryption parameters say whether they are compressed."""
    keys = json.loads(parameters)["keyset"]["lweBootstrapKeys"]
    compressed = any(key.get("compression") == "seed" for key in keys)
    return estimation.key_sizes(parameters, compressed)


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
