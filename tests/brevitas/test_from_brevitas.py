"""Each layer kind that the importer covers, against the module itself; and each refusal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas.nn.utils import merge_bn
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
from torch.nn.utils import prune

from refqnn import load
from refqnn.brevitas import from_brevitas, verify_against
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch
from refqnn.formats import BIPOLAR
from refqnn.ops import Add, Conv2d, Linear, Lookup, MaxPool2d, SumPool2d
from refqnn.quantizers import AffineQuantizer, PowerOfTwoQuantizer, SymmetricQuantizer
from refqnn.requantize import Requantize
from refqnn.training import quantizers as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:Computing zero point:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


# --- weights, biases ----------------------------------------------------------------------------


class Binary(bq.SignedBinaryWeightPerTensorConst):
    scaling_const = 0.5


class Ternary(bq.SignedTernaryWeightPerTensorConst):
    scaling_const = 0.5


@pytest.mark.parametrize(
    ("quantizer", "codes"),
    [
        (Binary, {-1, 1}),
        (Ternary, {-1, 0, 1}),
        (ours.TernaryWeight, {-1, 0, 1}),
    ],
)
def test_binary_and_ternary_weights(quantizer: Any, codes: set[int]) -> None:
    fc = qnn.QuantLinear(6, 5, bias=False, weight_quant=quantizer)
    nn.init.normal_(fc.weight)
    module, x = ready(nn.Sequential(signed(), fc, relu()), 6)
    network = assert_exact(module, x)
    assert set(np.unique(network["1"].op.weight)) == codes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("narrow", [False, True])
def test_integer_weights_of_every_width(bits: int, narrow: bool) -> None:
    options = {"weight_bit_width": bits, "weight_narrow_range": narrow}
    fc = qnn.QuantLinear(6, 5, bias=False, weight_quant=bq.Int8WeightPerTensorFixedPoint, **options)
    nn.init.uniform_(fc.weight, -1.0, 1.0)
    assert_exact(*ready(nn.Sequential(signed(), fc, relu()), 6))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", [relu, signed])
def test_activations_of_every_width(bits: int, make: Callable[..., nn.Module]) -> None:
    fc = qnn.QuantLinear(6, 5, **STRICT)
    last = qnn.QuantLinear(5, 2, **STRICT)
    assert_exact(*ready(nn.Sequential(signed(5), fc, make(bits), last), 6))


@pytest.mark.parametrize(
    "quantizer",
    [
        bq.Int8WeightPerTensorFloat,
        bq.Int8WeightPerChannelFloat,
        bq.Int8AccumulatorAwareWeightQuant,
        bq.Int8AccumulatorAwareZeroCenterWeightQuant,
        bq.ShiftedUint8WeightPerTensorFloat,
        bq.ShiftedUint8WeightPerChannelFloat,
        bq.Int8WeightPerTensorFloatMSE,
        bq.Int8WeightNormL2PerChannelFixedPoint,
    ],
)
def test_weight_quantizers_of_the_general_profile(quantizer: Any) -> None:
    module = nn.Sequential(
        qnn.QuantIdentity(bit_width=4, **QT),
        qnn.QuantConv2d(3, 4, 3, weight_quant=quantizer, weight_bit_width=4),
        qnn.QuantReLU(bit_width=4, **QT),
    )
    assert_explained(*ready(module, 3, 6, 6))


@pytest.mark.parametrize("scaling", ["stats", "parameter", "const"])
def test_scaling_implementations(scaling: str) -> None:
    options: dict[str, Any] = {"weight_scaling_impl_type": scaling}
    if scaling == "const":
        options["weight_scaling_init"] = 1.0
    elif scaling == "parameter":
        options["weight_scaling_impl_type"] = "parameter_from_stats"
    fc = qnn.QuantLinear(6, 5, weight_bit_width=3, **options)
    assert_explained(*ready(nn.Sequential(qnn.QuantIdentity(**QT), fc, qnn.QuantReLU(**QT)), 6))


@pytest.mark.parametrize("bias", [bq.Int8Bias, bq.Int16Bias, bq.Int32Bias])
def test_biases_on_the_grid_become_integers(bias: Any) -> None:
    fc = qnn.QuantLinear(6, 5, **STRICT_WEIGHT, bias_quant=bias)
    network = assert_exact(*ready(nn.Sequential(signed(), fc, relu()), 6))
    assert network["1"].op.bias is not None


@pytest.mark.parametrize("bias", [None, bq.Int8BiasPerTensorFloatInternalScaling])
def test_biases_off_the_grid_become_part_of_the_thresholds(bias: Any) -> None:
    fc = qnn.QuantLinear(6, 5, weight_bit_width=4, bias_quant=bias)
    last = qnn.QuantLinear(5, 2, weight_bit_width=4, bias_quant=bias)
    module = nn.Sequential(qnn.QuantIdentity(**QT), fc, qnn.QuantReLU(**QT), last)
    network = assert_explained(*ready(module, 6))
    assert network["1"].op.bias is None
    assert network.output_dequantizer.offset.shape == (2,)


def test_pruned_weights_attached_and_permanent() -> None:
    def build() -> nn.Module:
        fc = qnn.QuantLinear(20, 6, bias=False, weight_quant=ours.PowerOfTwoWeight)
        prune.l1_unstructured(fc, "weight", amount=0.8)
        return nn.Sequential(signed(), fc, relu())

    module, x = ready(build(), 20)
    attached = assert_exact(module, x)
    assert (attached["1"].op.weight == 0).mean() >= 0.8
    prune.remove(module[1], "weight")
    permanent = assert_exact(module, x)
    assert np.array_equal(permanent["1"].op.weight, attached["1"].op.weight)


def test_weight_transforms_are_seen() -> None:
    fc = qnn.QuantLinear(20, 6, bias=False, weight_quant=ours.PowerOfTwoWeight)
    ours.add_weight_transform(fc, ours.RowSparsity(fc.weight, 3))
    network = assert_exact(*ready(nn.Sequential(signed(), fc, relu()), 20))
    assert ((network["1"].op.weight != 0).sum(axis=1) <= 3).all()


# --- the input quantizer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("ROUND", "half_even"),
        ("FLOOR", "floor"),
        ("CEIL", "ceil"),
        ("ROUND_TO_ZERO", "toward_zero"),
    ],
)
def test_rounding_of_the_input_quantizer(name: str, mode: str) -> None:
    fc = qnn.QuantLinear(6, 5, **STRICT)
    module, x = ready(nn.Sequential(signed(float_to_int_impl_type=name), fc), 6)
    network = assert_exact(module, torch.cat([x, torch.randint(-40, 40, (50, 6)) / 16]))
    assert isinstance(network.input_quantizer, PowerOfTwoQuantizer)
    assert network.input_quantizer.rounding.value == mode


def test_half_up_input_quantizer() -> None:
    quant = qnn.QuantIdentity(ours.SignedInput, bit_width=3, exponent=-1, **QT)
    module = nn.Sequential(quant, qnn.QuantLinear(6, 5, **STRICT)).eval()
    network = assert_exact(module, torch.randint(-40, 40, (50, 6)) / 8)
    assert network.input_quantizer.rounding.value == "half_up"


def test_dpu_rounding_is_refused_where_no_mode_expresses_it() -> None:
    fc = qnn.QuantLinear(6, 5, **STRICT)
    module, x = ready(nn.Sequential(signed(float_to_int_impl_type="DPU"), fc), 6)
    with pytest.raises(NotCovered, match=r"^0 .*no rounding mode"):
        from_brevitas(module, x)
    unsigned = nn.Sequential(relu(4, float_to_int_impl_type="DPU"), fc)
    module, x = ready(unsigned, 6)  # negative ties saturate: plain half-even
    assert_exact(module, x)


def test_float_scale_and_zero_point_of_the_input() -> None:
    fc = qnn.QuantLinear(6, 5, bias=False, weight_bit_width=4)
    module, x = ready(nn.Sequential(qnn.QuantIdentity(bit_width=4, **QT), fc), 6)
    assert isinstance(assert_explained(module, x).input_quantizer, SymmetricQuantizer)
    shifted = qnn.QuantIdentity(bq.ShiftedUint8ActPerTensorFloat, bit_width=4)
    module, x = ready(nn.Sequential(shifted, fc), 6)
    network = assert_explained(module, x)
    assert isinstance(network.input_quantizer, AffineQuantizer)
    assert int(network.input_quantizer.zero_point) != 0


def test_padding_is_the_zero_point() -> None:
    shifted = qnn.QuantIdentity(bq.ShiftedUint8ActPerTensorFloat, bit_width=4)
    conv = qnn.QuantConv2d(2, 3, 3, padding=1, bias=False, weight_bit_width=4)
    network = assert_explained(*ready(nn.Sequential(shifted, conv, qnn.QuantReLU()), 2, 4, 4))
    assert network["1"].op.pad_code == int(network.input_quantizer.zero_point) != 0


def test_binary_input_and_activation() -> None:
    class Sign(bq.SignedBinaryActPerTensorConst):
        scaling_const = 0.5

    module = nn.Sequential(
        qnn.QuantIdentity(Sign, **QT),
        qnn.QuantLinear(6, 5, **STRICT),
        qnn.QuantIdentity(Sign, **QT),
        qnn.QuantLinear(5, 2, **STRICT),
    ).eval()
    network = assert_exact(module, torch.randn(64, 6))
    assert network.input_format == BIPOLAR
    assert set(np.unique(network["2"].op.table)) == {-1, 1}


# --- layers -------------------------------------------------------------------------------------


def test_quantizers_inside_layers() -> None:
    act = {"input_quant": bq.Int8ActPerTensorFixedPoint, "input_bit_width": 4}
    out = {"output_quant": bq.Int8ActPerTensorFixedPoint, "output_bit_width": 5}
    module = nn.Sequential(
        qnn.QuantLinear(6, 5, **act, **out, **STRICT),
        nn.ReLU(),
        qnn.QuantLinear(5, 4, **act, **STRICT),
    )
    network = assert_exact(*ready(module, 6))
    names = [node.name for node in network.nodes]
    assert names == ["0", "0.output_quant", "2.input_quant", "2"]


@pytest.mark.parametrize("quant_tensors", [True, False])
def test_layers_that_return_plain_tensors(quant_tensors: bool) -> None:
    returns = {"return_quant_tensor": quant_tensors}
    module = nn.Sequential(
        qnn.QuantIdentity(bit_width=5, **returns),
        qnn.QuantConv2d(2, 3, 3, padding=1, weight_bit_width=4),
        qnn.QuantReLU(bit_width=4, **returns),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.AvgPool2d((1, 3)),
        qnn.QuantIdentity(bit_width=4, **returns),
        nn.Flatten(),
        qnn.QuantLinear(9, 3, weight_bit_width=4),
    )
    network = assert_explained(*ready(module, 2, 6, 6))
    kinds = [type(node.op) for node in network.nodes]
    assert kinds.index(MaxPool2d) < kinds.index(SumPool2d)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("options", [{"stride": (2, 1)}, {"dilation": 2}, {"padding": "same"}])
def test_convolutions(groups: int, options: dict[str, Any]) -> None:
    conv = qnn.QuantConv2d(4, 8, (3, 2), groups=groups, **options, **STRICT)
    network = assert_exact(*ready(nn.Sequential(signed(), conv, relu()), 4, 7, 6))
    assert isinstance(network["1"].op, Conv2d)


def test_strided_same_padding() -> None:
    conv = qnn.QuantConv2d(4, 8, (3, 2), stride=2, padding="same", **STRICT)
    assert_exact(*ready(nn.Sequential(signed(), conv, relu()), 4, 7, 6))


def test_conv1d_pooling_and_normalization_over_one_axis() -> None:
    module = nn.Sequential(
        signed(),
        qnn.QuantConv1d(2, 4, 3, stride=2, padding=1, **STRICT),
        nn.BatchNorm1d(4),
        relu(4),
        nn.MaxPool1d(2, ceil_mode=True),
        nn.AdaptiveAvgPool1d(1),
        signed(4),
        nn.Flatten(),
        qnn.QuantLinear(4, 2, **STRICT),
    )
    assert_exact(*ready(module, 2, 14))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 1, 1), (3, 2, 1), ((2, 3), 2, 0)])
def test_max_pooling(kernel: Any, stride: int, padding: int, ceil_mode: bool) -> None:
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    conv = qnn.QuantConv2d(2, 3, 2, **STRICT)
    assert_exact(*ready(nn.Sequential(signed(), pool, conv, relu(), pool), 2, 11, 10))


def test_max_pooling_of_accumulators_with_decreasing_channels() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.5, -0.5]))
    conv = qnn.QuantConv2d(2, 3, 2, bias=False, **STRICT_WEIGHT)
    assert_exact(*ready(nn.Sequential(signed(), conv, norm, nn.MaxPool2d(2), relu()), 2, 7, 7))


def test_decreasing_channels_negate_their_weights() -> None:
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.5, -0.5, 2.0]))
    fc = qnn.QuantLinear(5, 4, bias=False, **STRICT_WEIGHT)
    module, x = ready(nn.Sequential(signed(), fc, norm, relu()), 5)
    network = assert_exact(module, x)
    with torch.no_grad():
        weight = fc.quant_weight()
        codes = torch.round(weight.value / weight.scale).numpy()
    assert np.array_equal(network["1"].op.weight, codes * np.array([[1], [-1], [-1], [1]]))
    assert isinstance(network["3"].op, Requantize)


def test_decreasing_channels_of_a_shared_accumulator() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc = signed(), qnn.QuantLinear(5, 4, bias=False, **STRICT_WEIGHT)
            self.norm = nn.BatchNorm1d(4)
            self.act = signed()
            self.last = qnn.QuantLinear(4, 2, **STRICT)
            with torch.no_grad():
                self.norm.weight.neg_()

        def forward(self, x: Tensor) -> Tensor:
            acc = self.fc(self.quant(x))
            return self.last(self.act(acc) + self.act(self.norm(acc)))

    network = assert_exact(*ready(Two(), 5))
    assert isinstance(network["act@2"].op, Lookup)


@pytest.mark.parametrize("merged", [False, True])
def test_batch_normalization(merged: bool) -> None:
    conv, norm = qnn.QuantConv2d(2, 4, 3, weight_bit_width=4), nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    module, x = ready(
        nn.Sequential(qnn.QuantIdentity(**QT), conv, norm, qnn.QuantReLU(bit_width=4)), 2, 6, 6
    )
    if merged:
        merge_bn(conv, norm)
        module[2] = nn.Identity()
        module.eval()  # merging builds the weight quantizer anew
    assert_explained(module, x)


MONOTONE = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.ELU(),
    nn.SELU(),
    nn.CELU(),
    nn.Hardtanh(),
    nn.Hardsigmoid(),
    nn.Softplus(),
    nn.Softsign(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.PReLU(5),
]
OTHERS = [nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardshrink()]


def _name(module: nn.Module) -> str:
    return type(module).__name__


@pytest.mark.parametrize("activation", MONOTONE + OTHERS, ids=_name)
def test_activations_before_a_quantizer(activation: nn.Module) -> None:
    fc = qnn.QuantLinear(6, 5, weight_bit_width=4)
    quant = qnn.QuantIdentity(bit_width=6, **QT)
    module, x = ready(nn.Sequential(qnn.QuantIdentity(**QT), fc, activation, quant), 6)
    network = assert_explained(module, x)
    assert isinstance(
        network["3"].op, Requantize if activation in MONOTONE else (Lookup, Requantize)
    )


@pytest.mark.parametrize(
    "layer", [qnn.QuantReLU, qnn.QuantHardTanh, qnn.QuantSigmoid, qnn.QuantTanh, qnn.QuantHardSwish]
)
def test_quantized_activation_layers(layer: Any) -> None:
    limits = {"min_val": -1.0, "max_val": 1.0} if layer is qnn.QuantHardTanh else {}
    fc = qnn.QuantLinear(6, 5, weight_bit_width=4)
    module = nn.Sequential(qnn.QuantIdentity(**QT), fc, layer(bit_width=5, **limits))
    assert_explained(*ready(module, 6))


def test_functions_on_codes_become_tables() -> None:
    fc = qnn.QuantLinear(6, 5, **STRICT)
    module, x = ready(nn.Sequential(signed(), nn.ReLU(), fc, signed(), nn.ReLU(), fc_like(5)), 6)
    network = assert_exact(module, x)
    assert isinstance(network["1"].op, Lookup)


def fc_like(n: int) -> nn.Module:
    return qnn.QuantLinear(n, 2, **STRICT)


@pytest.mark.parametrize("rounding", ["ROUND", "FLOOR"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_truncated_average_pooling(rounding: str, adaptive: bool) -> None:
    options = {"bit_width": 4, "float_to_int_impl_type": rounding}
    pool = (
        qnn.TruncAdaptiveAvgPool2d(2, **options) if adaptive else qnn.TruncAvgPool2d(3, **options)
    )
    module = nn.Sequential(relu(4), pool, nn.Flatten(), qnn.QuantLinear(8, 3, **STRICT))
    network = assert_exact(*ready(module, 2, 6, 6))
    assert isinstance(network["1.sum"].op, SumPool2d)
    assert isinstance(network["1"].op, Requantize)


def test_average_pooling_with_padding_and_divisor() -> None:
    pools = [
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(2, padding=1, count_include_pad=False, divisor_override=8),
        nn.AdaptiveAvgPool2d((2, 1)),
    ]
    for pool in pools:
        module = nn.Sequential(signed(), pool, signed(), nn.Flatten())
        features = module(torch.zeros(1, 2, 4, 4)).shape[1]
        module.append(qnn.QuantLinear(features, 2, **STRICT))
        assert_exact(*ready(module, 2, 4, 4))


# --- free-form modules --------------------------------------------------------------------------


class FreeForm(nn.Module):
    """Functions, methods, sizes, a shared quantizer, a residual, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = signed()
        self.conv1 = qnn.QuantConv2d(2, 4, 3, padding=1, **STRICT)
        self.act1 = relu()
        self.blocks = nn.ModuleList([qnn.QuantConv2d(4, 4, 3, padding=1, **STRICT)])
        self.shared = signed()
        self.register_buffer("gain", torch.tensor([0.5, 1.0, 2.0, 4.0]).view(4, 1, 1))
        self.act2 = signed()
        self.fc = qnn.QuantLinear(8, 3, **STRICT)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        x = self.act1(self.conv1(self.quant(x)))
        for block in self.blocks:
            x = self.shared(block(x) * self.gain) + self.shared(x)
        x = F.max_pool2d(x, 2)
        x = torch.cat([x, x], dim=1)
        x = self.act2(torch.mean(x, (2, 3)).view(n, -1))
        x = F.dropout(x, 0.5, training=self.training)
        return self.fc(x.reshape(x.shape[0], -1))


def test_free_form_module() -> None:
    network = assert_exact(*ready(FreeForm(), 2, 4, 4))
    names = [node.name for node in network.nodes]
    assert names[:3] == ["conv1", "act1", "blocks.0"]
    assert {"shared", "shared@2", "act2", "fc"} <= set(names)


def test_own_modules_without_brevitas_layers() -> None:
    class Centre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.5, -0.25, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            if x.ndim != 2:  # what tracing cannot follow
                raise ValueError
            return (x - self.mean) * 0.5

    class Merge(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc, self.centre = signed(), qnn.QuantLinear(4, 3, **STRICT), Centre()
            self.act, self.merge, self.out = signed(), Merge(), relu()

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.centre(self.fc(self.quant(x))))
            return self.out(self.merge(x, x))

    network = assert_exact(*ready(Net(), 4))
    assert any(isinstance(node.op, Add) for node in network.nodes)


def test_residual_with_scales_that_differ_by_a_power_of_two() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant = qnn.QuantIdentity(ours.SignedInput, bit_width=4, exponent=-1)
            self.fc = qnn.QuantLinear(4, 4, bias=False, **STRICT_WEIGHT)
            self.act = qnn.QuantIdentity(ours.SignedAct, bit_width=4, exponent=1)
            self.out = qnn.QuantReLU(ours.UnsignedAct, bit_width=4, exponent=0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.quant(x)
            return self.out(self.act(self.fc(x)) - x)

    network = assert_exact(Net().eval(), torch.randn(64, 4) * 3)
    (add,) = (node.op for node in network.nodes if isinstance(node.op, Add))
    assert add.multipliers == (4, -1)


def test_elementwise_addition_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            fixed = {
                "input_quant": bq.Int8ActPerTensorFixedPoint,
                "output_quant": bq.Int8ActPerTensorFixedPoint,
                "input_bit_width": 4,
                "output_bit_width": 5,
            }
            self.quant = signed()
            self.add = qnn.QuantEltwiseAdd(**fixed, **QT)
            self.fc = qnn.QuantLinear(4, 3, **STRICT)

        def forward(self, x: Tensor) -> Tensor:
            x = self.quant(x)
            return self.fc(self.add(x, x))

    assert_exact(*ready(Net(), 4))


def test_training_networks_of_this_package() -> None:
    from refqnn.training.modules import QuantConvNet

    net = QuantConvNet((1, 8, 8), 4, channels=(4, 6), strides=(2, 1), n_a_bits=3)
    x = torch.randn(64, 1, 8, 8)
    net.calibrate(x)
    network = assert_exact(net.eval(), x)
    shifts = [n.op.shift for n in network.nodes if isinstance(n.op, Requantize)]
    assert all(shift is not None for shift in shifts)


def test_quantizers_with_one_scale_per_channel() -> None:
    per_channel = {
        "scaling_per_output_channel": True,
        "per_channel_broadcastable_shape": (1, 4, 1, 1),
        "scaling_stats_permute_dims": (1, 0, 2, 3),
    }
    module = nn.Sequential(
        qnn.QuantIdentity(**QT),
        qnn.QuantConv2d(2, 4, 3, weight_bit_width=4),
        qnn.QuantReLU(bit_width=4, **QT, **per_channel),
    )
    module, x = ready(module, 2, 6, 6)
    assert module[2](module[1](module[0](x))).scale.numel() == 4
    network = assert_explained(module, x)
    assert network.output_dequantizer.scale.shape == (4,)
    module.append(qnn.QuantConv2d(4, 2, 1, bias=False).eval())
    with pytest.raises(NotCovered, match=r"^3 .*one scale per channel"):
        from_brevitas(module, x)


def test_activations_without_a_quantizer() -> None:
    module = nn.Sequential(
        signed(),
        qnn.QuantLinear(5, 4, bias=False, **STRICT_WEIGHT),
        qnn.QuantReLU(act_quant=None),
        signed(),
    )
    assert_exact(*ready(module, 5))


@pytest.mark.parametrize("in_place", [nn.ReLU(inplace=True), nn.LeakyReLU(0.5, inplace=True)])
def test_functions_in_place(in_place: nn.Module) -> None:
    assert_exact(*ready(nn.Sequential(signed(), fc_like(5), in_place, signed()), 5))


# --- the network as a whole ---------------------------------------------------------------------


def test_predictions_equal_the_module(tmp_path: Any) -> None:
    module, x = ready(nn.Sequential(signed(), fc_like(6), relu(), fc_like(2)), 6)
    network = from_brevitas(module, x)
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.array_equal(network.predict(x.numpy()), expected)
    network.save(tmp_path / "net.refqnn")
    assert verify_against(module, load(tmp_path / "net.refqnn"), x).exact


def test_output_quantizer_last() -> None:
    module, x = ready(nn.Sequential(signed(), fc_like(6), signed(5)), 6)
    network = assert_exact(module, x)
    with torch.no_grad():
        expected = module(x).value.numpy()
    assert np.array_equal(network.predict(x.numpy()), expected)


def test_a_single_layer_module() -> None:
    act = {"input_quant": bq.Int8ActPerTensorFixedPoint}
    network = assert_exact(*ready(qnn.QuantLinear(6, 5, **act, **STRICT), 6))
    assert isinstance(network.nodes[-1].op, Linear)


def test_flattened_inputs() -> None:
    module, x = ready(nn.Sequential(nn.Flatten(), signed(), fc_like(12)), 3, 2, 2)
    network = assert_exact(module, x)
    assert network.input_shape == (3, 2, 2)


def test_flattening_between_accumulator_and_quantizer() -> None:
    conv = qnn.QuantConv2d(2, 3, 2, weight_quant=ours.PowerOfTwoWeightPerChannel)
    module = nn.Sequential(
        signed(), conv, nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(27), relu(), fc_like(27)
    )
    assert_explained(*ready(module, 2, 4, 4))


# --- refusals -----------------------------------------------------------------------------------


class MaximumScaling(nn.Module):
    """A scale that changes with every batch."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor, threshold: Tensor) -> Tensor:
        return x.detach().abs().max() / threshold + 0.1


class Dynamic(ours.SignedAct):
    scaling_impl = MaximumScaling


def _if_positive(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.quant(x)) if x.sum() > 0 else x


def _parts() -> dict[str, nn.Module]:
    return {"quant": signed(), "fc": fc_like(4), "act": signed()}


REFUSED: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("no input quantizer", lambda: nn.Sequential(fc_like_plain()), r"^0 .*no quantizer"),
    (
        "float layer",
        lambda: nn.Sequential(signed(), nn.Linear(4, 3), signed()),
        r"^1 \(Linear\): its weights are not quantized",
    ),
    (
        "unquantized weights",
        lambda: nn.Sequential(signed(), qnn.QuantLinear(4, 3, weight_quant=None)),
        r"^1 .*not quantized to integers",
    ),
    (
        "layer norm",
        lambda: nn.Sequential(signed(), fc_like(4), nn.LayerNorm(2), signed()),
        r"^2 \(LayerNorm\)",
    ),
    (
        "softmax",
        lambda: Forward(lambda m, x: m.act(F.softmax(m.fc(m.quant(x)), 1)), **_parts()),
        r"softmax.*not a function of one value",
    ),
    (
        "product of two",
        lambda: Forward(lambda m, x: m.act(m.quant(x) * m.quant(x)), **_parts()),
        r"^mul .*two quantized tensors",
    ),
    ("control flow", lambda: Forward(_if_positive, **_parts()), r"cannot be traced"),
    (
        "function without quantizer",
        lambda: nn.Sequential(signed(), fc_like(4), nn.Sigmoid(), fc_like_plain(2)),
        r"^3 .*float function \(2\)",
    ),
    (
        "function at the end",
        lambda: nn.Sequential(signed(), fc_like(4), nn.Hardtanh()),
        r"^2: .*behind the last layer",
    ),
    (
        "unequal scales",
        lambda: Forward(
            lambda m, x: m.out(m.a(m.quant(x)).value + m.b(m.quant(x)).value),
            quant=signed(),
            a=qnn.QuantIdentity(bit_width=4, narrow_range=True, **QT),
            b=qnn.QuantIdentity(bit_width=5, **QT),
            out=signed(),
        ),
        r"no small common unit",
    ),
    (
        "several outputs",
        lambda: Forward(lambda m, x: (m.fc(m.quant(x)), m.fc(m.quant(x))), **_parts()),
        r"returns 2 tensors",
    ),
    (
        "samples mixed",
        lambda: Forward(lambda m, x: m.act(m.quant(x).reshape(1, -1)), **_parts()),
        r"reshape.*batch of 3",
    ),
    (
        "stochastic rounding",
        lambda: nn.Sequential(signed(float_to_int_impl_type="stochastic_round"), fc_like(4)),
        r"^0\..*stochastic",
    ),
    (
        "delayed quantization",
        lambda: nn.Sequential(signed(quant_delay_steps=5), fc_like(4)),
        r"^0\..*delayed",
    ),
    (
        "dynamic scale",
        lambda: nn.Sequential(signed(), fc_like(4), qnn.QuantIdentity(Dynamic)),
        r"^2 .*depends on the data",
    ),
    (
        "float quantizer",
        lambda: nn.Sequential(signed(), fc_like(4), qnn.QuantIdentity(bq.Fp8e4m3ActPerTensorFloat)),
        r"^2 .*does not quantize to integers",
    ),
]


def fc_like_plain(n: int = 4) -> nn.Module:
    return qnn.QuantLinear(n, 2, bias=False, **STRICT_WEIGHT)


@pytest.mark.parametrize(("_label", "build", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refusals_name_the_layer_and_the_reason(
    _label: str, build: Callable[[], nn.Module], message: str
) -> None:
    module = build().eval()
    with pytest.raises(NotCovered, match=message):
        from_brevitas(module, torch.randn(2, 4))


def test_learned_rounding_is_refused() -> None:
    learned = {
        "weight_float_to_int_impl_type": "learned_round",
        "weight_learned_round_impl_type": "hard_sigmoid",
        "weight_learned_round_init": torch.zeros(2, 4),
    }
    module = nn.Sequential(signed(), qnn.QuantLinear(4, 2, bias=False, **STRICT_WEIGHT, **learned))
    with pytest.raises(NotCovered, match=r"^1\.weight_quant.*learned rounding"):
        from_brevitas(module.eval(), torch.randn(2, 4))


def test_what_a_trace_does_not_show_is_refused() -> None:
    module = nn.Sequential(signed(), fc_like(4), signed(), fc_like(2)).eval()
    module[1].register_forward_hook(lambda part, inputs, output: output + 1.0)
    with pytest.raises(NotCovered, match=r"^2: .*its trace does not show"):
        from_brevitas(module, torch.randn(20, 4))

    def overwrite(m: Any, x: Tensor) -> Tensor:
        x = m.fc(m.quant(x))
        y = m.act(x)
        x += 1.0
        return m.act(x) + y

    other = Forward(overwrite, **_parts()).eval()
    assert_exact(other, torch.randn(20, 4))


def test_training_mode_is_refused() -> None:
    module = nn.Sequential(signed(), fc_like(4))
    with pytest.raises(InvalidArgument, match="training mode"):
        from_brevitas(module, torch.randn(2, 4))


@pytest.mark.parametrize("other", [qnn.QuantIdentity, qnn.QuantReLU])
def test_another_module_in_training_mode_is_no_matter(other: type[nn.Module]) -> None:
    """Brevitas hands one clamp to all quantizers, and a mode set there is set everywhere."""
    module = nn.Sequential(signed(), fc_like(4)).eval()
    other().train()
    assert any(part.training for part in module.modules())
    from_brevitas(module, torch.randn(2, 4))


def test_missing_extra_names_the_command() -> None:
    code = (
        "import sys; sys.modules['brevitas'] = None\n"
        "from refqnn.errors import MissingExtra\n"
        "try:\n    import refqnn.brevitas\n"
        "except MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'refqnn[train]'" in done.stdout


def test_wrong_arguments() -> None:
    module = nn.Sequential(signed(), fc_like(4)).eval()
    with pytest.raises(InvalidType, match="module"):
        from_brevitas(lambda x: x, torch.randn(2, 4))  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch, match="example_input"):
        from_brevitas(module, torch.randn(4))
    with pytest.raises(InvalidArgument, match="the module itself fails"):
        from_brevitas(module, torch.randn(2, 5))
    with pytest.raises(InvalidType, match="example_input"):
        from_brevitas(module, np.array([["a", "b"]]))
    with pytest.raises(NotCovered, match="float64"):
        from_brevitas(module.double(), torch.randn(2, 4))
