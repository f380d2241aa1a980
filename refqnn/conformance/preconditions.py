"""The sentences: what each operation asks of its arguments, in the order in which it is checked.

A row is a name, a sentence, the error code where it does not hold, a predicate of the arguments,
and changes of a right question that break it and none before.  What is made of them stands in
`refqnn.conformance.specification`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from refqnn.conformance.described import network_of
from refqnn.conformance.operations import OPERATIONS, Array, Field, Values
from refqnn.errors import InvalidType, ShapeMismatch, mismatch
from refqnn.formats import as_integers

__all__ = ["TABLE", "Precondition", "Rules", "read"]

Arguments = Any  # a namespace: arguments by name
Change = Callable[[Arguments], Values]

INVALID, NAN, RANGE, SHAPE = "invalid_parameter", "not_a_number", "out_of_range", "shape_mismatch"


@dataclass(frozen=True)
class Precondition:
    """One sentence of the specification.

    Args:
        name: slug, unique in the operation; part of the ids of its vectors.
        sentence: what has to hold.
        code: of the refusal where it does not; "" where `holds` returns the code.
        holds: of arguments for which all sentences before hold; None: only a run says it.
        breaks: changes of a right question, after which it does not hold and all before do.
    """

    name: str
    sentence: str
    code: str
    holds: Callable[[Arguments], bool | str] | None
    breaks: tuple[Values | Change, ...]

    def refuses(self, arguments: Arguments) -> str | None:
        """The code under which these arguments are refused, or None."""
        held = self.holds is None or self.holds(arguments)
        return None if held is True else self.code or str(held)


Rules = tuple[Precondition, ...]


def read(arguments: Mapping[str, Any], fields: Mapping[str, Field]) -> Arguments:
    """Arguments as the sentences take them: tensors as arrays.  Raises: InvalidType."""

    def array(name: str, value: Any) -> Any:
        kind = fields[name].kind
        if kind == "pairs" and not all(np.shape(pair) == (2,) for pair in value):
            raise InvalidType(mismatch(name, repr(value), "pairs of integers"))
        if value is None or not kind.endswith(("tensor", "tensors")):
            return value
        if kind == "int_tensors":
            return [as_integers(v, name) for v in value]
        return as_integers(value, name) if kind == "int_tensor" else np.asarray(value)

    return SimpleNamespace(**{name: array(name, value) for name, value in arguments.items()})


def _must(
    name: str,
    sentence: str,
    code: str,
    holds: Callable[[Arguments], bool | str] | None,
    *breaks: Values | Change,
) -> Precondition:
    return Precondition(name, sentence, code, holds, breaks)


def _rules(*parts: Precondition | Rules) -> Rules:
    return tuple(rule for part in parts for rule in (part if isinstance(part, tuple) else (part,)))


# --- ways to break a sentence -----------------------------------------------------------------


def _of(name: str, change: Callable[[Any], Any]) -> Change:
    """An argument changed."""
    return lambda a: {name: change(getattr(a, name))}


def _put(name: str, value: Any) -> Change:
    """Another first value; `value` itself, or a function of the arguments."""

    def changed(a: Arguments) -> Values:
        new, old = value(a) if callable(value) else value, getattr(a, name)
        if not isinstance(old, np.ndarray):
            return {name: new}
        values = old.astype(object if old.dtype.kind == "i" else old.dtype)
        values.reshape(-1)[:1] = new
        return {name: as_integers(values, name) if old.dtype.kind == "i" else values}

    return changed


def _last(name: str, value: object) -> Change:
    """Another last entry of a list."""
    return _of(name, lambda values: (*values[:-1], value))


# fmt: off
# --- what many operations ask -----------------------------------------------------------------


def _every(name: str, holds: Callable[[Any], bool]) -> Callable[[Arguments], bool]:
    """Does it hold for every number of an argument?"""
    return lambda a: all(map(holds, np.ravel(getattr(a, name)).tolist()))


def _within(name: str, lowest: int, highest: int, text: str, code: str = INVALID) -> Precondition:
    return _must(name, f"{name} lies in {text}", code,
                 _every(name, lambda v: lowest <= v <= highest),
                 _put(name, lowest - 1), _put(name, highest + 1))


def _fits(name: str, code: str = RANGE) -> Precondition:
    rule = _within(name, -(2**63), 2**63 - 1, "", code)
    return replace(rule, name=f"{name}-64-bits", sentence=f"{name} fits 64 signed bits")


def _values(name: str) -> Precondition:
    return _must(f"{name}-values", f"{name} holds at least one value", INVALID,
                 lambda a: np.size(getattr(a, name)) > 0, _of(name, lambda v: np.atleast_1d(v)[:0]))


def _array(name: str, axes: int, layout: str) -> Rules:
    """An integer parameter with a fixed number of axes."""
    return (
        _must(f"{name}-axes", f"{name} has {axes} axes: {layout}", SHAPE,
              lambda a: getattr(a, name).ndim == axes, _of(name, lambda v: v[0])),
        _values(name), _fits(name),
    )


def _bias(outputs: Callable[[Arguments], int]) -> Rules:
    return (
        _must("bias-count", "bias, where it is given, has one value for each output", SHAPE,
              lambda a: a.bias is None or a.bias.shape == (outputs(a),),
              lambda a: {"bias": np.arange(1 if outputs(a) > 1 else 3)},
              lambda a: {"bias": np.arange(outputs(a) + 1)}),
        _must("bias-64-bits", "bias fits 64 signed bits", RANGE,
              lambda a: a.bias is None or a.bias.dtype != object,
              lambda a: {"bias": np.array([2**63] * outputs(a), dtype=object)}),
    )


def _samples(name: str) -> Precondition:
    return _must("samples", f"{name} has samples, channels, and at least one value", SHAPE,
                 lambda a: getattr(a, name).ndim >= 2 and getattr(a, name).size > 0,
                 _of(name, lambda v: v[:0]), _of(name, np.ravel))


def _rows(name: str) -> Precondition:
    return _must(f"{name}-rows", f"{name} is [out, ...], two axes or more, with a value", SHAPE,
                 lambda a: getattr(a, name).ndim >= 2 and getattr(a, name).size > 0,
                 _of(name, lambda v: v[0]), _of(name, lambda v: v[:0]))


def _shape(name: str) -> Precondition:
    return _must(name, f"{name} has at least one axis, each of at least 1", INVALID,
                 lambda a: len(getattr(a, name)) > 0 and min(getattr(a, name)) >= 1,
                 {name: ()}, _of(name, lambda v: (-v[0], *v[1:])), _put(name, lambda a: (0,)))


def _per_axis(name: str, axes: int, least: int = 1) -> Precondition:
    return _must(name, f"{name} is one integer for each spatial axis, at least {least}", INVALID,
                 lambda a: len(getattr(a, name)) == axes and min(getattr(a, name)) >= least,
                 _last(name, least - 1), _of(name, lambda v: (*v, 1)))


def _padding(axes: int) -> Precondition:
    return _must("padding", "padding is one pair for each spatial axis, nothing in it below 0",
                 INVALID, lambda a: len(a.padding) == axes and min(map(min, a.padding)) >= 0,
                 _last("padding", (-1, 1)), _of("padding", lambda v: v[:-1]))


def _ends(a: Arguments) -> tuple[int, int]:
    low = -(2 ** (a.bits - 1)) if a.signed else 0
    high = low + 2**a.bits - 1
    return (low + 1, high) if a.narrow and a.signed else (low, high - a.narrow)


def _in_format(name: str, ends: Callable[[Arguments], tuple[int, int]] = _ends,
               text: str = "the format") -> Precondition:
    return _must(name, f"{name} lies in {text}", RANGE,
                 lambda a: _every(name, lambda v: ends(a)[0] <= v <= ends(a)[1])(a),
                 _put(name, lambda a: ends(a)[1] + 1), _put(name, lambda a: ends(a)[0] - 1))


_FORMAT = (
    _within("bits", 1, 32, "1 to 32"),
    _must("narrow", "a narrow format has at least 2 bits", INVALID,
          lambda a: a.bits > 1 or not a.narrow, {"bits": 1, "narrow": True}),
)
_PAD_CODE = _within("pad_code", -(2**31), 2**32 - 1, "-2^31 to 2^32 - 1", RANGE)
_WEIGHT = (*_array("weight", 2, "[out, in]"), *_bias(lambda a: len(a.weight)))
_VECTORS = (
    _samples("x"),
    _must("x", "x is [n, in], with the in of weight", SHAPE,
          lambda a: a.x.ndim == 2 and a.x.shape[1] == a.weight.shape[1],
          _of("x", lambda v: v[:, 1:])),
)


# --- doors ------------------------------------------------------------------------------------


def _no_nan(name: str) -> Precondition:
    return _must(f"{name}-nan", f"{name} is not NaN", NAN,
                 lambda a: not np.isnan(getattr(a, name)).any(), _put(name, np.nan))


def _finite(name: str) -> Rules:
    return (_no_nan(name),
            _must(f"{name}-finite", f"{name} is finite", INVALID,
                  lambda a: bool(np.isfinite(getattr(a, name)).all()), _put(name, np.inf)))


def _is_scale(a: Arguments) -> bool:
    with np.errstate(all="ignore"):
        scale = a.scale.astype(getattr(a, "precision", "float32"))
    return bool((np.isfinite(scale) & (scale > 0)).all())


def _has_axis(a: Arguments, values: Array) -> bool:
    if a.scale.ndim == 0 or a.axis is None:
        return True
    there = -values.ndim <= a.axis < values.ndim
    return there and bool(values.shape[a.axis] == a.scale.size)


def _channel_axis(name: str) -> Precondition:
    def asks(axis: int) -> Change:
        def change(a: Arguments) -> Values:
            x = getattr(a, name)
            channels = x.shape[axis] + 1 if -x.ndim <= axis < x.ndim else 2
            return {"scale": np.full(channels, 0.5, dtype=np.float32), "axis": axis}

        return change

    def one(a: Arguments) -> Values:
        return {"scale": _TWO[:1], "axis": max(range(getattr(a, name).ndim),
                                               key=getattr(a, name).shape.__getitem__)}

    return _must("axis", f"where axis is given and scale has an axis, {name} has that axis, with "
                 "as many channels as scales", SHAPE,
                 lambda a: _has_axis(a, getattr(a, name)), *map(asks, (0, -1, 5, -5)), one)


_TWO = np.array([0.5, 0.25], dtype=np.float32)
_SCALE = (
    _values("scale"), _no_nan("scale"),
    _must("scale-channels", "scale is one number where axis is null, else one or [channels]", SHAPE,
          lambda a: a.scale.ndim == 0 or (a.scale.ndim == 1 and (
              a.scale.size == 1 or a.axis is not None)),
          {"scale": _TWO, "axis": None}, {"scale": _TWO[:, None], "axis": 0}),
    _must("scale", "scale is positive and finite in precision", INVALID, _is_scale,
          _put("scale", 0), _put("scale", -1), {"scale": np.array(1e300)},
          {"scale": np.array(1e-300)}),
    _in_format("zero_point"),
    _must("zero_point-count", "zero_point is one code, or as many as there are scales", SHAPE,
          lambda a: a.zero_point.ndim < 2 and (
              a.zero_point.size == 1 or a.zero_point.shape == a.scale.shape),
          {"zero_point": np.array([1, 0])},
          {"scale": _TWO, "axis": 0, "zero_point": np.array([0, 0, 1])}),
)
_DOOR = _FORMAT + _SCALE
_FLOATS = (_values("x"), _no_nan("x"))


# --- requantization ---------------------------------------------------------------------------


def _count(values: Array | None) -> int:
    """How many channels a parameter speaks of."""
    return len(values) if values is not None and np.ndim(values) else 1


def _list(name: str) -> Rules:
    return (_must(f"{name}-axes", f"{name} has no axis, or one", SHAPE,
                  lambda a: np.ndim(getattr(a, name)) < 2, _of(name, np.atleast_2d)),
            _values(name))


def _lists(*names: str) -> Rules:
    """Parameters of channels: each one, or as many as the others."""
    def change(a: Arguments) -> Values:
        firsts = [np.ravel(getattr(a, name))[:1] for name in names[:2]]
        return {name: np.repeat(v, n) for name, v, n in zip(names, firsts, (2, 3))}

    agree = _must("numbers", f"of {', '.join(names)} those with several values have as many", SHAPE,
                  lambda a: len({_count(getattr(a, name)) for name in names} - {1}) < 2, change)
    return _rules(*map(_list, (n for n in names if n != "clip")), agree)


def _acc(*names: str) -> Rules:
    """Accumulators of the channels of these."""
    def change(a: Arguments) -> Values:
        first = np.asarray(getattr(a, names[0]))
        return {names[0]: np.stack([first[0] if first.ndim else first] * (a.acc.shape[1] + 1))}

    return (_samples("acc"),
            _must("channels", f"acc has as many channels as {', '.join(names)} of several", SHAPE,
                  lambda a: {_count(getattr(a, n)) for n in names} <= {1, a.acc.shape[1]}, change))


_BETWEEN_ENDS = _within("acc", 1 - 2**63, 2**63 - 2, "-2^63 + 1 to 2^63 - 2, between the ends that "
                        "thresholds use", RANGE)


def _clips(layout: str, pair: Callable[[int, int], Any]) -> Rules:
    def inside(a: Arguments) -> bool:
        rows = [] if a.clip is None else np.atleast_2d(np.asarray(a.clip, dtype=object)).tolist()
        return all(_ends(a)[0] <= lo <= hi <= _ends(a)[1] for lo, hi in rows)

    return (
        _must("clip-pairs", f"clip, where it is given, is {layout}", SHAPE,
              lambda a: a.clip is None or np.atleast_2d(a.clip).shape[1:] == (2,),
              {"clip": pair(0, 1)[:1] if isinstance(pair(0, 1), tuple) else pair(0, 1).T}),
        _must("clip", "clip is lowest, then highest code, both inside the format", INVALID, inside,
              lambda a: {"clip": pair(_ends(a)[0] - 1, 0)},
              lambda a: {"clip": pair(0, _ends(a)[1] + 1)}, {"clip": pair(2, 1)}),
    )


def _positive(name: str) -> Precondition:
    return _must(name, f"{name} is positive", INVALID, lambda a: bool((getattr(a, name) > 0).all()),
                 _put(name, 0), _put(name, -0.5))


def _first_shift_fits(a: Arguments) -> bool:
    first, last = np.broadcast_arrays(np.ravel(a.first_shift), np.ravel(a.shift))
    return a.first_rounding is None or bool(((first >= 0) & (first <= last)).all())


def _first_shift(value: Callable[[Arguments], int]) -> Change:
    return lambda a: {"first_rounding": "floor", **_put("first_shift", value)(a)}


_SHIFT = _within("shift", 0, 62, "0 to 62")
_FIRST_SHIFT = _must(
    "first_shift", "with first_rounding, first_shift lies in 0 to shift; without, it is not read",
    INVALID, _first_shift_fits,
    _first_shift(lambda a: int(np.ravel(a.shift)[0]) + 1), _first_shift(lambda a: -1))
_OF_CHANNELS = ("multiplier", "shift", "zero_point", "offset", "first_shift", "clip")


# --- windows, joins, budgets ------------------------------------------------------------------


def _moves(axes: int, of: str) -> Rules:
    return (
        _per_axis("stride", axes), _per_axis("dilation", axes),
        _must("groups", f"groups is at least 1 and divides the {of} of weight", INVALID,
              lambda a: a.groups >= 1 and len(a.weight) % a.groups == 0,
              {"groups": 0}, lambda a: {"groups": len(a.weight) + 1}),
        _padding(axes),
    )


def _images(axes: int) -> Rules:
    return (
        _samples("x"),
        _must("x-axes", f"x has {2 + axes} axes: samples, channels, then the spatial ones", SHAPE,
              lambda a: a.x.ndim == 2 + axes, _of("x", lambda v: v[..., None]),
              _of("x", lambda v: v[..., 0])),
    )


def _channels(count: Callable[[Arguments], int], text: str) -> Precondition:
    return _must("channels", f"x has {text}", SHAPE, lambda a: a.x.shape[1] == count(a),
                 _of("x", lambda v: v.repeat(2, axis=1)))


def _window(a: Arguments) -> bool:
    kernel = a.kernel if hasattr(a, "kernel") else a.weight.shape[2:]
    extents = [d * (k - 1) + 1 for d, k in zip(getattr(a, "dilation", (1, 1)), kernel)]
    rooms = [n + sum(pair) for n, pair in zip(a.x.shape[2:], a.padding)]
    return all(extent <= room for extent, room in zip(extents, rooms))


_FITS_IN = _must("window", "the window, dilated, is no larger than x with its padding", SHAPE,
                 _window, lambda a: {"x": a.x[..., :1], "padding": ((0, 0),) * len(a.padding)})


def _conv(axes: int, layout: str) -> tuple[Rules, Rules]:
    of_groups = _channels(lambda a: a.weight.shape[1] * a.groups,
                          "groups times the channels of weight")
    return (_rules(_array("weight", 2 + axes, layout), _bias(lambda a: len(a.weight)), _PAD_CODE,
                   _moves(axes, "outputs")),
            (*_images(axes), of_groups, _FITS_IN))


_POOL = (
    _per_axis("kernel", 2), _padding(2),
    _must("padding-below-kernel", "no padding is as large as the kernel on its axis", INVALID,
          lambda a: all(max(pair) < k for pair, k in zip(a.padding, a.kernel)),
          lambda a: {"padding": ((a.kernel[0], 0), (0, 0))},
          lambda a: {"padding": ((0, 0), (0, a.kernel[1]))}),
    _per_axis("stride", 2),
)


def _transposed_sizes(a: Arguments) -> list[int]:
    numbers = zip(a.x.shape[2:], a.stride, a.padding, a.dilation, a.weight.shape[2:],
                  a.output_padding)
    return [s * (n - 1) - sum(p) + d * (k - 1) + extra + 1 for n, s, p, d, k, extra in numbers]


def _operands(same: Callable[[Array], Sequence[int]], text: str,
              cut: Callable[[Array], Array]) -> Rules:
    def last(change: Callable[[Array], Array]) -> Change:
        return _of("operands", lambda values: [*values[:-1], change(values[-1])])

    return (
        _must("operands", "there is at least one operand", SHAPE, lambda a: len(a.operands) > 0),
        _must("samples", "each operand has samples, channels, and at least one value", SHAPE,
              lambda a: all(v.ndim >= 2 and v.size for v in a.operands),
              last(lambda v: v[:0]), last(np.ravel)),
        _must("same-samples", "all operands have the same number of samples", SHAPE,
              lambda a: len({len(v) for v in a.operands}) == 1,
              last(lambda v: v.repeat(2, axis=0))),
        _must("shapes", text, SHAPE, lambda a: len({tuple(same(v)) for v in a.operands}) == 1,
              last(cut)),
    )


def _pair(name: str) -> Rules:
    return (_must(f"{name}-pair", f"{name} is two integers", INVALID,
                  lambda a: len(getattr(a, name)) == 2, _of(name, lambda v: v[:1])),
            _must(name, f"the lowest of {name} is not above the highest", INVALID,
                  lambda a: getattr(a, name)[0] <= getattr(a, name)[1], {name: (3, 2)}))


def _room(a: Arguments) -> tuple[int, int]:
    return -(2 ** (a.bits - 1)), 2 ** (a.bits - 1) - 1


def _beside(outputs: Callable[[Arguments], int]) -> Rules:
    """A bias in an accumulator of some bits."""
    return (
        _bias(outputs)[0],
        _must("bias", "bias lies in the accumulator: -2^(bits-1) to 2^(bits-1) - 1", RANGE,
              lambda a: a.bias is None
              or all(_room(a)[0] <= b <= _room(a)[1] for b in a.bias.tolist()),
              lambda a: {"bias": np.full(outputs(a), _room(a)[1] + 1)},
              lambda a: {"bias": np.full(outputs(a), _room(a)[0] - 1)}),
    )


def _sums(name: str) -> Rules:
    return (_must(f"{name}-axes", f"{name} is [out], at least one", SHAPE,
                  lambda a: getattr(a, name).ndim == 1 and getattr(a, name).size > 0,
                  _of(name, lambda v: v[:0]), _of(name, np.atleast_2d)),
            _within(name, 0, 2**62, "0 to 2^62", RANGE))


_BUDGET = (*_pair("input_range"), _within("bits", 2, 62, "2 to 62"))


# --- networks ---------------------------------------------------------------------------------


def _nodes_hold(a: Arguments) -> bool | str:
    """The first code of a node whose own parameters do not hold."""
    for node in a.network["nodes"]:
        operation = OPERATIONS.get(node["operation"])
        if operation is None or not operation.node:
            continue  # refused as no node at all
        if node["parameters"].keys() != operation.parameters.keys():
            return INVALID
        parameters = read(node["parameters"], operation.parameters)
        for rule in TABLE[operation.name][0]:
            if (code := rule.refuses(parameters)) is not None:
                return code
    return True


def _no_zero_points(a: Arguments) -> bool:
    linear = [n["parameters"] for n in a.network["nodes"] if n["operation"] == "linear"]
    return not any(p["x_zero_point"] or np.any(p["weight_zero_point"]) for p in linear)


def _names(a: Arguments) -> list[str]:
    return [node["name"] for node in a.network["nodes"]]


def _inputs_are_known(a: Arguments) -> bool:
    names = ["input", *_names(a)]
    nodes = enumerate(a.network["nodes"], start=1)
    return all(set(node["inputs"]) <= set(names[:place]) for place, node in nodes)


def _arity_holds(a: Arguments) -> bool:
    counts = [(len(n["inputs"]), n["operation"] in ("add", "concat")) for n in a.network["nodes"]]
    return all(count > 0 if joins else count == 1 for count, joins in counts)


def _format_of(a: Arguments) -> Arguments:
    return SimpleNamespace(**a.network["input_format"])


def _shapes(a: Arguments) -> Mapping[str, Sequence[int]]:
    """The shape of each value by name; nothing where they do not fit."""
    try:
        return network_of(a.network).shapes
    except ShapeMismatch:
        return {}


def _node(place: int, **changes: object) -> Change:
    """A node that is other in some of its keys, or of its parameters."""
    def change(a: Arguments) -> Values:
        nodes = [*a.network["nodes"]]
        node = dict(nodes[place])
        own = {k: v for k, v in changes.items() if k in node}
        node["parameters"] = node["parameters"] | {k: changes[k] for k in changes.keys() - own}
        nodes[place] = node | own
        return {"network": a.network | {"nodes": nodes}}

    return change


def _network(**changes: object) -> Change:
    return lambda a: {"network": a.network | changes}


_NETWORK = (
    _must("parameters", "the parameters of every node, one after the other, satisfy what its "
          "operation asks of them by themselves", "",
          _nodes_hold, _node(0, bias=np.array([1])), _node(1, bits=0),
          _node(3, multipliers=(3, 0)), _node(0, bias=np.array([2**63] * 2, dtype=object))),
    _must("zero-points", "x_zero_point and weight_zero_point of linear are 0 inside a network",
          RANGE, _no_zero_points, _node(0, x_zero_point=1),
          _node(2, weight_zero_point=np.array([0, 1]))),
    _must("input-format", "input_format is a format, as integer_format asks", INVALID,
          lambda a: all(rule.refuses(_format_of(a)) is None for rule in _FORMAT),
          _network(input_format={"bits": 33, "signed": True, "narrow": False})),
    _must("input-shape", "input_shape has at least one axis, each of at least 1", INVALID,
          lambda a: min(a.network["input_shape"], default=0) >= 1),
    _must("names", "names of nodes are not empty, not 'input', and each used once", INVALID,
          lambda a: len({"", "input", *_names(a)}) == 2 + len(_names(a)),
          _node(2, name="fc1"), _node(3, name="input")),
    _must("inputs", "a node reads 'input' or nodes before it", INVALID, _inputs_are_known,
          _node(1, inputs=["fc2"]), _node(2, inputs=["nobody"])),
    _must("arity", "add and concat read one value or more, every other node reads one", INVALID,
          _arity_holds, _node(2, inputs=["act1", "input"])),
    _must("output", "output is the name of a node, of the last one or of another", INVALID,
          lambda a: a.network["output"] in _names(a),
          _network(output="input"), _network(output="nobody")),
    _must("shapes", "what a node reads has a shape that its operation takes", SHAPE,
          lambda a: bool(_shapes(a)), _node(5, weight=np.array([[1, -2, 3]])),
          _network(input_shape=[3])),
)


def _batch(name: str) -> Precondition:
    return _must(f"{name}-shape", f"{name} is [n, *input_shape], n at least 1", SHAPE,
                 lambda a: getattr(a, name).size > 0 and list(getattr(a, name).shape[1:])
                 == list(a.network["input_shape"]),
                 _of(name, lambda v: v[:, :1]), _of(name, lambda v: v[0]))


def _far(a: Arguments) -> Values:
    wide = _node(0, weight=np.array([[2**62, -(2**62)], [1, 4]]))
    return wide(a) | {"codes": np.full_like(a.codes, 3) * np.array([1, -1])}


_ON_THE_WAY = _must(
    "on-the-way",
    "no value leaves the table, or the ends of the thresholds, of the node that reads it",
    RANGE, None, _far)


_AT_THE_DOOR = {
    "scale-channels": "scale is one number",
    "scale": "scale is positive and finite in float32",
    "zero_point": "zero_point lies in input_format",
    "zero_point-count": "zero_point is one code",
}


def _of_network(rule: Precondition) -> Precondition:
    """What a door asks, of the door of a network: one scale, the format of the input."""
    def door(a: Arguments) -> Arguments:
        return SimpleNamespace(**{**vars(a), **a.network["input_format"], "axis": None})

    assert rule.holds is not None
    sentence = _AT_THE_DOOR.get(rule.name, rule.sentence)
    holds, breaks = rule.holds, []
    for change in rule.breaks:
        if callable(change):
            breaks.append(lambda a, change=change: change(door(a)))
        elif change.get("axis") is None:
            breaks.append(lambda a, change=change: {k: change[k] for k in change if k != "axis"})
    return replace(rule, sentence=sentence, holds=lambda a: holds(door(a)), breaks=tuple(breaks))


def _per_output(a: Arguments) -> bool:
    channels = _shapes(a)[a.network["output"]][0]
    return {a.output_scale.size, a.output_offset.size} <= {1, channels}


_OUTPUT_DOOR = _rules(
    _list("output_scale"), _finite("output_scale"),
    _must("output_scale", "output_scale is not 0", INVALID,
          lambda a: bool((a.output_scale != 0).all()), _put("output_scale", 0)),
    _list("output_offset"), _finite("output_offset"),
    _must("output-channels", "output_scale and output_offset have one number, or one for each "
          "channel of the output", SHAPE, _per_output,
          {"output_scale": np.ones(3, dtype=np.float32)},
          {"output_offset": np.ones(3, dtype=np.float32)}),
)
_AS_NETWORK = _must(
    "network", "network satisfies all that the operation network asks of it", "",
    lambda a: next(filter(None, (rule.refuses(a) for rule in _NETWORK)), True),
    *(change for rule in _NETWORK for change in rule.breaks[:1]))


# --- the table --------------------------------------------------------------------------------

# By operation: what is asked of the parameters, then of the inputs.
TABLE: Mapping[str, tuple[Rules, Rules]] = {
    "round_ratio": ((_must("denominator", "denominator is positive", INVALID,
                           lambda a: a.denominator > 0, {"denominator": 0}, {"denominator": -1}),),
                    ()),
    "integer_format": (_FORMAT, ()),
    "check_codes": (_FORMAT, (_in_format("codes"),)),
    "quantize": (_DOOR, (*_FLOATS, _channel_axis("x"))),
    "binarize": ((), _FLOATS),
    "dequantize": (_DOOR, (_in_format("codes"), _channel_axis("codes"))),
    "requantize_thresholds": (
        (*_FORMAT, *_array("thresholds", 2, "[channels or 1, levels - 1]"),
         _must("levels", "a row of thresholds has one less than the format has codes", SHAPE,
               lambda a: a.thresholds.shape[1] == _ends(a)[1] - _ends(a)[0],
               _of("thresholds", lambda v: v[:, 1:])),
         _must("thresholds", "no threshold is below the one before it", INVALID,
               lambda a: bool((a.thresholds[:, 1:] >= a.thresholds[:, :-1]).all()),
               _of("thresholds", lambda v: v[:, ::-1]))),
        (*_acc("thresholds"), _BETWEEN_ENDS),
    ),
    "requantize_scale": (
        _rules(_FORMAT, *map(_finite, ("scale_in", "scale_out", "bias")),
               _lists("scale_in", "scale_out", "bias"), _positive("scale_in"),
               _positive("scale_out"), _fits("zero_point", INVALID),
               _clips("two codes", lambda lo, hi: (lo, hi))),
        (*_acc("scale_in", "scale_out", "bias"), _BETWEEN_ENDS),
    ),
    "requantize_shift": (
        (*_FORMAT, _SHIFT, *_list("offset"), _fits("zero_point", INVALID)),
        (*_acc("offset"), _BETWEEN_ENDS),
    ),
    "requantize_multiplier": (
        (*_FORMAT, *_lists("mantissa", "shift"),
         _within("mantissa", 1, 2**32 - 1, "1 to 2^32 - 1"), _fits("zero_point", INVALID),
         _SHIFT, _FIRST_SHIFT),
        (*_acc("mantissa", "shift"), _BETWEEN_ENDS),
    ),
    "rescale": (
        (*_FORMAT, *_clips("[channels or 1, 2]", lambda lo, hi: np.array([[lo, hi]])),
         *_lists(*_OF_CHANNELS), _within("multiplier", 0, 2**62 - 1, "0 to 2^62 - 1"), _SHIFT,
         _fits("zero_point", INVALID), _fits("offset", INVALID), _FIRST_SHIFT),
        _acc(*_OF_CHANNELS),
    ),
    "linear": (
        (*_WEIGHT,
         _must("weight_zero_point", "weight_zero_point is one integer, or one for each output",
               SHAPE, lambda a: a.weight_zero_point.size in (1, len(a.weight)),
               lambda a: {"weight_zero_point": np.arange(len(a.weight) + 1)})),
        _VECTORS,
    ),
    "accumulate": ((_within("accumulator_bits", 1, 64, "1 to 64"), *_WEIGHT), _VECTORS),
    "accumulate_stages": (
        (_must("stages", "widths, signed, saturates and at_end are of one length, groups one less",
               SHAPE, lambda a: {len(a.signed), len(a.saturates), len(a.at_end),
                                 len(a.groups) + 1} == {len(a.widths)},
               _of("signed", lambda v: v[1:]), _of("saturates", lambda v: (*v, 1)),
               _of("at_end", lambda v: v[1:]), _of("groups", lambda v: (*v, 2))),
         _must("widths", "each width lies in 1 to 64", INVALID,
               _every("widths", lambda w: 1 <= w <= 64), _last("widths", 65), _last("widths", 0)),
         _must("groups", "each group has at least one value", INVALID,
               _every("groups", lambda g: g >= 1), _last("groups", -1)),
         *_array("weight", 3, "[out, channels, kernel]"), *_bias(lambda a: len(a.weight))),
        (_samples("x"),
         _must("x", "x is [n, channels, kernel], as weight is", SHAPE,
               lambda a: a.x.ndim == 3 and a.x.shape[1:] == a.weight.shape[1:],
               _of("x", lambda v: v[:, :, 1:]), _of("x", lambda v: v.repeat(2, axis=1)))),
    ),
    "conv1d": _conv(1, "[out, in / groups, kw]"),
    "conv2d": _conv(2, "[out, in / groups, kh, kw]"),
    "conv_transpose2d": (
        (*_array("weight", 4, "[in, out / groups, kh, kw]"), *_moves(2, "inputs"),
         _per_axis("output_padding", 2, least=0),
         _must("output-padding-below",
               "output_padding is below the stride or the dilation of its axis", INVALID,
               lambda a: all(e < max(s, d) for e, s, d in zip(
                   a.output_padding, a.stride, a.dilation)),
               lambda a: {"output_padding": (max(a.stride[0], a.dilation[0]), 0)}),
         *_bias(lambda a: a.weight.shape[1] * a.groups)),
        (*_images(2), _channels(lambda a: len(a.weight), "the input channels of weight"),
         _must("size", "at least one position is left along each axis", SHAPE,
               lambda a: min(_transposed_sizes(a)) >= 1, {"padding": ((50, 0), (0, 0))})),
    ),
    "max_pool2d": (_POOL, (*_images(2), _FITS_IN)),
    "sum_pool2d": ((*_POOL, _PAD_CODE), (*_images(2), _FITS_IN)),
    "global_sum_pool": ((), (_samples("x"), _must(
        "x-axes", "x has spatial axes behind the channels", SHAPE, lambda a: a.x.ndim >= 3,
        _of("x", lambda v: v[:, :, 0, 0])))),
    "add": (
        (_must("multipliers", "multipliers, where given, are at least one, none of them 0", INVALID,
               lambda a: a.multipliers is None or (len(a.multipliers) > 0 and all(a.multipliers)),
               _last("multipliers", 0), {"multipliers": ()}),
         _must("multipliers-64-bits", "multipliers fit 64 signed bits", RANGE,
               lambda a: a.multipliers is None
               or all(-(2**63) <= m < 2**63 for m in a.multipliers), _last("multipliers", 2**63))),
        (_must("multiplier-each", "there is a multiplier for each operand", SHAPE,
               lambda a: a.multipliers is None or len(a.multipliers) == len(a.operands),
               _of("multipliers", lambda v: v[1:])),
         *_operands(lambda v: v.shape, "all operands have the same shape, nothing is broadcast",
                    lambda v: v[:, :1])),
    ),
    "concat": ((), _operands(lambda v: v.shape[2:],
                             "the operands differ in the number of channels alone",
                             lambda v: v[:, :, :1])),
    "flatten": ((), (replace(_samples("x"), breaks=_samples("x").breaks[:1]),)),
    "reshape": (
        (_shape("shape"),),
        (_samples("x"),
         _must("size", "shape has as many values as a sample of x", SHAPE,
               lambda a: prod(a.shape) == prod(a.x.shape[1:]), {"shape": (3, 4)})),
    ),
    "gather": (
        (_shape("in_shape"),
         _must("index-values", "index has at least one axis and one value", SHAPE,
               lambda a: a.index.ndim > 0 and a.index.size > 0, {"index": np.array(3)}),
         _must("index", "index is -1 or a position of a sample of in_shape", RANGE,
               lambda a: _every("index", lambda i: -1 <= i < prod(a.in_shape))(a),
               _put("index", -2), _put("index", lambda a: prod(a.in_shape))),
         _within("fill", -(2**31), 2**32 - 1, "-2^31 to 2^32 - 1", RANGE)),
        (_samples("x"),
         _must("x", "x is [n, *in_shape]", SHAPE, lambda a: a.x.shape[1:] == tuple(a.in_shape),
               _of("x", lambda v: v.swapaxes(1, 3)))),
    ),
    "lookup": (
        (*_array("table", 2, "[channels or 1, entries]"), _fits("lo")),
        (_samples("x"),
         _must("channels", "x has as many channels as table, where that has several", SHAPE,
               lambda a: len(a.table) in (1, a.x.shape[1]),
               _of("x", lambda v: v.repeat(2, axis=1))),
         _in_format("x", lambda a: (a.lo, a.lo + a.table.shape[1] - 1), "lo to lo + entries - 1")),
    ),
    "bit_widths": ((), (_must("lo", "lo is not above hi", INVALID, lambda a: a.lo <= a.hi,
                              {"lo": 1, "hi": 0}),)),
    "accumulator_range": (
        _WEIGHT,
        (_must("ends", "x_lo and x_hi have the same shape", SHAPE,
               lambda a: a.x_lo.shape == a.x_hi.shape, _of("x_hi", lambda v: v[:1])),
         _must("x_lo", "x_lo is nowhere above x_hi", INVALID,
               lambda a: bool((a.x_lo <= a.x_hi).all()), lambda a: {"x_lo": a.x_hi + 1}),
         _must("in", "x_lo and x_hi are [in], with the in of weight", SHAPE,
               lambda a: a.x_lo.shape == a.weight.shape[1:],
               lambda a: {"x_lo": a.x_lo[:1], "x_hi": a.x_hi[:1]})),
    ),
    "omega": ((), tuple(
        _must(name, f"{name} is at least 1", INVALID, _every(name, lambda n: n >= 1),
              {name: 0}, {name: -1}) for name in ("n_max", "n_weights", "n_inputs"))),
    "max_fan_in": ((), _rules(
        *map(_pair, ("weight_range", "input_range", "bias_range", "accumulator_range")),
        _must("bias", "bias_range lies in accumulator_range", RANGE,
              lambda a: a.accumulator_range[0] <= a.bias_range[0]
              and a.bias_range[1] <= a.accumulator_range[1],
              lambda a: {"bias_range": (a.accumulator_range[0] - 1, 0)},
              lambda a: {"bias_range": (0, a.accumulator_range[1] + 1)}))),
    "fan_in_mask": ((), (
        _rows("weight"),
        _must("weight", "magnitudes of weight are below 2^31", RANGE,
              _every("weight", lambda v: abs(v) < 2**31),
              _put("weight", 2**31), _put("weight", -(2**31))),
        _must("fan_in", "fan_in is at least 0", INVALID, lambda a: a.fan_in >= 0,
              {"fan_in": -1}))),
    "sign_budgets": (_BUDGET, _rules(
        *map(_sums, ("P", "N")),
        _must("rows", "P and N are of one length", SHAPE, lambda a: len(a.P) == len(a.N),
              _of("N", lambda v: v[1:])),
        _beside(lambda a: len(a.P)))),
    "project": (_BUDGET, _rules(
        _rows("weight"), _no_nan("weight"),
        _must("weight", "magnitudes of weight are below 2^31", RANGE,
              lambda a: bool((np.abs(a.weight) < 2**31).all()),
              _put("weight", 2.0**31), _put("weight", -np.inf)),
        _beside(lambda a: len(a.weight)))),
    "network": (_NETWORK, (
        _batch("codes"),
        _in_format("codes", lambda a: _ends(_format_of(a)), "input_format"), _ON_THE_WAY)),
    "predict": ((_AS_NETWORK, *map(_of_network, _SCALE), *_OUTPUT_DOOR),
                (_batch("x"), _no_nan("x"))),
}
