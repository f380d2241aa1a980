"""The greatest value of one neuron over a box of inputs: witnesses and proofs.

    local search      from corners, data and random points, change one input at a time
    branch and bound  split the input that seems to move the neuron most; drop a box when its
                      interval says that nothing in it beats the best witness

The least value of acc is minus the greatest value of -acc.  When the boxes run out, the best
witness is the maximum; when the time runs out, the boxes that are left still bound it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.accumulator.bounds import HI, LO, Bounds, Progress, Proof, Status, Witnesses
from refqnn.accumulator.cone import Cone
from refqnn.accumulator.domain import Domain
from refqnn.accumulator.solver import decide
from refqnn.arithmetic import IntArray
from refqnn.errors import NotCovered
from refqnn.graph import Node
from refqnn.network import Network
from refqnn.ops.base import Interval

__all__ = ["Found", "Search", "climb", "maximise", "neuron_box", "tighten"]

_BATCH = 512  # boxes split at one time
_MAX_BOX_ENTRIES = 2**25  # input bounds held; beyond, the search gives up as if out of time
_STARTS = 4  # random starting points of a local search
_SHARES = 64  # a neuron may take this part of the time left, or more where fewer neurons wait
_WORK = 2**32  # products computed between two looks at the clock, about a second's
_MOVED = 2**22  # entries of inputs tried at one time by a local search


@dataclass(frozen=True)
class Found:
    """What a search knows of max sign * acc over a box.

    Attributes:
        best: the greatest value of sign * acc met, None if no input was tried.
        x: short input [d] that gives it.
        bound: no input gives more than this.
        proof: of the bound.
    """

    best: int | None
    x: NDArray[np.int64] | None
    bound: int
    proof: Proof

    @property
    def exact(self) -> bool:
        return self.best == self.bound


def neuron_box(cone: Cone, domain: Domain) -> tuple[IntArray, IntArray]:
    """The ends of the inputs that a neuron depends on, [d] each."""
    lo, hi = domain.hull.lo.reshape(-1), domain.hull.hi.reshape(-1)
    return lo[cone.inputs], hi[cone.inputs]


def maximise(
    cone: Cone,
    lo: IntArray,
    hi: IntArray,
    sign: int,
    *,
    step: int = 1,
    starts: NDArray[np.int64] | None = None,
    goal: int | None = None,
    deadline: float | None = None,
) -> Found:
    """max sign * acc over the box, by branch and bound.

    Args:
        lo, hi: the box, [d].
        sign: +1 for the greatest acc, -1 for the least.
        step: distance of neighbouring codes.
        starts: inputs [n, d] to try first.
        goal: only decide whether sign * acc > goal is possible: stop at the first witness above it,
            drop every box that stays at or below it.
        deadline: a `time.monotonic` value; None for no limit.

    Returns: with a goal, `bound <= goal` is a proof that none lies above.
    """
    best = _Best(cone, sign)
    batch = max(1, min(_BATCH, _WORK // max(1, 8 * cone.entries)))
    if starts is not None:
        best.offer(starts)
    boxes = _Boxes.examined(cone, sign, lo[None].astype(np.int64), hi[None].astype(np.int64), best)
    while True:
        least = max((v for v in (best.value, goal) if v is not None), default=None)
        if least is not None:
            boxes = boxes.select(boxes.upper > least)
        if not len(boxes) or (goal is not None and best.value is not None and best.value > goal):
            break
        late = deadline is not None and time.monotonic() > deadline
        if late or boxes.lo.size > _MAX_BOX_ENTRIES:
            break
        chosen = _highest(boxes.upper, batch)
        rest = np.ones(len(boxes), dtype=bool)
        rest[chosen] = False
        children = _Boxes.examined(cone, sign, *boxes.select(chosen).halves(step), best)
        boxes = boxes.select(rest).joined(children)
    bounds = [v for v in (best.value, goal) if v is not None]
    if len(boxes):
        bounds.append(int(boxes.upper.max()))
    return Found(best.value, best.x, max(bounds), Proof.BOX_SEARCH)


def climb(
    cone: Cone,
    lo: IntArray,
    hi: IntArray,
    sign: int,
    starts: NDArray[np.int64],
    *,
    step: int = 1,
    deadline: float | None = None,
) -> NDArray[np.int64]:
    """Local search from each start [n, d]: take the best change of one input until none helps.

    Each try moves one input to its lower end, its upper end, or one step.  Returns: [n, d].
    """
    ends = []
    work, size = 4 * max(1, cone.entries), max(1, len(lo))
    block = max(1, min(_WORK // work, _MOVED // size))
    for start in starts:
        x, value = start.astype(np.int64), int(sign * cone.forward(start[None])[0])
        better = x.size > 0
        while better:
            better, held = False, x
            for first in range(0, len(x), block):
                if deadline is not None and time.monotonic() >= deadline:
                    better = False
                    break
                moves = _moves(held, np.arange(first, min(first + block, size)), lo, hi, step)
                values = sign * cone.forward(moves)
                winner = int(values.argmax())
                if int(values[winner]) > value:
                    x, value, better = moves[winner], int(values[winner]), True
        ends.append(x)
    return np.stack(ends)


def _moves(x: IntArray, i: IntArray, lo: IntArray, hi: IntArray, step: int) -> IntArray:
    """x [d] with one of the inputs i moved, [4 len(i), d]."""
    moves, row = np.repeat(x[None], 4 * len(i), axis=0), 4 * np.arange(len(i))
    moves[row, i], moves[row + 1, i] = lo[i], hi[i]
    moves[row + 2, i] = np.minimum(x[i] + step, hi[i])
    moves[row + 3, i] = np.maximum(x[i] - step, lo[i])
    return moves


def tighten(
    cone: Cone,
    lo: IntArray,
    hi: IntArray,
    sign: int,
    found: Found,
    *,
    step: int = 1,
    deadline: float | None = None,
) -> Found:
    """Close the gap between the best witness and the bound, question by question.

    The first questions are at powers of two, where an answer saves a bit of width; then the gap is
    halved.  Returns: what is known when the gap is closed or the time is up.
    """
    best, x, bound, proof = found.best, found.x, found.bound, found.proof
    while best is None or best < bound:
        value = _question(best, bound)
        answer, witness = decide(cone, lo, hi, sign, value, step=step, deadline=deadline)
        if answer is None:
            break
        if answer:
            assert witness is not None
            best, x = int(sign * cone.forward(witness[None])[0]), witness
            if best < value:  # the solver's model and the program disagree: trust nothing
                return found
        else:
            bound, proof = value - 1, Proof.SOLVER
    return Found(best, x, bound, proof)


def _question(best: int | None, bound: int) -> int:
    """A value in (best, bound]: the greatest power of two there, else one past the middle."""
    if best is None:
        return bound
    if bound > 0:
        power = 1 << (bound.bit_length() - 1)
        if best < power:
            return power
    return best + (bound - best + 1) // 2


class _Best:
    """The input with the greatest sign * acc met so far."""

    def __init__(self, cone: Cone, sign: int) -> None:
        self.cone, self.sign = cone, sign
        self.value: int | None = None
        self.x: NDArray[np.int64] | None = None

    def offer(self, x: NDArray[np.int64]) -> None:
        """Try short inputs [n, d]."""
        values = self.sign * self.cone.forward(x)
        winner = int(values.argmax())
        if self.value is None or int(values[winner]) > self.value:
            self.value, self.x = int(values[winner]), x[winner]


@dataclass(frozen=True)
class _Boxes:
    """n boxes of short inputs, each with an upper bound of sign * acc and the input to split."""

    lo: IntArray  # [n, d]
    hi: IntArray  # [n, d]
    upper: IntArray  # [n]
    split: NDArray[np.int64]  # [n]

    @classmethod
    def examined(cls, cone: Cone, sign: int, lo: IntArray, hi: IntArray, best: _Best) -> _Boxes:
        """Bound each box, and try its likely best corner as a witness."""
        least, greatest, values = cone.bounds(lo, hi)
        slope = sign * cone.slopes(values, signed=True)
        best.offer(np.where(slope > 0, hi, lo))
        width = hi - lo
        effect = cone.slopes(values, signed=False) * width
        score = np.where(width > 0, effect, -1.0)  # never split a point, whatever the guess says
        split = score.argmax(axis=1) if score.shape[1] else np.zeros(len(lo), dtype=np.int64)
        return cls(lo, hi, greatest if sign > 0 else -least, split)

    def __len__(self) -> int:
        return len(self.upper)

    def select(self, which: NDArray[Any]) -> _Boxes:
        return _Boxes(*(values[which] for values in vars(self).values()))

    def joined(self, other: _Boxes) -> _Boxes:
        pairs = zip(vars(self).values(), vars(other).values())
        return _Boxes(*map(np.concatenate, pairs))

    def halves(self, step: int) -> tuple[IntArray, IntArray]:
        """lo, hi [2 n, d] of the boxes cut in two; no code is lost between the halves."""
        i = np.arange(len(self))
        lo, hi = self.lo[i, self.split], self.hi[i, self.split]
        middle = lo + (hi - lo) // step // 2 * step
        left_hi, right_lo = self.hi.copy(), self.lo.copy()
        left_hi[i, self.split] = middle
        right_lo[i, self.split] = middle + step
        return np.concatenate([self.lo, right_lo]), np.concatenate([left_hi, self.hi])


def _highest(uppers: IntArray, n: int) -> NDArray[np.int64]:
    if len(uppers) <= n:
        return np.arange(len(uppers))
    return np.asarray(np.argpartition(-uppers, n)[:n])


@dataclass
class Search:
    """The searching rungs of `certify`: refines one node after another until the deadline."""

    network: Network
    domain: Domain
    deadline: float
    solver: bool
    data: NDArray[np.int64] | None
    seed: int
    progress: Progress | None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        shapes = self.network.shapes
        self._done = 0
        self._total = sum(2 * prod(shapes[node.name]) for node in self.network.accumulators())
        self._witnesses: dict[tuple[str, tuple[int, ...]], NDArray[np.int64]] = {}

    def refine(self, node: Node, known: dict[str, Bounds]) -> None:
        """Tighten the bounds of one accumulating node in place.

        Args:
            known: the bounds of this node and of all before it.
        """
        ranges = {name: b.range for name, b in known.items()}
        bounds = known[node.name]
        for index in np.ndindex(bounds.lo.shape):
            for end in (LO, HI):
                if bounds.status[(end, *index)] != Status.EXACT:
                    self._refine_end(node, bounds, ranges, index, end)
                self._done += 1
            if self.progress is not None:
                self.progress(f"searching {node.name}", self._done, self._total)

    def store_witnesses(self, bounds: dict[str, Bounds], pool: Witnesses) -> None:
        """Enter the inputs found into the pool."""
        for (name, position), codes in self._witnesses.items():
            bounds[name].witness[position] = pool.add(codes)

    def _refine_end(
        self,
        node: Node,
        bounds: Bounds,
        ranges: dict[str, Interval],
        index: tuple[int, ...],
        end: int,
    ) -> None:
        position = (end, *index)
        bounds.status[position] = Status.UNKNOWN
        now = time.monotonic()
        if now >= self.deadline:
            return
        try:
            cone = Cone(self.network, ranges, node.name, index)
        except NotCovered:  # a kind of the user's own that nobody can look into, or too large
            return
        sign = 1 if end == HI else -1
        proved = sign * int(bounds.end(end)[index])
        found = self._maximise(cone, sign, proved)
        bounds.set_end(end, index, sign * found.bound)
        if found.bound < proved:
            bounds.proof[position] = found.proof
        if found.exact:
            assert found.x is not None
            bounds.status[position] = Status.EXACT
            codes = self.domain.hull.lo.copy()
            codes.reshape(-1)[cone.inputs] = found.x
            self._witnesses[node.name, position] = codes

    def _until(self, share: int) -> float:
        """A deadline that leaves the others their part of the time that is left."""
        now = time.monotonic()
        others = max(1, min(self._total - self._done, _SHARES))
        return now + (self.deadline - now) / (others * share)

    def _maximise(self, cone: Cone, sign: int, proved: int) -> Found:
        lo, hi = neuron_box(cone, self.domain)
        step = self.domain.step
        points = self.domain.sample(_STARTS, self.rng).reshape(_STARTS, -1)[:, cone.inputs]
        if self.data is not None:
            data = self.data.reshape(len(self.data), -1)[:, cone.inputs]
            order = np.argsort(-sign * cone.forward(data), kind="stable")
            points = np.concatenate([data[order[:2]], points])
        starts = climb(cone, lo, hi, sign, points, step=step, deadline=self._until(4))
        deadline = self._until(2 if self.solver else 1)
        found = maximise(cone, lo, hi, sign, step=step, starts=starts, deadline=deadline)
        if found.bound >= proved:
            found = Found(found.best, found.x, proved, Proof.INTERVAL)
        if found.exact or not self.solver:
            return found
        return tighten(cone, lo, hi, sign, found, step=step, deadline=self._until(1))
