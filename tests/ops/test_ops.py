"""Each node against torch on int64 where torch is there, and its range rule against enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refqnn import IntFormat, exact, testing
from refqnn.accumulator.readings import READERS
from refqnn.errors import InvalidArgument, InvalidType, OutOfRange, ShapeMismatch
from refqnn.ops import (
    KINDS,
    Add,
    Concat,
    Conv1d,
    Conv2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Interval,
    Linear,
    Lookup,
    MaxPool2d,
    Reshape,
    SumOp,
    SumPool2d,
)

RNG = np.random.default_rng(0)


def some_conv(rng, axes):
    """A random convolution and an input for it: (op, x)."""
    groups = int(rng.integers(1, 4))
    channels, out = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    kernel = rng.integers(1, 4, axes)
    largest = 10 ** int(rng.integers(1, 12))
    weight = rng.integers(-largest, largest + 1, (out, channels // groups, *kernel))
    bias = rng.integers(-largest, largest + 1, out) if rng.random() < 0.7 else None
    op = (Conv1d if axes == 1 else Conv2d)(
        weight,
        bias,
        stride=tuple(rng.integers(1, 4, axes)),
        padding=tuple(tuple(rng.integers(0, 3, 2)) for _ in range(axes)),
        dilation=tuple(rng.integers(1, 3, axes)),
        groups=groups,
        pad_code=int(rng.integers(-3, 4)),
    )
    x = rng.integers(-7, 8, (3, channels, *rng.integers(6, 10, axes)))
    return op, x


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("seed", range(40))
def test_convolution_against_torch(axes, seed):
    torch = pytest.importorskip("torch")
    op, x = some_conv(np.random.default_rng(seed), axes)
    functional = torch.nn.functional
    around = [end for pair in op.padding[::-1] for end in pair]  # torch: last axis first
    padded = functional.pad(torch.tensor(x), around, value=op.pad_code)
    bias = None if op.bias is None else torch.tensor(op.bias)
    conv = functional.conv1d if axes == 1 else functional.conv2d
    expected = conv(padded, torch.tensor(op.weight), bias, op.stride, 0, op.dilation, op.groups)
    got = op.forward(x)
    assert np.array_equal(got, expected.numpy())
    assert got.shape[1:] == op.out_shape(x.shape[1:])


def test_depthwise_and_the_forms_of_padding():
    weight = RNG.integers(-3, 4, (4, 1, 3, 2))
    x = RNG.integers(0, 8, (2, 4, 5, 6))
    one = Conv2d(weight, padding=1, groups=4)
    assert one.padding == ((1, 1), (1, 1))
    assert Conv2d(weight, padding=(1, 2), groups=4).padding == ((1, 1), (2, 2))
    assert np.array_equal(one.forward(x), Conv2d(weight, None, 1, ((1, 1), 1), 1, 4).forward(x))
    by_channel = [Conv2d(weight[c : c + 1], padding=1).forward(x[:, c : c + 1]) for c in range(4)]
    assert np.array_equal(one.forward(x), np.concatenate(by_channel, axis=1))
    assert Conv1d([[[1, 1]]], padding=((2, 0),)).out_shape((1, 3)) == (1, 4)


def test_large_batches_go_in_blocks(monkeypatch):
    op, x = some_conv(np.random.default_rng(5), 2)
    whole = op.forward(np.repeat(x, 5, axis=0))
    monkeypatch.setattr("refqnn.ops.weighted.UNFOLDED_COLUMNS", 1)
    assert np.array_equal(op.forward(np.repeat(x, 5, axis=0)), whole)


@pytest.mark.parametrize("kernel", [2, 3, (2, 3)])
@pytest.mark.parametrize("stride", [None, 1, (3, 2)])
@pytest.mark.parametrize("padding", [0, 1, (0, 1)])
def test_pools_against_torch(kernel, stride, padding):
    torch = pytest.importorskip("torch")
    x = RNG.integers(-50, -3, (4, 3, 7, 8))  # all negative: padding with zero would win
    floats = torch.tensor(x, dtype=torch.float64)
    expected = torch.nn.functional.max_pool2d(floats, kernel, stride, padding)
    assert np.array_equal(MaxPool2d(kernel, stride, padding).forward(x), expected.long().numpy())
    expected = torch.nn.functional.avg_pool2d(floats, kernel, stride, padding, divisor_override=1)
    assert np.array_equal(SumPool2d(kernel, stride, padding).forward(x), expected.long().numpy())


def test_asymmetric_pool_padding_and_pad_code():
    x = np.array([[[[1, 2], [3, 4]]]])
    pool = SumPool2d(2, 1, ((0, 1), (1, 0)), pad_code=10)
    assert pool.forward(x).tolist() == [[[[24, 10], [33, 27]]]]
    assert MaxPool2d(2, 1, ((0, 1), (1, 0))).forward(-x).tolist() == [[[[-1, -1], [-3, -3]]]]


def test_simple_nodes():
    x = RNG.integers(-9, 9, (5, 2, 3, 4))
    assert np.array_equal(GlobalSumPool().forward(x), x.sum(axis=(2, 3)))
    assert np.array_equal(Flatten().forward(x), x.reshape(5, 24))
    assert np.array_equal(Reshape((4, 6)).forward(x), x.reshape(5, 4, 6))
    assert np.array_equal(Concat().forward(x, x[:, :1]), np.concatenate([x, x[:, :1]], axis=1))
    assert np.array_equal(Add((2, -3)).forward(x, x + 1), -x - 3)
    assert np.array_equal(Add().forward(x, x, x), 3 * x)


def test_lookup_ranges_against_slices():
    """Sparse tables of minima and maxima against min and max of every slice."""
    rng = np.random.default_rng(1)
    for columns in (1, 2, 3, 7, 16, 33):
        table = rng.integers(-99, 99, (2, columns))
        op = Lookup(table, lo=-5)
        pairs = [(i, j) for i in range(columns) for j in range(i, columns)]
        lo, hi = (np.array([pair[k] - 5 for pair in pairs]) for k in (0, 1))
        got = op.out_range(Interval(np.stack([lo, lo]), np.stack([hi, hi])))
        for c in range(2):
            assert got.lo[c].tolist() == [table[c, i : j + 1].min() for i, j in pairs]
            assert got.hi[c].tolist() == [table[c, i : j + 1].max() for i, j in pairs]


def inside(interval):
    """Every input of a small box, [n, *shape]."""
    axes = [range(a, b + 1) for a, b in zip(interval.lo.ravel(), interval.hi.ravel())]
    return np.array(list(itertools.product(*axes))).reshape(-1, *interval.shape)


IMAGES = ("Conv2d", "ConvTranspose2d", "MaxPool2d")
SHAPES = {"Conv1d": (2, 3), "SumPool2d": (1, 3, 2), **dict.fromkeys(IMAGES, (1, 2, 3))}


@pytest.mark.parametrize("kind", [kind for kind in testing.KINDS if kind != "Softmax"])
def test_range_rules_are_exact(kind):
    """The least box that holds the outputs of every input in the box, by enumeration."""
    shape = SHAPES.get(kind, (4,) if kind == "Linear" else (2, 2))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def run(data):
        lo = data.draw(testing.codes(IntFormat(3, True), shape))
        hi = lo + data.draw(testing.codes(IntFormat(1, False), shape))
        box = Interval(lo, hi)
        op = data.draw(testing.ops(kind, testing.Value("x", box)))
        x = inside(box)
        if op.arity is None:  # two operands, every pair of inputs
            first, second = np.divmod(np.arange(len(x) ** 2), len(x))
            inputs, ranges = (x[first], x[second]), (box, box)
        else:
            inputs, ranges = (x,), (box,)
        expected = Interval.observed(op.forward(*inputs))
        got = op.out_range(*ranges)
        assert np.array_equal(got.lo, expected.lo)
        assert np.array_equal(got.hi, expected.hi)
        if isinstance(op, SumOp):
            terms = op.terms(*inputs)
            assert np.array_equal(terms.sum(axis=-1), op.forward(*inputs))
            largest = np.abs(terms).max(axis=0).sum(axis=-1)
            assert np.array_equal(op.absolute_mass(*ranges), largest)

    run()


def test_kinds_have_unique_names():
    assert len({op.kind for op in KINDS}) == len(KINDS) == 16


def test_what_tells_every_kind_a_second_time_tells_them_all():
    """The strategies, plain Python, and what certificates are held against."""
    assert {*testing.KINDS} == {*exact._SUMS, *exact._MAPS} == {op.kind for op in KINDS}
    assert {*READERS} == {*KINDS}


# --- errors -----------------------------------------------------------------------------------

W = np.ones((2, 1, 2, 2), dtype=np.int64)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear([[1.0]]), InvalidType, "weight"),
        (lambda: Linear([1]), ShapeMismatch, "weight"),
        (lambda: Linear(np.zeros((0, 2), int)), InvalidArgument, "weight"),
        (lambda: Linear([[2**63]]), OutOfRange, "weight"),
        (lambda: Linear([[1]], [1, 2]), ShapeMismatch, "bias"),
        (lambda: Linear([[1]], [0.5]), InvalidType, "bias"),
        (lambda: Linear("weights"), InvalidType, "weight"),
        (lambda: Conv2d(W, stride=0), InvalidArgument, "stride"),
        (lambda: Conv2d(W, stride=(1, 2, 3)), InvalidType, "stride"),
        (lambda: Conv2d(W, stride=1.0), InvalidType, "stride"),
        (lambda: Conv2d(W, dilation=0), InvalidArgument, "dilation"),
        (lambda: Conv2d(W, padding=-1), InvalidArgument, "padding"),
        (lambda: Conv2d(W, padding="same"), InvalidType, "padding"),
        (lambda: Conv2d(W, padding=((1, 2, 3), 0)), InvalidType, "padding"),
        (lambda: Conv2d(W, groups=3), InvalidArgument, "groups"),
        (lambda: Conv2d(W, groups=0), InvalidArgument, "groups"),
        (lambda: Conv2d(W, groups=True), InvalidType, "groups"),
        (lambda: Conv2d(W, pad_code=0.0), InvalidType, "pad_code"),
        (lambda: Conv2d(W, pad_code=2**32), OutOfRange, "pad_code"),
        (lambda: Conv2d(W[0]), ShapeMismatch, "weight"),
        (lambda: Conv1d(W), ShapeMismatch, "weight"),
        (lambda: Conv2d(W, [1]), ShapeMismatch, "bias"),
        (lambda: MaxPool2d(0), InvalidArgument, "kernel"),
        (lambda: MaxPool2d(2, padding=2), InvalidArgument, "padding"),
        (lambda: SumPool2d(2, pad_code=None), InvalidType, "pad_code"),
        (lambda: Lookup([[1.5]], 0), InvalidType, "table"),
        (lambda: Lookup([1], 0), ShapeMismatch, "table"),
        (lambda: Lookup([[1]], 0.0), InvalidType, "lo"),
        (lambda: Lookup([[9]], 0, IntFormat(2, False)), OutOfRange, "table"),
        (lambda: Lookup([[1]], 0, 8), InvalidType, "format"),
        (lambda: Add((1, 0)), InvalidArgument, "multipliers"),
        (lambda: Add((1, 0.5)), InvalidType, "multipliers"),
        (lambda: Add(2), InvalidType, "multipliers"),
        (lambda: Reshape((2, -1)), InvalidArgument, "shape"),
        (lambda: Reshape("ab"), InvalidType, "shape"),
        (lambda: Interval(np.array([1]), np.array([0])), InvalidArgument, "lo"),
        (lambda: Interval(np.array([1]), np.array([1, 2])), ShapeMismatch, "hi"),
        (lambda: Interval(np.array([0.5]), np.array([1])), InvalidType, "lo"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Linear([[1, 2]]), [(3,)]),
        (Linear([[1, 2]]), [(1, 2)]),
        (Conv2d(W), [(2, 5, 5)]),
        (Conv2d(W), [(1, 5)]),
        (Conv2d(W), [(1, 1, 5)]),
        (Conv2d(W, dilation=5), [(1, 5, 5)]),
        (Conv1d(W[0]), [(1, 5, 5)]),
        (MaxPool2d(3), [(1, 2, 5)]),
        (MaxPool2d(3), [(5, 5)]),
        (GlobalSumPool(), [(4,)]),
        (Lookup([[1], [2], [3]], 0), [(2,)]),
        (Add(), [(2,), (3,)]),
        (Add((1, 2)), [(2,)]),
        (Concat(), [(1, 2), (1, 3)]),
        (Reshape((4,)), [(5,)]),
    ],
)
def test_bad_input_shapes(op, shapes):
    with pytest.raises(ShapeMismatch, match="got"):
        op.out_shape(*shapes)


def test_lookup_outside_its_table():
    op = Lookup([[5, 6]], lo=3)
    for x in ([[2]], [[5]]):
        with pytest.raises(OutOfRange, match=r"input of Lookup: got values.*expected \[3, 4\]"):
            op.forward(np.array(x))
    with pytest.raises(OutOfRange):
        op.out_range(Interval(np.array([3]), np.array([5])))


def test_parameters_are_read_only_copies():
    weight = np.array([[1, 2]])
    layer = Linear(weight)
    weight[0, 0] = 7
    assert layer.weight.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0, 0] = 7


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_a_pixel_shuffle_takes_multiples_of_the_square_alone(factor):
    for channels in range(1, 2 * factor**2 + 1):
        if channels % factor**2 == 0:
            assert Gather.pixel_shuffle((channels, 1, 1), factor).index.size == channels
        else:
            with pytest.raises(ShapeMismatch, match="in_shape"):
                Gather.pixel_shuffle((channels, 1, 1), factor)


@pytest.mark.parametrize("index", [1, np.zeros(0, dtype=int), np.zeros((2, 0), dtype=int)])
def test_a_movement_of_no_axis_or_no_value_is_refused(index):
    with pytest.raises(ShapeMismatch, match="at least one value"):
        Gather(index, (3,))


def test_no_more_values_than_a_network_may_have():
    """Counted before they are made; half the memory of what a machine has is no answer."""
    assert Gather.nearest((1, 8, 1), (8, 8)).index.shape == (1, 64, 8)
    assert Gather.pad((1, 8, 9), 50).index.shape == (1, 108, 109)
    for make in (
        lambda: Gather.nearest((1, 2, 2), (2**13, 2**13)),
        lambda: Gather.pad((1, 4, 4), ((2**14, 2**14 + 4), (2**14, 2**14 + 4))),
        lambda: Gather.pad((1, 4, 4), 2**14),
    ):
        with pytest.raises(ShapeMismatch, match=f"at most {2**27}"):
            make()


@pytest.mark.parametrize("factor", [0, -1, -2])
def test_a_pixel_shuffle_by_no_factor_is_refused(factor):
    with pytest.raises(ShapeMismatch, match="in_shape"):
        Gather.pixel_shuffle((4, 1, 1), factor)
