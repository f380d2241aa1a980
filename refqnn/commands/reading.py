"""What commands read: networks, with the options that say how a foreign file is read, and
accumulators."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import click

from refqnn import tflite
from refqnn.accumulator.staged_files import read_accumulators
from refqnn.commands import console
from refqnn.emulate import PRESETS, Accumulator, Accumulators
from refqnn.errors import InvalidArgument
from refqnn.files import open_file
from refqnn.network import Network
from refqnn.onnx.reader import Imported
from refqnn.tflite import Runtime

__all__ = ["Reader", "accumulator_option", "accumulators", "reads", "reads_and_writes"]


@dataclass(frozen=True)
class Reader:
    """Opens a network as the options of a command say; names what an ONNX file has left out."""

    door: str | None
    stop: str | None
    strict: bool
    runtimes: tuple[Runtime, ...]

    def __call__(self, file: Path) -> Network:
        return self.imported(file).network

    @property
    def runtime(self) -> Runtime:
        """The one that was given."""
        if len(self.runtimes) > 1:
            raise click.UsageError("give --runtime once")
        return self.runtimes[0]

    def imported(self, file: Path) -> Imported:
        """With what is known of the file besides."""
        imported = open_file(
            file, input=self.door, output=self.stop, strict=self.strict, runtime=self.runtime
        )
        console.say(*(f"left out behind the output: {node}" for node in imported.dropped))
        return imported


def _reads(command: Callable[..., None], *stops: str) -> Callable[..., None]:
    """Options that say how a foreign file is read, and `read`, which opens a file so."""

    @click.option("--input", "door", help="Tensor to start from; ONNX: or UINT8, INT4, ...: codes.")
    @click.option(*stops, "stop", help="Tensor of an ONNX or TFLite file to stop at.")
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


def reads(command: Callable[..., None]) -> Callable[..., None]:
    """For a command that writes nothing to --output."""
    return _reads(command, "--output", "--stop")


def reads_and_writes(command: Callable[..., None]) -> Callable[..., None]:
    """For a command whose --output is the file that it writes."""
    return _reads(command, "--stop")


def _accumulator(
    context: click.Context, option: click.Parameter, value: str | None
) -> Accumulator | Path | None:
    """A preset, NAME or NAME:PARAMETER=INTEGER,..., or the path of a file."""
    name, _, parameters = (value or "").partition(":")
    if value is None or name not in PRESETS:
        if value is not None and not os.path.isfile(value):
            presets = ", ".join(PRESETS)
            raise click.BadParameter(f"{value!r} is neither a file nor one of {presets}")
        return None if value is None else Path(value)
    pairs = [pair.partition("=") for pair in parameters.split(",") if pair]
    try:
        return Accumulator.preset(name, **{key: int(number) for key, _, number in pairs})
    except InvalidArgument as error:
        raise click.BadParameter(f"{value!r}: {error}") from error
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: expected {name}:PARAMETER=INTEGER,...") from error


accumulator_option = click.option(
    "--accumulator",
    "registers",
    callback=_accumulator,
    metavar="PRESET|FILE",
    help="Ask: does this accumulator change a result?  One in use by name (finn:width=16,simd=4 "
    "where it leaves something open), or stages as JSON.",
)
"""--accumulator, handed to the command as `registers` for `accumulators`."""


def accumulators(given: Accumulator | Path) -> Accumulators:
    """What `accumulator_option` was given.  Raises: as `read_accumulators`."""
    return read_accumulators(given) if isinstance(given, Path) else given
