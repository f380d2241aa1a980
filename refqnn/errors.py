"""The closed set of exceptions that refqnn raises.

Every exception is a `RefqnnError` and also the builtin that fits, so a caller may catch either.
Messages have one shape: which argument, what it was, what was expected.

>>> from refqnn.errors import InvalidArgument, RefqnnError
>>> issubclass(InvalidArgument, RefqnnError) and issubclass(InvalidArgument, ValueError)
True
"""

from __future__ import annotations

__all__ = [
    "AccumulatorOverflow",
    "CertificateError",
    "CircuitError",
    "FileFormatError",
    "InvalidArgument",
    "InvalidType",
    "MissingExtra",
    "NotCompiled",
    "NotCovered",
    "OutOfRange",
    "RefqnnError",
    "ShapeMismatch",
    "mismatch",
]


class RefqnnError(Exception):
    """Base class of every error that refqnn raises on purpose."""


class InvalidArgument(RefqnnError, ValueError):
    """An argument has the right type and a value that makes no sense."""


class InvalidType(RefqnnError, TypeError):
    """An argument has the wrong type or dtype."""


class ShapeMismatch(InvalidArgument):
    """An array has the wrong shape."""


class OutOfRange(InvalidArgument):
    """A value lies outside its declared format or range."""


class FileFormatError(RefqnnError, ValueError):
    """A file is truncated, altered, newer than this version, or of another kind."""


class NotCovered(RefqnnError, NotImplementedError):
    """A layer or operation has no exact integer form here; the message names it and says why."""


class MissingExtra(RefqnnError, ImportError):
    """An optional dependency is absent; the message is the pip command that installs it.

    >>> print(MissingExtra("fhe", "concrete-python"))
    concrete-python is not installed; it comes with: python -m pip install 'refqnn[fhe]'
    """

    def __init__(self, extra: str, package: str) -> None:
        several = "are not installed; they come" if "," in package else "is not installed; it comes"
        super().__init__(f"{package} {several} with: python -m pip install 'refqnn[{extra}]'")
        self.extra = extra
        self.package = package


class AccumulatorOverflow(RefqnnError, OverflowError):
    """An accumulator leaves the range it was promised."""


class CertificateError(RefqnnError, ValueError):
    """A certificate does not belong to the network, or does not hold."""


class CircuitError(RefqnnError, RuntimeError):
    """A circuit cannot be compiled, run, or loaded."""


class NotCompiled(CircuitError, AttributeError):
    """An estimator has no circuit yet; so that ``hasattr`` says no."""


def mismatch(argument: str, got: object, expected: str) -> str:
    """The one shape of our messages.

    >>> mismatch("bits", 0, "an integer from 1 to 32")
    'bits: got 0, expected an integer from 1 to 32'
    """
    return f"{argument}: got {got}, expected {expected}"
