"""The runtimes as data: what each does where they differ.  `refqnn.tflite` says it in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from refqnn.tflite.rescaling import Way

__all__ = ["DECLARED", "RUNTIMES", "SUMS", "Profile", "Runtime"]

Runtime = Literal["tflite_ref", "tflite_optimized", "xnnpack", "cmsis_nn"]


@dataclass(frozen=True)
class Profile:
    """One runtime.

    Attributes:
        ways: how operators rescale; "double" where none is named.
        sums_16: operator -> type of the bias ("": none) -> how it rescales its sums in 16 bits;
            a type that is not there is read wrongly, or refused.
        optimized: is Softmax a table of float32 exponentials, or fixed point, and have LOGISTIC and
            TANH in 16 bits a kernel of their own where scales are powers of two?
        wide_product: is the gain of MUL computed in float64, or in float32?
        shifted_sums: do ADD and SUB in 16 bits shift operands where all scales are powers of two?
        narrow_product: does MUL hold its rescaled product in 16 bits, where a zero point wraps it?
    """

    ways: Mapping[str, Way] = field(default_factory=dict)
    sums_16: Mapping[str, Mapping[str, Way]] = field(default_factory=dict)
    optimized: bool = False
    wide_product: bool = False
    shifted_sums: bool = True
    narrow_product: bool = False


SUMS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

DECLARED = "INT32, declared"  # of a bias: in the options of its operator

_WIDE: dict[str, Way] = {"": "reduced", "INT64": "reduced"}
_REF_16: dict[str, dict[str, Way]] = {
    "CONV_2D": {**_WIDE, DECLARED: "double"},
    "DEPTHWISE_CONV_2D": _WIDE,
    "FULLY_CONNECTED": dict.fromkeys(("", "INT64", DECLARED), "float64"),
    "TRANSPOSE_CONV": {**_WIDE, DECLARED: "double"},
}
_OPTIMIZED_16: dict[str, dict[str, Way]] = {
    "CONV_2D": {**_WIDE, DECLARED: "double_up"},
    "DEPTHWISE_CONV_2D": _WIDE,
    "FULLY_CONNECTED": {
        **dict.fromkeys(("", "INT32", DECLARED), "double_up"),
        "INT64": "float64",
    },
    "TRANSPOSE_CONV": _WIDE,
}
_CMSIS_16: dict[str, dict[str, Way]] = {
    **dict.fromkeys(SUMS, _WIDE),
    "CONV_2D": {**_WIDE, "INT32": "double", DECLARED: "double"},
}

RUNTIMES: dict[Runtime, Profile] = {
    "tflite_ref": Profile({"FULLY_CONNECTED": "float64"}, _REF_16),
    "tflite_optimized": Profile(
        {
            **dict.fromkeys(("CONV_2D", "FULLY_CONNECTED"), "double_up"),
            **dict.fromkeys(("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "MEAN", "QUANTIZE"), "mixed"),
        },
        _OPTIMIZED_16,
        optimized=True,
        narrow_product=True,
    ),
    "xnnpack": Profile(
        dict.fromkeys(
            (*SUMS, "ADD", "SUB", "MUL", "LEAKY_RELU", "LOGISTIC", "MEAN", "QUANTIZE", "TANH"),
            "float32",
        ),
        _OPTIMIZED_16,
        optimized=True,
    ),
    "cmsis_nn": Profile({}, _CMSIS_16, wide_product=True, shifted_sums=False),
}
