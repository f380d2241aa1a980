"""One file for one network: an uncompressed zip of `.npy` arrays and a JSON text, as `.npz` is.

    network.json        what the nodes are; names the arrays and their sha256
    network.sha256      sha256 of network.json, hexadecimal
    arrays/NNN.npy      the parameters, each in the narrowest integer type that holds it

See refqnn.container for what every file of ours promises.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import fields
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn import ops
from refqnn.container import (
    Container,
    array_to_npy,
    npy_to_array,
    read_file,
    write_atomically,
)
from refqnn.doors import Comparisons, Features, Predictions
from refqnn.errors import FileFormatError, NotCovered, mismatch
from refqnn.foreign import refuse_foreign
from refqnn.formats import BIPOLAR, IntFormat
from refqnn.graph import Node, inputs_of
from refqnn.network import Network
from refqnn.ops import Op
from refqnn.quantizers import (
    AffineQuantizer,
    Dequantizer,
    PowerOfTwoQuantizer,
    Quantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
)

__all__ = ["FORMAT_VERSION", "digest", "from_bytes", "load", "save", "to_bytes"]

FORMAT_VERSION = 1

_FILE = Container("network", FORMAT_VERSION, listing="arrays")

ESTIMATOR = Container("estimator", 1, listing="members")  # see refqnn.training.estimator_files
NETWORK = "network.refqnn"  # its member that is the file of its network

_OPS: dict[str, type[Op]] = {op.kind: op for op in ops.KINDS}
_QUANTIZERS: dict[str, type[Quantizer]] = {
    SymmetricQuantizer.kind: SymmetricQuantizer,
    PowerOfTwoQuantizer.kind: PowerOfTwoQuantizer,
    AffineQuantizer.kind: AffineQuantizer,
    ThresholdQuantizer.kind: ThresholdQuantizer,
    Features.kind: Features,
    Comparisons.kind: Comparisons,
}
_DEQUANTIZERS = {"Dequantizer": Dequantizer, Predictions.kind: Predictions}


def save(network: Network, path: str | Path) -> None:
    """Write the network beside `path`, then rename: an interrupted save leaves the old file.

    Raises: NotCovered for a node kind that `load` could not read.
    """
    data = to_bytes(network)
    write_atomically(path, lambda file: file.write(data))


def load(path: str | Path) -> Network:
    """The network in its own file or an estimator's.  Raises: FileFormatError; OSError as open."""
    data = read_file(path)
    refuse_foreign(path)
    return from_bytes(data, path)


def to_bytes(network: Network) -> bytes:
    """The content of the network's file.  Raises: NotCovered."""
    for node in network.nodes:
        if _OPS.get(node.op.kind) is not type(node.op):
            kinds = ", ".join(_OPS)
            got = f"{node.op.kind} (of {type(node.op).__module__})"
            raise NotCovered(mismatch(f"kind of node {node.name!r}", got, f"one of {kinds}"))
    return _FILE.pack(*_encode_network(network))


def from_bytes(data: bytes, name: str | Path = "network") -> Network:
    """The network in the content of a file.  Raises: FileFormatError that begins with `name`."""
    if ESTIMATOR.describes(data):
        return ESTIMATOR.unpack(data, name, _network_of_estimator)
    return _FILE.unpack(data, name, _decode_network)


def _network_of_estimator(content: dict[str, Any], members: dict[str, bytes]) -> Network:
    if NETWORK not in members:
        raise FileFormatError(mismatch(NETWORK, "none", "the network of a quantized estimator"))
    return _FILE.unpack(members[NETWORK], NETWORK, _decode_network)


def digest(network: Network) -> str:
    """sha256 of network.json, which holds the sha256 of every array; less the names of features.

    Kinds of the user's own count with their parameters where these are plain: numbers, text,
    arrays, and lists, tuples and dictionaries of such.  With others a digest equals no other.
    """
    content, arrays = _encode_network(network)
    if isinstance(network.input_quantizer, Features):
        del content["input_quantizer"]["parameters"]["names"]
    return hashlib.sha256(_FILE.text(content, arrays)).hexdigest()


# --- writing ----------------------------------------------------------------------------------


def _encode_network(network: Network) -> tuple[dict[str, Any], dict[str, bytes]]:
    arrays: dict[str, bytes] = {}
    content = {
        "input_shape": list(network.input_shape),
        "input_format": _encode(network.input_format, arrays),
        "input_quantizer": _encode_fields(network.input_quantizer, arrays),
        "nodes": [
            {"name": node.name, "inputs": list(inputs_of(node)), **_encode_op(node.op, arrays)}
            for node in network.nodes
        ],
        "output": network.output,
        "output_dequantizer": _encode_fields(network.output_dequantizer, arrays),
    }
    return content, arrays


def _encode_op(op: Op, arrays: dict[str, bytes]) -> dict[str, Any]:
    if _OPS.get(op.kind) is type(op):
        return _encode_fields(op, arrays) or {}
    return {"kind": op.kind, "class": repr(type(op)), "parameters": _told(dict(vars(op)))}


def _told(value: Any) -> Any:
    """Plain data that equal values share and other values do not."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        head = [value.dtype.str, list(value.shape)]
        return {"array": [*head, hashlib.sha256(value.tobytes()).hexdigest()]}
    if isinstance(value, np.ndarray):
        return {"objects": [list(value.shape), _told(value.ravel().tolist())]}
    if value is None or isinstance(value, (str, int, float, bytes, Enum, Fraction, IntFormat)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(_told, value)]
    if isinstance(value, dict):
        return [[_told(k), _told(v)] for k, v in value.items()]
    return {"unknown": secrets.token_hex(16)}


def _encode_fields(value: Any, arrays: dict[str, bytes]) -> dict[str, Any] | None:
    if value is None:
        return None
    parameters = {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value) if f.init}
    return {"kind": getattr(value, "kind", type(value).__name__), "parameters": parameters}


def _encode(value: Any, arrays: dict[str, bytes]) -> Any:
    if isinstance(value, np.ndarray):
        name = f"arrays/{len(arrays):03d}.npy"
        arrays[name] = _npy(value)
        return {"array": name}
    if isinstance(value, IntFormat):
        if value == BIPOLAR:
            return {"format": "bipolar"}
        return {"format": [value.bits, value.signed, value.narrow]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [_encode(v, arrays) for v in value]
    return value.value if hasattr(value, "value") else value


def _npy(array: NDArray[Any]) -> bytes:
    if array.dtype.kind == "i":
        for dtype in (np.int8, np.int16, np.int32, np.int64):
            info = np.iinfo(dtype)
            if info.min <= array.min() and array.max() <= info.max:
                array = array.astype(dtype)
                break
    return array_to_npy(array)


# --- reading ----------------------------------------------------------------------------------


def _decode_network(content: dict[str, Any], members: dict[str, bytes]) -> Network:
    arrays = {name: npy_to_array(data) for name, data in members.items()}
    nodes = [
        Node(item["name"], _decode_fields(_OPS, item, arrays), tuple(item["inputs"]))
        for item in content["nodes"]
    ]
    quantizer, dequantizer = content["input_quantizer"], content["output_dequantizer"]
    return Network(
        nodes,
        input_shape=tuple(content["input_shape"]),
        input_format=_decode(content["input_format"], arrays),
        input_quantizer=quantizer and _decode_fields(_QUANTIZERS, quantizer, arrays),
        output_dequantizer=dequantizer and _decode_fields(_DEQUANTIZERS, dequantizer, arrays),
        output=content["output"],
    )


def _decode_fields(classes: Any, item: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Any:
    if item["kind"] not in classes:
        raise FileFormatError(f"unknown kind {item['kind']!r}; a newer refqnn may have written it")
    parameters = {name: _decode(value, arrays) for name, value in item["parameters"].items()}
    return classes[item["kind"]](**parameters)


def _decode(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            array = arrays[value["array"]]
            return array.astype(np.int64) if array.dtype.kind == "i" else array
        if set(value) == {"format"}:
            return BIPOLAR if value["format"] == "bipolar" else IntFormat(*value["format"])
        raise FileFormatError(f"unknown value {value!r}")
    return tuple(_decode(v, arrays) for v in value) if isinstance(value, list) else value
