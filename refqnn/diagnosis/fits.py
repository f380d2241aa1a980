"""Deviations with constants of their own: found from what they have to reproduce.

A fit is believed only where it explains four times as many wrong values as it has constants, and
eight at least: with fewer, anything could be fitted.  Samples that repeat another one do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
_SHOWN = 8  # constants that a sentence lists


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
    if (rows != rows[:, :1]).any() or not _believed(x, plain, theirs, len(moved)):
        return None
    return theirs, f"added: {_listed(moved)}"


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
            return theirs, f"{z:+d} to every input" + ("" if padded else ", not to padding")
    return None


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
    return theirs, f"factor {factor}"


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
        return node.forward(*x), f"{twice}the node itself read as {own.value}"

    return fit


def _rethresholded(
    *changes: Callable[[Requantize, IntArray, IntArray], Requantize | None],
) -> Callable[[Any, Operands, IntArray], Fit | None]:
    """Other thresholds, the first for which enough values ask."""

    def fit(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
        if not op.format.q_min <= theirs.min() <= theirs.max() <= op.format.q_max:
            return None
        for made in (change(op, x[0], theirs) for change in changes):
            if made is None:
                continue
            moved = made.thresholds.astype(object) - op.thresholds.astype(object)
            rows = np.flatnonzero((moved != 0).any(axis=1)).tolist()
            constants = sum(len(set(moved[row].tolist()) - {0}) for row in rows)
            if _believed(x, op.forward(*x), theirs, constants):
                shown = {row: _movement(moved[row].tolist()) for row in rows}
                return made.forward(*x), f"thresholds moved: {_listed(shown)}"
        return None

    return fit


def _movement(moved: list[int]) -> str:
    real = [m for m in moved if abs(m) < NEVER // 2]
    distinct = sorted(set(real) - {0})
    return f"{distinct[0]:+d}" if len(distinct) == 1 else f"{min(real):+d} to {max(real):+d}"


def _code_offset(op: Any, x: Operands, theirs: IntArray) -> Fit | None:
    """A constant added to every code before saturation: another zero point."""
    codes, plain = forms.unbounded(op, x[0]), op.forward(*x)
    q_min, q_max = op.format.q_min, op.format.q_max
    if codes is None or not np.array_equal(np.clip(codes, q_min, q_max), plain):
        return None
    inside = (theirs > q_min) & (theirs < q_max)
    if not inside.any():
        return None
    k = int((theirs - codes)[inside][0])
    if not np.array_equal(np.clip(codes + k, q_min, q_max), theirs):
        return None
    return (theirs, f"{k:+d} to every code") if _believed(x, plain, theirs, 1) else None


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
    return theirs, f"{changed} entries"


def _free_scale(op: Requantize, acc: IntArray, codes: IntArray) -> Requantize | None:
    return forms.other(op, acc, codes)


_SUMS = frozenset({"Linear", "Conv1d", "Conv2d", "ConvTranspose2d"})
_CODES = frozenset({"Requantize"})
_SINGLE = [rule for rule in forms.RULES if not rule.name.startswith("double")]
_DOUBLE: dict[str, list[forms.Rule]] = {}
for _rule in forms.RULES[len(_SINGLE) :]:
    _DOUBLE.setdefault(_rule.name.rsplit("_", 1)[0], []).append(_rule)


def roundings(base: Rounding | None = None) -> list[Deviation]:
    """Other roundings, where the node's own is known, or for any that it may be."""
    single = [Deviation(r.name, r.sentence, _CODES, fit=_by_rule([r], base)) for r in _SINGLE]
    return single + [
        Deviation(name, "rounds twice", _CODES, fit=_by_rule(rules, base))
        for name, rules in _DOUBLE.items()
    ]


FITS = [
    Deviation("bias_changed", "adds another bias", _SUMS, fit=_bias, level=1),
    Deviation(
        "input_zero_point", "adds another zero point to its input", _SUMS, fit=_zero_point, level=1
    ),
    Deviation("scaled", "gives a multiple of the sum", _SUMS, fit=_factor, level=1),
    Deviation("code_offset", "has another zero point of its codes", _CODES, fit=_code_offset),
    Deviation(
        "threshold_offset",
        "has a constant added in front of its rounding, as another bias",
        _CODES,
        fit=_rethresholded(forms.offset),
        level=1,
    ),
    Deviation(
        "affine_changed",
        "has another scale and offset for each channel, as batch norm on the statistics of a batch",
        _CODES,
        fit=_rethresholded(_free_scale),
        level=3,  # beside any other thresholds: a scale is one guess of what moved them
    ),
    Deviation(
        "thresholds_changed",
        "has other thresholds",
        _CODES,
        fit=_rethresholded(forms.free, _free_scale),
        level=3,
    ),
    Deviation("table_changed", "has another table", frozenset({"Lookup"}), fit=_entries, level=2),
]
