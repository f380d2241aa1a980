"""Mutants by families: what a port to C gets wrong, for every argument and result.

A family is one mistake (a tensor read as int8, a loop unrolled by 4 that forgets its tail, the
first of the channels' scales for all of them); it is made with every argument or result that has
the kind of value that it is about.  Nobody chose a case: most are told by anything, some by nothing
at all, and a random search says which (`vector_search`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from refqnn.conformance.mutants import KERNELS
from refqnn.conformance.mutants.steps import round_value, saturate, wrap
from refqnn.conformance.operations import OPERATIONS, Array, Field, Function, Values

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Foreign:
    """A mutant of a family: `id` is operation, place, mistake."""

    operation: str
    place: str
    mistake: str
    function: Function

    @property
    def id(self) -> str:
        return f"{self.operation} {self.place}: {self.mistake}"

    @contextmanager
    def running(self) -> Iterator[Function]:
        yield self.function


# --- what is done to a tensor --------------------------------------------------------------------


def _cells(change: Change) -> Change:
    """The change of every integer of a tensor."""

    def changed(array: Array) -> Array:
        values = [change(int(v)) for v in array.flat]
        return np.array(values, dtype=object).reshape(array.shape).astype(_fitting(values))

    return changed


def _fitting(values: Sequence[int]) -> Any:
    return np.int64 if all(-(2**63) <= v < 2**63 for v in values) else object


def _in_float(dtype: str) -> Change:
    return lambda v: int(np.dtype(dtype).type(v))


def _on_axis(axis: int, change: Callable[[list[int]], list[int | None]]) -> Change:
    """Values along an axis from other places of it; None: nothing is there, so 0."""

    def changed(array: Array) -> Array:
        if array.ndim < (axis + 1 if axis >= 0 else -axis):
            return array
        places = change(list(range(array.shape[axis])))
        moved = array.take([0 if p is None else p for p in places], axis=axis)
        for i, place in enumerate(places):
            if place is None:
                moved[(slice(None),) * (axis % array.ndim) + (i,)] = 0
        return moved

    return changed


def _tail(unroll: int, rest: Callable[[int, int], int | None]) -> Callable[[list[int]], Any]:
    """What the loop after one unrolled by so many reads: rest(place, where it begins)."""

    def places(indices: list[int]) -> list[int | None]:
        whole = len(indices) // unroll * unroll
        return [i if i < whole else rest(i, whole) for i in indices]

    return places


def _lane(unroll: int, wrong: int) -> Callable[[list[int]], Any]:
    """In whole blocks of an unrolled loop the last lane reads another."""

    def places(indices: list[int]) -> list[int]:
        whole = len(indices) // unroll * unroll
        return [i + wrong if i < whole and i % unroll == unroll - 1 else i for i in indices]

    return places


def _ordered(order: str) -> Change:
    """The memory as if its axes ran the other way."""
    turned = {
        "last axis first": lambda a: np.moveaxis(a, -1, 1) if a.ndim > 2 else a,
        "second axis last": lambda a: np.moveaxis(a, 1, -1) if a.ndim > 2 else a,
        "columns first": lambda a: a.reshape(a.shape[::-1]).T,
        "last two axes swapped": lambda a: np.swapaxes(a, -1, -2) if a.ndim > 1 else a,
    }[order]
    return lambda a: np.ascontiguousarray(turned(a)).reshape(a.shape)


def _strided(step: Callable[[int], int]) -> Change:
    """Samples begin so many values apart."""

    def changed(array: Array) -> Array:
        flat, size = array.reshape(-1), array[0].size
        starts = [n * step(size) for n in range(len(array))]
        rows = [np.take(flat, range(s, s + size), mode="wrap") for s in starts]
        return np.array(rows, dtype=array.dtype).reshape(array.shape)

    return lambda a: changed(a) if a.ndim > 1 and len(a) else a


INTEGERS: dict[str, Change] = {
    **{f"int{b}": _cells(wrap(b)) for b in (4, 8, 16, 24, 32)},
    **{f"uint{b}": _cells(wrap(b, False)) for b in (4, 8, 16, 24, 32)},
    **{f"saturated to int{b}": _cells(saturate(b)) for b in (8, 16, 32)},
    **{f"saturated to uint{b}": _cells(saturate(b, False)) for b in (8, 16, 32)},
    "float16": _cells(lambda v: int(np.float16(max(min(v, 65504), -65504)))),
    "float32": _cells(_in_float("float32")),
    "float64": _cells(_in_float("float64")),
    "magnitudes": _cells(abs),
    "negated": _cells(lambda v: -v),
    "complement": _cells(lambda v: ~v),
    "one more": _cells(lambda v: v + 1),
    "one less": _cells(lambda v: v - 1),
}
MEMORY: dict[str, Change] = {
    **{o: _ordered(o) for o in ("last axis first", "second axis last", "columns first",
                                "last two axes swapped")},
    "samples one value too far apart": _strided(lambda size: size + 1),
    "samples one value too near": _strided(lambda size: size - 1),
    "the first sample for all": _strided(lambda size: 0),
    "batch backwards": lambda a: a[::-1],
    "backwards": lambda a: a.reshape(-1)[::-1].reshape(a.shape),
    **{f"axis {x} backwards": _on_axis(x, lambda i: i[::-1]) for x in (1, -1, -2)},
    **{f"axis {x} without its first": _on_axis(x, lambda i: [None, *i[1:]])
       for x in (0, 1, -1, -2)},
    **{f"axis {x} without its last": _on_axis(x, lambda i: [*i[:-1], None])
       for x in (0, 1, -1, -2)},
    **{f"axis {x} rotated": _on_axis(x, lambda i: [*i[1:], 0]) for x in (1, -1)},
    **{f"axis {x} in steps of {u}, no tail": _on_axis(x, _tail(u, lambda i, whole: None))
       for u in (2, 4, 8, 16) for x in (1, -1)},
    **{f"axis {x} in steps of {u}, the tail from the start":
       _on_axis(x, _tail(u, lambda i, whole: i - whole)) for u in (2, 4, 8, 16) for x in (1, -1)},
    **{f"axis {x} in steps of {u}, the tail is one value":
       _on_axis(x, _tail(u, lambda i, whole: whole)) for u in (4, 8) for x in (1, -1)},
    **{f"axis {x} in steps of {u}, the last lane reads its neighbour": _on_axis(x, _lane(u, -1))
       for u in (4, 8, 16) for x in (1, -1)},
    **{f"axis {x} by a counter of {b} bits": _on_axis(x, partial(
        lambda b, i: [v % 2**b for v in i], b)) for b in (4, 7, 8) for x in (0, 1, -1)},
    **{f"axis {x} in a buffer of {n}": _on_axis(x, partial(
        lambda n, i: [v if v < n else None for v in i], n)) for n in (4, 8, 16, 32, 64, 128, 256)
       for x in (0, 1, -1)},
}  # fmt: skip
CHANNELS: dict[str, Change] = {
    "the first for all": lambda a: np.broadcast_to(a.reshape(-1)[:1], a.shape).copy(),
    "the last for all": lambda a: np.broadcast_to(a.reshape(-1)[-1:], a.shape).copy(),
    "of the next channel": lambda a: np.roll(a, -1),
    "of the channel before": lambda a: np.roll(a, 1),
}
REALS: dict[str, Change] = {
    dtype: lambda a, dtype=dtype: a.astype(dtype).astype(a.dtype)  # type: ignore[misc]
    for dtype in ("float16", "float32")
} | {
    "flushed to zero": lambda a: np.where(abs(a) < 2.0**-126, a * 0, a),
    "negated": lambda a: -a,
    "magnitudes": abs,
    "next above": lambda a: np.nextafter(a, np.inf).astype(a.dtype),
    "next below": lambda a: np.nextafter(a, -np.inf).astype(a.dtype),
    "negative zeros lost": lambda a: a + 0,
}
NUMBERS: dict[str, Change] = {
    **{f"int{b}": wrap(b) for b in (4, 8, 16, 32)},
    **{f"uint{b}": wrap(b, False) for b in (4, 8, 16, 32)},
    "float32": _in_float("float32"),
    "negated": lambda v: -v,
    "magnitude": abs,
    "one more": lambda v: v + 1,
    "one less": lambda v: v - 1,
    "not read": lambda v: 0,
    "at least 0": lambda v: max(v, 0),
    "at most 31": lambda v: min(v, 31),
    "modulo 32": lambda v: v % 32,
}
LISTS: dict[str, Change] = {
    "the first for all": lambda v: (v[0],) * len(v),
    "the last for all": lambda v: (v[-1],) * len(v),
    "backwards": lambda v: tuple(v[::-1]),
    **{f"{name}, the first": partial(lambda f, v: (f(v[0]), *v[1:]), change)
       for name, change in NUMBERS.items()},
    **{f"{name}, the last": partial(lambda f, v: (*v[:-1], f(v[-1])), change)
       for name, change in NUMBERS.items()},
    "1, the first": lambda v: (1, *v[1:]),
    "1, the last": lambda v: (*v[:-1], 1),
    **{f"entry {i} for the next": partial(
        lambda i, v: (*v[: i + 1], v[i], *v[i + 2 :]) if len(v) > i + 1 else v, i)
       for i in range(3)},
}  # fmt: skip
PAIRS: dict[str, Change] = {
    "the first axis for all": lambda v: (v[0],) * len(v),
    "the last axis for all": lambda v: (v[-1],) * len(v),
    "axes swapped": lambda v: tuple(v[::-1]),
    "before and after swapped": lambda v: tuple(pair[::-1] for pair in v),
    "before for both": lambda v: tuple((a, a) for a, _ in v),
    "after for both": lambda v: tuple((b, b) for _, b in v),
    "all of it before": lambda v: tuple((a + b, 0) for a, b in v),
    "all of it after": lambda v: tuple((0, a + b) for a, b in v),
    "halved": lambda v: tuple(((a + b) // 2, a + b - (a + b) // 2) for a, b in v),
    "none on the first axis": lambda v: ((0, 0), *v[1:]),
    "none on the last axis": lambda v: (*v[:-1], (0, 0)),
    "none before": lambda v: tuple((0, b) for _, b in v),
    "none after": lambda v: tuple((a, 0) for a, _ in v),
}
OPERANDS: dict[str, Change] = {
    "the first twice": lambda v: [v[0], v[0], *v[2:]],
    "the second twice": lambda v: [v[1], *v[1:]] if len(v) > 1 else v,
    "the last for the one before": lambda v: [*v[:-2], v[-1], v[-1]] if len(v) > 1 else v,
    "without the last": lambda v: v[:-1] if len(v) > 1 else v,
    "backwards": lambda v: v[::-1],
    **{f"{name}, the first": partial(lambda f, v: [f(v[0]), *v[1:]], change)
       for name, change in {**INTEGERS, **MEMORY}.items()},
    **{f"{name}, the last": partial(lambda f, v: [*v[:-1], f(v[-1])], change)
       for name, change in {**INTEGERS, **MEMORY}.items()},
}  # fmt: skip
FAMILIES: dict[str, dict[str, Change]] = {
    "int_tensor": {**INTEGERS, **MEMORY, **CHANNELS},
    "float_tensor": {**REALS, **MEMORY, **CHANNELS},
    "int_tensors": OPERANDS,
    "int": NUMBERS,
    "ints": LISTS,
    "pairs": PAIRS,
    "bool": {"true": lambda v: True, "false": lambda v: False, "inverted": lambda v: not v},
}
SIZE = {"network"}


# --- where it is done ----------------------------------------------------------------------------


def _argument(kernel: Function, name: str, change: Change) -> Function:
    def wrong(**arguments: Any) -> Values:
        given = arguments[name]
        return kernel(**{**arguments, name: given if given is None else change(given)})

    return wrong


def _result(kernel: Function, name: str, change: Change) -> Function:
    def wrong(**arguments: Any) -> Values:
        results = dict(kernel(**arguments))
        value = results[name]
        results[name] = value if value is None else change(value)
        return results

    return wrong


def _families(field: Field) -> Iterator[tuple[str, Change]]:
    yield from FAMILIES.get(field.kind, {}).items()
    if field.optional:
        yield "taken as absent", lambda v: None


def _ends_off(change: Callable[[int, int, int], int]) -> Callable[[Function, str], Function]:
    """Codes changed by the ends of those that came out: a clamp that is off by one."""

    def made(kernel: Function, name: str) -> Function:
        def codes(array: Array) -> Array:
            flat = [int(v) for v in array.flat]
            lo, hi = min(flat), max(flat)
            return _cells(lambda v: change(v, lo, hi))(array)

        return _result(kernel, name, codes)

    return made


_CLAMPS = {
    "the highest is one too low": lambda v, lo, hi: min(v, hi - 1),
    "the lowest is one too high": lambda v, lo, hi: max(v, lo + 1),
}
_SUMS = {
    **{f"int{b}": wrap(b) for b in (8, 12, 16, 20, 24, 32, 48)},
    **{f"uint{b}": wrap(b, False) for b in (8, 16, 24, 32)},
    **{f"saturating int{b}": saturate(b) for b in (8, 16, 24, 32)},
    "float32": _in_float("float32"),
    "float64": _in_float("float64"),
    "float16": lambda v: int(np.float16(max(min(v, 65504), -65504))),
}


def _twice(bits: int, first: str) -> Callable[[Any, str], int]:
    """Rounded to so many binary digits first."""
    return lambda x, mode: round_value(
        Fraction(round_value(Fraction(_exact(x)) * 2**bits, first), 2**bits), mode
    )


def _exact(x: Any) -> Any:
    return x.item() if isinstance(x, np.generic) else x


_ROUNDINGS: dict[str, Callable[[Any, str], int]] = {
    **{f"twice, {bits} bits {first} first": _twice(bits, first)
       for bits in (1, 2, 8) for first in ("half_up", "half_even", "half_away", "floor",
                                           "toward_zero")},
    **{f"in {dtype}": partial(
        lambda dtype, x, mode: round_value(float(np.dtype(dtype).type(float(_exact(x)))), mode),
        dtype) for dtype in ("float16", "float32", "float64")},
    "of the magnitude": lambda x, mode: int(np.sign(_exact(x) >= 0) * 2 - 1)
    * round_value(abs(Fraction(_exact(x))), mode),
    "always half_even": lambda x, mode: round_value(x, "half_even"),
    "ties of negatives as those of positives": lambda x, mode: -round_value(
        -Fraction(_exact(x)), mode),
    "in int32": lambda x, mode: wrap(32)(round_value(x, mode)),
    "in int16": lambda x, mode: wrap(16)(round_value(x, mode)),
    "saturating int32": lambda x, mode: saturate(32)(round_value(x, mode)),
    "plus half, cut": lambda x, mode: int(Fraction(_exact(x)) + Fraction(1, 2)),
    "plus half, floor": lambda x, mode: round_value(Fraction(_exact(x)) + Fraction(1, 2), "floor"),
    "cut": lambda x, mode: int(Fraction(_exact(x))),
    "shifted right": lambda x, mode: round_value(x, "floor"),
}  # fmt: skip
_HOOKS = {"fit": _SUMS, "round_": _ROUNDINGS}


def _hooks(kernel: Function) -> set[str]:
    known = set(inspect.signature(kernel).parameters)
    return known | (_hooks(KERNELS["conv2d"]) if kernel.__name__ == "conv1d" else set())


def _in_nodes(kernel: Function, operation: str, name: str, change: Change) -> Function:
    """The mistake in every node of an operation."""

    def wrong(**arguments: Any) -> Values:
        return kernel(**{**arguments, "network": _with_nodes(arguments["network"], node)})

    def node(given: Mapping[str, Any]) -> Mapping[str, Any]:
        if given["operation"] != operation or given["parameters"][name] is None:
            return given
        parameters = given["parameters"]
        return {**given, "parameters": {**parameters, name: change(parameters[name])}}

    return wrong


def _with_nodes(network: Mapping[str, Any], change: Change) -> Values:
    return {**network, "nodes": [change(n) for n in network["nodes"]]}


def _rewired(change: Callable[[list[str], int, Sequence[str]], list[str]]) -> Change:
    """Other inputs of nodes: change(inputs, index of the node, names with "input" first)."""

    def changed(network: Mapping[str, Any]) -> Values:
        names = ["input", *(n["name"] for n in network["nodes"])]
        nodes = [
            {**n, "inputs": change(list(n["inputs"]), i, names)}
            for i, n in enumerate(network["nodes"])
        ]
        return {**network, "nodes": nodes}

    return changed


def _twin(network: Mapping[str, Any], later: bool) -> Values:
    """Of two readers of a value, one reads what the other makes."""
    readers: dict[str, list[int]] = {}
    for i, n in enumerate(network["nodes"]):
        for source in n["inputs"]:
            readers.setdefault(source, []).append(i)
    nodes = [dict(n) for n in network["nodes"]]
    for source, places in readers.items():
        if len(places) > 1:
            first, last = places[0], places[-1]
            if later:
                swapped = [
                    nodes[first]["name"] if s == source else s for s in nodes[last]["inputs"]
                ]
                nodes[last]["inputs"] = swapped
    return {**network, "nodes": nodes}


WIRES: dict[str, Change] = {
    "every node reads the one before": _rewired(lambda v, i, names: [names[i], *v[1:]]),
    "second operands read the node before": _rewired(
        lambda v, i, names: [v[0], *[names[i]] * (len(v) - 1)]),
    "operands backwards": _rewired(lambda v, i, names: v[::-1]),
    "the first operand for all": _rewired(lambda v, i, names: [v[0]] * len(v)),
    "the last operand for all": _rewired(lambda v, i, names: [v[-1]] * len(v)),
    "joins read the input of the network": _rewired(
        lambda v, i, names: [*v[:-1], "input"] if len(v) > 1 else v),
    "the input is read by the first node alone": _rewired(
        lambda v, i, names: [names[1] if s == "input" and i > 1 else s for s in v]),
    "of two readers the last reads the first": partial(_twin, later=True),
    "the last node is the output": lambda n: {**n, "output": n["nodes"][-1]["name"]},
    "the node before is the output": lambda n: {**n, "output": n["nodes"][-2]["name"]},
    "the input format is signed": lambda n: {
        **n, "input_format": {**n["input_format"], "signed": True}},
    "the input format is unsigned": lambda n: {
        **n, "input_format": {**n["input_format"], "signed": False}},
    "the input format is narrow": lambda n: {
        **n, "input_format": {**n["input_format"], "narrow": True}},
    "the input format has 8 bits": lambda n: {
        **n, "input_format": {**n["input_format"], "bits": 8}},
}  # fmt: skip


def mutants(operation: str) -> Iterator[Foreign]:
    """Every mutant of every family of one operation."""
    kernel, known = KERNELS[operation], OPERATIONS[operation]
    for name, field in known.arguments.items():
        for mistake, change in _families(field):
            yield Foreign(operation, name, mistake, _argument(kernel, name, change))
    for name, field in known.outputs.items():
        for mistake, change in _families(field):
            if mistake not in SIZE:
                yield Foreign(operation, f"result {name}", mistake, _result(kernel, name, change))
        if name == "codes":
            for mistake, clamp in _CLAMPS.items():
                yield Foreign(operation, f"result {name}", mistake, _ends_off(clamp)(kernel, name))
    for hook, family in _HOOKS.items():
        for mistake, step in family.items() if hook in _hooks(kernel) else ():
            yield Foreign(operation, hook, mistake, partial(kernel, **{hook: step}))
    if "network" in known.parameters:
        for mistake, change in WIRES.items():
            yield Foreign(operation, "wires", mistake, _argument(kernel, "network", change))
        for node in OPERATIONS.values():
            for name, field in node.parameters.items() if _is_node(node.name) else ():
                for mistake, change in _families(field):
                    wrong = _in_nodes(kernel, node.name, name, change)
                    yield Foreign(operation, f"{node.name}.{name}", mistake, wrong)


def _is_node(operation: str) -> bool:
    """Is it something that a node of a network of the suite asks?"""
    return bool(OPERATIONS[operation].node)
