"""Every lowering of a table, evaluated by its definition in plain Python, gives the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refqnn.fhe import prices
from refqnn.fhe.tables import MAX_BITS, Carry, Drop, Rows, Split, Window, alternatives


def value(lowering: object, row: int, u: int) -> int:
    """f[u] of one row, as the circuit computes it: shifts, look-ups and sums."""
    if isinstance(lowering, Split):
        return sum(value(part, row, u) for part in lowering.parts)
    if isinstance(lowering, Drop):
        argument = int(lowering.stretch[row]) * u + int(lowering.offset[row])
        assert 0 <= argument < 2**lowering.bits
        return int(lowering.tables[row, argument >> lowering.shift])
    if isinstance(lowering, Window):
        argument = u + int(lowering.offset[row])
        assert 0 <= argument < 2**lowering.bits
        high, low = argument >> lowering.size, argument % 2**lowering.size
        total = (low >> lowering.shift) + int(lowering.marked[row, high])
        assert 0 <= total < 2 ** (lowering.size - lowering.shift + 1)
        return int(lowering.inside[row, total]) + int(lowering.outside[row, high])
    assert isinstance(lowering, Carry)
    argument = u + int(lowering.offset[row])
    assert 0 <= argument < 2**lowering.bits
    high, low = argument >> lowering.shift, argument % 2**lowering.shift
    total = low + int(lowering.shift_of[row, high])
    assert 0 <= total < 2 ** (lowering.shift + 1)
    return int(lowering.base[row, high]) + int(lowering.carry[row, total])


def check_all(rows: Rows) -> None:
    found = alternatives(rows)
    assert found
    assert [f.price for f in found] == sorted(f.price for f in found)
    for lowering in found:
        for c, row in enumerate(rows.values):
            assert [value(lowering, c, u) for u in range(len(row))] == row.tolist(), lowering


@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=40), min_size=1, max_size=4))
def test_any_tables(rows: list[list[int]]) -> None:
    check_all(Rows([np.array(row) for row in rows], [1] * len(rows)))


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.integers(1, 60), min_size=0, max_size=7)),
        min_size=1,
        max_size=4,
    )
)
def test_thresholds(rows: list[tuple[int, list[int]]]) -> None:
    tables = [
        np.array([sum(u >= t for t in thresholds) for u in range(span + 1)])
        for span, thresholds in rows
    ]
    check_all(Rows(tables, [1] * len(tables)))


@given(st.integers(1, 4), st.integers(0, 15), st.integers(2, 5))
def test_a_power_of_two_grid_drops_its_whole_shift(r: int, start: int, steps: int) -> None:
    start = start % 2**r + 1
    span = start + steps * 2**r
    table = np.array([max(0, (u - start) // 2**r + 1) for u in range(span + 1)])
    drops = [f for f in alternatives(Rows([table], [1])) if isinstance(f, Drop)]
    assert max(f.shift for f in drops) == r


@given(
    st.lists(st.tuples(st.integers(1, 250), st.integers(1, 300)), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 7),
    st.integers(-4, 0),
)
def test_saturating_codes(rows: list[tuple[int, int]], r: int, steps: int, least: int) -> None:
    tables = [
        np.array([least + min(max(0, (u - start) // 2**r + 1), steps) for u in range(start + more)])
        for start, more in rows
    ]
    check_all(Rows(tables, [1] * len(tables)))


def test_saturation_far_from_the_codes_makes_a_window() -> None:
    table = np.array([min(max(0, (u - 200) // 4 + 1), 7) for u in range(500)])
    found = alternatives(Rows([table], [1]))
    assert isinstance(found[0], Window)
    assert 2 * found[0].price < min(f.price for f in found if isinstance(f, Drop))


def half_even(r: int, span: int) -> Rows:
    table = np.array([round(u / 2**r) for u in range(span + 1)])  # Python rounds half to even
    return Rows([table], [1])


@pytest.mark.parametrize("r", [2, 3])
def test_half_even_needs_two_drops_or_a_carry(r: int) -> None:
    found = alternatives(half_even(r, 100))
    splits = [f for f in found if isinstance(f, Split)]
    assert [len(f.parts) for f in splits if f.parts[0].shift == r + 1] == [2]
    full = next(f for f in found if isinstance(f, Drop) and f.shift == 0)
    assert 3 * found[0].price < full.price


def test_a_finer_neuron_is_stretched() -> None:
    coarse = np.array([u // 8 for u in range(64)])
    fine = np.array([u // 4 for u in range(16)])
    rows = Rows([coarse, fine], [1, 1])
    drops = {f.shift: f for f in alternatives(rows) if isinstance(f, Drop)}
    assert sorted(drops) == [0, 1, 2, 3]
    assert (drops[3].bits, drops[3].stretch.tolist()) == (6, [1, 2])


def test_too_wide_has_no_alternative() -> None:
    table = np.arange(2 ** (MAX_BITS + 1)) % 7
    assert alternatives(Rows([table], [1])) == []


@given(st.integers(1, 16), st.integers(0, 15))
def test_prices_and_lookups(bits: int, shift: int) -> None:
    assume(shift < bits)
    lookups = prices.lookups(bits, shift)
    assert sum(lookups.values()) == shift + 1
    assert max(lookups) == bits
    assert min(lookups) == bits - shift
    assert prices.drop(bits, shift) > 0
