"""Certificates of stages and accumulators as files: what was written comes back, nothing else."""

import json
import pickle
from copy import deepcopy

import pytest

from refqnn import Accumulator, IntFormat, Linear, Network, Node, Requantize, Stage, certify
from refqnn.accumulator import Certificate, StagedCertificate
from refqnn.accumulator.certificate import read_certificate
from refqnn.accumulator.staged_files import read_accumulators
from refqnn.container import checksum
from refqnn.emulate import Emulated
from refqnn.errors import CertificateError, FileFormatError

UINT2 = IntFormat(2, signed=False)
PAIRS = Accumulator([Stage(6, group=2, overflow="saturate"), Stage(8)], bias="first")


def two_layers():
    nodes = [
        Node("fc1", Linear([[7, 7, -7, -7], [1, 2, 3, 4]], [1, 0])),
        Node("act", Requantize.from_shift(3, UINT2)),
        Node("fc2", Linear([[3, -3]])),
    ]
    return Network(nodes, input_shape=(4,), input_format=UINT2)


ACCUMULATORS = {
    "one for all": PAIRS,
    "one register": Emulated(5, overflow="saturate"),
    "errors": Accumulator([Stage(5, overflow="error")]),
    "by layer": {"fc2": Accumulator([Stage(2, group=1), Stage(3, signed=False)])},
    "an order": {"fc1": Accumulator([Stage(6)], order=(3, 1, 0, 2))},
}


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_what_was_saved_comes_back(tmp_path, name):
    network = two_layers()
    staged = certify(network, accumulator=ACCUMULATORS[name])
    staged.save(tmp_path / "staged.json")
    again = StagedCertificate.load(tmp_path / "staged.json")
    assert again == staged
    assert hash(again) == hash(staged)
    assert str(again) == str(staged)
    assert (again.safe, again.certificate) == (staged.safe, staged.certificate)
    assert again.verify(network) == staged.verify(network)
    assert again == read_certificate(tmp_path / "staged.json")
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "staged.json").read_bytes()
    assert pickle.loads(pickle.dumps(staged)) == deepcopy(staged) == staged


def test_one_kind_is_told_from_the_other(tmp_path):
    plain, path = certify(two_layers()), tmp_path / "plain.json"
    plain.save(path)
    assert read_certificate(path) == plain
    with pytest.raises(FileFormatError, match="expected 'refqnn certificate of stages'"):
        StagedCertificate.load(path)
    certify(two_layers(), accumulator=PAIRS).save(path)
    with pytest.raises(FileFormatError, match="expected 'refqnn certificate'"):
        Certificate.load(path)


def test_a_repr_fits_a_line():
    staged = certify(two_layers(), accumulator=PAIRS)
    assert len(repr(staged)) < 120
    assert "1 harmful" in repr(staged)
    assert all("\n" not in repr(r) and len(repr(r)) < 120 for r in staged.stages)
    assert "harmful" in staged._repr_html_()


def forged(content, change):
    """The file after a change, with a checksum that is right."""
    altered = json.loads(json.dumps(content))
    del altered["sha256"]
    change(altered)
    return {**altered, "sha256": checksum(altered)}


def first_stage(**fields):
    return lambda content: content["stages"][0].update(fields)


def first_found(**fields):
    return lambda content: content["stages"][0]["found"].update(fields)


MALFORMED = {
    "a verdict of another name": first_stage(verdict="fine"),
    "a proof of another name": first_stage(proof="faith"),
    "no input for harmful": first_stage(found=None),
    "a range of one end": first_stage(range=[1]),
    "no range": first_stage(range=None),
    "a layer of another name": first_stage(layer="fc9"),
    "a stage that is not": first_stage(number=7),
    "a negative stage": first_stage(number=-2),
    "a neuron outside": first_found(neuron=[9]),
    "a witness of another shape": first_found(witness={"shape": [2], "values": [0, 0]}),
    "a value that is no integer": first_found(value=1.5),
    "a field of another name": first_found(other=1),
    "a result that is right": lambda content: content["stages"][0]["found"].update(
        result=content["stages"][0]["found"]["exact"]
    ),
    "a report too few": lambda content: content["stages"].pop(),
    "a report too many": lambda content: content["stages"].append(content["stages"][0]),
    "a report of no accumulator": lambda content: content["accumulators"].pop("fc2"),
    "a width of no register": lambda content: content["accumulators"]["fc1"]["stages"][0].update(
        width=65
    ),
    "a certificate that was altered": lambda content: content["certificate"].update(network="0"),
    "a version to come": lambda content: content.update(version=2),
    "a key of another name": lambda content: content.update(more=1),
    "no stages": lambda content: content.update(stages=3),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_files_are_refused(what):
    content = certify(two_layers(), accumulator=PAIRS).to_json()
    with pytest.raises(FileFormatError):
        StagedCertificate.from_json(forged(content, MALFORMED[what]))


def test_an_altered_file_is_refused(tmp_path):
    content = certify(two_layers(), accumulator=PAIRS).to_json()
    content["stages"][1]["range"][0] -= 1
    with pytest.raises(FileFormatError, match="checksum"):
        StagedCertificate.from_json(content)
    for wrong in (None, [], 3, "text", {}):
        with pytest.raises(FileFormatError):
            StagedCertificate.from_json(wrong)
    (tmp_path / "net").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileFormatError, match="net: not a JSON file"):
        StagedCertificate.load(tmp_path / "net")


LIES = {
    "fits": lambda content: content["stages"][0].update(verdict="fits", found=None),
    "harmless": lambda content: content["stages"][0].update(verdict="harmless", found=None),
    "a narrower range": first_stage(range=[-40, 42]),
    "another group": first_found(group=2),
    "a group from behind": first_found(group=-1),
    "another value": first_found(value=99),
    "another result": first_found(result=5),
}


@pytest.mark.parametrize("what", LIES)
def test_lies_do_not_hold(what):
    network = two_layers()
    content = certify(network, accumulator=PAIRS).to_json()
    with pytest.raises(CertificateError, match="fc1 stage 0"):
        StagedCertificate.from_json(forged(content, LIES[what])).verify(network)


def test_a_node_without_a_report_is_missed():
    """Else a certificate that says nothing would be safe."""
    network = two_layers()
    staged = certify(network, accumulator=PAIRS)
    some = StagedCertificate(staged.certificate, PAIRS, staged["fc2"])
    with pytest.raises(CertificateError, match="reports on"):
        some.verify(network)


def test_accumulators_come_out_of_files(tmp_path):
    path = tmp_path / "acc.json"
    path.write_text(
        '{"stages": [{"width": 6, "group": 2, "overflow": "saturate"}, {"width": 8}],'
        ' "bias": "first"}'
    )
    assert read_accumulators(path) == PAIRS
    path.write_text('{"layers": {"fc1": {"stages": [{"width": 6}], "order": [3, 1, 0, 2]}}}')
    assert read_accumulators(path) == ACCUMULATORS["an order"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "no accumulator"),
        ("{}", "stages"),
        ('{"stages": []}', "stages"),
        ('{"stages": [{"width": 99}]}', "width: got 99"),
        ('{"stages": [{"wide": 9}]}', "wide"),
        ('{"stages": [{"width": 9}], "when": "end"}', "when"),
        ('{"stages": [{"width": 9}], "bias": "never"}', "bias"),
        ('{"layers": [1]}', "no accumulator"),
        ("width=3", "not a JSON file"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_accumulator_is_named(tmp_path, text, told):
    path = tmp_path / "acc.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=told) as raised:
        read_accumulators(path)
    assert str(path) in str(raised.value)
