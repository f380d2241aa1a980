"""Operators that move values or tell shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import FileFormatError, NotCovered, ShapeMismatch
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
    spread,
    uniform,
)
from refqnn.ops import Concat, Lookup
from refqnn.ops.base import Shape

__all__ = ["TABLE", "expanded", "joined"]

Array = NDArray[Any]


def _identity(r: Program, c: Context) -> Value | list[Value]:
    if c.proto.op_type == "Dropout" and c.optional(2) is not None and c.constant(2, "mode").any():
        raise NotCovered(f"{c.where}: dropout in training mode")
    return [c.value(0)] * len(c.proto.output)


def _reshaped(r: Program, c: Context, shape: Shape) -> Value:
    x = r.numbers(c)
    if prod(shape) != prod(x.shape) or not shape or min(shape) < 1:
        raise NotCovered(f"{c.where}: shape {x.shape} to {shape} touches the batch axis")
    return r.moved(x, lambda a: a.reshape(shape), c.name)


def _reshape(r: Program, c: Context) -> Value:
    """The first axis is the batch and stays."""
    x = c.value(0)
    target = tuple(int(d) for d in c.constant(1, "shape").ravel())
    full = x.codes.shape if isinstance(x, Grid) else (r.batch, *r.numbers(c).shape)
    if not c.attribute("allowzero", 0):
        target = tuple(d or (*full, *target)[i] for i, d in enumerate(target))
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
    x, axis = r.numbers(c), c.attribute("axis", 1)
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
        perm = c.attribute("perm", list(range(grid.codes.ndim))[::-1])
        return grid.map(lambda a: a.transpose(perm))
    x = r.numbers(c)
    perm = c.attribute("perm", list(range(len(x.shape), -1, -1)))
    if sorted(perm) != list(range(len(x.shape) + 1)) or perm[0] != 0:
        raise NotCovered(
            f"{c.where}: the permutation {perm} of {('n', *x.shape)} moves the batch axis"
        )
    return r.moved(x, lambda a: a.transpose([p - 1 for p in perm[1:]]), c.name)


def _concat(r: Program, c: Context) -> Value:
    values = [v for v in c.inputs if isinstance(v, Scaled)]
    if len(values) < len(c.inputs):
        raise NotCovered(f"{c.where}: it joins constants or the float input with activations")
    return joined(r, c, values)


def joined(r: Program, c: Context, values: list[Scaled], name: str = "") -> Scaled:
    """Tensors one after the other along an axis, none with a pending float operator."""
    axis = _sample_axis(c, len(values[0].shape), c.attribute("axis", 0))
    if axis > 0:
        order = (axis, *(i for i in range(len(values[0].shape)) if i != axis))
        values = [r.transpose(v, order, f"{c.name}_{v.node}_turned") for v in values]
        y = _joined(r, c, values, f"{c.name}_turned")
        back = tuple(int(i) for i in np.argsort(order))
        return r.transpose(y, back, name or c.name)
    return _joined(r, c, values, name or c.name)


def _joined(r: Program, c: Context, values: list[Scaled], name: str) -> Scaled:
    """Channels one after the other."""
    dtype = values[0].dtype
    values = [r.plain(v, f"{c.name}_{v.node}") if v.integer else v for v in values]
    if any(v.steps or v.pad for v in values):
        raise NotCovered(f"{c.where}: it joins floats; quantize each operand first")
    if len({v.zero for v in values}) != 1:  # one integer for zero, or each its own made 0
        moved = r.values_of if dtype != "FLOAT" else r.centred
        values = [moved(v, f"{c.name}_{v.node}") if v.zero else v for v in values]
    node = r.emit(name, Concat(), tuple(v.node for v in values))
    parts = [np.broadcast_to(v.scale, (v.shape[0], *v.scale.shape[1:])) for v in values]
    if any(prod(p.shape[1:]) != 1 for p in parts):
        raise NotCovered(f"{c.where}: its operands have scales per position")
    shape = r.shapes[node]
    scale = along_first(uniform(np.concatenate(parts)), shape)
    return replace(values[0], node=node, shape=shape, scale=scale)


def _pad(r: Program, c: Context) -> Value:
    """Zeros around the spatial axes, which the convolution or average behind it takes over."""
    pads, mode = c.integers(1, "pads"), c.attribute("mode", "constant")
    value = c.attribute("value", 0.0)
    if c.optional(2) is not None:
        value = c.constant(2, "value").reshape(-1)[0]
    x = r.numbers(c)
    rank = len(x.shape) + 1
    axes = c.integers(3, "axes") or list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise NotCovered(f"{c.where}: pads {pads} for {len(axes)} axes")
    pairs = [(0, 0)] * rank
    for axis, *pair in zip(axes, pads[: len(axes)], pads[len(axes) :]):
        pairs[axis % rank] = (pair[0], pair[1])
    if not any(pads):
        return x
    if any(pairs[0]) or min(pads) < 0 or max(pads) > 2**16:
        raise NotCovered(f"{c.where}: pads {pads}, expected positive ones on channels and behind")
    r.check_size([d + sum(p) for d, p in zip(x.shape, pairs[1:])], c.where)
    if isinstance(x, Real) and not any(pairs[1]) and not x.pad and mode == "constant":
        return replace(x, pad=tuple(pairs[2:]), pad_value=float(value))
    if mode in ("edge", "reflect"):
        return r.moved(x, lambda a: np.pad(a, pairs[1:], mode), c.name)  # type: ignore[call-overload]
    v = r.scaled(c)
    if mode != "constant":
        raise NotCovered(f"{c.where}: padding by {mode}")
    spatial, linear = not any(pairs[1]), all(s.op in ("Mul", "Div", "Neg") for s in v.steps)
    if float(value) == 0 and spatial and linear and not v.integer and v.function is None:
        return replace(v, pad=tuple(pairs[2:]))
    if v.zero.denominator != 1:
        v = r.centred(v, c.name)
    fill = _fill(v, float(value))
    if fill is None:  # the values as those of a node have a code for each
        v, *_ = r.affine(v, c.where, c.name, beside=[float(value)])
        fill = _fill(v, float(value))
    if fill is None:
        raise NotCovered(f"{c.where}: it pads with {value}, which no code stands for")
    if spatial and (v.is_integers if v.integer else v.is_plain):
        return replace(v, pad=tuple(pairs[2:]), pad_code=fill)
    if not spatial and any(p.size > 1 for p in v.parameters):
        raise NotCovered(f"{c.where}: more channels, where these have scales of their own")
    return r.pad(v, pairs[1:], fill, c.name)


def _fill(v: Scaled, value: float) -> int | None:
    """The code that stands for `value` in every channel, if there is one."""
    codes = [v.zero]
    unclipped = replace(v, steps=tuple(s for s in v.steps if s.op != "Relu"))
    if unclipped.is_affine and np.isfinite(value):
        scale, offset = (uniform(p) for p in unclipped.affine())
        if scale.size == offset.size == 1 and scale.ravel()[0]:
            codes.append((Fraction(value) - offset.ravel()[0]) / scale.ravel()[0] + v.zero)
    for code in codes if not spread(v.parameters, v.shape) else ():
        whole = code.denominator == 1 and abs(code) < 2**31
        if whole and (v.values(np.full((1, 1), int(code))) == np.float32(value)).all():
            return int(code)
    return None


def _gather(r: Program, c: Context) -> Value:
    """A table indexed by integers: y = table[x], from the end where x is negative; or channels and
    positions that constants name."""
    if not isinstance(c.value(0), Constant):
        return _taken(r, c, r.numbers(c))
    table, x = c.constant(0, "table"), r.scaled(c, 1)
    if table.ndim != 1 or not x.integer or not (table == np.rint(table)).all():
        raise NotCovered(f"{c.where}: it gathers from a tensor of shape {table.shape}")
    index, lo = r.table(x, c.where)
    if index.min() < -table.size or index.max() >= table.size:
        raise NotCovered(f"{c.where}: its index may leave the table of {table.size} values")
    node = r.emit(c.name, Lookup(table.astype(np.int64)[index], lo), (x.node,))
    return r.integers(node, c.element_type(0))


def _taken(r: Program, c: Context, x: Scaled | Real) -> Value:
    index, axis = c.constant(1, "indices"), c.attribute("axis", 0)
    axis = _sample_axis(c, len(x.shape), axis)
    size = x.shape[axis]
    if index.size == 0 or index.min() < -size or index.max() >= size:
        raise FileFormatError(f"{c.where}: indices beyond the axis of {size}")
    return r.moved(x, lambda a: np.take(a, index, axis=axis), c.name)


def _sample_axis(c: Context, rank: int, axis: int) -> int:
    """An axis of [n, *sample] as one of the sample.  Raises: FileFormatError, NotCovered."""
    if not -rank - 1 <= axis <= rank:
        raise FileFormatError(f"{c.where}: axis {axis} of {rank + 1}")
    if axis % (rank + 1) == 0:
        raise NotCovered(f"{c.where}: it works along the batch axis")
    return axis % (rank + 1) - 1


def _slice(r: Program, c: Context) -> Value:
    x = r.numbers(c)
    starts, ends = c.integers(1, "starts") or [], c.integers(2, "ends") or []
    axes = c.integers(3, "axes") or list(range(len(starts)))
    steps = c.integers(4, "steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise FileFormatError(
            f"{c.where}: starts {starts}, ends {ends}, axes {axes}, steps {steps}"
        )
    cuts = [slice(None)] * len(x.shape)
    for axis, cut in zip(axes, map(slice, starts, ends, steps)):
        if axis % (len(x.shape) + 1) or cut.start != 0 or cut.stop < 2**31 - 1 or cut.step != 1:
            cuts[_sample_axis(c, len(x.shape), axis)] = cut
    return r.moved(x, lambda a: a[tuple(cuts)], c.name)


def _split(r: Program, c: Context) -> list[Value]:
    x, sizes, count = r.numbers(c), c.integers(1, "split"), len(c.proto.output)
    axis = _sample_axis(c, len(x.shape), c.attribute("axis", 0))
    size = x.shape[axis]
    if sizes is None:
        part = -(-size // count)  # the last part may be smaller
        sizes = [*[part] * (count - 1), size - part * (count - 1)]
    if len(sizes) != count or min(sizes) < 1 or sum(sizes) != size:
        raise FileFormatError(f"{c.where}: parts {sizes} of {size}, for {count} outputs")
    ends = np.cumsum(sizes)[:-1]

    def part_of(i: int) -> Value:
        return r.moved(x, lambda a: np.split(a, ends, axis)[i], f"{c.name}_{i}")

    return [part_of(i) for i in range(count)]


def _resize(r: Program, c: Context) -> Value:
    """Nearest neighbours, where every size is multiplied by an integer."""
    x, old = r.numbers(c), c.proto.op_type == "Upsample" or len(c.inputs) == 2
    where, nearest = ("asymmetric", "floor") if old else ("half_pixel", "round_prefer_floor")
    where = c.attribute("coordinate_transformation_mode", where)
    nearest = c.attribute("nearest_mode", nearest)
    scales: Sequence[float | Fraction] = c.attribute("scales", [0.0])
    given = c.optional_constant(1 if old else 2, "scales")
    full = (r.batch, *x.shape)
    if given is not None and given.size:
        scales = given.ravel().tolist()
    elif c.optional(3) is not None:
        scales = [Fraction(int(s), d) for s, d in zip(c.constant(3, "sizes").ravel(), full)]
    policy = c.attribute("keep_aspect_ratio_policy", "stretch")
    whole = all(s >= 1 and float(s).is_integer() for s in scales)
    if len(scales) != len(full) or scales[0] != 1 or not whole or policy != "stretch":
        raise NotCovered(f"{c.where}: scales {[float(s) for s in scales]}, expected integers")
    mode = c.attribute("mode", "nearest")
    if mode != "nearest" or where not in _CENTRES or nearest not in _NEAREST:
        expected = f"nearest, {' or '.join(_CENTRES)}"
        raise NotCovered(f"{c.where}: {mode}, {nearest}, {where}; expected {expected}")
    half = _CENTRES[where]
    r.check_size([d * int(s) for d, s in zip(full, scales)], c.where)

    def enlarged(a: Array) -> Array:
        for axis, (size, scale) in enumerate(zip(x.shape, map(int, scales[1:]))):
            if scale > 1:
                at = [(k + half) / scale - half for k in range(size * scale)]
                index = np.clip([_NEAREST[nearest](p) for p in at], 0, size - 1)
                a = np.take(a, index, axis=axis)
        return a

    return r.moved(x, enlarged, c.name)


_CENTRES = {
    "asymmetric": Fraction(0),
    "half_pixel": Fraction(1, 2),
    "pytorch_half_pixel": Fraction(1, 2),
}
_NEAREST: dict[str, Callable[[Fraction], int]] = {
    "floor": floor,
    "ceil": ceil,
    "round_prefer_floor": lambda p: ceil(p - Fraction(1, 2)),
    "round_prefer_ceil": lambda p: floor(p + Fraction(1, 2)),
}


def _blocks(r: Program, c: Context) -> Value:
    """DepthToSpace and SpaceToDepth: channels and the positions of a block exchange places."""
    x, b = r.numbers(c), c.attribute("blocksize", 0)
    if len(x.shape) != 3 or b < 1:
        raise FileFormatError(f"{c.where}: samples of shape {x.shape} in blocks of {b}")
    k, h, w = x.shape
    if c.proto.op_type == "SpaceToDepth":
        split, order = (k, h // b, b, w // b, b), (2, 4, 0, 1, 3)
        shape = (k * b**2, h // b, w // b)
    else:
        crd, depth = c.attribute("mode", "DCR") == "CRD", k // b**2
        split = (depth, b, b, h, w) if crd else (b, b, depth, h, w)
        order = (0, 3, 1, 4, 2) if crd else (2, 3, 0, 4, 1)
        shape = (depth, h * b, w * b)
    if prod(split) != prod(x.shape):
        raise FileFormatError(f"{c.where}: samples of shape {x.shape} in blocks of {b}")
    return r.moved(x, lambda a: a.reshape(split).transpose(order).reshape(shape), c.name)


def _repeat(r: Program, c: Context) -> Value:
    """Tile and Expand."""
    x = r.numbers(c)
    given = [int(d) for d in c.constant(1, "repeats or shape").ravel()]
    rank = len(x.shape) + 1
    if c.proto.op_type == "Tile":
        if len(given) != rank or given[0] != 1 or min(given) < 1:
            raise NotCovered(f"{c.where}: repeats {given}, expected 1 of the batch")
        r.check_size([d * n for d, n in zip(x.shape, given[1:])], c.where)
        return r.moved(x, lambda a: np.tile(a, given[1:]), c.name)
    if len(given) > rank or (len(given) == rank and given[0] not in (1, r.batch)):
        raise NotCovered(f"{c.where}: shape {given} of {('n', *x.shape)} touches the batch axis")
    target = _common(r, c, x.shape, tuple(given[1:] if len(given) == rank else given))
    return r.moved(x, lambda a: np.broadcast_to(a, target), c.name)


def expanded(r: Program, x: Scaled, shape: Shape, c: Context) -> Scaled:
    """Axes of size 1 repeated.  Raises: NotCovered, ShapeMismatch."""
    target = _common(r, c, x.shape, shape)
    if target == x.shape:
        return x
    return r.moved(x, lambda a: np.broadcast_to(a, target), c.name)


def _common(r: Program, c: Context, own: Shape, shape: Shape) -> Shape:
    """The shape that both become."""
    try:
        target = np.broadcast_shapes(own, shape)
    except ValueError:
        raise ShapeMismatch(f"{c.where}: shapes {own} and {shape} do not broadcast") from None
    if len(target) != len(own):
        raise NotCovered(f"{c.where}: shapes {own} and {shape} of different ranks")
    r.check_size(target, c.where)
    return target


def _dropped(r: Program, c: Context) -> Value | list[Value]:
    """Left out at the output; anything but a relabelling behind it is an error."""
    x = r.scaled(c)
    r.dropped.append(c.where)
    return [Dropped(x)] * len(c.proto.output)


def _shape(r: Program, c: Context) -> Value:
    x = c.value(0)
    full = x.array.shape if isinstance(x, Constant) else (r.batch, *r.numbers(c).shape)
    start, end = c.attribute("start", 0), c.attribute("end", len(full))
    return Constant(np.array(full[start:end], dtype=np.int64))


_VALUES: dict[str, Any] = {
    "value_float": 0.0, "value_floats": [0.0], "value_int": 0, "value_ints": [0],
}  # fmt: skip


def _constant(r: Program, c: Context) -> Value:
    for a in c.proto.attribute:
        if a.name == "value":
            value = c.attribute("value", np.zeros(0))
            return Constant(value, declared=type_name(a.t.data_type))
        default = _VALUES.get(a.name)
        if default is not None:
            kind = np.float32 if "float" in a.name else np.int64
            return Constant(np.asarray(c.attribute(a.name, default), dtype=kind))
    raise NotCovered(f"{c.where}: a constant without a numeric value")


def _constant_of_shape(r: Program, c: Context) -> Value:
    shape = [int(d) for d in c.constant(0, "shape").ravel()]
    r.check_size(shape, c.where)
    return Constant(np.full(shape, c.attribute("value", np.zeros(1, np.float32)).reshape(-1)[0]))


TABLE: dict[str, Handler] = {
    "ArgMax": _dropped,
    "ArgMin": _dropped,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _blocks,
    "Dropout": _identity,
    "Expand": _repeat,
    "Flatten": _flatten,
    "Hardmax": _dropped,
    "Identity": _identity,
    "LogSoftmax": _dropped,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _dropped,
    "SpaceToDepth": _blocks,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _repeat,
    "TopK": _dropped,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "com.microsoft.QLinearSoftmax": _dropped,
}
