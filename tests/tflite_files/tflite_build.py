"""TFLite models written by the tests: tensors and operators in, the bytes of a file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

_TYPES = {"int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32", "int64": "INT64"}


@dataclass
class T:
    """A tensor: its shape, scale and zero point, and its data where it is a constant."""

    shape: Sequence[int]
    scale: Any = None
    zero: Any = 0
    data: Any = None
    type: str = "int8"
    axis: int = 0


@dataclass
class O:  # noqa: E742
    """An operator: its kind, the numbers of its tensors (-1: left out), its options."""

    kind: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def model(
    tensors: Sequence[T], operators: Sequence[O], inputs: Sequence[int], outputs: Sequence[int]
) -> bytes:
    """The file of one graph."""
    b = flatbuffers.Builder(1024)
    buffers = [_table(b, "Buffer")]
    numbers = []
    for t in tensors:
        numbers.append(len(buffers) if t.data is not None else 0)
        if t.data is not None:
            data = b.CreateNumpyVector(np.ascontiguousarray(t.data).view(np.uint8).ravel())
            buffers.append(_table(b, "Buffer", Data=data))
    graph = _table(
        b,
        "SubGraph",
        Tensors=_offsets(
            b, [_tensor(b, i, t, n) for i, (t, n) in enumerate(zip(tensors, numbers))]
        ),
        Inputs=_numbers(b, inputs, np.int32),
        Outputs=_numbers(b, outputs, np.int32),
        Operators=_offsets(b, [_operator(b, i, op) for i, op in enumerate(operators)]),
    )
    codes = [_code(b, op.kind) for op in operators]
    root = _table(
        b,
        "Model",
        Version=3,
        OperatorCodes=_offsets(b, codes),
        Subgraphs=_offsets(b, [graph]),
        Buffers=_offsets(b, buffers),
    )
    b.Finish(root, b"TFL3")
    return bytes(b.Output())


def _code(b: Any, kind: str) -> int:
    code = getattr(tflite.BuiltinOperator, kind)
    version = {
        "RESHAPE": 1,
        "RELU_N1_TO_1": 1,
        "HARD_SWISH": 1,
        "EXPAND_DIMS": 1,
        "SQUEEZE": 1,
        "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3,
        "FULLY_CONNECTED": 4,
    }.get(kind, 2)
    return _table(
        b, "OperatorCode", DeprecatedBuiltinCode=min(code, 127), BuiltinCode=code, Version=version
    )


def _tensor(b: Any, i: int, t: T, buffer: int) -> int:
    quantization = {}
    if t.scale is not None:
        scale = np.atleast_1d(np.asarray(t.scale, np.float32))
        zero = np.broadcast_to(np.asarray(t.zero, np.int64), scale.shape)
        q = _table(
            b,
            "QuantizationParameters",
            Scale=_numbers(b, scale, np.float32),
            ZeroPoint=_numbers(b, zero, np.int64),
            QuantizedDimension=t.axis,
        )
        quantization = {"Quantization": q}
    return _table(
        b,
        "Tensor",
        Shape=_numbers(b, t.shape, np.int32),
        Type=getattr(tflite.TensorType, _TYPES.get(t.type, t.type.upper())),
        Buffer=buffer,
        Name=b.CreateString(f"t{i}"),
        **quantization,
    )


def _operator(b: Any, index: int, op: O) -> int:
    options = {}
    if op.options:
        values = {
            k: _numbers(b, v, np.int32) if isinstance(v, (list, tuple)) else v
            for k, v in op.values.items()
        }
        options = {
            "BuiltinOptionsType": getattr(tflite.BuiltinOptions, op.options),
            "BuiltinOptions": _table(b, op.options, **values),
        }
    return _table(
        b,
        "Operator",
        OpcodeIndex=index,
        Inputs=_numbers(b, op.inputs, np.int32),
        Outputs=_numbers(b, op.outputs, np.int32),
        **options,
    )


def _table(b: Any, kind: str, **values: Any) -> int:
    """One table, by the builder functions that the schema generated."""
    getattr(tflite, f"{kind}Start")(b)
    for name, value in values.items():
        getattr(tflite, f"{kind}Add{name}")(b, value)
    return int(getattr(tflite, f"{kind}End")(b))


def _numbers(b: Any, values: Any, dtype: Any) -> int:
    return int(b.CreateNumpyVector(np.asarray(values, dtype)))


def _offsets(b: Any, tables: Sequence[int]) -> int:
    b.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        b.PrependUOffsetTRelative(table)
    return int(b.EndVector())
