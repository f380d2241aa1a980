"""to_brevitas: a module of Brevitas layers whose integers are the network's.

Every scale is 1: a weight of the module is the network's weight as a float, an activation its code.
A requantization on a grid of 2**shift is a shift and a quantizer that rounds half up; any other is
a staircase, with the slope of a clipped line for its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
import torch.nn.functional as F
from brevitas.core.function_wrapper import (
    CeilSte,
    FloorSte,
    RoundSte,
    RoundToZeroSte,
    TensorClampSte,
)
from brevitas.quant.solver import BiasQuantSolver
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.brevitas.movement import Moving
from refqnn.errors import InvalidType, NotCovered, mismatch
from refqnn.formats import IntFormat
from refqnn.graph import INPUT, Node, inputs_of
from refqnn.network import Network
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
    Reshape,
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.ops.requantize import Requantize
from refqnn.ops.structure import PADDING
from refqnn.ops.weighted import WeightedSum
from refqnn.quantizers import (
    PowerOfTwoQuantizer,
    Quantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
    float_thresholds,
)
from refqnn.rounding import Rounding
from refqnn.training.quantizers import (
    ConstPowerOfTwoWeight,
    HalfUpRoundSte,
    SignedAct,
    UnsignedAct,
    _PowerOfTwo,
)

__all__ = ["to_brevitas"]

Part = Callable[..., Tensor]  # a module, or a function of several tensors
_EXACT = 2**24  # float32 holds every integer up to here
_ROUNDINGS = {
    Rounding.HALF_EVEN: RoundSte,
    Rounding.HALF_UP: HalfUpRoundSte,
    Rounding.FLOOR: FloorSte,
    Rounding.CEIL: CeilSte,
    Rounding.TOWARD_ZERO: RoundToZeroSte,
}


def to_brevitas(network: Network) -> nn.Module:
    """A Brevitas module in evaluation mode that computes the network, to be trained further.

    Args:
        network: of Linear, convolutions, Requantize, Lookup, pooling, Add, Concat and movement;
            sums below 2**24, codes of at most 16 bits.

    Returns: a module of float32 [n, *input_shape].  Without an input quantizer its inputs are the
        codes; without an output dequantizer its outputs are the output's integers.
        `from_brevitas` of it gives a network with the same integers.  Weights are in units of their
        codes: choose the learning rate accordingly.

    Raises: NotCovered naming the node; InvalidType.

    >>> from refqnn import IntFormat, Linear, Network, Node
    >>> fc = Node("fc", Linear([[1, -2]], [3]))
    >>> net = Network([fc], input_shape=(2,), input_format=IntFormat(4, signed=True))
    >>> to_brevitas(net)(torch.tensor([[5.0, 1.0]])).tolist()
    [[6.0]]
    """
    if not isinstance(network, Network):
        raise InvalidType(mismatch("network", type(network).__name__, "a Network"))
    return _Program(network).eval()


class _Program(nn.Module):
    """The nodes of a network, in their order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.door = _door(network.input_quantizer, network.input_format, network.input_shape)
        self.steps = [(n.name, inputs_of(n), _part(n, network)) for n in network.nodes]
        self.parts = nn.ModuleList(p for _, _, p in self.steps if isinstance(p, nn.Module))
        self.output = network.output
        door = network.output_dequantizer
        self.dequantizes = door is not None
        if door is not None:
            axes = len(network.shapes[network.output]) - 1
            for name, values in (("scale", door.scale), ("offset", door.offset)):
                along = torch.from_numpy(values.astype(np.float32))
                shaped = along.reshape(-1, *(1,) * axes) if along.ndim else along
                self.register_buffer(name, shaped)

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: self.door(x)}
        for name, sources, part in self.steps:
            values[name] = part(*(values[source] for source in sources))
        y = values[self.output]
        return y * self.scale + self.offset if self.dequantizes else y


# --- codes --------------------------------------------------------------------------------------


class _Staircase(nn.Module):
    """first + #{k : x >= thresholds[channel, k]}, rising like a line between the ends."""

    thresholds: Tensor

    def __init__(self, thresholds: NDArray[Any], first: int, step: int, shape: Shape) -> None:
        super().__init__()
        rows = torch.from_numpy(thresholds.astype(np.float32))
        self.register_buffer("thresholds", rows.reshape(len(rows), *shape, -1))
        self.first, self.step = first, step

    def forward(self, x: Tensor) -> Tensor:
        counts = (x.unsqueeze(-1) >= self.thresholds).sum(dim=-1)
        codes = (self.first + self.step * counts).to(torch.float32)
        if not self.training:
            return codes
        finite = self.thresholds.clamp(-_EXACT, _EXACT)
        low, high = finite[..., 0], finite[..., -1] + 1
        slope = self.step * self.thresholds.shape[-1] / (high - low).clamp(min=1)
        line = x.clamp(low, high) * slope
        return codes + line - line.detach()


class _Table(nn.Module):
    """table[channel, x - lo]; no gradient passes."""

    table: Tensor

    def __init__(self, op: Lookup) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(op.table.astype(np.float32)))
        self.lo = op.lo

    def forward(self, x: Tensor) -> Tensor:
        index = (x - self.lo).round().to(torch.int64).clamp(0, self.table.shape[1] - 1)
        rows = (
            torch.arange(x.shape[1]) if len(self.table) > 1 else torch.zeros((), dtype=torch.int64)
        )
        return self.table[rows.reshape(-1, *(1,) * (x.ndim - 2)), index]


class _Shift(nn.Module):
    """(x + offset) * 2**-shift."""

    offset: Tensor

    def __init__(self, offset: NDArray[Any], shift: int, axes: int) -> None:
        super().__init__()
        rows = torch.from_numpy(offset.astype(np.float32))
        self.register_buffer("offset", rows.reshape(-1, *(1,) * axes))
        self.factor = math.ldexp(1.0, -shift)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.offset) * self.factor


class _One(nn.Module):
    """A scale of 1, whatever the data."""

    one: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(()))

    def forward(self, x: Tensor, threshold: Tensor | None = None) -> Tensor:
        return self.one


class _Weight(ConstPowerOfTwoWeight):
    scaling_impl = _One  # type: ignore[assignment]


class _Bias(_PowerOfTwo, BiasQuantSolver):
    bit_width = 25
    signed = True
    narrow_range = True
    float_to_int_impl = RoundSte
    tensor_clamp_impl = TensorClampSte
    scaling_impl = _One
    requires_input_scale = False
    requires_input_bit_width = False


class _Signed(SignedAct):
    scaling_impl = _One  # type: ignore[assignment]


class _Unsigned(UnsignedAct):
    scaling_impl = _One  # type: ignore[assignment]


def _quantizer(fmt: IntFormat, rounding: type[nn.Module] = HalfUpRoundSte) -> nn.Module:
    """Codes of a format, with scale 1."""
    bits = max(fmt.bits, 2) if fmt.step == 2 else fmt.bits
    return qnn.QuantIdentity(
        act_quant=_Signed if fmt.signed else _Unsigned,
        bit_width=bits,
        narrow_range=fmt.narrow,
        float_to_int_impl=rounding,
        return_quant_tensor=False,
    )


def _door(quantizer: Quantizer | None, fmt: IntFormat, shape: Shape) -> nn.Module:
    if fmt.bits > 16:
        raise NotCovered(f"input: {fmt}; expected at most 16 bits")
    if quantizer is None:
        return _quantizer(fmt)
    if quantizer.axis is not None and quantizer.axis % (len(shape) + 1) == 0:
        raise NotCovered("input: a quantizer with one scale for each sample")
    axis = len(shape) if quantizer.axis is None else quantizer.axis % (len(shape) + 1)
    behind = (1,) * (len(shape) - axis)
    plain = isinstance(quantizer, (SymmetricQuantizer, PowerOfTwoQuantizer)) and fmt.step == 1
    if plain and quantizer.precision == "float32" and quantizer.rounding in _ROUNDINGS:
        scale = torch.from_numpy(quantizer.scale).reshape(-1, *behind)
        return nn.Sequential(_Divide(scale), _quantizer(fmt, _ROUNDINGS[quantizer.rounding]))
    if isinstance(quantizer, ThresholdQuantizer):
        thresholds = quantizer.thresholds
    else:
        thresholds = _thresholds(quantizer, fmt)
    return nn.Sequential(_Staircase(thresholds, fmt.q_min, fmt.step, behind), _quantizer(fmt))


class _Divide(nn.Module):
    """x / scale."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale


def _thresholds(quantizer: Quantizer, fmt: IntFormat) -> NDArray[np.float32]:
    """The least float32 of each code, [1 or channels, codes - 1]."""
    channels = quantizer.scale.size
    codes = np.tile(np.arange(fmt.q_min + fmt.step, fmt.q_max + 1, fmt.step), (channels, 1))

    def along(x: NDArray[np.float32]) -> NDArray[np.int64]:
        if quantizer.axis is None:
            return quantizer.quantize(x)
        return type(quantizer)(**{**vars(quantizer), "axis": 0}).quantize(x)

    return float_thresholds(along, codes)


# --- nodes --------------------------------------------------------------------------------------


def _part(node: Node, network: Network) -> Part:
    build = _BUILD.get(type(node.op))
    if build is None:
        raise NotCovered(f"{node.name}: Brevitas has no layer for {node.op.kind}")
    shapes = [network.shapes[source] for source in inputs_of(node)]
    proved = network.ranges()
    ranges = [proved[source] for source in inputs_of(node)]
    largest = max(r.largest for r in (*ranges, proved[node.name]))
    op = node.op
    if isinstance(op, WeightedSum):
        largest = max(largest, int(op.absolute_mass(*ranges).max()))
    if largest >= _EXACT:
        raise NotCovered(f"{node.name}: reaches {largest}; float32 holds integers below 2**24")
    try:
        return build(op, shapes)
    except NotCovered as error:
        raise NotCovered(f"{node.name}: {error}") from error


def _requantize(op: Any, shapes: list[Shape]) -> nn.Module:
    fmt, axes = op.format, len(shapes[0]) - 1
    if fmt.bits > 16:
        raise NotCovered(f"{fmt}; expected at most 16 bits")
    reachable = (op.thresholds >= -_EXACT).all() and (op.thresholds <= _EXACT).all()
    if reachable and op.shift is not None and fmt.step == 1:
        # the first threshold is where (acc + offset) / 2**shift reaches q_min + 1/2
        half = math.ldexp(1.0, op.shift - 1)
        offset = (2 * fmt.q_min + 1) * half - op.thresholds[:, 0]
        return nn.Sequential(_Shift(offset, op.shift, axes), _quantizer(fmt))
    table = np.where(op.thresholds > _EXACT, np.inf, op.thresholds.astype(np.float64))
    table = np.where(op.thresholds < -_EXACT, -np.inf, table)
    staircase = _Staircase(table, fmt.q_min, fmt.step, (1,) * axes)
    return nn.Sequential(staircase, _quantizer(fmt))


def _lookup(op: Any, shapes: list[Shape]) -> nn.Module:
    return _Table(op) if op.format is None else nn.Sequential(_Table(op), _quantizer(op.format))


def _layer(kind: Callable[..., Any], op: Any, *sizes: int, **options: Any) -> nn.Module:
    """A Brevitas layer with the weights of an op."""
    bits = max(2, int(np.abs(op.weight).max()).bit_length() + 1)
    layer: nn.Module = kind(
        *sizes,
        bias=op.bias is not None,
        weight_quant=_Weight,
        weight_bit_width=bits,
        bias_quant=None if op.bias is None else _Bias,
        **options,
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(op.weight.astype(np.float32)))
        if op.bias is not None:
            layer.bias.copy_(torch.from_numpy(op.bias.astype(np.float32)))
    return layer


def _linear(op: Any, shapes: list[Shape]) -> nn.Module:
    return _layer(qnn.QuantLinear, op, op.weight.shape[1], op.weight.shape[0])


def _convolution(op: Any, shapes: list[Shape]) -> nn.Module:
    kind = qnn.QuantConv1d if isinstance(op, Conv1d) else qnn.QuantConv2d
    layer = _layer(
        kind,
        op,
        op.weight.shape[1] * op.groups,
        op.weight.shape[0],
        kernel_size=op.weight.shape[2:],
        stride=op.stride,
        dilation=op.dilation,
        groups=op.groups,
    )
    return _padded(op.padding, op.pad_code, layer)


def _transposed(op: Any, shapes: list[Shape]) -> nn.Module:
    if any(before != after for before, after in op.padding):
        raise NotCovered(f"padding {op.padding}; expected as much on both sides")
    return _layer(
        qnn.QuantConvTranspose2d,
        op,
        op.weight.shape[0],
        op.weight.shape[1] * op.groups,
        kernel_size=op.weight.shape[2:],
        stride=op.stride,
        padding=tuple(before for before, _ in op.padding),
        output_padding=op.output_padding,
        dilation=op.dilation,
        groups=op.groups,
    )


def _padded(padding: Any, code: int, layer: nn.Module) -> nn.Module:
    """The layer behind a pad, where there is one: codes other than 0, more on one side."""
    flat = [n for pair in reversed(padding) for n in pair]
    return nn.Sequential(_Pad(flat, code), layer) if any(flat) else layer


class _Pad(Moving):
    def __init__(self, padding: list[int], code: int) -> None:
        super().__init__()
        self.padding, self.code = padding, float(code)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding, value=self.code)


def _max_pool(op: Any, shapes: list[Shape]) -> nn.Module:
    sides = [before for before, _ in op.padding]
    if all(a == b and 2 * a <= k for (a, b), k in zip(op.padding, op.kernel)):
        return nn.MaxPool2d(op.kernel, op.stride, sides)
    return _padded(op.padding, -_EXACT, nn.MaxPool2d(op.kernel, op.stride))


def _sum_pool(op: Any, shapes: list[Shape]) -> nn.Module:
    return _padded(op.padding, op.pad_code, nn.AvgPool2d(op.kernel, op.stride, divisor_override=1))


def _global_sum_pool(op: Any, shapes: list[Shape]) -> nn.Module:
    channels, *sizes = shapes[0]
    planar = (channels, 1, math.prod(sizes))
    pool = nn.AvgPool2d(planar[1:], divisor_override=1)
    return nn.Sequential(_Reshape(planar), pool, nn.Flatten())


class _Reshape(Moving):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


class _Gather(Moving):
    index: Tensor

    def __init__(self, op: Any) -> None:
        super().__init__()
        last = math.prod(op.in_shape)
        self.register_buffer(
            "index", torch.from_numpy(np.where(op.index == PADDING, last, op.index))
        )
        self.fill = float(op.fill)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.flatten(1), (0, 1), value=self.fill)[:, self.index]


class _Add:
    def __init__(self, multipliers: tuple[int, ...]) -> None:
        self.multipliers = multipliers

    def __call__(self, *operands: Tensor) -> Tensor:
        total: Any = None
        for x, m in zip(operands, self.multipliers):
            term = x if abs(m) == 1 else x * float(abs(m))
            if total is None:
                total = -term if m < 0 else term
            else:
                total = total - term if m < 0 else total + term
        return total


def _concat(*operands: Tensor) -> Tensor:
    return torch.cat(operands, 1)


_BUILD: dict[type[Op], Callable[[Any, list[Shape]], Part]] = {
    Add: lambda op, shapes: _Add(op.multipliers or (1,) * len(shapes)),
    Concat: lambda op, shapes: _concat,
    Conv1d: _convolution,
    Conv2d: _convolution,
    ConvTranspose2d: _transposed,
    Flatten: lambda op, shapes: nn.Flatten(),
    Gather: lambda op, shapes: _Gather(op),
    GlobalSumPool: _global_sum_pool,
    Linear: _linear,
    Lookup: _lookup,
    MaxPool2d: _max_pool,
    Requantize: _requantize,
    Reshape: lambda op, shapes: _Reshape(op.shape),
    SumPool2d: _sum_pool,
}
