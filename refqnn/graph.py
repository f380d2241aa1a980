"""The graph of a program: named nodes in topological order, and what walks over them.

Everything that asks who reads a value, which values are needed and how long asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch, mismatch
from refqnn.limits import MAX_VALUES
from refqnn.ops.base import Op, Shape

__all__ = [
    "INPUT",
    "Node",
    "ancestors",
    "consumers",
    "inputs_of",
    "last_uses",
    "linked",
    "propagated",
    "shapes_of",
]

INPUT = "input"

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Node:
    """One step of the program: `name = op(*inputs)`.

    Args:
        name: unique, not empty, not "input".
        op: what it computes.
        inputs: names of earlier nodes or "input"; None means the node before it.

    >>> from refqnn import Add, Linear
    >>> residual = [Node("fc1", Linear([[2]])), Node("sum", Add(), ("fc1", "input"))]
    """

    name: str
    op: Op
    inputs: tuple[str, ...] | None = None


def inputs_of(node: Node) -> tuple[str, ...]:
    """The input names of a node that `linked` returned."""
    return node.inputs or ()


def linked(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with explicit inputs, checked.  Raises: InvalidArgument, InvalidType."""
    if not nodes:
        raise InvalidArgument(mismatch("nodes", "none", "at least one"))
    known = {INPUT: None}  # a set in the order of the program
    last, result = INPUT, []
    for node in nodes:
        _check_name(node, known)
        if isinstance(node.inputs, str):
            raise InvalidType(mismatch(f"inputs of {node.name}", repr(node.inputs), "a tuple"))
        inputs = (last,) if node.inputs is None else tuple(node.inputs)
        for name in inputs:
            if name not in known:
                expected = f"one of {list(known)} (nodes stand in topological order)"
                raise InvalidArgument(mismatch(f"input of {node.name}", repr(name), expected))
        arity = node.op.arity
        if len(inputs) != arity if arity is not None else not inputs:
            count = "at least one" if arity is None else str(arity)
            raise InvalidArgument(mismatch(f"inputs of {node.name}", len(inputs), count))
        result.append(Node(node.name, node.op, inputs))
        known[node.name] = None
        last = node.name
    return result


def _check_name(node: object, known: Mapping[str, None]) -> None:
    if not isinstance(node, Node) or not isinstance(node.op, Op):
        raise InvalidType(mismatch("nodes", repr(node), "Node(name, op, inputs)"))
    if not isinstance(getattr(node.op, "kind", None), str):
        got = f"an op of {type(node.op)} without one"
        raise InvalidType(mismatch(f"kind of node {node.name!r}", got, "text"))
    if not isinstance(node.name, str) or not node.name:
        raise InvalidType(mismatch("name of a node", repr(node.name), "a non-empty string"))
    if node.name in known:
        raise InvalidArgument(mismatch("name of a node", repr(node.name), "a name not yet used"))


def propagated(
    nodes: Iterable[Node], first: T, rule: Callable[[Node], Callable[..., T]]
) -> dict[str, T]:
    """A fact of every value, from that of the input: rule(node)(*facts of its inputs).

    Raises: ShapeMismatch and OutOfRange of the rule, with the node's name in front.
    """
    facts = {INPUT: first}
    for node in nodes:
        facts[node.name] = _named(node, rule(node), [facts[name] for name in inputs_of(node)])
    return facts


def _named(node: Node, function: Callable[..., T], arguments: list[T]) -> T:
    try:
        return function(*arguments)
    except (ShapeMismatch, OutOfRange) as error:
        raise type(error)(f"node {node.name!r}: {error}") from None


def shapes_of(nodes: Sequence[Node], input_shape: Shape) -> dict[str, Shape]:
    """The shape of one sample of every value.  Raises: ShapeMismatch."""
    shapes = propagated(nodes, input_shape, lambda node: node.op.out_shape)
    for name, shape in shapes.items():
        if not isinstance(shape, tuple) or not shape or min(shape) < 1:
            expected = "positive dimensions, one or more"
            raise ShapeMismatch(mismatch(f"shape of {name!r}", repr(shape), expected))
    values = sum(map(prod, shapes.values()))
    if values > MAX_VALUES:
        got = f"{values} values in one sample, from the input to the output"
        raise ShapeMismatch(mismatch("nodes", got, f"at most {MAX_VALUES}"))
    return shapes


def consumers(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """The nodes that read each value, each of them once, in the order of the program."""
    readers: dict[str, list[Node]] = {INPUT: []}
    for node in nodes:
        readers[node.name] = []
        for name in dict.fromkeys(inputs_of(node)):
            readers[name].append(node)
    return readers


def last_uses(steps: Sequence[tuple[str, Sequence[str]]], output: str) -> list[tuple[str, ...]]:
    """For each step (name, inputs) the values that no later step needs; the output is kept."""
    last = {name: i for i, (out, inputs) in enumerate(steps) for name in (out, *inputs)}
    last.pop(output, None)
    dead: list[list[str]] = [[] for _ in steps]
    for name, i in last.items():
        dead[i].append(name)
    return [tuple(names) for names in dead]


def ancestors(nodes: Sequence[Node], name: str) -> list[Node]:
    """The nodes that a value depends on, itself the last, in the order of the program."""
    needed, found = {name}, []
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(inputs_of(node))
            found.append(node)
    return found[::-1]
