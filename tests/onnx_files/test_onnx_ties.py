"""Ties: at how many accumulators, by the proved ranges, a float runtime may give another code."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import onnx_graphs
import pytest
from click.testing import CliRunner
from onnx_networks import run_onnxruntime

from refqnn import IntFormat, Linear, Network, Node, Requantize, from_onnx
from refqnn.cli import refqnn
from refqnn.inspect import describe

U = Fraction(1, 2**24)
ROUNDS = ("WeightBiasQuantization",)  # an optimizer that makes other weights of a file's own
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")


def is_tie(acc, gain, offset, size, boundaries, steps=0, sums=0):
    """The definition in `refqnn.ops.scaling`, in fractions."""
    error = U * ((8 + steps) * (abs(acc) * gain + size) + sums * gain)
    y = acc * gain + offset
    return any(abs(y - b) <= error for b in boundaries)


@pytest.mark.parametrize("mode", ["half_even", "half_away", "floor", "ceil"])
@pytest.mark.parametrize("seed", range(6))
def test_the_ties_of_a_scale_are_those_of_an_enumeration(seed, mode):
    rng = np.random.default_rng(seed)
    weight, bias = rng.integers(-7, 8, (3, 5)), rng.integers(-9, 9, 3)
    fmt, zero = IntFormat(int(rng.integers(2, 5)), bool(seed % 2)), int(rng.integers(-2, 3))
    # dyadic numbers near thirds, and some that make exact ties
    gains = [Fraction(float(g)) for g in rng.choice([1 / 3, 0.25, 0.375, 0.1], 3)]
    offsets = [Fraction(float(b)) for b in rng.choice([0.5, 1 / 3, 0.0, 1 / 6], 3)]
    clip = (fmt.q_min, fmt.q_max - 1)
    op = Requantize.from_affine(gains, offsets, fmt, mode, zero_point=zero, clip=clip)
    nodes = [Node("fc", Linear(weight, bias)), Node("act", op)]
    net = Network(nodes, input_shape=(5,), input_format=IntFormat(4, signed=False))
    acc, row = net.ranges()["fc"], describe(net)[-1]
    mass = np.abs(weight).sum(axis=1) * 15 + np.abs(bias)
    half = 0 if mode in ("floor", "ceil") else Fraction(1, 2)
    values = [code - zero for code in range(fmt.q_min + 1, clip[1] + 1)]
    boundaries = [v - half - (mode == "ceil") for v in values]
    counts = [0, 0]
    for c, (gain, offset) in enumerate(zip(gains, offsets)):
        for a in range(int(acc.lo[c]), int(acc.hi[c]) + 1):
            for i, sums in enumerate((0, (5 + 8) * int(mass[c]))):
                counts[i] += is_tie(a, gain, offset, abs(offset), boundaries, sums=sums)
    assert [row.ties, row.float_ties] == counts


def test_powers_of_two_have_no_ties_where_float32_holds_the_sums():
    def net(weight):
        op = Requantize.from_scale(2.0**-5, 0.5, IntFormat(3, False), "half_even", bias=0.25)
        nodes = [Node("fc", Linear([weight])), Node("act", op)]
        return Network(nodes, input_shape=(2,), input_format=IntFormat(4, signed=False))

    assert (describe(net([3, -2]))[-1].ties, describe(net([3, -2]))[-1].float_ties) == (0, 0)
    large = describe(net([2**21, -(2**21)]))[-1]  # 2**25.9 in absolute mass
    assert large.ties is not None
    assert large.float_ties > 0


def test_thresholds_of_no_known_scale_have_no_count(tmp_path):
    op = Requantize.from_scale(1 / 3, 0.5, IntFormat(3, False), "half_even")
    nodes = [Node("fc", Linear([[3, -2]])), Node("act", op)]
    net = Network(nodes, input_shape=(2,), input_format=IntFormat(4, signed=False))
    assert describe(net)[-1].ties is not None
    net.save(tmp_path / "net.npz")
    from refqnn import load

    again = load(tmp_path / "net.npz")
    assert again.digest == net.digest
    assert describe(again)[-1].ties is None


class Dense:
    """QDQ: quantize, MatMul, bias; Relu, Clip or Mul now and then; quantize."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.scales = np.float32(rng.uniform(0.01, 0.2, 3))
        if seed % 3 == 0:
            self.scales = np.float32([0.1, 0.15, 0.05])  # many near ties
        self.zero = int(rng.integers(0, 120)) if seed % 2 else 0
        self.codes = rng.integers(-7, 8, (12, 4))
        self.bias = np.float32(rng.normal(size=4)) if seed % 4 else np.zeros(4, np.float32)
        self.low, self.high, self.factor = -np.inf, np.inf, np.ones(4, np.float32)
        g = onnx_graphs.Graph((12,))
        g.quantize(self.scales[0], self.zero, np.uint8)
        g.add("MatMul", g.const((self.codes * self.scales[1]).astype(np.float32)))
        g.add("Add", g.const(self.bias))
        if seed % 4 == 1:
            g.add("Relu")
            self.low = 0.0
        if seed % 4 == 2:
            self.low, self.high = -1.0, np.float32(self.scales[2] * np.float32(2.5))
            g.add("Clip", g.const(self.low), g.const(self.high))
        if seed % 4 == 3:
            self.factor = np.float32([1.7, -0.3, 0.9, 2.0])
            g.add("Mul", g.const(self.factor))
        g.codes(float(self.scales[2]), 3)
        self.model = g.model()

    def is_tie(self, x, channel):
        """Of codes [12], in fractions: float32 sums."""
        s_x, s_w, s_y = (Fraction(float(s)) for s in self.scales)
        bias, factor = (Fraction(float(v[channel])) for v in (self.bias, self.factor))
        w, centred = self.codes[:, channel].tolist(), [int(v) - self.zero for v in x]
        mass = sum(abs(a) * 255 for a in w)
        acc = sum(a * b for a, b in zip(w, centred))
        y = acc * s_x * s_w + bias
        y = min(max(y, self.low), self.high) if self.low == 0 or self.high < np.inf else y
        y = Fraction(y) * factor / s_y
        gain, size = s_x * s_w * abs(factor) / s_y, abs(bias * factor) / s_y
        error = U * (12 * (abs(acc) * gain + size) + (12 + 8) * mass * gain)
        return abs(y - (y // 1 + Fraction(1, 2))) <= error


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_float_runtime_differs_at_ties_alone(count):
    """And in the whole run it does differ: the count is no empty promise."""
    differing = 0
    for seed in range(count):
        dense = Dense(seed)
        net = from_onnx(dense.model)
        row = describe(net)[-1]
        X = np.float32(dense.rng.integers(0, 256, (4000, 12)) - 60) * dense.scales[0]
        x = net.quantize_input(X)
        ours, acc = net.forward(x), net.trace(x)[net.nodes[-2].name]
        for level in LEVELS:
            where = np.argwhere(run_onnxruntime(dense.model, X, level, ROUNDS) != ours)
            assert all(dense.is_tie(x[n], c) for n, c in where), seed
            assert len({(c, acc[n, c]) for n, c in where}) <= row.float_ties, seed
            differing += len(where)
    print(f"{differing} codes of {count} networks differ")
    assert differing


def test_every_tie_of_a_file_is_counted():
    """The whole range of one layer, with a clip on a boundary, whose plateau counts."""
    g = onnx_graphs.Graph((1,))
    g.quantize(0.1, 0, np.uint8)
    s_x, s_w, s_y = np.float32([0.1, 0.3, 0.07])
    g.add("MatMul", g.const(np.float32([[3, -5]]) * s_w))
    ends = np.float32(-0.4), np.float32(s_y * np.float32(20.5))
    g.add("Clip", *map(g.const, ends))
    g.codes(float(s_y), 0)
    net = from_onnx(g.model())
    assert net.nodes[0].op.weight.tolist() == [[3], [-5]]
    s_x, s_w, s_y, *ends = (Fraction(float(v)) for v in (s_x, s_w, s_y, *ends))
    gain, low, high = s_x * s_w / s_y, *(v / s_y for v in ends)

    def is_tie(acc, sums):
        error = 9 * U * abs(acc) * gain + U * sums * gain
        least, most = acc * gain - error, acc * gain + error
        least = min(max(least, low - 9 * U * abs(low)), high - 9 * U * high)
        most = max(min(most, high + 9 * U * high), low + 9 * U * abs(low))
        first = max(math.ceil(least - Fraction(1, 2)), 0) + Fraction(1, 2)
        return first <= most

    counts = [
        sum(is_tie(a, s) for a in range(*span) for s in [sums * abs(w)])
        for sums in (0, (1 + 8) * 255)
        for w, span in ((3, (0, 766)), (-5, (-1275, 1)))
    ]
    row = describe(net)[-1]
    assert [row.ties, row.float_ties] == [sum(counts[:2]), sum(counts[2:])]
    assert row.ties > 200  # the plateau


def test_inspect_shows_ties_and_its_json_has_them(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(Dense(6).model.SerializeToString())
    told = tmp_path / "told.json"
    result = CliRunner().invoke(
        refqnn, ["inspect", str(path), "--json", str(told)], terminal_width=250
    )
    assert result.exit_code == 0, result.output
    assert "float ties" in " ".join(result.output.split())
    rows = json.loads(told.read_text())["nodes"]
    (row,) = [r for r in rows if r["kind"] == "Requantize"]
    assert 0 < row["ties"] <= row["float_ties"]
    assert rows[0]["ties"] is None
