"""Text that came from outside, and tables as a reader sees them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Real

from reports.document import Table

_BREAKS = re.compile(r"[ \t\n\r\f\v\x1c-\x1f\x85\u2028\u2029]+")

Cell = str | float | int | None


def printable(text: str) -> str:
    r"""The text on one line without control characters, which could steer a terminal or break a file.

    Spaces of every width stay, since a narrow one may be meant.

    Example:
        >>> printable("a\x1b[31m b\n c")
        'a�[31m b c'
    """
    shown = _BREAKS.sub(" ", text).strip(" ")
    return "".join(mark if mark.isprintable() or mark.isspace() else "\ufffd" for mark in shown)


def cell_text(cell: Cell) -> str:
    """What stands in the table for a cell; nothing that was not measured looks like a number.

    Example:
        >>> [cell_text(cell) for cell in (None, float("nan"), float("-inf"), 12345678, 0.1 + 0.2, "fc1")]
        ['–', 'NaN', '−∞', '12345678', '0.3', 'fc1']
    """
    if cell is None:
        return "–"
    if isinstance(cell, float) and not math.isfinite(cell):
        return "NaN" if math.isnan(cell) else "∞" if cell > 0 else "−∞"
    return f"{cell:.6g}" if isinstance(cell, float) else printable(str(cell))


def numeric(table: Table) -> tuple[bool, ...]:
    """For each column whether it holds numbers, which are set flush right."""
    return tuple(
        any(isinstance(row[index], Real) for row in table.rows)
        and all(row[index] is None or isinstance(row[index], Real) for row in table.rows)
        for index in range(len(table.columns))
    )


def thinned(table: Table, limit: int = 200) -> tuple[tuple[Cell, ...], ...]:
    """About ``limit`` rows, evenly spaced, with the rows of each numeric column's minimum and maximum among them.

    The first and the last row are kept. The extremes are what a reader looks for in a long table, and even spacing
    alone would lose them.
    """
    rows = table.rows
    if len(rows) <= limit:
        return rows
    kept = {round(place * (len(rows) - 1) / (limit - 1)) for place in range(limit)}
    for index, is_numeric in enumerate(numeric(table)):
        if is_numeric:
            kept |= _extremes([row[index] for row in rows])
    return tuple(rows[place] for place in sorted(kept))


def _extremes(column: Sequence[Cell]) -> set[int]:
    finite = [(value, place) for place, value in enumerate(column) if isinstance(value, Real) and math.isfinite(value)]
    return {min(finite)[1], max(finite)[1]} if finite else set()
