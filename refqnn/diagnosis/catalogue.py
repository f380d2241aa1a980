"""The catalogue: what implementations do otherwise, one line each.

Where the conformance suite knows the same mistake as a mutant, the name is the same; here it is a
function on whole batches.  Widths, roundings and layouts are families: one line each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import permutations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import IntArray, to_int64_if_possible
from refqnn.diagnosis import fits, forms
from refqnn.diagnosis.deviation import Deviation, Operands
from refqnn.emulate import Accumulator, Stage
from refqnn.formats import IntFormat
from refqnn.ops.base import Interval, Op
from refqnn.ops.requantize import ALWAYS, NEVER
from refqnn.ops.windows import pad
from refqnn.rounding import Rounding, round_ratio

__all__ = ["CATALOGUE", "with_roundings"]

CATALOGUE: list[Deviation] = []

_WEIGHTED = ("Linear", "Conv1d", "Conv2d", "ConvTranspose2d")
_CONVS = ("Conv1d", "Conv2d")
_POOLS = ("MaxPool2d", "SumPool2d")
_SUMS = (*_WEIGHTED, "SumPool2d", "GlobalSumPool", "Add")
_MOVES = ("Flatten", "Reshape", "Gather")
_WIDTHS = range(2, 33)


def _of(*kinds: str) -> Callable[..., None]:
    """What enters a deviation of these kinds."""

    def enter(name: str, sentence: str, **rest: Any) -> None:
        CATALOGUE.append(Deviation(name, sentence, frozenset(kinds), **rest))

    return enter


# --- steps ------------------------------------------------------------------------------------


def _wrapped(v: IntArray, bits: int, signed: bool = True) -> IntArray:
    lowest = -(2 ** (bits - 1)) if signed else 0
    return np.asarray((v - lowest) % 2**bits + lowest)


def _clipped(v: IntArray, bits: int, signed: bool = True) -> IntArray:
    lowest = -(2 ** (bits - 1)) if signed else 0
    return np.asarray(np.clip(v, lowest, lowest + 2**bits - 1))


def _in_float(v: IntArray, dtype: Any) -> IntArray:
    return to_int64_if_possible(v.astype(dtype).astype(np.float64).astype(np.int64))


def _changed(**parameters: Callable[..., object]) -> Callable[[Any, Operands], Op | None]:
    """The op with other parameters, each a function of the op; None where it has not all."""

    def change(op: Any, x: Operands) -> Op | None:
        if any(getattr(op, name, None) is None for name in parameters):
            return None
        instead: Op = replace(op, **{name: f(op) for name, f in parameters.items()})
        return instead

    return change


def _weight(
    function: Callable[[NDArray[Any]], NDArray[Any]],
) -> Callable[[Any, Operands], Op | None]:
    """The op with other weights of the same shape."""

    def change(op: Any, x: Operands) -> Op | None:
        weight = np.ascontiguousarray(function(op.weight))
        instead: Op | None = None
        if weight.shape == op.weight.shape and (weight != op.weight).any():
            instead = replace(op, weight=weight)
        return instead

    return change


def _first(function: Callable[[IntArray], IntArray]) -> Callable[[Op, Operands], Operands]:
    """Each operand read through a function."""
    return lambda op, x: tuple(function(v) for v in x)


def _same_shape(function: Callable[[IntArray], IntArray]) -> Callable[[IntArray], IntArray]:
    """The values in another order, under the shape that they had."""
    return lambda v: np.asarray(function(v)).reshape(v.shape)


def _images(function: Callable[[IntArray], IntArray]) -> Callable[[IntArray], IntArray]:
    return lambda v: function(v) if v.ndim > 2 else v


_TO_CHANNELS_LAST = _images(_same_shape(lambda v: np.moveaxis(v, 1, -1)))
_FROM_CHANNELS_LAST = _images(
    lambda v: np.moveaxis(v.reshape(len(v), *v.shape[2:], v.shape[1]), -1, 1)
)
_EXCHANGED = _images(_same_shape(lambda v: v.swapaxes(-1, -2)))
_COLUMN_MAJOR = _images(_same_shape(lambda v: v.transpose(0, *range(v.ndim - 1, 0, -1))))
_ORDERS = {
    "channels_last": ("as if channels came last", _FROM_CHANNELS_LAST),
    "channels_last_written": ("with the channels fastest", _TO_CHANNELS_LAST),
    "column_major": ("along the first axis fastest", _COLUMN_MAJOR),
    "image_transposed": ("with height and width exchanged", _EXCHANGED),
    "reversed": ("backwards", _same_shape(lambda v: v.reshape(len(v), -1)[:, ::-1])),
    "channels_reversed": ("with the channels backwards", lambda v: v[:, ::-1]),
    "rows_reversed": ("upside down", _images(lambda v: v[:, :, ::-1])),
    "columns_reversed": ("left to right", _images(lambda v: v[..., ::-1])),
}

# fmt: off

# --- everything -------------------------------------------------------------------------------

_any = _of()
for _name, (_how, _order) in _ORDERS.items():
    _any(f"reads_{_name}", f"reads its input {_how}", operands=_first(_order))
    _any(f"writes_{_name}", f"writes its values {_how}",
         result=lambda op, y, order=_order: order(y))
_any("first_sample", "computes the first sample for all", batch=True,
     operands=_first(lambda v: np.repeat(v[:1], len(v), axis=0)))
_any("samples_reversed", "returns the samples in reverse", batch=True,
     result=lambda op, y: y[::-1])
_any("samples_mixed", "runs through the samples fastest", batch=True,
     operands=_first(lambda v: v.reshape(-1, len(v)).T.reshape(v.shape)))
_any("one_sample_late", "returns the sample before", batch=True,
     result=lambda op, y: np.roll(y, 1, axis=0))
_any("relu", "clips at 0", result=lambda op, y: np.maximum(y, 0))
_any("negated", "gives the opposite sign", result=lambda op, y: -y)
_any("magnitude", "drops the sign", result=lambda op, y: abs(y))
for _bits in _WIDTHS:
    _any(f"reads_int{_bits}", f"reads its input as signed {_bits}-bit",
         operands=_first(partial(_wrapped, bits=_bits)))
    _any(f"reads_uint{_bits}", f"reads its input as unsigned {_bits}-bit",
         operands=_first(partial(_wrapped, bits=_bits, signed=False)))
    _any(f"reads_saturated_{_bits}", f"limits its input to {_bits} signed bits",
         operands=_first(partial(_clipped, bits=_bits)))

# --- sums -------------------------------------------------------------------------------------

_sum = _of(*_SUMS)


def _accumulated(op: Any, x: Operands, accumulator: Accumulator) -> IntArray | None:
    """The sums in a machine's accumulator; None where its order or its bias is not another one, or
    its first register holds everything."""
    if accumulator.order == "channels_last" and (
        op.kind not in _CONVS or 1 in op.by_channel.shape[1:]
    ):
        return None
    if accumulator.bias == "first" and getattr(op, "bias", None) is None:
        return None
    narrowest = min(stage.width for stage in accumulator.stages)
    if op.prepare(*(Interval.observed(v) for v in x)) < 2 ** (narrowest - 1):
        return None
    return accumulator.accumulate(op, x)


def _by_machine(accumulator: Accumulator) -> dict[str, Any]:
    return {"compute": partial(_accumulated, accumulator=accumulator), "machine": accumulator}


def _float_sum(op: Any, x: Operands, dtype: Any) -> IntArray:
    terms = np.asarray(op.terms(*x)).astype(dtype)
    acc = np.zeros_like(terms[..., 0])
    for k in range(terms.shape[-1]):
        acc = acc + terms[..., k]
    return _in_float(np.rint(acc), np.float64)


_OVERFLOWS: tuple[Any, ...] = ("saturate", "wrap")
_WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # ending of the name: in words, as arguments
    "": ("", {}),
    "_reverse": (", from the last term to the first", {"order": "reverse"}),
    "_bias_first": (", the bias first", {"bias": "first"}),
    "_channels_last": (", the channels of a position together", {"order": "channels_last"}),
}
for _bits in _WIDTHS:
    _sum(f"acc_int{_bits}", f"sums in {_bits} bits that wrap",
         result=lambda op, y, n=_bits: _wrapped(y, n))
    _sum(f"acc_uint{_bits}", f"sums in {_bits} unsigned bits that wrap",
         result=lambda op, y, n=_bits: _wrapped(y, n, signed=False))
    for _way, (_told, _ordered) in _WAYS.items():
        _sum(f"acc_saturates_{_bits}{_way}",
             f"sums in {_bits} bits that saturate at every step{_told}",
             **_by_machine(Accumulator([Stage(_bits, overflow="saturate")], **_ordered)))
    _sum(f"acc_saturates_{_bits}_at_end", f"saturates the final sum at {_bits} bits",
         result=lambda op, y, n=_bits: _clipped(y, n),
         machine=Accumulator([Stage(_bits, overflow="saturate", when="end")]))
    _sum(f"acc_saturates_unsigned_{_bits}_at_end",
         f"saturates the final sum at {_bits} unsigned bits",
         result=lambda op, y, n=_bits: _clipped(y, n, signed=False),
         machine=Accumulator([Stage(_bits, False, overflow="saturate", when="end")]))
    for _name, _overflow in zip(("saturates_", "int"), _OVERFLOWS):
        _sum(f"product_{_name}{_bits}", f"multiplies in {_bits} bits that {_overflow}",
             **_by_machine(Accumulator(
                 [Stage(_bits, group=1, overflow=_overflow), Stage(64)], bias="outside")))
for _size in (2, 3, 4, 8, 9, 16, 32):
    for _bits in (8, 12, 16):
        for _way in ("", "_channels_last"):
            for _overflow in _OVERFLOWS:
                _told, _ordered = _WAYS[_way]
                _stages = [Stage(_bits, group=_size, overflow=_overflow), Stage(64)]
                _sum(f"groups_of_{_size}_{_overflow}_{_bits}{_way}",
                     f"sums {_size} neighbouring products in {_bits} bits that {_overflow}{_told}",
                     **_by_machine(Accumulator(_stages, bias="outside", **_ordered)))
for _type in (np.float16, np.float32, np.float64):
    _sum(f"acc_{_type.__name__}", f"sums in {_type.__name__}, one term after the other",
         compute=lambda op, x, t=_type: _float_sum(op, x, t))
    _sum(f"acc_{_type.__name__}_at_end", f"keeps the final sum in {_type.__name__}",
         result=lambda op, y, t=_type: _in_float(y, t))
_sum("product_float16", "keeps 11 significant bits of each product",
     compute=lambda op, x: _in_float(op.terms(*x), np.float16).sum(axis=-1))
for _shift in range(1, 9):
    _sum(f"shifted_left_{_shift}", f"gives 2**{_shift} times the sum",
         result=lambda op, y, s=_shift: y * 2**s)
    _sum(f"shifted_right_{_shift}", f"drops {_shift} low bits of the sum",
         result=lambda op, y, s=_shift: y >> s)

# --- weights and biases -----------------------------------------------------------------------


def _stored(weight: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The numbers of the weight with its axes in another order, under the shape that it had."""
    return weight.transpose(axes).reshape(weight.shape) if weight.ndim == len(axes) else weight


def _taken(weight: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The numbers as they stand, read with the axes in another order."""
    if weight.ndim != len(axes):
        return weight
    return np.transpose(weight.reshape([weight.shape[i] for i in axes]), np.argsort(axes))


def _without(weight: NDArray[Any], kept: int) -> NDArray[Any]:
    """Zeros from input `kept` on."""
    return np.where(np.arange(weight.shape[1]) < kept, weight, 0)


def _whole_blocks(weight: NDArray[Any], size: int) -> NDArray[Any]:
    return _without(weight, weight.shape[1] // size * size or weight.shape[1])


def _rounded_bias(op: Any, x: Operands, low_bits: int) -> Op | None:
    """The bias at a coarser scale; None where nothing of it is left."""
    if op.bias is None:
        return None
    coarse = round_ratio(op.bias, 2**low_bits, "half_even")
    instead: Op = replace(op, bias=coarse * 2**low_bits)
    return instead if coarse.any() else None


_w = _of(*_WEIGHTED)
_w("bias_dropped", "adds no bias", node=_changed(bias=lambda op: None))
_w("bias_subtracted", "subtracts the bias", node=_changed(bias=lambda op: -op.bias))
_w("bias_of_first", "adds the first bias everywhere",
   node=_changed(bias=lambda op: np.full_like(op.bias, op.bias[0])))
_w("bias_late", "adds the bias of the channel before",
   node=_changed(bias=lambda op: np.roll(op.bias, 1)))
_w("bias_reversed", "adds the biases in reverse", node=_changed(bias=lambda op: op.bias[::-1]))
_w("bias_twice", "adds the bias twice", node=_changed(bias=lambda op: 2 * op.bias))
_w("bias_within_group", "gives every group the biases of the first",
   node=_changed(bias=lambda op: np.tile(op.bias[: max(len(op.bias) // 2, 1)], 3)[: len(op.bias)]))
for _shift in range(1, 17):
    _w(f"bias_shifted_left_{_shift}", f"adds 2**{_shift} times the bias: another bias scale",
       node=_changed(bias=lambda op, s=_shift: op.bias * 2**s))
    _w(f"bias_shifted_right_{_shift}", f"adds the bias without {_shift} low bits: another scale",
       node=_changed(bias=lambda op, s=_shift: op.bias >> s))
    _w(f"bias_rounded_{_shift}", f"adds the bias rounded to a multiple of 2**{_shift}",
       node=partial(_rounded_bias, low_bits=_shift))
for _bits in _WIDTHS:
    _w(f"bias_int{_bits}", f"stores the bias in {_bits} bits",
       node=_changed(bias=lambda op, n=_bits: _wrapped(op.bias, n)))
    _w(f"bias_saturates_{_bits}", f"limits the bias to {_bits} bits",
       node=_changed(bias=lambda op, n=_bits: _clipped(op.bias, n)))
    _w(f"w_as_int{_bits}", f"reads weights as signed {_bits}-bit",
       node=_weight(partial(_wrapped, bits=_bits)))
    _w(f"w_as_uint{_bits}", f"reads weights as unsigned {_bits}-bit",
       node=_weight(partial(_wrapped, bits=_bits, signed=False)))
    _w(f"w_saturates_{_bits}", f"limits weights to {_bits} bits",
       node=_weight(partial(_clipped, bits=_bits)))
_w("weight_narrow", "has no lowest weight",
   node=_weight(lambda w: np.maximum(w, -int(w.max(initial=0)))))
_w("weight_negated", "reads weights with the opposite sign", node=_weight(lambda w: -w))
_w("weight_magnitude", "drops the sign of weights", node=_weight(abs))
_w("inputs_reversed", "runs through the weights of an output backwards",
   node=_weight(lambda w: w[:, ::-1]))
_w("outputs_reversed", "takes the weights of the outputs in reverse",
   node=_weight(lambda w: w[::-1]))
_w("weight_reshaped", "reads the weight column by column",
   node=_weight(lambda w: w.ravel(order="F").reshape(w.shape)))
_w("weight_rotated", "reads the weight of the output before",
   node=_weight(lambda w: np.roll(w, 1, axis=0)))
_w("weight_one_late", "reads every weight one position late", node=_weight(lambda w: np.roll(w, 1)))
_w("weight_as_floats16", "keeps weights in float16",
   node=_weight(lambda w: _in_float(w, np.float16)))
_w("in_out_swapped", "reads the weight as [in, out]",
   node=_weight(lambda w: w.swapaxes(0, 1)))
for _letters in ("oi", "oiw", "oihw"):
    for _axes in [*permutations(range(len(_letters)))][1:]:
        _told = "".join(_letters[i] for i in _axes)
        _w(f"weight_stored_{_told}",
           f"finds the weight stored as {_told.upper()} and reads it as {_letters.upper()}",
           node=_weight(partial(_stored, axes=_axes)))
        _w(f"weight_taken_as_{_told}", f"takes the stored weight for {_told.upper()}",
           node=_weight(partial(_taken, axes=_axes)))
_l = _of("Linear")
_l("last_dropped", "stops one input early", node=_weight(lambda w: _without(w, w.shape[1] - 1)))
_l("first_dropped", "starts one input late",
   node=_weight(lambda w: np.concatenate([0 * w[:, :1], w[:, 1:]], 1)))
for _size in (2, 4, 8, 16, 32):
    _l(f"tail_of_{_size}", f"handles inputs by {_size} and drops the rest",
       node=_weight(partial(_whole_blocks, size=_size)))

# --- windows ----------------------------------------------------------------------------------


def _padding(function: Callable[..., Any]) -> Callable[[Any, Operands], Op | None]:
    return _changed(padding=lambda op: tuple(map(tuple, function(op.padding))))


def _edge(mode: str) -> Callable[[Any, Operands], IntArray | None]:
    """Padding with what stands at the border."""

    def change(op: Any, x: Operands) -> IntArray | None:
        if not any(map(any, op.padding)):
            return None
        padded = np.pad(x[0], ((0, 0), (0, 0), *op.padding), mode=mode)  # type: ignore[call-overload]
        return np.asarray(replace(op, padding=0).forward(padded))

    return change


def _rounded_up(op: Any, x: Operands, *, zeros: bool) -> IntArray | None:
    """A last, partial window, filled with the padding or with zeros."""
    dilation = getattr(op, "dilation", (1,) * len(op.kernel))
    more = []
    for size, k, s, d, pair in zip(x[0].shape[2:], op.kernel, op.stride, dilation, op.padding):
        rest = (sum(pair) + size - d * (k - 1) - 1) % s
        more.append((0, s - rest if rest else 0))
    if not any(map(any, more)):
        return None
    if not zeros:
        pairs = tuple((a, b + c) for (a, b), (_, c) in zip(op.padding, more))
        return np.asarray(replace(op, padding=pairs).forward(*x))
    padded = pad(pad(x[0], op.padding, getattr(op, "pad_code", 0)), tuple(more), 0)
    return np.asarray(replace(op, padding=0).forward(padded))


def _outputs_interleaved(op: Any, x: Operands) -> IntArray | None:
    """Output k reads group k modulo groups."""
    if op.groups == 1:
        return None
    order = np.argsort(np.arange(len(op.weight)) % op.groups, kind="stable")
    bias = None if op.bias is None else op.bias[order]
    made = op.with_weights(op.by_channel[order], bias).forward(*x)
    return np.asarray(made[:, np.argsort(order)])


def _repeated(op: Any, x: Operands) -> IntArray:
    """A transposed convolution whose inputs stand at every position up to the next."""
    spread = x[0]
    for axis, s in enumerate(op.stride):
        spread = spread.repeat(s, axis=2 + axis)
    full = replace(op, stride=1, padding=0, output_padding=0).forward(spread)
    shape = op.out_shape(x[0].shape[1:])
    cut: Any = tuple(slice(a, a + n) for (a, _), n in zip(op.padding, shape[1:]))
    return np.asarray(full[(slice(None), slice(None), *cut)])


def _channels_by_turns(v: IntArray, groups: int) -> IntArray:
    parts = v.reshape(len(v), v.shape[1] // groups, groups, *v.shape[2:])
    return parts.swapaxes(1, 2).reshape(v.shape)


def _first_group(v: IntArray, groups: int) -> IntArray:
    return np.tile(v[:, : v.shape[1] // groups], (1, groups, *(1,) * (v.ndim - 2)))


_win = _of(*_CONVS, *_POOLS)
_win("stride_ignored", "moves by 1", node=_changed(stride=lambda op: 1))
_win("strides_swapped", "exchanges the strides", node=_changed(stride=lambda op: op.stride[::-1]))
_win("first_stride_for_both", "uses the vertical stride for both axes",
     node=_changed(stride=lambda op: op.stride[0]))
_win("stride_is_kernel", "moves by the window always", node=_changed(stride=lambda op: op.kernel))
_win("padding_ignored", "pads nothing", node=_changed(padding=lambda op: 0))
_win("pads_reversed", "pads before instead of after", node=_padding(lambda p: [q[::-1] for q in p]))
_win("pads_alike", "pads both sides as the first", node=_padding(lambda p: [(a, a) for a, _ in p]))
_win("paddings_swapped", "exchanges vertical and horizontal padding",
     node=_padding(lambda p: p[::-1]))
_win("pads_all_after", "pads at the end alone", node=_padding(lambda p: [(0, a + b) for a, b in p]))
_win("pads_all_before", "pads at the start alone",
     node=_padding(lambda p: [(a + b, 0) for a, b in p]))
_win("positions_rounded_up", "counts a last, partial window",
     compute=partial(_rounded_up, zeros=False))
_win("positions_rounded_up_with_zeros", "counts a last, partial window, filled with zeros",
     compute=partial(_rounded_up, zeros=True))
_win("pads_edge", "repeats the border as padding", compute=_edge("edge"))
_win("pads_reflected", "pads with the image reflected", compute=_edge("reflect"))
_win("pads_circular", "pads with the other end of the image", compute=_edge("wrap"))
_c = _of(*_CONVS, "SumPool2d")
_c("pad_code_ignored", "pads with 0 instead of the zero point",
   node=_changed(pad_code=lambda op: 0))
_c("zero_pad_then_subtract", "pads with the negated zero point",
   node=_changed(pad_code=lambda op: -op.pad_code))
for _code in (-128, -1, 1, 127, 128, 255):
    _c(f"pads_{_code}".replace("-", "minus_"), f"pads with {_code}",
       node=_changed(pad_code=lambda op, v=_code: v))
_c = _of("Conv1d", "Conv2d", "ConvTranspose2d")
_c("dilation_ignored", "takes neighbouring positions", node=_changed(dilation=lambda op: 1))
_c("dilations_swapped", "exchanges the dilations",
   node=_changed(dilation=lambda op: op.dilation[::-1]))
_c("stride_and_dilation_swapped", "exchanges stride and dilation",
   node=_changed(stride=lambda op: op.dilation, dilation=lambda op: op.stride))
_c("kernel_flipped", "convolves as mathematics does: flips the kernel",
   node=_weight(lambda w: w[:, :, ::-1, ::-1] if w.ndim == 4 else w[:, :, ::-1]))
_c("flipped_vertically", "flips the kernel upside down", node=_weight(lambda w: w[:, :, ::-1]))
_c("flipped_horizontally", "flips the kernel left to right", node=_weight(lambda w: w[..., ::-1]))
_c("kernel_transposed", "exchanges height and width of the kernel",
   node=lambda op, x: replace(op, weight=op.weight.swapaxes(-1, -2)) if op.axes == 2 else None)
_c("images_exchanged", "exchanges height and width of x and of y",
   operands=_first(lambda v: v.swapaxes(-1, -2)))
_c("channels_reversed", "reads input channels backwards", node=_weight(lambda w: w[:, ::-1]))
_c("centre_only", "reads the middle of the kernel alone", node=_weight(lambda w: _centred(w)))
_c("groups_interleaved", "takes every g-th input channel for a group",
   operands=lambda op, x: (_channels_by_turns(x[0], op.groups),))
_c("groups_ignored", "reads the first group always",
   operands=lambda op, x: (_first_group(x[0], op.groups),))
_c("outputs_interleaved", "deals output channels to groups in turn", compute=_outputs_interleaved)
_of(*_CONVS)("first_channel_only", "reads the first channel of a group alone",
             node=_weight(lambda w: np.concatenate([w[:, :1], 0 * w[:, 1:]], axis=1)))
_t = _of("ConvTranspose2d")
_t("first_channel_only", "reads the first channel of a group alone",
   node=lambda op, x: replace(op, weight=np.where(  # the weight is [in, ...]
       (np.arange(len(op.weight)) % (len(op.weight) // op.groups) == 0)[:, None, None, None],
       op.weight, 0)))
_t("pads_alike", "leaves out on both sides as much as before",
   node=_padding(lambda p: [(a, a) for a, _ in p]))
_t("inputs_repeated", "repeats inputs up to the next instead of zeros between them",
   compute=lambda op, x: _repeated(op, x))
_t("stride_ignored", "puts inputs side by side", node=_changed(stride=lambda op: 1))
_t("first_stride_for_both", "uses the vertical stride for both axes",
   node=_changed(stride=lambda op: op.stride[0]))
_t("strides_swapped", "exchanges the strides", node=_changed(stride=lambda op: op.stride[::-1]))
_t("padding_ignored", "leaves nothing out", node=_changed(padding=lambda op: 0))
_t("pads_reversed", "leaves out before instead of after",
   node=_padding(lambda p: [q[::-1] for q in p]))
_t("paddings_swapped", "exchanges vertical and horizontal padding",
   node=_padding(lambda p: p[::-1]))
_t("output_padding_ignored", "adds no positions at the end",
   node=_changed(output_padding=lambda op: 0))
_t("output_paddings_swapped", "exchanges the two output paddings",
   node=_changed(output_padding=lambda op: op.output_padding[::-1]))


def _centred(weight: NDArray[Any]) -> NDArray[Any]:
    middle: Any = (..., *(slice(k // 2, k // 2 + 1) for k in weight.shape[2:]))
    kept = np.zeros_like(weight)
    kept[middle] = weight[middle]
    return kept


# --- pools ------------------------------------------------------------------------------------


def _pooled(
    function: Callable[[IntArray], IntArray], value: int
) -> Callable[[Any, Operands], IntArray]:
    """A pool by another function of its windows, whose padding holds `value`."""
    return lambda op, x: np.asarray(function(op._windows(x[0], value)))


_FAR = 2**40  # no code


def _valid(op: Any, x: Operands) -> IntArray:
    """How many positions of each window lie inside, [1, c, *positions]."""
    return np.asarray(op._windows(np.ones_like(x[0][:1]), 0).sum(axis=-1))


def _greatest_unsigned(v: IntArray, bits: int) -> IntArray:
    place = _wrapped(v, bits, signed=False).argmax(-1)[..., None]
    return np.asarray(np.take_along_axis(v, place, -1)[..., 0])


def _averaged(op: Any, x: Operands, mode: Rounding, *, valid: bool, again: bool) -> IntArray:
    """The mean, rounded, of the window or of what lies inside; times the window again."""
    if op.kind == "GlobalSumPool":
        size = prod(x[0].shape[2:])
        counts: Any = np.full((1, 1), size)
    else:
        size, counts = prod(op.kernel), _valid(op, x)
        counts = counts if valid else np.full_like(counts, size)
    total = op.forward(*x)
    made = np.zeros_like(total)
    for count in np.unique(counts).tolist():
        here = np.broadcast_to(counts == count, total.shape)
        made[here] = round_ratio(total[here], count, mode) if count else 0
    return np.asarray(made * size if again else made)


_p = _of("MaxPool2d")
_p("pads_zero", "lets padding take part as 0", compute=_pooled(lambda v: v.max(-1), 0))
_p("starts_at_zero", "starts the maximum at 0", result=lambda op, y: np.maximum(y, 0))
_p("starts_at_int8", "starts the maximum at -128", result=lambda op, y: np.maximum(y, -128))
_p("minimum", "takes the least value", compute=_pooled(lambda v: v.min(-1), _FAR))
_p("first_of_window", "takes the first value", compute=_pooled(lambda v: v[..., 0], 0))
_p("largest_magnitude", "takes the value of largest magnitude",
   compute=_pooled(lambda v: np.take_along_axis(v, abs(v).argmax(-1)[..., None], -1)[..., 0], 0))
_p("sum_for_maximum", "takes the sum", compute=_pooled(lambda v: v.sum(-1), 0))
_p("average_for_maximum", "takes the average",
   compute=_pooled(lambda v: v.sum(-1) // v.shape[-1], 0))
for _bits in (4, 8):
    _p(f"as_unsigned_{_bits}", f"compares as unsigned {_bits}-bit codes",
       compute=_pooled(partial(_greatest_unsigned, bits=_bits), 0))
_p = _of(*_POOLS)
_p("kernel_transposed", "exchanges height and width of the window",
   node=_changed(kernel=lambda op: op.kernel[::-1]))
_p = _of("SumPool2d", "GlobalSumPool")
_p("average", "divides by the window, rounding down",
   compute=lambda op, x: _averaged(op, x, Rounding.FLOOR, valid=False, again=False))
for _mode in Rounding:
    _p(f"average_{_mode.value}", f"divides by the window, rounding {_mode.value}",
       compute=lambda op, x, m=_mode: _averaged(op, x, m, valid=False, again=False))
    _p(f"average_then_scaled_{_mode.value}",
       f"divides by the window, rounds {_mode.value}, and multiplies again",
       compute=lambda op, x, m=_mode: _averaged(op, x, m, valid=False, again=True))
    _p(f"valid_average_{_mode.value}", f"divides by the positions inside, rounding {_mode.value}",
       compute=lambda op, x, m=_mode: _averaged(op, x, m, valid=True, again=False))
    _p(f"valid_average_then_scaled_{_mode.value}",
       f"divides by the positions inside, rounds {_mode.value}, and multiplies by the window",
       compute=lambda op, x, m=_mode: _averaged(op, x, m, valid=True, again=True))
_p("maximum", "takes the maximum",
   compute=lambda op, x: x[0].reshape(*x[0].shape[:2], -1).max(-1) if op.kind == "GlobalSumPool"
   else op._windows(x[0], -_FAR).max(-1))
_p = _of("GlobalSumPool")
_p("last_row_dropped", "drops the last row", operands=_first(lambda v: v[:, :, :-1]))
_p("last_column_dropped", "drops the last column", operands=_first(lambda v: v[..., :-1]))
_p("square_only", "takes the height for the width", operands=_first(lambda v: v[..., : v.shape[2]]))
_p("channels_mixed", "sums over the channels of a position",
   result=lambda op, y: np.repeat(y.sum(1, keepdims=True), y.shape[1], 1))

# --- joining and moving -----------------------------------------------------------------------


def _multipliers(
    function: Callable[[tuple[int, ...]], tuple[int, ...]],
) -> Callable[[Any, Operands], Op]:
    return lambda op, x: replace(op, multipliers=function(op.multipliers or (1,) * len(x)))


_j = _of("Add")
_j("multipliers_ignored", "multiplies nothing", node=_multipliers(lambda m: (1,) * len(m)))
_j("multipliers_reversed", "gives multipliers to operands in reverse",
   node=_multipliers(lambda m: m[::-1]))
_j("first_multiplier_only", "uses the first multiplier for all",
   node=_multipliers(lambda m: (m[0],) * len(m)))
_j("last_multiplier_only", "multiplies the last operand alone",
   node=_multipliers(lambda m: (*(1,) * (len(m) - 1), m[-1])))
_j("sign_dropped", "uses |multiplier|", node=_multipliers(lambda m: tuple(map(abs, m))))
_j("subtracted", "subtracts the last operand", node=_multipliers(lambda m: (*m[:-1], -m[-1])))
_j("two_only", "adds the first two operands",
   operands=lambda op, x: (*x[:2], *(0 * v for v in x[2:])))
_j("first_twice", "adds the first operand to itself", operands=lambda op, x: (x[0],) * len(x))
_j("last_twice", "adds the last operand to itself", operands=lambda op, x: (x[-1],) * len(x))
_j("first_only", "returns the first operand",
   operands=lambda op, x: (x[0], *(0 * v for v in x[1:])))
_j("last_only", "returns the last operand",
   operands=lambda op, x: (*(0 * v for v in x[:-1]), x[-1]))
_j("multipliers_int8", "stores multipliers in 8 bits",
   node=_multipliers(lambda m: tuple(int(_wrapped(np.array(v), 8)) for v in m)))
_j = _of("Concat")
_j("reversed", "joins in reverse order", operands=lambda op, x: x[::-1])
_j("two_only", "joins the first two operands", operands=lambda op, x: x[:2])
_j("last_axis", "joins along the last axis", compute=lambda op, x: np.concatenate(x, axis=-1))
_j("sample_axis", "joins along the samples", batch=True,
   compute=lambda op, x: np.concatenate(x).reshape(op.forward(*x).shape))
_j("channels_last", "joins as if channels came last",
   compute=lambda op, x: np.concatenate([v.reshape(len(v), -1, v.shape[1]) for v in x], -1)
   .reshape(op.forward(*x).shape))
_j("interleaved", "takes channels of the operands in turn",
   compute=lambda op, x: _in_turns(op, x))
_j("largest_first", "joins the operand with most channels first",
   operands=lambda op, x: tuple(sorted(x, key=lambda v: -v.shape[1])))


def _in_turns(op: Op, x: Operands) -> IntArray:
    turns = [(c, i) for i, v in enumerate(x) for c in range(v.shape[1])]
    order = sorted(range(len(turns)), key=turns.__getitem__)
    return np.asarray(np.concatenate(x, axis=1)[:, order])


_of("Reshape")("column_major", "runs through the first axis fastest",
   compute=lambda op, x: x[0].reshape(op.forward(*x).shape, order="F"))
_g = _of("Gather")
_g("fill_ignored", "fills with 0", node=_changed(fill=lambda op: 0))
_g("fill_negated", "fills with the negated code", node=_changed(fill=lambda op: -op.fill))
_g("minus_one_is_last", "lets -1 count from the end",
   node=_changed(index=lambda op: op.index % prod(op.in_shape)))
_g("minus_one_is_first", "takes the first value for -1",
   node=_changed(index=lambda op: np.maximum(op.index, 0)))
_g("one_late", "takes the value after",
   node=_changed(index=lambda op: _moved(op, 1)))
_g("one_early", "counts positions from 1", node=_changed(index=lambda op: _moved(op, -1)))
_g("index_int8", "stores positions in 8 bits",
   node=_changed(index=lambda op: np.where(
       op.index < 0, -1, _wrapped(op.index, 8) % prod(op.in_shape))))
_g("index_uint8", "stores positions in 8 unsigned bits",
   node=_changed(index=lambda op: np.where(op.index < 0, -1, op.index % 256)))
_g("index_column_major", "reads the index along its first axis fastest",
   node=_changed(index=lambda op: op.index.ravel(order="F").reshape(op.index.shape)))
_g("scattered", "puts value i at position index[i]",
   node=_changed(index=lambda op: np.argsort(op.index.ravel()).reshape(op.index.shape)))


def _moved(op: Any, by: int) -> IntArray:
    return np.where(op.index < 0, -1, (op.index + by) % prod(op.in_shape))


# --- tables and thresholds --------------------------------------------------------------------


def _column(
    function: Callable[[IntArray, int, int], IntArray],
) -> Callable[[Any, Operands], Operands]:
    """The column of a table computed otherwise, from (x, lo, entries)."""
    return lambda op, x: (function(x[0], op.lo, op.table.shape[1]) + op.lo,)


_k = _of("Lookup")
_k("lo_ignored", "takes x itself for the column", operands=_column(lambda v, lo, n: v % n))
_k("lo_added", "adds lo instead of subtracting it", operands=_column(lambda v, lo, n: (v + lo) % n))
_k("one_late", "takes the entry after",
   operands=_column(lambda v, lo, n: np.minimum(v - lo + 1, n - 1)))
_k("one_early", "takes the entry before",
   operands=_column(lambda v, lo, n: np.maximum(v - lo - 1, 0)))
_k("one_early_wraps", "takes the entry before, the last for the first",
   operands=_column(lambda v, lo, n: (v - lo - 1) % n))
_k("looks_up_magnitude", "looks up |x|",
   operands=_column(lambda v, lo, n: np.clip(abs(v) - lo, 0, n - 1)))
_k("index_uint8", "computes the column in 8 unsigned bits",
   operands=_column(lambda v, lo, n: (v - lo) % 256))
_k("first_row", "uses the first channel's table", node=_changed(table=lambda op: op.table[:1]))
_k("rows_reversed", "uses the tables in reverse", node=_changed(table=lambda op: op.table[::-1]))
_k("table_reversed", "reads the table backwards", node=_changed(table=lambda op: op.table[:, ::-1]))
_k("last_axis", "takes the channel from the last axis",
   compute=lambda op, x: op.table[np.arange(x[0].shape[-1]) % len(op.table), x[0] - op.lo])
for _bits in _WIDTHS:
    _k(f"table_int{_bits}", f"stores entries in {_bits} bits",
       result=lambda op, y, n=_bits: _wrapped(y, n))
    _k(f"table_uint{_bits}", f"stores entries in {_bits} unsigned bits",
       result=lambda op, y, n=_bits: _wrapped(y, n, signed=False))


def _thresholds(function: Callable[..., Any]) -> Callable[[Any, Operands], IntArray]:
    """Codes by other numbers to compare with, in any order: [channels or 1, any]."""

    def change(op: Any, x: Operands) -> IntArray:
        rows = np.asarray(function(op.thresholds))
        shape = (-1, *(1,) * (x[0].ndim - 2), rows.shape[1])
        reached = x[0][..., None] >= rows.reshape(shape)
        return np.asarray(reached.sum(axis=-1) + op.format.q_min)

    return change


def _real(row: IntArray, moved: IntArray) -> IntArray:
    return np.where((row == ALWAYS) | (row == NEVER), row, moved)


_q = _of("Requantize")
_q("strict", "counts acc > T", compute=_thresholds(lambda t: _real(t, t + 1)))
_q("lenient", "counts acc >= T - 1", compute=_thresholds(lambda t: _real(t, t - 1)))
_q("first_row", "uses the first channel's thresholds", compute=_thresholds(lambda t: t[:1]))
_q("rows_reversed", "uses the thresholds of the channels in reverse",
   compute=_thresholds(lambda t: t[::-1]))
_q("rows_late", "uses the thresholds of the channel before",
   compute=_thresholds(lambda t: np.roll(t, 1, 0)))
_q("last_threshold_dropped", "never gives the highest code",
   compute=_thresholds(lambda t: t[:, :-1]))
_q("first_threshold_dropped", "skips the first threshold", compute=_thresholds(lambda t: t[:, 1:]))
_q("one_step", "stops after the first threshold", compute=_thresholds(lambda t: t[:, :1]))
_q("duplicates_once", "counts equal thresholds once",
   compute=_thresholds(lambda t: np.where(np.diff(t, axis=1, prepend=ALWAYS) == 0, NEVER, t)))
_q("q_min_forgotten", "starts counting at 0",
   result=lambda op, y: y - op.format.q_min)
_q("q_min_twice", "starts counting below the lowest code",
   result=lambda op, y: y + op.format.q_min)
_q("counts_from_above", "counts down from q_max",
   result=lambda op, y: op.format.q_max + op.format.q_min - y)
_q("compares_unsigned", "compares as unsigned 64-bit integers",
   compute=lambda op, x: _compared(op, x[0], lambda v: v.astype(np.uint64)))
_q("last_axis", "takes the channel from the last axis",
   compute=lambda op, x: _by_axis(op, x[0], -1))
_q("sample_axis", "takes the channel from the sample axis", batch=True,
   compute=lambda op, x: _by_axis(op, x[0], 0))
for _name, _type in (("float16", np.float16), ("float32", np.float32), ("float64", np.float64)):
    _q(f"compares_{_name}", f"compares in {_name}",
       compute=lambda op, x, d=_type: _compared(op, x[0], lambda v: v.astype(d)))
for _bits in _WIDTHS:
    _q(f"thresholds_int{_bits}", f"stores thresholds in {_bits} bits that wrap",
       compute=_thresholds(partial(_wrapped, bits=_bits)))
    _q(f"thresholds_saturate_{_bits}", f"limits thresholds to {_bits} bits",
       compute=_thresholds(partial(_clipped, bits=_bits)))
    _q(f"acc_int{_bits}", f"takes the accumulator in {_bits} bits",
       operands=_first(partial(_wrapped, bits=_bits)))
    _q(f"compares_int{_bits}", f"compares accumulator and thresholds in {_bits} bits that wrap",
       compute=lambda op, x, n=_bits: _compared(op, x[0], lambda v: _wrapped(v, n)))
for _bits in range(1, 17):
    for _signed in (True, False):
        _kept = "signed" if _signed else "unsigned"
        _q(f"clamps_{_kept}_{_bits}", f"limits codes to {_bits} {_kept} bits",
           result=lambda op, y, n=_bits, s=_signed: _clipped(y, n, s))
        _q(f"codes_{_kept}_{_bits}", f"keeps codes in {_bits} {_kept} bits that wrap",
           result=lambda op, y, n=_bits, s=_signed: _wrapped(y, n, s))
_q("clamps_narrow", "never gives the lowest code",
   result=lambda op, y: np.maximum(y, op.format.q_min + 1))


def _by_axis(op: Any, acc: IntArray, axis: int) -> IntArray:
    """Rows of thresholds along another axis."""
    shape = [1] * acc.ndim
    shape[axis] = acc.shape[axis]
    row = (np.arange(acc.shape[axis]) % op.channels).reshape(shape)
    return np.asarray((acc[..., None] >= op.thresholds[row]).sum(axis=-1) + op.format.q_min)


def _compared(op: Any, acc: IntArray, read: Callable[[IntArray], Any]) -> IntArray:
    """Codes where both sides of every comparison are read through a function."""
    rows = read(op.thresholds).reshape(-1, *(1,) * (acc.ndim - 2), op.thresholds.shape[1])
    return np.asarray((read(acc)[..., None] >= rows).sum(axis=-1) + op.format.q_min)


# fmt: on


def _unsaturated(function: Callable[[IntArray, IntFormat], IntArray]) -> Callable[..., Any]:
    def change(op: Any, x: Operands) -> IntArray | None:
        codes = forms.unbounded(op, x[0])
        return None if codes is None else function(codes, op.format)

    return change


def _at_width(codes: IntArray, fmt: IntFormat, bits: int) -> IntArray:
    return _clipped(codes, bits, fmt.signed)


# fmt: off

# --- rescaling --------------------------------------------------------------------------------

_r = _of("Rescale")
for _mode in Rounding:
    _r(f"rounding_{_mode.value}", f"rounds {_mode.value}, once",
       node=lambda op, x, m=_mode: replace(op, rounding=m, first_rounding=None))
    for _last in (Rounding.HALF_UP, Rounding.HALF_AWAY):
        _r(f"double_rounding_{_mode.value}_{_last.value}",
           f"rounds {_mode.value} behind the multiplier, then {_last.value}",
           node=lambda op, x, m=_mode, n=_last: replace(op, first_rounding=m, rounding=n))
_r("zero_point_dropped", "adds no zero point", node=_changed(zero_point=lambda op: 0))
_r("offset_dropped", "adds nothing in front of the multiplier", node=_changed(offset=lambda op: 0))
_r("clip_ignored", "saturates at the ends of the format alone", node=_changed(clip=lambda op: None))
_r("first_multiplier", "uses the first channel's multiplier",
   node=_changed(multiplier=lambda op: op.multiplier[:1], shift=lambda op: op.shift[:1]))

_q("wraps", "keeps the low bits of a code instead of saturating",
   compute=_unsaturated(lambda q, f: _wrapped(q, f.bits, f.signed)))
_q("saturates_unsigned_then_wraps", "saturates at the unsigned maximum, then wraps",
   compute=_unsaturated(
       lambda q, f: _wrapped(np.clip(q, f.q_min, 2**f.bits - 1), f.bits, f.signed)))
_q("not_saturated", "does not saturate", compute=_unsaturated(lambda q, f: q))
for _bits in (4, 8, 16):
    _q(f"saturates_{_bits}", f"saturates at {_bits} bits only",
       compute=_unsaturated(partial(_at_width, bits=_bits)))
# fmt: on
CATALOGUE.extend(fits.FITS)


def with_roundings(base: Rounding | None = None) -> list[Deviation]:
    """The catalogue, with roundings against that of the network where it is known."""
    return [*CATALOGUE, *fits.roundings(base)]
