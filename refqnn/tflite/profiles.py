"""The runtimes as data: what each does where they differ.  `refqnn.tflite` says it in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from refqnn.tflite.rescaling import Way

__all__ = ["RUNTIMES", "SUMS", "Profile", "Runtime"]

Runtime = Literal["tflite_ref", "tflite_optimized", "xnnpack", "cmsis_nn"]


@dataclass(frozen=True)
class Profile:
    """One runtime.

    Attributes:
        ways: how operators rescale; "double" where none is named.
        fully_connected_16: type of the bias ("": none) -> how FULLY_CONNECTED rescales in 16 bits;
            a type that is not there is read wrongly, or refused.
        float_softmax: is Softmax a table of float32 exponentials, or fixed point?
        wide_product: is the gain of MUL computed in float64, or in float32?
        narrow_product: does MUL hold its rescaled product in 16 bits, where a zero point wraps it?
    """

    ways: Mapping[str, Way] = field(default_factory=dict)
    fully_connected_16: Mapping[str, Way] = field(default_factory=dict)
    float_softmax: bool = False
    wide_product: bool = False
    narrow_product: bool = False


SUMS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

_OPTIMIZED_16: dict[str, Way] = {"": "double_up", "INT32": "double_up", "INT64": "float64"}

RUNTIMES: dict[Runtime, Profile] = {
    "tflite_ref": Profile({"FULLY_CONNECTED": "float64"}, {"": "float64", "INT64": "float64"}),
    "tflite_optimized": Profile(
        {
            **dict.fromkeys(("CONV_2D", "FULLY_CONNECTED"), "double_up"),
            **dict.fromkeys(("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "MEAN", "QUANTIZE"), "mixed"),
        },
        _OPTIMIZED_16,
        float_softmax=True,
        narrow_product=True,
    ),
    "xnnpack": Profile(
        dict.fromkeys((*SUMS, "ADD", "SUB", "MUL", "LEAKY_RELU", "MEAN", "QUANTIZE"), "float32"),
        _OPTIMIZED_16,
        float_softmax=True,
    ),
    "cmsis_nn": Profile({}, {"": "reduced", "INT64": "reduced"}, wide_product=True),
}
