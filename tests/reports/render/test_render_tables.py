from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from reports.document import Table
from reports.render.tables import cell_text, numeric, printable, thinned

CELLS = st.none() | st.floats() | st.integers(-1000, 1000)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=900))
def test_thinning_keeps_the_ends_the_extremes_and_the_order(rows):
    table = Table(("a", "b"), tuple(rows))
    kept = thinned(table, 50)
    assert len(kept) <= 54
    places = iter(rows)
    assert all(any(row is each for each in places) for row in kept)
    if rows:
        assert kept[0] is rows[0]
        assert kept[-1] is rows[-1]
    for column in (0, 1):
        finite = [row[column] for row in rows if row[column] is not None and math.isfinite(row[column])]
        if finite and numeric(table)[column]:
            shown = [row[column] for row in kept if row[column] is not None and math.isfinite(row[column])]
            assert (min(shown), max(shown)) == (min(finite), max(finite))


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(mark) < 32 or (127 <= ord(mark) < 160 and mark != "\xa0") for mark in shown)
    assert printable(shown) == shown


def test_cells_that_are_not_numbers_do_not_look_like_numbers():
    assert [cell_text(cell) for cell in (None, math.nan, math.inf)] == ["–", "NaN", "∞"]


def test_a_column_with_text_is_not_numeric():
    assert numeric(Table(("a", "b", "c"), ((1, "x", None), (None, 2.0, None)))) == (True, False, False)
