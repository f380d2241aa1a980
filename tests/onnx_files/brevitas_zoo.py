"""Brevitas modules for the agreement tests, calibrated on random data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as q
import torch
from torch import nn


def dense(weight: Any, act: Any, input_quant: Any, **layer: Any) -> nn.Module:
    keep = {"return_quant_tensor": True}
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=input_quant, bit_width=4, **keep),
        qnn.QuantLinear(6, 8, weight_quant=weight, weight_bit_width=3, **layer, **keep),
        nn.BatchNorm1d(8),
        qnn.QuantReLU(act_quant=act, bit_width=3, **keep),
        qnn.QuantLinear(8, 7, weight_quant=weight, weight_bit_width=2, **layer, **keep),
        qnn.QuantTanh(bit_width=4, **keep),
        qnn.QuantLinear(7, 4, weight_quant=weight, weight_bit_width=4, **layer),
    )


def power_of_two() -> nn.Module:
    return dense(
        q.Int8WeightPerTensorFixedPoint,
        q.Uint8ActPerTensorFixedPoint,
        q.Int8ActPerTensorFixedPoint,
        bias=True,
    )


def float_scales() -> nn.Module:
    return dense(
        q.Int8WeightPerChannelFloat, q.Uint8ActPerTensorFloat, q.Int8ActPerTensorFloat, bias=True
    )


def quantized_bias() -> nn.Module:
    return dense(
        q.Int8WeightPerTensorFloat,
        q.Uint8ActPerTensorFloat,
        q.Int8ActPerTensorFloat,
        bias=True,
        bias_quant=q.Int32Bias,
    )


class Residual(nn.Module):
    """Two convolutions, an addition, sigmoid, pooling, a softmax at the output."""

    def __init__(self) -> None:
        super().__init__()
        fixed = {"act_quant": q.Uint8ActPerTensorFixedPoint, "bit_width": 3}
        self.inp = qnn.QuantIdentity(act_quant=q.Int8ActPerTensorFixedPoint, bit_width=4)
        self.c1 = qnn.QuantConv2d(
            1, 4, 3, padding=1, bias=False, weight_quant=q.Int8WeightPerTensorFixedPoint,
            weight_bit_width=3,
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(4)
        self.a1 = qnn.QuantReLU(**fixed)
        self.c2 = qnn.QuantConv2d(
            4, 4, 3, padding=1, weight_quant=q.Int8WeightPerTensorFixedPoint, weight_bit_width=3
        )
        self.a2 = qnn.QuantIdentity(**fixed)
        self.a3 = qnn.QuantSigmoid(bit_width=3)
        self.pool = nn.MaxPool2d(2)
        self.fc = qnn.QuantLinear(64, 3, weight_quant=q.Int8WeightPerTensorFixedPoint)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.a1(self.bn1(self.c1(self.inp(x))))
        second = self.a2(self.c2(first))
        y = self.pool(self.a3(first + second))
        return self.fc(torch.flatten(y, 1))


def images() -> nn.Module:
    keep = {"return_quant_tensor": True}
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=q.Int8ActPerTensorFloat, bit_width=8, **keep),
        qnn.QuantConv2d(
            1, 4, 3, stride=2, bias_quant=q.Int32Bias, weight_quant=q.Int8WeightPerChannelFloat,
            weight_bit_width=4, **keep,
        ),
        qnn.QuantReLU(bit_width=4, **keep),
        nn.AvgPool2d(3),
        nn.Flatten(),
        qnn.QuantIdentity(act_quant=q.ShiftedUint8ActPerTensorFloat, bit_width=4, **keep),
        qnn.QuantLinear(4, 3, weight_quant=q.Int8WeightPerTensorFloat, weight_bit_width=4),
    )  # fmt: skip


def bipolar() -> nn.Module:
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=q.Int8ActPerTensorFloat, bit_width=8, return_quant_tensor=True),
        qnn.QuantLinear(6, 5, bias=False, weight_quant=q.SignedBinaryWeightPerTensorConst),
        nn.BatchNorm1d(5),
        qnn.QuantIdentity(act_quant=q.SignedBinaryActPerTensorConst),
        qnn.QuantLinear(5, 3, bias=False, weight_quant=q.SignedTernaryWeightPerTensorConst),
    )


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "power_of_two": (power_of_two, (6,)),
    "float_scales": (float_scales, (6,)),
    "quantized_bias": (quantized_bias, (6,)),
    "residual": (Residual, (1, 8, 8)),
    "images": (images, (1, 8, 8)),
    "bipolar": (bipolar, (6,)),
}
# Brevitas does not export these as QCDQ: binary quantizers at all, quantized biases with dynamo.
NOT_QCDQ = {"bipolar"}
QUANTIZED_BIAS = {"quantized_bias", "images"}


def module(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A calibrated module in evaluation mode, and samples."""
    make, shape = ZOO[name]
    torch.manual_seed(0)
    model = make().train()
    for _ in range(4):
        model(torch.randn(16, *shape))
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            with torch.no_grad():
                layer.weight.uniform_(-1.5, 1.5)
                layer.bias.normal_()
    model.eval()
    return model, torch.randn(300, *shape)


def plain(y: Any) -> torch.Tensor:
    return y.value if hasattr(y, "value") else y
