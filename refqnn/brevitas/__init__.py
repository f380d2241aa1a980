"""Brevitas modules, integer for integer.

    from_brevitas(module, example_input)    a trained module in evaluation mode -> Network
    read_brevitas(module, example_input)    the same, and what is left out behind its output
    to_brevitas(network)                    a module with the network's integers, to train further
    verify_against(module, network, X)      every quantizer of the module against the network
    exact_accumulators()                    Brevitas itself, with integer accumulation

Brevitas computes in float32.  Between two quantizers stands one integer accumulator `acc` and one
float32 function of it,

    v    = fl32(fl32(acc) * s),    s = fl32(s_in * s_w)
    code = quantizer(activation(norm(v + bias)))

and the importer replaces that function by integer thresholds found on the function itself.  What is
left to compare is the accumulator: Brevitas sums float32 numbers.

*Strict profile*: every scale is a power of two and the bias is quantized on the accumulator's grid
or absent.  All sums are integers times one power of two, exact in float32 while |acc| < 2**24, and
the codes are those of the unmodified module.

*General profile*: float32 sums round, so a value that lies on the boundary between two codes may
fall on either side.  Under `exact_accumulators()` the codes are equal; without it, each difference
must lie inside the near-tie certificate that `verify_against` computes (refqnn.brevitas.verify).

Refused by name are: tensors that are read after something was written into them in place; float
functions of two quantized tensors (products of activations, attention; functions of one tensor that
meet again are one function), and functions of several values at once (softmax, layer normalization)
in front of further layers; functions that are NaN for an integer that is possible; float functions
of the input that neither rise nor fall; control flow that depends on data; weights that are not
quantized; scales that depend on the data; minifloats and scales for groups of values; learned,
stochastic and delayed rounding; weights of more than 32 bits and activations of more than 16.

Functions that only move values become `Gather` (refqnn.brevitas.movement), float arithmetic before
the first quantizer, rising or falling, becomes its thresholds (refqnn.brevitas.door), and what
stands behind the last layer goes into the output dequantizer or is left out and named
(refqnn.brevitas.outputs).  The table QUANTIZERS.md, made by a test, says of each of Brevitas'
quantizers whether it converts.
"""

from refqnn.errors import MissingExtra

try:
    import brevitas as _brevitas  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtra("train", "brevitas") from error

from refqnn.brevitas.convert import Imported, from_brevitas, read_brevitas
from refqnn.brevitas.exact import exact_accumulators
from refqnn.brevitas.verify import LayerReport, Report, verify_against
from refqnn.brevitas.writer import to_brevitas

__all__ = [
    "Imported",
    "LayerReport",
    "Report",
    "exact_accumulators",
    "from_brevitas",
    "read_brevitas",
    "to_brevitas",
    "verify_against",
]
