"""What we rely on in Concrete 2.11: the list in refqnn.fhe.backend, a test for each point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from concrete import fhe as concrete
from fhe_networks import U2
from numpy.typing import NDArray

from refqnn import Linear, Network, Node, Requantize, fhe
from refqnn.errors import InvalidArgument
from refqnn.fhe import backend, program
from refqnn.fhe.interrupts import held_back
from refqnn.fhe.program import INPUT, Program, Step

LOOSE = {"p_error": 2.0**-30, "global_p_error": 1.0}


def both(steps: list[Step], arguments: list[NDArray[np.int64]], top: int) -> concrete.Circuit:
    """Steps give the same in clear, simulated and encrypted."""
    made = Program(tuple(steps), arguments[0].shape, top)
    circuit = backend.compiled(made, **LOOSE)
    for argument in arguments:
        expected = made(argument)
        with held_back():  # or Concrete's handler of SIGPIPE stays
            got = circuit.simulate(argument), circuit.encrypt_run_decrypt(argument)
        np.testing.assert_array_equal(got[0], expected)
        np.testing.assert_array_equal(got[1], expected)
    return circuit


def matmul(name: str, weight: object, source: str = INPUT, top: int = 1) -> Step:
    return program.MatMul(name, (source,), top, np.array(weight, dtype=np.int64))


def offset(name: str, constant: object, source: str, top: int) -> Step:
    return program.Offset(name, (source,), top, np.array(constant, dtype=np.int64))


def test_1_widths_are_those_that_were_proved() -> None:
    """The ends alone are an input set, and at both the sum is 0: without the proof, one bit."""
    weight = np.repeat([[1], [-1]], 4, axis=0)
    arguments = [
        np.array(x) for x in ([7, 7, 7, 7, 0, 0, 0, 0], [0] * 8, [7] * 8, [0, 0, 0, 7] * 2)
    ]
    circuit = both([matmul("sum", weight), offset("out", [28], "sum", 56)], arguments, 7)
    outputs = [node.output for node in circuit.graph.query_nodes(ordered=True)]
    assert {value.dtype.bit_width for value in outputs if value.is_encrypted} == {6}


def test_2_sums_are_exact_modulo_the_width() -> None:
    """The first sums leave every width declared; what is left of them lies in [0, 20]."""
    first = [[900, -5000, 2**40], [-899, 5001, 2**41], [7, -6, 0]]
    second = [[1], [1], [0]]  # -4100, 4102 and 1 times the inputs
    third = offset("out", [4100 * 7], "second", (4100 + 4102 + 1) * 7)
    arguments = [np.array(x) for x in ([0, 0, 0], [7, 0, 7], [7, 7, 7], [1, 6, 3])]
    both([matmul("first", first), matmul("second", second, "first"), third], arguments, 7)


def test_3_constants_of_either_sign_meet_the_modulus() -> None:
    for constant in (-(2**40) * 64, 2**40 * 64, -64 * 3):
        steps = [offset("far", [constant], INPUT, 1), offset("back", [-constant + 1], "far", 31)]
        both(steps, [np.array([30]), np.array([0])], 30)


@pytest.mark.parametrize(("bits", "shift"), [(3, 1), pytest.param(4, 3, marks=pytest.mark.slow)])
def test_4_low_bits_go_exactly(bits: int, shift: int) -> None:
    top = 2**bits - 1
    every = [np.arange(top + 1)]
    high = program.Truncate("high", (INPUT,), top, shift)
    kept = np.arange(0, top + 1, 2**shift)[None]
    both([high, program.Table("table", ("high",), top, kept, shift)], every, top)
    mid = program.Bits("mid", (INPUT,), 2**shift - 1, 0, shift)
    table = np.random.default_rng(0).permutation(2**shift)[None]
    both([mid, program.Table("table", ("mid",), 2**shift - 1, table, 0)], every, top)


def test_5_tables_at_both_ends_a_row_each() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 8, (5, 16))
    table = program.Table("table", (INPUT,), 7, rows, 0)
    both([table], [np.tile(np.arange(16), (5, 1))], 15)


def test_6_values_are_moved_where_they_belong() -> None:
    """Each step that moves values, on values that all differ; a table beside them, too."""
    argument = np.arange(12).reshape(2, 3, 2)
    source = (INPUT,)
    movers: list[Step] = [
        program.Gather("moved", source, 15, np.array([1, 0, 1])),
        program.Select("moved", source, 15, (slice(None), slice(0, 3, 2), slice(1, 2, 1))),
        program.Select("moved", source, 15, (slice(1, 2), slice(2, 3), slice(None))),
        program.Relabel("moved", source, 15, (4, 3)),
        program.Pad("moved", source, 15, ((1, 0), (0, 2))),
        program.Join("moved", (INPUT, INPUT), 15),
        program.Sum("moved", (INPUT, INPUT), 15, (2, -1)),
    ]
    for mover in movers:
        both([mover], [argument], 15)
    table = program.Table("table", source, 15, np.arange(16)[None], 0)
    joined = program.Gather("out", ("moved",), 15, np.array([3, 0]))
    both([table, program.Join("moved", ("table", INPUT), 15), joined], [argument], 15)


def test_6_a_convolution_with_strides_dilation_and_groups() -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-2, 3, (4, 1, 2, 3))
    conv = program.Conv("conv", (INPUT,), 1, weight, (2, 1), (1, 2), 2)
    low, top = -36, 72  # six products of at most 6
    shifted = program.Offset("out", ("conv",), top, np.array([-low]))
    both([conv, shifted], [rng.integers(0, 4, (2, 5, 6))], 3)


@pytest.mark.parametrize(
    "option",
    [
        {"use_gpu": True},
        {"single_precision": True},
        {"multi_parameter_strategy": concrete.MultiParameterStrategy.PRECISION_AND_NORM2},
        {"rounding_exactness": concrete.Exactness.APPROXIMATE},
        {"enable_unsafe_features": True},
        {"fhe_simulation": True},
        {"compress_input_ciphertexts": False},
        {"additional_pre_processors": []},
    ],
)
def test_7_options_that_could_change_integers_are_refused(option: dict[str, Any]) -> None:
    network = Network([Node("fc", Linear([[1]]))], input_shape=(1,), input_format=U2)
    with pytest.raises(InvalidArgument, match=next(iter(option))):
        fhe.compile(network, model="public", **option)
    fhe.compile(network, model="public", show_progress=False)


@pytest.mark.parametrize(
    "options",
    [{}, {"compress_keys": False}, pytest.param({"parameters": "mono"}, marks=pytest.mark.slow)],
)
def test_8_messages_have_one_form(options: dict[str, Any]) -> None:
    """Specimens and trees made from the parameters alone agree with what Concrete writes."""
    nodes = [
        Node("fc0", Linear([[1, 1, 0], [1, 0, -1]])),
        Node("act", Requantize.from_shift(1, U2)),
        Node("fc1", Linear([[1, -1], [2, 1]])),
    ]
    network = Network(nodes, input_shape=(3,), input_format=U2)
    circuit = fhe.compile(network, global_p_error=2.0**-20, **options)
    circuit.keygen()
    keys, parameters = circuit._concrete.client, fhe.messages.Parameters(circuit._parameters)
    parameters.require_evaluation_keys(keys.evaluation_keys.serialize())
    parameters.require_keys(keys.keys.serialize())
    for codes in ([0, 0, 0], [3, 1, 2]):
        request = circuit.encrypt(codes)
        parameters.require_request(request.serialize())
        parameters.require_answer(circuit.run(request).serialize())


@pytest.mark.parametrize("power", [-40, -128, -160])
def test_9_small_probabilities_are_honoured(power: int) -> None:
    table = program.Table("table", (INPUT,), 3, np.array([[0, 1, 3, 2]]), 0)
    made = Program((table,), (1,), 3)
    circuit = backend.compiled(made, p_error=2.0**power, global_p_error=1.0)
    assert 0 < circuit.p_error <= 2.0**power
    higher = backend.compiled(made, p_error=2.0**power, global_p_error=1.0, security_level=132)
    assert higher.complexity >= circuit.complexity
