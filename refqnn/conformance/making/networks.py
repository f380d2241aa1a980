"""Trained networks as vectors: from a saved file to the description that a vector carries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path

import numpy as np

from refqnn.conformance.making.samplers import Stream
from refqnn.conformance.operations import OPERATIONS, Values
from refqnn.errors import NotCovered
from refqnn.formats import IntFormat
from refqnn.graph import inputs_of
from refqnn.network import Network, load
from refqnn.ops import Op
from refqnn.quantizers import Quantizer

__all__ = ["cases_of", "describe", "trained_cases"]

_SAMPLES = 6

_NAMES = {operation.node: name for name, operation in OPERATIONS.items() if operation.node}


def describe(network: Network) -> Values:
    """The program as a vector writes it: every node an operation of the suite.

    Raises: NotCovered for a kind of node that is none.
    """
    if unknown := {node.op.kind for node in network.nodes} - set(_NAMES):
        raise NotCovered(f"{', '.join(sorted(unknown))}: no operation of the suite")
    return {
        "input_shape": list(network.input_shape),
        "input_format": _format(network.input_format),
        "nodes": [
            {
                "name": node.name,
                "operation": _NAMES[node.op.kind],
                "inputs": list(inputs_of(node)),
                "parameters": _parameters(node.op),
            }
            for node in network.nodes
        ],
        "output": network.output,
    }


def _parameters(op: Op) -> Values:
    values = {f.name: getattr(op, f.name) for f in fields(op) if f.init}  # type: ignore[arg-type]
    values = {name: v.value if isinstance(v, Enum) else v for name, v in values.items()}
    fmt = values.pop("format", None)
    if op.kind in ("Requantize", "Rescale"):
        values |= _format(fmt)
    if op.kind == "Linear":
        values |= {"x_zero_point": 0, "weight_zero_point": np.array(0)}
    return values


def _is_plain(door: Quantizer) -> bool:
    """Is it a door that `predict` describes: one float32 scale, round, then add?"""
    late = not getattr(door, "zero_point_first", False)
    return late and door.precision == "float32" and np.ndim(door.scale) == 0


def _format(fmt: IntFormat) -> Values:
    return {"bits": fmt.bits, "signed": fmt.signed, "narrow": fmt.narrow}


def trained_cases(folder: Path) -> Iterator[tuple[str, str, Values, str]]:
    """(id, operation, arguments, comment) for each saved network, in the order of their names."""
    for path in sorted(folder.glob("*.npz")):
        yield from cases_of(load(path), path.stem, "trained network")


def cases_of(
    network: Network, name: str, what: str = "network"
) -> Iterator[tuple[str, str, Values, str]]:
    """The same for one network: codes, and floats where its doors are plain.

    Raises: NotCovered.
    """
    fmt, stream = network.input_format, Stream(1, name)
    codes = stream.tensor((_SAMPLES, *network.input_shape), fmt.q_min, fmt.q_max)
    corners = np.stack([np.full(network.input_shape, v) for v in (fmt.q_min, fmt.q_max)])
    program = describe(network)
    arguments = {"network": program, "codes": np.concatenate([corners, codes])}
    comment = f"{what} {name}: the two corners of the domain and {_SAMPLES} random codes"
    yield f"network-{name}-codes", "network", arguments, comment
    door, out = network.input_quantizer, network.output_dequantizer
    if door is None or out is None or not _is_plain(door) or out.precision != "float32":
        return
    # Codes plus eighths, so that every eighth value or so is a tie.
    eighths = stream.tensor((_SAMPLES, *network.input_shape), 8 * fmt.q_min - 8, 8 * fmt.q_max + 8)
    zero_point = np.asarray(getattr(door, "zero_point", 0))
    x = (eighths / 8 - zero_point) * np.float64(door.scale)
    doors = {
        "scale": np.asarray(door.scale),
        "zero_point": zero_point,
        "rounding": door.rounding.value,
        "output_scale": np.asarray(out.scale),
        "output_offset": np.asarray(out.offset),
        "x": x.astype(np.float32),
    }
    yield (
        f"predict-{name}-floats",
        "predict",
        {"network": program, **doors},
        (f"{what} {name}: float inputs, some of them ties"),
    )
