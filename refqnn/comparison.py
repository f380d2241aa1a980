"""Two networks on the same inputs: where do they part first?"""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike

from refqnn.errors import NotCovered, ShapeMismatch, mismatch
from refqnn.formats import IntFormat
from refqnn.graph import INPUT, Node
from refqnn.network import Difference, Network, diff
from refqnn.ops import Role
from refqnn.ops.base import IntArray

__all__ = ["compare", "matching_nodes"]


def compare(a: Network, b: Network, X: ArrayLike) -> Difference | None:
    """The first node where b parts from a on samples X, or None.

    Args:
        X: floats [n, *shape], quantized by each network's own door, or integer codes.

    Nodes are matched by name.  When the networks share no name, the nodes that make codes are
    matched in their order, where shapes and formats agree (accumulators are not: one importer may
    negate the weights of a channel where another does not).  The difference carries a's names.

    Raises: ShapeMismatch when the networks take different samples, NotCovered when nothing but the
        output could be matched and the output's shapes differ; else as `Network.trace`.
    """
    if a.input_shape != b.input_shape:
        expected = f"samples of shape {a.input_shape}"
        raise ShapeMismatch(mismatch("b", f"samples of shape {b.input_shape}", expected))
    trace_a, trace_b = (n.trace(n.codes_of(X)) for n in (a, b))
    pairs = matching_nodes(a, b)
    got: Mapping[str, IntArray] = {mine: trace_b[theirs] for mine, theirs in pairs.items()}
    return diff(trace_a, got, a)


def matching_nodes(a: Network, b: Network) -> dict[str, str]:
    """Name in a -> name in b, for nodes that should hold the same values."""
    names = {node.name for node in b.nodes}
    shared = [node.name for node in a.nodes if node.name in names]
    pairs = {name: name for name in shared if a.shapes[name] == b.shapes[name]}
    if not shared:
        mine, theirs = ([n for n in net.nodes if n.op.role is Role.ELEMENTWISE] for net in (a, b))
        if len(mine) == len(theirs):
            pairs = {
                m.name: t.name
                for m, t in zip(mine, theirs)
                if a.shapes[m.name] == b.shapes[t.name] and _format(m) == _format(t)
            }
    if a.shapes[a.output] == b.shapes[b.output]:
        pairs[a.output] = b.output
    elif not pairs:
        raise NotCovered("compare: the networks have no node of the same name or the same place")
    return {INPUT: INPUT, **pairs}


def _format(node: Node) -> IntFormat | None:
    fmt = getattr(node.op, "format", None)
    return fmt if isinstance(fmt, IntFormat) else None
