import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refqnn import Interval, IntFormat, Linear, Network, Node, Requantize, diff, testing
from refqnn.errors import InvalidArgument, InvalidType, NotCovered, OutOfRange, ShapeMismatch
from refqnn.inspect import describe
from refqnn.ops import Add, Concat, Flatten, Lookup

UINT3 = IntFormat(3, signed=False)


def residual():
    """fc -> act -> mix = 2 * act - input, joined with the input again."""
    return Network(
        [
            Node("fc", Linear([[1, -2], [3, 1]], [1, -1])),
            Node("act", Requantize.from_shift(1, UINT3)),
            Node("mix", Add((2, -1)), ("act", "input")),
            Node("both", Concat(), ("mix", "input")),
        ],
        input_shape=(2,),
        input_format=UINT3,
    )


def test_residuals_and_branches():
    trace = residual().trace([[5, 2]])
    assert {name: v.tolist() for name, v in trace.items()} == {
        "input": [[5, 2]],
        "fc": [[2, 16]],
        "act": [[1, 7]],
        "mix": [[-3, 12]],
        "both": [[-3, 12, 5, 2]],
    }
    assert residual().forward([[5, 2]]).tolist() == [[-3, 12, 5, 2]]


def test_another_output():
    network = Network(residual().nodes, input_shape=(2,), input_format=UINT3, output="act")
    assert network.forward([[5, 2]]).tolist() == [[1, 7]]
    assert list(network.trace([[5, 2]])) == ["input", "fc", "act", "mix", "both"]


# --- diff -------------------------------------------------------------------------------------

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(st.data())
def test_diff_finds_the_planted_difference(data):
    network = data.draw(testing.networks())
    codes = data.draw(testing.batches(network))
    theirs = {name: v.copy() for name, v in network.trace(codes).items()}
    assert network.diff(theirs) is None
    i = data.draw(st.integers(0, len(network.nodes) - 1))
    for node in network.nodes[i:]:  # as an error would: from this node on
        index = tuple(data.draw(st.integers(0, d - 1)) for d in theirs[node.name].shape)
        theirs[node.name][index] += 1
    found = network.diff(theirs)
    planted = network.nodes[i].name
    assert found.node == planted
    assert found.got == found.expected + 1 == theirs[planted][found.index]
    assert (found.count, found.total) == (1, theirs[planted].size)


def test_diff_reports_the_margin():
    network = residual()
    theirs = network.trace([[5, 2], [4, 3]])  # fc: [2, 16] and [-1, 14]; thresholds 1, 3, 5, ...
    theirs["act"] = theirs["act"] - [[0, 0], [0, 1]]
    found = network.diff(theirs)
    assert (found.node, found.index, found.expected, found.got) == ("act", (1, 1), 7, 6)
    assert found.margin == 14 - 13
    assert str(found) == (
        "act[1, 1]: expected 7, got 6; 1 of 4 values of this node differ; "
        "accumulator is +1 from its nearest threshold"
    )
    theirs = network.trace([[5, 2]])
    theirs["mix"] = theirs["mix"] + 1
    assert network.diff(theirs).margin is None


def test_the_margin_is_of_the_channel_that_differs():
    act = Node("act", Requantize([[5], [100]], IntFormat(1, signed=False)), ("input",))
    network = Network([act], input_shape=(2, 1), input_format=UINT3)
    theirs = network.trace([[[7], [7]], [[7], [7]]])
    theirs["act"][0, 1, 0] = 1
    assert network.diff(theirs).margin == 7 - 100
    theirs = network.trace([[[7], [7]], [[7], [7]]])
    theirs["act"][1, 0, 0] = 0
    assert network.diff(theirs).margin == 7 - 5


def test_diff_of_two_traces():
    network = residual()
    trace = network.trace([[5, 2]])
    assert diff(trace, {"both": trace["both"]}) is None
    assert diff(trace, {"act": [[1, 6]]}).index == (0, 1)
    with pytest.raises(InvalidArgument, match="nowhere"):
        diff(trace, {"nowhere": [[1]]})
    with pytest.raises(ShapeMismatch, match="act"):
        diff(trace, {"act": [1, 7]})
    with pytest.raises(InvalidType, match="act"):
        diff(trace, {"act": [[1.0, 7.0]]})
    with pytest.raises(InvalidArgument, match="input"):
        network.diff({"act": trace["act"]})


# --- ranges -----------------------------------------------------------------------------------


@relaxed
@given(st.data())
def test_a_smaller_domain_gives_smaller_ranges(data):
    network = data.draw(testing.networks())
    codes = data.draw(testing.batches(network))
    whole, part = network.ranges(), network.ranges(Interval.observed(codes))
    for name, values in network.trace(codes).items():
        assert part[name].contains(values)
        assert (whole[name].lo <= part[name].lo).all()
        assert (part[name].hi <= whole[name].hi).all()


def test_a_range_that_leaves_a_table_names_the_node():
    nodes = [Node("fc", Linear([[2]])), Node("table", Lookup(np.arange(8)[None], 0))]
    network = Network(nodes, input_shape=(1,), input_format=UINT3)
    with pytest.raises(OutOfRange, match="'table'"):
        network.forward([[1]])


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        ([[8, 0]], OutOfRange),
        ([[-1, 0]], OutOfRange),
        ([[1.0, 2.0]], InvalidType),
        ([[np.nan, 2.0]], InvalidType),
        ([["1", "2"]], InvalidType),
        ([[True, False]], InvalidType),
        ([[None, 1]], InvalidType),
        ([1, 2], ShapeMismatch),
        ([[1, 2, 3]], ShapeMismatch),
        ([[[1, 2]]], ShapeMismatch),
        (np.zeros((0, 2), int), InvalidArgument),
        (None, InvalidType),
        ([[2**70, 0]], OutOfRange),
    ],
)
def test_bad_codes(codes, error):
    for run in (residual().forward, residual().trace):
        with pytest.raises(error, match="codes"):
            run(codes)


FC = Node("fc", Linear([[1, 1]]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nodes": []}, InvalidArgument, "nodes"),
        ({"nodes": [Linear([[1, 1]])]}, InvalidType, "nodes"),
        ({"nodes": [Node("", FC.op)]}, InvalidType, "name"),
        ({"nodes": [Node("input", FC.op)]}, InvalidArgument, "name"),
        ({"nodes": [FC, Node("fc", Flatten())]}, InvalidArgument, "name"),
        ({"nodes": [Node("fc", FC.op, ("later",))]}, InvalidArgument, "topological"),
        ({"nodes": [Node("fc", FC.op, "input")]}, InvalidType, "inputs of fc"),
        ({"nodes": [Node("fc", FC.op, ("input", "input"))]}, InvalidArgument, "inputs of fc"),
        ({"nodes": [Node("add", Add(), ())]}, InvalidArgument, "inputs of add"),
        ({"input_shape": (3,)}, ShapeMismatch, "node 'fc'"),
        ({"input_shape": ()}, InvalidArgument, "input_shape"),
        ({"input_shape": (0,)}, InvalidArgument, "input_shape"),
        ({"input_shape": "ab"}, InvalidType, "input_shape"),
        ({"input_shape": (2.0,)}, InvalidType, "input_shape"),
        ({"input_format": None}, InvalidArgument, "input_format"),
        ({"input_format": 3}, InvalidType, "input_format"),
        ({"input_quantizer": 0.5}, InvalidType, "input_quantizer"),
        ({"output_dequantizer": 0.5}, InvalidType, "output_dequantizer"),
        ({"output": "nowhere"}, InvalidArgument, "output"),
        ({"output": "input"}, InvalidArgument, "output"),
    ],
)
def test_bad_networks(arguments, error, message):
    good = {"nodes": [FC], "input_shape": (2,), "input_format": UINT3}
    assert Network(**good).forward([[1, 2]]).tolist() == [[3]]
    with pytest.raises(error, match=message):
        Network(**{**good, **arguments})


def test_missing_doors():
    with pytest.raises(NotCovered, match="quantize_input"):
        residual().quantize_input([[0.5, 0.5]])
    with pytest.raises(NotCovered, match="dequantize_output"):
        residual().dequantize_output([[1]])
    with pytest.raises(InvalidArgument, match="one of"):
        residual()["nowhere"]


# --- inspect ----------------------------------------------------------------------------------


def test_describe():
    rows = {row.node: row for row in describe(residual())}
    assert list(rows) == ["input", "fc", "act", "mix", "both"]
    assert rows["input"].format == "3-bit unsigned codes [0, 7]"
    fc = rows["fc"]
    assert (fc.kind, fc.inputs, fc.shape, fc.parameters) == ("Linear", ("input",), (2,), 6)
    assert (fc.lo, fc.hi, fc.signed_bits, fc.span_bits) == (-13, 27, 6, 5)
    assert fc.arithmetic == "float32"
    assert (rows["act"].shift, rows["act"].arithmetic) == (1, None)
    assert rows["mix"].inputs == ("act", "input")
    narrow = describe(residual(), Interval(np.array([0, 0]), np.array([1, 1])))
    assert (narrow[1].lo, narrow[1].hi) == (-1, 3)


# --- imports ----------------------------------------------------------------------------------


def test_importing_refqnn_loads_numpy_and_the_standard_library_only():
    program = """
import sys
before = set(sys.modules)
import refqnn, refqnn.exact, refqnn.inspect, refqnn.storage, refqnn.emulate
names = {name.partition(".")[0] for name in set(sys.modules) - before}
names = {name for name in names if "cython" not in name}  # inside numpy
print(sorted(names - set(sys.stdlib_module_names) - {"refqnn"}))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "['numpy']"


def test_testing_without_hypothesis_names_the_extra():
    program = """
import sys
sys.modules["hypothesis"] = None
try:
    import refqnn.testing
except ImportError as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "MissingExtra" in result.stdout
    assert "pip install 'refqnn[test]'" in result.stdout
