"""Neural networks as scikit-learn estimators: fit, predict in clear, simulated, or encrypted.

    model = NeuralNetClassifier()
    model.fit(X, y)
    model.compile(X)
    model.predict(X, fhe="execute")        # the classes of predict(X), computed on ciphertexts

What fit leaves behind is one function in four forms: the torch module (`module_`), the integer
network (`network_`), the simulated circuit and the encrypted circuit give the same integers.

The features are rounded to float32 and standardised inside, at the float door, which the integer
network holds as thresholds; everything behind is integers.
Training is skorch's: its history, callbacks, table of epochs and parameter names (``lr``,
``max_epochs``, ``criterion__weight``, ...).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import skorch
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from skorch.dataset import ValidSplit
from skorch.history import History
from torch import nn

from refqnn.accumulator import Certificate, certify
from refqnn.brevitas import exact_accumulators, from_brevitas
from refqnn.doors import Comparisons, Features, Predictions, softmax
from refqnn.errors import InvalidArgument, InvalidType, NotCompiled, ShapeMismatch, mismatch
from refqnn.formats import as_integers, is_integer
from refqnn.network import Network
from refqnn.quantizers import Dequantizer, FloatArray, Quantizer
from refqnn.training import estimator_files
from refqnn.training.base import (
    PREFIXES,
    Callbacks,
    Classifier,
    Estimator,
    Regressor,
    as_outputs,
    require,
    warn,
)
from refqnn.training.compiling import ConcreteMLNames, circuit_options
from refqnn.training.encrypted import Trained, search
from refqnn.training.estimator_files import load, stored
from refqnn.training.lookups import LookupNet
from refqnn.training.modules import FloatMLP, SparseQuantNeuralNetImpl
from refqnn.training.progress import WeightTransforms
from refqnn.training.quantizers import check_number

if TYPE_CHECKING:
    from typing import Self

    from concrete.fhe import Configuration
    from onnx import ModelProto

    from refqnn.fhe import Circuit

__all__ = [
    "FloatNeuralNetClassifier",
    "FloatNeuralNetRegressor",
    "NeuralNetClassifier",
    "NeuralNetRegressor",
    "load",
]

Fhe = Literal["disable", "simulate", "execute"]

_WHOLE = "None: networks with target='encrypted' are trained whole, by fit(X, y)"
_CHOSEN = (
    "its default: with target='encrypted' module__hidden_sizes and module__table_bits can be set"
)
_PRUNE_AT = 0.3  # of the epochs: before, weights say little; after, the others must adapt


class _QuantizedEstimator(ConcreteMLNames, Estimator):
    """The quantized half: integers, certificate, circuit."""

    _module_class = SparseQuantNeuralNetImpl
    _other_modules = (LookupNet,)
    _quantized = True
    fhe_circuit_: Circuit | None

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
        criterion: type[nn.Module] | None = None,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 0.02,
        max_epochs: int = 10,
        batch_size: int = 32,
        train_split: ValidSplit | None = None,
        callbacks: Callbacks | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 1,
        target: Literal["encrypted"] | None = None,
        budget_s: float = 60.0,
        **parameters: object,
    ) -> None:
        self._set_parameters(locals(), parameters)

    # -- training --------------------------------------------------------------------------------

    def _train_for_encryption(
        self,
        X: ArrayLike,
        y: ArrayLike | None,
        sample_weight: ArrayLike | None,
        *,
        reset: bool,
        classes: ArrayLike | None = None,
        start: nn.Module | None = None,
    ) -> Self:
        """By refqnn.training.encrypted, which trains whole networks and counts each row once."""
        require("target", self.target, self.target == "encrypted", "None or 'encrypted'")
        sizes, table_bits = self._sizes_for_encryption()
        budget = self.budget_s
        require("budget_s", budget, 0.0 < budget < np.inf, "a number of seconds above 0")
        require("sample_weight", sample_weight, sample_weight is None, _WHOLE)
        require("partial_fit, warm_start or prune", "a trained network", reset, _WHOLE)
        rows, targets = self._training_data(X, y, reset, classes)
        self._learn_scaling(rows, None)
        history = History()

        def report(done: Trained) -> None:
            history.new_epoch()
            for name, value in {"epoch": len(history), **vars(done)}.items():
                history.record(name, value)
            if self.verbose:
                held_out = f"{done.held_out} rows held out" if done.held_out else "all rows"
                print(
                    f"{done.lookups:4} lookups, {done.steps} steps: {done.score:.3f} on {held_out}"
                )

        self.module_ = self.training_module_ = search(
            self._standardise(rows),
            targets,
            self.input_scale_,
            n_outputs=self._n_outputs,
            lookups=None if sizes is None else sizes[0],
            table_bits=table_bits,
            budget_s=budget,
            seed=self._seed(),
            report=report,
        )
        self.history_ = history
        self._finish()
        return self

    def _sizes_for_encryption(self) -> tuple[Sequence[int] | None, int]:
        """Hidden sizes and table bits.  Raises: InvalidArgument for what else is set."""
        usual = inspect.signature(_QuantizedEstimator.__init__).parameters
        given = self._with_prefix("module__")
        sizes, table_bits = given.pop("hidden_sizes", None), given.pop("table_bits", 3)
        for name, value in given.items():
            known = usual.get(f"module__{name}")
            require(f"module__{name}", value, known is not None and value == known.default, _CHOSEN)
        one = sizes is None or (np.ndim(sizes) == 1 and len(sizes) == 1)
        require("module__hidden_sizes", sizes, one, "None or one number: how many lookups")
        return sizes, table_bits

    def _build(self, n_features: int) -> nn.Module:
        arguments = self._with_prefix("module__")
        weights, bits, limit = (arguments[f"n_{name}_bits"] for name in ("w", "a", "accum"))
        room = limit if is_integer(limit) else math.inf
        if is_integer(weights) and is_integer(bits) and room >= bits + 5:
            # A class survives coarse steps of a feature; a target moves with each of them.
            finer = not self._classify and room >= weights + bits + 2
            arguments.setdefault("n_input_bits", min(8, bits + 1 + finer))
        if not self._classify:
            arguments.setdefault("output_std", 1.0)
        return SparseQuantNeuralNetImpl(
            input_dim=n_features, n_outputs=self._n_outputs, **arguments
        )

    def _prepare(self, inputs: NDArray[np.float32]) -> None:
        module = self.training_module_
        self._add_limits(module)
        if module.n_accum_bits is not None and module.max_active_neurons(module.n_accum_bits) == 0:
            expected = (
                f"at least {module.full_weight_bits()}, None, or fewer bits of weights and codes: "
                "one weight of full size has no room, and training is held to smaller ones"
            )
            warn(mismatch("n_accum_bits", module.n_accum_bits, expected))
        module.calibrate(torch.from_numpy(inputs))

    def _reopened(self) -> nn.Module:
        require("target", self.target, not isinstance(self.module_, LookupNet), _WHOLE)
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

    def _callbacks(self, inputs: NDArray[np.float32] | None) -> Callbacks:
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

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        """Make masks and budgets permanent, and the integer network and its certificate anew."""
        self.module_ = self.training_module_.plain_copy()
        self._finish()

    def _finish(self) -> None:
        """The integers of the module, and what is proved of them."""
        if isinstance(self.module_, LookupNet):
            self.network_ = self.module_.network(
                self._standardise, self._output_door, self._feature_names()
            )
        else:
            example = torch.zeros(2, self.n_features_in_)
            self.network_ = self._with_doors(from_brevitas(self.module_, example))
        self.certificate_: Certificate = certify(self.network_)
        if hasattr(self, "fhe_circuit_"):
            self.fhe_circuit_ = None  # of another network

    def _with_doors(self, network: Network) -> Network:
        """The network from raw rows to labels or targets.

        Standardising and quantizing is a nondecreasing function of each float32 feature, so the
        door holds the least float32 of each of its codes, found with that function itself.
        """
        inner, outer = network.input_quantizer, network.output_dequantizer
        assert inner is not None
        assert outer is not None

        def codes(rows: NDArray[np.float32]) -> NDArray[np.int64]:
            return inner.quantize(self._standardise(rows))

        door = Features.of_function(codes, self.n_features_in_, inner.format, self._feature_names())
        return network.with_doors(door, self._output_door(outer))

    def _feature_names(self) -> tuple[str, ...] | None:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else tuple(names)

    def _output_door(self, door: Dequantizer) -> Predictions:
        raise NotImplementedError

    def _check_network(self) -> None:
        """Raises: InvalidArgument, ... unless the network of a file is one of this estimator."""
        network, outputs = self.network_, self._n_outputs
        inner, outer = network.input_quantizer, network.output_dequantizer
        taken = (inner.width,) if isinstance(inner, Comparisons) else network.input_shape
        shapes = (taken, network.shapes[network.output])
        expected = ((self.n_features_in_,), (outputs,))
        require("network_", f"shapes {shapes}", shapes == expected, f"shapes {expected}")
        doors = inner is not None and inner.format.bits <= 8 and outer is not None
        require("network_", (inner, outer), doors, "two doors, the first of at most 8 bits")
        if not isinstance(inner, Features):  # a file of the first release: doors of the module
            self.network_ = self._with_doors(network)
            return
        door = self._output_door(Dequantizer(1.0))
        same = type(outer) is type(door) and all(
            np.array_equal(getattr(outer, name, ()), getattr(door, name, ()))
            for name in ("labels", "flat")
        )
        require("network_", outer, same, f"an output door as {door}")
        network.predict(np.zeros((1, self.n_features_in_)))

    # -- one function in four forms --------------------------------------------------------------

    def accumulators(
        self, X: ArrayLike, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
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
            if not isinstance(fhe, str) or fhe != "disable":
                raise InvalidArgument(
                    mismatch("execute_in_fhe", execute_in_fhe, "None where fhe is given")
                )
            told = isinstance(execute_in_fhe, (bool, np.bool_))
            require("execute_in_fhe", execute_in_fhe, told, "True, False or None")
            fhe = "execute" if execute_in_fhe else "disable"
        if not isinstance(fhe, str) or fhe not in ("disable", "simulate", "execute"):
            raise InvalidArgument(mismatch("fhe", repr(fhe), "disable, simulate or execute"))
        codes = self.quantize_input(X)
        if fhe == "disable":
            return self.network_.forward(codes)
        circuit = self.fhe_circuit
        return circuit.simulate(codes) if fhe == "simulate" else circuit.execute(codes)

    def _arithmetic(self) -> AbstractContextManager[None]:
        """With power-of-two scales the module as it is.  Otherwise its float32 sums could round
        across a threshold, and Brevitas is made to sum integers."""
        return nullcontext() if self.module_.power_of_two_scaling else exact_accumulators()

    def quantize_input(self, X: ArrayLike) -> NDArray[np.int64]:
        """Input codes [n, features] of rows of features."""
        check_is_fitted(self)
        return self.network_.quantize_input(self._rows(X))

    def dequantize_output(self, acc: ArrayLike) -> FloatArray:
        """Float outputs [n, outputs] of integer outputs, or of one row's: logits, or targets."""
        check_is_fitted(self)
        return self.network_.dequantize_output(np.atleast_2d(as_integers(acc, "acc")))

    def _outputs(self, y_preds: ArrayLike) -> FloatArray:
        """Rows [n, outputs] of numbers.  Raises: InvalidArgument, InvalidType, NotFittedError."""
        check_is_fitted(self)
        rows = as_outputs(y_preds)
        if rows.shape[1] != self._n_outputs:
            expected = f"[n, {self._n_outputs}], as dequantize_output gives"
            raise ShapeMismatch(mismatch("y_preds", f"shape {rows.shape}", expected))
        return rows

    @property
    def input_quantizers(self) -> list[Quantizer]:
        """The quantizer of the raw features, in a list."""
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

    def compile(
        self,
        X: ArrayLike | None = None,
        configuration: Configuration | None = None,
        artifacts: None = None,
        show_mlir: bool = False,
        p_error: float | None = None,
        global_p_error: float | None = None,
        verbose: bool = False,
        device: str = "cpu",
        **options: Any,
    ) -> Circuit:
        """Compile the encrypted circuit.

        No search for a p_error is needed: `fhe="execute"` gives the integers of
        `fhe="disable"`, and the whole inference fails with probability 2**-128 at most.
        No rounding_threshold_bits either: each accumulator loses as many low bits as change no
        code.

        Args:
            X: rows of features, checked and not used: every width is proved, none is sampled.
            configuration: of Concrete; what differs from its defaults counts as an option.
            artifacts, device: refused unless as they are.
            show_mlir, verbose: print what the compiler does.
            p_error, global_p_error, options: of `refqnn.fhe.compile`, and of a Configuration.

        Returns: the `refqnn.fhe.Circuit`, also `fhe_circuit`.

        Raises: MissingExtra without the fhe extra; InvalidArgument that names each option without
            a meaning here; CircuitError where a width has no parameters.
        """
        from refqnn import fhe

        check_is_fitted(self)
        if X is not None:
            self.quantize_input(X)
        named: dict[str, object] = {"p_error": p_error, "global_p_error": global_p_error}
        named |= {"artifacts": artifacts, "device": None if device == "cpu" else device}
        named |= {"show_mlir": show_mlir or None, "verbose": verbose or None}
        options |= {name: value for name, value in named.items() if value is not None}
        options = {"certificate": self.certificate_, **circuit_options(configuration, options)}
        circuit: Circuit = fhe.compile(self.network_, **options)
        self.fhe_circuit_ = circuit
        return circuit

    def save_client(self, path: str | Path) -> None:
        """Write what a client needs (`refqnn.fhe.Client`): raw rows in, labels or targets out.

        Raises: as `fhe_circuit`.
        """
        self.fhe_circuit.save_client(path)

    def save_server(self, path: str | Path) -> None:
        """Write what a server needs (`refqnn.fhe.Server`).  Raises: as `fhe_circuit`."""
        self.fhe_circuit.save_server(path)

    @property
    def fhe_circuit(self) -> Circuit:
        """The compiled circuit.  Raises: NotCompiled, a CircuitError, before `compile`."""
        check_is_fitted(self)
        if not hasattr(self, "fhe_circuit_"):
            raise NotCompiled("fhe_circuit: there is none yet; call compile first")
        if self.fhe_circuit_ is None:
            raise NotCompiled(
                "fhe_circuit: training and copies leave it behind; call compile again"
            )
        return self.fhe_circuit_

    # -- views -----------------------------------------------------------------------------------

    @property
    def n_bits_quant(self) -> int:
        """Bits of the activations of the fitted module."""
        check_is_fitted(self)
        return int(self.module_.n_a_bits)

    @property
    def onnx_model(self) -> ModelProto:
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

    # -- pruning ---------------------------------------------------------------------------------

    def max_active_neurons(self) -> int:
        """Inputs a neuron may read whatever its weights; see the module's method of this name.

        Raises: InvalidArgument where n_accum_bits is None.
        """
        check_is_fitted(self)
        return self.module_.max_active_neurons()

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

    def prune(
        self,
        X: ArrayLike,
        y: ArrayLike,
        n_prune_neurons_percentage: float,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """A smaller copy: the least important neurons of each hidden layer left out, then trained.

        Args:
            X, y, sample_weight: to train the copy on, as in `fit`; ``max_epochs`` epochs.
            n_prune_neurons_percentage: of each hidden layer's neurons, a fraction in [0, 1),
                whatever the name says; rounded down.

        Returns: a new fitted estimator.
        """
        check_is_fitted(self)
        fraction = n_prune_neurons_percentage
        check_number("n_prune_neurons_percentage", fraction, 1.0, zero=True)
        require("target", self.target, not isinstance(self.module_, LookupNet), _WHOLE)
        keep = []
        for importance in self.module_.neuron_importance():
            order = importance.argsort(stable=True, descending=True)
            kept = order[: len(importance) - int(fraction * len(importance))]
            keep.append(kept.sort().values)
        pruned = type(self)(**self.get_params())
        sizes = tuple(len(kept) for kept in keep)
        pruned.set_params(module__hidden_sizes=sizes, module__n_prune_neurons_percentage=0.0)
        pruned.__dict__.update(self._learned())
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
            if name in shared or name.startswith(PREFIXES)
        }

    def fit_benchmark(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[Self, _FloatEstimator]:
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
        check_is_fitted(self)
        estimator_files.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator in a file that `save` wrote.  Raises: FileFormatError."""
        estimator = load(path)
        if not isinstance(estimator, cls):
            raise InvalidType(mismatch("path", f"a {type(estimator).__name__}", cls.__name__))
        return estimator


class _FloatEstimator(Estimator):
    """The same estimator with nothing quantized: what quantization is measured against."""

    _module_class = FloatMLP
    _quantized = False

    def __init__(
        self,
        *,
        module__n_layers: int = 2,
        module__n_hidden_neurons_multiplier: float = 4,
        module__hidden_sizes: Sequence[int] | None = None,
        module__activation_function: Callable[[], nn.Module] = nn.ReLU,
        criterion: type[nn.Module] | None = None,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 0.02,
        max_epochs: int = 10,
        batch_size: int = 32,
        train_split: ValidSplit | None = None,
        callbacks: Callbacks | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 1,
        **parameters: object,
    ) -> None:
        self._set_parameters(locals(), parameters)

    def _build(self, n_features: int) -> nn.Module:
        sizes = self.module__hidden_sizes
        if sizes is None:
            hidden = max(1, round(self.module__n_hidden_neurons_multiplier * n_features))
            sizes = [hidden] * (self.module__n_layers - 1)
        activation = self.module__activation_function
        return FloatMLP(n_features, sizes, self._n_outputs, activation)


@stored
class FloatNeuralNetClassifier(Classifier, _FloatEstimator):
    """Float multilayer perceptron with the data handling and training of `NeuralNetClassifier`.

    Args: as `NeuralNetClassifier`, without bits and budgets.
    """

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities [n, classes]."""
        return softmax(self.infer(X).numpy())

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels [n]."""
        outputs = self.infer(X).numpy()
        return self.classes_[outputs.argmax(axis=1)]


@stored
class FloatNeuralNetRegressor(Regressor, _FloatEstimator):
    """Float multilayer perceptron with the data handling and training of `NeuralNetRegressor`.

    Args: as `NeuralNetRegressor`, without bits and budgets.
    """

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Targets [n] or [n, outputs]."""
        return self._targets(self.infer(X).numpy())


@stored
class NeuralNetClassifier(Classifier, _QuantizedEstimator):
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
        target: "encrypted": a network of another form, for the least encrypted work; see below.
        budget_s: with that target, about how many seconds of one core to train; counted in steps,
            so that equal arguments give equal networks.
        parameters: ``n_w_bits``, ``n_a_bits``, ``n_accum_bits``, ``power_of_two_scaling`` without
            their prefix, and prefixed parameters of skorch.

    With ``target="encrypted"`` the features are compared with chosen thresholds at the input door,
    each hidden neuron sums 7 of these bits with signs and looks the sum up, 3 bits wide, in a table
    of its own; no other lookup is needed (refqnn.training.lookups).  It learns from a float model
    (refqnn.training.teacher), and the number of lookups is chosen on training rows held out
    (refqnn.training.encrypted), unless ``module__hidden_sizes=(n,)`` gives it.
    ``module__table_bits`` is 3 unless set.  Any other ``module__`` name is refused, and the
    parameters of skorch have no effect.

    Attributes:
        network_: the integer `refqnn.Network`, from raw rows to labels or targets: standardisation
            lies in its input door (`refqnn.doors.Features`), labels in its output door.
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
        self, X: ArrayLike, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[Any]:
        """Labels [n]: of the largest integer output, the first of equals.  See `accumulators`."""
        acc = self.accumulators(X, fhe, execute_in_fhe=execute_in_fhe)
        return self.classes_[acc.argmax(axis=1)]

    def predict_proba(
        self, X: ArrayLike, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[np.float64]:
        """Probabilities [n, classes]: softmax of the dequantized outputs."""
        acc = self.accumulators(X, fhe, execute_in_fhe=execute_in_fhe)
        return self.post_processing(self.dequantize_output(acc))

    def post_processing(self, y_preds: ArrayLike) -> NDArray[np.float64]:
        """Probabilities [n, classes] of what `dequantize_output` gives."""
        return softmax(self._outputs(y_preds))

    def _output_door(self, door: Dequantizer) -> Predictions:
        """With the labels."""
        labels = self.classes_.astype(str) if self.classes_.dtype == object else self.classes_
        return Predictions(door.scale, door.offset, door.precision, labels=labels)


@stored
class NeuralNetRegressor(Regressor, _QuantizedEstimator):
    """Quantized neural network regressor that can run encrypted.

    Targets are standardised inside.

    Args: as `NeuralNetClassifier`; criterion None is the mean squared error.  Inputs get two bits
        more than activations where a weight of full size on the largest of them fits the
        accumulators, as at the defaults.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> model = NeuralNetRegressor(max_epochs=5, random_state=0, verbose=0)
    >>> model.fit(X, X[:, 0] + 0.5 * X[:, 1]).score(X, X[:, 0] + 0.5 * X[:, 1]) > 0.7
    True
    """

    _twin_class = FloatNeuralNetRegressor
    base_estimator_type = skorch.NeuralNetRegressor

    def predict(
        self, X: ArrayLike, fhe: Fhe = "disable", *, execute_in_fhe: bool | None = None
    ) -> NDArray[np.float64]:
        """Targets [n] or [n, outputs].  See `accumulators`."""
        acc = self.accumulators(X, fhe, execute_in_fhe=execute_in_fhe)
        return self.post_processing(self.dequantize_output(acc))

    def post_processing(self, y_preds: ArrayLike) -> NDArray[np.float64]:
        """Targets [n] or [n, outputs], as fit had them, of what `dequantize_output` gives."""
        y = self._outputs(y_preds)
        return y[:, 0] if self.target_ndim_ == 1 else y

    def _output_door(self, door: Dequantizer) -> Predictions:
        """With the scale and mean of the targets, in float64."""
        scale, offset = (np.float64(v) * self.target_scale_ for v in (door.scale, door.offset))
        mean = offset + self.target_mean_
        return Predictions(scale, mean, "float64", flat=self.target_ndim_ == 1)
