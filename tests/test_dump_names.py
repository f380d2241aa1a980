"""Traces of networks whose names mean something to archives, folders or C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refqnn import IntFormat, Linear, Network, Node
from refqnn.dumps import read_dump, write_trace
from refqnn.errors import InvalidArgument

NAMES = ["x", "x.npy", "x.npy.npy", "a/../b", "..", "b\\c", " ", "x.txt", "%2F", "é", "\n", "x\0y"]


def chain(*names: str) -> Network:
    nodes = [Node(name, Linear([[i + 2]])) for i, name in enumerate(names)]
    return Network(nodes, input_shape=(1,), input_format=IntFormat(2, signed=False))


@pytest.mark.parametrize("form", ["npz", "npy", "txt"])
def test_what_is_written_is_read_or_was_refused(tmp_path: Path, form: str) -> None:
    for names in (NAMES, NAMES[:-1]):
        trace = chain(*names).trace([[1], [3]])
        path = tmp_path / f"{len(names)}.npz"
        if form == "npz" and "x\0y" in names:
            with pytest.raises(InvalidArgument, match=r"x\\x00y"):
                write_trace(trace, path, form)
            assert not path.exists()
            continue
        write_trace(trace, path, form)
        dump = read_dump(path)
        assert set(dump) == set(trace)
        for name, values in trace.items():
            np.testing.assert_array_equal(dump[name], values)


@pytest.mark.parametrize("form", ["npy", "txt", "c-header"])
@pytest.mark.parametrize("name", ["n" * 254, "ü" * 50])
def test_a_name_too_long_for_a_file_is_refused_before_any_is_written(
    tmp_path: Path, form: str, name: str
) -> None:
    trace = chain("fc", name).trace([[1]])
    with pytest.raises(InvalidArgument, match="at most 255"):
        write_trace(trace, tmp_path / "folder", form)
    assert not (tmp_path / "folder").exists()
    write_trace(trace, tmp_path / "trace.npz")
    assert set(read_dump(tmp_path / "trace.npz")) == {"input", "fc", name}


@pytest.mark.parametrize(("form", "ending"), [("npy", 4), ("txt", 4), ("c-header", 2)])
def test_the_longest_name_is_written(tmp_path: Path, form: str, ending: int) -> None:
    name = "n" * (255 - ending)
    write_trace(chain(name).trace([[1]]), tmp_path, form)
    assert any(len(file.name) == 255 for file in tmp_path.iterdir())
