"""`refqnn bench`: list and run the experiments of a checkout.

A bench is one module of the folder bench/: a script, or test_NAME.py for pytest-benchmark.  Its
docstring begins with a summary and shows the command that runs it, how long that takes behind a #:

        python bench/NAME.py      # 6 minutes on one core
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from refqnn.commands import compare as comparing
from refqnn.commands import console
from refqnn.errors import InvalidArgument, mismatch

_DURATION = re.compile(r"^\s+(?:python|pytest|refqnn) .*?#\s*(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Bench:
    """One experiment.

    Attributes:
        name: what `refqnn bench` calls it.
        path: its module.
        summary: first line of the module's docstring.
        duration: how long its docstring says that it takes; "" where it does not say.
    """

    name: str
    path: Path
    summary: str
    duration: str

    @property
    def of_pytest(self) -> bool:
        """Whether pytest runs it."""
        return self.path.name.startswith("test_")


def folder() -> Path:
    """bench/ of the checkout that refqnn is imported from, or of the current directory.

    Raises: InvalidArgument: neither has one; wheels hold no benches.
    """
    places = (Path(__file__).parents[2], Path.cwd())
    for place in places:
        if (place / "bench" / "common.py").is_file() and (place / "pyproject.toml").is_file():
            return place / "bench"
    expected = (
        "a checkout: clone the repository of refqnn and call `refqnn bench` inside it; an "
        "installed package does not hold the benches"
    )
    raise InvalidArgument(mismatch("folder", f"none in {places[1]}", expected))


def benches(where: Path | None = None) -> list[Bench]:
    """The benches of a folder (None: `folder()`), by name; modules that do nothing alone are not.

    Nothing is imported.
    """
    found = []
    for path in sorted((folder() if where is None else where).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not path.name.startswith("test_") and '__name__ == "__main__"' not in source:
            continue
        text = ast.get_docstring(ast.parse(source), clean=False) or ""
        duration = _DURATION.search(text)
        short = path.stem.removeprefix("test_")
        found.append(
            Bench(
                name=path.stem if path.with_stem(short).exists() else short,
                path=path,
                summary=text.strip().partition("\n")[0],
                duration="" if duration is None else duration[1].strip(),
            )
        )
    return sorted(found, key=lambda bench: bench.name)


def command(bench: Bench, arguments: Sequence[str] = ()) -> list[str]:
    """What runs a bench, as a list for `subprocess.run`.

    For pytest, ``--quick`` runs each measurement once, and ``--output FOLDER`` writes
    FOLDER/NAME.json; anything else goes to the bench, or to pytest, as it is.
    """
    if not bench.of_pytest:
        return [sys.executable, str(bench.path), *arguments]
    rest = list(arguments)
    options = ["--benchmark-enable", "-m", ""]  # "": the slow ones too
    if "--quick" in rest:
        rest.remove("--quick")
        options[0] = "--benchmark-disable"
    if "--output" in rest:
        at = rest.index("--output")
        if at + 1 == len(rest):
            raise InvalidArgument(mismatch("--output", "nothing", "a folder"))
        options.append(f"--benchmark-json={Path(rest[at + 1]) / bench.name}.json")
        del rest[at : at + 2]
    return [sys.executable, "-m", "pytest", str(bench.path), *options, *rest]


def _named(name: str) -> Bench:
    found = {bench.name: bench for bench in benches()}
    wanted = name.removesuffix(".py")
    if wanted not in found:
        wanted = wanted.removeprefix("test_")
    if wanted not in found:
        raise InvalidArgument(mismatch("name", repr(name), f"one of {', '.join(found)}"))
    return found[wanted]


def _compare(names: Sequence[str], json_file: Path | None) -> int:
    """Print each ratio, committed and now.  Returns: 1 where one has become worse, else 0."""
    found = [
        row for bench in map(_named, names) for row in comparing.run_again(bench.name, bench.path)
    ]
    console.print_table(
        "Peer's time / ours",
        (
            {
                "what": row.label,
                "committed": f"{row.before:.3g}",
                "now": f"{row.now:.3g}",
                "": "worse" if row.worse else "",
            }
            for row in found
        ),
    )
    told = [{**vars(row), "worse": row.worse} for row in found]
    console.print_json(json_file, told)
    return int(any(row.worse for row in found))


@click.command(
    cls=console.Command,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="The experiments: list them, run one.",
)
@click.option("--compare", is_flag=True, help="Run, and hold against the committed figures.")
@console.json_option
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(
    compare: bool, name: str | None, arguments: tuple[str, ...], json_file: Path | None
) -> None:
    """List the experiments, or run one: refqnn bench NAME [ARGUMENTS].

    Results are committed beside each bench, under bench/, as JSON and PNG; a run writes them anew.

    \b
        --quick            seconds instead, to see that it works; writes nothing
        --output FOLDER    write the results there

    refqnn bench NAME --help lists what else a bench takes.

    refqnn bench --compare [NAME] runs one bench that has a peer in it, or all such, and writes
    nothing.  It exits with 1 where a peer's time, divided by ours in the same run, is more than 1.2
    times smaller than committed.
    """
    if compare:
        names = list(comparing.RATIOS) if name is None else [name]
        raise SystemExit(_compare(names, json_file))
    if name is not None:
        raise SystemExit(subprocess.run(command(_named(name), arguments)).returncode)
    rows = [
        {"name": item.name, "takes": item.duration, "what it measures": item.summary}
        for item in benches()
    ]
    console.print_table("Benches", rows)
    console.show("refqnn bench NAME [--quick] [--output FOLDER]")
    console.print_json(json_file, rows)
