"""A report for the terminal: the diagnosis, what to do, what was not measured."""

from __future__ import annotations

import shutil
from io import StringIO

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from reports.document import Document, Sheet
from reports.finding import Finding, Level, worst_first
from reports.render.levels import SHAPE, WORD, counts
from reports.render.tables import cell_text, numeric, printable

_COLOUR: dict[Level, str] = {"fail": "bold red", "warn": "bold yellow", "unmeasured": "bold", "ok": "green"}
_WIDEST = 100
"""Longer lines are hard to read."""
_SKIPPED_SHOWN = 8
_ROWS_SHOWN = 30


def to_terminal(document: Document, *, width: int | None = None, color: bool = False) -> str:
    """The report as text, at most ``width`` columns (the terminal's, up to 100), with colour codes only on request."""
    columns = width or min(shutil.get_terminal_size().columns, _WIDEST)
    console = Console(
        file=StringIO(),
        width=columns,
        color_system="standard" if color else None,
        force_terminal=color,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        findings = worst_first(document.findings)
        console.print(_beside(_badge(document.level), Text(printable(document.diagnosis), style="bold")))
        about = " · ".join(part for part in (document.title, document.summary) if part)
        console.print(_beside("", Text(printable(about), style="dim", overflow="fold")))
        for sheet in document.sheets[:1]:
            _print_sheet(console, sheet)
        console.print()
        console.print(Text(" · ".join(words for _, words in counts(findings)) or "No findings."))
        previous: Level | None = None
        for finding in findings:
            if finding.level != "ok" or previous != "ok":
                console.print()
            previous = finding.level
            console.print(_finding(finding))
        for sheet in document.sheets[1:]:
            _print_sheet(console, sheet)
        _print_skipped(console, document)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _badge(level: Level) -> Text:
    return Text(f"{SHAPE[level]} {WORD[level]}", style=_COLOUR[level])


def _beside(left: str | Text, right: Text | Grid) -> Grid:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=max(len(word) for word in WORD.values()) + 2)
    grid.add_column(overflow="fold")
    grid.add_row(left, right)
    return grid


def _finding(finding: Finding) -> Group:
    wants_action = finding.level in ("fail", "warn")
    lines = [_beside(_badge(finding.level), Text(printable(finding.claim), style="bold" if wants_action else ""))]
    if wants_action and finding.threshold:
        lines.append(_beside("", Text(f"Held against: {printable(finding.threshold)}", style="dim")))
    if wants_action:
        lines.append(_beside("", Text(printable(finding.meaning))))
    if finding.level != "ok":
        lines.extend(_beside("", _bullet("→", advice)) for advice in finding.advice)
    return Group(*lines)


def _bullet(mark: str, text: str) -> Grid:
    bullet = Grid.grid(padding=(0, 1, 0, 0))
    bullet.add_column(width=1)
    bullet.add_column(overflow="fold")
    bullet.add_row(mark, Text(printable(text)))
    return bullet


def _print_sheet(console: Console, sheet: Sheet) -> None:
    console.print()
    console.print(Text(sheet.title, style="bold"))
    if not sheet.table.rows:
        console.print(Padding(Text(sheet.otherwise), (0, 0, 0, 2)))
        return
    if sheet.text:
        console.print(Padding(Text(printable(sheet.text), style="dim"), (0, 0, 0, 2)))
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name, right in zip(sheet.table.columns, numeric(sheet.table), strict=True):
        grid.add_column(Text(printable(name)), justify="right" if right else "left", overflow="fold")
    for row in sheet.table.rows[:_ROWS_SHOWN]:
        grid.add_row(*(Text(cell_text(cell)) for cell in row))
    console.print(Padding(grid, (0, 0, 0, 2)))
    if len(sheet.table.rows) > _ROWS_SHOWN:
        console.print(Text(f"  and {len(sheet.table.rows) - _ROWS_SHOWN} more rows in the page", style="dim"))


def _print_skipped(console: Console, document: Document) -> None:
    rows = document.skipped.rows
    console.print()
    if not rows:
        console.print(Text("Everything that was tried was measured.", style="dim"))
        return
    console.print(Text("Not measured", style="bold"))
    for row in rows[:_SKIPPED_SHOWN]:
        *what, why = (cell_text(cell) for cell in row)
        console.print(Padding(_bullet("?", f"{', '.join(what)}: {why}"), (0, 0, 0, 2)))
    if len(rows) > _SKIPPED_SHOWN:
        console.print(Text(f"  and {len(rows) - _SKIPPED_SHOWN} more", style="dim"))
