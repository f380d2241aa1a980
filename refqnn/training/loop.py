"""A plain training loop, the float twin, and the settings of the demonstration.

>>> from refqnn import datasets
>>> data = datasets.load("iris")
>>> config = demo_config("iris")
>>> net = build(config, data.n_features, data.n_outputs, seed=0)
>>> history = fit(net, data.X_train, data.y_train, epochs=2, seed=0)
>>> len(history), predict(net, data.X_test).shape
(2, (30, 3))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch, mismatch
from refqnn.training.blocks import FanIn, QuantNet
from refqnn.training.modules import FloatMLP, SparseQuantNeuralNetImpl
from refqnn.training.normalization import set_normalization_frozen
from refqnn.training.quantizers import check_integer, check_number

__all__ = [
    "DemoConfig",
    "Epoch",
    "accuracy",
    "build",
    "build_float",
    "demo_config",
    "fit",
    "predict",
]

OnEpoch = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows gave, measured while training."""

    epoch: int
    loss: float
    accuracy: float


def fit(
    module: nn.Module,
    X: ArrayLike,
    y: ArrayLike,
    *,
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    sparsify: tuple[float, float] = (0.1, 0.5),
    freeze: float = 0.75,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> list[Epoch]:
    """Train ``module`` in place and leave it in evaluation mode.

    Adam, one-cycle learning rate, cross entropy for integer ``y`` and mean squared error for float
    ``y``.  Four things are particular to the networks of `refqnn.training.modules`:

    1. `calibrate` sets scales and exponents from ``X`` before the first step;
    2. between the two fractions ``sparsify`` of the epochs the rows shrink to their fan-in budget,
       cubically (Zhu and Gupta 2017), and exponents follow at the start of each of these epochs;
    3. after each step the weights of a network with accumulator budgets
       (`add_accumulator_budgets`) are pulled toward them;
    4. from the fraction ``freeze`` of the epochs on, normalization uses its running statistics, so
       the weights finish on exactly the function that evaluation computes.

    Equal arguments, equal initial weights and an equal number of threads give equal results; the
    global random state of torch is left as it was.

    Args:
        module: any module from ``[N, features]`` (or ``[N, channels, h, w]``) to ``[N, outputs]``.
        X: float32 inputs, at least two rows, finite.
        y: int64 class indices ``[N]``, or float targets ``[N]`` or ``[N, outputs]``.
        epochs, batch_size: integers >= 1; a last batch of a single row is left out.
        lr: the highest learning rate.
        weight_decay: L2 penalty of Adam.
        label_smoothing: of the cross entropy, in [0, 1).
        sparsify, freeze: fractions of the epochs, see above.
        seed: of the shuffling.
        on_epoch: called after each epoch with its number from 1, mean loss, and training accuracy
            (for targets: 1 - squared error / variance).

    Returns:
        One `Epoch` for each epoch.

    Raises:
        InvalidArgument, InvalidType, ShapeMismatch: inputs or settings outside the above.
    """
    inputs = _as_inputs(X)
    targets = _as_targets(y, len(inputs))
    check_integer("epochs", epochs)
    check_integer("batch_size", batch_size)
    check_number("lr", lr)
    if not 0.0 <= sparsify[0] <= sparsify[1] <= 1.0:
        raise InvalidArgument(mismatch("sparsify", sparsify, "two increasing fractions in [0, 1]"))
    if not 0.0 <= freeze <= 1.0:
        raise InvalidArgument(mismatch("freeze", freeze, "a fraction in [0, 1]"))

    classify = not targets.is_floating_point()
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, QuantNet):
        module.calibrate(inputs)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
    batches = max(1, math.ceil(len(inputs) / batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * batches, pct_start=0.2
    )

    history: list[Epoch] = []
    for epoch in range(epochs):
        module.train()
        if isinstance(module, QuantNet):
            module.sparsify(inputs, epoch, epochs, sparsify)
        set_normalization_frozen(module, epoch >= freeze * epochs)
        order = torch.randperm(len(inputs), generator=generator)
        loss_sum, score_sum, rows = 0.0, 0.0, 0
        for batch in order.split(batch_size):
            if len(batch) < 2:
                continue
            optimizer.zero_grad()
            with parametrize.cached():  # masks and budgets are computed once a step
                output = module(inputs[batch])
                loss = _loss(output, targets[batch], label_smoothing)
                loss.backward()
            optimizer.step()
            if isinstance(module, QuantNet):
                module.shrink_to_budgets()
            schedule.step()
            loss_sum += float(loss.detach()) * len(batch)
            score_sum += _score(output.detach(), targets[batch]) * len(batch)
            rows += len(batch)
        score = score_sum / rows
        if not classify:
            score = 1.0 - score / float(targets.var(unbiased=False))
        history.append(Epoch(epoch + 1, loss_sum / rows, score))
        if on_epoch is not None:
            on_epoch(epoch + 1, loss_sum / rows, score)
    module.eval()
    return history


def _loss(output: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    if target.is_floating_point():
        return functional.mse_loss(output, target.view_as(output))
    return functional.cross_entropy(output, target, label_smoothing=label_smoothing)


def _score(output: Tensor, target: Tensor) -> float:
    """Share of right classes, or mean squared error."""
    if target.is_floating_point():
        return float(functional.mse_loss(output, target.view_as(output)))
    return float((output.argmax(dim=1) == target).float().mean())


def _real(name: str, data: ArrayLike, expected: str) -> NDArray[np.number[Any]]:
    array = np.asarray(data.detach().cpu().numpy() if isinstance(data, Tensor) else data)
    if array.dtype.kind not in "fiu":
        raise InvalidType(mismatch(name, f"dtype {array.dtype}", expected))
    if not np.isfinite(array).all():
        raise InvalidArgument(mismatch(name, "NaN or infinity", "finite values"))
    return array


def _as_inputs(X: ArrayLike) -> Tensor:
    array = _real("X", X, "real numbers")
    if array.ndim < 2 or len(array) < 2:
        raise ShapeMismatch(mismatch("X", f"shape {array.shape}", "at least 2 rows of features"))
    return torch.tensor(array.astype(np.float32))


def _as_targets(y: ArrayLike, rows: int) -> Tensor:
    array = _real("y", y, "class indices or real targets")
    if array.ndim < 1 or len(array) != rows:
        raise ShapeMismatch(mismatch("y", f"shape {array.shape}", f"{rows} rows, as X"))
    if array.dtype.kind == "f":
        return torch.tensor(array.astype(np.float32))
    if array.ndim != 1 or array.min() < 0:
        raise InvalidArgument(mismatch("y", f"shape {array.shape}", "class indices 0, 1, ..."))
    return torch.tensor(array.astype(np.int64))


def predict(module: nn.Module, X: ArrayLike) -> NDArray[np.float32]:
    """Outputs of ``module`` in evaluation mode, float32 ``[N, outputs]``."""
    training = module.training
    module.eval()
    with torch.no_grad():
        output = module(torch.as_tensor(np.asarray(X, dtype=np.float32)))
    module.train(training)
    result: NDArray[np.float32] = output.numpy()
    return result


def accuracy(module: nn.Module, X: ArrayLike, y: ArrayLike) -> float:
    """Share of rows whose largest output is the right class."""
    return float((predict(module, X).argmax(axis=1) == np.asarray(y)).mean())


# --- settings of the demonstration --------------------------------------------------------------


_TRAINING = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "float_epochs")


@dataclass(frozen=True)
class DemoConfig:
    """Network and training settings for one data set; see `demo_config`.

    Attributes: as the arguments of `SparseQuantNeuralNetImpl` and `fit`.
    """

    hidden_sizes: tuple[int, ...]
    n_w_bits: int = 3
    n_a_bits: int = 3
    n_input_bits: int = 3
    input_signed: bool = True
    quant_narrow: bool = True
    fan_in: FanIn | None = None
    table_bits: int | None = None
    epochs: int = 60
    batch_size: int = 64
    lr: float = 0.01
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    float_epochs: int = 60

    @property
    def module(self) -> dict[str, Any]:
        """Keyword arguments for `SparseQuantNeuralNetImpl`."""
        return {name: value for name, value in vars(self).items() if name not in _TRAINING}

    @property
    def training(self) -> dict[str, float | int]:
        """Keyword arguments for `fit`."""
        return {name: getattr(self, name) for name in _TRAINING if name != "float_epochs"}


_SMALL = DemoConfig((16,), fan_in=4, table_bits=4, batch_size=16, lr=0.02, weight_decay=1e-3)

_DEMO: dict[str, DemoConfig] = {
    "iris": replace(_SMALL, fan_in=2, epochs=100),
    "wine": _SMALL,
    "breast_cancer": replace(_SMALL, n_input_bits=4, epochs=40, batch_size=32),
    "digits": DemoConfig((64,), fan_in=5, table_bits=4, epochs=100, lr=0.02, input_signed=False),
    "mnist5k": DemoConfig((64,), fan_in=16, epochs=60, input_signed=False),
    "moons": DemoConfig((16,), n_input_bits=4, table_bits=5, epochs=80, lr=0.02),
    "checkerboard": DemoConfig((64,), table_bits=5, epochs=20, batch_size=128, lr=0.02),
}

# Iris and digits: ternary weights, so few in a row that hidden accumulators span 4 bits: nothing to
# drop, and one 4-bit table for each neuron is all the encrypted work.  Breast cancer: each neuron
# reads one input, and there is no encrypted work but sums.
_DEMO_NARROW: dict[str, DemoConfig] = {
    "iris": replace(_DEMO["iris"], n_w_bits=2, epochs=160),
    "breast_cancer": replace(
        _DEMO["breast_cancer"], hidden_sizes=(128,), fan_in=1, table_bits=None, epochs=80
    ),
    "digits": replace(_DEMO["digits"], n_w_bits=2, n_input_bits=2, fan_in=5, epochs=150),
}


def demo_config(name: str, narrow: bool = False) -> DemoConfig:
    """The settings that ``refqnn demo`` uses for a data set of `refqnn.datasets`.

    Args:
        name: a classification set.
        narrow: cheap under encryption (iris, breast_cancer, digits): hidden accumulators of 4 bits
            and ternary weights, or one input for each neuron.

    >>> demo_config("iris").hidden_sizes, demo_config("digits", narrow=True).fan_in
    ((16,), 5)
    """
    configs = _DEMO_NARROW if narrow else _DEMO
    if name not in configs:
        raise InvalidArgument(mismatch("name", repr(name), f"one of {', '.join(configs)}"))
    return configs[name]


def build(config: DemoConfig, n_features: int, n_outputs: int, seed: int = 0) -> nn.Module:
    """The quantized network of a configuration, with weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SparseQuantNeuralNetImpl(
            n_features,
            len(config.hidden_sizes) + 1,
            n_outputs,
            n_accum_bits=None,
            **config.module,
        )


def build_float(config: DemoConfig, n_features: int, n_outputs: int, seed: int = 0) -> FloatMLP:
    """The float twin of `build`: same sizes, nothing quantized, dense."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FloatMLP(n_features, config.hidden_sizes, n_outputs)
