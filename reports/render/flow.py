"""Flow layout for paper: text measured and wrapped, pieces placed on pages so that nothing is cut or stranded.

A document becomes a row of pieces. A piece is never divided; a piece that says ``keep`` stands on the page of the
next one; a piece that begins a page is preceded by the ``heads`` it names (the header row of a table). Everything is
in points, measured from the top left, so that a layout can be checked before a page is drawn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from reports import palette
from reports.render.canvas import FONT


@dataclass(frozen=True)
class Type:
    """How text is set: size in points, weight, colour and the distance between lines as a multiple of the size."""

    size: float
    weight: str = "normal"
    color: str = palette.INK
    leading: float = 1.42

    @property
    def line(self) -> float:
        """Height of a line."""
        return self.size * self.leading


@dataclass(frozen=True)
class Words:
    """A run of text; ``right`` sets its right end at ``x``."""

    x: float
    text: str
    type: Type
    right: bool = False

    def extent(self) -> tuple[float, float]:
        """Left and right end."""
        width = width_of(self.text, self.type)
        return (self.x - width, self.x) if self.right else (self.x, self.x + width)


@dataclass(frozen=True)
class Drawing:
    """A figure of ``size`` inches, to be drawn when its page is."""

    draw: Callable[[], Canvas]
    size: tuple[float, float]


@dataclass(frozen=True)
class Piece:
    """What is placed as one: ``height`` tall, ``gap`` below the one before; ``rule`` draws a hairline at its foot."""

    height: float
    words: tuple[Words, ...] = ()
    drawing: Drawing | None = None
    gap: float = 0.0
    keep: bool = False
    rule: bool = False
    heads: tuple[Piece, ...] = ()


def paginate(pieces: Sequence[Piece], height: float) -> list[list[tuple[float, Piece]]]:
    """The pieces with the distance of each from the top of its page; pages are ``height`` tall.

    Example:
        >>> line = Piece(10.0)
        >>> [len(page) for page in paginate([line, line, replace(line, keep=True), line], 35.0)]
        [2, 2]
    """
    pages: list[list[tuple[float, Piece]]] = [[]]
    used = 0.0
    for group in _groups(pieces):
        tall = sum(piece.gap + piece.height for piece in group)
        if pages[-1] and used + tall > height and tall - group[0].gap <= height:
            pages.append([])
        for piece in group:
            if pages[-1] and used + piece.gap + piece.height > height:
                pages.append([])
            if not pages[-1]:
                used = 0.0
                for head in piece.heads if len(pages) > 1 else ():
                    pages[-1].append((used, head))
                    used += head.height
            top = used + (piece.gap if pages[-1] else 0.0)
            pages[-1].append((top, piece))
            used = top + piece.height
    return pages


def _groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in pieces:
        group.append(piece)
        if not piece.keep:
            yield group
            group = []
    if group:
        yield group


def paragraph(
    text: str, type: Type, width: float, *, x: float = 0.0, gap: float = 0.0, mark: str = "", keep: bool = False
) -> list[Piece]:
    """Wrapped text, ``x`` from the left, with ``mark`` hanging in front; no line of it is left alone on a page."""
    lines = wrap(text, type, width)
    last = len(lines) - 1
    pieces = [
        Piece(
            type.line,
            (Words(x, line, type),),
            gap=gap if place == 0 else 0.0,
            keep=keep if place == last else place == 0 or place == last - 1,
        )
        for place, line in enumerate(lines)
    ]
    if mark and pieces:
        pieces[0] = replace(pieces[0], words=(Words(x - 0.5 * type.size, mark, type, right=True), *pieces[0].words))
    return pieces


def wrap(text: str, type: Type, width: float) -> list[str]:
    """The text in lines no wider than ``width``; a wider word is broken, at a joint of its name if it can."""
    lines: list[str] = []
    line = ""
    for word in filter(None, text.split(" ")):
        if line and width_of(f"{line} {word}", type) <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        *full, line = _broken(word, type, width)
        lines.extend(full)
    return [*lines, line] if line else lines


def _broken(word: str, type: Type, width: float) -> Iterator[str]:
    while len(word) > 1 and width_of(word, type) > width:
        fits = max(1, bisect_right(range(len(word)), width, key=lambda end: width_of(word[:end], type)) - 1)
        joint = max(word.rfind(mark, fits // 2, fits) for mark in "./_-,:")
        cut = joint + 1 if joint > 0 else fits
        yield word[:cut]
        word = word[cut:]
    yield word


@lru_cache(maxsize=20_000)
def width_of(text: str, type: Type) -> float:
    """Width of a line of text in points."""
    width, _, _ = _MEASURE.get_text_width_height_descent(
        text, FontProperties(family=FONT, size=type.size, weight=type.weight), ismath=False
    )
    return float(width)


_MEASURE = TextToPath()


def columns(cells: Sequence[Sequence[str]], type: Type, width: float, gap: float) -> list[float]:
    """Widths of the columns of a table: their content's where there is room, a fair share of the rest where not."""
    natural = [max(width_of(text, type) for text in column) for column in zip(*cells, strict=True)]
    room = width - gap * (len(natural) - 1)
    widths = dict.fromkeys(range(len(natural)), 0.0)
    waiting = sorted(widths, key=natural.__getitem__)
    while waiting:
        share = room / len(waiting)
        narrowest = waiting.pop(0)
        widths[narrowest] = min(natural[narrowest] + 0.1, share)
        room -= widths[narrowest]
    return list(widths.values())


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], type: Type, head: Type, width: float
) -> list[Piece]:
    """A table with wrapped cells whose header row comes again on each page."""
    gap = 1.4 * type.size
    widths = columns([heads, *rows], type, width, gap)
    starts = [sum(widths[:place]) + gap * place for place in range(len(widths))]

    def row(cells: Sequence[str], set_in: Type, head: tuple[Piece, ...]) -> list[Piece]:
        wrapped = [wrap(text, set_in, room) for text, room in zip(cells, widths, strict=True)]
        deep = max(1, *(len(lines) for lines in wrapped))
        return [
            Piece(
                set_in.line,
                tuple(
                    Words(start + room if flush else start, lines[level], set_in, flush)
                    for lines, start, room, flush in zip(wrapped, starts, widths, right, strict=True)
                    if level < len(lines)
                ),
                gap=0.35 * set_in.size if level == 0 else 0.0,
                keep=level < deep - 1,
                heads=head,
            )
            for level in range(deep)
        ]

    first = [replace(piece, keep=True) for piece in row(heads, head, ())]
    first[-1] = replace(first[-1], height=first[-1].height + 0.3 * type.size, rule=True)
    return [*first, *(piece for cells in rows for piece in row(cells, type, tuple(first)))]
