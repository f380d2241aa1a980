"""Mutants that nobody chose: what makes them, what asks them, and what bench/ says of them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from refqnn.conformance import load_vectors
from refqnn.conformance.making.cases import asked
from refqnn.conformance.making.chosen import MORE
from refqnn.conformance.making.extreme import extreme
from refqnn.conformance.making.roomy import roomy, spoiled
from refqnn.conformance.making.samplers import SAMPLERS, sample
from refqnn.conformance.mutants import KERNELS
from refqnn.conformance.operations import OPERATIONS

ROOT = Path(__file__).parents[2]

SOURCE = '''
def held(value, limit=3):
    """A word."""
    while value > 10**6:
        value = value + 0
    if value > limit:
        return value - 1
    return max(value, limit)


class Kind:
    def twice(self, values):
        return [2 * v for v in values]
'''


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "mutable.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mutable", None)
    return importlib.import_module("mutable")


def test_changes_of_a_source_are_made_one_at_a_time_and_taken_back(
    bench: Any, module: ModuleType
) -> None:
    mechanical = bench("mechanical")
    units = mechanical.units(["mutable"])
    assert [unit.name for unit in units] == ["held", "Kind.twice"]
    answers = {}
    for unit in units:
        for change in mechanical.changes(unit):
            with mechanical.changed(change), mechanical.in_time(0.05):
                try:
                    answers[change.id] = (module.held(5), module.held(1), module.Kind().twice([4]))
                except (Exception, mechanical.Slow) as error:
                    answers[change.id] = type(error).__name__
            assert (module.held(5), module.held(1), module.Kind().twice([4])) == (4, 3, [8])
    at = "mutable:{}".format
    assert answers[at("7 held: value - 1 -> value + 1")] == (6, 3, [8])
    assert answers[at("6 held: value > limit -> value < limit")] == (5, 0, [8])
    assert answers[at("8 held: max -> min")] == (4, 1, [8])
    assert answers[at("13 Kind.twice: 2 -> 3")] == (4, 3, [12])
    assert answers[at("13 Kind.twice: for v in values -> for v in list(values)[1:]")] == (4, 3, [])
    changed = [name for name, answer in answers.items() if answer != (4, 3, [8])]
    assert len(changed) > 25
    assert not any("word" in name for name in answers)  # texts that say something stay


def test_a_change_that_never_ends_is_stopped(bench: Any, module: ModuleType) -> None:
    mechanical = bench("mechanical")
    (endless,) = (
        change
        for change in mechanical.changes(mechanical.units(["mutable"])[0])
        if change.id.endswith("value > 10 ** 6 -> value != 10 ** 6")
    )
    with pytest.raises(mechanical.Slow), mechanical.changed(endless), mechanical.in_time(0.2):
        module.held(5)
    assert module.held(5) == 4


def test_an_error_takes_the_change_back(bench: Any, module: ModuleType) -> None:
    mechanical = bench("mechanical")
    change = next(mechanical.changes(mechanical.units(["mutable"])[0]))
    right = module.held.__code__
    with pytest.raises(ZeroDivisionError), mechanical.changed(change):
        raise ZeroDivisionError
    assert module.held.__code__ is right


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (200, "int8", -56),
        (-129, "int8", 127),
        (2**31, "int32", -(2**31)),
        (2**24 + 1, "float32", 2**24),
        (True, "int8", True),
        ("floor", "int8", "floor"),
    ],
)
def test_a_number_as_a_narrower_type_holds_it(
    bench: Any, value: object, kind: str, expected: object
) -> None:
    assert bench("mechanical").narrowed(value, kind) == expected


def test_every_array_is_narrowed_cell_by_cell(bench: Any) -> None:
    got = bench("mechanical").narrowed(np.array([[127, 128], [-128, -129]]), "int8")
    assert got.tolist() == [[127, -128], [-128, 127]]


@pytest.mark.parametrize("operation", SAMPLERS)
def test_questions_are_the_same_for_the_same_seed(operation: str) -> None:
    for draw in (roomy, spoiled, extreme):
        for seed in (1, 2):
            try:
                once = draw(operation, seed)
            except (ValueError, OverflowError, IndexError, TypeError):
                continue  # parameters that make no sense
            assert repr(once) == repr(draw(operation, seed))


@pytest.mark.parametrize("operation", SAMPLERS)
def test_a_spoiled_question_differs_in_at_most_one_argument(operation: str) -> None:
    for seed in range(1, 6):
        right, wrong = sample(operation, seed), spoiled(operation, seed)
        assert right.keys() == wrong.keys()
        assert sum(repr(right[n]) != repr(wrong[n]) for n in right) <= 1


def test_larger_questions_pass_what_loops_are_unrolled_by() -> None:
    lengths = {roomy("linear", seed)["x"].shape[1] for seed in range(1, 400)}
    assert max(lengths) > 256
    assert {n for n in lengths if n > 16 and n % 4}
    batches = {len(roomy("linear", seed)["x"]) for seed in range(1, 80)}
    assert max(batches) > 4


def test_extreme_questions_reach_both_ends() -> None:
    seeds = range(1, 100)
    for operation in ("check_codes", "quantize", "dequantize"):
        formats = [extreme(operation, seed) for seed in seeds]
        assert {1, 32} <= {f["bits"] for f in formats}
        assert any(f["bits"] == 32 and f["narrow"] and f["signed"] for f in formats)
    sums = [extreme("linear", seed) for seed in seeds]
    assert max(abs(int(v)) for q in sums for v in q["weight"].flat) > 2**61
    for operation in ("conv2d", "conv_transpose2d", "max_pool2d"):
        shapes = [extreme(operation, seed)["x"].shape for seed in seeds]
        assert all(max(shape[axis] for shape in shapes) > 128 for axis in (2, 3))
    assert {1, 64} <= {extreme("accumulate", seed)["accumulator_bits"] for seed in seeds}


def test_every_rule_is_a_pattern_with_an_argument(bench: Any) -> None:
    alike = bench("alike")
    for *_, pattern, why in (*alike.RULES, *alike.OF_OPERATIONS):
        assert re.compile(pattern)
        assert why
    assert alike.argument("steps:1 wrap: a + b -> __narrowed__(a + b, 'int8')") == ""


def test_the_questions_that_came_later_are_in_files_of_their_own() -> None:
    later = {asked(operation, seed).id for operation in MORE for seed in MORE[operation]}
    files = {v.id: v.file for v in load_vectors()}
    assert later <= files.keys()
    for identity, file in files.items():
        assert file.endswith("_more.json") == (identity in later)


def test_no_file_of_the_suite_is_large() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "vectors").rglob("*") if path.is_file()]
    assert max(sizes) < 250_000
    assert sum(sizes) < 4_000_000


@pytest.mark.parametrize("operation", OPERATIONS)
def test_there_are_foreign_mutants_of_every_operation(bench: Any, operation: str) -> None:
    made = list(bench("foreign").mutants(operation))
    assert len({mutant.id for mutant in made}) == len(made) > 50


def test_a_foreign_mistake_is_what_it_says(bench: Any) -> None:
    by_name = {m.id: m.function for m in bench("foreign").mutants("linear")}
    question = {
        "weight": np.array([[1, 2, 3, 4, 5]]),
        "bias": None,
        "x": np.array([[1, 10, 100, 1000, 10_000], [1, 0, 0, 0, 300]]),
        "x_zero_point": 0,
        "weight_zero_point": np.array(0),
    }
    assert KERNELS["linear"](**question)["acc"].tolist() == [[54321], [1501]]
    for name, expected in {
        "x: int8": [1 + 20 + 300 + 4 * -24 + 5 * 16, 1 + 5 * 44],
        "x: axis -1 in steps of 4, no tail": [4321, 1],
        "x: axis -1 backwards": [1 * 10_000 + 2000 + 300 + 40 + 5, 300 + 5],
        "x: the first sample for all": [54321, 54321],
        "x: axis -1 without its last": [4321, 1],
        "result acc: int16": [54321 - 65536, 1501],
        "fit: saturating int16": [32767, 1501],
    }.items():
        assert by_name[f"linear {name}"](**question)["acc"].ravel().tolist() == expected, name
