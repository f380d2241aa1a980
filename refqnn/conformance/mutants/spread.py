"""Transposed convolutions and movements of values: kernels, and what goes wrong in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import prod

import numpy as np

from refqnn.conformance.mutants.steps import Hook, Index, in_float, same, total, wrap
from refqnn.conformance.mutants.table import of
from refqnn.conformance.operations import Array, Values
from refqnn.conformance.suite import Rejected

__all__ = ["conv_transpose2d", "gather"]


def _cut(full: int, before: int, after: int, extra: int) -> tuple[int, int]:
    """The first position that is kept and how many are, of a full axis."""
    return before, full - before - after + extra


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *,
    weights: Hook = same,
    images: Hook = same,
    steps: Hook = lambda stride, dilation: (stride, dilation),
    paddings: Hook = same,
    extras: Hook = same,
    cut: Hook = _cut,
    spans: Hook = lambda place, s: [place * s],
    channel: Hook = lambda k, c, n, outs, groups: k // outs * n + c,
    channels: Hook = range,
    read_x: Hook = same,
    read_w: Hook = same,
    product_: Hook = same,
    fit: Hook = same,
    bias_at: Hook = lambda b, k: b[k],
    sample: Hook = same,
) -> Values:
    """Each input adds the kernel, times itself, to the outputs that it reaches."""
    weight, x = np.asarray(weight), np.asarray(x)
    inputs, outs, *kernel = weight.shape
    largest = [max(s, d) for s, d in zip(stride, dilation)]
    if groups < 1 or inputs % groups or min(*stride, *dilation) < 1 or np.min(padding) < 0:
        raise Rejected("invalid_parameter", "window")
    if any(not 0 <= e < most for e, most in zip(output_padding, largest)):
        raise Rejected("invalid_parameter", "output_padding")
    if x.ndim != 4 or x.shape[1] != inputs or (bias is not None and len(bias) != outs * groups):
        raise Rejected("shape_mismatch", "shape")
    weight, x = weights(weight), images(x)
    stride, dilation = steps(stride, dilation)
    kept = [
        cut(s * (size - 1) + d * (k - 1) + 1, *pair, extra)
        for size, s, d, k, pair, extra in zip(
            x.shape[2:], stride, dilation, kernel, paddings(padding), extras(output_padding)
        )
    ]
    if min(size for _, size in kept) < 1:
        raise Rejected("shape_mismatch", "nothing left")
    n_group, taps = inputs // groups, [*np.ndindex(*kernel)]
    terms: dict[Index, list[int]] = defaultdict(list)
    for n, k, p, q in np.ndindex(len(x), outs * groups, *x.shape[2:]):
        for c in channels(n_group):
            source = channel(k, c, n_group, outs, groups)
            value = read_x(int(x[sample(n), source, p, q]))
            row = weight[k // outs * n_group + c, k % outs].tolist()
            for u, v in taps:
                term = product_(read_w(int(row[u][v])) * value)
                for h in spans(p, stride[0]):
                    for w in spans(q, stride[1]):
                        i, j = h + dilation[0] * u - kept[0][0], w + dilation[1] * v - kept[1][0]
                        terms[n, k, i, j].append(term)
    acc = np.empty((len(x), outs * groups, *(size for _, size in kept)), dtype=object)
    for index in np.ndindex(acc.shape):
        offset = [] if bias is None else [int(bias_at(bias, index[1]))]
        acc[index] = total(terms[index] + offset, fit)
    return {"acc": acc}


def gather(
    x: Array,
    index: Array,
    in_shape: Sequence[int],
    fill: int,
    *,
    flat: Hook = lambda x: x.reshape(len(x), -1),
    places: Hook = same,
    place: Hook = same,
    fill_: Hook = same,
    value: Hook = same,
    result: Hook = same,
    sample: Hook = same,
    outside: Hook | None = None,
    check: bool = True,
) -> Values:
    x, index, size = np.asarray(x), np.asarray(index), prod(in_shape)
    if not index.size:
        raise Rejected("shape_mismatch", "index")
    if min(in_shape) < 1:
        raise Rejected("invalid_parameter", "in_shape")
    if index.min() < -1 or index.max() >= size:
        if outside is None:
            raise Rejected("out_of_range", "index")
        index = outside(index, size)
    if x.size != len(x) * size or (check and x.shape[1:] != tuple(in_shape)):
        raise Rejected("shape_mismatch", "x")
    rows, index = flat(x), places(index)
    y = np.empty((len(x), *index.shape), dtype=object)
    for n, *at in np.ndindex(y.shape):
        i = place(int(index[tuple(at)]), size)
        y[(n, *at)] = fill_(fill) if i == -1 else value(int(rows[sample(n), i]))
    return {"y": result(y)}


# --- what goes wrong --------------------------------------------------------------------------


def _repeated(place: int, s: int) -> list[int]:
    """An input at every position up to the next one."""
    return [place * s + step for step in range(s)]


def _as_conv(weight: Array) -> Array:
    """The numbers of [in, out / groups, ...] read as if they stood in the order of a Conv2d."""
    return weight.reshape(weight.shape[1], weight.shape[0], *weight.shape[2:]).swapaxes(0, 1)


# fmt: off
_t = of(conv_transpose2d)
_t("kernel_flipped", "axis", "turns the kernel round, as a correlation of the spread input has it",
   weights=lambda w: w[:, :, ::-1, ::-1])
_t("flipped_vertically", "axis", "flips the kernel upside down", weights=lambda w: w[:, :, ::-1])
_t("flipped_horizontally", "axis", "flips the kernel left to right",
   weights=lambda w: w[:, :, :, ::-1])
_t("kernel_transposed", "axis", "exchanges height and width of the kernel",
   weights=lambda w: w.swapaxes(2, 3).reshape(w.shape))
_t("image_transposed", "axis", "exchanges height and width of x",
   images=lambda x: x.swapaxes(2, 3).reshape(x.shape))
_t("channels_last", "layout", "reads x as if channels came last",
   images=lambda x: np.moveaxis(x.reshape(len(x), *x.shape[2:], x.shape[1]), -1, 1))
_t("stride_and_dilation_swapped", "window", "exchanges stride and dilation",
   steps=lambda s, d: (d, s))
_t("stride_ignored", "window", "puts inputs side by side", steps=lambda s, d: ((1, 1), d))
_t("strides_swapped", "window", "exchanges the strides", steps=lambda s, d: (s[::-1], d))
_t("first_stride_for_both", "window", "uses the vertical stride for both axes",
   steps=lambda s, d: ((s[0], s[0]), d))
_t("dilation_ignored", "window", "puts weights side by side", steps=lambda s, d: (s, (1, 1)))
_t("dilations_swapped", "window", "exchanges the dilations", steps=lambda s, d: (s, d[::-1]))
_t("inputs_repeated", "window", "repeats inputs up to the next instead of zeros between them",
   spans=_repeated)
_t("padding_ignored", "padding", "leaves nothing out", paddings=lambda p: ((0, 0), (0, 0)))
_t("pads_reversed", "padding", "leaves out before instead of after",
   paddings=lambda p: [pair[::-1] for pair in p])
_t("pads_alike", "padding", "leaves out on both sides as much as before",
   paddings=lambda p: [(a, a) for a, _ in p])
_t("paddings_swapped", "padding", "exchanges vertical and horizontal padding",
   paddings=lambda p: p[::-1])
_t("padding_added", "padding", "adds positions instead of leaving them out",
   paddings=lambda p: [(-a, -b) for a, b in p])
_t("output_padding_ignored", "padding", "adds no positions at the end", extras=lambda e: (0, 0))
_t("output_padding_before", "padding", "adds positions at the top and the left",
   cut=lambda full, before, after, extra: (before - extra, full - before - after + extra))
_t("output_padding_both_sides", "padding", "adds positions on both sides",
   cut=lambda full, before, after, extra: (before - extra, full - before - after + 2 * extra))
_t("output_paddings_swapped", "padding", "exchanges the two output paddings",
   extras=lambda e: e[::-1])
_t("weight_as_conv", "axis", "reads the weight as [out / groups, in, ...]", weights=_as_conv)
_t("in_out_swapped", "axis", "exchanges in and out where both are as many",
   weights=lambda w: w.swapaxes(0, 1) if w.shape[0] == w.shape[1] else w)
_t("outputs_reversed", "channel", "takes the weights of a group's outputs in reverse",
   weights=lambda w: w[:, ::-1])
_t("groups_interleaved", "channel", "takes every g-th input channel for a group",
   channel=lambda k, c, n, outs, groups: c * groups + k // outs)
_t("outputs_interleaved", "channel", "deals output channels to groups in turn",
   channel=lambda k, c, n, outs, groups: k % groups * n + c)
_t("groups_ignored", "channel", "reads the first group always",
   channel=lambda k, c, n, outs, groups: c)
_t("first_channel_only", "channel", "reads the first channel of a group alone",
   channels=lambda n: range(1))
_t("first_sample", "operand", "computes the first sample for all", sample=lambda n: 0)
_t("bias_subtracted", "bias", "subtracts the bias", bias_at=lambda b, k: -b[k])
_t("bias_within_group", "bias", "gives every group the biases of the first",
   bias_at=lambda b, k: b[k % max(len(b) // 2, 1)])
for _bits in (8, 16):
    _t(f"bias_int{_bits}", "bias", f"stores the bias in {_bits} bits",
       bias_at=lambda b, k, n=_bits: wrap(n)(int(b[k])))
for _bits in (8, 16, 32):
    _t(f"product_int{_bits}", "overflow_narrow", f"multiplies in {_bits} bits",
       product_=wrap(_bits))
_t("x_as_int8", "signedness", "reads inputs as signed 8-bit", read_x=wrap(8))
_t("x_as_uint8", "signedness", "reads inputs as unsigned 8-bit", read_x=wrap(8, signed=False))
_t("w_as_int8", "signedness", "reads weights as signed 8-bit", read_w=wrap(8))
_t("w_as_uint8", "signedness", "reads weights as unsigned 8-bit", read_w=wrap(8, signed=False))


def _inverse(index: Array) -> Array:
    """Where each position went, of a permutation."""
    order = index.ravel()
    same_values = sorted(order.tolist()) == list(range(order.size))
    return np.argsort(order).reshape(index.shape) if same_values else index


_g = of(gather)
_g("fill_ignored", "padding", "fills with 0", fill_=lambda v: 0)
_g("fill_negated", "padding", "fills with the negated code", fill_=lambda v: -v)
_g("fill_int8", "overflow_narrow", "stores the fill in 8 bits", fill_=wrap(8))
_g("minus_one_is_last", "padding", "lets -1 count from the end", place=lambda i, n: i % n)
_g("minus_one_is_first", "padding", "takes the first value for -1", place=lambda i, n: max(i, 0))
_g("one_late", "operand", "takes the value after", place=lambda i, n: (i + 1) % n if i >= 0 else i)
_g("one_early", "operand", "counts positions from 1",
   place=lambda i, n: (i - 1) % n if i >= 0 else i)
_g("index_int8", "overflow_narrow", "stores positions in 8 bits",
   place=lambda i, n: wrap(8)(i) % n if i >= 0 else i)
_g("index_uint8", "overflow_narrow", "stores positions in 8 unsigned bits",
   place=lambda i, n: i % 256 if i >= 0 else i)
_g("column_major", "layout", "counts positions of x along the first axis fastest",
   flat=lambda x: x.transpose(0, *range(x.ndim - 1, 0, -1)).reshape(len(x), -1))
_g("channels_last", "layout", "counts positions of x along the channels fastest",
   flat=lambda x: np.moveaxis(x, 1, -1).reshape(len(x), -1))
_g("rows_exchanged", "axis", "exchanges the last two axes of x",
   flat=lambda x: (x.swapaxes(-1, -2) if x.ndim > 2 else x).reshape(len(x), -1))
_g("backwards", "layout", "counts positions from the end",
   flat=lambda x: x.reshape(len(x), -1)[:, ::-1])
_g("index_column_major", "layout", "reads the index along its first axis fastest",
   places=lambda index: index.ravel(order="F").reshape(index.shape))
_g("scattered", "operand", "puts value i at position index[i]", places=_inverse)
_g("flattened", "axis", "returns one row per sample", result=lambda y: y.reshape(len(y), -1))
_g("y_transposed", "axis", "exchanges the last two axes of y",
   result=lambda y: y.swapaxes(-1, -2) if y.ndim > 2 else y)
_g("across_samples", "operand", "counts positions from the first sample on",
   flat=lambda x: np.stack([x.reshape(-1)] * len(x)))
_g("first_sample", "operand", "takes the first sample for all", sample=lambda n: 0)
for _bits in (8, 16, 32):
    _g(f"value_int{_bits}", "overflow_narrow", f"keeps values in {_bits} bits", value=wrap(_bits))
_g("value_uint8", "signedness", "keeps values in 8 unsigned bits", value=wrap(8, signed=False))
_g("value_float32", "float_accumulator", "keeps values in float32", value=in_float(np.float32))
_g("value_float64", "float_accumulator", "keeps values in float64", value=in_float(np.float64))
_g("outside_clamped", "refusal", "takes the nearest end for a position outside",
   outside=lambda index, n: index.clip(-1, n - 1))
_g("outside_wraps", "refusal", "counts positions outside round",
   outside=lambda index, n: np.where(index == -1, -1, index % n))
_g("outside_filled", "refusal", "fills where a position is outside",
   outside=lambda index, n: np.where((index < 0) | (index >= n), -1, index))
_g("below_counts_from_end", "refusal", "lets positions below -1 count from the end",
   outside=lambda index, n: np.where(index < -1, index % n, index.clip(-1, n - 1)))
_g("shape_unchecked", "refusal", "takes any x with as many values", check=False)
# fmt: on
