"""A report as one HTML file: no network, readable on a phone, in the dark, in print and by ear.

A light script reads values off the drawings, switches their scales and hides curves; nothing is lost without it. It is
the only one that the page's policy lets run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reports.document import Document, Figure, Table
from reports.render.arrangement import arrange
from reports.render.levels import WORD, counts
from reports.render.svg import VARIABLES, anchor, drawings
from reports.render.tables import cell_text, numeric, printable, thinned

_ARXIV = re.compile(r"(?i:arxiv[:\s]\s*)?\b(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})(?:v\d+)?\b")

_JOINT = re.compile(r"(?<=[./_])(?=\w)")
_LONG = 24


def to_html(document: Document) -> str:
    """The document as one page; everything that came from outside is escaped."""
    findings, rest = arrange(document)
    script = resources.files("reports.render").joinpath("templates/report.js").read_text(encoding="utf-8")
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
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
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
        anchor=_anchor, breakable=breakable, linked=linked, plots=_plots, cell=cell_text, shown=_shown, base64=_base64
    )
    return environment


def _outside(value: object) -> object:
    return printable(value) if type(value) is str else value


def _anchor(name: str, kind: str) -> str:
    return anchor(kind, name)


def _plots(figure: Figure) -> list[dict[str, Markup]]:
    """The drawing and what the script reads off it, and that on the other scale, whose curves are the same."""
    first, other = drawings(figure)
    found = [(first.svg, first.panels)]
    if other is not None:
        found.append((other.svg, [{**panel, "curves": []} for panel in other.panels]))
    return [{"svg": Markup(svg), "panels": Markup(_json(panels))} for svg, panels in found]


def _json(content: object) -> str:
    # What ends a script, or begins a comment, must not stand in one.
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _shown(table: Table) -> dict[str, object]:
    rows = thinned(table)
    return {"rows": rows, "left_out": len(table.rows) - len(rows), "numeric": numeric(table)}
