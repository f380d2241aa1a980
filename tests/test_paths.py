"""Every door that takes a path refuses what is none, file numbers and bytes too."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import refqnn
from refqnn import Certificate, IntFormat, Linear, Network, Node
from refqnn.accumulator import StagedCertificate
from refqnn.container import naming, write_atomically
from refqnn.dumps import FORMS, read_dump, write_trace
from refqnn.errors import FileFormatError, InvalidArgument, InvalidType

Door = Callable[[Any], object]
NET = Network(
    [Node("fc", Linear([[1, -2]]))], input_shape=(2,), input_format=IntFormat(3, signed=False)
)


@cache
def core_doors() -> dict[str, Door]:
    trace = NET.trace([[7, 0]])
    doors: dict[str, Door] = {
        "refqnn.load": refqnn.load,
        "Network.load": Network.load,
        "Network.save": NET.save,
        "Certificate.load": Certificate.load,
        "Certificate.save": refqnn.certify(NET).save,
        "StagedCertificate.load": StagedCertificate.load,
        "read_dump": read_dump,
    }
    for form in FORMS:
        doors[f"write_trace {form}"] = lambda path, form=form: write_trace(trace, path, form)
    return doors


@cache
def fhe_doors() -> dict[str, Door]:
    pytest.importorskip("concrete")
    from refqnn import fhe

    circuit = fhe.compile(NET, model="public")
    return {
        "Client.load": fhe.Client.load,
        "Server.load": fhe.Server.load,
        "save_client": circuit.save_client,
        "save_server": circuit.save_server,
        "FHEModelDev": fhe.FHEModelDev,
        "FHEModelClient": fhe.FHEModelClient,
        "FHEModelServer": fhe.FHEModelServer,
    }


@pytest.mark.parametrize("doors", [core_doors, fhe_doors])
@pytest.mark.parametrize("path", [None, 0, 3.5, b"net.npz", ["net.npz"], "net\0.npz"])
def test_what_is_no_path_is_an_error_of_ours(
    path: object, doors: Callable[[], dict[str, Door]]
) -> None:
    expected = InvalidArgument if isinstance(path, str) else InvalidType
    for door in doors().values():
        with pytest.raises(expected, match=r"path(_dir)?: got"):
            door(path)


def test_an_error_of_the_system_names_the_path(tmp_path: Path) -> None:
    """Not the temporary file that would have been renamed to it."""
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "net.npz"
    with pytest.raises(NotADirectoryError) as raised:
        write_atomically(inside, lambda file: file.write(b""))
    assert raised.value.filename == str(inside)
    with pytest.raises(FileNotFoundError) as raised, naming(inside):
        (tmp_path / "missing").read_bytes()
    assert raised.value.filename == str(inside)


@pytest.mark.parametrize("door", ["from_onnx", "from_tflite"])
def test_a_file_of_another_kind_is_named_for_what_it_is(door: str, tmp_path: Path) -> None:
    if door == "from_onnx":
        pytest.importorskip("onnx")
    (tmp_path / "model.pt").write_bytes(b"\x80\x02} weights")
    NET.save(tmp_path / "net")
    for name, kind in (("model.pt", "PyTorch.*from_brevitas"), ("net", "a network file of ours")):
        with pytest.raises(FileFormatError, match=rf"{name}: not an? .* file, but .*{kind}"):
            getattr(refqnn, door)(tmp_path / name)
