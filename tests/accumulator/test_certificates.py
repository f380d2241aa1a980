"""Certificates: sound, exact where they say so, honest about the rest."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Mapping
from dataclasses import is_dataclass

import numpy as np
import pytest
from accumulator_networks import all_inputs, brute_force, chains, integers, networks
from hypothesis import given, settings
from hypothesis import strategies as st

import refqnn.accumulator.ladder as ladder
from refqnn import (
    BIPOLAR,
    Certificate,
    Domain,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    certify,
    find_overflow,
    observed,
)
from refqnn.accumulator import Proof, Status
from refqnn.errors import (
    CertificateError,
    FileFormatError,
    InvalidArgument,
    InvalidType,
    OutOfRange,
    ShapeMismatch,
)
from refqnn.formats import signed_bits, span_bits
from refqnn.ops import Concat, Conv2d, Flatten, Gather, MaxPool2d
from refqnn.ops.base import Interval


def searched(network, **kwargs):
    """A certificate by search, also where the domain is small enough to enumerate."""
    limit, ladder.EXHAUSTIVE_LIMIT = ladder.EXHAUSTIVE_LIMIT, 0
    try:
        return certify(network, method="search", budget_s=30, **kwargs)
    finally:
        ladder.EXHAUSTIVE_LIMIT = limit


def assert_holds(certificate, network, truth):
    """Sound everywhere; equal to the truth where it says exact; witnesses reach what they claim."""
    for name, (lo, hi) in truth.items():
        layer = certificate[name]
        assert (layer.lo <= lo).all(), name
        assert (layer.hi >= hi).all(), name
        assert (layer.lo == lo)[layer.status[0] == Status.EXACT].all(), name
        assert (layer.hi == hi)[layer.status[1] == Status.EXACT].all(), name
    for name, layer in certificate.layers.items():
        for end, bound in ((0, layer.lo), (1, layer.hi)):
            for index in np.ndindex(layer.lo.shape):
                witness = certificate.witness(network, name, index, end)
                if witness is not None:
                    assert network.trace(witness[None])[name][(0, *index)] == bound[index]


@given(networks)
@settings(max_examples=12, deadline=None)
def test_every_rung_against_brute_force(network):
    rows = all_inputs(network)
    truth = brute_force(network, rows)
    interval, exhaustive = certify(network, method="interval"), certify(network)
    assert_holds(interval, network, truth)
    assert_holds(exhaustive, network, truth)
    for name, (lo, hi) in truth.items():
        assert (exhaustive[name].lo == lo).all()
        assert (exhaustive[name].hi == hi).all()
        if name in exhaustive.layers:
            assert exhaustive[name].exact.all()
    for certificate in (interval, exhaustive):
        counts = certificate.verify(network)
        assert sum(counts.values()) == sum(2 * lo.size for lo, _ in truth.values())


@given(networks)
@settings(max_examples=12, deadline=None)
def test_search_finds_what_enumeration_finds(network):
    certificate = searched(network)
    truth = brute_force(network, all_inputs(network))
    assert_holds(certificate, network, truth)
    for name, layer in certificate.layers.items():
        assert (layer.lo == truth[name][0]).all()
        assert (layer.hi == truth[name][1]).all()
        assert layer.exact.all()
    certificate.verify(network)


@given(networks, st.data())
@settings(max_examples=12, deadline=None)
def test_boxes_and_rows(network, data):
    inputs = all_inputs(network)
    a, b = (inputs[data.draw(st.integers(0, len(inputs) - 1))] for _ in range(2))
    lo, hi = np.minimum(a, b), np.maximum(a, b)
    inside = inputs[((inputs >= lo) & (inputs <= hi)).reshape(len(inputs), -1).all(axis=1)]
    truth = brute_force(network, inside)
    box = Domain.box(network, lo, hi)
    assert box.size == len(inside)
    for certificate in (
        certify(network, box, method="interval"),
        certify(network, box),
        certify(network, Interval(lo, hi)),
        searched(network, domain=box),
    ):
        assert_holds(certificate, network, truth)
        certificate.verify(network)
    places = st.integers(0, len(inputs) - 1)
    rows = inputs[data.draw(st.lists(places, min_size=1, max_size=5, unique=True))]
    truth = brute_force(network, rows)
    for method in ("interval", "auto", "search"):
        certificate = certify(network, rows, method=method)
        assert_holds(certificate, network, truth)
        certificate.verify(network)


@given(chains())
@settings(max_examples=25, deadline=None)
def test_certificate_survives_a_file(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("certificates") / "c.json"
    for certificate in (certify(network), searched(network)):
        certificate.save(path)
        loaded = Certificate.load(path)
        assert loaded.to_json() == certificate.to_json()
        assert loaded.verify(network) == certificate.verify(network)
        assert str(loaded) == str(certificate)


def planted(n_inputs=24, bits=3):
    """A neuron that only one corner in 8**24 pushes to its end.

    fc0 sums the inputs against a pattern; act0 fires only within 2 of the greatest sum; fc1 makes
    40 of it.  Random inputs never fire it.
    """
    rng = np.random.default_rng(7)
    pattern = rng.choice([-1, 1], size=(1, n_inputs))
    greatest = int((pattern > 0).sum()) * (2**bits - 1)
    fire = Requantize([[greatest - 2]], IntFormat(1, False))
    nodes = [
        Node("fc0", Linear(pattern)),
        Node("act0", fire),
        Node("fc1", Linear([[40], [-40]], [5, 5])),
    ]
    return Network(nodes, input_shape=(n_inputs,), input_format=IntFormat(bits, False)), pattern


def test_a_planted_corner_that_sampling_misses():
    network, _ = planted()
    rng = np.random.default_rng(0)
    X = rng.integers(0, 8, size=(100_000, 24))
    assert int(observed(network, X)["fc1"].hi[0]) == 5
    certificate = certify(network, method="search", budget_s=20)
    assert certificate["fc1"].hi.tolist() == [45, 5]
    assert certificate["fc1"].lo.tolist() == [5, -35]
    assert certificate["fc1"].exact.all()
    witness = certificate.witness(network, "fc1", 0, 1)
    assert network.forward(witness[None]).tolist() == [[45, -35]]
    certificate.verify(network)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_planted_weights_that_cancel(seed):
    """Two copies of a neuron, subtracted: intervals see a wide range, the truth is one point."""
    rng = np.random.default_rng(seed)
    row = rng.integers(-3, 4, size=6)
    act = Requantize.from_shift(2, IntFormat(2, False))
    nodes = [
        Node("fc0", Linear([row, row])),
        Node("act0", act),
        Node("fc1", Linear([[1, -1]], [9])),
    ]
    network = Network(nodes, input_shape=(6,), input_format=IntFormat(3, False))
    certificate = searched(network)
    assert certificate["fc1"].lo.tolist() == certificate["fc1"].hi.tolist() == [9]
    assert certificate["fc1"].exact.all()


def test_time_that_runs_out_leaves_sound_bounds():
    rng = np.random.default_rng(5)
    act = Requantize.from_shift(3, IntFormat(3, False))
    nodes = [
        Node("fc0", Linear(rng.integers(-4, 4, (24, 32)))),
        Node("act0", act),
        Node("fc1", Linear(rng.integers(-4, 4, (6, 24)))),
    ]
    network = Network(nodes, input_shape=(32,), input_format=IntFormat(3, False))
    interval = certify(network, method="interval")
    for budget in (0.0, 0.5):
        certificate = certify(network, method="search", budget_s=budget)
        layer = certificate["fc1"]
        assert (layer.status == Status.UNKNOWN).any()
        assert (layer.lo >= interval["fc1"].lo).all()
        assert (layer.hi <= interval["fc1"].hi).all()
        X = rng.integers(0, 8, (2000, 32))
        assert layer.range.contains(network.forward(X))
        if budget == 0.0:
            assert (layer.lo == interval["fc1"].lo).all()
            assert (layer.hi == interval["fc1"].hi).all()
    assert certificate.table()[1].unknown > 0


def test_borders_of_a_padded_convolution_have_bounds_of_their_own():
    conv = Conv2d(np.ones((1, 1, 3, 3), dtype=int), padding=1, pad_code=-4)
    network = Network([Node("c", conv)], input_shape=(1, 3, 3), input_format=IntFormat(1, False))
    certificate = certify(network, method="interval")
    assert certificate["c"].hi[0].tolist() == [[-16, -6, -16], [-6, 9, -6], [-16, -6, -16]]
    assert certificate["c"].lo[0].tolist() == [[-20, -12, -20], [-12, 0, -12], [-20, -12, -20]]
    assert certificate["c"].exact.all()
    assert certificate["c"].channels.hi.tolist() == [9]
    for index in np.ndindex(1, 3, 3):
        witness = certificate.witness(network, "c", index, 1)
        assert network.forward(witness[None])[(0, *index)] == certificate["c"].hi[index]


@given(networks)
@settings(max_examples=25, deadline=None)
def test_widths_of_a_layer_are_minimal(network):
    for layer in certify(network, method="interval").layers.values():
        lows, highs = layer.lo.reshape(-1).tolist(), layer.hi.reshape(-1).tolist()
        assert layer.signed_bits == max(signed_bits(a, b) for a, b in zip(lows, highs))
        assert layer.span_bits == max(span_bits(a, b) for a, b in zip(lows, highs))
        assert layer.signed_bits == layer.interval_bits <= layer.weight_bits
        assert layer.weight_bits <= layer.datatype_bits


def test_data_gives_witnesses():
    network, _ = planted(n_inputs=3)
    X = all_inputs(network)
    certificate = certify(network, method="interval", X=X)
    assert certificate["fc1"].exact.all()
    assert (certificate["fc1"].witness >= 0).all()
    certificate.verify(network)


# --- a certificate is checked, not trusted ------------------------------------------------------


def tampered(certificate, network, change):
    """The certificate after `change` edits its JSON, with a checksum that fits again."""
    content = json.loads(json.dumps(certificate.to_json()))
    change(content)
    body = {key: value for key, value in content.items() if key != "sha256"}
    from refqnn.container import checksum

    return Certificate.from_json({**body, "sha256": checksum(body)})


def node(content, name):
    return next(item for item in content["nodes"] if item["name"] == name)


def values(item, key):
    """The values of an array as a list that may be edited in place."""
    array = item[key]
    if not isinstance(array["values"], list):
        array["values"] = [array["values"]] * int(np.prod(array["shape"]))
    return array["values"]


def shift(name, key, by):
    def change(content):
        values(node(content, name), key)[0] += by

    return change


def replace_witness(content):
    array = content["witnesses"]
    flat = values(content, "witnesses")
    flat[:] = [7 - v for v in flat] if isinstance(array["values"], list) else flat


EDITS = {
    "hi lowered": shift("fc1", "hi", -1),
    "hi raised": shift("fc1", "hi", 1),
    "lo raised": shift("fc1", "lo", 1),
    "first layer": shift("fc0", "hi", -1),
    "code range": shift("act0", "hi", -1),
    "mass": shift("fc1", "mass", -1),
    "input": shift("input", "hi", -1),
    "datatype": lambda c: node(c, "fc1").update(datatype=[-1, 1]),
    "by weights": lambda c: node(c, "fc1").update(by_weights=[-1, 1]),
    "by interval": lambda c: node(c, "fc1").update(by_interval=[-1, 1]),
    "domain": lambda c: c["domain"].update(hi={"shape": [3], "values": 6}),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("how", ["interval", "auto", "search"])
def test_tampering_is_detected(edit, how):
    network, _ = planted(n_inputs=3)
    certificate = searched(network) if how == "search" else certify(network, method=how)
    certificate.verify(network)
    with pytest.raises(CertificateError):
        tampered(certificate, network, EDITS[edit]).verify(network)


def test_false_witnesses_and_false_exactness_are_detected():
    network, _ = planted(n_inputs=3)
    with pytest.raises(CertificateError, match="witness"):
        tampered(certify(network), network, replace_witness).verify(network)

    def outside(content):
        content["witnesses"]["values"][0] = 8

    with pytest.raises((CertificateError, OutOfRange)):
        tampered(certify(network), network, outside).verify(network)

    difference = Linear([[1, -1]])
    act = Requantize.from_shift(0, IntFormat(2, False))
    nodes = [Node("fc0", Linear([[1], [1]])), Node("act0", act), Node("fc1", difference)]
    network = Network(nodes, input_shape=(1,), input_format=IntFormat(2, False))

    def call_both_exact(content):
        values(node(content, "fc1"), "status")[:] = [0, 0]

    interval = certify(network, method="interval")
    with pytest.raises(CertificateError, match="exact"):
        tampered(interval, network, call_both_exact).verify(network)


def test_another_network_is_detected():
    network, pattern = planted(n_inputs=3)
    other = Network(
        [Node("fc0", Linear(-pattern)), *network.nodes[1:]],
        input_shape=network.input_shape,
        input_format=network.input_format,
    )
    with pytest.raises(CertificateError, match="network"):
        certify(network).verify(other)


def test_damaged_files(tmp_path):
    network, _ = planted(n_inputs=3)
    path = tmp_path / "c.json"
    certify(network).save(path)
    text = path.read_text()
    for damaged in ("", "[]", "{}", text[: len(text) // 2], text.replace("45", "44", 1)):
        path.write_text(damaged)
        with pytest.raises(FileFormatError, match=r"c\.json"):
            Certificate.load(path)


# --- domains ------------------------------------------------------------------------------------


def test_points_of_a_box_are_all_of_it():
    network, _ = planted(n_inputs=3, bits=2)
    domain = Domain.per_feature(network, [(0, 3), (1, 2), (2, 2)])
    points = np.concatenate(list(domain.chunks()))
    assert domain.size == len(points) == 8
    assert len({tuple(p) for p in points.tolist()}) == 8
    assert domain.contains(points).all()
    assert not domain.contains(np.array([[0, 0, 2], [0, 1, 1]])).any()
    assert str(Domain.of(network)) == "every input in [0, 3]^3"


def test_points_of_a_bipolar_box():
    network = Network([Node("fc", Linear([[1, 1]]))], input_shape=(2,), input_format=BIPOLAR)
    domain = Domain.of(network)
    points = np.concatenate(list(domain.chunks()))
    assert sorted(map(tuple, points.tolist())) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    assert not domain.contains(np.array([[0, 1]])).any()


def test_wrong_arguments():
    network, _ = planted(n_inputs=3)
    with pytest.raises(InvalidArgument, match="method"):
        certify(network, method="guess")
    with pytest.raises(InvalidType, match="domain"):
        certify(network, domain="all")
    with pytest.raises(OutOfRange):
        Domain.box(network, 0, 8)
    with pytest.raises(InvalidArgument):
        Domain.box(network, 3, 2)
    with pytest.raises(ShapeMismatch):
        Domain.box(network, [0, 0], 7)
    with pytest.raises(ShapeMismatch):
        Domain.per_feature(network, [(0, 7)])
    with pytest.raises(InvalidArgument, match="budget_s"):
        certify(network, budget_s=float("nan"))
    with pytest.raises(InvalidArgument, match="outside the domain"):
        certify(network, Domain.box(network, 0, 3), X=[[4, 0, 0]])
    with pytest.raises(InvalidArgument, match="name"):
        certify(network)["nowhere"]
    big, _ = planted(n_inputs=24)
    with pytest.raises(InvalidArgument, match="domain"):
        certify(big, method="exhaustive")


def test_observed():
    network, _ = planted(n_inputs=3)
    X = np.array([[0, 1, 2], [7, 0, 3]])
    seen = observed(network, X)
    trace = network.trace(X)
    for name, range_ in seen.items():
        assert (range_.lo == trace[name].min(axis=0)).all()
        assert (range_.hi == trace[name].max(axis=0)).all()


def test_progress_reaches_its_total():
    calls = []
    certify(planted(n_inputs=3)[0], progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2] == 512
    calls.clear()
    five = Network(
        [Node("fc", Linear(np.eye(5, dtype=int)))],
        input_shape=(5,),
        input_format=IntFormat(3, False),
    )
    for network in (planted(n_inputs=3)[0], five):
        searched(network, progress=lambda *call: calls.append(call))
        assert calls[-1][1] == calls[-1][2]


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_huge_numbers_stay_exact(data):
    weight = integers(data.draw, (2, 3), -(2**62), 2**62)
    network = Network(
        [Node("fc", Linear(weight))], input_shape=(3,), input_format=IntFormat(2, False)
    )
    truth = brute_force(network, all_inputs(network))
    for certificate in (certify(network), certify(network, method="interval")):
        assert_holds(certificate, network, truth)
        assert certificate["fc"].hi.tolist() == truth["fc"][1].tolist()
        certificate.verify(network)
    assert certify(network)["fc"].proof.tolist() == [[Proof.EXHAUSTIVE] * 2] * 2


def test_bounds_of_a_solver_are_enumerated_or_asked_again():
    pytest.importorskip("ortools")
    network, _ = planted(n_inputs=3)

    def by_solver(content):
        values(node(content, "fc1"), "proof")[:] = [Proof.SOLVER] * 4

    certificate = tampered(searched(network), network, by_solver)
    assert certificate.verify(network)["solver"] == 4
    assert certificate.verify(network, budget_s=60.0)["solver"] == 4
    assert certificate.verify(network, solver=True)["solver"] == 4

    def too_narrow(content):
        by_solver(content)
        values(node(content, "fc1"), "hi")[0] -= 1
        values(node(content, "fc1"), "status")[:] = [Status.UPPER] * 4
        values(node(content, "fc1"), "witness")[:] = [-1] * 4

    false = tampered(searched(network), network, too_narrow)
    for arguments in ({"budget_s": 60.0}, {"solver": True}):
        with pytest.raises(CertificateError, match="beyond hi"):
            false.verify(network, **arguments)


def test_the_solver_rung_closes_what_the_search_leaves():
    pytest.importorskip("ortools")
    rng = np.random.default_rng(4)
    nodes = [
        Node("fc0", Linear(rng.integers(-3, 4, (5, 4)))),
        Node("act0", Requantize.from_shift(2, IntFormat(2, False))),
        Node("fc1", Linear(rng.integers(-3, 4, (2, 5)), [3, -3])),
    ]
    network = Network(nodes, input_shape=(4,), input_format=IntFormat(2, False))
    truth = brute_force(network, all_inputs(network))
    from refqnn.accumulator.cone import Cone
    from refqnn.accumulator.search import Found, tighten

    ranges = network.ranges()
    lo, hi = np.zeros(4, dtype=np.int64), np.full(4, 3)
    for neuron in range(2):
        cone = Cone(network, ranges, "fc1", (neuron,))
        ends = lo[cone.inputs], hi[cone.inputs]
        for sign, greatest in ((1, truth["fc1"][1][neuron]), (-1, -truth["fc1"][0][neuron])):
            bound = int((ranges["fc1"].hi if sign > 0 else -ranges["fc1"].lo)[neuron])
            open_ = Found(None, None, bound, Proof.INTERVAL)
            closed = tighten(cone, *ends, sign, open_)
            assert closed.best == closed.bound == greatest
            assert int(sign * cone.forward(closed.x[None])[0]) == greatest


@pytest.mark.parametrize("pad_code", [0, 3])
def test_the_solver_answers_behind_padding(pad_code):
    """Does one of 64 inputs reach a value?  Sums, codes, padding, the greatest of two."""
    pytest.importorskip("ortools")
    from refqnn.accumulator.cone import Cone
    from refqnn.accumulator.solver import decide

    nodes = [
        Node("fc0", Conv2d([[[[1, -2], [3, 1]]]])),
        Node("act0", Requantize([[-1, 2, 6]], IntFormat(2, False))),
        Node("pool", MaxPool2d((1, 2), stride=1)),
        Node("fc1", Conv2d([[[[-1, 2], [1, 3]]]], padding=1, pad_code=pad_code)),
    ]
    network = Network(nodes, input_shape=(1, 2, 3), input_format=IntFormat(1, False))
    lo, hi = np.zeros(6, dtype=np.int64), np.ones(6, dtype=np.int64)
    values = network.trace(all_inputs(network))["fc1"]
    for index in ((0, 0, 0), (0, 1, 1)):
        cone = Cone(network, network.ranges(), "fc1", index)
        reached = values[(slice(None), *index)]
        for sign in (1, -1):
            most = int((sign * reached).max())
            for value in (most, most + 1):
                answer, x = decide(
                    cone, lo[cone.inputs], hi[cone.inputs], sign, value, step=1, deadline=None
                )
                assert answer == (value == most)
                assert x is None or sign * cone.forward(x[None])[0] >= value


def test_enumeration_in_blocks_of_any_size_says_the_same(monkeypatch):
    network, _ = planted(n_inputs=3)
    whole = certify(network)
    for block in (7, 100):
        monkeypatch.setattr("refqnn.accumulator.domain.at_a_time", lambda _, block=block: block)
        certificate = certify(network)
        assert certificate.verify(network) == whole.verify(network)
        for node in network.nodes:
            assert certificate[node.name].range.lo.tolist() == whole[node.name].range.lo.tolist()
            assert certificate[node.name].range.hi.tolist() == whole[node.name].range.hi.tolist()


def test_a_cone_of_sums_near_the_ends_of_int64():
    from refqnn.accumulator.cone import Cone

    for bits, weight in (
        (32, 2**27),
        (32, 2**28),
        (32, 2**29),
        (32, 2**33),
        (1, 2**60),
        (1, 2**62),
    ):
        fc = Node("fc", Linear([[weight] * 8]))
        network = Network([fc], input_shape=(8,), input_format=IntFormat(bits, signed=False))
        cone = Cone(network, network.ranges(), "fc", (0,))
        x = np.full((1, 8), 2**bits - 1)
        assert cone.forward(x).tolist() == [8 * weight * (2**bits - 1)]


def test_pickle_and_copies_keep_it_and_prove_nothing():
    """Whoever uses one verifies it first: a pickle may come from anywhere."""
    fc = Node("fc", Linear([[1, -2], [3, 1]], [3, 0]))
    network = Network([fc], input_shape=(2,), input_format=IntFormat(3, signed=False))
    certificate = certify(network)
    for other in (pickle.loads(pickle.dumps(certificate)), copy.deepcopy(certificate)):
        assert certificate._proved_of is not None
        assert other._proved_of is None
        assert other.verify(network) == certificate.verify(network)
        assert other["fc"].hi.tolist() == certificate["fc"].hi.tolist()
        assert other.witnesses.tolist() == certificate.witnesses.tolist()


def test_a_witness_is_replayed_before_it_is_given():
    """Certificate.witness: "What is returned was replayed through the network"."""
    fc = Node("fc", Linear([[1, 1]]))
    network = Network([fc], input_shape=(2,), input_format=IntFormat(2, signed=False))
    good = certify(network)
    assert good.witness(network, "fc", 0, 1).tolist() == [3, 3]
    layers = dict(good.nodes)
    layers["fc"] = dataclasses.replace(good["fc"], witness=good["fc"].witness[::-1].copy())
    swapped = Certificate(layers, good.digest, good.domain, good.witnesses)
    assert swapped.witness(network, "fc", 0, 1) is None


@pytest.mark.parametrize("method", ["interval", "exhaustive"])
def test_what_a_certificate_knows_is_run_once(method, monkeypatch):
    """An overflow whose input is known costs one run of the network."""
    fc = Node("fc", Linear([[1, 1]]))
    network = Network([fc], input_shape=(2,), input_format=IntFormat(2, signed=False))
    certificate, runs = certify(network, method=method), []
    trace = Network.trace
    monkeypatch.setattr(Network, "trace", lambda *a, **k: runs.append(a) or trace(*a, **k))
    assert find_overflow(network, bits=3, certificate=certificate).value == 6
    assert len(runs) == 1


@pytest.mark.parametrize("row", [0, 1, 2])
def test_any_row_of_the_data_may_be_the_witness(row):
    """certify: X, "codes inside the domain to take witnesses from"."""
    act = Node("act", Requantize.from_shift(1, IntFormat(2, signed=False)))
    nodes = [Node("fc1", Linear([[1, 1]])), act, Node("fc2", Linear([[1]]))]
    network = Network(nodes, input_shape=(2,), input_format=IntFormat(2, signed=False))
    X = np.zeros((3, 2), dtype=np.int64)
    X[row] = 3
    for data in (X, X[row:]):
        certificate = certify(network, method="interval", X=data)
        assert certificate["fc2"].status[1].tolist() == [Status.EXACT]
        assert certificate.witness(network, "fc2", 0, 1).tolist() == [3, 3]


def arrays_of(value):
    """Every array that something holds, at any depth."""
    if isinstance(value, np.ndarray):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else vars(value).values()
    inside = [p for p in parts if isinstance(p, np.ndarray | Mapping) or is_dataclass(p)]
    return [array for part in inside for array in arrays_of(part)]


@pytest.mark.parametrize("made", ["certify", "load", "copy"])
def test_nobody_writes_to_what_was_proved(made, tmp_path):
    fmt = IntFormat(2, signed=False)
    network = Network([Node("fc", Linear([[1, 1]]))], input_shape=(2,), input_format=fmt)
    rows = np.array([[0, 1], [1, 1]], dtype=np.int64)
    certificate = certify(network, rows, X=rows)
    if made == "load":
        certificate.save(tmp_path / "c")
        certificate = Certificate.load(tmp_path / "c")
    if made == "copy":
        certificate = copy.deepcopy(certificate)
    certificate.verify(network)
    assert len(arrays_of(certificate)) == 15
    for array in arrays_of(certificate):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    rows[1] = 3  # is still the caller's own
    assert certificate.domain.listed.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(CertificateError, match="domain"):
        find_overflow(network, bits=3, domain=rows, certificate=certificate)


def test_every_end_that_intervals_call_exact_has_its_input():
    """Through joins in any order, what moves, what rises, and windows."""
    rng = np.random.default_rng(0)
    shape, size = (2, 2, 3), 12
    sums = [Node(f"conv{i}", Conv2d(rng.integers(-3, 4, (2, 2, 1, 1)))) for i in range(3)]
    nodes = [
        *(Node(node.name, node.op, ("input",)) for node in sums),
        Node("codes", Requantize.from_shift(1, IntFormat(3, signed=True)), ("conv1",)),
        Node("joined", Concat(), ("conv2", "input", "codes", "conv0", "input")),
        Node("turned", Gather(rng.permutation(5 * size).reshape(10, 2, 3), (10, 2, 3))),
        Node("padded", Gather.pad(shape, 1, fill=-1), ("input",)),
        Node("behind", Conv2d(rng.integers(-3, 4, (1, 2, 2, 2))), ("padded",)),
        Node("greatest", MaxPool2d((1, 2), 1), ("input",)),
        Node("again", Concat(), ("turned", "joined")),
        Node("flat", Flatten()),
    ]
    network = Network(nodes, input_shape=shape, input_format=IntFormat(2, signed=True))
    certificate = certify(network, method="interval")
    found = 0
    for name, layer in certificate.nodes.items():
        for end, *place in np.argwhere(layer.status == Status.EXACT).tolist():
            assert certificate.witness(network, name, tuple(place), end) is not None, (name, place)
            found += 1
    assert found > 2 * size * (3 + 1 + 5 + 5 + 10)
    assert certificate.verify(network)
