"""Functions directly on codes, attributes of quantized tensors, widths, several inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import pytest
import torch
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

from refqnn import brevitas, load
from refqnn.brevitas import from_brevitas, verify_against
from refqnn.brevitas.lower import _unit
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def fc_like(n: int) -> nn.Module:
    return qnn.QuantLinear(n, 2, **STRICT)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.out(-m.quant(x)),
        lambda m, x: m.out(1 - m.quant(x)),
        lambda m, x: m.out(m.quant(x) * -0.5),
        lambda m, x: m.out(m.quant(x) ** 2),
        lambda m, x: m.fc(-m.quant(x)),
        lambda m, x: m.fc(m.quant(x) * -0.5),
        lambda m, x: m.fc(m.quant(x) ** 2),
        lambda m, x: m.fc(m.quant(x) ** 2 - 1.5),
        lambda m, x: m.out(m.fc(m.quant(x).abs())),
    ],
)
def test_functions_directly_on_codes(function: Any) -> None:
    options = {"return_quant_tensor": False, "bit_width": 4}
    quant = qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, **options)
    fc = qnn.QuantLinear(4, 3, bias=False, **STRICT_WEIGHT)
    out = qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, bit_width=5)
    assert_exact(*ready(Forward(function, quant=quant, fc=fc, out=out), 4))


@pytest.mark.parametrize(
    ("floats", "unit"),
    [
        ([0.75, 0.5, -1.25], 0.25),
        ([3.0, -6.0, 0.0], 3.0),
        ([1.5, 2.5, 0.0625], 0.0625),
        ([12.0, 18.0], 6.0),
        ([2.0**-130, 3 * 2.0**-129], 2.0**-130),
        ([0.0], 1.0),
        ([], 1.0),
        ([1.0, float("inf")], 1.0),
        ([2.0, float("nan")], 1.0),
    ],
)
def test_the_greatest_unit_of_floats(floats: list[float], unit: float) -> None:
    assert _unit(torch.tensor(floats)).item() == unit


def _leaky(v: Tensor) -> Tensor:
    return torch.where(v > 0, v, v * 0.25)


OF_ONE: list[Callable[[Tensor], Tensor]] = [
    lambda v: v * torch.sigmoid(v),
    lambda v: v * (v > 0),
    lambda v: v * v,
    lambda v: v - torch.tanh(v),
    lambda v: v + torch.relu(v + 1.0) - torch.relu(v * 2.0),
    lambda v: v.add(v.abs().sqrt()),
    _leaky,
    lambda v: torch.where(v > 0.5, 2.0, -1.0),
    lambda v: torch.where(v > 0.5, torch.ones_like(v), torch.zeros_like(v)),
    lambda v: ((v > -1) & (v < 1)).float(),
    lambda v: torch.logical_or(v > 1, v < -1).float() + v,
    lambda v: v.masked_fill(v < 0, 0.25),
    lambda v: torch.max(v, torch.zeros_like(v)),
    lambda v: torch.maximum(torch.sin(v), torch.cos(v)),
    lambda v: torch.minimum(v, torch.tensor([0.5, -0.5, 1.0])) * v,
]


@pytest.mark.parametrize("on_codes", [False, True])
@pytest.mark.parametrize("function", OF_ONE)
def test_several_functions_of_one_tensor_are_one_function(
    function: Callable[[Tensor], Tensor], on_codes: bool
) -> None:
    """Branches that meet again before a quantizer, masks, activations written by hand."""
    plain = {"return_quant_tensor": False, "bit_width": 4}
    parts = {
        "quant": signed(),
        "fc": qnn.QuantLinear(4, 3, bias=True, **STRICT_WEIGHT),
        "codes": qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, **plain),
        "out": signed(5),
    }

    def forward(m: Any, x: Tensor) -> Tensor:
        v = m.fc(m.quant(x))
        return m.out(function(m.codes(v) if on_codes else v))

    assert_explained(*ready(Forward(forward, **parts), 4))


def test_functions_of_different_tensors_stay_refused() -> None:
    parts = {"quant": signed(), "fc": fc_like(4), "other": fc_like(4), "out": signed(5)}

    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.quant(x)
        return m.out(m.fc(a) * torch.sigmoid(m.other(a)))

    module, x = ready(Forward(forward, **parts), 4)
    with pytest.raises(NotCovered, match=r"^mul .*two quantized tensors"):
        from_brevitas(module, x)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, -1, (1, 2), (1, 3), (2, 3), (-1, 1)])
@pytest.mark.parametrize("mean", [False, True])
def test_sums_and_means_over_axes_of_the_samples(mean: bool, dim: Any, keepdim: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        codes = m.quant(x)
        return m.out((torch.mean if mean else torch.sum)(codes, dim, keepdim=keepdim))

    plain = qnn.QuantIdentity(bq.Int8ActPerTensorFixedPoint, bit_width=3, return_quant_tensor=False)
    assert_explained(*ready(Forward(forward, quant=plain, out=signed(6)), 2, 3, 5))


def test_sums_at_the_end_and_of_float_scales() -> None:
    quant = qnn.QuantIdentity(bit_width=4, return_quant_tensor=False)
    module, x = ready(Forward(lambda m, x: m.quant(x).sum(dim=1), quant=quant), 4, 5)
    network = assert_explained(module, x)
    assert network.shapes[network.output] == (5,)
    everything = Forward(
        lambda m, x: m.out(m.quant(x).sum((1, 2), True)), quant=quant, out=signed()
    )
    assert_explained(*ready(everything, 4, 5))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v: v.sum(), "sum.*mixes samples"),
        (lambda v: v.mean((0, 1)), "mean.*mixes samples"),
        (lambda v: v.sum(1), "pass keepdim=True"),
    ],
)
def test_sums_that_leave_no_samples_are_refused(function: Any, message: str) -> None:
    module, x = ready(Forward(lambda m, x: function(m.quant(x).value), quant=signed()), 4)
    with pytest.raises(NotCovered, match=message):
        from_brevitas(module, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.out(m.fc(m.quant(x)).value).value,
        lambda m, x: m.out(m.act(m.fc(m.quant(x))).tensor),
        lambda m, x: m.out(m.act(m.fc(m.quant(x))).value / m.act.scale_of),
        lambda m, x: m.out(m.act(m.fc(m.quant(x))).int().float()),
    ],
)
def test_attributes_of_quantized_tensors(function: Any) -> None:
    fc = qnn.QuantLinear(4, 3, **STRICT, **QT)
    parts = {"quant": signed(), "fc": fc, "act": signed(), "out": signed(5)}
    parts["act"].register_buffer("scale_of", torch.tensor(0.5))
    assert_exact(*ready(Forward(function, **parts), 4))


def test_scale_and_zero_point_are_read() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.act(m.fc(m.quant(x)))
        return m.out(a.value / a.scale + a.zero_point + a.bit_width)

    parts = {"quant": signed(), "fc": fc_like(4), "act": signed(), "out": signed(5)}
    assert_exact(*ready(Forward(forward, **parts), 4))


@pytest.mark.parametrize("bits", [33, 60, 100])
def test_weights_of_too_many_bits(bits: int) -> None:
    module = nn.Sequential(signed(), qnn.QuantLinear(4, 2, bias=False, weight_bit_width=bits))
    with pytest.raises(NotCovered, match=rf"^1 .*{bits}-bit weights; expected at most 32 bits"):
        from_brevitas(module.eval(), torch.randn(2, 4))


def test_integers_that_mostly_differ_are_told() -> None:
    module = nn.Sequential(signed(), qnn.QuantLinear(4, 2, bias=False, weight_bit_width=30))
    module, x = ready(module, 4)
    with pytest.warns(UserWarning, match=r"integers of 1 differ.*power-of-two.*exact_accumulators"):
        network = from_brevitas(module, x)
    with pytest.warns(UserWarning, match="float32 sums round"):
        report = verify_against(module, network, x)
    assert "WARNING: most integers of 1" in str(report)


def test_weights_that_brevitas_makes_nan_are_named() -> None:
    layer = qnn.QuantLinear(3, 2, False, weight_quant=bq.Int8AccumulatorAwareWeightQuant)
    with torch.no_grad():
        layer.weight[1] = 0.0
    module = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), layer).eval()
    with pytest.raises(NotCovered, match="NaN"):
        from_brevitas(module, torch.zeros(1, 3))


@pytest.mark.parametrize("function", ["rsqrt", "log", "sqrt"])
def test_a_function_that_is_not_a_number_somewhere_is_named(function: str) -> None:
    module = Forward(
        lambda m, x: m.out(getattr(torch, function)(m.quant(x))), quant=signed(), out=signed()
    )
    with pytest.raises(NotCovered, match=f"^out .*{function}.*NaN"):
        from_brevitas(module.eval(), torch.ones(2, 4))


def test_a_constant_may_stand_before_the_method() -> None:
    weight = torch.tensor([0.5, 2.0, -1.0, 0.25])
    module = Forward(lambda m, x: m.out(weight.mul(m.quant(x))), quant=signed(), out=signed())
    assert_exact(*ready(module, 4))


# --- several inputs -----------------------------------------------------------------------------


class Inputs(nn.Module):
    """As `Forward`, of two inputs."""

    def __init__(self, forward: Any, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self._forward(self, x, y)


TWO: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "one quantizer": (lambda m, x, y: m.fc(m.q(x) + m.q(y)), (4,), (4,)),
    "two quantizers": (lambda m, x, y: m.act(m.fc(m.q(x))) + m.act(m.fc(m.r(y))), (4,), (4,)),
    "side by side": (lambda m, x, y: m.act(m.wide(torch.cat([m.q(x), m.q(y)], 1))), (2,), (3,)),
    "images": (lambda m, x, y: m.act(m.conv(m.q(x)).flatten(1)) + m.fc(m.q(y)), (2, 3, 3), (4,)),
    "before": (lambda m, x, y: m.fc(m.q(1 - x / 3)) + m.fc(m.r(torch.tanh(y))), (4,), (4,)),
    "dropped": (lambda m, x, y: torch.softmax(m.fc(m.q(x) + m.q(y)), 1), (4,), (4,)),
}


def two(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    function, *shapes = TWO[name]
    fc = qnn.QuantLinear(4, 2, bias=False, **STRICT_WEIGHT)
    wide = qnn.QuantLinear(5, 2, bias=False, **STRICT_WEIGHT)
    conv = qnn.QuantConv2d(2, 2, 3, bias=False, **STRICT_WEIGHT)
    parts = {"q": signed(4), "r": signed(6), "act": relu(), "fc": fc, "wide": wide, "conv": conv}
    module = Inputs(function, **parts)
    x, y = (torch.randn(80, *shape) * 2 for shape in shapes)
    with torch.no_grad():
        module.train()(x, y)
    return module.eval(), (x, y)


@pytest.mark.parametrize("name", TWO)
def test_several_inputs_stand_side_by_side(name: str, tmp_path: Any) -> None:
    module, (x, y) = two(name)
    network = from_brevitas(module, (x[:1], y[:1]))
    one = torch.cat([x.flatten(1), y.flatten(1)], dim=1).numpy()
    assert network.input_shape == one.shape[1:]
    assert not any("input" in node.name for node in network.nodes)
    report = verify_against(module, network, (x, y))
    assert report.exact, str(report)
    network.save(tmp_path / "two.npz")
    with torch.no_grad():
        floats = module(x, y)
    ours = torch.from_numpy(load(tmp_path / "two.npz").predict(one))
    theirs = torch.softmax(ours, 1) if name == "dropped" else ours
    assert torch.allclose(getattr(floats, "value", floats), theirs)


def test_what_is_left_out_of_several_inputs() -> None:
    module, (x, y) = two("dropped")
    assert brevitas.read_brevitas(module, [x.numpy(), y.numpy()]).dropped == ("softmax",)


def test_the_number_of_inputs_is_held_against_forward() -> None:
    module, (x, y) = two("one quantizer")
    with pytest.raises(
        InvalidArgument, match=r"one tensor, expected the inputs of forward\(x, y\)"
    ):
        from_brevitas(module, x)
    with pytest.raises(InvalidArgument, match="example_input: got 3 of them"):
        from_brevitas(module, (x, y, y))
    with pytest.raises(InvalidArgument, match="got 2 of them"):
        from_brevitas(nn.Sequential(signed(), fc_like(4)).eval(), (x, x))
    with pytest.raises(ShapeMismatch, match=r"\[80, 3\] samples"):
        from_brevitas(module, (x, y[:3]))
    with pytest.raises(InvalidType, match="the tensor itself"):
        from_brevitas(nn.Sequential(signed(), fc_like(4)).eval(), (x,))
    with pytest.raises(NotCovered, match="inputs by name; expected a tuple"):
        from_brevitas(module, {"x": x, "y": y})
    network = from_brevitas(module, (x, y))
    with pytest.raises(InvalidArgument, match="one tensor"):
        verify_against(module, network, torch.cat([x, y], 1))
