"""Modules of the strict profile (power-of-two scales), and the claims about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import torch
from torch import Tensor, nn

from refqnn.brevitas import exact_accumulators, from_brevitas, verify_against

QT = {"return_quant_tensor": True}
STRICT_WEIGHT = {"weight_quant": bq.Int8WeightPerTensorFixedPoint, "weight_bit_width": 4}
STRICT = {**STRICT_WEIGHT, "bias_quant": bq.Int16Bias}


def signed(bits: int = 4, **options: Any) -> nn.Module:
    return qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, bit_width=bits, **QT, **options)


def relu(bits: int = 3, **options: Any) -> nn.Module:
    return qnn.QuantReLU(bq.Uint8ActPerTensorFixedPoint, bit_width=bits, **QT, **options)


def ready(module: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    """Scales set from data, in evaluation mode, and samples."""
    x = torch.randn(80, *shape) * 2
    module.train()
    with torch.no_grad():
        module(x)
    return module.eval(), x


def assert_exact(module: nn.Module, x: Tensor) -> Any:
    """Unmodified module and network give the same codes; returns the network."""
    network = from_brevitas(module, x[:1])
    report = verify_against(module, network, x)
    assert report.codes > 0
    assert report.exact, str(report)
    return network


def assert_explained(module: nn.Module, x: Tensor) -> Any:
    """As the general profile claims; returns the network."""
    network = from_brevitas(module, x[:1])
    report = verify_against(module, network, x)
    assert report.ok, str(report)
    with exact_accumulators():
        report = verify_against(module, network, x)
    assert report.exact, str(report)
    return network


class Forward(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)
