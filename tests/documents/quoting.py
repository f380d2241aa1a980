"""A document whose sentences tests quote: a sentence that changes takes its test along."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Document:
    """Markdown files, read as one, without the comments that no reader sees.

    Args:
        names: relative to the repository.
    """

    def __init__(self, *names: str) -> None:
        self.name = names[0]
        texts = (re.sub("<!--.*?-->", "", (ROOT / n).read_text(encoding="utf-8")) for n in names)
        self.text = " ".join(" ".join(texts).split())

    def says(self, sentence: str) -> None:
        """Fails where the document does not hold the sentence, white space aside."""
        folded = " ".join(sentence.split())
        assert folded in self.text, f"{self.name} says no longer: {folded}"

    def numbers(self, pattern: str) -> list[float]:
        """The groups of a pattern that the document holds once, as numbers."""
        (found,) = re.finditer(pattern, self.text)
        return [float(group.replace(",", "")) for group in found.groups()]
