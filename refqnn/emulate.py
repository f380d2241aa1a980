"""Emulated accumulators: what hardware of finite width would compute, overflow included.

A sum of products runs through stages, innermost first.  Each stage puts together what the one
before it made (the first: the products of a row, in the stated order): `group` consecutive values
become one, the last group takes what is left, and the last stage takes all.  Inside a group,

    when = "step"    acc = fit(acc + value) for every value, from acc = 0
    when = "end"     acc = fit(sum of the values)

    fit, wrap        the integer congruent to acc modulo 2**width in [q_min, q_max]
    fit, saturate    min(max(acc, q_min), q_max)
    fit, error       acc, or AccumulatorOverflow where it lies outside

with [q_min, q_max] = [-2**(width-1), 2**(width-1) - 1] when signed, else [0, 2**width - 1].  The
bias is a value of the last stage, the first or the last one, or is added exactly behind it.

Single products are exact unless a stage with group 1 says otherwise.  Wrapping gives the same at
every step as at the end; saturation does not, and depends on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.arithmetic import add, magnitude, to_int64_if_possible
from refqnn.errors import AccumulatorOverflow, InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.formats import is_integer
from refqnn.limits import at_a_time
from refqnn.ops.base import Ends, IntArray, SumOp

__all__ = [
    "PRESETS",
    "Accumulator",
    "Accumulators",
    "Emulated",
    "Stage",
    "Sums",
    "accumulator_of",
    "check_names",
    "check_width",
]

_OVERFLOWS = ("wrap", "saturate", "error")
_WHEN = ("step", "end")
_ORDERS = ("forward", "reverse", "channels_last")
_BIASES = ("first", "last", "outside")


def _chosen(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidArgument(mismatch(name, repr(value), f"one of {', '.join(choices)}"))


def check_width(name: str, bits: object) -> None:
    """Raises: InvalidType, InvalidArgument for what is no width of a register."""
    if not is_integer(bits):
        raise InvalidType(mismatch(name, repr(bits), "an integer from 1 to 64"))
    if not 1 <= bits <= 64:
        raise InvalidArgument(mismatch(name, bits, "an integer from 1 to 64"))


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidType(mismatch(name, repr(value), "True or False"))


@dataclass(frozen=True)
class Stage:
    """One register of an accumulator.

    Args:
        width: bits, 1 to 64.
        signed: two's complement, or unsigned.
        group: how many values of the stage before make one sum; None for all, in the last stage.
        overflow: "wrap", "saturate", or "error": raise AccumulatorOverflow.
        when: at every "step" of the sum, or once at the "end" (an adder tree of enough bits).

    Raises: InvalidType, InvalidArgument.

    >>> print(Stage(16, group=2, overflow="saturate", when="end"))
    2 -> int16, saturate at the end
    """

    width: int
    signed: bool = True
    group: int | None = None
    overflow: Literal["wrap", "saturate", "error"] = "wrap"
    when: Literal["step", "end"] = "step"

    def __post_init__(self) -> None:
        check_width("width", self.width)
        _flag("signed", self.signed)
        if self.group is not None and not is_integer(self.group):
            raise InvalidType(mismatch("group", repr(self.group), "a positive integer or None"))
        if self.group is not None and self.group < 1:
            raise InvalidArgument(mismatch("group", self.group, "a positive integer or None"))
        _chosen("overflow", self.overflow, _OVERFLOWS)
        _chosen("when", self.when, _WHEN)

    def __str__(self) -> str:
        taken = "all" if self.group is None else str(self.group)
        when = "at the end" if self.when == "end" else "at every step"
        return f"{taken} -> {'' if self.signed else 'u'}int{self.width}, {self.overflow} {when}"

    @property
    def ends(self) -> Ends:
        """(q_min, q_max)."""
        q_min = -(2 ** (int(self.width) - 1)) if self.signed else 0
        return q_min, q_min + int(2 ** int(self.width)) - 1

    def holds(self, low: IntArray, high: IntArray) -> NDArray[np.bool_]:
        """Does the register hold everything from low to high?  Elementwise."""
        q_min, q_max = self.ends
        return np.asarray((low >= q_min) & (high <= q_max), dtype=bool)

    def fit(self, acc: IntArray) -> IntArray:
        """acc as the register holds it.  Raises: AccumulatorOverflow."""
        q_min, q_max = self.ends
        if self.overflow == "error":
            outside = acc[(acc < q_min) | (acc > q_max)]
            if outside.size:
                expected = f"{self.width} bits, [{q_min}, {q_max}]"
                raise AccumulatorOverflow(mismatch("accumulator", outside.flat[0], expected))
            return acc
        if self.overflow == "saturate":
            return np.asarray(np.minimum(np.maximum(acc, q_min), q_max))
        return np.asarray((acc - q_min) % 2**self.width + q_min)

    def sums(self, values: IntArray) -> Sums:
        """The sums of groups of values [..., m], m >= 1."""
        m = values.shape[-1]
        size = m if self.group is None else min(m, int(self.group))
        whole = m - m % size
        groups = values[..., :whole].reshape(*values.shape[:-1], -1, size)
        made = [self._sums(groups), *([self._sums(values[..., None, whole:])] if whole < m else [])]
        parts = zip(*((s.acc, s.least, s.greatest) for s in made))
        return Sums(*(np.concatenate(part, axis=-1) for part in parts))

    def _sums(self, groups: IntArray) -> Sums:
        """The sums of [..., groups, size]."""
        mass = int(magnitude(groups).max(initial=0)) * groups.shape[-1]
        if mass + 2**self.width >= 2**63:
            groups = groups.astype(object)
        if self.when == "end":
            total = np.asarray(groups.sum(axis=-1))
            return Sums(self.fit(total), total, total)
        least = greatest = groups[..., 0]
        acc = self.fit(least)
        for k in range(1, groups.shape[-1]):
            total = acc + groups[..., k]
            least, greatest = np.minimum(least, total), np.maximum(greatest, total)
            acc = self.fit(total)
        return Sums(acc, least, greatest)


@dataclass(frozen=True)
class Sums:
    """What one stage made of its groups, [..., groups] each.

    Attributes:
        acc: the values that go on.
        least, greatest: extremes of what was fitted: overflow is where they leave the register.
    """

    acc: IntArray
    least: IntArray
    greatest: IntArray


@dataclass(frozen=True)
class Accumulator:
    """An accumulator as a machine has it, for `Network.trace(codes, accumulator=...)`.

    Args:
        stages: innermost first; every one but the last has a `group`, the last has none.
        order: of the products of a row: "forward" as `SumOp.terms` lists them (a convolution:
            channel by channel, kernel rows in it), "reverse", "channels_last" (kernel position by
            position, all channels in it, as NHWC kernels run), or the places of all products as a
            tuple.
        bias: the "first" or the "last" value of the last stage, or "outside": added exactly.

    Raises: InvalidType, InvalidArgument.

    A product or bias that the machine would not hold is the business of the formats, not of this.

    >>> pairs = Accumulator([Stage(5, group=2, overflow="saturate"), Stage(8)])
    >>> print(pairs)
    2 -> int5, saturate at every step; all -> int8, wrap at every step; bias last
    >>> from refqnn import IntFormat, Linear, Network, Node
    >>> net = Network([Node("fc", Linear([[3, 1, -1]], [100]))], input_shape=(3,),
    ...               input_format=IntFormat(3, signed=False))
    >>> net.trace([[7, 7, 2]], accumulator=pairs)["fc"].tolist()  # 21 -> 15, then -2, then 100
    [[113]]
    """

    stages: Sequence[Stage]
    order: Literal["forward", "reverse", "channels_last"] | Sequence[int] = "forward"
    bias: Literal["first", "last", "outside"] = "last"

    def __post_init__(self) -> None:
        stages, order = self.stages, self.order
        if not isinstance(stages, Sequence) or not all(isinstance(s, Stage) for s in stages):
            raise InvalidType(mismatch("stages", repr(stages), "a list of Stage"))
        if not stages or None in [s.group for s in stages[:-1]] or stages[-1].group is not None:
            expected = "a group in every stage but the last, and none there"
            raise InvalidArgument(mismatch("stages", [s.group for s in stages], expected))
        object.__setattr__(self, "stages", tuple(stages))
        if isinstance(order, str):
            _chosen("order", order, _ORDERS)
        elif not isinstance(order, Sequence) or not all(is_integer(i) for i in order):
            raise InvalidType(mismatch("order", repr(order), "a name or a list of places"))
        elif sorted(order) != list(range(len(order))):
            raise InvalidArgument(mismatch("order", repr(order), "each place from 0 on once"))
        else:
            object.__setattr__(self, "order", tuple(order))
        _chosen("bias", self.bias, _BIASES)

    def __str__(self) -> str:
        order = [] if self.order == "forward" else [f"order {self.order}"]
        return "; ".join([*map(str, self.stages), *order, f"bias {self.bias}"])

    @classmethod
    def preset(cls, name: str, **parameters: int) -> Accumulator:
        """The accumulator of a machine or library in use.

        Args:
            name: one of `refqnn.emulate.PRESETS`; help() of an entry says in words what the machine
                does and where that is written.
            parameters: what some leave open: "finn" needs width and takes simd.

        Raises: InvalidArgument for an unknown name or parameter.

        >>> print(Accumulator.preset("x86_maddubs").stages[0])
        2 -> int16, saturate at the end
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise InvalidArgument(mismatch("name", repr(name), f"one of {', '.join(PRESETS)}"))
        known = signature(PRESETS[name]).parameters
        needed = {key for key, value in known.items() if value.default is value.empty}
        if not needed <= set(parameters) <= set(known):
            raise InvalidArgument(mismatch("parameters", sorted(parameters), f"{list(known)}"))
        return PRESETS[name](**parameters)

    def accumulate(self, op: SumOp, x: tuple[IntArray, ...]) -> IntArray:
        """The node's outputs for operands [n, *shape], [n, *out_shape].

        Raises: AccumulatorOverflow where a stage has overflow "error"; ShapeMismatch for an order
            of another number of products.
        """
        per_sample = int(np.prod(op.terms(*(v[:1] for v in x)).shape))
        block, n = at_a_time(per_sample), len(x[0])
        blocks = [tuple(v[i : i + block] for v in x) for i in range(0, n, block)]
        return np.concatenate([self.run(op, part)[0] for part in blocks])

    def run(self, op: SumOp, x: tuple[IntArray, ...]) -> tuple[IntArray, list[Sums]]:
        """The node's outputs, and what every stage did."""
        values, bias = self.ordered(op, x)
        history = []
        for stage in self.stages:
            if stage is self.stages[-1] and bias is not None and self.bias != "outside":
                values = np.concatenate(
                    [bias, values] if self.bias == "first" else [values, bias], axis=-1
                )
            history.append(stage.sums(values))
            values = history[-1].acc
        result = values[..., 0]
        if bias is not None and self.bias == "outside":
            result = add(result, bias[..., 0])
        return to_int64_if_possible(result), history

    def ordered(self, op: SumOp, x: tuple[IntArray, ...]) -> tuple[IntArray, IntArray | None]:
        """Products [n, *out_shape, K] in this order, and the bias [n, *out_shape, 1] if any."""
        terms = op.terms(*x)
        bias = None
        if getattr(op, "bias", None) is not None:
            terms, bias = terms[..., :-1], terms[..., -1:]
        return terms[..., self.places(terms.shape[-1], op.term_channels)], bias

    def places(self, products: int, channels: int) -> NDArray[np.int64]:
        """Where in `SumOp.terms` the first, second, ... product stands, [products].

        Args:
            channels: how many input channels the products belong to, one channel behind the other.

        Raises: ShapeMismatch.
        """
        numbers = np.arange(products)
        if self.order == "reverse":
            return numbers[::-1]
        if self.order == "channels_last":
            return numbers.reshape(channels, -1).T.ravel()
        if self.order == "forward":
            return numbers
        if len(self.order) != products:
            raise ShapeMismatch(mismatch("order", f"{len(self.order)} places", f"{products}"))
        return np.array(self.order, dtype=np.int64)


@dataclass(frozen=True)
class Emulated:
    """One register of finite width, for `Network.trace(codes, accumulator=...)`.

    Args:
        bits: width from 1 to 64; or node name -> width, other nodes staying exact.
        signed, overflow, when: as for `Stage`.
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
        for bits in self.bits.values() if isinstance(self.bits, Mapping) else (self.bits,):
            check_width("bits", bits)
        _flag("signed", self.signed)
        _chosen("overflow", self.overflow, _OVERFLOWS)
        _chosen("when", self.when, _WHEN)
        _chosen("order", self.order, ("forward", "reverse", "bias_first"))

    def width(self, node: str) -> int | None:
        """The width of a node's accumulator; None where it is exact."""
        return self.bits.get(node) if isinstance(self.bits, Mapping) else self.bits

    def of(self, node: str) -> Accumulator | None:
        """The accumulator of a node, in one stage; None where it is exact."""
        bits = self.width(node)
        if bits is None:
            return None
        stage = Stage(bits, self.signed, None, self.overflow, self.when)
        order: Literal["forward", "reverse"] = "reverse" if self.order == "reverse" else "forward"
        return Accumulator([stage], order, "last" if self.order == "forward" else "first")


Accumulators = Accumulator | Emulated | Mapping[str, Accumulator]
"""One for all nodes that sum, or node name -> accumulator, other nodes staying exact."""


def check_names(accumulators: object, nodes: Sequence[str]) -> None:
    """Raises: InvalidArgument for a mapping that names something else than one of these nodes."""
    named = accumulators.bits if isinstance(accumulators, Emulated) else accumulators
    if isinstance(named, Mapping) and (others := [name for name in named if name not in nodes]):
        expected = f"nodes that sum: out of {list(nodes)}"
        raise InvalidArgument(mismatch("accumulator", f"one for {others}", expected))


def accumulator_of(accumulators: Accumulators, node: str) -> Accumulator | None:
    """The accumulator of a node; None where it is exact.  Raises: InvalidType."""
    if isinstance(accumulators, Accumulator):
        return accumulators
    if isinstance(accumulators, Emulated):
        return accumulators.of(node)
    found: Any = accumulators.get(node) if isinstance(accumulators, Mapping) else accumulators
    if found is not None and not isinstance(found, Accumulator):
        expected = "an Accumulator, an Emulated, or node name -> Accumulator"
        raise InvalidType(mismatch("accumulator", repr(accumulators), expected))
    return found


# --- accumulators in use ------------------------------------------------------------------------
#
# A lane or register is described, not the lanes beside it.  Where sums wrap at one width from some
# stage on, their order does not matter (they are congruent), so vector lanes that are added at the
# end count as the same register.


def _int32() -> Accumulator:
    """Every product into one 32-bit register, wrapping: plain C on int32_t (as compiled), and what
    ONNX MatMulInteger and ConvInteger compute."""
    return Accumulator([Stage(32)])


def _x86_maddubs() -> Accumulator:
    """VPMADDUBSW, VPMADDWD with ones, VPADDD: two products of unsigned and signed bytes make an
    int16 that *saturates*, two of these an int32, and int32 sums wrap.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW and PMADDWD;
    int8 kernels for SSSE3, AVX2 and AVX-512 without VNNI.  Weights of seven bits cannot saturate:
    2 * 255 * 64 < 2**15.
    """
    pairs = Stage(16, group=2, overflow="saturate", when="end")
    return Accumulator([pairs, Stage(32, group=2, when="end"), Stage(32)], bias="first")


def _x86_vnni() -> Accumulator:
    """VPDPBUSD: four products of unsigned and signed bytes are added to an int32, which wraps.

    Software Developer's Manual, volume 2, VPDPBUSD.
    """
    return Accumulator([Stage(32, group=4, when="end"), Stage(32)], bias="first")


def _x86_vnni_saturating() -> Accumulator:
    """VPDPBUSDS: four products are added to an int32 in one sum, which saturates.

    Software Developer's Manual, volume 2, VPDPBUSDS.  For one lane; the lanes' sum wraps.
    """
    fours = Stage(32, group=4, when="end")  # at most 4 * 2**15: it always fits
    return Accumulator([fours, Stage(32, overflow="saturate")], bias="first")


def _arm_smlad() -> Accumulator:
    """SMLAD: two products of int16 are added to an int32, which wraps (and sets the Q flag).

    Armv7-M Architecture Reference Manual, SMLAD; Armv8-M with the DSP extension.
    """
    return Accumulator([Stage(32, group=2, when="end"), Stage(32)], bias="first")


def _arm_sdot() -> Accumulator:
    """SDOT, UDOT: four products of bytes are added to an int32 lane, which wraps.

    Arm Architecture Reference Manual for A-profile, SDOT (vector).
    """
    return Accumulator([Stage(32, group=4, when="end"), Stage(32)], bias="first")


def _cmsis_nn_s8() -> Accumulator:
    """Convolutions and fully connected layers of int8: an int32 that begins with the bias and
    wraps; kernel positions outside, channels inside.

    CMSIS-NN, arm_nn_mat_mult_nt_t_s8, arm_nn_vec_mat_mult_t_s8.
    """
    return Accumulator([Stage(32)], "channels_last", "first")


def _cmsis_nn_s16() -> Accumulator:
    """Activations of int16: int32 for 512 products by SMLAD, then int64, the bias at the end.

    CMSIS-NN, arm_nn_vec_mat_mult_t_s16 with the DSP extension (MAX_COL_COUNT).  The library keeps
    the *first* 512 in an int32 and adds all others to the int64 one by one; here all tiles of 512
    are int32, which is the same up to 512 products and more cautious behind them.
    """
    tiles = Stage(32, group=512)
    return Accumulator([tiles, Stage(64)], "channels_last", "last")


def _finn(width: int, simd: int = 1) -> Accumulator:
    """A matrix-vector unit of FINN: `simd` products at a time into a register of the accumulator
    type, which wraps; channels inside, the bias in the thresholds behind it.

    finn-hlslib, mac.hpp and mvau.hpp: mac() adds `simd` products to a value of the accumulator
    type.  PE, the outputs at a time, changes nothing in a sum.
    """
    return Accumulator([Stage(width, group=simd), Stage(width)], "channels_last", "outside")


PRESETS: dict[str, Callable[..., Accumulator]] = {
    make.__name__.lstrip("_"): make
    for make in (
        *(_int32, _x86_maddubs, _x86_vnni, _x86_vnni_saturating),
        *(_arm_smlad, _arm_sdot, _cmsis_nn_s8, _cmsis_nn_s16, _finn),
    )
}
