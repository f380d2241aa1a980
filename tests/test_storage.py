import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refqnn import (
    BIPOLAR,
    Dequantizer,
    IntFormat,
    Linear,
    Network,
    Node,
    PowerOfTwoQuantizer,
    Requantize,
    container,
    load,
    testing,
)
from refqnn.container import array_to_npy, npy_to_array
from refqnn.errors import FileFormatError, InvalidArgument


def small_network():
    fmt = IntFormat(2, signed=False)
    return Network(
        [Node("fc1", Linear([[1, -1]], [300])), Node("act1", Requantize.from_shift(1, fmt))],
        input_shape=(2,),
        input_quantizer=PowerOfTwoQuantizer(-1, IntFormat(3, signed=False), "half_up"),
        output_dequantizer=Dequantizer(0.5, [0.25]),
    )


def tiny_network():
    return Network([Node("a", Linear([[7]]))], input_shape=(1,), input_format=IntFormat(2, False))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.rqn"


@pytest.fixture
def saved(path):
    small_network().save(path)
    return path


def rewrite(path, change):
    """The file after change(content of network.json, members), with the right checksum."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members["network.json"])
    change(content, members)
    members["network.json"] = json.dumps(content).encode()
    members["network.sha256"] = hashlib.sha256(members["network.json"]).hexdigest().encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from([3, 2**20, 2**62]))
def test_random_networks_come_back_equal(tmp_path, data, max_weight):
    network = data.draw(testing.networks(max_weight=max_weight, doors=data.draw(st.booleans())))
    codes = data.draw(testing.batches(network))
    file = tmp_path / "net"
    network.save(file)
    again = load(file)
    assert again.digest == network.digest
    assert again.input_format == network.input_format
    assert str(again) == str(network)
    first, second = network.trace(codes), again.trace(codes)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    bytes_of_first = file.read_bytes()
    again.save(file)
    assert file.read_bytes() == bytes_of_first


def test_the_doors_come_back(saved):
    network, again = small_network(), load(saved)
    X = np.linspace(-1, 5, 20).reshape(10, 2)
    assert np.array_equal(again.quantize_input(X), network.quantize_input(X))
    assert np.array_equal(again.predict(X), network.predict(X))
    bipolar = Network([Node("a", Linear([[1]]))], input_shape=(1,), input_format=BIPOLAR)
    bipolar.save(saved)
    assert load(saved).input_format is BIPOLAR


# Coprime to three, the number of ways in which a byte is flipped.
STEPS = pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])


@STEPS
def test_every_truncation_is_an_error(path, step):
    tiny_network().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"net\.rqn"):
            load(path)


@STEPS
def test_every_flipped_byte_is_an_error_or_harmless(path, step):
    tiny_network().save(path)
    whole, digest = path.read_bytes(), tiny_network().digest
    harmless = 0
    for position in range(0, len(whole), step):
        altered = bytearray(whole)
        altered[position] ^= (0x01, 0x80, 0xFF)[position % 3]
        path.write_bytes(bytes(altered))
        try:
            again = load(path)
        except FileFormatError:
            continue
        harmless += 1  # a time stamp or an attribute of the zip
        assert again.digest == digest
    assert harmless < len(whole)


def test_a_newer_version_says_so(saved):
    rewrite(saved, lambda content, members: content.update(version=2))
    with pytest.raises(FileFormatError, match="version 2, expected 1"):
        load(saved)


def test_another_kind_of_file(path):
    path.write_bytes(b"hello")
    with pytest.raises(FileFormatError, match="not a complete network file"):
        load(path)
    np.savez(path.with_suffix(".npz"), a=np.arange(3))
    with pytest.raises(FileFormatError, match="not a network file of ours"):
        load(path.with_suffix(".npz"))
    with pytest.raises(FileNotFoundError):
        load(path.with_suffix(".missing"))


def test_pickles_are_never_read(saved):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(saved) + ".exploded",))

    def change(content, members):
        name = next(iter(content["arrays"]))
        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
        members[name] = buffer.getvalue()
        content["arrays"][name] = hashlib.sha256(members[name]).hexdigest()

    rewrite(saved, change)
    with pytest.raises(FileFormatError, match="pickle"):
        load(saved)
    assert not os.path.exists(str(saved) + ".exploded")


def test_an_array_that_does_not_match_its_checksum(saved):
    def change(content, members):
        first, second = list(content["arrays"])[:2]
        members[first], members[second] = members[second], members[first]

    rewrite(saved, change)
    with pytest.raises(FileFormatError, match="does not match its checksum"):
        load(saved)


def set_parameter(content, **values):
    content["nodes"][0]["parameters"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda content, members: content["nodes"][0].update(kind="Convolve"),
        lambda content, members: content["nodes"][0].update(inputs=["nowhere"]),
        lambda content, members: content["nodes"][0].update(inputs=None),
        lambda content, members: content["nodes"][0].update(name=7),
        lambda content, members: content.update(nodes=[]),
        lambda content, members: content.update(nodes=7),
        lambda content, members: content.update(output="nowhere"),
        lambda content, members: content.update(input_shape=[2.5]),
        lambda content, members: content.update(input_shape=[3]),
        lambda content, members: content.update(input_format={"format": [99, True, False]}),
        lambda content, members: content.update(input_format=None, input_quantizer=None),
        lambda content, members: content.update(format="something else"),
        lambda content, members: content.pop("nodes"),
        lambda content, members: content.pop("version"),
        lambda content, members: members.update({"extra": b""}),
        lambda content, members: members.pop(next(iter(content["arrays"]))),
        lambda content, members: set_parameter(content, weight={"array": "arrays/999.npy"}),
        lambda content, members: set_parameter(content, weight={"code": "1 + 1"}),
        lambda content, members: set_parameter(content, weight=None),
        lambda content, members: set_parameter(content, surprise=1),
    ],
)
def test_malformed_content_is_one_kind_of_error(saved, change):
    rewrite(saved, change)
    with pytest.raises(FileFormatError, match=r"net\.rqn"):
        load(saved)


def test_compressed_members_are_refused(saved):
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(FileFormatError, match="compressed"):
        load(saved)


def test_an_interrupted_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        small_network().save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_digest_follows_the_content():
    def network(weight, name="fc"):
        return Network(
            [Node(name, Linear(weight))], input_shape=(1,), input_format=IntFormat(2, False)
        )

    assert network([[1]]).digest == network([[1]]).digest
    assert len({network([[1]]).digest, network([[2]]).digest, network([[1]], "b").digest}) == 3


@pytest.mark.parametrize("byte", [2, 3, 128, 255])
def test_a_truth_value_is_one_of_two_bytes(byte):
    data = array_to_npy(np.array([True, False, True]))
    assert npy_to_array(data).tolist() == [True, False, True]
    with pytest.raises(FileFormatError, match="truth value"):
        npy_to_array(data[:-1] + bytes([byte]))


@pytest.mark.parametrize(
    ("header", "refused"),
    [
        ({"format": f"refqnn {container.PRIVATE}"}, True),
        ({"format": "refqnn server"}, False),
        ({"format": container.PRIVATE}, False),
        ({}, False),
        ([f"refqnn {container.PRIVATE}"], False),
    ],
)
def test_private_keys_alone_are_not_replaced(tmp_path, header, refused):
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(container.HEADER, json.dumps(header))
    if refused:
        with pytest.raises(InvalidArgument, match="private keys"):
            container.refuse_keys(path)
    else:
        container.refuse_keys(path)
