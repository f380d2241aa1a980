"""ONNX files: read what others publish, write what others run.

Only the `onnx` package is needed; nothing here runs a model.

**What a file means.**  Quantized weights and activations are integers times a scale.  A sum of
products (MatMul, Gemm, Conv, pooling, Add) is taken exactly, over the integers, with exact rational
scales.  Every other operator is one float32 operation, in the order of the file, starting from

    v = fl32(accumulator) * fl32(s_x * s_w)

and a quantizer turns that function into integer thresholds, by bisection, so nothing is lost.
Sigmoid, Tanh and the like are evaluated in float64 and rounded to float32 once.  A runtime that
sums floats may round v differently when a value lies within its rounding error of a threshold; with
power-of-two scales and sums below 2**24 there is no such error.  `refqnn inspect` counts how many
accumulators lie so near.

Integer tensors hold integers: operators on them compute in their element type, truncate and wrap as
a runtime does.  Float operators that give integers, or multiples of one number, become nodes where
a sum follows them.  `refqnn.onnx.integers` tells what each quantized operator does in which order.

**What comes in.**  Float arithmetic between the input and its first quantizer (x / 255, a mean and
a deviation per channel, a clip) is part of the network's input door, exactly: the least float32 of
each code.  Inputs of an integer type, or annotated with a QONNX datatype, are codes.  Where a file
computes with floats before it quantizes any, the caller says what comes in: `input=`.

**What is left out.**  Softmax, LogSoftmax, ArgMax, ArgMin, TopK, Hardmax, and a last Sigmoid or
Tanh, behind the output: the network ends at the values that go into them; `Imported.dropped` names
them.

**What is refused**, with the name of the node: operators without an integer form (products of two
activations and choices between them, unless they are functions of one; interpolation; norms),
integers that wrap or change in more ways than can be listed, with their range, float arithmetic
that no quantizer closes, activations quantized in blocks, float16 arithmetic, weights on no integer
grid, dynamic quantization, control flow, custom functions, models of several inputs, and files that
are truncated, cyclic, inconsistent, or point outside their folder.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refqnn.comparison import compare
from refqnn.network import Network
from refqnn.onnx.reader import Imported, InputDoor, read_onnx
from refqnn.onnx.writer import FLAVOURS, Flavour, to_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

    from refqnn.files import convert as convert
    from refqnn.files import open_file as open_file
    from refqnn.files import open_network as open_network

__all__ = [
    "FLAVOURS",
    "Flavour",
    "Imported",
    "InputDoor",
    "compare",
    "convert",
    "from_onnx",
    "open_file",
    "open_network",
    "read_onnx",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    """Files of every kind, which read this module; they were here once."""
    if name in ("convert", "open_file", "open_network"):
        return getattr(import_module("refqnn.files"), name)
    raise AttributeError(f"module 'refqnn.onnx' has no attribute {name!r}")


def from_onnx(
    model: str | os.PathLike[str] | bytes | ModelProto,
    *,
    input: InputDoor | None = None,
    output: str | None = None,
) -> Network:
    """The integer program of an ONNX model.

    Reads QONNX (Quant, IntQuant, BipolarQuant, Trunc, MultiThreshold in any of their domains), QDQ
    and QCDQ (QuantizeLinear, Clip, DequantizeLinear) and integer operators (MatMulInteger,
    ConvInteger, QLinearMatMul, QLinearConv), around the usual layers, activations and shapes.
    Weights whose quantizers were folded into float constants are recognised when they lie on a grid
    of 8 bits.  The first axis of the input is the batch.

    Args:
        model: a path, the bytes of a file, or a ModelProto.  External tensor data are read for a
            path only, and only from its folder.
        input: what comes in, where the file does not say.  A format, or QONNX's name of one
            ("UINT8"): codes, which are the values of the model's input.  A quantizer: floats, which
            it quantizes before anything else.  The name of a tensor: start there; what the file
            computes in front of it is left to the caller.  {name: format or quantizer}: both.
        output: name of the tensor to stop at; the model's output by default.

    Returns: a Network.  Its node names are those of the file; its input quantizer is the file's
        first quantizer with the float arithmetic in front of it (a `ThresholdQuantizer` where scale
        and zero point cannot say it exactly), its output dequantizer the scale (and float bias) of
        its output.  Inputs of an integer type, or that an annotation declares, are codes.

    Raises: NotCovered naming the node and the reason, FileFormatError for a malformed file,
        InvalidArgument for an unknown `input` or `output`, MissingExtra; OSError as open does.
    """
    return read_onnx(model, input=input, output=output).network
