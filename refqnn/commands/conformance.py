"""`refqnn conform` and `refqnn vectors`: the test vectors, asked of programs or as files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refqnn.commands import console
from refqnn.commands.reading import Reader, reads
from refqnn.container import write_atomically

if TYPE_CHECKING:
    from refqnn.conformance import Report

_REPORT = console.save_option("--report", "report_file", "Write verdicts as JSON lines.")


@click.command(
    cls=console.Command,
    context_settings={"ignore_unknown_options": True},
    short_help="Ask the test vectors of a program.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    help="Time limit of one answer.",
)
@click.option("--operation", "operations", multiple=True, help="Ask these operations alone.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    help="Of vectors with a choice (half_up, ...) ask these alone.",
)
@click.option(
    "--vectors",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Ask those that refqnn vectors from has written.",
)
@_REPORT
@console.save_option("--transcript", "transcript", "Write every line that the program was sent.")
@console.json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def conform(
    command: tuple[str, ...],
    seconds: float,
    operations: tuple[str, ...],
    profiles: tuple[str, ...],
    folder: Path | None,
    report_file: Path | None,
    transcript: Path | None,
    json_file: Path | None,
) -> None:
    """Ask every test vector of a program: refqnn conform -- ./program args.

    The program speaks JSON lines on its standard input and output (see vectors/README.md).
    Exits with 1 if an answer is wrong, with 2 if the program cannot be talked to.

    With --transcript, "reproduce:" replays the whole conversation up to a wrong answer.
    """
    from refqnn import conformance

    report = conformance.conform(
        command,
        operations=operations or None,
        profiles=profiles or None,
        seconds=seconds,
        transcript=transcript,
        folder=folder,
    )
    _finish(report, report_file, json_file)


@click.group(cls=console.Group, short_help="The test vectors: made, asked and judged; your own.")
def vectors() -> None:
    """The test vectors: generate, emit questions, verify answers, start a program; your own."""


@vectors.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if files are out of date.")
def generate(check: bool) -> None:
    """Write the vector files anew, deterministically."""
    from refqnn import conformance

    changed = conformance.stale() if check else conformance.generate()  # type: ignore[operator]
    console.show(*changed, f"{len(changed)} files {'are out of date' if check else 'changed'}")
    if check and changed:
        console.show("mend with: refqnn vectors generate")
        raise SystemExit(console.DIFFERENT)


@vectors.command("from")
@click.argument("network_file", metavar="NETWORK", type=console.FILE)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@reads
def of_network(network_file: Path, folder: Path, read: Reader) -> None:
    """Write vectors of a NETWORK of yours (ours, ONNX or TFLite) to FOLDER: codes, floats, traces.

    refqnn conform --vectors FOLDER asks them of a program.
    """
    from refqnn.conformance.making.writing import write_vectors

    name = re.sub(r"\W", "_", network_file.stem)
    console.show(f"wrote {write_vectors(read(network_file), name, folder)} vectors to {folder}")


@vectors.command()
@click.argument("file", type=console.NewFile())
def emit(file: Path) -> None:
    """Write all questions to FILE, one JSON object a line."""
    from refqnn import conformance

    console.show(f"wrote {conformance.emit(file)} questions to {file}")


@vectors.command(short_help="Start a program for refqnn conform.")
@click.option(
    "--language", type=click.Choice(["c", "js", "python"]), required=True, help="Of the program."
)
@click.argument("file", type=console.NewFile())
def template(language: str, file: Path) -> None:
    """Write a program for refqnn conform to FILE, its operations to be filled in."""
    from refqnn.conformance import template

    text = template.template(language)
    write_atomically(file, lambda out: out.write(text.encode()))
    console.show(f"wrote {file}: it skips every question so far")


@vectors.command()
@click.argument("file", type=console.FILE)
@_REPORT
@console.json_option
def verify(file: Path, report_file: Path | None, json_file: Path | None) -> None:
    """Judge the answers in FILE; exits with 1 if one is wrong."""
    from refqnn import conformance

    _finish(conformance.verify(file), report_file, json_file)


def _finish(report: Report, report_file: Path | None, json_file: Path | None) -> None:
    console.show(*report.summary().split("\n"))
    console.written(report_file, report.write)
    failures = [outcome.to_json() for outcome in report.failures]
    told = {"conforms": report.conforms, "counts": report.counts, "failures": failures}
    console.print_json(json_file, told)
    if not report.conforms:
        raise SystemExit(console.DIFFERENT)
