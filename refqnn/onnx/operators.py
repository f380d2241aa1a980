"""The operators that are read, by domain and name; and why others are not."""

from __future__ import annotations

from refqnn.onnx import elementwise, integers, quantization, shapes, sums
from refqnn.onnx.program import Handler

__all__ = [
    "FLOAT_OPERATORS",
    "KEEPS_PADDING",
    "ON_GRIDS",
    "QUANTIZER_DOMAINS",
    "REASONS",
    "STANDARD",
    "TABLE",
    "WANTS_CODES",
]

TABLE: dict[str, Handler] = {
    **quantization.TABLE,
    **elementwise.TABLE,
    **sums.TABLE,
    **shapes.TABLE,
    **integers.TABLE,
}
"""Keys are ONNX's names, "com.microsoft.X" (as onnxruntime's quantizer writes them), "qonnx.X"."""

STANDARD = frozenset(("", "ai.onnx"))

QUANTIZER_DOMAINS = frozenset(
    ("onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general", "qonnx.custom_op")
)
"""Quant, BipolarQuant, Trunc and MultiThreshold mean the same in all of them."""

REASONS: dict[str, str] = {
    "DynamicQuantizeLinear": "its scale depends on each input, so no fixed integer program exists",
    "FloatQuant": "it quantizes to floats of few bits, which are not integers",
    "If": "control flow is not covered",
    "Loop": "control flow is not covered",
    "Scan": "control flow is not covered",
    "LayerNormalization": "it divides by a norm of its input, which has no fixed integer form",
    "InstanceNormalization": "it divides by a norm of its input, which has no fixed integer form",
    "Softmax": "a softmax has an integer form at the output only, where it is left out",
}

FLOAT_OPERATORS = frozenset(elementwise.TABLE)

WANTS_CODES = frozenset(("Add", "Cast", "Clip", "Relu", "Min", "Max"))
"""Operators that narrow a quantizer in front of them before it becomes a node."""

ON_GRIDS = frozenset(("Identity", "Reshape", "Transpose"))
"""Operators that keep quantized constants quantized."""

KEEPS_PADDING = frozenset(
    ("AveragePool", "Conv", "ConvInteger", "DequantizeLinear", "Dropout", "Identity", "QLinearConv")
)
"""Operators that sum over padding or hand it on; in front of others it becomes codes of a node."""
