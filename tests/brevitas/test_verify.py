"""The comparison itself: its counts, what it finds, and how little it explains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.nn.mixin.base import QuantLayerMixin
from brevitas.quant_tensor import IntQuantTensor
from brevitas.quant_tensor.int_torch_handler import INT_QUANT_TENSOR_FN_HANDLER
from random_networks import KINDS, PROFILES, build
from torch import Tensor, nn

from refqnn import Network, Node, Requantize
from refqnn.brevitas import Report, exact_accumulators, from_brevitas, verify_against
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, ShapeMismatch
from refqnn.training import quantizers as ours

pytestmark = pytest.mark.filterwarnings("ignore:Computing zero point:UserWarning")


def altered(network: Network, name: str, op: Any) -> Network:
    """The network with one node replaced."""
    return Network(
        [Node(n.name, op if n.name == name else n.op, n.inputs) for n in network.nodes],
        input_shape=network.input_shape,
        input_quantizer=network.input_quantizer,
        output_dequantizer=network.output_dequantizer,
        output=network.output,
    )


def requantizes(network: Network) -> list[Node]:
    return [node for node in network.nodes if isinstance(node.op, Requantize)]


def moved(op: Requantize, by: int) -> Requantize:
    """The thresholds, but for the sentinels, moved by so much."""
    real = np.abs(op.thresholds) < 2**62
    return replace(op, thresholds=np.where(real, op.thresholds + by, op.thresholds))


def unexplained(report: Report) -> int:
    return sum(layer.unexplained for layer in report.teacher_forced)


@pytest.fixture(params=PROFILES)
def case(request: Any) -> tuple[nn.Module, Network, Tensor]:
    module, shape, _ = build("mlp", request.param, 4)
    x = torch.randn(100, *shape)
    return module, from_brevitas(module, x), x


def test_counts_add_up(case: Any) -> None:
    module, network, x = case
    report = verify_against(module, network, x)
    for layer in report.teacher_forced + report.free_running:
        parts = layer.equal + layer.near_tie + layer.inherited + layer.unexplained
        assert parts == layer.codes == len(x) * np.prod(network.shapes[layer.name])
        assert (layer.first is None) == (layer.equal == layer.codes)
    assert all(layer.inherited == 0 for layer in report.teacher_forced)
    names = [layer.name for layer in report.teacher_forced]
    assert names[0] == "input"
    assert names[-1] == network.output
    assert report.codes == sum(layer.codes for layer in report.layers)


def test_more_samples_than_one_batch() -> None:
    module, shape, _ = build("mlp", "strict", 1)
    x = torch.randn(1100, *shape)
    report = verify_against(module, from_brevitas(module, x), x)
    assert report.layers[0].codes == x.numel()
    assert report.exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("profile", PROFILES)
def test_moved_thresholds_are_found_and_not_explained(kind: str, profile: str) -> None:
    found = 0
    for seed in range(2):
        module, shape, _ = build(kind, profile, seed)
        x = torch.randn(64, *shape) * 2
        network = from_brevitas(module, x)
        for node in requantizes(network)[:2]:
            wrong = altered(network, node.name, moved(node.op, 3))
            report = verify_against(module, wrong, x)
            layer = next(r for r in report.teacher_forced if r.name == node.name)
            differing = layer.codes - layer.equal
            found += differing > 0
            # a difference of three accumulator units is no rounding error
            assert layer.unexplained >= 0.99 * differing
            if differing:
                assert layer.first is not None
                assert layer.first.node == node.name
                assert not report.ok
    assert found > 0


def test_an_altered_weight_is_found(case: Any) -> None:
    module, network, x = case
    first = network.nodes[0]
    weight = first.op.weight.copy()
    weight[:, 0] += 9
    wrong = altered(network, first.name, replace(first.op, weight=weight))
    report = verify_against(module, wrong, x)
    assert unexplained(report) > 0
    assert "UNEXPLAINED" in str(report)


def test_free_running_inherits_what_teacher_forcing_isolates() -> None:
    module, shape, _ = build("mlp", "strict", 2)
    x = torch.randn(100, *shape)
    network = from_brevitas(module, x)
    node = requantizes(network)[0]
    report = verify_against(module, altered(network, node.name, moved(node.op, 2)), x)
    forced = {r.name: r for r in report.teacher_forced}
    free = {r.name: r for r in report.free_running}
    assert forced[node.name].unexplained == free[node.name].unexplained > 0
    later = network.output
    assert forced[later].equal == forced[later].codes
    assert free[later].inherited > 0
    assert free[later].unexplained == 0


def test_a_wrong_output_scale_is_found(case: Any) -> None:
    module, network, x = case
    door = network.output_dequantizer
    wrong = Network(
        network.nodes,
        input_shape=network.input_shape,
        input_quantizer=network.input_quantizer,
        output_dequantizer=replace(door, scale=door.scale * 1.5),
    )
    assert unexplained(verify_against(module, wrong, x)) > 0


def test_near_ties_exist_and_exact_accumulation_removes_them() -> None:
    """Codes 10 accumulator units apart, on no power of two: float sums decide ties by chance."""
    torch.manual_seed(0)
    act = qnn.QuantIdentity(ours.FloatSignedAct, bit_width=8, return_quant_tensor=True)
    module = nn.Sequential(
        qnn.QuantIdentity(bit_width=3, return_quant_tensor=True),
        qnn.QuantLinear(200, 50, bias=False, weight_bit_width=3),
        act,
    )
    x = torch.randn(200, 200)
    module(x)
    module.eval()
    unit = (module[0](x).scale * module[1].quant_weight().scale).detach()
    scaling = act.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl
    scaling.set_scale(float(10 * unit))
    network = from_brevitas(module, x)
    report = verify_against(module, network, x)
    assert report.ok
    assert sum(layer.near_tie for layer in report.teacher_forced) > 0
    with exact_accumulators():
        assert verify_against(module, network, x).exact


# --- exact accumulation -------------------------------------------------------------------------


def test_exact_accumulators_leaves_no_trace() -> None:
    handlers = dict(INT_QUANT_TENSOR_FN_HANDLER)
    methods = QuantLayerMixin.pack_output, IntQuantTensor.__add__
    with exact_accumulators():
        with exact_accumulators():
            pass
        assert handlers != INT_QUANT_TENSOR_FN_HANDLER
    assert handlers == INT_QUANT_TENSOR_FN_HANDLER
    with pytest.raises(NotCovered), exact_accumulators():
        raise NotCovered("inside")
    assert handlers == INT_QUANT_TENSOR_FN_HANDLER
    assert methods == (QuantLayerMixin.pack_output, IntQuantTensor.__add__)


def test_exact_accumulation_is_exact_where_float32_is_not() -> None:
    """Sums beyond 2**24 against the same sums in Python integers."""
    torch.manual_seed(0)
    module = nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantLinear(5000, 3, bias=False, weight_bit_width=8),
    )
    x = torch.rand(20, 5000) + 0.5
    module(x)
    with torch.no_grad():
        module[1].weight.abs_()
    module.eval()
    codes, weight = module[0](x).int().tolist(), module[1].quant_weight().int().tolist()
    acc = [[sum(c * w for c, w in zip(row, column)) for column in weight] for row in codes]
    assert max(map(max, acc)) > 2**24
    scale = (module[0](x).scale * module[1].quant_weight().scale).detach()
    with exact_accumulators(), torch.no_grad():
        y = module(x)
    assert torch.equal(y, torch.tensor(acc, dtype=torch.float64).float() * scale)


def test_exact_accumulation_needs_scales() -> None:
    module = nn.Sequential(qnn.QuantLinear(4, 2, bias=False)).eval()
    with exact_accumulators(), pytest.raises(NotCovered, match="without a scale"):
        module(torch.randn(2, 4))


# --- arguments ----------------------------------------------------------------------------------


def test_networks_of_other_modules_are_refused(case: Any) -> None:
    module, network, x = case
    renamed = [Node(f"n{i}", node.op) for i, node in enumerate(network.nodes)]
    other = Network(
        renamed, input_shape=network.input_shape, input_quantizer=network.input_quantizer
    )
    with pytest.raises(InvalidArgument, match="no nodes"):
        verify_against(module, other, x)
    codes_only = Network(
        network.nodes, input_shape=network.input_shape, input_format=network.input_format
    )
    with pytest.raises(InvalidArgument, match="without input quantizer"):
        verify_against(module, codes_only, x)
    with pytest.raises(ShapeMismatch, match="X"):
        verify_against(module, network, x[0])


def _layered(inputs: int = 4, hidden: int = 5, outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        qnn.QuantIdentity(bit_width=4, return_quant_tensor=True),
        qnn.QuantLinear(inputs, hidden, bias=True, weight_bit_width=3),
        qnn.QuantReLU(bit_width=3, return_quant_tensor=True),
        qnn.QuantLinear(hidden, outputs, bias=True, weight_bit_width=3),
    )
    module(torch.randn(64, inputs))
    return module.eval()


def test_what_cannot_be_compared_is_one_error_of_ours() -> None:
    module, X = _layered(), torch.randn(7, 4)
    network = from_brevitas(module, X)
    for other in (None, 3, module):
        with pytest.raises(InvalidType, match="network"):
            verify_against(module, other, X)  # type: ignore[arg-type]
    for shape in ((4, 6, 3), (4, 5, 2)):
        with pytest.raises(InvalidArgument, match="network, node"):
            verify_against(module, from_brevitas(_layered(*shape), X), X)
    doorless = Network(network.nodes, input_shape=(4,), input_quantizer=network.input_quantizer)
    with pytest.raises(InvalidArgument, match="output dequantizer"):
        verify_against(module, doorless, X)
    shorter = Network(
        network.nodes, input_shape=(4,), input_quantizer=network.input_quantizer, output="2"
    )
    with pytest.raises(InvalidArgument, match="output 2"):
        verify_against(module, shorter, X)
    for samples in ((X,), X[None], X[:, :3]):
        with pytest.raises(ShapeMismatch, match="X"):
            verify_against(module, network, samples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unreal",
    [
        torch.ones(2, 4, dtype=torch.bool),
        torch.ones(2, 4, dtype=torch.complex64),
        torch.ones(2, 4).to_sparse(),
        np.ones((2, 4), dtype=bool),
        [torch.ones(2, 4)],
    ],
)
def test_samples_are_real_numbers_in_one_dense_array(unreal: Any) -> None:
    with pytest.raises(InvalidType, match="example_input"):
        from_brevitas(_layered(), unreal)


def test_a_compiled_module_is_refused_by_name() -> None:
    compiled = torch.jit.trace(nn.Linear(4, 2), torch.ones(1, 4)).eval()
    with pytest.raises(NotCovered, match="TorchScript"):
        from_brevitas(compiled, torch.ones(1, 4))


@pytest.mark.parametrize("pack", [lambda y: (y,), lambda y: [y], lambda y: (y, y)])
def test_one_output_in_a_tuple_is_that_output(pack: Any) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _layered()

        def forward(self, x: Tensor) -> Any:
            return pack(self.inner(x))

    module, X = Packed().eval(), torch.randn(50, 4)
    report = verify_against(module, from_brevitas(module, X), X)
    assert report.ok
    assert report.codes == 50 * (4 + 5 + 3)
