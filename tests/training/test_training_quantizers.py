"""The training quantizers against rational arithmetic."""

# ruff: noqa: E402 - the extra may be absent

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")

from brevitas.core.function_wrapper.ops_ste import RoundSte
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from hypothesis import given
from hypothesis import strategies as st

from refqnn.errors import InvalidArgument, InvalidType, ShapeMismatch
from refqnn.training import quantizers as q

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def exact_half_up(x: float) -> int:
    return math.floor(Fraction(x) + Fraction(1, 2))


# --- rounding -----------------------------------------------------------------------------------


@given(st.lists(finite32, min_size=1, max_size=50))
def test_half_up_is_exact_on_any_float32(values: list[float]) -> None:
    rounded = q.half_up(torch.tensor(values, dtype=torch.float32)).tolist()
    assert [int(r) for r in rounded] == [exact_half_up(v) for v in values]


@given(st.integers(-(2**22), 2**22))
def test_half_up_on_ties_and_their_neighbours(n: int) -> None:
    tie = np.float32(n + 0.5)
    points = [np.nextafter(tie, np.float32(-np.inf)), tie, np.nextafter(tie, np.float32(np.inf))]
    rounded = q.half_up(torch.tensor(np.array(points, dtype=np.float32))).tolist()
    assert rounded == [exact_half_up(float(p)) for p in points]
    assert rounded[1] == n + 1  # every tie goes up, negative ones too


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (0.49999997, 0),  # x + 0.5 rounds to 1.0 in float32
        (-0.5, 0),
        (-1.5, -1),
        (-2.5, -2),
        (2.5, 3),
        (1e-45, 0),  # the smallest denormal
        (-1e-45, 0),
        (8388609.0, 8388609),  # above 2**23 adding 0.5 would round
        (-16777215.0, -16777215),
        (3e38, int(np.float32(3e38))),
    ],
)
def test_half_up_where_adding_a_half_goes_wrong(x: float, code: int) -> None:
    assert int(q.half_up(torch.tensor([x]))[0]) == code


def test_half_up_keeps_infinities_and_nan() -> None:
    out = q.half_up(torch.tensor([math.inf, -math.inf, math.nan]))
    assert out[0] == math.inf
    assert out[1] == -math.inf
    assert bool(out[2].isnan())


def test_half_up_gradient_is_straight_through() -> None:
    x = torch.tensor([-1.5, -0.2, 0.5, 3.7], requires_grad=True)
    weight = torch.tensor([1.0, -2.0, 3.0, 0.25])
    (q.HalfUpRoundSte()(x) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


# --- powers of two ------------------------------------------------------------------------------


def test_power_of_two_is_exact_at_every_exponent() -> None:
    exponents = torch.arange(-126, 128)
    assert q.power_of_two(exponents).tolist() == [math.ldexp(1.0, e) for e in range(-126, 128)]


magnitudes = st.floats(min_value=2.0**-40, max_value=2.0**40, width=32)


@given(magnitudes, st.integers(1, 255))
def test_ceil_exponent_is_the_smallest_that_fits(m: float, max_code: int) -> None:
    e = int(q.power_of_two_exponent(torch.tensor(m), max_code, "ceil"))
    assert Fraction(m) <= max_code * Fraction(2) ** e
    assert Fraction(m) > max_code * Fraction(2) ** (e - 1)


@given(magnitudes, st.integers(1, 255))
def test_round_exponent_is_the_nearest(m: float, max_code: int) -> None:
    e = int(q.power_of_two_exponent(torch.tensor(m), max_code, "round"))
    ratio = Fraction(m) / max_code
    assert Fraction(2) ** (2 * e - 1) <= ratio**2 < Fraction(2) ** (2 * e + 1)


@given(st.integers(-60, 60), st.sampled_from([1, 3, 7, 127]))
def test_exact_powers_of_two_fall_on_the_right_side(k: int, max_code: int) -> None:
    on = np.float32(math.ldexp(max_code, k))
    above = np.nextafter(on, np.float32(np.inf))
    exponents = q.power_of_two_exponent(torch.tensor([on, above]), max_code, "ceil")
    assert exponents.tolist() == [k, k + 1]


def test_unknown_exponent_rounding_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="rounding"):
        q.power_of_two_exponent(torch.tensor(1.0), 3, "floor")  # type: ignore[arg-type]


# --- weights ------------------------------------------------------------------------------------

WEIGHTS = [q.PowerOfTwoWeight, q.PowerOfTwoWeightRound, q.ConstPowerOfTwoWeight]
PER_CHANNEL = [q.PowerOfTwoWeightPerChannel, q.PowerOfTwoWeightPerChannelRound]


def layer(injector: type, bits: int, narrow: bool, seed: int = 0) -> QuantLinear:
    torch.manual_seed(seed)
    return QuantLinear(
        7, 5, bias=False, weight_quant=injector, weight_bit_width=bits, weight_narrow_range=narrow
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("injector", WEIGHTS + PER_CHANNEL)
def test_weight_codes_and_scales(injector: type, narrow: bool, bits: int) -> None:
    fc = layer(injector, bits, narrow)
    quantized = fc.quant_weight()
    codes = quantized.int()
    low, high = -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1
    assert int(codes.min()) >= low
    assert int(codes.max()) <= high
    for scale in quantized.scale.flatten().tolist():
        assert math.frexp(scale)[0] == 0.5
    if injector in PER_CHANNEL:
        assert quantized.scale.shape == (5, 1)
    expected = torch.round(fc.weight / quantized.scale).clamp(low, high)
    assert torch.equal(codes.to(torch.float32), expected)


@pytest.mark.parametrize("injector", [q.PowerOfTwoWeight, q.PowerOfTwoWeightPerChannel])
def test_rounding_the_exponent_up_saturates_nothing(injector: type) -> None:
    for seed in range(20):
        fc = layer(injector, 3, True, seed)
        quantized = fc.quant_weight()
        assert bool((fc.weight.abs() <= 3 * quantized.scale).all())


def test_ternary_weights_have_three_codes() -> None:
    torch.manual_seed(0)
    fc = QuantLinear(50, 50, bias=False, weight_quant=q.TernaryWeight)
    with torch.no_grad():
        fc.weight.uniform_(-2.0, 2.0)
    assert sorted(set(fc.quant_weight().int().flatten().tolist())) == [-1, 0, 1]


def test_weight_gradient_is_straight_through() -> None:
    fc = layer(q.PowerOfTwoWeight, 3, True)
    fc.quant_weight().value.sum().backward()
    assert torch.equal(fc.weight.grad, torch.ones_like(fc.weight))


def test_all_zero_weights_have_zero_codes() -> None:
    fc = layer(q.PowerOfTwoWeight, 3, True)
    with torch.no_grad():
        fc.weight.zero_()
    assert int(fc.quant_weight().int().abs().max()) == 0


@pytest.mark.parametrize("bits", [1, 9])
def test_weight_widths_outside_2_to_8_are_refused(bits: int) -> None:
    with pytest.raises(InvalidArgument, match="bit_width"):
        q.MaxAbsPowerOfTwoScaling(bit_width=bits)
    with pytest.raises(InvalidType, match="bit_width"):
        q.FixedScaling(bit_width=2.0)  # type: ignore[arg-type]


# --- activations --------------------------------------------------------------------------------


@given(st.lists(finite32, min_size=1, max_size=30), st.integers(-6, 6), st.integers(2, 8))
def test_activation_codes_are_exact_half_up(values: list[float], exponent: int, bits: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    scale = Fraction(2) ** exponent
    for injector, low, high in [
        (q.UnsignedAct, 0, 2**bits - 1),
        (q.SignedAct, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    ]:
        act = QuantIdentity(
            act_quant=injector, bit_width=bits, exponent=exponent, return_quant_tensor=True
        )
        codes = torch.round(act(x).value / act(x).scale).to(torch.int64).tolist()
        expected = [
            min(max(math.floor(Fraction(v) / scale + Fraction(1, 2)), low), high) for v in values
        ]
        assert codes == expected


def test_half_up_is_what_an_add_and_a_shift_do() -> None:
    """floor(acc / 2**r + 1/2) = (acc + 2**(r-1)) >> r, on every accumulator, ties included."""
    for r in range(1, 6):
        acc = np.arange(-300, 300)
        act = QuantIdentity(act_quant=q.SignedAct, bit_width=8, return_quant_tensor=True)
        codes = act(torch.tensor(acc / 2.0**r, dtype=torch.float32)).int().numpy()
        shifted = np.clip((acc + (1 << (r - 1))) >> r, -128, 127)
        assert np.array_equal(codes, shifted)
        half_even = np.clip(np.rint(acc / 2.0**r), -128, 127)
        assert (codes != half_even).any()  # Brevitas' own rounding is another function


def test_activation_gradient_stops_where_codes_saturate() -> None:
    act = QuantReLU(act_quant=q.UnsignedAct, bit_width=2)
    x = torch.tensor([-1.0, 0.4, 2.0, 9.0], requires_grad=True)
    act(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_rounding_mode_is_not_announced_as_half_even() -> None:
    act = QuantReLU(act_quant=q.UnsignedAct, bit_width=2)
    proxy = act.act_quant.fused_activation_quant_proxy.tensor_quant
    assert isinstance(proxy.int_quant.float_to_int_impl, q.HalfUpRoundSte)
    assert act.act_quant.rounding_mode != "ROUND"


def test_learned_scale_survives_a_small_step() -> None:
    for direction in (-1.0, 1.0):
        act = QuantReLU(
            act_quant=q.LearnedUnsignedAct, bit_width=3, exponent=-2, return_quant_tensor=True
        )
        scaling = act.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
        x = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 4
        assert act(x).scale.item() == 0.25
        with torch.no_grad():
            scaling.log2_scale += 0.1 * direction
        assert act(x).scale.item() == 0.25
        with torch.no_grad():
            scaling.log2_scale += 0.5 * direction
        assert act(x).scale.item() == 0.25 * 2.0**direction


def test_learned_scale_grows_to_cover_its_values() -> None:
    act = QuantReLU(act_quant=q.LearnedUnsignedAct, bit_width=3, exponent=-4)
    scaling = act.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    optimizer = torch.optim.Adam([scaling.log2_scale], lr=0.05)
    x = torch.rand(256, generator=torch.Generator().manual_seed(0)) * 7.0
    for _ in range(200):
        optimizer.zero_grad()
        ((act(x) - x) ** 2).mean().backward()
        optimizer.step()
    assert scaling(x).item() == 1.0


# --- scales from data ---------------------------------------------------------------------------


def test_max_scale_represents_the_largest_value() -> None:
    assert q.scale_from_data(torch.tensor([0.1, 7.0]), 0, 7, method="max") == 1.0
    assert q.scale_from_data(torch.tensor([0.1, 7.1]), 0, 7, method="max") == 2.0
    assert q.scale_from_data(torch.tensor([0.1, 7.1]), 0, 7, method="max", rounding="round") == 1.0
    assert (
        q.scale_from_data(torch.tensor([3.5]), 0, 7, method="max", power_of_two_scale=False) == 0.5
    )


def test_percentile_and_mse_ignore_one_outlier() -> None:
    x = torch.cat([torch.linspace(-1.0, 1.0, 1001), torch.tensor([30.0])])
    assert q.scale_from_data(x, -4, 3, method="max") == 16.0
    assert q.scale_from_data(x, -4, 3, method="percentile", percentile=99.0) == 0.5
    assert q.scale_from_data(x, -4, 3, method="mse") == 0.25


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.booleans())
def test_mse_scale_beats_every_power_of_two(values: list[float], signed: bool) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    low, high = (-4, 3) if signed else (0, 7)
    target = x if signed else x.clamp(min=0.0)

    def error(scale: float) -> float:
        codes = q.half_up(target / scale).clamp(low, high)
        return float(((codes * scale - target) ** 2).mean())

    chosen = q.scale_from_data(x, low, high, method="mse", percentile=100.0)
    largest = target.abs().max()
    if float(largest) == 0.0:
        assert chosen == 1.0
    else:
        top = int(q.power_of_two_exponent(largest, high))
        assert error(chosen) <= min(error(math.ldexp(1.0, top - drop)) for drop in range(6))


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.tensor([]), {}),
        (torch.tensor([math.nan]), {}),
        (torch.tensor([math.inf]), {}),
        (torch.tensor([1.0]), {"method": "mean"}),
        (torch.tensor([1.0]), {"percentile": 0.0}),
        (torch.tensor([1.0]), {"percentile": 101.0}),
    ],
)
def test_scale_from_data_refuses(x: torch.Tensor, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        q.scale_from_data(x, 0, 7, **options)  # type: ignore[arg-type]


def test_constant_scale_is_saved_with_the_state() -> None:
    first = QuantIdentity(act_quant=q.SignedInput, bit_width=3, return_quant_tensor=True)
    q.calibrate(first, torch.linspace(-8, 8, 100))
    second = QuantIdentity(act_quant=q.SignedInput, bit_width=3, return_quant_tensor=True)
    second.load_state_dict(first.state_dict())
    x = torch.linspace(-8, 8, 100)
    assert float(second(x).scale) == float(first(x).scale) != 1.0


def test_set_scale_refuses_what_is_no_power_of_two() -> None:
    scaling = q.FixedScaling(bit_width=3)
    for scale in (0.3, 0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="scale"):
            scaling.set_scale(scale)
    q.FixedScaling(bit_width=3, power_of_two_scale=False).set_scale(0.3)
    with pytest.raises(InvalidArgument, match="exponent"):
        q.FixedScaling(exponent=200)


def test_calibrate_leaves_weights_and_mode_alone() -> None:
    net = torch.nn.Sequential(
        QuantIdentity(act_quant=q.SignedInput, bit_width=3, return_quant_tensor=True),
        QuantLinear(4, 8, bias=False, weight_quant=q.ConstPowerOfTwoWeight, weight_bit_width=3),
        QuantReLU(act_quant=q.UnsignedAct, bit_width=3),
    )
    before = float(net[1].quant_weight().scale)
    net.train()
    q.calibrate(net, 5.0 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    assert net.training
    assert net[2].training
    assert float(net[1].quant_weight().scale) == before
    scaling = net[0].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    frozen = float(scaling.scale)
    net(torch.randn(64, 4))
    assert float(scaling.scale) == frozen > 1.0
    assert not scaling.observing


# --- weight transforms --------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(0, 1000))
def test_row_sparsity_keeps_the_largest_of_each_row(k: int, seed: int) -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    masked = q.RowSparsity(weight, k)(weight)
    for row, kept in zip(weight, masked, strict=True):
        assert int((kept != 0).sum()) == min(k, 6)
        smallest_kept = kept[kept != 0].abs().min()
        dropped = row[kept == 0].abs()
        assert len(dropped) == 0 or float(dropped.max()) <= float(smallest_kept)


def test_row_sparsity_is_per_row_and_never_per_layer() -> None:
    weight = torch.cat([torch.full((1, 10), 9.0), torch.full((1, 10), 0.1)])
    assert (q.RowSparsity(weight, 3)(weight) != 0).sum(dim=1).tolist() == [3, 3]


def test_row_sparsity_grows_step_by_step() -> None:
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    transform = q.RowSparsity(weight, 2)
    for keep, kept in [(1.0, 20), (0.5, 10), (0.0, 2)]:
        transform.update(weight, keep=keep)
        assert (transform.mask != 0).sum(dim=1).tolist() == [kept] * 4


def test_row_sparsity_on_a_convolution_counts_the_whole_kernel() -> None:
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert (q.RowSparsity(weight, 4).mask.flatten(1).sum(dim=1) == 4).all()


def test_row_sparsity_with_a_budget_for_each_row() -> None:
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    transform = q.RowSparsity(weight, [1, 5, 30, 1])
    for keep, kept in [(1.0, [20, 20, 20, 20]), (0.2, [4, 5, 20, 4]), (0.0, [1, 5, 20, 1])]:
        transform.update(weight, keep=keep)
        assert (transform(weight) != 0).sum(dim=1).tolist() == kept


@pytest.mark.parametrize("budget", [0, [1, 0], 1.5, "1"])
def test_row_sparsity_refuses_an_empty_budget(budget: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_nonzeros"):
        q.RowSparsity(torch.ones(2, 2), budget)


def test_row_sparsity_refuses_budgets_that_are_not_one_for_each_row() -> None:
    with pytest.raises(ShapeMismatch, match="one number, or 2 for the rows"):
        q.RowSparsity(torch.ones(2, 3), [1, 1, 1])


def test_transformed_layer_quantizes_the_transformed_weight() -> None:
    fc = layer(q.PowerOfTwoWeight, 3, True)
    q.add_weight_transform(fc, q.RowSparsity(fc.weight, 2))
    assert (fc.quant_weight().int() != 0).sum(dim=1).max() <= 2
    assert len(q.weight_transforms(fc)) == 1
    before = fc.quant_weight().int()
    q.fix_weight_transforms(fc)
    assert q.weight_transforms(fc) == []
    assert torch.equal(fc.quant_weight().int(), before)


def test_masked_weights_receive_no_gradient() -> None:
    fc = layer(q.ConstPowerOfTwoWeight, 3, True)
    transform = q.add_weight_transform(fc, q.RowSparsity(fc.weight, 2))
    fc(torch.ones(1, 7)).sum().backward()
    gradient = fc.parametrizations["weight"].original.grad
    assert torch.equal(gradient != 0, transform.mask != 0)


def test_half_up_replaces_round_in_the_injector() -> None:
    half_even = q.SignedAct.let(float_to_int_impl=RoundSte)
    act = QuantIdentity(act_quant=half_even, bit_width=3, return_quant_tensor=True)
    assert act(torch.tensor([0.5, 1.5])).int().tolist() == [0, 2]
