"""The templates filled in: what an implementer would write, put where the stubs stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from refqnn.conformance.template import template

PROGRAMS = Path(__file__).parent / "programs"
_HEAD = "/* --- operations"
_STUB = {
    "python": r"def {0}\([^)]*\):\n(    .*\n|\n)*?    raise Skipped\(.*\)\n",
    "js": r"  {0}\([^)]*\) \{{\n    throw new Skipped\(.*\);\n",
    "c": r"static void {0}\(const Value \*a\) \{{\n    \(void\)a;\n    skip\(.*\);\n\}}\n",
}


def filled(language: str, bodies: Mapping[str, str], before: str = "") -> str:
    """The template with the bodies of some operations, and what they need before them."""
    text = template(language)
    for name, body in bodies.items():
        stub = re.search(_STUB[language].format(name), text)
        assert stub is not None, name
        first = "" if language == "c" else stub[0].splitlines(keepends=True)[0]
        text = text[: stub.start()] + first + body.lstrip("\n") + text[stub.end() :]
    return text.replace(_HEAD, before + _HEAD, 1)


def integers_c() -> tuple[str, set[str]]:
    """The C program, and the names of its operations."""
    helpers, _, operations = (PROGRAMS / "integers.c").read_text().partition(_HEAD)
    found = re.findall(r"^(static void (\w+)\(.*?^\}\n)", operations, re.M | re.S)
    bodies = {name: body for body, name in found}
    text = filled("c", bodies, helpers)
    return text.replace('\\"program.c', '\\"integers.c'), {*bodies}
