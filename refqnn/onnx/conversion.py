"""Files of either kind: ours and ONNX."""

from __future__ import annotations

import os
from pathlib import Path

from refqnn.errors import NotCovered
from refqnn.network import Network, load
from refqnn.onnx.reader import Imported, InputDoor, read_onnx
from refqnn.onnx.writer import Flavour, to_onnx

__all__ = ["convert", "open_file", "open_network", "write"]

_ZIP = b"PK\x03\x04"  # how a file of Network.save begins


def open_file(
    path: str | os.PathLike[str],
    *,
    input: InputDoor | None = None,
    output: str | None = None,
    strict: bool = False,
) -> Imported:
    """What is in a file of `Network.save` or in an ONNX model, told apart by their content.

    Args:
        input, output: as for `from_onnx`; they mean nothing for our own files.
        strict: refuse a model whose last operators would be left out (`Imported.dropped`).

    Raises: as `refqnn.load` and `from_onnx`.
    """
    with open(path, "rb") as file:
        ours = file.read(len(_ZIP)) == _ZIP
    if ours:
        return Imported(load(Path(path)), producer="refqnn")
    imported = read_onnx(path, input=input, output=output)
    if strict and imported.dropped:
        raise NotCovered(f"{path}: {', '.join(imported.dropped)} would be left out of the network")
    return imported


def open_network(
    path: str | os.PathLike[str], *, input: InputDoor | None = None, output: str | None = None
) -> Network:
    """The network of `open_file`."""
    return open_file(path, input=input, output=output).network


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    flavour: Flavour = "qonnx",
    input: InputDoor | None = None,
    output: str | None = None,
) -> Network:
    """Write the network of `source` to `target`: as ONNX where its name ends in .onnx, else ours.

    Returns: the network.

    Raises: as `open_network`, `to_onnx` and `Network.save`.
    """
    network = open_network(source, input=input, output=output)
    write(network, target, flavour)
    return network


def write(network: Network, target: str | os.PathLike[str], flavour: Flavour) -> None:
    """As ONNX where the name ends in .onnx, else as `Network.save`."""
    if Path(target).suffix.lower() == ".onnx":
        to_onnx(network, target, flavour=flavour)
    else:
        network.save(Path(target))
