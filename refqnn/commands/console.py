"""What all commands share: text on two streams, tables, progress, files to read and to write.

What comes from files (names of nodes, messages of errors) reaches the terminal through `show`,
`say`, `print_table` and `Failure` alone: none of it is read as markup or as a control sequence.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from refqnn.container import refuse_keys, write_atomically
from refqnn.display import TEXT, cell, safe
from refqnn.errors import FileFormatError, RefqnnError
from refqnn.foreign import refuse_foreign
from refqnn.network import Network

# Exit codes; 0 is success.
DIFFERENT = 1  # also: a certificate that does not hold, an answer that is wrong, a stale file
OVERFLOW_POSSIBLE = 1
USAGE_OR_DATA_ERROR = 2
OVERFLOW_UNKNOWN = 3
INTERRUPTED = 130
BROKEN_PIPE = 141


class _Stream(Console):
    def on_broken_pipe(self) -> None:  # rich would exit with 1
        raise BrokenPipeError


_output = _Stream()
_messages = _Stream(stderr=True)


# --- text -------------------------------------------------------------------------------------


def show(*lines: object) -> None:
    """Results, to standard output; a line stays a line."""
    _print(_results(), lines)


def say(*lines: object) -> None:
    """What goes on, to standard error."""
    _print(_messages, lines)


def _results() -> Console:
    """Where results go: standard output, or beside it where JSON was asked for there."""
    context = click.get_current_context(silent=True)
    return _messages if context is not None and DASH in context.params.values() else _output


def _print(stream: Console, lines: Iterable[object]) -> None:
    for line in lines:
        stream.print(Text(safe(line)), soft_wrap=True)


def print_table(title: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Rows of {column: cell}: text on the left, figures on the right, None empty, no wrapping."""
    table = Table(
        title=Text(safe(title)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for row in rows:
        for column in () if table.columns else row:
            table.add_column(column, justify="left" if column in TEXT else "right", no_wrap=True)
        table.add_row(*(Text(cell(value)) for value in row.values()))
    if not table.columns:
        return show(f"{title}: none")
    print_wide(table)


def print_wide(table: Table) -> None:
    """The table at its full width, on a narrow terminal too: figures are never cut."""
    stream = _results()
    width = Measurement.get(stream, stream.options.update(width=10_000), table).maximum
    _Stream(width=max(width, stream.width), stderr=stream.stderr).print(table)


class Bars:
    """The demo's Reporter on a terminal; plain lines where there is none."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<26}", markup=False),
            BarColumn(bar_width=28),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=_messages,
            disable=not _messages.is_terminal,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[str], None]]:
        task = self._progress.add_task(safe(title), total=total, detail="")
        done = 0

        def advance(detail: str = "") -> None:
            nonlocal done
            done += 1
            self._progress.update(task, completed=done, detail=safe(detail))

        yield advance
        self._progress.update(task, total=max(done, 1), completed=max(done, 1))
        if not _messages.is_terminal:
            say(f"{title}: {self._progress.tasks[task].elapsed or 0.0:.1f} s")

    def progress(self, what: str, done: int, total: int) -> None:
        """One bar per kind of work, for functions that report (what, done, total)."""
        what = safe(what)
        for task in self._progress.tasks:
            if task.description == what:
                self._progress.update(task.id, completed=done, total=total)
                return
        self._progress.add_task(what, completed=done, total=total, detail="")


# --- files ------------------------------------------------------------------------------------

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FIGURES = (".png", ".pdf", ".svg")
DASH = Path("-")  # standard output


class NewFile(click.Path):
    """A file to write; refused before the work begins where it could not be written after it.

    Args:
        endings: that its name may have; any by default.
        keys: may it be a file of private keys?
        dash: may it be standard output, "-"?
        folder: is it a folder, which may be there already?
    """

    def __init__(
        self, *endings: str, keys: bool = False, dash: bool = False, folder: bool = False
    ) -> None:
        super().__init__(dir_okay=folder, writable=True, path_type=Path)
        self.endings, self.keys, self.dash = endings, keys, dash

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path == DASH and not str(value).startswith("./"):
            return path if self.dash else self.fail("'-': this does not go to standard output")
        folder = path.parent
        if not folder.is_dir():
            self.fail(f"{str(path)!r}: there is no folder {str(folder)!r}; make it first")
        if not path.exists() and not os.access(folder, os.W_OK):
            self.fail(f"{str(path)!r}: the folder {str(folder)!r} is read-only; choose another")
        if self.endings and path.suffix.lower() not in self.endings:
            self.fail(f"{str(path)!r}: expected a name that ends in {', '.join(self.endings)}")
        if not self.keys:
            refuse_keys(path)
        return path


F = TypeVar("F", bound=Callable[..., object])


def save_option(flag: str, name: str, what: str, *endings: str) -> Callable[[F], F]:
    """An option that names a file to write, handed to the command as `name`."""
    return click.option(flag, name, type=NewFile(*endings), help=what)


def json_option(command: F) -> F:
    """--json FILE, handed to the command as `json_file` for `print_json`."""
    told = (
        'Write the result as JSON to FILE, or {"error": message}; to standard output with -, and '
        "the rest beside it."
    )
    file = NewFile(dash=True)  # eager: known before another argument is refused
    return click.option("--json", "json_file", type=file, is_eager=True, help=told)(command)


def print_json(path: Path | None, value: object) -> None:
    """The result of a command, where `json_option` asked for it."""
    if path is None:
        return
    text = json.dumps(value, default=_plain) + "\n"
    if path == DASH:
        click.echo(text, nl=False)
    else:
        written(path, lambda file: write_atomically(file, lambda out: out.write(text.encode())))


def _plain(value: object) -> object:
    """What JSON has no form for: fields of a dataclass, items of an array, else text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def written(path: Path | None, write: Callable[[Path], object]) -> None:
    """Write a file that was asked for, and say so."""
    if path is not None:
        write(path)
        say(f"wrote {path}")


def load_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file.  Raises: FileFormatError, OSError."""
    refuse_foreign(path, "a .npy file of numbers", ("npy",))
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise FileFormatError(f"{path}: not a .npy file of numbers ({error})") from error
    return array


FORM = click.option(
    "--as",
    "form",
    type=click.Choice(["floats", "integers", "classes"]),
    help="Dequantized, the network's integers, or the index of the largest.  "
    "[default: floats if the network has output scales, else integers]",
)


def in_form(form: str | None, integers: NDArray[Any], network: Network) -> NDArray[Any]:
    """Output integers in the form that `FORM` asks for."""
    scaled = network.output_dequantizer is not None
    if form == "integers" or (form is None and not scaled):
        return integers
    if form != "classes":
        return network.dequantize_output(integers)
    scores = network.dequantize_output(integers) if scaled else integers
    return np.asarray(scores.argmax(axis=1))  # scales may differ between outputs


# --- commands ---------------------------------------------------------------------------------


class Failure(click.ClickException):
    """An end in one line: "Error: message"."""

    exit_code = USAGE_OR_DATA_ERROR

    def __init__(self, message: object) -> None:
        super().__init__(safe(message))


class DoesNotHold(Failure):
    """The end of a check that failed."""

    exit_code = DIFFERENT


class Command(click.Command):
    """A command that ends before its work where a file that it writes is given twice.

    Where it ends in an error, that is its JSON: {"error": message}.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if ctx.params.get("json_file") == DASH:  # a file may yet be one of the others
                print_json(DASH, {"error": error.format_message()})
            raise

    def invoke(self, ctx: click.Context) -> Any:
        _refuse_a_file_twice(ctx)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (RefqnnError, OSError, click.ClickException) as error:
            told = error.message if isinstance(error, click.ClickException) else str(error)
            print_json(ctx.params.get("json_file"), {"error": told})
            raise


class Group(click.Group):
    """Our errors and the system's end in one line, not in a traceback."""

    command_class = Command
    group_class = type  # a group inside it is one of these too

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None  # click would say "Aborted!"
        except BrokenPipeError:
            # `refqnn ... | head`: as a signal would end it, not with the code of a difference.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(BROKEN_PIPE) from None
        except (RefqnnError, OSError) as error:
            raise Failure(error) from error
        except MemoryError as error:
            raise Failure(f"not enough memory {error}") from error


def _refuse_a_file_twice(ctx: click.Context) -> None:
    """What a command writes must be neither what it reads nor what else it writes.

    Raises: click.UsageError that names both arguments.
    """
    given = [(param, path) for param in ctx.command.params for path in _paths(param, ctx)]
    for i, (param, path) in enumerate(given):
        for other, other_path in given[:i]:
            writes = isinstance(param.type, NewFile) or isinstance(other.type, NewFile)
            if writes and _same_file(path, other_path):
                names = f"{other.get_error_hint(ctx)} and {param.get_error_hint(ctx)}"
                raise click.UsageError(f"{names} are one file, {str(path)!r}; give each its own")


def _paths(param: click.Parameter, ctx: click.Context) -> list[Path]:
    """The files of an argument; of a command line of someone else's program, those that exist."""
    value = ctx.params.get(param.name or "")
    if isinstance(value, Path):
        return [value]
    words = value if isinstance(value, tuple) and param.type is click.UNPROCESSED else ()
    return [Path(word) for word in words if os.path.isfile(word)]


def _same_file(a: Path, b: Path) -> bool:
    if os.path.exists(a) and os.path.exists(b):
        return os.path.isfile(a) and os.path.samefile(a, b)  # a terminal may be given twice
    return os.path.realpath(a) == os.path.realpath(b)
