"""mkdocs: one page of the API reference for each public module, from its docstrings."""

import ast
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parent.parent / "refqnn"


def on_files(files: Files, config: Any, **_: object) -> Files:
    """Add the pages, which read the source and import nothing, behind those of the index."""
    modules = _public()
    for name in modules:
        files.append(File.generated(config, f"reference/{name}.md", content=_page(name)))
    lines = [f"- [`{name}`]({name}.md)" for name in modules]
    content = "\n".join(["# API reference", "", "From the docstrings.", "", *lines, ""])
    files.append(File.generated(config, "reference/index.md", content=content))
    index = (PACKAGE / "docs" / "index.md").read_text(encoding="utf-8")
    reference = [f"reference/{name}.md" for name in ("index", *modules)]
    order = re.findall(r"\]\(([\w-]+\.md)\)", index)  # in which one learns
    config.nav = ["index.md", *order, {"Reference": reference}]
    return files


def _public() -> list[str]:
    """refqnn, and what it imports when it is first used; with what has no lazy name."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    lazy = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "refqnn"
        for alias in node.names
    ]
    return ["refqnn", *(f"refqnn.{name}" for name in sorted({*lazy, "errors", "ops", "simplify"}))]


def _page(module: str) -> str:
    """The members are those of `__all__`, re-exported ones too."""
    return f"# {module}\n\n::: {module}\n"


class Doctests(Extension):
    """Examples in docstrings are code; Markdown would take >>> for a quotation in quotations."""

    def on_instance(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None:
            fenced = r"\1```pycon\n\g<0>\n\1```"
            block = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)
            obj.docstring.value = block.sub(fenced, obj.docstring.value)
