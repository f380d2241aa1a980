"""What to_onnx writes computes the same integers in other people's runtimes, and reads back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_networks import (
    RandomNetwork,
    inputs_for,
    random_codes,
    random_dense,
    random_image,
    run_onnxruntime,
    run_qonnx,
)

pytest.importorskip("onnx")

import onnx

from refqnn import (
    BIPOLAR,
    IntFormat,
    Network,
    Node,
    Requantize,
    Rounding,
    SymmetricQuantizer,
    ops,
)
from refqnn.errors import InvalidArgument, InvalidType, NotCovered
from refqnn.onnx import FLAVOURS, from_onnx, to_onnx
from refqnn.ops import Add, Conv2d, Linear, MaxPool2d, Op, Rescale, Softmax
from refqnn.quantizers import AffineQuantizer
from refqnn.testing import KINDS, batches, networks, reals

SEEDS = range(12)
MAKERS = {"dense": random_dense, "image": random_image}


def network_of(kind: str, seed: int) -> tuple[Network, np.ndarray]:
    rng = np.random.default_rng([seed, len(kind)])
    network = MAKERS[kind](rng)
    return network, inputs_for(network, rng, 40)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("flavour", ["qcdq", "integer"])
def test_onnxruntime_computes_the_same_integers_with_and_without_optimizer(kind, flavour, seed):
    pytest.importorskip("onnxruntime")
    network, X = network_of(kind, seed)
    expected = network.forward(network.quantize_input(X))
    model = to_onnx(network, flavour=flavour)
    onnx.checker.check_model(model, full_check=True)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        np.testing.assert_array_equal(run_onnxruntime(model, X, level), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_qonnx_executor_computes_the_same_integers(kind, seed):
    pytest.importorskip("qonnx")
    network, X = network_of(kind, seed)
    expected = network.forward(network.quantize_input(X[:4]))
    np.testing.assert_array_equal(run_qonnx(to_onnx(network, flavour="qonnx"), X[:4]), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_our_reader_gets_the_network_back(kind, flavour, seed):
    network, X = network_of(kind, seed)
    again = from_onnx(to_onnx(network, flavour=flavour))
    codes = again.quantize_input(X)
    np.testing.assert_array_equal(codes, network.quantize_input(X))
    np.testing.assert_array_equal(again.forward(codes), network.forward(codes))


@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_a_file_on_disk_with_a_fixed_batch_and_float_outputs(tmp_path: Path, flavour):
    network, X = network_of("dense", 3)
    path = tmp_path / "net.onnx"
    to_onnx(network, path, flavour=flavour, output="floats", batch=4)
    again = from_onnx(path)
    np.testing.assert_array_equal(again.predict(X), network.predict(X))
    if flavour != "qonnx":
        y = run_onnxruntime(onnx.load(path), X[:4])
        np.testing.assert_array_equal(y, network.predict(X[:4]))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
@pytest.mark.parametrize("fmt", [IntFormat(4, True), IntFormat(8, False), IntFormat(12, True)])
def test_networks_that_take_codes(flavour, fmt):
    rng = np.random.default_rng(7)
    weight = rng.integers(-2, 3, (5, 3))
    network = Network([Node("fc", Linear(weight))], input_shape=(3,), input_format=fmt)
    codes = rng.integers(fmt.q_min, fmt.q_max + 1, (9, 3))
    model = to_onnx(network, flavour=flavour)
    kind = model.graph.input[0].type.tensor_type.elem_type
    X = codes.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    run = run_qonnx if flavour == "qonnx" else run_onnxruntime
    np.testing.assert_array_equal(run(model, X), network.forward(codes))


def test_eight_bit_products_that_saturate_in_some_kernels_are_written_unsigned():
    # 2 * 255 * 127 leaves 16 bits; a signed weight would meet kernels that add pairs there.
    network = Network(
        [Node("fc", Linear(np.full((2, 64), 127)))],
        input_shape=(64,),
        input_format=IntFormat(8, False),
    )
    model = to_onnx(network, flavour="integer")
    (weight,) = [i for i in model.graph.initializer if i.name.startswith("fc_weight.0")]
    assert weight.data_type == onnx.TensorProto.UINT8
    floats = to_onnx(network, flavour="qcdq")
    (weight,) = [i for i in floats.graph.initializer if i.name.startswith("fc_weight.0")]
    assert weight.data_type == onnx.TensorProto.INT32
    X = np.full((1, 64), 255, dtype=np.uint8)
    assert run_onnxruntime(model, X).tolist() == [[64 * 255 * 127] * 2]


def wide_network(bits: int, fan_in: int) -> Network:
    fmt = IntFormat(bits, signed=False)
    weight = np.full((1, fan_in), 127)
    return Network([Node("fc", Linear(weight))], input_shape=(fan_in,), input_format=fmt)


def test_sums_beyond_the_exact_arithmetic_of_a_flavour_are_refused():
    fits, leaves = wide_network(8, 518), wide_network(8, 519)  # 255 * 127 * 518 < 2**24 < ... * 519
    for flavour in ("qonnx", "qcdq"):
        to_onnx(fits, flavour=flavour)
        with pytest.raises(NotCovered, match=r"'fc'.*absolute mass.*at most 16777216"):
            to_onnx(leaves, flavour=flavour)
    to_onnx(leaves, flavour="integer")
    with pytest.raises(NotCovered, match="at most 2147483647"):
        to_onnx(wide_network(20, 20), flavour="integer")


def test_what_a_flavour_has_no_exact_operator_for_is_refused():
    node = Node("fc", Linear([[1]]))
    double = SymmetricQuantizer(0.3, IntFormat(4, True), precision="float64")
    with pytest.raises(NotCovered, match="float64"):
        to_onnx(Network([node], input_shape=(1,), input_quantizer=double))
    with pytest.raises(NotCovered, match=r"'conv'.*8 bits"):
        to_onnx(wide_image(2**22), flavour="integer")
    shares = Node("shares", Softmax([2**31 - 1, 2**30], IntFormat(8, True)))
    net = Network([node, shares], input_shape=(1,), input_format=IntFormat(4, True))
    for flavour in FLAVOURS:
        with pytest.raises(NotCovered, match=r"'shares' \(Softmax\).*the nodes in front of it"):
            to_onnx(net, flavour=flavour)


def wide_image(factor: int) -> Network:
    """Integers of more than 8 bits that are convolved and pooled."""
    conv = Node("conv", Conv2d([[[[1]], [[-2]]]], padding=((0, 1), (1, 0)), pad_code=-3))
    return Network(
        [Node("sum", Add((factor,))), conv, Node("max", MaxPool2d(2, 1))],
        input_shape=(2, 2, 3),
        input_format=IntFormat(4, True),
    )


@pytest.mark.parametrize("factor", [1, 9, 300, -300])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_integers_of_more_than_8_bits_are_convolved_and_pooled_exactly(flavour, factor):
    network = wide_image(factor)
    codes = random_codes(network, np.random.default_rng(1), 50)
    model = to_onnx(network, flavour=flavour)
    np.testing.assert_array_equal(from_onnx(model).forward(codes), network.forward(codes))
    run, dtype = (run_qonnx, np.float32) if flavour == "qonnx" else (run_onnxruntime, np.int8)
    np.testing.assert_array_equal(run(model, codes.astype(dtype)), network.forward(codes))


@pytest.mark.parametrize("multiplier", [-5, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_product_by_one_integer_is_no_scale_when_it_is_read(flavour, multiplier):
    for tail in ([], [Node("fc", Linear([[1, -2]]))]):
        network = Network(
            [Node("times", Add((multiplier,))), *tail],
            input_shape=(2,),
            input_format=IntFormat(4, True, narrow=True),
        )
        codes = random_codes(network, np.random.default_rng(1), 50)
        again = from_onnx(to_onnx(network, flavour=flavour))
        np.testing.assert_array_equal(again.forward(codes), network.forward(codes))
        assert again.output_dequantizer is None or np.all(again.output_dequantizer.scale == 1)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("mode", Rounding)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_doors_of_more_than_8_bits_come_back_as_they_went(flavour, mode, narrow):
    fmt = IntFormat(12, True, narrow)
    for door in (
        SymmetricQuantizer(0.3, fmt, mode),
        SymmetricQuantizer([0.3, 0.07], fmt, mode, 1),
        AffineQuantizer(0.3, -5, fmt, mode),
        AffineQuantizer([0.3, 0.07], [5, 900], fmt, mode, 1, zero_point_first=True),
    ):
        network = Network([Node("fc", Linear([[1, 1]]))], input_shape=(2,), input_quantizer=door)
        again = from_onnx(to_onnx(network, flavour=flavour)).input_quantizer
        assert type(again) is type(door)
        for name in ("scale", "rounding", "axis", "format", "zero_point", "zero_point_first"):
            assert np.all(getattr(again, name, 0) == getattr(door, name, 0)), name


def test_arguments_are_checked():
    network = Network(
        [Node("fc", Linear([[1]]))], input_shape=(1,), input_format=IntFormat(4, True)
    )
    with pytest.raises(InvalidArgument, match="flavour"):
        to_onnx(network, flavour="tflite")
    with pytest.raises(InvalidArgument, match="batch"):
        to_onnx(network, batch=0)
    with pytest.raises(InvalidArgument, match="output"):
        to_onnx(network, output="codes")
    with pytest.raises(InvalidType, match="network"):
        to_onnx("network")
    with pytest.raises(NotCovered, match="output dequantizer"):
        to_onnx(network, output="floats")


def test_a_shift_becomes_one_quantize_linear_and_never_a_tie():
    fmt = IntFormat(3, signed=False)
    for shift in range(6):
        act = Requantize.from_shift(shift, fmt, offset=np.array([0, 3, -5]))
        network = Network(
            [Node("act", act)], input_shape=(3,), input_format=IntFormat(10, signed=True)
        )
        model = to_onnx(network, flavour="qcdq")
        kinds = [n.op_type for n in model.graph.node]
        assert "QuantizeLinear" in kinds
        assert "GreaterOrEqual" not in kinds
        codes = np.repeat(np.arange(-512, 512)[:, None], 3, axis=1)
        y = run_onnxruntime(model, codes.astype(np.int32))
        np.testing.assert_array_equal(y, network.forward(codes))


@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_a_bipolar_input(flavour):
    rng = np.random.default_rng(2)
    network = Network(
        [Node("fc", Linear(rng.integers(-3, 4, (4, 5))))],
        input_shape=(5,),
        input_quantizer=SymmetricQuantizer(0.5, BIPOLAR),
    )
    X = rng.choice(np.float32([-1.5, -1e-30, -0.0, 0.0, 0.25]), (8, 5))
    run = run_qonnx if flavour == "qonnx" else run_onnxruntime
    expected = network.forward(network.quantize_input(X))
    np.testing.assert_array_equal(run(to_onnx(network, flavour=flavour), X), expected)


@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_one_scale_per_input_channel(flavour):
    rng = np.random.default_rng(2)
    quantizer = SymmetricQuantizer([0.5, 0.3, 0.7], IntFormat(5, True), axis=1)
    network = Network(
        [Node("conv", Conv2d(rng.integers(-3, 4, (4, 3, 2, 2))))],
        input_shape=(3, 3, 3),
        input_quantizer=quantizer,
    )
    X = rng.normal(size=(7, 3, 3, 3)).astype(np.float32) * 8
    expected = network.forward(network.quantize_input(X))
    model = to_onnx(network, flavour=flavour)
    run = run_qonnx if flavour == "qonnx" else run_onnxruntime
    np.testing.assert_array_equal(run(model, X), expected)


TIES = np.arange(-40, 41, dtype=np.float32) / 2
AROUND_TIES = [np.nextafter(TIES, np.float32(end)) for end in (-1e9, 1e9)]
GREAT = np.float32([2.0**11, 2.0**23 + 1, 2.0**24 + 2, 3e38])


@pytest.mark.parametrize("bits", [4, 9, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", Rounding)
@pytest.mark.parametrize("flavour", ["qonnx", "qcdq", "integer"])
def test_every_rounding_of_the_input_is_written_exactly(flavour, mode, bits):
    quantizer = SymmetricQuantizer(1.0, IntFormat(bits, True), mode)
    network = Network([Node("fc", Linear([[1]]))], input_shape=(1,), input_quantizer=quantizer)
    X = np.concatenate([TIES, *AROUND_TIES, GREAT, -GREAT])[:, None]
    run = run_qonnx if flavour == "qonnx" else run_onnxruntime
    expected = network.forward(network.quantize_input(X))
    np.testing.assert_array_equal(run(to_onnx(network, flavour=flavour), X), expected)


def round_trip(seed: int, flavour: str, drawn: Counter[type[Op]]) -> str:
    """How a random network ends that is written and read again."""
    rng = np.random.default_rng(seed)
    network = RandomNetwork(rng, int(rng.integers(1, 7))).network
    drawn.update(type(node.op) for node in network.nodes)
    try:
        model = to_onnx(network, flavour=flavour)
    except NotCovered as error:
        return str(error).partition(": ")[2]
    again = from_onnx(model)
    codes = random_codes(network, rng, 30)
    np.testing.assert_array_equal(again.forward(codes), network.forward(codes), str(seed))
    if network.input_quantizer is None:
        assert again.input_format == network.input_format, seed
    else:
        scale = np.max(getattr(network.input_quantizer, "scale", 1.0))
        X = (rng.normal(size=codes.shape) * 8 * scale).astype(np.float32)
        X[:10] = np.rint(X[:10] / scale * 2) * scale / 2  # ties
        expected = network.quantize_input(X)
        np.testing.assert_array_equal(again.quantize_input(X), expected, str(seed))
    return "equal"


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_random_networks_come_back(flavour, count):
    drawn: Counter[type[Op]] = Counter()
    ends = Counter(round_trip(seed, flavour, drawn) for seed in range(count))
    print(flavour, dict(ends), {kind.kind: n for kind, n in drawn.items()})
    assert set(drawn) == {*ops.KINDS} - {Softmax}
    assert ends["equal"] > count * 3 // 4
    wide = "at most 8 bits, or the integer flavour"
    reasons = {end.partition(", expected ")[2] for end in ends if end != "equal"}
    assert reasons <= ({wide} if flavour != "integer" else set())


@pytest.mark.parametrize("multiplier", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_one_operand_times_an_integer_comes_back_as_integers(flavour, multiplier):
    node = Node("sum", Add((multiplier,)))
    net = Network([node], input_shape=(2,), input_format=IntFormat(3, signed=True))
    codes = np.array([[-4, 3], [1, 0]])
    again = from_onnx(to_onnx(net, flavour=flavour))
    assert again.forward(codes).tolist() == (multiplier * codes).tolist()


def wide_rescale(network: Network) -> bool:
    wide = (n.op.format.bits > 8 for n in network.nodes if isinstance(n.op, Rescale))
    return any(wide)


def comes_back(network: Network, flavour: str, data: st.DataObject) -> None:
    """Equal codes out of equal floats, where the network can be written at all."""
    try:
        model = to_onnx(network, flavour=flavour)
    except NotCovered as error:
        if any(reason in str(error) for reason in ("float64", "(Rescale)", "absolute mass")):
            return
        raise
    try:
        again = from_onnx(model)
    except NotCovered as error:
        if wide_rescale(network) and "too many to list" in str(error):
            return
        raise
    codes = data.draw(batches(network))
    np.testing.assert_array_equal(again.forward(codes), network.forward(codes))
    assert again.input_format == network.input_format
    if network.input_quantizer is not None:
        X = data.draw(reals(network.input_quantizer, (3, *network.input_shape))).astype(np.float32)
        np.testing.assert_array_equal(again.quantize_input(X), network.quantize_input(X))


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_networks_of_every_kind_come_back(flavour, count):
    """All kinds and doors of `refqnn.testing` but Softmax: gathers, scales near the ends of
    float32."""
    kinds = [kind for kind in KINDS if kind != "Softmax"]
    drawn = networks(max_nodes=4, kinds=kinds) | networks(max_nodes=4, kinds=kinds, doors=True)
    test = given(drawn, st.data())(lambda network, data: comes_back(network, flavour, data))
    settings(max_examples=count)(test)()


@pytest.mark.parametrize("mode", Rounding)
def test_a_rescale_is_the_same_integers_in_a_runtime(mode):
    """Shifts to the left, to the right and none side by side; ties of both signs."""
    pytest.importorskip("onnxruntime")
    op = Rescale(
        *([1, 3, 5 << 4, 2**31 - 1, 0], [1, 3, 0, 33, 4], IntFormat(16, signed=True), mode),
        *([0, 1, -2, 3, 4], [0, -3, 1, 0, 9]),
        clip=[[-9, 9], *[[-(2**15), 2**15 - 1]] * 4],
    )
    twice = replace(op, first_rounding=mode, first_shift=[0, 2, 0, 31, 1], rounding="half_away")
    for rescale in (op, twice):
        nodes = [Node("fc", Linear(np.ones((5, 1), dtype=int))), Node("wide", rescale)]
        net = Network(nodes, input_shape=(1,), input_format=IntFormat(8, signed=True))
        codes = np.arange(-128, 128)[:, None]
        model = to_onnx(net, flavour="integer")
        got = run_onnxruntime(model, codes.astype(np.int8))
        np.testing.assert_array_equal(got, net.forward(codes))
        np.testing.assert_array_equal(from_onnx(model).forward(codes), net.forward(codes))
    with pytest.raises(NotCovered, match="Rescale"):
        to_onnx(net, flavour="qcdq")
    wide = Node("wide", Rescale([2**61] * 5, 61, IntFormat(16, signed=True)))
    with pytest.raises(NotCovered, match="product"):
        to_onnx(net.with_nodes([nodes[0], wide]), flavour="integer")


@pytest.mark.parametrize("clip", [None, [[-9, 9 + k] for k in range(8)]])
@pytest.mark.parametrize("multiplier", [2**24 + 1, 2**26, 123456789, 2**31, 3 * 2**30, 2**32 - 5])
def test_a_rescale_saturates_far_beyond_32_bits_in_a_runtime(multiplier, clip):
    """What is clipped there has any low 32 bits."""
    pytest.importorskip("onnxruntime")
    wide = Node("wide", Rescale(multiplier, 0, IntFormat(16, signed=True), clip=clip))
    nodes = [Node("fc", Linear(np.ones((8, 1), dtype=int))), wide]
    net = Network(nodes, input_shape=(1,), input_format=IntFormat(8, signed=True))
    codes = np.arange(-128, 128)[:, None]
    model = to_onnx(net, flavour="integer")
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        got = run_onnxruntime(model, codes.astype(np.int8), level)
        np.testing.assert_array_equal(got, net.forward(codes))
    np.testing.assert_array_equal(from_onnx(model).forward(codes), net.forward(codes))


def test_a_rescale_of_few_codes_is_written_by_its_thresholds():
    pytest.importorskip("onnxruntime")
    few = Node(
        "few", Rescale([3, 1 << 30], [2, 33], IntFormat(5, signed=True), "half_even", [1, 0])
    )
    nodes = [Node("fc", Linear([[1], [-1]])), few]
    net = Network(nodes, input_shape=(1,), input_format=IntFormat(4, signed=True))
    codes = np.arange(-8, 8)[:, None]
    got = run_onnxruntime(to_onnx(net, flavour="qcdq"), codes.astype(np.int8))
    np.testing.assert_array_equal(got, net.forward(codes))
