"""Smaller networks of which something still holds, and what a network is in Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from inspect import getsource
from math import prod
from typing import Any, TypeVar

import numpy as np
from networks import Twice, rebuilt

from refqnn import BIPOLAR, IntFormat, Network, Node, Requantize, Rounding
from refqnn.errors import RefqnnError
from refqnn.network import INPUT
from refqnn.ops import Add, Gather, Linear, Lookup, Op

# --- Python -------------------------------------------------------------------------------------


def python(network: Network) -> str:
    """Statements that make the network."""
    own = any(isinstance(node.op, Twice) for node in network.nodes)
    nodes = "".join(
        f"    Node({n.name!r}, {op_in_python(n.op)}, {n.inputs!r}),\n" for n in network.nodes
    )
    output = f", output={network.output!r}" if network.output != network.nodes[-1].name else ""
    return (
        (OWN_HEADER + getsource(Twice) if own else "")
        + f"network = Network([\n{nodes}], input_shape={network.input_shape!r}, "
        f"input_format={value_in_python(network.input_format)}{output})"
    )


def op_in_python(op: Op) -> str:
    arguments = (f"{name}={value_in_python(value)}" for name, value in arguments_of(op).items())
    return f"{type(op).__name__}({', '.join(arguments)})"


def arguments_of(op: Op) -> dict[str, Any]:
    return {f.name: getattr(op, f.name) for f in fields(op) if f.init}


def value_in_python(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"np.float32({value.tolist()})" if value.dtype == "f4" else repr(value.tolist())
    if isinstance(value, Rounding):
        return repr(value.value)
    if value is BIPOLAR:
        return "BIPOLAR"
    return repr(value)


HEADER = """\
import numpy as np
from refqnn import *
from refqnn import exact
from refqnn.errors import *
from refqnn.ops import *
"""
OWN_HEADER = """\
from dataclasses import dataclass
from typing import Any, ClassVar
from refqnn.ops import SumOp
"""


# --- smaller networks ---------------------------------------------------------------------------


def smaller(network: Network) -> Iterator[Network]:
    """Networks that are simpler by one step: fewer nodes first, then smaller parameters."""
    for candidate in _candidates(network):
        with suppress(RefqnnError):
            yield candidate()


def _candidates(network: Network) -> Iterator[Callable[[], Network]]:
    nodes = network.nodes
    for i in range(len(nodes) - 1):
        yield lambda i=i: rebuilt(network, nodes=nodes[: i + 1], output=None)
    if network.output != nodes[-1].name:
        yield lambda: rebuilt(network, output=None)
    for i in reversed(range(len(nodes))):
        rest = nodes[:i] + nodes[i + 1 :]
        for source in dict.fromkeys(nodes[i].inputs):
            renamed = [
                Node(n.name, n.op, tuple(source if s == nodes[i].name else s for s in n.inputs))
                for n in rest
            ]
            output = source if network.output == nodes[i].name else network.output
            yield lambda r=renamed, o=output: rebuilt(network, nodes=r, output=o)
    for axis in range(len(network.input_shape)):
        shape = list(network.input_shape)
        shape[axis] -= 1
        yield lambda s=tuple(shape): rebuilt(network, input_shape=s)
    for feature in range(network.input_shape[0] if len(network.input_shape) == 1 else 0):
        yield lambda f=feature: _without_feature(network, f)
    for i, node in enumerate(nodes):
        for op in _smaller_ops(node.op):
            yield lambda i=i, op=op: rebuilt(
                network,
                nodes=[*nodes[:i], Node(nodes[i].name, op, nodes[i].inputs), *nodes[i + 1 :]],
            )
    for fmt in (IntFormat(1, False), IntFormat(2, False), IntFormat(2, True)):
        if fmt.levels < network.input_format.levels:
            yield lambda fmt=fmt: rebuilt(network, input_format=fmt)


def _without_feature(network: Network, feature: int) -> Network:
    """Without one entry of a flat input, and the columns of sums that read it."""
    nodes, moved = [], {INPUT: [feature]}
    shapes = network.shapes
    for node in network.nodes:
        op, gone, start = node.op, [], 0
        for source in node.inputs:
            gone += [start + f for f in moved.get(source, [])]
            start += prod(shapes[source])
        if isinstance(op, Linear):
            op, gone = Linear(np.delete(op.weight, gone, axis=1), op.bias), []
        elif isinstance(op, Add):
            gone = moved.get(node.inputs[0], [])
        elif isinstance(op, Requantize) and op.channels > 1:
            op = Requantize(np.delete(op.thresholds, gone, axis=0), op.format)
        elif isinstance(op, Lookup) and op.channels > 1:
            op = Lookup(np.delete(op.table, gone, axis=0), op.lo, op.format)
        moved[node.name] = gone
        nodes.append(Node(node.name, op, node.inputs))
    return rebuilt(network, nodes=nodes, input_shape=(network.input_shape[0] - 1,))


def _smaller_ops(op: Op) -> Iterator[Op]:
    arguments = arguments_of(op)

    def of(**changes: Any) -> Iterator[Op]:
        try:
            yield type(op)(**{**arguments, **changes})
        except RefqnnError:
            return

    simplest = {"bias": None, "padding": 0, "pad_code": 0, "dilation": 1, "stride": 1, "fill": 0}
    simplest["output_padding"] = 0
    for name, value in {**simplest, "multipliers": None}.items():
        if name in arguments and value_in_python(arguments[name]) not in (repr(value), "1", "0"):
            yield from of(**{name: value})
    if isinstance(op, Gather) and op.index.size > 1:
        for row in range(len(op.index)) if len(op.index) > 1 else ():
            yield from of(index=np.delete(op.index, row, axis=0))
    for name in ("weight", "bias", "table"):
        array = arguments.get(name)
        if array is None:
            continue
        for channel in range(array.shape[0]) if name == "table" and len(array) > 1 else ():
            yield from of(table=array[[channel]])
        if array.any():
            yield from of(**{name: np.zeros_like(array)})
        for index in zip(*np.nonzero(array)):
            for value in {0, int(np.sign(array[index]))} - {int(array[index])}:
                changed = array.copy()
                changed[index] = value
                yield from of(**{name: changed})
    rows = arguments.get("thresholds")
    if rows is not None:
        for channel in range(len(rows)) if len(rows) > 1 else ():
            yield from of(thresholds=rows[[channel]])
        if rows.shape[1] > 1:
            yield from of(thresholds=rows[:, :1], format=IntFormat(1, False))
            yield from of(thresholds=rows[:, -1:], format=IntFormat(1, False))
        if rows.shape[1] > 3:
            yield from of(thresholds=rows[:, :3], format=IntFormat(2, False))
        for value in (1, 0):
            if (rows != value).any():
                yield from of(thresholds=np.full_like(rows, value))


def size_of(network: Network) -> tuple[int, ...]:
    """What the shrinking makes smaller."""
    numbers = [
        int(np.abs(value.astype(object)).sum())
        for node in network.nodes
        for value in arguments_of(node.op).values()
        if isinstance(value, np.ndarray)
    ]
    entries = sum(
        len(value_in_python(value)) for n in network.nodes for value in arguments_of(n.op).values()
    )
    levels = network.input_format.levels
    return len(network.nodes), prod(network.input_shape), entries, sum(numbers), levels


Failure = TypeVar("Failure")


def shrunk(
    network: Network, failure: Callable[[Network], Failure | None], deadline: float
) -> tuple[Network, Failure]:
    """The smallest network met that still fails, and how it does.

    Args:
        failure: says how a network fails, None if it does not; the first one must.
        deadline: a `time.monotonic` value.
    """
    found = failure(network)
    assert found is not None
    searching = True
    while searching and time.monotonic() < deadline:
        searching = False
        for candidate in smaller(network):
            if time.monotonic() > deadline:
                break
            if size_of(candidate) < size_of(network) and (again := failure(candidate)) is not None:
                network, found, searching = candidate, again, True
                break
    return network, found
