"""The networks to train: what they compute in evaluation is integers, exactly."""

# ruff: noqa: E402 - the extra may be absent

from __future__ import annotations

import copy
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")

from brevitas.core.function_wrapper.ops_ste import RoundSte
from torch import nn

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch
from refqnn.training import blocks
from refqnn.training import modules as m
from refqnn.training.loop import fit


def blobs(rows: int = 120, features: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).to(torch.int64) + (x[:, 2] > 0.8).to(torch.int64)
    return x, y


def trained(epochs: int = 8, seed: int = 0, **options: Any) -> m.SparseQuantNeuralNetImpl:
    x, y = blobs()
    torch.manual_seed(seed)
    net = m.SparseQuantNeuralNetImpl(4, 3, 3, **{"n_hidden_neurons_multiplier": 2, **options})
    fit(net, x, y, epochs=epochs, batch_size=16, lr=0.02, seed=seed)
    return net


def scale_of(quant: nn.Module) -> Fraction:
    scaling = quant.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    return Fraction(float(scaling.scale))


def integer_layers(net: blocks.QuantNet) -> list[dict[str, Any]]:
    """Weights, constants (in accumulator units, exact), shift and format of every layer."""
    layers = []
    for block in net.blocks():
        weight = block.linear.quant_weight()
        codes = torch.round(weight.value / weight.scale).to(torch.int64).numpy()
        unit = scale_of(block.input_quant) * Fraction(float(weight.scale))
        layer: dict[str, Any] = {"weight": codes, "unit": unit}
        if isinstance(block.norm, m.PowerOfTwoNorm):
            norm = block.norm
            shift = norm.shift(norm.running_mean).detach()
            layer["constant"] = [Fraction(float(s)) / unit for s in shift]
            step = scale_of(block.quant) / (unit * Fraction(float(norm.gain)))
            assert step.denominator == 1
            assert step.numerator & (step.numerator - 1) == 0
            layer["shift"] = step.numerator.bit_length() - 1
        else:
            bias = torch.round(block.linear.bias.double() / float(unit)).to(torch.int64)
            layer["constant"] = [Fraction(int(b)) for b in bias]
        layers.append(layer)
    return layers


def replay(net: blocks.QuantNet, x: torch.Tensor, max_code: int) -> np.ndarray:
    """The network in Python integers and fractions, from the input codes on."""
    layers = integer_layers(net)
    codes = net.blocks()[0].input_quant(x).int().tolist()
    outputs = []
    for row in codes:
        for layer in layers[:-1]:
            accs = [
                sum(w * c for w, c in zip(weights.tolist(), row, strict=True))
                for weights in layer["weight"]
            ]
            half = Fraction(1, 2)
            row = [
                min(max(math.floor((acc + b) / 2 ** layer["shift"] + half), 0), max_code)
                for acc, b in zip(accs, layer["constant"], strict=True)
            ]
        last = layers[-1]
        outputs.append(
            [
                float(
                    (sum(w * c for w, c in zip(ws.tolist(), row, strict=True)) + b) * last["unit"]
                )
                for ws, b in zip(last["weight"], last["constant"], strict=True)
            ]
        )
    return np.array(outputs, dtype=np.float32)


# --- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_w_bits": 2, "n_a_bits": 2, "quant_narrow": True},
        {"n_w_bits": 4, "n_a_bits": 3, "n_input_bits": 5},
        {"fan_in": 3, "table_bits": 4},
    ],
)
def test_evaluation_equals_its_integer_replay(options: dict[str, Any]) -> None:
    net = trained(**options)
    x, _ = blobs(60, seed=1)
    with torch.no_grad():
        outputs = net(x).numpy()
    assert np.array_equal(outputs, replay(net, x, 2 ** options.get("n_a_bits", 3) - 1))


def hidden_codes(block: m.Block, acc: torch.Tensor, unit: float) -> torch.Tensor:
    """The module's own float32 function from accumulators ``[N]`` to codes ``[N, channels]``."""
    x = (acc.to(torch.float32) * unit).unsqueeze(1).expand(-1, block.norm.channels)
    with torch.no_grad():
        out = block.quant(block.norm(x))
    return torch.round(out.value / out.scale).to(torch.int64)


@pytest.mark.parametrize("options", [{}, {"n_w_bits": 2, "n_a_bits": 2}, {"table_bits": 4}])
def test_thresholds_are_a_power_of_two_grid(options: dict[str, Any]) -> None:
    net = trained(**options)
    for block, layer in zip(net.blocks()[:-1], integer_layers(net), strict=False):
        acc = torch.arange(-600, 601)
        codes = hidden_codes(block, acc, float(layer["unit"]))
        r = layer["shift"]
        assert bool((codes.diff(dim=0) >= 0).all())
        for channel in range(codes.shape[1]):
            column = codes[:, channel]
            thresholds = [
                int(acc[int((column < k).sum())]) for k in range(1, int(column.max()) + 1)
            ]
            assert int(column.max()) == 2 ** options.get("n_a_bits", 3) - 1
            assert {b - a for a, b in pairwise(thresholds)} <= {2**r}


def test_no_accumulator_value_is_a_tie() -> None:
    """Half-up and half-even codes agree on every accumulator, so any nearest rounding will do."""
    net = trained(table_bits=4)
    shifts = [layer["shift"] for layer in integer_layers(net)[:-1]]
    assert max(shifts) >= 1
    for block, layer in zip(net.blocks()[:-1], integer_layers(net), strict=False):
        acc = torch.arange(-600, 601)
        half_up = hidden_codes(block, acc, float(layer["unit"]))
        proxy = block.quant.act_quant.fused_activation_quant_proxy.tensor_quant
        proxy.int_quant.float_to_int_impl = RoundSte()
        assert torch.equal(hidden_codes(block, acc, float(layer["unit"])), half_up)


def test_ranges_contain_every_accumulator_and_are_reached() -> None:
    net = trained()
    ranges = net.accumulator_ranges()
    for index, layer in enumerate(integer_layers(net)):
        low, high = (-4, 3) if index == 0 else (0, 7)
        assert ranges[index].shift == layer.get("shift")
        for weights, b, lo, hi in zip(
            layer["weight"], layer["constant"], ranges[index].lo, ranges[index].hi, strict=True
        ):
            largest = sum(int(w) * (high if w > 0 else low) for w in weights)
            smallest = sum(int(w) * (low if w > 0 else high) for w in weights)
            assert int(hi) == math.floor(largest + b)
            assert int(lo) == math.floor(smallest + b)


def test_range_widths() -> None:
    found = m.AccumulatorRange(torch.tensor([-8, 0]), torch.tensor([7, 3]), shift=1)
    assert (found.signed_bits, found.span_bits) == (4, 4)
    assert found.table_bits == 4  # (7 + 1) >> 1 = 4 down to (-8 + 1) >> 1 = -4: nine values
    found = m.AccumulatorRange(torch.tensor([-9]), torch.tensor([-3]), shift=None)
    assert (found.signed_bits, found.span_bits) == (5, 3)


# --- the normalization --------------------------------------------------------------------------


def test_norm_centres_and_scales_by_a_power_of_two() -> None:
    norm = m.PowerOfTwoNorm(3)
    norm.step.fill_(1.0)
    x = torch.round(20.0 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) + 7.0)
    norm.observing = True
    norm(x)
    norm.observing = False
    assert float(norm.gain) in (1 / 16, 1 / 32)
    y = norm.train()(x)
    assert float(y.detach().mean(dim=0).abs().max()) < float(norm.gain)
    assert torch.equal(y / norm.gain, torch.round(y / norm.gain))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_norm_shift_lies_on_its_grid(offset: float) -> None:
    norm = m.PowerOfTwoNorm(50)
    norm.step.fill_(0.25)
    norm.gain.fill_(0.5)
    norm.offset.fill_(offset)
    with torch.no_grad():
        norm.bias.normal_()
        norm.running_mean.normal_()
    units = norm.shift(norm.running_mean) / 0.25 - offset
    assert torch.equal(units, torch.round(units))
    exact = norm.bias / 0.5 - norm.running_mean
    assert bool(((norm.shift(norm.running_mean) - exact).abs() <= 0.125).all())


def test_frozen_norm_trains_on_the_function_of_evaluation() -> None:
    net = trained()
    x, _ = blobs(40, seed=3)
    expected = net.eval()(x)
    net.train()
    m.set_normalization_frozen(net)
    assert torch.equal(net(x), expected)
    m.set_normalization_frozen(net, False)
    assert not torch.equal(net(x), expected)


def test_norm_gradient_reaches_input_and_bias() -> None:
    norm = m.PowerOfTwoNorm(2)
    x = torch.randn(8, 2, requires_grad=True)
    (norm(x) ** 2).sum().backward()
    assert float(norm.bias.grad.abs().max()) > 0
    assert float(x.grad.abs().max()) > 0


# --- the perceptron -----------------------------------------------------------------------------


def test_sizes_follow_the_multiplier() -> None:
    net = m.SparseQuantNeuralNetImpl(5, 3, 2, n_hidden_neurons_multiplier=4)
    assert [tuple(b.linear.weight.shape) for b in net.blocks()] == [(20, 5), (20, 20), (2, 20)]


def test_one_layer_is_a_linear_model() -> None:
    net = m.SparseQuantNeuralNetImpl(4, 1, 3)
    x, y = blobs()
    fit(net, x, y, epochs=2)
    assert len(net.blocks()) == 1
    assert net.blocks()[0].norm is None


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Hardtanh, nn.Softplus, nn.GELU],
)
@pytest.mark.parametrize("power_of_two", [True, False])
def test_any_activation_trains(activation: type[nn.Module], power_of_two: bool) -> None:
    net = trained(epochs=3, activation_function=activation, power_of_two_scaling=power_of_two)
    x, _ = blobs(20, seed=2)
    quant = net.blocks()[0].quant
    negative = activation in (nn.Tanh, nn.ELU, nn.LeakyReLU, nn.Hardtanh, nn.GELU)
    assert quant.act_quant.is_signed == negative
    assert bool(torch.isfinite(net(x)).all())
    for block in net.blocks():
        for scale in [float(scale_of(block.input_quant)), block.linear.quant_weight().scale.item()]:
            assert not power_of_two or math.frexp(scale)[0] == 0.5


def test_signedness_can_be_forced() -> None:
    net = m.SparseQuantNeuralNetImpl(4, 2, 2, quant_signed=True)
    assert net.blocks()[0].quant.act_quant.is_signed


def test_row_budget_holds_after_training() -> None:
    net = trained(fan_in=3)
    for block in net.blocks()[:-1]:
        assert int((block.linear.quant_weight().int() != 0).sum(dim=1).max()) <= 3
    assert int((net.blocks()[-1].linear.quant_weight().int() != 0).sum(dim=1).max()) > 3


def test_a_budget_for_each_row_holds_after_training() -> None:
    budgets = [1] * 5 + [2] * 3
    net = trained(fan_in=(budgets, None, None), table_bits=4)
    first = net.blocks()[0].linear.quant_weight().int()
    assert bool(((first != 0).sum(dim=1) <= torch.tensor(budgets)).all())
    assert int((first[:5] != 0).sum(dim=1).max()) == 1


def test_pruned_neurons_no_longer_matter() -> None:
    net = trained()
    net.enable_pruning(0.5)
    net.make_pruning_permanent()
    first, second, _ = net.blocks()
    silent = (first.linear.weight == 0).all(dim=1)
    assert int(silent.sum()) == 4
    assert bool((second.linear.weight[:, silent] == 0).all())
    x, _ = blobs(30, seed=5)
    before = net(x)
    with torch.no_grad():
        first.norm.bias[silent] += 100.0
    assert torch.equal(net(x), before)
    with pytest.raises(InvalidArgument, match="fraction"):
        net.enable_pruning(1.0)


def test_shift_limits_hold() -> None:
    norm = m.PowerOfTwoNorm(3)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    norm.limit_shift(torch.tensor([-4.0, -4.0, -4.0]), torch.tensor([5.0, 5.0, 5.0]))
    assert norm.shift(norm.running_mean).tolist() == [-4.0, 0.0, 5.0]
    with pytest.raises(ShapeMismatch, match="lowest"):
        norm.limit_shift(torch.zeros(2), torch.zeros(3))
    with pytest.raises(InvalidArgument, match="lowest"):
        norm.limit_shift(torch.ones(3), torch.zeros(3))


def test_table_bits_hold_whatever_the_weights_become() -> None:
    net = trained(table_bits=4, fan_in=3)
    assert all(found.table_bits <= 4 for found in net.accumulator_ranges()[:-1])
    with torch.no_grad():
        for block in net.blocks():
            blocks.raw_weight(block.linear).fill_(-9.0)
    assert all(found.table_bits <= 4 for found in net.accumulator_ranges()[:-1])


def test_units_touched_is_the_most_over_all_starts() -> None:
    for span in range(40):
        for shift in range(5):
            touched = max(((lo + span) >> shift) - (lo >> shift) + 1 for lo in range(2**shift))
            assert blocks.units_touched(span, shift) == touched


def test_state_dict_and_copy_give_the_same_bits() -> None:
    net = trained(fan_in=3)
    x, _ = blobs(50, seed=4)
    other = m.SparseQuantNeuralNetImpl(4, 3, 3, n_hidden_neurons_multiplier=2, fan_in=3).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_a_tracer_sees_a_flat_chain() -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return not isinstance(module, nn.Sequential)

    graph = Leaves().trace(trained(epochs=1))
    kinds = [node.op for node in graph.nodes]
    assert kinds == ["placeholder"] + ["call_module"] * 8 + ["output"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"input_dim": 0}, InvalidArgument),
        ({"input_dim": 2.5}, InvalidType),
        ({"n_layers": 0}, InvalidArgument),
        ({"n_outputs": 0}, InvalidArgument),
        ({"n_w_bits": 1}, InvalidArgument),
        ({"n_w_bits": 9}, InvalidArgument),
        ({"n_w_bits": True}, InvalidType),
        ({"n_a_bits": 0}, InvalidArgument),
        ({"n_a_bits": 1, "activation_function": nn.Tanh}, InvalidArgument),
        ({"n_input_bits": 1}, InvalidArgument),
        ({"n_accum_bits": 1}, InvalidArgument),
        ({"n_prune_neurons_percentage": 1.0}, InvalidArgument),
        ({"n_hidden_neurons_multiplier": 0}, InvalidArgument),
        ({"hidden_sizes": (8, 0)}, InvalidArgument),
        ({"fan_in": (1, 2, 3)}, ShapeMismatch),
        ({"fan_in": 0}, InvalidArgument),
        ({"fan_in": ((1, 2, 3), None)}, ShapeMismatch),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        m.SparseQuantNeuralNetImpl(**{"input_dim": 4, "n_layers": 2, "n_outputs": 3, **options})


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.zeros((4, 4), dtype=np.float32), InvalidType),
        (torch.zeros(4, 4, dtype=torch.float64), InvalidType),
        (torch.zeros(1, 4), InvalidArgument),
        (torch.full((4, 4), math.nan), InvalidArgument),
    ],
)
def test_calibrate_refuses(x: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="x"):
        m.SparseQuantNeuralNetImpl(4, 2, 3).calibrate(x)


# --- convolutions -------------------------------------------------------------------------------


def test_convolution_equals_its_integer_replay() -> None:
    torch.manual_seed(0)
    net = m.QuantConvNet((1, 8, 8), 3, channels=(3, 4), strides=(2, 1), fan_in=5)
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x.mean(dim=(1, 2, 3)) * 40).to(torch.int64) % 3
    fit(net, x, y, epochs=4, batch_size=16)
    layers = integer_layers(net)
    codes = net.blocks()[0].input_quant(x).int().to(torch.int64).numpy()
    for layer, stride in zip(layers[:-1], (2, 1), strict=True):
        acc = direct_convolution(codes, layer["weight"], stride)
        twice = 2 * acc + np.array([int(2 * b) for b in layer["constant"]])[:, None, None]
        r = layer["shift"]
        codes = np.clip((twice + (1 << r)) >> (r + 1), 0, 3)  # floor((acc + b) / 2**r + 1/2)
    last = layers[-1]
    acc = codes.reshape(len(x), -1) @ last["weight"].T + [int(b) for b in last["constant"]]
    with torch.no_grad():
        assert np.array_equal(net(x).numpy(), (acc * float(last["unit"])).astype(np.float32))


def direct_convolution(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Correlation with padding 1, by its definition; int64 ``[N, out, h, w]``."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    size = (x.shape[2] - 1) // stride + 1
    out = np.zeros((len(x), len(weight), size, size), dtype=np.int64)
    for i in range(size):
        for j in range(size):
            patch = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, :, i, j] = np.einsum("nchw,ochw->no", patch, weight)
    return out


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (1,)},
        {"channels": (0, 4)},
        {"n_w_bits": 1},
        {"n_a_bits": 0},
        {"kernel_size": 0},
        {"input_shape": (1, 0, 8)},
    ],
)
def test_bad_convolution_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        m.QuantConvNet(**{"input_shape": (1, 8, 8), "n_outputs": 3, **options})


def test_float_twin_has_the_same_sizes() -> None:
    twin = m.FloatMLP(4, (8, 6), 3)
    sizes = [tuple(part.weight.shape) for part in twin.features if isinstance(part, nn.Linear)]
    assert sizes == [(8, 4), (6, 8), (3, 6)]
