"""Operators that move values or tell shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered
from refqnn.onnx.files import type_name
from refqnn.onnx.program import Context, Handler, Program
from refqnn.onnx.values import (
    Constant,
    Dropped,
    Grid,
    Real,
    Scaled,
    Value,
    along_first,
    uniform,
)
from refqnn.ops import Concat, Gather, Lookup
from refqnn.ops.base import Shape

__all__ = ["TABLE", "joined", "moved"]

Array = NDArray[Any]


def _identity(r: Program, c: Context) -> Value | list[Value]:
    if c.proto.op_type == "Dropout" and c.optional(2) is not None and c.constant(2, "mode").any():
        raise NotCovered(f"{c.where}: dropout in training mode")
    return [c.value(0)] * len(c.proto.output)


def _reshaped(r: Program, c: Context, shape: Shape) -> Value:
    x = r.numbers(c)
    if prod(shape) != prod(x.shape) or not shape or min(shape) < 1:
        raise NotCovered(f"{c.where}: shape {x.shape} to {shape} touches the batch axis")
    if isinstance(x, Real):
        return x.moved("reshape", shape, shape)
    return r.reshape(x, shape, c.name)


def _reshape(r: Program, c: Context) -> Value:
    """The first axis is the batch and stays."""
    x = c.value(0)
    target = tuple(int(d) for d in c.constant(1, "shape").ravel())
    full = x.codes.shape if isinstance(x, Grid) else (r.batch, *r.numbers(c).shape)
    if not c.attributes.get("allowzero", 0):
        target = tuple(full[i] if d == 0 else d for i, d in enumerate(target))
    if isinstance(x, Grid):
        return x.map(lambda a: a.reshape(target))
    if target.count(-1) > 1 or not target:
        raise FileFormatError(f"{c.where}: shape {target}")
    first, rest = target[0], target[1:]
    if -1 in rest:
        known = prod(d for d in rest if d != -1)
        if first != r.batch or known < 1 or prod(full[1:]) % known:
            raise NotCovered(f"{c.where}: shape {full} to {target} touches the batch axis")
        rest = tuple(prod(full[1:]) // known if d == -1 else d for d in rest)
    elif first not in (-1, r.batch):
        raise NotCovered(f"{c.where}: shape {full} to {target} touches the batch axis")
    return _reshaped(r, c, rest)


def _flatten(r: Program, c: Context) -> Value:
    x, axis = r.numbers(c), int(c.attributes.get("axis", 1))
    if axis % (len(x.shape) + 1) != 1:
        raise NotCovered(f"{c.where}: flattening from axis {axis}, expected 1")
    return _reshaped(r, c, (prod(x.shape),))


def _squeeze(r: Program, c: Context) -> Value:
    x, axes = r.numbers(c), c.integers(1, "axes")
    rank = len(x.shape) + 1
    if axes is None:
        axes = [i + 1 for i, d in enumerate(x.shape) if d == 1]
    drop = {a % rank for a in axes}
    if 0 in drop or any(x.shape[a - 1] != 1 for a in drop):
        raise NotCovered(f"{c.where}: axes {axes} of {('n', *x.shape)}")
    return _reshaped(r, c, tuple(d for i, d in enumerate(x.shape) if i + 1 not in drop))


def _unsqueeze(r: Program, c: Context) -> Value:
    x, axes = r.numbers(c), c.integers(1, "axes") or []
    rank = len(x.shape) + 1 + len(axes)
    new = sorted(a % rank for a in axes)
    if not new or new[0] == 0 or rank > 8:
        raise NotCovered(f"{c.where}: axes {axes} of {('n', *x.shape)}")
    shape = list(x.shape)
    for a in new:
        shape.insert(a - 1, 1)
    return _reshaped(r, c, tuple(shape))


def _transpose(r: Program, c: Context) -> Value:
    grid = c.value(0)
    if isinstance(grid, Grid):
        perm = c.attributes.get("perm", list(range(grid.codes.ndim))[::-1])
        return grid.map(lambda a: a.transpose(perm))
    x = r.numbers(c)
    perm = list(c.attributes.get("perm", range(len(x.shape), -1, -1)))
    if sorted(perm) != list(range(len(x.shape) + 1)) or perm[0] != 0:
        raise NotCovered(
            f"{c.where}: the permutation {perm} of {('n', *x.shape)} moves the batch axis"
        )
    sample = tuple(p - 1 for p in perm[1:])
    if isinstance(x, Real):
        return x.moved("transpose", sample, tuple(x.shape[i] for i in sample))
    return r.transpose(x, sample, c.name)


def _concat(r: Program, c: Context) -> Value:
    values = [v for v in c.inputs if isinstance(v, Scaled)]
    if len(values) < len(c.inputs):
        raise NotCovered(f"{c.where}: it joins constants or the float input with activations")
    return joined(r, c, values)


def joined(r: Program, c: Context, values: list[Scaled], name: str = "") -> Scaled:
    """Channels one after the other, none with a pending float operator."""
    axis = int(c.attributes["axis"])
    if axis % (len(values[0].shape) + 1) != 1:
        raise NotCovered(f"{c.where}: axis {axis}, expected the channels, 1")
    dtype = values[0].dtype
    values = [r.plain(v, f"{c.name}_{v.node}") if v.integer else v for v in values]
    if any(v.steps or v.pad for v in values):
        raise NotCovered(f"{c.where}: it joins floats; quantize each operand first")
    if len({v.zero for v in values}) != 1:  # one integer for zero, or each its own made 0
        moved = r.values_of if dtype != "FLOAT" else r.centred
        values = [moved(v, f"{c.name}_{v.node}") if v.zero else v for v in values]
    node = r.emit(name or c.name, Concat(), tuple(v.node for v in values))
    parts = [np.broadcast_to(v.scale, (v.shape[0], *v.scale.shape[1:])) for v in values]
    if any(prod(p.shape[1:]) != 1 for p in parts):
        raise NotCovered(f"{c.where}: its operands have scales per position")
    shape = r.shapes[node]
    scale = along_first(uniform(np.concatenate(parts)), shape)
    return replace(values[0], node=node, shape=shape, scale=scale)


def _pad(r: Program, c: Context) -> Value:
    """Zeros around the spatial axes, which the convolution or average behind it takes over."""
    pads, mode = c.integers(1, "pads"), str(c.attributes.get("mode", "constant"))
    value = c.attributes.get("value", 0.0)
    if c.optional(2) is not None:
        value = c.constant(2, "value").reshape(-1)[0]
    x = r.numbers(c)
    rank = len(x.shape) + 1
    if pads is None or len(pads) != 2 * rank or c.optional(3) is not None:
        raise NotCovered(f"{c.where}: pads {pads} for {rank} axes")
    if not any(pads):
        return x
    if mode != "constant":
        raise NotCovered(f"{c.where}: padding by {mode}, expected a constant")
    pairs = list(zip(pads[:rank], pads[rank:]))
    if any(pairs[0]) or min(pads) < 0 or max(pads) > 2**16:
        raise NotCovered(f"{c.where}: pads {pads}, expected positive ones on channels and behind")
    if isinstance(x, Real) and any(pairs[1]):
        raise NotCovered(f"{c.where}: pads {pads} of the float input's channels")
    if isinstance(x, Real) and not x.pad:
        return replace(x, pad=tuple(pairs[2:]), pad_value=float(value))
    v = r.scaled(c)
    if v.pad or any(s.op not in ("Mul", "Div", "Neg") for s in v.steps):
        raise NotCovered(f"{c.where}: its input is padded already, or not yet quantized")
    pad_code: int | None = None
    if float(value) != 0:
        scale = uniform(v.affine()[0])
        code = Fraction(float(value)) / scale.ravel()[0] + v.zero if scale.size == 1 else None
        if code is None or code.denominator != 1:
            raise NotCovered(f"{c.where}: it pads with {value}, which no code stands for")
        pad_code = int(code)
    if any(pairs[1]):
        if any(p.size > 1 for p in v.parameters) or v.zero.denominator != 1:
            raise NotCovered(f"{c.where}: more channels, where these have scales of their own")
        fill = int(v.zero) if pad_code is None else pad_code
        op = Gather.padded(v.shape, pairs[1:], fill)
        return v.on(r.emit(c.name, op, (v.node,)), op.index.shape, lambda a: a)
    return replace(v, pad=tuple(pairs[2:]), pad_code=pad_code)


def _gather(r: Program, c: Context) -> Value:
    """A table indexed by integers: y = table[x], from the end where x is negative; or channels and
    positions that constants name."""
    if isinstance(c.value(0), Scaled):
        return _taken(r, c, r.scaled(c))
    table, x = c.constant(0, "table"), r.scaled(c, 1)
    if table.ndim != 1 or not x.integer or not (table == np.rint(table)).all():
        raise NotCovered(f"{c.where}: it gathers from a tensor of shape {table.shape}")
    index, lo = r.table(x, c.where)
    if index.min() < -table.size or index.max() >= table.size:
        raise NotCovered(f"{c.where}: its index may leave the table of {table.size} values")
    node = r.emit(c.name, Lookup(table.astype(np.int64)[index], lo), (x.node,))
    return r.integers(node, c.element_type(0))


def _taken(r: Program, c: Context, x: Scaled) -> Value:
    index, axis = c.constant(1, "indices"), int(c.attributes.get("axis", 0))
    axis = axis % (len(x.shape) + 1) - 1
    if axis < 0:
        raise NotCovered(f"{c.where}: it takes samples out of the batch")
    size = x.shape[axis]
    if index.size == 0 or index.min() < -size or index.max() >= size:
        raise FileFormatError(f"{c.where}: indices beyond the axis of {size}")
    return moved(r, x, lambda a: np.take(a, index, axis=axis), c.name)


def moved(r: Program, x: Scaled, movement: Callable[[Array], Array], name: str) -> Scaled:
    """The values where `movement` takes the entries of an array of their shape."""
    return r.move(x, name, Gather.of(x.shape, movement), movement)


def _dropped(r: Program, c: Context) -> Value | list[Value]:
    """Left out at the output; anything but a relabelling behind it is an error."""
    x = r.scaled(c)
    r.dropped.append(c.where)
    return [Dropped(x)] * len(c.proto.output)


def _shape(r: Program, c: Context) -> Value:
    x = c.value(0)
    full = x.array.shape if isinstance(x, Constant) else (r.batch, *r.numbers(c).shape)
    start, end = int(c.attributes.get("start", 0)), c.attributes.get("end")
    return Constant(np.array(full[start:end], dtype=np.int64))


def _constant(r: Program, c: Context) -> Value:
    for a in c.proto.attribute:
        value, name = c.attributes[a.name], a.name
        if name == "value":
            return Constant(value, declared=type_name(a.t.data_type))
        if name in ("value_float", "value_floats"):
            return Constant(np.asarray(value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return Constant(np.asarray(value, dtype=np.int64))
    raise NotCovered(f"{c.where}: a constant without a numeric value")


def _constant_of_shape(r: Program, c: Context) -> Value:
    shape = [int(d) for d in c.constant(0, "shape").ravel()]
    r.check_size(shape, c.where)
    return Constant(
        np.full(shape, c.attributes.get("value", np.zeros(1, np.float32)).reshape(-1)[0])
    )


TABLE: dict[str, Handler] = {
    "ArgMax": _dropped,
    "ArgMin": _dropped,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Hardmax": _dropped,
    "Identity": _identity,
    "LogSoftmax": _dropped,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Softmax": _dropped,
    "Squeeze": _squeeze,
    "TopK": _dropped,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "com.microsoft.QLinearSoftmax": _dropped,
}
