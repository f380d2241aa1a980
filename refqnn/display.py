"""How results look in a terminal and in a notebook.

Names of nodes and messages come from files: `safe` is the one way that they reach a terminal, and
`html_table` and `Shown` the way that they reach a page.  None is read as markup or as a control
sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["TEXT", "Shown", "cell", "html_table", "safe", "shortened", "text_table"]

TEXT = frozenset(
    (
        *("node", "layer", "kind", "inputs", "shape", "codes", "proof", "quantizer", "first"),
        *("name", "takes", "what it measures", "what", "here", "lookups", "hint", "removed", "who"),
        *("verdict",),
    )
)
"""Columns of text, which stand on the left; figures stand on the right."""


def safe(text: object) -> str:
    """The text in one line that a terminal shows as it is: what cannot be printed is escaped.

    >>> print(safe("fc1\\x1b[31m \\u202e\\n[bold]"))
    fc1\\x1b[31m \\u202e\\n[bold]
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in str(text)
    )


def shortened(listed: str, length: int = 80) -> str:
    """A list with commas, safe, without the items behind the first `length` characters.

    >>> shortened("fc1, fc2, fc3", 9), shortened("features.fc1, fc2", 8)
    ('fc1, ...', 'features...')
    """
    text = safe(listed)
    if len(text) <= length:
        return text
    whole, comma, _ = text[:length].rpartition(", ")
    return f"{whole}, ..." if comma else f"{text[:length]}..."


def cell(value: object) -> str:
    """A value of a table: None is empty, integers have commas.

    >>> cell(12345), cell(None), cell("fc1")
    ('12,345', '', 'fc1')
    """
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else safe(value)


def text_table(title: str, rows: Iterable[Mapping[str, object]]) -> str:
    """Rows of {column: value} under one another, with two spaces between the columns.

    >>> print(text_table("bits", [{"layer": "fc1", "proved": 12}]))
    bits
    layer  proved
    fc1        12
    """
    lines = _cells(rows)
    if not lines:
        return f"{safe(title)}: none"
    sides = ["<" if column in TEXT else ">" for column in lines[0]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [
        "  ".join(f"{c:{side}{width}}" for c, side, width in zip(line, sides, widths)).rstrip()
        for line in lines
    ]
    return "\n".join([*([safe(title)] if title else ()), *text])


def html_table(title: str, rows: Iterable[Mapping[str, object]]) -> str:
    """The same as an HTML table: a caption, heads of columns and of rows, everything escaped.

    >>> html_table("a < b", [{"layer": "<i>"}])
    '<table><caption>a &lt; b</caption><thead><tr><th scope="col">layer</th></tr></thead><tbody><tr><th scope="row">&lt;i&gt;</th></tr></tbody></table>'
    """  # noqa: E501
    from html import escape

    lines = _cells(rows) or [["none"]]
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in lines[0])
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in lines[1:]
    )
    return (
        f"<table><caption>{escape(safe(title))}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(rows: Iterable[Mapping[str, object]]) -> list[list[str]]:
    """The columns' names, and the cells of each row; nothing where there is no row."""
    listed = list(rows)
    heads = [[safe(column) for column in row] for row in listed[:1]]
    return heads + [[cell(value) for value in row.values()] for row in listed]


class Shown:
    """In a notebook: what `str` says, line for line."""

    def _repr_html_(self) -> str:
        lines = (safe(line) for line in str(self).split("\n"))
        from html import escape

        return "<pre>" + escape("\n".join(lines)) + "</pre>"
