"""Stages against the truth: every input of small domains, told in plain Python."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refqnn import (
    Accumulator,
    Add,
    Concat,
    Conv2d,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    Stage,
    certify,
    exact,
    find_overflow,
    testing,
)
from refqnn.accumulator import (
    NoOverflow,
    Proof,
    StagedCertificate,
    StageOverflow,
    Unknown,
    Verdict,
)
from refqnn.accumulator.certificate import about_one_sum
from refqnn.accumulator.domain import Domain
from refqnn.errors import CertificateError, InvalidArgument, InvalidType

UINT2, UINT4, UINT8 = (IntFormat(b, signed=False) for b in (2, 4, 8))


def one_layer(weight, bias=None, fmt=UINT2):
    weight = np.asarray(weight)
    layer = Node("fc", Linear(weight, bias))
    return Network([layer], input_shape=weight.shape[1:], input_format=fmt)


def narrow_work(monkeypatch, work=0):
    """As if no domain were small enough to be enumerated."""
    monkeypatch.setattr("refqnn.accumulator.staged.EMULATED_WORK", work)


def truth(network, accumulator):
    """Of each stage of "fc": does a sum leave it, is a result wrong with that, and the ends of what
    went in; from the words of `refqnn.emulate`, with Python integers."""
    op = network["fc"].op
    weight, bias = op.weight.tolist(), None if op.bias is None else op.bias.tolist()
    domain = Domain.of(network, None)
    stages = accumulator.stages
    facts = [[False, False, None, None] for _ in stages]
    for x in domain.points(0, domain.size).tolist():
        for k, row in enumerate(weight):
            values, right = [w * v for w, v in zip(row, x)], 0
            right = sum(values) + (bias[k] if bias else 0)
            left = []
            for number, s in enumerate(stages):
                if s is stages[-1] and bias and accumulator.bias != "outside":
                    one = [bias[k]]
                    values = one + values if accumulator.bias == "first" else values + one
                size = s.group or len(values)
                lowest = -(2 ** (s.width - 1)) if s.signed else 0
                highest = lowest + 2**s.width - 1
                made, outside = [], False
                for i in range(0, len(values), size):
                    group, acc = values[i : i + size], 0
                    for v in [sum(group)] if s.when == "end" else group:
                        acc += v
                        fact = facts[number]
                        fact[2] = acc if fact[2] is None else min(acc, fact[2])
                        fact[3] = acc if fact[3] is None else max(acc, fact[3])
                        if not lowest <= acc <= highest:
                            outside = True
                            if s.overflow == "saturate":
                                acc = lowest if acc < lowest else highest
                            else:
                                acc = (acc - lowest) % 2**s.width + lowest
                    made.append(acc)
                left.append(outside)
                values = made
            result = values[0] + (bias[k] if bias and accumulator.bias == "outside" else 0)
            for number, outside in enumerate(left):
                facts[number][0] |= outside
                facts[number][1] |= outside and result != right
    return facts


def check(network, accumulator, staged, facts):
    for report, (overflows, harms, least, greatest) in zip(staged.stages, facts):
        assert report.range[0] <= least <= greatest <= report.range[1]
        assert not (report.verdict is Verdict.FITS and overflows)
        assert not (report.verdict is Verdict.HARMLESS and harms)
        assert not (report.verdict is Verdict.HARMFUL and not harms)
        assert not (report.verdict is Verdict.OVERFLOWS and not overflows)
        if report.found is None:
            continue
        found, (lo, hi) = report.found, report.stage.ends
        codes = found.witness[None]
        assert not lo <= found.value <= hi
        place = (0, *found.neuron)
        assert network.trace(codes)[report.layer][place] == found.exact
        got = network.trace(codes, accumulator={report.layer: accumulator})[report.layer]
        assert got[place] == found.result


@st.composite
def questions(draw):
    k = draw(st.integers(1, 5))
    small = st.integers(-4, 4)
    weight = draw(st.lists(st.lists(small, min_size=k, max_size=k), min_size=1, max_size=2))
    bias = draw(
        st.none() | st.lists(st.integers(-9, 9), min_size=len(weight), max_size=len(weight))
    )
    accumulator = draw(testing.accumulators(max_bits=6))
    assume(accumulator.order == "forward")
    return one_layer(weight, bias), accumulator


@given(questions())
def test_enumeration_is_the_truth(question):
    network, accumulator = question
    staged = certify(network, accumulator=accumulator)
    facts = truth(network, accumulator)
    check(network, accumulator, staged, facts)
    for report, (overflows, harms, least, greatest) in zip(staged.stages, facts):
        expected = Verdict.HARMFUL if harms else Verdict.HARMLESS if overflows else Verdict.FITS
        assert (report.verdict, report.range) == (expected, (least, greatest))
    assert staged.safe == (not any(harms for _, harms, *_ in facts))
    counts = staged.verify(network)
    assert counts["stages: exhaustive"] == len(accumulator.stages)


@given(questions())
def test_intervals_and_questions_are_sound_and_decide_one_layer(question):
    network, accumulator = question
    with pytest.MonkeyPatch.context() as patch:
        narrow_work(patch)
        staged = certify(network, accumulator=accumulator)
    facts = truth(network, accumulator)
    check(network, accumulator, staged, facts)
    for report, (overflows, *_) in zip(staged.stages, facts):
        # The products are independent: the first stage that overflows is always found.
        assert (report.verdict is Verdict.FITS) == (not overflows) or report.number > 0
        if overflows:
            assert report.found is not None or report.verdict is Verdict.HARMLESS
            break
    staged.verify(network, allow_trusted=True)


@given(st.data())
def test_behind_a_hidden_layer(data):
    kinds = data.draw(st.sampled_from([("Linear", "Requantize"), testing.KINDS]))
    network = data.draw(testing.networks(kinds=kinds, max_nodes=3))
    accumulator = data.draw(testing.accumulators(max_bits=6))
    assume(network.accumulators())
    fmt, lo = network.input_format, np.full(network.input_shape, network.input_format.q_min)
    free = np.arange(lo.size).reshape(lo.shape) < 8 // fmt.bits  # at most 256 points
    domain = Domain.box(network, lo, np.where(free, fmt.q_max, lo))
    with pytest.MonkeyPatch.context() as patch:
        narrow_work(patch)
        staged = certify(network, domain, accumulator=accumulator, budget_s=1.0)
    points = domain.points(0, domain.size)
    right = network.trace(points)
    for report in staged.stages:
        node = network[report.layer]
        x = tuple(right[name] for name in node.inputs)
        result, history = accumulator.run(node.op, x)
        sums = history[report.number]
        assert report.range[0] <= sums.least.min() <= sums.greatest.max() <= report.range[1]
        outside = ~report.stage.holds(sums.least, sums.greatest)
        wrong = outside.any(axis=-1) & (result != right[report.layer])
        if report.verdict is Verdict.FITS:
            assert not outside.any()
        if report.verdict is Verdict.HARMLESS:
            assert not wrong.any()
        if report.verdict is Verdict.HARMFUL:
            assert report.found.harmful
            assert wrong.any()
    if staged.safe:
        got = network.trace(points, accumulator=accumulator)
        assert all(np.array_equal(values, got[name]) for name, values in right.items())
    staged.verify(network, allow_trusted=True)


@given(st.data())
def test_every_kind_that_sums(data):
    kinds = [kind for kind in testing.KINDS if kind != "Lookup"]
    network = data.draw(testing.networks(kinds=kinds, max_nodes=3))
    accumulator = data.draw(testing.accumulators(max_bits=8))
    assume(network.accumulators())
    with pytest.MonkeyPatch.context() as patch:
        narrow_work(patch)
        staged = certify(network, method="interval", accumulator=accumulator)
    staged.verify(network, allow_trusted=True)
    codes = Domain.of(network, None).sample(20, np.random.default_rng(0))
    right = network.trace(codes)
    for report in staged.stages:
        node = network[report.layer]
        result, history = accumulator.run(node.op, tuple(right[name] for name in node.inputs))
        sums = history[report.number]
        assert report.range[0] <= sums.least.min() <= sums.greatest.max() <= report.range[1]
        if report.verdict is Verdict.HARMLESS:
            assert np.array_equal(result, right[report.layer])


# --- wraps, harmless and harmful ----------------------------------------------------------------


@pytest.mark.parametrize("enumerated", [True, False])
def test_a_wrap_inside_is_harmless_where_the_outside_fits(enumerated, monkeypatch):
    if not enumerated:
        narrow_work(monkeypatch)
    network = one_layer([[7, 7, -7, -7]])  # sums to 42, results in [-42, 42]
    inner = Stage(7, group=2)
    verdicts = [
        r.verdict for r in certify(network, accumulator=Accumulator([inner, Stage(7)])).stages
    ]
    assert verdicts == [Verdict.FITS, Verdict.FITS]
    network = one_layer([[7, 7, -7, 0]], [-20])  # 42 - 21 - 20: prefixes leave six bits
    staged = certify(network, accumulator=Accumulator([Stage(6)]))
    assert staged.stages[0].verdict is Verdict.HARMFUL  # -41 is a result
    network = one_layer([[7, 7, -7, -7]], [-11], UINT2)
    narrow = Domain.box(network, [0, 0, 3, 0], [3, 3, 3, 0])  # results in [-32, 10]
    staged = certify(network, narrow, accumulator=Accumulator([Stage(6)]))
    assert staged.stages[0].verdict is Verdict.HARMLESS
    assert staged.safe
    assert not staged.stages[0].found.harmful  # 42 on the way
    staged.verify(network)
    saturating = Accumulator([Stage(6, overflow="saturate")])
    assert certify(network, narrow, accumulator=saturating)["fc"][0].verdict is Verdict.HARMFUL


def test_an_inner_wrap_that_is_narrower_than_the_outside_is_harmful():
    network = one_layer([[7, 7, 1]])
    staged = certify(network, accumulator=Accumulator([Stage(6, group=2), Stage(8)]))
    report = staged["fc"][0]
    assert report.verdict is Verdict.HARMFUL
    assert report.found.witness.tolist() == [2, 3, 0]  # the least 35
    assert (report.found.value, report.found.exact, report.found.result) == (35, 35, -29)


def test_maddubs_with_weights_of_eight_bits_and_of_seven():
    network = one_layer([[127, 127, -128, -128]], fmt=UINT8)
    accumulator = Accumulator.preset("x86_maddubs")
    answer = find_overflow(network, accumulator=accumulator)
    assert isinstance(answer, StageOverflow)
    assert (answer.stage, answer.limits) == (0, (-(2**15), 2**15 - 1))
    assert answer.exact != answer.result
    got = network.trace(answer.witness[None], accumulator=accumulator)["fc"]
    assert got[(0, *answer.neuron)] == answer.result
    assert "in stage 0" in str(answer)
    seven = one_layer([[63, 64, -64, -64]], fmt=UINT8)
    answer = find_overflow(seven, accumulator=accumulator)
    assert isinstance(answer, NoOverflow)
    assert [report.verdict for report in answer.stages] == [Verdict.FITS] * 3
    assert answer.proofs == (Proof.INTERVAL,)


def test_one_neuron_alone():
    network = one_layer([[1, 1, 1], [7, 7, 7]])
    accumulator = Accumulator([Stage(5)])
    assert isinstance(find_overflow(network, "fc", 0, accumulator=accumulator), NoOverflow)
    answer = find_overflow(network, "fc", 1, accumulator=accumulator)
    assert isinstance(answer, StageOverflow)
    assert answer.neuron == (1,)


def test_a_proof_that_intervals_do_not_give(monkeypatch):
    """x and -x of a hidden layer: no interval sees that they are not great at one time."""
    narrow_work(monkeypatch)
    nodes = [
        Node("fc1", Linear([[1, 1], [-1, -1]], [0, 30])),
        Node("act", Requantize.from_shift(0, UINT8)),
        Node("fc2", Linear([[1, 1]])),
    ]
    network = Network(nodes, input_shape=(2,), input_format=UINT4)
    accumulator = {"fc2": Accumulator([Stage(6, overflow="saturate")])}
    staged = certify(network, method="interval", accumulator=accumulator)
    assert staged["fc2"][0].verdict is Verdict.FITS  # always 30; asked of the network of one sum
    assert staged["fc2"][0].proof is not Proof.INTERVAL
    assert staged.verify(network)["stages: exhaustive"] == 1
    monkeypatch.setattr("refqnn.accumulator.recheck_staged._MOST_PRODUCTS", 0)
    with pytest.raises(CertificateError, match="1 that only what made them says"):
        staged.verify(network, allow_trusted=False)
    assert staged.verify(network, allow_trusted=True)["trusted stages"] == 1
    with pytest.raises(InvalidArgument, match="fc2"):
        staged["fc1"]


@pytest.mark.parametrize("row", [[1, 1], [-1, -1], [1, -1]])
def test_both_ends_of_one_sum_are_asked(row):
    """Whichever end lies inside the register says nothing of the other."""
    network = one_layer([row])
    for width in (2, 3, 4, 5):
        answer = about_one_sum(network, Stage(width), Domain.of(network, None), 5.0)
        low, high = sum(min(0, 3 * v) for v in row), sum(max(0, 3 * v) for v in row)
        if -(2 ** (width - 1)) <= low and high < 2 ** (width - 1):
            assert isinstance(answer, Proof)
        else:
            (value,) = network.forward(answer[None]).ravel().tolist()
            assert not -(2 ** (width - 1)) <= value < 2 ** (width - 1)


def test_errors_are_harm():
    network = one_layer([[7, 7]])
    answer = find_overflow(network, accumulator=Accumulator([Stage(5, overflow="error")]))
    assert isinstance(answer, StageOverflow)
    assert answer.result is None
    assert "an error" in str(answer)


def test_an_add_of_one_value_twice():
    nodes = [Node("double", Add((1, -1)), ("input", "input"))]
    network = Network(nodes, input_shape=(2,), input_format=UINT4)
    staged = certify(network, accumulator=Accumulator([Stage(2)]))
    assert staged["double"][0].verdict is Verdict.HARMLESS  # x, then 0
    saturating = Accumulator([Stage(2, overflow="saturate")])
    assert certify(network, accumulator=saturating)["double"][0].verdict is Verdict.HARMFUL


def test_padding_counts_where_it_stands(monkeypatch):
    conv = Conv2d([[[[3, 3]]]], [1], padding=((0, 0), (1, 0)), pad_code=9)
    network = Network([Node("conv", conv)], input_shape=(1, 1, 2), input_format=UINT2)
    narrow_work(monkeypatch)
    report = certify(network, accumulator=Accumulator([Stage(7)]))["conv"][0]
    assert (report.range, report.verdict) == ((0, 37), Verdict.FITS)  # 27, then 36, then 37
    report = certify(network, accumulator=Accumulator([Stage(6)]))["conv"][0]
    assert (report.found.neuron, report.verdict) == ((0, 0, 0), Verdict.HARMFUL)


def test_what_has_no_accumulator_is_an_error():
    network = one_layer([[1]])
    with pytest.raises(InvalidArgument, match="accumulator"):
        find_overflow(network, accumulator={"other": Accumulator([Stage(5)])})
    with pytest.raises(InvalidType, match="accumulator"):
        certify(network, accumulator=Stage(5))


def test_unknown_names_the_stage(monkeypatch):
    narrow_work(monkeypatch)
    monkeypatch.setattr("refqnn.accumulator.overflow.about_one_sum", lambda *_: None)
    monkeypatch.setattr("refqnn.accumulator.staged.sampled", lambda *_: iter(()))
    network = one_layer([[7, 6], [7, 7], [1, 1]])
    answer = find_overflow(network, accumulator=Accumulator([Stage(5)]))
    assert isinstance(answer, Unknown)
    assert answer.neurons == (("fc", (1,)),)
    assert answer.stages[0].verdict is Verdict.OPEN


# --- what changes nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("domain", [(0, 0, 0, 0), (0, 0, 3, 0), (0, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("bias", [0, 1, -11, 40, -1000])
def test_a_bias_outside_changes_no_verdict(bias, enumerated, domain, monkeypatch):
    """It is added to what the registers leave: they see what they see without one."""
    if not enumerated:
        narrow_work(monkeypatch)
    verdicts = []
    for number in (None, [bias]):
        network = one_layer([[7, 7, -7, -7]], number)
        where = Domain.box(network, domain, [3, 3, 3, 3])
        staged = certify(network, where, accumulator=Accumulator([Stage(6)], bias="outside"))
        verdicts.append([(r.verdict, r.range) for r in staged.stages])
        staged.verify(network)
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("when", ["step", "end"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bias", [-40, 0, 1, 2])
def test_a_question_about_one_sum_is_about_that_sum(bias, sign, when, where, monkeypatch):
    """x and 30 - x of a hidden layer: only the network of the one sum tells what two stages hold,
    and it must hold the bias where that stands, no later and no earlier."""
    nodes = [
        Node("fc1", Linear([[1, 1], [-1, -1]], [0, 30])),
        Node("act", Requantize.from_shift(0, UINT8)),
        Node("fc2", Linear([[sign, sign, 0]], [bias * sign]), ("both",)),
    ]
    nodes.insert(2, Node("both", Concat(), ("act", "one")))
    nodes.insert(2, Node("one", Linear([[1, 0]]), ("input",)))
    network = Network(nodes, input_shape=(2,), input_format=UINT4)
    stages = [Stage(8, group=2), Stage(6, overflow="saturate", when=when)]
    accumulator = {"fc2": Accumulator(stages, bias=where)}
    truth = certify(network, accumulator=accumulator)
    narrow_work(monkeypatch)
    monkeypatch.setattr("refqnn.accumulator.staged.sampled", lambda *_: iter(()))  # ask, not try
    proved = certify(network, method="interval", accumulator=accumulator, budget_s=5.0)
    assert [r.verdict for r in proved.stages] == [r.verdict for r in truth.stages]
    proved.verify(network, allow_trusted=True)


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("when", ["step", "end"])
def test_an_accumulator_of_a_file_says_what_the_written_one_says(
    when, enumerated, tmp_path, monkeypatch
):
    if not enumerated:
        narrow_work(monkeypatch)
    network = one_layer([[7, 7, -7]], [5])
    stages = [Stage(5, group=2, when=when, overflow="saturate"), Stage(6, when=when)]
    staged = certify(network, accumulator=Accumulator(stages, bias="first"))
    staged.save(tmp_path / "stages.json")
    loaded = StagedCertificate.load(tmp_path / "stages.json")
    assert certify(network, accumulator=loaded.accumulators) == staged
    assert loaded.verify(network) == staged.verify(network)


# --- reports that lie ---------------------------------------------------------------------------


LIES = {
    "fits": lambda r: replace(r, verdict=Verdict.FITS, found=None),
    "harmless": lambda r: replace(r, verdict=Verdict.HARMLESS, found=None),
    "range": lambda r: replace(r, range=(r.range[0] + 1, r.range[1])),
    "number": lambda r: replace(r, number=r.number + 1),
    "stage": lambda r: replace(r, stage=replace(r.stage, width=20)),
    "value": lambda r: replace(r, found=replace(r.found, value=r.found.value + 1)),
    "exact": lambda r: replace(r, found=replace(r.found, exact=r.found.exact + 1)),
    "result": lambda r: replace(r, found=replace(r.found, result=r.found.result + 1)),
    "witness": lambda r: replace(r, found=replace(r.found, witness=r.found.witness * 0)),
    "domain": lambda r: replace(r, found=replace(r.found, witness=r.found.witness + 4)),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("enumerated", [True, False])
def test_lies_are_found(lie, enumerated, monkeypatch):
    network = one_layer([[7, 7, -2]], [1])
    accumulator = Accumulator([Stage(5, group=2, overflow="saturate"), Stage(8)])
    if not enumerated:
        narrow_work(monkeypatch)
    staged = certify(network, accumulator=accumulator)
    staged.verify(network, allow_trusted=True)
    false = [LIES[lie](staged.stages[0]), staged.stages[1]]
    lying = StagedCertificate(staged.certificate, accumulator, tuple(false))
    with pytest.raises(CertificateError):
        lying.verify(network)


def test_exact_tells_the_same_result():
    network = one_layer([[7, 7, -2]], [1])
    accumulator = Accumulator([Stage(5, group=2, overflow="saturate"), Stage(8)])
    found = certify(network, accumulator=accumulator)["fc"][0].found
    got = exact.trace(network, found.witness[None].tolist(), accumulator)["fc"]
    assert got[0][found.neuron[0]] == found.result
