"""refqnn: the correctness oracle for quantized neural networks under homomorphic encryption.

A network is an integer program with floats only at its two doors.  Every name is imported when it
is first used: those of the core need numpy and the standard library; `refqnn.fhe`,
`refqnn.training`, `refqnn.from_brevitas` and the like need extras.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from refqnn.errors import RefqnnError as RefqnnError
    from refqnn.formats import BIPOLAR as BIPOLAR
    from refqnn.formats import TERNARY as TERNARY
    from refqnn.formats import IntFormat as IntFormat
    from refqnn.formats import signed_bits as signed_bits
    from refqnn.formats import span_bits as span_bits
    from refqnn.formats import unsigned_bits as unsigned_bits
    from refqnn.network import Difference as Difference
    from refqnn.network import Network as Network
    from refqnn.network import Node as Node
    from refqnn.network import diff as diff
    from refqnn.network import load as load
    from refqnn.onnx import from_onnx as from_onnx
    from refqnn.onnx import to_onnx as to_onnx
    from refqnn.ops import Add as Add
    from refqnn.ops import Concat as Concat
    from refqnn.ops import Conv1d as Conv1d
    from refqnn.ops import Conv2d as Conv2d
    from refqnn.ops import ConvTranspose2d as ConvTranspose2d
    from refqnn.ops import Flatten as Flatten
    from refqnn.ops import Gather as Gather
    from refqnn.ops import GlobalSumPool as GlobalSumPool
    from refqnn.ops import Interval as Interval
    from refqnn.ops import Linear as Linear
    from refqnn.ops import Lookup as Lookup
    from refqnn.ops import MaxPool2d as MaxPool2d
    from refqnn.ops import Requantize as Requantize
    from refqnn.ops import Rescale as Rescale
    from refqnn.ops import Reshape as Reshape
    from refqnn.ops import Softmax as Softmax
    from refqnn.ops import SumPool2d as SumPool2d
    from refqnn.ops import mean_by_count as mean_by_count
    from refqnn.quantizers import AffineQuantizer as AffineQuantizer
    from refqnn.quantizers import Dequantizer as Dequantizer
    from refqnn.quantizers import PowerOfTwoQuantizer as PowerOfTwoQuantizer
    from refqnn.quantizers import SymmetricQuantizer as SymmetricQuantizer
    from refqnn.quantizers import ThresholdQuantizer as ThresholdQuantizer
    from refqnn.rounding import Rounding as Rounding
    from refqnn.simplify import simplify as simplify
    from refqnn.tflite import from_tflite as from_tflite

__version__ = "0.1.0"

_HOMES = {  # of every public function, class and constant
    "refqnn.accumulator": (
        "Certificate Domain certify certify_class find_overflow max_fan_in observed omega"
    ),
    "refqnn.brevitas": "from_brevitas to_brevitas",
    "refqnn.diagnosis": "diagnose",
    "refqnn.emulate": "Accumulator Emulated Stage",
    "refqnn.errors": "RefqnnError",
    "refqnn.formats": "BIPOLAR IntFormat TERNARY signed_bits span_bits unsigned_bits",
    "refqnn.network": "Difference Network Node diff load",
    "refqnn.onnx": "from_onnx to_onnx",
    "refqnn.ops": (
        "Add Concat Conv1d Conv2d ConvTranspose2d Flatten Gather GlobalSumPool Interval "
        "Linear Lookup MaxPool2d Requantize Rescale Reshape Softmax SumPool2d mean_by_count"
    ),
    "refqnn.quantizers": (
        "AffineQuantizer Dequantizer PowerOfTwoQuantizer SymmetricQuantizer ThresholdQuantizer"
    ),
    "refqnn.rounding": "Rounding",
    "refqnn.simplify": "simplify",
    "refqnn.tflite": "from_tflite",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
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


class _Package(ModuleType):
    """`refqnn.simplify` is the function, when its module of the same name was imported as well."""

    @property
    def simplify(self) -> Any:
        return import_module("refqnn.simplify").simplify

    @simplify.setter
    def simplify(self, module: ModuleType) -> None:
        """The import system would put the module here."""


if not TYPE_CHECKING:  # to a type checker a name that is not there is an error
    sys.modules[__name__].__class__ = _Package

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return globals().setdefault(name, getattr(import_module(_HOME[name]), name))
        if not name.startswith("_"):
            try:
                return import_module(f"refqnn.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"refqnn.{name}":
                    raise
        raise AttributeError(f"module 'refqnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those whose extra is absent left out.

    `help(refqnn)` and completion ask for all that is here.
    """
    extras = import_module("refqnn.extras")
    absent = {name for name, extra in _NEEDED.items() if not extras.here(extra)}
    special = (name for name in globals() if name.startswith("__"))
    return sorted({*special, *_HOME, *_LAZY_MODULES} - absent)


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
