"""Client and server on files: through the command line, and what does not belong together."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fhe_networks as nets
import numpy as np
import pytest
from fhe_networks import U2

from refqnn import IntFormat, Linear, Network, Node, PowerOfTwoQuantizer, Requantize, fhe
from refqnn.errors import CircuitError, FileFormatError, OutOfRange
from refqnn.fhe import files, memory

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from refqnn.cli import refqnn

X = np.array([[0.0, 0.6, 1.5, 9.0], [-3.0, 1.0, 0.25, 0.75], [1.0, 1.0, 1.0, 1.0]])

# The command line where torch cannot be imported.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["brevitas"] = None
from refqnn.__main__ import main
main()
"""


def network(seed: int = 2) -> Network:
    """4-8-3, ternary: 4-bit sums, 1 bit removed."""
    base = nets.mlp(seed, sizes=(4, 8, 3), largest=1, codes=U2, shift=1)
    quantizer = PowerOfTwoQuantizer(-1, U2, rounding="half_even")
    return Network(base.nodes, input_shape=(4,), input_quantizer=quantizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, its two files, keys, and requests of three samples."""
    path = tmp_path_factory.mktemp("fhe")
    network().save(path / "network")
    np.save(path / "X.npy", X)
    said = run("compile", path / "network", "--client", path / "c", "--server", path / "s")
    assert "evaluation keys" in said
    assert f"next: refqnn fhe client keygen {path / 'c'}" in said
    keys = ("--keys", path / "keys", "--evaluation-keys", path / "evaluation")
    in_a_process("client", "keygen", path / "c", *keys)
    run("client", "encrypt", path / "c", path / "X.npy", path / "asked", "--keys", path / "keys")
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(refqnn, ["fhe", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def in_a_process(*arguments: object) -> str:
    command = [sys.executable, "-c", WITHOUT_TORCH, "fhe", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_two_processes_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    cloud = tmp_path / "cloud"
    cloud.mkdir()
    for name in ("s", "evaluation", "asked"):
        (cloud / name).write_bytes((folder / name).read_bytes())
    said = in_a_process(
        *("server", "run", cloud / "s", cloud / "asked", cloud / "answers"),
        *("--evaluation-keys", cloud / "evaluation"),
    )
    assert "3 samples" in said
    assert "next: refqnn fhe client decrypt" in said
    decrypt = ("client", "decrypt", folder / "c", cloud / "answers", tmp_path / "Y.npy")
    decrypt = (*decrypt, "--requests", folder / "asked")
    said = run(*decrypt, "--keys", folder / "keys")
    assert "int64 of shape (3, 3)" in said
    expected = network().forward(network().quantize_input(X))
    np.testing.assert_array_equal(np.load(tmp_path / "Y.npy"), expected)
    run(*decrypt, "--keys", folder / "keys", "--as", "classes")
    np.testing.assert_array_equal(np.load(tmp_path / "Y.npy"), expected.argmax(axis=1))


@pytest.mark.slow
def test_workers_answer_the_same(folder: Path, tmp_path: Path) -> None:
    served = ("server", "run", folder / "s", folder / "asked", tmp_path / "answers", "--jobs", 2)
    run(*served, "--evaluation-keys", folder / "evaluation")
    decrypt = ("client", "decrypt", folder / "c", tmp_path / "answers", tmp_path / "Y.npy")
    decrypt = (*decrypt, "--requests", folder / "asked")
    run(*decrypt, "--keys", folder / "keys", "--as", "integers")
    expected = network().forward(network().quantize_input(X))
    np.testing.assert_array_equal(np.load(tmp_path / "Y.npy"), expected)


def test_private_keys_are_for_the_owner_alone(folder: Path) -> None:
    assert (folder / "keys").stat().st_mode & 0o777 == 0o600
    again = ("--keys", folder / "keys", "--evaluation-keys", folder / "evaluation")
    before = (folder / "keys").read_bytes()
    assert "--force" in run("client", "keygen", folder / "c", *again, code=2)
    assert (folder / "keys").read_bytes() == before


def test_the_client_file_holds_no_weight_and_no_key(folder: Path) -> None:
    with zipfile.ZipFile(folder / "c") as archive:
        assert set(archive.namelist()) == {
            *("refqnn.json", "doors", "parameters.json"),
            *("read_alone.npy", "output_low.npy", "output_step.npy", "output_top.npy"),
        }
    content, whole = (folder / "c").read_bytes(), (folder / "network").read_bytes()
    found = 0
    for name in ("fc0", "fc1"):
        weight = network()[name].op.weight
        for dtype in (np.int8, np.int16, np.int32, np.int64):
            assert weight.astype(dtype).tobytes() not in content
            found += weight.astype(dtype).tobytes() in whole
    assert found == 2  # the search does find them where they are
    assert len(content) < 20_000 < (folder / "keys").stat().st_size


def test_levels_of_inputs_can_be_left_out(tmp_path: Path) -> None:
    nodes = [
        Node("fc0", Linear([[1, 0], [0, 1], [1, 1]])),
        Node("act0", Requantize([[1], [2], [3]], IntFormat(1, signed=False))),
        Node("fc1", Linear([[1, 2, 3]])),
    ]
    Network(nodes, input_shape=(2,), input_format=U2).save(tmp_path / "network")
    files = ("--client", tmp_path / "c", "--server", tmp_path / "s", "--model", "public")
    sent = "sums of 6 levels that the client sends"
    assert sent in run("compile", tmp_path / "network", *files)
    assert fhe.Client.load(tmp_path / "c").read_alone.tolist() == [0, 1]
    assert sent not in run("compile", tmp_path / "network", *files, "--no-input-levels")
    assert fhe.Client.load(tmp_path / "c").read_alone.tolist() == []


def test_what_does_not_belong_together_is_refused(folder: Path, tmp_path: Path) -> None:
    other = fhe.compile(network(seed=3))
    other.save_client(tmp_path / "c")
    other.save_server(tmp_path / "s")
    asked = ("client", "encrypt", tmp_path / "c", folder / "X.npy", tmp_path / "asked")
    said = run(*asked, "--keys", folder / "keys", code=2)
    assert "circuit: got" in said
    assert "one `refqnn fhe compile`" in said
    assert "refqnn fhe client keygen" in run(*asked, "--keys", tmp_path / "none", code=2)

    answers = tmp_path / "answers"
    served = ("server", "run", tmp_path / "s", folder / "asked", answers)
    assert "circuit" in run(*served, "--evaluation-keys", folder / "evaluation", code=2)
    swapped = ("server", "run", folder / "s", folder / "evaluation", answers)
    assert "requests" in run(*swapped, "--evaluation-keys", folder / "evaluation", code=2)
    assert not answers.exists()

    stranger = fhe.Client.load(folder / "c")
    stranger.save_requests(network().quantize_input(X), tmp_path / "asked")
    served = ("server", "run", folder / "s", tmp_path / "asked", answers)
    for jobs in ((), ("--jobs", 2)):
        said = run(*served, "--evaluation-keys", folder / "evaluation", *jobs, code=2)
        assert "keys: got" in said
        assert "one `refqnn fhe client keygen`" in said


def test_bad_samples_are_refused_before_encryption(folder: Path, tmp_path: Path) -> None:
    client = fhe.Client.load(folder / "c")
    with pytest.raises(OutOfRange):
        client.save_requests([[0, 0, 0, 4]], tmp_path / "asked")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CircuitError, match="no keys"):
        client.read_answers(folder / "asked")


def altered(path: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Truncated at ten places, and with one byte changed at each of forty."""
    content = path.read_bytes()
    damaged = tmp_path / "damaged"
    for end in np.linspace(0, len(content) - 1, 10).astype(int):
        damaged.write_bytes(content[:end])
        yield f"first {end} bytes", damaged
    for place in np.linspace(0, len(content) - 1, 40).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        damaged.write_bytes(flipped)
        yield f"byte {place}", damaged


def content(name: str, path: Path) -> list[object]:
    """What a client's file or a file of requests says."""
    if name == "c":
        client = fhe.Client.load(path)
        return [client.circuit, client.doors.digest, client.quantize(X).tolist()]
    with files.reading(path, "requests") as file:
        return [file[str(i)] for i in range(file.field("samples", int))]


@pytest.mark.parametrize("name", ["c", "asked"])
def test_damage_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    """Each damaged file is refused, or it is read as the whole one is: not every byte matters."""
    whole = content(name, folder / name)
    refused = 0
    for what, damaged in altered(folder / name, tmp_path):
        with suppress(FileFormatError):
            assert content(name, damaged) == whole, what
            continue
        refused += 1
    assert refused > 30


def test_another_version_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "version", lambda package: "2.9.0")
    with pytest.raises(FileFormatError, match=r"concrete-python: got '2\.11.*expected '2\.9\.0'"):
        fhe.Client.load(folder / "c")


def test_memory_is_asked_for_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fhe.Server.load(folder / "s")
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 10**7)
    with pytest.raises(CircuitError, match=r"keys of this circuit take 0\.\d+ GB .* 0\.02 GB are"):
        server.load_evaluation_keys(folder / "evaluation")
    with pytest.raises(CircuitError, match=r"0\.02 GB are available"):
        fhe.Client.load(folder / "c").keygen()
    monkeypatch.setattr(memory, "available_memory", lambda: server.memory_bytes * 3 // 2)
    served = ("server", "run", folder / "s", folder / "asked", folder / "answers", "--jobs", 2)
    said = run(*served, "--evaluation-keys", folder / "evaluation", code=2)
    assert "the keys in 2 workers" in said


@pytest.mark.parametrize("private", [False, True])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, private: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def members() -> Iterator[tuple[str, bytes]]:
        yield "0", os.urandom(10**6)
        # A process that ends here, without a chance to clean up, leaves nothing either.
        assert list(tmp_path.iterdir()) == [path]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write(path, "requests", {}, members(), private=private)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
