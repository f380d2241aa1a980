"""The vector files as Python objects, and the verdict on one answer.

An implementation *refuses* bad data by raising `Rejected`, or a ValueError, TypeError or
ArithmeticError; where the exception has a `code` of `ERROR_CODES`, that is compared.  It says that
it lacks something by raising `Unsupported` or NotImplementedError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

import refqnn
from refqnn.conformance.encoding import decode_fields
from refqnn.conformance.operations import ERROR_CODES, OPERATIONS, Array, Field, Function, Values
from refqnn.container import MALFORMED, read_file
from refqnn.display import shortened
from refqnn.errors import FileFormatError, InvalidArgument, RefqnnError, mismatch
from refqnn.formats import as_array, as_integers

__all__ = [
    "Answer",
    "Mismatch",
    "Rejected",
    "Unsupported",
    "Vector",
    "as_result",
    "call",
    "compare",
    "load_vectors",
    "select",
    "vectors_path",
]

FORMAT = "refqnn-vectors"
FORMAT_VERSION = 1
SEMANTICS_VERSION = 1
SUITE_VERSION = "1.3.0"


class Rejected(RefqnnError, ValueError):
    """Raised by an implementation that refuses its arguments; `code` is one of `ERROR_CODES`."""

    def __init__(self, code: str, message: str = "") -> None:
        if code not in ERROR_CODES:
            raise InvalidArgument(mismatch("code", repr(code), f"one of {', '.join(ERROR_CODES)}"))
        super().__init__(message or code)
        self.code = code


class Unsupported(RefqnnError, NotImplementedError):
    """Raised by an implementation that does not do what a vector asks."""


@dataclass(frozen=True)
class Vector:
    """One question with its answer.

    Attributes:
        id: immutable slug, unique in the suite.
        operation, file, group: where it belongs.
        comment: what is special about it.
        flags: the kinds of bugs it tells apart, keys of `NOTES`.
        profiles: choices an implementation must share to be asked, e.g. "half_even".
        arguments: by name; arrays for tensors.
        outputs: expected results; empty where it must be refused.
        intermediates: compared where the implementation gives them.
        error: one of `ERROR_CODES` where it must be refused, else None.
    """

    id: str
    operation: str
    file: str
    group: str
    comment: str
    flags: tuple[str, ...]
    profiles: tuple[str, ...]
    # The id stands for these: it asks the same question for ever.
    arguments: Values = field(repr=False, compare=False)
    outputs: Values = field(repr=False, compare=False)
    intermediates: Values = field(repr=False, compare=False)
    error: str | None


def vectors_path() -> Path:
    """The folder of the vector files: in the package when installed, beside it in a checkout.

    Raises: FileFormatError when there is neither.
    """
    package = Path(refqnn.__file__).parent
    for folder in (package / "vectors", package.parent / "vectors"):
        if (folder / "networks").is_dir():
            return folder
    raise FileFormatError(f"no vectors beside {package.name}: expected a folder with networks/")


@lru_cache(maxsize=4)
def load_vectors(folder: Path | None = None) -> tuple[Vector, ...]:
    """Every vector of the suite, in the order of the manifest.

    Raises: FileFormatError for files that are of another version, malformed, missing, or not what
        the checksums of the manifest say.

    >>> len({v.id for v in load_vectors()}) == len(load_vectors())
    True
    """
    folder = folder or vectors_path()
    name = "MANIFEST.json"
    vectors: list[Vector] = []
    try:
        manifest = json.loads(read_file(folder / name))
        if (manifest["format"], manifest["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise FileFormatError("another version of the vector format")
        for name, entry in manifest["files"].items():
            text = read_file(folder / name)
            if hashlib.sha256(text).hexdigest() != entry["sha256"]:
                raise FileFormatError(
                    "it is not the file that MANIFEST.json names; mend with: "
                    "refqnn vectors generate"
                )
            read = list(_vectors(name, json.loads(text)))
            if len(read) != entry["number_of_tests"]:
                raise FileFormatError(f"{len(read)} tests, expected {entry['number_of_tests']}")
            vectors += read
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from None
    except MALFORMED as error:
        raise FileFormatError(f"{name}: malformed vector file ({error!r})") from error
    return tuple(vectors)


def _vectors(name: str, content: Values) -> Iterable[Vector]:
    operation = OPERATIONS[content["operation"]]
    for group in content["groups"]:
        parameters = decode_fields(group["parameters"], operation.parameters)
        for test in group["tests"]:
            yield Vector(
                id=test["id"],
                operation=operation.name,
                file=name,
                group=group["id"],
                comment=test["comment"],
                flags=tuple(test["flags"]),
                profiles=tuple(group["profiles"]),
                arguments={**parameters, **decode_fields(test["inputs"], operation.inputs)},
                outputs=decode_fields(test.get("outputs", {}), operation.outputs),
                intermediates=decode_fields(test.get("intermediates", {}), operation.intermediates),
                error=test.get("error"),
            )


def select(
    vectors: Iterable[Vector],
    operations: Iterable[str] | None = None,
    profiles: Iterable[str] | None = None,
) -> list[Vector]:
    """The vectors of these operations that need no profile beyond these; None: all.

    Raises: InvalidArgument for a name that the suite does not have.
    """
    vectors = list(vectors)
    known_profiles = {p for v in vectors for p in v.profiles}
    wanted = set(OPERATIONS if operations is None else operations)
    shared = set(known_profiles if profiles is None else profiles)
    for argument, names, known in (
        ("operations", wanted, set(OPERATIONS)),
        ("profiles", shared, known_profiles),
    ):
        if not names <= known:
            got, expected = ", ".join(sorted(names - known)), ", ".join(sorted(known))
            raise InvalidArgument(mismatch(argument, got, f"some of {expected}"))
    return [v for v in vectors if v.operation in wanted and shared.issuperset(v.profiles)]


# --- one answer -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What an implementation said.

    Attributes:
        kind: "result", "error" (it refused), "skipped" (it does not do this) or "fault" (it
            crashed, took too long, or said something that is no answer).
        results: by name, for "result".
        message: for the others.
        code: one of `ERROR_CODES`, for an "error" that says why; else None.
    """

    kind: Literal["result", "error", "skipped", "fault"]
    results: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    code: str | None = None

    def refuses_as(self, code: str) -> bool:
        """Does it refuse, and name no other code?"""
        return self.kind == "error" and self.code in (None, code)


@dataclass(frozen=True)
class Mismatch:
    """Where a result first differs.

    Attributes:
        output: name of the result.
        index: of the first differing value; None when shape or type differ.
        expected, got: the two values, as text.
        differing, total: how many values differ.
        is_value: False where the result is missing or not of its kind, which no way of computing
            it explains.
    """

    output: str
    index: tuple[int, ...] | None
    expected: str
    got: str
    differing: int = 0
    total: int = 0
    is_value: bool = True

    def __str__(self) -> str:
        where = "" if self.index is None else str(list(self.index))
        text = f"{self.output}{where}: expected {self.expected}, got {self.got}"
        return text + (f" ({self.differing} of {self.total} differ)" if self.total else "")


def call(function: Function, vector: Vector) -> Answer:
    """Ask a Python function.

    It is called with the arguments of the vector by name (arrays are copies) and returns a mapping
    of results, or the one output itself.
    """
    arguments = {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in vector.arguments.items()
    }
    try:
        value = function(**arguments)
    except NotImplementedError as error:
        return Answer("skipped", message=str(error))
    except (ValueError, TypeError, ArithmeticError) as error:
        code = getattr(error, "code", None)
        code = code if isinstance(code, str) and code in ERROR_CODES else None
        return Answer("error", message=f"{type(error).__name__}: {error}", code=code)
    except Exception as error:
        return Answer("fault", message=f"{type(error).__name__}: {error}")
    if isinstance(value, Mapping):
        return Answer("result", value)
    outputs = list(OPERATIONS[vector.operation].outputs)
    if len(outputs) != 1:
        return Answer("fault", message=f"returned {type(value).__name__}, expected a mapping")
    return Answer("result", {outputs[0]: value})


def as_result(value: object) -> object:
    """A result as a vector holds it: a number, None, or an array."""
    return value if value is None or isinstance(value, (int, np.ndarray)) else np.asarray(value)


_INTEGERS = Field("int_tensor", "a value in between")


def compare(vector: Vector, results: Mapping[str, Any]) -> Mismatch | None:
    """The first result that differs from the vector's, outputs before intermediates, or None."""
    operation = OPERATIONS[vector.operation]
    for name, expected in vector.outputs.items():
        if name not in results:
            return Mismatch(name, None, "a result", "none", is_value=False)
        found = _compare(name, operation.outputs[name], expected, results[name])
        if found is not None:
            return found
    for name, expected in vector.intermediates.items():
        if results.get(name) is None:
            continue
        found = _compare(name, _INTEGERS, expected, results[name])
        if found is not None:
            return found
    return None


def _compare(name: str, field: Field, expected: Any, got: object) -> Mismatch | None:
    kind = field.kind
    if kind not in ("int_tensor", "float_tensor"):
        got = got.item() if isinstance(got, np.generic) else got
        if type(got) is type(expected) and got == expected:
            return None
        is_value = type(got) is int or (field.optional and got is None)
        return Mismatch(name, None, repr(expected), shortened(repr(got)), is_value=is_value)
    wanted = "integers" if kind == "int_tensor" else "floats"
    try:
        read = as_integers(got, name) if kind == "int_tensor" else as_array(got, name, wanted)
    except RefqnnError:
        text = f"dtype {got.dtype}" if isinstance(got, np.ndarray) else shortened(repr(got))
        return Mismatch(name, None, f"a tensor of {wanted}", text, is_value=False)
    if kind == "float_tensor" and read.dtype.kind != "f":
        return Mismatch(name, None, wanted, f"dtype {read.dtype}", is_value=False)
    if read.shape != expected.shape:
        return Mismatch(name, None, f"shape {expected.shape}", f"shape {read.shape}")
    unequal = np.argwhere(_differs(read, expected))
    if not len(unequal):
        return None
    index = tuple(int(i) for i in unequal[0])
    values = (str(expected[index]), str(read[index]))
    return Mismatch(name, index, *values, len(unequal), int(expected.size))


def _differs(a: Array, b: Array) -> Array:
    """Elementwise: another integer, or another float; 0.0 and -0.0 differ, NaN and NaN do not."""
    if b.dtype.kind != "f":
        return np.asarray(a != b)
    same = (a == b) & (np.signbit(a) == np.signbit(b))
    return np.asarray(~(same | (np.isnan(a) & np.isnan(b))))
