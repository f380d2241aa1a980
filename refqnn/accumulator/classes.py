"""certify_class: can a small change of the input codes change the class?

The class is the first index of the greatest output.  Another class j wins over c exactly when

    m[j] = out[j] - out[c] + (1 if j < c else 0) >= 1        (a tie goes to the earlier index)

and a difference of two sums is a sum: its coefficients are the differences of theirs.  So the
question is whether an accumulator of another network can exceed 0, which intervals, enumeration,
box search and the solver answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.accumulator.arguments import generator_seed, seconds, the_network
from refqnn.accumulator.bounds import HI, Proof
from refqnn.accumulator.certificate import certify
from refqnn.accumulator.deciding import decided
from refqnn.accumulator.domain import Domain
from refqnn.display import Shown
from refqnn.errors import (
    CertificateError,
    InvalidArgument,
    InvalidType,
    NotCovered,
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import as_integers, is_integer
from refqnn.graph import Node, inputs_of
from refqnn.network import Network
from refqnn.ops import Concat, Flatten, Linear
from refqnn.ops.base import is_sum, tells

__all__ = ["ClassVerdict", "certify_class"]

_ENUMERATED = 2**26  # values, of all points together: a second's work
_FIRST_LOOK_S = 0.2  # for each rival, before any of them is searched in earnest


@dataclass(frozen=True, eq=False)
class ClassVerdict(Shown):
    """Does the class stay what it is?

    Attributes:
        winner: the class of the input given.
        radius: how far each code may move.
        proved: no input within the radius has another class.
        proofs: what it took.
        witness: an input [*input_shape] within the radius of class `other`, replayed, or None.
        reason: where neither is known, why.
    """

    winner: int
    radius: int
    proved: bool = False
    proofs: tuple[Proof, ...] = ()
    witness: NDArray[np.int64] | None = None
    other: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        within = f"within {self.radius} of every code"
        if self.proved:
            how = ", ".join(proof.label for proof in self.proofs)
            return f"class {self.winner} {within}: proved ({how})"
        if self.witness is not None:
            return f"class {self.winner} becomes {self.other} {within}"
        return f"class {self.winner} {within}: unknown, {self.reason}"


def certify_class(
    network: Network,
    codes: ArrayLike,
    radius: int = 1,
    *,
    budget_s: float | None = 10.0,
    seed: int = 0,
) -> ClassVerdict:
    """Does any input with every code within `radius` of the given one have another class?

    Args:
        network: a classifier: outputs [classes], the class the first index of the greatest.
        codes: one sample, [*input_shape].
        radius: how far each code may move, at least 0; codes stay inside the input format.
        budget_s: seconds for the searches; None for no limit.
        seed: of the random starting points.

    Raises: InvalidArgument for a network of one output or of outputs that are no vector; else as
        `Network.forward`.

    >>> from refqnn import IntFormat, Linear, Network, Node
    >>> net = Network([Node("fc", Linear([[1, 0], [0, 1]]))], input_shape=(2,),
    ...               input_format=IntFormat(3, signed=False))
    >>> print(certify_class(net, [5, 2]))
    class 0 within 1 of every code: proved (exhaustive)
    >>> verdict = certify_class(net, [4, 2])  # 3, 3 is a tie, which the first class wins
    >>> verdict.proved, certify_class(net, [2, 4]).witness.tolist()
    (True, [3, 3])
    """
    the_network(network)
    if not is_integer(radius):
        raise InvalidType(mismatch("radius", repr(radius), "an integer >= 0"))
    if radius < 0:
        raise InvalidArgument(mismatch("radius", radius, "an integer >= 0"))
    given = as_integers(codes, "codes")
    if given.shape != network.input_shape:
        expected = f"one sample, {list(network.input_shape)}"
        raise ShapeMismatch(mismatch("codes", f"shape {list(given.shape)}", expected))
    sample = network.check_codes(given[None])[0]
    budget, rng = seconds(budget_s), np.random.default_rng(generator_seed(seed))
    winner = _class_of(network, sample)
    rivals, differences = _differences(network, winner)
    around, radius = _around(network, sample, int(radius)), int(radius)
    points = around.size * sum(map(prod, differences.shapes.values()))
    certificate = certify(differences, around, "auto" if points <= _ENUMERATED else "interval")
    name = differences.output
    hi = certificate[name].hi
    suspects = sorted(np.flatnonzero(hi > 0).tolist(), key=lambda j: -int(hi[j]))
    proofs = {Proof(p) for p in np.unique(certificate[name].proof[HI]).tolist()}
    end = time.monotonic() + (inf if budget is None else budget)
    open_: list[int] = suspects
    for quick in (True, False):
        left, open_ = open_, []
        for done, j in enumerate(left):
            now = time.monotonic()
            until = now + (end - now) / (len(left) - done)
            until = min(until, now + _FIRST_LOOK_S) if quick else until
            answer = decided(differences, certificate, around, name, (j,), HI, 0, until, rng)
            if isinstance(answer, np.ndarray):
                return _replayed(network, sample, winner, radius, answer)
            if answer is None:
                open_.append(j)
            else:
                proofs.add(answer)
    if open_:
        others = ", ".join(str(rivals[j]) for j in open_)
        return ClassVerdict(winner, radius, reason=f"the time ran out for classes {others}")
    return ClassVerdict(winner, radius, proved=True, proofs=tuple(sorted(proofs)))


def _class_of(network: Network, sample: NDArray[np.int64]) -> int:
    return int(network.forward(sample[None])[0].reshape(-1).argmax())


def _around(network: Network, sample: NDArray[np.int64], radius: int) -> Domain:
    fmt = network.input_format
    reach = min(radius, fmt.q_max - fmt.q_min) // fmt.step * fmt.step
    lo, hi = np.maximum(sample - reach, fmt.q_min), np.minimum(sample + reach, fmt.q_max)
    return Domain.box(network, lo, hi)


def _differences(network: Network, winner: int) -> tuple[list[int], Network]:
    """The other classes, and a network of their m."""
    shape = network.shapes[network.output]
    if max(shape) != prod(shape) or prod(shape) < 2:
        got = f"outputs of shape {list(shape)}"
        expected = "a classifier: a vector of two outputs or more, the greatest of which wins"
        raise InvalidArgument(mismatch("network", got, expected))
    rivals = [j for j in range(prod(shape)) if j != winner]
    out = network[network.output]
    if is_sum(out.op) and tells(out.op, "rows"):
        sources = inputs_of(out)
        shapes = [network.shapes[source] for source in sources]
        rows = out.op.rows(shapes, np.arange(prod(shape)))
        matrix, constant = rows.dense(sum(map(prod, shapes))).astype(object), rows.constant
    else:
        sources = (out.name,)
        matrix = np.eye(prod(shape), dtype=object)
        constant = np.zeros(prod(shape), dtype=object)
    earlier = np.array([j < winner for j in rivals], dtype=object)
    weight = matrix[rivals] - matrix[winner]
    bias = constant[rivals] - constant[winner] + earlier
    if not all(-(2**63) <= v < 2**63 for array in (weight, bias) for v in array.flat):
        raise NotCovered("certify_class: differences of coefficients leave 64 bits")
    prefix = "differences"
    while any(node.name.startswith(prefix) for node in network.nodes):
        prefix += "_"
    flat = [Node(f"{prefix}.{i}", Flatten(), (source,)) for i, source in enumerate(sources)]
    nodes = [
        *network.nodes,
        *flat,
        Node(f"{prefix}.all", Concat(), tuple(node.name for node in flat)),
        Node(prefix, Linear(weight.astype(np.int64), bias.astype(np.int64))),
    ]
    return rivals, Network(
        nodes, input_shape=network.input_shape, input_format=network.input_format
    )


def _replayed(
    network: Network,
    sample: NDArray[np.int64],
    winner: int,
    radius: int,
    witness: NDArray[np.int64],
) -> ClassVerdict:
    other = _class_of(network, witness)
    if other == winner or abs(witness - sample).max() > radius:
        raise CertificateError(
            f"internal error: a witness against class {winner} of network {network.digest} does "
            "not hold; please report it"
        )
    return ClassVerdict(winner, radius, witness=witness, other=other)
