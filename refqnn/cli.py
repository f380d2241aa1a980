"""The command line; `refqnn --help` lists the commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from refqnn import __version__
from refqnn.container import write_atomically
from refqnn.errors import FileFormatError, RefqnnError
from refqnn.formats import signed_bits
from refqnn.onnx import FLAVOURS, open_file, open_network
from refqnn.ops import Interval

console = Console()
messages = Console(stderr=True)

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _NewFile(click.Path):
    """A file to write; refused before the work begins where it could not be written after it.

    Args:
        endings: that its name may have; any by default.
    """

    def __init__(self, *endings: str) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        folder = path.parent
        if not folder.is_dir():
            self.fail(f"{str(path)!r}: there is no folder {str(folder)!r}; make it first")
        if not path.exists() and not os.access(folder, os.W_OK):
            self.fail(f"{str(path)!r}: the folder {str(folder)!r} is read-only; choose another")
        if self.endings and path.suffix.lower() not in self.endings:
            self.fail(f"{str(path)!r}: expected a name that ends in {', '.join(self.endings)}")
        return path


_NEW_FILE = _NewFile()
_NEW_FIGURE = _NewFile(".png", ".pdf", ".svg")

# Exit codes; 0 is success.
OVERFLOW_POSSIBLE = 1
USAGE_OR_DATA_ERROR = 2
OVERFLOW_UNKNOWN = 3
INTERRUPTED = 130


class _Failure(click.ClickException):
    exit_code = USAGE_OR_DATA_ERROR


class _Commands(click.Group):
    """Our errors and the system's end in one line, not in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None  # click would say "Aborted!"
        except BrokenPipeError:
            raise  # `refqnn ... | head`: click ends quietly
        except (RefqnnError, OSError) as error:
            raise _Failure(str(error)) from error
        except MemoryError as error:
            raise _Failure(f"not enough memory {error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="refqnn")
def refqnn() -> None:
    """Exact integers for quantized networks: check them, bound them, run them encrypted."""


# --- progress ---------------------------------------------------------------------------------


class _Bars:
    """The demo's Reporter on a terminal; plain lines where there is none."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=28),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=messages,
        )

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[str], None]]:
        task = self._progress.add_task(title, total=total, detail="")
        done = 0

        def advance(detail: str = "") -> None:
            nonlocal done
            done += 1
            self._progress.update(task, completed=done, detail=detail)

        yield advance
        self._progress.update(task, total=max(done, 1), completed=max(done, 1))
        if not messages.is_terminal:
            seconds = self._progress.tasks[task].elapsed or 0.0
            messages.print(f"{title}: {seconds:.1f} s", highlight=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """One bar per kind of work, for functions that report (what, done, total)."""
        for task in self._progress.tasks:
            if task.description == what:
                self._progress.update(task.id, completed=done, total=total)
                return
        self._progress.add_task(what, completed=done, total=total, detail="")


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    messages.print(f"wrote {path}", highlight=False)


_TEXT = frozenset(
    ("node", "layer", "kind", "inputs", "shape", "codes", "proof", "quantizer", "first")
)


def _load_array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FileFormatError(f"{path}: not a .npy file of numbers ({error})") from error


def _table(title: str, *columns: str) -> Table:
    """A table that never wraps; columns of text on the left, figures on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT else "right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    """The table at its full width, on a narrow terminal too: figures are never cut."""
    unlimited = console.options.update(width=10_000)
    width = Measurement.get(console, unlimited, table).maximum
    Console(width=max(width, console.width)).print(table)


# --- demo -------------------------------------------------------------------------------------


@refqnn.command(short_help="Walk the whole road on real data; start here, with --quick.")
@click.option(
    "--dataset",
    type=click.Choice(["iris", "breast_cancer", "digits", "moons", "checkerboard"]),
    default="iris",
    show_default=True,
    help="What to train on.",
)
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
    show_default=True,
    help="Of the split, the initial weights and the shuffling.",
)
@click.option(
    "--json",
    "json_file",
    type=_NEW_FILE,
    help="Write the figures to FILE.",
)
@click.option(
    "--plot",
    "plot_file",
    type=_NEW_FIGURE,
    help="Write a figure to FILE: decision regions of 2-D data, else bits per layer.",
)
@click.option(
    "--save",
    "network_file",
    type=_NEW_FILE,
    help="Save the integer network to FILE.",
)
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
    from refqnn.demo import run

    with _Bars() as bars:
        finished = run(dataset, bars, seed=seed, encrypted_samples=samples, quick=quick)
    result = finished.demo
    _print_demo(result)
    if json_file is not None:
        _write_json(json_file, result.to_json())
    if network_file is not None:
        finished.network.save(network_file)
        messages.print(f"wrote {network_file}", highlight=False)
    if plot_file is not None:
        from refqnn import plotting

        plotting.demo_figure(finished, plot_file)
        messages.print(f"wrote {plot_file}", highlight=False)
    if not result.exact:
        raise SystemExit(1)


def _print_demo(result: Any) -> None:
    table = Table(
        title=f"{result.dataset}, seed {result.seed}",
        title_justify="left",
        title_style="bold",
        show_header=False,
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right")

    def section(title: str, rows: list[tuple[str, str]]) -> None:
        table.add_row(f"[bold]{title}", "", end_section=False)
        for i, (label, value) in enumerate(rows):
            table.add_row(f"  {label}", value, end_section=i == len(rows) - 1)

    few, all_ = result.encrypted_samples, result.test_samples
    section(
        "accuracy",
        [
            (f"{stage} ({few if stage == 'encrypted' else all_} samples)", f"{value:.3f}")
            for stage, value in result.accuracy.items()
        ],
    )
    section(
        "integers that differ",
        [
            (agreement.stage, f"{_verdict(agreement.differing)} of {agreement.total:,}")
            for agreement in result.mismatches
        ],
    )
    section(
        "accumulator bits",
        [
            (
                f"{row.layer} ({row.neurons})",
                f"{row.certified} certified, {row.observed} observed, {row.span} span",
            )
            for row in result.bits
        ],
    )
    by_width = ", ".join(f"{count} x {bits}" for bits, count in sorted(result.pbs.items()))
    seconds = result.seconds
    section(
        "cost",
        [
            ("table lookups (PBS) per sample", f"{sum(result.pbs.values())}"),
            ("  number x input bits", by_width or "none"),
            ("evaluation keys", f"{result.evaluation_key_bytes / 1e6:.1f} MB"),
            ("compile", f"{seconds['compile circuit']:.2f} s"),
            ("key generation", f"{seconds['generate keys']:.2f} s"),
            ("encrypted", f"{result.encrypted_seconds_per_sample:.2f} s/sample"),
            ("simulated", f"{all_ / seconds['simulate test set']:,.0f} samples/s"),
            ("clear (numpy)", f"{result.clear_samples_per_second:,.0f} samples/s"),
        ],
    )
    _print(table)


def _verdict(differing: int) -> str:
    return f"[green]{differing}" if differing == 0 else f"[bold red]{differing:,}"


# --- inspect ----------------------------------------------------------------------------------


@refqnn.command(short_help="Show a network's nodes, formats and ranges.")
@click.argument("file", type=_FILE)
def inspect(file: Path) -> None:
    """Show a network (ours or ONNX) as a table: nodes, formats, proved ranges, bits, parameters."""
    from refqnn.inspect import describe

    imported = open_file(file)
    network = imported.network
    table = _table(
        f"{file.name}  {network.digest[:12]}",
        *("node", "kind", "inputs", "shape", "codes", "shift", "range", "bits", "span", "sums in"),
        "parameters",
    )
    for row in describe(network):
        table.add_row(
            row.node,
            row.kind,
            ", ".join(row.inputs),
            "x".join(str(d) for d in row.shape),
            (row.format or "").partition(" codes")[0],
            "" if row.shift is None else str(row.shift),
            f"[{row.lo:,}, {row.hi:,}]",
            str(row.signed_bits),
            str(row.span_bits),
            row.arithmetic or "",
            f"{row.parameters:,}",
        )
    _print(table)
    for node in imported.dropped:
        console.print(f"left out behind the output: {node}", highlight=False, markup=False)
    console.print(
        "Ranges hold for every input (interval arithmetic; `refqnn certify` tightens them)."
    )
    console.print("bits: two's complement; span: after the best constant is added to each neuron.")


# --- certify ----------------------------------------------------------------------------------


@refqnn.command(short_help="Prove accumulator ranges; find an overflow.")
@click.argument("file", type=_FILE)
@click.option("--bits", type=click.IntRange(1, 64), help="Ask: does any accumulator overflow?")
@click.option("--unsigned", is_flag=True, help="--bits means unsigned accumulators.")
@click.option("--layer", help="Ask about this layer alone.")
@click.option(
    "--method",
    type=click.Choice(["auto", "interval", "exhaustive", "search", "solver"]),
    default="auto",
    show_default=True,
    help="Intervals alone, every input, box search, or a solver; auto takes what is quick.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds for the searches.",
)
@click.option(
    "--json",
    "json_file",
    type=_NEW_FILE,
    help="Save the certificate to FILE.",
)
@click.option(
    "--plot",
    "plot_file",
    type=_NEW_FIGURE,
    help="Write a figure of the widths per layer to FILE.",
)
@click.option(
    "--inputs",
    type=_FILE,
    help="A .npy file of samples: show the widths observed on them too.",
)
def certify(
    file: Path,
    bits: int | None,
    unsigned: bool,
    layer: str | None,
    method: str,
    budget: float,
    json_file: Path | None,
    plot_file: Path | None,
    inputs: Path | None,
) -> None:
    """Prove the range of every accumulator of a network (ours or ONNX), for every input.

    With --bits: exits with 0 when no accumulator can overflow, with 1 and an input that overflows
    when one can, and with 3 when the time ran out before either was found.
    """
    from refqnn import accumulator

    network = open_network(file)
    with _Bars() as bars:
        certificate = accumulator.certify(
            network,
            method=cast(Any, method),
            budget_s=budget if method in ("search", "solver") else None,
            progress=bars.progress,
        )
    seen = None if inputs is None else accumulator.observed(network, _load_array(inputs))
    table = _table(
        f"{file.name}: accumulators, {certificate.domain}",
        *("layer", "neurons", "range", "datatype", "weights", "proved", "span"),
        *(() if seen is None else ("observed",)),
        *("exact", "proof"),
    )
    for row in certificate.table():
        table.add_row(
            row.layer,
            f"{row.neurons:,}",
            f"[{row.lo:,}, {row.hi:,}]",
            str(row.datatype_bits),
            str(row.weight_bits),
            str(row.signed_bits),
            str(row.span_bits),
            *(() if seen is None else (_observed_bits(seen[row.layer]),)),
            f"{row.exact:,} of {row.neurons:,}",
            row.proofs,
        )
    _print(table)
    if json_file is not None:
        certificate.save(json_file)
        messages.print(f"wrote {json_file}", highlight=False)
    if plot_file is not None:
        from refqnn import plotting

        plotting.certificate_figure(certificate, plot_file, seen)
        messages.print(f"wrote {plot_file}", highlight=False)
    if bits is not None:
        with _Bars() as bars:
            answer = accumulator.find_overflow(
                network,
                layer,
                bits=bits,
                signed=not unsigned,
                budget_s=budget,
                certificate=certificate,
                progress=bars.progress,
            )
        _print_overflow(answer)


def _observed_bits(seen: Interval) -> str:
    return str(signed_bits(int(seen.lo.min()), int(seen.hi.max())))


def _print_overflow(answer: Any) -> None:
    from refqnn.accumulator import Overflow, Unknown

    console.print(str(answer), highlight=False, soft_wrap=True)
    if isinstance(answer, Overflow):
        console.print(
            "input codes: " + json.dumps(answer.witness.tolist()), highlight=False, soft_wrap=True
        )
        raise SystemExit(OVERFLOW_POSSIBLE)
    if isinstance(answer, Unknown):
        console.print("try a larger --budget", highlight=False)
        raise SystemExit(OVERFLOW_UNKNOWN)


# --- compare ----------------------------------------------------------------------------------


@refqnn.command(short_help="Check a Brevitas module against its network.")
@click.argument("target", metavar="PACKAGE.MODULE:FUNCTION")
@click.option(
    "--save",
    "network_file",
    type=_NEW_FILE,
    help="Save the integer network to FILE.",
)
def compare(target: str, network_file: Path | None) -> None:
    """Convert a Brevitas module and compare every code of every quantizer with it.

    FUNCTION takes no argument and returns (module, X): a trained Brevitas module and float inputs
    [n, ...].  Exits with 1 if a difference is not a proved near tie.
    """
    from refqnn.brevitas import from_brevitas, verify_against

    module, X = _call(target)
    network = from_brevitas(module, X[:1])
    report = verify_against(module, network, X)
    for title, layers in (
        ("Each layer fed with the module's codes", report.teacher_forced),
        ("The network by itself, from the float inputs", report.free_running),
    ):
        columns = (
            "quantizer",
            "compared",
            "equal",
            "near ties",
            "inherited",
            "unexplained",
            "first",
        )
        table = _table(title, *columns)
        for layer in layers:
            counts = (layer.codes, layer.equal, layer.near_tie, layer.inherited, layer.unexplained)
            first = "" if layer.first is None else str(layer.first)
            table.add_row(layer.name, *(f"{count:,}" for count in counts), first)
        _print(table)
    if network_file is not None:
        network.save(network_file)
        messages.print(f"wrote {network_file}", highlight=False)
    if not report.ok:
        raise SystemExit(1)


def _call(target: str) -> tuple[Any, Any]:
    """What package.module:function returns; the working directory may hold the module."""
    name, _, function = target.partition(":")
    if not name or not function:
        raise click.BadParameter(f"got {target!r}, expected PACKAGE.MODULE:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(import_module(name), function)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise click.BadParameter(f"{target}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise click.BadParameter(f"{target} returned {type(made).__name__}, expected (module, X)")
    return made


# --- convert and diff -------------------------------------------------------------------------


@refqnn.command(short_help="Convert between our files and ONNX.")
@click.argument("source", type=_FILE)
@click.argument("target", type=_NEW_FILE)
@click.option(
    "--flavour",
    type=click.Choice(FLAVOURS),
    default="qonnx",
    show_default=True,
    help="Of a target that ends in .onnx.",
)
@click.option(
    "--input", "input_name", help="ONNX tensor to start from, or UINT8, INT4, ...: what comes in."
)
@click.option("--output", "output_name", help="ONNX tensor to stop at.")
def convert(
    source: Path, target: Path, flavour: str, input_name: str | None, output_name: str | None
) -> None:
    """Read SOURCE (ours or ONNX), write TARGET (.onnx, or ours under any other name)."""
    from refqnn import onnx

    network = onnx.convert(
        source, target, flavour=cast(Any, flavour), input=input_name, output=output_name
    )
    messages.print(f"wrote {target}: {len(network.nodes)} nodes", highlight=False)


@refqnn.command(short_help="Find where two networks part first.")
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option(
    "--inputs",
    required=True,
    type=_FILE,
    help="A .npy file of samples: floats, or integer input codes.",
)
def diff(a: Path, b: Path, inputs: Path) -> None:
    """Run two networks (ours or ONNX) on the same samples; exits with 1 where they part first."""
    from refqnn import onnx

    samples = _load_array(inputs)
    difference = onnx.compare(open_network(a), open_network(b), samples)
    if difference is None:
        console.print(f"equal on {len(samples):,} samples")
        return
    console.print(str(difference), highlight=False, soft_wrap=True)
    raise SystemExit(1)


# --- conformance ------------------------------------------------------------------------------


@refqnn.command(
    context_settings={"ignore_unknown_options": True},
    short_help="Ask the test vectors of a program.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time limit of one answer.",
)
@click.option("--operation", "operations", multiple=True, help="Ask these operations alone.")
@click.option("--profile", "profiles", multiple=True, help="Choices the program shares.")
@click.option("--report", "report_file", type=_NEW_FILE, help="Write verdicts as JSON lines.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def conform(
    command: tuple[str, ...],
    seconds: float,
    operations: tuple[str, ...],
    profiles: tuple[str, ...],
    report_file: Path | None,
) -> None:
    """Ask every test vector of a program: refqnn conform -- ./program args.

    The program speaks JSON lines on its standard input and output (see vectors/README.md).
    Exits with 1 if an answer is wrong, with 2 if the program cannot be talked to.
    """
    from refqnn import conformance

    report = conformance.conform(
        command, operations=operations or None, profiles=profiles or None, seconds=seconds
    )
    _finish(report, report_file)


@refqnn.group()
def vectors() -> None:
    """The test vectors: generate, emit questions, verify answers."""


@vectors.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if files are out of date.")
def generate(check: bool) -> None:
    """Write the vector files anew, deterministically."""
    from refqnn import conformance

    changed = conformance.stale() if check else conformance.generate()  # type: ignore[operator]
    for name in changed:
        console.print(name, highlight=False)
    console.print(f"{len(changed)} files {'are out of date' if check else 'changed'}")
    if check and changed:
        console.print("mend with: refqnn vectors generate")
        raise SystemExit(1)


@vectors.command()
@click.argument("file", type=_NEW_FILE)
def emit(file: Path) -> None:
    """Write all questions to FILE, one JSON object a line."""
    from refqnn import conformance

    console.print(f"wrote {conformance.emit(file)} questions to {file}", highlight=False)


@vectors.command()
@click.argument("file", type=_FILE)
@click.option("--report", "report_file", type=_NEW_FILE, help="Write verdicts as JSON lines.")
def verify(file: Path, report_file: Path | None) -> None:
    """Judge the answers in FILE; exits with 1 if one is wrong."""
    from refqnn import conformance

    _finish(conformance.verify(file), report_file)


def _finish(report: Any, report_file: Path | None) -> None:
    console.print(report.summary(), highlight=False, markup=False, soft_wrap=True)
    if report_file is not None:
        report.write(report_file)
        messages.print(f"wrote {report_file}", highlight=False)
    if not report.conforms:
        raise SystemExit(1)


# --- encrypted inference ----------------------------------------------------------------------

import_module("refqnn.fhe_commands")  # registers itself; it uses what is above


# --- benches ----------------------------------------------------------------------------------

import_module("refqnn.benches")  # registers itself as well
