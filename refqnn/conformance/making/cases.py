"""The questions of the suite: written out here, or named by a seed in `chosen`.

Written ones are boundary expressions and data that must be refused.  An id says the same question
for ever; new ones are added, none is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product

import numpy as np

from refqnn.conformance.making.case import LATER, USUAL, Case
from refqnn.conformance.making.case import ask as _ask
from refqnn.conformance.making.case import column as _column
from refqnn.conformance.making.case import floats as _floats
from refqnn.conformance.making.case import fmt as _fmt
from refqnn.conformance.making.case import ints as _ints
from refqnn.conformance.making.case import linear_node as _linear_node
from refqnn.conformance.making.case import node as _node
from refqnn.conformance.making.case import single as _single
from refqnn.conformance.making.case import slug as _slug
from refqnn.conformance.making.chosen import CHOSEN, MORE
from refqnn.conformance.making.extreme import extreme
from refqnn.conformance.making.networks import describe, trained_cases
from refqnn.conformance.making.realistic import INPUT_ZERO, mobile_network, words_network
from refqnn.conformance.making.roomy import roomy, spoiled
from refqnn.conformance.making.samplers import Stream, sample
from refqnn.conformance.making.wide import left_open, rescales, wide_network
from refqnn.conformance.operations import MODES, OPERATIONS, Values
from refqnn.conformance.specification import broken_questions, first_broken
from refqnn.conformance.suite import vectors_path

__all__ = ["Case", "all_cases", "asked", "hand_made"]


def all_cases() -> list[Case]:
    """Every question, written ones first, by operation."""
    searched = (
        asked(operation, seed)
        for chosen in (CHOSEN, MORE)
        for operation, seeds in chosen.items()
        for seed in seeds
    )
    order = list(OPERATIONS)
    return sorted(
        (*hand_made(), *searched, *refused()), key=lambda case: order.index(case.operation)
    )


_DRAWS = {"r": roomy, "x": spoiled, "w": extreme}


def asked(operation: str, seed: int | str) -> Case:
    """The question of a seed: a number, or a letter (s: as that, r: larger, x: spoiled, w: at the
    ends of what may be) and four digits."""
    identity = f"{_slug(operation)}-{seed:0>4}"
    draw, number = _DRAWS.get(str(seed)[0], sample), int(str(seed).lstrip("srxw"))
    arguments = draw(operation, number)
    broken = first_broken(operation, arguments) if draw in (spoiled, extreme) else None
    return Case(identity, operation, arguments, "chosen by search", broken and broken[0])


# Where no written question is right: changes of the first one.
_RIGHT: dict[str, Values] = {
    "check_codes": {"codes": np.array([0, 7])},
    "reshape": {"shape": (2, 3)},
}


def refused() -> Iterator[Case]:
    """Every way to break a sentence of the specification, from the first right written question.

    New written questions stand behind the others, or the ids of these would ask something else.
    """
    right: dict[str, Values] = {}
    for case in hand_made():
        if case.error is None or case.operation in _RIGHT:
            change = _RIGHT.get(case.operation, {})
            right.setdefault(case.operation, {**case.arguments, **change})
    for operation, arguments in right.items():
        for rule, number, broken in broken_questions(operation, arguments):
            found = first_broken(operation, broken)
            code = rule.code if found is None else found[0]
            identity = f"{_slug(operation)}-refuses-{_slug(rule.name).lower()}-{number}"
            comment = f"does not hold: {rule.sentence}"
            yield Case(identity, operation, broken, comment, code)


@lru_cache(maxsize=1)
def hand_made() -> tuple[Case, ...]:
    """The questions written out in this file, and the trained networks."""
    parts = (_rounding, _formats, _quantizers, _dequantizers, _requantize_by_threshold,
             _requantize_by_mode, _requantize_edges, _requantize_refused, rescales, _sums,
             _accumulators, _staged, _convolutions, _transposed, _gathers, _pools, _joins, _widths,
             _fan_ins, _sign_budgets, _projections, _small_networks, _trained_networks,
             _requantize_unread, _realistic_networks, left_open)  # fmt: skip
    return tuple(case for part in parts for case in part())


# Tables: one question, what is special about it, its arguments.
# fmt: off
def _rounding() -> Iterator[Case]:
    ask = partial(_ask, "round_ratio")
    for mode in MODES:
        yield ask(f"halves-{_slug(mode)}", "every tie from -7/2 to 7/2",
                  numerator=np.arange(-7, 8), denominator=2, rounding=mode)
        yield ask(f"thirds-{_slug(mode)}", "no ties; both sides of the half",
                  numerator=np.arange(-7, 8), denominator=3, rounding=mode)
    wide = [2**53 + 1, -(2**53) - 1, 2**62 + 1, 2**63 - 1, -(2**63), 2**64 + 2]
    for mode in ("half_even", "half_up"):
        yield ask(f"wide-{_slug(mode)}", "ties beyond the integers of float64 and of int64",
                  numerator=np.array(wide, dtype=object), denominator=2, rounding=mode)
    for name, d in (("zero", 0), ("negative", -2)):
        yield ask(f"denominator-{name}", "a denominator that is not positive",
                  "invalid_parameter", numerator=_ints(1, 2), denominator=d)


def _formats() -> Iterator[Case]:
    for bits, signed, narrow in product((1, 2, 8, 31, 32), (False, True), (False, True)):
        if bits > 1 or not narrow:
            name = f"{bits}-{'signed' if signed else 'unsigned'}{'-narrow' if narrow else ''}"
            yield _ask("integer_format", name, "the ends of a format", **_fmt(bits, signed, narrow))
    for name, fmt in (
        ("0", _fmt(0, False)), ("33", _fmt(33, True)), ("1-narrow", _fmt(1, False, True)),
    ):
        yield _ask("integer_format", f"refused-{name}", "a width that no format has",
                   "invalid_parameter", **fmt)
    for name, fmt, codes in (
        ("above", _fmt(3, False), [0, 8]),
        ("below", _fmt(3, False), [-1, 0]),
        ("above-signed", _fmt(3, True), [3, 4]),
        ("below-signed", _fmt(3, True), [-4, -5]),
        ("narrow-lowest", _fmt(3, True, True), [-3, -4]),
        ("narrow-highest", _fmt(3, False, True), [6, 7]),
    ):
        yield _ask("check_codes", name, "one code outside the format", "out_of_range",
                   codes=_ints(codes), **fmt)


def _quantizers() -> Iterator[Case]:
    ask = partial(_ask, "quantize")
    for mode in MODES:
        yield ask(f"ties-{_slug(mode)}", "ties of both signs and parities on a dyadic scale",
                  rounding=mode)
    for mode in LATER:
        yield ask(f"eighths-{_slug(mode)}", "below, at and above ties; an odd zero point; the ends",
                  rounding=mode, scale=_single(1), zero_point=np.array(3), axis=None,
                  x=np.array([-80, *range(-12, 13), 80], dtype=np.float32) / 8)
    below_half, tiny = 0.5 - 2.0**-25, 2.0**-140
    odd, unsigned = np.array(3), _fmt(4, False)
    yield ask("just-below-half", "x + 0.5 rounds up to 1 in float32",
              rounding="half_up", scale=_single(1), x=_floats(below_half, -below_half))
    yield ask("saturates", "beyond int8, int16, int32, and infinite",
              x=_floats(3e9, -3e9, np.inf, -np.inf, 3.75, -4.25, 70.0, -70.0))
    yield ask("odd-zero-point",
              "round, then add: an odd zero point turns the ties of the wrong order round",
              zero_point=odd, **unsigned)
    yield ask("zero-point-first-odd", "add, then round",
              zero_point=odd, zero_point_first=True, **unsigned)
    yield ask("clip-after-zero-point",
              "beyond the format before the zero point is added, inside after it",
              zero_point=np.array(-5), x=_floats(6.0, 4.0, -1.5))
    yield ask("subnormal", "x and scale are subnormal",
              scale=_single(tiny), x=_floats(3 * tiny, -5 * tiny))
    yield ask("float64-x", "x is rounded to float32 first, where it is a tie",
              x=np.array([0.25 + 2.0**-40, -0.25 - 2.0**-40, 0.75 - 2.0**-40]))
    refuse = partial(ask, comment="must be refused")
    yield refuse("refused-nan", error="not_a_number", x=_floats(0.5, np.nan))
    for name, scale in (("zero", 0), ("negative", -0.5), ("infinite", np.inf)):
        yield refuse(f"refused-scale-{name}", error="invalid_parameter", scale=_single(scale))
    yield refuse("refused-zero-point-outside", error="out_of_range", zero_point=np.array(8))
    yield refuse("refused-channels", error="shape_mismatch", scale=_floats(1, 2), axis=0)
    yield _ask("binarize", "signs", "both zeros are +1",
               x=_floats(0.0, -0.0, 0.25, -0.25, np.inf, -np.inf))
    yield _ask("binarize", "smallest", "smaller than any float32",
               x=np.array([5e-324, -5e-324, 1e-60, -1e-60]))
    yield _ask("binarize", "nan", "NaN has no sign", "not_a_number", x=_floats(1.0, np.nan))


def _dequantizers() -> Iterator[Case]:
    ask, wide = partial(_ask, "dequantize"), _fmt(32, True)
    yield ask("wide-difference", "code - zero_point needs 33 bits", **wide,
              zero_point=np.array(-(2**31)), codes=_ints(2**31 - 1, 2**24 + 1, 0))
    yield ask("cancels", "the difference is small, both terms are not floats", **wide,
              zero_point=np.array(2**30 + 1), codes=_ints(2**30 + 2, 2**30, 2**30 + 65))
    yield ask("outside", "a code outside the format", "out_of_range", codes=_ints(7, 8))


def _requantize_by_threshold() -> Iterator[Case]:
    ask = partial(_ask, "requantize_thresholds")
    yield ask("sentinels", "a code always passed, one never reached, and two at the same threshold",
              thresholds=_ints([[-(2**63), 5, 2**63 - 1], [-3, -3, 4]]),
              acc=_ints([[4, -4], [5, -3], [6, 4], [2**62, -(2**62)]]))
    yield ask("decreasing", "thresholds that decrease", "invalid_parameter",
              thresholds=_ints([[1, 3, 2]]), acc=_ints([[2]]))
    yield ask("too-few", "one threshold too few for the format", "shape_mismatch",
              thresholds=_ints([[1, 3]]), acc=_ints([[2]]))


def _requantize_by_mode() -> Iterator[Case]:
    ties = {**_fmt(4, True), "acc": np.arange(-14, 15)[:, None], "zero_point": 1}
    for mode in MODES:
        slug, base = _slug(mode), {**ties, "rounding": mode}
        yield _ask("requantize_shift", f"ties-{slug}",
                   "every accumulator of [-14, 14], shifted by 2", **base, shift=2)
        yield _ask("requantize_scale", f"ties-{slug}", "every accumulator of [-14, 14], halved",
                   **base, scale_in=_single(0.25), scale_out=_single(0.5))
        if mode in LATER:
            yield _ask("requantize_scale", f"eighths-{slug}", "below, at and above ties",
                       **base, scale_in=_single(0.125), scale_out=_single(1))
        yield _ask("requantize_multiplier", f"ties-{slug}",
                   "every accumulator of [-14, 14], times 3/8",
                   **base, mantissa=np.array(3), shift=np.array(3))
        yield _ask("requantize_multiplier", f"double-{slug}",
                   "rounded at 3 bits, then at 2 more", **base,
                   mantissa=np.array(5), shift=np.array(5), first_rounding=mode, first_shift=3)


def _requantize_edges() -> Iterator[Case]:
    yield _ask("requantize_shift", "zero", "no bit is dropped, so there is no half to add",
               **_fmt(3, True), acc=np.arange(-5, 6)[:, None], shift=0)
    yield _ask("requantize_shift", "int32-edge", "acc + half leaves 32 bits",
               **_fmt(8, True), acc=_column(2**31 - 1, -(2**31), 2**31 - 2**23), shift=24)
    yield _ask("requantize_multiplier", "62-bits", "the product 2^62 - 1 is no float64",
               **_fmt(3, True), acc=_column(2**31 - 1, 1 - 2**31, 2**31),
               mantissa=np.array(2**31 + 1), shift=np.array(62), rounding="floor")
    ask = partial(_ask, "requantize_scale")
    for name, s_in, s_out, comment in (
        ("below", 1 / 3, 1.0, "3 * (1/3 in float64) is below 1 and rounds to 1 in float64"),
        ("exact", 1.0, 3.0, "3 * 1 / 3 is 1; 3 * (1 / 3 in float64) is below"),
    ):
        yield ask(f"thirds-{name}", comment, **_fmt(4, False), acc=np.arange(1, 16)[:, None],
                  scale_in=np.array(s_in), scale_out=np.array(s_out), bias=np.array(0.0),
                  rounding="floor")
    for name, fmt, acc, s_in, s_out, zero_point, comment in (
        ("odd-zero-point", _fmt(8, False), range(-7, 8), 0.5, 1, 3,
         "ties and an odd zero point: the order of rounding and adding shows"),
        ("beyond-int32", _fmt(8, True), (2**20, -(2**20), 5), 2.0**12, 1, -1,
         "quotients of 2^32 and -2^32, cut after they are rounded"),
        ("float32-product", _fmt(8, True), (185, -185, 184), 0.023, 0.37, 0,
         "11.49999...: the float32 quotient of the scales makes a tie of it"),
        ("float32-accumulator", _fmt(8, True), (2**24 + 1, -(2**24) - 1, 2**24), 2.0**-25, 1, 0,
         "just beyond a half; no float32 holds the accumulator"),
    ):
        yield ask(name, comment, **fmt, acc=_column(*acc), scale_in=_single(s_in),
                  scale_out=_single(s_out), zero_point=zero_point)
    yield ask("channels", "a scale and a bias for each channel", **_fmt(8, False),
              acc=np.arange(-9, 9).reshape(3, 3, 2), scale_in=_floats(0.5, 0.25, 2),
              bias=_floats(1, -0.75, 4), zero_point=128)


def _requantize_unread() -> Iterator[Case]:
    comment = "a first shift beyond the shift, which no first rounding reads"
    yield _ask("rescale", "first-shift-unread", comment, first_shift=np.array(99))
    yield _ask("requantize_multiplier", "first-shift-unread", comment, **_fmt(4, True),
               mantissa=np.array(3), shift=np.array(3), acc=np.arange(-14, 15)[:, None],
               first_shift=99)


def _requantize_refused() -> Iterator[Case]:
    one = {**_fmt(2, False), "acc": _ints([[1]])}
    yield _ask("requantize_scale", "zero", "a scale of 0", "invalid_parameter",
               **one, scale_out=_single(0))
    for name, shift, mantissa in (("shift-63", 63, 1), ("mantissa-zero", 1, 0)):
        yield _ask("requantize_multiplier", name, "outside the declared range",
                   "invalid_parameter", **one, mantissa=np.array(mantissa), shift=np.array(shift))


def _sums() -> Iterator[Case]:
    ask = partial(_ask, "linear")
    for power in (7, 15, 23, 24, 31, 53):
        half = 2 ** (power - 1)
        comment = "2^{0} + 1, its negative, and a sum that passes 2^{0} in the middle only"
        yield ask(f"passes-2-{power}", comment.format(power),
                  weight=_ints([[1, 1, 1, 0], [-1, -1, -1, 0], [1, 1, 0, -1]]),
                  x=_ints([[half, half, 1, half]]))
    yield ask("zero-points", "unsigned 8-bit codes with a zero point on both sides",
              weight=_ints([[3, 250, 7], [128, 0, 255]]), bias=_ints(-300, 40000),
              x=_ints([[0, 200, 255], [9, 8, 3]]), x_zero_point=9, weight_zero_point=_ints(5, 128))
    yield ask("shape", "three inputs for two weights", "shape_mismatch",
              weight=_ints([[1, 2]]), x=_ints([[1, 2, 3]]))


def _accumulators() -> Iterator[Case]:
    orders = ("forward", "reverse", "bias_first")
    for overflow, when, order in product(("wrap", "saturate"), ("step", "end"), orders):
        yield _ask("accumulate", f"{overflow}-{when}-{_slug(order)}",
                   "overflows in the middle, not at the end",
                   bias=_ints([-6]), overflow=overflow, when=when, order=order)
    for bits in (0, 65):
        yield _ask("accumulate", f"bits-{bits}", "a width that no accumulator has",
                   "invalid_parameter", bias=None, overflow="wrap", when="end", order="forward",
                   accumulator_bits=bits)


# Stages by machine, as in `Accumulator.preset`: widths, signed, groups, saturates, at_end.
_MACHINES: dict[str, tuple[tuple[int, ...], ...]] = {
    "x86-maddubs": ((16, 32, 32), (1, 1, 1), (2, 2), (1, 0, 0), (1, 1, 0)),
    "x86-vnni": ((32, 32), (1, 1), (4,), (0, 0), (1, 0)),
    "x86-vnni-saturating": ((32, 32), (1, 1), (4,), (0, 1), (1, 0)),
    "arm-smlad": ((32, 32), (1, 1), (2,), (0, 0), (1, 0)),
    "int32": ((32,), (1,), (), (0,), (0,)),
}


def _stages(*lists: tuple[int, ...]) -> Values:
    return dict(zip(("widths", "signed", "groups", "saturates", "at_end"), lists))


def _staged() -> Iterator[Case]:
    ask = partial(_ask, "accumulate_stages")
    bytes_: Values = {
        "weight": _ints([[[127, 127, -128, -128, 127]], [[64, 63, -64, 1, -128]]]),
        "bias": _ints(2**31 - 1, 1000),
        "x": _ints([[[255, 255, 255, 254, 255]], [[1, 2, 3, 4, 5]]]),
        "bias_at": "first",
    }
    for name, lists in _MACHINES.items():
        yield ask(name, "bytes at their ends, a bias at the end of int32 and a small one",
                  **bytes_, **_stages(*lists))
    words: Values = {"weight": _ints([[[-(2**15)] * 3]]), "x": _ints([[[-(2**15)] * 3]])}
    yield ask("arm-smlad-words", "two products of -2^15 and -2^15 are 2^31", **words, bias=None,
              **_stages(*_MACHINES["arm-smlad"]))
    pairs = ((6, 8), (1, 1), (2,), (1, 0), (0, 0))
    for order in ("forward", "reverse", "channels_last"):
        yield ask(f"order-{_slug(order)}", "three pairs of six products, by channel or by place",
                  order=order, **_stages(*pairs))
    for at in ("first", "last", "outside"):
        yield ask(f"bias-{at}", "a last register that is left with the bias or without",
                  bias_at=at, bias=_ints([-60]), **_stages((8, 7), (1, 1), (2,), (0, 1), (0, 0)))
    yield ask("remainder", "six products in groups of four: the last has two",
              **_stages((6, 8), (1, 1), (4,), (1, 0), (0, 0)))
    yield ask("single-products", "a register for each product",
              **_stages((5, 8), (1, 1), (1,), (1, 0), (0, 0)))
    yield ask("inner-wrap-recovered", "tiles wrap at 6 bits, the last register of 6 holds the sum",
              bias=_ints([-12]), **_stages((6, 6), (1, 1), (3,), (0, 0), (0, 0)))
    yield ask("inner-wrap-lost", "tiles wrap at 6 bits, the last register is wider",
              **_stages((6, 9), (1, 1), (3,), (0, 0), (0, 0)))
    yield ask("unsigned-tiles", "a tile that goes below 0",
              **_stages((6, 8), (0, 1), (3,), (1, 0), (0, 0)))
    yield ask("width-0", "a register of no bits", "invalid_parameter",
              **_stages((0, 8), (1, 1), (2,), (0, 0), (0, 0)))
    yield ask("group-0", "groups of nothing", "invalid_parameter",
              **_stages((6, 8), (1, 1), (0,), (0, 0), (0, 0)))
    yield ask("lists", "two groups for two stages", "shape_mismatch",
              **_stages((6, 8), (1, 1), (2, 2), (0, 0), (0, 0)))


def _convolutions() -> Iterator[Case]:
    ask = partial(_ask, "conv2d")
    yield ask("asymmetric",
              "kernel, stride and padding differ in height and width; padded with a zero point")
    yield ask("groups", "two groups of two channels", groups=2, bias=_ints(1, 2, 3, 4),
              weight=np.arange(24).reshape(4, 2, 1, 3) - 11,
              x=np.arange(32).reshape(1, 4, 2, 4) % 11 - 5)
    yield ask("depthwise-dilated", "a kernel per channel, dilated vertically",
              groups=3, bias=None, dilation=(2, 1),
              weight=np.arange(12).reshape(3, 1, 2, 2) - 6, x=np.arange(36).reshape(1, 3, 4, 3) % 5)
    yield ask("window-too-large", "a kernel wider than the image", "shape_mismatch",
              x=np.ones((1, 1, 4, 1), dtype=np.int64), padding=((0, 0), (0, 0)))
    yield ask("channels", "two channels for a kernel of one", "shape_mismatch",
              x=np.ones((1, 2, 4, 5), dtype=np.int64))
    yield _ask("conv1d", "asymmetric", "stride, dilation and unequal padding",
               weight=_ints([[[1, -2, 4]], [[3, 0, -5]]]), bias=_ints(7, -7), stride=(2,),
               padding=((2, 1),), dilation=(2,), groups=1, pad_code=1,
               x=_ints([[[1, 2, 4, 8, 16, 32, 64]]]))


def _transposed() -> Iterator[Case]:
    ask = partial(_ask, "conv_transpose2d")
    plain: Values = {"bias": None, "stride": (1, 1), "padding": ((0, 0), (0, 0)),
                     "output_padding": (0, 0), "dilation": (1, 1)}
    yield ask("asymmetric", "everything differs in height and width, before and after")
    yield ask("square", "as many inputs as outputs, a square kernel, a square image",
              **plain | {"stride": (2, 2)}, weight=(np.arange(16) * 3 % 17 - 6).reshape(2, 2, 2, 2),
              x=(np.arange(16) * 5 % 13).reshape(2, 2, 2, 2))
    yield ask("groups", "two groups of two inputs and three outputs",
              **plain | {"bias": _ints(1, -20, 300, -4000, 50000, 6), "stride": (1, 2)}, groups=2,
              weight=(np.arange(24) * 7 % 19 - 9).reshape(4, 3, 1, 2),
              x=(np.arange(48) * 5 % 37 - 11).reshape(2, 4, 2, 3))
    yield ask("depthwise", "two outputs for each input", groups=3,
              **plain | {"bias": _ints(9, 8, 7, 6, 5, 4), "padding": ((0, 1), (1, 0))},
              weight=(np.arange(36) * 5 % 17 - 8).reshape(3, 2, 2, 3),
              x=(np.arange(36) * 3 % 11 - 4).reshape(2, 3, 2, 3))
    yield ask("gaps", "a stride beyond the kernel: between inputs the bias alone",
              **plain | {"bias": _ints(5, -6), "stride": (3, 2), "output_padding": (2, 1)},
              weight=_ints([[[[3]], [[-4]]]]), x=_ints([[[[1, -2]]], [[[7, 9]]]]))
    yield ask("cut-into-inputs", "inputs are left out where all that they reach is",
              **plain | {"stride": (2, 1), "padding": ((2, 1), (0, 3))},
              weight=_ints([[[[2, -3]]]]), x=np.arange(1, 31).reshape(2, 1, 3, 5))
    yield ask("output-padding-below-dilation", "more than the stride, less than the dilation",
              **plain | {"output_padding": (2, 1), "dilation": (3, 2)},
              weight=_ints([[[[1, -2], [4, 8]]]]), x=_ints([[[[1, 10, 100]]], [[[-3, 5, 2]]]]))
    for name, x_zero, w_zero in (("unsigned", 0, 0), ("signed", 128, 128)):
        yield ask(f"{name}-8-bits", "the ends of 8-bit codes", **plain,
                  weight=_ints([[[[255, 0, 200]]]]) - w_zero,
                  x=_ints([[[[255, 128]]], [[[0, 127]]]]) - x_zero)
    yield ask("large-products", "single products beyond 32 bits", **plain,
              weight=_ints([[[[2**17 + 1]]], [[[-(2**17)]]]]),
              x=_ints([[[[2**16 + 3]], [[2**16]]]]))
    for power in (7, 15, 23, 24, 31, 53, 63):
        half = 2 ** (power - 1)
        comment = "2^{0} + 1, its negative, and a sum that passes 2^{0} in the middle only"
        yield ask(f"passes-2-{power}", comment.format(power), **plain,
                  weight=_ints([[1, 1, 1, 0], [-1, -1, -1, 0], [1, 1, 0, -1]]).T[:, :, None, None],
                  x=_ints([[half, half, 1, half]])[:, :, None, None])
    for name, comment, error, change in (
        ("channels", "three channels for a kernel of two", "shape_mismatch",
         {"x": np.ones((2, 3, 3, 4), dtype=np.int64)}),
        ("no-width", "a spatial axis too few", "shape_mismatch",
         {"x": np.ones((2, 2, 3), dtype=np.int64)}),
        ("biases", "two biases for three outputs", "shape_mismatch", {"bias": _ints(1, 2)}),
        ("nothing-left", "padding that leaves nothing", "shape_mismatch",
         {"padding": ((5, 4), (0, 0))}),
        ("groups", "three groups of two inputs", "invalid_parameter", {"groups": 3}),
        ("no-groups", "no groups", "invalid_parameter", {"groups": 0}),
        ("stride", "a stride of 0", "invalid_parameter", {"stride": (2, 0)}),
        ("dilation", "a dilation of 0", "invalid_parameter", {"dilation": (0, 1)}),
        ("padding", "negative padding", "invalid_parameter", {"padding": ((1, 0), (-1, 2))}),
        ("output-padding", "as large as stride and dilation", "invalid_parameter",
         {"output_padding": (3, 2)}),
        ("output-padding-negative", "negative output padding", "invalid_parameter",
         {"output_padding": (1, -1)}),
    ):
        yield ask(f"refused-{name}", comment, error, **change)


def _gathers() -> Iterator[Case]:
    ask, image = partial(_ask, "gather"), np.arange(12).reshape(2, 2, 3)
    yield ask("any", "positions in any order, one twice, some never, one filled")
    yield ask("slice", "every other column of the second channel, in reverse",
              index=image[1:, :, ::-2])
    yield ask("transposed", "the axes of a sample in another order", index=image.transpose(2, 0, 1))
    yield ask("permutation", "a permutation that is not its own inverse",
              index=_ints([2, 0, 3, 1]), in_shape=(4,), x=_ints([[5, -6, 7, 8], [1, 2, -3, 4]]))
    yield ask("padded", "a code around an image, unequal on all sides", fill=9,
              index=np.pad(image, ((0, 0), (1, 0), (2, 1)), constant_values=-1))
    yield ask("nearest", "rows twice, columns three times",
              index=image.repeat(2, axis=1).repeat(3, axis=2))
    yield ask("pixel-shuffle", "four channels to twice the rows and twice the columns",
              index=np.arange(8).reshape(1, 2, 2, 1, 2).transpose(0, 3, 1, 4, 2).reshape(1, 2, 4),
              in_shape=(4, 1, 2), x=np.arange(16).reshape(2, 4, 1, 2) * 7 % 17)
    yield ask("channel-shuffle", "two groups of three channels",
              index=np.arange(12).reshape(2, 3, 2).swapaxes(0, 1).reshape(6, 2),
              in_shape=(6, 2), x=np.arange(24).reshape(2, 6, 2) * 5 % 23)
    yield ask("nothing-taken", "filled everywhere", index=_ints([[-1, -1]]), fill=300)
    yield ask("beyond-8-bits", "positions at the ends of 8 bits",
              index=_ints([127, 128, 255, 256, 299]), in_shape=(3, 100),
              x=np.arange(600).reshape(2, 3, 100) * 7 % 601)
    wide = [2**7, -(2**7) - 1, 2**15, 2**24 + 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1]
    yield ask("wide", "values beyond 8, 16, 32 bits and the integers of floats",
              index=_ints([7, 6, 5, 4, 3, 2, 1, 0]), in_shape=(8,),
              x=_ints([wide, [-v - 1 for v in wide]]))
    for name, comment, error, change in (
        ("below", "a position of -2", "out_of_range", {"index": _ints([[0, -2]])}),
        ("above", "one position beyond the sample", "out_of_range", {"index": _ints([[0, 12]])}),
        ("next-sample", "a position in the next sample", "out_of_range", {"index": _ints([[23]])}),
        ("shape", "as many values in another shape", "shape_mismatch", {"in_shape": (2, 3, 2)}),
        ("larger", "more values than the shape says", "shape_mismatch", {"in_shape": (2, 2, 4)}),
        ("empty", "an index of nothing", "shape_mismatch",
         {"index": np.zeros((0, 2), dtype=np.int64)}),
        ("no-size", "an axis of no values", "invalid_parameter", {"in_shape": (2, 0, 3)}),
    ):
        yield ask(f"refused-{name}", comment, error, **change)


def _pools() -> Iterator[Case]:
    yield _ask("max_pool2d", "negative", "all negative, padded")
    yield _ask("max_pool2d", "very-negative", "below the lowest 32-bit integer",
               x=USUAL["max_pool2d"]["x"] - 2**40)
    yield _ask("max_pool2d", "padding", "windows wholly in the padding", "invalid_parameter",
               padding=((2, 0), (0, 0)))
    yield _ask("sum_pool2d", "padded", "padded with a zero point", pad_code=5)
    yield _ask("global_sum_pool", "rows", "more columns than rows",
               x=np.arange(30).reshape(1, 2, 3, 5) - 4)
    for power in (53, 62):
        yield _ask("global_sum_pool", f"passes-2-{power}",
                   "sums beyond the integers of float64, and of int64",
                   x=np.full((1, 1, 1, 3), 2**power, dtype=np.int64) + _ints(0, 1, 0))


def _joins() -> Iterator[Case]:
    yield _ask("add", "shapes", "shapes that only broadcasting would join", "shape_mismatch",
               operands=[_ints([[1, 2]]), _ints([[1]])], multipliers=None)
    yield _ask("add", "subtract", "a negative multiplier, and one beyond 8 bits",
               operands=[_ints([[5, 6]]), _ints([[9, 1]]), _ints([[100, 50]])],
               multipliers=(1, -4, 130))
    yield _ask("concat", "shapes", "shapes that differ beyond the channels", "shape_mismatch",
               operands=[np.ones((1, 2, 2), dtype=int), np.ones((1, 2, 3), dtype=int)])
    yield _ask("concat", "same-channels", "two operands of the same shape",
               operands=[np.arange(4).reshape(1, 2, 2), np.arange(4, 8).reshape(1, 2, 2)])
    yield _ask("flatten", "image", "channels, rows, columns", x=np.arange(24).reshape(2, 2, 3, 2))
    yield _ask("reshape", "size", "four places for six values", "shape_mismatch",
               x=np.arange(6).reshape(1, 6), shape=(4,))
    yield _ask("lookup", "every-entry", "every column of both channels",
               x=_ints([[v, -v] for v in range(-2, 3)]))
    for name, x in (("below", -3), ("above", 3)):
        yield _ask("lookup", name, "one column beyond the table", "out_of_range",
                   x=_ints([[0, x]]))


def _widths() -> Iterator[Case]:
    ask = partial(_ask, "bit_widths")
    for power in (1, 7, 8, 21, 24, 31, 48, 49, 53, 63, 64):
        for name, lo, hi in (
            ("below", 0, 2**power - 1),
            ("at", 0, 2**power),
            ("negative", -(2**power), 2**power - 1),
            ("more-negative", -(2**power) - 1, 0),
            ("up-to", -(2**power) + 1, 2**power),
        ):
            yield ask(f"{power}-{name}", f"at the edge of {power} bits", lo=lo, hi=hi)
    for lo, hi in ((0, 0), (-1, -1), (-1, 0), (5, 5), (100, 131), (-96, 30)):
        yield ask(f"from-{lo}-to-{hi}".replace("--", "-minus-"), "small ranges", lo=lo, hi=hi)
    yield ask("reversed", "lo above hi", "invalid_parameter", lo=3, hi=2)
    yield _ask("accumulator_range", "signs", "inputs that are negative, positive, and both",
               weight=_ints([[3, -2, 5], [-1, -1, -1]]), bias=_ints(-7, 4),
               x_lo=_ints(-4, 1, -3), x_hi=_ints(2, 6, -1))


def _fan_ins() -> Iterator[Case]:
    for name, n_max, n_weights, n_inputs in (
        ("published", 8, 2, 2), ("seven-bits", 7, 2, 2), ("sixteen-bits", 16, 2, 2),
        ("one-bit", 5, 1, 1), ("exact", 4, 2, 1), ("none", 2, 3, 3), ("sixty-four", 64, 1, 1),
        ("sixty-three", 63, 1, 1), ("fifty-four", 54, 1, 2), ("thirty-two", 32, 1, 2),
    ):
        yield _ask("omega", name, "unsigned, no bias",
                   n_max=n_max, n_weights=n_weights, n_inputs=n_inputs)
    yield _ask("omega", "zero-bits", "weights of no bits", "invalid_parameter",
               n_max=8, n_weights=0, n_inputs=2)
    for name, fan_in, weight, comment in (
        ("ties", 2, [[3, -3, 3, 3], [1, 0, -1, 1]], "equal magnitudes: the earlier stays"),
        ("none", 0, [[1, -2], [0, 3]], "nothing stays"),
        ("all", 5, [[1, 0], [-2, 3]], "more than a row has; zeros stay too"),
        ("full-row", 2, [[9, 8, 7], [1, 0, -2]], "a row, not the layer"),
        ("float32", 1, [[2**24, -(2**24) - 1], [2**30, 2**30 + 1]], "equal in float32"),
        ("int8", 1, [[127, -128], [-1, 128]], "|-128| in 8 bits"),
    ):
        yield _ask("fan_in_mask", name, comment, weight=_ints(weight), fan_in=fan_in)
    yield _ask("fan_in_mask", "negative", "a negative fan-in", "invalid_parameter",
               weight=_ints([1, 2, 3], [3, 0, 1]), fan_in=-1)
    def ranges(*pairs: tuple[int, int]) -> Values:
        names = ("weight_range", "input_range", "bias_range", "accumulator_range")
        return dict(zip(names, pairs))

    for name, *pairs in (
        ("signed-weights", (-2, 1), (0, 3), (0, 0), (-128, 127)),
        ("narrow-weights", (-1, 1), (0, 3), (-5, 5), (-128, 127)),
        ("lower-end-binds", (-2, 1), (0, 3), (-20, 0), (-128, 127)),
        ("upper-end-binds", (-1, 3), (0, 3), (0, 20), (-128, 127)),
        ("both-negative", (-3, -1), (-4, 2), (0, 0), (-128, 127)),
        ("exact-power", (-1, 0), (0, 1), (0, 0), (-128, 127)),
        ("unlimited", (0, 0), (0, 3), (0, 0), (-128, 127)),
        ("wide", (-1, 1), (-1, 1), (0, 0), (-(2**60), 2**60 - 1)),
        ("wide-odd", (0, 1), (0, 3), (0, 5), (0, 2**62 - 1)),
    ):
        yield _ask("max_fan_in", name, "four inclusive ranges", **ranges(*pairs))
    yield _ask("max_fan_in", "bias-outside", "the bias alone overflows", "out_of_range",
               **ranges((-1, 1), (0, 1), (0, 200), (-128, 127)))


def _sign_budgets() -> Iterator[Case]:
    ask = partial(_ask, "sign_budgets")
    for name, input_range, comment in (
        ("unsigned", (0, 7), "each side has its own end of the accumulator"),
        ("nonpositive", (-7, 0), "the ends change places"),
        ("signed", (-4, 3), "both sides share both ends: one common factor"),
        ("bipolar", (-1, 1), "P + N against both ends"),
        ("positive", (2, 5), "a range without 0 counts as if it had it"),
        ("negative", (-5, -2), "a range below 0 counts as if it had it"),
        ("zero", (0, 0), "inputs that are always 0 leave everything as it is"),
    ):
        yield ask(name, comment, P=_ints(18, 30, 1, 40), N=_ints(18, 1, 30, 40),
                  bias=_ints(3, -20, 0, 0), input_range=input_range, bits=8)
    for name, bias in (("highest", 2**61 - 1), ("lowest", -(2**61))):
        yield ask(f"62-bits-{name}", "the bias leaves room at one end only",
                  P=_ints([2**55 + 1]), N=_ints([2**54 + 3]), bias=_ints([bias]),
                  input_range=(-3, 5), bits=62)
    yield ask("wide", "sums, products and rooms that are no float64",
              P=_ints([2**60 + 1]), N=_ints([2**60 - 1]), input_range=(-3, 5), bits=62)
    yield ask("two-bits", "[-2, 1]: one more below than above",
              P=_ints([3]), N=_ints([3]), input_range=(0, 1), bits=2)
    nine = {"P": _ints([9]), "N": _ints([9]), "input_range": (0, 7), "bits": 8}
    for name, comment, error, change in (
        ("bias-above", "the bias alone overflows", "out_of_range", {"bias": _ints([128])}),
        ("bias-below", "the bias alone overflows", "out_of_range", {"bias": _ints([-129])}),
        ("bits-1", "a width of 1", "invalid_parameter", {"bits": 1}),
        ("bits-63", "a width of 63", "invalid_parameter", {"bits": 63}),
        ("reversed", "x_lo above x_hi", "invalid_parameter", {"input_range": (3, 2)}),
        ("biases", "two biases for one row", "shape_mismatch", {"bias": _ints(1, 2)}),
    ):
        yield ask(f"refused-{name}", comment, error, **nine | change)


_PROJECTIONS = (
    ("published", [[3.0, 2.6, -3.0, 0.4]], [10], (0, 7), 6,
     "one side exceeds its budget, the other stays"),
    ("fits", [[0.5, 1.5, -2.5, 1.7]], None, (0, 3), 5, "nothing but rounding, half to even"),
    ("rounds-beyond", [[1.5, 1.5, 3.5]], None, (0, 1), 4,
     "the sum 6.5 fits, the rounded sum 8 does not"),
    ("reals-beyond", [[2.4, 2.4, 2.4, 0.3]], None, (0, 1), 4,
     "the sum 7.5 does not fit, the rounded sum 6 does"),
    ("thirds", [[1.5, 1.5, 0.5]], None, (0, 1), 3,
     "three equal remainders of 1/3, unequal in float64"),
    ("ties", [[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]], None, (0, 1), 3,
     "equal weights: the earlier gets the unit"),
    ("drops-small", [[9.0, 1.0, 1.0, 1.0, -0.5]], None, (0, 1), 4, "small weights go first"),
    ("signed-inputs", [[5.0, -4.5, 3.25, -0.75]], [2], (-4, 3), 6,
     "one common factor for both sides"),
    ("upper-end-binds", [[4.0, 3.5, -2.5]], [9], (-4, 3), 6,
     "one common factor, from the upper end"),
    ("lower-end-binds", [[4.0, 3.5, -2.5]], [-9], (-4, 3), 6,
     "one common factor, from the lower end"),
    ("float64", [[2.1, 1.1, 0.1]], [1], (0, 1), 3, "equal remainders in float64"),
    ("rows", [[7.0, 7.0], [1.0, -1.0], [-9.0, 2.5]], [0, 3, -7], (0, 2), 5,
     "a full row, a row that fits, a row below"),
    ("nothing-left", [[3.0, -3.0]], [7], (0, 1), 4, "a bias leaves no room above"),
    ("kernel", [[[[2.5, -1.5], [0.25, 3.5]]], [[[-4.5, 1.0], [2.0, -2.0]]]], None, (0, 3), 5,
     "a convolution: a row is a whole kernel"),
    ("large", [[2048.5, -2048.0, 2049.5]], None, (0, 1), 12, "weights of 12 bits"),
    ("tiny", [[2.5, 5e-324, 1.5, -5e-324]], None, (0, 1), 3, "a weight that is subnormal"),
)


def _projections() -> Iterator[Case]:
    ask = partial(_ask, "project")
    for name, weight, bias, input_range, bits, comment in _PROJECTIONS:
        yield ask(name, comment, weight=np.array(weight), input_range=input_range, bits=bits,
                  bias=None if bias is None else _ints(bias))
    yield ask("float32", "unequal remainders, of the same numbers in float32",
              weight=_floats([2.1, 1.1, 0.1]), bias=_ints([1]), input_range=(0, 1), bits=3)
    refuse = partial(ask, weight=np.array([[1.0]]), input_range=(0, 1))
    yield refuse("refused-nan", "NaN is no weight", "not_a_number",
                 weight=np.array([[1.0, np.nan]]), bits=4)
    yield refuse("refused-bias", "the bias alone overflows", "out_of_range",
                 bias=_ints([8]), bits=4)
    yield refuse("refused-bits", "a width of 1", "invalid_parameter", bits=1)
    yield refuse("refused-biases", "two biases for one row", "shape_mismatch",
                 bias=_ints(1, 2), bits=4)
# fmt: on


# fmt: off
def _residual() -> Values:
    return {
        "input_shape": [2],
        "input_format": _fmt(3, True),
        "nodes": [
            _linear_node("fc1", "input", [[2, -3], [1, 4]], _ints(-1, 2)),
            _node("act1", "requantize_thresholds", "fc1",
                  thresholds=_ints([[-3, 2, 7], [0, 5, 6]]), **_fmt(2, False)),
            _linear_node("fc2", "act1", [[5, -9], [-7, 60]], _ints(-3, 0)),
            _node("skip", "add", "fc1", "fc2", multipliers=(3, -1)),
            _node("join", "concat", "act1", "skip"),
            _linear_node("out", "join", [[1, -2, 3, -4], [-1, 5, 0, 2]]),
        ],
        "output": "out",
    }


def _image() -> Values:
    kernel, none = [[[[1, -2], [3, 0]]], [[[-1, 2], [0, 40]]]], ((0, 0), (0, 0))
    return {
        "input_shape": [1, 4, 4],
        "input_format": _fmt(3, False),
        "nodes": [
            _node("conv1", "conv2d", "input", weight=np.array(kernel), bias=_ints(2, -3),
                  stride=(1, 1), padding=((0, 1), (0, 1)), dilation=(1, 1), groups=1, pad_code=0),
            _node("act1", "requantize_thresholds", "conv1",
                  thresholds=_ints([[-2, 4, 9], [20, 60, 150]]), **_fmt(2, True)),
            _node("pool1", "max_pool2d", "act1", kernel=(2, 2), stride=(2, 2), padding=none),
            _node("square", "lookup", "pool1", table=_ints([[4, 1, 0, 1]]), lo=-2),
            _node("sums", "sum_pool2d", "square", kernel=(1, 2), stride=(1, 2), padding=none,
                  pad_code=0),
            _node("flat", "flatten", "sums"),
            _linear_node("fc", "flat", [[5, -6, 7, -8], [1, 30, -50, 2]], _ints(-5, 0)),
            _node("shape", "reshape", "fc", shape=(1, 2)),
        ],
        "output": "shape",
    }


def _decoder() -> Values:
    positions = np.arange(1, 24, 3).reshape(4, 2)[::-1].reshape(2, 2, 2)
    return {
        "input_shape": [1, 2, 3],
        "input_format": _fmt(4, True),
        "nodes": [
            _node("up", "conv_transpose2d", "input", weight=np.array([[[[2, -3], [5, 1]],
                  [[-1, 4], [0, -6]]]]), bias=_ints(-4, 9), stride=(2, 1), padding=((1, 0), (0, 2)),
                  output_padding=(1, 0), dilation=(1, 2), groups=1),
            _node("act", "requantize_thresholds", "up",
                  thresholds=_ints([[-20, -4, 7], [-9, 9, 30]]), **_fmt(2, True)),
            _node("shuffled", "gather", "act", index=positions, in_shape=(2, 4, 3), fill=0),
            _node("bordered", "gather", "shuffled", fill=-2, in_shape=(2, 2, 2),
                  index=np.pad(np.arange(8).reshape(2, 2, 2), ((0, 0), (1, 0), (0, 1)),
                               constant_values=-1)),
            _node("out", "conv_transpose2d", "bordered",
                  weight=np.array([[[[3]]], [[[-50]]]]), bias=None, stride=(1, 2),
                  padding=((0, 0), (0, 0)), output_padding=(0, 1), dilation=(1, 1), groups=2),
        ],
        "output": "out",
    }


def _small_networks() -> Iterator[Case]:
    """Hand-made programs: a residual, a branch, a small convolutional net, a decoder, a sum of two
    branches on a wide scale."""
    ask = partial(_ask, "network", network=_residual())
    yield ask("residual-skip", "a skip over two nodes, and a join of two earlier ones",
              codes=_ints([[-4, 3], [2, -1], [3, 3], [-4, -4], [0, 1]]))
    yield ask("residual-outside", "an input code outside the format", "out_of_range",
              codes=_ints([[4, 0]]))
    yield ask("image-small", "convolution, activation, pooling, table, sums and a dense layer",
              network=_image(), codes=np.arange(32).reshape(2, 1, 4, 4) * 5 % 8)
    yield ask("decoder-small", "transposed convolutions, values moved and a border between them",
              network=_decoder(), codes=np.arange(12).reshape(2, 1, 2, 3) * 7 % 16 - 8)
    yield ask("wide-small", "codes of 8 bits, rescaled to 32, added, rescaled to 16",
              network=describe(wide_network()),
              codes=_ints([[-128, 127, 3], [127, -128, -128], [5, -40, 77], [0, 0, 0]]))
    ask = partial(
        _ask, "predict", network=_residual(), zero_point=np.array(-1), rounding="half_even",
        output_scale=_floats(0.1, 0.7), output_offset=_floats(0.3, -1.1))
    yield ask("residual-doors", "float scales, an odd zero point, inputs at and near ties",
              scale=_single(0.3),
              x=_floats([-0.75, 0.45], [0.15, 1.35], [9.0, -9.0], [0.6, -0.45],
                        [0.75000006, 1.0500001]))
    yield ask("residual-dyadic", "a dyadic scale: exact ties", scale=_single(0.5),
              x=_floats([0.25, 0.75], [-0.25, 1.25], [-0.75, 99.0]))
# fmt: on


# fmt: off
def _realistic_networks() -> Iterator[Case]:
    """Networks as deployed ones are, on two samples each."""
    s, mobile, words = Stream(2, "realistic"), mobile_network(), words_network()
    images = s.tensor((2, 3, 7, 6), -128, 127)
    yield _ask("network", "mobile-int8", "8-bit codes with zero points, depthwise, ReLU6, a "
               "residual on a scale, averages", network=describe(mobile), codes=images)
    yield _ask("network", "words-int16", "16-bit activations, sums of 70 terms, a clip at 0",
               network=describe(words), codes=s.tensor((2, 70), -(2**15), 2**15 - 1))
    doors: Values = {"scale": _single(0.0235), "zero_point": np.array(INPUT_ZERO),
                     "rounding": "half_even", "output_scale": _single(0.00071),
                     "output_offset": _floats(0.5, -0.25, 0, 1, -3)}
    x = (s.tensor((2, 3, 7, 6), -1100, 1100) / 8 - INPUT_ZERO) * np.float64(doors["scale"])
    yield _ask("predict", "mobile-floats", "float images, some of them ties or beyond the ends",
               network=describe(mobile), x=x.astype(np.float32), **doors)
# fmt: on


def _trained_networks() -> Iterator[Case]:
    """Programs that were trained and saved (vectors/networks), with inputs from their domain."""
    for name, operation, arguments, comment in trained_cases(vectors_path() / "networks"):
        yield Case(name, operation, arguments, comment)
