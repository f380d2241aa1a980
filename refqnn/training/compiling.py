"""What code written for Concrete ML calls: names of its estimators, and options of ``compile``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sklearn.utils.validation import check_is_fitted
from torch import nn

from refqnn.errors import InvalidArgument, InvalidType, mismatch

if TYPE_CHECKING:
    from concrete.fhe import Configuration

    from refqnn.fhe import Circuit

__all__ = ["ConcreteMLNames", "circuit_options"]


class _Elsewhere:
    """An attribute that has another name here, or none; whoever asks for it is told."""

    def __init__(self, use: str) -> None:
        self._use = use

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> object:
        if instance is None:
            return self
        raise AttributeError(mismatch(self._name, "a name of Concrete ML", self._use))


_FILES = "save(path) and load(path): one checked file"


class ConcreteMLNames:
    """Names that estimators of Concrete ML have."""

    module_: nn.Module

    if TYPE_CHECKING:

        @property
        def fhe_circuit(self) -> Circuit: ...

    dump, dumps, dump_dict, load_dict = (_Elsewhere(_FILES) for _ in range(4))
    get_sklearn_params = _Elsewhere("get_params()")
    n_classes_, target_classes_ = _Elsewhere("len(classes_)"), _Elsewhere("classes_")

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has been called."""
        return hasattr(self, "module_")

    @property
    def is_compiled(self) -> bool:
        """Whether there is an `fhe_circuit`."""
        return hasattr(self, "fhe_circuit")

    @property
    def base_module(self) -> nn.Module:
        """The trained torch module.  Raises: NotFittedError."""
        check_is_fitted(self)
        return self.module_

    base_module_to_compile = base_module

    def check_model_is_fitted(self) -> None:
        """Raises: NotFittedError before `fit`."""
        check_is_fitted(self)

    def check_model_is_compiled(self) -> None:
        """Raises: NotCompiled before `compile`; NotFittedError."""
        self.fhe_circuit  # noqa: B018


# Of a Configuration: what every circuit has, and what has another name here.
_FIXED = {"compress_input_ciphertexts": True, "dump_artifacts_on_unexpected_failures": False}
_OURS = {"compress_evaluation_keys": "compress_keys", "parameter_selection_strategy": "parameters"}


def circuit_options(
    configuration: Configuration | None, options: Mapping[str, object]
) -> dict[str, object]:
    """Options of `refqnn.fhe.compile`; from a Configuration those that differ from its defaults.

    Raises: InvalidType; InvalidArgument that names every option which has no meaning here.
    """
    from concrete.fhe import Configuration

    from refqnn.fhe import compile
    from refqnn.fhe.backend import NEEDLESS, OPTIONS

    found: dict[str, object] = {}
    if configuration is not None:
        if not isinstance(configuration, Configuration):
            got = type(configuration).__name__
            raise InvalidType(mismatch("configuration", got, "a Configuration of Concrete"))
        usual = vars(Configuration())
        for name, value in vars(configuration).items():
            if value != usual[name] and value is not _FIXED.get(name):
                found[_OURS.get(name, name)] = getattr(value, "value", value)
    found.update(options)
    known = {*inspect.signature(compile).parameters, *OPTIONS} - {"network", "options"}
    wrong = [
        mismatch(name, repr(value), NEEDLESS.get(name, "one of " + ", ".join(sorted(known))))
        for name, value in found.items()
        if name not in known
    ]
    if wrong:
        raise InvalidArgument("; ".join(wrong))
    return found
