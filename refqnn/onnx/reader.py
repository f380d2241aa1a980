"""From an ONNX graph to an integer program: one walk, in topological order.

Each tensor is one of the kinds in `refqnn.onnx.values`.  The network computes what the file says
when every accumulator is exact and every other operator is one float32 operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refqnn.errors import (
    FileFormatError,
    InvalidArgument,
    MissingExtra,
    NotCovered,
    RefqnnError,
    mismatch,
)
from refqnn.formats import IntFormat
from refqnn.graph import INPUT, ancestors
from refqnn.network import Network
from refqnn.onnx.doors import InputDoor, checked_door, format_of, integer_door
from refqnn.onnx.files import (
    attributes,
    describe,
    import_onnx,
    open_model,
    sorted_nodes,
    tensor,
    type_name,
)
from refqnn.onnx.operators import (
    FLOAT_OPERATORS,
    KEEPS_PADDING,
    ON_GRIDS,
    QUANTIZER_DOMAINS,
    REASONS,
    STANDARD,
    TABLE,
    WANTS_CODES,
)
from refqnn.onnx.program import Context, Program, per_channel
from refqnn.onnx.values import (
    Constant,
    Dropped,
    Grid,
    Quantized,
    Real,
    Scaled,
    Value,
    along_channels,
    float32_of,
    fractions_of,
    one,
    uniform,
)
from refqnn.ops import Reshape
from refqnn.quantizers import Dequantizer, Quantizer

__all__ = ["Imported", "InputDoor", "Reader", "read_onnx"]

Array = NDArray[Any]

_NEWEST = 27  # opset of ONNX whose operators are known
_MAX_FOLDED = 2**25  # values of a constant that is computed

# Behind the last accumulator these do not change the integers that come out.
_DROPPED_STEPS = frozenset(("Sigmoid", "Tanh"))
# fmt: off
_AFTER_DROPPED = frozenset((
    "ArgMax", "ArgMin", "Cast", "DequantizeLinear", "Flatten", "Identity", "LogSoftmax",
    "QuantizeLinear", "Reshape", "Softmax", "Squeeze", "TopK", "Unsqueeze",
))

# Evaluated by onnx's reference evaluator when every operand is a constant.
_FOLDED = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Erf", "Exp", "Expand",
    "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Sigmoid", "Sign", "Slice", "Split",
    "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
))
# fmt: on


@dataclass(frozen=True, eq=False)
class Imported:
    """What an ONNX file became.

    Attributes:
        network: the integer program.
        dropped: operators behind the network's output that were left out (softmax, argmax, ...), in
            the words of our messages; the network ends at the values that go into them.
        producer: who wrote the file, as it says.
    """

    network: Network
    dropped: tuple[str, ...] = ()
    producer: str = ""


def read_onnx(model: Any, *, input: InputDoor | None = None, output: str | None = None) -> Imported:
    """Read an ONNX model; see `refqnn.onnx.from_onnx` for arguments and errors.

    Returns: an `Imported`: the network, and what was left out behind its output.
    """
    proto, folder = open_model(model)
    return Reader(proto, folder, input).read(output)


class Reader(Program):
    """The walk and what it has found so far."""

    def __init__(self, model: Any, folder: Path | None, door: InputDoor | None = None) -> None:
        super().__init__()
        self.model = model
        self.folder = folder
        self.graph = model.graph
        self.values: dict[str, Value] = {}
        self.start: str | None = None  # the tensor to begin at, instead of the graph's input
        self.declared: IntFormat | Quantizer | None = None  # the door the caller asked for
        if isinstance(door, Mapping):
            if len(door) != 1:
                raise InvalidArgument(mismatch("input", f"{len(door)} tensors", "one"))
            ((self.start, door),) = door.items()
        if isinstance(door, str) and self.start is None and door in _tensor_names(self.graph):
            self.start = door
        elif door is not None:
            self.declared = checked_door(door)
        versions = {o.domain: o.version for o in model.opset_import}
        self.opset = int(versions.get("", versions.get("ai.onnx", 13)))
        if not 1 <= self.opset <= _NEWEST:
            raise NotCovered(mismatch("model: its opset", self.opset, f"1 to {_NEWEST}"))

    def read(self, output: str | None) -> Imported:
        for proto in self.graph.initializer:
            if proto.name in self.values:
                raise FileFormatError(f"initializer {proto.name!r}: more than one has this name")
            array = tensor(proto, self.folder)
            self.values[proto.name] = Constant(array, declared=type_name(proto.data_type))
        known = [*self.values, *(i.name for i in self.graph.input)]
        order = sorted_nodes(self.graph, known)
        outputs = [output] if output else [o.name for o in self.graph.output]
        needed = _needed(order, outputs, self.start)
        self._open_door(needed)
        for proto in order:
            if needed.intersection(proto.output) - {self.start}:
                self._visit(proto)
        final = self._final_value(output)
        network = self._network(final)
        held = {name: self._held(value) for name, value in self.values.items()}
        network.tensors = {
            name: value for name, value in held.items() if value in network.shapes and name != value
        }
        return Imported(network, tuple(self.dropped), self.model.producer_name)

    def _held(self, value: Value) -> str:
        """The node, or INPUT, whose very values a tensor holds; "" where it holds others."""
        v = value.done if isinstance(value, Quantized) else value
        if not isinstance(v, Scaled) or v.pad or v.zero or not v.is_integers:
            return ""
        return v.node if v.shape == self.shapes[v.node] else ""

    def _visit(self, proto: Any) -> None:
        where = describe(proto)
        inputs = [self.values[name] if name else None for name in proto.input]
        context = Context(proto, where, inputs, attributes(proto, self.folder))
        try:
            results = self._apply(context)
        except RefqnnError as error:
            if str(error).startswith("node ") or isinstance(error, MissingExtra):
                raise
            raise type(error)(f"{where}: {error}") from error
        for name, value in zip(proto.output, results):
            if name and name != self.start:
                self.values[name] = value

    def _apply(self, c: Context) -> list[Value]:
        """The values of a node's outputs."""
        op, domain = c.proto.op_type, c.proto.domain
        if any(isinstance(v, Dropped) for v in c.inputs):
            return self._behind_dropped(c)
        handler = TABLE.get(_kind(op, domain))
        everything_known = all(v is None or isinstance(v, Constant) for v in c.inputs)
        if everything_known and domain in STANDARD and op in _FOLDED:
            if not any(isinstance(v, Grid) for v in c.inputs):
                return self._fold(c)
            if op not in ON_GRIDS and not (op == "Cast" and c.attribute("to", 1) == 1):
                c.inputs = [Constant(v.array) if isinstance(v, Grid) else v for v in c.inputs]
                return self._fold(c)
        if handler is None:
            name = f"{domain}.{op}" if domain else op
            raise NotCovered(
                f"{c.where}: {REASONS.get(op, f'operator {name} is not covered')}{_way_round(c)}"
            )
        if op not in WANTS_CODES:
            codes = self.opened if op in FLOAT_OPERATORS else self.codes
            c.inputs = [codes(v) if isinstance(v, Quantized) else v for v in c.inputs]
        if op not in KEEPS_PADDING:
            c.inputs = [
                self.unpadded(v, c.name) if isinstance(v, Scaled) and v.pad else v for v in c.inputs
            ]
        result = handler(self, c)
        return result if isinstance(result, list) else [result]

    def _behind_dropped(self, c: Context) -> list[Value]:
        op = c.proto.op_type
        if op not in _AFTER_DROPPED:
            raise NotCovered(f"{c.where}: it follows an operator that only an output may have")
        (source, *_) = [v for v in c.inputs if isinstance(v, Dropped)]
        self.dropped.append(c.where)
        return [source] * len(c.proto.output)

    def _fold(self, c: Context) -> list[Value]:
        """A node whose operands are all constants."""
        from onnx.reference import ReferenceEvaluator

        self._check_folded(c)
        helper = import_onnx().helper
        operands = zip(c.proto.input, c.inputs)
        arrays = {n: v.array for n, v in operands if isinstance(v, Constant)}
        inputs = [helper.make_tensor_value_info(n, 0, None) for n in arrays]
        outputs = [helper.make_tensor_value_info(n, 0, None) for n in c.proto.output]
        graph = helper.make_graph([c.proto], "fold", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(None, arrays)
        except Exception as error:  # the evaluator's, on operands that make no sense to it
            raise FileFormatError(f"{c.where}: onnx cannot compute it ({error!r})") from error
        return [Constant(np.asarray(r)) for r in results]

    def _check_folded(self, c: Context) -> None:
        """A small file must not unfold into a large constant."""
        arrays = [v.array for v in c.inputs if isinstance(v, Constant)]
        op = c.proto.op_type
        if op == "Expand":
            shape = [int(d) for d in c.constant(1, "shape").ravel()]
            size = prod(max(d, 1) for d in (*shape, arrays[0].size))
        elif op == "Gather":
            size = prod(max(a.size, 1) for a in arrays)
        elif op == "Concat":
            size = sum(a.size for a in arrays)
        else:
            size = max((a.size for a in arrays), default=0)
            with contextlib.suppress(ValueError):
                size = max(size, prod(np.broadcast_shapes(*(a.shape for a in arrays))))
        if size > _MAX_FOLDED:
            raise NotCovered(f"{c.where}: it computes a constant of {size} values or more")

    def _open_door(self, needed: set[str]) -> None:
        """Register the one input that is not a parameter."""
        onnx = import_onnx()
        info = self._door_info(needed)
        where = f"input {info.name!r}"
        kind = info.type.tensor_type
        dims = [int(d.dim_value) if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        if len(dims) < 2 or min(dims[1:]) < 1:
            expected = "a batch axis first and fixed positive sizes behind it"
            raise NotCovered(mismatch(where, f"shape {dims}", expected))
        self.check_size(dims[1:], where)
        self.batch = dims[0] or 1
        shape = self.input_shape = tuple(dims[1:])
        element = type_name(kind.elem_type)
        floats = kind.elem_type == onnx.TensorProto.FLOAT
        door = self.declared or self._annotation(info.name)
        if not floats:
            door = integer_door(where, element, door)
        if door is None:
            self.values[info.name] = Real(shape, name=info.name)
        elif isinstance(door, IntFormat):
            self.set_input(door, None)
            self.values[info.name] = Scaled(INPUT, shape, one(shape), base=element)
        else:
            self.set_input(door.format, door)
            axis = 1 if door.axis is None else door.axis
            scale = fractions_of(along_channels(np.asarray(door.scale), shape, where, axis))
            zero = Fraction(int(getattr(door, "zero_point", 0)))
            self.values[info.name] = Scaled(INPUT, shape, scale, zero)

    def _door_info(self, needed: set[str]) -> Any:
        """Name, type and shape of the input, or of the tensor to start from."""
        if self.start is None:
            free = [i for i in self.graph.input if i.name not in self.values]
            inputs = [i for i in free if i.name in needed] or free
            if len(inputs) != 1:
                got = [i.name for i in inputs]
                raise NotCovered(
                    f"model: its inputs are {got}; networks of one input are covered: name a "
                    "tensor to start from that everything behind it depends on (input=, --input)"
                )
            return inputs[0]
        if self.start not in needed or self.start in self.values:
            expected = "a tensor that the output depends on, and no parameter"
            raise InvalidArgument(mismatch("input", repr(self.start), expected))
        graph = self.graph
        for infos in (graph.input, graph.value_info, graph.output, _inferred(self.model)):
            for info in infos:
                if info.name == self.start and info.type.tensor_type.shape.dim:
                    return info
        raise NotCovered(f"input {self.start!r}: the file does not tell its shape")

    def _annotation(self, name: str) -> IntFormat | None:
        """The format that a QONNX quantization annotation gives a tensor."""
        for annotation in self.graph.quantization_annotation:
            told = {entry.key: entry.value for entry in annotation.quant_parameter_tensor_names}
            fmt = format_of(told.get("finn_datatype", ""))
            if annotation.tensor_name == name and fmt is not None:
                return replace(fmt, narrow=True) if told.get("narrow") == "1" else fmt
        return None

    def _final_value(self, output: str | None) -> Scaled:
        names = [o.name for o in self.graph.output]
        if output is not None:
            if not output or output not in self.values:
                raise InvalidArgument(mismatch("output", repr(output), f"a tensor, e.g. {names}"))
            names = [output]
        sources: list[Any] = []
        for name in names:
            if name not in self.values:
                raise FileFormatError(f"output {name!r}: nothing makes it")
            value = self.values[name]
            value = value.source if isinstance(value, Dropped) else value
            if all(value is not known for known in sources):
                sources.append(value)
        if len(sources) != 1:
            raise NotCovered(f"model: its outputs are {names}; choose one (output=, --output)")
        (value,) = sources
        if isinstance(value, Quantized):
            value = self.codes(value)
        if not isinstance(value, Scaled):
            got = "a constant" if isinstance(value, Constant) else "a float that is never quantized"
            raise NotCovered(f"output {names[0]!r}: it is {got}")
        while value.steps and value.steps[-1].op in _DROPPED_STEPS:
            self.dropped.append(f"{value.steps[-1].op} at the output")
            value = replace(value, steps=value.steps[:-1])
        return value

    def _network(self, final: Scaled) -> Network:
        if final.pad:
            final = self.unpadded(final, "output")
        dequantizer = None
        if final.integer:
            final = self.values_of(final)
        else:
            final, scale, offset = self.affine(final, "output", "output")
            if not (final.steps or self.sums_like_differences(final)):
                final = self.centred(final, final.node)
            offset = offset - scale * final.zero
            scale, offset = (uniform(per_channel(p, "output")) for p in (scale, offset))
            if any(s == 0 for s in scale.ravel()):
                raise NotCovered("output: a channel has scale 0, its value does not depend on x")
            dequantizer = Dequantizer(_door(scale), _door(offset))
        node = final.node
        if node == INPUT:
            node = self.emit("output", Reshape(final.shape), (INPUT,))
        return Network(
            ancestors(self.nodes, node),
            input_shape=self.input_shape,
            input_format=self.input_format,
            input_quantizer=self.quantizer,
            output_dequantizer=dequantizer,
            output=node,
        )


def _door(values: Array) -> Array:
    floats = float32_of(values)
    return floats.reshape(()) if floats.size == 1 else floats


def _way_round(c: Context) -> str:
    """How to read the part in front of a node that is not covered."""
    (name, *_) = [n for n, v in zip(c.proto.input, c.inputs) if isinstance(v, Scaled)] or [""]
    return f"; output={name!r} reads the part in front of it" if name else ""


def _kind(op: str, domain: str) -> str:
    """The key of an operator in the dispatch table."""
    if domain in STANDARD:
        return f"qonnx.{op}" if f"qonnx.{op}" in TABLE and op not in TABLE else op
    return f"{'qonnx' if domain in QUANTIZER_DOMAINS else domain}.{op}"


def _tensor_names(graph: Any) -> set[str]:
    made = {name for proto in graph.node for name in proto.output}
    return made | {i.name for i in graph.input} | {i.name for i in graph.initializer}


def _inferred(model: Any) -> Any:
    """What onnx's shape inference tells about the tensors of a model."""
    from onnx import shape_inference

    try:
        return shape_inference.infer_shapes(model).graph.value_info
    except Exception:  # its own errors, and protobuf's: then nothing is known
        return ()


def _needed(order: list[Any], outputs: list[str], start: str | None) -> set[str]:
    """The tensors that the outputs depend on, as far as the start."""
    needed = set(outputs) - {""}
    for proto in reversed(order):
        if needed.intersection(proto.output) - {start}:
            needed.update(name for name in proto.input if name)
    return needed
