"""Nodes and networks as the suite describes them, made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from refqnn.conformance.operations import OPERATIONS, Array
from refqnn.errors import InvalidArgument, NotCovered, OutOfRange, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, as_integers
from refqnn.network import Network, Node
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Requantize,
    Rescale,
    Reshape,
    SumPool2d,
)

Kind = TypeVar("Kind", bound=Op)

__all__ = ["limited", "network_of", "node_of", "zero_points"]


def _linear(
    weight: Array, bias: Array | None, x_zero_point: int, weight_zero_point: Array
) -> Linear:
    op = Linear(weight, bias)
    if x_zero_point or np.any(zero_points(weight_zero_point, op)):
        raise OutOfRange("zero points inside a network are folded into weights and biases")
    return op


def zero_points(values: Array, op: Linear) -> Array:
    """One for all rows, or one for each.  Raises: ShapeMismatch."""
    zeros = as_integers(values, "weight_zero_point").ravel()
    if zeros.size not in (1, len(op.weight)):
        expected = f"one, or one for each of {len(op.weight)} rows"
        raise ShapeMismatch(mismatch("weight_zero_point", f"{zeros.size} values", expected))
    return zeros


def limited(make: Callable[..., Kind]) -> Callable[..., Kind]:
    """Limits of shifts and multipliers are their own, no range that another argument declares."""

    def limited(**parameters: Any) -> Kind:
        try:
            return make(**parameters)
        except OutOfRange as error:
            raise InvalidArgument(str(error)) from error

    return limited


def _rescale(bits: int, signed: bool, narrow: bool, **parameters: Any) -> Rescale:
    return Rescale(format=IntFormat(bits, signed, narrow), **parameters)


def _requantize(thresholds: Array, **fmt: Any) -> Requantize:
    return Requantize(thresholds, IntFormat(**fmt))


_NODES: dict[str, Callable[..., Op]] = {
    "Linear": _linear,
    "Conv1d": Conv1d,
    "Conv2d": Conv2d,
    "ConvTranspose2d": ConvTranspose2d,
    "Requantize": _requantize,
    "Rescale": limited(_rescale),
    "Lookup": Lookup,
    "MaxPool2d": MaxPool2d,
    "SumPool2d": SumPool2d,
    "GlobalSumPool": GlobalSumPool,
    "Add": Add,
    "Concat": Concat,
    "Flatten": Flatten,
    "Reshape": Reshape,
    "Gather": Gather,
}


def node_of(operation: str, parameters: Mapping[str, Any]) -> Op:
    """The node that computes an operation.

    Raises: NotCovered where none does, InvalidArgument for other parameters than its own; the
        errors of the node.
    """
    kind = OPERATIONS[operation].node if operation in OPERATIONS else operation
    if kind not in _NODES:
        raise NotCovered(f"{operation}: no kind of node computes it")
    if parameters.keys() != OPERATIONS[operation].parameters.keys():
        got, expected = ", ".join(parameters), ", ".join(OPERATIONS[operation].parameters)
        raise InvalidArgument(mismatch(f"parameters of {operation}", got, expected))
    return _NODES[kind](**parameters)


def network_of(description: Mapping[str, Any]) -> Network:
    """The `Network` that a vector describes.  Raises: as `node_of`, and the errors of Network."""
    nodes = [
        Node(node["name"], node_of(node["operation"], node["parameters"]), tuple(node["inputs"]))
        for node in description["nodes"]
    ]
    return Network(
        nodes,
        input_shape=tuple(description["input_shape"]),
        input_format=IntFormat(**description["input_format"]),
        output=description["output"],
    )
