"""Post-training quantization: a float module that is trained already, as an integer network.

Layer by layer, each on what the integers before it really give:

1. weights are rounded one column after the other, and what a column loses is given to those that
   follow, in the metric of the layer's own inputs (Frantar and others, GPTQ, arXiv 2210.17323);
2. an accumulator budget is charged exactly, both signs of each row (`refqnn.pruning.project`);
3. the scale and the offset of each row are fitted anew to the float layer's outputs, in least
   squares; they cost nothing, since thresholds hold them;
4. batch normalization, activation and rounding become integer thresholds by bisection on the
   module's own functions; the scale of the codes is the one of least squared error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch, mismatch
from refqnn.formats import IntFormat, as_array, is_integer
from refqnn.network import Network, Node
from refqnn.ops import Interval, Linear, Requantize
from refqnn.pruning import project
from refqnn.quantizers import Dequantizer, SymmetricQuantizer

__all__ = ["quantize_module"]

Floats = NDArray[np.float64]
MAX_BUDGET = 62  # signed bits, of refqnn.pruning.project

_DAMPING = 0.01  # of the mean square of an input: GPTQ's own choice
_SHARES = np.linspace(0.3, 1.0, 36)  # of the greatest magnitude: scales that are tried
_COARSER = np.linspace(1.2, 4.0, 15)  # under a budget also these
_FAR = 1e6  # where a nondecreasing function has risen
_PASSING = (nn.Dropout, nn.Identity, nn.Flatten)
_BEHIND = (
    *(nn.BatchNorm1d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign),
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
        float_module: an `nn.Sequential` of `nn.Linear`, each followed by batch normalization and
            nondecreasing activations; or a module whose only child is one. It is not changed.
        X: rows [n, features] to calibrate on, at best the training set; no labels.
        n_bits: of weights (narrow) and activations, 2 to 8.
        n_accum_bits: signed width that no accumulator exceeds, for any input; None: no budget.
        n_input_bits: of the input codes; None: n_bits.

    Returns: a `Network` whose `predict` approximates the module, and whose certificate fits the
        budget. The last biases lie in its output door: classes are those of `predict`.

    Raises: NotCovered that names a layer of another kind, or an activation that neither rises nor
        falls, or for a module that computes something else than its layers; InvalidArgument,
        InvalidType, ShapeMismatch.

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
    blocks = _blocks(float_module)
    rows = as_array(X.detach() if isinstance(X, Tensor) else X, "X", "real numbers")
    if rows.dtype.kind not in "biuf":
        raise InvalidType(mismatch("X", f"dtype {rows.dtype}", "real numbers"))
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    features = blocks[0][0].in_features
    if rows.ndim != 2 or rows.shape[1] != features or len(rows) < 2:
        raise ShapeMismatch(mismatch("X", f"shape {rows.shape}", f"[at least 2, {features}]"))
    if not np.isfinite(rows).all():
        raise InvalidArgument(mismatch("X", "NaN or infinity", "finite numbers"))
    _check_layers(float_module, blocks, _tensor(rows))

    door = _input_door(rows, input_bits)
    codes, fmt, wanted = door.quantize(rows), door.format, _tensor(rows)  # integers, floats
    nodes: list[Node] = []
    for number, (linear, behind) in enumerate(blocks, start=1):
        target = _floats(linear(wanted))
        last = number == len(blocks)
        turned = _turned(behind, len(linear.weight))  # where what stands behind falls, -1
        real = _floats(linear.weight) * turned[:, None]
        weight = _weights(real, codes, target, n_bits, fmt, n_accum_bits, last)
        weight[_fitted(codes @ weight.T, target, last)[0] * turned <= 0] = 0  # worse than nothing
        scale, offset = _fitted(codes @ weight.T, target, last)
        scale = np.copysign(scale, turned)
        layer, acc = Linear(weight), codes @ weight.T
        nodes.append(Node(f"fc{number}", layer))
        if last and not behind:
            out = Dequantizer(scale[:1], offset)
            break
        wanted = behind(_tensor(target))
        box = layer.out_range(Interval.of_format(fmt, layer.weight.shape[1:]))
        values = partial(_values, behind, scale, offset)
        try:
            act, step = _thresholds(values, acc, box, _floats(wanted), n_bits)
        except InvalidArgument as error:
            kinds = ", ".join(type(part).__name__ for part in behind)
            raise NotCovered(f"{kinds} behind layer {number}: {error}") from error
        nodes.append(Node(f"act{number}", act))
        codes, fmt, out = act.forward(acc), act.format, Dequantizer(step)
    return Network(nodes, input_shape=(features,), input_quantizer=door, output_dequantizer=out)


def _tensor(values: NDArray[np.float32] | Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _floats(values: Tensor) -> Floats:
    return values.detach().double().numpy()


def _blocks(module: nn.Module) -> list[tuple[nn.Linear, nn.Sequential]]:
    """Linear layers, each with what stands behind it.  Raises: NotCovered."""
    if not isinstance(module, nn.Module):
        raise InvalidType(mismatch("float_module", type(module).__name__, "a torch.nn.Module"))
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise NotCovered(mismatch(f"float_module, {name}", parameter.dtype, "torch.float32"))
    parts = list(module.children())
    if not isinstance(module, nn.Sequential) and len(parts) == 1:
        module = parts[0]
    if not isinstance(module, nn.Sequential):
        got = f"{type(module).__name__} of {[type(part).__name__ for part in parts]}"
        raise NotCovered(mismatch("float_module", got, "an nn.Sequential"))
    blocks: list[tuple[nn.Linear, list[nn.Module]]] = []
    for name, part in zip(module._modules, module):  # one that is used twice, twice
        if isinstance(part, nn.Linear):
            blocks.append((part, []))
        elif isinstance(part, _PASSING):
            continue
        elif not isinstance(part, _BEHIND) or not blocks:
            expected = "nn.Linear, then nn.BatchNorm1d and nondecreasing activations"
            raise NotCovered(mismatch(f"layer {name}", type(part).__name__, expected))
        else:
            blocks[-1][1].append(part)
    if not blocks:
        raise NotCovered(mismatch("float_module", "no nn.Linear", "at least one"))
    return [(linear, nn.Sequential(*copy.deepcopy(behind)).eval()) for linear, behind in blocks]


def _check_layers(
    module: nn.Module, blocks: list[tuple[nn.Linear, nn.Sequential]], rows: Tensor
) -> None:
    """Raises: NotCovered where a module is not its layers, one after the other."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            y, wanted = module.eval()(rows.clone()), rows
            for linear, behind in blocks:
                wanted = behind(linear(wanted))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(f"float_module: fails on X: {error}") from error
    finally:
        for part, training in modes:
            part.training = training
    if not bool(torch.isfinite(wanted).all()):
        raise InvalidArgument(mismatch("float_module", "NaN or infinity on X", "finite numbers"))
    if not isinstance(y, Tensor) or y.shape != wanted.shape or not torch.allclose(y, wanted):
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
    fmt: IntFormat,
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
            rounded = project(rounded, None, (fmt.q_min, fmt.q_max), budget)
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
