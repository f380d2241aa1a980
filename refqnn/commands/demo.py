"""`refqnn demo`: the command, and its table; refqnn.demo walks the road."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from refqnn import extras, plotting
from refqnn.commands import console
from refqnn.demo import DATASETS, Demo, run


@click.command(
    cls=console.Command, short_help="Walk the whole road on real data; start here, with --quick."
)
@click.option("--dataset", type=click.Choice(DATASETS), default="iris", help="What to train on.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Test samples that run encrypted.  [default: 5, or 1 with --quick]",
)
@click.option(
    "--quick", is_flag=True, help="A narrow network and few epochs: every stage in half a minute."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    help="Of the split, the initial weights and the shuffling.",
)
@console.json_option
@console.save_option(
    *("--plot", "plot_file"),
    "Write a figure to FILE: decision regions of 2-D data, else bits per layer.",
    *console.FIGURES,
)
@console.save_option("--save", "network_file", "Save the integer network to FILE.")
def demo(
    dataset: str,
    samples: int | None,
    quick: bool,
    seed: int,
    json_file: Path | None,
    plot_file: Path | None,
    network_file: Path | None,
) -> None:
    """Train, convert, prove, compile and run encrypted; compare every integer.

    Exits with 1 if any integer differs between two stages.
    """
    extras.require("train", "fhe", *(["plot"] if plot_file is not None else []))
    with console.Bars() as bars:
        finished = run(dataset, bars, seed=seed, encrypted_samples=samples, quick=quick)
    result = finished.demo
    _print_demo(result)
    console.print_json(json_file, result.to_json())
    console.written(network_file, finished.network.save)
    console.written(plot_file, lambda path: plotting.demo_figure(finished, path))
    if not result.exact:
        raise SystemExit(console.DIFFERENT)


def _print_demo(result: Demo) -> None:
    table = Table(
        title=f"{result.dataset}, seed {result.seed}",
        title_justify="left",
        title_style="bold",
        show_header=False,
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for title, rows in _sections(result).items():
        table.add_row(f"[bold]{title}", "")
        for label, value in rows:
            table.add_row(f"  {label}", value)
        table.add_section()
    console.print_wide(table)


def _sections(result: Demo) -> dict[str, list[tuple[str, str]]]:
    few, all_ = result.encrypted_samples, result.test_samples
    by_width = ", ".join(f"{count} x {bits}" for bits, count in sorted(result.pbs.items()))
    seconds = result.seconds
    return {
        f"accuracy on {all_:,} test samples": [
            (stage, f"{value:.3f}")
            for stage, value in result.accuracy.items()
            if stage != "encrypted" or few == all_  # of a few samples it says nothing
        ],
        f"integers that differ, encrypted on {few:,} of these samples": [
            (agreement.stage, f"{_verdict(agreement.differing)} of {agreement.total:,}")
            for agreement in result.mismatches
        ],
        "accumulator bits": [
            (
                f"{row.layer} ({row.neurons})",
                f"{row.certified} certified, {row.observed} observed, {row.span} span",
            )
            for row in result.bits
        ],
        "cost": [
            ("table lookups (PBS) per sample", f"{sum(result.pbs.values())}"),
            ("  number x input bits", by_width or "none"),
            ("evaluation keys", f"{result.evaluation_key_bytes / 1e6:.1f} MB"),
            ("compile", f"{seconds['compile circuit']:.2f} s"),
            ("key generation", f"{seconds['generate keys']:.2f} s"),
            ("encrypted", f"{result.encrypted_seconds_per_sample:.2f} s/sample"),
            ("simulated", f"{all_ / seconds['simulate test set']:,.0f} samples/s"),
            (f"clear ({result.clear_form})", f"{result.clear_samples_per_second:,.0f} samples/s"),
        ],
    }


def _verdict(differing: int) -> str:
    return f"[green]{differing}" if differing == 0 else f"[bold red]{differing:,}"
