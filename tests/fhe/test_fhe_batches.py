"""Several samples in one tensor: the same integers as one by one."""

from __future__ import annotations

from collections.abc import Callable

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U1, U2

from refqnn import IntFormat, Linear, Network, Node, fhe
from refqnn.errors import InvalidArgument
from refqnn.fhe.lowering import lower, proved_ranges
from refqnn.ops import Lookup
from refqnn.ops.pool import MaxPool2d


def pooled() -> Network:
    """A convolution behind which maxima are taken, by one lookup after the other."""
    conv, act, *rest = nets.cnn(0).nodes
    pool = Node("pool", MaxPool2d(3), (act.name,))
    flat = Node("flat", rest[0].op, ("pool",))
    last = Node("fc", Linear(np.array([[1, -1], [2, 1]])), ("flat",))
    return Network([conv, act, pool, flat, last], input_shape=(1, 6, 6), input_format=U2)


def few_lookups() -> Network:
    """What target="encrypted" trains: sums of seven bits, tables of their own, an output."""
    rng = np.random.default_rng(0)
    rows = np.zeros((5, 12), dtype=int)
    for row in rows:
        row[rng.permutation(12)[:7]] = rng.choice([-1, 1], 7)
    nodes = [
        Node("fc1", Linear(rows, (rows < 0).sum(axis=1))),
        Node("table1", Lookup(rng.integers(0, 8, (5, 8)), 0, IntFormat(3, signed=False))),
        Node("fc2", Linear(rng.integers(-7, 8, (3, 5)), rng.integers(-9, 10, 3))),
    ]
    return Network(nodes, input_shape=(12,), input_format=U1)


NETWORKS = {
    "mlp": lambda: nets.mlp(0),
    "thresholds": lambda: nets.with_thresholds(0, 4),
    "half even": lambda: nets.mlp(1, rounding="half_even"),
    "three layers": lambda: nets.mlp(2, sizes=(3, 4, 4, 2)),
    "cnn": lambda: nets.cnn(0),
    "max": pooled,
    "few lookups": few_lookups,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("parts", [1, 2])
def test_steps_of_a_batch(name: str, parts: int) -> None:
    network = NETWORKS[name]()
    lowered = lower(network, proved_ranges(network), output_parts=parts)
    codes = nets.samples(network, 7)[-9:]
    arguments = np.moveaxis(lowered.arguments(codes), 0, -1)
    results = np.moveaxis(lowered.program.batched(len(codes))(arguments), -1, 0)
    got = np.stack([lowered.outputs(result) for result in results])
    np.testing.assert_array_equal(got, network.forward(codes))


@pytest.mark.parametrize(
    "compiled", [lambda: fhe.compile(few_lookups()), nets.encrypted_cnn], ids=["few lookups", "cnn"]
)
def test_encrypted(compiled: Callable[[], fhe.Circuit]) -> None:
    circuit = compiled()
    network = circuit.network
    codes = nets.samples(network, 3)[-3:]
    said: list[str] = []
    got = circuit.execute(codes, batch=2, on_sample=said.append)
    np.testing.assert_array_equal(got, network.forward(codes))
    assert [text.split(",")[0] for text in said] == ["2 samples", "1 samples"]


def test_codes_in_any_order_of_memory() -> None:
    circuit = nets.encrypted_cnn()
    network = circuit.network
    codes = nets.samples(network, 3)
    got = circuit.simulate(np.asfortranarray(codes))
    np.testing.assert_array_equal(got, network.forward(codes))


def test_as_many_as_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = fhe.compile(few_lookups())
    keys = circuit.key_sizes.resident
    ciphertexts = (12 + circuit.lowered.output_top.size + 4 * 5) * 8 * 2049
    room = {0: 1, keys + ciphertexts: 1, keys + 3 * ciphertexts: 3, 2**40: 64}
    for available, batch in room.items():
        monkeypatch.setattr("refqnn.fhe.circuit.available_memory", lambda a=available: a)
        assert circuit._held_in_memory() == batch


@pytest.mark.parametrize(
    "arguments", [{"batch": 0}, {"batch": 1.5}, {"batch": "all"}, {"batch": 2, "n_jobs": 2}]
)
def test_batches_that_are_none(arguments: dict[str, object]) -> None:
    circuit = fhe.compile(few_lookups())
    with pytest.raises(InvalidArgument, match=r"^batch:"):
        circuit.execute(np.zeros((2, 12), dtype=int), **arguments)
