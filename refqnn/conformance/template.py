"""Programs to start from: reading and writing is done, one stub stands for each operation."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from refqnn.conformance.operations import OPERATIONS, Field, Operation
from refqnn.errors import InvalidArgument, mismatch

__all__ = ["LANGUAGES", "template"]

_FOLDER = Path(__file__).parent / "templates"


def _told(operation: Operation, width: int, prefix: str = "") -> str:
    """The definition, the arguments and the results, each line behind a prefix."""
    lines = textwrap.wrap(operation.definition, width)
    for title, fields in (("", operation.arguments), ("gives ", operation.outputs)):
        lines += [line for name in fields for line in _field(title + name, fields[name], width)]
    return "\n".join(f"{prefix}{line}".rstrip() for line in lines)


def _field(name: str, field: Field, width: int) -> list[str]:
    kind = " or ".join(field.choices) if field.choices else field.kind
    text = f"{name}: {kind}{' or null' if field.optional else ''}, {field.doc}"
    return textwrap.wrap(text, width, subsequent_indent="    ")


def _python(operation: Operation) -> str:
    told = _told(operation, 92, "    ").lstrip()
    return (
        f'def {operation.name}({", ".join(operation.arguments)}):\n    """{told}\n    """\n'
        f'    raise Skipped("not written yet")\n\n'
    )


def _javascript(operation: Operation) -> str:
    names = ", ".join(operation.arguments)
    return (
        f"{_told(operation, 92, '  // ')}\n  {operation.name}({{ {names} }}) {{\n"
        f'    throw new Skipped("not written yet");\n  }},\n'
    )


def _c(operation: Operation) -> str:
    told = _told(operation, 92, " * ")[3:]
    return (
        f"/* {told} */\nstatic void {operation.name}(const Value *a) {{\n"
        f'    (void)a;\n    skip("not written yet");\n}}\n'
    )


# File, how a stub is written, how an entry of the table of operations is.
_WRITTEN: Mapping[str, tuple[str, Callable[[Operation], str], str]] = {
    "c": ("program.c", _c, '    {{"{0}", {0}}},'),
    "js": ("program.js", _javascript, ""),
    "python": ("program.py.txt", _python, '    "{0}": {0},'),
}
LANGUAGES = tuple(_WRITTEN)


def template(language: str) -> str:
    """A program for `refqnn conform` that skips every question, to be filled in.

    Args:
        language: "c", "js" or "python".

    Raises: InvalidArgument for another.

    >>> "def omega(n_max, n_weights, n_inputs):" in template("python")
    True
    """
    if language not in _WRITTEN:
        expected = f"one of {', '.join(LANGUAGES)}"
        raise InvalidArgument(mismatch("language", repr(language), expected))
    name, stub, entry = _WRITTEN[language]
    stubs = "\n".join(map(stub, OPERATIONS.values()))
    table = "\n".join(map(entry.format, OPERATIONS))
    text = (_FOLDER / name).read_text(encoding="utf-8")
    return text.replace("@STUBS@", stubs.rstrip("\n") + "\n").replace("@TABLE@", table)
