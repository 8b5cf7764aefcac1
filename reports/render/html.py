"""A report as one HTML file: no network, no script, readable on a phone, in the dark, in print and by ear."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reports.document import Document, Figure, Table
from reports.render.arrangement import arrange
from reports.render.levels import WORD, counts
from reports.render.svg import VARIABLES, anchor, to_svg
from reports.render.tables import cell_text, numeric, printable, thinned

_ARXIV = re.compile(r"(?i:arxiv[:\s]\s*)?\b(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})(?:v\d+)?\b")

_JOINT = re.compile(r"(?<=[./_])(?=\w)")
_LONG = 24


def to_html(document: Document) -> str:
    """The document as one page; everything that came from outside is escaped."""
    findings, rest = arrange(document)
    firsts = {shown.finding.level: shown.finding.id for shown in reversed(findings)}
    return (
        _environment()
        .get_template("report.html")
        .render(
            document=document,
            findings=findings,
            rest=rest,
            counts=[(level, words, firsts[level]) for level, words in counts(document.findings)],
            words=WORD,
            variables=VARIABLES,
        )
    )


def linked(citation: str) -> Markup:
    """The citation with its arXiv ids as links.

    Example:
        >>> linked("Cohen & Co., arXiv:2103.00065")
        Markup('Cohen &amp; Co., <a href="https://arxiv.org/abs/2103.00065">arXiv:2103.00065</a>')
    """
    parts: list[Markup] = []
    end = 0
    for found in _ARXIV.finditer(citation):
        parts.append(escape(citation[end : found.start()]))
        parts.append(Markup('<a href="https://arxiv.org/abs/{}">{}</a>').format(found[1], found[0]))
        end = found.end()
    return Markup("").join([*parts, escape(citation[end:])])


def breakable(text: str) -> Markup:
    """The text with places to break in long names, which have no spaces; copied, it is still the name.

    Example:
        >>> breakable("<encoder.layers.0.attention.weight>")
        Markup('&lt;encoder.<wbr>layers.<wbr>0.<wbr>attention.<wbr>weight&gt;')
    """
    return Markup(" ").join(
        Markup("<wbr>").join(map(escape, _JOINT.split(word))) if len(word) > _LONG else escape(word)
        for word in printable(text).split(" ")
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports.render"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_outside,
    )
    environment.filters.update(
        anchor=_anchor, breakable=breakable, linked=linked, svg=_svg, cell=cell_text, shown=_shown
    )
    return environment


def _outside(value: object) -> object:
    return printable(value) if type(value) is str else value


def _anchor(name: str, kind: str) -> str:
    return anchor(kind, name)


def _svg(figure: Figure) -> Markup:
    return Markup(to_svg(figure))


def _shown(table: Table) -> dict[str, object]:
    rows = thinned(table)
    return {"rows": rows, "left_out": len(table.rows) - len(rows), "numeric": numeric(table)}
