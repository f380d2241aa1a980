"""`refqnn bench mutation`: what is mutated, what is left out, how sure its share is."""

from __future__ import annotations

import ast
import importlib
import sys
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mutation():
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        yield importlib.import_module("mutation")
    finally:
        sys.path.remove(str(ROOT / "bench"))


def test_every_module_of_the_core_is_mutated_or_says_why_not(mutation) -> None:
    folders = ("refqnn", "refqnn/ops", "refqnn/accumulator")
    core = {str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).glob("*.py")}
    left_out, mutated = set(mutation.LEFT_OUT), set(mutation.MODULES)
    assert not left_out & mutated
    assert left_out | mutated == core | {"refqnn/brevitas/lower.py"}
    assert all(mutation.LEFT_OUT.values())
    named = ("arithmetic", "rounding", "quantizers", "emulate", "plan", "network", "simplify")
    named += ("pruning", "storage", "brevitas/lower", "ops/requantize", "accumulator/recheck")
    assert {f"refqnn/{name}.py" for name in named} <= mutated


SOURCE = """
from functools import cache
from typing import TYPE_CHECKING, TypeAlias
__all__ = ["a"] + ["b"]
Number: TypeAlias = int | float
if TYPE_CHECKING:
    LATE = 1 + 2
LIMIT: int | None = 3 + 4
@cache
@counted
def f(x: int | None = 5 + 6) -> int | None:
    if x < 7:
        raise ValueError(f"{x + 8}", 9 + 10)
    return x
"""


def test_what_cannot_change_behaviour_is_left_out(mutation) -> None:
    """In annotations, under TYPE_CHECKING, in `__all__`, in the text of an error, a cache taken
    away; and nothing else."""
    spans = list(mutation.idle(ast.parse(SOURCE)))

    def left_out(text: str) -> bool:
        lines = SOURCE.splitlines()
        (row,) = (i for i, line in enumerate(lines) if text in line)
        place = row + 1, lines[row].index(text)
        return any(start <= place < end for start, end in spans)

    for text in ("] + [", "| float", "1 + 2", "| None = 3", "@cache", "| None = 5", "+ 8"):
        assert left_out(text), text
    assert left_out("| None:")
    for text in ("3 + 4", "@counted", "5 + 6", "x < 7", "9 + 10"):
        assert not left_out(text), text


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (570, 600)])
def test_the_interval_is_that_of_clopper_and_pearson(mutation, k: int, n: int) -> None:
    """Its ends are the shares under which k or more, k or fewer, come with a chance of 2.5 %."""
    pytest.importorskip("scipy")
    low, high = mutation.interval(k, n)

    def chance(share: float, counts: range) -> float:
        p = Fraction(share)
        return float(sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts))

    assert (low == 0) if k == 0 else chance(low, range(k, n + 1)) == pytest.approx(0.025)
    assert (high == 1) if k == n else chance(high, range(k + 1)) == pytest.approx(0.025)
