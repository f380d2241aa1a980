"""Figures: one style for all, colours that the colour-blind tell apart; needs the `plot` extra.

A figure has units on its axes, and in its titles how many samples and seeds stand behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refqnn.container import as_path, write_atomically
from refqnn.errors import InvalidArgument, MissingExtra, mismatch
from refqnn.formats import signed_bits
from refqnn.network import Network
from refqnn.ops.base import Interval

if TYPE_CHECKING:
    from refqnn.accumulator import Certificate
    from refqnn.demo import LayerBits, Run

__all__ = [
    "COLOURS",
    "STYLE",
    "certificate_figure",
    "certificate_widths",
    "decision_regions",
    "demo_figure",
    "figure",
    "layer_bits",
    "legend_below",
    "save_figure",
]

# Okabe and Ito, "Color Universal Design" (2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.25,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}
"""What matplotlib is told before it makes our axes."""


def figure(width: float = 7.0, height: float = 4.0, columns: int = 1, rows: int = 1) -> Any:
    """A matplotlib figure and its axes, in our style and without a window.  Raises: MissingExtra.

    Returns: (figure, axes), an array of axes where there are several.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("plot", "matplotlib") from None
    with rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots(rows, columns)


def legend_below(axes: Any, columns: int | None = None, **options: Any) -> None:
    """The legend under the axes, where it covers nothing.

    Args:
        columns: of the legend; all labels in a row by default.
        options: of matplotlib's legend.
    """
    handles, labels = axes.get_legend_handles_labels()
    count = len(labels) if columns is None else columns
    options = {"fontsize": 9, "frameon": False, "loc": "outside lower center", **options}
    axes.figure.legend(handles, labels, ncols=max(count, 1), **options)


def save_figure(fig: Any, path: str | Path) -> None:
    """Write a figure in the format that the ending of its name says, whole or not at all.

    Raises: InvalidArgument for an ending that matplotlib has no writer for; OSError.
    """
    kind = as_path(path).suffix.lower().lstrip(".") or "png"
    known = fig.canvas.get_supported_filetypes()
    if kind not in known:
        expected = f"a name that ends in one of {', '.join(known)}"
        raise InvalidArgument(mismatch("path", repr(str(path)), expected))
    write_atomically(path, lambda file: fig.savefig(file, format=kind, dpi=150))


def demo_figure(run: Run, path: str | Path) -> None:
    """Decision regions for two inputs, accumulator bits per layer otherwise; written to `path`."""
    fig, axes = figure()
    name, n = run.demo.dataset, run.demo.test_samples
    if run.network.input_shape == (2,):
        decision_regions(axes, run.network, run.X_test, run.y_test)
        accuracy = run.demo.accuracy["integer"]
        axes.set_title(f"{name}: integer network, accuracy {accuracy:.3f} on {n:,} test samples")
    else:
        layer_bits(axes, run.demo.bits)
        axes.set_title(f"{name}: accumulator widths, observed on {n:,} test samples")
    save_figure(fig, path)


def decision_regions(
    axes: Any, network: Network, X: NDArray[Any], y: NDArray[Any], resolution: int = 300
) -> None:
    """The class of every point of the plane, and the samples X [n, 2] with their labels y [n]."""
    margin = 0.05 * np.ptp(X, axis=0)
    (x_lo, y_lo), (x_hi, y_hi) = X.min(axis=0) - margin, X.max(axis=0) + margin
    across, up = np.linspace(x_lo, x_hi, resolution), np.linspace(y_lo, y_hi, resolution)
    plane = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)  # [resolution**2, 2]
    classes = network.predict(plane).argmax(axis=1).reshape(resolution, resolution)
    n_classes = max(int(classes.max()), int(y.max())) + 1
    levels = np.arange(n_classes + 1) - 0.5
    axes.contourf(across, up, classes, levels=levels, colors=COLOURS[:n_classes], alpha=0.35)
    for label, marker in zip(range(n_classes), "o^sDvP*X"):
        inside = y == label
        axes.scatter(
            *X[inside].T,
            s=14,
            marker=marker,
            color=COLOURS[label],
            edgecolor="white",
            linewidth=0.4,
            label=f"class {label}",
        )
    axes.grid(False)
    legend_below(axes)
    axes.set_xlabel("feature 0 (of the data, no unit)")
    axes.set_ylabel("feature 1 (of the data, no unit)")


def layer_bits(axes: Any, rows: list[LayerBits]) -> None:
    """Grouped bars: certified, observed and span width of each layer's accumulators."""
    groups = {
        "certified, any input": [row.certified for row in rows],
        "observed on the test set": [row.observed for row in rows],
        "certified span": [row.span for row in rows],
    }
    _grouped_bars(axes, [row.layer for row in rows], groups)
    legend_below(axes)


def certificate_figure(
    certificate: Certificate,
    path: str | Path,
    seen: Mapping[str, Interval] | None = None,
    samples: int | None = None,
) -> None:
    """`certificate_widths` as a figure, written to `path`; `samples` is how many were observed."""
    columns = len(certificate.layers)
    fig, axes = figure(width=max(6.4, 2.2 + 1.6 * columns))
    certificate_widths(axes, certificate, seen)
    observed = "" if seen is None or samples is None else f"; observed on {samples:,} samples"
    axes.set_title(f"Accumulators, {certificate.domain}{observed}")
    save_figure(fig, path)


def certificate_widths(
    axes: Any, certificate: Certificate, seen: Mapping[str, Interval] | None = None
) -> None:
    """Grouped bars of two's complement widths per accumulating layer, the loosest bound first.

    By datatype, by weights, by interval rules, as proved, and as observed; the last is no bound.
    A proved width that no known input needs is marked by "≤".

    Args:
        axes: of matplotlib.
        certificate: of a network.
        seen: `observed(network, X)`, or None.
    """
    layers = certificate.layers
    groups = {
        "datatype": [layer.datatype_bits or 0 for layer in layers.values()],
        "weights": [layer.weight_bits or 0 for layer in layers.values()],
        "interval": [layer.interval_bits or 0 for layer in layers.values()],
        "proved": [layer.signed_bits for layer in layers.values()],
    }
    reached = [layer.reached_bits or 0 for layer in layers.values()]
    if seen is not None:
        widths = [signed_bits(*seen[name].ends) for name in layers]
        groups["observed"] = widths
        reached = [max(pair) for pair in zip(reached, widths)]
    proved = groups["proved"]
    marked = [f"{'' if known == bits else '≤'}{bits}" for known, bits in zip(reached, proved)]
    _grouped_bars(axes, list(layers), groups, {"proved": marked})
    legend_below(axes)


def _grouped_bars(
    axes: Any,
    names: list[str],
    groups: Mapping[str, list[int]],
    texts: Mapping[str, list[str]] | None = None,
) -> None:
    """For each name one bar of every group, in bits; `texts` replace the figures above a group."""
    positions, width = np.arange(len(names)), 0.86 / len(groups)
    for i, (label, heights) in enumerate(groups.items()):
        places = positions + (i - (len(groups) - 1) / 2) * width
        drawn = axes.bar(places, heights, 0.92 * width, label=label, color=COLOURS[i])
        axes.bar_label(drawn, (texts or {}).get(label, [str(height) for height in heights]))
    axes.set_xticks(positions, names, parse_math=False)  # names come from files
    axes.grid(False, axis="x")
    axes.set_ylabel("width (bits, two's complement)")
