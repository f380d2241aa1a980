"""One file for one fitted estimator: a stored zip of JSON, `.npy` arrays and the integer network.

    estimator.json       class, parameters, fitted attributes; names every other member's sha256
    estimator.sha256     sha256 of estimator.json, hexadecimal
    network.refqnn       the network's own file (`refqnn.storage`)
    arrays/NNN.npy       arrays

Nothing in the file is unpickled or imported by name: classes are looked up in short lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import ValidSplit
from skorch.history import History
from torch import Tensor, nn

from refqnn import storage
from refqnn.accumulator import certify
from refqnn.container import array_to_npy, npy_to_array, read_file, write_atomically
from refqnn.errors import FileFormatError, NotCovered, mismatch
from refqnn.training.base import LEARNED, Estimator
from refqnn.training.modules import module_from_state, module_state

__all__ = ["load", "save", "stored"]

_TORCH = {"nn": nn, "optim": torch.optim}
_CLASSES: dict[str, type[Estimator]] = {}

E = TypeVar("E", bound=type[Estimator])


def stored(estimator: E) -> E:
    """Decorator: what a file may hold is an estimator of this class, under its name."""
    _CLASSES[estimator.__name__] = estimator
    return estimator


# --- writing ------------------------------------------------------------------------------------


def save(estimator: Estimator, path: str | Path) -> None:
    """Write a fitted estimator beside `path`, then rename.  See `NeuralNetClassifier.save`."""
    arrays: dict[str, bytes] = {}
    fitted = {**estimator._learned(), "history_": estimator.history_}
    kind, arguments, state = module_state(estimator.module_)
    content: dict[str, Any] = {
        "class": type(estimator).__name__,
        "parameters": _encode_all(estimator.get_params(), arrays),
        "fitted": _encode_all(fitted, arrays),
        "module": {
            "kind": kind,
            "arguments": _encode(arguments, arrays, "module"),
            "state": _encode(state, arrays, "module"),
        },
    }
    members = dict(arrays)
    if hasattr(estimator, "network_"):
        members[storage.NETWORK] = storage.to_bytes(estimator.network_)
    data = storage.ESTIMATOR.pack(content, members)
    write_atomically(path, lambda file: file.write(data))


def _encode_all(values: dict[str, Any], arrays: dict[str, bytes]) -> dict[str, Any]:
    """In the order of the names, whoever set them: equal estimators make equal files."""
    return {name: _encode(values[name], arrays, name) for name in sorted(values)}


def _encode(value: Any, arrays: dict[str, bytes], name: str) -> Any:
    """JSON of a value; arrays go into `arrays`."""
    if isinstance(value, History):
        rows = [{k: v for k, v in row.items() if k != "batches"} for row in value]
        return {"history": [_encode(row, arrays, name) for row in rows]}
    if isinstance(value, Tensor):
        return {"tensor": _add(arrays, value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray):
        if value.dtype == object:  # labels and column names
            return {"objects": [_encode(v, arrays, name) for v in value.tolist()]}
        return {"array": _add(arrays, value)}
    if isinstance(value, np.generic):
        return _encode(value.item(), arrays, name)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(v, arrays, name) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(v, arrays, name) for v in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(value[key], arrays, name) for key in sorted(value)}}
    if isinstance(value, type):
        class_name: str = getattr(value, "__name__", "")
        for package, module in _TORCH.items():
            if getattr(module, class_name, None) is value:
                return {"torch": [package, class_name]}
    if type(value) is ValidSplit:
        options = {k: getattr(value, k) for k in ("cv", "stratified", "random_state")}
        return {"valid_split": {k: _encode(v, arrays, name) for k, v in options.items()}}
    expected = (
        "numbers, text, arrays, or a class of torch.nn or torch.optim; set it to None before saving"
    )
    raise NotCovered(mismatch(name, repr(value), expected))


def _add(arrays: dict[str, bytes], array: NDArray[Any]) -> str:
    name = f"arrays/{len(arrays):03d}.npy"
    arrays[name] = array_to_npy(array)
    return name


# --- reading ------------------------------------------------------------------------------------


def load(path: str | Path) -> Estimator:
    """The estimator in a file that `save` wrote.  Raises: FileFormatError; OSError as open does."""
    return storage.ESTIMATOR.unpack(read_file(path), path, _decode_estimator)


def _decode_estimator(content: dict[str, Any], members: dict[str, bytes]) -> Estimator:
    if content["class"] not in _CLASSES:
        raise FileFormatError(f"unknown estimator {content['class']!r}")
    parameters = {n: _decode(v, members) for n, v in content["parameters"].items()}
    estimator = _CLASSES[content["class"]](**parameters)
    known = {*LEARNED, *estimator._own, "history_"}
    if not known >= set(content["fitted"]):
        got = sorted(set(content["fitted"]) - known)
        raise FileFormatError(mismatch("fitted", got, f"attributes of {content['class']}"))
    estimator.__dict__.update({name: _decode(v, members) for name, v in content["fitted"].items()})
    module = content["module"]
    estimator.module_ = module_from_state(
        module["kind"], _decode(module["arguments"], members), _decode(module["state"], members)
    )
    estimator._check_learned()
    if estimator._quantized:
        estimator.network_ = storage.from_bytes(members[storage.NETWORK])
        estimator._check_network()
        estimator.certificate_ = certify(estimator.network_)
    return estimator


def _decode(value: Any, members: dict[str, bytes]) -> Any:
    if isinstance(value, list):
        return [_decode(v, members) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag in ("array", "tensor"):
        array = npy_to_array(members[inner])
        return torch.from_numpy(array) if tag == "tensor" else array
    if tag == "objects":
        result = np.empty(len(inner), dtype=object)
        result[:] = [_decode(v, members) for v in inner]
        return result
    if tag == "history":
        return History([{**_decode(row, members), "batches": []} for row in inner])
    if tag == "tuple":
        return tuple(_decode(v, members) for v in inner)
    if tag == "dict":
        return {key: _decode(v, members) for key, v in inner.items()}
    if tag == "torch":
        package, name = inner
        found = getattr(_TORCH[package], name)
        if not (isinstance(found, type) and issubclass(found, (nn.Module, torch.optim.Optimizer))):
            raise FileFormatError(f"got torch.{package}.{name}, expected a layer or an optimizer")
        return found
    if tag == "valid_split":
        return ValidSplit(**{key: _decode(v, members) for key, v in inner.items()})
    raise FileFormatError(f"unknown value {value!r}")
