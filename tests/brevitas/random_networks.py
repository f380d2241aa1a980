"""Random Brevitas modules for the tests: MLP, CNN, depthwise, residual and moving networks.

Mixed precision; trained for some steps, or calibrated; some are pruned.

strict    power-of-two scales, no bias or one quantized on the accumulator's grid
general   any scales, float or quantized biases, batch normalization, smooth activations
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.inject.enum import ScalingPerOutputType
from brevitas.proxy.parameter_quant import DecoupledWeightQuantWithInputProxyFromInjector
from torch import Tensor, nn
from torch.nn.utils import prune

from refqnn.training import quantizers as ours

KINDS = ("mlp", "cnn", "depthwise", "residual", "moving")
PROFILES = ("strict", "general")


class Pick(random.Random):
    """The choices of one module; `quant_tensors`: whether its layers return QuantTensors."""

    quant_tensors = True

    @property
    def returns(self) -> dict[str, bool]:
        return {"return_quant_tensor": self.quant_tensors}


class PowerOfTwoBinary(bq.SignedBinaryWeightPerTensorConst):
    scaling_const = 0.25


class PowerOfTwoTernary(bq.SignedTernaryWeightPerTensorConst):
    scaling_const = 0.5


class PerChannelFixedPoint(bq.Int8WeightPerTensorFixedPoint):
    scaling_per_output_type = ScalingPerOutputType.CHANNEL


STRICT_WEIGHTS = (
    bq.Int8WeightPerTensorFixedPoint,
    PerChannelFixedPoint,
    ours.PowerOfTwoWeight,
    ours.PowerOfTwoWeightPerChannelRound,
    PowerOfTwoBinary,
    PowerOfTwoTernary,
)
GENERAL_WEIGHTS = (
    bq.Int8WeightPerTensorFloat,
    bq.Int8WeightPerChannelFloat,
    bq.Int8WeightPerTensorFixedPoint,
    bq.SignedBinaryWeightPerTensorConst,
    bq.SignedTernaryWeightPerTensorConst,
    bq.Int8AccumulatorAwareWeightQuant,
    bq.ShiftedUint8WeightPerTensorFloat,
)
ROUNDINGS = ("ROUND", "FLOOR", "CEIL", "ROUND_TO_ZERO")


def weight_options(pick: Pick, profile: str) -> dict[str, Any]:
    choices: tuple[Any, ...] = STRICT_WEIGHTS if profile == "strict" else GENERAL_WEIGHTS
    if not pick.quant_tensors:  # this one asks for the format of its input
        choices = tuple(c for c in choices if c is not bq.Int8AccumulatorAwareWeightQuant)
    quantizer = pick.choice(choices)
    options: dict[str, Any] = {"weight_quant": quantizer}
    if "Binary" not in quantizer.__name__ and "Ternary" not in quantizer.__name__:
        options["weight_bit_width"] = pick.randint(2, 8)
        if quantizer in (bq.Int8WeightPerTensorFixedPoint, bq.Int8WeightPerTensorFloat):
            options["weight_narrow_range"] = pick.random() < 0.5
    return options


def bias_options(pick: Pick, profile: str) -> dict[str, Any]:
    on_grid = (bq.Int8Bias, bq.Int16Bias, bq.Int32Bias)
    choices: list[Any] = ["none"]
    if pick.quant_tensors:  # else the scale of the accumulator is not known to the bias
        choices += on_grid
    if profile == "general":
        choices += ["float", "float", bq.Int8BiasPerTensorFloatInternalScaling]
    choice = pick.choice(choices)
    if choice == "none":
        return {"bias": False}
    return {"bias": True, "bias_quant": None if choice == "float" else choice}


def layer_options(pick: Pick, profile: str) -> dict[str, Any]:
    return {**weight_options(pick, profile), **bias_options(pick, profile)}


def activation_quantizer(pick: Pick, profile: str, signed: bool) -> dict[str, Any]:
    if profile == "strict":
        theirs = bq.Int8ActPerTensorFixedPoint if signed else bq.Uint8ActPerTensorFixedPoint
        own = ours.SignedAct if signed else ours.UnsignedAct
        if pick.random() < 0.3:
            exponent = pick.randint(-3, 1)
            return {"act_quant": own, "bit_width": pick.randint(2, 6), "exponent": exponent}
    else:
        theirs = bq.Int8ActPerTensorFloat if signed else bq.Uint8ActPerTensorFloat
    options: dict[str, Any] = {"act_quant": theirs, "bit_width": pick.randint(2, 8)}
    if pick.random() < 0.3:
        options["float_to_int_impl_type"] = pick.choice(ROUNDINGS)
    return options


def activation(pick: Pick, profile: str) -> list[nn.Module]:
    """What stands between an accumulator and the next layer."""
    kinds = ["relu", "relu", "identity", "hardtanh", "plain"]
    if profile == "general":
        kinds += ["sigmoid", "tanh", "plain", "shifted"]
    kind = pick.choice(kinds)
    if kind == "relu":
        return [qnn.QuantReLU(**activation_quantizer(pick, profile, False), **pick.returns)]
    if kind == "hardtanh":
        limits = {"min_val": -2.0, "max_val": 2.0}
        quantizer = activation_quantizer(pick, profile, True)
        return [qnn.QuantHardTanh(**quantizer, **limits, **pick.returns)]
    if kind == "sigmoid":
        return [qnn.QuantSigmoid(**activation_quantizer(pick, profile, False), **pick.returns)]
    if kind == "tanh":
        return [qnn.QuantTanh(**activation_quantizer(pick, profile, True), **pick.returns)]
    signed = qnn.QuantIdentity(**activation_quantizer(pick, profile, True), **pick.returns)
    if kind == "identity":
        return [signed]
    if kind == "shifted":
        width = pick.randint(3, 8)
        return [
            nn.ReLU(),
            qnn.QuantIdentity(bq.ShiftedUint8ActPerTensorFloat, bit_width=width, **pick.returns),
        ]
    plain: list[Any] = [nn.ReLU(), nn.LeakyReLU(0.125), nn.Hardtanh(-1.0, 1.0)]
    if profile == "general":
        plain += [nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.GELU(), nn.SiLU()]
        plain += [nn.Hardswish(), nn.Sigmoid(), nn.Tanh()]
    return [pick.choice(plain), signed]


def input_layer(pick: Pick, profile: str) -> nn.Module:
    if profile == "general" and pick.random() < 0.2:
        return qnn.QuantIdentity(bq.ShiftedUint8ActPerTensorFloat, bit_width=5, **pick.returns)
    return qnn.QuantIdentity(**activation_quantizer(pick, profile, True), **pick.returns)


def mlp(pick: Pick, profile: str) -> tuple[nn.Module, tuple[int, ...]]:
    sizes = [pick.choice((5, 16, 40)) for _ in range(pick.randint(2, 4))]
    parts: list[nn.Module] = [input_layer(pick, profile)]
    for n_in, n_out in itertools.pairwise(sizes):
        parts.append(qnn.QuantLinear(n_in, n_out, **layer_options(pick, profile)))
        if profile == "general" and pick.random() < 0.4:
            parts.append(normalization(nn.BatchNorm1d(n_out), pick))
        parts += activation(pick, profile)
        if pick.random() < 0.3:
            parts.append(nn.Dropout(0.5))
    parts.append(qnn.QuantLinear(sizes[-1], 3, **layer_options(pick, profile)))
    return nn.Sequential(*parts), (sizes[0],)


def normalization(norm: Any, pick: Pick) -> nn.Module:
    """Random statistics; some channels decrease."""
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def conv(pick: Pick, profile: str, n_in: int, n_out: int, **options: Any) -> nn.Module:
    return qnn.QuantConv2d(n_in, n_out, **options, **layer_options(pick, profile))


def cnn(pick: Pick, profile: str, depthwise: bool = False) -> tuple[nn.Module, tuple[int, ...]]:
    channels, size = pick.choice((1, 3)), pick.choice((7, 8, 10))
    parts: list[nn.Module] = [input_layer(pick, profile)]
    shape = (channels, size, size)

    def spatial() -> tuple[int, int]:
        with torch.no_grad():
            height, width = nn.Sequential(*parts).eval()(torch.zeros(1, *shape)).shape[2:]
        return height, width

    for _ in range(pick.randint(1, 2)):
        n_in, n_out = channels, channels * 2 if depthwise else pick.choice((3, 6))
        smallest = min(spatial())
        stride = pick.choice((1, 1, 2))
        parts.append(
            conv(
                pick,
                profile,
                n_in,
                n_out,
                kernel_size=pick.choice((2, 3, (1, 3))) if smallest >= 3 else 1,
                stride=stride,
                padding="same" if stride == 1 and pick.random() < 0.2 else pick.choice((0, 1)),
                dilation=pick.choice((1, 1, 2)) if smallest >= 5 else 1,
                groups=n_in if depthwise else 1,
            )
        )
        channels = n_out
        if profile == "general" and pick.random() < 0.4:
            parts.append(normalization(nn.BatchNorm2d(n_out), pick))
        parts += activation(pick, profile)
        pool = pick.random()
        if min(spatial()) >= 4:
            if pool < 0.3:
                parts.append(
                    nn.MaxPool2d(2, stride=pick.choice((1, 2)), padding=pick.choice((0, 1)))
                )
            elif pool < 0.5:
                kernel = 2 if profile == "strict" else pick.choice((2, 3))
                parts += [nn.AvgPool2d(kernel), activation(pick, profile)[-1]]
            elif pool < 0.6 and pick.quant_tensors:
                parts.append(qnn.TruncAvgPool2d(2, **trunc_options(pick)))
    parts.append(nn.Flatten())
    with torch.no_grad():
        features = nn.Sequential(*parts).eval()(torch.zeros(1, *shape)).shape[1]
    parts.append(qnn.QuantLinear(features, 4, **layer_options(pick, profile)))
    return nn.Sequential(*parts), shape


def trunc_options(pick: Pick) -> dict[str, Any]:
    return {"bit_width": pick.randint(4, 8), "float_to_int_impl_type": pick.choice(ROUNDINGS[:2])}


class Residual(nn.Module):
    """Two convolutions around a sum of two quantized branches."""

    def __init__(self, pick: Pick, profile: str, channels: int, size: int) -> None:
        super().__init__()
        self.quant = input_layer(pick, profile)
        self.stem = conv(pick, profile, 2, channels, kernel_size=3, padding=1)
        self.act = nn.Sequential(*activation(pick, profile))
        self.conv = conv(pick, profile, channels, channels, kernel_size=3, padding=1)
        norm = profile == "general" and pick.random() < 0.5
        self.norm = normalization(nn.BatchNorm2d(channels), pick) if norm else nn.Identity()
        # one quantizer for both operands: one scale
        self.shared = qnn.QuantIdentity(**activation_quantizer(pick, profile, True), **pick.returns)
        self.out = qnn.QuantReLU(**activation_quantizer(pick, profile, False), **pick.returns)
        self.concat = pick.random() < 0.3
        width = 2 * channels if self.concat else channels
        self.fc = qnn.QuantLinear(width * size * size, 3, **layer_options(pick, profile))

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.stem(self.quant(x)))
        branch, skip = self.shared(self.norm(self.conv(x))), self.shared(x)
        joined = torch.cat([branch, skip], 1) if self.concat else branch + skip
        y = self.out(joined)
        return self.fc(y.flatten(1))


def residual(pick: Pick, profile: str) -> tuple[nn.Module, tuple[int, ...]]:
    size = pick.choice((4, 5))
    return Residual(pick, profile, pick.choice((3, 4)), size), (2, size, size)


class Moving(nn.Module):
    """Preprocessing, movement of channels and positions, tokens, a transposed convolution."""

    def __init__(self, pick: Pick, profile: str, channels: int, size: int) -> None:
        super().__init__()
        pick.quant_tensors = False
        self.before = pick.choice((nn.Identity(), nn.BatchNorm2d(channels), nn.Tanh()))
        self.quant = input_layer(pick, profile)
        width = pick.choice((4, 8))
        self.conv = conv(pick, profile, channels, width, kernel_size=3, padding=1)
        enlarged = (nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.PixelUnshuffle(2))
        self.move = pick.choice((nn.ChannelShuffle(2), nn.ZeroPad2d((1, 0, 0, 2)), *enlarged))
        self.act = nn.Sequential(*activation(pick, profile))
        padded = isinstance(self.move, nn.ZeroPad2d)  # 0 has a code, but not every accumulator
        self.late = not padded and pick.random() < 0.5
        inside = self.move(torch.zeros(1, width, size, size)).shape[1]
        kernel, stride = pick.choice((2, 3)), pick.choice((1, 2))
        options = layer_options(pick, profile)
        self.up = qnn.QuantConvTranspose2d(inside, 6, kernel, stride=stride, **options)
        self.act2 = nn.Sequential(*activation(pick, profile))
        pools = (nn.AdaptiveMaxPool2d((3, 2)), nn.MaxPool2d(2), nn.Identity())
        self.pool = pick.choice(pools)
        self.tokens = qnn.QuantLinear(6, 5, **layer_options(pick, profile))
        self.act3 = nn.Sequential(*activation(pick, profile))
        self.out = qnn.QuantLinear(5, 3, **layer_options(pick, profile))

    def forward(self, x: Tensor) -> Any:
        x = self.conv(self.quant(self.before(x)))
        x = self.act(self.move(x)) if self.late else self.move(self.act(x))
        first, second = torch.chunk(self.pool(self.act2(self.up(x))), 2, 1)
        tokens = torch.cat([second, first.flip(3)], 1).flatten(2).transpose(1, 2)
        return self.out(self.act3(self.tokens(tokens))[:, 0])


def moving(pick: Pick, profile: str) -> tuple[nn.Module, tuple[int, ...]]:
    channels, size = pick.choice((1, 3)), pick.choice((4, 6))
    return Moving(pick, profile, channels, size), (channels, size, size)


def pruned(module: nn.Module, pick: Pick) -> None:
    """Some weights are held at 0, but where Brevitas makes NaN of a row of zeros."""
    for part in module.modules():
        if isinstance(part, (qnn.QuantLinear, qnn.QuantConv2d)):
            if isinstance(part.weight_quant, DecoupledWeightQuantWithInputProxyFromInjector):
                continue
            prune.random_unstructured(part, "weight", amount=pick.choice((0.2, 0.6)))


def build(kind: str, profile: str, seed: int) -> tuple[nn.Module, tuple[int, ...], Tensor]:
    """A module in evaluation mode, its input shape, and inputs to calibrate it with."""
    pick = Pick(f"{kind} {profile} {seed}")
    pick.quant_tensors = pick.random() < 0.75
    torch.manual_seed(seed)
    if kind == "mlp":
        module, shape = mlp(pick, profile)
    elif kind == "residual":
        module, shape = residual(pick, profile)
    elif kind == "moving":
        module, shape = moving(pick, profile)
    else:
        module, shape = cnn(pick, profile, depthwise=kind == "depthwise")
    spread_parameters(module, pick)
    x = torch.randn(64, *shape) * pick.choice((0.5, 1.0, 2.0))
    if kind == "moving" or seed % 4 == 3:  # what was drawn before for other seeds stays
        pruned(module, pick)
    module.train()
    if seed % 4 == 2:
        with torch.no_grad(), calibration_mode(module.eval()):
            module(x)
    else:
        train(module, x, steps=pick.choice((1, 1, 3)))
    return module.eval(), shape, x


def spread_parameters(module: nn.Module, pick: Pick) -> None:
    """Weights and biases that use their formats."""
    for part in module.modules():
        if isinstance(part, (qnn.QuantLinear, qnn.QuantConv2d)):
            with torch.no_grad():
                part.weight.mul_(pick.choice((1.0, 2.0)))
                if part.bias is not None:
                    part.bias.normal_(std=0.5)


def train(module: nn.Module, x: Tensor, steps: int) -> None:
    """A few steps of gradient descent; they also collect the statistics of the scales."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        output = module(x)
        output = getattr(output, "value", output)
        output.square().mean().backward()
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_().clamp_(-1.0, 1.0)
        optimizer.step()
