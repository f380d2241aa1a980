"""The README's Python blocks run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    short_epochs: None,
) -> None:
    for module in ("brevitas", "concrete.fhe"):
        pytest.importorskip(module)
    text = README.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        padded = "\n" * line + block[1]  # so that a traceback shows the README's line
        exec(compile(padded, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "features.fc1[3, 0]: expected" in printed
    assert "outside [-8, 7]" in printed
