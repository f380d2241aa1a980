"""The security that is promised: failures, a secret model, and what a public one tells."""

from __future__ import annotations

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U2
from numpy.typing import NDArray

from refqnn import Linear, Network, Node, Requantize, fhe
from refqnn.errors import CircuitError, InvalidArgument
from refqnn.fhe import backend
from refqnn.fhe.lowering import Lowered, lower, proved_ranges
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


def exchanged(lowered: Lowered, codes: NDArray[np.int64]) -> tuple[Words, Words]:
    """The masks of one request [sent, dimension] and of its answer [outputs, dimension]: what
    anybody reads who sees both.  Not compressed, so that a seed need not be expanded."""
    options = {"p_error": 1e-6, "global_p_error": 1.0}
    circuit = backend.compiled(lowered.program, compress_input_ciphertexts=False, **options)
    circuit.keygen()
    (argument,) = lowered.arguments(codes[None])
    request = circuit.encrypt(argument)
    answer = circuit.run(request)
    return words(request.serialize(), len(argument)), words(answer.serialize(), 3)


def words(message: bytes, rows: int) -> Words:
    length = int.from_bytes(message[60:64], "little") >> 3  # of the payload
    return np.frombuffer(message, np.uint64, length // 8, 64).reshape(rows, -1)[:, :-1]


def solved(sent: Words, answered: Words) -> list[int] | None:
    """The integers c with sum_i c[i] * sent[i] = answered modulo 2**64, or None."""
    rows = np.concatenate([sent, answered[None]]).T.copy()  # [dimension, unknowns + 1]
    n = len(sent)
    for i in range(n):
        odd = np.flatnonzero(rows[i:, i] & np.uint64(1))
        if not len(odd):
            return None
        rows[[i, i + odd[0]]] = rows[[i + odd[0], i]]
        rows[i] *= np.uint64(pow(int(rows[i, i]), -1, 2**64))
        factors = rows[:, i].copy()
        factors[i] = 0
        rows -= factors[:, None] * rows[i]
    if rows[n:].any():
        return None
    return rows[:n, n].astype(np.int64).tolist()


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
    sent, answered = exchanged(lowered, np.array([3, 0, 2, 1, 1, 3]))
    expected = np.concatenate([np.zeros((3, 6), int), steps_of(network)], axis=1)
    assert [solved(sent, masks) for masks in answered] == expected.tolist()


def test_a_secret_circuit_has_no_such_equations() -> None:
    network = of_one_input()
    circuit = fhe.compile(network)
    assert not circuit.lowered.program.linear_in_input
    sent, answered = exchanged(circuit.lowered, np.array([3, 0, 2, 1, 1, 3]))
    assert [solved(sent, masks) for masks in answered] == [None] * 3


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
    [{"security": "none"}, {"model": "open"}, {"security_level": 80}, {"security_level": "128"}],
)
def test_what_is_not_offered(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        fhe.compile(of_one_input(), **options)
