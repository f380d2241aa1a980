"""Public reports of wrong results for Concrete 2.11, rebuilt in the form in which a network of ours
could meet them: encrypted, every one gives the network's integers.

The numbers are those of zama-ai/concrete.  What needs a GPU or an option of the compiler (1305,
1316) cannot be reached: test_fhe_assumptions.py, point 7.
"""

from __future__ import annotations

import numpy as np
import pytest
from fhe_networks import U2

from refqnn import (
    Add,
    Concat,
    Gather,
    IntFormat,
    Linear,
    Lookup,
    Network,
    Node,
    Requantize,
    exact,
    fhe,
)

S4 = IntFormat(4, signed=True)
U1 = IntFormat(1, signed=False)


def network(nodes: list[Node], inputs: int, codes: IntFormat) -> Network:
    return Network(nodes, input_shape=(inputs,), input_format=codes)


def sign(source: str) -> Node:
    return Node("positive", Requantize([[1]], U1), (source,))


def constant(codes: IntFormat) -> Network:
    """1293: a result that depends on no input came back as 415 instead of -97."""
    row = Linear([[0, 0], [1, 0]], [-97, 0])
    return network([Node("fc", row)], 2, codes)


def constants_beside_a_code(codes: IntFormat) -> Network:
    """1296: constants and one encrypted value in an array, scaled, one element taken, x added."""
    nodes = [
        Node("array", Gather([-1, 0, -1], (1,), fill=3)),
        Node("scaled", Linear(4 * np.eye(3, dtype=np.int64))),
        Node("taken", Gather([1], (3,))),
        Node("out", Add((1, 1)), ("taken", "input")),
    ]
    return network(nodes, 1, codes)


def a_declared_width_far_above_the_values(codes: IntFormat) -> Network:
    """1303: a value of 12 declared bits beside one of 8, read twice (the report: 12 to 16 bits)."""
    third = codes.levels // 4 - 1
    nodes = [
        Node("difference", Linear([[1, -1]])),
        Node("rest", Requantize([[third, 2 * third, 3 * third]], U2)),
        Node("second", Gather([1], (2,)), ("input",)),
        Node("out", Add((600 * codes.levels // 256, 1)), ("rest", "second")),
    ]
    return network(nodes, 2, codes)


def a_negative_constant_behind_a_condition(_: IntFormat) -> Network:
    """1304: a constant, shifted by an encrypted condition on a square."""
    nodes = [
        Node("square", Lookup(np.arange(-8, 8)[None] ** 2, -8)),
        Node("condition", Requantize([[1]], U1)),
        Node("shifted", Lookup([[3, 3 >> 1]], 0)),
        Node("inverted", Linear([[-1]], [-1])),
    ]
    return network(nodes, 1, S4)


def the_input_again_at_the_end(codes: IntFormat) -> Network:
    """1306, 1309: a chain of products of a comparison, the encrypted input added at its end."""
    product = 13 * 13 if codes.bits == 8 else 1
    nodes = [
        Node("difference", Linear([[2, -1]])),
        sign("difference"),
        Node("chain", Linear([[-10 * product]], [-43 * product])),
        Node("x", Gather([0], (2,)), ("input",)),
        Node("out", Add((1, 1)), ("chain", "x")),
    ]
    return network(nodes, 2, codes)


def a_lookup_by_itself(codes: IntFormat) -> Network:
    """1307: a single value returned, which other values read as well."""
    return network([Node("fc", Linear([[1, -1], [1, 1]])), sign("fc")], 2, codes)


def a_value_with_itself(codes: IntFormat) -> Network:
    """1307: encrypted + encrypted, of one and the same value."""
    nodes = [Node("fc", Linear([[1, -1]])), sign("fc"), Node("out", Add((1, 1)), ("positive",) * 2)]
    return network(nodes, 2, codes)


def earlier_beside_later(codes: IntFormat) -> Network:
    """1307: a value returned together with what it was made from."""
    step = codes.levels // 6
    nodes = [
        Node("fc", Linear([[1, -1], [1, 1]])),
        Node("codes", Requantize([[-step, 0, step]], U2)),
        sign("codes"),
        Node("out", Concat(), ("positive", "codes")),
    ]
    return network(nodes, 2, codes)


REPORTS = (
    constant,
    constants_beside_a_code,
    a_declared_width_far_above_the_values,
    a_negative_constant_behind_a_condition,
    the_input_again_at_the_end,
    a_lookup_by_itself,
    a_value_with_itself,
    earlier_beside_later,
)


@pytest.mark.parametrize("bits", [3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", REPORTS, ids=lambda make: make.__name__)
def test_encrypted_gives_the_integers_of_the_network(make, bits: int) -> None:
    net = make(IntFormat(bits, signed=True))
    circuit = fhe.compile(net, model="public", global_p_error=2.0**-25)
    lowest, highest = net.input_format.q_min, net.input_format.q_max
    inputs = net.input_shape[0]
    codes = np.array([[lowest] * inputs, [highest] * inputs, [lowest, highest][:inputs]])
    expected = exact.forward(net, codes.tolist())
    assert circuit.simulate(codes).tolist() == expected
    circuit.keygen()
    assert circuit.execute(codes).tolist() == expected
