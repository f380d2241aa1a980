"""The command line, put together; `refqnn --help` lists the commands."""

from __future__ import annotations

import click

from refqnn import __version__
from refqnn.commands import bench, board, conformance, console, demo, doctor, fhe, files


@click.group(
    cls=console.Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="refqnn")
def refqnn() -> None:
    """Exact integers for quantized networks: check them, bound them, run them encrypted.

    Completion of commands and options, for a line of the shell's own file:

    \b
        bash   eval "$(_REFQNN_COMPLETE=bash_source refqnn)"
        zsh    eval "$(_REFQNN_COMPLETE=zsh_source refqnn)"
        fish   _REFQNN_COMPLETE=fish_source refqnn | source
    """


for _command in (
    demo.demo,
    files.inspect,
    files.certify,
    files.compare,
    files.convert,
    files.diff,
    files.diagnose,
    board.run,
    board.trace,
    board.report,
    conformance.conform,
    conformance.vectors,
    fhe.fhe,
    bench.bench,
    doctor.doctor,
):
    refqnn.add_command(_command)
