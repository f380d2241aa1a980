"""Modules that move values between their layers: the codes are those of the unmodified module."""

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
    QT,
    STRICT,
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
from refqnn.brevitas.movement import movements
from refqnn.errors import NotCovered

pytestmark = [pytest.mark.filterwarnings("ignore:Computing zero point:UserWarning")]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


# --- what a function moves ----------------------------------------------------------------------

MOVEMENTS: list[Callable[[Tensor], Any]] = [
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: torch.chunk(x, 2, 1),
    lambda x: x[:, 1:, ::2, :-1],
    lambda x: x[:, 2],
    lambda x: x[..., None],
    lambda x: F.pad(x, (1, 2, 0, 1), value=4.0),
    lambda x: F.pad(x, (1, 1, 0, 2), mode="reflect"),
    lambda x: F.unfold(x, 2, padding=1).unflatten(1, (4, 4)),
    lambda x: F.pixel_shuffle(x, 2),
    lambda x: F.pixel_unshuffle(x, 2),
    lambda x: F.channel_shuffle(x, 2),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(3, 7)),
    lambda x: torch.roll(x, 1, 2).flip(1),
    lambda x: x.repeat(1, 2, 1, 1),
    lambda x: x.expand(x.size(0), -1, -1, -1).unbind(2),
    lambda x: x.view(x.shape[0], -1),
]


@pytest.mark.parametrize("function", MOVEMENTS)
def test_movements_give_what_the_function_gives(function: Callable[[Tensor], Any]) -> None:
    found = movements(lambda tensors: function(*tensors), [(4, 4, 6)])
    assert not isinstance(found, str)
    x = torch.randn(3, 4, 4, 6)
    wanted = function(x)
    wanted = [wanted] if isinstance(wanted, Tensor) else wanted
    assert len(found) == len(wanted)
    for movement, y in zip(found, wanted):
        assert torch.equal(movement.of(x), y)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: 2 * x, "computes"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "computes"),
        (lambda x: F.avg_pool2d(x, (1, 3), stride=1), "computes"),  # of 1, 2, 3: 2
        (lambda x: x.roll(1, 0), "mixes samples"),
        (lambda x: x.flip(0), "mixes samples"),
        (lambda x: x[1:], "batch of 3"),
        (lambda x: x.reshape(-1), "batch of 3"),
        (lambda x: F.pad(F.pad(x, (1, 1), value=2.0), (1, 1)), "several constants"),
    ],
)
def test_functions_that_compute_or_mix_samples(function: Any, reason: str) -> None:
    found = movements(lambda tensors: function(*tensors), [(4, 4, 6)])
    assert isinstance(found, str)
    assert reason in found


# --- between layers -----------------------------------------------------------------------------


def conv(n_in: int, n_out: int, kernel: int = 1, **options: Any) -> nn.Module:
    options = {**STRICT_WEIGHT, "bias": False, **options}
    return qnn.QuantConv2d(n_in, n_out, kernel, **options)


def linear(n_in: int, n_out: int, **options: Any) -> nn.Module:
    return qnn.QuantLinear(n_in, n_out, **{**STRICT_WEIGHT, "bias": False, **options})


def moved(function: Callable[[Tensor], Tensor], n: int) -> nn.Module:
    """quantizer, function, 1x1 convolution of n channels, quantizer."""
    parts = {"q": signed(), "conv": conv(n, 3), "act": relu()}
    return Forward(lambda m, x: m.act(m.conv(function(m.q(x).value))), **parts)


@pytest.mark.parametrize("function", MOVEMENTS)
def test_codes_are_moved(function: Callable[[Tensor], Any]) -> None:
    several = not isinstance(function(torch.zeros(3, 4, 4, 6)), Tensor)

    def last(x: Tensor) -> Tensor:
        y = function(x)
        y = y[-1] if several else y
        return y.reshape(y.shape[0], y.shape[1], 1, -1)

    n = last(torch.zeros(3, 4, 4, 6)).shape[1]
    network = assert_exact(*ready(moved(last, n), 4, 4, 6))
    network.forward(network.quantize_input(np.zeros((1, 4, 4, 6))))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(m.q(x)).chunk(2, 1)[1].relu(),
        lambda m, x: F.channel_shuffle(m.conv(m.q(x)), 2),
        lambda m, x: m.conv(m.q(x)).permute(0, 2, 3, 1).relu(),
        lambda m, x: m.norm(m.conv(m.q(x))).permute(0, 2, 1, 3),
        lambda m, x: m.norm(m.conv(m.q(x)))[:, 1:, 1:].relu(),
        lambda m, x: m.norm(m.conv(m.q(x))).flip(1).repeat(1, 2, 1, 1),
        lambda m, x: F.pixel_shuffle(m.norm(m.conv(m.q(x))), 2),
        lambda m, x: m.norm(m.conv(m.q(x))).transpose(1, 3).transpose(3, 1) + 0.5,
        lambda m, x: m.norm(m.conv(m.q(x))).flatten(2)[..., None],
    ],
)
def test_accumulators_are_moved(function: Callable[..., Tensor]) -> None:
    """Chunks, shuffles, permutations between a layer (and its normalization) and its quantizer."""
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    parts = {"q": signed(), "conv": conv(4, 8), "norm": norm, "act": signed()}
    assert_exact(*ready(Forward(lambda m, x: m.act(function(m, x)), **parts), 4, 4, 6))


def test_channels_with_functions_of_their_own_move_as_codes() -> None:
    """A permutation behind a bias per channel: the thresholds stay with the channels."""
    parts = {
        "q": signed(),
        "conv": conv(4, 8, bias=True),
        "act": signed(),
        "out": linear(8, 2),
    }
    module = Forward(
        lambda m, x: m.out(m.act(m.conv(m.q(x)).permute(0, 2, 3, 1)).flatten(1, 2)), **parts
    )
    nn.init.normal_(module.conv.bias)
    network = assert_exact(*ready(module, 4, 2, 3))
    names = [node.name for node in network.nodes]
    assert names.index("act") < names.index("act.moved")
    assert network.shapes["act"] == (8, 2, 3)


def test_patches_become_tokens() -> None:
    parts = {"q": signed(), "fc": linear(16, 8), "act": relu(), "out": linear(8, 2)}
    module = Forward(
        lambda m, x: m.out(m.act(m.fc(m.q(F.unfold(x, 2, stride=2).transpose(1, 2))))), **parts
    )
    assert_exact(*ready(module, 4, 4, 6))


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_joins_along_every_axis(axis: int, join: Callable[..., Tensor]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = join([m.a(m.q(x)).value, m.a(-m.q(x)).value], axis)
        return m.act(m.conv(y.flatten(2)[..., None]))

    parts = {"q": signed(), "a": signed(3), "act": relu()}
    channels = {1: 8 if join is torch.cat else 2}.get(axis, 4)
    module = Forward(forward, **parts, conv=conv(channels, 3))
    assert_exact(*ready(module, 4, 2, 3))


def test_layers_of_brevitas_that_enlarge() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.conv(torch.cat([m.up(m.q(x)), m.nearest(m.q(x))], dim=1))

    module = Forward(
        forward,
        q=signed(),
        up=qnn.QuantUpsample(scale_factor=2),
        nearest=qnn.QuantUpsamplingNearest2d(scale_factor=2),
        conv=conv(8, 3, 3),
    )
    assert_exact(*ready(module, 4, 2, 3))


def test_modules_that_move() -> None:
    module = nn.Sequential(
        signed(),
        nn.ZeroPad2d((0, 1, 1, 0)),
        nn.PixelUnshuffle(2),
        nn.ChannelShuffle(4),
        nn.Upsample(scale_factor=2),
        nn.ReflectionPad2d(1),
        conv(16, 3, 3),
        relu(),
        nn.Unfold(2),
        nn.Unflatten(1, (4, 3)),
        nn.Flatten(),
        linear(180, 2),
    )
    assert_exact(*ready(module, 4, 3, 5))


@pytest.mark.parametrize("transposed", [qnn.QuantConvTranspose1d, qnn.QuantConvTranspose2d])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"dilation": 2, "stride": 3},
        {"groups": 2, "stride": 2},
    ],
)
def test_transposed_convolutions(transposed: Any, options: dict[str, Any]) -> None:
    axes = 1 if transposed is qnn.QuantConvTranspose1d else 2
    layer = transposed(4, 6, 3, **options, **{**STRICT, "bias_quant": bq.Int16Bias})
    assert_exact(*ready(nn.Sequential(signed(), layer, relu()), 4, *(5, 4)[:axes]))


def test_transposed_convolution_per_channel_with_zero_point() -> None:
    module = nn.Sequential(
        qnn.QuantIdentity(bq.ShiftedUint8ActPerTensorFloat, bit_width=4, **QT),
        qnn.QuantConvTranspose2d(
            4, 6, 3, stride=2, weight_quant=bq.Int8WeightPerChannelFloat, weight_bit_width=4
        ),
        qnn.QuantReLU(bit_width=3),
    )
    module, x = ready(module, 4, 3, 4)
    assert_explained(module, x + 0.5)


@pytest.mark.parametrize("bias", [bq.Int16Bias, None])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_linear_layers_on_tokens(bias: Any, shape: tuple[int, ...]) -> None:
    first = linear(4, 8, bias=True, bias_quant=bias)
    nn.init.normal_(first.bias)
    module = nn.Sequential(signed(), first, relu(), linear(8, 3), signed())
    assert_exact(*ready(module, *shape))


def test_linear_layers_on_tokens_at_the_end() -> None:
    network = assert_exact(*ready(nn.Sequential(signed(), linear(4, 3)), 5, 4))
    assert network.shapes[network.output] == (5, 3)
    first = linear(4, 3, bias=True)
    with pytest.raises(NotCovered, match="last axis"):
        from_brevitas(nn.Sequential(signed(), first).eval(), torch.zeros(1, 5, 4))


def test_arguments_by_name_and_results_by_key() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q = m.q(input=x)
        parts = {"low": torch.chunk(input=q, chunks=2, dim=1)[0]}
        y = F.max_pool2d(
            input=torch.cat(tensors=[parts["low"], parts["low"]], dim=1), kernel_size=2
        )
        return m.act(m.conv(y))

    plain = qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, bit_width=4)
    assert_exact(*ready(Forward(forward, q=plain, conv=conv(4, 3), act=relu()), 4, 4, 4))


# --- pooling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("axes", [1, 2])
def test_averages_of_windows_with_fewer_values(include: bool, ceil: bool, axes: int) -> None:
    kind = nn.AvgPool1d if axes == 1 else nn.AvgPool2d
    pool = kind(3, stride=2, padding=1, ceil_mode=ceil, count_include_pad=include)
    parts = {"q": signed(), "pool": pool, "act": signed(5)}
    module = Forward(lambda m, x: m.act(m.pool(m.q(x).value)), **parts)
    assert_exact(*ready(module, 3, *(6, 8)[:axes]))


def test_averages_of_windows_with_fewer_values_before_a_layer() -> None:
    parts = {"q": signed(), "act": signed(5), "fc": linear(3 * 9, 2)}
    module = Forward(
        lambda m, x: m.fc(
            m.act(F.avg_pool2d(m.q(x).value, 2, 2, 1, count_include_pad=False).flatten(1))
        ),
        **parts,
    )
    assert_exact(*ready(module, 3, 4, 4))


@pytest.mark.parametrize("size", [1, (2, 3), (3, 5), (None, 2)])
@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_adaptive_pooling_into_windows_of_several_sizes(kind: Any, size: Any) -> None:
    parts = {"q": signed(), "pool": kind(size), "act": signed(5)}
    module = Forward(lambda m, x: m.act(m.pool(m.q(x).value)), **parts)
    assert_exact(*ready(module, 3, 5, 7))


def test_adaptive_pooling_over_one_axis() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.q(x).value
        return m.act(F.adaptive_max_pool1d(y, 4)) + m.act(F.adaptive_avg_pool1d(y, 4))

    assert_exact(*ready(Forward(forward, q=signed(), act=signed(5)), 3, 7))


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: m.fc(m.q(x).value[:1].expand(3, -1)), "batch of 3"),
        (lambda m, x: m.fc(F.pad(m.q(x).value[:, 1:], (0, 1), value=0.3)), "fills with 0.3"),
        (lambda m, x: m.act(F.pad(m.fc(m.q(x)).relu(), (0, 1))), "quantize behind"),
        (lambda m, x: m.fc(m.q(x).value.roll(1, 0)), "mixes samples"),
    ],
)
def test_movements_that_are_refused(function: Any, message: str) -> None:
    module = Forward(function, q=signed(), fc=linear(4, 4), act=signed()).eval()
    with pytest.raises(NotCovered, match=message):
        from_brevitas(module, torch.zeros(3, 4))


# --- the general profile, with exact accumulation -----------------------------------------------

FLOAT_WEIGHT = {"weight_quant": bq.Int8WeightPerChannelFloat, "weight_bit_width": 4}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.act(m.conv(F.pixel_shuffle(m.q(x), 2))),
        lambda m, x: m.act(m.conv(torch.chunk(m.q(x), 4, 1)[1])),
        lambda m, x: m.act(m.conv(m.plain(x)[:, 1:2].flip(2).permute(0, 1, 3, 2))),
        lambda m, x: m.act(m.up(torch.stack([m.plain(x), m.plain(x)], 2)[:, :, 0])),
        lambda m, x: m.act(F.avg_pool2d(m.plain(x), 2, 1, 1, False, False)),
        lambda m, x: m.act(F.adaptive_avg_pool2d(m.plain(x), (2, 3))),
        lambda m, x: m.act(F.avg_pool1d(m.plain(x).flatten(2), 3, 2, 1, True)),
        lambda m, x: m.act(m.conv(F.adaptive_max_pool2d(m.plain(x), (2, 3))[:, :1])),
        lambda m, x: m.act(m.fc(m.plain(x).flatten(2))),
    ],
)
def test_any_scales(function: Callable[..., Tensor]) -> None:
    parts = {
        "q": qnn.QuantIdentity(bit_width=4, **QT),
        "plain": qnn.QuantIdentity(bit_width=4),
        "conv": conv(1, 5, **FLOAT_WEIGHT),
        "up": qnn.QuantConvTranspose2d(4, 6, 3, stride=2, **FLOAT_WEIGHT),
        "fc": linear(20, 6, bias=True, **FLOAT_WEIGHT),
        "act": qnn.QuantReLU(bit_width=3),
    }
    assert_explained(*ready(Forward(function, **parts), 4, 4, 5))
