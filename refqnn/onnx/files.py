"""Opening ONNX files that may be truncated, inconsistent or hostile.

A model is parsed as data and nothing else: no operator runs, no function is inlined, and external
tensor data is read only from regular files inside the folder of the model.  Every tensor's declared
shape is checked against the bytes that are there before any memory is taken.
"""

from __future__ import annotations

import heapq
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.container import read_file
from refqnn.errors import FileFormatError, InvalidType, MissingExtra, NotCovered, mismatch
from refqnn.foreign import refuse_foreign

__all__ = [
    "MAX_ELEMENTS",
    "attributes",
    "describe",
    "import_onnx",
    "open_model",
    "sorted_nodes",
    "tensor",
    "type_name",
]

MAX_ELEMENTS = 2**27
"""More elements than this in one tensor are refused."""

_MAX_FILE = 2**31 - 1  # the limit of a protobuf message


def import_onnx() -> Any:
    """The onnx package.  Raises: MissingExtra."""
    # An exception inside the first import, of the C++ part, would end the process.
    first = "onnx" not in sys.modules
    try:
        with _signals_wait() if first else nullcontext():
            import onnx
            import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtra("onnx", "onnx") from error
    return onnx


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Control-C and SIGTERM that arrive inside are handled at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # their handlers run in the main thread
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {n: handler for n in numbers if callable(handler := signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def open_model(source: Any) -> tuple[Any, Path | None]:
    """The ModelProto of a path, of bytes, or of itself, and its folder (None: no external data).

    Raises: FileFormatError, InvalidType, NotCovered, MissingExtra; OSError as open does.
    """
    onnx = import_onnx()
    name = "model"
    folder: Path | None = None
    if isinstance(source, onnx.ModelProto):
        model = source
    else:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, (str, os.PathLike)):
            path = Path(source)
            if path.stat().st_size > _MAX_FILE:
                raise FileFormatError(f"{path}: larger than a protobuf message can be")
            data, name, folder = read_file(path), str(path), path.resolve().parent
        else:
            expected = "a path, bytes or a ModelProto"
            raise InvalidType(mismatch("model", type(source).__name__, expected))
        try:
            model = onnx.ModelProto.FromString(data)
        except Exception as error:  # protobuf's own exceptions differ between its backends
            if folder is not None:
                refuse_foreign(name, "an ONNX file", ())
            raise FileFormatError(f"{name}: not a complete ONNX file ({error})") from None
    if not model.HasField("graph") or not model.graph.node:
        raise FileFormatError(f"{name}: got no graph with nodes, expected an ONNX model")
    if model.functions:
        names = ", ".join(sorted({f.name for f in model.functions}))
        raise NotCovered(f"model: it defines functions of its own ({names}); inline them first")
    if model.graph.sparse_initializer:
        raise NotCovered("model: it holds sparse tensors, which are not covered")
    return model, folder


def sorted_nodes(graph: Any, known: Sequence[str]) -> list[Any]:
    """The nodes in topological order; among ready nodes, the order of the file.

    Raises: FileFormatError for a cycle, a tensor that nothing makes, or one made twice.
    """
    maker: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in maker or name in known):
                raise FileFormatError(f"tensor {name!r}: more than one node makes it")
            maker[name] = i
    available = {"", *known}
    waiting: list[int] = []
    users: dict[int, list[int]] = {}
    for i, node in enumerate(graph.node):
        sources = set()
        for name in node.input:
            if name in available:
                continue
            if name not in maker:
                raise FileFormatError(f"{describe(node)}: nothing makes its input {name!r}")
            sources.add(maker[name])
        waiting.append(len(sources))
        for source in sources:
            users.setdefault(source, []).append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(graph.node[i])
        for user in users.get(i, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    if len(order) != len(graph.node):
        stuck = next(node for node, count in zip(graph.node, waiting) if count > 0)
        raise FileFormatError(f"{describe(stuck)}: it is part of a cycle or behind one")
    return order


def type_name(data_type: int) -> str:
    """The name of an element type: FLOAT, INT8, UINT4, ...  Raises: FileFormatError."""
    kinds = import_onnx().TensorProto.DataType
    if data_type not in kinds.values():
        raise FileFormatError(f"data type {data_type}: not one of ONNX")
    return str(kinds.Name(data_type))


def describe(node: Any) -> str:
    """The name that our messages give a node."""
    name = node.name or (node.output[0] if node.output else "")
    return f"node {name!r} ({node.op_type})"


def attributes(node: Any, folder: Path | None) -> dict[str, Any]:
    """Attribute values: int, float, str, lists of them, arrays.

    Raises: FileFormatError, NotCovered for graphs and types.
    """
    onnx = import_onnx()
    kinds = onnx.AttributeProto
    values: dict[str, Any] = {}
    for a in node.attribute:
        if a.ref_attr_name:
            raise FileFormatError(f"{describe(node)}: attribute {a.name!r} refers to a function")
        if a.type == kinds.TENSOR:
            values[a.name] = tensor(a.t, folder)
        elif a.type == kinds.INT:
            values[a.name] = int(a.i)
        elif a.type == kinds.FLOAT:
            values[a.name] = float(a.f)
        elif a.type == kinds.STRING:
            values[a.name] = a.s.decode("utf-8", "replace")
        elif a.type == kinds.INTS:
            values[a.name] = [int(v) for v in a.ints]
        elif a.type == kinds.FLOATS:
            values[a.name] = [float(v) for v in a.floats]
        elif a.type == kinds.STRINGS:
            values[a.name] = [s.decode("utf-8", "replace") for s in a.strings]
        else:
            raise NotCovered(f"{describe(node)}: attribute {a.name!r} holds a graph or a type")
    return values


def tensor(proto: Any, folder: Path | None) -> NDArray[Any]:
    """The values of a TensorProto.

    Raises: FileFormatError when shape and data disagree or the data lie outside the folder.
    """
    onnx = import_onnx()
    name = proto.name or "tensor"
    dims = [int(d) for d in proto.dims]
    if any(d < 0 for d in dims) or prod(dims) > MAX_ELEMENTS:
        raise FileFormatError(f"{name}: shape {dims} is negative or above {MAX_ELEMENTS} elements")
    kinds = {value: kind for kind, value in onnx.TensorProto.DataType.items()}
    bits = _BITS.get(kinds.get(proto.data_type, ""))
    if bits is None:
        got = kinds.get(proto.data_type, f"data type {proto.data_type}")
        raise NotCovered(mismatch(f"tensor {name}", got, "integers or ordinary floats"))
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        inline = onnx.TensorProto()
        inline.name, inline.data_type = proto.name, proto.data_type
        inline.dims.extend(dims)
        inline.raw_data = _external_bytes(proto, name, folder)
        proto = inline
    size = (prod(dims) * bits + 7) // 8
    if proto.HasField("raw_data") and len(proto.raw_data) != size:
        got = f"{len(proto.raw_data)} bytes"
        raise FileFormatError(f"{name}: got {got} for shape {dims} of {bits}-bit values")
    try:
        array = np.asarray(onnx.numpy_helper.to_array(proto))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileFormatError(f"{name}: its data do not fill shape {dims} ({error})") from None
    if array.shape != tuple(dims):
        raise FileFormatError(f"{name}: got {array.size} values for shape {dims}")
    if array.dtype.kind in "fiub":
        return array
    # ml_dtypes: integers of 2 and 4 bits, bfloat16; float32 holds all of them.
    floats = array.astype(np.float32)
    integer = {"i": np.int8, "u": np.uint8}.get(array.dtype.name[0])
    return floats if integer is None else floats.astype(integer)


_BITS = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 8),
    **dict.fromkeys(("INT4", "UINT4"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
}


def _external_bytes(proto: Any, name: str, folder: Path | None) -> bytes:
    """The bytes an external tensor names, from a regular file inside `folder`."""
    entries: Mapping[str, str] = {e.key: e.value for e in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise FileFormatError(f"{name}: its data are in a file, and the model is not; give a path")
    root = os.path.realpath(folder)
    target = os.path.realpath(os.path.join(root, location))
    if (
        not location
        or os.path.isabs(location)
        or os.path.commonpath([root, target]) != root
        or not os.path.isfile(target)
    ):
        expected = "a regular file inside the folder of the model"
        raise FileFormatError(mismatch(f"external data of {name}", repr(location), expected))
    size = os.path.getsize(target)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError:
        raise FileFormatError(f"{name}: offset or length of its data is not an integer") from None
    if offset < 0 or length < 0 or offset + length > size or length > 8 * MAX_ELEMENTS:
        got = f"{length} bytes from {offset}"
        raise FileFormatError(mismatch(f"external data of {name}", got, f"inside {size} bytes"))
    with open(target, "rb") as file:
        file.seek(offset)
        return file.read(length)
