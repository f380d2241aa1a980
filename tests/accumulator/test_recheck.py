"""Certificate.verify: what is true passes, every lie is found, what cannot be derived is trusted.

A forged certificate is true where every input of the domain says so: `holds` decides that by
enumeration, in plain Python, and by the words of `Certificate` alone.
"""

from __future__ import annotations

import ast
import json
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from accumulator_networks import all_inputs, brute_force, networks
from hypothesis import given, settings
from hypothesis import strategies as st

import refqnn.accumulator.ladder as ladder
import refqnn.accumulator.recheck as recheck
from refqnn import (
    BIPOLAR,
    Certificate,
    Domain,
    IntFormat,
    Network,
    Node,
    Requantize,
    Rounding,
    certify,
    exact,
    testing,
)
from refqnn.accumulator import Proof, Status
from refqnn.container import checksum
from refqnn.errors import CertificateError, FileFormatError, InvalidArgument, MissingExtra
from refqnn.network import INPUT, inputs_of
from refqnn.ops import (
    KINDS,
    Add,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Gather,
    GlobalSumPool,
    Linear,
    Lookup,
    MaxPool2d,
    Rescale,
    Reshape,
    Softmax,
    SumPool2d,
)
from refqnn.ops.base import Interval, Op, SumOp

U1, U2, S2, U3 = (IntFormat(*args) for args in ((1, False), (2, False), (2, True), (3, False)))
LO, HI = 0, 1


def net(nodes, shape, fmt=U2):
    return Network(nodes, input_shape=shape, input_format=fmt)


NETWORKS = {
    "cancelling": net(
        [
            Node("fc0", Linear([[1, 2], [1, 2], [-1, 0]], [0, 0, 1])),
            Node("act0", Requantize([[1, 3, 6]], U2)),
            Node("fc1", Linear([[1, -1, 0], [1, 0, 2]], [5, -5])),
            Node("act1", Requantize([[0, 1, 2], [-5, 1, 2**63 - 1]], U2)),
        ],
        (2,),
    ),
    "two readers": net(
        [
            Node("rq", Requantize([[1, 2**63 - 1, 2**63 - 1]], U2), (INPUT,)),
            Node("cat", Concat(), ("rq", INPUT)),
            Node("fc", Linear([[1, 0, 0, -1, 1, 0]], [-1]), ("cat",)),
        ],
        (3,),
    ),
    "residual": net(
        [
            Node("conv", Conv2d([[[[1, -1], [2, 0]]], [[[0, 1], [1, 1]]]], [1, -1], 1, 1, 1, 1, 1)),
            Node("act", Requantize([[0, 2, 4], [-1, 1, 5]], U2)),
            Node("depth", Conv2d([[[[2]]], [[[-1]]]], groups=2)),
            Node("sum", Add((1, -2)), ("depth", "act")),
            Node("pool", MaxPool2d(2, 1, ((1, 0), (0, 1)))),
            Node("table", Lookup(np.arange(40)[None] * 7 % 5 - 2, -20)),
            Node("sums", SumPool2d((1, 2), 1, ((0, 0), (1, 0)), pad_code=3)),
            Node("all", GlobalSumPool()),
        ],
        (1, 2, 2),
        U1,
    ),
    "line": net(
        [
            Node("wide", Reshape((2, 2))),
            Node("conv", Conv1d([[[1, -3]], [[2, 1]]], None, 1, 1, 1, 2, -1)),
            Node("act", Requantize([[-2, 0, 2], [1, 1, 4]], S2)),
            Node("flat", Flatten()),
            Node("fc", Linear([[1, -1, 2, 0, 1, -2]], [3])),
        ],
        (4,),
        BIPOLAR,
    ),
    "huge": net(
        [Node("fc", Linear([[2**62, -(2**62)], [3, 1]], [2**62, 0])), Node("same", Add())], (2,)
    ),
    "pools": net(
        [
            Node("max", MaxPool2d(2)),
            Node("sums", SumPool2d(2), (INPUT,)),
            Node("both", Add((3, -1)), ("max", "sums")),
        ],
        (1, 2, 2),
        S2,
    ),
}  # fmt: skip


def part_of(network):
    """Some rows of the domain, and a box inside it."""
    inputs = all_inputs(network)
    fmt, shape = network.input_format, network.input_shape
    lo = np.full(shape, fmt.q_min)
    hi = np.full(shape, fmt.q_max)
    lo.flat[0] = hi.flat[0]
    return inputs[:: max(1, len(inputs) // 7)], Domain.box(network, lo, hi)


@cache
def certificates(name):
    """Genuine ones by every method, over the whole format, a box and rows, each with its truth."""
    network, found = NETWORKS[name], []
    rows, box = part_of(network)
    for domain in (None, box, rows):
        data = rows if domain is None else rows[-1:]
        found += [
            certify(network, domain, method="interval"),
            certify(network, domain),
            certify(network, domain, method="interval", X=data),
        ]
        with pytest.MonkeyPatch.context() as m:
            m.setattr(ladder, "EXHAUSTIVE_LIMIT", 0)
            found.append(certify(network, domain, method="search", budget_s=30))
    return [(certificate, truth_of(certificate, network)) for certificate in found]


def truth_of(certificate, network):
    domain = certificate.domain
    inputs = all_inputs(network)
    rows = inputs[domain.contains(inputs)] if domain.listed is None else domain.listed
    return brute_force(network, rows)


def holds(certificate, network, truth):
    """Is all of it true?  By enumeration, and by the nodes' rules where a proof names them."""
    witnesses = certificate.witnesses
    if len(witnesses) and not certificate.domain.contains(witnesses).all():
        return False
    values = network.trace(witnesses) if len(witnesses) else {}
    for name, (least, greatest) in truth.items():
        layer = certificate[name]
        known = [*(certificate[source].range for source in sources_of(network, name))]
        rule = network[name].op.out_range(*known) if known else layer.range
        for end, (bound, reached, ruled) in enumerate(
            ((layer.lo, least, rule.lo), (layer.hi, greatest, rule.hi))
        ):
            beyond = bound > reached if end == LO else bound < reached
            must_be_reached = (layer.proof[end] == Proof.EXHAUSTIVE) | (
                layer.status[end] == Status.EXACT
            )
            if beyond.any() or (must_be_reached & (bound != reached)).any():
                return False
            if ((layer.proof[end] == Proof.INTERVAL) & (bound != ruled)).any():
                return False
            for index in map(tuple, np.argwhere(layer.witness[end] >= 0)):
                if values[name][(layer.witness[(end, *index)], *index)] != bound[index]:
                    return False
        op = network[name].op if known else None
        if isinstance(op, SumOp) and (layer.mass != op.absolute_mass(*known)).any():
            return False
    return True


def sources_of(network, name):
    return () if name == INPUT else inputs_of(network[name])


def refused(certificate, network, match=None):
    with pytest.raises(CertificateError, match=match):
        certificate.verify(network, allow_trusted=True)


def with_layer(certificate, of, /, **fields):
    nodes = dict(certificate.nodes)
    nodes[of] = replace(nodes[of], **fields)
    return Certificate(nodes, certificate.digest, certificate.domain, certificate.witnesses)


def altered(array, position, value):
    copy = np.array(array, dtype=array.dtype if abs(value) < 2**62 else object)
    copy[tuple(position)] = value
    return copy


# --- what is true -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_genuine_certificates_of_every_method_and_domain(name):
    network = NETWORKS[name]
    for certificate, truth in certificates(name):
        assert holds(certificate, network, truth)
        counts = certificate.verify(network)
        assert sum(counts.values()) == sum(layer.proof.size for layer in certificate.nodes.values())
        assert not any("trusted" in label for label in counts)
        again = Certificate.from_json(json.loads(json.dumps(certificate.to_json())))
        assert again.verify(network, samples=0, allow_trusted=True).keys() >= counts.keys()


@given(st.data(), st.sampled_from([2, 9, 2**62]))
def test_genuine_certificates_of_random_networks(data, max_weight):
    """Two tellings of every node kind's range, mass and formats: the nodes' own and `readings`."""
    network = data.draw(testing.networks(max_weight=max_weight))
    codes = data.draw(testing.batches(network, max_samples=4))
    certify(network, method="interval").verify(network, samples=200)
    certify(network, codes).verify(network)


@settings(max_examples=25)
@given(networks)
def test_no_sample_is_needed_for_intervals_over_a_box(network):
    """Corners that are made of signs show what certify calls exact."""
    certificate = certify(network, method="interval")
    counts = certificate.verify(network, samples=0, allow_trusted=True)
    first = network.nodes[0].name
    assert set(counts) <= {"interval", "trusted exact"}
    claimed = sum(int((layer.status == Status.EXACT).sum()) for layer in certificate.nodes.values())
    assert counts.get("trusted exact", 0) <= claimed - certificate[first].lo.size * 2


DATA = {"HI", "LO", "NO_WITNESS", "Proof", "Status"}


def test_nothing_is_shared_with_what_makes_certificates():
    folder = Path(recheck.__file__).parent
    producers = {"ladder", "rungs", "search", "cone", "solver", "overflow", "samples"}
    for module in ("recheck", "readings"):
        tree = ast.parse((folder / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
                assert not names & producers
                if "bounds" in names:  # names and data alone: constants, enumerations, one record
                    assert names <= {"refqnn", "accumulator", "bounds", "LayerCertificate", *DATA}


# --- lies in one field --------------------------------------------------------------------------


def edited_arrays(layer, rng):
    """(field, array) with one value changed."""
    for field, choices in (("proof", range(4)), ("status", range(3)), ("witness", range(-1, 3))):
        values = getattr(layer, field)
        position = rng.integers(values.shape)
        yield from ((field, altered(values, position, choice)) for choice in choices)
    for field in ("lo", "hi") if layer.mass is None else ("lo", "hi", "mass"):
        values = getattr(layer, field)
        position = rng.integers(values.shape)
        for step in (-1, 1, 2**40):
            yield field, altered(values, position, int(values[tuple(position)]) + step)


def well_formed(certificate, name, field):
    """Does the altered field hold what it may hold, whether true or not?"""
    layer = certificate[name]
    if field == "witness":
        return layer.witness.max() < len(certificate.witnesses)
    if name == INPUT:
        return field == "proof" and layer.proof.max() <= Proof.EXHAUSTIVE
    return field != "mass" and (layer.lo <= layer.hi).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_value_changed(name):
    network, rng = NETWORKS[name], np.random.default_rng(0)
    count = {True: 0, False: 0}
    for certificate, truth in certificates(name)[::3]:
        for layer in certificate.nodes.values():
            for field, array in edited_arrays(layer, rng):
                if np.array_equal(array, getattr(layer, field)):
                    continue
                forged = with_layer(certificate, layer.name, **{field: array})
                true = well_formed(forged, layer.name, field) and holds(forged, network, truth)
                if true:
                    forged.verify(network)
                else:
                    refused(forged, network)
                count[true] += 1
    assert count[True] > 10
    assert count[False] > 100


def summaries(layer):
    for field in ("datatype", "by_weights", "by_interval"):
        pair = getattr(layer, field)
        if pair is None:
            yield field, (0, 0)
        else:
            lo, hi = pair
            yield from ((field, other) for other in ((lo - 1, hi), (lo, hi - 1), None, (lo,), "ab"))
    if layer.mass is None:
        yield "mass", np.zeros_like(layer.lo)
    else:
        yield from (("mass", None), ("mass", layer.mass[..., None]), ("mass", layer.mass * 1.0))


def misfits(layer):
    """Fields of another kind, shape or dtype."""
    yield from (("name", "other"), ("name", None), ("kind", "Other"), ("kind", layer.kind + " "))
    for field in ("lo", "hi", "proof", "status", "witness"):
        values = getattr(layer, field)
        yield from ((field, values.reshape(-1)[:0]), (field, values[None]), (field, values * 1.0))
        yield from (
            (field, values.tolist()),
            (field, None),
            (field, np.ones(values.shape, np.int16)),
        )
    for field, value in (("proof", 4), ("proof", -1), ("status", 3), ("status", -1)):
        yield field, altered(getattr(layer, field), (0,) * layer.proof.ndim, value)
    for value in (-2, 2**40):
        yield "witness", altered(layer.witness, (0,) * layer.proof.ndim, value)


@pytest.mark.parametrize("name", NETWORKS)
def test_summaries_and_misfits(name):
    network = NETWORKS[name]
    for certificate in (certify(network, method="interval"), certify(network)):
        for layer in certificate.nodes.values():
            for field, value in [*summaries(layer), *misfits(layer)]:
                refused(with_layer(certificate, layer.name, **{field: value}), network, layer.name)


def test_nodes_of_the_certificate():
    network = NETWORKS["cancelling"]
    certificate = certify(network)
    names = list(certificate.nodes)

    def of(nodes):
        return Certificate(nodes, certificate.digest, certificate.domain, certificate.witnesses)

    for name in names:
        refused(of({n: layer for n, layer in certificate.nodes.items() if n != name}), network)
        refused(of({**certificate.nodes, name: None}), network, name)
    refused(of({name: certificate[name] for name in reversed(names)}), network, "nodes")
    refused(of({**certificate.nodes, "more": certificate["fc1"]}), network, "nodes")
    layers = certificate.nodes
    refused(of({**layers, "fc0": layers["fc1"], "fc1": layers["fc0"]}), network, "fc")


def test_digest_and_domain():
    network = NETWORKS["cancelling"]
    rows, box = part_of(network)
    whole = certify(network)
    for digest in ("", whole.digest[:-1], None, whole.digest.upper()):
        forged = Certificate(whole.nodes, digest, whole.domain, whole.witnesses)
        refused(forged, network, "network")
    for domain in (None, box, rows):
        certificate = certify(network, domain, method="interval")
        hull, listed = certificate.domain.hull, certificate.domain.listed
        others = [
            Domain(Interval(hull.lo, hull.hi + 1), listed),
            Domain(Interval(hull.lo - 1, hull.hi), listed),
            Domain(Interval(hull.lo[:1], hull.hi[:1]), listed),
            Domain(hull, listed, 2),
            Domain(hull, hull.lo),
            Domain(hull, hull.lo[None] + 7),
            Domain(hull, np.zeros((0, 2), dtype=int)),
            Domain(hull, rows[:1]),
            Domain(hull, rows.astype(float)),
            "all",
        ]
        others += [Domain(Interval(hull.lo, hull.hi - 1))] if (hull.lo < hull.hi).all() else []
        for other in others:
            forged = Certificate(
                certificate.nodes, certificate.digest, other, certificate.witnesses
            )
            refused(forged, network, "domain|input")


def test_a_smaller_domain_does_not_pass_for_a_larger_one():
    network = NETWORKS["cancelling"]
    _, box = part_of(network)
    small, whole = certify(network, box), certify(network)
    for nodes, domain in ((small.nodes, whole.domain), (whole.nodes, small.domain)):
        refused(Certificate(nodes, whole.digest, domain, small.witnesses), network)


def test_a_domain_beyond_the_format_with_all_that_follows_from_it():
    """A hull of codes that there are not, or wider than its rows."""
    network = NETWORKS["cancelling"]
    rows, _ = part_of(network)
    for domain, listed in ((None, None), (rows, rows)):
        certificate = certify(network, domain, method="interval")
        hull = certificate.domain.hull
        for wide in (Interval(hull.lo - 1, hull.hi), Interval(hull.lo, hull.hi + 1)):
            nodes = dict(certificate.nodes)
            nodes[INPUT] = replace(nodes[INPUT], lo=wide.lo, hi=wide.hi)
            for node in network.nodes:
                operands = [nodes[source].range for source in inputs_of(node)]
                range_, old = node.op.out_range(*operands), nodes[node.name]
                mass = None if old.mass is None else node.op.absolute_mass(*operands)
                alone = int(range_.lo.min()), int(range_.hi.max())
                by_interval = None if old.mass is None else alone
                nodes[node.name] = replace(
                    old, lo=range_.lo, hi=range_.hi, mass=mass, by_interval=by_interval
                )
            other = Domain(wide, listed)
            forged = Certificate(nodes, certificate.digest, other, certificate.witnesses)
            with pytest.raises(CertificateError, match="domain"):
                forged.verify(network, samples=0, allow_trusted=True)


def test_bipolar_witnesses():
    network = NETWORKS["line"]
    certificate = certify(network)
    witnesses = altered(certificate.witnesses, (0, 0), 0)
    forged = Certificate(certificate.nodes, certificate.digest, certificate.domain, witnesses)
    refused(forged, network, "witness 0")


def test_witnesses():
    network = NETWORKS["cancelling"]
    _, box = part_of(network)
    certificate = certify(network, box)
    inputs = certificate.witnesses

    def of(witnesses):
        return Certificate(certificate.nodes, certificate.digest, certificate.domain, witnesses)

    of(np.concatenate([inputs, inputs[:1]])).verify(network)
    refused(of(altered(inputs, (0, 0), 0)), network, "witness 0")  # outside the box
    refused(of(altered(inputs, (0, 1), 9)), network, "witness 0")
    refused(of(inputs[::-1].copy()), network, "witness")
    refused(of(inputs[:1]), network, "witness")
    refused(of(inputs[:, :1]), network, "witnesses")
    refused(of(inputs.astype(np.int32)), network, "witnesses")
    refused(of(inputs * 1.0), network, "witnesses")
    refused(of(None), network, "witnesses")


# --- lies that agree with each other ------------------------------------------------------------


def consistent(certificate, network, name, end, index, bound, proof):
    """A certificate whose node has another bound, and everything behind follows from it."""
    layer = certificate[name]
    position = (end, *index)
    ends = [np.array(layer.lo), np.array(layer.hi)]
    ends[end][index] = bound
    if ends[LO][index] > ends[HI][index]:
        ends[1 - end][index] = bound
    nodes = {**certificate.nodes}
    nodes[name] = replace(
        layer,
        lo=ends[LO],
        hi=ends[HI],
        proof=altered(layer.proof, position, proof),
        status=altered(layer.status, position, Status.UPPER),
        witness=altered(layer.witness, position, -1),
    )
    changed = False
    for node in network.nodes:
        if changed:
            operands = [nodes[source].range for source in inputs_of(node)]
            range_ = node.op.out_range(*operands)
            old = nodes[node.name]
            nodes[node.name] = replace(
                old,
                lo=range_.lo,
                hi=range_.hi,
                proof=np.zeros_like(old.proof),
                status=np.ones_like(old.status),
                witness=np.full_like(old.witness, -1),
                mass=None if old.mass is None else node.op.absolute_mass(*operands),
            )
        changed |= node.name == name
    return Certificate(nodes, certificate.digest, certificate.domain, certificate.witnesses)


@pytest.mark.parametrize("proof", Proof)
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_follows_from_one_false_bound(name, proof):
    network = NETWORKS[name]
    rng = np.random.default_rng(0)
    for certificate, truth in certificates(name)[::3]:
        for node in network.nodes:
            for end in (LO, HI):
                index = tuple(rng.integers(network.shapes[node.name]))
                bound = int(truth[node.name][end][index]) + (1 if end == LO else -1)
                forged = consistent(certificate, network, node.name, end, index, bound, proof)
                refused(forged, network, node.name)


def test_a_forged_certificate_of_which_only_one_bound_is_false():
    """Its file says that a solver proved fc below 4; all else follows, and the checksum fits."""
    nodes = [
        Node("fc", Linear([[1, 1, 1, 1]])),
        Node("r", Requantize([[2, 5, 8]], U2)),
        Node("o", Linear([[1]])),
    ]
    network = net(nodes, (4,))
    content = json.loads(json.dumps(certify(network, method="interval").to_json()))
    forged = {
        "fc": {"hi": 3, "proof": 3, "status": 1, "witness": -1},
        "r": {"hi": 1, "status": 1},
        "o": {"hi": 1, "mass": 1, "status": 1},
    }
    for item in content["nodes"]:
        for key, value in forged.get(item["name"], {}).items():
            item[key]["values"] = value
    body = {key: value for key, value in content.items() if key != "sha256"}
    certificate = Certificate.from_json({**body, "sha256": checksum(body)})
    refused(certificate, network, r"fc\.hi\[0\]: got 12")


# --- domains of more points than can be tried ---------------------------------------------------


def deep(n=24):
    """The same sum twice, requantized and subtracted: intervals do not see that it cancels."""
    rng = np.random.default_rng(1)
    row = rng.choice([-3, -2, -1, 1, 2, 3], n)
    nodes = [
        Node("fc0", Linear(np.stack([row, row, row]))),
        Node("act0", Requantize.from_shift(3, U3)),
        Node("fc1", Linear([[1, -1, 0], [1, 1, 1]], [9, 0])),
    ]
    return net(nodes, (n,), U3)


def claimed(certificate, name, proof, **ends):
    layer = certificate[name]
    return with_layer(
        certificate,
        name,
        lo=np.array(ends["lo"]),
        hi=np.array(ends["hi"]),
        proof=np.full_like(layer.proof, proof),
        status=np.ones_like(layer.status),
    )


@pytest.mark.parametrize("inputs", [12, 24])  # of 8 codes: each two inputs are 64 points
def test_claims_of_searches_are_trusted_where_nothing_derives_them(inputs):
    network = deep(inputs)
    true = claimed(
        certify(network, method="interval"), "fc1", Proof.BOX_SEARCH, lo=[9, 0], hi=[9, 21]
    )
    with pytest.raises(CertificateError, match=r"fc1\.lo\[0\].*4 trusted box-search"):
        true.verify(network)
    with pytest.raises(CertificateError, match="trusted"):
        true.verify(network, budget_s=1.0)
    assert true.verify(network, allow_trusted=True)["trusted box-search"] == 4
    pytest.importorskip("ortools")
    assert true.verify(network, solver=True)["box-search"] == 4
    with pytest.raises(CertificateError, match="trusted"):
        true.verify(network, solver=True, budget_s=0.0)


@pytest.mark.parametrize("ends", [{"lo": [9, 1]}, {"hi": [9, 20]}, {"lo": [10, 0], "hi": [10, 21]}])
def test_false_claims_of_searches_are_found_by_pushing(ends):
    network = deep()
    ends = {"lo": [9, 0], "hi": [9, 21], **ends}
    for proof in (Proof.BOX_SEARCH, Proof.SOLVER):
        refused(claimed(certify(network, method="interval"), "fc1", proof, **ends), network, "fc1")


def test_pushing_goes_further_than_chance_and_than_one_guess():
    """50,000 random inputs and the corner that they point to reach 32, a search 50."""
    rng = np.random.default_rng(3)
    nodes = [
        Node("fc0", Linear(rng.integers(-2, 3, (40, 30)))),
        Node("act0", Requantize.from_shift(2, U2)),
        Node("fc1", Linear(rng.integers(-3, 4, (1, 40)))),
    ]
    network = net(nodes, (30,), U2)
    tried = np.where(rng.random((25_000, 30)) < 0.5, 0, 3)
    values = network.forward(tried)[:, 0]
    slope = (values > np.median(values)).astype(int) * 2 - 1
    corner = np.where(slope @ (tried - 1.5) > 0, 3, 0)[None]
    chance = rng.integers(0, 4, (25_000, 30))
    best = max(int(network.forward(x).max()) for x in (tried, chance, corner))
    certificate = certify(network, method="interval")
    lo = certificate["fc1"].lo
    assert best == 32
    refused(claimed(certificate, "fc1", Proof.SOLVER, lo=lo, hi=[45]), network, r"fc1\.hi")


def test_false_claims_of_searches_are_found_by_a_solver():
    """One point of 8**10 that no sample meets: a number, digit by digit."""
    pytest.importorskip("ortools")
    number = 0o3506214273
    nodes = [
        Node("fc0", Linear([[8**i for i in range(10)]])),
        Node("act0", Requantize([[number, number + 1, number + 1]], U2)),
        Node("table", Lookup([[0, 1, 0, 0]], 0)),
        Node("fc1", Linear([[7000], [-7000]], [0, 1])),
    ]
    network = net(nodes, (10,), U3)
    certificate = certify(network, method="interval")
    fits = claimed(certificate, "fc1", Proof.SOLVER, lo=[0, -6999], hi=[7000, 1])
    assert fits.verify(network, solver=True)["solver"] == 4
    for ends in ({"lo": [0, -6999], "hi": [0, 1]}, {"lo": [0, 1], "hi": [7000, 1]}):
        false = claimed(certificate, "fc1", Proof.SOLVER, **ends)
        assert false.verify(network, allow_trusted=True)["trusted solver"] == 4
        with pytest.raises(CertificateError, match=r"fc1.*: got (7000|-6999) of the solver"):
            false.verify(network, solver=True)


def test_bounds_beyond_a_table_are_refused():
    network = net(
        [Node("fc", Linear([[1, 1]])), Node("table", Lookup([[3, 1, 2, 0, 5, 6, 4]], 0))], (2,)
    )
    certificate = certify(network, method="interval")
    for ends in ({"lo": [-1], "hi": [6]}, {"lo": [0], "hi": [7]}):
        loose = claimed(certificate, "fc", Proof.BOX_SEARCH, **ends)
        refused(loose, network, "Lookup")


def test_what_has_no_model_stays_trusted(monkeypatch):
    """A network too large for the solver, and numbers that its sums may not hold."""
    pytest.importorskip("ortools")
    ends = {"lo": [9, 0], "hi": [9, 21]}
    network = deep()
    true = claimed(certify(network, method="interval"), "fc1", Proof.SOLVER, **ends)
    with monkeypatch.context() as m:
        m.setattr(recheck, "_LARGEST_MODEL", 50)
        assert true.verify(network, solver=True, allow_trusted=True)["trusted solver"] == 4
    nodes = [*network.nodes, Node("wide", Linear([[2**50, 2**50]]))]
    wide = net(nodes, (24,), U3)
    certificate = certify(wide, method="interval")
    lo, hi = certificate["wide"].range.lo, certificate["wide"].range.hi
    false = claimed(certificate, "wide", Proof.SOLVER, lo=lo, hi=hi)
    assert false.verify(wide, solver=True, allow_trusted=True)["trusted solver"] == 2


def test_neurons_of_few_inputs_are_enumerated():
    """fc1 depends on two of twenty inputs: 64 points, whatever the others are."""
    weight = np.zeros((3, 20), dtype=int)
    weight[:, [3, 17]] = [[1, 2], [1, 2], [0, 5]]
    nodes = [
        Node("fc0", Linear(weight)),
        Node("act0", Requantize([[1, 5, 9, 10, 11, 12, 13]], U3)),
        Node("fc1", Linear([[1, -1, 0], [0, 0, 1]])),
    ]
    network = net(nodes, (20,), U3)
    certificate = certify(network, method="interval")
    true = claimed(certificate, "fc1", Proof.SOLVER, lo=[0, 0], hi=[0, 7])
    assert true.verify(network)["solver"] == 4
    with pytest.raises(CertificateError, match="4 trusted solver"):
        true.verify(network, budget_s=0.0)
    for ends in ({"lo": [1, 0], "hi": [1, 7]}, {"lo": [0, 0], "hi": [0, 6]}):
        false = claimed(certificate, "fc1", Proof.SOLVER, **ends)
        with pytest.raises(CertificateError, match="fc1"):
            false.verify(network, samples=0, allow_trusted=True)


def test_a_padded_code_counts_as_no_input():
    conv = Conv2d(np.ones((1, 1, 3, 3), dtype=int), padding=1, pad_code=2)
    nodes = [
        Node("conv", conv),
        Node("act", Requantize([[13]], U1)),
        Node("one", Conv2d([[[[-1]]]])),
        Node("none", Add((1, 1)), ("act", "one")),
    ]
    network = net(nodes, (1, 5, 5), U1)
    certificate = certify(network, method="interval")
    zeros = np.zeros((1, 5, 5), dtype=int)
    true = claimed(certificate, "none", Proof.BOX_SEARCH, lo=zeros, hi=zeros)
    assert true.verify(network)["box-search"] == 50


def test_exhaustive_claims_of_too_many_points_are_false():
    network = net([Node("fc", Linear(np.ones((1, 20), dtype=int)))], (20,), U3)
    certificate = certify(network, method="interval")
    for name in certificate.nodes:
        proof = np.full_like(certificate[name].proof, Proof.EXHAUSTIVE)
        refused(with_layer(certificate, name, proof=proof), network, f"{name}.proof")
        with pytest.raises(CertificateError, match=f"{name}.proof.*1048576"):
            with_layer(certificate, name, proof=proof).verify(network, budget_s=1.0)


def test_an_enumeration_that_the_budget_cuts_off_is_trusted():
    network = net([Node("fc", Linear([[1, -1, 2, 1, 1, 1, 1, 1]]))], (8,), U2)
    certificate = certify(network)
    bounds = sum(layer.proof.size for layer in certificate.nodes.values())
    assert certificate.verify(network, budget_s=600.0) == {"exhaustive": bounds}
    with pytest.raises(CertificateError, match=f"{bounds} trusted exhaustive"):
        certificate.verify(network, budget_s=0.0)
    counts = certificate.verify(network, budget_s=0.0, allow_trusted=True)
    missing = {"trusted samples": 10_000, "trusted witnesses": len(certificate.witnesses)}
    assert counts == {"trusted exhaustive": bounds, **missing}


class Clock:
    """A clock that each look at it moves on by a second."""

    def __init__(self):
        self.looks = 0

    def monotonic(self):
        self.looks += 1
        return self.looks


def cut_at(budget, certificate, network, monkeypatch):
    """What verify says when the time ends at this look at the clock."""
    clock = Clock()
    monkeypatch.setattr(recheck, "time", clock)
    counts = certificate.verify(network, budget_s=budget, allow_trusted=True, samples=200)
    # One look at the start, and one for each of the four steps that find the time over.
    assert clock.looks <= budget + 6
    return counts


def test_the_budget_bounds_everything_and_what_it_cuts_off_is_counted(monkeypatch):
    """Intervals, witnesses, samples and enumerations: no step goes on when the time is over."""
    weight = np.zeros((3, 20), dtype=int)
    weight[:, [3, 17]] = [[1, 2], [1, 2], [0, 5]]
    nodes = [
        Node("fc0", Linear(weight)),
        Node("act0", Requantize([[1, 5, 9, 10, 11, 12, 13]], U3)),
        Node("fc1", Linear([[1, -1, 0], [0, 0, 1]])),
    ]
    network = net(nodes, (20,), U3)
    interval = certify(network, method="interval")
    true = claimed(interval, "fc1", Proof.SOLVER, lo=[0, 0], hi=[0, 7])
    bounds = sum(layer.proof.size for layer in true.nodes.values())
    monkeypatch.setattr(recheck, "_VALUES", 2**8)
    cuts = [cut_at(budget, true, network, monkeypatch) for budget in range(0, 120, 2)]
    done = true.verify(network, samples=200)
    assert done == {"interval": bounds - 4, "solver": 4}
    assert cuts[-1] == done
    assert len({c.get("samples", 0) for c in cuts}) > 5
    assert cuts[0]["trusted samples"] == 200
    for counts in cuts:
        tried, missing = counts.pop("samples", 0), counts.pop("trusted samples", 0)
        assert tried + missing in (0, 200)
        assert missing == 0 or "solver" not in counts
        counts.pop("trusted witnesses", 0)
        assert sum(counts.values()) == bounds


def test_too_few_samples_are_refused_and_say_how_many_there_were(monkeypatch):
    network = deep()
    certificate = certify(network, method="interval")
    monkeypatch.setattr(recheck, "_VALUES", 2**8)
    monkeypatch.setattr(recheck, "time", Clock())
    with pytest.raises(
        CertificateError, match=r"samples: .*\d+ samples, \d+ trusted samples in all"
    ):
        certificate.verify(network, budget_s=30)


def test_a_forged_certificate_passes_at_no_cut(monkeypatch):
    network = deep(12)
    certificate = certify(network, method="interval")
    mass = altered(certificate["fc1"].mass, (0,), 1)
    false = with_layer(certificate, "fc1", mass=mass)
    monkeypatch.setattr(recheck, "_VALUES", 2**8)
    for budget in range(0, 60, 3):
        monkeypatch.setattr(recheck, "time", Clock())
        with pytest.raises(CertificateError):
            false.verify(network, budget_s=budget, samples=100)


def test_the_first_bound_that_is_trusted_is_named():
    network = deep()
    certificate = certify(network, method="interval")
    for end, place in ((LO, 0), (LO, 1), (HI, 0), (HI, 1)):
        proof = altered(certificate["fc1"].proof, (end, place), Proof.BOX_SEARCH)
        named = rf"fc1\.{('lo', 'hi')[end]}\[{place}\].*1 trusted box-search"
        with pytest.raises(CertificateError, match=named):
            with_layer(certificate, "fc1", proof=proof).verify(network, samples=0)


def test_exact_without_anything_that_shows_it():
    network = deep()
    certificate = certify(network, method="interval")
    called = with_layer(certificate, "fc1", status=np.zeros_like(certificate["fc1"].status))
    with pytest.raises(CertificateError, match=r"fc1\.\w\w\[0\].*trusted exact"):
        called.verify(network)
    assert called.verify(network, allow_trusted=True)["trusted exact"] == 2  # 9 is all that [0] is


def test_corners_of_an_image_share_inputs(monkeypatch):
    """Each of 98 neurons reaches both its ends, in far fewer than 196 inputs."""
    rng = np.random.default_rng(0)
    conv = Conv2d(rng.integers(-3, 4, (2, 1, 3, 3)), padding=1)
    network = net([Node("conv", conv)], (1, 7, 7), U2)
    certificate = certify(network, method="interval")
    assert certificate["conv"].exact.all()
    traced = []
    original = Network.trace
    monkeypatch.setattr(
        Network, "trace", lambda self, codes: traced.append(len(codes)) or original(self, codes)
    )
    assert set(certificate.verify(network, samples=0)) == {"interval"}
    assert sum(traced) < 60


def test_corners_through_what_moves_and_what_rises():
    """Codes of codes, moved about, then a sum: its ends are corners of the input."""
    rng = np.random.default_rng(0)
    nodes = [
        Node("rq", Requantize(np.sort(rng.integers(0, 8, (3, 3)), axis=1), U2)),
        Node("turned", Gather.of((3, 2, 3), lambda x: x.transpose(2, 1, 0)[::-1])),
        Node("flat", Flatten()),
        Node("fc", Linear(rng.integers(-3, 4, (4, 18)))),
        Node("act", Requantize.from_shift(2, U2)),
    ]
    network = net(nodes, (3, 2, 3), U3)
    certificate = certify(network, method="interval")
    assert certificate["fc"].exact.all()
    assert set(certificate.verify(network, samples=0)) == {"interval"}


def test_at_least_as_many_inputs_as_asked_for(monkeypatch):
    traced = []
    original = Network.trace
    monkeypatch.setattr(
        Network, "trace", lambda self, codes: traced.append(codes) or original(self, codes)
    )
    network = deep()
    certificate = certify(network, method="interval")
    for samples in (0, 1000, 10_000):
        traced.clear()
        certificate.verify(network, samples=samples)
        assert samples <= sum(map(len, traced)) <= samples + 300
    at_ends = np.isin(np.concatenate(traced), [0, 7]).all(axis=1)
    assert not at_ends[-1000:].any()  # inputs at random, and before them those that are pushed
    assert at_ends[:-2000].mean() > 0.2
    for samples in (-1, 2.5, None):
        with pytest.raises(InvalidArgument, match="samples"):
            certificate.verify(network, samples=samples)


def test_many_rows():
    network = deep()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 8, (12_000, 24))
    exhaustive = certify(network, rows)
    assert set(exhaustive.verify(network)) == {"exhaustive"}
    assert set(certify(network, rows, method="interval").verify(network)) == {"interval"}
    hi = altered(exhaustive["fc1"].hi, (1,), int(exhaustive["fc1"].hi[1]) + 1)
    refused(with_layer(exhaustive, "fc1", hi=hi), network, r"fc1\.hi\[1\]")


def test_a_missing_solver_is_named(monkeypatch):
    monkeypatch.setattr(recheck, "find_spec", lambda name: None)
    network = NETWORKS["cancelling"]
    with pytest.raises(MissingExtra, match="ortools"):
        certify(network).verify(network, solver=True)


# --- a node kind of a user's own ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Negative(Op):
    kind: ClassVar[str] = "Linear"  # its name proves nothing

    def out_shape(self, *shapes):
        return shapes[0]

    def out_range(self, *ranges):
        return Interval(-ranges[0].hi, -ranges[0].lo)

    def forward(self, *x, plan=None):
        return -x[0]


@dataclass(frozen=True, eq=False)
class Twice(SumOp):
    kind: ClassVar[str] = "Twice"

    def out_shape(self, *shapes):
        return shapes[0]

    def out_range(self, *ranges):
        return Interval(2 * ranges[0].lo, 2 * ranges[0].hi)

    def absolute_mass(self, *ranges):
        return 2 * ranges[0].magnitude

    def forward(self, *x, plan=None):
        return 2 * x[0]

    def terms(self, *x):
        return np.stack([x[0], x[0]], axis=-1)


@pytest.mark.parametrize("kind", [Negative, Twice])
def test_the_intervals_of_a_users_own_kind_are_trusted(kind):
    network = net(
        [Node("fc", Linear([[1, 2]])), Node("own", kind()), Node("out", Linear([[1]]))], (2,)
    )
    certificate = certify(network, method="interval")
    with pytest.raises(CertificateError, match=r"own\.lo\[0\].*2 trusted interval"):
        certificate.verify(network)
    counts = certificate.verify(network, allow_trusted=True)
    assert counts == {"interval": 8, "trusted interval": 2}
    assert set(certify(network).verify(network)) == {"exhaustive"}
    for field in ("lo", "hi"):
        value = getattr(certificate["own"], field) + (1 if field == "lo" else -1)
        refused(with_layer(certificate, "own", **{field: value}), network, "own")


# --- files --------------------------------------------------------------------------------------


def paths(content, at=()):
    """The place of every number and text in nested JSON."""
    if isinstance(content, dict):
        for key, item in content.items():
            yield from paths(item, (*at, key))
    elif isinstance(content, list):
        for i, item in enumerate(content):
            yield from paths(item, (*at, i))
    else:
        yield at


def may_be_true(path):
    """Another proof, status or witness may say something true as well, but not of the input."""
    if path[0] == "nodes":
        fields = ("proof", "status", "witness") if path[1] else ("proof", "witness")
        return path[2] in fields and path[3] == "values"
    return path[0] == "witnesses"


def test_every_place_of_a_file():
    """Each number, text and null in the JSON changed in turn, with a checksum that fits."""
    network = NETWORKS["cancelling"]
    for certificate in (certify(network, method="interval"), certify(network)):
        truth = truth_of(certificate, network)
        text = json.dumps(certificate.to_json())
        count = 0
        for path in paths(json.loads(text)):
            for step in (1, -1):
                content = json.loads(text)
                place = content
                for key in path[:-1]:
                    place = place[key]
                value = place[path[-1]]
                place[path[-1]] = value + step if isinstance(value, int) else [value][step:]
                body = {key: item for key, item in content.items() if key != "sha256"}
                try:
                    forged = Certificate.from_json({**body, "sha256": checksum(body)})
                except FileFormatError:
                    continue
                if path != ("sha256",) and not (
                    may_be_true(path) and holds(forged, network, truth)
                ):
                    refused(forged, network)
                    count += 1
        assert count > 50


@pytest.mark.parametrize("times", [1, -1000])
@pytest.mark.parametrize("shape", [(11,), (11, 1, 1), (11, 2, 1), (11, 1, 2)])
def test_the_solver_is_told_the_thresholds_of_each_channel(shape, times):
    """One sum, two thresholds: the code of the lower one is never less than that of the other."""
    pytest.importorskip("ortools")
    ones = np.full((2, 11, *(1 for _ in shape[1:])), times)
    both = Linear(ones) if len(shape) == 1 else Conv2d(ones)
    code = Requantize([[v] for v in sorted((10 * times, 20 * times))], IntFormat(1, signed=False))
    last = Linear([[1, -1]]) if len(shape) == 1 else Conv2d(np.array([[[[1]], [[-1]]]]))
    nodes = [Node("both", both), Node("code", code), Node("difference", last)]
    network = Network(nodes, input_shape=shape, input_format=IntFormat(2, signed=False))
    certificate = certify(network, method="solver", budget_s=20)
    assert certificate["difference"].range.ends == (0, 1)
    assert not any("trusted" in label for label in certificate.verify(network, solver=True))


@pytest.mark.parametrize("first", [None, *Rounding], ids=str)
@pytest.mark.parametrize("last", Rounding, ids=str)
def test_every_rounding_is_told_a_second_time(first, last):
    """All codes of 6 bits, each an input of one code: an interval then is what the node computes,
    ties, remainders and both signs."""
    fmt, scales = IntFormat(6, signed=True), [(5, 3), (3, 1), (8, 4), (0, 2), (7, 0)]
    codes = np.repeat(np.arange(-32, 32)[None], len(scales), axis=0)
    multiplier, shift = zip(*scales)
    firsts = None if first is None else [min(2, s) for s in shift]
    op = Rescale(
        *(multiplier, shift, IntFormat(16, signed=True), last),
        **({} if first is None else {"first_rounding": first, "first_shift": firsts}),
    )
    network = Network([Node("rescale", op)], input_shape=codes.shape, input_format=fmt)
    certificate = certify(network, Domain.box(network, codes, codes), method="interval")
    right = exact.forward(network, codes[None].tolist())[0]
    assert certificate["rescale"].lo.tolist() == certificate["rescale"].hi.tolist() == right
    assert certificate.verify(network) == {"interval": 4 * codes.size}


SHAPE = (4, 3, 4)
EACH_KIND = [
    Conv2d(np.arange(-36, 36).reshape(4, 2, 3, 3), [1, 2, 3, 4], (2, 1), 1, groups=2, pad_code=5),
    Conv2d(np.arange(-8, 8).reshape(4, 1, 2, 2), dilation=(1, 2), groups=4),
    ConvTranspose2d(np.arange(-32, 32).reshape(4, 2, 2, 4), [5, -7, 0, 9], 2, groups=2),
    MaxPool2d((2, 3), (1, 2), ((1, 0), 1)),
    SumPool2d((3, 2), 1, ((1, 0), 1), pad_code=-3),
    GlobalSumPool(),
    Add((2, -3)),
    Concat(),
    Flatten(),
    Reshape((6, 8)),
    Gather([[47, 0, -1], [5, 17, 30]], SHAPE, fill=3),
    Requantize(np.arange(12).reshape(4, 3) * 2 - 9, U2),
    Lookup(np.arange(64).reshape(4, 16)[:, ::-1] % 7 - 3, -8),
    Rescale([3, 5, 7, 0], [2, 1, 3, 0], IntFormat(8, signed=True), zero_point=[0, 1, 2, 3]),
    Softmax([2**31 - 1, 2**30, 2**28], IntFormat(8, signed=False)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("op", EACH_KIND, ids=lambda op: op.kind)
def test_every_kind_is_told_a_second_time_place_by_place(op, seed):
    """Over a box in which no two places have the same ends, so that none stands for another."""
    rng, operands = np.random.default_rng(seed), 2 if op.arity is None else 1
    node = Node("node", op, (INPUT,) if operands == 1 else (INPUT, "turned"))
    turned = Node("turned", Gather.of(SHAPE, lambda x: x[::-1, :, ::-1]), (INPUT,))
    network = Network(
        [turned, node], input_shape=SHAPE, input_format=IntFormat(4, signed=True), output="node"
    )
    ends = np.sort(rng.integers(-8, 8, (2, *SHAPE)), axis=0)
    certificate = certify(network, Domain.box(network, *ends), method="interval")
    counts = certificate.verify(network, samples=0, allow_trusted=True)
    assert {label.split()[-1] for label in counts} <= {"interval", "exact"}
    for end in ("lo", "hi"):
        values = getattr(certificate["node"], end)
        for place in np.ndindex(values.shape):
            false = values.copy()
            false[place] += 1 if end == "hi" else -1
            forged = with_layer(certificate, "node", **{end: false})
            with pytest.raises(CertificateError, match="node"):
                forged.verify(network, samples=0, allow_trusted=True)


@pytest.mark.parametrize("op", EACH_KIND, ids=lambda op: op.kind)
def test_no_kind_can_be_written_to(op):
    """Certificates name a network by its digest, and plans are kept."""
    again = replace(op)
    for field in fields(again):
        with pytest.raises(FrozenInstanceError):
            setattr(again, field.name, None)
    assert len({op, again, op}) == 2  # one by one: arrays have no truth to compare by


def test_every_kind_is_among_them():
    assert {type(op) for op in EACH_KIND} | {Linear, Conv1d} == {*KINDS}
