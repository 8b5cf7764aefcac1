"""A report on paper: the same findings and figures on A4, through matplotlib alone, with real text and embedded fonts.

The values behind the figures stay in the HTML and the JSON report: nobody reads two thousand rows on paper.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from reports import palette
from reports.document import Document, Figure, Sheet, Table
from reports.finding import Level
from reports.render.arrangement import Shown, arrange
from reports.render.canvas import FONT, POINTS, drawn, report_style
from reports.render.flow import Drawing, Piece, Type, Words, paginate, paragraph, table, width_of, wrap
from reports.render.levels import SHAPE, WORD, counts
from reports.render.tables import cell_text, numeric, printable

PAGE = (595.28, 841.89)
"""A4 upright, in points."""
MARGIN = (PAGE[0] - 7.2 * POINTS) / 2
"""Leaves a figure of the usual width its size."""
WIDTH = PAGE[0] - 2 * MARGIN
TOP = 58.0
HEIGHT = PAGE[1] - TOP - 54.0
_MEASURE = 440.0
_INDENT = 16.0

_TITLE = Type(10.0, color=palette.MUTED)
_DIAGNOSIS = Type(17.0, "bold", leading=1.3)
_SECTION = Type(13.0, "bold", leading=1.3)
_CLAIM = Type(11.0, "bold")
_HEADING = Type(9.5, "bold")
_BODY = Type(9.5)
_LABEL = Type(9.5, color=palette.MUTED)
_SMALL = Type(8.0, color=palette.MUTED)
_CELL = Type(8.0)


def to_pdf(document: Document, path: Path) -> None:
    """Write the document to ``path``; a report that was there before is replaced only by a whole one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with report_style(), PdfPages(unfinished, metadata=_metadata(document)) as pdf:
            pages = layout(document)
            for number, page in enumerate(pages, start=1):
                pdf.savefig(_page(page, document.title, number, len(pages)))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def layout(document: Document) -> list[list[tuple[float, Piece]]]:
    """The pages: what stands on each and how far from the top. The first sheet says what is reported on."""
    findings, rest = arrange(document)
    pieces = _verdict(document)
    for sheet in document.sheets[:1]:
        pieces += _sheet(sheet)
    pieces += _section("Findings")
    for shown in findings:
        pieces += _finding(shown)
    if not findings:
        pieces += paragraph("There are no findings: nothing was held against a threshold.", _BODY, _MEASURE)
    if rest:
        pieces += _section("More evidence")
        for figure in rest:
            pieces += _figure(figure)
    for sheet in document.sheets[1:]:
        pieces += _sheet(sheet)
    pieces += _facts(document)
    pieces += _section("How it was computed") + _table(document.methods, "Nothing was computed.")
    pieces += _section("Not measured") + _table(document.skipped, "Everything that was tried was measured.")
    return paginate(pieces, HEIGHT)


def _verdict(document: Document) -> list[Piece]:
    said = " · ".join(words for _, words in counts(document.findings))
    return [
        *paragraph(" · ".join(printable(part) for part in (document.title, document.summary) if part), _TITLE, WIDTH),
        _badge(document.level, _DIAGNOSIS, gap=6.0),
        *paragraph(printable(document.diagnosis), _DIAGNOSIS, WIDTH),
        *paragraph(said, _LABEL, WIDTH, gap=6.0),
    ]


def _sheet(sheet: Sheet) -> list[Piece]:
    pieces = _section(sheet.title)
    if sheet.text and sheet.table.rows:
        pieces += paragraph(printable(sheet.text), _BODY, _MEASURE, keep=True)
        pieces.append(Piece(5.0, keep=True))
    return pieces + _table(sheet.table, sheet.otherwise)


def _badge(level: Level, type: Type, gap: float) -> Piece:
    set_in = Type(type.size, "bold", palette.LEVEL[level], type.leading)
    return Piece(type.line, (Words(0.0, f"{SHAPE[level]} {WORD[level]}", set_in),), gap=gap, keep=True)


def _section(title: str) -> list[Piece]:
    (line,) = paragraph(title, _SECTION, WIDTH, gap=26.0, keep=True)
    return [line, Piece(3.0, keep=True, rule=True), Piece(4.0, keep=True)]


def _facts(document: Document) -> list[Piece]:
    pieces = _section("About")
    for name, value in (*document.facts, ("last measured", document.created.replace("T", " "))):
        pieces += _labelled(name, value, _LABEL, _BODY, 110.0)
    return pieces


def _labelled(label: str, text: str, label_type: Type, type: Type, indent: float) -> list[Piece]:
    """Text beside its label."""
    labels = wrap(printable(label), label_type, indent - 8.0) or [""]
    lines = wrap(printable(text), type, WIDTH - indent) or ["–"]
    pieces = []
    for place in range(max(len(labels), len(lines))):
        words = [Words(0.0, labels[place], label_type)] if place < len(labels) else []
        words += [Words(indent, lines[place], type)] if place < len(lines) else []
        pieces.append(Piece(type.line, tuple(words), gap=1.5 if place == 0 else 0.0, keep=place == 0 < len(lines) - 1))
    return pieces


def _finding(shown: Shown) -> list[Piece]:
    finding = shown.finding
    pieces = [
        _badge(finding.level, _CLAIM, gap=18.0),
        *paragraph(printable(finding.claim), _CLAIM, _MEASURE, keep=True),
    ]
    if finding.threshold:
        pieces += paragraph(f"Held against: {printable(finding.threshold)}", _LABEL, _MEASURE, gap=2.0, keep=True)
    pieces += paragraph(printable(finding.meaning), _BODY, _MEASURE, gap=4.0)
    if finding.advice:
        pieces += paragraph("What to try", _HEADING, _MEASURE, gap=7.0, keep=True)
    for number, advice in enumerate(finding.advice, start=1):
        pieces += paragraph(printable(advice), _BODY, _MEASURE - _INDENT, x=_INDENT, gap=2.0, mark=f"{number}.")
    small = [("Method", finding.method), ("Source", finding.citation)]
    if finding.value:
        how = "" if finding.value.how == finding.method else f"; {finding.value.how}"
        small.insert(0, ("Value", f"{finding.value} ({finding.value.kind}){how}"))
    small += [("See", figure.title) for figure in shown.elsewhere]
    pieces.append(Piece(5.0))
    for label, text in small:
        if text:
            pieces += _labelled(label, text, _SMALL, _SMALL, 44.0)
    for figure in shown.figures:
        pieces += _figure(figure)
    return pieces


def _figure(figure: Figure) -> list[Piece]:
    wide, high = figure.size
    # A figure larger than the page is drawn smaller, not scaled: its text keeps its size.
    size = (min(wide, WIDTH / POINTS), min(high, (HEIGHT - 90.0) / POINTS))
    return [
        *paragraph(printable(figure.title), _HEADING, WIDTH, gap=16.0, keep=True),
        Piece(size[1] * POINTS, drawing=Drawing(lambda: drawn(figure, size), size), gap=4.0, keep=True),
        *paragraph(printable(figure.caption), _BODY, _MEASURE, gap=4.0),
    ]


def _table(content: Table, otherwise: str) -> list[Piece]:
    if not content.rows:
        return paragraph(otherwise, _BODY, _MEASURE)
    heads = [printable(name) for name in content.columns]
    rows = [[cell_text(cell) for cell in row] for row in content.rows]
    return table(heads, rows, numeric(content), _CELL, _SMALL, WIDTH)


def _page(placed: list[tuple[float, Piece]], title: str, number: int, total: int) -> Canvas:
    page = Canvas(figsize=(PAGE[0] / POINTS, PAGE[1] / POINTS), dpi=POINTS)
    if number > 1:
        _set(page, Words(0.0, _shortened(printable(title)), _SMALL), 30.0)
    _set(page, Words(WIDTH, f"{number} / {total}", _SMALL, right=True), PAGE[1] - 34.0)
    for top, piece in placed:
        for words in piece.words:
            # The baseline sits where the ascent and the descent of the font leave the line balanced.
            _set(page, words, TOP + top + 0.5 * words.type.line + 0.36 * words.type.size)
        foot = PAGE[1] - TOP - top - piece.height
        if piece.rule:
            ends = [MARGIN, MARGIN + WIDTH]
            page.add_artist(Line2D(ends, [foot, foot], color=palette.GRID, linewidth=0.6, transform=None), clip=False)
        if piece.drawing:
            page.add_artist(_Inset(piece.drawing, MARGIN, foot), clip=False)
    return page


def _set(page: Canvas, words: Words, drop: float) -> None:
    page.text(
        (MARGIN + words.x) / PAGE[0],
        1.0 - drop / PAGE[1],
        words.text,
        family=FONT,
        size=words.type.size,
        weight=words.type.weight,
        color=words.type.color,
        ha="right" if words.right else "left",
        va="baseline",
    )


def _shortened(title: str) -> str:
    while width_of(title, _SMALL) > _MEASURE:
        title = title[:-2] + "…"
    return title


class _Inset(Artist):
    """A canvas drawn as part of a page, with its lower left corner at a point of it."""

    def __init__(self, drawing: Drawing, x: float, y: float) -> None:
        super().__init__()
        self._canvas = drawing.draw()
        # Laid out while it stands alone; then only its place changes.
        self._canvas.draw_without_rendering()
        self._canvas.set_layout_engine("none")
        for artist in self._canvas.findobj():
            # Rasters are placed by the page's resolution, which is not the canvas's.
            artist.set_rasterized(False)
        self._canvas.bbox_inches.set(Bbox.from_bounds(x / POINTS, y / POINTS, *drawing.size))

    def draw(self, renderer: RendererBase) -> None:
        self._canvas.draw(renderer)


def _metadata(document: Document) -> dict[str, str | datetime | None]:
    try:
        created = datetime.fromisoformat(document.created)
    except ValueError:
        created = None
    return {"Title": printable(document.title), "Author": "training-dynamics-diagnostics", "CreationDate": created}
