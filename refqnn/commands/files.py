"""Commands on files of networks: inspect, certify, compare, convert, diff, diagnose."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from refqnn import accumulator, diagnosis, dumps, extras, onnx, plotting, tflite
from refqnn.commands import console
from refqnn.comparison import compare as compare_networks
from refqnn.display import safe
from refqnn.errors import CertificateError, RefqnnError
from refqnn.files import open_file, write
from refqnn.formats import signed_bits
from refqnn.inspect import describe, table
from refqnn.ops import Interval
from refqnn.rounding import Rounding

if TYPE_CHECKING:
    from refqnn.accumulator.ladder import Method
    from refqnn.network import Network
    from refqnn.onnx import Flavour
    from refqnn.onnx.reader import Imported
    from refqnn.tflite import Runtime


@dataclass(frozen=True)
class Reader:
    """Opens a network as the options of a command say; names what an ONNX file has left out."""

    door: str | None
    stop: str | None
    strict: bool
    runtimes: tuple[Runtime, ...]

    def __call__(self, file: Path) -> Network:
        return self.imported(file).network

    def imported(self, file: Path) -> Imported:
        """With what is known of the file besides."""
        if len(self.runtimes) > 1:
            raise click.UsageError("give --runtime once")
        imported = open_file(
            file, input=self.door, output=self.stop, strict=self.strict, runtime=self.runtimes[0]
        )
        console.show(*(f"left out behind the output: {node}" for node in imported.dropped))
        return imported


def _reads(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say how a foreign file is read, and `read`, which opens a file so."""

    @click.option("--input", "door", help="ONNX tensor to start from, or UINT8, INT4, ...: codes.")
    @click.option("--output", "stop", help="ONNX tensor to stop at.")
    @click.option("--strict", is_flag=True, help="Refuse a file whose last operators are left out.")
    @click.option(
        "--runtime",
        "runtimes",
        type=click.Choice(list(tflite.RUNTIMES)),
        multiple=True,
        default=["tflite_ref"],
        help="Of a TFLite model: whose arithmetic.",
    )
    @wraps(command)
    def with_reader(
        *args: object,
        door: str | None,
        stop: str | None,
        strict: bool,
        runtimes: tuple[Runtime, ...],
        **options: object,
    ) -> None:
        command(*args, read=Reader(door, stop, strict, runtimes), **options)

    return with_reader


_layout = click.option(
    "--layout",
    help="Of the dump: the letters N (samples), C (channels), H, W in its order.  [default: NCHW]",
)


_TIES = (
    "ties: accumulators in range at which a runtime that scales in float32 may give another code; "
    "float ties: one that sums in float32 too."
)


@click.command(cls=console.Command, short_help="Show a network's nodes, formats and ranges.")
@click.argument("file", type=console.FILE)
@_reads
@console.json_option
def inspect(file: Path, read: Reader, json_file: Path | None) -> None:
    """Show a network (ours, ONNX or TFLite): nodes, formats, proved ranges, bits, parameters."""
    imported = read.imported(file)
    network = imported.network
    rows = table(network)
    console.print_table(f"{file.name}  {network.digest[:12]}", rows)
    console.show(
        "Ranges hold for every input (interval arithmetic; `refqnn certify` tightens them).",
        "bits: two's complement; span: after the best constant is added to each neuron.",
        *([_TIES] if "ties" in rows[0] else []),
    )
    told = {"network": network.digest, "nodes": describe(network), "dropped": imported.dropped}
    console.print_json(json_file, told)


# --- certify ----------------------------------------------------------------------------------


@click.command(cls=console.Command, short_help="Prove accumulator ranges; find an overflow.")
@click.argument("file", type=console.FILE)
@click.option("--bits", type=click.IntRange(1, 64), help="Ask: does any accumulator overflow?")
@click.option("--unsigned", is_flag=True, help="--bits means unsigned accumulators.")
@click.option("--layer", help="Ask about this layer alone.")
@click.option(
    "--method",
    type=click.Choice(["auto", "interval", "exhaustive", "search", "solver"]),
    default="auto",
    help="Intervals alone, every input, box search, or a solver; auto takes what is quick.",
)
@click.option("--budget", type=click.FloatRange(0), default=60.0, help="Seconds for the searches.")
@console.json_option
@console.save_option(
    "--plot",
    "plot_file",
    "Write a figure of the widths per layer to FILE.",
    *console.FIGURES,
)
@click.option(
    "--inputs",
    type=console.FILE,
    help="A .npy file of samples: show the widths observed on them too.",
)
@click.option(
    "--verify", "stated", type=console.FILE, help="Recheck this certificate, prove none anew."
)
@click.option("--allow-trusted", is_flag=True, help="--verify accepts what it cannot recheck.")
@_reads
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
    stated: Path | None,
    allow_trusted: bool,
    read: Reader,
) -> None:
    """Prove the range of every accumulator of a network (ours, ONNX or TFLite), for every input.

    With --bits: exits with 0 when no accumulator can overflow, with 1 and an input that overflows
    when one can, and with 3 when the time ran out before either was found.

    With --verify: exits with 1 when the certificate does not hold for the network.

    The result that --json writes is the certificate.
    """
    network = read(file)
    if stated is not None:
        certificate = _verified(stated, network, budget, allow_trusted)
    else:
        with console.Bars() as bars:
            certificate = accumulator.certify(
                network,
                method=cast("Method", method),
                budget_s=budget if method in ("search", "solver") else None,
                progress=bars.progress,
            )
    samples = None if inputs is None else console.load_array(inputs)
    seen = None if samples is None else accumulator.observed(network, samples)
    _print_certificate(file, certificate, seen)
    console.print_json(json_file, certificate.to_json())
    count = None if samples is None else len(samples)
    console.written(
        plot_file, lambda path: plotting.certificate_figure(certificate, path, seen, count)
    )
    if bits is not None:
        with console.Bars() as bars:
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


def _verified(
    file: Path, network: Network, budget: float, allow_trusted: bool
) -> accumulator.Certificate:
    """The certificate of a file, rechecked; prints how many bounds were confirmed, by proof."""
    certificate = accumulator.Certificate.load(file)
    try:
        counts = certificate.verify(network, budget_s=budget, allow_trusted=allow_trusted)
    except CertificateError as error:
        raise console.DoesNotHold(f"{file}: {error}") from error
    console.show(
        f"{file} holds: " + ", ".join(f"{count:,} {proof}" for proof, count in counts.items())
    )
    return certificate


def _print_certificate(
    file: Path, certificate: accumulator.Certificate, seen: dict[str, Interval] | None
) -> None:
    console.print_table(
        f"{file.name}: accumulators, {certificate.domain}",
        (
            {
                "layer": row.layer,
                "neurons": row.neurons,
                "range": f"[{row.lo:,}, {row.hi:,}]",
                "datatype": str(row.datatype_bits),
                "weights": str(row.weight_bits),
                "proved": row.signed_bits,
                "span": row.span_bits,
                **({} if seen is None else {"observed": signed_bits(*seen[row.layer].ends)}),
                "exact": f"{row.exact:,} of {row.neurons:,}",
                "proof": row.proofs,
            }
            for row in certificate.table()
        ),
    )


def _print_overflow(
    answer: accumulator.Overflow | accumulator.NoOverflow | accumulator.Unknown,
) -> None:
    console.show(answer)
    if isinstance(answer, accumulator.Overflow):
        console.show("input codes: " + json.dumps(answer.witness.tolist()))
        raise SystemExit(console.OVERFLOW_POSSIBLE)
    if isinstance(answer, accumulator.Unknown):
        console.show("try a larger --budget")
        raise SystemExit(console.OVERFLOW_UNKNOWN)


# --- compare ----------------------------------------------------------------------------------


@click.command(cls=console.Command, short_help="Check a Brevitas module against its network.")
@click.argument("target", metavar="PACKAGE.MODULE:FUNCTION")
@console.save_option("--save", "network_file", "Save the integer network to FILE.")
@console.json_option
def compare(target: str, network_file: Path | None, json_file: Path | None) -> None:
    """Convert a Brevitas module and compare every code of every quantizer with it.

    FUNCTION takes no argument and returns (module, X): a trained Brevitas module and float inputs
    [n, ...].  Exits with 1 if a difference is not a proved near tie.
    """
    extras.require("train")
    from refqnn.brevitas import from_brevitas, verify_against

    module, X = _call(target)
    network = from_brevitas(module, X[:1])
    report = verify_against(module, network, X)
    for title, layers in (
        ("Each layer fed with the module's codes", report.teacher_forced),
        ("The network by itself, from the float inputs", report.free_running),
    ):
        console.print_table(
            title,
            (
                {
                    "quantizer": layer.name,
                    "compared": layer.codes,
                    "equal": layer.equal,
                    "near ties": layer.near_tie,
                    "inherited": layer.inherited,
                    "unexplained": layer.unexplained,
                    "first": layer.first,
                }
                for layer in layers
            ),
        )
    console.written(network_file, network.save)
    console.print_json(json_file, {"ok": report.ok, "exact": report.exact, **vars(report)})
    if not report.ok:
        raise SystemExit(console.DIFFERENT)


def _call(target: str) -> tuple[Any, Any]:
    """What package.module:function returns; the working directory may hold the module."""
    name, _, function = target.partition(":")
    if not name or not function:
        raise click.BadParameter(f"got {target!r}, expected PACKAGE.MODULE:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(import_module(name), function)()
    except (RefqnnError, OSError):
        raise
    except Exception as error:  # of the user's own code, anything
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{target}: {type(error).__name__}: {error}"
        if where.filename != __file__:
            told += f" ({where.filename}, line {where.lineno})"
        raise click.BadParameter(safe(told)) from error
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[1], "shape"):
        got = type(made).__name__
        raise click.BadParameter(f"{target} returned {got}, expected (module, X), X an array")
    return made


# --- convert and diff -------------------------------------------------------------------------


@click.command(cls=console.Command, short_help="Convert ONNX and TFLite to ours, ours to ONNX.")
@click.argument("source", type=console.FILE)
@click.argument("target", type=console.NewFile())
@click.option(
    "--flavour",
    type=click.Choice(onnx.FLAVOURS),
    default="qonnx",
    help="Of a target that ends in .onnx.",
)
@_reads
def convert(source: Path, target: Path, flavour: str, read: Reader) -> None:
    """Read SOURCE (ours, ONNX or TFLite), write TARGET (.onnx, or ours under any other name)."""
    network = read(source)
    write(network, target, cast("Flavour", flavour))
    console.say(f"wrote {target}: {len(network.nodes)} nodes")


@click.command(cls=console.Command, short_help="Find where two networks part first.")
@click.argument("a", type=console.FILE)
@click.argument("b", type=console.FILE, required=False)
@click.option(
    "--inputs",
    type=console.FILE,
    help="A .npy file of samples: floats, or integer input codes.",
)
@click.option(
    "--against",
    "dump",
    type=click.Path(exists=True, path_type=Path),
    help="In place of B: integers of another program, an .npz file or a folder of .npy and .txt.",
)
@_layout
@_reads
@console.json_option
def diff(
    a: Path,
    b: Path | None,
    inputs: Path | None,
    dump: Path | None,
    layout: str | None,
    read: Reader,
    json_file: Path | None,
) -> None:
    """Find where A and another network or program part first, on the same samples.

    A, B: ours, ONNX or TFLite; or A alone, one TFLite model, and --runtime twice: two of its
    runtimes, which are also asked how many outputs and classes change.

    A dump names its values as A does, "input" among them or given by --inputs; it may hold some of
    them, and flat (see `refqnn trace`).  Exits with 1 where they part.
    """
    two_runtimes = len(read.runtimes) == 2
    if sum((b is not None, dump is not None, two_runtimes)) != 1:
        raise click.UsageError("give B, or --against, or one TFLite model and --runtime twice")
    if inputs is None and dump is None:
        raise click.UsageError("give --inputs, the samples to run both networks on")
    if two_runtimes:
        assert inputs is not None
        first, second = read.runtimes
        parting = tflite.compare_runtimes(a, first, second, console.load_array(inputs))
        console.show(*str(parting).splitlines())
        raise SystemExit(console.DIFFERENT if parting.first else 0)
    network = read(a)
    samples = None if inputs is None else console.load_array(inputs)
    if dump is None:
        assert b is not None
        assert samples is not None
        difference = compare_networks(network, read(b), samples)
    else:
        codes = None if samples is None else network.codes_of(samples)
        difference = network.diff(dumps.read_dump(dump), codes, layout=layout)
    told = {"equal": difference is None, "difference": difference}
    console.print_json(json_file, told)
    if difference is not None:
        console.show(difference)
        raise SystemExit(console.DIFFERENT)
    where = "the values of the dump" if samples is None else f"{len(samples):,} samples"
    console.show(f"equal on {where}")


# --- diagnose ---------------------------------------------------------------------------------


@click.command(cls=console.Command, short_help="Say what another implementation does otherwise.")
@click.argument("network_file", metavar="NETWORK", type=console.FILE)
@click.argument("dump", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--inputs",
    type=console.FILE,
    help="A .npy file of samples, where DUMP does not hold the input.",
)
@click.option(
    "--name",
    "renamed",
    multiple=True,
    metavar="THEIRS=OURS",
    help="A tensor of DUMP that has another name; may be given again.",
)
@_layout
@click.option(
    "--rounding",
    type=click.Choice([mode.value for mode in Rounding]),
    help="That NETWORK's codes were made with, where it is known.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=60.0,
    help="Seconds for pairs of deviations, for each layer that parts.",
)
@_reads
@console.json_option
def diagnose(
    network_file: Path,
    dump: Path,
    inputs: Path | None,
    renamed: tuple[str, ...],
    layout: str | None,
    rounding: str | None,
    budget: float,
    read: Reader,
    json_file: Path | None,
) -> None:
    """Find what turns NETWORK's integers (ours, ONNX or TFLite) into those of DUMP, a .npz file or
    a folder of .npy files: some layers, or the output alone.  Exits with 1 where they part."""
    found = diagnosis.diagnose(
        read(network_file),
        dump,
        None if inputs is None else console.load_array(inputs),
        names=dict(_pair(text) for text in renamed),
        layout=layout,
        rounding=rounding,
        budget_s=budget,
    )
    console.show(*str(found).split("\n"))
    console.print_json(json_file, found.to_dict())
    if not found.ok:
        raise SystemExit(console.DIFFERENT)


def _pair(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.rpartition("=")
    if not equals or not theirs:
        raise click.BadParameter(f"got {text!r}, expected THEIRS=OURS", param_hint="--name")
    return theirs, ours
