"""find_overflow: an input, a proof, or unknown, and what an overflow does to an accumulator."""

import time

import numpy as np
import pytest
from accumulator_networks import all_inputs, brute_force, chains, integers, networks
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refqnn.accumulator.classes as classes
import refqnn.accumulator.deciding as deciding
import refqnn.accumulator.overflow as overflow
import refqnn.accumulator.staged as staged
from refqnn import (
    BIPOLAR,
    Accumulator,
    Concat,
    Domain,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    Stage,
    certify,
    certify_class,
    find_overflow,
    signed_bits,
)
from refqnn.accumulator import NoOverflow, Overflow, Unknown
from refqnn.accumulator.search import _moves, _question
from refqnn.emulate import Emulated
from refqnn.errors import CertificateError, InvalidArgument, InvalidType


@given(networks, st.integers(1, 9), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_answer_is_that_of_enumeration(network, bits, signed):
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    truth = brute_force(network, all_inputs(network))
    interval = certify(network, method="interval")
    for certificate in (None, interval):
        answer = find_overflow(network, bits=bits, signed=signed, certificate=certificate)
        possible = any(
            (truth[node.name][0] < lowest).any() or (truth[node.name][1] > highest).any()
            for node in network.accumulators()
        )
        assert isinstance(answer, Overflow if possible else NoOverflow)
        if isinstance(answer, Overflow):
            values = network.trace(answer.witness[None])[answer.layer]
            assert values[(0, *answer.neuron)] == answer.value
            assert not lowest <= answer.value <= highest
        else:
            assert lowest <= answer.range[0] <= answer.range[1] <= highest


@given(chains(), st.integers(2, 6), st.data())
@settings(max_examples=20, deadline=None)
def test_one_neuron_at_a_time_without_enumeration(network, bits, data):
    node = data.draw(st.sampled_from(network.accumulators()))
    neuron = data.draw(st.integers(0, network.shapes[node.name][0] - 1))
    truth = brute_force(network, all_inputs(network))[node.name]
    interval = certify(network, method="interval")
    answer = find_overflow(network, node.name, neuron, bits, certificate=interval)
    if signed_bits(truth[0][neuron], truth[1][neuron]) > bits:
        assert isinstance(answer, Overflow)
        assert answer.neuron == (neuron,)
    else:
        assert isinstance(answer, NoOverflow)


def deep(seed=5):
    rng = np.random.default_rng(seed)
    nodes = [
        Node("fc0", Linear(rng.integers(-4, 4, (24, 32)))),
        Node("act0", Requantize.from_shift(3, IntFormat(3, False))),
        Node("fc1", Linear(rng.integers(-4, 4, (2, 24)))),
    ]
    return Network(nodes, input_shape=(32,), input_format=IntFormat(3, False))


def test_no_time_means_unknown_never_no_overflow(monkeypatch):
    network = deep()
    interval = certify(network, method="interval")
    bits = interval["fc1"].signed_bits - 1
    lo, hi = interval["fc1"].lo, interval["fc1"].hi
    inside = signed_bits(int(lo.min()), int(hi.max()) if hi.max() < 2 ** (bits - 1) else 0)
    assert inside > bits or hi.max() >= 2 ** (bits - 1)
    monkeypatch.setattr(deciding, "solver_installed", lambda: False)
    answer = find_overflow(network, "fc1", None, bits, certificate=interval, budget_s=0.0)
    assert isinstance(answer, (Unknown, Overflow))
    if isinstance(answer, Unknown):
        assert answer.neurons
        assert "unknown" in str(answer)


@pytest.mark.parametrize("best", [None, *range(-40, 40)])
def test_a_question_lies_above_the_best_and_within_the_bound(best):
    """Else an answer would say nothing, or loosen the bound."""
    for bound in range(-40 if best is None else best + 1, 70):
        value = _question(best, bound)
        assert value <= bound
        assert best is None or best < value
        powers = [2**k for k in range(8) if best is not None and best < 2**k <= bound]
        assert not powers or value == powers[-1]  # where an answer saves a bit


def test_no_neuron_is_begun_when_the_time_is_over(monkeypatch):
    """64 bounds that nobody knows, each a twentieth of a second: all are named, few were asked."""
    network = Network(
        [
            Node("fc0", Linear(np.ones((4, 4), dtype=int))),
            Node("act0", Requantize.from_shift(1, IntFormat(3, False))),
            Node("fc1", Linear(np.tile([1, -1, 1, -1], (32, 1)))),
        ],
        input_shape=(4,),
        input_format=IntFormat(3, False),
    )
    asked = []

    def slow(*arguments):
        asked.append(arguments)
        time.sleep(0.05)

    monkeypatch.setattr(overflow, "decided", slow)
    interval = certify(network, method="interval")
    answer = find_overflow(network, "fc1", None, 2, certificate=interval, budget_s=0.1)
    assert isinstance(answer, Unknown)
    assert sorted(neuron for _, (neuron,) in answer.neurons) == list(range(32))
    assert 1 <= len(asked) <= 3


def test_a_neuron_of_too_many_coefficients_is_unknown(monkeypatch):
    """It would take gigabytes: the layers of an image are dense between its values."""
    monkeypatch.setattr("refqnn.accumulator.cone._ENTRIES", 0)
    network = deep()
    interval = certify(network, method="interval")
    bits = interval["fc1"].signed_bits - 1
    assert isinstance(find_overflow(network, "fc1", None, bits, certificate=interval), Unknown)
    certificate = certify(network, method="search", budget_s=5.0)
    assert (certificate["fc1"].lo == interval["fc1"].lo).all()
    assert (certificate["fc1"].hi == interval["fc1"].hi).all()
    monkeypatch.undo()
    answer = find_overflow(network, "fc1", None, 4, certificate=interval, budget_s=None)
    assert isinstance(answer, Overflow)


@pytest.mark.parametrize("limit", ["_WORK", "_MOVED", "_BATCH"])
def test_no_answer_depends_on_how_much_is_tried_at_one_time(limit, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(deciding, "solver_installed", lambda: False)
    monkeypatch.setattr(f"refqnn.accumulator.search.{limit}", 1)
    for _ in range(6):
        nodes = [
            Node("fc0", Linear(rng.integers(-3, 4, (3, 4)))),
            Node("act0", Requantize.from_shift(1, IntFormat(2, False))),
            Node("fc1", Linear(rng.integers(-3, 4, (2, 3)))),
        ]
        network = Network(nodes, input_shape=(4,), input_format=IntFormat(2, False))
        interval = certify(network, method="interval")
        truth = brute_force(network, all_inputs(network))["fc1"]
        for neuron, (least, greatest) in enumerate(zip(*truth)):
            for bits in (2, 3, 4, 5):
                answer = find_overflow(network, "fc1", neuron, bits, certificate=interval)
                fits = signed_bits(least, greatest) <= bits
                assert isinstance(answer, NoOverflow if fits else Overflow)


def test_solver_agrees_with_search():
    pytest.importorskip("ortools")
    from refqnn.accumulator.cone import Cone
    from refqnn.accumulator.search import maximise
    from refqnn.accumulator.solver import decide

    rng = np.random.default_rng(2)
    for _ in range(6):
        nodes = [
            Node("fc0", Linear(rng.integers(-3, 4, (6, 4)), rng.integers(-4, 5, 6))),
            Node("act0", Requantize.from_shift(2, IntFormat(2, False))),
            Node("fc1", Linear(rng.integers(-3, 4, (1, 6)))),
        ]
        network = Network(nodes, input_shape=(4,), input_format=IntFormat(2, True))
        cone = Cone(network, network.ranges(), "fc1", (0,))
        lo, hi = np.full(len(cone.inputs), -2), np.full(len(cone.inputs), 1)
        truth = brute_force(network, all_inputs(network))["fc1"]
        for sign, greatest in ((1, int(truth[1][0])), (-1, -int(truth[0][0]))):
            assert maximise(cone, lo, hi, sign).bound == greatest
            yes, x = decide(cone, lo, hi, sign, greatest)
            assert yes is True
            assert sign * int(cone.forward(x[None])[0]) >= greatest
            assert decide(cone, lo, hi, sign, greatest + 1) == (False, None)


@given(networks, st.data())
@settings(max_examples=20, deadline=None)
def test_solver_certificates(network, data):
    pytest.importorskip("ortools")
    from refqnn.accumulator.cone import Cone
    from refqnn.accumulator.search import neuron_box
    from refqnn.accumulator.solver import decide

    domain = Domain.of(network)
    node = data.draw(st.sampled_from(network.accumulators()))
    truth = brute_force(network, all_inputs(network))[node.name]
    indices = list(np.ndindex(network.shapes[node.name]))
    index = data.draw(st.sampled_from(indices))
    cone = Cone(network, network.ranges(), node.name, index)
    assume(len(cone.inputs))
    lo, hi = neuron_box(cone, domain)
    greatest, step = int(truth[1][index]), domain.step
    assert decide(cone, lo, hi, 1, greatest, step=step)[0] is True
    assert decide(cone, lo, hi, 1, greatest + 1, step=step)[0] is False
    least = int(truth[0][index])
    assert decide(cone, lo, hi, -1, -least, step=step)[0] is True
    assert decide(cone, lo, hi, -1, -least + 1, step=step)[0] is False


@given(networks, st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_cone_is_the_program(network, seed):
    """The short program behind a neuron gives the network's values, and sound boxes."""
    from refqnn.accumulator.cone import Cone

    rng = np.random.default_rng(seed)
    inputs = all_inputs(network)
    trace = network.trace(inputs)
    flat = inputs.reshape(len(inputs), -1)
    for name, shape in network.shapes.items():
        if name == "input":
            continue
        index = tuple(int(rng.integers(n)) for n in shape)
        cone = Cone(network, network.ranges(), name, index)
        short = flat[:, cone.inputs]
        values = trace[name][(slice(None), *index)]
        assert (cone.forward(short) == values).all()
        a, b = short[rng.integers(len(short), size=(2, 8))]
        lo, hi = np.minimum(a, b), np.maximum(a, b)
        least, greatest, _ = cone.bounds(lo, hi)
        for box in range(8):
            inside = ((short >= lo[box]) & (short <= hi[box])).all(axis=1)
            assert least[box] <= values[inside].min()
            assert greatest[box] >= values[inside].max()


def test_arguments():
    network = deep()
    with pytest.raises(InvalidArgument, match="layer"):
        find_overflow(network, "act0", bits=8)
    with pytest.raises(InvalidArgument, match="neuron"):
        find_overflow(network, "fc1", 2, bits=8)
    with pytest.raises(InvalidArgument, match="neuron"):
        find_overflow(network, None, 0, bits=8)
    with pytest.raises(InvalidArgument, match="bits"):
        find_overflow(network, bits=0)
    with pytest.raises(InvalidType, match="bits"):
        find_overflow(network, bits=8.0)
    with pytest.raises(CertificateError, match="another network"):
        find_overflow(network, bits=8, certificate=certify(deep(6), method="interval"))
    other = certify(network, np.zeros((1, 32), dtype=int))
    with pytest.raises(CertificateError, match="another domain"):
        find_overflow(network, bits=8, certificate=other)


def test_rows():
    network = deep()
    rows = np.random.default_rng(0).integers(0, 8, (50, 32))
    acc = network.forward(rows)
    bits = signed_bits(int(acc.min()), int(acc.max()))
    assert isinstance(find_overflow(network, "fc1", bits=bits, domain=rows), NoOverflow)
    answer = find_overflow(network, "fc1", bits=bits - 1, domain=rows)
    assert isinstance(answer, Overflow)
    assert (rows == answer.witness).all(axis=1).any()


# --- partial sums, wrapping, saturation ---------------------------------------------------------


@st.composite
def neurons(draw):
    """One neuron, a box of inputs that holds 0, and one input of it."""
    n = draw(st.integers(1, 6))
    weight = integers(draw, (1, n), -5, 5)
    bias = draw(st.integers(-20, 20))
    fmt = draw(st.sampled_from([IntFormat(2, False), IntFormat(3, True)]))
    network = Network([Node("fc", Linear(weight, [bias]))], input_shape=(n,), input_format=fmt)
    x = integers(draw, (1, n), fmt.q_min, fmt.q_max)
    return network, x, bias


@given(neurons(), st.randoms())
def test_partial_sums_stay_in_the_hull_of_the_range_and_the_bias(drawn, random):
    """Bias first, then the products in any order, 0 being a possible input."""
    network, x, bias = drawn
    range_ = certify(network, method="interval")["fc"].range
    terms = network["fc"].op.terms(x)[0, 0, :-1].tolist()
    random.shuffle(terms)
    prefix = bias
    assert min(range_.lo[0], bias) <= prefix
    for term in terms:
        prefix += term
        assert min(range_.lo[0], bias) <= prefix <= max(range_.hi[0], bias)


def test_partial_sums_leave_the_range_where_zero_is_no_input():
    network = Network([Node("fc", Linear([[3, -3]]))], input_shape=(2,), input_format=BIPOLAR)
    range_ = certify(network, np.array([[1, 1]]))["fc"].range
    assert (range_.lo[0], range_.hi[0]) == (0, 0)
    prefixes = np.cumsum(network["fc"].op.terms(np.array([[1, 1]]))[0, 0]).tolist()
    assert prefixes == [3, 0]


@given(neurons(), st.integers(2, 8), st.sampled_from(["forward", "reverse", "bias_first"]))
def test_wrapping_is_harmless_exactly_when_the_final_value_fits(drawn, bits, order):
    network, x, _ = drawn
    exact = int(network.forward(x)[0, 0])
    wrapped = int(network.trace(x, accumulator=Emulated(bits, order=order))["fc"][0, 0])
    assert (wrapped == exact) == (signed_bits(exact, exact) <= bits)


@given(networks)
@settings(max_examples=30, deadline=None)
def test_a_certified_width_never_wraps(network):
    layers = certify(network).layers
    widths = {name: layer.signed_bits for name, layer in layers.items()}
    inputs = all_inputs(network)
    expected = network.trace(inputs)
    got = network.trace(inputs, accumulator=Emulated(widths))
    for name in expected:
        assert (got[name] == expected[name]).all()


def test_saturation_is_not_harmless_even_when_the_final_value_fits():
    network = Network(
        [Node("fc", Linear([[1, 1, -1]]))], input_shape=(3,), input_format=IntFormat(3, False)
    )
    x = np.array([[7, 4, 7]])
    assert network.forward(x).tolist() == [[4]]
    saturating = Emulated(4, overflow="saturate")
    assert network.trace(x, accumulator=saturating)["fc"].tolist() == [[0]]
    at_the_end = Emulated(4, overflow="saturate", when="end")
    assert network.trace(x, accumulator=at_the_end)["fc"].tolist() == [[4]]


@given(neurons(), st.integers(2, 8), st.randoms())
def test_saturation_is_harmless_where_the_hull_fits(drawn, bits, random):
    network, x, bias = drawn
    range_ = certify(network, method="interval")["fc"].range
    assume(signed_bits(min(range_.lo[0], bias), max(range_.hi[0], bias)) <= bits)
    emulated = Emulated(bits, overflow="saturate", order="bias_first")
    assert network.trace(x, accumulator=emulated)["fc"][0, 0] == network.forward(x)[0, 0]


def two_layers(outputs):
    rng = np.random.default_rng(0)
    nodes = [
        Node("fc1", Linear(rng.integers(-3, 4, (8, 30)))),
        Node("act", Requantize.from_shift(3, IntFormat(3, signed=False))),
        Node("fc2", Linear(rng.integers(-3, 4, (outputs, 8)))),
    ]
    return Network(nodes, input_shape=(30,), input_format=IntFormat(3, signed=False))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_no_question_is_given_time_beyond_the_budget(number, monkeypatch):
    """Each gets its share of what is left; the last all of it."""
    network, ends, budget = two_layers(number), [], 1000.0

    def asked(*arguments):
        ends.extend(a for a in arguments if isinstance(a, float))

    monkeypatch.setattr(overflow, "decided", asked)
    monkeypatch.setattr(classes, "decided", asked)
    monkeypatch.setattr(staged._Layer, "proved", lambda self, ask, until: asked(until) or [])
    monkeypatch.setattr(staged, "EMULATED_WORK", 0)
    certificate = certify(network, method="interval")
    codes, accumulator = np.full(30, 3), Accumulator([Stage(6, group=4), Stage(8)])
    for ask in (
        lambda: find_overflow(network, layer="fc2", bits=4, budget_s=budget),
        lambda: certify_class(two_layers(number + 1), codes, 3, budget_s=budget),
        lambda: staged.stage_reports(
            network, certificate, accumulator, budget_s=budget, ask=asked, seed=0
        ),
    ):
        ends.clear()
        start = time.monotonic()
        ask()
        assert ends
        assert start <= min(ends) <= max(ends) <= time.monotonic() + budget
        assert max(ends) >= start + budget
        assert len(ends) == 1 or ends[0] <= time.monotonic() + budget / 2


def test_moves_of_one_input_are_to_its_ends_and_its_neighbours():
    x, lo, hi = np.array([3, 1, 7]), np.array([0, 1, 1]), np.array([6, 9, 7])
    moves = _moves(x, np.array([0, 2]), lo, hi, 2)
    moved = [[0, 1, 7], [6, 1, 7], [5, 1, 7], [1, 1, 7], [3, 1, 1], [3, 1, 7], [3, 1, 7], [3, 1, 5]]
    assert moves.tolist() == moved


def test_a_bound_that_a_search_moves_out_of_int64(monkeypatch):
    monkeypatch.setattr("refqnn.accumulator.ladder.EXHAUSTIVE_LIMIT", 0)
    codes = Requantize([[1, 2, 3]], IntFormat(2, signed=True))
    for weight, bias, dtype in ((1, -(2**63), object), (100, 0, np.int64)):
        nodes = [
            Node("act", codes, ("input",)),
            Node("cat", Concat(), ("input", "act")),
            Node("fc", Linear([[-weight, weight]], [bias])),
        ]
        network = Network(nodes, input_shape=(1,), input_format=BIPOLAR)
        layer = certify(network, method="search", budget_s=5.0)["fc"]
        values = [int(v) for v in network.trace([[-1], [1]])["fc"].ravel()]
        assert (layer.lo.tolist(), layer.hi.tolist()) == ([min(values)], [max(values)])
        assert layer.lo.dtype == dtype


def test_an_input_that_does_not_overflow_is_an_internal_error_and_no_answer(monkeypatch):
    fc = Node("fc", Linear([[1, 1]]))
    network = Network([fc], input_shape=(2,), input_format=IntFormat(2, signed=False))
    for below in ([0, 0], [1, 2]):
        monkeypatch.setattr(overflow, "decided", lambda *_, x=below: np.array(x))
        with pytest.raises(CertificateError, match="does not overflow"):
            find_overflow(network, bits=3)
