"""From an ONNX graph to an integer program: one walk, in topological order.

Each tensor is one of the kinds in `refqnn.onnx.values`.  A quantizer closes the pending float32
steps of a tensor into integer thresholds (`Requantize.from_function`), so the network computes what
the file says when every accumulator is exact and every other operator is one float32 operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
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
    InvalidType,
    MissingExtra,
    NotCovered,
    RefqnnError,
    ShapeMismatch,
    mismatch,
)
from refqnn.formats import BIPOLAR, TERNARY, IntFormat
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network
from refqnn.onnx.files import (
    attributes,
    describe,
    import_onnx,
    open_model,
    sorted_nodes,
    tensor,
)
from refqnn.onnx.operators import (
    MICROSOFT,
    ON_GRIDS,
    QONNX,
    QUANTIZER_DOMAINS,
    REASONS,
    STANDARD,
    WANTS_CODES,
)
from refqnn.onnx.values import (
    Constant,
    Dropped,
    Grid,
    Quantized,
    Real,
    Scaled,
    along_first,
    along_one,
    along_sample,
    float32_of,
    float_thresholds,
    fractions_of,
    one,
    power_of_two,
    recover_grid,
    spread,
    uniform,
    varying_axis,
)
from refqnn.ops import (
    Add,
    Conv1d,
    Conv2d,
    Flatten,
    Interval,
    Linear,
    Lookup,
    Op,
    Reshape,
    SumOp,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import ALWAYS, NEVER, Requantize
from refqnn.quantizers import (
    AffineQuantizer,
    Dequantizer,
    Quantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
)
from refqnn.rounding import Rounding

__all__ = ["Context", "Imported", "InputDoor", "Reader", "format_of", "read_onnx"]

Array = NDArray[Any]

# What numpy, protobuf and Python raise on values that make no sense where they stand.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_TABLE_ENTRIES = 2**22
_EVALUATED = 2**24  # accumulators of a layer at which a function is evaluated to find its changes
_CHUNK = 2**20
_BIT = IntFormat(1, signed=False)
_MAX_SAMPLE = 2**22  # values in one sample of a tensor
_MAX_PRODUCTS = 2**33  # of one layer and one sample
_MAX_FOLDED = 2**25  # values of a constant that is computed
_MAX_BITS = 16  # of an activation: 65,535 thresholds per channel

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


@dataclass(eq=False)
class Context:
    """One ONNX node while it is read."""

    proto: Any
    where: str
    inputs: list[Any]  # kinds of refqnn.onnx.values; None for an empty name
    attributes: dict[str, Any]
    opset: int
    folder: Path | None

    def optional(self, index: int) -> Any:
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int, what: str) -> Array:
        value = self.optional(index)
        if not isinstance(value, Constant):
            got = "nothing" if value is None else "a tensor that depends on the input"
            raise NotCovered(f"{self.where}: got {got} as {what}, expected a constant")
        return value.array

    def optional_constant(self, index: int, what: str) -> Array | None:
        return None if self.optional(index) is None else self.constant(index, what)

    def integers(self, index: int, name: str) -> list[int] | None:
        """A list that older opsets keep in an attribute and newer ones in an input."""
        if name in self.attributes:
            value = self.attributes[name]
            return [int(v) for v in (value if isinstance(value, list) else [value])]
        array = self.optional_constant(index, name)
        return None if array is None else [int(v) for v in array.ravel()]


InputDoor = str | IntFormat | Quantizer | Mapping[str, "str | IntFormat | Quantizer"]
"""What `input=` may be: a tensor's name, a datatype's name, a format, a quantizer, or
{tensor's name: one of the other three}."""


def read_onnx(model: Any, *, input: InputDoor | None = None, output: str | None = None) -> Imported:
    """Read an ONNX model; see `refqnn.onnx.from_onnx` for arguments and errors.

    Returns: an `Imported`: the network, and what was left out behind its output.
    """
    proto, folder = open_model(model)
    try:
        return Reader(proto, folder, input).read(output)
    except RefqnnError:
        raise
    except _MALFORMED as error:
        raise FileFormatError(f"model: malformed ({error!r})") from error


class Reader:
    """The walk and what it has found so far."""

    def __init__(self, model: Any, folder: Path | None, door: InputDoor | None = None) -> None:
        self.model = model
        self.folder = folder
        self.graph = model.graph
        self.values: dict[str, Any] = {}
        self.types: dict[str, str] = {}  # declared element types of constants
        self.nodes: list[Node] = []
        self.ops: dict[str, Op] = {}
        self.feeds: dict[str, tuple[str, ...]] = {}  # inputs of the nodes
        self.uses: dict[str, int] = {}  # how often a name was asked for
        self.ranges: dict[str, Interval] = {}
        self.shapes: dict[str, Shape] = {}
        self.quantizer: Quantizer | None = None
        self.input_format: IntFormat | None = None
        self.input_shape: Shape = ()
        self.dropped: list[str] = []
        self.batch = 1
        self.start: str | None = None  # the tensor to begin at, instead of the graph's input
        self.declared: IntFormat | Quantizer | None = None  # the door the caller asked for
        if isinstance(door, Mapping):
            if len(door) != 1:
                raise InvalidArgument(mismatch("input", f"{len(door)} tensors", "one"))
            ((self.start, door),) = door.items()
        if isinstance(door, str) and self.start is None and door in _tensor_names(self.graph):
            self.start = door
        elif door is not None:
            self.declared = _checked_door(door)
        versions = {o.domain: o.version for o in model.opset_import}
        self.opset = int(versions.get("", versions.get("ai.onnx", 13)))

    # --- the walk ---------------------------------------------------------------------------

    def read(self, output: str | None) -> Imported:
        for proto in self.graph.initializer:
            self.values[proto.name] = Constant(tensor(proto, self.folder))
            self.types[proto.name] = self.type_name(proto.data_type)
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
        return Imported(network, tuple(self.dropped), self.model.producer_name)

    def _visit(self, proto: Any) -> None:
        where = describe(proto)
        context = Context(
            proto,
            where,
            [self.values[name] if name else None for name in proto.input],
            attributes(proto, self.folder),
            self.opset,
            self.folder,
        )
        try:
            results = self._apply(context)
        except RefqnnError as error:
            if str(error).startswith("node ") or isinstance(error, MissingExtra):
                raise
            raise type(error)(f"{where}: {error}") from error
        except _MALFORMED as error:
            raise FileFormatError(f"{where}: malformed node ({error!r})") from error
        for name, value in zip(proto.output, results):
            if name and name != self.start:
                self.values[name] = value
        for a in proto.attribute:
            if proto.op_type == "Constant" and a.name == "value":
                self.types[proto.output[0]] = self.type_name(a.t.data_type)

    def _apply(self, c: Context) -> list[Any]:
        """The values of a node's outputs."""
        op, domain = c.proto.op_type, c.proto.domain
        if any(isinstance(v, Dropped) for v in c.inputs):
            return self._behind_dropped(c)
        if domain in QUANTIZER_DOMAINS or (domain == "" and op in QONNX):
            handler = QONNX.get(op)
        elif domain in ("", "ai.onnx"):
            handler = STANDARD.get(op)
        elif domain == "com.microsoft":
            handler = MICROSOFT.get(op)
        else:
            handler = None
        everything_known = all(v is None or isinstance(v, Constant) for v in c.inputs)
        if everything_known and domain in ("", "ai.onnx") and op in _FOLDED:
            if not any(isinstance(v, Grid) for v in c.inputs):
                return self._fold(c)
            if op not in ON_GRIDS:
                c.inputs = [Constant(v.array) if isinstance(v, Grid) else v for v in c.inputs]
                return self._fold(c)
        if handler is None:
            name = f"{domain}.{op}" if domain else op
            raise NotCovered(
                f"{c.where}: {REASONS.get(op, f'operator {name} is not covered')}{_way_round(c)}"
            )
        if op not in WANTS_CODES:
            c.inputs = [self.codes(v) if isinstance(v, Quantized) else v for v in c.inputs]
        result = handler(self, c)
        return result if isinstance(result, list) else [result]

    def _behind_dropped(self, c: Context) -> list[Any]:
        op = c.proto.op_type
        if op not in _AFTER_DROPPED:
            raise NotCovered(f"{c.where}: it follows an operator that only an output may have")
        (source, *_) = [v for v in c.inputs if isinstance(v, Dropped)]
        self.dropped.append(c.where)
        return [source] * len(c.proto.output)

    def _fold(self, c: Context) -> list[Any]:
        """A node whose operands are all constants."""
        from onnx.reference import ReferenceEvaluator

        self._check_folded(c)
        helper = import_onnx().helper
        arrays = {n: v.array for n, v in zip(c.proto.input, c.inputs) if v is not None}
        inputs = [helper.make_tensor_value_info(n, 0, None) for n in arrays]
        outputs = [helper.make_tensor_value_info(n, 0, None) for n in c.proto.output]
        graph = helper.make_graph([c.proto], "fold", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, arrays)
        return [Constant(np.asarray(r)) for r in results]

    def _check_folded(self, c: Context) -> None:
        """A small file must not unfold into a large constant."""
        arrays = [v.array for v in c.inputs if v is not None]
        op = c.proto.op_type
        if op == "Expand":
            shape = [int(d) for d in c.constant(1, "shape").ravel()]
            size = prod(max(d, 1) for d in shape) * arrays[0].size
        elif op == "Gather":
            size = arrays[0].size * max(arrays[1].size, 1)
        elif op == "Concat":
            size = sum(a.size for a in arrays)
        else:
            size = max((a.size for a in arrays), default=0)
            with contextlib.suppress(ValueError):
                size = max(size, prod(np.broadcast_shapes(*(a.shape for a in arrays))))
        if size > _MAX_FOLDED:
            raise NotCovered(f"{c.where}: it computes a constant of {size} values or more")

    # --- the two doors ----------------------------------------------------------------------

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
        type_name = self.type_name(kind.elem_type)
        floats = kind.elem_type == onnx.TensorProto.FLOAT
        door = self.declared or self._annotation(info.name)
        if not floats:
            door = _integer_door(where, type_name, door)
        if door is None:
            self.values[info.name] = Real(shape, shape, name=info.name)
        elif isinstance(door, IntFormat):
            self._set_input(door, None)
            self.values[info.name] = Scaled(INPUT, shape, one(shape), integer=not floats)
        else:
            self._set_input(door.format, door)
            scale = fractions_of(_along(np.asarray(door.scale), door.axis, shape, where))
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
                    f"model: its inputs are {got}; networks of one input are covered.  Name a "
                    "tensor to start from that everything behind it depends on (input=)"
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
            for entry in annotation.quant_parameter_tensor_names:
                if annotation.tensor_name == name and entry.key == "finn_datatype":
                    return format_of(entry.value)
        return None

    def _set_input(self, fmt: IntFormat, quantizer: Quantizer | None) -> None:
        self.input_format, self.quantizer = fmt, quantizer
        self.ranges[INPUT] = Interval.of_format(fmt, self.input_shape)
        self.shapes[INPUT] = self.input_shape

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
            raise NotCovered(f"model: its outputs are {names}; choose one with output=")
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
            raise NotCovered("output: it is padded, and nothing sums over the padding")
        dequantizer = None
        if not final.integer:
            scale, offset = final.affine("output")
            offset = offset - scale * final.zero
            scale, offset = (uniform(_flat(p, "output")) for p in (scale, offset))
            if any(s == 0 for s in scale.ravel()):
                raise NotCovered("output: a channel has scale 0, its value does not depend on x")
            dequantizer = Dequantizer(_door(scale), _door(offset))
        node = final.node
        if node == INPUT:
            node = self.emit("output", Reshape(final.shape), (INPUT,))
        kept = _reachable(self.nodes, node)
        return Network(
            kept,
            input_shape=self.input_shape,
            input_format=self.input_format,
            input_quantizer=self.quantizer,
            output_dequantizer=dequantizer,
            output=node,
        )

    # --- integer nodes ----------------------------------------------------------------------

    def emit(self, name: str, op: Op, inputs: tuple[str, ...]) -> str:
        """Append a node under a name not yet used; returns the name."""
        base = name.strip("/") or op.kind
        unique = base
        while unique in self.shapes or unique == INPUT:
            self.uses[base] = self.uses.get(base, 1) + 1
            unique = f"{base}_{self.uses[base]}"
        shape = op.out_shape(*(self.shapes[n] for n in inputs))
        self.check_size(shape, name)
        weight = getattr(op, "weight", None)
        if weight is not None and prod(shape) * (weight.size // weight.shape[0]) > _MAX_PRODUCTS:
            raise NotCovered(f"{name}: too many products for one sample")
        interval = op.out_range(*(self.ranges[n] for n in inputs))
        if isinstance(op, SumOp) and op.prepare(*(self.ranges[n] for n in inputs)) >= 2**62:
            raise NotCovered(f"{name}: its sums leave 62 bits")
        self.nodes.append(Node(unique, op, inputs))
        self.ops[unique], self.feeds[unique] = op, inputs
        self.shapes[unique], self.ranges[unique] = shape, interval
        return unique

    def check_size(self, shape: Any, where: str) -> None:
        if prod(int(d) for d in shape) > _MAX_SAMPLE:
            raise NotCovered(f"{where}: shape {list(shape)} has too many elements")

    def type_name(self, data_type: int) -> str:
        """The name of an element type: FLOAT, INT8, UINT4, ..."""
        kinds = import_onnx().TensorProto.DataType
        if data_type not in kinds.values():
            raise FileFormatError(f"data type {data_type}: not one of ONNX")
        return str(kinds.Name(data_type))

    def element_type(self, tensor_name: str) -> str:
        """The element type of a constant, as declared, or as its array has it."""
        if tensor_name in self.types:
            return self.types[tensor_name]
        dtype: str = self.values[tensor_name].array.dtype.name
        return {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())

    def code_range(self, v: Scaled, q: Quantized) -> tuple[int, int]:
        """The least and greatest code of a monotone quantizer over its input's proved range."""
        channels = v.shape[0]
        lo, hi = self._channel_range(v.node, channels)
        ends = _code_function(v, q, channels)(np.stack([lo, hi], axis=1))
        return int(ends.min()), int(ends.max())

    def name(self, c: Context) -> str:
        return str(c.proto.name or c.proto.output[0])

    def _move(self, v: Scaled, name: str, op: Op, function: Callable[[Array], Array]) -> Scaled:
        """The same values under another shape; a move back to an earlier shape makes no node."""
        if v.pad:
            raise NotCovered("its input is padded; only a convolution or pooling takes padding")
        shape = op.out_shape(v.shape)
        node = v.node
        if isinstance(op, (Reshape, Flatten)):
            while shape != self.shapes[node] and isinstance(self.ops.get(node), (Reshape, Flatten)):
                (node,) = self.feeds[node]
        if shape != self.shapes[node] or not isinstance(op, (Reshape, Flatten)):
            node = self.emit(name, op, (v.node,))
        return v.on(node, shape, function)

    def reshape(self, v: Scaled, shape: Shape, name: str) -> Scaled:
        op: Op = Flatten() if len(shape) == 1 else Reshape(shape)
        return self._move(v, name, op, lambda a: a.reshape(shape))

    def increasing(self, v: Scaled) -> Scaled | None:
        """v over an integer node of which it is a nondecreasing function, or None.

        Decreasing channels of a layer are turned round: their weights and bias are negated.
        """
        if v.function is not None:
            return None
        direction = np.sign(v.scale.astype(np.float64)).astype(np.int64)
        direction = np.where(direction == 0, 1, direction)
        for step in v.steps:
            direction = direction * step.direction
        if (direction > 0).all():
            return v
        if (direction == 0).any() or v.zero != 0:
            return None
        if v.node == INPUT:
            return None
        op, inputs, name = self.ops[v.node], self.feeds[v.node], f"{v.node}_negated"
        falls = np.broadcast_to(
            direction < 0, np.broadcast_shapes(direction.shape, (1,) * len(v.shape))
        )
        if isinstance(op, (Linear, Conv1d, Conv2d)) and prod(falls.shape[1:]) == 1:
            sign = np.broadcast_to(np.where(falls.ravel(), -1, 1), (v.shape[0],))
            weight = op.weight * sign.reshape((-1,) + (1,) * (op.weight.ndim - 1))
            bias = None if op.bias is None else op.bias * sign
            node = self.emit(name, replace(op, weight=weight, bias=bias), inputs)
        elif isinstance(op, Add) and falls.all():
            multipliers = op.multipliers or (1,) * len(inputs)
            node = self.emit(name, Add(tuple(-m for m in multipliers)), inputs)
        else:
            return None
        return replace(v, node=node, scale=np.where(falls, -v.scale, v.scale))

    def codes(self, q: Quantized) -> Scaled:
        """The integer node of a quantizer, made once."""
        if q.done is None:
            q.done = self._input_codes(q) if isinstance(q.source, Real) else self._close(q)
        return q.done

    def _input_codes(self, q: Quantized) -> Scaled:
        """The quantizer of the float input becomes the network's first door."""
        real = q.source
        assert isinstance(real, Real)
        quantizer = _plain_door(q, real) or _threshold_door(q, real)
        fmt = quantizer.format
        if self.quantizer is None:
            self._set_input(fmt, quantizer)
        elif not _same_quantizer(self.quantizer, quantizer):
            raise NotCovered(
                f"{q.name}: the input is quantized a second time, differently; declare the codes "
                "that come in, e.g. input='UINT8'"
            )
        codes = Scaled(INPUT, self.input_shape, one(self.input_shape), integer=True)
        for kind, argument in real.moves:
            move = self.transpose if kind == "transpose" else self.reshape
            codes = move(codes, argument, f"{q.name}_{kind}")
        clipped = isinstance(quantizer, ThresholdQuantizer) or q.bipolar
        if not clipped and (q.lo, q.hi) != (fmt.q_min, fmt.q_max):
            clip = Requantize.from_affine(1, 0, fmt, Rounding.FLOOR, clip=(q.lo, q.hi))
            codes = replace(codes, node=self.emit(f"{q.name}_clip", clip, (codes.node,)))
        if real.pad:
            codes = replace(codes, pad=real.pad, pad_code=_pad_code(q, real))
        return codes

    def _close(self, q: Quantized) -> Scaled:
        """Pending steps and quantizer as integer thresholds, or as a table."""
        v = q.source
        assert isinstance(v, Scaled)
        if v.pad:
            raise NotCovered(f"{q.name}: its input is padded; only a convolution takes padding")
        parameters = [v.scale, q.scale, q.zero_point, *(a for s in v.steps for a in s.args)]
        if spread(parameters, v.shape):
            return self._close_flat(q, v)
        fmt = q.format()
        per_channel = q.rows > 1 or any(p.size > 1 for p in parameters)
        channels = v.shape[0] if per_channel else 1
        if fmt.bits > _MAX_BITS or fmt.levels * channels > _TABLE_ENTRIES:
            raise NotCovered(f"{q.name}: {channels} channels of {fmt} are too many thresholds")
        increasing = self.increasing(v)
        if increasing is not None:
            lo, hi = self._channel_range(increasing.node, channels)
            function = _code_function(increasing, q, channels)
            try:
                op: Op = Requantize.from_function(function, lo, hi, fmt)
                if _is_identity(function, lo, hi):
                    return Scaled(increasing.node, v.shape, one(v.shape), integer=True)
                node = self.emit(q.name, op, (increasing.node,))
                return Scaled(node, v.shape, one(v.shape), integer=True)
            except InvalidArgument:
                pass  # not monotone in float32 after all: a table
        lo, hi = self._channel_range(v.node, channels)
        lowest, span = int(lo.min()), int(hi.max()) - int(lo.min()) + 1
        if span * channels > _TABLE_ENTRIES:
            slow = any(s.op in ("Erf", "Gelu") for s in v.steps)
            if slow or span * channels > _EVALUATED:
                raise NotCovered(
                    f"{q.name}: not monotone, and {channels} x {span} accumulators are too many to "
                    "list; narrow the codes in front of the layer"
                )
            return self._difference(q, v, lo, hi)
        acc = np.broadcast_to(lowest + np.arange(span), (channels, span))
        table = _code_function(v, q, channels)(acc)
        node = self.emit(q.name, Lookup(table, lowest, fmt), (v.node,))
        return Scaled(node, v.shape, one(v.shape), integer=True)

    def _difference(self, q: Quantized, v: Scaled, lo: Array, hi: Array) -> Scaled:
        """Thresholds where the code rises, less thresholds where it falls: no table of all codes.

        Swish-like activations fall a little and rise: a few thresholds describe them exactly.
        """
        channels, fmt = lo.size, q.format()
        function = _code_function(v, q, channels)
        first, changes = function(lo[:, None])[:, 0], []
        chunk = max(_CHUNK // channels, 2)
        for begin in range(int(lo.min()), int(hi.max()), chunk - 1):
            acc = np.clip(begin + np.arange(chunk), lo[:, None], hi[:, None])
            step = np.diff(function(acc), axis=1)
            rows, places = np.nonzero(step)
            changes.append(np.stack([rows, acc[rows, places + 1], step[rows, places]]))
        row, at, by = np.concatenate(changes, axis=1)
        if np.abs(by).sum() > _TABLE_ENTRIES // 8:
            raise NotCovered(f"{q.name}: not monotone, and its code changes too often")
        counts = []
        for sign, start in ((1, first - fmt.q_min), (-1, np.zeros_like(first))):
            table = [
                np.r_[np.full(start[k], ALWAYS), np.repeat(at[mine], by[mine] * sign)]
                for k in range(channels)
                for mine in [(row == k) & (by * sign > 0)]
            ]
            size = max(len(t) for t in table)
            target = _counting_format(fmt, size) if sign > 0 else _counting_format(_BIT, size)
            before = fmt.q_min - target.q_min if sign > 0 else 0  # always reached: a lower start
            padded = [
                np.r_[
                    np.full(before, ALWAYS), t, np.full(target.levels - 1 - before - len(t), NEVER)
                ]
                for t in table
            ]
            name = f"{q.name}_{'rises' if sign > 0 else 'falls'}"
            op = Requantize(np.stack(padded).astype(np.int64), target)
            counts.append(self.emit(name, op, (v.node,)))
        node = self.emit(q.name, Add((1, -1)), tuple(counts))
        return Scaled(node, v.shape, one(v.shape), integer=True)

    def _close_flat(self, q: Quantized, v: Scaled) -> Scaled:
        """Parameters that vary inside a channel: every position becomes a channel."""
        if q.rows > 1:
            raise NotCovered(f"{q.name}: thresholds per channel behind parameters per position")
        flat = self.reshape(v, (prod(v.shape),), f"{q.name}_flat")

        def flattened(a: Array) -> Array:
            return a.reshape(1) if a.size == 1 else np.broadcast_to(a, v.shape).reshape(-1)

        moved = replace(
            q, source=flat, scale=flattened(q.scale), zero_point=flattened(q.zero_point), done=None
        )
        return self.reshape(self._close(moved), v.shape, f"{q.name}_shape")

    def _channel_range(self, node: str, channels: int) -> tuple[Array, Array]:
        interval = self.ranges[node]
        lo, hi = (a.reshape(a.shape[0], -1) for a in (interval.lo, interval.hi))
        if channels == 1:
            return np.array([int(lo.min())]), np.array([int(hi.max())])
        return lo.min(axis=1).astype(np.int64), hi.max(axis=1).astype(np.int64)

    def transpose(self, v: Scaled, perm: tuple[int, ...], name: str) -> Scaled:
        """Axes of a sample in another order: a reshape where it moves no value, else a permutation.

        A permutation of n values is a Linear of n rows with one 1 each.
        """
        shape = tuple(v.shape[i] for i in perm)
        order = np.arange(prod(v.shape)).reshape(v.shape).transpose(perm).ravel()
        if (order == np.arange(order.size)).all():
            return self._move(v, name, Reshape(shape), lambda a: a.transpose(perm))
        if order.size > 4096:
            raise NotCovered(f"a transposition of {order.size} values; export channels first")
        flat = self.reshape(v, (order.size,), f"{name}_flat")
        matrix = np.eye(order.size, dtype=np.int64)[order]
        node = self.emit(name, Linear(matrix), (flat.node,))
        permuted = flat.on(node, (order.size,), lambda a: a[order])
        return self.reshape(permuted, shape, f"{name}_shape")

    # --- layers -----------------------------------------------------------------------------

    def numbers(self, c: Context, index: int = 0) -> Scaled | Real:
        """Activations, or the float input."""
        value = c.inputs[index]
        return value if isinstance(value, Real) else self.scaled(c, index)

    def scaled(self, c: Context, index: int = 0) -> Scaled:
        value = c.inputs[index]
        if isinstance(value, Real):
            raise NotCovered(
                f"{c.where}: its input is float; a quantizer must come first.  Declare the codes "
                "of the input (input='UINT8', or a quantizer) or name the tensor to start from"
            )
        if not isinstance(value, Scaled):
            raise NotCovered(f"{c.where}: got a constant as input {index}, expected activations")
        return value

    def weights(self, value: Any, where: str) -> tuple[Array, Array]:
        """Integer weights [out, ...] and their scale, [out] or [1], in Fractions."""
        if not isinstance(value, Constant):
            raise NotCovered(f"{where}: the product of two tensors that depend on the input")
        if isinstance(value, Grid):
            if prod(value.scale.shape[1:]) == 1:
                return value.codes, value.scale.reshape(-1)
            rows = value.scale.reshape(value.scale.shape[0], -1)
            if any(s != row[0] for row in rows for s in row):
                raise NotCovered(f"{where}: weights with one scale per input channel")
            return value.codes, rows[:, 0]
        array = value.array
        if array.dtype.kind in "iu":
            return array.astype(np.int64), np.array([Fraction(1)], dtype=object)
        if not np.isfinite(array).all():
            raise FileFormatError(f"{where}: its weights are not finite")
        if (np.rint(array) == array).all() and np.abs(array).max(initial=0) < 2**31:
            return array.astype(np.int64), np.array([Fraction(1)], dtype=object)
        grid = recover_grid(array)
        if grid is not None:
            return grid[0], np.array([grid[1]], dtype=object)
        grids = [g for g in map(recover_grid, array) if g is not None]
        if len(grids) != len(array):
            raise NotCovered(f"{where}: its weights are floats on no grid of 8 bits; quantize them")
        return np.stack([q for q, _ in grids]), np.array([s for _, s in grids], dtype=object)

    def sum(
        self,
        c: Context,
        x: Scaled,
        weight: Array,
        weight_scale: Array,
        bias: Any,
        make: Callable[[Array, Array | None, int], Op],
        groups: int = 1,
        padded: bool = False,
        name: str = "",
    ) -> Scaled:
        """A layer: sum of weight * (x - zero) with its bias, on the scale s_x * s_w."""
        scale, offset = x.affine(c.where)
        if any(o != 0 for o in offset.ravel()):
            raise NotCovered(f"{c.where}: its input has a float offset; quantize it first")
        scale = _per_channel(scale, x.shape, groups, c.where)
        per_out = weight.shape[0] // groups
        if scale.size > 1:
            scale = np.repeat(scale, per_out)
        if x.zero.denominator != 1 and padded and x.pad_code is None:
            x = self.centred(x, self.name(c))
        denominator = x.zero.denominator
        zero = x.zero.numerator
        pad_code = zero // denominator if x.pad_code is None else x.pad_code
        weight = weight * denominator
        scale = scale * weight_scale / denominator
        row_sums = weight.reshape(weight.shape[0], -1).sum(axis=1)
        integer_bias = -(zero * row_sums // denominator) if zero else None
        left = None
        if bias is not None:
            on_grid, left = self._bias(bias, scale, weight.shape[0], c.where)
            if on_grid is not None:
                integer_bias = on_grid if integer_bias is None else integer_bias + on_grid
        op = make(weight, integer_bias, pad_code)
        node = self.emit(name or self.name(c), op, (x.node,))
        shape = self.shapes[node]
        out_scale = along_first(scale, shape)
        result = Scaled(node, shape, out_scale)
        if left is not None:
            result = result.then("Add", along_first(left, shape))
        return result

    def _bias(
        self, bias: Any, scale: Array, channels: int, where: str
    ) -> tuple[Array | None, Array | None]:
        """(integers, None) when the bias lies on the grid of the accumulator, else (None, floats).

        A quantized bias is on it when its scale is s_x * s_w, or that product rounded to float32.
        """
        if not isinstance(bias, Constant):
            raise NotCovered(f"{where}: its bias depends on the input")
        values = bias.array.reshape(-1)
        if values.size not in (1, channels):
            raise ShapeMismatch(f"{where}: bias of {values.size} values for {channels} channels")
        values = np.broadcast_to(values, (channels,))
        scales = np.broadcast_to(scale, (channels,))
        if isinstance(bias, Grid):
            own = np.broadcast_to(bias.scale, bias.codes.shape).reshape(-1)
            rounded = fractions_of(float32_of(scales))
            if all(
                a in (s, r) for a, s, r in zip(np.broadcast_to(own, (channels,)), scales, rounded)
            ):
                codes = np.broadcast_to(bias.codes.reshape(-1), (channels,))
                return codes.astype(np.int64), None
        if not np.isfinite(values).all():
            raise FileFormatError(f"{where}: its bias is not finite")
        quotients = [v / s if s else None for v, s in zip(fractions_of(values), scales)]
        if all(q is not None and q.denominator == 1 and abs(q) < 2**31 for q in quotients):
            return np.array([int(q) for q in quotients if q is not None], dtype=np.int64), None
        return None, values.astype(np.float32)

    def product(self, a: Scaled, b: Scaled) -> Scaled | None:
        """a * b in float32, where both are functions of one integer node; else None."""
        above = self._elementwise_sources(a.node)
        source = next((n for n in self._elementwise_sources(b.node) if n in above), None)
        arguments = [p for v in (a, b) for p in (v.scale, *(x for s in v.steps for x in s.args))]
        if source is None or a.pad or b.pad or any(p.size > 1 for p in arguments):
            return None
        factors = [_float_function(v) for v in (a, b)]
        values = [self._values_over(v.node, source) for v in (a, b)]

        def function(acc: Array) -> Array:
            x, y = (f(v(acc)) for f, v in zip(factors, values))
            return np.asarray(x * y, dtype=np.float32)

        return Scaled(source, a.shape, one(a.shape), function=function)

    def _elementwise_sources(self, node: str) -> list[str]:
        """The node and what it is one function of, at every position, nearest first."""
        sources = [node]
        while True:
            op = self.ops.get(sources[-1])
            if not isinstance(op, (Requantize, Lookup)) or op.channels > 1:
                return sources
            sources.extend(self.feeds[sources[-1]])

    def _values_over(self, node: str, source: str) -> Callable[[Array], Array]:
        path = self._elementwise_sources(node)
        ops = [self.ops[n] for n in path[: path.index(source)]]

        def values(acc: Array) -> Array:
            for op in reversed(ops):
                acc = op.forward(acc)
            return acc

        return values

    def centred(self, x: Scaled, name: str) -> Scaled:
        """(node - zero) as integers, by a table: for a zero that is not an integer."""
        interval = self.ranges[x.node]
        lo, hi = int(interval.lo.min()), int(interval.hi.max())
        if hi - lo >= _TABLE_ENTRIES:
            raise NotCovered(f"{name}: padding with a real zero that has no code")
        d, p = x.zero.denominator, x.zero.numerator
        table = d * np.arange(lo, hi + 1) - p
        node = self.emit(f"{name}_centred", Lookup(table[None], lo), (x.node,))
        return replace(x, node=node, zero=Fraction(0), scale=x.scale / d)

    def with_bias(self, v: Scaled, array: Any, name: str, where: str) -> Scaled | None:
        """v + constant folded into the integer bias of the layer that makes v, if it fits there."""
        if v.steps or v.node == INPUT or v.zero != 0:
            return None
        op = self.ops[v.node]
        if not isinstance(op, (Linear, Conv1d, Conv2d)):
            return None
        aligned = along_sample(array.array, v.shape, where)
        if prod(aligned.shape[1:]) != 1:
            return None
        scale = np.broadcast_to(v.scale.reshape(-1), (v.shape[0],))
        bias: Constant = Constant(aligned.reshape(-1))
        if isinstance(array, Grid):
            own = np.broadcast_to(array.scale, array.codes.shape)
            bias = Grid(aligned.reshape(-1), array.codes.reshape(-1), own.reshape(-1))
        on_grid, _ = self._bias(bias, scale, v.shape[0], where)
        if on_grid is None:
            return None
        old = 0 if op.bias is None else op.bias
        node = self.emit(name, replace(op, bias=old + on_grid), self.feeds[v.node])
        return replace(v, node=node)


# --- helpers ----------------------------------------------------------------------------------


def _flat(values: Array, where: str) -> Array:
    if prod(values.shape[1:]) != 1:
        raise NotCovered(f"{where}: a scale or offset that varies inside a channel")
    return values.reshape(-1)


def _door(values: Array) -> Array:
    floats = float32_of(values)
    return floats.reshape(()) if floats.size == 1 else floats


def _per_channel(scale: Array, shape: Shape, groups: int, where: str) -> Array:
    """The scale of each group of input channels, or one for all."""
    flat = uniform(uniform(scale))
    if flat.size == 1:
        return flat.reshape(1)
    by_channel = _flat(scale, where)
    by_group = np.broadcast_to(by_channel, (shape[0],)).reshape(groups, -1)
    if any(s != row[0] for row in by_group for s in row):
        raise NotCovered(f"{where}: it sums over channels of different scales")
    return by_group[:, 0]


def _plain_door(q: Quantized, real: Real) -> Quantizer | None:
    """Scale and zero point, where the steps in front of the quantizer allow for them exactly.

    They do when there are none; when they are a power of two; or when they and the quantizer are
    one quantizer written out: divide by its scale, add its zero point, round.
    """
    if q.function is not None or q.rounding == "away":
        return None
    factor, shift, divisor = Fraction(1), 0, None
    steps = list(real.steps)
    while steps and steps[-1].op == "Relu" and q.lo == 0 and not (q.bipolar or q.zero_point.any()):
        steps.pop()  # saturation at code 0 does the same
    for step in steps:
        value = Fraction(step.args[0].item()) if step.args and step.args[0].size == 1 else None
        if shift == 0 and divisor is None and step.op in ("Mul", "Div") and _is_power(value):
            assert value is not None
            factor = factor * value if step.op == "Mul" else factor / value
        elif step.op == "Add" and value is not None and value.denominator == 1:
            shift += int(value)
        elif step.op == "Div" and factor == 1 and shift == 0 and (step.args[0] > 0).all():
            if divisor is not None:
                return None
            divisor = step.args[0]
        else:
            return None
    parameters = [real.undone(q.scale), *(() if divisor is None else (divisor,))]
    axis = varying_axis(parameters, q.name)
    scales, *divisors = (fractions_of(along_one(a, axis)) for a in parameters)
    scales = scales / factor
    if divisors:
        if any(not power_of_two(v) for v in scales):
            return None
        scales = scales * divisors[0]
    scale = float32_of(scales)
    zero_points = np.unique(q.zero_point)
    zero, zero_first = int(zero_points[0]), q.zero_first
    if shift:
        if q.bipolar or zero_points.any() or any(v != 1 for v in fractions_of(q.scale).ravel()):
            return None
        zero, zero_first = shift, True
    fmt = BIPOLAR if q.bipolar else q.format()
    if zero_points.size > 1 or not np.isfinite(scale).all() or (scale <= 0).any():
        return None
    door_axis = None if axis is None else axis + 1
    if zero == 0 or q.bipolar:
        return SymmetricQuantizer(scale, fmt, q.rounding, door_axis)
    if not fmt.q_min <= zero <= fmt.q_max:
        return None
    return AffineQuantizer(scale, zero, fmt, q.rounding, door_axis, zero_point_first=zero_first)


def _is_power(value: Fraction | None) -> bool:
    return value is not None and power_of_two(value)


def _threshold_door(q: Quantized, real: Real) -> ThresholdQuantizer:
    """The least float of each code, for any nondecreasing float32 arithmetic and quantizer."""
    for step in real.steps:
        if (step.direction <= 0).any():
            raise NotCovered(
                f"{q.name}: {step.op} in front of it is not an increasing function of the input; "
                "declare the codes of the input, e.g. input='UINT8', or start behind it with "
                f"input={real.name!r}"
            )
    fmt = BIPOLAR if q.bipolar else q.format()
    if fmt.bits > _MAX_BITS:
        raise NotCovered(f"{q.name}: the input becomes {fmt}, expected at most {_MAX_BITS} bits")
    parameters = [real.undone(q.scale), real.undone(q.zero_point)]
    arguments = [a for step in real.steps for a in step.args]
    axis = varying_axis([*parameters, *arguments], q.name)
    if q.rows > 1:
        if real.moves or axis not in (None, 0):
            raise NotCovered(f"{q.name}: thresholds per channel behind a reshaped input")
        axis = 0
    scale, zero_point = (along_one(a, axis)[:, None] for a in parameters)
    steps = [(step, [along_one(a, axis)[:, None] for a in step.args]) for step in real.steps]

    def codes(v: Array) -> Array:
        y = v
        for step, args in steps:
            y = step(y, *args)
        if np.isnan(y).any():
            raise NotCovered(f"{q.name}: float arithmetic in front of it reaches NaN")
        return np.broadcast_to(q.codes(y, scale, zero_point), v.shape)

    rows = 1 if axis is None else real.origin[axis]
    first = 0 if q.bipolar else fmt.q_min  # what q.codes gives for the lowest code
    wanted = np.broadcast_to(first + np.arange(1, fmt.levels), (rows, fmt.levels - 1))
    thresholds = float_thresholds(codes, wanted)
    return ThresholdQuantizer(thresholds, fmt, None if axis is None else axis + 1)


def _pad_code(q: Quantized, real: Real) -> int:
    """The code of the value that pads the input."""
    if q.scale.size > 1 or q.zero_point.size > 1 or q.rows > 1 or q.bipolar:
        raise NotCovered(f"{q.name}: its input is padded, and its parameters are per channel")
    value = np.full((1, 1), real.pad_value, dtype=np.float32)
    return int(q.codes(value, q.scale.reshape(1, 1), q.zero_point.reshape(1, 1))[0, 0])


def _same_quantizer(a: Quantizer, b: Quantizer) -> bool:
    if isinstance(a, ThresholdQuantizer) or isinstance(b, ThresholdQuantizer):
        return (
            isinstance(a, ThresholdQuantizer)
            and isinstance(b, ThresholdQuantizer)
            and a.format == b.format
            and a.axis == b.axis
            and np.array_equal(a.thresholds, b.thresholds)
        )
    return (
        type(a) is type(b)
        and a.format == b.format
        and a.rounding == b.rounding
        and a.axis == b.axis
        and np.array_equal(a.scale, b.scale)
        and np.array_equal(getattr(a, "zero_point", 0), getattr(b, "zero_point", 0))
        and getattr(a, "zero_point_first", False) == getattr(b, "zero_point_first", False)
    )


def format_of(name: str) -> IntFormat | None:
    """The format of QONNX's name of a datatype; None for floats and names we do not know.

    >>> format_of("UINT4"), format_of("FLOAT32")
    (IntFormat(bits=4, signed=False, narrow=False), None)
    """
    text = name.upper()
    named = {"BIPOLAR": BIPOLAR, "BINARY": IntFormat(1, signed=False), "TERNARY": TERNARY}
    if text in named:
        return named[text]
    digits = text.removeprefix("U").removeprefix("INT")
    if digits == text or not text.removeprefix("U").startswith("INT") or not digits.isdigit():
        return None
    return IntFormat(int(digits), signed=text[0] == "I") if 1 <= int(digits) <= 32 else None


def _checked_door(door: Any) -> IntFormat | Quantizer:
    """A door that says which number each code stands for."""
    if isinstance(door, str):
        fmt = format_of(door)
        if fmt is None:
            expected = "a tensor of the model, or a datatype such as UINT8, INT4, BIPOLAR"
            raise InvalidArgument(mismatch("input", repr(door), expected))
        return fmt
    if isinstance(door, IntFormat):
        return door
    if not isinstance(door, Quantizer):
        expected = "a tensor's name, a datatype's name, an IntFormat or a quantizer"
        raise InvalidType(mismatch("input", repr(door), expected))
    one_zero = np.ndim(getattr(door, "zero_point", 0)) == 0
    if isinstance(door, ThresholdQuantizer) or door.precision != "float32" or not one_zero:
        expected = "a quantizer of scale and one zero point, in float32"
        raise InvalidArgument(mismatch("input", repr(door), expected))
    return door


def _way_round(c: Context) -> str:
    """How to read the part in front of a node that is not covered."""
    (name, *_) = [n for n, v in zip(c.proto.input, c.inputs) if isinstance(v, Scaled)] or [""]
    return f"; output={name!r} reads the part in front of it" if name else ""


def _integer_door(where: str, type_name: str, door: IntFormat | Quantizer | None) -> IntFormat:
    """The codes of an input of an integer type."""
    if type_name in ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2"):
        holds = IntFormat(int(type_name.lstrip("UINT")), signed=type_name[0] == "I")
    elif type_name in ("INT32", "UINT32", "INT64") and door is not None:
        holds = IntFormat(32, signed=type_name[0] == "I")
    else:
        expected = "float32, or integers of a declared format such as input='UINT8'"
        raise NotCovered(mismatch(where, f"data type {type_name}", expected))
    if door is None:
        return holds
    if not isinstance(door, IntFormat):
        raise InvalidArgument(mismatch("input", repr(door), f"a format: {where} takes integers"))
    if door.q_min < holds.q_min or door.q_max > holds.q_max:
        raise InvalidArgument(mismatch("input", door, f"codes inside {type_name}"))
    return door


def _along(scale: Array, axis: int | None, shape: Shape, where: str) -> Array:
    """The scale of a quantizer of batches, laid out along a sample."""
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    assert axis is not None
    place = axis if axis >= 0 else axis + len(shape) + 1
    if not 1 <= place <= len(shape) or shape[place - 1] != scale.size:
        raise ShapeMismatch(mismatch(where, f"samples of shape {shape}", f"axis {axis} to fit"))
    return scale.reshape([-1 if i == place - 1 else 1 for i in range(len(shape))])


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


def _reachable(nodes: list[Node], output: str) -> list[Node]:
    """The nodes that the output needs, in order."""
    needed = {output}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(inputs_of(node))
    return [node for node in nodes if node.name in needed]


def _is_identity(function: Callable[[Array], Array], lo: Array, hi: Array) -> bool:
    """Does a quantizer give back every code it can get?  Quantizers around a pooling do."""
    span = int((hi - lo).max())
    if span >= 2**_MAX_BITS:
        return False
    acc = np.minimum(lo[:, None] + np.arange(span + 1), hi[:, None])
    return bool(np.array_equal(function(acc), acc))


def _code_function(v: Scaled, q: Quantized, channels: int) -> Callable[[Array], Array]:
    """Codes of accumulators [channels, n]."""
    function = _float_function(v)
    q_scale, q_zero = q.scale.reshape(-1, 1), q.zero_point.reshape(-1, 1)

    def codes(acc: Array) -> Array:
        y = function(acc)
        if np.isnan(y).any():
            raise NotCovered(f"{q.name}: its float operators reach NaN inside the proved range")
        return np.broadcast_to(q.codes(y, q_scale, q_zero), acc.shape)

    return codes


def _counting_format(fmt: IntFormat, size: int) -> IntFormat:
    """The narrowest format of fmt's signedness that holds fmt.q_min and `size` codes above it."""
    bits = fmt.bits
    while IntFormat(bits, fmt.signed).q_max < fmt.q_min + size:
        bits += 1
    return IntFormat(bits, fmt.signed)


def _float_function(v: Scaled) -> Callable[[Array], Array]:
    """The float32 operators of the file, in order, on accumulators [channels, n]."""
    denominator = v.zero.denominator

    def column(a: Array) -> Array:
        return a.reshape(-1, 1)

    scale = column(float32_of(v.scale / denominator))
    steps = [(step, [column(a) for a in step.args]) for step in v.steps]

    def values(acc: Array) -> Array:
        if v.function is not None:
            y = v.function(acc)
        else:
            y = (acc * denominator - v.zero.numerator).astype(np.float32) * scale
        for step, args in steps:
            y = step(y, *args)
        return y

    return values
