"""Files of encrypted inference: what loads is what was saved, or one error of ours."""

from __future__ import annotations

import functools
import json
import random
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, members_of, mutated_bytes, mutated_json, to_text, zipped

pytest.importorskip("concrete.fhe")

from refqnn import IntFormat, Linear, Network, Node, PowerOfTwoQuantizer, fhe

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]


@functools.cache
def saved() -> dict[str, bytes]:
    network = Network(
        [Node("fc", Linear([[1, -1], [2, 1]]))],
        input_shape=(2,),
        input_quantizer=PowerOfTwoQuantizer(0, IntFormat(2, signed=False), "half_even"),
    )
    circuit = fhe.compile(network, model="public")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        circuit.save_client(folder / "client")
        circuit.save_server(folder / "server")
        client = fhe.Client.load(folder / "client")
        client.save_keys(folder / "keys")
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
