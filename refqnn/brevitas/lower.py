"""Values become nodes: the program that is being built, and how a quantizer closes an accumulator.

A quantizer behind an accumulator is one function from integers to codes for each channel, evaluated
by the module's own float32 code.  It becomes a `Requantize` where it is nondecreasing, a negated
weight row and a `Requantize` where it is nonincreasing, and a `Lookup` otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.brevitas.values import Function, Step, Value, refuse
from refqnn.errors import InvalidArgument, NotCovered, RefqnnError
from refqnn.formats import IntFormat
from refqnn.network import INPUT, Node
from refqnn.ops import Conv1d, Conv2d, Flatten, Interval, Linear, Lookup, Op, Reshape
from refqnn.ops.base import Shape
from refqnn.ops.requantize import Requantize
from refqnn.quantizers import Quantizer

__all__ = ["Closing", "Program"]

_DENSE = 2**20  # accumulator values up to which a function is evaluated at every one of them
_MULTIPLES = 2**16  # of their unit, that values of a function on codes may be
_TABLE = 2**24  # entries up to which a non-monotone function becomes a table
_NEIGHBOURS = 32  # accumulators checked on both sides of a threshold that was found by bisection
_LANES = 64  # a multiple of every vector width: kernels then never finish with a scalar remainder

CodesOfAcc = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Closing:
    """One quantizer of the module and the node that stands for it.

    Attributes:
        node: name of the network node ("input" for the input quantizer).
        quantizer: the module's proxy.
        call: which of its calls.
        source: what it quantizes; its node is None for the float input.
        quantize: the module's function, float32 to codes.
    """

    node: str
    quantizer: Any
    call: int
    source: Value
    quantize: Function


class Program:
    """Nodes in topological order, with their shapes and proved ranges."""

    def __init__(self, input_shape: Shape) -> None:
        self.input_shape = input_shape
        self.input_quantizer: Quantizer | None = None
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {INPUT: input_shape}
        self.ranges: dict[str, Interval] = {}
        self.closings: list[Closing] = []
        self.zero_points: dict[str, int] = {}  # of the nodes where it is not 0

    def unique(self, name: str) -> str:
        """The name itself, or name@2, name@3, ... when it is taken."""
        candidate, count = name, 1
        while candidate in self.shapes or not candidate:
            count += 1
            candidate = f"{name}@{count}"
        return candidate

    def add(self, name: str, op: Op, *inputs: str) -> str:
        """Append a node; returns its name, made unique.  Raises: NotCovered naming the layer."""
        name = self.unique(name)
        try:
            self.shapes[name] = op.out_shape(*(self.shapes[i] for i in inputs))
            self.ranges[name] = op.out_range(*(self.ranges[i] for i in inputs))
        except RefqnnError as error:
            raise NotCovered(f"{name}: {error}") from error
        self.nodes.append(Node(name, op, inputs))
        return name

    def remember(self, value: Value) -> Value:
        """The value, its zero point noted for `verify_against`."""
        if value.node is not None and value.zero_point:
            self.zero_points[value.node] = value.zero_point
        return value

    def open(self, quantizer: Quantizer) -> None:
        """Set the input quantizer."""
        self.input_quantizer = quantizer
        self.ranges[INPUT] = Interval.of_format(quantizer.format, self.input_shape)

    # --- reshaping --------------------------------------------------------------------------

    def reshape(self, value: Value, shape: Shape, name: str, module: nn.Module) -> Value:
        """The value with samples of another shape, its channels followed where they differ."""
        if shape == value.shape:
            return value
        if value.node is None:
            return replace(value, shape=shape)
        old, flat = value.shape, len(shape) == 1
        if value.per_channel and not (flat or shape[0] == old[0]):
            reason = "reshapes a tensor whose channels have functions of their own"
            raise refuse(name, module, reason)
        node = self.add(name, Flatten() if flat else Reshape(shape), value.node)
        if not (flat and value.per_channel and len(old) > 1):
            return self.remember(replace(value, node=node, shape=shape, exclusive=False))
        positions = int(np.prod(old[1:]))

        def spread(channels: Tensor | None) -> Tensor | None:
            if channels is None or channels.ndim == 0:
                return channels
            return channels.repeat_interleave(positions)

        def unflattened(step: Step) -> Step:
            def function(x: Tensor) -> Tensor:
                return step.function(x.reshape(-1, *old)).reshape(x.shape)

            return replace(step, function=function, bias=spread(step.bias))

        scale = spread(value.scale)
        assert scale is not None
        return replace(
            value,
            node=node,
            shape=shape,
            scale=scale,
            sign=spread(value.sign),
            steps=tuple(unflattened(step) for step in value.steps),
            exclusive=False,
        )

    # --- quantizing -------------------------------------------------------------------------

    def close(
        self,
        value: Value,
        quantize: Function,
        fmt: IntFormat,
        name: str,
        module: nn.Module,
        *,
        per_channel: bool = False,
    ) -> tuple[str, Value]:
        """The node that gives the codes of `quantize(value)`, and the value (perhaps negated).

        `per_channel` tells that the quantizer has one scale for each channel.
        """
        assert value.node is not None
        acc = self.ranges[value.node]
        channels = value.shape[0] if value.per_channel or per_channel else 1
        lo = acc.lo.reshape(channels, -1).min(axis=1)  # [channels]
        hi = acc.hi.reshape(channels, -1).max(axis=1)  # [channels]
        if int(lo.min()) <= -(2**62) or int(hi.max()) >= 2**62:
            raise refuse(name, module, f"accumulators reach [{lo.min()}, {hi.max()}]")
        codes = _code_function(value, quantize)
        ends = codes(np.stack([lo, hi], axis=1).astype(np.int64))  # [channels, 2]
        falling = ends[:, 0] > ends[:, 1]
        if falling.any() and (flipped := self._negate(value, falling)) is not None:
            return self.close(flipped, quantize, fmt, name, module, per_channel=per_channel)
        op = self._tabulate(codes, lo, hi, fmt, name, module)
        return self.add(name, op, value.node), value

    def _tabulate(
        self,
        codes: CodesOfAcc,
        lo: NDArray[Any],
        hi: NDArray[Any],
        fmt: IntFormat,
        name: str,
        module: nn.Module,
    ) -> Op:
        """Requantize where the function is nondecreasing, Lookup where it is not."""
        first, last = int(lo.min()), int(hi.max())
        size = len(lo) * (last - first + 1)
        if size > _DENSE and fmt.step == 1:
            try:
                op = Requantize.from_function(codes, lo.astype(np.int64), hi.astype(np.int64), fmt)
                _check_neighbours(op, codes, lo, hi)
                return op
            except InvalidArgument:
                pass
        if size > _TABLE:
            reason = f"is not monotone and needs a table of {size} entries (at most {_TABLE})"
            raise refuse(name, module, reason)
        table = codes(np.tile(np.arange(first, last + 1), (len(lo), 1)))
        if fmt.step == 1 and (table[:, 1:] >= table[:, :-1]).all():
            return Requantize.from_table(table, first, fmt)
        return Lookup(table, first, fmt)

    def _negate(self, value: Value, channels: NDArray[np.bool_]) -> Value | None:
        """The value with some rows of its weights negated, or None where that is not possible."""
        assert value.node is not None
        names = [node.name for node in self.nodes]
        if not value.exclusive or value.node not in names:
            return None  # others read it, or it is the input
        index = names.index(value.node)
        op = self.nodes[index].op
        if not isinstance(op, (Linear, Conv1d, Conv2d)):
            return None
        if len(channels) != op.weight.shape[0]:
            channels = np.full(op.weight.shape[0], bool(channels[0]))
        sign = np.where(channels, -1, 1)
        weight = op.weight * sign.reshape(-1, *(1,) * (op.weight.ndim - 1))
        bias = None if op.bias is None else op.bias * sign
        negated = replace(op, weight=weight, bias=bias)
        node = self.nodes[index]
        self.nodes[index] = Node(node.name, negated, node.inputs)
        assert node.inputs is not None
        self.ranges[node.name] = negated.out_range(*(self.ranges[i] for i in node.inputs))
        return replace(value, sign=torch.from_numpy(sign), exclusive=False)

    # --- functions on codes, order of accumulators ------------------------------------------

    def settle(self, value: Value, name: str, module: nn.Module) -> Value:
        """The value without steps: functions that map codes to codes become a table.

        Raises: NotCovered naming the function that no quantizer follows.
        """
        if not value.steps:
            return value
        assert value.node is not None
        steps = ", ".join(step.name for step in value.steps)
        reason = f"a float function ({steps}) stands before it without a quantizer between"
        acc = self.ranges[value.node]
        lo, hi = int(acc.lo.min()), int(acc.hi.max())
        channels = value.shape[0] if value.per_channel else 1
        if value.scale.ndim or value.divisor != 1 or channels * (hi - lo + 1) > _DENSE:
            raise refuse(name, module, reason)
        column = np.tile(np.arange(lo, hi + 1), (channels, 1))
        with torch.no_grad():
            floats = _per_channel(value.decode, column, value)  # [channels, n]
        for scale in (value.scale, _unit(floats)):
            integers = torch.round(floats.double() / scale.double())
            small = bool((integers.abs() < _MULTIPLES).all())
            if small and torch.equal(integers.to(torch.float32) * scale, floats):
                table = Lookup(integers.to(torch.int64).numpy(), lo)
                node = self.add(value.steps[-1].name, table, value.node)
                return Value(node, value.shape, scale)
        raise refuse(name, module, reason)

    def rising(self, value: Value, name: str, module: nn.Module) -> Value:
        """The value, negated where needed so that its function rises in every channel.

        Raises: NotCovered when a channel does neither rise nor fall, or cannot be negated.
        """
        if not value.steps and value.sign is None:
            return value
        assert value.node is not None
        channels = value.shape[0]
        acc = self.ranges[value.node]
        lo = acc.lo.reshape(channels, -1).min(axis=1).astype(np.int64)
        hi = acc.hi.reshape(channels, -1).max(axis=1).astype(np.int64)
        steps = min(int((hi - lo).max()), 4096)
        share = np.arange(steps + 1) / max(steps, 1)
        points = lo[:, None] + np.floor((hi - lo)[:, None] * share).astype(np.int64)
        with torch.no_grad():
            floats = _per_channel(value.decode, points, value).numpy()
        change = np.diff(floats, axis=1)
        falling = (change <= 0).all(axis=1) & (change < 0).any(axis=1)
        if not (falling | (change >= 0).all(axis=1)).all():
            raise refuse(name, module, "compares values behind a function that is not monotone")
        if not falling.any():
            return value
        flipped = self._negate(value, falling)
        if flipped is None:
            raise refuse(name, module, "compares values behind a decreasing function")
        return flipped


def _code_function(value: Value, quantize: Function) -> CodesOfAcc:
    """int64 [channels, n] to codes [channels, n]: the module's own function of an accumulator."""

    def codes(acc: NDArray[np.int64]) -> NDArray[np.int64]:
        with torch.no_grad():
            return _per_channel(lambda t: quantize(value.decode(t)), acc, value).numpy()

    return codes


def _unit(floats: Tensor) -> Tensor:
    """The greatest float32 of which all the floats are integer multiples (1 for zeros and NaN)."""
    values = floats.double().unique()
    if not bool(torch.isfinite(values).all()):
        return torch.ones(())
    ratios = [v.as_integer_ratio() for v in values.tolist() if v]
    below = max((d for _, d in ratios), default=1)  # a power of two, as all of them are
    unit = Fraction(math.gcd(*(n * (below // d) for n, d in ratios)) or below, below)
    return torch.tensor(float(unit), dtype=torch.float32)


def _per_channel(function: Function, integers: NDArray[np.int64], value: Value) -> Tensor:
    """function on samples of one position per channel: [channels, n] in and out.

    The batch is padded to a multiple of the vector width, so that no kernel treats its last values
    differently from the others.
    """
    channels, n = integers.shape
    extra = -n % _LANES
    padded = np.pad(integers, ((0, 0), (0, extra)), mode="edge")
    batch = torch.from_numpy(np.ascontiguousarray(padded.T))  # [n, channels]
    shaped = batch.reshape(n + extra, channels, *(1,) * (len(value.shape) - 1))
    return function(shaped).reshape(n + extra, channels)[:n].T.contiguous()


def _check_neighbours(
    op: Requantize, codes: CodesOfAcc, lo: NDArray[Any], hi: NDArray[Any]
) -> None:
    """Compare with the function on both sides of every threshold.

    Raises: InvalidArgument where they differ.
    """
    offsets = np.arange(-_NEIGHBOURS, _NEIGHBOURS)
    lows, highs = lo.astype(np.int64)[:, None], hi.astype(np.int64)[:, None]
    thresholds = np.clip(op.thresholds, lows, highs)
    for threshold in thresholds.T:  # [channels]
        near = np.clip(threshold[:, None] + offsets, lows, highs)  # [channels, 64]
        if not np.array_equal(op.forward(near.T).T, codes(near)):
            raise InvalidArgument("function: got one that is not monotone near a threshold")
