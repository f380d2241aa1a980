"""Brevitas with exact accumulation: integer sums in the places where float32 sums round.

Inside the context, a sum over quantized operands is computed on their integers, in float64, which
holds them exactly, and rounded to float32 once:

    acc = sum c_i k_i (+ bias on the accumulator's grid)
    v   = fl32(fl32(acc) * s) (+ float bias)                 linear, convolutions
    v   = fl32(fl32(S) * s) / count,  S = sum c_i            average pooling, mean
    v   = fl32(fl32(m_1 c_1 + m_2 c_2) * s)                  addition

Everything else is the module's own code.  Layers that return plain tensors are followed by a tensor
subclass that remembers the scale, through the operations that keep integers integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.nn.mixin.base import QuantLayerMixin
from brevitas.quant_tensor import IntQuantTensor, _unpack_quant_tensor
from brevitas.quant_tensor.int_torch_handler import INT_QUANT_TENSOR_FN_HANDLER
from torch import Tensor

from refqnn.brevitas.functions import adaptive_divisors, average_divisors
from refqnn.brevitas.layers import common_scale
from refqnn.brevitas.movement import FUNCTIONS, METHODS
from refqnn.brevitas.values import along_channels, integers_of
from refqnn.errors import NotCovered

__all__ = ["exact_accumulators"]

_LIMIT = 2.0**53  # float64 holds every integer up to here

Handler = Callable[..., Any]


class _Scaled(Tensor):
    """A plain tensor that is integers times a scale, with the scale: [] or [channels]."""

    scale: Tensor

    @classmethod
    def of(cls, value: Tensor, scale: Tensor) -> _Scaled:
        scaled = value.as_subclass(cls)
        scaled.scale = scale.detach()
        return scaled

    @property
    def plain(self) -> Tensor:
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if any(issubclass(t, IntQuantTensor) for t in types):
            return NotImplemented  # its handlers come first
        if func in _EXACT:
            result = _EXACT[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*_plain(args), **_plain(kwargs))
        x = args[0] if args else None
        if not isinstance(x, _Scaled):
            return result
        per_channel = x.scale.ndim > 0
        keeps = func in _KEEPING_CHANNELS or (func in _KEEPING and not per_channel)
        return _scaled(result, x.scale) if keeps else result


_KEEPING_CHANNELS = {
    torch.relu,
    Tensor.relu,
    F.relu,
    F.max_pool1d,
    F.max_pool2d,
    torch.max_pool1d,
    torch.max_pool2d,
    F.dropout,
    F.pad,
    Tensor.contiguous,
    Tensor.detach,
    Tensor.clone,
}
_KEEPING = {
    *_KEEPING_CHANNELS,
    *FUNCTIONS,
    *(getattr(Tensor, name) for name in METHODS),
    *(Tensor.__getitem__, F.adaptive_max_pool1d, F.adaptive_max_pool2d),
}


def _scaled(result: Any, scale: Tensor) -> Any:
    """What a function that keeps integers integers returns, with the scale."""
    if isinstance(result, Tensor):
        return _Scaled.of(result, scale)
    return type(result)(_scaled(part, scale) for part in result)


@contextmanager
def exact_accumulators() -> Iterator[None]:
    """Every Brevitas module run inside sums its integers exactly.

    The general profile's claim is made under this context: the codes of a module run inside are
    those of its Network, for any scales.  It replaces handlers of Brevitas for the process while it
    is active: not for use from several threads.

    Raises (inside): NotCovered when a layer gets a tensor whose scale is not known, or sums beyond
        2**53.

    >>> import torch
    >>> from brevitas.nn import QuantIdentity, QuantLinear
    >>> module = torch.nn.Sequential(QuantIdentity(bit_width=3), QuantLinear(4, 2, bias=False))
    >>> x = torch.ones(1, 4)
    >>> with exact_accumulators():
    ...     y = module.eval()(x)
    >>> bool(torch.isclose(y, module(x)).all())
    True
    """
    handlers = dict(INT_QUANT_TENSOR_FN_HANDLER)
    pack, addition = QuantLayerMixin.pack_output, IntQuantTensor.__add__
    if pack is _pack_output:
        yield  # already active
        return
    for function, handler in _EXACT.items():
        INT_QUANT_TENSOR_FN_HANDLER[function] = _or_plain(function, handler)
    for function in FUNCTIONS - handlers.keys():
        INT_QUANT_TENSOR_FN_HANDLER[function] = _moving(function)
    for function in (F.linear, F.conv1d, F.conv2d, F.conv_transpose1d, F.conv_transpose2d):
        INT_QUANT_TENSOR_FN_HANDLER[function] = _layer(function, handlers[function])
    for function in (F.avg_pool2d, F.adaptive_avg_pool2d):
        INT_QUANT_TENSOR_FN_HANDLER[function] = _pool(function, handlers[function])

    def add(self: Any, other: Any) -> Any:
        inexact = addition(self, other)
        value = _sum(self, other) if isinstance(other, IntQuantTensor) else NotImplemented
        return inexact if value is NotImplemented else inexact.set(value=value.plain)

    QuantLayerMixin.pack_output = _pack_output
    IntQuantTensor.__add__ = add
    try:
        yield
    finally:
        QuantLayerMixin.pack_output, IntQuantTensor.__add__ = pack, addition
        INT_QUANT_TENSOR_FN_HANDLER.clear()
        INT_QUANT_TENSOR_FN_HANDLER.update(handlers)


def _pack_output(self: Any, quant_output: Any) -> Any:
    """As Brevitas, but a plain tensor keeps its scale."""
    if self.return_quant_tensor:
        assert isinstance(quant_output, IntQuantTensor)
        return quant_output
    if isinstance(quant_output, IntQuantTensor):
        scale = _scale_of(quant_output)
        on_grid = bool((quant_output.zero_point == torch.round(quant_output.zero_point)).all())
        if scale is not None and on_grid:
            return _Scaled.of(quant_output.value, scale)
        return quant_output.value
    return quant_output


def _plain(tree: Any) -> Any:
    if isinstance(tree, _Scaled):
        return tree.plain
    if isinstance(tree, (tuple, list)) and not isinstance(tree, IntQuantTensor):
        return type(tree)(_plain(leaf) for leaf in tree)
    if isinstance(tree, dict):
        return {key: _plain(leaf) for key, leaf in tree.items()}
    return tree


def _value(x: Any) -> Tensor:
    if isinstance(x, IntQuantTensor):
        return _plain(x.value)
    return _plain(x)


def _scale_of(x: Any) -> Tensor | None:
    """[] or [channels], or None when it is not known."""
    if isinstance(x, (_Scaled, IntQuantTensor)):
        scale = _plain(x.scale).detach()
        return scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1)
    return None


def _integers(x: Any, name: str) -> tuple[Tensor, Tensor]:
    """(centred codes in float64, scale) of a tensor that carries its scale."""
    scale = _scale_of(x)
    if scale is None:
        expected = "expected one that comes from a quantizer"
        raise NotCovered(
            f"{name}: got a tensor without a scale under exact_accumulators; {expected}"
        )
    value = _value(x)
    return torch.round(value.double() / along_channels(scale, value.ndim).double()), scale


def _or_plain(function: Handler, handler: Handler) -> Handler:
    """The handler; where it does not apply, the function on plain values, as Brevitas does."""

    def either(*args: Any, **kwargs: Any) -> Any:
        result = handler(*args, **kwargs)
        if result is not NotImplemented:
            return result
        return function(*_unpack_quant_tensor(args), **_unpack_quant_tensor(kwargs))

    return either


def _moving(function: Handler) -> Handler:
    """A function that moves values, its results with the scale where one is for all channels."""

    def handler(x: Any, *args: Any, **kwargs: Any) -> Any:
        scale = _scale_of(x)
        result = function(*_unpack_quant_tensor((x, *args)), **_unpack_quant_tensor(kwargs))
        return result if scale is None or scale.ndim else _scaled(_plain(result), scale)

    return handler


def _layer(function: Handler, inexact: Handler) -> Handler:
    """linear or convolution over integers."""

    def handler(x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = function.__name__
        if not isinstance(weight, IntQuantTensor):
            raise NotCovered(f"{name}: got weights that are not quantized under exact_accumulators")
        codes, scale_in = _integers(x, name)
        if scale_in.ndim:
            raise NotCovered(f"{name}: got an input with one scale per channel")
        w = integers_of(weight).double()
        if float(codes.abs().max()) * float(w.abs().sum()) >= _LIMIT:
            raise NotCovered(f"{name}: accumulators may exceed 2**53")
        acc = function(codes, w, None, *args, **kwargs)
        scale_w = _scale_of(weight)
        assert scale_w is not None
        scale = scale_in * scale_w
        rest = None
        if isinstance(bias, IntQuantTensor) and bool((bias.scale.reshape(-1) == scale).all()):
            b = integers_of(bias).reshape(-1).double()
            acc = acc + _along(b, acc, function)
        elif bias is not None:
            rest = _value(bias).reshape(-1)
        value = acc.to(torch.float32) * _along(scale, acc, function)
        if rest is not None:
            value = value + _along(rest, acc, function)
        if isinstance(x, IntQuantTensor):
            plain = inexact(x.set(value=_value(x)), weight, bias, *args, **kwargs)
            if isinstance(plain, IntQuantTensor):
                return plain.set(value=value)
        return value if rest is not None else _Scaled.of(value, scale)

    return handler


def _along(channels: Tensor, acc: Tensor, function: Handler) -> Tensor:
    """[out] against [..., out] of linear, or [n, out, ...] of a convolution."""
    if channels.ndim == 0 or function is F.linear:
        return channels
    return along_channels(channels, acc.ndim)


def _pool(function: Handler, inexact: Handler | None) -> Handler:
    """Average pooling: the exact sum, times the scale, divided by the count."""

    def handler(x: Any, *args: Any, **kwargs: Any) -> Any:
        codes, scale = _integers(x, function.__name__)
        average = function(codes, *args, **kwargs)
        count = _count(function, codes, average, args, kwargs)
        total = torch.round(average * count)
        value = total.to(torch.float32) * along_channels(scale, total.ndim) / count
        if inexact is not None and isinstance(x, IntQuantTensor):
            plain = inexact(x.set(value=_value(x)), *args, **kwargs)
            return plain.set(value=value)
        one = count.reshape(-1)[0]
        return _Scaled.of(value, scale / one) if (count == one).all() else value

    return handler


def _count(function: Handler, x: Tensor, y: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The divisors of an average y of x: one, or [1, 1, *positions]."""
    if function in (F.avg_pool1d, F.avg_pool2d):
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
        given = dict(zip((*names, "divisor_override"), args)) | kwargs
        return average_divisors(tuple(x.shape[2:]), **given)
    if function in (torch.sum, Tensor.sum):
        return torch.ones(())
    if function in (torch.mean, Tensor.mean):
        return torch.tensor(float(x.numel() // y.numel()))
    return adaptive_divisors(tuple(x.shape[2:]), tuple(y.shape[2:]))


def _sum(a: Any, b: Any, **options: Any) -> Any:
    """a + b over integers where both carry scales with a common unit; else NotImplemented."""
    scale_a, scale_b = _scale_of(a), _scale_of(b)
    if scale_a is None or scale_b is None or options:
        return NotImplemented
    unit, factors = common_scale([scale_a, scale_b])
    if unit is None:
        return NotImplemented
    total = factors[0] * _integers(a, "add")[0] + factors[1] * _integers(b, "add")[0]
    return _Scaled.of(total.to(torch.float32) * along_channels(unit, total.ndim), unit)


def _difference(a: Any, b: Any, **options: Any) -> Any:
    negated = _Scaled.of(-_value(b), b.scale) if isinstance(b, _Scaled) else b
    return _sum(a, negated, **options)


def _concatenation(
    tensors: Any, dim: int = 0, function: Handler = torch.cat, **options: Any
) -> Any:
    scales = [_scale_of(t) for t in tensors]
    if (
        any(s is None or s.ndim for s in scales)
        or len({float(s) for s in scales if s is not None}) > 1
    ):
        return NotImplemented
    joined = function([_value(t) for t in tensors], dim, **options)
    assert scales[0] is not None
    return _Scaled.of(joined, scales[0])


def _concatenate(tensors: Any, dim: int = 0, **options: Any) -> Any:
    if all(isinstance(t, IntQuantTensor) for t in tensors):
        return IntQuantTensor.cat(tensors, dim, **options)
    return _concatenation(tensors, dim, **options)


_EXACT: dict[Any, Handler] = {
    torch.add: _sum,
    Tensor.add: _sum,
    Tensor.__add__: _sum,
    Tensor.__iadd__: _sum,
    torch.sub: _difference,
    Tensor.sub: _difference,
    Tensor.__sub__: _difference,
    torch.cat: _concatenate,
    torch.concat: _concatenate,
    torch.stack: partial(_concatenation, function=torch.stack),
    torch.sum: _pool(torch.sum, None),
    Tensor.sum: _pool(Tensor.sum, None),
    torch.mean: _pool(torch.mean, None),
    Tensor.mean: _pool(Tensor.mean, None),
    F.avg_pool1d: _pool(F.avg_pool1d, None),
    F.avg_pool2d: _pool(F.avg_pool2d, None),
    F.adaptive_avg_pool1d: _pool(F.adaptive_avg_pool1d, None),
    F.adaptive_avg_pool2d: _pool(F.adaptive_avg_pool2d, None),
}
