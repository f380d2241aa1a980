"""The program templates: they run as they are, and with some operations filled in they conform."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filling import filled, integers_c

from refqnn.conformance import OPERATIONS, conform
from refqnn.conformance.template import LANGUAGES, template
from refqnn.errors import InvalidArgument

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

    def check(holds, code):
        if not holds:
            raise Refused(code)

    def fits(values):
        return all(-(2**63) <= v < 2**63 for v in values.data)

    check(1 <= bits <= 32 and (bits > 1 or not narrow), "invalid_parameter")
    check(clip is None or clip.shape[-1:] == [2], "shape_mismatch")
    top = 2 ** (bits - signed) - 1 - (narrow and not signed)
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    ends = clip.data if clip else [low, top]
    rows = [ends[i : i + 2] for i in range(0, len(ends), 2)]
    lists = [multiplier, shift, zero_point, offset, first_shift]
    check(all(low <= a <= b <= top for a, b in rows), "invalid_parameter")
    check(all(len(v.shape) < 2 for v in lists), "shape_mismatch")
    check(all(v.data for v in lists), "invalid_parameter")
    sizes = {len(rows), *(len(v.data) for v in lists)} - {1}
    check(len(sizes) < 2, "shape_mismatch")
    check(all(0 <= m < 2**62 for m in multiplier.data), "invalid_parameter")
    check(all(0 <= s <= 62 for s in shift.data), "invalid_parameter")
    check(fits(zero_point) and fits(offset), "invalid_parameter")
    for c in range(max(map(len, (first_shift.data, shift.data)))):
        within = 0 <= at(first_shift, c) <= at(shift, c)
        check(first_rounding is None or within, "invalid_parameter")
    check(len(acc.shape) > 1 and acc.data, "shape_mismatch")
    check(sizes <= {acc.shape[1]}, "shape_mismatch")
    inner = len(acc.data) // acc.shape[0] // acc.shape[1]
    codes = []
    for i, value in enumerate(acc.data):
        c = i // inner % acc.shape[1]
        m, s, z, b, f = (at(v, c) for v in lists)
        value = Fraction((value + b) * m)
        if first_rounding is not None:
            value, s = Fraction(rounded(value / 2**f, first_rounding)), s - f
        lo, hi = rows[c if len(rows) > 1 else 0]
        codes.append(min(max(rounded(value / 2**s, rounding) + z, lo), hi))
    return {"codes": Tensor(acc.shape, codes)}
""",
        "binarize": """
    if not x.data:
        raise Refused("invalid_parameter")
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
    const check = (holds, code) => {
      if (!holds) throw new Refused(code);
    };
    const fits = (v) => v === BigInt.asIntN(64, v);
    check(table.shape.length === 2, "shape_mismatch");
    check(table.data.length > 0, "invalid_parameter");
    check(table.data.every(fits) && fits(lo), "out_of_range");
    const [rows, columns] = table.shape;
    check(x.shape.length > 1 && x.data.length > 0, "shape_mismatch");
    check(rows === 1 || rows === x.shape[1], "shape_mismatch");
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
    const check = (holds, code) => {
      if (!holds) throw new Refused(code);
    };
    check(bits >= 1n && bits <= 32n && (bits > 1n || !narrow), "invalid_parameter");
    check(scale.data.length > 0, "invalid_parameter");
    check(!scale.data.some(Number.isNaN), "not_a_number");
    check(scale.data.length === 1, "shape_mismatch");
    const [zero, step] = [zero_point.data[0], Math.fround(scale.data[0])];
    check(step > 0 && step < Infinity, "invalid_parameter");
    const [low, high] = signed
      ? [-(2n ** (bits - 1n)) + (narrow ? 1n : 0n), 2n ** (bits - 1n) - 1n]
      : [0n, 2n ** bits - 1n - (narrow ? 1n : 0n)];
    const isCode = (v) => v >= low && v <= high;
    check(zero_point.data.every(isCode), "out_of_range");
    check(zero_point.data.length === 1, "shape_mismatch");
    check(codes.data.every(isCode), "out_of_range");
    const values = codes.data.map((v) => Math.fround(Math.fround(Number(v - zero)) * step));
    return { x: tensor(codes.shape, values, "float32") };
""",
    },
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


@pytest.mark.parametrize("language", LANGUAGES)
def test_filled_in_it_conforms(language: str, tmp_path: Path) -> None:
    bodies = FILLED.get(language, {})
    text, names = integers_c() if language == "c" else (filled(language, bodies), {*bodies})
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
