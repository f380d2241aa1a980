"""Random questions that are larger than those of `samplers` in one place or two.

A tail that an unrolled loop forgets, a counter of 8 bits, a buffer of a few samples show only
beyond some size; a table or a pad code of more than 8 bits only where entries are wider.  The
samplers stay what they are: the stream below gives some of their small numbers larger values.
Questions that are spoiled in one argument show which refusals are missing, and which are too many.
Frozen, as samplers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from refqnn.conformance.making.samplers import SAMPLERS, Stream, sample
from refqnn.conformance.operations import Array, Values

__all__ = ["Roomy", "roomy", "spoiled"]

T = TypeVar("T")

_EDGES = (-1, 0, 1, 2, 31, 32, 33, 62, 63, 64)
_FAR = (2**31, -(2**31) - 1, 2**62, -(2**62))  # not for what is an exponent or a size
_NEVER_FAR = ("shift", "bits", "n_", "kernel", "stride", "padding", "dilation", "groups", "shape",
              "widths", "fan_in", "width")  # fmt: skip
_COUNTS = (4, 5, 7, 8, 9, 11, 16, 17, 18, 33, 65, 130, 257)  # about what loops are unrolled by
_WIDER = (7, 120, 30_000, 2**22, 2**33)  # factors of ranges
# shifts are tensors there; the second route of `project` takes a step for each unit
_NOT_WIDER = ("requantize_multiplier", "rescale", "project")
_ROOM = 600  # product of all counts that grew


class Roomy(Stream):
    """A stream whose counts (drawn from 1 to at most 8) and ranges are larger at times."""

    def __init__(self, seed: int, name: str) -> None:
        super().__init__(seed, f"roomy {name}")
        self._widens, self._wide_codes = name not in _NOT_WIDER, name in ("check_codes", "quantize")
        self._room = _ROOM

    def _grown(self) -> int:
        count = super().choice([c for c in _COUNTS if c <= self._room] or (1,))
        self._room //= count
        return count

    def integer(self, lo: int, hi: int) -> int:
        grows = lo == 1 and hi <= 8 and self._room > 4 and super().integer(1, 100) <= 20
        if self._wide_codes and (lo, hi) == (2, 8) and super().integer(1, 100) <= 30:
            return super().choice((9, 15, 16, 17, 24, 31, 32))
        return self._grown() if grows else super().integer(lo, hi)

    def choice(self, values: Sequence[T]) -> T:
        counts = all(isinstance(v, int) and not isinstance(v, bool) and v in (1, 2) for v in values)
        if counts and self._room > 4 and super().integer(1, 100) <= 15:
            return self._grown()  # type: ignore[return-value]
        return values[super().integer(0, len(values) - 1)]

    def edge(self, bits: int) -> int:
        room, self._room = self._room, 0
        value = super().edge(bits)
        self._room = room
        return value

    def tensor(self, shape: Sequence[int], lo: int, hi: int) -> Array:
        if self._widens and hi - lo < 80 and super().integer(1, 100) <= 25:
            factor = _WIDER[super().integer(0, len(_WIDER) - 1)]
            lo, hi = lo * factor, hi * factor
        room, self._room = self._room, 0  # values are no counts
        values = super().tensor(shape, lo, hi)
        self._room = room
        return values


def roomy(operation: str, seed: int) -> Values:
    """The larger question of this operation and seed."""
    return SAMPLERS[operation](Roomy(seed, operation))


def spoiled(operation: str, seed: int) -> Values:
    """A question of `samplers` with one argument at, or beyond, an edge of what it may be."""
    arguments, s = sample(operation, seed), Stream(seed, f"spoiled {operation}")
    names = [n for n, v in arguments.items() if _spoils(v)]
    if not names:
        return arguments
    name = s.choice(names)
    near = any(part in name for part in _NEVER_FAR)
    return {**arguments, name: _spoilt(s, arguments[name], _EDGES + (() if near else _FAR))}


def _spoils(value: object) -> bool:
    tensor = isinstance(value, np.ndarray) and value.size > 0
    numbers = isinstance(value, tuple) and len(value) > 0
    return tensor or numbers or (isinstance(value, int) and not isinstance(value, bool))


def _spoilt(s: Stream, value: Any, edges: tuple[int, ...]) -> Any:
    if isinstance(value, tuple):
        place = s.integer(0, len(value) - 1)
        return (*value[:place], _spoilt(s, value[place], edges), *value[place + 1 :])
    if not isinstance(value, np.ndarray):
        return s.choice((*edges, value + 1, value - 1, -value, 2 * value))
    if value.ndim and s.chance(35):
        axis = s.integer(0, value.ndim - 1)
        more = np.concatenate([value, value.take([0], axis)], axis)
        return more if s.chance(50) or value.shape[axis] == 1 else value.take([0], axis)
    flat = value.reshape(-1).copy()
    place = s.integer(0, flat.size - 1)
    old = flat[place]
    real = value.dtype.kind == "f"
    some = (np.nan, np.inf, 0.0, -old) if real else (*edges, old + 1, old - 1, -old)
    flat[place] = s.choice(some)
    return flat.reshape(value.shape)
