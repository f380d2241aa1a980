"""What stands behind the last layer: part of the output dequantizer, or left out and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strict_parts import STRICT_WEIGHT, Forward, ready, signed
from torch import Tensor, nn

from refqnn.brevitas import from_brevitas, read_brevitas, verify_against
from refqnn.errors import NotCovered


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def parts(n: int = 3) -> dict[str, nn.Module]:
    norm = nn.BatchNorm1d(n)
    nn.init.uniform_(norm.weight, -2.0, 2.0)
    nn.init.normal_(norm.bias)
    fc = qnn.QuantLinear(4, n, bias=False, **STRICT_WEIGHT)
    return {"q": signed(), "fc": fc, "norm": norm, "soft": nn.Softmax(1)}


@pytest.mark.parametrize(
    "behind",
    [
        lambda m, y: y * 0.25,
        lambda m, y: -y / 4 + 1.5,
        lambda m, y: 2 - y,
        lambda m, y: y.mul(torch.tensor([1.0, -2.0, 0.5])).add(torch.tensor([0.5, 0.0, 1.0])),
    ],
)
def test_exact_arithmetic_behind_the_last_layer(behind: Callable[..., Tensor]) -> None:
    module, x = ready(Forward(lambda m, x: behind(m, m.fc(m.q(x))), **parts()), 4)
    network = from_brevitas(module, x[:1])
    assert network.nodes[-1].name == "fc"
    assert np.array_equal(network.predict(x.numpy()), module(x).detach().numpy())
    assert verify_against(module, network, x).exact


@pytest.mark.parametrize(
    "behind", [lambda m, y: m.norm(y), lambda m, y: y / 0.7, lambda m, y: m.norm(y * 0.3) - 1]
)
def test_arithmetic_that_rounds(behind: Callable[..., Tensor]) -> None:
    """The integers are the module's; the floats of the door are a rounding or two away."""
    module, x = ready(Forward(lambda m, x: behind(m, m.fc(m.q(x))), **parts()), 4)
    network = from_brevitas(module, x[:1])
    assert verify_against(module, network, x).exact
    assert np.allclose(network.predict(x.numpy()), module(x).detach().numpy(), atol=1e-5)


LEFT_OUT: list[tuple[Callable[..., Any], int, tuple[str, ...]]] = [
    (lambda m, y: m.soft(y), 3, ("soft",)),
    (lambda m, y: F.log_softmax(y, dim=-1), 3, ("log_softmax",)),
    (lambda m, y: y.softmax(1), 3, ("softmax",)),
    (lambda m, y: y.argmax(1), 3, ("argmax",)),
    (lambda m, y: torch.topk(y, 2, 1).indices, 3, ("topk, getattr_1",)),
    (lambda m, y: y.max(1)[1], 3, ("max_1, getitem",)),
    (lambda m, y: torch.max(y, dim=1).indices, 3, ("max_1, getattr_1",)),
    (lambda m, y: y.sort(-1)[1], 3, ("sort, getitem",)),
    (lambda m, y: torch.sigmoid(y / 2), 3, ("sigmoid",)),
    (lambda m, y: m.norm(y).tanh(), 3, ("tanh",)),
    (lambda m, y: y.squeeze(-1), 1, ("squeeze",)),
    (lambda m, y: y[:, 0], 1, ("getitem",)),
    (lambda m, y: torch.sigmoid(y).squeeze(1), 1, ("sigmoid", "squeeze")),
    (lambda m, y: (y, y.argmax(1)), 3, ("argmax",)),
]


@pytest.mark.parametrize(("behind", "outputs", "names"), LEFT_OUT)
def test_what_reads_off_the_result_is_left_out_and_named(
    behind: Callable[..., Any], outputs: int, names: tuple[str, ...]
) -> None:
    module, x = ready(Forward(lambda m, x: behind(m, m.fc(m.q(x))), **parts(outputs)), 4)
    imported = read_brevitas(module, x[:1])
    assert imported.dropped == names
    assert imported.network.nodes[-1].name == "fc"
    report = verify_against(module, imported.network, x)
    assert report.exact
    assert report.layers[-1].codes == len(x) * outputs


def test_the_network_ends_at_the_values_that_are_read() -> None:
    module, x = ready(Forward(lambda m, x: m.soft(m.fc(m.q(x)) * 0.5), **parts()), 4)
    network = from_brevitas(module, x[:1])
    logits = module.fc(module.q(x)) * 0.5
    assert np.array_equal(network.predict(x.numpy()), logits.detach().numpy())


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (lambda m, y: m.q(m.soft(y)), r"^soft .*only the output"),
        (lambda m, y: m.soft(y) + y, r"^soft .*only the output"),
        (lambda m, y: F.relu(y), r"^relu: .*behind the last layer"),
        (lambda m, y: 1 / y, r"^truediv: .*behind the last layer"),
        (lambda m, y: y * 0.0, r"behind its last layer: scale"),
        (lambda m, y: (y, m.q(y)), "returns 2 tensors"),
    ],
)
def test_other_functions_are_refused(behind: Callable[..., Any], message: str) -> None:
    module, x = ready(Forward(lambda m, x: behind(m, m.fc(m.q(x))), **parts()), 4)
    with pytest.raises(NotCovered, match=message):
        from_brevitas(module, x[:1])


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_a_product_that_rounds_is_no_product(mode: str) -> None:
    def divided(m: Any, x: Tensor) -> Tensor:
        return torch.div(m.fc(m.q(x)), 0.5, rounding_mode=mode)

    module, X = ready(Forward(divided, **parts()), 4)
    with pytest.raises(NotCovered, match="div: a float function stands behind"):
        from_brevitas(module, X)


def test_the_factor_of_a_sum_is_in_the_door() -> None:
    c = torch.tensor([0.5, -1.0, 2.0])
    for sign, behind in (
        (2.0, lambda y: torch.add(c, y, alpha=2)),
        (-3.0, lambda y: torch.sub(c, y, alpha=3)),
        (1.0, lambda y: torch.sub(y, c, alpha=3)),
    ):
        module, X = ready(Forward(lambda m, x, f=behind: f(m.fc(m.q(x))), **parts()), 4)
        bare = Forward(lambda m, x: m.fc(m.q(x)), **module._modules).eval()
        got = from_brevitas(module, X).output_dequantizer
        plain = from_brevitas(bare, X).output_dequantizer
        assert got is not None
        assert plain is not None
        np.testing.assert_array_equal(got.scale, sign * plain.scale)


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_a_reshape_of_ones_own_to_the_same_shape(shape: tuple[int, ...], last: bool) -> None:
    """It is the identity there, and fails on any other shape."""

    class Shaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], *shape)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.own(m.fc(m.q(x)))
        return y if last else m.o(m.a(y))

    conv = {"kernel_size": 1, "bias": False, **STRICT_WEIGHT}
    modules = {
        "q": signed(),
        "fc": qnn.QuantConv2d(2, 2, **conv),
        "own": Shaped(),
        "a": signed(),
        "o": qnn.QuantConv2d(2, 3, **conv),
    }
    module, X = ready(Forward(forward, **modules), *shape)
    if last and shape == (2, 1, 1):  # nothing tells it from a function of one value
        with pytest.raises(NotCovered, match="own"):
            from_brevitas(module, X)
        return
    network = from_brevitas(module, X)
    np.testing.assert_array_equal(network.predict(X.numpy()), module(X).detach().numpy())
