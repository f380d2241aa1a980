"""Figures say how many samples stand behind them, have units, and no legend on what they show."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refqnn import (
    Dequantizer,
    IntFormat,
    Linear,
    Network,
    Node,
    Requantize,
    SymmetricQuantizer,
    certify,
    observed,
)
from refqnn.demo import Agreement, Demo, LayerBits, Run

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from refqnn import plotting
from refqnn.commands.demo import _sections
from refqnn.plotting import certificate_figure, demo_figure

UINT3 = IntFormat(3, signed=False)
BENCH = Path(__file__).parent.parent / "bench"


def finished(features: int) -> Run:
    rng = np.random.default_rng(0)
    network = Network(
        [
            Node("fc1", Linear(rng.integers(-3, 4, (6, features)))),
            Node("act1", Requantize.from_shift(1, UINT3)),
            Node("fc2", Linear(rng.integers(-3, 4, (3, 6)))),
        ],
        input_shape=(features,),
        input_quantizer=SymmetricQuantizer(0.25, UINT3),
        output_dequantizer=Dequantizer(0.5),
    )
    demo = Demo(
        dataset="made",
        seed=0,
        test_samples=1234,
        encrypted_samples=5,
        accuracy={"float": 0.95, "integer": 0.948, "encrypted": 0.8},
        mismatches=[Agreement("simulated = encrypted", 0, 15)],
        bits=[LayerBits("fc1", 6, 7, 6, 6), LayerBits("fc2", 3, 9, 8, 8)],
        pbs={4: 6},
        seconds={"compile circuit": 1.0, "generate keys": 1.0, "simulate test set": 1.0},
        encrypted_seconds_per_sample=0.1,
        clear_samples_per_second=1e7,
        clear_form="numpy",
        evaluation_key_bytes=10**6,
    )
    X = rng.random((1234, features)).astype(np.float32)
    return Run(demo, network, certify(network), X, rng.integers(0, 3, 1234))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are saved, laid out."""
    figures: list = []

    def keep(fig, path) -> None:
        fig.draw_without_rendering()
        figures.append(fig)

    monkeypatch.setattr(plotting, "save_figure", keep)
    return figures


def check(fig) -> str:
    """The title of the one axes, after what holds of every figure."""
    (axes,) = fig.axes
    (legend,) = fig.legends
    box, inside = legend.get_window_extent(), axes.get_window_extent()
    assert box.y1 <= inside.y0 or box.y0 >= inside.y1
    title = axes.title.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= fig.bbox.width
    assert re.search(r"\(.*\)", axes.get_ylabel())  # a unit
    return axes.get_title()


@pytest.mark.parametrize("features", [2, 4])
def test_the_figure_of_the_demo(features: int, drawn: list) -> None:
    demo_figure(finished(features), "demo.png")
    (fig,) = drawn
    assert "on 1,234 test samples" in check(fig)


def test_the_figure_of_a_certificate(drawn: list) -> None:
    run = finished(4)
    seen = observed(run.network, run.X_test)
    certificate_figure(run.certificate, "widths.png", seen, len(run.X_test))
    certificate_figure(run.certificate, "widths.png")
    assert "observed on 1,234 samples" in check(drawn[0])
    assert "observed" not in check(drawn[1])


def test_few_encrypted_samples_have_an_agreement_and_no_accuracy() -> None:
    demo = finished(4).demo
    sections = _sections(demo)
    accuracy = dict(sections["accuracy on 1,234 test samples"])
    assert set(accuracy) == {"float", "integer"}
    (differ,) = (rows for title, rows in sections.items() if "differ" in title)
    assert dict(differ)["simulated = encrypted"].endswith("0 of 15")
    whole = _sections(replace(demo, encrypted_samples=1234))
    assert "encrypted" in dict(whole["accuracy on 1,234 test samples"])


def test_a_table_of_all_inputs_is_called_one() -> None:
    few = finished(2).network
    assert few.is_a_table
    wide = Network(
        [Node("fc", Linear(np.ones((2, 40), int)))], input_shape=(40,), input_format=UINT3
    )
    assert not wide.is_a_table
    demo = replace(finished(4).demo, clear_form="a table of all inputs")
    assert "clear (a table of all inputs)" in dict(_sections(demo)["cost"])


@pytest.mark.parametrize("bench", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_benches_draw_in_the_one_style(bench: Path) -> None:
    source = bench.read_text(encoding="utf-8")
    for own in ("savefig(", ".legend(", "import Figure", "rcParams"):
        assert own not in source
