"""Neural networks as scikit-learn estimators: fit, predict in clear, simulated, or encrypted.

    model = NeuralNetClassifier()
    model.fit(X, y)
    model.compile(X)
    model.predict(X, fhe="execute")        # the classes of predict(X), computed on ciphertexts

What fit leaves behind is one function in four forms: the torch module (`module_`), the integer
network (`network_`), the simulated circuit and the encrypted circuit give the same integers.

The features are standardised inside, in float64 at the float door; everything behind is integers.
Training is skorch's: its history, callbacks, table of epochs and parameter names (``lr``,
``max_epochs``, ``criterion__weight``, ...).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import skorch
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
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
from torch.utils.data import DataLoader

from refqnn.accumulator import Certificate, certify
from refqnn.brevitas import exact_accumulators, from_brevitas
from refqnn.errors import CircuitError, InvalidArgument, InvalidType, mismatch
from refqnn.network import Network
from refqnn.quantizers import Dequantizer, Quantizer
from refqnn.training.modules import FloatMLP, SparseQuantNeuralNetImpl
from refqnn.training.progress import TrainingNet, WeightTransforms

__all__ = [
    "FloatNeuralNetClassifier",
    "FloatNeuralNetRegressor",
    "NeuralNetClassifier",
    "NeuralNetRegressor",
    "load",
]

Fhe = Literal["disable", "simulate", "execute"]

# As the documentation of Concrete ML writes them, without the prefix.
_ALIASES = {name: f"module__{name}" for name in ("n_w_bits", "n_a_bits", "n_accum_bits")} | {
    "power_of_two_scaling": "module__power_of_two_scaling"
}

_FROM_THE_DATA = ("module__input_dim", "module__n_outputs")
_REFUSED = {
    **dict.fromkeys(_FROM_THE_DATA, "nothing: it is taken from the data by fit"),
    "module": "nothing: the module is SparseQuantNeuralNetImpl; use its module__ parameters",
    "n_bits": "nothing: use n_w_bits for the weights and n_a_bits for the activations",
}
_PREFIXES = ("criterion__", "optimizer__", "callbacks__", "iterator_train__", "iterator_valid__")

_PRUNE_AT = 0.3  # of the epochs: before, weights say little; after, the others must adapt
_MAX_SCALED = 1e6  # beyond every code of every input quantizer, and exact in float32


class _Estimator(BaseEstimator):
    """What quantized estimators and their float twins share: parameters, data, training."""

    _module_class: ClassVar[type[nn.Module]]
    _classify: ClassVar[bool]

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
        if canonical in known or canonical.startswith(_PREFIXES):
            return canonical
        prefix, _, rest = canonical.partition("module__")
        if prefix == "" and rest in inspect.signature(cls._module_class).parameters:
            return canonical
        expected = f"one of {', '.join(sorted(known))}, or a name that starts with " + ", ".join(
            ("module__", *_PREFIXES)
        )
        raise InvalidArgument(mismatch("parameter", repr(name), expected))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, unprefixed aliases under their full names."""
        names = list(self._get_param_names())
        names += [name for name in vars(self) if "__" in name.strip("_") and name not in names]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **parameters: Any) -> Any:
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
        self, X: Any, y: Any, reset: bool, classes: ArrayLike | None
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        X = validate_data(self, _to_array(X), reset=reset, dtype=np.float64, ensure_min_samples=2)
        if y is None:
            raise InvalidArgument(
                f"y: got None, expected targets: this {type(self).__name__} estimator requires y "
                "to be passed, but the target y is None"
            )
        y = _to_array(y)
        check_consistent_length(X, y)
        return X, self._encode_targets(y, reset, classes)

    def _encode_targets(self, y: Any, reset: bool, classes: ArrayLike | None) -> NDArray[Any]:
        raise NotImplementedError

    def _scaled(self, X: Any) -> NDArray[np.float32]:
        """Standardised features, float32 [n, features]; X as the user brings it."""
        check_is_fitted(self, "module_")
        X = validate_data(self, _to_array(X), reset=False, dtype=np.float64)
        return self._standardise(X)

    def _standardise(self, X: NDArray[np.float64]) -> NDArray[np.float32]:
        z = (X - self.input_mean_) / self.input_scale_
        return np.clip(z, -_MAX_SCALED, _MAX_SCALED).astype(np.float32)

    def _learn_scaling(self, X: NDArray[np.float64], weight: NDArray[Any] | None) -> None:
        rows = X if weight is None else X[weight > 0]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
            raise InvalidArgument(mismatch("X", "values beyond 1e150", "moderate magnitudes"))
        varies = deviation > 1e-12 * np.abs(rows).max(axis=0)
        self.input_mean_ = mean
        self.input_scale_ = np.where(varies, deviation, 1.0)

    # -- training --------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Any:
        """Train on rows X and targets y.

        Args:
            X: numbers [n, features]: numpy, pandas, torch or lists; finite.
            y: labels [n]; for regressors numbers [n] or [n, outputs].
            sample_weight: numbers [n], >= 0.

        Returns: self.

        Raises: InvalidArgument for settings that no network can meet, before any training;
            ValueError as scikit-learn's validation does.
        """
        again = self.warm_start and hasattr(self, "module_")
        return self._train(X, y, sample_weight, reset=not again)

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
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
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        reset: bool,
        classes: ArrayLike | None = None,
        start: nn.Module | None = None,
    ) -> Any:
        X, targets = self._training_data(X, y, reset, classes)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                _to_array(sample_weight), X, dtype=np.float32, ensure_non_negative=True
            )
            if not (sample_weight > 0.0).any():
                raise InvalidArgument(
                    mismatch("sample_weight", "only zeros", "one positive weight")
                )
        if reset:
            self._learn_scaling(X, sample_weight)
        inputs = self._standardise(X)
        seed = self._seed()
        if reset or start is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.training_module_ = start if start is not None else self._build(X.shape[1])
                self._prepare(inputs)
            self.history_ = History()
        data = {"x": inputs}
        if sample_weight is not None:
            data["sample_weight"] = sample_weight
        net = self._make_net(seed, inputs if reset else None)
        net.initialize()
        net.history_ = History([*self.history_])
        if self.max_epochs > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net.partial_fit(data, targets)
        self.net_ = net
        self.history_ = History([{**row, "batches": []} for row in net.history_])
        self.on_train_end(net, X, y)
        return self

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
            name: value
            for name, value in self.get_params().items()
            if name.startswith(_PREFIXES) and name != "criterion__weight"
        }
        weight = getattr(self, "criterion__weight", None)
        if weight is not None:
            weight = torch.as_tensor(np.asarray(_to_array(weight), dtype=np.float32))
            options["criterion__weight"] = weight
        if isinstance(self.callbacks, str):
            expected = "a list of skorch callbacks or None; verbose=0 silences the table"
            raise InvalidArgument(mismatch("callbacks", repr(self.callbacks), expected))
        callbacks = list(self.callbacks or []) + self._callbacks(inputs)
        return TrainingNet(
            self.training_module_,
            seed=seed,
            classify=self._classify,
            criterion=criterion,
            optimizer=self.optimizer,
            lr=self.lr,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            train_split=self.train_split,
            callbacks=callbacks,
            iterator_train=DataLoader,
            verbose=self.verbose,
            **options,
        )

    def _callbacks(
        self, inputs: NDArray[np.float32] | None
    ) -> list[tuple[str, skorch.callbacks.Callback]]:
        return []

    def _build(self, n_features: int) -> nn.Module:
        raise NotImplementedError

    def _prepare(self, inputs: NDArray[np.float32]) -> None:
        """Constants that come from data, before the first step."""

    def _reopened(self) -> nn.Module:
        """The module to go on training, after a load."""
        return self.module_

    def on_train_end(self, net: Any = None, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """What happens when training ends; skorch's signature."""
        self.module_ = self.training_module_.eval()

    def _outputs(self, n_outputs: Any) -> NDArray[np.float64]:
        raise NotImplementedError

    @torch.no_grad()
    def infer(self, x: Any) -> Tensor:
        """Outputs of the torch module, float32 [n, outputs], before softmax or target scale.

        Args:
            x: rows of features as for `predict`.
        """
        return self.module_.eval()(torch.from_numpy(self._scaled(x)))

    @property
    def history(self) -> History:
        """skorch's record of the epochs: ``history[:, "train_loss"]``."""
        check_is_fitted(self, "history_")
        return self.history_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")

    def __getstate__(self) -> dict[str, Any]:
        from refqnn.training.estimator_files import module_state

        state = dict(super().__getstate__())
        for name in ("net_", "training_module_", "fhe_circuit_"):  # can be made again
            state.pop(name, None)
        if "module_" in state:
            state["module_"] = module_state(state["module_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        from refqnn.training.estimator_files import module_from_state

        super().__setstate__(state)
        if "module_" in state:
            self.module_ = module_from_state(*state["module_"])


class _Classifier(ClassifierMixin):
    """Labels to indices and back."""

    _classify = True

    def _encode_targets(self, y: Any, reset: bool, classes: ArrayLike | None) -> NDArray[np.int64]:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        check_array(y, ensure_2d=False, dtype=None)
        if reset:
            self.classes_ = np.unique(y) if classes is None else unique_labels(classes)
            if len(self.classes_) < 2:
                expected = "at least 2 classes; a classifier needs more than one class"
                raise InvalidArgument(mismatch("y", f"{len(self.classes_)} class", expected))
        index = np.searchsorted(self.classes_, y)
        index = np.minimum(index, len(self.classes_) - 1)
        unknown = np.asarray(self.classes_[index] != y)
        if unknown.any():
            label = np.asarray(y)[unknown][0]
            raise InvalidArgument(mismatch("y", f"label {label!r}", f"one of {self.classes_}"))
        return index.astype(np.int64)

    @property
    def _n_outputs(self) -> int:
        return len(self.classes_)


class _Regressor(RegressorMixin):
    """Targets to mean 0 and deviation 1, and back."""

    _classify = False

    def _encode_targets(
        self, y: Any, reset: bool, classes: ArrayLike | None
    ) -> NDArray[np.float32]:
        if classes is not None:
            raise InvalidArgument(mismatch("classes", "a value", "None for a regressor"))
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if y.ndim > 2:
            raise InvalidArgument(mismatch("y", f"shape {y.shape}", "[n] or [n, outputs]"))
        columns = y.reshape(len(y), -1)
        if reset:
            self.target_ndim_ = y.ndim
            self.target_mean_ = columns.mean(axis=0)
            deviation = columns.std(axis=0)
            self.target_scale_ = np.where(deviation > 0.0, deviation, 1.0)
        elif columns.shape[1] != self._n_outputs:
            expected = f"{self._n_outputs} outputs, as before"
            raise InvalidArgument(mismatch("y", f"{columns.shape[1]} outputs", expected))
        return ((columns - self.target_mean_) / self.target_scale_).astype(np.float32)

    @property
    def _n_outputs(self) -> int:
        return len(self.target_mean_)

    def _targets(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        y = outputs.astype(np.float64) * self.target_scale_ + self.target_mean_
        return y[:, 0] if self.target_ndim_ == 1 else y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


class _QuantizedEstimator(_Estimator):
    """The quantized half: integers, certificate, circuit."""

    _module_class = SparseQuantNeuralNetImpl

    def __init__(
        self,
        *,
        module__n_layers: int = 2,
        module__n_hidden_neurons_multiplier: float = 4,
        module__n_w_bits: int = 3,
        module__n_a_bits: int = 3,
        module__n_accum_bits: int | None = 8,
        module__n_prune_neurons_percentage: float = 0.0,
        module__activation_function: Callable[[], nn.Module] = nn.ReLU,
        module__quant_narrow: bool = False,
        module__quant_signed: bool | None = None,
        module__power_of_two_scaling: bool = True,
        criterion: Any = None,
        optimizer: Any = torch.optim.Adam,
        lr: float = 0.02,
        max_epochs: int = 10,
        batch_size: int = 32,
        train_split: Any = None,
        callbacks: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 1,
        **parameters: Any,
    ) -> None:
        self._set_parameters(locals(), parameters)

    # -- training --------------------------------------------------------------------------------

    def _build(self, n_features: int) -> nn.Module:
        arguments = self._with_prefix("module__")
        bits, limit = arguments["n_a_bits"], arguments["n_accum_bits"]
        if isinstance(bits, int) and (limit is None or limit >= bits + 5):
            arguments.setdefault("n_input_bits", min(8, bits + 1))
        if not self._classify:
            arguments.setdefault("output_std", 1.0)
        return SparseQuantNeuralNetImpl(
            input_dim=n_features, n_outputs=self._n_outputs, **arguments
        )

    def _prepare(self, inputs: NDArray[np.float32]) -> None:
        self._add_limits(self.training_module_)
        self.training_module_.calibrate(torch.from_numpy(inputs))

    def _reopened(self) -> nn.Module:
        module = self.module_.plain_copy()
        self._add_limits(module)
        return module

    def _add_limits(self, module: SparseQuantNeuralNetImpl) -> None:
        """Fan-in and accumulator budgets, where the module has none."""
        fan_in = self._with_prefix("module__").get("fan_in")
        if fan_in is not None and not module.has_fan_in_limits():
            module.limit_fan_in(fan_in)
        if module.n_accum_bits is not None:
            module.add_accumulator_budgets(module.n_accum_bits)

    def _callbacks(
        self, inputs: NDArray[np.float32] | None
    ) -> list[tuple[str, skorch.callbacks.Callback]]:
        module = self.training_module_
        fraction = self.module__n_prune_neurons_percentage
        waiting = fraction > 0.0

        def at_epoch(epoch: int, epochs: int) -> None:
            nonlocal waiting
            if inputs is not None:
                module.sparsify(torch.from_numpy(inputs), epoch, epochs)
            if waiting and epoch >= _PRUNE_AT * epochs:
                module.enable_pruning(fraction)
                waiting = False

        return [("weight_transforms", WeightTransforms(module.shrink_to_budgets, at_epoch))]

    def on_train_end(self, net: Any = None, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Make masks and budgets permanent, and the integer network and its certificate anew."""
        self.module_ = self.training_module_.plain_copy()
        example = torch.zeros(2, self.n_features_in_)
        self.network_: Network = from_brevitas(self.module_, example)
        self.certificate_: Certificate = certify(self.network_)
        if hasattr(self, "fhe_circuit_"):
            del self.fhe_circuit_  # of another network

    # -- one function in four forms --------------------------------------------------------------

    def accumulators(
        self, X: Any, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[np.int64]:
        """Integer outputs [n, outputs] of the network.

        Args:
            X: rows of features.
            fhe: "disable" computes with numpy, "simulate" with the circuit in clear, "execute" on
                ciphertexts.
            execute_in_fhe: True is "execute", False "disable".

        Raises: CircuitError before `compile`; InvalidArgument.
        """
        if execute_in_fhe is not None:
            if fhe != "disable":
                raise InvalidArgument(
                    mismatch("execute_in_fhe", execute_in_fhe, "None where fhe is given")
                )
            fhe = "execute" if execute_in_fhe else "disable"
        if fhe not in ("disable", "simulate", "execute"):
            raise InvalidArgument(mismatch("fhe", repr(fhe), "disable, simulate or execute"))
        codes = self.quantize_input(X)
        if fhe == "disable":
            return self.network_.forward(codes)
        circuit = self.fhe_circuit
        return circuit.simulate(codes) if fhe == "simulate" else circuit.execute(codes)

    @torch.no_grad()
    def infer(self, x: Any) -> Tensor:
        """Outputs of the torch module, float32 [n, outputs], before softmax or target scale.

        With power-of-two scales the module is run as it is.  Otherwise its float32 sums could round
        across a threshold, and Brevitas is made to sum integers (`exact_accumulators`).
        """
        inputs = torch.from_numpy(self._scaled(x))
        if self.module_.power_of_two_scaling:
            return self.module_.eval()(inputs)
        with exact_accumulators():
            return self.module_.eval()(inputs)

    def quantize_input(self, X: Any) -> NDArray[np.int64]:
        """Input codes [n, features] of rows of features."""
        scaled = self._scaled(X)
        return self.network_.quantize_input(scaled)

    def dequantize_output(self, acc: ArrayLike) -> NDArray[Any]:
        """Float outputs [n, outputs] of integer outputs: logits, or scaled targets."""
        check_is_fitted(self)
        return self.network_.dequantize_output(acc)

    @property
    def input_quantizers(self) -> list[Quantizer]:
        """The quantizer of the standardised features, in a list."""
        check_is_fitted(self)
        assert self.network_.input_quantizer is not None
        return [self.network_.input_quantizer]

    @property
    def output_quantizers(self) -> list[Dequantizer]:
        """What turns integer outputs into floats, in a list."""
        check_is_fitted(self)
        assert self.network_.output_dequantizer is not None
        return [self.network_.output_dequantizer]

    # -- encryption ------------------------------------------------------------------------------

    def compile(self, X: Any = None, **options: Any) -> Any:
        """Compile the encrypted circuit.

        Args:
            X: rows of features, checked and not used: every width is proved, none is sampled.
            options: of `refqnn.fhe.compile`, such as p_error.

        Returns: the `refqnn.fhe.Circuit`, also `fhe_circuit`.

        Raises: MissingExtra without the fhe extra; CircuitError where a width has no parameters.
        """
        from refqnn import fhe

        check_is_fitted(self)
        if X is not None:
            self._scaled(X)
        options.setdefault("certificate", self.certificate_)
        self.fhe_circuit_ = fhe.compile(self.network_, **options)
        return self.fhe_circuit_

    @property
    def fhe_circuit(self) -> Any:
        """The compiled circuit.  Raises: CircuitError before `compile`."""
        check_is_fitted(self)
        if not hasattr(self, "fhe_circuit_"):
            raise CircuitError("fhe_circuit: there is none yet; call compile first")
        return self.fhe_circuit_

    # -- views -----------------------------------------------------------------------------------

    @property
    def n_bits_quant(self) -> int:
        """Bits of the activations of the fitted module."""
        check_is_fitted(self)
        return int(self.module_.n_a_bits)

    @property
    def onnx_model(self) -> Any:
        """The integer network as an ONNX model of standard operators (flavour "qcdq").

        From input codes, as `quantize_input` gives them, to the integers of `accumulators`.
        """
        from refqnn import to_onnx

        check_is_fitted(self)
        network = self.network_
        integers = Network(
            network.nodes,
            input_shape=network.input_shape,
            input_format=network.input_format,
            output=network.output,
        )
        return to_onnx(integers, flavour="qcdq")

    @property
    def base_module_to_compile(self) -> nn.Module:
        """The trained torch module."""
        check_is_fitted(self)
        return self.module_

    # -- pruning ---------------------------------------------------------------------------------

    def max_active_neurons(self) -> int:
        """Inputs a neuron may read whatever its weights; see the module's method of this name.

        Raises: InvalidArgument where n_accum_bits is None.
        """
        check_is_fitted(self)
        bits = self.module_.n_accum_bits
        if bits is None:
            raise InvalidArgument(mismatch("n_accum_bits", None, "a number of bits"))
        return self.module_.max_active_neurons(bits)

    def enable_pruning(self, fraction: float | None = None) -> None:
        """Silence a fraction of each hidden layer's neurons in the module that goes on training.

        Predictions change with `make_pruning_permanent` or the next `partial_fit`.

        Args:
            fraction: in [0, 1); None: n_prune_neurons_percentage.
        """
        check_is_fitted(self)
        if getattr(self, "training_module_", None) is None:
            self.training_module_ = self._reopened()
        if fraction is None:
            fraction = self.module__n_prune_neurons_percentage
        self.training_module_.enable_pruning(fraction)

    def make_pruning_permanent(self) -> None:
        """Take silenced neurons out of `module_` and `network_`."""
        check_is_fitted(self)
        if getattr(self, "training_module_", None) is not None:
            self.on_train_end()

    def prune(self, X: Any, y: Any, fraction: float, sample_weight: Any = None) -> Any:
        """A smaller copy: the least important neurons of each hidden layer left out, then trained.

        Args:
            X, y, sample_weight: to train the copy on, as in `fit`; ``max_epochs`` epochs.
            fraction: of each hidden layer's neurons, in [0, 1); rounded down.

        Returns: a new fitted estimator.
        """
        check_is_fitted(self)
        if not 0.0 <= fraction < 1.0:
            raise InvalidArgument(mismatch("fraction", fraction, "a number in [0, 1)"))
        keep = []
        for importance in self.module_.neuron_importance():
            order = importance.argsort(stable=True, descending=True)
            kept = order[: len(importance) - int(fraction * len(importance))]
            keep.append(kept.sort().values)
        pruned = type(self)(**self.get_params())
        sizes = tuple(len(kept) for kept in keep)
        pruned.set_params(module__hidden_sizes=sizes, module__n_prune_neurons_percentage=0.0)
        for name in ("n_features_in_", "feature_names_in_", *_FITTED_SCALING):
            if hasattr(self, name):
                setattr(pruned, name, getattr(self, name))
        pruned.module_ = self.module_  # fitted from here on
        start = self.module_.plain_copy(keep)
        return pruned._train(X, y, sample_weight, reset=False, start=start)

    # -- the float twin --------------------------------------------------------------------------

    def get_params_for_benchmark(self) -> dict[str, Any]:
        """Parameters of the float twin: sizes, activation and training, no bits."""
        shared = set(self._twin_class._get_param_names())
        return {
            name: value
            for name, value in self.get_params().items()
            if name in shared or name.startswith(_PREFIXES)
        }

    def fit_benchmark(self, X: Any, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """Fit this estimator and its float twin on the same rows.

        Returns: (self, twin); the twin is a `FloatNeuralNetClassifier` or `FloatNeuralNetRegressor`
            with the same sizes and training.
        """
        self.fit(X, y, sample_weight)
        twin = self._twin_class(**self.get_params_for_benchmark())
        return self, twin.fit(X, y, sample_weight)

    # -- files -----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one file: arrays and JSON, checksummed, no pickle.

        Raises: NotFittedError; NotCovered for a parameter that is an object of your own, such as a
            callback: set it to None first.
        """
        from refqnn.training.estimator_files import save

        check_is_fitted(self)
        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Any:
        """The estimator in a file that `save` wrote.  Raises: FileFormatError."""
        estimator = load(path)
        if not isinstance(estimator, cls):
            raise InvalidType(mismatch("path", f"a {type(estimator).__name__}", cls.__name__))
        return estimator


_FITTED_SCALING = (
    "input_mean_",
    "input_scale_",
    "classes_",
    "target_ndim_",
    "target_mean_",
    "target_scale_",
)


class _FloatEstimator(_Estimator):
    """The same estimator with nothing quantized: what quantization is measured against."""

    _module_class = FloatMLP

    def __init__(
        self,
        *,
        module__n_layers: int = 2,
        module__n_hidden_neurons_multiplier: float = 4,
        module__hidden_sizes: Any = None,
        module__activation_function: Callable[[], nn.Module] = nn.ReLU,
        criterion: Any = None,
        optimizer: Any = torch.optim.Adam,
        lr: float = 0.02,
        max_epochs: int = 10,
        batch_size: int = 32,
        train_split: Any = None,
        callbacks: Any = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 1,
        **parameters: Any,
    ) -> None:
        self._set_parameters(locals(), parameters)

    def _build(self, n_features: int) -> nn.Module:
        sizes = self.module__hidden_sizes
        if sizes is None:
            hidden = max(1, round(self.module__n_hidden_neurons_multiplier * n_features))
            sizes = [hidden] * (self.module__n_layers - 1)
        activation = self.module__activation_function
        return FloatMLP(n_features, sizes, self._n_outputs, activation)


class FloatNeuralNetClassifier(_Classifier, _FloatEstimator):
    """Float multilayer perceptron with the data handling and training of `NeuralNetClassifier`.

    Args: as `NeuralNetClassifier`, without bits and budgets.
    """

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities [n, classes]."""
        return _softmax(self.infer(X).numpy())

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels [n]."""
        outputs = self.infer(X).numpy()
        return self.classes_[outputs.argmax(axis=1)]


class FloatNeuralNetRegressor(_Regressor, _FloatEstimator):
    """Float multilayer perceptron with the data handling and training of `NeuralNetRegressor`.

    Args: as `NeuralNetRegressor`, without bits and budgets.
    """

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Targets [n] or [n, outputs]."""
        return self._targets(self.infer(X).numpy())


class NeuralNetClassifier(_Classifier, _QuantizedEstimator):
    """Quantized neural network classifier that can run encrypted.

    Args:
        module__n_layers: linear layers in all, >= 1.
        module__n_hidden_neurons_multiplier: hidden layers have this many neurons per feature.
        module__n_w_bits: bits of the weights, 2 to 8.
        module__n_a_bits: bits of the activations, 1 to 8.  Inputs get one bit more where
            accumulators have at least 5 more, unless ``module__n_input_bits`` says otherwise.
        module__n_accum_bits: signed bits that no accumulator exceeds, bias included, for any input:
            `certificate_` proves it.  None: no limit.
        module__n_prune_neurons_percentage: fraction of each hidden layer's neurons that leave the
            network during training.
        module__activation_function: a torch activation class.
        module__quant_narrow, module__quant_signed, module__power_of_two_scaling, and any other
            ``module__`` name: as in `SparseQuantNeuralNetImpl`.  With ``module__fan_in`` the rows
            shrink to that many weights in the first half of the epochs.  Cheapest under encryption
            are neurons of one input (``module__fan_in=1``: no lookup), then few ternary weights
            (``n_w_bits=2, module__quant_narrow=True``) with ``module__table_bits=4``.
        criterion: a torch loss class; None: cross entropy.  ``criterion__weight`` weights classes.
        optimizer, lr, batch_size, train_split, callbacks: as in skorch.  ``lr`` is the highest rate
            of a one-cycle schedule (``callbacks__schedule=None`` keeps it constant).
        max_epochs: epochs of one call of fit.  An epoch is a pass over the rows; where that is less
            than 48 batches, several passes.
        warm_start: let fit go on from the network as it is.
        random_state: seed; None takes one from torch's generator.
        verbose: 1 prints a table of epochs, 0 nothing.
        parameters: ``n_w_bits``, ``n_a_bits``, ``n_accum_bits``, ``power_of_two_scaling`` without
            their prefix, and prefixed parameters of skorch.

    Attributes:
        network_: the integer `refqnn.Network`; its inputs are standardised features.
        certificate_: proved bounds of its accumulators.
        module_: the trained `SparseQuantNeuralNetImpl`, masks and budgets written into its weights.
        classes_, n_features_in_, feature_names_in_: as in scikit-learn.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 4))
    >>> y = np.where(X[:, 0] > 0, "right", "left")
    >>> model = NeuralNetClassifier(n_accum_bits=7, max_epochs=3, random_state=0, verbose=0)
    >>> model.fit(X, y).predict([[2, 0, 0, 0], [-2, 0, 0, 0]]).tolist()
    ['right', 'left']
    >>> max(layer.signed_bits for layer in model.certificate_.layers.values()) <= 7
    True
    """

    _twin_class = FloatNeuralNetClassifier
    base_estimator_type = skorch.NeuralNetClassifier

    def predict(
        self, X: Any, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[Any]:
        """Labels [n]: of the largest integer output, the first of equals.  See `accumulators`."""
        acc = self.accumulators(X, fhe, execute_in_fhe=execute_in_fhe)
        return self.classes_[acc.argmax(axis=1)]

    def predict_proba(
        self, X: Any, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[np.float64]:
        """Probabilities [n, classes]: softmax of the dequantized outputs."""
        acc = self.accumulators(X, fhe, execute_in_fhe=execute_in_fhe)
        return _softmax(self.dequantize_output(acc))


class NeuralNetRegressor(_Regressor, _QuantizedEstimator):
    """Quantized neural network regressor that can run encrypted.

    Targets are standardised inside.

    Args: as `NeuralNetClassifier`; criterion None is the mean squared error.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> model = NeuralNetRegressor(max_epochs=5, random_state=0, verbose=0)
    >>> model.fit(X, X[:, 0] + 0.5 * X[:, 1]).score(X, X[:, 0] + 0.5 * X[:, 1]) > 0.7
    True
    """

    _twin_class = FloatNeuralNetRegressor
    base_estimator_type = skorch.NeuralNetRegressor

    def predict(
        self, X: Any, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[np.float64]:
        """Targets [n] or [n, outputs].  See `accumulators`."""
        acc = self.accumulators(X, fhe, execute_in_fhe=execute_in_fhe)
        return self._targets(self.dequantize_output(acc))


def load(path: str | Path) -> Any:
    """The estimator in a file that `save` wrote.  Raises: FileFormatError; OSError as open does."""
    from refqnn.training.estimator_files import load

    return load(path)


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _to_array(data: Any) -> Any:
    return data.detach().cpu().numpy() if isinstance(data, Tensor) else data
