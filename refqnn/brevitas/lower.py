"""Values become nodes: the program that is being built, and how a quantizer closes an accumulator.

A quantizer behind an accumulator is one function from integers to codes for each channel, evaluated
by the module's own float32 code.  It becomes a `Requantize` where it is nondecreasing, a negated
weight row and a `Requantize` where it is nonincreasing, and a `Lookup` otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.brevitas.movement import Movement
from refqnn.brevitas.values import Function, Step, Value, refuse
from refqnn.errors import InvalidArgument, NotCovered, RefqnnError
from refqnn.formats import IntFormat
from refqnn.network import INPUT, Node
from refqnn.ops import Flatten, Gather, Interval, Lookup, Op, Reshape
from refqnn.ops.base import Shape
from refqnn.ops.requantize import Requantize
from refqnn.ops.structure import PADDING
from refqnn.ops.weighted import WeightedSum
from refqnn.quantizers import Quantizer, ThresholdQuantizer

__all__ = ["TABLE", "Closing", "Program"]

TABLE = "_Table"  # the kind of to_brevitas' lookups: integers, for which a Lookup stands again

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
        layout: where in the node each of the module's codes stands, flat positions; None where all
            stand in the node's order.
    """

    node: str
    quantizer: Any
    call: int
    source: Value
    quantize: Function
    layout: NDArray[np.int64] | None = None


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

    def recode(self, quantizer: Quantizer, name: str, module: nn.Module) -> str:
        """The node that gives a quantizer's codes, of an input quantizer that tells them apart."""
        door = self.input_quantizer
        assert isinstance(door, ThresholdQuantizer)
        floor = np.full((len(door.thresholds), 1), -np.inf, dtype=np.float32)
        least = np.concatenate([floor, door.thresholds], axis=1)  # [rows, codes]
        axis = None if getattr(quantizer, "axis", None) is None else 0
        table = replace(quantizer, axis=axis).quantize(least)  # type: ignore[type-var]

        def codes(k: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.take_along_axis(table, k, axis=1)

        rows = len(table)
        lo, hi = np.zeros(rows, np.int64), np.full(rows, door.format.q_max)
        op = self._tabulate(codes, lo, hi, quantizer.format, name, module)
        return self.add(name, op, INPUT)

    # --- movement ---------------------------------------------------------------------------

    def move(self, value: Value, movement: Movement, name: str, module: nn.Module | str) -> Value:
        """The value where a movement takes its values, its channels followed where they differ."""
        if value.node is None:
            index = movement.index if value.pending is None else movement.after(value.pending)
            step = Step(name, movement.of, per_channel=False, rounds=False, shaped=True)
            return replace(
                value, shape=index.shape, pending=index, steps=(*value.steps, step), format=None
            )
        if (movement.index == PADDING).any() and value.steps and value.steps[-1].kind == TABLE:
            with suppress(NotCovered):  # the constant is one of its integers
                value = self.settle(value, name, module)
        assert value.node is not None
        node, shape = value.node, self.shapes[value.node]
        index = movement.index if value.pending is None else movement.after(value.pending)
        stays = np.array_equal(index.ravel(), np.arange(prod(shape)))
        if stays and index.shape == shape:
            return replace(value, shape=shape, pending=None)
        padded = bool((index == PADDING).any())
        fill = _fill(value, movement.constant, name, module) if padded else 0
        if value.per_channel:
            rows = index.reshape(len(index), -1) // prod(shape[1:])
            if (rows != rows[:, :1]).any() or padded:
                if np.array_equal(np.sort(index.ravel()), np.arange(prod(shape))):
                    return replace(value, shape=index.shape, pending=index)
                raise refuse(name, module, "moves values of channels with functions of their own")
            value = _of_channels(value, shape, rows[:, 0])
        op: Op = Gather(index, shape, fill)
        if stays:
            op = Flatten() if index.ndim == 1 else Reshape(index.shape)
        moved = replace(
            value, node=self.add(name, op, node), shape=index.shape, pending=None, exclusive=False
        )
        return self.remember(moved)

    def placed(self, value: Value, layout: NDArray[np.int64] | None, name: str) -> Value:
        """A value in its node's order, moved to the positions of a layout."""
        if layout is None:
            return value
        return self.move(value, Movement(layout), f"{name}.moved", "")

    def in_place(self, value: Value, name: str, module: nn.Module | str) -> str:
        """The node of a value whose movement does not wait.  Raises: NotCovered."""
        if value.pending is not None:
            reason = "stands behind a movement of channels with functions of their own"
            raise refuse(name, module, f"{reason}; quantize before or behind the movement")
        assert value.node is not None
        return value.node

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
        """The node that gives the codes of `quantize(value)`, and the value (perhaps negated), both
        in the order of the value's node.

        `per_channel` tells that the quantizer has one scale for each channel.
        """
        node = value.node
        assert node is not None
        if value.pending is not None:
            if per_channel:
                self.in_place(value, name, module)
            value = replace(value, shape=self.shapes[node], pending=None)
        acc = self.ranges[node]
        channels = value.shape[0] if value.per_channel or per_channel else 1
        lo = acc.lo.reshape(channels, -1).min(axis=1)  # [channels]
        hi = acc.hi.reshape(channels, -1).max(axis=1)  # [channels]
        if int(lo.min()) <= -(2**62) or int(hi.max()) >= 2**62:
            raise refuse(name, module, f"accumulators reach [{lo.min()}, {hi.max()}]")
        codes = _code_function(value, quantize, name, module)
        ends = codes(np.stack([lo, hi], axis=1).astype(np.int64))  # [channels, 2]
        falling = ends[:, 0] > ends[:, 1]
        if falling.any() and (flipped := self._negate(value, falling)) is not None:
            return self.close(flipped, quantize, fmt, name, module, per_channel=per_channel)
        op = self._tabulate(codes, lo, hi, fmt, name, module)
        return self.add(name, op, node), value

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
        if not isinstance(op, WeightedSum):
            return None
        weight = op.by_channel
        sign = np.broadcast_to(np.where(channels, -1, 1), len(weight))
        bias = None if op.bias is None else op.bias * sign
        negated = op.with_weights(weight * sign.reshape(-1, 1, 1), bias)
        node = self.nodes[index]
        self.nodes[index] = Node(node.name, negated, node.inputs)
        assert node.inputs is not None
        self.ranges[node.name] = negated.out_range(*(self.ranges[i] for i in node.inputs))
        return replace(value, sign=torch.from_numpy(sign.copy()), exclusive=False)

    # --- functions on codes, order of accumulators ------------------------------------------

    def settle(self, value: Value, name: str, module: nn.Module) -> Value:
        """The value without steps: functions that map codes to codes become a table.

        Raises: NotCovered naming the function that no quantizer follows.
        """
        node = self.in_place(value, name, module)
        if not value.steps:
            return value
        steps = ", ".join(step.name for step in value.steps)
        reason = f"a float function ({steps}) stands before it without a quantizer between"
        acc = self.ranges[node]
        lo, hi = int(acc.lo.min()), int(acc.hi.max())
        channels = value.shape[0] if value.per_channel else 1
        if value.scale.ndim or (value.divisor != 1).any() or channels * (hi - lo + 1) > _DENSE:
            raise refuse(name, module, reason)
        column = np.tile(np.arange(lo, hi + 1), (channels, 1))
        with torch.no_grad():
            floats = _per_channel(value.decode, column, value)  # [channels, n]
        for scale in (value.scale, _unit(floats)):
            integers = torch.round(floats.double() / scale.double())
            small = bool((integers.abs() < _MULTIPLES).all())
            if small and torch.equal(integers.to(torch.float32) * scale, floats):
                table = Lookup(integers.to(torch.int64).numpy(), lo)
                return Value(self.add(value.steps[-1].name, table, node), value.shape, scale)
        raise refuse(name, module, reason)

    def rising(self, value: Value, name: str, module: nn.Module) -> Value:
        """The value, negated where needed so that its function rises in every channel.

        Raises: NotCovered when a channel does neither rise nor fall, or cannot be negated.
        """
        node = self.in_place(value, name, module)
        if not value.steps and value.sign is None:
            return value
        channels = value.shape[0]
        acc = self.ranges[node]
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


def _fill(value: Value, constant: float, name: str, module: nn.Module | str) -> int:
    """The integer that stands for a constant in every channel.  Raises: NotCovered."""
    if not value.steps and value.sign is None and (value.divisor == 1).all():
        code = Fraction(constant) / Fraction(float(value.scale.reshape(-1)[0]))
        if code.denominator == 1 and (code == 0 or not value.scale.ndim):
            return int(code) + value.zero_point
    reason = f"fills with {constant:g}, for which no integer stands; quantize behind it"
    raise refuse(name, module, reason)


def _of_channels(value: Value, shape: Shape, rows: NDArray[np.int64]) -> Value:
    """The value of a node [*shape] where channel k is what channel rows[k] was."""
    if np.array_equal(rows, np.arange(shape[0])):
        return value
    chosen = torch.from_numpy(rows)
    order = np.argsort(rows, kind="stable")
    firsts = np.searchsorted(rows[order], rows[order])
    slots = torch.empty(len(rows), dtype=torch.int64)  # how many channels before had this row
    slots[order] = torch.from_numpy(np.arange(len(rows)) - firsts)

    def selected(channels: Tensor) -> Tensor:
        return channels if channels.numel() == 1 else channels[chosen]

    def on_rows(function: Function) -> Function:
        def moved(x: Tensor) -> Tensor:  # [n, len(rows), ...]
            columns = x.reshape(len(x), len(rows), -1).permute(1, 0, 2).reshape(len(rows), -1)
            wide = x.new_zeros((int(slots.max()) + 1, columns.shape[1], shape[0]))
            wide[slots, :, chosen] = columns
            y = function(wide.reshape(-1, shape[0], *(1,) * (len(shape) - 1)))
            columns = y.reshape(wide.shape)[slots, :, chosen]
            return columns.reshape(len(rows), len(x), -1).permute(1, 0, 2).reshape(x.shape)

        return moved

    def step_on_rows(step: Step) -> Step:
        bias = None if step.bias is None else selected(step.bias)
        affine = (
            None if step.affine is None else (selected(step.affine[0]), selected(step.affine[1]))
        )
        return replace(step, function=on_rows(step.function), bias=bias, affine=affine)

    return replace(
        value,
        scale=selected(value.scale),
        divisor=selected(value.divisor),
        sign=None if value.sign is None else selected(value.sign),
        steps=tuple(step_on_rows(s) if s.per_channel else s for s in value.steps),
    )


def _code_function(value: Value, quantize: Function, name: str, module: nn.Module) -> CodesOfAcc:
    """int64 [channels, n] to codes [channels, n]: the module's own function of an accumulator."""

    def quantized(integers: Tensor) -> Tensor:
        x = value.decode(integers)
        if bool(x.isnan().any()):
            steps = ", ".join(step.name for step in value.steps)
            raise refuse(name, module, f"{steps}: NaN for some integers that are possible")
        return quantize(x)

    def codes(acc: NDArray[np.int64]) -> NDArray[np.int64]:
        with torch.no_grad():
            return _per_channel(quantized, acc, value).numpy()

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
