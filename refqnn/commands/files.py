"""Commands on files of networks: inspect, certify, compare, convert, diff, diagnose."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from refqnn import accumulator, diagnosis, onnx, plotting
from refqnn.commands import console
from refqnn.errors import CertificateError
from refqnn.formats import signed_bits
from refqnn.inspect import table
from refqnn.onnx.conversion import write
from refqnn.ops import Interval

if TYPE_CHECKING:
    from refqnn.accumulator.ladder import Method
    from refqnn.diagnosis.dump import Layout
    from refqnn.network import Network
    from refqnn.onnx import Flavour

    Reader = Callable[[Path], Network]


def _reads(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say how an ONNX file is read, and `read`, which opens a file so."""

    @click.option("--input", "door", help="ONNX tensor to start from, or UINT8, INT4, ...: codes.")
    @click.option("--output", "stop", help="ONNX tensor to stop at.")
    @click.option("--strict", is_flag=True, help="Refuse a file whose last operators are left out.")
    @wraps(command)
    def with_reader(
        *args: object, door: str | None, stop: str | None, strict: bool, **options: object
    ) -> None:
        def read(file: Path) -> Network:
            imported = onnx.open_file(file, input=door, output=stop, strict=strict)
            console.show(*(f"left out behind the output: {node}" for node in imported.dropped))
            return imported.network

        command(*args, read=read, **options)

    return with_reader


@click.command(cls=console.Command, short_help="Show a network's nodes, formats and ranges.")
@click.argument("file", type=console.FILE)
@_reads
def inspect(file: Path, read: Reader) -> None:
    """Show a network (ours or ONNX) as a table: nodes, formats, proved ranges, bits, parameters."""
    network = read(file)
    console.print_table(f"{file.name}  {network.digest[:12]}", table(network))
    console.show(
        "Ranges hold for every input (interval arithmetic; `refqnn certify` tightens them).",
        "bits: two's complement; span: after the best constant is added to each neuron.",
    )


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
@console.save_option("--json", "json_file", "Save the certificate to FILE.")
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
    """Prove the range of every accumulator of a network (ours or ONNX), for every input.

    With --bits: exits with 0 when no accumulator can overflow, with 1 and an input that overflows
    when one can, and with 3 when the time ran out before either was found.

    With --verify: exits with 1 when the certificate does not hold for the network.
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
    seen = None if inputs is None else accumulator.observed(network, console.load_array(inputs))
    _print_certificate(file, certificate, seen)
    console.written(json_file, certificate.save)
    console.written(plot_file, lambda path: plotting.certificate_figure(certificate, path, seen))
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
    except (ModuleNotFoundError, AttributeError) as error:
        raise click.BadParameter(f"{target}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise click.BadParameter(f"{target} returned {type(made).__name__}, expected (module, X)")
    return made


# --- convert and diff -------------------------------------------------------------------------


@click.command(cls=console.Command, short_help="Convert between our files and ONNX.")
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
    """Read SOURCE (ours or ONNX), write TARGET (.onnx, or ours under any other name)."""
    network = read(source)
    write(network, target, cast("Flavour", flavour))
    console.say(f"wrote {target}: {len(network.nodes)} nodes")


@click.command(cls=console.Command, short_help="Find where two networks part first.")
@click.argument("a", type=console.FILE)
@click.argument("b", type=console.FILE)
@click.option(
    "--inputs",
    required=True,
    type=console.FILE,
    help="A .npy file of samples: floats, or integer input codes.",
)
@_reads
def diff(a: Path, b: Path, inputs: Path, read: Reader) -> None:
    """Run two networks (ours or ONNX) on the same samples; exits with 1 where they part first."""
    samples = console.load_array(inputs)
    difference = onnx.compare(read(a), read(b), samples)
    if difference is not None:
        console.show(difference)
        raise SystemExit(console.DIFFERENT)
    console.show(f"equal on {len(samples):,} samples")


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
@click.option(
    "--layout",
    type=click.Choice(["channels_first", "channels_last"]),
    default="channels_first",
    help="Of tensors that are flat.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=60.0,
    help="Seconds for pairs of deviations, for each layer that parts.",
)
@console.save_option("--json", "json_file", "Save the findings to FILE.")
def diagnose(
    network_file: Path,
    dump: Path,
    inputs: Path | None,
    renamed: tuple[str, ...],
    layout: str,
    budget: float,
    json_file: Path | None,
) -> None:
    """Find what turns NETWORK's integers (ours or ONNX) into those of DUMP, a .npz file or a folder
    of .npy files: some layers, or the output alone.  Exits with 1 where they part."""
    found = diagnosis.diagnose(
        onnx.open_network(network_file),
        dump,
        None if inputs is None else console.load_array(inputs),
        names=dict(_pair(text) for text in renamed),
        layout=cast("Layout", layout),
        budget_s=budget,
    )
    console.show(*str(found).split("\n"))
    console.written(json_file, lambda path: path.write_text(json.dumps(found.to_dict(), indent=2)))
    if not found.ok:
        raise SystemExit(console.DIFFERENT)


def _pair(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.rpartition("=")
    if not equals or not theirs:
        raise click.BadParameter(f"got {text!r}, expected THEIRS=OURS", param_hint="--name")
    return theirs, ours
