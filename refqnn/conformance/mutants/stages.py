"""Accumulators in stages: the kernel, and what goes wrong in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refqnn.conformance.mutants.steps import Hook, same, saturate, total, wrap
from refqnn.conformance.mutants.table import of
from refqnn.conformance.operations import Array, Values
from refqnn.conformance.suite import Rejected

__all__ = ["accumulate_stages"]


def _ordered(products: Array, order: str) -> list[int]:
    """Products [channels, kernel] one after the other."""
    flat = products.T.ravel() if order == "channels_last" else products.ravel()
    return [int(p) for p in (flat[::-1] if order == "reverse" else flat)]


def _cut(values: list[int], size: int) -> list[list[int]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def accumulate_stages(
    x: Array,
    weight: Array,
    bias: Array | None,
    widths: Sequence[int],
    signed: Sequence[int],
    groups: Sequence[int],
    saturates: Sequence[int],
    at_end: Sequence[int],
    order: str,
    bias_at: str,
    *,
    widths_: Hook = same,
    signed_: Hook = same,
    saturates_: Hook = same,
    at_end_: Hook = same,
    order_: Hook = same,
    bias_at_: Hook = same,
    groups_: Hook = same,
    ordered: Hook = _ordered,
    cut: Hook = _cut,
    start: Hook = lambda stage, bias: [],
) -> Values:
    if {len(signed), len(saturates), len(at_end), len(groups) + 1} != {len(widths)}:
        raise Rejected("shape_mismatch", "stages")
    if not all(1 <= w <= 64 for w in widths) or not all(g >= 1 for g in groups):
        raise Rejected("invalid_parameter", "stages")
    weight, x, last = np.asarray(weight), np.asarray(x), len(widths) - 1
    if x.shape[1:] != weight.shape[1:] or (bias is not None and len(bias) != len(weight)):
        raise Rejected("shape_mismatch", "shape")
    rules = list(
        zip(widths_(widths), signed_(signed), saturates_(saturates), at_end_(at_end, saturates))
    )
    at, sizes = bias_at_(bias_at), groups_(groups)
    acc = np.empty((len(x), len(weight)), dtype=object)
    for n, k in np.ndindex(acc.shape):
        added = [] if bias is None else [int(bias[k])]
        values = ordered(weight[k].astype(object) * x[n].astype(object), order_(order))
        for stage, (width, two_sided, clips, end) in enumerate(rules):
            if stage == last:
                values = {"first": added + values, "last": values + added}.get(at, values)
            fit = (saturate if clips else wrap)(width, bool(two_sided))
            sums = cut(values, len(values) if stage == last else sizes[stage])
            sums = [start(stage, added) + terms for terms in sums]
            values = [fit(sum(terms)) if end else total(terms, fit) for terms in sums]
        acc[n, k] = values[0] + (sum(added) if at == "outside" else 0)
    return {"acc": acc}


# --- what goes wrong --------------------------------------------------------------------------


def _interleaved(values: list[int], size: int) -> list[list[int]]:
    """As many sums as there are, the values dealt to them in turn, as lanes of a vector would."""
    sums = -(-len(values) // size)
    return [values[i::sums] for i in range(sums)]


def _whole_groups(values: list[int], size: int) -> list[list[int]]:
    """Without the last group where it is not full."""
    return _cut(values, size)[: max(1, len(values) // size)]


def _from_the_end(values: list[int], size: int) -> list[list[int]]:
    """Groups from the end: the first one is not full."""
    first = len(values) % size
    return [part for part in (values[:first], *_cut(values[first:], size)) if part]


# fmt: off
_s = of(accumulate_stages)
_s("exact_inside", "overflow_rule", "keeps inner sums exact",
   widths_=lambda w: (64,) * (len(w) - 1) + (w[-1],))
_s("exact_outside", "overflow_rule", "keeps the last sum exact",
   widths_=lambda w: (*w[:-1], 64))
_s("last_width", "overflow_narrow", "takes the last width for every stage",
   widths_=lambda w: (w[-1],) * len(w))
_s("first_width", "overflow_narrow", "takes the first width for every stage",
   widths_=lambda w: (w[0],) * len(w))
_s("one_bit_more", "overflow_narrow", "takes one bit more", widths_=lambda w: [b + 1 for b in w])
_s("one_bit_less", "overflow_narrow", "takes one bit less",
   widths_=lambda w: [max(b - 1, 1) for b in w])
_s("always_signed", "signedness", "takes unsigned registers for signed",
   signed_=lambda s: (1,) * len(s))
_s("always_unsigned", "signedness", "takes signed registers for unsigned",
   signed_=lambda s: (0,) * len(s))
_s("wraps", "overflow_rule", "wraps in every stage", saturates_=lambda s: (0,) * len(s))
_s("saturates", "overflow_rule", "saturates in every stage", saturates_=lambda s: (1,) * len(s))
_s("last_rule", "overflow_rule", "overflows in every stage as in the last",
   saturates_=lambda s: (s[-1],) * len(s))
_s("first_rule", "overflow_rule", "overflows in every stage as in the first",
   saturates_=lambda s: (s[0],) * len(s))
_s("every_step", "overflow_rule", "fits after every value", at_end_=lambda e, clips: (0,) * len(e))
_s("end_only", "overflow_rule", "fits each sum once", at_end_=lambda e, clips: (1,) * len(e))
_s("forward", "layout", "runs channel by channel always", order_=lambda order: "forward")
_s("channels_last", "layout", "runs through the channels first always",
   order_=lambda order: "channels_last")
_s("reverse_of_channels", "layout", "reverses the channels where the products are to be reversed",
   ordered=lambda p, order: _ordered(p[::-1] if order == "reverse" else p,
                                     "forward" if order == "reverse" else order))
_s("never_reversed", "overflow_rule", "runs forward where it is to run backwards",
   order_=lambda order: "forward" if order == "reverse" else order)
_s("bias_first", "overflow_rule", "begins with the bias always", bias_at_=lambda at: "first")
_s("bias_last", "overflow_rule", "ends with the bias always", bias_at_=lambda at: "last")
_s("bias_outside", "overflow_rule", "adds the bias to the fitted sum",
   bias_at_=lambda at: "outside")
_s("bias_in_the_first_stage", "overflow_rule", "begins every inner sum with the bias",
   start=lambda stage, bias: bias if stage == 0 else [])
_s("bias_forgotten", "overflow_rule", "adds no bias", bias_at_=lambda at: "nowhere")
_s("lanes", "layout", "deals the products to the sums in turn", cut=_interleaved)
_s("remainder_dropped", "layout", "leaves out a last group that is not full", cut=_whole_groups)
_s("remainder_first", "layout", "makes the first group the short one", cut=_from_the_end)
_s("groups_of_products", "layout", "counts the products of each stage's groups, not their values",
   groups_=lambda g: [max(1, size // (g[i - 1] if i else 1)) for i, size in enumerate(g)])
_s("first_group", "layout", "takes the first group size for every stage",
   groups_=lambda g: [g[0]] * len(g) if g else g)
_s("wraps_at_end", "overflow_rule", "wraps once at the end instead of at every step",
   "wrapping is reduction modulo 2^b, which commutes with addition",
   at_end_=lambda e, clips: [bool(end) or not c for end, c in zip(e, clips)])
# fmt: on
