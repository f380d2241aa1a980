"""What the given values do not tell, though nothing else of the catalogue fits.

A wrong weight is in no catalogue.  Where a deviation does to a sum what other weights would do, it
is told from them only if the columns that the weights meet vary in the samples, each by itself.
Nor is every machine that saturates: order, outer register and ends are tried here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray
from refqnn.diagnosis.deviation import Operands
from refqnn.emulate import Accumulator, Stage
from refqnn.errors import RefqnnError
from refqnn.ops.base import Ends

__all__ = ["one_valued", "other_machine", "same_by_weights", "stuck"]

Function = Callable[..., "IntArray | None"]

_PRIME = 2**31 - 1  # ranks are those modulo it, never above the true ones
_COLUMNS = 384  # of more, only constant and equal ones are looked for
_WRONG = 64  # channels that a dependence is held against
_SHOWN = 8
_FOLLOW = "follow from others"
_ORDERS = 16  # random orders of the products
_FEW = 12
_PROBES, _TERMS = 256, 2**20  # samples that tell machines apart, products in all


def one_valued(values: IntArray) -> NDArray[np.bool_]:
    """Channels that hold one value, [channels]."""
    rows = values.swapaxes(0, 1).reshape(values.shape[1], -1)
    return np.asarray((rows == rows[:, :1]).all(axis=1))


def stuck(plain: IntArray, theirs: IntArray) -> NDArray[np.bool_]:
    """Channels that should vary and are given as one value, [channels]."""
    if plain.shape != theirs.shape:
        return np.zeros(theirs.shape[1:2], dtype=bool)
    return one_valued(theirs) & ~one_valued(plain)


# --- weights ----------------------------------------------------------------------------------


def same_by_weights(node: str, op: Any, x: Operands, function: Function) -> str:
    """Why what a function does to a weighted sum may be other weights as well, or ""."""
    plain, made = op.forward(*x), function(*x)
    if made is None or made.shape != plain.shape or made.dtype == object:
        return ""
    columns = op.columns(x[0], op.pad_code)  # [n, groups, K, *positions]
    moved = (made - plain).reshape(len(plain), op.groups, -1, *plain.shape[2:])
    for group in range(op.groups):
        read, differs = (np.moveaxis(v[:, group], 1, -1) for v in (columns, moved))
        reason = _dependent(
            read.reshape(-1, read.shape[-1]), differs.reshape(-1, differs.shape[-1])
        )
        if reason:
            return f"inputs {reason} in these samples: other weights of {node} do the same"
    return ""


def _dependent(columns: IntArray, differs: IntArray) -> str:
    """Which columns [rows, K] leave open by what weights a difference [rows, out] comes, in words.

    "" where no weights give it, and where the columns are independent of each other and of 1, as
    far as so many rows can be.  A constant difference is a bias, or weights that meet what adds up
    to a constant; what meets zeros alone matters to all but a bias.
    """
    differs = differs[:, (differs != 0).any(axis=0)][:, :_WRONG]
    if not differs.shape[1] or columns.dtype == object:
        return ""
    is_bias = bool((differs == differs[:1]).all())
    if is_bias:
        differs = np.ones_like(differs[:, :1])
    constant = (columns == columns[:1]).all(axis=0) & ~(is_bias & (columns[0] == 0))
    named = f"{_named(constant)} are constant" if constant.any() else ""
    every = -(-len(columns) // (2 * columns.shape[1] + 18))
    columns, differs = columns[::every], differs[::every]
    if columns.shape[1] > _COLUMNS:
        equal = len(np.unique(columns, axis=1).T) < columns.shape[1]
        return named or (_FOLLOW if equal and not is_bias else "")
    if not is_bias:
        columns = np.concatenate([np.ones_like(columns[:, :1]), columns], axis=1)
    most = len(np.unique(columns, axis=0))  # the rank that so many rows can have
    most = most if is_bias else min(most, columns.shape[1])
    rank, given = _eliminated(np.concatenate([columns, differs], axis=1), columns.shape[1])
    return (named or _FOLLOW) if given and (named or rank < most) else ""


def _named(which: NDArray[np.bool_]) -> str:
    places = np.flatnonzero(which).tolist()
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return ", ".join(map(str, places[:_SHOWN])) + more


def _eliminated(matrix: IntArray, leading: int) -> tuple[int, bool]:
    """The rank of the leading columns modulo a prime; are the others combinations of them?"""
    m = matrix.astype(np.int64) % _PRIME
    rank = 0
    for k in range(leading):
        below = np.flatnonzero(m[rank:, k])
        if not len(below):
            continue
        pivot = rank + int(below[0])
        m[[rank, pivot]] = m[[pivot, rank]]
        m[rank, k:] = m[rank, k:] * pow(int(m[rank, k]), -1, _PRIME) % _PRIME
        at = rank + below[below > 0] if pivot == rank else rank + below
        at = at[m[at, k] != 0]
        m[at, k:] = (m[at, k:] - m[at, k][:, None] * m[rank, k:] % _PRIME) % _PRIME
        rank += 1
        if rank == len(m):
            break
    return rank, not m[rank:, leading:].any()


# --- machines ---------------------------------------------------------------------------------


class _Symmetric(Stage):
    """A register without its lowest integer."""

    @property
    def ends(self) -> Ends:
        q_min, q_max = super().ends
        return q_min + 1, q_max


def other_machine(
    machine: Accumulator, op: Any, x: Operands, theirs: IntArray, function: Function
) -> str:
    """Another machine that makes the given values too, and others elsewhere, in words, or ""."""
    terms = op.terms(*(v[:1] for v in x))
    count = min(_PROBES, max(2, _TERMS // max(1, terms.size)))
    rng = np.random.default_rng(0)
    probe = tuple(
        np.concatenate(
            [
                rng.integers(v.min(), v.max() + 1, (count, *v.shape[1:])),
                rng.choice([v.min(), v.max()], (count, *v.shape[1:])),
            ]
        )
        for v in x
    )
    elsewhere = function(*probe)
    wrong = (op.forward(*x) != theirs).reshape(len(theirs), -1).sum(axis=1)
    few = np.argsort(-wrong, kind="stable")[:_FEW]
    has_bias = getattr(op, "bias", None) is not None
    products = terms.shape[-1] - has_bias
    for words, rival in _rivals(machine, products, rng) if elsewhere is not None else ():
        try:
            if not np.array_equal(rival.accumulate(op, tuple(v[few] for v in x)), theirs[few]):
                continue
            differs = (rival.accumulate(op, probe) != elsewhere).any()
            if differs and np.array_equal(rival.accumulate(op, x), theirs):
                return f"{words} gives these values too"
        except RefqnnError:
            continue  # no machine of so many products
    return ""


def _rivals(
    machine: Accumulator, products: int, rng: np.random.Generator
) -> Iterator[tuple[str, Accumulator]]:
    """Machines of the same narrow register."""
    inner, *outer = machine.stages
    own: dict[str, Any] = {"signed": inner.signed, "overflow": inner.overflow}
    grouped = bool(outer)
    ways: tuple[Literal["first", "last", "outside"], ...] = ("last", "first", "outside")
    biases = ways[2:] if grouped else ways

    def made(words: str, stages: list[Stage], order: Any = machine.order) -> Iterator[Any]:
        for bias in biases:
            yield words, Accumulator(stages, order, bias)

    def narrow(**other: Any) -> Stage:
        return Stage(inner.width, **{**own, "group": inner.group, **other})

    yield from made("at every step or at the end", [narrow(when="end"), *outer])
    yield from made("at every step or at the end", [narrow(when="step"), *outer])
    for when in ("step", "end"):
        ends = _Symmetric(inner.width, group=inner.group, when=when, **own)
        yield from made("a register without its lowest integer", [ends, *outer])
    places = np.arange(products)
    orders = [
        places,
        places[::-1],
        *(rng.permutation(products) for _ in range(_ORDERS)),
        *(
            np.concatenate([places[:i], places[i : i + 2][::-1], places[i + 2 :]])
            for i in range(0, products - 1, max(1, products // _ORDERS))
        ),
    ]
    for order in orders:
        yield from made("another order", [narrow(), *outer], order.tolist())
    if grouped:
        for width in sorted({inner.width, 8, 16, 24, 32}):
            for overflow in ("saturate", "wrap"):
                if width >= inner.width:
                    last = Stage(width, overflow=overflow)
                    for bias in ways:
                        yield (
                            "a narrower outer register",
                            Accumulator([narrow(), last], machine.order, bias),
                        )
        return
    tree = [narrow(group=2) for _ in range((products - 1).bit_length())]
    yield from made("a tree", [*tree, narrow(group=None)])
    for lanes in (2, 4, 8):
        if products % lanes == 0 and products > lanes:
            by_lane = places.reshape(-1, lanes).T.ravel().tolist()
            stages = [narrow(group=products // lanes), narrow(group=None)]
            yield from made("lanes", stages, by_lane)
