"""The prepared forward against the specification (trace) and against plain Python integers."""

import copy
import dataclasses
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from refqnn import Interval, IntFormat, Network, Node, Requantize, exact, plan, testing
from refqnn.errors import RefqnnError
from refqnn.formats import BIPOLAR
from refqnn.ops import Add, Conv2d, Flatten, Linear, MaxPool2d, Rescale

U3, S3, U8 = IntFormat(3, signed=False), IntFormat(3, signed=True), IntFormat(8, signed=False)


def with_blocks_of(network, samples):
    """The network's plan with another block size."""
    prepared = plan.prepare(network)
    return None if prepared is None else dataclasses.replace(prepared, block=samples)


def check(network, codes):
    expected = network.trace(codes)[network.output]
    prepared = with_blocks_of(network, 2)
    event(f"prepared: {prepared is not None}")
    if prepared is not None:
        before = codes.copy()
        got = prepared.forward(codes)
        assert got.dtype == np.int64
        assert got.shape == expected.shape
        assert got.tolist() == expected.tolist()
        assert (codes == before).all()
    assert network.forward(codes).tolist() == exact.forward(network, codes)


@given(st.data(), st.sampled_from([3, 3, 2**11, 2**25, 2**40, 2**62]))
def test_random_networks(data, max_weight):
    network = data.draw(testing.networks(max_weight=max_weight))
    check(network, data.draw(testing.batches(network, max_samples=5)))


@given(st.data())
def test_sums_with_followers(data):
    """Pool and codes behind a sum, in either order, shared or not, are moved and merged."""
    fmt = data.draw(testing.formats(max_bits=3))
    values = [testing.Value("input", Interval.of_format(fmt, (2, 5, 4)))]
    nodes = []
    kinds = ["Conv2d", *data.draw(st.permutations(["Requantize", "MaxPool2d", "Requantize"]))]
    for kind in kinds:
        op = data.draw(testing.ops(kind, values[-1], max_weight=9))
        name = f"node{len(nodes)}"
        nodes.append(Node(name, op, (values[-1].name,)))
        values.append(testing.Value(name, op.out_range(values[-1].range)))
    if data.draw(st.booleans()):  # somebody else looks at a value in between
        nodes.append(Node("other", Flatten(), (data.draw(st.sampled_from(values)).name,)))
        nodes.append(Node("last", Flatten(), (values[-1].name,)))
        nodes.append(Node("sum", Add(), ("last", "last")))
    output = data.draw(st.sampled_from(nodes)).name
    network = Network(nodes, input_shape=(2, 5, 4), input_format=fmt, output=output)
    check(network, data.draw(testing.batches(network)))


@given(st.data())
def test_a_line_gives_the_codes_of_its_thresholds(data):
    fmt = data.draw(testing.formats(max_bits=4))
    lo = data.draw(st.integers(-200, 200))
    hi = lo + data.draw(st.integers(0, 300))
    near = st.integers(lo - 2, hi + 2)
    if data.draw(st.booleans()):
        shift = data.draw(st.floats(-3.0, 3.0))
        row = np.rint(np.linspace(lo * shift, hi, fmt.levels - 1)).astype(np.int64)
    else:
        row = np.array(data.draw(st.lists(near, min_size=fmt.levels - 1, max_size=fmt.levels - 1)))
    thresholds = np.sort(np.clip(row, lo - 2, hi + 2))[None]
    ends = np.array([lo]), np.array([hi])
    line = plan._line(thresholds, *ends, fmt.q_min, np.float32, np.float32)
    event(f"found: {line is not None}")
    if line is not None:
        acc = np.arange(lo, hi + 1)[None]
        expected = Requantize(thresholds, fmt).forward(acc.T).T
        assert line(acc.astype(np.float32)).tolist() == expected.tolist()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rounding", ["half_even", "half_up", "floor"])
def test_affine_thresholds_have_a_line(bits, rounding):
    rng = np.random.default_rng(bits)
    gain, offset = rng.uniform(0.001, 1.5, 30), rng.uniform(-9, 9, 30)
    op = Requantize.from_affine(list(gain), list(offset), IntFormat(bits, signed=False), rounding)
    lo, hi = np.full(30, -(2**15)), np.full(30, 2**15)
    reachable = np.clip(op.thresholds, lo[:, None], hi[:, None] + 1)
    line = plan._line(reachable, lo, hi, op.format.q_min, np.float64, np.float32)
    assert line is not None
    acc = np.tile(np.arange(-(2**15), 2**15 + 1), (30, 1))
    assert (line(acc.astype(np.float64)) == op.forward(acc.T).T).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_ties_to_even_have_a_line(bits, shift):
    """Power-of-two scales: thresholds whose distances alternate."""
    offset = np.arange(-20, 20)
    op = Requantize.from_shift(shift, IntFormat(bits, signed=True), "half_even", offset=offset)
    lo, hi = np.full(40, -(2**13)), np.full(40, 2**13)
    reachable = np.clip(op.thresholds, lo[:, None], hi[:, None] + 1)
    line = plan._line(reachable, lo, hi, op.format.q_min, np.float32, np.float32)
    assert line is not None
    acc = np.tile(np.arange(-(2**13), 2**13 + 1), (40, 1))
    assert (line(acc.astype(np.float32)) == op.forward(acc.T).T).all()


@pytest.mark.parametrize("levels_bits", [8, 10])
def test_thresholds_that_no_line_gives(levels_bits):
    """A table where the range is small, the node itself where it is not."""
    fmt = IntFormat(levels_bits, signed=True)
    rng = np.random.default_rng(0)
    for reach, kind in ((50, plan._Table), (2**16, plan._Specified)):
        weight = rng.integers(-reach, reach + 1, (80, 5))
        thresholds = np.sort(rng.integers(-reach, reach, (80, fmt.levels - 1)), axis=1)
        nodes = [Node("fc", Linear(weight, weight[:, 0])), Node("act", Requantize(thresholds, fmt))]
        network = Network(nodes, input_shape=(5,), input_format=U8)
        ((_, step, _, _),) = plan.prepare(network).steps
        assert isinstance(step.codes, kind)
        codes = rng.integers(0, 256, (50, 5))
        assert (network.forward(codes) == network.trace(codes)["act"]).all()


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (16, 27, 5000), (3, 200, 1999), (300, 60, 70)]
)
@pytest.mark.parametrize("groups", [1, 3])
def test_products_in_slices(m, k, n, groups):
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-7, 8, (groups, m, k)), rng.integers(0, 8, (groups, k, n))
    out = np.empty((m, groups, n), np.float32).swapaxes(0, 1)
    got = plan._product(weight.astype(np.float32), x.astype(np.float32), out)
    assert (got == weight @ x).all()
    assert (out == got).all()
    columns_first = np.ascontiguousarray(x[0].T).astype(np.float32).T
    got = plan._product(weight[0].astype(np.float32), columns_first, np.empty((m, n), np.float32))
    assert (got == weight[0] @ x[0]).all()


@settings(max_examples=20)
@given(st.data())
def test_large_batches(data):
    """From `NUMPY_BUFFER` samples on, numpy's buffers are small in a run, and whole after."""
    network = data.draw(testing.networks(max_weight=9))
    codes = data.draw(testing.batches(network, max_samples=5))
    many = np.concatenate([codes] * plan.NUMPY_BUFFER)[: plan.NUMPY_BUFFER]
    expected = exact.forward(network, codes)
    size = np.getbufsize()
    assert network.forward(many).tolist() == (expected * plan.NUMPY_BUFFER)[: len(many)]
    assert np.getbufsize() == size


@pytest.mark.parametrize("fmt", [U3, S3, IntFormat(3, signed=True, narrow=True), BIPOLAR], ids=str)
@pytest.mark.parametrize("shape", [(2,), (2, 1, 2)], ids=str)
def test_few_inputs_are_a_table(fmt, shape):
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    nodes = [
        Node("flat", Flatten()),
        Node("fc", Linear(rng.integers(-3, 4, (5, size)), rng.integers(-9, 9, 5))),
        Node("act", Requantize.from_shift(2, S3)),
        Node("last", Linear(rng.integers(-3, 4, (3, 5)))),
    ]
    network = Network(nodes[len(shape) == 1 :], input_shape=shape, input_format=fmt)
    prepared = plan.enumerated(plan.prepare(network))
    assert (prepared is None) == (fmt is BIPOLAR)
    digits = np.indices((fmt.levels,) * size).reshape(size, -1).T
    codes = (fmt.q_min + fmt.step * digits).reshape(-1, *shape)
    expected = exact.forward(network, codes)
    assert network.forward(codes).tolist() == expected
    assert network.forward(codes[:1].astype(np.int8)).tolist() == expected[:1]
    for outside in (fmt.q_min - 1, fmt.q_max + 1, 2**40):
        wrong = codes.copy()
        wrong[-1, -1] = outside
        with pytest.raises(RefqnnError, match=str(outside)):
            network.forward(wrong)


@pytest.mark.parametrize(
    ("inputs", "hidden", "outputs", "table"),
    [(4, 9, 8, True), (5, 9, 1, False), (4, 9, 33, False), (4, 900, 8, False)],
)
def test_only_a_small_table_is_made(inputs, hidden, outputs, table):
    """Few inputs, few outputs, and little work for each."""
    layers = [Linear(np.ones((hidden, inputs), int)), Linear(np.ones((outputs, hidden), int))]
    nodes = [Node(f"fc{i}", layer) for i, layer in enumerate(layers)]
    network = Network(nodes, input_shape=(inputs,), input_format=U3)
    assert isinstance(network._prepared, plan.Enumeration if table else plan.Plan)


# --- the door ---------------------------------------------------------------------------------


def small_cnn():
    rng = np.random.default_rng(0)
    nodes = [
        Node("conv", Conv2d(rng.integers(-3, 4, (4, 2, 3, 3)), rng.integers(-9, 9, 4), padding=1)),
        Node("act", Requantize.from_shift(3, U3)),
        Node("pool", MaxPool2d(2)),
        Node("flat", Flatten()),
        Node("fc", Linear(rng.integers(-3, 4, (5, 64)))),
    ]
    return Network(nodes, input_shape=(2, 8, 8), input_format=S3)


def test_input_arrays_of_every_layout():
    network = small_cnn()
    codes = np.random.default_rng(1).integers(-4, 4, (6, 2, 8, 8))
    expected = network.trace(codes)["fc"]
    reverse = np.ascontiguousarray(codes[::-1])[::-1]
    readonly = codes.copy()
    readonly.flags.writeable = False
    forms = [codes, codes.astype(np.int8), codes.astype(">i4"), np.asfortranarray(codes)]
    forms += [reverse, readonly, codes.astype(object), codes.tolist(), tuple(codes)]
    for form in forms:
        assert (network.forward(form) == expected).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.full((3, 2, 8, 8), 4),
        np.full((3, 2, 8, 8), 2**63, dtype=np.uint64),
        np.full((3, 2, 8, 8), 2**70, dtype=object),
        np.zeros((3, 2, 8, 7), dtype=int),
        np.full((3, 2, 8, 7), 9),
        np.zeros((0, 2, 8, 8), dtype=int),
        np.zeros((2, 8, 8), dtype=int),
        np.int64(3),
        np.zeros((3, 2, 8, 8)),
        np.zeros((3, 2, 8, 8), dtype=bool),
        None,
        "codes",
    ],
    ids=str,
)
def test_the_errors_are_those_of_the_specification(bad):
    network = small_cnn()
    with pytest.raises(RefqnnError) as expected:
        network.check_codes(bad)
    with pytest.raises(type(expected.value)) as got:
        network.forward(bad)
    assert str(got.value) == str(expected.value)


def test_a_bad_code_is_named_in_the_whole_batch():
    network = small_cnn()
    codes = np.zeros((7, 2, 8, 8), dtype=np.int64)
    codes[5, 1, 2, 3] = 4
    with pytest.raises(RefqnnError, match=r"codes\[5, 1, 2, 3\]"):
        with_blocks_of(network, 2).forward(codes)


def test_bipolar_codes_are_checked():
    network = Network([Node("fc", Linear([[1, 1]]))], input_shape=(2,), input_format=BIPOLAR)
    assert network.forward([[1, -1]]).tolist() == [[0]]
    with pytest.raises(RefqnnError):
        network.forward([[1, 0]])


@pytest.mark.parametrize("weight", [1, 2**10, 2**19, 2**31, 2**52])
def test_a_rescale_of_wide_accumulators_takes_no_memory_for_a_table(weight):
    """8 bits times a weight: one entry for each accumulator would be up to 2**60 of them."""
    rescale = Rescale([3, 2**30], [4, 60], IntFormat(16, signed=True), rounding="half_even")
    nodes = [Node("fc", Linear([[weight, 0], [0, -weight]])), Node("rescale", rescale)]
    network = Network(nodes, input_shape=(2,), input_format=IntFormat(8, signed=True))
    codes = np.stack([np.arange(-128, 128), np.arange(-128, 128)[::-1]], axis=1)
    expected = network.trace(codes)["rescale"]
    tracemalloc.start()
    assert (network.forward(codes) == expected).all()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**27


def test_threads_share_a_plan():
    network = small_cnn()
    batches = [np.random.default_rng(i).integers(-4, 4, (50, 2, 8, 8)) for i in range(16)]
    expected = [network.trace(codes)["fc"] for codes in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, right in zip(pool.map(network.forward, batches * 4), expected * 4):
            assert (got == right).all()


def test_a_prepared_network_is_copied_and_pickled():
    network = small_cnn()
    codes = np.random.default_rng(1).integers(-4, 4, (6, 2, 8, 8))
    expected = network.forward(codes)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert (other.forward(codes) == expected).all()


def test_memory_does_not_grow_with_the_batch():
    network = small_cnn()
    block = network._prepared.block

    def peak(n):
        codes = np.zeros((n, 2, 8, 8), dtype=np.int8)
        tracemalloc.start()
        network.forward(codes)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most - n * 5 * 8  # without the outputs

    assert peak(6 * block) < 1.2 * peak(2 * block)
