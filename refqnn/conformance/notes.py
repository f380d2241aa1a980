"""The flags of vectors: the kind of bug that each hunts.

A vector carries a flag when, and only when, it kills a mutant of that flag: flags are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NOTES", "Note"]


@dataclass(frozen=True)
class Note:
    """What a flag means.

    Args:
        bug_type: a few words.
        description: what is done wrong.
        effect: what happens to a network that ships with it.
        links: where it happened, or where the right way is written down.
    """

    bug_type: str
    description: str
    effect: str
    links: tuple[str, ...] = ()


_GEMMLOWP = "https://github.com/google/gemmlowp/blob/master/doc/quantization.md"
_ONNX = "https://onnx.ai/onnx/operators/onnx__"

NOTES: Mapping[str, Note] = {
    "axis": Note(
        "wrong axis",
        "height and width, channels and positions, or rows and columns are exchanged",
        "right on square and symmetric data, wrong on the rest",
        (f"{_ONNX}Conv.html",),
    ),
    "bias": Note(
        "bias in the wrong place",
        "a bias or offset is dropped, added in other units, or given to other channels",
        "every code of a channel moves by a constant",
    ),
    "bound": Note(
        "unsound bound",
        "a width, range or fan-in is computed for another case than the one at hand",
        "an accumulator is promised to fit and does not, or costs more than it must",
    ),
    "channel": Note(
        "wrong channel",
        "a per-channel parameter or a group is taken from another channel",
        "right with one channel, wrong with several",
    ),
    "float_accumulator": Note(
        "sums in floats",
        "integers are summed or compared in a float that does not hold them all",
        "wrong beyond 2^24 (float32) or 2^53 (float64)",
    ),
    "float_logarithm": Note(
        "float logarithm",
        "a width comes from a logarithm in floats",
        "one bit too few or too many near powers of two",
    ),
    "float_precision": Note(
        "float precision",
        "a quotient or product is computed in another precision or by another formula",
        "codes differ near ties only, so small tests pass",
        ("https://github.com/tinygrad/tinygrad/pull/9301",),
    ),
    "format": Note(
        "wrong code range",
        "signed, unsigned or narrow is mistaken for another",
        "codes beyond the declared format, or a lost extreme code",
        (
            "https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/intquant_v1.md",
        ),
    ),
    "layout": Note(
        "wrong memory layout",
        "values are read in another order than row-major, channels first",
        "the next dense layer multiplies the wrong pixels",
    ),
    "node_order": Note(
        "wrong wiring",
        "a node of a network reads another node than the one it names",
        "chains work, residual connections and branches do not",
    ),
    "operand": Note(
        "lost operand",
        "an operand, a term or a multiplier is dropped, repeated or reordered",
        "right with one or two operands, wrong with more",
    ),
    "overflow_narrow": Note(
        "accumulator too narrow",
        "sums are kept in 8, 16 or 32 bits that wrap or saturate",
        "large activations turn negative or are cut off",
        (f"{_ONNX}MatMulInteger.html",),
    ),
    "overflow_rule": Note(
        "wrong overflow rule",
        "an emulated accumulator wraps or saturates at other moments or in another order",
        "models of hardware disagree exactly where they are needed",
    ),
    "padding": Note(
        "wrong padding",
        "padding is put on other sides, filled with another value, or counted differently",
        "the edges of images are wrong",
        (f"{_ONNX}ConvInteger.html",),
    ),
    "refusal": Note(
        "bad data accepted",
        "data outside the declared ranges is clamped, wrapped or computed with",
        "a wrong answer instead of an error; under encryption there is no other sign",
    ),
    "refusal_code": Note(
        "wrong error code",
        "bad data is refused under another code than its own",
        "callers mend the wrong argument",
    ),
    "rounding_double": Note(
        "rounded twice, or once",
        "double rounding is taken for single rounding or the other way round",
        "some 3 % of outputs differ by one",
        (
            "https://github.com/tensorflow/tflite-micro/issues/3252",
            "https://github.com/ARM-software/CMSIS-NN/issues/214",
            _GEMMLOWP,
        ),
    ),
    "rounding_order": Note(
        "wrong order of steps",
        "zero point, bias, clip and rounding are applied in another order",
        "ties go the other way when a zero point is odd; clipped values are shifted",
        (f"{_ONNX}QuantizeLinear.html",),
    ),
    "rounding_tie": Note(
        "wrong rounding",
        "another rounding mode, most often at ties only",
        "power-of-two scales make ties common, so many codes are off by one",
    ),
    "saturation": Note(
        "wrong saturation",
        "values beyond the format wrap, pass through, or are cut in a type too narrow",
        "the largest activation becomes the smallest",
    ),
    "signedness": Note(
        "wrong signedness",
        "signed codes are read as unsigned or the other way round",
        "half of the codes are off by a power of two",
    ),
    "threshold": Note(
        "wrong comparison",
        "a threshold is compared strictly, in a narrow type, or not at all",
        "accumulators that just reach a threshold get the code below",
    ),
    "window": Note(
        "wrong window",
        "kernel, stride, dilation or the number of positions is misread",
        "right for stride 1 and symmetric kernels, wrong otherwise",
        (f"{_ONNX}Conv.html",),
    ),
    "zero_point": Note(
        "wrong zero point",
        "a zero point is dropped, added instead of subtracted, or taken from another channel",
        "right for symmetric quantizers, wrong for affine ones",
        (_GEMMLOWP,),
    ),
}
