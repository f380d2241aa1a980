"""Memory is asked for before it is taken: a process that the system ends says nothing."""

from __future__ import annotations

import json

from refqnn.errors import CircuitError
from refqnn.fhe import estimation

__all__ = ["key_sizes", "require_memory"]


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
