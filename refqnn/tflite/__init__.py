"""TFLite models: which integers must each runtime give?

Only the `tflite` and `flatbuffers` packages are needed; nothing here runs a model.
"""

from __future__ import annotations

import os

from refqnn.errors import InvalidArgument, mismatch
from refqnn.network import Network
from refqnn.tflite.files import is_tflite, open_model
from refqnn.tflite.operators import TABLE
from refqnn.tflite.profiles import RUNTIMES, Runtime
from refqnn.tflite.reader import Imported, Reader, file_order

__all__ = [
    "RUNTIMES",
    "Imported",
    "Runtime",
    "file_order",
    "from_tflite",
    "is_tflite",
    "read_tflite",
]


def from_tflite(model: str | os.PathLike[str] | bytes, runtime: Runtime = "tflite_ref") -> Network:
    """The integer program of a quantized TFLite model, as one runtime computes it.

    Args:
        model: a path, or the bytes of a file.
        runtime: one of `refqnn.tflite.RUNTIMES`.

    Returns: a Network.  Samples and outputs have the order of the file without its batch
        [height, width, channels]; values in between have the channels first, under the names of
        their tensors.  The input quantizer and the output dequantizer hold the file's scales and
        zero points.

    Raises: NotCovered naming the operator and the reason, FileFormatError for a malformed file,
        InvalidArgument for an unknown runtime, MissingExtra; OSError as open does.

    >>> from refqnn.tflite import from_tflite
    >>> from_tflite(b"not a model")
    Traceback (most recent call last):
    refqnn.errors.FileFormatError: model: not a TFLite file (no TFL3 at its start)
    """
    return read_tflite(model, runtime).network


def read_tflite(model: str | os.PathLike[str] | bytes, runtime: Runtime = "tflite_ref") -> Imported:
    """As `from_tflite`, with the names of the values that hold the tensors of the file."""
    if runtime not in RUNTIMES:
        expected = f"one of {', '.join(RUNTIMES)}"
        raise InvalidArgument(mismatch("runtime", repr(runtime), expected))
    return Reader(open_model(model), RUNTIMES[runtime]).read(TABLE)
