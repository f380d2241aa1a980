"""`refqnn doctor`: what is installed, and what works here."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from importlib import import_module
from pathlib import Path

import click

import refqnn
from refqnn.commands import console
from refqnn.extras import EXTRAS, PURPOSES, installed
from refqnn.limits import available_memory


@click.command(cls=console.Command, short_help="What is installed, and what works here.")
@console.json_option
def doctor(json_file: Path | None) -> None:
    """Show the interpreter, the memory, and for each extra its packages and whether they load."""
    machine = {
        "refqnn": refqnn.__version__,
        "python": platform.python_version(),
        "numpy": installed("numpy"),
        "system": platform.platform(terse=True),
        "processors": os.cpu_count(),
        "memory": _memory(),
    }
    extras = [_extra(name) for name in EXTRAS]
    console.print_table("This machine", ({"name": k, "here": v} for k, v in machine.items()))
    console.print_table("Extras", extras)
    absent = ",".join(str(row["name"]) for row in extras if row["works"] == "no")
    console.show(
        "Without any extra: networks, their files, proofs of ranges, test vectors.",
        *([f"what is absent comes with: python -m pip install 'refqnn[{absent}]'"] * bool(absent)),
    )
    if sys.version_info >= (3, 13):
        console.show("Encrypted inference needs Python 3.12 or older: there is no newer Concrete.")
    console.print_json(json_file, {"machine": machine, "extras": extras})


def _extra(name: str) -> dict[str, object]:
    packages = {package: installed(package) for package in EXTRAS[name]}
    told = ", ".join(f"{package} {version or 'absent'}" for package, version in packages.items())
    works = "no" if None in packages.values() else _loads(name)
    return {"name": name, "what": PURPOSES[name], "works": works, "here": told}


def _loads(name: str) -> str:
    """ "yes", or the error of the first import that fails: packages may not fit together."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's packages
            for module in EXTRAS[name].values():
                import_module(module)
    except Exception as error:  # of other people's packages, anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "yes"


def _memory() -> str | None:
    free = available_memory()
    return None if free is None else f"{free / 1e9:.1f} GB available"
