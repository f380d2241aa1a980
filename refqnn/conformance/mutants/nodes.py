"""Sums, windows, joins and whole networks: kernels, and what goes wrong in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import numpy as np

from refqnn.conformance.mutants.doors import check_codes, quantize
from refqnn.conformance.mutants.spread import conv_transpose2d, gather  # noqa: F401 (kernels)
from refqnn.conformance.mutants.stages import accumulate_stages  # noqa: F401 (a kernel)
from refqnn.conformance.mutants.steps import (
    Hook,
    Index,
    always,
    channel_value,
    clamp,
    each,
    entry,
    in_float,
    same,
    saturate,
    total,
    wrap,
)
from refqnn.conformance.mutants.table import KERNELS, of
from refqnn.conformance.operations import OPERATIONS, Array, Values, functions_in
from refqnn.conformance.suite import Rejected

__all__: list[str] = []


def linear(
    x: Array,
    weight: Array,
    bias: Array | None,
    x_zero_point: int,
    weight_zero_point: Array,
    *,
    fit: Hook = same,
    read_x: Hook = same,
    read_w: Hook = same,
    product_: Hook = lambda w, v, z_w, z_x: (w - z_w) * (v - z_x),
    zero_at: Hook = entry,
    bias_at: Hook = lambda b, k: b[k],
    inputs: Hook = range,
    weights: Hook = same,
) -> Values:
    weight, x = weights(np.asarray(weight)), np.asarray(x)
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise Rejected("shape_mismatch", "shape")
    acc = np.empty((len(x), len(weight)), dtype=object)
    for n, k in np.ndindex(acc.shape):
        z_w = zero_at(weight_zero_point, k)
        terms = [
            product_(read_w(int(weight[k, i])), read_x(int(x[n, i])), z_w, x_zero_point)
            for i in inputs(x.shape[1])
        ]
        terms += [] if bias is None else [int(bias_at(bias, k))]
        acc[n, k] = total(terms, fit)
    return {"acc": acc}


def accumulate(
    x: Array,
    weight: Array,
    bias: Array | None,
    accumulator_bits: int,
    accumulator_signed: bool,
    overflow: str,
    when: str,
    order: str,
    *,
    bits_: Hook = same,
    signed_: Hook = same,
    overflow_: Hook = same,
    when_: Hook = same,
    order_: Hook = same,
    term_: Hook = same,
    fit_: Hook = same,
    with_bias: Hook = same,
) -> Values:
    if not 1 <= accumulator_bits <= 64:
        raise Rejected("invalid_parameter", "bits")
    weight, x = np.asarray(weight), np.asarray(x)
    make = {"wrap": wrap, "saturate": saturate}[overflow_(overflow)]
    fit = fit_(make(bits_(accumulator_bits), signed_(accumulator_signed)))
    acc = np.empty((len(x), len(weight)), dtype=object)
    for n, k in np.ndindex(acc.shape):
        products = [term_(int(w) * int(v), fit) for w, v in zip(weight[k], x[n])]
        last = [] if bias is None else with_bias([int(bias[k])])
        after = 0 if bias is None or last else int(bias[k])
        how = order_(order)
        terms = last + products if how == "bias_first" else products + last
        terms = terms[::-1] if how == "reverse" else terms
        at_end = when_(when, overflow) == "end"
        acc[n, k] = (fit(sum(terms)) if at_end else total(terms, fit)) + after
    return {"acc": acc}


# --- windows ----------------------------------------------------------------------------------


def _positions(room: int, stride: int) -> int:
    return room // stride + 1


def _padded(
    x: Array, padding: Sequence[Sequence[int]], value: object, extents: Sequence[int]
) -> tuple[Array, list[int]]:
    """x with its padding, and the room that a window of these extents has on each axis."""
    pads = ((0, 0), (0, 0), *padding)
    padded: Array = np.pad(x.astype(object), pads, constant_values=value)  # type: ignore[call-overload]
    rooms = [size - extent for size, extent in zip(padded.shape[2:], extents)]
    if min(rooms) < 0:
        raise Rejected("shape_mismatch", "window")
    return padded, rooms


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    pad_code: int,
    *,
    weights: Hook = same,
    images: Hook = same,
    strides: Hook = same,
    paddings: Hook = same,
    dilations: Hook = same,
    pad_: Hook = same,
    fit: Hook = same,
    positions_: Hook = _positions,
    channel: Hook = lambda k, c, n, outs, groups: k // outs * n + c,
    channels: Hook = range,
    bias_at: Hook = lambda b, k: b[k],
    sample: Hook = same,
) -> Values:
    if min(*stride, *dilation) < 1:
        raise Rejected("invalid_parameter", "stride or dilation")
    weight, x = weights(np.asarray(weight)), images(np.asarray(x))
    out, per_group, *kernel = weight.shape
    stride, padding, dilation = strides(stride, kernel), paddings(padding), dilations(dilation)
    if groups < 1 or out % groups or x.ndim != 4 or x.shape[1] != per_group * groups:
        raise Rejected("shape_mismatch", "shape")
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padded, rooms = _padded(x, padding, pad_(pad_code), extents)
    positions = [positions_(room, s) for room, s in zip(rooms, stride)]
    acc = np.empty((len(x), out, *positions), dtype=object)
    values, rows, (height, width) = padded.tolist(), weight.tolist(), padded.shape[2:]
    for n, k, i, j in np.ndindex(acc.shape):
        terms = []
        for c, u, v in product(channels(per_group), range(kernel[0]), range(kernel[1])):
            h = i * stride[0] + u * dilation[0]
            w = j * stride[1] + v * dilation[1]
            source = channel(k, c, per_group, out // groups, groups)
            value = values[sample(n)][source][h][w] if h < height and w < width else 0
            terms.append(int(rows[k][c][u][v]) * int(value))
        terms += [] if bias is None else [int(bias_at(bias, k))]
        acc[n, k, i, j] = total(terms, fit)
    return {"acc": acc}


def conv1d(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    **rest: Any,
) -> Values:
    """conv2d of height 1."""
    results = conv2d(
        np.asarray(x)[:, :, None, :],
        np.asarray(weight)[:, :, None, :],
        stride=(1, *stride),
        padding=((0, 0), *padding),
        dilation=(1, *dilation),
        **rest,
    )
    return {"acc": results["acc"][:, :, 0, :]}


def _windows(
    x: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    pad: int | None,
    function: Hook,
    *,
    kernels: Hook = same,
    strides: Hook = same,
    paddings: Hook = same,
    positions_: Hook = _positions,
) -> Array:
    x = np.asarray(x)
    if any(max(pair) >= k for pair, k in zip(padding, kernel)):
        raise Rejected("invalid_parameter", "padding")
    kernel = kernels(kernel)
    stride = strides(stride, kernel)
    padded, rooms = _padded(x, paddings(padding), pad, kernel)
    positions = [positions_(room, s) for room, s in zip(rooms, stride)]
    y = np.empty((*x.shape[:2], *positions), dtype=object)
    for n, c, i, j in np.ndindex(y.shape):
        h, w = i * stride[0], j * stride[1]
        y[n, c, i, j] = function(list(padded[n, c, h : h + kernel[0], w : w + kernel[1]].flat))
    return y


def max_pool2d(x: Array, *, pad: int | None = None, best: Hook = max, **rest: Any) -> Values:
    def greatest(values: list[int | None]) -> int:
        return int(best([v for v in values if v is not None]))

    return {"y": _windows(x, pad=pad, function=greatest, **rest)}


def sum_pool2d(
    x: Array,
    pad_code: int,
    *,
    pad_: Hook = same,
    fit: Hook = same,
    finish: Hook = same,
    **rest: Any,
) -> Values:
    def summed(values: list[int]) -> int:
        return int(finish(total(values, fit), len(values)))

    return {"acc": _windows(x, pad=pad_(pad_code), function=summed, **rest)}


def global_sum_pool(
    x: Array, *, fit: Hook = same, values: Hook = lambda v: v.reshape(-1), finish: Hook = same
) -> Values:
    x = np.asarray(x).astype(object)
    if x.ndim < 3:
        raise Rejected("shape_mismatch", "shape")
    acc = np.empty(x.shape[:2], dtype=object)
    for n, c in np.ndindex(acc.shape):
        flat = values(x[n, c]).reshape(-1)
        acc[n, c] = int(finish(total(flat.tolist(), fit), flat))
    return {"acc": acc}


# --- joining and moving -----------------------------------------------------------------------


def add(
    operands: Sequence[Array],
    multipliers: Sequence[int] | None,
    *,
    factors: Hook = same,
    used: Hook = same,
    fit: Hook = same,
) -> Values:
    if len({np.shape(v) for v in operands}) != 1:
        raise Rejected("shape_mismatch", "shapes")
    given = (1,) * len(operands) if multipliers is None else tuple(multipliers)
    if len(given) != len(operands):
        raise Rejected("shape_mismatch", "multipliers")
    pairs = used(list(zip(factors(given), operands)))

    def acc(_: int, index: Index) -> int:
        return total([m * int(x[index]) for m, x in pairs], fit)

    return {"acc": each(acc, operands[0])}


def concat(
    operands: Sequence[Array],
    *,
    order: Hook = same,
    join: Hook = lambda arrays: np.concatenate(arrays, axis=1),
) -> Values:
    if len({(len(v), np.shape(v)[2:]) for v in operands}) != 1:
        raise Rejected("shape_mismatch", "shapes")
    return {"y": join(order([np.asarray(v) for v in operands]))}


def flatten(x: Array, *, axes: Hook = same) -> Values:
    x = axes(np.asarray(x))
    return {"y": x.reshape(len(x), -1)}


def reshape(x: Array, shape: Sequence[int], *, order: Any = "C", axes: Hook = same) -> Values:
    x = axes(np.asarray(x))
    if x.size != len(x) * prod(shape):
        raise Rejected("shape_mismatch", "shape")
    return {"y": x.reshape((len(x), *shape), order=order)}


def lookup(
    x: Array,
    table: Array,
    lo: int,
    *,
    column: Hook = lambda v, lo, n: v - lo,
    channel: Hook = lambda index: index[1],
    outside: Hook | None = None,
) -> Values:
    table = np.asarray(table)
    entries = table.shape[1]
    if len(table) > 1 and np.shape(x)[1] != len(table):
        raise Rejected("shape_mismatch", "channels")

    def value(v: int, index: Index) -> int:
        i = column(v, lo, entries)
        if not 0 <= i < entries:
            if outside is None:
                raise Rejected("out_of_range", "table")
            i = outside(i, entries)
        return int(table[channel(index) if len(table) > 1 else 0, i])

    return {"y": each(value, x)}


# --- networks ---------------------------------------------------------------------------------


def network(
    codes: Array,
    network: Mapping[str, Any],
    *,
    inputs_of: Hook = lambda node, before: node["inputs"],
    stored: Hook = lambda values, operation: values,
    batch: Hook = same,
    check: bool = True,
) -> Values:
    if check:
        check_codes(codes, **network["input_format"])
    if np.shape(codes)[1:] != tuple(network["input_shape"]):
        raise Rejected("shape_mismatch", "shape")
    values: Values = {"input": batch(np.asarray(codes))}
    before = "input"
    for node in network["nodes"]:
        operation = node["operation"]
        operands = [values[name] for name in inputs_of(node, before)]
        ((given, field),) = OPERATIONS[operation].inputs.items()
        data = operands if field.kind == "int_tensors" else operands[0]
        (result,) = KERNELS[operation](**{given: data}, **node["parameters"]).values()
        values[node["name"]] = stored(result, operation)
        before = node["name"]
    del values["input"]
    return {"output": values[network["output"]], **values}


def predict(
    x: Array,
    network: Mapping[str, Any],
    scale: Array,
    zero_point: Array,
    rounding: str,
    output_scale: Array,
    output_offset: Array,
    *,
    door: Mapping[str, Hook] | None = None,
    real: Hook = lambda acc, s, b: np.float32(np.float32(np.float32(acc) * s) + b),
) -> Values:
    hooks: Values = {**network["input_format"], **(door or {})}
    codes = quantize(x, scale, zero_point, rounding, None, "float32", False, **hooks)["codes"]
    output = KERNELS["network"](codes, network)["output"]

    def value(acc: int, index: Index) -> float:
        s, b = (channel_value(v, (index[1],), 0, (1,)) for v in (output_scale, output_offset))
        return float(real(acc, s, b))

    return {"y": each(value, output).astype(np.float64), "codes": codes, "output": output}


KERNELS.update(functions_in(globals()))


# --- what goes wrong: sums --------------------------------------------------------------------

# fmt: off
_acc = of(linear, conv1d, conv2d, conv_transpose2d, sum_pool2d, global_sum_pool, add)
for _bits in (8, 16, 24, 32):
    _acc(f"acc_int{_bits}", "overflow_narrow", f"sums in {_bits} bits that wrap", fit=wrap(_bits))
for _bits in (8, 32):
    _acc(f"acc_uint{_bits}", "signedness", f"sums in {_bits} unsigned bits",
        fit=wrap(_bits, signed=False))
for _bits in (8, 16, 32):
    _acc(f"acc_saturates_{_bits}", "overflow_narrow", f"sums in {_bits} bits that saturate",
        fit=saturate(_bits))
_acc("acc_float32", "float_accumulator", "sums in float32", fit=in_float(np.float32))
_acc("acc_float64", "float_accumulator", "sums in float64", fit=in_float(np.float64))
of(linear, conv1d, conv2d, conv_transpose2d)("bias_dropped", "bias", "adds no bias",
   bias_at=lambda b, k: 0)
of(linear, conv1d, conv2d, conv_transpose2d)(
   "bias_of_first", "bias", "adds the first bias everywhere",
   bias_at=lambda b, k: b[0])

_l = of(linear)
for _bits in (16, 8):
    _l(f"bias_int{_bits}", "bias", f"stores the bias in {_bits} bits",
       bias_at=lambda b, k, n=_bits: wrap(n)(int(b[k])))
_l("bias_subtracted", "bias", "subtracts the bias", bias_at=lambda b, k: -b[k])
_l("weight_transposed", "axis", "reads the weight as [in, out]",
   weights=lambda w: w.T if w.shape[0] == w.shape[1] else w)
_l("weight_reshaped", "layout", "reads the weight column by column",
   weights=lambda w: w.ravel(order="F").reshape(w.shape))
_l("inputs_reversed", "operand", "runs through the weights backwards", weights=lambda w: w[:, ::-1])
_l("tail_of_two", "operand", "drops the last input of an odd number",
   inputs=lambda n: range(n - n % 2 or n))
_l("tail_of_four", "operand", "handles inputs by four and drops the rest",
   inputs=lambda n: range(n - n % 4 or n))
_l("last_dropped", "operand", "stops one input early", inputs=lambda n: range(max(n - 1, 1)))
_l("x_as_int8", "signedness", "reads inputs as signed 8-bit", read_x=wrap(8))
_l("x_as_uint8", "signedness", "reads inputs as unsigned 8-bit", read_x=wrap(8, signed=False))
_l("w_as_int8", "signedness", "reads weights as signed 8-bit", read_w=wrap(8))
_l("w_as_uint8", "signedness", "reads weights as unsigned 8-bit", read_w=wrap(8, signed=False))
for _bits in (8, 16, 32):
    _l(f"product_int{_bits}", "overflow_narrow", f"multiplies in {_bits} bits",
       product_=lambda w, v, z_w, z_x, n=_bits: wrap(n)((w - z_w) * (v - z_x)))
_l("centred_int8", "overflow_narrow", "subtracts zero points in 8 bits",
   product_=lambda w, v, z_w, z_x: wrap(8)(w - z_w) * wrap(8)(v - z_x))
_l("x_zero_point_dropped", "zero_point", "subtracts no input zero point",
   product_=lambda w, v, z_w, z_x: (w - z_w) * v)
_l("x_zero_point_added", "zero_point", "adds the input zero point",
   product_=lambda w, v, z_w, z_x: (w - z_w) * (v + z_x))
_l("w_zero_point_dropped", "zero_point", "subtracts no weight zero point",
   product_=lambda w, v, z_w, z_x: w * (v - z_x))
_l("cross_term_dropped", "zero_point", "forgets the product of the two zero points",
   product_=lambda w, v, z_w, z_x: w * v - w * z_x - z_w * v)
_l("first_w_zero_point", "zero_point", "uses the first channel's weight zero point",
   zero_at=lambda z, k: entry(z, 0))
_l("zero_points_swapped", "zero_point", "exchanges the two zero points",
   product_=lambda w, v, z_w, z_x: (w - z_x) * (v - z_w))

_a = of(accumulate)
_a("saturate_as_wrap", "overflow_rule", "wraps where saturation is asked for",
   overflow_=lambda rule: "wrap")
_a("wrap_as_saturate", "overflow_rule", "saturates where wrapping is asked for",
   overflow_=lambda rule: "saturate")
_a("end_only", "overflow_rule", "fits the final sum alone", when_=lambda when, overflow: "end")
_a("every_step", "overflow_rule", "fits every partial sum", when_=lambda when, overflow: "step")
_a("bias_last", "overflow_rule", "adds the bias last always", order_=lambda order: "forward")
_a("bias_first", "overflow_rule", "adds the bias first always", order_=lambda order: "bias_first")
_a("reversed", "overflow_rule", "runs backwards always", order_=lambda order: "reverse")
_a("bias_outside", "overflow_rule", "adds the bias to the fitted sum", with_bias=lambda b: [])
_a("terms_fitted", "overflow_rule", "fits every product before it is added",
   term_=lambda term, fit: fit(term))
_a("one_bit_more", "overflow_narrow", "takes one bit more", bits_=lambda b: b + 1)
_a("one_bit_less", "overflow_narrow", "takes one bit less", bits_=lambda b: max(b - 1, 1))
_a("always_signed", "signedness", "takes unsigned accumulators for signed", signed_=lambda s: True)
_a("always_unsigned", "signedness", "takes signed accumulators for unsigned",
   signed_=lambda s: False)
_a("symmetric", "overflow_rule", "saturates at -(2^(b-1) - 1)",
   fit_=lambda fit: lambda v: fit(v) + (fit(v) < 0 and fit(fit(v) - 1) == fit(v)))
_a("exact", "overflow_rule", "does not overflow at all", fit_=lambda fit: same)
_a("wraps_at_end", "overflow_rule", "wraps once at the end instead of at every step",
   "wrapping is reduction modulo 2^b, which commutes with addition",
   when_=lambda when, overflow: "end" if overflow == "wrap" else when)


# --- what goes wrong: windows -----------------------------------------------------------------

_w = of(conv1d, conv2d, max_pool2d, sum_pool2d)
_w("stride_ignored", "window", "moves by 1", strides=lambda s, k: (1,) * len(s))
_w("padding_ignored", "padding", "pads nothing", paddings=lambda p: ((0, 0),) * len(p))
_w("pads_reversed", "padding", "pads before instead of after",
   paddings=lambda p: [pair[::-1] for pair in p])
_w("positions_rounded_up", "window", "counts a last, partial window",
   positions_=lambda room, s: -(-room // s) + 1)
_w = of(conv2d, max_pool2d, sum_pool2d)
_w("strides_swapped", "window", "exchanges the strides", strides=lambda s, k: s[::-1])
_w("paddings_swapped", "padding", "exchanges vertical and horizontal padding",
   paddings=lambda p: p[::-1])
_w = of(max_pool2d, sum_pool2d)
_w("kernel_transposed", "axis", "exchanges height and width of the window",
   kernels=lambda k: k[::-1])
_w("stride_is_kernel", "window", "moves by the window always", strides=lambda s, k: k)
_w("first_stride_for_both", "window", "uses the vertical stride for both axes",
   strides=lambda s, k: (s[0], s[0]))

_c = of(conv2d)
_c("dilations_swapped", "window", "exchanges the dilations", dilations=lambda d: d[::-1])
_c("kernel_transposed", "axis", "exchanges height and width of the kernel",
   weights=lambda w: w.transpose(0, 1, 3, 2))
_c("flipped_vertically", "axis", "flips the kernel upside down", weights=lambda w: w[:, :, ::-1])
_c("image_transposed", "axis", "exchanges height and width of x and of y",
   images=lambda x: x.transpose(0, 1, 3, 2))

_c = of(conv1d, conv2d)
_c("kernel_flipped", "axis", "convolves as mathematics does: flips the kernel",
   weights=lambda w: w[:, :, ::-1, ::-1])
_c("dilation_ignored", "window", "takes neighbouring positions", dilations=lambda d: (1,) * len(d))
_c("pads_alike", "padding", "pads both sides as the first",
   paddings=lambda p: [(a, a) for a, _ in p])
_c("pad_code_ignored", "padding", "pads with 0 instead of the zero point", pad_=lambda v: 0)
_c("groups_interleaved", "channel", "takes every g-th input channel for a group",
   channel=lambda k, c, n, outs, groups: c * groups + k // outs)
_c("outputs_interleaved", "channel", "deals output channels to groups in turn",
   channel=lambda k, c, n, outs, groups: k % groups * n + c)
_c("groups_ignored", "channel", "reads the first group always",
   channel=lambda k, c, n, outs, groups: c)
_c("channels_reversed", "channel", "reads input channels backwards", weights=lambda w: w[:, ::-1])
_c("first_channel_only", "channel", "reads the first channel of a group alone",
   channels=lambda n: range(1))
_c("first_sample", "operand", "computes the first sample for all", sample=lambda n: 0)
_c("in_out_swapped", "axis", "reads the weight as [in, out, ...]",
   weights=lambda w: w.swapaxes(0, 1) if w.shape[0] == w.shape[1] else w)
_c("channels_last", "layout", "reads x as if channels came last",
   images=lambda x: np.moveaxis(x.reshape(len(x), *x.shape[2:], x.shape[1]), -1, 1))
_c("zero_pad_then_subtract", "padding", "pads with the negated zero point", pad_=lambda v: -v)

_p = of(max_pool2d)
_p("pads_zero", "padding", "lets padding take part as 0", pad=0)
_p("starts_at_zero", "signedness", "starts the maximum at 0", best=lambda v: max(0, *v))
_p("starts_at_int8", "signedness", "starts the maximum at -128", best=lambda v: max(-128, *v))
_p("starts_at_int32", "signedness", "starts the maximum at -2^31", best=lambda v: max(-(2**31), *v))
_p("minimum", "operand", "takes the least value", best=min)
_p("largest_magnitude", "signedness", "takes the value of largest magnitude",
   best=lambda v: max(v, key=abs))
_p("as_unsigned", "signedness", "compares as unsigned 8-bit codes",
   best=lambda v: max(v, key=lambda q: q % 256))
_p("compares_float32", "float_accumulator", "takes the maximum in float32",
   best=lambda v: max(map(np.float32, v)))

_p = of(sum_pool2d)
_p("pads_zero", "padding", "pads with 0 instead of the zero point", pad_=lambda v: 0)
_p("average", "rounding_order", "divides by the window, rounding down",
   finish=lambda acc, n: acc // n)
_p("average_then_scaled", "rounding_order", "divides by the window, rounds, and multiplies again",
   finish=lambda acc, n: round(Fraction(acc, n)) * n)

_g = of(global_sum_pool)
_g("average", "rounding_order", "divides by the positions, rounding down",
   finish=lambda acc, v: acc // len(v))
_g("maximum", "operand", "takes the maximum", finish=lambda acc, v: max(v))
_g("last_row_dropped", "operand", "drops the last row",
   values=lambda v: v[:-1] if len(v) > 1 else v)
_g("last_column_dropped", "operand", "drops the last column", values=lambda v: v[..., :-1])
_g("square_only", "axis", "takes the height for the width", values=lambda v: v[..., : v.shape[0]])
# fmt: on


# --- what goes wrong: joining and moving ------------------------------------------------------


def _interleaved(arrays: Sequence[Array]) -> Array:
    """Channels of the operands in turn."""
    turns = [(c, operand) for operand, a in enumerate(arrays) for c in range(a.shape[1])]
    order = sorted(range(len(turns)), key=turns.__getitem__)
    return np.asarray(np.concatenate(arrays, axis=1)[:, order])


def _channels_last(arrays: Sequence[Array]) -> Array:
    joined = np.concatenate([a.reshape(len(a), -1, a.shape[1]) for a in arrays], axis=-1)
    return np.asarray(joined.reshape(len(joined), -1, *arrays[0].shape[2:]))


# fmt: off
_j = of(add)
_j("multipliers_ignored", "operand", "multiplies nothing", factors=lambda m: (1,) * len(m))
_j("multipliers_reversed", "operand", "gives multipliers to operands in reverse",
   factors=lambda m: m[::-1])
_j("first_multiplier_only", "operand", "uses the first multiplier for all",
   factors=lambda m: (m[0],) * len(m))
_j("last_multiplier_only", "operand", "multiplies the last operand alone",
   factors=lambda m: (*(1,) * (len(m) - 1), m[-1]))
_j("sign_dropped", "signedness", "uses |multiplier|", factors=lambda m: map(abs, m))
_j("two_only", "operand", "adds the first two operands", used=lambda pairs: pairs[:2])
_j("first_twice", "operand", "adds the first operand to itself",
   used=lambda pairs: [(m, pairs[0][1]) for m, _ in pairs])
_j("multipliers_int8", "overflow_narrow", "stores multipliers in 8 bits",
   factors=lambda m: map(wrap(8), m))

_j = of(concat)
_j("reversed", "operand", "joins in reverse order", order=lambda v: v[::-1])
_j("two_only", "operand", "joins the first two operands", order=lambda v: v[:2])
_j("last_axis", "axis", "joins along the last axis", join=lambda v: np.concatenate(v, axis=-1))
_j("sample_axis", "axis", "joins along the samples", join=lambda v: np.concatenate(v, axis=0))
_j("channels_last", "layout", "joins as if channels came last", join=_channels_last)
_j("interleaved", "layout", "takes channels of the operands in turn", join=_interleaved)
_j("largest_first", "operand", "joins the operand with most channels first",
   order=lambda v: sorted(v, key=lambda a: -a.shape[1]))

_j = of(flatten)
_j("channels_last", "layout", "runs through the channels fastest",
   axes=lambda x: np.moveaxis(x, 1, -1))
_j("column_major", "layout", "runs through the first axis fastest",
   axes=lambda x: x.transpose(0, *range(x.ndim - 1, 0, -1)))
_j("image_transposed", "axis", "exchanges height and width", axes=lambda x: x.swapaxes(-1, -2))
_j("samples_mixed", "layout", "runs through the samples fastest",
   axes=lambda x: x.reshape(-1, len(x)).T)
_j("first_sample", "operand", "repeats the first sample", axes=lambda x: np.stack([x[0]] * len(x)))

_j = of(reshape)
_j("column_major", "layout", "runs through the first axis fastest", order="F")
_j("channels_last", "layout", "reads the channels fastest", axes=lambda x: np.moveaxis(x, 1, -1))
_j("reversed", "layout", "reads backwards", axes=lambda x: x.reshape(len(x), -1)[:, ::-1])

_t = of(lookup)
_t("lo_ignored", "operand", "takes x itself for the column",
   column=lambda v, lo, n: v, outside=lambda i, n: i % n)
_t("lo_added", "operand", "adds lo instead of subtracting it",
   column=lambda v, lo, n: v + lo, outside=lambda i, n: i % n)
_t("one_off", "operand", "counts columns from 1",
   column=lambda v, lo, n: v - lo - 1, outside=lambda i, n: i % n)
_t("negative_wraps", "signedness", "lets a negative index count from the end",
   column=lambda v, lo, n: (v - lo) % n if v < lo else v - lo)
_t("clamps", "refusal", "clamps to the table", outside=lambda i, n: clamp(i, 0, n - 1))
_t("wraps", "refusal", "wraps round the table", outside=lambda i, n: i % n)
_t("index_uint8", "signedness", "computes the column in 8 unsigned bits",
   column=lambda v, lo, n: (v - lo) % 256)
_t("magnitude", "signedness", "looks up |x|",
   column=lambda v, lo, n: abs(v) - lo, outside=lambda i, n: clamp(i, 0, n - 1))
_t("first_row", "channel", "uses the first channel's table", channel=lambda i: 0)
_t("last_axis", "axis", "takes the channel from the last axis", channel=lambda i: i[-1] % 2)
# fmt: on


# --- what goes wrong: networks ----------------------------------------------------------------


def _clamped(bits: int) -> Hook:
    """Sums stored in `bits` bits between nodes."""
    fit = np.vectorize(saturate(bits), otypes=[object])
    return lambda values, _: fit(values)


# fmt: off
_n = of(network)
_n("always_the_node_before", "node_order", "reads the node before, whatever is named",
   inputs_of=lambda node, before: [before] * len(node["inputs"]))
_n("always_the_input", "node_order", "takes the first of two operands from the node before",
   inputs_of=lambda node, before: [before, *node["inputs"][1:]]
   if node["inputs"][1:] else node["inputs"])
_n("first_operand_twice", "node_order", "reads the first operand for all",
   inputs_of=lambda node, before: node["inputs"][:1] * len(node["inputs"]))
_n("operands_reversed", "node_order", "reads operands in reverse",
   inputs_of=lambda node, before: node["inputs"][::-1])
_n("first_sample", "operand", "computes the first sample for all",
   batch=lambda codes: np.stack([codes[0]] * len(codes)))
_n("samples_reversed", "operand", "returns the samples in reverse", batch=lambda codes: codes[::-1])
_n("stores_int8", "overflow_narrow", "stores every value in 8 bits", stored=_clamped(8))
_n("stores_int4", "overflow_narrow", "stores codes in 4 bits",
   stored=lambda v, operation: _clamped(4)(v, "") if operation.startswith("re") else v)
_n("relu_everywhere", "signedness", "stores sums as unsigned",
   stored=lambda v, operation: np.maximum(v, 0))
_n("relu_on_output", "signedness", "clips sums of linear nodes at 0",
   stored=lambda v, operation: np.maximum(v, 0) if operation == "linear" else v)
_n("input_unchecked", "refusal", "accepts codes outside the input format", check=False)

_n = of(predict)
_n("float64_output", "float_precision", "dequantizes in float64",
   real=lambda acc, s, b: float(acc) * float(s) + float(b))
_n("fused_output", "float_precision", "fuses product and sum",
   real=lambda acc, s, b: np.float32(Fraction(float(s)) * acc + Fraction(float(b))))
_n("offset_dropped", "bias", "adds no output offset",
   real=lambda acc, s, b: np.float32(np.float32(acc) * s))
_n("offset_first", "rounding_order", "adds the offset before it scales",
   real=lambda acc, s, b: np.float32(np.float32(np.float32(acc) + b) * s))
_n("input_truncated", "rounding_tie", "casts inputs instead of rounding",
   door={"round_": always("toward_zero")})
_n("input_half_up", "rounding_tie", "rounds inputs half_up", door={"round_": always("half_up")})
_n("input_reciprocal", "float_precision", "multiplies inputs by 1 / scale",
   door={"divide": lambda v, s, dtype: dtype(v * dtype(dtype(1) / s))})
_n("input_wraps", "saturation", "wraps inputs instead of saturating",
   door={"last": lambda q, z, lo, hi: (q + z - lo) % (hi - lo + 1) + lo})
_n("input_zero_point_dropped", "zero_point", "adds no input zero point",
   door={"last": lambda q, z, lo, hi: clamp(q, lo, hi)})
# fmt: on
