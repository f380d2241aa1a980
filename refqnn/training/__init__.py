# ruff: noqa: E402 - the missing extra is named before anything else is imported
"""Quantization-aware training of networks that an encrypted circuit can follow exactly.

`estimators` holds the scikit-learn estimators, `encrypted` what they do for target="encrypted"
(`lookups` the network, `teacher` what it learns from), `modules` the networks under the others,
`quantizers` Brevitas quantizers for anyone's own model, `loop` a plain training loop and the
settings of the demonstration.
"""

from __future__ import annotations

from refqnn.errors import MissingExtra

try:
    import brevitas as _brevitas
    import sklearn as _sklearn
    import skorch as _skorch
    import torch as _torch
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingExtra("train", (error.name or "torch").split(".")[0]) from error
del _brevitas, _sklearn, _skorch, _torch

from refqnn.training.deployment import deploy, folded
from refqnn.training.estimators import (
    FloatNeuralNetClassifier,
    FloatNeuralNetRegressor,
    NeuralNetClassifier,
    NeuralNetRegressor,
)
from refqnn.training.loop import DemoConfig, accuracy, build, build_float, demo_config, fit, predict
from refqnn.training.modules import (
    FloatMLP,
    PowerOfTwoNorm,
    QuantConvNet,
    SparseQuantNeuralNetImpl,
)
from refqnn.training.posttraining import quantize_module
from refqnn.training.quantizers import HalfUpRoundSte, calibrate

__all__ = [
    "DemoConfig",
    "FloatMLP",
    "FloatNeuralNetClassifier",
    "FloatNeuralNetRegressor",
    "HalfUpRoundSte",
    "NeuralNetClassifier",
    "NeuralNetRegressor",
    "PowerOfTwoNorm",
    "QuantConvNet",
    "SparseQuantNeuralNetImpl",
    "accuracy",
    "build",
    "build_float",
    "calibrate",
    "demo_config",
    "deploy",
    "fit",
    "folded",
    "predict",
    "quantize_module",
]
