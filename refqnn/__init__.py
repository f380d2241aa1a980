"""refqnn: the correctness oracle for quantized neural networks under homomorphic encryption.

A network is an integer program with floats only at its two doors.  This package loads numpy and the
standard library; `refqnn.fhe`, `refqnn.training`, `refqnn.from_brevitas` and the like need extras
and are imported when they are first used.
"""

from importlib import import_module
from typing import Any

from refqnn.accumulator import (
    Certificate,
    Domain,
    certify,
    find_overflow,
    max_fan_in,
    observed,
    omega,
)
from refqnn.emulate import Accumulator, Emulated, Stage
from refqnn.errors import RefqnnError
from refqnn.formats import BIPOLAR, TERNARY, IntFormat, signed_bits, span_bits, unsigned_bits
from refqnn.network import Difference, Network, Node, diff, load
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Interval,
    Linear,
    Lookup,
    MaxPool2d,
    Requantize,
    Rescale,
    Reshape,
    Softmax,
    SumPool2d,
)
from refqnn.quantizers import (
    AffineQuantizer,
    Dequantizer,
    PowerOfTwoQuantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
)
from refqnn.rounding import Rounding
from refqnn.simplify import simplify

__version__ = "0.1.0"

_LAZY_FUNCTIONS = {
    "diagnose": "refqnn.diagnosis",
    "from_brevitas": "refqnn.brevitas",
    "from_onnx": "refqnn.onnx",
    "from_tflite": "refqnn.tflite",
    "to_onnx": "refqnn.onnx",
}
_LAZY_MODULES = frozenset(
    (
        "brevitas",
        "conformance",
        "datasets",
        "diagnosis",
        "exact",
        "fhe",
        "inspect",
        "onnx",
        "plotting",
        "pruning",
        "testing",
        "tflite",
        "training",
    )
)


def __getattr__(name: str) -> Any:
    if name in _LAZY_FUNCTIONS:
        return getattr(import_module(_LAZY_FUNCTIONS[name]), name)
    if name in _LAZY_MODULES:
        return import_module(f"refqnn.{name}")
    raise AttributeError(f"module 'refqnn' has no attribute {name!r}")


__all__ = [
    "BIPOLAR",
    "TERNARY",
    "Accumulator",
    "Add",
    "AffineQuantizer",
    "Certificate",
    "Concat",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Dequantizer",
    "Difference",
    "Domain",
    "Emulated",
    "Flatten",
    "Gather",
    "GlobalSumPool",
    "IntFormat",
    "Interval",
    "Linear",
    "Lookup",
    "MaxPool2d",
    "Network",
    "Node",
    "PowerOfTwoQuantizer",
    "RefqnnError",
    "Requantize",
    "Rescale",
    "Reshape",
    "Rounding",
    "Softmax",
    "Stage",
    "SumPool2d",
    "SymmetricQuantizer",
    "ThresholdQuantizer",
    "certify",
    "diff",
    "find_overflow",
    "load",
    "max_fan_in",
    "observed",
    "omega",
    "signed_bits",
    "simplify",
    "span_bits",
    "unsigned_bits",
]
