"""Network files, certificates, array files: what loads is what was saved, or fully valid."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from fuzzing import INPUTS, fuzz, mended, mutated_bytes, mutated_json, to_text, zipped

from refqnn import (
    Add,
    AffineQuantizer,
    Conv2d,
    Dequantizer,
    Flatten,
    GlobalSumPool,
    IntFormat,
    Linear,
    Lookup,
    MaxPool2d,
    Network,
    Node,
    PowerOfTwoQuantizer,
    Requantize,
    Reshape,
    SumPool2d,
    certify,
    exact,
    storage,
)
from refqnn.accumulator.certificate import Certificate, Status
from refqnn.container import array_to_npy, npy_to_array
from refqnn.errors import CertificateError, FileFormatError

UINT2, UINT3 = IntFormat(2, signed=False), IntFormat(3, signed=False)
SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]


def dense() -> Network:
    return Network(
        [
            Node("fc1", Linear([[3, -2], [1, 1]], [5, -300])),
            Node("act1", Requantize.from_shift(1, UINT2)),
            Node("table", Lookup([[1, -1, 2, 0]], 0)),
            Node("sum", Add((1, 2)), ("act1", "table")),
            Node("fc2", Linear([[1, -3]])),
        ],
        input_shape=(2,),
        input_quantizer=PowerOfTwoQuantizer(-1, UINT3, "half_up"),
        output_dequantizer=Dequantizer(0.5, [0.25]),
    )


def images() -> Network:
    return Network(
        [
            Node("conv", Conv2d([[[[1, -1], [2, 1]]]], [1], padding=1, pad_code=3)),
            Node("act", Requantize.from_shift(2, UINT2)),
            Node("max", MaxPool2d(2, stride=1)),
            Node("mean", SumPool2d(2)),
            Node("flat", Flatten()),
            Node("shape", Reshape((1, 1))),
            Node("pool", GlobalSumPool()),
        ],
        input_shape=(1, 3, 3),
        input_quantizer=AffineQuantizer(0.5, 3, UINT3),
    )


@functools.cache
def saved() -> tuple[bytes, ...]:
    return tuple(storage.to_bytes(network) for network in (dense(), images()))


@functools.cache
def digests() -> set[str]:
    return {network.digest for network in (dense(), images())}


def use(network: Network) -> None:
    """A loaded network saves, loads and computes, as slow plain integers do."""
    data = storage.to_bytes(network)
    assert storage.from_bytes(data).digest == network.digest
    fmt = network.input_format
    if max(np.prod(shape, dtype=float) for shape in network.shapes.values()) > 1e4:
        return
    codes = np.full((1, *network.input_shape), fmt.q_max)
    codes.flat[::2] = fmt.q_min
    output = network.forward(codes)
    if output.size < 50:
        expected = exact.forward(network, codes.tolist())
        assert np.array_equal(output, np.array(expected, dtype=object).reshape(output.shape))


@pytest.mark.parametrize("slow", SPEEDS)
def test_array_files(slow: bool) -> None:
    arrays = [
        np.arange(6).reshape(2, 3),
        np.array([[1.5, np.nan]], np.float32),
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.asfortranarray(np.arange(6, dtype=np.int8).reshape(2, 3)),
        np.array(3),
    ]
    files = [array_to_npy(array) for array in arrays]

    def door(data: bytes) -> None:
        array = npy_to_array(data)
        assert array.nbytes <= len(data)
        again = npy_to_array(array_to_npy(array))
        assert again.dtype == array.dtype
        assert np.array_equal(again, array, equal_nan=array.dtype.kind == "f")

    ends = fuzz("array file", slow, lambda rng: mutated_bytes(rng.choice(files), rng), door)
    assert min(ends["accepted"], ends["FileFormatError"]) > 0
    assert all(np.array_equal(npy_to_array(f), a, equal_nan=a.dtype.kind == "f")
               for f, a in zip(files, arrays))  # fmt: skip


@pytest.mark.parametrize("slow", SPEEDS)
def test_network_files(slow: bool) -> None:
    def door(data: bytes) -> None:
        assert storage.from_bytes(data).digest in digests()

    fuzz("network file", slow, lambda rng: mutated_bytes(rng.choice(saved()), rng), door)


@pytest.mark.parametrize("slow", SPEEDS)
def test_network_files_with_mended_checksums(slow: bool) -> None:
    def make(rng: random.Random) -> bytes:
        return mended(rng.choice(saved()), "network", "arrays", rng)

    ends = fuzz(
        "network file, checksums mended", slow, make, lambda data: use(storage.from_bytes(data))
    )
    assert min(ends["accepted"], ends["FileFormatError"]) > 0


# --- certificates -----------------------------------------------------------------------------


@functools.cache
def certificates() -> tuple[dict, ...]:
    network = dense()
    few = np.array([[0, 1], [7, 7], [3, 2]])
    return tuple(
        json.loads(json.dumps(certify(network, domain, method=method).to_json()))
        for domain, method in ((None, "interval"), (None, "exhaustive"), (few, "exhaustive"))
    )


@functools.cache
def every_trace() -> dict[str, np.ndarray]:
    return dense().trace(np.array(list(itertools.product(range(8), repeat=2))))


def check_certificate(certificate: Certificate) -> None:
    """What verifies without trust is true of every input of its domain."""
    if any("trusted" in proof for proof in certificate.verify(dense())):
        return
    inside = certificate.domain.contains(every_trace()["input"])
    assert inside.any()
    for name, layer in certificate.nodes.items():
        values = every_trace()[name][inside]
        assert (layer.lo <= values).all()
        assert (values <= layer.hi).all()
        for bound, reached, status in zip(
            (layer.lo, layer.hi), (values.min(axis=0), values.max(axis=0)), layer.status
        ):
            claimed = status == Status.EXACT
            assert np.array_equal(bound[claimed], reached[claimed])


@pytest.mark.parametrize("slow", SPEEDS)
def test_certificates(slow: bool, tmp_path) -> None:
    texts = [json.dumps(content).encode() for content in certificates()]
    path = tmp_path / "certificate.json"

    def door(data: bytes) -> None:
        path.write_bytes(data)
        certificate = Certificate.load(path)
        assert certificate.to_json() in certificates()

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.7:
            return mutated_bytes(rng.choice(texts), rng)
        return to_text(mutated_json(rng.choice(certificates()), rng)).encode()

    fuzz("certificate", slow, make, door)


@pytest.mark.parametrize("slow", SPEEDS)
def test_certificates_with_mended_checksum(slow: bool) -> None:
    def make(rng: random.Random) -> object:
        content = mutated_json(rng.choice(certificates()), rng)
        if isinstance(content, dict) and rng.random() < 0.95:
            content.pop("sha256", None)
            text = to_text(content)
            if len(text) == 40_000:
                return json.loads("[" * 900 + "]" * 900)
            canonical = json.dumps(json.loads(text), sort_keys=True)
            content["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
        return content

    def door(content: object) -> None:
        check_certificate(Certificate.from_json(content))

    ends = fuzz("certificate, checksum mended", slow, make, door)
    assert min(ends["accepted"], ends["FileFormatError"], ends["CertificateError"]) > 0


def test_a_domain_of_other_steps_is_not_the_networks() -> None:
    """Found by the test above: every second code only, so "exact" was claimed for too much."""
    certificate = Certificate.from_json(certificates()[0])
    certificate.domain = replace(certificate.domain, step=2)
    with pytest.raises(CertificateError, match="step"):
        certificate.verify(dense())


# --- by hand ----------------------------------------------------------------------------------


def container_of(content: dict, members: dict[str, bytes]) -> bytes:
    content["arrays"] = {n: hashlib.sha256(d).hexdigest() for n, d in members.items()}
    text = json.dumps(content).encode()
    sums = hashlib.sha256(text).hexdigest().encode()
    return zipped({"network.json": text, "network.sha256": sums, **members})


def parts(data: bytes) -> tuple[dict, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members.pop("network.json"))
    members.pop("network.sha256")
    return content, members


HEAD = b"{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


def npy(dtype: bytes, shape: bytes, body: bytes = b"\x00" * 8) -> bytes:
    head = (HEAD % (dtype, shape)).ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


@pytest.mark.parametrize(
    "data",
    [
        npy(b"|O", b"(1,)"),
        npy(b"<i8", b"(1099511627776, 1099511627776)"),
        npy(b"<i8", b"(-1, -1)"),
        npy(b"<i8", b"(2,)"),
        npy(b"<U0", b"(1099511627776,)", b""),
        npy(b"<i8", b"(__import__('os').getpid(),)"),
        npy(b"<i8", b"(" * 3000),
        npy(b"<M8", b"(1,)"),
        npy(b"<i3", b"(1,)"),
        npy(b"|b1", b"(1,)", b"\x02"),
        npy(b"<U1", b"(1,)", b"\xff\xff\xff\xff"),
        b"",
        b"PK\x03\x04",
    ],
)
def test_arrays_that_are_refused(data: bytes) -> None:
    content, members = parts(saved()[0])
    members[min(members)] = data
    with pytest.raises(FileFormatError):
        storage.from_bytes(container_of(content, members))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(input_shape=[2**40]),
        lambda c: c.update(input_shape=[2**14, 2**14]),
        lambda c: c["nodes"][0]["parameters"].update(padding=[[2**30, 2**30], [0, 0]]),
        lambda c: c["nodes"][0]["parameters"].update(padding=2**20, stride=2**20),
        lambda c: c["nodes"][2]["parameters"].update(kernel=[2**31, 2**31]),
        lambda c: c["nodes"][2]["parameters"].update(
            kernel=[2**12, 2**12], padding=[2**12 - 1, 2**12 - 1]
        ),
    ],
)
def test_small_network_files_that_ask_for_much(change) -> None:
    content, members = parts(saved()[1])
    change(content)
    with pytest.raises(FileFormatError):
        storage.from_bytes(container_of(content, members)).ranges()


def test_a_certificate_that_asks_for_much(tmp_path) -> None:
    content = dict(certificates()[0])
    content["witnesses"] = {"shape": [2**40, 2], "values": 0}
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(FileFormatError, match="values"):
        Certificate.from_json(content)


def test_members_that_unfold(tmp_path) -> None:
    content, members = parts(saved()[0])
    members[min(members)] = npy(b"<i8", b"(4194304,)", bytes(2**25))
    text = json.dumps(content).encode()
    sums = hashlib.sha256(text).hexdigest().encode()
    bomb = zipped({"network.json": text, "network.sha256": sums, **members}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**17
    with pytest.raises(FileFormatError, match="compressed"):
        storage.from_bytes(bomb)


def test_devices_and_pipes_are_refused() -> None:
    with pytest.raises(FileFormatError, match="regular file"):
        storage.load("/dev/zero")
    with pytest.raises(FileFormatError, match="regular file"):
        Certificate.load("/dev/zero")


def test_a_slow_run_pushes_a_million_inputs() -> None:
    assert sum(slow for _, slow in INPUTS.values()) >= 10**6
