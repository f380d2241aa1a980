"""How values are written in files and on the wire, and read back.

    integer         JSON number; beyond 2**53 in magnitude a string of decimal digits
    float           string: hexadecimal digits of the exact value, "inf", "-inf", "nan"
    tensor          {"dtype": "int" | "float32" | "float64", "shape": [], "data": []}, row-major

Integers read back as int64 arrays, or as Python integers in object arrays where int64 is too
small.  An integer that is written in another way (2.0, "28", 9007199254740993) is no integer.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

from refqnn.arithmetic import to_int64_if_possible
from refqnn.conformance.operations import OPERATIONS, Array, Field, Kind, Values
from refqnn.errors import FileFormatError, InvalidType, mismatch
from refqnn.formats import as_integers, is_integer

__all__ = ["Data", "canonical", "decode", "decode_fields", "encode", "encode_fields"]

Data = Any  # what JSON has: None, bool, int, float, str, a list or a dict of Data

_EXACT = 2**53
_LINE = 100
_TRACE = Field("int_tensor", "a result named after a node")


def encode(value: Any, field: Field) -> Data:
    """A Python value as JSON data.

    Raises: InvalidType when the value is not of the field's kind.

    >>> encode(np.array([[1, 2**60]]), Field("int_tensor", ""))
    {'dtype': 'int', 'shape': [1, 2], 'data': [1, '1152921504606846976']}
    >>> encode(np.float32([0.1]), Field("float_tensor", ""))["data"]
    ['0x1.99999a0000000p-4']
    """
    return None if value is None and field.optional else _ENCODE[field.kind](value)


def _encode_int(value: object) -> int | str:
    if not is_integer(value):
        raise InvalidType(mismatch("value", repr(value), "an integer"))
    value = int(value)
    return value if abs(value) <= _EXACT else str(value)


def _encode_integers(value: object) -> Data:
    array = as_integers(value, "tensor")
    return _tensor("int", array, map(_encode_int, array.ravel().tolist()))


def _encode_floats(value: object) -> Data:
    array = np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        raise InvalidType(mismatch("tensor", f"dtype {array.dtype}", "float32 or float64"))
    return _tensor(str(array.dtype), array, (float(v).hex() for v in array.ravel().tolist()))


def _tensor(dtype: str, array: Array, data: Iterable[int | str]) -> Data:
    return {"dtype": dtype, "shape": list(array.shape), "data": list(data)}


def _network(convert: Callable[..., Values]) -> Callable[[Mapping[str, Any]], Values]:
    """A network with the parameters of its nodes converted."""

    def converted(network: Mapping[str, Any]) -> Values:
        nodes = [
            {**n, "parameters": convert(n["parameters"], OPERATIONS[n["operation"]].parameters)}
            for n in network["nodes"]
        ]
        return {**network, "nodes": nodes}

    return converted


def encode_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> Values:
    """Named values in the order of the fields; names without a field are int_tensors of a trace."""
    known = {name: encode(values[name], fields[name]) for name in fields if name in values}
    extra = {name: encode(v, _TRACE) for name, v in values.items() if name not in fields}
    return {**known, **extra}


def decode(data: Data, field: Field) -> Any:
    """JSON data as a Python value; the inverse of `encode`.

    Raises: FileFormatError when the data is not of the field's kind.
    """
    try:
        if data is None and field.optional:
            return None
        _require(field.kind != "choice" or data in field.choices)
        return _DECODE[field.kind](data)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        # From None: the cause may be nested too deeply to be printed.
        got = reprlib.repr(data)[:_LINE]
        raise FileFormatError(mismatch("value", got, f"a {field.kind}")) from None


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _list(data: Data) -> list[Data]:
    _require(isinstance(data, list))
    return list(data)


def _decode_bool(data: Data) -> bool:
    _require(isinstance(data, bool))
    return bool(data)


def _decode_int(data: Data) -> int:
    _require(type(data) in (int, str) and _encode_int(int(data)) == data)
    return int(data)


def _decode_ints(data: Data) -> tuple[int, ...]:
    return tuple(map(_decode_int, _list(data)))


def _decode_pair(data: Data) -> tuple[int, int]:
    a, b = _decode_ints(data)
    return a, b


def _decode_integers(data: Data) -> Array:
    _require(data["dtype"] == "int")
    values = _decode_ints(data["data"])
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return to_int64_if_possible(_shaped(array, data))


def _decode_floats(data: Data) -> Array:
    _require(data["dtype"] in ("float32", "float64"))
    values = [float.fromhex(v) for v in _list(data["data"])]
    array = np.array(values, dtype=np.float64).astype(data["dtype"])
    _require(all(float(a) == b or b != b for a, b in zip(array, values)))
    return _shaped(array, data)


def _shaped(array: Array, data: Data) -> Array:
    shape = _decode_ints(data["shape"])
    _require(prod(shape) == array.size and data.keys() == {"dtype", "shape", "data"})
    return array.reshape(shape)


def decode_fields(data: Data, fields: Mapping[str, Field]) -> Values:
    """Named JSON data as Python values; names without a field are int_tensors of a trace."""
    if not isinstance(data, Mapping):
        raise FileFormatError(mismatch("value", type(data).__name__, "an object"))
    return {name: decode(value, fields.get(name, _TRACE)) for name, value in data.items()}


_ENCODE: dict[Kind, Callable[[Any], Data]] = {
    "bool": lambda value: value,
    "choice": lambda value: value,
    "int": _encode_int,
    "ints": lambda value: [_encode_int(v) for v in value],
    "pairs": lambda value: [[_encode_int(v) for v in pair] for pair in value],
    "int_tensor": _encode_integers,
    "int_tensors": lambda value: [_encode_integers(v) for v in value],
    "float_tensor": _encode_floats,
    "network": _network(encode_fields),
}
_DECODE: dict[Kind, Callable[[Data], Any]] = {
    "bool": _decode_bool,
    "choice": lambda data: data,
    "int": _decode_int,
    "ints": _decode_ints,
    "pairs": lambda data: tuple(map(_decode_pair, _list(data))),
    "int_tensor": _decode_integers,
    "int_tensors": lambda data: list(map(_decode_integers, _list(data))),
    "float_tensor": _decode_floats,
    "network": _network(decode_fields),
}


def canonical(value: Data) -> str:
    """The one text of JSON data: short values and tensors on a line, the rest indented by one.

    >>> print(canonical({"a": [1, 2], "b": {}}), end="")
    {"a": [1, 2], "b": {}}
    """
    return _text(value, 0) + "\n"


def _text(value: Data, depth: int) -> str:
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
