"""Which of Brevitas' quantizers convert: the table in refqnn/brevitas/QUANTIZERS.md.

Run this file to write the table again.
"""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import brevitas.quant as bq
import pytest
import torch
from brevitas.inject import ExtendedInjector
from torch import nn

import refqnn.brevitas
from refqnn.brevitas import from_brevitas
from refqnn.errors import NotCovered

TABLE = Path(refqnn.brevitas.__file__).with_name("QUANTIZERS.md")
QUANTIZERS = re.compile(
    r"(?!None|IntBias|.*(Mixin|Base|Solver|ZeroPoint)$).*(Act|Weight|Bias|To8bit)"
)
INPUTS, OUTPUTS = 32, 4
HEAD = """# Brevitas' quantizers

What `from_brevitas` makes of each quantizer of `brevitas.quant`, as a test finds it out.

| Quantizer | from_brevitas |
| --- | --- |
"""


def names() -> list[str]:
    known = inspect.getmembers(bq, inspect.isclass)
    return [n for n, q in known if issubclass(q, ExtendedInjector) and QUANTIZERS.match(n)]


def options(name: str) -> dict[str, Any]:
    """What a quantizer asks for that has no default."""
    asked: dict[str, Any] = {}
    if re.match(r"Fp(FNUZ|OCP)", name):
        asked.update(bit_width=8, exponent_bit_width=4, mantissa_bit_width=3)
    if "PerChannelFloat2d" in name:
        asked["per_channel_broadcastable_shape"] = (1, OUTPUTS, 1, 1)
    if name.endswith("MinMaxInit"):
        asked["min_val"] = -6.0
    if name.endswith("MaxInit"):
        asked["max_val"] = 6.0
    if name.startswith("MX") and name.endswith("Act"):
        asked.update(group_dim=1, group_size=OUTPUTS)
    return asked


def module_of(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A module with the quantizer in the place that its name says, and the shape of its input."""
    quantizer = getattr(bq, name)
    given = options(name)
    first = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
    if "To8bit" in name:
        pool = qnn.TruncAvgPool2d(2, trunc_quant=quantizer, return_quant_tensor=True)
        return nn.Sequential(first, pool), (INPUTS, 2, 2)
    if "Bias" in name:
        fc = qnn.QuantLinear(INPUTS, OUTPUTS, True, bias_quant=quantizer)
        return nn.Sequential(first, fc), (INPUTS,)
    if "Act" in name:
        act = qnn.QuantIdentity(act_quant=quantizer, **given)
        if "1d" in name:
            line = qnn.QuantConv1d(INPUTS, OUTPUTS, 1, bias=False)
            return nn.Sequential(first, line, act), (INPUTS, 2)
        if "2d" in name:
            conv = qnn.QuantConv2d(INPUTS, OUTPUTS, 1, bias=False)
            return nn.Sequential(first, conv, act), (INPUTS, 2, 2)
        return nn.Sequential(first, qnn.QuantLinear(INPUTS, OUTPUTS, False), act), (INPUTS,)
    weight = {f"weight_{key}": value for key, value in given.items()}
    fc = qnn.QuantLinear(INPUTS, OUTPUTS, False, weight_quant=quantizer, **weight)
    return nn.Sequential(first, fc), (INPUTS,)


def outcome(name: str) -> str:
    """converts, or the reason of the refusal."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, shape = module_of(name)
        x = torch.randn(16, *shape)
        module.train()
        module(x)
        try:
            from_brevitas(module.eval(), x)
        except NotCovered as error:
            return re.sub(r"^\S+ \(\w+\): ", "", str(error))
    return "converts"


def table() -> str:
    return HEAD + "".join(f"| {name} | {outcome(name)} |\n" for name in names())


def rows() -> dict[str, str]:
    lines = TABLE.read_text(encoding="utf-8").removeprefix(HEAD).splitlines()
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def test_every_quantizer_has_a_row() -> None:
    assert list(rows()) == names()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Int8WeightPerTensorFixedPoint", "converts"),
        ("Int8AccumulatorAwareZeroCenterWeightQuant", "converts"),
        ("ShiftedUint8ActPerTensorFloat", "converts"),
        ("TruncTo8bit", "converts"),
        ("Fp8e4m3WeightPerTensorFloat", "minifloats"),
        ("Fp8e5m2ActPerTensorFloat", "minifloats"),
        ("MXInt8Weight", "each group"),
        ("MXFloat8e4m3Act", "each group|group"),
        ("ShiftedUint8WeightPerTensorFloatHQO", "between two integers"),
    ],
)
def test_rows_are_what_from_brevitas_does(name: str, reason: str) -> None:
    assert rows()[name] == outcome(name)
    assert re.search(reason, rows()[name])


@pytest.mark.slow
def test_the_table_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run this file"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
