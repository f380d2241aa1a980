"""How every command opens a network: the options that say how a foreign file is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import click

from refqnn import onnx, tflite
from refqnn.commands import console
from refqnn.network import Network
from refqnn.onnx.reader import Imported
from refqnn.tflite import Runtime

__all__ = ["Reader", "reads", "reads_and_writes"]


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
        imported = onnx.open_file(
            file, input=self.door, output=self.stop, strict=self.strict, runtime=self.runtimes[0]
        )
        console.say(*(f"left out behind the output: {node}" for node in imported.dropped))
        return imported


def _reads(command: Callable[..., None], *stops: str) -> Callable[..., None]:
    """Options that say how a foreign file is read, and `read`, which opens a file so."""

    @click.option("--input", "door", help="ONNX tensor to start from, or UINT8, INT4, ...: codes.")
    @click.option(*stops, "stop", help="ONNX tensor to stop at.")
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
