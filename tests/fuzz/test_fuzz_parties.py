"""Files of encrypted inference: what loads is what was saved, or one error of ours."""

from __future__ import annotations

import functools
import json
import random
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fuzzing import INPUTS, fuzz, members_of, mutated_bytes, mutated_json, to_text, zipped

pytest.importorskip("concrete.fhe")

from concrete.compiler import ProgramInfo

from refqnn import IntFormat, Linear, Network, Node, PowerOfTwoQuantizer, Requantize, fhe
from refqnn.errors import RefqnnError
from refqnn.fhe.messages import Parameters

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]
CIRCUITS = ["sums", pytest.param("lookups", marks=pytest.mark.slow)]

INPUTS |= {
    "encryption parameters": (60, 20_000),
    "message to a server": (100, 30_000),
    "message to a client": (100, 30_000),
    "evaluation keys": (20, 2_000),
    "requests, checksums mended": (30, 10_000),
    "answers, checksums mended": (30, 10_000),
}


@functools.cache
def compiled(kind: str = "sums") -> fhe.Circuit:
    """Two outputs from -3 to 9, by sums alone or behind two lookups."""
    nodes = [Node("fc", Linear([[1, -1], [2, 1]]))]
    if kind == "lookups":
        codes = Requantize([[1, 2, 3]], IntFormat(2, signed=False))
        nodes = [Node("fc0", Linear([[1, 0], [0, 1]])), Node("act", codes), *nodes]
    quantizer = PowerOfTwoQuantizer(0, IntFormat(2, signed=False), "half_even")
    network = Network(nodes, input_shape=(2,), input_quantizer=quantizer)
    model = "public" if kind == "sums" else "secret"
    return fhe.compile(network, model=model, global_p_error=2.0**-20)


@functools.cache
def saved(kind: str = "sums") -> dict[str, bytes]:
    circuit = compiled(kind)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        circuit.save_client(folder / "client")
        circuit.save_server(folder / "server")
        client = fhe.Client.load(folder / "client")
        client.save_keys(folder / "keys")
        client.save_evaluation_keys(folder / "evaluation")
        client.save_requests([[3, 1], [0, 2]], folder / "requests")
        server = fhe.Server.load(folder / "server")
        server.load_evaluation_keys(folder / "evaluation")
        server.answer(folder / "requests", folder / "answers")
        assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o600
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def mended_parts(data: bytes, rng: random.Random) -> bytes:
    """Header or members changed, and the zip's own checksums right again."""
    members = members_of(data)
    if rng.random() < 0.6:
        header = mutated_json(json.loads(members["refqnn.json"]), rng)
        members["refqnn.json"] = to_text(header).encode("utf-8", "surrogatepass")
    else:
        name = rng.choice([name for name in members if name != "refqnn.json"])
        members[name] = mutated_bytes(members[name], rng)
    if rng.random() < 0.1:
        del members[rng.choice(sorted(members))]
    return zipped(members)


@pytest.mark.parametrize("slow", SPEEDS)
def test_client_files(slow: bool, tmp_path: Path) -> None:
    path = tmp_path / "client"
    path.write_bytes(saved()["client"])
    whole = fhe.Client.load(path)

    def door(data: bytes) -> None:
        path.write_bytes(data)
        client = fhe.Client.load(path)
        assert client.circuit == whole.circuit
        assert client.doors.digest == whole.doors.digest

    fuzz("client file", slow, lambda rng: mutated_bytes(saved()["client"], rng), door)


@pytest.mark.parametrize("slow", SPEEDS)
def test_client_files_with_mended_checksums(slow: bool, tmp_path: Path) -> None:
    path = tmp_path / "client"

    def door(data: bytes) -> None:
        path.write_bytes(data)
        client = fhe.Client.load(path)
        assert isinstance(client.circuit, str)
        client.quantize(np.ones((1, *client.doors.input_shape)))

    def make(rng: random.Random) -> bytes:
        return mended_parts(saved()["client"], rng)

    fuzz("client file, checksums mended", slow, make, door)


@functools.cache
def parties(kind: str = "sums") -> tuple[fhe.Client, fhe.Server]:
    with tempfile.TemporaryDirectory() as name:
        for file, data in saved(kind).items():
            Path(name, file).write_bytes(data)
        client, server = fhe.Client.load(f"{name}/client"), fhe.Server.load(f"{name}/server")
        client.load_keys(f"{name}/keys")
        server.load_evaluation_keys(f"{name}/evaluation")
    return client, server


@pytest.mark.parametrize("slow", SPEEDS)
def test_encryption_parameters(slow: bool) -> None:
    """With sizes that belong to other keys, Concrete would write beyond its memory."""
    content = json.loads(members_of(saved()["client"])["parameters.json"])
    names = (Parameters.require_request, Parameters.require_answer)

    def door(data: bytes) -> None:
        parameters = Parameters(data)
        assert parameters.key_sizes.resident >= 0
        for require in (*names, Parameters.require_evaluation_keys, Parameters.require_keys):
            with pytest.raises(RefqnnError):
                require(parameters, bytes(320))

    def make(rng: random.Random) -> bytes:
        changed = to_text(mutated_json(content, rng, 1 if rng.random() < 0.8 else 3))
        data = changed.encode("utf-8", "surrogatepass")
        with suppress(Exception):  # as Concrete would write it, where it can
            return bytes(ProgramInfo.deserialize(data).serialize())
        return data

    fuzz("encryption parameters", slow, make, door)


@pytest.mark.parametrize("slow", SPEEDS)
@pytest.mark.parametrize("to", ["server", "client"])
@pytest.mark.parametrize("circuit", CIRCUITS)
def test_messages(slow: bool, to: str, circuit: str) -> None:
    """What is accepted differs in the payload alone: it is computed with, and gives numbers."""
    client, server = parties(circuit)
    whole = members_of(saved(circuit)["requests" if to == "server" else "answers"])["0"]
    door = server.run if to == "server" else client.decrypt
    fuzz(f"message to a {to}", slow, lambda rng: mutated_bytes(whole, rng), door)


@pytest.mark.parametrize("slow", SPEEDS)
def test_evaluation_keys(slow: bool) -> None:
    """Of a circuit with lookups: megabytes, of which the form is looked at and the rest is not."""
    circuit = compiled("lookups")
    circuit.keygen()
    parameters = Parameters(circuit._parameters)
    keys = bytes(circuit._concrete.client.evaluation_keys.serialize())

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return mutated_bytes(keys, rng)
        return mutated_bytes(keys[:512], rng) + keys[512:]

    fuzz("evaluation keys", slow, make, parameters.require_evaluation_keys)


@pytest.mark.parametrize("slow", SPEEDS)
@pytest.mark.parametrize("kind", ["requests", "answers"])
@pytest.mark.parametrize("circuit", CIRCUITS)
def test_ciphertexts_inside_valid_archives(
    slow: bool, kind: str, circuit: str, tmp_path: Path
) -> None:
    client, server = parties(circuit)
    file, asked = tmp_path / kind, tmp_path / "asked"
    whole = saved(circuit)
    asked.write_bytes(whole["requests"])

    def door(data: bytes) -> None:
        file.write_bytes(data)
        if kind == "requests":
            server.answer(file, tmp_path / "out")
        else:
            outputs = client.read_answers(file, requests=asked)
            assert outputs.shape[1:] == (2,)
            assert ((outputs >= -3) & (outputs <= 9)).all()

    fuzz(f"{kind}, checksums mended", slow, lambda rng: mended_parts(whole[kind], rng), door)


def test_files_without_keys_hold_none() -> None:
    """No part of the secret key file is in the client's or the server's."""
    keys = members_of(saved()["keys"])["keys"]
    pieces = [keys[at : at + 256] for at in range(0, len(keys) - 256, 256)]
    secrets = [piece for piece in pieces if len(set(piece)) > 1]
    assert secrets
    for kind in ("client", "server"):
        text = b"".join(members_of(saved()[kind]).values())
        assert not [piece for piece in secrets if piece in text]
        assert not [name for name in members_of(saved()[kind]) if "key" in name.lower()]
