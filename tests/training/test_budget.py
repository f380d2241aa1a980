"""The projection inside training gives the integers of `refqnn.pruning.project`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from refqnn import testing  # noqa: E402
from refqnn.errors import InvalidArgument  # noqa: E402
from refqnn.pruning import project  # noqa: E402
from refqnn.training.budget import SignSplit, project_ste, projected, shrink_  # noqa: E402

RANGES = [(0, 1), (0, 7), (-4, 3), (-1, 1), (-3, 0), (0, 0), (2, 5)]


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(RANGES),
    st.integers(3, 12),
    st.sampled_from([0.4, 3.0, 20.0]),
    st.booleans(),
)
def test_the_accumulator_fits(seed, input_range, bits, size, halves):
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, size, (3, 9))
    if halves:
        weight = np.rint(weight * 2) / 2
    half = 2 ** (bits - 1)
    bias = rng.integers(-half, half, 3)
    tensor = torch.tensor(weight, dtype=torch.float64)
    got = projected(tensor, torch.tensor(bias), input_range, bits).numpy().astype(int)
    lo, hi = input_range
    for row, b in zip(got.tolist(), bias.tolist()):
        assert -half <= b + sum(min(w * lo, w * hi) for w in row)
        assert b + sum(max(w * lo, w * hi) for w in row) <= half - 1
    assert (got == project(weight, bias, input_range, bits)).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(RANGES), testing.accumulators(max_bits=10))
def test_every_register_of_an_accumulator_fits(seed, input_range, accumulator):
    rng = np.random.default_rng(seed)
    weight = np.rint(rng.normal(0, 4, (3, 4, 3)) * 2) / 2  # [out, channels, kernel]
    lo, hi = accumulator.stages[-1].ends
    bias = rng.integers(min(lo, 0) // 2, max(hi, 0) // 2 + 1, 3)
    got = projected(torch.tensor(weight), torch.tensor(bias), input_range, accumulator).numpy()
    assert (got == project(weight, bias, input_range, accumulator)).all()
    real = torch.tensor(weight)
    shrink_(real, torch.tensor(1.0), torch.tensor(bias), input_range, accumulator)
    assert (real.abs() <= torch.tensor(np.abs(weight))).all()


def test_straight_through():
    weight = torch.tensor([[3.0, 2.6, -3.0, 0.4]], requires_grad=True)
    fitted = project_ste(weight, torch.tensor([10.0]), (0, 7), 6)
    assert fitted.tolist() == [[2.0, 1.0, -3.0, 0.0]]
    (fitted * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_transform_of_a_layer_in_training():
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 4, bias=False)
    scale = torch.tensor(2.0**-4)
    transform = SignSplit(lambda: scale, (0, 7), 7, weight_range=(-3, 3))
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", transform)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(5):
        loss = (layer(torch.rand(16, 32)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        codes = layer.weight / scale
        assert (codes == codes.round()).all()
        assert codes.abs().max() <= 3
        assert codes.clamp(min=0).sum(1).max() * 7 <= 63
        assert (-codes).clamp(min=0).sum(1).max() * 7 <= 64


def test_shrink_keeps_real_weights_inside():
    torch.manual_seed(0)
    weight = torch.randn(5, 40)
    before = weight.clone()
    shrink_(weight, torch.tensor(0.25), None, (0, 7), 8)
    codes = weight / 0.25
    assert (codes.clamp(min=0).sum(1) <= 127 / 7 + 1e-3).all()
    assert (weight.abs() <= before.abs() + 1e-6).all()
    again = weight.clone()
    shrink_(again, torch.tensor(0.25), None, (0, 7), 8)
    assert torch.allclose(again, weight)


def test_width_must_be_exact_in_float64():
    with pytest.raises(InvalidArgument, match="bits"):
        projected(torch.ones(1, 1), None, (0, 1), 54)
