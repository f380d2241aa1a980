"""One method per layer kind: which integer node it becomes, and what stays a float function."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
import torch.nn.functional as F
from brevitas.core.quant import BinaryQuant, ClampedBinaryQuant, TernaryQuant
from brevitas.nn.mixin.base import QuantLayerMixin
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.quant_tensor import (
    FloatQuantTensor,
    GroupwiseFloatQuantTensor,
    GroupwiseIntQuantTensor,
    IntQuantTensor,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from refqnn.brevitas.door import (
    AnotherDoor,
    common_quantizer,
    input_quantizer,
    threshold_quantizer,
)
from refqnn.brevitas.functions import (
    POSITIONS,
    SHARED,
    SINGLE,
    SINGLE_FUNCTIONS,
    adaptive_divisors,
    adaptive_windows,
    average_divisors,
    is_identity,
    is_kind,
    not_elementwise,
)
from refqnn.brevitas.lower import Closing, Program
from refqnn.brevitas.movement import MODULES, SAMPLES, Movement, movements
from refqnn.brevitas.outputs import affine
from refqnn.brevitas.record import Recording
from refqnn.brevitas.values import (
    Function,
    Step,
    Value,
    along_channels,
    codes_of,
    integers_of,
    refuse,
)
from refqnn.formats import BIPOLAR, TERNARY, IntFormat
from refqnn.network import INPUT
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    Lookup,
    MaxPool2d,
    Op,
    Reshape,
    SumPool2d,
)
from refqnn.ops.base import Shape
from refqnn.ops.structure import PADDING
from refqnn.quantizers import Quantizer, same_quantizer

__all__ = ["Layers", "common_scale"]

_CONVOLUTIONS = (qnn.QuantConv1d, qnn.QuantConv2d)
_TRANSPOSED = (qnn.QuantConvTranspose1d, qnn.QuantConvTranspose2d)
_ADAPTIVE = {
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d),
}
_FLOAT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear, nn.Embedding)

Pair = tuple[int, int]


class Layers:
    """Lowers single layers into a `Program`, with the results that the module itself recorded.

    `doors` are the quantizers of the float input, as far as they are known.
    """

    def __init__(self, program: Program, recording: Recording, doors: list[Quantizer]) -> None:
        self.program = program
        self.doors = doors
        self.recording = recording
        self.calls: dict[int, int] = defaultdict(int)

    def module(self, part: nn.Module, name: str, args: Any, kwargs: Any) -> Any:
        """The value behind a layer; NotImplemented for kinds that are not layers here."""
        if isinstance(part, QuantLayerMixin):
            return self._brevitas(part, name, args, kwargs)
        if isinstance(part, _FLOAT_LAYERS):
            told = (
                "its weights are not quantized; take the layer of brevitas.nn, or give a module "
                "that was trained in floats to refqnn.training.quantize_module"
            )
            raise refuse(name, part, told)
        if is_kind(part, nn.MaxPool1d, nn.MaxPool2d):
            if part.return_indices:
                raise refuse(name, part, "returns indices")
            dilated = (part.kernel_size, part.stride, part.padding, part.dilation)
            return self.max_pool(args[0], dilated, part.ceil_mode, name, part)
        if is_kind(part, nn.AvgPool1d, nn.AvgPool2d):
            divisor = getattr(part, "divisor_override", None)
            window = (part.kernel_size, part.stride, part.padding)
            options = (part.ceil_mode, part.count_include_pad, divisor)
            return self.average_pool(args[0], window, options, name, part)
        if is_kind(part, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d):
            return self.adaptive_pool(args[0], part.output_size, name, part)
        if is_kind(part, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d):
            if part.return_indices:
                raise refuse(name, part, "returns indices")
            return self.adaptive_pool(args[0], part.output_size, name, part, greatest=True)
        if is_kind(part, *MODULES):
            return self.move(part, args[0], name, part)
        if is_kind(part, *SHARED):
            rounds = not is_kind(part, *SINGLE)
            step = Step(name, part, per_channel=False, rounds=rounds, kind=type(part).__name__)
            return self._then(args[0], step, part)
        return NotImplemented

    def functional(self, target: Any, name: str, args: Any, kwargs: Any) -> Any:
        """The pooling functions of torch.nn.functional; NotImplemented for others."""

        def bound(*names: str, **defaults: Any) -> list[Any]:
            given = dict(zip(("input", *names), args)) | kwargs
            return [given.get(n, defaults.get(n)) for n in names]

        if target in (F.max_pool1d, F.max_pool2d):
            *window, ceil_mode = bound(
                "kernel_size", "stride", "padding", "dilation", "ceil_mode", padding=0, dilation=1
            )
            return self.max_pool(args[0], window, bool(ceil_mode), name, target.__name__)
        if target in (F.avg_pool1d, F.avg_pool2d):
            *window, ceil_mode, include, divisor = bound(
                "kernel_size",
                "stride",
                "padding",
                "ceil_mode",
                "count_include_pad",
                "divisor_override",
                padding=0,
                count_include_pad=True,
            )
            options = (bool(ceil_mode), include, divisor)
            return self.average_pool(args[0], window, options, name, target.__name__)
        if target in _ADAPTIVE:
            (size,) = bound("output_size")
            greatest = "max" in target.__name__
            return self.adaptive_pool(args[0], size, name, target.__name__, greatest=greatest)
        return NotImplemented

    # --- Brevitas layers --------------------------------------------------------------------

    def _brevitas(self, part: nn.Module, name: str, args: Any, kwargs: Any) -> Value:
        if isinstance(part, QuantNonLinearActLayer):
            value = self.quantize(args[0], part.input_quant, f"{name}.input_quant")
            return self.quantize(value, part.act_quant, name)
        if isinstance(part, (*_CONVOLUTIONS, *_TRANSPOSED, qnn.QuantLinear)):
            if len(args) > 1 or kwargs:
                raise refuse(name, part, "is called with more than its input")
            return self._weighted(part, name, args[0])
        if isinstance(part, (qnn.TruncAvgPool2d, qnn.TruncAdaptiveAvgPool2d)):
            return self._truncated_pool(part, name, args[0])
        if isinstance(part, qnn.QuantEltwiseAdd):
            operands = [self.quantize(a, part.input_quant, f"{name}.input_quant") for a in args]
            total = self.add(operands, (1, 1), name)
            return self.quantize(total, part.output_quant, f"{name}.output_quant")
        if isinstance(part, (qnn.QuantUpsample, qnn.QuantUpsamplingNearest2d)):

            def enlarge(x: Tensor) -> Tensor:
                return F.interpolate(x, part.size, part.scale_factor, part.mode)

            return self.move(enlarge, args[0], name, part)
        raise refuse(name, part, "this Brevitas layer is not covered")

    def _weighted(self, part: nn.Module, name: str, x: Value) -> Value:
        """QuantLinear, QuantConv1d, QuantConv2d: the accumulator, its scale and its bias."""
        x = self._operand(self.quantize(x, part.input_quant, f"{name}.input_quant"), name, part)
        weight = self._recorded(part.weight_quant)
        if not isinstance(weight, IntQuantTensor):
            raise refuse(name, part, f"its weights are not quantized to integers{_instead(weight)}")
        if x.step_scale.ndim:
            raise refuse(name, part, "its input has one scale per channel")
        scale = weight.scale.reshape(-1) if weight.scale.numel() > 1 else weight.scale.reshape(())
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise refuse(name, part, "its weight scale is not a positive finite number")
        if not bool(torch.isfinite(weight.value).all()):
            why = (
                "its weights are NaN or infinite; Int8AccumulatorAwareWeightQuant makes such a row"
            )
            raise refuse(name, part, f"{why} of zeros alone")
        integers = integers_of(weight)  # zero point taken off
        if not torch.equal(weight.zero_point, weight.zero_point.round()):
            raise refuse(name, part, "its weights have a zero point between two integers")
        if not torch.allclose(integers * weight.scale, weight.value, rtol=1e-5, atol=0.0):
            raise refuse(name, part, "its weights are not integer multiples of their scale")
        w = integers.numpy()
        transposed = isinstance(part, _TRANSPOSED)
        if transposed:
            x = self._centred(x, name)
        if scale.ndim and len(scale) != (part.out_channels if transposed else len(w)):
            raise refuse(name, part, f"weight scale of shape {tuple(weight.scale.shape)}")
        acc_scale = x.step_scale * scale
        bias, float_bias = self._bias(part, name, acc_scale)
        if x.zero_point:
            # sum w (c - z) = sum w c - z sum w
            correction = -x.zero_point * w.reshape(len(w), -1).sum(axis=1)
            bias = correction if bias is None else bias + correction
        tokens = isinstance(part, qnn.QuantLinear) and len(x.shape) > 1
        front, shape = x, x.shape[1:]
        if tokens:  # features last: each position is one of a 1x1 convolution
            front = self.move(lambda t: t.movedim(-1, 1).flatten(2), x, f"{name}.tokens", part)
            w, shape = w[:, :, None], x.shape[:-1]
        elif isinstance(part, _TRANSPOSED) and w.ndim == 3:
            w = w[:, :, None]
            front = self.move(lambda t: t.unsqueeze(2), x, f"{name}.unsqueeze", part)
        op = self._accumulate(part, name, x, w, bias)
        assert front.node is not None
        node = self.program.add(name, op, front.node)
        acc = Value(node, self.program.shapes[node], acc_scale, exclusive=True)
        if float_bias is not None:
            acc = acc.then(_bias_step(name, float_bias))
        if tokens:
            acc = self.move(
                lambda t: t.unflatten(2, shape).movedim(1, -1), acc, f"{name}.features", part
            )
        elif len(acc.shape) > len(x.shape):
            acc = self.move(lambda t: t.squeeze(2), acc, f"{name}.squeeze", part)
        return self.quantize(acc, part.output_quant, f"{name}.output_quant")

    def _centred(self, x: Value, name: str) -> Value:
        """The value with zero point 0: a sum of fewer of its codes at the border needs it."""
        if not x.zero_point:
            return x
        assert x.node is not None
        lo, hi = self.program.ranges[x.node].ends
        table = Lookup(np.arange(lo, hi + 1)[None] - x.zero_point, lo)
        node = self.program.add(f"{name}.centred", table, x.node)
        return replace(x, node=node, zero_point=0, format=None)

    def _bias(
        self, part: nn.Module, name: str, acc_scale: Tensor
    ) -> tuple[NDArray[np.int64] | None, Tensor | None]:
        """The bias as integers on the accumulator's grid, or else as floats."""
        if part.bias is None:
            return None, None
        bias = self._recorded(part.bias_quant)
        if isinstance(bias, IntQuantTensor):
            on_grid = torch.broadcast_to(bias.scale.reshape(-1), (len(part.bias),)) == acc_scale
            if bool(on_grid.all()):
                return integers_of(bias).reshape(-1).numpy(), None
            bias = bias.value
        if not bool(torch.isfinite(bias).all()):
            raise refuse(name, part, "its bias is not finite")
        return None, bias.detach().reshape(-1)

    def _accumulate(
        self, part: nn.Module, name: str, x: Value, w: NDArray[np.int64], bias: Any
    ) -> Op:
        if isinstance(part, qnn.QuantLinear):
            return Linear(w, bias) if w.ndim == 2 else Conv1d(w, bias)
        if isinstance(part, _TRANSPOSED):
            stride, padding, extra, dilation = (
                (none, *given) if len(given) == 1 else given
                for none, given in (
                    (1, part.stride),
                    (0, part.padding),
                    (0, part.output_padding),
                    (1, part.dilation),
                )
            )
            return ConvTranspose2d(w, bias, stride, padding, extra, dilation, part.groups)
        if part.padding_mode != "zeros":
            raise refuse(name, part, f"padding_mode {part.padding_mode!r}; expected 'zeros'")
        options = {
            "stride": part.stride,
            "padding": self._conv_padding(part, x.shape[1:]),
            "dilation": part.dilation,
            "groups": part.groups,
            "pad_code": x.zero_point,
        }
        return Conv1d(w, bias, **options) if w.ndim == 3 else Conv2d(w, bias, **options)

    def _conv_padding(self, part: nn.Module, sizes: Shape) -> Any:
        """(before, after) for each spatial axis."""
        if part.is_same_padded_strided:
            # as much as ceil(size / stride) windows need; the odd one after
            total = [
                max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
                for size, s, k, d in zip(sizes, part.stride, part.kernel_size, part.dilation)
            ]
            return tuple((t // 2, t - t // 2) for t in total)
        if part.padding == "valid":
            return 0
        if part.padding == "same":
            total = [d * (k - 1) for d, k in zip(part.dilation, part.kernel_size)]
            return tuple((t // 2, t - t // 2) for t in total)
        return tuple((p, p) for p in part.padding)

    # --- quantizers -------------------------------------------------------------------------

    def quantize(self, value: Value, proxy: nn.Module, name: str) -> Value:
        """The value behind one of the module's activation quantizers."""
        call = self.calls[id(proxy)]
        self.calls[id(proxy)] += 1
        if not proxy.is_quant_enabled:
            if proxy.fused_activation_quant_proxy is None:
                return value
            return self._activation(value, proxy.fused_activation_quant_proxy, name)
        quantized = self.recording.output_of(proxy, call)
        fmt, scale, zero_point = self._format(quantized, proxy, name)
        received = self.recording.input_of(proxy, call)
        other = proxy(3 * getattr(received, "value", received) + 1)
        if not torch.equal(other.scale, quantized.scale):
            raise refuse(name, proxy, "its scale depends on the data it quantizes")

        def function(x: Tensor) -> Tensor:
            return codes_of(proxy(x))

        if value.node is None:
            return self._door(value, proxy, call, function, (fmt, scale, zero_point), name)
        return self._closed(value, proxy, call, function, (fmt, scale, zero_point), name)

    def _closed(
        self,
        value: Value,
        proxy: nn.Module,
        call: int,
        function: Function,
        described: tuple[IntFormat, Tensor, int],
        name: str,
    ) -> Value:
        """The codes of a function of a value, as one of the module's quantizers makes them."""
        fmt, scale, zero_point = described
        node, source = self.program.close(
            value, function, fmt, name, proxy, per_channel=scale.ndim > 0
        )
        self.program.closings.append(Closing(node, proxy, call, source, function, value.pending))
        codes = Value(node, source.shape, scale, zero_point, format=fmt)
        return self.program.placed(self.program.remember(codes), value.pending, name)

    def _activation(self, value: Value, fused: nn.Module, name: str) -> Value:
        """The activation of a layer whose quantizer is off."""
        activation = fused.activation_impl
        if is_identity(activation):
            return value
        result = self.module(activation, name, (value,), {})
        if result is NotImplemented:
            result = self.function(value, activation, name, activation, required=True)
        assert isinstance(result, Value)
        return result

    def _door(
        self,
        value: Value,
        proxy: nn.Module,
        call: int,
        function: Function,
        described: tuple[IntFormat, Tensor, int],
        name: str,
    ) -> Value:
        """A quantizer of the float input, with what the module computes on it before."""
        fmt, scale, zero_point = described
        index = np.arange(math.prod(value.shape)) if value.pending is None else value.pending
        moves = all(step.shaped and not step.per_channel for step in value.steps)
        plain = moves and not scale.ndim and not (index == PADDING).any()

        def codes(x: Tensor) -> Tensor:
            for step in value.steps:
                x = step.function(x)
            return function(x)

        quantizer: Quantizer
        falls = np.zeros(1, dtype=bool)
        if plain:
            named = proxy.rounding_mode
            quantizer = input_quantizer(
                function, float(scale), zero_point, fmt, named=named, layer=name, proxy=proxy
            )
        else:
            shaped = any(step.shaped for step in value.steps)
            shape = self.program.input_shape
            small = shape if shaped else (shape[0], *(1,) * (len(shape) - 1))
            layout = index if shaped else np.arange(shape[0])
            quantizer, falls = threshold_quantizer(
                codes, small, layout, fmt, layer=name, proxy=proxy
            )
        node = self._opened(quantizer, name, proxy)
        if falls.any():
            node = self._turned(node, quantizer, falls, name, proxy)
        layout = index.reshape(value.shape)
        self.program.closings.append(
            Closing(node, proxy, call, Value(INPUT, self.program.input_shape, scale), codes, layout)
        )
        opened = Value(node, self.program.input_shape, scale, zero_point, format=fmt)
        movement = Movement(layout)
        if (layout == PADDING).any():  # what it makes of the constants there
            made = codes(torch.zeros(1, *self.program.input_shape))[0].numpy()[layout == PADDING]
            if scale.ndim or (made != made[0]).any():
                raise refuse(name, proxy, "fills the float input with several codes")
            movement = Movement(layout, float((int(made[0]) - zero_point) * scale.double()))
        return self.program.move(self.program.remember(opened), movement, f"{name}.reshape", proxy)

    def _turned(
        self, node: str, quantizer: Quantizer, falls: NDArray[np.bool_], name: str, proxy: nn.Module
    ) -> str:
        """The node where the codes of rows that fall are turned around: q_min + q_max - code."""
        fmt = quantizer.format
        if falls.all():
            falls = falls[:1]
        elif quantizer.axis != 1:
            raise refuse(name, proxy, "what stands before it rises and falls along a later axis")
        rising = np.arange(fmt.q_min, fmt.q_max + 1)
        table = np.where(falls[:, None], rising[::-1], rising)
        return self.program.add(name, Lookup(table, fmt.q_min, fmt), node)

    def _opened(self, quantizer: Quantizer, name: str, proxy: nn.Module) -> str:
        """The node with the codes of one of the input's quantizers.

        Raises: AnotherDoor for one more than the program was begun with.
        """
        program, doors = self.program, self.doors
        if not any(same_quantizer(quantizer, door) for door in doors):
            if doors:
                raise AnotherDoor([*doors, quantizer])
            self.doors = doors = [quantizer]
        if len(doors) == 1:
            program.open(quantizer)
            return INPUT
        if program.input_quantizer is None:
            program.open(common_quantizer(doors, name, proxy))
        return program.recode(quantizer, name, proxy)

    def _format(self, quantized: Any, proxy: nn.Module, name: str) -> tuple[IntFormat, Tensor, int]:
        """Codes, scale [] or [channels] and zero point, as the module reports them."""
        if not isinstance(quantized, IntQuantTensor):
            raise refuse(name, proxy, f"does not quantize to integers{_instead(quantized)}")
        bits, zero_points = float(quantized.bit_width), quantized.zero_point.double().unique()
        if bits != int(bits) or not 1 <= bits <= 16:
            raise refuse(name, proxy, f"bit width {bits:g}; expected an integer from 1 to 16")
        if len(zero_points) != 1 or float(zero_points) != round(float(zero_points)):
            raise refuse(name, proxy, "its zero point is not one integer")
        scale = quantized.scale.detach().to(torch.float32)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise refuse(name, proxy, "its scale is not a positive finite number")
        if scale.numel() > 1 and (scale.ndim < 2 or scale.numel() != scale.shape[1]):
            raise refuse(name, proxy, f"scale of shape {tuple(scale.shape)}")
        scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1)
        kind = getattr(proxy.tensor_quant, "tensor_quant", proxy.tensor_quant)
        fused = getattr(proxy, "fused_activation_quant_proxy", None)
        kind = getattr(fused, "tensor_quant", kind)
        if isinstance(kind, (BinaryQuant, ClampedBinaryQuant)):
            return BIPOLAR, scale, 0
        if isinstance(kind, TernaryQuant):
            return TERNARY, scale, 0
        narrow = bool(proxy.is_narrow_range)
        fmt = IntFormat(int(bits), bool(quantized.signed), narrow)
        return fmt, scale, round(float(zero_points))

    def _recorded(self, proxy: nn.Module) -> Any:
        """What a weight or bias quantizer returned at its next call."""
        call = self.calls[id(proxy)]
        self.calls[id(proxy)] += 1
        return self.recording.output_of(proxy, call)

    # --- functions --------------------------------------------------------------------------

    def function(
        self,
        value: Value,
        function: Callable[[Tensor], Any],
        name: str,
        part: nn.Module,
        *,
        required: bool,
        per_channel: bool = True,
    ) -> Value | None:
        """One more float function of the value, after a test that it is elementwise.

        `per_channel` is false when it is known not to differ between channels.

        Returns: None when it is not and `required` is false.  Raises: NotCovered when required.
        """
        kind: Any = part if isinstance(part, nn.Module) else getattr(part, "__name__", str(part))
        problem = not_elementwise(function, value.shape, value.dtype)
        shaped = problem == POSITIONS and value.node is None  # a door may have an axis of its own
        if problem is not None and not shaped:
            if required:
                raise refuse(name, kind, f"a float operation between integers that {problem}")
            return None
        single = not isinstance(part, nn.Module) and part in SINGLE_FUNCTIONS
        own = per_channel or shaped
        with torch.no_grad():
            dtype = function(value.zeros(1)).dtype
        step = Step(
            name,
            function,
            per_channel=own,
            rounds=not single,
            shaped=shaped,
            kind=kind if isinstance(kind, str) else type(kind).__name__,
            affine=affine(kind, function, value.shape),
        )
        return self._then(value, step, kind, dtype)

    def _then(
        self, value: Value, step: Step, part: nn.Module, dtype: torch.dtype = torch.float32
    ) -> Value:
        if step.per_channel and value.pending is not None and value.node is not None:
            self.program.in_place(value, step.name, part)
        return value.then(step, dtype)

    def _quantized(self, value: Value, name: str, part: nn.Module) -> Value:
        if value.node is None:
            raise refuse(name, part, "no quantizer stands between the float input and it")
        return value

    def _operand(self, value: Value, name: str, part: nn.Module | str) -> Value:
        """Integers that a sum or a movement of several tensors may read."""
        return self.program.settle(self._quantized(value, name, part), name, part)

    # --- pooling, addition, concatenation ---------------------------------------------------

    def max_pool(self, x: Value, window: Any, ceil_mode: bool, name: str, part: nn.Module) -> Value:
        """A maximum commutes with every nondecreasing function of the integers."""
        kernel, stride, padding, dilation = window
        kernel, stride, pads = self._windows(x, kernel, stride, padding, ceil_mode)
        if set(_pair(dilation, len(x.shape) - 1)) != {1}:
            raise refuse(name, part, "dilated windows")
        x = self.program.rising(self._quantized(x, name, part), name, part)
        return self._pooled(x, MaxPool2d(kernel, stride, pads), name, part)

    def average_pool(
        self,
        x: Value,
        window: Any,
        options: tuple[bool, bool, int | None],
        name: str,
        part: nn.Module,
    ) -> Value:
        """The sum of the window; its divisor belongs to the function behind it."""
        ceil_mode, include_pad, divisor = options
        kernel, stride, padding = window
        rest = (ceil_mode, include_pad, divisor)
        divisors = average_divisors(x.shape[1:], kernel, stride, padding, *rest)
        kernel, stride, pads = self._windows(x, kernel, stride, padding, ceil_mode)
        return self._sum_pool(x, (kernel, stride, pads), divisors, name, part)

    def adaptive_pool(
        self, x: Value, size: Any, name: str, part: nn.Module | str, *, greatest: bool = False
    ) -> Value:
        """Averages or maxima of `adaptive_windows`.

        Where they differ or overlap, their values stand side by side first, in equal windows.
        """
        sizes = x.shape[1:]
        wanted = [size] * len(sizes) if isinstance(size, int) else list(size)
        wanted = [n if w is None else w for w, n in zip(wanted, sizes)]
        kernel, places, inside = [], [], np.ones(1, dtype=bool)
        for n, m in zip(sizes, wanted):
            first, last = adaptive_windows(n, m)
            kernel.append(int((last - first).max()))
            at = first[:, None] + np.arange(kernel[-1])  # [m, k]
            places.append(np.minimum(at, last[:, None] - 1).ravel())
            inside = np.logical_and.outer(inside, (at < last[:, None]).ravel())
        x = self._quantized(x, name, part)
        if any(n % m for n, m in zip(sizes, wanted)):  # they differ or overlap
            x = self.program.rising(x, name, part) if greatest else self._operand(x, name, part)
            index = np.arange(math.prod(x.shape)).reshape(x.shape)
            for axis, at in enumerate(places, start=1):
                index = index.take(at, axis=axis)
            if not greatest:
                index = np.where(inside[0], index, PADDING)
            x = self.program.move(x, Movement(index), f"{name}.windows", part)
        kernel = [1, *kernel] if len(kernel) == 1 else kernel
        window = (tuple(kernel), tuple(kernel), ((0, 0), (0, 0)))
        if greatest:
            return self._pooled(self.program.rising(x, name, part), MaxPool2d(*window), name, part)
        divisors = adaptive_divisors(sizes, tuple(wanted))
        return self._sum_pool(x, window, divisors, name, part)

    def global_average(self, x: Value, name: str, keep: bool) -> Value:
        """The mean over all positions."""
        sizes = x.shape[1:]
        pooled = self.adaptive_pool(x, [1] * len(sizes), name, "mean")
        return pooled if keep else self.move(lambda t: t.flatten(1), pooled, name, "mean")

    def reduced(self, x: Value, axes: set[int], name: str, keep: bool, *, mean: bool) -> Value:
        """The sum or the mean over some axes of a sample, counted from 1."""
        label, sizes = "mean" if mean else "sum", dict(enumerate(x.shape, 1))
        kept = [axis for axis in sizes if axis not in axes]
        shape = [1 if axis in axes else size for axis, size in sizes.items()]
        if not keep:
            shape = [sizes[axis] for axis in kept]
        if not shape:
            raise refuse(name, label, "leaves no axis but the batch; pass keepdim=True")
        order = (0, *kept, *sorted(axes))
        rows = math.prod(sizes[axis] for axis in kept)
        x = self.move(
            lambda t: t.permute(order).reshape(len(t), rows, -1), x, f"{name}.order", label
        )
        pooled = self.global_average(x, name, keep=False)
        if not mean:
            pooled = replace(pooled, divisor=pooled.divisor / x.shape[1])
        return self.move(lambda t: t.reshape(len(t), *shape), pooled, f"{name}.shape", label)

    def _sum_pool(
        self, x: Value, window: Any, divisor: Tensor, name: str, part: nn.Module | str
    ) -> Value:
        """The sums of the windows, and one divisor for all or for each position."""
        x = self._operand(x, name, part)
        kernel, stride, pads = window
        op = SumPool2d(kernel, stride, pads, pad_code=x.zero_point)
        pooled = self._pooled(replace(x, format=None), op, name, part)
        zero_point = x.zero_point * kernel[0] * kernel[1]
        scale = x.step_scale  # exact where the divisor so far is a power of two
        pooled = replace(pooled, scale=scale, zero_point=zero_point)
        if (divisor == divisor.reshape(-1)[0]).all():
            return self.program.remember(replace(pooled, divisor=divisor.reshape(-1)[0]))
        if scale.ndim:
            raise refuse(name, part, "windows with different divisors, of channels with own scales")
        flat = self.move(lambda t: t.flatten(1), pooled, f"{name}.flatten", part)
        each = divisor.reshape(-1).repeat(pooled.shape[0])
        index = np.arange(len(each)).reshape(pooled.shape)
        return replace(flat, divisor=each, shape=pooled.shape, pending=index)

    def _truncated_pool(self, part: nn.Module, name: str, x: Value) -> Value:
        """TruncAvgPool2d: an average, then the module's own truncation of it."""
        if isinstance(part, qnn.TruncAdaptiveAvgPool2d):
            pooled = self.adaptive_pool(x, part.output_size, f"{name}.sum", part)
        else:
            window = (part.kernel_size, part.stride, part.padding)
            options = (part.ceil_mode, part.count_include_pad, part.divisor_override)
            pooled = self.average_pool(x, window, options, f"{name}.sum", part)
        proxy = part.trunc_quant
        if not proxy.is_quant_enabled or not self.recording.calls[id(proxy)]:
            return pooled
        call = self.calls[id(proxy)]
        self.calls[id(proxy)] += 1
        received = self.recording.input_of(proxy, call)
        described = self._format(self.recording.output_of(proxy, call), proxy, name)

        def truncate(average: Tensor) -> Tensor:
            return codes_of(proxy(received.set(value=average)))

        return self._closed(pooled, proxy, call, truncate, described, name)

    def _windows(
        self, x: Value, kernel: Any, stride: Any, padding: Any, ceil_mode: bool
    ) -> tuple[Pair, Pair, tuple[Pair, Pair]]:
        """Kernel, stride and (before, after) padding over two axes; one axis gets a unit axis."""
        sizes = x.shape[1:]
        axes = len(sizes)
        kernels = _pair(kernel, axes)
        strides = kernels if stride in (None, [], ()) else _pair(stride, axes)
        paddings = _pair(padding, axes)
        pads = []
        for n, k, s, p in zip(sizes, kernels, strides, paddings):
            extra = 0
            if ceil_mode:
                windows = math.ceil((n + 2 * p - k) / s) + 1
                if (windows - 1) * s >= n + p:  # the last one would begin in the padding
                    windows -= 1
                extra = max((windows - 1) * s + k - n - 2 * p, 0)
            pads.append((p, p + extra))
        if axes == 1:
            return (1, kernels[0]), (1, strides[0]), ((0, 0), pads[0])
        return (kernels[0], kernels[1]), (strides[0], strides[1]), (pads[0], pads[1])

    def _pooled(self, x: Value, op: Op, name: str, part: nn.Module) -> Value:
        """Append a pooling node, with unit axes around it for samples [channels, length]."""
        assert x.node is not None
        if len(x.shape) not in (2, 3):
            raise refuse(name, part, f"its input has shape {x.shape}")
        if len(x.shape) == 3:
            node = self.program.add(name, op, x.node)
            shape = self.program.shapes[node]
            return replace(x, node=node, shape=shape, exclusive=False)
        planar = Reshape((x.shape[0], 1, x.shape[1]))
        before = self.program.add(f"{name}.unsqueeze", planar, x.node)
        self.program.zero_points[before] = x.zero_point
        node = self.program.add(name, op, before)
        channels, _, length = self.program.shapes[node]
        after = self.program.add(f"{name}.squeeze", Reshape((channels, length)), node)
        return replace(x, node=after, shape=(channels, length), exclusive=False)

    def add(self, values: list[Value], signs: tuple[int, ...], name: str) -> Value:
        """Operands on integer multiples of one scale."""
        label = "addition"
        settled = [self._operand(v, name, label) for v in values]
        if len({v.shape for v in settled}) != 1:
            raise refuse(name, label, f"operands of shapes {[v.shape for v in settled]}")
        if any(v.sign is not None for v in settled):
            raise refuse(name, label, "an operand has negated channels")
        scale, factors = common_scale([v.step_scale for v in settled])
        if scale is None:
            got = [v.step_scale.tolist() for v in settled]
            reason = f"scales {got} have no small common unit; quantize both operands alike"
            raise refuse(name, label, reason)
        multipliers = tuple(s * f for s, f in zip(signs, factors))
        nodes = [v.node for v in settled if v.node is not None]
        node = self.program.add(name, Add(multipliers), *nodes)
        zero_point = sum(m * v.zero_point for m, v in zip(multipliers, settled))
        return self.program.remember(Value(node, settled[0].shape, scale, zero_point))

    def move(
        self, function: Callable[[Tensor], Any], x: Value, name: str, part: nn.Module | str
    ) -> Any:
        """The results of a function that only moves values: a value, or a list of them."""
        found = movements(lambda tensors: function(*tensors), [x.shape])
        if isinstance(found, str):
            raise refuse(name, part, found)
        if any(not movement.index.shape for movement in found):
            if len(found) > 1 or math.prod(x.shape) > 1:
                raise refuse(name, part, "leaves no axis but the batch")
            return replace(x, shape=())
        moved = [
            self.program.move(x, movement, name if len(found) == 1 else f"{name}.{i}", part)
            for i, movement in enumerate(found)
        ]
        several = not isinstance(function(torch.zeros(SAMPLES, *x.shape)), Tensor)
        return moved if several else moved[0]

    def join(
        self, function: Callable[..., Tensor], values: list[Value], name: str, dim: int
    ) -> Value:
        """cat or stack: channels side by side, or one tensor after the other and then moved."""
        label = function.__name__
        found = movements(lambda tensors: function(tensors, dim), [v.shape for v in values])
        if isinstance(found, str):
            raise refuse(name, label, found)
        (movement,) = found
        total = sum(math.prod(v.shape) for v in values)
        if np.array_equal(movement.index.ravel(), np.arange(total)):
            joined = self._concat(values, name, label)
            stays = Movement(np.arange(total).reshape(movement.index.shape))
            return self.program.move(joined, stays, f"{name}.reshape", label)
        flat = [
            self.move(lambda t: t.flatten(1), v, f"{name}.{i}", label) for i, v in enumerate(values)
        ]
        return self.program.move(self._concat(flat, name, label), movement, f"{name}.moved", label)

    def _concat(self, values: list[Value], name: str, label: str) -> Value:
        """Channels side by side."""
        settled = [self._operand(v, name, label) for v in values]
        if any(v.sign is not None for v in settled) or len({v.zero_point for v in settled}) > 1:
            raise refuse(name, label, "operands with different zero points or negated channels")
        node = self.program.add(name, Concat(), *(v.node for v in settled if v.node is not None))
        scales = [torch.broadcast_to(v.step_scale, (v.shape[0],)) for v in settled]
        scale = torch.cat(scales)
        if bool((scale == scale[0]).all()):
            scale = scale[0]
        formats = {repr(v.format) for v in settled}
        fmt = settled[0].format if len(formats) == 1 else None
        shape = self.program.shapes[node]
        return self.program.remember(Value(node, shape, scale, settled[0].zero_point, format=fmt))


def _bias_step(name: str, bias: Tensor) -> Step:
    def add_bias(x: Tensor) -> Tensor:
        return x + along_channels(bias, x.ndim)

    exact = (torch.ones(()), bias)
    return Step(f"{name}.bias", add_bias, per_channel=True, rounds=False, bias=bias, affine=exact)


def _instead(quantized: Any) -> str:
    """What a quantizer makes that does not make integers."""
    if isinstance(quantized, (GroupwiseIntQuantTensor, GroupwiseFloatQuantTensor)):
        return ": one scale for each group of values"
    return ": minifloats" if isinstance(quantized, FloatQuantTensor) else ""


def _pair(value: Any, axes: int) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [int(value)] * axes


def common_scale(scales: list[Tensor]) -> tuple[Tensor | None, list[int]]:
    """A float32 scale of which all are exact integer multiples (below 2**16), and the multiples."""
    if any(s.ndim for s in scales):
        equal = all(s.shape == scales[0].shape and bool((s == scales[0]).all()) for s in scales)
        return (scales[0], [1] * len(scales)) if equal else (None, [])
    exact = [Fraction(float(s)) for s in scales]
    unit = exact[0]
    for other in exact[1:]:
        ratio = other / unit
        unit = unit / ratio.denominator
    factors = [int(s / unit) for s in exact]
    scale = torch.tensor(float(unit), dtype=torch.float32)
    if Fraction(float(scale)) != unit or max(factors) >= 2**16 or not float(scale) > 0:
        return None, []
    return scale, factors
