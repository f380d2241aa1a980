"""Opening TFLite files that may be truncated, inconsistent or hostile.

A FlatBuffer is read where it lies, by offsets that the file itself gives.  Every table is verified
before a field of it is read (its vtable and all its fields lie inside the file), every vector is
held against the bytes that are there, and counts are bounded, so work and memory are bounded by the
size of the file.  Nothing in it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.container import MALFORMED, read_file
from refqnn.errors import (
    FileFormatError,
    InvalidArgument,
    InvalidType,
    MissingExtra,
    NotCovered,
    mismatch,
)
from refqnn.foreign import is_tflite, refuse_foreign
from refqnn.formats import IntFormat

__all__ = ["Model", "Operator", "Tensor", "import_tflite", "open_model"]

_MAX_TABLES = 2**16  # tensors, operators, buffers
_MAX_RANK = 8
_MAX_INPUTS = 2**10  # of one operator
_MAX_VALUES = 2**23  # of one tensor: what a small file may declare

_FORMATS = {"INT8": IntFormat(8, True), "UINT8": IntFormat(8, False), "INT16": IntFormat(16, True)}
_DTYPES = {
    **{"INT8": "<i1", "UINT8": "<u1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"},
    **{"FLOAT32": "<f4", "BOOL": "?"},
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the graph.

    Attributes:
        name: as the file says; not always unique.
        shape: with the batch first, channels last.
        type: INT8, INT32, FLOAT32, ...
        scale: float32, [1] or [channels]; empty where the tensor is not quantized.
        zero_point: int64, as many.
        axis: of the channels of `scale`.
        data: of a constant, [*shape]; None for what operators make.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int
    data: NDArray[Any] | None

    @property
    def format(self) -> IntFormat:
        """The codes it holds.  Raises: NotCovered."""
        if self.type not in _FORMATS:
            expected = f"quantized: one of {', '.join(_FORMATS)}"
            raise NotCovered(mismatch(f"tensor {self.name!r}", self.type, expected))
        return _FORMATS[self.type]

    @property
    def codes(self) -> NDArray[np.int64]:
        """Every code of its format."""
        return np.arange(self.format.q_min, self.format.q_max + 1)

    @property
    def quantizer(self) -> tuple[np.float32, int]:
        """Scale and zero point of a tensor that has one of each.  Raises: NotCovered."""
        if self.scale.size != 1:
            got = f"{self.scale.size} scales"
            raise NotCovered(mismatch(f"tensor {self.name!r}", got, "one scale"))
        self.format.check(self.zero_point, f"zero point of {self.name!r}")
        return np.float32(self.scale[0]), int(self.zero_point[0])

    @property
    def constant(self) -> NDArray[Any]:
        """Its values.  Raises: NotCovered where an operator makes them."""
        if self.data is None:
            raise NotCovered(mismatch(f"tensor {self.name!r}", "computed values", "a constant"))
        return self.data


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator: its name in the schema, its tensors (None: left out), its options."""

    index: int
    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any

    def __str__(self) -> str:
        name = self.outputs[0].name if self.outputs else ""
        return f"operator {self.index} ({self.kind}, makes {name!r})"


@dataclass(frozen=True, eq=False)
class Model:
    """The one graph of a file."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: tuple[Operator, ...]

    def tensor(self, name: str, what: str) -> Tensor:
        """The one of this name, or of this number.

        Args:
            what: asks for it, as a message says.

        Raises: InvalidArgument.
        """
        listed = (*self.inputs, *(t for op in self.operators for t in (*op.inputs, *op.outputs)))
        tensors = {t.index: t for t in listed if t is not None}
        found = [t for t in tensors.values() if t.name == name]
        if not found and str(name).isdecimal():
            found = [t for t in tensors.values() if t.index == int(name)]
        if len(found) != 1:
            got = f"{name!r}, which {len(found)} tensors are called"
            raise InvalidArgument(mismatch(what, got, "the name of one tensor, or its number"))
        return found[0]

    def between(self, start: str | None, end: str | None) -> Model:
        """What lies between two tensors; None: the ends of the file.

        Raises: InvalidArgument for a name that is not in the file, and where nothing leads from one
            to the other.
        """
        if start is None and end is None:
            return self
        inputs = self.inputs if start is None else (self.tensor(start, "input"),)
        outputs = self.outputs if end is None else (self.tensor(end, "output"),)
        entries, needed = {t.index for t in inputs}, {t.index for t in outputs}
        kept: list[Operator] = []
        for op in reversed(self.operators):
            if (needed - entries).intersection(t.index for t in op.outputs):
                needed.update(t.index for t in op.inputs if t is not None and t.data is None)
                kept.append(op)
        if not kept or not entries <= needed:
            got = f"from {[t.name for t in inputs]} to {[t.name for t in outputs]}"
            raise InvalidArgument(mismatch("input, output", got, "ends that operators connect"))
        return replace(self, inputs=inputs, outputs=outputs, operators=tuple(kept[::-1]))


def import_tflite() -> Any:
    """The tflite package: the schema's accessors.  Raises: MissingExtra."""
    try:
        import tflite
    except ImportError as error:
        raise MissingExtra("tflite", "tflite") from error
    return tflite


def open_model(source: str | os.PathLike[str] | bytes) -> Model:
    """The graph of a file or of its bytes.

    Raises: FileFormatError, InvalidType, NotCovered, MissingExtra; OSError as open does.
    """
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise InvalidType(mismatch("model", type(source).__name__, "a path or bytes"))
    data = source if isinstance(source, bytes) else read_file(source)
    name = "model" if isinstance(source, bytes) else str(source)
    if not is_tflite(data):
        if not isinstance(source, bytes):
            refuse_foreign(name, "a TFLite file", ())
        raise FileFormatError(f"{name}: not a TFLite file (no TFL3 at its start)")
    tflite = import_tflite()
    try:
        return _Reader(tflite, data).model()
    except (NotCovered, FileFormatError) as error:
        raise type(error)(f"{name}: {error}") from None
    except MALFORMED as error:
        raise FileFormatError(f"{name}: malformed ({error!r})") from error


class _Reader:
    """Accessors of the schema on tables that were verified."""

    def __init__(self, tflite: Any, data: bytes) -> None:
        self._tflite = tflite
        self._data = data
        self._size = len(data)
        self._root = tflite.Model.GetRootAs(data, 0)
        self._verify(self._root._tab)

    def model(self) -> Model:
        graphs = list(self._tables(self._root, "Subgraphs"))
        if len(graphs) != 1:
            got = f"{len(graphs)} graphs"
            raise NotCovered(mismatch("model", got, "one (no control flow, no signatures beside)"))
        (graph,) = graphs
        buffers = list(self._tables(self._root, "Buffers"))
        tensors = [
            self._tensor(i, t, buffers) for i, t in enumerate(self._tables(graph, "Tensors"))
        ]
        codes = [self._kind(code) for code in self._tables(self._root, "OperatorCodes")]
        operators = [
            self._operator(i, op, codes, tensors)
            for i, op in enumerate(self._tables(graph, "Operators"))
        ]
        inputs, outputs = (self._several(graph, end, tensors) for end in ("Inputs", "Outputs"))
        return Model(inputs, outputs, tuple(operators))

    # --- tables -----------------------------------------------------------------------------

    def _verify(self, table: Any) -> Any:
        """The table, whose vtable and fields lie inside the file."""
        position, data = table.Pos, self._data
        if not 4 <= position <= self._size - 4:
            raise FileFormatError("a table lies outside the file")
        start = position - int.from_bytes(data[position : position + 4], "little", signed=True)
        if not 0 <= start <= self._size - 4:
            raise FileFormatError("a vtable lies outside the file")
        entries, length = np.frombuffer(data, "<u2", 2, start).tolist()
        if entries < 4 or entries % 2 or start + entries > self._size:
            raise FileFormatError("a vtable is longer than the file")
        fields = np.frombuffer(data, "<u2", (entries - 4) // 2, start + 4)
        if position + length > self._size or fields.max(initial=0) >= max(length, 1):
            raise FileFormatError("a table is longer than the file, or than itself")
        return table

    def _tables(self, parent: Any, field: str) -> Iterator[Any]:
        """The tables of a vector, verified."""
        length = getattr(parent, f"{field}Length")()
        if not 0 <= length <= min(_MAX_TABLES, self._size // 4):
            raise FileFormatError(f"{field}: {length} of them, more than the file holds")
        for i in range(length):
            item = getattr(parent, field)(i)
            self._verify(item._tab)
            yield item

    def _vector(self, parent: Any, field: str, dtype: str, limit: int) -> NDArray[Any]:
        """Numbers of a vector; none where the file has no such vector."""
        length = getattr(parent, f"{field}Length")()
        if not 0 <= length <= limit:
            raise FileFormatError(f"{field}: {length} numbers, expected at most {limit}")
        return np.array(getattr(parent, f"{field}AsNumpy")() if length else (), dtype=dtype)

    # --- what they hold ---------------------------------------------------------------------

    def _kind(self, code: Any) -> str:
        names = {v: k for k, v in vars(self._tflite.BuiltinOperator).items() if k[0] != "_"}
        # Files of before 2020 have one byte for it, where 127 stands for "see the other field".
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number not in names:
            raise FileFormatError(f"operator code {number}: not one of TFLite")
        return str(names[number])

    def _tensor(self, index: int, tensor: Any, buffers: list[Any]) -> Tensor:
        types = {v: k for k, v in vars(self._tflite.TensorType).items() if k[0] != "_"}
        name = (tensor.Name() or b"").decode("utf-8", "replace")
        kind = str(types.get(tensor.Type(), f"type {tensor.Type()}"))
        if tensor.Sparsity() is not None or tensor.IsVariable():
            raise NotCovered(f"tensor {name!r}: sparse and variable tensors are not covered")
        shape = tuple(self._vector(tensor, "Shape", "i8", _MAX_RANK).tolist())
        if any(d < 1 for d in shape) or prod(shape) > _MAX_VALUES:
            raise FileFormatError(f"{name}: shape {shape} is not positive, or beyond {_MAX_VALUES}")
        quantization = tensor.Quantization()
        scale, zero, axis = np.zeros(0, "f4"), np.zeros(0, "i8"), 0
        if quantization is not None:
            self._verify(quantization._tab)
            scale = self._vector(quantization, "Scale", "f4", _MAX_VALUES)
            zero = self._vector(quantization, "ZeroPoint", "i8", _MAX_VALUES)
            axis = quantization.QuantizedDimension()
        if zero.size == 0:
            zero = np.zeros(scale.shape, "i8")
        if zero.size == 1 < scale.size:
            zero = np.repeat(zero, scale.size)
        if zero.shape != scale.shape or not (np.isfinite(scale) & (scale > 0)).all():
            raise FileFormatError(f"{name}: its scales are not finite and positive, or too few")
        if scale.size > 1 and not (0 <= axis < len(shape) and shape[axis] == scale.size):
            raise FileFormatError(f"{name}: got {scale.size} scales for axis {axis} of {shape}")
        data = self._constant(name, kind, shape, buffers, tensor.Buffer())
        return Tensor(index, name, shape, kind, scale, zero, axis, data)

    def _constant(
        self, name: str, kind: str, shape: tuple[int, ...], buffers: list[Any], number: int
    ) -> NDArray[Any] | None:
        if number >= len(buffers):
            raise FileFormatError(f"{name}: there is no buffer {number}")
        buffer = buffers[number]
        if buffer.Offset() > 1:
            raise NotCovered(f"{name}: its data lie behind the FlatBuffer, which is not covered")
        if buffer.DataLength() == 0:
            return None
        if kind not in _DTYPES:
            raise NotCovered(mismatch(f"tensor {name!r}", kind, f"one of {', '.join(_DTYPES)}"))
        dtype = np.dtype(_DTYPES[kind])
        if buffer.DataLength() != prod(shape) * dtype.itemsize:
            raise FileFormatError(f"{name}: got {buffer.DataLength()} bytes for {kind} {shape}")
        return np.asarray(buffer.DataAsNumpy()).view(dtype).reshape(shape)

    def _several(self, parent: Any, field: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        numbers = self._vector(parent, field, "i8", _MAX_INPUTS).tolist()
        if any(not 0 <= n < len(tensors) for n in numbers):
            raise FileFormatError(f"{field}: {numbers}, of {len(tensors)} tensors")
        return tuple(tensors[n] for n in numbers)

    def _operator(self, index: int, op: Any, codes: list[str], tensors: list[Tensor]) -> Operator:
        if op.OpcodeIndex() >= len(codes):
            raise FileFormatError(f"operator {index}: there is no code {op.OpcodeIndex()}")
        numbers = self._vector(op, "Inputs", "i8", _MAX_INPUTS).tolist()
        if any(not -1 <= n < len(tensors) for n in numbers):
            raise FileFormatError(f"operator {index}: inputs {numbers}, of {len(tensors)} tensors")
        inputs = tuple(None if n < 0 else tensors[n] for n in numbers)
        outputs = self._several(op, "Outputs", tensors)
        kind = codes[op.OpcodeIndex()]
        return Operator(index, kind, inputs, outputs, self._options(kind, op))

    def _options(self, kind: str, op: Any) -> Any:
        """The options by the accessors of the schema; where there are none, its defaults."""
        kinds = {v: k for k, v in vars(self._tflite.BuiltinOptions).items() if k[0] != "_"}
        name, table = kinds.get(op.BuiltinOptionsType(), "NONE"), op.BuiltinOptions()
        if name == "NONE" or table is None:
            return None
        options = getattr(self._tflite, name)()
        self._verify(table)
        options.Init(self._data, table.Pos)
        return options
