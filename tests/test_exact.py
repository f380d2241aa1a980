"""numpy against plain Python integers: whole networks, every node, every intermediate."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from refqnn import (
    Add,
    AffineQuantizer,
    Interval,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    Rescale,
    exact,
    testing,
)
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch
from refqnn.quantizers import Dequantizer, ThresholdQuantizer


def check(network, codes):
    got, expected = network.trace(codes), exact.trace(network, codes)
    assert list(got) == list(expected)
    for name, values in got.items():
        assert values.tolist() == expected[name], name
    assert network.forward(codes).tolist() == exact.forward(network, codes)
    ranges = network.ranges()
    for name, values in got.items():
        assert ranges[name].contains(values), name
        assert values.shape[1:] == network.shapes[name], name
    for node in network.nodes:
        event(node.op.kind)


@given(st.data())
def test_small_networks(data):
    network = data.draw(testing.networks())
    check(network, data.draw(testing.batches(network)))


@given(st.data(), st.sampled_from([2**11, 2**25, 2**40, 2**62]))
def test_networks_beyond_float32_float64_and_int64(data, max_weight):
    network = data.draw(testing.networks(max_weight=max_weight))
    check(network, data.draw(testing.batches(network)))


@pytest.mark.parametrize("kind", testing.KINDS)
def test_every_kind_alone(kind):
    shapes = {"Conv1d": (2, 5), "Conv2d": (2, 4, 4), "MaxPool2d": (2, 4, 5), "SumPool2d": (2, 4, 5)}
    shapes["ConvTranspose2d"] = (2, 2, 3)
    shape = shapes.get(kind, (3,) if kind == "Linear" else (2, 3))

    @given(st.data())
    def run(data):
        fmt = data.draw(testing.formats(max_bits=4))
        x = testing.Value("input", Interval.of_format(fmt, shape))
        most = data.draw(st.sampled_from([3, 2**62]))
        op = data.draw(testing.ops(kind, x, max_weight=most))
        inputs = ("input",) * (2 if kind in ("Add", "Concat") else 1)
        network = Network([Node("node", op, inputs)], input_shape=shape, input_format=fmt)
        check(network, data.draw(testing.batches(network)))

    run()


@pytest.mark.slow
def test_many_networks():
    """A count for the record: networks, values, kinds."""
    counts = Counter()

    @given(st.data(), st.sampled_from([3, 3, 2**13, 2**27, 2**62]))
    def run(data, max_weight):
        network = data.draw(testing.networks(max_nodes=10, max_weight=max_weight))
        codes = data.draw(testing.batches(network))
        check(network, codes)
        counts["networks"] += 1
        counts["values"] += sum(v.size for v in network.trace(codes).values())

    run()
    print(dict(counts))
    assert counts["networks"] >= 4_000


@given(st.data())
def test_doors(data):
    network = data.draw(testing.networks(doors=True))
    X = data.draw(testing.reals(network.input_quantizer, (2, *network.input_shape)))
    codes = network.quantize_input(X)
    assert codes.tolist() == exact.quantize(network.input_quantizer, X)
    floats = network.dequantize_output(network.forward(codes))
    assert floats.tolist() == exact.dequantize(network.output_dequantizer, network.forward(codes))
    assert np.array_equal(network.predict(X), floats)


def test_the_two_disagree_when_one_is_broken(monkeypatch):
    """The comparison can fail: break one line of the numpy path."""
    fmt = IntFormat(3, signed=False)
    from refqnn import Linear

    network = Network([Node("fc", Linear([[1, 2]]))], input_shape=(2,), input_format=fmt)
    forward = Linear.forward
    monkeypatch.setattr(
        Linear, "forward", lambda self, *x, plan=None: forward(self, *x, plan=plan) + 1
    )
    with pytest.raises(AssertionError):
        check(network, [[1, 2]])


def test_codes_outside_the_format():
    network = Network(
        [Node("same", testing.Flatten())], input_shape=(1,), input_format=IntFormat(2, False)
    )
    with pytest.raises(OutOfRange):
        exact.forward(network, [[4]])


@pytest.mark.parametrize(
    "codes",
    [
        *([], [[1, 2]], [[1, 2, 3, 4]], [1, 2, 3], [[1, 2, 3], [1, 2]], [[[1, 2, 3]]], None, 3),
        *([[1.5, 2, 3]], [["a", 2, 3]], np.zeros((0, 3), int)),
    ],
)
def test_codes_of_another_shape_or_type_are_refused(codes):
    node = Node("fc", Linear([[1, 2, 3]]))
    network = Network([node], input_shape=(3,), input_format=IntFormat(3, signed=False))
    for forward in (network.forward, lambda x: exact.forward(network, x)):
        with pytest.raises((ShapeMismatch, InvalidType, InvalidArgument)):
            forward(codes)


BYTE = IntFormat(8, signed=False)
BIT = IntFormat(1, signed=False)


@pytest.mark.parametrize("empty", [[], [[]], [[], []], np.zeros((0, 3)), np.zeros((2, 0))])
@pytest.mark.parametrize(
    "call",
    {
        "quantize": lambda x: exact.quantize(AffineQuantizer(0.5, 3, BYTE), x),
        "quantize channels": lambda x: exact.quantize(
            AffineQuantizer([0.5, 1.0, 2.0], 3, BYTE, axis=1), x
        ),
        "count thresholds": lambda x: exact.quantize(ThresholdQuantizer([[0.5]], BIT), x),
        "dequantize codes": lambda x: exact.dequantize(AffineQuantizer(0.5, 3, BYTE), x),
        "dequantize sums": lambda x: exact.dequantize(Dequantizer(0.5, [0.0, 1.0]), x),
        "project": lambda x: exact.project(x, None, (0, 7), 6),
        "add": lambda x: exact.apply(Add(), [exact._lists(x)] * 2),
        "requantize": lambda x: exact.apply(Requantize([[3]], BIT), [exact._lists(x)]),
        "rescale": lambda x: exact.apply(Rescale(1, 1, BYTE), [exact._lists(x)]),
    }.values(),
)
def test_nothing_becomes_nothing(call, empty):
    """Every function that keeps the shape keeps an empty one."""
    assert call(empty) == exact._lists(empty)


def test_no_rows_have_no_budgets():
    assert exact.sign_budgets([], [], None, (0, 7), 8) == ([], [])
    assert exact.sign_budgets([], [], [], (0, 7), 8) == ([], [])


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_infinity_counts_as_the_last_float32(sign):
    """`_count_thresholds`: infinite x at the ends of float32."""
    last = float(np.finfo(np.float32).max)
    below = float(np.nextafter(np.float32(last), np.float32(0)))
    rows = sorted([[sign * below, sign * last, sign * 1.0]])
    door = ThresholdQuantizer(np.sort(rows, axis=1), IntFormat(2, signed=False))
    x = [[sign * np.inf, sign * last, sign * below, 0.0]]
    assert exact.quantize(door, x) == door.quantize(np.array(x)).tolist()


@pytest.mark.parametrize("x", [Fraction(0), Fraction(-3), Fraction(1, 4), Fraction(1, 2)], ids=str)
@pytest.mark.parametrize("mode", ["about", "half", "HALF_UP", "", None])
def test_no_number_is_rounded_by_an_unknown_mode(x, mode):
    with pytest.raises(InvalidArgument, match="mode"):
        exact.round(x, mode)
