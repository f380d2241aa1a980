"""Integer networks as PULP's tools export them: floats that hold integers, kappa, lambda, shifts.

NEMO and QuantLab write an integer batch normalization as Mul and Add (kappa, lambda), a
requantization as Mul, Div, Floor, Clip, and an integer mean as AveragePool, Mul, Mul, Div, Floor;
QuantLab and Deeploy write the first two as RequantShift.  Golden outputs: Python integers.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import Graph

from refqnn.onnx import from_onnx

CHANNELS, SIZE, DIV = 3, 6, 2**10
Integers = Any  # nested lists of Python integers


def parameters(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "conv": rng.integers(-7, 8, (CHANNELS, 2, 3, 3)),
        "kappa": rng.integers(1, 60, CHANNELS) * rng.choice([1, 1, -1], CHANNELS),
        "lamda": rng.integers(-9000, 9000, CHANNELS),
        "mul": int(rng.integers(1, 40)),
        "depth": rng.integers(-7, 8, (CHANNELS, 1, 2, 2)),
        "fc": rng.integers(-7, 8, (4, CHANNELS)),
    }


# --- files --------------------------------------------------------------------------------------


def requantized(g: Graph, p: dict[str, Any], levels: int, how: str) -> None:
    """clip(floor((kappa * x + lambda) * mul / D), 0, levels - 1)"""
    shape = (CHANNELS, 1, 1)
    if how in ("RequantShift", "PACTOps"):
        mul, add = (p[k].reshape(shape) * p["mul"] for k in ("kappa", "lamda"))
        domain = "PACTOps" if how == "PACTOps" else ""
        name = "n_levels_out" if domain else "n_levels"
        g.add("RequantShift", g.const(mul), g.const(add), domain=domain)
        told = {"div": DIV, name: levels, "signed": 0}
        for key, value in told.items():
            held = numpy_helper.from_array(np.float32([value]))
            g.nodes[-1].attribute.append(helper.make_attribute(key, held))
        return
    if how == "BatchNormalization":
        zero, one = np.zeros(CHANNELS), np.ones(CHANNELS)
        values = [g.const(v) for v in (p["kappa"], p["lamda"], zero, one)]
        g.add("BatchNormalization", *values, epsilon=0.0)
    else:
        g.add("Mul", g.const(p["kappa"].reshape(shape)))
        g.add("Add", g.const(p["lamda"].reshape(shape)))
    g.add("Mul", g.const(float(p["mul"])))
    g.add("Div", g.const(float(DIV)))
    g.add("Floor")
    g.add("Clip", g.const(0.0), g.const(float(levels - 1)))


def model(p: dict[str, Any], how: str) -> Any:
    g = Graph((2, SIZE, SIZE), opset=13)
    g.add("Conv", g.const(p["conv"]), pads=[1, 1, 1, 1])
    requantized(g, p, 16, how)
    g.add("Conv", g.const(p["depth"]), group=CHANNELS, strides=[2, 2])
    requantized(g, p, 256, how)
    g.add("AveragePool", kernel_shape=[3, 3])
    for op, value in (("Mul", 9.0), ("Mul", float(round(DIV / 9))), ("Div", float(DIV))):
        g.add(op, g.const(value))
    g.add("Floor")
    g.add("Flatten")
    g.add("Gemm", g.const(p["fc"]), transB=1)
    return g.model(TensorProto.FLOAT)


# --- golden outputs -----------------------------------------------------------------------------


def convolved(x: Integers, w: Integers, pad: int, stride: int, depthwise: bool) -> Integers:
    size, kernel = len(x[0]), len(w[0][0])
    positions = range(0, size + 2 * pad - kernel + 1, stride)

    def value(o: int, i: int, j: int) -> int:
        total = 0
        for c, a, b in product(range(len(w[o])), range(kernel), range(kernel)):
            row, column = i + a - pad, j + b - pad
            if 0 <= row < size and 0 <= column < size:
                total += w[o][c][a][b] * x[o if depthwise else c][row][column]
        return total

    return [[[value(o, i, j) for j in positions] for i in positions] for o in range(len(w))]


def golden(x: Integers, p: dict[str, Any]) -> list[int]:
    def act(maps: Integers, levels: int) -> Integers:
        def code(v: int, k: int, b: int) -> int:
            return min(max((k * v + b) * p["mul"] // DIV, 0), levels - 1)

        pairs = zip(maps, p["kappa"].tolist(), p["lamda"].tolist())
        return [[[code(v, k, b) for v in row] for row in m] for m, k, b in pairs]

    x = act(convolved(x, p["conv"].tolist(), 1, 1, False), 16)
    x = act(convolved(x, p["depth"].tolist(), 0, 2, True), 256)
    means = [sum(map(sum, m)) * round(DIV / 9) // DIV for m in x]
    return [sum(w * v for w, v in zip(row, means)) for row in p["fc"].tolist()]


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
@pytest.mark.parametrize("how", ["Mul", "BatchNormalization", "RequantShift", "PACTOps"])
def test_integer_networks_of_floats_give_their_golden_outputs(how, seed):
    p = parameters(seed)
    network = from_onnx(model(p, how), input="UINT4")
    X = np.random.default_rng(seed).integers(0, 16, (12, 2, SIZE, SIZE))
    X[0], X[1] = 0, 15
    acc = network.forward(X)
    values = acc if network.output_dequantizer is None else network.dequantize_output(acc)
    expected = [golden(x, p) for x in X.tolist()]
    assert len(set(map(tuple, expected))) > 6
    assert values.tolist() == expected
