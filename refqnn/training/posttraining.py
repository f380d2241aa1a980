"""Post-training quantization: a float module that is trained already, as an integer network.

Layer by layer, each on what the integers before it really give:

1. weights are rounded one column after the other, and what a column loses is given to those that
   follow, in the metric of the layer's own inputs (Frantar and others, GPTQ, arXiv 2210.17323);
2. an accumulator budget is charged exactly, both signs of each row (`refqnn.pruning.project`);
3. the scale and the offset of each row are fitted anew to the float layer's outputs, in least
   squares; they cost nothing, since thresholds hold them;
4. batch normalization, activation and rounding become integer thresholds by bisection on the
   module's own functions; the scale of the codes is the one of least squared error.

A convolution is a linear layer on its windows.  Pools act on codes: the mean of a window is its
sum, whose range the next layer's budget counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.fx import Tracer
from torch.nn.functional import unfold

from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, as_array, is_integer
from refqnn.network import Network, Node
from refqnn.ops import Conv2d, Flatten, Interval, Linear, MaxPool2d, Op, Requantize, SumPool2d
from refqnn.pruning import project
from refqnn.quantizers import Dequantizer, SymmetricQuantizer

__all__ = ["quantize_module"]

Floats = NDArray[np.float64]
MAX_BUDGET = 62  # signed bits, of refqnn.pruning.project

_DAMPING = 0.01  # of the mean square of an input: GPTQ's own choice
_SHARES = np.linspace(0.3, 1.0, 36)  # of the greatest magnitude: scales that are tried
_COARSER = np.linspace(1.2, 4.0, 15)  # under a budget also these
_FAR = 1e6  # where a nondecreasing function has risen
_MOST_ROWS = 10_000  # windows of the samples, evenly spaced, that a layer is fitted on
_PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_MOVES = (nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_NAMED = (  # as their functions are, in lower case
    *(nn.ReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU),
    *(nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardtanh),
)
_BEHIND = (*_NORMS, *_NAMED, nn.LeakyReLU, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign)
_ONE = (1, (1, 1))
_USUAL: tuple[tuple[tuple[type[nn.Module], ...], dict[str, tuple[object, ...]]], ...] = (
    ((nn.Conv2d,), {"groups": (1,), "padding_mode": ("zeros",)}),
    ((nn.MaxPool2d,), {"dilation": _ONE, "return_indices": (False,)}),
    ((nn.MaxPool2d, nn.AvgPool2d), {"ceil_mode": (False,)}),
    ((nn.AvgPool2d,), {"count_include_pad": (True,), "divisor_override": (None,)}),
    ((nn.AdaptiveAvgPool2d,), {"output_size": _ONE}),
    ((nn.Flatten,), {"start_dim": (1,), "end_dim": (-1,)}),
    (_NORMS, {"track_running_stats": (True,)}),
)
_FUNCTIONS: dict[str, type[nn.Module]] = {
    **{kind.__name__.lower(): kind for kind in _NAMED},
    "leaky_relu": nn.LeakyReLU,
    "dropout": nn.Identity,
    "flatten": nn.Flatten,
    "view": nn.Flatten,
    "reshape": nn.Flatten,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
}
_SHAPES = ("size", "getattr", "getitem")
_EXPECTED = (
    "nn.Linear or nn.Conv2d, then batch normalization and nondecreasing activations, then pools "
    "or nn.Flatten, as in an nn.Sequential"
)


def quantize_module(
    float_module: nn.Module,
    X: ArrayLike,
    n_bits: int = 3,
    n_accum_bits: int | None = None,
    *,
    n_input_bits: int | None = None,
) -> Network:
    """An integer network that follows a trained float module as nearly as its bits allow.

    Args:
        float_module: `nn.Linear` and `nn.Conv2d`, each followed by batch normalization and
            nondecreasing activations, and then by pools or `nn.Flatten`; the last is `nn.Linear`.
            In an `nn.Sequential`, or in modules of your own whose forward passes one value on,
            through layers or their functions (`F.relu`, `torch.flatten`, ...). It is not changed.
        X: rows [n, features], or images [n, channels, height, width], to calibrate on, at best the
            training set; no labels.
        n_bits: of weights (narrow) and activations, 2 to 8.
        n_accum_bits: signed width that no accumulator exceeds, for any input; None: no budget.
        n_input_bits: of the input codes; None: n_bits.

    Returns: a `Network` whose `predict` approximates the module, and whose certificate fits the
        budget. The last biases lie in its output door: classes are those of `predict`.

    Raises: NotCovered that names a layer of another kind, or its setting, or an activation that
        neither rises nor falls, or for a module that computes something else than its layers;
        InvalidArgument, InvalidType, ShapeMismatch.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    >>> X = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    >>> network = quantize_module(module, X, n_bits=4, n_accum_bits=8)
    >>> from refqnn import certify
    >>> max(layer.signed_bits for layer in certify(network).layers.values()) <= 8
    True
    >>> wanted = module(torch.from_numpy(X)).argmax(1).numpy()
    >>> bool((network.predict(X).argmax(axis=1) == wanted).mean() > 0.9)
    True
    """
    input_bits = n_bits if n_input_bits is None else n_input_bits
    budget = MAX_BUDGET if n_accum_bits is None else n_accum_bits
    for name, bits, most in (
        ("n_bits", n_bits, 8),
        ("n_input_bits", input_bits, 8),
        ("n_accum_bits", budget, MAX_BUDGET),
    ):
        if not is_integer(bits) or not 2 <= bits <= most:
            raise InvalidArgument(mismatch(name, repr(bits), f"an integer from 2 to {most}"))
    first, blocks = _blocks(float_module)
    rows = _samples(X, first, blocks[0].layer)
    _check_layers(float_module, first, blocks, _tensor(rows))

    door = _input_door(rows, input_bits)
    flow = _Flow(door.quantize(rows), _tensor(rows), (door.format.q_min, door.format.q_max), [])
    with torch.no_grad():
        flow.move("input", first)
        for number, block in enumerate(blocks, start=1):
            out = flow.layer(number, block, number == len(blocks), n_bits, n_accum_bits)
    shape = rows.shape[1:]
    return Network(flow.nodes, input_shape=shape, input_quantizer=door, output_dequantizer=out)


@dataclass(frozen=True)
class _Block:
    """A weight layer, what stands behind its sums (on rows [n, channels]), and pools."""

    name: str
    layer: nn.Linear | nn.Conv2d
    behind: nn.Sequential
    moves: list[nn.Module]

    def after(self, sums: Tensor) -> Tensor:
        """What stands behind, of sums [n, channels, ...]."""
        moved = sums.movedim(1, -1)
        return self.behind(_as_rows(sums)).view(moved.shape).movedim(-1, 1)

    def inputs(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What each sum reads: [sums, values]."""
        if isinstance(self.layer, nn.Linear):
            return codes
        layer = self.layer
        assert not isinstance(layer.padding, str)  # refused before
        geometry = layer.kernel_size, layer.dilation, layer.padding, layer.stride
        windows = unfold(torch.from_numpy(codes).double(), *geometry)
        return np.asarray(_as_rows(windows).long().numpy())

    def op(self, weight: NDArray[np.int64]) -> Op:
        if isinstance(self.layer, nn.Linear):
            return Linear(weight)
        shape = self.layer.weight.shape
        names = ("stride", "padding", "dilation")
        return Conv2d(weight.reshape(shape), **{n: getattr(self.layer, n) for n in names})


@dataclass
class _Flow:
    """Codes, and what the float module has there, as they pass from layer to layer.

    Attributes:
        codes, wanted: [n, ...].
        ends: least and greatest value of the codes, for any input.
        nodes: of the network so far.
    """

    codes: NDArray[np.int64]
    wanted: Tensor
    ends: tuple[int, int]
    nodes: list[Node]

    def layer(
        self, number: int, block: _Block, last: bool, n_bits: int, n_accum_bits: int | None
    ) -> Dequantizer:
        """Pass a block.  Returns: what its codes, or sums, stand for before its pools."""
        sums, behind = block.layer(self.wanted), block.behind
        few = slice(None, None, max(1, sums[:, 0].numel() // _MOST_ROWS))
        inputs, target = block.inputs(self.codes[few]), _floats(_as_rows(sums[few]))
        turned = _turned(behind, target.shape[1])  # where what stands behind falls, -1
        real = _floats(block.layer.weight.flatten(1)) * turned[:, None]
        weight = _weights(real, inputs, target, n_bits, self.ends, n_accum_bits, last)
        weight[_fitted(inputs @ weight.T, target, last)[0] * turned <= 0] = 0  # worse than nothing
        acc = inputs @ weight.T
        scale, offset = _fitted(acc, target, last)
        scale = np.copysign(scale, turned)
        op = block.op(weight)
        self.nodes.append(Node(f"{'fc' if isinstance(op, Linear) else 'conv'}{number}", op))
        if last and not behind:
            return Dequantizer(scale[:1], offset)
        wanted = block.after(sums)
        box = Linear(weight).out_range(Interval(*(np.full(weight.shape[1], e) for e in self.ends)))
        values = partial(_values, behind, scale, offset)
        try:
            act, step = _thresholds(values, acc, box, _floats(_as_rows(wanted[few])), n_bits)
        except InvalidArgument as error:
            kinds = ", ".join(type(part).__name__ for part in behind)
            raise NotCovered(f"{kinds} behind layer {number}: {error}") from error
        self.nodes.append(Node(f"act{number}", act))
        self.codes, self.wanted = act.forward(op.forward(self.codes)), wanted
        self.ends = act.format.q_min, act.format.q_max
        self.move(f"pool{number}", block.moves)
        return Dequantizer(step)

    def move(self, name: str, moves: list[nn.Module]) -> None:
        """Pass pools and flattenings."""
        for number, part in enumerate(moves, start=1):
            if self.codes.ndim == 2:  # flat already
                continue
            op, values = _moved(part, self.codes.shape[1:])
            self.nodes.append(Node(f"{name}_{number}", op))
            self.codes, self.wanted = op.forward(self.codes), part(self.wanted)
            self.ends = self.ends[0] * values, self.ends[1] * values


def _moved(part: nn.Module, shape: tuple[int, ...]) -> tuple[Op, int]:
    """The node of a pool or flattening, and how many values it sums."""
    if isinstance(part, nn.Flatten):
        return Flatten(), 1
    if isinstance(part, nn.MaxPool2d):
        return MaxPool2d(part.kernel_size, part.stride, part.padding), 1
    if isinstance(part, nn.AvgPool2d):
        op = SumPool2d(part.kernel_size, part.stride, part.padding)
    else:
        op = SumPool2d(shape[1:])  # all of a channel
    return op, prod(op.kernel)


def _samples(
    X: ArrayLike, first: list[nn.Module], layer: nn.Linear | nn.Conv2d
) -> NDArray[np.float32]:
    """X as float32.  Raises: InvalidType, InvalidArgument, ShapeMismatch."""
    rows = as_array(X.detach() if isinstance(X, Tensor) else X, "X", "real numbers")
    if rows.dtype.kind not in "biuf":
        raise InvalidType(mismatch("X", f"dtype {rows.dtype}", "real numbers"))
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    if isinstance(layer, nn.Conv2d):
        fits = rows.ndim == 4 and rows.shape[1] == layer.in_channels
        expected = f"[at least 2, {layer.in_channels}, height, width]"
    else:
        fits = rows.ndim >= 2 and prod(rows.shape[1:]) == layer.in_features
        fits &= rows.ndim == 2 or bool(first)
        expected = f"[at least 2, {layer.in_features}]"
    if not fits or len(rows) < 2:
        raise ShapeMismatch(mismatch("X", f"shape {rows.shape}", expected))
    if not np.isfinite(rows).all():
        raise InvalidArgument(mismatch("X", "NaN or infinity", "finite numbers"))
    return rows


def _as_rows(values: Tensor) -> Tensor:
    """[n, channels, ...] as [n * positions, channels]."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def _tensor(values: NDArray[np.float32] | Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _floats(values: Tensor) -> Floats:
    return values.detach().double().numpy()


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a module by name, in the order in which its forward calls them.

    Functions count as the layers they are.  Where its forward cannot be followed, as its layers
    were given to it; that it computes no more than they do is checked on the samples.
    """
    if _is_layer(module):
        yield "", module
        return
    try:
        calls = list(Tracer().trace(module).nodes)
    except Exception:  # of a forward that looks at its values
        yield from _registered(module)
        return
    for call in calls:
        name = call.target if isinstance(call.target, str) else call.target.__name__
        if call.op == "call_module":
            yield name, module.get_submodule(name)
        elif call.op.startswith("call") and name not in _SHAPES:
            if name not in _FUNCTIONS:
                said = mismatch("float_module: its forward", f"a call of {name}", _EXPECTED)
                raise NotCovered(said)
            moves = name in ("view", "reshape")
            settings = {k: v for k, v in call.kwargs.items() if k != "inplace"}
            yield name, nn.Flatten() if moves else _FUNCTIONS[name](*call.args[1:], **settings)


def _is_layer(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
    return own or not module._modules


def _registered(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    if _is_layer(module):
        yield name, module
        return
    for child, part in module._modules.items():
        if part is not None:
            yield from _registered(part, f"{name}.{child}" if name else child)


def _blocks(module: nn.Module) -> tuple[list[nn.Module], list[_Block]]:
    """What moves the input, and the weight layers with what follows each.  Raises: NotCovered."""
    if not isinstance(module, nn.Module):
        raise InvalidType(mismatch("float_module", type(module).__name__, "a torch.nn.Module"))
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise NotCovered(mismatch(f"float_module, {name}", parameter.dtype, "torch.float32"))
    first: list[nn.Module] = []
    blocks: list[_Block] = []
    for name, part in _parts(module):
        _require_usual(name, part)
        moves = blocks[-1].moves if blocks else first
        if isinstance(part, nn.Linear | nn.Conv2d):
            blocks.append(_Block(name, part, nn.Sequential(), []))
        elif isinstance(part, nn.Flatten) or (isinstance(part, _MOVES) and blocks):
            moves.append(part)
        elif isinstance(part, _BEHIND) and blocks and _commutes(part, moves):
            blocks[-1].behind.append(_on_rows(part))
        elif not isinstance(part, _PASSING):
            raise NotCovered(mismatch(f"layer {name}", type(part).__name__, _EXPECTED))
    if not blocks:
        raise NotCovered(mismatch("float_module", "no nn.Linear", "at least one"))
    for block in blocks:
        pools = [type(move).__name__ for move in block.moves if not isinstance(move, nn.Flatten)]
        if pools and not block.behind:
            got = f"{pools[0]} of its sums"
            raise NotCovered(mismatch(f"layer {block.name}", got, "an activation before it"))
    if pools or not isinstance(block.layer, nn.Linear):
        raise NotCovered(mismatch(f"layer {block.name}", "images last", "nn.Linear at the end"))
    return first, blocks


def _commutes(part: nn.Module, moves: list[nn.Module]) -> bool:
    """Whether what stands behind pools is the same before them: the greatest value stays so."""
    rises = not isinstance(part, _NORMS)
    return not moves or (rises and all(isinstance(m, nn.MaxPool2d | nn.Flatten) for m in moves))


def _require_usual(name: str, part: nn.Module) -> None:
    """Raises: NotCovered that names a setting."""
    for kinds, settings in _USUAL:
        for setting, values in settings.items() if isinstance(part, kinds) else ():
            got = getattr(part, setting)
            if got not in values:
                kind = type(part).__name__
                expected = f"{values[0]!r}"
                raise NotCovered(mismatch(f"layer {name} ({kind}), {setting}", got, expected))
    if isinstance(part, nn.Conv2d) and isinstance(part.padding, str):
        raise NotCovered(mismatch(f"layer {name} (Conv2d), padding", part.padding, "integers"))


def _on_rows(part: nn.Module) -> nn.Module:
    """A copy in evaluation that takes [n, channels]."""
    if isinstance(part, nn.BatchNorm2d):
        twin = nn.BatchNorm1d(part.num_features, part.eps, affine=part.affine)
        twin.load_state_dict(part.state_dict())
        return twin.eval()
    return copy.deepcopy(part).eval()


def _check_layers(
    module: nn.Module, first: list[nn.Module], blocks: list[_Block], rows: Tensor
) -> None:
    """Raises: NotCovered where a module is not its layers, one after the other."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            y = module.eval()(rows.clone())
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(f"float_module: fails on X: {error}") from error
    finally:
        for part, training in modes:
            part.training = training
    try:
        with torch.no_grad():
            wanted = rows
            for move in first:
                wanted = move(wanted)
            for block in blocks:
                wanted = block.after(block.layer(wanted))
                for move in block.moves:
                    wanted = move(wanted)
    except RuntimeError as error:
        raise NotCovered(f"float_module: its layers, one after the other, fail: {error}") from error
    if not bool(torch.isfinite(wanted).all()):
        raise InvalidArgument(mismatch("float_module", "NaN or infinity on X", "finite numbers"))
    if wanted.ndim != 2:
        raise NotCovered("float_module: nn.Linear on tables; expected nn.Flatten before it")
    near = 1e-5 * float(wanted.abs().max())  # normalized row by row, sums round otherwise
    if not isinstance(y, Tensor) or y.shape != wanted.shape or (y - wanted).abs().max() > near:
        raise NotCovered("float_module: its forward computes something else than its layers")


def _input_door(rows: NDArray[np.float32], bits: int) -> SymmetricQuantizer:
    fmt = IntFormat(bits, signed=bool(rows.min() < 0))
    values = rows.astype(np.float64)
    return SymmetricQuantizer(np.float32(_step(values, fmt, values)), fmt, "half_even")


def _step(values: Floats, fmt: IntFormat, wanted: Floats) -> float:
    """The scale of codes of `values` that is nearest to what is wanted, in least squares."""
    greatest = float(np.abs(values).max()) or 1.0
    steps = greatest * _SHARES / fmt.q_max
    errors = [
        np.square(wanted - s * np.clip(np.rint(values / s), fmt.q_min, fmt.q_max)) for s in steps
    ]
    return float(steps[np.argmin([error.mean() for error in errors])])


def _weights(
    weight: Floats,
    codes: NDArray[np.int64],
    target: Floats,
    bits: int,
    ends: tuple[int, int],
    budget: int | None,
    one_scale: bool,
) -> NDArray[np.int64]:
    """Integer weights [out, in]: of several scales, for each row the one that fits best."""
    greatest = np.abs(weight).max(axis=1, keepdims=True)
    greatest = np.full_like(greatest, greatest.max()) if one_scale else greatest
    greatest[greatest == 0] = 1.0
    upper = _dependence(codes.astype(np.float64))
    best, least = np.zeros(weight.shape, dtype=np.int64), np.full((len(weight), 1), np.inf)
    for share in _SHARES if budget is None else np.append(_SHARES, _COARSER):
        scale = greatest * share / (2 ** (bits - 1) - 1)
        rounded = _compensated(weight / scale, upper, bits)
        if budget is not None:
            rounded = project(rounded, None, ends, budget)
        acc = codes @ rounded.T
        slope, offset = _fitted(acc, target, one_scale)
        error = np.square(acc * slope + offset - target).mean(axis=0)[:, None]
        error = np.full_like(error, error.sum()) if one_scale else error
        best, least = np.where(error < least, rounded, best), np.minimum(error, least)
    return best


def _dependence(x: Floats) -> Floats:
    """How columns make up for each other on x [n, in]: the inverse Hessian's upper factor."""
    hessian = x.T @ x / len(x)
    hessian[np.diag_indices_from(hessian)] += (
        _DAMPING * max(float(np.trace(hessian)), 1.0) / len(hessian)
    )
    return np.asarray(np.linalg.cholesky(np.linalg.inv(hessian)).T)


def _compensated(weight: Floats, upper: Floats, bits: int) -> NDArray[np.int64]:
    """Rounded columns; the columns that follow make up for what each one loses."""
    largest, weight = 2 ** (bits - 1) - 1, weight.copy()
    rounded = np.zeros(weight.shape, dtype=np.int64)
    for k in range(weight.shape[1]):
        rounded[:, k] = np.clip(np.rint(weight[:, k]), -largest, largest)
        lost = (weight[:, k] - rounded[:, k]) / upper[k, k]
        weight[:, k + 1 :] -= np.outer(lost, upper[k, k + 1 :])
    return rounded


def _fitted(acc: NDArray[np.int64], target: Floats, one_scale: bool) -> tuple[Floats, Floats]:
    """Least squares target = scale * acc + offset, a scale for each column or one: [out] each."""
    x = acc - acc.mean(axis=0)
    y = target - target.mean(axis=0)
    products, squares = (x * y).sum(axis=0), (x * x).sum(axis=0)
    if one_scale:
        products, squares = (
            np.full_like(products, products.sum()),
            np.full_like(x[0], squares.sum()),
        )
    scale = np.divide(products, squares, out=np.ones_like(products), where=squares > 0)
    scale[scale == 0] = 1.0
    offset = target.mean(axis=0) - scale * acc.mean(axis=0)
    return scale, offset


def _turned(behind: nn.Sequential, channels: int) -> Floats:
    """-1 for each channel that falls as its sum rises, else 1: [channels]."""
    if not behind:
        return np.ones(channels)
    low, high = _floats(behind(_tensor(np.array([[-_FAR], [_FAR]]) * np.ones(channels))))
    return np.where(high < low, -1.0, 1.0)


def _values(behind: nn.Sequential, scale: Floats, offset: Floats, acc: NDArray[np.int64]) -> Floats:
    """What stands behind the sums, of accumulators [n, channels]."""
    return _floats(behind(_tensor(acc * scale + offset)))


def _thresholds(
    values: Callable[[NDArray[np.int64]], Floats],
    acc: NDArray[np.int64],
    box: Interval,
    wanted: Floats,
    bits: int,
) -> tuple[Requantize, float]:
    """Thresholds for every accumulator there can be, and the scale of their codes.

    Args:
        values: what stands behind the sums makes of accumulators [n, channels].
        acc: accumulators of the samples; wanted is what the float module has there.
    """
    seen = values(acc)
    fmt = IntFormat(bits, signed=bool(seen.min() < 0))
    step = _step(seen, fmt, wanted)

    def codes(acc: NDArray[np.int64]) -> Floats:
        return np.clip(np.floor(values(acc.T).T / step + 0.5), fmt.q_min, fmt.q_max)

    return Requantize.from_function(codes, box.lo, box.hi, fmt), step
