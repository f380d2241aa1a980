"""Neurons of one input are sums of the levels that the client sends: no lookup, same integers."""

from __future__ import annotations

from pathlib import Path

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U1, U2, U3
from hypothesis import event, given
from hypothesis import strategies as st

from refqnn import BIPOLAR, IntFormat, Linear, Network, Node, Requantize, exact, fhe, testing
from refqnn.errors import FileFormatError
from refqnn.fhe.doors import Encoding, level_codes
from refqnn.fhe.levels import only_inputs
from refqnn.fhe.lowering import lower, proved_ranges
from refqnn.ops import Add, Concat, Conv2d, Flatten, Lookup, Reshape

S3, S3_NARROW = IntFormat(3, signed=True), IntFormat(3, signed=True, narrow=True)
FORMATS = [U1, U2, U3, S3, S3_NARROW, BIPOLAR]


def codes_of(fmt: IntFormat) -> list[int]:
    return list(range(fmt.q_min, fmt.q_max + 1, fmt.step))


def sparse(rng: np.random.Generator, n_out: int, n_in: int, most: int) -> np.ndarray:
    """Integers of one to three in magnitude, up to `most` in a row, none in some rows."""
    weight = np.zeros((n_out, n_in), dtype=np.int64)
    for row in weight:
        places = rng.permutation(n_in)[: rng.integers(0, most + 1)]
        row[places] = rng.choice([-3, -2, -1, 1, 2, 3], len(places))
    return weight


def sparse_mlp(seed: int, fmt: IntFormat, most: int = 2) -> Network:
    """Two hidden layers, the second through a Lookup that goes up and down."""
    rng = np.random.default_rng(seed)
    thresholds = np.sort(rng.integers(-6, 12, (6, 3)), axis=1)
    nodes = [
        Node("fc0", Linear(sparse(rng, 6, 4, most), rng.integers(-3, 4, 6))),
        Node("act0", Requantize(thresholds, U2)),
        Node("fc1", Linear(sparse(rng, 5, 6, most), rng.integers(-3, 4, 5))),
        Node("act1", Lookup(rng.integers(-4, 5, (5, 48)), -24)),
        Node("fc2", Linear(rng.integers(-3, 4, (2, 5)))),
    ]
    return Network(nodes, input_shape=(4,), input_format=fmt)


def in_clear(network: Network, codes: np.ndarray) -> tuple[fhe.Lowered, np.ndarray]:
    """The program of a network, and what it computes on plain integers."""
    lowered = lower(network, proved_ranges(network))
    outputs = [lowered.outputs(lowered.program(x)) for x in lowered.arguments(codes)]
    return lowered, np.stack(outputs)


@given(st.data())
def test_only_inputs_are_those_that_change_an_element(data: st.DataObject) -> None:
    network = data.draw(testing.networks(max_weight=2))
    codes = data.draw(testing.batches(network, max_samples=1))
    only = only_inputs(network)
    before = exact.trace(network, codes)
    flat = codes.reshape(-1)
    place = data.draw(st.integers(0, flat.size - 1))
    flat[place] = data.draw(st.sampled_from(codes_of(network.input_format)))
    after = exact.trace(network, codes)
    for name, index in only.items():
        changed = np.array(before[name][0]) != np.array(after[name][0])
        assert not (changed & (index >= 0) & (index != place)).any()


@given(st.data(), st.sampled_from([1, 2, 9]))
def test_programs_of_random_networks(data: st.DataObject, max_weight: int) -> None:
    kinds = [kind for kind in testing.KINDS if kind != "Softmax"]
    network = data.draw(testing.networks(max_weight=max_weight, kinds=kinds))
    codes = data.draw(testing.batches(network, max_samples=4))
    lowered, outputs = in_clear(network, codes)
    event(f"lookups: {bool(lowered.layers)}, levels: {bool(lowered.without_lookup)}")
    assert outputs.tolist() == exact.forward(network, codes)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_arguments_are_codes_and_levels(fmt: IntFormat) -> None:
    values = codes_of(fmt)
    assert level_codes(fmt).tolist() == values[1:]
    codes = np.array([[value, values[0]] for value in values])
    none = np.zeros(0, dtype=np.int64)
    encoding = Encoding(fmt, fmt.q_min, 1, np.array([0]), none, none, none)
    got = encoding.arguments(codes)
    for row, value in zip(got.tolist(), values, strict=True):
        levels = [int(value >= level) for level in values[1:]]
        assert row == [value - fmt.q_min, 0, *levels]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("most", [1, 2])
def test_sparse_networks(fmt: IntFormat, most: int) -> None:
    found = set()
    for seed in range(8):
        network = sparse_mlp(seed, fmt, most)
        codes = nets.samples(network, 40, seed)
        lowered, outputs = in_clear(network, codes)
        np.testing.assert_array_equal(outputs, network.forward(codes))
        found.update(lowered.without_lookup)
    assert found == {"act0", "act1"}


def test_neurons_of_one_input_need_no_lookup() -> None:
    fc0 = Linear([[3, 0], [0, -2], [1, 0], [1, 1]], [0, 5, 1, 2])
    nodes = [
        Node("fc0", fc0),
        Node("act0", Requantize([[2], [1], [4], [5]], U1)),
        Node("fc1", Linear([[1, 2, 3, 4], [1, -1, 1, -1]])),
    ]
    network = Network(nodes, input_shape=(2,), input_format=U3)
    circuit = fhe.compile(network, model="public")
    codes = np.indices((8, 8)).reshape(2, -1).T
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))
    assert sum(circuit.pbs.values()) == circuit.compiled_pbs
    assert sum(layer.neurons for layer in circuit.layers) == 1
    assert circuit.lowered.without_lookup == {"act0": 3}
    assert "14 levels that the client sends" in circuit.explain()
    whole = fhe.compile(network, model="public", input_levels=False)
    assert sum(layer.neurons for layer in whole.layers) == 4
    assert circuit.work < whole.work


def test_tables_on_inputs_need_no_lookup() -> None:
    """A requantized input, a table that goes down, a pointwise convolution, layers of one input."""
    rng = np.random.default_rng(0)
    nodes = [
        Node("requantized", Requantize([[1, 3, 4]], U2), ("input",)),
        Node("conv", Conv2d([[[[2]]], [[[-1]]]]), ("requantized",)),
        Node("act", Requantize([[2, 3, 5], [-2, -1, 0]], U2)),
        Node("again", Conv2d([[[[1]], [[0]]], [[[0]], [[-3]]]])),
        Node("table", Lookup(rng.integers(-4, 5, (2, 16)), -9)),
        Node("down", Lookup(rng.integers(-4, 5, (1, 8)), 0), ("input",)),
        Node("all", Concat(), ("table", "down")),
        Node("flat", Flatten()),
        Node("fc", Linear(rng.integers(-2, 3, (2, 27)))),
    ]
    network = Network(nodes, input_shape=(1, 3, 3), input_format=U3)
    circuit = fhe.compile(network, model="public")
    codes = nets.samples(network, 20)
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))
    assert circuit.compiled_pbs == 0
    assert circuit.lowered.without_lookup["table"] == 18
    assert circuit.lowered.without_lookup["down"] == 9


def test_sums_of_two_inputs_are_looked_up() -> None:
    nodes = [
        Node("apart", Reshape((2, 2))),
        Node("flat", Flatten()),
        Node("twice", Linear(np.eye(4, dtype=np.int64)[[1, 0, 3, 2]])),
        Node("sum", Add(), ("flat", "twice")),
        Node("act", Requantize([[2, 4, 5]], U2)),
        Node("fc", Linear([[1, 2, 3, -1]])),
    ]
    network = Network(nodes, input_shape=(4,), input_format=U2)
    codes = nets.samples(network, 30)
    lowered, outputs = in_clear(network, codes)
    np.testing.assert_array_equal(outputs, network.forward(codes))
    assert not lowered.without_lookup
    assert len(lowered.read_alone) == 0


def test_too_many_levels_are_not_sent() -> None:
    wide = IntFormat(8, signed=False)
    nodes = [Node("act", Requantize([[3, 9, 100]], U2)), Node("fc", Linear(np.ones((1, 17), int)))]
    for size, free in ((16, {"act": 16}), (17, {})):
        fc = Linear(np.ones((1, size), int))
        network = Network([nodes[0], Node("fc", fc)], input_shape=(size,), input_format=wide)
        assert lower(network, proved_ranges(network)).without_lookup == free


def test_encrypted_without_any_evaluation_key(tmp_path: Path) -> None:
    """Client and server with files: a network of one-input neurons, then a mixed one."""
    for seed, fmt, most in ((0, S3, 1), (1, U2, 2)):
        network = sparse_mlp(seed, fmt, most)
        circuit = fhe.compile(network, model="public", **nets.LOOSE)
        codes = nets.samples(network, 3, seed)[-2:]
        expected = network.forward(codes)
        circuit.keygen()
        np.testing.assert_array_equal(circuit.execute(codes), expected)
        assert (circuit.key_sizes.travelling == 0) == (circuit.compiled_pbs == 0) == (most == 1)
        names = ("client", "server", "evaluation", "requests", "answers")
        files = {name: tmp_path / f"{name} {seed}" for name in names}
        circuit.save_client(files["client"])
        circuit.save_server(files["server"])
        client, server = fhe.Client.load(files["client"]), fhe.Server.load(files["server"])
        client.save_evaluation_keys(files["evaluation"])
        client.save_requests(codes, files["requests"])
        server.load_evaluation_keys(files["evaluation"])
        server.answer(files["requests"], files["answers"])
        np.testing.assert_array_equal(client.read_answers(files["answers"]), expected)


def test_a_client_file_with_inputs_that_do_not_exist_is_refused(tmp_path: Path) -> None:
    circuit = fhe.compile(sparse_mlp(0, U2, 1), model="public")
    circuit.lowered.read_alone[-1] = 4
    circuit.save_client(tmp_path / "client")
    with pytest.raises(FileFormatError, match="read_alone"):
        fhe.Client.load(tmp_path / "client")
