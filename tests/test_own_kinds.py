"""Node kinds of the user's own: what needs only their structure works, the rest refuses by name."""

import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import refqnn
from refqnn import (
    Add,
    Certificate,
    Concat,
    Gather,
    Interval,
    IntFormat,
    Linear,
    Lookup,
    MaxPool2d,
    Network,
    Node,
    Requantize,
    certify,
    exact,
    find_overflow,
    inspect,
    simplify,
)
from refqnn.errors import CertificateError, InvalidType, NotCovered, ShapeMismatch
from refqnn.ops import Op, SumOp
from refqnn.ops.base import Channelwise

U2 = IntFormat(2, signed=False)


def network(*nodes: Node, shape: tuple[int, ...] = (1,), fmt: IntFormat = U2) -> Network:
    return Network(list(nodes), input_shape=shape, input_format=fmt)


class Elementwise(Op):
    """A kind that tells nothing but shapes, ranges and values."""

    def out_shape(self, *shapes):
        return shapes[0]

    def out_range(self, *ranges):
        return ranges[0]

    def forward(self, *x, plan=None):
        return x[0]


class Square(SumOp):
    kind = "Square"

    def out_shape(self, *shapes):
        return shapes[0]

    def out_range(self, *ranges):
        (x,) = ranges
        least = np.where((x.lo <= 0) & (x.hi >= 0), 0, np.minimum(x.lo**2, x.hi**2))
        return Interval(least, x.magnitude**2)

    def absolute_mass(self, *ranges):
        return ranges[0].magnitude ** 2

    def forward(self, *x, plan=None):
        return x[0] ** 2

    def terms(self, *x):
        return (x[0] ** 2)[..., None]


def squared() -> Network:
    nodes = [Node("fc", Linear([[1], [-1]], [0, 3])), Node("square", Square())]
    return network(*nodes, Node("act", Requantize([[3, 10, 11]], U2)))


@pytest.mark.parametrize("method", ["auto", "interval", "exhaustive", "search"])
def test_a_sum_of_ones_own_runs_and_is_certified(method):
    net = squared()
    x = np.arange(4)[:, None]
    trace = net.trace(x)
    assert trace["square"].tolist() == [[v**2, (3 - v) ** 2] for v in range(4)]
    assert net.forward(x).tolist() == trace["act"].tolist()
    assert net.diff(trace) is None
    layer = certify(net, method=method, budget_s=1.0)["square"]
    assert (layer.lo.tolist(), layer.hi.tolist()) == ([0, 0], [9, 9])
    assert find_overflow(net, "square", 0, 4).value == 9
    assert find_overflow(net, "square", 0, 5).range == (0, 9)
    assert [row.kind for row in inspect.describe(net)][2] == "Square"


def test_a_kind_of_ones_own_is_refused_where_it_must_be_known(tmp_path):
    net = squared()
    with pytest.raises(NotCovered, match="square"):
        net.save(tmp_path / "net")
    assert not (tmp_path / "net").exists()
    with pytest.raises(NotCovered, match="Square"):
        exact.forward(net, [[1]])
    pytest.importorskip("concrete.fhe")
    with pytest.raises(NotCovered, match="square"):
        refqnn.fhe.compile(net)


def test_a_kind_that_takes_the_name_of_ours_is_not_ours(tmp_path):
    class Flatten(Elementwise):
        kind = "Flatten"

    net = network(Node("own", Flatten()))
    with pytest.raises(NotCovered, match="own"):
        net.save(tmp_path / "net")
    with pytest.raises(NotCovered, match="Flatten"):
        exact.forward(net, [[1]])


@dataclass(frozen=True, eq=False)
class Same(Channelwise):
    kind: ClassVar[str] = "Act"
    out_shape = Elementwise.out_shape
    out_range = Elementwise.out_range
    forward = Elementwise.forward


@dataclass(frozen=True, eq=False)
class Negated(Same):
    def out_range(self, *ranges):
        return Interval(-ranges[0].hi, -ranges[0].lo)

    def forward(self, *x, plan=None):
        return -x[0]


class Doubled(Linear):
    def forward(self, *x, plan=None):
        return 2 * super().forward(*x)

    def out_range(self, *ranges):
        once = super().out_range(*ranges)
        return Interval(2 * once.lo, 2 * once.hi)

    def absolute_mass(self, *ranges):
        return 2 * super().absolute_mass(*ranges)


class Flipped(Requantize):
    def forward(self, *x, plan=None):
        return 3 - super().forward(*x)

    def out_range(self, *ranges):
        codes = super().forward(np.stack([ranges[0].hi, ranges[0].lo]))
        return Interval(*(3 - codes))


@pytest.mark.parametrize(
    "nodes",
    [
        [Node("a", Same()), Node("b", Negated(), ("input",)), Node("c", Concat(), ("a", "b")),
         Node("o", Linear([[1, 1]]))],
        [Node("a", Doubled([[1]])), Node("b", Linear([[1]]), ("input",)),
         Node("o", Add(), ("a", "b"))],
        [Node("a", Flipped([[1, 2, 3]], U2)), Node("o", Linear([[10]]))],
    ],
    ids=["one name", "a subclass of Linear", "a subclass of Requantize"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["auto", "interval", "search"])
def test_what_is_inherited_says_nothing_of_a_forward_of_ones_own(nodes, method):
    net = network(*nodes)
    x = np.arange(4)[:, None]
    certificate = certify(net, method=method, budget_s=1.0)
    outputs = net.forward(x)
    assert outputs.tolist() == net.trace(x)["o"].tolist()
    assert simplify(net, certificate).forward(x).tolist() == outputs.tolist()
    assert certificate["o"].lo.min() <= outputs.min() <= outputs.max() <= certificate["o"].hi.max()


class Listed(Elementwise):
    kind = "Listed"

    def __init__(self, *tables):
        self.tables = tables

    def out_range(self, *ranges):
        (table,) = self.tables
        shape = ranges[0].shape
        return Interval(np.full(shape, table.min()), np.full(shape, table.max()))

    def forward(self, *x, plan=None):
        return self.tables[0][x[0]]


def test_a_certificate_of_a_look_alike_is_not_taken():
    """numpy shortens long arrays when it prints them."""
    zeros = np.zeros(4096, dtype=np.int64)
    other = zeros.copy()
    other[2000] = 1000
    fmt = IntFormat(12, signed=False)
    a, b = (
        network(Node("t", Listed(t)), Node("o", Linear([[1]])), fmt=fmt) for t in (zeros, other)
    )
    assert a.digest != b.digest
    assert find_overflow(b, "o", 0, 4).value == 1000
    with pytest.raises(CertificateError):
        find_overflow(b, "o", 0, 4, certificate=certify(a))


def test_a_certificate_of_another_class_of_the_same_name_is_verified_first():
    def of(shift):
        class Own(Elementwise):
            kind = "Own"

            def out_range(self, *ranges):
                return Interval(ranges[0].lo + shift, ranges[0].hi + shift)

            def forward(self, *x, plan=None):
                return x[0] + shift

        return network(Node("own", Own()), Node("o", Linear([[1]])))

    low, high = of(0), of(100)
    if low.digest == high.digest:
        with pytest.raises(CertificateError):
            find_overflow(high, "o", 0, 4, certificate=certify(low))
    assert find_overflow(high, "o", 0, 4).value > 7


def test_what_was_trusted_once_is_not_proved():
    net = network(Node("own", Listed(np.arange(4))), Node("o", Linear([[1]])))
    loaded = Certificate.from_json(certify(net, method="interval").to_json())
    loaded.verify(net, allow_trusted=True)
    with pytest.raises(CertificateError, match="trusted"):
        simplify(net, loaded)


def test_summaries_behind_a_kind_of_ones_own_are_checked():
    net = network(Node("own", Listed(np.arange(4))), Node("o", Linear([[1, 1]])), shape=(2,))
    content = certify(net).to_json()
    content["nodes"][2]["datatype"] = content["nodes"][2]["by_weights"] = [0, 1]
    del content["sha256"]
    text = json.dumps(content, sort_keys=True).encode()
    forged = Certificate.from_json({**content, "sha256": hashlib.sha256(text).hexdigest()})
    with pytest.raises(CertificateError, match="datatype"):
        forged.verify(net, allow_trusted=True)


def test_ill_behaved_kinds_are_refused_by_name():
    class Nameless(Elementwise):
        pass

    class Shapeless(Elementwise):
        kind = "Shapeless"

        def out_shape(self, *shapes):
            return ()

    class Narrow(Elementwise):
        kind = "Narrow"

        def forward(self, *x, plan=None):
            return x[0].astype(np.int8)

    class Floats(Elementwise):
        kind = "Floats"

        def forward(self, *x, plan=None):
            return x[0] / 2

    with pytest.raises(InvalidType, match="kind of node 'n'"):
        network(Node("n", Nameless()))
    with pytest.raises(ShapeMismatch, match="'n'"):
        network(Node("n", Shapeless()))
    with pytest.raises(InvalidType, match="'n'"):
        network(Node("n", Floats())).trace([[1]])
    wide = network(
        Node("n", Narrow()), Node("a", Add((3, 3)), ("n", "n")), fmt=IntFormat(7, signed=False)
    )
    assert wide.trace([[100]])["a"].tolist() == wide.forward([[100]]).tolist() == [[600]]


# --- brothers among our own kinds ---------------------------------------------------------------


@pytest.mark.parametrize("fill", [2**24 + 1, 2**31 - 1, -(2**31) + 1])
def test_a_fill_that_the_inputs_float_does_not_hold(fill):
    net = network(Node("g", Gather([0, -1], (1,), fill)), Node("o", Linear([[0, 1]])))
    assert net.forward([[1]]).tolist() == net.trace([[1]])["o"].tolist() == [[fill]]


def test_a_witness_reaches_its_bound_or_there_is_none():
    net = network(
        Node("k", Lookup([[0, 5, 1, 0]], lo=0)),
        Node("r", Requantize([[-(2**63)] * 3], U2)),
        Node("a", Add((3, 3)), ("r", "r")),
    )
    pool = network(Node("m", MaxPool2d(2)), shape=(1, 2, 2))
    for net_, method in ((net, "auto"), (net, "interval"), (pool, "interval"), (pool, "auto")):
        certificate = certify(net_, method=method)
        for name, layer in certificate.nodes.items():
            for index in np.ndindex(layer.lo.shape):
                for end, bound in enumerate((layer.lo, layer.hi)):
                    found = certificate.witness(net_, name, index, end)
                    if found is not None:
                        assert net_.trace(found[None])[name][(0, *index)] == bound[index]
    assert find_overflow(net, "a", 0, 4).value == 18
