"""The pruned network of the literature: three layers, pruned rows, 3-bit weights and activations.

As published, its last layer takes the number of hidden neurons for its bit width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from torch import Tensor, nn
from torch.nn.utils import prune

from refqnn.brevitas import exact_accumulators, from_brevitas, verify_against
from refqnn.errors import NotCovered

ACTIVATIONS: dict[str, Any] = {"bit_width": 3, "act_quant": Int8ActPerTensorFloat}
WEIGHTS: dict[str, Any] = {
    "weight_bit_width": 3,
    "weight_quant": Int8WeightPerTensorFloat,
    "narrow_range": True,
    "bias_quant": None,
}


class PrunedNet(nn.Module):
    def __init__(self, n_hidden: int, active: int, **last: Any) -> None:
        super().__init__()
        self.quant_inp = qnn.QuantIdentity(**ACTIVATIONS)
        self.fc1 = qnn.QuantLinear(2, n_hidden, bias=True, **WEIGHTS)
        self.quant1 = qnn.QuantIdentity(**ACTIVATIONS)
        self.fc2 = qnn.QuantLinear(n_hidden, n_hidden, bias=True, **WEIGHTS)
        self.quant2 = qnn.QuantIdentity(**ACTIVATIONS)
        self.fc3 = qnn.QuantLinear(n_hidden, 2, bias=True, **{**WEIGHTS, **last})
        for layer in (self.fc2, self.fc3):
            keep = torch.zeros_like(layer.weight)
            keep.scatter_(1, layer.weight.abs().topk(active, dim=1).indices, 1.0)
            prune.custom_from_mask(layer, "weight", keep)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant1(torch.relu(self.fc1(self.quant_inp(x))))
        return self.fc3(self.quant2(torch.relu(self.fc2(x))))


def trained(n_hidden: int, **last: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = PrunedNet(n_hidden, active=4, **last)
    x = torch.rand(400, 2) * 2 - 1
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module.eval(), x


def test_as_published_the_width_is_the_reason() -> None:
    module, x = trained(100, weight_bit_width=100)
    with pytest.raises(NotCovered, match=r"^fc3 \(QuantLinear\): 100-bit weights; .* to 8"):
        from_brevitas(module, x[:1])


def test_with_eight_bits_it_converts() -> None:
    module, x = trained(100, weight_bit_width=8)
    network = from_brevitas(module, x[:1])
    assert (np.count_nonzero(network["fc2"].op.weight, axis=1) <= 4).all()
    report = verify_against(module, network, x)
    assert report.ok, str(report)
    with exact_accumulators():
        assert verify_against(module, network, x).exact
    classes = network.predict(x.numpy()).argmax(axis=1)
    assert np.array_equal(classes, module(x).argmax(dim=1).numpy())


def test_the_published_table_is_reached_without_a_class_between_module_and_integers() -> None:
    path = Path(__file__).parents[2] / "bench" / "literature.json"
    found = json.loads(path.read_text())
    assert "100-bit weights" in found["as_published"]
    assert "set weight_bit_width, to 8" in found["as_published"]
    published = found["literature"]
    for means in found["mean"].values():
        assert means["module"] == means["integers"] >= published["module"] > published["converted"]
    for run in found["runs"]:
        assert run["classes_differ"] == run["unexplained"] == run["exact_differ"] == 0
