"""Deviations with constants of their own: found from what they have to reproduce.

A fit is believed only where it explains four times as many wrong values as it has constants, and
eight at least: with fewer, anything could be fitted.  Samples that repeat another one do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from refqnn.arithmetic import IntArray
from refqnn.diagnosis import forms
from refqnn.diagnosis.deviation import Deviation, Fit, Operands, distinct
from refqnn.ops.base import Op
from refqnn.ops.requantize import NEVER, Requantize
from refqnn.rounding import Rounding

__all__ = ["FITS", "roundings"]

_PER_CONSTANT = 4
_AT_LEAST = 8
_FEW_CODES = 15
_SHOWN = 8  # constants that a sentence lists
_PROBES = 32  # samples on which two explanations of a sum are compared
_CELLS = 2**20  # the same for thresholds, numbers in all


def _believed(x: Operands, plain: IntArray, theirs: IntArray, constants: int) -> bool:
    """Are there enough wrong values for so many constants?"""
    enough, wrong = max(_AT_LEAST, _PER_CONSTANT * constants), plain != theirs
    return int(wrong.sum()) >= enough and int(wrong[distinct(x)].sum()) >= enough


def _listed(values: Mapping[int, object]) -> str:
    parts = [f"channel {c}: {v}" for c, v in list(values.items())[:_SHOWN]]
    return ", ".join(parts) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


# --- sums -------------------------------------------------------------------------------------


def _bias(op: Op, x: Operands, theirs: IntArray) -> Fit | None:
    """A constant for each channel."""
    plain = op.forward(*x)
    difference = theirs - plain
    rows = difference.swapaxes(0, 1).reshape(difference.shape[1], -1)
    moved = {c: int(v) for c, v in enumerate(rows[:, 0]) if v}
    if (rows != rows[:, :1]).any() or not _believed(x, plain, theirs, 1):
        return None
    constants = rows[:, 0].reshape(-1, *(1,) * (plain.ndim - 2))
    return Fit(
        (lambda *x: op.forward(*x) + constants,),
        f"added: {_listed(moved)}",
        _believed(x, plain, theirs, len(moved)),
        len(set(moved.values())) == 1,
        _random(x),
    )


def _zero_point(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
    """A constant added to every input, those with padding too, or not."""
    plain = op.forward(*x)
    for padded in (True, False):
        other = op
        if padded and "pad_code" in vars(op) and op.pads:
            other = replace(op, pad_code=op.pad_code + 1)
        step = other.forward(*(v + 1 for v in x)) - plain
        at = np.argwhere((step != 0) & (theirs != plain))
        if not len(at):
            continue
        first = tuple(at[0])
        z = int((theirs - plain)[first]) // int(step[first])
        if np.array_equal(plain + z * step, theirs) and _believed(x, plain, theirs, 1):
            found = f"{z:+d} to every input" + ("" if padded else ", not to padding")
            return Fit((partial(_moved, op, other, z),), found, probe=_random(x))
    return None


def _moved(op: Op, other: Op, z: int, *x: IntArray) -> IntArray:
    plain = op.forward(*x)
    return np.asarray(plain + z * (other.forward(*(v + 1 for v in x)) - plain))


def _random(x: Operands) -> Operands:
    """Operands of the range that was seen; none of numbers beyond 64 bits."""
    if any(v.dtype == object for v in x):
        return ()
    rng = np.random.default_rng(0)
    return tuple(rng.integers(v.min(), v.max() + 1, (_PROBES, *v.shape[1:])) for v in x)


def _factor(op: Op, x: Operands, theirs: IntArray) -> Fit | None:
    """A whole number times the sum, one for all."""
    plain = op.forward(*x)
    at = np.argwhere(plain != 0)
    if not len(at):
        return None
    first = tuple(at[0])
    factor = int(theirs[first]) // int(plain[first])
    if not np.array_equal(plain * factor, theirs) or not _believed(x, plain, theirs, 1):
        return None
    return Fit((lambda *x: op.forward(*x) * factor,), f"factor {factor}", probe=_random(x))


# --- codes ------------------------------------------------------------------------------------


def _by_rule(
    rules: Sequence[forms.Rule], base: Rounding | None
) -> Callable[[Any, Operands, IntArray], Fit | None]:
    """The first of some rules that fits, whatever the node's own rounding may be, or for `base`."""

    def fit(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
        if not op.format.q_min <= theirs.min() <= theirs.max() <= op.format.q_max:
            return None
        bases = forms.readings(op) if base is None else [base]
        made = forms.fitted(op, x[0], theirs, rules, bases)
        if made is None:
            return None
        node, rule, own = made
        twice = f"{rule.sentence}; " if len(rules) > 1 else ""
        return Fit((node.forward,), f"{twice}the node itself read as {own.value}")

    return fit


def _hidden(
    rules: Sequence[forms.Rule], base: Rounding | None
) -> Callable[[Any], Iterator[Requantize]]:
    return lambda op: forms.alone(op, rules, forms.readings(op) if base is None else [base])


def _rethresholded(
    *families: Callable[[Requantize, IntArray, IntArray], Sequence[Requantize]],
    few: bool = False,
    specific: bool = True,
) -> Callable[[Any, Operands, IntArray], Fit | None]:
    """Other thresholds, of the first family for which enough values ask.

    Args:
        few: is there one constant for each channel at most?
    """

    def fit(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
        if not op.format.q_min <= theirs.min() <= theirs.max() <= op.format.q_max:
            return None
        plain = op.forward(*x)
        for family in families:
            made = [m for m in family(op, x[0], theirs) if np.array_equal(m.forward(*x), theirs)]
            if not made:
                continue
            moved = made[0].thresholds.astype(object) - op.thresholds.astype(object)
            rows = np.flatnonzero((moved != 0).any(axis=1)).tolist()
            single = len(set(moved.ravel().tolist()) - {0}) == 1
            constants = sum(len(set(moved[row].tolist()) - {0}) for row in rows)
            believed = _believed(x, plain, theirs, 1 if single else constants)
            if believed or (few and _believed(x, plain, theirs, 1)):
                found = (
                    f"thresholds moved: {_listed({r: _movement(moved[r].tolist()) for r in rows})}"
                )
                functions = tuple(m.forward for m in made)
                return Fit(functions, found, believed, single, _steps(made, x[0]), specific)
        return None

    return fit


def _steps(made: Sequence[Requantize], acc: IntArray) -> Operands:
    """Accumulators on both sides of all thresholds, inside what each channel has seen."""
    by_channel = acc.swapaxes(0, 1).reshape(acc.shape[1], -1)
    each = np.concatenate(
        [np.broadcast_to(m.thresholds, (len(by_channel), m.thresholds.shape[1])) for m in made], 1
    )
    least, most = by_channel.min(axis=1)[:, None], by_channel.max(axis=1)[:, None]
    both = np.concatenate([np.clip(each, least, most), np.clip(each, least + 1, most + 1) - 1], 1)
    every = -(-both.shape[1] * prod(acc.shape[1:]) // _CELLS)
    columns = both.T[::every].reshape(-1, len(both), *(1,) * (acc.ndim - 2))
    return (np.broadcast_to(columns, (len(columns), *acc.shape[1:])),)


def _movement(moved: list[int]) -> str:
    real = [m for m in moved if abs(m) < NEVER // 2] or [0]
    distinct = sorted(set(real) - {0})
    if len(distinct) == 1:
        return f"{distinct[0]:+d}"
    return f"{min(real):+d} to {max(real):+d}" if distinct else "to an end, or from one"


def _code_offset(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
    """A constant added to every code before saturation: another zero point."""
    plain = op.forward(*x)
    low, high = op.format.q_min, op.format.q_max
    if not low <= theirs.min() <= theirs.max() <= high or not _believed(x, plain, theirs, 1):
        return None
    inside = (theirs > low) & (theirs < high) & (plain > low) & (plain < high)
    moved = (theirs - plain)[inside][:1].tolist()
    most = min(high - low, _FEW_CODES) + 1  # of few codes none may be inside both times
    for k in moved or sorted(range(1 - most, most), key=abs):
        made = _with_codes_moved(op, x[0], theirs, k) if k else None
        if made is not None and np.array_equal(made.forward(*x), theirs):
            return Fit((made.forward,), f"{k:+d} to every code")
    return None


def _with_codes_moved(op: Any, acc: IntArray, theirs: IntArray, k: int) -> Op | None:
    if op.kind == "Requantize":
        return forms.shifted(op, acc, theirs, k)
    moved: Op = replace(op, zero_point=op.zero_point + k)
    return moved


def _rescaled(op: Any, x: Operands, theirs: IntArray, field: str) -> Fit | None:
    plain = op.forward(*x)
    if not _believed(x, plain, theirs, 1):
        return None
    made = forms.rescaled(op, x[0], theirs, field)
    if not made:
        return None
    constants = getattr(made[0], field) - getattr(op, field)
    moved = {c: int(v) for c, v in enumerate(constants) if v}
    return Fit(
        tuple(m.forward for m in made),
        f"added to its {field}: {_listed(moved)}",
        _believed(x, plain, theirs, len(set(moved.values()))),
        len(set(moved.values())) == 1,
        _random(x),
    )


def _entries(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
    """Another table: what was written depends on what was read, channel by channel."""
    channel = np.arange(x[0].shape[1]).reshape(-1, *(1,) * (x[0].ndim - 2))
    key = np.stack([np.broadcast_to(channel, x[0].shape).ravel(), x[0].ravel()], axis=1)
    _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
    made = theirs.ravel()[first][inverse.reshape(-1)].reshape(theirs.shape)
    plain = op.forward(*x)
    changed = len(np.unique(inverse.reshape(-1)[(theirs != plain).ravel()]))
    if not np.array_equal(made, theirs) or not _believed(x, plain, theirs, changed):
        return None
    return Fit((lambda *x: theirs,), f"{changed} entries", specific=False)


_WEIGHTED = frozenset({"Linear", "Conv1d", "Conv2d", "ConvTranspose2d"})
_SUMS = _WEIGHTED | {"SumPool2d", "GlobalSumPool", "Add"}
_CODES, _RESCALED = frozenset({"Requantize"}), frozenset({"Rescale"})
_IN_FRONT = "has a constant added in front of its rounding, as another bias"
_TIMES = "multiplies its input by a constant for each channel, as another scale"
_SINGLE = [rule for rule in forms.RULES if not rule.name.startswith("double")]
_DOUBLE: dict[str, list[forms.Rule]] = {}
for _rule in forms.RULES[len(_SINGLE) :]:
    _DOUBLE.setdefault(_rule.name.rsplit("_", 1)[0], []).append(_rule)


def roundings(base: Rounding | None = None) -> list[Deviation]:
    """Other roundings, where the node's own is known, or for any that it may be."""
    named = [(r.name, r.sentence, [r]) for r in _SINGLE]
    named += [(name, "rounds twice", rules) for name, rules in _DOUBLE.items()]
    return [
        Deviation(name, told, _CODES, fit=_by_rule(rules, base), hidden=_hidden(rules, base))
        for name, told, rules in named
    ]


FITS = [
    Deviation("bias_changed", "adds another bias", _SUMS, fit=_bias, level=1),
    Deviation(
        "input_zero_point",
        "adds another zero point to its input",
        _WEIGHTED,
        fit=_zero_point,
        level=1,
    ),
    Deviation("scaled", "gives a multiple of the sum", _SUMS, fit=_factor, level=1),
    Deviation(
        "code_offset", "has another zero point of its codes", _CODES | _RESCALED, fit=_code_offset
    ),
    *(
        Deviation(name, sentence, kinds, fit=fit, level=1)
        for name, sentence, thresholds, field in (
            ("threshold_offset", _IN_FRONT, forms.offsets, "offset"),
            ("scale_changed", _TIMES, forms.scales, "multiplier"),
        )
        for kinds, fit in (
            (_CODES, _rethresholded(thresholds, few=True)),
            (_RESCALED, partial(_rescaled, field=field)),
        )
    ),
    Deviation(
        "affine_changed",
        "has another scale and offset for each channel, as batch norm on the statistics of a batch",
        _CODES,
        fit=_rethresholded(forms.other),
        level=3,  # beside any other thresholds: a scale is one guess of what moved them
    ),
    Deviation(
        "thresholds_changed",
        "has other thresholds",
        _CODES,
        fit=_rethresholded(forms.free, forms.other, specific=False),
        level=3,
    ),
    Deviation("table_changed", "has another table", frozenset({"Lookup"}), fit=_entries, level=2),
]
