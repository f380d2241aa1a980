"""The compiled circuit, simulated with its modular arithmetic, equals Network.forward."""

from __future__ import annotations

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U1, U2, U3, weights
from numpy.typing import NDArray

from refqnn import BIPOLAR, IntFormat, Linear, Network, Node, Requantize, fhe
from refqnn.errors import (
    CertificateError,
    CircuitError,
    NotCovered,
    OutOfRange,
    ShapeMismatch,
)
from refqnn.fhe.circuit import _narrower
from refqnn.fhe.lowering import lower, lowerings, proved_ranges
from refqnn.ops import (
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalSumPool,
    Lookup,
    MaxPool2d,
    Reshape,
    SumPool2d,
)

S2, S3 = IntFormat(2, signed=True), IntFormat(3, signed=True)


def check(network: Network) -> fhe.Circuit:
    """The circuit whose neurons are all looked up, those of one input, too."""
    circuits = [fhe.compile(network, model="public")]
    if len(circuits[0].lowered.read_alone):
        circuits.append(fhe.compile(network, model="public", input_levels=False))
    codes = nets.samples(network, 15)
    expected = network.forward(codes)
    for circuit in circuits:
        got = circuit.simulate(codes)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, expected)
    return circuits[-1]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rounding", ["half_up", "half_even", "floor"])
def test_mlp(seed: int, rounding: str) -> None:
    check(nets.mlp(seed, (4, 8, 3), rounding=rounding))


@pytest.mark.parametrize("fmt", [S3, IntFormat(3, signed=True, narrow=True), BIPOLAR, U1], ids=str)
def test_input_formats(fmt: IntFormat) -> None:
    check(nets.mlp(0, (4, 8, 3), input_format=fmt))


def test_every_input_of_a_small_network() -> None:
    network = nets.mlp(3, sizes=(2, 5, 4, 2), largest=2, codes=U2, shift=2)
    circuit = fhe.compile(network)
    codes = np.indices((4, 4)).reshape(2, -1).T
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))


def test_a_common_factor_does_not_spoil_a_grid_of_thresholds() -> None:
    """Rows of weights 0 and +-3: dividing by 3 would turn thresholds 8 apart irregular."""
    rng = np.random.default_rng(0)
    network = Network(
        [
            Node("fc0", Linear(3 * rng.integers(-1, 2, (6, 8)))),
            Node("act0", Requantize.from_shift(3, U3, offset=rng.integers(-4, 5, 6).tolist())),
            Node("fc1", Linear(weights(rng, 2, 6))),
        ],
        input_shape=(8,),
        input_format=U3,
    )
    circuit = check(network)
    assert {layer.method for layer in circuit.layers} == {"drop"}
    assert max(layer.shift for layer in circuit.layers) == 3


@pytest.mark.parametrize("levels", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_arbitrary_thresholds_per_neuron(levels: int) -> None:
    check(nets.with_thresholds(1, levels))


@pytest.mark.parametrize("method", ["drop", "split", "carry", "window"])
def test_each_method(method: str) -> None:
    # Two-bit codes of shift 3 saturate long before sums of this size do.
    network = nets.mlp(0, codes=U2 if method == "window" else U3, rounding="half_even")
    kind = method.capitalize()

    def choose(name: str, found: list[fhe.Lowering]) -> fhe.Lowering:
        return next(f for f in found if type(f).__name__ == kind)

    circuit = fhe.compile(network, choose=choose)
    assert [layer.method for layer in circuit.layers] == [method]
    codes = nets.samples(network, 20)
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))
    assert sum(circuit.pbs.values()) == circuit.compiled_pbs


RNG = np.random.default_rng(7)


def w(*shape: int, largest: int = 1) -> np.ndarray:
    return weights(RNG, *shape, largest=largest)


def act(name: str, shift: int, fmt: IntFormat = U2) -> Node:
    return Node(name, Requantize.from_shift(shift, fmt))


FLAT = Node("flat", Flatten())
NETWORKS = {
    "convolution": (
        (2, 5, 5),
        U2,
        [
            Node("c", Conv2d(w(4, 1, 2, 3), w(4), (2, 1), 0, (1, 2), groups=2)),
            act("a", 2),
            FLAT,
            Node("fc", Linear(w(3, 8))),
        ],
    ),
    "padding code": (
        (1, 4, 4),
        S2,
        [
            Node("c", Conv2d(w(2, 1, 3, 3), w(2), 1, ((1, 0), (0, 2)), pad_code=1)),
            act("a", 2),
            FLAT,
            Node("fc", Linear(w(3, 24))),
        ],
    ),
    "convolution in one dimension": (
        (2, 6),
        U2,
        [
            Node("c", Conv1d(w(3, 2, 3), w(3), 2, 1)),
            act("a", 1),
            FLAT,
            Node("fc", Linear(w(3, 9))),
        ],
    ),
    "sum pool": (
        (2, 4, 4),
        U2,
        [
            Node("p", SumPool2d(2, padding=1, pad_code=1)),
            act("a", 2),
            Node("g", GlobalSumPool()),
            act("b", 2),
            Node("fc", Linear(w(3, 2))),
        ],
    ),
    "max pool": (
        (1, 5, 5),
        U2,
        [
            Node("c", Conv2d(w(2, 1, 2, 2), w(2))),
            act("a", 2, S2),
            Node("p", MaxPool2d((2, 3), 2, padding=((1, 0), (0, 1)))),
            FLAT,
            Node("fc", Linear(w(3, 8))),
        ],
    ),
    "max pool of bits": (
        (1, 4, 4),
        U2,
        [
            Node("c", Conv2d(w(2, 1, 2, 2), w(2))),
            act("a", 2, U1),
            Node("p", MaxPool2d(2, 1)),
            FLAT,
            Node("fc", Linear(w(3, 8))),
        ],
    ),
    "max pool of accumulators": (
        (1, 5, 5),
        U2,
        [
            Node("c", Conv2d(w(2, 1, 2, 2), w(2))),
            Node("p", MaxPool2d(2)),
            act("a", 2),
            FLAT,
            Node("fc", Linear(w(3, 8))),
        ],
    ),
    "branches": (
        (6,),
        U2,
        [
            Node("a", Linear(w(6, 6))),
            act("qa", 1),
            Node("b", Linear(w(6, 6))),
            act("qb", 2, S2),
            Node("add", Add((1, -2)), ("qa", "qb")),
            act("q", 1),
            Node("cat", Concat(), ("q", "qa")),
            Node("fc", Linear(w(3, 12))),
        ],
    ),
    "shapes": (
        (6,),
        U2,
        [
            Node("r", Reshape((1, 2, 3))),
            Node("c", Conv2d(w(2, 1, 2, 2))),
            act("a", 1),
            Node("r2", Reshape((2, 2))),
            FLAT,
            Node("fc", Linear(w(3, 4))),
        ],
    ),
    "lookup behind requantize": (
        (6,),
        U2,
        [
            Node("a", Linear(w(6, 6))),
            act("q", 1, S3),
            Node("l", Lookup([[4, 1, 0, 1, 2, 0, 1, 3]], -4)),
            Node("fc", Linear(w(3, 6))),
        ],
    ),
    "lookup of accumulators": (
        (6,),
        U2,
        [
            Node("a", Linear(w(6, 6))),
            Node("l", Lookup(RNG.integers(-3, 4, (6, 50)), -25)),
            Node("fc", Linear(w(3, 6))),
        ],
    ),
    "codes out": ((6,), U2, [Node("a", Linear(w(6, 6))), act("q", 1, S2)]),
    "codes in": ((6,), U2, [act("q", 1, U1), Node("a", Linear(w(6, 6)))]),
    "bipolar codes into a pool": (
        (1, 4, 4),
        BIPOLAR,
        [Node("p", SumPool2d(2)), act("a", 1, U1), FLAT, Node("fc", Linear(w(3, 4)))],
    ),
    "no table": ((6,), U2, [Node("a", Linear(w(4, 6, largest=7), w(4)))]),
    "common factors": (
        (6,),
        U2,
        [Node("a", Linear(2 * w(6, 6), w(6))), act("q", 2), Node("b", Linear(4 * w(6, 6), w(6)))],
    ),
    "large biases": (
        (6,),
        U2,
        [
            Node("a", Linear(w(6, 6), 1000 + w(6))),
            Node("q", Requantize([[1000, 1002, 1004]], U2)),
            Node("b", Linear(w(6, 6), w(6) - 100_000)),
        ],
    ),
    "constant codes": (
        (6,),
        U2,
        [
            Node("a", Linear(w(6, 6), 1000 + w(6))),
            Node("q", Requantize([[1, 2, 4]], U2)),
            Node("b", Linear(w(6, 6))),
        ],
    ),
    "output in the middle": ((4,), U2, [Node("a", Linear(w(3, 4))), act("q", 1)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_node_kinds(name: str) -> None:
    shape, fmt, nodes = NETWORKS[name]
    output = "a" if name == "output in the middle" else None
    circuit = check(Network(nodes, input_shape=shape, input_format=fmt, output=output))
    assert sum(circuit.pbs.values()) == circuit.compiled_pbs


def test_common_factors_save_bits() -> None:
    shape, fmt, nodes = NETWORKS["common factors"]
    network = Network(nodes, input_shape=shape, input_format=fmt)
    whole = int((network.ranges()["a"].hi - network.ranges()["a"].lo).max()).bit_length()
    assert max(layer.span_bits for layer in fhe.compile(network).layers) == whole - 1


def test_two_lookups_become_one() -> None:
    shape, fmt, nodes = NETWORKS["lookup behind requantize"]
    circuit = fhe.compile(Network(nodes, input_shape=shape, input_format=fmt))
    assert {layer.name for layer in circuit.layers} == {"l"}


def test_refused_inputs() -> None:
    circuit = nets.compiled_mlp()
    with pytest.raises(OutOfRange, match="3-bit unsigned"):
        circuit.simulate([[8, 0, 0, 0]])
    with pytest.raises(OutOfRange):
        circuit.encrypt([0, 0, 0, -1])
    with pytest.raises(ShapeMismatch):
        circuit.encrypt([[0, 0, 0, 0]] * 2)  # one sample, as a row or as a table of one row
    with pytest.raises(ShapeMismatch):
        circuit.execute([[0, 0, 0]])


def test_too_wide_names_the_layer() -> None:
    wide = Network(
        [Node("fc", Linear([[2**16, 1]])), Node("act", Requantize([[5]], U1))],
        input_shape=(2,),
        input_format=U2,
    )
    with pytest.raises(CircuitError, match=r"'act'.*18 bits"):
        fhe.compile(wide)


def test_maxima_of_wide_codes_are_refused_before_a_table_is_made() -> None:
    """A table of 2**33 values would take 64 GiB."""
    nodes = [Node("pool", MaxPool2d(2)), FLAT, Node("fc", Linear([[1]]))]
    wide = IntFormat(32, signed=False)
    with pytest.raises(CircuitError, match=r"'pool'.*33 bits.*at most 16"):
        fhe.compile(Network(nodes, input_shape=(1, 2, 2), input_format=wide))


class Doubled(Linear):
    """A kind of a user's own: what is known of Linear says nothing of it."""

    kind = "Doubled"


def test_a_kind_of_a_users_own_has_no_encrypted_form() -> None:
    network = Network([Node("own", Doubled([[1, 1]]))], input_shape=(2,), input_format=U2)
    with pytest.raises(NotCovered, match=r"'own'.*Doubled"):
        lower(network, proved_ranges(network))


def test_no_parameters_becomes_our_error() -> None:
    rng = np.random.default_rng(0)
    # Thresholds of no pattern on 13 bits: full tables that no parameters serve.
    fc = Linear(rng.integers(-500, 500, (2, 8)))
    table = Lookup(rng.integers(0, 2, (2, 2**15)), -(2**14))
    network = Network([Node("fc", fc), Node("act", table)], input_shape=(8,), input_format=U2)
    with pytest.raises(CircuitError, match="act"):
        fhe.compile(network)


def test_certificate_tightens() -> None:
    from refqnn import certify

    # Both inputs of fc1 count the same code: a + (3 - a) is 3, intervals say [0, 6].
    nodes = [
        Node("fc0", Linear([[1], [-1]], [0, 3])),
        Node("act0", Requantize.from_shift(0, U2)),
        Node("fc1", Linear([[1, 1], [1, -1]])),
        Node("act1", Requantize.from_shift(0, U3)),
        Node("fc2", Linear([[1, 2]])),
    ]
    network = Network(nodes, input_shape=(1,), input_format=U2)
    certificate = certify(network)
    circuit = fhe.compile(network, certificate=certificate)
    codes = np.arange(4)[:, None]
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))
    assert circuit.work <= fhe.compile(network).work
    with pytest.raises(CertificateError, match="part of the inputs"):
        fhe.compile(network, certificate=certify(network, np.array([[1], [2]])))
    with pytest.raises(CertificateError, match="network"):
        fhe.compile(nets.mlp(0), certificate=certificate)


def test_error_probability() -> None:
    network = nets.mlp(0, (4, 6, 3), largest=1, codes=U2, shift=1)
    default = fhe.compile(network)
    assert default.global_p_error <= 2.0**-40
    assert fhe.compile(network, p_error=2.0**-20).p_error <= 2.0**-20
    cheap = fhe.compile(network, global_p_error=1e-3)
    assert cheap.complexity < default.complexity
    with pytest.raises(ValueError, match="p_error: got"):
        fhe.compile(network, p_error=2.0)


@pytest.mark.parametrize("largest", [1, 2, 7, 100])
@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_a_last_layer_in_parts(parts: int, digits: int, largest: int) -> None:
    network = nets.mlp(2, (4, 8, 3), largest=largest, shift=3)
    lowered = lower(network, proved_ranges(network), None, parts, output_digits=digits)
    assert lowered.output_parts == parts * digits
    codes = nets.samples(network, 50)
    outputs = [lowered.outputs(lowered.program(x)) for x in lowered.arguments(codes)]
    np.testing.assert_array_equal(outputs, network.forward(codes))


@pytest.mark.parametrize("seed", range(6))
def test_shared_out_sums_of_a_secret_model_tell_no_more_of_each_other(seed: int) -> None:
    """Their coefficients have the rank, modulo 2, that their number lets expect."""
    rng = np.random.default_rng(seed)
    hidden, outputs = int(rng.integers(12, 40)), int(rng.integers(1, 12))
    network = nets.mlp(seed, (3, hidden, outputs), largest=int(rng.integers(1, 8)))
    lowered = lowerings(network, proved_ranges(network), input_levels=False)
    whole = lowered(1, 1)
    assert whole.program.dependent() == outputs - ranked(network.nodes[-1].op.weight)
    codes = nets.samples(network, 5)
    for form in _narrower(whole, lowered, secret=True):
        assert form.program.dependent() <= whole.program.dependent()
        assert form.output_bits <= whole.output_bits
        got = [form.outputs(form.program(x)) for x in form.arguments(codes)]
        np.testing.assert_array_equal(got, network.forward(codes))


def ranked(matrix: NDArray[np.int64]) -> int:
    """The rank modulo 2, by elimination."""
    rows, found = matrix.copy() % 2, 0
    for column in range(rows.shape[1]):
        with_one = found + np.flatnonzero(rows[found:, column])
        if len(with_one):
            rows[[found, with_one[0]]] = rows[[with_one[0], found]]
            rows[found + 1 :] ^= rows[found + 1 :, column, None] * rows[found]
            found += 1
    return found


def test_a_wide_last_layer_does_not_make_its_tables_dearer() -> None:
    network = nets.mlp(0, (16, 32, 4), largest=1, shift=2)
    circuit = check(network)
    assert circuit.lowered.output_parts > 1
    assert circuit.lowered.output_bits <= 7
    whole = lower(network, proved_ranges(network))
    assert whole.output_bits > 7
    assert whole.events < circuit.lowered.events


def test_explain() -> None:
    text = nets.compiled_mlp().explain()
    assert "act0" in text
    assert "%" in text
    assert "removed" in text


def test_what_cannot_matter_is_not_looked_up() -> None:
    fc0 = Linear([[1, 1], [1, 1], [0, 0], [1, -1]], [0, 0, 9, 0])  # a copy and a constant
    nodes = [
        Node("fc0", fc0),
        Node("act0", Requantize.from_shift(1, U2)),
        Node("fc1", Linear([[1, 2, 3, 4], [1, -1, 1, -1]])),
    ]
    network = Network(nodes, input_shape=(2,), input_format=U2)
    circuit = fhe.compile(network)
    codes = np.indices((4, 4)).reshape(2, -1).T
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))
    assert sum(layer.neurons for layer in circuit.layers) == 2


def test_trials_never_make_it_worse() -> None:
    network = nets.mlp(0, (4, 6, 3), rounding="half_even")
    circuit = fhe.compile(network, trials=1)
    assert circuit.work <= fhe.compile(network).work
    codes = nets.samples(network, 5)
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))


def test_one_wide_neuron_does_not_widen_the_others() -> None:
    rng = np.random.default_rng(0)
    fc0 = Linear(np.concatenate([w(24, 4), [[31, 17, -23, 29]]]))
    thresholds = np.sort(rng.integers(-6, 6, (25, 3)), axis=1)
    thresholds[24] *= 20
    nodes = [
        Node("fc0", fc0),
        Node("act0", Requantize(thresholds, U2)),
        Node("fc1", Linear(w(2, 25))),
    ]
    network = Network(nodes, input_shape=(4,), input_format=U2)
    circuit = check(network)
    assert len({layer.bits for layer in circuit.layers}) > 1
    uniform = fhe.compile(network, choose=lambda name, found: found[0])
    assert circuit.work < uniform.work
