"""refqnn: the correctness oracle for quantized neural networks under homomorphic encryption.

A network is an integer program with floats only at its two doors.  This package loads numpy and the
standard library; `refqnn.fhe`, `refqnn.training`, `refqnn.from_brevitas` and the like need extras
and are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    mean_by_count,
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

if TYPE_CHECKING:  # what is imported when it is first used
    from refqnn import accumulator as accumulator
    from refqnn import brevitas as brevitas
    from refqnn import conformance as conformance
    from refqnn import datasets as datasets
    from refqnn import diagnosis as diagnosis
    from refqnn import dumps as dumps
    from refqnn import exact as exact
    from refqnn import fhe as fhe
    from refqnn import inspect as inspect
    from refqnn import onnx as onnx
    from refqnn import plotting as plotting
    from refqnn import pruning as pruning
    from refqnn import report as report
    from refqnn import testing as testing
    from refqnn import tflite as tflite
    from refqnn import training as training
    from refqnn.accumulator import Certificate as Certificate
    from refqnn.accumulator import Domain as Domain
    from refqnn.accumulator import certify as certify
    from refqnn.accumulator import certify_class as certify_class
    from refqnn.accumulator import find_overflow as find_overflow
    from refqnn.accumulator import max_fan_in as max_fan_in
    from refqnn.accumulator import observed as observed
    from refqnn.accumulator import omega as omega
    from refqnn.brevitas import from_brevitas as from_brevitas
    from refqnn.brevitas import to_brevitas as to_brevitas
    from refqnn.diagnosis import diagnose as diagnose
    from refqnn.emulate import Accumulator as Accumulator
    from refqnn.emulate import Emulated as Emulated
    from refqnn.emulate import Stage as Stage
    from refqnn.onnx import from_onnx as from_onnx
    from refqnn.onnx import to_onnx as to_onnx
    from refqnn.tflite import from_tflite as from_tflite

__version__ = "0.1.0"

_LAZY_FUNCTIONS = {  # and classes
    "Stage": "refqnn.emulate",
    "Emulated": "refqnn.emulate",
    "Accumulator": "refqnn.emulate",
    "Certificate": "refqnn.accumulator",
    "Domain": "refqnn.accumulator",
    "certify": "refqnn.accumulator",
    "certify_class": "refqnn.accumulator",
    "find_overflow": "refqnn.accumulator",
    "max_fan_in": "refqnn.accumulator",
    "observed": "refqnn.accumulator",
    "omega": "refqnn.accumulator",
    "diagnose": "refqnn.diagnosis",
    "from_brevitas": "refqnn.brevitas",
    "from_onnx": "refqnn.onnx",
    "from_tflite": "refqnn.tflite",
    "to_brevitas": "refqnn.brevitas",
    "to_onnx": "refqnn.onnx",
}
_LAZY_MODULES = frozenset(
    (
        "accumulator",
        "brevitas",
        "conformance",
        "datasets",
        "diagnosis",
        "dumps",
        "exact",
        "fhe",
        "inspect",
        "onnx",
        "plotting",
        "pruning",
        "report",
        "testing",
        "tflite",
        "training",
    )
)
_NEEDED = {  # the extra without which a name cannot be had at all
    "brevitas": "train",
    "fhe": "fhe",
    "from_brevitas": "train",
    "report": "report",
    "testing": "test",
    "to_brevitas": "train",
    "training": "train",
}


if not TYPE_CHECKING:  # to a type checker a name that is not there is an error

    def __getattr__(name: str) -> Any:
        if name in _LAZY_FUNCTIONS:
            return getattr(import_module(_LAZY_FUNCTIONS[name]), name)
        if name in _LAZY_MODULES:
            return import_module(f"refqnn.{name}")
        raise AttributeError(f"module 'refqnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those that are imported when they are first used among them.

    Without the names whose extra is absent: `help(refqnn)` and completion ask for all that is here.
    """
    extras = import_module("refqnn.extras")
    absent = {name for name, extra in _NEEDED.items() if not extras.here(extra)}
    special = (name for name in globals() if name.startswith("__"))
    return sorted({*special, *__all__, *_LAZY_FUNCTIONS, *_LAZY_MODULES} - absent)


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
    "certify_class",
    "diff",
    "find_overflow",
    "load",
    "max_fan_in",
    "mean_by_count",
    "observed",
    "omega",
    "signed_bits",
    "simplify",
    "span_bits",
    "unsigned_bits",
]
