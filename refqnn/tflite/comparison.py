"""One model, two runtimes: where do they part first, and does it matter?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from numpy.typing import ArrayLike

from refqnn.graph import inputs_of
from refqnn.network import Difference, Network, diff
from refqnn.ops import Role
from refqnn.ops.base import IntArray
from refqnn.tflite.profiles import Runtime

__all__ = ["Parting", "compare_runtimes", "parting"]


@dataclass(frozen=True)
class Parting:
    """Where two runtimes part, and what becomes of it.

    Attributes:
        first: the first value that differs, in the first tensor that does; its index has the
            channels last, as the file has them.  None where all tensors are equal.
        accumulator: the sum that both take to another code; None where they differ otherwise.
        outputs, values: how many output values differ, and how many there are.
        classes, samples: for how many samples another output is the largest, and how many there
            are.
    """

    first: Difference | None
    accumulator: int | None
    outputs: int
    values: int
    classes: int
    samples: int

    def __str__(self) -> str:
        if self.first is None:
            return f"equal on {self.samples:,} samples"
        acc = "" if self.accumulator is None else f"\naccumulator: {self.accumulator}"
        changed = f"{self.outputs:,} of {self.values:,} outputs differ"
        return f"{self.first}{acc}\n{changed}, and {self.classes:,} of {self.samples:,} classes"


def compare_runtimes(
    model: str | os.PathLike[str] | bytes,
    a: Runtime,
    b: Runtime,
    X: ArrayLike,
    *,
    input: str | None = None,
    output: str | None = None,
) -> Parting:
    """Where runtime b parts from runtime a on samples X [n, ...] of a TFLite model.

    Args:
        X: floats, or integer codes; in the order of the file.
        input, output: as for `from_tflite`.

    Raises: as `from_tflite` and `Network.trace`.
    """
    from refqnn.tflite import from_tflite

    one, other = (from_tflite(model, r, input=input, output=output) for r in (a, b))
    return parting(one, other, X)


def parting(a: Network, b: Network, X: ArrayLike) -> Parting:
    """The same of two networks with nodes of the same names."""
    codes = a.codes_of(X)
    shared = [name for name, shape in a.shapes.items() if b.shapes.get(name) == shape]
    place_of = {name: i for i, name in enumerate(a.shapes)}
    first, acc, outputs, classes = None, None, 0, 0
    unequal: Counter[str] = Counter()
    for start in range(0, len(codes), a.traced_block):
        block = codes[start : start + a.traced_block]
        mine, theirs = a.trace(block), b.trace(block)
        unequal.update({name: int((mine[name] != theirs[name]).sum()) for name in shared})
        ours, got = (v.reshape(len(block), -1) for v in (mine[a.output], theirs[b.output]))
        outputs += int((ours != got).sum())
        classes += int((ours.argmax(axis=1) != got.argmax(axis=1)).sum())
        found = diff(mine, {name: theirs[name] for name in shared}, a)
        if found and (first is None or place_of[found.node] < place_of[first.node]):
            sample, channel, *place = found.index
            acc = _accumulator(a, found, mine)
            first = replace(found, index=(start + sample, *place, channel))
    if first is not None:
        total = len(codes) * prod(a.shapes[first.node])
        first = replace(first, count=unequal[first.node], total=total)
    return Parting(first, acc, outputs, len(codes) * prod(a.shapes[a.output]), classes, len(codes))


def _accumulator(network: Network, found: Difference, values: Mapping[str, IntArray]) -> int | None:
    """What the node reads at this place, where it reads one value."""
    node = network[found.node]
    if node.op.role is not Role.ELEMENTWISE:
        return None
    (source,) = inputs_of(node)
    return int(values[source][found.index])
