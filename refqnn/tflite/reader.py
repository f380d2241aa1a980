"""From the graph of a file to a Network: the walk, and what all operators share.

Tensors of a file have the batch first and the channels last; ours have the channels first.  A value
keeps the name of its tensor; steps on the way to it are called after it, with a suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.container import MALFORMED
from refqnn.errors import FileFormatError, NotCovered, mismatch
from refqnn.graph import INPUT, Node
from refqnn.network import Network
from refqnn.ops import Concat, Gather, Lookup, Op, Requantize
from refqnn.ops.base import Interval, Shape
from refqnn.quantizers import Dequantizer, Quantizer
from refqnn.rounding import round_float
from refqnn.tflite.doors import input_door
from refqnn.tflite.files import Model, Operator, Tensor, import_tflite
from refqnn.tflite.profiles import DECLARED, SUMS, Profile
from refqnn.tflite.rescaling import Target, Way

__all__ = ["Imported", "Movement", "Reader", "file_order", "our_order"]

Movement = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True)
class Imported:
    """What a TFLite file became.

    Attributes:
        network: the integer program.
        nodes: index of a tensor in the file -> name of the value that holds it, channels first.
        entry: index of the tensor whose codes come in, channels last.
    """

    network: Network
    nodes: dict[int, str]
    entry: int


def our_order(values: NDArray[Any]) -> NDArray[Any]:
    """[n, ..., channels] as [n, channels, ...]."""
    return np.moveaxis(values, -1, 1) if values.ndim > 2 else values


def file_order(values: NDArray[Any]) -> NDArray[Any]:
    """[n, channels, ...] as [n, ..., channels].

    >>> file_order(np.zeros((5, 3, 8, 9))).shape
    (5, 8, 9, 3)
    """
    return np.moveaxis(values, 1, -1) if values.ndim > 2 else values


class Reader:
    """The walk and what it has found so far."""

    def __init__(self, model: Model, profile: Profile) -> None:
        self.model = model
        self.profile = profile
        self.nodes: list[Node] = []
        self.values: dict[int, str] = {}  # index of a tensor -> name of its value
        self.ranges: dict[str, Interval] = {}
        self._names = {INPUT}

    def read(self, table: dict[str, Callable[[Reader, Operator], None]]) -> Imported:
        """The network.  Raises: NotCovered with the operator's name, FileFormatError."""
        place = "model"
        try:
            entry, start = self._entry()
            door = input_door(entry, self._door_way(entry) if start else "double")
            for op in self.model.operators[start:]:
                if op.kind == "DEQUANTIZE" and op.outputs == self.model.outputs:
                    break
                place = str(op)
                if op.kind not in table:
                    raise NotCovered(_REASONS.get(op.kind, "this operator is not covered"))
                self._check_type(op)
                table[op.kind](self, op)
                self._check(op)
            place = "model"
            return Imported(self._network(entry, door), dict(self.values), entry.index)
        except (NotCovered, FileFormatError) as error:
            raise type(error)(f"{place}: {error}") from None
        except MALFORMED as error:
            raise FileFormatError(f"{place}: malformed ({error!r})") from error

    # --- doors ------------------------------------------------------------------------------

    def _entry(self) -> tuple[Tensor, int]:
        """The tensor of the codes that come in, and the first operator behind it."""
        if len(self.model.inputs) != 1 or len(self.model.outputs) != 1:
            got = f"{len(self.model.inputs)} inputs, {len(self.model.outputs)} outputs"
            raise NotCovered(mismatch("its ends", got, "one of each"))
        (entry,), start = self.model.inputs, 0
        if entry.type == "FLOAT32" and self.model.operators:
            first = self.model.operators[0]
            if first.kind == "QUANTIZE" and first.inputs == (entry,):
                (entry,), start = first.outputs, 1
        shape = _sample(entry)
        self.ranges[INPUT] = Interval.of_format(entry.format, shape)
        self.values[entry.index] = INPUT
        if len(shape) > 1:
            self.add(Gather.of(shape, lambda x: np.moveaxis(x, -1, 0)), [INPUT], entry)
        return entry, start

    def _door_way(self, entry: Tensor) -> Way:
        """How floats become the codes of the entry, where the file says that they do."""
        way = self.profile.ways.get("QUANTIZE", "double")
        return "mixed" if way == "float32" and entry.type == "INT16" else way

    def _network(self, entry: Tensor, door: Quantizer) -> Network:
        (end,) = self.model.outputs
        last = self.model.operators[-1]
        if last.kind == "DEQUANTIZE" and last.outputs == (end,):
            (end,) = (t for t in last.inputs if t is not None)
        if end.index not in self.values:
            raise FileFormatError(f"output {end.name!r}: no operator makes it")
        value = self.values[end.index]
        if value == INPUT:
            raise NotCovered("its output is its input")
        if len(_sample(end)) > 1:
            shape = self.ranges[value].shape
            value = self.step(
                Gather.of(shape, lambda x: np.moveaxis(x, 0, -1)), [value], end, "file order"
            )
        out_scale, out_zero = end.quantizer
        offset = -float(out_scale) * out_zero  # exact in float64
        return Network(
            self.nodes,
            input_shape=_sample(entry),
            input_quantizer=door,
            output_dequantizer=Dequantizer(float(out_scale), offset, precision="float64"),
            output=value,
        )

    # --- nodes ------------------------------------------------------------------------------

    def value(self, tensor: Tensor | None) -> str:
        """The name of an operand's value.  Raises: FileFormatError."""
        if tensor is None or tensor.index not in self.values:
            name = "" if tensor is None else tensor.name
            if tensor is not None and tensor.data is not None:
                raise NotCovered(f"its operand {name!r} is a constant")
            raise FileFormatError(f"nothing makes its operand {name!r} before it")
        return self.values[tensor.index]

    def shape(self, tensor: Tensor) -> Shape:
        """Of the value, channels first."""
        return self.ranges[self.value(tensor)].shape

    def add(self, op: Op, inputs: Sequence[str], tensor: Tensor) -> None:
        """The node whose values are those of a tensor."""
        self.values[tensor.index] = self._node(op, inputs, tensor.name or f"t{tensor.index}")

    def step(self, op: Op, inputs: Sequence[str], tensor: Tensor, what: str) -> str:
        """A node on the way to a tensor."""
        return self._node(op, inputs, f"{tensor.name or f't{tensor.index}'}: {what}")

    def _node(self, op: Op, inputs: Sequence[str], name: str) -> str:
        unique, number = name, 1
        while unique in self._names:
            number += 1
            unique = f"{name} ({number})"
        self._names.add(unique)
        ranges = [self.ranges[i] for i in inputs]
        op.out_shape(*(r.shape for r in ranges))
        self.nodes.append(Node(unique, op, tuple(inputs)))
        self.ranges[unique] = op.out_range(*ranges)
        return unique

    def way(self, op: Operator) -> Way:
        """How an operator rescales its sums."""
        kind, (y, *_) = op.kind, op.outputs
        if "INT16" in {t.type for t in (*op.inputs, y) if t is not None}:  # XNNPACK takes none
            return self._sum_16(op) if kind in SUMS else "double"
        if y.type == "UINT8" and kind == "DEPTHWISE_CONV_2D":
            return "double"  # XNNPACK takes none, and the optimized kernel has no vectors
        return self.profile.ways.get(kind, "double")

    def _sum_16(self, op: Operator) -> Way:
        bias = next((t.type for t in op.inputs[2:] if t is not None and t.data is not None), "")
        declared = getattr(op.options, "QuantizedBiasType", int)()
        if bias in ("", "INT32") and declared == import_tflite().TensorType.INT32:
            bias = DECLARED
        ways = self.profile.sums_16[op.kind]
        if bias not in ways:
            raise NotCovered(f"it is not covered for INT16 with a bias of {bias}")
        return ways[bias]

    def ends(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Least and greatest value of each channel."""
        r = self.ranges[name]
        lo, hi = (v.reshape(len(v), -1) for v in (r.lo, r.hi))
        return lo.min(axis=1), hi.max(axis=1)

    def target(self, op: Operator, activation: int = 0) -> Target:
        """The codes of an operator's output behind its fused activation."""
        (y,) = op.outputs
        scale, zero = y.quantizer
        lo, hi = y.format.q_min, y.format.q_max
        low, high = _activation(activation)
        code = [None if v is None else zero + _quotient(np.float32(v), scale) for v in (low, high)]
        if code[0] is not None:
            lo = min(max(lo, code[0]), hi)
        if code[1] is not None:
            hi = max(min(hi, code[1]), lo)
        return Target(y.format, zero, (lo, hi))

    def function(self, codes: NDArray[np.int64], x: Tensor, y: Tensor) -> Op:
        """A function of every code of x [levels]: thresholds where it never falls."""
        kind = Requantize.from_table if (codes[1:] >= codes[:-1]).all() else Lookup
        return kind(codes[None], x.format.q_min, y.format)

    def table(self, op: Operator, source: str, codes: NDArray[np.int64]) -> None:
        """An operator that is a function of the codes of its first operand."""
        (x, *_), (y,) = op.inputs, op.outputs
        assert x is not None
        self.add(self.function(codes, x, y), [source], y)

    def select(self, y: Tensor, key: NDArray[Any], choices: Mapping[Any, tuple[Op, str]]) -> None:
        """At each position the values of one of several nodes.

        Args:
            key: of the choice [*shape of the values].
            choices: a node without its name, and the value that it reads.
        """
        if len(choices) == 1:
            ((op, source),) = choices.values()
            return self.add(op, [source], y)
        values = [self.step(op, [at], y, f"choice {k}") for k, (op, at) in choices.items()]
        joined = self.step(Concat(), values, y, "choices")
        index = np.arange(key.size).reshape(key.shape)
        for i, k in enumerate(choices):
            index = np.where(key == k, index + i * key.size, index)
        self.add(Gather(index, self.ranges[joined].shape), [joined], y)

    def move(self, source: str, movement: Movement, fill: int = 0) -> Gather | None:
        """What moves the entries of an array [1, ..., channels]; None where nothing moves.

        Args:
            movement: gives positions of the file's order, or -1 for `fill`.
        """
        shape = self.ranges[source].shape
        positions = np.arange(prod(shape)).reshape(1, *shape)
        index = our_order(movement(file_order(positions)))[0]
        if index.shape == shape and np.array_equal(index, positions[0]):
            return None
        return Gather(index, shape, fill)

    def _check_type(self, op: Operator) -> None:
        for y in op.outputs:
            if reason := _NOT_OF.get(y.type, {}).get(op.kind):
                raise NotCovered(f"it is not covered for {y.type}: {reason}")

    def _check(self, op: Operator) -> None:
        for y in op.outputs:
            expected = our_order(np.empty((1, *_sample(y)))).shape[1:]
            if y.index not in self.values or self.shape(y) != expected:
                raise FileFormatError(f"its output {y.name!r} is not of shape {y.shape}")


def _sample(tensor: Tensor) -> Shape:
    """The shape without the batch.  Raises: NotCovered."""
    if len(tensor.shape) < 2:
        expected = "a batch and channels"
        raise NotCovered(mismatch(f"tensor {tensor.name!r}", f"shape {tensor.shape}", expected))
    return tensor.shape[1:]


def _activation(number: int) -> tuple[float | None, float | None]:
    """The ends of a fused activation.  Raises: NotCovered."""
    known: dict[int, tuple[float | None, float | None]] = {
        0: (None, None),
        1: (0.0, None),
        2: (-1.0, 1.0),
        3: (0.0, 6.0),
    }
    if number not in known:
        raise NotCovered(f"its fused activation is number {number}, which has no integer form")
    return known[number]


def _quotient(end: np.float32, scale: np.float32) -> int:
    """Rounded half away.  Raises: NotCovered where the kernels' 32 bits do not hold it."""
    with np.errstate(over="ignore"):
        quotient = round_float(end / scale, "half_away")
    if not abs(quotient) < 2**31:
        got = f"{end} over the scale {scale}"
        raise NotCovered(mismatch("an end of its activation", got, "a quotient of 32 bits"))
    return int(quotient)


_NO_KERNEL = "no kernel computes it"
_NOT_OF = {
    "INT16": {
        "HARD_SWISH": _NO_KERNEL,
        "RELU_N1_TO_1": _NO_KERNEL,
    },
}
_RECURRENT = "it keeps a state from one call to the next"
_REASONS = {
    "SVDF": _RECURRENT,
    "LSTM": _RECURRENT,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _RECURRENT,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _RECURRENT,
    "RNN": _RECURRENT,
    "CUSTOM": "a custom operator; its meaning is not in the file",
    "DEQUANTIZE": "it makes floats in the middle of the model",
}
