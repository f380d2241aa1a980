"""Files and bytes that lie: refused with one error of ours, never computed with, never lost."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U2

from refqnn import Network, Node, PowerOfTwoQuantizer, fhe, load
from refqnn.container import array_to_npy, npy_to_array
from refqnn.errors import CircuitError, FileFormatError, InvalidArgument, InvalidType, RefqnnError
from refqnn.fhe import files

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from refqnn.cli import refqnn

CODES = np.array([[3, 0, 1, 2], [0, 1, 2, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves of a network, keys, requests and their answers."""
    path = tmp_path_factory.mktemp("files")
    base = nets.mlp(2, sizes=(4, 4, 3), largest=1, codes=U2, shift=1)
    quantizer = PowerOfTwoQuantizer(-1, U2, rounding="half_even")
    network = Network(base.nodes, input_shape=(4,), input_quantizer=quantizer)
    network.save(path / "network")
    circuit = fhe.compile(network)
    circuit.save_client(path / "c")
    circuit.save_server(path / "s")
    client, server = fhe.Client.load(path / "c"), fhe.Server.load(path / "s")
    client.save_keys(path / "keys")
    client.save_evaluation_keys(path / "evaluation")
    client.save_requests(CODES, path / "asked")
    server.load_evaluation_keys(path / "evaluation")
    server.answer(path / "asked", path / "answers")
    return path


def client(folder: Path) -> fhe.Client:
    loaded = fhe.Client.load(folder / "c")
    loaded.load_keys(folder / "keys")
    return loaded


def server(folder: Path) -> fhe.Server:
    loaded = fhe.Server.load(folder / "s")
    loaded.load_evaluation_keys(folder / "evaluation")
    return loaded


def altered(source: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A file with one member changed; the archive is whole."""
    kind = json.loads(members(source)["refqnn.json"])["format"].removeprefix("refqnn ")
    content = {**members(source)}
    header = json.loads(content.pop("refqnn.json"))
    if name == "refqnn.json":
        header = json.loads(change(json.dumps(header).encode()))
    else:
        content[name] = change(content[name])
    files.write(target, kind, header, content.items())
    return target


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_field(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda header: json.dumps({**json.loads(header), name: value}).encode()


# --- Concrete's messages ----------------------------------------------------------------------


def lies(message: bytes) -> dict[str, bytes]:
    """A segment size, a segment more, a payload of two pieces, and so on."""

    def at(place: int, value: int) -> bytes:
        return message[:place] + struct.pack("<I", value) + message[place + 4 :]

    return {
        "second segment": at(8, 1577058307),
        "first segment": at(4, 2**32 - 1),
        "segments": at(0, 2**31),
        "payload's pieces": at(52, 2 << 3 | 6),
        "payload's length": at(60, 2),
        "cut": message[:-8],
        "empty": b"",
        "trailing": message + bytes(8),
        "last word": message[:-1] + bytes([message[-1] ^ 1]),
    }


def test_messages_that_lie_never_reach_concrete(folder: Path, tmp_path: Path) -> None:
    ours, theirs = client(folder), server(folder)
    request, answer = members(folder / "asked")["0"], members(folder / "answers")["0"]
    keys = members(folder / "evaluation")["keys"]
    for what, bad in lies(request).items():
        with pytest.raises(FileFormatError, match="request"):
            theirs.run(bad)
        asked = altered(folder / "asked", tmp_path / "asked", "0", lambda _, bad=bad: bad)
        with pytest.raises(FileFormatError, match="request"):
            theirs.answer(asked, tmp_path / "none")
        assert not (tmp_path / "none").exists(), what
    for bad in lies(answer).values():
        with pytest.raises(FileFormatError, match="answer"):
            ours.decrypt(bad)
        answers = altered(folder / "answers", tmp_path / "answers", "1", lambda _, bad=bad: bad)
        with pytest.raises(FileFormatError, match="answer"):
            ours.read_answers(answers, requests=folder / "asked")
    for what, bad in lies(keys).items():
        if what != "last word":  # of a key: any value is one
            with pytest.raises(FileFormatError, match="keys"):
                theirs.load_keys(bad)
    np.testing.assert_array_equal(ours.decrypt(theirs.run(request)), ours.decrypt(answer))


def test_keys_of_other_parameters_are_refused(folder: Path) -> None:
    small = nets.mlp(2, sizes=(2, 2, 2), largest=1, codes=U2, shift=1)
    other = fhe.compile(small, compress_keys=False, **nets.LOOSE)
    other.keygen()
    evaluation = bytes(other._concrete.client.evaluation_keys.serialize())
    with pytest.raises(FileFormatError, match="keys"):
        server(folder).load_keys(evaluation)


@pytest.mark.parametrize("value", [0, "x", None, [1]])
def test_what_is_no_bytes(folder: Path, value: object) -> None:
    for use in (client(folder).decrypt, server(folder).run, server(folder).load_keys):
        with pytest.raises(InvalidType, match="expected bytes"):
            use(value)
    if value is not None:
        with pytest.raises(InvalidType, match="expected what read_keys returns"):
            server(folder).run(members(folder / "asked")["0"], value)


# --- the client's file ------------------------------------------------------------------------


def raised(content: bytes) -> bytes:
    return array_to_npy(npy_to_array(content) + 100)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("output_low.npy", raised),
        ("output_step.npy", raised),
        ("output_low.npy", lambda content: array_to_npy(np.array(["x", "y", "z"]))),
        ("output_low.npy", lambda content: array_to_npy(np.full(3, np.nan))),
        ("read_alone.npy", lambda content: array_to_npy(np.array([4]))),
        ("output_top.npy", lambda content: array_to_npy(npy_to_array(content) - 1)),
        ("refqnn.json", with_field("input_step", 0)),
        ("refqnn.json", with_field("input_low", -1)),
        ("refqnn.json", with_field("program", "0" * 32)),
        ("refqnn.json", with_field("circuit", "0" * 32)),
        ("parameters.json", lambda content: b"{}"),
        ("parameters.json", lambda content: b"[" * 100_000),
        ("parameters.json", lambda content: content.replace(b"2048", b"2049")),
        ("parameters.json", lambda content: content.replace(b'"seed"', b'"none"')),
    ],
)
def test_a_client_file_that_says_something_else_is_refused(
    folder: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    assert change(members(folder / "c")[name]) != members(folder / "c")[name]
    with pytest.raises(FileFormatError):
        fhe.Client.load(altered(folder / "c", tmp_path / "c", name, change))


def test_other_doors_are_another_circuit(folder: Path, tmp_path: Path) -> None:
    network = Network(
        [Node("doors", fhe.Client.load(folder / "c").doors.nodes[0].op)],
        input_shape=(4,),
        input_quantizer=PowerOfTwoQuantizer(0, U2, rounding="half_even"),
    )
    network.save(tmp_path / "doors")
    doors = (tmp_path / "doors").read_bytes()
    with pytest.raises(FileFormatError, match="circuit"):
        fhe.Client.load(altered(folder / "c", tmp_path / "c", "doors", lambda _: doors))


def test_a_server_file_that_was_altered_is_refused(folder: Path, tmp_path: Path) -> None:
    def flipped(content: bytes) -> bytes:
        return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]

    for name in ("sharedlib.so", "compilation_feedback.json", "program_info.concrete.params.json"):
        with pytest.raises(FileFormatError, match="circuit"):
            fhe.Server.load(altered(folder / "s", tmp_path / "s", name, flipped))
    change = with_field("digest", "0" * 64)
    with pytest.raises(FileFormatError, match="circuit"):
        fhe.Server.load(altered(folder / "s", tmp_path / "s", "refqnn.json", change))


def test_the_client_file_confirms_no_guess(folder: Path, tmp_path: Path) -> None:
    """Two compilations of one network give files that share no digest."""
    network = load(folder / "network")
    fhe.compile(network).save_client(tmp_path / "again")
    one, two = members(folder / "c"), members(tmp_path / "again")
    first, second = json.loads(one.pop("refqnn.json")), json.loads(two.pop("refqnn.json"))
    assert one == two  # doors, ranges, parameters: what remains
    assert {name for name in first if first[name] == second[name]} == {
        *("format", "version", "concrete-python", "refqnn", "input_low", "input_step")
    }
    assert network.digest.encode() not in (folder / "c").read_bytes()


# --- what belongs together --------------------------------------------------------------------


def test_answers_to_other_requests_are_refused(folder: Path, tmp_path: Path) -> None:
    ours = client(folder)
    with pytest.raises(InvalidArgument, match="requests: got None"):
        ours.read_answers(folder / "answers")
    got = ours.read_answers(folder / "answers", requests=folder / "asked")
    np.testing.assert_array_equal(got, load(folder / "network").forward(CODES))
    ours.save_requests(CODES[::-1], tmp_path / "asked")
    for requests in (None, tmp_path / "asked"):
        with pytest.raises(FileFormatError, match=r"nonce.*other requests"):
            ours.read_answers(folder / "answers", requests=requests)


def test_other_keys_give_an_error_not_numbers(folder: Path) -> None:
    stranger = fhe.Client.load(folder / "c")
    stranger.keygen()
    theirs = server(folder)
    said = []
    for _ in range(20):  # by chance all three outputs may be in their ranges
        answer = theirs.run(stranger.encrypt(CODES[0]))
        with suppress(CircuitError):
            stranger.decrypt(answer)
            continue
        said.append(answer)
    assert len(said) > 10


def test_headers_that_count_wrongly(folder: Path, tmp_path: Path) -> None:
    ours, theirs = client(folder), server(folder)
    for n in (-1, 1, 3, 2**70):
        asked = altered(
            folder / "asked", tmp_path / "asked", "refqnn.json", with_field("samples", n)
        )
        with pytest.raises(FileFormatError, match="samples"):
            theirs.answer(asked, tmp_path / "answers")
    answers = members(folder / "answers")
    header = json.loads(answers.pop("refqnn.json"))
    for names in ("", "0", "010"):  # whole files, but of fewer answers than requests, or more
        found = [(str(i), answers[name]) for i, name in enumerate(names)]
        files.write(tmp_path / "answers", "answers", {**header, "samples": len(names)}, found)
        with pytest.raises(FileFormatError, match=r"samples: got \d, expected 2"):
            ours.read_answers(tmp_path / "answers", requests=folder / "asked")


READ = {
    "c": fhe.Client.load,
    "s": fhe.Server.load,
    "keys": lambda path: fhe.Client.load(path.with_name("c")).load_keys(path),
    "evaluation": lambda path: fhe.Server.load(path.with_name("s")).load_evaluation_keys(path),
    "asked": lambda path: server(path.parent).answer(path, path.with_name("none")),
    "answers": lambda path: client(path.parent).read_answers(
        path, requests=path.with_name("asked")
    ),
}


@pytest.mark.parametrize("name", READ)
def test_nothing_lies_around_or_beside_the_members(folder: Path, tmp_path: Path, name: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    whole, changed = (folder / name).read_bytes(), tmp_path / name
    READ[name](changed)
    changed.unlink()
    for content in (whole + b"x", whole + bytes(8), b"x" + whole, whole + whole):
        changed.write_bytes(content)
        with pytest.raises(FileFormatError, match="bytes before its members, or after"):
            READ[name](changed)
    changed.write_bytes(whole)
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr("more", b"x")
    with pytest.raises(FileFormatError, match="its members are not"):
        READ[name](changed)


# --- files that must not be lost --------------------------------------------------------------


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(refqnn, ["fhe", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.output


def test_private_keys_are_never_overwritten(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes((folder / "keys").read_bytes())
    c, X = tmp_path / "c", tmp_path / "X.npy"
    c.write_bytes((folder / "c").read_bytes())
    np.save(X, CODES)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused("client", "encrypt", c, X, keys, "--keys", keys)
    refused("client", "encrypt", c, X, keys, "--keys", folder / "keys")
    new = tmp_path / "new"
    refused("client", "keygen", c, "--keys", new, "--evaluation-keys", new)
    refused("client", "keygen", c, "--keys", new, "--evaluation-keys", keys)
    refused("client", "keygen", c, "--keys", new, "--evaluation-keys", tmp_path / "x" / ".." / "c")
    asked = ("--requests", folder / "asked")
    refused("client", "decrypt", c, folder / "answers", keys, "--keys", folder / "keys", *asked)
    served = ("server", "run", folder / "s", folder / "asked", keys)
    refused(*served, "--evaluation-keys", folder / "evaluation")
    refused("compile", folder / "network", "--client", new, "--server", new)
    refused("compile", folder / "network", "--client", new, "--server", keys)
    with pytest.raises(InvalidArgument, match="private keys"):
        client(folder).save_keys(keys)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    made = ("client", "keygen", c, "--keys", keys, "--evaluation-keys", tmp_path / "e", "--force")
    assert CliRunner().invoke(refqnn, ["fhe", *map(str, made)]).exit_code == 0
    assert (tmp_path / "keys.1").read_bytes() == before[keys] != keys.read_bytes()


def test_every_door_of_bytes_raises_errors_of_ours(folder: Path) -> None:
    ours, theirs = client(folder), server(folder)
    for use in (ours.decrypt, theirs.run, theirs.load_keys):
        for bad in (b"", b"x", bytes(16), bytes(320), bytes(2**16), os.urandom(333)):
            with pytest.raises(RefqnnError):
                use(bad)


def test_what_a_callback_raises_is_its_own(folder: Path, tmp_path: Path) -> None:
    def fail(detail: str) -> None:
        raise ValueError(detail)

    with pytest.raises(ValueError, match=r"^sample 0$"):
        client(folder).read_answers(folder / "answers", fail, requests=folder / "asked")
    with pytest.raises(ValueError, match=r"^sample 0$"):
        server(folder).answer(folder / "asked", tmp_path / "answers", fail)
    assert not list(tmp_path.iterdir())
