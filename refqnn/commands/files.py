"""Commands on files of networks: inspect, certify, compare, convert, diff, diagnose."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from refqnn import accumulator, diagnosis, dumps, extras, onnx, plotting, tflite
from refqnn.accumulator import Certificate, StagedCertificate, StageOverflow
from refqnn.accumulator.arguments import summing
from refqnn.accumulator.certificate import read_certificate
from refqnn.commands import console
from refqnn.commands.reading import Reader, accumulator_option, accumulators, reads
from refqnn.comparison import compare as compare_networks
from refqnn.display import safe
from refqnn.emulate import Accumulator, Accumulators, accumulator_of, check_names
from refqnn.errors import CertificateError, RefqnnError
from refqnn.files import write
from refqnn.formats import signed_bits
from refqnn.inspect import describe, table
from refqnn.ops import Interval
from refqnn.rounding import Rounding

if TYPE_CHECKING:
    from refqnn.accumulator.ladder import Method
    from refqnn.network import Difference, Network
    from refqnn.onnx import Flavour


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
@reads
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
@accumulator_option
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
@reads
def certify(
    file: Path,
    bits: int | None,
    unsigned: bool,
    registers: Accumulator | Path | None,
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

    With --accumulator: the same for the results of an accumulator in stages, with a proof or an
    input for each stage; sums that wrap and change no result do no harm.

    With --verify: exits with 1 when the certificate does not hold for the network.

    The result that --json writes is the certificate, with its stages where there are any.
    """
    asked = (bits is not None) + (registers is not None)
    if asked > 1:
        raise click.UsageError("give --bits, one register, or --accumulator, its stages")
    if not asked and (layer is not None or unsigned):
        raise click.UsageError("--layer and --unsigned go with --bits, --layer with --accumulator")
    extras.require(*["plot"] * (plot_file is not None))
    network = read(file)
    if layer is not None:
        summing(network, layer)
    samples = None if inputs is None else console.load_array(inputs)
    staged = None if registers is None else _of_layer(accumulators(registers), network, layer)
    certificate: Certificate | StagedCertificate
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
    if staged is not None:
        if isinstance(certificate, StagedCertificate):
            raise click.UsageError("--verify names a certificate of an accumulator already")
        certificate = accumulator.with_stages(certificate, network, staged, budget_s=budget)
    exact = certificate.certificate if isinstance(certificate, StagedCertificate) else certificate
    seen = None if samples is None else accumulator.observed(network, samples)
    _print_certificate(file, exact, seen)
    console.print_json(json_file, certificate.to_json())
    count = None if samples is None else len(samples)
    console.written(plot_file, lambda path: plotting.certificate_figure(exact, path, seen, count))
    if isinstance(certificate, StagedCertificate):
        _print_stages(certificate)
    if bits is not None:
        with console.Bars() as bars:
            answer = accumulator.find_overflow(
                network,
                layer,
                bits=bits,
                signed=not unsigned,
                budget_s=budget,
                certificate=exact,
                progress=bars.progress,
            )
        _print_overflow(answer)


def _of_layer(given: Accumulators, network: Network, layer: str | None) -> Accumulators:
    """The accumulators of all layers, or of this one.  Raises: InvalidArgument."""
    check_names(given, summing(network, None))
    if layer is None:
        return given
    one = accumulator_of(given, layer)
    return {} if one is None else {layer: one}


def _verified(
    file: Path, network: Network, budget: float, allow_trusted: bool
) -> Certificate | StagedCertificate:
    """The certificate of a file, rechecked; prints how many bounds were confirmed, by proof."""
    certificate = read_certificate(file)
    try:
        counts = certificate.verify(network, budget_s=budget, allow_trusted=allow_trusted)
    except CertificateError as error:
        raise console.DoesNotHold(f"{file}: {error}") from error
    console.show(
        f"{file} holds: " + ", ".join(f"{count:,} {proof}" for proof, count in counts.items())
    )
    return certificate


def _print_stages(certificate: StagedCertificate) -> None:
    """What is known of each stage, inputs that do harm behind it; ends as the docstring says."""
    console.print_table(
        "Stages of accumulators, the innermost first",
        (
            {
                "layer": report.layer,
                "stage": report.number,
                "what": report.stage,
                "verdict": report.verdict.value,
                "range": "[{:,}, {:,}]".format(*report.range),
                "proof": report.proof.label if report.verdict.proved else None,
            }
            for report in certificate.stages
        ),
    )
    harmful = [found for r in certificate.stages if (found := StageOverflow.of(r)) is not None]
    for overflow in harmful:
        _print_witness(overflow)
    if harmful:
        raise SystemExit(console.OVERFLOW_POSSIBLE)
    if not certificate.safe:
        console.show("some stages are open: try a larger --budget")
        raise SystemExit(console.OVERFLOW_UNKNOWN)
    console.show("no result changes, for any input")


def _print_certificate(
    file: Path, certificate: Certificate, seen: dict[str, Interval] | None
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
    if isinstance(answer, accumulator.Overflow):
        _print_witness(answer)
        raise SystemExit(console.OVERFLOW_POSSIBLE)
    console.show(answer)
    if isinstance(answer, accumulator.Unknown):
        console.show("try a larger --budget")
        raise SystemExit(console.OVERFLOW_UNKNOWN)


def _print_witness(overflow: accumulator.Overflow) -> None:
    console.show(overflow, "input codes: " + json.dumps(overflow.witness.tolist()))


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
@reads
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
@reads
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
    them, and flat (see `refqnn trace`).  Of a TFLite model, each tensor of the dump is computed
    from those before it, and the runtimes that it follows are named.  Exits with 1 where they part.
    """
    two_runtimes = len(read.runtimes) == 2
    if sum((b is not None, dump is not None, two_runtimes)) != 1:
        raise click.UsageError("give B, or --against, or one TFLite model and --runtime twice")
    if inputs is None and dump is None:
        raise click.UsageError("give --inputs, the samples to run both networks on")
    if two_runtimes:
        assert inputs is not None
        first, second = read.runtimes
        X = console.load_array(inputs)
        parting = tflite.compare_runtimes(a, first, second, X, input=read.door, output=read.stop)
        console.show(*str(parting).splitlines())
        console.print_json(json_file, {"equal": parting.first is None, **vars(parting)})
        raise SystemExit(console.DIFFERENT if parting.first else 0)
    samples = None if inputs is None else console.load_array(inputs)
    if dump is not None and tflite.is_tflite(a):
        found = _of_device(a, dump, samples, read, layout=layout, catalogue=())
        console.show(*(f"{name}: {note}" for name, note in found.notes.items()))
        console.show(*found.profile_lines())
        difference = found.findings[0].difference if found.findings else None
        return _told(difference, samples, json_file, found)
    network = read(a)
    if dump is None:
        assert b is not None
        assert samples is not None
        difference = compare_networks(network, read(b), samples)
    else:
        codes = None if samples is None else network.codes_of(samples)
        difference = network.diff(dumps.read_dump(dump), codes, layout=layout)
    _told(difference, samples, json_file)


def _told(
    difference: Difference | str | None,
    samples: Any,
    json_file: Path | None,
    found: diagnosis.Diagnosis | None = None,
) -> None:
    """What `refqnn diff` found."""
    told: dict[str, object] = {"equal": difference is None, "difference": difference}
    if found is not None:
        told |= {"profiles": found.profiles, "followed": found.followed}
    console.print_json(json_file, told)
    if difference is not None:
        console.show(difference)
        raise SystemExit(console.DIFFERENT)
    where = "the values of the dump" if samples is None else f"{len(samples):,} samples"
    console.show(f"equal on {where}")


def _of_device(
    model: Path, dump: Path, samples: Any, read: Reader, **options: Any
) -> diagnosis.Diagnosis:
    """The dump of a device that runs a TFLite model."""
    return tflite.diagnose_dump(
        model, dump, samples, runtime=read.runtime, input=read.door, output=read.stop, **options
    )


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
@reads
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
    samples = None if inputs is None else console.load_array(inputs)
    names = dict(_pair(text) for text in renamed)
    options: dict[str, Any] = {"names": names, "layout": layout, "rounding": rounding}
    if tflite.is_tflite(network_file):
        found = _of_device(network_file, dump, samples, read, budget_s=budget, **options)
    else:
        network = read(network_file)
        found = diagnosis.diagnose(network, dump, samples, budget_s=budget, **options)
    console.show(*str(found).split("\n"))
    console.print_json(json_file, found.to_dict())
    if not found.ok:
        raise SystemExit(console.DIFFERENT)


def _pair(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.rpartition("=")
    if not equals or not theirs:
        raise click.BadParameter(f"got {text!r}, expected THEIRS=OURS", param_hint="--name")
    return theirs, ours
