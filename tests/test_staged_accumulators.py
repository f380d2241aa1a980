import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refqnn import Accumulator, Conv2d, IntFormat, Linear, Network, Node, Stage, exact, testing
from refqnn.conformance.making.cases import _MACHINES
from refqnn.emulate import PRESETS, Emulated
from refqnn.errors import AccumulatorOverflow, InvalidArgument, InvalidType, ShapeMismatch

UINT8, INT8, INT16 = (IntFormat(b, signed=s) for b, s in ((8, False), (8, True), (16, True)))


def one_layer(weight, bias=None, fmt=UINT8):
    weight = np.asarray(weight)
    layer = Node("fc", Linear(weight, bias))
    return Network([layer], input_shape=weight.shape[1:], input_format=fmt)


def wrapped(value, bits):
    """The two's complement number of the low bits, as C casts do it."""
    return int.from_bytes((value % 2**bits).to_bytes(bits // 8, "little"), "little", signed=True)


# --- one register, many registers (against plain Python: test_emulate.py) -----------------------


@given(st.data())
def test_one_stage_is_what_emulated_says(data):
    network = data.draw(testing.networks(kinds=["Linear", "Conv2d"], max_nodes=2))
    codes = data.draw(testing.batches(network))
    emulated = data.draw(testing.emulations())
    stage = Stage(emulated.bits, emulated.signed, None, emulated.overflow, emulated.when)
    order = "reverse" if emulated.order == "reverse" else "forward"
    bias = "last" if emulated.order == "forward" else "first"
    got = network.trace(codes, accumulator=Accumulator([stage], order, bias))
    for name, values in network.trace(codes, accumulator=emulated).items():
        assert np.array_equal(values, got[name])


@given(st.data())
def test_stages_that_wrap_at_one_width_or_more_are_one_register(data):
    """Congruence: neither grouping nor order shows where the last register is the narrowest."""
    network = data.draw(testing.networks(kinds=["Linear", "Conv2d"], max_nodes=1))
    codes = data.draw(testing.batches(network))
    bits = data.draw(st.integers(1, 8))
    inner = [Stage(bits + data.draw(st.integers(0, 3)), group=g) for g in (2, 3)]
    order = data.draw(st.sampled_from(["forward", "reverse", "channels_last"]))
    many = network.trace(codes, accumulator=Accumulator([*inner, Stage(bits)], order))
    one = network.trace(codes, accumulator=Emulated(bits))
    assert np.array_equal(many[network.output], one[network.output])


# --- the presets, from their words --------------------------------------------------------------


@given(st.data())
@pytest.mark.parametrize("large", [False, True])
def test_maddubs_saturates_pairs_and_wraps_their_sums(large, data):
    k = data.draw(st.integers(1, 9))
    byte = st.integers(100, 127) if large else st.integers(-128, 127)
    weight = data.draw(st.lists(byte, min_size=k, max_size=k))
    x = data.draw(st.lists(st.integers(0, 255), min_size=k, max_size=k))
    bias = data.draw(st.integers(-(2**31), 2**31 - 1))
    acc = bias
    for i in range(0, k, 2):
        pair = sum(weight[j] * x[j] for j in range(i, min(i + 2, k)))
        acc = wrapped(acc + max(-(2**15), min(2**15 - 1, pair)), 32)
    network = one_layer([weight], [bias])
    got = network.trace([x], accumulator=Accumulator.preset("x86_maddubs"))
    assert got["fc"].tolist() == [[acc]]


@given(st.data())
@pytest.mark.parametrize(("name", "at_a_time"), [("x86_vnni", 4), ("arm_sdot", 4)])
def test_dot_products_of_four(name, at_a_time, data):
    k = data.draw(st.integers(1, 9))
    weight = data.draw(st.lists(st.integers(-128, 127), min_size=k, max_size=k))
    x = data.draw(st.lists(st.integers(0, 255), min_size=k, max_size=k))
    bias = data.draw(st.sampled_from([0, 2**31 - 1, -(2**31), 5]))
    acc = bias
    for i in range(0, k, at_a_time):
        acc = wrapped(acc + sum(w * v for w, v in zip(weight[i : i + 4], x[i : i + 4])), 32)
    got = one_layer([weight], [bias]).trace([x], accumulator=Accumulator.preset(name))
    assert got["fc"].tolist() == [[acc]]


def test_the_saturating_form_adds_four_products_at_once():
    """2**31 - 1 + (255*127 - 255*128) is below the end, though a first step would be beyond it."""
    network = one_layer([[127, -128, 0, 0, 1]], [2**31 - 1])
    accumulator = Accumulator.preset("x86_vnni_saturating")
    codes = [[255, 255, 0, 0, 255], [1, 0, 0, 0, 0], [0, 0, 0, 0, 9]]
    got = network.trace(codes, accumulator=accumulator)["fc"].ravel().tolist()
    assert got == [2**31 - 1, 2**31 - 1, 2**31 - 1]
    network = one_layer([[127, -128, 0, 0, 1]], [2**31 - 1 - 100])
    got = network.trace(codes, accumulator=accumulator)["fc"].ravel().tolist()
    assert got == [2**31 - 101, 2**31 - 1, 2**31 - 92]


def test_smlad_wraps_where_both_products_are_greatest():
    network = one_layer([[-(2**15), -(2**15)]], [0], INT16)
    accumulator = Accumulator.preset("arm_smlad")
    assert network.trace([[-(2**15), -(2**15)]], accumulator=accumulator)["fc"].tolist() == [
        [-(2**31)]
    ]


def test_tiles_of_512_in_int32():
    weight = np.full((1, 513), -128)
    codes = np.full((1, 513), -(2**15))
    network = one_layer(weight, [1], INT16)
    got = network.trace(codes, accumulator=Accumulator.preset("cmsis_nn_s16"))["fc"]
    assert got.tolist() == [[-(2**31) + 2**22 + 1]]  # 512 * 2**22 is one too many for an int32


def test_finn_wraps_the_products_and_not_the_bias():
    network = one_layer([[1, 1, 1]], [1000])
    accumulator = Accumulator.preset("finn", width=8, simd=2)
    assert network.trace([[100, 20, 30]], accumulator=accumulator)["fc"].tolist() == [[894]]


@pytest.mark.parametrize("when", ["end", "step"])
@pytest.mark.parametrize("width", [60, 62, 64])
def test_sums_near_the_ends_of_int64_wrap_as_python_says(when, width):
    rng = np.random.default_rng(width)
    for most, n in ((2**59, 9), (2**60, 9), (2**61, 4), (2**62, 3)):
        values = rng.integers(most - 9, most, (5, n)) * rng.choice([1, 1, 1, -1], (5, 1))
        sums = Stage(width, overflow="wrap", when=when).sums(values)
        half = 2 ** (width - 1)
        exact_sums = [(sum(row) + half) % 2**width - half for row in values.tolist()]
        assert sums.acc.ravel().tolist() == exact_sums
        if when == "end":
            assert sums.least.ravel().tolist() == [sum(row) for row in values.tolist()]


def test_channels_last_runs_through_the_channels_first():
    """Products 1, 2 | 4, 8 of two channels: pairs are 1 + 4 and 2 + 8."""
    conv = Node("conv", Conv2d([[[[1, 2]], [[4, 8]]]]))
    network = Network([conv], input_shape=(2, 1, 2), input_format=UINT8)
    by_channel, by_place = (
        Accumulator([Stage(4, group=2, overflow="saturate", when="end"), Stage(8)], order)
        for order in ("forward", "channels_last")
    )
    ones = np.ones((1, 2, 1, 2), dtype=int)
    for trace in (network.trace, lambda x, accumulator: exact.trace(network, x, accumulator)):
        for accumulator, sums in ((by_channel, 3 + 7), (by_place, 5 + 7)):
            assert np.ravel(trace(ones, accumulator=accumulator)["conv"]).tolist() == [sums]


def test_places_by_number():
    network = one_layer([[1, 2, 4, 8]])
    pairs = [Stage(4, group=2, overflow="saturate"), Stage(8)]
    accumulator = Accumulator(pairs, order=[0, 3, 1, 2])
    codes = [[1, 1, 1, 1]]
    assert network.trace(codes, accumulator=accumulator)["fc"].tolist() == [[7 + 6]]
    assert exact.trace(network, codes, accumulator)["fc"] == [[7 + 6]]
    with pytest.raises(ShapeMismatch, match="4 places"):
        one_layer([[1, 2]]).trace([[1, 1]], accumulator=accumulator)


def test_a_product_in_a_register_of_its_own():
    network = one_layer([[3, 3]])
    accumulator = Accumulator([Stage(4, group=1, overflow="saturate"), Stage(8)])
    assert network.trace([[9, 1]], accumulator=accumulator)["fc"].tolist() == [[7 + 3]]


def test_by_node_name():
    first, second = Node("a", Linear([[9]])), Node("b", Linear([[9]]))
    network = Network([first, second], input_shape=(1,), input_format=UINT8)
    clipped = {"a": Accumulator([Stage(6, overflow="saturate")])}
    trace = network.trace([[15]], accumulator=clipped)
    assert (trace["a"].tolist(), trace["b"].tolist()) == ([[31]], [[279]])
    assert exact.trace(network, [[15]], clipped)["b"] == [[279]]


@pytest.mark.parametrize("group", [1, 2, None])
def test_an_error_names_the_node(group):
    stages = [Stage(4, group=group, overflow="error"), Stage(32)]
    accumulator = Accumulator(stages if group else [stages[0]])
    network = one_layer([[5, 5]])
    for trace in (network.trace, lambda x, accumulator: exact.trace(network, x, accumulator)):
        with pytest.raises(AccumulatorOverflow, match=r"'fc'.*[12]0"):
            trace([[2, 2]], accumulator=accumulator)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_it_comes_from(name):
    assert PRESETS[name].__doc__.strip()
    accumulator = Accumulator.preset(name, **({"width": 16} if name == "finn" else {}))
    assert eval(repr(accumulator), {"Accumulator": Accumulator, "Stage": Stage}) == accumulator
    assert hash(accumulator) == hash(eval(repr(accumulator)))


WRAPS = "wrap at every step"


@pytest.mark.parametrize(
    ("name", "stages", "order", "bias"),
    [
        ("int32", ["all -> int32"], "forward", "last"),
        ("cmsis_nn_s8", ["all -> int32"], "channels_last", "first"),
        ("cmsis_nn_s16", ["512 -> int32", "all -> int64"], "channels_last", "last"),
        ("finn", ["1 -> int13", "all -> int13"], "channels_last", "outside"),
    ],
)
def test_presets_of_one_register_and_of_products_as_they_come(name, stages, order, bias):
    accumulator = Accumulator.preset(name, **({"width": 13} if name == "finn" else {}))
    assert list(map(str, accumulator.stages)) == [f"{stage}, {WRAPS}" for stage in stages]
    assert (accumulator.order, accumulator.bias) == (order, bias)


def test_the_vectors_ask_for_these_machines():
    for name, (widths, signed, groups, saturates, at_end) in _MACHINES.items():
        stages = Accumulator.preset(name.replace("-", "_")).stages
        assert widths == tuple(stage.width for stage in stages)
        assert signed == tuple(int(stage.signed) for stage in stages)
        assert (*groups, None) == tuple(stage.group for stage in stages)
        assert saturates == tuple(int(stage.overflow == "saturate") for stage in stages)
        assert at_end == tuple(int(stage.when == "end") for stage in stages)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Stage(0), InvalidArgument),
        (lambda: Stage(65), InvalidArgument),
        (lambda: Stage("8"), InvalidType),
        (lambda: Stage(8, signed=1), InvalidType),
        (lambda: Stage(8, group=0), InvalidArgument),
        (lambda: Stage(8, group=2.0), InvalidType),
        (lambda: Stage(8, overflow="clip"), InvalidArgument),
        (lambda: Stage(8, when="never"), InvalidArgument),
        (lambda: Accumulator([]), InvalidArgument),
        (lambda: Accumulator(Stage(8)), InvalidType),
        (lambda: Accumulator([8]), InvalidType),
        (lambda: Accumulator([Stage(8, group=2)]), InvalidArgument),
        (lambda: Accumulator([Stage(8), Stage(8)]), InvalidArgument),
        (lambda: Accumulator([Stage(8)], order="nhwc"), InvalidArgument),
        (lambda: Accumulator([Stage(8)], order=[0, 2]), InvalidArgument),
        (lambda: Accumulator([Stage(8)], order=[0.0, 1.0]), InvalidType),
        (lambda: Accumulator([Stage(8)], order=3), InvalidType),
        (lambda: Accumulator([Stage(8)], bias="none"), InvalidArgument),
        (lambda: Accumulator.preset("z80"), InvalidArgument),
        (lambda: Accumulator.preset("finn"), InvalidArgument),
        (lambda: Accumulator.preset("int32", width=3), InvalidArgument),
        (lambda: one_layer([[1]]).trace([[1]], accumulator=Stage(8)), InvalidType),
        (lambda: one_layer([[1]]).trace([[1]], accumulator={"fc": 8}), InvalidType),
    ],
)
def test_bad_input(make, error):
    with pytest.raises(error):
        make()
