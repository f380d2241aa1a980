"""Tensors of another implementation: where they come from and how they are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, to_int64_if_possible
from refqnn.dumps import add_value, arranged, read_dump
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import as_integers
from refqnn.network import Network

__all__ = ["Dump", "as_array", "integers", "renamed", "tensors"]

Dump = Mapping[str, Any] | str | Path


def read(dump: object) -> dict[str, NDArray[Any]]:
    """The arrays of a mapping, a .npz file, or a folder of .npy files.

    Raises: InvalidType, FileFormatError, OSError.
    """
    if isinstance(dump, Mapping):
        return {str(name): as_array(values, str(name)) for name, values in dump.items()}
    if not isinstance(dump, (str, Path)):
        expected = "a mapping of names to arrays, a .npz file, or a folder of .npy files"
        raise InvalidType(mismatch("dump", type(dump).__name__, expected))
    return read_dump(dump)


def as_array(values: object, name: str) -> NDArray[Any]:
    """Raises: InvalidType."""
    try:
        return np.asarray(values)
    except ValueError:  # rows of several lengths
        raise InvalidType(mismatch(name, "rows of several lengths", "an array")) from None


def renamed(dump: Dump, names: Mapping[str, str] | None) -> list[tuple[str, str, NDArray[Any]]]:
    """(their name, the name that `names` gives it or else the same, values) of a dump.

    Raises: InvalidArgument for names that the dump lacks and for an empty dump; as `read`.
    """
    if names is not None and not isinstance(names, Mapping):
        raise InvalidType(mismatch("names", repr(names), "a mapping, their name -> ours"))
    given = read(dump)
    if not given:
        raise InvalidArgument(mismatch("dump", "no arrays", "at least one"))
    if absent := sorted(set(names or {}) - set(given)):
        raise InvalidArgument(mismatch("names", absent, f"names out of {list(given)}"))
    return [(theirs, (names or {}).get(theirs, theirs), v) for theirs, v in given.items()]


def tensors(
    network: Network,
    dump: Dump,
    names: Mapping[str, str] | None = None,
    layout: str | None = None,
) -> tuple[dict[str, IntArray], dict[str, str]]:
    """The integers of a dump by our names, in our shapes where they can be had.

    Args:
        names: their name -> ours; tensors that it does not name keep their name.  Names of the file
            that the network was read from do too (`Network.tensors`).
        layout: see `refqnn.dumps.arranged`; None: ours, or "NHWC" where the shape says so.

    Returns: the values, and what had to be done to them.

    Raises: InvalidArgument for a name that is no value of the network and for no layout,
        InvalidType for values that are no integers.
    """
    values: dict[str, IntArray] = {}
    notes: dict[str, str] = {}
    taken: set[str] = set()
    for theirs, told, array in renamed(dump, names):
        name = network.value_of(told)
        if name not in network.shapes:
            known = [*network.shapes, *network.tensors]
            expected = f"one of {known}, or a name that `names` maps to one"
            raise InvalidArgument(mismatch("name in dump", repr(theirs), expected))
        if told in taken:
            raise InvalidArgument(mismatch("names", f"{told!r} twice", "each value once"))
        taken.add(told)
        laid_out, note = _laid_out(network, name, integers(array, theirs), layout)
        add_value(values, name, laid_out, theirs)
        if note:
            notes[name] = note
    return values, notes


def integers(array: NDArray[Any], name: str) -> IntArray:
    """Integers, also where a runtime keeps them in floats.  Raises: InvalidType."""
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        if abs(array).max(initial=0) >= 2**63:
            return np.array([int(v) for v in array.flat], dtype=object).reshape(array.shape)
        return array.astype(np.int64)
    return to_int64_if_possible(as_integers(array, name))


def _laid_out(
    network: Network, name: str, values: IntArray, layout: str | None
) -> tuple[IntArray, str]:
    """Values [n, *shape], and how they were read; as they are where nothing fits."""
    shape = network.shapes[name]
    n = values.size // prod(shape)
    for order in (layout, "NHWC" if layout is None else None):
        with suppress(ShapeMismatch):
            found = arranged(network, {name: values}, n, order)[name]
            if order != layout:
                last = "last" if layout is None else "first"
                return found, f"read with the channels {last}, as its shape says"
            if layout is not None or values.shape[1:] == shape:
                return found, ""
            return found, "read as one sample" if values.shape == shape else "read flat, row by row"
    return values, ""
