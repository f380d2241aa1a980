"""to_brevitas: the module's integers are the network's, and come back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refqnn import (
    Add,
    Conv2d,
    Dequantizer,
    Flatten,
    Gather,
    GlobalSumPool,
    IntFormat,
    Linear,
    Lookup,
    MaxPool2d,
    Network,
    Node,
    Requantize,
    SumPool2d,
)
from refqnn.brevitas import from_brevitas, to_brevitas
from refqnn.errors import InvalidType, NotCovered
from refqnn.formats import BIPOLAR, TERNARY
from refqnn.quantizers import (
    AffineQuantizer,
    PowerOfTwoQuantizer,
    Quantizer,
    SymmetricQuantizer,
    ThresholdQuantizer,
)
from refqnn.testing import batches, networks, reals
from refqnn.training.modules import SparseQuantNeuralNetImpl

U2, U3, S4 = IntFormat(2, signed=False), IntFormat(3, signed=False), IntFormat(4, signed=True)


def values(module: torch.nn.Module, x: Any) -> Any:
    with torch.no_grad():
        return module(torch.from_numpy(np.asarray(x, dtype=np.float32))).numpy()


def every_input(network: Network) -> Any:
    (n,), fmt = network.input_shape, network.input_format
    codes = range(fmt.q_min, fmt.q_max + 1, fmt.step)
    return np.array(list(itertools.product(codes, repeat=n)))


def assert_comes_back(network: Network, x: Any) -> Network:
    module = to_brevitas(network)
    wanted = network.forward(x)
    assert np.array_equal(values(module, x), wanted)
    back = from_brevitas(module, x[:1].astype(np.float32))
    assert np.array_equal(back.forward(back.quantize_input(x.astype(np.float32))), wanted)
    return back


REQUANTIZES = [
    Requantize.from_shift(2, U3),
    Requantize.from_shift(3, S4, offset=5),
    Requantize.from_shift(0, IntFormat(5, signed=True, narrow=True)),
    Requantize.from_scale(0.3, 1.0, U3, "half_even"),
    Requantize.from_scale([0.3, 0.25], 1.0, S4, "half_away"),
    Requantize([[-9, -2, 7], [1, 1, 30]], U2),
    Requantize([[-(2**63), 2, 2**63 - 1]], U2),
    Lookup([[-1] * 70 + [1] * 71], -70, BIPOLAR),
    Requantize([[-3, 4]], TERNARY),
    Lookup([[(v * v) % 8 for v in range(-70, 71)]], -70, U3),
    Lookup([[abs(v) for v in range(-70, 71)]], -70),
]


@pytest.mark.parametrize("op", REQUANTIZES)
@pytest.mark.parametrize("bias", [None, [3, -4]])
def test_all_inputs_of_a_small_network(op: Any, bias: Any) -> None:
    nodes = [
        Node("fc", Linear([[1, -2], [3, 1]], bias)),
        Node("act", op),
        Node("out", Linear([[2, -5], [1, 0], [0, 3]], [7, 0, -1])),
    ]
    network = Network(nodes, input_shape=(2,), input_format=S4)
    back = assert_comes_back(network, every_input(network))
    weights = [node.op.weight.tolist() for node in back.nodes if isinstance(node.op, Linear)]
    if not isinstance(op, Lookup):  # where one falls, a row of weights is negated
        assert weights == [[[1, -2], [3, 1]], [[2, -5], [1, 0], [0, 3]]]


def test_a_convolutional_network() -> None:
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return rng.integers(-7, 8, shape)

    options = {"stride": 2, "padding": ((1, 0), (2, 1)), "pad_code": 3}
    nodes = [
        Node("conv", Conv2d(weight(6, 3, 3, 3), rng.integers(-50, 50, 6), **options)),
        Node("act", Requantize.from_shift(5, U3)),
        Node("deep", Conv2d(weight(6, 1, 2, 2), padding=1, groups=6)),
        Node("pool", MaxPool2d(2, 1, ((0, 1), (1, 1)))),
        Node("act2", Requantize.from_scale(0.07, 1.0, U3, "floor")),
        Node("shuffle", Gather.channel_shuffle((6, 5, 6), 2)),
        Node("mean", SumPool2d(2, 2, 1)),
        Node("act3", Requantize.from_scale(0.25, 1.0, U3, "half_up")),
        Node("sum", Add((1, -1)), ("act3", "act3b")),
        Node("sums", GlobalSumPool()),
        Node("act4", Requantize.from_scale(0.3, 1.0, S4, "half_even")),
        Node("out", Linear(weight(4, 6))),
    ]
    nodes.insert(8, Node("act3b", Requantize.from_shift(3, U3), ("mean",)))
    network = Network(nodes, input_shape=(3, 8, 7), input_format=S4)
    assert_comes_back(network, rng.integers(-8, 8, (40, 3, 8, 7)))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_networks(data: Any) -> None:
    network = data.draw(networks())
    if network.input_quantizer is not None:
        network = Network(
            network.nodes,
            input_shape=network.input_shape,
            input_format=network.input_format,
            output=network.output,
        )
    x = data.draw(batches(network))
    try:
        module = to_brevitas(network)
    except NotCovered:
        return
    assert np.array_equal(values(module, x) / 1, _door_of(network)(network.forward(x)))


def _door_of(network: Network) -> Any:
    door = network.output_dequantizer
    return (lambda acc: acc) if door is None else door.dequantize


DOORS: list[Quantizer] = [
    PowerOfTwoQuantizer(-2, S4, "half_up"),
    PowerOfTwoQuantizer(-2, U3, "floor"),
    SymmetricQuantizer(0.3, S4),
    SymmetricQuantizer(0.3, S4, "half_away"),
    SymmetricQuantizer([0.3, 0.5], U3, "ceil", axis=1),
    SymmetricQuantizer(0.3, S4, precision="float64"),
    SymmetricQuantizer(0.5, BIPOLAR),
    AffineQuantizer(0.3, 3, U3),
    AffineQuantizer([0.3, 0.7], [1, 2], U3, axis=1),
    ThresholdQuantizer([[0.1, 0.2, 0.9], [-3.0, 1.0, 1.0]], U2, axis=1),
]


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("door", DOORS)
def test_doors(door: Quantizer, data: Any) -> None:
    if isinstance(door, ThresholdQuantizer):
        ends = np.concatenate([door.thresholds, np.nextafter(door.thresholds, -np.inf)], axis=1)
        x = ends.T.astype(np.float32)
    else:
        x = data.draw(reals(door, (5, 2))).astype(np.float32)
    nodes = [Node("fc", Linear([[1, -2], [3, 1]])), Node("act", REQUANTIZES[0])]
    out = Dequantizer([0.5, 2.0], [1.0, 0.25])
    network = Network(nodes, input_shape=(2,), input_quantizer=door, output_dequantizer=out)
    module = to_brevitas(network)
    codes = network.forward(network.quantize_input(x))
    assert np.array_equal(values(module, x), network.predict(x))
    back = from_brevitas(module, x[:1])
    assert np.array_equal(back.forward(back.quantize_input(x)), codes)
    assert np.array_equal(back.predict(x), network.predict(x))


def test_the_module_can_be_trained() -> None:
    """Gradients reach every weight and bias, through shifts and staircases."""
    for act in (Requantize.from_shift(2, U3), Requantize.from_scale(0.3, 1.0, U3, "half_even")):
        nodes = [
            Node("fc", Linear([[1, -2], [3, 1]], [1, 2])),
            Node("act", act),
            Node("out", Linear([[2, -5]], [7])),
        ]
        network = Network(nodes, input_shape=(2,), input_format=S4)
        module = to_brevitas(network).train()
        x = torch.from_numpy(every_input(network).astype(np.float32))
        assert torch.equal(module(x), to_brevitas(network)(x))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        before = float(((module(x) - 3.0) ** 2).mean().detach())
        for _ in range(30):
            optimizer.zero_grad()
            loss = ((module(x) - 3.0) ** 2).mean()
            loss.backward()
            assert all(p.grad is not None for p in module.parameters())
            optimizer.step()
        assert float(((module(x) - 3.0) ** 2).mean().detach()) < before
        assert from_brevitas(module.eval(), x[:1]).nodes[-1].op.kind == "Linear"


def test_a_trained_network_goes_there_and_back() -> None:
    torch.manual_seed(0)
    module = SparseQuantNeuralNetImpl(6, 2, 3, n_hidden_neurons_multiplier=2).eval()
    x = torch.randn(64, 6)
    network = from_brevitas(module, x[:1])
    again = from_brevitas(to_brevitas(network), x[:1])
    codes = network.quantize_input(x.numpy())
    assert np.array_equal(again.quantize_input(x.numpy()), codes)
    assert np.array_equal(again.forward(codes), network.forward(codes))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node("a", Linear([[2**25, 1]]))], r"^a: reaches"),
        ([Node("a", Linear([[1, 1]], [2**24]))], r"^a: reaches"),
        ([Node("a", Requantize.from_shift(0, IntFormat(17, signed=True)))], r"^a: .*16 bits"),
    ],
)
def test_what_float32_or_brevitas_cannot_hold(nodes: list[Node], message: str) -> None:
    network = Network(nodes, input_shape=(2,), input_format=S4)
    with pytest.raises(NotCovered, match=message):
        to_brevitas(network)


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidType, match="network: got"):
        to_brevitas(torch.nn.Identity())
    wide = Network([Node("f", Flatten())], input_shape=(2,), input_format=IntFormat(20, True))
    with pytest.raises(NotCovered, match=r"^input: "):
        to_brevitas(wide)


U1 = IntFormat(1, signed=False)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([Node("fc", Linear([[1]])), Node("g", Gather([0], (1,)))], (1,)),
        ([Node("fc", Linear([[1], [2]])), Node("g", Gather([1, -1], (2,), 3))], (1,)),
        ([Node("pool", GlobalSumPool())], (1, 1, 2)),
        ([Node("sum", Add(), ("input", "input")), Node("t", Lookup([[5, 0, 2]], 0))], (1, 1)),
        ([Node("t", Lookup([[7, -2]], 0))], (1,)),
        (
            [
                Node("t", Lookup([[3, -1]], 0)),
                Node("c", Conv2d([[[[1, 2]]]], None, padding=((0, 0), (1, 0)))),
            ],
            (1, 1, 2),
        ),
        ([Node("t", Lookup([[1, 0], [0, 1]], 0))], (2, 3)),
    ],
)
def test_small_networks_whose_last_node_looks_like_a_float_function(
    nodes: list[Node], shape: tuple[int, ...], scaled: bool
) -> None:
    door = Dequantizer(0.25, 1.5) if scaled else None
    network = Network(nodes, input_shape=shape, input_format=U1, output_dequantizer=door)
    codes = np.array(list(itertools.product((0, 1), repeat=int(np.prod(shape)))))
    codes = codes.reshape(-1, *shape)
    x = torch.from_numpy(codes.astype(np.float32))
    module = to_brevitas(network)
    expected = network.forward(codes)
    outputs = network.dequantize_output(expected) if scaled else expected
    np.testing.assert_array_equal(module(x).detach().numpy().reshape(expected.shape), outputs)
    back = from_brevitas(module, x[:1])
    np.testing.assert_array_equal(
        back.forward(back.quantize_input(codes)).reshape(expected.shape), expected
    )
