"""Public reports of wrong integers, rebuilt small: a network, what was dumped, and the cause.

Every dump is computed here as the report describes it, by loops over Python integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from refqnn import (
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    IntFormat,
    Linear,
    MaxPool2d,
    Network,
    Node,
    Requantize,
    SumPool2d,
)
from refqnn.diagnosis import Finding, diagnose

U8, S8 = IntFormat(8, signed=False), IntFormat(8, signed=True)
U2, S7 = IntFormat(2, signed=False), IntFormat(7, signed=True)

Ints = NDArray[np.int64]


def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def clamp(v: int, bits: int) -> int:
    return min(max(v, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)


def wrap(v: int, bits: int) -> int:
    return (v + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def dot(x: Sequence[int], w: Sequence[int], size: int, keep: Callable[[int], int]) -> int:
    """Sums of `size` neighbouring products, each kept in a narrow register at every step."""
    total = 0
    for start in range(0, len(x), size):
        part = 0
        for a, b in zip(x[start : start + size], w[start : start + size]):
            part = keep(part + int(a) * int(b))
        total += part
    return total


def linear(x: Ints, w: Ints, size: int, keep: Callable[[int], int]) -> Ints:
    return np.array([[dot(row, k, size, keep) for k in w.tolist()] for row in x.tolist()])


def found(network: Network, name: str, values: Ints, codes: Ints) -> Finding:
    (finding,) = diagnose(network, {name: values}, codes, budget_s=10).findings
    return finding


def one(op: object, shape: tuple[int, ...], fmt: IntFormat, *more: object) -> Network:
    nodes = [Node(f"n{i}", o) for i, o in enumerate((op, *more))]  # type: ignore[arg-type]
    return Network(nodes, input_shape=shape, input_format=fmt)


# --- products added in 16 bits ----------------------------------------------------------------


@pytest.mark.parametrize("per_row", [3, 27, 64])
def test_pairs_of_products_saturate(per_row: int) -> None:
    """onnxruntime 16105, 14642, 6004, 19109; PyTorch 76390, 103646: unsigned times signed bytes on
    machines without VNNI add pairs of products in 16 bits that saturate."""
    w = rng().integers(-127, 128, (8, per_row))
    x = rng().integers(180, 256, (6, per_row))
    x[0, :3], w[0, :3] = (210, 198, 234), (-81, -80, 127)  # as in the first of them
    values = linear(x, w, 2, lambda v: clamp(v, 16))
    finding = found(one(Linear(w), (per_row,), U8), "n0", values, x)
    assert finding.names == {"groups_of_2_saturate_16"}
    assert finding.certain


def test_a_convolution_per_channel_with_large_inputs() -> None:
    """onnxruntime 9365: QLinearConv on inputs from 200 to 250 differs; the products of a position's
    channels stand together."""
    w, x = rng().integers(-127, 128, (5, 3, 3, 3)), rng().integers(200, 251, (4, 3, 5, 5))
    values = np.zeros((4, 5, 3, 3), dtype=np.int64)
    for n, k, i, j in np.ndindex(values.shape):
        window = x[n, :, i : i + 3, j : j + 3].transpose(1, 2, 0).ravel()
        values[n, k, i, j] = dot(
            window.tolist(), w[k].transpose(1, 2, 0).ravel().tolist(), 2, lambda v: clamp(v, 16)
        )
    finding = found(one(Conv2d(w), (3, 5, 5), U8), "n0", values, x)
    assert finding.names == {"groups_of_2_saturate_16_channels_last"}


def test_three_products_wrap_in_16_bits() -> None:
    """ncnn 717, 783: a 3 x 3 kernel multiplied and added in 16 bits before it is widened: three
    products of -127 times 127 leave them."""
    w, x = rng().integers(-127, 128, (4, 1, 3, 3)), rng().integers(-127, 128, (8, 1, 6, 6))
    x[:, :, :3], w[0] = -127, 127
    values = np.zeros((8, 4, 4, 4), dtype=np.int64)
    for n, k, i, j in np.ndindex(values.shape):
        window = x[n, 0, i : i + 3, j : j + 3].ravel().tolist()
        values[n, k, i, j] = dot(window, w[k].ravel().tolist(), 3, lambda v: wrap(v, 16))
    finding = found(one(Conv2d(w), (1, 6, 6), S8), "n0", values, x)
    assert "groups_of_3_wrap_16" in finding.names
    assert all("16" in name for name in finding.names)


# --- accumulators of the inputs' width --------------------------------------------------------


def test_an_accumulator_of_the_input_type_wraps() -> None:
    """hls4ml 324: accum_t was set to the type of the input, ap_fixed<7,1>: accuracy .75 to .20."""
    w, x = rng().integers(-15, 16, (16, 16)), rng().integers(0, 64, (20, 16))
    network = one(Linear(w), (16,), S7, Requantize.from_shift(3, U2))
    values = linear(x, w, 16, lambda v: wrap(v, 7))
    assert found(network, "n0", values, x).names == {"acc_int7"}
    behind = np.array([[min(max((v + 4) >> 3, 0), 3) for v in row] for row in values.tolist()])
    finding = found(network, "n1", behind, x)  # the codes alone tell it as well
    assert {e[0].name for e in finding.explanations} >= {"acc_int7"}
    assert {e[0].node for e in finding.explanations} <= {"n0", "n1"}


def test_an_average_sums_in_the_type_of_its_values() -> None:
    """hls4ml 311: an average pool over the whole map adds in ap_fixed<10,7,AP_SAT>: every channel
    ends at the largest value."""
    x = rng().integers(0, 128, (9, 3, 8, 8))
    values = np.array(
        [[min(sum(channel.ravel().tolist()), 511) for channel in image] for image in x]
    )
    finding = found(one(GlobalSumPool(), (3, 8, 8), U8), "n0", values, x)
    assert finding.names >= {"acc_saturates_10", "acc_saturates_10_at_end"}
    assert all("10" in name or "9" in name for name in finding.names)


def test_accumulators_cut_to_the_width_of_thresholds() -> None:
    """FINN 1561: thresholds of 8 bits, accumulators of 14: both are compared in 8 bits."""
    thresholds = np.sort(rng().integers(-120, 120, (6, 3)), axis=1)
    network = one(Requantize(thresholds, U2), (6,), IntFormat(14, signed=True))
    x = rng().integers(-8192, 8192, (40, 6))
    values = np.array(
        [
            [sum(wrap(v, 8) >= t for t in thresholds[c].tolist()) for c, v in enumerate(row)]
            for row in x.tolist()
        ]
    )
    finding = found(network, "n0", values, x)
    assert finding.names == {"acc_int8", "reads_int8", "compares_int8"}


def test_a_threshold_one_bit_too_narrow() -> None:
    """FINN 1517: a range computed in single precision asks for 32 bits where 33 are needed."""
    thresholds = np.array([[-(2**31), 5, 2**31 + 40]])
    network = one(
        Linear([[2**18, 1]]), (2,), IntFormat(16, signed=True), Requantize(thresholds, U2)
    )
    x = rng().integers(-32768, 32768, (60, 2))
    x[:20, 0] = rng().integers(8192, 10000, 20)
    acc = x[:, 0] * 2**18 + x[:, 1]
    kept = [wrap(t, 32) for t in thresholds[0].tolist()]
    values = np.array([[sum(a >= t for t in kept)] for a in acc.tolist()])
    finding = found(network, "n1", values, x)
    assert "thresholds_int32" in finding.names


# --- roundings --------------------------------------------------------------------------------


def high_half(a: int, multiplier: int) -> int:
    """(a * multiplier) / 2**31, half up."""
    return (a * multiplier + 2**30) >> 31


def half_away(v: int, bits: int) -> int:
    """v / 2**bits, ties away from zero."""
    return (abs(v) + (1 << (bits - 1)) >> bits) * (1 if v >= 0 else -1)


def twice(a: int, multiplier: int, right: int) -> int:
    return half_away(high_half(a, multiplier), right)


def test_the_number_of_the_report() -> None:
    assert twice(7984, 1583594044, 9) == 12  # TensorFlow 25087: in one rounding 11
    once = Requantize.from_multiplier(1583594044, 40, S8)
    assert once.forward(np.array([[7984]])).tolist() == [[11]]


@pytest.mark.parametrize(("multiplier", "right"), [(1583594044, 9), (1300000001, 4)])
def test_two_roundings_instead_of_one(multiplier: int, right: int) -> None:
    """TensorFlow 25087, tflite-micro 3252, CMSIS-NN 214, LiteRT 7441: the reference kernels round
    to 31 bits, then to the code; others round once."""
    once = Requantize.from_multiplier(multiplier, 31 + right, S8)
    x = np.arange(-140 << right, 140 << right, max(1, (280 << right) // 20000))[:, None]
    fmt = IntFormat(20, signed=True)
    values = np.array([[clamp(twice(a, multiplier, right), 8)] for a in x[:, 0].tolist()])
    finding = found(one(once, (1,), fmt), "n0", values, x)
    assert "double_rounding_half_up_half_away" in finding.names
    assert all("rounding" in name for name in finding.names)


def test_a_mean_rounds_twice_where_a_convolution_rounds_once() -> None:
    """LiteRT 7441: reduce_mean differs, the convolution before it does not."""
    multiplier, right = 1717986918, 5
    w = rng().integers(-20, 21, (3, 2, 2, 2))
    network = one(
        Conv2d(w),
        (2, 9, 9),
        S8,
        Requantize.from_multiplier(1100000000, 31 + 5, S8),
        GlobalSumPool(),
        Requantize.from_multiplier(multiplier, 31 + right, S8),
    )
    x = rng().integers(-128, 128, (120, 2, 9, 9))
    trace = network.trace(x)
    wrong = [[clamp(twice(a, multiplier, right), 8) for a in row] for row in trace["n2"].tolist()]
    dump = {"n1": trace["n1"], "n3": np.array(wrong)}
    report = diagnose(network, dump, x, budget_s=5)
    assert report.equal == ("n1",)
    assert "double_rounding_half_up_half_away" in report.findings[0].names


# --- saturation, zero points, padding ---------------------------------------------------------


def test_saturation_at_the_range_of_unsigned_codes() -> None:
    """onnxruntime 29727: int8 outputs limited to 255, then stored in 8 bits: 127 comes out as -128,
    or as what is left of a larger value."""
    network = one(Requantize.from_shift(4, S8), (3,), IntFormat(13, signed=True))
    x = rng().integers(-4096, 4096, (50, 3))
    values = np.array([[wrap(min((v + 8) >> 4, 255), 8) for v in row] for row in x.tolist()])
    values[(x + 8) >> 4 < -128] = -128
    assert found(network, "n0", values, x).names == {"saturates_unsigned_then_wraps"}


def test_a_symmetric_range() -> None:
    """onnxruntime 3442: QuantizeLinear saturates at -127."""
    network = one(Requantize.from_shift(2, S8), (4,), IntFormat(12, signed=True))
    x = rng().integers(-2048, 2048, (30, 4))
    values = np.array([[min(max((v + 2) >> 2, -127), 127) for v in row] for row in x.tolist()])
    assert "clamps_narrow" in found(network, "n0", values, x).names


def test_borders_padded_with_zero() -> None:
    """TVM 4807 and 13364, executorch 13576: a quantized convolution is padded with 0 where real
    zero is the zero point; only the edges are wrong."""
    w, bias = rng().integers(-9, 10, (3, 2, 3, 3)), rng().integers(-99, 100, 3)
    network = one(Conv2d(w, bias, padding=1, pad_code=-12), (2, 6, 6), S8)
    x = rng().integers(-128, 128, (4, 2, 6, 6))
    values = np.zeros((4, 3, 6, 6), dtype=np.int64)
    for n, k, i, j in np.ndindex(values.shape):
        values[n, k, i, j] = bias[k] + sum(
            int(w[k, c, u, v]) * int(x[n, c, i + u - 1, j + v - 1])
            for c, u, v in np.ndindex(2, 3, 3)
            if 0 <= i + u - 1 < 6 and 0 <= j + v - 1 < 6
        )
    finding = found(network, "n0", values, x)
    assert finding.names == {"pad_code_ignored"}
    assert finding.certain


def test_an_average_that_divides_by_what_lies_inside() -> None:
    """onnxruntime 16203, 24681; TIM-VX 423: does an average count the padding?"""
    x = rng().integers(0, 256, (5, 2, 7, 7))
    network = one(SumPool2d(3, 2, 1), (2, 7, 7), U8)
    values = np.zeros((5, 2, 4, 4), dtype=np.int64)
    for n, c, i, j in np.ndindex(values.shape):
        window = x[n, c, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
        values[n, c, i, j] = (2 * int(window.sum()) + window.size) // (2 * window.size)
    names = found(network, "n0", values, x).names
    assert names >= {"valid_average_half_up"}
    assert all(name.startswith("valid_average_half") for name in names)


def test_a_maximum_that_starts_at_the_lowest_code() -> None:
    """onnx2tf 446: padding of a quantized maximum with a value that is above real ones."""
    x = rng().integers(-128, -20, (4, 2, 6, 6))
    network = one(MaxPool2d(3, 2, 1), (2, 6, 6), S8)
    values = np.zeros((4, 2, 3, 3), dtype=np.int64)
    for n, c, i, j in np.ndindex(values.shape):
        window = x[n, c, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
        values[n, c, i, j] = max(int(window.max()), 0 if window.size < 9 else -128)
    assert found(network, "n0", values, x).names == {"pads_zero"}


# --- converters and simulators ----------------------------------------------------------------


def test_an_optimizer_that_moves_a_bias() -> None:
    """onnxruntime's WeightBiasQuantization rounds a float bias: one or two units per channel."""
    w, bias = rng().integers(-7, 8, (6, 12)), rng().integers(-900, 900, 6)
    x = rng().integers(0, 16, (40, 12))
    network = one(
        Linear(w, bias), (12,), IntFormat(4, False), Requantize.from_shift(4, IntFormat(4, True))
    )
    moved = bias + np.array([1, -2, 0, 3, 1, -1])
    values = x @ w.T + moved
    finding = found(network, "n0", values, x)
    assert finding.names == {"bias_changed"}
    assert "channel 0: 1, channel 1: -2, channel 3: 3" in str(finding.explanations[0][0])
    codes = np.array([[min(max((v + 8) >> 4, -8), 7) for v in row] for row in values.tolist()])
    sets = diagnose(network, {"n0": x @ w.T + bias, "n1": codes}, x, budget_s=1)
    assert all("threshold_offset" in f.names or not f.names for f in sets.findings)


def test_simulated_is_not_deployed() -> None:
    """Concrete ML 380, 875: widths measured on a few samples; where a later sum leaves them, only
    its low bits reach the table."""
    w, x = rng().integers(-3, 4, (10, 16)), rng().integers(0, 4, (60, 16))
    network = one(Linear(w), (16,), U2, Requantize.from_shift(2, U2), Linear(w[:3, :10]))
    deployed = np.array(
        [
            [min(max((wrap(v, 5) + 2) >> 2, 0), 3) for v in row]
            for row in linear(x, w, 16, lambda v: v).tolist()
        ]
    )
    finding = found(network, "n1", deployed, x)
    assert {e[0].name for e in finding.explanations} >= {"acc_int5"}
    output = found(network, "n2", deployed @ w[:3, :10].T, x)  # of the answer alone
    assert ("n0", "acc_int5") in {(e[0].node, e[0].name) for e in output.explanations}


def test_channels_read_in_another_order() -> None:
    """eki-project/finn-plus 101 and others: the flatten before a dense layer runs over [height,
    width, channels] in one tool and over [channels, height, width] in another."""
    w, x = rng().integers(-5, 6, (4, 24)), rng().integers(0, 16, (9, 2, 3, 4))
    network = one(Flatten(), (2, 3, 4), IntFormat(4, False), Linear(w))
    finding = found(network, "n1", x.transpose(0, 2, 3, 1).reshape(9, 24) @ w.T, x)
    assert ("n0", "reads_channels_last_written") in {
        (e[0].node, e[0].name) for e in finding.explanations
    }


def test_a_kernel_turned_round() -> None:
    """SciPy's and mathematics' convolution against that of networks."""
    w, x = rng().integers(-5, 6, (2, 1, 4)), rng().integers(0, 16, (6, 1, 11))
    values = np.array([[np.convolve(image[0], k[0], "valid") for k in w] for image in x])
    finding = found(one(Conv1d(w), (1, 11), IntFormat(4, False)), "n0", values, x)
    assert "kernel_flipped" in finding.names
