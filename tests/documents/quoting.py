"""A document whose sentences tests quote: a sentence that changes takes its test along."""

from __future__ import annotations

import re
from importlib import import_module
from operator import attrgetter
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
        self.text = _folded(" ".join(texts))

    @classmethod
    def of(cls, name: str) -> Document:
        """The docstring of something in refqnn, such as "Network.trace"."""
        document = cls.__new__(cls)
        thing = attrgetter(name)(import_module("refqnn"))
        document.name, document.text = name, _folded(thing.__doc__)
        return document

    def says(self, sentence: str) -> None:
        """Fails where the document does not hold the sentence, white space aside."""
        folded = _folded(sentence)
        assert folded in self.text, f"{self.name} says no longer: {folded}"

    def numbers(self, pattern: str) -> list[float]:
        """The groups of a pattern that the document holds once, as numbers."""
        (found,) = re.finditer(pattern, self.text)
        return [float(group.replace(",", "")) for group in found.groups()]


def _folded(text: str) -> str:
    return " ".join(text.split())
