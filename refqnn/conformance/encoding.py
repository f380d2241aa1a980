"""How values are written in files and on the wire, and read back.

    integer         JSON number; beyond 2**53 in magnitude a string of decimal digits
    float           string: hexadecimal digits of the exact value, "inf", "-inf", "nan"
    tensor          {"dtype": "int" | "float32" | "float64", "shape": [], "data": []}, row-major

Integers read back as int64 arrays, or as Python integers in object arrays where int64 is too
small.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from refqnn.arithmetic import to_int64_if_possible
from refqnn.conformance.operations import OPERATIONS, Field
from refqnn.errors import FileFormatError, InvalidType, mismatch
from refqnn.formats import as_integers

__all__ = ["canonical", "decode", "decode_fields", "encode", "encode_fields"]

_EXACT = 2**53
_LINE = 100


def encode(value: Any, field: Field) -> Any:
    """A Python value as JSON data.

    Raises: InvalidType when the value is not of the field's kind.

    >>> encode(np.array([[1, 2**60]]), Field("int_tensor", ""))
    {'dtype': 'int', 'shape': [1, 2], 'data': [1, '1152921504606846976']}
    >>> encode(np.float32([0.1]), Field("float_tensor", ""))["data"]
    ['0x1.99999a0000000p-4']
    """
    if value is None and field.optional:
        return None
    if field.kind in ("bool", "choice"):
        return value
    if field.kind == "int":
        return _encode_int(value)
    if field.kind == "ints":
        return [_encode_int(v) for v in value]
    if field.kind == "pairs":
        return [[_encode_int(v) for v in pair] for pair in value]
    if field.kind == "int_tensor":
        array = as_integers(value, "tensor")
        data = [_encode_int(v) for v in array.ravel().tolist()]
        return {"dtype": "int", "shape": list(array.shape), "data": data}
    if field.kind == "int_tensors":
        return [encode(v, Field("int_tensor", "")) for v in value]
    if field.kind == "float_tensor":
        return _encode_floats(np.asarray(value))
    return _encode_network(value)


def _encode_int(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidType(mismatch("value", repr(value), "an integer"))
    value = int(value)
    return value if abs(value) <= _EXACT else str(value)


def _encode_floats(array: Any) -> dict[str, Any]:
    if array.dtype not in (np.float32, np.float64):
        raise InvalidType(mismatch("tensor", f"dtype {array.dtype}", "float32 or float64"))
    data = [float(v).hex() for v in array.ravel().tolist()]
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def _encode_network(network: Mapping[str, Any]) -> dict[str, Any]:
    nodes = [
        {
            **node,
            "parameters": encode_fields(
                node["parameters"], OPERATIONS[node["operation"]].parameters
            ),
        }
        for node in network["nodes"]
    ]
    return {**network, "nodes": nodes}


def encode_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Named values in the order of the fields; names without a field are int_tensors of a trace."""
    trace = Field("int_tensor", "")
    known = {name: encode(values[name], fields[name]) for name in fields if name in values}
    extra = {name: encode(v, trace) for name, v in values.items() if name not in fields}
    return {**known, **extra}


def decode(data: Any, field: Field) -> Any:
    """JSON data as a Python value; the inverse of `encode`.

    Raises: FileFormatError when the data is not of the field's kind.
    """
    try:
        return _decode(data, field)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        # From None: the cause may be nested too deeply to be printed.
        got = reprlib.repr(data)[:_LINE]
        raise FileFormatError(mismatch("value", got, f"a {field.kind}")) from None


def _decode(data: Any, field: Field) -> Any:
    if data is None and field.optional:
        return None
    if field.kind == "bool":
        return _require(isinstance(data, bool), data)
    if field.kind == "choice":
        return _require(data in field.choices, data)
    if field.kind == "int":
        return _decode_int(data)
    if field.kind == "ints":
        return tuple(_decode_int(v) for v in data)
    if field.kind == "pairs":
        return tuple((_decode_int(a), _decode_int(b)) for a, b in data)
    if field.kind == "int_tensor":
        _require(data["dtype"] == "int", data)
        array = np.empty(len(data["data"]), dtype=object)
        array[:] = [_decode_int(v) for v in data["data"]]
        return to_int64_if_possible(array.reshape(_shape(data)))
    if field.kind == "int_tensors":
        return [_decode(v, Field("int_tensor", "")) for v in data]
    if field.kind == "float_tensor":
        _require(data["dtype"] in ("float32", "float64"), data)
        values = [float.fromhex(v) for v in data["data"]]
        array = np.array(values, dtype=np.float64).astype(data["dtype"])
        _require(all(float(a) == b or b != b for a, b in zip(array, values)), data)
        return array.reshape(_shape(data))
    nodes = [
        {
            **node,
            "parameters": decode_fields(
                node["parameters"], OPERATIONS[node["operation"]].parameters
            ),
        }
        for node in data["nodes"]
    ]
    return {**data, "nodes": nodes}


def decode_fields(data: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Named JSON data as Python values; names without a field are int_tensors of a trace."""
    trace = Field("int_tensor", "")
    if not isinstance(data, Mapping):
        raise FileFormatError(mismatch("value", type(data).__name__, "an object"))
    return {name: decode(value, fields.get(name, trace)) for name, value in data.items()}


def _decode_int(data: Any) -> int:
    if isinstance(data, str):
        return int(data)
    _require(isinstance(data, int) and not isinstance(data, bool), data)
    return int(data)


def _shape(data: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(_decode_int(d) for d in data["shape"])
    _require(prod(shape) == len(data["data"]), data)
    return shape


def _require(condition: bool, data: Any) -> Any:
    if not condition:
        raise ValueError(data)
    return data


def canonical(value: Any) -> str:
    """The one text of JSON data: short values and tensors on a line, the rest indented by one.

    >>> print(canonical({"a": [1, 2], "b": {}}), end="")
    {"a": [1, 2], "b": {}}
    """
    return _text(value, 0) + "\n"


def _text(value: Any, depth: int) -> str:
    line = json.dumps(value, ensure_ascii=False)
    is_tensor = isinstance(value, dict) and "dtype" in value
    if is_tensor or not isinstance(value, (dict, list)) or len(line) + depth <= _LINE:
        return line
    indent, outdent = " " * (depth + 1), " " * depth
    if isinstance(value, list):
        items = [_text(v, depth + 1) for v in value]
        opening, closing = "[", "]"
    else:
        items = [f"{json.dumps(k)}: {_text(v, depth + 1)}" for k, v in value.items()]
        opening, closing = "{", "}"
    return f"{opening}\n{indent}" + f",\n{indent}".join(items) + f"\n{outdent}{closing}"
