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
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refqnn.container import write_atomically
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, mismatch
from refqnn.formats import BIPOLAR, IntFormat, signed_bits, unsigned_bits
from refqnn.graph import INPUT, inputs_of
from refqnn.network import Network
from refqnn.onnx.files import import_onnx
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Interval,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Reshape,
    SumOp,
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import Requantize
from refqnn.quantizers import AffineQuantizer, Quantizer, ThresholdQuantizer
from refqnn.rounding import Rounding

__all__ = ["FLAVOURS", "Flavour", "to_onnx"]

Array = NDArray[Any]
Flavour = Literal["qonnx", "qcdq", "integer"]
FLAVOURS: tuple[Flavour, ...] = ("qonnx", "qcdq", "integer")

_OPSET = 13
_IR = 8
_DOMAIN = "qonnx.custom_op.general"
_FLOAT_MASS, _INT32_MASS = 2**24, 2**31 - 1
_TWO_PRODUCTS = 2**15 - 1  # some 8-bit kernels add two products in 16 bits, saturating

_QONNX_ROUNDING = {
    Rounding.HALF_EVEN: "ROUND",
    Rounding.FLOOR: "FLOOR",
    Rounding.CEIL: "CEIL",
    Rounding.TOWARD_ZERO: "DOWN",
    Rounding.HALF_TOWARD_ZERO: "HALF_DOWN",
}
# QONNX's HALF_UP computes floor(|x| + 0.5) in floats, which sends 0.49999997 to 1: not written.

_ROUNDING_OPERATOR = {
    Rounding.HALF_EVEN: "Round",
    Rounding.FLOOR: "Floor",
    Rounding.CEIL: "Ceil",
}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph: name, element type, shape of a sample."""

    name: str
    dtype: str
    shape: Shape


def to_onnx(
    network: Network,
    path: str | os.PathLike[str] | None = None,
    *,
    flavour: Flavour = "qonnx",
    output: Literal["integers", "floats"] = "integers",
    batch: int | None = None,
) -> Any:
    """Write a network as an ONNX model.  See `refqnn.onnx.to_onnx`."""
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
        write_atomically(Path(path), lambda file: file.write(data))
    return model


class _Writer:
    """The graph so far."""

    def __init__(self, network: Network, flavour: Flavour, floats: bool, batch: int | None) -> None:
        self.onnx = import_onnx()
        self.network = network
        self.flavour = flavour
        self.integer = flavour == "integer"
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
                raise NotCovered(f"{where}: it has no ONNX form here")
            self.tensors[node.name] = write(self, node.name, node.op, operands, inputs_of(node))
        result = self.tensors[self.network.output]
        if self.floats:
            result = self._dequantize(result)
        elif result.name == graph_input.name:
            raise NotCovered("output: it is the input itself")
        graph = helper.make_graph(
            self.nodes,
            "refqnn",
            [graph_input],
            [self._info(result)],
            self.initializers,
            value_info=[i for i in self.infos if i.name not in (graph_input.name, result.name)],
        )
        graph.quantization_annotation.extend(self.annotations)
        opsets = [helper.make_opsetid("", _OPSET)]
        if any(node.domain == _DOMAIN for node in self.nodes):
            opsets.append(helper.make_opsetid(_DOMAIN, 1))
        model = helper.make_model(graph, opset_imports=opsets, producer_name="refqnn")
        model.ir_version = _IR
        return model

    def fresh(self, base: str) -> str:
        """A tensor name that no node of the network has."""
        i = 0
        while f"{base}.{i}" in self.taken:
            i += 1
        name = f"{base}.{i}"
        self.taken.add(name)
        return name

    def constant(self, values: Any, dtype: str, base: str) -> str:
        array = np.ascontiguousarray(np.asarray(values, dtype=_NUMPY[dtype]))
        name = self.fresh(base)
        self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def apply(
        self,
        op: str,
        inputs: list[str],
        shape: Shape,
        dtype: str,
        name: str,
        *,
        last: bool = False,
        domain: str = "",
        **attributes: Any,
    ) -> _Tensor:
        """Append a node; its output is `name` when it is the last of a network node."""
        output = _Tensor(name if last else self.fresh(name), dtype, shape)
        proto = self.onnx.helper.make_node(
            op, inputs, [output.name], name=f"{output.name}:{op}", domain=domain, **attributes
        )
        self.nodes.append(proto)
        self.infos.append(self._info(output))
        return output

    def _info(self, t: _Tensor) -> Any:
        kind = getattr(self.onnx.TensorProto, t.dtype)
        return self.onnx.helper.make_tensor_value_info(t.name, kind, [self.batch, *t.shape])

    def _check_sums(self, op: Op, inputs: tuple[str, ...], name: str, where: str) -> None:
        limit = _INT32_MASS if self.integer else _FLOAT_MASS
        mass = self.ranges[name].largest
        if isinstance(op, SumOp):
            mass = max(mass, op.prepare(*(self.ranges[i] for i in inputs)))
        if mass > limit:
            expected = f"at most {limit} for the {self.flavour} flavour"
            raise NotCovered(mismatch(f"{where}: absolute mass", mass, expected))

    # --- the doors --------------------------------------------------------------------------

    def _input(self) -> Any:
        shape, fmt, quantizer = (
            self.network.input_shape,
            self.network.input_format,
            self.network.input_quantizer,
        )
        name = self.fresh("x") if quantizer is not None else INPUT
        if quantizer is None:
            dtype = self._codes_dtype(fmt) if self.flavour != "qonnx" else "FLOAT"
            tensor = _Tensor(name, dtype, shape)
            self._annotate(name, fmt)
            codes = tensor if self.integer else self.cast(tensor, "FLOAT", "input_codes")
            self.tensors[INPUT] = codes
            return self._info(tensor)
        tensor = _Tensor(name, "FLOAT", shape)
        self.tensors[INPUT] = self._quantize(tensor, quantizer)
        return self._info(tensor)

    def _annotate(self, name: str, fmt: IntFormat) -> None:
        annotation = self.onnx.TensorAnnotation(tensor_name=name)
        entry = annotation.quant_parameter_tensor_names.add()
        entry.key, entry.value = "finn_datatype", _finn_type(fmt)
        self.annotations.append(annotation)

    def _quantize(self, x: _Tensor, q: Quantizer) -> _Tensor:
        """x / scale, rounded, plus zero point, saturated, with the operators of the flavour."""
        if q.precision != "float32":
            raise NotCovered(f"input quantizer: {q.precision} arithmetic, expected float32")
        if isinstance(q, ThresholdQuantizer):
            return self._thresholds(x, q)
        fmt, mode = q.format, Rounding.of(q.rounding)
        scale = q.scale.reshape(-1)
        if q.axis is not None and scale.size > 1:
            axis = q.axis % (len(x.shape) + 1)
            scale = scale.reshape([-1 if i == axis else 1 for i in range(len(x.shape) + 1)])
        zero = np.unique(np.asarray(getattr(q, "zero_point", 0)))
        if zero.size != 1:
            raise NotCovered("input quantizer: one zero point per channel")
        z = int(zero[0])
        zero_first = isinstance(q, AffineQuantizer) and q.zero_point_first
        if fmt != BIPOLAR and fmt.bits > 16:
            raise NotCovered(f"input quantizer: {fmt}, expected at most 16 bits")
        eight_bits = fmt.bits <= 8 and fmt != BIPOLAR
        linear = eight_bits and mode is Rounding.HALF_EVEN and not (zero_first and z)
        if self.flavour != "qonnx" and linear and scale.size == 1:
            return self._quantize_linear(x, scale.reshape(()), z, fmt, INPUT, "input")
        s = self.constant(scale if scale.size > 1 else scale.reshape(()), "FLOAT", "input_scale")
        y = self.apply("Div", [x.name, s], x.shape, "FLOAT", "input_scaled")
        if fmt == BIPOLAR:
            return self._bipolar_input(y)
        if zero_first and z:
            y = self.add_constant(y, z, "input_shifted")
        if self.flavour == "qonnx" and (z == 0 or zero_first):
            if mode not in _QONNX_ROUNDING:
                raise NotCovered(f"input quantizer: QONNX has no exact rounding {mode.value!r}")
            return self.quant(y, fmt, "input_codes", rounding=_QONNX_ROUNDING[mode])
        if mode not in _ROUNDING_OPERATOR:
            raise NotCovered(f"input quantizer: ONNX has no operator for {mode.value!r}")
        y = self.apply(_ROUNDING_OPERATOR[mode], [y.name], y.shape, "FLOAT", "input_rounded")
        offset = 0 if zero_first else z
        limits = [
            self.constant(v, "FLOAT", "input_limit")
            for v in (fmt.q_min - offset, fmt.q_max - offset)
        ]
        y = self.apply("Clip", [y.name, *limits], y.shape, "FLOAT", "input_clipped")
        if offset:
            y = self.add_constant(y, offset, "input_codes")
        return self.cast(y, self._codes_dtype(fmt), "input_codes") if self.integer else y

    def _thresholds(self, x: _Tensor, q: ThresholdQuantizer) -> _Tensor:
        """The count of the thresholds that x reaches."""
        fmt, table = q.format, q.thresholds
        if table.shape[0] > 1 and q.axis != 1:
            raise NotCovered(f"input quantizer: thresholds along axis {q.axis}, expected 1")
        if fmt.bits > 8:
            raise NotCovered(f"input quantizer: thresholds of {fmt}, expected at most 8 bits")
        greatest = np.finfo(np.float32).max
        if np.isposinf(table).any():  # never reached, not even by an infinity
            limits = [self.constant(v, "FLOAT", "input_limit") for v in (-greatest, greatest)]
            x = self.apply("Clip", [x.name, *limits], x.shape, "FLOAT", "input_finite")
        if fmt == BIPOLAR:
            if not np.isfinite(table).all():
                raise NotCovered("input quantizer: a channel of one bipolar code")
            return self._bipolar_input(self.add_constant(x, -table[:, 0], "input_shifted"))
        if self.flavour != "qonnx":
            count = self._count("input", x, table)
            codes = self.add_constant(count, fmt.q_min, "input_codes") if fmt.q_min else count
            return (
                self.cast(codes, self._codes_dtype(fmt), "input_codes") if self.integer else codes
            )
        t = self.constant(table, "FLOAT", "input_thresholds")
        return self.apply(
            "MultiThreshold",
            [x.name, t],
            x.shape,
            "FLOAT",
            "input_codes",
            domain=_DOMAIN,
            out_dtype=_finn_type(fmt),
            out_scale=1.0,
            out_bias=float(fmt.q_min),
            data_layout="NC" + "HWD"[: len(x.shape) - 1],
        )

    def _bipolar_input(self, y: _Tensor) -> _Tensor:
        if self.flavour == "qonnx":
            one = self.constant(1.0, "FLOAT", "input_one")
            return self.apply(
                "BipolarQuant", [y.name, one], y.shape, "FLOAT", "input_codes", domain=_DOMAIN
            )
        zero = self.constant(0.0, "FLOAT", "input_zero")
        positive = self.apply("GreaterOrEqual", [y.name, zero], y.shape, "BOOL", "input_positive")
        dtype = "INT32" if self.integer else "FLOAT"
        bit = self.cast(positive, dtype, "input_bit")
        two = self.constant(2, dtype, "input_two")
        doubled = self.apply("Mul", [bit.name, two], y.shape, dtype, "input_doubled")
        codes = self.add_constant(doubled, -1, "input_codes")
        return self.cast(codes, "INT8", "input_codes") if self.integer else codes

    def _quantize_linear(
        self, x: _Tensor, scale: Any, zero: int, fmt: IntFormat, name: str, base: str
    ) -> _Tensor:
        """QuantizeLinear, Clip where the format is narrower than 8 bits, DequantizeLinear(1, 0)."""
        dtype = "INT8" if fmt.signed else "UINT8"
        s = self.constant(scale, "FLOAT", f"{base}_scale")
        z = self.constant(zero, dtype, f"{base}_zero")
        y = self.apply("QuantizeLinear", [x.name, s, z], x.shape, dtype, f"{base}_quantized")
        if fmt not in (IntFormat(8, True), IntFormat(8, False)):
            limits = [self.constant(v, dtype, f"{base}_limit") for v in (fmt.q_min, fmt.q_max)]
            y = self.apply("Clip", [y.name, *limits], y.shape, dtype, f"{base}_clipped")
        if self.integer:
            return y
        one, none = (
            self.constant(1.0, "FLOAT", f"{base}_one"),
            self.constant(0, dtype, f"{base}_none"),
        )
        last = name != INPUT
        return self.apply(
            "DequantizeLinear",
            [y.name, one, none],
            y.shape,
            "FLOAT",
            name if last else "input_codes",
            last=last,
        )

    def _dequantize(self, acc: _Tensor) -> _Tensor:
        d = self.network.output_dequantizer
        if d is None:
            raise NotCovered("output='floats': this network has no output dequantizer")
        if d.precision != "float32":
            raise NotCovered(f"output dequantizer: {d.precision} arithmetic, expected float32")
        if self.ranges[self.network.output].largest > _FLOAT_MASS:
            raise NotCovered("output dequantizer: accumulators beyond 2**24 round in float32")
        y = self.cast(acc, "FLOAT", "output_float")
        for op, values in (("Mul", d.scale), ("Add", d.offset)):
            array = np.asarray(values)
            if array.size > 1:
                array = array.reshape((1, -1) + (1,) * (len(y.shape) - 1))
            operand = self.constant(array, "FLOAT", f"output_{op.lower()}")
            y = self.apply(op, [y.name, operand], y.shape, "FLOAT", "y")
        return y

    # --- small pieces -----------------------------------------------------------------------

    def _codes_dtype(self, fmt: IntFormat) -> str:
        if fmt.q_min >= 0:
            return "UINT8" if fmt.q_max <= 255 else "INT32"
        return "INT8" if fmt.q_min >= -128 and fmt.q_max <= 127 else "INT32"

    def dtype_of(self, interval: Interval) -> str:
        """The integer type that the integer flavour gives values of a range."""
        lo, hi = int(interval.lo.min()), int(interval.hi.max())
        if lo >= 0:
            return "UINT8" if unsigned_bits(lo, hi) <= 8 else "INT32"
        return "INT8" if signed_bits(lo, hi) <= 8 else "INT32"

    def cast(self, x: _Tensor, dtype: str, name: str, *, last: bool = False) -> _Tensor:
        if x.dtype == dtype and not last:
            return x
        kind = int(getattr(self.onnx.TensorProto, dtype))
        return self.apply("Cast", [x.name], x.shape, dtype, name, last=last, to=kind)

    def add_constant(self, x: _Tensor, values: Any, name: str, *, last: bool = False) -> _Tensor:
        """x plus one value, or one per channel."""
        array = np.asarray(values)
        if array.size > 1:
            array = array.reshape((1, -1) + (1,) * (len(x.shape) - 1))
        operand = self.constant(array, x.dtype, f"{name}_constant")
        return self.apply("Add", [x.name, operand], x.shape, x.dtype, name, last=last)

    def quant(self, x: _Tensor, fmt: IntFormat, name: str, *, rounding: str = "ROUND") -> _Tensor:
        """A QONNX Quant of scale 1 and zero point 0: it declares and enforces a bit width."""
        operands = [self.constant(v, "FLOAT", f"{name}_quant") for v in (1.0, 0.0, float(fmt.bits))]
        return self.apply(
            "Quant",
            [x.name, *operands],
            x.shape,
            "FLOAT",
            name,
            domain=_DOMAIN,
            signed=int(fmt.signed),
            narrow=int(fmt.narrow),
            rounding_mode=rounding,
        )

    def float_weights(self, weight: Array, name: str, source: str, pad_code: int = 0) -> str:
        """Integer weights as floats, through the quantizer of the flavour.

        A runtime may fuse 8-bit operands into an integer kernel; where that could saturate, the
        weights are kept in 32 bits, which no such kernel takes.
        """
        lo, hi = min(int(weight.min()), 0), max(int(weight.max()), 0)
        if self.flavour == "qonnx":
            fmt = IntFormat(max(signed_bits(lo, hi), 2), signed=True)
            raw = self.constant(weight, "FLOAT", f"{name}_weight")
            # A weight has no batch axis: its shape is written as it is.
            operands = [
                self.constant(v, "FLOAT", f"{name}_quant") for v in (1.0, 0.0, float(fmt.bits))
            ]
            return self._constant_node(
                "Quant", [raw, *operands], weight.shape, name, _DOMAIN,
                signed=1, narrow=0, rounding_mode="ROUND",
            )  # fmt: skip
        dtype = self._codes_dtype(IntFormat(signed_bits(lo, hi), signed=True))
        x = self.ranges[source]
        shifted = max(int(x.hi.max()), pad_code) + (128 if int(x.lo.min()) < 0 else 0)
        if 2 * shifted * max(-lo, hi) > _TWO_PRODUCTS:
            dtype = "INT32"
        raw = self.constant(weight, dtype, f"{name}_weight")
        one = self.constant(1.0, "FLOAT", f"{name}_one")
        inputs = [raw, one]
        if dtype != "INT32":
            inputs.append(self.constant(0, dtype, f"{name}_none"))
        return self._constant_node("DequantizeLinear", inputs, weight.shape, name, "")

    def _constant_node(
        self, op: str, inputs: list[str], shape: Shape, name: str, domain: str, **attributes: Any
    ) -> str:
        output = self.fresh(f"{name}_weight")
        self.nodes.append(
            self.onnx.helper.make_node(op, inputs, [output], name=f"{output}:{op}", domain=domain,
                                       **attributes)
        )  # fmt: skip
        kind = self.onnx.TensorProto.FLOAT
        self.infos.append(self.onnx.helper.make_tensor_value_info(output, kind, shape))
        return output

    def padded(self, x: _Tensor, padding: Any, value: int, name: str) -> _Tensor:
        """x with `value` around its spatial axes, where that is not 0."""
        pads = [0, 0, *(p[0] for p in padding), 0, 0, *(p[1] for p in padding)]
        shape = (x.shape[0], *(d + sum(p) for d, p in zip(x.shape[1:], padding)))
        operands = [self.constant(pads, "INT64", f"{name}_pads"),
                    self.constant(value, x.dtype, f"{name}_pad")]  # fmt: skip
        return self.apply("Pad", [x.name, *operands], shape, x.dtype, f"{name}_padded")

    # --- the node kinds ---------------------------------------------------------------------

    def linear(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (codes,) = x
        shape = (op.weight.shape[0],)
        if not self.integer:
            w = self.float_weights(op.weight.T, name, inputs[0])
            return self._biased(
                lambda last: self.apply("MatMul", [codes.name, w], shape, "FLOAT", name, last=last),
                op.bias,
                name,
            )
        eight = self._eight_bits(codes, op.weight, inputs[0], name)
        if eight is None:
            wide = self.cast(codes, "INT32", f"{name}_wide")
            w = self.constant(op.weight.T, "INT32", f"{name}_weight")
            return self._biased(
                lambda last: self.apply("MatMul", [wide.name, w], shape, "INT32", name, last=last),
                op.bias,
                name,
            )
        u, zero, (weight, dtype, weight_zero) = eight
        operands = [
            u.name,
            self.constant(weight.T, dtype, f"{name}_weight"),
            self.constant(zero, "UINT8", f"{name}_zero"),
            self.constant(weight_zero, dtype, f"{name}_weight_zero"),
        ]
        return self._biased(
            lambda last: self.apply("MatMulInteger", operands, shape, "INT32", name, last=last),
            op.bias,
            name,
        )

    def _biased(self, make: Callable[[bool], _Tensor], bias: Array | None, name: str) -> _Tensor:
        if bias is None:
            return make(True)
        return self.add_constant(make(False), bias, name, last=True)

    def _eight_bits(
        self, x: _Tensor, weight: Array, source: str, name: str, pad_code: int = 0
    ) -> tuple[_Tensor, int, tuple[Array, str, int]] | None:
        """(x as uint8, its zero point, weights and theirs), or None when 8 bits do not hold them.

        Weights are signed only where two products cannot leave 16 bits; else unsigned with a zero
        point, which every kernel multiplies exactly.
        """
        lo, hi = int(weight.min()), int(weight.max())
        if x.dtype not in ("UINT8", "INT8") or hi - lo > 255 or lo < -128 or hi > 255:
            return None
        zero = 0
        if x.dtype == "INT8":
            zero = 128
            wide = self.add_constant(self.cast(x, "INT32", f"{name}_wide"), zero, f"{name}_shifted")
            x = self.cast(wide, "UINT8", f"{name}_unsigned")
        largest = max(int(self.ranges[source].hi.max()), pad_code) + zero
        if hi <= 127 and 2 * largest * max(-lo, hi) <= _TWO_PRODUCTS:
            return x, zero, (weight, "INT8", 0)
        weight_zero = max(0, -lo)
        return x, zero, (weight + weight_zero, "UINT8", weight_zero)

    def conv(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (codes,) = x
        shape = self.network.shapes[name]
        return self._convolve(
            name, codes, inputs[0], op.weight, op.bias, shape,
            op.stride, op.padding, op.dilation, op.groups, op.pad_code,
        )  # fmt: skip

    def _convolve(
        self,
        name: str,
        x: _Tensor,
        source: str,
        weight: Array,
        bias: Array | None,
        shape: Shape,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        pad_code: int,
    ) -> _Tensor:
        zero, operands = 0, []
        if self.integer:
            eight = self._eight_bits(x, weight, source, name, pad_code)
            if eight is None:
                raise NotCovered(f"node {name!r}: ONNX convolves integers of 8 bits only")
            x, zero, (weight, dtype, weight_zero) = eight
            if not 0 <= pad_code + zero <= 255:
                raise NotCovered(f"node {name!r}: it pads with {pad_code}, beyond 8 bits")
            operands = [
                self.constant(weight, dtype, f"{name}_weight"),
                self.constant(zero, "UINT8", f"{name}_zero"),
                self.constant(weight_zero, dtype, f"{name}_weight_zero"),
            ]
        else:
            operands = [self.float_weights(weight, name, source, pad_code)]
        if pad_code and any(sum(p) for p in padding):
            x = self.padded(x, padding, pad_code + zero, name)
            padding = ((0, 0),) * len(padding)
        attributes: dict[str, Any] = {
            "kernel_shape": list(weight.shape[2:]),
            "strides": list(stride),
            "dilations": list(dilation),
            "pads": [p[0] for p in padding] + [p[1] for p in padding],
            "group": groups,
        }
        kind, dtype = ("ConvInteger", "INT32") if self.integer else ("Conv", "FLOAT")
        return self._biased(
            lambda last: self.apply(
                kind, [x.name, *operands], shape, dtype, name, last=last, **attributes
            ),
            bias,
            name,
        )

    def requantize(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (acc,) = x
        fmt, shape = op.format, acc.shape
        thresholds = self._reachable_thresholds(op, inputs[0])
        if self.flavour == "qonnx":
            table = self.constant(thresholds, "FLOAT", f"{name}_thresholds")
            layout = {1: "NC", 2: "NCW", 3: "NCHW"}.get(len(shape))
            if layout is None:
                raise NotCovered(f"node {name!r}: MultiThreshold over samples of shape {shape}")
            return self.apply(
                "MultiThreshold",
                [acc.name, table],
                shape,
                "FLOAT",
                name,
                last=True,
                domain=_DOMAIN,
                out_dtype=_finn_type(fmt),
                out_scale=1.0,
                out_bias=float(fmt.q_min),
                data_layout=layout,
            )
        grid = self._shift_form(op, inputs[0], thresholds)
        if self.flavour == "qcdq" and grid is not None:
            first, r = grid
            two = self.constant(2.0, "FLOAT", f"{name}_two")
            doubled = self.apply("Mul", [acc.name, two], shape, "FLOAT", f"{name}_doubled")
            offset = 2**r + 1 - 2 * first
            shifted = self.add_constant(doubled, offset, f"{name}_shifted")
            return self._quantize_linear(shifted, 2.0 ** (r + 1), fmt.q_min, fmt, name, name)
        return self._compare(name, acc, fmt, thresholds)

    def _reachable_thresholds(self, op: Requantize, source: str) -> Array:
        """Thresholds moved into [lo, hi + 1]: the same codes for every possible accumulator."""
        interval = self.ranges[source]
        lo, hi = int(interval.lo.min()), int(interval.hi.max())
        return np.clip(op.thresholds, lo, hi + 1)

    def _shift_form(
        self, op: Requantize, source: str, thresholds: Array
    ) -> tuple[Array, int] | None:
        """(T0, r) when code = q_min + clip(((acc - T0) >> r) + 1), and 8 bits hold the codes.

        QuantizeLinear rounds half to even; (2 acc - 2 T0 + 2**r + 1) / 2**(r + 1) never is a tie.
        """
        r = op.shift
        if r is None or r > 20 or self._codes_dtype(op.format) == "INT32":
            return None
        interval = self.ranges[source]
        lo, hi = int(interval.lo.min()), int(interval.hi.max())
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
        dtype = "INT32" if self.integer else "FLOAT"
        count = self._count(name, self.cast(acc, dtype, f"{name}_acc"), thresholds)
        out = self._codes_dtype(fmt) if self.integer else "FLOAT"
        if out == dtype:
            return self.add_constant(count, fmt.q_min, name, last=True)
        shifted = self.add_constant(count, fmt.q_min, f"{name}_shifted") if fmt.q_min else count
        return self.cast(shifted, out, name, last=True)

    def _count(self, name: str, x: _Tensor, thresholds: Array) -> _Tensor:
        """#{k : x >= T[c, k]}, int32 in the integer flavour, else a float."""
        count = thresholds.shape[1]
        table = thresholds.reshape((-1,) + (1,) * (len(x.shape) - 1) + (count,))
        axis = self.constant([len(x.shape) + 1], "INT64", f"{name}_axis")
        wide = self.apply("Unsqueeze", [x.name, axis], (*x.shape, 1), x.dtype, f"{name}_wide")
        t = self.constant(table, x.dtype, f"{name}_thresholds")
        shape = (*x.shape, count)
        reached = self.apply("GreaterOrEqual", [wide.name, t], shape, "BOOL", f"{name}_reached")
        dtype = "INT32" if self.integer else "FLOAT"
        ones = self.cast(reached, dtype, f"{name}_ones")
        return self.apply(
            "ReduceSum", [ones.name, axis], x.shape, dtype, f"{name}_count", keepdims=0
        )

    def lookup(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        """Gather from the table, laid out row after row."""
        (codes,) = x
        out = self.dtype_of(self.ranges[name]) if self.integer else "FLOAT"
        index = self.cast(codes, "INT64", f"{name}_index")
        start = np.arange(op.channels) * op.table.shape[1] - op.lo
        index = self.add_constant(index, start if op.channels > 1 else -op.lo, f"{name}_index")
        table = self.constant(op.table.ravel(), out, f"{name}_table")
        return self.apply("Gather", [table, index.name], codes.shape, out, name, last=True, axis=0)

    def max_pool(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (codes,) = x
        shape = self.network.shapes[name]
        attributes: dict[str, Any] = {
            "kernel_shape": list(op.kernel),
            "strides": list(op.stride),
            "pads": [p[0] for p in op.padding] + [p[1] for p in op.padding],
        }
        if codes.dtype == "INT32":
            raise NotCovered(f"node {name!r}: ONNX pools integers of 8 bits only")
        return self.apply(
            "MaxPool", [codes.name], shape, codes.dtype, name, last=True, **attributes
        )

    def sum_pool(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        """A depthwise convolution with ones."""
        (codes,) = x
        channels = codes.shape[0]
        ones = np.ones((channels, 1, *op.kernel), dtype=np.int64)
        return self._convolve(
            name, codes, inputs[0], ones, None, self.network.shapes[name],
            op.stride, op.padding, (1, 1), channels, op.pad_code,
        )  # fmt: skip

    def global_sum(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (codes,) = x
        wide = self.cast(codes, "INT32", f"{name}_wide") if self.integer else codes
        axes = self.constant(range(2, len(codes.shape) + 1), "INT64", f"{name}_axes")
        return self.apply(
            "ReduceSum", [wide.name, axes], codes.shape[:1], wide.dtype, name, last=True, keepdims=0
        )

    def add(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        multipliers = op.multipliers or (1,) * len(x)
        dtype = "INT32" if self.integer else "FLOAT"
        terms = []
        for value, m in zip(x, multipliers):
            term = self.cast(value, dtype, f"{name}_term")
            if m != 1:
                if abs(m) > (_INT32_MASS if self.integer else _FLOAT_MASS):
                    raise NotCovered(f"node {name!r}: multiplier {m} is too large")
                factor = self.constant(m, dtype, f"{name}_multiplier")
                term = self.apply("Mul", [term.name, factor], value.shape, dtype, f"{name}_term")
            terms.append(term)
        total = terms[0]
        if len(terms) == 1:
            return self.apply("Identity", [total.name], total.shape, dtype, name, last=True)
        for i, term in enumerate(terms[1:], 2):
            last = i == len(terms)
            base = name if last else f"{name}_partial"
            total = self.apply("Add", [total.name, term.name], total.shape, dtype, base, last=last)
        return total

    def concat(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        dtypes = {t.dtype for t in x}
        dtype = dtypes.pop() if len(dtypes) == 1 else "INT32"
        parts = [self.cast(t, dtype, f"{name}_part") for t in x]
        names = [t.name for t in parts]
        return self.apply(
            "Concat", names, self.network.shapes[name], dtype, name, last=True, axis=1
        )

    def flatten(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (v,) = x
        return self.apply("Flatten", [v.name], (prod(v.shape),), v.dtype, name, last=True, axis=1)

    def reshape(self, name: str, op: Any, x: list[_Tensor], inputs: tuple[str, ...]) -> _Tensor:
        (v,) = x
        target = self.constant([-1, *op.shape], "INT64", f"{name}_shape")
        return self.apply("Reshape", [v.name, target], op.shape, v.dtype, name, last=True)


_NUMPY = {
    "FLOAT": np.float32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
}

_WRITERS: dict[type[Op], Any] = {
    Add: _Writer.add,
    Concat: _Writer.concat,
    Conv1d: _Writer.conv,
    Conv2d: _Writer.conv,
    Flatten: _Writer.flatten,
    GlobalSumPool: _Writer.global_sum,
    Linear: _Writer.linear,
    Lookup: _Writer.lookup,
    MaxPool2d: _Writer.max_pool,
    Requantize: _Writer.requantize,
    Reshape: _Writer.reshape,
    SumPool2d: _Writer.sum_pool,
}


def _finn_type(fmt: IntFormat) -> str:
    if fmt == BIPOLAR:
        return "BIPOLAR"
    if fmt.bits == 1 and not fmt.signed:
        return "BINARY"
    return f"{'INT' if fmt.signed else 'UINT'}{fmt.bits}"
