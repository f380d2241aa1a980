"""The integer program that grows while an ONNX graph is read.

A quantizer closes the pending float32 steps of a tensor into integer thresholds
(`Requantize.from_function`), or into a table where they are not monotone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import gcd, lcm, prod
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, InvalidArgument, NotCovered, ShapeMismatch
from refqnn.formats import IntFormat
from refqnn.graph import INPUT, Node
from refqnn.onnx.doors import MAX_BITS, floats_of, input_quantizer, pad_code, same_quantizer
from refqnn.onnx.values import (
    AFFINE,
    Constant,
    Grid,
    Quantized,
    Real,
    Scaled,
    Value,
    along_first,
    along_sample,
    float32_of,
    fractions_of,
    limits_of_type,
    one,
    recover_grid,
    spread,
    uniform,
    unscaled,
)
from refqnn.ops import (
    Add,
    Conv1d,
    Conv2d,
    Flatten,
    Gather,
    Interval,
    Linear,
    Lookup,
    Op,
    Requantize,
    Reshape,
    Role,
    SumOp,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import ALWAYS, NEVER
from refqnn.ops.scaling import Scaling, all_powers_of_two
from refqnn.ops.weighted import WeightedSum
from refqnn.quantizers import Quantizer, ThresholdQuantizer
from refqnn.rounding import Rounding

__all__ = ["Context", "Handler", "Program", "common_divisor", "per_channel"]

Array = NDArray[Any]
T = TypeVar("T")

_TABLE_ENTRIES = 2**22
_LISTED = 2**20  # values of a node at which a float function is evaluated to find its grid
_EVALUATED = 2**24  # accumulators of a layer at which a function is evaluated to find its changes
_CHUNK = 2**20
_BIT = IntFormat(1, signed=False)
_MAX_SAMPLE = 2**22  # values in one sample of a tensor
_MAX_DIAGONAL = 4096  # values that a matrix scales
_MAX_PRODUCTS = 2**33  # of one layer and one sample


@dataclass(eq=False)
class Context:
    """One ONNX node while it is read."""

    proto: Any
    where: str
    inputs: list[Value | None]  # None for an empty name
    attributes: dict[str, Any]

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int) -> Value:
        value = self.optional(index)
        if value is None:
            raise FileFormatError(f"{self.where}: it has no input {index}")
        return value

    def constant(self, index: int, what: str) -> Array:
        value = self.optional(index)
        if not isinstance(value, Constant):
            got = "nothing" if value is None else "a tensor that depends on the input"
            raise NotCovered(f"{self.where}: got {got} as {what}, expected a constant")
        return value.array

    def optional_constant(self, index: int, what: str) -> Array | None:
        return None if self.optional(index) is None else self.constant(index, what)

    def attribute(self, name: str, default: T) -> T:
        """An attribute of the type of its default, which stands where the node has none.

        Raises: FileFormatError.
        """
        value: T = self.attributes.get(name, default)
        if not _kinds(value) <= _kinds(default):
            raise FileFormatError(f"{self.where}: attribute {name} is {value!r}")
        return value

    def element_type(self, index: int) -> str:
        """The element type of a constant."""
        value = self.value(index)
        return value.element_type if isinstance(value, Constant) else ""

    @property
    def name(self) -> str:
        """Of the integer node that it becomes."""
        return str(self.proto.name or self.proto.output[0])

    def integers(self, index: int, name: str) -> list[int] | None:
        """A list that older opsets keep in an attribute and newer ones in an input."""
        if name in self.attributes:
            whole = isinstance(self.attributes[name], int)
            return [self.attribute(name, 0)] if whole else self.attribute(name, [0])
        array = self.optional_constant(index, name)
        return None if array is None else [int(v) for v in array.ravel()]


class Program:
    """Nodes, shapes and proved ranges so far, and the door in front of them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.ops: dict[str, Op] = {}
        self.feeds: dict[str, tuple[str, ...]] = {}  # inputs of the nodes
        self.uses: dict[str, int] = {}  # how often a name was asked for
        self.ranges: dict[str, Interval] = {}
        self.shapes: dict[str, Shape] = {}
        self.quantizer: Quantizer | None = None
        self.input_format: IntFormat | None = None
        self.input_shape: Shape = ()
        self.dropped: list[str] = []
        self.batch = 1

    def set_input(self, fmt: IntFormat, quantizer: Quantizer | None) -> None:
        self.input_format, self.quantizer = fmt, quantizer
        self.ranges[INPUT] = Interval.of_format(fmt, self.input_shape)
        self.shapes[INPUT] = self.input_shape

    def emit(self, name: str, op: Op, inputs: tuple[str, ...]) -> str:
        """Append a node under a name not yet used; returns the name."""
        base = name.strip("/") or op.kind
        unique = base
        while unique in self.shapes or unique == INPUT:
            self.uses[base] = self.uses.get(base, 1) + 1
            unique = f"{base}_{self.uses[base]}"
        shape = op.out_shape(*(self.shapes[n] for n in inputs))
        self.check_size(shape, name)
        weight = getattr(op, "weight", None)
        if weight is not None and prod(shape) * (weight.size // weight.shape[0]) > _MAX_PRODUCTS:
            raise NotCovered(f"{name}: too many products for one sample")
        interval = op.out_range(*(self.ranges[n] for n in inputs))
        if isinstance(op, SumOp) and op.prepare(*(self.ranges[n] for n in inputs)) >= 2**62:
            raise NotCovered(f"{name}: its sums leave 62 bits")
        self.nodes.append(Node(unique, op, inputs))
        self.ops[unique], self.feeds[unique] = op, inputs
        self.shapes[unique], self.ranges[unique] = shape, interval
        return unique

    def integers(self, node: str, dtype: str = "INT64") -> Scaled:
        """A tensor of the values of a node."""
        return Scaled(node, self.shapes[node], one(self.shapes[node]), base=dtype)

    def reach(self, v: Scaled, where: str) -> tuple[int, int]:
        """The least and greatest value of an integer tensor, by the proved range."""
        if (self.direction(v) != 0).all():
            values = v.values(np.stack(self._channel_range(v.node, v.rows), axis=1))
        else:
            values = self.table(v, where)[0]
        if not np.isfinite(values).all():
            raise NotCovered(f"{where}: its input reaches {values.ravel()[0]}")
        return int(values.min()), int(values.max())

    def table(self, v: Scaled, where: str) -> tuple[Array, int]:
        """The values of v, [channels or 1, n], for node values from the least on.

        Raises: NotCovered when they are too many, or vary inside a channel.
        """
        lo, hi = self.ranges[v.node].ends
        if v.rows * (hi - lo + 1) > _TABLE_ENTRIES or spread(v.parameters, v.shape):
            raise NotCovered(f"{where}: a function of values in [{lo}, {hi}], too many to list")
        acc = np.broadcast_to(np.arange(lo, hi + 1), (v.rows, hi - lo + 1))
        return np.broadcast_to(v.values(acc), acc.shape), lo

    def fits(self, v: Scaled, dtype: str) -> bool:
        """Do all values of an affine function of a node lie in the range of an integer type?"""
        lo, hi = limits_of_type(dtype)
        ends = [(e - v.zero) * s for e in self.ranges[v.node].ends for s in v.scale.ravel()]
        return bool(lo <= min(ends) and max(ends) <= hi)

    def typed(self, v: Scaled, dtype: str) -> Scaled:
        """Exact integers as a type holds them: they wrap where they leave its range."""
        return replace(v, base=dtype) if self.fits(v, dtype) else v.then("Cast", dtype=dtype)

    def within(self, v: Scaled, dtype: str, where: str) -> Scaled:
        """Exact integers of a type that they must not leave.  Raises: NotCovered."""
        if not self.fits(v, dtype):
            ends = sorted(int(e * s) for e in self.ranges[v.node].ends for s in v.scale.ravel())
            bits = dtype.lstrip("UINT")
            raise NotCovered(
                f"{where}: its accumulator, in [{ends[0]}, {ends[-1]}], wraps in {bits} bits"
            )
        return replace(v, base=dtype)

    def plain(self, v: Scaled, name: str) -> Scaled:
        """An integer tensor as the values of a node less an integer zero."""
        if v.is_integers:
            return v
        if v.is_plain:
            return self._affine(v, name)
        return self._close(self._whole(v, name))

    def _whole(self, v: Scaled, name: str) -> Quantized:
        """A tensor of integers as codes."""
        lo, hi = self.reach(v, name)
        function = partial(np.asarray, dtype=np.int64)
        return unscaled(v, lo, hi, function=function, dtype=v.dtype, name=name)

    def settled(self, v: Scaled, name: str) -> Scaled:
        """A product as the values of a node, or multiples of one number.  Raises: NotCovered."""
        if v.integer:
            return self.plain(v, f"{name}_input")
        return self._on_grid(v, name, name, f"{name}: it moves products; quantize them first")

    def values_of(self, v: Scaled, name: str = "output") -> Scaled:
        """An integer tensor as the values of a node."""
        v = self.plain(v, name)
        return v if v.zero == 0 else self._affine(v, name)

    def affine(
        self, v: Scaled, where: str, name: str, beside: Sequence[float] = ()
    ) -> tuple[Scaled, Array, Array]:
        """(v, scale, offset): a float tensor as (node - zero) * scale + offset, exactly.

        Where other operators gave integers, or multiples of the scale of their input, these become
        the values of a node; `beside` are multiples as well.

        Raises: NotCovered.
        """
        if v.integer and not v.is_plain:
            v = self.plain(v, f"{name}_input")
        if not v.is_affine:
            refusal = f"{where}: its input comes out of {v.last} as a float; quantize it first"
            v = self._on_grid(v, where, name, refusal, beside)
        return v, *v.affine()

    def multiple(self, v: Scaled, c: Context) -> tuple[Scaled, Array]:
        """(v, scale): a tensor as (node - zero) * scale, exactly.  Raises: as `affine`."""
        v, scale, offset = self.affine(v, c.where, c.name)
        if any(o != 0 for o in offset.ravel()):
            offset_only = f"{c.where}: its input has a float offset; quantize it first"
            v = self._on_grid(v, c.where, c.name, offset_only)
            return v, v.scale
        return v, scale

    def _on_grid(
        self, v: Scaled, where: str, name: str, refusal: str, beside: Sequence[float] = ()
    ) -> Scaled:
        """Multiples of one number as that many times it, a node of their own."""
        unit, (lo, hi) = Fraction(1), self.ranges[v.node].ends
        if not (v.integral and (self.direction(v) != 0).all()):
            if hi - lo >= _LISTED:
                raise NotCovered(f"{refusal}; its values in [{lo}, {hi}] are too many to list")
            values = np.append(self.table(v, where)[0], np.array(beside, dtype=np.float32))
            grids = [*uniform(v.scale).ravel()[:1], common_divisor(values)]
            units = [s for s in grids if s > 0 and _multiples(values, s)]
            if not units:
                raise NotCovered(refusal)
            unit = units[0]
        counts = v.then("Div", float32_of(one(v.shape) * unit)).then("Round")
        codes = self._close(self._whole(counts, f"{name}_input"))
        return replace(codes, scale=one(v.shape) * unit)

    def _affine(self, v: Scaled, name: str) -> Scaled:
        """scale * (node - zero), integers, as a node."""
        channels, scale = v.shape[0], per_channel(v.scale, name).astype(np.int64)
        if scale.size == 1 and v.zero == 0:
            return self.integers(self.emit(name, Add((int(scale[0]),)), (v.node,)), v.base)
        if len(v.shape) == 1 and channels > _MAX_DIAGONAL:
            table, lo = self.table(v, name)
            return self.integers(self.emit(name, Lookup(table, lo), (v.node,)), v.base)
        weight = np.broadcast_to(scale, (channels,))
        bias = -weight * int(v.zero)
        spatial = (1,) * (len(v.shape) - 1)
        op: Op = Linear(np.diag(weight), bias)
        if spatial:
            kind = (Conv1d, Conv2d)[len(spatial) - 1]
            op = kind(weight.reshape(channels, 1, *spatial), bias, groups=channels)
        return self.integers(self.emit(name, op, (v.node,)), v.base)

    def check_size(self, shape: Sequence[int], where: str) -> None:
        if prod(int(d) for d in shape) > _MAX_SAMPLE:
            raise NotCovered(f"{where}: shape {list(shape)} has too many elements")

    def code_range(self, v: Scaled, q: Quantized) -> tuple[int, int]:
        """The least and greatest code of a monotone quantizer over its input's proved range."""
        ends = _code_function(v, q)(np.stack(self._channel_range(v.node, v.shape[0]), axis=1))
        return int(ends.min()), int(ends.max())

    def move(self, v: Scaled, name: str, op: Op, function: Callable[[Array], Array]) -> Scaled:
        """The same values under another shape; a move back to an earlier shape makes no node."""
        shape = op.out_shape(v.shape)
        node = v.node
        if isinstance(op, (Reshape, Flatten)):
            while shape != self.shapes[node] and isinstance(self.ops.get(node), (Reshape, Flatten)):
                (node,) = self.feeds[node]
        if shape != self.shapes[node] or not isinstance(op, (Reshape, Flatten)):
            node = self.emit(name, op, (v.node,))
        return v.on(node, shape, function)

    def reshape(self, v: Scaled, shape: Shape, name: str) -> Scaled:
        op: Op = Flatten() if len(shape) == 1 else Reshape(shape)
        return self.move(v, name, op, lambda a: a.reshape(shape))

    def direction(self, v: Scaled) -> Array:
        """+1 nondecreasing, -1 nonincreasing, 0 neither or unknown; broadcasts to a sample."""
        ends = np.stack(self._channel_range(v.node, v.rows), axis=1)
        apart = spread(v.parameters, v.shape)
        unknown = v.function is not None or (apart and any(s.dtype != "FLOAT" for s in v.steps))
        if unknown or (not apart and v.wraps(ends)):
            return np.zeros((1,) * len(v.shape), dtype=np.int64)
        direction = np.sign(v.scale.astype(np.float64)).astype(np.int64)
        direction = np.where(direction == 0, 1, direction)
        for step in v.steps:
            direction = direction * step.direction
        return direction

    def increasing(self, v: Scaled) -> Scaled | None:
        """v over an integer node of which it is a nondecreasing function, or None.

        Decreasing channels of a layer are turned round: their weights and bias are negated.
        """
        direction = self.direction(v)
        if (direction > 0).all():
            return v
        if (direction == 0).any() or v.zero != 0 or v.node == INPUT:
            return None
        op, inputs, name = self.ops[v.node], self.feeds[v.node], f"{v.node}_negated"
        falls = direction < 0
        if isinstance(op, WeightedSum) and prod(falls.shape[1:]) == 1:
            sign = np.broadcast_to(np.where(falls.ravel(), -1, 1), (v.shape[0],))
            bias = None if op.bias is None else op.bias * sign
            turned = op.with_weights(op.by_channel * sign[:, None, None], bias)
            node = self.emit(name, turned, inputs)
        elif isinstance(op, Add) and falls.all():
            multipliers = op.multipliers or (1,) * len(inputs)
            node = self.emit(name, Add(tuple(-m for m in multipliers)), inputs)
        else:
            return None
        return replace(v, node=node, scale=np.where(falls, -v.scale, v.scale))

    def codes(self, q: Quantized) -> Scaled:
        """The integer node of a quantizer, made once."""
        if q.done is None:
            q.done = self._input_codes(q) if isinstance(q.source, Real) else self._close(q)
        return q.done

    def opened(self, v: Value) -> Value:
        """What a float operator is given: codes, or the floats of a rounding without limits."""
        return (floats_of(v) or self.codes(v)) if isinstance(v, Quantized) else v

    def _input_codes(self, q: Quantized) -> Scaled:
        """The quantizer of the float input becomes the network's first door."""
        real = q.source
        assert isinstance(real, Real)
        quantizer = input_quantizer(q, real)
        fmt = quantizer.format
        if self.quantizer is None:
            self.set_input(fmt, quantizer)
        elif not same_quantizer(self.quantizer, quantizer):
            raise NotCovered(
                f"{q.name}: the input is quantized a second time, differently; declare the codes "
                "that come in, e.g. input='UINT8'"
            )
        codes = self.integers(INPUT, q.dtype)
        clipped = isinstance(quantizer, ThresholdQuantizer) or q.bipolar
        if not clipped and (q.lo, q.hi) != (fmt.q_min, fmt.q_max):
            clip = Requantize.from_affine(1, 0, fmt, Rounding.FLOOR, clip=(q.lo, q.hi))
            codes = replace(codes, node=self.emit(f"{q.name}_clip", clip, (codes.node,)))
        if (places := real.places) is not None:
            codes = self.moved(codes, lambda a: a.ravel()[places], f"{q.name}_moved")
        if real.pad:
            codes = replace(codes, pad=real.pad, pad_code=pad_code(q, real))
        return codes

    def _close(self, q: Quantized) -> Scaled:
        """Pending steps and quantizer as integer thresholds, or as a table."""
        v = q.source
        assert isinstance(v, Scaled)
        parameters = [*v.parameters, q.scale, q.zero_point]
        if spread(parameters, v.shape):
            return self._close_flat(q, v)
        fmt = q.format()
        per_channel = q.rows > 1 or any(p.size > 1 for p in parameters)
        channels = v.shape[0] if per_channel else 1
        few = fmt.bits <= MAX_BITS and fmt.levels * channels <= _TABLE_ENTRIES
        if not few and q.function is None:
            raise NotCovered(f"{q.name}: {channels} channels of {fmt} are too many thresholds")
        increasing = self.increasing(v) if few else None
        if increasing is not None:
            lo, hi = self._channel_range(increasing.node, channels)
            function = _code_function(increasing, q)
            try:
                op = Requantize.from_function(function, lo, hi, fmt)
                if _is_identity(function, lo, hi):
                    return self.integers(increasing.node, q.dtype)
                op.made_by(_scaling(increasing, q))
                return self.integers(self.emit(q.name, op, (increasing.node,)), q.dtype)
            except InvalidArgument:
                pass  # not monotone in float32 after all: a table
        lo, hi = self._channel_range(v.node, channels)
        lowest, span = int(lo.min()), int(hi.max()) - int(lo.min()) + 1
        if span * channels > _TABLE_ENTRIES:
            if not few:
                ends = f"values in [{lowest}, {int(hi.max())}] become {fmt}"
                raise NotCovered(f"{q.name}: {ends}, too many to list in {channels} channels")
            slow = any(s.op in ("Erf", "Gelu") for s in v.steps)
            if slow or span * channels > _EVALUATED:
                raise NotCovered(
                    f"{q.name}: not monotone, and {channels} x {span} accumulators are too many to "
                    "list; narrow the codes in front of the layer"
                )
            return self._difference(q, v, lo, hi)
        acc = np.broadcast_to(lowest + np.arange(span), (channels, span))
        table = _code_function(v, q)(acc)
        return self.integers(self.emit(q.name, Lookup(table, lowest, fmt), (v.node,)), q.dtype)

    def _difference(self, q: Quantized, v: Scaled, lo: Array, hi: Array) -> Scaled:
        """Thresholds where the code rises, less thresholds where it falls: no table of all codes.

        Swish-like activations fall a little and rise: a few thresholds describe them exactly.
        """
        channels, fmt = lo.size, q.format()
        function = _code_function(v, q)
        first, changes = function(lo[:, None])[:, 0], []
        chunk = max(_CHUNK // channels, 2)
        for begin in range(int(lo.min()), int(hi.max()), chunk - 1):
            acc = np.clip(begin + np.arange(chunk), lo[:, None], hi[:, None])
            step = np.diff(function(acc), axis=1)
            rows, places = np.nonzero(step)
            changes.append(np.stack([rows, acc[rows, places + 1], step[rows, places]]))
        row, at, by = np.concatenate(changes, axis=1)
        if np.abs(by).sum() > _TABLE_ENTRIES // 8:
            raise NotCovered(f"{q.name}: not monotone, and its code changes too often")
        counts = []
        for sign, base, start in ((1, fmt, first - fmt.q_min), (-1, _BIT, np.zeros_like(first))):
            found = [np.full(n, ALWAYS) for n in start]
            for k in range(channels):
                mine = (row == k) & (by * sign > 0)
                found[k] = np.r_[found[k], np.repeat(at[mine], by[mine] * sign)]
            target = _counting_format(base, max(map(len, found)))
            table = np.full((channels, target.levels - 1), NEVER, dtype=np.int64)
            before = base.q_min - target.q_min  # always reached: a lower start
            table[:, :before] = ALWAYS
            for thresholds, t in zip(table, found):
                thresholds[before : before + len(t)] = t
            name = f"{q.name}_{'rises' if sign > 0 else 'falls'}"
            counts.append(self.emit(name, Requantize(table, target), (v.node,)))
        return self.integers(self.emit(q.name, Add((1, -1)), tuple(counts)), q.dtype)

    def _close_flat(self, q: Quantized, v: Scaled) -> Scaled:
        """Parameters that vary inside a channel: every position becomes a channel."""
        if q.rows > 1:
            raise NotCovered(f"{q.name}: thresholds per channel behind parameters per position")
        flat = self.reshape(v, (prod(v.shape),), f"{q.name}_flat")

        def flattened(a: Array) -> Array:
            return a.reshape(1) if a.size == 1 else np.broadcast_to(a, v.shape).reshape(-1)

        moved = replace(
            q, source=flat, scale=flattened(q.scale), zero_point=flattened(q.zero_point), done=None
        )
        return self.reshape(self._close(moved), v.shape, f"{q.name}_shape")

    def _channel_range(self, node: str, channels: int) -> tuple[Array, Array]:
        interval = self.ranges[node]
        lo, hi = (a.reshape(a.shape[0], -1) for a in (interval.lo, interval.hi))
        if channels == 1:
            return np.array([int(lo.min())]), np.array([int(hi.max())])
        return lo.min(axis=1).astype(np.int64), hi.max(axis=1).astype(np.int64)

    @overload
    def moved(self, v: Scaled, movement: Callable[[Array], Array], name: str) -> Scaled: ...
    @overload
    def moved(
        self, v: Scaled | Real, movement: Callable[[Array], Array], name: str
    ) -> Scaled | Real: ...
    def moved(
        self, v: Scaled | Real, movement: Callable[[Array], Array], name: str
    ) -> Scaled | Real:
        """The values where `movement` takes the entries of an array of their shape."""
        if isinstance(v, Real):
            return v.moved(movement)
        if v.function is not None and v.rows > 1:  # which knows its channels by their places
            v = self.settled(v, name)
        op = Gather.of(v.shape, movement)
        if np.array_equal(op.index.ravel(), np.arange(prod(v.shape))):  # no value moves
            return self.reshape(v, op.index.shape, name)
        return self.move(v, name, op, movement)

    def transpose(self, v: Scaled, perm: tuple[int, ...], name: str) -> Scaled:
        """Axes of a sample in another order."""
        return self.moved(v, lambda a: a.transpose(perm), name)

    def unpadded(self, v: Scaled, name: str) -> Scaled:
        """Codes for the padding that the operator behind a Pad does not take over."""
        if v.pad_code is None and v.zero.denominator != 1:
            v = self.centred(v, name)
        fill = int(v.zero) if v.pad_code is None else v.pad_code
        plain = replace(v, pad=(), pad_code=None)
        return self.pad(plain, [(0, 0), *v.pad], fill, f"{name}_padded")

    def pad(self, v: Scaled, pairs: list[tuple[int, int]], fill: int, name: str) -> Scaled:
        """(before, after) on every axis of a sample, filled with a value of the node."""
        op = Gather.padded(v.shape, pairs, fill)
        return self.move(v, name, op, lambda a: np.pad(a, pairs, "edge"))

    def numbers(self, c: Context, index: int = 0) -> Scaled | Real:
        """Activations, or the float input."""
        value = c.value(index)
        return value if isinstance(value, Real) else self.scaled(c, index)

    def scaled(self, c: Context, index: int = 0) -> Scaled:
        value = c.value(index)
        if isinstance(value, Real):
            raise NotCovered(
                f"{c.where}: its input is float; a quantizer must come first.  Declare the codes "
                "of the input (input='UINT8', or a quantizer) or name the tensor to start from; a "
                "model of floats alone is quantized first, by onnxruntime.quantization for instance"
            )
        if not isinstance(value, Scaled):
            raise NotCovered(f"{c.where}: got a constant as input {index}, expected activations")
        return value

    def weights(self, value: Value, where: str) -> tuple[Array, Array]:
        """Integer weights [out, ...] and their scale, [out] or [1], in Fractions."""
        if not isinstance(value, Constant):
            raise NotCovered(f"{where}: the product of two tensors that depend on the input")
        if isinstance(value, Grid):
            if prod(value.scale.shape[1:]) == 1:
                return value.codes, value.scale.reshape(-1)
            full = np.broadcast_to(value.scale, value.codes.shape)
            rows = full.reshape(len(full), -1)
            units = np.array([_unit_of(row) for row in rows], dtype=object)
            factors = (rows / units[:, None]).reshape(full.shape)
            if max(factors.flat) >= 2**31:
                raise NotCovered(f"{where}: weights whose scales need integers beyond 31 bits")
            return value.codes * factors.astype(np.int64), units
        array = value.array
        if array.dtype.kind in "iu":
            return array.astype(np.int64), np.array([Fraction(1)], dtype=object)
        if not np.isfinite(array).all():
            raise FileFormatError(f"{where}: its weights are not finite")
        if (np.rint(array) == array).all() and np.abs(array).max(initial=0) < 2**31:
            return array.astype(np.int64), np.array([Fraction(1)], dtype=object)
        grid = recover_grid(array)
        grids = [g for g in (map(recover_grid, array) if grid is None else [grid]) if g is not None]
        if grid is None and len(grids) != len(array):
            raise NotCovered(f"{where}: its weights are floats on no grid of 8 bits; quantize them")
        codes = np.stack([q for q, _ in grids]).reshape(array.shape)
        return codes, np.array([s for _, s in grids], dtype=object)

    def sum(
        self,
        c: Context,
        x: Scaled,
        weight: Array,
        weight_scale: Array,
        bias: Value | None,
        make: Callable[[Array, Array | None, int], Op],
        groups: int = 1,
        padded: bool = False,
        name: str = "",
    ) -> Scaled:
        """A layer: sum of weight * (x - zero) with its bias, on the scale s_x * s_w."""
        dtype = x.dtype
        x, scale = self.multiple(x, c)
        scale = _input_scales(scale, x.shape, groups, c.where)
        if scale.size > 1:
            scale = np.repeat(scale, weight.shape[0] // groups)
        if x.zero.denominator != 1 and padded and x.pad_code is None:
            x = self.centred(x, c.name)
        zero, denominator = x.zero.as_integer_ratio()
        pad_code = zero // denominator if x.pad_code is None else x.pad_code
        weight = weight * denominator
        scale = scale * weight_scale / denominator
        row_sums = weight.reshape(weight.shape[0], -1).sum(axis=1)
        integer_bias = -(zero * row_sums // denominator) if zero else None
        left = None
        if bias is not None:
            on_grid, left = self._bias(bias, scale, weight.shape[0], c.where)
            if on_grid is not None:
                integer_bias = on_grid if integer_bias is None else integer_bias + on_grid
        node = self.emit(name or c.name, make(weight, integer_bias, pad_code), (x.node,))
        shape = self.shapes[node]
        result = Scaled(node, shape, along_first(scale, shape))
        if dtype != "FLOAT":
            return self.typed(replace(result, base="INT64"), dtype)
        if left is not None:
            result = result.then("Add", along_first(left, shape))
        return result

    def _bias(
        self, bias: Value, scale: Array, channels: int, where: str
    ) -> tuple[Array | None, Array | None]:
        """(integers, None) when the bias lies on the grid of the accumulator, else (None, floats).

        A quantized bias is on it when its scale is s_x * s_w, or that product rounded to float32.
        """
        if not isinstance(bias, Constant):
            raise NotCovered(f"{where}: its bias depends on the input")
        values = bias.array.reshape(-1)
        if values.size not in (1, channels):
            raise ShapeMismatch(f"{where}: bias of {values.size} values for {channels} channels")
        values, scales = (np.broadcast_to(a, (channels,)) for a in (values, scale))
        if isinstance(bias, Grid):
            own = np.broadcast_to(bias.scale, bias.codes.shape).reshape(-1)
            own, codes = (np.broadcast_to(a, (channels,)) for a in (own, bias.codes.reshape(-1)))
            if all(a in s for a, s in zip(own, zip(scales, fractions_of(float32_of(scales))))):
                return codes.astype(np.int64), None
        if not np.isfinite(values).all():
            raise FileFormatError(f"{where}: its bias is not finite")
        quotients = [v / s if s else None for v, s in zip(fractions_of(values), scales)]
        if all(q is not None and q.denominator == 1 and abs(q) < 2**31 for q in quotients):
            return np.array([int(q) for q in quotients if q is not None], dtype=np.int64), None
        return None, values.astype(np.float32)

    def holds_integers(self, v: Scaled) -> bool:
        """Are all values of the ONNX tensor integers?"""
        if v.is_integers:
            return True
        step = self.input_format.step if v.node == INPUT and self.input_format is not None else 1
        scale = uniform(v.scale)
        if v.steps or scale.size != 1:
            return False
        (s,) = scale.ravel()
        first = int(self.ranges[v.node].lo.min())
        return bool(s > 0 and (s * step).denominator == 1 == ((first - v.zero) * s).denominator)

    def combined(self, function: Callable[..., Array], *values: Scaled) -> Scaled | None:
        """A function of values that are functions of one integer node, in their arithmetic.

        Returns: None where there is no such node.
        """
        first, *others = (self._elementwise_sources(v.node) for v in values)
        source = next((n for n in first if all(n in o for o in others)), None)
        shapes = {v.shape for v in values}
        parameters = [p for v in values for p in v.parameters]
        if source is None or len(shapes) > 1 or spread(parameters, values[0].shape):
            return None
        paths = [(v, self._values_over(v.node, source)) for v in values]

        def value(acc: Array) -> Array:
            return np.asarray(function(*(v.values(path(acc)) for v, path in paths)))

        (shape,) = shapes
        scale = np.broadcast_to(one(shape), np.broadcast_shapes(*(p.shape for p in parameters)))
        return Scaled(source, shape, scale, base=values[-1].dtype, function=value)

    def _elementwise_sources(self, node: str) -> list[str]:
        """The node and what it is one function of, at every position, nearest first."""
        sources = [node]
        while True:
            op = self.ops.get(sources[-1])
            if op is None or op.role is not Role.ELEMENTWISE or getattr(op, "channels", 1) > 1:
                return sources
            sources.extend(self.feeds[sources[-1]])

    def _values_over(self, node: str, source: str) -> Callable[[Array], Array]:
        path = self._elementwise_sources(node)
        ops = [self.ops[n] for n in path[: path.index(source)]]

        def values(acc: Array) -> Array:
            for op in reversed(ops):
                acc = op.forward(acc)
            return acc

        return values

    def centred(self, x: Scaled, name: str) -> Scaled:
        """(node - zero) as integers, in a node of its own."""
        d = x.zero.denominator
        moved = self._affine(replace(x, scale=one(x.shape) * d, base="INT64"), f"{name}_centred")
        return replace(x, node=moved.node, zero=Fraction(0), scale=x.scale / d)

    def sums_like_differences(self, v: Scaled) -> bool:
        """Is fl32(node * scale) - fl32(zero * scale) the same as fl32((node - zero) * scale)?"""
        if v.zero == 0:
            return True
        lo, hi = self.ranges[v.node].ends
        if hi - lo >= _LISTED or spread([v.scale], v.shape):
            return False
        scale = v.scale.reshape(-1, 1)
        node = np.arange(lo, hi + 1)[None].astype(np.float32)
        sums = node * float32_of(scale) + float32_of(-scale * v.zero)
        return bool((sums == v.values(node.astype(np.int64))).all())

    def with_bias(self, v: Scaled, array: Constant, name: str, where: str) -> Scaled | None:
        """v + constant folded into the integer bias of the layer that makes v, if it fits there."""
        op = self.ops.get(v.node)
        if not v.is_plain or v.zero != 0 or not isinstance(op, WeightedSum):
            return None
        aligned = along_sample(array.array, v.shape, where)
        if prod(aligned.shape[1:]) != 1:
            return None
        on_grid, _ = self._bias(array, v.scale.reshape(-1), v.shape[0], where)
        if on_grid is None:
            return None
        bias = on_grid if op.bias is None else op.bias + on_grid
        biased = op.with_weights(op.by_channel, bias)
        return replace(v, node=self.emit(name, biased, self.feeds[v.node]))


def _kinds(value: object) -> set[object]:
    """The types in an attribute: of the value, or of the entries of a list."""
    return {list, *((list, type(v)) for v in value)} if isinstance(value, list) else {type(value)}


def per_channel(values: Array, where: str) -> Array:
    """[channels] or [1]."""
    if prod(values.shape[1:]) != 1:
        raise NotCovered(f"{where}: a scale or offset that varies inside a channel")
    return values.reshape(-1)


def _input_scales(scale: Array, shape: Shape, groups: int, where: str) -> Array:
    """The scale of each group of input channels, or one for all."""
    flat = uniform(uniform(scale))
    if flat.size == 1:
        return flat.reshape(1)
    by_channel = per_channel(scale, where)
    by_group = np.broadcast_to(by_channel, (shape[0],)).reshape(groups, -1)
    if any(s != row[0] for row in by_group for s in row):
        raise NotCovered(f"{where}: it sums over channels of different scales")
    return by_group[:, 0]


def _unit_of(numbers: Array) -> Fraction:
    """The greatest number of which all Fractions are multiples."""
    distinct = set(numbers)
    whole = lcm(*(v.denominator for v in distinct))
    return Fraction(gcd(*(int(v * whole) for v in distinct)), whole)


def _multiples(values: Array, unit: Fraction) -> bool:
    """Are all values fl32(k * unit) for integers k of at most 24 bits?"""
    counts = np.rint(values.astype(np.float64) / float(unit))
    again = counts.astype(np.float32) * float32_of(np.array([unit]))
    return bool((np.abs(counts) < 2**24).all() and (again == values).all())


def common_divisor(values: Array) -> Fraction:
    """The greatest number of which all values are multiples, or 0 where that takes 53 bits."""
    found = np.unique(np.abs(values.astype(np.float64)))
    exponent = int(np.frexp(found[found > 0])[1].min(initial=24)) - 24
    counts = np.ldexp(found, -exponent)
    if not counts.max() < 2**53:
        return Fraction(0)
    return int(np.gcd.reduce(counts.astype(np.int64))) * Fraction(2) ** exponent


def _is_identity(function: Callable[[Array], Array], lo: Array, hi: Array) -> bool:
    """Does a quantizer give back every code it can get?  Quantizers around a pooling do."""
    span = int((hi - lo).max())
    if span >= 2**MAX_BITS:
        return False
    acc = np.minimum(lo[:, None] + np.arange(span + 1), hi[:, None])
    return bool(np.array_equal(function(acc), acc))


def _code_function(v: Scaled, q: Quantized) -> Callable[[Array], Array]:
    """Codes of accumulators [channels, n]."""
    q_scale, q_zero = q.scale.reshape(-1, 1), q.zero_point.reshape(-1, 1)

    def codes(acc: Array) -> Array:
        y = v.values(acc)
        if np.isnan(y).any():
            raise NotCovered(f"{q.name}: its float operators reach NaN inside the proved range")
        return np.broadcast_to(q.codes(y, q_scale, q_zero), acc.shape)

    return codes


def _scaling(v: Scaled, q: Quantized) -> Scaling | None:
    """What the thresholds of a quantizer stand for: clips of something affine; None of others."""
    if q.function is not None or q.bipolar or v.function is not None:
        return None
    scale, zero, *divisor = (
        np.asarray(p, dtype=np.float64).ravel() for p in (v.scale, q.zero_point, q.scale)
    )
    offset, low, high = -scale * float(v.zero), np.full(1, -np.inf), np.full(1, np.inf)
    gain, size, steps, dyadic = scale, np.abs(offset), 0, all_powers_of_two(np.abs(scale))
    told = [(s.op, [a.astype(np.float64).ravel() for a in s.args]) for s in v.steps]
    for op, args in [*told, ("Div", divisor), *([("Add", [zero])] if q.zero_first else [])]:
        if op in ("Relu", "Clip"):
            least, most = args or (np.zeros(1), np.full(1, np.inf))
            low, high = (np.minimum(np.maximum(e, least), most) for e in (low, high))
        elif op in AFFINE:
            factor, term = (np.asarray(p, dtype=np.float64) for p in AFFINE[op](*args))
            if not factor.all():
                return None
            gain, offset, size = gain * factor, offset * factor, size * abs(factor) + abs(term)
            low, high = np.sort([low * factor + term, high * factor + term], axis=0)
            offset, dyadic = offset + term, dyadic and all_powers_of_two(np.abs(factor))
            steps += 8 if op == "Affine" else 1  # a batch norm folds its parameters in float32
        elif op != "Cast":
            return None
    if not (gain > 0).all() or any(s.dtype != "FLOAT" for s in v.steps):
        return None
    zero = np.zeros(1) if q.zero_first else zero
    codes = np.array([[q.lo, q.hi]])
    return Scaling(gain, offset, size, zero, codes, q.rounding, low, high, steps, dyadic)


def _counting_format(fmt: IntFormat, size: int) -> IntFormat:
    """The narrowest format of fmt's signedness that holds fmt.q_min and `size` codes above it."""
    bits = fmt.bits
    while IntFormat(bits, fmt.signed).q_max < fmt.q_min + size:
        bits += 1
    return IntFormat(bits, fmt.signed)


Handler = Callable[[Program, Context], Value | list[Value]]
"""What an operator does."""
