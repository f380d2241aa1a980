"""Which deviations turn the known values into a given one?

Between a given value and the known ones before it stands a part of the program; every deviation of
the catalogue is tried at each node of it, first alone, then two together.  A few samples sort out
most of them; what is left is held against every given integer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations, groupby, product

import numpy as np

from refqnn.arithmetic import IntArray
from refqnn.diagnosis.deviation import Deviation, Fit, Operands, computed
from refqnn.diagnosis.doubts import one_valued, other_machine, same_by_weights
from refqnn.diagnosis.report import Applied, Explanation
from refqnn.errors import RefqnnError
from refqnn.graph import Node, inputs_of
from refqnn.ops.base import is_sum
from refqnn.ops.weighted import WeightedSum

__all__ = ["Answer", "Part", "explained"]

Values = dict[str, IntArray]
Choice = tuple[Node, Deviation]

_SORTING = 12  # samples that a deviation alone is tried on first
_PAIRING = 2  # the same for two of them
_GUESSES = 9  # constants of a fit at a node that is not given, before a look at the clock


@dataclass(frozen=True)
class Answer:
    """The smallest explanations of a value, and the values of the part that the first implies.

    Attributes:
        open: nodes where constants that would explain it as well were not looked for.
        reasons: why one explanation alone is not certain for all that.
        simplest: how many of the explanations stand in front of those with more constants.
    """

    explanations: tuple[Explanation, ...]
    values: Values
    tried: int
    exhausted: bool
    open: tuple[str, ...] = ()
    simplest: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """The nodes between known values and the one that is given.

    Attributes:
        nodes: in the order of the program; the last is the given one.
        known: what they read from outside.
        theirs: the given values of the last.
    """

    nodes: tuple[Node, ...]
    known: Mapping[str, IntArray]
    theirs: IntArray

    @property
    def target(self) -> str:
        return self.nodes[-1].name

    @cached_property
    def plain(self) -> Values:
        """The values without deviations."""
        return self.deviated(()) or {}

    def deviated(self, choices: Sequence[Choice]) -> Values | None:
        """The values with deviations in force, or None where one of them says nothing."""
        values: Values = dict(self.known)
        for node in self.nodes:
            here = [deviation for at, deviation in choices if at is node]
            try:
                with np.errstate(all="ignore"):  # narrow floats overflow on purpose
                    made = computed(node.op, self.operands(node, values), here)
            except (RefqnnError, ValueError, IndexError, TypeError, AttributeError, OverflowError):
                return None  # what a deviation makes need not be a program
            if made is None:
                return None
            values[node.name] = made
        return values

    def operands(self, node: Node, values: Mapping[str, IntArray]) -> Operands:
        return tuple(values[name] for name in inputs_of(node))

    def reproduced(self, choices: Sequence[Choice]) -> bool:
        values = self.deviated(choices)
        return values is not None and np.array_equal(values[self.target], self.theirs)

    def of(self, samples: Sequence[int]) -> Part:
        """The same on some samples."""
        known = {name: values[list(samples)] for name, values in self.known.items()}
        return replace(self, known=known, theirs=self.theirs[list(samples)])

    def worst(self, count: int) -> Part:
        """The samples with the most wrong values."""
        plain = self.plain[self.target]
        if plain.shape != self.theirs.shape:
            return self.of(range(min(count, len(self.theirs))))
        wrong = (plain != self.theirs).reshape(len(plain), -1).sum(axis=1)
        return self.of(np.argsort(-wrong, kind="stable")[:count].tolist())


def explained(
    part: Part,
    catalogue: Sequence[Deviation],
    deadline: float,
    *,
    pairs: bool = True,
    known: Sequence[Explanation] = (),
) -> Answer:
    """The smallest sets of deviations that reproduce the given value.

    Args:
        known: explanations that were found otherwise; they need no deviation beside them.
    """
    choices = [(n, d) for n in part.nodes for d in catalogue if d.applies_to(n.op)]
    free = [choice for choice in choices if choice[1].fit is None]
    few = part.worst(_SORTING) if len(part.theirs) == len(next(iter(part.known.values()))) else part
    left = [c for c in free if c[1].batch or few.reproduced([c])]
    hidden = [(n, d) for n in part.nodes[:-1] for d in catalogue if d.hidden and d.applies_to(n.op)]
    singles = [c for c in left if part.reproduced([c])]
    singles += _guessed(part, few, hidden, deadline)
    found: list[Explanation] = [*known, *((_applied(c),) for c in singles)]
    values = part.deviated(singles[:1]) if singles else None
    tried, exhausted = len(free) + len(hidden), True
    last = part.nodes[-1]
    as_functions: list[Callable[..., IntArray | None]] = [
        partial(_alone, last, c[1]) for c in singles if c[0] is last
    ]
    fits = sorted((c for c in choices if c[1].fit is not None), key=lambda c: c[1].level)
    open_ = tuple(dict.fromkeys(node.name for node, _ in fits if not _through(node, last)))
    rest: list[tuple[Choice, Fit]] = []
    doubted: list[Callable[[], tuple[str, ...]]] = [
        partial(_doubts, part, *c, partial(_alone, *c)) for c in singles
    ]
    for level, group in groupby((c for c in fits if c[0] is last), key=lambda c: c[1].level):
        behind = bool(found) and level > 0
        for choice in group:
            tried += 1
            fit = _fitted(part, choice)
            if fit is None:
                continue
            if behind or not fit.believed:
                rest.append((choice, fit))
                continue
            found.append((_applied(choice, fit.found),))
            as_functions.append(fit.functions[0])
            doubted.append(partial(_doubts, part, *choice, fit.functions[0]))
            if values is None:
                values = {**part.plain, last.name: part.theirs}
    if not found and pairs:
        two = list(_pairs(part, free, deadline))
        exhausted = time.monotonic() < deadline
        found = [tuple(_applied(c) for c in pair) for pair in two]
        values = part.deviated(two[0]) if two else None
        doubted = [lambda: tuple(r for c in two[0] for r in _doubts(part, *c, partial(_alone, *c)))]
    simplest = len(found)
    if found:
        found += [
            (_applied(choice, fit.found),)
            for choice, fit in rest
            if fit.specific and (fit.single or not _the_same(fit, as_functions))
        ]
    reasons = doubted[0]() if len(found) == 1 and doubted and not known else ()
    return Answer(tuple(found), values or part.plain, tried, exhausted, open_, simplest, reasons)


def _guessed(part: Part, few: Part, choices: Sequence[Choice], deadline: float) -> Iterator[Choice]:
    """Fits at nodes that are not given, with the constants that the nodes have by themselves."""
    for node, deviation in choices:
        for number, op in enumerate(deviation.hidden(node.op) if deviation.hidden else ()):
            if number >= _GUESSES and time.monotonic() > deadline:
                break
            made = Deviation(deviation.name, deviation.sentence, node=lambda *_, op=op: op)
            if few.reproduced([(node, made)]) and part.reproduced([(node, made)]):
                yield node, made
                break


def _doubts(
    part: Part, node: Node, deviation: Deviation, function: Callable[..., IntArray | None]
) -> tuple[str, ...]:
    """Why the only explanation is not certain."""
    reasons, last = [], part.nodes[-1]
    theirs = part.theirs if node is last else part.theirs[:0]
    x = part.operands(node, part.plain)
    in_front = next((n for n in part.nodes if inputs_of(last) == (n.name,)), None)
    if deviation.fit is not None:
        wrong = (part.plain[last.name] != part.theirs).swapaxes(0, 1).reshape(theirs.shape[1], -1)
        same = np.flatnonzero(one_valued(theirs) & wrong.any(axis=1)).tolist()
        if same:  # saturated values bound a constant on one side only
            reasons.append(f"channels {same} of {last.name} have one value in these samples")
    if isinstance(node.op, WeightedSum):
        reasons.append(same_by_weights(node.name, node.op, x, function))
    elif deviation.fit is not None and in_front and isinstance(in_front.op, WeightedSum):
        op = in_front.op  # a constant or a factor in front of a rounding is one of the sum

        def moved(*x: IntArray) -> IntArray:
            y = op.forward(*x)
            return 2 * y if deviation.name == "scale_changed" else y + 1

        if deviation.level:
            behind = part.operands(in_front, part.plain)
            reasons.append(same_by_weights(in_front.name, op, behind, moved))
    if deviation.machine is not None and is_sum(node.op):
        if node is last:
            reasons.append(other_machine(deviation.machine, node.op, x, theirs, function))
        else:
            reasons.append(f"the order of {node.name} is not told where it is not given")
    return tuple(filter(None, reasons))


def _applied(choice: Choice, found: str = "") -> Applied:
    node, deviation = choice
    return Applied(node.name, deviation.name, deviation.sentence, found)


def _fitted(part: Part, choice: Choice) -> Fit | None:
    """A fit at the given node: what has to be reproduced is not known elsewhere."""
    node, deviation = choice
    x = part.operands(node, part.plain)
    if deviation.fit is None or part.plain[node.name].shape != part.theirs.shape:
        return None
    fit = deviation.fit(node.op, x, part.theirs)
    return fit if fit is not None and np.array_equal(fit.functions[0](*x), part.theirs) else None


def _through(node: Node, last: Node) -> bool:
    """Is a constant at a node seen at the last one?

    What is added to a sum, or to all that it reads, stands in front of the rounding that follows.
    """
    behind = last.op.kind == "Requantize" and inputs_of(last) == (node.name,)
    return node is last or (behind and is_sum(node.op) and not getattr(node.op, "pads", False))


def _alone(node: Node, deviation: Deviation, *x: IntArray) -> IntArray | None:
    part = Part((node,), dict(zip(inputs_of(node), x)), np.empty(0))
    return (part.deviated([(node, deviation)]) or {}).get(node.name)


def _the_same(fit: Fit, functions: Sequence[Callable[..., IntArray | None]]) -> bool:
    """Do all that these constants may be give what one of some functions gives?"""
    if not fit.probe:
        return False
    ours = [function(*fit.probe) for function in fit.functions]
    theirs = [function(*fit.probe) for function in functions]
    return any(y is not None and all(np.array_equal(y, mine) for mine in ours) for y in theirs)


def _pairs(
    part: Part, choices: Sequence[Choice], deadline: float
) -> Iterator[tuple[Choice, Choice]]:
    """The pairs that reproduce the value, of deviations that do something.

    Those that do the same to a few samples, alone, are tried there once, and one by one on all.
    """
    few = part.worst(_PAIRING)
    plain = few.plain[part.target]
    alike: dict[bytes, list[Choice]] = {}
    for choice in choices:
        made = None if choice[1].batch else few.deviated([choice])
        if made is not None and not np.array_equal(made[part.target], plain):
            key = made[part.target].astype(np.int64, copy=False).tobytes()
            computes = b"computes" if choice[1].compute is not None else b""
            alike.setdefault(choice[0].name.encode() + computes + key, []).append(choice)
    for some, others in combinations(alike.values(), 2):
        if time.monotonic() > deadline:
            return
        if _once((some[0], others[0])) or not few.reproduced((some[0], others[0])):
            continue
        for pair in product(some, others):
            if time.monotonic() > deadline:
                return
            if not _once(pair) and few.reproduced(pair) and part.reproduced(pair):
                yield pair


def _once(pair: tuple[Choice, Choice]) -> bool:
    """Would a node be computed in two ways?"""
    (a, first), (b, second) = pair
    return a is b and first.compute is not None and second.compute is not None
