"""Emulated accumulators: what hardware of n bits would compute, overflow included.

    when = "step"    acc = fit(acc + term) for every term, in the stated order, from acc = 0
    when = "end"     acc = fit(sum of all terms)

    fit, wrap        the integer congruent to acc modulo 2**bits in [q_min, q_max]
    fit, saturate    min(max(acc, q_min), q_max)
    fit, error       acc, or AccumulatorOverflow where it lies outside

with [q_min, q_max] = [-2**(bits-1), 2**(bits-1) - 1] when signed, else [0, 2**bits - 1].  Single
terms (weight times input) are exact; the sums are narrow.  Wrapping gives the same at every step as
at the end; saturation does not, and depends on the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refqnn.arithmetic import magnitude, sum_last_axis, to_int64_if_possible
from refqnn.errors import AccumulatorOverflow, InvalidArgument, InvalidType, mismatch
from refqnn.formats import is_integer
from refqnn.limits import at_a_time
from refqnn.ops.base import IntArray, SumOp

__all__ = ["Emulated"]

_CHOICES = {
    "overflow": ("wrap", "saturate", "error"),
    "when": ("step", "end"),
    "order": ("forward", "reverse", "bias_first"),
}


@dataclass(frozen=True)
class Emulated:
    """An accumulator of finite width, for `Network.trace(codes, accumulator=...)`.

    Args:
        bits: width from 1 to 64; or node name -> width, other nodes staying exact.
        signed: two's complement, or unsigned.
        overflow: "wrap", "saturate", or "error": raise AccumulatorOverflow.
        when: at every "step" of the sum, or once at the "end".
        order: of the terms: "forward" as `SumOp.terms` lists them (the bias last), "reverse" (the
            bias first, then from the last product to the first), or "bias_first".

    Raises: InvalidType, InvalidArgument.

    >>> from refqnn import IntFormat, Linear, Network, Node
    >>> net = Network([Node("fc", Linear([[1, 1, -1]]))], input_shape=(3,),
    ...               input_format=IntFormat(3, signed=False))
    >>> net.trace([[7, 4, 7]])["fc"].tolist()
    [[4]]
    >>> net.trace([[7, 4, 7]], accumulator=Emulated(4, overflow="saturate"))["fc"].tolist()
    [[0]]
    >>> net.trace([[7, 4, 7]], accumulator=Emulated(4, overflow="wrap"))["fc"].tolist()
    [[4]]
    >>> net.trace([[7, 4, 7]], accumulator=Emulated(4, overflow="error"))
    Traceback (most recent call last):
        ...
    refqnn.errors.AccumulatorOverflow: node 'fc': accumulator: got 11, expected 4 bits, [-8, 7]
    """

    bits: int | Mapping[str, int]
    signed: bool = True
    overflow: Literal["wrap", "saturate", "error"] = "wrap"
    when: Literal["step", "end"] = "step"
    order: Literal["forward", "reverse", "bias_first"] = "forward"

    def __post_init__(self) -> None:
        widths = self.bits.values() if isinstance(self.bits, Mapping) else (self.bits,)
        for bits in widths:
            if not is_integer(bits):
                raise InvalidType(mismatch("bits", repr(bits), "an integer from 1 to 64"))
            if not 1 <= bits <= 64:
                raise InvalidArgument(mismatch("bits", bits, "an integer from 1 to 64"))
        if not isinstance(self.signed, bool):
            raise InvalidType(mismatch("signed", repr(self.signed), "True or False"))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                expected = f"one of {', '.join(choices)}"
                raise InvalidArgument(mismatch(name, repr(getattr(self, name)), expected))

    def width(self, node: str) -> int | None:
        """The width of a node's accumulator; None where it is exact."""
        return self.bits.get(node) if isinstance(self.bits, Mapping) else self.bits

    def accumulate(self, op: SumOp, x: tuple[IntArray, ...], bits: int) -> IntArray:
        """The node's outputs under this accumulator, [n, *out_shape].

        Raises: AccumulatorOverflow when `overflow` is "error".
        """
        per_sample = int(np.prod(op.terms(*(v[:1] for v in x)).shape))
        block = at_a_time(per_sample)
        n = len(x[0])
        blocks = [tuple(v[i : i + block] for v in x) for i in range(0, n, block)]
        return np.concatenate([self._accumulate(op, part, bits) for part in blocks])

    def _accumulate(self, op: SumOp, x: tuple[IntArray, ...], bits: int) -> IntArray:
        terms = self._ordered(op.terms(*x), getattr(op, "bias", None) is not None)
        mass = int(magnitude(terms).max()) * terms.shape[-1]
        if self.when == "end":
            return self._fit(sum_last_axis(terms, mass), bits)
        if mass + 2**bits >= 2**63:
            terms = terms.astype(object)
        acc = np.zeros_like(terms[..., 0])
        for k in range(terms.shape[-1]):
            acc = self._fit(acc + terms[..., k], bits)
        return to_int64_if_possible(acc)

    def _ordered(self, terms: IntArray, has_bias: bool) -> IntArray:
        if self.order == "reverse":
            return terms[..., ::-1]
        if self.order == "bias_first" and has_bias:
            return np.roll(terms, 1, axis=-1)
        return terms

    def _fit(self, acc: IntArray, bits: int) -> IntArray:
        acc = acc.astype(object) if bits >= 63 else acc
        q_min = -(2 ** (bits - 1)) if self.signed else 0
        q_max = q_min + 2**bits - 1
        if self.overflow == "error":
            outside = acc[(acc < q_min) | (acc > q_max)]
            if outside.size:
                expected = f"{bits} bits, [{q_min}, {q_max}]"
                raise AccumulatorOverflow(mismatch("accumulator", outside.flat[0], expected))
            return to_int64_if_possible(acc)
        if self.overflow == "saturate":
            return to_int64_if_possible(np.minimum(np.maximum(acc, q_min), q_max))
        return to_int64_if_possible((acc - q_min) % 2**bits + q_min)
