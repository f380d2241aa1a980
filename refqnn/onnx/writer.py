"""From an integer program to ONNX, in three flavours that compute the same integers.

    qonnx     float tensors that hold integers; Quant and MultiThreshold nodes
    qcdq      float tensors that hold integers; QuantizeLinear, Clip, DequantizeLinear
    integer   integer tensors; MatMulInteger, ConvInteger, int32 comparisons

In the first two every sum is proved to stay within 2**24 in absolute mass, where float32 is exact
in any order of summation; in the third within 2**31.  What cannot be proved is refused.  Tensors
carry the names of the network's nodes, so a runtime's intermediate values can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refqnn.container import write_atomically
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, mismatch
from refqnn.formats import BIPOLAR, IntFormat, signed_bits
from refqnn.graph import INPUT, inputs_of
from refqnn.network import Network
from refqnn.onnx.doors import OF_MAGNITUDES, ROUNDING_STEPS
from refqnn.onnx.files import import_onnx
from refqnn.onnx.values import dtype_of
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Rescale,
    Reshape,
    SumOp,
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import Requantize
from refqnn.ops.structure import PADDING
from refqnn.quantizers import AffineQuantizer, Quantizer, ThresholdQuantizer, float_thresholds
from refqnn.rounding import Rounding

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FLAVOURS", "Flavour", "to_onnx"]

Array = NDArray[Any]
Pads = tuple[tuple[int, int], ...]
Flavour = Literal["qonnx", "qcdq", "integer"]
FLAVOURS: tuple[Flavour, ...] = ("qonnx", "qcdq", "integer")

_OPSET = 13
_IR = 8
_DOMAIN = "qonnx.custom_op.general"
_FLOAT_MASS = 2**24
_TWO_PRODUCTS = 2**15 - 1  # some 8-bit kernels add two products in 16 bits, saturating

_QONNX_ROUNDING = {
    Rounding.HALF_EVEN: "ROUND",
    Rounding.FLOOR: "FLOOR",
    Rounding.CEIL: "CEIL",
    Rounding.TOWARD_ZERO: "DOWN",
    Rounding.HALF_TOWARD_ZERO: "HALF_DOWN",
    Rounding.AWAY_FROM_ZERO: "UP",
}
# QONNX's HALF_UP computes floor(|x| + 0.5) in floats, which sends 0.49999997 to 1: not written.


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph: name, element type, shape of a sample, proved range."""

    name: str
    dtype: str
    shape: Shape
    batched: bool = True  # weights have no batch axis
    limits: tuple[int, int] = (0, 0)  # of a node of the network, by its proved range


def to_onnx(
    network: Network,
    path: str | os.PathLike[str] | None = None,
    *,
    flavour: Flavour = "qonnx",
    output: Literal["integers", "floats"] = "integers",
    batch: int | None = None,
) -> ModelProto:
    """Write a network as an ONNX model that computes the same integers, or refuse.

    Args:
        path: where to write; None: nowhere.
        flavour: "qonnx" (Quant and MultiThreshold nodes, for QONNX and FINN), "qcdq" (standard
            QuantizeLinear, Clip, DequantizeLinear over floats that hold integers) or "integer"
            (MatMulInteger, ConvInteger and int32 comparisons).
        output: "integers", the values of the output node; or "floats", the same dequantized.
        batch: fixed number of samples, or None for any number (1 for "qonnx", whose executor wants
            every shape known).

    Every tensor that is a node of the network carries its name.  The graph's input is float, named
    "x.0", when the network has an input quantizer, else integer codes named "input" (as floats in
    the "qonnx" flavour).

    Returns: the ModelProto (opset 13, IR 8).

    Raises: NotCovered when a sum may leave 2**24 ("qonnx", "qcdq") or 2**31 ("integer"), or where
        the flavour has no exact operator; InvalidArgument, InvalidType, MissingExtra.

    >>> from refqnn import IntFormat, Linear, Node
    >>> from refqnn.onnx import from_onnx
    >>> net = Network([Node("fc", Linear([[1, -2]]))], input_shape=(2,),
    ...               input_format=IntFormat(4, signed=True))
    >>> again = from_onnx(to_onnx(net, flavour="qcdq"))
    >>> again.forward([[3, 5]]).tolist()
    [[-7]]
    """
    if not isinstance(network, Network):
        raise InvalidType(mismatch("network", type(network).__name__, "a Network"))
    if flavour not in FLAVOURS:
        raise InvalidArgument(mismatch("flavour", repr(flavour), f"one of {', '.join(FLAVOURS)}"))
    if output not in ("integers", "floats"):
        raise InvalidArgument(mismatch("output", repr(output), "integers or floats"))
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise InvalidArgument(mismatch("batch", repr(batch), "a positive integer or None"))
    model = _Writer(network, flavour, output == "floats", batch).write()
    if path is not None:
        data = model.SerializeToString()
        write_atomically(path, lambda file: file.write(data))
    return model


class _Writer:
    """The graph so far."""

    def __init__(self, network: Network, flavour: Flavour, floats: bool, batch: int | None) -> None:
        self.onnx = import_onnx()
        self.network = network
        self.flavour = flavour
        self.integer = flavour == "integer"
        self.sums, self.limit = ("INT32", 2**31 - 1) if self.integer else ("FLOAT", _FLOAT_MASS)
        self.floats = floats
        # qonnx's executor wants every shape known.
        self.batch: int | str = batch or (1 if flavour == "qonnx" else "n")
        self.ranges = network.ranges()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.infos: list[Any] = []
        self.annotations: list[Any] = []
        self.taken = {INPUT, *(node.name for node in network.nodes)}
        self.tensors: dict[str, _Tensor] = {}
        self.masses: dict[str, int] = {}  # absolute, of the sums of a node

    # --- the graph --------------------------------------------------------------------------

    def write(self) -> Any:
        helper = self.onnx.helper
        graph_input = self._input()
        for node in self.network.nodes:
            where = f"node {node.name!r} ({node.op.kind})"
            self._check_sums(node.op, inputs_of(node), node.name, where)
            operands = [self.tensors[name] for name in inputs_of(node)]
            write = _WRITERS.get(type(node.op))
            if write is None:
                remedy = "a network of the nodes in front of it is written"
                raise NotCovered(f"{where}: it has no ONNX form here; {remedy}")
            self._know(node.name, write(self, node.name, node.op, *operands))
        result = self.tensors[self.network.output]
        if self.floats:
            result = self._dequantize(result)
        elif result.name == graph_input.name:
            raise NotCovered("output: it is the input itself")
        inner = [i for i in self.infos if i.name not in (graph_input.name, result.name)]
        doors = [graph_input], [self._info(result)]
        graph = helper.make_graph(self.nodes, "refqnn", *doors, self.initializers, value_info=inner)
        graph.quantization_annotation.extend(self.annotations)
        opsets = [helper.make_opsetid("", _OPSET)]
        if any(node.domain == _DOMAIN for node in self.nodes):
            opsets.append(helper.make_opsetid(_DOMAIN, 1))
        model = helper.make_model(graph, opset_imports=opsets, producer_name="refqnn")
        model.ir_version = _IR
        return model

    def _know(self, name: str, tensor: _Tensor) -> None:
        """The tensor of a node, with its proved range."""
        self.tensors[name] = replace(tensor, limits=self.ranges[name].ends)

    def fresh(self, base: str) -> str:
        """A tensor name that no node of the network has."""
        i = 0
        while f"{base}.{i}" in self.taken:
            i += 1
        name = f"{base}.{i}"
        self.taken.add(name)
        return name

    def constant(self, values: ArrayLike, dtype: str, base: str) -> str:
        # One value as a vector: behind a scalar scale a runtime may quantize what it multiplies.
        array = np.ascontiguousarray(np.asarray(values, dtype=dtype_of(dtype)))
        name = self.fresh(base)
        self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def apply(
        self,
        op: str,
        name: str,
        like: _Tensor,
        *inputs: _Tensor | str | ArrayLike,
        shape: Shape | None = None,
        dtype: str = "",
        last: bool = False,
        **attributes: Any,
    ) -> _Tensor:
        """Append a node on tensors, names and values (constants of the type of `like`).

        Its output, of the shape and type of `like` unless told otherwise, is `name` when it is the
        last of a network node.
        """
        feeds = [
            v if isinstance(v, str) else
            v.name if isinstance(v, _Tensor) else
            self.constant(v, like.dtype, f"{name}_constant")
            for v in inputs or (like,)
        ]  # fmt: skip
        output = replace(
            like,
            name=name if last else self.fresh(name),
            dtype=dtype or like.dtype,
            shape=like.shape if shape is None else shape,
        )
        title = f"{output.name}:{op}"
        self.nodes.append(
            self.onnx.helper.make_node(op, feeds, [output.name], name=title, **attributes)
        )
        self.infos.append(self._info(output))
        return output

    def _info(self, t: _Tensor) -> Any:
        kind = getattr(self.onnx.TensorProto, t.dtype)
        shape = [self.batch, *t.shape] if t.batched else t.shape
        return self.onnx.helper.make_tensor_value_info(t.name, kind, shape)

    def _check_sums(self, op: Op, inputs: tuple[str, ...], name: str, where: str) -> None:
        mass = self.ranges[name].largest
        if isinstance(op, SumOp):
            mass = max(mass, op.prepare(*(self.ranges[i] for i in inputs)))
        self.masses[name] = mass
        if mass > self.limit:
            expected = f"at most {self.limit} for the {self.flavour} flavour"
            if self.limit < mass < 2**31 and not self.integer:
                expected += "; the integer flavour holds it"
            raise NotCovered(mismatch(f"{where}: absolute mass", mass, expected))

    # --- the doors --------------------------------------------------------------------------

    def _input(self) -> Any:
        shape, fmt = self.network.input_shape, self.network.input_format
        quantizer = self.network.input_quantizer
        if quantizer is not None:
            tensor = _Tensor(self.fresh("x"), "FLOAT", shape)
            self._know(INPUT, self._quantize(tensor, quantizer))
            return self._info(tensor)
        dtype = _type_of(fmt.q_min, fmt.q_max) if self.flavour != "qonnx" else "FLOAT"
        tensor = _Tensor(INPUT, dtype, shape)
        self._annotate(INPUT, fmt)
        codes = tensor if self.integer else self.cast(tensor, "FLOAT", "input_codes")
        self._know(INPUT, codes)
        return self._info(tensor)

    def _annotate(self, name: str, fmt: IntFormat) -> None:
        annotation = self.onnx.TensorAnnotation(tensor_name=name)
        told = {"finn_datatype": _finn_type(fmt), **({"narrow": "1"} if fmt.narrow else {})}
        for key, value in told.items():
            annotation.quant_parameter_tensor_names.add(key=key, value=value)
        self.annotations.append(annotation)

    def _quantize(self, x: _Tensor, q: Quantizer) -> _Tensor:
        """x / scale, rounded, plus zero point, saturated, with the operators of the flavour."""
        if q.precision != "float32":
            raise _no_door(f"{q.precision} arithmetic, expected float32")
        if isinstance(q, ThresholdQuantizer):
            return self._thresholds(x, q)
        fmt, mode = q.format, Rounding.of(q.rounding)
        if fmt != BIPOLAR and fmt.bits > 16:
            raise _no_door(f"{fmt}, expected at most 16 bits")
        zero = np.asarray(getattr(q, "zero_point", 0))
        zero = zero if zero.any() else np.zeros((), dtype=np.int64)
        zero_first = zero.any() and isinstance(q, AffineQuantizer) and q.zero_point_first
        scale, zero = (_along_axis(v, x, q.axis) for v in (q.scale, zero))
        if self.flavour == "qonnx":
            named = mode in _QONNX_ROUNDING and (zero_first or not zero.any())
            named = named and fmt != IntFormat(1, signed=True)  # which QONNX takes for bipolar
            if not named and fmt != BIPOLAR and fmt.bits <= 8 and q.axis in (None, 1):
                table = _as_thresholds(q)
                if table is not None:
                    return self._thresholds(x, table)
        elif (
            mode is Rounding.HALF_EVEN and fmt.bits <= 8 and fmt != BIPOLAR
            and scale.size == zero.size == 1 and not zero_first
        ):  # fmt: skip
            return self._quantize_linear(x, scale, int(zero), fmt, "input_codes")
        y = self.apply("Div", "input_scaled", x, x, scale)
        if fmt == BIPOLAR:
            return self._bipolar_input(y)
        if zero_first:
            y = self.apply("Add", "input_shifted", y, y, zero)
        if self.flavour == "qonnx" and named:
            return self.quant(y, fmt, "input_codes", rounding=_QONNX_ROUNDING[mode])
        y = self._rounded(y, mode)
        if zero.any() and not zero_first:  # floats too great for this are codes at the end anyway
            y = self.apply("Add", "input_moved", y, y, zero)
        y = self.apply("Clip", "input_codes", y, y, fmt.q_min, fmt.q_max)
        return self._input_codes(y, fmt)

    def _rounded(self, y: _Tensor, mode: Rounding) -> _Tensor:
        if mode in OF_MAGNITUDES:
            size = self._rounded(self.apply("Abs", "input_size", y), OF_MAGNITUDES[mode])
            sign = self.apply("Sign", "input_sign", y)
            return self.apply("Mul", "input_rounded", y, sign, size)
        for op, value in ROUNDING_STEPS[mode]:
            y = self.apply(op, "input_rounded", y, y, *(() if value is None else (value,)))
        return y

    def _input_codes(self, y: _Tensor, fmt: IntFormat) -> _Tensor:
        dtype = _type_of(fmt.q_min, fmt.q_max) if self.integer else "FLOAT"
        return self.cast(y, dtype, "input_codes")

    def _thresholds(self, x: _Tensor, q: ThresholdQuantizer) -> _Tensor:
        """The count of the thresholds that x reaches."""
        fmt, table = q.format, q.thresholds
        if table.shape[0] > 1 and q.axis != 1:
            raise _no_door(f"thresholds along axis {q.axis}, expected 1")
        if fmt.bits > 8:
            raise _no_door(f"thresholds of {fmt}, expected at most 8 bits")
        greatest = np.finfo(np.float32).max
        if np.isposinf(table).any():  # never reached, not even by an infinity
            x = self.apply("Clip", "input_finite", x, x, -greatest, greatest)
        if fmt == BIPOLAR:
            if not np.isfinite(table).all():
                raise _no_door("a channel of one bipolar code")
            return self._bipolar_input(self.add_constant(x, -table[:, 0], "input_shifted"))
        if self.flavour == "qonnx":
            return self._multi_threshold(x, table, fmt, "input_codes")
        count = self._count("input", x, table)
        codes = self.add_constant(count, fmt.q_min, "input_codes") if fmt.q_min else count
        return self._input_codes(codes, fmt)

    def _multi_threshold(
        self, x: _Tensor, table: Array, fmt: IntFormat, name: str, *, last: bool = False
    ) -> _Tensor:
        layout = {1: "NC", 2: "NCW", 3: "NCHW"}.get(len(x.shape))
        if layout is None:
            raise NotCovered(f"node {name!r}: MultiThreshold over samples of shape {x.shape}")
        t = self.constant(table, "FLOAT", f"{name}_thresholds")
        return self.apply(
            "MultiThreshold", name, x, x, t, last=last, domain=_DOMAIN, out_dtype=_finn_type(fmt),
            out_scale=1.0, out_bias=float(fmt.q_min), data_layout=layout,
        )  # fmt: skip

    def _bipolar_input(self, y: _Tensor) -> _Tensor:
        if self.flavour == "qonnx":
            return self.apply("BipolarQuant", "input_codes", y, y, 1.0, domain=_DOMAIN)
        positive = self.apply("GreaterOrEqual", "input_positive", y, y, 0.0, dtype="BOOL")
        bit = self.cast(positive, self.sums, "input_bit")
        codes = self.add_constant(
            self.apply("Mul", "input_doubled", bit, bit, 2), -1, "input_codes"
        )
        return self._input_codes(codes, BIPOLAR)

    def _quantize_linear(
        self, x: _Tensor, scale: Any, zero: int, fmt: IntFormat, name: str, *, last: bool = False
    ) -> _Tensor:
        """QuantizeLinear, Clip where the format is narrower than 8 bits, DequantizeLinear(1, 0)."""
        dtype = "INT8" if fmt.signed else "UINT8"
        z = self.constant(zero, dtype, f"{name}_zero")
        y = self.apply("QuantizeLinear", f"{name}_quantized", x, x, scale, z, dtype=dtype)
        if fmt not in (IntFormat(8, True), IntFormat(8, False)):
            y = self.apply("Clip", f"{name}_clipped", y, y, fmt.q_min, fmt.q_max)
        if self.integer:
            return y
        one = self.constant(1.0, "FLOAT", f"{name}_one")
        return self.apply("DequantizeLinear", name, y, y, one, 0, dtype="FLOAT", last=last)

    def _dequantize(self, acc: _Tensor) -> _Tensor:
        d = self.network.output_dequantizer
        if d is None:
            raise NotCovered("output='floats': this network has no output dequantizer")
        if d.precision != "float32":
            raise _no_floats(f"{d.precision} arithmetic, expected float32")
        if self.ranges[self.network.output].largest > _FLOAT_MASS:
            raise _no_floats("accumulators beyond 2**24 round in float32")
        y = self.cast(acc, "FLOAT", "output_float")
        for op, values in (("Mul", d.scale), ("Add", d.offset)):
            y = self.apply(op, "y", y, y, _along(np.asarray(values), y))
        return y

    # --- small pieces -----------------------------------------------------------------------

    def cast(self, x: _Tensor, dtype: str, name: str, *, last: bool = False) -> _Tensor:
        if x.dtype == dtype and not last:
            return x
        kind = int(getattr(self.onnx.TensorProto, dtype))
        return self.apply("Cast", name, x, dtype=dtype, last=last, to=kind)

    def as_floats(self, x: _Tensor, name: str, mass: int) -> _Tensor:
        """Integers for an operator that ONNX has for 8 bits and floats only."""
        if mass > _FLOAT_MASS:
            expected = f"integers of 8 bits, or floats that hold at most {_FLOAT_MASS}"
            raise NotCovered(mismatch(f"node {name!r}: absolute mass", mass, expected))
        return self.cast(x, "FLOAT", f"{name}_floats")

    def add_constant(
        self, x: _Tensor, values: ArrayLike, name: str, *, last: bool = False
    ) -> _Tensor:
        """x plus one value, or one per channel."""
        return self.apply("Add", name, x, x, _along(np.asarray(values), x), last=last)

    def quant(self, x: _Tensor, fmt: IntFormat, name: str, rounding: str = "ROUND") -> _Tensor:
        """A QONNX Quant of scale 1 and zero point 0: it declares and enforces a bit width."""
        return self.apply(
            "Quant", name, x, x, 1.0, 0.0, float(fmt.bits), domain=_DOMAIN,
            signed=int(fmt.signed), narrow=int(fmt.narrow), rounding_mode=rounding,
        )  # fmt: skip

    def float_weights(self, weight: Array, name: str, greatest: int, signed: bool) -> str:
        """Integer weights as floats, through the quantizer of the flavour.

        A runtime may fuse 8-bit operands into an integer kernel; where that could saturate, the
        weights are kept in 32 bits, which no such kernel takes.
        """
        lo, hi = min(int(weight.min()), 0), max(int(weight.max()), 0)
        dtype, base = _type_of(min(lo, -1), hi), f"{name}_weight"
        if 2 * (greatest + 128 * signed) * max(-lo, hi) > _TWO_PRODUCTS:
            dtype = "INT32"
        if self.flavour == "qonnx":
            dtype = "FLOAT"
        raw = _Tensor(self.constant(weight, dtype, base), dtype, weight.shape, batched=False)
        if self.flavour == "qonnx":
            return self.quant(raw, IntFormat(max(signed_bits(lo, hi), 2), signed=True), base).name
        one = self.constant(1.0, "FLOAT", f"{name}_one")
        zero = () if dtype == "INT32" else (0,)
        return self.apply("DequantizeLinear", base, raw, raw, one, *zero, dtype="FLOAT").name

    def padded(self, x: _Tensor, padding: Pads, value: int, name: str) -> _Tensor:
        """x with `value` around its spatial axes, where that is not 0."""
        pads = [0, 0, *(p[0] for p in padding), 0, 0, *(p[1] for p in padding)]
        shape = (x.shape[0], *(d + sum(p) for d, p in zip(x.shape[1:], padding)))
        return self.apply(
            "Pad", f"{name}_padded", x, x, self.constant(pads, "INT64", f"{name}_pads"), value,
            shape=shape,
        )  # fmt: skip

    # --- the node kinds ---------------------------------------------------------------------

    def linear(self, name: str, op: Linear, x: _Tensor) -> _Tensor:
        return self._product("MatMul", name, x, op.weight.T, op.bias)

    def conv(self, name: str, op: Conv1d | Conv2d, x: _Tensor) -> _Tensor:
        return self._product(
            "Conv", name, x, op.weight, op.bias, op.padding, op.pad_code,
            kernel_shape=list(op.weight.shape[2:]), strides=list(op.stride),
            dilations=list(op.dilation), group=op.groups,
        )  # fmt: skip

    def conv_transpose(self, name: str, op: ConvTranspose2d, x: _Tensor) -> _Tensor:
        beyond = any(extra >= s for extra, s in zip(op.output_padding, op.stride))
        if self.integer or beyond:  # ONNX has no integer form, onnxruntime none of the other
            spread, conv = op.as_convolution(x.shape)
            return self.conv(name, conv, self.gather(f"{name}_spread", spread, x))
        w = self.float_weights(op.weight, name, max(x.limits[1], 0), x.limits[0] < 0)
        y = self.apply(
            "ConvTranspose", name, x, x, w, shape=self.network.shapes[name], dtype=self.sums,
            last=op.bias is None, kernel_shape=list(op.kernel), strides=list(op.stride),
            dilations=list(op.dilation), group=op.groups, pads=_pads(op.padding),
            output_padding=list(op.output_padding),
        )  # fmt: skip
        return y if op.bias is None else self.add_constant(y, op.bias, name, last=True)

    def gather(self, name: str, op: Gather, x: _Tensor) -> _Tensor:
        """From the flat sample, behind which stands the fill where there is one."""
        size, index = prod(x.shape), op.index
        x = self.apply("Flatten", f"{name}_flat", x, x, shape=(size,), axis=1)
        if index.min() == PADDING:
            lo, hi = min(x.limits[0], op.fill), max(x.limits[1], op.fill)
            x = self.cast(x, _type_of(lo, hi) if self.integer else x.dtype, f"{name}_wide")
            pads = self.constant([0, 0, 0, 1], "INT64", f"{name}_pads")
            x = self.apply("Pad", f"{name}_padded", x, x, pads, op.fill, shape=(size + 1,))
            x = replace(x, limits=(lo, hi))
        places = self.constant(np.where(index == PADDING, size, index), "INT64", f"{name}_places")
        return self.apply("Gather", name, x, x, places, shape=index.shape, last=True, axis=1)

    def _product(
        self,
        kind: str,
        name: str,
        x: _Tensor,
        weight: Array,
        bias: Array | None,
        padding: Pads = (),
        pad_code: int = 0,
        **attributes: Any,
    ) -> _Tensor:
        """MatMul or Conv, or its integer form, and a bias."""
        padded = pad_code if any(sum(p) for p in padding) else 0
        lo, hi = min(x.limits[0], padded), max(x.limits[1], padded)
        zero, sums = 0, self.sums
        eight = self._eight_bits(x, weight, lo, hi, name) if self.integer else None
        if eight is not None:
            kind += "Integer"
            x, zero, (weight, dtype, weight_zero) = eight
            w = self.constant(weight, dtype, f"{name}_weight")
            zeros = [self.constant(z, t, f"{name}_zero") for z, t in
                     ((zero, "UINT8"), (weight_zero, dtype))]  # fmt: skip
        elif not self.integer:
            w, zeros = self.float_weights(weight, name, hi, lo < 0), []
        elif kind == "MatMul":
            x = self.cast(x, "INT32", f"{name}_wide")
            w, zeros = self.constant(weight, "INT32", f"{name}_weight"), []
        else:
            x, sums = self.as_floats(x, name, self.masses[name]), "FLOAT"
            w, zeros = self.constant(weight, "FLOAT", f"{name}_weight"), []
        if padded:
            x = self.padded(x, padding, pad_code + zero, name)
            padding = ((0, 0),) * len(padding)
        if padding:
            attributes["pads"] = _pads(padding)
        shape, last = self.network.shapes[name], bias is None
        ready = last and sums == self.sums
        y = self.apply(
            kind, name, x, x, w, *zeros, shape=shape, dtype=sums, last=ready, **attributes
        )
        if sums != self.sums:
            y = self.cast(y, self.sums, name, last=last)
        return y if bias is None else self.add_constant(y, bias, name, last=True)

    def _eight_bits(
        self, x: _Tensor, weight: Array, least: int, greatest: int, name: str
    ) -> tuple[_Tensor, int, tuple[Array, str, int]] | None:
        """(x as uint8, its zero point, weights and theirs), or None when 8 bits do not hold them.

        Weights are signed only where two products cannot leave 16 bits; else unsigned with a zero
        point, which every kernel multiplies exactly.
        """
        lo, hi = int(weight.min()), int(weight.max())
        zero = max(0, -least)
        if greatest + zero > 255 or hi - lo > 255 or lo < -128 or hi > 255:
            return None
        if zero:
            wide = self.add_constant(self.cast(x, "INT32", f"{name}_wide"), zero, f"{name}_shifted")
            x = wide
        x = self.cast(x, "UINT8", f"{name}_unsigned")
        if hi <= 127 and 2 * (greatest + zero) * max(-lo, hi) <= _TWO_PRODUCTS:
            return x, zero, (weight, "INT8", 0)
        weight_zero = max(0, -lo)
        return x, zero, (weight + weight_zero, "UINT8", weight_zero)

    def requantize(self, name: str, op: Requantize, acc: _Tensor) -> _Tensor:
        fmt, (lo, hi) = op.format, acc.limits
        # Thresholds moved into [lo, hi + 1]: the same codes for every possible accumulator.
        thresholds = np.clip(op.thresholds, lo, hi + 1)
        if self.flavour == "qonnx":
            return self._multi_threshold(acc, thresholds, fmt, name, last=True)
        grid = self._shift_form(op, acc, thresholds)
        if self.flavour == "qcdq" and grid is not None:
            first, r = grid
            doubled = self.apply("Mul", f"{name}_doubled", acc, acc, 2.0)
            shifted = self.add_constant(doubled, 2**r + 1 - 2 * first, f"{name}_shifted")
            return self._quantize_linear(shifted, 2.0 ** (r + 1), fmt.q_min, fmt, name, last=True)
        return self._compare(name, acc, fmt, thresholds)

    def _shift_form(
        self, op: Requantize, acc: _Tensor, thresholds: Array
    ) -> tuple[Array, int] | None:
        """(T0, r) when code = q_min + clip(((acc - T0) >> r) + 1), and 8 bits hold the codes.

        QuantizeLinear rounds half to even; (2 acc - 2 T0 + 2**r + 1) / 2**(r + 1) never is a tie.
        """
        r, (lo, hi) = op.shift, acc.limits
        if r is None or r > 20 or _type_of(op.format.q_min, op.format.q_max) == "INT32":
            return None
        steps = np.arange(thresholds.shape[1]) * 2**r
        inside = (op.thresholds > lo) & (op.thresholds <= hi)
        if not inside.any(axis=1).all():
            return None
        k = inside.argmax(axis=1)
        first = op.thresholds[np.arange(len(k)), k] - steps[k]
        if not np.array_equal(np.clip(first[:, None] + steps, lo, hi + 1), thresholds):
            return None
        if 2 * (max(abs(lo), abs(hi)) + int(np.abs(first).max())) + 2**r + 1 > _FLOAT_MASS:
            return None
        return first, r

    def _compare(self, name: str, acc: _Tensor, fmt: IntFormat, thresholds: Array) -> _Tensor:
        """code = q_min + sum over k of (acc >= T[c, k])."""
        count = self._count(name, self.cast(acc, self.sums, f"{name}_acc"), thresholds)
        out = _type_of(fmt.q_min, fmt.q_max) if self.integer else "FLOAT"
        if out == self.sums:
            return self.add_constant(count, fmt.q_min, name, last=True)
        shifted = self.add_constant(count, fmt.q_min, f"{name}_shifted") if fmt.q_min else count
        return self.cast(shifted, out, name, last=True)

    def _count(self, name: str, x: _Tensor, thresholds: Array) -> _Tensor:
        """#{k : x >= T[c, k]}, int32 in the integer flavour, else a float."""
        count = thresholds.shape[1]
        table = thresholds.reshape((-1,) + (1,) * (len(x.shape) - 1) + (count,))
        axis = self.constant([len(x.shape) + 1], "INT64", f"{name}_axis")
        shape, t = (*x.shape, count), self.constant(table, x.dtype, f"{name}_thresholds")
        wide = self.apply("Unsqueeze", f"{name}_wide", x, x, axis, shape=(*x.shape, 1))
        reached = self.apply(
            "GreaterOrEqual", f"{name}_reached", wide, wide, t, shape=shape, dtype="BOOL"
        )
        ones = self.cast(reached, self.sums, f"{name}_ones")
        return self.apply("ReduceSum", f"{name}_count", ones, ones, axis, shape=x.shape, keepdims=0)

    def rescale(self, name: str, op: Rescale, acc: _Tensor) -> _Tensor:
        """Few codes by their thresholds, others in 64-bit integers."""
        if op.format.levels <= 256:
            return self.requantize(name, Requantize.from_rescale(op), acc)
        if not self.integer:
            expected = "at most 8 bits, or the integer flavour"
            raise NotCovered(mismatch(f"node {name!r} (Rescale)", op.format, expected))
        lo, hi = (end + op.offset.astype(object) for end in acc.limits)
        largest = (np.maximum(abs(lo), abs(hi)) * op.multiplier.astype(object)).max()
        largest = max(largest, np.abs(op.zero_point.astype(object)).max())
        if largest >= 2**62:
            raise NotCovered(mismatch(f"node {name!r} (Rescale): a product", largest, "62 bits"))
        y, shift = self.cast(acc, "INT64", f"{name}_wide"), op.shift
        y = self.add_constant(y, op.offset, f"{name}_shifted")
        y = self.apply("Mul", f"{name}_product", y, y, _along(op.multiplier, y))
        if op.first_rounding is not None:
            y = self._divided(y, op.first_shift, op.first_rounding, f"{name}_first")
            shift = shift - op.first_shift
        y = self._divided(y, shift, op.rounding, f"{name}_rounded")
        y = self.add_constant(y, op.zero_point, f"{name}_codes")
        # A runtime's Min, Max and Clip look at the low 32 bits of some 64-bit integers.
        for kind, ends in zip(("Less", "Greater"), (_along(e, y) for e in op.clip.T)):
            beyond = self.apply(kind, f"{name}_beyond", y, y, ends, dtype="BOOL")
            y = self.apply("Where", f"{name}_clipped", y, beyond, ends, y)
        return self.cast(y, _type_of(*self.ranges[name].ends), name, last=True)

    def _divided(self, x: _Tensor, shift: Array, mode: Rounding, name: str) -> _Tensor:
        """x / 2**shift of 64-bit integers below 2**62, rounded: on magnitudes, which Div floors."""
        if not shift.any():
            return x
        size = 1 << shift
        half = size >> 1
        under = np.maximum(half - 1, 0)
        up, down = {  # what to add to the magnitudes of positive and of negative numbers
            Rounding.FLOOR: (0 * size, size - 1),
            Rounding.CEIL: (size - 1, 0 * size),
            Rounding.TOWARD_ZERO: (0 * size, 0 * size),
            Rounding.AWAY_FROM_ZERO: (size - 1, size - 1),
            Rounding.HALF_UP: (half, under),
            Rounding.HALF_DOWN: (under, half),
            Rounding.HALF_AWAY: (half, half),
            Rounding.HALF_TOWARD_ZERO: (under, under),
            Rounding.HALF_EVEN: (under, under),
        }[mode]
        # A runtime's Sign looks at the low 32 bits alone: the sign is 1 - 2 * (x < 0).
        negative = self.cast(self.apply("Less", name, x, x, 0, dtype="BOOL"), "INT64", name)
        sign = self.add_constant(self.apply("Mul", name, negative, negative, -2), 1, name)
        magnitude = self.apply("Abs", name, x)
        more = self.apply("Mul", name, negative, negative, _along(down - up, x))
        y = self.apply("Add", name, magnitude, self.add_constant(magnitude, up, name), more)
        if mode is Rounding.HALF_EVEN:
            floor = self.apply("Div", name, magnitude, magnitude, _along(size, x))
            odd = self.apply("Mod", name, floor, floor, 2)
            y = self.apply(
                "Add", name, y, y, self.apply("Mul", name, odd, odd, _along(half > 0, x))
            )
        y = self.apply("Div", name, y, y, _along(size, x))
        return self.apply("Mul", name, y, y, sign)

    def lookup(self, name: str, op: Lookup, codes: _Tensor) -> _Tensor:
        """Gather from the table, laid out row after row."""
        out = _type_of(*self.ranges[name].ends) if self.integer else "FLOAT"
        index = self.cast(codes, "INT64", f"{name}_index")
        start = np.arange(op.channels) * op.table.shape[1] - op.lo
        index = self.add_constant(index, start, f"{name}_index")
        table = self.constant(op.table.ravel(), out, f"{name}_table")
        return self.apply("Gather", name, index, table, index, dtype=out, last=True, axis=0)

    def max_pool(self, name: str, op: MaxPool2d, codes: _Tensor) -> _Tensor:
        x = codes
        if codes.dtype == "INT32":
            x = self.as_floats(codes, name, max(map(abs, codes.limits)))
        y = self.apply(
            "MaxPool", name, x, shape=self.network.shapes[name], last=x is codes,
            kernel_shape=list(op.kernel), strides=list(op.stride), pads=_pads(op.padding),
        )  # fmt: skip
        return y if x is codes else self.cast(y, codes.dtype, name, last=True)

    def sum_pool(self, name: str, op: SumPool2d, codes: _Tensor) -> _Tensor:
        """A depthwise convolution with ones."""
        channels = codes.shape[0]
        ones = np.ones((channels, 1, *op.kernel), dtype=np.int64)
        conv = Conv2d(ones, None, op.stride, op.padding, groups=channels, pad_code=op.pad_code)
        return self.conv(name, conv, codes)

    def global_sum(self, name: str, op: GlobalSumPool, codes: _Tensor) -> _Tensor:
        x, shape = self.cast(codes, self.sums, f"{name}_wide"), codes.shape[:1]
        axes = self.constant(range(2, len(codes.shape) + 1), "INT64", f"{name}_axes")
        return self.apply("ReduceSum", name, x, x, axes, shape=shape, last=True, keepdims=0)

    def add(self, name: str, op: Add, *x: _Tensor) -> _Tensor:
        terms, multipliers = [], op.multipliers or (1,) * len(x)
        if len(x) == 1 and multipliers != (1,) and not self.integer:
            # A product of floats alone is read as a scale of the same integers: a sum of two.
            (m,) = multipliers
            part = -2 if m == -1 else m // 2
            x, multipliers = x * 2, (part, m - part)
        for value, m in zip(x, multipliers):
            term = self.cast(value, self.sums, f"{name}_term")
            if abs(m) > self.limit:
                raise NotCovered(f"node {name!r}: multiplier {m} is too large")
            if len(x) == 1 and m != 1:  # a lone product would be read as a scale
                terms.append(self.apply("Mul", f"{name}_term", term, term, -1 if m < -1 else 1))
                m += 1 if m < -1 else -1
            terms.append(term if m == 1 else self.apply("Mul", f"{name}_term", term, term, m))
        for i in range(1, len(terms) - 1):
            terms[i] = self.apply("Add", f"{name}_partial", terms[i], *terms[i - 1 : i + 1])
        kind = "Add" if len(terms) > 1 else "Identity"
        return self.apply(kind, name, terms[-1], *terms[-2:], last=True)

    def concat(self, name: str, op: Concat, *x: _Tensor) -> _Tensor:
        dtypes = {t.dtype for t in x}
        dtype = dtypes.pop() if len(dtypes) == 1 else "INT32"
        parts = [self.cast(t, dtype, f"{name}_part") for t in x]
        shape = self.network.shapes[name]
        return self.apply("Concat", name, parts[0], *parts, shape=shape, last=True, axis=1)

    def flatten(self, name: str, op: Flatten, v: _Tensor) -> _Tensor:
        return self.apply("Flatten", name, v, shape=(prod(v.shape),), last=True, axis=1)

    def reshape(self, name: str, op: Reshape, v: _Tensor) -> _Tensor:
        target = self.constant([-1, *op.shape], "INT64", f"{name}_shape")
        return self.apply("Reshape", name, v, v, target, shape=op.shape, last=True)


_WRITERS: dict[type[Op], Callable[..., _Tensor]] = {
    Add: _Writer.add,
    Concat: _Writer.concat,
    Conv1d: _Writer.conv,
    Conv2d: _Writer.conv,
    ConvTranspose2d: _Writer.conv_transpose,
    Flatten: _Writer.flatten,
    Gather: _Writer.gather,
    GlobalSumPool: _Writer.global_sum,
    Linear: _Writer.linear,
    Lookup: _Writer.lookup,
    MaxPool2d: _Writer.max_pool,
    Requantize: _Writer.requantize,
    Rescale: _Writer.rescale,
    Reshape: _Writer.reshape,
    SumPool2d: _Writer.sum_pool,
}


def _no_door(reason: str) -> NotCovered:
    remedy = "a network of the same nodes with input_format takes the codes"
    return NotCovered(f"input quantizer: {reason}; {remedy}")


def _no_floats(reason: str) -> NotCovered:
    return NotCovered(f"output dequantizer: {reason}; output='integers' writes what goes into it")


def _along_axis(values: Array, x: _Tensor, axis: int | None) -> Array:
    """One value, or one for each index of an axis of x, laid out to fit x."""
    if values.size == 1:
        return values.reshape(())
    rank = len(x.shape) + 1
    return values.reshape([-1 if axis is not None and i == axis % rank else 1 for i in range(rank)])


def _as_thresholds(q: Quantizer) -> ThresholdQuantizer | None:
    """The same quantizer as the least float32 of each code; None where infinities differ."""
    greatest = float(np.finfo(np.float32).max)
    rows, levels = q.scale.size, q.format.levels
    rowwise = q if q.axis is None else replace(q, axis=0)  # type: ignore[type-var]
    ends = np.broadcast_to([-np.inf, -greatest, greatest, np.inf], (rows, 4))
    lowest, low, high, highest = rowwise.quantize(ends).T
    if (lowest != low).any() or (high != highest).any():
        return None
    codes = np.broadcast_to(q.format.q_min + np.arange(1, levels), (rows, levels - 1))
    table = float_thresholds(rowwise.quantize, codes)
    return ThresholdQuantizer(table, q.format, q.axis)


def _type_of(lo: int, hi: int) -> str:
    """The integer type that the integer flavour gives values of a range."""
    if lo >= 0:
        return "UINT8" if hi <= 255 else "INT32"
    return "INT8" if lo >= -128 and hi <= 127 else "INT32"


def _along(values: Array, x: _Tensor) -> Array:
    """One value, or one per channel, laid out to fit x."""
    return values.reshape((1, -1) + (1,) * (len(x.shape) - 1)) if values.size > 1 else values


def _pads(padding: Pads) -> list[int]:
    return [p[0] for p in padding] + [p[1] for p in padding]


def _finn_type(fmt: IntFormat) -> str:
    if fmt == BIPOLAR:
        return "BIPOLAR"
    if fmt.bits == 1 and not fmt.signed:
        return "BINARY"
    return f"{'INT' if fmt.signed else 'UINT'}{fmt.bits}"
