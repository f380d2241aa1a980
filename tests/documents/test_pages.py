"""refqnn/docs, page by page: every block runs as it stands, every link leads somewhere.

Blocks of Python and of the shell run one after the other, in a folder of their own, a page at a
time.  A `console` block is only shown: what installs packages, or needs a program of the reader's.
"""

from __future__ import annotations

import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from quoting import ROOT

DOCS = ROOT / "refqnn" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)\)")


def run_blocks(page: Path, folder: Path) -> int:
    """Run a page's blocks inside a folder.  Returns: how many there are."""
    text, names = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code in (block.groups() for block in blocks):
        if language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", code]
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        else:
            line = text[: text.index(code)].count("\n")
            exec(compile("\n" * line + code, str(page), "exec"), names)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_epochs: None
) -> None:
    for module in ("brevitas", "concrete.fhe", "onnx", "click"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page, tmp_path) or page.stem in ("index", "glossary", "figures")


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    for number, code in enumerate(("```python\nassert 0\n```\n", "```bash\nfalse | true\n```\n")):
        page = tmp_path / f"{number}.md"
        page.write_text(code)
        with pytest.raises(AssertionError):
            run_blocks(page, tmp_path)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_index_names_every_page() -> None:
    links = set(LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert links == {page.name for page in PAGES} - {"index.md"}


def test_the_glossary_is_in_order_and_says_each_word_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    words = [row.lower() for row in rows[2:]]
    assert words == sorted(set(words))


def test_every_profile_has_a_specification_that_names_it() -> None:
    profiles = pytest.importorskip("refqnn.tflite.profiles")
    for module in ("brevitas", "concrete.fhe", "onnx"):
        pytest.importorskip(module)
    text = (DOCS / "why-integers-differ.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| `help\(([\w.]+)\)` \|$", text, re.MULTILINE)
    told = {name: page for names, page in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(told) > set(get_args(profiles.Runtime))
    assert set(told) - set(get_args(profiles.Runtime)) == {
        "onnxruntime",
        "tosa",
        "brevitas",
        "concrete",
    }
    for name, page in told.items():
        words = " ".join((pydoc.locate(page).__doc__ or "").lower().split())
        means = {"tosa": "multiplier", "onnxruntime": "float32"}  # pages of ours, of a wider name
        assert means.get(name, name) in words, (name, page)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_figure_is_that_of_bench() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "readme.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
