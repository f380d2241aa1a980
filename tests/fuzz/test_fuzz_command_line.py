"""Arguments of the command line, at random: an exit code of ours and never a traceback."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, mutated_bytes

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from refqnn import IntFormat, Linear, Network, Node, Requantize
from refqnn.cli import refqnn

SPEEDS = [False, pytest.param(True, marks=pytest.mark.slow)]

WORDS = [
    *("--bits", "--unsigned", "--layer", "--method", "--budget", "--json", "--plot", "--inputs"),
    *("--flavour", "--input", "--output", "--report", "--operation", "--profile", "--help", "-h"),
    *("--nonsense", "--", "-", "", "auto", "exhaustive", "qcdq", "integer", "fc1", "nowhere"),
    *("0", "1", "6", "64", "65", "-1", "1e9", "nan", "0.01", "\udcff", "é", "%s", "[bold]x[/]"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    network = Network(
        [
            Node("fc1", Linear([[3, -2]])),
            Node("act1", Requantize.from_shift(1, IntFormat(2, signed=False))),
        ],
        input_shape=(2,),
        input_format=IntFormat(3, signed=False),
    )
    network.save(tmp_path / "net")
    whole = (tmp_path / "net").read_bytes()
    np.save(tmp_path / "codes.npy", np.array([[1, 2]]))
    np.save(tmp_path / "wrong.npy", np.array(["x"]))
    (tmp_path / "damaged").write_bytes(mutated_bytes(whole, random.Random(0)))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"\xff{}")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ["net", "codes.npy", "wrong.npy", "damaged", "empty", "text", "folder", "missing"]
FILES += ["new/x", "out.onnx", "out", "out.png", "a" * 300]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("slow", SPEEDS)
def test_arguments(slow: bool, folder: Path) -> None:
    whole = (folder / "net").read_bytes()

    def make(rng: random.Random) -> list[str]:
        command = rng.choice(["inspect", "certify", "certify", "convert", "diff", "verify", "x"])
        words = ["vectors", "verify"] if command == "verify" else [command]
        words += [rng.choice(rng.choice((FILES, WORDS))) for _ in range(rng.randrange(6))]
        if rng.random() < 0.5:
            words.insert(1 + (command == "verify"), "net")
        return words if rng.random() < 0.9 else words[::-1]

    def door(arguments: list[str]) -> None:
        result = CliRunner().invoke(refqnn, [*arguments])
        assert result.exit_code in (0, 1, 2, 3), result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
        if (folder / "net").read_bytes() != whole:  # a target of its own choice
            (folder / "net").write_bytes(whole)

    fuzz("command line", slow, make, door)


def test_an_error_says_what_to_do_next(folder: Path) -> None:
    for arguments, hint in (
        (["certify", "net", "--json", "nowhere/x"], "make it first"),
        (["certify", "net", "--plot", "x.txt"], ".png"),
        (["inspect", "missing"], "missing"),
    ):
        result = CliRunner().invoke(refqnn, arguments)
        assert result.exit_code == 2
        assert hint in result.output
