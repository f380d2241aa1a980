"""Walking a module: torch.fx over its forward, with Brevitas layers as leaves.

Every intermediate tensor is a `Value` (integers of a node, and the float32 function on them); sizes
and constants are what they are.  Each layer kind has one method of `_Walker` that says which node
it becomes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from brevitas.nn.mixin.base import QuantLayerMixin
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import Tensor, fx, nn

from refqnn.brevitas.door import AnotherDoor
from refqnn.brevitas.functions import is_identity
from refqnn.brevitas.inputs import Example, check_count, joined
from refqnn.brevitas.layers import Layers
from refqnn.brevitas.lower import Program
from refqnn.brevitas.movement import FUNCTIONS, JOINS, METHODS, SAMPLES, Movement, Moving
from refqnn.brevitas.outputs import Dropped, Import, finish, head, reads_off
from refqnn.brevitas.record import Recording, check_module, check_widths, record
from refqnn.brevitas.values import Value, along_channels, refuse
from refqnn.errors import InvalidArgument, NotCovered
from refqnn.ops.base import Shape
from refqnn.quantizers import Quantizer

__all__ = ["import_module"]

_SIZE_METHODS = {"size", "dim", "ndimension", "numel"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}
_SUBTRACTIONS = {operator.sub, operator.isub, torch.sub}
_WRITING = (
    *("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
)
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}


def import_module(module: nn.Module, example_input: Example) -> Import:
    """The network of a module, and what a comparison needs.  Raises: as `from_brevitas`."""
    check_module(module)
    batch, inputs = joined(example_input, "example_input")
    check_count(module, len(inputs))
    batch = batch.repeat(SAMPLES, *(1,) * (batch.ndim - 1))[:SAMPLES]
    try:
        recording = record(module, batch, inputs)
    except NotCovered:  # of exact_accumulators
        raise
    except _FAILURES as error:
        reason = f"the module itself fails on it: {error}"
        shape = ", ".join(f"{(len(batch), *s)}" for s in inputs or (tuple(batch.shape[1:]),))
        raise InvalidArgument(f"example_input: shape {shape}; {reason}") from error
    check_widths(module, recording)
    root = nn.Sequential(module) if isinstance(module, QuantLayerMixin) else module
    doors: list[Quantizer] = []
    while True:
        walker = _Walker(root, recording, tuple(batch.shape[1:]), doors)
        try:
            with torch.no_grad():
                output = walker.run(inputs)
            imported = replace(finish(walker.program, output), inputs=inputs)
            if not imported.dropped:
                return imported
            return replace(imported, head=head(root, *walker.trail, imported.output))
        except AnotherDoor as found:
            doors = found.doors


class _Proxy(fx.Proxy):
    """Keeps what is written in place: fx knows no x[i] = y, and in old releases no x += y."""


def _writing(operation: Callable[..., Any]) -> Callable[..., Any]:
    def kept(self: fx.Proxy, *others: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, *others), {})

    return kept


for _name in _WRITING:
    setattr(_Proxy, f"__{_name}__", _writing(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Leaves: Brevitas layers, and every module that contains none."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (QuantLayerMixin, QuantProxyFromInjector)):
            return True
        if isinstance(m, (nn.Sequential, nn.ModuleList, Moving)):
            return False
        return not _has_quantizers(m)


def _has_quantizers(module: nn.Module) -> bool:
    return any(isinstance(part, QuantProxyFromInjector) for part in module.modules())


class _Walker:
    """Interprets the graph of a module over `Value`s."""

    def __init__(
        self, root: nn.Module, recording: Recording, input_shape: Shape, doors: list[Quantizer]
    ) -> None:
        self.root = root
        self.recording = recording
        self.program = Program(input_shape)
        self.layers = Layers(self.program, recording, doors)
        self.trail: tuple[fx.Graph, dict[fx.Node, Any]] = (fx.Graph(), {})  # of the root

    def run(self, inputs: tuple[Shape, ...]) -> Any:
        """The output of the root for its float input, or for these parts of it."""
        value = Value(None, self.program.input_shape, torch.ones(()))
        arguments, at = [], 0
        for number, shape in enumerate(inputs):
            index = at + np.arange(prod(shape)).reshape(shape)
            part = self.program.move(value, Movement(index), f"input {number}", self.root)
            arguments.append(part.within(None))
            at += index.size
        return self._interpret(self.root, "", arguments or [value])

    def _interpret(self, module: nn.Module, prefix: str, arguments: list[Any]) -> Any:
        graph = _trace(module, prefix)
        inputs = iter(arguments)
        values: dict[fx.Node, Any] = {}
        if not prefix:
            self.trail = graph, values
        output: Any = None

        def look_up(argument: Any) -> Any:
            return fx.node.map_arg(argument, lambda node: values[node])

        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs, node.args[0] if node.args else None)
                continue
            args, kwargs = look_up(node.args), look_up(node.kwargs)
            _check_fresh(node, prefix, (args, kwargs))
            if node.op == "output":
                output = args[0]
            elif node.op == "get_attr":
                values[node] = _attribute(module, node.target).detach().clone()
            else:
                values[node] = self._called(node, module, prefix, args, kwargs)
            value = values.get(node)
            if isinstance(value, Value) and value.exclusive and _readers(node) > 1:
                values[node] = replace(value, exclusive=False)
        return output

    def _called(self, node: fx.Node, module: nn.Module, prefix: str, args: Any, kwargs: Any) -> Any:
        """The result of a node, in the memory that it lies in; what it writes to is marked."""
        target: Any = node.target
        name = f"{prefix}{node.name}"
        apply: Callable[..., Any] = self._function
        call = target
        if node.op == "call_module":
            target = call = module.get_submodule(target)
            apply, name = self._module, f"{prefix}{node.target}"
        elif node.op == "call_method":
            apply, call = self._method, getattr(Tensor, target, None)
        layer = isinstance(target, QuantLayerMixin)  # its results are its own
        written, homes = ([], None) if layer else _effects(call, name, args, kwargs)
        result = self._applied(apply, target, name, args, kwargs)
        for value in written:
            value.storage.writers.append(f"{prefix}{node.name}")
        if not homes or len(homes) != sum(isinstance(v, Value) for v in _flat(result)):
            return result
        each = iter(homes)
        return _mapped(result, lambda v: v.within(next(each)) if isinstance(v, Value) else v)

    def _applied(
        self, apply: Callable[..., Any], target: Any, name: str, args: Any, kwargs: Any
    ) -> Any:
        """The result of a module, function or method; `Dropped` where it only reads off one."""
        if not args and (named := [k for k in ("input", "tensors", *kwargs) if k in kwargs]):
            args = (kwargs[named[0]],)  # the first one, by its name
            kwargs = {k: v for k, v in kwargs.items() if k != named[0]}
        arguments = _flat((args, kwargs))
        values = [a for a in arguments if isinstance(a, Value)]
        if dropped := [a for a in arguments if isinstance(a, Dropped)]:
            computes = isinstance(target, nn.Module) and _has_quantizers(target)
            return dropped[0].behind(name, computes or bool(values))
        axis = "dim" in kwargs or any(isinstance(a, int) for a in args[1:])
        if len(values) == 1 and values[0].node is not None and reads_off(target, axis):
            return Dropped(values[0], name, _label(target))
        result = apply(target, name, args, kwargs)
        if isinstance(result, Value) and not result.shape:  # one value, without an axis
            return Dropped(values[0], name, _label(target))
        return result

    # --- modules ----------------------------------------------------------------------------

    def _module(self, part: nn.Module, name: str, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(a, Value) for a in _flat(args)):
            return part(*args, **kwargs)
        if kwargs and not isinstance(part, QuantLayerMixin):
            return self._custom(part, name, args, kwargs)
        lowered = self.layers.module(part, name, args, kwargs)
        if lowered is not NotImplemented:
            return lowered
        if is_identity(part):
            return args[0]
        return self._custom(part, name, args, kwargs)

    def _custom(self, part: nn.Module, name: str, args: Any, kwargs: Any) -> Any:
        """A module of one's own: a function of one integer, or the graph inside it."""
        values = [a for a in _flat((args, kwargs)) if isinstance(a, Value)]
        if len(values) == 1 and isinstance(args[0], Value):
            others = args[1:]
            probe = self.layers.function(
                values[0], lambda x: part(x, *others, **kwargs), name, part, required=False
            )
            if probe is not None:
                return probe
        if type(part).__module__.startswith("torch.nn"):
            reason = "neither an integer operation nor a function of one value at a time"
            raise refuse(name, part, reason)
        if kwargs:
            raise refuse(name, part, "is called with keyword arguments")
        return self._interpret(part, f"{name}.", list(args))

    # --- functions and methods --------------------------------------------------------------

    def _function(self, target: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        values = [a for a in _flat((args, kwargs)) if isinstance(a, Value)]
        if not values:
            return target(*args, **kwargs)
        if target is getattr:
            return self._attribute_of(args[0], args[1], name)
        if target is operator.getitem and isinstance(args[0], (tuple, list, dict)):
            return args[0][args[1]]
        if target is operator.setitem:
            return None  # whoever reads the tensor from now on is refused
        if target in FUNCTIONS:
            return self._moved(target, name, args, kwargs)
        if target in _DROPOUTS:
            training = kwargs.get("training", args[2] if len(args) > 2 else True)
            if training:
                raise refuse(name, target.__name__, "is random; pass training=self.training")
            return args[0]
        if target in JOINS:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return self.layers.join(target, list(args[0]), name, dim)
        if len(values) == 2 and target in _ADDITIONS | _SUBTRACTIONS and not kwargs:
            sign = 1 if target in _ADDITIONS else -1
            return self._sum(target, sign, name, args, values)
        if target in (torch.mean, torch.sum):
            return self._reduced(target.__name__, name, args, kwargs)
        lowered = self.layers.functional(target, name, args, kwargs)
        if lowered is not NotImplemented:
            return lowered
        return self._univariate(target, name, args, kwargs, values)

    def _method(self, method: str, name: str, args: Any, kwargs: Any) -> Any:
        values = [a for a in _flat((args, kwargs)) if isinstance(a, Value)]
        if not values:
            return getattr(args[0], method)(*args[1:], **kwargs)
        if not isinstance(args[0], Value):
            return self._univariate(getattr(Tensor, method), name, args, kwargs, values)
        if method in _SIZE_METHODS:
            return getattr(args[0].zeros(SAMPLES), method)(*args[1:], **kwargs)
        if method in METHODS:
            return self._moved(getattr(Tensor, method), name, args, kwargs)
        if method in ("clone", "contiguous", "detach", "float", "dequantize"):
            return args[0]
        if method == "int" and args[0].format is not None and args[0].sign is None:
            return replace(args[0], scale=torch.ones(()), zero_point=0)
        if method in ("add", "add_", "sub", "sub_") and len(values) == 2 and not kwargs:
            sign = 1 if method.startswith("add") else -1
            return self._sum(getattr(Tensor, method), sign, name, args, values)
        if method in ("mean", "sum"):
            return self._reduced(method, name, args, kwargs)
        if not hasattr(Tensor, method):
            raise refuse(name, method, "is not an operation on one value at a time")
        return self._univariate(getattr(Tensor, method), name, args, kwargs, values)

    def _sum(
        self, target: Callable[..., Any], sign: int, name: str, args: Any, values: list[Value]
    ) -> Value:
        """Integers of two tensors added, or else one function of the integers that both have."""
        try:
            return self.layers.add(values, (1, sign), name)
        except NotCovered:
            if _common(values) is None:
                raise
            return self._univariate(target, name, args, {}, values)

    def _univariate(
        self, target: Callable[..., Any], name: str, args: Any, kwargs: Any, values: list[Value]
    ) -> Value:
        several = len(values) > 1
        value = _common(values) if several else values[0]
        if value is None:
            reason = "a float operation on two quantized tensors is not a function of one integer"
            raise refuse(name, _label(target), reason)

        def function(x: Tensor) -> Any:
            def put(argument: Any) -> Any:
                if not isinstance(argument, Value):
                    return argument
                return argument.behind(x.clone()) if several else x

            return target(*_mapped(args, put), **_mapped(kwargs, put))

        constants = any(isinstance(a, Tensor) and a.numel() > 1 for a in _flat((args, kwargs)))
        own = constants or (several and any(v.per_channel for v in values))
        result = self.layers.function(value, function, name, target, required=True, per_channel=own)
        assert result is not None
        if several:  # not known to be a product or a sum by its name
            step = replace(result.steps[-1], kind="", affine=None)
            return replace(result, steps=(step,))
        return result

    def _attribute_of(self, value: Any, attribute: str, name: str) -> Any:
        if not isinstance(value, Value):
            return getattr(value, attribute)
        if attribute in ("value", "tensor", "data"):
            return value
        if value.format is not None and not value.steps and value.sign is None:
            if attribute == "scale":
                return along_channels(value.scale, len(value.shape) + 1)
            if attribute == "zero_point":
                return torch.tensor(float(value.zero_point))
            if attribute == "bit_width":
                return torch.tensor(float(value.format.bits))
            if attribute in ("signed", "signed_t"):
                return value.format.signed
        if attribute in ("shape", "ndim", "dtype", "device"):
            return getattr(value.zeros(SAMPLES), attribute)
        raise refuse(name, f"attribute {attribute}", "is not known before the module runs")

    def _moved(self, target: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        return self.layers.move(
            lambda x: target(x, *args[1:], **kwargs), args[0], name, _label(target)
        )

    def _reduced(self, method: str, name: str, args: Any, kwargs: Any) -> Value:
        """The sum or mean over axes of the samples."""
        value, rank = args[0], len(args[0].shape) + 1
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        axes = {dims % rank} if isinstance(dims, int) else {d % rank for d in dims or range(rank)}
        if 0 in axes:
            raise refuse(name, method, f"over axes {dims}: mixes samples")
        if method == "mean" and rank > 2 and axes == set(range(2, rank)):
            return self.layers.global_average(value, name, keep)
        return self.layers.reduced(value, axes, name, keep, mean=method == "mean")


def _common(values: list[Value]) -> Value | None:
    """The integers that all the values are functions of, as floats without a function; or None."""
    first = values[0]
    plain = not any(v.steps for v in values)
    if plain and (first.node is None or any(v is not first for v in values)):
        return None  # products of the input, or of what two quantizers made of it
    for v in values:
        same = (v.node, v.shape, v.zero_point) == (first.node, first.shape, first.zero_point)
        if not same or v.pending is not first.pending or v.sign is not first.sign:
            return None
        if not (torch.equal(v.scale, first.scale) and torch.equal(v.divisor, first.divisor)):
            return None
        if any(step.shaped for step in v.steps):
            return None
    return replace(first, steps=(), format=None, dtype=torch.float32, exclusive=False)


def _label(target: Any) -> str:
    """What a module, function or method is called in messages."""
    if isinstance(target, nn.Module):
        return type(target).__name__
    return str(getattr(target, "__name__", target))


def _trace(module: nn.Module, prefix: str) -> fx.Graph:
    try:
        return _Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = f"its forward cannot be traced (control flow that depends on data?): {error}"
        raise refuse(prefix.rstrip("."), module, reason) from error


def _attribute(module: nn.Module, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _readers(node: fx.Node) -> int:
    """How many nodes read the values (not just the shape) of this one."""
    return sum(
        not ((user.op == "call_method" and user.target in _SIZE_METHODS) or user.target is getattr)
        for user in node.users
    )


def _effects(
    call: Any, name: str, args: Any, kwargs: Any
) -> tuple[list[Value], list[Value | None] | None]:
    """Which values an operation changes in place, and whose memory each of its results lies in.

    It is run on zeros in their places.  Results are None where it does not run on plain tensors.

    Raises: NotCovered where it changes a tensor of the module's own.
    """
    probes: list[tuple[Any, Tensor]] = []

    def probe(argument: Any) -> Any:
        if isinstance(argument, Value):
            tensor = argument.zeros(SAMPLES)
        elif isinstance(argument, Tensor):
            tensor = argument.clone()
        else:
            return argument
        probes.append((argument, tensor))
        return tensor

    def home(result: Tensor) -> Value | None:
        at = result.untyped_storage().data_ptr()
        inside = (v for v, t in probes if t.untyped_storage().data_ptr() == at)
        return next((v for v in inside if isinstance(v, Value)), None)

    homes = None
    if not any(isinstance(a, Value) for a in _flat((args, kwargs))):
        return [], homes
    with torch.inference_mode(False), torch.no_grad():
        tensors, named = _mapped(args, probe), _mapped(kwargs, probe)
        with suppress(*_FAILURES):
            results = _flat(call(*tensors, **named))
            homes = [home(result) for result in results if isinstance(result, Tensor)]
    written = [argument for argument, tensor in probes if tensor._version]
    if any(not isinstance(argument, Value) for argument in written):
        reason = "writes integers into a tensor of the module's own; use torch.cat, F.pad, ..."
        raise refuse(name, _label(call), reason)
    return written, homes


def _check_fresh(node: fx.Node, prefix: str, arguments: Any) -> None:
    """Raises: NotCovered for a value that an operation in place has replaced meanwhile."""
    if node.op == "call_method" and node.target in _SIZE_METHODS:
        return
    for value in _flat(arguments):
        if isinstance(value, Value) and value.writes < len(value.storage.writers):
            reason = f"reads a tensor that {value.storage.writers[-1]} has changed in place; "
            remedy = "read the result of that operation, or one that makes a new tensor"
            raise refuse(f"{prefix}{node.name}", str(node.target), reason + remedy)


def _flat(tree: Any) -> list[Any]:
    if isinstance(tree, (tuple, list)):
        return [leaf for part in tree for leaf in _flat(part)]
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _flat(part)]
    return [tree]


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, (tuple, list)):
        return type(tree)(_mapped(part, function) for part in tree)
    if isinstance(tree, dict):
        return {key: _mapped(part, function) for key, part in tree.items()}
    return function(tree)
