"""The security that is promised: failures, a secret model, and what a public one tells."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U2
from numpy.typing import NDArray

from refqnn import Linear, Network, Node, Requantize, fhe
from refqnn.errors import CircuitError, InvalidArgument, InvalidType
from refqnn.fhe import backend
from refqnn.fhe.lowering import Lowered, lower, proved_ranges
from refqnn.fhe.messages import Parameters
from refqnn.fhe.security import reveals
from refqnn.ops import Add, MaxPool2d, Reshape

Words = NDArray[np.uint64]


def of_one_input(seed: int = 0) -> Network:
    """6 codes of 2 bits, each read by one hidden neuron; three outputs."""
    rng = np.random.default_rng(seed)
    nodes = [
        Node("fc1", Linear(np.diag(rng.choice([-2, -1, 1, 2], 6)), rng.integers(-2, 3, 6))),
        Node("act", Requantize(np.sort(rng.integers(-4, 5, (6, 3))), U2)),
        Node("fc2", Linear(rng.integers(-3, 4, (3, 6)))),
    ]
    return Network(nodes, input_shape=(6,), input_format=U2)


# --- what one answer tells --------------------------------------------------------------------


def exchanged(lowered: Lowered, codes: NDArray[np.int64]) -> tuple[Words, Words, Words]:
    """The masks of one request [sent, dimension], of what is computed [outputs, dimension], and of
    the answer: what anybody reads who sees both.  Not compressed: no seed need be expanded."""
    options = {"p_error": 1e-6, "global_p_error": 1.0}
    circuit = backend.compiled(lowered.program, compress_input_ciphertexts=False, **options)
    circuit.keygen()
    (argument,) = lowered.arguments(codes[None])
    request = circuit.encrypt(argument)
    result = circuit.run(request).serialize()
    answer = Parameters(bytes(circuit.client.specs.program_info.serialize())).rounded(result)
    size = lowered.output_top.size
    return words(request.serialize(), len(argument)), words(result, size), words(answer, size)


def words(message: bytes, rows: int) -> Words:
    length = int.from_bytes(message[60:64], "little") >> 3  # of the payload
    return np.frombuffer(message, np.uint64, length // 8, 64).reshape(rows, -1)[:, :-1]


def solved(sent: Words, answered: Words) -> list[int] | None:
    """The integers c with sum_i c[i] * sent[i] = answered modulo 2**64, or None.

    Masks of lookups come from a transform in floats and end in zeros: a pivot is an odd multiple of
    the least power of two that is left in its column.
    """
    rows = np.concatenate([sent, answered[None]]).T.copy()  # [dimension, unknowns + 1]
    n = len(sent)
    for i in range(n):
        column = rows[i:, i]
        power = column & (~column + np.uint64(1))
        if not power.any():
            return None
        pivot = i + int(np.where(power == 0, np.iinfo(np.uint64).max, power).argmin())
        rows[[i, pivot]] = rows[[pivot, i]]
        least = rows[i, i] & (~rows[i, i] + np.uint64(1))
        rows[i] *= np.uint64(pow(int(rows[i, i] // least), -1, 2**64))
        rows[i + 1 :] -= (rows[i + 1 :, i] // least)[:, None] * rows[i]
    if rows[n:].any():
        return None
    found = [0] * n
    for i in reversed(range(n)):
        *row, total = map(int, rows[i])
        left = (total - sum(c * w for c, w in zip(found, row))) % 2**64
        if left % row[i]:
            return None
        modulus, c = 2**64 // row[i], left // row[i]
        found[i] = c - modulus if 2 * c >= modulus else c
    return found


def steps_of(network: Network) -> NDArray[np.int64]:
    """What each level of each input adds to each output [outputs, inputs * (levels - 1)]."""
    n, levels = 6, U2.levels
    found = np.zeros((3, n, levels - 1), dtype=np.int64)
    for i in range(n):
        at = np.zeros((levels, n), dtype=np.int64)
        at[:, i] = np.arange(levels)
        found[:, i] = np.diff(network.forward(at), axis=0).T
    return found.reshape(3, -1)


def test_one_answer_of_a_public_circuit_tells_every_coefficient() -> None:
    """No key, one request: elimination modulo 2**64 gives the model, as `reveals` says."""
    network = of_one_input()
    lowered = lower(network, proved_ranges(network))
    assert lowered.program.linear_in_input
    sent, _, answered = exchanged(lowered, np.array([3, 0, 2, 1, 1, 3]))
    expected = np.concatenate([np.zeros((3, 6), int), steps_of(network)], axis=1)
    assert [solved(sent, masks) for masks in answered] == expected.tolist()


def direction(column: list[int]) -> tuple[int, ...]:
    """A column modulo 16, but for a factor."""
    least = min((x & -x for x in column if x), default=1)
    reduced = [x // least % 16 for x in column]
    odd = next((x for x in reduced if x % 2), 1)
    return tuple(x * pow(odd, -1, 16) % 16 for x in reduced)


def told_by_low_bits(masks: Words, weight: NDArray[np.int64]) -> float:
    """How often the lowest bits of the answer's words are a column of the last layer."""
    columns = {direction(column) for column in weight.T.tolist()}
    return float(np.mean([direction(column) in columns for column in masks.T.tolist()]))


def test_a_secret_circuit_has_no_such_equations() -> None:
    """Nor low bits that are those of one lookup: without rounding, these tell the weights."""
    network = of_one_input()
    circuit = fhe.compile(network)
    assert not circuit.lowered.program.linear_in_input
    assert not circuit.lowered.program.dependent()
    sent, computed, answered = exchanged(circuit.lowered, np.array([3, 0, 2, 1, 1, 3]))
    assert [solved(sent, masks) for masks in (*computed, *answered)] == [None] * 6
    weight = network["fc2"].op.weight
    by_chance = 6 / 448  # columns modulo 16, but for a factor
    assert told_by_low_bits(computed, weight) > 5 * by_chance
    assert told_by_low_bits(answered >> np.uint64(32), weight) < 2 * by_chance
    assert not (answered & np.uint64(2**32 - 1)).any()


# --- what a secret circuit tells all the same --------------------------------------------------


TABLES = ([1, 2, 3], [2, 3, 4])
NEURONS = [(source, table) for source in range(4) for table in range(2)]  # of one input each


def summed(neurons: list[tuple[int, int]], weight: NDArray[np.int64]) -> Network:
    """Sums of neurons, each an input and a table."""
    rows = np.eye(4, dtype=int)[[source for source, _ in neurons]]
    act = Requantize([TABLES[table] for _, table in neurons], U2)
    nodes = [Node("fc1", Linear(rows)), Node("act", act), Node("fc2", Linear(weight))]
    return Network(nodes, input_shape=(4,), input_format=U2)


def test_neurons_are_guessed_one_by_one_without_a_key(tmp_path: Path) -> None:
    """As `reveals` says: with evaluation keys, a request and its answer, elimination finds which of
    all neurons that there may be take part, and how often."""
    secret = summed([(2, 1), (0, 0)], np.array([[1, 2]]))
    # Sums of as much noise, so of the same parameters, that can be told apart modulo 2**64.
    mixed = np.eye(8, dtype=int) + 2 * np.roll(np.eye(8, dtype=int), 1, axis=1)
    for name, network in (("secret", secret), ("guesses", summed(NEURONS, mixed))):
        circuit = fhe.compile(network, p_error=2.0**-40)
        circuit.save_client(tmp_path / "client")
        circuit.save_server(tmp_path / name)
        if name == "secret":
            client = fhe.Client.load(tmp_path / "client")
            keys, request = client.evaluation_keys(), client.encrypt([3, 0, 2, 1])
            assert any("each neuron may be" in what for what in circuit.reveals()["passive reader"])
    answers = []
    for name in ("secret", "secret", "guesses"):
        server = fhe.Server.load(tmp_path / name)
        server.load_keys(keys)
        if name == "guesses":
            server._parameters.rounded = bytes
        answers.append(server.run(request))
    assert answers[0] == answers[1]
    unmixed = np.eye(8, dtype=int)
    for _ in range(64):  # 1 - 2 p + (2 p)**2 - ...
        unmixed = np.eye(8, dtype=int) - (mixed - np.eye(8, dtype=int)) @ unmixed
    guesses = unmixed.view(np.uint64) @ words(answers[2], 8)[:, :4]
    combined = np.array(list(product(range(3), repeat=8)), dtype=np.uint64)
    left = (combined @ guesses - words(answers[0], 1)[0, :4]).view(np.int64)
    (found,) = combined[(np.abs(left) < 2**33).all(axis=1)]
    assert {NEURONS[i]: c for i, c in enumerate(found) if c} == {(2, 1): 1, (0, 0): 2}


def test_outputs_that_outnumber_lookups_tell_how_they_depend() -> None:
    """Three outputs of two lookups: the third is 3 times the second less the first."""
    network = summed([(2, 1), (0, 0)], np.array([[1, 0], [1, 1], [2, 3]]))
    circuit = fhe.compile(network)
    _, computed, answered = exchanged(circuit.lowered, np.array([3, 0, 2, 1]))
    assert solved(computed[:2], computed[2]) == [-1, 3]
    left = (3 * answered[1] - answered[0] - answered[2]).view(np.int64)
    assert (np.abs(left) < 2**34).all()  # rounding hides no relation of small integers
    told = "1 linear relations between the 3 integers of an answer"
    assert any(told in what for what in circuit.reveals()["passive reader"])


def test_an_output_in_parts_is_told() -> None:
    """More integers are decrypted than there are outputs: `explain` says so."""
    network = nets.mlp(0, sizes=(4, 6, 3), largest=1, codes=U2, shift=1)
    lowered = lower(network, proved_ranges(network), output_parts=3, input_levels=False)
    told = reveals(lowered)
    assert "and the 3 sums that make each of them" in told["client"][0]
    assert not lower(network, proved_ranges(network), input_levels=False).program.dependent()
    assert any("between the 9 integers of an answer" in what for what in told["passive reader"])


# --- which circuits are refused as secret -----------------------------------------------------


ACT = Node("act", Requantize([[1, 3, 5]], U2))
REFUSED = {
    "no lookup": ([Node("fc", Linear([[1, 2], [3, -1]]))], (2,)),
    "residual": (
        [Node("fc", Linear([[1, 1], [1, -1]])), ACT, Node("sum", Add(), ("act", "input"))],
        (2,),
    ),
    "maximum": (
        [
            Node("map", Reshape((1, 2, 2))),
            Node("pool", MaxPool2d((1, 2))),
            Node("f", Reshape((2,))),
        ],
        (4,),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_outputs_that_sum_what_was_sent_are_refused(name: str) -> None:
    nodes, shape = REFUSED[name]
    network = Network(nodes, input_shape=shape, input_format=U2)
    with pytest.raises(CircuitError, match=r"one answer would.*model='public'"):
        fhe.compile(network)
    circuit = fhe.compile(network, model="public")
    codes = nets.samples(network, 9)
    np.testing.assert_array_equal(circuit.simulate(codes), network.forward(codes))
    for who in ("client", "passive reader"):
        assert any("every coefficient" in what for what in circuit.reveals()[who])


def test_a_secret_circuit_reveals_less() -> None:
    secret, public = (fhe.compile(of_one_input(), model=model) for model in ("secret", "public"))
    assert secret.compiled_pbs > 0
    assert public.compiled_pbs == 0
    assert not len(secret.lowered.read_alone)
    said = [what for all_ in secret.reveals().values() for what in all_]
    assert not any("coefficient" in what or "alone" in what for what in said)
    assert "passive reader can tell: every coefficient" in public.explain()
    assert "6 inputs some neuron reads alone" in public.explain()
    assert "not circuit-private" in secret.explain()


# --- failures ---------------------------------------------------------------------------------


def test_failures_of_each_notion() -> None:
    network = nets.mlp(0, sizes=(4, 6, 3), largest=1, codes=U2, shift=1)
    strict, weak = fhe.compile(network), fhe.compile(network, security="ind-cpa")
    assert strict.global_p_error <= 2.0**-128 < weak.global_p_error <= 2.0**-64
    assert strict.complexity > weak.complexity
    assert "ind-cpa-d: an inference fails with probability 2**-1" in strict.explain()
    assert "nobody but the client" in weak.explain()
    assert "below ind-cpa" in fhe.compile(network, global_p_error=2.0**-40).explain()
    assert fhe.compile(network, security_level=132).complexity > strict.complexity


@pytest.mark.parametrize(
    "options",
    [
        *({"security": "none"}, {"security": np.array(["ind-cpa", "ind-cpa-d"])}),
        *({"model": "open"}, {"security_level": 80}, {"security_level": "128"}),
        *({"p_error": "1e-9"}, {"global_p_error": [1e-9]}, {"p_error": 0.0}),
        *({"p_error": 2.0**-500}, {"global_p_error": 10**400}, {"p_error": Fraction(1, 10**400)}),
        *({"trials": -1}, {"trials": 1.5}, {"trials": None}),
    ],
)
def test_what_is_not_offered(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        fhe.compile(of_one_input(), **options)


def test_what_has_another_type() -> None:
    with pytest.raises(InvalidType, match="expected a Network"):
        fhe.compile("network")
    for name in ("compress_keys", "input_levels"):
        for value in ("yes", 1, None, np.ones(2)):
            with pytest.raises(InvalidType, match=name):
                fhe.compile(of_one_input(), **{name: value})
    with pytest.raises(InvalidType, match="choose"):
        fhe.compile(of_one_input(), choose=lambda name, found: None)


def test_ciphertexts_of_another_step_or_other_keys_are_refused() -> None:
    """A circuit knows what its outputs can be, as a client does."""
    network = Network([Node("fc", Linear([[1, 2], [3, -1]]))], input_shape=(2,), input_format=U2)
    circuit = fhe.compile(network, model="public")
    circuit.keygen()
    sent = circuit.encrypt([1, 3])
    result = circuit.run(sent)
    assert circuit.decrypt(result).tolist() == [7, 0]
    for use in (circuit.run, circuit.decrypt):
        for value in (None, 5, b"x", np.zeros(2)):
            with pytest.raises(InvalidType, match="expected a ciphertext"):
                use(value)
    circuit.keygen(force=True)
    refused = 0
    for _ in range(8):  # by chance both integers may be in their ranges
        try:
            circuit.decrypt(result)
        except CircuitError:
            refused += 1
        circuit.keygen(force=True)
    assert refused
    for n_jobs in (0, 1.5, "two"):
        with pytest.raises(InvalidArgument, match="n_jobs"):
            circuit.execute([[1, 3]], n_jobs=n_jobs)
