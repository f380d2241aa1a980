"""skorch around a quantized module: schedule, several passes for small data, sample weights, table.

What is particular to the networks of `refqnn.training.modules` happens in callbacks, so that a
user's own callbacks see an ordinary skorch net.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import skorch
import torch
from skorch.callbacks import Callback, EpochTimer, PassthroughScoring, PrintLog
from skorch.dataset import unpack_data
from skorch.utils import to_tensor
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, RandomSampler

from refqnn.errors import InvalidArgument, mismatch
from refqnn.training.normalization import set_normalization_frozen

__all__ = ["EpochTable", "Freeze", "OneCycle", "TrainingNet", "WeightTransforms"]

STEPS_PER_EPOCH = 48  # at least: fewer rows than this many batches are passed over several times


class TrainingNet(skorch.NeuralNet):
    """A skorch net over a module that exists already.

    Batches are ``({"x": [N, features], "sample_weight": [N]}, y)``; the weights are optional.  An
    epoch is one pass over the rows, or as many passes as make `STEPS_PER_EPOCH` batches.

    Args:
        seed: of the shuffling.
        classify: whether y are class indices, so that accuracies are recorded.
        kwargs: as `skorch.NeuralNet`.
    """

    def __init__(
        self, module: torch.nn.Module, *, seed: int = 0, classify: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(module, **kwargs)
        self.seed = seed
        self.classify = classify

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        scores = [PassthroughScoring("train_loss", on_train=True), PassthroughScoring("valid_loss")]
        if self.classify:
            accuracy = PassthroughScoring("train_acc", lower_is_better=False, on_train=True)
            scores += [accuracy, PassthroughScoring("valid_acc", lower_is_better=False)]
        return [
            ("epoch_timer", EpochTimer()),
            ("schedule", OneCycle()),
            ("freeze", Freeze()),
            *((score.name, score) for score in scores),
            ("print_log", EpochTable()),
        ]

    def initialize(self) -> TrainingNet:
        self.frozen_ = False
        self.steps_per_epoch_ = 1
        self.generator_ = torch.Generator().manual_seed(self.seed)
        super().initialize()
        return self

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        own = {"shuffle", "sampler", "batch_sampler", "drop_last"}
        chosen = self.get_params_for("iterator_train")
        if not training or self.iterator_train is not DataLoader or own & set(chosen):
            iterator = super().get_iterator(dataset, training=training)
        else:
            rows = len(dataset)
            options = {"batch_size": self.batch_size, **chosen}
            if options["batch_size"] == -1:
                options["batch_size"] = rows
            size = min(options["batch_size"], rows)
            passes = max(1, round(STEPS_PER_EPOCH * size / rows))
            samples = passes * rows
            iterator = DataLoader(
                dataset,
                sampler=RandomSampler(dataset, num_samples=samples, generator=self.generator_),
                drop_last=samples % size == 1 and samples > size,  # no statistics of one row
                **options,
            )
        if training:
            self.steps_per_epoch_ = max(1, len(iterator))
        return iterator

    def infer(self, x: Any, **fit_params: object) -> Tensor:
        if isinstance(x, dict):
            x = x["x"]
        return self.module_(to_tensor(x, device=self.device), **fit_params)

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        y_true = to_tensor(y_true, device=self.device)
        if not self.classify:
            y_true = y_true.view_as(y_pred)
        if not isinstance(X, dict) or "sample_weight" not in X:
            return self._losses(y_pred, y_true, ndim=0)
        if not hasattr(self.criterion_, "reduction"):
            expected = "a loss with a `reduction`, so that rows can be weighted"
            raise InvalidArgument(mismatch("criterion", type(self.criterion_).__name__, expected))
        reduction, self.criterion_.reduction = self.criterion_.reduction, "none"
        losses = self._losses(y_pred, y_true, ndim=1)
        self.criterion_.reduction = reduction
        weights = to_tensor(X["sample_weight"], device=self.device)
        total = weights
        class_weight = getattr(self.criterion_, "weight", None)
        if class_weight is not None:
            total = weights * class_weight[y_true]
        losses = losses.flatten(1).mean(dim=1) if losses.ndim > 1 else losses
        return (losses * weights).sum() / total.sum().clamp(min=torch.finfo(torch.float32).tiny)

    def _losses(self, y_pred: Tensor, y_true: Tensor, ndim: int) -> Tensor:
        """What the criterion says.  Raises: InvalidArgument where it does not fit the targets."""
        name = type(self.criterion_).__name__
        try:
            losses: Tensor = self.criterion_(y_pred, y_true)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidArgument(f"criterion: {name}: {error}") from error
        if ndim == 0 and losses.ndim:
            raise InvalidArgument(mismatch("criterion", f"{losses.ndim}-d of {name}", "one number"))
        return losses

    def train_step_single(self, batch: Any, **fit_params: object) -> dict[str, Tensor]:
        if not self.module_.training:
            self._set_training(True)
            set_normalization_frozen(self.module_, self.frozen_)
        Xi, yi = unpack_data(batch)
        with parametrize.cached():  # budgets are computed once a step
            y_pred = self.infer(Xi, **fit_params)
            loss = self.get_loss(y_pred, yi, X=Xi, training=True)
            loss.backward()
        self._record_accuracy("train_acc", y_pred, yi)
        return {"loss": loss, "y_pred": y_pred}

    def validation_step(self, batch: Any, **fit_params: object) -> dict[str, Tensor]:
        step = super().validation_step(batch, **fit_params)
        self._record_accuracy("valid_acc", step["y_pred"], unpack_data(batch)[1])
        return step

    def _record_accuracy(self, name: str, y_pred: Tensor, y_true: Any) -> None:
        if self.classify:
            right = y_pred.detach().argmax(dim=1) == to_tensor(y_true, device=self.device)
            self.history.record_batch(name, float(right.float().mean()))


class EpochTable(PrintLog):
    """skorch's table of epochs; colours mark the best values in a terminal, and nowhere else."""

    def format_row(self, row: Mapping[str, object], key: str, color: str) -> str:
        if self.sink is not print or not sys.stdout.isatty():
            row = {**row, f"{key}_best": False}
        text: str = super().format_row(row, key, color)
        return text


class OneCycle(Callback):
    """Learning rate over one call of fit: a cosine up to ``lr``, then a cosine down to almost 0.

    Smith and Topin 2018, without their cycling of the momentum.

    Args:
        warm_up: fraction of the steps on the way up.
        start, stop: learning rate at both ends, as a fraction of ``lr``.
    """

    def __init__(self, warm_up: float = 0.2, start: float = 0.1, stop: float = 0.001) -> None:
        self.warm_up = warm_up
        self.start = start
        self.stop = stop

    def on_train_begin(self, net: TrainingNet, **kwargs: object) -> None:
        self.step_ = 0
        self.peaks_ = [float(group["lr"]) for group in net.optimizer_.param_groups]

    def on_batch_begin(self, net: TrainingNet, training: bool = False, **kwargs: object) -> None:
        if not training:
            return
        total = net.steps_per_epoch_ * max(1, net.max_epochs)
        factor = self.factor(min(1.0, self.step_ / total))
        for group, peak in zip(net.optimizer_.param_groups, self.peaks_):
            group["lr"] = peak * factor
        self.step_ += 1

    def on_train_end(self, net: TrainingNet, **kwargs: object) -> None:
        for group, peak in zip(net.optimizer_.param_groups, self.peaks_):
            group["lr"] = peak

    def factor(self, time: float) -> float:
        """Learning rate at ``time`` in [0, 1], as a fraction of the highest."""
        if time < self.warm_up:
            begin, end, part = self.start, 1.0, time / self.warm_up
        else:
            begin, end, part = 1.0, self.stop, (time - self.warm_up) / (1.0 - self.warm_up)
        return end + (begin - end) * (1.0 + math.cos(math.pi * part)) / 2.0


class Freeze(Callback):
    """Normalize with running statistics in the last epochs.

    The weights then finish on exactly the function that evaluation, and the integers, compute.

    Args:
        start: fraction of the epochs after which it begins.
    """

    def __init__(self, start: float = 0.75) -> None:
        self.start = start

    def on_train_begin(self, net: TrainingNet, **kwargs: object) -> None:
        self.epoch_ = 0
        net.module_.eval()  # the first step puts every part back into training

    def on_epoch_begin(self, net: TrainingNet, **kwargs: object) -> None:
        net.frozen_ = self.epoch_ >= self.start * net.max_epochs and self.epoch_ > 0
        set_normalization_frozen(net.module_, net.frozen_)
        self.epoch_ += 1


class WeightTransforms(Callback):
    """Keep budgets and masks in step with training.

    Args:
        after_step: called after each optimizer step.
        at_epoch: called at the start of each epoch, with its number from 0 and how many there are.
    """

    def __init__(
        self, after_step: Callable[[], None], at_epoch: Callable[[int, int], None]
    ) -> None:
        self.after_step = after_step
        self.at_epoch = at_epoch

    def on_train_begin(self, net: TrainingNet, **kwargs: object) -> None:
        self.epoch_ = 0

    def on_epoch_begin(self, net: TrainingNet, **kwargs: object) -> None:
        self.at_epoch(self.epoch_, net.max_epochs)
        self.epoch_ += 1

    def on_batch_end(self, net: TrainingNet, training: bool = False, **kwargs: object) -> None:
        if training:
            self.after_step()
