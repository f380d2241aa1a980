"""No figure in a table of README or the pages is typed: each is filled in from bench/*.json."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest
from quoting import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "refqnn" / "docs").glob("*.md"))]
FILLED = re.compile(r"<!--=\w+-->.*?<!--/=-->", re.DOTALL)
QUANTITY = re.compile(
    r"(?<![\w.-])(?:\.\d{2,}|\d[\d,.]* ?(?:%|x\b|s\b|ms\b|us\b|MB\b|GB\b)|\d[\d,.]* to \d)"
    r"|^\**\d[\d,.]*\**$"
)


def typed_in_tables(text: str) -> Iterator[str]:
    """Cells of Markdown tables that state a quantity outside of what a command fills in."""
    for line in FILLED.sub("", text).splitlines():
        if line.startswith("|"):
            cells = (re.sub("`[^`]*`", "", cell).strip() for cell in line.strip("|").split("|"))
            yield from (cell for cell in cells if QUANTITY.search(cell))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_table_holds_a_typed_figure(page) -> None:
    assert not list(typed_in_tables(page.read_text(encoding="utf-8")))


def test_the_command_types_none_either() -> None:
    """What bench/readme.py puts in a row is a word, or comes out of a file."""
    tree = ast.parse((ROOT / "bench" / "readme.py").read_text(encoding="utf-8"))
    rows = [node for node in ast.walk(tree) if isinstance(node, ast.List)]
    words = [w for row in rows for w in ast.walk(row) if isinstance(w, ast.Constant)]
    texts = [word.value for word in words if isinstance(word.value, str)]
    assert len(texts) > 20
    assert {text for text in texts if QUANTITY.search(text)} <= {"95 % interval"}  # a head


@pytest.mark.parametrize(
    "cell", [".867", "**.958** (ceiling)", "5 to 9 ms", "57 to 100 %", "20 x ours", "12", "3.5 s"]
)
def test_a_typed_figure_is_noticed(cell: str) -> None:
    assert list(typed_in_tables(f"| what | {cell} |"))
    assert not list(typed_in_tables(f"<!--=name-->{cell}<!--/=-->"))
    assert not list(typed_in_tables(f"<!--=name-->\n| what | {cell} |\n<!--/=-->"))


def test_figures_of_others_have_a_source() -> None:
    content = json.loads((ROOT / "bench" / "published.json").read_text())
    for name, figures in content.items():
        assert name == "what" or figures["source"], name
