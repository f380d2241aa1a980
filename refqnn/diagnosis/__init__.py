"""Who is right?  The deviation that turns our integers into another implementation's.

deviation   what a deviation is, and a node with some of them in force
forms       thresholds as scales, offsets and roundings
fits        deviations with constants of their own
catalogue   all of them, one line each
doubts      what the given values do not tell
dump        tensors of another implementation
search      alone, then two together
report      what was found
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator.arguments import seconds, the_network
from refqnn.arithmetic import IntArray
from refqnn.diagnosis.catalogue import with_roundings
from refqnn.diagnosis.deviation import Deviation, distinct
from refqnn.diagnosis.doubts import stuck
from refqnn.diagnosis.dump import Dump, as_array, tensors
from refqnn.diagnosis.report import Applied, Diagnosis, Explanation, Finding
from refqnn.diagnosis.search import Part, explained
from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network, diff
from refqnn.rounding import Rounding

CATALOGUE = with_roundings()

__all__ = ["CATALOGUE", "Applied", "Deviation", "Diagnosis", "Explanation", "Finding", "diagnose"]


def diagnose(
    network: Network,
    dump: Dump,
    inputs: ArrayLike | None = None,
    *,
    names: Mapping[str, str] | None = None,
    layout: str | None = None,
    rounding: Rounding | str | None = None,
    catalogue: Sequence[Deviation] | None = None,
    profiles: Mapping[str, Network] | None = None,
    budget_s: float | None = 60.0,
) -> Diagnosis:
    """Where does another implementation part from ours, and what does it do otherwise?

    Args:
        network: the integer program that both should compute.
        dump: integers of the other one by name, [n, *shape] each: a mapping, a .npz file, or a
            folder of .npy files.  Any values of the program: some layers, or the output alone.
        inputs: codes [n, *input_shape]; floats go through the network's own input quantizer.  Where
            the dump holds "input" too, they are the same.
        names: their name -> ours.
        layout: the order of the axes in the dump, such as "NHWC", as in `Network.diff`; where none
            is given it is ours, "NCHW", or with the channels last if the shape of a tensor says so.
        rounding: the mode that the network's codes were made with, where it is known: thresholds
            alone leave it open, and with it what another mode would give.
        catalogue: the deviations to try; `CATALOGUE` by default.
        profiles: the same program as others compute it, by their names: the runtimes of a TFLite
            model (`refqnn.tflite.diagnose_dump`).  Values that carry the same name and shape there
            mean the same.
        budget_s: seconds for pairs of deviations, for each value that parts; None for no limit.

    Every given value is computed from the given values before it.  Where it parts, single
    deviations are tried at every node in between, then (where none will do) pairs; what is said to
    explain it reproduces every given integer of it.  Several explanations mean that these samples
    do not tell them apart.  Values that are not given are computed on with the first explanation.
    A profile explains a value that it computes from the given values before it; which of them do is
    told of equal values too (`Diagnosis.profiles`).

    Raises: InvalidArgument, where nothing given can be computed from what else is, too;
        InvalidType, ShapeMismatch, FileFormatError.

    >>> from refqnn import IntFormat, Linear, Node, Requantize
    >>> fc1 = Node("fc1", Linear([[7, -2], [1, 3]], [40, -9]))
    >>> net = Network([fc1], input_shape=(2,), input_format=IntFormat(4, signed=False))
    >>> codes = np.array([[i, 15 - i * i % 16] for i in range(16)])
    >>> print(diagnose(net, {"fc1": codes @ fc1.op.weight.T}, codes))  # a bias forgotten
    fc1[0, 0]: expected 10, got -30; 32 of 32 values of this node differ
      explained by (all 32 values reproduced, 32 of them wrong here)
        fc1: it adds no bias [bias_dropped]
    equal: none
    """
    the_network(network)
    given, notes = tensors(network, dump, names, layout)
    if inputs is not None:
        given = {INPUT: _codes(network, inputs, given.get(INPUT)), **given}
    if INPUT in given:
        given[INPUT] = network.check_codes(given[INPUT])
    _check_samples(given)
    budget = seconds(budget_s)
    if catalogue is None:
        catalogue = CATALOGUE if rounding is None else with_roundings(Rounding.of(rounding))
    if not isinstance(catalogue, Sequence) or not all(isinstance(d, Deviation) for d in catalogue):
        raise InvalidType(mismatch("catalogue", repr(catalogue), "a list of Deviation"))
    found = _Walk(network, given, catalogue, budget, _same_program(network, profiles))
    found.walk()
    if not found.equal and not found.findings:
        expected = 'a value beside what it is computed from: the name "input" too, or inputs='
        raise InvalidArgument(mismatch("dump", f"names {sorted(given)}", expected))
    return Diagnosis(
        tuple(found.findings), tuple(found.equal), tuple(found.unchecked), notes, found.follow
    )


def _same_program(
    network: Network, profiles: Mapping[str, Network] | None
) -> Mapping[str, Network]:
    if not isinstance(profiles or {}, Mapping):
        raise InvalidType(mismatch("profiles", repr(profiles), "a mapping, name -> Network"))
    for name, other in (profiles or {}).items():
        the_network(other)
        if other.input_shape != network.input_shape:
            got = f"input shape {other.input_shape}"
            raise ShapeMismatch(mismatch(f"profiles[{name!r}]", got, f"{network.input_shape}"))
    return profiles or {}


def _codes(network: Network, inputs: ArrayLike, given: IntArray | None) -> IntArray:
    samples = as_array(inputs, "inputs")
    codes = network.quantize_input(samples) if samples.dtype.kind == "f" else samples
    if given is not None and not np.array_equal(codes, given):
        raise InvalidArgument(mismatch("inputs", "other codes", 'those of the dump\'s "input"'))
    return codes


def _check_samples(given: Mapping[str, IntArray]) -> None:
    counts = {name: len(values) if values.ndim else 0 for name, values in given.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ShapeMismatch(mismatch("dump", f"samples {counts}", "one count, at least 1"))


class _Walk:
    """The given values in the order of the program, each from what is known before it."""

    def __init__(
        self,
        network: Network,
        given: Mapping[str, IntArray],
        catalogue: Sequence[Deviation],
        budget: float | None,
        profiles: Mapping[str, Network],
    ) -> None:
        self.network, self.given, self.catalogue = network, given, catalogue
        self.profiles = profiles
        self.follow: dict[str, tuple[str, ...]] = {}
        self.budget = float("inf") if budget is None else budget
        self.known: dict[str, IntArray] = {}
        self.findings: list[Finding] = []
        self.equal: list[str] = []
        self.unchecked: list[str] = []

    def walk(self) -> None:
        if INPUT in self.given:
            self.known[INPUT] = self.given[INPUT]
        for node in self.network.nodes:
            if node.name in self.given:
                self._reach(node)

    def _reach(self, target: Node) -> None:
        theirs = self.given[target.name]
        part = _part(self.network, target.name, self.known, theirs)
        if part is None:
            self.unchecked.append(target.name)
        else:
            self._compare(part)
        if theirs.shape[1:] == self.network.shapes[target.name]:
            self.known[target.name] = theirs

    def _following(self, target: str) -> tuple[str, ...]:
        """The profiles that make the given value out of given ones."""
        parts = {name: self._part_of(other, target) for name, other in self.profiles.items()}
        return tuple(name for name, part in parts.items() if part and part.reproduced(()))

    def _part_of(self, other: Network, target: str) -> Part | None:
        known = {n: v for n, v in self.given.items() if other.shapes.get(n) == v.shape[1:]}
        return _part(other, target, known, self.given[target])

    def _implied(self, profile: str, target: str) -> dict[str, IntArray]:
        """Our values on the way to a given one, as a profile computes them."""
        part = self._part_of(self.profiles[profile], target)
        shapes, made = self.network.shapes, part.plain if part else {}
        return {name: v for name, v in made.items() if shapes.get(name) == v.shape[1:]}

    def _compare(self, part: Part) -> None:
        plain = part.plain
        name, expected = part.target, plain[part.target]
        if expected.shape == part.theirs.shape:
            difference = diff({name: expected}, {name: part.theirs})
            differs = expected != part.theirs
        else:
            difference, differs = None, np.ones(part.theirs.shape, dtype=bool)
        wrong = int(differs.sum())
        follow = self._following(name)
        if self.profiles:
            self.follow[name] = follow
        if not wrong:
            self.equal.append(name)
            self.known.update(plain)
            return
        shapes = f"{name}: shape {list(expected.shape)} expected, got {list(part.theirs.shape)}"
        known = [(Applied(name, p, f"computes as {p}"),) for p in follow]
        answer = explained(part, self.catalogue, time.monotonic() + self.budget, known=known)
        self.known.update(answer.values | (self._implied(follow[0], name) if follow else {}))
        finding = Finding(
            name,
            difference or shapes,
            wrong,
            int(part.theirs.size),
            answer.explanations,
            answer.tried,
            answer.exhausted,
            _supporting(part, differs),
            answer.open,
            answer.simplest,
            answer.reasons,
        )
        self.findings.append(finding)


def _supporting(part: Part, differs: NDArray[np.bool_]) -> int:
    """Wrong values in samples that repeat no other and in channels that are not stuck."""
    varying = ~stuck(part.plain[part.target], part.theirs)
    return int(differs[distinct(part.known.values())][:, varying].sum())


def _part(
    network: Network, target: str, known: Mapping[str, IntArray], theirs: IntArray
) -> Part | None:
    """The nodes from known values to a given one; None where an input is missing, or the node."""
    needed, found = {target}, list[Node]()
    for node in reversed(network.nodes):
        if node.name in needed and (node.name not in known or node.name == target):
            needed.update(inputs_of(node))
            found.append(node)
    made = {node.name for node in found}
    if target not in made or not needed <= made | set(known):
        return None
    read = {name for node in found for name in inputs_of(node)} - made
    return Part(tuple(found[::-1]), {name: known[name] for name in read}, theirs)
