"""What every estimator is: parameters by name, rows and targets taken in, training by skorch."""

from __future__ import annotations

import inspect
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import skorch
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils._param_validation import (
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from skorch.history import History
from torch import Tensor, nn

from refqnn.errors import InvalidArgument, InvalidType, RefqnnError, mismatch
from refqnn.formats import is_integer, plain
from refqnn.quantizers import FloatArray
from refqnn.training.modules import module_from_state, module_state
from refqnn.training.progress import TrainingNet

if TYPE_CHECKING:
    from typing import Self

    from sklearn.utils import Tags

__all__ = [
    "LEARNED",
    "PREFIXES",
    "Classifier",
    "Estimator",
    "Regressor",
    "as_kept",
    "as_ours",
    "as_outputs",
    "require",
    "warn",
]

Callbacks = list[tuple[str, skorch.callbacks.Callback]]
Targets = NDArray[np.int64] | NDArray[np.float32]

# As the documentation of Concrete ML writes them, without the prefix.
_ALIASES = {name: f"module__{name}" for name in ("n_w_bits", "n_a_bits", "n_accum_bits")} | {
    "power_of_two_scaling": "module__power_of_two_scaling"
}

_FROM_THE_DATA = ("module__input_dim", "module__n_outputs")
_REFUSED = {
    **dict.fromkeys(_FROM_THE_DATA, "nothing: it is taken from the data by fit"),
    "module": "nothing: the module is SparseQuantNeuralNetImpl; use its module__ parameters",
    "class_weight": "nothing: use criterion__weight, a number for each class in the order of "
    "classes_, or sample_weight in fit",
    "n_bits": "nothing: use n_w_bits for the weights and n_a_bits for the activations",
}
PREFIXES = (
    *("criterion__", "optimizer__", "callbacks__"),
    *("iterator_train__", "iterator_valid__", "dataset__"),
)

# Parameters that go to skorch as they are, under the same name.
_SHARED = ("optimizer", "lr", "max_epochs", "batch_size", "train_split", "verbose")

# Parameters of skorch that may be given too, and where only some values mean something, these.
_PASSED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("classes", "iterator_train", "iterator_valid", "dataset"), ()),
    "device": ("cpu", torch.device("cpu")),
    "predict_nonlinearity": ("auto", None),
}

LEARNED = ("n_features_in_", "feature_names_in_", "input_mean_", "input_scale_")

# What fit takes of the parameters that are no module's: scikit-learn's own description.
_CONSTRAINTS: dict[str, list[Any]] = {
    "criterion": [callable, None],
    "optimizer": [callable],
    "lr": [Interval(Real, 0.0, None, closed="left")],
    "max_epochs": [Interval(Integral, 0, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left"), Options(Integral, {-1})],
    "train_split": [callable, None],
    "callbacks": [list, tuple, StrOptions({"disable"}), None],
    "warm_start": ["boolean"],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}

_PACKAGE = Path(__file__).parents[1]
_MAX_SCALED = 1e6  # beyond every code of every input quantizer, and exact in float32


class Estimator(BaseEstimator):
    """What quantized estimators and their float twins share: parameters, data, training."""

    _module_class: ClassVar[type[nn.Module]]
    _other_modules: ClassVar[tuple[type[nn.Module], ...]] = ()  # that training may leave
    _classify: ClassVar[bool]
    _own: ClassVar[tuple[str, ...]]  # what fit takes from the targets
    _quantized: ClassVar[bool]
    module_: nn.Module
    target: str | None = None

    # -- parameters ------------------------------------------------------------------------------

    def _set_parameters(self, named: dict[str, Any], others: dict[str, Any]) -> None:
        """For constructors: keep every parameter under its own name, as it came."""
        for name in ("self", "__class__", "parameters"):
            named.pop(name, None)
        for name, value in named.items():
            setattr(self, name, value)
        for name, value in others.items():
            setattr(self, self._canonical(name), value)

    @classmethod
    def _canonical(cls, name: str) -> str:
        """The name a parameter is kept under.  Raises: InvalidArgument for what is none."""
        if name in _REFUSED:
            raise InvalidArgument(mismatch(name, "a value", _REFUSED[name]))
        canonical = _ALIASES.get(name, name)
        known = set(cls._get_param_names())
        if canonical in known or canonical in _PASSED or canonical.startswith(PREFIXES):
            return canonical
        prefix, _, rest = canonical.partition("module__")
        if prefix == "" and rest in inspect.signature(cls._module_class).parameters:
            return canonical
        expected = f"one of {', '.join(sorted(known))}, or a name that starts with " + ", ".join(
            ("module__", *PREFIXES)
        )
        raise InvalidArgument(mismatch("parameter", repr(name), expected))

    def get_params(self, deep: bool = True, **kwargs: object) -> dict[str, Any]:
        """Parameters by name, unprefixed aliases under their full names."""
        names = list(self._get_param_names())
        given = (name for name in vars(self) if name in _PASSED or "__" in name.strip("_"))
        names += [name for name in given if name not in names]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name; they count from the next fit on.  Returns: self."""
        canonical = {name: self._canonical(name) for name in parameters}
        for name, value in parameters.items():
            setattr(self, canonical[name], value)
        return self

    def _with_prefix(self, prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.get_params().items()
            if name.startswith(prefix)
        }

    # -- data ------------------------------------------------------------------------------------

    def _training_data(
        self, X: ArrayLike, y: ArrayLike | None, reset: bool, classes: ArrayLike | None
    ) -> tuple[NDArray[np.float32], Targets]:
        rows = self._rows(X, reset=reset, ensure_min_samples=2)
        kept = as_kept(rows)
        _warn_of_coarse(rows, kept)
        if y is None:
            raise InvalidArgument(
                f"y: got None, expected targets: this {type(self).__name__} estimator requires y "
                "to be passed, but the target y is None"
            )
        with as_ours("y"):
            targets = _to_array(y, "y")
            check_consistent_length(rows, targets)
            return kept, self._encode_targets(targets, reset, classes)

    def _encode_targets(self, y: ArrayLike, reset: bool, classes: ArrayLike | None) -> Targets:
        raise NotImplementedError

    def _scaled(self, X: ArrayLike) -> NDArray[np.float32]:
        """Standardised features, float32 [n, features]; X as the user brings it."""
        check_is_fitted(self, "module_")
        return self._standardise(as_kept(self._rows(X)))

    def _rows(self, X: ArrayLike, reset: bool = False, **checks: int) -> NDArray[np.float64]:
        with as_ours("X"):
            data = _to_array(X, "X")
            times = np.asarray(data).dtype.kind in "mM"  # which become numbers of some unit
            require("X", "times", not times, "numbers")
            rows: NDArray[np.float64] = validate_data(
                self, data, reset=reset, dtype=np.float64, **checks
            )
        return rows

    def _standardise(self, kept: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the module takes: a nondecreasing function of each feature."""
        z = (kept.astype(np.float64) - self.input_mean_) / self.input_scale_
        return np.clip(z, -_MAX_SCALED, _MAX_SCALED).astype(np.float32)

    def _learn_scaling(self, kept: NDArray[np.float32], weight: NDArray[np.float32] | None) -> None:
        rows = (kept if weight is None else kept[weight > 0]).astype(np.float64)
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        varies = deviation > 1e-12 * np.abs(rows).max(axis=0)
        self.input_mean_ = mean
        self.input_scale_ = np.where(varies, deviation, 1.0)

    def _learned(self) -> dict[str, Any]:
        """What fit took from the data, by name: all that predictions need besides the module."""
        return {name: vars(self)[name] for name in (*LEARNED, *self._own) if name in vars(self)}

    def _check_learned(self) -> None:
        """Raises: InvalidArgument, AttributeError, ... unless what a file had fits together."""
        n, names = self.n_features_in_, getattr(self, "feature_names_in_", None)
        require("n_features_in_", n, is_integer(n) and n >= 1, "an integer >= 1")
        if names is not None:
            strings = np.shape(names) == (n,) and all(isinstance(name, str) for name in names)
            require("feature_names_in_", names, strings, f"{n} names")
        self._require_floats("input_mean_", "input_scale_", n)
        require("history_", self.history_, isinstance(self.history_, History), "a history")
        sizes = [self.module_.arguments[name] for name in ("input_dim", "n_outputs")]
        kinds = (self._module_class, *self._other_modules)
        fits = isinstance(self.module_, kinds) and sizes == [n, self._n_outputs]
        require("module", f"sizes {sizes}", fits, f"a {self._module_class.__name__} of this data")

    def _require_floats(self, mean: str, scale: str, size: int) -> None:
        for name, lowest in ((mean, -np.inf), (scale, 0.0)):
            values = getattr(self, name)
            floats = isinstance(values, np.ndarray) and values.dtype == np.float64
            fits = floats and values.shape == (size,) and bool((values > lowest).all())
            require(
                name, values, fits and bool(np.isfinite(values).all()), f"{size} finite numbers"
            )

    # -- training --------------------------------------------------------------------------------

    def fit(
        self, X: ArrayLike, y: ArrayLike | None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train on rows X and targets y.

        Args:
            X: numbers [n, features]: numpy, pandas, torch or lists; finite.
            y: labels [n]; for regressors numbers [n] or [n, outputs].
            sample_weight: numbers [n], >= 0.

        Returns: self.

        Raises: InvalidArgument for settings that no network can meet, before any training;
            InvalidArgument or InvalidType for what scikit-learn's validation refuses, in its words.
        """
        again = self.warm_start and hasattr(self, "module_")
        return self._train(X, y, sample_weight, reset=not again)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train ``max_epochs`` more epochs, starting from the network as it is.

        Args:
            classes: every label that will ever occur; needed in the first call of a classifier
                whose first y lacks some.
            X, y, sample_weight: as in `fit`.
        """
        fitted = hasattr(self, "module_")
        return self._train(X, y, sample_weight, reset=not fitted, classes=classes)

    def _train(
        self,
        X: ArrayLike,
        y: ArrayLike | None,
        sample_weight: ArrayLike | None,
        *,
        reset: bool,
        classes: ArrayLike | None = None,
        start: nn.Module | None = None,
    ) -> Self:
        self._check_settings()
        if classes is None:
            classes = getattr(self, "classes", None)
        if self.target is not None:
            return self._train_for_encryption(
                X, y, sample_weight, reset=reset, classes=classes, start=start
            )
        rows, targets = self._training_data(X, y, reset, classes)
        weight = None if sample_weight is None else _checked_weight(sample_weight, rows)
        if reset:
            self._learn_scaling(rows, weight)
        inputs = self._standardise(rows)
        seed = self._seed()
        if reset or start is not None:
            with torch.random.fork_rng(devices=[]), as_ours("parameters"):
                torch.manual_seed(seed)
                self.training_module_ = start if start is not None else self._build(rows.shape[1])
                self._prepare(inputs)
            self.history_ = History()
        data = {"x": inputs} if weight is None else {"x": inputs, "sample_weight": weight}
        net = self._make_net(seed, inputs if reset else None)
        with as_ours("parameters"):
            net.initialize()
        net.history_ = History([*self.history_])
        if self.max_epochs > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net.partial_fit(data, targets)
        self.net_ = net
        self.history_ = History([{**row, "batches": []} for row in net.history_])
        self.on_train_end(net, rows, targets)
        return self

    def _check_settings(self) -> None:
        """Raises: InvalidArgument for a parameter of skorch's that makes no sense."""
        for name, constraint in _CONSTRAINTS.items():
            value = getattr(self, name)
            try:
                validate_parameter_constraints({name: constraint}, {name: value}, "fit")
            except ValueError as error:  # The 'lr' parameter of fit must be ... . Got -1 instead.
                expected = str(error).partition(" must be ")[2].rpartition(". Got ")[0]
                raise InvalidArgument(mismatch(name, repr(value), expected)) from error
            counted = any(isinstance(kind, Interval) for kind in constraint)
            require(name, value, not (counted and isinstance(value, bool)), "a number")
        for name, value in self._given_callbacks():
            fits = hasattr(value, "initialize") and hasattr(value, "set_params")
            require(name, value, fits, "a callback of skorch")

    def _given_callbacks(self) -> Iterator[tuple[str, object]]:
        """Each of ``callbacks``, and those that take a place of skorch's own, by name."""
        for i, item in enumerate(() if isinstance(self.callbacks, str) else self.callbacks or ()):
            named = isinstance(item, tuple) and len(item) == 2
            yield f"callbacks[{i}]", item[1] if named else item
        for name, value in self._with_prefix("callbacks__").items():
            if "__" not in name and value is not None:
                yield f"callbacks__{name}", value

    def _train_for_encryption(
        self, X: ArrayLike, y: ArrayLike | None, *others: Any, **named: Any
    ) -> Self:
        raise NotImplementedError

    def _seed(self) -> int:
        """random_state, or the next number of torch's generator."""
        if self.random_state is None:
            return int(torch.randint(2**31 - 1, ()))
        if isinstance(self.random_state, np.random.RandomState):
            return int(self.random_state.randint(2**31 - 1))
        return int(self.random_state)

    def _make_net(self, seed: int, inputs: NDArray[np.float32] | None) -> TrainingNet:
        """A skorch net around the module in training; inputs: of one that starts from nothing."""
        if getattr(self, "training_module_", None) is None:
            self.training_module_ = self._reopened()
        criterion = self.criterion
        if criterion is None:
            criterion = nn.CrossEntropyLoss if self._classify else nn.MSELoss
        options = {
            name: value.item() if isinstance(value, np.generic) else value  # torch knows no int64
            for name, value in self.get_params().items()
            if name in _SHARED or (name.startswith(PREFIXES) and name != "criterion__weight")
        }
        weight = getattr(self, "criterion__weight", None)
        if weight is not None:
            with as_ours("criterion__weight"):
                weight = np.asarray(_to_array(weight, "criterion__weight"), dtype=np.float32)
            fits = not self._classify or weight.shape == (self._n_outputs,)
            require("criterion__weight", weight, fits, f"{self._n_outputs} numbers, as classes_")
            options["criterion__weight"] = torch.as_tensor(weight)
        callbacks = self.callbacks or []
        if isinstance(callbacks, str):  # "disable"
            quiet = ("epoch_timer", "schedule", "print_log")  # others keep the integers exact
            options = {**dict.fromkeys(f"callbacks__{name}" for name in quiet), **options}
            callbacks = []
        for name, values in _PASSED.items():
            value = getattr(self, name, None)
            if value is None or name == "classes":
                continue
            fits = value in values if values else callable(value)
            expected = " or ".join(map(repr, values)) or "a class, as skorch has it"
            require(name, value, fits, expected)
            options[name] = value
        return TrainingNet(
            self.training_module_,
            seed=seed,
            classify=self._classify,
            criterion=criterion,
            callbacks=[*callbacks, *self._callbacks(inputs)],
            **options,
        )

    def _callbacks(self, inputs: NDArray[np.float32] | None) -> Callbacks:
        return []

    def _build(self, n_features: int) -> nn.Module:
        raise NotImplementedError

    def _prepare(self, inputs: NDArray[np.float32]) -> None:
        """Constants that come from data, before the first step."""

    def _reopened(self) -> nn.Module:
        """The module to go on training, after a load."""
        return self.module_

    def on_train_end(
        self,
        net: TrainingNet | None = None,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        **kwargs: object,
    ) -> None:
        """What happens when training ends; skorch's signature."""
        self.module_ = self.training_module_.eval()

    def _arithmetic(self) -> AbstractContextManager[None]:
        """In which the module computes what `predict` does."""
        return nullcontext()

    def infer(self, x: ArrayLike, **fit_params: object) -> Tensor:
        """Outputs of the torch module, float32 [n, outputs], before softmax or target scale.

        Args:
            x: rows of features as for `predict`.
            fit_params: further arguments of the module.
        """
        inputs = torch.from_numpy(self._scaled(x))
        with torch.no_grad(), self._arithmetic():
            return self.module_.eval()(inputs, **fit_params)

    @property
    def history(self) -> History:
        """skorch's record of the epochs: ``history[:, "train_loss"]``."""
        check_is_fitted(self, "history_")
        return self.history_

    @property
    def loss_curve_(self) -> list[float]:
        """Training loss of each epoch, as MLPClassifier has it; none with target="encrypted"."""
        return [float(row["train_loss"]) for row in self.history if "train_loss" in row]

    @property
    def n_iter_(self) -> int:
        """How many epochs there were since training began anew, as MLPClassifier has it."""
        return len(self.history)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        for name in ("net_", "training_module_"):  # can be made again
            state.pop(name, None)
        if "fhe_circuit_" in state:
            state["fhe_circuit_"] = None
        if "module_" in state:
            state["module_"] = module_state(state["module_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "module_" in state:
            self.module_ = module_from_state(*state["module_"])


class _Scored(ABC):
    """scikit-learn's score, whatever is brought to it."""

    _metric: ClassVar[Callable[..., float]]

    @abstractmethod
    def predict(self, X: ArrayLike) -> NDArray[Any]: ...

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Share of right labels, or R2 of the targets, of `predict`; as scikit-learn counts them.

        Raises: InvalidArgument or InvalidType for what scikit-learn refuses, in its words.
        """
        predicted = self.predict(X)
        with as_ours("sample_weight"):
            if sample_weight is not None:
                given = _to_array(sample_weight, "sample_weight")
                sample_weight = _check_sample_weight(given, predicted)
        with as_ours("y"):
            return float(self._metric(_to_array(y, "y"), predicted, sample_weight=sample_weight))


class Classifier(_Scored, ClassifierMixin):
    """Labels to indices and back."""

    _metric = staticmethod(accuracy_score)
    _classify = True
    _own: ClassVar[tuple[str, ...]] = ("classes_",)

    def _encode_targets(
        self, y: ArrayLike, reset: bool, classes: ArrayLike | None
    ) -> NDArray[np.int64]:
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        check_array(labels, ensure_2d=False, dtype=None)
        numbers = labels.dtype.kind in "biufU" or labels.dtype == object  # words: of no other kind
        require("y", f"labels of dtype {labels.dtype}", numbers, "numbers, text or truth values")
        if reset:
            self.classes_ = np.unique(labels) if classes is None else unique_labels(classes)
            if len(self.classes_) < 2:
                expected = "at least 2 classes; a classifier needs more than one class"
                raise InvalidArgument(mismatch("y", f"{len(self.classes_)} class", expected))
        index = np.searchsorted(self.classes_, labels)
        index = np.minimum(index, len(self.classes_) - 1)
        unknown = np.asarray(self.classes_[index] != labels)
        if unknown.any():
            label = np.asarray(labels)[unknown][0]
            raise InvalidArgument(mismatch("y", f"label {label!r}", f"one of {self.classes_}"))
        return index.astype(np.int64)

    def _check_learned(self) -> None:
        classes = self.classes_
        sorted_ = isinstance(classes, np.ndarray) and np.array_equal(np.unique(classes), classes)
        require("classes_", classes, sorted_ and len(classes) > 1, "two or more classes, sorted")
        super()._check_learned()

    @property
    def _n_outputs(self) -> int:
        return len(self.classes_)


class Regressor(_Scored, RegressorMixin):
    """Targets to mean 0 and deviation 1, and back."""

    _metric = staticmethod(r2_score)
    _classify = False
    _own: ClassVar[tuple[str, ...]] = ("target_ndim_", "target_mean_", "target_scale_")

    def _encode_targets(
        self, y: ArrayLike, reset: bool, classes: ArrayLike | None
    ) -> NDArray[np.float32]:
        if classes is not None:
            raise InvalidArgument(mismatch("classes", "a value", "None for a regressor"))
        targets = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if targets.ndim > 2:
            raise InvalidArgument(mismatch("y", f"shape {targets.shape}", "[n] or [n, outputs]"))
        columns = targets.reshape(len(targets), -1)
        if reset:
            self.target_ndim_ = targets.ndim
            unit = np.frexp(np.abs(columns).max(axis=0))[1]  # so that no square leaves float64
            near_one = np.ldexp(columns, -unit)
            self.target_mean_ = np.ldexp(near_one.mean(axis=0), unit)
            deviation = np.ldexp(near_one.std(axis=0), unit)
            self.target_scale_ = np.where(deviation > 0.0, deviation, 1.0)
        elif columns.shape[1] != self._n_outputs:
            expected = f"{self._n_outputs} outputs, as before"
            raise InvalidArgument(mismatch("y", f"{columns.shape[1]} outputs", expected))
        return ((columns - self.target_mean_) / self.target_scale_).astype(np.float32)

    @property
    def _n_outputs(self) -> int:
        return len(self.target_mean_)

    def _check_learned(self) -> None:
        ndim, outputs = self.target_ndim_, np.size(self.target_mean_)
        fits = is_integer(ndim) and (ndim == 2 or (ndim == 1 and outputs == 1))
        require("target_ndim_", ndim, fits, "1 for one target, or 2")
        self._require_floats("target_mean_", "target_scale_", outputs)
        super()._check_learned()

    def _targets(self, outputs: FloatArray) -> NDArray[np.float64]:
        y = outputs.astype(np.float64) * self.target_scale_ + self.target_mean_
        return y[:, 0] if self.target_ndim_ == 1 else y

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


def _to_array(data: Any, argument: str) -> Any:
    """Without tensors, and without nullable types but in a frame: its names are still wanted."""
    if isinstance(data, Tensor):
        return data.detach().cpu().numpy()
    numbers: Any = plain(data, argument)
    if getattr(data, "dtype", None) == "boolean":  # of pandas: labels keep their type
        return numbers.astype(bool)
    return data if hasattr(data, "columns") else numbers


def warn(message: str) -> None:
    """A warning that names the line which called refqnn, however deep this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


@contextmanager
def as_ours(argument: str) -> Iterator[None]:
    """Inside, what numpy and scikit-learn's validation refuse is refused by an error of ours."""
    try:
        yield
    except RefqnnError:
        raise
    except (TypeError, ValueError) as error:
        value = isinstance(error, ValueError)  # scikit-learn has an error that is both
        kind = InvalidArgument if value else InvalidType
        raise kind(f"{argument}: {error}") from error


def as_outputs(values: ArrayLike) -> FloatArray:
    """Rows [n, outputs] of numbers.  Raises: InvalidArgument, InvalidType."""
    with as_ours("y_preds"):
        rows: FloatArray = check_array(_to_array(values, "y_preds"), ensure_min_samples=0)
    return rows


def require(name: str, got: object, holds: bool, expected: str) -> None:
    """Raises: InvalidArgument unless it holds."""
    if not holds:
        raise InvalidArgument(mismatch(name, repr(got), expected))


def as_kept(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows as the input door of the network takes them."""
    greatest = float(np.finfo(np.float32).max)
    return np.clip(rows, -greatest, greatest).astype(np.float32)


def _warn_of_coarse(rows: NDArray[np.float64], kept: NDArray[np.float32]) -> None:
    """Name the features that float32 cannot tell apart: they vary too little for their size."""
    if (np.abs(rows) > np.finfo(np.float32).max).any():
        raise InvalidArgument(mismatch("X", "values beyond 3.4e38", "float32 magnitudes"))
    lost = np.abs(rows - kept).max(axis=0)
    for column in np.flatnonzero((np.ptp(rows, axis=0) > 0) & (lost > rows.std(axis=0) / 128)):
        got = f"values within {np.ptp(rows[:, column]):.3g} around {rows[:, column].mean():.6g}"
        expected = f"a finer feature: float32 moves them by {lost[column]:.3g}; subtract a constant"
        warn(mismatch(f"X[:, {column}]", got, expected))


def _checked_weight(weight: ArrayLike, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    with as_ours("sample_weight"):
        checked: NDArray[np.float32] = _check_sample_weight(
            _to_array(weight, "sample_weight"), rows, dtype=np.float32, ensure_non_negative=True
        )
    if not (checked > 0.0).any():
        raise InvalidArgument(mismatch("sample_weight", "only zeros", "one positive weight"))
    return checked
