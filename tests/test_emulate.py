import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refqnn import IntFormat, Linear, Network, Node, exact, testing
from refqnn.emulate import Emulated
from refqnn.errors import AccumulatorOverflow, InvalidArgument, InvalidType, OutOfRange

UINT4 = IntFormat(4, signed=False)


def one_layer(weight, bias=None):
    weight = np.asarray(weight)
    layer = Node("fc", Linear(weight, bias))
    return Network([layer], input_shape=weight.shape[1:], input_format=UINT4)


def emulated(network, codes, *args, **kwargs):
    return network.trace(codes, accumulator=Emulated(*args, **kwargs))["fc"].ravel().tolist()


def test_saturation_depends_on_the_order():
    network = one_layer([[1, 1, -1]], [-2])
    codes = [[7, 5, 9]]  # terms 7, 5, -9, -2: exact sum 1
    assert emulated(network, codes, 4, overflow="saturate") == [-4]  # 7, 7, -2, -4
    assert emulated(network, codes, 4, overflow="saturate", order="reverse") == [4]  # -2 -8 -3 4
    assert emulated(network, codes, 4, overflow="saturate", order="bias_first") == [-2]  # -2 5 7 -2
    assert emulated(network, codes, 4, overflow="saturate", when="end") == [1]
    assert emulated(network, codes, 5, overflow="saturate") == [1]


def test_wrap_is_congruent_in_every_order():
    network = one_layer([[3, 3, 3]], [1])
    codes = [[15, 15, 15]]
    for order in ("forward", "reverse", "bias_first"):
        for when in ("step", "end"):
            assert emulated(network, codes, 8, when=when, order=order) == [136 - 256]
            assert emulated(network, codes, 7, False, when=when, order=order) == [8]


@settings(deadline=None)
@given(st.data())
def test_error_raises_exactly_where_wrapping_would_change_a_sum(data):
    small = st.integers(-9, 9)
    weight = data.draw(st.lists(small, min_size=1, max_size=5))
    codes = [data.draw(st.lists(st.integers(0, 15), min_size=len(weight), max_size=len(weight)))]
    network = one_layer([weight], [data.draw(small)])
    bits = data.draw(st.integers(1, 9))
    signed, when = data.draw(st.booleans()), data.draw(st.sampled_from(["step", "end"]))
    strict = Emulated(bits, signed, "error", when)
    terms = [w * x for w, x in zip(weight, codes[0])] + [int(network["fc"].op.bias[0])]
    sums = [sum(terms)] if when == "end" else [sum(terms[: k + 1]) for k in range(len(terms))]
    lowest = -(2 ** (bits - 1)) if signed else 0
    if all(lowest <= s < lowest + 2**bits for s in sums):
        assert network.trace(codes, strict)["fc"].tolist() == [[sum(terms)]]
        assert exact.trace(network, codes, strict)["fc"] == [[sum(terms)]]
        return
    for trace in (network.trace, lambda x, a: exact.trace(network, x, a)):
        with pytest.raises(AccumulatorOverflow, match="fc"):
            trace(codes, strict)


def test_widths_by_node_name():
    first, second = Node("a", Linear([[9]])), Node("b", Linear([[9]]))
    network = Network([first, second], input_shape=(1,), input_format=UINT4)
    trace = network.trace([[15]], accumulator=Emulated({"a": 6}, overflow="saturate"))
    assert (trace["a"].tolist(), trace["b"].tolist()) == ([[31]], [[279]])


@given(st.data())
def test_against_plain_python(data):
    kinds = [kind for kind in testing.KINDS if kind != "Lookup"]
    network = data.draw(testing.networks(kinds=kinds, max_nodes=4))
    codes = data.draw(testing.batches(network))
    accumulator = data.draw(testing.emulations() | testing.accumulators())
    got = network.trace(codes, accumulator=accumulator)
    expected = exact.trace(network, codes, accumulator)
    for name, values in got.items():
        assert values.tolist() == expected[name], name


@given(st.data())
def test_wide_widths_and_large_terms(data):
    network = data.draw(testing.networks(kinds=["Linear", "Conv1d", "Add"], max_weight=2**62))
    codes = data.draw(testing.batches(network))
    accumulator = data.draw(testing.emulations(64) | testing.accumulators(64))
    expected = exact.trace(network, codes, accumulator)
    for name, values in network.trace(codes, accumulator=accumulator).items():
        assert values.tolist() == expected[name], name


@given(st.data())
def test_a_wide_enough_accumulator_changes_nothing(data):
    network = data.draw(testing.networks())
    assume(all(r.largest < 2**40 for r in network.ranges().values()))
    codes = data.draw(testing.batches(network))
    accumulator = Emulated(64, overflow=data.draw(st.sampled_from(["wrap", "saturate"])))
    for name, values in network.trace(codes, accumulator=accumulator).items():
        assert np.array_equal(values, network.trace(codes)[name])


@pytest.mark.parametrize("bits", [61, 62, 63, 64])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("when", ["step", "end"])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_widths_near_int64(bits, signed, when, overflow):
    network = one_layer([[2**61 + 1, -1], [-(2**61) - 3, 1]])
    accumulator = Emulated(bits, signed, overflow, when)
    for codes in ([[1, 2]], [[4, 1]], [[3, 15]], [[15, 15]]):  # int64 holds the sums of the first
        got = network.trace(codes, accumulator=accumulator)["fc"]
        assert got.tolist() == exact.trace(network, codes, accumulator)["fc"]


def test_many_samples_go_in_blocks(monkeypatch):
    monkeypatch.setattr("refqnn.limits.HELD", 7)
    network = one_layer(np.arange(-4, 4).reshape(2, 4), [3, -3])
    codes = np.random.default_rng(0).integers(0, 16, (20, 4))
    accumulator = Emulated(5, overflow="saturate")
    got = network.trace(codes, accumulator=accumulator)["fc"]
    assert got.tolist() == exact.trace(network, codes, accumulator)["fc"]


def test_an_overflow_into_a_lookup_is_an_error():
    table = testing.Lookup(np.arange(16)[None], 0)
    nodes = [Node("fc", Linear([[1]])), Node("table", table)]
    network = Network(nodes, input_shape=(1,), input_format=UINT4)
    assert network.forward([[15]]).tolist() == [[15]]
    with pytest.raises(OutOfRange, match="Lookup"):
        network.trace([[15]], accumulator=Emulated(4))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"bits": 0}, InvalidArgument),
        ({"bits": 65}, InvalidArgument),
        ({"bits": 8.0}, InvalidType),
        ({"bits": {"fc": "8"}}, InvalidType),
        ({"bits": 8, "signed": 1}, InvalidType),
        ({"bits": 8, "overflow": "clip"}, InvalidArgument),
        ({"bits": 8, "when": "never"}, InvalidArgument),
        ({"bits": 8, "order": "random"}, InvalidArgument),
    ],
)
def test_errors(arguments, error):
    with pytest.raises(error):
        Emulated(**arguments)
