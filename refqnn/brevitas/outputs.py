"""The module's last door: what it does behind its last integers, kept or left out.

Products with and sums of constants, and batch normalization, are part of the output dequantizer.
What only reads off the result (softmax, argmax, a last sigmoid, the one output of a sample without
its axis) is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from refqnn.brevitas.functions import is_kind
from refqnn.brevitas.lower import TABLE, Closing, Program
from refqnn.brevitas.values import Value, refuse
from refqnn.errors import NotCovered, RefqnnError
from refqnn.network import INPUT, Network
from refqnn.ops.base import Shape
from refqnn.quantizers import Dequantizer

__all__ = ["Dropped", "Import", "affine", "finish", "head", "reads_off"]

_READINGS = {"softmax", "log_softmax", "argmax", "argmin", "topk", "sort", "argsort"}
_WITH_AN_AXIS = {"max", "min"}  # the greatest, and where it stands
_MODULES = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax)
_INCREASING = {"sigmoid", "tanh", "logsigmoid", "softplus", "exp"}  # of one value, everywhere
_PRODUCTS = {"mul", "truediv", "div", "neg", "multiply", "divide", "imul", "itruediv"}
_SUMS = {"add", "sub", "iadd", "isub", "rsub"}


@dataclass(frozen=True, eq=False)
class Import:
    """A network, and for each quantizer of the module the node that stands for it.

    Attributes:
        head: the module up to the values that leave the network; None where those are its output.
        dropped: what the module does with them, left out.
        inputs: shapes of the module's inputs, where it has several: side by side in the network's.
    """

    network: Network
    closings: list[Closing]
    output: Value
    zero_points: dict[str, int]
    head: nn.Module | None = None
    dropped: tuple[str, ...] = ()
    inputs: tuple[Shape, ...] = ()


@dataclass(frozen=True, eq=False)
class Dropped:
    """The result of an operation that reads off a value, which only the output may be."""

    source: Value
    name: str
    kind: str

    def behind(self, name: str, computes: bool) -> Dropped:
        """What stands behind it.  Raises: NotCovered where integers follow."""
        if computes:
            reason = f"a float operation between integers that is {NOT_ELEMENTWISE}"
            raise refuse(self.name, self.kind, f"{reason}; only the output may have it")
        return replace(self, name=f"{self.name}, {name}")


NOT_ELEMENTWISE = "not a function of one value at a time"


def reads_off(target: object, axis: bool) -> bool:
    """Whether a module, or a function of this name, only reads off its argument.

    Args:
        axis: is it called with one?
    """
    if isinstance(target, nn.Module):
        return is_kind(target, *_MODULES)
    name = str(getattr(target, "__name__", target))
    return name in _READINGS or (axis and name in _WITH_AN_AXIS)


def affine(
    part: nn.Module | str, function: Callable[[Tensor], Any], shape: Shape
) -> tuple[Tensor, Tensor] | None:
    """(factor, summand) of a function of [n, *shape], [channels] each; None where it has none."""

    def of(x: float) -> Tensor:
        result: Tensor = function(torch.full((1, *shape), x)).reshape(shape[0], -1)[:, 0]
        return result

    if isinstance(part, nn.Module):
        if not is_kind(part, nn.BatchNorm1d, nn.BatchNorm2d):
            return None
        norm: Any = part
        gain = torch.ones(()) if norm.weight is None else norm.weight.detach()
        return gain / torch.sqrt(norm.running_var + norm.eps), of(0.0)
    if part in _PRODUCTS:
        factor, summand, near = of(1.0), torch.zeros(()), 0.0
    elif part in _SUMS:
        factor, summand, near = of(2.0**100) / 2.0**100, of(0.0), 1e-6  # torch.add has alpha
    else:
        return None
    points = (-0.7, 0.0, 2.0)
    known = all(torch.allclose(of(x), x * factor + summand, atol=near) for x in points)
    return (factor, summand) if known else None  # not if it rounds, as div(rounding_mode=)


def finish(program: Program, output: Any) -> Import:
    """The network of the nodes that the output needs.  Raises: NotCovered."""
    flat = list(output) if isinstance(output, (tuple, list)) else [output]
    dropped = tuple(v.name for v in flat if isinstance(v, Dropped))
    values = [v.source if isinstance(v, Dropped) else v for v in flat]
    if not values or any(v is not values[0] for v in values):
        raise NotCovered(f"the module returns {len(values)} tensors; expected one")
    value = values[0]
    if not isinstance(value, Value) or value.node is None or program.input_quantizer is None:
        raise NotCovered("the module: its output does not come from a quantized layer")
    while value.steps and value.steps[-1].kind.lower() in _INCREASING:
        dropped = (value.steps[-1].name, *dropped)
        value = replace(value, steps=value.steps[:-1])
    others = [s for s in value.steps if s.affine is None]
    if not dropped and others and others[-1].kind == TABLE:
        first = value.steps.index(others[-1]) + 1
        with suppress(NotCovered):
            table = program.settle(replace(value, steps=value.steps[:first]), others[-1].name, "")
            value = replace(table, steps=value.steps[first:])
    if value.node == INPUT:
        raise NotCovered("the module: it has an input quantizer and no layer behind it")
    if value.pending is not None:
        reason = "a scale or bias of its own for each feature along the last axis"
        raise NotCovered(f"{value.node}: leaves the network with {reason}; use one, or none")
    needed = {value.node}
    for node in reversed(program.nodes):
        if node.name in needed:
            needed.update(node.inputs or ())
    network = Network(
        [node for node in program.nodes if node.name in needed],
        input_shape=program.input_shape,
        input_quantizer=program.input_quantizer,
        output_dequantizer=_door(value),
        output=value.node,
    )
    closings = [c for c in program.closings if c.node in needed]
    return Import(network, closings, value, program.zero_points, dropped=dropped)


def _door(value: Value) -> Dequantizer:
    """Scale and offset behind all steps.  Raises: NotCovered for other functions than these."""
    scale = value.step_scale if value.sign is None else value.step_scale * value.sign
    offset = -value.zero_point * scale
    for step in value.steps:
        if step.affine is None:
            reason = "stands behind the last layer without a quantizer; leave it to the caller"
            raise NotCovered(f"{step.name}: a float function {reason}")
        factor, summand = step.affine
        scale, offset = scale * factor, offset * factor + summand
    try:
        return Dequantizer(scale.numpy(), offset.numpy())
    except RefqnnError as error:
        raise NotCovered(f"the module: what stands behind its last layer: {error}") from error


def head(root: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any], output: Value) -> nn.Module:
    """The module itself, up to a value.  Raises: NotCovered where another module makes it."""
    for node in reversed(graph.nodes):
        v = values.get(node)
        if not isinstance(v, Value) or v.steps != output.steps:
            continue
        if (v.node, v.shape) == (output.node, output.shape):
            part = fx.Graph()
            copies: dict[fx.Node, fx.Node] = {}
            part.graph_copy(graph, copies)
            part.output(copies[node])
            return fx.GraphModule(root, part)
    raise NotCovered(f"{output.node}: what is left out behind it stands in a module of its own")
