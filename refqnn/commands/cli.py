"""The command line, put together; `refqnn --help` lists the commands."""

from __future__ import annotations

import click

from refqnn import __version__
from refqnn.commands import bench, conformance, console, demo, fhe, files


@click.group(
    cls=console.Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="refqnn")
def refqnn() -> None:
    """Exact integers for quantized networks: check them, bound them, run them encrypted."""


for _command in (
    demo.demo,
    files.inspect,
    files.certify,
    files.compare,
    files.convert,
    files.diff,
    files.diagnose,
    conformance.conform,
    conformance.vectors,
    fhe.fhe,
    bench.bench,
):
    refqnn.add_command(_command)
