"""Walking a module: torch.fx over its forward, with Brevitas layers as leaves.

Every intermediate tensor is a `Value` (integers of a node, and the float32 function on them); sizes
and constants are what they are.  Each layer kind has one method of `_Walker` that says which node
it becomes.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from brevitas.nn.mixin.base import QuantLayerMixin
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from numpy.typing import ArrayLike
from torch import Tensor, fx, nn

from refqnn.brevitas.door import AnotherDoor
from refqnn.brevitas.functions import is_identity
from refqnn.brevitas.layers import Layers
from refqnn.brevitas.lower import Program
from refqnn.brevitas.movement import FUNCTIONS, JOINS, METHODS, SAMPLES, Moving
from refqnn.brevitas.outputs import Dropped, Import, finish, head, reads_off
from refqnn.brevitas.record import Recording, check_module, check_widths, record
from refqnn.brevitas.values import Value, along_channels, refuse
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch, mismatch
from refqnn.formats import as_array
from refqnn.ops.base import Shape
from refqnn.quantizers import Quantizer

__all__ = ["as_batch", "import_module"]

_SIZE_METHODS = {"size", "dim", "ndimension", "numel"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}
_SUBTRACTIONS = {operator.sub, operator.isub, torch.sub}
_IN_PLACE = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor),
}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}


def import_module(module: nn.Module, example_input: ArrayLike | Tensor) -> Import:
    """The network of a module, and what a comparison needs.  Raises: as `from_brevitas`."""
    check_module(module)
    _check_one_input(module, example_input)
    batch = as_batch(example_input, "example_input")
    batch = batch.repeat(SAMPLES, *(1,) * (batch.ndim - 1))[:SAMPLES]
    try:
        recording = record(module, batch)
    except NotCovered:  # of exact_accumulators
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = f"the module itself fails on it: {error}"
        raise InvalidArgument(f"example_input: shape {tuple(batch.shape)}; {reason}") from error
    check_widths(module, recording)
    root = nn.Sequential(module) if isinstance(module, QuantLayerMixin) else module
    doors: list[Quantizer] = []
    while True:
        walker = _Walker(root, recording, tuple(batch.shape[1:]), doors)
        try:
            with torch.no_grad():
                output = walker.run()
            imported = finish(walker.program, output)
            if not imported.dropped:
                return imported
            return replace(imported, head=head(root, *walker.trail, imported.output))
        except AnotherDoor as found:
            doors = found.doors


def _check_one_input(module: nn.Module, example_input: object) -> None:
    """Raises: NotCovered for several inputs, InvalidType for one inside a list."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = sum(p.kind in positional and p.default is p.empty for p in parameters)
    parts = _flat(example_input) if type(example_input) in (tuple, list, dict) else []
    given = any(isinstance(part, Tensor) or np.ndim(part) > 1 for part in parts)
    if given and taken == len(parts) == 1:
        got = f"a {type(example_input).__name__} of one tensor"
        raise InvalidType(mismatch("example_input", got, "the tensor itself"))
    if taken > 1 or given:
        count = taken if taken > 1 else len(parts)
        remedy = "concatenate them to one tensor, and slice it in the module's forward"
        raise NotCovered(f"the module: got {count} inputs, expected one; {remedy}")


def as_batch(x: ArrayLike | Tensor, argument: str) -> Tensor:
    """float32 tensor [n, ...].  Raises: InvalidType, ShapeMismatch."""
    if isinstance(x, Tensor):
        real = not (x.is_complex() or x.is_quantized or x.dtype == torch.bool)
        if not real or x.layout != torch.strided:
            got = f"a tensor of {x.dtype}, {x.layout}"
            raise InvalidType(mismatch(argument, got, "real numbers in a dense tensor"))
        tensor = x.detach()
    else:
        array = as_array(x, argument, "real numbers")
        if array.dtype.kind not in "fiu":
            raise InvalidType(mismatch(argument, f"dtype {array.dtype}", "real numbers"))
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if tensor.ndim < 2 or len(tensor) == 0:
        raise ShapeMismatch(mismatch(argument, f"shape {tuple(tensor.shape)}", "[n, ...], n >= 1"))
    return tensor.to(torch.float32)


class _Tracer(fx.Tracer):
    """Leaves: Brevitas layers, and every module that contains none."""

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

    def run(self) -> Any:
        """The output of the root for its float input."""
        value = Value(None, self.program.input_shape, torch.ones(()))
        return self._interpret(self.root, "", [value])

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
                values[node] = _attribute(module, node.target).detach()
            elif node.op == "call_module":
                part = module.get_submodule(node.target)
                values[node] = self._applied(self._module, part, prefix + node.target, args, kwargs)
            else:
                apply = self._method if node.op == "call_method" else self._function
                name = prefix + node.name
                values[node] = self._applied(apply, node.target, name, args, kwargs)
            value = values.get(node)
            if isinstance(value, Value) and _in_place(node, module):
                (target, *_) = (a for a in _flat((args, kwargs)) if isinstance(a, Value))
                value = replace(value, storage=target.storage).overwritten(prefix + node.name)
                values[node] = value
            if isinstance(value, Value) and value.exclusive and _readers(node) > 1:
                values[node] = replace(value, exclusive=False)
        return output

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
        if len(values) == 1 and values[0].node is not None and reads_off(target):
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
            return self.layers.add(values, (1, sign), name)
        if target is torch.mean:
            return self._mean(name, args, kwargs)
        lowered = self.layers.functional(target, name, args, kwargs)
        if lowered is not NotImplemented:
            return lowered
        return self._univariate(target, name, args, kwargs, values)

    def _method(self, method: str, name: str, args: Any, kwargs: Any) -> Any:
        values = [a for a in _flat((args, kwargs)) if isinstance(a, Value)]
        if not values or not isinstance(args[0], Value):
            return getattr(args[0], method)(*args[1:], **kwargs)
        if method in _SIZE_METHODS:
            return getattr(_example(args[0]), method)(*args[1:], **kwargs)
        if method in METHODS:
            return self._moved(getattr(Tensor, method), name, args, kwargs)
        if method == "clone":
            return args[0].elsewhere()
        if method in ("contiguous", "detach", "float", "dequantize"):
            return args[0]
        if method == "int" and args[0].format is not None and args[0].sign is None:
            return replace(args[0], scale=torch.ones(()), zero_point=0).elsewhere()
        if method in ("add", "add_", "sub", "sub_") and len(values) == 2 and not kwargs:
            sign = 1 if method.startswith("add") else -1
            return self.layers.add(values, (1, sign), name)
        if method == "mean":
            return self._mean(name, args, kwargs)
        if not hasattr(Tensor, method):
            raise refuse(name, method, "is not an operation on one value at a time")
        return self._univariate(getattr(Tensor, method), name, args, kwargs, values)

    def _univariate(
        self, target: Callable[..., Any], name: str, args: Any, kwargs: Any, values: list[Value]
    ) -> Value:
        if len(values) > 1:
            reason = "a float operation on two quantized tensors is not a function of one integer"
            raise refuse(name, _label(target), reason)

        def function(x: Tensor) -> Any:
            def put(argument: Any) -> Any:
                return x if isinstance(argument, Value) else argument

            return target(*_mapped(args, put), **_mapped(kwargs, put))

        constants = any(isinstance(a, Tensor) and a.numel() > 1 for a in _flat((args, kwargs)))
        result = self.layers.function(
            values[0], function, name, target, required=True, per_channel=constants
        )
        assert result is not None
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
            return getattr(_example(value), attribute)
        raise refuse(name, f"attribute {attribute}", "is not known before the module runs")

    def _moved(self, target: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        return self.layers.move(
            lambda x: target(x, *args[1:], **kwargs), args[0], name, _label(target)
        )

    def _mean(self, name: str, args: Any, kwargs: Any) -> Value:
        value = args[0]
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        rank = len(value.shape) + 1
        axes = {dims % rank} if isinstance(dims, int) else {d % rank for d in dims or ()}
        if rank < 3 or axes != set(range(2, rank)):
            raise refuse(name, "mean", f"over axes {dims}; expected all spatial axes")
        return self.layers.global_average(value, name, keep)


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


def _in_place(node: fx.Node, module: nn.Module) -> bool:
    """Whether the operation writes its result over its first argument."""
    if node.op == "call_module":
        parts = module.get_submodule(str(node.target)).modules()
        return any(getattr(part, "inplace", False) for part in parts)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    named = name.endswith("_") and not name.endswith("__")
    return named or node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))


def _check_fresh(node: fx.Node, prefix: str, arguments: Any) -> None:
    """Raises: NotCovered for a value that an operation in place has replaced meanwhile."""
    if node.op == "call_method" and node.target in _SIZE_METHODS:
        return
    for value in _flat(arguments):
        if isinstance(value, Value) and value.writes < len(value.storage.writers):
            reason = f"reads a tensor that {value.storage.writers[-1]} has changed in place; "
            remedy = "read the result of that operation, or give it a copy"
            raise refuse(f"{prefix}{node.name}", str(node.target), reason + remedy)


def _example(value: Value) -> Tensor:
    """A tensor of the value's shape, for a batch of `SAMPLES`."""
    return torch.zeros(SAMPLES, *value.shape)


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
