"""Files of every kind: ours, ONNX and TFLite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from refqnn.container import as_path, regular
from refqnn.errors import NotCovered
from refqnn.foreign import is_ours, is_tflite, refuse_foreign
from refqnn.network import Network, load
from refqnn.onnx.reader import Imported, InputDoor, read_onnx
from refqnn.onnx.writer import Flavour, to_onnx
from refqnn.tflite import Runtime, from_tflite

__all__ = ["convert", "open_file", "open_network", "write"]


def open_file(
    path: str | os.PathLike[str],
    *,
    input: InputDoor | None = None,
    output: str | None = None,
    strict: bool = False,
    runtime: Runtime = "tflite_ref",
) -> Imported:
    """What is in a file of `Network.save`, an ONNX or a TFLite model, told apart by their content.

    Args:
        input, output: as for `from_onnx` and `from_tflite`; a file of ours has ends of its own.
        strict: refuse a model whose last operators would be left out (`Imported.dropped`).
        runtime: as for `from_tflite`; it means nothing for other files.

    Raises: as `refqnn.load`, `from_onnx` and `from_tflite`.
    """
    with open(regular(path), "rb") as file:
        head = file.read(8)
    if is_ours(head):
        return Imported(load(Path(path)), producer="refqnn")
    if is_tflite(head):
        door = cast("str | None", input)  # what is no name of a tensor is refused as one
        network = from_tflite(path, runtime, input=door, output=output)
        return Imported(network, producer="TFLite")
    refuse_foreign(Path(path))
    imported = read_onnx(path, input=input, output=output)
    if strict and imported.dropped:
        raise NotCovered(f"{path}: {', '.join(imported.dropped)} would be left out of the network")
    return imported


def open_network(
    path: str | os.PathLike[str],
    *,
    input: InputDoor | None = None,
    output: str | None = None,
    runtime: Runtime = "tflite_ref",
) -> Network:
    """The network of `open_file`."""
    return open_file(path, input=input, output=output, runtime=runtime).network


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    flavour: Flavour = "qonnx",
    input: InputDoor | None = None,
    output: str | None = None,
    runtime: Runtime = "tflite_ref",
) -> Network:
    """Write the network of `source` to `target`: as ONNX where its name ends in .onnx, else ours.

    Returns: the network.

    Raises: as `open_network`, `to_onnx` and `Network.save`.
    """
    network = open_network(source, input=input, output=output, runtime=runtime)
    write(network, target, flavour)
    return network


def write(network: Network, target: str | os.PathLike[str], flavour: Flavour) -> None:
    """As ONNX where the name ends in .onnx, else as `Network.save`."""
    if as_path(target, "target").suffix.lower() == ".onnx":
        to_onnx(network, target, flavour=flavour)
    else:
        network.save(Path(target))
