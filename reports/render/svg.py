"""A figure as an inline SVG: one drawing for light and dark, for the screen and for print.

matplotlib writes a file of its own; a page needs a fragment. So ids are made the figure's own and dropped where
nothing refers to them, palette colours become CSS variables, and what would reach beyond the drawing (a style sheet
for ``*``, metadata, fonts) goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure as Canvas

from reports import palette
from reports.document import CURVE, Figure
from reports.render.canvas import FONT, drawn, report_style
from reports.render.readings import panels, switch, switchable
from reports.render.tables import printable

VARIABLES: dict[str, str] = {
    "ink": palette.INK,
    "muted": palette.MUTED,
    "grid": palette.GRID,
    "paper": palette.PAPER,
    "edge": palette.EDGE,
    "band": palette.BAND,
    **{f"series-{place}": colour for place, colour in enumerate(palette.SERIES, start=1)},
    **palette.LEVEL,
}
"""CSS variable and the colour it has in the light theme."""

_NAME = {colour: name for name, colour in VARIABLES.items()}
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_FAMILY = re.compile(f"'{FONT}'[^;]*")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"#([\w.-]+)")


@dataclass(frozen=True)
class Drawing:
    """A figure drawn: the ``<svg>`` element, and what a script reads off it."""

    svg: str
    panels: list[dict[str, Any]]


def drawings(figure: Figure) -> tuple[Drawing, Drawing | None]:
    """The figure as an ``<svg>`` element, and again with its values on the other scale where that shows more.

    The page defines the CSS variables of ``VARIABLES`` and ``--sans``. Text is measured with DejaVu Sans and set in the
    page's font, which is narrower on every common system, so nothing runs into anything.

    Cells of heat maps keep their colours, since a cell that happens to equal a palette colour must not change apart
    from its neighbours; they carry ``class="mesh"`` so that a page can turn them as a whole. Named curves and their
    bands carry ``data-curve``.
    """
    with report_style():
        canvas = drawn(figure, figure.size)
        first = _saved(figure, canvas, "")
        if not switchable(canvas):
            return first, None
        again = drawn(figure, figure.size)
        for axes in switchable(again):
            switch(axes)
        return first, _saved(figure, again, "other-")


def _saved(figure: Figure, canvas: Canvas, prefix: str) -> Drawing:
    out = StringIO()
    matplotlib.rcParams["svg.hashsalt"] = figure.id
    canvas.savefig(out, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(_ILLEGAL.sub("\ufffd", out.getvalue()))
    _strip(root)
    _own_ids(root, prefix + anchor("svg", figure.id))
    _recolour(root, in_mesh=False)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": "100%",
        "role": "img",
        "aria-label": printable(figure.alt),
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return Drawing(ElementTree.tostring(root, encoding="unicode"), panels(canvas))


def anchor(kind: str, name: str) -> str:
    """An id for the page, unique per name, from letters, digits, hyphens and underscores.

    Example:
        >>> anchor("finding", "sharpness/regime"), anchor("figure", "a b")
        ('finding-sharpness_2f_regime', 'figure-a_20_b')
    """
    return f"{kind}-" + re.sub(r"[^A-Za-z0-9-]", lambda mark: f"_{ord(mark[0]):x}_", name)


def _strip(element: ElementTree.Element) -> None:
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for child in list(element):
        _strip(child)
        if child.tag in ("metadata", "style") or (child.tag == "defs" and not len(child)):
            element.remove(child)
    if "style" in element.attrib:
        element.attrib["style"] = _FAMILY.sub("var(--sans)", element.attrib["style"])
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.tail = None


def _own_ids(root: ElementTree.Element, prefix: str) -> None:
    used = {
        name
        for element in root.iter()
        for attribute, value in element.attrib.items()
        if attribute in ("href", "clip-path", "style", "mask", "filter") and not value.startswith("data:")
        for name in _REFERENCE.findall(value)
    }
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name.startswith(CURVE):
            element.attrib["data-curve"] = printable(name.removeprefix(CURVE))
        if name.startswith("QuadMesh") or element.tag == "image":
            element.attrib["class"] = "mesh"
        if name in used:
            element.attrib["id"] = f"{prefix}-{name}"
        for attribute in ("href", "clip-path"):
            value = element.attrib.get(attribute, "")
            if value.startswith(("#", "url(#")):
                element.attrib[attribute] = value.replace("#", f"#{prefix}-")


def _recolour(element: ElementTree.Element, *, in_mesh: bool) -> None:
    in_mesh = in_mesh or element.attrib.get("class") == "mesh"
    for attribute in ("style", "fill", "stroke"):
        if attribute in element.attrib and not in_mesh:
            element.attrib[attribute] = _COLOUR.sub(_variable, element.attrib[attribute])
    # A hundredth of a point is finer than any screen; the rest is only bytes.
    for attribute in ("d", "x", "y"):
        if attribute in element.attrib:
            element.attrib[attribute] = _NUMBER.sub(_rounded, element.attrib[attribute])
    for child in element:
        _recolour(child, in_mesh=in_mesh)


def _variable(colour: re.Match[str]) -> str:
    name = _NAME.get(colour[0])
    return f"var(--{name})" if name else colour[0]


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
