"""What modules do with the float input before and while they quantize it, code for code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strict_parts import (
    STRICT_WEIGHT,
    Forward,
    assert_exact,
    assert_explained,
    ready,
    relu,
    signed,
)
from torch import Tensor, nn

from refqnn.brevitas import from_brevitas
from refqnn.errors import NotCovered
from refqnn.ops import Lookup
from refqnn.quantizers import PowerOfTwoQuantizer, ThresholdQuantizer


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


MEAN, DEVIATION = torch.tensor([0.1, 0.5, -0.3]), torch.tensor([0.3, 0.7, 2.1])


def channels(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, 1)


class Normalize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", channels(MEAN))
        self.register_buffer("deviation", channels(DEVIATION))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def conv(n_in: int = 3, **options: Any) -> nn.Module:
    return qnn.QuantConv2d(n_in, 4, 2, **{**STRICT_WEIGHT, "bias": False, **options})


PREPROCESSING: list[tuple[Callable[..., Tensor], int | None]] = [
    (lambda m, x: x / 255, None),
    (lambda m, x: (x - 0.45) / 0.226, None),
    (lambda m, x: x.clamp(-1.5, 1.5) * 2, None),
    (lambda m, x: torch.tanh(x), None),
    (lambda m, x: (x - channels(MEAN)) / channels(DEVIATION), 1),
    (lambda m, x: m.normalize(x), 1),
    (lambda m, x: m.norm(x), 1),
    (lambda m, x: m.norm(x / 3).flip(1), 1),
    (lambda m, x: m.norm(F.interpolate(x, scale_factor=2)), 1),
    (lambda m, x: F.pad(m.norm(x)[:, :, 1:], (1, 1, 0, 0)), 1),
    (lambda m, x: (x.transpose(1, 3) - MEAN[:, None].T).transpose(1, 3), 1),
    (lambda m, x: m.norm(x.flatten(2).unflatten(2, (4, 5))), 1),
]


@pytest.mark.parametrize(("before", "axis"), PREPROCESSING)
def test_float_arithmetic_before_the_quantizer(before: Any, axis: int | None) -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight, 0.3, 2.0)
    nn.init.normal_(norm.bias)
    parts = {"norm": norm, "normalize": Normalize(), "q": signed(), "conv": conv(), "act": relu()}
    module = Forward(lambda m, x: m.act(m.conv(m.q(before(m, x)))), **parts)
    network = assert_exact(*ready(module, 3, 4, 5))
    assert isinstance(network.input_quantizer, ThresholdQuantizer)
    assert network.input_quantizer.axis == axis


def test_channels_last() -> None:
    """A deviation for each channel of images with channels last: thresholds by the last axis."""
    module = Forward(
        lambda m, x: m.act(m.conv(m.q(m.normalize(x.permute(0, 3, 1, 2))))),
        **{"normalize": Normalize(), "q": signed(), "conv": conv(), "act": relu()},
    )
    network = assert_exact(*ready(module, 4, 5, 3))
    assert network.input_quantizer.axis == 3
    x = np.random.default_rng(0).normal(size=(50, 4, 5, 3)).astype(np.float32)
    normalized = module.normalize(torch.from_numpy(x).permute(0, 3, 1, 2))
    wanted = module.q(normalized).int().permute(0, 2, 3, 1)
    assert np.array_equal(network.quantize_input(x), wanted.numpy())


def test_movements_alone_leave_the_quantizer_as_it_is() -> None:
    module = Forward(lambda m, x: m.conv(m.q(x[:, None, 1:])), q=signed(), conv=conv(1))
    network = assert_exact(*ready(module, 4, 5))
    assert isinstance(network.input_quantizer, PowerOfTwoQuantizer)


def test_an_input_quantizer_with_a_scale_per_channel() -> None:
    quantizer = qnn.QuantIdentity(
        bq.Int8ActPerTensorFixedPoint,
        bit_width=4,
        scaling_per_output_channel=True,
        scaling_impl_type="const",
        scaling_init=torch.tensor([0.5, 2.0, 8.0]).reshape(1, 3, 1, 1),
        per_channel_broadcastable_shape=(1, 3, 1, 1),
        scaling_stats_permute_dims=(1, 0, 2, 3),
    )
    module = nn.Sequential(quantizer, nn.ReLU(), signed(5), conv())
    assert_exact(module.eval(), torch.randn(20, 3, 4, 4) * 4)


# --- functions that fall ------------------------------------------------------------------------


def falling(norm: Any) -> Any:
    """Gains of both signs."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1.5, -1.2, len(norm.weight)))
    nn.init.normal_(norm.bias)
    return norm


FALLING: list[Callable[..., Tensor]] = [
    lambda m, x: -x,
    lambda m, x: 1 - x,
    lambda m, x: x * -0.3,
    lambda m, x: (0.45 - x) / 0.226,
    lambda m, x: torch.sigmoid(-2 * x),
    lambda m, x: -m.normalize(x),
    lambda m, x: m.falling(x),
    lambda m, x: 1 - m.falling(x / 2),
    lambda m, x: m.falling(x.flip(1))[:, :, 1:],
    lambda m, x: -x.transpose(1, 3),
]


@pytest.mark.parametrize("before", FALLING)
@pytest.mark.parametrize("door", ["signed", "unsigned", "zero point"])
def test_functions_that_fall(before: Any, door: str) -> None:
    shifted = qnn.QuantIdentity(bq.ShiftedUint8ActPerTensorFloat, bit_width=4)
    doors = {"signed": signed(), "unsigned": relu(4), "zero point": shifted}
    parts = {"falling": falling(nn.BatchNorm2d(3)), "normalize": Normalize(), "q": doors[door]}
    last = 5 if before is FALLING[-1] else 3
    module = Forward(lambda m, x: m.conv(m.q(before(m, x))), conv=conv(last), **parts)
    module, x = ready(module, 3, 4, 5)
    network = assert_explained(module, torch.cat([x, special_floats(3, 4, 5)]))
    assert isinstance(network["q"].op, Lookup)


def special_floats(*shape: int) -> Tensor:
    """Zeros, the least, the greatest, both sides of the places where 4-bit codes begin."""
    near = np.arange(-16, 17, dtype=np.float32) / 2
    values = [near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))]
    every = np.concatenate([*values, np.float32([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38])])
    return torch.from_numpy(every).reshape(-1, 1, 1, 1).expand(-1, *shape).contiguous()


def test_a_falling_and_a_rising_reader_of_one_input() -> None:
    parts = {"a": signed(3), "b": signed(5), "p": conv(), "q": conv(), "act": signed(6)}
    module = Forward(lambda m, x: m.act(m.p(m.a(1 - x))) + m.act(m.q(m.b(x))), **parts)
    network = assert_exact(*ready(module, 3, 4, 4))
    x = np.random.default_rng(0).normal(size=(500, 3, 4, 4)).astype(np.float32) * 4
    trace = network.trace(network.quantize_input(x))
    assert np.array_equal(trace["b"], module.b(torch.from_numpy(x)).int().numpy())


# --- several quantizers -------------------------------------------------------------------------


def test_two_quantizers_of_one_input() -> None:
    parts = {"a": signed(3), "b": signed(5), "p": conv(), "q": conv(), "act": signed(6)}
    module = Forward(lambda m, x: m.act(m.p(m.a(x))) + m.act(m.q(m.b(x))), **parts)
    network = assert_exact(*ready(module, 3, 4, 4))
    assert isinstance(network.input_quantizer, ThresholdQuantizer)
    x = np.random.default_rng(0).normal(size=(500, 3, 4, 4)).astype(np.float32) * 4
    trace = network.trace(network.quantize_input(x))
    for name in "ab":
        wanted = getattr(module, name)(torch.from_numpy(x)).int().numpy()
        assert np.array_equal(trace[name], wanted)


def test_three_quantizers_behind_arithmetic_of_their_own() -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight, 0.3, 2.0)
    parts = {"a": signed(3), "b": relu(4), "c": signed(2), "norm": norm, "conv": conv()}
    module = Forward(
        lambda m, x: m.conv(m.a(x)) + m.conv(m.b(x / 3)) + m.conv(m.c(m.norm(x))), **parts
    )
    assert_exact(*ready(module, 3, 4, 4))


def test_a_shared_quantizer_of_two_halves() -> None:
    fc = qnn.QuantLinear(3, 4, bias=False, **STRICT_WEIGHT)
    module = Forward(lambda m, x: m.fc(m.q(x[:, :3])) + m.fc(m.q(x[:, 3:])), q=signed(), fc=fc)
    network = assert_exact(*ready(module, 6))
    assert isinstance(network.input_quantizer, PowerOfTwoQuantizer)


def test_several_inputs_in_one_tensor() -> None:
    """As a forward may slice them itself."""
    other = qnn.QuantLinear(2, 4, bias=False, **STRICT_WEIGHT)
    fc = qnn.QuantLinear(4, 4, bias=False, **STRICT_WEIGHT)
    parts = {"q": signed(3), "r": signed(6), "fc": fc, "other": other, "act": relu()}
    module = Forward(lambda m, x: m.act(m.fc(m.q(x[:, :4])) + m.other(m.r(x[:, 4:] * 3))), **parts)
    assert_exact(*ready(module, 6))


@pytest.mark.parametrize(
    "before",
    [
        lambda x: torch.where(x > 0, x, x * 0.25),
        lambda x: torch.maximum(x * 0.5, x - 1),
        lambda x: x + torch.relu(x),
    ],
)
def test_branches_of_the_input_that_rise_together(before: Any) -> None:
    module = Forward(
        lambda m, x: m.fc(m.q(before(x))),
        q=signed(),
        fc=qnn.QuantLinear(4, 2, bias=False, **STRICT_WEIGHT),
    )
    assert_exact(*ready(module, 4))


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (lambda m, x: x * x, "product|two quantized"),
        (lambda m, x: x.abs(), "neither rises nor falls"),
        (lambda m, x: (1 - x).square(), "neither rises nor falls"),
        (lambda m, x: F.gelu(-x), "neither rises nor falls"),
        (lambda m, x: x.cos(), "neither rises nor falls"),
        (
            lambda m, x: m.falling(x.transpose(1, 3)).transpose(1, 3),
            "rises and falls along a later axis",
        ),
        (lambda m, x: x - x.mean(), "not a function|two quantized|mean"),
        (lambda m, x: x * torch.linspace(1, 2, 20).reshape(4, 5), "several axes"),
        (lambda m, x: F.avg_pool2d(x, 2), "no quantizer stands between"),
    ],
)
def test_float_arithmetic_that_is_refused(before: Any, message: str) -> None:
    parts = {"q": signed(), "conv": conv(), "falling": falling(nn.BatchNorm2d(5))}
    module = Forward(lambda m, x: m.conv(m.q(before(m, x))), **parts)
    with pytest.raises(NotCovered, match=message):
        from_brevitas(module.eval(), torch.randn(2, 3, 4, 5))
