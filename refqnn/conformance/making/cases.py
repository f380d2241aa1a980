"""The questions of the suite: written out here, or named by a seed in `chosen`.

Written ones are boundary expressions and data that must be refused.  An id says the same question
for ever; new ones are added, none is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from refqnn.conformance.making.chosen import CHOSEN
from refqnn.conformance.making.networks import trained_cases
from refqnn.conformance.making.samplers import sample
from refqnn.conformance.operations import OPERATIONS
from refqnn.conformance.suite import vectors_path
from refqnn.rounding import Rounding

__all__ = ["Case", "all_cases", "asked", "hand_made"]

Arguments = dict[str, Any]

NOT_MONOTONE = "thresholds that decrease"


@dataclass(frozen=True)
class Case:
    """A question.

    Args:
        id: immutable slug.
        operation: what is asked.
        arguments: by name.
        comment: what is special about it.
        error: for data that must be refused: the code.
    """

    id: str
    operation: str
    arguments: Arguments
    comment: str
    error: str | None = None

    @property
    def file(self) -> str:
        """The vector file: one per operation and important parameter."""
        return f"{self.operation}{self._variant()}.json"

    def _variant(self) -> str:
        a, name = self.arguments, self.operation
        if name == "network":
            return f"_{self.id.split('-')[1]}"
        if name == "predict":
            return f"_{self.id.split('-')[1]}"
        if name == "accumulate":
            return f"_{a['overflow']}"
        if name == "requantize_multiplier":
            return "_single" if a["first_rounding"] is None else "_double"
        if name == "quantize" and a["zero_point_first"]:
            return "_zero_point_first"
        if name in ("quantize", "requantize_scale", "requantize_shift"):
            return f"_{a['rounding']}"
        return ""

    @property
    def profiles(self) -> tuple[str, ...]:
        """Choices where tools legitimately differ."""
        a = self.arguments
        names = [a["rounding"]] if "rounding" in a else []
        if a.get("first_rounding") is not None:
            names += [a["first_rounding"], "double_rounding"]
        if a.get("zero_point_first"):
            names.append("zero_point_first")
        if a.get("precision") == "float64":
            names.append("float64")
        return tuple(dict.fromkeys(names))


def all_cases() -> list[Case]:
    """Every question, written ones first, by operation."""
    cases = [*hand_made(), *_searched()]
    order = list(OPERATIONS)
    return sorted(cases, key=lambda case: order.index(case.operation))


def _searched() -> Iterator[Case]:
    for operation, seeds in CHOSEN.items():
        for seed in seeds:
            yield asked(operation, seed)


def asked(operation: str, seed: int) -> Case:
    """The question of a seed."""
    arguments = sample(operation, seed)
    slug = operation.replace("_", "-")
    return Case(f"{slug}-{seed:04d}", operation, arguments, "chosen by search")


@lru_cache(maxsize=1)
def hand_made() -> tuple[Case, ...]:
    """The questions written out in this file, and the trained networks."""
    parts = (_rounding(), _formats(), _doors(), _requantize(), _sums(), _nodes(), _bounds(),
             _pruning(), _small_networks(), _trained_networks())  # fmt: skip
    return tuple(case for part in parts for case in part)


def _ints(*values: Any) -> Any:
    return np.array(values if len(values) != 1 else values[0])


def _floats(*values: Any, dtype: Any = np.float32) -> Any:
    return np.array(values, dtype=dtype)


def _rounding() -> Iterator[Case]:
    for mode in Rounding:
        slug = mode.value.replace("_", "-")
        yield Case(
            f"round-ratio-halves-{slug}",
            "round_ratio",
            {"numerator": np.arange(-7, 8), "denominator": 2, "rounding": mode.value},
            "every tie from -7/2 to 7/2",
        )
        yield Case(
            f"round-ratio-thirds-{slug}",
            "round_ratio",
            {"numerator": np.arange(-7, 8), "denominator": 3, "rounding": mode.value},
            "no ties; both sides of the half",
        )
    for mode_name in ("half_even", "half_up"):
        wide = [2**53 + 1, -(2**53) - 1, 2**62 + 1, 2**63 - 1, -(2**63), 2**64 + 2]
        yield Case(
            f"round-ratio-wide-{mode_name.replace('_', '-')}",
            "round_ratio",
            {"numerator": np.array(wide, dtype=object), "denominator": 2, "rounding": mode_name},
            "ties beyond the integers of float64 and of int64",
        )
    for d in (0, -2):
        yield Case(
            f"round-ratio-denominator-{'zero' if d == 0 else 'negative'}",
            "round_ratio",
            {"numerator": _ints(1, 2), "denominator": d, "rounding": "half_even"},
            "a denominator that is not positive",
            "invalid_parameter",
        )


def _fmt(bits: int, signed: bool, narrow: bool = False) -> Arguments:
    return {"bits": bits, "signed": signed, "narrow": narrow}


def _formats() -> Iterator[Case]:
    for bits in (1, 2, 8, 31, 32):
        for signed in (False, True):
            for narrow in (False, True) if bits > 1 else (False,):
                name = f"{bits}-{'signed' if signed else 'unsigned'}{'-narrow' if narrow else ''}"
                yield Case(
                    f"integer-format-{name}",
                    "integer_format",
                    _fmt(bits, signed, narrow),
                    "the ends of a format",
                )
    for name, fmt in (
        ("0", _fmt(0, False)),
        ("33", _fmt(33, True)),
        ("1-narrow", _fmt(1, False, True)),
    ):
        yield Case(
            f"integer-format-refused-{name}",
            "integer_format",
            fmt,
            "a width that no format has",
            "invalid_parameter",
        )
    for name, fmt, codes in (
        ("above", _fmt(3, False), [0, 8]),
        ("below", _fmt(3, False), [-1, 0]),
        ("above-signed", _fmt(3, True), [3, 4]),
        ("below-signed", _fmt(3, True), [-4, -5]),
        ("narrow-lowest", _fmt(3, True, True), [-3, -4]),
        ("narrow-highest", _fmt(3, False, True), [6, 7]),
    ):
        yield Case(
            f"check-codes-{name}",
            "check_codes",
            {**fmt, "codes": _ints(codes)},
            "one code outside the format",
            "out_of_range",
        )


def _door(rounding: str = "half_even", **changes: Any) -> Arguments:
    return {
        **_fmt(4, True),
        "scale": np.float32(0.5).reshape(()),
        "zero_point": np.array(0),
        "rounding": rounding,
        "axis": None,
        "precision": "float32",
        "zero_point_first": False,
        "x": _floats(-1.25, -0.75, -0.25, 0.25, 0.75, 1.25),
    } | changes


def _doors() -> Iterator[Case]:
    for mode in Rounding:
        yield Case(
            f"quantize-ties-{mode.value.replace('_', '-')}",
            "quantize",
            _door(mode.value),
            "ties of both signs and parities on a dyadic scale",
        )
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    yield Case(
        "quantize-just-below-half",
        "quantize",
        _door("half_up", scale=np.float32(1).reshape(()), x=_floats(below_half, -below_half)),
        "x + 0.5 rounds up to 1 in float32",
    )
    yield Case(
        "quantize-saturates",
        "quantize",
        _door(x=_floats(3e9, -3e9, np.inf, -np.inf, 3.75, -4.25, 70.0, -70.0)),
        "beyond int8, int16, int32, and infinite",
    )
    yield Case(
        "quantize-odd-zero-point",
        "quantize",
        _door(zero_point=np.array(3), **_fmt(4, False)),
        "round, then add: an odd zero point turns the ties of the wrong order round",
    )
    yield Case(
        "quantize-zero-point-first-odd",
        "quantize",
        _door(zero_point=np.array(3), zero_point_first=True, **_fmt(4, False)),
        "add, then round",
    )
    yield Case(
        "quantize-clip-after-zero-point",
        "quantize",
        _door(zero_point=np.array(-5), x=_floats(6.0, 4.0, -1.5)),
        "beyond the format before the zero point is added, inside after it",
    )
    tiny = np.float32(2.0**-140)
    yield Case(
        "quantize-subnormal",
        "quantize",
        _door(scale=tiny.reshape(()), x=_floats(3 * tiny, -5 * tiny)),
        "x and scale are subnormal",
    )
    yield Case(
        "quantize-float64-x",
        "quantize",
        _door(
            x=_floats(0.25 + 2.0**-40, -0.25 - 2.0**-40, 0.75 - 2.0**-40, dtype=np.float64),
        ),
        "x is rounded to float32 first, where it is a tie",
    )
    for name, change, error in (
        ("nan", {"x": _floats(0.5, np.nan)}, "not_a_number"),
        ("scale-zero", {"scale": np.float32(0).reshape(())}, "invalid_parameter"),
        ("scale-negative", {"scale": np.float32(-0.5).reshape(())}, "invalid_parameter"),
        ("scale-infinite", {"scale": np.float32(np.inf).reshape(())}, "invalid_parameter"),
        ("zero-point-outside", {"zero_point": np.array(8)}, "out_of_range"),
        ("channels", {"scale": _floats(1, 2), "axis": 0}, "shape_mismatch"),
    ):
        yield Case(
            f"quantize-refused-{name}", "quantize", _door(**change), "must be refused", error
        )
    yield Case(
        "binarize-signs",
        "binarize",
        {"x": _floats(0.0, -0.0, 0.25, -0.25, np.inf, -np.inf)},
        "both zeros are +1",
    )
    yield Case(
        "binarize-smallest",
        "binarize",
        {"x": np.array([5e-324, -5e-324, 1e-60, -1e-60])},
        "smaller than any float32",
    )
    yield Case(
        "binarize-nan", "binarize", {"x": _floats(1.0, np.nan)}, "NaN has no sign", "not_a_number"
    )
    door = {k: v for k, v in _door().items() if k not in ("rounding", "zero_point_first", "x")}
    wide = {**door, **_fmt(32, True)}
    yield Case(
        "dequantize-wide-difference",
        "dequantize",
        {**wide, "zero_point": np.array(-(2**31)), "codes": _ints(2**31 - 1, 2**24 + 1, 0)},
        "code - zero_point needs 33 bits",
    )
    yield Case(
        "dequantize-cancels",
        "dequantize",
        {**wide, "zero_point": np.array(2**30 + 1), "codes": _ints(2**30 + 2, 2**30, 2**30 + 65)},
        "the difference is small, both terms are not floats",
    )
    yield Case(
        "dequantize-outside",
        "dequantize",
        {**door, "codes": _ints(7, 8)},
        "a code outside the format",
        "out_of_range",
    )


def _requantize() -> Iterator[Case]:
    two_bits = _fmt(2, False)
    yield Case(
        "requantize-thresholds-sentinels",
        "requantize_thresholds",
        {
            **two_bits,
            "thresholds": np.array([[-(2**63), 5, 2**63 - 1], [-3, -3, 4]]),
            "acc": np.array([[4, -4], [5, -3], [6, 4], [2**62, -(2**62)]]),
        },
        "a code always passed, one never reached, and two at the same threshold",
    )
    yield Case(
        "requantize-thresholds-decreasing",
        "requantize_thresholds",
        {**two_bits, "thresholds": np.array([[1, 3, 2]]), "acc": np.array([[2]])},
        NOT_MONOTONE,
        "invalid_parameter",
    )
    yield Case(
        "requantize-thresholds-too-few",
        "requantize_thresholds",
        {**two_bits, "thresholds": np.array([[1, 3]]), "acc": np.array([[2]])},
        "one threshold too few for the format",
        "shape_mismatch",
    )
    for mode in Rounding:
        slug = mode.value.replace("_", "-")
        acc = np.arange(-14, 15)[:, None]
        base = {**_fmt(4, True), "acc": acc, "zero_point": 1, "rounding": mode.value}
        yield Case(
            f"requantize-shift-ties-{slug}",
            "requantize_shift",
            {**base, "shift": 2, "offset": np.array(0)},
            "every accumulator of [-14, 14], shifted by 2",
        )
        yield Case(
            f"requantize-scale-ties-{slug}",
            "requantize_scale",
            {
                **base,
                "scale_in": np.float32(0.25).reshape(()),
                "scale_out": np.float32(0.5).reshape(()),
                "bias": np.float32(0).reshape(()),
                "clip": None,
            },
            "every accumulator of [-14, 14], halved",
        )
        yield Case(
            f"requantize-multiplier-ties-{slug}",
            "requantize_multiplier",
            {
                **base,
                "mantissa": np.array(3),
                "shift": np.array(3),
                "first_rounding": None,
                "first_shift": 0,
            },
            "every accumulator of [-14, 14], times 3/8",
        )
        yield Case(
            f"requantize-multiplier-double-{slug}",
            "requantize_multiplier",
            {
                **base,
                "mantissa": np.array(5),
                "shift": np.array(5),
                "first_rounding": mode.value,
                "first_shift": 3,
            },
            "rounded at 3 bits, then at 2 more",
        )
    yield Case(
        "requantize-shift-zero",
        "requantize_shift",
        {
            **_fmt(3, True),
            "acc": np.arange(-5, 6)[:, None],
            "shift": 0,
            "offset": np.array(0),
            "zero_point": 0,
            "rounding": "half_up",
        },
        "no bit is dropped, so there is no half to add",
    )
    yield Case(
        "requantize-shift-int32-edge",
        "requantize_shift",
        {
            **_fmt(8, True),
            "acc": _ints([[2**31 - 1], [-(2**31)], [2**31 - 2**23]]),
            "shift": 24,
            "offset": np.array(0),
            "zero_point": 0,
            "rounding": "half_up",
        },
        "acc + half leaves 32 bits",
    )
    thirds = {
        **_fmt(4, False),
        "acc": np.arange(1, 16)[:, None],
        "bias": np.float64(0).reshape(()),
        "zero_point": 0,
        "clip": None,
        "rounding": "floor",
    }
    for name, s_in, s_out, comment in (
        ("below", 1 / 3, 1.0, "3 * (1/3 in float64) is below 1 and rounds to 1 in float64"),
        ("exact", 1.0, 3.0, "3 * 1 / 3 is 1; 3 * (1 / 3 in float64) is below"),
    ):
        scales = {"scale_in": np.array(s_in), "scale_out": np.array(s_out)}
        yield Case(
            f"requantize-scale-thirds-{name}", "requantize_scale", {**thirds, **scales}, comment
        )
    plain = {"bias": np.float32(0).reshape(()), "clip": None, "rounding": "half_even"}
    for name, fmt, sums, s_in, s_out, zero_point, comment in (
        ("odd-zero-point", _fmt(8, False), range(-7, 8), 0.5, 1, 3,
         "ties and an odd zero point: the order of rounding and adding shows"),
        ("beyond-int32", _fmt(8, True), (2**20, -(2**20), 5), 2.0**12, 1, -1,
         "quotients of 2^32 and -2^32, cut after they are rounded"),
        ("float32-product", _fmt(8, True), (185, -185, 184), 0.023, 0.37, 0,
         "11.49999...: the float32 quotient of the scales makes a tie of it"),
        ("float32-accumulator", _fmt(8, True), (2**24 + 1, -(2**24) - 1, 2**24), 2.0**-25, 1, 0,
         "just beyond a half; no float32 holds the accumulator"),
    ):  # fmt: skip
        arguments = {
            **fmt,
            **plain,
            "acc": np.array([[v] for v in sums]),
            "scale_in": np.float32(s_in).reshape(()),
            "scale_out": np.float32(s_out).reshape(()),
            "zero_point": zero_point,
        }
        yield Case(f"requantize-scale-{name}", "requantize_scale", arguments, comment)
    yield Case(
        "requantize-scale-channels",
        "requantize_scale",
        {
            **_fmt(8, False),
            **plain,
            "acc": np.arange(-9, 9).reshape(3, 3, 2),
            "scale_in": _floats(0.5, 0.25, 2),
            "scale_out": np.float32(1).reshape(()),
            "bias": _floats(1, -0.75, 4),
            "zero_point": 128,
        },
        "a scale and a bias for each channel",
    )
    yield Case(
        "requantize-multiplier-62-bits",
        "requantize_multiplier",
        {
            **_fmt(3, True),
            "acc": _ints([[2**31 - 1], [1 - 2**31], [2**31]]),
            "mantissa": np.array(2**31 + 1),
            "shift": np.array(62),
            "zero_point": 0,
            "rounding": "floor",
            "first_rounding": None,
            "first_shift": 0,
        },
        "the product 2^62 - 1 is no float64",
    )
    yield Case(
        "requantize-scale-zero",
        "requantize_scale",
        {
            **two_bits,
            "acc": _ints([[1]]),
            "scale_in": np.float32(0.5).reshape(()),
            "scale_out": np.float32(0).reshape(()),
            "bias": np.float32(0).reshape(()),
            "zero_point": 0,
            "clip": None,
            "rounding": "half_even",
        },
        "a scale of 0",
        "invalid_parameter",
    )
    for name, shift, mantissa, error in (
        ("shift-63", 63, 1, "invalid_parameter"),
        ("mantissa-zero", 1, 0, "invalid_parameter"),
    ):
        yield Case(
            f"requantize-multiplier-{name}",
            "requantize_multiplier",
            {
                **two_bits,
                "acc": _ints([[1]]),
                "mantissa": np.array(mantissa),
                "shift": np.array(shift),
                "zero_point": 0,
                "rounding": "half_up",
                "first_rounding": None,
                "first_shift": 0,
            },
            "outside the declared range",
            error,
        )


def _sums() -> Iterator[Case]:
    plain = {"x_zero_point": 0, "weight_zero_point": np.array(0)}
    for power in (7, 15, 23, 24, 31, 53):
        half = 2 ** (power - 1)
        yield Case(
            f"linear-passes-2-{power}",
            "linear",
            {
                "weight": _ints([[1, 1, 1, 0], [-1, -1, -1, 0], [1, 1, 0, -1]]),
                "bias": None,
                "x": _ints([[half, half, 1, half]]),
                **plain,
            },
            f"2^{power} + 1, its negative, and a sum that passes 2^{power} in the middle only",
        )
    yield Case(
        "linear-zero-points",
        "linear",
        {
            "weight": _ints([[3, 250, 7], [128, 0, 255]]),
            "bias": _ints(-300, 40000),
            "x": _ints([[0, 200, 255], [9, 8, 3]]),
            "x_zero_point": 9,
            "weight_zero_point": _ints(5, 128),
        },
        "unsigned 8-bit codes with a zero point on both sides",
    )
    yield Case(
        "linear-shape",
        "linear",
        {"weight": _ints([[1, 2]]), "bias": None, "x": _ints([[1, 2, 3]]), **plain},
        "three inputs for two weights",
        "shape_mismatch",
    )
    order = {
        "weight": _ints([[1, 1, -1, -1]]),
        "x": _ints([[7, 4, 7, 3]]),
        "accumulator_bits": 4,
        "accumulator_signed": True,
    }
    for overflow in ("wrap", "saturate"):
        for when in ("step", "end"):
            for direction in ("forward", "reverse", "bias_first"):
                yield Case(
                    f"accumulate-{overflow}-{when}-{direction.replace('_', '-')}",
                    "accumulate",
                    {**order, "bias": _ints([-6]), "overflow": overflow, "when": when,
                     "order": direction},
                    "overflows in the middle, not at the end",
                )  # fmt: skip
    for bits in (0, 65):
        yield Case(
            f"accumulate-bits-{bits}",
            "accumulate",
            {**order, "bias": None, "overflow": "wrap", "when": "end", "order": "forward",
             "accumulator_bits": bits},
            "a width that no accumulator has",
            "invalid_parameter",
        )  # fmt: skip


def _conv(**changes: Any) -> Arguments:
    return {
        "weight": np.arange(1, 13).reshape(2, 1, 2, 3) - 5,
        "bias": _ints(10, -10),
        "stride": (1, 2),
        "padding": ((1, 0), (0, 2)),
        "dilation": (1, 1),
        "groups": 1,
        "pad_code": 3,
        "x": np.arange(20).reshape(1, 1, 4, 5) % 7,
    } | changes


def _nodes() -> Iterator[Case]:
    yield Case(
        "conv2d-asymmetric",
        "conv2d",
        _conv(),
        "kernel, stride and padding differ in height and width; padded with a zero point",
    )
    yield Case(
        "conv2d-groups",
        "conv2d",
        _conv(
            weight=np.arange(24).reshape(4, 2, 1, 3) - 11,
            bias=_ints(1, 2, 3, 4),
            groups=2,
            x=np.arange(32).reshape(1, 4, 2, 4) % 11 - 5,
        ),
        "two groups of two channels",
    )
    yield Case(
        "conv2d-depthwise-dilated",
        "conv2d",
        _conv(
            weight=np.arange(12).reshape(3, 1, 2, 2) - 6,
            bias=None,
            groups=3,
            dilation=(2, 1),
            x=np.arange(36).reshape(1, 3, 4, 3) % 5,
        ),
        "a kernel per channel, dilated vertically",
    )
    yield Case(
        "conv2d-window-too-large",
        "conv2d",
        _conv(x=np.ones((1, 1, 4, 1), dtype=np.int64), padding=((0, 0), (0, 0))),
        "a kernel wider than the image",
        "shape_mismatch",
    )
    yield Case(
        "conv2d-channels",
        "conv2d",
        _conv(x=np.ones((1, 2, 4, 5), dtype=np.int64)),
        "two channels for a kernel of one",
        "shape_mismatch",
    )
    yield Case(
        "conv1d-asymmetric",
        "conv1d",
        {
            "weight": _ints([[[1, -2, 4]], [[3, 0, -5]]]),
            "bias": _ints(7, -7),
            "stride": (2,),
            "padding": ((2, 1),),
            "dilation": (2,),
            "groups": 1,
            "pad_code": 1,
            "x": _ints([[[1, 2, 4, 8, 16, 32, 64]]]),
        },
        "stride, dilation and unequal padding",
    )
    negative = -np.arange(1, 13).reshape(1, 1, 3, 4)
    pool = {"kernel": (2, 3), "stride": (1, 2), "padding": ((1, 0), (0, 1))}
    yield Case("max-pool2d-negative", "max_pool2d", {"x": negative, **pool}, "all negative, padded")
    yield Case(
        "max-pool2d-very-negative",
        "max_pool2d",
        {"x": negative - 2**40, **pool},
        "below the lowest 32-bit integer",
    )
    yield Case(
        "max-pool2d-padding",
        "max_pool2d",
        {"x": negative, **pool, "padding": ((2, 0), (0, 0))},
        "windows wholly in the padding",
        "invalid_parameter",
    )
    yield Case(
        "sum-pool2d-padded",
        "sum_pool2d",
        {"x": negative, **pool, "pad_code": 5},
        "padded with a zero point",
    )
    yield Case(
        "global-sum-pool-rows",
        "global_sum_pool",
        {"x": np.arange(30).reshape(1, 2, 3, 5) - 4},
        "more columns than rows",
    )
    for power in (53, 62):
        yield Case(
            f"global-sum-pool-passes-2-{power}",
            "global_sum_pool",
            {"x": np.full((1, 1, 1, 3), 2**power, dtype=np.int64) + _ints(0, 1, 0)},
            "sums beyond the integers of float64, and of int64",
        )
    yield Case(
        "add-shapes",
        "add",
        {"operands": [_ints([[1, 2]]), _ints([[1]])], "multipliers": None},
        "shapes that only broadcasting would join",
        "shape_mismatch",
    )
    yield Case(
        "add-subtract",
        "add",
        {"operands": [_ints([[5, 6]]), _ints([[9, 1]]), _ints([[100, 50]])],
         "multipliers": (1, -4, 130)},
        "a negative multiplier, and one beyond 8 bits",
    )  # fmt: skip
    yield Case(
        "concat-shapes",
        "concat",
        {"operands": [np.ones((1, 2, 2), dtype=int), np.ones((1, 2, 3), dtype=int)]},
        "shapes that differ beyond the channels",
        "shape_mismatch",
    )
    yield Case(
        "concat-same-channels",
        "concat",
        {"operands": [np.arange(4).reshape(1, 2, 2), np.arange(4, 8).reshape(1, 2, 2)]},
        "two operands of the same shape",
    )
    yield Case(
        "flatten-image",
        "flatten",
        {"x": np.arange(24).reshape(2, 2, 3, 2)},
        "channels, rows, columns",
    )
    yield Case(
        "reshape-size",
        "reshape",
        {"x": np.arange(6).reshape(1, 6), "shape": (4,)},
        "four places for six values",
        "shape_mismatch",
    )
    table = {"table": _ints([[4, 1, 0, 1, 4], [7, -1, 2, 9, 5]]), "lo": -2}
    yield Case(
        "lookup-every-entry",
        "lookup",
        {**table, "x": _ints([[v, -v] for v in range(-2, 3)])},
        "every column of both channels",
    )
    for name, x in (("below", -3), ("above", 3)):
        yield Case(
            f"lookup-{name}",
            "lookup",
            {**table, "x": _ints([[0, x]])},
            "one column beyond the table",
            "out_of_range",
        )


def _bounds() -> Iterator[Case]:
    for power in (1, 7, 8, 21, 24, 31, 48, 49, 53, 63, 64):
        for name, lo, hi in (
            ("below", 0, 2**power - 1),
            ("at", 0, 2**power),
            ("negative", -(2**power), 2**power - 1),
            ("more-negative", -(2**power) - 1, 0),
            ("up-to", -(2**power) + 1, 2**power),
        ):
            yield Case(
                f"bit-widths-{power}-{name}",
                "bit_widths",
                {"lo": lo, "hi": hi},
                f"at the edge of {power} bits",
            )
    for lo, hi in ((0, 0), (-1, -1), (-1, 0), (5, 5), (100, 131), (-96, 30)):
        yield Case(
            f"bit-widths-from-{lo}-to-{hi}".replace("--", "-minus-"),
            "bit_widths",
            {"lo": lo, "hi": hi},
            "small ranges",
        )
    yield Case(
        "bit-widths-reversed",
        "bit_widths",
        {"lo": 3, "hi": 2},
        "lo above hi",
        "invalid_parameter",
    )
    yield Case(
        "accumulator-range-signs",
        "accumulator_range",
        {
            "weight": _ints([[3, -2, 5], [-1, -1, -1]]),
            "bias": _ints(-7, 4),
            "x_lo": _ints(-4, 1, -3),
            "x_hi": _ints(2, 6, -1),
        },
        "inputs that are negative, positive, and both",
    )
    for name, values in (
        ("published", (8, 2, 2)),
        ("seven-bits", (7, 2, 2)),
        ("sixteen-bits", (16, 2, 2)),
        ("one-bit", (5, 1, 1)),
        ("exact", (4, 2, 1)),
        ("none", (2, 3, 3)),
        ("sixty-four", (64, 1, 1)),
        ("sixty-three", (63, 1, 1)),
        ("fifty-four", (54, 1, 2)),
        ("thirty-two", (32, 1, 2)),
    ):
        names = ("n_max", "n_weights", "n_inputs")
        yield Case(f"omega-{name}", "omega", dict(zip(names, values)), "unsigned, no bias")
    yield Case(
        "omega-zero-bits",
        "omega",
        {"n_max": 8, "n_weights": 0, "n_inputs": 2},
        "weights of no bits",
        "invalid_parameter",
    )
    for name, fan_in, weight, comment in (
        ("ties", 2, [[3, -3, 3, 3], [1, 0, -1, 1]], "equal magnitudes: the earlier stays"),
        ("none", 0, [[1, -2], [0, 3]], "nothing stays"),
        ("all", 5, [[1, 0], [-2, 3]], "more than a row has; zeros stay too"),
        ("full-row", 2, [[9, 8, 7], [1, 0, -2]], "a row, not the layer"),
        ("float32", 1, [[2**24, -(2**24) - 1], [2**30, 2**30 + 1]], "equal in float32"),
        ("int8", 1, [[127, -128], [-1, 128]], "|-128| in 8 bits"),
    ):
        arguments = {"weight": _ints(*weight), "fan_in": fan_in}
        yield Case(f"fan-in-mask-{name}", "fan_in_mask", arguments, comment)
    yield Case(
        "fan-in-mask-negative",
        "fan_in_mask",
        {"weight": _ints([1, 2, 3], [3, 0, 1]), "fan_in": -1},
        "a negative fan-in",
        "invalid_parameter",
    )
    ranges = ("weight_range", "input_range", "bias_range", "accumulator_range")
    for name, pairs in (
        ("signed-weights", ((-2, 1), (0, 3), (0, 0), (-128, 127))),
        ("narrow-weights", ((-1, 1), (0, 3), (-5, 5), (-128, 127))),
        ("lower-end-binds", ((-2, 1), (0, 3), (-20, 0), (-128, 127))),
        ("upper-end-binds", ((-1, 3), (0, 3), (0, 20), (-128, 127))),
        ("both-negative", ((-3, -1), (-4, 2), (0, 0), (-128, 127))),
        ("exact-power", ((-1, 0), (0, 1), (0, 0), (-128, 127))),
        ("unlimited", ((0, 0), (0, 3), (0, 0), (-128, 127))),
        ("wide", ((-1, 1), (-1, 1), (0, 0), (-(2**60), 2**60 - 1))),
        ("wide-odd", ((0, 1), (0, 3), (0, 5), (0, 2**62 - 1))),
    ):
        yield Case(
            f"max-fan-in-{name}", "max_fan_in", dict(zip(ranges, pairs)), "four inclusive ranges"
        )
    yield Case(
        "max-fan-in-bias-outside",
        "max_fan_in",
        dict(zip(ranges, ((-1, 1), (0, 1), (0, 200), (-128, 127)))),
        "the bias alone overflows",
        "out_of_range",
    )


def _pruning() -> Iterator[Case]:
    def budgets(P: Any, N: Any, bias: Any, input_range: Any, bits: int) -> Arguments:
        return {"P": P, "N": N, "bias": bias, "input_range": input_range, "bits": bits}

    wants = _ints(18, 30, 1, 40), _ints(18, 1, 30, 40)
    for name, input_range, comment in (
        ("unsigned", (0, 7), "each side has its own end of the accumulator"),
        ("nonpositive", (-7, 0), "the ends change places"),
        ("signed", (-4, 3), "both sides share both ends: one common factor"),
        ("bipolar", (-1, 1), "P + N against both ends"),
        ("positive", (2, 5), "a range without 0 counts as if it had it"),
        ("negative", (-5, -2), "a range below 0 counts as if it had it"),
        ("zero", (0, 0), "inputs that are always 0 leave everything as it is"),
    ):
        arguments = budgets(*wants, _ints(3, -20, 0, 0), input_range, 8)
        yield Case(f"sign-budgets-{name}", "sign_budgets", arguments, comment)
    half = 2**61
    for name, bias in (("highest", half - 1), ("lowest", -half)):
        yield Case(
            f"sign-budgets-62-bits-{name}",
            "sign_budgets",
            budgets(_ints([2**55 + 1]), _ints([2**54 + 3]), _ints([bias]), (-3, 5), 62),
            "the bias leaves room at one end only",
        )
    yield Case(
        "sign-budgets-wide",
        "sign_budgets",
        budgets(_ints([2**60 + 1]), _ints([2**60 - 1]), None, (-3, 5), 62),
        "sums, products and rooms that are no float64",
    )
    yield Case(
        "sign-budgets-two-bits",
        "sign_budgets",
        budgets(_ints([3]), _ints([3]), None, (0, 1), 2),
        "[-2, 1]: one more below than above",
    )
    for name, change, comment, error in (
        ("bias-above", {"bias": _ints([128])}, "the bias alone overflows", "out_of_range"),
        ("bias-below", {"bias": _ints([-129])}, "the bias alone overflows", "out_of_range"),
        ("bits-1", {"bits": 1}, "a width of 1", "invalid_parameter"),
        ("bits-63", {"bits": 63}, "a width of 63", "invalid_parameter"),
        ("reversed", {"input_range": (3, 2)}, "x_lo above x_hi", "invalid_parameter"),
        ("biases", {"bias": _ints(1, 2)}, "two biases for one row", "shape_mismatch"),
    ):
        arguments = budgets(_ints([9]), _ints([9]), None, (0, 7), 8) | change
        yield Case(f"sign-budgets-refused-{name}", "sign_budgets", arguments, comment, error)

    def projection(weight: Any, bias: Any, input_range: Any, bits: int) -> Arguments:
        return {
            "weight": np.array(weight, dtype=np.float64),
            "bias": bias,
            "input_range": input_range,
            "bits": bits,
        }

    for name, given, comment in (
        ("published", ([[3.0, 2.6, -3.0, 0.4]], _ints([10]), (0, 7), 6),
         "one side exceeds its budget, the other stays"),
        ("fits", ([[0.5, 1.5, -2.5, 1.7]], None, (0, 3), 5), "nothing but rounding, half to even"),
        ("rounds-beyond", ([[1.5, 1.5, 3.5]], None, (0, 1), 4),
         "the sum 6.5 fits, the rounded sum 8 does not"),
        ("reals-beyond", ([[2.4, 2.4, 2.4, 0.3]], None, (0, 1), 4),
         "the sum 7.5 does not fit, the rounded sum 6 does"),
        ("thirds", ([[1.5, 1.5, 0.5]], None, (0, 1), 3),
         "three equal remainders of 1/3, unequal in float64"),
        ("ties", ([[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]], None, (0, 1), 3),
         "equal weights: the earlier gets the unit"),
        ("drops-small", ([[9.0, 1.0, 1.0, 1.0, -0.5]], None, (0, 1), 4), "small weights go first"),
        ("signed-inputs", ([[5.0, -4.5, 3.25, -0.75]], _ints([2]), (-4, 3), 6),
         "one common factor for both sides"),
        ("upper-end-binds", ([[4.0, 3.5, -2.5]], _ints([9]), (-4, 3), 6),
         "one common factor, from the upper end"),
        ("lower-end-binds", ([[4.0, 3.5, -2.5]], _ints([-9]), (-4, 3), 6),
         "one common factor, from the lower end"),
        ("float64", ([[2.1, 1.1, 0.1]], _ints([1]), (0, 1), 3), "equal remainders in float64"),
        ("rows", ([[7.0, 7.0], [1.0, -1.0], [-9.0, 2.5]], _ints(0, 3, -7), (0, 2), 5),
         "a full row, a row that fits, a row below"),
        ("nothing-left", ([[3.0, -3.0]], _ints([7]), (0, 1), 4), "a bias leaves no room above"),
        ("kernel", ([[[[2.5, -1.5], [0.25, 3.5]]], [[[-4.5, 1.0], [2.0, -2.0]]]], None, (0, 3), 5),
         "a convolution: a row is a whole kernel"),
        ("large", ([[2048.5, -2048.0, 2049.5]], None, (0, 1), 12),
         "weights of 12 bits"),
        ("tiny", ([[2.5, 5e-324, 1.5, -5e-324]], None, (0, 1), 3), "a weight that is subnormal"),
    ):  # fmt: skip
        yield Case(f"project-{name}", "project", projection(*given), comment)
    yield Case(
        "project-float32",
        "project",
        projection([[2.1, 1.1, 0.1]], _ints([1]), (0, 1), 3)
        | {"weight": np.array([[2.1, 1.1, 0.1]], dtype=np.float32)},
        "unequal remainders, of the same numbers in float32",
    )
    for name, given, comment, error in (
        ("nan", ([[1.0, np.nan]], None, (0, 1), 4), "NaN is no weight", "not_a_number"),
        ("bias", ([[1.0]], _ints([8]), (0, 1), 4), "the bias alone overflows", "out_of_range"),
        ("bits", ([[1.0]], None, (0, 1), 1), "a width of 1", "invalid_parameter"),
        ("biases", ([[1.0]], _ints(1, 2), (0, 1), 4), "two biases for one row", "shape_mismatch"),
    ):
        yield Case(f"project-refused-{name}", "project", projection(*given), comment, error)


def _node(name: str, operation: str, *inputs: str, **parameters: Any) -> Arguments:
    return {
        "name": name,
        "operation": operation,
        "inputs": list(inputs),
        "parameters": parameters,
    }


def _linear_node(name: str, source: str, weight: Any, bias: Any = None) -> Arguments:
    return _node(
        name,
        "linear",
        source,
        weight=np.array(weight),
        bias=bias,
        x_zero_point=0,
        weight_zero_point=np.array(0),
    )


def _small_networks() -> Iterator[Case]:
    """Hand-made programs: a residual, a branch, a small convolutional net."""
    steps = np.array([[-3, 2, 7], [0, 5, 6]])
    residual = {
        "input_shape": [2],
        "input_format": _fmt(3, True),
        "nodes": [
            _linear_node("fc1", "input", [[2, -3], [1, 4]], _ints(-1, 2)),
            _node("act1", "requantize_thresholds", "fc1", thresholds=steps, **_fmt(2, False)),
            _linear_node("fc2", "act1", [[5, -9], [-7, 60]], _ints(-3, 0)),
            _node("skip", "add", "fc1", "fc2", multipliers=(3, -1)),
            _node("join", "concat", "act1", "skip"),
            _linear_node("out", "join", [[1, -2, 3, -4], [-1, 5, 0, 2]]),
        ],
        "output": "out",
    }
    codes = _ints([[-4, 3], [2, -1], [3, 3], [-4, -4], [0, 1]])
    yield Case(
        "network-residual-skip",
        "network",
        {"network": residual, "codes": codes},
        "a skip over two nodes, and a join of two earlier ones",
    )
    yield Case(
        "network-residual-outside",
        "network",
        {"network": residual, "codes": _ints([[4, 0]])},
        "an input code outside the format",
        "out_of_range",
    )
    kernel = np.array([[[[1, -2], [3, 0]]], [[[-1, 2], [0, 40]]]])
    image = {
        "input_shape": [1, 4, 4],
        "input_format": _fmt(3, False),
        "nodes": [
            _node("conv1", "conv2d", "input", weight=kernel, bias=_ints(2, -3), stride=(1, 1),
                  padding=((0, 1), (0, 1)), dilation=(1, 1), groups=1, pad_code=0),
            _node("act1", "requantize_thresholds", "conv1",
                  thresholds=_ints([[-2, 4, 9], [20, 60, 150]]), **_fmt(2, True)),
            _node("pool1", "max_pool2d", "act1", kernel=(2, 2), stride=(2, 2),
                  padding=((0, 0), (0, 0))),
            _node("square", "lookup", "pool1", table=_ints([[4, 1, 0, 1]]), lo=-2),
            _node("sums", "sum_pool2d", "square", kernel=(1, 2), stride=(1, 2),
                  padding=((0, 0), (0, 0)), pad_code=0),
            _node("flat", "flatten", "sums"),
            _linear_node("fc", "flat", [[5, -6, 7, -8], [1, 30, -50, 2]], _ints(-5, 0)),
            _node("shape", "reshape", "fc", shape=(1, 2)),
        ],
        "output": "shape",
    }  # fmt: skip
    pixels = np.arange(32).reshape(2, 1, 4, 4) * 5 % 8
    yield Case(
        "network-image-small",
        "network",
        {"network": image, "codes": pixels},
        "convolution, activation, pooling, table, sums and a dense layer",
    )
    doors = {
        "scale": np.float32(0.3).reshape(()),
        "zero_point": np.array(-1),
        "rounding": "half_even",
        "output_scale": _floats(0.1, 0.7),
        "output_offset": _floats(0.3, -1.1),
    }
    values = [[-0.75, 0.45], [0.15, 1.35], [9.0, -9.0], [0.6, -0.45], [0.75000006, 1.0500001]]
    yield Case(
        "predict-residual-doors",
        "predict",
        {"network": residual, **doors, "x": np.array(values, dtype=np.float32)},
        "float scales, an odd zero point, inputs at and near ties",
    )
    halves = np.array([[0.25, 0.75], [-0.25, 1.25], [-0.75, 99.0]], dtype=np.float32)
    yield Case(
        "predict-residual-dyadic",
        "predict",
        {"network": residual, **doors, "scale": np.float32(0.5).reshape(()), "x": halves},
        "a dyadic scale: exact ties",
    )


def _trained_networks() -> Iterator[Case]:
    """Programs that were trained and saved (vectors/networks), with inputs from their domain."""
    for name, operation, arguments, comment in trained_cases(vectors_path() / "networks"):
        yield Case(name, operation, arguments, comment)
