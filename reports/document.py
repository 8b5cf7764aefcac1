"""What every renderer is given: one set of findings and figures, whatever it is turned into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.finding import Finding, Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Cells are text or numbers; None is a value that was not measured."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A figure: how to draw it, what to see in it, and the values behind it.

    Args:
        id: unique in the report, e.g. ``"sharpness-ratio"``.
        title: what is shown, as a noun phrase.
        caption: what the reader should see in it.
        alt: the same for someone who cannot see it.
        draw: draws on an empty matplotlib figure of ``size``, with colours from ``reports.palette`` only.
        table: the values behind the drawing.
        size: width and height in inches.
    """

    id: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Canvas], None]
    table: Table
    size: tuple[float, float] = (7.2, 3.4)


@dataclass(frozen=True)
class Sheet:
    """A table that is there to be read, before the findings.

    Args:
        id: unique in the report, e.g. ``"differences"``.
        title: what is shown, as a noun phrase.
        text: how to read it; empty when it needs no words.
        table: its rows.
        otherwise: what is said when there are none.
    """

    id: str
    title: str
    text: str
    table: Table
    otherwise: str


CURVE = "curve:"


def curve_id(name: str) -> str:
    """What marks the drawing of a named curve and of its band (``set_gid``), so that they can be hidden together."""
    return f"{CURVE}{name}"


@dataclass(frozen=True)
class Records:
    """The raw records, for those who want to compute with them.

    Args:
        csv: gzip-compressed.
        kept: how many are in it.
        total: how many there are.
        folder: where all of them are; None for a run in memory.
    """

    csv: bytes
    kept: int
    total: int
    folder: str | None


@dataclass(frozen=True)
class Document:
    """A whole report, before it is rendered.

    Args:
        title: what the report is about, e.g. the run folder's name.
        created: when the last of it was measured, ISO 8601, seconds.
        level: the worst level that matters for the verdict.
        diagnosis: one sentence a tired reader can act on.
        summary: what was looked at, in one line: model, optimizer, step.
        findings: worst first.
        figures: in the order in which the evidence is shown.
        facts: name and value of what is known about the run (model, optimizer, steps, device).
        methods: how each quantity was computed.
        skipped: everything that was not measured, and why.
        records: what all of it was computed from.
        sheets: tables; the first, of what is reported on, stands before the findings, the others after them.
    """

    title: str
    created: str
    level: Level
    diagnosis: str
    summary: str
    findings: tuple[Finding, ...]
    figures: tuple[Figure, ...]
    facts: tuple[tuple[str, str], ...]
    methods: Table
    skipped: Table
    records: Records | None = None
    sheets: tuple[Sheet, ...] = ()
