"""The program templates: they run as they are, and with some operations filled in they conform."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refqnn.conformance import OPERATIONS, conform
from refqnn.conformance.template import LANGUAGES, template
from refqnn.errors import InvalidArgument

PROGRAMS = Path(__file__).parent / "programs"

FILLED = {
    "python": {
        "rescale": """
    from fractions import Fraction
    from math import floor

    def at(values, channel):
        return values.data[channel if len(values.data) > 1 else 0]

    def rounded(x, mode):
        lower = floor(x)
        rest = x - lower
        up = {
            "floor": False,
            "ceil": rest > 0,
            "toward_zero": rest > 0 and x < 0,
            "away_from_zero": rest > 0 and x > 0,
            "half_up": 2 * rest >= 1,
            "half_down": 2 * rest > 1,
            "half_away": 2 * rest > 1 or (2 * rest == 1 and x > 0),
            "half_toward_zero": 2 * rest > 1 or (2 * rest == 1 and x < 0),
            "half_even": 2 * rest > 1 or (2 * rest == 1 and lower % 2 == 1),
        }
        return lower + up[mode]

    if not 1 <= bits <= 32 or (narrow and bits == 1):
        raise Refused("invalid_parameter")
    top = 2 ** (bits - signed) - 1 - (narrow and not signed)
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    ends = clip.data if clip else [low, top]
    rows = [ends[i : i + 2] for i in range(0, len(ends), 2)]
    lists = [multiplier, shift, zero_point, offset, first_shift]
    sizes = {len(rows), *(len(v.data) for v in lists)} - {1}
    if len(sizes) > 1 or (sizes and acc.shape[1] not in sizes):
        raise Refused("shape_mismatch")
    bad = min(multiplier.data) < 0 or max(multiplier.data) >= 2**62
    bad = bad or min(shift.data) < 0 or max(shift.data) > 62
    bad = bad or any(not low <= a <= b <= top for a, b in rows)
    inner = len(acc.data) // acc.shape[0] // acc.shape[1]
    codes = []
    for i, value in enumerate(acc.data):
        c = i // inner % acc.shape[1]
        m, s, z, b, f = (at(v, c) for v in lists)
        bad = bad or (first_rounding is not None and not 0 <= f <= s)
        if bad:
            raise Refused("invalid_parameter")
        value = Fraction((value + b) * m)
        if first_rounding is not None:
            value, s = Fraction(rounded(value / 2**f, first_rounding)), s - f
        lo, hi = rows[c if len(rows) > 1 else 0]
        codes.append(min(max(rounded(value / 2**s, rounding) + z, lo), hi))
    return {"codes": Tensor(acc.shape, codes)}
""",
        "binarize": """
    if any(v != v for v in x.data):
        raise Refused("not_a_number")
    return {"codes": Tensor(x.shape, [1 if v >= 0 else -1 for v in x.data])}
""",
    },
    "js": {
        "omega": """
    if (n_max < 1n || n_weights < 1n || n_inputs < 1n) throw new Refused("invalid_parameter");
    const most = (bits) => 2n ** bits - 1n;
    return { fan_in: most(n_max) / (most(n_weights) * most(n_inputs)) };
""",
        "lookup": """
    const [rows, columns] = table.shape;
    const inner = x.data.length / x.shape[0] / x.shape[1];
    const y = x.data.map((v, i) => {
      const column = v - lo;
      if (column < 0n || column >= BigInt(columns)) throw new Refused("out_of_range");
      const row = rows > 1 ? Math.floor(i / inner) % x.shape[1] : 0;
      return table.data[row * columns + Number(column)];
    });
    return { y: tensor(x.shape, y) };
""",
        "dequantize": """
    if (axis !== null || precision !== "float32") throw new Skipped("float32, one scale");
    const [zero, step] = [zero_point.data[0], Math.fround(scale.data[0])];
    const [low, high] = signed
      ? [-(2n ** (bits - 1n)) + (narrow ? 1n : 0n), 2n ** (bits - 1n) - 1n]
      : [0n, 2n ** bits - 1n - (narrow ? 1n : 0n)];
    if (codes.data.some((v) => v < low || v > high)) throw new Refused("out_of_range");
    const values = codes.data.map((v) => Math.fround(Math.fround(Number(v - zero)) * step));
    return { x: tensor(codes.shape, values, "float32") };
""",
    },
}
STUB = {
    "python": r'    raise Skipped\("not written yet"\)\n',
    "js": r'    throw new Skipped\("not written yet"\);\n',
    "c": r"static void {0}\(const Value \*a\) \{{\n    \(void\)a;\n    skip\(.*\);\n\}}\n",
}


def command(language: str, text: str, folder: Path) -> list[str]:
    """How to run the program."""
    tool = {"python": sys.executable, "js": shutil.which("node"), "c": shutil.which("cc")}[language]
    if tool is None:
        pytest.skip(f"nothing here runs {language}")
    file = folder / f"program.{language}"
    file.write_text(text)
    if language != "c":
        return [tool, str(file)]
    options = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-x", "c"]
    subprocess.run([tool, *options, str(file), "-o", str(folder / "program")], check=True)
    return [str(folder / "program")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_as_it_is_it_talks_and_skips(language: str, tmp_path: Path) -> None:
    report = conform(command(language, template(language), tmp_path))
    assert report.counts["unsupported"] == len(report.outcomes)
    assert {o.message for o in report.outcomes} == {"not written yet"}
    assert not report.conforms


def filled(language: str) -> tuple[str, set[str]]:
    """The template with some operations written, and their names."""
    text = template(language)
    if language == "c":
        source = (PROGRAMS / "integers.c").read_text()
        source = re.sub(r"\badd\(", "plus(", source)  # its helper has the name of an operation
        helpers = source[source.index("static int64_t plus(") : source.index("/* --- operations")]
        functions = ("linear", "conv2d", "requantize_thresholds", "flatten")
        text = text.replace("/* --- operations", helpers + "/* --- operations", 1)
        for name in functions:
            start = source.index(f"static void {name}(")
            body = source[start : source.index("\n}\n", start) + 3]
            text = re.sub(STUB["c"].format(name), lambda _, body=body: body, text)
        return text, {*functions}
    for name, body in FILLED[language].items():
        start = re.search(rf"^ *(def )?{name}\(", text, re.M)
        assert start is not None
        rest = re.sub(
            STUB[language], lambda _, b=body: b.lstrip("\n"), text[start.start() :], count=1
        )
        text = text[: start.start()] + rest
    return text, set(FILLED[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_filled_in_it_conforms(language: str, tmp_path: Path) -> None:
    text, names = filled(language)
    report = conform(command(language, text, tmp_path))
    assert report.conforms, report.summary()
    passed = {o.vector.operation for o in report.outcomes if o.status == "passed"}
    assert passed == names


def test_every_operation_has_a_stub_that_says_what_it_is() -> None:
    for language in LANGUAGES:
        text = " ".join(re.sub(r"^ *(\*|//)?", "", template(language), flags=re.M).split())
        for operation in OPERATIONS.values():
            assert " ".join(operation.definition.split()) in text, (language, operation.name)
    with pytest.raises(InvalidArgument, match="language"):
        template("cobol")
