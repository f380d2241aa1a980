"""Commands that show what a network computes: run, trace, report."""

from __future__ import annotations

from pathlib import Path

import click

from refqnn import dumps, extras
from refqnn.commands import console
from refqnn.commands.reading import Reader, reads_and_writes
from refqnn.container import array_to_npy, write_atomically


@click.command(cls=console.Command, short_help="Run a network on samples.")
@click.argument("file", metavar="NETWORK", type=console.FILE)
@click.argument("samples", metavar="X.npy", type=console.FILE)
@click.option("--output", type=console.NewFile(), help="Write the outputs to a .npy file.")
@console.FORM
@reads_and_writes
@console.json_option
def run(
    file: Path,
    samples: Path,
    output: Path | None,
    form: str | None,
    read: Reader,
    json_file: Path | None,
) -> None:
    """Run NETWORK (ours, ONNX or TFLite) on the samples of X.npy: floats, or integer input codes.

    Prints a line for each sample, unless the outputs go to a file.
    """
    network = read(file)
    integers = network.forward(network.codes_of(console.load_array(samples)))
    outputs = console.in_form(form, integers, network)
    if output is None and json_file is None:
        console.show(*(" ".join(map(str, row)) for row in outputs.reshape(len(outputs), -1)))
    if output is not None:
        data = array_to_npy(outputs)
        console.written(output, lambda path: write_atomically(path, lambda out: out.write(data)))
    console.print_json(json_file, {"network": network.digest, "outputs": outputs})


@click.command(cls=console.Command, short_help="Write every value of every node.")
@click.argument("file", metavar="NETWORK", type=console.FILE)
@click.argument("samples", metavar="X.npy", type=console.FILE)
@click.option(
    "--output",
    required=True,
    type=console.NewFile(folder=True),
    help="The .npz file, or the folder of the other forms.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(dumps.FORMS),
    default="npz",
    help="One file, or in a folder a file of each node.",
)
@reads_and_writes
def trace(file: Path, samples: Path, output: Path, form: str, read: Reader) -> None:
    """Run NETWORK (ours, ONNX or TFLite) on X.npy and write all integers, the input's codes first.

    What runs the same network elsewhere is compared with `refqnn diff NETWORK --against DUMP`.
    """
    network = read(file)
    values = network.trace(network.codes_of(console.load_array(samples)))
    dumps.write_trace(values, output, form)
    console.say(f"wrote {output}: {len(values)} values of {len(values['input']):,} samples")


@click.command(cls=console.Command, short_help="One page of HTML on a network.")
@click.argument("file", metavar="NETWORK", type=console.FILE)
@click.option(
    "--output", "-o", type=console.NewFile(), required=True, help="The page: an .html file."
)
@click.option("--inputs", type=console.FILE, help="A .npy file of samples to show the integers of.")
@click.option(
    "--fhe/--no-fhe",
    "encrypted",
    default=None,
    help="Compile a circuit for its lookups.  [default: where the extra fhe is there]",
)
@reads_and_writes
def report(
    file: Path, output: Path, inputs: Path | None, encrypted: bool | None, read: Reader
) -> None:
    """Write a page on NETWORK (ours, ONNX or TFLite): its graph, its ranges, what samples showed.

    The page stands alone: no script, nothing from elsewhere.
    """
    extras.require("report", *(["fhe"] if encrypted else []))
    network = read(file)
    samples = None if inputs is None else console.load_array(inputs)
    page = network.report(samples, title=file.name, encrypted=encrypted)
    console.written(output, page.save)
